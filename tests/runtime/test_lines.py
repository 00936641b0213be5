"""Rule 19 in real time, on real sockets and a serial port: one dead device never delays a live one.

The bounds are for a busy machine; `make bench-lines` measures.
"""

from __future__ import annotations

import asyncio
import statistics
import struct
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import pytest

from edge.runtime.bus import SHARE_OF_SILENT
from edge.simulators.device import Fault
from edge.wire.messages import Code
from tests.clock import unstarved_s
from tests.runtime.lines import (
    RTU_PROFILE,
    TCP_PROFILE,
    Lines,
    add_tcp,
    black_hole,
    nobodys_port,
    running,
    serial_line,
    tcp_fleet,
)

# In real time, on real lines: not for a suite that shares its machine with others.
pytestmark = pytest.mark.long


@pytest.fixture
async def stage() -> AsyncIterator[tuple[Lines, AsyncExitStack]]:
    async with running(now=unstarved_s) as both:
        yield both


# --- TCP: each device an endpoint of its own -----------------------------------------------------------------


@pytest.mark.parametrize("death", ["refusing", "silent", "silent and commanded"])
async def test_dead_tcp_device_delays_no_write_to_the_others(stage, death):
    lines, stack = stage
    live = await tcp_fleet(lines, stack, 19)
    if death == "refusing":
        add_tcp(lines, "DEAD", port=nobodys_port())
    else:
        hole = await stack.enter_async_context(black_hole())
        add_tcp(lines, "DEAD", port=hole)
    lines.run(lines.buses["DEAD"])
    lines.buses["DEAD"].write("DEAD", 50, verify=False)
    await lines.until(lambda: lines.lost_tags == ["DEAD"])
    if death == "silent and commanded":
        lines.tasks.append(asyncio.create_task(lines.command_each_second("DEAD")))

    took = await lines.write_in_turn(live, every_s=0.01, for_s=1.5, at_least=100)

    # One that came too soon after another to the same device has taken its place.
    assert len(took) > 80
    # A write that waited for the dead one would take its timeout, a second.
    assert statistics.median(took) < 0.05
    assert max(took) < TCP_PROFILE.timeout_ms / 1000 / 2
    assert lines.lost_tags == ["DEAD"]


@pytest.mark.parametrize("death", [Fault.REFUSE, Fault.SILENT])
async def test_tcp_device_that_returns_is_written_soon_while_a_write_is_owed(stage, death):
    lines, stack = stage
    (tag,) = await tcp_fleet(lines, stack, 1)
    device = lines.simulated[tag]
    await device.set_fault(death)
    ticket = lines.write(tag, 30)
    await lines.until(lambda: ticket in lines.outcomes)
    assert lines.outcomes[ticket].code is Code.WRITE_FAILED
    assert lines.outcomes[ticket].still_trying

    await device.set_fault(Fault.NONE)
    took = await lines.until(lambda: device.limit_in_force == 30)

    assert took < 1.5 + 0.5
    await lines.until(lambda: lines.outcomes[ticket].code is None)


async def test_device_that_takes_connections_only_to_close_them_is_asked_once_a_second(stage):
    lines, stack = stage
    came: list[float] = []

    def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(time.monotonic())
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    stack.callback(server.close)
    add_tcp(lines, "DEAD", port=server.sockets[0].getsockname()[1])
    lines.run(lines.buses["DEAD"])
    lines.buses["DEAD"].write("DEAD", 50, verify=False)
    await lines.clock.sleep(2.5)

    # The first try, and its repetition on a new session, at most; then one a second.
    assert 2 <= len(came) <= 5


async def test_device_that_closes_after_every_answer_is_not_hammered(stage):
    lines, stack = stage
    requests: list[bytes] = []

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readexactly(12)
        requests.append(request)
        count = int.from_bytes(request[10:12], "big")
        body = struct.pack(">BBB", request[6], request[7], 2 * count) + bytes(2 * count)
        writer.write(request[:4] + struct.pack(">H", len(body)) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer_once, "127.0.0.1", 0)
    stack.callback(server.close)
    add_tcp(lines, "ODD", port=server.sockets[0].getsockname()[1])
    lines.run(lines.buses["ODD"])
    await lines.clock.sleep(2.5)

    assert 1 <= len(requests) <= 6


async def test_device_that_closes_after_every_answer_is_controlled_all_the_same(stage):
    lines, stack = stage
    held = {32: 10_000, 50: 10_000}

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            request = await reader.readexactly(12)
            function, address, number = request[7], *struct.unpack_from(">HH", request, 8)
            if function == 6:
                held[32] = held[50] = number
                writer.write(request)
            else:
                words = [held.get(address + place, 0) for place in range(number)]
                body = struct.pack(f">BBB{number}H", request[6], 3, 2 * number, *words)
                writer.write(request[:4] + struct.pack(">H", len(body)) + body)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer_once, "127.0.0.1", 0)
    stack.callback(server.close)
    add_tcp(lines, "ODD", port=server.sockets[0].getsockname()[1])
    lines.run(lines.buses["ODD"])

    for value in (30, 40, 50):
        ticket = lines.write("ODD", value)
        await lines.until(lambda ticket=ticket: ticket in lines.outcomes and not lines.outcomes[ticket].code)
        assert held[32] == 100 * value

    # Once its way is known it is there, and polled like any other.
    lost = len(lines.lost_tags)
    polls = lines.polls.get("ODD", 0)
    await lines.until(lambda: lines.polls.get("ODD", 0) >= polls + 3)
    assert len(lines.lost_tags) == lost


