"""What waits for central: numbered, in order, bounded where it may be, and not lost with the disk."""

from __future__ import annotations

import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from edge.runtime.database import PROBE_BYTES, StoreFailed
from edge.runtime.outbox import MEMORY_LIMIT, SLICE
from edge.runtime.store import Kept, Store
from edge.wire.messages import Gap, LogEntry, Stream

CONTROL, TELEMETRY = Stream.CONTROL, Stream.TELEMETRY
EVERYTHING = 10**9
PROJECT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def minute(number: int) -> str:
    return f"2026-03-02T{number // 60:02d}:{number % 60:02d}:00.000000Z"


def entry(number: int = 0, *, size: int = 0) -> LogEntry:
    return LogEntry(seq=0, at=minute(number), kind="result", reason="x" * size)


def waiting(store: Store, stream: Stream = CONTROL) -> list[LogEntry]:
    return store.waiting(stream, limit=EVERYTHING, max_bytes=EVERYTHING)


def minutes(store: Store, stream: Stream = CONTROL) -> list[str]:
    return [each.at for each in waiting(store, stream)]


def trim(store: Store, *, max_bytes: int = EVERYTHING, before: str | None = None) -> None:
    while store.outbox.trim_telemetry(max_bytes=max_bytes, before=before):
        pass


# --- order, numbers, acknowledgement -----------------------------------------------------------------


def test_streams_are_numbered_each_on_its_own(store):
    for stream in (CONTROL, TELEMETRY, CONTROL):
        store.append(stream, entry())
    assert [each.seq for each in waiting(store)] == [1, 2]
    assert [each.seq for each in waiting(store, TELEMETRY)] == [1]


def test_exactly_what_is_acknowledged_is_deleted(tmp_path, store):
    for stream in (CONTROL, TELEMETRY):
        for number in range(5):
            store.append(stream, entry(number))
    store.outbox.acknowledged(CONTROL, last=3)
    assert [each.seq for each in waiting(Store(tmp_path))] == [4, 5]
    assert len(waiting(store, TELEMETRY)) == 5


def test_much_is_deleted_slice_by_slice(store):
    with store.transaction():
        for number in range(2 * SLICE + 1):
            store.append(CONTROL, entry(number % 60))
    left = [store.outbox.acknowledged(CONTROL, last=2 * SLICE + 1) for _ in range(3)]
    assert left == [True, True, False]
    assert store.outbox.is_empty(CONTROL)


