"""Looks at simulated devices over HTTP, and breaks and mends them. The one place where the fleet is a server.

GET    /devices                 all devices
GET    /devices/TAG             one of them
PUT    /devices/TAG/fault       {"fault": "drop", "delay_s": 0}; "none" mends it
PUT    /devices/TAG/shown       {"power": 3.5}: what points of telemetry show, null for "no value"
DELETE /devices/TAG/shown       shows again what the machine does
PUT    /devices/TAG/site        {"night": true}: takes the sun from all devices of its site
POST   /devices/TAG/restart     takes its power away and gives it back

Each answers with the device as it is then; what cannot be done is a 4xx with {"error": ...}.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from edge.simulators.device import Fault, Simulated

MAX_BODY = 64 * 1024
T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FaultOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be wrong with a device."""

    fault: Fault
    delay_s: float = 0.0


class SiteOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How it is to be at a site."""

    night: bool


class _Page:
    """An HTTP server in this event loop; `port` 0 draws a free one at `start`."""

    def __init__(self, *, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._runner: web.AppRunner | None = None

    def _application(self) -> web.Application:
        raise NotImplementedError

    async def start(self) -> None:
        """Listen; `OSError` where the port is taken."""
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, self.host, self.port).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        self.port = runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


class Observer(_Page):
    """Shows one device to people, without its quirks: `GET /` answers what `Simulated.state` says."""

    def __init__(self, device: Simulated, *, tag: str = "", host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(host=host, port=port)
        self._device = device
        self._tag = tag

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[_errors])
        application.router.add_get("/", self._show)
        return application

    async def _show(self, request: web.Request) -> web.Response:  # noqa: ARG002 - there is but one thing to ask
        return web.json_response(_described(self._tag, self._device))


class Switchboard(_Page):
    """The switches of a whole fleet, by tag. It has no credentials: it is for loopback addresses."""

    def __init__(self, devices: Mapping[str, Simulated], *, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(host=host, port=port)
        self._devices = devices

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[_errors], client_max_size=MAX_BODY)
        application.router.add_routes(
            [
                web.get("/devices", self._list),
                web.get("/devices/{tag}", self._one),
                web.put("/devices/{tag}/fault", self._fault),
                web.put("/devices/{tag}/shown", self._show),
                web.delete("/devices/{tag}/shown", self._show_nothing),
                web.put("/devices/{tag}/site", self._site),
                web.post("/devices/{tag}/restart", self._restart),
            ]
        )
        return application

    async def _list(self, request: web.Request) -> web.Response:  # noqa: ARG002 - all there are
        return web.json_response([_described(tag, device) for tag, device in self._devices.items()])

    async def _one(self, request: web.Request) -> web.Response:
        return web.json_response(_described(*self._asked(request)))

    async def _fault(self, request: web.Request) -> web.Response:
        tag, device = self._asked(request)
        order = await _body(request, FaultOrder)
        if not 0 <= order.delay_s <= 3600:  # noqa: PLR2004 - an hour is longer than anybody waits
            raise _Refusal(400, "delay_s: expected 0 to 3600 seconds")
        try:
            await device.set_fault(order.fault, delay_s=order.delay_s)
        except OSError as error:
            raise _Refusal(409, f"{tag} cannot listen again: {error.strerror or error}") from error
        return web.json_response(_described(tag, device))

    async def _show(self, request: web.Request) -> web.Response:
        tag, device = self._asked(request)
        shown = await _body(request, dict[str, float | None])
        points = sorted(set(device.profile.telemetry.values()))
        for name, value in shown.items():
            if name not in points:
                raise _Refusal(
                    400, f"{name!r} is not telemetry of {tag}: {', '.join(points) or 'it has none'}"
                )
            try:
                device.put(name, value)
            except ValueError as error:
                raise _Refusal(400, f"{name}: {error}") from error
        device.shown.update(shown)
        return web.json_response(_described(tag, device))

    async def _show_nothing(self, request: web.Request) -> web.Response:
        tag, device = self._asked(request)
        device.shown.clear()
        return web.json_response(_described(tag, device))

    async def _site(self, request: web.Request) -> web.Response:
        tag, device = self._asked(request)
        device.machine.site.night = (await _body(request, SiteOrder)).night
        return web.json_response(_described(tag, device))

    async def _restart(self, request: web.Request) -> web.Response:
        tag, device = self._asked(request)
        await device.restart()
        return web.json_response(_described(tag, device))

    def _asked(self, request: web.Request) -> tuple[str, Simulated]:
        tag = request.match_info["tag"]
        device = self._devices.get(tag)
        if device is None:
            raise _Refusal(404, f"no device {tag!r}")
        return tag, device


class _Refusal(Exception):  # noqa: N818 - states the fault
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def _described(tag: str, device: Simulated) -> dict[str, Any]:
    return {"tag": tag, **device.state()}


async def _body(request: web.Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except msgspec.DecodeError as error:
        raise _Refusal(400, str(error)) from error


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors as JSON, those of the router too."""
    try:
        return await handler(request)
    except _Refusal as refusal:
        return web.json_response({"error": str(refusal)}, status=refusal.status)
    except web.HTTPException as error:
        if error.status < 400:  # noqa: PLR2004 - a redirect is no error
            raise
        return web.json_response({"error": error.reason}, status=error.status)
