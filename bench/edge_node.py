"""A node whose wall clock is off, so that a quarter hour comes when a benchmark wants it.

    python -m bench.edge_node OFFSET_S NODE_UUID TENANT STATE BROKER_URL PASSWORD_FILE

Everything but the clock is the product's own.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from edge.core.instant import Instant
from edge.runtime.clock import HostClock
from edge.runtime.garbage import Collector
from edge.runtime.logs import configure_logging
from edge.runtime.node import bus_lock, run_node
from edge.wire.session import Broker, broker_from_url
from edge.wire.topics import NodeTopics


class OffsetClock(HostClock):
    """The host's clock, with the wall clock moved."""

    def __init__(self, offset_s: float) -> None:
        super().__init__(trust_host=True)
        self._offset = timedelta(seconds=offset_s)

    def now(self) -> Instant:
        now = super().now()
        return replace(now, utc=now.utc + self._offset)


async def main(*, clock: OffsetClock, broker: Broker, topics: NodeTopics, state: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with bus_lock(state, clock=clock):
        collector = Collector()
    await run_node(
        broker=broker,
        topics=topics,
        state=state,
        clock=clock,
        stop=stop,
        loading=collector.loading,
        alive=collector.turned,
    )


if __name__ == "__main__":
    configure_logging()
    offset_s, node, tenant, state, url, password_file = sys.argv[1:]
    password = Path(password_file).read_text(encoding="utf-8").strip()
    asyncio.run(
        main(
            clock=OffsetClock(float(offset_s)),
            broker=broker_from_url(url, username=node, password=password),
            topics=NodeTopics(tenant, node),
            state=Path(state),
        )
    )
