"""How a backlog leaves: in order, at its pace, ever more slowly where nobody acknowledges it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest

from edge.runtime.outbox import Batch
from edge.runtime.store import Store
from edge.runtime.uploader import Pace, Throttle, Uploader
from edge.wire import codec
from edge.wire.messages import LogBatch, LogEntry, Stream
from tests.runtime.plant import TurnedClock

CONTROL, TELEMETRY = Stream.CONTROL, Stream.TELEMETRY
PACE = Pace(jitter_s=0.0, gather_s=0.1)


class Central:
    """The other end of a session: what it heard, and when."""

    def __init__(self, clock: TurnedClock) -> None:
        self._clock = clock
        self.heard: list[tuple[float, LogBatch]] = []

    async def publish(self, topic: str, payload: bytes) -> None:
        assert topic == "log"
        self.heard.append((self._clock.boottime_s(), codec.decode(LogBatch, payload)))
        await asyncio.sleep(0)

    def of(self, stream: Stream) -> list[LogBatch]:
        return [batch for _, batch in self.heard if batch.stream == stream]

    def moments(self, stream: Stream) -> list[float]:
        return [at for at, batch in self.heard if batch.stream == stream]


class Bench:
    """Both streams of a node over one session."""

    def __init__(self, store: Store, pace: Pace) -> None:
        self.clock = TurnedClock()
        self.store = store
        self.central = Central(self.clock)
        throttle = Throttle(pace, self.clock)

        def uploader(stream: Stream, before: Uploader | None = None) -> Uploader:
            return Uploader(
                stream,
                outbox=store.outbox,
                topic="log",
                clock=self.clock,
                pace=pace,
                throttle=throttle,
                before=before,
            )

        self.control = uploader(CONTROL)
        self.telemetry = uploader(TELEMETRY, self.control)

    def uploader(self, stream: str) -> Uploader:
        return self.control if stream == CONTROL else self.telemetry

    def acknowledge(self, batch: LogBatch, *, last: int | None = None) -> None:
        self.uploader(batch.stream).acknowledge(batch.store, batch.last if last is None else last)

    def append(self, stream: Stream, *, count: int = 1, size: int = 0) -> None:
        with self.store.transaction():
            for _ in range(count):
                self.store.append(stream, LogEntry(seq=0, at="", kind="result", reason="x" * size))
        (self.control if stream is CONTROL else self.telemetry).appended()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Central]:
        tasks = [
            asyncio.create_task(uploader.run(self.central)) for uploader in (self.control, self.telemetry)
        ]
        await self.settle()
        try:
            yield self.central
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def settle(self) -> None:
        for _ in range(60):
            await asyncio.sleep(0)

    async def pass_time(self, seconds: float, *, step_s: float = 0.1) -> None:
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)
            await self.settle()


@pytest.fixture
def make(tmp_path: Path):
    stores: list[Store] = []

    def bench(pace: Pace = PACE) -> Bench:
        stores.append(Store(tmp_path))
        return Bench(stores[-1], pace)

    yield bench
    for store in stores:
        store.close()


def gaps(moments: list[float]) -> list[float]:
    return [round(after - before) for before, after in pairwise(moments)]


async def test_what_nobody_acknowledges_comes_again_ever_more_slowly(make):
    bench = make()
    bench.append(CONTROL)
    async with bench.session() as central:
        await bench.pass_time(300)
        assert gaps(central.moments(CONTROL))[:6] == [10, 20, 40, 60, 60, 60]
        assert {(batch.first, batch.last) for batch in central.of(CONTROL)} == {(1, 1)}


async def test_telemetry_that_nobody_takes_backs_off_to_minutes_and_delays_no_control(make):
    bench = make()
    bench.append(TELEMETRY)
    async with bench.session() as central:
        await bench.pass_time(1200, step_s=1.0)
        assert gaps(central.moments(TELEMETRY))[:6] == [10, 20, 40, 80, 160, 300]

        bench.append(CONTROL)
        await bench.pass_time(0.3)
        assert len(central.of(CONTROL)) == 1


async def test_telemetry_waits_until_no_control_entry_is_left(make):
    bench = make()
    bench.append(TELEMETRY)
    bench.append(CONTROL, count=PACE.batch_entries + 1)
    async with bench.session() as central:
        await bench.pass_time(0.5)
        bench.acknowledge(central.of(CONTROL)[0])
        await bench.pass_time(0.5)
        assert (len(central.of(CONTROL)), len(central.of(TELEMETRY))) == (2, 0)

        bench.acknowledge(central.of(CONTROL)[1])
        await bench.pass_time(0.5)
        assert len(central.of(TELEMETRY)) == 1


async def test_acknowledged_batch_is_followed_by_the_next_at_once_and_late_ones_do_no_harm(make):
    bench = make()
    bench.append(CONTROL, count=2 * PACE.batch_entries)
    async with bench.session() as central:
        await bench.pass_time(0.2)
        bench.acknowledge(central.of(CONTROL)[0])
        await bench.pass_time(0.2)
        bench.acknowledge(central.of(CONTROL)[0])
        await bench.pass_time(5)
        assert [(batch.first, batch.last) for batch in central.of(CONTROL)] == [(1, 50), (51, 100)]


async def test_what_was_never_sent_cannot_be_acknowledged(make):
    bench = make()
    bench.append(CONTROL, count=PACE.batch_entries + 5)
    async with bench.session() as central:
        await bench.pass_time(0.2)
        bench.acknowledge(central.of(CONTROL)[0], last=10**6)
        await bench.pass_time(0.2)
        first, second = central.of(CONTROL)
        # Under that name central would take them for what it has already.
        assert second.store != first.store
        assert [entry.seq for entry in second.entries] == list(range(1, 51))
        assert [entry.reason for entry in second.entries] == [entry.reason for entry in first.entries]
        bench.acknowledge(second)
        await bench.pass_time(0.2)
        assert [entry.seq for entry in central.of(CONTROL)[2].entries] == [51, 52, 53, 54, 55]


async def test_central_that_is_wrong_again_and_again_is_not_answered_without_a_pause(make):
    bench = make()
    bench.append(CONTROL)
    async with bench.session() as central:
        await bench.pass_time(0.2)
        for _ in range(5):
            bench.acknowledge(central.of(CONTROL)[-1], last=10**6)
            await bench.pass_time(0.2)
        assert len(central.of(CONTROL)) == 2


async def test_acknowledgement_of_a_store_that_this_disk_does_not_know_deletes_nothing(make):
    bench = make()
    bench.append(CONTROL)
    async with bench.session():
        await bench.pass_time(0.2)
        for store in ("", "another"):
            bench.control.acknowledge(store, 1)
        assert not bench.store.outbox.is_empty(CONTROL)


# --- a disk that was put back ------------------------------------------------------------------------------


class Database:
    """Central's side of the streams: a batch adds what is behind its position in that store (exactly once)."""

    def __init__(self) -> None:
        self.positions: dict[tuple[str, str], int] = {}
        self.rows: list[tuple[str, str]] = []

    def take(self, batch: LogBatch) -> int:
        key = (batch.stream, batch.store)
        for entry in batch.entries:
            if entry.seq > self.positions.get(key, 0):
                self.positions[key] = entry.seq
                self.rows.append((batch.stream, entry.reason))
        return self.positions[key]


