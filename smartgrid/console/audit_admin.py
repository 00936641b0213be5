"""The audit log in the console: to read, to search, to take along; changed by nobody."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import UTC
from typing import Any

from auditlog.models import LogEntry
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.urls import URLPattern, path, reverse
from unfold.contrib.filters.admin import RangeDateTimeFilter
from unfold.decorators import action

from sites_app.models import Site
from sites_app.selectors import sites_visible_to
from smartgrid.admin import AnyModelAdmin
from smartgrid.console.audit import noted
from smartgrid.console.people import principal_at
from smartgrid.templatetags.console import moment

MASKED = "••••••"
_SECRET_WORDS = ("password", "secret", "token_value", "digest", "encrypted", "key_")
_DEED = "deed"
_ROW_DEEDS = {
    LogEntry.Action.CREATE: "add",
    LogEntry.Action.UPDATE: "change",
    LogEntry.Action.DELETE: "delete",
}
_COLUMNS = ("at_utc", "who", "deed", "kind", "object", "object_id", "address", "details")
# A spreadsheet takes what begins so for a formula (OWASP, CSV injection).
_FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n")
# Above this the name of a person or a kind is searched for instead.
CHOICES_SHOWN = 200


def deed_of(entry: LogEntry) -> str:
    """One word or two: `add`, `change`, `delete` of a row, or what `noted` was told."""
    if entry.action in _ROW_DEEDS:
        return _ROW_DEEDS[entry.action]
    return str((entry.additional_data or {}).get(_DEED, "look"))


def details_of(entry: LogEntry) -> dict[str, Any]:
    """What was changed, and what the deed was about; nothing that reads like a secret."""
    told = {name: value for name, value in (entry.additional_data or {}).items() if name != _DEED}
    return _masked({**told, **(entry.changes_dict or {})})


def _masked(told: dict[str, Any]) -> dict[str, Any]:
    return {
        name: MASKED
        if any(word in name.lower() for word in _SECRET_WORDS)
        else _masked(value)
        if isinstance(value, dict)
        else value
        for name, value in told.items()
    }


class DeedFilter(admin.SimpleListFilter):
    title = "deed"
    parameter_name = "deed"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:  # noqa: ARG002 - Django's hook
        told = LogEntry.objects.filter(action=LogEntry.Action.ACCESS).order_by()
        deeds = {
            str(deed) for deed in told.values_list("additional_data__deed", flat=True).distinct() if deed
        }
        return [(deed, deed) for deed in sorted({*deeds, *_ROW_DEEDS.values()})]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        deed = self.value()
        if deed is None:
            return queryset
        for number, word in _ROW_DEEDS.items():
            if deed == word:
                return queryset.filter(action=number)
        return queryset.filter(action=LogEntry.Action.ACCESS, additional_data__deed=deed)


class WhoFilter(admin.SimpleListFilter):
    title = "who"
    parameter_name = "who"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:  # noqa: ARG002 - Django's hook
        people = get_user_model().objects.order_by("username").values_list("pk", "username")[:CHOICES_SHOWN]
        return [(str(key), name) for key, name in people]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        return queryset.filter(actor=self.value()) if (self.value() or "").isdigit() else queryset


class WhatFilter(admin.SimpleListFilter):
    title = "kind"
    parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:  # noqa: ARG002 - Django's hook
        kinds = LogEntry.objects.order_by().values_list("content_type", flat=True).distinct()
        return sorted(
            ((str(kind.pk), kind.name) for kind in map(ContentType.objects.get_for_id, kinds)),
            key=lambda choice: choice[1],
        )

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        return queryset.filter(content_type=self.value()) if (self.value() or "").isdigit() else queryset


@admin.register(LogEntry)
class AuditLogAdmin(AnyModelAdmin):
    """Who did what, when and from where. Without all sites: one's own deeds, and those at one's sites."""

    list_display = ("at", "who", "deed", "kind", "object_repr", "remote_addr", "details")
    list_display_links = ("at",)
    list_filter = (DeedFilter, WhoFilter, WhatFilter, ("timestamp", RangeDateTimeFilter))
    list_filter_submit = True
    list_select_related = ("actor", "content_type")
    search_fields = ("object_repr", "object_pk", "actor__username", "actor_email", "remote_addr")
    ordering = ("-timestamp", "-pk")
    fields = ("at", "who", "deed", "kind", "object_repr", "object_pk", "remote_addr", "details")
    readonly_fields = fields
    actions_list = ("export",)
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        entries = super().get_queryset(request)
        principal = principal_at(request)
        if principal.is_root:
            return entries
        sites = [str(pk) for pk in sites_visible_to(principal).order_by().values_list("pk", flat=True)]
        at_sites = Q(content_type=ContentType.objects.get_for_model(Site), object_pk__in=sites)
        return entries.filter(Q(actor=request.user) | at_sites)

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002 - Django's hook
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    @admin.display(description="at", ordering="timestamp")
    def at(self, row: LogEntry) -> str:
        return moment(row.timestamp)

    @admin.display(description="who", ordering="actor__username")
    def who(self, row: LogEntry) -> str:
        return who_of(row)

    @admin.display(description="deed")
    def deed(self, row: LogEntry) -> str:
        return deed_of(row)

    @admin.display(description="kind", ordering="content_type")
    def kind(self, row: LogEntry) -> str:
        return str(row.content_type.name)

    @admin.display(description="details")
    def details(self, row: LogEntry) -> str:
        return _told(row)

    # --- to take along --------------------------------------------------------------------------------------

    @action(
        description="Export as CSV",
        url_path="export",
        icon="download",
        permissions=["view"],
    )
    def export(self, request: HttpRequest) -> HttpResponse:
        """All that the list shows with its filters, as a stream: the log may have millions of lines."""
        address = reverse(f"{self.admin_site.name}:audit_log_csv")
        return HttpResponseRedirect(f"{address}?{request.GET.urlencode()}")

    def get_urls(self) -> list[URLPattern]:
        download = path("csv/", self.admin_site.admin_view(self.csv_view), name="audit_log_csv")
        return [download, *super().get_urls()]

    def csv_view(self, request: HttpRequest) -> StreamingHttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        entries = self.get_changelist_instance(request).get_queryset(request)
        noted(request, "export audit log", request.user, filters=request.GET.urlencode())
        response = StreamingHttpResponse(
            _csv_lines(entries.iterator(chunk_size=1000)), content_type="text/csv; charset=utf-8"
        )
        response["Content-Disposition"] = 'attachment; filename="audit-log.csv"'
        response["Cache-Control"] = "no-store"
        return response


def who_of(entry: LogEntry) -> str:
    """The person's name; of one who is gone what is left of them."""
    if entry.actor is not None:
        return str(entry.actor.get_username())
    return str(getattr(entry, "actor_email", "") or "the system")


def _told(entry: LogEntry) -> str:
    details = details_of(entry)
    parts = []
    for name, value in details.items():
        if isinstance(value, list) and len(value) == 2:  # noqa: PLR2004 - before and after
            parts.append(f"{name}: {value[0]} → {value[1]}")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            parts.append(f"{name}: {text}")
    return "; ".join(parts)


class _Echo:
    """A file that gives back what is written to it."""

    @staticmethod
    def write(text: str) -> str:
        return text


def _csv_lines(entries: Any) -> Iterator[str]:
    writer = csv.writer(_Echo())
    yield writer.writerow(_COLUMNS)
    for entry in entries:
        yield writer.writerow(
            map(
                _harmless,
                (
                    entry.timestamp.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                    who_of(entry),
                    deed_of(entry),
                    entry.content_type.name,
                    entry.object_repr,
                    entry.object_pk,
                    entry.remote_addr or "",
                    _told(entry),
                ),
            )
        )


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA_SIGNS) else text
