"""A node as a process whose disk takes nothing: what it refuses, what it goes on with, and what it says."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge.profiles.reading import profile_to_builtins
from edge.runtime.cycle import Accepted
from edge.runtime.database import StoreFailed
from edge.runtime.store import Store
from edge.simulators.modbus import SimulatedDevice
from edge.wire.codec import document
from edge.wire.messages import Code, Manifest, ManifestEntry, ReleaseCommand, Reported, SetpointCommand
from edge.wire.topics import NodeTopics
from tests.runtime.central import Central, central_for
from tests.runtime.plant import NAMEPLATE_KW, SITE, Plant, profile, running_plant
from tests.servers import Broker

A, B = "INVERTER_01", "INVERTER_02"
PROJECT = Path(__file__).parents[2]
# A node reports at most every ten seconds.
REPORTED_WITHIN_S = 25.0


@dataclass
class Node:
    """One process, two devices, and central."""

    central: Central
    devices: dict[str, SimulatedDevice]
    process: subprocess.Popen[bytes]

    def disk_fails(self) -> None:
        """From now on the kernel takes no byte of this process for any file."""
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def disk_is_back(self) -> None:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, unlimited)

    async def release(self, tag: str) -> None:
        self.central.sequence += 1
        command = ReleaseCommand(
            id=uuid.uuid4().hex,
            epoch=1,
            sequence=self.central.sequence,
            fresh=await self.central.token(),
            request_id="r",
            category="inverter",
            devices=(tag,),
        )
        await self.central.send("release", command)
        await self.central.expect_answer(command.id, "done")


async def until(condition: Callable[[], object], *, within_s: float = 10.0) -> None:
    """Wait for a simulated device, which has no event to wait for."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture
async def node(broker: Broker, tmp_path: Path) -> AsyncIterator[Node]:
    topics = NodeTopics("tenant", str(uuid.uuid4()))
    password = tmp_path / "password"
    password.write_text(broker.add_user(topics.node))
    devices = {tag: SimulatedDevice(profile=profile(), unit=1, nameplate_kw=NAMEPLATE_KW) for tag in (A, B)}
    for device in devices.values():
        await device.start()
    argv = [
        *(sys.executable, "-m", "edge", "node", "--node", topics.node, "--tenant", topics.tenant),
        *("--state", str(tmp_path / "state"), "--broker", broker.url, "--password-file", str(password)),
    ]
    put_on_disk(tmp_path / "state", body(devices))
    process = start(argv)
    try:
        async with central_for(broker, topics) as central:
            await central.expect(Reported, lambda report: "config" in report.documents)
            yield Node(central, devices, process)
    finally:
        process.kill()
        process.wait()
        for device in devices.values():
            await device.stop()


