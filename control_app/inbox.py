"""One function per message that nodes send unasked, each a single service call.

The broker's access list makes the topic name the sender: a node can publish below its own branch only, so the
node of the topic is who speaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import msgspec
import structlog
from django.db import transaction

from control_app.node_logs import ReceivedLog, logs_record
from control_app.services import (
    command_resolve,
    commands_undelivered,
)
from devices_app.models import Device
from devices_app.retirement import retired_record
from edge.wire.messages import (
    LogAck,
    Presence,
    Reported,
    TelemetryPoint,
)
from edge.wire.topics import NodeTopics
from sites_app.documents import manifest_for, publish_on_commit
from sites_app.models import Node
from sites_app.presence import ReceivedHeartbeat, ReceivedPresence, heartbeats_note, presences_note
from sites_app.selectors import metrics_key
from sites_app.services import PresenceChange, node_reported_record, nodes_presence_record
from smartgrid import live
from smartgrid.live import LiveUnavailable

log = structlog.stdlib.get_logger(__name__)

# A command whose deadline is this long past can no longer be accepted: the freshness window is over too.
ACCEPTANCE_OVER_S = 10.0
METRICS_KEPT_S = 3600


@dataclass(frozen=True, slots=True)
class ReceivedReport:
    node_id: str
    reported: Reported
    received: datetime
    retained: bool


@dataclass(frozen=True, slots=True)
class ReceivedReadings:
    node_id: str
    points: Sequence[TelemetryPoint]
    received: datetime


def on_heartbeats(received: Sequence[ReceivedHeartbeat]) -> None:
    """Signs of life. One of a session that nobody knew of is as good as the birth that got lost."""
    births = heartbeats_note(received)
    nodes_presence_record(
        [
            PresenceChange(node_id=UUID(birth.node_id), online=True, session=birth.beat.session)
            for birth in births
        ]
    )


def on_presences(received: Sequence[ReceivedPresence]) -> None:
    """Births and wills. A retained one tells of a transition too: it came while no inbox was listening."""
    try:
        taken = presences_note(received)
    except LiveUnavailable as error:
        # Whether they were overtaken cannot be told then; the heartbeats will tell.
        log.warning("presence_not_kept", count=len(received), error=error.detail)
        taken = list(received)
    nodes_presence_record(
        [
            PresenceChange(
                node_id=UUID(item.node_id),
                online=item.presence.online,
                session=item.presence.session,
                boot=item.presence.boot,
            )
            for item in taken
        ]
    )


def on_reports(received: Sequence[ReceivedReport]) -> None:
    """What nodes run: kept, compared with what they should run, and used to settle what was unknown."""
    # The first report of a session says as much as its birth, which may have been lost with another inbox.
    on_presences(
        [
            ReceivedPresence(
                item.node_id,
                Presence(online=True, session=item.reported.session, boot=item.reported.boot),
                retained=False,
                at=item.received.timestamp(),
            )
            for item in received
            if not item.retained
        ]
    )
    for report in received:
        _on_reported(report.node_id, report.reported, received=report.received, retained=report.retained)


def _on_reported(node_id: str, reported: Reported, *, received: datetime, retained: bool) -> None:
    """What the node runs: kept, compared with what it should run, and used to settle what was unknown.

    A retained report is as old as its sender's last change, which may be from before a command it did accept:
    it settles nothing. It may show a device to be retired, though, which that device then stays.
    """
    node = Node.objects.filter(pk=node_id).first()
    if node is None:
        return
    node_reported_record(node=node, reported=msgspec.to_builtins(reported), at=received)
    retired_record(node=node, reported=reported)
    _publish_what_is_missing(node, reported)
    if retained:
        return
    before = received - timedelta(seconds=ACCEPTANCE_OVER_S)
    for command in commands_undelivered(node=node, sequences=reported.sequences, before=before):
        with transaction.atomic():
            if command_resolve(command=command, devices=None):
                log.info("command_not_delivered", node=node.name, command=str(command.id))


def _publish_what_is_missing(node: Node, reported: Reported) -> None:
    """A broker that lost its retained messages, or a node that lost its disk: publish anew."""
    manifest = manifest_for(node)
    if (reported.epoch, reported.manifest_version) == (manifest.epoch, manifest.version):
        has = {name: doc.v for name, doc in reported.documents.items()}
        missing = [name for name, entry in manifest.docs.items() if has.get(name) != entry.v]
        if not missing:
            return
    publish_on_commit(node=node, names=None)


def on_logs(received: Sequence[ReceivedLog]) -> list[tuple[NodeTopics, LogAck]]:
    """What nodes kept until it is acknowledged: taken exactly once; the acknowledgements to send now."""
    return logs_record(received)


def on_telemetry(received: Sequence[ReceivedReadings]) -> None:
    for item in received:
        _on_telemetry(item.node_id, item.points, received=item.received)


def _on_telemetry(node_id: str, points: Sequence[TelemetryPoint], *, received: datetime) -> None:
    """Keep the site's actual power: its meter at the point of connection, else the sum of its devices."""
    node = Node.objects.filter(pk=node_id).only("site_id").first()
    if node is None:
        return
    categories = dict(Device.objects.filter(node=node).values_list("device_tag", "category"))
    stamp = received.isoformat()
    power = {
        point.device: point.value for point in points if point.key == "P_kW" and point.device in categories
    }
    metrics: dict[str, float] = {}
    meters = [value for tag, value in power.items() if categories[tag] == "meter"]
    if meters:
        metrics["P_Actual_kW"] = sum(meters)
    elif power:
        metrics["P_Actual_kW"] = sum(power.values())
    for point in points:
        if point.key == "V_Wind_m/s":
            metrics[point.key] = point.value
    if metrics:
        fields = {
            key: msgspec.json.encode({"value": round(value, 5), "timestamp": stamp}).decode()
            for key, value in metrics.items()
        }
        live.hash_write(metrics_key(node.site_id), fields, expires_s=METRICS_KEPT_S)
