"""What central asks its nodes while somebody waits: why a device is held where it is.

A question changes nothing, so it has no row, no sequence and no claim: it goes to the node through a worker,
and is worth nothing after its deadline.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog
from django.conf import settings
from django.db import connection
from django.utils import timezone
from kombu.exceptions import OperationalError

from control_app.dispatch import Note, Question, answers_key, note_read, question_encode
from devices_app.selectors import devices_visible_to
from edge.wire import codec
from edge.wire.messages import Code, CommandAnswer, ExplainCommand, Explanation, Message, Stage
from edge.wire.moments import parse_at
from sites_app.presence import central_now, presence_read
from smartgrid import live
from smartgrid.api.principal import Principal
from smartgrid.errors import Conflict, DispatchUnavailable, Invalid, NotFound, SgmError, Unavailable

log = structlog.stdlib.get_logger(__name__)

# A time of day to the nanosecond, with its offset, is half of that.
LONGEST_AT = 64
QUEUE_DEAD = "The question cannot be asked now: the task queue does not answer."


@dataclass(frozen=True, slots=True)
class Asking:
    """A question to one node, in the words of the wire; `command.id` names it."""

    tenant: str
    node_id: UUID
    op: str
    command_id: str
    command: Message


# --- asking ---------------------------------------------------------------------------------------


def nodes_ask(asking: Sequence[Asking], *, until: float) -> dict[str, Note]:
    """Ask these nodes and wait for what they say, by the command's id; who is not in it has said nothing.

    `until`: a moment of this process's monotonic clock, which is waited for no longer. `DispatchUnavailable`
    where nothing can be asked.
    """
    asker = uuid.uuid4().hex
    for one in asking:
        _queue(one, asker=asker, within_s=until - time.monotonic())
    connection_give_back()
    notes: dict[str, Note] = {}
    try:
        while len(notes) < len(asking) and (left := until - time.monotonic()) > 0:
            text = live.list_wait(answers_key(asker), timeout_s=left)
            if text is None:
                break
            note = note_read(text)
            notes.setdefault(note.command_id, note)
    except live.LiveUnavailable as error:
        log.warning("answers_unreachable", asker=asker, error=str(error))
    return notes


def _queue(asking: Asking, *, asker: str, within_s: float) -> None:
    from control_app.tasks import ask_node  # noqa: PLC0415 - tasks import this package

    question = Question(
        command_id=asking.command_id,
        asker=asker,
        tenant=asking.tenant,
        node=str(asking.node_id),
        op=asking.op,
        payload=codec.encode(asking.command).decode(),
        deadline=timezone.now() + timedelta(seconds=within_s),
    )
    try:
        ask_node.apply_async((question_encode(question),), expires=within_s, argsrepr="", kwargsrepr="")
    except OperationalError as error:
        raise DispatchUnavailable(QUEUE_DEAD) from error


def connection_give_back() -> None:
    """While we wait for the node another request may use the database connection.

    SQLite has none to spare: its file is opened by each thread, and opening it anew costs more than it frees.
    """
    if connection.vendor != "sqlite" and not connection.in_atomic_block:
        connection.close()


# --- why a device is held where it is -------------------------------------------------------------


def device_explain(*, principal: Principal, device_id: UUID, at: str | None) -> Explanation:
    """What a device's node says of why the device was held where it was at `at`; None: now.

    `at` is RFC 3339 or how long ago (`-10m`). `NotFound` for a device out of sight; `Invalid`, code `range`,
    for a moment that the node's ring does not reach; `Conflict`, code `unknown_device`, where the node does
    not know the device, `node_offline` where the node is known not to listen; `Unavailable` where there is
    no answer: `busy`, `no_answer`.
    """
    until = time.monotonic() + settings.SGM_REQUEST_DEADLINE_S
    if at is not None:
        if len(at) > LONGEST_AT:
            raise Invalid.field("at", f"at most {LONGEST_AT} characters are expected")
        try:
            parse_at(at, now=timezone.now())
        except ValueError as error:
            raise Invalid.field("at", str(error)) from error
    found = (
        devices_visible_to(principal)
        .filter(pk=device_id)
        .values_list("device_tag", "node_id", "node__tenant_tag", "node__epoch")
        .first()
    )
    if found is None:
        raise NotFound("No such device.")
    tag, node_id, tenant, epoch = found
    _require_online(node_id)
    command = ExplainCommand(id=uuid.uuid4().hex, epoch=epoch, device=tag, at=at)
    asking = Asking(tenant, node_id, "explain", command.id, command)
    answer = _answer(nodes_ask([asking], until=until).get(command.id))
    if answer.stage is Stage.REFUSED:
        raise _refusal(answer)
    explanation = answer.explanation
    if explanation is None or explanation.device != tag or not _is_dated(explanation):
        raise Unavailable("The node answered something else than it was asked.", code=Code.NO_ANSWER)
    return explanation


def _require_online(node_id: UUID) -> None:
    try:
        presence = presence_read([node_id])[node_id]
    except live.LiveUnavailable as error:
        raise DispatchUnavailable("The node cannot be asked now: Redis does not answer.") from error
    now = central_now()
    if not presence.is_reachable(now=now):
        raise Conflict(f"The node is not online: {presence.why_not(now=now)}.", code=Code.NODE_OFFLINE)


def _answer(note: Note | None) -> CommandAnswer:
    if note is None:
        raise Unavailable(
            f"The node gave no answer within {settings.SGM_REQUEST_DEADLINE_S:g} s. It may be of a version"
            " that does not know this question.",
            code=Code.NO_ANSWER,
        )
    if note.answer is None:
        raise DispatchUnavailable(f"The node could not be asked: {note.not_sent or note.lost}.")
    return note.answer


def _refusal(answer: CommandAnswer) -> SgmError:
    match answer.code:
        case Code.RANGE:
            return Invalid(f"at: {answer.detail}", code=Code.RANGE, errors={"at": [answer.detail]})
        case Code.UNKNOWN_DEVICE:
            # (Not in the words of the node, which name all it knows: it may have been another site's.)
            return Conflict(
                "The device's node does not know it yet: it has not applied a configuration with it.",
                code=Code.UNKNOWN_DEVICE,
            )
        case Code.BUSY:
            return Unavailable(f"The node is busy: {answer.detail}", code=Code.BUSY)
        case _:
            return Unavailable(f"The node does not say: {answer.code}: {answer.detail}", code=Code.NO_ANSWER)


def _is_dated(found: Explanation) -> bool:
    """Tell whether every moment of an answer is one: what a node says is shown as the API shows moments."""
    entries = [found.decision, *found.written, *found.before, *found.after]
    moments = [found.at, found.reaches_back_to, *(entry.at for entry in entries)]
    moments += [entry.until for entry in entries if entry.until is not None]
    try:
        for moment in moments:
            datetime.fromisoformat(moment).astimezone(UTC)
    except (ValueError, OverflowError):
        return False
    return True
