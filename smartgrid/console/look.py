"""The console's look and its way around: what Unfold asks for (`UNFOLD` in the settings)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.apps import apps
from django.contrib import admin
from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse_lazy


def _may(permission: str) -> Callable[[HttpRequest], bool]:
    return lambda request: request.user.has_perm(permission)


def _list(title: str, icon: str, model: str) -> dict[str, Any]:
    """A line of the sidebar: the list of `app_label.model`, for those who may see it."""
    app, name = model.split(".")
    return {
        "title": title,
        "icon": icon,
        "link": reverse_lazy(f"admin:{app}_{name}_changelist"),
        "permission": lambda request: _may_see(request, model),
    }


def _may_see(request: HttpRequest, model: str) -> bool:
    """As the list itself decides, which may know more than a permission."""
    known = admin.site._registry.get(apps.get_model(model))  # noqa: SLF001
    return known is not None and known.has_module_permission(request) and known.has_view_permission(request)


def _page(title: str, icon: str, name: str, permission: str) -> dict[str, Any]:
    """A line of the sidebar: a page of `smartgrid.console.pages`."""
    return {
        "title": title,
        "icon": icon,
        "link": reverse_lazy(f"admin:{name}"),
        "permission": _may(permission),
    }


# A green-blue: no colour of an alarm, and legible on both themes (4.5 : 1 for text from 600 on white).
_PRIMARY = {
    "50": "oklch(97.5% .015 215)",
    "100": "oklch(94.5% .035 215)",
    "200": "oklch(89% .065 215)",
    "300": "oklch(82% .095 216)",
    "400": "oklch(73% .11 220)",
    "500": "oklch(62% .115 225)",
    "600": "oklch(51% .1 228)",
    "700": "oklch(44% .088 230)",
    "800": "oklch(38% .073 232)",
    "900": "oklch(33% .06 234)",
    "950": "oklch(25% .048 236)",
}

LOOK: dict[str, Any] = {
    "SITE_TITLE": "Smart Grid Manager",
    "SITE_HEADER": "Smart Grid Manager",
    "SITE_SYMBOL": "electric_meter",
    "SITE_URL": None,
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda _request: static("console/favicon.svg")}
    ],
    "SHOW_VIEW_ON_SITE": False,
    "BORDER_RADIUS": "6px",
    "COLORS": {"primary": _PRIMARY},
    "LOGIN": {"form": "smartgrid.console.login.LoginForm"},
    "ACCOUNT": {
        "navigation": [{"title": "Second factor", "link": reverse_lazy("admin:console_second_factor")}]
    },
    "STYLES": [lambda _request: static("console/console.css")],
    "SCRIPTS": [],
    "SIDEBAR": {
        "show_search": False,
        "navigation": [
            {
                "title": "Control room",
                "items": [
                    {"title": "Fleet", "icon": "dashboard", "link": reverse_lazy("admin:index")},
                    _list("Sites", "location_on", "sites_app.site"),
                    _list("Devices", "solar_power", "devices_app.device"),
                    _list("Closed loops", "cycle", "devices_app.closedloop"),
                    _page("Schedules", "calendar_month", "console_schedules", "schedules_app.view_schedule"),
                    _page("Alarms", "notifications", "console_alarms", "sites_app.view_alarm"),
                ],
            },
            {
                "title": "What happened",
                "collapsible": True,
                "items": [
                    _list("Control requests", "tune", "control_app.controlrequest"),
                    _list("Commands", "send", "control_app.controlcommand"),
                    _list("Control log", "receipt_long", "control_app.controllog"),
                    _list("Device errors", "error", "control_app.deviceerrorlog"),
                    _list("Node events", "lan", "control_app.nodeevent"),
                    _list("Telemetry", "monitoring", "devices_app.telemetryseries"),
                ],
            },
            {
                "title": "Engineering",
                "collapsible": True,
                "items": [
                    _list("Nodes", "router", "sites_app.node"),
                    _list("Documents to nodes", "sync", "sites_app.unsettleddocument"),
                    _list("Device types", "category", "devices_app.devicetype"),
                    _list("Probes", "troubleshoot", "devices_app.probe"),
                    _list("Retiring devices", "inventory_2", "devices_app.retiringdevice"),
                ],
            },
            {
                "title": "Access",
                "collapsible": True,
                "items": [
                    _list("People", "person", "auth.user"),
                    _list("Roles", "group", "auth.group"),
                    _list("Management tokens", "key", "sites_app.managementtoken"),
                    _list("API clients", "api", "oauth2_provider.application"),
                    _list("Alarm routes", "forward_to_inbox", "sites_app.alarmroute"),
                    _list("Alarm notices", "outgoing_mail", "sites_app.alarmdelivery"),
                    _list("Audit log", "history", "auditlog.logentry"),
                    _list("Periodic tasks", "schedule", "django_celery_beat.periodictask"),
                ],
            },
        ],
    },
}
