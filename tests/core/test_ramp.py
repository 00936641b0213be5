"""A ramp: the first step at once, then no faster than its rate, and standing still saves nothing up."""

from __future__ import annotations

import pytest
from hypothesis import example, given, strategies as st

from edge.core.ramp import Ramp, move

START = Ramp(100.0, 100.0, 1000.0)


def at(target: float, boottime_s: float, *, ramp: Ramp = START, rate_per_s: float = 2.0) -> Ramp:
    return move(target, ramp=ramp, rate_per_s=rate_per_s, now_boottime_s=boottime_s)


@pytest.mark.parametrize(("target", "value"), [(30.0, 98.0), (170.0, 102.0), (99.0, 99.0), (98.0, 98.0)])
@pytest.mark.parametrize("stood_s", [0.0, 3600.0])
def test_first_step_is_one_second_of_the_rate_however_long_it_stood(target, value, stood_s):
    assert at(target, 1000.0 + stood_s).value == value


def test_each_moment_is_paid_for_once():
    ramp = at(30.0, 1000.0)
    assert at(30.0, 1000.0, ramp=ramp) == ramp
    ramp = at(30.0, 1000.25, ramp=ramp)
    assert ramp.value == 97.5
    assert at(30.0, 1003.25, ramp=ramp).value == 91.5


def test_ramp_whose_target_comes_to_where_it_is_saves_nothing_up():
    ramp = at(98.0, 1060.0, ramp=at(30.0, 1000.0))
    assert ramp == Ramp(98.0, 98.0, 1060.0)
    assert at(30.0, 1060.0, ramp=ramp).value == 96.0


@given(
    target=st.floats(-100, 200),
    paid_until=st.floats(0, 1e8),
    later=st.floats(0, 1e6),
    rate=st.floats(1e-3, 100),
)
@example(target=122.0, paid_until=56241113.0, later=4709.9, rate=23.0)  # came back with more time to spend
@example(target=50.0, paid_until=0.0, later=2.0, rate=1.0)  # its target came to where it was
@example(target=200.0, paid_until=0.1, later=0.2, rate=1e-3)
def test_second_look_at_the_same_moment_changes_nothing(target, paid_until, later, rate):
    now = paid_until + later
    first = at(target, now, ramp=Ramp(50.0, 60.0, paid_until), rate_per_s=rate)
    assert at(target, now, ramp=first, rate_per_s=rate) == first


def test_small_step_leaves_the_rest_of_its_second_for_the_next():
    ramp = at(99.0, 1000.0)
    assert ramp == Ramp(99.0, 99.0, 1000.5)
    assert at(30.0, 1000.0, ramp=ramp).value == 98.0


def test_time_paid_in_advance_does_not_move_a_ramp_that_reached_its_target():
    ramp = at(98.0, 1000.0)
    assert ramp == Ramp(98.0, 98.0, 1001.0)
    assert at(100.0, 1000.0, ramp=ramp).value == 98.0
    assert at(100.0, 1000.5, ramp=ramp).value == 99.0


@given(
    targets=st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 30).filter(lambda s: s == 0 or s > 1e-3)), max_size=20
    ),
    rate=st.floats(0.01, 50),
)
def test_nothing_moves_faster_than_its_rate_in_any_stretch_of_time(targets, rate):
    now, ramp = 1000.0, Ramp(50.0, 50.0, 1000.0)
    track = [(now, ramp.value)]
    for target, later in targets:
        now += later
        before, ramp = ramp, at(target, now, ramp=ramp, rate_per_s=rate)
        assert min(before.value, target) <= ramp.value <= max(before.value, target)
        for then, value in track:
            assert abs(ramp.value - value) <= rate * (now - then + 1) + 1e-6
        track.append((now, ramp.value))


@given(target=st.floats(0, 100), rate=st.floats(0.1, 50))
def test_ramp_arrives_in_the_time_its_rate_takes_less_the_second_it_is_ahead(target, rate):
    ramp = START
    seconds = 0
    while ramp.value != target:
        ramp = at(target, 1000.0 + seconds, ramp=ramp, rate_per_s=rate)
        seconds += 1
        assert seconds <= abs(target - 100.0) / rate + 2
