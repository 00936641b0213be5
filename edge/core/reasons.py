"""Why a device is held where it is: the decision, and what each lower source would have done in its place.

What a lower source would have done is not told by a second set of rules: it is what `decide` returns once
the sources above it are gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from edge.core.arbitration import (
    Decision,
    DeviceSettings,
    DeviceState,
    Retirement,
    bounds_of,
    decide,
    explain,
)
from edge.core.commands import Source
from edge.core.events import FallbackEntered, Retired
from edge.core.image import ProcessImage
from edge.core.instant import Instant
from edge.core.quantities import Bound
from edge.core.schedule import NO_SCHEDULE, SLOT, Schedule, slot_end, value_at

# How far ahead the next change of a schedule is looked for.
HORIZON = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Rung:
    """One source that has something to say, its own decision, and when it changes by itself.

    `until` is None where nothing is known to change it, within a day for a schedule or default.
    """

    decision: Decision
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Reason:
    """The whole array of one device at one moment, from the source in force down to the default.

    `bounds` are those of slot 0, the device's own range first.
    """

    settings: DeviceSettings
    rungs: tuple[Rung, ...]
    because: str
    bounds: tuple[Bound, ...] = ()

    @property
    def in_force(self) -> Rung:
        return self.rungs[0]


def reason(state: DeviceState, decision: Decision, image: ProcessImage, now: Instant) -> Reason:
    """Tell why `decision` came of this state. Total, like `decide`.

    `state` is the one that `decide` returned together with the decision, or a later one of the same cycle.
    """
    rungs = tuple(_rungs(state, decision, image, now))
    bounds = (state.settings.own_range, *bounds_of(state.settings, image))
    return Reason(state.settings, rungs, _because(state, decision), bounds)


def sentence(reason: Reason) -> str:
    """The reason as an operator reads it; equal as long as nothing about it changes but the time of day."""
    settings, top = reason.settings, reason.in_force
    text = explain(replace(top.decision, until_utc=top.until))
    if top.decision.value is None:
        if settings.owned_by is not None:
            return f"{text}: {settings.owned_by} controls it"
        if settings.excluded:
            return f"{text}: it is excluded from curtailment, or measured only"
        return f"{text}: it left this node"
    for rung in reason.rungs[1:]:
        text += f"; under it {_rung(rung)}"
    return f"{text}; bounds: {', '.join(_bound(bound) for bound in reason.bounds)}"


def _rungs(state: DeviceState, decision: Decision, image: ProcessImage, now: Instant) -> Iterator[Rung]:
    schedule = state.schedule
    while True:
        yield Rung(decision, _until(decision, schedule, now))
        if decision.through is not None:
            # What would be in its place, the proxy's own reason tells.
            return
        match decision.source:
            case Source.DIRECT:
                state = replace(state, hold=None, lapse=None)
            case Source.CLOSED_LOOP:
                image = replace(image, loop_value=None, loop_because="")
            case Source.SCHEDULE:
                # Without what it resolved to before: a slot may be in force because the clock is not trusted.
                state = replace(state, schedule=NO_SCHEDULE, resolved=None)
                schedule = NO_SCHEDULE
            case _:
                return
        _, decision = decide(state, image, now)


def _until(decision: Decision, schedule: Schedule, now: Instant) -> datetime | None:
    if decision.until_boottime_s is not None:
        try:
            return now.utc + timedelta(seconds=decision.until_boottime_s - now.boottime_s)
        except OverflowError:
            # Beyond the calendar.
            return None
    if decision.until_utc is None or decision.through is not None:
        # (Which slot changes anything for a child, its proxy's schedule says.)
        return None
    return next_change(schedule, now.utc)


def next_change(schedule: Schedule, utc: datetime) -> datetime | None:
    """When the value of this schedule next differs from the one in force at `utc`; None: not within a day."""
    if not schedule.days:
        return None
    value, end = value_at(schedule, utc), slot_end(utc)
    for _ in range(HORIZON // SLOT):
        if value_at(schedule, end) != value:
            return end
        end = slot_end(end)
    return None


def _because(state: DeviceState, decision: Decision) -> str:
    """What ended, where this decision came of an end."""
    if state.retirement is Retirement.OWED:
        return "the device leaves this node's control, which takes back what it has put there"
    for event in reversed(decision.events):
        # (The last: a hold that ends because its device leaves is not why it leaves.)
        if isinstance(event, Retired):
            return f"the device left this node's control: {event.because.value}"
        if isinstance(event, FallbackEntered):
            return f"request {event.hold.request_id} has ended: {event.cause.value}"
    if state.lapse is not None:
        return f"request {state.lapse.hold.request_id} has ended: {state.lapse.cause.value}"
    return ""


def _rung(rung: Rung) -> str:
    decision = rung.decision
    # Only one who holds the device has somebody under it.
    assert decision.source is not None
    assert decision.target is not None
    text = f"{decision.source.label} {decision.wish:g}"
    if decision.bounded_by is not None:
        text += f" (bounded to {decision.target:g} by {decision.bounded_by})"
    if rung.until is not None:
        text += f" until {rung.until:%Y-%m-%dT%H:%M:%SZ}"
    return text


def _bound(bound: Bound) -> str:
    return f"{bound.origin} {bound.minimum:g} to {bound.maximum:g}"
