"""Devices on the bench: one simulated device with a session and a driver to it, for every way of reaching one.

A protocol joins the contract suite with an entry in `BENCHES`: a function that builds the three. What the suite
asks of a device beyond `Simulated` is in `Bench`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from edge.drivers.base import Driver, PollResult, Session
from edge.drivers.demo import DemoDriver, DemoSession
from edge.drivers.http_json import HttpDriver, HttpSession
from edge.drivers.modbus import ModbusDriver, ModbusSession
from edge.drivers.modbus_rtu import RtuOverTcpSession, SerialSession
from edge.drivers.mqtt import MqttDriver, MqttSession
from edge.drivers.serial_line import SerialSettings
from edge.drivers.xml_da import XmlDaDriver, XmlDaSession
from edge.plant import Machine, Site
from edge.profiles.loader import load_all
from edge.profiles.model import VALUE, LimitUnit, Profile
from edge.profiles.points import Protocol
from edge.simulators.device import Fault
from edge.simulators.http_json import SimulatedHttp
from edge.simulators.modbus import SimulatedDevice
from edge.simulators.modbus_rtu import SimulatedLine
from edge.simulators.mqtt import SimulatedMqttDevice
from edge.simulators.xml_da import SimulatedXmlDa
from tests.servers import DeviceBroker, device_broker
from tests.simulation.devices import bench_for

NAMEPLATE_KW = 60.0
# What the meter of a site without producers measures.
PEAK_LOAD_KW = 20.0
PROFILES = load_all()


@dataclass
class SharedClock:
    """Time that both the driver and the device live in; a driver that waits moves it.

    A late answer comes in real time: after `let_late_answers_come` a driver that waits really does so.
    """

    now_s: float = 1000.0
    waits: list[float] = field(default_factory=list)
    _real_until: float = 0.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        left = self._real_until - time.monotonic()
        if left > 0:
            await asyncio.sleep(min(seconds, left))
        self.now_s += seconds

    def let_late_answers_come(self, *, within_s: float) -> None:
        self._real_until = time.monotonic() + within_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class Bench:
    """One device on the bench.

    The device is a `Simulated`, or has what the suite asks of one. Its session is connected by `reconnect`.
    """

    clock: SharedClock
    device: Any
    session: Session
    driver: Driver

    async def reconnect(self) -> None:
        await self.session.connect()

    async def restart(self) -> None:
        """Let the device lose power and come back."""
        await self.device.restart()

    async def suffer(self, fault: Fault, *, delay_s: float = 0.0) -> None:
        """Let this be wrong with the device, or with `Fault.NONE` nothing."""
        await self.device.set_fault(fault, delay_s=delay_s)


class Order(NamedTuple):
    """What is to be put on a bench: `unit` is whom the driver asks, the device's own where it is None."""

    profile: Profile
    clock: SharedClock
    timeout_s: float
    unit: int | None = None

    @property
    def asked(self) -> int:
        return self.profile.default_unit if self.unit is None else self.unit

    @property
    def site(self) -> Site:
        return Site(peak_load_kw=PEAK_LOAD_KW, started_at=self.clock())

    def timing(self) -> dict[str, Any]:
        """What all sessions take beside their address."""
        return {
            "timeout_s": self.timeout_s,
            "min_gap_s": self.profile.min_gap_ms / 1000,
            "clock": self.clock,
            "sleep": self.clock.sleep,
        }

    def tcp_timing(self) -> dict[str, Any]:
        """What those take that connect to a Modbus device."""
        return {**self.timing(), "connect_delay_s": self.profile.connect_delay_ms / 1000}

    def driven(self, build: Callable[..., Driver], session: Session) -> Driver:
        return build(session=session, profile=self.profile, unit=self.asked, nameplate_kw=NAMEPLATE_KW)


Builder = Callable[[AsyncExitStack, Order], Awaitable[Bench]]


class Way(NamedTuple):
    """A way of reaching devices: the protocol by which a profile allows it, and how its bench is built.

    `faults` are those that a device which is reached so can have. `services`: it needs a program of others.
    """

    protocol: Protocol
    build: Builder
    faults: frozenset[Fault]
    services: bool = False


