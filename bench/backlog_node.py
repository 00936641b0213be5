"""A node in a process of its own for `bench.backlog`: it also measures how long its event loop is held.

    python -m bench.backlog_node STATE URL TENANT NODE PASSWORD_FILE

Prints one JSON line for every line it reads: the longest stall since the last one in ms, by the clock and by
the processor time of it (on a busy machine the clock also counts what others take).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from edge.runtime.clock import HostClock
from edge.runtime.logs import configure_logging
from edge.runtime.node import run_node
from edge.wire.session import broker_from_url
from edge.wire.topics import NodeTopics

LOOK_S = 0.001


class Stalls:
    """A task that wakes every millisecond, and notes by how much it was late."""

    def __init__(self) -> None:
        self.worst_s = 0.0
        self.worst_cpu_s = 0.0

    async def run(self) -> None:
        while True:
            due, cpu_s = time.perf_counter() + LOOK_S, time.thread_time()
            await asyncio.sleep(LOOK_S)
            self.worst_s = max(self.worst_s, time.perf_counter() - due)
            self.worst_cpu_s = max(self.worst_cpu_s, time.thread_time() - cpu_s)

    async def tell(self) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while await reader.readline():
            worst = {"clock": round(self.worst_s * 1000, 2), "cpu": round(self.worst_cpu_s * 1000, 2)}
            print(json.dumps(worst), flush=True)
            self.worst_s = self.worst_cpu_s = 0.0


async def main(state: str, url: str, tenant: str, node: str, password: str) -> None:
    stalls = Stalls()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stalls.run())
        tasks.create_task(stalls.tell())
        await run_node(
            broker=broker_from_url(url, username=node, password=password),
            topics=NodeTopics(tenant, node),
            state=Path(state),
            clock=HostClock(trust_host=True),
            stop=asyncio.Event(),
        )


if __name__ == "__main__":
    configure_logging()
    state, url, tenant, node, password_file = sys.argv[1:]
    asyncio.run(main(state, url, tenant, node, Path(password_file).read_text(encoding="utf-8").strip()))
