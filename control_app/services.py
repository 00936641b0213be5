"""What happens to control requests: made, waited for, closed, and corrected when the truth arrives late."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import structlog
from django.db import connection, transaction
from django.db.models import Q
from django.utils import timezone
from kombu.exceptions import OperationalError

from control_app.dispatch import DEADLINE_S, Order, answers_key, note_read, order_encode
from control_app.models import CommandState, ControlCommand, ControlLog, ControlRequest, Status
from control_app.targets import Targets, offline_nodes, reason, targets_select
from devices_app.models import Device
from edge.wire.messages import Code, CommandAnswer, DeviceResult, Stage
from sites_app.models import Node, Site
from sites_app.presence import NodePresence, central_now, presence_read
from sites_app.selectors import site_get
from smartgrid import live
from smartgrid.api.principal import Principal
from smartgrid.errors import DispatchUnavailable

log = structlog.stdlib.get_logger(__name__)

# A request still open this long after its deadline has lost its view.
SETTLE_AFTER_S = 5.0
OPEN = (CommandState.QUEUED, CommandState.SENT, CommandState.UNKNOWN)


@dataclass(frozen=True, slots=True)
class ControlResult:
    """The answer to a control request: device tags that follow, and why the others do not."""

    updated: dict[str, None]
    not_updated: dict[str, str]

    @property
    def status(self) -> Status:
        if not self.not_updated:
            return Status.SUCCESS
        return Status.PARTIAL if self.updated else Status.FAILED

    @property
    def body(self) -> dict[str, Any]:
        return {"updated": self.updated, "not_updated": self.not_updated}


@dataclass(slots=True)
class _Waiting:
    """One command of a request, and what has been heard of it."""

    command: ControlCommand
    state: CommandState = CommandState.QUEUED
    accepted: bool = False
    detail: str = ""
    code: str = ""
    devices: dict[str, DeviceResult] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return self.state is not CommandState.QUEUED


def category_curtail(
    *,
    principal: Principal,
    site_id: UUID,
    category: str,
    value: float,
    device_tags: Sequence[str] | None,
    why: str = "",
) -> ControlResult:
    """Hold the devices of a category at a value, and tell within eight seconds what became of it.

    `NotFound` for a site out of sight or without such devices, `Invalid` for a value no device may take,
    `DispatchUnavailable` where certainly nothing was sent.
    """
    started = time.monotonic()
    site = site_get(principal=principal, site_id=site_id)
    targets = targets_select(site=site, category=category, device_tags=device_tags, value=value)
    try:
        presence = presence_read(targets.by_node)
    except live.LiveUnavailable as error:
        raise DispatchUnavailable("Control requests cannot be sent now: Redis does not answer.") from error
    offline = offline_nodes(targets, presence, now=central_now())
    for node_id, why_not in offline.items():
        for device in targets.by_node[node_id]:
            targets.refused[device.device_tag] = reason(Code.NODE_OFFLINE, why_not)
    with transaction.atomic():
        request = ControlRequest.objects.create(
            site=site,
            category=category,
            value=value,
            device_tags=None if device_tags is None else list(device_tags),
            reason=why,
            client_id=principal.client_id,
            token_id=principal.token_id,
            deadline=timezone.now() + timedelta(seconds=DEADLINE_S),
        )
        commands = _commands_create(request, targets, offline)
    waiting = {str(command.id): _Waiting(command) for command in commands}
    _connection_give_back()
    _queue(request, site, waiting.values(), presence)
    _wait(request, waiting, until=started + DEADLINE_S)
    return _close(request, targets, list(waiting.values()))


def _commands_create(
    request: ControlRequest, targets: Targets, offline: Mapping[UUID, str]
) -> list[ControlCommand]:
    """One command a node, or one a device where the node is not to be curtailed in batch."""
    commands = []
    for node_id, devices in targets.by_node.items():
        if node_id in offline:
            continue
        node = targets.nodes[node_id]
        values = {device.device_tag: request.value for device in devices}
        batches = [values] if node.curtail_in_batch else [{tag: value} for tag, value in values.items()]
        commands += [
            ControlCommand(
                request=request, node=node, epoch=node.epoch, values=batch, deadline=request.deadline
            )
            for batch in batches
        ]
    return ControlCommand.objects.bulk_create(commands)


def _connection_give_back() -> None:
    """While we wait for the node another request may use the database connection.

    SQLite has none to spare: its file is opened by each thread, and opening it anew costs more than it frees.
    """
    if connection.vendor != "sqlite" and not connection.in_atomic_block:
        connection.close()


def _queue(
    request: ControlRequest,
    site: Site,
    waiting: Iterable[_Waiting],
    presence: Mapping[UUID, NodePresence],
) -> None:
    from control_app.tasks import dispatch_command  # noqa: PLC0415 - tasks import this module

    for item in waiting:
        command, node = item.command, item.command.node
        known = presence[node.pk]
        order = Order(
            command_id=str(command.id),
            request_id=str(request.pk),
            sequence=command.sequence,
            epoch=command.epoch,
            tenant=node.tenant_tag,
            node=str(node.pk),
            category=request.category,
            values=command.values,
            hold_s=float(site.curtailment_time_limit),
            fresh=known.fresh,
            fresh_at=known.fresh_at,
            deadline=command.deadline,
            reason=request.reason,
        )
        try:
            dispatch_command.apply_async((order_encode(order),), expires=DEADLINE_S)
        except OperationalError as error:
            item.state, item.detail = CommandState.NOT_SENT, f"the task queue does not answer: {error}"


def _wait(request: ControlRequest, waiting: Mapping[str, _Waiting], *, until: float) -> None:
    key = answers_key(str(request.pk))
    while any(not item.is_over for item in waiting.values()):
        left = until - time.monotonic()
        if left <= 0:
            return
        try:
            text = live.list_wait(key, timeout_s=left)
        except live.LiveUnavailable as error:
            log.warning("answers_unreachable", request=str(request.pk), error=str(error))
            return
        if text is None:
            return
        note = note_read(text)
        item = waiting.get(note.command_id)
        if item is None:
            continue
        if note.answer is not None:
            _take_answer(item, note.answer)
        elif note.not_sent:
            item.state, item.detail = CommandState.NOT_SENT, note.not_sent
        else:
            item.state, item.detail = CommandState.UNKNOWN, note.lost


def _take_answer(item: _Waiting, answer: CommandAnswer) -> None:
    match answer.stage:
        case Stage.ACCEPTED:
            item.accepted = True
            item.devices = answer.devices
        case Stage.DONE:
            item.state, item.devices = CommandState.DONE, answer.devices
        case Stage.REFUSED:
            item.state, item.code, item.detail = CommandState.REFUSED, str(answer.code), answer.detail


def _close(request: ControlRequest, targets: Targets, waiting: list[_Waiting]) -> ControlResult:
    """Write down what is known at the deadline, and say it."""
    with transaction.atomic():
        for item in waiting:
            _command_close(item)
        result = _result(targets.refused, waiting)
        ControlRequest.objects.filter(pk=request.pk, status=None).update(
            status=result.status, result=result.body
        )
        _log_request(request, result)
    sent = [item for item in waiting if item.state is not CommandState.NOT_SENT]
    if waiting and not sent:
        raise DispatchUnavailable(
            f"The request was not sent: {waiting[0].detail}. Nothing was written; it may be sent again."
        )
    return result


def _command_close(item: _Waiting) -> None:
    """Bring the row of a command to what the view knows, against a worker or an inbox that knows more."""
    rows = ControlCommand.objects.filter(pk=item.command.sequence)
    match item.state:
        case CommandState.QUEUED:
            # The deadline: the mirror of the worker's claim decides whether it can still be sent.
            if rows.filter(state=CommandState.QUEUED).update(state=CommandState.NOT_SENT):
                item.state, item.detail = CommandState.NOT_SENT, "no worker took it in time"
            elif rows.filter(state=CommandState.SENT).update(state=CommandState.UNKNOWN):
                item.state = CommandState.UNKNOWN
            else:
                _take_recorded(item)
        case CommandState.DONE | CommandState.REFUSED:
            result = msgspec.to_builtins(item.devices)
            rows.filter(state__in=OPEN).update(state=item.state, result=result)
            for tag, device in item.devices.items():
                if device.ok and device.value is not None:
                    device_value_confirm(
                        node_id=item.command.node_id,
                        tag=tag,
                        value=device.value,
                        before=item.command.sequence,
                    )
        case _:
            rows.filter(state__in=OPEN).update(state=item.state)


def _take_recorded(item: _Waiting) -> None:
    """The inbox was faster: the node's control log has told what became of it."""
    item.command.refresh_from_db(fields=["state", "result"])
    item.state = CommandState(item.command.state)
    if item.command.result is not None:
        item.devices = msgspec.convert(item.command.result, dict[str, DeviceResult])


