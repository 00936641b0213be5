"""Central as a node sees it: the broker's two central users, speaking the wire."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

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
    Message,
    Presence,
    Reported,
    SetpointCommand,
    TelemetryBatch,
)
from edge.wire.session import Broker as Address, Session, open_session
from edge.wire.topics import NodeTopics
from tests.servers import Broker

WITHIN_S = 10.0
KINDS: dict[str, type[Message]] = {
    "presence": Presence,
    "hb": Heartbeat,
    "reported": Reported,
    "log": LogBatch,
    "tele": TelemetryBatch,
}
M = TypeVar("M", bound=Message)


@dataclass
class Central:
    """What the node sent, and what it is to be sent."""

    topics: NodeTopics
    worker: Session
    inbox: Session
    heard: list[Message] = field(default_factory=list)
    documents: dict[str, Document] = field(default_factory=dict)
    manifest_version: int = 0
    sequence: int = 0
    acknowledges: bool = True
    commit_s: float = 0.0  # what it takes before it acknowledges
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self, session: Session) -> None:
        async for message in session.messages():
            leaf = self.topics.leaf(message.topic) or ""
            kind = CommandAnswer if leaf.startswith("rsp/") else KINDS.get(leaf)
            if kind is not None:
                self.heard.append(codec.decode(kind, message.payload))
                self._news.set()
                if isinstance(self.heard[-1], LogBatch) and self.acknowledges:
                    await self._commit(self.heard[-1])

    async def _commit(self, batch: LogBatch) -> None:
        if self.commit_s:
            await asyncio.sleep(self.commit_s)
        await self.acknowledge(batch)

    def all(self, kind: type[M]) -> list[M]:
        return [message for message in self.heard if isinstance(message, kind)]

    @property
    def entries(self) -> list[LogEntry]:
        """All entries of the control stream so far, in the order in which they came."""
        return [entry for batch in self.all(LogBatch) if batch.stream == "control" for entry in batch.entries]

    async def expect(
        self, kind: type[M], suits: Callable[[M], object] = lambda _: True, *, within_s: float = WITHIN_S
    ) -> M:
        """The first message of this kind that suits, which may have come already."""
        async with asyncio.timeout(within_s):
            while True:
                for message in self.all(kind):
                    if suits(message):
                        return message
                self._news.clear()
                await self._news.wait()

    async def expect_answer(self, command_id: str, stage: str) -> CommandAnswer:
        return await self.expect(
            CommandAnswer, lambda answer: (answer.id, answer.stage) == (command_id, stage)
        )

    async def expect_entry(
        self, suits: Callable[[LogEntry], object], *, within_s: float = WITHIN_S
    ) -> LogEntry:
        batch = await self.expect(
            LogBatch, lambda batch: any(suits(entry) for entry in batch.entries), within_s=within_s
        )
        return next(entry for entry in batch.entries if suits(entry))

    # --- down ---------------------------------------------------------------------------------------

    async def put(self, name: str, body: dict[str, Any], *, version: int) -> Document:
        """Publish a document; the manifest lists it with the next `put_manifest`."""
        doc = self.documents[name] = codec.document(body, epoch=1, version=version)
        await self.worker.publish(self.topics.document(name), codec.encode(doc), retain=True)
        return doc

    async def put_manifest(self, *, epoch: int = 1) -> None:
        self.manifest_version += 1
        docs = {name: ManifestEntry(v=doc.version, sha256=doc.sha256) for name, doc in self.documents.items()}
        manifest = Manifest(epoch=epoch, version=self.manifest_version, docs=docs)
        await self.worker.publish(self.topics.document("manifest"), codec.encode(manifest), retain=True)

    async def configured(self, body: dict[str, Any]) -> None:
        """Give the node its configuration, and wait until it says so."""
        version = self.manifest_version + 1
        await self.put("config", body, version=version)
        await self.put_manifest()
        async with asyncio.timeout(WITHIN_S):
            await self.expect(
                Reported,
                lambda report: "config" in report.documents and report.documents["config"].v == version,
            )

    async def token(self) -> str:
        """The newest freshness token, as central would send it."""
        await self.expect(Heartbeat)
        return self.all(Heartbeat)[-1].fresh

    async def setpoint(
        self, *, command_id: str | None = None, sequence: int | None = None, fresh: str | None = None, epoch: int = 1,
        hold_s: float = 60.0, retain: bool = False, response_topic: str | None = None, **values: float,
    ) -> str:  # fmt: skip
        """Send a setpoint command; its id."""
        self.sequence = max(self.sequence, sequence or self.sequence + 1)
        command = SetpointCommand(
            id=command_id or uuid.uuid4().hex,
            epoch=epoch,
            sequence=sequence or self.sequence,
            fresh=await self.token() if fresh is None else fresh,
            request_id=f"request-{self.sequence}",
            category="inverter",
            values=values,
            hold_s=hold_s,
        )
        await self.send("setpoint", command, retain=retain, response_topic=response_topic)
        return command.id

    async def send(
        self,
        op: str,
        command: Command,
        *,
        retain: bool = False,
        response_topic: str | None = None,
    ) -> None:
        await self.worker.publish(
            self.topics.command(op),
            codec.encode(command),
            retain=retain,
            response_topic=response_topic or self.topics.response("worker-1"),
            correlation=b"c",
        )

    async def acknowledge(self, batch: LogBatch) -> None:
        ack = LogAck(stream=batch.stream, store=batch.store, last=batch.last)
        await self.inbox.publish(self.topics.log_ack, codec.encode(ack))


@asynccontextmanager
async def central_for(broker: Broker, topics: NodeTopics) -> AsyncIterator[Central]:
    async with AsyncExitStack() as stack:
        sessions = []
        for user, leaves in (
            ("central-worker", ["rsp/+"]),
            ("central-inbox", list(KINDS)),
        ):
            address = Address(broker.host, broker.port, user, broker.passwords[user])
            session = await stack.enter_async_context(
                open_session(address, identifier=f"{user}-{uuid.uuid4().hex}")
            )
            await session.subscribe(*(f"{topics.base}/{leaf}" for leaf in leaves))
            sessions.append(session)
        worker, inbox = sessions
        central = Central(topics, worker, inbox)
        tasks = [asyncio.create_task(central.listen(session)) for session in sessions]
        try:
            yield central
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