def test_entries_before_a_kill_are_all_there_and_numbered_without_gaps(tmp_path):
    """The process dies between any two instructions; what it had said was written is there."""
    code = """
import sys
from pathlib import Path
from edge.runtime.store import Store
from edge.wire.messages import LogEntry, Stream
store = Store(Path(sys.argv[1]))
for number in range(10**6):
    store.append(Stream.CONTROL, LogEntry(seq=0, at=str(number), kind="result"))
    print(number, flush=True)
"""
    argv = [sys.executable, "-c", code, str(tmp_path)]
    for _ in range(3):
        process = subprocess.Popen(argv, cwd=PROJECT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(40)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        said = [int(line) for line in lines if line.endswith(b"\n")]

        store = Store(tmp_path)
        found = waiting(store)
        assert [each.at for each in found][: len(said)] == [str(number) for number in said]
        assert [each.seq for each in found] == list(range(found[0].seq, found[0].seq + len(found)))
        while store.outbox.acknowledged(CONTROL, last=EVERYTHING):
            pass
        store.close()


# --- bounds ------------------------------------------------------------------------------------------


def test_telemetry_that_is_too_much_drops_its_oldest_behind_a_gap(store):
    for number in range(10):
        store.append(TELEMETRY, entry(number, size=1000))
    trim(store, max_bytes=5500)

    gap, *rest = waiting(store, TELEMETRY)
    assert gap.kind == "gap"
    assert gap.gap == Gap(since=minute(0), until=minute(9 - len(rest)), entries=10 - len(rest))
    assert gap.seq == 10 - len(rest)
    assert [each.at for each in rest] == [minute(number) for number in range(10 - len(rest), 10)]
    assert len(rest) == 5
    assert store.outbox.missing == {TELEMETRY: gap.gap}


def test_gaps_that_meet_are_one(store):
    for number in range(30):
        store.append(TELEMETRY, entry(number, size=1000))
        trim(store, max_bytes=5500)
    gap, *rest = waiting(store, TELEMETRY)
    assert gap.gap == Gap(since=minute(0), until=minute(29 - len(rest)), entries=30 - len(rest))


def test_telemetry_that_is_too_old_goes_whatever_its_size(store):
    for number in range(25):
        store.append(TELEMETRY, entry(number))
    trim(store, before=minute(20))
    gap, *rest = waiting(store, TELEMETRY)
    assert gap.gap == Gap(since=minute(0), until=minute(19), entries=20)
    assert [each.at for each in rest] == [minute(number) for number in range(20, 25)]


def test_control_is_never_trimmed(store):
    for number in range(20):
        store.append(CONTROL, entry(number, size=1000))
    trim(store, max_bytes=0, before=minute(59))
    assert len(waiting(store)) == 20


def test_what_fits_stays_and_a_gap_alone_is_left_alone(store):
    trim(store, max_bytes=0)
    assert waiting(store, TELEMETRY) == []
    for number in range(3):
        store.append(TELEMETRY, entry(number))
    trim(store, max_bytes=EVERYTHING, before=minute(0))
    assert len(waiting(store, TELEMETRY)) == 3
    trim(store, before=minute(50))
    trim(store, max_bytes=0, before=minute(59))
    (gap,) = waiting(store, TELEMETRY)
    assert gap.gap == Gap(since=minute(0), until=minute(2), entries=3)


def test_gap_is_known_after_a_restart_and_until_central_has_it(tmp_path, store):
    for number in range(5):
        store.append(TELEMETRY, entry(number))
    trim(store, before=minute(3))
    again = Store(tmp_path)
    assert again.outbox.missing == {TELEMETRY: Gap(since=minute(0), until=minute(2), entries=3)}
    again.outbox.acknowledged(TELEMETRY, last=2)
    assert again.outbox.missing
    again.outbox.acknowledged(TELEMETRY, last=3)
    assert again.outbox.missing == {}
    again.close()


def test_size_of_what_waits_is_known_after_a_restart(tmp_path, store):
    for number in range(10):
        store.append(TELEMETRY, entry(number, size=1000))
    again = Store(tmp_path)
    trim(again, max_bytes=5500)
    gap, *rest = waiting(again, TELEMETRY)
    assert (gap.kind, len(rest)) == ("gap", 5)
    again.close()


# --- a disk that takes nothing -----------------------------------------------------------------------

Trouble = Callable[[Store], AbstractContextManager[None]]


@contextmanager
def full(store: Store) -> Iterator[None]:
    """No page more: SQLite's own bound, which it reports as a full disk."""
    db: sqlite3.Connection = store._db._db
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages}")
    yield
    db.execute("PRAGMA max_page_count = 1073741823")


