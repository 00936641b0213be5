"""The node as a process: killed, started twice, started without a broker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge.profiles.model import profile_to_builtins
from edge.runtime.node import EXIT_BUS_TAKEN, bus_lock
from edge.runtime.store import Store
from edge.simulators.modbus import Fault, SimulatedDevice
from edge.wire.codec import document
from edge.wire.messages import Manifest, ManifestEntry, Presence
from edge.wire.topics import NodeTopics
from tests.runtime.central import Central, central_for
from tests.runtime.plant import NAMEPLATE_KW, SITE, profile
from tests.servers import Broker

A, B = "INVERTER_01", "INVERTER_02"
PROJECT = Path(__file__).parents[2]


@dataclass
class Site:
    """Two devices, and the state directory of the node that controls them."""

    devices: dict[str, SimulatedDevice]
    state: Path
    node: str
    processes: list[subprocess.Popen[bytes]]

    @property
    def body(self) -> dict[str, Any]:
        kind = profile()
        devices = [
            {
                "id": tag,
                "tag": tag,
                "category": "inverter",
                "profile": kind.name,
                "host": device.host,
                "port": device.port,
                "unit": 1,
                "nameplate_kw": NAMEPLATE_KW,
            }
            for tag, device in self.devices.items()
        ]
        return {"site": SITE, "devices": devices, "profiles": {kind.name: profile_to_builtins(kind)}}

    def put_on_disk(self) -> None:
        """The configuration as an earlier process left it."""
        store = Store(self.state)
        doc = document(self.body, epoch=1, version=1)
        store.keep_manifest(
            Manifest(epoch=1, version=1, docs={"config": ManifestEntry(v=1, sha256=doc.sha256)})
        )
        store.keep_document("config", doc)
        store.close()

    def start(self, url: str, *, password_file: Path | None = None) -> subprocess.Popen[bytes]:
        argv = [
            *(sys.executable, "-m", "edge", "node", "--node", self.node, "--tenant", "tenant"),
            *("--state", str(self.state), "--broker", url),
        ]
        if password_file is not None:
            argv += ["--password-file", str(password_file)]
        process = subprocess.Popen(
            argv,
            cwd=PROJECT,
            env={**os.environ, "SGM_TRUST_HOST_CLOCK": "1"},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.processes.append(process)
        return process


async def until(condition: Callable[[], object], *, within_s: float = 10.0) -> float:
    """Wait for a simulated device, which has no event to wait for; the seconds it took."""
    begin = time.monotonic()
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return time.monotonic() - begin


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    devices = {}
    for tag in (A, B):
        devices[tag] = SimulatedDevice(profile=profile(), unit=1, nameplate_kw=NAMEPLATE_KW)
        await devices[tag].start()
    site = Site(devices, tmp_path / "state", str(uuid.uuid4()), [])
    try:
        yield site
    finally:
        for process in site.processes:
            process.kill()
            process.communicate()
        for device in devices.values():
            await device.stop()


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
    site.devices[A]._take_limit()
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

    with bus_lock(site.state):
        pass


@pytest.mark.services
async def test_stopped_node_ends_with_zero(site):
    site.put_on_disk()
    process = site.start("mqtt://127.0.0.1:1")
    await until(lambda: site.devices[A].commands)
    process.send_signal(signal.SIGTERM)

    assert await asyncio.to_thread(process.wait, 20) == 0


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
