"""The node as a process: killed, started twice, started without a broker."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge.runtime.clock import HostClock
from edge.runtime.node import EXIT_BUS_TAKEN, EXIT_FAILED, bus_lock
from edge.simulators.device import Fault
from edge.wire.messages import Presence
from edge.wire.topics import NodeTopics
from tests.runtime.central import Central, central_for
from tests.runtime.site import A, B, Site, running_site, until
from tests.servers import Broker


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running_site(tmp_path) as site:
        yield site


@pytest.fixture
async def central(broker: Broker, site: Site) -> AsyncIterator[Central]:
    site.put_on_disk()
    async with central_for(broker, NodeTopics("tenant", site.node)) as central:
        central.manifest_version = 1
        yield central


async def online(central: Central) -> None:
    await central.expect(Presence, lambda presence: presence.online, within_s=20)


@pytest.mark.services
async def test_node_controls_from_its_disk_before_and_without_a_broker(site):
    site.put_on_disk()
    site.devices[A].registers.set("limit_target", 42)
    site.devices[A].take_limit()
    site.start("mqtt://127.0.0.1:1")

    await until(lambda: site.devices[A].limit_in_force == 100)


async def test_killed_node_resumes_its_hold_and_falls_back_when_it_ends(site, central, broker):
    password = broker.password_file(site.node)
    process = site.start(broker.url, password_file=password)
    await online(central)
    command = await central.setpoint(INVERTER_01=30, hold_s=4.0)
    await central.expect_answer(command, "done")
    ends = time.monotonic() + 4.0

    process.send_signal(signal.SIGKILL)
    process.wait()
    central.heard.clear()
    site.start(broker.url, password_file=password)
    await online(central)
    assert time.monotonic() < ends - 0.3, "the machine is too slow for this test"
    assert site.devices[A].limit_in_force == 30

    await until(lambda: site.devices[A].limit_in_force == 100)
    assert -0.1 < time.monotonic() - ends < 1.0
    entry = await central.expect_entry(lambda entry: entry.kind == "watchdog")
    assert (entry.value, entry.reason, entry.devices[A].readback) == (100.0, "time_limit", 100.0)
    assert site.devices[A].writes["limit_target"] == 2  # the limit and the fallback, nothing at the restart


@pytest.mark.services
async def test_second_process_on_the_same_state_is_turned_away(site):
    site.put_on_disk()
    first = site.start("mqtt://127.0.0.1:1")
    await until(lambda: site.devices[A].commands)

    second = site.start("mqtt://127.0.0.1:1")
    assert await asyncio.to_thread(second.wait, 20) == EXIT_BUS_TAKEN
    assert second.stderr is not None
    assert b"in use by another node process" in second.stderr.read()
    assert first.poll() is None


@pytest.mark.services
async def test_dead_process_frees_its_devices_at_once(site):
    site.put_on_disk()
    first = site.start("mqtt://127.0.0.1:1")
    await until(lambda: site.devices[A].commands)
    first.kill()
    first.wait()

    async with asyncio.timeout(1), bus_lock(site.state, clock=HostClock(trust_host=True)):
        pass


@pytest.mark.services
async def test_stopped_node_ends_with_zero(site):
    site.put_on_disk()
    process = site.start("mqtt://127.0.0.1:1")
    await until(lambda: site.devices[A].commands)
    process.send_signal(signal.SIGTERM)

    assert await asyncio.to_thread(process.wait, 20) == 0


@pytest.mark.services
@pytest.mark.parametrize("place", ["file", "file/below", "full_of_something_else"])
async def test_node_says_what_is_wrong_with_its_state_directory(site, tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "full_of_something_else" / "node.sqlite3").mkdir(parents=True)
    site.state = tmp_path / place
    process = site.start("mqtt://127.0.0.1:1")

    assert await asyncio.to_thread(process.wait, 20) == EXIT_FAILED
    assert process.stderr is not None
    said = process.stderr.read()
    assert b"the node cannot work" in said
    assert b"Traceback" not in said


@pytest.mark.services
@pytest.mark.parametrize("content", [None, b"\xc9\x00"])
async def test_node_says_what_is_wrong_with_its_password_file(site, tmp_path, content):
    password = tmp_path / "password"
    if content is not None:
        password.write_bytes(content)
    process = site.start("mqtt://127.0.0.1:1", password_file=password)

    assert await asyncio.to_thread(process.wait, 20) == 2
    assert process.stderr is not None
    said = process.stderr.read()
    assert b"--password-file" in said
    assert b"Traceback" not in said


async def test_dead_device_delays_no_other_and_is_written_soon_after_its_return(site, central, broker):
    site.start(broker.url, password_file=broker.password_file(site.node))
    await online(central)
    await until(lambda: all(device.commands for device in site.devices.values()))
    await site.devices[A].set_fault(Fault.REFUSE)

    owed = await central.setpoint(INVERTER_01=30)
    live = await central.setpoint(INVERTER_02=40)
    assert await until(lambda: site.devices[B].limit_in_force == 40) < 0.5
    assert (await central.expect_answer(live, "done")).devices[B].ok
    failed = (await central.expect_answer(owed, "done")).devices[A]
    assert failed.reason.startswith("write_failed: ")
    assert failed.reason.endswith("Z, release to cancel")

    await site.devices[A].set_fault(Fault.NONE)
    assert await until(lambda: site.devices[A].limit_in_force == 30) < 1.5
