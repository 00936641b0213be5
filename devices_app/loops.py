"""What happens to closed loops: made, changed and deleted; each change reaches the node through its `config`.

What a loop is configured by is ADR 0033's, and what is refused here is refused before a node could. All of it
is told at once, each at its field, with what to do.
"""

from __future__ import annotations

import copy
import math
import uuid
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

import structlog
from django.db import transaction

from devices_app.choices import LoopMode
from devices_app.config import CONFIG
from devices_app.loop_members import (
    Membership,
    bus_times,
    device_loop_needs,
    loops_of,
    member_unfit,
    membership,
    meter_read_every_s,
    meter_unfit,
    node_devices,
)
from devices_app.models import ClosedLoop, Device, LoopMember
from devices_app.retirement import places_lock
from edge.core.loop.terms import LOOP_RANGES
from sites_app.documents import nodes_documents_render
from sites_app.models import Node, Site
from smartgrid.errors import Conflict, Invalid, NotFound
from smartgrid.integrity import check, store

log = structlog.stdlib.get_logger(__name__)

MEMBERS_MAX = 1000
# As often at least a meter is read before its silence counts: nodes hold to the same.
READINGS_WITHIN_STALE = 2


class LoopOptions(TypedDict, total=False):
    """`members` and `category` exclude each other."""

    enabled: bool
    category: str | None
    members: Sequence[Device]
    mode: str
    setpoint_kw: float | None
    feed_forward: bool
    kp: float
    ki: float
    kd: float
    max_rate_pct_per_s: float
    deadband_kw: float
    fallback_pct: float | None
    time_step_s: float
    stale_after_s: float
    export_limit_kw: float | None
    import_limit_kw: float | None
    storage_first: bool


class LoopFields(LoopOptions, total=False):
    id: uuid.UUID


class LoopChanges(LoopOptions, total=False):
    loop_tag: str
    meter: Device


def loop_create(
    *, site: Site, loop_tag: str, meter: Device, by: str, **fields: Unpack[LoopFields]
) -> ClosedLoop:
    """Let the meter's node hold the power there; `by`: who does it.

    `Invalid` names every field that is wrong and what to do. `Conflict` where the site has the tag already,
    or where the meter or a member is another loop's.
    """
    with transaction.atomic():
        places_lock([site.pk])
        options: Any = dict(fields)
        named = options.pop("members", ())
        loop = ClosedLoop(site=site, loop_tag=loop_tag, meter=meter, **options)
        _loop_store(loop, named=named, before=frozenset())
        nodes_documents_render(nodes=[loop.node], only=[CONFIG])
    log.info("loop_created", loop=loop.loop_tag, node=loop.node.name, meter=loop.meter.device_tag, by=by)
    return loop


def loop_replace(
    *, loop: ClosedLoop, loop_tag: str, meter: Device, by: str, **fields: Unpack[LoopOptions]
) -> ClosedLoop:
    """Change a loop to be as these fields say, and otherwise as one that is made anew (`loop_update`)."""
    defaults: Any = {
        name: field.get_default()
        for field in ClosedLoop._meta.concrete_fields  # noqa: SLF001 - Django's documented name
        if (name := field.name) in LoopOptions.__optional_keys__
    }
    changes: Any = {**defaults, "members": (), **fields}
    return loop_update(loop=loop, by=by, loop_tag=loop_tag, meter=meter, **changes)


def loop_update(*, loop: ClosedLoop, by: str, **changes: Unpack[LoopChanges]) -> ClosedLoop:
    """Change a loop; its node goes on with it without a bump. Errors as for `loop_create`.

    Who names members and no category, or the other way round, gets those in place of what was. With a meter
    of another node the whole loop moves there.
    """
    with transaction.atomic():
        loop = _loop_lock(loop)
        before = {row.device_id: row.device for row in loop.named.select_related("device")}
        former = loop.node
        named = _changed(loop, changes, named=list(before.values()))
        _loop_store(loop, named=named, before=frozenset(before))
        nodes_documents_render(nodes={former, loop.node}, only=[CONFIG])
    log.info("loop_changed", loop=loop.loop_tag, node=loop.node.name, fields=sorted(changes), by=by)
    return loop


