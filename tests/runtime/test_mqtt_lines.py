"""Rule 19 over a broker, in real time: who shares it with a dead device, and what a write is owed meanwhile."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from edge.drivers.mqtt import MqttDriver, MqttSession
from edge.profiles.loader import load_bodies
from edge.profiles.reading import profile_from_builtins
from edge.runtime.bus import Bus
from edge.simulators.device import Fault
from edge.simulators.mqtt import SimulatedMqttDevice
from edge.wire.messages import Code
from tests.runtime.lines import NAMEPLATE_KW, Lines, running
from tests.servers import DeviceBroker

# In real time, with a real broker: not for a suite that shares its machine with others.
pytestmark = pytest.mark.long

BODY = load_bodies()["generic_mqtt_inverter"]
TIMEOUT_S = 0.4


class Stage:
    """A bus to one broker, and devices behind it."""

    def __init__(self, broker: DeviceBroker, lines: Lines, stack: AsyncExitStack) -> None:
        self.broker, self.lines = broker, lines
        self.devices: dict[str, SimulatedMqttDevice] = {}
        self._stack = stack
        self.bus = Bus(name=broker.url, clock=lines.clock, listener=lines, min_gap_s=0.0)
        self.session = MqttSession(
            url=broker.url,
            username="",
            password="",
            timeout_s=TIMEOUT_S,
            min_gap_s=0.0,
            clock=lines.clock.boottime_s,
            sleep=self.bus.gap,
        )
        self.bus.attach(self.session)

    async def add(self, *tags: str) -> None:
        for tag in tags:
            profile = msgspec.structs.replace(
                profile_from_builtins(BODY, {"device": tag}), timeout_ms=int(1000 * TIMEOUT_S)
            )
            device = self.devices[tag] = SimulatedMqttDevice(
                profile=profile,
                nameplate_kw=NAMEPLATE_KW,
                url=self.broker.url,
                clock=self.lines.clock.boottime_s,
                period_s=0.2,
                retry_s=0.1,
            )
            await device.start()
            self._stack.push_async_callback(device.stop)
            watched: Any = device
            self.lines.watch(tag, watched)
            driver = MqttDriver(session=self.session, profile=profile, unit=1, nameplate_kw=NAMEPLATE_KW)
            self.bus.add(tag, driver, poll_s=0.5, tolerance=0.5, settable=True)
            self.lines.buses[tag] = self.bus

    async def run(self) -> None:
        self.lines.run(self.bus)
        await self.lines.until(lambda: all(self.lines.polls.get(tag) for tag in self.devices))

    async def takes(self, tag: str, value: float) -> None:
        await self.lines.until(lambda: self.devices[tag].limit_in_force == pytest.approx(value))


@pytest.fixture
async def stage(site_broker: DeviceBroker) -> AsyncIterator[Stage]:
    async with running() as (lines, stack):
        yield Stage(site_broker, lines, stack)


@pytest.mark.parametrize("death", [Fault.REFUSE, Fault.SILENT])
async def test_dead_device_delays_no_write_to_those_who_share_its_broker(stage, death):
    live = [f"live-{number}" for number in range(5)]
    await stage.add(*live, "dead")
    await stage.run()
    await stage.devices["dead"].set_fault(death)
    stage.bus.write("dead", 50, verify=False)
    await stage.lines.until(lambda: stage.lines.lost_tags == ["dead"])
    stage.lines.tasks.append(asyncio.create_task(stage.lines.command_each_second("dead")))

    took = await stage.lines.write_in_turn(live, every_s=0.02, for_s=3.0)

    assert statistics.median(took) < 0.1
    # At most what the dead one may take of the line at once.
    assert max(took) < TIMEOUT_S + 0.5
    assert stage.lines.lost_tags == ["dead"]


async def test_device_that_returns_to_its_broker_has_its_write_at_once(stage):
    await stage.add("one", "other")
    await stage.run()
    await stage.devices["one"].set_fault(Fault.REFUSE)
    ticket = stage.bus.write("one", 30, verify=False)
    await stage.lines.until(lambda: ticket in stage.lines.outcomes)
    outcome = stage.lines.outcomes.pop(ticket)
    assert (outcome.code, outcome.still_trying) == (Code.WRITE_FAILED, True)
    assert "says offline" in outcome.detail

    await stage.devices["one"].set_fault(Fault.NONE)

    assert await stage.lines.until(lambda: ticket in stage.lines.outcomes) < 3.0
    assert stage.lines.outcomes[ticket].code is None
    assert stage.devices["one"].limit_in_force == 30
    assert stage.devices["one"].writes["setpoint"] == 1


async def test_write_that_is_owed_when_the_broker_restarts_is_the_newest_and_no_other(stage):
    await stage.add("one")
    await stage.run()
    stage.bus.write("one", 80, verify=False)
    await stage.takes("one", 80)
    stage.broker.stop()
    old = stage.bus.write("one", 30, verify=False)
    await stage.lines.until(lambda: old in stage.lines.outcomes)
    assert stage.lines.outcomes[old].still_trying
    new = stage.bus.write("one", 70, verify=False)
    await stage.lines.until(lambda: new in stage.lines.outcomes)
    del stage.lines.outcomes[new]

    stage.broker.start()

    assert await stage.lines.until(lambda: new in stage.lines.outcomes) < 5.0
    assert stage.lines.outcomes[new].code is None
    assert stage.devices["one"].limit_in_force == 70
    assert stage.devices["one"].writes["setpoint"] == 2


async def test_setpoint_lapses_at_the_device_when_all_of_ours_is_gone(stage):
    await stage.add("one")
    await stage.run()
    stage.bus.write("one", 30, verify=False)
    await stage.takes("one", 30)
    now_s = stage.lines.clock.boottime_s()

    stage.devices["one"].clock = lambda: now_s + 61
    assert stage.devices["one"].limit_in_force == 100
