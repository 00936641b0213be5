"""The devices of a node on their lines: what a configuration adds, changes and takes away."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import structlog

from edge.core import arbitration
from edge.core.arbitration import DeviceState
from edge.drivers.registry import DRIVERS, Drivers
from edge.profiles.model import Protocol
from edge.runtime.bus import Bus
from edge.runtime.clock import Clock
from edge.runtime.config import Plan, Planned
from edge.runtime.cycle import Cycle, Unit
from edge.runtime.store import Kept, Store

log = structlog.get_logger()

Endpoint = tuple[Protocol, str, int]


@dataclass(slots=True)
class _Line:
    """One endpoint: its bus, the task that serves it, and the devices on it as they were planned."""

    bus: Bus
    task: asyncio.Task[None]
    planned: dict[str, Planned]


@dataclass(slots=True)
class Fleet:
    """Builds buses and units from a plan, in the task group of the node."""

    cycle: Cycle
    clock: Clock
    store: Store
    tasks: asyncio.TaskGroup
    drivers: Drivers = field(default_factory=lambda: DRIVERS)
    plan: Plan | None = None
    _lines: dict[Endpoint, _Line] = field(default_factory=dict)

    def apply(self, plan: Plan) -> None:
        """Go over to a new plan. A line whose devices did not change keeps its session and its queue.

        A device that cannot be used as it is configured now goes on as it was before. The caller turns the
        cycle once the devices have their schedules.
        """
        if self.plan is not None:
            before = {tag: self.plan.devices[tag] for tag in plan.refused.keys() & self.plan.devices.keys()}
            plan = replace(plan, devices=before | plan.devices)
        self.plan = plan
        wanted: dict[Endpoint, dict[str, Planned]] = {}
        for tag, planned in plan.devices.items():
            wanted.setdefault(planned.endpoint, {})[tag] = planned
        for endpoint, line in list(self._lines.items()):
            if not _same_line(line.planned, wanted.get(endpoint, {})):
                line.task.cancel()
                del self._lines[endpoint]
        states = {tag: unit.state for tag, unit in self.cycle.units.items()}
        kept = self.store.devices()
        for tag in [tag for tag in self.cycle.units if tag not in plan.devices]:
            self.cycle.drop(tag)
            self.store.forget_device(tag)
        for endpoint, devices in wanted.items():
            kept_line = self._lines.get(endpoint)
            if kept_line is None:
                self._open(endpoint, devices, states, kept)
                continue
            kept_line.planned = devices
            for tag, device in devices.items():
                unit = self.cycle.units[tag]
                unit.state = arbitration.reconfigure(unit.state, device.settings)

    async def finish(self, *, within_s: float) -> None:
        """Let go of every line between two writes, so that another process can take over.

        A line that takes longer is broken off when the task group ends.
        """
        for line in self._lines.values():
            line.bus.finish()
        if self._lines:
            await asyncio.wait([line.task for line in self._lines.values()], timeout=within_s)

    def _open(
        self,
        endpoint: Endpoint,
        planned: dict[str, Planned],
        states: dict[str, DeviceState],
        kept: dict[str, Kept],
    ) -> None:
        protocol, host, port = endpoint
        profiles = [device.profile for device in planned.values()]
        # Devices that share a line share its strictest pause.
        gap_s = max(profile.min_gap_ms for profile in profiles) / 1000
        timeout_s = max(profile.timeout_ms for profile in profiles) / 1000
        bus = Bus(name=f"{host}:{port}", clock=self.clock, listener=self.cycle, min_gap_s=gap_s)
        constructors = self.drivers[protocol]
        session = constructors.session(
            host=host,
            port=port,
            timeout_s=timeout_s,
            min_gap_s=gap_s,
            clock=self.clock.boottime_s,
            sleep=bus.gap,
        )
        bus.attach(session)
        for tag, device in planned.items():
            driver = constructors.driver(
                session=session,
                profile=device.profile,
                unit=device.config.unit,
                nameplate_kw=device.config.nameplate_kw,
            )
            bus.add(
                tag,
                driver,
                poll_s=device.config.poll_s,
                tolerance=device.settings.tolerance,
                settable=device.profile.controllable,
            )
            state = states.get(tag)
            if state is not None:
                state = arbitration.contact_renewed(arbitration.reconfigure(state, device.settings))
            else:
                before = kept.get(tag, Kept())
                state = DeviceState(
                    settings=device.settings,
                    hold=before.hold,
                    last_order=before.last_order,
                    lapse=before.lapse,
                )
                same_boot = before.boot == self.clock.boot_id
                state = arbitration.reconfigure(
                    arbitration.resume(state, same_boot=same_boot), device.settings
                )
            if tag in self.cycle.units:
                self.cycle.drop(tag)
            unit = Unit(state=state, bus=bus, can_write=device.profile.controllable)
            unit.kept = kept.get(tag, Kept())
            self.cycle.units[tag] = unit
        task = self.tasks.create_task(bus.run(), name=f"bus {bus.name}")
        self._lines[endpoint] = _Line(bus, task, planned)
        log.info("line opened", endpoint=bus.name, devices=sorted(planned), gap_s=gap_s)


def _same_line(before: dict[str, Planned], after: dict[str, Planned]) -> bool:
    """Tell whether two plans of an endpoint need the same sessions and drivers."""
    if before.keys() != after.keys():
        return False
    return all(
        before[tag].profile == after[tag].profile
        and before[tag].config.unit == after[tag].config.unit
        and before[tag].config.nameplate_kw == after[tag].config.nameplate_kw
        and before[tag].config.poll_s == after[tag].config.poll_s
        for tag in before
    )
