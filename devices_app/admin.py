"""Device types and devices in the console; every change goes through a service."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest

from devices_app import services
from devices_app.models import Device, DeviceType
from smartgrid.admin import ServiceAdmin


@admin.register(DeviceType)
class DeviceTypeAdmin(ServiceAdmin):
    list_display = ["name", "profile", "category", "protocol", "value_kind", "verified_on_hardware"]
    list_filter = ["category", "protocol", "verified_on_hardware"]
    search_fields = ["name", "profile", "id"]
    # The profile's facts come with this version of the software (`sync_device_types`).
    readonly_fields = ["id", "created_at", "verified_on_hardware", "profile_body"]

    def save_by_service(self, *, row: Any, values: dict[str, Any], is_new: bool) -> Model:
        if is_new:
            return services.device_type_create(**values)
        return services.device_type_update(device_type=row, **values)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return [*super().get_readonly_fields(request, obj), *(["profile"] if obj else [])]


@admin.register(Device)
class DeviceAdmin(ServiceAdmin):
    list_display = [
        "device_tag",
        "site",
        "node",
        "device_type",
        "category",
        "value",
        "include_in_curtailment",
        "measured_only",
    ]
    list_filter = ["category", "include_in_curtailment", "measured_only", "site", "device_type"]
    search_fields = ["device_tag", "id", "site__site_tag", "node__name", "modbus_server_host"]
    list_select_related = ["site", "node", "device_type"]
    readonly_fields = ["id", "created_at", "control_point", "value", "value_sequence"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return [*super().get_readonly_fields(request, obj), *(["node"] if obj else [])]

    def save_by_service(self, *, row: Any, values: dict[str, Any], is_new: bool) -> Model:
        if is_new:
            return services.device_create(**values)
        return services.device_update(device=row, **values)
