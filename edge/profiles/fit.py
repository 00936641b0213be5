"""Whether the values that a profile names fit the points they are for; each error names the key at fault.

What is caught here would else show at the device: a write that fails, a read-back that never agrees, a check
that never holds, or a reading that is always "no value".
"""

from __future__ import annotations

from collections.abc import Iterator

from edge.profiles.errors import ProfileError
from edge.profiles.model import VALUE, Check, Limit, LimitUnit, Profile, Step, ValueKind
from edge.profiles.points import FLOATS, Confidence, Point, Register, RegisterType, Value
from edge.profiles.registers import encode

# A tolerance may be half of what one count is worth, which has no exact binary form.
SLACK = 1e-9


def fit_check(profile: Profile) -> None:
    """`ProfileError` for the first thing that does not fit; of a profile whose names are all known."""
    for key in ("title", "maker", "model", "source"):
        if not getattr(profile, key).strip():
            raise ProfileError(key=key, expectation="expected a text that is not empty")
    for name, point in profile.points.items():
        _check_point(profile, f"points.{name}", point)
    for key, check in _checks(profile):
        _check_check(profile, key, check)
    if profile.limit is not None:
        _check_limit(profile, profile.limit)


def _check_point(profile: Profile, key: str, point: Point) -> None:
    for part in ("name", "source"):
        if not getattr(point, part).strip():
            raise ProfileError(key=f"{key}.{part}", expectation="expected a text that is not empty")
    if point.confidence is Confidence.DISPUTED and not point.note.strip():
        raise ProfileError(key=f"{key}.note", expectation="expected, because what is disputed has to be said")
    if not isinstance(point, Register):
        return
    if point.count > profile.max_block:
        raise ProfileError(
            key=f"{key}.length",
            expectation=f"expected at most max_block registers, {profile.max_block}, not {point.count}",
        )
    if point.nan is not None and point.type is not RegisterType.BITS:
        bits = 16 * point.count
        if not -(1 << (bits - 1)) <= point.nan < 1 << bits:
            raise ProfileError(key=f"{key}.nan", expectation=f"expected a pattern of {bits} bits")
    if point.example is not None:
        _check_fits(profile, f"{key}.example", point, point.example)


def _check_check(profile: Profile, key: str, check: Check) -> None:
    point = profile.points[check.point]
    is_text = point.is_text and not point.codes
    for value in check.equals if isinstance(check.equals, tuple) else (check.equals,):
        if isinstance(value, str) != is_text:
            kind = "a text" if is_text else "a number"
            raise ProfileError(key=f"{key}.equals", expectation=f"{check.point!r} is {kind}, not {value!r}")
        _check_fits(profile, f"{key}.equals", point, value)


def _check_limit(profile: Profile, limit: Limit) -> None:
    low, high = profile.min_value, profile.max_value
    is_signed = profile.value_kind is ValueKind.SIGNED_SETPOINT_PCT
    if is_signed != (low < 0):
        wanted = "a value below 0" if is_signed else "0 or more"
        raise ProfileError(key="min_value", expectation=f"expected {wanted} for {profile.value_kind}")
    if profile.value_kind is not None and not profile.value_kind.is_limit:
        for part in ("release", "readback_switch", "readback_no_limit"):
            if getattr(limit, part) is not None:
                raise ProfileError(
                    key=f"limit.{part}",
                    expectation=f"no value of {profile.value_kind.value} means that nothing is limited",
                )
    if not any(limit.register in step.writes for step in limit.set):
        raise ProfileError(
            key="limit.register", expectation=f"{limit.register!r} is not written by limit.set"
        )
    for key, step in _steps(limit):
        for name, value in step.writes.items():
            if value == VALUE and limit.unit is LimitUnit.SAME:
                for setpoint in (low, high, profile.default_value):
                    _check_fits(profile, f"{key}.value", profile.points[name], setpoint)
            elif not isinstance(value, str):
                _check_fits(profile, f"{key}.value", profile.points[name], value)
    _check_tolerance(profile, limit)


def _check_tolerance(profile: Profile, limit: Limit) -> None:
    """A device that counts in whole percent holds 37 where it is told 37.4."""
    if limit.readback is None or limit.unit is not LimitUnit.SAME:
        return
    names = {name for step in limit.set for name, value in step.writes.items() if value == VALUE}
    for name in sorted(names | {limit.readback}):
        half = _resolution(profile, profile.points[name]) / 2
        if limit.tolerance < half - SLACK:
            raise ProfileError(
                key="limit.tolerance",
                expectation=f"expected at least {half:g}, half of what one count of {name!r} is worth",
            )


def _resolution(profile: Profile, point: Point) -> float:
    """What one count is worth; 0 where there are no counts, or nobody knows."""
    if not isinstance(point, Register) or point.type in FLOATS or point.codes:
        return 0.0
    exponent = _exponent(profile, point)
    return 0.0 if exponent is None else float(point.scale * 10.0**exponent)


def _check_fits(profile: Profile, key: str, point: Point, value: Value) -> None:
    """A register holds it; with a scale factor of its own, one like that of the example."""
    if not isinstance(point, Register):
        return
    exponent = _exponent(profile, point)
    if exponent is None:
        return
    try:
        encode(point, value, exponent=exponent)
    except ValueError as error:
        raise ProfileError(key=key, expectation=f"does not fit: {error}") from error


def _exponent(profile: Profile, point: Register) -> int | None:
    """The power of ten of its scale point, by that one's example; None where that is not known."""
    if point.scale_point is None:
        return 0
    example = profile.points[point.scale_point].example
    return int(example) if isinstance(example, float | int) else None


def _checks(profile: Profile) -> Iterator[tuple[str, Check]]:
    for index, check in enumerate(profile.identity.checks):
        yield f"identity.checks[{index}]", check
    limit = profile.limit
    if limit is None:
        return
    for index, check in enumerate(limit.requires):
        yield f"limit.requires[{index}]", check
    for name in ("readback_switch", "volatile_when"):
        one: Check | None = getattr(limit, name)
        if one is not None:
            yield f"limit.{name}", one
    for key, step in _steps(limit):
        if step.until is not None:
            yield f"{key}.until", step.until


def _steps(limit: Limit) -> Iterator[tuple[str, Step]]:
    own = limit.fallback
    parts = {
        "once": limit.once,
        "set": limit.set,
        "release": limit.release or (),
        "fallback.arm": own.arm if own is not None else (),
        "fallback.keep_alive": own.keep_alive if own is not None else (),
    }
    for part, steps in parts.items():
        for index, step in enumerate(steps):
            yield f"limit.{part}[{index}]", step
