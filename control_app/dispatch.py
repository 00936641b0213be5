"""From a recorded command to the node and back: the worker's side of a request.

The view records a command, queues it and waits on a Redis list. The worker claims the row before it
publishes: no row, no publish, so a task that waited too long writes nothing. Answers come to the process that
sent the command; one consumer thread passes them on to whoever waits. What nobody waits for any longer is not
lost: the node's control log brings it (inbox).
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
import structlog
from django.utils import timezone

from control_app.models import CommandState, ControlCommand
from devices_app.probes import ANSWERS_KEPT_S as PROBES_KEPT_S, answers_key as probe_answers_key
from edge.wire import codec
from edge.wire.codec import WireError
from edge.wire.messages import (
    Code,
    CommandAnswer,
    PingClosing,
    PingCommand,
    ProbeCommand,
    ReleaseCommand,
    SetpointCommand,
    Stage,
)
from edge.wire.topics import NodeTopics
from sites_app.node_link import CommandMessage, LinkUnavailable, MqttNodeLink, SendUnconfirmed, node_link
from sites_app.presence import central_now, pongs_note
from smartgrid import live
from smartgrid.bulk import rows_change

log = structlog.stdlib.get_logger(__name__)

# Older than this, the newest token may die on the way: the node is asked for another one first.
TOKEN_GOOD_FOR_S = 8.0
PING_TIMEOUT_S = 2.0
# A command refused as stale may be sent once more with the token of the refusal, this soon after its claim.
RESEND_WITHIN_S = 3.0
# Answers are passed on this long after a claim; later ones come with the control log.
FORGET_AFTER_S = 60.0
ANSWERS_KEPT_S = 60
PONGS_AT_ONCE = 500
# An interim answer is passed on when the last one has not come by then.
ACCEPTED_TOLD_AFTER_S = 0.3


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One command as it travels through the queue; the database row decides whether it is sent."""

    command_id: str
    request_id: str
    sequence: int
    epoch: int
    tenant: str
    node: str
    category: str
    # device tag -> value; null: it is released, and so are all others of the command.
    values: dict[str, float | None]
    hold_s: float
    fresh: str
    fresh_at: float
    deadline: datetime
    reason: str = ""

    @property
    def is_release(self) -> bool:
        return None in self.values.values()

    def command(self, *, fresh: str) -> SetpointCommand | ReleaseCommand:
        if self.is_release:
            return ReleaseCommand(
                id=self.command_id,
                epoch=self.epoch,
                sequence=self.sequence,
                fresh=fresh,
                request_id=self.request_id,
                category=self.category,
                devices=tuple(self.values),
                reason=self.reason,
            )
        return SetpointCommand(
            id=self.command_id,
            epoch=self.epoch,
            sequence=self.sequence,
            fresh=fresh,
            request_id=self.request_id,
            category=self.category,
            values={tag: value for tag, value in self.values.items() if value is not None},
            hold_s=self.hold_s,
            reason=self.reason,
        )


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a node is asked that changes nothing, as it travels through the queue.

    `payload` is the encoded command, `asker` whom its answer is told, by `answers_key`.
    """

    command_id: str
    asker: str
    tenant: str
    node: str
    op: str
    payload: str
    deadline: datetime


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What a waiting view is told of one command: a node's answer, or why there will be none.

    `heard_at`: when the answer arrived; `accepted_at`: when the one before it did, `accepted`.
    """

    command_id: str
    answer: CommandAnswer | None = None
    not_sent: str = ""
    lost: str = ""
    heard_at: datetime | None = None
    accepted_at: datetime | None = None


_encode = msgspec.json.Encoder().encode
_note = msgspec.json.Decoder(Note)


def answers_key(request_id: str) -> str:
    return f"sgm:answers:{request_id}"


def accepted_key(request_id: str) -> str:
    """What nodes have accepted and not yet done: read at the deadline, so that nobody is woken for it."""
    return f"sgm:accepted:{request_id}"


def note_read(text: str) -> Note:
    return _note.decode(text)


def _tell(request_id: str, note: Note) -> None:
    is_interim = note.answer is not None and note.answer.stage is Stage.ACCEPTED
    key = accepted_key(request_id) if is_interim else answers_key(request_id)
    try:
        live.list_push(key, _encode(note).decode(), expires_s=ANSWERS_KEPT_S)
    except live.LiveUnavailable as error:
        # The view will call it unknown, and the control log will tell.
        log.error("answer_not_passed_on", command=note.command_id, error=str(error))  # noqa: TRY400


@dataclass(slots=True)
class _Pending:
    order: Order
    claimed_at: float
    accepted_at: datetime | None = None
    # Tokens of the refusals `stale` that came for it.
    stale: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Ping:
    node: str
    answered: threading.Event = field(default_factory=threading.Event)
    fresh: str | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    node: str
    asker: str
    left_at: float


