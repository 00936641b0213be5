"""Rule 20 from end to end: what central renders, carried out by the node's own control, and its report."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from django.core.management import call_command
from django.db import connections

from devices_app.models import Device, DeviceType, RetiringDevice
from devices_app.retirement import device_abandon, retired_record
from devices_app.services import device_delete, device_move, device_update
from edge.runtime.config import plan
from edge.simulators.device import Fault
from edge.simulators.modbus import SimulatedDevice
from sites_app.models import Node
from tests.factories import device_make, node_make, node_online, report_make
from tests.runtime.plant import Plant, profile, running_plant

pytestmark = pytest.mark.django_db(transaction=True)

TAG = "INV_01"
T = TypeVar("T")


async def at_central(call: Callable[[], T]) -> T:
    """Django's database work, in a thread of its own."""

    def run() -> T:
        try:
            return call()
        finally:
            connections.close_all()

    return await asyncio.to_thread(run)


@dataclass
class Pair:
    """One node: its row, and its control with a clock that the test turns."""

    node: Node
    plant: Plant
    device_type: DeviceType

    async def simulated(self) -> SimulatedDevice:
        kind = profile()
        device = SimulatedDevice(
            profile=kind, unit=kind.default_unit, nameplate_kw=60, clock=self.plant.clock.boottime_s
        )
        await device.start()
        self.plant.simulated[str(device.port)] = device
        return device

    async def device(self, simulated: SimulatedDevice, *, tag: str = TAG) -> Device:
        """At central, at the node, and held at 30 %."""
        device = await at_central(
            partial(
                device_make,
                node=self.node,
                device_type=self.device_type,
                device_tag=tag,
                peak_power_kw=60,
                modbus_server_host="127.0.0.1",
                modbus_server_port=simulated.port,
                modbus_id=simulated.unit,
            )
        )
        await self.hears()
        self.plant.setpoint(**{tag: 30})
        await self.plant.run(10, until=lambda: simulated.limit_in_force == 30)
        return device

    async def hears(self, *, unusable: bool = False) -> int:
        """The node applies its present configuration; how many central closes upon its report at that moment.

        `unusable`: it is of a version that cannot use the address which central took for its first device.
        """
        body = await at_central(lambda: self.node.documents.get(name="config").body)
        if unusable:
            body["devices"][0]["host"] = "no..host"
        self.plant.fleet.apply(plan(body))
        self.plant.cycle.turn()
        return await self.reports()

    async def reports(self) -> int:
        """How many central closes upon what the node says now."""
        # Read before anything is awaited: the node goes on meanwhile.
        said = {"retiring": self.plant.fleet.retiring, "devices_refused": self.plant.fleet.refused}

        def take() -> int:
            node_online(self.node)
            return retired_record(
                node=Node.objects.get(pk=self.node.pk), reported=report_make(self.node, **said)
            )

        return await at_central(take)

    async def has_let_go(self) -> None:
        await self.plant.run(30, until=lambda: not self.plant.fleet.retiring)


@pytest.fixture
async def pair(transactional_db: Any, tmp_path: Path) -> AsyncIterator[Pair]:
    async with running_plant(tmp_path) as plant:

        def rows() -> tuple[Node, DeviceType]:
            call_command("sync_device_types", verbosity=0)
            return node_make(), DeviceType.objects.get(profile="generic_modbus")

        node, device_type = await at_central(rows)
        yield Pair(node, plant, device_type)


async def test_place_of_a_deleted_device_is_free_once_it_is_back_at_its_default(pair):
    simulated = await pair.simulated()
    await at_central(partial(device_delete, device=await pair.device(simulated)))
    assert await pair.hears() == 0
    await pair.has_let_go()
    assert simulated.limit_in_force == 100
    assert await pair.reports() == 1


async def test_changed_address_is_written_at_once_and_the_former_one_is_released(pair):
    before, after = await pair.simulated(), await pair.simulated()
    device = await pair.device(before)
    await at_central(partial(device_update, device=device, modbus_server_port=after.port))
    assert await pair.hears() == 0
    pair.plant.setpoint(**{TAG: 40})
    await pair.plant.run(10, until=lambda: after.limit_in_force == 40)
    await pair.has_let_go()
    assert before.limit_in_force == 100
    assert await pair.reports() == 1


async def test_renamed_device_is_released_under_its_former_name_before_it_obeys_its_new_one(pair):
    simulated = await pair.simulated()
    device = await pair.device(simulated)
    await at_central(partial(device_update, device=device, device_tag="INV_02"))
    assert await pair.hears() == 0
    await pair.has_let_go()
    assert simulated.limit_in_force == 100
    assert await pair.reports() == 1
    pair.plant.setpoint(INV_02=40)
    await pair.plant.run(10, until=lambda: simulated.limit_in_force == 40)


async def test_device_that_is_only_measured_from_now_on_is_released_first(pair):
    simulated = await pair.simulated()
    device = await pair.device(simulated)
    await at_central(partial(device_update, device=device, measured_only=True))
    assert await pair.hears() == 0
    await pair.has_let_go()
    assert simulated.limit_in_force == 100
    assert await pair.reports() == 1


async def test_moved_device_is_released_by_its_former_node(pair):
    simulated = await pair.simulated()
    device = await pair.device(simulated)
    there = await at_central(partial(node_make, site=pair.node.site))
    await at_central(partial(device_move, device=device, node=there))
    assert await pair.hears() == 0
    await pair.has_let_go()
    assert simulated.limit_in_force == 100
    assert await pair.reports() == 1
    body = await at_central(lambda: there.documents.get(name="config").body)
    assert "excluded" not in body["devices"][0]


async def abandon(tag: str = TAG) -> None:
    def call() -> None:
        device_abandon(retiring=RetiringDevice.objects.get(), tag=tag, by="operator", why="burnt down")

    await at_central(call)


async def test_device_out_of_reach_stays_listed_until_it_is_abandoned(pair):
    simulated = await pair.simulated()
    device = await pair.device(simulated)
    await simulated.set_fault(Fault.REFUSE)
    await at_central(partial(device_delete, device=device))
    await pair.hears()
    await pair.plant.run(60)
    assert TAG in pair.plant.fleet.retiring[str(device.config_id)]
    assert await pair.reports() == 0
    await abandon()
    assert await pair.reports() == 0
    assert await pair.hears() == 1
    assert not await at_central(RetiringDevice.objects.exists)


async def test_node_that_hears_of_deletion_and_abandonment_at_once_forgets_the_device(pair):
    simulated = await pair.simulated()
    device = await pair.device(simulated)
    await at_central(partial(device_delete, device=device))
    await abandon()
    assert await pair.hears() == 1
    assert pair.plant.fleet.retiring == {}


async def test_device_whose_new_address_cannot_be_used_goes_on_and_keeps_its_place(pair):
    simulated = await pair.simulated()
    device = await pair.device(simulated)
    device = await at_central(partial(device_update, device=device, modbus_server_host="localhost"))
    assert await pair.hears(unusable=True) == 0
    assert simulated.limit_in_force == 30
    await at_central(partial(device_update, device=device, modbus_server_host="127.0.0.1"))
    assert await pair.hears() == 0
    await pair.has_let_go()
    assert simulated.limit_in_force == 100
    assert await pair.reports() == 2
