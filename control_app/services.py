"""What happens to control requests: made, waited for, closed, and corrected when the truth arrives late."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import structlog
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone
from kombu.exceptions import OperationalError

from control_app.dispatch import Note, Order, accepted_key, answers_key, note_read, order_encode
from control_app.events import control_logs_publish
from control_app.models import CommandState, ControlCommand, ControlLog, ControlRequest, Kind, Status, Unit
from control_app.questions import connection_give_back
from control_app.repeats import RequestKey, answer_read, answer_write, earlier_result, in_progress
from control_app.setpoint_throttle import setpoints_forget, setpoints_throttled
from control_app.targets import Targets, offline_nodes, reason, targets_select
from devices_app.models import Device
from devices_app.services import device_value_confirming, device_values_confirm, device_values_tell
from edge.wire.messages import Code, CommandAnswer, DeviceResult, Stage
from sites_app.models import Node
from sites_app.presence import NodePresence, central_now, presence_read
from smartgrid import live
from smartgrid.api.principal import Principal
from smartgrid.errors import DispatchUnavailable
from smartgrid.folding import Insert, Update, Write, rows_create, writes_in_turn

log = structlog.stdlib.get_logger(__name__)

# Seconds. A request still open this long after its deadline has lost its view.
SETTLE_AFTER_S = 5.0
SETTLE_AT_ONCE = 100
OPEN = (CommandState.QUEUED, CommandState.SENT, CommandState.UNKNOWN)


@dataclass(frozen=True, slots=True)
class ControlResult:
    """The answer to a control request: device tags that follow, and why the others do not.

    `is_repeated`: it is that of an earlier request with the same key, and nothing was done.
    """

    updated: dict[str, None]
    not_updated: dict[str, str]
    is_repeated: bool = False

    @property
    def status(self) -> Status:
        if not self.updated:
            return Status.FAILED
        return Status.PARTIAL if self.not_updated else Status.SUCCESS

    @property
    def body(self) -> dict[str, Any]:
        return {"updated": self.updated, "not_updated": self.not_updated}

    def by_category(self, categories: Mapping[str, str]) -> dict[str, ControlResult]:
        """Its parts by the category of their devices; empty is that of tags which no device has."""
        parts: dict[str, ControlResult] = {}
        for tag in [*self.updated, *self.not_updated]:
            part = parts.setdefault(categories.get(tag, ""), ControlResult({}, {}))
            if tag in self.updated:
                part.updated[tag] = None
            else:
                part.not_updated[tag] = self.not_updated[tag]
        return parts


@dataclass(slots=True)
class _Waiting:
    """One command of a request, and what has been heard of it."""

    command: ControlCommand
    state: CommandState = CommandState.QUEUED
    accepted: bool = False
    detail: str = ""
    code: str = ""
    devices: dict[str, DeviceResult] = field(default_factory=dict)
    accepted_at: datetime | None = None
    done_at: datetime | None = None

    @property
    def is_over(self) -> bool:
        return self.state is not CommandState.QUEUED

    @property
    def heard(self) -> dict[str, datetime | None]:
        """When its answers came, as columns of its row."""
        return {"accepted_at": self.accepted_at, "done_at": self.done_at}


@dataclass(slots=True)
class UnderWay:
    """A request that is recorded and on its way; whoever began it sees it to its end, by `request_finish`.

    If nobody does, its commands are carried out all the same, and `requests_settle` closes it.
    """

    request: ControlRequest
    targets: Targets
    waiting: dict[str, _Waiting]
    # The moment of this process's monotonic clock up to which answers are waited for.
    until: float
    # What the setpoint throttle is to be told: the devices that follow.
    _confirm: Callable[[Collection[str]], None]
    _throttle: ExitStack


def category_curtail(
    *,
    principal: Principal,
    site_id: UUID,
    category: str,
    value: float,
    device_tags: Sequence[str] | None,
    unit: Unit = Unit.PERCENT,
    why: str = "",
    key: RequestKey | None = None,
) -> ControlResult:
    """Hold the devices of a category at a value, and tell within the deadline what became of it.

    A value in kW is that of all the devices together, shared by their nameplates.

    `key`: by it the same request is known again, which then gets the same answer. `NotFound` for a site out
    of sight or without such devices, `Invalid` for a value no device may take, `Throttled` where all of them
    were set too lately for the site, `Conflict` for a key that stands for another request or for one under
    way, `DispatchUnavailable` where certainly nothing was sent.
    """
    if (earlier := _earlier(principal, site_id, key)) is not None:
        return earlier
    return request_finish(
        curtail_begin(
            principal=principal,
            site_id=site_id,
            category=category,
            value=value,
            device_tags=device_tags,
            unit=unit,
            why=why,
            key=key,
        )
    )


def curtail_begin(
    *,
    principal: Principal,
    site_id: UUID,
    category: str,
    value: float,
    device_tags: Sequence[str] | None,
    unit: Unit = Unit.PERCENT,
    why: str = "",
    key: RequestKey | None = None,
    request_id: UUID | None = None,
) -> UnderWay:
    """Record `category_curtail` and send its commands, without waiting for what becomes of them.

    Errors as there, but that no earlier request is looked for: `key` taken is `InProgress`. `request_id`: its
    id, where the caller has to know it before; one that is taken is `InProgress` too.
    """
    started = time.monotonic()
    targets = targets_select(
        principal=principal,
        site_id=site_id,
        category=category,
        device_tags=device_tags,
        value=value,
        unit=unit,
    )
    request = ControlRequest(
        id=request_id or uuid.uuid4(),
        kind=Kind.CURTAIL,
        site_id=targets.site_id,
        category=category,
        value=value,
        unit=unit,
        device_tags=None if device_tags is None else list(device_tags),
        reason=why,
        client_id=principal.client_id,
        token_id=principal.token_id,
    )
    with ExitStack() as throttle:
        confirm = throttle.enter_context(setpoints_throttled(targets, mark=str(request.pk)))
        return _begin(request, targets, key=key, started=started, confirm=confirm, throttle=throttle)


def devices_release(
    *,
    principal: Principal,
    site_id: UUID,
    category: str | None,
    device_tags: Sequence[str] | None,
    why: str = "",
    key: RequestKey | None = None,
) -> ControlResult:
    """End the direct holds of a site's devices now, and tell within the deadline what became of it.

    They go where they would have gone at the end of their holds: to schedule or default. One that nothing
    holds stays where it is, and says so by being updated. `category` None: of all categories; `device_tags`
    None: all of them. Errors as of `category_curtail`.
    """
    if (earlier := _earlier(principal, site_id, key)) is not None:
        return earlier
    return request_finish(
        release_begin(
            principal=principal,
            site_id=site_id,
            category=category,
            device_tags=device_tags,
            why=why,
            key=key,
        )
    )


def release_begin(
    *,
    principal: Principal,
    site_id: UUID,
    category: str | None,
    device_tags: Sequence[str] | None,
    why: str = "",
    key: RequestKey | None = None,
    request_id: UUID | None = None,
) -> UnderWay:
    """Record `devices_release` and send its commands, as `curtail_begin` does."""
    started = time.monotonic()
    targets = targets_select(
        principal=principal, site_id=site_id, category=category, device_tags=device_tags, value=None
    )
    request = ControlRequest(
        id=request_id or uuid.uuid4(),
        kind=Kind.RELEASE,
        site_id=targets.site_id,
        category=category or "",
        device_tags=None if device_tags is None else list(device_tags),
        reason=why,
        client_id=principal.client_id,
        token_id=principal.token_id,
    )
    return _begin(
        request,
        targets,
        key=key,
        started=started,
        confirm=lambda released: setpoints_forget(targets, released=released),
        throttle=ExitStack(),
    )


def _earlier(principal: Principal, site_id: UUID, key: RequestKey | None) -> ControlResult | None:
    """The answer to the same request when it came first; None where it has no key, or comes first now."""
    result = None if key is None else earlier_result(principal=principal, site_id=site_id, key=key)
    return None if result is None else ControlResult(**result, is_repeated=True)


def _begin(
    request: ControlRequest,
    targets: Targets,
    *,
    key: RequestKey | None,
    started: float,
    confirm: Callable[[Collection[str]], None],
    throttle: ExitStack,
) -> UnderWay:
    """Record a request and send its commands.

    `started`: the moment of the process's monotonic clock from which its deadline counts. `throttle` is taken
    over from the caller once nothing can fail here any more.
    """
    within_s = float(settings.SGM_REQUEST_DEADLINE_S)
    try:
        presence = presence_read(targets.by_node)
    except live.LiveUnavailable as error:
        raise DispatchUnavailable("Control requests cannot be sent now: Redis does not answer.") from error
    offline = offline_nodes(targets, presence, now=central_now())
    for node_id, why_not in offline.items():
        for device in targets.by_node[node_id]:
            targets.refused[device.tag] = reason(Code.NODE_OFFLINE, why_not)
    request.created_at = timezone.now()
    request.deadline = request.created_at + timedelta(seconds=within_s)
    if key is not None:
        request.idempotency, request.digest = key.name, key.digest
    commands = _commands(request, targets, offline)
    try:
        rows_create(request, commands)
    except IntegrityError as error:
        if not _is_taken(request, key):
            raise
        # The same request came twice at once, and the other has the key.
        raise in_progress() from error
    waiting = {str(command.id): _Waiting(command) for command in commands}
    connection_give_back()
    _queue(request, targets, waiting.values(), presence)
    return UnderWay(request, targets, waiting, started + within_s, confirm, throttle.pop_all())


def _is_taken(request: ControlRequest, key: RequestKey | None) -> bool:
    """Tell whether another request has this one's id, or its key."""
    taken = Q(pk=request.pk)
    if key is not None:
        taken |= Q(idempotency=key.name)
    return ControlRequest.objects.filter(taken).exists()


