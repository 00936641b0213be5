"""The closed loop: the power at the point of connection, held by the setpoints of its members.

`step` takes what a node sees and tells what each member should be asked for. It is total and deterministic:
equal arguments give equal outputs, and nothing the world can do makes it raise. Words and units are in
`edge.core.loop.terms`; ADR 0033 says where this stands in a node.

What is asked for, together: the limit, plus the load that one reading tells, plus a trim for members that
give other than asked. What members cannot give is asked of them all the same, and of nobody twice: the
commands' sum is never above what the limit allows if all suns came back at once. So nothing winds up against
missing sun, and nothing needs to be unwound when it returns.

The rate limit is the operator's and shapes what the loop wishes. What a connection limit leaves is for
safety: it is a bound, and acts at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edge.core.loop import load as loads, sign as signs
from edge.core.loop.bounds import Bounds, bounds_at, bounds_of_unknown, static_bounds
from edge.core.loop.load import Load
from edge.core.loop.members import REST_S, MemberState, Seen, asked, judged, see
from edge.core.loop.pid import Pid, act, take_over
from edge.core.loop.sharing import TINY_KW, Room, round_down, share
from edge.core.loop.sign import Sign
from edge.core.loop.terms import (
    ABSENT,
    ABSURD_KW,
    Because,
    Dynamics,
    LoopImage,
    LoopOutput,
    LoopSettings,
    Member,
    MemberImage,
    Mode,
    Sample,
    Stand,
)

__all__ = [
    "ABSENT",
    "Because",
    "Dynamics",
    "LoopImage",
    "LoopOutput",
    "LoopSettings",
    "LoopState",
    "Member",
    "MemberImage",
    "Mode",
    "Sample",
    "Stand",
    "begin",
    "reconfigure",
    "step",
    "unresponsive",
]

# Fresh readings that bring a loop back from its fallback (design, rule 16).
FRESH_TO_RETURN = 3
# The part of `stale_after_s` after which a reading is late.
LATE_PART = 0.5
# Members stay as they are while each is so near to its share, in percent, and the sum is as it should be.
UNEVEN_PCT = 3.0
# What bounded a loop is told for so long after it did: broken sun is one state of things, not one with each
# cloud. Longer than most clouds are apart.
LIMITED_S = 60.0


@dataclass(frozen=True, slots=True)
class LoopState:
    """What a loop remembers between two steps.

    `at_s` is the last step; `fresh_s` the arrival of the newest reading that counted, or the beginning, and
    `heard_s` what tells that reading from the next. `fresh` counts readings since the loop began or fell
    back, of which it waits for `needed`. `load` is None until one is found, `pid` while feed-forward is on,
    `limited` where nothing has bounded it for `LIMITED_S`, `sign` before a reading that had all members.
    """

    settings: LoopSettings
    at_s: float
    fresh_s: float
    members: tuple[MemberState, ...]
    heard_s: float | None = None
    export_kw: float = 0.0
    fresh: int = 0
    needed: int = 1
    load: Load | None = None
    setpoint_kw: float | None = None
    pid: Pid | None = None
    limited: Limited | None = None
    sign: Sign | None = None


@dataclass(frozen=True, slots=True)
class Limited:
    """When a loop last could not reach its setpoint for want of sun or room, and what bounded it."""

    at_s: float
    by: str


def begin(settings: LoopSettings, *, now_s: float) -> LoopState:
    """Begin without any knowledge: members stay where they are until a reading comes."""
    now = now_s if math.isfinite(now_s) else 0.0
    return LoopState(settings, at_s=now, fresh_s=now, members=(MemberState(),) * len(settings.members))


def reconfigure(state: LoopState, settings: LoopSettings) -> LoopState:
    """Go on under other settings, from where members are.

    What is known of members that stay is kept. If members come or go, the load is another: until the next
    reading tells it, all stay where they are. Without feed-forward nothing more is learned of members, so
    that what was is forgotten.
    """
    kept = {member.tag: known for member, known in zip(state.settings.members, state.members, strict=True)}
    members = tuple(kept.get(member.tag, MemberState()) for member in settings.members)
    if not settings.feed_forward:
        members = tuple(replace(known, trim_kw=0.0, lacks=0, is_stuck=False) for known in members)
    same = {member.tag for member in settings.members} == set(kept)
    return replace(
        state,
        settings=settings,
        members=members,
        load=state.load if same else None,
        pid=None,
        sign=state.sign if same else None,
    )


def step(state: LoopState, image: LoopImage, now_s: float) -> tuple[LoopState, LoopOutput]:
    """Look at the world once: the new state, and what each member should be asked for.

    A clock that goes back counts as one that stands still.
    """
    now = max(now_s, state.at_s) if math.isfinite(now_s) else state.at_s
    settings = state.settings
    sample = _new_sample(state, image.sample)
    seen = see(state.members, settings, image, sample, now)
    state = _aged(state, now)
    if sample is not None:
        state = _aged(_heard(state, sample, seen, now), now)
        if settings.feed_forward:
            seen = tuple(judged(one, settings, now) for one in seen)
    setpoint = image.setpoint_kw if abs(image.setpoint_kw) < ABSURD_KW else None
    # A new setpoint is answered when it is seen, and so is a member that comes back: no reading is needed.
    has_returned = any(one.is_free and not one.state.was_free for one in seen)
    is_tick = image.is_tick or setpoint != state.setpoint_kw or has_returned
    answer = _answer(state, seen, setpoint, is_tick=is_tick, now=now)
    members = tuple(
        replace(
            asked(
                one,
                answer.values.get(one.tag, one.value),
                allowance=_allowance(one, settings, answer.values, now - state.at_s),
                now=now,
            ),
            bound=answer.bounds.upper.get(one.tag),
        )
        for one in seen
    )
    limited = _limited(state, answer, setpoint, now)
    if answer.stand is Stand.TRACKING and limited is not None:
        answer = replace(answer, stand=Stand.LIMITING, bounded_by=limited.by)
    state = replace(state, at_s=now, members=members, setpoint_kw=setpoint, pid=answer.pid, limited=limited)
    return state, LoopOutput(
        values=answer.values,
        bounds=answer.bounds.upper,
        lower_bounds=answer.bounds.lower,
        stand=answer.stand,
        reason=answer.reason,
        setpoint_kw=setpoint,
        measured_kw=None if state.heard_s is None or _is_stale(state, now) else state.export_kw,
        output_kw=sum(
            answer.values[one.tag] * one.member.nominal_kw / 100 for one in seen if one.tag in answer.values
        )
        if answer.values
        else None,
        load_kw=None if state.load is None else state.load.value_kw,
        trim_kw=sum(known.trim_kw for known in members),
        bounded_by=answer.bounded_by,
        look_at_s=_look_at(state, now),
        is_sign_wrong=state.sign is not None and state.sign.is_wrong,
    )


def unresponsive(state: LoopState) -> frozenset[str]:
    """The members that do not follow their commands, beyond what missing sun explains."""
    return frozenset(
        member.tag
        for member, known in zip(state.settings.members, state.members, strict=True)
        if known.is_unresponsive
    )


# --- readings ----------------------------------------------------------------------------------------------


def _new_sample(state: LoopState, sample: Sample | None) -> Sample | None:
    """The reading, if it is a new one and a number."""
    if sample is None or sample.at_s == state.heard_s or not math.isfinite(sample.at_s):
        return None
    return sample if abs(sample.export_kw) < ABSURD_KW else None


def _is_stale(state: LoopState, now: float) -> bool:
    # As `_look_at` reckons it: a difference could fall short of the very moment that it told.
    return now >= state.fresh_s + state.settings.stale_after_s


def _aged(state: LoopState, now: float) -> LoopState:
    """Forget what a meter said that has been silent for too long."""
    if not _is_stale(state, now):
        return state
    return replace(state, fresh=0, needed=FRESH_TO_RETURN, load=None, pid=None)


def _heard(state: LoopState, sample: Sample, seen: Sequence[Seen], now: float) -> LoopState:
    """Count a reading, and find the load in it."""
    settings = state.settings
    production = sum(one.power_kw for one in seen)
    if state.load is None:
        load = loads.first(
            export_kw=sample.export_kw, production_kw=production, nominal_kw=settings.nominal_kw
        )
    else:
        load = loads.observe(
            state.load,
            export_kw=sample.export_kw,
            production_kw=production,
            nominal_kw=settings.nominal_kw,
            rises_at_once=settings.mode is Mode.TRACK,
        )
    return replace(
        state,
        heard_s=sample.at_s,
        # Of a moment that has not come nobody can have read.
        fresh_s=max(state.fresh_s, min(sample.at_s, now)),
        export_kw=sample.export_kw,
        fresh=min(state.fresh + 1, FRESH_TO_RETURN),
        load=load,
        sign=_sign(state, sample, seen, production, now),
    )


def _sign(
    state: LoopState, sample: Sample, seen: Sequence[Seen], production_kw: float, now: float
) -> Sign | None:
    if not all(one.state.read_s == now for one in seen):
        # What some give nobody knows: it would be taken for a move, or hide one.
        return state.sign
    if state.sign is None:
        return signs.begin(export_kw=sample.export_kw, production_kw=production_kw, now_s=now)
    return signs.observe(
        state.sign,
        export_kw=sample.export_kw,
        production_kw=production_kw,
        nominal_kw=state.settings.nominal_kw,
        now_s=now,
    )


def _look_at(state: LoopState, now: float) -> float:
    """When time alone changes something: the reading becomes late, then stale."""
    for part in (LATE_PART, 1.0):
        moment = state.fresh_s + part * state.settings.stale_after_s
        if moment > now:
            return moment
    return math.inf


# --- what is asked for -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer:
    values: Mapping[str, float]
    bounds: Bounds
    stand: Stand
    reason: Because
    bounded_by: str = ""
    pid: Pid | None = None


def _answer(
    state: LoopState, seen: Sequence[Seen], setpoint: float | None, *, is_tick: bool, now: float
) -> _Answer:
    settings = state.settings
    free = [one for one in seen if one.is_free]
    holding = {one.tag: one.value for one in free}
    if state.fresh < state.needed and state.needed == FRESH_TO_RETURN:
        return _fallen_back(state, free, now)
    if state.fresh < state.needed or state.load is None:
        bounds = bounds_of_unknown(settings, seen)
        return _Answer(_within(bounds, holding), bounds, Stand.STALE, Because.STARTING)
    aim, aimed_by = _aim(settings, setpoint)
    others_kw = sum(one.claim_kw for one in seen if not one.is_free)
    values: Mapping[str, float] = {}
    pid = None
    if not free:
        is_held = any(one.image.is_held for one in seen)
        stand, reason = (Stand.MANUAL, Because.HELD) if is_held else (Stand.LIMITING, Because.NO_MEMBER)
    elif aim is None:
        stand, reason = Stand.LIMITING, Because.NO_SETPOINT
    else:
        if settings.feed_forward:
            total = aim + state.load.value_kw - others_kw
        else:
            pid, total = _by_pid(state, free, aim, is_tick=is_tick, now=now)
        wishes = _shared(state, free, total, others_kw, now)
        values, is_slowed = _moved(state, free, wishes, is_tick=is_tick, now=now)
        stand, reason = _stand(free, values, total, aimed_by, is_slowed=is_slowed)
    bounds = bounds_at(
        settings, seen, values, load_kw=state.load.value_kw, unsure_kw=state.load.usual_kw, is_tick=is_tick
    )
    if now >= state.fresh_s + LATE_PART * settings.stale_after_s:
        stand, reason = Stand.STALE, Because.METER_LATE
    values = _within(bounds, values)
    bounded_by = aimed_by or (reason.value if stand is Stand.LIMITING else "")
    return _Answer(values, bounds, stand, reason, bounded_by, pid)


def _limited(state: LoopState, answer: _Answer, setpoint: float | None, now: float) -> Limited | None:
    """What bounds a loop, or did a moment ago at the same setpoint."""
    if answer.stand is Stand.LIMITING:
        has_way = answer.reason not in {Because.NO_MEMBER, Because.NO_SETPOINT}
        return Limited(now, answer.bounded_by) if has_way else None
    if answer.stand in {Stand.FALLBACK, Stand.MANUAL} or setpoint != state.setpoint_kw:
        return None
    return state.limited if state.limited is not None and now < state.limited.at_s + LIMITED_S else None


def _within(bounds: Bounds, values: Mapping[str, float]) -> dict[str, float]:
    return {
        tag: min(max(value, bounds.lower.get(tag, -math.inf)), bounds.upper.get(tag, math.inf))
        for tag, value in values.items()
    }


def _fallen_back(state: LoopState, free: Sequence[Seen], now: float) -> _Answer:
    settings = state.settings
    values = {}
    if settings.fallback_pct is not None:
        for one in free:
            # Downwards at once: it is for safety that nobody knows anything. Upwards as any other move.
            value = one.grid.down(settings.fallback_pct)
            values[one.tag] = min(value, _toward(one, value, _saved(one, settings, now - state.at_s)))
    reason = Because.RETURNING if state.fresh else Because.METER_STALE
    bounds = static_bounds(settings)
    return _Answer(_within(bounds, values), bounds, Stand.FALLBACK, reason, "fallback")


def _aim(settings: LoopSettings, setpoint: float | None) -> tuple[float | None, str]:
    """Where export is held, or below, and whose limit that is where it is not the setpoint."""
    limit = settings.export_limit_kw
    if limit is not None and (setpoint is None or setpoint > limit):
        return limit, Because.EXPORT_LIMIT.value
    limit = settings.import_limit_kw
    if limit is not None and setpoint is not None and setpoint < -limit:
        return -limit, Because.IMPORT_LIMIT.value
    return setpoint, ""


def _by_pid(
    state: LoopState, free: Sequence[Seen], aim: float, *, is_tick: bool, now: float
) -> tuple[Pid, float]:
    """The free members' sum by the gains alone."""
    settings = state.settings
    assert state.load is not None
    have = sum(one.expected_kw for one in free)
    tags = tuple(one.tag for one in free)
    pid = state.pid
    if pid is None:
        pid = take_over(settings, output_kw=have, aim_kw=aim, export_kw=state.export_kw, now_s=now, tags=tags)
        return pid, have
    if pid.tags != tags:
        # The integral is the sum of those it was found for. From what these hold, as of the last reading
        # that was acted on: then this one is answered, however often members come and go.
        pid = take_over(
            settings, output_kw=have, aim_kw=aim, export_kw=pid.export_kw, now_s=pid.at_s, tags=tags
        )
    if not is_tick:
        return pid, have
    # Nothing is wound up against what members may not move by now,
    lead_kw = sum(
        _saved(one, settings, now - state.at_s) * one.member.nominal_kw / 100 + one.grid.step_kw
        for one in free
    ) + max(settings.deadband_kw, state.load.usual_kw)
    # nor against sun that is missing: one that gives less is asked for no more.
    shining = sum(min(one.room.high_kw, max(one.expected_kw, one.most_kw)) for one in free)
    return act(
        pid,
        settings,
        aim_kw=aim,
        export_kw=state.export_kw,
        low_kw=max(sum(one.room.low_kw for one in free), have - lead_kw),
        high_kw=min(shining, have + lead_kw),
        now_s=now,
    )


