"""What a device says in its own terms, and what it means: of every protocol."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from edge.profiles.points import Confidence, Message
from edge.profiles.values import from_device, to_device


def point(**fields: Any) -> Message:
    return Message(name="P", source="test", confidence=Confidence.VERIFIED, topic="a/b", **fields)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (3, 0.3),
        (3.0, 0.3),
        ("3", 0.3),
        (" 3.0 ", 0.3),
        (None, None),
        ("off", None),
        ("nan", None),
        (math.inf, None),
        ({}, None),
        ([3], None),
        (10**400, None),
    ],
)
def test_numbers_are_scaled_and_what_is_none_is_no_value(raw, value):
    assert from_device(point(scale=0.1), raw) == value


def test_signs_are_turned_both_ways():
    meter = point(scale=0.001, sign=-1)

    assert from_device(meter, 1500) == -1.5
    assert to_device(meter, -1.5) == 1500


@pytest.mark.parametrize(
    ("codes", "raw", "value"),
    [
        ({"0": "OFF", "100": "ON"}, "ON", 100),
        ({"0": "OFF", "100": "ON"}, " OFF ", 0),
        ({"0": "OFF", "100": "ON"}, "on", None),
        ({"0": "OFF", "100": "ON"}, 100, None),
        ({"0": 2, "100": 1}, 1, 100),
        ({"0": 2, "100": 1}, "2", 0),
        ({"0": 2, "100": 1}, 0, None),
        ({"0": "false", "1": "true"}, True, 1),
        ({"0": "false", "1": "true"}, False, 0),
        ({"0": 0, "1": 1}, True, 1),
    ],
)
def test_codes_stand_for_values_and_anything_else_for_none(codes, raw, value):
    assert from_device(point(codes=codes), raw) == value


def test_value_without_a_code_is_never_told():
    modes = point(codes={"0": "OFF", "100": "ON"})

    assert to_device(modes, 100.0) == "ON"
    with pytest.raises(ValueError, match="37 is none of 0, 100"):
        to_device(modes, 37)


@pytest.mark.parametrize(
    ("value", "message"), [(None, "no value"), (math.nan, "finite"), (math.inf, "finite"), ("much", "text")]
)
def test_what_is_no_number_is_never_told(value, message):
    with pytest.raises(ValueError, match=message):
        to_device(point(), value)


def test_text_is_a_text():
    assert from_device(point(text=True), "iWell Cube ") == "iWell Cube"
    assert from_device(point(text=True), "") is None
    assert to_device(point(text=True), "RUN") == "RUN"


def test_whole_numbers_are_told_whole_and_others_without_noise():
    assert repr(to_device(point(), 37.0)) == "37"
    assert repr(to_device(point(scale=0.01), 37.3)) == "3730"
    assert repr(to_device(point(scale=1000), 37.3)) == "0.0373"


@given(st.floats(-1e6, 1e6), st.sampled_from([1.0, 0.1, 0.01, 0.001, 10.0, 1000.0, 3.6]), st.integers(-3, 3))
def test_every_number_survives_both_ways(value, scale, exponent):
    told = to_device(point(scale=scale), value, exponent=exponent)

    assert from_device(point(scale=scale), told, exponent=exponent) == pytest.approx(
        value, rel=1e-9, abs=1e-9
    )
