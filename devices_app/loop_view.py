"""A closed loop as people see it: what was said of it, who its members are, and how it stands right now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import structlog
from django.db.models import F, Window
from django.db.models.functions import RowNumber

from devices_app.loop_live import LoopLive, loops_live_read
from devices_app.loop_members import Membership, loops_of, memberships, node_devices
from devices_app.models import ClosedLoop, LoopChange
from sites_app.models import Node
from sites_app.presence import NodePresence, central_now, presence_read
from smartgrid.live import LiveUnavailable

log = structlog.stdlib.get_logger(__name__)

# As many of the newest changes of stand are shown.
CHANGES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class MemberView:
    """A member, and the value the loop wants of it right now, in percent; None where that is not known."""

    device_id: UUID
    device_tag: str
    nominal_kw: float
    value: float | None


@dataclass(frozen=True, slots=True)
class NodeView:
    """The loop's node: whether it is there (`online`), and well; None where nobody can tell now."""

    id: UUID
    name: str
    online: bool
    healthy: bool | None


@dataclass(frozen=True, slots=True)
class LiveView:
    """How a loop stands, as its node told `age_s` ago."""

    stand: str
    since: datetime
    setpoint_kw: float | None
    measured_kw: float | None
    output_kw: float | None
    load_kw: float | None
    bounded_by: str
    reason: str
    age_s: float


@dataclass(frozen=True, slots=True)
class LoopView:
    """A loop with all that is to be known of it.

    `left_out`: why devices that it names, or that are of its category, are no members, by tag. `refused`: why
    its node cannot use it; None where it can, or has not said. `live` is None where nothing was told lately.
    """

    loop: ClosedLoop
    member_ids: tuple[UUID, ...]
    members: tuple[MemberView, ...]
    left_out: Mapping[str, str]
    nominal_kw: float
    refused: str | None
    node: NodeView
    live: LiveView | None
    changes: tuple[LoopChange, ...] = field(default=())


def loops_view(loops: Sequence[ClosedLoop]) -> list[LoopView]:
    """These loops as they stand at this moment, in their order; needs their nodes loaded.

    As many questions for many as for one. Without Redis they are shown all the same, without what is live.
    """
    if not loops:
        return []
    nodes = {loop.node_id for loop in loops}
    all_there = list(loops_of(nodes))
    found = memberships(all_there, node_devices(nodes))
    named = {loop.pk: tuple(row.device_id for row in loop.named.all()) for loop in all_there}
    changes = _changes([loop.pk for loop in loops])
    now = central_now()
    lives, presence = _live(loops, now=now)
    return [
        _view(
            loop,
            # (One that was deleted a moment ago has none.)
            members=found.get(loop.pk, Membership()),
            member_ids=named.get(loop.pk, ()),
            live=lives.get(loop.pk),
            presence=presence.get(loop.node_id),
            changes=tuple(changes[loop.pk]),
            now=now,
        )
        for loop in loops
    ]


def loop_node_says(loop: ClosedLoop) -> str | None:
    """Why a loop's node cannot use it, as it last reported; None where it can, or has not said."""
    refused = (loop.node.last_reported or {}).get("loops_refused", {})
    why = refused.get(loop.loop_tag)
    return None if why is None else str(why)


def _view(
    loop: ClosedLoop,
    *,
    members: Membership,
    member_ids: tuple[UUID, ...],
    live: LoopLive | None,
    presence: NodePresence | None,
    changes: tuple[LoopChange, ...],
    now: float,
) -> LoopView:
    values = live.members if live is not None else {}
    return LoopView(
        loop=loop,
        member_ids=member_ids,
        members=tuple(
            MemberView(
                device_id=device.pk,
                device_tag=device.device_tag,
                nominal_kw=device.peak_power_kw or 0.0,
                value=values.get(device.device_tag),
            )
            for device in members.members
        ),
        left_out=members.left_out,
        nominal_kw=members.nominal_kw,
        refused=loop_node_says(loop),
        node=_node(loop.node, presence, now=now),
        live=None if live is None else _live_view(live, now=now),
        changes=changes,
    )


def _node(node: Node, presence: NodePresence | None, *, now: float) -> NodeView:
    healthy = None if presence is None else presence.is_healthy(now=now)
    return NodeView(id=node.pk, name=node.name, online=node.online, healthy=healthy)


def _live_view(live: LoopLive, *, now: float) -> LiveView:
    return LiveView(
        stand=live.stand,
        since=live.since,
        setpoint_kw=live.setpoint_kw,
        measured_kw=live.measured_kw,
        output_kw=live.output_kw,
        load_kw=live.load_kw,
        bounded_by=live.bounded_by,
        reason=live.reason,
        # Clocks of two processes may differ by a little.
        age_s=round(max(0.0, now - live.at), 1),
    )


def _live(
    loops: Sequence[ClosedLoop], *, now: float
) -> tuple[dict[UUID, LoopLive], dict[UUID, NodePresence]]:
    try:
        return loops_live_read(loops, now=now), presence_read({loop.node_id for loop in loops})
    except LiveUnavailable as error:
        log.warning("loops_live_unavailable", error=error.detail)
        return {}, {}


def _changes(loop_ids: Sequence[UUID]) -> dict[UUID, list[LoopChange]]:
    """The newest changes of these loops, the newest first."""
    place = Window(RowNumber(), partition_by=F("loop"), order_by=F("id").desc())
    rows = LoopChange.objects.filter(loop__in=loop_ids).annotate(place=place)
    found: dict[UUID, list[LoopChange]] = defaultdict(list)
    for change in rows.filter(place__lte=CHANGES_SHOWN).order_by("-id"):
        found[change.loop_id].append(change)
    return found
