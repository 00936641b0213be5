"""Inverters and loggers of another make than ours: each map is laid by hand from the makers' documents.

Numbers are PDU addresses, as they go on the wire. None of them comes from a profile.
"""

from __future__ import annotations

import pytest

from edge.drivers.errors import DeviceRefused
from tests.counterparts.server import MULTIPLE, SINGLE, Counterpart, Write, high_first, low_first, text

SUNS = [0x5375, 0x6E53]


# --- SMA STP60 behind an Inverter Manager IM-20 (SMA "STP60-SunSpec_Modbus-TI-en-12")


@pytest.fixture
def inverter_manager() -> Counterpart:
    device = Counterpart(unit=125)
    # The whole map can be read; most of it is there for compatibility only.
    device.lay(40000, [0xFFFF] * 920)
    device.lay(40000, SUNS)
    device.lay(40002, [1, 66, *text("SMA", 16), *text("SMA Inverter Manager", 16)])
    device.lay(40052, text("1901300042", 16))
    device.lay(40068, [125])
    device.lay(40185, [103, 50])
    device.lay(40199, [5432, 1])  # W in tens of watts
    device.lay(40209, [*high_first("I", 418_200), 3])  # WH in kWh
    device.lay(40240, [120, 3])  # WRtg in kW
    device.lay(40343, [123, 24])
    device.lay(40347, [1, 10_000, 0xFFFF, 0xFFFF, 0xFFFF, 1])  # Conn, WMaxLimPct, ..., WMaxLim_Ena
    device.lay(40366, high_first("h", -2))
    return device


async def test_the_inverter_manager_is_recognised_and_read(drive, inverter_manager):
    driver = await drive("sma_stp60_im20", inverter_manager, nameplate_kw=120.0)

    await driver.identify()
    readings = (await driver.poll()).readings

    assert readings == {"P_kW": pytest.approx(54.32), "E_kWh": 418_200}
    points = await driver.read_points(["serial", "limit_revert_s"])
    assert (points["serial"], points["limit_revert_s"]) == ("1901300042", None)
    assert inverter_manager.taken() == []


async def test_the_inverter_managers_limit_is_written_alone(drive, inverter_manager):
    driver = await drive("sma_stp60_im20", inverter_manager, nameplate_kw=120.0)

    await driver.write(37.5)
    assert inverter_manager.taken() == [Write(125, SINGLE, 40348, [3750])]
    assert await driver.read_setpoint() == 37.5

    await driver.write(100)
    assert inverter_manager.taken() == [Write(125, SINGLE, 40348, [10_000])]


async def test_an_inverter_manager_without_limitation_by_modbus_is_left_alone(drive, inverter_manager):
    inverter_manager.lay(40352, [0])
    driver = await drive("sma_stp60_im20", inverter_manager, nameplate_kw=120.0)

    with pytest.raises(DeviceRefused, match=r"WMaxLim_Ena .* reads 0, expected 1"):
        await driver.write(37.5)

    assert inverter_manager.taken() == []
    assert (await driver.poll()).readback == 100


async def test_an_inverter_manager_rated_in_another_unit_is_refused(drive, inverter_manager):
    inverter_manager.lay(40241, [2])
    driver = await drive("sma_stp60_im20", inverter_manager, nameplate_kw=120.0)

    with pytest.raises(DeviceRefused, match="is rated 12 kW, configured are 120 kW"):
        await driver.identify()


async def test_a_single_stp60_is_measured_and_its_night_is_no_value(drive):
    device = Counterpart(unit=126)
    device.lay(40000, [0xFFFF] * 300)
    device.lay(40000, SUNS)
    device.lay(40187, [7_550])
    device.lay(40191, high_first("h", -2))
    device.lay(40199, [0x8000, 1])
    device.lay(40209, [*high_first("I", 209_100), 3])
    device.lay(40223, [2, 35])
    device.lay(40229, [*high_first("I", 1 << 20), *high_first("I", 0) * 3])
    driver = await drive("sma_stp60", device, nameplate_kw=60.0)

    await driver.identify()
    readings = (await driver.poll()).readings

    assert readings["P_kW"] is None
    assert readings["I_A"] == 75.5
    assert readings["E_kWh"] == 209_100
    assert (readings["work_state"], readings["vendor_state"]) == (2, 35)
    assert (readings["event_1_code"], readings["event_2_code"]) == (1 << 20, 0)


