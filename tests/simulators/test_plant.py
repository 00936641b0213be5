"""The physics behind simulated devices."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from edge.plant import (
    CONTROLLABLE_SHARE,
    DAY_S,
    GENSET_START_S,
    KEEPS_MODE_S,
    ChangingWeather,
    DaysAndNights,
    HeatPumpMode,
    Kind,
    Machine,
    Site,
    SteadyWeather,
    Takes,
    wind_power_share,
)


def machine(kind: Kind, site: Site, **fields) -> Machine:
    return Machine(kind=kind, nameplate_kw=60, site=site, **fields)


def test_power_follows_a_limit_with_a_first_order_lag():
    pv = machine(Kind.PV, Site(), lag_s=0.5)
    pv.advance(0)
    assert pv.power_kw == 60

    pv.limit_pct = 50
    pv.advance(0.5)
    after_one_time_constant = pv.power_kw
    pv.advance(5)

    assert after_one_time_constant == pytest.approx(60 - 30 * 0.632, abs=0.1)
    assert pv.power_kw == pytest.approx(30, abs=0.01)


def test_a_limit_above_what_the_sun_gives_changes_nothing():
    pv = machine(Kind.PV, Site(weather=SteadyWeather(irradiance=0.4)))
    pv.limit_pct = 50

    pv.advance(0)

    assert pv.power_kw == pytest.approx(24)


def test_meter_shows_what_the_devices_leave_after_the_load():
    site = Site(weather=SteadyWeather(load_share=0.5), peak_load_kw=40)
    pv, charger = machine(Kind.PV, site), machine(Kind.CHARGER, site)
    meter = machine(Kind.METER, site)

    meter.advance(0)

    assert pv.power_kw == 60
    assert charger.power_kw < 0
    assert meter.power_kw == pytest.approx(60 + charger.power_kw - 20)


def test_battery_cap_holds_in_both_directions():
    site = Site()
    battery = machine(Kind.BATTERY, site, capacity_kwh=10_000)
    battery.limit_pct = 10

    powers = []
    for t in range(0, int(DAY_S), 60):
        battery.advance(t)
        powers.append(battery.power_kw)

    assert max(powers) == pytest.approx(6, abs=0.01)
    assert min(powers) == pytest.approx(-6, abs=0.01)


def test_a_battery_that_discharges_loses_charge():
    battery = machine(Kind.BATTERY, Site())
    battery.advance(0)
    before = battery.charge_pct

    battery.advance(300)

    assert battery.power_kw > 0
    assert battery.charge_pct < before
    assert battery.exported_kwh == pytest.approx(
        (before - battery.charge_pct) / 100 * battery.capacity_kwh, rel=0.01
    )


@pytest.mark.parametrize(("speed", "share"), [(2.9, 0), (12, 1), (20, 1), (25, 0)])
def test_a_turbine_turns_between_cut_in_and_cut_out(speed, share):
    assert wind_power_share(speed) == share


@given(st.floats(0, 1e6), st.integers(0, 50))
def test_weather_stays_within_what_exists(t, seed):
    weather = ChangingWeather(seed=seed)

    assert 0 <= weather.sun(t) <= 1
    assert 0 <= weather.wind_ms(t) < 20
    assert 0 < weather.load(t) <= 1


def test_a_simulated_day_has_clouds_and_open_sky():
    suns = [ChangingWeather(seed=1).sun(t) for t in range(int(DAY_S))]

    assert max(suns) > 0.9
    assert min(suns) < 0.3


def test_equal_arguments_give_equal_weather():
    assert ChangingWeather(seed=3).sun(1234.5) == ChangingWeather(seed=3).sun(1234.5)
    assert ChangingWeather(seed=3).sun(1234.5) != ChangingWeather(seed=4).sun(1234.5)


def run(one: Machine, until_s: float, *, every_s: float = 1.0) -> list[float]:
    """Power at each look from 0 on; where the machine has been further, it stays there."""
    powers = []
    for step in range(int(until_s / every_s) + 1):
        one.advance(step * every_s)
        powers.append(one.power_kw)
    return powers


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.METER])
@pytest.mark.parametrize("limit_pct", [100, 45, 0])
def test_energy_is_the_sum_of_power(kind, limit_pct):
    one = machine(kind, Site(weather=ChangingWeather(seed=2)))
    one.advance(0)
    one.limit_pct = limit_pct

    powers = run(one, 600)

    net_kwh = one.exported_kwh - one.imported_kwh
    assert net_kwh == pytest.approx(sum(powers[1:]) / 3600, abs=1e-6)


@pytest.mark.parametrize("kind", list(Kind))
def test_looking_back_changes_nothing(kind):
    one = machine(kind, Site(weather=ChangingWeather(seed=2), peak_load_kw=20))
    run(one, 100)
    before = one.values(100)

    one.advance(50)

    assert one.values(100) == before


@pytest.mark.parametrize("kind", [Kind.PV, Kind.LOGGER, Kind.WIND, Kind.GENSET])
def test_producers_stay_under_their_limit_once_they_follow_it(kind):
    one = machine(kind, Site())
    one.limit_pct = 40

    powers = run(one, 120)

    assert max(powers[20:]) == pytest.approx(24, abs=0.01)


def test_a_logger_takes_its_time_to_hand_a_limit_on():
    inverter, logger = machine(Kind.PV, Site()), machine(Kind.LOGGER, Site())
    for one in (inverter, logger):
        one.advance(0)
        one.limit_pct = 0
        one.advance(2)

    assert inverter.power_kw < 1.5
    assert logger.power_kw == pytest.approx(60 * 0.368, abs=0.1)


def test_a_genset_starts_late_ramps_and_does_not_run_below_its_minimum():
    genset = machine(Kind.GENSET, Site())
    genset.limit_pct = 0
    genset.advance(0)
    genset.limit_pct = 10

    powers = run(genset, 60)

    assert powers[: int(GENSET_START_S)] == [0] * int(GENSET_START_S)
    steps = [after - before for before, after in pairwise(powers)]
    assert max(steps) <= 60 * 0.1 + 1e-9
    assert powers[-1] == 60 * 0.3
    assert genset.values(60)["N_rpm"] == 1500
    assert 0 < genset.fuel_l < 1


def test_a_genset_that_is_stopped_ramps_down_and_burns_nothing():
    genset = machine(Kind.GENSET, Site())
    genset.advance(0)
    assert genset.power_kw == 60
    genset.limit_pct = 0

    powers = run(genset, 20)
    burnt = genset.fuel_l
    run(genset, 100)

    assert powers[5] > 0
    assert powers[-1] == 0
    assert genset.fuel_l == burnt


def heat_pump(**fields) -> Machine:
    return machine(Kind.HEAT_PUMP, Site(), takes=Takes.MODE, limit_pct=HeatPumpMode.NORMAL, **fields)


def test_a_locked_heat_pump_does_not_run_and_a_forced_one_always_does():
    locked, forced = heat_pump(tank_degc=40), heat_pump(tank_degc=52)
    locked.limit_pct, forced.limit_pct = HeatPumpMode.LOCK, HeatPumpMode.FORCE

    assert set(run(locked, 300)) == {0}
    assert run(forced, 300)[-1] == pytest.approx(-54, abs=0.1)
    assert forced.values(300)["T_degC"] > 52


def test_a_heat_pump_keeps_its_tank_warm_by_itself():
    pump = heat_pump()

    run(pump, 3600)
    temperatures = []
    for t in range(3600, 7200, 10):
        pump.advance(t)
        temperatures.append(pump.tank_degc)

    assert 45.5 < min(temperatures) < max(temperatures) < 50.5
    assert 0 < pump.running_h < 2


def test_a_recommendation_makes_a_heat_pump_take_more():
    normal, advised = heat_pump(), heat_pump()
    advised.limit_pct = HeatPumpMode.RECOMMEND
    run(normal, 900)
    run(advised, 900)

    assert advised.imported_kwh > normal.imported_kwh


def test_a_heat_pump_keeps_a_mode_for_ten_minutes():
    pump = heat_pump()
    pump.advance(0)
    pump.limit_pct = HeatPumpMode.LOCK
    pump.advance(1)
    pump.limit_pct = HeatPumpMode.FORCE
    run(pump, KEEPS_MODE_S)
    kept = pump.mode

    run(pump, KEEPS_MODE_S + 2)

    assert kept is HeatPumpMode.LOCK
    assert pump.mode is HeatPumpMode.FORCE


def test_a_load_puts_off_what_it_can_and_no_more():
    load = machine(Kind.LOAD, Site(weather=SteadyWeather(load_share=0.5)))
    load.advance(0)
    assert load.power_kw == -30

    load.limit_pct = 30
    assert run(load, 10)[-1] == pytest.approx(-18, abs=0.01)

    load.limit_pct = 0
    assert run(load, 20)[-1] == pytest.approx(-30 * (1 - CONTROLLABLE_SHARE), abs=0.01)


@pytest.mark.parametrize(("setpoint", "power"), [(50, 30), (-50, -30), (0, 0), (-100, -60)])
def test_a_signed_setpoint_is_what_the_battery_gives_or_takes(setpoint, power):
    battery = machine(Kind.BATTERY, Site(), takes=Takes.SIGNED, limit_pct=setpoint)

    assert run(battery, 5)[-1] == pytest.approx(power, abs=0.01)


@pytest.mark.parametrize("setpoint", [100, -100])
def test_a_battery_stops_when_it_is_empty_or_full(setpoint):
    battery = machine(Kind.BATTERY, Site(), takes=Takes.SIGNED, limit_pct=setpoint, capacity_kwh=1)

    powers, charges = [], []
    for t in range(600):
        battery.advance(t)
        powers.append(battery.power_kw)
        charges.append(battery.charge_pct)

    assert 0 <= min(charges) <= max(charges) <= 100
    assert powers[-1] == pytest.approx(0, abs=0.1)
    given_kwh = battery.exported_kwh - battery.imported_kwh
    assert given_kwh == pytest.approx((60 - battery.charge_pct) / 100, abs=1e-6)


def test_a_charger_pauses_below_six_amperes_and_charges_on_as_many_phases_as_it_has():
    charger = Machine(kind=Kind.CHARGER, nameplate_kw=11, site=Site())
    charger.limit_pct = 40
    run(charger, 10)
    amperes = charger.values(10)
    assert amperes["I_L1_A"] == pytest.approx(4400 * 1.02 / 3 / 230, rel=0.02)
    assert amperes["I_L1_A"] == amperes["I_L3_A"]

    # 3.3 kW are 4.8 A on each of three phases, and 14 A on one.
    charger.limit_pct = 30
    assert run(charger, 20)[-1] == pytest.approx(0, abs=0.01)
    single = Machine(kind=Kind.CHARGER, nameplate_kw=11, site=Site(), phases=1, limit_pct=30)
    assert run(single, 20)[-1] == pytest.approx(-3.3, abs=0.01)
    assert single.values(20)["I_L2_A"] == 0


def test_the_sun_sets_and_rises():
    site = Site(weather=DaysAndNights(day_s=1000))
    pv = machine(Kind.PV, site)

    pv.advance(250)
    noon_kw, noon_is_dark = pv.power_kw, pv.is_dark
    pv.advance(750)
    night_kw, night_is_dark = pv.power_kw, pv.is_dark
    pv.advance(1250)

    assert [noon_kw, night_kw, pv.power_kw] == pytest.approx([60, 0, 60])
    assert [noon_is_dark, night_is_dark, pv.is_dark] == [False, True, False]


def test_night_is_dark_for_those_who_live_by_the_sun():
    site = Site(night=True)

    for kind, dark in ((Kind.PV, True), (Kind.LOGGER, True), (Kind.WIND, False), (Kind.GENSET, False)):
        one = machine(kind, site)
        one.advance(0)
        assert one.is_dark is dark
        assert (one.power_kw == 0) is dark


@given(st.sampled_from(list(Kind)), st.floats(0, 100), st.integers(0, 20), st.floats(0, 7200))
def test_whatever_is_measured_exists(kind, limit_pct, seed, t):
    site = Site(weather=ChangingWeather(seed=seed), peak_load_kw=30)
    one = machine(kind, site)
    one.advance(0)
    one.limit_pct = limit_pct
    one.advance(t)

    values = one.values(t)

    assert all(math.isfinite(value) for value in values.values())
    assert abs(values["P_kW"]) <= 60.001
    assert 200 < values["U_V"] < 260
    assert 49.9 < values["f_Hz"] < 50.1
    assert 0 <= values["SoC_pct"] <= 100
    assert 0 <= values["G_W/m2"] <= 1000
    assert all(one.value(key, t) == value for key, value in values.items())


def test_what_a_machine_does_not_measure_has_no_value():
    assert machine(Kind.PV, Site()).value("Moons_pct", 0) is None
