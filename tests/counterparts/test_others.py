"""Meters, chargers, batteries and contacts of another make than ours: each map is laid by hand from the documents.

Numbers are PDU addresses, as they go on the wire. None of them comes from a profile.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest
from pyModbusTCP.constants import EXP_DATA_ADDRESS, EXP_NONE
from pyModbusTCP.server import DataHandler

from edge.drivers.errors import DeviceRefused
from tests.counterparts.server import MULTIPLE, SINGLE, Counterpart, Write, high_first, low_first, text

COILS = 15

# --- meters: 12.34 kW are drawn from the grid, which is -12.34 kW towards it


def meter(*, unit: int = 1, **tables: dict[int, list[int]]) -> Counterpart:
    device = Counterpart(unit=unit)
    for name, words in tables.items():
        for address, block in words.items():
            device.lay(address, block, table=getattr(device, name))
    return device


METERS = [
    pytest.param(
        name,
        meter(
            input={
                0x0C: high_first("f", 4110.0) + high_first("f", 4120.0) + high_first("f", 4110.0),
                0x34: high_first("f", 12_340.0),
                0x48: high_first("f", 4520.5) + high_first("f", 820.25),
            }
        ),
        {
            "P_kW": -12.34,
            "P_L1_kW": -4.11,
            "P_L2_kW": -4.12,
            "P_L3_kW": -4.11,
            "E_import_kWh": 4520.5,
            "E_export_kWh": 820.25,
        },
        id=name,
    )
    for name in ("eastron_sdm630", "eastron_sdm72")
]
METERS += [
    pytest.param(
        "carlo_gavazzi_em340",
        meter(
            input={
                0x28: low_first("i", 123_400),
                0x34: low_first("i", 1_204_005),
                0x4E: low_first("i", 82_025),
            }
        ),
        {"P_kW": -12.34, "E_import_kWh": 120_400.5, "E_export_kWh": 8202.5},
        id="carlo_gavazzi_em340",
    ),
    pytest.param(
        "carlo_gavazzi_em24",
        # What the EM340 has at 0x34 and 0x4E is something else here.
        meter(
            input={
                0x28: low_first("i", 123_400),
                0x34: low_first("i", 777),
                0x42: low_first("i", 1_204_005),
                0x4E: low_first("i", 777),
                0x5C: low_first("i", 82_025),
            }
        ),
        {"P_kW": -12.34, "E_import_kWh": 120_400.5, "E_export_kWh": 8202.5},
        id="carlo_gavazzi_em24",
    ),
    pytest.param(
        "janitza_umg604",
        meter(
            holding={
                1369: high_first("f", 12_340.0),
                9851: [*high_first("f", 65_536_000.0), *[0] * 10, *high_first("f", 4_096_000.0)],
            }
        ),
        {"P_kW": -12.34, "E_import_kWh": 65_536, "E_export_kWh": 4096},
        id="janitza_umg604",
    ),
    pytest.param(
        "janitza_umg96rm",
        meter(
            holding={
                19026: high_first("f", 12_340.0),
                19068: [*high_first("f", 65_536_000.0), *[0] * 6, *high_first("f", 4_096_000.0)],
            }
        ),
        {"P_kW": -12.34, "E_import_kWh": 65_536, "E_export_kWh": 4096},
        id="janitza_umg96rm",
    ),
    pytest.param(
        "janitza_b23",
        meter(holding={0x4A52: high_first("f", 12_340.0)}),
        {"P_kW": -12.34},
        id="janitza_b23",
    ),
    pytest.param(
        "schneider_iem3000",
        meter(
            holding={
                3059: high_first("f", 12.34),
                3203: high_first("q", 120_400_500),
                3207: high_first("q", 8_202_500),
            }
        ),
        {"P_kW": -12.34, "E_import_kWh": 120_400.5, "E_export_kWh": 8202.5},
        id="schneider_iem3000",
    ),
    pytest.param(
        "schneider_pm5000",
        meter(holding={3059: high_first("f", 12.34)}),
        {"P_kW": -12.34},
        id="schneider_pm5000",
    ),
    pytest.param(
        "sma_energy_meter",
        # Feed-in is positive here, and each direction has a register of its own.
        meter(
            unit=2,
            holding={
                31249: high_first("i", -12_340),
                30865: high_first("i", 12_340),
                30867: high_first("i", 0),
                30581: high_first("I", 120_400_500),
                30583: high_first("I", 8_202_500),
            },
        ),
        {
            "P_kW": -12.34,
            "P_import_kW": 12.34,
            "P_export_kW": 0,
            "E_import_kWh": 120_400.5,
            "E_export_kWh": 8202.5,
        },
        id="sma_energy_meter",
    ),
]


@pytest.mark.parametrize(("name", "device", "expected"), METERS)
async def test_a_meter_counts_what_is_drawn_from_the_grid_as_negative(drive, name, device, expected):
    driver = await drive(name, device, nameplate_kw=None)

    readings = (await driver.poll()).readings

    assert readings == pytest.approx(expected, rel=1e-6)
    assert device.taken() == []


@pytest.mark.parametrize(("name", "device", "expected"), METERS)
async def test_a_meter_that_is_wired_backwards_is_turned_by_its_sign(drive, name, device, expected):
    documented = -1 if name != "sma_energy_meter" else 1
    driver = await drive(name, device, nameplate_kw=None, parameters={"sign": -documented})

    assert (await driver.poll()).readings["P_kW"] == pytest.approx(-expected["P_kW"], rel=1e-6)


async def test_the_meter_at_a_smart_logger_has_the_sign_that_was_found_on_site(drive):
    device = meter(unit=11, holding={32278: high_first("i", 12_340)})

    for sign in (1, -1):
        driver = await drive("huawei_meter", device, nameplate_kw=None, parameters={"sign": sign})
        assert (await driver.poll()).readings == {"P_kW": sign * 12.34}


# --- Alfen Eve (evcc, NexoWatt)


def charger(*, offset: int = 0) -> Counterpart:
    """Socket 1 of an Alfen Eve: 11 kW, a car charges with 14 A."""
    device = Counterpart(unit=1)
    blocks = {
        306: high_first("f", 229.5) + high_first("f", 230.5) + high_first("f", 231.5),
        320: high_first("f", 14.0) * 3,
        344: high_first("f", 9660.0),
        374: list(struct.unpack(">4H", struct.pack(">d", 18_250_500.0))),
        1200: [1, *text("C2", 5), *high_first("f", 14.0), *high_first("I", 61)],
        1210: [*high_first("f", 14.0), *high_first("f", 6.0), 1, 3],
    }
    for address, words in blocks.items():
        device.lay(address + offset, words)
    return device


async def test_a_charger_draws_from_the_grid_and_shows_its_currents(drive):
    device = charger()
    driver = await drive("alfen_eve", device, nameplate_kw=11.04)

    await driver.identify()
    readings = (await driver.poll()).readings

    assert readings["P_kW"] == pytest.approx(-9.66)
    assert readings["E_kWh"] == pytest.approx(18_250.5)
    assert (readings["U_L1_V"], readings["U_L3_V"], readings["I_L2_A"]) == (229.5, 231.5, 14)
    assert (readings["I_limit_A"], readings["I_safe_A"], readings["Phases_count"]) == (14, 6, 3)
    assert device.taken() == []


async def test_a_charger_takes_a_current_per_phase_and_none_between_0_and_6_ampere(drive):
    device = charger()
    driver = await drive("alfen_eve", device, nameplate_kw=11.04)

    # 11.04 kW are 16 A at 230 V on three phases.
    for percent, ampere in ((100, 16.0), (50, 8.0), (37.5, 6.0), (37, 0.0), (0, 0.0)):
        await driver.write(percent)

        assert device.taken() == [Write(1, MULTIPLE, 1210, high_first("f", ampere))]
        assert await driver.read_setpoint() == pytest.approx(percent)


async def test_a_charger_is_kept_at_its_setpoint_by_the_setpoint(drive):
    device = charger()
    driver = await drive("alfen_eve", device, nameplate_kw=11.04)

    await driver.arm_fallback(100)
    assert device.taken() == []
    await driver.keep_alive(50)
    assert device.taken() == [Write(1, MULTIPLE, 1210, high_first("f", 8.0))]


async def test_a_charger_on_one_phase_has_its_power_on_that(drive):
    device = charger()
    driver = await drive("alfen_eve", device, nameplate_kw=3.68, parameters={"phases": 1})

    await driver.write(50)

    assert device.taken() == [Write(1, MULTIPLE, 1210, high_first("f", 8.0))]


@pytest.mark.parametrize(("is_at", "believed"), [(0, -1), (-1, 0)])
async def test_a_charger_whose_addresses_are_off_by_one_is_not_controlled(drive, is_at, believed):
    device = charger(offset=is_at)
    for address in range(1190, 1220):
        device.holding.setdefault(address, 0)

    wrong = await drive("alfen_eve", device, nameplate_kw=11.04, parameters={"address_offset": believed})
    with pytest.raises(DeviceRefused, match="try the other address_offset"):
        await wrong.identify()

    right = await drive("alfen_eve", device, nameplate_kw=11.04, parameters={"address_offset": is_at})
    await right.identify()
    await right.write(50)
    assert device.taken() == [Write(1, MULTIPLE, 1210 + is_at, high_first("f", 8.0))]


# --- Victron GX (dbus_modbustcp)


@pytest.fixture
def gx() -> Counterpart:
    """An ESS that draws 1.2, 0.9 and 1.1 kW from the grid, and discharges its battery with 5 kW."""
    device = Counterpart(unit=100)
    device.lay(800, text("C0FFEE123456", 6))
    device.lay(817, [2200, 1900, 2100, 1200, 900, 1100])
    device.lay(840, [521, *high_first("h", -960), *high_first("h", -5000), 74])
    device.lay(850, [2500])
    device.lay(2706, [0xFFFF])
    device.lay(2716, high_first("i", 0))
    device.lay(2902, [1])
    return device


async def test_what_a_gx_draws_is_negative_and_what_its_battery_gives_is_positive(drive, gx):
    driver = await drive("victron_gx", gx, nameplate_kw=15.0)

    readings = (await driver.poll()).readings

    assert [readings[f"P_grid_L{phase}_kW"] for phase in (1, 2, 3)] == [-1.2, -0.9, -1.1]
    assert [readings[f"P_load_L{phase}_kW"] for phase in (1, 2, 3)] == [2.2, 1.9, 2.1]
    assert (readings["P_battery_kW"], readings["SoC_pct"], readings["U_DC_V"]) == (5, 74, 52.1)
    assert (readings["P_DC_PV_kW"], readings["ESS_mode"]) == (2.5, 1)


async def test_a_gx_is_told_what_to_draw_by_the_override_that_is_not_stored(drive, gx):
    driver = await drive("victron_gx", gx, nameplate_kw=15.0)

    # Half of 15 kW towards the grid: the GX counts what is drawn.
    await driver.write(50)
    assert gx.taken() == [Write(100, MULTIPLE, 2716, high_first("i", -7500))]
    assert await driver.read_setpoint() == 50
    await driver.write(-20)
    assert gx.taken() == [Write(100, MULTIPLE, 2716, high_first("i", 3000))]
    await driver.keep_alive(-20)
    assert gx.taken() == [Write(100, MULTIPLE, 2716, high_first("i", 3000))]


@pytest.mark.parametrize("name", ["victron_gx", "victron_gx_feed_in"])
async def test_a_gx_under_external_control_is_left_alone(drive, gx, name):
    gx.lay(2902, [3])
    driver = await drive(name, gx, nameplate_kw=15.0)

    with pytest.raises(DeviceRefused, match="ESS modes"):
        await driver.write(0)

    assert gx.taken() == []


async def test_the_feed_in_of_a_gx_is_limited_in_steps_of_100_w_and_released(drive, gx):
    driver = await drive("victron_gx_feed_in", gx, nameplate_kw=15.0)

    assert await driver.read_setpoint() == 100
    await driver.write(30)
    assert gx.taken() == [Write(100, SINGLE, 2706, [45])]
    assert await driver.read_setpoint() == 30
    await driver.write(0)
    assert gx.taken() == [Write(100, SINGLE, 2706, [0])]
    await driver.write(100)
    assert gx.taken() == [Write(100, SINGLE, 2706, [0xFFFF])]
    assert await driver.read_setpoint() == 100


# --- SG Ready (OpenEMS): a module with eight relays, K1 and K2 at the fifth and sixth


class RelayModule(Counterpart):
    def __init__(self) -> None:
        super().__init__(unit=1)
        self.relays = [False] * 8

    def read_coils(self, address: int, count: int, srv_info: Any) -> DataHandler.Return:  # noqa: ARG002
        if address + count > len(self.relays):
            return DataHandler.Return(EXP_DATA_ADDRESS)
        return DataHandler.Return(EXP_NONE, data=self.relays[address : address + count])

    def write_coils(self, address: int, bits_l: list[bool], srv_info: Any) -> DataHandler.Return:
        frame = srv_info.recv_frame
        self.writes.append(Write(frame.mbap.unit_id, frame.pdu.func_code, address, [int(b) for b in bits_l]))
        self.relays[address : address + len(bits_l)] = bits_l
        return DataHandler.Return(EXP_NONE)


async def test_the_modes_of_a_heat_pump_are_two_contacts_that_change_together(drive):
    device = RelayModule()
    driver = await drive("sg_ready_heat_pump", device, nameplate_kw=8.0, parameters={"first_coil": 4})

    assert await driver.read_setpoint() == 2  # both open: normal
    for mode, contacts in ((1, [1, 0]), (3, [0, 1]), (4, [1, 1]), (2, [0, 0])):
        await driver.write(mode)

        assert device.taken() == [Write(1, COILS, 4, contacts)]
        result = await driver.poll()
        assert (result.readback, result.readings) == (mode, {"SG_mode": mode})
    assert device.relays == [False] * 8


@pytest.mark.parametrize("between", [1.5, 2.4])
async def test_there_is_no_mode_between_two(drive, between):
    device = RelayModule()
    driver = await drive("sg_ready_heat_pump", device, nameplate_kw=8.0)

    with pytest.raises(DeviceRefused):
        await driver.write(between)

    assert device.taken() == []


# --- iWell Cube: nothing is public; the map is one that a project may have


IWELL = {
    "setpoint_address": 200,
    "setpoint_type": "s32",
    "setpoint_scale": 0.001,
    "power_address": 210,
    "power_type": "s32",
    "power_scale": 0.001,
    "power_sign": -1,
    "soc_address": 212,
    "soc_scale": 0.1,
    "words": "low_first",
}


@pytest.fixture
def cube() -> Counterpart:
    device = Counterpart(unit=1)
    device.lay(200, low_first("i", 0))
    device.lay(210, [*low_first("i", 40_000), 815])  # charges with 40 kW, 81.5 %
    device.lay(220, [0, 0])  # remote control, heartbeat
    return device


async def test_a_battery_of_a_project_charges_and_discharges_by_its_own_sign(drive, cube):
    parameters = IWELL | {"setpoint_sign": -1}
    driver = await drive("iwell_cube_modbus_setpoint", cube, nameplate_kw=100.0, parameters=parameters)

    assert (await driver.poll()).readings == {"P_kW": -40, "SoC_pct": 81.5}
    await driver.write(-25)
    assert cube.taken() == [Write(1, MULTIPLE, 200, low_first("i", 25_000))]
    assert await driver.read_setpoint() == -25


async def test_a_battery_of_a_project_with_a_switch_and_a_heartbeat_is_switched_and_kept_alive(drive, cube):
    parameters = IWELL | {"enable_address": 220, "enable_on": 3, "enable_off": 1, "heartbeat_address": 221}
    driver = await drive("iwell_cube_modbus", cube, nameplate_kw=100.0, parameters=parameters)

    await driver.write(40)
    assert cube.taken() == [
        Write(1, MULTIPLE, 200, low_first("i", 40_000)),
        Write(1, SINGLE, 220, [3]),
    ]
    await driver.keep_alive(40)
    await driver.keep_alive(40)
    assert cube.taken() == [Write(1, SINGLE, 221, [1]), Write(1, SINGLE, 221, [2])]
    await driver.write(100)
    assert cube.taken()[-1] == Write(1, SINGLE, 220, [1])
    assert await driver.read_setpoint() == 100


async def test_a_battery_of_a_project_without_a_heartbeat_has_no_fallback_of_its_own(drive, cube):
    driver = await drive("iwell_cube_modbus", cube, nameplate_kw=100.0, parameters=IWELL)

    with pytest.raises(DeviceRefused, match="no fallback of its own"):
        await driver.keep_alive(40)
