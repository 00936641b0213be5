"""One function per message that nodes send unasked, each a single service call.

The broker's access list makes the topic name the sender: a node can publish below its own branch only, so the
node of the topic is who speaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import structlog
from django.db import InterfaceError, OperationalError, transaction
from django.utils import timezone

from control_app.models import (
    CommandState,
    ControlCommand,
    ControlLog,
    DeviceErrorLog,
    NodeEvent,
    NodeStream,
)
from control_app.services import (
    ControlResult,
    command_resolve,
    commands_undelivered,
    confirmed_values,
)
from devices_app.models import Device
from devices_app.retirement import retired_record
from devices_app.services import device_values_confirm
from devices_app.telemetry import ReceivedReadings, readings_record
from edge.wire.messages import (
    DeviceResult,
    LogAck,
    LogBatch,
    LogEntry,
    Presence,
    Stream,
)
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
CATEGORY_LENGTH = 64
REASON_LENGTH = 500
KIND_LENGTH = 32
EVENT_LENGTH = 10_000


@dataclass(frozen=True, slots=True)
class ReceivedLog:
    """A batch of a log stream of this node, and when it arrived."""

    node_id: str
    batch: LogBatch
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
    for recorded in reports:
        node, report = recorded.node, recorded.received
        retired_record(node=node, reported=report.reported)
        if report.retained:
            continue
        before = report.received - timedelta(seconds=ACCEPTANCE_OVER_S)
        sequences = report.reported.sequences
        for command in commands_undelivered(node=node, sequences=sequences, before=before):
            with transaction.atomic():
                if command_resolve(command=command, devices=None):
                    log.info("command_not_delivered", node=node.name, command=str(command.id))


def on_logs(received: Sequence[ReceivedLog]) -> list[tuple[NodeTopics, LogAck]]:
    """Take these batches of log entries; the acknowledgements to send now that all is committed."""
    acknowledgements = []
    for item in received:
        ack = on_log(item.node_id, item.batch)
        if ack is not None:
            acknowledgements.append((Node.objects.get(pk=item.node_id).topics, ack))
    return acknowledgements


def on_log(node_id: str, batch: LogBatch) -> LogAck | None:
    """Take a batch of a stream exactly once; the acknowledgement to send after the commit.

    A node sends its oldest entries first and one batch at a time, and numbers them without gaps. Each entry
    is committed together with the stream's position, so a batch that comes again, from another session or to
    two inboxes at once, adds only what is new. An entry that cannot be taken is logged and passed over: it
    would be no better the next time, and must not hold up those behind it.

    None where the batch cannot be acknowledged: the node is not known here, or there is no place yet for what
    it sends. The node keeps it.
    """
    if batch.stream != Stream.CONTROL:
        return None
    node = Node.objects.filter(pk=node_id).first()
    if node is None:
        return None
    position, _ = NodeStream.objects.get_or_create(node=node, stream=batch.stream, store=batch.store)
    if batch.first > position.last + 1:
        # It has deleted them, so they were acknowledged once: this database is older than that.
        log.error("log_entries_missing", node=node.name, after=position.last, before=batch.first)
    tags = {tag for entry in batch.entries for tag in entry.devices}
    devices = {device.device_tag: device for device in Device.objects.filter(node=node, device_tag__in=tags)}
    answered = _answered(node, batch)
    for entry in batch.entries:
        if entry.seq > position.last and entry.command_id not in answered:
            _take_once(position, node, entry, devices)
    _advance(position, batch.last)
    position.refresh_from_db(fields=["last"])
    return LogAck(stream=batch.stream, store=batch.store, last=position.last)


def _answered(node: Node, batch: LogBatch) -> set[str]:
    """The commands of this batch whose result the view has recorded, which is nearly all: nothing is written
    for them, so that the log does not compete with the requests it is about for the database.
    """
    results = [entry for entry in batch.entries if entry.kind == "result" and entry.sequence is not None]
    found = ControlCommand.objects.filter(
        pk__in=[entry.sequence for entry in results], node=node, state=CommandState.DONE
    )
    return {str(command_id) for command_id in found.values_list("id", flat=True)}


def _take_once(position: NodeStream, node: Node, entry: LogEntry, devices: Mapping[str, Device]) -> None:
    with transaction.atomic():
        if not _advance(position, entry.seq):
            return
        try:
            with transaction.atomic():
                _take_entry(node, entry, devices)
        except (OperationalError, InterfaceError):
            # The database's trouble, not the entry's: nothing is kept, and the batch comes again.
            raise
        except Exception:  # whatever is odd about one entry, the stream goes on
            log.exception("log_entry_refused", node=node.name, seq=entry.seq, kind=entry.kind)


def _advance(position: NodeStream, seq: int) -> bool:
    """Move the position up to `seq`; False where it, or another inbox, is there already."""
    return bool(NodeStream.objects.filter(pk=position.pk, last__lt=seq).update(last=seq))


def _take_entry(node: Node, entry: LogEntry, devices: Mapping[str, Device]) -> None:
    match entry.kind:
        case "result":
            _take_result(node, entry)
        case "watchdog":
            _take_watchdog(node, entry)
        case "retired":
            _log_line(node, entry, command=None, watchdog=False)
        case "device_error" | "standing":
            _take_device_errors(node, entry, devices)
        case "clock":
            _keep_event(node, entry)
        case "gap":
            log.error("log_entries_dropped", node=node.name, gap=entry.gap)
            _keep_event(node, entry)
        case _:
            log.warning("log_entry_of_unknown_kind", node=node.name, kind=entry.kind)
            _keep_event(node, entry)


def _take_result(node: Node, entry: LogEntry) -> None:
    """Usually known already from the answer; the truth where the answer got lost."""
    command = _command_of(node, entry)
    if command is not None and str(command.id) == entry.command_id:
        command_resolve(command=command, devices=entry.devices)
    _confirm_values(node, entry, command)


def _take_watchdog(node: Node, entry: LogEntry) -> None:
    command = _command_of(node, entry)
    _log_line(node, entry, command=command, watchdog=True)
    _confirm_values(node, entry, command)


def _log_line(node: Node, entry: LogEntry, *, command: ControlCommand | None, watchdog: bool) -> None:
    result = ControlResult(
        {tag: None for tag, device in entry.devices.items() if device.ok},
        {tag: _clean(device.reason) for tag, device in entry.devices.items() if not device.ok},
    )
    text = entry.reason if watchdog else f"{entry.kind}: {entry.reason}" if entry.reason else entry.kind
    ControlLog.objects.create(
        created_at=_moment(node, entry),
        site_id=node.site_id,
        node=node,
        request_id=command.request_id if command is not None else None,
        status=result.status,
        category=_clean(entry.category, CATEGORY_LENGTH),
        watchdog=watchdog,
        value=entry.value,
        result=result.body,
        reason=_clean(text, REASON_LENGTH),
    )


def _take_device_errors(node: Node, entry: LogEntry, devices: Mapping[str, Device]) -> None:
    for tag, result in entry.devices.items():
        if tag in devices:
            DeviceErrorLog.objects.create(
                device=devices[tag],
                site_id=node.site_id,
                device_tag=tag,
                timestamp=_moment(node, entry),
                error=_error_text(entry, result),
            )
    if entry.devices.keys() - devices.keys():
        # Of a device that is just being retired, say: nobody's error here, and yet something to look at.
        _keep_event(node, entry)


def _keep_event(node: Node, entry: LogEntry) -> None:
    reason = entry.reason
    if entry.gap is not None:
        gap = entry.gap
        reason = f"{gap.entries} entries from {gap.since} to {gap.until} are missing"
    NodeEvent.objects.create(
        node=node,
        at=_moment(node, entry),
        kind=_clean(entry.kind, KIND_LENGTH),
        reason=_clean(reason, REASON_LENGTH),
        entry=msgspec.json.encode(entry).decode()[:EVENT_LENGTH],
    )


def _command_of(node: Node, entry: LogEntry) -> ControlCommand | None:
    """The node's command this entry is about, if this database knows it (it may have been restored)."""
    if entry.sequence is None:
        return None
    return ControlCommand.objects.filter(pk=entry.sequence, node=node).select_related("request").first()


def _confirm_values(node: Node, entry: LogEntry, command: ControlCommand | None) -> None:
    if entry.sequence is None:
        return
    device_values_confirm(
        node_id=node.pk,
        values=confirmed_values(entry.devices),
        sequence=entry.sequence,
        asked_at=command.request.created_at if command is not None else None,
    )


def _moment(node: Node, entry: LogEntry) -> datetime:
    """When it happened by the node's clock. Where that cannot be right, in our future or before the node was
    made, the time of receipt.
    """
    now = timezone.now()
    try:
        at = datetime.fromisoformat(entry.at)
        at = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return now
    return at if node.created_at <= at <= now else now


def _error_text(entry: LogEntry, result: DeviceResult) -> str:
    if entry.kind == "standing":
        held = "a limit" if result.value is None else f"{result.value:g}"
        return f"holds {held} at first contact, which this node did not set"
    return _clean(result.detail)


def _clean(text: str, length: int | None = None) -> str:
    """As the database can keep it: PostgreSQL takes no NUL."""
    return text.replace("\x00", "")[:length]


def on_telemetry(received: Sequence[ReceivedReadings]) -> None:
    """Readings as they are taken; one that is late or comes twice harms nothing."""
    readings_record(received)
