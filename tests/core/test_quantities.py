"""Bounds intersect, the lowest maximum wins, and the device's own range has the last word."""

from __future__ import annotations

import math

import pytest

from edge.core.quantities import Bound, Bounded, apply_bounds

DEVICE = Bound("device", 0.0, 100.0)


@pytest.mark.parametrize(
    ("wish", "bounds", "value", "bounded_by"),
    [
        (40.0, [], 40.0, None),
        (0.0, [], 0.0, None),
        (100.0, [], 100.0, None),
        (120.0, [], 100.0, "device"),
        (-5.0, [], 0.0, "device"),
        (80.0, [Bound("grid", maximum=60.0)], 60.0, "grid"),
        (60.0, [Bound("grid", maximum=60.0)], 60.0, None),
        (80.0, [Bound("grid", maximum=60.0), Bound("owner", maximum=50.0)], 50.0, "owner"),
        (80.0, [Bound("owner", maximum=50.0), Bound("grid", maximum=60.0)], 50.0, "owner"),
        (5.0, [Bound("owner", minimum=20.0)], 20.0, "owner"),
        (5.0, [Bound("owner", minimum=20.0), Bound("trader", minimum=30.0)], 30.0, "trader"),
        (150.0, [Bound("grid", maximum=120.0)], 100.0, "device"),
    ],
)
def test_allowed_value_nearest_to_the_wish_is_chosen(wish, bounds, value, bounded_by):
    assert apply_bounds(wish, bounds, device=DEVICE) == Bounded(value, bounded_by)


@pytest.mark.parametrize("wish", [0.0, 30.0, 50.0, 100.0])
def test_lowest_maximum_wins_where_bounds_leave_nothing(wish):
    bounds = [Bound("owner", minimum=60.0), Bound("grid", maximum=20.0)]
    assert apply_bounds(wish, bounds, device=DEVICE) == Bounded(20.0, "grid" if wish != 20.0 else None)


def test_bound_below_the_device_leaves_the_end_of_its_range():
    turbine = Bound("device", 10.0, 100.0)
    assert apply_bounds(80.0, [Bound("grid", maximum=5.0)], device=turbine) == Bounded(10.0, "device")


@pytest.mark.parametrize("bound", [Bound("grid", maximum=-math.inf), Bound("grid", minimum=math.inf)])
def test_infinite_bound_never_reaches_a_device(bound):
    assert 0.0 <= apply_bounds(50.0, [bound], device=DEVICE).value <= 100.0


@pytest.mark.parametrize("limits", [{"minimum": math.nan}, {"maximum": math.nan}])
def test_bound_that_is_no_number_is_refused_rather_than_ignored(limits):
    with pytest.raises(ValueError, match="a bound of grid is not a number"):
        Bound("grid", **limits)
