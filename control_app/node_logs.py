"""The log streams of nodes, taken exactly once.

A node numbers the entries of a stream without gaps, sends the oldest first and one batch at a time, and goes
on sending a batch until it is acknowledged. How far a stream has come is kept in one transaction with what
was taken of it, so a batch that comes again, from another session or to two inboxes at once, adds only what
is new. ADR 0017 says what becomes of a node whose disk was replaced by an older one.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import structlog
from django.db import InterfaceError, OperationalError, ProgrammingError, transaction

from control_app.events import control_logs_publish
from control_app.models import (
    CommandState,
    ControlCommand,
    ControlLog,
    DeviceErrorLog,
    NodeEvent,
    NodeStream,
)
from control_app.services import ControlResult, command_resolve, confirmed_values
from devices_app.models import Device
from devices_app.services import device_values_confirm
from devices_app.telemetry import ReceivedReadings, readings_record
from edge.wire.codec import UNREADABLE
from edge.wire.messages import NEVER_SENT, DeviceResult, LogAck, LogBatch, LogEntry, Stream
from edge.wire.topics import NodeTopics
from sites_app.models import Node

log = structlog.stdlib.get_logger(__name__)

# The database's trouble, not that of what it is given: it is away, overloaded, or not migrated yet.
DATABASE_TROUBLE = (OperationalError, InterfaceError, ProgrammingError)

CATEGORY_LENGTH = 64
REASON_LENGTH = 500
KIND_LENGTH = 32
EVENT_LENGTH = 10_000
STORE_LENGTH = 64
STREAMS = frozenset(stream.value for stream in Stream)
DIGEST_LENGTH = 16
# What a column of the database can hold.
HIGHEST = 2**63 - 1
# So many entries share a transaction: more would keep their streams locked for long.
ENTRIES_AT_ONCE = 2000


Row = ControlLog | DeviceErrorLog | NodeEvent


@dataclass(frozen=True, slots=True)
class ReceivedLog:
    """A batch of a log stream of this node, and when it arrived."""

    node_id: str
    batch: LogBatch
    received: datetime


@dataclass(frozen=True, slots=True)
class _Key:
    """One stream of one store of one node."""

    node_id: UUID
    stream: str
    store: str


@dataclass(frozen=True, slots=True)
class _Item:
    """A batch, whose it is, and what of it was not there when last looked at."""

    key: _Key
    node: Node
    batch: LogBatch
    received: datetime


def logs_record(received: Sequence[ReceivedLog]) -> list[tuple[NodeTopics, LogAck]]:
    """Take these batches; the acknowledgements to send, now that what they acknowledge is committed.

    An entry that cannot be taken is logged and passed over: it would be no better the next time, and must not
    hold up those behind it. A batch that cannot be acknowledged, of a node that is not known here or a stream
    that has no place yet, is left out: its node keeps it. A database error loses nothing: what was committed
    is found to be there when the batch comes again.
    """
    acknowledgements: dict[_Key, tuple[NodeTopics, LogAck]] = {}
    for items in _portions(_known(received)):
        for item, last in _portion_record(items):
            ack = LogAck(stream=item.key.stream, store=item.key.store, last=last)
            acknowledgements[item.key] = (item.node.topics, ack)
    return list(acknowledgements.values())


def _known(received: Sequence[ReceivedLog]) -> list[_Item]:
    ids = {item.node_id for item in received}
    nodes = Node.objects.filter(pk__in=ids).only("name", "site_id", "tenant_tag", "created_at")
    by_id = {str(node.pk): node for node in nodes}
    return [
        _Item(_Key(node.pk, item.batch.stream, item.batch.store), node, item.batch, item.received)
        for item in received
        if (node := by_id.get(item.node_id)) is not None and _is_takeable(node, item.batch)
    ]


def _is_takeable(node: Node, batch: LogBatch) -> bool:
    if batch.stream not in STREAMS:
        log.warning("log_stream_unknown", node=node.name, stream=batch.stream[:KIND_LENGTH])
        return False
    numbers = (batch.first, batch.last, *(entry.seq for entry in batch.entries))
    if (
        len(batch.store) > STORE_LENGTH
        or "\x00" in batch.store
        or not 0 < min(numbers) <= max(numbers) <= HIGHEST
    ):
        log.error("log_batch_refused", node=node.name, store=batch.store[:STORE_LENGTH], first=batch.first)
        return False
    return True


def _portions(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    portion: list[_Item] = []
    entries = 0
    for item in items:
        if portion and entries + len(item.batch.entries) > ENTRIES_AT_ONCE:
            yield portion
            portion, entries = [], 0
        portion.append(item)
        entries += len(item.batch.entries)
    if portion:
        yield portion


def _portion_record(items: list[_Item]) -> list[tuple[_Item, int]]:
    """Take these batches together, and what needs care one entry at a time; how far each stream is then."""
    positions = _positions(items)
    context = _Context.of(items, positions)
    _keep_readings(items, context)
    plain = [item for item in items if not context.needs_care(item)]
    careful = [item for item in items if context.needs_care(item)]
    try:
        done = _record_together(plain, context)
    except DATABASE_TROUBLE:
        # Nothing is kept, and the batches come again.
        raise
    except Exception:  # whatever is odd about one of them must not cost the others
        log.exception("log_batches_taken_one_by_one", count=len(plain))
        done, careful = [], items
    return done + [(item, last) for item in careful if (last := _record_alone(item, context)) is not None]


# --- how far each stream is ---------------------------------------------------------------------------------


def _positions(items: Sequence[_Item]) -> dict[_Key, NodeStream]:
    """The streams of these nodes, of former stores too; those that are new are made."""
    found = _streams(items)
    missing = {item.key: item for item in items if item.key not in found}
    if not missing:
        return found
    # In one order for all who make them. Committed at once: nobody shall wait for this transaction's end.
    NodeStream.objects.bulk_create(
        [
            NodeStream(node_id=key.node_id, stream=key.stream, store=key.store, since=missing[key].received)
            for key in sorted(missing, key=lambda key: (str(key.node_id), key.stream, key.store))
        ],
        ignore_conflicts=True,
    )
    return _streams(items)


def _streams(items: Sequence[_Item]) -> dict[_Key, NodeStream]:
    rows = NodeStream.objects.filter(node_id__in={item.key.node_id for item in items})
    return {_Key(row.node_id, row.stream, row.store): row for row in rows}


def _digest(entry: LogEntry) -> str:
    return hashlib.sha256(msgspec.json.encode(entry)).hexdigest()[:DIGEST_LENGTH]


def _digest_at(batch: LogBatch, seq: int) -> str:
    """What the entry of this number says, to know it by; empty where that cannot be told.

    A gap takes the number of what had to make room for it, and of an entry that cannot be read only our own
    words are known.
    """
    for entry in reversed(batch.entries):
        if entry.seq == seq and entry.kind not in {"gap", UNREADABLE}:
            return _digest(entry)
    return ""


def _is_forked(item: _Item, position: NodeStream) -> bool:
    """Tell whether the node says something else under the number that was last taken: its machine was put
    back to an earlier state, and has gone another way since.

    One that is not as far yet cannot be told from a batch that comes late; the node itself can tell, by the
    acknowledgement. Either is remembered with the stream.
    """
    told = _digest_at(item.batch, position.last)
    is_forked = bool(told and position.digest and told != position.digest)
    if is_forked:
        log.error("log_stream_forked", node=item.node.name, stream=item.key.stream, seq=position.last)
    if (is_forked or item.batch.last < position.last) and not position.forked:
        NodeStream.objects.filter(pk=position.pk).update(forked=True)
    return is_forked


# --- many at once -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Context:
    """What entries refer to, read once for all of them."""

    positions: dict[_Key, NodeStream]
    # By sequence; of the node that speaks of them, or not.
    commands: dict[int, ControlCommand]
    devices: dict[tuple[UUID, str], Device]
    # The nodes of which some store is forked, and which.
    forked: dict[UUID, set[str]]

    @classmethod
    def of(cls, items: Sequence[_Item], positions: dict[_Key, NodeStream]) -> _Context:
        fresh = [
            (item, entry)
            for item in items
            for entry in item.batch.entries
            if entry.seq > positions[item.key].last
        ]
        sequences = {sequence for _, entry in fresh if (sequence := _sequence(entry)) is not None}
        commands = (
            ControlCommand.objects.filter(pk__in=sequences).select_related("request") if sequences else []
        )
        tags = {tag for _, entry in fresh if entry.kind in DEVICE_ERRORS for tag in entry.devices}
        nodes = {item.node.pk for item in items}
        devices = Device.objects.filter(node_id__in=nodes, device_tag__in=tags) if tags else []
        forked: dict[UUID, set[str]] = defaultdict(set)
        for key, position in positions.items():
            if position.forked:
                forked[key.node_id].add(key.store)
        return cls(
            positions=positions,
            commands={command.sequence: command for command in commands},
            devices={(device.node_id, device.device_tag): device for device in devices},
            forked=forked,
        )

    def command(self, node: Node, entry: LogEntry) -> ControlCommand | None:
        """The node's command this entry is about, if this database knows it (it may have been restored)."""
        command = self.commands.get(_sequence(entry) or 0)
        return command if command is not None and command.node_id == node.pk else None

    def is_answered(self, node: Node, entry: LogEntry) -> bool:
        """Tell whether this is a result that the view has recorded, which it nearly always has: nothing is
        written for it, so that the log does not compete for the database with the requests it is about.
        """
        command = self.command(node, entry)
        return (
            entry.kind == "result"
            and command is not None
            and str(command.id) == entry.command_id
            and command.state == CommandState.DONE
        )

    def needs_care(self, item: _Item) -> bool:
        """Tell whether an entry corrects an answer, which locks rows that a view may hold, or may be known
        from a former store.
        """
        last = self.positions[item.key].last
        return any(
            (entry.kind == "result" and not self.is_answered(item.node, entry))
            or self.may_be_known(item, entry)
            for entry in item.batch.entries
            if entry.seq > last
        )

    def may_be_known(self, item: _Item, entry: LogEntry) -> bool:
        """Tell whether an entry is from before its store was heard of, while the node had one that forked."""
        others = self.forked.get(item.key.node_id, set()) - {item.key.store}
        return bool(others) and _moment(item, entry) < self.positions[item.key].since


