"""Who holds a device where it is, as far as central can tell: the sources, in order of priority."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from uuid import UUID

from devices_app.choices import LoopStand
from devices_app.loop_view import LoopView
from devices_app.models import Device


class Source(StrEnum):
    """Who asked for the value a device holds; the words of the nodes."""

    DIRECT = "direct"
    CLOSED_LOOP = "closed_loop"
    SCHEDULE = "schedule"
    DEFAULT = "default"


def device_sources(
    devices: Iterable[Device],
    *,
    held: Collection[UUID],
    loops: Iterable[LoopView],
    scheduled: Mapping[str, float | None],
    silent_nodes: Collection[UUID],
) -> dict[UUID, Source | None]:
    """Device -> the source of its value; None where central cannot know. What nobody writes has no entry.

    `held`: the devices of `holds_running`; `scheduled`: the values in force by category; `silent_nodes`:
    those not heard lately, of whose devices nothing is known but holds, which end by themselves.

    Only the node knows for certain (ask it why). Central concludes: a running hold is direct; a member of a
    loop that tells what it wants of it is the loop's; a value that equals the slot in force is the
    schedule's, and one that equals the default, where no slot says anything, is the default. A value that is
    none of these was trimmed by a bound, is on a ramp or is about to be told: not known.
    """
    rows = list(devices)
    in_loop: dict[UUID, bool] = {}
    for view in loops:
        if view.loop.enabled:
            in_loop |= {member.device_id: _is_commanded(view, member.value) for member in view.members}
    found: dict[UUID, Source | None] = {}
    for device in rows:
        if device.control_point is None and not device.is_proxy:
            continue
        if device.pk in held:
            found[device.pk] = Source.DIRECT
        elif device.node_id in silent_nodes or device.value is None:
            found[device.pk] = None
        elif device.pk in in_loop:
            found[device.pk] = Source.CLOSED_LOOP if in_loop[device.pk] else None
        else:
            found[device.pk] = _planned(device, scheduled.get(device.category))
    # What is measured behind another's control point is held as that one is.
    for device in rows:
        if device.pk not in found and device.controlled_by_id in found:
            found[device.pk] = found[device.controlled_by_id]
    return found


def _is_commanded(view: LoopView, value: float | None) -> bool:
    """Tell whether the loop itself sets this member now: in fallback and by hand others do."""
    others = {LoopStand.FALLBACK.value, LoopStand.MANUAL.value}
    return view.live is not None and value is not None and view.live.stand not in others


def _planned(device: Device, slot: float | None) -> Source | None:
    if slot is not None:
        return Source.SCHEDULE if device.value == slot else None
    return Source.DEFAULT if device.value == device.default_value else None
