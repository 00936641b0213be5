"""Closed loops in the console: the form, and how each stands. Every change goes through a service."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import Model
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from devices_app import loops
from devices_app.loop_forms import FIELDSETS, LoopForm, SiteForm, loop_form
from devices_app.loop_view import loops_view
from devices_app.models import ClosedLoop
from sites_app.models import Site
from smartgrid.admin import ServiceAdmin, sites_seen

SHOWN = ("id", "created_at", "site", "node")


def _site_form(request: HttpRequest) -> SiteForm:
    form = SiteForm(request.GET if "site" in request.GET else None)
    form.fields["site"].queryset = sites_seen(request)  # type: ignore[attr-defined]
    return form


@admin.register(ClosedLoop)
class ClosedLoopAdmin(ServiceAdmin):
    site_path = "site"
    list_display = (
        "loop_tag",
        "site",
        "node",
        "meter",
        "mode",
        "setpoint_kw",
        "export_limit_kw",
        "import_limit_kw",
        "enabled",
    )
    list_filter = ("enabled", "mode", "site")
    search_fields = ("loop_tag", "id", "site__site_tag", "node__name", "meter__device_tag")
    list_select_related = ("site", "node", "meter")
    readonly_fields = SHOWN
    may_delete = True
    change_form_template = "admin/devices_app/closedloop/change_form.html"

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """First at which site: what can be its meter and members depends on that."""
        if self._site(request, None) is None and self.has_add_permission(request):
            form = _site_form(request)
            context = {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "title": "Add closed loop: at which site?",
                "form": form,
            }
            return TemplateResponse(request, "admin/devices_app/closedloop/choose_site.html", context)
        return super().add_view(request, form_url, extra_context)

    def _site(self, request: HttpRequest, obj: ClosedLoop | None) -> Site | None:
        if obj is not None:
            return obj.site
        try:
            return sites_seen(request).filter(pk=UUID(request.GET.get("site", ""))).first()
        except ValueError:
            return None

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:  # noqa: ARG002 - Django's hook
        shown = [("As it is", {"fields": SHOWN})] if obj is not None else []
        return [*FIELDSETS, *shown]

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        site = self._site(request, obj)
        if site is not None:
            kwargs["form"] = loop_form(site, loop=obj)
        return super().get_form(request, obj, change, **kwargs)

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> Any:
        loop = kwargs.get("obj")
        if loop is not None:
            # As it is stored: the form may hold what was refused.
            stored = ClosedLoop.objects.select_related("node", "meter", "site").get(pk=loop.pk)
            (context["view"],) = loops_view([stored])
        return super().render_change_form(request, context, *args, **kwargs)

    @admin.display(description="members")
    def member_devices(self, row: ClosedLoop) -> str:
        """For those who may only look."""
        return ", ".join(
            row.named.order_by("device__device_tag").values_list("device__device_tag", flat=True)
        )

    def save_model(self, request: HttpRequest, obj: Any, form: ModelForm[Any], change: bool) -> None:
        assert isinstance(form, LoopForm)
        values = {**form.service_values(), "by": request.user.get_username()}
        if not change:
            values["site"] = form.at
        saved = self.save_by_service(row=obj, values=values, is_new=not change)
        # The admin goes on with the row as the service stored it.
        obj.__dict__.update(saved.__dict__)

    def save_by_service(self, *, row: Any, values: dict[str, Any], is_new: bool) -> Model:
        return loops.loop_create(**values) if is_new else loops.loop_update(loop=row, **values)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        loops.loop_delete(loop=obj, by=request.user.get_username())
