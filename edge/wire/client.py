"""The MQTT library's client, mended where connections end: nodes, central and devices are spoken to by it.

aiomqtt 2.5.1 waits for its whole timeout where a broker hangs up, leaves the socket of a greeting that failed
open, registers sockets with the event loop that have been closed meanwhile, and on Python 3.11 swallows a
cancellation that meets an answer.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import struct
from collections.abc import Awaitable
from typing import Any, Self, TypeVar

import aiomqtt
from paho.mqtt import client as paho
from paho.mqtt.reasoncodes import ReasonCode

# `struct linger`: on, and no time for it.
_DISCARD = struct.pack("ii", 1, 0)


T = TypeVar("T")


class _ClosedSocket(ssl.SSLSocket):
    """One that is not left open where its other end is not who it should be."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def system_context() -> ssl.SSLContext:
    """TLS as the system's authorities vouch for it. Reads files: not for the event loop's own thread."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # The library loses the socket of a handshake that fails.
    context.sslsocket_class = _ClosedSocket
    return context


class HungUp(aiomqtt.MqttError):
    """The broker ended the connection in place of an answer to our greeting.

    As it does in TLS 1.3 on a certificate that it does not take.
    """


class Client(aiomqtt.Client):
    """The library's client, which can be ended at once, and says when it has ended."""

    @property
    def end(self) -> asyncio.Future[None]:
        """Done once the connection is gone. To be waited for with others, and never cancelled."""
        return self._disconnected

    @property
    def is_gone(self) -> bool:
        return self._disconnected.done()

    @property
    def why_gone(self) -> str:
        """The reason, where the connection ended and somebody gave one."""
        if not self._disconnected.done() or self._disconnected.cancelled():
            return ""
        return str(self._disconnected.exception() or "")

    @property
    def connection(self) -> socket.socket | None:
        connection = self._client.socket()
        return connection if isinstance(connection, socket.socket) else None

    def abort(self, *, discard: bool = False) -> None:
        """End the connection now, without a good-bye. `discard`: what has not left yet never does."""
        connection = self.connection
        if connection is not None and discard:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARD)
        self._client._sock_close()  # noqa: SLF001 - there is no other way to end what does not answer
        if not self._disconnected.done():
            self._disconnected.set_result(None)

    async def __aenter__(self) -> Self:
        try:
            return await super().__aenter__()
        except BaseException:
            # To disconnect would send something first, and wait; the garbage collector would ask a loop that
            # may be closed to forget the socket.
            self._client._sock_close()  # noqa: SLF001
            raise

    async def _wait_for(self, fut: Awaitable[T], timeout: float | None) -> T:
        """What the library waits by for all answers: none comes any more once the connection is gone."""
        answer = asyncio.ensure_future(fut)
        ends: set[asyncio.Future[Any]] = {answer, self._disconnected}
        patience = self.timeout if timeout is None else timeout
        try:
            await asyncio.wait(
                ends,
                timeout=None if patience == math.inf else patience,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if answer.done():
                return answer.result()
        finally:
            if answer is not fut:
                answer.cancel()
        raise aiomqtt.MqttError("the connection ended" if self.is_gone else "Operation timed out")

    # --- the library's callbacks

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.DisconnectFlags,
        reason_code: ReasonCode,
        properties: Any = None,
    ) -> None:
        # The greeting is sent from a thread of the executor, and may find the connection lost already; that
        # thread may end after the loop that wanted it.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hung_up, reason_code)
        super()._on_disconnect(client, userdata, flags, reason_code, properties)
        # It is asked here, or asyncio complains of an error that nobody has looked at.
        _ = self.why_gone

    def _hung_up(self, reason_code: ReasonCode) -> None:
        """The connection has ended: where no answer to our greeting has come, none will."""
        if self._connected.done():
            return
        self._connected.set_exception(HungUp(f"the broker hung up on us: {reason_code}"))
        # Whoever was to wait for it may have been cancelled: then it is no news to anybody.
        self._connected.exception()

    def _on_socket_close(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        if not self._loop.is_closed():
            super()._on_socket_close(client, userdata, sock)

    def _on_socket_register_write(self, client: paho.Client, userdata: Any, sock: Any) -> None:  # noqa: ARG002
        # Perhaps from the thread that connects.
        self._loop.call_soon_threadsafe(self._watch, sock)

    def _watch(self, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._loop.add_writer(sock.fileno(), self._write)

    def _write(self) -> None:
        try:
            self._client.loop_write()
        except OSError as error:
            if not self._disconnected.done():
                self._disconnected.set_exception(error)
                _ = self.why_gone
