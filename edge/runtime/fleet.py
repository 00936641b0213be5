"""The devices of a node on their lines: what a configuration adds, changes and takes away."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterable, Mapping, Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

import msgspec
import structlog

from edge.core import arbitration
from edge.core.arbitration import DeviceState, Retirement
from edge.core.wear import Ledger, merged
from edge.drivers.base import Driver, Session
from edge.drivers.registry import DRIVERS, Drivers
from edge.profiles.reading import profile_to_builtins
from edge.runtime.bus import Bus
from edge.runtime.clock import Clock
from edge.runtime.config import (
    LEAVING,
    ControlPoint,
    Endpoint,
    Pace,
    Plan,
    Planned,
    Profiles,
    linked,
    pace_of,
    planned_device,
)
from edge.runtime.cycle import Cycle, Unit
from edge.runtime.database import StoreFailed
from edge.runtime.documents import DocumentRefused
from edge.runtime.loop_plan import plan_loops
from edge.runtime.night import sleep_of
from edge.runtime.obedience import obedience_of
from edge.runtime.proxies import Child, Family, Line, ProxyLine
from edge.runtime.store import Kept, Leaving, Store
from edge.wire.messages import Code, DeviceResult, SiteConfig

log = structlog.get_logger()

# Polls of many devices are spread in steps of this, rather than evenly: those that begin together share the
# node's waking up, and between two steps it sleeps.
PHASE_STEP_S = 0.05
# New lines connect one after the other. A thousand at once would keep each other from answering in time, and
# the node would take its own haste for devices out of reach.
LINE_STEP_S = 0.001
# The members of a closed loop are polled so much before its meter: what they give is known when it tells.
BEFORE_METER_S = 0.1
# Before the tag of a device that goes on by an earlier configuration, where the store keeps it.
AS_BEFORE = "as_before:"


@dataclass(slots=True)
class _Line:
    """One endpoint: its bus and session, the task that serves it, and the devices on it by key."""

    bus: Bus
    session: Session
    task: asyncio.Task[None]
    pace: Pace
    planned: dict[str, Planned] = field(default_factory=dict)


class LineTaken(Exception):  # noqa: N818 - states the fault
    """The line to an endpoint is there, and cannot be used for this."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A driver, and the bus that it may be used on (`Bus.ask`)."""

    bus: Bus
    driver: Driver


