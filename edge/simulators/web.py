"""HTTP servers that simulated devices are: their sockets, their password and their faults.

The only simulator module, beside the switchboard, that knows aiohttp.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

from aiohttp import web

from edge.plant import Kind, Site
from edge.profiles.model import Profile
from edge.profiles.points import Point, Value
from edge.profiles.values import from_device, to_device
from edge.simulators.device import Fault, Simulated

# Nobody sends a device more than this.
MAX_REQUEST = 1024 * 1024
GARBAGE = b"\x00\x01\xfe not what anybody asked for <\xff{"


class Asked(NamedTuple):
    """What a device is asked: `target` is the path with its query."""

    method: str
    target: str
    body: bytes


class Said(NamedTuple):
    """What a device answers."""

    status: int
    kind: str
    body: bytes


class SimulatedServer(Simulated):
    """A device that is an HTTP server. Its `url` is known once it has started.

    With a `username` it wants basic authentication. What its points hold is in the device's own terms,
    rounded as those are.
    """

    path = "/"

    def __init__(
        self,
        *,
        profile: Profile,
        nameplate_kw: float,
        host: str = "127.0.0.1",
        port: int = 0,
        username: str = "",
        password: str = "",
        behaves_as: Kind | None = None,
        site: Site | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            profile=profile, nameplate_kw=nameplate_kw, behaves_as=behaves_as, site=site, clock=clock
        )
        self.host = host
        self.port = port
        self.username = username
        self.password = password
        self._raw: dict[str, float | str | None] = {}
        self._web: web.Server | None = None
        self._server: asyncio.Server | None = None
        self._last_answer_at: float | None = None
        for name in profile.points:
            self.reset(name)
        self.set_up()

    # --- the protocol's part

    @abstractmethod
    def answer(self, asked: Asked) -> Said:
        """Carry out one request."""

    def quantised(self, point: Point, raw: float | str) -> float | str:
        """What the device can hold of this, in its own terms; `ValueError` where it can hold none."""
        del point
        return raw

    # --- for tests and the fleet

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}{self.path}"

    @property
    def address(self) -> str:
        return self.url

    async def start(self) -> None:
        """Listen; `OSError` where the port is taken."""
        await self._listen()

    async def stop(self) -> None:
        server, self._server = self._server, None
        handler, self._web = self._web, None
        if server is not None:
            server.close()
        if handler is not None:
            # Those who wait for an answer that a fault withholds are not waited for. (0 would be for ever.)
            await handler.shutdown(timeout=0.001)

    async def set_fault(self, fault: Fault, *, delay_s: float = 0.0) -> None:
        self.break_down(fault, delay_s=delay_s)
        if fault is Fault.REFUSE:
            await self.stop()
        elif self._server is None:
            await self._listen()

    async def restart(self) -> None:
        """Lose power and come back: connections end, and a limit that is not stored is forgotten."""
        if self._server is not None:
            await self.stop()
            await self._listen()
        await super().restart()

    def get(self, name: str) -> Value:
        return from_device(self.profile.points[name], self._raw.get(name))

    def put(self, name: str, value: Value) -> None:
        point = self.profile.points[name]
        self._raw[name] = None if value is None else self.quantised(point, to_device(point, value))

    def reset(self, name: str) -> None:
        point = self.profile.points[name]
        if point.example is not None:
            self.put(name, point.example)
        else:
            self._raw[name] = None

    # --- the server

    async def _listen(self) -> None:
        # aiohttp decodes what is packed, and takes any method and path: the device judges them.
        self._web = web.Server(self._handle, access_log=None)
        self._server = await asyncio.get_running_loop().create_server(self._web, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = b""
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > MAX_REQUEST:
                return web.Response(status=413)
        if not self.lets_in(request.headers):
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="device"'})
        self.commands += 1
        if self._comes_too_early() or self.hears_nothing():
            await asyncio.Event().wait()
        if self.fault is Fault.DROP:
            self._cut(request)
            return web.Response()
        said = self.answer(Asked(request.method, request.path_qs, body))
        if self.fault is Fault.DELAY:
            await asyncio.sleep(self.delay_s)
        # Before it leaves: the controller counts its pause from when it hears this.
        self._last_answer_at = self.clock()
        if self.fault is Fault.GARBAGE:
            return web.Response(body=GARBAGE, content_type=said.kind)
        if self.fault is Fault.HALF_FRAME:
            return await self._half(request, said)
        return web.Response(status=said.status, body=said.body, headers={"Content-Type": said.kind})

    def lets_in(self, headers: Mapping[str, str]) -> bool:
        """Tell whether who sends these headers, whatever the case of their names, is known."""
        if not self.username:
            return True
        wanted = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        return hmac.compare_digest(headers.get("Authorization", ""), f"Basic {wanted}")

    def _comes_too_early(self) -> bool:
        if self._last_answer_at is None:
            return False
        gap_s = self.clock() - self._last_answer_at
        if gap_s * 1000 >= self.profile.min_gap_ms:
            return False
        self.gap_violations.append(gap_s)
        return True

    async def _half(self, request: web.BaseRequest, said: Said) -> web.StreamResponse:
        response = web.StreamResponse(status=said.status, headers={"Content-Type": said.kind})
        response.content_length = len(said.body)
        await response.prepare(request)
        with suppress(ConnectionError):
            await response.write(said.body[: len(said.body) // 2])
        self._cut(request)
        return response

    @staticmethod
    def _cut(request: web.BaseRequest) -> None:
        if request.transport is not None:
            request.transport.close()
