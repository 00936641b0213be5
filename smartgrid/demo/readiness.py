"""When the demo may call itself ready: everything answers, from the API's door to the nodes' devices."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiomqtt
import redis.asyncio
from redis.exceptions import RedisError

from edge.wire.codec import WireError, decode
from edge.wire.messages import Heartbeat, Reported
from edge.wire.topics import ALL_HEARTBEATS, ALL_REPORTED, owner
from smartgrid.demo.options import DemoError

LOOK_AGAIN_S = 0.05
HTTP_TIMEOUT_S = 10.0
JsonObject = dict[str, Any]


async def until(probe: Callable[[], Awaitable[bool]], *, within_s: float, what: str) -> None:
    """Ask again and again until the answer is yes; `DemoError` naming what is missing when time is up."""
    deadline_s = time.monotonic() + within_s
    while not await probe():
        if time.monotonic() >= deadline_s:
            raise DemoError(f"{what} within {within_s:.0f} s")
        await asyncio.sleep(LOOK_AGAIN_S)


async def accepts_connections(port: int) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), timeout=1)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def redis_answers(url: str) -> bool:
    async with redis.asyncio.from_url(url, socket_connect_timeout=1, socket_timeout=1) as client:
        try:
            return bool(await client.ping())
        except RedisError:
            return False


async def nodes_are_known(url: str, *, node_ids: tuple[str, ...]) -> bool:
    """Tell whether central has heard every node and its answer to a ping, so that it counts as healthy.

    This Redis began empty with this demo.
    """
    async with redis.asyncio.from_url(url, socket_connect_timeout=1, socket_timeout=1) as client:
        try:
            known = [
                await client.hexists(f"sgm:node:{node_id}", field)
                for node_id in node_ids
                for field in ("hb_at", "pong_at")
            ]
            return all(known)
        except RedisError:
            return False


@dataclass(kw_only=True)
class NodeWatch:
    """Listens to what the nodes say, and knows which of them run the configuration they were sent.

    A `reported` may be left over from an earlier run. A heartbeat is never retained: a node counts once both
    name the same session.
    """

    port: int
    username: str
    password: str
    _sessions: dict[str, str] = field(default_factory=dict)
    _reported: dict[str, Reported] = field(default_factory=dict)

    async def listen(self) -> None:
        """Never returns; connects again where the broker has gone."""
        while True:
            try:
                await self._listen_once()
            except aiomqtt.MqttError:
                await asyncio.sleep(0.2)

    async def _listen_once(self) -> None:
        async with aiomqtt.Client(
            "127.0.0.1",
            self.port,
            username=self.username,
            password=self.password,
            protocol=aiomqtt.ProtocolVersion.V5,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        ) as client:
            await client.subscribe(ALL_HEARTBEATS)
            await client.subscribe(ALL_REPORTED)
            async for message in client.messages:
                self.note(str(message.topic), message.payload, retained=bool(message.retain))

    def note(self, topic: str, payload: object, *, retained: bool) -> None:
        """Take a message of the broker's; what is none of a node's, or none of this wire, is passed over."""
        of = owner(topic)
        if of is None or not isinstance(payload, bytes):
            return
        node, leaf = of
        try:
            if leaf == "hb" and not retained:
                self._sessions[node.node] = decode(Heartbeat, payload).session
            elif leaf == "reported":
                self._reported[node.node] = decode(Reported, payload)
        except WireError:
            return

    def missing(self, node_ids: tuple[str, ...]) -> dict[str, str]:
        """What keeps each node from being ready; empty once all are."""
        reasons = {node_id: self._reason(node_id) for node_id in node_ids}
        return {node_id: reason for node_id, reason in reasons.items() if reason}

    def _reason(self, node_id: str) -> str:
        session, reported = self._sessions.get(node_id), self._reported.get(node_id)
        if session is None:
            return "no heartbeat"
        if reported is None or reported.session != session:
            return "has not reported what it runs"
        config = reported.documents.get("config")
        if config is None:
            return "runs no configuration yet"
        if config.status != "applied":
            return f"configuration {config.status}: {config.error}"
        for what, refused in (("devices", reported.devices_refused), ("loops", reported.loops_refused)):
            if refused:
                return f"refused {what}: " + "; ".join(f"{tag}: {why}" for tag, why in refused.items())
        return ""


async def http_status(url: str) -> int:
    """The status of a GET; 0 where nobody answers."""
    status, _ = await asyncio.to_thread(_request, url, method="GET", headers={}, body=None)
    return status


async def http_json(
    url: str, *, method: str = "GET", headers: dict[str, str] | None = None, body: JsonObject | None = None
) -> tuple[int, Any]:
    """Status and decoded JSON of a request; status 0 where nobody answers, None for what is not JSON."""
    return await asyncio.to_thread(_request, url, method=method, headers=headers or {}, body=body)


def _request(url: str, *, method: str, headers: dict[str, str], body: JsonObject | None) -> tuple[int, Any]:
    if urlsplit(url).scheme != "http":
        raise ValueError(f"{url} is not of this demo")
    data = None if body is None else json.dumps(body).encode()
    if data is not None:
        headers = {**headers, "Content-Type": "application/json"}
    request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310
    # Never through a proxy that the environment may name: the demo is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=HTTP_TIMEOUT_S) as response:
            return response.status, _json_or_none(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _json_or_none(error.read())
    except (OSError, http.client.HTTPException):
        return 0, None


def _json_or_none(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except ValueError:
        return None