ON_A_LINE = frozenset(Fault) - {Fault.NONE, Fault.REFUSE}
ON_TCP = frozenset(Fault) - {Fault.NONE}
IN_MEMORY_FAULTS = frozenset((Fault.REFUSE, Fault.SILENT, Fault.WRITE_EXCEPTION, Fault.IGNORE_WRITES))


async def modbus_tcp(stack: AsyncExitStack, order: Order) -> Bench:
    device = SimulatedDevice(
        profile=order.profile,
        unit=order.profile.default_unit,
        nameplate_kw=NAMEPLATE_KW,
        site=order.site,
        clock=order.clock,
    )
    await device.start()
    stack.push_async_callback(device.stop)
    session = ModbusSession(host=device.host, port=device.port, **order.tcp_timing())
    stack.push_async_callback(session.aclose)
    return Bench(order.clock, device, session, order.driven(ModbusDriver, session))


async def serial_line(stack: AsyncExitStack, order: Order) -> Bench:
    device, line = await _line(stack, order, tcp=False)
    session = SerialSession(line=SerialSettings(line.path, 115200), **order.timing())
    stack.push_async_callback(session.aclose)
    return Bench(order.clock, device, session, order.driven(ModbusDriver, session))


async def rtu_over_tcp(stack: AsyncExitStack, order: Order) -> Bench:
    device, line = await _line(stack, order, tcp=True)
    session = RtuOverTcpSession(host=line.host, port=line.port, **order.tcp_timing())
    stack.push_async_callback(session.aclose)
    return Bench(order.clock, device, session, order.driven(ModbusDriver, session))


async def _line(stack: AsyncExitStack, order: Order, *, tcp: bool) -> tuple[SimulatedDevice, SimulatedLine]:
    line = SimulatedLine(clock=order.clock)
    device = SimulatedDevice(
        profile=order.profile,
        unit=order.profile.default_unit,
        nameplate_kw=NAMEPLATE_KW,
        site=order.site,
        clock=order.clock,
        on_line=True,
    )
    line.add(device)
    await line.start(tcp=tcp)
    stack.push_async_callback(line.stop)
    return device, line


ON_THE_WEB = (ON_TCP | {Fault.DROP, Fault.GARBAGE, Fault.HALF_FRAME, Fault.STALE_READBACK}) - {
    Fault.WRONG_UNIT
}


async def xml_da(stack: AsyncExitStack, order: Order) -> Bench:
    device = SimulatedXmlDa(
        profile=order.profile, nameplate_kw=NAMEPLATE_KW, site=order.site, clock=order.clock
    )
    await device.start()
    stack.push_async_callback(device.stop)
    session = XmlDaSession(url=device.url, **order.timing())
    stack.push_async_callback(session.aclose)
    return Bench(order.clock, device, session, order.driven(XmlDaDriver, session))


async def http(stack: AsyncExitStack, order: Order) -> Bench:
    device = SimulatedHttp(
        profile=order.profile, nameplate_kw=NAMEPLATE_KW, site=order.site, clock=order.clock
    )
    await device.start()
    stack.push_async_callback(device.stop)
    session = HttpSession(url=device.url, **order.timing())
    stack.push_async_callback(session.aclose)
    return Bench(order.clock, device, session, order.driven(HttpDriver, session))


class _MqttBench(Bench):
    """A device that speaks unasked, through a broker of its own.

    Who asks it waits until it was heard: what it says now may else come an instant later. With it, everything
    between both may be gone, which is the broker; and a silence lasts for as long as its profile is patient.
    """

    def __init__(
        self,
        broker: DeviceBroker,
        clock: SharedClock,
        device: SimulatedMqttDevice,
        session: MqttSession,
        driver: MqttDriver,
    ) -> None:
        attentive: Any = _Attentive(driver, device, session)
        super().__init__(clock, device, session, attentive)
        self._broker = broker

    async def restart(self) -> None:
        await self.device.restart()
        await self.device.is_up()

    async def suffer(self, fault: Fault, *, delay_s: float = 0.0) -> None:
        if fault is Fault.REFUSE:
            self._broker.stop()
            async with asyncio.timeout(5):
                while self.session.connected or self.device.connected:  # noqa: ASYNC110 - no event for it
                    await asyncio.sleep(0)
            return
        if fault is Fault.NONE:
            self._broker.start()
        await self.device.set_fault(fault, delay_s=delay_s)
        if fault is Fault.SILENT:
            self.clock.advance(self.device.profile.stale_after_s + 1)
        await self.device.is_up()


