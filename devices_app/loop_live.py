"""How closed loops stand, as heartbeats tell: live values in Redis, changes of stand in the database.

A node says it every five seconds, so most of what comes changes nothing and costs one round trip to Redis for
all nodes of a batch. Only loops that stand otherwise than was written down last reach the database, where the
same change is kept once, however often and however late it is told.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import structlog
from django.db import transaction
from django.db.models import F, Window
from django.db.models.functions import RowNumber
from django.utils import timezone

from devices_app.choices import LoopStand
from devices_app.models import ClosedLoop, LoopChange
from edge.wire.messages import LoopStatus
from edge.wire.moments import parse_at
from sites_app.presence import FORGET_AFTER_S, ReceivedHeartbeat
from smartgrid import live
from smartgrid.api.fields import number, timestamp
from smartgrid.events import Event, Kind, events_publish

log = structlog.stdlib.get_logger(__name__)

# What was told longer ago is not shown as how a loop stands.
CURRENT_FOR_S = 30.0
# As many changes of each loop are kept.
CHANGES_KEPT = 200
# A node that tells of more loops at once is itself what to look at.
PER_NODE = 100
_REASON_LENGTH = 500
_BOUNDED_BY_LENGTH = 200

# As with signs of life (`sites_app.presence`): what is older must not replace what is newer, and a session
# that another has followed never comes back. `sign` names the stands of this heartbeat, `told` those that are
# written down: whatever differs from it is returned, also of a heartbeat that was overtaken.
_NOTE = """
local changed = {}
for i, key in ipairs(KEYS) do
  local session, seq, at = ARGV[5 * i - 3], ARGV[5 * i - 2], ARGV[5 * i - 1]
  local sign, body = ARGV[5 * i], ARGV[5 * i + 1]
  local known = redis.call('HMGET', key, 'session', 'was', 'seq', 'told')
  local is_new = session ~= known[1]
  if session ~= known[2] and (is_new or tonumber(seq) > tonumber(known[3] or 0)) then
    if is_new and known[1] then redis.call('HSET', key, 'was', known[1]) end
    redis.call('HSET', key, 'session', session, 'seq', seq, 'at', at, 'sign', sign, 'body', body)
    redis.call('EXPIRE', key, ARGV[1])
  end
  if sign ~= known[4] then changed[#changed + 1] = i end
end
return changed
"""
_TOLD = """
for i, key in ipairs(KEYS) do
  if redis.call('HGET', key, 'sign') == ARGV[i] then redis.call('HSET', key, 'told', ARGV[i]) end
end
return {}
"""
# What is newest of a node's loops.
_FIELDS = ("at", "body")


def loops_key(node_id: UUID | str) -> str:
    """The Redis hash of how a node's loops stand."""
    return f"sgm:loops:{node_id}"


@dataclass(frozen=True, slots=True)
class LoopLive:
    """How a loop stands, as its node told at `at` of central's clock (s). Power in kW, towards the grid.

    `members`: the values it wants of each, in percent of nominal power.
    """

    stand: str
    since: datetime
    setpoint_kw: float | None
    measured_kw: float | None
    output_kw: float | None
    load_kw: float | None
    bounded_by: str
    reason: str
    members: dict[str, float]
    at: float


@dataclass(frozen=True, slots=True)
class _Told:
    """A loop's status in a heartbeat, as far as it can be understood."""

    loop_id: UUID
    live: LoopLive

    @property
    def sign(self) -> str:
        return f"{self.loop_id} {self.live.since.isoformat()} {self.live.stand}"


def loops_live_follow(received: Sequence[ReceivedHeartbeat]) -> int:
    """Take what heartbeats tell of loops; how many changes of stand were new.

    Late and repeated heartbeats do no harm, and what a node tells of loops that are not its own is passed
    over. Where the database fails, the next heartbeat tries again.
    """
    told = [(item, _understood(item)) for item in received if item.beat.loops]
    told = [(item, loops) for item, loops in told if loops]
    if not told:
        return 0
    keys = [loops_key(item.node_id) for item, _ in told]
    signs = [_sign(loops) for _, loops in told]
    args = [str(FORGET_AFTER_S)]
    for (item, loops), sign in zip(told, signs, strict=True):
        body = msgspec.json.encode({str(one.loop_id): one.live for one in loops}).decode()
        args += (item.beat.session, str(item.beat.seq), f"{item.at:.3f}", sign, body)
    changed = [int(place) - 1 for place in live.script_run(_NOTE, keys=keys, args=args)]
    if not changed:
        return 0
    new = loop_changes_record(
        (UUID(told[place][0].node_id), one.loop_id, one.live) for place in changed for one in told[place][1]
    )
    live.script_run(_TOLD, keys=[keys[place] for place in changed], args=[signs[place] for place in changed])
    return new


def loop_changes_record(told: Iterable[tuple[UUID, UUID, LoopLive]]) -> int:
    """Write down how loops of these nodes (node, loop) came to stand, where it is not; how many were new."""
    said = list(told)
    with transaction.atomic():
        # Held, so that none is deleted before its changes are stored.
        rows = ClosedLoop.objects.filter(pk__in={loop_id for _, loop_id, _ in said}).order_by("pk")
        loops = {loop.pk: loop for loop in rows.select_for_update(no_key=True)}
        wanted = {
            (loop_id, found.since, found.stand): found
            for node_id, loop_id, found in said
            if loop_id in loops and loops[loop_id].node_id == node_id
        }
        if not wanted:
            return 0
        there = LoopChange.objects.filter(
            loop__in={loop_id for loop_id, _, _ in wanted}, since__in={since for _, since, _ in wanted}
        )
        known = set(there.values_list("loop_id", "since", "stand"))
        fresh = [
            LoopChange(
                loop=loops[loop_id],
                since=since,
                stand=stand,
                reason=found.reason,
                bounded_by=found.bounded_by,
                setpoint_kw=found.setpoint_kw,
                measured_kw=found.measured_kw,
                output_kw=found.output_kw,
                received_at=timezone.now(),
            )
            for (loop_id, since, stand), found in wanted.items()
            if (loop_id, since, stand) not in known
        ]
        if fresh:
            LoopChange.objects.bulk_create(fresh, ignore_conflicts=True)
            _changes_trim({change.loop_id for change in fresh})
            _publish(fresh)
    return len(fresh)


def loops_live_read(loops: Iterable[ClosedLoop], *, now: float) -> dict[UUID, LoopLive]:
    """How these loops stand at this moment of central's clock; what is not known or too old is left out.

    `LiveUnavailable` where Redis does not answer.
    """
    by_node: dict[UUID, list[UUID]] = defaultdict(list)
    for loop in loops:
        by_node[loop.node_id].append(loop.pk)
    if not by_node:
        return {}
    found: dict[UUID, LoopLive] = {}
    stored = live.hashes_fields([loops_key(node_id) for node_id in by_node], fields=_FIELDS)
    for wanted, (at, body) in zip(by_node.values(), stored, strict=True):
        # Either way: a clock that was set back must not make the past current.
        if not body or abs(now - float(at)) > CURRENT_FOR_S:
            continue
        of_node = msgspec.json.decode(body, type=dict[str, LoopLive])
        found |= {key: of_node[str(key)] for key in wanted if str(key) in of_node}
    return found


# --- what nodes say -----------------------------------------------------------------------------------------


def _understood(item: ReceivedHeartbeat) -> list[_Told]:
    """What can be understood of what a heartbeat says of loops, each of them once."""
    statuses = item.beat.loops
    if len(statuses) > PER_NODE:
        log.error("node_loops_too_many", node=item.node_id, loops=len(statuses), kept=PER_NODE)
    found: dict[UUID, _Told] = {}
    for status in statuses[:PER_NODE]:
        try:
            one = _told(status, at=item.at)
        except ValueError as error:
            log.warning("loop_status_not_understood", node=item.node_id, loop=status.tag, error=str(error))
        else:
            found[one.loop_id] = one
    return list(found.values())


def _told(status: LoopStatus, *, at: float) -> _Told:
    """`ValueError` for a stand or a moment that is none."""
    return _Told(
        loop_id=UUID(status.id),
        live=LoopLive(
            stand=LoopStand(status.stand).value,
            since=parse_at(status.since, now=timezone.now()),
            setpoint_kw=_finite(status.setpoint_kw),
            measured_kw=_finite(status.measured_kw),
            output_kw=_finite(status.output_kw),
            load_kw=_finite(status.load_kw),
            bounded_by=_fit(status.bounded_by, _BOUNDED_BY_LENGTH),
            reason=_fit(status.reason, _REASON_LENGTH),
            members={tag: value for tag, value in status.members.items() if math.isfinite(value)},
            at=at,
        ),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _fit(text: str, length: int) -> str:
    """As the database can keep it: PostgreSQL takes no NUL."""
    return text.replace("\x00", "")[:length]


def _sign(loops: Sequence[_Told]) -> str:
    text = "\n".join(sorted(one.sign for one in loops))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- what becomes of a change -------------------------------------------------------------------------------


def _changes_trim(loop_ids: Iterable[UUID]) -> None:
    ranked = LoopChange.objects.filter(loop__in=list(loop_ids)).annotate(
        place=Window(RowNumber(), partition_by=F("loop"), order_by=F("id").desc())
    )
    old = list(ranked.filter(place__gt=CHANGES_KEPT).values_list("pk", flat=True))
    if old:
        LoopChange.objects.filter(pk__in=old).delete()


def _publish(changes: Iterable[LoopChange]) -> None:
    """Tell listeners once it is committed."""
    events_publish(Event(Kind.LOOP, change.loop.site_id, _body(change)) for change in changes)


def _body(change: LoopChange) -> dict[str, Any]:
    return {
        "id": change.loop_id,
        "loop_tag": change.loop.loop_tag,
        "site_id": change.loop.site_id,
        "node_id": change.loop.node_id,
        "stand": change.stand,
        "since": timestamp(change.since),
        "setpoint_kw": _number(change.setpoint_kw),
        "measured_kw": _number(change.measured_kw),
        "output_kw": _number(change.output_kw),
        "bounded_by": change.bounded_by,
        "reason": change.reason,
        "at": timestamp(change.received_at),
    }


def _number(value: float | None) -> float | None:
    return None if value is None else number(value)
