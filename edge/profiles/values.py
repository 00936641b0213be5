"""What a device says in its own terms, and what it means in ours: codes, sign and scale, of any protocol."""

from __future__ import annotations

import math
from functools import lru_cache

from edge.profiles.points import Point, Value

# More digits than a double is sure of are noise of the division that made them.
DIGITS = 12
# How JSON and most devices spell a truth.
_TRUTHS = {True: ("true", "True", "TRUE"), False: ("false", "False", "FALSE")}


def from_device(point: Point, raw: object, *, exponent: int = 0) -> Value:
    """Turn what a device says into the point's value; None where that is no value.

    `raw` is a number, a truth or a text, also a number written as one. `exponent`: the device counts in units
    of 10 ** exponent.
    """
    if raw is None:
        return None
    if point.codes:
        return value_of_code(point, raw)
    if point.is_text:
        return str(raw).strip() or None
    number = _number(raw)
    return None if number is None else point.sign * scaled(number, point.scale * 10.0**exponent)


def to_device(point: Point, value: Value, *, exponent: int = 0) -> float | str:
    """Turn a value into what the device is to be told; `ValueError` where it knows no such thing.

    A number that is whole comes as an `int`: some devices take no `37.0`.
    """
    if value is None:
        raise ValueError("no value cannot be said")
    if point.codes:
        return code_of_value(point, value)
    if point.is_text:
        return str(value)
    if isinstance(value, str):
        raise ValueError(f"{value!r} is a text, expected a number")  # noqa: TRY004 - as for every other value
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    number = float(f"{point.sign * unscaled(value, point.scale * 10.0**exponent):.{DIGITS}g}")
    return int(number) if number.is_integer() else number


def value_of_code(point: Point, raw: object) -> float | None:
    """The value that the device's own word or number stands for; None where it stands for none."""
    for value, code in point.codes.items():
        if _is_code(code, raw):
            return float(value)
    return None


def code_of_value(point: Point, value: Value) -> float | str:
    """The device's own word or number for a value; `ValueError` where it has none."""
    for one, code in point.codes.items():
        if isinstance(value, float | int) and math.isclose(float(one), value, rel_tol=1e-9, abs_tol=1e-9):
            return code
    raise ValueError(f"{value} is none of {', '.join(point.codes)}")


def scaled(number: float, factor: float) -> float:
    """`number` * `factor`, without the noise that a factor like 0.1 brings."""
    # A tenth has no exact binary form, ten has: dividing gives 0.3 where multiplying gives 0.3000...04
    divisor = _divisor(factor)
    return number / divisor if divisor is not None else float(number * factor)


def unscaled(value: float, factor: float) -> float:
    """The number that `scaled` makes this value of."""
    divisor = _divisor(factor)
    return value * divisor if divisor is not None else value / factor


def _is_code(code: float | str, raw: object) -> bool:
    if isinstance(raw, bool) and isinstance(code, str):
        return code in _TRUTHS[raw]
    if isinstance(code, str):
        return isinstance(raw, str) and raw.strip() == code
    return _number(raw) == code


def _number(raw: object) -> float | None:
    if not isinstance(raw, float | int | str):
        return None
    try:
        number = float(raw)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


@lru_cache(maxsize=256)
def _divisor(factor: float) -> int | None:
    """The whole number that this factor is one part of, if there is one."""
    inverse = round(1 / factor)
    return inverse if factor < 1 and math.isclose(inverse * factor, 1.0, rel_tol=1e-12) else None
