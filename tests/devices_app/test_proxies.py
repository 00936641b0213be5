"""Proxies at central: who may be behind one, and what their node is told (rule 22)."""

from __future__ import annotations

import msgspec
import pytest
from django.db import IntegrityError, transaction

from devices_app.config import node_config_render
from devices_app.models import Device, RetiringDevice
from devices_app.services import device_create, device_delete, device_move, device_update
from edge.runtime import config
from edge.wire.messages import DeviceConfig
from smartgrid.errors import Conflict, Invalid
from tests.factories import device_make, device_type_make, meter_type_make, node_make, proxy_type_make

pytestmark = pytest.mark.django_db


@pytest.fixture
def node():
    return node_make(name="node-01")


@pytest.fixture
def park(node):
    return proxy_make(node, "PARK_01")


def proxy_make(node, tag, **fields):
    return device_make(node=node, device_type=proxy_type_make(), device_tag=tag, **fields)


def entry_of(device: Device) -> DeviceConfig:
    devices = node_config_render(device.node)["devices"]
    return next(
        msgspec.convert(entry, DeviceConfig) for entry in devices if entry["tag"] == device.device_tag
    )


def test_proxy_has_no_address_and_its_children_keep_their_control_points(node, park):
    child = device_make(node=node, controlled_by=park)
    assert (park.modbus_server_host, park.modbus_id, park.control_point) == (None, None, "proxy/PARK_01")
    assert (child.measured_only, child.control_point is None) == (False, False)
    with pytest.raises(Conflict):
        device_make(node=node, modbus_server_port=child.modbus_server_port)


def test_node_takes_what_central_says_of_a_proxy_and_its_children(node, park):
    child = device_make(node=node, controlled_by=park)
    roof = proxy_make(node, "ROOF_01", controlled_by=park)
    below = device_make(node=node, controlled_by=roof)
    assert (entry_of(child).owned_by, entry_of(child).measured_only) == ("PARK_01", False)
    plan = config.plan(node_config_render(node))
    assert plan.refused == {}
    proxies = {tag: planned.settings.proxy for tag, planned in plan.devices.items()}
    assert proxies == {
        "PARK_01": None,
        "ROOF_01": "PARK_01",
        child.device_tag: "PARK_01",
        below.device_tag: "ROOF_01",
    }


def test_device_comes_under_a_proxy_and_leaves_it_without_being_retired(node, park):
    child = device_make(node=node)
    before = child.config_id
    child = device_update(device=child, controlled_by=park)
    child = device_update(device=child, controlled_by=None)
    assert child.config_id == before
    assert not RetiringDevice.objects.exists()


def test_proxies_close_no_ring(node, park):
    roof = proxy_make(node, "ROOF_01", controlled_by=park)
    shed = proxy_make(node, "SHED_01", controlled_by=roof)
    with pytest.raises(Invalid) as refusal:
        device_update(device=park, controlled_by=shed)
    assert refusal.value.errors == {
        "controlled_by": ["it controls itself through SHED_01 < ROOF_01 < PARK_01"]
    }
    with pytest.raises(Invalid):
        device_update(device=park, controlled_by=park)
    assert Device.objects.get(pk=park.pk).controlled_by is None


def test_proxy_and_children_are_on_one_node(node, park):
    elsewhere = node_make(site=node.site)
    with pytest.raises(Invalid, match="same node"):
        device_make(node=elsewhere, controlled_by=park)
    child = device_make(node=node, controlled_by=park)
    for device in (park, child):
        with pytest.raises((Conflict, Invalid)):
            device_move(device=device, node=elsewhere)
    with pytest.raises(Conflict):
        device_delete(device=park)


def test_what_is_only_measured_cannot_follow_a_proxy(node, park):
    for fields in ({"device_type": meter_type_make()}, {"measured_only": True}):
        with pytest.raises(Invalid) as refusal:
            device_make(node=node, device_tag="METER", controlled_by=park, **fields)
        assert refusal.value.errors == {
            "controlled_by": ["METER is only measured, and cannot follow PARK_01"]
        }


def test_child_whose_value_means_something_else_cannot_follow(node, park):
    pump = device_type_make(profile="pump", value_kind="operating_mode", category="heat_pump")
    with pytest.raises(Invalid) as refusal:
        device_make(node=node, device_tag="PUMP", device_type=pump, controlled_by=park)
    assert refusal.value.errors["controlled_by"] == [
        "the operating_mode of PUMP cannot follow the active_power_limit_pct of PARK_01"
    ]
    battery = device_type_make(profile="battery", value_kind="power_cap_pct", category="battery")
    assert device_make(node=node, device_type=battery, controlled_by=park).control_point


def test_proxy_does_not_become_a_device_while_others_follow_it_nor_a_device_a_proxy(node, park):
    inverter = device_make(node=node)
    device_make(node=node, device_tag="FOLLOWER", controlled_by=park)
    device_make(node=node, device_tag="BEHIND", controlled_by=inverter)
    with pytest.raises(Conflict, match="FOLLOWER is not to be measured only"):
        device_update(
            device=park,
            device_type=inverter.device_type,
            modbus_server_host="192.0.2.9",
            modbus_server_port=502,
            modbus_id=1,
        )
    with pytest.raises(Conflict, match="BEHIND is only measured behind it"):
        device_update(device=inverter, device_type=proxy_type_make())


def test_logger_may_follow_a_proxy_with_those_that_are_measured_behind_it(node, park):
    logger = device_make(node=node, device_tag="LOGGER")
    behind = device_make(node=node, controlled_by=logger)
    logger = device_update(device=logger, controlled_by=park)
    assert (logger.measured_only, behind.measured_only) == (False, True)


def test_database_keeps_a_controlled_device_measured_or_with_a_control_point(node, park):
    child = device_make(node=node, controlled_by=park)
    with pytest.raises(IntegrityError), transaction.atomic():
        Device.objects.filter(pk=child.pk).update(control_point=None)


def test_proxy_is_created_by_its_type_alone(node):
    created = device_create(node=node, device_type=proxy_type_make(), device_tag="PARK_02")
    assert (created.category, created.max_value) == ("park", 100)
