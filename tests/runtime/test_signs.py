"""Whom a guard kills and whom it does not, on a clock that the test turns; and how a sign stands on disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge.runtime.guard import run_guard
from edge.runtime.signs import (
    BUS_LOCK,
    BUS_WANTED,
    Holder,
    LockLost,
    Patience,
    Phase,
    Role,
    Sign,
    SignedLock,
    process_started_ticks,
    sign_line,
)
from tests.runtime.plant import TurnedClock
from tests.runtime.site import until


@dataclass
class Watched:
    """A state directory whose bus this test holds, and what its guard does about it."""

    state: Path
    clock: TurnedClock
    bus: SignedLock
    guard: asyncio.Task[None]

    def sign(self, **said: Any) -> None:
        """Have the bus signed in this way."""
        sign = Sign(
            **{
                "role": Role.NODE,
                "pid": 1,
                "started_ticks": 1,
                "boot": self.clock.boot_id,
                "phase": Phase.RUNNING,
                "stamp_s": self.clock.boottime_s(),
                **said,
            }
        )
        (self.state / BUS_LOCK).write_bytes(sign_line(sign))

    async def look(self, seconds: float) -> None:
        """Let the guard look for as long."""
        await self.clock.run(seconds, tasks=1)

    def guard_has_the_bus(self) -> bool:
        sign = self.bus.read()
        return sign is not None and sign.role is Role.GUARD


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing, and shall live unless it is the stalled holder."""
    process = subprocess.Popen(["sleep", "60"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def watching(state: Path) -> AsyncIterator[Watched]:
    clock = TurnedClock()
    stop = asyncio.Event()
    bus = SignedLock(state / BUS_LOCK, role=Role.NODE, clock=clock)
    assert bus.take(Phase.RUNNING)
    guard = asyncio.create_task(run_guard(state=state, clock=clock, stop=stop))
    try:
        yield Watched(state, clock, bus, guard)
    finally:
        bus.close()
        stop.set()
        while not guard.done():
            clock.advance(1)
            await asyncio.sleep(0)
        await guard


def started(process: subprocess.Popen[bytes]) -> int:
    ticks = process_started_ticks(process.pid)
    assert ticks is not None
    return ticks


async def test_holder_whose_sign_stands_still_is_killed_after_three_seconds(tmp_path, bystander):
    async with watching(tmp_path) as watched:
        watched.sign(pid=bystander.pid, started_ticks=started(bystander))
        await watched.look(2.9)
        assert bystander.poll() is None
        await watched.look(0.6)
        assert bystander.wait(10) == -9


async def test_holder_that_turns_lives(tmp_path, bystander):
    async with watching(tmp_path) as watched:
        for _ in range(5):
            watched.sign(pid=bystander.pid, started_ticks=started(bystander))
            await watched.look(2.5)
        assert bystander.poll() is None


async def test_holder_that_loads_has_thirty_seconds(tmp_path, bystander):
    async with watching(tmp_path) as watched:
        watched.sign(pid=bystander.pid, started_ticks=started(bystander), phase=Phase.LOADING)
        await watched.look(29.5)
        assert bystander.poll() is None
        await watched.look(1.5)
        assert bystander.wait(10) == -9


async def test_reused_process_id_is_never_killed(tmp_path, bystander):
    async with watching(tmp_path) as watched:
        watched.sign(pid=bystander.pid, started_ticks=started(bystander) - 1)
        await watched.look(60)
        assert bystander.poll() is None


async def test_guard_that_wakes_late_gives_the_holder_one_more_interval(tmp_path, bystander):
    async with watching(tmp_path) as watched:
        watched.sign(pid=bystander.pid, started_ticks=started(bystander))
        await watched.look(2)
        watched.clock.advance(3600)  # the machine was suspended
        await watched.look(2.9)
        assert bystander.poll() is None
        await watched.look(0.6)
        assert bystander.wait(10) == -9


async def test_damaged_sign_kills_nobody(tmp_path):
    async with watching(tmp_path) as watched:
        (tmp_path / BUS_LOCK).write_bytes(os.urandom(256))
        await watched.look(60)
        assert not watched.guard.done()


async def test_guard_never_takes_itself_for_the_holder(tmp_path):
    async with watching(tmp_path) as watched:
        watched.sign(pid=os.getpid(), started_ticks=process_started_ticks(os.getpid()))
        await watched.look(10)
        assert not watched.guard.done()


async def test_free_bus_is_left_to_a_node_that_waits_for_it(tmp_path):
    async with watching(tmp_path) as watched:
        wanted = SignedLock(tmp_path / BUS_WANTED, role=Role.NODE, clock=watched.clock)
        assert wanted.take(Phase.WAITING)
        watched.bus.release()
        await watched.look(0.9)
        assert not watched.guard_has_the_bus()
        # A node that was stopped while it waited keeps nobody from the devices.
        watched.clock.advance(0.5)
        await until(watched.guard_has_the_bus)
        wanted.close()


async def test_guard_yields_to_a_node_that_lives_and_to_no_other(tmp_path):
    async with watching(tmp_path) as watched:
        wanted = SignedLock(tmp_path / BUS_WANTED, role=Role.NODE, clock=watched.clock)
        assert wanted.take(Phase.WAITING)
        watched.clock.advance(2)
        watched.bus.release()
        await until(watched.guard_has_the_bus)
        await watched.clock.run(3, tasks=2)
        assert watched.guard_has_the_bus()

        wanted.stamp(Phase.WAITING)
        watched.clock.advance(0.1)
        await until(lambda: watched.bus.take(Phase.RUNNING))
        wanted.close()


async def test_guard_yields_to_a_node_that_asks_in_a_directory_made_anew(tmp_path):
    state = tmp_path / "state"
    async with watching(state) as watched:
        watched.bus.release()
        shutil.rmtree(state)
        await watched.clock.run(1, tasks=1)
        await until(watched.guard_has_the_bus)

        wanted = SignedLock(state / BUS_WANTED, role=Role.NODE, clock=watched.clock)
        assert wanted.take(Phase.WAITING)
        watched.clock.advance(0.1)
        await until(lambda: watched.bus.take(Phase.RUNNING))
        wanted.close()


# --- patience, and the file -----------------------------------------------------------------------


def a_sign(stamp_s: float, phase: Phase = Phase.RUNNING) -> Sign:
    return Sign(role=Role.NODE, pid=7, started_ticks=8, boot="b", phase=phase, stamp_s=stamp_s)


def test_clock_that_jumps_back_ends_nobodys_time():
    patience = Patience()
    for now_s in (100, 100.5, 101, 50, 50.5, 51, 51.5, 52, 52.5):
        assert not patience.has_ended(a_sign(99), now_s=now_s)


def test_stamps_of_the_future_are_judged_by_their_change_alone():
    patience = Patience()
    looks = [patience.has_ended(a_sign(1e9), now_s=number / 2) for number in range(9)]
    assert looks == [False] * 7 + [True] * 2


def test_guard_that_is_always_late_still_finds_a_stalled_holder():
    patience = Patience()
    looks = [patience.has_ended(a_sign(1), now_s=10 + 1.5 * number) for number in range(5)]
    assert looks[-1]


def test_lock_has_one_holder_and_its_sign(tmp_path):
    clock = TurnedClock()
    one = SignedLock(tmp_path / "lock", role=Role.NODE, clock=clock)
    other = SignedLock(tmp_path / "lock", role=Role.GUARD, clock=clock)
    assert one.take(Phase.LOADING)
    assert not other.take(Phase.RUNNING)
    sign = other.read()
    assert sign is not None
    assert (sign.role, sign.pid, sign.phase) == (Role.NODE, os.getpid(), Phase.LOADING)

    one.release()
    assert other.read() is None
    assert other.take(Phase.RUNNING)
    one.close()
    other.close()


def test_holder_of_a_deleted_lock_hears_of_it_and_the_next_one_locks_the_new_file(tmp_path):
    clock = TurnedClock()
    first = SignedLock(tmp_path / "lock", role=Role.NODE, clock=clock)
    waiting = SignedLock(tmp_path / "lock", role=Role.GUARD, clock=clock)
    assert first.take(Phase.RUNNING)
    (tmp_path / "lock").unlink()

    with pytest.raises(LockLost):
        first.stamp(Phase.RUNNING)
    assert waiting.take(Phase.RUNNING)
    third = SignedLock(tmp_path / "lock", role=Role.NODE, clock=clock)
    assert not third.take(Phase.RUNNING)
    for lock in (first, waiting, third):
        lock.close()


def test_dead_process_has_no_holder(bystander):
    sign = Sign(
        role=Role.NODE,
        pid=bystander.pid,
        started_ticks=started(bystander),
        boot="b",
        phase=Phase.RUNNING,
        stamp_s=0,
    )
    holder = Holder.of(sign)
    assert holder is not None
    bystander.kill()
    bystander.wait()
    holder.kill()  # gone already: nothing happens
    holder.close()
    assert Holder.of(sign) is None
