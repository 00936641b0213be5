"""What a dead device costs those beside it: twenty over TCP, and twenty on a line at 9600 baud (rule 19).

Devices and lines share one process and its event loop, so that a figure holds what both take. A write counts
from the request to the bus until the device's register has it. The floor of each is the same run without a
dead device.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from contextlib import AsyncExitStack

from bench.record import Figure, Run, percentile
from edge.simulators.device import Fault
from tests.runtime.lines import (
    BAUD_RATE,
    RTU_PROFILE,
    TURNAROUND_S,
    Lines,
    add_tcp,
    black_hole,
    nobodys_port,
    running,
    serial_line,
    tcp_fleet,
)

DEVICES = 20
DEAD = "DEAD"
TCP_FOR_S, TCP_EVERY_S = 6.0, 0.005
RTU_FOR_S, RTU_EVERY_S = 20.0, 0.2
RETURNS = 5
TCP_GOAL_MS = 20.0
RTU_GOAL_MS = 1000.0
RETURN_GOAL_MS = 1500.0


def main() -> None:
    run = Run(name="lines", broker="none", database="none")
    asyncio.run(_measure(run))
    run.notes["serial_line"] = {
        "baud_rate": BAUD_RATE,
        "turnaround_ms": 1000 * TURNAROUND_S,
        "allowance_ms": RTU_PROFILE.timeout_ms,
    }
    run.write()
    run.print_table()
    sys.exit(any(figure.met is False for figure in run.figures.values()))


async def _measure(run: Run) -> None:
    floor = _note(run, "tcp_alone", await _tcp(None), goal_ms=None, floor=None)
    for death in ("refusing", "silent", "commanded"):
        _note(run, f"tcp_beside_{death}", await _tcp(death), goal_ms=TCP_GOAL_MS, floor=floor)
    for death in (Fault.REFUSE, Fault.SILENT):
        _note_return(run, f"tcp_{death.value}", await _tcp_returns(death))
    took, _ = await _rtu(dead=False)
    floor = _note(run, "rtu_alone", took, goal_ms=None, floor=None)
    took, polls_per_s = await _rtu(dead=True)
    _note(run, "rtu_beside_commanded", took, goal_ms=RTU_GOAL_MS, floor=floor)
    run.figures["rtu_polls_beside_dead"] = Figure(value=round(polls_per_s, 1), unit="1/s", n=1)
    _note_return(run, "rtu_silent", await _rtu_returns())


async def _tcp(death: str | None) -> list[float]:
    async with running() as (lines, stack):
        live = await tcp_fleet(lines, stack, DEVICES - 1)
        if death is not None:
            await _add_dead(lines, stack, death)
        return await lines.write_in_turn(live, every_s=TCP_EVERY_S, for_s=TCP_FOR_S)


async def _add_dead(lines: Lines, stack: AsyncExitStack, death: str) -> None:
    port = nobodys_port() if death == "refusing" else await stack.enter_async_context(black_hole())
    add_tcp(lines, DEAD, port=port)
    lines.run(lines.buses[DEAD])
    lines.buses[DEAD].write(DEAD, 50, verify=False)
    await lines.until(lambda: lines.lost_tags == [DEAD])
    if death == "commanded":
        lines.tasks.append(asyncio.create_task(lines.command_each_second(DEAD)))


async def _tcp_returns(death: Fault) -> list[float]:
    async with running() as (lines, stack):
        (tag,) = await tcp_fleet(lines, stack, 1)
        return [await _return(lines, tag, death, number) for number in range(RETURNS)]


async def _return(lines: Lines, tag: str, death: Fault, number: int) -> float:
    """Let a device die and return while a write is owed to it; the seconds until it has the value."""
    device, value = lines.simulated[tag], 20.0 + number
    await device.set_fault(death)
    ticket = lines.write(tag, value)
    await lines.until(lambda: ticket in lines.outcomes)
    # At another moment of the seconds between two tries each time.
    await lines.clock.sleep(0.4 + number / RETURNS)
    await device.set_fault(Fault.NONE)
    took = await lines.until(lambda: device.limit_in_force == value)
    await lines.until(lambda: lines.outcomes[ticket].code is None)
    return took


async def _rtu(*, dead: bool) -> tuple[list[float], float]:
    async with running() as (lines, stack):
        simulated, tags = await serial_line(lines, stack, DEVICES)
        if dead:
            await simulated.devices[DEVICES].set_fault(Fault.SILENT)
        lines.run(lines.buses[tags[0]])
        live = tags[:-1]
        await lines.until(lambda: all(lines.polls.get(tag) for tag in live))
        if dead:
            await lines.until(lambda: lines.lost_tags == tags[-1:])
            lines.tasks.append(asyncio.create_task(lines.command_each_second(tags[-1])))
        polls = sum(lines.polls.values())
        took = await lines.write_in_turn(live, every_s=RTU_EVERY_S, for_s=RTU_FOR_S)
        assert simulated.collisions == 0, "two frames met on the line"
        assert simulated.silence_violations == [], "a frame came too soon after another"
        return took, (sum(lines.polls.values()) - polls) / RTU_FOR_S


async def _rtu_returns() -> list[float]:
    async with running() as (lines, stack):
        _, tags = await serial_line(lines, stack, DEVICES)
        lines.run(lines.buses[tags[-1]])
        await lines.until(lambda: len(lines.polls) == DEVICES)
        return [await _return(lines, tags[-1], Fault.SILENT, number) for number in range(RETURNS)]


def _note(run: Run, name: str, took: list[float], *, goal_ms: float | None, floor: float | None) -> float:
    """Record median and worst write; the worst one in ms."""
    n = len(took)
    worst = round(1e3 * max(took), 2)
    run.figures[f"{name}_p50"] = Figure(value=round(1e3 * statistics.median(took), 2), unit="ms", n=n)
    run.figures[f"{name}_p99"] = Figure(value=round(1e3 * percentile(took, 0.99), 2), unit="ms", n=n)
    run.figures[f"{name}_worst"] = Figure(
        value=worst,
        unit="ms",
        n=n,
        goal=None if goal_ms is None else f"< {goal_ms:g}",
        met=None if goal_ms is None else worst < goal_ms,
        floor=floor,
    )
    return worst


def _note_return(run: Run, name: str, took: list[float]) -> None:
    worst = round(1e3 * max(took), 1)
    run.figures[f"{name}_return_worst"] = Figure(
        value=worst,
        unit="ms",
        n=len(took),
        goal=f"<= {RETURN_GOAL_MS:g}",
        met=worst <= RETURN_GOAL_MS,
    )


if __name__ == "__main__":
    main()
