"""A node on the real wire whose behaviour a test chooses: the topics and the codec are the product's own.

It keeps the promises of a node that central relies on (`tests/control_app/test_fake_node.py`): a command is
answered on its Response Topic with its id, first `accepted`, then `done`; a token that it never gave is refused
as `stale` with a fresh one; a ping needs no token and brings one.
"""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge.wire import codec
from edge.wire.messages import (
    Code,
    CommandAnswer,
    DeviceResult,
    ExplainCommand,
    Heartbeat,
    Message,
    PingCommand,
    PreviewCommand,
    ProbeCommand,
    ReleaseCommand,
    SetpointCommand,
    Stage,
)
from edge.wire.topics import NodeTopics
from sites_app.models import Node
from sites_app.presence import central_now, heartbeat_note
from tests.servers import Broker

WITHIN_S = 5.0

Control = SetpointCommand | ReleaseCommand
# What a node does with a command whose token is good.
Behaviour = Callable[["FakeNode", Control], None]
# What its devices go to when they are released.
FALLBACK = 100.0


def obey(node: FakeNode, command: Control) -> None:
    node.accept(command)
    node.finish(command)


def stay_silent(_node: FakeNode, _command: Control) -> None:
    """A command lost on the way up or down: central cannot tell."""


class FakeNode:
    """One node's session.

    `commands` holds each setpoint, `releases` each release in the order of arrival, refused ones too.
    """

    def __init__(self, *, broker: Broker, node: Node, behaviour: Behaviour = obey) -> None:
        self.behaviour = behaviour
        self.topics = NodeTopics(node.tenant_tag, str(node.pk))
        self.session = secrets.token_hex(8)
        self.commands: queue.SimpleQueue[SetpointCommand] = queue.SimpleQueue()
        self.releases: queue.SimpleQueue[ReleaseCommand] = queue.SimpleQueue()
        self.pings: queue.SimpleQueue[PingCommand] = queue.SimpleQueue()
        self.answers_pings = True
        self.on_ping: Callable[[PingCommand], None] = lambda _ping: None
        self.probes: queue.SimpleQueue[ProbeCommand] = queue.SimpleQueue()
        self.on_probe: Callable[[ProbeCommand], None] = lambda _probe: None
        self.questions: queue.SimpleQueue[ExplainCommand] = queue.SimpleQueue()
        # One that does not know the question says nothing.
        self.on_question: Callable[[ExplainCommand], None] = lambda _question: None
        self.previews: queue.SimpleQueue[PreviewCommand] = queue.SimpleQueue()
        self.on_preview: Callable[[PreviewCommand], None] = lambda _preview: None
        self.trusts_tokens = True
        self._tokens: set[str] = set()
        self._beats = 0
        self._response_topics: dict[str, str] = {}
        self._subscribed = threading.Event()
        self._client = client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.username_pw_set(str(node.pk), broker.passwords[str(node.pk)])
        client.on_connect = lambda *_: self._subscribe()
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.on_message = lambda _client, _data, message: self._command(message)
        client.connect(broker.host, broker.port)
        client.loop_start()

    @classmethod
    @contextmanager
    def on(cls, broker: Broker, node: Node, *, behaviour: Behaviour = obey) -> Iterator[FakeNode]:
        """Connected and subscribed, but not heard of by central before `beat`."""
        fake = cls(broker=broker, node=node, behaviour=behaviour)
        try:
            assert fake._subscribed.wait(WITHIN_S), "the broker did not take the subscription"
            yield fake
        finally:
            fake._client.disconnect()
            fake._client.loop_stop()

    # --- what central hears unasked -----------------------------------------------------------------------

    def beat(self, *, ago_s: float = 0.0) -> str:
        """Let central have heard a heartbeat this long ago; its token."""
        self._beats += 1
        token = self.token()
        beat = Heartbeat(
            session=self.session, seq=self._beats, mono_ms=0, wall="2026-01-01T00:00:00Z", fresh=token
        )
        heartbeat_note(self.topics.node, beat, at=central_now() - ago_s)
        return token

    def token(self) -> str:
        token = secrets.token_urlsafe(9)
        self._tokens.add(token)
        return token

    def forget_tokens(self) -> None:
        """As when all of them have grown too old."""
        self._tokens.clear()

    # --- answers ------------------------------------------------------------------------------------------

    def accept(self, command: Control, *, refused: Mapping[str, DeviceResult] | None = None) -> None:
        self.answer(
            command.id, CommandAnswer(id=command.id, stage=Stage.ACCEPTED, devices=dict(refused or {}))
        )

    def finish(self, command: Control, *, devices: Mapping[str, DeviceResult] | None = None) -> None:
        """`done`, every device confirmed unless `devices` says otherwise."""
        values = (
            command.values
            if isinstance(command, SetpointCommand)
            else dict.fromkeys(command.devices, FALLBACK)
        )
        results = {tag: DeviceResult(value=value, readback=value) for tag, value in values.items()}
        self.answer(
            command.id, CommandAnswer(id=command.id, stage=Stage.DONE, devices=results | dict(devices or {}))
        )

    def refuse(self, command: Control, code: Code, *, detail: str = "", fresh: str | None = None) -> None:
        self.answer(
            command.id,
            CommandAnswer(id=command.id, stage=Stage.REFUSED, code=code, detail=detail, fresh=fresh),
        )

    def answer(self, command_id: str, answer: CommandAnswer) -> None:
        self.publish(self._response_topics[command_id], answer)

    def answer_of(self, other: FakeNode, answer: CommandAnswer) -> None:
        """Speak about another node's command, on this node's own branch."""
        worker = other._response_topics[answer.id].rsplit("/", 1)[1]
        self.publish(self.topics.response(worker), answer)

    def publish(self, topic: str, message: Message | bytes) -> None:
        payload = message if isinstance(message, bytes) else codec.encode(message)
        self._client.publish(topic, payload, qos=1)

    def _subscribe(self) -> None:
        self._client.subscribe(self.topics.commands, qos=1)

    # --- commands -----------------------------------------------------------------------------------------

    def _command(self, message: paho.MQTTMessage) -> None:
        command = codec.decode_command(bytes(message.payload))
        self._response_topics[command.id] = str(getattr(message.properties, "ResponseTopic", ""))
        match command:
            case PingCommand():
                self.pings.put(command)
                self.on_ping(command)
                if self.answers_pings:
                    done = CommandAnswer(id=command.id, stage=Stage.DONE, fresh=self.token())
                    self.answer(command.id, done)
            case ProbeCommand():
                self.probes.put(command)
                self.on_probe(command)
            case ExplainCommand():
                self.questions.put(command)
                self.on_question(command)
            case PreviewCommand():
                self.previews.put(command)
                self.on_preview(command)
            case SetpointCommand() | ReleaseCommand():
                if isinstance(command, SetpointCommand):
                    self.commands.put(command)
                else:
                    self.releases.put(command)
                if self.trusts_tokens and command.fresh not in self._tokens:
                    self.refuse(command, Code.STALE, detail="not a token of mine", fresh=self.token())
                else:
                    self.behaviour(self, command)
