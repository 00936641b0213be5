"""What is known right now of each node: kept in Redis, dated by central's own clock.

A node is *reachable* while its broker presence is that of the current session and its last heartbeat is
younger than 15 s. The newest freshness token lies beside it, dated by its receipt here.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from edge.wire.messages import Heartbeat, PingClosing, Presence
from smartgrid import live

HEARTBEAT_LIMIT_S = 15.0
# A node whose last answered ping is older than this may be heard and not hear us.
PONG_LIMIT_S = 120.0
# An offline will counts only after this long without a newer session, whatever the broker does.
WILL_COUNTS_AFTER_S = 10.0
# Longer than any promise made on it.
FORGET_AFTER_S = 7 * 24 * 3600


# Two inboxes take a node's messages, and either may be slow: what is older must not replace what is newer.
# Sessions have no order of their own, but none ever comes back, so it is enough to know the one before.
#
# Both scripts take for each key as many arguments, behind the first, which is how long to keep it. `was` is
# the session before the present one, `seq` the number of its newest heartbeat.
_HEARTBEATS = """
local births = {}
for i, key in ipairs(KEYS) do
  local session, seq, fresh, at = ARGV[4 * i - 2], ARGV[4 * i - 1], ARGV[4 * i], ARGV[4 * i + 1]
  local known = redis.call('HMGET', key, 'session', 'was', 'seq')
  local is_birth = session ~= known[1]
  if session ~= known[2] and (is_birth or tonumber(seq) > tonumber(known[3] or 0)) then
    redis.call('HSET', key, 'session', session, 'seq', seq, 'hb_at', at, 'fresh', fresh, 'fresh_at', at)
    if is_birth then
      if known[1] then redis.call('HSET', key, 'was', known[1]) end
      births[#births + 1] = i
    end
    redis.call('EXPIRE', key, ARGV[1])
  end
end
return births
"""
# A birth that comes behind a heartbeat of its session has nothing new to tell but the boot.
_PRESENCES = """
local taken = {}
for i, key in ipairs(KEYS) do
  local kind, session, boot = ARGV[5 * i - 3], ARGV[5 * i - 2], ARGV[5 * i - 1]
  local fresh, at = ARGV[5 * i], ARGV[5 * i + 1]
  local known = redis.call('HMGET', key, 'session', 'was', 'offline_session')
  if session ~= known[2] and (kind == 'offline' or session ~= known[3]) then
    taken[#taken + 1] = i
    if kind == 'offline' then
      redis.call('HSET', key, 'offline_session', session, 'offline_at', at)
    elseif kind == 'birth' and session == known[1] then
      redis.call('HSET', key, 'boot', boot)
    elseif kind == 'birth' then
      redis.call('HSET', key, 'session', session, 'boot', boot, 'hb_at', at)
      redis.call('HDEL', key, 'seq')
      if fresh ~= '' then redis.call('HSET', key, 'fresh', fresh, 'fresh_at', at) end
      if known[1] then redis.call('HSET', key, 'was', known[1]) end
    end
    if kind ~= 'retained' then redis.call('EXPIRE', key, ARGV[1]) end
  end
end
return taken
"""


@dataclass(frozen=True, slots=True)
class ReceivedHeartbeat:
    """A heartbeat of this node; `at`: when it arrived, in seconds of central's clock."""

    node_id: str
    beat: Heartbeat
    at: float


@dataclass(frozen=True, slots=True)
class ReceivedPresence:
    """A birth or a will of this node; `at`: when it arrived, in seconds of central's clock."""

    node_id: str
    presence: Presence
    retained: bool
    at: float


def node_key(node_id: UUID | str) -> str:
    """The Redis hash of a node: session (and the one before), boot, seq, hb_at, fresh, fresh_at, offline_*,
    and its last pong.
    """
    return f"sgm:node:{node_id}"


@dataclass(frozen=True, slots=True)
class NodePresence:
    """A node as last heard. Moments are seconds of central's clock; 0 where never."""

    session: str = ""
    hb_at: float = 0.0
    fresh: str = ""
    fresh_at: float = 0.0
    offline_session: str = ""
    offline_at: float = 0.0
    ping: str = ""
    pong_wall: str = ""
    pong_at: float = 0.0

    @property
    def closing(self) -> PingClosing | None:
        """What ends the last exchange of timestamps with this node; None where there was none."""
        return PingClosing(id=self.ping, heard_wall=self.pong_wall) if self.ping else None

    def is_healthy(self, *, now: float) -> bool:
        """Reachable, and it has answered a ping of the last two minutes."""
        return self.is_reachable(now=now) and now - self.pong_at < PONG_LIMIT_S

    def is_reachable(self, *, now: float) -> bool:
        if not self.session or now - self.hb_at >= HEARTBEAT_LIMIT_S:
            return False
        return self.offline_session != self.session or now - self.offline_at < WILL_COUNTS_AFTER_S

    def is_heard(self, *, now: float) -> bool:
        """Reachable, and no will of this session has come, counted yet or not."""
        return self.is_reachable(now=now) and self.offline_session != self.session

    def why_not(self, *, now: float) -> str:
        """Why it is not reachable, for a person."""
        if not self.hb_at:
            return "the node has never been heard of"
        return f"last heard {now - self.hb_at:.0f} s ago; see the site health report"


_FIELDS = tuple(field.name for field in dataclasses.fields(NodePresence))


def presence_read(node_ids: Iterable[UUID]) -> dict[UUID, NodePresence]:
    """What is known of all of these; `LiveUnavailable` where Redis does not answer."""
    wanted = list(node_ids)
    found = live.hashes_fields([node_key(node_id) for node_id in wanted], fields=_FIELDS)
    return {node_id: _presence(values) for node_id, values in zip(wanted, found, strict=True)}


def _presence(values: Sequence[str]) -> NodePresence:
    given = dict(zip(_FIELDS, values, strict=True))
    return NodePresence(
        session=given["session"],
        hb_at=float(given["hb_at"] or 0),
        fresh=given["fresh"],
        fresh_at=float(given["fresh_at"] or 0),
        offline_session=given["offline_session"],
        offline_at=float(given["offline_at"] or 0),
        ping=given["ping"],
        pong_wall=given["pong_wall"],
        pong_at=float(given["pong_at"] or 0),
    )


def central_now() -> float:
    """Central's clock, in seconds: the one moments in Redis are dated by."""
    return time.time()


def heartbeat_note(node_id: str, beat: Heartbeat, *, at: float) -> None:
    """Keep a sign of life and its token, as of this moment of central's clock."""
    heartbeats_note([ReceivedHeartbeat(node_id=node_id, beat=beat, at=at)])


def heartbeats_note(received: Sequence[ReceivedHeartbeat]) -> list[ReceivedHeartbeat]:
    """Keep signs of life and their tokens, in one round trip; those that began a session nobody knew of.

    One that was overtaken, by a newer one of its session or by another session, changes nothing, by
    whichever inbox and however late it comes.
    """
    if not received:
        return []
    args = [str(FORGET_AFTER_S)]
    for item in received:
        beat = item.beat
        args += (beat.session, str(beat.seq), beat.fresh, f"{item.at:.3f}")
    keys = [node_key(item.node_id) for item in received]
    births = live.script_run(_HEARTBEATS, keys=keys, args=args)
    return [received[int(number) - 1] for number in births]


def pong_note(node_id: str, ping_id: str, *, heard: datetime) -> None:
    """A ping was answered, and the answer arrived here at this moment. The next ping tells the node of it."""
    pongs_note({node_id: (ping_id, heard)})


def pongs_note(pongs: Mapping[str, tuple[str, datetime]]) -> None:
    """The same of many at once: node -> the ping it answered, and when the answer arrived."""
    hashes = {
        node_key(node_id): {
            "ping": ping_id,
            "pong_wall": heard.isoformat(),
            "pong_at": f"{heard.timestamp():.3f}",
        }
        for node_id, (ping_id, heard) in pongs.items()
    }
    live.hashes_write(hashes, expires_s=FORGET_AFTER_S)


def presence_note(node_id: str, presence: Presence, *, retained: bool, at: float) -> None:
    """A birth or a will. A retained one tells nothing about now: its token is not taken."""
    presences_note([ReceivedPresence(node_id=node_id, presence=presence, retained=retained, at=at)])


def presences_note(received: Sequence[ReceivedPresence]) -> list[ReceivedPresence]:
    """Keep births and wills, in one round trip; those that were not overtaken.

    A session that ended, or that another has followed, has nothing to tell any longer.
    """
    if not received:
        return []
    args = [str(FORGET_AFTER_S)]
    for item in received:
        said = item.presence
        kind = ("retained" if item.retained else "birth") if said.online else "offline"
        args += (kind, said.session, said.boot, said.fresh or "", f"{item.at:.3f}")
    keys = [node_key(item.node_id) for item in received]
    taken = live.script_run(_PRESENCES, keys=keys, args=args)
    return [received[int(number) - 1] for number in taken]
