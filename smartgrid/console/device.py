"""One device as an operator sees it: what it holds, how it is, and how far its profile can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone

from control_app.selectors import RunningHold, device_errors, holds_running, logs_of_device
from control_app.sources import Source, device_sources
from devices_app.loop_view import loops_view
from devices_app.models import Device, TelemetryReading
from devices_app.selectors import (
    device_loops,
    device_node_says,
    device_unfit,
    devices_visible_to,
    loops_visible_to,
    probe_verdict,
)
from devices_app.type_summary import type_summary
from schedules_app.selectors import values_in_force
from sites_app.presence import central_now, presence_read
from sites_app.selectors import CURRENT_FOR
from smartgrid.api.principal import Principal
from smartgrid.console.pages import page, show
from smartgrid.console.people import principal_at
from smartgrid.console.roles import CURTAIL
from smartgrid.live import LiveUnavailable

VIEW_DEVICE = "devices_app.view_device"
ERRORS_SINCE = timedelta(days=7)
LINES_SHOWN = 10


def device_or_404(principal: Principal, device_id: UUID) -> Device:
    """A visible device with its site, node and type."""
    device = (
        devices_visible_to(principal)
        .select_related("site", "node", "controlled_by")
        .filter(pk=device_id)
        .first()
    )
    if device is None:
        raise Http404
    return device


@page("device/<uuid:device_id>/", name="console_device", permission=VIEW_DEVICE)
def device_page(request: HttpRequest, device_id: UUID) -> HttpResponseBase:
    principal = principal_at(request)
    device = device_or_404(principal, device_id)
    now = timezone.now()
    health = _health(device)
    hold, source = _held_by(device, principal, health, now=now)
    context: dict[str, Any] = {
        "device": device,
        "site": device.site,
        "now": now,
        "measured": _measured(device, now=now),
        "hold": hold,
        "source": source,
        "health": health,
        "node_says": device_node_says(device),
        "loops": device_loops(device),
        "errors": device_errors(device, since=now - ERRORS_SINCE),
        "wear": _wear(device),
        "lines": logs_of_device(device, at_most=LINES_SHOWN),
        "may_control": request.user.has_perm(CURTAIL),
        "can_be_set": not device.measured_only
        and device.include_in_curtailment
        and device.controlled_by_id is None,
    }
    if request.GET.get("part") != "live":
        probe = device.probes.order_by("-asked_at").first()
        context |= {
            "summary": type_summary(device.device_type),
            "unfit": device_unfit(device),
            "probe": probe,
            "verdict": None if probe is None else probe_verdict(probe),
        }
    parts = {"live": "console/parts/device_live.html"}
    return show(request, "console/device.html", title=device.device_tag, context=context, parts=parts)


@dataclass(frozen=True, slots=True)
class Measured:
    """The newest reading of power, kW towards the grid; `is_current`: young enough to be that of now."""

    kw: float
    at: datetime
    is_current: bool


def _measured(device: Device, *, now: datetime) -> Measured | None:
    series = device.series.filter(site=device.site_id, key="P_kW").values_list("pk", flat=True)
    found = (
        TelemetryReading.objects.filter(series__in=list(series))
        .order_by("-at")
        .values_list("value", "at")
        .first()
    )
    return None if found is None else Measured(found[0], found[1], now - found[1] < CURRENT_FOR)


def _held_by(
    device: Device, principal: Principal, health: NodeHealth, *, now: datetime
) -> tuple[RunningHold | None, Source | None]:
    """The direct request that holds a device, and the source of its value; as its site's page has them."""
    holds = {
        hold.device_id: hold for hold in holds_running(principal=principal, now=now, site_id=device.site_id)
    }
    # What is measured behind another's control point is held as that one is.
    rows = [device] if device.controlled_by is None else [device, device.controlled_by]
    is_silent = not device.node.online if health.is_reachable is None else not health.is_reachable
    sources = device_sources(
        rows,
        held=holds.keys(),
        loops=loops_view(list(loops_visible_to(principal).filter(site=device.site_id))),
        scheduled=values_in_force(site=device.site, at=now),
        silent_nodes={device.node_id} if is_silent else set(),
    )
    return holds.get(device.pk), sources.get(device.pk)


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """The device's node; None: nobody can tell, since Redis does not answer."""

    is_reachable: bool | None
    is_healthy: bool | None
    why_not: str = ""


def _health(device: Device) -> NodeHealth:
    try:
        presence = presence_read([device.node_id])[device.node_id]
    except LiveUnavailable:
        return NodeHealth(None, None)
    now = central_now()
    reachable = presence.is_reachable(now=now)
    return NodeHealth(reachable, presence.is_healthy(now=now), "" if reachable else presence.why_not(now=now))


def _wear(device: Device) -> list[tuple[str, int, int]]:
    """Register, writes since 00:00 UTC and ever, by the node's last report."""
    told = (device.node.last_reported or {}).get("wear", {}).get(device.device_tag, {})
    return [(register, writes["today"], writes["ever"]) for register, writes in sorted(told.items())]
