"""The only place where central touches the broker.

The link is small (`send`, `results`, `put_desired`, and what nodes say unasked), so that another backend can
stand behind it. Here it is one MQTT 5 session for the life of the process, in a thread of its own: a dead
session is opened anew, and nothing is queued for it meanwhile.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, TimeoutError as FutureTimeoutError
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, Self

import structlog
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from edge.wire.messages import SESSION_EXPIRY_S
from edge.wire.session import Broker, Incoming, LinkDown, Outgoing, Session, Tls, open_session
from edge.wire.topics import NodeTopics, owner, responses_to
from sites_app.publishing import DesiredMessage
from smartgrid.errors import Unavailable

log = structlog.stdlib.get_logger(__name__)

RECONNECT_S = 0.5
PUBLISH_TIMEOUT_S = 2.0
# What each message of many adds to it.
PUBLISH_EACH_S = 0.005
FIRST_CONNECT_TIMEOUT_S = 0.6
# Retained messages come at once and without an end: after so long without another they were all.
RETAINED_QUIET_S = 2.0
RETAINED_LONGEST_S = 120.0


class LinkUnavailable(Unavailable):
    """There is no session with the broker: nothing was sent."""

    code = "link_unavailable"


class SendUnconfirmed(Unavailable):
    """The broker did not confirm: it may have been sent, or not."""

    code = "send_unconfirmed"


@dataclass(frozen=True, slots=True)
class CommandMessage:
    """A command on its way to a node, worthless after `ttl_s`."""

    topics: NodeTopics
    op: str
    payload: bytes
    command_id: str
    ttl_s: float


class NodeLink(Protocol):
    """How central reaches its nodes.

    What nodes say unasked (`reported`, presence, logs, telemetry) comes the other way, through the inbox's
    own session. A backend without retained messages may forget what `put_desired` left: a node that lacks
    something says so in its next report, and is told again.
    """

    def send(self, topics: NodeTopics, op: str, payload: bytes, *, command_id: str, ttl_s: float) -> None:
        """Send a command that is worthless after `ttl_s`; its answers come to the link's `results`."""

    def send_all(self, commands: Sequence[CommandMessage]) -> None:
        """Send many, none waiting for the one before; where it raises, any of them may have been sent."""

    def put_desired(self, messages: Sequence[DesiredMessage]) -> None:
        """Leave these for their nodes, in this order, each replacing the one of that name.

        An empty payload takes the one of that name away. Each stays for nodes that are away now, until its
        `expiry_s` is over. Returns when the broker has taken over all of them; `LinkUnavailable`: none was
        sent; `SendUnconfirmed`: any of them may have arrived. The same again does no harm.
        """


