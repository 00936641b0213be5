"""Devices on the bench: one simulated device with a session and a driver to it, for every way of reaching one.

A protocol joins the contract suite with an entry in `BENCHES`: a function that builds the three. What the suite
asks of a device beyond `Simulated` is in `Bench`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from edge.drivers.base import Driver, Session
from edge.drivers.modbus import ModbusDriver, ModbusSession
from edge.drivers.modbus_rtu import RtuOverTcpSession, SerialSession
from edge.drivers.serial_line import SerialSettings
from edge.drivers.xml_da import XmlDaDriver, XmlDaSession
from edge.plant import Site
from edge.profiles.loader import load_all
from edge.profiles.model import VALUE, Profile
from edge.profiles.points import Protocol
from edge.simulators.device import Fault
from edge.simulators.modbus import SimulatedDevice
from edge.simulators.modbus_rtu import SimulatedLine
from edge.simulators.xml_da import SimulatedXmlDa
from tests.simulation.devices import bench_for

NAMEPLATE_KW = 60.0
# What the meter of a site without producers measures.
PEAK_LOAD_KW = 20.0
PROFILES = load_all()


@dataclass
class SharedClock:
    """Time that both the driver and the device live in; a driver that waits moves it.

    On a line, a unit's late answer comes in real time: a `patient` clock really waits, up to half a second.
    """

    now_s: float = 1000.0
    waits: list[float] = field(default_factory=list)
    patient: bool = False

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        if self.patient:
            await asyncio.sleep(min(seconds, 0.5))
        self.now_s += seconds

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

    def driven(self, build: Callable[..., Driver], session: Session) -> Driver:
        return build(session=session, profile=self.profile, unit=self.asked, nameplate_kw=NAMEPLATE_KW)


Builder = Callable[[AsyncExitStack, Order], Awaitable[Bench]]


class Way(NamedTuple):
    """A way of reaching devices: the protocol by which a profile allows it, and how its bench is built.

    `faults` are those that a device which is reached so can have.
    """

    protocol: Protocol
    build: Builder
    faults: frozenset[Fault]


ON_A_LINE = frozenset((Fault.SILENT, Fault.WRITE_EXCEPTION, Fault.IGNORE_WRITES, Fault.DELAY))
ON_TCP = ON_A_LINE | {Fault.REFUSE}
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
    session = ModbusSession(host=device.host, port=device.port, **order.timing())
    stack.push_async_callback(session.aclose)
    return Bench(order.clock, device, session, order.driven(ModbusDriver, session))


async def serial_line(stack: AsyncExitStack, order: Order) -> Bench:
    device, line = await _line(stack, order, tcp=False)
    session = SerialSession(line=SerialSettings(line.path, 115200), **order.timing())
    stack.push_async_callback(session.aclose)
    return Bench(order.clock, device, session, order.driven(ModbusDriver, session))


async def rtu_over_tcp(stack: AsyncExitStack, order: Order) -> Bench:
    device, line = await _line(stack, order, tcp=True)
    session = RtuOverTcpSession(host=line.host, port=line.port, **order.timing())
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


ON_THE_WEB = ON_TCP | {
    Fault.DROP,
    Fault.GARBAGE,
    Fault.WRONG_UNIT,
    Fault.HALF_FRAME,
    Fault.STALE_READBACK,
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


BENCHES: dict[str, Way] = {
    "tcp": Way(Protocol.MODBUS_TCP, modbus_tcp, ON_TCP),
    "serial": Way(Protocol.MODBUS_RTU, serial_line, ON_A_LINE),
    "rtu_over_tcp": Way(Protocol.MODBUS_RTU, rtu_over_tcp, ON_A_LINE),
    "xml_da": Way(Protocol.XML_DA, xml_da, ON_THE_WEB),
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


def cases() -> list[Case]:
    """Every profile by every way that it allows and that there is a bench for."""
    return [
        Case(profile, way)
        for profile in PROFILES.values()
        for way, (protocol, _, _) in BENCHES.items()
        if protocol in profile.protocols and (way != "memory" or profile.name in IN_MEMORY)
    ]


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
        return [*codes, codes[0]]
    span = high - low
    return [low, low + 0.37 * span, high, low + 0.64 * span]
