"""Registers to engineering values and back: no I/O, no state.

Drivers read devices with it and simulators fill their registers with it, so that there is one definition of a
scale, a sign, a word order and of "no value".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence

from edge.profiles.points import FLOATS, Register, RegisterType, WordOrder
from edge.profiles.values import code_of_value, scaled, unscaled, value_of_code

_FORMAT = {
    RegisterType.U16: ">H",
    RegisterType.S16: ">h",
    RegisterType.U32: ">I",
    RegisterType.S32: ">i",
    RegisterType.U64: ">Q",
    RegisterType.S64: ">q",
    RegisterType.F32: ">f",
    RegisterType.F64: ">d",
}
_INTEGER_RANGE = {
    RegisterType.U16: (0, 2**16 - 1),
    RegisterType.S16: (-(2**15), 2**15 - 1),
    RegisterType.U32: (0, 2**32 - 1),
    RegisterType.S32: (-(2**31), 2**31 - 1),
    RegisterType.U64: (0, 2**64 - 1),
    RegisterType.S64: (-(2**63), 2**63 - 1),
}


# Takes bytes, where in them the point begins, and the exponent of its scale point (0 where it has none).
Decoder = Callable[[bytes, int, int], float | str | None]


def decode(point: Register, registers: Sequence[int], *, exponent: int = 0) -> float | str | None:
    """Turn the registers of one point into its value; None where the device says it has none.

    Of a point of bits each is 0 or 1. `exponent` is the value of the point's scale point: the raw value
    counts in units of 10 ** exponent.
    """
    return decoder(point)(struct.pack(f">{len(registers)}H", *registers), 0, exponent)


def decoder(point: Register) -> Decoder:
    """`decode`, prepared for those who read the same point again and again."""
    if point.type is RegisterType.STR:
        return _text_decoder(point)
    if point.type is RegisterType.BITS:
        return _bits_decoder(point)
    size = 2 * point.count
    unpack = struct.Struct(_FORMAT[point.type]).unpack_from
    is_float = point.type in FLOATS
    modulus = 1 << 8 * size
    # Makers print the pattern (0x80000000), whatever the sign of the type.
    nan = None if point.nan is None else point.nan % modulus
    in_order = point.words is WordOrder.HIGH_FIRST or point.count == 1
    sign, scale = point.sign, point.scale
    has_codes = bool(point.codes)

    def number(raw: bytes, offset: int, exponent: int) -> float | None:
        if in_order:
            (value,) = unpack(raw, offset)
        else:
            (value,) = unpack(_ordered(point, raw[offset : offset + size]))
        if is_float:
            if not math.isfinite(value):
                return None
        elif nan is not None and value % modulus == nan:
            return None
        if has_codes:
            return value_of_code(point, value)
        return sign * scaled(value, scale * 10.0**exponent if exponent else scale)

    return number


def _text_decoder(point: Register) -> Decoder:
    size = 2 * point.count

    def text(raw: bytes, offset: int, exponent: int) -> float | str | None:  # noqa: ARG001 - a text has no scale
        words = _ordered(point, raw[offset : offset + size])
        said = words.split(b"\0", 1)[0].decode("ascii", errors="replace").strip() or None
        return value_of_code(point, said) if point.codes else said

    return text


def _bits_decoder(point: Register) -> Decoder:
    unpack = struct.Struct(f">{point.count}H").unpack_from

    def bits(raw: bytes, offset: int, exponent: int) -> float | None:  # noqa: ARG001 - nor have bits
        number = sum(bit << place for place, bit in enumerate(unpack(raw, offset)))
        if number == point.nan:
            return None
        return value_of_code(point, number) if point.codes else point.sign * scaled(number, point.scale)

    return bits


def encode(point: Register, value: float | str | None, *, exponent: int = 0) -> list[int]:
    """Turn a value into registers, or bits; `ValueError` where it does not fit or cannot be said."""
    if value is not None and point.codes:
        raw_value: float | str | None = code_of_value(point, value)
    elif value is None or isinstance(value, str):
        raw_value = value
    else:
        try:
            raw_value = point.sign * unscaled(value, point.scale * 10.0**exponent)
        except OverflowError as error:
            raise ValueError(f"{value:g} at 10^{exponent} is out of range") from error
    if point.type is RegisterType.STR:
        text = str(raw_value or "").encode("ascii")
        if len(text) > 2 * point.count:
            raise ValueError(f"{value!r} has more than {2 * point.count} characters")
        raw = text.ljust(2 * point.count, b"\0")
    elif raw_value is None:
        raw = _nan(point)
    elif isinstance(raw_value, str):
        raise ValueError(f"{value!r} is a text, expected a number")
    else:
        raw = _number(point, raw_value)
    if point.type is RegisterType.BITS:
        number = int.from_bytes(raw, "big")
        return [number >> place & 1 for place in range(point.count)]
    return list(struct.unpack(f">{len(raw) // 2}H", _ordered(point, raw)))


def _ordered(point: Register, raw: bytes) -> bytes:
    """Turn the words from the point's order into high first, or back."""
    if point.words is WordOrder.HIGH_FIRST:
        return raw
    return b"".join(raw[index : index + 2] for index in range(len(raw) - 2, -1, -2))


def _number(point: Register, number: float) -> bytes:
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a finite number")
    if point.type in FLOATS:
        try:
            return struct.pack(_FORMAT[point.type], number)
        except OverflowError as error:
            raise ValueError(f"{number:g} does not fit a 32-bit float") from error
    raw = round(number)
    lowest, highest = _INTEGER_RANGE.get(point.type, (0, 2**point.count - 1))
    if not lowest <= raw <= highest:
        raise ValueError(f"raw value {raw} is outside {lowest} to {highest} ({point.type})")
    modulus = _modulus(point)
    if point.nan is not None and raw % modulus == point.nan % modulus:
        raise ValueError(f"raw value {raw} means 'no value' here")
    return _bytes(point, raw % modulus)


def _nan(point: Register) -> bytes:
    if point.type in FLOATS:
        return struct.pack(_FORMAT[point.type], math.nan)
    if point.nan is None:
        raise ValueError("this point cannot say 'no value'")
    return _bytes(point, point.nan % _modulus(point))


def _modulus(point: Register) -> int:
    return 1 << (point.count if point.type is RegisterType.BITS else 16 * point.count)


def _bytes(point: Register, raw: int) -> bytes:
    """A number as it is in its registers, negative ones as their two's complement."""
    return raw.to_bytes(2 * point.count, "big")
