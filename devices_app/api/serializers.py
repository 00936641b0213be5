"""Devices in the API's spelling; fields and their order are the guide's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rest_framework import serializers

from devices_app.models import Device, is_modbus
from smartgrid.api.fields import NumberField, ObjectField, TimestampField
from smartgrid.api.output import Output, Shown


class DeviceOutput(Output[Device]):
    id = serializers.UUIDField()
    created_at = TimestampField()
    device_tag = serializers.CharField()
    node_id = serializers.UUIDField()
    device_type_id = serializers.UUIDField()
    max_value = NumberField()
    min_value = NumberField()
    default_value = NumberField()
    value = NumberField(allow_null=True)
    meta_data = ObjectField()
    include_in_curtailment = serializers.BooleanField()
    category = serializers.CharField()
    peak_power_kw = NumberField(allow_null=True)


MODBUS_PLACE = ("modbus_server_host", "modbus_server_port")


class DeviceDetailOutput(DeviceOutput):
    """With the address, as far as the device has what these keys are called for.

    None of them but where its protocol is Modbus; without host and port where it is on a serial line of its
    node, which leaves its unit. Serial ports, URLs and user names are the console's to show, not the API's.
    """

    # Described as what may be absent; they are only ever shown.
    modbus_server_host = serializers.CharField(required=False)
    modbus_server_port = serializers.IntegerField(required=False)
    modbus_id = serializers.IntegerField(required=False)

    beside = ("device_type__protocol", "serial_port")

    @classmethod
    def finish(cls, shown: Shown, beside: Sequence[Any]) -> Shown:
        protocol, serial_port = beside
        absent: tuple[str, ...] = ()
        if not is_modbus(protocol):
            absent = (*MODBUS_PLACE, "modbus_id")
        elif serial_port:
            absent = MODBUS_PLACE
        for key in absent:
            del shown[key]
        return shown
