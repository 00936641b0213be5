"""One serial line, many units: what a command takes, and whose answer counts."""

from __future__ import annotations

import asyncio
import fcntl
import os
import termios
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace

from edge.drivers.errors import DeviceRefused, DeviceUnreachable
from edge.drivers.modbus import ModbusDriver
from edge.drivers.modbus_rtu import RtuOverTcpSession, RtuSession, SerialSession, checksum
from edge.drivers.serial_line import SerialSettings, control_flags, open_port
from edge.profiles.address import BAUD_RATES
from edge.profiles.loader import load_all
from edge.profiles.model import Parity, Profile
from edge.profiles.points import Protocol, Table
from edge.simulators.device import Fault
from edge.simulators.modbus import SimulatedDevice
from edge.simulators.modbus_rtu import SimulatedLine

PROFILES = load_all()
UNITS = (1, 2, 3)
ABSENT = 9


def on_line(name: str = "generic_modbus", **changes: Any) -> Profile:
    return replace(PROFILES[name], protocol=Protocol.MODBUS_RTU, **changes)


@dataclass
class Line:
    """A line with three units of one profile, and a session to it."""

    simulated: SimulatedLine
    session: RtuSession
    profile: Profile

    def device(self, unit: int) -> SimulatedDevice:
        return self.simulated.devices[unit]

    def driver(self, unit: int) -> ModbusDriver:
        return ModbusDriver(session=self.session, profile=self.profile, unit=unit, nameplate_kw=60)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def open_line(
    stack: AsyncExitStack,
    *,
    tcp: bool = False,
    baud_rate: int | None = None,
    timeout_s: float = 0.2,
    profile: Profile | None = None,
) -> Line:
    profile = profile or on_line()
    simulated = SimulatedLine(baud_rate=baud_rate)
    for unit in UNITS:
        simulated.add(SimulatedDevice(profile=profile, unit=unit, nameplate_kw=60, on_line=True))
    await simulated.start(tcp=tcp)
    stack.push_async_callback(simulated.stop)
    timing: dict[str, Any] = {
        "timeout_s": timeout_s,
        "min_gap_s": profile.min_gap_ms / 1000,
        "clock": time.monotonic,
        "sleep": asyncio.sleep,
    }
    session: RtuSession
    if tcp:
        session = RtuOverTcpSession(host=simulated.host, port=simulated.port, **timing)
    else:
        settings = SerialSettings(simulated.path, baud_rate or 115200, Parity.EVEN)
        session = SerialSession(line=settings, **timing)
    stack.push_async_callback(session.aclose)
    await session.connect()
    return Line(simulated, session, profile)


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("name", ["generic_modbus", "sungrow_sg110cx", "sma_stp60_im20"])
async def test_every_unit_of_a_line_takes_its_own_setpoint(stack, tcp, name):
    line = await open_line(stack, tcp=tcp, profile=on_line(name, min_gap_ms=0))
    for unit in UNITS:
        driver = line.driver(unit)
        await driver.identify()
        await driver.write(20.0 * unit)

    for unit in UNITS:
        assert await line.driver(unit).read_setpoint() == pytest.approx(20 * unit, abs=0.1)
        assert line.device(unit).limit_in_force == pytest.approx(20 * unit, abs=0.1)
    assert line.simulated.collisions == 0


@pytest.mark.parametrize("tcp", [False, True])
async def test_unit_that_does_not_answer_leaves_the_line_open(stack, tcp):
    line = await open_line(stack, tcp=tcp)
    generation = line.session.generation

    with pytest.raises(DeviceUnreachable, match=r"no answer from .* unit 9 within"):
        await line.driver(ABSENT).poll()

    assert line.session.connected
    assert line.session.generation == generation
    assert (await line.driver(1).poll()).readings["P_kW"] == pytest.approx(60)


async def test_unit_that_refuses_says_why(stack):
    line = await open_line(stack)
    await line.device(2).set_fault(Fault.WRITE_EXCEPTION)

    with pytest.raises(DeviceRefused, match=r"unit 2 refused to write register 32: .*\(Modbus exception 4\)"):
        await line.driver(2).write(30)
    with pytest.raises(DeviceRefused, match=r"refused to read holding register 9999: .*exception 2"):
        await line.session.read(2, Table.HOLDING, 9999, 1)
    await line.driver(1).write(30)