# --- sharing -----------------------------------------------------------------------------------------------


def _shared(
    state: LoopState, free: Sequence[Seen], total: float, others_kw: float, now: float
) -> dict[str, float]:
    """What each free member should be asked for, in percent, not yet on its register's steps."""
    settings = state.settings
    if settings.mode is Mode.TRACK and not settings.storage_first:
        # One that does not come down gives too much for now: the others make room.
        return _spread(total - sum(one.surplus_kw for one in free), free, now)
    batteries = [one for one in free if one.member.is_storage and one.member.minimum < 0]
    plants = [one for one in free if one not in batteries]
    total -= sum(one.surplus_kw for one in plants)
    most = [_of_battery(one, settings) for one in batteries]
    if settings.storage_first:
        # As much sun as there is, as long as batteries take what is too much.
        shining = [replace(one.room, high_kw=_most_now(one)) for one in plants]
        parts = share(total - sum(room.low_kw for room in most), shining)
    else:
        parts = share(total - sum(room.high_kw for room in most), [_capped(one, now) for one in plants])
    stored = share(total - sum(parts), most)
    left = total - sum(parts) - sum(stored)
    parts = _raised(plants, parts, left)
    given = sum(min(part, one.power_kw) for one, part in zip(plants, parts, strict=True))
    least = _least(state, others_kw + given)
    if least is not None and sum(stored) < least:
        stored = share(least, [one.room for one in batteries])
    wishes = {one.tag: one.value_for(part) for one, part in zip(plants, parts, strict=True)}
    for one, part in zip(batteries, stored, strict=True):
        wish = one.value_for(part)
        # One that is full is asked all the same, so that it shows when it no longer is.
        wishes[one.tag] = min(wish, one.value) if one.state.is_stuck else wish
    return wishes


