"""Habits of real devices that a simulated one has from its profile."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from msgspec.structs import replace

from edge.plant import Kind, Site, SteadyWeather
from edge.profiles.loader import load_all
from edge.profiles.model import Profile
from edge.profiles.reading import profile_from_builtins
from edge.simulators.modbus import SimulatedDevice
from tests.servers import until

PROFILES = load_all()
GROWATT = replace(PROFILES["growatt_max_60ktl"], min_gap_ms=0)


class Now:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


class Client:
    """One session that sends a PDU and waits for what comes back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unit: int) -> None:
        self._reader = reader
        self._writer = writer
        self._unit = unit
        self._transaction = 0

    def send(self, pdu: bytes) -> None:
        self._transaction += 1
        self._writer.write(struct.pack(">HHHB", self._transaction, 0, len(pdu) + 1, self._unit) + pdu)

    async def ask(self, pdu: str) -> str:
        self.send(bytes.fromhex(pdu))
        async with asyncio.timeout(5):
            head = await self._reader.readexactly(6)
            assert int.from_bytes(head[:2], "big") == self._transaction
            return (await self._reader.readexactly(head[5]))[1:].hex()

    def close(self) -> None:
        self._writer.close()


async def unanswered(device: SimulatedDevice, client: Client, pdu: str) -> None:
    """Send a command and see it arrive; that no answer came, the next one tells by being the first."""
    before = device.commands
    client.send(bytes.fromhex(pdu))
    await asyncio.to_thread(until, lambda: device.commands > before, what="the command")


Start = Callable[..., Awaitable[tuple[SimulatedDevice, Client]]]


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
async def start(now: Now) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def build(profile: Profile, **more: Any) -> tuple[SimulatedDevice, Client]:
            device = SimulatedDevice(profile=profile, **{"unit": 1, "nameplate_kw": 60, "clock": now, **more})
            await device.start()
            stack.push_async_callback(device.stop)
            client = Client(*await asyncio.open_connection("127.0.0.1", device.port), device.unit)
            stack.callback(client.close)
            return device, client

        yield build


def register(address: int, kind: str = "u16", **more: Any) -> dict[str, Any]:
    return {
        "name": f"r{address}",
        "address": address,
        "type": kind,
        "source": "-",
        "confidence": "verified",
        **more,
    }


def profile(points: dict[str, Any], **more: Any) -> Profile:
    return profile_from_builtins(
        {
            "name": "quirky", "title": "Quirky", "maker": "-", "model": "-", "category": "inverter",
            "protocol": "modbus_tcp", "verified_on_hardware": False, "source": "-", "points": points,
            "value_kind": "active_power_limit_pct", **more,
        }
    )  # fmt: skip


WRITABLE = {"access": "read_write", "unit": "%", "example": 100}


def limited(target: dict[str, Any], **limit: Any) -> Profile:
    rules = {
        "register": "limit",
        "write_class": "volatile",
        "tolerance": 1,
        "set": [{"point": "limit", "value": "$value"}],
    }
    return profile(
        {"limit": {**register(10), **WRITABLE, **target}}, limit={**rules, "readback": "limit", **limit}
    )


# --- write functions, bits, wide numbers


async def test_a_register_for_function_16_refuses_function_6(start):
    device, client = await start(limited({"write_function": "multiple"}))

    assert await client.ask("06 000a 0028") == "8601"
    assert await client.ask("10 000a 0001 02 0028") == "10000a0001"
    assert device.limit_in_force == 40


async def test_a_register_for_function_6_refuses_function_16(start):
    device, client = await start(limited({"write_function": "single"}))

    assert await client.ask("10 000a 0001 02 0028") == "9001"
    assert await client.ask("06 000a 0028") == "06000a0028"
    assert device.writes == {"limit": 1}


async def test_half_a_number_is_refused(start):
    device, client = await start(limited({"type": "f32"}))

    assert await client.ask("06 000b 0000") == "8603"
    assert await client.ask("10 000a 0002 04 42200000") == "10000a0002"
    assert device.limit_in_force == 40


