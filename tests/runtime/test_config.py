"""What a configuration means, and which part of it cannot be used."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from edge.core.schedule import value_at
from edge.drivers.serial_line import SerialSettings
from edge.profiles.loader import load_bodies
from edge.profiles.model import Parity
from edge.profiles.points import Protocol
from edge.profiles.reading import profile_to_builtins
from edge.runtime import config
from edge.runtime.documents import DocumentRefused
from edge.wire.codec import document
from edge.wire.messages import Document
from tests.runtime.plant import SITE, profile

PROFILES = {
    "generic_modbus": profile_to_builtins(profile(also=())),
    "on_line": profile_to_builtins(
        profile(protocol=Protocol.MODBUS_RTU, also=(), default_baud_rate=19200, default_parity=Parity.EVEN)
    ),
}


def device(tag: str = "A", **changes: Any) -> dict[str, Any]:
    return {
        "id": tag,
        "tag": tag,
        "category": "inverter",
        "profile": "generic_modbus",
        "host": "127.0.0.1",
        "port": 502,
        "unit": 1,
        **changes,
    }


def body(*devices: dict[str, Any], **site: Any) -> dict[str, Any]:
    return {"site": {**SITE, **site}, "devices": list(devices), "profiles": PROFILES}


def test_device_gets_the_sites_limits_and_its_own_range():
    plan = config.plan(
        body(device(min_value=10, default_value=90), curtailment_time_limit_s=30, cyclic_write_timeout_s=20)
    )
    settings = plan.devices["A"].settings
    assert (settings.time_limit_s, settings.period_s) == (30, 20)
    assert (settings.minimum, settings.maximum, settings.default_value) == (10, 100, 90)
    assert settings.tolerance == 0.1


@pytest.mark.parametrize("limit", [0, -1, 0.5, 3601, None, "60", 1e400])
def test_time_limit_that_would_switch_the_watchdog_off_refuses_the_configuration(limit):
    with pytest.raises(DocumentRefused):
        config.plan(body(device(), curtailment_time_limit_s=limit))


@pytest.mark.parametrize("period", [0, 9, 86401, None])
def test_cyclic_write_timeout_out_of_range_refuses_the_configuration(period):
    with pytest.raises(DocumentRefused):
        config.plan(body(device(), cyclic_write_timeout_s=period))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"profile": "nobody_knows"}, "nobody_knows"),
        ({"profile": None}, "profile"),
        ({"min_value": 50, "default_value": 20}, "default_value"),
        ({"min_value": 60, "max_value": 40, "default_value": 50}, "default_value"),
        ({"host": ""}, "host"),
        ({"host": "two..dots"}, "host"),
        ({"host": "a" * 70}, "host"),
        ({"host": "a\0b"}, "host"),
        ({"host": "   "}, "host"),
        ({"host": "http://10.0.0.9:502"}, "host"),
        ({"host": "10.0.0.9:502"}, "host"),
        ({"host": "a." * 5000}, "host"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"unit": 256}, "unit"),
        ({"unit": -1}, "unit"),
        ({"poll_s": 0}, "poll_s"),
        ({"poll_s": -1}, "poll_s"),
        ({"poll_s": 1e400}, "poll_s"),
        ({"lifetime": "for ever"}, "Lifetime"),
        ({"tag": None}, "tag"),
        ({"tag": ""}, "tag"),
        ({"tag": " "}, "tag"),
        ({"tag": "a\nb"}, "tag"),
        ({"tag": "a\0b"}, "tag"),
        ({"tag": "A" * 65}, "tag"),
        ({"tag": "leaving:B"}, "tag"),
        ({"port": "502"}, "port"),
    ],
)
def test_device_that_cannot_be_used_is_refused_alone(changes, complaint):
    plan = config.plan(body({**device("A"), **changes}, device("B")))

    assert list(plan.devices) == ["B"]
    (reason,) = plan.refused.values()
    assert complaint in reason


@pytest.mark.parametrize("tag", ["A", "A" * 64, "Zähler 3", "roof/east", """it's "it\"""", "+"])
def test_name_that_people_can_read_is_a_tag(tag):
    assert list(config.plan(body(device(tag))).devices) == [tag]


