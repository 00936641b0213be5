"""One function per message that nodes send unasked, each a single service call.

The broker's access list makes the topic name the sender: a node can publish below its own branch only, so the
node of the topic is who speaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from django.db import transaction

from control_app.node_logs import ReceivedLog, logs_record
from control_app.pings import nodes_greet
from control_app.services import command_resolve, commands_undelivered, nodes_in_doubt
from devices_app.loop_live import loops_live_follow
from devices_app.retirement import nodes_retiring, retired_record
from devices_app.services import device_values_follow
from devices_app.telemetry import ReceivedReadings, readings_record
from edge.wire.messages import HEARTBEAT_PERIOD_S, LogAck, Presence
from edge.wire.topics import NodeTopics
from sites_app.alarms import nodes_alarms_mirror
from sites_app.models import Node
from sites_app.presence import ReceivedHeartbeat, ReceivedPresence, heartbeats_note, presences_note
from sites_app.reports import ReceivedReport, reports_record
from sites_app.services import PresenceChange, nodes_presence_record
from smartgrid.live import LiveUnavailable

log = structlog.stdlib.get_logger(__name__)

# A command whose deadline is this long past can no longer be accepted: the freshness window is over too.
ACCEPTANCE_OVER_S = 10.0


def on_heartbeats(received: Sequence[ReceivedHeartbeat]) -> None:
    """Signs of life, and how loops stand. One of a session that nobody knew of is as good as the birth that
    got lost.
    """
    births = heartbeats_note(received)
    nodes_presence_record(
        [
            PresenceChange(node_id=UUID(birth.node_id), online=True, session=birth.beat.session)
            for birth in births
        ]
    )
    nodes_greet(UUID(birth.node_id) for birth in births)
    loops_live_follow(received)


def on_presences(received: Sequence[ReceivedPresence]) -> None:
    """Births and wills. A retained one tells of a transition too: it came while no inbox was listening."""
    try:
        taken = presences_note(received)
    except LiveUnavailable as error:
        # Whether they were overtaken cannot be told then; the heartbeats will tell.
        log.warning("presence_not_kept", count=len(received), error=error.detail)
        taken = list(received)
    changes = nodes_presence_record(
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
    came = {change.node_id for change in changes if change.online}
    kept = {UUID(item.node_id) for item in taken if item.retained}
    nodes_greet(came - kept)
    # One whose birth the broker had kept may be long gone, or is heard within a heartbeat.
    nodes_greet(came & kept, after_s=HEARTBEAT_PERIOD_S + 1)


def on_reports(received: Sequence[ReceivedReport]) -> None:
    """What nodes run: recorded against what they should run, and used to settle what was unknown.

    A retained report is as old as its sender's last change, which may be from before a command it did accept:
    it settles nothing. It may show a device to be retired, though, which that device then stays.
    """
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
    reports = reports_record(received)
    nodes_alarms_mirror([(taken.node, taken.received.reported.alarms) for taken in reports])
    # Few nodes have anything to be settled, and all of them report.
    nodes = [taken.node for taken in reports]
    device_values_follow(
        (taken.node.pk, taken.received.reported) for taken in reports if not taken.received.retained
    )
    retiring, in_doubt = nodes_retiring(nodes), nodes_in_doubt(nodes)
    for taken in reports:
        node, reported = taken.node, taken.received.reported
        if node.pk in retiring:
            retired_record(node=node, reported=reported)
        if node.pk in in_doubt and not taken.received.retained:
            _settle(node, reported.sequences, at=taken.received.received)


def _settle(node: Node, sequences: Mapping[str, int], *, at: datetime) -> None:
    """Put down which commands of unknown fate a report of this moment proves were never accepted."""
    before = at - timedelta(seconds=ACCEPTANCE_OVER_S)
    for command in commands_undelivered(node=node, sequences=sequences, before=before):
        with transaction.atomic():
            if command_resolve(command=command, devices=None):
                log.info("command_not_delivered", node=node.name, command=str(command.id))


def on_logs(received: Sequence[ReceivedLog]) -> list[tuple[NodeTopics, LogAck]]:
    """What nodes keep until it is acknowledged: taken exactly once; the acknowledgements to send now."""
    return logs_record(received)


def on_telemetry(received: Sequence[ReceivedReadings]) -> None:
    """Readings as they are taken; one that is late or comes twice harms nothing."""
    readings_record(received)
