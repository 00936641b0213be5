"""Oddities of Modbus sessions and of single makers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest
from msgspec.structs import replace

from edge.drivers.errors import DeviceRefused, DeviceUnreachable, ReadingInvalid
from edge.drivers.modbus import ModbusSession
from edge.drivers.plan import plan_reads
from edge.profiles.loader import load_all
from edge.profiles.points import Table
from edge.simulators.device import Fault

PROFILES = load_all()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the device under test has no event to wait for
            await asyncio.sleep(0)


async def test_gapless_device_takes_one_request_to_write_and_one_to_read_back(bench):
    bench = await bench("generic_modbus")

    await bench.driver.write(37)
    assert bench.device.commands == 1
    await bench.driver.read_setpoint()
    assert bench.device.commands == 2


async def test_gapless_device_tells_telemetry_and_setpoint_with_one_request(bench):
    bench = await bench("generic_modbus")
    await bench.driver.write(37)
    before = bench.device.commands

    result = await bench.driver.poll()

    assert bench.device.commands - before == bench.driver.commands_per_poll == 1
    assert result.readback == 37
    assert result.readings["P_kW"] == pytest.approx(60)


async def test_a_model_that_refuses_the_common_block_is_asked_apart_until_the_next_connection(bench):
    points = PROFILES["generic_modbus"].registers
    apart = {**points, "limit_in_force": replace(points["limit_in_force"], address=45)}
    bench = await bench(replace(PROFILES["generic_modbus"], points=apart))
    await bench.driver.write(37)
    assert bench.driver.commands_per_poll == 1
    # This model has no register between the two.
    bench.device.registers.words[Table.HOLDING].pop(48)

    for commands in (3, 2):
        before = bench.device.commands
        result = await bench.driver.poll()

        assert result.readback == 37
        assert result.readings["P_kW"] == pytest.approx(60)
        assert bench.device.commands - before == commands
    assert bench.driver.commands_per_poll == 2

    await bench.session.connect()
    before = bench.device.commands
    await bench.driver.poll()
    assert bench.device.commands - before == 3


async def test_a_scale_factor_without_a_value_hides_no_setpoint_that_needs_none(bench):
    bench = await bench("sma_stp60_im20")
    await bench.driver.write(37)
    await bench.session.connect()
    bench.device.registers.set("power_sf", None)

    result = await bench.driver.poll()

    assert result.readback == 37
    assert result.readings["P_kW"] is None


async def test_a_late_answer_is_never_taken_for_the_next_ones(bench, clock):
    bench = await bench("generic_modbus", timeout_s=0.2)
    await bench.device.set_fault(Fault.DELAY, delay_s=0.3)
    with pytest.raises(DeviceUnreachable, match="no answer"):
        await bench.driver.read_setpoint()
    await bench.device.set_fault(Fault.NONE)

    await bench.session.connect()
    await bench.driver.write(20)

    assert await bench.driver.read_setpoint() == 20


async def test_a_cancelled_command_closes_the_line(bench):
    bench = await bench("generic_modbus")
    await bench.device.set_fault(Fault.SILENT)
    task = asyncio.create_task(bench.driver.poll())
    await until(lambda: bench.device.commands)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not bench.session.connected


async def test_a_session_too_many_is_closed_and_the_first_one_stays(bench):
    only_one = replace(PROFILES["generic_modbus"], max_sessions=1)
    bench = await bench(only_one)
    await bench.driver.poll()
    second = ModbusSession(
        host=bench.device.host,
        port=bench.device.port,
        timeout_s=2.0,
        min_gap_s=0,
        clock=bench.clock,
        sleep=bench.clock.sleep,
    )

    await second.connect()
    with pytest.raises(DeviceUnreachable, match=r"connection to .* broke|not connected"):
        await second.read(1, Table.HOLDING, 32, 1)

    assert bench.device.sessions_refused == 1
    assert (await bench.driver.poll()).readings["P_kW"] == pytest.approx(60)


async def test_a_connection_lost_under_a_command_is_noticed_before_the_timeout(bench):
    bench = await bench("generic_modbus", timeout_s=30)
    await bench.device.set_fault(Fault.SILENT)
    task = asyncio.create_task(bench.driver.poll())
    await until(lambda: bench.device.commands)

    await bench.device.set_fault(Fault.REFUSE)

    async with asyncio.timeout(5):
        with pytest.raises(DeviceUnreachable, match=r"connection to .* broke"):
            await task
    assert not bench.session.connected


async def test_an_idle_connection_that_the_device_closes_is_noticed(bench):
    bench = await bench("generic_modbus")

    await bench.device.restart()

    await until(lambda: not bench.session.connected)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"\x00\x05\x01\x03\x02\x00\x2a", "with something else"),  # one register where two were asked for
        (b"\x00\x05\x01\x04\x02\x00\x2a", "with something else"),  # another function's answer
        (b"\x00\x03\x01\x55\x00", r"connection to .* broke"),  # no function at all
        (b"\x00\x07\x01\x03\x04\x00", "no answer"),  # half a frame
    ],
)
async def test_a_broken_answer_closes_the_line(clock, answer, complaint):
    done = asyncio.Event()

    async def liar(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readexactly(12)
        writer.write(request[:4] + answer)
        # What was given up is discarded: it ends with a reset.
        with suppress(ConnectionResetError):
            await reader.read()
            writer.close()
            await writer.wait_closed()
        done.set()

    server = await asyncio.start_server(liar, "127.0.0.1", 0)
    session = ModbusSession(
        host="127.0.0.1",
        port=server.sockets[0].getsockname()[1],
        timeout_s=0.5,
        min_gap_s=0,
        clock=clock,
        sleep=clock.sleep,
    )
    await session.connect()

    with pytest.raises(DeviceUnreachable, match=complaint):
        await session.read(1, Table.HOLDING, 0, 2)

    assert not session.connected
    async with asyncio.timeout(5):
        await done.wait()
    server.close()
    await server.wait_closed()


async def test_a_wrong_unit_is_not_answered(bench):
    bench = await bench("generic_modbus", timeout_s=0.2, unit=9)

    with pytest.raises(DeviceUnreachable, match="unit 9"):
        await bench.driver.poll()


async def test_a_command_that_comes_too_early_is_not_answered(bench):
    bench = await bench("growatt_max_60ktl")
    impatient = ModbusSession(
        host=bench.device.host,
        port=bench.device.port,
        timeout_s=0.2,
        min_gap_s=0,
        clock=bench.clock,
        sleep=bench.clock.sleep,
    )
    await impatient.connect()
    await impatient.read(1, Table.HOLDING, 3, 1)

    with pytest.raises(DeviceUnreachable, match="no answer"):
        await impatient.read(1, Table.HOLDING, 3, 1)

    assert bench.device.gap_violations == [0.0]
    await impatient.aclose()


async def test_sma_is_refused_where_the_limit_is_not_enabled_and_never_enabled_from_here(bench):
    bench = await bench("sma_stp60_im20")
    bench.device.registers.set("limit_enabled", 0)

    with pytest.raises(DeviceRefused, match=r"WMaxLim_Ena .*reads 0, expected 1; have the limitation"):
        await bench.driver.write(50)

    assert bench.device.writes == {}
    assert bench.device.registers.get("limit_enabled") == 0


async def test_sma_limit_switched_off_by_another_hand_counts_as_no_limit_and_stops_writes(bench):
    bench = await bench("sma_stp60_im20")
    await bench.driver.write(50)

    bench.device.registers.set("limit_enabled", 0)

    assert await bench.driver.read_setpoint() == 100
    with pytest.raises(DeviceRefused, match="WMaxLim_Ena"):
        await bench.driver.write(50)


async def test_sma_writes_and_reads_back_with_one_command_each(bench):
    bench = await bench("sma_stp60_im20")
    await bench.driver.write(50)
    before = bench.device.commands

    await bench.driver.write(37)
    await bench.driver.read_setpoint()

    assert bench.device.commands - before == 2
    # WMaxLimPct_SF is -2: the register counts hundredths of a percent.
    assert bench.device.registers.words[Table.HOLDING][40348] == 3700


async def test_a_scale_factor_is_read_anew_after_a_reconnect(bench):
    bench = await bench("sma_stp60_im20")
    await bench.driver.write(50)
    bench.device.registers.set("limit_pct_sf", 0)
    bench.device.registers.set("limit_pct", 50)

    await bench.session.connect()
    await bench.driver.write(37)

    assert bench.device.registers.words[Table.HOLDING][40348] == 37


async def test_a_scale_factor_that_is_none_makes_no_reading(bench):
    bench = await bench("sma_stp60_im20")
    bench.device.registers.set("limit_pct_sf", None)

    with pytest.raises(ReadingInvalid, match="WMaxLimPct_SF reads no value"):
        await bench.driver.write(37)


async def test_growatt_limit_is_made_volatile_before_the_first_write_and_only_once(bench):
    bench = await bench("growatt_max_60ktl")
    assert bench.device.registers.get("limit_memory") == 1

    await bench.driver.write(50)
    await bench.driver.write(40)

    assert bench.device.registers.get("limit_memory") == 0
    assert bench.device.writes == {"limit_memory": 1, "limit_pct": 2}


async def test_growatt_is_not_told_what_it_knows(bench):
    bench = await bench("growatt_max_60ktl")
    bench.device.registers.set("limit_memory", 0)

    await bench.driver.write(50)

    assert bench.device.writes == {"limit_pct": 1}


async def test_growatt_255_means_no_limit(bench):
    bench = await bench("growatt_max_60ktl")

    assert bench.device.registers.get("limit_pct") == 255
    assert await bench.driver.read_setpoint() == 100


async def test_sungrow_limit_counts_only_while_its_switch_is_on(bench):
    bench = await bench("sungrow_sg110cx")
    bench.device.registers.set("limit_pct", 30)

    assert await bench.driver.read_setpoint() == 100
    await bench.driver.write(30)
    assert await bench.driver.read_setpoint() == 30


async def test_sungrow_full_power_is_a_release(bench):
    bench = await bench("sungrow_sg110cx")
    await bench.driver.write(30)
    assert bench.device.registers.get("limit_switch") == 0xAA

    await bench.driver.write(100)

    assert bench.device.registers.get("limit_switch") == 0x55
    assert bench.device.registers.get("limit_pct") == 100


async def test_meter_counts_export_positive_though_the_device_counts_import(bench):
    bench = await bench("janitza_umg604")
    power = bench.device.profile.registers["power"]

    readings = (await bench.driver.poll()).readings

    # No producer at this site: it imports, the device shows plus, and we show minus.
    assert readings["P_kW"] == pytest.approx(-10)
    assert bench.device.registers.words[power.table][power.address] < 0x8000


async def test_devices_of_one_profile_share_how_they_are_read(bench):
    first, second = await bench("generic_modbus"), await bench("generic_modbus")

    assert first.driver._layout is second.driver._layout


def test_points_close_together_share_a_block():
    points = PROFILES["sma_stp60_im20"].registers

    blocks = plan_reads(points, ["power", "energy", "power_sf", "limit_pct"], max_block=125, max_gap=60)

    assert [(block.address, block.count) for block in blocks] == [(40199, 12), (40348, 1)]


def test_no_block_is_longer_than_the_profile_allows():
    points = PROFILES["sma_stp60_im20"].registers

    blocks = plan_reads(points, ["power", "energy"], max_block=11, max_gap=60)

    assert [(block.address, block.count) for block in blocks] == [(40199, 1), (40209, 2)]


def test_tables_are_never_mixed_in_a_block():
    points = PROFILES["sungrow_sg110cx"].registers

    blocks = plan_reads(points, ["device_type", "limit_switch"], max_block=125, max_gap=100)

    assert [block.table for block in blocks] == [Table.HOLDING, Table.INPUT]