def device_value_confirm(
    *, node_id: UUID, tag: str, value: float, before: int | None = None, up_to: int | None = None
) -> None:
    """Record the value a device confirmed, unless a later command has confirmed another since."""
    order = Q(value_sequence=None)
    order |= Q(value_sequence__lt=before) if before is not None else Q(value_sequence__lte=up_to or 0)
    sequence = before if before is not None else up_to
    Device.objects.filter(order, node_id=node_id, device_tag=tag).update(value=value, value_sequence=sequence)


def _result(refused: Mapping[str, str], waiting: Iterable[_Waiting]) -> ControlResult:
    updated: dict[str, None] = {}
    not_updated = dict(refused)
    for item in waiting:
        for tag in item.command.values:
            device = item.devices.get(tag)
            if device is not None and item.state is CommandState.DONE and device.ok:
                updated[tag] = None
            elif device is not None and not device.ok:
                not_updated[tag] = device.reason
            else:
                not_updated[tag] = _why_not(item)
    return ControlResult(updated, not_updated)


def _why_not(item: _Waiting) -> str:
    match item.state:
        case CommandState.REFUSED:
            return f"{item.code}: {item.detail}"
        case CommandState.NOT_SENT:
            return reason(Code.NOT_SENT, item.detail)
        case CommandState.UNKNOWN if item.accepted:
            return reason(
                Code.UNKNOWN, f"the node accepted it, the device did not confirm within {DEADLINE_S:g} s"
            )
        case CommandState.NOT_DELIVERED:
            return reason(Code.NOT_DELIVERED, "the node never accepted it")
        case _:
            detail = item.detail or f"no confirmation within {DEADLINE_S:g} s"
            return reason(Code.UNKNOWN, detail)


