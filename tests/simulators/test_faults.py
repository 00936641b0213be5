"""What a plain client sees of a device that is broken: raw bytes on a socket, and on a line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from msgspec.structs import replace
from pymodbus.framer import FramerRTU
from pyModbusTCP.client import ModbusClient

from edge.profiles.loader import load_all
from edge.profiles.points import Protocol
from edge.simulators.device import Fault
from edge.simulators.modbus import SimulatedDevice
from edge.simulators.modbus_rtu import SimulatedLine
from tests.servers import until

PROFILES = load_all()
GENERIC = PROFILES["generic_modbus"]
READ_LIMIT = bytes.fromhex("000100000006010300200001")
LIMIT_IS_100 = bytes.fromhex("0001000000050103022710")
WRITE_40 = bytes.fromhex("000200000006010600200fa0")

Start = Callable[..., Awaitable[SimulatedDevice]]
Wire = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def dial(stack: AsyncExitStack, port: int) -> Wire:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    stack.callback(writer.close)
    return reader, writer


@pytest.fixture
async def device(stack: AsyncExitStack) -> SimulatedDevice:
    device = SimulatedDevice(profile=GENERIC, unit=1, nameplate_kw=60)
    await device.start()
    stack.push_async_callback(device.stop)
    return device


@pytest.fixture
async def wire(stack: AsyncExitStack, device: SimulatedDevice) -> Wire:
    return await dial(stack, device.port)


async def answer_to(wire: Wire, frame: bytes, *, length: int) -> bytes:
    reader, writer = wire
    writer.write(frame)
    async with asyncio.timeout(5):
        return await reader.readexactly(length)


async def test_a_healthy_device_answers(wire):
    assert await answer_to(wire, READ_LIMIT, length=11) == LIMIT_IS_100


async def test_a_device_that_refuses_has_nobody_who_listens(device, wire):
    await device.set_fault(Fault.REFUSE)

    assert await wire[0].read() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", device.port)

    await device.set_fault(Fault.NONE)
    reader, writer = await asyncio.open_connection("127.0.0.1", device.port)
    assert await answer_to((reader, writer), READ_LIMIT, length=11) == LIMIT_IS_100
    writer.close()


async def test_a_device_that_drops_obeys_and_ends_the_connection_in_place_of_an_answer(device, wire):
    await device.set_fault(Fault.DROP)
    reader, writer = wire
    writer.write(WRITE_40)

    async with asyncio.timeout(5):
        assert await reader.read() == b""
    assert device.limit_in_force == 40


async def test_garbage_is_as_long_as_the_answer_and_means_nothing(device, wire):
    await device.set_fault(Fault.GARBAGE)

    garbage = await answer_to(wire, READ_LIMIT, length=11)

    assert garbage[2:4] != b"\0\0"
    assert garbage != LIMIT_IS_100


async def test_a_device_answers_in_another_units_name(device, wire):
    await device.set_fault(Fault.WRONG_UNIT)

    answer = await answer_to(wire, READ_LIMIT, length=11)

    assert answer[6] == 2
    assert answer[:6] + answer[7:] == LIMIT_IS_100[:6] + LIMIT_IS_100[7:]


async def test_of_half_a_frame_the_rest_never_comes(device, wire):
    await device.set_fault(Fault.HALF_FRAME)

    assert await answer_to(wire, READ_LIMIT, length=5) == LIMIT_IS_100[:5]

    await device.set_fault(Fault.NONE)
    # What comes next is the next answer: the stream does not recover by itself.
    assert await answer_to(wire, READ_LIMIT, length=11) == LIMIT_IS_100


async def test_a_silent_device_takes_commands_and_does_nothing(device, wire):
    await device.set_fault(Fault.SILENT)
    wire[1].write(WRITE_40)
    await device.set_fault(Fault.NONE)

    assert await answer_to(wire, READ_LIMIT, length=11)
    assert device.commands == 2


async def test_a_device_that_refuses_writes_is_still_read(device, wire):
    await device.set_fault(Fault.WRITE_EXCEPTION)

    assert await answer_to(wire, WRITE_40, length=9) == bytes.fromhex("000200000003018604")
    assert await answer_to(wire, READ_LIMIT, length=11) == LIMIT_IS_100


async def test_a_device_that_ignores_writes_acknowledges_them(device, wire):
    await device.set_fault(Fault.IGNORE_WRITES)

    assert await answer_to(wire, WRITE_40, length=12) == WRITE_40
    assert await answer_to(wire, READ_LIMIT, length=11) == LIMIT_IS_100
    assert device.writes == {}


async def test_a_late_answer_comes_after_the_next_one(device, wire):
    await device.set_fault(Fault.DELAY, delay_s=0.2)
    wire[1].write(WRITE_40)
    await asyncio.to_thread(until, lambda: device.commands == 1, what="the command")
    await device.set_fault(Fault.NONE)

    assert (await answer_to(wire, READ_LIMIT, length=11))[:2] == READ_LIMIT[:2]
    assert await wire[0].readexactly(12) == WRITE_40


@pytest.mark.parametrize(
    ("name", "write", "word", "read"),
    [("generic_modbus", 32, 4000, 50), ("growatt_max_60ktl", 3, 40, 3)],
)
async def test_stale_readback_obeys_and_shows_the_setpoint_from_before(stack, name, write, word, read):
    device = SimulatedDevice(profile=replace(PROFILES[name], min_gap_ms=0), unit=1, nameplate_kw=60)
    await device.start()
    stack.push_async_callback(device.stop)
    await device.set_fault(Fault.STALE_READBACK)

    def client() -> tuple[list[int], ...]:
        plain = ModbusClient(host="127.0.0.1", port=device.port, unit_id=1, auto_open=True)
        watcher = ModbusClient(host="127.0.0.1", port=device.observe_port, unit_id=1, auto_open=True)
        before = plain.read_holding_registers(read, 1)
        assert plain.write_single_register(write, word)
        after, true = plain.read_holding_registers(read, 1), watcher.read_holding_registers(read, 1)
        plain.close()
        watcher.close()
        return before, after, true

    before, after, true = await asyncio.to_thread(client)

    assert (before, after, true) == (before, before, [word])
    assert device.limit_in_force == 40


# --- on a line


def rtu(unit: int, pdu: bytes) -> bytes:
    frame = bytes([unit]) + pdu
    return frame + FramerRTU.compute_CRC(frame).to_bytes(2, "big")


READ = rtu(1, bytes([3, 0, 32, 0, 1]))
GOOD = rtu(1, bytes([3, 2, 0x27, 0x10]))


@pytest.fixture
async def line(stack: AsyncExitStack) -> SimulatedLine:
    line = SimulatedLine()
    profile = replace(GENERIC, protocol=Protocol.MODBUS_RTU)
    for unit in (1, 2):
        line.add(SimulatedDevice(profile=profile, unit=unit, nameplate_kw=60, on_line=True))
    await line.start(tcp=True)
    stack.push_async_callback(line.stop)
    return line


@pytest.fixture
async def master(stack: AsyncExitStack, line: SimulatedLine) -> Wire:
    return await dial(stack, line.port)


async def test_on_a_line_garbage_has_no_valid_checksum(line, master):
    await line.devices[1].set_fault(Fault.GARBAGE)

    garbage = await answer_to(master, READ, length=len(GOOD))

    assert FramerRTU.compute_CRC(garbage[:-2]).to_bytes(2, "big") != garbage[-2:]


async def test_on_a_line_another_units_answer_has_a_valid_checksum(line, master):
    await line.devices[1].set_fault(Fault.WRONG_UNIT)

    assert await answer_to(master, READ, length=len(GOOD)) == rtu(2, GOOD[1:-2])


async def test_on_a_line_half_a_frame_ends_in_the_middle_and_the_next_device_is_heard(line, master):
    await line.devices[1].set_fault(Fault.HALF_FRAME)

    assert await answer_to(master, READ, length=3) == GOOD[:3]
    assert await answer_to(master, rtu(2, READ[1:-2]), length=len(GOOD)) == rtu(2, GOOD[1:-2])


async def test_a_serial_device_server_ends_the_connection_of_a_device_that_drops(line, master):
    await line.devices[1].set_fault(Fault.DROP)
    master[1].write(READ)

    async with asyncio.timeout(5):
        assert await master[0].read() == b""


async def test_on_a_line_a_stale_readback_is_told_and_obeyed(line, master):
    device = line.devices[1]
    await device.set_fault(Fault.STALE_READBACK)

    await answer_to(master, rtu(1, bytes([6, 0, 32, 0x0F, 0xA0])), length=8)

    assert (await answer_to(master, rtu(1, bytes([3, 0, 50, 0, 1])), length=7))[3:5] == bytes([0x27, 0x10])
    assert device.limit_in_force == 40
