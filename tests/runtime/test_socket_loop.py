"""The virtual clock over real sockets: an answer takes no time, and waiting for nobody passes at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.runtime.socket_loop import SocketLoop
from tests.simulation.loop import Deadlock


@pytest.fixture
def loop() -> Iterator[SocketLoop]:
    loop = SocketLoop(start_s=100.0)
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


async def answer_in(seconds: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Give back each byte, so long after it came."""
    while byte := await reader.read(1):
        await asyncio.sleep(seconds)
        writer.write(byte)
    writer.close()
    await writer.wait_closed()


async def exchanges(loop: SocketLoop, *, count: int, takes_s: float) -> list[float]:
    """How long each of these took, a timer of an hour running beside."""
    server = await asyncio.start_server(
        lambda reader, writer: answer_in(takes_s, reader, writer), "127.0.0.1", 0
    )
    timer = loop.call_later(3600.0, pytest.fail, "an hour has passed")
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    took: list[float] = []
    for _ in range(count):
        begin = loop.time()
        writer.write(b"?")
        assert await reader.readexactly(1) == b"?"
        took.append(loop.time() - begin)
    writer.close()
    await writer.wait_closed()
    timer.cancel()
    server.close()
    await server.wait_closed()
    return took


def test_answers_over_a_socket_take_no_time_whatever_timers_wait(loop):
    took = loop.run_until_complete(exchanges(loop, count=500, takes_s=0.0))
    assert max(took) < 0.001


def test_an_answer_comes_as_late_as_it_is_sent(loop):
    begin = time.monotonic()
    took = loop.run_until_complete(exchanges(loop, count=50, takes_s=10.0))
    assert took == pytest.approx([10.0] * 50, abs=0.001)
    assert time.monotonic() - begin < 10.0


def test_waiting_for_what_never_comes_is_said_and_does_not_hang(loop):
    async def forlorn() -> None:
        await asyncio.Event().wait()

    task = loop.create_task(forlorn())
    with pytest.raises(Deadlock):
        loop.run_until_complete(task)
    loop.finish([task])
