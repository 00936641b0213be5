"""Concurrent clients that ask for one thing again and again, each as soon as it has its answer.

In a process of its own: `python -m bench.api_load` reads a JSON job from standard input and prints what it
measured. A client is a connection that stays open and a request whose bytes are ready; answers are taken as
bytes, their length alone is read. What it costs is on the same two cores as the server it measures.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from typing import Any

HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length:"
LAST_PIECE = b"0\r\n\r\n"


class Client(asyncio.Protocol):
    """One connection: sends its request, notes how long the answer took, sends the next."""

    def __init__(
        self, requests: list[bytes], *, warm_up: int, count: int, done: asyncio.Future[None]
    ) -> None:
        self.took_ms: list[float] = []
        self.statuses: dict[str, int] = {}
        self._requests = requests
        self._left = warm_up + count
        self._count = count
        self._done = done
        self._missing: int | None = None
        self._is_chunked = False
        self._head = b""
        self._sent_at = 0.0
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._missing, self._head = None, b""
        self._sent_at = time.perf_counter()
        self._transport.write(self._requests[self._left % len(self._requests)])

    def data_received(self, data: bytes) -> None:
        if self._missing is None:
            self._head += data
            head, found, body = self._head.partition(HEAD_END)
            if not found:
                return
            lines = head.lower().split(b"\r\n")
            status = lines[0].split()[1].decode()
            self.statuses[status] = self.statuses.get(status, 0) + 1
            length = next((line for line in lines if line.startswith(LENGTH)), None)
            # (A server that says no length ends its answer with an empty piece.)
            self._missing = 0 if length is None else int(length[len(LENGTH) :]) - len(body)
            self._is_chunked = length is None
        elif not self._is_chunked:
            self._missing -= len(data)
        if data.endswith(LAST_PIECE) if self._is_chunked else self._missing == 0:
            self._answered()

    def _answered(self) -> None:
        self._left -= 1
        if self._left < self._count:
            self.took_ms.append((time.perf_counter() - self._sent_at) * 1e3)
        if self._left:
            self._send()
        else:
            self._transport.close()
            if not self._done.done():
                self._done.set_result(None)

    def connection_lost(self, _error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionError("the server closed the connection"))


async def _run(job: dict[str, Any]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    requests = [request.encode() for request in job["requests"]]
    clients, waits = [], []
    began = time.perf_counter()
    for number in range(job["clients"]):
        done: asyncio.Future[None] = loop.create_future()
        turned = requests[number % len(requests) :] + requests[: number % len(requests)]
        client = Client(turned, warm_up=job["warm_up"], count=job["count"], done=done)
        await loop.create_connection(lambda client=client: client, "127.0.0.1", job["port"])  # type: ignore[misc]
        clients.append(client)
        waits.append(done)
    await asyncio.gather(*waits)
    took_s = time.perf_counter() - began
    statuses: dict[str, int] = {}
    for client in clients:
        for status, count in client.statuses.items():
            statuses[status] = statuses.get(status, 0) + count
    return {
        "took_ms": [took for client in clients for took in client.took_ms],
        "statuses": statuses,
        "per_s": job["clients"] * (job["warm_up"] + job["count"]) / took_s,
    }


def main() -> None:
    gc.disable()
    for line in sys.stdin:
        print(json.dumps(asyncio.run(_run(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
