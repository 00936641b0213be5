"""What a device says for itself gets into its profile whole, and what it does not say leaves it in one piece."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from edge.profiles.errors import ProfileError
from edge.profiles.loader import load_profile
from edge.profiles.reading import profile_from_builtins, profile_to_builtins


def _point(address: int | str, **more: Any) -> dict[str, Any]:
    point = {
        "name": "register",
        "source": "test",
        "confidence": "verified",
        "address": address,
        "type": "u16",
    }
    return {**point, **more}


@pytest.fixture
def data() -> dict[str, Any]:
    """A battery of which some have a switch, a heartbeat, a state of charge and a rated power, and some not."""
    return {
        "name": "battery",
        "title": "Battery",
        "maker": "Generic",
        "model": "battery",
        "category": "battery",
        "protocol": "modbus_tcp",
        "verified_on_hardware": False,
        "source": "test",
        "value_kind": "power_cap_pct",
        "parameters": {
            "cap": {"title": "Register of the cap", "type": "integer", "example": 10},
            "switch": {"title": "Register of the switch", "type": "integer", "optional": True, "example": 20},
            "beat": {
                "title": "Register of the heartbeat",
                "type": "integer",
                "optional": True,
                "example": 30,
            },
            "soc": {"title": "Register of the charge", "type": "integer", "optional": True, "example": 40},
            "rated": {"title": "Register of the rating", "type": "integer", "optional": True, "example": 50},
            "sign": {"title": "Sign", "type": "integer", "default": 1, "choices": [1, -1]},
        },
        "points": {
            "cap": _point("${cap}", access="read_write", unit="%"),
            "switch": _point("${switch}", access="read_write"),
            "beat": _point("${beat}", access="write"),
            "soc": _point("${soc}", unit="%"),
            "rated": _point("${rated}", unit="kW"),
            "power": _point(60, unit="kW", sign="${sign}"),
        },
        "identity": {"nameplate": "rated"},
        "limit": {
            "register": "cap",
            "write_class": "volatile",
            "tolerance": 0.5,
            "set": [{"point": "cap", "value": "$value"}, {"point": "switch", "value": 1}],
            "release": [{"point": "switch", "value": 0}],
            "readback": "cap",
            "readback_switch": {"point": "switch", "equals": 1},
            "requires": [{"point": "switch", "equals": [0, 1]}],
            "fallback": {
                "timeout_s": 60,
                "takes": "stop",
                "keep_alive": [{"point": "beat", "value": 1}],
                "keep_alive_class": "volatile",
            },
        },
        "telemetry": {"P_kW": "power", "SoC_pct": "soc"},
    }


def test_a_device_that_says_all_has_all(data):
    profile = profile_from_builtins(
        data, {"cap": 1, "switch": 2, "beat": 3, "soc": 4, "rated": 5, "sign": -1}
    )

    assert {name: point.address for name, point in profile.registers.items()} == {
        "cap": 1,
        "switch": 2,
        "beat": 3,
        "soc": 4,
        "rated": 5,
        "power": 60,
    }
    assert profile.points["power"].sign == -1
    assert profile.limit is not None
    assert profile.limit.fallback is not None


def test_what_a_device_does_not_have_is_left_out_with_all_that_needs_it(data):
    profile = profile_from_builtins(data, {"cap": 1})

    assert set(profile.points) == {"cap", "power"}
    assert profile.telemetry == {"P_kW": "power"}
    assert profile.identity.nameplate is None
    limit = profile.limit
    assert limit is not None
    assert [step.point for step in limit.set] == ["cap"]
    assert (limit.release, limit.readback_switch, limit.requires, limit.fallback) == (None, None, (), None)
    assert limit.readback == "cap"


def test_one_part_less_leaves_the_others_alone(data):
    profile = profile_from_builtins(data, {"cap": 1, "switch": 2})

    limit = profile.limit
    assert limit is not None
    assert [step.point for step in limit.set] == ["cap", "switch"]
    assert limit.release is not None
    assert limit.readback_switch is not None
    assert limit.fallback is None


def test_a_point_that_is_written_together_with_others_is_left_out_alone(data):
    data["points"]["switch"]["address"] = 11
    data["points"]["extra"] = _point(12, access="read_write", example="${soc}")
    data["limit"]["set"] = [{"point": "cap", "value": "$value", "together": {"switch": 1, "extra": 0}}]
    data["parameters"]["switch"]["example"] = 11

    with_all = profile_from_builtins(data, {"cap": 10, "switch": 11, "soc": 40})
    without = profile_from_builtins(data, {"cap": 10, "switch": 11})

    assert with_all.limit is not None
    assert without.limit is not None
    assert list(with_all.limit.set[0].writes) == ["cap", "switch", "extra"]
    assert list(without.limit.set[0].writes) == ["cap", "switch"]


@pytest.mark.parametrize("given", [{"cap": 1}, {"cap": 1, "switch": 2}])
def test_a_bound_profile_survives_the_way_through_json(data, given):
    profile = profile_from_builtins(data, given)

    again = profile_from_builtins(profile_to_builtins(profile))

    assert again == profile


@pytest.mark.parametrize(
    ("given", "key", "expectation"),
    [
        ({}, "parameters.cap", "required: Register of the cap"),
        ({"cap": "ten"}, "parameters.cap", "expected a number"),
        ({"cap": 1.5}, "parameters.cap", "expected a whole number"),
        ({"cap": 1, "sign": 2}, "parameters.sign", "expected one of 1, -1"),
        ({"cap": 1, "colour": "red"}, "parameters.colour", "no such parameter; there are: cap, switch"),
        ({"cap": 70000}, "points.cap.address", "<= 65535"),
    ],
)
def test_a_wrong_parameter_is_named(data, given, key, expectation):
    with pytest.raises(ProfileError, match=expectation) as caught:
        profile_from_builtins(data, given)

    assert caught.value.key == key


@pytest.mark.parametrize(
    ("change", "key", "expectation"),
    [
        ({"default": 1}, "parameters.soc.optional", "has a default"),
        ({"example": None}, "parameters.soc", "an example where there is none"),
    ],
)
def test_a_broken_optional_parameter_is_named(data, change, key, expectation):
    data["parameters"]["soc"] |= change

    with pytest.raises(ProfileError, match=expectation) as caught:
        profile_from_builtins(data)

    assert caught.value.key == key


def test_only_points_can_be_left_out(data):
    data["max_value"] = "${soc}"

    with pytest.raises(ProfileError, match="only points are left out") as caught:
        profile_from_builtins(data)

    assert caught.value.key == "parameters.soc.optional"


def test_a_profile_that_cannot_do_without_its_optional_parts_is_broken(data, tmp_path):
    # Whoever lacks the register of the cap could not be controlled at all.
    data["parameters"]["cap"]["optional"] = True
    file = tmp_path / "battery.yaml"
    file.write_text(yaml.safe_dump(data))

    with pytest.raises(ProfileError, match="of a device that says only what it must") as caught:
        load_profile(file)

    assert caught.value.file == str(file)
    assert caught.value.key == "limit"


def test_an_offset_moves_every_address(data):
    data["parameters"]["offset"] = {"title": "Offset", "type": "integer", "default": 0, "choices": [0, -1]}
    data["address_offset"] = "${offset}"

    profile = profile_from_builtins(data, {"cap": 10, "soc": 40, "offset": -1})

    assert {name: point.address for name, point in profile.registers.items()} == {
        "cap": 9,
        "soc": 39,
        "power": 59,
    }
    # Once: the same profile on its way to a simulator is not moved again.
    assert profile_from_builtins(profile_to_builtins(profile)).registers["power"].address == 59


@pytest.mark.parametrize(("cap", "offset"), [(0, -1), (65535, 1)])
def test_an_offset_beyond_the_address_space_is_refused(data, cap, offset):
    data["address_offset"] = offset

    with pytest.raises(ProfileError, match="expected 0 to 65535") as caught:
        profile_from_builtins(data, {"cap": cap})

    assert caught.value.key == "points.cap.address"


def test_what_has_no_addresses_of_its_own_has_no_offset(data):
    data |= {"sunspec": True, "address_offset": 1}
    for point in data["points"].values():
        point["model"] = 123

    with pytest.raises(ProfileError, match="registers with addresses of their own") as caught:
        profile_from_builtins(data)

    assert caught.value.key == "address_offset"
