"""The broker side of a node: birth, heartbeats, commands, desired state, and the outbox.

Nothing here is on the way from a hold to its release. The link may be gone for weeks; it only decides what
reaches the arbitration, and when central hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any

import msgspec
import structlog

from edge.runtime import explain
from edge.runtime.alarms import Alarms
from edge.runtime.clock import Clock, SteeredClock, wall
from edge.runtime.cycle import Accepted, Cycle
from edge.runtime.database import StoreFailed
from edge.runtime.documents import MANIFEST, Desired
from edge.runtime.fleet import Fleet
from edge.runtime.probe import Prober, Unusable
from edge.runtime.reasons import Reasons
from edge.runtime.session import OpenSession, Session
from edge.runtime.store import Store
from edge.runtime.telemetry import KEEP_EVERY_S, Telemetry
from edge.runtime.timekeeper import Timekeeper
from edge.runtime.uploader import PACE, Pace, Throttle, Uploader
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
    DevicePreview,
    DeviceResult,
    Document,
    ExplainCommand,
    Heartbeat,
    LogAck,
    LogEntry,
    Manifest,
    PingCommand,
    Presence,
    PreviewCommand,
    ProbeCommand,
    ReleaseCommand,
    Reported,
    SetpointCommand,
    Stage,
    Stream,
    TelemetryBatch,
)
from edge.wire.session import Broker, Incoming, LinkDown, Will, open_session
from edge.wire.topics import NodeTopics

log = structlog.get_logger()

SOFTWARE = "0.1.0"
RECONNECT_FIRST_S = 0.5
RECONNECT_SLOWEST_S = 15.0
TELEMETRY_TICK_S = 1.0
# Points of one `tele` batch: more would hold up the event loop for milliseconds.
TELEMETRY_BATCH = 500
# Telemetry that waits for a link is bounded by both.
TELEMETRY_KEPT_BYTES = 64 * 1024 * 1024
TELEMETRY_KEPT = timedelta(days=7)
TEND_PERIOD_S = 1.0
FORGET_PERIOD_S = 3600.0
# Changes are reported this often in the long run; so many may follow each other at once (ADR 0014).
REPORT_PERIOD_S = 10.0
# A closed loop that stands otherwise is told at once, but no two heartbeats are nearer to each other.
BEAT_AT_MOST_EVERY_S = 1.0
REPORTS_AT_ONCE = 3
REPORT_ANYWAY_S = 60.0
# Changes come in company, a site's documents say: a report waits for this long without another one, and for
# so long in all.
GATHER_S = 0.05
GATHER_MOST_S = 1.0
# Commands under way at once; more answer `busy`.
MAX_UNDER_WAY = 256
MAX_PREVIEWING = 4
# In the order of a command that none which central has sent, or will send in its epoch, comes after.
AFTER_ALL = 2**63 - 2
STALE = "its freshness token is older than 15 s or not of this node"


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
        clock: SteeredClock,
        store: Store,
        cycle: Cycle,
        desired: Desired,
        fleet: Fleet,
        alarms: Alarms,
        tasks: asyncio.TaskGroup,
        open_session: OpenSession = open_session,
        pace: Pace = PACE,
        reasons: Reasons | None = None,
    ) -> None:
        self._reasons = reasons
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
        self._beat_wanted = asyncio.Event()
        self._reconnect = asyncio.Event()
        self._document_came = asyncio.Event()
        self._values_told: dict[str, float] = {}
        self._live: Session | None = None
        self._under_way = 0
        self._previewing = 0
        self._timekeeper = Timekeeper(clock=clock, store=store, alarms=alarms, logged=self.logged)
        self._telemetry = Telemetry()
        self._prober = Prober(fleet=fleet, clock=clock)
        throttle = Throttle(pace, clock)

        def uploader(stream: Stream, *, before: Uploader | None = None) -> Uploader:
            return Uploader(
                stream,
                outbox=store.outbox,
                topic=topics.log,
                clock=clock,
                pace=pace,
                throttle=throttle,
                before=before,
            )

        control = uploader(Stream.CONTROL)
        self._uploads = {
            Stream.CONTROL: control,
            Stream.TELEMETRY: uploader(Stream.TELEMETRY, before=control),
        }

    # --- what others tell the link ------------------------------------------------------------------

    def changed(self) -> None:
        """Something in `reported` changed."""
        self._report_wanted.set()

    def stood(self) -> None:
        """A closed loop stands otherwise than before."""
        self._beat_wanted.set()

    def logged(self) -> None:
        """The control stream has a new entry."""
        self._uploads[Stream.CONTROL].appended()

    # --- connection ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the link, and what must be kept while there is none, for the life of the node."""
        self._settle()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_connected())
            group.create_task(self._apply_documents())
            group.create_task(self._tend())
            group.create_task(self._keep_readings())

    async def _keep_connected(self) -> None:
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
        # All of it random: who cannot guess it cannot end this session by coming under the same id.
        identifier = f"{self._topics.node}-{self._session_id}"
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
            self._reconnect.clear()
            self._report_wanted.set()
            log.info(
                "link is up", broker=f"{self._broker.host}:{self._broker.port}", session=self._session_id
            )
            try:
                # In a task of its own: on Python 3.11 a task group that ends by the error of a member leaves
                # the task around it marked as cancelled. Who asks for that mark would take a loss of the link
                # for a request to stop, and never connect again.
                await asyncio.create_task(self._serve(session), name="link session")
            finally:
                self._live = None
                with contextlib.suppress(LinkDown):
                    await session.publish(self._topics.presence, codec.encode(presence), retain=True)

    async def _serve(self, session: Session) -> None:
        jobs: list[Coroutine[Any, Any, None]] = [
            self._listen(session),
            self._heartbeat(session),
            self._report(session),
            *(upload.run(session) for upload in self._uploads.values()),
            self._send_readings(session),
            self._forget(),
            self._end_when_asked(),
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(job)
        except* LinkDown as errors:
            raise errors.exceptions[0] from None

    # --- a session that is to be another ------------------------------------------------------------

    @property
    def live_session(self) -> str:
        """The id of the session that is open; empty where none is."""
        return self._session_id if self._live is not None else ""

    def reconnect(self) -> None:
        """End the present session and open another, with the certificate that is on disk then."""
        self._reconnect.set()

    async def _end_when_asked(self) -> None:
        await self._reconnect.wait()
        raise LinkDown("the node's certificate is a new one")

    # --- up -----------------------------------------------------------------------------------------

    async def _heartbeat(self, session: Session) -> None:
        while True:
            self._heartbeats += 1
            self._beat_wanted.clear()
            now = self._clock.now()
            beat = Heartbeat(
                session=self._session_id,
                seq=self._heartbeats,
                mono_ms=int(now.boottime_s * 1000),
                wall=wall(now.utc),
                fresh=self._fresh.issue(),
                loops=self._cycle.loops.statuses(),
            )
            await session.publish(
                self._topics.heartbeat, codec.encode(beat), qos=0, expiry_s=HEARTBEAT_EXPIRY_S
            )
            await self._clock.sleep(BEAT_AT_MOST_EVERY_S)
            await self._clock.wait(self._beat_wanted, HEARTBEAT_PERIOD_S - BEAT_AT_MOST_EVERY_S)

    async def _report(self, session: Session) -> None:
        """Report at birth, at a change, and now and then: a report proves what this node did *not* accept.

        Changes are reported every ten seconds in the long run; the first few after a quiet time at once, so
        that somebody who edits a schedule twice need not wait for the second.
        """
        await self._gather_changes()
        await self._report_now(session)
        left, counted_s = float(REPORTS_AT_ONCE), self._clock.boottime_s()
        while True:
            # asyncio.timeout, not wait_for: on Python 3.11 that one may swallow the request to stop.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_ANYWAY_S):
                    await self._report_wanted.wait()
            if self._report_wanted.is_set():
                now_s = self._clock.boottime_s()
                left = min(REPORTS_AT_ONCE, left + (now_s - counted_s) / REPORT_PERIOD_S)
                counted_s = now_s
                if left < 1:
                    await self._clock.sleep((1 - left) * REPORT_PERIOD_S)
                left -= 1
                await self._gather_changes()
            await self._report_now(session)

    async def _gather_changes(self) -> None:
        begun = self._clock.boottime_s()
        while self._clock.boottime_s() - begun < GATHER_MOST_S:
            self._report_wanted.clear()
            await self._clock.wait(self._report_wanted, GATHER_S)
            if not self._report_wanted.is_set() and self._desired.is_settled:
                return
        self._report_wanted.clear()

    async def _report_now(self, session: Session) -> None:
        standing = self._timekeeper.standing
        values = self._values_told = self._cycle.values
        report = Reported(
            session=self._session_id,
            boot=self._clock.boot_id,
            store=self._store.store_id,
            mono_ms=int(self._clock.boottime_s() * 1000),
            epoch=self._desired.epoch,
            manifest_version=self._desired.version,
            at=wall(self._clock.now().utc),
            clock=standing.trust.value,
            clock_bound_s=None if standing.bound_s is None else round(standing.bound_s, 3),
            sequences=self._cycle.sequences,
            values=values,
            documents=self._desired.reported(),
            devices_refused=self._fleet.refused,
            loops_refused=self._fleet.loops_refused,
            retiring=self._fleet.retiring,
            wear=self._cycle.wear,
            alarms=self._alarms.standing,
        )
        await session.publish(self._topics.reported, codec.encode(report), retain=True)

    async def _send_readings(self, session: Session) -> None:
        while True:
            await self._clock.sleep(TELEMETRY_TICK_S)
            points = self._telemetry.due(self._cycle.units, self._fleet.plan, self._clock.now())
            while part := list(islice(points, TELEMETRY_BATCH)):
                await session.publish(
                    self._topics.telemetry,
                    codec.encode(TelemetryBatch(points=part)),
                    qos=0,
                    expiry_s=TELEMETRY_EXPIRY_S,
                )
                await asyncio.sleep(0)

    async def _forget(self) -> None:
        """Commands are remembered for a day, so that the store does not grow for the life of a node."""
        while True:
            with contextlib.suppress(StoreFailed):
                await _in_slices(lambda: self._store.forget_old_commands(self._clock.now().utc))
            await self._clock.sleep(FORGET_PERIOD_S)

    # --- with or without a link ---------------------------------------------------------------------

    async def _keep_readings(self) -> None:
        """While there is no link, keep one value a minute of each key in the outbox."""
        while True:
            await self._clock.sleep(KEEP_EVERY_S)
            self._telemetry.forget(self._cycle.units)
            if self._live is not None:
                continue
            now = self._clock.now()
            for entry in self._telemetry.kept(self._cycle.units, self._fleet.plan, now):
                self._store.append(Stream.TELEMETRY, entry)
                await asyncio.sleep(0)
            self._uploads[Stream.TELEMETRY].appended()
            # Nobody knows how old anything is by a clock that nothing confirms.
            is_dated = self._timekeeper.standing.bound_s is not None
            before = wall(now.utc - TELEMETRY_KEPT) if is_dated else None
            with contextlib.suppress(StoreFailed):
                await _in_slices(
                    partial(self._store.outbox.trim_telemetry, max_bytes=TELEMETRY_KEPT_BYTES, before=before)
                )

    async def _tend(self) -> None:
        """Look after the clock and the disk, and report when something is wrong, or no longer is."""
        while True:
            self._timekeeper.tick()
            if self._store.failure is not None and self._store.try_again():
                for upload in self._uploads.values():
                    upload.appended()
            self._desired.keep_again()
            self._tell_store()
            if self._cycle.values != self._values_told:
                # A slot began, a hold lapsed, a device came back: nobody was waiting for an answer.
                self.changed()
            await self._clock.sleep(TEND_PERIOD_S)

    def _tell_store(self) -> None:
        if self._store.failure is None:
            self._alarms.clear("store_failed")
        else:
            detail = f"the disk takes nothing, so new direct requests are refused: {self._store.failure}"
            self._alarms.set("store_failed", detail)
        missing = self._store.outbox.missing
        if not missing:
            self._alarms.clear("outbox_dropped")
        else:
            dropped = [
                f"{gap.entries} of {stream.value} since {gap.since}" for stream, gap in missing.items()
            ]
            self._alarms.set("outbox_dropped", f"entries were dropped for want of room: {', '.join(dropped)}")

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
                    self._document_came.set()
                elif kind == "desired" and message.payload:
                    # (An empty one was taken away; the manifest says what that means.)
                    self._desired.take(name, codec.decode(Document, message.payload))
                    self._document_came.set()
                elif leaf == "logack":
                    self._log_ack(codec.decode(LogAck, message.payload))
            except WireError as error:
                log.error("message not understood", topic=message.topic, error=str(error))  # noqa: TRY400
        raise LinkDown("the broker closed the connection")

    async def _apply_documents(self) -> None:
        """Apply what arrived, one by one: on a slow disk a whole set takes longer than a command may wait."""
        while True:
            while not self._desired.is_settled:
                self._desired.step()
                await asyncio.sleep(0)
            await self._document_came.wait()
            self._document_came.clear()

    def _log_ack(self, ack: LogAck) -> None:
        try:
            upload = self._uploads[Stream(ack.stream)]
        except ValueError:
            return
        upload.acknowledge(ack.store, ack.last)

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
                answered = self._clock.now()
                answer.send(
                    CommandAnswer(
                        id=command.id,
                        stage=Stage.DONE,
                        fresh=self._fresh.issue(),
                        sent_wall=command.sent_wall,
                        received_wall=wall(received.utc),
                        answered_wall=wall(answered.utc),
                    )
                )
                self._timekeeper.pinged(
                    command, received_s=received.boottime_s, answered_s=answered.boottime_s
                )
            case SetpointCommand() | ReleaseCommand():
                self._control(command, answer, received.utc)
            case ExplainCommand():
                self.spawn(self._explain(command, answer))
            case ProbeCommand():
                self._probe(command, answer)
            case PreviewCommand():
                if self._previewing >= MAX_PREVIEWING:
                    answer.refuse(command, Code.BUSY, "too many previews are asked of this node at once")
                    return
                self._previewing += 1
                self.spawn(self._preview(command, answer))
            case _:
                self.changed()
                answer.send(CommandAnswer(id=command.id, stage=Stage.DONE))

    async def _explain(self, command: ExplainCommand, answer: _Answers) -> None:
        answer.send(await explain.answer(command, self._reasons, now=self._clock.now()))

    async def _preview(self, command: PreviewCommand, answer: _Answers) -> None:
        found: dict[str, DevicePreview] = {}
        try:
            for tag, value in command.values.items():
                found |= self._cycle.preview(
                    tag, value, order=(command.epoch, AFTER_ALL), hold_s=command.hold_s
                )
                # Each takes as long as several decisions: commands and the cycle come in between.
                await asyncio.sleep(0)
        finally:
            self._previewing -= 1
        answer.send(CommandAnswer(id=command.id, stage=Stage.DONE, previews=found))

    def _probe(self, command: ProbeCommand, answer: _Answers) -> None:
        is_repeated, earlier = self._prober.repeats(command)
        if is_repeated:
            # Its answer comes when it is done, or comes again.
            if earlier is not None:
                answer.send(earlier)
            return
        if not self._fresh.is_fresh(command.fresh):
            answer.refuse(command, Code.STALE, STALE)
            return
        try:
            carry_out = self._prober.begin(command)
        except Unusable as error:
            answer.refuse(command, error.code, str(error))
            return
        answer.send(CommandAnswer(id=command.id, stage=Stage.ACCEPTED))
        self.spawn(self._probe_complete(carry_out, answer))

    async def _probe_complete(
        self, carry_out: Callable[[], Awaitable[CommandAnswer]], answer: _Answers
    ) -> None:
        answer.send(await carry_out())

    def _control(
        self, command: SetpointCommand | ReleaseCommand, answer: _Answers, received: datetime
    ) -> None:
        try:
            is_known, earlier = self._store.answer_to(command.id)
        except StoreFailed as error:
            # Whether it was carried out before cannot be told.
            answer.refuse(command, Code.STORE_FAILED, f"this node cannot read its disk: {error}")
            return
        if is_known:
            if earlier is not None:
                answer.send_bytes(earlier)
            return
        if not self._fresh.is_fresh(command.fresh):
            answer.refuse(command, Code.STALE, STALE)
            return
        if self._under_way >= MAX_UNDER_WAY:
            answer.refuse(command, Code.BUSY, "too many commands are under way on this node")
            return
        is_setpoint = isinstance(command, SetpointCommand)
        if self._store.failure is not None and is_setpoint:
            answer.refuse(command, Code.STORE_FAILED, _cannot_promise(self._store.failure))
            return
        accepted, first = Accepted({}, {}), b""
        # One transaction: what was accepted and that it was accepted are on disk before anybody hears of it.
        try:
            with self._store.transaction():
                if isinstance(command, SetpointCommand):
                    accepted = self._cycle.accept_setpoint(command)
                else:
                    accepted = self._cycle.accept_release(command)
                first = codec.encode(
                    CommandAnswer(id=command.id, stage=Stage.ACCEPTED, devices=accepted.refused)
                )
                self._store.remember(
                    command.id, at=received, answer=first, unsettled=_unsettled(command, accepted, received)
                )
        except StoreFailed as error:
            if is_setpoint:
                self._cycle.take_back(accepted)
                answer.refuse(command, Code.STORE_FAILED, _cannot_promise(str(error)))
                return
            # A release is carried out all the same (ADR 0009): nothing is promised by it.
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
        # Where the disk does not take it the entry waits in memory.
        with contextlib.suppress(StoreFailed), self._store.transaction():
            self._store.append(Stream.CONTROL, _log_entry(command, results, now))
            self._store.remember(command.id, at=now, answer=last)
        self.logged()
        self.changed()

    def _settle(self) -> None:
        """Log what became of commands whose outcome the process before this one did not live to know.

        Nothing else would ever tell central: their answers died with that process.
        """
        now = self._clock.now()
        try:
            unsettled = self._store.unsettled()
        except StoreFailed:
            return
        for entry in unsettled:
            results = {
                tag: result if result.code != Code.UNKNOWN else self._unknown(tag, entry)
                for tag, result in entry.devices.items()
            }
            settled = msgspec.structs.replace(entry, at=wall(now.utc), devices=results)
            assert entry.command_id is not None
            last = codec.encode(CommandAnswer(id=entry.command_id, stage=Stage.DONE, devices=results))
            with contextlib.suppress(StoreFailed), self._store.transaction():
                self._store.append(Stream.CONTROL, settled)
                self._store.remember(entry.command_id, at=now.utc, answer=last)
        if unsettled:
            log.warning("commands from before the restart are settled", count=len(unsettled))
            self.logged()

    def _unknown(self, tag: str, entry: LogEntry) -> DeviceResult:
        now = self._clock.now()
        unit = self._cycle.units.get(tag)
        hold = unit.state.hold if unit is not None else None
        detail = "the node restarted before the device had confirmed it"
        if unit is None or unit.state.last_order[1] != entry.sequence:
            return DeviceResult(code=Code.UNKNOWN, detail=f"{detail}; another one has taken its place")
        if hold is None:
            return DeviceResult(code=Code.UNKNOWN, detail=f"{detail}; nothing holds the device any more")
        left = max(0.0, hold.ends_boottime_s - now.boottime_s)
        ends = now.utc + timedelta(seconds=left)
        return DeviceResult(
            code=Code.UNKNOWN,
            detail=f"{detail}; its hold goes on until {ends:%H:%M:%S}Z, release to cancel",
            value=hold.value,
            holds_s=left,
        )

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

    def spawn(self, job: Coroutine[Any, Any, None]) -> None:
        self._tasks.create_task(job)


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


def _cannot_promise(failure: str) -> str:
    return f"this node's disk takes nothing ({failure}): a restart would forget the request"


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


def _unsettled(command: SetpointCommand | ReleaseCommand, accepted: Accepted, received: datetime) -> LogEntry:
    open_ones = dict.fromkeys(accepted.waiting, DeviceResult(code=Code.UNKNOWN))
    return _log_entry(command, accepted.refused | open_ones, received)


async def _in_slices(slice_of_it: Callable[[], bool]) -> None:
    """Do a thing slice by slice, letting others in between, until it says that nothing is left."""
    while True:
        if not slice_of_it():
            return
        await asyncio.sleep(0)
