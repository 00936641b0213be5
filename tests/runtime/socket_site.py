"""A scenario of the closed loop's benchmark behind real sockets: its plant, and the node that controls it.

The inverters and the meter are simulated Modbus devices which tell what the benchmark's plant does; the node
is the real one with its drivers, bus, cycle, store and link. Broker and central are those of
`tests.simulation`. All of it lives in one loop, whose time is virtual.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench.closed_loop.controllers import Task
from bench.closed_loop.draws import Draws, draw
from bench.closed_loop.plant import STEP_S, Plant, step_at
from bench.closed_loop.runs import Trace, first_command
from bench.closed_loop.scenarios import EVENT_S, Scenario
from edge.profiles.loader import DATA, load_body
from edge.profiles.reading import profile_from_builtins
from edge.runtime.clock import Host, HostClock
from edge.runtime.fleet import poll_phase_s
from edge.runtime.node import run_node
from edge.simulators.device import Fault
from edge.simulators.modbus import SimulatedDevice
from edge.wire import codec
from edge.wire.messages import Heartbeat, LoopStatus, Reported
from tests.runtime.socket_loop import SocketLoop
from tests.simulation.link import Central, SimulatedBroker
from tests.simulation.world import ADDRESS, PACE, TOPICS

METER, LOOP = "METER_01", "GRID"
BOOTED_FOR_S = 1000.0
# The node is there so long before the scenario begins: everything stands still, and it has found that.
LEAD_S = 5.0
# A request takes a turn or two of the loop, and is to meet the step of the plant that was drawn.
EARLY_S = 0.005
METER_POLL_S = 1.0
# The event takes place on a quarter hour: a setpoint that changes is a schedule's.
QUARTER = datetime(2026, 3, 2, 10, 15, tzinfo=UTC)
ALL_BODIES = {
    name: load_body(DATA / folder / f"{name}.yaml")
    for folder, name in (("inverter", "generic_modbus"), ("meter", "generic_modbus_meter"))
}
# A register of whole percents, as the benchmark's.
INVERTER_PARAMETERS: dict[str, float | str] = {"limit_scale": 1, "readback_scale": 1, "tolerance": 0.5}
METER_PARAMETERS: dict[str, float | str] = {"power_address": 100, "sign": 1}


class ToldDevice(SimulatedDevice):
    """A Modbus device whose power is what somebody else tells it, at the moment it is asked."""

    def __init__(
        self, body: str, parameters: dict[str, float | str], *, tell: Callable[[], float], **how: Any
    ) -> None:
        self._tell = tell
        super().__init__(profile=profile_from_builtins(ALL_BODIES[body], parameters), unit=1, **how)

    def measure(self) -> None:
        self.shown["power"] = self._tell()
        super().measure()


@dataclass
class SocketSite:
    """One run. `readings`: when the meter was asked, and when its answer leaves; seconds of the scenario."""

    scenario: Scenario
    period_s: float
    seed: int
    directory: Path
    loop: SocketLoop = field(init=False)
    origin_s: float = field(init=False)
    draws: Draws = field(init=False)
    plant: Plant = field(init=False)
    readings: list[tuple[float, float]] = field(default_factory=list)
    stands: list[tuple[float, LoopStatus]] = field(default_factory=list)
    reported: Reported | None = None

    def __post_init__(self) -> None:
        scenario = self.scenario
        self.draws = draw(scenario.metering, seed=self.seed, period_s=self.period_s, end_s=scenario.end_s)
        self._last_step = step_at(scenario.end_s)
        self._command = first_command(scenario)
        self.plant = Plant(
            scenario.inverters,
            commands=[self._command] * len(scenario.inverters),
            sun=scenario.sun.at(0.0),
            steps=self._last_step,
        )
        self._commands = [(0.0, (self._command,) * len(scenario.inverters))]
        self._travel_pct = 0.0
        self._writes = 0
        self.loop = SocketLoop(start_s=BOOTED_FOR_S)
        self.origin_s = self._origin_s()
        self.inverters = {
            f"INVERTER_{number:02}": self._inverter(number - 1)
            for number in range(1, len(scenario.inverters) + 1)
        }
        self.meter = ToldDevice(
            "generic_modbus_meter",
            METER_PARAMETERS,
            tell=self._tell_export,
            nameplate_kw=scenario.nominal_kw,
            clock=self.loop.time,
        )
        self.broker = SimulatedBroker(
            topics=TOPICS,
            rng=random.Random(self.seed),
            now=self.loop.time,
            heard=self._heard,
            sent=lambda *_: None,
            read=lambda *_: None,
        )
        self.central = Central(topics=TOPICS, broker=self.broker, now=self.loop.time)

    def _inverter(self, index: int) -> ToldDevice:
        def tell() -> float:
            self._advance()
            return self.plant.units[index].power_kw

        device = ToldDevice(
            "generic_modbus",
            INVERTER_PARAMETERS,
            tell=tell,
            nameplate_kw=self.scenario.inverters[index].nominal_kw,
            clock=self.loop.time,
        )
        device.set_by_hand(float(self._command))
        device.on_write = lambda: self._obey(index, round(device.limit_in_force))
        return device

    # --- time ---------------------------------------------------------------------------------------

    def _origin_s(self) -> float:
        """When the scenario begins: the node's polls of the meter shall meet the drawn readings."""
        earliest_s = BOOTED_FOR_S + LEAD_S
        polled_s = poll_phase_s(METER, METER_POLL_S)
        drawn_s = self.draws.readings[0].taken * STEP_S - EARLY_S
        return earliest_s + (polled_s - drawn_s - earliest_s) % METER_POLL_S

    @property
    def now_s(self) -> float:
        """Seconds of the scenario; negative while the node starts."""
        return self.loop.time() - self.origin_s

    def _wall_s(self) -> float:
        return QUARTER.timestamp() + self.now_s - EVENT_S

    # --- the plant ----------------------------------------------------------------------------------

    def _advance(self) -> int:
        step = min(max(0, step_at(self.now_s)), self._last_step)
        self.plant.advance(step)
        return step

    def _obey(self, index: int, command: int) -> None:
        """A command is in the register now."""
        self._advance()
        before = self._commands[-1][1]
        change = abs(command - before[index])
        if not change:
            return
        now_s, unit = self.now_s, self.plant.units[index]
        unit.take(command, at_s=now_s)
        self._commands.append((now_s, (*before[:index], command, *before[index + 1 :])))
        if now_s >= EVENT_S:
            self._writes += 1
            self._travel_pct += change * unit.inverter.nominal_kw / self.scenario.nominal_kw

    def _tell_export(self) -> float:
        """The export now; how long the answer is under way is what was drawn for this reading."""
        step = self._advance()
        now_s = self.now_s
        drawn = min(self.draws.readings, key=lambda reading: abs(reading.taken * STEP_S - now_s))
        self.meter.delay_s = drawn.arrives_s - drawn.taken * STEP_S
        self.readings.append((now_s, now_s + self.meter.delay_s))
        return self.plant.power_kw - self.scenario.load_kw.at(step * STEP_S)

    # --- the node -----------------------------------------------------------------------------------

    def _heard(self, topic: str, payload: bytes) -> None:
        self.central.hear(topic, payload)
        leaf = TOPICS.leaf(topic)
        if leaf == "hb":
            beat = codec.decode(Heartbeat, payload)
            self.stands += [(self.now_s, status) for status in beat.loops]
        elif leaf == "reported":
            self.reported = codec.decode(Reported, payload)

    def _configuration(self) -> dict[str, Any]:
        scenario = self.scenario
        devices: list[dict[str, Any]] = [
            {
                "id": tag,
                "tag": tag,
                "category": "inverter",
                "profile": "generic_modbus",
                "parameters": INVERTER_PARAMETERS,
                "host": device.host,
                "port": device.port,
                "unit": 1,
                "nameplate_kw": device.machine.nameplate_kw,
            }
            for tag, device in self.inverters.items()
        ]
        devices.append(
            {
                "id": METER,
                "tag": METER,
                "category": "meter",
                "profile": "generic_modbus_meter",
                "parameters": METER_PARAMETERS,
                "host": self.meter.host,
                "port": self.meter.port,
                "unit": 1,
                "measured_only": True,
                "poll_s": METER_POLL_S,
            }
        )
        loop: dict[str, Any] = {
            "id": "loop-1",
            "tag": LOOP,
            "meter": METER,
            "members": list(self.inverters),
            "time_step_s": self.period_s,
            "setpoint_kw": scenario.limit_kw.at(0.0),
            "fallback_pct": Task(scenario, self.period_s, self._command).fallback_pct,
        }
        site = {
            "id": "site-1",
            "tag": "site_a",
            "curtailment_time_limit_s": 60.0,
            "cyclic_write_timeout_s": 300.0,
        }
        return {"site": site, "devices": devices, "profiles": ALL_BODIES, "loops": [loop]}

    def _put_schedule(self) -> None:
        """A setpoint that changes, as slots in percent of the nominal power."""
        steps = self.scenario.limit_kw.steps
        if len(steps) == 1:
            return
        slots: dict[str, float | None] = {}
        for at_s, kw in steps:
            begins = QUARTER + timedelta(seconds=at_s - EVENT_S) if at_s else QUARTER - timedelta(minutes=15)
            assert begins.minute % 15 == begins.second == 0, "a setpoint changes at the event"
            slots[f"{begins:%H:%M}"] = 100.0 * kw / self.scenario.nominal_kw
        body = {"date": QUARTER.date().isoformat(), "category": "inverter", "slots": slots}
        self.central.put(f"schedule/{body['date']}/inverter", body)

    async def _live(self) -> None:
        devices = [*self.inverters.values(), self.meter]
        for device in devices:
            await device.start()
        # Answers are under way for as long as each is told.
        await self.meter.set_fault(Fault.DELAY)
        self._put_schedule()
        self.central.put("config", self._configuration())
        clock = HostClock(
            trust_host=True,
            host=Host(wall_s=self._wall_s, boottime_s=self.loop.time, kernel_error_s=lambda: 0.001),
        )
        stop = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(
                    run_node(
                        broker=ADDRESS,
                        topics=TOPICS,
                        state=self.directory / "state",
                        clock=clock,
                        stop=stop,
                        open_session=self.broker.opener("node"),
                        pace=PACE,
                    )
                )
                ends_s = self.scenario.metering.ends_s
                if ends_s is not None:
                    # Between two steps of the plant: what was drawn for this moment is lost already.
                    await asyncio.sleep(ends_s - STEP_S / 2 - self.now_s)
                    await self.meter.set_fault(Fault.SILENT)
                await asyncio.sleep(self.scenario.end_s - self.now_s)
                stop.set()
        finally:
            for device in devices:
                await device.stop()

    def run(self) -> Trace:
        """Let the node meet the scenario, to its end."""
        self.loop.run_until_complete(self._live())
        self._advance()
        return Trace(self.scenario, self.plant.production_kw, self._commands, self._travel_pct, self._writes)

    def close(self) -> None:
        self.loop.finish(asyncio.all_tasks(self.loop))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


@contextmanager
def socket_site(scenario: Scenario, *, period_s: float, seed: int, directory: Path) -> Iterator[SocketSite]:
    """A site until the block ends."""
    site = SocketSite(scenario, period_s, seed, directory)
    try:
        yield site
    finally:
        site.close()
