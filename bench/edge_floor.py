"""The floor of `make bench-edge`: pymodbus clients that poll ten registers once a second, and no more.

    python -m bench.edge_floor SECONDS < PORTS

Connects to every port, polls for some seconds after everybody was asked once, and prints what it took.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time

from pymodbus.client import AsyncModbusTcpClient

PERIOD_S = 1.0


async def main(ports: list[int], seconds: float) -> None:
    clients = []
    for port in ports:
        client = AsyncModbusTcpClient("127.0.0.1", port=port, timeout=1)
        assert await client.connect()
        clients.append(client)
    begin = time.monotonic() + 0.2
    async with asyncio.TaskGroup() as polls:
        for client in clients:
            # All at the same moment: a machine that wakes once for all polls is the cheapest floor there is.
            polls.create_task(_poll(client, begin, begin + seconds + 2 * PERIOD_S))
        await asyncio.sleep(begin + PERIOD_S - time.monotonic())
        cpu_s, started = _cpu_s(), time.monotonic()
        await asyncio.sleep(seconds)
        used = (_cpu_s() - cpu_s) / (time.monotonic() - started)
    rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cores": used, "rss_mib": rss_mib}))
    for client in clients:
        client.close()


async def _poll(client: AsyncModbusTcpClient, due: float, end: float) -> None:
    while due < end:
        await asyncio.sleep(due - time.monotonic())
        answer = await client.read_holding_registers(0, count=10, device_id=1)
        assert len(answer.registers) == 10
        due += PERIOD_S


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    asyncio.run(main([int(line) for line in sys.stdin], float(sys.argv[1])))
