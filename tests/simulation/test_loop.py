"""The virtual clock itself: time that passes at once, and the same way every time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.simulation.loop import Deadlock, VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop(start_s=100.0)
    yield loop
    loop.close()


def test_a_day_of_waiting_takes_no_time(loop):
    begin = time.monotonic()
    loop.elapse(86400.0)
    assert loop.time() == pytest.approx(86500.0, abs=1e-3)
    assert time.monotonic() - begin < 5


def test_timers_fire_at_their_moment_and_in_order(loop):
    seen: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((name, round(loop.time() - 100.0, 3)))

    async def both() -> None:
        await asyncio.gather(sleeper("late", 2.5), sleeper("early", 0.25), sleeper("middle", 1.0))

    loop.run_until_complete(both())
    assert seen == [("early", 0.25), ("middle", 1.0), ("late", 2.5)]


def test_a_deadline_is_kept_on_virtual_time(loop):
    async def patient() -> Any:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600.0):
                await asyncio.Event().wait()
        return loop.time()

    assert loop.run_until_complete(patient()) == pytest.approx(3700.0, abs=1e-3)


def test_waiting_for_what_never_comes_is_said_and_does_not_hang(loop):
    async def forlorn() -> None:
        await asyncio.Event().wait()

    task = loop.create_task(forlorn())
    with pytest.raises(Deadlock):
        loop.run_until_complete(task)
    loop.finish([task])


def test_work_for_a_thread_is_done_on_the_spot(loop):
    assert loop.run_until_complete(asyncio.to_thread(sum, [1, 2])) == 3
    with pytest.raises(ZeroDivisionError):
        loop.run_until_complete(asyncio.to_thread(divmod, 1, 0))


def test_a_suspended_machine_finds_its_timers_due(loop):
    async def nap() -> Any:
        await asyncio.sleep(10.0)
        return loop.time()

    task = loop.create_task(nap())
    loop.elapse(1.0)
    loop.skip(3600.0)
    assert loop.run_until_complete(task) == pytest.approx(3701.0, abs=1e-3)
