"""What a profile of an MQTT device must say, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from edge.profiles.errors import ProfileError
from edge.profiles.reading import profile_from_builtins

FACT = {"source": "a test", "confidence": "unverified"}
SOUND: dict[str, Any] = {
    "name": "sound",
    "title": "A sound MQTT battery",
    "maker": "Nobody",
    "model": "None",
    "category": "battery",
    "protocol": "mqtt",
    "verified_on_hardware": False,
    "source": "a test",
    "value_kind": "power_cap_pct",
    "parameters": {"device": {"title": "Name in the topics", "default": "battery-1"}},
    "availability": {"topic": "site/${device}/availability"},
    "points": {
        "power": {
            "name": "power_w",
            "topic": "site/${device}/state",
            "path": "power_w",
            "unit": "kW",
            **FACT,
        },
        "cap_in_force": {
            "name": "cap_pct",
            "topic": "site/${device}/state",
            "path": "cap[0].pct",
            "unit": "%",
            **FACT,
        },
        "cap": {
            "name": "cap",
            "topic": "site/${device}/setpoint",
            "access": "write",
            "unit": "%",
            "payload": {"id": "$id", "cap_pct": "$value", "valid_s": "$valid_s"},
            "valid_s": 60,
            "ack_topic": "site/${device}/setpoint/ack",
            **FACT,
        },
    },
    "limit": {
        "register": "cap",
        "write_class": "volatile",
        "tolerance": 0.5,
        "set": [{"point": "cap", "value": "$value"}],
        "readback": "cap_in_force",
        "fallback": {
            "timeout_s": 60,
            "keep_alive": [{"point": "cap", "value": "$value"}],
            "keep_alive_class": "volatile",
            "takes": "release",
        },
    },
    "telemetry": {"P_kW": "power"},
}


def test_a_devices_own_parameters_are_in_its_topics():
    profile = profile_from_builtins(SOUND, {"device": "cube-7"})

    assert profile.points["power"].key == "site/cube-7/state power_w"
    assert profile.availability is not None
    assert profile.availability.topic == "site/cube-7/availability"


def test_a_parameter_may_name_others_that_name_none():
    body = copy.deepcopy(SOUND)
    body["parameters"]["state"] = {"title": "Topic of its state", "default": "site/${device}/state"}
    body["points"]["power"]["topic"] = "${state}"

    assert (
        profile_from_builtins(body, {"device": "cube-7"}).points["power"].key == "site/cube-7/state power_w"
    )
    assert profile_from_builtins(body, {"state": "s"}).points["power"].key == "s power_w"
    with pytest.raises(ProfileError, match=r"parameters\.device: it names one that names another"):
        profile_from_builtins(body, {"device": "${state}"})
    with pytest.raises(ProfileError, match=r"parameters\.state: there is no parameter 'plant'"):
        profile_from_builtins(body, {"state": "${plant}"})


@pytest.mark.parametrize("wildcard", ["#", "+", "a/+/b"])
def test_a_device_whose_name_makes_a_wildcard_of_a_topic_is_refused(wildcard):
    with pytest.raises(ProfileError, match="expected a topic without wildcards"):
        profile_from_builtins(SOUND, {"device": wildcard})


@pytest.mark.parametrize(
    ("path", "value", "key", "expectation"),
    [
        ("availability.topic", "site/+", "availability.topic", "without wildcards"),
        ("availability.topic", "", "availability.topic", "length >= 1"),
        ("availability.path", "a..b", "availability.path", "is not a path"),
        ("availability.offline", "online", "availability.offline", "another word"),
        ("points.power.topic", "site/#", "points.power.topic", "without wildcards"),
        ("points.power.path", "power.", "points.power.path", "is not a path"),
        ("points.power.access", "read_write", "points.power.access", "expected two points"),
        ("points.power.ack_topic", "a", "points.power.ack_topic", "not writable"),
        ("points.power.valid_s", 5, "points.power.valid_s", "not writable"),
        ("points.cap.kept", True, "points.cap.kept", "not readable"),
        ("points.cap.ack_topic", "site/+/ack", "points.cap.ack_topic", "without wildcards"),
        ("points.cap.ack_ok", "[", "points.cap.ack_ok", "is not a path"),
        ("points.cap.payload", {"cap": "$value"}, "points.cap.payload", r"expected \$id"),
        ("points.cap.payload", {"id": "$id", "c": "$setpoint"}, "points.cap.payload", r"no \$setpoint"),
        ("points.cap.payload", {"id": "$id"}, "limit.set[0].value", r"does not say \$value"),
        ("points.cap.valid_s", None, "points.cap.payload", "expected valid_s beside it"),
        ("limit.fallback", None, "limit.set[0].point", "is valid for 60 s only, expected a fallback"),
        ("points.cap.valid_s", 30, "limit.set[0].point", "is valid for 30 s"),
        ("points.cap.qos", 2, "points.cap.qos", "Invalid enum value 2"),
    ],
)
def test_a_broken_mqtt_profile_names_key_and_expectation(path, value, key, expectation):
    broken = copy.deepcopy(SOUND)
    *parents, last = path.split(".")
    place = broken
    for parent in parents:
        place = place[parent]
    place[last] = value

    with pytest.raises(ProfileError, match=expectation) as caught:
        profile_from_builtins(broken)
    assert caught.value.key == key