@dataclass(slots=True)
class _Probing:
    topics: NodeTopics
    command: ProbeCommand
    left_at: float
    resent: bool = False


@dataclass(frozen=True, slots=True)
class Ping:
    """One ping of a round. `closing` ends the exchange before."""

    topics: NodeTopics
    epoch: int
    closing: PingClosing | None


class Dispatcher:
    """The sending side of one worker process."""

    def __init__(self, link: MqttNodeLink) -> None:
        self._link = link
        self._pending: dict[str, _Pending] = {}
        self._pings: dict[str, _Ping] = {}
        self._probes: dict[str, _Probing] = {}
        self._questions: dict[str, _Asked] = {}
        # Pings nobody waits for: their node, and when they left.
        self._watched: dict[str, tuple[str, float]] = {}
        # Answers to those, written down many at once: node -> ping, and when the answer arrived.
        self._pongs: dict[str, tuple[str, datetime]] = {}
        # Accepted, and when; used by the consumer of answers alone.
        self._accepted: deque[tuple[float, CommandAnswer]] = deque()
        self._arrived: queue.SimpleQueue[tuple[NodeTopics, bytes, datetime] | None] = queue.SimpleQueue()
        # Dated here, in the link's own thread: a node judges its clock by this moment.
        link.results(lambda topics, payload: self._arrived.put((topics, payload, timezone.now())))
        threading.Thread(target=self._consume, name="answers", daemon=True).start()

    def stop(self) -> None:
        """Let the consumer of answers end; the link is its owner's to close."""
        self._arrived.put(None)

    def dispatch(self, order: Order) -> None:
        """Send a command, if it is still wanted and the broker is there."""
        topics = NodeTopics(order.tenant, order.node)
        if not self._link.is_up:
            self._not_sent(order, CommandState.QUEUED, "the message broker is not connected")
            return
        fresh = order.fresh
        if central_now() - order.fresh_at > TOKEN_GOOD_FOR_S:
            fresh = self._ping(topics, epoch=order.epoch) or order.fresh
        now = timezone.now()
        claimed = rows_change(
            ControlCommand,
            changes={"state": CommandState.SENT, "claimed_at": now},
            where=[
                ("sequence", "=", order.sequence),
                ("state", "=", CommandState.QUEUED),
                ("deadline", ">", now),
            ],
        )
        if not claimed:
            log.info("command_not_claimed", command=order.command_id)
            return
        self._forget_old()
        self._pending[order.command_id] = _Pending(order, time.monotonic())
        ttl_s = (order.deadline - now).total_seconds()
        try:
            self._send(topics, order, fresh=fresh, ttl_s=ttl_s)
        except LinkUnavailable as error:
            self._not_sent(order, CommandState.SENT, error.detail)
        except SendUnconfirmed as error:
            log.warning("command_unconfirmed", command=order.command_id, error=error.detail)
            _tell(order.request_id, Note(command_id=order.command_id, lost=error.detail))

    def _send(self, topics: NodeTopics, order: Order, *, fresh: str, ttl_s: float) -> None:
        payload = codec.encode(order.command(fresh=fresh))
        op = "release" if order.is_release else "setpoint"
        self._link.send(topics, op, payload, command_id=order.command_id, ttl_s=ttl_s)

    def _not_sent(self, order: Order, state: CommandState, why: str) -> None:
        taken = ControlCommand.objects.filter(pk=order.sequence, state=state).update(
            state=CommandState.NOT_SENT
        )
        # No row: a second run of the same task, while the first may have sent it.
        if taken:
            _tell(order.request_id, Note(command_id=order.command_id, not_sent=why))

    def _ping(self, topics: NodeTopics, *, epoch: int) -> str | None:
        """Ask a node for a fresh token; None where it does not answer in time."""
        ping_id = uuid.uuid4().hex
        ping = self._pings[ping_id] = _Ping(topics.node)
        command = PingCommand(id=ping_id, epoch=epoch, sent_wall=timezone.now().isoformat())
        try:
            self._link.send(topics, "ping", codec.encode(command), command_id=ping_id, ttl_s=PING_TIMEOUT_S)
            ping.answered.wait(PING_TIMEOUT_S)
        except (LinkUnavailable, SendUnconfirmed):
            return None
        finally:
            del self._pings[ping_id]
        return ping.fresh

    def ask(self, question: Question) -> None:
        """Send a question, if it is still wanted; whoever asked is told the answer, or why there is none."""
        asked = _Asked(question.node, question.asker, time.monotonic())
        left_s = (question.deadline - timezone.now()).total_seconds()
        if left_s <= 0:
            log.info("question_too_late", command=question.command_id)
            return
        for old in [
            key for key, it in list(self._questions.items()) if asked.left_at - it.left_at > FORGET_AFTER_S
        ]:
            self._questions.pop(old, None)
        self._questions[question.command_id] = asked
        topics = NodeTopics(question.tenant, question.node)
        try:
            if not self._link.is_up:
                raise LinkUnavailable("the message broker is not connected")  # noqa: TRY301 - as `send` does
            self._link.send(
                topics,
                question.op,
                question.payload.encode(),
                command_id=question.command_id,
                ttl_s=left_s,
            )
        except LinkUnavailable as error:
            _tell(question.asker, Note(command_id=question.command_id, not_sent=error.detail))
        except SendUnconfirmed as error:
            # It may have arrived: its answer will tell, or the deadline.
            log.warning("question_unconfirmed", command=question.command_id, error=error.detail)

    def _question_answered(self, topics: NodeTopics, answer: CommandAnswer, asked: _Asked) -> None:
        if asked.node != topics.node:
            log.error("answer_from_another_node", node=topics.node, command=answer.id)
            return
        # Taken out: the broker may deliver an answer twice.
        self._questions.pop(answer.id, None)
        _tell(asked.asker, Note(command_id=answer.id, answer=answer))

    def probe(self, topics: NodeTopics, command: ProbeCommand, *, fresh_at: float) -> None:
        """Send a probe, whose answers are left for whoever looks (`devices_app.probes`).

        `LinkUnavailable`: it was not sent; `SendUnconfirmed`: it may have been.
        """
        if not self._link.is_up:
            raise LinkUnavailable("There is no connection to the message broker.")
        if central_now() - fresh_at > TOKEN_GOOD_FOR_S:
            fresh = self._ping(topics, epoch=command.epoch) or command.fresh
            command = msgspec.structs.replace(command, fresh=fresh)
        horizon = time.monotonic() - PROBES_KEPT_S
        for old in [key for key, probing in list(self._probes.items()) if probing.left_at < horizon]:
            self._probes.pop(old, None)
        self._probes[command.id] = _Probing(topics, command, time.monotonic())
        self._send_probe(topics, command)

    def _send_probe(self, topics: NodeTopics, command: ProbeCommand) -> None:
        self._link.send(topics, "probe", codec.encode(command), command_id=command.id, ttl_s=TOKEN_GOOD_FOR_S)

    def _probed(self, topics: NodeTopics, answer: CommandAnswer, probing: _Probing, payload: bytes) -> None:
        if probing.topics.node != topics.node:
            log.error("answer_from_another_node", node=topics.node, command=answer.id)
            return
        if answer.stage is Stage.REFUSED and answer.code == Code.STALE and answer.fresh is not None:
            again = msgspec.structs.replace(probing.command, fresh=answer.fresh)
            is_first, probing.resent = not probing.resent, True
            try:
                if is_first:
                    self._send_probe(topics, again)
                    return
            except (LinkUnavailable, SendUnconfirmed):
                # The refusal stands.
                pass
        try:
            live.list_push(probe_answers_key(answer.id), payload.decode(), expires_s=int(PROBES_KEPT_S))
        except live.LiveUnavailable as error:
            log.error("answer_not_passed_on", command=answer.id, error=str(error))  # noqa: TRY400

    def ping_all(self, pings: Sequence[Ping]) -> None:
        """Ping nodes in one go without waiting for their answers, which `pongs_note` records.

        `LinkUnavailable`, `SendUnconfirmed`: pings lost, which does no harm.
        """
        if not self._link.is_up:
            raise LinkUnavailable("There is no connection to the message broker.")
        horizon = time.monotonic() - FORGET_AFTER_S
        for old in [ping_id for ping_id, (_, left) in list(self._watched.items()) if left < horizon]:
            self._watched.pop(old, None)
        commands = []
        for ping in pings:
            ping_id = uuid.uuid4().hex
            self._watched[ping_id] = (ping.topics.node, time.monotonic())
            command = PingCommand(
                id=ping_id, epoch=ping.epoch, sent_wall=timezone.now().isoformat(), closing=ping.closing
            )
            commands.append(
                CommandMessage(
                    ping.topics, "ping", codec.encode(command), command_id=ping_id, ttl_s=PING_TIMEOUT_S
                )
            )
        self._link.send_all(commands)

    def _forget_old(self) -> None:
        horizon = time.monotonic() - FORGET_AFTER_S
        for command_id, pending in list(self._pending.items()):
            # Oldest first: a dict keeps the order of its keys.
            if pending.claimed_at > horizon:
                break
            self._pending.pop(command_id, None)

    # --- answers ----------------------------------------------------------------------------------

    def _consume(self) -> None:
        while True:
            try:
                self._tell_accepted()
                self._note_pongs()
                arrived = self._arrived.get(timeout=ACCEPTED_TOLD_AFTER_S)
                if arrived is None:
                    return
                topics, payload, heard = arrived
                self._answered(topics, codec.decode(CommandAnswer, payload), heard, payload)
            except queue.Empty:
                continue
            except WireError as error:
                log.warning("answer_not_understood", node=topics.node, error=str(error))
            except Exception:  # the top of this thread: it must live as long as the process
                log.exception("answer_failed")

    def _tell_accepted(self) -> None:
        """Pass on what was accepted a while ago and is not done; nearly all is done before that."""
        due = time.monotonic() - ACCEPTED_TOLD_AFTER_S
        while self._accepted and self._accepted[0][0] <= due:
            _, answer = self._accepted.popleft()
            pending = self._pending.get(answer.id)
            if pending is not None:
                note = Note(command_id=answer.id, answer=answer, heard_at=pending.accepted_at)
                _tell(pending.order.request_id, note)

    def _note_pongs(self) -> None:
        """Once nothing else waits, or so many have come: a command's answer does not queue behind a round."""
        if self._pongs and (self._arrived.empty() or len(self._pongs) >= PONGS_AT_ONCE):
            pongs, self._pongs = self._pongs, {}
            pongs_note(pongs)

    def _pong(self, topics: NodeTopics, answer: CommandAnswer, heard: datetime) -> None:
        # Taken out: the broker may deliver an answer twice, and the first is the one that measures.
        watched = self._watched.pop(answer.id, None)
        if watched is None:
            return
        if watched[0] != topics.node:
            self._watched[answer.id] = watched
            log.error("answer_from_another_node", node=topics.node, command=answer.id)
        elif answer.stage is Stage.DONE:
            self._pongs[topics.node] = (answer.id, heard)

    def _answered(self, topics: NodeTopics, answer: CommandAnswer, heard: datetime, payload: bytes) -> None:
        if answer.id in self._watched:
            self._pong(topics, answer, heard)
            return
        asked = self._questions.get(answer.id)
        if asked is not None:
            self._question_answered(topics, answer, asked)
            return
        probing = self._probes.get(answer.id)
        if probing is not None:
            self._probed(topics, answer, probing, payload)
            return
        ping = self._pings.get(answer.id)
        if ping is not None:
            if ping.node != topics.node:
                log.error("answer_from_another_node", node=topics.node, command=answer.id)
                return
            ping.fresh = answer.fresh
            ping.answered.set()
            return
        pending = self._pending.get(answer.id)
        if pending is None:
            return
        if pending.order.node != topics.node:
            log.error("answer_from_another_node", node=topics.node, command=answer.id)
            return
        if answer.stage is Stage.REFUSED and answer.code == Code.STALE and answer.fresh is not None:
            if answer.fresh in pending.stale:
                # The broker delivers at least once: this refusal has had its effect.
                return
            pending.stale.add(answer.fresh)
            if self._resend(topics, pending, answer.fresh):
                return
        if answer.stage is Stage.ACCEPTED:
            pending.accepted_at = pending.accepted_at or heard
            self._accepted.append((time.monotonic(), answer))
            return
        note = Note(command_id=answer.id, answer=answer, heard_at=heard, accepted_at=pending.accepted_at)
        _tell(pending.order.request_id, note)
        self._pending.pop(answer.id, None)

    def _resend(self, topics: NodeTopics, pending: _Pending, fresh: str) -> bool:
        """Once, the same id, soon after its claim: the token had died on the way, nobody wrote anything.

        False where it is not to be sent again, or certainly was not: then the refusal stands.
        """
        order = pending.order
        soon = time.monotonic() - pending.claimed_at < RESEND_WITHIN_S
        left_s = (order.deadline - timezone.now()).total_seconds()
        if len(pending.stale) > 1 or not soon or left_s <= 0:
            return False
        try:
            self._send(topics, order, fresh=fresh, ttl_s=left_s)
        except LinkUnavailable:
            return False
        except SendUnconfirmed as error:
            _tell(order.request_id, Note(command_id=order.command_id, lost=error.detail))
        return True


_one_at_a_time = threading.Lock()


@cache
def _dispatcher() -> Dispatcher:
    return Dispatcher(node_link())


def dispatcher() -> Dispatcher:
    """This process's dispatcher, with its link.

    The lock: two first tasks in two threads must not make two, of which only one would hear the answers.
    """
    with _one_at_a_time:
        return _dispatcher()


def question_encode(question: Question) -> dict[str, Any]:
    return msgspec.to_builtins(question)  # type: ignore[no-any-return]


def question_decode(raw: dict[str, Any]) -> Question:
    return msgspec.convert(raw, Question)


def order_encode(order: Order) -> dict[str, Any]:
    return msgspec.to_builtins(order)  # type: ignore[no-any-return]


def order_decode(raw: dict[str, Any]) -> Order:
    return msgspec.convert(raw, Order)
