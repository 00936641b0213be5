"""One suite for every driver and profile: what the runtime relies on.

Over real sockets, and once more without any: the drivers of the simulated site keep the same contract, or its
tests would prove nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from edge.drivers.errors import DeviceRefused, DeviceUnreachable
from edge.profiles.loader import load_all
from edge.profiles.model import Profile
from edge.simulators.device import Fault
from tests.drivers.conftest import NAMEPLATE_KW, SharedClock
from tests.simulation.devices import SimulatedBench, bench_for

PROFILES = load_all()
CONTROLLABLE = sorted(name for name, profile in PROFILES.items() if profile.controllable)
# A few devices take a setpoint and show it nowhere.
READABLE = sorted(name for name, profile in PROFILES.items() if profile.limit and profile.limit.readback)
BLIND = sorted(set(CONTROLLABLE) - set(READABLE))
ALL = sorted(PROFILES)
MEASURING = sorted(name for name, profile in PROFILES.items() if "P_kW" in profile.telemetry)
TOLERANCE = {name: profile.limit.tolerance for name, profile in PROFILES.items() if profile.limit}


@pytest.fixture(params=["modbus", "simulated"])
def bench(request: pytest.FixtureRequest, bench: Any, clock: SharedClock) -> Callable[..., Awaitable[Any]]:
    """A device on the bench by profile: on a socket, or in memory."""
    if request.param == "modbus":
        return bench  # type: ignore[no-any-return]

    async def build(
        profile: Profile | str, *, connect: bool = True, timeout_s: float = 2.0
    ) -> SimulatedBench[SharedClock]:
        chosen = PROFILES[profile] if isinstance(profile, str) else profile
        made = bench_for(chosen, clock=clock, timeout_s=timeout_s, nameplate_kw=NAMEPLATE_KW)
        if connect:
            await made.session.connect()
        return made

    return build


@pytest.mark.parametrize("name", CONTROLLABLE)
async def test_every_setpoint_written_is_the_setpoint_in_force(bench, name):
    bench = await bench(name)

    for setpoint in (0.0, 37.0, 100.0, 64.0):
        await bench.driver.write(setpoint)

        if name in READABLE:
            assert await bench.driver.read_setpoint() == pytest.approx(setpoint, abs=TOLERANCE[name])
        assert bench.device.limit_in_force == pytest.approx(setpoint, abs=TOLERANCE[name])
    assert bench.device.gap_violations == []


@pytest.mark.parametrize("name", BLIND)
async def test_a_setpoint_that_nothing_shows_is_not_claimed_to_be_known(bench, name):
    bench = await bench(name)

    await bench.driver.write(37)

    assert await bench.driver.read_setpoint() is None
    assert (await bench.driver.poll()).readback is None


@pytest.mark.parametrize("name", ALL)
async def test_the_right_device_is_recognised(bench, name):
    bench = await bench(name)

    await bench.driver.identify()


@pytest.mark.parametrize("name", [name for name in ALL if PROFILES[name].identity.checks])
async def test_a_device_of_another_type_is_not_controlled(bench, name):
    bench = await bench(name)
    check = PROFILES[name].identity.checks[-1]
    bench.device.registers.set(check.point, 7)

    with pytest.raises(DeviceRefused, match=f"{check.point}.* reads 7, expected "):
        await bench.driver.identify()


@pytest.mark.parametrize("name", [name for name in ALL if PROFILES[name].identity.nameplate])
async def test_a_nameplate_more_than_a_tenth_off_is_refused(bench, name):
    bench = await bench(name)
    bench.device.registers.set(PROFILES[name].identity.nameplate, 50)

    with pytest.raises(DeviceRefused, match="is rated 50 kW, configured are 60 kW"):
        await bench.driver.identify()


@pytest.mark.parametrize("name", ALL)
async def test_readings_come_under_their_canonical_keys(bench, name):
    bench = await bench(name)

    readings = (await bench.driver.poll()).readings

    assert set(readings) == set(PROFILES[name].telemetry) == set(bench.driver.telemetry_units)
    assert all(value is not None for value in readings.values())


@pytest.mark.parametrize("name", MEASURING)
async def test_power_is_what_the_machine_gives_towards_the_grid(bench, name):
    bench = await bench(name)

    readings = (await bench.driver.poll()).readings

    # Devices that count in steps of 10 W show as much.
    assert readings["P_kW"] == pytest.approx(bench.device.machine.power_kw, abs=0.01)
    assert readings["P_kW"] != 0


@pytest.mark.parametrize("name", ALL)
async def test_pauses_are_kept_over_all_commands_and_reconnects(bench, name):
    bench = await bench(name)

    await bench.driver.identify()
    await bench.driver.poll()
    if PROFILES[name].controllable:
        await bench.driver.write(50)
        await bench.driver.read_setpoint()
    await bench.session.connect()
    await bench.driver.poll()

    assert bench.device.gap_violations == []
    if PROFILES[name].min_gap_ms:
        assert bench.session.next_command_at == bench.clock() + PROFILES[name].min_gap_ms / 1000
        # One wait for each command but the first, the one after the reconnect among them.
        assert len(bench.clock.waits) == bench.device.commands - 1
    else:
        assert bench.clock.waits == []


@pytest.mark.parametrize("name", CONTROLLABLE)
async def test_a_write_takes_the_commands_it_says(bench, name):
    bench = await bench(name)
    await bench.driver.write(80)
    for setpoint in (40.0, 100.0):
        before = bench.device.commands

        await bench.driver.write(setpoint)

        assert bench.device.commands - before <= bench.driver.commands_per_write


@pytest.mark.parametrize("name", ALL)
async def test_a_poll_takes_the_commands_it_says(bench, name):
    bench = await bench(name)
    await bench.driver.poll()
    said, before = bench.driver.commands_per_poll, bench.device.commands

    await bench.driver.poll()

    assert bench.device.commands - before == said


@pytest.mark.parametrize("name", READABLE)
async def test_a_poll_brings_the_setpoint_in_force(bench, name):
    bench = await bench(name)
    for setpoint in (37.0, 100.0):
        await bench.driver.write(setpoint)

        result = await bench.driver.poll()

        assert result.readback == pytest.approx(setpoint, abs=TOLERANCE[name])
        assert result.readback == await bench.driver.read_setpoint()


@pytest.mark.parametrize("name", [name for name in ALL if not PROFILES[name].controllable])
async def test_a_poll_of_a_meter_brings_no_setpoint(bench, name):
    bench = await bench(name)

    assert (await bench.driver.poll()).readback is None


@pytest.mark.parametrize("name", CONTROLLABLE)
async def test_a_setpoint_outside_the_profile_is_refused_and_not_clamped(bench, name):
    bench = await bench(name)

    with pytest.raises(DeviceRefused, match="101 is outside 0 to 100"):
        await bench.driver.write(101)
    assert bench.device.commands == 0


@pytest.mark.parametrize("name", CONTROLLABLE)
async def test_a_device_that_refuses_a_write_says_why(bench, name):
    bench = await bench(name)
    await bench.device.set_fault(Fault.WRITE_EXCEPTION)

    with pytest.raises(DeviceRefused, match=r"refused to write registers? \d+: .*\(Modbus exception 4\)"):
        await bench.driver.write(37)
    assert bench.session.connected


@pytest.mark.parametrize("name", READABLE)
async def test_an_acknowledged_but_ignored_write_shows_in_the_readback(bench, name):
    bench = await bench(name)
    await bench.device.set_fault(Fault.IGNORE_WRITES)

    await bench.driver.write(37)

    assert await bench.driver.read_setpoint() == 100


@pytest.mark.parametrize("name", ALL)
async def test_a_silent_device_is_unreachable_and_the_line_is_closed(bench, name):
    bench = await bench(name, timeout_s=0.2)
    await bench.device.set_fault(Fault.SILENT)

    with pytest.raises(DeviceUnreachable, match=r"no answer from 127\.0\.0\.1:\d+ unit \d+ within 0\.2 s"):
        await bench.driver.poll()
    assert not bench.session.connected
    with pytest.raises(DeviceUnreachable, match="not connected"):
        await bench.driver.poll()


@pytest.mark.parametrize("name", ALL)
async def test_a_device_that_is_gone_is_unreachable(bench, name):
    bench = await bench(name, connect=False)
    await bench.device.set_fault(Fault.REFUSE)

    with pytest.raises(DeviceUnreachable, match=r"no connection to 127\.0\.0\.1:\d+: .*"):
        await bench.session.connect()
    assert not bench.session.connected


@pytest.mark.parametrize("name", CONTROLLABLE)
async def test_a_device_that_comes_back_takes_setpoints_again(bench, name):
    bench = await bench(name)
    await bench.driver.write(80)
    await bench.device.set_fault(Fault.REFUSE)
    with pytest.raises(DeviceUnreachable):
        await bench.driver.write(37)
    await bench.device.set_fault(Fault.NONE)

    await bench.session.connect()
    await bench.driver.write(37)

    assert bench.device.limit_in_force == pytest.approx(37, abs=TOLERANCE[name])


@pytest.mark.parametrize("name", [name for name in ALL if not PROFILES[name].controllable])
async def test_a_meter_takes_no_setpoint(bench, name):
    bench = await bench(name)

    with pytest.raises(DeviceRefused, match="only measured"):
        await bench.driver.write(37)
    assert bench.driver.commands_per_write == 0


async def test_a_value_that_the_device_has_not_is_none_and_never_zero(bench):
    bench = await bench("generic_modbus_battery")
    bench.device.shown["state_of_charge"] = None

    readings = (await bench.driver.poll()).readings

    assert readings["SoC_pct"] is None
    assert readings["P_kW"] is not None


async def test_a_refused_block_costs_only_its_own_readings(bench):
    bench = await bench("sungrow_sg110cx")
    bench.device.registers.remove("energy")

    readings = (await bench.driver.poll()).readings

    assert readings["E_kWh"] is None
    assert readings["P_kW"] == pytest.approx(60)
