"""The power of devices: what each of them does right now, and what it is commanded to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import structlog
from django.db.models import QuerySet

from devices_app.choices import METER, ValueKind
from devices_app.models import Device
from devices_app.telemetry import Latest, latest_key
from edge.profiles.points import Protocol
from sites_app.selectors import CURRENT_FOR
from smartgrid import live

log = structlog.stdlib.get_logger(__name__)

POWER_KEY = "P_kW"
# Which way a device's power goes when its value is positive; absent where a value is no power of one sign.
_SIGNS = {
    ValueKind.ACTIVE_POWER_LIMIT: 1,
    ValueKind.SIGNED_SETPOINT: 1,
    ValueKind.CHARGING_POWER_LIMIT: -1,
}


@dataclass(frozen=True, slots=True)
class PowerReading:
    """A measured power, kW towards the grid, and when it was measured."""

    kw: float
    at: datetime

    def age(self, now: datetime) -> timedelta:
        return now - self.at


@dataclass(frozen=True, slots=True)
class DevicePower:
    """What a site's power is made of: one device that is controlled by itself."""

    device_id: UUID
    site_id: UUID
    commanded_kw: float | None


@dataclass(frozen=True, slots=True)
class SitePower:
    """The power of a site's controlled devices, kW towards the grid.

    `measured_kw` is the sum over the `measured` devices with a current reading, `commanded_kw` that over the
    `commanded` ones of which a power is known; None where there is none. `devices` is how many there are.
    """

    devices: int = 0
    measured_kw: float | None = None
    measured: int = 0
    commanded_kw: float | None = None
    commanded: int = 0

    @property
    def is_partial(self) -> bool:
        """Tell whether some, but not all, of the devices were measured."""
        return 0 < self.measured < self.devices


def commanded_kw(*, value_kind: str | None, value: float | None, peak_power_kw: float | None) -> float | None:
    """The power that a value lets a device have, kW towards the grid: of a limit, the most that it may have.

    None where value or nameplate is not known, and for what is no power of one sign: a cap in both
    directions, an operating mode.
    """
    sign = _SIGNS.get(ValueKind(value_kind)) if value_kind in _SIGNS else None
    if sign is None or value is None or peak_power_kw is None:
        return None
    return sign * value / 100 * peak_power_kw


def device_commanded_kw(device: Device) -> float | None:
    """`commanded_kw` of what it holds; needs `device_type` loaded."""
    return commanded_kw(
        value_kind=device.device_type.value_kind, value=device.value, peak_power_kw=device.peak_power_kw
    )


def is_power_of_its_own(device: Device) -> bool:
    """Tell whether its power counts once among those of a site; needs `device_type` loaded."""
    return device.category != METER and not device.measured_only and not device.is_proxy


def controlled_powers(devices: QuerySet[Device]) -> list[DevicePower]:
    """What these devices are commanded, of those whose power counts; one query and a few columns."""
    # What is behind another's control point is in that one's power already; a proxy's is its children's.
    rows = (
        devices.filter(measured_only=False)
        .exclude(category=METER)
        .exclude(device_type__protocol=Protocol.PROXY.value)
        .order_by()
        .values_list("pk", "site_id", "device_type__value_kind", "value", "peak_power_kw")
    )
    return [
        DevicePower(pk, site_id, commanded_kw(value_kind=kind, value=value, peak_power_kw=peak))
        for pk, site_id, kind, value, peak in rows
    ]


def powers_read(devices: Iterable[tuple[UUID, UUID]], *, now: datetime) -> dict[UUID, PowerReading]:
    """The newest measured power of each of these (site, device), in one round trip.

    One that is too old to be current (`CURRENT_FOR`) is left out. `LiveUnavailable` where Redis does not
    answer.
    """
    by_site: dict[UUID, list[UUID]] = {}
    for site_id, device_id in devices:
        by_site.setdefault(site_id, []).append(device_id)
    stored = live.hashes_newest_fields(
        {latest_key(site_id): [f"{key}/{POWER_KEY}" for key in keys] for site_id, keys in by_site.items()}
    )
    found: dict[UUID, PowerReading] = {}
    for site_id, keys in by_site.items():
        for device_id, row in zip(keys, stored[latest_key(site_id)], strict=True):
            reading = None if row is None else _reading(*row)
            if reading is not None and reading.age(now) <= CURRENT_FOR:
                found[device_id] = reading
    return found


def _reading(stamp: str, text: str) -> PowerReading | None:
    try:
        at = datetime.fromisoformat(stamp).astimezone(UTC)
        return PowerReading(msgspec.json.decode(text, type=Latest).value, at)
    except ValueError as error:
        log.warning("power_reading_unreadable", stamp=stamp, error=str(error))
        return None


def site_powers(
    devices: Sequence[DevicePower], measured: Mapping[UUID, PowerReading]
) -> dict[UUID, SitePower]:
    """Site -> its power, of these devices and what was measured of them."""
    by_site: dict[UUID, list[DevicePower]] = {}
    for device in devices:
        by_site.setdefault(device.site_id, []).append(device)
    return {site_id: _site_power(of_site, measured) for site_id, of_site in by_site.items()}


def powers_sum(powers: Iterable[SitePower]) -> SitePower:
    """All of these together."""
    several = list(powers)
    known = [one.measured_kw for one in several if one.measured_kw is not None]
    asked = [one.commanded_kw for one in several if one.commanded_kw is not None]
    return SitePower(
        devices=sum(one.devices for one in several),
        measured_kw=sum(known) if known else None,
        measured=sum(one.measured for one in several),
        commanded_kw=sum(asked) if asked else None,
        commanded=sum(one.commanded for one in several),
    )


def _site_power(devices: Sequence[DevicePower], measured: Mapping[UUID, PowerReading]) -> SitePower:
    readings = [measured[device.device_id].kw for device in devices if device.device_id in measured]
    commanded = [device.commanded_kw for device in devices if device.commanded_kw is not None]
    return SitePower(
        devices=len(devices),
        measured_kw=sum(readings) if readings else None,
        measured=len(readings),
        commanded_kw=sum(commanded) if commanded else None,
        commanded=len(commanded),
    )
