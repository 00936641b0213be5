"""Who holds the device now, and why.

Every device has a priority array with expiring slots: direct, closed loop, schedule, default, inside the
safety bounds of slot 0. `decide` resolves it. It is total and deterministic: equal arguments give equal
decisions, and nothing the world can do makes it raise. Everything that writes to a device writes what it
returned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime

from edge.core.commands import (
    BEFORE_ALL,
    DirectRequest,
    Hold,
    Lifetime,
    Order,
    Refusal,
    Source,
    WriteClass,
)
from edge.core.cyclic import InForce, WriteReason, write_due
from edge.core.events import Event, FallbackEntered, FallbackReached, LapseCause, SetpointChanged
from edge.core.image import ProcessImage
from edge.core.instant import Instant
from edge.core.quantities import Bound, apply_bounds
from edge.core.schedule import NO_SCHEDULE, Schedule, slot_end, value_at
from edge.core.watchdog import MAX_TIME_LIMIT_S, MIN_TIME_LIMIT_S, has_lapsed, is_time_limit, shorten

# Without a trusted clock the value in force is kept this long, then the default is taken.
UNTRUSTED_CLOCK_GRACE_S = 900.0


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """What the configuration says of a device.

    Values are in the device type's unit, normally percent of controllable nominal AC power. `time_limit_s` is
    the site's curtailment_time_limit; `tolerance` the greatest difference between a value and its read-back
    that still counts as written. `bounds` come on top of the device's own minimum and maximum.

    Settings nobody could act on are refused with `ValueError`: a number that is not finite, a range without
    a value in it, a time limit outside its bounds. `decide` may then promise never to raise.
    """

    tag: str
    category: str
    minimum: float
    maximum: float
    default_value: float
    time_limit_s: float
    excluded: bool = False
    owned_by: str | None = None
    bounds: tuple[Bound, ...] = ()
    lifetime: Lifetime = Lifetime.CYCLIC
    write_class: WriteClass = WriteClass.UNKNOWN
    period_s: float = 300.0
    tolerance: float = 0.5

    def __post_init__(self) -> None:
        for name in ("minimum", "maximum", "default_value", "period_s", "tolerance"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{self.tag}: {name} is not a finite number")
        if self.minimum > self.maximum:
            raise ValueError(f"{self.tag}: minimum {self.minimum:g} is above maximum {self.maximum:g}")
        if not is_time_limit(self.time_limit_s):
            raise ValueError(
                f"{self.tag}: time limit {self.time_limit_s:g} s is not in"
                f" {MIN_TIME_LIMIT_S:g} to {MAX_TIME_LIMIT_S:g} s"
            )

    @property
    def is_controlled(self) -> bool:
        return not self.excluded and self.owned_by is None

    @property
    def own_range(self) -> Bound:
        return Bound("device", self.minimum, self.maximum)


@dataclass(frozen=True, slots=True)
class Lapse:
    """A hold that ended and whose fallback the device has not confirmed yet."""

    hold: Hold
    cause: LapseCause


@dataclass(frozen=True, slots=True)
class DeviceState:
    """The priority array of one device, and what is known of the device itself.

    `in_force` is None until something is known: then the read-back decides whether to write at all.
    """

    settings: DeviceSettings
    schedule: Schedule = NO_SCHEDULE
    hold: Hold | None = None
    last_order: Order = BEFORE_ALL
    in_force: InForce | None = None
    lapse: Lapse | None = None
    resolved: tuple[float, Source] | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What the device is to be held at, and the reason.

    `value` is None for a device nobody may write (excluded, or behind another's control point). `until_*`
    tell when the array changes next by itself: the end of a hold on the boot-time clock, of a slot in UTC.
    """

    tag: str
    value: float | None
    source: Source | None = None
    wish: float | None = None
    bounded_by: str | None = None
    request_id: str | None = None
    until_boottime_s: float | None = None
    until_utc: datetime | None = None
    write: WriteReason | None = None
    events: tuple[Event, ...] = ()


def decide(state: DeviceState, image: ProcessImage, now: Instant) -> tuple[DeviceState, Decision]:
    """Resolve the array: the new state, and the decision with its reason."""
    settings = state.settings
    events: list[Event] = []
    hold, lapse = state.hold, state.lapse
    if hold is not None and (has_lapsed(hold, now=now) or not settings.is_controlled):
        cause = LapseCause.TIME_LIMIT if settings.is_controlled else LapseCause.EXCLUDED
        lapse = Lapse(hold, cause) if settings.is_controlled else None
        events.append(FallbackEntered(settings.tag, hold, cause))
        hold = None

    if not settings.is_controlled:
        state = replace(state, hold=None, lapse=None, resolved=None)
        return state, Decision(settings.tag, None, events=tuple(events))

    wish, source, until_boottime_s, until_utc = _wish(state, hold, image, now)
    allowed = apply_bounds(wish, settings.bounds, device=settings.own_range)
    resolved = (allowed.value, source)
    if resolved != state.resolved:
        events.append(SetpointChanged(settings.tag, allowed.value, source))
    write = write_due(
        allowed.value,
        in_force=state.in_force,
        readback=image.readback,
        tolerance=settings.tolerance,
        lifetime=settings.lifetime,
        write_class=settings.write_class,
        period_s=settings.period_s,
        now_boottime_s=now.boottime_s,
    )
    in_force = state.in_force
    if in_force is None and write is None:
        # The device holds the resolved value already: adopted, not written.
        in_force = InForce(allowed.value, now.boottime_s, confirmed=True)
    if lapse is not None and write is None:
        # A request for what the device falls back to lapses like any other, but leaves nothing to write: no
        # write will ever confirm it, so it ends here.
        events.append(FallbackReached(settings.tag, lapse.hold, lapse.cause, allowed.value))
        lapse = None
    decision = Decision(
        tag=settings.tag,
        value=allowed.value,
        source=source,
        wish=wish,
        bounded_by=allowed.bounded_by,
        request_id=hold.request_id if hold is not None else None,
        until_boottime_s=until_boottime_s,
        until_utc=until_utc,
        write=write,
        events=tuple(events),
    )
    return replace(state, hold=hold, lapse=lapse, in_force=in_force, resolved=resolved), decision