@pytest.mark.parametrize("pdu", ["03 000a 0000", "03 000a 007e", "10 000a 0000 00"])
async def test_an_impossible_count_is_an_illegal_value(start, pdu):
    _, client = await start(limited({}))

    assert (await client.ask(pdu))[2:] == "03"


async def test_a_relay_is_switched_by_coils_and_seen_by_discrete_inputs(start):
    modes = {"1": 2, "2": 0, "3": 1, "4": 3}
    points = {
        "relays": register(8, "bits", table="coil", length=2, access="read_write", codes=modes, example=2),
        "contacts": register(3, "bits", table="discrete", length=2, codes=modes),
    }
    rules = {"register": "relays", "write_class": "volatile", "tolerance": 0.5, "readback": "contacts",
             "set": [{"point": "relays", "value": "$value"}]}  # fmt: skip
    device, client = await start(
        profile(
            points, category="heat_pump", value_kind="operating_mode", min_value=1, max_value=4,
            default_value=2, limit=rules,
        )
    )  # fmt: skip

    assert await client.ask("01 0008 0002") == "010100"
    assert await client.ask("0f 0008 0002 01 01") == "0f00080002"
    assert await client.ask("02 0003 0002") == "020101"
    assert device.limit_in_force == 3

    assert await client.ask("0f 0008 0002 01 03") == "0f00080002"
    assert await client.ask("02 0003 0002") == "020103"
    assert await client.ask("02 0004 0002") == "8202"
    assert await client.ask("05 0003 ff00") == "8502"


async def test_a_coil_is_written_alone_with_function_5(start):
    codes = {"0": 0, "100": 1}
    device, client = await start(
        limited({"type": "bits", "length": 1, "table": "coil", "codes": codes, "unit": "%"})
    )

    assert await client.ask("05 000a 0000") == "05000a0000"
    assert device.limit_in_force == 0
    assert await client.ask("05 000a ff00") == "05000aff00"
    assert device.limit_in_force == 100


async def test_64_bit_numbers_are_on_the_wire_as_they_are_on_paper(start):
    device, client = await start(
        profile({"energy": register(0, "f64", example=1.5), "debt": register(4, "s64", example=-2, words="low_first")})
    )  # fmt: skip

    assert await client.ask("03 0000 0004") == "0308" + struct.pack(">d", 1.5).hex()
    assert await client.ask("03 0004 0004") == "0308" + "fffeffffffffffff"
    assert device.get("debt") == -2


# --- pauses and sessions


async def test_a_command_before_the_device_is_ready_for_it_stays_without_an_answer(start, now):
    device, client = await start(replace(PROFILES["generic_modbus"], connect_delay_ms=1000))
    await unanswered(device, client, "03 0020 0001")
    now.s += 0.9
    await unanswered(device, client, "03 0020 0001")
    now.s += 0.1

    assert await client.ask("03 0020 0001") == "03022710"
    assert device.gap_violations == [0, 0.9]


# --- nights


async def test_an_inverter_without_sun_has_no_values_but_its_energy(start):
    points = {
        "power": register(0, "s32", scale=0.001, unit="kW", nan=0x80000000),
        "current": register(2, unit="A"),
        "energy": register(3, unit="kWh", example=700),
    }
    readings = {"P_kW": "power", "I_A": "current", "E_kWh": "energy"}
    site = Site(weather=SteadyWeather())
    device, client = await start(profile(points, telemetry=readings), site=site)
    assert await client.ask("03 0000 0002") == "03040000ea60"

    site.night = True

    assert await client.ask("03 0000 0002") == "030480000000"
    assert await client.ask("03 0003 0001") == "030202bc"
    # No value cannot be said of this one.
    assert device.get("current") is not None


async def test_a_value_that_does_not_fit_a_register_is_none(start):
    points = {"power": register(0, scale=0.001, unit="kW", nan=0xFFFF), "energy": register(1, unit="kWh")}
    device, client = await start(profile(points, telemetry={"P_kW": "power"}), nameplate_kw=70)

    assert await client.ask("03 0000 0002") == "0304ffff0000"
    assert device.get("power") is None


