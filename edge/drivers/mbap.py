"""Modbus TCP on the wire, without I/O: requests as bytes, bytes as frames.

A frame is the header (transaction, protocol 0, length), the unit, the function and its data (MODBUS Messaging
on TCP/IP Implementation Guide V1.0b, section 3.1.3). TCP keeps the order of bytes and knows nothing of
frames: they arrive split and glued.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

READ_HOLDING, READ_INPUT, WRITE_SINGLE, WRITE_MULTIPLE = 3, 4, 6, 16
# An answer that refuses repeats the function with this bit.
REFUSED = 0x80
# The greatest PDU is 253 bytes, the unit stands before it (Modbus Application Protocol V1.1b3, section 4.1).
MAX_LENGTH = 254
# Unit, function, and at least a byte of data: no answer to a function we use is shorter.
MIN_LENGTH = 3

_FRAME = struct.Struct(">HHHBB")
_REQUEST = struct.Struct(">HHHBBHH")
_BEFORE_LENGTH_COUNTS = 6
_ANSWERED = frozenset((READ_HOLDING, READ_INPUT, WRITE_SINGLE, WRITE_MULTIPLE))


class NotModbus(Exception):  # noqa: N818 - states the fault
    """What arrived is no answer in Modbus TCP. Where the next frame begins cannot be known."""


class Frame(NamedTuple):
    """One answer, as it came."""

    transaction: int
    unit: int
    function: int
    data: bytes


def read_request(transaction: int, *, unit: int, function: int, address: int, count: int) -> bytes:
    """Ask for `count` registers with function 3 or 4."""
    return _REQUEST.pack(transaction, 0, 6, unit, function, address, count)


def write_single_request(transaction: int, *, unit: int, address: int, register: int) -> bytes:
    """Write one register with function 6."""
    return _REQUEST.pack(transaction, 0, 6, unit, WRITE_SINGLE, address, register)


def write_request(transaction: int, *, unit: int, address: int, registers: list[int]) -> bytes:
    """Write registers with function 16."""
    count = len(registers)
    head = _REQUEST.pack(transaction, 0, 7 + 2 * count, unit, WRITE_MULTIPLE, address, count)
    return head + struct.pack(f">B{count}H", 2 * count, *registers)


def cut(buffer: bytes) -> tuple[list[Frame], bytes]:
    """Cut whole frames off the start of what arrived; what is left is the start of one that is under way.

    Raises `NotModbus` as soon as no frame can begin like this: what is left stays shorter than a frame.
    """
    frames = []
    start, size = 0, len(buffer)
    while size - start >= _FRAME.size:
        transaction, protocol, length, unit, function = _FRAME.unpack_from(buffer, start)
        if protocol != 0 or not MIN_LENGTH <= length <= MAX_LENGTH or function & ~REFUSED not in _ANSWERED:
            raise NotModbus(f"began with {buffer[start : start + _FRAME.size].hex(' ')}")
        end = start + _BEFORE_LENGTH_COUNTS + length
        if end > size:
            break
        frames.append(Frame(transaction, unit, function, buffer[start + _FRAME.size : end]))
        start = end
    return frames, buffer[start:] if start else buffer


def registers_in(data: bytes, *, count: int) -> list[int] | None:
    """Take the registers out of the answer to a read; None where they are not `count`."""
    if len(data) != 1 + 2 * count or data[0] != 2 * count:
        return None
    return list(struct.unpack_from(f">{count}H", data, 1))
