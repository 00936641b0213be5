"""What the database itself refuses, however a row gets there."""

from __future__ import annotations

import pytest
from django.db import IntegrityError
from django.db.models import F

from devices_app.models import Device, DeviceBound, DeviceType, RetiringDevice
from devices_app.services import device_bound_set, device_delete
from tests.factories import device_make, device_type_make, node_make

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    "change",
    [
        {"default_value": 101},
        {"default_value": -1},
        {"min_value": 60, "max_value": 40, "default_value": 50},
        {"peak_power_kw": 0},
        {"modbus_server_port": 0},
        {"modbus_server_port": 65536},
        {"modbus_id": 256},
        {"lifetime": "sometimes"},
        {"telemetry_s": 0},
        {"category": "a/b"},
        {"device_tag": ""},
        {"ramp_pct_per_min": 0},
        {"controlled_by_id": F("id"), "measured_only": True, "control_point": None},
    ],
)
def test_database_refuses(change):
    device = device_make()
    with pytest.raises(IntegrityError):
        Device.objects.filter(pk=device.pk).update(**change)


def test_database_refuses_a_second_owner_of_a_control_point():
    first = device_make()
    second = device_make(node=first.node)
    with pytest.raises(IntegrityError):
        Device.objects.filter(pk=second.pk).update(control_point=first.control_point)


def test_database_refuses_a_measured_device_which_owns_a_control_point():
    device = device_make()
    with pytest.raises(IntegrityError):
        Device.objects.filter(pk=device.pk).update(measured_only=True)


def test_database_refuses_a_second_device_with_the_tag_at_its_site():
    first = device_make()
    second = device_make(node=first.node)
    with pytest.raises(IntegrityError):
        Device.objects.filter(pk=second.pk).update(device_tag=first.device_tag)


def test_another_site_may_use_the_same_device_tag():
    first = device_make()
    assert device_make(node=node_make(), device_tag=first.device_tag)


@pytest.mark.parametrize(
    "change", [{"value_kind": "guess"}, {"default_value": 101}, {"profile": ""}, {"name": ""}]
)
def test_database_refuses_a_device_type(change):
    device_type = device_type_make()
    with pytest.raises(IntegrityError):
        DeviceType.objects.filter(pk=device_type.pk).update(**change)


def test_database_refuses_a_device_behind_another_that_is_written_without_a_control_point():
    owner = device_make()
    child = device_make(node=owner.node)
    with pytest.raises(IntegrityError):
        Device.objects.filter(pk=child.pk).update(controlled_by=owner, control_point=None)


@pytest.mark.parametrize(
    "change", [{"minimum": 99}, {"maximum": None}, {"origin": "nobody"}, {"origin": "trader"}]
)
def test_database_refuses_a_bound(change):
    device = device_make()
    device_bound_set(device=device, origin="trader", by="operator", minimum=10)
    bound = device_bound_set(device=device, origin="owner", by="operator", maximum=90)
    with pytest.raises(IntegrityError):
        DeviceBound.objects.filter(pk=bound.pk).update(**change)


def test_database_refuses_a_device_abandoned_by_nobody():
    device_delete(device=device_make())
    with pytest.raises(IntegrityError):
        RetiringDevice.objects.update(abandoned_at=F("since"))
