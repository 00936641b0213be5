"""The only place where central touches the broker.

The link is small (`send`, `results`, `put_desired`, and what nodes say unasked), so that another backend can
stand behind it. Here it is one MQTT 5 session for the life of the process, in a thread of its own: a dead
session is opened anew, and nothing is queued for it meanwhile.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
import uuid
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import structlog
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from edge.wire.session import Broker, Incoming, LinkDown, Session, Tls, open_session
from edge.wire.topics import NodeTopics, owner, responses_to
from sites_app.publishing import DesiredMessage
from smartgrid.errors import Unavailable

log = structlog.stdlib.get_logger(__name__)

RECONNECT_S = 0.5
PUBLISH_TIMEOUT_S = 2.0
# What each message of many adds to it.
PUBLISH_EACH_S = 0.005
FIRST_CONNECT_TIMEOUT_S = 0.6


class LinkUnavailable(Unavailable):
    """There is no session with the broker: nothing was sent."""

    code = "link_unavailable"


class SendUnconfirmed(Unavailable):
    """The broker did not confirm: it may have been sent, or not."""

    code = "send_unconfirmed"


class NodeLink(Protocol):
    """How central reaches its nodes."""

    def send(self, topics: NodeTopics, op: str, payload: bytes, *, command_id: str, ttl_s: float) -> None:
        """Send a command that is worthless after `ttl_s`; its answers come to the link's `results`."""

    def put_desired(self, messages: Sequence[DesiredMessage]) -> None:
        """Leave these for their nodes, in this order, each replacing the one of that name.

        Returns when the broker has taken over all of them; where it raises, any of them may have arrived.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One message to publish."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    expiry_s: int | None = None
    response_topic: str | None = None
    correlation: bytes | None = None


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
    ) -> None:
        self._broker = broker
        self._identifier = identifier
        self._subscriptions = subscriptions
        self._on_message = on_message
        self._on_connect = on_connect
        self._session: Session | None = None
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
        message = Outgoing(
            topic=topic,
            payload=payload,
            qos=qos,
            retain=retain,
            expiry_s=expiry_s,
            response_topic=response_topic,
            correlation=correlation,
        )
        self._wait_for(_publish_all(self._open_session(), [message]), PUBLISH_TIMEOUT_S)

    def publish_all(self, messages: Sequence[Outgoing]) -> None:
        """Publish these in this order and return when the broker has taken over all of them.

        None waits for the one before it, so a thousand take little longer than one. Errors as of `publish`;
        any of the messages may have arrived then.
        """
        if messages:
            timeout_s = PUBLISH_TIMEOUT_S + len(messages) * PUBLISH_EACH_S
            self._wait_for(_publish_all(self._open_session(), messages), timeout_s)

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
        async with open_session(self._broker, identifier=identifier) as session:
            if self._subscriptions:
                await session.subscribe(*self._subscriptions)
            self._session = session
            self._connected.set()
            log.info("broker_connection_up", client=identifier)
            if self._on_connect is not None:
                self._on_connect()
            try:
                async for message in session.messages():
                    self._on_message(message)
            finally:
                self._session = None
                self._connected.clear()


async def _publish_all(session: Session, messages: Sequence[Outgoing]) -> None:
    """Hand over each before any is waited for: they leave in this order."""
    await asyncio.gather(
        *(
            session.publish(
                message.topic,
                message.payload,
                qos=message.qos,
                retain=message.retain,
                expiry_s=message.expiry_s,
                response_topic=message.response_topic,
                correlation=message.correlation,
            )
            for message in messages
        )
    )


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