async def test_late_answer_of_a_unit_is_not_taken_for_anothers(stack):
    line = await open_line(stack, timeout_s=0.1)
    await line.driver(2).write(50)
    await line.device(1).set_fault(Fault.DELAY, delay_s=0.15)
    with pytest.raises(DeviceUnreachable):
        await line.driver(1).read_setpoint()  # it will say 100, while the next one is asked
    await line.device(2).set_fault(Fault.DELAY, delay_s=0.08)

    assert await line.driver(2).read_setpoint() == 50


async def test_late_answer_of_a_unit_is_not_taken_for_its_next_one(stack):
    line = await open_line(stack, timeout_s=0.1)
    await line.device(1).set_fault(Fault.DELAY, delay_s=0.15)
    with pytest.raises(DeviceUnreachable):
        await line.session.read(1, Table.HOLDING, 32, 1)
    await line.device(1).set_fault(Fault.NONE)
    line.device(1).registers.set("limit_in_force", 40)

    # The same unit, function and length: nothing but time tells the two answers apart.
    assert await line.session.read(1, Table.HOLDING, 50, 1) == [4000]


async def test_what_waits_in_the_port_is_no_answer(stack):
    line = await open_line(stack)
    stale = bytes([1, 3, 2, 0x12, 0x34])
    line.simulated.put(stale + checksum(stale))

    assert await line.session.read(1, Table.HOLDING, 32, 1) == [10_000]


@pytest.mark.parametrize(
    "noise",
    [
        b"\x00",
        b"\x01\x03",
        b"\xff" * 40,
        bytes([1, 3, 2, 0x12, 0x34, 0, 0]),  # its answer, with a wrong checksum
        bytes([2, 3, 2, 0x12, 0x34]) + checksum(bytes([2, 3, 2, 0x12, 0x34])),  # another's
        bytes([1, 4, 2, 0x12, 0x34]) + checksum(bytes([1, 4, 2, 0x12, 0x34])),  # to another function
        bytes([1, 3, 4, 1, 2, 3, 4]) + checksum(bytes([1, 3, 4, 1, 2, 3, 4])),  # of another length
    ],
)
async def test_noise_before_an_answer_does_not_hide_it(stack, noise):
    line = await open_line(stack)
    await line.device(1).set_fault(Fault.DELAY, delay_s=0.05)
    asking = asyncio.ensure_future(line.session.read(1, Table.HOLDING, 32, 1))
    async with asyncio.timeout(5):
        while not line.device(1).commands:  # noqa: ASYNC110 - the device has no event for it
            await asyncio.sleep(0)
    line.simulated.put(noise)

    assert await asking == [10_000]


async def test_line_full_of_noise_is_silence_and_says_what_to_check(stack):
    line = await open_line(stack)
    await line.device(1).set_fault(Fault.SILENT)
    asking = asyncio.ensure_future(line.driver(1).poll())
    async with asyncio.timeout(5):
        while not line.device(1).commands:  # noqa: ASYNC110 - the device has no event for it
            await asyncio.sleep(0)
    line.simulated.put(b"\x5a" * 700)

    with pytest.raises(DeviceUnreachable, match=r"no answer .*700 bytes came .* check baud rate, parity"):
        await asking
    assert line.session.connected


async def test_cancelled_commands_answer_is_nobodys(stack):
    line = await open_line(stack)
    await line.device(1).set_fault(Fault.DELAY, delay_s=0.05)
    asking = asyncio.ensure_future(line.session.read(1, Table.HOLDING, 32, 1))
    async with asyncio.timeout(5):
        while not line.device(1).commands:  # noqa: ASYNC110 - the device has no event for it
            await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await line.device(1).set_fault(Fault.NONE)
    line.device(1).registers.set("limit_in_force", 40)

    assert await line.session.read(1, Table.HOLDING, 50, 1) == [4000]


