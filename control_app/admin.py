"""Requests and logs in the console: to read. Nobody edits what has happened."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest

from control_app.models import ControlCommand, ControlLog, ControlRequest, DeviceErrorLog, NodeEvent
from smartgrid.admin import AnyModelAdmin


class ReadOnlyAdmin(AnyModelAdmin):
    """A record: seen, not touched."""

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002 - Django's hook
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:  # noqa: ARG002 - Django's hook
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:  # noqa: ARG002 - Django's hook
        return False


@admin.register(ControlRequest)
class ControlRequestAdmin(ReadOnlyAdmin):
    site_path = "site"
    list_display = ("created_at", "site", "category", "value", "status", "client_id")
    list_filter = ("status", "category", "site")
    list_select_related = ("site",)
    date_hierarchy = "created_at"


@admin.register(ControlCommand)
class ControlCommandAdmin(ReadOnlyAdmin):
    site_path = "node__site"
    list_display = ("sequence", "node", "state", "deadline", "values")
    list_filter = ("state", "node")
    list_select_related = ("node",)


@admin.register(ControlLog)
class ControlLogAdmin(ReadOnlyAdmin):
    site_path = "site"
    list_display = ("created_at", "site", "category", "value", "status", "watchdog", "reason")
    list_filter = ("watchdog", "status", "category", "site")
    list_select_related = ("site",)
    date_hierarchy = "created_at"


@admin.register(DeviceErrorLog)
class DeviceErrorLogAdmin(ReadOnlyAdmin):
    site_path = "site"
    list_display = ("timestamp", "site", "device_tag", "error")
    list_filter = ("site",)
    list_select_related = ("site",)
    search_fields = ("device_tag", "error")
    date_hierarchy = "timestamp"


@admin.register(NodeEvent)
class NodeEventAdmin(ReadOnlyAdmin):
    site_path = "node__site"
    list_display = ("at", "node", "kind", "reason")
    list_filter = ("kind", "node")
    list_select_related = ("node",)
    search_fields = ("kind", "reason", "entry")
    date_hierarchy = "at"
