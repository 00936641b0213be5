"""What a device type can do, and how well that is known: for the console, the tables and the documents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edge.core.commands import WriteClass
from edge.core.wear import PERSISTENT_WRITES_PER_DAY
from edge.profiles.model import Limit, LimitUnit, OwnFallback, Profile, Step, ValueKind
from edge.profiles.points import Confidence, Point, Protocol, Register

# The best known first.
BY_CONFIDENCE = (
    Confidence.VERIFIED_TWICE,
    Confidence.VERIFIED,
    Confidence.DERIVED,
    Confidence.UNVERIFIED,
    Confidence.DISPUTED,
)


@dataclass(frozen=True, slots=True)
class Control:
    """How a device is controlled. Bounds and default are in the unit of `kind`.

    `point` is the profile's name of the setpoint's point, and `unit` what the device takes there.
    `reads_back`: the device tells the setpoint in force; else a write is judged by the next readings.
    `recognised`: its identity, or at least its rated power, is checked before it is controlled.
    `writes_per_day`: None where nothing limits them.
    """

    kind: ValueKind
    point: str
    unit: str
    minimum: float
    maximum: float
    default: float
    write_class: WriteClass
    writes_per_day: int | None
    reads_back: bool
    releases: bool
    recognised: bool
    confidence: Confidence


@dataclass(frozen=True, slots=True)
class Fallback:
    """A device's own fallback: what it takes by itself after `timeout_s` without a sign of life.

    `by_default`: it is kept alive without being asked for; else `unless` says what has to be set on the
    device.
    """

    takes: str
    timeout_s: float
    by_default: bool
    unless: str
    confidence: Confidence


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a device of this type can do; `control` is None for one that is only measured."""

    protocols: tuple[Protocol, ...]
    reads: tuple[str, ...]
    reads_confidence: Confidence | None
    control: Control | None
    fallback: Fallback | None
    min_gap_s: float
    max_sessions: int | None


def confidence_of(profile: Profile) -> Confidence:
    """How well known is what it takes to control such a device, or to read one that is only measured.

    It is that of the weakest point which is needed: for recognition, setpoint, release and read-back.
    """
    names = _controlled_by(profile, profile.limit) if profile.limit else set(profile.telemetry.values())
    return _weakest(profile, names) or Confidence.UNVERIFIED


def capabilities_of(profile: Profile) -> Capabilities:
    limit = profile.limit
    return Capabilities(
        protocols=profile.protocols,
        reads=tuple(profile.telemetry),
        reads_confidence=_weakest(profile, profile.telemetry.values()),
        control=None if limit is None else _control(profile, limit),
        fallback=None if limit is None or limit.fallback is None else _fallback(profile, limit.fallback),
        min_gap_s=profile.min_gap_ms / 1000,
        max_sessions=profile.max_sessions,
    )


def _control(profile: Profile, limit: Limit) -> Control:
    assert profile.value_kind is not None
    budget = limit.writes_per_day
    if budget is None and limit.write_class is WriteClass.PERSISTENT:
        budget = PERSISTENT_WRITES_PER_DAY
    point = profile.points[limit.register]
    return Control(
        kind=profile.value_kind,
        point=limit.register,
        unit=point.unit if limit.unit is LimitUnit.SAME else limit.unit.value,
        minimum=profile.min_value,
        maximum=profile.max_value,
        default=profile.default_value,
        write_class=limit.write_class,
        writes_per_day=budget,
        reads_back=limit.readback is not None,
        releases=limit.release is not None,
        recognised=bool(profile.identity.checks) or profile.identity.nameplate is not None,
        confidence=confidence_of(profile),
    )


def _fallback(profile: Profile, own: OwnFallback) -> Fallback:
    names = _written((*own.arm, *own.keep_alive)) | ({own.preset} if own.preset is not None else set())
    unless = fallback_consents(profile)
    return Fallback(
        takes=own.takes,
        timeout_s=own.timeout_s,
        by_default=not unless,
        unless=" and ".join(unless),
        confidence=_weakest(profile, names) or Confidence.UNVERIFIED,
    )


def fallback_consents(profile: Profile) -> dict[str, str]:
    """What a device of this type must be set to before its own fallback is armed (rule 14), and why.

    What is armed anyway is not made safer by leaving it unanswered: its setpoint would only not hold.
    """
    own = profile.limit.fallback if profile.limit is not None else None
    consents: dict[str, str] = {}
    if own is None:
        return consents
    if own.keep_alive_class is not WriteClass.VOLATILE:
        consents["accept_wear"] = "keeping it from acting would wear its register"
    if own.always_armed:
        return consents
    if own.takes != "value":
        consents["arm_fallback"] = f"the device can only {own.takes} by itself"
    elif _weakest(profile, _written(own.arm)) in (Confidence.UNVERIFIED, Confidence.DISPUTED):
        # A guessed register, stored by the device, is no safety.
        consents["arm_fallback"] = "what arms it is not verified"
    return consents


def _controlled_by(profile: Profile, limit: Limit) -> set[str]:
    names = _written((*limit.once, *limit.set, *(limit.release or ())))
    names |= {check.point for check in (*profile.identity.checks, *limit.requires)}
    names |= {check.point for check in (limit.readback_switch, limit.volatile_when) if check is not None}
    names |= {name for name in (profile.identity.nameplate, limit.readback) if name is not None}
    return names | {limit.register}


def _written(steps: Iterable[Step]) -> set[str]:
    return {name for step in steps for name in step.writes} | {
        step.until.point for step in steps if step.until is not None
    }


def _weakest(profile: Profile, names: Iterable[str]) -> Confidence | None:
    points = [profile.points[name] for name in names]
    # A number is known no better than its scale.
    points += [profile.points[name] for name in map(_scale_of, points) if name is not None]
    return max((point.confidence for point in points), key=BY_CONFIDENCE.index, default=None)


def _scale_of(point: Point) -> str | None:
    return point.scale_point if isinstance(point, Register) else None
