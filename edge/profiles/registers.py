"""Registers to engineering values and back: no I/O, no state.

Drivers read devices with it and simulators fill their registers with it, so that there is one definition of a
scale, a sign, a word order and of "no value".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from edge.profiles.model import Point, RegisterType, WordOrder

_FORMAT = {
    RegisterType.U16: ">H",
    RegisterType.S16: ">h",
    RegisterType.U32: ">I",
    RegisterType.S32: ">i",
    RegisterType.U64: ">Q",
    RegisterType.F32: ">f",
}
_INTEGER_RANGE = {
    RegisterType.U16: (0, 2**16 - 1),
    RegisterType.S16: (-(2**15), 2**15 - 1),
    RegisterType.U32: (0, 2**32 - 1),
    RegisterType.S32: (-(2**31), 2**31 - 1),
    RegisterType.U64: (0, 2**64 - 1),
}


def decode(point: Point, registers: Sequence[int], *, exponent: int = 0) -> float | str | None:
    """Turn the registers of one point into its value; None where the device says it has none.

    `exponent` is the value of the point's scale point: the raw value counts in units of 10 ** exponent.
    """
    raw = b"".join(register.to_bytes(2, "big") for register in _ordered(point, registers))
    if point.type is RegisterType.STR:
        return raw.split(b"\0", 1)[0].decode("ascii", errors="replace").strip() or None
    (number,) = struct.unpack(_FORMAT[point.type], raw)
    if point.type is RegisterType.F32:
        if not math.isfinite(number):
            return None
    elif point.nan is not None and _same_bits(point, number, point.nan):
        return None
    return point.sign * _scaled(number, point.scale * 10.0**exponent)


def encode(point: Point, value: float | str | None, *, exponent: int = 0) -> list[int]:
    """Turn a value into registers; `ValueError` where it does not fit, or where "no value" cannot be said."""
    if point.type is RegisterType.STR:
        text = str(value or "").encode("ascii")
        if len(text) > 2 * point.count:
            raise ValueError(f"{value!r} has more than {2 * point.count} characters")
        raw = text.ljust(2 * point.count, b"\0")
    elif value is None:
        raw = _nan(point)
    elif isinstance(value, str):
        raise ValueError(f"{value!r} is a text, expected a number")
    else:
        raw = _number(point, point.sign * _unscaled(value, point.scale * 10.0**exponent))
    words = [int.from_bytes(raw[index : index + 2], "big") for index in range(0, len(raw), 2)]
    return list(_ordered(point, words))


def _ordered(point: Point, registers: Sequence[int]) -> Sequence[int]:
    return registers[::-1] if point.words is WordOrder.LOW_FIRST else registers


def _number(point: Point, number: float) -> bytes:
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a finite number")
    if point.type is RegisterType.F32:
        try:
            return struct.pack(">f", number)
        except OverflowError as error:
            raise ValueError(f"{number:g} does not fit a 32-bit float") from error
    raw = round(number)
    lowest, highest = _INTEGER_RANGE[point.type]
    if not lowest <= raw <= highest:
        raise ValueError(f"raw value {raw} is outside {lowest} to {highest} ({point.type})")
    if point.nan is not None and _same_bits(point, raw, point.nan):
        raise ValueError(f"raw value {raw} means 'no value' here")
    return struct.pack(_FORMAT[point.type], raw)


def _nan(point: Point) -> bytes:
    if point.type is RegisterType.F32:
        return struct.pack(">f", math.nan)
    if point.nan is None:
        raise ValueError("this point cannot say 'no value'")
    size = 2 * point.count
    return (point.nan % (1 << 8 * size)).to_bytes(size, "big")


def _same_bits(point: Point, number: int, nan: int) -> bool:
    # Makers print the pattern (0x80000000), whatever the sign of the type.
    size = 1 << 16 * point.count
    return number % size == nan % size


def _scaled(number: float, factor: float) -> float:
    # A tenth has no exact binary form, ten has: dividing gives 0.3 where multiplying gives 0.3000...04
    inverse = round(1 / factor)
    if factor < 1 and math.isclose(inverse * factor, 1.0, rel_tol=1e-12):
        return number / inverse
    return float(number * factor)


def _unscaled(value: float, factor: float) -> float:
    inverse = round(1 / factor)
    if factor < 1 and math.isclose(inverse * factor, 1.0, rel_tol=1e-12):
        return value * inverse
    return value / factor