def _of_battery(one: Seen, settings: LoopSettings) -> Room:
    """To export as much as one may is no reason to empty a battery, and one that is full takes no more."""
    room = one.room
    high = room.high_kw if settings.mode is Mode.TRACK else max(min(room.high_kw, 0.0), room.low_kw)
    low = min(max(one.power_kw, room.low_kw), high) if one.state.is_stuck else room.low_kw
    return replace(room, low_kw=low, high_kw=high)


def _least(state: LoopState, given_kw: float) -> float | None:
    """What batteries must give at least, so that not more than the limit is imported."""
    limit = state.settings.import_limit_kw
    if limit is None:
        return None
    assert state.load is not None
    return state.load.value_kw - limit - given_kw


def _spread(total: float, members: Sequence[Seen], now: float) -> dict[str, float]:
    """Share among members: first by what they can give now; what is left, by what they could with sun."""
    parts = share(total, [_capped(one, now) for one in members])
    parts = _raised(members, parts, total - sum(parts))
    return {one.tag: one.value_for(part) for one, part in zip(members, parts, strict=True)}


def _raised(members: Sequence[Seen], parts: Sequence[float], left: float) -> list[float]:
    rooms = [replace(one.room, low_kw=part) for one, part in zip(members, parts, strict=True)]
    return share(sum(parts) + left, rooms)


