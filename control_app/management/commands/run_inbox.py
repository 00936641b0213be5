"""`manage.py run_inbox`: the long-running subscriber that feeds `control_app.inbox`."""

from __future__ import annotations

import queue
import signal
import threading
from typing import Any
from uuid import UUID

import structlog
from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import DatabaseError, close_old_connections
from django.utils import timezone

from control_app import inbox
from edge.wire import codec
from edge.wire.codec import WireError
from edge.wire.messages import Heartbeat, LogBatch, Presence, Reported, TelemetryBatch
from edge.wire.session import Incoming
from edge.wire.topics import (
    ALL_HEARTBEATS,
    ALL_LOGS,
    ALL_PRESENCE,
    ALL_REPORTED,
    ALL_TELEMETRY,
    NodeTopics,
    owner,
)
from sites_app.node_link import BrokerConnection, LinkUnavailable, SendUnconfirmed, broker_for
from sites_app.reports import ReceivedReport
from smartgrid.live import LiveUnavailable

log = structlog.stdlib.get_logger(__name__)

# Heartbeats and telemetry are only worth their moment: beyond this many waiting messages they are let go.
BACKLOG = 20_000


class Command(BaseCommand):
    help = "Take in what nodes send: presence, heartbeats, reports, logs and telemetry."

    def handle(self, *args: Any, **options: Any) -> None:
        Inbox().run()


class Inbox:
    """One inbox process: a session in a thread of its own, and the database here."""

    def __init__(self) -> None:
        self._arrived: queue.SimpleQueue[Incoming | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._connection = BrokerConnection(
            broker_for(settings.SGM_MQTT_INBOX_USERNAME, settings.SGM_MQTT_INBOX_PASSWORD),
            identifier="inbox",
            subscriptions=(ALL_PRESENCE, ALL_HEARTBEATS, ALL_REPORTED, ALL_LOGS, ALL_TELEMETRY),
            on_message=self._arrived.put,
        )

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._arrived.put(None))
        self._connection.start()
        while (message := self._arrived.get()) is not None:
            self._handle(message)
        self._connection.stop()

    def _handle(self, message: Incoming) -> None:
        found = owner(message.topic)
        if found is None:
            return
        topics, leaf = found
        if not _is_node_id(topics.node):
            log.warning("message_of_no_node", topic=message.topic)
            return
        if leaf in {"hb", "tele"} and self._arrived.qsize() > BACKLOG:
            return
        try:
            self._take(topics, leaf, message)
        except WireError as error:
            log.error("message_not_understood", topic=message.topic, error=str(error))  # noqa: TRY400
        except LiveUnavailable as error:
            log.warning("message_lost", topic=message.topic, error=error.detail)
        except DatabaseError as error:
            # Not acknowledged, so a log batch comes again; a report comes again by itself.
            log.error("database_unavailable", topic=message.topic, error=str(error))  # noqa: TRY400
            close_old_connections()
        except Exception:  # the top of this process: one odd message must not end it
            log.exception("message_failed", topic=message.topic)

    def _take(self, topics: NodeTopics, leaf: str, message: Incoming) -> None:
        node_id, payload = topics.node, message.payload
        match leaf:
            case "hb":
                inbox.on_heartbeat(node_id, codec.decode(Heartbeat, payload))
            case "presence":
                inbox.on_presence(node_id, codec.decode(Presence, payload), retained=message.retain)
            case "reported":
                reported = codec.decode(Reported, payload)
                inbox.on_reports([ReceivedReport(node_id, reported, timezone.now(), message.retain)])
            case "tele":
                inbox.on_telemetry(node_id, codec.decode(TelemetryBatch, payload), received=timezone.now())
            case "log":
                self._acknowledge(topics, inbox.on_log(node_id, codec.decode(LogBatch, payload)))
            case _:
                log.warning("message_on_unknown_topic", topic=message.topic)

    def _acknowledge(self, topics: NodeTopics, ack: Any) -> None:
        if ack is None:
            return
        try:
            self._connection.publish(topics.log_ack, codec.encode(ack))
        except (LinkUnavailable, SendUnconfirmed) as error:
            # The node sends the batch again, and it will be found to be there.
            log.warning("log_not_acknowledged", node=topics.node, error=error.detail)


def _is_node_id(level: str) -> bool:
    """Tell whether this is a UUID in the one spelling that nodes are addressed by."""
    try:
        return str(UUID(level)) == level
    except ValueError:
        return False