def request_finish(under_way: UnderWay, *, shows_progress: bool = False) -> ControlResult:
    """Wait for what becomes of a request, until its deadline, and close it.

    `shows_progress`: each answer is written down as it comes, for whoever watches; it costs a transaction for
    each command. `DispatchUnavailable` where certainly nothing was sent.
    """
    request, waiting = under_way.request, under_way.waiting
    with under_way._throttle:  # noqa: SLF001 - of this module
        _wait(request, waiting, until=under_way.until, shows_progress=shows_progress)
        result = _close(request, under_way.targets.refused, list(waiting.values()))
        under_way._confirm(result.updated)  # noqa: SLF001
    return result


def _commands(request: ControlRequest, targets: Targets, offline: Mapping[UUID, str]) -> list[ControlCommand]:
    """One command a node, or one a device where the node is not to be curtailed in batch."""
    commands = []
    for node_id, devices in targets.by_node.items():
        if node_id in offline:
            continue
        values = {device.tag: targets.values[device.tag] for device in devices}
        batches = [values] if devices[0].in_batch else [{tag: value} for tag, value in values.items()]
        commands += [
            ControlCommand(
                request=request,
                node_id=node_id,
                epoch=devices[0].epoch,
                values=batch,
                deadline=request.deadline,
            )
            for batch in batches
        ]
    return commands