def loop_delete(*, loop: ClosedLoop, by: str) -> Node:
    """Take a loop from its node, where its members go to their schedules or defaults. The node it was at."""
    with transaction.atomic():
        loop = _loop_lock(loop)
        node, tag = loop.node, loop.loop_tag
        loop.delete()
        nodes_documents_render(nodes=[node], only=[CONFIG])
    # What a connection limit kept is kept no longer.
    log.warning("loop_deleted", loop=tag, node=node.name, by=by)
    return node


def loop_draft(
    *, site: Site, loop: ClosedLoop | None = None, loop_tag: str, meter: Device, **fields: Unpack[LoopOptions]
) -> ClosedLoop:
    """A loop as it would be created, or as `loop` would be changed to; nothing of it is stored.

    Errors as for `loop_create`: whoever asks before he saves is told the same, unless somebody else is
    quicker.
    """
    options: Any = dict(fields)
    if loop is None:
        named, before = list(options.pop("members", ())), frozenset[uuid.UUID]()
        drafted = ClosedLoop(site=site, loop_tag=loop_tag, meter=meter, **options)
    else:
        stored = ClosedLoop.objects.select_related("site", "node", "meter").get(pk=loop.pk)
        drafted = copy.copy(stored)
        before = frozenset(stored.named.values_list("device_id", flat=True))
        named = _changed(drafted, {"loop_tag": loop_tag, "meter": meter, **options}, named=[])
    _loop_check(drafted, named=named, before=before)
    check(drafted)
    return drafted


def _changed(loop: ClosedLoop, changes: LoopChanges | dict[str, Any], *, named: list[Device]) -> list[Device]:
    """Change a loop's own fields, in memory; the devices it is to name."""
    values: dict[str, Any] = dict(changes)
    for field in values:
        if field not in LoopChanges.__optional_keys__:
            raise Invalid.field(field, "cannot be changed")
    if "members" in values:
        named = list(values.pop("members"))
        if named and "category" not in values:
            values["category"] = None
    elif values.get("category"):
        named = []
    for field, value in values.items():
        setattr(loop, field, value)
    return named


def _loop_lock(loop: ClosedLoop) -> ClosedLoop:
    """The loop as it is now, for this transaction alone; `NotFound` where it is deleted."""
    places_lock([loop.site_id])
    rows = ClosedLoop.objects.select_for_update(of=("self",)).select_related("site", "node", "meter")
    found = rows.filter(pk=loop.pk).first()
    if found is None:
        raise NotFound("No such loop.")
    return found


def _loop_store(loop: ClosedLoop, *, named: Sequence[Device], before: frozenset[uuid.UUID]) -> None:
    members = _loop_check(loop, named=named, before=before)
    store(loop)
    wanted = {device.pk for device in named}
    LoopMember.objects.filter(loop=loop).exclude(device__in=wanted).delete()
    LoopMember.objects.bulk_create(
        LoopMember(loop=loop, device=device)
        for device in sorted(named, key=lambda one: one.pk)
        if device.pk not in before
    )
    for tag, why in members.left_out.items():
        log.warning("loop_leaves_device_out", loop=loop.loop_tag, device=tag, reason=why)


# --- what is refused ----------------------------------------------------------------------------------------


class _Refused:
    """What is wrong with a loop, by field."""

    def __init__(self) -> None:
        self.invalid: dict[str, list[str]] = defaultdict(list)
        self.conflicts: dict[str, list[str]] = defaultdict(list)

    def tell(self) -> None:
        """Raise what was found; what can never be right outweighs what may be right tomorrow."""
        if self.invalid:
            field, texts = next(iter(self.invalid.items()))
            raise Invalid(f"{field}: {texts[0]}", errors=self.invalid)
        if self.conflicts:
            field, texts = next(iter(self.conflicts.items()))
            raise Conflict(f"{field}: {texts[0]}", code="in_use", errors=self.conflicts)


