"""A session against a peer that answers whatever the test wants, byte by byte, on a real socket."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from edge.drivers.errors import DeviceAway, DeviceRefused, DeviceUnreachable
from edge.drivers.modbus import ModbusSession
from edge.profiles.points import Table

UNIT, ADDRESS = 1, 100
# Long enough that no test meets it, unless it wants to.
NEVER_S = 30.0


def answer(transaction: int, *registers: int, unit: int = UNIT, function: int = 3) -> bytes:
    data = struct.pack(f">B{len(registers)}H", 2 * len(registers), *registers)
    return struct.pack(">HHHBB", transaction & 0xFFFF, 0, 2 + len(data), unit, function) + data


@dataclass
class Peer:
    """The other end: the requests that came, and the stream on which to answer them."""

    port: int = 0
    requests: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        try:
            while True:
                self.requests.put_nowait(await reader.readexactly(12))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
        finally:
            writer.close()

    async def send(self, *pieces: bytes) -> None:
        """Send the pieces as segments of their own, as far as TCP lets us."""
        assert self.writer is not None
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            # Lets the session read what is there before the next comes.
            await asyncio.sleep(0)


@asynccontextmanager
async def connected(*, timeout_s: float = NEVER_S) -> AsyncIterator[tuple[ModbusSession, Peer]]:
    peer = Peer()
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    session = ModbusSession(
        host="127.0.0.1", port=port, timeout_s=timeout_s, min_gap_s=0, clock=lambda: 0.0, sleep=asyncio.sleep
    )
    try:
        async with asyncio.timeout(20):
            await session.connect()
            yield session, peer
    finally:
        await session.aclose()
        server.close()
        await server.wait_closed()


async def asked(session: ModbusSession, peer: Peer, *, count: int = 1) -> tuple[asyncio.Task[list[int]], int]:
    """Begin a read; the task, and the transaction that the peer sees."""
    task = asyncio.create_task(session.read(UNIT, Table.HOLDING, ADDRESS, count))
    request = await peer.requests.get()
    assert request[2:] == struct.pack(">HHBBHH", 0, 6, UNIT, 3, ADDRESS, count)
    return task, int.from_bytes(request[:2], "big")


async def test_an_answer_in_single_bytes_is_put_together():
    async with connected() as (session, peer):
        task, transaction = await asked(session, peer, count=2)

        whole = answer(transaction, 7, 8)
        await peer.send(*(whole[place : place + 1] for place in range(len(whole))))

        assert await task == [7, 8]


async def test_every_request_has_a_transaction_of_its_own_also_over_a_reconnect():
    async with connected() as (session, peer):
        seen = []
        for _ in range(3):
            task, transaction = await asked(session, peer)
            await peer.send(answer(transaction, 1))
            await task
            seen.append(transaction)
        await session.connect()
        task, transaction = await asked(session, peer)
        await peer.send(answer(transaction, 1))
        await task

        assert len({*seen, transaction}) == 4


async def test_transactions_begin_anew_after_the_last_there_is():
    async with connected() as (session, peer):
        session._transaction = 0xFFFE
        for expected in (0xFFFF, 0, 1):
            task, transaction = await asked(session, peer)
            await peer.send(answer(transaction, expected))

            assert transaction == expected
            assert await task == [expected]


async def test_an_answer_nobody_waits_for_is_never_taken_for_the_next_ones():
    async with connected() as (session, peer):
        task, transaction = await asked(session, peer)
        # Twice, and one for the transaction that comes next would be a lie as well.
        await peer.send(answer(transaction, 1) + answer(transaction, 2))
        assert await task == [1]

        task, following = await asked(session, peer)
        await peer.send(answer(transaction, 3), answer(following, 4))

        assert await task == [4]


async def test_an_answer_after_the_timeout_meets_a_closed_line():
    # Long enough for the second answer on a busy machine.
    async with connected(timeout_s=0.4) as (session, peer):
        task, transaction = await asked(session, peer)
        with pytest.raises(DeviceUnreachable, match=r"no answer from .* within 0\.4 s"):
            await task
        late = peer.writer

        await session.connect()
        assert late is not None
        late.write(answer(transaction + 1, 66))
        task, following = await asked(session, peer)
        assert following == transaction + 1
        await peer.send(answer(following, 5))

        assert await task == [5]


@pytest.mark.parametrize(
    ("unit", "function", "registers"), [(2, 3, (5,)), (0, 3, (5,)), (1, 4, (5,)), (1, 3, ()), (1, 3, (5, 6))]
)
async def test_an_answer_to_something_else_closes_the_line(unit, function, registers):
    async with connected() as (session, peer):
        task, transaction = await asked(session, peer)

        await peer.send(answer(transaction, *registers, unit=unit, function=function))

        with pytest.raises(DeviceUnreachable, match="with something else"):
            await task
        assert not session.connected
        await peer.closed.wait()


@pytest.mark.parametrize("garbage", [b"\x00" * 8, b"\xff" * 300, b"SSH-2.0-dropbear\r\n"])
async def test_garbage_breaks_the_line_without_waiting_for_the_timeout(garbage):
    async with connected() as (session, peer):
        task, _ = await asked(session, peer)

        await peer.send(garbage)

        with pytest.raises(DeviceUnreachable, match="it does not speak Modbus"):
            await task
        assert not session.connected
        await peer.closed.wait()


async def test_garbage_while_nothing_is_asked_breaks_the_line():
    async with connected() as (session, peer):
        task, transaction = await asked(session, peer)
        await peer.send(answer(transaction, 1))
        await task

        await peer.send(b"\xff" * 20)

        await peer.closed.wait()
        assert not session.connected


async def test_a_refusal_leaves_the_line_open():
    async with connected() as (session, peer):
        task, transaction = await asked(session, peer)
        await peer.send(struct.pack(">HHHBBB", transaction, 0, 3, UNIT, 0x83, 2))
        with pytest.raises(DeviceRefused, match=r"read holding register 100: it has no such register"):
            await task

        task, transaction = await asked(session, peer)
        await peer.send(answer(transaction, 9))

        assert await task == [9]


async def test_a_refusal_of_another_unit_is_not_this_devices():
    async with connected() as (session, peer):
        task, transaction = await asked(session, peer)

        await peer.send(struct.pack(">HHHBBB", transaction, 0, 3, 9, 0x83, 2))

        with pytest.raises(DeviceUnreachable, match="with something else"):
            await task


async def test_a_new_connection_begins_only_when_the_old_one_is_closed():
    """A device with a single session would take the two for two controllers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        port = listener.getsockname()[1]
        session = ModbusSession(
            host="127.0.0.1", port=port, timeout_s=5, min_gap_s=0, clock=lambda: 0.0, sleep=asyncio.sleep
        )
        await session.connect()
        before, _ = listener.accept()
        before.settimeout(0)

        again = asyncio.create_task(session.connect())
        # Its first step has been taken now.
        await asyncio.sleep(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
        await again

        assert before.recv(1) == b""
        after, _ = listener.accept()
        await session.aclose()
        before.close()
        after.close()


async def test_a_line_that_ends_under_a_command_says_so_at_once():
    async with connected() as (session, peer):
        task, transaction = await asked(session, peer)

        await peer.send(answer(transaction, 1)[:5])
        assert peer.writer is not None
        peer.writer.close()

        with pytest.raises(DeviceUnreachable, match="broke"):
            await task
        assert not session.connected


strays = st.lists(
    st.tuples(st.integers(-3, 3).filter(bool), st.integers(0, 0xFFFF), st.sampled_from([1, 2])), max_size=4
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(turns=st.lists(st.tuples(strays, st.integers(0, 0xFFFF), st.sets(st.integers(1, 60), max_size=4)), min_size=1, max_size=4))  # fmt: skip
def test_only_the_answer_of_its_own_transaction_is_taken_whatever_else_arrives(turns):
    """Each turn: answers of other transactions and units, then the right one, cut anywhere."""

    async def run() -> None:
        async with connected() as (session, peer):
            for others, value, places in turns:
                task, transaction = await asked(session, peer)
                stream = b"".join(answer(transaction + off, wrong, unit=unit) for off, wrong, unit in others)
                stream += answer(transaction, value)
                cuts = [0, *sorted(place for place in places if place < len(stream)), len(stream)]
                await peer.send(*(stream[a:b] for a, b in pairwise(cuts)))
                assert await task == [value]

    asyncio.run(run())


async def test_coils_are_read_as_bits_and_written_one_or_several():
    async with connected() as (session, peer):
        task = asyncio.create_task(session.read(UNIT, Table.COIL, 19, 19))
        request = await peer.requests.get()
        assert request[6:] == bytes.fromhex("01 01 00 13 00 13")
        await peer.send(request[:4] + bytes.fromhex("00 06 01 01 03 cd 6b 05"))
        assert (await task)[:8] == [1, 0, 1, 1, 0, 0, 1, 1]

        write = asyncio.create_task(session.write(UNIT, 172, [1], single=True, table=Table.COIL))
        request = await peer.requests.get()
        assert request[6:] == bytes.fromhex("01 05 00 ac ff 00")
        await peer.send(request)
        await write


async def test_coil_that_is_refused_says_so():
    async with connected() as (session, peer):
        task = asyncio.create_task(session.read(UNIT, Table.DISCRETE, 5, 1))
        request = await peer.requests.get()
        await peer.send(request[:4] + bytes.fromhex("00 03 01 82 02"))

        with pytest.raises(DeviceRefused, match="refused to read discrete input 5: it has no such register"):
            await task


@pytest.mark.parametrize("code", [10, 11])
async def test_unit_that_a_gateway_does_not_reach_is_away_and_the_way_to_it_is_sound(code):
    async with connected() as (session, peer):
        task = asyncio.create_task(read(session))
        request = await peer.requests.get()
        await peer.send(request[:4] + bytes([0, 3, UNIT, 0x83, code]))

        with pytest.raises(DeviceAway, match=f"no answer from .* unit {UNIT}: the "):
            await task
        assert session.connected


@dataclass
class Ending:
    """A device that ends each connection after so many answers, and counts what comes."""

    answers: int = 1
    port: int = 0
    connections: int = 0
    requests: int = 0
    gone: bool = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            for _ in range(0 if self.gone else self.answers):
                request = await reader.readexactly(12)
                self.requests += 1
                writer.write(answer(int.from_bytes(request[:2], "big"), 7))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def ending(device: Ending, **timing: Any) -> AsyncIterator[ModbusSession]:
    server = await asyncio.start_server(device.serve, "127.0.0.1", 0)
    device.port = server.sockets[0].getsockname()[1]
    session = ModbusSession(
        **{
            "host": "127.0.0.1",
            "port": device.port,
            "timeout_s": NEVER_S,
            "min_gap_s": 0.0,
            "clock": lambda: 1000.0,
            "sleep": asyncio.sleep,
            **timing,
        }
    )
    try:
        async with asyncio.timeout(20):
            yield session
    finally:
        await session.aclose()
        server.close()


async def read(session: ModbusSession) -> list[int]:
    return await session.read(UNIT, Table.HOLDING, ADDRESS, 1)


async def notice(session: ModbusSession) -> None:
    """Let the session see often enough that its connections end with their first answer."""
    for _ in range(2):
        await session.connect()
        assert await read(session) == [7]
        with pytest.raises(DeviceUnreachable):
            await read(session)
    await session.connect()


async def test_device_that_ends_each_connection_with_its_answer_is_asked_over_one_each():
    device = Ending()
    async with ending(device) as session:
        await notice(session)
        generation, connections = session.generation, device.connections

        for _ in range(5):
            assert await read(session) == [7]
            assert session.connected

        # It is the same session for the driver: nothing was lost, and nothing is to be prepared anew.
        assert session.generation == generation
        assert device.connections == connections + 4


async def test_device_that_is_gone_between_two_connections_is_unreachable_and_connected_anew():
    device = Ending()
    async with ending(device) as session:
        await notice(session)
        await read(session)
        device.gone = True

        with pytest.raises(DeviceUnreachable):
            await read(session)

        assert not session.connected
        device.gone = False
        generation = session.generation
        await session.connect()
        assert await read(session) == [7]
        assert session.generation == generation + 1


async def test_device_that_ends_a_connection_now_and_then_is_a_device_that_is_lost():
    device = Ending(answers=3)
    async with ending(device) as session:
        for _ in range(4):
            await session.connect()
            for _ in range(3):
                assert await read(session) == [7]
            with pytest.raises(DeviceUnreachable):
                await read(session)
            assert not session.connected


async def test_first_command_of_a_connection_waits_for_as_long_as_the_maker_asks():
    now, waits = 1000.0, []

    async def sleep(seconds: float) -> None:
        nonlocal now
        waits.append(seconds)
        now += seconds

    async with ending(Ending(answers=9), clock=lambda: now, sleep=sleep, connect_delay_s=1.5) as session:
        await session.connect()
        assert session.next_command_at == 1001.5
        await read(session)
        await read(session)
        assert waits == [1.5]

        await session.connect()
        await read(session)
        assert waits == [1.5, 1.5]