@contextmanager
def broken(_: Store) -> Iterator[None]:
    """The kernel takes no byte more for any file of this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(store: Store) -> Iterator[None]:
    db: sqlite3.Connection = store._db._db
    db.execute("PRAGMA query_only = ON")
    yield
    db.execute("PRAGMA query_only = OFF")


@pytest.fixture(params=[full, broken, read_only], ids=lambda kind: kind.__name__)
def trouble(request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]) -> Iterator[Trouble]:
    # What is printed would go into a file, too.
    with capfd.disabled():
        yield request.param


def until_full(store: Store) -> int:
    """Append until the disk takes nothing; how many entries that took."""
    for number in range(200):
        store.append(CONTROL, entry(number % 60, size=3000))
        if store.failure is not None:
            return number + 1
    raise AssertionError("the disk took everything")


def test_entries_wait_in_memory_and_are_written_in_order_when_the_disk_is_back(tmp_path, store, trouble):
    store.append(CONTROL, entry(0))
    with trouble(store):
        count = until_full(store)
        store.append(CONTROL, entry(59))
        assert not store.try_again()
        assert len(waiting(store)) < 1 + count
    assert store.try_again()
    assert store.failure is None

    found = waiting(Store(tmp_path))
    assert [each.seq for each in found] == list(range(1, count + 3))
    assert [each.at for each in found] == [
        minute(0),
        *(minute(number % 60) for number in range(count)),
        minute(59),
    ]


def test_entry_of_a_transaction_that_the_disk_did_not_take_waits(store, trouble):
    with trouble(store):
        until_full(store)
        with pytest.raises(StoreFailed), store.transaction():  # noqa: PT012 - the block as a whole fails
            store.append(CONTROL, entry(58))
            store.keep([(f"DEVICE_{number}", Kept(boot="x" * 5000)) for number in range(20)])
    while not store.try_again():
        pass
    assert minutes(store)[-1] == minute(58)
    assert store.devices() == {}


@pytest.mark.parametrize("trouble", [full, read_only])
def test_first_failure_inside_a_transaction_loses_the_whole_whoever_caught_it(store, trouble):
    with trouble(store):
        with pytest.raises(StoreFailed), store.transaction():  # noqa: PT012 - the block as a whole fails
            store.append(CONTROL, entry(7))
            with pytest.raises(StoreFailed):
                store.keep([(f"DEVICE_{number}", Kept(boot="x" * 5000)) for number in range(20)])
            with pytest.raises(StoreFailed):
                store.answer_to("after a failure nothing of the transaction can be told")
        assert store.failure is not None
    assert waiting(store) == []
    assert store.try_again()
    assert minutes(store) == [minute(7)]


def test_transaction_that_fails_for_another_reason_keeps_no_entry_for_later(store):
    with pytest.raises(RuntimeError), store.transaction():  # noqa: PT012 - what fails is the block as a whole
        store.append(CONTROL, entry())
        raise RuntimeError
    store.try_again()
    assert waiting(store) == []


def test_memory_is_bounded_and_says_what_had_to_go(store):
    with read_only(store):
        for number in range(MEMORY_LIMIT[CONTROL] + 7):
            store.append(CONTROL, entry(number % 1440))
        missing = Gap(since=minute(0), until=minute(6), entries=7)
        assert store.outbox.missing == {CONTROL: missing}
    while not store.try_again():
        pass
    gap, *rest = waiting(store)
    assert (gap.seq, gap.kind, gap.gap) == (1, "gap", missing)
    assert len(rest) == MEMORY_LIMIT[CONTROL]
    assert rest[0].at == minute(7)
    # It is an alarm until central knows.
    assert store.outbox.missing == {CONTROL: missing}
    store.outbox.acknowledged(CONTROL, last=1)
    assert store.outbox.missing == {}


def test_what_is_acknowledged_is_not_offered_again_though_the_disk_keeps_it(store):
    for number in range(3):
        store.append(CONTROL, entry(number))
    with read_only(store):
        with pytest.raises(StoreFailed):
            store.outbox.acknowledged(CONTROL, last=2)
        assert [each.seq for each in waiting(store)] == [3]
        assert not store.outbox.is_empty(CONTROL)


def test_room_for_what_is_overwritten_is_no_room(store):
    """A full disk still lets pages be written over: that is not taken for its recovery."""
    store.keep([("A", Kept(boot="boot-1"))])
    with full(store):
        until_full(store)
        store.keep([("A", Kept(boot="boot-2"))])
        assert not store.try_again()
        assert store.failure is not None
    assert PROBE_BYTES > 4096


def test_store_that_cannot_be_opened_says_so(tmp_path):
    Store(tmp_path).close()
    database = tmp_path / "node.sqlite3"
    database.unlink()
    database.mkdir()  # what nobody, not even root, can open as a file
    with pytest.raises(StoreFailed, match=r"node\.sqlite3 cannot be opened"):
        Store(tmp_path)
