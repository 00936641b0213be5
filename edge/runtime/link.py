"""The broker side of a node: birth, heartbeats, commands, desired state, and the outbox.

Nothing here is on the way from a hold to its release. The link may be gone for weeks; it only decides what
reaches the arbitration, and when central hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from edge.runtime.alarms import Alarms
from edge.runtime.clock import Clock, wall
from edge.runtime.cycle import CONTROL_STREAM, Accepted, Cycle
from edge.runtime.documents import MANIFEST, Desired
from edge.runtime.fleet import Fleet
from edge.runtime.store import Store
from edge.wire import codec
from edge.wire.codec import WireError
from edge.wire.messages import (
    FRESH_WINDOW_S,
    HEARTBEAT_EXPIRY_S,
    HEARTBEAT_PERIOD_S,
    RESPONSE_EXPIRY_S,
    TELEMETRY_EXPIRY_S,
    Code,
    Command,
    CommandAnswer,
    DeviceResult,
    Document,
    Heartbeat,
    LogAck,
    LogBatch,
    LogEntry,
    Manifest,
    PingCommand,
    Presence,
    ReleaseCommand,
    Reported,
    SetpointCommand,
    Stage,
    TelemetryBatch,
    TelemetryPoint,
)
from edge.wire.session import Broker, Incoming, LinkDown, Will, open_session
from edge.wire.topics import NodeTopics

log = structlog.get_logger()

SOFTWARE = "0.1.0"
RECONNECT_FIRST_S = 0.5
RECONNECT_SLOWEST_S = 15.0
# Live data goes first: the outbox waits this long after an entry, and so gathers what belongs together.
UPLOAD_DELAY_S = 0.4
UPLOAD_BATCH = 200
# Far below the wire's greatest packet: a batch that the broker refuses would be sent for ever.
UPLOAD_BYTES = 512 * 1024
TELEMETRY_BATCH = 2000
FORGET_PERIOD_S = 3600.0
ACK_TIMEOUT_S = 10.0
REPORT_PERIOD_S = 10.0
REPORT_ANYWAY_S = 60.0
TELEMETRY_PERIOD_S = 5.0
# Commands under way at once; more answer `busy`.
MAX_UNDER_WAY = 256


class Session(Protocol):
    """What the link needs of a session with the broker; `LinkDown` from any method once it is gone."""

    async def subscribe(self, *topics: str, qos: int = 1) -> None: ...

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        expiry_s: int | None = None,
        response_topic: str | None = None,
        correlation: bytes | None = None,
    ) -> None: ...

    def messages(self) -> AsyncIterator[Incoming]: ...


class OpenSession(Protocol):
    """How a session with the broker is opened: `edge.wire.session.open_session`, or a simulated one."""

    def __call__(
        self, broker: Broker, *, identifier: str, will: Will | None = None
    ) -> AbstractAsyncContextManager[Session]: ...


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A session in which an acknowledgement is awaited."""

    last: int
    acknowledged: asyncio.Event


