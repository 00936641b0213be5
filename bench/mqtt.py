"""As much of MQTT 5 as ten thousand clients in one process need: bytes in, packets out, no I/O.

The product's own client takes a task and some hundred microseconds for a message, which would measure the
generator. Names and numbers are those of the OASIS standard, version 5.0; clause numbers stand beside them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

CONNACK, PUBLISH, PUBACK, SUBACK, DISCONNECT = 2, 3, 4, 9, 14
PINGREQ = b"\xc0\x00"
GOOD_BYE = b"\xe0\x00"

# Table 2-4: how long the value of a property is, for those a broker may send with a PUBLISH.
_FIXED = {0x01: 1, 0x02: 4, 0x23: 2}
_TEXT = {0x03, 0x08, 0x09}
_PAIR = 0x26
_NUMBER = 0x0B
_RESPONSE_TOPIC, _CORRELATION = 0x08, 0x09


class Publish(NamedTuple):
    """A message from the broker; `packet` is 0 at QoS 0, else what to acknowledge."""

    topic: str
    payload: bytes
    retain: bool
    packet: int
    response_topic: str | None
    correlation: bytes | None


class Acknowledged(NamedTuple):
    """The broker's answer to a packet of ours: CONNACK, PUBACK or SUBACK; `codes` from 0x80 are refusals."""

    kind: int
    packet: int
    codes: bytes

    @property
    def is_refused(self) -> bool:
        return any(code >= 0x80 for code in self.codes)


class ProtocolError(Exception):
    """The broker sent something that cannot be read, or said good-bye."""


def connect(
    *,
    client: str,
    username: str,
    password: str,
    keep_alive_s: int,
    session_expiry_s: int,
    will: tuple[str, bytes] | None = None,
    will_delay_s: int = 0,
) -> bytes:
    """CONNECT with Clean Start; the will is retained, at QoS 1 (3.1)."""
    flags = 0xC2
    body = _text(client)
    if will is not None:
        flags |= 0x2C
        delay = b"\x18" + struct.pack("!I", will_delay_s)
        body += _varint(len(delay)) + delay + _text(will[0]) + _binary(will[1])
    properties = b"\x11" + struct.pack("!I", session_expiry_s)
    header = _text("MQTT") + bytes((5, flags)) + struct.pack("!H", keep_alive_s)
    body = header + _varint(len(properties)) + properties + body + _text(username) + _text(password)
    return b"\x10" + _varint(len(body)) + body


def subscribe(*topics: str, packet: int) -> bytes:
    """SUBSCRIBE at QoS 1 (3.8)."""
    body = struct.pack("!H", packet) + b"\x00" + b"".join(_text(topic) + b"\x01" for topic in topics)
    return b"\x82" + _varint(len(body)) + body


def publish(
    topic: bytes,
    payload: bytes,
    *,
    packet: int = 0,
    retain: bool = False,
    expiry_s: int | None = None,
    correlation: bytes | None = None,
) -> bytes:
    """PUBLISH; at QoS 1 where it has a packet number (3.3)."""
    properties = b""
    if expiry_s is not None:
        properties = b"\x02" + struct.pack("!I", expiry_s)
    if correlation is not None:
        properties += b"\x09" + _binary(correlation)
    number = struct.pack("!H", packet) if packet else b""
    first = 0x30 | (0x02 if packet else 0) | (0x01 if retain else 0)
    length = 2 + len(topic) + len(number) + 1 + len(properties) + len(payload)
    return b"".join(
        (
            bytes((first,)),
            _varint(length),
            struct.pack("!H", len(topic)),
            topic,
            number,
            _varint(len(properties)),
            properties,
            payload,
        )
    )


def acknowledge(packet: int) -> bytes:
    """PUBACK: taken over (3.4)."""
    return b"\x40\x02" + struct.pack("!H", packet)


class Reader:
    """One connection's bytes, as they come, cut into packets."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Publish | Acknowledged]:
        """The packets that are complete now; `ProtocolError` where the broker says good-bye."""
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        while True:
            start = at + 1
            length = shift = 0
            while True:
                if start >= end:
                    self._rest = data[at:]
                    return
                byte = data[start]
                start += 1
                length |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
                shift += 7
            if start + length > end:
                self._rest = data[at:]
                return
            kind = data[at] >> 4
            if kind == PUBLISH:
                yield _read_publish(data, data[at], start, start + length)
            elif kind in (CONNACK, PUBACK, SUBACK):
                yield _read_acknowledged(kind, data[start : start + length])
            elif kind == DISCONNECT:
                self._rest = b""
                raise ProtocolError(f"the broker says good-bye, reason {data[start] if length else 0:#x}")
            at = start + length


def _read_publish(data: bytes, first: int, at: int, end: int) -> Publish:
    length = data[at] << 8 | data[at + 1]
    topic = data[at + 2 : at + 2 + length].decode()
    at += 2 + length
    packet = 0
    if first & 0x06:
        packet = data[at] << 8 | data[at + 1]
        at += 2
    size, at = _read_varint(data, at)
    properties_end = at + size
    response_topic = correlation = None
    while at < properties_end:
        identifier = data[at]
        at += 1
        if identifier in _FIXED:
            at += _FIXED[identifier]
        elif identifier in _TEXT:
            length = data[at] << 8 | data[at + 1]
            value = data[at + 2 : at + 2 + length]
            at += 2 + length
            if identifier == _RESPONSE_TOPIC:
                response_topic = value.decode()
            elif identifier == _CORRELATION:
                correlation = value
        elif identifier == _NUMBER:
            _, at = _read_varint(data, at)
        elif identifier == _PAIR:
            for _ in range(2):
                at += 2 + (data[at] << 8 | data[at + 1])
        else:
            raise ProtocolError(f"property {identifier:#x} is not one of a PUBLISH")
    return Publish(topic, data[at:end], bool(first & 0x01), packet, response_topic, correlation)


def _read_acknowledged(kind: int, body: bytes) -> Acknowledged:
    if kind == CONNACK:
        return Acknowledged(kind, 0, body[1:2])
    packet = body[0] << 8 | body[1]
    if kind == PUBACK:
        return Acknowledged(kind, packet, body[2:3])
    size, at = _read_varint(body, 2)
    return Acknowledged(kind, packet, body[at + size :])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while True:
        value, byte = value >> 7, value & 0x7F
        encoded.append(byte | 0x80 if value else byte)
        if not value:
            return bytes(encoded)


def _text(value: str) -> bytes:
    return _binary(value.encode())


def _binary(value: bytes) -> bytes:
    return struct.pack("!H", len(value)) + value