class _Attentive:
    """A driver whose device is asked to speak before it is looked at."""

    def __init__(self, driver: MqttDriver, device: SimulatedMqttDevice, session: MqttSession) -> None:
        self._driver, self._device, self._session = driver, device, session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    async def identify(self) -> None:
        await self._listen()
        await self._driver.identify()

    async def poll(self) -> PollResult:
        await self._listen()
        return await self._driver.poll()

    async def write(self, value: float) -> None:
        await self._listen()
        await self._driver.write(value)

    async def keep_alive(self, value: float) -> None:
        await self._listen()
        await self._driver.keep_alive(value)

    async def _listen(self) -> None:
        before = self._session.number
        if not self._session.connected or self._device.hears_nothing():
            return
        topics = [self._session.topic(name) for name in self._device.messages()]
        await self._session.listen(topics)
        await self._device.tell()
        async with asyncio.timeout(5):
            while any(topic.newest is None or topic.newest.number <= before for topic in topics):  # noqa: ASYNC110
                await asyncio.sleep(0)


async def mqtt(stack: AsyncExitStack, order: Order) -> Bench:
    broker = stack.enter_context(device_broker())
    device = SimulatedMqttDevice(
        profile=order.profile,
        nameplate_kw=NAMEPLATE_KW,
        url=broker.url,
        site=order.site,
        clock=order.clock,
        period_s=0.1,
        retry_s=0.02,
    )
    await device.start()
    stack.push_async_callback(device.stop)
    await device.is_up()
    timing = order.timing()
    # It waits for all of it where a setpoint is never confirmed.
    timing["timeout_s"] = min(1.0, order.timeout_s)
    session = MqttSession(url=broker.url, username="", password="", **timing)
    stack.push_async_callback(session.aclose)
    driver = MqttDriver(session=session, profile=order.profile, unit=order.asked, nameplate_kw=NAMEPLATE_KW)
    return _MqttBench(broker, order.clock, device, session, driver)


async def inside(stack: AsyncExitStack, order: Order) -> Bench:
    """The plant of a node, without a socket."""
    session = DemoSession(**order.timing())
    stack.push_async_callback(session.aclose)
    driver = DemoDriver(session=session, profile=order.profile, unit=order.asked, nameplate_kw=NAMEPLATE_KW)
    return Bench(order.clock, _DemoDevice(session, driver.machine, order.profile), session, driver)


@dataclass
class _DemoDevice:
    """What the suite asks of a device, of a machine in the node."""

    session: DemoSession
    machine: Machine
    profile: Profile
    shown: dict[str, float | None] = field(default_factory=dict)
    gap_violations: list[float] = field(default_factory=list)
    # It has no registers that count.
    writes: None = None

    @property
    def commands(self) -> int:
        return self.session.commands

    @property
    def limit_in_force(self) -> float:
        return self.machine.limit_pct

    def put(self, name: str, value: object) -> None:
        raise ValueError(f"{name}: a machine shows what is so, not {value}")

    async def restart(self) -> None:
        """It starts with its process."""
        self.machine.limit_pct = self.profile.default_value

    async def set_fault(self, fault: Fault, *, delay_s: float = 0.0) -> None:
        assert (fault, delay_s) == (Fault.NONE, 0.0)


async def memory(stack: AsyncExitStack, order: Order) -> Bench:
    """No socket at all: the simulated site keeps the same contract, or its tests would prove nothing."""
    made = bench_for(order.profile, clock=order.clock, timeout_s=order.timeout_s, nameplate_kw=NAMEPLATE_KW)
    return _MemoryBench(order.clock, made.device, made.session, made.driver)


