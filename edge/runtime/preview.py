"""What a setpoint would do, and what it would cost, without doing it.

Nothing here is a second set of rules: a request is admitted by what admits requests, and decided by what
decides for devices, on copies of their states that are thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from edge.core import arbitration
from edge.core.arbitration import Decision, DeviceState
from edge.core.cyclic import InForce, WriteReason
from edge.core.image import Clock as ClockQuality, ProcessImage
from edge.core.instant import Instant
from edge.core.ramp import Ramp
from edge.core.reasons import reason, sentence
from edge.runtime.proxies import Proxies, passed_on_by
from edge.wire.messages import DevicePreview, DeviceResult, PreviewWear

if TYPE_CHECKING:
    from edge.runtime.cycle import Unit


@dataclass(frozen=True, slots=True)
class _Resolved:
    """What a device would be held at: its state after that decision, and the image it was made of."""

    unit: Unit
    state: DeviceState
    image: ProcessImage
    decision: Decision


def preview(
    unit: Unit, state: DeviceState, *, proxies: Proxies, now: Instant, quality: ClockQuality
) -> dict[str, DevicePreview]:
    """What a request that brings a device into this state does to it, and to those behind it, by tag."""
    held = _resolve(unit, state, proxies=proxies, now=now, quality=quality)
    after, _ = arbitration.release(state, (state.last_order[0], state.last_order[1] + 1))
    released = _resolve(unit, after, proxies=proxies, now=now, quality=quality)
    hold = state.hold
    holds_s = None if hold is None else hold.ends_boottime_s - now.boottime_s
    found = {key: _told(one, holds_s=holds_s, released=released[key], now=now) for key, one in held.items()}
    if unit.is_proxy:
        detail = proxies.passed_over(unit).removeprefix("; ")
        found[unit.key] = msgspec.structs.replace(found[unit.key], detail=detail)
    return found


def refused(unit: Unit, told: DeviceResult, now: Instant) -> DevicePreview:
    """That a request is refused, and how things stand."""
    in_force = unit.state.in_force
    return DevicePreview(
        code=told.code,
        detail=told.detail,
        in_force=None if in_force is None else in_force.value,
        in_force_reason=_standing(unit, now),
        reachable=unit.reachable,
        wear=None if unit.is_proxy else _wear(unit, now=0, release=0),
    )


def _resolve(
    unit: Unit, state: DeviceState, *, proxies: Proxies, now: Instant, quality: ClockQuality
) -> dict[str, _Resolved]:
    """What would be decided for a device in this state and those that take its value, as `Cycle.evaluate`."""
    found: dict[str, _Resolved] = {}
    for each in proxies.downwards([unit]):
        image = replace(each.image, clock=quality)
        above = found.get(each.settings.proxy or "")
        if above is not None:
            image = replace(image, passed_on=passed_on_by(above.decision))
        before = state if each is unit else each.state
        after, decision = arbitration.decide(before, image, now)
        found[each.key] = _Resolved(each, after, image, decision)
    return found


def _told(one: _Resolved, *, holds_s: float | None, released: _Resolved, now: Instant) -> DevicePreview:
    unit, decision = one.unit, one.decision
    write = _write(unit, decision)
    in_force = unit.state.in_force
    wear = None
    if not unit.is_proxy:
        wear = _wear(unit, now=0 if write is None else 1, release=_release_writes(one, released, now))
    return DevicePreview(
        value=decision.value,
        target=decision.target,
        source="" if decision.source is None else decision.source.label,
        through=decision.through or "",
        wish=decision.wish,
        bounded_by=decision.bounded_by,
        reason=sentence(reason(one.state, decision, one.image, now)),
        holds_s=holds_s,
        write="" if write is None else write.value,
        in_force=None if in_force is None else in_force.value,
        in_force_reason=_standing(unit, now),
        reachable=unit.reachable,
        wear=wear,
    )


def _standing(unit: Unit, now: Instant) -> str:
    """Why the device is held where it is, before anything happens."""
    if unit.decision is None:
        return ""
    return sentence(reason(unit.state, unit.decision, unit.image, now))


def _write(unit: Unit, decision: Decision) -> WriteReason | None:
    """Why its line would be asked to write; None: it has nothing to do, or is at it already."""
    if decision.value is None:
        return None
    if unit.ticket is not None:
        return None if unit.ticket_value == decision.value else decision.write or WriteReason.CHANGED
    return decision.write


def _release_writes(one: _Resolved, released: _Resolved, now: Instant) -> int:
    """What its release would write, as things are now: once it has arrived at what it is to be held at."""
    target = one.decision.target
    if target is None:
        return 0
    arrived = replace(
        one.state,
        hold=None,
        lapse=None,
        in_force=InForce(target, now.boottime_s, confirmed=True),
        is_met=True,
        confirmed=target,
        asked=(),
        ramp=None if one.state.ramp is None else Ramp(target, target, now.boottime_s),
    )
    _, decision = arbitration.decide(arrived, replace(released.image, readback=target), now)
    return 0 if decision.write is None else 1


def _wear(unit: Unit, *, now: int, release: int) -> PreviewWear:
    settings, state = unit.settings, unit.state
    return PreviewWear(
        write_class=settings.write_class.value,
        wears=settings.wears,
        now=now,
        release=release,
        today=state.spent_today,
        per_day=settings.writes_per_day,
    )
