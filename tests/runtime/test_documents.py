"""Desired state arrives in any order, damaged, old, or not at all."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from edge.runtime.documents import WAITING_EACH, WAITING_NAMES, Desired, DocumentRefused
from edge.runtime.store import Store
from edge.wire.codec import document
from edge.wire.messages import DIGEST_LENGTH, Document, Manifest, ManifestEntry

CONFIG, DAY = "config", "schedule/2026-03-02/inverter"


class Applied:
    """Who takes the documents; refuses a body that says so."""

    def __init__(self) -> None:
        self.order: list[tuple[str, int | None]] = []
        self.changes = 0

    def apply(self, documents: dict[str, Document], name: str) -> None:
        doc = documents.get(name)
        self.order.append((name, None if doc is None else doc.version))
        if doc is not None and "refuse" in doc.body:
            raise DocumentRefused(doc.body["refuse"])

    def changed(self) -> None:
        self.changes += 1


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def applied() -> Applied:
    return Applied()


class Settling(Desired):
    """Has done what is to be done when the next message comes."""

    def take_manifest(self, manifest: Manifest) -> None:
        super().take_manifest(manifest)
        self.settle()

    def take(self, name: str, doc: Document) -> None:
        super().take(name, doc)
        self.settle()


@pytest.fixture
def desired(store: Store, applied: Applied) -> Desired:
    return Settling(store, applied.apply, applied.changed)


def doc(version: int, **body: Any) -> Document:
    return document({"version": version, **body}, epoch=1, version=version)


def manifest(version: int, *, epoch: int = 1, **docs: Document) -> Manifest:
    names = {"config": CONFIG, "day": DAY}
    return listing({names[key]: each for key, each in docs.items()}, version=version, epoch=epoch)


def listing(docs: dict[str, Document], *, version: int, epoch: int = 1) -> Manifest:
    entries = {name: ManifestEntry(v=each.version, sha256=each.sha256) for name, each in docs.items()}
    return Manifest(epoch=epoch, version=version, docs=entries)


def statuses(desired: Desired) -> dict[str, tuple[int, str]]:
    return {name: (each.v, each.status) for name, each in desired.reported().items()}


def test_documents_before_their_manifest_wait_and_devices_find_their_schedules(desired, applied):
    config, day = doc(1), doc(2)
    desired.take(CONFIG, config)
    desired.take(DAY, day)
    assert applied.order == []

    desired.take_manifest(manifest(1, config=config, day=day))
    assert applied.order == [(DAY, 2), (CONFIG, 1)]


def test_documents_after_their_manifest_are_applied_as_they_come(desired, applied):
    config, day = doc(1), doc(2)
    desired.take_manifest(manifest(1, config=config, day=day))
    desired.take(DAY, day)
    desired.take(CONFIG, config)

    assert applied.order == [(DAY, 2), (CONFIG, 1)]
    assert statuses(desired) == {CONFIG: (1, "applied"), DAY: (2, "applied")}


def test_same_document_again_is_not_applied_twice(desired, applied):
    config = doc(1)
    desired.take_manifest(manifest(1, config=config))
    desired.take(CONFIG, config)
    desired.take(CONFIG, config)

    assert applied.order == [(CONFIG, 1)]


def test_document_that_the_manifest_does_not_list_is_not_applied(desired, applied):
    desired.take_manifest(manifest(1, config=doc(2)))
    desired.take(CONFIG, doc(1))
    desired.take(CONFIG, doc(3))
    desired.take(CONFIG, doc(2, other="body"))

    assert applied.order == []


def test_damaged_document_keeps_its_predecessor_and_is_reported(desired, applied):
    first, second = doc(1), doc(2)
    desired.take_manifest(manifest(1, config=first))
    desired.take(CONFIG, first)
    desired.take_manifest(manifest(2, config=second))
    desired.take(CONFIG, msgspec.structs.replace(second, body={"damaged": True}))

    assert desired.applied[CONFIG] == first
    assert statuses(desired) == {CONFIG: (2, "failed")}
    desired.take(CONFIG, second)
    assert statuses(desired) == {CONFIG: (2, "applied")}


def test_refused_document_keeps_its_predecessor_and_holds_up_no_other(desired, store):
    first, bad, day = doc(1), doc(2, refuse="no such limit"), doc(3)
    desired.take_manifest(manifest(1, config=first))
    desired.take(CONFIG, first)
    desired.take_manifest(manifest(2, config=bad, day=day))
    desired.take(CONFIG, bad)
    desired.take(DAY, day)

    assert statuses(desired) == {CONFIG: (2, "failed"), DAY: (3, "applied")}
    assert desired.reported()[CONFIG].error == "no such limit"
    assert desired.applied[CONFIG] == first
    assert store.documents()[CONFIG] == first


def test_older_manifest_is_ignored_and_an_older_document_too(desired, applied):
    new, old = doc(5), doc(4)
    desired.take_manifest(manifest(5, config=new))
    desired.take(CONFIG, new)
    desired.take_manifest(manifest(4, config=old))
    desired.take(CONFIG, old)

    assert desired.version == 5
    assert desired.applied[CONFIG] == new


def test_manifest_of_an_older_epoch_is_ignored_whatever_its_version(desired):
    config = document({"restored": True}, epoch=2, version=1)
    desired.take_manifest(manifest(1, epoch=2, config=config))
    desired.take(CONFIG, config)
    desired.take_manifest(manifest(99, day=doc(99)))

    assert (desired.epoch, desired.version) == (2, 1)
    assert set(desired.reported()) == {CONFIG}


def test_document_overtaken_on_its_way_does_not_take_the_place_of_the_newer_one(desired, applied):
    newer = doc(3)
    desired.take(CONFIG, newer)
    desired.take(CONFIG, doc(2))

    desired.take_manifest(manifest(3, config=newer))

    assert statuses(desired) == {CONFIG: (3, "applied")}


def test_higher_epoch_wins_over_a_higher_version(desired):
    desired.take_manifest(manifest(9, config=doc(9)))
    restored = document({"restored": True}, epoch=2, version=1)
    entry = ManifestEntry(v=1, sha256=restored.sha256)
    desired.take_manifest(Manifest(epoch=2, version=1, docs={CONFIG: entry}))
    desired.take(CONFIG, restored)

    assert (desired.epoch, desired.applied[CONFIG]) == (2, restored)


def test_document_that_left_the_manifest_is_dropped_and_stays_dropped(desired, applied, store):
    config, day = doc(1), doc(2)
    desired.take_manifest(manifest(1, config=config, day=day))
    desired.take(CONFIG, config)
    desired.take(DAY, day)
    desired.take_manifest(manifest(2, config=config))

    assert applied.order[-1] == (DAY, None)
    assert set(store.documents()) == {CONFIG}
    assert set(desired.reported()) == {CONFIG}


def test_node_runs_from_its_disk_with_schedules_before_devices(desired, store, applied):
    config, day = doc(1), doc(2)
    desired.take_manifest(manifest(1, config=config, day=day))
    desired.take(CONFIG, config)
    desired.take(DAY, day)

    again = Applied()
    restarted = Desired(store, again.apply, again.changed)
    restarted.load()
    assert again.order == [(DAY, 2), (CONFIG, 1)]
    assert restarted.version == 1


def test_document_on_disk_whose_hash_does_not_hold_is_not_applied(store, applied):
    store.keep_document(CONFIG, msgspec.structs.replace(doc(1), body={"damaged": True}))
    desired = Desired(store, applied.apply, applied.changed)
    desired.load()

    assert applied.order == []


def test_document_left_behind_by_a_process_that_was_dropping_it_is_dropped_at_the_start(store, applied):
    config, day = doc(1), doc(2)
    store.keep_manifest(manifest(2, config=config))
    store.keep_document(CONFIG, config)
    store.keep_document(DAY, day)
    desired = Desired(store, applied.apply, applied.changed)
    desired.load()

    assert applied.order == [(CONFIG, 1)]
    assert set(store.documents()) == {CONFIG}


def test_document_the_disk_does_not_take_is_in_force_and_reported_as_failed(desired, applied, tmp_path):
    config = doc(1)
    desired.take_manifest(manifest(1, config=config))
    (tmp_path / "documents").rmdir()
    desired.take(CONFIG, config)

    assert applied.order == [(CONFIG, 1)]
    assert statuses(desired) == {CONFIG: (1, "failed")}

    desired.keep_again()
    assert statuses(desired) == {CONFIG: (1, "failed")}
    (tmp_path / "documents").mkdir()
    before = applied.changes
    desired.keep_again()
    assert statuses(desired) == {CONFIG: (1, "applied")}
    assert applied.changes == before + 1
    assert desired.store.documents() == {CONFIG: config}


def test_refusal_of_a_newer_document_is_not_forgotten_when_the_older_one_is_stored_at_last(desired, tmp_path):
    first, bad = doc(1), doc(2, refuse="no such limit")
    desired.take_manifest(manifest(1, config=first))
    (tmp_path / "documents").rmdir()
    desired.take(CONFIG, first)
    desired.take_manifest(manifest(2, config=bad))
    desired.take(CONFIG, bad)
    (tmp_path / "documents").mkdir()
    desired.keep_again()

    assert desired.reported()[CONFIG].error == "no such limit"
    assert desired.store.documents() == {CONFIG: first}


# --- another epoch, another truth under the same number --------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_higher_epoch_replaces_all_of_the_older_one_whatever_its_versions(desired, store, version):
    config, day = doc(1), doc(2)
    desired.take_manifest(manifest(2, config=config, day=day))
    desired.take(CONFIG, config)
    desired.take(DAY, day)
    restored = document({"restored": True}, epoch=2, version=version)
    desired.take_manifest(manifest(version, epoch=2, config=restored))
    assert set(desired.applied) == {CONFIG}

    desired.take(CONFIG, restored)
    assert statuses(desired) == {CONFIG: (version, "applied")}
    assert store.documents() == {CONFIG: restored}


def test_document_of_the_same_version_with_another_digest_gives_way_to_the_one_that_is_listed(desired, store):
    ours, theirs = doc(5), doc(5, other="body")
    desired.take_manifest(manifest(5, config=ours))
    desired.take(CONFIG, ours)
    assert desired.reported()[CONFIG].digest == ours.sha256[:DIGEST_LENGTH]

    desired.take_manifest(manifest(6, config=theirs))
    desired.take(CONFIG, ours)
    assert desired.reported()[CONFIG].digest == ours.sha256[:DIGEST_LENGTH]
    desired.take(CONFIG, theirs)
    assert desired.reported()[CONFIG].digest == theirs.sha256[:DIGEST_LENGTH]
    assert store.documents() == {CONFIG: theirs}


def test_configuration_stays_in_force_though_a_manifest_does_not_list_it(desired, store):
    config, day = doc(1), doc(2)
    desired.take_manifest(manifest(2, config=config, day=day))
    desired.take(CONFIG, config)
    desired.take(DAY, day)
    desired.take_manifest(Manifest(epoch=2, version=1, docs={}))

    assert set(desired.applied) == set(store.documents()) == {CONFIG}
    again = Applied()
    restarted = Desired(store, again.apply, again.changed)
    restarted.load()
    assert again.order == [(CONFIG, 1)]


def test_content_in_force_is_renumbered_without_being_sent_or_applied_again(desired, applied, store):
    config = doc(1)
    desired.take_manifest(manifest(1, config=config))
    desired.take(CONFIG, config)
    renumbered = msgspec.structs.replace(config, epoch=2, version=3)
    desired.take_manifest(manifest(3, epoch=2, config=renumbered))

    assert statuses(desired) == {CONFIG: (3, "applied")}
    assert applied.order == [(CONFIG, 1)]
    assert store.documents() == {CONFIG: renumbered}


def test_process_that_died_before_it_renumbered_does_it_at_the_next_start(store, applied):
    config = doc(1)
    store.keep_document(CONFIG, config)
    store.keep_manifest(manifest(3, config=msgspec.structs.replace(config, version=3)))
    desired = Desired(store, applied.apply, applied.changed)
    desired.load()
    desired.settle()

    assert statuses(desired) == {CONFIG: (3, "applied")}
    assert applied.order == [(CONFIG, 1)]


# --- what is missing, and what nobody asked for -----------------------------------------------------------


def test_manifest_without_its_documents_is_reported_without_them(desired):
    desired.take_manifest(manifest(4, config=doc(1), day=doc(4)))

    assert desired.version == 4
    assert desired.reported() == {}


def test_damaged_garbage_that_nobody_lists_is_not_reported(desired):
    config = doc(1)
    desired.take_manifest(manifest(1, config=config))
    desired.take(CONFIG, config)
    desired.take(CONFIG, msgspec.structs.replace(doc(7), body={"damaged": True}))
    desired.take(DAY, msgspec.structs.replace(doc(7), body={"damaged": True}))

    assert statuses(desired) == {CONFIG: (1, "applied")}


def test_damaged_document_before_its_manifest_is_reported_with_it(desired):
    config = doc(1)
    desired.take(CONFIG, msgspec.structs.replace(config, body={"damaged": True}))
    assert desired.reported() == {}
    desired.take_manifest(manifest(1, config=config))

    assert statuses(desired) == {CONFIG: (1, "failed")}


def test_garbage_of_a_higher_version_does_not_keep_a_document_from_its_manifest(desired):
    desired.take(CONFIG, doc(998))
    desired.take(CONFIG, doc(999))
    config = doc(3)
    desired.take(CONFIG, config)
    desired.take_manifest(manifest(3, config=config))

    assert statuses(desired) == {CONFIG: (3, "applied")}


def test_what_waits_for_a_manifest_is_bounded(desired):
    for number in range(WAITING_NAMES + 10):
        desired.take(f"schedule/2026-03-02/{number}", doc(number + 1))
    for version in range(WAITING_EACH + 10):
        desired.take(CONFIG, doc(version + 1))
    assert len(desired._waiting) == WAITING_NAMES
    assert len(desired._waiting[CONFIG]) == WAITING_EACH

    desired.take_manifest(Manifest(epoch=1, version=10_000, docs={}))
    assert desired._waiting == {}


# --- whatever the order -----------------------------------------------------------------------------------

DAYS = [f"schedule/2026-03-{day:02d}/{category}" for day in range(1, 37) for category in ("a", "b")]


class Edits:
    """What a central does: each edit changes some documents, drops some, and makes a manifest."""

    def __init__(self) -> None:
        self.epoch, self.version = 1, 0
        self.documents: dict[str, Document] = {}
        self.published: list[tuple[str, Document] | Manifest] = []

    def edit(self, *, change: set[str], drop: set[str] = frozenset(), new_epoch: bool = False) -> None:  # type: ignore[assignment]
        if new_epoch:
            # Restored from a backup: the numbers begin again somewhere below.
            self.epoch, self.version = self.epoch + 1, self.version // 2
            self.documents = {
                name: msgspec.structs.replace(
                    doc, epoch=self.epoch, version=min(doc.version, self.version + 1)
                )
                for name, doc in self.documents.items()
            }
        self.version += 1
        for name in change:
            body = {"at": len(self.published), "name": name}
            self.documents[name] = document(body, epoch=self.epoch, version=self.version)
        for name in (drop - change) & self.documents.keys():
            del self.documents[name]
        self.published += (
            self.documents.items() if new_epoch else [(name, self.documents[name]) for name in change]
        )
        self.published.append(listing(self.documents, version=self.version, epoch=self.epoch))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_node_ends_with_the_last_manifest_whatever_the_order_of_what_arrives(data):
    """Doubled, in any order, with kills in between, after which the broker sends what it retains."""
    names = [CONFIG, *DAYS[:4]]
    central = Edits()
    for _ in range(data.draw(st.integers(1, 6), label="edits")):
        central.edit(
            change=data.draw(st.sets(st.sampled_from(names))),
            drop=data.draw(st.sets(st.sampled_from(DAYS[:4]))),
            new_epoch=data.draw(st.booleans()) and data.draw(st.booleans()),
        )
    final = [*central.documents.items(), central.published[-1]]
    arriving: list[tuple[str, Document] | Manifest | None] = [*central.published, *final]
    arriving += data.draw(st.lists(st.sampled_from(central.published), max_size=10), label="doubled")
    arriving = list(data.draw(st.permutations(arriving), label="order"))
    kills = data.draw(st.integers(0, 2), label="kills")
    for _ in range(kills):
        arriving.insert(data.draw(st.integers(0, len(arriving)), label="killed"), None)
    if kills:
        # What a killed process had in memory comes from the broker, which retains the last of each name.
        arriving += data.draw(st.permutations(final), label="retained")

    with TemporaryDirectory() as path, closing(Store(Path(path))) as store:
        node, steps = Desired(store, Applied().apply, lambda: None), 0
        for message in arriving:
            match message:
                case None:
                    # Killed with some of its documents applied.
                    node = Desired(store, Applied().apply, lambda: None)
                    node.load()
                case Manifest():
                    node.take_manifest(message)
                case (name, doc):
                    node.take(name, doc)
            for _ in range(data.draw(st.integers(0, 2), label="steps")):
                steps += node.step()
        node.settle()

        wanted = {name: (doc.version, doc.sha256) for name, doc in central.documents.items()}
        found = {name: (doc.version, doc.sha256) for name, doc in node.applied.items()}
        on_disk = {name: (doc.version, doc.sha256) for name, doc in store.documents().items()}
        assert on_disk == found
        if CONFIG not in wanted:
            found.pop(CONFIG, None)
        assert found == wanted
        assert (node.epoch, node.version) == (central.epoch, central.version)


@pytest.mark.parametrize("seed", range(8))
def test_five_weeks_of_two_categories_arrive_in_any_order(store, applied, seed):
    central = Edits()
    central.edit(change={CONFIG, *DAYS})
    messages = central.published
    Random(seed).shuffle(messages)
    desired = Desired(store, applied.apply, applied.changed)
    for message in messages:
        if isinstance(message, Manifest):
            desired.take_manifest(message)
        else:
            desired.take(*message)
    desired.settle()

    assert len(desired.reported()) == 1 + len(DAYS) == 73
    assert {each.status for each in desired.reported().values()} == {"applied"}
    assert store.documents() == central.documents