def _capped(one: Seen, now: float) -> Room:
    if not one.is_lacking or now - one.state.rose_s < REST_S:
        # One that rises is on its way back: to take its share from it would only be a detour.
        return one.room
    return replace(one.room, high_kw=_most_now(one))


def _most_now(one: Seen) -> float:
    room = one.room
    return min(max(one.most_kw, room.low_kw), room.high_kw)


# --- moving ------------------------------------------------------------------------------------------------


def _moved(
    state: LoopState, free: Sequence[Seen], wishes: Mapping[str, float], *, is_tick: bool, now: float
) -> tuple[dict[str, float], bool]:
    """Go from what members hold towards the wishes: on their registers' steps, as fast as the rate allows.

    Between two ticks only downwards, by members whose register may be written then. The second value tells
    whether the rate has slowed it.
    """
    settings = state.settings
    assert state.load is not None
    have = sum(one.value * one.member.nominal_kw / 100 for one in free)
    want = sum(wishes[one.tag] * one.member.nominal_kw / 100 for one in free)
    too_much_kw = max(settings.deadband_kw, TINY_KW)
    too_little_kw = max(settings.deadband_kw, state.load.usual_kw, min(one.grid.step_kw for one in free))
    is_even = all(abs(one.value - wishes[one.tag]) <= UNEVEN_PCT for one in free)
    is_near = -too_much_kw <= want - have < too_little_kw
    if (is_even and is_near) or (not is_tick and want >= have - too_much_kw):
        return {one.tag: one.value for one in free}, False
    if is_tick:
        stepped = _in_turn(free, round_down([wishes[one.tag] for one in free], [one.grid for one in free]))
    else:
        stepped = _lowered(free, want)
    values, is_slowed = {}, False
    for one, value in zip(free, stepped, strict=True):
        values[one.tag] = _toward(one, value, _saved(one, settings, now - state.at_s))
        is_slowed = is_slowed or values[one.tag] != value
    return values, is_slowed


