"""What a node may believe of its wall clock (design, rule 17).

Everything here is about one number: UTC minus the boot-time clock, in seconds, called a *base*. The wall
clock tells one (`Look.base_s`), and each exchange of four timestamps with central measures one. The boot-time
clock runs on whatever happens to the wall clock, so a base once confirmed stays good but for the drift of a
crystal. Linux slews both clocks alike; their difference changes by steps alone, and that is how a step is
seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

# An exchange is good for half its round trip; one that took longer than this tells too little.
MAX_ROUND_TRIP_S = 2.0
# Both ends read their clocks in finite steps: this much less than nothing may a round trip take.
GRANULARITY_S = 0.01
# What two exchanges may differ by on top of their round trips and of the drift between them.
AGREE_WITHIN_S = 0.1
# Of a pair that is to agree, the earlier is at most this old.
PAIR_WITHIN_S = 3600.0
# How wrong an ordinary crystal runs, and that of the other side may run as wrong the other way.
DRIFT = 50e-6
# A wall clock this far from where it was when last confirmed has been stepped.
STEP_S = 5.0
# A measured offset above this is put right in the node's own idea of UTC.
CORRECT_BEYOND_S = 5.0
# A correction backwards up to this is waited out rather than made.
STAND_STILL_S = 2 * CORRECT_BEYOND_S
# After its last confirmation a clock is in holdover, and runs on by itself for this long.
CONFIRMED_FOR_S = 900.0
HOLDOVER_S = 30 * 86400.0
# A bound above this is worth an alarm.
WARN_ABOVE_S = 30.0


class Trust(StrEnum):
    """How far the wall clock may be believed. The words are those of `reported.clock`."""

    TRUSTED = "trusted"
    HOLDOVER = "holdover"
    UNSYNCED = "unsynced"


@dataclass(frozen=True, slots=True)
class Look:
    """The host's clocks at one moment, in seconds.

    `kernel_error_s`: how wrong the kernel says its clock may be; None while it is not synchronised.
    """

    wall_s: float
    boottime_s: float
    kernel_error_s: float | None = None

    @property
    def base_s(self) -> float:
        return self.wall_s - self.boottime_s


@dataclass(frozen=True, slots=True)
class Exchange:
    """One ping, in seconds: sent and heard by central's UTC, received and answered on the boot-time clock."""

    sent_utc_s: float
    received_boottime_s: float
    answered_boottime_s: float
    heard_utc_s: float

    @property
    def delay_s(self) -> float:
        """The round trip, without the time this node took to answer."""
        return (self.heard_utc_s - self.sent_utc_s) - (self.answered_boottime_s - self.received_boottime_s)

    @property
    def base_s(self) -> float:
        """UTC minus boot-time clock, good to half the round trip however it was shared by the two ways."""
        return (
            (self.sent_utc_s - self.received_boottime_s) + (self.heard_utc_s - self.answered_boottime_s)
        ) / 2

    @property
    def error_s(self) -> float:
        return max(self.delay_s, 0.0) / 2 + GRANULARITY_S

    @property
    def is_usable(self) -> bool:
        numbers = (self.sent_utc_s, self.received_boottime_s, self.answered_boottime_s, self.heard_utc_s)
        return (
            all(math.isfinite(number) for number in numbers)
            and self.received_boottime_s <= self.answered_boottime_s
            and -GRANULARITY_S <= self.delay_s <= MAX_ROUND_TRIP_S
        )


@dataclass(frozen=True, slots=True)
class Reference:
    """The last confirmation since boot.

    `base_s` is what was confirmed, `error_s` how wrong it may have been at `at_boottime_s`. `wall_base_s` is
    what the wall clock told then: a later one that differs shows a step.
    """

    base_s: float
    error_s: float
    wall_base_s: float
    at_boottime_s: float
    source: str  # kernel | exchange

    def error_at(self, boottime_s: float) -> float:
        return self.error_s + DRIFT * max(0.0, boottime_s - self.at_boottime_s)