@pytest.mark.parametrize(
    ("one", "other"),
    [("pv.example", "PV.Example."), ("::1", "0:0:0:0:0:0:0:1"), ("bücher.example", "xn--bcher-kva.example")],
)
def test_two_spellings_of_a_host_are_one_control_point(one, other):
    plan = config.plan(body(device("A", host=one), device("B", host=other)))

    assert plan.refused == {"B": "its control point is that of A"}


def line_device(tag: str = "A", **changes: Any) -> dict[str, Any]:
    serial = {"profile": "on_line", "host": "", "port": 0, "serial_port": "/dev/ttyUSB0"}
    return device(tag, **{**serial, **changes})


def test_devices_of_one_serial_port_share_a_line_set_as_their_profile_says():
    plan = config.plan(body(line_device("A", unit=1), line_device("B", unit=2)))

    assert plan.devices["A"].endpoint == plan.devices["B"].endpoint
    assert plan.devices["A"].endpoint.serial == SerialSettings("/dev/ttyUSB0", 19200, Parity.EVEN, 1)
    assert str(plan.devices["A"].endpoint) == "/dev/ttyUSB0"


def test_device_may_set_its_line_otherwise_than_its_profile():
    plan = config.plan(body(line_device(baud_rate=9600, parity="odd", stop_bits=2)))

    assert plan.devices["A"].endpoint.serial == SerialSettings("/dev/ttyUSB0", 9600, Parity.ODD, 2)


def test_rtu_device_behind_a_device_server_has_a_host_and_a_port():
    endpoint = (
        config.plan(body(line_device(serial_port="", host="10.0.0.9", port=4001))).devices["A"].endpoint
    )

    assert (endpoint.host, endpoint.port, endpoint.serial) == ("10.0.0.9", 4001, None)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"serial_port": "/etc/passwd"}, "expected a path below /dev"),
        ({"serial_port": "/dev/../etc/passwd"}, "expected a path below /dev"),
        ({"serial_port": "ttyUSB0"}, "expected a path below /dev"),
        ({"serial_port": "/dev/tty\0"}, "expected a path below /dev"),
        ({"baud_rate": 9601}, "baud_rate 9601: expected one of 1200, 2400"),
        ({"parity": "mark"}, "parity 'mark': expected none, even or odd"),
        ({"stop_bits": 3}, "stop_bits 3: expected 1 or 2"),
        ({"unit": 0}, "unit 0: expected 1 to 247"),
        ({"unit": 248}, "unit 248: expected 1 to 247"),
        ({"host": "10.0.0.9"}, "expected no host beside it"),
        ({"serial_port": ""}, "host '': expected a name or an address"),
        ({"profile": "generic_modbus"}, "modbus_tcp has no serial lines"),
    ],
)
def test_line_that_cannot_be_opened_refuses_its_device(changes, complaint):
    plan = config.plan(body(line_device(**changes), device("B")))

    assert complaint in plan.refused["A"]
    assert set(plan.devices) == {"B"}


def test_one_serial_port_cannot_have_two_settings():
    plan = config.plan(body(line_device("A", unit=1), line_device("B", unit=2, baud_rate=9600)))

    assert plan.refused == {"B": "9600 baud 8E1 on /dev/ttyUSB0: expected 19200 baud 8E1, as A has it"}


def test_profile_that_cannot_be_read_refuses_its_devices_only():
    content = body(device("A", profile="broken"), device("B"))
    content["profiles"] = {**PROFILES, "broken": {"points": {"p": {}}}}
    plan = config.plan(content)

    assert (list(plan.devices), list(plan.refused)) == (["B"], ["A"])


def test_second_device_of_a_tag_is_refused_and_the_first_stays():
    plan = config.plan(body(device("A", port=1), device("A", port=2)))

    assert plan.devices["A"].config.port == 1
    assert "A" in plan.refused


def test_devices_of_one_type_share_its_profile():
    plan = config.plan(body(device("A"), device("B", port=503)))

    assert plan.devices["A"].profile is plan.devices["B"].profile


@pytest.mark.parametrize("changes", [{"excluded": True}, {"measured_only": True}])
def test_excluded_and_measured_devices_are_not_controlled(changes):
    plan = config.plan(body(device(**changes)))

    assert not plan.devices["A"].settings.is_controlled


