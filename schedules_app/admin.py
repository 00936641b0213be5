"""Schedules in the console; every change goes through a service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.forms import Form
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from schedules_app import services
from schedules_app.exchange import ScheduleExchangeMixin
from schedules_app.forms import CopyForm, FillForm
from schedules_app.models import Schedule
from schedules_app.selectors import synchronization_results
from smartgrid.admin import ServiceAdmin, sites_seen
from smartgrid.errors import SgmError


@admin.register(Schedule)
class ScheduleAdmin(ScheduleExchangeMixin, ServiceAdmin):
    site_path = "site"
    list_display = ["site", "category", "valid_on", "planned", "is_listed", "grid"]
    list_filter = ["category", "is_listed", "site"]
    search_fields = ["site__site_tag", "category", "id"]
    date_hierarchy = "valid_on"
    list_select_related = ["site"]
    fields = ["site", "category", "valid_on", "schedule", "is_listed", "nodes"]
    readonly_fields = ["is_listed", "nodes"]
    actions = ["copy_to_days"]
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

    @admin.display(description="quarter hours")
    def planned(self, row: Schedule) -> int:
        """How many have a value."""
        return sum(value is not None for value in row.schedule.values())

    @admin.display(description="by the quarter hour")
    def grid(self, row: Schedule) -> str:
        """The way to the page of its day."""
        address = reverse("admin:console_schedule", args=[row.site_id, row.category, str(row.valid_on)])
        return format_html('<a href="{}">Edit or look</a>', address)

    @admin.display(description="what the nodes say")
    def nodes(self, row: Schedule) -> str:
        """Each node's last word, or that not all of them have answered."""
        result = synchronization_results([row])[row.pk]
        if result is None:
            return "not all nodes have answered" if row.is_listed else "no node has been given it"
        told = (
            f"{name}: {node['status']}" + (f", {node['error']}" if "error" in node else "")
            for name, node in result["nodes"].items()
        )
        return f"{result['status']} ({'; '.join(told)})"

    # --- many days at once -------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        own = [
            path("fill/", self.admin_site.admin_view(self.fill_view), name="schedules_app_schedule_fill"),
            path(
                "<uuid:schedule_id>/copy/",
                self.admin_site.admin_view(self.copy_view),
                name="schedules_app_schedule_copy",
            ),
        ]
        # Before Django's own, which take whatever follows for an id.
        return [*own, *super().get_urls()]

    @admin.action(description="Copy to other days", permissions=["add"])
    def copy_to_days(self, request: HttpRequest, queryset: QuerySet[Schedule]) -> HttpResponse | None:
        chosen = list(queryset[:2])
        if len(chosen) != 1:
            messages.error(request, "Choose the one schedule that is to be copied.")
            return None
        return HttpResponseRedirect(reverse("admin:schedules_app_schedule_copy", args=[chosen[0].pk]))

    def copy_view(self, request: HttpRequest, schedule_id: Any) -> HttpResponse:
        schedule = get_object_or_404(self.get_queryset(request), pk=schedule_id)
        form = CopyForm(request.POST or None)
        return self._plan_days(
            request,
            title="Copy to other days",
            form=form,
            plan=lambda: services.schedule_copy(
                schedule=schedule,
                days=form.days(but=schedule.valid_on),
                overwrite=form.cleaned_data["overwrite"],
            ),
            schedule=schedule,
        )

    def fill_view(self, request: HttpRequest) -> HttpResponse:
        form = FillForm(request.POST or None)
        site: Any = form.fields["site"]
        site.queryset = sites_seen(request)
        return self._plan_days(
            request,
            title="Fill a range",
            form=form,
            plan=lambda: services.schedule_fill(**form.cleaned_data),
        )

    def _plan_days(
        self,
        request: HttpRequest,
        *,
        title: str,
        form: Form,
        plan: Callable[[], list[Schedule]],
        schedule: Schedule | None = None,
    ) -> HttpResponse:
        """Show the form, or do what it says: all of it, else nothing and the reason for each day."""
        if not (self.has_add_permission(request) and self.has_change_permission(request)):
            raise PermissionDenied
        refused = None
        if request.method == "POST" and form.is_valid():
            try:
                planned = plan()
            except SgmError as error:
                refused = error
            else:
                for row in planned:
                    self.log_change(request, row, f"{title}.")
                messages.success(request, f"Planned: {', '.join(str(row.valid_on) for row in planned)}.")
                return HttpResponseRedirect(reverse("admin:schedules_app_schedule_changelist"))
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": title,
            "form": form,
            "schedule": schedule,
            "refused": refused,
        }
        return TemplateResponse(request, "admin/schedules_app/schedule/plan_days.html", context)
