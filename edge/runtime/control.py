"""Control without a link: devices, their cycle and the documents they run from, put together in a task group.

The node adds its link to it. The guard runs it as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from edge.drivers.registry import DRIVERS, Drivers
from edge.runtime import config
from edge.runtime.alarms import Alarms
from edge.runtime.clock import SteeredClock
from edge.runtime.cycle import Cycle
from edge.runtime.documents import CONFIG, Desired
from edge.runtime.fleet import Fleet
from edge.runtime.reasons import Reasons
from edge.runtime.store import Store
from edge.wire.messages import Document


class CycleEnded(Exception):  # noqa: N818 - states the fault
    """The write cycle has ended, and with it the watchdog: the process must end too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watchers:
    """Who is told how the control fares.

    `loading` before a configuration is put into force, which may take long; `alive` once every turn of the
    write cycle; `logged` of entries for the outbox; `changed` of what `reported` says; `stood` of closed
    loops that stand otherwise than before.
    """

    loading: Callable[[], None] = lambda: None
    alive: Callable[[], None] = lambda: None
    logged: Callable[[], None] = lambda: None
    changed: Callable[[], None] = lambda: None
    stood: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Control:
    """The parts that read, decide and write."""

    cycle: Cycle
    fleet: Fleet
    desired: Desired
    alarms: Alarms
    tasks: asyncio.TaskGroup

    def start(self) -> None:
        """Take up what is on disk and control the devices; `CycleEnded` in the task group if it ever ends."""
        self.desired.load()
        cycle = self.tasks.create_task(self.cycle.run(), name="cycle")
        self.tasks.create_task(_end_with(cycle), name="end of the cycle")


async def _end_with(cycle: asyncio.Task[None]) -> None:
    """End the process when the cycle ends. A task group passes over a task that somebody has cancelled."""
    await asyncio.wait({cycle})
    raise CycleEnded("the write cycle was cancelled" if cycle.cancelled() else "the write cycle ended")


def build_control(
    *,
    clock: SteeredClock,
    store: Store,
    tasks: asyncio.TaskGroup,
    watchers: Watchers,
    reasons: Reasons,
    drivers: Drivers = DRIVERS,
    written_by: str = "",
    runs_loops: bool = True,
) -> Control:
    """Put cycle, fleet and desired state together; nothing happens before `start`.

    `runs_loops`: without, members of closed loops take the loops' fallback (rule 7).
    """
    confirmed = store.clock(boot=clock.boot_id)
    if confirmed is not None:
        clock.resume(confirmed)
    alarms = Alarms(clock, watchers.changed)
    cycle = Cycle(
        clock=clock,
        store=store,
        logged=watchers.logged,
        alarms=alarms,
        reasons=reasons,
        alive=watchers.alive,
        written_by=written_by,
        runs_loops=runs_loops,
    )
    cycle.loops.stood = watchers.stood
    fleet = Fleet(
        cycle=cycle, clock=clock, store=store, tasks=tasks, drivers=drivers, changed=watchers.changed
    )
    cycle.left = fleet.retired

    def apply(documents: dict[str, Document], name: str) -> None:
        if name == CONFIG:
            watchers.loading()
            fleet.apply(config.plan(documents[CONFIG].body))
        elif name in documents:
            config.schedule_body(documents[name])
        cycle.set_schedules(config.schedules(documents))

    return Control(cycle, fleet, Desired(store, apply, watchers.changed), alarms, tasks)
