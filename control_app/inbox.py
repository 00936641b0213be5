"""One function per message that nodes send unasked, each a single service call.

The broker's access list makes the topic name the sender: a node can publish below its own branch only, so the
node of the topic is who speaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import structlog
from django.db import transaction
from django.utils import timezone

from control_app.models import ControlCommand, ControlLog, DeviceErrorLog, NodeStream
from control_app.services import (
    ControlResult,
    command_resolve,
    commands_undelivered,
    device_value_confirm,
)
from devices_app.models import Device
from edge.wire.messages import (
    DeviceResult,
    Heartbeat,
    LogAck,
    LogBatch,
    LogEntry,
    Presence,
    Reported,
    TelemetryBatch,
)
from sites_app.documents import manifest_for, publish_on_commit
from sites_app.models import Node
from sites_app.presence import heartbeat_note, presence_note
from sites_app.selectors import metrics_key
from sites_app.services import node_presence_record, node_reported_record
from smartgrid import live

log = structlog.stdlib.get_logger(__name__)

# A command whose deadline is this long past can no longer be accepted: the freshness window is over too.
ACCEPTANCE_OVER_S = 10.0
METRICS_KEPT_S = 3600


def on_heartbeat(node_id: str, beat: Heartbeat) -> None:
    heartbeat_note(node_id, beat)


def on_presence(node_id: str, presence: Presence, *, retained: bool) -> None:
    presence_note(node_id, presence, retained=retained)
    if not retained:
        node_presence_record(
            node_id=UUID(node_id), online=presence.online, session=presence.session, boot=presence.boot
        )


def on_reported(node_id: str, reported: Reported, *, received: datetime) -> None:
    """What the node runs: kept, compared with what it should run, and used to settle what was unknown."""
    node = Node.objects.filter(pk=node_id).first()
    if node is None:
        return
    node_reported_record(node=node, reported=msgspec.to_builtins(reported), at=received)
    _publish_what_is_missing(node, reported)
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


def on_log(node_id: str, batch: LogBatch) -> LogAck | None:
    """Take a batch of the control stream exactly once; the acknowledgement to send after the commit.

    None where the batch cannot be acknowledged: the node is not known here.
    """
    with transaction.atomic():
        node = Node.objects.filter(pk=node_id).first()
        if node is None:
            return None
        position, _ = NodeStream.objects.select_for_update().get_or_create(
            node=node, stream=batch.stream, store=batch.store
        )
        tags = {tag for entry in batch.entries for tag in entry.devices}
        devices = {
            device.device_tag: device for device in Device.objects.filter(node=node, device_tag__in=tags)
        }
        for entry in batch.entries:
            if entry.seq > position.last:
                _take_entry(node, entry, devices)
        position.last = max(position.last, batch.last)
        position.save(update_fields=["last"])
    return LogAck(stream=batch.stream, store=batch.store, last=position.last)


def _take_entry(node: Node, entry: LogEntry, devices: Mapping[str, Device]) -> None:
    match entry.kind:
        case "result":
            _take_result(node, entry)
        case "watchdog":
            _take_watchdog(node, entry)
        case "device_error" | "standing":
            for tag, result in entry.devices.items():
                if tag in devices:
                    DeviceErrorLog.objects.create(
                        device=devices[tag], timestamp=_moment(entry), error=_error_text(entry, result)
                    )
        case _:
            log.warning("log_entry_of_unknown_kind", node=node.name, kind=entry.kind)


def _take_result(node: Node, entry: LogEntry) -> None:
    """Usually known already from the answer; the truth where the answer got lost."""
    if entry.sequence is None or entry.command_id is None:
        return
    _confirm_values(node, entry)
    command = ControlCommand.objects.filter(pk=entry.sequence, node=node, id=entry.command_id).first()
    if command is not None:
        command_resolve(command=command, devices=entry.devices)


def _take_watchdog(node: Node, entry: LogEntry) -> None:
    result = ControlResult(
        {tag: None for tag, device in entry.devices.items() if device.ok},
        {tag: device.reason for tag, device in entry.devices.items() if not device.ok},
    )
    ControlLog.objects.create(
        created_at=_moment(entry),
        site_id=node.site_id,
        node=node,
        request_id=_request_id(entry),
        status=result.status,
        category=entry.category,
        watchdog=True,
        value=entry.value,
        result=result.body,
        reason=entry.reason,
    )
    _confirm_values(node, entry)


def _request_id(entry: LogEntry) -> UUID | None:
    """The request whose hold lapsed, if this database knows it (it may have been restored)."""
    if entry.sequence is None:
        return None
    command = ControlCommand.objects.filter(pk=entry.sequence).only("request_id").first()
    return command.request_id if command is not None else None


def _confirm_values(node: Node, entry: LogEntry) -> None:
    for tag, device in entry.devices.items():
        if device.ok and device.value is not None:
            device_value_confirm(node_id=node.pk, tag=tag, value=device.value, up_to=entry.sequence)


def _moment(entry: LogEntry) -> datetime:
    """When it happened by the node's clock, which may be wrong: never in our future."""
    now = timezone.now()
    try:
        at = datetime.fromisoformat(entry.at)
    except ValueError:
        return now
    return min(at if at.tzinfo is not None else at.replace(tzinfo=UTC), now)


def _error_text(entry: LogEntry, result: DeviceResult) -> str:
    if entry.kind == "standing":
        return f"holds {result.value:g} at first contact, which this node did not set"
    return result.detail


def on_telemetry(node_id: str, batch: TelemetryBatch, *, received: datetime) -> None:
    """Keep the site's actual power: its meter at the point of connection, else the sum of its devices."""
    node = Node.objects.filter(pk=node_id).only("site_id").first()
    if node is None:
        return
    categories = dict(Device.objects.filter(node=node).values_list("device_tag", "category"))
    stamp = received.isoformat()
    power = {
        point.device: point.value
        for point in batch.points
        if point.key == "P_kW" and point.device in categories
    }
    metrics: dict[str, float] = {}
    meters = [value for tag, value in power.items() if categories[tag] == "meter"]
    if meters:
        metrics["P_Actual_kW"] = sum(meters)
    elif power:
        metrics["P_Actual_kW"] = sum(power.values())
    for point in batch.points:
        if point.key == "V_Wind_m/s":
            metrics[point.key] = point.value
    if metrics:
        fields = {
            key: msgspec.json.encode({"value": round(value, 5), "timestamp": stamp}).decode()
            for key, value in metrics.items()
        }
        live.hash_write(metrics_key(node.site_id), fields, expires_s=METRICS_KEPT_S)
