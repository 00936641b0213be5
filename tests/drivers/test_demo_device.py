"""Demo devices: one plant for all of a node, which follows its limits and forgets them with the process."""

from __future__ import annotations

import gc

import pytest

from edge.core.commands import WriteClass
from edge.drivers.demo import LEAST_LOAD_KW, DemoDriver, DemoSession
from edge.drivers.errors import DeviceRefused, DeviceUnreachable
from edge.profiles.model import Profile
from edge.profiles.points import Protocol
from edge.profiles.reading import profile_from_builtins, profile_to_builtins
from tests.drivers.benches import PROFILES, SharedClock
from tests.runtime.plant import Plant, running_plant

DEMO = sorted(name for name, profile in PROFILES.items() if profile.protocol is Protocol.DEMO)


@pytest.fixture
def clock() -> SharedClock:
    return SharedClock()


@pytest.fixture
async def session(clock: SharedClock) -> DemoSession:
    session = DemoSession(timeout_s=1.0, min_gap_s=0.0, clock=clock, sleep=clock.sleep)
    await session.connect()
    return session


def driver(session: DemoSession, profile: Profile | str, *, nameplate_kw: float | None = 60.0) -> DemoDriver:
    known = PROFILES[profile] if isinstance(profile, str) else profile
    return DemoDriver(session=session, profile=known, unit=0, nameplate_kw=nameplate_kw)


async def power(of: DemoDriver) -> float:
    value = (await of.poll()).readings["P_kW"]
    assert value is not None
    return value


def test_there_is_a_demo_device_of_each_usual_kind():
    assert DEMO == ["demo_battery", "demo_ev_charger", "demo_inverter", "demo_meter", "demo_wind_turbine"]
    limits = [PROFILES[name].limit for name in DEMO]
    assert {limit.write_class for limit in limits if limit is not None} == {WriteClass.VOLATILE}


async def test_limit_acts_with_a_lag(session, clock):
    inverter = driver(session, "demo_inverter")
    before = await power(inverter)
    assert before > 20
    await inverter.write(10)
    assert await inverter.read_setpoint() == 10
    clock.advance(0.2)
    assert 6 < await power(inverter) < before
    clock.advance(10)
    assert await power(inverter) == pytest.approx(6, abs=0.01)


async def test_devices_of_a_node_have_one_sun_and_their_meter_sees_all_of_them(session, clock):
    small, big = driver(session, "demo_inverter", nameplate_kw=20), driver(session, "demo_inverter")
    charger, meter = driver(session, "demo_ev_charger"), driver(session, "demo_meter")
    for _ in range(5):
        clock.advance(60)
        powers = [await power(one) for one in (small, big, charger)]
        assert powers[0] / 20 == pytest.approx(powers[1] / 60, rel=0.05)
        load_kw = session.site.load_kw(clock())
        assert load_kw > 0
        assert await power(meter) == pytest.approx(sum(powers) - load_kw)


async def test_weather_moves_what_nobody_limits(session, clock):
    turbine = driver(session, "demo_wind_turbine")
    seen = set()
    for _ in range(10):
        clock.advance(60)
        seen.add(round(await power(turbine), 2))
    assert len(seen) > 5


async def test_battery_charges_from_what_it_takes(session, clock):
    battery = driver(session, "demo_battery")
    first = (await battery.poll()).readings
    clock.advance(600)
    second = (await battery.poll()).readings
    assert first["SoC_pct"] != second["SoC_pct"]


async def test_machine_leaves_the_site_with_its_driver(session):
    inverter = driver(session, "demo_inverter", nameplate_kw=100)
    meter = driver(session, "demo_meter")
    assert session.site.peak_load_kw == 50
    assert len(session.site.machines) == 1
    del inverter
    gc.collect()
    assert session.site.machines == []
    assert session.site.peak_load_kw == LEAST_LOAD_KW
    assert await power(meter) < 0


async def test_session_that_is_closed_serves_nobody(session):
    inverter = driver(session, "demo_inverter")
    await session.aclose()
    assert not session.connected
    with pytest.raises(DeviceUnreachable, match="not connected to the demo plant"):
        await inverter.poll()
    with pytest.raises(DeviceUnreachable):
        await inverter.write(50)
    await session.connect()
    await inverter.write(50)
    assert await inverter.read_setpoint() == 50


async def test_quantity_that_no_machine_has_costs_only_its_own_reading(session):
    body = profile_to_builtins(PROFILES["demo_inverter"])
    body["points"]["energy"]["quantity"] = "E_tachyon_kWh"
    inverter = driver(session, profile_from_builtins(body))
    readings = (await inverter.poll()).readings
    assert readings["E_kWh"] is None
    assert readings["P_kW"] is not None


async def test_what_is_measured_cannot_be_written(session):
    body = profile_to_builtins(PROFILES["demo_inverter"])
    body["points"]["power"]["access"] = "read_write"
    body["limit"]["set"][0]["point"] = body["limit"]["register"] = "power"
    with pytest.raises(DeviceRefused, match="takes a 'limit' only, not power"):
        await driver(session, profile_from_builtins(body)).write(50)


# --- under a node -----------------------------------------------------------------------------------


def installed(plant: Plant) -> None:
    for name in ("demo_inverter", "demo_meter"):
        plant.configure(name.upper(), PROFILES[name])
    plant.apply()


def reading(plant: Plant, tag: str, key: str) -> float | None:
    return plant.cycle.units[tag].readings[key].value


async def test_node_holds_a_demo_device_as_any_other_and_lets_it_go(tmp_path):
    async with running_plant(tmp_path) as plant:
        installed(plant)
        await plant.run(3)
        free = reading(plant, "DEMO_INVERTER", "P_kW")
        answer = plant.setpoint(DEMO_INVERTER=10.0)["DEMO_INVERTER"]
        await plant.run(2, answer.done)
        assert (answer.result().ok, answer.result().readback) == (True, 10)
        await plant.run(10)
        assert reading(plant, "DEMO_INVERTER", "P_kW") == pytest.approx(6, abs=0.01)
        assert reading(plant, "DEMO_METER", "P_kW") is not None
        await plant.run(60)
        held = reading(plant, "DEMO_INVERTER", "P_kW")
        assert free is not None
        assert held is not None
        assert min(free, held) > 20
        (entry,) = plant.logged("watchdog")
        assert entry.value == 100


async def test_limit_that_ended_with_its_process_is_written_again(tmp_path):
    async with running_plant(tmp_path) as plant:
        installed(plant)
        plant.setpoint(DEMO_INVERTER=10.0)
        await plant.run(3)
        site = plant.outlive()
    async with running_plant(tmp_path, site=site) as plant:
        plant.apply()
        await plant.run(3)
        assert plant.cycle.values["DEMO_INVERTER"] == 10
        await plant.run(10)
        assert reading(plant, "DEMO_INVERTER", "P_kW") == pytest.approx(6, abs=0.01)