# --- SMA Data Manager M (evcc), and SMA's own profile (evcc, NexoWatt)


async def test_the_data_manager_takes_a_percentage_that_cannot_be_read(drive):
    device = Counterpart(unit=2)
    device.lay(30775, high_first("i", 83_210))
    device.lay(30513, high_first("Q", 812_000_400))
    device.lay(31249, high_first("i", -4_000))  # taken from the grid
    device.lay(40016, [0])
    device.write_only = {40016}
    driver = await drive("sma_data_manager_m", device, nameplate_kw=100.0)

    result = await driver.poll()
    await driver.write(42.0)
    await driver.keep_alive(42.0)

    assert result.readings == {"P_kW": 83.21, "E_kWh": 812_000.4, "P_grid_kW": -4.0}
    assert result.readback is None
    assert device.taken() == [Write(2, SINGLE, 40016, [42])] * 2


async def test_an_sma_inverters_fallback_is_stored_once(drive):
    device = Counterpart(unit=3)
    device.lay(30775, high_first("I", 0x80000000))
    device.lay(30513, high_first("Q", 91_200_000))
    device.lay(40016, [0])
    device.write_only = {40016}
    device.lay(41193, [*high_first("I", 2506), *high_first("I", 600), *high_first("I", 10_000)])
    driver = await drive("sma_inverter", device, nameplate_kw=25.0)

    await driver.arm_fallback(30.0)
    assert device.taken() == [
        Write(3, MULTIPLE, 41197, [0, 3_000]),
        Write(3, MULTIPLE, 41195, [0, 60]),
        Write(3, MULTIPLE, 41193, [0, 2507]),
    ]
    await driver.arm_fallback(30.0)
    assert device.taken() == []
    await driver.write(100.0)
    assert device.taken() == [Write(3, SINGLE, 40016, [100])]
    assert (await driver.poll()).readings == {"P_kW": None, "E_kWh": 91_200}


# --- Sungrow (SunGather, NexoWatt, evcc): PDU = printed number - 1, 32-bit values low word first


@pytest.fixture
def sg110cx() -> Counterpart:
    device = Counterpart(unit=1)
    device.lay(4989, text("A2100000042", 10), table=device.input)
    device.lay(4999, [0x2C06, 1_100], table=device.input)
    device.lay(5002, [2_146, *low_first("I", 731_000), *low_first("I", 18_250), 415], table=device.input)
    device.lay(5030, [*low_first("i", 98_765), *low_first("i", -1_200), 1_000, 500], table=device.input)
    device.lay(5037, [0x8100], table=device.input)
    device.lay(5006, [0x55, 1_000])
    return device


async def test_the_sungrow_is_recognised_and_read(drive, sg110cx):
    driver = await drive("sungrow_sg110cx", sg110cx, nameplate_kw=110.0)

    await driver.identify()

    assert (await driver.poll()).readings == {
        "P_kW": pytest.approx(98.765),
        "E_kWh": 731_000,
        "E_day_kWh": 214.6,
        "Q_kvar": -1.2,
        "f_Hz": 50,
        "T_inside_degC": 41.5,
        "running_h": 18_250,
        "work_state": 0x8100,
    }
    assert sg110cx.taken() == []


async def test_the_sungrows_value_is_written_before_its_switch(drive, sg110cx):
    driver = await drive("sungrow_sg110cx", sg110cx, nameplate_kw=110.0)
    assert await driver.read_setpoint() == 100

    await driver.write(37.5)
    assert sg110cx.taken() == [Write(1, SINGLE, 5007, [375]), Write(1, SINGLE, 5006, [0xAA])]
    assert await driver.read_setpoint() == 37.5

    await driver.write(100)
    assert sg110cx.taken() == [Write(1, SINGLE, 5007, [1_000]), Write(1, SINGLE, 5006, [0x55])]
    assert await driver.read_setpoint() == 100


