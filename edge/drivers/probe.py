"""Look at a device before it is controlled: is it the one, does it say what its profile expects of it?

Reads only. Nothing here can write: all it has of a driver is `read_points`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Protocol as Shape, runtime_checkable

from edge.core.commands import WriteClass
from edge.drivers.errors import DeviceAway, DeviceRefused, DeviceUnreachable, ReadingInvalid
from edge.drivers.plan import plan_reads
from edge.drivers.points import NAMEPLATE_TOLERANCE, readback_points, shown
from edge.profiles.model import FALLBACK, TIMEOUT, VALUE, Check, Limit, LimitUnit, OwnFallback, Profile
from edge.profiles.points import Message, Protocol, Register, RegisterType, Resource, Value
from edge.profiles.registers import decode, encode
from edge.wire.messages import ProbeLine, ProbeReport, Verdict

IDENTITY, RATING, LIMIT, SWITCHES = "identity", "rated power", "limit", "switches"
OWN_FALLBACK, TELEMETRY, ANSWERS = "own fallback", "telemetry", "answers"
# Who gives more than this part of the configured power on top is read by a wrong scale, or is another device.
IMPLAUSIBLE = 1.5
WORSE = (Verdict.OK, Verdict.WARNING, Verdict.FAILED)

# What is known of a point of the device; `DriverError` where it is nothing.
Ask = Callable[[frozenset[str]], Awaitable[Mapping[str, Value]]]


@runtime_checkable
class PointReader(Shape):
    """All that a probe needs of a driver (`edge.drivers.points.PointDriver` has it)."""

    async def read_points(self, names: Iterable[str]) -> Mapping[str, Value]:
        """Values of these points; those which the device refuses are not among them, unless all are."""


async def probe(
    driver: PointReader,
    profile: Profile,
    nameplate_kw: float | None,
    *,
    clock: Callable[[], float],
    default_value: float | None = None,
) -> Probe:
    """Read all that the profile knows how to read; never raises for anything the device can do."""
    looked = Probe(profile, nameplate_kw, ask=driver.read_points, clock=clock, default_value=default_value)
    await looked.run()
    return looked


class Probe:
    """One look at a device. What was read so far can be reported at any time, also when it was broken off.

    `ask` reads points, with one command where `_groups` can tell; it may be a driver's `read_points`, or
    somebody who waits for his turn on a line first. `clock` gives seconds. `default_value`: what the device's
    own fallback would be armed with, in the unit of the profile's value kind; None: the profile's default.
    """

    def __init__(
        self,
        profile: Profile,
        nameplate_kw: float | None,
        *,
        ask: Ask,
        clock: Callable[[], float],
        default_value: float | None = None,
    ) -> None:
        self._profile = profile
        self._nameplate_kw = nameplate_kw
        self._ask = ask
        self._clock = clock
        self._default = profile.default_value if default_value is None else default_value
        self._found: dict[str, Value] = {}
        self._refused: dict[str, str] = {}
        self._broken_off = ""
        self._took_s: list[float] = []

    async def run(self) -> None:
        """Read group by group; ends at the first question that is not answered at all."""
        try:
            for names in _groups(self._profile):
                await self._read(names)
        except DeviceUnreachable as error:
            self.break_off(str(error))

    def break_off(self, reason: str) -> None:
        """What is not read yet will not be, and this is why."""
        self._broken_off = reason

    async def _read(self, names: frozenset[str]) -> None:
        begun = self._clock()
        refusal = ""
        values: Mapping[str, Value] = {}
        try:
            values = await self._ask(names)
        except (DeviceRefused, ReadingInvalid) as error:
            refusal = str(error)
        except DeviceAway as error:
            if self._profile.protocol is not Protocol.MQTT:
                raise
            # A topic on which nothing came says nothing about the others.
            refusal = str(error)
        self._took_s.append(self._clock() - begun)
        self._found.update({name: value for name, value in values.items() if name in self._profile.points})
        missing = names - values.keys()
        if len(names) == 1:
            self._refused.update(dict.fromkeys(missing, refusal or "the device refuses it"))
            return
        for name in sorted(missing):
            # Alone each of them says for itself why not, and the others come.
            await self._read(frozenset({name}))

    # --- what it means

    def report(self, *, where: str, at: str, took_s: float) -> ProbeReport:
        lines = list(self._lines())
        worst = max((line.verdict for line in lines), key=WORSE.index, default=Verdict.OK)
        return ProbeReport(
            profile=self._profile.name,
            title=self._profile.title,
            where=where,
            at=at,
            took_s=round(took_s, 3),
            verdict=worst,
            lines=lines,
        )

    def _lines(self) -> Iterator[ProbeLine]:
        yield from self._identity()
        yield self._rating()
        limit = self._profile.limit
        if limit is not None:
            yield from self._limit(limit)
            yield from self._switches(limit)
            yield from self._own_fallback(limit)
        yield from (self._reading(key, name) for key, name in self._profile.telemetry.items())
        yield self._answers()

    def _identity(self) -> Iterator[ProbeLine]:
        checks = self._profile.identity.checks
        if not checks:
            yield ProbeLine(
                part=IDENTITY,
                verdict=Verdict.WARNING,
                detail="the profile knows nothing by which to recognise the device",
            )
        for check in checks:
            yield self._judged(IDENTITY, check)

    def _judged(self, part: str, check: Check, *, otherwise: Verdict = Verdict.FAILED) -> ProbeLine:
        holds = check.point in self._found and check.holds(self._found[check.point])
        return self._line(
            part,
            check.point,
            verdict=Verdict.OK if holds else otherwise,
            expected=shown(check.equals),
            detail="" if holds else check.hint,
        )

    def _line(
        self,
        part: str,
        point: str,
        *,
        verdict: Verdict,
        key: str = "",
        expected: str = "",
        detail: str = "",
        missing: Verdict | None = None,
    ) -> ProbeLine:
        """A line about a point. What was not read has the verdict `missing`, else `verdict`."""
        known = self._profile.points[point]
        if point not in self._found:
            verdict = missing or verdict
            if point in self._refused:
                detail = self._refused[point]
            elif known.readable:
                detail = "not asked any more"
            else:
                detail = "can only be written"
        return ProbeLine(
            part=part,
            verdict=verdict,
            key=key,
            point=point,
            name=known.name,
            doc=known.doc,
            value=self._found.get(point),
            unit=known.unit,
            expected=expected,
            detail=detail,
        )

    def _number(self, point: str | None) -> float | None:
        value = self._found.get(point) if point is not None else None
        return value if isinstance(value, float | int) else None

    # --- rated power

    def _rating(self) -> ProbeLine:
        point, configured = self._profile.identity.nameplate, self._nameplate_kw
        if point is None:
            return ProbeLine(
                part=RATING,
                verdict=Verdict.WARNING,
                expected="" if configured is None else f"{configured:g} kW",
                detail="the profile knows no way to read it: compare the type plate",
            )
        if configured is None:
            return self._line(
                RATING,
                point,
                verdict=Verdict.WARNING,
                detail="no peak power is configured to compare it with",
                missing=Verdict.FAILED,
            )
        rated = self._number(point)
        fits = rated is not None and _is_about(rated, configured)
        detail = ""
        if not fits:
            detail = "the device does not say" if rated is None else self._why_other(point, rated, configured)
        return self._line(
            RATING,
            point,
            verdict=Verdict.OK if fits else Verdict.FAILED,
            expected=f"{configured:g} kW",
            detail=detail,
        )

    def _why_other(self, point: str, rated: float, configured: float) -> str:
        """The usual mistakes behind a rated power that is not the one configured."""
        swapped = self._swapped(point, rated)
        if swapped is not None and _is_about(swapped, configured):
            return "word order? With its words exchanged it would fit"
        for factor in (10, 100, 1000):
            if _is_about(rated, configured * factor) or _is_about(rated, configured / factor):
                return f"factor {factor}? Check the scale, and whether it is W or kW"
        return "more than 10 % apart: check the device's profile, address and peak power"

    def _swapped(self, name: str, value: float) -> float | None:
        """The value of a register point if its words came the other way around; None where there is none."""
        point = self._profile.points[name]
        if not isinstance(point, Register) or point.type is RegisterType.STR or point.count < 2:  # noqa: PLR2004
            return None
        exponent = self._number(point.scale_point) if point.scale_point is not None else 0
        if exponent is None:
            return None
        try:
            words = encode(point, value, exponent=int(exponent))
            other = decode(point, words[::-1], exponent=int(exponent))
        except (ValueError, ReadingInvalid):
            return None
        return other if isinstance(other, float | int) else None

    # --- limit

    def _limit(self, limit: Limit) -> Iterator[ProbeLine]:
        names = dict.fromkeys((limit.register, *sorted(readback_points(limit))))
        for name in names:
            readable = self._profile.points[name].readable
            yield self._line(
                LIMIT, name, verdict=Verdict.OK, missing=Verdict.WARNING if readable else Verdict.OK
            )
        yield self._in_force(limit)

    def _in_force(self, limit: Limit) -> ProbeLine:
        highest = self._profile.max_value
        unit = "%" if (self._profile.value_kind or "").endswith("_pct") else ""
        if limit.readback is None:
            detail = "the profile knows no way to read it: only the measured power tells"
            return ProbeLine(part=LIMIT, verdict=Verdict.WARNING, name="in force", detail=detail)
        if not readback_points(limit) <= self._found.keys():
            return ProbeLine(part=LIMIT, verdict=Verdict.WARNING, name="in force", detail="not known")
        value = self._found[limit.readback]
        switch = limit.readback_switch
        is_off = switch is not None and not switch.holds(self._found[switch.point])
        if is_off or (value is not None and value == limit.readback_no_limit):
            return ProbeLine(part=LIMIT, verdict=Verdict.OK, name="in force", detail="no limit stands")
        ours = self._ours(value, limit) if isinstance(value, float | int) else None
        if ours is None:
            detail = "the device does not say what stands in it"
            if limit.unit is not LimitUnit.SAME and self._nameplate_kw is None:
                detail = "without a peak power nobody knows what it is a part of"
            return ProbeLine(part=LIMIT, verdict=Verdict.WARNING, name="in force", detail=detail)
        stands = abs(ours - highest) > limit.tolerance
        return ProbeLine(
            part=LIMIT,
            verdict=Verdict.WARNING if stands else Verdict.OK,
            name="in force",
            value=round(ours, 3),
            unit=unit,
            detail="a limit stands: note it, so that it can be restored" if stands else "no limit stands",
        )

    def _full_scale(self, limit: Limit) -> float | None:
        """100 % in what the device takes; None where nobody can tell."""
        if limit.unit is LimitUnit.SAME:
            return 100.0
        if self._nameplate_kw is None:
            return None
        if limit.unit is LimitUnit.KW:
            return self._nameplate_kw
        return self._nameplate_kw * 1000 / (limit.volts * limit.phases)

    def _ours(self, value: float, limit: Limit) -> float | None:
        full = self._full_scale(limit)
        if full is None:
            return None
        return max(self._profile.min_value, min(self._profile.max_value, value * 100 / full))

    def _switches(self, limit: Limit) -> Iterator[ProbeLine]:
        for check in limit.requires:
            yield self._judged(SWITCHES, check)
        if limit.volatile_when is not None:
            yield self._judged(SWITCHES, limit.volatile_when, otherwise=Verdict.WARNING)

    # --- own fallback

    def _own_fallback(self, limit: Limit) -> Iterator[ProbeLine]:
        own = limit.fallback
        if own is None:
            detail = "none that is known: what stands in it stays if the node is lost"
            yield ProbeLine(part=OWN_FALLBACK, verdict=Verdict.OK, detail=detail)
            return
        does = {
            "value": "takes the value that it is armed with",
            "release": "can only release its limit",
            "stop": "can only stop",
            "preset": "takes what its installer has preset",
        }[own.takes]
        wears = own.keep_alive_class is not WriteClass.VOLATILE
        worn = "; keeping it from acting wears its register" if wears else ""
        yield ProbeLine(
            part=OWN_FALLBACK,
            verdict=Verdict.WARNING if wears else Verdict.OK,
            detail=f"after {own.timeout_s:g} s without a sign of life it {does}{worn}",
        )
        if own.preset is not None:
            yield self._preset(own.preset, limit)
        armed = {name: value for step in own.arm for name, value in step.writes.items()}
        for name, value in armed.items():
            yield self._line(
                OWN_FALLBACK, name, verdict=Verdict.OK, expected=self._would_be_armed(value, own, limit)
            )

    def _preset(self, point: str, limit: Limit) -> ProbeLine:
        full, value = self._full_scale(limit), self._number(point)
        wanted = None if full is None else self._default * full / 100
        fits = wanted is not None and value is not None and abs(value - wanted) <= limit.tolerance
        return self._line(
            OWN_FALLBACK,
            point,
            verdict=Verdict.OK if fits else Verdict.WARNING,
            expected="" if wanted is None else shown(wanted),
            detail="" if fits else "its installer has preset something else than the device's default",
        )

    def _would_be_armed(self, value: float | str, own: OwnFallback, limit: Limit) -> str:
        if value == TIMEOUT:
            return f"would be armed with {own.timeout_s:g}"
        if value == FALLBACK:
            full = self._full_scale(limit)
            return "" if full is None else f"would be armed with {shown(self._default * full / 100)}"
        return "" if value == VALUE else f"would be armed with {shown(value)}"

    # --- telemetry, and how it answers

    def _reading(self, key: str, point: str) -> ProbeLine:
        value = self._number(point)
        if value is None and point in self._found:
            at_night = self._profile.sleeps_at_night
            return self._line(
                TELEMETRY,
                point,
                key=key,
                verdict=Verdict.OK if at_night else Verdict.WARNING,
                detail="no value, which may be at night" if at_night else "no value",
            )
        nameplate = self._nameplate_kw
        too_much = (
            key == "P_kW"
            and value is not None
            and nameplate is not None
            and abs(value) > IMPLAUSIBLE * nameplate
        )
        return self._line(
            TELEMETRY,
            point,
            key=key,
            verdict=Verdict.WARNING if too_much else Verdict.OK,
            detail="far above the peak power configured: scale, word order or meter?" if too_much else "",
            missing=Verdict.WARNING,
        )

    def _answers(self) -> ProbeLine:
        if self._broken_off:
            return ProbeLine(part=ANSWERS, verdict=Verdict.FAILED, detail=self._broken_off)
        if not self._took_s:
            return ProbeLine(part=ANSWERS, verdict=Verdict.FAILED, detail="there is nothing to ask it for")
        slowest_ms = 1000 * max(self._took_s)
        # The pause before a command is ours, and part of what it took.
        allowed_ms = self._profile.timeout_ms + self._profile.min_gap_ms
        is_slow = slowest_ms > allowed_ms / 2 + self._profile.min_gap_ms
        mean_ms = 1000 * sum(self._took_s) / len(self._took_s)
        return ProbeLine(
            part=ANSWERS,
            verdict=Verdict.WARNING if is_slow else Verdict.OK,
            name="slowest",
            value=round(slowest_ms, 1),
            unit="ms",
            expected=f"within {allowed_ms} ms",
            detail=f"{len(self._took_s)} questions, {mean_ms:.1f} ms each in the mean, pauses included",
        )


def _is_about(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= NAMEPLATE_TOLERANCE * abs(wanted)


def _groups(profile: Profile) -> list[frozenset[str]]:
    """What to read together, what matters most first: of registers what one command reads."""
    wanted: dict[str, None] = dict.fromkeys(check.point for check in profile.identity.checks)
    if profile.identity.nameplate is not None:
        wanted[profile.identity.nameplate] = None
    limit = profile.limit
    if limit is not None:
        wanted |= dict.fromkeys((*sorted(readback_points(limit)), limit.register))
        wanted |= dict.fromkeys(check.point for check in limit.requires)
        if limit.volatile_when is not None:
            wanted[limit.volatile_when.point] = None
        own = limit.fallback
        if own is not None:
            wanted |= dict.fromkeys(name for step in own.arm for name in step.writes)
            if own.preset is not None:
                wanted[own.preset] = None
    wanted |= dict.fromkeys(profile.telemetry.values())
    names = [name for name in wanted if profile.points[name].readable]
    return sorted(_together(profile, names), key=lambda group: min(map(names.index, group)))


def _together(profile: Profile, names: list[str]) -> list[frozenset[str]]:
    apart: dict[object, list[str]] = {}
    for name in names:
        point = profile.points[name]
        # A SunSpec address counts from its model.
        kind: object = point.model if isinstance(point, Register) else None
        if isinstance(point, Resource):
            kind = point.read_path
        elif isinstance(point, Message):
            kind = point.topic
        apart.setdefault(kind, []).append(name)
    if not profile.protocol.is_modbus:
        return [frozenset(group) for group in apart.values()]
    return [
        frozenset(block.points)
        for group in apart.values()
        for block in plan_reads(
            profile.registers, group, max_block=profile.max_block, max_gap=profile.max_read_gap
        )
    ]
