"""What a device type can do and how well that is known, as the console shows it: out of its profile alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from devices_app.address import type_parameters, type_profile
from devices_app.models import DeviceType
from edge.profiles.model import Check, Limit, Profile, Step
from edge.profiles.parameters import Parameter, parameters_named
from edge.profiles.points import Confidence, Item, Point, Register
from edge.profiles.summary import Capabilities, capabilities_of, confidence_of

READS_IN_SHORT = 2
NO_FALLBACK = "none"
FALLBACK_WORDS = {
    "value": "takes what it was armed with",
    "release": "releases",
    "stop": "stops",
    "preset": "takes its installer's preset",
}
# Facts that a person should look up before he relies on them.
DOUBTFUL = (Confidence.UNVERIFIED, Confidence.DISPUTED)


@dataclass(frozen=True, slots=True)
class PointRow:
    """One point of a profile as people read it. `parameters`: what of it each device says for itself."""

    point: str
    name: str
    doc: str
    key: str
    type: str
    unit: str
    access: str
    confidence: str
    source: str
    note: str
    is_doubtful: bool
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TypeSummary:
    """A type's profile, taken apart. `steps`: which part of the limit, and what is done there in order."""

    profile: Profile
    confidence: str
    capabilities: Capabilities
    points: list[PointRow]
    steps: list[tuple[str, list[str]]]
    own_fallback: str
    parameters: dict[str, Parameter] = field(default_factory=dict)

    @property
    def protocols(self) -> str:
        return ", ".join(protocol.value for protocol in self.profile.protocols)

    @property
    def capability(self) -> str:
        """In a line: what is controlled, and all that is read."""
        return self._capability(self.capabilities.reads)

    @property
    def capability_in_short(self) -> str:
        """The same for a list: of what is read, only the first and how much there is."""
        reads = self.capabilities.reads
        more = len(reads) - READS_IN_SHORT
        return self._capability((*reads[:READS_IN_SHORT], f"{more} more") if more > 1 else reads)

    def _capability(self, read: Sequence[str]) -> str:
        control = self.capabilities.control
        reads = f"reads {', '.join(read)}" if read else "reads nothing"
        if control is None:
            return reads
        taken = f", in {control.unit}" if control.unit not in ("", "%") else ""
        judged = "" if control.reads_back else ", not read back"
        return f"{control.kind.value} {control.minimum:g} to {control.maximum:g}{taken}{judged}; {reads}"

    @property
    def write_class(self) -> str:
        control = self.capabilities.control
        if control is None:
            return ""
        budget = f", {control.writes_per_day} writes a day" if control.writes_per_day is not None else ""
        return f"{control.write_class.value}{budget}"


def type_summary(kind: DeviceType) -> TypeSummary | None:
    """A type's profile for people, its parameters by default or example; None where it has none of use."""
    profile = type_profile(kind)
    if profile is None:
        return None
    capabilities = capabilities_of(profile)
    raw = kind.profile_body.get("points", {})
    points = sorted(profile.points.items(), key=lambda item: _place(*item))
    return TypeSummary(
        profile=profile,
        confidence=confidence_of(profile).value,
        capabilities=capabilities,
        points=[_row(name, point, raw.get(name, {})) for name, point in points],
        steps=_steps(profile),
        own_fallback=_own_fallback(capabilities),
        parameters=type_parameters(kind),
    )


def _place(name: str, point: Point) -> tuple[str, int, str]:
    """Registers by their addresses, others by name; the order of the profile's file is lost on the way."""
    if isinstance(point, Register):
        return f"{point.table.value} {point.model or ''}", point.address, name
    return "", 0, name


def _row(name: str, point: Point, raw: Any) -> PointRow:
    kind = getattr(point, "type", None) if isinstance(point, Register | Item) else None
    return PointRow(
        point=name,
        name=point.name,
        doc=point.doc,
        key=point.key,
        type=kind.value if kind is not None else ("text" if point.is_text else "number"),
        unit=point.unit,
        access=point.access.value,
        confidence=point.confidence.value,
        source=point.source,
        note=point.note,
        is_doubtful=point.confidence in DOUBTFUL,
        parameters=tuple(sorted(parameters_named(raw))),
    )


def _own_fallback(capabilities: Capabilities) -> str:
    own = capabilities.fallback
    if own is None:
        return NO_FALLBACK if capabilities.control is not None else ""
    unless = "" if own.by_default else f", with {own.unless} only"
    return f"{FALLBACK_WORDS[own.takes]} after {own.timeout_s:g} s{unless}"


def _steps(profile: Profile) -> list[tuple[str, list[str]]]:
    limit = profile.limit
    checks = [_check(profile, check) for check in profile.identity.checks]
    rated = profile.identity.nameplate
    if rated is not None:
        checks.append(f"{_name(profile, rated)} is the configured peak power, within 10 %")
    parts = [("Before it is controlled", checks)]
    if limit is not None:
        parts += _limit_steps(profile, limit)
    return [(title, lines) for title, lines in parts if lines]


def _limit_steps(profile: Profile, limit: Limit) -> list[tuple[str, list[str]]]:
    readback = [f"read {_name(profile, limit.readback)}"] if limit.readback is not None else []
    if limit.readback_switch is not None:
        readback.append(f"in force only while {_check(profile, limit.readback_switch)}")
    own = limit.fallback
    parts = [
        ("Before the first write", [_check(profile, check) for check in limit.requires]),
        ("Once after each connection", _written(profile, limit.once)),
        ("To set a limit", _written(profile, limit.set)),
        ("To release it", _written(profile, limit.release or ())),
        ("To read it back", [*readback, f"within {limit.tolerance:g}"] if readback else []),
    ]
    if own is not None:
        parts.append(("To arm its own fallback", _written(profile, own.arm)))
        every = f"every {own.timeout_s / 3:g} s"
        parts.append((f"To keep it from acting, {every}", _written(profile, own.keep_alive)))
    return parts


def _written(profile: Profile, steps: Iterable[Step]) -> list[str]:
    lines = []
    for step in steps:
        what = " and ".join(f"{value} to {_name(profile, name)}" for name, value in step.writes.items())
        together = " with one command" if step.together else ""
        differs = ", if it holds something else" if step.when == "if_different" else ""
        until = f", then wait until {_check(profile, step.until)}" if step.until is not None else ""
        lines.append(f"write {what}{together}{differs}{until}")
    return lines


def _check(profile: Profile, check: Check) -> str:
    wanted = check.equals if isinstance(check.equals, tuple) else (check.equals,)
    hint = f" ({check.hint})" if check.hint else ""
    return f"{_name(profile, check.point)} reads {' or '.join(map(_shown, wanted))}{hint}"


def _shown(value: float | str) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _name(profile: Profile, point: str) -> str:
    known = profile.points[point]
    return f"{known.name} [{known.doc}]" if known.doc else known.name
