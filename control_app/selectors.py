"""What a principal may see of the logs."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Count, Max, Min, QuerySet

from control_app.models import ControlCommand, ControlLog, ControlRequest, DeviceErrorLog
from devices_app.models import Device
from devices_app.selectors import devices_visible_to
from sites_app.models import Site
from sites_app.selectors import of_visible_sites
from smartgrid.api.fields import moment
from smartgrid.api.principal import Principal
from smartgrid.kept import KeptForPrincipal


def highest_sequence() -> int:
    """The highest sequence that any command of this database has; 0 where there is none."""
    return ControlCommand.objects.aggregate(highest=Max("sequence"))["highest"] or 0


def control_logs_visible_to(principal: Principal) -> QuerySet[ControlLog]:
    """Control log lines of the visible sites, newest first."""
    return of_visible_sites(ControlLog.objects.order_by("-created_at", "-pk"), principal)


def site_control_logs_visible_to(principal: Principal, site_id: UUID) -> QuerySet[ControlLog]:
    """Those of one site."""
    return control_logs_visible_to(principal).filter(site_id=site_id)


def device_errors_by_site(*, principal: Principal, since: datetime) -> dict[str, dict[str, Any]]:
    """Errors since a moment, as the guide groups them: site id -> name and devices -> count and details."""
    sites: dict[UUID, dict[str, Any]] = {}
    for site_id, site_name, device_tag, at, error in _ERRORS_SINCE.rows(principal, since):
        site = sites.setdefault(site_id, {"site_name": site_name, "devices": {}})
        found = site["devices"].setdefault(device_tag, {"total_errors": 0, "error_details": []})
        found["total_errors"] += 1
        found["error_details"].append({"timestamp": moment(at), "error": error})
    return {str(site_id): site for site_id, site in sites.items()}


def _errors_since(principal: Principal, since: datetime) -> QuerySet[DeviceErrorLog, tuple[Any, ...]]:
    errors = of_visible_sites(DeviceErrorLog.objects.filter(timestamp__gte=since), principal)
    columns = ("site_id", "site__name", "device_tag", "timestamp", "error")
    return errors.order_by("site__site_tag", "device_tag", "timestamp", "pk").values_list(*columns)


_ERRORS_SINCE = KeptForPrincipal(_errors_since, datetime)


def site_kept_by(site: Site) -> list[str]:
    """What of these logs keeps a site from being deleted, for people."""
    kept = {
        "its control requests": ControlRequest,
        "its control log": ControlLog,
        "its device error log": DeviceErrorLog,
    }
    return [what for what, model in kept.items() if model._default_manager.filter(site=site).exists()]  # noqa: SLF001 - Django's documented name


def hours_before(now: datetime, hours: int) -> datetime:
    return now - timedelta(hours=hours)


def control_requests_visible_to(principal: Principal) -> QuerySet[ControlRequest]:
    """Control requests of the visible sites with their sites, newest first."""
    requests = ControlRequest.objects.select_related("site").order_by("-created_at", "-pk")
    return of_visible_sites(requests, principal)


def requests_under_way(
    principal: Principal, site_ids: Iterable[UUID], *, now: datetime
) -> list[ControlRequest]:
    """What others, or the same person, are asking of these sites at this moment."""
    rows = control_requests_visible_to(principal).filter(site__in=list(site_ids), status=None)
    return list(rows.filter(deadline__gt=now))


def controllable_devices(principal: Principal, site_ids: Iterable[UUID]) -> QuerySet[Device]:
    """The devices of these sites that a request can set, by site and tag."""
    rows = devices_visible_to(principal).filter(
        site__in=list(site_ids), measured_only=False, include_in_curtailment=True, controlled_by=None
    )
    return rows.select_related("site", "device_type").order_by("site__site_tag", "device_tag")


def commands_to_device(device: Device, *, at_most: int) -> list[ControlCommand]:
    """The newest commands to a device under its present tag, with their requests."""
    rows = ControlCommand.objects.filter(node=device.node_id, values__has_key=device.device_tag)
    return list(rows.select_related("request").order_by("-sequence")[:at_most])


def logs_of_device(device: Device, *, at_most: int, looked_at: int = 200) -> list[ControlLog]:
    """Of the newest `looked_at` lines of its site, the newest that tell of this device."""
    rows = ControlLog.objects.filter(site=device.site_id).select_related("request").order_by("-created_at")
    tag = device.device_tag
    told = [
        line
        for line in rows[:looked_at]
        if tag in line.result.get("updated", {}) or tag in line.result.get("not_updated", {})
    ]
    return told[:at_most]


def device_errors(device: Device, *, since: datetime) -> list[tuple[str, int, datetime, datetime]]:
    """Its errors since a moment: each text once, how often it came, first and last time; the newest first."""
    rows = (
        DeviceErrorLog.objects.filter(site=device.site_id, device=device, timestamp__gte=since)
        .values("error")
        .annotate(times=Count("pk"), first=Min("timestamp"), last=Max("timestamp"))
        .order_by("-last")
    )
    return [(row["error"], row["times"], row["first"], row["last"]) for row in rows]
