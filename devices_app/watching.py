"""Devices of which nothing is measured any more: judged by what came to central, and by central's clock."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

from django.db.models import Exists, OuterRef, Q

from devices_app.models import Device, TelemetrySeries
from devices_app.telemetry import STAMP, latest_key
from sites_app.alarms import DEVICE_SILENT, AlarmKey, AlarmText, alarms_settle
from sites_app.models import Alarm
from smartgrid import live

# A device is quiet for so long before somebody should look, or for five of its periods if those are longer.
QUIET_FOR = timedelta(minutes=5)
PERIODS = 5
# One that sleeps without sun is: no night is longer (as at the node, `edge.runtime.night`).
LONGEST_NIGHT = timedelta(hours=20)


def devices_watch(*, now: datetime) -> tuple[int, int]:
    """Raise an alarm for each device of which nothing was measured for too long; clear the rest.

    How many of each. Only devices that once were measured, of nodes that have been there for long enough: of
    a node that is gone nothing is known, and it has an alarm of its own. `LiveUnavailable` where Redis does
    not answer: then nothing changes.
    """
    known_since = datetime.fromtimestamp(live.known_since(at=now.timestamp()), UTC)
    told = Exists(TelemetrySeries.objects.filter(device=OuterRef("pk"), site=OuterRef("site")))
    devices = (
        Device.objects.filter(told, node__online=True).select_related("node", "device_type").order_by("site")
    )
    wanted: dict[AlarmKey, AlarmText] = {}
    undecided: list[Q] = []
    newest: Mapping[UUID, datetime] = {}
    site_id: UUID | None = None
    for device in devices:
        if device.site_id != site_id:
            site_id, newest = device.site_id, _newest(device.site_id)
        there_since = max(known_since, device.node.presence_changed_at or known_since)
        may_be_quiet = _may_be_quiet(device)
        heard_at = newest.get(device.pk)
        if now - max(there_since, heard_at or there_since) <= may_be_quiet:
            # It has had no time yet to show otherwise; an alarm that stands goes on until it was heard.
            if heard_at is None or now - heard_at > may_be_quiet:
                undecided.append(Q(node=device.node_id, subject=device.device_tag))
            continue
        since = f"since {heard_at:%Y-%m-%d %H:%M:%S} UTC" if heard_at else f"for {_words(now - there_since)}"
        key = AlarmKey(DEVICE_SILENT, device.site_id, device.node_id, subject=device.device_tag)
        wanted[key] = AlarmText(f"Nothing was measured {since}; the node is there.", device.node.name)
    among = Alarm.objects.filter(code=DEVICE_SILENT, by_node=False)
    for part in undecided:
        among = among.exclude(part)
    return alarms_settle(among=among, wanted=wanted)


def _may_be_quiet(device: Device) -> timedelta:
    if device.device_type.profile_body.get("sleeps_at_night"):
        return LONGEST_NIGHT
    return max(QUIET_FOR, PERIODS * timedelta(seconds=device.telemetry_s or 0))


def _newest(site_id: UUID) -> dict[UUID, datetime]:
    """When each device of this site was measured last, as far as Redis knows."""
    found: dict[UUID, datetime] = {}
    for name, (stamp, _) in live.hash_newest_read(latest_key(site_id)).items():
        try:
            source, at = UUID(name.partition("/")[0]), datetime.strptime(stamp, STAMP).replace(tzinfo=UTC)
        except ValueError:
            continue
        found[source] = max(at, found.get(source, at))
    return found


def _words(span: timedelta) -> str:
    return f"{span.total_seconds() / 60:.0f} min"
