"""What a connection limit leaves each member, whoever commands it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from edge.core.loop.members import Seen
from edge.core.loop.sharing import Grid, Room, round_down, share
from edge.core.loop.terms import LoopSettings


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most and the least that is left to each member, in percent, on its register's steps."""

    upper: Mapping[str, float] = field(default_factory=dict)
    lower: Mapping[str, float] = field(default_factory=dict)


def static_bounds(settings: LoopSettings) -> Bounds:
    """Without a meter: limit / summed nominal power for each."""
    upper, lower = {}, {}
    for member in settings.members:
        grid = Grid(member.resolution_pct, member.nominal_kw, member.minimum, member.maximum)
        if settings.export_limit_kw is not None:
            upper[member.tag] = grid.down(100 * settings.export_limit_kw / settings.nominal_kw)
        if settings.import_limit_kw is not None:
            lower[member.tag] = grid.up(-100 * settings.import_limit_kw / settings.nominal_kw)
    return Bounds(upper, lower)


def bounds_of_unknown(settings: LoopSettings, seen: Sequence[Seen]) -> Bounds:
    """Before the first reading: nobody goes beyond where he is, unless he would be allowed to anyway.

    A member of which nobody knows where it is has no more than it would be allowed to.
    """
    static = static_bounds(settings)
    upper, lower = dict(static.upper), dict(static.lower)
    for one in seen:
        if one.image.value is None and one.state.power_kw is None:
            continue
        if one.tag in upper:
            upper[one.tag] = max(upper[one.tag], one.value)
        if one.tag in lower:
            lower[one.tag] = min(lower[one.tag], one.value)
    return Bounds(upper, lower)


def bounds_at(
    settings: LoopSettings,
    seen: Sequence[Seen],
    values: Mapping[str, float],
    *,
    load_kw: float,
    unsure_kw: float,
    is_tick: bool,
) -> Bounds:
    """At this load. `values` are what the loop asks of its free members, `unsure_kw` how sure the load is.

    Members that a direct request holds come before those that the loop may command. Members' bounds and
    what cannot be commanded are together never above what the limit allows, as far as members can be lowered.
    """
    upper: dict[str, float] = {}
    lower: dict[str, float] = {}
    if settings.export_limit_kw is not None:
        left = _left(settings.export_limit_kw + load_kw, seen, values)
        for one, bound in zip(seen, left, strict=True):
            upper[one.tag] = _settled(one, bound, values, unsure_kw=unsure_kw, is_tick=is_tick)
    if settings.import_limit_kw is not None:
        rooms = [replace(one.room, high_kw=max(one.room.low_kw, min(one.room.high_kw, 0.0))) for one in seen]
        needed = share(load_kw - settings.import_limit_kw, rooms)
        for one, part in zip(seen, needed, strict=True):
            lower[one.tag] = min(one.grid.up(one.value_for(part)), upper.get(one.tag, one.member.maximum))
    return Bounds(upper, lower)


def _left(allowed_kw: float, seen: Sequence[Seen], values: Mapping[str, float]) -> list[float]:
    rooms = [one.room for one in seen]
    claims = [_claim(one) for one in seen]
    # First those whom the loop does not command, then what it asks of the others, then all.
    least = sum(room.low_kw for room, one in zip(rooms, seen, strict=True) if one.is_free)
    kept = iter(share(allowed_kw - least, [claim for claim in claims if claim is not None]))
    parts = [room.low_kw if claim is None else next(kept) for room, claim in zip(rooms, claims, strict=True)]
    for wanted in (values, None):
        parts = share(
            allowed_kw,
            [
                replace(room, low_kw=part, high_kw=max(part, _most(one, room, part, wanted)))
                for room, one, part in zip(rooms, seen, parts, strict=True)
            ],
        )
    wishes = [one.value_for(part) for one, part in zip(seen, parts, strict=True)]
    # What rounding takes from a member that cannot be commanded is nobody's to give: it gives what it gives.
    wishes = [
        wish if one.image.is_available else one.grid.down(wish)
        for wish, one in zip(wishes, seen, strict=True)
    ]
    return round_down(wishes, [one.grid for one in seen])


def _claim(one: Seen) -> Room | None:
    """What is left for a member that the loop does not command; None for one that it does."""
    if one.is_free:
        return None
    if not one.image.is_available:
        return Room(one.member.nominal_kw, one.claim_kw, one.claim_kw)
    # Without sun it gives less than the least it can be lowered to: as much comes back with its sun.
    low = one.room.low_kw
    return Room(one.member.nominal_kw, low, max(low, one.claim_kw))


def _most(one: Seen, room: Room, part: float, wanted: Mapping[str, float] | None) -> float:
    if wanted is None:
        return room.high_kw
    value = wanted.get(one.tag)
    return part if value is None else one.given_kw(value)


def _settled(
    one: Seen, bound: float, values: Mapping[str, float], *, unsure_kw: float, is_tick: bool
) -> float:
    """Lowered at once; raised at ticks, and for more than a reading's noise, lest each one be a write."""
    before = one.state.bound
    if before is None or bound <= before:
        return bound
    wished = values.get(one.tag)
    if wished is not None and wished > before:
        return bound
    steps_kw = max(unsure_kw, one.grid.step_kw)
    return bound if is_tick and (bound - before) * one.member.nominal_kw / 100 > steps_kw else before