@dataclass(frozen=True, slots=True)
class ClockState:
    """What a node knows of UTC since its boot; nothing at first.

    `candidate` is the newest usable exchange, which the next is to agree with. `untrusted_since_s` counts on
    the boot-time clock.
    """

    reference: Reference | None = None
    candidate: Exchange | None = None
    untrusted_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """The judgement. `bound_s`: how wrong the node's UTC may be; None while nothing bounds it."""

    trust: Trust
    bound_s: float | None
    untrusted_since_s: float | None = None

    @property
    def is_worth_a_warning(self) -> bool:
        return self.bound_s is not None and self.bound_s > WARN_ABOVE_S


def look(state: ClockState, seen: Look) -> ClockState:
    """Judge the clocks as they are now."""
    if seen.kernel_error_s is not None and math.isfinite(seen.kernel_error_s):
        reference = Reference(
            base_s=seen.base_s,
            error_s=max(0.0, seen.kernel_error_s),
            wall_base_s=seen.base_s,
            at_boottime_s=seen.boottime_s,
            source="kernel",
        )
        state = replace(state, reference=reference)
    if _is_good(state.reference, seen):
        return replace(state, untrusted_since_s=None)
    if state.untrusted_since_s is not None:
        return state
    # What was measured before does not count: a machine put back to an earlier moment steps both clocks.
    return replace(state, candidate=None, untrusted_since_s=seen.boottime_s)


def _is_good(reference: Reference | None, seen: Look) -> bool:
    if reference is None or seen.boottime_s - reference.at_boottime_s > HOLDOVER_S:
        return False
    return abs(seen.base_s - reference.wall_base_s) <= STEP_S


def exchanged(state: ClockState, exchange: Exchange, seen: Look) -> ClockState:
    """Take an exchange into account: with another one that agrees it confirms the time.

    One that took too long, or that cannot be, changes nothing.
    """
    if not exchange.is_usable:
        return look(state, seen)
    before = state.candidate
    state = replace(state, candidate=exchange)
    if before is not None and _agree(before, exchange) and seen.kernel_error_s is None:
        state = replace(state, reference=_confirmed(state.reference, exchange, seen))
    return look(state, seen)


def _agree(one: Exchange, other: Exchange) -> bool:
    """Tell whether two exchanges may have measured the same clock."""
    apart_s = abs(other.received_boottime_s - one.received_boottime_s)
    allowed_s = AGREE_WITHIN_S + one.error_s + other.error_s + 2 * DRIFT * apart_s
    return apart_s <= PAIR_WITHIN_S and abs(other.base_s - one.base_s) <= allowed_s


def _confirmed(before: Reference | None, exchange: Exchange, seen: Look) -> Reference:
    base_s, error_s = exchange.base_s, exchange.error_s
    if before is not None and abs(before.base_s - base_s) <= AGREE_WITHIN_S + error_s:
        # The same within what can be told: kept, or the node's UTC would tremble with each round trip.
        base_s, error_s = before.base_s, error_s + abs(before.base_s - base_s)
    return Reference(
        base_s=base_s,
        error_s=error_s,
        wall_base_s=seen.base_s,
        at_boottime_s=exchange.answered_boottime_s,
        source="exchange",
    )


def standing(state: ClockState, seen: Look) -> Standing:
    """The judgement over a state that `look` has just been given this moment."""
    reference = state.reference
    if reference is None or state.untrusted_since_s is not None:
        return Standing(Trust.UNSYNCED, None, state.untrusted_since_s)
    age_s = seen.boottime_s - reference.at_boottime_s
    offset_s = abs(utc_base(state, seen) - reference.base_s)
    trust = Trust.TRUSTED if age_s <= CONFIRMED_FOR_S else Trust.HOLDOVER
    return Standing(trust, reference.error_at(seen.boottime_s) + offset_s)


def utc_base(state: ClockState, seen: Look) -> float:
    """What to add to the boot-time clock for the node's UTC.

    It is the wall clock's, unless that is far from what was confirmed: measured to be wrong, or stepped.
    """
    reference = state.reference
    if reference is None or abs(seen.base_s - reference.base_s) <= CORRECT_BEYOND_S:
        return seen.base_s
    return reference.base_s


def onwards(previous_s: float, now_s: float) -> float:
    """The node's UTC after `previous_s`: it stands still rather than go back a little.

    A slot that has begun does not end and begin again over a leap second or a small correction. One of more
    than 10 s is made, backwards as well.
    """
    return previous_s if previous_s - STAND_STILL_S <= now_s < previous_s else now_s