@pytest.mark.parametrize("content", [{}, {"site": None}, {"site": SITE, "devices": 3, "profiles": {}}])
def test_what_is_no_configuration_is_refused(content):
    with pytest.raises(DocumentRefused):
        config.plan(content)


def schedule(**changes: Any) -> Document:
    content = {"date": "2026-03-02", "category": "inverter", "slots": {"10:00": 70.0, "10:15": None}}
    return document({**content, **changes}, epoch=1, version=1)


def test_schedule_gives_its_slots_to_its_category_and_null_means_default():
    documents = {"schedule/2026-03-02/inverter": schedule(), "config": document({}, epoch=1, version=1)}
    schedules = config.schedules(documents)

    assert list(schedules) == ["inverter"]
    assert value_at(schedules["inverter"], datetime(2026, 3, 2, 10, 14, 59, tzinfo=UTC)) == 70
    assert value_at(schedules["inverter"], datetime(2026, 3, 2, 10, 15, tzinfo=UTC)) is None


@pytest.mark.parametrize(
    "changes", [{"date": "2026-02-30"}, {"date": 3}, {"slots": {"10:00": "70"}}, {"slots": {"10:00": 1e400}}]
)
def test_schedule_that_means_nothing_is_refused(changes):
    with pytest.raises(DocumentRefused):
        config.schedule_body(schedule(**changes))


def mqtt_device(tag: str = "A", **changes: Any) -> dict[str, Any]:
    raw = {"id": tag, "tag": tag, "category": "battery", "profile": "cube", "nameplate_kw": 60.0, **changes}
    return {"url": "mqtt://broker.site", **raw}


def mqtt_plan(*devices: dict[str, Any]) -> config.Plan:
    profiles = {"cube": load_bodies()["iwell_cube_mqtt"]}
    return config.plan({"site": SITE, "devices": list(devices), "profiles": profiles})


@pytest.mark.parametrize(
    ("url", "known_as"),
    [
        ("mqtt://Broker.site:1883/", "mqtt://broker.site"),
        ("mqtts://broker.site:8883", "mqtts://broker.site"),
        ("mqtts://broker.site:1883", "mqtts://broker.site:1883"),
        ("mqtt://[FD00::1]:1884", "mqtt://[fd00::1]:1884"),
    ],
)
def test_broker_has_one_spelling_so_that_its_devices_share_a_session(url, known_as):
    plan = mqtt_plan(mqtt_device(url=url, username="node", password="secret"))

    endpoint = plan.devices["A"].endpoint
    assert str(endpoint) == known_as
    assert endpoint.arguments == {"url": known_as, "username": "node", "password": "secret"}
    assert "secret" not in repr(endpoint)


def test_two_names_behind_one_broker_are_two_devices_and_one_name_is_one():
    plan = mqtt_plan(
        mqtt_device("A", parameters={"device": "cube-1"}),
        mqtt_device("B", parameters={"device": "cube-2"}, url="mqtt://broker.site:1883"),
        mqtt_device("C", parameters={"device": "cube-2"}),
    )

    assert list(plan.devices) == ["A", "B"]
    assert plan.devices["A"].endpoint == plan.devices["B"].endpoint
    assert plan.refused == {"C": "its control point is that of B"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"url": "http://broker.site"}, "expected mqtt://HOST"),
        ({"url": "mqtt://"}, "expected mqtt://HOST"),
        ({"url": "mqtt://broker.site/topic"}, "nothing behind it"),
        ({"url": "mqtt://broker.site?a=b"}, "nothing behind it"),
        ({"url": "mqtt://user:word@broker.site"}, "without user, password"),
        ({"url": "mqtt://broker.site:0"}, "a port of 1 to 65535"),
        ({"parameters": {"device": "#"}}, "without wildcards"),
        ({"parameters": {"command": "{}"}}, "expected"),
    ],
)
def test_mqtt_device_that_cannot_be_reached_is_refused_alone(changes, reason):
    plan = mqtt_plan(mqtt_device("A", **changes), mqtt_device("B"))

    assert list(plan.devices) == ["B"]
    assert reason in plan.refused["A"]
