"""What the database itself refuses, however a row gets there."""

from __future__ import annotations

import pytest
from django.db import IntegrityError

from devices_app.models import Device, DeviceType
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