class _MemoryBench(Bench):
    async def restart(self) -> None:
        self.device.restart()

    async def suffer(self, fault: Fault, *, delay_s: float = 0.0) -> None:
        assert delay_s == 0 or fault is not Fault.DELAY
        await self.device.set_fault(fault)


# What becomes of answers alone, when the device is heard otherwise: tests/drivers/test_mqtt.py.
BY_MESSAGE = frozenset(
    (
        Fault.REFUSE,
        Fault.SILENT,
        Fault.WRITE_EXCEPTION,
        Fault.IGNORE_WRITES,
        Fault.GARBAGE,
        Fault.STALE_READBACK,
    )
)
BENCHES: dict[str, Way] = {
    "tcp": Way(Protocol.MODBUS_TCP, modbus_tcp, ON_TCP),
    "serial": Way(Protocol.MODBUS_RTU, serial_line, ON_A_LINE),
    "rtu_over_tcp": Way(Protocol.MODBUS_RTU, rtu_over_tcp, ON_A_LINE),
    # An answer over HTTP names nobody; an item has a name.
    "xml_da": Way(Protocol.XML_DA, xml_da, ON_THE_WEB | {Fault.WRONG_UNIT}),
    "http": Way(Protocol.HTTP, http, ON_THE_WEB),
    "mqtt": Way(Protocol.MQTT, mqtt, BY_MESSAGE, services=True),
    "inside": Way(Protocol.DEMO, inside, frozenset()),
    "memory": Way(Protocol.MODBUS_TCP, memory, IN_MEMORY_FAULTS),
}
# The simulated site is built of such devices.
IN_MEMORY = frozenset(("generic_modbus", "generic_modbus_battery"))


class Case(NamedTuple):
    """A profile, and a way of reaching its devices."""

    profile: Profile
    way: str

    def __str__(self) -> str:
        return f"{self.profile.name}-{self.way}"


def ways_of(profile: Profile) -> list[str]:
    """All ways that a profile allows and that there is a bench for."""
    return [
        way
        for way, (protocol, *_) in BENCHES.items()
        if protocol in profile.protocols and (way != "memory" or profile.name in IN_MEMORY)
    ]


def cases() -> list[Case]:
    """Every profile by every way."""
    return [Case(profile, way) for profile in PROFILES.values() for way in ways_of(profile)]


@asynccontextmanager
async def on_bench(
    case: Case, *, connect: bool = True, timeout_s: float = 2.0, unit: int | None = None
) -> AsyncIterator[Bench]:
    """Build a bench; its session is connected unless that is not wanted."""
    async with AsyncExitStack() as stack:
        order = Order(case.profile, SharedClock(), timeout_s, unit)
        bench = await BENCHES[case.way].build(stack, order)
        if connect:
            await bench.reconnect()
        yield bench


def setpoints(profile: Profile) -> list[float]:
    """Setpoints that a device of this profile takes, the greatest among them and not at the end."""
    low, high = profile.min_value, profile.max_value
    assert profile.limit is not None
    targets = [name for step in profile.limit.set for name, value in step.writes.items() if value == VALUE]
    codes = sorted(float(value) for value in profile.points[targets[0]].codes)
    if codes:
        # What is in force anyway limits nothing: last.
        codes.sort(key=lambda value: value == profile.default_value)
        return [*codes, codes[0]]
    span = high - low
    return [low, low + 0.37 * span, high, low + 0.64 * span]


def falls_back_to(profile: Profile, device: Any, *, armed_with: float) -> float:
    """What a device has in force once its own fallback has acted; its `preset` must be one that it shows."""
    assert profile.limit is not None
    own = profile.limit.fallback
    assert own is not None
    if own.takes != "preset":
        return {"value": armed_with, "release": profile.max_value, "stop": profile.min_value}[own.takes]
    assert own.preset is not None
    preset: float = device.get(own.preset)
    return preset if profile.limit.unit is LimitUnit.SAME else float(device.limit_in_percent(preset))
