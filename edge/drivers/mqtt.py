"""MQTT devices: a session per broker, a driver per device behind it.

A device speaks unasked, so that reading it is looking at the newest it said, and how long ago; and a setpoint
is a message that somebody may or may not have heard. What follows from both: docs/adr/0021-mqtt-devices.md.
"""

from __future__ import annotations

import asyncio
import math
import re
import ssl
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import aiomqtt
import structlog
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge.drivers.base import PollResult
from edge.drivers.errors import DeviceAway, DeviceRefused, DeviceUnreachable, ReadingInvalid
from edge.drivers.json_values import (
    MAX_PAYLOAD,
    parsed,
    shown_bytes,
    shown_text,
    told,
    value_in,
    value_of_payload,
)
from edge.drivers.points import PointDriver
from edge.profiles import payloads
from edge.profiles.model import Profile, Step
from edge.profiles.points import Message, Value
from edge.wire.client import Client, HungUp, system_context
from edge.wire.session import NO_DELAY, PORTS

log = structlog.get_logger()

# A network that takes everything and brings nothing is noticed after twice this time.
KEEP_ALIVE_S = 5
# What a broker may send at once; MQTT 5 brokers keep more to themselves.
MAX_PACKET = 4 * MAX_PAYLOAD
# Topics that are subscribed with one packet.
TOGETHER = 200
V5, V311 = aiomqtt.ProtocolVersion.V5, aiomqtt.ProtocolVersion.V311
# MQTT 5.0, 2.4.
NO_MATCHING_SUBSCRIBERS = 0x10
_ERRNO = re.compile(r"^\[Errno -?\d+\] ")


@dataclass(frozen=True, slots=True)
class Heard:
    """One message. `number` counts a session's, so that "after" is known exactly; `at_s` is boot time."""

    payload: bytes
    number: int
    at_s: float