def start(argv: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        cwd=PROJECT,
        env={**os.environ, "SGM_TRUST_HOST_CLOCK": "1"},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def put_on_disk(state: Path, config: dict[str, Any]) -> None:
    """The configuration as an earlier process left it."""
    store = Store(state)
    doc = document(config, epoch=1, version=1)
    store.keep_manifest(Manifest(epoch=1, version=1, docs={"config": ManifestEntry(v=1, sha256=doc.sha256)}))
    store.keep_document("config", doc)
    store.close()


def body(devices: dict[str, SimulatedDevice]) -> dict[str, Any]:
    kind = profile()
    raw = [
        {
            "id": tag, "tag": tag, "category": "inverter", "profile": kind.name, "host": device.host,
            "port": device.port, "unit": 1, "nameplate_kw": NAMEPLATE_KW,
        }
        for tag, device in devices.items()
    ]  # fmt: skip
    return {"site": SITE, "devices": raw, "profiles": {kind.name: profile_to_builtins(kind)}}


def alarmed(report: Reported) -> bool:
    return [alarm.code for alarm in report.alarms] == ["store_failed"]


async def test_node_without_a_disk_promises_nothing_new_and_keeps_what_it_promised(node):
    central = node.central
    began = time.monotonic()
    await central.expect_answer(await central.setpoint(INVERTER_01=30, hold_s=6.0), "done")
    await central.expect_answer(await central.setpoint(INVERTER_02=40), "done")
    node.disk_fails()

    # The first finds out when it is to be kept, the second is refused at the door; no device hears of them.
    for value in (50, 60):
        command = await central.setpoint(INVERTER_01=value, INVERTER_02=value)
        refusal = await central.expect_answer(command, "refused")
        assert refusal.code == Code.STORE_FAILED
        assert "a restart would forget" in refusal.detail
    assert (node.devices[A].limit_in_force, node.devices[B].limit_in_force) == (30, 40)

    await node.release(B)
    assert node.devices[B].limit_in_force == 100
    await until(lambda: node.devices[A].limit_in_force == 100)
    assert time.monotonic() - began < 6.0 + 3.0
    await central.expect(Reported, alarmed, within_s=REPORTED_WITHIN_S)
    assert node.process.poll() is None
    assert not any(entry.kind == "watchdog" for entry in central.entries)

    before = len(central.all(Reported))
    node.disk_is_back()
    lapse = await central.expect_entry(lambda entry: entry.kind == "watchdog", within_s=REPORTED_WITHIN_S)
    assert lapse.devices[A].ok
    assert [entry.seq for entry in central.entries] == list(range(1, len(central.entries) + 1))
    await central.expect(
        Reported,
        lambda report: central.all(Reported).index(report) >= before and not report.alarms,
        within_s=REPORTED_WITHIN_S,
    )
    await central.expect_answer(await central.setpoint(INVERTER_01=70), "done")
    assert node.devices[A].limit_in_force == 70


# --- the same, without a link -----------------------------------------------------------------------


@contextmanager
def taking_nothing(plant: Plant) -> Iterator[None]:
    db: sqlite3.Connection = plant.store._db._db
    db.execute("PRAGMA query_only = ON")
    yield
    db.execute("PRAGMA query_only = OFF")


async def test_request_that_could_not_be_kept_leaves_the_hold_before_it_as_it_was(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        await plant.run(5, until=lambda: plant.cycle.units[A].reachable)
        plant.setpoint(INVERTER_01=30, hold_s=60)
        await plant.run(5, until=lambda: device.limit_in_force == 30)
        hold = plant.cycle.units[A].state.hold
        writes = dict(device.writes)
        request = SetpointCommand(
            id="c", epoch=1, sequence=99, fresh="", request_id="r", category="inverter", values={A: 50.0},
            hold_s=60.0,
        )  # fmt: skip
        with taking_nothing(plant):
            accepted = Accepted({}, {})
            with suppress(StoreFailed), plant.store.transaction():
                accepted = plant.cycle.accept_setpoint(request)
            assert plant.store.failure is not None
            plant.cycle.take_back(accepted)
            await plant.run(3)
            assert plant.cycle.units[A].state.hold == hold
            assert (device.limit_in_force, dict(device.writes)) == (30, writes)
        # It was on the disk all along, and ends when it should.
        assert plant.store.devices()[A].hold == hold
        await plant.run(60, until=lambda: device.limit_in_force == 100)


async def test_lapse_is_carried_out_and_its_end_kept_when_the_disk_is_back(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        await plant.run(5, until=lambda: plant.cycle.units[A].reachable)
        plant.setpoint(INVERTER_01=30, hold_s=5)
        await plant.run(5, until=lambda: device.limit_in_force == 30)
        with taking_nothing(plant):
            await plant.run(8, until=lambda: device.limit_in_force == 100)
            assert plant.store.devices()[A].hold is not None
            assert plant.store.failure is not None
            assert plant.logged("watchdog") == []
        assert plant.store.try_again()
        await plant.run(2)
        assert plant.store.devices()[A].hold is None
        assert len(plant.logged("watchdog")) == 1