def _queue(
    request: ControlRequest,
    targets: Targets,
    waiting: Iterable[_Waiting],
    presence: Mapping[UUID, NodePresence],
) -> None:
    from control_app.tasks import dispatch_command  # noqa: PLC0415 - tasks import this module

    expires = (request.deadline - request.created_at).total_seconds()
    for item in waiting:
        command = item.command
        known = presence[command.node_id]
        target = targets.by_node[command.node_id][0]
        order = Order(
            command_id=str(command.id),
            request_id=str(request.pk),
            sequence=command.sequence,
            epoch=command.epoch,
            tenant=target.tenant,
            node=str(command.node_id),
            category=request.category,
            values=command.values,
            hold_s=float(target.time_limit_s),
            fresh=known.fresh,
            fresh_at=known.fresh_at,
            deadline=command.deadline,
            reason=request.reason,
        )
        try:
            # Without a text of its arguments, which Celery would make for each message and nobody reads.
            dispatch_command.apply_async((order_encode(order),), expires=expires, argsrepr="", kwargsrepr="")
        except OperationalError as error:
            item.state, item.detail = CommandState.NOT_SENT, f"the task queue does not answer: {error}"


def _wait(
    request: ControlRequest, waiting: Mapping[str, _Waiting], *, until: float, shows_progress: bool = False
) -> None:
    """Hear of each command until all are over, or the deadline; then of those accepted meanwhile."""
    key = answers_key(str(request.pk))
    try:
        if waiting and time.monotonic() >= until:
            # Whoever began it came to wait too late: the answers are there.
            for told in live.list_read(key):
                _take_note(waiting, note_read(told))
        while any(not item.is_over for item in waiting.values()):
            left = until - time.monotonic()
            text = live.list_wait(key, timeout_s=left) if left > 0 else None
            if text is None:
                break
            taken = _take_note(waiting, note_read(text))
            if shows_progress and taken is not None and any(not item.is_over for item in waiting.values()):
                _answer_write(taken)
        else:
            return
        for accepted in live.list_read(accepted_key(str(request.pk))):
            _take_note(waiting, note_read(accepted))
    except live.LiveUnavailable as error:
        log.warning("answers_unreachable", request=str(request.pk), error=str(error))
        for item in waiting.values():
            if not item.is_over:
                item.detail = "the answers cannot be heard: Redis does not answer"