class BrokerConnection:
    """One session with the broker, kept open in a thread; `on_message` is called there and must not block."""

    _loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        broker: Broker,
        *,
        identifier: str,
        subscriptions: tuple[str, ...],
        on_message: Callable[[Incoming], None],
        on_connect: Callable[[], None] | None = None,
        retained: tuple[str, ...] = (),
        session_expiry_s: int = SESSION_EXPIRY_S,
        stands_still_s: float | None = None,
    ) -> None:
        """`retained`: what the broker keeps below these is read once at each connect.

        `session_expiry_s`: for how long the broker keeps a session whose connection is lost.
        `stands_still_s`: where this process stands still for longer, its session is thrown away, with what
        that brought meanwhile: nobody could tell how old it is. None: never.
        """
        self._broker = broker
        self._retained = retained
        self._session_expiry_s = session_expiry_s
        self._stands_still_s = stands_still_s
        self._identifier = identifier
        self._subscriptions = subscriptions
        self._on_message = on_message
        self._on_connect = on_connect
        self._session: Session | None = None
        self._many = threading.Lock()
        self._connected = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"broker {identifier}", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    def stop(self) -> None:
        """Say good-bye to the broker and end the thread. A second time is harmless."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=5)

    @property
    def is_connected(self) -> bool:
        return self._connected.is_set()

    def wait_connected(self, timeout_s: float) -> bool:
        return self._connected.wait(timeout_s)

    def publish(
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
        """Publish and return when the broker has taken it over.

        `LinkUnavailable`: nothing was sent. `SendUnconfirmed`: the session died, or the broker took longer
        than two seconds, with the message on its way.
        """
        sending = self._open_session().publish(
            topic,
            payload,
            qos=qos,
            retain=retain,
            expiry_s=expiry_s,
            response_topic=response_topic,
            correlation=correlation,
        )
        self._wait_for(sending, PUBLISH_TIMEOUT_S)

    def publish_all(self, messages: Sequence[Outgoing]) -> None:
        """Publish these in this order and return when the broker has taken over all of them.

        None waits for the one before it, so a thousand take little longer than one. Errors as of `publish`;
        any of the messages may have arrived then.
        """
        if messages:
            timeout_s = PUBLISH_TIMEOUT_S + len(messages) * PUBLISH_EACH_S
            # One after the other: together they would take as long, and each would wait for all of them.
            with self._many:
                self._wait_for(self._open_session().publish_all(messages), timeout_s)

    def _open_session(self) -> Session:
        if self._session is None:
            raise LinkUnavailable("There is no connection to the message broker.")
        return self._session

    def _wait_for(self, sending: Coroutine[Any, Any, None], timeout_s: float) -> None:
        try:
            future = asyncio.run_coroutine_threadsafe(sending, self._loop)
        except RuntimeError as error:  # the loop is closed: the process ends
            sending.close()
            raise LinkUnavailable("The connection to the message broker is closed.") from error
        try:
            future.result(timeout_s)
        except FutureTimeoutError as error:
            # What did not leave yet must not leave behind what comes next.
            future.cancel()
            raise SendUnconfirmed(f"The message broker did not confirm within {timeout_s:g} s.") from error
        except (LinkDown, CancelledError) as error:
            raise SendUnconfirmed(f"The connection to the message broker broke: {error}") from error

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._keep_open())
        finally:
            self._loop.close()

    async def _keep_open(self) -> None:
        stopping = asyncio.ensure_future(self._stop.wait())
        while not self._stop.is_set():
            serving = asyncio.ensure_future(self._serve())
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            serving.cancel()
            try:
                await serving
            except LinkDown as error:
                log.warning("broker_connection_lost", client=self._identifier, error=str(error))
            except asyncio.CancelledError:
                return
            except Exception:  # the top of this thread: it must live as long as the process
                log.exception("broker_connection_failed", client=self._identifier)
            await asyncio.wait({stopping}, timeout=RECONNECT_S)

    async def _serve(self) -> None:
        # A client id of its own for each session: nothing of a former one is taken over.
        identifier = f"{self._identifier}-{uuid.uuid4().hex[:8]}"
        async with (
            open_session(self._broker, identifier=identifier, expiry_s=self._session_expiry_s) as session,
            _Pulse(self._stands_still_s) as pulse,
        ):
            if self._subscriptions:
                # (No broker should send them to those who share a subscription; mosquitto 2.0.11 does.)
                await session.subscribe(*self._subscriptions, with_retained=not self._retained)
            async with _reading_retained(session, self._retained) as retained:
                self._session = session
                self._connected.set()
                log.info("broker_connection_up", client=identifier)
                if self._on_connect is not None:
                    self._on_connect()
                try:
                    async for message in session.messages():
                        pulse.check()
                        if message.retain:
                            retained.came()
                        self._on_message(message)
                finally:
                    self._session = None
                    self._connected.clear()


class _Pulse:
    """Tells whether this thread's loop has stood still: the process was stopped, or starved."""

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._beat_at = 0.0
        self._stood_still_s = 0.0

    async def __aenter__(self) -> Self:
        self._beat_at = time.monotonic()
        self._beating = asyncio.ensure_future(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._beating.cancel()

    async def _beat(self) -> None:
        while self._limit_s is not None:
            await asyncio.sleep(self._limit_s / 10)
            self._look()
            self._beat_at = time.monotonic()

    def _look(self) -> None:
        stood_still_s = time.monotonic() - self._beat_at
        if self._limit_s is not None and stood_still_s > self._limit_s:
            self._stood_still_s = max(self._stood_still_s, stood_still_s)

    def check(self) -> None:
        """Raise `LinkDown` where it has: what the socket holds may be as old as that."""
        self._look()
        if self._stood_still_s:
            raise LinkDown(f"this process stood still for {self._stood_still_s:.0f} s")


class _Retained:
    """The retained messages of a new subscription, which nothing marks the end of."""

    def __init__(self) -> None:
        self._came_at = time.monotonic()
        self._count = 0

    def came(self) -> None:
        self._came_at = time.monotonic()
        self._count += 1

    async def end(self, session: Session, topics: tuple[str, ...]) -> None:
        """Unsubscribe when no more have come for a while."""
        started = self._came_at = time.monotonic()
        while (now := time.monotonic()) - self._came_at < RETAINED_QUIET_S:
            if now - started > RETAINED_LONGEST_S:
                log.warning("retained_messages_still_coming", topics=topics)
                break
            await asyncio.sleep(RETAINED_QUIET_S / 4)
        await session.unsubscribe(*topics)
        log.info("retained_messages_read", count=self._count)


@asynccontextmanager
async def _reading_retained(session: Session, topics: tuple[str, ...]) -> AsyncIterator[_Retained]:
    """Have the broker send what it keeps below these. What comes live meanwhile comes too, and so twice."""
    retained = _Retained()
    if not topics:
        yield retained
        return
    # QoS 0: the broker hands them out as fast as the connection takes them, and most before it answers.
    await session.subscribe(*topics, qos=0, within_s=RETAINED_LONGEST_S)
    ending = asyncio.ensure_future(retained.end(session, topics))
    try:
        yield retained
    finally:
        ending.cancel()
        # Where it failed the session is dying, and whoever reads the messages hears of that.
        await asyncio.gather(ending, return_exceptions=True)


def broker_for(username: str, password: str) -> Broker:
    """The configured broker, as this central process."""
    return Broker(
        settings.SGM_MQTT_HOST,
        settings.SGM_MQTT_PORT,
        username or None,
        password or None,
        split=settings.SGM_MQTT_SPLIT_CONNECTIONS,
        tls=_tls(username) if settings.SGM_MQTT_TLS else None,
    )


def _tls(username: str) -> Tls:
    """How the broker and this process know each other; `ImproperlyConfigured` says what is missing."""
    try:
        ca = Path(settings.SGM_MQTT_TLS_CA).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ImproperlyConfigured(f"SGM_MQTT_TLS_CA (or SGM_CA_DIR): {error}") from error
    certificate = settings.SGM_MQTT_TLS_CERTIFICATES.get(username, "")
    return Tls(ca=ca, certificate=Path(certificate) if certificate else None)


class MqttNodeLink:
    """The link of a Celery worker process: it sends, and hears the answers addressed to it."""

    def __init__(self, broker: Broker) -> None:
        self.worker = uuid.uuid4().hex
        self._on_result: Callable[[NodeTopics, bytes], None] | None = None
        self._connection = BrokerConnection(
            broker,
            identifier=f"worker-{self.worker[:12]}",
            subscriptions=(responses_to(self.worker),),
            on_message=self._message,
        )
        self._connection.start()

    def stop(self) -> None:
        self._connection.stop()

    def results(self, on_result: Callable[[NodeTopics, bytes], None]) -> None:
        """Hear the answers: called in the link's thread with the node whose topic it came on."""
        self._on_result = on_result

    @property
    def is_up(self) -> bool:
        """Tell whether a command could be sent now; just after the start, wait a moment for the session."""
        return self._connection.is_connected or self._connection.wait_connected(FIRST_CONNECT_TIMEOUT_S)

    def send(self, topics: NodeTopics, op: str, payload: bytes, *, command_id: str, ttl_s: float) -> None:
        self._connection.publish(
            topics.command(op),
            payload,
            expiry_s=max(1, round(ttl_s)),
            response_topic=topics.response(self.worker),
            correlation=command_id.encode(),
        )

    def send_all(self, commands: Sequence[CommandMessage]) -> None:
        self._connection.publish_all(
            [
                Outgoing(
                    topic=command.topics.command(command.op),
                    payload=command.payload,
                    expiry_s=max(1, round(command.ttl_s)),
                    response_topic=command.topics.response(self.worker),
                    correlation=command.command_id.encode(),
                )
                for command in commands
            ]
        )

    def put_desired(self, messages: Sequence[DesiredMessage]) -> None:
        if not self.is_up:
            raise LinkUnavailable("There is no connection to the message broker.")
        self._connection.publish_all(
            [
                Outgoing(
                    topic=message.topics.document(message.name),
                    payload=message.payload,
                    retain=True,
                    expiry_s=message.expiry_s,
                )
                for message in messages
            ]
        )

    def _message(self, message: Incoming) -> None:
        found = owner(message.topic)
        if found is not None and self._on_result is not None:
            self._on_result(found[0], message.payload)


_one_at_a_time = threading.Lock()


@cache
def _node_link() -> MqttNodeLink:
    link = MqttNodeLink(broker_for(settings.SGM_MQTT_WORKER_USERNAME, settings.SGM_MQTT_WORKER_PASSWORD))
    atexit.register(link.stop)
    return link


def node_link() -> MqttNodeLink:
    """This process's link, opened at the first use, by whichever thread comes first."""
    with _one_at_a_time:
        return _node_link()
