"""Sites, nodes, their documents and management tokens in the console; every change goes through a service."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Count, Model, OuterRef, QuerySet, Subquery
from django.forms import ModelForm
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask
from unfold.decorators import action

from sites_app import services
from sites_app.alarm_routes import (
    RouteFields,
    alarm_route_create,
    alarm_route_delete,
    alarm_route_secret,
    alarm_route_update,
)
from sites_app.alarms import alarms_open_first
from sites_app.documents import nodes_documents_render
from sites_app.models import (
    Alarm,
    AlarmDelivery,
    AlarmRoute,
    ManagementToken,
    Node,
    NodeDocument,
    Site,
    UnsettledDocument,
)
from sites_app.periodic import periodic_tasks_off
from sites_app.publishing import nodes_publish_anew
from sites_app.selectors import documents_unsettled, sites_visible_to, token_value
from sites_app.tokens import TokenUnreadable
from smartgrid.admin import AnyModelAdmin, LeadsToControl, ServiceAdmin, ask_first, secret_page
from smartgrid.console.audit import noted
from smartgrid.console.people import principal_at
from smartgrid.console.roles import REVEAL
from smartgrid.errors import Invalid
from smartgrid.templatetags.console import moment

if TYPE_CHECKING:
    AnyModelForm = forms.ModelForm[Any]
else:
    AnyModelForm = forms.ModelForm


@admin.register(Site)
class SiteAdmin(LeadsToControl, ServiceAdmin):
    site_path = "pk"
    control_parameter = "site"
    control_at_most = 50
    actions = ["curtail_marked", "release_marked"]
    list_display = [
        "site_tag",
        "name",
        "live",
        "tenant_tag",
        "curtailment_time_limit",
        "cyclic_write_timeout",
    ]
    list_filter = ["tenant_tag"]
    search_fields = ["site_tag", "name", "id"]
    readonly_fields = ["id", "created_at"]
    fields = [
        "id",
        "created_at",
        "tenant_tag",
        "site_tag",
        "name",
        "curtailment_time_limit",
        "cyclic_write_timeout",
        "setpoint_throttle_s",
        "time_zone",
        "meta_data",
    ]

    @admin.display(description="now")
    def live(self, site: Site) -> str:
        return format_html(
            '<a href="{}" aria-label="Look: {}">Look</a>',
            reverse("admin:console_site", args=[site.pk]),
            site.site_tag,
        )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        # Part of every topic of the site's nodes: chosen once.
        return [*super().get_readonly_fields(request, obj), *(["tenant_tag"] if obj else [])]

    def save_by_service(self, *, row: Any, values: dict[str, Any], is_new: bool) -> Model:
        if is_new:
            return services.site_create(**values)
        return services.site_update(site=row, **values)


@admin.register(Node)
class NodeAdmin(ServiceAdmin):
    site_path = "site"
    list_display = [
        "name",
        "site",
        "online",
        "presence_changed_at",
        "alarms",
        "page",
        "epoch",
        "manifest_version",
    ]
    may_delete = True
    list_filter = ["online", "site"]
    search_fields = ["name", "id", "site__site_tag"]
    list_select_related = ["site"]
    readonly_fields = [
        "id",
        "created_at",
        "tenant_tag",
        "online",
        "session",
        "boot",
        "presence_changed_at",
        "epoch",
        "manifest_version",
        "published_at",
        "out_of_sync_since",
        "not_where_it_should_be",
        "last_reported_at",
        "alarms",
        "last_reported",
    ]
    actions = ["publish_again"]

    @admin.display(description="page")
    def page(self, row: Node) -> str:
        return format_html('<a href="{}">Open {}</a>', reverse("admin:console_node", args=[row.pk]), row.name)

    def save_model(self, request: HttpRequest, obj: Any, form: ModelForm[Any], change: bool) -> None:
        if change:
            # The form has put the new one into the row.
            before = Node.objects.get(pk=obj.pk)
            services.node_move(node=before, site=obj.site, by=request.user.get_username())
        super().save_model(request, obj, form, change)

    def save_by_service(self, *, row: Any, values: dict[str, Any], is_new: bool) -> Model:
        if is_new:
            return services.node_create(**values)
        site = values.pop("site")
        node = services.node_update(node=row, **values)
        assert node.site_id == site.pk
        return node

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        services.node_delete(node=obj, by=request.user.get_username())

    @admin.display(description="alarms")
    def alarms(self, row: Node) -> str:
        """The codes of what the node last reported: `code` its own, `code TAG` of a device."""
        found = (row.last_reported or {}).get("alarms", [])
        return ", ".join(f"{alarm['code']} {alarm.get('device', '')}".strip() for alarm in found)

    @admin.display(description="not where it should be")
    def not_where_it_should_be(self, row: Node) -> str:
        """How many of its documents, with the way to them."""
        number = documents_unsettled().filter(node=row).count()
        path = reverse(f"{self.admin_site.name}:sites_app_unsettleddocument_changelist")
        return format_html('<a href="{}?node__id__exact={}">{} documents</a>', path, row.pk, number)

    @admin.action(description="Render and publish the desired state again")
    def publish_again(self, request: HttpRequest, queryset: QuerySet[Node]) -> None:
        nodes = list(queryset)
        for node in nodes:
            nodes_documents_render(nodes=[node])
        nodes_publish_anew(nodes=[node.pk for node in nodes])
        messages.success(request, f"{len(nodes)} nodes are told what they should have.")


@admin.register(NodeDocument)
class NodeDocumentAdmin(AnyModelAdmin):
    """To look at only: documents are rendered from what they tell of."""

    site_path = "node__site"
    list_display = ["name", "node", "version", "status", "answered_at", "sha256"]
    list_filter = ["status", "node__site"]
    search_fields = ["name", "node__name"]
    list_select_related = ["node"]

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002 - Django's hook
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False


class OpenFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:  # noqa: ARG002 - Django's hook
        return [("open", "open"), ("cleared", "cleared")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        if self.value() is None:
            return queryset
        return queryset.filter(cleared_at__isnull=self.value() == "open")


@admin.register(Alarm)
class AlarmAdmin(AnyModelAdmin):
    """To look at only: an alarm ends with what it is about."""

    site_path = "site"
    list_display = [
        "code",
        "severity",
        "site",
        "node_name",
        "subject",
        "detail",
        "raised_at",
        "last_seen_at",
        "cleared_at",
    ]
    list_filter = [OpenFilter, "severity", "code", "by_node", "site"]
    search_fields = ["code", "node_name", "subject", "detail", "site__site_tag"]
    list_select_related = ["site"]
    date_hierarchy = "raised_at"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return alarms_open_first(super().get_queryset(request))

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002 - Django's hook
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False


@admin.register(UnsettledDocument)
class UnsettledDocumentAdmin(NodeDocumentAdmin):
    """What nodes do not have yet, cannot use, or have otherwise, and what the broker was not told."""

    list_display = ["name", "node", "site", "status", "wanted", "is_published", "since", "error"]
    list_filter = ["status", "node__site"]
    list_select_related = ["node__site"]
    ordering = ["changed_at", "pk"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[NodeDocument]:
        unsettled = documents_unsettled().order_by().values("pk")
        rows = super().get_queryset(request).filter(pk__in=unsettled)
        return rows.defer("body", "node__last_reported").order_by(*self.ordering)

    @admin.display(description="site", ordering="node__site__site_tag")
    def site(self, row: NodeDocument) -> str:
        return row.node.site.site_tag

    @admin.display(description="is to be")
    def wanted(self, row: NodeDocument) -> str:
        return "taken away" if row.dropped else f"version {row.version}"

    @admin.display(description="published", boolean=True)
    def is_published(self, row: NodeDocument) -> bool:
        held = row.published_epoch, row.published_version
        return not row.dropped and held == (row.node.epoch, row.version)

    @admin.display(description="since", ordering="changed_at")
    def since(self, row: NodeDocument) -> datetime:
        """Since the node said so; where it has said nothing about it, since it was changed."""
        return row.answered_at or row.changed_at


@admin.register(ManagementToken)
class ManagementTokenAdmin(ServiceAdmin):
    """What programs see which sites with. People see those tokens all of whose sites they see themselves."""

    list_display = ["name", "opens", "last_used", "created_at", "id"]
    list_filter = ["sites", "last_used_at"]
    search_fields = ["name", "id", "sites__site_tag"]
    fields = ["name", "sites"]
    filter_horizontal = ["sites"]
    may_delete = True
    actions_detail = ["rotate", "reveal"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        opened = ManagementToken.sites.through.objects.filter(managementtoken=OuterRef("pk"))
        rows = of_visible_sites_only(super().get_queryset(request), request)
        number: Any = opened.order_by().values("managementtoken").annotate(number=Count("pk"))
        counted: QuerySet[Any] = rows.annotate(site_number=Subquery(number.values("number")))
        return counted

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "sites":
            # Nobody gives what they do not see.
            kwargs["queryset"] = sites_visible_to(principal_at(request))
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    @admin.display(description="sites", ordering="site_number")
    def opens(self, row: Any) -> str:
        return f"{row.site_number or 0} sites" if row.site_number != 1 else "1 site"

    @admin.display(description="last used", ordering="last_used_at")
    def last_used(self, row: ManagementToken) -> str:
        return "never, as far as is known" if row.last_used_at is None else moment(row.last_used_at)

    def save_by_service(self, *, row: Any, values: dict[str, Any], is_new: bool) -> Model:
        if is_new:
            return services.token_issue(**values)
        return services.token_update(token=row, **values)

    def response_add(
        self,
        request: HttpRequest,
        obj: Any,
        post_url_continue: str | None = None,  # noqa: ARG002 - Django's hook
    ) -> HttpResponse:
        """Show the value once, to the one who made it. Lists and forms never show it."""
        return self._value_page(request, obj, title=f"Management token {obj}")

    def delete_by_service(self, row: Any) -> None:
        services.token_revoke(token=row)

    # --- its value ------------------------------------------------------------------------------------------

    @action(description="New value", url_path="new-value", permissions=["change"])
    def rotate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, and on POST draw a value in place of the present one and show it in the answer itself."""
        token = self._token(request, object_id)
        if not self.has_change_permission(request, token):
            raise PermissionDenied
        if request.method == "POST":
            token = services.token_rotate(token=token)
            noted(request, "rotate token", token)
            return self._value_page(request, token, title=f"New value of {token}")
        asked = (
            f"The present value of {token} opens nothing from now on. To exchange it without a gap, add a"
            " second token with the same sites, and delete this one once nobody uses it."
        )
        return ask_first(self, request, token, title="New value", asked=asked, button="Draw a new value")

    @action(description="Show value", url_path="reveal", permissions=["reveal"])
    def reveal(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, and on POST show the value; who saw it is kept in the audit log."""
        token = self._token(request, object_id)
        if request.method == "POST":
            noted(request, "reveal", token)
            return self._value_page(request, token, title=f"Value of {token}", again=True)
        asked = f"The value of {token} is shown, and that you saw it is kept in the audit log."
        return ask_first(self, request, token, title="Show value", asked=asked, button="Show value")

    def has_reveal_permission(self, request: HttpRequest, object_id: Any = None) -> bool:  # noqa: ARG002 - Unfold's hook
        return request.user.has_perm(REVEAL)

    def _token(self, request: HttpRequest, object_id: str) -> ManagementToken:
        token = self.get_object(request, object_id)
        if token is None:
            raise Http404
        return cast("ManagementToken", token)

    def _value_page(
        self, request: HttpRequest, token: ManagementToken, *, title: str, again: bool = False
    ) -> HttpResponse:
        try:
            value = token_value(token)
        except TokenUnreadable as error:
            messages.error(request, f"{error} Draw a new value.")
            return HttpResponseRedirect(reverse("admin:sites_app_managementtoken_change", args=[token.pk]))
        shown = {"X-Management-Token": value}
        return secret_page(self, request, title=title, shown=shown, again=again)


@admin.register(AlarmRoute)
class AlarmRouteAdmin(ServiceAdmin):
    """Who is told of alarms. A person with sites of their own sees, and makes, only routes of those."""

    list_display = ["name", "kind", "target", "least_severity", "enabled"]
    list_filter = ["kind", "enabled"]
    search_fields = ["name", "target"]
    fields = ["name", "kind", "target", "least_severity", "sites", "enabled"]
    filter_horizontal = ["sites"]
    may_delete = True

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return of_visible_sites_only(super().get_queryset(request), request, is_empty_all=True)

    def save_model(self, request: HttpRequest, obj: Any, form: ModelForm[Any], change: bool) -> None:
        if not form.cleaned_data["sites"] and not principal_at(request).is_root:
            raise Invalid.field("sites", "name the sites: all of them are not yours to be told of")
        super().save_model(request, obj, form, change)

    def save_by_service(self, *, row: Any, values: dict[str, Any], is_new: bool) -> Model:
        fields = RouteFields(**{**values, "sites": list(values["sites"])})
        return alarm_route_create(fields) if is_new else alarm_route_update(route=row, fields=fields)

    def response_add(
        self,
        request: HttpRequest,
        obj: Any,
        post_url_continue: str | None = None,
    ) -> HttpResponse:
        """Show the secret of a webhook once, to the one who made it."""
        secret = alarm_route_secret(obj)
        if not secret:
            return super().response_add(request, obj, post_url_continue)
        note = "The receiver checks X-SGM-Signature with it: see docs/operations.md, Notices of alarms."
        return secret_page(self, request, title=f"Alarm route {obj}", shown={"Secret": secret}, note=note)

    def delete_by_service(self, row: Any) -> None:
        alarm_route_delete(route=row)


@admin.register(AlarmDelivery)
class AlarmDeliveryAdmin(AnyModelAdmin):
    """What was told to whom, and what could not be: to look at only."""

    site_path = "alarm__site"

    list_display = ["created_at", "route", "what", "alarm", "state", "attempts", "last_error", "sent_at"]
    list_filter = ["state", "what"]
    list_select_related = ["route", "alarm"]
    ordering = ["-pk"]

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002 - Django's hook
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False


def of_visible_sites_only(
    rows: QuerySet[Any], request: HttpRequest, *, is_empty_all: bool = False
) -> QuerySet[Any]:
    """Those of these rows with `sites` all of whose sites this person sees: who changed another would drop
    the sites that they do not see. `is_empty_all`: one without sites is of all of them.
    """
    principal = principal_at(request)
    if principal.is_root:
        return rows
    foreign = Site.objects.exclude(pk__in=sites_visible_to(principal).order_by().values("pk"))
    rows = rows.exclude(sites__in=foreign)
    return rows.filter(sites__isnull=False).distinct() if is_empty_all else rows


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(AnyModelAdmin):
    """How often which periodic work is done, and whether; what it is comes with the software."""

    list_display = ["name", "description", "period", "enabled", "last_run_at"]
    list_filter = ["enabled"]
    search_fields = ["name", "task", "description"]
    list_select_related = ["interval", "crontab"]
    ordering = ["name"]
    fields = ["name", "description", "task", "queue", "enabled", "interval", "crontab", "last_run_at"]
    readonly_fields = ["name", "description", "task", "queue", "last_run_at"]

    @admin.display(description="period")
    def period(self, row: Any) -> str:
        return str(row.scheduler)

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002 - Django's hook
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        for trouble in periodic_tasks_off():
            messages.warning(request, f"{trouble}.")
        return super().changelist_view(request, extra_context)


class IntervalForm(AnyModelForm):
    def clean(self) -> dict[str, Any] | None:
        """Beat looks at its clock once a second at best, and starts nothing more often."""
        cleaned = super().clean()
        if cleaned is not None and cleaned.get("period") == IntervalSchedule.MICROSECONDS:
            raise ValidationError("A period is a second or longer.")
        return cleaned


class PeriodAdmin(AnyModelAdmin):
    """To add periods that tasks can be given. Other tasks may have one that is there: it stays as it is."""

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 - Django's hook
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False


@admin.register(IntervalSchedule)
class IntervalAdmin(PeriodAdmin):
    form = IntervalForm


@admin.register(CrontabSchedule)
class CrontabAdmin(PeriodAdmin):
    fields = ["minute", "hour", "day_of_month", "month_of_year", "day_of_week", "timezone"]
