"""What the service manager hears, on a real datagram socket; and that a process ends with its write cycle."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from edge.runtime.systemd import ServiceManager
from tests.runtime.site import A, Site, running_site, until

CYCLE_THAT_ENDS = """
import asyncio, sys
from pathlib import Path
from edge.runtime.clock import HostClock
from edge.runtime.node import run_node
from edge.wire.session import broker_from_url
from edge.wire.topics import NodeTopics

class Clock(HostClock):
    broken = False
    def quality(self):
        if self.broken:
            raise RuntimeError("a defect")
        return super().quality()

async def main(state, how):
    clock = Clock(trust_host=True)
    turned = asyncio.Event()
    node = asyncio.create_task(run_node(
        broker=broker_from_url("mqtt://127.0.0.1:1", username="n", password=None, split=False),
        topics=NodeTopics("tenant", "n"), state=Path(state), clock=clock, stop=asyncio.Event(), alive=turned.set))
    await turned.wait()
    print("turns", flush=True)
    if how == "cancelled":
        [cycle] = [task for task in asyncio.all_tasks() if task.get_name() == "cycle"]
        cycle.cancel()
    else:
        clock.broken = True
    await node

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running_site(tmp_path, tags=(A,)) as site:
        site.put_on_disk()
        yield site


async def heard(manager: socket.socket, text: str) -> list[str]:
    """Listen until this is said; what was said up to then."""
    said = [""]
    while said[-1] != text:
        said.append((await asyncio.to_thread(manager.recv, 1000)).decode())
    return said[1:]


def test_nobody_is_told_where_nobody_asked():
    manager = ServiceManager(clock=lambda: 0.0, environment={})
    manager.ready()
    manager.alive()
    manager.close()


def test_abstract_address_is_understood():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("")  # the kernel draws a free abstract address
        address = "@" + listening.getsockname()[1:].decode()
        manager = ServiceManager(clock=lambda: 0.0, environment={"NOTIFY_SOCKET": address})
        manager.ready()
        manager.ready()
        manager.status("works")
        assert [listening.recv(100), listening.recv(100)] == [b"READY=1", b"STATUS=works"]
        manager.close()


def test_watchdog_is_fed_once_a_second_however_often_the_cycle_turns(manager, tmp_path):
    now = 100.0
    told = ServiceManager(clock=lambda: now, environment={"NOTIFY_SOCKET": str(tmp_path / "notify")})
    for now in (100.0, 100.2, 100.9, 101.0, 101.5, 102.1):  # noqa: B007 - the clock reads it
        told.alive()
    told.status("end")
    assert [manager.recv(100) for _ in range(4)] == [b"WATCHDOG=1"] * 3 + [b"STATUS=end"]
    told.close()


def test_manager_that_is_gone_disturbs_nobody(tmp_path):
    told = ServiceManager(clock=lambda: 0.0, environment={"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    told.ready()
    told.alive()
    told.close()


@pytest.mark.services
async def test_node_is_ready_with_its_first_turn_and_feeds_the_watchdog(site, manager, tmp_path):
    node = site.start(env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
    said = await heard(manager, "READY=1")
    assert "WATCHDOG=1" not in said
    assert site.holds(node)
    for _ in range(2):
        await heard(manager, "WATCHDOG=1")

    node.send_signal(signal.SIGTERM)
    await heard(manager, "STOPPING=1")


@pytest.mark.services
async def test_waiting_node_is_not_ready_and_guard_is_fed_in_both_its_states(site, manager, tmp_path):
    guard = site.guard(env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
    said = await heard(manager, "READY=1")
    said += await heard(manager, "WATCHDOG=1")
    assert "STATUS=controls the devices in the node's place" in said
    node = site.start()
    await heard(manager, "STATUS=watches the node")
    await heard(manager, "WATCHDOG=1")
    await until(lambda: site.holds(node))
    assert guard.poll() is None


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_process_ends_with_its_write_cycle(site, how):
    node = site.spawn([sys.executable, "-c", CYCLE_THAT_ENDS, str(site.state), how])
    _, said = await asyncio.to_thread(node.communicate, timeout=20)
    assert node.returncode == 1
    assert ("the write cycle was cancelled" if how == "cancelled" else "a defect") in said.decode()
