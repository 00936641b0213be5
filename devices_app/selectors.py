"""What a principal may see of devices."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from django.db.models import Exists, OuterRef, QuerySet

from devices_app.choices import category_rank
from devices_app.models import Device, RetiringDevice
from sites_app.selectors import sites_visible_to
from smartgrid.api.principal import Principal
from smartgrid.errors import NotFound


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


def waits_for_control_point() -> Exists:
    """For a query of devices: another node has not yet let go of this device's control point."""
    rows = retiring_waited_for().filter(site_id=OuterRef("site_id"), control_point=OuterRef("control_point"))
    return Exists(rows.exclude(node_id=OuterRef("node_id")))