async def upload(bench: Bench, database: Database, *, batches: int | None = None) -> None:
    """Send what waits; `batches`: the process ends when so many of both streams are taken, with the
    acknowledgement of the last on its way."""
    async with bench.session() as central:
        taken = 0
        while True:
            await bench.pass_time(0.5)
            fresh = [batch for _, batch in central.heard[taken:]]
            if not fresh:
                return
            for batch in fresh:
                last = database.take(batch)
                taken += 1
                if taken == batches:
                    return
                bench.uploader(batch.stream).acknowledge(batch.store, last)


def say(bench: Bench, *reasons: str) -> None:
    for stream in Stream:
        for reason in reasons:
            bench.store.append(stream, LogEntry(seq=0, at="", kind="result", reason=reason))


def both(*reasons: str) -> list[tuple[str, str]]:
    return sorted((stream.value, reason) for reason in reasons for stream in Stream)


@pytest.mark.parametrize("sent_before", [0, 1, 2])
@pytest.mark.parametrize("killed_after", [None, 1, 2, 3, 4])
async def test_disk_put_back_to_an_image_loses_and_doubles_nothing(
    make, tmp_path, tmp_path_factory, sent_before, killed_after
):
    """The image holds entries that were sent afterwards, and numbers that were used for others."""
    database, image = Database(), tmp_path_factory.mktemp("image") / "state"
    bench = make()
    say(bench, "a", "b")
    if sent_before:
        await upload(bench, database, batches=sent_before)
    bench.store.close()
    shutil.copytree(tmp_path, image)
    bench = make()
    say(bench, "c", "d", "e")
    await upload(bench, database)
    assert sorted(database.rows) == both(*"abcde")
    bench.store.close()

    shutil.rmtree(tmp_path)
    shutil.copytree(image, tmp_path)
    bench = make()
    say(bench, "f", "g")
    if killed_after is not None:
        await upload(bench, database, batches=killed_after)
        bench.store.close()
        bench = make()
    say(bench, "h")
    await upload(bench, database)

    assert sorted(database.rows) == both(*"abcdefgh")
    assert [reason for stream, reason in database.rows if stream == CONTROL] == list("abcdefgh")
    assert all(bench.store.outbox.is_empty(stream) for stream in Stream)