async def test_frames_keep_their_silence_and_a_dead_unit_costs_its_allowance_and_no_more(stack):
    line = await open_line(stack, baud_rate=9600, timeout_s=0.15)
    began = time.monotonic()
    for _ in range(3):
        for unit in UNITS:
            await line.driver(unit).write(50)
    healthy_s = time.monotonic() - began

    began = time.monotonic()
    with pytest.raises(DeviceUnreachable):
        await line.driver(ABSENT).write(50)
    dead_s = time.monotonic() - began

    assert line.simulated.silence_violations == []
    assert line.simulated.collisions == 0
    # 8 characters each way of 11 bits, and what tells them apart: no write is faster on a real wire.
    assert healthy_s > 9 * 16 * 11 / 9600
    # The frames, their silences and the allowance; the rest is for a busy machine.
    assert 0.15 < dead_s < 0.15 + 27 * 11 / 9600 + 0.5


async def test_longer_answers_may_take_longer(stack):
    # 20 registers take 0.4 s at 1200 baud, more than the device may think.
    line = await open_line(stack, baud_rate=1200, timeout_s=0.1)
    words = line.device(1).registers.words[Table.HOLDING]
    words.update({address: address for address in range(200, 220)})

    assert await line.session.read(1, Table.HOLDING, 200, 20) == list(range(200, 220))


async def test_port_that_is_pulled_out_ends_the_command_and_the_session(stack):
    line = await open_line(stack, timeout_s=30)
    await line.device(1).set_fault(Fault.SILENT)
    asking = asyncio.ensure_future(line.driver(1).poll())
    async with asyncio.timeout(5):
        while not line.device(1).commands:  # noqa: ASYNC110 - the device has no event for it
            await asyncio.sleep(0)
        line.simulated.unplug()
        with pytest.raises(DeviceUnreachable, match="is gone"):
            await asking

    assert not line.session.connected
    with pytest.raises(DeviceUnreachable, match="not connected"):
        await line.driver(1).poll()
    with pytest.raises(DeviceUnreachable, match="cannot open"):
        await line.session.connect()


async def test_serial_device_server_that_closes_ends_the_command_and_the_session(stack):
    line = await open_line(stack, tcp=True, timeout_s=30)
    await line.device(1).set_fault(Fault.SILENT)
    asking = asyncio.ensure_future(line.driver(1).poll())
    async with asyncio.timeout(5):
        while not line.device(1).commands:  # noqa: ASYNC110 - the device has no event for it
            await asyncio.sleep(0)
        await line.simulated.stop()
        with pytest.raises(DeviceUnreachable, match="is gone"):
            await asking
    assert not line.session.connected
    with pytest.raises(DeviceUnreachable, match="no connection"):
        await line.session.connect()


async def test_port_is_opened_anew_by_connect(stack):
    line = await open_line(stack)
    await line.session.connect()

    assert line.session.generation == 2
    assert await line.driver(1).read_setpoint() == 100


async def test_port_that_another_program_has_is_left_alone(stack):
    line = await open_line(stack)
    other = os.open(line.simulated.path, os.O_RDWR | os.O_NOCTTY)
    stack.callback(os.close, other)
    await line.session.aclose()
    fcntl.flock(other, fcntl.LOCK_EX)

    with pytest.raises(DeviceUnreachable, match="another program has"):
        await line.session.connect()


@pytest.mark.parametrize("baud_rate", BAUD_RATES)
async def test_port_is_set_to_its_speed(stack, baud_rate):
    line = await open_line(stack)
    await line.session.aclose()
    settings = SerialSettings(line.simulated.path, baud_rate, Parity.ODD)
    for _ in range(2):
        port = open_port(settings)
        attributes = termios.tcgetattr(port)
        os.close(port)

        assert attributes[4] == attributes[5] == getattr(termios, f"B{baud_rate}")
        assert attributes[0] == attributes[1] == attributes[3] == 0


@pytest.mark.parametrize(
    ("parity", "stop_bits", "flags"),
    [
        (Parity.NONE, 1, 0),
        (Parity.NONE, 2, termios.CSTOPB),
        (Parity.EVEN, 1, termios.PARENB),
        (Parity.ODD, 2, termios.PARENB | termios.PARODD | termios.CSTOPB),
    ],
)
def test_parity_and_stop_bits_are_set_as_configured(parity, stop_bits, flags):
    # A pseudo-terminal has neither, so what a real port is told is looked at before it is told.
    always = termios.CREAD | termios.CLOCAL | termios.CS8
    assert control_flags(SerialSettings("/dev/ttyS0", 9600, parity, stop_bits)) == always | flags


