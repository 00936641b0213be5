"""Thousands of lean nodes in one process: the wire's own codec and rules, without devices or a disk.

    python -m bench.sync_fleet FLEET_JSON

Each node has a connection, an identity and a session of its own, and does what `edge.runtime.link` and
`edge.runtime.documents` do: birth with a will, heartbeats and telemetry, documents against their manifest,
reports, answers to pings, and connecting again. Commands come as JSON lines on standard input, each with one
line of answer; see `Fleet.answer`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bench import mqtt
from edge.wire import codec
from edge.wire.codec import WireError
from edge.wire.messages import (
    DIGEST_LENGTH,
    HEARTBEAT_EXPIRY_S,
    HEARTBEAT_PERIOD_S,
    KEEP_ALIVE_S,
    RESPONSE_EXPIRY_S,
    SESSION_EXPIRY_S,
    TELEMETRY_EXPIRY_S,
    WILL_DELAY_S,
    AppliedDocument,
    CommandAnswer,
    Document,
    Heartbeat,
    Manifest,
    NodeConfig,
    PingCommand,
    Presence,
    Reported,
    ScheduleBody,
    Stage,
    TelemetryBatch,
    TelemetryPoint,
)
from edge.wire.topics import NodeTopics

TELEMETRY_PERIOD_S = 30.0
# Ten points a batch, of keys that a device of the fleet has.
POINT_KEYS = (
    ("P_kW", "kW"),
    ("Q_kvar", "kvar"),
    ("U_L1_V", "V"),
    ("U_L2_V", "V"),
    ("U_L3_V", "V"),
    ("I_L1_A", "A"),
    ("I_L2_A", "A"),
    ("I_L3_A", "A"),
    ("f_Hz", "Hz"),
    ("E_total_kWh", "kWh"),
)
# As the edge has them.
REPORT_PERIOD_S = 10.0
REPORT_ANYWAY_S = 60.0
GATHER_S = 0.05
GATHER_MOST_S = 1.0
RECONNECT_FIRST_S = 0.5
RECONNECT_SLOWEST_S = 15.0
CONNECT_TIMEOUT_S = 5.0
# The first connection of all is not what is measured: the broker gets it in an orderly way.
FIRST_CONNECTS_PER_S = 1500
TICK_S = 0.02
OPEN_FILES = 20_000

# (epoch, version, digest) of a document in force, and the wall clock's seconds when it came to be.
Applied = tuple[int, int, str, float]


@dataclass(slots=True)
class Counts:
    """What the whole fleet has done so far."""

    connects: int = 0
    losses: int = 0
    refusals: int = 0
    documents: int = 0
    documents_refused: int = 0
    reports: int = 0
    heartbeats: int = 0
    batches: int = 0
    points: int = 0
    pings: int = 0
    documents_bytes: int = 0


class Node(asyncio.Protocol):
    """One node; it outlives its connections."""

    __slots__ = (
        "applied",
        "beats",
        "boot",
        "device",
        "failed",
        "fleet",
        "gathering_since",
        "goes_on",
        "hb_topic",
        "is_live",
        "manifest",
        "opened",
        "packet",
        "password",
        "reader",
        "report_timer",
        "report_wanted",
        "rests",
        "session",
        "tele_topic",
        "topics",
        "transport",
        "wait_s",
        "waiting",
    )

    def __init__(self, fleet: Fleet, topics: NodeTopics, *, password: str, device: str) -> None:
        self.fleet = fleet
        self.topics = topics
        self.password = password
        self.device = device
        self.boot = uuid.uuid4().hex
        self.hb_topic = topics.heartbeat.encode()
        self.tele_topic = topics.telemetry.encode()
        self.transport: asyncio.Transport | None = None
        self.reader = mqtt.Reader()
        self.session = ""
        self.is_live = False
        self.goes_on = True
        self.packet = 0
        self.beats = 0
        self.opened = 0.0
        self.wait_s = RECONNECT_FIRST_S
        # Something changed that no report has told yet; since when changes are gathered for one (0: they are
        # not); and whether the pause after the last report of a change still runs.
        self.report_wanted = False
        self.gathering_since = 0.0
        self.rests = False
        self.report_timer: asyncio.TimerHandle | None = None
        self.manifest: Manifest | None = None
        self.waiting: dict[str, Document] = {}
        self.applied: dict[str, Applied] = {}
        self.failed: dict[str, str] = {}

    # --- the connection -----------------------------------------------------------------------------

    async def connect(self) -> None:
        """Try until there is a connection; the rest follows from what the broker answers."""
        fleet = self.fleet
        while self.goes_on:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await fleet.loop.create_connection(lambda: self, fleet.host, fleet.port)
            except (OSError, TimeoutError):
                await asyncio.sleep(self._next_wait())
            else:
                return

    def _next_wait(self) -> float:
        wait_s = self.wait_s
        self.wait_s = min(2 * wait_s, RECONNECT_SLOWEST_S)
        return wait_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.reader = mqtt.Reader()
        self.packet = 0
        self.opened = self.fleet.loop.time()
        self.session = uuid.uuid4().hex
        gone = Presence(online=False, session=self.session, boot=self.boot, sw="bench")
        transport.write(
            mqtt.connect(
                client=f"{self.topics.node}-{self.session[:8]}",
                username=self.topics.node,
                password=self.password,
                keep_alive_s=KEEP_ALIVE_S,
                session_expiry_s=SESSION_EXPIRY_S,
                will=(self.topics.presence, codec.encode(gone)),
                will_delay_s=WILL_DELAY_S,
            )
        )

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.transport = None
        if self.is_live:
            self.is_live = False
            self.fleet.went()
        if self.report_timer is not None:
            self.report_timer.cancel()
            self.report_timer = None
        self.rests = False
        self.gathering_since = 0.0
        if not self.goes_on:
            return
        if self.fleet.loop.time() - self.opened > RECONNECT_SLOWEST_S:
            self.wait_s = RECONNECT_FIRST_S
        self.fleet.loop.call_later(self._next_wait(), self.fleet.connect_soon, self)

    def data_received(self, data: bytes) -> None:
        acknowledgements: list[bytes] = []
        try:
            for packet in self.reader.feed(data):
                if isinstance(packet, mqtt.Publish):
                    if packet.packet:
                        acknowledgements.append(mqtt.acknowledge(packet.packet))
                    self._take(packet)
                else:
                    self._acknowledged(packet)
        except mqtt.ProtocolError:
            if self.transport is not None:
                self.transport.abort()
            return
        if acknowledgements and self.transport is not None:
            self.transport.write(b"".join(acknowledgements))

    def _acknowledged(self, answer: mqtt.Acknowledged) -> None:
        if answer.is_refused:
            self.fleet.counts.refusals += 1
            raise mqtt.ProtocolError(f"refused: {answer}")
        if answer.kind == mqtt.CONNACK:
            assert self.transport is not None
            topics = self.topics
            self.transport.write(
                mqtt.subscribe(topics.commands, topics.desired, topics.log_ack, packet=self._packet())
            )
        elif answer.kind == mqtt.SUBACK:
            birth = Presence(
                online=True, session=self.session, boot=self.boot, sw="bench", fresh=self.fleet.token()
            )
            self.is_live = True
            self._send(self.topics.presence, codec.encode(birth), retain=True)
            self.fleet.came()
            self._gather()

    def _packet(self) -> int:
        self.packet = self.packet % 0xFFFF + 1
        return self.packet

    def _send(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        expiry_s: int | None = None,
        correlation: bytes | None = None,
    ) -> None:
        if self.transport is not None:
            self.transport.write(
                mqtt.publish(
                    topic.encode(),
                    payload,
                    packet=self._packet(),
                    retain=retain,
                    expiry_s=expiry_s,
                    correlation=correlation,
                )
            )

    # --- up -----------------------------------------------------------------------------------------

    def heartbeat(self) -> None:
        if self.transport is None or not self.is_live:
            return
        self.beats += 1
        now = time.time_ns()
        beat = Heartbeat(
            session=self.session,
            seq=self.beats,
            mono_ms=self.fleet.mono_ms(),
            wall=_wall(now / 1e9),
            # A token that tells when it left: the benchmark finds it in Redis.
            fresh=self.fleet.token(now),
        )
        self.transport.write(mqtt.publish(self.hb_topic, codec.encode(beat), expiry_s=HEARTBEAT_EXPIRY_S))
        self.fleet.counts.heartbeats += 1

    def telemetry(self) -> None:
        if self.transport is None or not self.is_live:
            return
        at = _wall(time.time())
        value = self.fleet.counts.batches % 1000 / 10
        points = [
            TelemetryPoint(t=at, key=key, value=value + number, unit=unit, device=self.device)
            for number, (key, unit) in enumerate(POINT_KEYS)
        ]
        payload = codec.encode(TelemetryBatch(points=points))
        self.transport.write(mqtt.publish(self.tele_topic, payload, expiry_s=TELEMETRY_EXPIRY_S))
        self.fleet.counts.batches += 1
        self.fleet.counts.points += len(points)

    def changed(self) -> None:
        """Something is to be reported: once no more comes, and when the pause after the last one is over."""
        self.report_wanted = True
        if not self.rests:
            self._gather()

    def _gather(self) -> None:
        loop = self.fleet.loop
        now = loop.time()
        if not self.gathering_since:
            self.gathering_since = now
        if self.report_timer is not None:
            self.report_timer.cancel()
        wait_s = min(GATHER_S, self.gathering_since + GATHER_MOST_S - now)
        self.report_timer = loop.call_later(max(0.0, wait_s), self._gathered)

    def _gathered(self) -> None:
        self.gathering_since = 0.0
        self.report_timer = None
        # The report of a birth, which nothing changed, delays none that follows.
        if self.report_wanted:
            self.report_wanted = False
            self.rests = True
            self.report_timer = self.fleet.loop.call_later(REPORT_PERIOD_S, self._rested)
        self.report()

    def _rested(self) -> None:
        self.rests = False
        self.report_timer = None
        if self.report_wanted:
            self._gather()

    def report(self) -> None:
        """Tell what is in force. Without a change it is told now and then, which delays no change."""
        if not self.is_live:
            return
        documents = {
            name: AppliedDocument(v=version, status="applied", digest=digest[:DIGEST_LENGTH])
            for name, (_, version, digest, _) in self.applied.items()
        }
        for name, error in self.failed.items():
            documents[name] = AppliedDocument(v=self.waiting[name].version, status="failed", error=error)
        manifest = self.manifest
        report = Reported(
            session=self.session,
            boot=self.boot,
            store=self.topics.node,
            mono_ms=self.fleet.mono_ms(),
            epoch=manifest.epoch if manifest is not None else 0,
            manifest_version=manifest.version if manifest is not None else 0,
            at=_wall(time.time()),
            clock="trusted",
            clock_bound_s=0.01,
            documents=documents,
        )
        self._send(self.topics.reported, codec.encode(report), retain=True)
        self.fleet.counts.reports += 1

    # --- down ---------------------------------------------------------------------------------------

    def _take(self, message: mqtt.Publish) -> None:
        leaf = self.topics.leaf(message.topic) or ""
        kind, _, name = leaf.partition("/")
        try:
            if leaf == "desired/manifest":
                self._take_manifest(codec.decode(Manifest, message.payload))
            elif kind == "desired":
                if message.payload:
                    self._take_document(name, message.payload)
            elif kind == "cmd":
                self._command(message)
        except WireError:
            self.fleet.counts.refusals += 1

    def _take_manifest(self, manifest: Manifest) -> None:
        current = self.manifest
        if current is not None and (manifest.epoch, manifest.version) < (current.epoch, current.version):
            return
        if manifest == current:
            return
        self.manifest = manifest
        self.applied = {name: doc for name, doc in self.applied.items() if name in manifest.docs}
        for name in list(self.waiting):
            self._consider(name)
        self._count()
        self.changed()

    def _take_document(self, name: str, payload: bytes) -> None:
        self.fleet.counts.documents += 1
        self.fleet.counts.documents_bytes += len(payload)
        doc = codec.decode(Document, payload)
        if not codec.is_intact(doc):
            self.fleet.counts.documents_refused += 1
            return
        current = self.applied.get(name)
        if current is not None and (doc.epoch, doc.version) <= current[:2]:
            return
        self.waiting[name] = doc
        if self._consider(name):
            self._count()
            self.changed()

    def _consider(self, name: str) -> bool:
        doc = self.waiting[name]
        listed = self.manifest.docs.get(name) if self.manifest is not None else None
        if listed is None or (listed.v, listed.sha256) != (doc.version, doc.sha256):
            return False
        try:
            msgspec.convert(doc.body, NodeConfig if name == "config" else ScheduleBody)
        except msgspec.ValidationError as error:
            self.fleet.counts.documents_refused += 1
            self.failed[name] = str(error)
            return True
        del self.waiting[name]
        self.failed.pop(name, None)
        self.applied[name] = (doc.epoch, doc.version, doc.sha256, time.time())
        return True

    def _count(self) -> None:
        """Tell the fleet whether this node has all that its manifest lists, and that it lists something."""
        manifest = self.manifest
        assert manifest is not None
        if (
            manifest.docs
            and len(self.applied) == len(manifest.docs)
            and all(self.applied[name][1] == entry.v for name, entry in manifest.docs.items())
        ):
            self.fleet.complete(self, manifest)

    def _command(self, message: mqtt.Publish) -> None:
        received = time.time()
        command = codec.decode_command(message.payload)
        if not isinstance(command, PingCommand) or not message.response_topic:
            return
        if not self.topics.owns_response(message.response_topic):
            return
        self.fleet.counts.pings += 1
        answer = CommandAnswer(
            id=command.id,
            stage=Stage.DONE,
            fresh=self.fleet.token(),
            sent_wall=command.sent_wall,
            received_wall=_wall(received),
            answered_wall=_wall(time.time()),
        )
        self._send(
            message.response_topic,
            codec.encode(answer),
            expiry_s=RESPONSE_EXPIRY_S,
            correlation=message.correlation,
        )


@dataclass
class Fleet:
    """All nodes, the wheels that turn their heartbeats and telemetry, and what the benchmark asks."""

    host: str
    port: int
    loop: asyncio.AbstractEventLoop
    counts: Counts = field(default_factory=Counts)
    nodes: list[Node] = field(default_factory=list)
    live: int = 0
    all_live: asyncio.Event = field(default_factory=asyncio.Event)
    # Node -> (epoch, version) of the manifest that it has all documents of.
    have: dict[str, tuple[int, int]] = field(default_factory=dict)
    last_live_at: float = 0.0
    last_complete_at: float = 0.0
    # The last moment at which the fleet was behind its own plan, in seconds: it should stay below a tick.
    slowest_turn_s: float = 0.0
    _connecting: set[asyncio.Task[None]] = field(default_factory=set)

    def connect_soon(self, node: Node) -> None:
        task = self.loop.create_task(node.connect())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def came(self) -> None:
        self.live += 1
        self.counts.connects += 1
        if self.live == len(self.nodes):
            self.last_live_at = time.time()
            self.all_live.set()

    def went(self) -> None:
        self.live -= 1
        self.all_live.clear()
        self.counts.losses += 1

    def complete(self, node: Node, manifest: Manifest) -> None:
        self.have[node.topics.node] = (manifest.epoch, manifest.version)
        self.last_complete_at = time.time()

    def token(self, now_ns: int | None = None) -> str:
        return f"{now_ns or time.time_ns():x}"

    def mono_ms(self) -> int:
        return int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000)

    async def connect_all(self) -> None:
        for number, node in enumerate(self.nodes):
            self.connect_soon(node)
            if number % 30 == 29:
                await asyncio.sleep(30 / FIRST_CONNECTS_PER_S)
        await self.all_live.wait()

    async def turn(self) -> None:
        """Heartbeats, telemetry and the report that comes without a change, spread over their periods."""
        count = len(self.nodes)
        wheels: list[tuple[float, Any]] = [
            (HEARTBEAT_PERIOD_S, Node.heartbeat),
            (TELEMETRY_PERIOD_S, Node.telemetry),
            (REPORT_ANYWAY_S, Node.report),
        ]
        began = before = self.loop.time()
        turned = [0] * len(wheels)
        while True:
            await asyncio.sleep(TICK_S)
            now = self.loop.time()
            self.slowest_turn_s = max(self.slowest_turn_s, now - before - TICK_S)
            before = now
            for number, (period_s, act) in enumerate(wheels):
                due = int((now - began) / period_s * count)
                for turn in range(turned[number], due):
                    act(self.nodes[turn % count])
                turned[number] = due

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """What the benchmark asks: `state`; `applied`: when these nodes applied these documents."""
        match question:
            case {"ask": "state"}:
                slowest, self.slowest_turn_s = self.slowest_turn_s, 0.0
                return {
                    "nodes": len(self.nodes),
                    "live": self.live,
                    "complete": len(self.have),
                    "last_live_at": self.last_live_at,
                    "last_complete_at": self.last_complete_at,
                    "slowest_turn_s": slowest,
                    "now": time.time(),
                    "counts": {name: getattr(self.counts, name) for name in Counts.__slots__},
                }
            case {"ask": "applied", "node": node_id, "name": name}:
                node = next(node for node in self.nodes if node.topics.node == node_id)
                found = node.applied.get(name)
                return {} if found is None else {"version": found[1], "at": found[3]}
            case {"ask": "sessions"}:
                return {node.topics.node: node.session for node in self.nodes if node.is_live}
            case _:
                return {"error": f"unknown question {question}"}


def _wall(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def main(plan: dict[str, Any]) -> None:
    fleet = Fleet(plan["host"], plan["port"], asyncio.get_running_loop())
    fleet.nodes = [
        Node(fleet, NodeTopics(plan["tenant"], node_id), password=password, device=device)
        for node_id, password, device in plan["nodes"]
    ]
    gc.collect()
    gc.freeze()
    # What a message leaves behind has no cycles, and a full collection would stop all nodes at once.
    gc.set_threshold(50_000, 50, 100)
    questions = asyncio.StreamReader()
    await fleet.loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    turning: asyncio.Task[None] | None = None
    while line := await questions.readline():
        question = json.loads(line)
        if question == {"ask": "connect"}:
            await fleet.connect_all()
            turning = turning or asyncio.create_task(fleet.turn())
            answer = fleet.answer({"ask": "state"})
        else:
            answer = fleet.answer(question)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for node in fleet.nodes:
        node.goes_on = False
    if turning is not None:
        turning.cancel()


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
