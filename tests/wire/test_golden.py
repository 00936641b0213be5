"""The bytes of yesterday are read today: golden messages, one and more of every kind.

A golden file is changed only together with the version of the wire, or where a field is added.
"""

from __future__ import annotations

import json

import msgspec
import pytest

from edge.wire.codec import UnknownVersionError, WireError, decode, decode_command, encode, is_intact
from edge.wire.messages import (
    Command,
    DeviceConfig,
    Document,
    ExplainCommand,
    Message,
    NodeConfig,
    PingCommand,
    PreviewCommand,
    ProbeCommand,
    ReleaseCommand,
    ResyncCommand,
    ScheduleBody,
    SetpointCommand,
)
from tests.wire.samples import GOLDEN, SAMPLES

COMMANDS = (
    SetpointCommand,
    ReleaseCommand,
    PingCommand,
    ResyncCommand,
    ExplainCommand,
    ProbeCommand,
    PreviewCommand,
)


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes()


def read(name: str, payload: bytes) -> Message | Command:
    kind = type(SAMPLES[name])
    return decode_command(payload) if kind in COMMANDS else decode(kind, payload)


def changed(name: str, **fields: object) -> bytes:
    return json.dumps({**json.loads(golden(name)), **fields}).encode()


def test_every_kind_of_message_has_its_golden_bytes():
    assert {type(message) for message in SAMPLES.values()} == set(Message.__subclasses__())
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_golden_bytes_are_still_read(name):
    assert read(name, golden(name)) == SAMPLES[name]


@pytest.mark.parametrize("name", SAMPLES)
def test_what_is_sent_today_says_what_the_golden_bytes_say(name):
    assert json.loads(encode(SAMPLES[name])) == json.loads(golden(name))


@pytest.mark.parametrize("name", SAMPLES)
def test_unknown_field_is_ignored(name):
    assert read(name, changed(name, field_of_tomorrow={"deep": [1, None]})) == SAMPLES[name]


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("version", [0, 2, -1, 2**70])
def test_unknown_version_is_refused(name, version):
    with pytest.raises(UnknownVersionError, match=rf"version {version}, known are 1"):
        read(name, changed(name, v=version))


@pytest.mark.parametrize("name", SAMPLES)
def test_unknown_version_is_told_from_bad_bytes_whatever_else_changed(name):
    with pytest.raises(UnknownVersionError):
        read(name, b'{"v": 2, "op": ["not", "a", "word"]}')


@pytest.mark.parametrize("name", SAMPLES)
def test_message_without_a_version_is_refused(name):
    fields = json.loads(golden(name))
    del fields["v"]
    with pytest.raises(WireError):
        read(name, json.dumps(fields).encode())


@pytest.mark.parametrize("name", SAMPLES)
def test_every_cut_of_the_bytes_is_refused(name):
    payload = golden(name).rstrip()
    for length in range(len(payload)):
        with pytest.raises(WireError):
            read(name, payload[:length])


@pytest.mark.parametrize("name", ["document_config", "document_schedule"])
def test_golden_document_is_intact(name):
    assert is_intact(decode(Document, golden(name)))


def test_body_of_the_golden_config_is_a_nodes_configuration():
    body = decode(Document, golden("document_config")).body
    config = msgspec.convert(body, NodeConfig)
    device = msgspec.convert(config.devices[0], DeviceConfig)
    assert (config.site.tag, device.tag) == ("solarpanel_site_a", "SMA_STP60_01")
    assert (device.min_value, device.max_value, device.default_value) == (0.0, 100.0, 100.0)


def test_body_of_the_golden_schedule_is_a_day_of_slots():
    body = decode(Document, golden("document_schedule")).body
    assert msgspec.convert(body, ScheduleBody).slots == {"10:00": 70.0, "10:15": None, "23:45": 0.0}
