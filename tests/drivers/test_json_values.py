"""Values in JSON: what devices say, however odd, and what they are told."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from edge.drivers.errors import ReadingInvalid
from edge.drivers.json_values import MAX_PAYLOAD, parsed, told, value_in, value_of_payload
from edge.profiles import payloads
from edge.profiles.points import Access, Confidence, Message

STATE = {
    "power": {"ac": -12000, "text": "12.5", "on": True, "word": "a lot", "list": [1]},
    "cells": [{"v": 3.31}, {"v": None}],
    "1-0:1.8.0": {"value": 7},
    "mode": "auto",
}


def point(**what: Any) -> Message:
    return Message(
        **{"name": "a value", "source": "a test", "confidence": Confidence.VERIFIED, "topic": "t", **what}
    )


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("power.ac", -12000),
        ("$.power.ac", -12000),
        ("cells[0].v", 3.31),
        ('["1-0:1.8.0"].value', 7),
        ("cells[1].v", None),
    ],
)
def test_a_path_leads_to_its_value(path, found):
    assert payloads.find(STATE, path) == found
    assert payloads.find(payloads.put({}, path, found), path) == found


@pytest.mark.parametrize("path", ["power.nothing", "cells[2].v", "mode.deeper", "power[0]", "cells.v"])
def test_where_nothing_stands_there_is_no_value(path):
    assert value_in(point(path=path), STATE, what="t") is None


@pytest.mark.parametrize("path", ["a..b", ".a", "a.", "[a]", "a[-1]", "a]", 'a["b', "a[0]b"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ValueError, match="is not a path"):
        payloads.steps_of(path)


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ({"path": "power.ac", "scale": 0.001}, -12.0),
        ({"path": "power.ac", "scale": 0.001, "sign": -1}, 12.0),
        ({"path": "power.text"}, 12.5),
        ({"path": "power.on"}, 1.0),
        ({"path": "mode", "text": True}, "auto"),
        ({"path": "mode", "codes": {"0": "off", "1": "auto"}}, 1.0),
        ({"path": "mode", "codes": {"0": "off"}}, None),
        ({"path": "power.on", "codes": {"5": "true"}}, 5.0),
        ({"path": "cells[1].v"}, None),
    ],
)
def test_a_value_is_what_the_point_says_of_it(what, value):
    assert value_in(point(**what), STATE, what="t") == value


@pytest.mark.parametrize("path", ["power.word", "power.list", "power"])
def test_what_is_no_number_is_invalid_and_never_zero(path):
    with pytest.raises(ReadingInvalid, match=f"t: a value at {path}: expected a number"):
        value_in(point(path=path), STATE, what="t")


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b'{"power": NaN}', "not JSON"),
        (b'{"power": 1e999}', "not JSON"),
        (b'{"power": 12', "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'"\xff"', "not JSON"),
        (b"[" * 60_000, "nested too deeply"),
        (b" " * (MAX_PAYLOAD + 1), "65537 bytes, at most 65536"),
    ],
)
def test_what_is_no_document_is_invalid_with_a_reason(payload, reason):
    with pytest.raises(ReadingInvalid, match=f"^T: {reason}"):
        parsed(payload, what="T")


@pytest.mark.parametrize(
    ("payload", "what", "value"),
    [
        (b"12.5", {}, 12.5),
        (b' "12.5"\n', {}, 12.5),
        (b"true", {}, 1.0),
        (b"null", {}, None),
        (b"", {}, None),
        (b"online", {"text": True}, "online"),
        (b'"online"', {"text": True}, "online"),
        (b"ON", {"codes": {"0": "OFF", "1": "ON"}}, 1.0),
    ],
)
def test_a_payload_may_be_the_value_itself(payload, what, value):
    assert value_of_payload(point(**what), payload, what="T") == value


@pytest.mark.parametrize("payload", [b"12.5 kW", b"nan", b"inf", b"1_000", b"0x10", b"\xff", "١٢".encode()])
def test_a_bare_payload_that_is_no_number_is_invalid(payload):
    with pytest.raises(ReadingInvalid):
        value_of_payload(point(), payload, what="T")


@given(st.binary(max_size=200))
def test_whatever_arrives_the_outcome_is_a_value_or_a_reading_that_is_invalid(payload):
    for what in ({"path": "a.b"}, {"path": "a[0]", "text": True}, {"codes": {"1": "x"}}):
        with suppress(ReadingInvalid):
            value_in(point(**what), parsed(payload, what="T"), what="T")
        with suppress(ReadingInvalid):
            value_of_payload(point(**what), payload, what="T")


def test_a_template_is_filled_with_the_value_in_the_devices_own_terms():
    what = point(access=Access.WRITE, scale=0.001, sign=-1, valid_s=60.0)
    template = {
        "id": "$id",
        "at": "$now",
        "set": [{"power_w": "$value"}],
        "text": "$value W for $valid_s s",
        "valid_s": "$valid_s",
        "note": "",
    }

    sent = told(what, template, 22.2, now=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))

    assert json.loads(sent.payload) == {
        "id": str(UUID(sent.id)),
        "at": "2026-01-02T03:04:05.000Z",
        "set": [{"power_w": -22200}],
        "text": "-22200 W for 60 s",
        "valid_s": 60,
        "note": "",
    }
    assert b"22200.0" not in sent.payload


@pytest.mark.parametrize(
    ("template", "what", "value", "payload"),
    [
        ("", {}, 37.0, b"37"),
        ("", {"scale": 0.1}, 0.3, b"3"),
        ("", {"codes": {"0": "OFF", "1": "ON"}}, 1.0, b"ON"),
        ("set $value", {}, 37.5, b"set 37.5"),
        ("$value", {"text": True}, "auto", b"auto"),
    ],
)
def test_a_template_may_be_a_text_or_nothing(template, what, value, payload):
    assert told(point(access=Access.WRITE, **what), template, value).payload == payload


@pytest.mark.parametrize(
    ("what", "value"), [({}, float("nan")), ({}, "much"), ({"codes": {"0": "OFF"}}, 1.0)]
)
def test_a_value_that_the_point_cannot_say_is_refused(what, value):
    with pytest.raises(ValueError, match=r"expected|finite"):
        told(point(access=Access.WRITE, **what), "", value)