class FreshTokens:
    """The tokens this node gave out lately. A command must carry one younger than the freshness window.

    No clock but this node's own is involved, so a command that was held up anywhere dies here.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._issued: dict[str, float] = {}

    def issue(self) -> str:
        now = self._clock.boottime_s()
        self._issued = {token: at for token, at in self._issued.items() if now - at < FRESH_WINDOW_S}
        token = secrets.token_urlsafe(9)
        self._issued[token] = now
        return token

    def is_fresh(self, token: str) -> bool:
        issued = self._issued.get(token)
        return issued is not None and self._clock.boottime_s() - issued < FRESH_WINDOW_S


class Link:
    """One node's link to central."""

    def __init__(
        self,
        *,
        broker: Broker,
        topics: NodeTopics,
        clock: Clock,
        store: Store,
        cycle: Cycle,
        desired: Desired,
        fleet: Fleet,
        alarms: Alarms,
        tasks: asyncio.TaskGroup,
        open_session: OpenSession = open_session,
    ) -> None:
        self._broker = broker
        self._open_session = open_session
        self._topics = topics
        self._clock = clock
        self._store = store
        self._cycle = cycle
        self._desired = desired
        self._fleet = fleet
        self._alarms = alarms
        self._tasks = tasks
        self._fresh = FreshTokens(clock)
        self._session_id = ""
        self._heartbeats = 0
        self._report_wanted = asyncio.Event()
        self._upload_wanted = asyncio.Event()
        self._ack: _Waiting | None = None
        self._sent_last = 0
        self._live: Session | None = None
        self._under_way = 0

    # --- what others tell the link ------------------------------------------------------------------

    def changed(self) -> None:
        """Something in `reported` changed."""
        self._report_wanted.set()

    def logged(self) -> None:
        """The outbox has a new entry."""
        self._upload_wanted.set()

    # --- connection ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Connect, again and again, for the life of the node."""
        wait_s = RECONNECT_FIRST_S
        while True:
            started = self._clock.boottime_s()
            try:
                await self._one_session()
            except LinkDown as error:
                lasted = self._clock.boottime_s() - started
                log.warning("link is down", reason=str(error), lasted_s=round(lasted, 1))
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # Asked to stop just when the link went down: the loss must not swallow the request.
                raise asyncio.CancelledError
            if self._clock.boottime_s() - started > RECONNECT_SLOWEST_S:
                wait_s = RECONNECT_FIRST_S
            await self._clock.sleep(wait_s)
            wait_s = min(wait_s * 2, RECONNECT_SLOWEST_S)

    async def _one_session(self) -> None:
        self._session_id = uuid.uuid4().hex
        presence = Presence(online=False, session=self._session_id, boot=self._clock.boot_id, sw=SOFTWARE)
        will = Will(self._topics.presence, codec.encode(presence))
        # A client id of its own for each session: a half-open old one must not be taken over silently.
        identifier = f"{self._topics.node}-{self._session_id[:8]}"
        async with self._open_session(self._broker, identifier=identifier, will=will) as session:
            await session.subscribe(self._topics.commands, self._topics.desired, self._topics.log_ack)
            birth = Presence(
                online=True,
                session=self._session_id,
                boot=self._clock.boot_id,
                sw=SOFTWARE,
                fresh=self._fresh.issue(),
            )
            await session.publish(self._topics.presence, codec.encode(birth), retain=True)
            self._live = session
            self._report_wanted.set()
            self._upload_wanted.set()
            log.info(
                "link is up", broker=f"{self._broker.host}:{self._broker.port}", session=self._session_id
            )
            try:
                await self._serve(session)
            finally:
                self._live = None
                with contextlib.suppress(LinkDown):
                    await session.publish(self._topics.presence, codec.encode(presence), retain=True)

    async def _serve(self, session: Session) -> None:
        jobs: list[Awaitable[None]] = [
            self._listen(session),
            self._heartbeat(session),
            self._report(session),
            self._upload(session),
            self._telemetry(session),
            self._forget(),
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(_coroutine(job))
        except* LinkDown as errors:
            raise errors.exceptions[0] from None

    # --- up -----------------------------------------------------------------------------------------

    async def _heartbeat(self, session: Session) -> None:
        while True:
            self._heartbeats += 1
            now = self._clock.now()
            beat = Heartbeat(
                session=self._session_id,
                seq=self._heartbeats,
                mono_ms=int(now.boottime_s * 1000),
                wall=wall(now.utc),
                fresh=self._fresh.issue(),
            )
            await session.publish(
                self._topics.heartbeat, codec.encode(beat), qos=0, expiry_s=HEARTBEAT_EXPIRY_S
            )
            await self._clock.sleep(HEARTBEAT_PERIOD_S)

    async def _report(self, session: Session) -> None:
        while True:
            # Now and then without a change too: a report proves what this node did *not* accept.
            # asyncio.timeout, not wait_for: on Python 3.11 that one may swallow the request to stop.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_ANYWAY_S):
                    await self._report_wanted.wait()
            self._report_wanted.clear()
            clock = "trusted" if self._clock.quality().untrusted_since_s is None else "unsynced"
            report = Reported(
                session=self._session_id,
                boot=self._clock.boot_id,
                store=self._store.store_id,
                epoch=self._desired.epoch,
                manifest_version=self._desired.version,
                at=wall(self._clock.now().utc),
                clock=clock,
                sequences=self._cycle.sequences,
                documents=self._desired.reported(),
                devices_refused=self._fleet.refused,
                retiring=self._fleet.retiring,
                alarms=self._alarms.standing,
            )
            await session.publish(self._topics.reported, codec.encode(report), retain=True)
            await self._clock.sleep(REPORT_PERIOD_S)

    async def _upload(self, session: Session) -> None:
        """Drain the control stream in order, one batch in flight; entries go when central has them."""
        while True:
            await self._upload_wanted.wait()
            self._upload_wanted.clear()
            await self._clock.sleep(UPLOAD_DELAY_S)
            while entries := self._store.waiting(CONTROL_STREAM, limit=UPLOAD_BATCH, max_bytes=UPLOAD_BYTES):
                await self._upload_batch(session, entries)

    async def _upload_batch(self, session: Session, entries: list[LogEntry]) -> None:
        batch = LogBatch(
            stream=CONTROL_STREAM,
            store=self._store.store_id,
            first=entries[0].seq,
            last=entries[-1].seq,
            entries=entries,
        )
        waiting = self._ack = _Waiting(batch.last, asyncio.Event())
        self._sent_last = max(self._sent_last, batch.last)
        await session.publish(self._topics.log, codec.encode(batch))
        # No acknowledgement: central is down or restarting. The same batch goes out again.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ACK_TIMEOUT_S):
                await waiting.acknowledged.wait()

    async def _telemetry(self, session: Session) -> None:
        while True:
            await self._clock.sleep(TELEMETRY_PERIOD_S)
            points = [
                TelemetryPoint(t=wall(reading.at.utc), key=key, value=reading.value, device=tag)
                for tag, unit in self._cycle.units.items()
                for key, reading in unit.readings.items()
                if reading.value is not None
            ]
            for unit in self._cycle.units.values():
                unit.readings = {}
            for first in range(0, len(points), TELEMETRY_BATCH):
                batch = TelemetryBatch(points=points[first : first + TELEMETRY_BATCH])
                await session.publish(
                    self._topics.telemetry, codec.encode(batch), qos=0, expiry_s=TELEMETRY_EXPIRY_S
                )

    async def _forget(self) -> None:
        """Commands are remembered for a day, so that the store does not grow for the life of a node."""
        while True:
            self._store.forget_old_commands(self._clock.now().utc)
            await self._clock.sleep(FORGET_PERIOD_S)

    # --- down ---------------------------------------------------------------------------------------

    async def _listen(self, session: Session) -> None:
        async for message in session.messages():
            leaf = self._topics.leaf(message.topic) or ""
            kind, _, name = leaf.partition("/")
            try:
                if kind == "cmd":
                    self._command(message)
                elif leaf == f"desired/{MANIFEST}":
                    self._desired.take_manifest(codec.decode(Manifest, message.payload))
                elif kind == "desired" and message.payload:
                    # (An empty one was taken away; the manifest says what that means.)
                    self._desired.take(name, codec.decode(Document, message.payload))
                elif leaf == "logack":
                    self._log_ack(codec.decode(LogAck, message.payload))
            except WireError as error:
                log.error("message not understood", topic=message.topic, error=str(error))  # noqa: TRY400
        raise LinkDown("the broker closed the connection")

    def _log_ack(self, ack: LogAck) -> None:
        if ack.store != self._store.store_id or ack.stream != CONTROL_STREAM:
            return
        # What was never sent cannot have been committed, whatever a restored central thinks.
        self._store.acknowledged(CONTROL_STREAM, last=min(ack.last, self._sent_last))
        if self._ack is not None and ack.last >= self._ack.last:
            self._ack.acknowledged.set()

    # --- commands -----------------------------------------------------------------------------------

    def _command(self, message: Incoming) -> None:
        received = self._clock.now()
        command = codec.decode_command(message.payload)
        answer = _Answers(self, message)
        if message.retain:
            answer.refuse(command, Code.RETAINED, "a retained command is never carried out")
            return
        if command.epoch < self._desired.epoch:
            answer.refuse(command, Code.OLD_EPOCH, f"this node is at epoch {self._desired.epoch}")
            return
        match command:
            case PingCommand():
                answer.send(
                    CommandAnswer(
                        id=command.id,
                        stage=Stage.DONE,
                        fresh=self._fresh.issue(),
                        sent_wall=command.sent_wall,
                        received_wall=wall(received.utc),
                        answered_wall=wall(self._clock.now().utc),
                    )
                )
            case SetpointCommand() | ReleaseCommand():
                self._control(command, answer, received.utc)
            case _:
                self.changed()
                answer.send(CommandAnswer(id=command.id, stage=Stage.DONE))

    def _control(
        self, command: SetpointCommand | ReleaseCommand, answer: _Answers, received: datetime
    ) -> None:
        is_known, earlier = self._store.answer_to(command.id)
        if is_known:
            if earlier is not None:
                answer.send_bytes(earlier)
            return
        if not self._fresh.is_fresh(command.fresh):
            answer.refuse(command, Code.STALE, "its freshness token is older than 15 s or not of this node")
            return
        if self._under_way >= MAX_UNDER_WAY:
            answer.refuse(command, Code.BUSY, "too many commands are under way on this node")
            return
        # One transaction: what was accepted and that it was accepted are on disk before anybody hears of it.
        with self._store.transaction():
            if isinstance(command, SetpointCommand):
                accepted = self._cycle.accept_setpoint(command)
            else:
                accepted = self._cycle.accept_release(command)
            first = codec.encode(CommandAnswer(id=command.id, stage=Stage.ACCEPTED, devices=accepted.refused))
            self._store.remember(command.id, at=received, answer=first)
        answer.send_bytes(first)
        self._under_way += 1
        self._tasks.create_task(self._complete(command, accepted, answer), name=f"command {command.id}")

    async def _complete(
        self, command: SetpointCommand | ReleaseCommand, accepted: Accepted, answer: _Answers
    ) -> None:
        try:
            results = await accepted.results()
        finally:
            self._under_way -= 1
        last = codec.encode(CommandAnswer(id=command.id, stage=Stage.DONE, devices=results))
        now = self._clock.now().utc
        # The answer leaves before the record is written: somebody waits for it, and the record is for when it
        # gets lost. Only a death between the two, the answer lost as well, leaves central with `unknown`.
        answer.send_bytes(last)
        await asyncio.sleep(0)
        with self._store.transaction():
            self._store.remember(command.id, at=now, answer=last)
            self._store.append(CONTROL_STREAM, _log_entry(command, results, now))
        self.logged()
        self.changed()

    async def answer(self, topic: str, payload: bytes, correlation: bytes | None) -> None:
        """Send an answer if there is a link; without one the outbox carries the result."""
        if self._live is None:
            return
        with contextlib.suppress(LinkDown):
            await self._live.publish(topic, payload, expiry_s=RESPONSE_EXPIRY_S, correlation=correlation)

    def fresh_token(self) -> str:
        return self._fresh.issue()

    def is_ours(self, response_topic: str) -> bool:
        return self._topics.owns_response(response_topic)

    def spawn(self, job: Awaitable[None]) -> None:
        self._tasks.create_task(_coroutine(job))


class _Answers:
    """Where the answers to one command go: nowhere, unless the Response Topic is this node's own."""

    def __init__(self, link: Link, message: Incoming) -> None:
        self._link = link
        topic = message.response_topic or ""
        self._topic = topic if link.is_ours(topic) else None
        self._correlation = message.correlation

    def send(self, answer: CommandAnswer) -> None:
        self.send_bytes(codec.encode(answer))

    def send_bytes(self, payload: bytes) -> None:
        if self._topic is not None:
            self._link.spawn(self._link.answer(self._topic, payload, self._correlation))

    def refuse(self, command: Command, code: Code, detail: str) -> None:
        log.warning("command refused", command=command.id, code=code.value, detail=detail)
        fresh = self._link.fresh_token() if code is Code.STALE else None
        self.send(CommandAnswer(id=command.id, stage=Stage.REFUSED, code=code, detail=detail, fresh=fresh))


def _log_entry(
    command: SetpointCommand | ReleaseCommand, results: dict[str, DeviceResult], now: datetime
) -> LogEntry:
    values = set(command.values.values()) if isinstance(command, SetpointCommand) else set()
    return LogEntry(
        seq=0,
        at=wall(now),
        kind="result",
        category=command.category,
        value=values.pop() if len(values) == 1 else None,
        command_id=command.id,
        request_id=command.request_id,
        sequence=command.sequence,
        reason=command.reason,
        devices=results,
    )


async def _coroutine(job: Awaitable[None]) -> None:
    await job
