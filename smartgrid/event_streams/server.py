"""The server of the event streams. The only module which imports uvicorn."""

from __future__ import annotations

import asyncio
import resource
import socket
from typing import cast

import structlog
import uvicorn
from django.conf import settings
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from smartgrid.event_streams.application import ABORT, EventsApplication

log = structlog.stdlib.get_logger(__name__)

# Seconds that a connection may take to its first request, and between two.
REQUEST_WITHIN_S = 10
REQUEST_BYTES = 64 * 1024
# What the kernel and the loop hold for one that reads slowly, in bytes.
SEND_BUFFER = 64 * 1024
WRITE_BUFFER = 16 * 1024
# One that acknowledges nothing for so long has gone, whatever it did not say.
UNACKNOWLEDGED_MS = 30_000
BACKLOG = 1024
# Files beside those of listeners: the database's, Redis', callers who are not let in.
FILES_BESIDE = 1000


class _Connection(HttpToolsProtocol):
    """A connection that asks for something soon, or ends; and that a stream may abort."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        # Of this connection alone; it is copied into the scope of each of its requests.
        self.app_state = {**self.app_state, ABORT: transport.abort}
        super().connection_made(transport)
        self._asked_bytes = 0
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self._end_unless_asked)

    def data_received(self, data: bytes) -> None:
        waiting = self.timeout_keep_alive_task
        super().data_received(data)
        self._asked_bytes = 0 if self._is_asked else self._asked_bytes + len(data)
        if self._asked_bytes > REQUEST_BYTES:
            self.transport.abort()
        elif not self._is_asked and waiting is not None and not self.transport.is_closing():
            # Not a whole request yet: its time goes on from where it began.
            self.timeout_keep_alive_task = self.loop.call_at(waiting.when(), self._end_unless_asked)

    @property
    def _is_asked(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not cycle.response_complete

    def _end_unless_asked(self) -> None:
        if not self._is_asked:
            self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn that lets streams come to their end before it waits for them."""

    def __init__(self, application: EventsApplication, *, request_within_s: int = REQUEST_WITHIN_S) -> None:
        self._application = application
        config = uvicorn.Config(
            application,
            http=_Connection,
            ws="none",
            lifespan="on",
            # What a process of central logs is the settings' matter; access is a line of the application's.
            log_config=None,
            access_log=False,
            # Nothing here goes by the client's address.
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=request_within_s,
            timeout_graceful_shutdown=3,
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._application.streams_end("the server stops")
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            address = next(iter(sockets or []), None)
            log.info("events_served", address=None if address is None else address.getsockname())


def listening_socket(*, host: str, port: int) -> socket.socket:
    """A socket to serve from; port 0 takes any free one. `OSError` where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Those that are accepted inherit the rest.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def files_allow(count: int) -> None:
    """Let this process open as many files as that, as far as it may; what is missing is logged."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        reachable = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, reachable), hard))
        if reachable < count:
            log.warning("too_few_open_files", allowed=reachable, needed=count)


def serve(*, host: str, port: int, application: EventsApplication) -> None:
    """Serve until SIGTERM or SIGINT; all streams have come to their end then."""
    files_allow(settings.SGM_EVENTS_LISTENERS + FILES_BESIDE)
    listening = listening_socket(host=host, port=port)
    with listening:
        Server(application).run(sockets=[listening])