def _record_together(items: Sequence[_Item], context: _Context) -> list[tuple[_Item, int]]:
    """Take all of these in one transaction."""
    if not items:
        return []
    _confirm_all(items, context)
    done: list[tuple[_Item, int]] = []
    with transaction.atomic():
        rows = NodeStream.objects.select_for_update().filter(
            pk__in={context.positions[item.key].pk for item in items}
        )
        positions = {_Key(row.node_id, row.stream, row.store): row for row in rows.order_by("pk")}
        moved: dict[_Key, NodeStream] = {}
        made: list[Row] = []
        for item in items:
            position = positions.get(item.key)
            if position is None:
                # Deleted with its node meanwhile.
                continue
            if _is_forked(item, position):
                done.append((item, NEVER_SENT))
                continue
            _tell_missing(item, position)
            for entry in item.batch.entries:
                if entry.seq > position.last:
                    position.last = entry.seq
                    made += _rows(item, entry, context)
                    moved[item.key] = position
            if item.batch.last > position.last:
                position.last = item.batch.last
                moved[item.key] = position
            if item.key in moved and (digest := _digest_at(item.batch, position.last)):
                position.digest = digest
            done.append((item, position.last))
        lines = ControlLog.objects.bulk_create([row for row in made if isinstance(row, ControlLog)])
        control_logs_publish(lines)
        DeviceErrorLog.objects.bulk_create([row for row in made if isinstance(row, DeviceErrorLog)])
        NodeEvent.objects.bulk_create([row for row in made if isinstance(row, NodeEvent)])
        NodeStream.objects.bulk_create(
            moved.values(),
            update_conflicts=True,
            unique_fields=["node", "stream", "store"],
            update_fields=["last", "digest"],
        )
    return done


