"""Rule 14: the device's own fallback is armed, and kept from acting by a sign of life of its own."""

from __future__ import annotations

from typing import Any

import pytest

from edge.core.commands import WriteClass
from edge.profiles.model import FALLBACK, TIMEOUT, Profile
from edge.profiles.reading import profile_from_builtins, profile_to_builtins
from edge.simulators.device import Fault
from edge.simulators.modbus import SimulatedDevice
from tests.runtime.plant import Plant, profile, running_plant

TIMEOUT_S = 30.0
A = "INVERTER_01"


def failsafe(
    *, write_class: WriteClass = WriteClass.VOLATILE, confidence: str = "verified", **fallback: Any
) -> Profile:
    """A profile whose device falls back by itself, armed and kept alive through two registers."""
    body = profile_to_builtins(profile("generic_modbus"))
    source = {"source": "of this test", "confidence": confidence, "type": "u16", "access": "read_write"}
    source["note"] = "as unsure as it is said to be"
    body["points"]["own_value"] = {**source, "name": "fallback", "address": 60, "scale": 0.01, "unit": "%"}
    body["points"]["own_timeout"] = {**source, "name": "timeout", "address": 61, "unit": "s"}
    body["limit"]["write_class"] = write_class
    body["limit"]["fallback"] = {
        "timeout_s": TIMEOUT_S,
        "arm": [{"point": "own_value", "value": FALLBACK, "when": "if_different"}],
        "keep_alive": [{"point": "own_timeout", "value": TIMEOUT}],
        "keep_alive_class": "volatile",
        **fallback,
    }
    return profile_from_builtins(body)


def is_armed(device: SimulatedDevice) -> bool:
    return device.alive_at is not None


def no_own_fallback(plant: Plant) -> list[str]:
    return [alarm.detail for alarm in plant.cycle.alarms.standing if alarm.code == "no_own_fallback"]


async def test_own_fallback_is_armed_with_the_default_at_the_first_contact(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A, failsafe(), default_value=70.0)
        plant.apply()
        await plant.run(2)
        assert device.registers.get("own_value") == 70
        assert device.registers.get("own_timeout") == TIMEOUT_S
        assert is_armed(device)


async def test_device_falls_back_by_itself_when_nobody_is_there_any_more(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A, failsafe(), default_value=70.0)
        plant.apply()
        plant.setpoint(hold_s=3600, INVERTER_01=30)
        await plant.run(2)
        assert device.limit_in_force == 30
        plant.clock.advance(TIMEOUT_S + 1)  # in which nothing of the node runs
        assert device.limit_in_force == 70


@pytest.mark.parametrize("lifetime", ["singular", "cyclic"])
async def test_sign_of_life_keeps_the_own_fallback_from_acting_whatever_the_lifetime(tmp_path, lifetime):
    async with running_plant(tmp_path) as plant:
        plant.site["curtailment_time_limit_s"] = 3600.0
        device = await plant.add(A, failsafe(), lifetime=lifetime)
        plant.apply()
        plant.setpoint(hold_s=3600, INVERTER_01=30)
        await plant.run(2)
        device.writes.clear()
        await plant.run(10 * TIMEOUT_S)
        assert device.limit_in_force == 30
        assert 29 <= device.writes["own_timeout"] <= 31  # every third of its time
        assert device.writes["own_value"] == 0


async def test_own_fallback_is_armed_anew_after_the_device_was_away(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A, failsafe())
        plant.apply()
        await plant.run(2)
        await device.set_fault(Fault.REFUSE)
        await plant.run(5)
        await device.restart()
        assert not is_armed(device)
        await device.set_fault(Fault.NONE)
        await plant.run(3)
        assert is_armed(device)


async def test_changed_default_is_armed_at_once(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A, failsafe())
        plant.apply()
        await plant.run(2)
        plant.raw[A]["default_value"] = 40.0
        plant.apply()
        await plant.run(2)
        assert device.registers.get("own_value") == 40


async def test_changed_time_is_armed_at_once_and_kept_from_then_on(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A, failsafe(timeout_s=3600.0))
        plant.apply()
        await plant.run(2)
        assert device.registers.get("own_timeout") == 3600

        plant.configure(A, failsafe(), port=device.port)
        plant.apply()
        await plant.run(3)
        assert device.registers.get("own_timeout") == TIMEOUT_S
        device.writes.clear()
        await plant.run(3 * TIMEOUT_S)
        assert device.writes["own_timeout"] >= 8