def _lowered(free: Sequence[Seen], want: float) -> list[float]:
    """What to ask of those that answer readings, so that the sum comes down and nobody goes up."""
    rooms, grids = [], []
    for one in free:
        kw = one.member.nominal_kw / 100
        least = one.member.minimum if one.member.answers_readings else one.value
        rooms.append(Room(one.member.nominal_kw, min(least, one.value) * kw, one.value * kw))
        grids.append(replace(one.grid, minimum=min(least, one.value), maximum=one.value))
    parts = share(want, rooms)
    values = [100 * part / one.member.nominal_kw for part, one in zip(parts, free, strict=True)]
    return round_down(values, grids)


def _in_turn(free: Sequence[Seen], values: Sequence[float]) -> list[float]:
    """Let those that go up wait for those that come down, lest both give the same power on the way."""
    room_kw = needed_kw = 0.0
    for one, value in zip(free, values, strict=True):
        kw = one.member.nominal_kw / 100
        if value > one.value:
            needed_kw += (value - one.value) * kw
            room_kw += (value - one.value) * kw
        else:
            assert one.state.follower is not None
            still = min(one.state.follower.power * kw, one.power_kw)
            room_kw -= max(still - value * kw, 0.0)
    if room_kw >= needed_kw - TINY_KW:
        return list(values)
    part = max(room_kw, 0.0) / needed_kw if needed_kw > 0 else 0.0
    return [
        one.grid.down(one.value + part * (value - one.value)) if value > one.value else value
        for one, value in zip(free, values, strict=True)
    ]


