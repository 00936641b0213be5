"""Devices that have no power but the sun's: their nights are no fault, and their days are."""

from __future__ import annotations

from edge.plant import SteadyWeather
from edge.runtime.night import LONGEST_NIGHT_S, Sleep
from edge.simulators.device import Fault
from edge.simulators.modbus import SimulatedDevice
from edge.wire.messages import Code
from tests.runtime.plant import NAMEPLATE_KW, Plant, profile, running_plant

A = "INVERTER_01"
DAY, DUSK, NIGHT = 1.0, 0.005, 0.0
SLEEPER = profile(sleeps_at_night=True, timeout_ms=50)


def sun(device: SimulatedDevice, irradiance: float) -> None:
    device.machine.site.weather = SteadyWeather(irradiance=irradiance)


def errors(plant: Plant) -> list[str]:
    """What was told to whoever looks after the devices."""
    return [entry.devices[A].detail for entry in plant.logged("device_error")]


def sleep(plant: Plant) -> Sleep:
    known = plant.cycle.units[A].sleep
    assert known is not None
    return known


async def bedtime(plant: Plant) -> SimulatedDevice:
    """A device at dusk, known and read."""
    device = await plant.add(A, SLEEPER)
    plant.apply()
    await plant.run(3)
    sun(device, DUSK)
    await plant.run(5)
    assert device.machine.power_kw < 0.01 * NAMEPLATE_KW
    return device


async def test_a_device_that_falls_silent_at_dusk_is_asleep_and_no_fault(tmp_path, caplog):
    caplog.set_level("INFO")
    async with running_plant(tmp_path) as plant:
        device = await bedtime(plant)
        sun(device, NIGHT)
        await plant.run(15)
        assert sleep(plant).is_asleep
        assert plant.cycle.units[A].reachable is False
        assert errors(plant) == []
        assert plant.cycle.alarms.standing == ()

        sun(device, DAY)
        await plant.run(310, lambda: not sleep(plant).is_asleep)
        await plant.run(2)
        assert plant.cycle.units[A].reachable is True
        assert errors(plant) == []
        # One line for each, and none that calls for anybody.
        assert [caplog.text.count(f"device is {what}") for what in ("asleep", "awake", "back")] == [1, 1, 0]
        assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_a_setpoint_of_the_night_is_owed_till_the_morning_and_no_error(tmp_path):
    async with running_plant(tmp_path) as plant:
        plant.site["curtailment_time_limit_s"] = 3600.0
        device = await bedtime(plant)
        sun(device, NIGHT)
        await plant.run(8)
        answer = plant.setpoint(hold_s=3600, INVERTER_01=30)[A]
        await plant.run(8)
        assert answer.result().code is Code.WRITE_FAILED
        assert "still trying" in answer.result().detail
        assert errors(plant) == []

        sun(device, DAY)
        await plant.run(10, lambda: plant.limit(A) == 30)
        assert errors(plant) == []


async def test_a_device_that_answers_at_night_without_values_is_asleep_too(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await bedtime(plant)
        device.shown["power"] = None
        await plant.run(10)
        since_s = sleep(plant).since_s
        assert since_s is not None
        # It falls silent later.
        sun(device, NIGHT)
        await plant.run(10)
        assert plant.cycle.units[A].reachable is False
        assert sleep(plant).since_s == since_s
        assert errors(plant) == []


async def test_a_device_that_falls_silent_at_noon_is_missed(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A, SLEEPER)
        plant.apply()
        await plant.run(3)
        await device.set_fault(Fault.SILENT)
        await plant.run(5)
        assert len(errors(plant)) == 1


async def test_a_device_that_we_hold_at_nothing_is_missed_when_it_falls_silent(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A, SLEEPER)
        plant.apply()
        plant.setpoint(INVERTER_01=0)
        await plant.run(20)
        assert device.machine.power_kw < 0.01 * NAMEPLATE_KW
        await device.set_fault(Fault.SILENT)
        await plant.run(5)
        assert len(errors(plant)) == 1


async def test_a_device_that_does_not_live_by_the_sun_is_missed_at_night(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        await plant.run(3)
        sun(device, DUSK)
        await plant.run(5)
        await device.set_fault(Fault.SILENT)
        await plant.run(5)
        assert len(errors(plant)) == 1


async def test_a_device_whose_power_was_never_heard_is_missed(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A, SLEEPER)
        await device.set_fault(Fault.REFUSE)
        plant.apply()
        await plant.run(5)
        assert "no connection" in errors(plant)[0]


async def test_a_device_that_sleeps_longer_than_any_night_is_missed_once(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await bedtime(plant)
        sun(device, NIGHT)
        await plant.run(10)
        plant.clock.advance(LONGEST_NIGHT_S)
        await plant.run(5)
        # From now on it is one that is lost, and what cannot be written to it is told as well.
        assert [error for error in errors(plant) if "has not woken" in error] == errors(plant)[:1]
        sun(device, DAY)
        await plant.run(400, lambda: plant.cycle.units[A].reachable)
