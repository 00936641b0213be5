"""Simulated SunSpec devices, as a client of the SunSpec Alliance's own library finds them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import sunspec2
from sunspec2.modbus.client import SunSpecModbusClientDeviceTCP

from edge.profiles.model import Profile
from edge.profiles.reading import profile_from_builtins
from edge.simulators.modbus import SimulatedDevice
from edge.simulators.sunspec import BASES, MODELS, chain_of

THREE = [101, 102, 103]


def point(model: Any, address: int, kind: str, **more: Any) -> dict[str, Any]:
    return {
        "name": f"{model}.{address}", "model": model, "address": address, "type": kind, "source": "SunSpec",
        "confidence": "verified", **more,
    }  # fmt: skip


def body(**more: Any) -> dict[str, Any]:
    return {
        "name": "sunspec_inverter", "title": "SunSpec inverter", "maker": "any", "model": "any",
        "category": "inverter", "protocol": "modbus_tcp", "verified_on_hardware": False, "source": "SunSpec",
        "sunspec": True, "value_kind": "active_power_limit_pct",
        "points": {
            "maker": point(1, 2, "str", length=16, example="Sunny"),
            "power": point(THREE, 14, "s16", scale=0.001, scale_point="power_sf", unit="kW", nan=0x8000),
            "power_sf": point(THREE, 15, "s16", example=0),
            "rated": point(120, 3, "u16", scale=0.001, scale_point="rated_sf", unit="kW"),
            "rated_sf": point(120, 4, "s16", example=0),
            "limit": point(123, 5, "u16", scale_point="limit_sf", unit="%", access="read_write", example=100),
            "limit_sf": point(123, 23, "s16", example=-2),
            "enable": point(123, 9, "u16", access="read_write", example=0),
        },
        "identity": {"nameplate": "rated"},
        "limit": {
            "register": "limit", "write_class": "volatile", "tolerance": 0.1,
            "set": [{"point": "limit", "value": "$value"}, {"point": "enable", "value": 1}],
            "readback": "limit", "readback_switch": {"point": "enable", "equals": 1},
        },
        "telemetry": {"P_kW": "power"},
        **more,
    }  # fmt: skip


PROFILE = profile_from_builtins(body())

Start = Callable[..., Awaitable[SimulatedDevice]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def build(profile: Profile = PROFILE, **more: Any) -> SimulatedDevice:
            device = SimulatedDevice(profile=profile, unit=1, nameplate_kw=60, **more)
            await device.start()
            stack.push_async_callback(device.stop)
            return device

        yield build


def scanned(device: SimulatedDevice) -> SunSpecModbusClientDeviceTCP:
    client = SunSpecModbusClientDeviceTCP(slave_id=1, ipaddr=device.host, ipport=device.port, timeout=5)
    client.scan()
    return client


@pytest.mark.parametrize("base", BASES)
async def test_its_models_are_found_wherever_they_begin(start, base):
    device = await start(sunspec_base=base)

    client = await asyncio.to_thread(scanned, device)

    assert client.base_addr == base
    assert [one.model_id for one in client.model_list] == [1, 103, 120, 123]
    assert [one.model_len for one in client.model_list] == [66, 50, 26, 24]
    client.close()


async def test_values_are_where_the_models_say(start):
    client = await asyncio.to_thread(scanned, await start())

    assert client.common[0].Mn.value == "Sunny"
    assert not client.common[0].SN.value
    assert client.models[103][0].W.cvalue == 60_000
    assert client.nameplate[0].WRtg.cvalue == 60_000
    assert client.controls[0].WMaxLimPct.cvalue == 100
    assert client.models[103][0].WH.value is None
    assert client.models[103][0].TmpCab.value is None
    assert client.models[103][0].Hz.value is None
    client.close()


async def test_a_model_relative_write_acts(start):
    device = await start()

    def curtail() -> None:
        client = scanned(device)
        controls = client.controls[0]
        controls.WMaxLimPct.cvalue = 40
        controls.WMaxLim_Ena.value = 1
        controls.write()
        client.close()

    await asyncio.to_thread(curtail)

    assert device.limit_in_force == 40
    assert device.writes == {"limit": 1, "enable": 1}


async def test_models_with_nothing_in_them_lie_between_those_with_something(start):
    device = await start(blank_models=(122, 127))

    client = await asyncio.to_thread(scanned, device)

    assert [one.model_id for one in client.model_list] == [1, 103, 120, 122, 123, 127]
    assert client.status[0].ActWh.value is None
    assert client.status[0].StActCtl.value is None
    assert client.controls[0].WMaxLimPct.cvalue == 100
    client.close()


async def test_with_4_byte_numbers_and_ders_own_limit(start):
    more = body()
    more["points"] = {
        "limit": point(704, 15, "u16", scale_point="sf", unit="%", access="read_write", example=100),
        "sf": point(704, 54, "s16", example=-1),
        "enable": point(704, 14, "u16", access="read_write", example=1),
        "timeout": point(704, 18, "u32", unit="s", access="read_write", example=0),
        "power": point(701, 10, "s16", scale=0.001, unit="kW", scale_point="power_sf"),
        "power_sf": point(701, 116, "s16", example=1),
    }
    more["identity"] = {}
    device = await start(profile_from_builtins(more))

    client = await asyncio.to_thread(scanned, device)

    assert [one.model_id for one in client.model_list] == [1, 701, 704]
    assert client.DERCtlAC[0].WMaxLimPct.cvalue == 100
    assert client.DERMeasureAC[0].W.cvalue == 60_000
    client.close()


def test_a_device_has_one_of_the_models_that_a_point_may_be_in():
    assert chain_of(PROFILE.registers.values()) == (1, 103, 120, 123)


@pytest.mark.parametrize("model", MODELS)
def test_lengths_and_fillers_are_those_of_the_specification(model):
    path = Path(sunspec2.__file__).parent / "models" / "json" / f"model_{model}.json"
    fields = list(fields_of(json.loads(path.read_text())["group"], 0))
    layout = MODELS[model]

    assert max(end for _, end, _ in fields) - 2 == layout.length
    assert [at for at, _, kind in fields if kind in ("int16", "sunssf")] == list(layout.signed)
    empty = [(at, end) for at, end, kind in fields if kind.startswith("acc") or kind == "string"]
    assert [place for at, end in empty for place in range(at, end)] == list(layout.empty)


def fields_of(group: dict[str, Any], at: int) -> list[tuple[int, int, str]]:
    """Begin, end and type of all points of a group of the library's JSON, groups within it too."""
    fields = []
    for one in group.get("points", []):
        fields.append((at, at + one["size"], one["type"]))
        at += one["size"]
    for inner in group.get("groups", []):
        fields += fields_of(inner, at)
        at = max(end for _, end, _ in fields)
    return fields