def _loop_check(loop: ClosedLoop, *, named: Sequence[Device], before: frozenset[uuid.UUID]) -> Membership:
    """Refuse a loop that could not do what it says; complete its node; its members.

    `named`: the devices it is to name; `before`: those it names already.
    """
    refused = _Refused()
    _numbers_check(loop, refused)
    # Nothing can be said of members by a period that is none.
    refused.tell()
    meter = Device.objects.select_related("device_type", "node").filter(pk=loop.meter_id).first()
    if meter is None or meter.site_id != loop.site_id:
        raise Invalid.field("meter", "is not at this site; choose a device of the loop's site")
    loop.meter, loop.node = meter, meter.node
    loop.category = loop.category or None
    if why := meter_unfit(meter):
        refused.invalid["meter"].append(f"{meter.device_tag} {why}")
    least_s = READINGS_WITHIN_STALE * meter_read_every_s(meter, time_step_s=loop.time_step_s)
    if loop.stale_after_s < least_s:
        refused.invalid["stale_after_s"].append(
            f"{least_s:g} or more is expected: {meter.device_tag} is read every"
            f" {least_s / READINGS_WITHIN_STALE:g} s, and one lost reading is no silence"
        )
    others = list(loops_of([loop.node_id]).exclude(pk=loop.pk))
    if (other := ClosedLoop.objects.filter(meter=meter).exclude(pk=loop.pk).first()) is not None:
        refused.conflicts["meter"].append(
            f"{meter.device_tag} is the meter of the loop {other.loop_tag} already: two loops on one meter"
            " would work against each other"
        )
    there = node_devices([loop.node_id])
    if loop.category is None:
        members = _named_check(loop, named, there=there, others=others, before=before, refused=refused)
    else:
        members = _category_check(loop, named, there=there, others=others, refused=refused)
    if not refused.invalid:
        _sums_check(loop, members, there=there, refused=refused)
    refused.tell()
    return members


