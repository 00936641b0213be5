"""Modbus TCP on the wire, without I/O: requests as bytes, bytes as frames.

A frame is the header (transaction, protocol 0, length), the unit, the function and its data (MODBUS Messaging
on TCP/IP Implementation Guide V1.0b, section 3.1.3). TCP keeps the order of bytes and knows nothing of
frames: they arrive split and glued.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from edge.profiles.points import Table

READ_COILS, READ_DISCRETE, READ_HOLDING, READ_INPUT = 1, 2, 3, 4
WRITE_COIL, WRITE_SINGLE, WRITE_COILS, WRITE_MULTIPLE = 5, 6, 15, 16
READS = {
    Table.COIL: READ_COILS,
    Table.DISCRETE: READ_DISCRETE,
    Table.HOLDING: READ_HOLDING,
    Table.INPUT: READ_INPUT,
}
# Every answer is asked about: an attribute of the enumeration would cost as much as the rest.
_COIL, _DISCRETE = Table.COIL, Table.DISCRETE
# What function 5 takes for 1 (Modbus Application Protocol V1.1b3, section 6.5).
COIL_ON = 0xFF00
# An answer that refuses repeats the function with this bit.
REFUSED = 0x80
# The greatest PDU is 253 bytes, the unit stands before it (Modbus Application Protocol V1.1b3, section 4.1).
MAX_LENGTH = 254
# Unit, function, and at least a byte of data: no answer to a function we use is shorter.
MIN_LENGTH = 3

_FRAME = struct.Struct(">HHHBB")
_REQUEST = struct.Struct(">HHHBBHH")
_BEFORE_LENGTH_COUNTS = 6
_ANSWERED = frozenset((*READS.values(), WRITE_COIL, WRITE_SINGLE, WRITE_COILS, WRITE_MULTIPLE))


class NotModbus(Exception):  # noqa: N818 - states the fault
    """What arrived is no answer in Modbus TCP. Where the next frame begins cannot be known."""


class Frame(NamedTuple):
    """One answer, as it came."""

    transaction: int
    unit: int
    function: int
    data: bytes


def read_request(transaction: int, *, unit: int, function: int, address: int, count: int) -> bytes:
    """Ask for `count` registers or bits with one of `READS`."""
    return _REQUEST.pack(transaction, 0, 6, unit, function, address, count)


def write_request(transaction: int, *, unit: int, function: int, address: int, registers: list[int]) -> bytes:
    """Write registers, or bits, with the function that `write_function` says."""
    pdu = write_pdu(function, address, registers)
    return struct.pack(">HHHB", transaction, 0, 1 + len(pdu), unit) + pdu


def write_function(table: Table, *, single: bool) -> int:
    """By which function a table is written, one register (or bit) alone or several."""
    if table.is_bits:
        return WRITE_COIL if single else WRITE_COILS
    return WRITE_SINGLE if single else WRITE_MULTIPLE


def write_pdu(function: int, address: int, registers: list[int]) -> bytes:
    """A request to write: function and data, the same on TCP and on a line."""
    count = len(registers)
    if function == WRITE_COIL:
        return struct.pack(">BHH", function, address, COIL_ON if registers[0] else 0)
    if function == WRITE_SINGLE:
        return struct.pack(">BHH", function, address, registers[0])
    if function == WRITE_COILS:
        packed = bits_packed(registers)
        return struct.pack(">BHHB", function, address, count, len(packed)) + packed
    return struct.pack(f">BHHB{count}H", function, address, count, 2 * count, *registers)


def size_of(table: Table, count: int) -> int:
    """How many bytes `count` registers, or bits, of a table are in an answer."""
    return (count + 7) // 8 if table.is_bits else 2 * count


def values_in(data: bytes, *, table: Table, count: int) -> list[int] | None:
    """Take registers or bits out of the answer to a read; None where they are not `count`."""
    is_bits = table is _COIL or table is _DISCRETE
    size = (count + 7) // 8 if is_bits else 2 * count
    if len(data) != 1 + size or data[0] != size:
        return None
    if is_bits:
        return [data[1 + place // 8] >> place % 8 & 1 for place in range(count)]
    return list(struct.unpack_from(f">{count}H", data, 1))


def bits_packed(bits: list[int]) -> bytes:
    """Bits as the wire has them, eight a byte, the first one lowest."""
    packed = bytearray((len(bits) + 7) // 8)
    for place, bit in enumerate(bits):
        packed[place // 8] |= bool(bit) << place % 8
    return bytes(packed)


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
