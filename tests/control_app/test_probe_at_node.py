"""A probe from end to end but for the broker: what central sends, carried out by the node's own control."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from django.db import connections

from control_app.probes import probe_command, probe_queue
from devices_app.models import Device, Probe, ProbeState
from devices_app.probes import answers_key, probe_ask, probe_claim, probe_sender_register, probe_settle
from devices_app.services import device_draft, device_update
from edge.profiles.loader import DATA, load_body
from edge.runtime.config import plan
from edge.runtime.probe import Prober, Unusable
from edge.simulators.modbus import SimulatedDevice
from edge.wire import codec
from edge.wire.messages import ProbeCommand
from smartgrid import live
from tests.factories import device_make, device_type_make, node_make
from tests.runtime.plant import Plant, profile, running_plant

pytestmark = pytest.mark.django_db(transaction=True)

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
    """Central's row of a device, and the node that controls it."""

    device: Device
    plant: Plant
    simulated: SimulatedDevice
    prober: Prober

    async def hears(self) -> None:
        """The node applies the configuration that it should have."""
        body = await at_central(lambda: self.device.node.documents.get(name="config").body)
        self.plant.fleet.apply(plan(body))

    async def probed(self, *, draft: Device | None = None) -> Probe:
        """Ask for a probe, carry it out, and take in the answer."""

        def asked() -> tuple[Probe, bytes]:
            probe = probe_ask(by="operator", device=self.device, draft=draft)
            claimed = probe_claim(probe_id=probe.pk)
            assert claimed is not None
            return probe, codec.encode(probe_command(claimed, fresh="token"))

        probe, payload = await at_central(asked)
        command = codec.decode_command(payload)
        assert isinstance(command, ProbeCommand)
        carried_out = asyncio.ensure_future(self.prober.begin(command)())
        await self.plant.run(60, until=carried_out.done)
        answer = codec.encode(carried_out.result()).decode()
        live.list_push(answers_key(probe.pk), answer, expires_s=60)
        return await at_central(partial(probe_settle, probe_id=probe.pk))


@pytest.fixture
def no_queue() -> Iterator[None]:
    """The test itself takes a probe from its row."""
    probe_sender_register(lambda _probe_id: None)
    yield
    probe_sender_register(probe_queue)


@pytest.fixture
async def pair(transactional_db: Any, live_redis: str, no_queue: None, tmp_path: Path) -> AsyncIterator[Pair]:
    async with running_plant(tmp_path) as plant:
        kind = profile()
        simulated = SimulatedDevice(profile=kind, unit=1, nameplate_kw=60, clock=plant.clock.boottime_s)
        await simulated.start()
        plant.simulated["INV_01"] = simulated

        def rows() -> Device:
            body = load_body(DATA / "inverter" / "generic_modbus.yaml")
            return device_make(
                node=node_make(),
                device_type=device_type_make(profile="generic_modbus", profile_body=body),
                device_tag="INV_01",
                peak_power_kw=60,
                modbus_server_host="127.0.0.1",
                modbus_server_port=simulated.port,
                modbus_id=1,
            )

        pair = Pair(await at_central(rows), plant, simulated, Prober(fleet=plant.fleet, clock=plant.clock))
        await pair.hears()
        await plant.run(3)
        yield pair


def lines(probe: Probe) -> dict[str, dict[str, Any]]:
    assert probe.state == ProbeState.DONE, probe.detail
    assert probe.report is not None
    return {
        f"{line['part']} {line.get('point') or line.get('name', '')}".strip(): line
        for line in probe.report["lines"]
    }


async def test_configured_device_is_read_over_the_line_that_controls_it(pair):
    pair.simulated.profile = profile(max_sessions=1)
    pair.simulated.registers.set("limit_in_force", 40)

    told = lines(await pair.probed())

    assert told["limit limit_in_force"]["value"] == 40
    assert told["telemetry power"]["value"] is not None
    assert pair.simulated.sessions_refused == 0
    assert pair.simulated.writes.total() == 0


async def test_draft_of_a_form_is_read_as_the_form_has_it(pair):
    draft = await at_central(
        partial(
            device_draft,
            device=pair.device,
            node=pair.device.node,
            device_type=pair.device.device_type,
            device_tag="INV_01",
            parameters={"power_address": 9000},
        )
    )
    told = lines(await pair.probed(draft=draft))
    assert "it has no such register" in told["telemetry power"]["detail"]
    assert told["limit limit_in_force"]["value"] is not None


async def test_device_that_the_node_does_not_have_yet_is_refused_until_it_has(pair):
    await at_central(partial(device_update, device=pair.device, device_tag="INV_02"))
    device = await at_central(lambda: Device.objects.select_related("node", "device_type").get())
    command = ProbeCommand(id="x", epoch=1, fresh="token", device=str(device.config_id))
    with pytest.raises(Unusable, match="not in the configuration that this node runs"):
        pair.prober.begin(command)
    await pair.hears()
    pair.device = device
    assert lines(await pair.probed())["telemetry power"]["value"] is not None
