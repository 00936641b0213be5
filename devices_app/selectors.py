"""What a principal may see of devices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from django.db.models import Exists, OuterRef, Q, QuerySet, Subquery

from devices_app.address import device_profile
from devices_app.models import (
    ClosedLoop,
    Device,
    DeviceType,
    Probe,
    RetiringDevice,
    TelemetryReading,
    TelemetrySeries,
)
from sites_app.selectors import all_there, of_visible_sites
from smartgrid.api.principal import Principal
from smartgrid.errors import REFUSED_SHOWN, Invalid, NotFound


def devices_visible_to(principal: Principal) -> QuerySet[Device]:
    """The devices of the sites this principal may see, with their types."""
    devices = Device.objects.select_related("device_type").order_by("device_tag", "pk")
    return of_visible_sites(devices, principal)


def site_devices_visible_to(principal: Principal, site_id: UUID) -> QuerySet[Device]:
    """Those of one site."""
    return devices_visible_to(principal).filter(site_id=site_id)


def node_devices_visible_to(principal: Principal, site_id: UUID, node_id: UUID) -> QuerySet[Device]:
    """Those of one node of this site."""
    return site_devices_visible_to(principal, site_id).filter(node_id=node_id)


def device_get(*, principal: Principal, device_id: UUID) -> Device:
    device = devices_visible_to(principal).filter(pk=device_id).first()
    if device is None:
        raise NotFound("No such device.")
    return device


def devices_named(*, principal: Principal, device_ids: Sequence[UUID], field: str) -> list[Device]:
    """Visible devices in this order, one that stands there twice also twice.

    `NotFound` names the places in `field` where no such device stands, hidden and absent alike.
    """
    found = devices_visible_to(principal).in_bulk(set(device_ids))
    if absent := [place for place, key in enumerate(device_ids) if key not in found]:
        text = "No such device."
        raise NotFound(text, errors={f"{field}.{place}": [text] for place in absent[:REFUSED_SHOWN]})
    return [found[key] for key in device_ids]


def loops_visible_to(principal: Principal) -> QuerySet[ClosedLoop]:
    """The closed loops of the sites this principal may see, with their meters and nodes."""
    loops = ClosedLoop.objects.select_related("site", "meter", "node").order_by("loop_tag", "pk")
    return of_visible_sites(loops, principal)


def loop_get(*, principal: Principal, loop_id: UUID) -> ClosedLoop:
    loop = loops_visible_to(principal).filter(pk=loop_id).first()
    if loop is None:
        raise NotFound("No such loop.")
    return loop


def device_loops(device: Device) -> list[tuple[str, ClosedLoop]]:
    """The closed loops that a device is the meter of, or a member of by name or category, and as what."""
    loops = ClosedLoop.objects.filter(node_id=device.node_id)
    wanted = loops.filter(Q(meter=device.pk) | Q(named__device=device.pk) | Q(category=device.category))
    found = []
    for loop in wanted.distinct().order_by("loop_tag"):
        if loop.meter_id == device.pk:
            found.append(("meter of", loop))
        elif loop.category is None:
            found.append(("member of", loop))
        else:
            found.append((f"{loop.category} of", loop))
    return found


def device_types_listed() -> QuerySet[DeviceType]:
    """All types there are, for everybody: they say nothing of anybody's plant."""
    return DeviceType.objects.order_by("name", "pk")


def device_type_get(*, device_type_id: UUID) -> DeviceType:
    device_type = DeviceType.objects.filter(pk=device_type_id).first()
    if device_type is None:
        raise NotFound("No such device type.")
    return device_type


def device_types_get(*, device_type_ids: Sequence[UUID]) -> list[DeviceType]:
    """Types in this order, by one statement; else `NotFound` names the place of each that is absent."""
    found = DeviceType.objects.in_bulk(set(device_type_ids))
    all_there(device_type_ids, found, field="device_type_id", what="device type")
    return [found[device_type_id] for device_type_id in device_type_ids]


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
