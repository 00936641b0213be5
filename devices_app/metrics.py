"""What a site does now: its metrics, from the newest readings of all of its devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from uuid import UUID

import msgspec
import structlog

from devices_app.choices import METER
from devices_app.models import Device
from devices_app.telemetry import STAMP, Latest, latest_key
from sites_app.selectors import CURRENT_FOR, Metric
from smartgrid import live

log = structlog.stdlib.get_logger(__name__)

# In a meter's `meta_data`: whether it is where the site meets the grid. A site's only meter is, unless it
# says no; of several, those are which say so.
AT_CONNECTION = "point_of_connection"
DIGITS = 5


class Taken(Enum):
    """How a metric follows from the readings of several devices."""

    # At the point of connection where the site has a meter there, else all that its controllable devices do.
    # Positive is towards the grid in either case.
    NET_POWER = "net power"
    # Weather: each device has its own, and the site theirs between.
    MEAN = "mean"


@dataclass(frozen=True, slots=True)
class MetricRule:
    metric: str
    reading: str
    taken: Taken


RULES = (
    MetricRule(metric="P_Actual_kW", reading="P_kW", taken=Taken.NET_POWER),
    MetricRule(metric="V_Wind_m/s", reading="V_Wind_m/s", taken=Taken.MEAN),
)


@dataclass(frozen=True, slots=True)
class _Current:
    value: float
    at: datetime


# (device, key) -> its newest reading
_Readings = Mapping[tuple[UUID, str], _Current]


def site_metrics_read(site_id: UUID, now: datetime) -> list[Metric]:
    """The site's metrics at this moment; none where Redis has none or does not answer.

    A sum and a mean are over what is current, and as old as the oldest reading in them. A meter at the point
    of connection that has fallen silent leaves no power at all: what the devices do is another quantity.
    """
    try:
        stored = live.hash_newest_read(latest_key(site_id))
    except live.LiveUnavailable as error:
        log.warning("site_metrics_unavailable", site=str(site_id), error=error.detail)
        return []
    readings = _current(stored, site_id=site_id, now=now)
    if not readings:
        return []
    devices = list(
        Device.objects.filter(site=site_id)
        .select_related("device_type")
        .only("category", "measured_only", "meta_data", "device_type__protocol")
    )
    metrics = []
    for rule in RULES:
        sources = power_sources(devices) if rule.taken is Taken.NET_POWER else devices
        found = [
            readings[device.pk, rule.reading] for device in sources if (device.pk, rule.reading) in readings
        ]
        if found:
            value = sum(reading.value for reading in found)
            if rule.taken is Taken.MEAN:
                value /= len(found)
            at = min(reading.at for reading in found)
            metrics.append(Metric(key=rule.metric, value=round(value, DIGITS), at=at))
    return metrics


def power_sources(devices: Sequence[Device]) -> list[Device]:
    """Those of a site's devices whose power adds up to the site's."""
    meters = [device for device in devices if device.category == METER]
    marked = [meter for meter in meters if _said_at_connection(meter) is True]
    if marked:
        return marked
    if len(meters) == 1 and _said_at_connection(meters[0]) is not False:
        return meters
    # What is behind another's control point is in that one's power already; a proxy's is its children's.
    return [
        device
        for device in devices
        if device.category != METER and not device.measured_only and not device.is_proxy
    ]


def _said_at_connection(meter: Device) -> object:
    return meter.meta_data.get(AT_CONNECTION) if isinstance(meter.meta_data, dict) else None


def _current(stored: Mapping[str, tuple[str, str]], *, site_id: UUID, now: datetime) -> _Readings:
    readings: dict[tuple[UUID, str], _Current] = {}
    for name, (stamp, text) in stored.items():
        source, _, key = name.partition("/")
        try:
            at = datetime.strptime(stamp, STAMP).replace(tzinfo=UTC)
            latest = msgspec.json.decode(text, type=Latest)
            source_id = UUID(source)
        except ValueError as error:
            log.warning("site_reading_unreadable", site=str(site_id), field=name, error=str(error))
            continue
        if now - at <= CURRENT_FOR:
            readings[source_id, key] = _Current(latest.value, at)
    return readings
