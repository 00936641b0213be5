"""A node's control without its link: simulated devices on real sockets, and a clock that tests turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edge.core.clock import Exchange, Reference, Standing, Trust
from edge.core.image import TRUSTED, Clock as ClockQuality
from edge.core.instant import Instant
from edge.core.schedule import Schedule
from edge.profiles.loader import load_all
from edge.profiles.model import Profile
from edge.profiles.reading import profile_to_builtins
from edge.runtime import config
from edge.runtime.alarms import Alarms
from edge.runtime.cycle import CONTROL_STREAM, Accepted, Cycle
from edge.runtime.fleet import Fleet
from edge.runtime.reasons import Reasons
from edge.runtime.store import Store
from edge.simulators.modbus import SimulatedDevice
from edge.wire.messages import DeviceResult, LogEntry, ReleaseCommand, SetpointCommand
from tests.clock import ManualClock

PROFILES = load_all()
NAMEPLATE_KW = 60.0
SITE = {"id": "site-1", "tag": "site_a", "curtailment_time_limit_s": 60.0, "cyclic_write_timeout_s": 300.0}
# Two tasks hand over within a few passes of the event loop; this many without a change is idle.
IDLE_PASSES = 12


def profile(name: str = "generic_modbus", **changes: Any) -> Profile:
    """A profile, impatient: what a device does not answer is given up after a tenth of a second."""
    return msgspec.structs.replace(PROFILES[name], **{"timeout_ms": 100, **changes})


class TurnedClock(ManualClock):
    """The runtime's clock in a test's hands: sleepers wake when the test moves time beyond their end."""

    def __init__(self, *, boot_id: str = "boot-1") -> None:
        super().__init__()
        self.boot_id = boot_id
        self.untrusted_since_s: float | None = None
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def boottime_s(self) -> float:
        return self.now().boottime_s

    def quality(self) -> ClockQuality:
        return TRUSTED if self.untrusted_since_s is None else ClockQuality(self.untrusted_since_s)

    def standing(self) -> Standing:
        if self.untrusted_since_s is None:
            return Standing(Trust.TRUSTED, 0.0)
        return Standing(Trust.UNSYNCED, None, self.untrusted_since_s)

    @property
    def reference(self) -> Reference | None:
        return None

    def resume(self, reference: Reference) -> None:
        """It is as good or as bad as the test says."""

    def exchanged(self, exchange: Exchange) -> None:
        """The same."""

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.boottime_s() + seconds, wake))
        await wake

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        timer = asyncio.ensure_future(self.sleep(seconds))
        waker = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({timer, waker}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            waker.cancel()

    def advance(self, seconds: float) -> Instant:
        moment = super().advance(seconds)
        for end, wake in self._awaited():
            if end <= moment.boottime_s + 1e-9:
                wake.set_result(None)
        return moment

    def _awaited(self) -> list[tuple[float, asyncio.Future[None]]]:
        self._sleepers = [(end, wake) for end, wake in self._sleepers if not wake.done()]
        return self._sleepers

    async def idle(self, tasks: int | Callable[[], int]) -> None:
        """Wait, in real time, until this many tasks have nothing to do but to sleep."""
        wanted = (lambda: tasks) if isinstance(tasks, int) else tasks
        async with asyncio.timeout(20):
            passes = 0
            while passes < IDLE_PASSES:
                await asyncio.sleep(0)
                passes = passes + 1 if len(self._awaited()) >= wanted() else 0

    async def run(
        self, seconds: float, *, tasks: int | Callable[[], int], until: Callable[[], object] | None = None
    ) -> float:
        """Let time pass from one sleeper's end to the next; the seconds it took until `until` held."""
        begin = self.boottime_s()
        while True:
            await self.idle(tasks)
            passed = self.boottime_s() - begin
            if (until is not None and until()) or passed >= seconds - 1e-9:
                break
            following = min((end for end, _ in self._awaited()), default=begin + seconds)
            self.advance(max(0.0, min(following, begin + seconds) - self.boottime_s()) or 1e-6)
        assert until is None or until(), f"not within {seconds:g} s"
        return passed


