"""`manage.py run_inbox`: the long-running subscriber that feeds `control_app.inbox`."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar
from uuid import UUID

import structlog
from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import close_old_connections

from control_app import inbox
from control_app.node_logs import DATABASE_TROUBLE, ReceivedLog
from devices_app.telemetry import ReceivedReadings
from edge.wire import codec
from edge.wire.codec import WireError
from edge.wire.messages import Heartbeat, Presence, Reported, TelemetryBatch
from edge.wire.session import Incoming, Outgoing
from edge.wire.topics import (
    ALL_HEARTBEATS,
    ALL_LOGS,
    ALL_PRESENCE,
    ALL_REPORTED,
    ALL_TELEMETRY,
    NodeTopics,
    owner,
    shared,
)
from sites_app.node_link import BrokerConnection, LinkUnavailable, SendUnconfirmed, broker_for
from sites_app.presence import ReceivedHeartbeat, ReceivedPresence
from sites_app.reports import ReceivedReport
from sites_app.tenants import KnownTenants
from smartgrid.garbage import collector_settle
from smartgrid.live import LiveUnavailable

log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

# What is handled together: enough to share the cost of a transaction, little enough to be soon done.
BATCH = 500
# The first message of a batch waits so long for others: one by one they cost ten times the processor. A log
# waits for none, for its node sends no more before it is acknowledged.
GATHER_S = 0.2
# Messages that wait. Beyond the first, what is only worth its moment or comes again by itself is let go;
# beyond the second, all. A node sends its log until it is acknowledged, and reports once a minute.
BACKLOG = 20_000
BACKLOG_OF_ALL = 100_000
# A heartbeat that waited for longer brings a token that its node takes no longer (edge.wire, FRESH_WINDOW_S).
HEARTBEAT_WORTH_S = 15.0
# A process that stood still for longer does not know how old is what its socket holds.
STANDS_STILL_S = 5.0
# What the database did not take, and no node sends again, is tried again after this.
RETRY_S = 1.0

LIVE = ("hb", "presence", "reported", "tele")
LEAVES = (*LIVE, "log")


class Command(BaseCommand):
    help = "Take in what nodes send: presence, heartbeats, reports, logs and telemetry."

    def handle(self, *args: Any, **options: Any) -> None:
        Inbox().run()


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message, dated where it came in: by central's clock, in seconds, and by the monotonic one."""

    topic: str
    payload: bytes
    retain: bool
    at: float
    monotonic_s: float

    @classmethod
    def now(cls, message: Incoming) -> Arrived:
        return cls(message.topic, message.payload, message.retain, time.time(), time.monotonic())

    @property
    def received(self) -> datetime:
        return datetime.fromtimestamp(self.at, UTC)


@dataclass(frozen=True, slots=True)
class _Sorted:
    """A message whose sender is known."""

    topics: NodeTopics
    arrived: Arrived


