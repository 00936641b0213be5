"""One MQTT 5 session, as both sides of the wire open it.

The options said here are the ones the design argues for: MQTT 5 only, Clean Start, a short session expiry
(nothing we need lives in a broker session), QoS 1 with our own de-duplication, and TCP_NODELAY.
"""

from __future__ import annotations

import asyncio
import copy
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiomqtt
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge.wire.client import Client
from edge.wire.messages import KEEP_ALIVE_S, MAXIMUM_PACKET, SESSION_EXPIRY_S, WILL_DELAY_S

CONNECT_TIMEOUT_S = 5.0
PUBLISH_TIMEOUT_S = 5.0
# Messages of one session that wait for their acknowledgements; the broker takes as many at once.
IN_FLIGHT = 1000
# Of many messages so many are on their way at once: enough to keep the broker busy between two answers.
TOGETHER = 200
# With default sockets a QoS 1 request and response meets Nagle and delayed ACK: 88 ms instead of 0.5.
NO_DELAY = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)


# To be copied: to make one takes longer than all else that a message costs here.
_PUBLISH = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]


class LinkDown(Exception):  # noqa: N818 - states the fault, as the style asks
    """There is no session with the broker, or it ended while a message was on its way."""


# OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the ssl module has no name for.
NO_CHECK_TIME = 0x200000
PORTS = {"mqtt": 1883, "mqtts": 8883}


def _always() -> bool:
    return True


class BrokerUnknown(LinkDown):
    """What answers shows a certificate that those we believe do not vouch for."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How we know the broker, and how it knows us.

    `ca`: PEM of the one authority we believe about the broker, or what says it at each connect, for who may
    come to believe another. `certificate`: a PEM file with our private key
    and our certificate, in one file so that both are replaced in one step; read again at each connect, so a
    renewed one needs no restart. `is_dated`: whether we know the time well enough to judge the broker's
    certificate by it; a computer whose clock begins in 1970 must still come to where it learns the time.
    """

    ca: str | Callable[[], str]
    certificate: Path | None = None
    is_dated: Callable[[], bool] = _always

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or newer, the broker's certificate and name verified; `ssl.SSLError`, `OSError`."""
        context = ssl.create_default_context(cadata=self.ca if isinstance(self.ca, str) else self.ca())
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate is not None:
            context.load_cert_chain(self.certificate)
        if not self.is_dated():
            context.verify_flags = ssl.VerifyFlags(context.verify_flags | NO_CHECK_TIME)
        return context


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
    tls: Tls | None = None


def broker_from_url(
    url: str,
    *,
    username: str | None,
    password: str | None,
    split: bool = False,
    tls: Tls | None = None,
) -> Broker:
    """Read `mqtt://host:port`, or `mqtts://host:port` where there is `tls`; else `ValueError`."""
    parts = urlsplit(url)
    if parts.scheme not in PORTS or not parts.hostname:
        raise ValueError(f"{url!r} is not a broker: expected mqtt://host:port or mqtts://host:port")
    if (parts.scheme == "mqtts") != (tls is not None):
        raise ValueError(
            f"{url!r}: mqtts needs an authority to know the broker by"
            if tls is None
            else f"{url!r}: there is a certificate to show, expected mqtts://host:port"
        )
    return Broker(
        parts.hostname,
        parts.port or PORTS[parts.scheme],
        username or None,
        password or None,
        split=split,
        tls=tls,
    )


