"""One of each: every profile of which there is hardware has its simulated device."""

from __future__ import annotations

import pytest

from edge.profiles.loader import load_all
from edge.profiles.model import Profile
from edge.profiles.points import Protocol
from edge.simulators.device import Fault
from edge.simulators.fleet import BUILDERS, Fleet, FleetDevice, SimulatedFleet, build_fleet

PROFILES = {name: one for name, one in load_all().items() if not one.protocol.is_inside}


def entry(profile: Profile) -> FleetDevice:
    protocol = profile.protocol
    return FleetDevice(
        tag=profile.name,
        profile=profile.name,
        nameplate_kw=60,
        unit=profile.default_unit,
        url="mqtt://127.0.0.1:1" if protocol is Protocol.MQTT else "",
        line=profile.name if protocol is Protocol.MODBUS_RTU else "",
        site=profile.name,
    )


@pytest.fixture(scope="module")
def fleet() -> SimulatedFleet:
    """All of them, each at a site of its own, on a clock that stands still."""
    return build_fleet(Fleet(devices=[entry(profile) for profile in PROFILES.values()]), clock=lambda: 0.0)


def test_nothing_of_hardware_is_without_a_simulator():
    assert {one.protocol for one in PROFILES.values()} <= BUILDERS.keys()


@pytest.mark.parametrize("name", PROFILES)
def test_each_profile_makes_a_device_that_is_what_its_profile_expects(fleet, name):
    device, profile = fleet.devices[name], PROFILES[name]
    device.measure()

    for check in profile.identity.checks:
        assert check.holds(device.get(check.point)), check
    if profile.identity.nameplate is not None:
        assert device.get(profile.identity.nameplate) == pytest.approx(60, rel=0.05)
    state = device.state()
    assert state["fault"] == Fault.NONE
    assert (state["limit_in_force"] is None) is not profile.controllable


@pytest.mark.parametrize("name", PROFILES)
def test_each_device_has_a_value_for_all_its_telemetry(fleet, name):
    device, profile = fleet.devices[name], PROFILES[name]
    device.measure()

    without = [key for key, point in profile.telemetry.items() if device.get(point) is None]

    assert without == []


@pytest.mark.parametrize("name", [name for name, one in PROFILES.items() if "P_kW" in one.telemetry])
def test_power_of_each_device_is_its_machines(fleet, name):
    device, profile = fleet.devices[name], PROFILES[name]
    device.measure()

    assert device.get(profile.telemetry["P_kW"]) == pytest.approx(device.machine.power_kw, abs=0.6)