async def test_a_sungrow_of_another_model_is_refused(drive, sg110cx):
    driver = await drive("sungrow_sg60ktl", sg110cx, nameplate_kw=110.0)

    with pytest.raises(DeviceRefused, match=r"Device type code .* reads 11270, expected 271 or 305 or"):
        await driver.identify()


async def test_a_missing_register_of_the_sungrow_costs_only_its_block(drive, sg110cx):
    del sg110cx.input[5005]
    driver = await drive("sungrow_sg110cx", sg110cx, nameplate_kw=110.0)

    readings = (await driver.poll()).readings

    assert readings["running_h"] is None
    assert readings["P_kW"] == pytest.approx(98.765)


@pytest.mark.parametrize("code", [0x010F, 0x0131, 0x0136, 0x0132])
async def test_the_generations_of_the_sg60ktl_are_one_type(drive, sg110cx, code):
    sg110cx.lay(4999, [code, 600], table=sg110cx.input)
    driver = await drive("sungrow_sg60ktl", sg110cx, nameplate_kw=60.0)

    await driver.identify()


async def test_the_sungrow_logger_takes_a_percentage_of_two_words(drive):
    device = Counterpart(unit=247)
    device.lay(8004, [10, 1], table=device.input)
    device.lay(8073, low_first("I", 12_045), table=device.input)
    device.lay(8079, high_first("Q", 31_204_000), table=device.input)
    device.lay(8095, [9, 1], table=device.input)
    device.lay(8143, [1_000, *low_first("I", 6_000)], table=device.input)
    device.lay(8154, low_first("i", 45_010), table=device.input)
    device.lay(8004, low_first("I", 1_000))
    device.lay(8033, [0])
    driver = await drive("sungrow_logger1000", device, nameplate_kw=600.0)

    await driver.identify()
    result = await driver.poll()
    assert result.readings == {
        "P_kW": pytest.approx(450.1),
        "E_kWh": 3_120_400,
        "E_day_kWh": 1_204.5,
        "faulty_count": 1,
        "inverters_on_count": 9,
        "inverters_off_count": 1,
    }
    assert result.readback == 100

    await driver.write(37.0)
    device.lay(8143, [370], table=device.input)
    assert device.taken() == [Write(247, MULTIPLE, 8004, [370, 0]), Write(247, SINGLE, 8033, [1])]
    assert await driver.read_setpoint() == 37

    await driver.write(100)
    assert device.taken() == [Write(247, MULTIPLE, 8004, [1_000, 0]), Write(247, SINGLE, 8033, [0])]


# --- Growatt (Modbus RTU Protocol II V1.20, V1.24): PDU = printed number


async def test_the_growatts_limit_is_made_volatile_before_it_is_written(drive):
    device = Counterpart(unit=1)
    device.lay(0, [1, 0, 1, 255, 0, 0, *high_first("I", 600_000)])
    device.lay(0, [0] * 125, table=device.input)
    device.lay(0, [1], table=device.input)
    device.lay(35, high_first("I", 543_210), table=device.input)
    device.lay(53, [*high_first("I", 1_873), *high_first("I", 4_021_000)], table=device.input)
    device.lay(102, [*high_first("I", 600_000), 7, 0], table=device.input)
    device.lay(113, [100], table=device.input)
    driver = await drive("growatt_max_60ktl", device, nameplate_kw=60.0)

    await driver.identify()
    result = await driver.poll()
    assert result.readings == {
        "P_kW": pytest.approx(54.321),
        "E_kWh": 402_100,
        "E_day_kWh": 187.3,
        "P_limit_kW": 60,
        "P_real_pct": 100,
        "work_state": 1,
        "derating_state": 7,
        "fault_code": 0,
    }
    assert result.readback == 100  # 255 is no limit

    await driver.write(37.0)
    assert device.taken() == [Write(1, SINGLE, 2, [0]), Write(1, SINGLE, 3, [37])]
    assert await driver.read_setpoint() == 37
    await driver.write(100)
    assert device.taken() == [Write(1, SINGLE, 3, [100])]