def _answer_write(item: _Waiting) -> None:
    """Write down the answer to one command, while others are waited for; the end finds it written."""
    if item.state not in {CommandState.DONE, CommandState.REFUSED}:
        return
    with transaction.atomic():
        _command_close(item)
        _values_confirm(item)
    connection_give_back()


def _take_note(waiting: Mapping[str, _Waiting], note: Note) -> _Waiting | None:
    """What is known now of the command it is about; None where it says nothing new."""
    item = waiting.get(note.command_id)
    if item is None or item.is_over:
        # What is delivered at least once may come again; the first word counts.
        return None
    if note.answer is not None:
        _take_answer(item, note.answer)
        if note.answer.stage is not Stage.ACCEPTED:
            item.accepted_at, item.done_at = note.accepted_at or item.accepted_at, note.heard_at
        else:
            item.accepted_at = note.heard_at
    elif note.not_sent:
        item.state, item.detail = CommandState.NOT_SENT, note.not_sent
    else:
        item.state, item.detail = CommandState.UNKNOWN, note.lost
    return item


def _take_answer(item: _Waiting, answer: CommandAnswer) -> None:
    match answer.stage:
        case Stage.ACCEPTED:
            item.accepted = True
            item.devices = answer.devices
        case Stage.DONE:
            item.state, item.devices = CommandState.DONE, answer.devices
        case Stage.REFUSED:
            item.state, item.code, item.detail = CommandState.REFUSED, str(answer.code), answer.detail


def _close(request: ControlRequest, refused: Mapping[str, str], waiting: Sequence[_Waiting]) -> ControlResult:
    """Write down what is known at the deadline, and say it."""
    result, _ = _request_close(request, refused, waiting)
    sent = [item for item in waiting if item.state is not CommandState.NOT_SENT]
    if waiting and not sent:
        raise DispatchUnavailable(
            f"The request was not sent: {waiting[0].detail}. Nothing was written; it may be sent again."
        )
    return result


def _request_close(
    request: ControlRequest, refused: Mapping[str, str], waiting: Sequence[_Waiting]
) -> tuple[ControlResult, bool]:
    """Bring a request and its commands to their end; the result, and whether it was still open.

    Rows are locked in one order by all who write here (commands by their sequence, the request, devices), so
    that a view and an inbox which learn of the same result at the same moment wait for each other only once.
    """
    if len(waiting) == 1 and (closed := _close_answered(request, refused, waiting[0])) is not None:
        return closed
    with transaction.atomic():
        for item in waiting:
            _command_close(item)
        result = _result(refused, waiting, within_s=_within_s(request))
        taken = ControlRequest.objects.filter(pk=request.pk, status=None).update(
            status=result.status, result=result.body, **_kept_answer(request, result, waiting)
        )
        if taken:
            _log_request(request, result)
        for item in waiting:
            _values_confirm(item)
    return result, bool(taken)


