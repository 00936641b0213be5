"""The floor of `make bench-edge`: pymodbus clients that poll ten registers once a second, and no more.

    python -m bench.edge_floor pymodbus|own SECONDS < PORTS

Connects to every port, polls for some seconds after everybody was asked once, and prints what it took. `own`
puts the node's client in pymodbus' place: the difference is the client's.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable

from pymodbus.client import AsyncModbusTcpClient

from edge.drivers.modbus import ModbusSession
from edge.profiles.points import Table

PERIOD_S = 1.0

Read = Callable[[], Awaitable[list[int]]]


async def main(client: str, seconds: float, ports: list[int]) -> None:
    connect = {"pymodbus": _pymodbus, "own": _own}[client]
    reads = [await connect(port) for port in ports]
    begin = time.monotonic() + 0.2
    async with asyncio.TaskGroup() as polls:
        for read in reads:
            # All at the same moment: a machine that wakes once for all polls is the cheapest floor there is.
            polls.create_task(_poll(read, begin, begin + seconds + 2 * PERIOD_S))
        await asyncio.sleep(begin + PERIOD_S - time.monotonic())
        cpu_s, started = _cpu_s(), time.monotonic()
        await asyncio.sleep(seconds)
        used = (_cpu_s() - cpu_s) / (time.monotonic() - started)
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"cores": used, "rss_mb": rss_mb}))


async def _pymodbus(port: int) -> Read:
    client = AsyncModbusTcpClient("127.0.0.1", port=port, timeout=1)
    assert await client.connect()

    async def read() -> list[int]:
        answer = await client.read_holding_registers(0, count=10, device_id=1)
        return list(answer.registers)

    return read


async def _own(port: int) -> Read:
    session = ModbusSession(
        host="127.0.0.1", port=port, timeout_s=1, min_gap_s=0, clock=time.monotonic, sleep=asyncio.sleep
    )
    await session.connect()
    return lambda: session.read(1, Table.HOLDING, 0, 10)


async def _poll(read: Read, due: float, end: float) -> None:
    while due < end:
        await asyncio.sleep(due - time.monotonic())
        assert len(await read()) == 10
        due += PERIOD_S


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), [int(line) for line in sys.stdin]))
