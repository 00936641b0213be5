"""Who holds the device now, and why.

Every device has a priority array with expiring slots: direct, closed loop, schedule, default, inside the
safety bounds of slot 0. `decide` resolves it. It is total and deterministic: equal arguments give equal
decisions, and nothing the world can do makes it raise. Everything that writes to a device writes what it
returned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

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
from edge.core.cyclic import (
    Armed,
    InForce,
    KeepAlive,
    KeepAliveDue,
    WriteReason,
    keep_alive_due,
    write_due,
)
from edge.core.events import (
    Event,
    FallbackEntered,
    FallbackReached,
    LapseCause,
    Retired,
    RetiredBecause,
    SetpointChanged,
)
from edge.core.image import PassedOn, ProcessImage
from edge.core.instant import Instant
from edge.core.quantities import Bound, apply_bounds
from edge.core.ramp import Ramp, move
from edge.core.schedule import NO_SCHEDULE, Schedule, slot_end, value_at
from edge.core.traces import Traces, contain, leave
from edge.core.watchdog import MAX_TIME_LIMIT_S, MIN_TIME_LIMIT_S, has_lapsed, is_time_limit, shorten
from edge.core.wear import EMPTY_LEDGER, Ledger, begin_day, count

# Without a trusted clock the value in force is kept this long, then the default is taken.
UNTRUSTED_CLOCK_GRACE_S = 900.0
# What a hold costs: its set and its release.
HOLD_WRITES = 2
# The part of a day's budget that, once spent, is worth an alarm.
WEAR_ALARM = 0.8


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """What the configuration says of a device.

    Values are in the device type's unit, normally percent of controllable nominal AC power. `time_limit_s` is
    the site's curtailment_time_limit; `tolerance` the greatest difference between a value and its read-back
    that still counts as written. `bounds` come on top of the device's own minimum and maximum.
    `ramp_pct_per_min` is in percent of nameplate a minute, None is no ramp; `writes_per_day` the budget of
    the registers a write goes to, None is no budget; `accept_wear` tells that an engineer answers for the
    writes to a register of unknown endurance; `readable` that the value in force can be read.
    `keep_alive` is the device's own fallback where it is to be armed, `no_own_fallback` why the one it has is
    not; `budgeted` names the registers of the budget. `owned_by` is the device whose control point commands
    this one too, so that nobody writes here; `proxy` the one whose value is passed on to this one, which is
    written like any other and takes no requests of its own.

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
    proxy: str | None = None
    bounds: tuple[Bound, ...] = ()
    lifetime: Lifetime = Lifetime.CYCLIC
    write_class: WriteClass = WriteClass.UNKNOWN
    period_s: float = 300.0
    tolerance: float = 0.5
    ramp_pct_per_min: float | None = None
    writes_per_day: int | None = None
    accept_wear: bool = False
    readable: bool = True
    keep_alive: KeepAlive | None = None
    no_own_fallback: str = ""
    budgeted: frozenset[str] = frozenset()

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
        ramp = self.ramp_pct_per_min
        if ramp is not None and not (math.isfinite(ramp) and ramp > 0):
            raise ValueError(f"{self.tag}: ramp {ramp:g} % a minute is not above 0")
        if self.writes_per_day is not None and self.writes_per_day < HOLD_WRITES:
            raise ValueError(f"{self.tag}: a budget of {self.writes_per_day} writes a day carries no request")

    @property
    def is_controlled(self) -> bool:
        return not self.excluded and self.owned_by is None

    @property
    def own_range(self) -> Bound:
        return Bound("device", self.minimum, self.maximum)

    @property
    def wears(self) -> bool:
        """Tell whether a write may cost the register something, and nobody has accepted that."""
        if self.write_class is WriteClass.UNKNOWN:
            return not self.accept_wear
        return self.write_class is WriteClass.PERSISTENT

    @property
    def ramp_per_s(self) -> float | None:
        """Its ramp, in the value's unit a second; a register that wears takes none: one write a change."""
        return None if self.ramp_pct_per_min is None or self.wears else self.ramp_pct_per_min / 60


@dataclass(frozen=True, slots=True)
class Lapse:
    """A hold that ended and whose fallback the device has not confirmed yet."""

    hold: Hold
    cause: LapseCause


