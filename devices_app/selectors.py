"""What a principal may see of devices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from uuid import UUID

from django.db.models import Exists, OuterRef, QuerySet, Subquery

from devices_app.address import device_profile
from devices_app.choices import category_rank
from devices_app.models import (
    Device,
    DeviceType,
    Probe,
    Quality,
    RetiringDevice,
    TelemetryMean,
    TelemetryReading,
    TelemetrySeries,
)
from sites_app.models import Node, Site
from sites_app.selectors import sites_visible_to
from smartgrid.api.principal import Principal
from smartgrid.errors import Invalid, NotFound


def devices_visible_to(principal: Principal) -> QuerySet[Device]:
    """The devices of the sites this principal may see, with their types."""
    devices = Device.objects.select_related("device_type").order_by("device_tag", "pk")
    return devices if principal.is_root else devices.filter(site__in=sites_visible_to(principal).order_by())


def device_get(*, principal: Principal, device_id: UUID) -> Device:
    device = devices_visible_to(principal).filter(pk=device_id).first()
    if device is None:
        raise NotFound("No such device.")
    return device


def devices_by_category(*, principal: Principal, site_id: UUID) -> dict[str, list[Device]]:
    """A site's devices by category, categories in the order people read them."""
    grouped: dict[str, list[Device]] = {}
    for device in devices_visible_to(principal).filter(site_id=site_id):
        grouped.setdefault(device.category, []).append(device)
    return {category: grouped[category] for category in sorted(grouped, key=category_rank)}


def retiring_waited_for() -> QuerySet[RetiringDevice]:
    """All that keep a tag and a control point taken: their node has not let go, and nobody abandoned them."""
    return RetiringDevice.objects.filter(abandoned_at__isnull=True)


def retiring_by_tag(*, site_id: UUID, tags: Iterable[str]) -> dict[str, str]:
    """Device tag -> name of the node that has yet to let go of it, of those tags which are still taken."""
    rows = retiring_waited_for().filter(site_id=site_id, device_tag__in=tags)
    return dict(rows.order_by("since", "pk").values_list("device_tag", "node__name"))


def retiring_kept_by(row: RetiringDevice) -> str:
    """What the node last said of a retiring device, for people; needs `node` loaded."""
    reported = row.node.last_reported
    if reported is None:
        return f"{row.node.name} has never reported"
    if str(row.config_id) in reported.get("retiring", {}):
        return str(reported["retiring"][str(row.config_id)])
    if row.device_tag in reported.get("devices_refused", {}):
        why = reported["devices_refused"][row.device_tag]
        return f"{row.node.name} goes on as it was, since it cannot use what came instead: {why}"
    config = reported.get("documents", {}).get("config", {})
    if config.get("v", 0) < row.gone_from_version or config.get("status") != "applied":
        why = (
            config.get("error")
            or f"it runs version {config.get('v', 0)}, this one is {row.gone_from_version}"
        )
        return f"{row.node.name} has not applied the configuration without it: {why}"
    return f"{row.node.name} has yet to report anew"


def device_unfit(device: Device) -> str:
    """Why what a device says does not fit its type's profile; empty where it does. Needs its type loaded."""
    try:
        device_profile(device)
    except Invalid as error:
        return error.detail
    return ""


def devices_unfit(device_type: DeviceType) -> list[tuple[Device, str]]:
    """The devices of a type whose parameters do not fit its profile, as it is now, and why."""
    devices = device_type.devices.select_related("device_type", "node").order_by("device_tag")
    return [(device, why) for device in devices if (why := device_unfit(device))]


def device_node_says(device: Device) -> str:
    """What the node last said of a device of its configuration, for people; needs `node` loaded."""
    reported = device.node.last_reported
    if reported is None:
        return f"{device.node.name} has never reported"
    refused = reported.get("devices_refused", {}).get(device.device_tag)
    if refused is not None:
        return f"cannot be used as it is configured: {refused}"
    told = [
        f"{alarm['code']}: {alarm['detail']}"
        for alarm in reported.get("alarms", [])
        if alarm.get("device") == device.device_tag
    ]
    value = reported.get("values", {}).get(device.device_tag)
    if value is not None:
        told.insert(0, f"holds {value:g}")
    return "; ".join(told) or "nothing"


def probe_verdict(probe: Probe) -> str:
    """How a probe ended, in a word or two."""
    return str(probe.report["verdict"]) if probe.report is not None else probe.get_state_display()


def waits_for_control_point() -> Exists:
    """For a query of devices: another node has not yet let go of this device's control point."""
    rows = retiring_waited_for().filter(site_id=OuterRef("site_id"), control_point=OuterRef("control_point"))
    return Exists(rows.exclude(node_id=OuterRef("node_id")))


class Resolution(Enum):
    """How much of a history is told."""

    # Every reading that is kept, of whatever quality.
    RAW = "raw"
    # Means of the good readings of each quarter hour that is over.
    QUARTER = "quarter"


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """A reading, or the mean of the `count` readings of the quarter hour that begins at `at`."""

    at: datetime
    value: float
    minimum: float
    maximum: float
    count: int
    quality: str


@dataclass(frozen=True, slots=True)
class History:
    """What one series was, the oldest first. `name` is the device's tag, or the node's name."""

    series_id: int
    device_id: UUID | None
    name: str
    key: str
    unit: str
    points: list[HistoryPoint]


def history(
    *, of: Device | Node | Site, key: str, since: datetime, until: datetime, resolution: Resolution
) -> list[History]:
    """What this key was from `since` until before `until`; one history for each series, by name and unit.

    Of a device: at the site where it is now, so that nobody sees what it did for others. Of a node: its own
    readings there, not its devices'. Of a site: all that was ever measured there, also by devices that are
    gone. A key that nobody has gives none.
    """
    series = TelemetrySeries.objects.filter(key=key).select_related("device", "node")
    match of:
        case Device():
            series = series.filter(device=of, site_id=of.site_id)
        case Node():
            series = series.filter(node=of, site_id=of.site_id)
        case Site():
            series = series.filter(site=of)
    rows = sorted(series, key=lambda row: (row.source_name, row.unit, row.pk))
    histories = {
        row.pk: History(row.pk, row.device_id, row.source_name, row.key, row.unit, points=[]) for row in rows
    }
    if not histories:
        return []
    if resolution is Resolution.RAW:
        readings = TelemetryReading.objects.filter(series__in=histories, at__gte=since, at__lt=until)
        for number, at, value, quality in readings.order_by("at").values_list(
            "series_id", "at", "value", "quality"
        ):
            point = HistoryPoint(at, value, value, value, 1, Quality(quality).label)
            histories[number].points.append(point)
    else:
        means = TelemetryMean.objects.filter(series__in=histories, start__gte=since, start__lt=until)
        for number, start, mean, minimum, maximum, count in means.order_by("start").values_list(
            "series_id", "start", "mean", "minimum", "maximum", "count"
        ):
            point = HistoryPoint(start, mean, minimum, maximum, count, Quality.GOOD.label)
            histories[number].points.append(point)
    return list(histories.values())


def series_with_newest() -> QuerySet[TelemetrySeries]:
    """All series, each with the time and the value of its newest reading (`newest_at`, `newest_value`)."""
    newest = TelemetryReading.objects.filter(series=OuterRef("pk")).order_by("-at")
    return (
        TelemetrySeries.objects.select_related("site", "device", "node")
        .annotate(
            newest_at=Subquery(newest.values("at")[:1]), newest_value=Subquery(newest.values("value")[:1])
        )
        .order_by("site__site_tag", "name", "key", "pk")
    )
