"""Devices in the API's spelling; fields and their order are the guide's."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from devices_app.models import Device
from smartgrid.api.fields import NumberField, TimestampField


class DeviceOutput(serializers.Serializer[Device]):
    id = serializers.UUIDField()
    created_at = TimestampField()
    device_tag = serializers.CharField()
    node_id = serializers.UUIDField()
    device_type_id = serializers.UUIDField()
    max_value = NumberField()
    min_value = NumberField()
    default_value = NumberField()
    value = NumberField(allow_null=True)
    meta_data = serializers.JSONField()
    include_in_curtailment = serializers.BooleanField()
    category = serializers.CharField()
    peak_power_kw = NumberField(allow_null=True)


class DeviceDetailOutput(DeviceOutput):
    """With the address, where the device's protocol is Modbus."""

    modbus_server_host = serializers.CharField()
    modbus_server_port = serializers.IntegerField()
    modbus_id = serializers.IntegerField()

    def to_representation(self, instance: Device) -> dict[str, Any]:
        shown = super().to_representation(instance)
        if not instance.device_type.speaks_modbus:
            for key in ("modbus_server_host", "modbus_server_port", "modbus_id"):
                del shown[key]
        return shown