# --- SolarEdge (Power Control Open Protocol 1.3): SunSpec high word first, control block low word first


@pytest.fixture
def solaredge() -> Counterpart:
    device = Counterpart(unit=1)
    device.lay(40000, SUNS)
    device.lay(40002, [1, 65, *text("SolarEdge", 16), *text("SE66.6K", 16), *text("", 8)])
    device.lay(40044, [*text("0004.0018.0518", 8), *text("7E0A1B2C", 16), 1])
    device.lay(40069, [103, 50, *[0xFFFF] * 50])
    device.lay(40083, [5432, 1])
    device.lay(40085, [4_998, *high_first("h", -2)])
    device.lay(40089, [*high_first("h", -35), 1])
    device.lay(40093, [*high_first("I", 4_021_000), 2])
    device.lay(40100, [612, 2])
    device.lay(40103, [4_850])
    device.lay(40106, [*high_first("h", -2), 5, 12])
    device.lay(61440, [0, 100, *low_first("f", 1.0)])  # F000
    device.lay(61762, low_first("i", 1))  # F142
    device.lay(62208, [0] * 36)  # F300 to F323
    device.lay(62212, low_first("f", 66_600.0))  # F304
    device.lay(62220, low_first("f", 66_600.0))  # F30C
    device.lay(62224, low_first("I", 120))  # F310
    device.lay(62226, low_first("f", 100.0))  # F312
    device.lay(62242, low_first("f", 100.0))  # F322
    return device


SOLAREDGE_READINGS = {
    "P_kW": pytest.approx(54.32),
    "E_kWh": 402_100,
    "Q_kvar": pytest.approx(-0.35),
    "f_Hz": pytest.approx(49.98),
    "P_DC_kW": pytest.approx(61.2),
    "T_sink_degC": 48.5,
    "work_state": 5,
    "vendor_state": 12,
}


@pytest.mark.parametrize("profile", ["solaredge", "solaredge_sunspec"])
async def test_the_solaredge_is_recognised_and_read(drive, solaredge, profile):
    driver = await drive(profile, solaredge, nameplate_kw=66.6)

    await driver.identify()

    assert (await driver.poll()).readings == SOLAREDGE_READINGS
    assert solaredge.taken() == []


async def test_the_solaredges_dynamic_limit_has_its_low_word_first(drive, solaredge):
    driver = await drive("solaredge", solaredge, nameplate_kw=66.6)

    await driver.write(37.0)
    # 37.0 is 0x42140000.
    assert solaredge.taken() == [
        Write(1, SINGLE, 0xF300, [1]),
        Write(1, MULTIPLE, 0xF322, [0x0000, 0x4214]),
    ]
    assert await driver.read_setpoint() == 37

    await driver.write(100.0)
    assert solaredge.taken() == [Write(1, MULTIPLE, 0xF322, low_first("f", 100.0))]


async def test_the_solaredges_fallback_takes_our_value_and_is_written_once(drive, solaredge):
    driver = await drive("solaredge", solaredge, nameplate_kw=66.6)

    await driver.arm_fallback(30.0)
    await driver.keep_alive(80.0)
    assert solaredge.taken() == [
        Write(1, MULTIPLE, 0xF310, [60, 0]),
        Write(1, MULTIPLE, 0xF312, low_first("f", 30.0)),
        Write(1, SINGLE, 0xF300, [1]),
        Write(1, MULTIPLE, 0xF322, low_first("f", 80.0)),
    ]

    await driver.arm_fallback(30.0)
    assert solaredge.taken() == []


async def test_a_solaredge_without_advanced_control_is_not_committed_from_here(drive, solaredge):
    solaredge.lay(61762, low_first("i", 0))
    driver = await drive("solaredge", solaredge, nameplate_kw=66.6)

    with pytest.raises(
        DeviceRefused, match=r"AdvancedPwrControlEn .* reads 0, expected 1; enable and commit"
    ):
        await driver.write(37.0)

    assert solaredge.taken() == []


