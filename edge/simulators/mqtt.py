"""MQTT devices as clients of a real broker, built from their profiles."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiomqtt
import msgspec

from edge.plant import Kind, Site
from edge.profiles import payloads
from edge.profiles.model import Profile
from edge.profiles.points import Message, Value
from edge.simulators.device import Fault, Simulated
from edge.simulators.templates import words_of
from edge.wire.client import Client
from edge.wire.session import NO_DELAY, PORTS

# How many commands a device remembers, so that one which comes twice is carried out once.
REMEMBERED = 100
TIMEOUT_S = 5.0
NOT_JSON = b'\x00\xff{"state": ???'


@dataclass(frozen=True, slots=True)
class _Command:
    """What one message tells a device."""

    point: str
    value: Value
    id: str


class SimulatedMqttDevice(Simulated):
    """A device of this profile, client of the broker at `url`.

    It says what it has every `period_s`, after each command and at each change; its availability; and its end
    by its last will. It takes commands once, answers where its profile says so, and does not take what a
    broker had kept, unless it is `naive`. It looks for its broker every `retry_s` for as long as it runs.
    `clock` is in seconds and drives the physics and its own fallback.
    """

    def __init__(
        self,
        *,
        profile: Profile,
        nameplate_kw: float,
        url: str,
        clock: Callable[[], float],
        username: str = "",
        password: str = "",
        period_s: float = 2.0,
        retry_s: float = 1.0,
        behaves_as: Kind | None = None,
        site: Site | None = None,
        naive: bool = False,
    ) -> None:
        super().__init__(
            profile=profile, nameplate_kw=nameplate_kw, behaves_as=behaves_as, site=site, clock=clock
        )
        self._url = url
        self._username, self._password = username, password
        self._period_s, self._retry_s = period_s, retry_s
        self._naive = naive
        self._points = {name: point for name, point in profile.points.items() if isinstance(point, Message)}
        self._values: dict[str, Value] = {}
        self._answered: deque[tuple[str, bool, str]] = deque(maxlen=REMEMBERED)
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._up = asyncio.Event()
        self._changed = asyncio.Event()
        # Messages that leave late.
        self._late: set[asyncio.Task[None]] = set()
        for name in self._points:
            self.reset(name)
        self.set_up()

    # --- Simulated

    @property
    def address(self) -> str:
        topics = [point.topic for point in self._points.values()]
        return f"{self._url} {topics[0]}"

    async def start(self) -> None:
        """Go to the broker, now or once it is there; `is_up` tells when it was found."""
        self._wanted.set()
        self._task = asyncio.create_task(self._run(), name=f"device {self.address}")

    @property
    def connected(self) -> bool:
        return self._client is not None

    async def is_up(self) -> None:
        """Wait until it has subscribed, and has said that it is there."""
        async with asyncio.timeout(TIMEOUT_S):
            await self._up.wait()

    async def stop(self) -> None:
        task, self._task = self._task, None
        self._wanted.clear()
        self.cut()
        for late in list(self._late):
            late.cancel()
        if task is not None:
            task.cancel()
            await asyncio.wait({task}, timeout=2 * TIMEOUT_S)

    async def set_fault(self, fault: Fault, *, delay_s: float = 0.0) -> None:
        """Break the device in this way, or mend it; once it is mended it is at its broker again."""
        self.break_down(fault, delay_s=delay_s)
        if fault is Fault.REFUSE:
            self._wanted.clear()
            self.cut()
            return
        self._wanted.set()
        self._changed.set()

    async def restart(self) -> None:
        self.cut()
        await super().restart()
        self._answered.clear()

    def get(self, name: str) -> Value:
        return self._values[name]

    def put(self, name: str, value: Value) -> None:
        # A value that its message could not carry is none that the device can have.
        payloads.raw_of(self._points[name], value)
        if self._values.get(name) != value:
            self._values[name] = value
            self._changed.set()

    def reset(self, name: str) -> None:
        point = self._points[name]
        value: Value = point.example
        if value is None and point.readable:
            value = "" if point.is_text and not point.codes else 0.0
        if point.codes and value is not None and str(value) not in point.codes:
            value = float(next(iter(point.codes)))
        self._values[name] = value
        self._changed.set()

    def cut(self) -> None:
        """Lose the connection without a good-bye: the broker says the last will."""
        self._up.clear()
        if self._client is not None:
            self._client.abort()

    # --- the connection

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            # (`OSError`: a name that cannot be resolved.)
            with suppress(aiomqtt.MqttError, OSError):
                await self._one_session()
            if self._task is None:
                # It was stopped while it had no connection to lose.
                return
            await asyncio.sleep(self._retry_s)

    async def _one_session(self) -> None:
        async with self._new_client() as client:
            self._client = client
            teller = asyncio.create_task(self._tell_for_ever(client), name=f"telling {self.address}")
            try:
                topics = {point.topic for point in self._points.values() if point.writable}
                if topics:
                    await client.subscribe([(topic, 1) for topic in sorted(topics)], timeout=TIMEOUT_S)
                where = self.profile.availability
                if where is not None:
                    # The last will of its former connection may come behind its return.
                    await client.subscribe(where.topic, 1, timeout=TIMEOUT_S)
                    await self._say_available(client)
                self._up.set()
                async for message in client.messages:
                    await self._hear(client, message)
            finally:
                self._client = None
                self._up.clear()
                teller.cancel()
                await asyncio.wait({teller})
                if not teller.cancelled():
                    teller.exception()

    def _new_client(self) -> Client:
        parts = urlsplit(self._url)
        will = None
        where = self.profile.availability
        if where is not None:
            will = aiomqtt.Will(where.topic, self._availability(where.offline), qos=1, retain=True)
        return Client(
            parts.hostname or "",
            parts.port or PORTS[parts.scheme],
            username=self._username or None,
            password=self._password or None,
            identifier=f"device-{uuid.uuid4().hex[:12]}",
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=True,
            will=will,
            keepalive=10,
            timeout=TIMEOUT_S,
            socket_options=NO_DELAY,
        )

    async def _say_available(self, client: Client) -> None:
        where = self.profile.availability
        assert where is not None
        await client.publish(where.topic, self._availability(where.online), qos=1, retain=True)

    def _availability(self, word: str) -> bytes:
        where = self.profile.availability
        assert where is not None
        return msgspec.json.encode(payloads.put({}, where.path, word)) if where.path else word.encode()

    # --- what it says

    async def tell(self) -> None:
        """Say everything now, as far as it is in a state to."""
        client = self._client
        if client is None or self.hears_nothing():
            return
        had_changed = self._changed.is_set()
        self.measure()
        if not had_changed:
            # To measure is none.
            self._changed.clear()
        for topic, payload in self.messages().items():
            kept = any(point.kept for point in self._points.values() if point.topic == topic)
            await self._say(client, topic, payload, retain=kept)

    def messages(self) -> dict[str, bytes]:
        """What it would say now, by topic."""
        documents: dict[str, object] = {}
        bare: dict[str, bool] = {}
        for name, point in self._points.items():
            if point.readable:
                raw = payloads.raw_of(point, self.told(name))
                documents[point.topic] = payloads.put(documents.get(point.topic, {}), point.path, raw)
                bare[point.topic] = not point.path and isinstance(raw, str)
        return {
            topic: str(document).encode() if bare[topic] else msgspec.json.encode(document)
            for topic, document in documents.items()
        }

    async def _tell_for_ever(self, client: Client) -> None:
        while client is self._client:
            self._changed.clear()
            await self.tell()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._period_s):
                    await self._changed.wait()

    async def _say(self, client: Client, topic: str, payload: bytes, *, retain: bool = False) -> None:
        if self.fault is Fault.GARBAGE:
            payload = NOT_JSON
        elif self.fault is Fault.HALF_FRAME:
            payload = payload[: len(payload) // 2]
        if self.fault is Fault.DELAY:
            late = asyncio.create_task(self._say_late(client, topic, payload, retain=retain))
            self._late.add(late)
            late.add_done_callback(self._late.discard)
            return
        await client.publish(topic, payload, qos=1, retain=retain)

    async def _say_late(self, client: Client, topic: str, payload: bytes, *, retain: bool) -> None:
        await asyncio.sleep(self.delay_s)
        with suppress(aiomqtt.MqttError):
            await client.publish(topic, payload, qos=1, retain=retain)

    # --- what it is told

    async def _hear(self, client: Client, message: aiomqtt.Message) -> None:
        payload = message.payload
        where = self.profile.availability
        if where is not None and message.topic.value == where.topic:
            if not message.retain and payload == self._availability(where.offline):
                await self._say_available(client)
            return
        if not isinstance(payload, bytes) or (message.retain and not self._naive):
            return
        self.commands += 1
        if self.fault is Fault.DROP:
            self.cut()
            return
        if self.hears_nothing():
            return
        command = self._command(message.topic.value, payload)
        if command is None:
            return
        point = self._points[command.point]
        known = next((answer for answer in self._answered if command.id and answer[0] == command.id), None)
        if known is None:
            known = (command.id, *self._carry_out(command))
            self._answered.append(known)
        if point.ack_topic:
            await self._answer(client, point, *known)
        self._changed.set()

    def _carry_out(self, command: _Command) -> tuple[bool, str]:
        """Whether it takes the command, and if not, why."""
        if self.fault is Fault.WRITE_EXCEPTION:
            return False, "internal fault"
        if command.value is None:
            return False, "not a value"
        if self.fault is not Fault.IGNORE_WRITES:
            self.let_own_fallback_act()
            try:
                self.put(command.point, command.value)
            except ValueError as error:
                return False, str(error)
            self.wrote([command.point])
        return True, ""

    async def _answer(
        self, client: Client, point: Message, identifier: str, accepted: bool, reason: str
    ) -> None:
        if self.fault is Fault.WRONG_UNIT:
            identifier = str(uuid.uuid4())
        answer: object = payloads.put({}, point.ack_id, identifier)
        answer = payloads.put(answer, point.ack_ok, accepted)
        if reason:
            answer = payloads.put(answer, point.ack_reason, reason)
        await self._say(client, point.ack_topic, msgspec.json.encode(answer))

    def _command(self, topic: str, payload: bytes) -> _Command | None:
        """What this message says to which of its points; None where it is for none."""
        for name, point in self._points.items():
            if not point.writable or point.topic != topic:
                continue
            words = words_of(point.payload, payload)
            if words is None:
                continue
            try:
                value = payloads.value_of(point, words["value"]) if "value" in words else 1.0
            except ValueError:
                value = None
            return _Command(name, value, str(words.get("id", "")))
        return None
