"""The rules of control over every device that is asked over TCP: a node's cycle, and a device that lives.

What drivers promise of each profile is in tests/drivers/test_driver_contract.py; here it is what becomes of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.core.commands import WriteClass
from edge.drivers.registry import DRIVERS
from edge.profiles.loader import load_all
from edge.profiles.model import Limit, Profile
from edge.profiles.points import Protocol
from edge.runtime import config
from edge.simulators.device import Fault, Simulated
from edge.simulators.http_json import SimulatedHttp
from edge.simulators.xml_da import SimulatedXmlDa
from edge.wire.messages import Code
from tests.drivers.benches import setpoints
from tests.runtime.plant import NAMEPLATE_KW, Plant, running_plant

A, B = "DEVICE_A", "DEVICE_B"
PERIOD_S = 10.0
# Those that are reached by a URL, and what simulates them.
ON_THE_WEB: dict[Protocol, type[SimulatedHttp | SimulatedXmlDa]] = {
    Protocol.HTTP: SimulatedHttp,
    Protocol.XML_DA: SimulatedXmlDa,
}
PROFILES = [
    profile
    for profile in load_all().values()
    if profile.protocol in (Protocol.MODBUS_TCP, *ON_THE_WEB) and profile.controllable
]


def limit_of(profile: Profile) -> Limit:
    assert profile.limit is not None
    return profile.limit


READABLE = [profile for profile in PROFILES if limit_of(profile).readback is not None]
FALLING_BACK = [profile for profile in PROFILES if limit_of(profile).fallback is not None]


def each(profiles: list[Profile]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("profile", profiles, ids=lambda profile: profile.name)


@asynccontextmanager
async def plant_with(
    profile: Profile, directory: Path, **changes: Any
) -> AsyncIterator[tuple[Plant, Simulated]]:
    """A node, and a device of this profile that it does not know yet."""
    # A session that gives up late would only keep the test waiting.
    impatient = msgspec.structs.replace(profile, timeout_ms=200)
    async with running_plant(directory) as plant:
        plant.site["curtailment_time_limit_s"] = 3600.0
        plant.site["cyclic_write_timeout_s"] = PERIOD_S
        given = {
            "min_value": profile.min_value,
            "max_value": profile.max_value,
            "default_value": profile.default_value,
            "poll_s": 2.0,
            "arm_fallback": True,
            "accept_wear": True,
            # What its installer would say of it.
            "parameters": {
                name: one.example if one.default is None else one.default
                for name, one in profile.parameters.items()
            },
        }
        simulated = ON_THE_WEB.get(profile.protocol)
        if simulated is not None:
            server = simulated(profile=impatient, nameplate_kw=NAMEPLATE_KW, clock=plant.clock.boottime_s)
            await server.start()
            plant.configure(A, impatient, **{"url": server.url, **given, **changes})
            try:
                yield plant, server
            finally:
                await server.stop()
        else:
            yield plant, await plant.add(A, impatient, **{**given, **changes})


def tolerance(profile: Profile) -> float:
    return limit_of(profile).tolerance


def holds(device: Simulated, value: float) -> bool:
    return abs(device.limit_in_force - value) <= tolerance(device.profile)


def usual(profile: Profile) -> float:
    """A setpoint that limits, and is no default."""
    return next(one for one in setpoints(profile)[1:] if one != profile.default_value)


async def set_by_another(plant: Plant, device: Simulated, value: float) -> None:
    """Another controller writes to a device, and goes."""

    async def sleep(seconds: float) -> None:
        plant.clock.advance(seconds)

    (planned,) = config.plan(plant.body).devices.values()
    constructors = DRIVERS[device.profile.protocol]
    session = constructors.session(
        **config.pace_of([planned]).arguments, clock=plant.clock.boottime_s, sleep=sleep
    )
    await session.connect()
    driver = constructors.driver(
        session=session, profile=device.profile, unit=planned.config.unit, nameplate_kw=NAMEPLATE_KW
    )
    await driver.write(value)
    await session.aclose()
    plant.clock.advance(2 * device.profile.min_gap_ms / 1000)


@each(PROFILES)
async def test_a_request_reaches_the_device_and_lapses_to_its_default(profile, tmp_path):
    async with plant_with(profile, tmp_path) as (plant, device):
        plant.apply()
        await plant.run(30, lambda: plant.cycle.units[A].reachable)
        wanted = usual(profile)
        answer = plant.setpoint(hold_s=60, DEVICE_A=wanted)[A]
        await plant.run(30, answer.done)

        assert answer.result().ok
        assert holds(device, wanted)
        await plant.run(75, lambda: holds(device, profile.default_value))
        assert device.gap_violations == []
        assert device.sessions_refused == 0


@each(READABLE)
async def test_rule_18_a_limit_that_stands_there_is_logged_and_then_replaced(profile, tmp_path):
    async with plant_with(profile, tmp_path) as (plant, device):
        theirs = usual(profile)
        await set_by_another(plant, device, theirs)
        assert holds(device, theirs)

        plant.apply()
        await plant.run(60, lambda: holds(device, profile.default_value))

        (entry,) = plant.logged("standing")
        assert entry.value == pytest.approx(theirs, abs=tolerance(profile))


@each(PROFILES)
async def test_rule_11_what_could_not_be_written_is_owed_until_it_can(profile, tmp_path):
    async with plant_with(profile, tmp_path) as (plant, device):
        plant.apply()
        await plant.run(30, lambda: plant.cycle.units[A].reachable)
        await device.set_fault(Fault.WRITE_EXCEPTION)
        wanted = usual(profile)
        answer = plant.setpoint(hold_s=3600, DEVICE_A=wanted)[A]
        await plant.run(30, answer.done)
        assert answer.result().code is Code.WRITE_FAILED
        assert "still trying until" in answer.result().detail
        assert not holds(device, wanted)

        await device.set_fault(Fault.NONE)
        await plant.run(60, lambda: holds(device, wanted))


@each(READABLE)
async def test_rule_12_what_is_acknowledged_and_not_done_is_a_mismatch_after_three_tries(profile, tmp_path):
    async with plant_with(profile, tmp_path) as (plant, device):
        plant.apply()
        await plant.run(30, lambda: plant.cycle.units[A].reachable)
        await device.set_fault(Fault.IGNORE_WRITES)
        wanted = usual(profile)
        answer = plant.setpoint(hold_s=3600, DEVICE_A=wanted)[A]
        await plant.run(300, answer.done)
        # Some look after each step whether it was taken, and find out at once.
        assert answer.result().code in (Code.READBACK_MISMATCH, Code.WRITE_FAILED)
        assert plant.logged("device_error") != []

        await device.set_fault(Fault.NONE)
        await plant.run(120, lambda: holds(device, wanted))


@each(PROFILES)
async def test_rule_13_only_what_is_volatile_is_written_to_repeat_a_value(profile, tmp_path):
    async with plant_with(profile, tmp_path, arm_fallback=False, accept_wear=False) as (plant, device):
        plant.apply()
        answer = plant.setpoint(hold_s=3600, DEVICE_A=usual(profile))[A]
        await plant.run(60, answer.done)
        target = device.target
        before = device.writes[target]

        await plant.run(3.5 * PERIOD_S)

        again = device.writes[target] - before
        own = limit_of(profile).fallback
        kept_alive = own is not None and any(target in step.writes for step in own.keep_alive)
        if limit_of(profile).write_class is WriteClass.VOLATILE:
            assert again >= 3
        elif not kept_alive:
            assert again == 0


@each(FALLING_BACK)
async def test_rule_14_the_device_acts_by_itself_once_nothing_of_ours_is_there(profile, tmp_path):
    own = limit_of(profile).fallback
    assert own is not None
    default = setpoints(profile)[-1] if own.takes == "value" else profile.default_value
    async with plant_with(profile, tmp_path, default_value=default) as (plant, device):
        clock = plant.clock
        plant.apply()
        await plant.run(30, lambda: plant.cycle.units[A].reachable)
        mine = next(
            one for one in setpoints(profile) if one not in (default, profile.min_value, profile.max_value)
        )
        answer = plant.setpoint(hold_s=3600, DEVICE_A=mine)[A]
        await plant.run(30, answer.done)
        await plant.run(2 * min(own.timeout_s, 30))
        assert holds(device, mine)
        assert device.alive_at is not None
        plant.outlive()
    # The node is dead now, and nobody gives a sign of life.
    clock.advance(own.timeout_s + 1)
    taken = device.limit_in_force
    await device.stop()

    expected = {"value": default, "release": profile.max_value, "stop": profile.min_value}.get(own.takes)
    if expected is None:
        # What its installer has preset.
        assert abs(taken - mine) > tolerance(profile)
    else:
        assert taken == pytest.approx(expected, abs=tolerance(profile))


@each(PROFILES)
async def test_rule_22_a_control_point_has_one_owner(profile, tmp_path):
    async with plant_with(profile, tmp_path) as (plant, _):
        plant.raw[B] = {**plant.raw[A], "id": B, "tag": B}

        planned = config.plan(plant.body)

        assert list(planned.devices) == [A]
        assert f"its control point is that of {A}" in planned.refused[B]