@dataclass
class Plant:
    """Devices, and the cycle that controls them."""

    clock: TurnedClock
    store: Store
    cycle: Cycle
    fleet: Fleet
    simulated: dict[str, SimulatedDevice] = field(default_factory=dict)
    raw: dict[str, dict[str, Any]] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    site: dict[str, Any] = field(default_factory=lambda: dict(SITE))
    schedules: dict[str, Schedule] = field(default_factory=dict)
    abandoned: list[str] = field(default_factory=list)
    sequence: int = 0
    reasons: Reasons | None = None

    async def add(self, tag: str, kind: Profile | None = None, **changes: Any) -> SimulatedDevice:
        """Set up a device; `apply` makes the node control it."""
        kind = kind or profile()
        device = SimulatedDevice(
            profile=kind, unit=kind.default_unit, nameplate_kw=NAMEPLATE_KW, clock=self.clock.boottime_s
        )
        await device.start()
        self.simulated[tag] = device
        self.configure(tag, kind, port=device.port, **changes)
        return device

    def configure(self, tag: str, kind: Profile, **changes: Any) -> None:
        self.profiles[f"{kind.name}-{tag}"] = kind
        self.raw[tag] = {
            "id": tag,
            "tag": tag,
            "category": "inverter",
            "profile": f"{kind.name}-{tag}",
            "host": "127.0.0.1",
            "unit": kind.default_unit,
            "nameplate_kw": NAMEPLATE_KW,
            **changes,
        }

    @property
    def body(self) -> dict[str, Any]:
        profiles = {name: profile_to_builtins(kind) for name, kind in self.profiles.items()}
        return {
            "site": self.site,
            "devices": list(self.raw.values()),
            "profiles": profiles,
            "abandoned": self.abandoned,
        }

    def apply(self) -> None:
        self.fleet.apply(config.plan(self.body))
        self.cycle.set_schedules(self.schedules)

    def setpoint(
        self, *, hold_s: float = 60.0, sequence: int | None = None, **values: float
    ) -> dict[str, asyncio.Future[DeviceResult]]:
        return self.command(hold_s=hold_s, sequence=sequence, **values).waiting

    def hold(self, values: dict[str, float]) -> dict[str, asyncio.Future[DeviceResult]]:
        return self.setpoint(hold_s=60.0, sequence=None, **values)

    def command(self, *, hold_s: float = 60.0, sequence: int | None = None, **values: float) -> Accepted:
        command = SetpointCommand(
            id="c",
            epoch=1,
            sequence=self._number(sequence),
            fresh="",
            request_id=f"request-{self.sequence}",
            category="inverter",
            values=values,
            hold_s=hold_s,
        )
        with self.store.transaction():
            return self.cycle.accept_setpoint(command)

    def release(self, *tags: str) -> dict[str, asyncio.Future[DeviceResult]]:
        command = ReleaseCommand(
            id="c",
            epoch=1,
            sequence=self._number(None),
            fresh="",
            request_id=f"request-{self.sequence}",
            category="inverter",
            devices=tags,
        )
        with self.store.transaction():
            return self.cycle.accept_release(command).waiting

    def outlive(self) -> Site:
        """Let the devices go on when this process ends, for the next one to find."""
        site = Site(dict(self.simulated), self.raw, self.profiles, self.schedules, self.sequence)
        self.simulated.clear()
        return site

    def _number(self, sequence: int | None) -> int:
        self.sequence = max(self.sequence, sequence or self.sequence + 1)
        return sequence or self.sequence

    def logged(self, kind: str) -> list[LogEntry]:
        entries = self.store.waiting(CONTROL_STREAM, limit=1000, max_bytes=1_000_000)
        return [entry for entry in entries if entry.kind == kind]

    def set_by_another(self, tag: str, value: float) -> None:
        """Another controller writes a limit to a device."""
        device = self.simulated[tag]
        device.registers.set("limit_target", value)
        device.take_limit()

    def limit(self, tag: str) -> float:
        return self.simulated[tag].limit_in_force

    async def run(self, seconds: float, until: Callable[[], object] | None = None) -> float:
        """Let time pass; the cycle and each line are one task."""
        return await self.clock.run(seconds, tasks=self._tasks, until=until)

    def _tasks(self) -> int:
        units = [*self.cycle.units.values(), *self.cycle.leaving.values()]
        return 1 + len({unit.bus.name for unit in units if not unit.is_proxy})


@dataclass
class Site:
    """What outlives a node's process: its devices, and what it is to have of documents."""

    simulated: dict[str, SimulatedDevice]
    raw: dict[str, dict[str, Any]]
    profiles: dict[str, Profile]
    schedules: dict[str, Schedule]
    sequence: int


class _Over(Exception):  # noqa: N818 - ends the task group, nothing is wrong
    pass


@asynccontextmanager
async def running_plant(
    directory: Path,
    *,
    clock: TurnedClock | None = None,
    keeps_reasons: bool = False,
    site: Site | None = None,
) -> AsyncIterator[Plant]:
    """A node's control over the state in this directory, until the block ends; `site`: what it finds there."""
    clock = clock or TurnedClock()
    store = Store(directory)
    reasons = Reasons(directory, clock=clock, who="node") if keeps_reasons else None
    failure: BaseException | None = None
    plant: Plant | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            alarms = Alarms(clock, lambda: None)
            cycle = Cycle(clock=clock, store=store, logged=lambda: None, alarms=alarms, reasons=reasons)
            fleet = Fleet(cycle=cycle, clock=clock, store=store, tasks=tasks)
            cycle.left = fleet.retired
            plant = Plant(clock, store, cycle, fleet, reasons=reasons)
            if site is not None:
                plant.simulated, plant.raw, plant.profiles = site.simulated, site.raw, site.profiles
                plant.schedules, plant.sequence = site.schedules, site.sequence
                for device in site.simulated.values():
                    device.clock = clock.boottime_s
            tasks.create_task(cycle.run())
            try:
                yield plant
            except Exception as error:  # noqa: BLE001 - the test's own, raised again outside of the group
                failure = error
            raise _Over  # noqa: TRY301 - how a task group is told to end
    except* _Over:
        pass
    finally:
        if reasons is not None:
            reasons.close()
        store.close()
        for device in plant.simulated.values() if plant is not None else ():
            await device.stop()
    if failure is not None:
        raise failure