def _close_answered(
    request: ControlRequest, refused: Mapping[str, str], item: _Waiting
) -> tuple[ControlResult, bool] | None:
    """The usual end, of one command with its answer for one device at most, in as few round trips as can be.

    None, and nothing is done, where it is not the usual one, or another knew more of the command.
    """
    is_answered = item.state in {CommandState.DONE, CommandState.REFUSED}
    values = confirmed_values(item.devices) if item.state is CommandState.DONE else {}
    if not is_answered or len(values) > 1 or not request.category:
        return None
    result = _result(refused, [item], within_s=_within_s(request))
    line = _log_line(request, request.category, result)
    writes: list[Write] = [
        Update(
            ControlCommand,
            where=[("sequence", "=", item.command.sequence), ("state", "in", OPEN)],
            changes={
                "state": item.state,
                "result": msgspec.to_builtins(item.devices),
                **item.heard,
            },
        ),
        Update(
            ControlRequest,
            where=[("id", "=", request.pk), ("status", "is null", None)],
            changes={
                "status": result.status,
                "result": result.body,
                **_kept_answer(request, result, [item]),
            },
        ),
        Insert(line),
    ]
    node_id, sequence = item.command.node_id, item.command.sequence
    writes += [
        device_value_confirming(node_id=node_id, tag=tag, value=value, sequence=sequence)
        for tag, value in values.items()
    ]
    (closed, taken, *_), devices = writes_in_turn(*writes)
    if not closed:
        return None
    if taken:
        control_logs_publish([line])
        device_values_tell(devices)
    else:
        _values_confirm(item)
    return result, bool(taken)


def _values_confirm(item: _Waiting) -> None:
    """Record what devices have confirmed by the answer to a command."""
    if item.state is CommandState.DONE:
        device_values_confirm(
            node_id=item.command.node_id,
            values=confirmed_values(item.devices),
            sequence=item.command.sequence,
            is_first_word=True,
        )


def _kept_answer(
    request: ControlRequest, result: ControlResult, waiting: Sequence[_Waiting]
) -> dict[str, str | None]:
    """What becomes of a request's key: its answer is kept, or the key is free where nothing was sent."""
    if request.idempotency is None:
        return {}
    if waiting and all(item.state is CommandState.NOT_SENT for item in waiting):
        return {"idempotency": None, "digest": ""}
    return {"answer": answer_write(result.body)}


def _command_close(item: _Waiting) -> None:
    """Bring the row of a command to what the view knows, against a worker or an inbox that knows more."""
    rows = ControlCommand.objects.filter(pk=item.command.sequence)
    if item.state in {CommandState.DONE, CommandState.REFUSED}:
        result = msgspec.to_builtins(item.devices)
        if not rows.filter(state__in=OPEN).update(state=item.state, result=result, **item.heard):
            _take_recorded(item)
        return
    # No answer. The mirror of the worker's claim decides whether it can still be sent: at the deadline, where
    # the queue did not take it (or says so), and where the worker could not send it.
    if rows.filter(state=CommandState.QUEUED).update(state=CommandState.NOT_SENT):
        item.state, item.detail = CommandState.NOT_SENT, item.detail or "no worker took it in time"
    elif rows.filter(state=CommandState.SENT).update(state=CommandState.UNKNOWN, **item.heard):
        item.state = CommandState.UNKNOWN
    else:
        _take_recorded(item)


def _take_recorded(item: _Waiting) -> None:
    """Another was faster: the worker that could not send it, or the inbox with the node's control log."""
    item.command.refresh_from_db(fields=["state", "result"])
    item.state = CommandState(item.command.state)
    if item.command.result is not None:
        item.devices = msgspec.convert(item.command.result, dict[str, DeviceResult])


def confirmed_values(devices: Mapping[str, DeviceResult]) -> dict[str, float]:
    """Device tag -> value, of those that confirmed one."""
    return {tag: device.value for tag, device in devices.items() if device.ok and device.value is not None}


def _within_s(request: ControlRequest) -> float:
    return (request.deadline - request.created_at).total_seconds()


def _result(refused: Mapping[str, str], waiting: Iterable[_Waiting], *, within_s: float) -> ControlResult:
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
                not_updated[tag] = _why_not(item, within_s=within_s)
    return ControlResult(updated, not_updated)


