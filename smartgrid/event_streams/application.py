"""The ASGI application: `/v1/events`, `/healthz` and `/readyz` (Redis answers), and nothing else.

Who comes in is decided by the API's own view (`smartgrid.api.events`), behind Django's middleware and in a
thread; what follows is a stream on the loop.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.base import BaseHandler
from django.core.signals import request_started
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from smartgrid.api.events import Opening
from smartgrid.api.exceptions import exception_handler
from smartgrid.api.renderers import json_bytes
from smartgrid.console.live import PATH as LIVE_PATH
from smartgrid.errors import EventsUnavailable, SgmError, Throttled
from smartgrid.event_streams.feed import Feed, Timing
from smartgrid.event_streams.hub import Hub, Listener, reset_frame
from smartgrid.live import LiveUnavailable
from smartgrid.middleware import request_id_of

log = structlog.stdlib.get_logger(__name__)

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

URLCONF = "smartgrid.event_streams.urls"
# Threads that look at credentials, and callers who may wait for one.
DOORS = 8
WAITING_AT_DOORS = 500
RETRY_MS = 3000
STOP_WITHIN_S = 2.0
COMMENT = b": still here\n\n"
# `abort`, put there by the server: ends a connection at once, with what it was still to be sent.
ABORT = "sgm.abort"


class EventsApplication:
    """One process's listeners. Starts and ends with the server's lifespan."""

    def __init__(self, *, timing: Timing | None = None) -> None:
        self._timing = timing or Timing()
        self._handler = BaseHandler()
        self._handler.load_middleware()
        self._doors = ThreadPoolExecutor(DOORS, thread_name_prefix="door")
        self._at_doors = 0
        self._ending = False
        self.hub = Hub()
        self._feed: Feed | None = None
        self._feeding: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)

    # --- begin and end --------------------------------------------------------------------------------------

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._feed = Feed(self.hub, timing=self._timing)
                self._feeding = asyncio.create_task(self._feed.run(), name="feed")
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _stop(self) -> None:
        self.streams_end("the server stops")
        if self._feed is not None and self._feeding is not None:
            self._feed.stop()
            self._feeding.cancel()
            await asyncio.wait({self._feeding}, timeout=STOP_WITHIN_S)
        self._doors.shutdown(wait=False, cancel_futures=True)

    def streams_end(self, why: str) -> None:
        """Let all streams come to their end, and open none any more."""
        self._ending = True
        for listener in self.hub:
            listener.end(why)

    # --- requests -------------------------------------------------------------------------------------------

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in {"/healthz", "/readyz"}:
            is_well = scope["path"] == "/healthz" or (self._feed is not None and self._feed.is_fed)
            said = {"status": "ok" if is_well else "unavailable"}
            await _answer(
                send, 200 if is_well else 503, [(b"content-type", b"application/json")], json_bytes(said)
            )
            return
        if not scope["path"].startswith("/v1") and scope["path"] != LIVE_PATH:
            # The console's files, which Django's middleware would serve, are web's.
            await _answer(send, 404, [], b"")
            return
        try:
            # A byte that is no ASCII in a header's name would be Django's undoing.
            request = ASGIRequest(dict(scope), io.BytesIO())
        except Exception:  # the top of a request, whatever a stranger sent
            log.exception("request_not_understood")
            await _answer(send, 400, [], b"")
            return
        request.urlconf = URLCONF
        if self._at_doors >= WAITING_AT_DOORS:
            await self._refuse(send, request, EventsUnavailable("Too many are asking to be let in."))
            return
        self._at_doors += 1
        try:
            response, content = await asyncio.get_running_loop().run_in_executor(
                self._doors, self._ask, request
            )
        finally:
            self._at_doors -= 1
        if isinstance(response, Opening):
            await self._open(response, request, scope, receive, send)
        else:
            await _answer(send, response.status_code, _headers(response), content)

    def _ask(self, request: HttpRequest) -> tuple[HttpResponseBase, bytes]:
        """In a thread: what the API says to this request, with its database connection given back."""
        request_started.send(sender=type(self), scope={})
        response = self._handler.get_response(request)
        content = response.content if isinstance(response, HttpResponse) else b""
        response.close()
        return response, content

    async def _open(
        self, opening: Opening, request: HttpRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        abort: Callable[[], None] = scope.get("state", {}).get(ABORT, lambda: None)
        listener = Listener(opening.terms, on_slow=abort)
        try:
            self._admit(listener)
        except SgmError as refusal:
            await self._refuse(send, request, refusal)
            return
        # Counted from here on, and supplied: what happens while it is looked where it left off waits.
        self.hub.join(listener)
        leaving = asyncio.create_task(_gone(receive, listener), name="gone")
        try:
            await self._stream(listener, opening, request, send)
        finally:
            self.hub.leave(listener)
            leaving.cancel()
            log.info(
                "stream_ended",
                client=opening.terms.owner,
                why=listener.ended,
                request_id=request_id_of(request),
            )

    def _admit(self, listener: Listener) -> None:
        """Refuse one more where there is no room, or nothing to tell."""
        owner = listener.terms.owner
        if self._ending or self._feed is None or not self._feed.is_fed:
            raise EventsUnavailable("Events cannot be told now: Redis does not answer, or this server ends.")
        if self.hub.count_of(owner) >= settings.SGM_EVENTS_LISTENERS_PER_TOKEN:
            raise Throttled("This token has as many streams open as it may.", retry_after_s=10)
        if len(self.hub) >= settings.SGM_EVENTS_LISTENERS:
            raise EventsUnavailable("This server has as many listeners as it takes.")

    async def _stream(self, listener: Listener, opening: Opening, request: HttpRequest, send: Send) -> None:
        assert self._feed is not None
        place, losses, until = None, self.hub.losses, self.hub.place
        if listener.terms.last_event_id:
            try:
                place = await self._feed.place_of(listener)
            except LiveUnavailable:
                await self._refuse(
                    send, request, EventsUnavailable("Events cannot be told now: Redis does not answer.")
                )
                return
        # A middleware has counted the bytes of its empty body.
        headers = [header for header in _headers(opening) if header[0] != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        first = b"retry: %d\n\n" % RETRY_MS
        if listener.terms.last_event_id and place is None:
            first += reset_frame("what came after this id is not known any longer")
        if place is None and self.hub.newest_mark is not None:
            first += listener.start_at(self.hub.newest_mark)
        await _give(send, first)
        log.info(
            "stream_opened",
            client=listener.terms.owner,
            resumed=place is not None,
            request_id=request_id_of(request),
        )
        if place is not None:
            listener.told = place
            # Of a stream that was read further elsewhere, what comes is not new until then.
            listener.place = max(listener.place, place)
            if place < until and not await self._catch_up(listener, send, after=place, until=until):
                return
            if self.hub.losses != losses:
                listener.put(reset_frame("events were lost"))
        if listener.told is None:
            self._feed.mark_soon()
        await self._go_on(listener, send)

    async def _catch_up(
        self, listener: Listener, send: Send, *, after: tuple[int, int], until: tuple[int, int]
    ) -> bool:
        assert self._feed is not None
        try:
            async for piece in self._feed.missed(listener, after=after, until=until):
                if listener.ended:
                    break
                if piece:
                    await _give(send, piece)
        except LiveUnavailable:
            listener.end("Redis does not answer")
            await _end(send)
            return False
        return True

    async def _go_on(self, listener: Listener, send: Send) -> None:
        while True:
            if piece := listener.take():
                await _give(send, piece)
            elif listener.ended:
                # A line for people who look; programs connect again.
                await _give(send, b": %s\n\n" % listener.ended.encode())
                await _end(send)
                return
            else:
                try:
                    async with asyncio.timeout(self._timing.keep_alive_s):
                        await listener.woken.wait()
                except TimeoutError:
                    await _give(send, COMMENT)

    async def _refuse(self, send: Send, request: HttpRequest, refusal: SgmError) -> None:
        response = exception_handler(refusal, {"request": request})
        headers = [(b"content-type", b"application/json"), (b"x-request-id", request_id_of(request).encode())]
        headers += _headers(response)
        await _answer(send, response.status_code, headers, json_bytes(response.data))


async def _gone(receive: Receive, listener: Listener) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    listener.end("gone")


async def _give(send: Send, piece: bytes) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": True})


async def _end(send: Send) -> None:
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _answer(send: Send, status: int, headers: Headers, content: bytes) -> None:
    length = (b"content-length", str(len(content)).encode())
    headers = [*(header for header in headers if header[0] != b"content-length"), length]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": False})


def _headers(response: HttpResponseBase) -> Headers:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.items()]
