"""A session with the broker that does not come about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from edge.wire.session import CONNECT_TIMEOUT_S, Broker, LinkDown, open_session

WITHIN_S = 10.0
MOMENTS = 12
# MQTT 5: no session kept, success, no properties.
CONNACK = bytes((0x20, 3, 0, 0, 0))


@asynccontextmanager
async def answered_by(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Broker]:
    """Somebody in the place of a broker, and where that is."""
    served: list[asyncio.Task[None]] = []

    async def to_its_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()
            await writer.wait_closed()

    async with await asyncio.start_server(
        lambda reader, writer: served.append(asyncio.create_task(to_its_end(reader, writer))), "127.0.0.1", 0
    ) as server:
        yield Broker("127.0.0.1", server.sockets[0].getsockname()[1], None, None)
    await asyncio.gather(*served)


async def connect(broker: Broker) -> None:
    async with open_session(broker, identifier="test"):
        pass


async def test_broker_that_hangs_up_on_connect_is_no_session_at_once():
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    begun_s = asyncio.get_running_loop().time()
    async with answered_by(hang_up) as broker:
        with pytest.raises(LinkDown, match="hung up"):
            await connect(broker)
    assert asyncio.get_running_loop().time() - begun_s < CONNECT_TIMEOUT_S


async def test_connect_that_is_given_up_leaves_no_connection():
    asked, ended = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        asked.set()
        with suppress(OSError):
            await reader.read()
        ended.set()

    async with answered_by(say_nothing) as broker, asyncio.timeout(WITHIN_S):
        connecting = asyncio.create_task(connect(broker))
        await asked.wait()
        connecting.cancel()
        with suppress(asyncio.CancelledError):
            await connecting
        await ended.wait()


@pytest.mark.parametrize("turns", range(MOMENTS))
async def test_request_to_stop_is_heard_at_whatever_moment_it_comes(turns):
    """Each moment is one turn of the loop, from the answer to our greeting to the good-bye and after it."""
    answered = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.read(1024)
            writer.write(CONNACK)
            answered.set()
            await reader.read()

    async def without_end(broker: Broker) -> None:
        await connect(broker)
        await asyncio.Event().wait()

    async with answered_by(answer) as broker, asyncio.timeout(WITHIN_S):
        task = asyncio.create_task(without_end(broker))
        await answered.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