async def test_a_device_that_sleeps_answers_again_in_the_morning_without_its_limit(start, now):
    site = Site(weather=SteadyWeather())
    device, client = await start(replace(GROWATT, sleeps_at_night=True), site=site)
    device.put("limit_memory", 0)
    await client.ask("06 0003 001e")
    assert device.limit_in_force == 30

    site.night = True
    now.s += 3600
    await unanswered(device, client, "03 0003 0001")
    site.night = False
    now.s += 3600

    assert await client.ask("03 0003 0001") == "030200ff"
    assert device.limit_in_force == 100


# --- wear


async def test_a_worn_register_acknowledges_and_keeps_what_it_has(start):
    device, client = await start(limited({}, write_class="persistent"), endurance=2)

    for word in ("0028", "0032", "003c"):
        assert await client.ask(f"06 000a {word}") == f"06000a{word}"

    assert device.limit_in_force == 50
    assert device.wear == device.writes == {"limit": 3}


async def test_a_register_that_is_told_not_to_store_does_not_wear(start):
    device, client = await start(GROWATT, endurance=1)
    device.put("limit_memory", 0)
    for word in ("0028", "0032", "003c"):
        await client.ask(f"06 0003 {word}")
    assert device.limit_in_force == 60
    assert device.wear == {}

    device.put("limit_memory", 1)
    for word in ("0028", "0032", "003c"):
        await client.ask(f"06 0003 {word}")
    assert device.limit_in_force == 40


# --- own fallback


def keeping_alive(**own: Any) -> Profile:
    points = {
        "limit": {**register(10), **WRITABLE},
        "preset": register(11, unit="%", example=30),
        "beat": register(12, access="read_write"),
    }
    return profile(
        points,
        limit={
            "register": "limit", "write_class": "volatile", "tolerance": 1, "readback": "limit",
            "set": [{"point": "limit", "value": "$value"}],
            "fallback": {
                "timeout_s": 60, "keep_alive_class": "volatile",
                "keep_alive": [{"point": "beat", "value": "$count"}], **own,
            },
        },
    )  # fmt: skip


async def test_a_device_takes_what_its_installer_has_preset(start, now):
    device, client = await start(keeping_alive(takes="preset", preset="preset"))
    await client.ask("06 000a 0050")
    await client.ask("06 000c 0001")

    now.s += 60
    assert device.limit_in_force == 80
    now.s += 1
    assert device.limit_in_force == 30
    assert await client.ask("03 000a 0001") == "0302001e"


async def test_signs_of_life_keep_a_setpoint(start, now):
    device, client = await start(keeping_alive(takes="stop"))
    await client.ask("06 000a 0050")

    for beat in range(4):
        now.s += 50
        await client.ask(f"06 000c {beat:04x}")
    assert device.limit_in_force == 80

    now.s += 61
    assert device.limit_in_force == 0


async def test_a_setpoint_without_a_sign_of_life_lapses_where_the_device_is_armed_for_good(start, now):
    device, client = await start(keeping_alive(takes="release"))
    await client.ask("06 000a 0050")

    now.s += 61
    assert device.limit_in_force == 100


async def test_the_fallback_acts_at_its_moment_whoever_looks_first(start, now):
    site = Site()
    device, client = await start(keeping_alive(takes="stop"), site=site)
    meter = SimulatedDevice(
        profile=PROFILES["janitza_umg604"],
        unit=1,
        nameplate_kw=60,
        site=site,
        clock=now,
        behaves_as=Kind.METER,
    )
    await client.ask("06 000a 0064")
    meter.machine.advance(now())

    now.s += 120
    meter.machine.advance(now())

    assert device.machine.power_kw == pytest.approx(0, abs=0.01)
    assert device.machine.exported_kwh == pytest.approx(60 * 60 / 3600, rel=0.03)


async def test_what_a_controller_wrote_is_not_measured_away(start):
    points = {"limit": {**register(10), **WRITABLE, "unit": "kW"}}
    rules = {"register": "limit", "write_class": "volatile", "tolerance": 1, "unit": "kW", "readback": "limit",
             "set": [{"point": "limit", "value": "$value"}]}  # fmt: skip
    device, client = await start(profile(points, limit=rules, telemetry={"P_kW": "limit"}))

    await client.ask("06 000a 000c")

    assert await client.ask("03 000a 0001") == "0302000c"
    assert device.limit_in_force == 20
