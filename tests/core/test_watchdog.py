"""The limit of a hold: what may be one, when it is over, what may move it."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from edge.core.commands import Hold, Source
from edge.core.instant import Instant
from edge.core.watchdog import has_lapsed, is_time_limit, shorten

HOLD = Hold((1, 1), "req", "inverter", 30.0, received_boottime_s=1000.0, ends_boottime_s=1060.0)


def at(boottime_s: float) -> Instant:
    return Instant(datetime(2026, 3, 2, tzinfo=UTC), boottime_s)


@pytest.mark.parametrize("seconds", [1.0, 60.0, 3600.0])
def test_limit_is_one_second_to_an_hour(seconds):
    assert is_time_limit(seconds)


@pytest.mark.parametrize("seconds", [0.0, -0.0, -1.0, 0.999, 3600.001, math.inf, -math.inf, math.nan])
def test_limit_that_would_switch_the_watchdog_off_is_none(seconds):
    assert not is_time_limit(seconds)


@pytest.mark.parametrize(
    ("boottime_s", "over"), [(1000.0, False), (1060.0, False), (1060.001, True), (1e9, True)]
)
def test_hold_is_over_after_its_end(boottime_s, over):
    assert has_lapsed(HOLD, now=at(boottime_s)) is over


@pytest.mark.parametrize(
    ("limit_s", "ends_s"), [(10.0, 1010.0), (60.0, 1060.0), (600.0, 1060.0), (math.nan, 1060.0)]
)
def test_changed_limit_only_shortens(limit_s, ends_s):
    assert shorten(HOLD, time_limit_s=limit_s).ends_boottime_s == ends_s


def test_sources_are_called_by_their_names_in_order_of_priority():
    assert [source.label for source in sorted(Source)] == ["direct", "closed_loop", "schedule", "default"]