def _keep_readings(items: Sequence[_Item], context: _Context) -> None:
    """Store the readings among these entries, before and apart from the rest: each is kept once however often
    it comes.
    """
    readings = [
        ReceivedReadings(str(item.node.pk), entry.points, item.received)
        for item in items
        for entry in item.batch.entries
        if entry.points and entry.seq > context.positions[item.key].last
    ]
    try:
        readings_record(readings)
    except DATABASE_TROUBLE:
        raise
    except Exception:  # whatever is odd about some of them must not cost the others
        log.exception("readings_taken_one_by_one", count=len(readings))
        for one in readings:
            _keep_reading(one)


def _keep_reading(reading: ReceivedReadings) -> None:
    try:
        readings_record([reading])
    except DATABASE_TROUBLE:
        raise
    except Exception:  # as with any entry that is odd
        log.exception("readings_refused", node=reading.node_id)


def _confirm_all(items: Sequence[_Item], context: _Context) -> None:
    """Record the values that devices ended at, before and apart from the rest.

    It may be done any number of times, so it need not be in one transaction with the streams' positions; and
    a transaction that holds devices of many nodes would stand in the way of requests that do so too.
    """
    for item in items:
        last = context.positions[item.key].last
        for entry in item.batch.entries:
            if entry.seq > last and entry.kind == "watchdog":
                _confirm_values(item.node, entry, context.command(item.node, entry))


