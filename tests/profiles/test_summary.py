"""What a profile is said to be able to do is what it says itself, and no better known than that."""

from __future__ import annotations

from typing import Any

import pytest

from edge.core.commands import WriteClass
from edge.profiles.loader import load_all
from edge.profiles.model import ValueKind
from edge.profiles.points import Confidence
from edge.profiles.reading import profile_from_builtins
from edge.profiles.summary import capabilities_of, confidence_of

PROFILES = load_all()


@pytest.fixture
def data() -> dict[str, Any]:
    return {
        "name": "inverter",
        "title": "Inverter",
        "maker": "Generic",
        "model": "inverter",
        "category": "inverter",
        "protocol": "modbus_tcp",
        "verified_on_hardware": False,
        "source": "test",
        "value_kind": "active_power_limit_pct",
        "points": {
            "limit_target": {
                **_point(32),
                "type": "u16",
                "access": "read_write",
                "scale": 0.01,
                "unit": "%",
            },
            "limit_in_force": {**_point(50), "type": "u16", "scale": 0.01, "unit": "%"},
            "power": {**_point(51), "type": "s32", "unit": "kW"},
            "beat": {**_point(60), "type": "u16", "access": "write"},
        },
        "limit": {
            "register": "limit_target",
            "write_class": "volatile",
            "tolerance": 0.1,
            "set": [{"point": "limit_target", "value": "$value"}],
            "readback": "limit_in_force",
        },
        "telemetry": {"P_kW": "power"},
    }


def _point(address: int) -> dict[str, Any]:
    return {"name": f"register {address}", "source": "test", "confidence": "verified", "address": address}


@pytest.mark.parametrize("name", ["limit_target", "limit_in_force"])
def test_control_is_known_no_better_than_the_weakest_point_it_needs(data, name):
    assert confidence_of(profile_from_builtins(data)) is Confidence.VERIFIED

    data["points"][name] |= {"confidence": "disputed", "note": "sources disagree"}

    assert confidence_of(profile_from_builtins(data)) is Confidence.DISPUTED


def test_a_reading_of_little_confidence_leaves_control_as_it_is(data):
    data["points"]["power"]["confidence"] = "unverified"

    profile = profile_from_builtins(data)

    assert confidence_of(profile) is Confidence.VERIFIED
    assert capabilities_of(profile).reads_confidence is Confidence.UNVERIFIED


def test_a_number_is_known_no_better_than_its_scale(data):
    data["points"]["limit_target"]["scale_point"] = "scale"
    data["points"]["scale"] = {**_point(70), "type": "s16", "confidence": "unverified"}

    assert confidence_of(profile_from_builtins(data)) is Confidence.UNVERIFIED


def test_a_device_that_is_only_measured_is_known_by_what_is_read_of_it(data):
    del data["limit"]
    data["points"]["power"]["confidence"] = "derived"

    profile = profile_from_builtins(data)

    assert confidence_of(profile) is Confidence.DERIVED
    assert capabilities_of(profile).control is None
    assert capabilities_of(profile).fallback is None


def test_what_a_setpoint_is_worth_and_costs_is_said(data):
    data["limit"]["write_class"] = "persistent"

    control = capabilities_of(profile_from_builtins(data)).control

    assert control is not None
    assert (control.kind, control.unit) == (ValueKind.ACTIVE_POWER_LIMIT_PCT, "%")
    assert (control.minimum, control.maximum, control.default) == (0, 100, 100)
    # The budget that a node gives a register whose maker names none.
    assert (control.write_class, control.writes_per_day) == (WriteClass.PERSISTENT, 20)
    assert control.reads_back
    assert not control.releases
    assert not control.recognised


@pytest.mark.parametrize(
    ("takes", "keep_alive_class", "unless"),
    [
        ("value", "volatile", ""),
        ("value", "unknown", "accept_wear"),
        ("stop", "volatile", "arm_fallback"),
        ("release", "persistent", "accept_wear and arm_fallback"),
    ],
)
def test_what_has_to_be_set_for_an_own_fallback_is_said(data, takes, keep_alive_class, unless):
    data["limit"]["fallback"] = {
        "timeout_s": 60,
        "takes": takes,
        "arm": [{"point": "beat", "value": "$fallback"}],
        "keep_alive": [{"point": "beat", "value": 1}],
        "keep_alive_class": keep_alive_class,
    }

    fallback = capabilities_of(profile_from_builtins(data)).fallback

    assert fallback is not None
    assert (fallback.takes, fallback.timeout_s) == (takes, 60)
    assert (fallback.by_default, fallback.unless) == (not unless, unless)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_profile_has_a_summary(name):
    capabilities = capabilities_of(PROFILES[name])

    assert capabilities.protocols[0] is PROFILES[name].protocol
    assert (capabilities.control is not None) == PROFILES[name].controllable


def test_a_fallback_that_nobody_has_to_arm_is_kept_alive_by_default(data):
    data["limit"]["fallback"] = {
        "timeout_s": 60,
        "takes": "stop",
        "keep_alive": [{"point": "beat", "value": 1}],
        "keep_alive_class": "volatile",
    }

    fallback = capabilities_of(profile_from_builtins(data)).fallback

    assert fallback is not None
    assert fallback.by_default
