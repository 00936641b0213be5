"""The demo's fleet holds the guide's objects as the guide prints them, and is made the same any number of times."""

from __future__ import annotations

import uuid

import pytest

from devices_app.loop_view import loops_view
from devices_app.loops import loop_update
from devices_app.models import ClosedLoop, Device, DeviceType
from devices_app.services import device_update
from edge.profiles.loader import load_all
from edge.runtime import config as node_config
from edge.runtime.loop_plan import plan_loops
from sites_app.models import Node, Site
from smartgrid.demo.fleet import (
    DEVICES,
    DEVICES_BROKER,
    LOOPS,
    SITE_A,
    SITE_B,
    SWITCHBOARD,
    port_names,
    simulated_fleet,
)
from smartgrid.demo.seed import demo_fleet_ensure

PORTS = {name: 20_000 + number for number, name in enumerate((DEVICES_BROKER, SWITCHBOARD, *port_names()))}


def test_only_inverter_at_site_a_is_the_one_the_guide_answers_with():
    at_site_a = [device.tag for device in DEVICES if device.site is SITE_A and device.category == "inverter"]
    assert at_site_a == ["SMA_STP60_01"]


def test_every_device_has_a_profile_of_its_category():
    profiles = load_all()
    assert {device.tag: str(profiles[device.profile].category) for device in DEVICES} == {
        device.tag: device.category for device in DEVICES
    }


def test_no_two_devices_share_a_tag_an_id_or_a_port():
    fleet = simulated_fleet(PORTS, password="secret")["devices"]
    ports = [port for device in fleet for key in ("port", "observe_port") if (port := device[key])]
    assert len(set(ports)) == len(ports) == len(port_names())
    assert len({device.id for device in DEVICES}) == len({device.tag for device in DEVICES}) == len(DEVICES)


def test_every_profile_has_a_device():
    assert {device.profile for device in DEVICES} == load_all().keys()


def test_there_is_an_inverter_without_a_pause_and_a_meter_at_each_site():
    profiles = load_all()
    assert any(not profiles[device.profile].min_gap_ms for device in DEVICES if device.category == "inverter")
    assert len({device.site.tag for device in DEVICES if device.category == "meter"}) >= 2


@pytest.mark.django_db
def test_guide_objects_have_the_guides_ids():
    demo_fleet_ensure(time_limit_s=60, ports=PORTS, devices_password="secret")
    sma = Device.objects.select_related("device_type", "node", "site").get(
        pk=uuid.UUID("a5b6c7d8-e9f0-1a2b-3c4d-5e6f7a8b9c0d")
    )
    assert (sma.device_tag, sma.peak_power_kw, sma.default_value) == ("SMA_STP60_01", 60, 100)
    assert str(sma.device_type_id) == "9c0d8b7a-6f5e-4d3c-2b1a-0f9e8d7c6b5a"
    assert str(sma.node_id) == "14b3c7a0-5e9d-4f21-bd8a-6c1e2d3f4a5b"
    assert (sma.node.name, sma.node.iothub) == ("node-01", "iothub-euw-polaris-engineering")
    assert (sma.site.site_tag, sma.site.name, sma.site.tenant_tag) == (
        "solarpanel_site_a",
        "Solar Panel Site A",
        "tenant-123",
    )
    charger = Device.objects.get(device_tag="EV_CHARGER_01")
    assert (charger.default_value, charger.peak_power_kw) == (80, 22)
    assert Device.objects.get(device_tag="METER_SITE_A").measured_only


@pytest.mark.django_db
def test_second_start_changes_only_ports_and_time_limit():
    demo_fleet_ensure(time_limit_s=60, ports=PORTS, devices_password="secret")
    device_update(device=Device.objects.get(device_tag="GENERIC_PV_01"), default_value=90)
    counts = [model.objects.count() for model in (Site, Node, DeviceType, Device)]

    moved = {**PORTS, "device:GENERIC_PV_01": 30_000}
    demo_fleet_ensure(time_limit_s=3, ports=moved, devices_password="secret")

    assert [model.objects.count() for model in (Site, Node, DeviceType, Device)] == counts
    device = Device.objects.get(device_tag="GENERIC_PV_01")
    assert (device.default_value, device.modbus_server_port) == (90, 30_000)
    assert set(Site.objects.values_list("curtailment_time_limit", flat=True)) == {3}


@pytest.mark.django_db
def test_same_start_again_sends_the_nodes_nothing_new():
    demo_fleet_ensure(time_limit_s=60, ports=PORTS, devices_password="secret")
    versions = dict(Node.objects.values_list("name", "manifest_version"))
    demo_fleet_ensure(time_limit_s=60, ports=PORTS, devices_password="secret")
    assert dict(Node.objects.values_list("name", "manifest_version")) == versions


@pytest.mark.django_db
def test_loop_is_made_once_and_stays_as_it_was_changed():
    demo_fleet_ensure(time_limit_s=60, ports=PORTS, devices_password="secret")
    loop = ClosedLoop.objects.get()
    assert (loop.site.site_tag, loop.meter.device_tag) == ("one_of_each", "DEMO_METER_01")
    (view,) = loops_view([loop])
    assert [member.device_tag for member in view.members] == ["DEMO_WIND_TURBINE_01", "PROXY_DEVICE_01"]
    assert view.left_out == {}
    # And its node can use it.
    found = node_config.plan(loop.node.documents.get(name="config").body)
    assert plan_loops(found.loops, found.devices, unusable=found.refused).refused == {}
    loop_update(loop=loop, by="test", setpoint_kw=90)
    demo_fleet_ensure(time_limit_s=60, ports=PORTS, devices_password="secret")
    assert ClosedLoop.objects.get().setpoint_kw == 90


def test_loops_are_not_where_the_guide_looks():
    assert {loop.site.tag for loop in LOOPS}.isdisjoint({SITE_A.tag, SITE_B.tag})