@dataclass(slots=True)
class Fleet:
    """Builds buses and units from a plan, in the task group of the node.

    `plan` is what the configuration asks for; `waiting` tells of its devices that have to wait, because
    another one still has their control point: it is being retired there, or goes on there as it was.
    `loops_refused` tells of the closed loops that cannot be used, and why.
    """

    cycle: Cycle
    clock: Clock
    store: Store
    tasks: asyncio.TaskGroup
    drivers: Drivers = field(default_factory=lambda: DRIVERS)
    changed: Callable[[], None] = lambda: None
    plan: Plan | None = None
    waiting: dict[str, DeviceResult] = field(default_factory=dict)
    loops_refused: dict[str, str] = field(default_factory=dict)
    _leaving: dict[str, Planned] = field(default_factory=dict)
    _as_before: dict[str, Planned] = field(default_factory=dict)
    _active: dict[str, Planned] = field(default_factory=dict)
    _lines: dict[Endpoint, _Line] = field(default_factory=dict)
    _ending: list[_Line] = field(default_factory=list)
    # Devices that left and that this software cannot reach: by id their key, and what to tell of them.
    _unusable: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def refused(self) -> dict[str, str]:
        """Devices of the configuration that are not controlled as it says, and why."""
        if self.plan is None:
            return {}
        return self.plan.refused | {tag: result.reason for tag, result in self.waiting.items()}

    @property
    def retiring(self) -> dict[str, str]:
        """Devices that left and are still owed their default, by id, and what keeps them."""
        told = {device_id: text for device_id, (_, text) in self._unusable.items()}
        for key, planned in self._leaving.items():
            unit = self.cycle.leaving.get(key)
            state = "not back at its default yet"
            if unit is not None and unit.reachable is False:
                state = f"out of reach at {planned.endpoint}"
            told[planned.config.id] = f"{planned.config.tag}: {state}"
        return told

    def apply(self, plan: Plan) -> None:
        """Go over to a new plan. A line whose pause and patience did not change keeps its session.

        A device that cannot be used as it is configured now goes on as it was before. The caller turns the
        cycle once the devices have their schedules.
        """
        if self.plan is None:
            self._load_leaving()
        known = self._as_before | self._active
        before = {tag: known[tag] for tag in plan.refused.keys() & known.keys()}
        # A proxy that goes on as before does so over its children.
        devices, unlinked = linked(before | plan.devices)
        refused = plan.refused | unlinked
        looped = plan_loops(plan.loops, devices, unusable=refused)
        self.loops_refused = looped.refused
        for tag, why in looped.refused.items():
            log.error("closed loop cannot be used", loop=tag, reason=why)
        if looped.refused:
            told = "; ".join(f"loop {tag}: {why}" for tag, why in looped.refused.items())
            self.cycle.alarms.set("loop_refused", told)
        else:
            self.cycle.alarms.clear("loop_refused")
        self.plan = plan = replace(plan, devices=looped.devices, refused=refused)
        keep: list[Callable[[], None]] = []
        # First who leaves: whoever comes back may find another one under its tag.
        self._part(plan, keep)
        self._come_back(plan, keep)
        self._go_on_as_before(before, plan.site, keep)
        self._keep(keep)
        self._abandon(plan)
        self._build(plan)
        self.cycle.loops.configure(looped.loops)

    def retired(self, units: Iterable[Unit]) -> None:
        """Nothing is owed any more to devices that were retired: let in who waited for their control points.

        Those that left the configuration are forgotten. All of one turn come together: a configuration that
        takes thousands away must not look at all the lines for each.
        """
        if self.plan is None:
            return
        endpoints = set()
        with suppress(StoreFailed), self.store.transaction():
            for unit in units:
                planned = self._leaving.get(unit.key) or self._active.get(unit.key)
                if planned is None:
                    continue
                endpoints.add(planned.endpoint)
                if unit.key in self._leaving:
                    self._forget(unit.key, heirs=self._heirs(planned))
        if endpoints:
            self._build(self.plan, at=endpoints)
            self.changed()

    def device(self, device_id: str) -> Planned | None:
        """A device of the configuration by its id, as it is planned now; None where there is none."""
        devices = self.plan.devices.values() if self.plan is not None else ()
        return next((planned for planned in devices if planned.config.id == device_id), None)

    def reader(self, planned: Planned) -> Reader | None:
        """How to read a device, planned or not, over the line to its endpoint; None where there is no line.

        `LineTaken` where there is one that cannot serve it, or one that is just being closed: a second
        connection beside it is what many devices do not take.
        """
        line = self._lines.get(planned.endpoint)
        if line is None:
            names = [other.bus.name for other in self._lines.values()]
            names += [ending.bus.name for ending in self._ending if not ending.task.done()]
            if planned.endpoint.is_shared and str(planned.endpoint) in names:
                raise LineTaken(f"{planned.endpoint} is in use in another way by this node")
            return None
        here = next((key for key, known in line.planned.items() if _same_device(known, planned)), None)
        if here is not None:
            driver = line.bus.driver(here)
        elif not planned.endpoint.is_shared:
            # A server takes another session, and the plant that lives in the node is not to gain a machine.
            return None
        else:
            driver = self.drivers[planned.endpoint.protocol].driver(
                session=line.session,
                profile=planned.profile,
                unit=planned.config.unit,
                nameplate_kw=planned.config.nameplate_kw,
            )
        return Reader(line.bus, driver)

    async def finish(self, *, within_s: float) -> None:
        """Let go of every line between two writes, so that another process can take over.

        A line that takes longer is broken off when the task group ends.
        """
        for line in self._lines.values():
            line.bus.finish()
        if self._lines:
            await asyncio.wait([line.task for line in self._lines.values()], timeout=within_s)

    # --- who leaves, who comes back -----------------------------------------------------------------

    def _load_leaving(self) -> None:
        for key, leaving in self.store.leaving().items():
            device = msgspec.to_builtins(leaving.device)
            try:
                planned = planned_device(
                    device, leaving.site, Profiles({leaving.device.profile: leaving.profile})
                )
            except DocumentRefused as error:
                log.error("a leaving device cannot be used", device=leaving.device.tag, error=str(error))  # noqa: TRY400
                if not key.startswith(AS_BEFORE):
                    text = f"{leaving.device.tag}: this software cannot reach it: {error}"
                    self._unusable[leaving.device.id] = (key, text)
                continue
            if key.startswith(AS_BEFORE):
                self._as_before[planned.config.tag] = planned
            else:
                self._leaving[key] = planned

    def _go_on_as_before(
        self, before: dict[str, Planned], site: SiteConfig, keep: list[Callable[[], None]]
    ) -> None:
        """Keep what a device goes on by that cannot be used as it is configured now.

        The configuration on disk no longer says it: after a restart its hold would be nobody's to end.
        """
        gone = sorted(self._as_before.keys() - before.keys())
        keep.extend(partial(self.store.forget_leaving, AS_BEFORE + tag) for tag in gone)
        for tag, planned in before.items():
            then = msgspec.structs.replace(
                site,
                curtailment_time_limit_s=planned.settings.time_limit_s,
                cyclic_write_timeout_s=planned.settings.period_s,
            )
            keep.append(partial(self.store.keep_leaving, AS_BEFORE + tag, _leaving(planned, then)))
        self._as_before = before

    def _keep(self, changes: list[Callable[[], None]]) -> None:
        """Keep what has changed, all or nothing; where the disk takes nothing, control goes on."""
        with suppress(StoreFailed), self.store.transaction():
            for change in changes:
                change()

    def _come_back(self, plan: Plan, keep: list[Callable[[], None]]) -> None:
        """A device that left and is back as it was goes on from where it stands."""
        for key, planned in list(self._leaving.items()):
            new = plan.devices.get(planned.config.tag)
            if new is None or new.config.id != planned.config.id or not new.is_same_device(planned):
                continue
            unit = self.cycle.leaving.get(key)
            if unit is not None:
                self._take_off(key, planned)
                self.cycle.come_back(unit)
                self._active[unit.key] = planned
            keep.append(partial(self.store.rename_device, key, planned.config.tag))
            keep.append(partial(self.store.forget_leaving, key))
            del self._leaving[key]

    def _part(self, plan: Plan, keep: list[Callable[[], None]]) -> None:
        """Part with the devices that are not in the plan, or no longer the same ones there."""
        for tag, planned in list(self._active.items()):
            new = plan.devices.get(tag)
            if new is not None and new.config.id == planned.config.id and new.is_same_device(planned):
                continue
            unit = self.cycle.units[tag]
            self._take_off(tag, planned)
            del self._active[tag]
            owed = planned.settings.is_controlled or unit.state.retirement is Retirement.OWED
            # Where its end and its abandonment come at once, to a node that was away, say.
            is_abandoned = planned.config.id in plan.abandoned
            if is_abandoned or not (planned.profile.controllable and owed):
                self.cycle.forget(tag)
                keep.append(partial(self.store.forget_device, tag))
                continue
            key = self._leaving_key(planned.config.id)
            log.info("device leaves", device=tag, id=planned.config.id)
            # No connection's limit has any say in its default any longer (`loop_limits`).
            own = replace(unit.settings, bounds=planned.own_bounds)
            unit.state = arbitration.reconfigure(unit.state, own)
            self.cycle.leave(tag, key=key)
            keep.append(partial(self.store.keep_leaving, key, _leaving(planned, plan.site)))
            keep.append(partial(self.store.rename_device, tag, key))
            if new is not None:
                # Its successor under this tag: central counts what it accepted by the tag.
                successor = Kept(boot=self.clock.boot_id, last_order=unit.state.last_order)
                keep.append(partial(self.store.keep, [(tag, successor)]))
            self._leaving[key] = planned

    def _abandon(self, plan: Plan) -> None:
        """Let go of those whom somebody has named, whatever they still hold."""
        for key, planned in list(self._leaving.items()):
            if planned.config.id in plan.abandoned:
                log.warning("device is abandoned", device=planned.config.tag, id=planned.config.id)
                self._forget(key)
        for device_id in self._unusable.keys() & plan.abandoned:
            key, _ = self._unusable.pop(device_id)
            log.warning("device is abandoned", key=key, id=device_id)
            self._keep([partial(self.store.forget_leaving, key), partial(self.store.forget_device, key)])

    def _leaving_key(self, device_id: str) -> str:
        """What lines, cycle and store call a device that left."""
        key = f"{LEAVING}{device_id}"
        unusable = {key for key, _ in self._unusable.values()}
        while key in self._leaving or key in unusable:
            key += "+"
        return key

    def _take_off(self, key: str, planned: Planned) -> None:
        line = self._lines.get(planned.endpoint)
        if line is not None and line.planned.pop(key, None) is not None:
            line.bus.remove(key)

    def _forget(self, key: str, *, heirs: Iterable[str] = ()) -> None:
        """Let a leaving device go for good; `heirs` take over what its registers have been written."""
        planned = self._leaving.pop(key)
        self._take_off(key, planned)
        unit = self.cycle.leaving.get(key)
        changes: list[Callable[[], None]] = []
        if unit is not None:
            changes = [partial(self._bequeath, unit.state.ledger, tag) for tag in heirs]
            self.cycle.forget(key)
        changes += [partial(self.store.forget_leaving, key), partial(self.store.forget_device, key)]
        self._keep(changes)

    def _heirs(self, planned: Planned) -> list[str]:
        """Those who wait for the control point of a device."""
        assert self.plan is not None
        return [tag for tag in self.waiting if self.plan.devices[tag].control_point == planned.control_point]

    def _bequeath(self, ledger: Ledger, tag: str) -> None:
        """A register is worn by whoever writes it: what was spent on it is not forgotten with its device."""
        kept = self.store.device(tag) or Kept(boot=self.clock.boot_id)
        self.store.keep([(tag, msgspec.structs.replace(kept, ledger=merged(kept.ledger, ledger)))])

    # --- lines and units ----------------------------------------------------------------------------

    def _build(self, plan: Plan, *, at: AbstractSet[Endpoint] | None = None) -> None:
        """Bring lines and units to the plan and to those who leave, all or only `at` these endpoints."""
        kept = self._kept(plan) if at is None else {}
        self.waiting = self._who_waits(plan, kept)
        self.cycle.waiting = self.waiting
        wanted: dict[Endpoint, dict[str, Planned]] = {}
        # One that has to wait and is there already, measured only until now, goes on as it was.
        before = {tag: self._active[tag] for tag in self.waiting.keys() & self._active.keys()}
        self._active = {
            tag: planned for tag, planned in plan.devices.items() if tag not in self.waiting
        } | before
        for key, planned in chain(self._active.items(), self._leaving.items()):
            if planned.is_proxy:
                # It has no line, and never waits for one.
                if at is None:
                    self._put_unit(key, planned, ProxyLine(), kept)
            elif at is None or planned.endpoint in at:
                wanted.setdefault(planned.endpoint, {})[key] = planned
        self._ending = [line for line in self._ending if not line.task.done()]
        for endpoint in list(self._lines) if at is None else self._lines.keys() & at:
            line = self._lines[endpoint]
            if endpoint not in wanted or pace_of(wanted[endpoint].values()) != line.pace:
                line.task.cancel()
                self._ending.append(line)
                del self._lines[endpoint]
        opened = 0
        for endpoint, devices in wanted.items():
            if endpoint not in self._lines:
                self._open(endpoint, devices, connect_in_s=opened * LINE_STEP_S)
                opened += 1
            line = self._lines[endpoint]
            for key, planned in devices.items():
                self._put(line, key, planned, kept)
        self.cycle.proxies.set(_families(plan.devices | self._active), waiting=self.waiting)

    def _kept(self, plan: Plan) -> dict[str, Kept]:
        """What is on disk of the devices that are not under control yet."""
        wanted = plan.devices.keys() | self._leaving.keys()
        if all(self.cycle.unit(key) is not None for key in wanted):
            return {}
        return self.store.devices()

    def _who_waits(self, plan: Plan, kept: dict[str, Kept]) -> dict[str, DeviceResult]:
        """The devices of the plan whose control point another one has still."""
        taken: dict[ControlPoint | None, tuple[str, DeviceResult]] = {}
        for tag, planned in plan.devices.items():
            if tag in plan.refused and planned.settings.is_controlled:
                detail = f"{tag}, which cannot be used as it is configured, goes on as it was"
                taken[planned.control_point] = (tag, DeviceResult(code=Code.OWNED_BY, detail=detail))
            elif self._is_owed(tag, planned, kept):
                taken[planned.control_point] = (tag, _retiring(tag))
        for key, planned in self._leaving.items():
            taken[planned.control_point] = (key, _retiring(planned.config.tag))
        taken.pop(None, None)
        waiting = {}
        for tag, planned in plan.devices.items():
            if taken and planned.settings.is_controlled and planned.control_point in taken:
                by, result = taken[planned.control_point]
                if by != tag:
                    waiting[tag] = result
        return waiting

    def _is_owed(self, tag: str, planned: Planned, kept: dict[str, Kept]) -> bool:
        """Tell whether a device of the plan is, or is about to be, retired in place."""
        if planned.settings.is_controlled:
            return False
        unit = self.cycle.units.get(tag)
        if unit is None:
            return self._resumed(planned, kept.get(tag, Kept())).retirement is Retirement.OWED
        return unit.settings.is_controlled or unit.state.retirement is Retirement.OWED

    def _resumed(self, planned: Planned, found: Kept) -> DeviceState:
        """A device's state as this process finds it."""
        state = DeviceState(
            settings=planned.settings,
            hold=found.hold,
            last_order=found.last_order,
            lapse=found.lapse,
            asked=found.asked,
            confirmed=found.confirmed,
            ledger=found.ledger,
            retirement=found.retirement,
        )
        return arbitration.resume(state, same_boot=found.boot == self.clock.boot_id)

    def _open(self, endpoint: Endpoint, devices: dict[str, Planned], *, connect_in_s: float) -> _Line:
        pace = pace_of(devices.values())
        bus = Bus(name=str(endpoint), clock=self.clock, listener=self.cycle, min_gap_s=pace.gap_s)
        constructors = self.drivers[endpoint.protocol]
        open_session = constructors.session if endpoint.serial is None else constructors.serial_session
        assert open_session is not None
        session = open_session(**pace.arguments, clock=self.clock.boottime_s, sleep=bus.gap)
        bus.attach(session, connect_in_s=connect_in_s)
        # By name: a serial port whose settings changed is another endpoint on the same line.
        for ending in self._ending:
            if ending.bus.name == bus.name:
                bus.follow(ending.task)
        task = self.tasks.create_task(bus.run(), name=f"bus {bus.name}")
        line = self._lines[endpoint] = _Line(bus, session, task, pace)
        log.info("line opened", endpoint=bus.name, devices=sorted(devices), gap_s=pace.gap_s)
        return line

    def _put(self, line: _Line, key: str, planned: Planned, kept: dict[str, Kept]) -> None:
        """Put a device on its line, or give it its new settings where it is there already."""
        before = line.planned.get(key)
        line.planned[key] = planned
        unit = self.cycle.unit(key)
        if before is None or not _same_driver(before, planned):
            driver = self.drivers[planned.endpoint.protocol].driver(
                session=line.session,
                profile=planned.profile,
                unit=planned.config.unit,
                nameplate_kw=planned.config.nameplate_kw,
            )
            line.bus.add(
                key,
                driver,
                poll_s=planned.config.poll_s,
                phase_s=poll_phase_s(planned.config.tag, planned.config.poll_s),
                tolerance=planned.settings.tolerance,
                settable=planned.profile.controllable,
                sparing=planned.settings.wears,
            )
            if unit is not None:
                self.cycle.moved(unit, line.bus)
        poll_s, phase_s = polls(planned)
        is_meter = planned.in_loop is not None and planned.in_loop.meter == planned.config.tag
        line.bus.pace(key, poll_s=poll_s, phase_s=phase_s, goes_first=is_meter)
        self._put_unit(key, planned, line.bus, kept)

    def _put_unit(self, key: str, planned: Planned, line: Line, kept: dict[str, Kept]) -> None:
        """Put a device under control, or give it its new settings where it is there already."""
        unit = self.cycle.unit(key)
        if unit is None:
            found = kept.get(key) or self._kept_of(key)
            state = self._resumed(planned, found)
            if key in self._leaving and state.retirement is not Retirement.OWED:
                # The process ended before it had written down more than that the device leaves.
                state = arbitration.retire(state)
            unit = Unit(state, line, can_write=planned.profile.controllable, key=key, kept=found)
            self.cycle.add(unit, leaving=key in self._leaving)
        unit.sleep = sleep_of(
            unit.sleep, sleeps=planned.profile.sleeps_at_night, nameplate_kw=planned.config.nameplate_kw
        )
        unit.obedience = obedience_of(
            unit.obedience, planned.profile, nameplate_kw=planned.config.nameplate_kw
        )
        if key not in self._leaving:
            self.cycle.reconfigure(unit, planned.settings)

    def _kept_of(self, key: str) -> Kept:
        try:
            return self.store.device(key) or Kept()
        except StoreFailed as error:
            log.error("kept state of a device cannot be read", device=key, error=str(error))  # noqa: TRY400
            return Kept()


