"""What is known right now of each node: kept in Redis, dated by central's own clock.

A node is *reachable* while its broker presence is that of the current session and its last heartbeat is
younger than 15 s. The newest freshness token lies beside it, dated by its receipt here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
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


def node_key(node_id: UUID | str) -> str:
    """The Redis hash of a node: session, boot, hb_at, fresh, fresh_at, offline_*, and its last pong."""
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


def presence_read(node_ids: Iterable[UUID]) -> dict[UUID, NodePresence]:
    """All of these in one round trip; `LiveUnavailable` where Redis does not answer."""
    wanted = list(node_ids)
    found = live.hashes_read([node_key(node_id) for node_id in wanted])
    return {node_id: _presence(fields) for node_id, fields in zip(wanted, found, strict=True)}


def _presence(fields: dict[str, str]) -> NodePresence:
    return NodePresence(
        session=fields.get("session", ""),
        hb_at=float(fields.get("hb_at", 0)),
        fresh=fields.get("fresh", ""),
        fresh_at=float(fields.get("fresh_at", 0)),
        offline_session=fields.get("offline_session", ""),
        offline_at=float(fields.get("offline_at", 0)),
        ping=fields.get("ping", ""),
        pong_wall=fields.get("pong_wall", ""),
        pong_at=float(fields.get("pong_at", 0)),
    )


def central_now() -> float:
    """Central's clock, in seconds: the one moments in Redis are dated by."""
    return time.time()


def heartbeat_note(node_id: str, beat: Heartbeat, *, at: float) -> None:
    """Keep a sign of life and its token, as of this moment of central's clock."""
    now = f"{at:.3f}"
    fields = {"session": beat.session, "hb_at": now, "fresh": beat.fresh, "fresh_at": now}
    live.hash_write(node_key(node_id), fields, expires_s=FORGET_AFTER_S)


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
    now = f"{at:.3f}"
    if not presence.online:
        fields = {"offline_session": presence.session, "offline_at": now}
    elif retained:
        return
    else:
        fields = {"session": presence.session, "boot": presence.boot, "hb_at": now}
        if presence.fresh is not None:
            fields |= {"fresh": presence.fresh, "fresh_at": now}
    live.hash_write(node_key(node_id), fields, expires_s=FORGET_AFTER_S)