def _numbers_check(loop: ClosedLoop, refused: _Refused) -> None:
    for name, (least, most) in LOOP_RANGES.items():
        value = getattr(loop, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            refused.invalid[name].append("a finite number is expected")
        elif not least <= value <= most:
            refused.invalid[name].append(f"{least:g} to {most:g} is expected")
    if refused.invalid:
        return
    if loop.mode not in LoopMode.values:
        refused.invalid["mode"].append(f"one of {', '.join(LoopMode.values)} is expected")
    if not loop.feed_forward and not loop.kp and not loop.ki:
        refused.invalid["kp"].append(
            "without feed-forward, and with kp and ki at 0, the loop would do nothing; give a gain"
        )
    if loop.stale_after_s <= loop.time_step_s:
        refused.invalid["stale_after_s"].append(
            f"must be above time_step_s ({loop.time_step_s:g}): each reading would be stale before the next"
        )


def _named_check(
    loop: ClosedLoop,
    named: Sequence[Device],
    *,
    there: Sequence[Device],
    others: Sequence[ClosedLoop],
    before: frozenset[uuid.UUID],
    refused: _Refused,
) -> Membership:
    if not named:
        refused.invalid["members"].append("name the devices that the loop commands, or give their category")
    if len(named) > MEMBERS_MAX:
        refused.invalid["members"].append(f"{MEMBERS_MAX} at most are expected")
        return Membership()
    here = {device.pk: device for device in there}
    theirs = {row.device_id: other for other in others for row in other.named.all()}
    seen: set[uuid.UUID] = set()
    for given in named:
        device = here.get(given.pk)
        if given.pk in seen:
            refused.invalid["members"].append(f"{given.device_tag} is named twice")
        elif device is None:
            refused.invalid["members"].append(
                f"{given.device_tag} is not at {loop.node.name}, where the meter is: choose a meter and"
                " members of one node (rule 22)"
            )
        elif given.pk == loop.meter_id:
            refused.invalid["members"].append(f"{given.device_tag} is the meter: it cannot be a member too")
        elif why := member_unfit(
            device, time_step_s=loop.time_step_s, there=there, may_be_excluded=given.pk in before
        ):
            refused.invalid["members"].append(f"{device.device_tag} {why}")
        elif (
            given.pk not in before
            and (other := theirs.get(given.pk) or _follower_of(device, others)) is not None
        ):
            refused.conflicts["members"].append(
                f"{device.device_tag} is a member of the loop {other.loop_tag} already; take it out there"
            )
        seen.add(given.pk)
    return membership(loop, [device for pk, device in here.items() if pk in seen], there)


def _follower_of(device: Device, others: Sequence[ClosedLoop]) -> ClosedLoop | None:
    """The loop that has this device by its category."""
    return next((one for one in others if one.category == device.category), None)


def _category_check(
    loop: ClosedLoop,
    named: Sequence[Device],
    *,
    there: Sequence[Device],
    others: Sequence[ClosedLoop],
    refused: _Refused,
) -> Membership:
    if named:
        refused.invalid["members"].append("give either members or their category, not both")
        return Membership()
    if (other := next((one for one in others if one.category == loop.category), None)) is not None:
        refused.conflicts["category"].append(
            f"the loop {other.loop_tag} has the {loop.category} devices of {loop.node.name} already"
        )
        return Membership()
    theirs = {row.device_id for other in others for row in other.named.all()}
    wanted = [
        device
        for device in there
        if device.category == loop.category and device.pk not in theirs and device.pk != loop.meter_id
    ]
    members = membership(loop, wanted, there)
    if not members.members:
        why = "; ".join(f"{tag} {text}" for tag, text in members.left_out.items())
        refused.invalid["category"].append(
            f"no device of it at {loop.node.name} can be a member" + (f": {why}" if why else "")
        )
    return members


def _sums_check(loop: ClosedLoop, members: Membership, *, there: Sequence[Device], refused: _Refused) -> None:
    """What depends on who the members are."""
    if members.members and loop.deadband_kw >= members.nominal_kw:
        refused.invalid["deadband_kw"].append(
            f"must be below the members' nominal power together, {members.nominal_kw:g} kW"
        )
    for device in members.members:
        if loop.fallback_pct is not None and not device.min_value <= loop.fallback_pct <= device.max_value:
            refused.invalid["fallback_pct"].append(
                f"{device.device_tag} takes {device.min_value:g} to {device.max_value:g}"
            )
    for bus in bus_times(loop.meter, members.members, there):
        if bus.least_s > loop.time_step_s:
            refused.invalid["time_step_s"].append(
                f"{bus.least_s:g} or more is expected: at {bus.place} the pauses that the makers of"
                f" {', '.join(bus.tags)} want between commands take as long to read and write them once"
            )


# --- what a loop needs of a device --------------------------------------------------------------------------


def device_leave_check(device: Device, what: str) -> None:
    """Refuse that a device goes away that a loop needs: `Conflict`, `in_use`, which names the loop."""
    if needs := device_loop_needs(device):
        raise Conflict(f"{device.device_tag} {what}: {needs}. Take it out of the loop first.", code="in_use")


def device_change_check(device: Device) -> None:
    """Refuse a change by which a device could no longer be what a loop has it for; excluded it may be.

    `Conflict`, `in_use`. Needs its type and owner loaded.
    """
    metered = ClosedLoop.objects.filter(meter=device.pk).first()
    if metered is not None and (why := meter_unfit(device)):
        raise Conflict(
            f"{device.device_tag} is the meter of the closed loop {metered.loop_tag}, and {why}.",
            code="in_use",
        )
    row = LoopMember.objects.filter(device=device.pk).select_related("loop").first()
    if row is None:
        return
    there = node_devices([device.node_id]) if device.is_proxy else []
    if why := member_unfit(device, time_step_s=row.loop.time_step_s, there=there, may_be_excluded=True):
        raise Conflict(
            f"{device.device_tag} is a member of the closed loop {row.loop.loop_tag}, and then {why}."
            " Take it out of the loop first.",
            code="in_use",
        )
