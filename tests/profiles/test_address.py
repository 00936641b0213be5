"""Addresses: one spelling for each, and none that a node could not connect to."""

from __future__ import annotations

import pytest

from edge.profiles.address import host_spelled, serial_port_check, unit_check, url_spelled
from edge.profiles.points import Protocol


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("Inverter-7.Example.", "inverter-7.example"),
        ("192.168.1.20", "192.168.1.20"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_name_or_address_has_one_spelling(text, spelled):
    assert host_spelled(text) == host_spelled(spelled) == spelled


@pytest.mark.parametrize("text", ["", "two words", "host/path", "user@host", "host:502", "a" * 254, "a..b"])
def test_what_is_neither_a_name_nor_an_address_is_refused(text):
    with pytest.raises(ValueError, match="expected a name or an address"):
        host_spelled(text)


@pytest.mark.parametrize(
    ("text", "protocol", "spelled"),
    [
        ("MQTT://Broker:1883", Protocol.MQTT, "mqtt://broker"),
        ("mqtts://broker:1883", Protocol.MQTT, "mqtts://broker:1883"),
        ("http://[2001:DB8::1]:80/da/", Protocol.XML_DA, "http://[2001:db8::1]/da"),
        ("https://device/api?x=1", Protocol.HTTP, "https://device/api?x=1"),
    ],
)
def test_url_has_one_spelling(text, protocol, spelled):
    assert url_spelled(text, protocol) == url_spelled(spelled, protocol) == spelled


@pytest.mark.parametrize(
    "text", ["", "broker", "http://broker", "mqtt://user@broker", "mqtt://broker/topic", "mqtt://broker:0"]
)
def test_url_of_another_kind_is_refused_with_what_is_expected(text):
    with pytest.raises(ValueError, match="expected mqtt://HOST"):
        url_spelled(text, Protocol.MQTT)


@pytest.mark.parametrize("path", ["ttyUSB0", "/etc/passwd", "/dev/../etc/passwd", "/dev/tty\0"])
def test_serial_port_is_below_dev(path):
    with pytest.raises(ValueError, match="below /dev"):
        serial_port_check(path)


def test_nobody_answers_for_everybody_on_a_line():
    unit_check(0, Protocol.MODBUS_TCP)
    with pytest.raises(ValueError, match="expected 1 to 247"):
        unit_check(0, Protocol.MODBUS_RTU)
