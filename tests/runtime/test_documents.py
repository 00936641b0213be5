"""Desired state arrives in any order, damaged, old, or not at all."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edge.runtime.documents import Desired, DocumentRefused
from edge.runtime.store import Store
from edge.wire.codec import document
from edge.wire.messages import Document, Manifest, ManifestEntry

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


@pytest.fixture
def desired(store: Store, applied: Applied) -> Desired:
    return Desired(store, applied.apply, applied.changed)


def doc(version: int, **body: Any) -> Document:
    return document({"version": version, **body}, epoch=1, version=version)


def manifest(version: int, **docs: Document) -> Manifest:
    names = {"config": CONFIG, "day": DAY}
    entries = {names[key]: ManifestEntry(v=each.version, sha256=each.sha256) for key, each in docs.items()}
    return Manifest(epoch=1, version=version, docs=entries)


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
    desired.take_manifest(manifest(6, config=old))

    assert desired.version == 6
    assert desired.applied[CONFIG] == new


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
