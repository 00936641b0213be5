"""What a principal may see of the logs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Count, Max, Min, QuerySet

from control_app.models import CommandState, ControlCommand, ControlLog, ControlRequest, DeviceErrorLog, Kind
from devices_app.models import Device
from devices_app.selectors import devices_visible_to
from sites_app.models import CURTAILMENT_TIME_LIMIT_S, Site
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


@dataclass(frozen=True, slots=True)
class RunningHold:
    """A direct request in force at one device. `value`: what it confirmed, in the unit of its type."""

    device_id: UUID
    device_tag: str
    site_id: UUID
    node_id: UUID
    category: str
    value: float | None
    request_id: UUID
    asked_at: datetime
    ends_at: datetime
    reason: str


def holds_running(*, principal: Principal, now: datetime, site_id: UUID | None = None) -> list[RunningHold]:
    """The visible devices that a direct request holds now, and when each hold ends; what ends first is first.

    A hold is the node's: it counts its site's time limit from the moment it received the command, and ends it
    whether central hears of it or not. Central concludes it from the command that each device confirmed last,
    by what the node answered of its length, or the site's limit where it said nothing. `ends_at` counts from
    when the request was made, and is the earliest moment: the node's own end comes later by as long as the
    command travelled, some seconds at most. A hold that was released, or that the node's log says it ended,
    is left out, as is one whose time is over.

    What central cannot know: a hold that no device confirmed (the node goes on trying, or its answer was
    lost), one that the node ended early and has not told yet, and what is behind a proxy, which is asked of
    the proxy alone.
    """
    devices = devices_visible_to(principal).select_related(None).order_by()
    columns = ("device_tag", "site_id", "node_id", "category", "value", "value_sequence")
    if site_id is not None:
        devices = devices.filter(site_id=site_id)
    begun_after = now - timedelta(seconds=CURTAILMENT_TIME_LIMIT_S[1])
    commands = {
        command.sequence: command
        for command in ControlCommand.objects.filter(
            # By their keys: the commands of a year are not looked through.
            sequence__in=devices.filter(value_sequence__gt=0).values("value_sequence"),
            request__kind=Kind.CURTAIL,
            request__created_at__gt=begun_after,
        ).select_related("request__site")
    }
    if not commands:
        return []
    ended = _holds_ended(commands)
    found = [
        hold
        for device in devices.filter(value_sequence__in=commands).only(*columns)
        if (hold := _hold(device, commands[device.value_sequence], now=now)) is not None
        and (device.node_id, device.value_sequence, device.device_tag) not in ended
    ]
    return sorted(found, key=lambda hold: (hold.ends_at, hold.device_tag, hold.device_id))


def _hold(device: Device, command: ControlCommand, *, now: datetime) -> RunningHold | None:
    """The hold of this device by the command it confirmed last; None where that is over."""
    request = command.request
    if command.node_id != device.node_id or request.site_id != device.site_id:
        # It was moved since: where it is now, nobody has asked for anything.
        return None
    told = (command.result or {}).get(device.device_tag, {}).get("holds_s")
    limit = float(request.site.curtailment_time_limit)
    # A changed limit shortens a running hold, and never lengthens one.
    ends_at = request.created_at + timedelta(seconds=limit if told is None else min(told, limit))
    if ends_at <= now:
        return None
    return RunningHold(
        device_id=device.pk,
        device_tag=device.device_tag,
        site_id=device.site_id,
        node_id=device.node_id,
        category=device.category,
        value=device.value,
        request_id=request.pk,
        asked_at=request.created_at,
        ends_at=ends_at,
        reason=request.reason,
    )


def _holds_ended(commands: Mapping[int, ControlCommand]) -> set[tuple[UUID, int, str]]:
    """The holds of these commands, as (node, sequence, device tag), that ended before their time."""
    by_request: dict[UUID, list[ControlCommand]] = {}
    by_node: dict[UUID, list[ControlCommand]] = {}
    for command in commands.values():
        by_request.setdefault(command.request_id, []).append(command)
        by_node.setdefault(command.node_id, []).append(command)
    ended = set()
    lines = ControlLog.objects.filter(request__in=by_request, watchdog=True)
    for request_id, result in lines.values_list("request_id", "result"):
        tags = [*result.get("updated", {}), *result.get("not_updated", {})]
        for command in by_request.get(request_id, []) if request_id is not None else []:
            ended |= {(command.node_id, command.sequence, tag) for tag in tags}
    # One that released what held the value it was to go to has confirmed nothing new.
    released = ControlCommand.objects.filter(
        sequence__gt=min(commands), node__in=by_node, request__kind=Kind.RELEASE, state=CommandState.DONE
    )
    for sequence, node_id, result in released.values_list("sequence", "node_id", "result"):
        tags = [tag for tag, device in (result or {}).items() if not device.get("code")]
        for command in by_node[node_id]:
            if command.sequence < sequence:
                ended |= {(node_id, command.sequence, tag) for tag in tags}
    return ended


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