@pytest.mark.parametrize("base_w", [0.0, 33_300.0])
async def test_a_solaredge_whose_limit_counts_from_another_base_is_refused(drive, solaredge, base_w):
    solaredge.lay(62220, low_first("f", base_w))
    driver = await drive("solaredge", solaredge, nameplate_kw=66.6)

    with pytest.raises(DeviceRefused, match=r"is rated .* kW, configured are 66\.6 kW"):
        await driver.identify()


async def test_the_solaredges_simple_limit_is_one_register(drive, solaredge):
    driver = await drive("solaredge_sunspec", solaredge, nameplate_kw=66.6)

    await driver.write(37.0)

    assert solaredge.taken() == [Write(1, SINGLE, 0xF001, [37])]
    assert await driver.read_setpoint() == 37


# --- Huawei (huawei-solar 3.0.7, evcc): PDU = printed number


@pytest.fixture
def smartlogger() -> Counterpart:
    device = Counterpart(unit=0)
    device.lay(40428, [1_000])
    device.lay(40521, high_first("I", 612_000))
    device.lay(40525, high_first("i", 598_765))
    device.lay(40543, [1])
    device.lay(40560, [*high_first("I", 24_100_000), *high_first("I", 13_104)])
    device.lay(40568, high_first("I", 7))
    device.lay(40699, [0])
    device.lay(40802, high_first("I", 100))
    device.lay(41938, high_first("I", 600_000))
    device.lay(41947, [0, 180, 0])
    return device


async def test_the_smartlogger_is_recognised_and_read(drive, smartlogger):
    driver = await drive("huawei_smartlogger_3000a", smartlogger, nameplate_kw=600.0)

    await driver.identify()
    result = await driver.poll()

    assert result.readings == {
        "P_kW": pytest.approx(598.765),
        "P_DC_kW": 612,
        "E_kWh": 2_410_000,
        "E_day_kWh": 1_310.4,
        "target_pct": 100,
        "plant_state": 1,
        "locked_state": 0,
        "alarm_code": 7,
    }
    assert result.readback == 100


async def test_the_smartloggers_limit_is_in_tenths_of_a_percent(drive, smartlogger):
    driver = await drive("huawei_smartlogger_3000a", smartlogger, nameplate_kw=600.0)

    await driver.write(37.5)
    await driver.write(100)

    assert smartlogger.taken() == [Write(0, SINGLE, 40428, [375]), Write(0, SINGLE, 40428, [1_000])]


async def test_the_smartlogger_is_told_to_stop_last(drive, smartlogger):
    driver = await drive("huawei_smartlogger_3000a", smartlogger, nameplate_kw=600.0)

    await driver.arm_fallback(100.0)

    assert smartlogger.taken() == [
        Write(0, SINGLE, 41948, [300]),
        Write(0, SINGLE, 41949, [1]),
        Write(0, SINGLE, 41947, [1]),
    ]


async def test_the_sun2000_takes_a_derating_in_tenths_of_a_percent(drive):
    device = Counterpart(unit=1)
    device.lay(30073, high_first("I", 60_000))
    device.lay(32080, [*high_first("i", 54_321), *high_first("i", -1_200), 999, 5_001])
    device.lay(32087, [425])
    device.lay(32089, [0x201, 0])
    device.lay(32106, high_first("I", 40_210_012))
    device.lay(32114, high_first("I", 18_420))
    device.lay(40125, [1_000])
    driver = await drive("huawei_sun2000", device, nameplate_kw=60.0)

    await driver.identify()
    await driver.write(37.5)
    result = await driver.poll()

    assert device.taken() == [Write(1, SINGLE, 40125, [375])]
    assert result.readback == 37.5
    assert result.readings == {
        "P_kW": pytest.approx(54.321),
        "Q_kvar": -1.2,
        "f_Hz": 50.01,
        "T_inside_degC": 42.5,
        "E_kWh": pytest.approx(402_100.12),
        "E_day_kWh": 184.2,
        "work_state": 0x201,
        "fault_code": 0,
    }


# --- blue'Log (meteocontrol help centre, bluelog-mqtt, NRGMeterHub): function 16 alone, low word first


