"""The physics behind simulated devices."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from edge.plant import (
    DAY_S,
    ChangingWeather,
    Kind,
    Machine,
    Site,
    SteadyWeather,
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