# --- what comes later ---------------------------------------------------------------------------


def requests_settle() -> int:
    """Close requests whose view died: what was not claimed was not sent, the rest is unknown. How many."""
    horizon = timezone.now() - timedelta(seconds=SETTLE_AFTER_S)
    closed = 0
    for request in ControlRequest.objects.filter(status=None, deadline__lt=horizon).order_by("deadline")[
        :100
    ]:
        with transaction.atomic():
            waiting = [_Waiting(command) for command in request.commands.all()]
            for item in waiting:
                _command_close(item)
            result = _result({}, waiting)
            taken = ControlRequest.objects.filter(pk=request.pk, status=None).update(
                status=result.status, result=result.body
            )
            if taken:
                _log_request(request, result)
                closed += 1
    return closed


def command_resolve(*, command: ControlCommand, devices: Mapping[str, DeviceResult] | None) -> bool:
    """Put down the truth about a command nobody had an answer for. False where it was known already.

    `devices` None: the node never accepted it. The request's answer is corrected, and the correction logged.
    """
    state = CommandState.NOT_DELIVERED if devices is None else CommandState.DONE
    taken = ControlCommand.objects.filter(pk=command.pk, state__in=OPEN).update(
        state=state, result=None if devices is None else msgspec.to_builtins(dict(devices))
    )
    if not taken:
        return False
    request = ControlRequest.objects.select_for_update().get(pk=command.request_id)
    if request.status is None:
        # Its view still waits, and will find this row.
        return True
    item = _Waiting(command, state=state, devices=dict(devices or {}))
    partial = _result({}, [item])
    before = request.result or {}
    updated = before.get("updated", {}) | partial.updated
    not_updated = {
        tag: why for tag, why in before.get("not_updated", {}).items() if tag not in partial.updated
    } | partial.not_updated
    corrected = ControlResult(updated, not_updated)
    request.status, request.result = corrected.status, corrected.body
    request.save(update_fields=["status", "result"])
    _log_request(request, corrected)
    return True


def _log_request(request: ControlRequest, result: ControlResult) -> None:
    ControlLog.objects.create(
        site_id=request.site_id,
        request=request,
        status=result.status,
        category=request.category,
        value=request.value,
        result=result.body,
        reason=request.reason,
    )


def commands_undelivered(*, node: Node, sequences: Mapping[str, int], before: Any) -> list[ControlCommand]:
    """Commands of unknown fate that this node's report proves it never accepted.

    No node can accept a command once its freshness window has passed; one whose devices have all last
    accepted something older never did.
    """
    unknown = ControlCommand.objects.filter(node=node, state=CommandState.UNKNOWN, deadline__lt=before)
    return [
        command
        for command in unknown.order_by("sequence")
        if all(sequences.get(tag, 0) < command.sequence for tag in command.values)
    ]