async def test_file_that_is_no_port_is_never_written(tmp_path):
    file = tmp_path / "precious"
    file.write_bytes(b"precious")
    session = SerialSession(
        line=SerialSettings(str(file)), timeout_s=1, min_gap_s=0, clock=time.monotonic, sleep=asyncio.sleep
    )

    with pytest.raises(DeviceUnreachable, match="not a serial port"):
        await session.connect()
    assert file.read_bytes() == b"precious"
    assert not session.connected


def test_character_and_silence_are_those_of_the_standard():
    # 2.5.1.1: 11 bits a character, 3.5 characters; 1.750 ms above 19200 baud.
    even = SerialSettings("/dev/ttyS0", 9600, Parity.EVEN)
    assert even.character_s == pytest.approx(11 / 9600)
    assert even.silence_s == pytest.approx(3.5 * 11 / 9600)
    assert SerialSettings("/dev/ttyS0", 115200).silence_s == 0.00175
    assert str(even) == "9600 baud 8E1"


def test_checksum_is_that_of_the_standards_example():
    # V1.02, 6.2.2: the CRC of 02 07 is 1241 hex, sent low byte first.
    assert checksum(bytes([0x02, 0x07])) == bytes([0x41, 0x12])


@given(
    before=st.binary(max_size=30),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    registers=st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=12),
)
def test_answer_is_found_however_it_is_cut_and_whatever_comes_before(before, cuts, registers):
    async def ask() -> list[int]:
        session = Wire(timeout_s=5)
        asking = asyncio.ensure_future(session.read(7, Table.INPUT, 100, len(registers)))
        async with asyncio.timeout(5):
            while not session.sent:  # noqa: ASYNC110 - the wire has no event for it
                await asyncio.sleep(0)
        answer = bytes([7, 4, 2 * len(registers)])
        answer += b"".join(register.to_bytes(2, "big") for register in registers)
        stream = before + answer + checksum(answer)
        edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
        for start, end in pairwise(edges):
            session._received(stream[start:end])
        return await asking

    assert asyncio.run(ask()) == registers


class Wire(RtuSession):
    """A line whose far end is the test."""

    def __init__(self, *, timeout_s: float) -> None:
        super().__init__(
            endpoint="wire",
            line=SerialSettings("wire", 115200),
            timeout_s=timeout_s,
            min_gap_s=0,
            clock=time.monotonic,
            sleep=asyncio.sleep,
        )
        self.sent: list[bytes] = []

    @property
    def connected(self) -> bool:
        return True

    async def connect(self) -> None: ...

    async def aclose(self) -> None: ...

    def _send(self, frame: bytes) -> None:
        self.sent.append(frame)

    def _drop(self) -> None: ...


async def test_bits_go_over_a_line_as_over_tcp():
    asked: list[bytes] = []
    # The examples of Modbus Application Protocol V1.1b3, sections 6.1, 6.5 and 6.11.
    answers = [
        bytes.fromhex("01 01 03 cd 6b 05"),
        bytes.fromhex("01 05 00 ac ff 00"),
        bytes.fromhex("01 0f 00 13 00 0a"),
    ]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer, length in zip(answers, (8, 8, 11), strict=True):
            asked.append(await reader.readexactly(length))
            writer.write(answer + checksum(answer))
        writer.close()

    async with AsyncExitStack() as stack:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        stack.callback(server.close)
        session = RtuOverTcpSession(
            host="127.0.0.1",
            port=server.sockets[0].getsockname()[1],
            timeout_s=5.0,
            min_gap_s=0.0,
            clock=time.monotonic,
            sleep=asyncio.sleep,
        )
        stack.push_async_callback(session.aclose)
        await session.connect()

        assert (await session.read(1, Table.COIL, 19, 19))[16:] == [1, 0, 1]
        await session.write(1, 172, [1], single=True, table=Table.COIL)
        await session.write(1, 19, [1, 0, 1, 1, 0, 0, 1, 1, 1, 0], single=False, table=Table.COIL)

    assert [frame[:-2].hex(" ") for frame in asked] == [
        "01 01 00 13 00 13",
        "01 05 00 ac ff 00",
        "01 0f 00 13 00 0a 02 cd 01",
    ]
