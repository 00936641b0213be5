"""What a principal may see of the logs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.db.models import Max, QuerySet

from control_app.models import ControlCommand, ControlLog, DeviceErrorLog
from sites_app.selectors import sites_visible_to
from smartgrid.api.principal import Principal


def highest_sequence() -> int:
    """The highest sequence that any command of this database has; 0 where there is none."""
    return ControlCommand.objects.aggregate(highest=Max("sequence"))["highest"] or 0


def control_logs_visible_to(principal: Principal) -> QuerySet[ControlLog]:
    """Control log lines of the visible sites, newest first."""
    logs = ControlLog.objects.order_by("-created_at", "-pk")
    return logs if principal.is_root else logs.filter(site__in=sites_visible_to(principal).order_by())


def device_errors_by_site(*, principal: Principal, since: datetime) -> dict[str, dict[str, Any]]:
    """Errors since a moment, as the guide groups them: site id -> name and devices -> count and details."""
    errors = (
        DeviceErrorLog.objects.filter(timestamp__gte=since)
        .select_related("site")
        .order_by("site__site_tag", "device_tag", "timestamp", "pk")
    )
    if not principal.is_root:
        errors = errors.filter(site__in=sites_visible_to(principal).order_by())
    sites: dict[str, dict[str, Any]] = {}
    for entry in errors:
        site = sites.setdefault(str(entry.site_id), {"site_name": entry.site.name, "devices": {}})
        found = site["devices"].setdefault(entry.device_tag, {"total_errors": 0, "error_details": []})
        found["total_errors"] += 1
        found["error_details"].append({"timestamp": entry.timestamp, "error": entry.error})
    return sites


def hours_before(now: datetime, hours: int) -> datetime:
    return now - timedelta(hours=hours)
