"""Bytes to message and back; what cannot be read is a WireError and nothing else."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from edge.wire.codec import (
    WireError,
    body_digest,
    decode,
    decode_command,
    document,
    encode,
    is_intact,
)
from edge.wire.messages import (
    Code,
    CommandAnswer,
    DeviceResult,
    Document,
    Heartbeat,
    LogBatch,
    Message,
    Reported,
    SetpointCommand,
)
from tests.wire.samples import SAMPLES

# As random as it gets, and the same at every run.
quick = settings(deadline=None, derandomize=True, max_examples=200)

KINDS: list[type[Message]] = [CommandAnswer, Document, Heartbeat, LogBatch, Reported]
# Numbers as both sides' JSON libraries can hold them.
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)
bodies = st.dictionaries(st.text(), json_values, max_size=5)


def nested(depth: int) -> bytes:
    return b'{"v":1,"epoch":1,"version":1,"sha256":"","body":{"a":' + b"[" * depth + b"]" * depth + b"}}"


def read_or_refuse(payload: bytes) -> None:
    for kind in KINDS:
        try:
            message = decode(kind, payload)
        except WireError:
            continue
        assert isinstance(message, kind)
    try:
        decode_command(payload)
    except WireError:
        return


@quick
@given(payload=st.binary(max_size=200))
@example(payload=b"")
@example(payload=b"null")
@example(payload=b"[]")
@example(payload=b"{}")
@example(payload=b'{"v":true}')
@example(payload=b'{"v":1.5}')
@example(payload=b'{"v":NaN}')
@example(payload=b'{"v":"\xff"}')
@example(payload=b'\xef\xbb\xbf{"v":1}')
@example(payload=b'{"v":1' + b"0" * 5000 + b"}")
def test_any_bytes_are_a_message_or_a_wire_error(payload):
    read_or_refuse(payload)


@quick
@given(
    fields=st.dictionaries(st.sampled_from(["v", "op", "id", "stage", "body", "values", "seq"]), json_values)
)
def test_any_object_is_a_message_or_a_wire_error(fields):
    read_or_refuse(json.dumps({"v": 1, **fields}).encode())


@quick
@given(name=st.sampled_from(sorted(SAMPLES)), at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_message_with_one_byte_changed_is_a_message_or_a_wire_error(name, at, byte):
    payload = bytearray(encode(SAMPLES[name]))
    payload[at % len(payload)] = byte
    read_or_refuse(bytes(payload))


@pytest.mark.parametrize("depth", [sys.getrecursionlimit(), 100_000])
def test_brackets_in_brackets_are_a_wire_error(depth):
    with pytest.raises(WireError):
        decode(Document, nested(depth))
    with pytest.raises(WireError):
        decode_command(b'{"v":1,"unknown":' + b"[" * depth + b"]" * depth + b"}")


def test_document_too_deep_to_be_written_again_is_not_intact():
    body: dict[str, Any] = {}
    for _ in range(100_000):
        body = {"a": body}
    assert not is_intact(Document(epoch=1, version=1, sha256="", body=body))


@pytest.mark.parametrize("name", SAMPLES)
def test_message_survives_the_wire(name):
    message: Message = SAMPLES[name]
    assert decode(type(message), encode(message)) == message


def test_command_of_one_kind_is_not_read_as_another():
    with pytest.raises(WireError):
        decode(SetpointCommand, encode(SAMPLES["release"]))


@pytest.mark.parametrize("op", ["", "reboot", "SETPOINT", 1, None])
def test_command_nobody_knows_is_a_wire_error(op):
    with pytest.raises(WireError):
        decode_command(json.dumps({"v": 1, "op": op, "id": "x", "epoch": 1}).encode())


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "true", '"30"', "null"])
def test_setpoint_that_is_no_finite_number_is_a_wire_error(value):
    payload = encode(SAMPLES["setpoint"]).replace(b"62.5", value.encode())
    with pytest.raises(WireError):
        decode_command(payload)


# --- documents ------------------------------------------------------------------------------------


@quick
@given(body=bodies, data=st.data())
def test_digest_is_blind_to_the_order_of_keys(body, data):
    shuffled = dict(data.draw(st.permutations(list(body.items()))))
    assert body_digest(shuffled) == body_digest(body)


@quick
@given(body=bodies)
@example(body={"a": -0.0, "b": 1e16, "c": 5e-324, "d": 1.0, "e": 1})
def test_digest_survives_a_json_round_trip(body):
    assert body_digest(json.loads(json.dumps(body))) == body_digest(body)


@quick
@given(body=bodies)
def test_document_is_intact_after_the_wire(body):
    sent = document(body, epoch=1, version=2)
    assert is_intact(decode(Document, encode(sent)))


def test_digest_does_not_change_over_time():
    assert body_digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    # The digest of {"a":[1.5,null,true],"b":"é"} in UTF-8, with sorted keys and no white space.
    assert body_digest({"b": "é", "a": [1.5, None, True]}) == (
        "776f713bb999a01a118a1282e6ffaaf76242b2f4062cdb2a903fad57d0f26aab"
    )


@pytest.mark.parametrize("other", [{}, {"a": 2}, {"a": 1.0}, {"a": "1"}, {"a": True}, {"a": 1, "b": None}])
def test_changed_body_is_not_intact(other):
    sent = document({"a": 1}, epoch=1, version=1)
    assert is_intact(sent)
    assert not is_intact(Document(epoch=1, version=1, sha256=sent.sha256, body=other))


# --- what users read ------------------------------------------------------------------------------


def test_reason_begins_with_its_code():
    assert DeviceResult(code=Code.EXCLUDED).reason == "excluded"
    assert DeviceResult(code=Code.WRITE_FAILED, detail="no answer").reason == "write_failed: no answer"


def test_result_without_a_code_is_a_success():
    assert DeviceResult(value=30.0).ok
    assert not DeviceResult(code=Code.BUSY).ok
