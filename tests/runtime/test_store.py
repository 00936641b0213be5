"""What a node finds on its disk again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from edge.core.arbitration import Lapse
from edge.core.commands import Hold
from edge.core.events import LapseCause
from edge.runtime.store import Kept, Store
from edge.wire.codec import document
from edge.wire.messages import DeviceResult, LogEntry, Manifest, Stream

NOW = datetime(2026, 3, 2, 10, 0, tzinfo=UTC)
HOLD = Hold((1, 7), "request", "inverter", 30.0, 1000.0, 1060.0)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    yield store
    store.close()


def entry(reason: str = "") -> LogEntry:
    return LogEntry(seq=0, at="2026-03-02T10:00:00.000000Z", kind="result", reason=reason)


def waiting(store: Store, *, limit: int = 100, max_bytes: int = 100_000) -> list[int]:
    return [each.seq for each in store.waiting(Stream.CONTROL, limit=limit, max_bytes=max_bytes)]


def test_everything_is_found_again(tmp_path, store):
    kept = Kept("boot-1", HOLD, (1, 7), Lapse(HOLD, LapseCause.TIME_LIMIT))
    store.keep([("A", kept), ("B", Kept())])
    store.remember("command", at=NOW, answer=b"answer")
    store.append(Stream.CONTROL, entry())
    store.keep_document("schedule/2026-03-02/inverter", document({"a": 1}, epoch=1, version=3))
    store.keep_manifest(Manifest(epoch=1, version=2, docs={}))

    again = Store(tmp_path)
    assert again.devices() == {"A": kept, "B": Kept()}
    assert again.answer_to("command") == (True, b"answer")
    assert again.documents()["schedule/2026-03-02/inverter"].version == 3
    assert again.manifest() == Manifest(epoch=1, version=2, docs={})
    assert waiting(again) == [1]
    again.close()


def test_numbers_of_a_stream_have_no_gaps_and_are_never_used_twice(tmp_path, store):
    for _ in range(3):
        store.append(Stream.CONTROL, entry())
    store.outbox.acknowledged(Stream.CONTROL, last=3)
    store.append(Stream.CONTROL, entry())
    again = Store(tmp_path)
    for _ in range(2):
        again.append(Stream.CONTROL, entry())

    # Each process under the name of its own.
    found = []
    while (batch := again.outbox.batch(Stream.CONTROL, max_entries=10, max_bytes=1000)) is not None:
        found.append((batch.store, batch.first, batch.last))
        again.outbox.acknowledged(Stream.CONTROL, last=batch.last_row)
    assert found == [(store.store_id, 4, 4), (again.store_id, 1, 2)]
    again.close()


def test_entry_and_its_number_are_kept_together_or_not_at_all(store):
    store.append(Stream.CONTROL, entry())
    with pytest.raises(RuntimeError), store.transaction():  # noqa: PT012 - what fails is the block as a whole
        store.append(Stream.CONTROL, entry())
        raise RuntimeError

    store.append(Stream.CONTROL, entry())
    assert waiting(store) == [1, 2]


def test_transaction_is_all_or_nothing(store):
    with pytest.raises(RuntimeError), store.transaction():  # noqa: PT012 - what fails is the block as a whole
        store.keep([("A", Kept("boot-1", HOLD))])
        store.remember("command", at=NOW, answer=b"")
        raise RuntimeError

    assert store.devices() == {}
    assert store.answer_to("command") == (False, None)


def test_batch_ends_at_its_size_and_holds_one_entry_in_any_case(store):
    devices = {f"INVERTER_{number}": DeviceResult(value=30.0) for number in range(100)}
    for _ in range(3):
        store.append(Stream.CONTROL, LogEntry(seq=0, at="", kind="result", devices=devices))

    assert waiting(store, max_bytes=1) == [1]
    assert waiting(store, max_bytes=8000) == [1, 2]
    assert waiting(store, limit=1) == [1]


def test_commands_are_forgotten_after_a_day(store):
    store.remember("old", at=NOW - timedelta(hours=25), answer=b"")
    store.remember("young", at=NOW - timedelta(hours=23), answer=b"")
    store.forget_old_commands(NOW)

    assert store.answer_to("old") == (False, None)
    assert store.answer_to("young") == (True, b"")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"v":1}', b'{"v":99}'])
def test_damaged_files_are_as_if_they_were_not_there(tmp_path, store, content):
    store.keep_document("config", document({}, epoch=1, version=1))
    (tmp_path / "manifest.json").write_bytes(content)
    (tmp_path / "documents" / "schedule~2026-03-02~inverter.json").write_bytes(content)

    assert store.manifest() is None
    assert set(store.documents()) == {"config"}


def test_damaged_device_row_costs_that_device_only(store):
    store.keep([("A", Kept("boot-1", HOLD)), ("B", Kept("boot-1"))])
    store._db.execute("UPDATE device SET kept = ? WHERE tag = 'A'", (b"nonsense",))

    assert set(store.devices()) == {"B"}


def test_damaged_database_is_put_aside_and_begun_anew(tmp_path):
    (tmp_path / "node.sqlite3").write_bytes(b"this is no database, whatever its name says" * 100)
    store = Store(tmp_path)

    assert store.devices() == {}
    assert (tmp_path / "node.sqlite3.damaged").exists()
    store.close()
