"""Simulated MQTT devices, as anybody at their broker sees them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from edge.profiles.loader import load_all
from edge.simulators.device import Fault
from edge.simulators.fleet import Fleet, FleetDevice, FleetError, build_fleet
from edge.simulators.mqtt import SimulatedMqttDevice
from tests.drivers.benches import SharedClock
from tests.drivers.mqtt_peers import Peer, peer
from tests.servers import DeviceBroker

PROFILES = load_all()
CUBE = PROFILES["iwell_cube_mqtt"]
HERE = "iwell/cube-1"
Start = Callable[..., Awaitable[SimulatedMqttDevice]]


@pytest.fixture
def clock() -> SharedClock:
    return SharedClock()


@pytest.fixture
async def start(site_broker: DeviceBroker, clock: SharedClock) -> AsyncIterator[Start]:
    """A Cube that speaks for itself only at changes."""
    async with AsyncExitStack() as stack:

        async def build(**options: Any) -> SimulatedMqttDevice:
            settings = {"profile": CUBE, "period_s": 60, "retry_s": 0.02, **options}
            device = SimulatedMqttDevice(nameplate_kw=60, url=site_broker.url, clock=clock, **settings)
            await device.start()
            stack.push_async_callback(device.stop)
            await device.is_up()
            return device

        yield build


@pytest.fixture
async def visitor(site_broker: DeviceBroker) -> AsyncIterator[Peer]:
    async with peer(site_broker.url, f"{HERE}/state", f"{HERE}/setpoint/ack", f"{HERE}/availability") as one:
        yield one


def said(visitor: Peer, topic: str) -> list[Any]:
    return [
        json.loads(message.payload) if message.payload[:1] == b"{" else bytes(message.payload)
        for message in visitor.heard
        if message.topic.value == f"{HERE}/{topic}"
    ]


async def until(visitor: Peer, condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            visitor.news.clear()
            await visitor.news.wait()


def command(identifier: str = "1", power_w: object = 22_200, **more: object) -> dict[str, object]:
    return {"id": identifier, "ts": "2026-01-02T03:04:05Z", "max_power_w": power_w, "valid_s": 60, **more}


async def test_it_says_that_it_is_there_and_what_it_has(visitor, start):
    device = await start()

    await until(visitor, lambda: said(visitor, "state") and said(visitor, "availability"))

    assert said(visitor, "availability") == [b"online"]
    state = said(visitor, "state")[0]
    assert state["max_power_w"] == 60_000
    assert state["power_w"] == pytest.approx(1000 * device.machine.power_kw, abs=1)


async def test_it_speaks_every_period_unasked(visitor, start):
    await start(period_s=0.05)

    await until(visitor, lambda: len(said(visitor, "state")) >= 5)


async def test_a_command_is_answered_and_its_effect_is_said(visitor, start):
    device = await start()
    await visitor.say(f"{HERE}/setpoint", command())

    await until(visitor, lambda: said(visitor, "setpoint/ack") and said(visitor, "state")[-1:] != [])
    await until(visitor, lambda: said(visitor, "state")[-1]["max_power_w"] == 22_200)

    assert said(visitor, "setpoint/ack") == [{"id": "1", "accepted": True}]
    assert device.limit_in_force == pytest.approx(37)


async def test_a_command_that_comes_twice_is_answered_twice_and_carried_out_once(visitor, start):
    device = await start()
    for _ in range(2):
        await visitor.say(f"{HERE}/setpoint", command())

    await until(visitor, lambda: len(said(visitor, "setpoint/ack")) == 2)

    assert device.writes == {"setpoint": 1}
    assert device.commands == 2


@pytest.mark.parametrize("power_w", [None, "much", [1], {}])
async def test_what_is_no_value_is_refused_with_a_reason(visitor, start, power_w):
    device = await start()
    await visitor.say(f"{HERE}/setpoint", command(power_w=power_w))

    await until(visitor, lambda: said(visitor, "setpoint/ack"))

    assert said(visitor, "setpoint/ack") == [{"id": "1", "accepted": False, "reason": "not a value"}]
    assert device.limit_in_force == 100


@pytest.mark.parametrize("payload", ["{", b"\xff", "37", {"max_power_w": 1}, []])
async def test_what_is_no_command_is_none(visitor, start, payload):
    device = await start()
    await visitor.say(f"{HERE}/setpoint", payload)
    await visitor.say(f"{HERE}/setpoint", command())

    await until(visitor, lambda: said(visitor, "setpoint/ack"))

    assert said(visitor, "setpoint/ack") == [{"id": "1", "accepted": True}]
    assert device.writes == {"setpoint": 1}


async def test_a_setpoint_lapses_that_nobody_repeats(visitor, start, clock):
    device = await start()
    await visitor.say(f"{HERE}/setpoint", command())
    await until(visitor, lambda: said(visitor, "setpoint/ack"))
    clock.advance(59)
    assert device.limit_in_force == pytest.approx(37)

    clock.advance(2)

    assert device.limit_in_force == 100
    await device.tell()
    await until(visitor, lambda: said(visitor, "state")[-1]["max_power_w"] == 60_000)


@pytest.mark.parametrize(("naive", "limit"), [(False, 100), (True, 37)])
async def test_what_the_broker_kept_is_for_the_naive(visitor, start, naive, limit):
    await visitor.say(f"{HERE}/setpoint", command(), retain=True)
    device = await start(naive=naive)
    # What was kept comes before what is said now.
    await visitor.say(f"{HERE}/setpoint", "no command")
    async with asyncio.timeout(5):
        while device.commands < (2 if naive else 1):  # noqa: ASYNC110 - the device has no event for it
            await asyncio.sleep(0)

    assert device.limit_in_force == pytest.approx(limit)


async def test_its_end_is_told_by_the_broker_and_its_return_by_itself(visitor, start):
    device = await start()
    await device.set_fault(Fault.REFUSE)
    await until(visitor, lambda: said(visitor, "availability")[-1:] == [b"offline"])

    await device.set_fault(Fault.NONE)

    await until(visitor, lambda: said(visitor, "availability") == [b"online", b"offline", b"online"])


async def test_power_that_is_lost_costs_the_setpoint(visitor, start):
    device = await start()
    await visitor.say(f"{HERE}/setpoint", command())
    await until(visitor, lambda: said(visitor, "setpoint/ack"))

    await device.restart()
    await device.is_up()

    assert device.limit_in_force == 100
    await until(visitor, lambda: said(visitor, "availability")[-2:] == [b"offline", b"online"])


async def test_it_waits_for_a_broker_that_is_not_there_yet(site_broker, clock):
    site_broker.stop()
    device = SimulatedMqttDevice(
        profile=CUBE, nameplate_kw=60, url=site_broker.url, clock=clock, period_s=60, retry_s=0.02
    )
    await device.start()
    assert not device.connected

    site_broker.start()

    await device.is_up()
    await device.stop()
    assert not device.connected


async def test_commands_of_any_form_are_understood(visitor, start):
    point = msgspec.structs.replace(
        CUBE.points["setpoint"], payload="cap $value W for $valid_s s", ack_topic=""
    )
    profile = msgspec.structs.replace(CUBE, points={**CUBE.points, "setpoint": point})
    device = await start(profile=profile)
    await until(visitor, lambda: said(visitor, "state"))

    await visitor.say(f"{HERE}/setpoint", "cap 22200 W for 60 s")

    await until(visitor, lambda: said(visitor, "state")[-1]["max_power_w"] == 22_200)
    assert device.limit_in_force == pytest.approx(37)


async def test_a_fleet_has_mqtt_devices_each_with_its_name(site_broker):
    entries = [
        FleetDevice(
            tag=tag,
            profile="iwell_cube_mqtt",
            nameplate_kw=60,
            url=site_broker.url,
            parameters={"device": tag.lower()},
        )
        for tag in ("CUBE_1", "CUBE_2")
    ]
    fleet = build_fleet(Fleet(entries))
    assert [device.address for device in fleet.devices.values()] == [
        f"{site_broker.url} iwell/cube_1/state",
        f"{site_broker.url} iwell/cube_2/state",
    ]
    assert set(fleet.observers) == {"CUBE_1", "CUBE_2"}

    with pytest.raises(FleetError, match="CUBE_1: expected the url of its broker"):
        build_fleet(Fleet([msgspec.structs.replace(entries[0], url="")]))