class Inbox:
    """One inbox process: a session in a thread of its own, and the database here.

    Any number may run; the broker gives each message to one of them, where it can share subscriptions.
    """

    def __init__(self) -> None:
        self._waiting = _Waiting()
        self._held: list[Arrived] = []
        self._held_since = 0.0
        self._retry_at = 0.0
        self._answered_at = 0.0
        self._tenants = KnownTenants()
        self._database_failed_at: float | None = None
        everything = (ALL_PRESENCE, ALL_HEARTBEATS, ALL_REPORTED, ALL_LOGS, ALL_TELEMETRY)
        is_shared = settings.SGM_MQTT_SHARED_SUBSCRIPTIONS
        self._connection = BrokerConnection(
            broker_for(settings.SGM_MQTT_INBOX_USERNAME, settings.SGM_MQTT_INBOX_PASSWORD),
            identifier="inbox",
            subscriptions=tuple(shared(one, group=settings.SGM_MQTT_INBOX_GROUP) for one in everything)
            if is_shared
            else everything,
            # Whoever shares a subscription is not sent what the broker keeps.
            retained=(ALL_PRESENCE, ALL_REPORTED) if is_shared else (),
            on_message=lambda message: self._waiting.put(Arrived.now(message)),
            # A broker that kept the session of a dead inbox would go on giving it its share.
            session_expiry_s=0,
            stands_still_s=STANDS_STILL_S,
        )

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._waiting.end())
        self._connection.start()
        collector_settle()
        while (batch := self._waiting.take(within_s=RETRY_S if self._held else None)) is not None:
            self.take(batch)
        self._connection.stop()

    def take(self, batch: Sequence[Arrived]) -> None:
        """Handle these messages, each kind together, and what was held back when its time has come."""
        if self._held and time.monotonic() >= self._retry_at:
            batch, self._held = [*self._held, *batch], []
        kinds = self._sort(batch)
        # Sessions first, for what they say counts for what is said in them.
        self._handle("presence", kinds, _presence, inbox.on_presences)
        self._handle("hb", kinds, _heartbeat, inbox.on_heartbeats)
        self._handle("reported", kinds, _report, inbox.on_reports)
        self._handle("tele", kinds, _readings, inbox.on_telemetry)
        self._handle("log", kinds, _log_batch, self._take_logs)

    # --- whose they are ---------------------------------------------------------------------------------

    def _sort(self, batch: Iterable[Arrived]) -> dict[str, list[_Sorted]]:
        kinds: dict[str, list[_Sorted]] = defaultdict(list)
        now = time.monotonic()
        for arrived in batch:
            found = owner(arrived.topic)
            if found is None:
                continue
            topics, leaf = found
            if not _is_node_id(topics.node):
                log.warning("message_of_no_node", topic=arrived.topic)
            elif leaf not in LEAVES:
                log.warning("message_on_unknown_topic", topic=arrived.topic)
            elif leaf != "hb" or now - arrived.monotonic_s < HEARTBEAT_WORTH_S:
                kinds[leaf].append(_Sorted(topics, arrived))
        return kinds

    def _of_known_nodes(self, leaf: str, items: list[_Sorted]) -> list[_Sorted]:
        """Those whose topic names the tenant of their node: the broker's access list leaves that open."""
        try:
            self._tenants.load(item.topics.node for item in items)
        except DATABASE_TROUBLE as error:
            self._database_failed(leaf, items, error)
            return []
        return [item for item in items if self._tenants.is_right(item.topics)]

    # --- what they say ----------------------------------------------------------------------------------

    def _handle(
        self,
        leaf: str,
        kinds: dict[str, list[_Sorted]],
        read: Callable[[_Sorted], T],
        handle: Callable[[Sequence[T]], None],
    ) -> None:
        items = kinds.get(leaf)
        if not items:
            return
        readable: list[tuple[_Sorted, T]] = []
        for item in self._of_known_nodes(leaf, items):
            try:
                readable.append((item, read(item)))
            except WireError as error:
                log.error("message_not_understood", topic=item.arrived.topic, error=str(error))  # noqa: TRY400
        self._handle_all(leaf, readable, handle)

    def _handle_all(
        self, leaf: str, items: list[tuple[_Sorted, T]], handle: Callable[[Sequence[T]], None]
    ) -> None:
        if not items:
            return
        try:
            handle([said for _, said in items])
        except LiveUnavailable as error:
            log.warning("messages_lost", kind=leaf, count=len(items), error=error.detail)
        except DATABASE_TROUBLE as error:
            if self._is_one_of_these_to_blame(items):
                self._handle_halves(leaf, items, handle, error)
            else:
                self._database_failed(leaf, [item for item, _ in items], error)
        except Exception as error:  # noqa: BLE001 - the top of this process: one odd message must not end it
            self._handle_halves(leaf, items, handle, error)
        else:
            self._database_answered()

    def _handle_halves(
        self,
        leaf: str,
        items: list[tuple[_Sorted, T]],
        handle: Callable[[Sequence[T]], None],
        error: Exception,
    ) -> None:
        """Find the one which cannot be handled, so that it costs its neighbours nothing."""
        if len(items) == 1:
            log.error("message_failed", topic=items[0][0].arrived.topic, exc_info=error)
            return
        middle = len(items) // 2
        self._handle_all(leaf, items[:middle], handle)
        self._handle_all(leaf, items[middle:], handle)

    def _take_logs(self, received: Sequence[ReceivedLog]) -> None:
        acknowledgements = inbox.on_logs(received)
        messages = [
            Outgoing(topic=topics.log_ack, payload=codec.encode(ack)) for topics, ack in acknowledgements
        ]
        try:
            self._connection.publish_all(messages)
        except (LinkUnavailable, SendUnconfirmed) as error:
            # The nodes send their batches again, which will be found to be there.
            log.warning("logs_not_acknowledged", count=len(messages), error=error.detail)

    # --- while the database is away ---------------------------------------------------------------------

    def _database_failed(self, leaf: str, items: list[_Sorted], error: Exception) -> None:
        """Keep what no node sends again; a log batch is not acknowledged, and comes again."""
        close_old_connections()
        now = time.monotonic()
        if not self._held:
            self._held_since = now
        if self._database_failed_at is None:
            self._database_failed_at = now
            log.error("database_unavailable", error=str(error))
        if leaf in {"presence", "reported", "tele"}:
            kept = [item.arrived for item in items][: max(0, BACKLOG - len(self._held))]
            self._held += kept
            self._retry_at = now + RETRY_S
            if len(kept) < len(items):
                self._waiting.count_dropped(len(items) - len(kept))

    def _is_one_of_these_to_blame(self, items: list[tuple[_Sorted, T]]) -> bool:
        """Tell whether the database took other messages since it refused one of these."""
        return any(item.arrived.monotonic_s < self._held_since < self._answered_at for item, _ in items)

    def _database_answered(self) -> None:
        self._answered_at = time.monotonic()
        if self._database_failed_at is not None:
            gone_s = time.monotonic() - self._database_failed_at
            self._database_failed_at = None
            log.warning("database_is_back", after_s=round(gone_s, 1))


