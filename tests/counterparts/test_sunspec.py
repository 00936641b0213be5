"""What our walk over a SunSpec device finds is what pysunspec2 finds: the same models, places and values.

The device is a map of words on a server of a third make, laid by hand from the SunSpec models: with models that
are there but hold nothing, as an SMA Inverter Manager has them, and one that nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sunspec2.modbus.client import SunSpecModbusClientDeviceTCP

from edge.drivers.errors import DeviceRefused
from edge.drivers.sunspec import Models, models_from
from tests.counterparts.server import MULTIPLE, Counterpart, Line, Write, high_first, text

UNIT = 1
BASES = [40000, 50000, 0]
NAN, NO_SCALE = 0xFFFF, 0x8000


def blank(number: int, length: int) -> list[int]:
    """A model that is there for compatibility: nothing in it is implemented."""
    return [number, length, *[NAN] * length]


def model(number: int, length: int, values: dict[int, list[int]]) -> list[int]:
    """A model with these words at these offsets from its id."""
    words = blank(number, length)
    for offset, part in values.items():
        words[offset : offset + len(part)] = part
    assert len(words) == 2 + length
    return words


COMMON = model(
    1,
    66,
    {
        2: text("Fronius", 16),
        18: text("Symo 60", 16),
        34: text("", 8),
        42: text("3.5.1", 8),
        50: text("30420042", 16),
        66: [UNIT],
    },
)
INVERTER = model(
    103,
    50,
    {
        2: [7_550],
        6: high_first("h", -2),
        14: [*high_first("h", 5_432), 1],
        16: [4_998, *high_first("h", -2)],
        20: [*high_first("h", -35), 1],
        24: [*high_first("I", 4_021_000), 2],
        28: [NO_SCALE, NAN, NO_SCALE, 0x8000, NO_SCALE, 0x8000],
        37: [NO_SCALE, 4],
        40: high_first("I", 0),
    },
)
INVERTER_FLOAT = model(
    113,
    60,
    {
        22: high_first("f", 54_320.0),
        24: high_first("f", 49.98),
        32: high_first("f", 402_100_000.0),
        48: [5],
        50: high_first("I", 2),
    },
)
NAMEPLATE = model(120, 26, {2: [4, 6_000, 1]})
SETTINGS = model(121, 30, {2: [5_000], 22: [1]})
CONTROLS = model(123, 24, {4: [1], 5: [10_000, 0, 0, 0, 0], 23: high_first("h", -2)})
MEASUREMENT = model(
    701,
    153,
    {
        2: [2, 1, 3, 1],
        6: high_first("I", 0),
        10: high_first("h", 5_432),
        12: high_first("h", -35),
        17: high_first("I", 49_980),
        19: high_first("Q", 402_100_000),
        113: [NO_SCALE, NO_SCALE, *high_first("h", -3), 1, NO_SCALE, NO_SCALE, 1, 0],
    },
)
CAPACITY = model(702, 50, {2: [6_000], 26: [5_000], 45: [1]})
AC_CONTROLS = model(
    704,
    65,
    {
        14: [0, 1_000, 1_000, 0, *high_first("I", 0), *high_first("I", 0)],
        54: high_first("h", -1),
    },
)
# As an Inverter Manager has them: volt-var and its like, and a weather station without sensors.
EMPTY = [*blank(127, 10), *blank(128, 14), *blank(131, 64), *blank(307, 11)]
UNKNOWN = blank(64_999, 7)

CHAINS = {
    "generic_sunspec_123": [*COMMON, *EMPTY, *INVERTER, *NAMEPLATE, *SETTINGS, *UNKNOWN, *CONTROLS],
    "fronius_sunspec": [*COMMON, *INVERTER, *NAMEPLATE, *SETTINGS, *CONTROLS, *EMPTY],
    "generic_sunspec_123_float": [*COMMON, *INVERTER_FLOAT, *NAMEPLATE, *SETTINGS, *EMPTY, *CONTROLS],
    "generic_sunspec_704": [*COMMON, *UNKNOWN, *MEASUREMENT, *CAPACITY, *EMPTY, *AC_CONTROLS],
}


def device(chain: list[int], *, base: int) -> Counterpart:
    counterpart = Counterpart(unit=UNIT)
    counterpart.lay(base, [0x5375, 0x6E53, *chain, 0xFFFF, 0])
    return counterpart


@contextmanager
def pysunspec(line: Line, *, unit: int = UNIT) -> Iterator[Any]:
    """The device as pysunspec2 scans it."""
    client = SunSpecModbusClientDeviceTCP(slave_id=unit, ipaddr="127.0.0.1", ipport=line.port, timeout=5)
    try:
        client.connect()
        client.scan()
        yield client
    finally:
        client.close()


def theirs(client: Any) -> list[tuple[int, int, int]]:
    """Id, address and length of the models that pysunspec2 found, in the order of their places."""
    by_id = {key: models for key, models in client.models.items() if isinstance(key, int)}
    return sorted(
        ((each.model_id, each.model_addr, each.model_len) for models in by_id.values() for each in models),
        key=lambda found: found[1],
    )


async def ours(counterpart: Counterpart, base: int) -> Models | None:
    async def read(address: int, count: int) -> list[int]:
        words = [counterpart.holding.get(one) for one in range(address, address + count)]
        if None in words:
            raise DeviceRefused("no such register")
        return [word for word in words if word is not None]

    return await models_from(base, read)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", sorted(CHAINS))
async def test_the_same_models_are_found_at_the_same_places(line, name, base):
    counterpart = device(CHAINS[name], base=base)
    line.put(counterpart)

    models = await ours(counterpart, base)

    assert models is not None
    with pysunspec(line) as client:
        assert [tuple(each) for each in models] == theirs(client)


# Our telemetry, and what pysunspec2 says of the points it is made of.
READINGS: dict[str, dict[str, Callable[[Any], float]]] = {
    "generic_sunspec_123": {
        "P_kW": lambda client: client.models[103][0].W.cvalue / 1000,
        "E_kWh": lambda client: client.models[103][0].WH.cvalue / 1000,
        "f_Hz": lambda client: client.models[103][0].Hz.cvalue,
        "work_state": lambda client: client.models[103][0].St.cvalue,
        "event_code": lambda client: client.models[103][0].Evt1.cvalue,
    },
    "generic_sunspec_123_float": {
        "P_kW": lambda client: client.models[113][0].W.cvalue / 1000,
        "E_kWh": lambda client: client.models[113][0].WH.cvalue / 1000,
        "f_Hz": lambda client: client.models[113][0].Hz.cvalue,
        "work_state": lambda client: client.models[113][0].St.cvalue,
        "event_code": lambda client: client.models[113][0].Evt1.cvalue,
    },
    "generic_sunspec_704": {
        "P_kW": lambda client: client.models[701][0].W.cvalue / 1000,
        "E_kWh": lambda client: client.models[701][0].TotWhInj.cvalue / 1000,
        "f_Hz": lambda client: client.models[701][0].Hz.cvalue,
        "work_state": lambda client: client.models[701][0].InvSt.cvalue,
        "alarm_code": lambda client: client.models[701][0].Alrm.cvalue,
    },
}
READINGS["fronius_sunspec"] = READINGS["generic_sunspec_123"]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", sorted(CHAINS))
async def test_the_same_values_are_read_there(drive, line, name, base):
    driver = await drive(name, device(CHAINS[name], base=base), nameplate_kw=50.0)

    await driver.identify()
    readings = (await driver.poll()).readings

    with pysunspec(line) as client:
        expected = {key: value(client) for key, value in READINGS[name].items()}
    assert readings == pytest.approx(expected)
    assert readings["P_kW"] == pytest.approx(54.32)
    assert readings["E_kWh"] == pytest.approx(402_100)


@pytest.mark.parametrize("name", sorted(CHAINS.keys() - {"generic_sunspec_704"}))
async def test_a_limit_of_model_123_is_what_pysunspec_reads(drive, line, name):
    counterpart = device(CHAINS[name], base=40000)
    driver = await drive(name, counterpart, nameplate_kw=50.0)

    await driver.write(37.5)

    with pysunspec(line) as client:
        controls = client.models[123][0]
        assert (controls.WMaxLimPct.cvalue, controls.WMaxLim_Ena.cvalue) == (37.5, 1)
        at = controls.model_addr
        assert counterpart.taken() == [
            Write(UNIT, MULTIPLE, at + 5, [3_750]),
            Write(UNIT, MULTIPLE, at + 9, [1]),
        ]
    assert await driver.read_setpoint() == 37.5

    await driver.write(100)
    with pysunspec(line) as client:
        controls = client.models[123][0]
        assert (controls.WMaxLimPct.cvalue, controls.WMaxLim_Ena.cvalue) == (100, 0)
    assert await driver.read_setpoint() == 100


async def test_the_fallback_of_model_123_is_a_time(drive, line):
    counterpart = device(CHAINS["generic_sunspec_123"], base=40000)
    driver = await drive("generic_sunspec_123", counterpart, nameplate_kw=50.0)

    await driver.arm_fallback(100.0)

    with pysunspec(line) as client:
        controls = client.models[123][0]
        assert (controls.WMaxLimPct_RvrtTms.cvalue, controls.WMaxLim_Ena.cvalue) == (120, 0)
        assert counterpart.taken() == [Write(UNIT, MULTIPLE, controls.model_addr + 7, [120])]


async def test_a_limit_of_model_704_and_its_fallback_are_what_pysunspec_reads(drive, line):
    counterpart = device(CHAINS["generic_sunspec_704"], base=40000)
    driver = await drive("generic_sunspec_704", counterpart, nameplate_kw=50.0)

    await driver.write(37.5)
    await driver.arm_fallback(30.0)

    with pysunspec(line) as client:
        controls = client.models[704][0]
        assert (controls.WMaxLimPctEna.cvalue, controls.WMaxLimPct.cvalue) == (1, 37.5)
        assert (controls.WMaxLimPctRvrt.cvalue, controls.WMaxLimPctEnaRvrt.cvalue) == (30, 1)
        assert controls.WMaxLimPctRvrtTms.cvalue == 120
        at = controls.model_addr
    assert counterpart.taken() == [
        Write(UNIT, MULTIPLE, at + 14, [1, 375]),
        # The time is 32 bit, high word first.
        Write(UNIT, MULTIPLE, at + 16, [300, 1, 0, 120]),
    ]
    assert await driver.read_setpoint() == 37.5


async def test_a_nameplate_of_sunspec_is_what_limits_are_a_percentage_of(drive):
    driver = await drive("generic_sunspec_123", device(CHAINS["fronius_sunspec"], base=0), nameplate_kw=60.0)

    with pytest.raises(DeviceRefused, match="is rated 50 kW, configured are 60 kW"):
        await driver.identify()


async def test_a_fronius_is_told_from_another_maker(drive):
    other = [*COMMON]
    other[2:18] = text("SMA", 16)
    chain = [*other, *INVERTER, *NAMEPLATE, *SETTINGS, *CONTROLS]
    driver = await drive("fronius_sunspec", device(chain, base=40000), nameplate_kw=50.0)

    with pytest.raises(DeviceRefused, match=r"Mn .* reads 'SMA', expected 'Fronius'"):
        await driver.identify()


async def test_a_scale_that_a_device_has_not_costs_its_reading_alone(drive, line):
    inverter = [*INVERTER]
    inverter[17] = NO_SCALE  # of the frequency
    chain = [*COMMON, *inverter, *NAMEPLATE, *SETTINGS, *CONTROLS]
    driver = await drive("generic_sunspec_123", device(chain, base=40000), nameplate_kw=50.0)

    result = await driver.poll()

    assert result.readings["f_Hz"] is None
    assert result.readings["P_kW"] == pytest.approx(54.32)
    assert result.readback == 100


async def test_an_inverter_managers_fixed_registers_are_those_of_its_models(drive, line):
    # SMA prints where the models begin (40003, 40071, ...), and our profile names the registers in them.
    counterpart = Counterpart(unit=125)
    counterpart.lay(40000, [0x5375, 0x6E53])
    common = model(1, 66, {2: text("SMA", 16), 18: text("SMA Inverter Manager", 16), 66: [125]})
    rated_kw = model(120, 26, {3: [120, 3]})
    controls = model(123, 24, {5: [10_000], 9: [1], 23: high_first("h", -2)})
    # What stands between 123 and 127 is not printed.
    between = blank(64_998, 90)
    for address, words in {
        40003: common,
        40071: blank(11, 13),
        40086: blank(12, 98),
        40186: INVERTER,
        40238: rated_kw,
        40266: blank(121, 30),
        40298: blank(122, 44),
        40344: controls,
        40370: between,
        40462: blank(127, 10),
        40474: blank(128, 14),
        40490: [0xFFFF, 0],
    }.items():
        counterpart.lay(address - 1, words)
    driver = await drive("sma_stp60_im20", counterpart, nameplate_kw=120.0)

    await driver.identify()
    await driver.write(37.5)
    readings = (await driver.poll()).readings

    with pysunspec(line, unit=125) as client:
        assert client.models[120][0].WRtg.cvalue == 120_000
        assert readings["P_kW"] == pytest.approx(client.models[103][0].W.cvalue / 1000)
        assert readings["E_kWh"] == pytest.approx(client.models[103][0].WH.cvalue / 1000)
        assert client.models[123][0].WMaxLimPct.cvalue == 37.5
        assert client.models[123][0].model_addr == 40343