def _wish(
    state: DeviceState, hold: Hold | None, image: ProcessImage, now: Instant
) -> tuple[float, Source, float | None, datetime | None]:
    """The highest slot that has a value: the wish, its source, and when the array changes next by itself."""
    default = state.settings.default_value
    if hold is not None:
        return hold.value, Source.DIRECT, hold.ends_boottime_s, None
    if image.loop_value is not None and math.isfinite(image.loop_value):
        return image.loop_value, Source.CLOSED_LOOP, None, None
    untrusted_since = image.clock.untrusted_since_s
    if untrusted_since is not None:
        # Rule 17: without a trusted clock nobody knows which slot it is. What is in force stays for a while.
        grace_ends = untrusted_since + UNTRUSTED_CLOCK_GRACE_S
        if (
            math.isfinite(grace_ends)
            and now.boottime_s <= grace_ends
            and state.resolved is not None
            and state.resolved[1] is Source.SCHEDULE
        ):
            return state.resolved[0], Source.SCHEDULE, grace_ends, None
        return default, Source.DEFAULT, None, None
    scheduled = value_at(state.schedule, now.utc)
    if scheduled is not None:
        return scheduled, Source.SCHEDULE, None, slot_end(now.utc)
    return default, Source.DEFAULT, None, slot_end(now.utc)


# --- what happens to a device between two decisions -----------------------------------------------


def admit(state: DeviceState, request: DirectRequest, now: Instant) -> tuple[DeviceState, Refusal | None]:
    """Take a direct request into slot 1, or say why not.

    The limit counts from this arrival. A request with the same or an older order than the last admitted one
    is superseded, whatever arrived first.
    """
    settings = state.settings
    if settings.owned_by is not None:
        return state, Refusal.OWNED_BY
    if settings.excluded:
        return state, Refusal.EXCLUDED
    if request.order <= state.last_order:
        return state, Refusal.SUPERSEDED
    in_range = settings.minimum <= request.value <= settings.maximum
    if not (in_range and math.isfinite(request.hold_s) and request.hold_s > 0):
        return state, Refusal.RANGE
    hold = Hold(
        order=request.order,
        request_id=request.request_id,
        category=settings.category,
        value=request.value,
        received_boottime_s=now.boottime_s,
        ends_boottime_s=now.boottime_s + min(request.hold_s, settings.time_limit_s),
    )
    # A request that takes over ends whatever fallback was still owed: the array has a higher slot again.
    return replace(state, hold=hold, last_order=request.order, lapse=None), None


def release(state: DeviceState, order: Order) -> tuple[DeviceState, Refusal | None]:
    """Empty slot 1 at once, unless a later request was admitted meanwhile."""
    if state.settings.owned_by is not None:
        return state, Refusal.OWNED_BY
    if state.settings.excluded:
        return state, Refusal.EXCLUDED
    if order <= state.last_order:
        return state, Refusal.SUPERSEDED
    return replace(state, hold=None, last_order=order), None


def reconfigure(state: DeviceState, settings: DeviceSettings) -> DeviceState:
    """Take new settings. A new limit may shorten a running hold, never lengthen it.

    A device that comes under control, for the first time or again, is read before it is written.
    """
    if settings.is_controlled and not state.settings.is_controlled:
        # Meanwhile it was somebody else's to write.
        state = contact_renewed(state)
    hold = state.hold
    if hold is not None:
        hold = shorten(hold, time_limit_s=settings.time_limit_s)
    return replace(state, settings=settings, hold=hold)


def resume(state: DeviceState, *, same_boot: bool) -> DeviceState:
    """Take up a state from disk: a process restart keeps a running hold, a reboot drops it.

    What is in force is unknown after either; the device is read before it is written.
    """
    state = replace(state, in_force=None, resolved=None)
    if same_boot or state.hold is None:
        return state
    return replace(state, hold=None, lapse=Lapse(state.hold, LapseCause.REBOOT))


def contact_renewed(state: DeviceState) -> DeviceState:
    """The device was out of reach, and may have restarted: what it holds is to be read anew."""
    return replace(state, in_force=None)


def written(state: DeviceState, value: float, now: Instant, *, confirmed: bool) -> DeviceState:
    """A write of `value` ended, confirmed by the device or not."""
    in_force = InForce(value, now.boottime_s, confirmed)
    lapse = None if confirmed else state.lapse
    return replace(state, in_force=in_force, lapse=lapse)


def explain(decision: Decision) -> str:
    """The reason in one sentence, as the log and the operator read it."""
    if decision.value is None or decision.source is None:
        return f"{decision.tag} is not controlled"
    who = decision.source.label
    if decision.request_id:
        who += f" request {decision.request_id}"
    text = f"{decision.tag} at {decision.value:g} by {who}"
    if decision.bounded_by is not None:
        text += f", asked for {decision.wish:g}, bounded by {decision.bounded_by}"
    if decision.until_utc is not None:
        text += f", until {decision.until_utc:%Y-%m-%dT%H:%M:%SZ}"
    return text
