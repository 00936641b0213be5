"""One device of any profile under a node's control: simulated over its own protocol, under a turned clock."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edge.core.commands import WriteClass
from edge.core.wear import Count
from edge.drivers.demo import DemoDriver
from edge.drivers.mqtt import MqttDriver, MqttSession
from edge.drivers.registry import DRIVERS, Constructors
from edge.plant import Site
from edge.profiles.loader import load_bodies
from edge.profiles.model import VALUE, Limit, Profile
from edge.profiles.points import Protocol
from edge.profiles.reading import profile_from_builtins
from edge.runtime import config
from edge.runtime.bus import Bus
from edge.runtime.cycle import Accepted
from edge.simulators.device import Fault, Simulated
from edge.simulators.http_json import SimulatedHttp
from edge.simulators.modbus import SimulatedDevice
from edge.simulators.mqtt import SimulatedMqttDevice
from edge.simulators.xml_da import SimulatedXmlDa
from edge.wire.messages import DeviceResult
from tests.drivers.benches import BENCHES, NAMEPLATE_KW, PROFILES, Case, setpoints, ways_of
from tests.runtime.plant import Plant, TurnedClock, running_plant

TAG, OTHER = "DEVICE_01", "DEVICE_02"
BODIES = load_bodies()
# As a device of the network may think: long enough for a busy machine, because a write that is late counts
# twice.
PATIENT_MS = 5000
# For those which are to give no answer at all.
SHORT_MS = 150
# How often, in the clock's time, one that speaks unasked is heard.
SPEAKS_EVERY_S = 5.0
# What the plant's simulation leaves between two moments.
AN_INSTANT_S = 0.01

CASES = [Case(profile, ways_of(profile)[0]) for profile in PROFILES.values() if ways_of(profile)]
CONTROLLABLE = [case for case in CASES if case.profile.controllable]
# What lives in the node itself cannot fail it, and nobody else sets it.
ON_A_WIRE = [case for case in CONTROLLABLE if not case.profile.protocol.is_inside]
READABLE = [case for case in ON_A_WIRE if case.profile.limit and case.profile.limit.readback]
_numbers = itertools.count(1)


def each(of: list[Case], *faults: Fault) -> pytest.MarkDecorator:
    """Parametrise by device type; with faults, by those of them that it can have."""
    if not faults:
        return pytest.mark.parametrize(
            "case", [pytest.param(one, id=one.profile.name, marks=_marks(one)) for one in of]
        )
    return pytest.mark.parametrize(
        ("case", "fault"),
        [
            pytest.param(one, fault, id=f"{one.profile.name}-{fault.value}", marks=_marks(one, fault))
            for one in of
            for fault in faults
            if fault in BENCHES[one.way].faults
        ],
    )


def _marks(case: Case, fault: Fault | None = None) -> list[pytest.MarkDecorator]:
    marks = [pytest.mark.services] if BENCHES[case.way].services else []
    # Each timeout is one of real time.
    return [*marks, pytest.mark.long] if fault is Fault.SILENT else marks


class SpokenClock(TurnedClock):
    """A clock in whose time those who speak unasked speak often enough, however fast it is turned."""

    def __init__(self) -> None:
        super().__init__()
        self.speak: list[Callable[[], Awaitable[None]]] = []
        self._spoke_at = -SPEAKS_EVERY_S

    async def idle(self, tasks: int | Callable[[], int]) -> None:
        await super().idle(tasks)
        if self.speak and self.boottime_s() - self._spoke_at >= SPEAKS_EVERY_S:
            self._spoke_at = self.boottime_s()
            for speak in self.speak:
                await speak()
            await super().idle(tasks)


@dataclass
class Stage:
    """A node with one device, or more of the same type."""

    plant: Plant
    clock: SpokenClock
    profile: Profile
    body: dict[str, Any]
    broker_url: str
    stack: AsyncExitStack
    simulated: dict[str, Simulated] = field(default_factory=dict)
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    sessions: list[MqttSession] = field(default_factory=list)

    # --- setting it up

    async def add(self, tag: str = TAG, **changes: Any) -> None:
        """Let there be a device; `apply` makes the node control it."""
        parameters: dict[str, Any] = {
            name: one.example if one.default is None else one.default
            for name, one in self.profile.parameters.items()
            if one.default is not None or one.example is not None
        }
        if "device" in parameters:
            # The broker has seen others.
            parameters["device"] = f"device-{next(_numbers)}"
        address: dict[str, Any] = {}
        if not self.profile.protocol.is_inside:
            profile = profile_from_builtins(self.body, parameters)
            self.simulated[tag], address = await self._simulate(profile)
        self.configure(tag, **address, parameters=parameters, **changes)

    def configure(self, tag: str, **changes: Any) -> None:
        self.devices[tag] = {
            "id": tag,
            "tag": tag,
            "category": "inverter",
            "profile": self.profile.name,
            "nameplate_kw": NAMEPLATE_KW,
            "min_value": self.profile.min_value,
            "max_value": self.profile.max_value,
            "default_value": self.profile.default_value,
            **changes,
        }

    def add_proxy(self, kind: Profile) -> None:
        """Let there be a proxy of this type, called as its type is."""
        self.profiles[kind.name] = BODIES[kind.name]
        self.devices[kind.name] = {
            "id": kind.name,
            "tag": kind.name,
            "category": "park",
            "profile": kind.name,
        }

    def apply(self) -> config.Plan:
        """Make the node control them all; its plan says whom it refuses."""
        body = {
            "site": self.plant.site,
            "devices": list(self.devices.values()),
            "profiles": {self.profile.name: self.body, **self.profiles},
        }
        plan = config.plan(body)
        self.plant.fleet.apply(plan)
        self.plant.cycle.set_schedules({})
        return plan

    async def _simulate(self, profile: Profile) -> tuple[Simulated, dict[str, Any]]:
        """A device on a port or at the broker, and where the node finds it."""
        common: dict[str, Any] = {
            "profile": profile,
            "nameplate_kw": NAMEPLATE_KW,
            "site": Site(started_at=self.clock.boottime_s()),
            "clock": self.clock.boottime_s,
        }
        match profile.protocol:
            case Protocol.MODBUS_TCP:
                modbus = SimulatedDevice(unit=profile.default_unit, **common)
                await self._started(modbus)
                return modbus, {"host": "127.0.0.1", "port": modbus.port, "unit": profile.default_unit}
            case Protocol.XML_DA | Protocol.HTTP:
                build = SimulatedHttp if profile.protocol is Protocol.HTTP else SimulatedXmlDa
                server = build(**common)
                await self._started(server)
                return server, {"url": server.url}
            case Protocol.MQTT:
                client = SimulatedMqttDevice(url=self.broker_url, period_s=0.05, retry_s=0.02, **common)
                await self._started(client)
                await client.is_up()
                self.clock.speak.append(lambda: self._hear(client))
                return client, {"url": self.broker_url}
        raise AssertionError(f"nothing here simulates {profile.protocol}")

    async def _started(self, device: Simulated) -> None:
        await device.start()
        self.stack.push_async_callback(device.stop)

    async def _hear(self, device: SimulatedMqttDevice) -> None:
        """Have a device speak, and what it says heard."""
        session = self.sessions[-1] if self.sessions else None
        if session is None or not session.connected or not device.connected or device.hears_nothing():
            return
        before = session.number
        topics = [session.topic(name) for name in device.messages()]
        await session.listen(topics)
        await device.tell()
        async with asyncio.timeout(5):
            while any(topic.newest is None or topic.newest.number <= before for topic in topics):  # noqa: ASYNC110
                await asyncio.sleep(0)

    # --- what is so

    @property
    def limit(self) -> Limit:
        assert self.profile.limit is not None
        return self.profile.limit

    @property
    def device(self) -> Simulated:
        return self.simulated[TAG]

    @property
    def usual(self) -> float:
        """A setpoint that limits."""
        return setpoints(self.profile)[1]

    @property
    def another(self) -> float:
        """A setpoint that is neither the usual one nor the default."""
        return setpoints(self.profile)[0]

    @property
    def default(self) -> float:
        default: float = self.devices[TAG]["default_value"]
        return default

    @property
    def in_force(self) -> float:
        """The setpoint that acts on the device."""
        if TAG in self.simulated:
            return self.device.limit_in_force
        bus = self.plant.cycle.units[TAG].bus
        assert isinstance(bus, Bus)
        driver = bus.driver(TAG)
        assert isinstance(driver, DemoDriver)
        return driver.machine.limit_pct

    def is_at(self, setpoint: float) -> bool:
        return abs(self.in_force - setpoint) <= self.limit.tolerance

    @property
    def target(self) -> str:
        """The point that the setpoint is written to."""
        writes = [step.writes.items() for step in self.limit.set]
        return next(name for items in writes for name, value in items if value == VALUE)

    @property
    def sent(self) -> int:
        """How often the setpoint has left for the device, as the node counts."""
        return self.plant.cycle.units[TAG].state.ledger.registers.get(self.target, Count()).ever

    @property
    def hold_left_s(self) -> float:
        hold = self.plant.cycle.units[TAG].state.hold
        assert hold is not None
        return hold.ends_boottime_s - self.clock.boottime_s()

    @property
    def wears(self) -> bool:
        return self.limit.write_class is not WriteClass.VOLATILE

    def alarms(self, code: str) -> list[str]:
        return [alarm.detail for alarm in self.plant.cycle.alarms.standing if alarm.code == code]

    # --- what happens

    async def begin(self, **changes: Any) -> None:
        """Control the device, which is then known and at its default."""
        await self.add(**changes)
        self.apply()
        await self.plant.run(60, lambda: TAG in self.plant.cycle.values)
        # Its own fallback is armed by then, where that is wanted.
        await self.plant.run(1)

    def hold(self, setpoint: float, *, hold_s: float = 60.0) -> asyncio.Future[DeviceResult]:
        return self.command({TAG: setpoint}, hold_s=hold_s).waiting[TAG]

    def command(self, setpoints: dict[str, float], *, hold_s: float = 60.0) -> Accepted:
        return self.plant.command(hold_s=hold_s, sequence=None, **setpoints)

    async def held(self, setpoint: float, *, hold_s: float = 60.0) -> DeviceResult:
        """Hold it there, and hear what became of it."""
        answer = self.hold(setpoint, hold_s=hold_s)
        await self.plant.run(60, answer.done)
        return answer.result()

    async def suffer(self, fault: Fault) -> None:
        await self.device.set_fault(fault)

    async def recover(self) -> None:
        """Be there again, and be heard where it speaks unasked."""
        await self.device.set_fault(Fault.NONE)
        if isinstance(self.device, SimulatedMqttDevice):
            await self.device.is_up()
            await self._hear(self.device)

    async def within_a_second(self, until: Callable[[], object], *, of_commands: int = 0) -> float:
        """Let this come true within the second that is promised, and the pauses that the device wants."""
        before = self.commands
        took_s = await self.plant.run(90, until)
        pauses_s = self.profile.min_gap_ms / 1000 * (self.commands - before + 1 + of_commands)
        allowed_s = 1 + pauses_s + self.profile.connect_delay_ms / 1000 + AN_INSTANT_S
        assert took_s <= allowed_s, f"{took_s:.3f} s, allowed are {allowed_s:.3f} s"
        return took_s

    @property
    def commands(self) -> int:
        return self.device.commands if TAG in self.simulated else 0


@asynccontextmanager
async def stage(
    case: Case, directory: Path, broker_url: str, *, patience_ms: int = PATIENT_MS
) -> AsyncIterator[Stage]:
    """A node for devices of this type. `patience_ms` takes the place of what the profile says of it."""
    clock = SpokenClock()
    body = {**BODIES[case.profile.name], "timeout_ms": patience_ms}
    async with AsyncExitStack() as stack, running_plant(directory, clock=clock) as plant:
        made = Stage(plant, clock, case.profile, body, broker_url, stack)

        def session(**arguments: Any) -> MqttSession:
            made.sessions.append(MqttSession(**arguments))
            return made.sessions[-1]

        plant.fleet.drivers = {
            **DRIVERS,
            Protocol.MQTT: Constructors(session=session, driver=MqttDriver),
        }
        yield made
