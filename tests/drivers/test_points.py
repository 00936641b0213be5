"""What drivers make of a profile's steps, units and codes, whatever the device."""

from __future__ import annotations

from typing import Any

import pytest

from edge.drivers.errors import DeviceRefused
from edge.drivers.modbus import ModbusDriver
from edge.profiles.model import Profile
from edge.profiles.reading import profile_from_builtins, profile_to_builtins
from tests.drivers.maps import Map
from tests.runtime.plant import profile

NAMEPLATE_KW = 60.0
VALUE, TIME, COMMIT, STORED = 32, 33, 34, 35


def made(limit: dict[str, Any], *, value: dict[str, Any] | None = None, **changes: Any) -> Profile:
    """A profile with four registers in a row: a value, a time, a commit, and whether it is stored."""
    body = profile_to_builtins(profile("generic_modbus"))
    source = {"source": "of this test", "confidence": "verified", "type": "u16", "access": "read_write"}
    body["points"] = {
        "value": {**source, "name": "value", "address": VALUE, "unit": "%", **(value or {})},
        "time": {**source, "name": "time", "address": TIME, "unit": "s"},
        "commit": {**source, "name": "commit", "address": COMMIT},
        "stored": {**source, "name": "stored", "address": STORED, "access": "read"},
    }
    body["limit"] = {
        "register": "value",
        "write_class": "volatile",
        "tolerance": 0.5,
        "set": [{"point": "value", "value": "$value"}],
        "readback": "value",
        **limit,
    }
    return profile_from_builtins({**body, "telemetry": {}, **changes})


def driven(kind: Profile, *, nameplate_kw: float | None = NAMEPLATE_KW) -> tuple[ModbusDriver, Map]:
    device = Map(words=dict.fromkeys(range(VALUE, STORED + 1), 0))
    return ModbusDriver(session=device, profile=kind, unit=1, nameplate_kw=nameplate_kw), device


# --- steps


async def test_points_written_together_go_with_one_command_in_their_order():
    driver, device = driven(
        made({"set": [{"point": "value", "value": "$value", "together": {"time": 30, "commit": 1}}]})
    )

    await driver.write(50)

    assert device.writes == [(VALUE, [50, 30, 1])]
    assert driver.take_writes() == {"value": 1, "time": 1, "commit": 1}
    assert driver.commands_per_write == 1


async def test_block_that_is_so_already_is_not_written_and_one_that_differs_anywhere_is():
    step = {"point": "value", "value": "$value", "together": {"time": 30}, "when": "if_different"}
    driver, device = driven(made({"set": [step]}))
    device.put(VALUE, [50, 30])

    await driver.write(50)
    assert device.writes == []

    device.put(TIME, [20])
    await driver.write(50)
    assert device.writes == [(VALUE, [50, 30])]


UNTIL_STORED = {
    "set": [
        {
            "point": "value",
            "value": "$value",
            "until": {"point": "stored", "equals": 1},
            "within_s": 2,
        },
        {"point": "commit", "value": 1},
    ]
}


async def test_next_step_waits_until_the_device_has_done_the_one_before():
    driver, device = driven(made(UNTIL_STORED))
    device.later = [(STORED, [0]), (STORED, [0]), (STORED, [1])]

    await driver.write(50)

    assert device.writes == [(VALUE, [50]), (COMMIT, [1])]
    assert device.reads.count((STORED, 1)) == 4


async def test_step_that_is_not_done_in_its_time_is_refused_and_the_next_one_is_not_taken():
    driver, device = driven(made(UNTIL_STORED))

    with pytest.raises(DeviceRefused, match=r"stored \(stored\) reads 0, not 1 within 2 s"):
        await driver.write(50)

    assert device.writes == [(VALUE, [50])]


# --- units