def _retiring(tag: str) -> DeviceResult:
    return DeviceResult(
        code=Code.RETIRING, detail=f"{tag}, which had its control point, is not yet back at its default"
    )


def _families(devices: Mapping[str, Planned]) -> dict[str, Family]:
    """Who is behind which proxy, by its tag."""
    children: dict[str, list[Child]] = {tag: [] for tag, planned in devices.items() if planned.is_proxy}
    for tag, planned in devices.items():
        family = children.get(planned.config.owned_by or "")
        if family is not None and planned.is_settable:
            keys = frozenset(planned.profile.telemetry)
            family.append(Child(tag, planned.config.nameplate_kw, keys))
    return {tag: Family(devices[tag].profile, tuple(family)) for tag, family in children.items()}


def _leaving(planned: Planned, site: SiteConfig) -> Leaving:
    # Of the site which it belonged to, or it would be taken for one that never left.
    site = msgspec.structs.replace(site, id=planned.site)
    return Leaving(device=planned.config, site=site, profile=profile_to_builtins(planned.profile))


def _same_driver(before: Planned, after: Planned) -> bool:
    """Tell whether what a line knows of a device still holds."""
    return (
        before.profile == after.profile
        and before.config.unit == after.config.unit
        and before.config.nameplate_kw == after.config.nameplate_kw
        and before.config.poll_s == after.config.poll_s
        and before.settings.tolerance == after.settings.tolerance
        and before.settings.wears == after.settings.wears
    )


def _same_device(one: Planned, other: Planned) -> bool:
    """Tell whether what one's driver reads is what the other's would."""
    return (
        one.profile == other.profile
        and one.config.unit == other.config.unit
        and one.config.nameplate_kw == other.config.nameplate_kw
    )


def polls(planned: Planned) -> tuple[float, float]:
    """How often a device is polled, and when in that period: in a loop, its meter and members together."""
    own, in_loop = planned.config, planned.in_loop
    if in_loop is None:
        return own.poll_s, poll_phase_s(own.tag, own.poll_s)
    phase_s = poll_phase_s(in_loop.meter, in_loop.poll_s)
    if own.tag != in_loop.meter:
        phase_s = (phase_s - min(BEFORE_METER_S, in_loop.poll_s / 4)) % in_loop.poll_s
    return in_loop.poll_s, phase_s


def poll_phase_s(tag: str, poll_s: float) -> float:
    """When in its period a device is polled, in 0..`poll_s`: the same moment on every start."""
    steps = max(1, round(poll_s / PHASE_STEP_S))
    return zlib.crc32(tag.encode()) % steps * (poll_s / steps)