async def test_command_that_was_given_up_is_not_left_to_be_delivered_later(stage):
    # A cable that comes back must not bring an old value after a newer one: what was given up is discarded,
    # which the far end sees as a reset rather than as an orderly end.
    lines, stack = stage
    ended: list[str] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(100):
                pass
            ended.append("orderly")
        except ConnectionResetError:
            ended.append("reset")
        finally:
            writer.close()
        lines.lost("HOLE", reason="")

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    stack.callback(server.close)
    add_tcp(lines, "DEAD", port=server.sockets[0].getsockname()[1])
    lines.run(lines.buses["DEAD"])

    await lines.until(lambda: ended)
    assert ended[0] == "reset"


# --- RTU: twenty devices on one line -----------------------------------------------------------------------


async def test_dead_unit_of_a_serial_line_delays_no_write_by_more_than_its_timeout(stage):
    lines, stack = stage
    simulated, tags = await serial_line(lines, stack, 20)
    dead, live = tags[7], tags[:7] + tags[8:]
    await simulated.devices[8].set_fault(Fault.SILENT)
    lines.run(lines.buses[dead])
    await lines.until(lambda: dead in lines.lost_tags and all(lines.polls.get(tag) for tag in live))
    known = list(lines.contacts)
    lines.tasks.append(asyncio.create_task(lines.command_each_second(dead)))
    asked = simulated.devices[8].commands
    polls = sum(lines.polls.values())
    began = time.monotonic()

    took = await lines.write_in_turn(live, every_s=0.25, for_s=6)

    lasted = time.monotonic() - began
    assert len(took) > 8
    assert max(took) < 1.0
    # The port stayed open, and nobody else was forgotten.
    assert lines.lost_tags == [dead]
    assert lines.contacts == known
    assert simulated.collisions == 0
    assert simulated.silence_violations == []
    # The dead one had its share of the line, though it is commanded each second, and no more.
    tries = simulated.devices[8].commands - asked
    assert 2 <= tries <= lasted * SHARE_OF_SILENT / (RTU_PROFILE.timeout_ms / 1000) + 2
    # The line's free time went to polls.
    assert sum(lines.polls.values()) - polls > 5 * lasted


async def test_unit_that_returns_on_its_line_is_written_soon_while_a_write_is_owed(stage):
    lines, stack = stage
    simulated, tags = await serial_line(lines, stack, 20)
    device = simulated.devices[8]
    await device.set_fault(Fault.SILENT)
    lines.run(lines.buses[tags[0]])
    ticket = lines.write(tags[7], 30)
    await lines.until(lambda: ticket in lines.outcomes and len(lines.polls) == 19)

    await device.set_fault(Fault.NONE)
    took = await lines.until(lambda: device.limit_in_force == 30)

    assert took < 1.5 + 0.5
    await lines.until(lambda: lines.outcomes[ticket].code is None)


async def test_polls_share_a_line_that_cannot_carry_them_all(stage):
    lines, stack = stage
    simulated, tags = await serial_line(lines, stack, 10, poll_s=0.1)
    lines.run(lines.buses[tags[0]])
    await lines.until(lambda: len(lines.polls) == 10)
    before = dict(lines.polls)
    await lines.until(lambda: sum(lines.polls.values()) - sum(before.values()) >= 40)

    counts = [lines.polls[tag] - before[tag] for tag in tags]
    assert max(counts) - min(counts) <= 1
    assert simulated.collisions == 0


async def test_one_lost_frame_is_asked_again_before_anybody_hears_of_it(stage):
    lines, stack = stage
    simulated, tags = await serial_line(lines, stack, 3)
    lines.run(lines.buses[tags[0]])
    await lines.until(lambda: len(lines.polls) == 3)
    device = simulated.devices[2]
    asked = device.commands
    await device.set_fault(Fault.SILENT)
    ticket = lines.write(tags[1], 30)
    async with asyncio.timeout(5):
        while device.commands == asked:  # noqa: ASYNC110 - the device has no event for it
            await asyncio.sleep(0)
    await device.set_fault(Fault.NONE)
    await lines.until(lambda: ticket in lines.outcomes)

    assert lines.outcomes[ticket].code is None
    assert lines.lost_tags == []


async def test_converter_that_is_plugged_out_is_noticed_and_nothing_is_lost_but_the_line(stage):
    lines, stack = stage
    simulated, tags = await serial_line(lines, stack, 3)
    lines.run(lines.buses[tags[0]])
    await lines.until(lambda: len(lines.polls) == 3)
    simulated.unplug()
    ticket = lines.write(tags[0], 30)
    await lines.until(lambda: sorted(lines.lost_tags) == tags)

    assert lines.outcomes[ticket].code is Code.WRITE_FAILED
    # The system may have given the port's name to somebody else meanwhile, who has it open.
    detail = lines.outcomes[ticket].detail
    assert "cannot open" in detail or "another program has" in detail
