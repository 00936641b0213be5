"""SunSpec: where a device has its models is found out, and found out again; what it lacks is said.

The device is a map of words, because its own oddities are the point here: where its map begins, what it refuses
and what it does not answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from edge.drivers.errors import DeviceRefused, DeviceUnreachable
from edge.drivers.modbus import ModbusDriver
from edge.drivers.sunspec import BASES, MAX_MODELS, Model, models_from
from edge.profiles.model import Profile
from edge.profiles.points import Table
from edge.profiles.reading import profile_from_builtins
from tests.drivers.maps import Map

SUNS = [0x5375, 0x6E53]
COMMON, INVERTER, CONTROLS = 1, 103, 123
NOT_IMPLEMENTED = 0xFFFF


def sunspec_profile(**changes: Any) -> Profile:
    source = {"source": "SunSpec model JSON", "confidence": "verified"}
    body: dict[str, Any] = {
        "name": "sunspec_under_test",
        "title": "SunSpec under test",
        "maker": "any",
        "model": "any",
        "category": "inverter",
        "protocol": "modbus_tcp",
        "verified_on_hardware": False,
        "source": "SunSpec",
        "sunspec": True,
        "max_read_gap": 10,
        "value_kind": "active_power_limit_pct",
        "points": {
            "maker": {**source, "name": "Mn", "model": 1, "address": 2, "type": "str", "length": 16},
            "power": {
                **source,
                "name": "W",
                "model": [101, 103],
                "address": 14,
                "type": "s16",
                "scale": 0.001,
                "scale_point": "power_sf",
                "unit": "kW",
                "nan": 0x8000,
            },
            "power_sf": {**source, "name": "W_SF", "model": [101, 103], "address": 15, "type": "s16"},
            "sun": {**source, "name": "GHI", "model": 302, "address": 2, "type": "u16", "unit": "W/m2"},
            "limit_pct": {
                **source,
                "name": "WMaxLimPct",
                "model": 123,
                "address": 5,
                "type": "u16",
                "access": "read_write",
                "scale_point": "limit_sf",
                "unit": "%",
            },
            "limit_time": {
                **source,
                "name": "WMaxLimPct_RvrtTms",
                "model": 123,
                "address": 6,
                "type": "u16",
                "access": "read_write",
            },
            "limit_on": {
                **source,
                "name": "WMaxLim_Ena",
                "model": 123,
                "address": 9,
                "type": "u16",
                "access": "read_write",
            },
            "limit_sf": {**source, "name": "WMaxLimPct_SF", "model": 123, "address": 23, "type": "s16"},
        },
        "limit": {
            "register": "limit_pct",
            "write_class": "volatile",
            "tolerance": 0.5,
            "set": [{"point": "limit_pct", "value": "$value"}, {"point": "limit_on", "value": 1}],
            "readback": "limit_pct",
        },
        "telemetry": {"P_kW": "power", "G_W/m2": "sun"},
        **changes,
    }
    return profile_from_builtins(body)


def lay(device: Map, base: int, *models: tuple[int, list[int]], ends: Iterable[int] = (0xFFFF, 0)) -> None:
    """Let a device have these models from here on, and nothing else."""
    device.words = {}
    device.put(base, SUNS)
    address = base + 2
    for number, body in models:
        device.put(address, [number, len(body), *body])
        address += 2 + len(body)
    device.put(address, ends)


def common(maker: str = "SMA") -> tuple[int, list[int]]:
    raw = maker.encode().ljust(32, b"\0")
    words = [int.from_bytes(raw[at : at + 2], "big") for at in range(0, 32, 2)]
    return COMMON, words + [0] * 50


def inverter(power_w: int = 12_300) -> tuple[int, list[int]]:
    body = [NOT_IMPLEMENTED] * 50
    body[12], body[13] = power_w // 100, 2
    return INVERTER, body


def controls(*, length: int = 24) -> tuple[int, list[int]]:
    body = [0] * 24
    body[3], body[7], body[21] = 100, 0, 0
    return CONTROLS, body[:length]


def driver_to(device: Map, profile: Profile | None = None) -> ModbusDriver:
    return ModbusDriver(session=device, profile=profile or sunspec_profile(), unit=1, nameplate_kw=60)


@pytest.mark.parametrize("base", BASES)
async def test_the_map_is_found_wherever_it_may_begin(base):
    device = Map()
    lay(device, base, common(), inverter(), controls())
    driver = driver_to(device)

    await driver.identify()
    result = await driver.poll()

    assert result.readings == {"P_kW": 12.3, "G_W/m2": None}
    assert result.readback == 100


async def test_models_that_nobody_knows_and_that_hold_nothing_are_stepped_over():
    device = Map()
    empty = (64_001, [NOT_IMPLEMENTED] * 40)
    lay(device, 40000, common(), empty, inverter(), (127, [NOT_IMPLEMENTED] * 10), (64_002, []), controls())

    assert (await driver_to(device).poll()).readings["P_kW"] == 12.3


async def test_the_first_of_several_models_counts():
    device = Map()
    lay(device, 40000, common(), inverter(5_000), inverter(6_000), controls())

    assert (await driver_to(device).poll()).readings["P_kW"] == 5


async def test_the_best_of_the_models_that_a_point_may_be_in_is_taken():
    device = Map()
    _, body = inverter(7_000)
    lay(device, 40000, inverter(5_000), (101, body), controls())

    assert (await driver_to(device).poll()).readings["P_kW"] == 7


@pytest.mark.parametrize("ends", [(0xFFFF, 0), (0, 0), (0xFFFF,), ()])
async def test_a_map_may_end_as_it_likes(ends):
    device = Map()
    lay(device, 40000, common(), inverter(), controls(), ends=ends)

    assert (await driver_to(device).poll()).readback == 100


async def test_the_walk_is_done_once_a_connection_and_its_way_is_kept():
    device = Map()
    lay(device, 50000, common(), inverter(), controls())
    driver = driver_to(device)
    await driver.identify()
    # The two places, and one command for each model but the first and for the end.
    assert [address for address, _ in device.reads[:2]] == [40000, 50000]
    assert len(device.reads) == 2 + 3
    walked = set(device.reads)
    device.reads.clear()

    await driver.poll()
    await driver.write(50)

    assert walked.isdisjoint(device.reads)
    device.reads.clear()
    await device.connect()
    await driver.poll()
    # Where it was found before it is looked for first.
    assert device.reads[0] == (50000, 4)


async def test_a_device_that_is_deaf_where_it_has_nothing_is_found_by_the_next_contacts():
    device = Map(deaf={40000, 50000})
    lay(device, 0, common(), inverter(), controls())
    driver = driver_to(device)

    for _ in range(2):
        with pytest.raises(DeviceUnreachable):
            await driver.identify()
    await driver.identify()
    assert [address for address, _ in device.reads[:3]] == [40000, 50000, 0]

    device.reads.clear()
    await device.connect()
    await driver.identify()
    assert device.reads[0] == (0, 4)


async def test_models_that_moved_are_found_again_after_a_reconnect():
    device = Map()
    lay(device, 40000, common(), inverter(), controls())
    driver = driver_to(device)
    await driver.identify()
    await driver.write(50)
    assert device.writes[0] == (40000 + 2 + 68 + 52 + 5, [50])

    lay(device, 40000, common(), (64_001, [0] * 10), inverter(), controls())
    await device.connect()
    device.writes.clear()
    await driver.identify()
    await driver.write(40)

    assert device.writes[0] == (40000 + 2 + 68 + 12 + 52 + 5, [40])


@pytest.mark.parametrize("has", [[common(), inverter()], [common(), inverter(), controls(length=4)]])
async def test_a_device_without_the_model_of_its_limit_is_refused_with_those_it_has(has):
    device = Map()
    lay(device, 40000, *has)
    models = ", ".join(str(number) for number, _ in has)

    with pytest.raises(DeviceRefused, match=rf"has no WMaxLim\w+ \(limit_\w+\) in a model 123; .* {models}$"):
        await driver_to(device).identify()
    with pytest.raises(DeviceRefused, match="in a model 123"):
        await driver_to(device).write(50)
    assert device.writes == []
    # It can be looked at all the same.
    assert await driver_to(device).read_points(["power", "sun"]) == {
        "power": 12.3,
        "power_sf": 2,
        "sun": None,
    }


async def test_a_device_without_a_map_is_no_sunspec_device():
    device = Map(words=dict.fromkeys(range(200), 7))

    with pytest.raises(DeviceRefused, match="is no SunSpec device: there is no map at 40000, 50000, 0"):
        await driver_to(device).identify()


async def test_a_model_without_its_scale_factor_makes_no_reading():
    device = Map()
    lay(device, 40000, common(), (INVERTER, inverter()[1][:13]), controls())

    assert (await driver_to(device).poll()).readings["P_kW"] is None


async def test_devices_of_equal_models_share_how_they_are_read_and_others_do_not():
    profile = sunspec_profile()
    devices = [Map(), Map(), Map()]
    for device in devices[:2]:
        lay(device, 40000, common(), inverter(), controls())
    lay(devices[2], 40000, common(), controls(), inverter())
    drivers = [driver_to(device, profile) for device in devices]
    for driver in drivers:
        await driver.identify()

    first, second, third = (driver._layout for driver in drivers)
    assert first is second
    assert first is not third


async def test_somebody_who_never_ends_is_not_walked_for_ever():
    class Echo(Map):
        async def read(self, unit: int, table: Table, address: int, count: int) -> list[int]:  # noqa: ARG002
            self.reads.append((address, count))
            return [*SUNS, 1, 1] if count == 4 else [1, 1]

    device = Echo()

    with pytest.raises(DeviceRefused, match="in a model"):
        await driver_to(device).identify()

    assert len(device.reads) <= MAX_MODELS + 1


@given(
    base=st.sampled_from(BASES),
    models=st.lists(st.tuples(st.integers(1, 0xFFFE), st.integers(0, 130)), min_size=1, max_size=20),
)
async def test_every_chain_is_walked_to_its_end(base, models):
    device = Map()
    lay(device, base, *((number, [0] * length) for number, length in models))

    found = await models_from(base, lambda address, count: device.read(1, Table.HOLDING, address, count))

    expected, address = [], base + 2
    for number, length in models:
        expected.append(Model(number, address, length))
        address += 2 + length
    assert found == tuple(expected)
    assert len(device.reads) == 1 + len(models)