async def test_the_bluelogs_marketer_sets_the_time_before_the_value(drive):
    device = Counterpart(unit=10)
    device.lay(5000, [*low_first("f", 100.0), *low_first("f", 0.0)])
    device.lay(5006, low_first("I", 0))
    driver = await drive("bluelog_xc_rpc", device, nameplate_kw=500.0)

    await driver.write(37.0)

    assert device.taken() == [
        Write(10, MULTIPLE, 5006, [900, 0]),
        Write(10, MULTIPLE, 5000, [0x0000, 0x4214]),
    ]
    assert await driver.read_setpoint() == 37
    await driver.keep_alive(37.0)
    assert device.taken() == [Write(10, MULTIPLE, 5000, [0x0000, 0x4214])]


async def test_the_bluelogs_registers_are_what_the_project_says(drive):
    device = Counterpart(unit=10)
    device.lay(6000, low_first("f", 100.0))
    device.lay(6010, [0])
    parameters = {"limit_address": 6000, "validity_address": 6010, "validity_type": "u16", "validity_s": 60}
    driver = await drive("bluelog_xc_rpc", device, nameplate_kw=500.0, parameters=parameters)

    await driver.write(37.0)

    assert device.taken() == [
        Write(10, MULTIPLE, 6010, [60]),
        Write(10, MULTIPLE, 6000, [0x0000, 0x4214]),
    ]


async def test_the_bluelogs_grid_operator_writes_one_setpoint_and_reads_the_plant(drive):
    device = Counterpart(unit=1)
    device.lay(48, [word for _ in range(6) for word in low_first("f", 0.0)])
    device.lay(52, low_first("f", 250_000.0))
    device.lay(54, [0x0000, 0x7FC0])  # no meter at the point of connection
    device.lay(58, low_first("f", 2.0))
    device.lay(254, [*low_first("f", 321_500.0), *low_first("f", -4_000.0)])
    device.lay(258, [0xFFFF] * 4)
    device.lay(262, low_first("f", 12.0))
    device.lay(5000, low_first("f", 100.0))
    driver = await drive("bluelog_xc_power_control", device, nameplate_kw=500.0)

    await driver.write(37.0)
    result = await driver.poll()

    assert device.taken() == [Write(1, MULTIPLE, 5000, [0x0000, 0x4214])]
    assert result.readback == 37
    assert result.readings == {
        "P_kW": 321.5,
        "Q_kvar": -4,
        "P_setpoint_kW": 250,
        "inverters_count": 12,
        "control_state": 2,
    }


# --- a device of any make with the three registers of a limit interface


async def test_a_generic_devices_registers_are_what_the_project_says(drive):
    device = Counterpart(unit=1)
    device.lay(1000, low_first("f", 100.0))
    device.lay(2000, [100], table=device.input)
    device.lay(2010, low_first("i", -4_500), table=device.input)
    parameters = {
        "limit_address": 1000,
        "limit_type": "f32",
        "limit_scale": 1,
        "readback_address": 2000,
        "readback_table": "input",
        "readback_type": "s16",
        "readback_scale": 1,
        "tolerance": 0.5,
        "power_address": 2010,
        "power_table": "input",
        "power_scale": 0.01,
        "power_sign": -1,
        "word_order": "low_first",
    }
    driver = await drive("generic_modbus", device, nameplate_kw=50.0, parameters=parameters)

    await driver.write(37.0)
    device.lay(2000, [37], table=device.input)
    result = await driver.poll()

    assert device.taken() == [Write(1, MULTIPLE, 1000, [0x0000, 0x4214])]
    assert result.readings == {"P_kW": 45}
    assert result.readback == 37


async def test_a_generic_device_has_the_public_registers_unless_said_otherwise(drive):
    device = Counterpart(unit=1)
    device.lay(32, [10_000])
    device.lay(50, [10_000, *high_first("i", 45_000)])
    driver = await drive("generic_modbus", device, nameplate_kw=50.0)

    await driver.write(37.5)
    result = await driver.poll()

    assert device.taken() == [Write(1, SINGLE, 32, [3_750])]
    assert result.readings == {"P_kW": 45}
    assert result.readback == 100  # what is in force, not what was asked for
