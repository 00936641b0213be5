"""What holds for all profiles of Modbus inverters and of the loggers that limit them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge.profiles.loader import load_all
from edge.profiles.model import VALUE, Profile, Step
from edge.profiles.points import Confidence

INVERTERS = {
    name: profile
    for name, profile in load_all().items()
    if profile.category == "inverter" and profile.protocol.is_modbus
}
CONTROLLABLE = sorted(name for name, profile in INVERTERS.items() if profile.limit is not None)
UNSURE = (Confidence.UNVERIFIED, Confidence.DISPUTED)


def steps(profile: Profile) -> Iterator[Step]:
    """All that is ever written to a device of this profile."""
    limit = profile.limit
    if limit is None:
        return
    own = limit.fallback
    yield from (*limit.once, *limit.set, *(limit.release or ()))
    if own is not None:
        yield from (*own.arm, *own.keep_alive)


def test_the_guides_inverters_are_there():
    assert {
        "sma_stp60",
        "sma_stp60_im20",
        "sungrow_sg60ktl",
        "sungrow_sg110cx",
        "growatt_max_60ktl",
        "solaredge",
        "solaredge_sunspec",
    } <= INVERTERS.keys()


def test_a_request_to_the_category_of_inverters_reaches_the_guides_loggers():
    # A category request takes devices by their own category, and a profile's is where that begins.
    assert {
        "sma_data_manager_m",
        "huawei_smartlogger_3000a",
        "sungrow_logger1000",
        "bluelog_xc_rpc",
        "bluelog_xc_power_control",
    } <= set(CONTROLLABLE)


def test_what_is_limited_by_another_device_is_only_measured():
    assert set(INVERTERS) - set(CONTROLLABLE) == {"sma_stp60", "bluelog_xc_plant"}


@pytest.mark.parametrize("name", sorted(INVERTERS))
def test_what_is_not_certain_says_what_to_look_at(name):
    for key, point in INVERTERS[name].points.items():
        assert point.confidence not in UNSURE or point.note, key


@pytest.mark.parametrize("name", CONTROLLABLE)
def test_nothing_is_written_that_is_said_not_to_be(name):
    profile = INVERTERS[name]
    written = {point for step in steps(profile) for point in step.writes}

    for key in written:
        note = profile.points[key].note
        assert "not used here" not in note, key
        assert "written from here" not in note, key


@pytest.mark.parametrize("name", CONTROLLABLE)
def test_what_is_set_up_once_is_written_only_where_it_differs(name):
    limit = INVERTERS[name].limit
    assert limit is not None
    own = limit.fallback

    for step in (*limit.once, *(own.arm if own is not None else ())):
        assert step.when == "if_different", step.point


@pytest.mark.parametrize("name", CONTROLLABLE)
def test_a_switch_is_turned_on_with_the_value_or_after_it(name):
    limit = INVERTERS[name].limit
    assert limit is not None
    assert limit.readback_switch is None or limit.readback_switch.point != limit.register
    of_value = next(index for index, step in enumerate(limit.set) if VALUE in step.writes.values())

    if limit.readback_switch is not None:
        switch = limit.readback_switch.point
        assert all(index >= of_value for index, step in enumerate(limit.set) if switch in step.writes)


@pytest.mark.parametrize("name", sorted(INVERTERS))
def test_who_commissions_it_is_told_what_to_know(name):
    # How a limit ends that nobody ends, above all.
    assert len(INVERTERS[name].notes) > 80