class _Waiting:
    """Messages on their way from the session's thread to the main one, and how many there was no room for."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Arrived | None] = queue.SimpleQueue()
        self._hurry = threading.Event()
        self._counting = threading.Lock()
        self._dropped = 0

    def put(self, arrived: Arrived) -> None:
        waiting = self._messages.qsize()
        if waiting >= BACKLOG and (
            waiting >= BACKLOG_OF_ALL or arrived.topic.endswith(("/hb", "/tele", "/log"))
        ):
            self.count_dropped(1)
            return
        self._messages.put(arrived)
        if arrived.topic.endswith("/log"):
            self._hurry.set()

    def count_dropped(self, count: int) -> None:
        with self._counting:
            if not self._dropped:
                log.error("inbox_overloaded", waiting=self._messages.qsize())
            self._dropped += count

    def _tell_dropped(self) -> None:
        with self._counting:
            if self._dropped:
                log.error("inbox_no_longer_overloaded", dropped=self._dropped)
                self._dropped = 0

    def end(self) -> None:
        """Let what has arrived be the last. Called by a signal: of locks, only a SimpleQueue may be taken."""
        self._messages.put(None)

    def take(self, *, within_s: float | None) -> list[Arrived] | None:
        """What is there, waiting for it at most `within_s`; None at the end."""
        batch: list[Arrived] = []
        try:
            message = self._messages.get(timeout=within_s)
            if self._messages.qsize() < BATCH:
                self._hurry.wait(GATHER_S)
            self._hurry.clear()
            while message is not None:
                batch.append(message)
                if len(batch) == BATCH:
                    return batch
                message = self._messages.get_nowait()
        except queue.Empty:
            self._tell_dropped()
            return batch
        if batch:
            # Once more, for the end.
            self._messages.put(None)
            return batch
        return None


@lru_cache(maxsize=65_536)
def _is_node_id(level: str) -> bool:
    """Tell whether this is a UUID in the one spelling that nodes are addressed by."""
    try:
        return str(UUID(level)) == level
    except ValueError:
        return False


def _presence(item: _Sorted) -> ReceivedPresence:
    presence = codec.decode(Presence, item.arrived.payload)
    return ReceivedPresence(item.topics.node, presence, item.arrived.retain, item.arrived.at)


def _heartbeat(item: _Sorted) -> ReceivedHeartbeat:
    return ReceivedHeartbeat(item.topics.node, codec.decode(Heartbeat, item.arrived.payload), item.arrived.at)


def _report(item: _Sorted) -> ReceivedReport:
    reported = codec.decode(Reported, item.arrived.payload)
    return ReceivedReport(item.topics.node, reported, item.arrived.received, item.arrived.retain)


def _readings(item: _Sorted) -> ReceivedReadings:
    batch = codec.decode(TelemetryBatch, item.arrived.payload)
    return ReceivedReadings(item.topics.node, batch.points, item.arrived.received)


def _log_batch(item: _Sorted) -> ReceivedLog:
    return ReceivedLog(item.topics.node, codec.decode_log(item.arrived.payload), item.arrived.received)
