"""Which devices a closed loop commands: those it names, or its category's, as far as they can be members.

The document of a node, the checks of a change and what is shown all ask here, so that they say the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from django.db.models import QuerySet

from devices_app.address import device_profile, place_of
from devices_app.models import ClosedLoop, Device, LoopMember
from edge.core.commands import WriteClass
from edge.profiles.model import Profile, ValueKind
from edge.profiles.points import Protocol
from smartgrid.errors import Invalid

# What a meter must tell, and each member by which the load is found.
POWER = "P_kW"
# Nodes poll a device as often (`DeviceConfig.poll_s`, which central does not set), a loop's at each step; of
# one that wants pauses they keep three quarters of the time free of polls.
POLL_S = 1.0
GAPS_A_READING = 4
# A register of which nobody knows how often it may be written is written no more often than this (rule 13).
UNKNOWN_WEAR_S = 60.0
# By these a loop can tell how much power a value means, and more of it is more towards the grid.
KINDS = (ValueKind.ACTIVE_POWER_LIMIT_PCT, ValueKind.SIGNED_SETPOINT_PCT)


@dataclass(frozen=True, slots=True)
class Membership:
    """A loop's members, by tag, and why each device that it names or that is of its category is none."""

    members: tuple[Device, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def nominal_kw(self) -> float:
        """The sum of the members' nominal power."""
        return sum(device.peak_power_kw or 0.0 for device in self.members)


def loops_of(node_ids: Iterable[UUID]) -> QuerySet[ClosedLoop]:
    """The loops of these nodes, each with its meter and the devices it names, in the order of their tags."""
    rows = ClosedLoop.objects.filter(node_id__in=list(node_ids)).select_related("meter", "node")
    return rows.prefetch_related("named").order_by("loop_tag", "pk")


def node_devices(node_ids: Iterable[UUID]) -> list[Device]:
    """The devices of these nodes, with all that `memberships` needs of them."""
    rows = Device.objects.filter(node_id__in=list(node_ids))
    return list(rows.select_related("device_type", "controlled_by").order_by("device_tag"))


def memberships(loops: Sequence[ClosedLoop], devices: Iterable[Device]) -> dict[UUID, Membership]:
    """The members of each of these loops, which are all the loops of their nodes, among all devices there.

    What one loop names, no other has by its category.
    """
    there = list(devices)
    named = {row.device_id: loop for loop in loops for row in loop.named.all()}
    found: dict[UUID, Membership] = {}
    for loop in loops:
        wanted = [device for device in there if _is_wanted(loop, device, named)]
        found[loop.pk] = membership(loop, wanted, there)
    return found


def _is_wanted(loop: ClosedLoop, device: Device, named: Mapping[UUID, ClosedLoop]) -> bool:
    if device.node_id != loop.node_id:
        return False
    if loop.category is None:
        return named.get(device.pk) is loop
    return device.category == loop.category and device.pk not in named and device.pk != loop.meter_id


def membership(loop: ClosedLoop, wanted: Iterable[Device], there: Sequence[Device]) -> Membership:
    """Of these devices, which the loop would have, those that can be its members.

    `there`: all devices of the node.
    """
    members, left_out = [], {}
    for device in sorted(wanted, key=lambda one: one.device_tag):
        if why := member_unfit(device, time_step_s=loop.time_step_s, there=there):
            left_out[device.device_tag] = why
        else:
            members.append(device)
    return Membership(tuple(members), left_out)


def member_unfit(
    device: Device, *, time_step_s: float, there: Sequence[Device], may_be_excluded: bool = False
) -> str:
    """Why a loop of this period cannot command this device, and what to do; empty where it can.

    `there`: the devices of its node, of which a proxy's own are looked at. `may_be_excluded`: from
    curtailment, as a member may be for a while. Needs types and owners loaded.
    """
    if device.controlled_by is not None:
        return f"is controlled through {device.controlled_by.device_tag}; name that one in its place"
    if device.measured_only:
        return "is only measured"
    if not device.include_in_curtailment and not may_be_excluded:
        return "is excluded from curtailment; include it first"
    profile = _profile(device)
    if profile is None or profile.limit is None:
        return "has a type by whose profile nothing can be set"
    if profile.value_kind not in KINDS:
        return (
            "takes another value than an active power limit or a signed setpoint: a loop cannot tell how much"
            " power towards the grid that is"
        )
    if device.peak_power_kw is None:
        return "has no known nominal power; give its peak_power_kw"
    return _wear(device, profile, time_step_s=time_step_s, there=there)


def _wear(device: Device, profile: Profile, *, time_step_s: float, there: Sequence[Device]) -> str:
    """Rule 13 of a member, and of what is behind a proxy."""
    assert profile.limit is not None
    if profile.protocol is Protocol.PROXY:
        children = [child for child in there if child.controlled_by_id == device.pk]
        if not children:
            return "is a proxy without devices behind it"
        for child in children:
            own = _profile(child)
            if own is None or own.limit is None:
                continue
            if why := _wear(child, own, time_step_s=time_step_s, there=there):
                return f"stands for {child.device_tag}, which {why}"
        return ""
    if profile.limit.write_class is WriteClass.PERSISTENT:
        return "keeps each value in memory that wears out (rule 13): no loop may write it"
    if (
        profile.limit.write_class is WriteClass.UNKNOWN
        and time_step_s < UNKNOWN_WEAR_S
        and not device.accept_wear
    ):
        return (
            f"may wear by being written, which nobody has ruled out (rule 13): give a time_step_s of"
            f" {UNKNOWN_WEAR_S:g}, or accept_wear at the device"
        )
    return ""


def meter_unfit(device: Device) -> str:
    """Why no loop can hold the power by what this device measures; empty where one can."""
    profile = _profile(device)
    if profile is None or POWER not in profile.telemetry or profile.protocol is Protocol.PROXY:
        return f"measures no power ({POWER}) by its type; choose a meter at the point of connection"
    if not profile.points[profile.telemetry[POWER]].is_dated:
        return "tells its power by a message of any age (kept); choose a meter that speaks of now"
    return ""


def meter_read_every_s(device: Device, *, time_step_s: float) -> float:
    """How often its node reads the meter of a loop of this period, as its maker's pause lets it."""
    profile = _profile(device)
    gap_s = 0.0 if profile is None else profile.min_gap_ms / 1000
    return max(min(POLL_S, time_step_s), GAPS_A_READING * gap_s)


def _profile(device: Device) -> Profile | None:
    """Its profile; None where there is none, or where what the device says does not fit it."""
    try:
        return device_profile(device)
    except Invalid:
        return None


@dataclass(frozen=True, slots=True)
class BusTime:
    """What one endpoint needs for a period of a loop, because its maker wants pauses between commands."""

    place: str
    tags: tuple[str, ...]
    least_s: float


def bus_times(meter: Device, members: Sequence[Device], there: Sequence[Device]) -> list[BusTime]:
    """What the profiles' minimum gaps take of each period, by endpoint, the longest first.

    In each period the meter and every member are read once, and every member is written. An endpoint has one
    session and one queue (rule 19), so the gaps of all that is behind it add up.
    """
    spent: dict[str, tuple[float, list[str]]] = {}

    def spend(device: Device, *, writes: bool) -> None:
        profile = _profile(device)
        if profile is None:
            return
        if profile.protocol is Protocol.PROXY:
            for child in there:
                if child.controlled_by_id == device.pk:
                    spend(child, writes=writes and not child.measured_only)
            return
        commands = 1 + (len(profile.limit.set) if writes and profile.limit is not None else 0)
        if not profile.min_gap_ms:
            return
        place = place_of(device) or device.device_tag
        before_s, tags = spent.get(place, (0.0, []))
        spent[place] = before_s + commands * profile.min_gap_ms / 1000, [*tags, device.device_tag]

    spend(meter, writes=False)
    for device in members:
        spend(device, writes=True)
    found = [
        # As people write it: a tenth of a second, never less than needed.
        BusTime(place, tuple(tags), math.ceil(round(seconds * 10, 6)) / 10)
        for place, (seconds, tags) in spent.items()
    ]
    return sorted(found, key=lambda one: -one.least_s)


def device_loop_needs(device: Device) -> str:
    """Which loop needs a device where it is, and what for; empty where none does.

    Devices that a loop has by its category come and go as they like.
    """
    if (loop := ClosedLoop.objects.filter(meter=device.pk).first()) is not None:
        return f"it is the meter of the closed loop {loop.loop_tag}"
    row = LoopMember.objects.filter(device=device.pk).select_related("loop").first()
    return "" if row is None else f"it is a member of the closed loop {row.loop.loop_tag}"
