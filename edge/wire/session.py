"""One MQTT 5 session, as both sides of the wire open it.

The options said here are the ones the design argues for: MQTT 5 only, Clean Start, a short session expiry
(nothing we need lives in a broker session), QoS 1 with our own de-duplication, and TCP_NODELAY.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge.wire.messages import KEEP_ALIVE_S, MAXIMUM_PACKET, SESSION_EXPIRY_S, WILL_DELAY_S

CONNECT_TIMEOUT_S = 5.0
PUBLISH_TIMEOUT_S = 5.0
# With default sockets a QoS 1 request and response meets Nagle and delayed ACK: 88 ms instead of 0.5.
NO_DELAY = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)


class LinkDown(Exception):  # noqa: N818 - states the fault, as the style asks
    """There is no session with the broker, or it ended while a message was on its way."""


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the broker is and who we are to it.

    `split`: publish and subscribe on separate connections, for a broker that does not set TCP_NODELAY itself.
    """

    host: str
    port: int
    username: str | None = None
    password: str | None = None
    split: bool = False
    tls: ssl.SSLContext | None = None


def broker_from_url(url: str, *, username: str | None, password: str | None, split: bool = False) -> Broker:
    """Read `mqtt://host:port`; `ValueError` for anything else."""
    parts = urlsplit(url)
    if parts.scheme != "mqtt" or not parts.hostname:
        raise ValueError(f"{url!r} is not a broker: expected mqtt://host:port")
    return Broker(parts.hostname, parts.port or 1883, username or None, password or None, split=split)


@dataclass(frozen=True, slots=True)
class Will:
    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Incoming:
    topic: str
    payload: bytes
    retain: bool
    response_topic: str | None
    correlation: bytes | None


class Session:
    """A live session. Every method raises `LinkDown` once the connection is gone."""

    def __init__(self, subscriber: aiomqtt.Client, publisher: aiomqtt.Client) -> None:
        self._subscriber = subscriber
        self._publisher = publisher

    async def subscribe(
        self,
        *topics: str,
        qos: int = 1,
        with_retained: bool = True,
        within_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        """Subscribe to all, or raise: MQTT 5 says in the reason code what the ACL refused.

        `with_retained`: have the broker send what it keeps below them, which may come before its answer.
        """
        options = SubscribeOptions(
            qos=qos,
            retainHandling=SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE
            if with_retained
            else SubscribeOptions.RETAIN_DO_NOT_SEND,
        )
        try:
            codes = await self._subscriber.subscribe([(topic, options) for topic in topics], timeout=within_s)
        except aiomqtt.MqttError as error:
            raise LinkDown(str(error)) from error
        refused = [
            topic
            for topic, code in zip(topics, codes, strict=False)
            if isinstance(code, ReasonCode) and code.is_failure
        ]
        if refused:
            raise LinkDown(f"the broker refuses to let us read {', '.join(refused)}")

    async def unsubscribe(self, *topics: str) -> None:
        try:
            await self._subscriber.unsubscribe(list(topics), timeout=CONNECT_TIMEOUT_S)
        except aiomqtt.MqttError as error:
            raise LinkDown(str(error)) from error

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
    ) -> None:
        """Publish, and at QoS 1 return when the broker has taken it over."""
        properties = None
        if expiry_s is not None or response_topic is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            if expiry_s is not None:
                properties.MessageExpiryInterval = max(0, expiry_s)
            if response_topic is not None:
                properties.ResponseTopic = response_topic
            if correlation is not None:
                properties.CorrelationData = correlation
        try:
            await self._publisher.publish(
                topic, payload, qos=qos, retain=retain, properties=properties, timeout=PUBLISH_TIMEOUT_S
            )
        except (aiomqtt.MqttError, ValueError) as error:
            raise LinkDown(str(error)) from error
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # The library waits with asyncio.wait_for, which on Python 3.11 swallows a cancellation that meets
            # the acknowledgement: whoever publishes in a loop would never end.
            raise asyncio.CancelledError

    async def messages(self) -> AsyncIterator[Incoming]:
        """What arrives, until the connection is gone."""
        try:
            async for message in self._subscriber.messages:
                properties = message.properties
                payload = message.payload
                yield Incoming(
                    topic=message.topic.value,
                    payload=payload if isinstance(payload, bytes) else b"",
                    retain=bool(message.retain),
                    response_topic=getattr(properties, "ResponseTopic", None),
                    correlation=getattr(properties, "CorrelationData", None),
                )
        except aiomqtt.MqttError as error:
            raise LinkDown(str(error)) from error


@asynccontextmanager
async def open_session(
    broker: Broker, *, identifier: str, will: Will | None = None, expiry_s: int = SESSION_EXPIRY_S
) -> AsyncIterator[Session]:
    """Connect; `LinkDown` where that fails. Leaving the context says good-bye to the broker.

    `expiry_s`: for how long the broker keeps the session when the connection is lost.
    """
    async with AsyncExitStack() as stack:
        try:
            subscriber = await stack.enter_async_context(_client(broker, identifier, will, expiry_s))
            publisher = subscriber
            if broker.split:
                up = _client(broker, f"{identifier}-up", None, expiry_s)
                publisher = await stack.enter_async_context(up)
        except (aiomqtt.MqttError, OSError) as error:
            raise LinkDown(f"no session with {broker.host}:{broker.port}: {error}") from error
        try:
            yield Session(subscriber, publisher)
        except aiomqtt.MqttError as error:
            raise LinkDown(str(error)) from error
        finally:
            # The good-bye of a dead connection raises what we know already.
            await _close_quietly(stack)


async def _close_quietly(stack: AsyncExitStack) -> None:
    try:
        await asyncio.wait_for(stack.aclose(), CONNECT_TIMEOUT_S)
    except (aiomqtt.MqttError, TimeoutError, OSError):
        return


def _client(broker: Broker, identifier: str, will: Will | None, expiry_s: int) -> aiomqtt.Client:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = expiry_s
    properties.MaximumPacketSize = MAXIMUM_PACKET
    last_will = None
    if will is not None:
        will_properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
        will_properties.WillDelayInterval = WILL_DELAY_S
        last_will = aiomqtt.Will(will.topic, will.payload, qos=1, retain=True, properties=will_properties)
    return aiomqtt.Client(
        broker.host,
        broker.port,
        username=broker.username,
        password=broker.password,
        identifier=identifier,
        protocol=aiomqtt.ProtocolVersion.V5,
        will=last_will,
        clean_start=True,
        keepalive=KEEP_ALIVE_S,
        timeout=CONNECT_TIMEOUT_S,
        max_inflight_messages=1000,
        properties=properties,
        tls_context=broker.tls,
        socket_options=NO_DELAY,
    )