@dataclass(frozen=True, slots=True)
class Will:
    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One of many messages to publish, at QoS 1."""

    topic: str
    payload: bytes
    retain: bool = False
    expiry_s: int | None = None
    response_topic: str | None = None
    correlation: bytes | None = None


@dataclass(frozen=True, slots=True)
class Incoming:
    topic: str
    payload: bytes
    retain: bool
    response_topic: str | None
    correlation: bytes | None


class Session:
    """A live session. Every method raises `LinkDown` once the connection is gone."""

    def __init__(self, subscriber: _Client, publisher: _Client) -> None:
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
        properties = _properties(expiry_s, response_topic, correlation)
        try:
            await self._publisher.publish(
                topic, payload, qos=qos, retain=retain, properties=properties, timeout=PUBLISH_TIMEOUT_S
            )
        except (aiomqtt.MqttError, ValueError) as error:
            raise LinkDown(str(error)) from error

    async def publish_all(self, messages: Sequence[Outgoing]) -> None:
        """Publish these in this order and return when the broker has taken over all of them.

        `LinkDown` too where it refuses one: MQTT 5 says so in the reason code. Any of them may have arrived.
        """
        for start in range(0, len(messages), TOGETHER):
            try:
                await self._publisher.publish_together(messages[start : start + TOGETHER])
            except (aiomqtt.MqttError, ValueError) as error:
                raise LinkDown(str(error)) from error

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


def _properties(
    expiry_s: int | None, response_topic: str | None, correlation: bytes | None
) -> Properties | None:
    if expiry_s is None and response_topic is None:
        return None
    properties = copy.copy(_PUBLISH)
    if expiry_s is not None:
        properties.MessageExpiryInterval = max(0, expiry_s)
    if response_topic is not None:
        properties.ResponseTopic = response_topic
    if correlation is not None:
        properties.CorrelationData = correlation
    return properties


class _Together:
    """Messages that wait for their acknowledgements as one."""

    def __init__(self, count: int) -> None:
        self.waiting = count
        self.refusal = ""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def acknowledged(self, reason: ReasonCode) -> None:
        if reason.is_failure:
            self.refusal = str(reason)
        self.waiting -= 1
        if not self.waiting and not self.done.done():
            self.done.set_result(None)


class _Client(Client):
    """A client which publishes many messages as one, and hears refusals.

    The library's own `publish` costs a task, two timers and, beyond ten at once, a line of log a message; and
    each acknowledgement takes it as long as there are messages on their way.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # It would log a line for each message beyond ten on their way, which is nothing here.
        self.pending_calls_threshold = IN_FLIGHT
        self._together: dict[int, _Together] = {}

    async def publish_together(self, messages: Sequence[Outgoing]) -> None:
        """Hand these over in this order; return when all are acknowledged. `aiomqtt.MqttError` where not."""
        together = _Together(len(messages))
        packets: list[int] = []
        properties: Properties | None = None
        before: Outgoing | None = None
        try:
            for message in messages:
                if before is None or _differ(message, before):
                    properties = _properties(message.expiry_s, message.response_topic, message.correlation)
                before = message
                sent = self._client.publish(message.topic, message.payload, 1, message.retain, properties)
                if sent.rc != paho.MQTT_ERR_SUCCESS:
                    raise aiomqtt.MqttCodeError(sent.rc, "Could not publish message")
                packets.append(sent.mid)
                self._together[sent.mid] = together
            await asyncio.wait(
                {together.done, self._disconnected},
                timeout=PUBLISH_TIMEOUT_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for packet in packets:
                self._together.pop(packet, None)
        if not together.done.done():
            raise aiomqtt.MqttError("the broker did not acknowledge")
        if together.refusal:
            raise aiomqtt.MqttError(f"the broker refuses a message: {together.refusal}")

    def _on_publish(
        self, client: paho.Client, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        together = self._together.pop(mid, None)
        if together is None:
            super()._on_publish(client, userdata, mid, reason_code, properties)
        else:
            together.acknowledged(reason_code)


def _differ(one: Outgoing, other: Outgoing) -> bool:
    return (one.expiry_s, one.response_topic, one.correlation) != (
        other.expiry_s,
        other.response_topic,
        other.correlation,
    )


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
        except (aiomqtt.MqttError, OSError, ValueError) as error:
            # (`ssl.SSLError` is an OSError, and a file that holds no certificate a ValueError.)
            raise LinkDown(f"no session with {broker.host}:{broker.port}: {error}") from error
        try:
            yield Session(subscriber, publisher)
        except aiomqtt.MqttError as error:
            raise LinkDown(str(error)) from error
        finally:
            # The good-bye of a dead connection raises what we know already.
            await _close_quietly(stack)


async def try_certificate(
    broker: Broker, *, within_s: float = CONNECT_TIMEOUT_S, silent_s: float = 1.0
) -> None:
    """See by a TLS handshake alone whether the broker would let us in; `LinkDown` where it would not,
    `BrokerUnknown` where we do not believe the broker.

    No MQTT is spoken, so a session that we have meanwhile goes on. In TLS 1.3 the refusal of our certificate
    comes after the handshake: a broker that says nothing for `silent_s` has taken it.
    """
    if broker.tls is None:
        raise ValueError("there is no certificate to try")
    try:
        async with asyncio.timeout(within_s):
            context = broker.tls.context()
            reader, writer = await asyncio.open_connection(broker.host, broker.port, ssl=context)
        try:
            async with asyncio.timeout(silent_s):
                said = await reader.read(1)
        except TimeoutError:
            return
        finally:
            writer.transport.abort()
    except ssl.SSLCertVerificationError as error:
        raise BrokerUnknown(f"{broker.host}:{broker.port} is not known to us: {error}") from error
    except (OSError, ValueError) as error:
        raise LinkDown(f"{broker.host}:{broker.port} does not take the certificate: {error}") from error
    raise LinkDown(
        f"{broker.host}:{broker.port} does not take the certificate: it {'spoke' if said else 'hung up'}"
    )


async def _close_quietly(stack: AsyncExitStack) -> None:
    try:
        # Not wait_for: on Python 3.11 it swallows a cancellation that meets the end.
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await stack.aclose()
    except (aiomqtt.MqttError, TimeoutError, OSError):
        return


def _client(broker: Broker, identifier: str, will: Will | None, expiry_s: int) -> _Client:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = expiry_s
    properties.MaximumPacketSize = MAXIMUM_PACKET
    last_will = None
    if will is not None:
        will_properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
        will_properties.WillDelayInterval = WILL_DELAY_S
        last_will = aiomqtt.Will(will.topic, will.payload, qos=1, retain=True, properties=will_properties)
    return _Client(
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
        max_inflight_messages=IN_FLIGHT,
        properties=properties,
        tls_context=None if broker.tls is None else broker.tls.context(),
        socket_options=NO_DELAY,
    )