@pytest.mark.parametrize("keep_alive_class", ["persistent", "unknown"])
async def test_register_that_wears_is_no_sign_of_life_unless_somebody_accepts_it(tmp_path, keep_alive_class):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A, failsafe(keep_alive_class=keep_alive_class))
        plant.apply()
        await plant.run(60)
        assert (is_armed(device), device.writes["own_timeout"]) == (False, 0)
        assert "accept_wear is off" in no_own_fallback(plant)[0]
        plant.raw[A]["accept_wear"] = True
        plant.apply()
        await plant.run(2)
        assert is_armed(device)
        assert no_own_fallback(plant) == []


@pytest.mark.parametrize("takes", ["release", "stop"])
async def test_device_that_can_only_release_or_stop_is_armed_by_explicit_configuration(tmp_path, takes):
    async with running_plant(tmp_path) as plant:
        kind = failsafe(takes=takes, arm=[{"point": "own_timeout", "value": TIMEOUT}])
        device = await plant.add(A, kind)
        plant.apply()
        await plant.run(60)
        assert not is_armed(device)
        assert f"can only {takes}" in no_own_fallback(plant)[0]
        plant.raw[A]["arm_fallback"] = True
        plant.apply()
        await plant.run(2)
        assert is_armed(device)
        assert no_own_fallback(plant) == []


@pytest.mark.parametrize("confidence", ["unverified", "disputed"])
async def test_fallback_through_registers_that_nobody_is_sure_of_is_armed_by_explicit_configuration(
    tmp_path, confidence
):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A, failsafe(confidence=confidence))
        plant.apply()
        await plant.run(60)
        assert device.writes.total() == 0
        assert "what arms it is not verified, arm_fallback is off" in no_own_fallback(plant)[0]
        plant.raw[A]["arm_fallback"] = True
        plant.apply()
        await plant.run(2)
        assert is_armed(device)


@pytest.mark.parametrize("takes", ["release", "stop"])
async def test_setpoint_of_a_device_that_is_armed_for_good_is_kept_alive_without_being_asked_for(
    tmp_path, takes
):
    async with running_plant(tmp_path) as plant:
        plant.site["curtailment_time_limit_s"] = 3600.0
        kind = failsafe(takes=takes, arm=[], keep_alive=[{"point": "limit_target", "value": "$value"}])
        device = await plant.add(A, kind, lifetime="singular")
        plant.apply()
        plant.setpoint(hold_s=3600, INVERTER_01=30)
        await plant.run(10 * TIMEOUT_S)
        assert device.limit_in_force == 30
        assert no_own_fallback(plant) == []
        plant.clock.advance(TIMEOUT_S + 1)  # in which nothing of the node runs
        assert device.limit_in_force == (0 if takes == "stop" else 100)


async def test_device_that_believes_only_in_what_changes_gets_another_number_each_time(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A, failsafe(keep_alive=[{"point": "own_timeout", "value": "$count"}]))
        plant.apply()
        seen = []
        for _ in range(3):
            await plant.run(TIMEOUT_S / 3 + 1)
            seen.append(device.registers.get("own_timeout"))
        assert seen == [2, 3, 4]  # the first one armed it


async def test_device_that_refuses_to_be_armed_shows_that_it_has_no_own_fallback(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A, failsafe())
        plant.apply()
        device.fault = Fault.WRITE_EXCEPTION
        await plant.run(3)
        assert "cannot be armed" in no_own_fallback(plant)[0]
        device.fault = Fault.NONE
        await plant.run(TIMEOUT_S)
        assert is_armed(device)
        assert no_own_fallback(plant) == []


async def test_signs_of_life_are_counted_and_cost_nothing_of_the_budget(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A, failsafe(write_class=WriteClass.PERSISTENT))
        plant.apply()
        await plant.run(30 * TIMEOUT_S)
        state = plant.cycle.units[A].state
        assert state.ledger.registers["own_timeout"].today >= 85
        assert state.spent_today == 0
        accepted = plant.command(INVERTER_01=30)
        assert accepted.refused == {}
