"""Simulated devices, as any Modbus client sees them."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.pdu import ModbusPDU

from edge.profiles.loader import load_all
from edge.simulators.fleet import FleetError, build_fleet, main, read_fleet
from edge.simulators.modbus import SimulatedDevice

PROFILES = load_all()
ROOT = Path(__file__).parents[2]

Dial = Callable[[int], Awaitable[AsyncModbusTcpClient]]


class Now:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
async def start(now: Now) -> AsyncIterator[Callable[..., Awaitable[SimulatedDevice]]]:
    async with AsyncExitStack() as stack:

        async def build(name: str) -> SimulatedDevice:
            profile = PROFILES[name]
            device = SimulatedDevice(profile=profile, unit=profile.default_unit, nameplate_kw=60, clock=now)
            await device.start()
            stack.push_async_callback(device.stop)
            return device

        yield build


@pytest.fixture
async def dial() -> AsyncIterator[Dial]:
    clients: list[AsyncModbusTcpClient] = []

    async def connect(port: int) -> AsyncModbusTcpClient:
        client = AsyncModbusTcpClient("127.0.0.1", port=port, timeout=2, retries=0, reconnect_delay=0)
        assert await client.connect()
        clients.append(client)
        return client

    yield connect
    for client in clients:
        client.close()


def exception(response: ModbusPDU) -> int:
    assert response.isError()
    return response.exception_code


async def test_the_guides_sma_answers_where_its_document_says(start, dial):
    device = await start("sma_stp60_im20")
    client = await dial(device.observe_port)

    marker = await client.read_holding_registers(40000, count=2, device_id=125)
    rated = await client.read_holding_registers(40240, count=2, device_id=125)
    limit = await client.read_holding_registers(40348, count=19, device_id=125)

    assert marker.registers == [0x5375, 0x6E53]
    assert rated.registers == [60, 3]
    assert limit.registers[0] == 10_000
    assert limit.registers[2] == 0xFFFF  # no revert timer
    assert limit.registers[4] == 1
    assert limit.registers[18] == 0xFFFE  # -2


async def test_sungrow_has_its_low_word_first(start, dial):
    device = await start("sungrow_sg110cx")
    client = await dial(device.observe_port)

    power = await client.read_input_registers(5030, count=2, device_id=1)

    assert power.registers == [60_000, 0]


async def test_a_limit_acts_on_power_with_a_lag(start, dial, now):
    device = await start("generic_modbus")
    client = await dial(device.port)
    await client.write_register(32, 5000, device_id=1)

    at_once = await client.read_holding_registers(50, count=3, device_id=1)
    now.s += 5
    settled = await client.read_holding_registers(50, count=3, device_id=1)

    assert at_once.registers == [5000, 0, 60_000]
    assert settled.registers[1:] == [0, pytest.approx(30_000, abs=5)]


async def test_observers_see_the_same_registers_and_cannot_write(start, dial):
    device = await start("generic_modbus")
    client, observer = await dial(device.port), await dial(device.observe_port)
    await client.write_register(32, 3700, device_id=1)

    assert (await observer.read_holding_registers(32, count=1, device_id=1)).registers == [3700]
    assert exception(await observer.write_register(32, 100, device_id=1)) == 1
    assert exception(await observer.write_registers(32, [100], device_id=1)) == 1
    assert device.registers.get("limit_target") == 37


async def test_observers_may_look_as_often_as_they_like(start, dial):
    device = await start("growatt_max_60ktl")
    observer = await dial(device.observe_port)

    for _ in range(3):
        assert (await observer.read_holding_registers(3, count=1, device_id=1)).registers == [255]
    assert device.gap_violations == []


async def test_an_observer_that_asks_for_another_unit_is_told(start, dial):
    device = await start("generic_modbus")
    observer = await dial(device.observe_port)

    assert exception(await observer.read_holding_registers(32, count=1, device_id=2)) == 11


@pytest.mark.parametrize(
    ("name", "ask", "code"),
    [
        ("sungrow_sg110cx", lambda c: c.read_holding_registers(5030, count=2, device_id=1), 2),
        ("sungrow_sg110cx", lambda c: c.read_input_registers(5003, count=20, device_id=1), 2),
        ("sungrow_sg110cx", lambda c: c.write_register(5030, 1, device_id=1), 2),
        ("generic_modbus", lambda c: c.write_register(50, 1, device_id=1), 2),
        ("generic_modbus", lambda c: c.write_registers(32, [1, 2], device_id=1), 2),
        ("generic_modbus", lambda c: c.read_coils(1, count=1, device_id=1), 1),
    ],
)
async def test_wrong_access_gets_the_exception_a_device_gives(start, dial, name, ask, code):
    device = await start(name)
    client = await dial(device.port)

    assert exception(await ask(client)) == code


async def test_growatt_forgets_a_limit_it_was_told_not_to_store(start):
    device = await start("growatt_max_60ktl")
    device.registers.set("limit_memory", 0)
    device.registers.set("limit_pct", 30)

    await device.restart()

    assert device.registers.get("limit_pct") == 255
    assert device.limit_in_force == 100


async def test_growatt_keeps_a_limit_that_it_stores(start):
    device = await start("growatt_max_60ktl")
    device.registers.set("limit_pct", 30)

    await device.restart()

    assert device.limit_in_force == 30


async def test_two_requests_in_one_packet_and_one_in_two_are_answered(start):
    device = await start("generic_modbus")
    reader, writer = await asyncio.open_connection("127.0.0.1", device.port)
    ask = bytes.fromhex("000100000006010300200001")
    answer = bytes.fromhex("0001000000050103022710")

    writer.write(ask + ask[:5])
    first = await reader.readexactly(len(answer))
    writer.write(ask[5:])
    second = await reader.readexactly(len(answer))

    assert (first, second) == (answer, answer)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 400])
async def test_noise_ends_a_session_and_not_the_device(start, dial, noise):
    device = await start("generic_modbus")
    reader, writer = await asyncio.open_connection("127.0.0.1", device.port)

    writer.write(noise)
    writer.write_eof()
    async with asyncio.timeout(5):
        await reader.read()
    writer.close()

    client = await dial(device.port)
    assert (await client.read_holding_registers(32, count=1, device_id=1)).registers == [10_000]


async def test_an_unknown_function_gets_exception_1(start):
    device = await start("generic_modbus")
    reader, writer = await asyncio.open_connection("127.0.0.1", device.port)

    writer.write(bytes.fromhex("0007000000020160"))

    assert await reader.readexactly(9) == bytes.fromhex("0007000000030" + "1e001")
    writer.close()
    await writer.wait_closed()


def fleet_file(tmp_path: Path, **changes) -> Path:
    devices = [
        {"tag": "PV", "profile": "generic_modbus", "host": "127.0.0.1", "port": 0, "unit": 1,
         "observe_port": 0, "nameplate_kw": 60, "behaves_as": "pv", "site": "a"},
        {"tag": "POC", "profile": "janitza_umg604", "host": "127.0.0.1", "port": 0, "unit": 1,
         "observe_port": 0, "nameplate_kw": 60, "behaves_as": "meter", "site": "a"},
        {"tag": "FAR", "profile": "generic_modbus_wind", "host": "127.0.0.1", "port": 0, "unit": 1,
         "observe_port": 0, "nameplate_kw": 500, "behaves_as": "wind", "site": "b"},
    ]  # fmt: skip
    devices[0].update(changes)
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps({"devices": devices}))
    return path


def test_a_meter_counts_the_devices_of_its_own_site_only(tmp_path, now):
    devices = build_fleet(read_fleet(fleet_file(tmp_path)), clock=now).devices
    pv, meter = devices["PV"], devices["POC"]

    meter.machine.advance(now())

    assert meter.machine.power_kw == pytest.approx(pv.machine.power_kw - pv.machine.site.load_kw(now()))
    assert pv.machine.power_kw > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "perpetuum_mobile"}, "PV: no profile 'perpetuum_mobile'"),
        ({"behaves_as": "dragon"}, r"Invalid enum value 'dragon' - at `\$.devices\[0\].behaves_as`"),
        ({"port": "many"}, "Expected `int`"),
    ],
)
def test_a_fleet_that_cannot_be_simulated_says_why(tmp_path, changes, message):
    with pytest.raises(FleetError, match=message):
        build_fleet(read_fleet(fleet_file(tmp_path, **changes)))


def test_a_missing_fleet_file_is_named_and_ends_with_an_error(tmp_path, capsys):
    assert main([str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err


async def test_a_fleet_runs_until_sigterm_and_says_when_it_is_ready(tmp_path):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edge", "simulate", str(fleet_file(tmp_path)),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready: 3 simulated devices\n"
            process.send_signal(signal.SIGTERM)
            _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, errors) == (0, b"")
