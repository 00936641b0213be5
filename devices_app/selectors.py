"""What a principal may see of devices."""

from __future__ import annotations

from uuid import UUID

from django.db.models import QuerySet

from devices_app.choices import category_rank
from devices_app.models import Device
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
