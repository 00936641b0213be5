"""A simulated broker with weather on its line, and central at its other end."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from edge.runtime.session import OpenSession
from edge.wire import codec
from edge.wire.messages import (
    Command,
    CommandAnswer,
    Document,
    Heartbeat,
    LogAck,
    LogBatch,
    LogEntry,
    Manifest,
    ManifestEntry,
    PingCommand,
    Presence,
    ReleaseCommand,
    Reported,
    ResyncCommand,
    SetpointCommand,
    Stream,
)
from edge.wire.session import Broker, Incoming, LinkDown, Will
from edge.wire.topics import NodeTopics

# What is lost at QoS 1 is not lost: the broker repeats it. A publish that nobody takes over ends so much later.
PUBLISH_TIMEOUT_S = 5.0
MANIFEST = "manifest"
CONFIG = "config"


@dataclass(frozen=True, slots=True)
class Weather:
    """What a line does to each message: lose it, repeat it, hold it up for as long as `delay_s` (uniform).

    Messages overtake each other where they are held up for differently long.
    """

    delay_s: tuple[float, float] = (0.005, 0.005)
    loss: float = 0.0
    repeat: float = 0.0


FINE = Weather()
STORM = Weather(delay_s=(0.005, 4.0), loss=0.15, repeat=0.3)


class SimulatedBroker:
    """Takes messages from and to one node; cut, it takes none.

    `heard` is called with each message of the node that comes through, `read` with each message the moment
    the node takes it from its session.
    """

    def __init__(
        self,
        *,
        topics: NodeTopics,
        rng: random.Random,
        now: Callable[[], float],
        heard: Callable[[str, bytes], None],
        sent: Callable[[str, str, bytes], None],
        read: Callable[[str, Incoming], None],
    ) -> None:
        self.topics = topics
        self.down = FINE
        self.up = FINE
        self.is_cut = False
        self.retained: dict[str, Incoming] = {}
        self.sessions: list[SimulatedLinkSession] = []
        self.dead: set[str] = set()
        self.mended_s = 0.0
        self._now = now
        self._rng = rng
        self._heard = heard
        self._sent = sent
        self._read = read

    def opener(self, who: str) -> OpenSession:
        """How the process of this name opens its sessions."""
        return partial(self._open, who)

    def _open(
        self,
        who: str,
        broker: Broker,  # noqa: ARG002 - the same
        *,
        identifier: str,  # noqa: ARG002 - the same
        will: Will | None = None,  # noqa: ARG002 - as a link calls it
    ) -> AbstractAsyncContextManager[SimulatedLinkSession]:
        return self._session(who)

    @asynccontextmanager
    async def _session(self, who: str) -> AsyncIterator[SimulatedLinkSession]:
        if who not in self.dead:
            await asyncio.sleep(0.02)
        if self.is_cut or who in self.dead:
            raise LinkDown("no session with the broker: no route")
        session = SimulatedLinkSession(self, who)
        self.sessions.append(session)
        try:
            yield session
        finally:
            session.hang_up("closed")

    # --- the line -----------------------------------------------------------------------------------

    def cut(self) -> None:
        """The line is gone; so is what was on it."""
        self.is_cut = True
        for session in list(self.sessions):
            session.hang_up("the line was cut")

    def mend(self) -> None:
        if self.is_cut:
            self.is_cut, self.mended_s = False, self._now()

    def bury(self, who: str) -> None:
        self.dead.add(who)
        for session in list(self.sessions):
            if session.who == who:
                session.hang_up("its process is dead")

    def deliver(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        response_topic: str | None = None,
        unreliable: bool = True,
    ) -> None:
        """Publish to the node. Retained messages come through at last, commands may not."""
        message = Incoming(topic, payload, retain=False, response_topic=response_topic, correlation=None)
        if retain:
            if payload:
                self.retained[topic] = replace(message, retain=True)
            else:
                self.retained.pop(topic, None)
        for session in self.sessions:
            if not session.subscribed:
                continue
            for delay_s in self._fate(self.down, may_lose=unreliable and not retain):
                session.arrive_in(delay_s, message)

    def on_subscribe(self, session: SimulatedLinkSession) -> None:
        retained = list(self.retained.values())
        self._rng.shuffle(retained)
        for message in retained:
            for delay_s in self._fate(self.down, may_lose=False):
                session.arrive_in(delay_s, message)

    def on_publish(self, who: str, topic: str, payload: bytes) -> None:
        self._sent(who, topic, payload)
        for delay_s in self._fate(self.up, may_lose=True):
            asyncio.get_running_loop().call_later(delay_s, self._heard, topic, payload)

    def on_read(self, who: str, message: Incoming) -> None:
        self._read(who, message)

    def _fate(self, weather: Weather, *, may_lose: bool) -> list[float]:
        """After how long a message arrives: never, once, or twice."""
        rng = self._rng
        if may_lose and rng.random() < weather.loss:
            return []
        times = 2 if rng.random() < weather.repeat else 1
        return [rng.uniform(*weather.delay_s) for _ in range(times)]


class SimulatedLinkSession:
    """As much of `edge.wire.session.Session` as a link uses."""

    def __init__(self, broker: SimulatedBroker, who: str) -> None:
        self.who = who
        self.subscribed = False
        self._broker = broker
        self._queue: deque[Incoming] = deque()
        self._news = asyncio.Event()
        self._gone = ""

    async def subscribe(self, *topics: str, qos: int = 1) -> None:  # noqa: ARG002 - as a link calls it
        await self._exchange()
        self.subscribed = True
        self._broker.on_subscribe(self)

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,  # noqa: ARG002 - the same
        expiry_s: int | None = None,  # noqa: ARG002 - the same
        response_topic: str | None = None,  # noqa: ARG002 - the same
        correlation: bytes | None = None,  # noqa: ARG002 - the same
    ) -> None:
        if self._gone:
            raise LinkDown(self._gone)
        self._broker.on_publish(self.who, topic, payload)
        if qos:
            await self._exchange()

    async def messages(self) -> AsyncIterator[Incoming]:
        while True:
            while self._queue:
                message = self._queue.popleft()
                self._broker.on_read(self.who, message)
                yield message
                if self._gone:
                    raise LinkDown(self._gone)
            if self._gone:
                raise LinkDown(self._gone)
            self._news.clear()
            await self._news.wait()

    async def _exchange(self) -> None:
        if self._gone:
            raise LinkDown(self._gone)
        await asyncio.sleep(0.002)
        if self._gone:
            raise LinkDown(self._gone)

    def arrive_in(self, delay_s: float, message: Incoming) -> None:
        def arrive() -> None:
            if not self._gone:
                self._queue.append(message)
                self._news.set()

        asyncio.get_running_loop().call_later(delay_s, arrive)

    def hang_up(self, reason: str) -> None:
        if self in self._broker.sessions:
            self._broker.sessions.remove(self)
        if not self._gone:
            self._gone = reason
            self._queue.clear()
            self._news.set()


@dataclass
class Central:
    """Sends commands and desired state, and keeps what the node told.

    It is as correct as central is, unless a test asks for a command that no correct central sends.
    """

    topics: NodeTopics
    broker: SimulatedBroker
    now: Callable[[], float]
    epoch: int = 1
    sequence: int = 0
    manifest_version: int = 0
    documents: dict[str, Document] = field(default_factory=dict)
    acknowledges: bool = True
    token: str = ""
    online: bool = False
    reported: Reported | None = None
    answers: dict[str, list[CommandAnswer]] = field(default_factory=dict)
    entries: dict[tuple[str, int], LogEntry] = field(default_factory=dict)
    sent: list[tuple[str, SetpointCommand | ReleaseCommand]] = field(default_factory=list)

    # --- what the node tells ------------------------------------------------------------------------

    def hear(self, topic: str, payload: bytes) -> None:
        leaf = self.topics.leaf(topic) or ""
        if leaf.startswith("rsp/"):
            answer = codec.decode(CommandAnswer, payload)
            self.answers.setdefault(answer.id, []).append(answer)
            self.token = answer.fresh or self.token
        elif leaf == "hb":
            self.token = codec.decode(Heartbeat, payload).fresh
        elif leaf == "presence":
            presence = codec.decode(Presence, payload)
            self.online = presence.online
            self.token = presence.fresh or self.token
        elif leaf == "reported":
            self.reported = codec.decode(Reported, payload)
        elif leaf == "log":
            self._take_log(codec.decode(LogBatch, payload))

    def _take_log(self, batch: LogBatch) -> None:
        for entry in batch.entries if batch.stream == Stream.CONTROL else ():
            self.entries[batch.store, entry.seq] = entry
        if self.acknowledges:
            ack = LogAck(stream=batch.stream, store=batch.store, last=batch.last)
            self.broker.deliver(self.topics.log_ack, codec.encode(ack))

    def logged(self, kind: str) -> list[LogEntry]:
        return [entry for _, entry in sorted(self.entries.items()) if entry.kind == kind]

    # --- commands -----------------------------------------------------------------------------------

    def setpoint(
        self,
        values: Mapping[str, float],
        *,
        hold_s: float,
        sequence: int | None = None,
        command_id: str | None = None,
        fresh: str | None = None,
        epoch: int | None = None,
        retain: bool = False,
    ) -> str:
        """Send a setpoint command; its id."""
        number = self._number(sequence)
        command = SetpointCommand(
            id=command_id or f"command-{len(self.sent)}",
            epoch=self.epoch if epoch is None else epoch,
            sequence=number,
            fresh=self.token if fresh is None else fresh,
            request_id=f"request-{number}",
            category="inverter",
            values=dict(values),
            hold_s=hold_s,
        )
        return self._send("setpoint", command, retain=retain)

    def release(self, tags: tuple[str, ...], *, sequence: int | None = None) -> str:
        number = self._number(sequence)
        command = ReleaseCommand(
            id=f"command-{len(self.sent)}",
            epoch=self.epoch,
            sequence=number,
            fresh=self.token,
            request_id=f"request-{number}",
            category="inverter",
            devices=tags,
        )
        return self._send("release", command)

    def _number(self, sequence: int | None) -> int:
        if sequence is None:
            self.sequence += 1
            return self.sequence
        return sequence

    def _send(self, op: str, command: SetpointCommand | ReleaseCommand, *, retain: bool = False) -> str:
        self.sent.append((op, command))
        self._publish(op, command, retain=retain)
        return command.id

    def send_again(self, number: int) -> str:
        """Send an earlier command once more, as it was."""
        op, command = self.sent[number]
        self._publish(op, command)
        return command.id

    def ping(self) -> None:
        self._publish("ping", PingCommand(id=f"ping-{self.now():.3f}", epoch=self.epoch, sent_wall=""))

    def resync(self) -> None:
        self._publish("resync", ResyncCommand(id=f"resync-{self.now():.3f}", epoch=self.epoch))

    def ask(self, op: str, command: Command) -> None:
        """Send a command that changes nothing."""
        self._publish(op, command)

    def _publish(self, op: str, command: Command, *, retain: bool = False) -> None:
        self.broker.deliver(
            self.topics.command(op),
            codec.encode(command),
            retain=retain,
            response_topic=self.topics.response("worker"),
        )

    # --- desired state ------------------------------------------------------------------------------

    def put(self, name: str, body: dict[str, Any]) -> None:
        """Publish a new version of a document, and the manifest that lists it."""
        self.manifest_version += 1
        doc = codec.document(body, epoch=self.epoch, version=self.manifest_version)
        self.documents[name] = doc
        self.broker.deliver(self.topics.document(name), codec.encode(doc), retain=True)
        self._put_manifest()

    def drop(self, name: str) -> None:
        """Take a document away: a manifest without it, and nothing retained."""
        if self.documents.pop(name, None) is not None:
            self.manifest_version += 1
            self.broker.deliver(self.topics.document(name), b"", retain=True)
            self._put_manifest()

    def _put_manifest(self) -> None:
        docs = {name: ManifestEntry(v=doc.version, sha256=doc.sha256) for name, doc in self.documents.items()}
        manifest = Manifest(epoch=self.epoch, version=self.manifest_version, docs=docs)
        self.broker.deliver(self.topics.document(MANIFEST), codec.encode(manifest), retain=True)

    def publish_anew(self) -> None:
        """After the broker lost what it retained."""
        for name, doc in self.documents.items():
            self.broker.deliver(self.topics.document(name), codec.encode(doc), retain=True)
        self._put_manifest()

    def restored(self) -> None:
        """Central was restored from a backup: a higher epoch, and everything is published under it."""
        self.epoch += 1
        self.sequence = 0
        for name, doc in list(self.documents.items()):
            self.documents[name] = codec.document(doc.body, epoch=self.epoch, version=doc.version)
        self.publish_anew()