async def test_machine_put_back_while_it_ran_numbers_anew_what_was_not_acknowledged(make):
    """A snapshot of a virtual machine, its memory included: no process starts, and central is ahead."""
    bench, database = make(), Database()
    say(bench, "a", "b")
    await upload(bench, database)
    store = bench.store.store_id
    # What the machine did in the future that was taken back.
    for stream in Stream:
        database.positions[stream.value, store] = 7
    say(bench, "c")
    await upload(bench, database)
    say(bench, "d")
    await upload(bench, database)

    assert sorted(database.rows) == both("a", "b", "c", "d")
    assert bench.store.store_id != store


async def test_numberings_of_former_processes_are_forgotten_when_central_has_their_entries(make):
    database = Database()
    for number in range(4):
        bench = make()
        say(bench, f"{number}")
        if number == 3:
            await upload(bench, database)
        else:
            bench.store.close()

    assert sorted(database.rows) == both("0", "1", "2", "3")
    left = bench.store._db.rows("SELECT stream, store FROM numbering")
    assert sorted(left) == sorted((stream.value, bench.store.store_id) for stream in Stream)


async def test_entries_of_software_that_had_one_store_for_all_processes_keep_its_numbers(make):
    bench = make()
    say(bench, "a", "b")
    bench.store._db.execute("DELETE FROM numbering")
    bench.store._db.execute("INSERT INTO meta VALUES ('store_id', 'the-one')")
    bench.store.close()
    bench, database = make(), Database()
    database.positions[CONTROL.value, "the-one"] = 1
    say(bench, "c")
    await upload(bench, database)

    assert [reason for stream, reason in database.rows if stream == CONTROL] == ["b", "c"]
    assert database.positions[CONTROL.value, "the-one"] == 2


async def test_backlog_of_a_session_waits_for_a_random_while_and_a_fresh_entry_for_none(make):
    bench = make(Pace(jitter_s=1000.0, gather_s=0.1))
    bench.append(CONTROL)
    async with bench.session() as central:
        await bench.pass_time(0.3)
        assert central.heard == []
        bench.append(CONTROL)
        await bench.pass_time(0.3)
        assert [(batch.first, batch.last) for batch in central.of(CONTROL)] == [(1, 2)]


async def test_without_a_backlog_nothing_is_held_back(make):
    bench = make(Pace(jitter_s=1000.0, gather_s=0.1))
    async with bench.session() as central:
        bench.append(CONTROL)
        await bench.pass_time(0.3)
        assert len(central.of(CONTROL)) == 1


async def test_entries_of_one_moment_go_together(make):
    bench = make()
    async with bench.session() as central:
        for _ in range(3):
            bench.append(CONTROL)
        await bench.pass_time(0.3)
        assert [(batch.first, batch.last) for batch in central.of(CONTROL)] == [(1, 3)]


@pytest.mark.parametrize(
    ("entries", "size"),
    [(50, 100), (5, 3000), (1, 20_000)],
)
def test_no_second_carries_more_than_the_pace_after_the_first_burst(entries, size):
    pace = Pace(entries_per_s=500, bytes_per_s=16_000, burst_s=1.0)
    clock = TurnedClock()
    throttle = Throttle(pace, clock)
    clock.advance(1000)
    begun = clock.boottime_s()
    batch = Batch(1, entries, [b"x" * size] * entries)
    for _ in range(100):
        clock.advance(throttle.take(batch))
    took_s = clock.boottime_s() - begun + pace.burst_s
    assert 100 * entries / took_s <= pace.entries_per_s * 1.001
    assert 100 * batch.size / took_s <= pace.bytes_per_s * 1.001
    assert took_s <= max(100 * entries / 500, 100 * batch.size / 16_000) + 0.001


async def test_disk_that_cannot_be_read_is_tried_again(make):
    bench = make()
    bench.append(CONTROL)
    table = bench.store._db._db
    table.execute("ALTER TABLE outbox RENAME TO elsewhere")
    async with bench.session() as central:
        await bench.pass_time(1)
        assert central.heard == []
        table.execute("ALTER TABLE elsewhere RENAME TO outbox")
        await bench.pass_time(6)
        assert len(central.of(CONTROL)) == 1