@dataclass(eq=False, slots=True, weakref_slot=True)
class Topic:
    """What was heard on one topic since the session came up.

    `newest` came while we listened; `retained` the broker had kept, of an age that nobody knows. `changes`
    counts how often it said something else than before. `refused`: why the broker does not let us listen.
    `since_s`: when we began to, by the event loop's clock.
    """

    name: str
    qos: int
    newest: Heard | None = None
    retained: Heard | None = None
    changes: int = 0
    refused: str = ""
    since_s: float | None = None
    _listeners: set[Callable[[Heard], None]] = field(default_factory=set)

    @property
    def last_word(self) -> Heard | None:
        """The newest of all, whatever its age."""
        return self.newest or self.retained

    def forget(self) -> None:
        self.newest = self.retained = self.since_s = None
        self.refused = ""

    def hear(self, heard: Heard, *, retained: bool) -> None:
        last = self.last_word
        if last is not None and last.payload != heard.payload:
            self.changes += 1
        if retained:
            self.retained = heard
        else:
            self.newest = heard
            for listener in tuple(self._listeners):
                listener(heard)

    @contextmanager
    def listened(self, listener: Callable[[Heard], None]) -> Iterator[None]:
        """Tell this listener of every new message meanwhile."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)


class _Client(Client):
    """A client which hands over each message as it comes, and says what the broker thinks of ours.

    The library itself would queue messages without end, and look at no reason code of an acknowledgement.
    """

    def __init__(self, heard: Callable[[str, bytes, bool], None], **options: Any) -> None:
        super().__init__(**options)
        self._heard = heard
        self._answers: dict[int, asyncio.Future[ReasonCode]] = {}
        assert self.timeout is not None
        self._client.connect_timeout = self.timeout
        self.given_up = False

    async def send(
        self, topic: str, payload: bytes, *, qos: int, expiry_s: int | None, timeout_s: float
    ) -> ReasonCode:
        """Publish, never retained, and return what the broker says of it.

        `TimeoutError` where it says nothing in time, `aiomqtt.MqttError` where the connection ends.
        """
        properties = None
        if expiry_s is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.MessageExpiryInterval = expiry_s
        info = self._client.publish(topic, payload, qos, retain=False, properties=properties)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise aiomqtt.MqttCodeError(info.rc, "not published")
        answer: asyncio.Future[ReasonCode] = asyncio.get_running_loop().create_future()
        self._answers[info.mid] = answer
        self.given_up = True
        ends: set[asyncio.Future[Any]] = {answer, self.end}
        try:
            await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._answers.pop(info.mid, None)
        if answer.done():
            self.given_up = False
            return answer.result()
        if self.is_gone:
            raise aiomqtt.MqttError("the connection ended")
        raise TimeoutError

    # --- the library's callbacks

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:  # noqa: ARG002
        self._heard(message.topic, bytes(message.payload), message.retain)

    def _on_publish(
        self, client: paho.Client, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        answer = self._answers.get(mid)
        if answer is None:
            super()._on_publish(client, userdata, mid, reason_code, properties)
        elif not answer.done():
            answer.set_result(reason_code)


class MqttSession:
    """One connection to one broker, shared by the devices behind it and used by one task at a time.

    It is MQTT 5 where the broker knows it, else 3.1.1. It listens to the topics that its drivers hold, and
    keeps the newest message of each with its moment. Between two commands lie at least `min_gap_s`. `clock`
    gives boot-time seconds. A message that the broker does not acknowledge within `timeout_s` ends the
    connection: nobody knows any more what has become of it.
    """

    def __init__(
        self,
        *,
        url: str,
        username: str,
        password: str,
        timeout_s: float,
        min_gap_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or PORTS[parts.scheme]
        self._tls = parts.scheme == "mqtts"
        self._username, self._password = username, password
        self.timeout_s = timeout_s
        self._min_gap_s = min_gap_s
        self.clock = clock
        self._sleep = sleep
        self._next_command_at = 0.0
        self._client: _Client | None = None
        self._version = V5
        self._answered_v5 = False
        self._lost_because = ""
        self._number = 0
        # Gone with the last driver that holds it.
        self._topics: WeakValueDictionary[str, Topic] = WeakValueDictionary()
        # Connections that were given up while a thread of the library's still made them.
        self._leaving: set[asyncio.Task[Any]] = set()
        # Counts connections, so that a driver knows when what it has learned is of another one.
        self.generation = 0

    @property
    def endpoint(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._port}"

    @property
    def connected(self) -> bool:
        return self._client is not None and not self._client.is_gone

    @property
    def next_command_at(self) -> float:
        """Boot-time seconds before which no command may start; 0 where no gap is kept."""
        return self._next_command_at

    @property
    def number(self) -> int:
        """That of the newest message heard: what has a higher one came after now."""
        return self._number

    def topic(self, name: str, *, qos: int = 1) -> Topic:
        """What is heard on this topic, for as long as somebody holds it."""
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = Topic(name, qos)
        topic.qos = max(topic.qos, qos)
        return topic

    # --- the connection

    async def connect(self) -> None:
        """Connect anew and listen; `DeviceUnreachable` says why it cannot."""
        await self.aclose()
        client = await self._open()
        self._client = client
        for topic in list(self._topics.values()):
            topic.forget()
        try:
            await self.listen(list(self._topics.values()))
        except BaseException:
            self._drop("")
            raise
        self.generation += 1

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        if not client.given_up and not client.is_gone:
            try:
                async with asyncio.timeout(self.timeout_s):
                    await client.__aexit__(None, None, None)
            except (aiomqtt.MqttError, TimeoutError, OSError):
                # It is ended without a good-bye, then.
                pass
        self._end(client)

    async def _open(self) -> _Client:
        """Greet the broker, in 3.1.1 where it does not know MQTT 5."""
        try:
            return await self._greet(self._version)
        except aiomqtt.MqttError as error:
            other = _other_version(error, self._version, answered=self._answered_v5)
            if other is None:
                raise self._no_connection(error) from error
            refusal = error
        try:
            client = await self._greet(other)
        except aiomqtt.MqttError as error:
            # What it said to the first greeting tells more, unless the second was answered with a word.
            raise self._no_connection(error if isinstance(refusal, HungUp) else refusal) from error
        self._version = other
        if other is V311:
            log.info("a broker of devices knows MQTT 3.1.1 only", broker=self.endpoint)
        return client

    async def _greet(self, version: aiomqtt.ProtocolVersion) -> _Client:
        context = None
        if self._tls:
            # From disk, and not in the loop's own thread.
            context = await asyncio.get_running_loop().run_in_executor(None, system_context)
        client = self._new_client(version, context)
        entering = asyncio.create_task(client.__aenter__(), name=f"connect {self.endpoint}")
        try:
            # Its own timeouts are for the connection and for the greeting; a name may take its time as well.
            await asyncio.wait({entering}, timeout=3 * self.timeout_s)
        finally:
            if not entering.done():
                self._abandon(client, entering)
        if not entering.done():
            raise aiomqtt.MqttError(f"nothing within {3 * self.timeout_s:g} s")
        error = entering.exception()
        if error is not None:
            # The library leaves the socket of a greeting that failed as it is.
            client.abort()
            if isinstance(error, OSError | ValueError):
                raise aiomqtt.MqttError(str(error)) from error
            raise error
        self._answered_v5 = self._answered_v5 or version is V5
        return client

    def _new_client(self, version: aiomqtt.ProtocolVersion, context: ssl.SSLContext | None) -> _Client:
        properties = None
        if version is V5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 0
            properties.MaximumPacketSize = MAX_PACKET
        return _Client(
            self._hear,
            hostname=self._host,
            port=self._port,
            username=self._username or None,
            password=self._password or None,
            # As long as 3.1.1 promises to take it (3.1.3.1), and nobody else's.
            identifier=f"sgm{uuid.uuid4().hex[:20]}",
            protocol=version,
            clean_session=None if version is V5 else True,
            clean_start=True if version is V5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
            keepalive=KEEP_ALIVE_S,
            timeout=self.timeout_s,
            properties=properties,
            tls_context=context,
            socket_options=NO_DELAY,
        )

    def _abandon(self, client: _Client, entering: asyncio.Task[Any]) -> None:
        """End a connection as soon as it is there: the thread that makes it cannot be stopped."""

        def end(task: asyncio.Task[Any]) -> None:
            self._leaving.discard(task)
            if not task.cancelled():
                task.exception()
            client.abort()

        self._leaving.add(entering)
        entering.add_done_callback(end)

    def _no_connection(self, error: aiomqtt.MqttError) -> DeviceUnreachable:
        reason = _ERRNO.sub("", str(error))
        if reason == "Operation timed out":
            reason = f"no answer within {self.timeout_s:g} s"
        return DeviceUnreachable(f"no connection to {self.endpoint}: {reason}")

    def _drop(self, reason: str) -> None:
        client, self._client = self._client, None
        self._lost_because = reason
        if client is not None:
            self._end(client)

    @staticmethod
    def _end(client: _Client) -> None:
        # What was given up the system would still deliver, once a pulled cable is back: an old setpoint after
        # a newer one.
        client.abort(discard=client.given_up)

    def require(self) -> _Client:
        """The connection; `DeviceUnreachable` where it is gone."""
        client = self._client
        if client is None or client.is_gone:
            reason = (client.why_gone if client is not None else "") or self._lost_because
            raise DeviceUnreachable(f"not connected to {self.endpoint}{f': {reason}' if reason else ''}")
        return client

    # --- hearing

    async def listen(self, topics: Iterable[Topic]) -> None:
        """Subscribe those of these that are not yet; a refusal is kept with its topic."""
        client = self.require()
        missing = [topic for topic in topics if topic.since_s is None and not topic.refused]
        for start in range(0, len(missing), TOGETHER):
            part = missing[start : start + TOGETHER]
            codes = await self._subscribe(client, part)
            now = asyncio.get_running_loop().time()
            for topic, code in zip(part, codes, strict=False):
                topic.since_s = now
                if code.is_failure:
                    topic.refused = f"the broker does not let us listen to {topic.name}: {code}"

    async def retained_on(self, topic: Topic) -> Heard | None:
        """What the broker keeps on a topic; None where that is nothing, or where it will not say."""
        client = self.require()
        if topic.since_s is not None:
            return topic.retained
        codes = await self._subscribe(client, [topic])
        if any(code.is_failure for code in codes):
            return None
        try:
            # Its answer comes behind all that the subscription has brought.
            await client.unsubscribe(topic.name, timeout=self.timeout_s)
        except aiomqtt.MqttError as error:
            raise self._broke(error) from error
        return topic.retained

    async def _subscribe(self, client: _Client, topics: list[Topic]) -> list[ReasonCode]:
        if self._version is V5:
            wanted: Any = [(topic.name, SubscribeOptions(qos=topic.qos)) for topic in topics]
        else:
            wanted = [(topic.name, topic.qos) for topic in topics]
        try:
            codes = await client.subscribe(wanted, timeout=self.timeout_s)
        except aiomqtt.MqttError as error:
            raise self._broke(error) from error
        return [code for code in codes if isinstance(code, ReasonCode)]

    def _hear(self, name: str, payload: bytes, retained: bool) -> None:
        topic = self._topics.get(name)
        if topic is None:
            return
        self._number += 1
        # One byte more than is read tells that it was too long.
        topic.hear(Heard(payload[: MAX_PAYLOAD + 1], self._number, self.clock()), retained=retained)

    def _broke(self, error: Exception) -> DeviceUnreachable:
        reason = "no answer" if isinstance(error, TimeoutError) else str(error)
        self._drop(reason)
        return DeviceUnreachable(f"the connection to {self.endpoint} broke: {reason}")

    # --- telling

    async def publish(self, topic: str, payload: bytes, *, qos: int, expiry_s: float) -> bool:
        """Publish one command, never retained; False where the broker knows of nobody who listens.

        `expiry_s`: for how long the broker may keep it for a device that is away; 3.1.1 has no such thing.
        `DeviceRefused` where the broker does not let us, `DeviceUnreachable` where it does not answer.
        """
        if self._min_gap_s:
            # In a loop: a timer may fire a little early, and the device does not forgive that.
            while (wait_s := self._next_command_at - self.clock()) > 0:
                await self._sleep(wait_s)
        client = self.require()
        expiry = max(1, math.ceil(expiry_s)) if self._version is V5 else None
        try:
            reason = await client.send(topic, payload, qos=qos, expiry_s=expiry, timeout_s=self.timeout_s)
        except (aiomqtt.MqttError, ValueError, TimeoutError) as error:
            raise self._broke(error) from error
        except BaseException:
            # Cancelled, for one: what has become of it, nobody knows.
            self._drop("")
            raise
        finally:
            if self._min_gap_s:
                self._next_command_at = self.clock() + self._min_gap_s
        if reason.is_failure:
            raise DeviceRefused(f"{self.endpoint} does not take messages to {topic}: {reason}")
        return reason.value != NO_MATCHING_SUBSCRIBERS

    async def wait(self, future: asyncio.Future[Any], *, until_s: float) -> bool:
        """Wait for this until that moment of the event loop's clock; False where it does not come.

        `DeviceUnreachable` where the connection ends meanwhile.
        """
        client = self.require()
        left_s = until_s - asyncio.get_running_loop().time()
        if not future.done() and left_s > 0:
            await asyncio.wait({future, client.end}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            self.require()
        return future.done()


def _other_version(
    error: aiomqtt.MqttError, version: aiomqtt.ProtocolVersion, *, answered: bool
) -> aiomqtt.ProtocolVersion | None:
    """The version to try next, where the error may be about that."""
    is_refusal = isinstance(error, MqttConnectError) and "rotocol version" in str(error)
    if version is V311:
        return V5 if is_refusal else None
    # Some brokers of 3.1.1 hang up on what they do not know. One that has known MQTT 5 has another reason.
    return V311 if is_refusal or (isinstance(error, HungUp) and not answered) else None


class MqttDriver(PointDriver):
    """One device behind a broker, as its profile describes it."""

    def __init__(
        self,
        *,
        session: MqttSession,
        profile: Profile,
        unit: int,  # noqa: ARG002 - every driver gets one, and topics have none
        nameplate_kw: float | None,
    ) -> None:
        super().__init__(profile=profile, nameplate_kw=nameplate_kw)
        self._session = session
        self._messages: dict[str, Message] = {
            name: point for name, point in profile.points.items() if isinstance(point, Message)
        }
        names = {
            name: max(point.qos for point in self._messages.values() if name in _heard_on(point))
            for point in self._messages.values()
            for name in _heard_on(point)
        }
        self._topics = {name: session.topic(name, qos=qos) for name, qos in names.items()}
        where = profile.availability
        self._availability = None if where is None else session.topic(where.topic)
        self._polled = frozenset(profile.telemetry.values()) | self._readback_points
        # One point of each topic by whose silence it is known to be away.
        polled = (self._messages[name] for name in sorted(self._polled))
        self._speaking = tuple({point.topic: point for point in polled if not point.kept}.values())
        self._known: tuple[int, int] = (-1, -1)
        self._looked_for_retained = -1
        # When it said what was read of it last.
        self._said_at_s: dict[str, float] = {}
        # A setpoint that was sent: its value, and what the session had heard when it was, and when that was.
        self._expected: float | None = None
        self._sent_number = 0
        self._sent_s = -math.inf

    @property
    def commands_per_poll(self) -> int:
        # It speaks unasked.
        return 0

    @property
    def _where(self) -> str:
        first = next(iter(self._topics), None) or next(point.topic for point in self._messages.values())
        return f"{self._session.endpoint} {first}"

    def _look_for_reconnection(self) -> None:
        # Another connection may lead to another device, and one that was away to one that has restarted.
        changes = 0 if self._availability is None else self._availability.changes
        known = (self._session.generation, changes)
        if known != self._known:
            self._known = known
            self._forget()

    def _needed(self, steps: Iterable[Step]) -> frozenset[str]:  # noqa: ARG002 - the signature of all drivers
        return frozenset()

    # --- a driver

    async def identify(self) -> None:
        """Refuse a device that is not what it should be; `DeviceAway` where it says nothing at all."""
        await self._be_ready()
        if self._polled:
            await self._read(self._polled, tolerant=True)
        elif self._availability is not None:
            await self._wait_for_availability(self._availability)
        await super().identify()
        await self._look_for_retained_setpoints()

    async def poll(self) -> PollResult:
        result = await super().poll()
        said = {key: self._said_at_s.get(name, -math.inf) for key, name in self._profile.telemetry.items()}
        return replace(result, said_at_s={key: at_s for key, at_s in said.items() if at_s > -math.inf})

    async def write(self, value: float) -> None:
        self._sent_number, self._sent_s = self._session.number, asyncio.get_running_loop().time()
        self._expected = None
        await super().write(value)
        self._expected = value

    async def read_setpoint(self) -> float | None:
        """The setpoint in force, as the device tells it after the last write.

        What it says first may still be from before it carried the write out: it is given the session's
        timeout to say something else.
        """
        setpoint = await super().read_setpoint()
        expected, self._expected = self._expected, None
        topics = [self._topics[self._messages[name].topic] for name in self._readback_points]
        tolerance = self._limit.tolerance
        while (
            expected is not None
            and setpoint is not None
            and abs(setpoint - expected) > tolerance
            and await self._news(topics)
        ):
            setpoint = await super().read_setpoint()
        return setpoint

    # --- reading

    async def _read(self, names: frozenset[str], *, tolerant: bool = False) -> Mapping[str, Value]:
        await self._be_ready()
        self._look_for_reconnection()
        self._judge_availability()
        documents: dict[int, object] = {}
        values: dict[str, Value] = {}
        fault: ReadingInvalid | DeviceRefused | None = None
        for name in sorted(names):
            point = self._messages[name]
            after = self._sent_number if name in self._readback_points else 0
            try:
                heard = await self._newest(point, after=after)
                values[name] = _value(point, heard, documents)
            except (ReadingInvalid, DeviceRefused) as error:
                if not tolerant:
                    raise
                fault = error
            else:
                self._said_at_s[name] = -math.inf if point.kept else heard.at_s
        if fault is not None and not values:
            raise fault
        return values

    async def _be_ready(self) -> None:
        """Listen to what is not listened to yet: a device may come to a session that is up."""
        wanted = [*self._topics.values()]
        if self._availability is not None:
            wanted.append(self._availability)
        await self._session.listen(wanted)

    def _judge_availability(self) -> None:
        """`DeviceAway` where the device, or its last will, says that it is not there."""
        where, topic = self._profile.availability, self._availability
        if where is None or topic is None or topic.last_word is None:
            return
        word: object = topic.last_word.payload.decode(errors="replace").strip()
        if where.path:
            try:
                document = parsed(topic.last_word.payload, what=topic.name)
                word = payloads.find(document, where.path)
            except (ReadingInvalid, payloads.Missing):
                return
        if word == where.offline:
            raise DeviceAway(f"{self._session.endpoint}: {topic.name} says {where.offline}")

    async def _wait_for_availability(self, topic: Topic) -> None:
        """For a device that says nothing else."""
        if topic.refused:
            raise DeviceRefused(topic.refused)
        if topic.last_word is None:
            await self._news([topic], until_s=self._first_by(topic))
        if topic.last_word is None:
            raise DeviceAway(f"{self._session.endpoint}: nothing on {topic.name} so far")
        self._judge_availability()

    async def _newest(self, point: Message, *, after: int) -> Heard:
        """The newest message of a point's topic, if it counts; else wait a while for one.

        A topic that we have just begun to listen to has the session's timeout to say its first; and so has a
        setpoint's, after a write.
        """
        topic = self._topics[point.topic]
        if topic.refused:
            raise DeviceRefused(f"{self._where}: {topic.refused}")
        until_s = max(self._first_by(topic), self._sent_s + self._session.timeout_s if after else -math.inf)
        while True:
            heard = topic.last_word if point.kept else topic.newest
            if heard is not None and (point.kept or heard.number > after):
                break
            if not await self._news([topic], until_s=until_s):
                raise self._nothing(topic)
        age_s = self._session.clock() - heard.at_s
        if not point.kept and age_s > self._profile.stale_after_s:
            raise DeviceAway(f"{self._session.endpoint}: no message on {topic.name} for {age_s:.0f} s")
        return heard

    def _nothing(self, topic: Topic) -> DeviceAway:
        what = f"{self._session.endpoint}: no message on {topic.name}"
        if topic.newest is not None:
            return DeviceAway(f"{what} since the setpoint was sent")
        if topic.retained is not None:
            return DeviceAway(f"{what} but one that the broker had kept, of unknown age")
        return DeviceAway(f"{what} so far")

    def _first_by(self, topic: Topic) -> float:
        return -math.inf if topic.since_s is None else topic.since_s + self._session.timeout_s

    async def _news(self, topics: Iterable[Topic], *, until_s: float | None = None) -> bool:
        """Wait for a message on one of these; by default for as long as a write may take."""
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def listener(heard: Heard) -> None:  # noqa: ARG001 - that it came is enough
            if not news.done():
                news.set_result(None)

        if until_s is None:
            until_s = self._sent_s + self._session.timeout_s
        with _listened(topics, listener):
            return await self._session.wait(news, until_s=until_s)

    # --- writing

    async def _put(self, values: Mapping[str, Value], *, only_if_different: bool) -> None:
        # What the loader refuses: a message says one thing, and nobody can be asked what it said last.
        assert len(values) == 1
        assert not only_if_different
        ((name, value),) = values.items()
        point = self._messages[name]
        try:
            command = told(point, point.payload, value)
        except ValueError as error:
            raise DeviceRefused(
                f"{value} cannot be written to {point.name} of {self._where}: {error}"
            ) from error
        await self._be_ready()
        self._judge_availability()
        # Who says nothing is told nothing: whether it hears is not known, and by then another may be wanted.
        for polled in self._speaking:
            await self._newest(polled, after=0)
        self._count(values)
        timeout_s = self._session.timeout_s
        # What is given up here is not to arrive later: the setpoint may be another by then.
        expiry_s = timeout_s if point.valid_s is None else min(timeout_s, point.valid_s)
        if not point.ack_topic:
            await self._publish(point, command.payload, expiry_s=expiry_s)
            return
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        with self._answers(point, command.id, answer):
            await self._publish(point, command.payload, expiry_s=expiry_s)
            until_s = asyncio.get_running_loop().time() + timeout_s
            if not await self._session.wait(answer, until_s=until_s):
                raise DeviceAway(
                    f"{self._session.endpoint}: no answer on {point.ack_topic} to what was sent to"
                    f" {point.topic} within {timeout_s:g} s"
                )
        refusal = answer.result()
        if isinstance(refusal, Exception):
            raise refusal

    async def _publish(self, point: Message, payload: bytes, *, expiry_s: float) -> None:
        if not await self._session.publish(point.topic, payload, qos=point.qos, expiry_s=expiry_s):
            raise DeviceAway(f"{self._session.endpoint}: nobody listens to {point.topic}")

    @contextmanager
    def _answers(self, point: Message, identifier: str, answer: asyncio.Future[object]) -> Iterator[None]:
        """Have the device's answer to this command: None for yes, the error for no.

        It may also say, or have its last will say, that it is gone.
        """
        topic = self._topics[point.ack_topic]
        if topic.refused:
            raise DeviceRefused(f"{self._where}: {topic.refused}")

        def acknowledged(heard: Heard) -> None:
            verdict = self._verdict(point, identifier, heard)
            if verdict is not _NOT_OURS and not answer.done():
                answer.set_result(verdict)

        def gone(heard: Heard) -> None:  # noqa: ARG001 - the topic has it
            try:
                self._judge_availability()
            except DeviceAway as error:
                if not answer.done():
                    answer.set_result(error)

        where = [] if self._availability is None else [self._availability]
        with _listened([topic], acknowledged), _listened(where, gone):
            yield

    def _verdict(self, point: Message, identifier: str, heard: Heard) -> object:
        """What an acknowledgement says of this command; `_NOT_OURS` where it is of another, or of none."""
        try:
            document = parsed(heard.payload, what=point.ack_topic)
            if payloads.find(document, point.ack_id) != identifier:
                return _NOT_OURS
            accepted = payloads.find(document, point.ack_ok)
        except (ReadingInvalid, payloads.Missing):
            return _NOT_OURS
        if accepted is True:
            return None
        if accepted is not False:
            return _NOT_OURS
        reason = ""
        with suppress(payloads.Missing):
            reason = shown_text(payloads.find(document, point.ack_reason))
        return DeviceRefused(
            f"{self._session.endpoint} refused what was sent to {point.topic}: {reason or 'without a reason'}"
        )

    async def _look_for_retained_setpoints(self) -> None:
        """Warn of a setpoint that somebody has the broker keep: a device takes it whenever it connects."""
        if self._looked_for_retained == self._session.generation:
            return
        self._looked_for_retained = self._session.generation
        for name in sorted({point.topic for point in self._messages.values() if point.writable}):
            if name in self._topics:
                continue
            found = await self._session.retained_on(self._session.topic(name))
            if found is not None and found.payload:
                log.warning(
                    "the broker keeps a setpoint for a device, who will take it whenever it connects",
                    broker=self._session.endpoint,
                    topic=name,
                    payload=shown_bytes(found.payload),
                )


_NOT_OURS = object()


def _heard_on(point: Message) -> tuple[str, ...]:
    """The topics that a point makes us listen to."""
    if point.readable:
        return (point.topic,)
    return (point.ack_topic,) if point.ack_topic else ()


@contextmanager
def _listened(topics: Iterable[Topic], listener: Callable[[Heard], None]) -> Iterator[None]:
    topics = list(topics)
    if not topics:
        yield
        return
    with topics[0].listened(listener), _listened(topics[1:], listener):
        yield


def _value(point: Message, heard: Heard, documents: dict[int, object]) -> Value:
    """A point's value in a message; each message is taken apart once."""
    if not point.path:
        return value_of_payload(point, heard.payload, what=point.topic)
    if heard.number not in documents:
        documents[heard.number] = parsed(heard.payload, what=point.topic)
    return value_in(point, documents[heard.number], what=point.topic)
