"""The ring of reasons: what it notes, how far it reaches, and what it never costs."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge.core.arbitration import DeviceState, decide, written
from edge.core.image import EMPTY, TRUSTED, ProcessImage
from edge.runtime.reasons import (
    DECISION,
    FILE,
    GONE,
    KEPT_S,
    MAX_WAITING,
    OUTCOME,
    Entry,
    Outcome,
    Reasons,
    Ring,
    RingBusy,
)
from tests.core.devices import device, held, slots
from tests.runtime.plant import TurnedClock

A = "INVERTER_01"
EVER = (1 << 30, 0.0)
WITHIN_S = 10.0


@dataclass
class Noting:
    """Devices that are decided upon, and the ring that takes note; no lines, no cycle."""

    clock: TurnedClock
    reasons: Reasons
    states: dict[str, DeviceState] = field(default_factory=dict)

    def turn(self, *, loop: float | None = None, code: str | None = None) -> None:
        """One turn of the cycle: decide, write what is due, have it confirmed (or not, for `code`)."""
        now = self.clock.now()
        image = ProcessImage(loop_value=loop)
        for tag, state in self.states.items():
            after, decision = decide(state, image, now)
            self.reasons.note(tag, after, decision, image=image, quality=TRUSTED, now=now)
            if decision.write is not None and decision.value is not None:
                after = written(after, decision.value, now, confirmed=code is None)
                readback = None if code else decision.value
                self.reasons.wrote(tag, Outcome(decision.value, code, "", readback), now=now)
            self.states[tag] = after
        self.reasons.turned(self.states.keys(), now=now)

    async def entries(self, tag: str = A) -> list[Entry]:
        return await self.reasons.read(lambda ring: ring.before(tag, EVER, limit=10**6), within_s=WITHIN_S)

    async def kinds(self, kind: str, tag: str = A) -> list[Entry]:
        return [entry for entry in await self.entries(tag) if entry.kind == kind]


@asynccontextmanager
async def noting(
    directory: Path, *devices: DeviceState, clock: TurnedClock | None = None, who: str = "node"
) -> AsyncIterator[Noting]:
    clock = clock or TurnedClock()
    reasons = Reasons(directory, clock=clock, who=who)
    try:
        yield Noting(clock, reasons, {state.settings.tag: state for state in devices or (device(),)})
    finally:
        reasons.close()


# --- what is noted --------------------------------------------------------------------------------


async def test_reason_is_noted_once_for_as_long_as_it_stands(tmp_path):
    async with noting(
        tmp_path, device(schedule=slots({"10:00": 80.0, "10:15": 80.0, "10:30": 50.0}))
    ) as node:
        for _ in range(40):
            node.turn()
            node.clock.advance(60)
        assert [(entry.value, entry.source) for entry in await node.kinds(DECISION)] == [
            (80.0, "schedule"),
            (50.0, "schedule"),
        ]


async def test_hold_its_confirmation_and_its_lapse_are_entries_of_their_own(tmp_path):
    async with noting(tmp_path) as node:
        node.turn()
        node.states[A] = held(node.states[A], 40, node.clock.now())
        node.turn()
        node.clock.advance(61)
        node.turn()
        assert [(entry.kind, entry.value, entry.code) for entry in await node.entries()] == [
            (DECISION, 100.0, None),
            (OUTCOME, 100.0, None),
            (DECISION, 40.0, None),
            (OUTCOME, 40.0, None),
            (DECISION, 100.0, None),
            (OUTCOME, 100.0, None),
        ]
        lapse = (await node.kinds(DECISION))[-1]
        assert lapse.because == "request req-1-1 has ended: time_limit"


async def test_what_changes_under_a_hold_is_noted_too(tmp_path):
    async with noting(
        tmp_path, device(schedule=slots({"10:00": 80.0, "10:15": 50.0}), time_limit_s=3600)
    ) as node:
        node.states[A] = held(node.states[A], 40, node.clock.now(), hold_s=1800)
        node.turn()
        node.clock.advance(901)
        node.turn()
        before, after = await node.kinds(DECISION)
        assert "under it schedule 80" in before.sentence
        assert "under it schedule 50" in after.sentence
        assert before.value == after.value == 40


async def test_failed_write_is_noted_once_and_its_recovery_once(tmp_path):
    async with noting(tmp_path) as node:
        for _ in range(5):
            node.turn(code="write_failed")
            node.clock.advance(1)
        node.turn()
        assert [entry.code for entry in await node.kinds(OUTCOME)] == ["write_failed", None]


async def test_renewal_of_the_same_value_has_a_confirmation_of_its_own(tmp_path):
    async with noting(tmp_path) as node:
        for sequence in (1, 2):
            node.states[A] = held(node.states[A], 40, node.clock.now(), sequence=sequence)
            node.turn()
            for _ in range(3):
                node.clock.advance(1)
                node.reasons.wrote(A, Outcome(40.0, readback=40.0), now=node.clock.now())
        assert [(entry.kind, entry.request_id) for entry in await node.entries()] == [
            (DECISION, "req-1-1"),
            (OUTCOME, None),
            (DECISION, "req-1-2"),
            (OUTCOME, None),
        ]


async def test_moving_value_is_noted_now_and_then_and_where_it_comes_to_rest(tmp_path):
    async with noting(tmp_path) as node:
        for second in range(60):
            node.turn(loop=50.0 + second / 10)
            node.clock.advance(1)
        for _ in range(20):
            node.turn(loop=56.0)
            node.clock.advance(1)
        decisions, outcomes = await node.kinds(DECISION), await node.kinds(OUTCOME)
        assert 6 <= len(decisions) <= 9
        assert 6 <= len(outcomes) <= 9
        assert decisions[-1].value == outcomes[-1].value == 56.0


async def test_ramp_is_noted_now_and_then_and_where_it_ends(tmp_path):
    async with noting(tmp_path, device(ramp_pct_per_min=60.0, time_limit_s=600)) as node:
        node.turn()
        node.clock.advance(20)
        node.states[A] = held(node.states[A], 70, node.clock.now(), hold_s=600)
        for _ in range(60):
            node.turn()
            node.clock.advance(1)
        decisions, outcomes = await node.kinds(DECISION), await node.kinds(OUTCOME)
        assert len(decisions) <= 6
        assert len(outcomes) <= 8
        assert "on its ramp to 70" in decisions[2].sentence
        assert decisions[-1].value == outcomes[-1].value == 70
        # Thirty seconds at one percent a second.
        assert decisions[-1].boottime_s - decisions[1].boottime_s == pytest.approx(30, abs=1.1)


async def test_device_that_left_is_said_to_have_left(tmp_path):
    async with noting(tmp_path) as node:
        node.turn()
        del node.states[A]
        node.turn()
        assert (await node.entries())[-1].kind == GONE


async def test_same_reason_after_a_restart_is_not_said_again(tmp_path):
    clock = TurnedClock()
    state = held(device(), 40, clock.now())
    for _ in range(2):
        async with noting(tmp_path, state, clock=clock) as node:
            node.turn()
            clock.advance(5)
            found = await node.entries()
    assert [entry.kind for entry in found] == [DECISION, OUTCOME, OUTCOME]
    assert len({entry.sentence for entry in found if entry.kind == DECISION}) == 1


async def test_guard_says_the_same_reason_in_its_own_name(tmp_path):
    clock = TurnedClock()
    async with noting(tmp_path, clock=clock) as node:
        node.turn()
    clock.advance(5)
    async with noting(tmp_path, clock=clock, who="guard") as guard:
        guard.turn()
        assert [entry.who for entry in await guard.kinds(DECISION)] == ["node", "guard"]


async def test_order_is_that_of_the_boot_time_clock_whatever_the_wall_clock_does(tmp_path):
    clock = TurnedClock()
    async with noting(tmp_path, clock=clock) as node:
        for sequence, value in enumerate((40, 30, 20), start=1):
            node.states[A] = held(node.states[A], value, clock.now(), sequence=sequence)
            node.turn()
            clock.advance(1)
            clock.jump_wall(-3600)
    clock.reboot()
    clock.boot_id = "boot-2"
    async with noting(tmp_path, held(device(), 10, clock.now()), clock=clock) as node:
        node.turn()
        assert [entry.value for entry in await node.kinds(DECISION)] == [40, 30, 20, 10]


async def test_clocks_steps_are_kept_and_its_slow_correction_is_no_step(tmp_path):
    async with noting(tmp_path) as node:
        node.turn()
        for _ in range(30):
            node.clock.advance(1)
            node.clock.jump_wall(0.05)
            node.turn()
            await node.entries()
        node.clock.jump_wall(-3600)
        node.turn()
        spans = await node.reasons.read(lambda ring: ring.clock_spans(), within_s=WITHIN_S)
        assert [span.step_s for span in spans] == [0, 0, 0, pytest.approx(-3600, abs=1)]
        assert spans[2].offset_s - spans[0].offset_s == pytest.approx(1.0, abs=0.2)


# --- how far it reaches ---------------------------------------------------------------------------


async def test_ring_forgets_after_a_day_but_not_what_was_in_force_then(tmp_path):
    async with noting(tmp_path, device(tag=A), device(tag="B")) as node:
        node.turn()
        for sequence in range(1, 60):
            node.clock.advance(3600)
            node.states["B"] = held(node.states["B"], 40, node.clock.now(), sequence=sequence)
            node.turn()
        assert [entry.value for entry in await node.kinds(DECISION)] == [100.0]
        entries = await node.kinds(DECISION, "B")
        now_s = node.clock.boottime_s()
        old = [entry for entry in entries if entry.boottime_s < now_s - KEPT_S]
        assert len(old) == 1
        reach = await node.reasons.read(lambda ring: ring.reach(), within_s=WITHIN_S)
        assert reach is not None
        assert now_s - KEPT_S - 3601 <= reach.position[1] <= now_s - KEPT_S


def entry_at(second: float, *, tag: str = A) -> Entry:
    return Entry(
        tag=tag, boottime_s=second, utc=1000 + second, kind=DECISION, who="node", value=second, sentence="s"
    )


def test_ring_is_bounded_by_rows_and_says_how_far_it_reaches_then(tmp_path):
    clock = TurnedClock()
    ring = Ring.open(tmp_path / FILE, max_rows=100)
    ring.begin(boot_id="b", who="node", now=clock.now())
    ring.write([entry_at(1001, tag="STANDING")], now=clock.now())
    for _ in range(10):
        now = clock.advance(61)
        ring.write([entry_at(now.boottime_s - 60 + number) for number in range(50)], now=now)
    ring.close()

    read = Ring.read_only(tmp_path / FILE)
    (rows,) = read.db.execute("SELECT count(*) FROM reason").fetchone()
    reach = read.reach()
    assert rows <= 102
    assert reach is not None
    assert reach.position[1] > 1000 + 7 * 61
    assert read.decision_at("STANDING", reach.position) is not None
    assert read.decision_at(A, reach.position) is not None
    read.close()


async def test_device_that_left_long_ago_is_forgotten(tmp_path):
    async with noting(tmp_path, device(tag=A), device(tag="B")) as node:
        node.turn()
        del node.states["B"]
        node.turn()
        for sequence in range(1, 30):
            node.clock.advance(3600)
            node.states[A] = held(node.states[A], 40, node.clock.now(), sequence=sequence)
            node.turn()
        assert await node.reasons.read(lambda ring: ring.tags(), within_s=WITHIN_S) == [A]


# --- what it never costs --------------------------------------------------------------------------


async def test_damaged_ring_is_put_aside_and_begun_anew(tmp_path):
    (tmp_path / FILE).write_bytes(b"not a database, " * 1000)
    async with noting(tmp_path) as node:
        node.turn()
        assert len(await node.kinds(DECISION)) == 1
    assert (tmp_path / f"{FILE}.damaged").is_file()


async def test_ring_whose_pages_are_damaged_is_put_aside_when_that_shows(tmp_path):
    async with noting(tmp_path) as node:
        node.turn()
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
    async with noting(tmp_path) as node:
        for _ in range(3):
            node.turn()
            node.clock.advance(1)
        assert [entry.value for entry in await node.kinds(DECISION)] == [100.0]
        assert await node.reasons.read(lambda ring: ring.in_memory_because, within_s=WITHIN_S) == ""
    assert (tmp_path / f"{FILE}.damaged").is_file()


async def test_damage_that_only_a_question_finds_is_repaired_for_the_next(tmp_path):
    async with noting(tmp_path) as node:
        node.turn()
        await node.entries()
        await node.reasons.read(
            lambda ring: ring.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall(), within_s=WITHIN_S
        )
        content = (tmp_path / FILE).read_bytes()
        (tmp_path / FILE).write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))
        await node.reasons.read(
            lambda ring: ring.db.execute("PRAGMA shrink_memory").fetchall(), within_s=WITHIN_S
        )
        with pytest.raises(sqlite3.DatabaseError, match="malformed"):
            await node.entries()
        node.turn()
        node.turn()
        assert [entry.value for entry in await node.kinds(DECISION)] == [100.0]


async def test_ring_that_cannot_be_written_goes_on_in_memory_with_all_that_is_in_force(tmp_path, caplog):
    (tmp_path / FILE).mkdir()
    async with noting(tmp_path, device(tag=A), device(tag="B")) as node:
        for _ in range(3):
            node.turn()
            node.clock.advance(1)
            assert len(await node.kinds(DECISION)) == 1
        why = await node.reasons.read(lambda ring: ring.in_memory_because, within_s=WITHIN_S)
        assert "unable to open" in why
    assert caplog.text.count("reasons are kept in memory only") == 1


async def test_disk_that_fails_later_loses_no_reason_that_is_in_force(tmp_path):
    async with noting(tmp_path, device(tag=A), device(tag="B")) as node:
        node.turn()
        assert await node.entries("B")
        # A full disk, as SQLite sees it: no page more than there are.
        await node.reasons.read(
            lambda ring: ring.db.execute("PRAGMA max_page_count = 1").fetchone(), within_s=WITHIN_S
        )
        for sequence in range(1, 400):
            node.states[A] = held(node.states[A], sequence % 90, node.clock.now(), sequence=sequence)
            node.turn()
            node.clock.advance(1)
        in_memory = await node.reasons.read(lambda ring: ring.in_memory_because, within_s=WITHIN_S)
        assert "full" in in_memory
        # The first turn hears of it, the second says everything anew.
        node.turn()
        node.turn()
        assert [entry.value for entry in await node.kinds(DECISION, "B")] == [100.0]
        assert (await node.kinds(DECISION))[-1].value == 399 % 90


async def test_stuck_disk_holds_up_nobody_and_what_waits_for_it_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("edge.runtime.reasons.CLOSE_WITHIN_S", 0.01)
    stuck = threading.Event()
    async with noting(tmp_path) as node:
        node.turn()
        held_up = asyncio.create_task(node.reasons.read(lambda _ring: stuck.wait(20), within_s=WITHIN_S))
        await asyncio.sleep(0)
        with pytest.raises(RingBusy):
            await node.reasons.read(lambda ring: ring.tags(), within_s=0.05)
        for number in range(MAX_WAITING + 100):
            node.reasons.wrote("UNSEEN", Outcome(float(number)), now=node.clock.now())
            if number % 1000 == 0:
                node.turn()
        assert len(node.reasons._noted) == MAX_WAITING
        stuck.set()
        await held_up


async def test_questions_that_wait_at_once_are_bounded(tmp_path):
    stuck = threading.Event()
    async with noting(tmp_path) as node:
        waiting = [
            asyncio.create_task(node.reasons.read(lambda _ring: stuck.wait(20), within_s=WITHIN_S))
            for _ in range(8)
        ]
        await asyncio.sleep(0)
        with pytest.raises(RingBusy, match="too many"):
            await node.reasons.read(lambda ring: ring.tags(), within_s=WITHIN_S)
        stuck.set()
        await asyncio.gather(*waiting)


async def test_process_that_notes_nothing_opens_no_ring(tmp_path):
    """A guard waits for the bus lock with its ring closed: until then it is the node's."""
    async with noting(tmp_path, who="guard"):
        pass
    assert list(tmp_path.iterdir()) == []