class Retirement(StrEnum):
    """How far a device is that this node is to leave as if it had never been there (rule 20)."""

    OWED = "owed"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class DeviceState:
    """The priority array of one device, and what is known of the device itself.

    `in_force` is None until something is known: then the read-back decides whether to write at all. `is_met`
    tells that the device was in contact since, and a write may have been carried out.
    `confirmed` is the value the device last confirmed, `asked` what has been asked of its line since, both by
    whatever process and boot: what stands in the device is ours if it is one of them. `ramp` is None until a
    value is known to start from.
    """

    settings: DeviceSettings
    schedule: Schedule = NO_SCHEDULE
    hold: Hold | None = None
    last_order: Order = BEFORE_ALL
    in_force: InForce | None = None
    is_met: bool = False
    lapse: Lapse | None = None
    resolved: tuple[float, Source] | None = None
    asked: Traces = ()
    confirmed: float | None = None
    ramp: Ramp | None = None
    ledger: Ledger = EMPTY_LEDGER
    retirement: Retirement | None = None
    armed: Armed | None = None

    @property
    def spent_today(self) -> int:
        """Today's writes of the register of the budget that was written most."""
        return self.ledger.today(self.settings.budgeted)

    @property
    def is_wearing(self) -> bool:
        """Tell whether 80 % of the day's budget are spent."""
        per_day = self.settings.writes_per_day
        return per_day is not None and self.spent_today >= WEAR_ALARM * per_day

    @property
    def was_written(self) -> bool:
        """Tell whether anything in the device may be this node's."""
        return self.confirmed is not None or bool(self.asked)

    def is_ours(self, readback: float) -> bool:
        """Tell whether a value found in the device is one this node has put there, or may have."""
        tolerance = self.settings.tolerance
        if self.confirmed is not None and abs(readback - self.confirmed) <= tolerance:
            return True
        return contain(self.asked, readback, tolerance=tolerance)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the device is to be held at, and the reason.

    `value` is None for a device nobody may write (excluded, or behind another's control point). `target` is
    where a ramp leads; without one it is the value. `through` is the proxy that passed the wish on, whose
    source it is then. `because` is what the closed loop says of its wish. `until_*` tell when the array
    changes next by itself: the end of a hold on the boot-time clock, of a slot in UTC.
    """

    tag: str
    value: float | None
    target: float | None = None
    source: Source | None = None
    through: str | None = None
    because: str = ""
    wish: float | None = None
    bounded_by: str | None = None
    request_id: str | None = None
    until_boottime_s: float | None = None
    until_utc: datetime | None = None
    write: WriteReason | None = None
    keep_alive: KeepAliveDue | None = None
    events: tuple[Event, ...] = ()


def decide(state: DeviceState, image: ProcessImage, now: Instant) -> tuple[DeviceState, Decision]:
    """Resolve the array: the new state, and the decision with its reason."""
    if image.readback is not None and not math.isfinite(image.readback):
        # NaN compares as if it agreed with everything: a reading that is no number is no reading.
        image = replace(image, readback=None)
    if image.clock.untrusted_since_s is None:
        ledger = begin_day(state.ledger, now.utc.date())
        if ledger is not state.ledger:
            state = replace(state, ledger=ledger)
    if state.retirement is Retirement.OWED:
        return _retire(state, image)
    settings = state.settings
    if not settings.is_controlled or state.retirement is Retirement.DONE:
        return replace(state, hold=None, lapse=None, resolved=None), Decision(settings.tag, None)
    # Until a device has been read what stands in it is older than anything asked for now, and is not ours
    # because we meanwhile came to want the same.
    is_met = state.is_met or image.readback is not None or not settings.readable
    events: list[Event] = []
    hold, lapse = (state.hold, state.lapse) if settings.proxy is None else (None, None)
    if hold is not None and has_lapsed(hold, now=now):
        lapse = Lapse(hold, LapseCause.TIME_LIMIT)
        events.append(FallbackEntered(settings.tag, hold, lapse.cause))
        hold = None

    passed_on = _passed_on(settings, image)
    if passed_on is not None:
        # A register that wears takes none of the proxy's ramp either: one write a change.
        wish, source = passed_on.target if settings.wears else passed_on.value, passed_on.source
        until_boottime_s, until_utc = passed_on.until_boottime_s, passed_on.until_utc
    else:
        wish, source, until_boottime_s, until_utc = _wish(state, hold, image, now)
    bounds = bounds_of(settings, image)
    allowed = apply_bounds(wish, bounds, device=settings.own_range)
    target, bounded_by = allowed.value, allowed.bounded_by
    resolved = (target, source)
    if resolved != state.resolved:
        events.append(SetpointChanged(settings.tag, target, source))
    ramp = _ramp(state, target, image, now)
    # Bounds are obeyed at once, whatever the ramp.
    value = target if ramp is None else apply_bounds(ramp.value, bounds, device=settings.own_range).value
    if ramp is not None and value != ramp.value:
        ramp = replace(ramp, value=value)
    in_force = state.in_force
    if in_force is None and state.confirmed is not None and _keeps_what_it_confirmed(state):
        in_force = InForce(state.confirmed, now.boottime_s, confirmed=True)
    write = write_due(
        value,
        in_force=in_force,
        readback=image.readback,
        tolerance=settings.tolerance,
        lifetime=settings.lifetime,
        write_class=settings.write_class,
        may_repeat=_covers(state, HOLD_WRITES),
        period_s=settings.period_s,
        now_boottime_s=now.boottime_s,
    )
    asked, confirmed = state.asked, state.confirmed
    if in_force is None and write is None:
        # The device holds the resolved value already: adopted, not written.
        in_force = InForce(value, now.boottime_s, confirmed=True)
        confirmed, asked = value, ()
    if write is not None and is_met:
        asked = leave(asked, value, tolerance=settings.tolerance)
    if lapse is not None and write is None and value == target:
        # A request for what the device falls back to lapses like any other, but leaves nothing to write: no
        # write will ever confirm it, so it ends here.
        events.append(FallbackReached(settings.tag, lapse.hold, lapse.cause, value))
        lapse = None
    decision = Decision(
        tag=settings.tag,
        value=value,
        target=target,
        source=source,
        through=None if passed_on is None else settings.proxy,
        because=image.loop_because if passed_on is None and source is Source.CLOSED_LOOP else "",
        wish=wish,
        bounded_by=bounded_by,
        request_id=_request_id(hold, passed_on),
        until_boottime_s=until_boottime_s,
        until_utc=until_utc,
        write=write,
        # Before its first contact there is nobody to keep alive.
        keep_alive=keep_alive_due(
            settings.keep_alive if in_force is not None else None,
            armed=state.armed,
            now_boottime_s=now.boottime_s,
        ),
        events=tuple(events),
    )
    before = (
        state.hold,
        state.lapse,
        state.is_met,
        state.in_force,
        state.resolved,
        state.asked,
        state.confirmed,
        state.ramp,
    )
    if (hold, lapse, is_met, in_force, resolved, asked, confirmed, ramp) != before:
        # Of most devices nothing changes in most turns, and a copy is half of what a turn costs.
        state = replace(
            state,
            hold=hold,
            lapse=lapse,
            is_met=is_met,
            in_force=in_force,
            resolved=resolved,
            asked=asked,
            confirmed=confirmed,
            ramp=ramp,
        )
    return state, decision


def bounds_of(settings: DeviceSettings, image: ProcessImage) -> tuple[Bound, ...]:
    """The bounds of slot 0 as things are now, on top of the device's own range."""
    if image.connection_bound is None:
        return settings.bounds
    return (*settings.bounds, image.connection_bound)


def _passed_on(settings: DeviceSettings, image: ProcessImage) -> PassedOn | None:
    """What a proxy asks of its child; None where it asks nothing, or nothing that is a number."""
    asked = image.passed_on
    if settings.proxy is None or asked is None:
        return None
    return asked if math.isfinite(asked.value) and math.isfinite(asked.target) else None


def _request_id(hold: Hold | None, passed_on: PassedOn | None) -> str | None:
    if passed_on is not None:
        return passed_on.request_id
    return hold.request_id if hold is not None else None


def _keeps_what_it_confirmed(state: DeviceState) -> bool:
    """Tell whether a device nobody can read holds what it last confirmed, whatever happened since."""
    settings = state.settings
    return not settings.readable and settings.write_class is WriteClass.PERSISTENT and not state.asked


def _ramp(state: DeviceState, target: float, image: ProcessImage, now: Instant) -> Ramp | None:
    """Where the ramp of this device stands now; None where it has none, or nothing is known to start from."""
    rate_per_s = state.settings.ramp_per_s
    if rate_per_s is None:
        return None
    ramp = state.ramp
    if ramp is None:
        start = image.readback if state.in_force is None else state.in_force.value
        if start is None:
            return None
        ramp = Ramp(start, start, now.boottime_s)
    return move(target, ramp=ramp, rate_per_s=rate_per_s, now_boottime_s=now.boottime_s)


def _retire(state: DeviceState, image: ProcessImage) -> tuple[DeviceState, Decision]:
    """Bring a device back to its default if what it holds is ours, in one write; then it is nobody's."""
    settings = state.settings
    default = apply_bounds(settings.default_value, settings.bounds, device=settings.own_range).value
    events: list[Event] = []
    if state.hold is not None:
        events.append(FallbackEntered(settings.tag, state.hold, LapseCause.EXCLUDED))
    because = _left_because(state, image.readback, default)
    if because is None:
        # What stands in the device is read before it is touched.
        looked = image.readback is not None or state.is_met or not settings.readable
        write = WriteReason.RETIRED if looked else None
        asked = state.asked if write is None else leave(state.asked, default, tolerance=settings.tolerance)
        state = replace(state, hold=None, lapse=None, resolved=None, asked=asked)
        return state, Decision(
            settings.tag,
            default,
            target=default,
            source=Source.DEFAULT,
            wish=settings.default_value,
            write=write,
            events=tuple(events),
        )
    value = default if image.readback is None else image.readback
    events.append(Retired(settings.tag, because, value))
    state = DeviceState(
        settings,
        schedule=state.schedule,
        last_order=state.last_order,
        ledger=state.ledger,
        retirement=Retirement.DONE,
    )
    return state, Decision(settings.tag, None, events=tuple(events))


def _left_because(state: DeviceState, found: float | None, default: float) -> RetiredBecause | None:
    """Why nothing is left to do at a device that is retired; None where something is."""
    if found is not None and abs(found - default) <= state.settings.tolerance:
        return RetiredBecause.BACK_AT_DEFAULT
    in_force = state.in_force
    if in_force is not None and in_force.confirmed and in_force.value == default:
        return RetiredBecause.BACK_AT_DEFAULT
    if not state.was_written:
        return RetiredBecause.NEVER_WRITTEN
    if found is not None and not state.is_ours(found):
        return RetiredBecause.NOT_OURS
    return None


def _wish(
    state: DeviceState, hold: Hold | None, image: ProcessImage, now: Instant
) -> tuple[float, Source, float | None, datetime | None]:
    """The highest slot that has a value: the wish, its source, and when the array changes next by itself."""
    default = state.settings.default_value
    if state.settings.proxy is not None:
        # Its slots are its proxy's, which asks for nothing yet.
        return default, Source.DEFAULT, None, None
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
    if (refusal := _not_ours_to_hold(state)) is not None:
        return state, refusal
    if request.order <= state.last_order:
        return state, Refusal.SUPERSEDED
    in_range = settings.minimum <= request.value <= settings.maximum
    if not (in_range and math.isfinite(request.hold_s) and request.hold_s > 0):
        return state, Refusal.RANGE
    cost = _cost(state, request.value)
    # What costs nothing is not refused either, not even where retries have spent more than the day's budget.
    if cost > 0 and not _covers(state, cost):
        return state, Refusal.WEAR
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


def _not_ours_to_hold(state: DeviceState) -> Refusal | None:
    """Why nobody may hold this device: it is another's, or none's, or leaves this node."""
    if state.settings.owned_by is not None or state.settings.proxy is not None:
        return Refusal.OWNED_BY
    return Refusal.EXCLUDED if state.settings.excluded or state.retirement is not None else None


def _covers(state: DeviceState, writes: int) -> bool:
    """Tell whether the day's budget has this many writes left; without a budget it always has."""
    per_day = state.settings.writes_per_day
    return per_day is None or state.spent_today + writes <= per_day


def bears(state: DeviceState, value: float, *, held: float | None) -> bool:
    """Tell whether a proxy may be held at `value` as far as this child's budget goes (rule 13).

    `held`: what the proxy is held at now; None where it is not.
    """
    if not state.settings.is_controlled:
        return True
    now = None if held is None else in_bounds(state.settings, held)
    cost = 0 if now == in_bounds(state.settings, value) else HOLD_WRITES
    return cost == 0 or _covers(state, cost)


def in_bounds(settings: DeviceSettings, wish: float) -> float:
    """What a device makes of a wish: as far as its range and all bounds let it go."""
    return apply_bounds(wish, settings.bounds, device=settings.own_range).value


def _cost(state: DeviceState, value: float) -> int:
    """How many writes of the day a hold at this value would take: its set and its release.

    The same value again takes none: it stands in the device, and its release is reserved.
    """
    if state.hold is None:
        return HOLD_WRITES
    now, then = (in_bounds(state.settings, wish) for wish in (state.hold.value, value))
    return 0 if now == then else HOLD_WRITES


def release(state: DeviceState, order: Order) -> tuple[DeviceState, Refusal | None]:
    """Empty slot 1 at once, unless a later request was admitted meanwhile."""
    if (refusal := _not_ours_to_hold(state)) is not None:
        return state, refusal
    if order <= state.last_order:
        return state, Refusal.SUPERSEDED
    return replace(state, hold=None, last_order=order), None


def reconfigure(state: DeviceState, settings: DeviceSettings) -> DeviceState:
    """Take new settings. A new limit may shorten a running hold, never lengthen it.

    A device that comes under control, for the first time or again, is read before it is written; one that
    leaves control is retired in place. One that becomes a proxy's child loses what it was held at itself.
    """
    was_controlled = state.settings.is_controlled
    state = replace(state, settings=settings)
    if not settings.is_controlled:
        return retire(state) if was_controlled else state
    if not was_controlled or state.retirement is not None:
        # Meanwhile it was somebody else's to write.
        state = unknown_again(replace(state, retirement=None))
    if settings.proxy is not None:
        return replace(state, hold=None, lapse=None)
    if state.hold is not None:
        state = replace(state, hold=shorten(state.hold, time_limit_s=settings.time_limit_s))
    return state


def retire(state: DeviceState) -> DeviceState:
    """Leave this device: its hold ends, and what is ours in it is taken back to the default (rule 20).

    What it holds is to be read anew: a reading may be older than the last write.
    """
    return replace(unknown_again(state), retirement=Retirement.OWED)


def resume(state: DeviceState, *, same_boot: bool) -> DeviceState:
    """Take up a state from disk: a process restart keeps a running hold, a reboot drops it.

    What is in force is unknown after either; the device is read before it is written. One that left control
    while nobody was here is retired.
    """
    state = replace(unknown_again(state), resolved=None)
    if state.hold is not None and not same_boot:
        # Its end counts on a clock that is no more: it must not come to life again, whatever becomes of the
        # device.
        state = replace(state, hold=None, lapse=Lapse(state.hold, LapseCause.REBOOT))
    left_behind = state.hold is not None or state.was_written
    if not state.settings.is_controlled and state.retirement is None and left_behind:
        return retire(state)
    return state


def unknown_again(state: DeviceState) -> DeviceState:
    """Nothing is known of the device any more: it is to be read before it is written."""
    return replace(state, in_force=None, is_met=False, ramp=None, armed=None)


def contact_renewed(state: DeviceState) -> DeviceState:
    """The device is in reach, and may have restarted while it was not: what it holds has been read anew."""
    return replace(unknown_again(state), is_met=True)


def written(state: DeviceState, value: float, now: Instant, *, confirmed: bool) -> DeviceState:
    """A write of `value` ended, confirmed by the device or not."""
    in_force = InForce(value, now.boottime_s, confirmed)
    if not confirmed:
        return replace(state, in_force=in_force)
    # A step of a ramp is not yet what a hold that ended falls back to.
    is_reached = state.resolved is None or state.resolved[0] == value
    lapse = None if is_reached else state.lapse
    return replace(state, in_force=in_force, is_met=True, lapse=lapse, confirmed=value, asked=())


def kept_alive(state: DeviceState, value: float, now: Instant) -> DeviceState:
    """The device's own fallback was armed with this value, or had its sign of life."""
    own = state.settings.keep_alive
    if own is None:
        return replace(state, armed=None)
    return replace(state, armed=Armed(replace(own, value=value), now.boottime_s))


def spend(state: DeviceState, writes: Mapping[str, int]) -> DeviceState:
    """Enter into the ledger what was sent to the device, by register, answered or not."""
    return replace(state, ledger=count(state.ledger, writes))


def explain(decision: Decision) -> str:
    """The reason in one sentence, as the log and the operator read it."""
    if decision.value is None or decision.source is None:
        return f"{decision.tag} is not controlled"
    who = decision.source.label
    if decision.request_id:
        who += f" request {decision.request_id}"
    if decision.through is not None:
        who += f" through {decision.through}"
    if decision.because:
        who += f" ({decision.because})"
    text = f"{decision.tag} at {decision.value:g} by {who}"
    if decision.target is not None and decision.target != decision.value:
        text += f", on its ramp to {decision.target:g}"
    if decision.bounded_by is not None:
        text += f", asked for {decision.wish:g}, bounded by {decision.bounded_by}"
    if decision.until_utc is not None:
        text += f", until {decision.until_utc:%Y-%m-%dT%H:%M:%SZ}"
    return text
