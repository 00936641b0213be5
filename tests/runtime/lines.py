"""Lines in real time: a bus for each endpoint, its devices on real sockets and ports, and what each write took."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

import msgspec

from edge.drivers.base import PollResult
from edge.drivers.modbus import ModbusDriver, ModbusSession
from edge.drivers.modbus_rtu import SerialSession
from edge.drivers.serial_line import SerialSettings
from edge.profiles.loader import load_all
from edge.profiles.model import Parity
from edge.profiles.points import Protocol
from edge.runtime.bus import Bus, WriteOutcome
from edge.runtime.clock import HostClock
from edge.simulators.modbus import SimulatedDevice
from edge.simulators.modbus_rtu import SimulatedLine

NAMEPLATE_KW = 60.0
BAUD_RATE = 9600
# What inverters take before they answer.
TURNAROUND_S = 0.01


TCP_PROFILE = load_all()["generic_modbus"]
# The same device on a serial line, which thinks for 400 ms at most.
RTU_PROFILE = msgspec.structs.replace(TCP_PROFILE, protocol=Protocol.MODBUS_RTU, timeout_ms=400)


@dataclass
class Lines:
    """Listens to all buses, and times every write from its request to the register.

    `now`: by which clock, in seconds.
    """

    now: Callable[[], float] = time.monotonic
    clock: HostClock = field(default_factory=lambda: HostClock(trust_host=True))
    buses: dict[str, Bus] = field(default_factory=dict)
    simulated: dict[str, SimulatedDevice] = field(default_factory=dict)
    lost_tags: list[str] = field(default_factory=list)
    contacts: list[str] = field(default_factory=list)
    outcomes: dict[int, WriteOutcome] = field(default_factory=dict)
    polls: dict[str, int] = field(default_factory=dict)
    took_s: dict[str, list[float]] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _asked: dict[str, float] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    # --- the listener

    def contact(self, tag: str, *, standing: float | None) -> None:  # noqa: ARG002 - the listener's signature
        self.contacts.append(tag)
        self._news.set()

    def lost(self, tag: str, *, reason: str) -> None:  # noqa: ARG002 - the same
        self.lost_tags.append(tag)
        self._news.set()

    def wrote(self, tag: str, outcome: WriteOutcome) -> None:  # noqa: ARG002 - the same
        self.outcomes[outcome.ticket] = outcome
        self._news.set()

    def polled(self, tag: str, result: PollResult) -> None:  # noqa: ARG002 - the same
        self.polls[tag] = self.polls.get(tag, 0) + 1
        self._news.set()

    def kept_alive(self, tag: str, value: float, *, failed: str) -> None:
        """No device here has a fallback of its own."""

    def spent(self, tag: str, writes: dict[str, int]) -> None:
        """Nobody counts here."""

    # --- for tests and the benchmark

    def write(self, tag: str, value: float) -> int:
        self._asked[tag] = self.now()
        return self.buses[tag].write(tag, value, verify=False)

    def watch(self, tag: str, device: SimulatedDevice) -> None:
        def written() -> None:
            asked = self._asked.pop(tag, None)
            if asked is not None:
                self.took_s.setdefault(tag, []).append(self.now() - asked)
            self._news.set()

        self.simulated[tag] = device
        device.on_write = written

    async def until(self, condition: Callable[[], object], *, within_s: float = 20.0) -> float:
        """Wait until something that was told makes this true; the seconds it took."""
        began = self.now()
        async with asyncio.timeout(within_s):
            while not condition():
                self._news.clear()
                await self._news.wait()
        return self.now() - began

    async def write_in_turn(
        self, tags: list[str], *, every_s: float, for_s: float, at_least: int = 0
    ) -> list[float]:
        """Write to one after the other for a while, and so often; what each took until the register had it."""
        before = {tag: len(self.took_s.get(tag, [])) for tag in tags}
        ends = time.monotonic() + for_s
        number = 0
        while time.monotonic() < ends or number < at_least:
            self.write(tags[number % len(tags)], 20.0 + number % 60)
            number += 1
            await self.clock.sleep(every_s)
        await self.until(lambda: not any(tag in self._asked for tag in tags))
        return [took for tag in tags for took in self.took_s.get(tag, [])[before[tag] :]]

    def run(self, bus: Bus) -> None:
        self.tasks.append(asyncio.create_task(bus.run()))

    async def command_each_second(self, tag: str) -> None:
        """Somebody who does not give up."""
        for number in range(10_000):
            self.buses[tag].write(tag, 10.0 + number % 50, verify=False)
            await self.clock.sleep(1.0)


@asynccontextmanager
async def running(
    *, now: Callable[[], float] = time.monotonic
) -> AsyncIterator[tuple[Lines, AsyncExitStack]]:
    async with AsyncExitStack() as stack:
        lines = Lines(now=now)

        async def end() -> None:
            for task in lines.tasks:
                task.cancel()
            await asyncio.gather(*lines.tasks, return_exceptions=True)

        stack.push_async_callback(end)
        yield lines, stack


def add_tcp(lines: Lines, tag: str, *, port: int) -> None:
    """A bus of its own to this port, not running yet."""
    profile = TCP_PROFILE
    bus = Bus(name=tag, clock=lines.clock, listener=lines, min_gap_s=profile.min_gap_ms / 1000)
    session = ModbusSession(
        host="127.0.0.1",
        port=port,
        timeout_s=profile.timeout_ms / 1000,
        min_gap_s=profile.min_gap_ms / 1000,
        clock=lines.clock.boottime_s,
        sleep=bus.gap,
    )
    bus.attach(session)
    driver = ModbusDriver(session=session, profile=profile, unit=1, nameplate_kw=NAMEPLATE_KW)
    bus.add(tag, driver, poll_s=1.0, tolerance=0.5, settable=True)
    lines.buses[tag] = bus


async def tcp_fleet(lines: Lines, stack: AsyncExitStack, count: int) -> list[str]:
    """Devices on sockets of their own, each polled every second."""
    tags = [f"TCP_{number:02}" for number in range(count)]
    for tag in tags:
        device = SimulatedDevice(profile=TCP_PROFILE, unit=1, nameplate_kw=NAMEPLATE_KW)
        await device.start()
        stack.push_async_callback(device.stop)
        lines.watch(tag, device)
        add_tcp(lines, tag, port=device.port)
        lines.run(lines.buses[tag])
    await lines.until(lambda: all(lines.polls.get(tag) for tag in tags))
    return tags


async def serial_line(
    lines: Lines, stack: AsyncExitStack, count: int, *, poll_s: float = 1.0
) -> tuple[SimulatedLine, list[str]]:
    """Devices on one line at 9600 baud, each to be polled this often if the line could; it does not run yet."""
    simulated = SimulatedLine(baud_rate=BAUD_RATE, turnaround_s=TURNAROUND_S)
    tags = [f"RTU_{number:02}" for number in range(1, count + 1)]
    for unit, tag in enumerate(tags, start=1):
        device = SimulatedDevice(profile=RTU_PROFILE, unit=unit, nameplate_kw=NAMEPLATE_KW, on_line=True)
        simulated.add(device)
        lines.watch(tag, device)
    await simulated.start()
    stack.push_async_callback(simulated.stop)
    bus = Bus(name=simulated.path, clock=lines.clock, listener=lines, min_gap_s=0.0)
    session = SerialSession(
        line=SerialSettings(simulated.path, BAUD_RATE, Parity.EVEN),
        timeout_s=RTU_PROFILE.timeout_ms / 1000,
        min_gap_s=0.0,
        clock=lines.clock.boottime_s,
        sleep=bus.gap,
    )
    bus.attach(session)
    for unit, tag in enumerate(tags, start=1):
        driver = ModbusDriver(session=session, profile=RTU_PROFILE, unit=unit, nameplate_kw=NAMEPLATE_KW)
        bus.add(tag, driver, poll_s=poll_s, tolerance=0.5, settable=True)
        lines.buses[tag] = bus
    return simulated, tags


@asynccontextmanager
async def black_hole() -> AsyncIterator[int]:
    """A port that takes connections and bytes, and never says a word."""
    writers: set[asyncio.StreamWriter] = set()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        with suppress(ConnectionError):
            while await reader.read(1000):
                pass
        writers.discard(writer)
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in list(writers):
            writer.close()


def nobodys_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