async def test_orderly_stop_keeps_what_was_noted_last(tmp_path):
    async with noting(tmp_path) as node:
        state, decision = decide(node.states[A], EMPTY, node.clock.now())
        node.reasons.note(A, state, decision, image=EMPTY, quality=TRUSTED, now=node.clock.now())
    ring = Ring.read_only(tmp_path / FILE)
    assert [entry.value for entry in ring.before(A, EVER, limit=9)] == [100.0]
    assert ring.runs()[-1].has_ended
    ring.close()


def test_reader_takes_no_lock_from_the_writer(tmp_path):
    clock = TurnedClock()
    ring = Ring.open(tmp_path / FILE)
    ring.begin(boot_id="b", who="node", now=clock.now())
    reader = Ring.read_only(tmp_path / FILE)
    reader.db.execute("BEGIN")
    reader.tags()
    ring.write([entry_at(1001)], now=clock.now())
    reader.db.execute("COMMIT")
    assert reader.tags() == [A]
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.db.execute("DELETE FROM reason")
    reader.close()
    ring.close()


def test_ring_of_a_killed_process_is_whole_but_for_its_last_second(tmp_path):
    """The child writes, says so, and is killed without closing anything."""
    clock = TurnedClock()
    child = os.fork()
    if child == 0:
        ring = Ring.open(tmp_path / FILE)
        ring.begin(boot_id="b", who="node", now=clock.now())
        ring.write([entry_at(1001)], now=clock.now())
        os._exit(0)
    os.waitpid(child, 0)
    ring = Ring.read_only(tmp_path / FILE)
    assert ring.tags() == [A]
    assert not ring.runs()[-1].has_ended
    ring.close()