# --- one at a time ------------------------------------------------------------------------------------------


def _record_alone(item: _Item, context: _Context) -> int | None:
    """Take a batch entry by entry, each in a transaction of its own; how far its stream is then."""
    position = NodeStream.objects.filter(pk=context.positions[item.key].pk).first()
    if position is None:
        return None
    if _is_forked(item, position):
        return NEVER_SENT
    _tell_missing(item, position)
    for entry in item.batch.entries:
        if entry.seq > position.last and not context.is_answered(item.node, entry):
            _take_once(position, item, entry, context)
    _advance(position, item.batch, item.batch.last)
    return NodeStream.objects.filter(pk=position.pk).values_list("last", flat=True).first()


def _take_once(position: NodeStream, item: _Item, entry: LogEntry, context: _Context) -> None:
    with transaction.atomic():
        if not _advance(position, item.batch, entry.seq):
            return
        try:
            with transaction.atomic():
                _take_entry(item, entry, context)
        except DATABASE_TROUBLE:
            raise
        except Exception:  # whatever is odd about one entry, the stream goes on
            log.exception("log_entry_refused", node=item.node.name, seq=entry.seq, kind=entry.kind)


def _advance(position: NodeStream, batch: LogBatch, seq: int) -> bool:
    """Move the position up to `seq`; False where it, or another inbox, is there already."""
    behind = NodeStream.objects.filter(pk=position.pk, last__lt=seq)
    return bool(behind.update(last=seq, digest=_digest_at(batch, seq)))


def _take_entry(item: _Item, entry: LogEntry, context: _Context) -> None:
    command = context.command(item.node, entry)
    if entry.kind == "result":
        # Usually known already from the answer; the truth where the answer got lost.
        if command is not None and str(command.id) == entry.command_id:
            command_resolve(command=command, devices=entry.devices)
        _confirm_values(item.node, entry, command)
        return
    for row in _rows(item, entry, context):
        if not (context.may_be_known(item, entry) and _is_there(row)):
            row.save(force_insert=True)
            if isinstance(row, ControlLog):
                control_logs_publish([row])
    if entry.kind == "watchdog":
        _confirm_values(item.node, entry, command)


def _is_there(row: Row) -> bool:
    """Tell whether the database has a row that says the same; the number of its entry may be another."""
    match row:
        case ControlLog():
            lines = ControlLog.objects.filter(
                node=row.node, created_at=row.created_at, watchdog=row.watchdog, category=row.category
            )
            return lines.filter(value=row.value, reason=row.reason, result=row.result).exists()
        case DeviceErrorLog():
            errors = DeviceErrorLog.objects.filter(site_id=row.site_id, device_tag=row.device_tag)
            return errors.filter(timestamp=row.timestamp, error=row.error).exists()
        case NodeEvent():
            events = NodeEvent.objects.filter(node_id=row.node_id, at=row.at)
            return events.filter(kind=row.kind, reason=row.reason).exists()


# --- what entries become ------------------------------------------------------------------------------------

DEVICE_ERRORS = frozenset({"device_error", "standing"})


def _tell_missing(item: _Item, position: NodeStream) -> None:
    if item.batch.first > position.last + 1:
        # It has deleted them, so they were acknowledged once: this database is older than that.
        log.error("log_entries_missing", node=item.node.name, after=position.last, before=item.batch.first)


