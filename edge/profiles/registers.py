"""Registers to engineering values and back: no I/O, no state.

Drivers read devices with it and simulators fill their registers with it, so that there is one definition of a
scale, a sign, a word order and of "no value".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache

from edge.profiles.points import Register, RegisterType, WordOrder

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


# Takes bytes, where in them the point begins, and the exponent of its scale point (0 where it has none).
Decoder = Callable[[bytes, int, int], float | str | None]


def decode(point: Register, registers: Sequence[int], *, exponent: int = 0) -> float | str | None:
    """Turn the registers of one point into its value; None where the device says it has none.

    `exponent` is the value of the point's scale point: the raw value counts in units of 10 ** exponent.
    """
    return decoder(point)(struct.pack(f">{len(registers)}H", *registers), 0, exponent)


def decoder(point: Register) -> Decoder:
    """`decode`, prepared for those who read the same point again and again."""
    size = 2 * point.count
    if point.type is RegisterType.STR:

        def text(raw: bytes, offset: int, exponent: int) -> str | None:  # noqa: ARG001 - a text has no scale
            words = _ordered(point, raw[offset : offset + size])
            return words.split(b"\0", 1)[0].decode("ascii", errors="replace").strip() or None

        return text

    unpack = struct.Struct(_FORMAT[point.type]).unpack_from
    is_float = point.type is RegisterType.F32
    modulus = 1 << 8 * size
    # Makers print the pattern (0x80000000), whatever the sign of the type.
    nan = None if point.nan is None else point.nan % modulus
    in_order = point.words is WordOrder.HIGH_FIRST or point.count == 1
    sign, scale = point.sign, point.scale

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
        return sign * _scaled(value, scale * 10.0**exponent if exponent else scale)

    return number


def encode(point: Register, value: float | str | None, *, exponent: int = 0) -> list[int]:
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
    return list(struct.unpack(f">{len(raw) // 2}H", _ordered(point, raw)))


def _ordered(point: Register, raw: bytes) -> bytes:
    """Turn the words from the point's order into high first, or back."""
    if point.words is WordOrder.HIGH_FIRST:
        return raw
    return b"".join(raw[index : index + 2] for index in range(len(raw) - 2, -1, -2))


def _number(point: Register, number: float) -> bytes:
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
    modulus = 1 << 16 * point.count
    if point.nan is not None and raw % modulus == point.nan % modulus:
        raise ValueError(f"raw value {raw} means 'no value' here")
    return struct.pack(_FORMAT[point.type], raw)


def _nan(point: Register) -> bytes:
    if point.type is RegisterType.F32:
        return struct.pack(">f", math.nan)
    if point.nan is None:
        raise ValueError("this point cannot say 'no value'")
    size = 2 * point.count
    return (point.nan % (1 << 8 * size)).to_bytes(size, "big")


@lru_cache(maxsize=256)
def _divisor(factor: float) -> int | None:
    """The whole number that this factor is one part of, if there is one."""
    inverse = round(1 / factor)
    return inverse if factor < 1 and math.isclose(inverse * factor, 1.0, rel_tol=1e-12) else None


def _scaled(number: float, factor: float) -> float:
    # A tenth has no exact binary form, ten has: dividing gives 0.3 where multiplying gives 0.3000...04
    divisor = _divisor(factor)
    return number / divisor if divisor is not None else float(number * factor)


def _unscaled(value: float, factor: float) -> float:
    divisor = _divisor(factor)
    return value * divisor if divisor is not None else value / factor
