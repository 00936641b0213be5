"""Schedules in the console; every change goes through a service."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest

from schedules_app import services
from schedules_app.models import Schedule
from smartgrid.admin import ServiceAdmin


@admin.register(Schedule)
class ScheduleAdmin(ServiceAdmin):
    list_display = ["site", "category", "valid_on", "created_at"]
    list_filter = ["category", "site"]
    search_fields = ["site__site_tag", "category", "id"]
    date_hierarchy = "valid_on"
    list_select_related = ["site"]
    readonly_fields = ["synchronization_result"]
    may_delete = True

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        what = ["site", "category", "valid_on"] if obj else []
        return [*super().get_readonly_fields(request, obj), *what]

    def save_by_service(self, *, row: Any, values: dict[str, Any], is_new: bool) -> Model:
        slots = values.pop("schedule")
        if is_new:
            return services.schedule_create(slots=slots, **values)
        return services.schedule_replace(schedule=row, slots=slots)

    def delete_by_service(self, row: Any) -> None:
        services.schedule_delete(schedule=row)