def _sequence(entry: LogEntry) -> int | None:
    """The command an entry is about, as far as it can be one."""
    return entry.sequence if entry.sequence is not None and 0 < entry.sequence <= HIGHEST else None


def _rows(item: _Item, entry: LogEntry, context: _Context) -> list[Row]:
    """What an entry becomes in the database, beside the readings in it and the correction of an answer."""
    match entry.kind:
        case "result" | "points":
            return []
        case "watchdog":
            return [_line(item, entry, context.command(item.node, entry))]
        case "retired":
            return [_line(item, entry, None)]
        case "device_error" | "standing":
            return _device_errors(item, entry, context)
        case "clock":
            return [_event(item, entry)]
        case "gap":
            log.error("log_entries_dropped", node=item.node.name, gap=entry.gap)
            return [_event(item, entry)]
        case _:
            log.warning("log_entry_of_unknown_kind", node=item.node.name, kind=entry.kind[:KIND_LENGTH])
            return [_event(item, entry)]


def _line(item: _Item, entry: LogEntry, command: ControlCommand | None) -> ControlLog:
    is_watchdog = entry.kind == "watchdog"
    result = ControlResult(
        {_clean(tag): None for tag, device in entry.devices.items() if device.ok},
        {_clean(tag): _clean(device.reason) for tag, device in entry.devices.items() if not device.ok},
    )
    text = entry.reason if is_watchdog else f"{entry.kind}: {entry.reason}" if entry.reason else entry.kind
    return ControlLog(
        created_at=_moment(item, entry),
        site_id=item.node.site_id,
        node=item.node,
        request_id=command.request_id if command is not None else None,
        status=result.status,
        category=_clean(entry.category, CATEGORY_LENGTH),
        watchdog=is_watchdog,
        value=entry.value,
        result=result.body,
        reason=_clean(text, REASON_LENGTH),
    )


def _device_errors(item: _Item, entry: LogEntry, context: _Context) -> list[Row]:
    rows: list[Row] = []
    strangers = False
    for tag, result in entry.devices.items():
        device = context.devices.get((item.node.pk, tag))
        if device is None:
            strangers = True
            continue
        rows.append(
            DeviceErrorLog(
                device=device,
                site_id=item.node.site_id,
                device_tag=tag,
                timestamp=_moment(item, entry),
                error=_error_text(entry, result),
            )
        )
    if strangers:
        # Of a device that is just being retired, say: nobody's error here, and yet something to look at.
        rows.append(_event(item, entry))
    return rows


def _event(item: _Item, entry: LogEntry) -> NodeEvent:
    reason = entry.reason
    if entry.gap is not None:
        gap = entry.gap
        reason = f"{gap.entries} entries from {gap.since} to {gap.until} are missing"
    return NodeEvent(
        node=item.node,
        at=_moment(item, entry),
        kind=_clean(entry.kind, KIND_LENGTH),
        reason=_clean(reason, REASON_LENGTH),
        entry=msgspec.json.encode(entry).decode()[:EVENT_LENGTH],
    )


def _confirm_values(node: Node, entry: LogEntry, command: ControlCommand | None) -> None:
    sequence, values = _sequence(entry), confirmed_values(entry.devices)
    if sequence is None or not values:
        return
    # One row is its own transaction.
    with transaction.atomic() if len(values) > 1 else nullcontext():
        device_values_confirm(
            node_id=node.pk,
            values=values,
            sequence=sequence,
            asked_at=command.request.created_at if command is not None else None,
        )


def _moment(item: _Item, entry: LogEntry) -> datetime:
    """When it happened by the node's clock. Where that cannot be right, after it arrived or before the node
    was made, when it arrived.
    """
    try:
        at = datetime.fromisoformat(entry.at)
        at = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return item.received
    return at if item.node.created_at <= at <= item.received else item.received


def _error_text(entry: LogEntry, result: DeviceResult) -> str:
    if entry.kind == "standing":
        held = "a limit" if result.value is None else f"{result.value:g}"
        return f"holds {held} at first contact, which this node did not set"
    return _clean(result.detail)


def _clean(text: str, length: int | None = None) -> str:
    """As the database can keep it: PostgreSQL takes no NUL."""
    return text.replace("\x00", "")[:length]
