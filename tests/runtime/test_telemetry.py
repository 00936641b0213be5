"""Which readings are told, when, and as what."""

from __future__ import annotations

import math
from typing import cast

import msgspec
import pytest

from edge.core.instant import Instant
from edge.profiles.reading import profile_to_builtins
from edge.runtime import config
from edge.runtime.bus import Bus, Listener
from edge.runtime.config import Plan
from edge.runtime.cycle import Reading, Unit
from edge.runtime.telemetry import POINTS_PER_ENTRY, TOO_OLD_S, Telemetry, unit_by_suffix
from edge.wire.messages import TelemetryPoint
from tests.core.devices import device
from tests.runtime.plant import SITE, TurnedClock, profile

A, B = "INVERTER_01", "INVERTER_02"


# The line is never served.
NOBODY = cast("Listener", None)


class Site:
    """Two devices that are polled whenever a test says so."""

    def __init__(self) -> None:
        self.clock = TurnedClock()
        self.telemetry = Telemetry()
        bus = Bus(name="line", clock=self.clock, listener=NOBODY, min_gap_s=0.0)
        self.units = {tag: Unit(device(tag=tag), bus, can_write=True, key=tag) for tag in (A, B)}
        self.intervals = {A: 10.0, B: 10.0}

    @property
    def plan(self) -> Plan:
        kind = profile()
        devices = [
            {
                "id": tag, "tag": tag, "category": "inverter", "profile": kind.name, "host": "127.0.0.1",
                "port": port, "unit": 1, "nameplate_kw": 60.0, "telemetry_s": self.intervals[tag],
            }
            for port, tag in enumerate(self.units, start=1502)
        ]  # fmt: skip
        return config.plan(
            {"site": SITE, "devices": devices, "profiles": {kind.name: profile_to_builtins(kind)}}
        )

    def polled(self, tag: str, **values: float | None) -> None:
        now = self.clock.now()
        self.units[tag].readings = {key: Reading(value, now) for key, value in values.items()}
        self.units[tag].reachable = True

    def due(self) -> list[TelemetryPoint]:
        return list(self.telemetry.due(self.units, self.plan, self.clock.now()))

    def told_over(self, seconds: int, *tags: str) -> list[TelemetryPoint]:
        """Poll and look once a second."""
        told = []
        for second in range(seconds):
            for tag in tags:
                self.polled(tag, P_kW=float(second))
            told += self.due()
            self.clock.advance(1.0)
        return told


@pytest.fixture
def site() -> Site:
    return Site()


def values(points: list[TelemetryPoint], tag: str) -> list[float]:
    return [point.value for point in points if point.device == tag]


def test_last_value_of_each_interval_is_told(site):
    site.intervals = {A: 10.0, B: 4.0}
    told = site.told_over(21, A, B)
    assert values(told, A) == [0, 10, 20]
    assert values(told, B) == [0, 4, 8, 12, 16, 20]


def test_interval_below_a_second_is_a_second(site):
    for interval in (0.0, -5.0, math.nan):
        site.intervals[A] = interval
        assert len(values(site.told_over(5, A), A)) == 5


def test_point_carries_unit_moment_and_device(site):
    site.polled(A, P_kW=41.5)
    (point,) = site.due()
    assert point == TelemetryPoint(
        t="2026-03-02T10:00:00.000000Z", key="P_kW", value=41.5, unit="kW", device=A
    )


@pytest.mark.parametrize(
    ("key", "unit"),
    [("P_kW", "kW"), ("E_kWh", "kWh"), ("V_Wind_m/s", "m/s"), ("T_degC", "degC"), ("State", "")],
)
def test_unit_of_a_key_that_the_profile_does_not_have_is_in_its_end(key, unit):
    assert unit_by_suffix(key) == unit


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_told(site, value):
    site.polled(A, P_kW=value, Q_kvar=1.0)
    assert [point.key for point in site.due()] == ["Q_kvar"]


def test_same_reading_is_told_once(site):
    site.polled(A, P_kW=1.0)
    assert len(site.due()) == 1
    site.clock.advance(10)
    assert site.due() == []


def test_lost_device_tells_nothing(site):
    site.polled(A, P_kW=1.0)
    site.units[A].reachable = False
    assert site.due() == []


def test_reading_older_than_a_quarter_of_an_hour_is_never_told(site):
    site.polled(A, P_kW=1.0)
    site.polled(B, P_kW=2.0)
    site.clock.advance(TOO_OLD_S + 1)
    site.polled(B, P_kW=3.0)
    assert [(point.device, point.value) for point in site.due()] == [(B, 3.0)]


def test_age_does_not_depend_on_the_wall_clock(site):
    site.polled(A, P_kW=1.0)
    site.clock.jump_wall(3600)
    assert len(site.due()) == 1


def test_first_reading_is_told_at_once_however_long_it_took(site):
    assert site.due() == []
    site.clock.advance(3)
    site.polled(A, P_kW=1.0)
    assert len(site.due()) == 1


def test_without_a_link_one_value_a_minute_of_each_key_is_kept(site):
    kept = []
    for second in range(181):
        site.polled(A, P_kW=float(second), Q_kvar=0.0)
        if second % 20 == 0:
            kept += list(site.telemetry.kept(site.units, site.plan, site.clock.now()))
        site.clock.advance(1.0)
    assert [entry.kind for entry in kept] == ["points"] * 4
    points = [point for entry in kept for point in entry.points]
    assert [point.value for point in points if point.key == "P_kW"] == [0, 60, 120, 180]
    assert {point.unit for point in points} == {"kW", "kvar"}


def test_many_points_are_several_entries(site):
    site.polled(A, **{f"P{number}_kW": float(number) for number in range(2 * POINTS_PER_ENTRY + 1)})
    entries = list(site.telemetry.kept(site.units, site.plan, site.clock.now()))
    assert [len(entry.points) for entry in entries] == [POINTS_PER_ENTRY, POINTS_PER_ENTRY, 1]
    assert all(len(msgspec.json.encode(entry)) < 32 * 1024 for entry in entries)


def test_device_that_goes_while_points_are_sent_ends_nothing(site):
    site.polled(A, P_kW=1.0)
    site.polled(B, P_kW=2.0)
    points = site.telemetry.due(site.units, site.plan, site.clock.now())
    assert next(points).device == A
    del site.units[B]
    assert list(points) == []
    site.telemetry.forget(site.units)
    assert set(site.telemetry._looked_at) == {A}


def test_device_that_is_not_configured_tells_nothing(site):
    site.polled(A, P_kW=1.0)
    now: Instant = site.clock.now()
    assert list(site.telemetry.due(site.units, None, now)) == []
