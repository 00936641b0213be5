"""What devices hold, as listeners hear of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from django.utils import timezone

from smartgrid.api.fields import number, timestamp
from smartgrid.events import Event, Kind, events_publish

# What an event tells of a device, in the order of `DeviceHolds`.
COLUMNS = ("id", "device_tag", "site", "node", "category", "value")


@dataclass(frozen=True, slots=True)
class DeviceHolds:
    """A device and the value that it was just seen to hold; None where nothing is known any longer."""

    id: UUID
    device_tag: str
    site_id: UUID
    node_id: UUID
    category: str
    value: float | None


def devices_publish(devices: Iterable[DeviceHolds]) -> None:
    """Tell of these once they are committed."""
    at = timezone.now()
    events_publish(Event(Kind.DEVICE, device.site_id, partial(_body, device, at)) for device in devices)


def _body(device: DeviceHolds, at: datetime) -> dict[str, Any]:
    return {
        "id": device.id,
        "device_tag": device.device_tag,
        "site_id": device.site_id,
        "node_id": device.node_id,
        "category": device.category,
        "value": None if device.value is None else number(device.value),
        "at": timestamp(at),
    }
