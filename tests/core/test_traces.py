"""What may have been left in a device: never less than what was asked."""

from __future__ import annotations

from functools import reduce

import pytest
from hypothesis import given, strategies as st

from edge.core.traces import MOST_SPANS, Span, Traces, contain, leave


def left(*values: float, tolerance: float = 0.5) -> Traces:
    start: Traces = ()
    return reduce(lambda traces, value: leave(traces, value, tolerance=tolerance), values, start)


@pytest.mark.parametrize(
    ("found", "is_ours"),
    [(29.4, False), (29.5, True), (30.0, True), (30.5, True), (30.6, False), (50.0, True), (40.0, False)],
)
def test_value_within_the_tolerance_of_one_that_was_asked_may_be_ours(found, is_ours):
    assert contain(left(30.0, 50.0), found, tolerance=0.5) is is_ours


def test_nothing_asked_is_nothing_left():
    assert not contain((), 0.0, tolerance=0.5)


def test_steps_of_a_ramp_are_one_span():
    assert left(50.0, 50.4, 50.8, 50.4, 49.6) == (Span(49.6, 50.8),)
    assert left(10.0, 50.0, 9.7, 50.3) == (Span(9.7, 10.0), Span(50.0, 50.3))


def test_value_asked_again_adds_nothing():
    traces = left(30.0, 50.0)
    assert leave(traces, 30.0, tolerance=0.5) is traces


def test_oldest_of_too_many_become_one():
    values = [10.0 * number for number in range(MOST_SPANS)]
    assert len(left(*values)) == MOST_SPANS
    assert left(20.0, 10.0, *values[3:], 90.0, 95.0)[0] == Span(10.0, 20.0)
    assert left(*values, 90.0) == (Span(0.0, 10.0), *(Span(value, value) for value in [*values[2:], 90.0]))


@given(values=st.lists(st.floats(-100, 200), max_size=40), tolerance=st.floats(0, 5))
def test_whatever_was_asked_may_be_ours_and_the_traces_stay_few(values, tolerance):
    traces = left(*values, tolerance=tolerance)
    assert len(traces) <= MOST_SPANS
    assert all(contain(traces, value, tolerance=tolerance) for value in values)