def _toward(one: Seen, value: float, allowance: float) -> float:
    """Go towards a value as far as the allowance leads, to a step of the register where it ends."""
    if abs(value - one.value) <= allowance:
        return value
    if value > one.value:
        return max(one.grid.down(one.value + allowance), one.value)
    return min(one.grid.up(one.value - allowance), one.value)


def _saved(one: Seen, settings: LoopSettings, seconds: float) -> float:
    """How far a member may move now, in percent: what it has not moved before, a period's worth at most."""
    rate = settings.max_rate_pct_per_s
    most = max(rate * max(settings.time_step_s, 1.0), one.member.resolution_pct)
    return min(most, one.state.allowance + rate * seconds)


def _allowance(one: Seen, settings: LoopSettings, values: Mapping[str, float], seconds: float) -> float:
    moved = abs(values.get(one.tag, one.value) - one.value)
    return max(_saved(one, settings, seconds) - moved, 0.0)


def _stand(
    free: Sequence[Seen], values: Mapping[str, float], total: float, aimed_by: str, *, is_slowed: bool
) -> tuple[Stand, Because]:
    if is_slowed:
        return Stand.TRACKING, Because.RATE
    if all(values[one.tag] >= one.grid.down(one.member.maximum) for one in free):
        return Stand.LIMITING, Because.AT_MAXIMUM
    if total < sum(one.room.low_kw for one in free) - TINY_KW:
        return Stand.LIMITING, Because.AT_MINIMUM
    if all(one.is_lacking for one in free):
        return Stand.LIMITING, Because.MEMBERS_LACK
    if aimed_by:
        return Stand.LIMITING, Because(aimed_by)
    return Stand.TRACKING, Because.SETPOINT
