"""A simulated serial line, as any RTU master sees it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from msgspec.structs import replace
from pymodbus import FramerType
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.framer import FramerRTU

from edge.profiles.loader import load_all
from edge.profiles.points import Protocol
from edge.simulators.device import Fault
from edge.simulators.modbus import SimulatedDevice
from edge.simulators.modbus_rtu import SimulatedLine

PROFILE = replace(load_all()["generic_modbus"], protocol=Protocol.MODBUS_RTU)
CHARACTER_S = 11 / 9600

Build = Callable[..., Awaitable[SimulatedLine]]


class Master:
    """Whoever has the port open: sends bytes, and tells when which came back."""

    def __init__(self, path: str) -> None:
        self.received = b""
        self.came: list[float] = []
        self._port = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._port, self._read)

    def _read(self) -> None:
        self.received += os.read(self._port, 4096)
        self.came.append(time.monotonic())
        self._news.set()

    def send(self, unit: int, pdu: bytes) -> None:
        frame = bytes([unit]) + pdu
        os.write(self._port, frame + FramerRTU.compute_CRC(frame).to_bytes(2, "big"))

    async def until(self, length: int) -> bytes:
        async with asyncio.timeout(5):
            while len(self.received) < length:
                self._news.clear()
                await self._news.wait()
        return self.received

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._port)
        os.close(self._port)


@pytest.fixture
async def line() -> AsyncIterator[Build]:
    async with AsyncExitStack() as stack:

        async def build(*, baud_rate: int | None = None, tcp: bool = False, gap_ms: int = 0) -> SimulatedLine:
            built = SimulatedLine(baud_rate=baud_rate)
            for unit in (1, 2):
                kind = replace(PROFILE, min_gap_ms=gap_ms)
                built.add(SimulatedDevice(profile=kind, unit=unit, nameplate_kw=60, on_line=True))
            await built.start(tcp=tcp)
            stack.push_async_callback(built.stop)
            return built

        yield build


@pytest.fixture
async def master() -> AsyncIterator[Callable[[SimulatedLine], Master]]:
    with_ports: list[Master] = []

    def connect(line: SimulatedLine) -> Master:
        with_ports.append(Master(line.path))
        return with_ports[-1]

    yield connect
    for one in with_ports:
        one.close()


READ_LIMIT = bytes([3, 0, 32, 0, 1])


async def test_each_unit_answers_for_itself_and_nobody_for_the_absent(line, master):
    line = await line()
    master = master(line)
    line.devices[2].registers.set("limit_target", 40)

    master.send(9, READ_LIMIT)
    master.send(2, READ_LIMIT)

    assert (await master.until(7))[:5] == bytes([2, 3, 2, 4000 >> 8, 4000 & 0xFF])
    assert line.requests == 2


async def test_frames_take_the_time_they_take_on_a_wire(line, master):
    line = await line(baud_rate=9600)
    master = master(line)
    began = time.monotonic()

    master.send(1, READ_LIMIT)
    await master.until(7)

    # 8 characters there, a silence, 7 characters back.
    assert master.came[-1] - began >= (8 + 3.5 + 7) * CHARACTER_S
    assert line.silence_violations == []


async def test_request_into_another_frame_is_noted_as_a_collision(line, master):
    line = await line(baud_rate=9600)
    master = master(line)

    master.send(1, READ_LIMIT)
    master.send(2, READ_LIMIT)
    await master.until(7)

    assert line.collisions == 1


async def test_silent_and_missing_devices_answer_nothing_and_a_late_one_late(line, master):
    line = await line()
    master = master(line)
    await line.devices[1].set_fault(Fault.SILENT)
    await line.devices[2].set_fault(Fault.DELAY, delay_s=0.05)
    began = time.monotonic()

    master.send(1, READ_LIMIT)
    master.send(2, READ_LIMIT)

    assert (await master.until(7))[0] == 2
    assert len(master.received) == 7
    assert master.came[-1] - began >= 0.05


async def test_devices_pause_is_its_own(line, master):
    line = await line(gap_ms=10_000)
    master = master(line)

    master.send(1, READ_LIMIT)
    await master.until(7)
    master.send(1, READ_LIMIT)
    master.send(2, READ_LIMIT)
    await master.until(14)

    assert master.received[7] == 2
    assert len(line.devices[1].gap_violations) == 1
    assert line.devices[2].gap_violations == []


async def test_observers_look_at_a_device_of_a_line_over_tcp(line):
    line = await line()
    observer = AsyncModbusTcpClient(
        "127.0.0.1", port=line.devices[2].observe_port, timeout=2, retries=0, reconnect_delay=0
    )
    assert await observer.connect()

    assert (await observer.read_holding_registers(32, count=1, device_id=2)).registers == [10_000]
    observer.close()


async def test_device_server_carries_the_same_frames(line):
    line = await line(tcp=True)
    client = AsyncModbusTcpClient(
        line.host, port=line.port, framer=FramerType.RTU, timeout=2, retries=0, reconnect_delay=0
    )
    assert await client.connect()

    await client.write_register(32, 3000, device_id=1)
    assert (await client.read_holding_registers(32, count=1, device_id=1)).registers == [3000]
    assert line.devices[1].limit_in_force == 30
    assert line.devices[2].limit_in_force == 100
    client.close()