@pytest.mark.parametrize(
    ("setpoint", "raw"),
    [(100, 600), (50, 300), (0, 0), (37.5, 225)],
)
async def test_percentage_is_written_as_kilowatts_where_the_device_wants_those(setpoint, raw):
    driver, device = driven(made({"unit": "kW"}, value={"unit": "kW", "scale": 0.1}))

    await driver.write(setpoint)

    assert device.words[VALUE] == raw
    assert await driver.read_setpoint() == setpoint


async def test_percentage_is_written_as_amperes_per_phase():
    # 60 kW over three phases of 230 V: 86.96 A each.
    driver, device = driven(
        made({"unit": "A", "tolerance": 1}, value={"unit": "A", "scale": 0.01, "type": "u16"})
    )

    await driver.write(50)
    assert device.words[VALUE] == 4348

    one_phase = made({"unit": "A", "phases": 1, "volts": 240}, value={"unit": "A", "scale": 0.1})
    driver, device = driven(one_phase)
    await driver.write(50)
    assert device.words[VALUE] == 1250


async def test_too_little_to_be_a_current_is_a_pause_that_reads_back_as_what_was_asked():
    kind = made({"unit": "A", "least": 6}, value={"unit": "A", "scale": 0.01})
    driver, device = driven(kind)

    await driver.write(5)  # 4.3 A

    assert device.words[VALUE] == 0
    assert await driver.read_setpoint() == 5
    # Somebody else's limit is told as it is.
    device.put(VALUE, [4348])
    assert await driver.read_setpoint() == pytest.approx(50, abs=0.01)


async def test_pause_of_another_controller_is_not_taken_for_what_was_asked():
    kind = made({"unit": "A", "least": 6}, value={"unit": "A", "scale": 0.01})
    driver, device = driven(kind)
    await driver.write(50)
    device.put(VALUE, [0])

    assert await driver.read_setpoint() == 0


async def test_limit_above_the_nameplate_limits_nothing():
    driver, device = driven(made({"unit": "kW"}, value={"unit": "kW", "scale": 0.1}))
    device.put(VALUE, [9000])

    assert await driver.read_setpoint() == 100


async def test_limit_in_kilowatts_needs_the_nameplate():
    driver, device = driven(made({"unit": "kW"}, value={"unit": "kW"}), nameplate_kw=None)

    with pytest.raises(DeviceRefused, match="its setpoint is in kW, set the device's peak power"):
        await driver.write(50)
    assert device.writes == []


# --- codes


async def test_setpoint_goes_by_the_devices_own_code_and_comes_back_as_its_value():
    driver, device = driven(made({}, value={"codes": {"0": 7, "100": 3}}))

    await driver.write(100)
    assert device.words[VALUE] == 3
    assert await driver.read_setpoint() == 100

    await driver.write(0)
    assert device.words[VALUE] == 7


async def test_value_without_a_code_is_refused_before_anything_is_sent():
    driver, device = driven(made({}, value={"codes": {"0": 7, "100": 3}}))

    with pytest.raises(DeviceRefused, match=r"cannot be written to value .* none of 0, 100"):
        await driver.write(37)
    assert device.writes == []


async def test_code_that_nobody_has_described_is_no_setpoint():
    driver, device = driven(made({}, value={"codes": {"0": 7, "100": 3}}))
    device.put(VALUE, [5])

    assert await driver.read_setpoint() is None


# --- the device's own fallback


async def test_fallback_is_armed_with_its_value_and_time_in_the_devices_own_terms():
    own = {
        "timeout_s": 90,
        "arm": [{"point": "value", "value": "$fallback", "together": {"time": "$timeout"}}],
        "keep_alive": [{"point": "commit", "value": "$count"}],
        "keep_alive_class": "volatile",
    }
    driver, device = driven(made({"unit": "kW", "fallback": own}, value={"unit": "kW", "scale": 0.1}))

    await driver.arm_fallback(50)
    await driver.keep_alive(20)
    await driver.keep_alive(20)

    assert device.writes == [(VALUE, [300, 90]), (COMMIT, [1]), (COMMIT, [2])]