def _why_not(item: _Waiting, *, within_s: float) -> str:
    match item.state:
        case CommandState.REFUSED:
            return f"{item.code}: {item.detail}" if item.detail else item.code
        case CommandState.NOT_SENT:
            return reason(Code.NOT_SENT, item.detail or "no worker took it in time")
        case CommandState.NOT_DELIVERED:
            return reason(Code.NOT_DELIVERED, "the node never accepted it")
        case _ if item.accepted:
            detail = f"the node accepted it, the device did not confirm within {within_s:g} s"
            return reason(Code.UNKNOWN, detail)
        case _:
            return reason(Code.UNKNOWN, item.detail or f"no confirmation within {within_s:g} s")


# --- what comes later ---------------------------------------------------------------------------


def requests_settle() -> int:
    """Close requests whose view died: what was not claimed was not sent, the rest is unknown. How many."""
    horizon = timezone.now() - timedelta(seconds=SETTLE_AFTER_S)
    closed = 0
    lost = ControlRequest.objects.filter(status=None, deadline__lt=horizon).order_by("deadline")
    for request in lost[:SETTLE_AT_ONCE]:
        waiting = [_Waiting(command) for command in request.commands.order_by("sequence")]
        _, taken = _request_close(request, {}, waiting)
        closed += taken
    return closed


def command_resolve(*, command: ControlCommand, devices: Mapping[str, DeviceResult] | None) -> bool:
    """Put down the truth about a command nobody had an answer for. False where it was known already.

    `devices`: what the node's own log says became of them, which outranks everything but itself. None: its
    report proves that it never accepted the command, which settles only what is unknown. The request's answer
    is corrected, and the correction logged. To be called in a transaction.
    """
    rows = ControlCommand.objects.filter(pk=command.pk)
    if devices is None:
        state, known = CommandState.NOT_DELIVERED, None
        taken = rows.filter(state=CommandState.UNKNOWN).update(state=state)
    else:
        state, known = CommandState.DONE, msgspec.to_builtins(dict(devices))
        taken = rows.exclude(state=CommandState.DONE).update(state=state, result=known)
    if not taken:
        return False
    request = ControlRequest.objects.select_for_update(no_key=True).get(pk=command.request_id)
    if request.status is None:
        # Its view still waits, and will find this row.
        return True
    item = _Waiting(command, state=state, devices=dict(devices or {}))
    partial = _result({}, [item], within_s=_within_s(request))
    before = answer_read(request.answer) if request.answer else request.result or {}
    updated = {
        tag: None for tag in before.get("updated", {}) if tag not in partial.not_updated
    } | partial.updated
    not_updated = {
        tag: why for tag, why in before.get("not_updated", {}).items() if tag not in partial.updated
    } | partial.not_updated
    corrected = ControlResult(updated, not_updated)
    request.status, request.result = corrected.status, corrected.body
    if request.idempotency is not None:
        request.answer = answer_write(corrected.body)
    request.save(update_fields=["status", "result", "answer"])
    _log_request(request, corrected)
    return True


def _log_request(request: ControlRequest, result: ControlResult) -> None:
    """One line; of a release that was not narrowed to a category, one for each that it reached."""
    parts = {request.category: result}
    if not request.category:
        parts = result.by_category(_categories(request, result))
    for category, part in parts.items():
        line = _log_line(request, category, part)
        line.save(force_insert=True)
        control_logs_publish([line])


def _log_line(request: ControlRequest, category: str, result: ControlResult) -> ControlLog:
    return ControlLog(
        site_id=request.site_id,
        request=request,
        status=result.status,
        category=category,
        value=request.value,
        unit=request.unit,
        result=result.body,
        reason=request.reason,
    )


def _categories(request: ControlRequest, result: ControlResult) -> dict[str, str]:
    tags = [*result.updated, *result.not_updated]
    devices = Device.objects.filter(site_id=request.site_id, device_tag__in=tags)
    return dict(devices.values_list("device_tag", "category"))


def nodes_in_doubt(nodes: Iterable[Node]) -> set[UUID]:
    """Those of these nodes that have commands of unknown fate."""
    unknown = ControlCommand.objects.filter(node__in=list(nodes), state=CommandState.UNKNOWN)
    return set(unknown.values_list("node_id", flat=True))


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
