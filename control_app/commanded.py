"""What a site's devices were commanded over a time: plans, and the direct requests that came between."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from control_app.models import CommandState, ControlCommand, ControlLog, Kind
from devices_app.models import Device
from devices_app.powers import commanded_kw, device_commanded_kw, is_power_of_its_own
from edge.core import schedule as core
from edge.core.schedule import Schedule as PlannedDays
from schedules_app.selectors import schedules_by_category
from sites_app.models import CURTAILMENT_TIME_LIMIT_S, Site

# A step is the mean of so many moments: a hold of a minute shows in an hour's step by its share.
MOMENTS_A_STEP = {timedelta(seconds=30): 3, timedelta(minutes=15): 15}
MOMENTS_OTHERWISE = 12
# As many commands are looked through; of a site that had more, only plans are known.
COMMANDS_MAX = 20_000


@dataclass(frozen=True, slots=True)
class _Hold:
    """A device held at a value from one moment to another."""

    device_tag: str
    value: float
    begins: datetime
    ends: datetime


def commanded_curve(
    *,
    site: Site,
    devices: Sequence[Device],
    looped: Collection[UUID],
    starts: Sequence[datetime],
    step: timedelta,
    now: datetime,
) -> list[float | None]:
    """The power that the site's devices were commanded in each of these steps, kW towards the grid.

    Concluded from plans as they are now (schedules, else defaults, within each device's bounds) and from the
    direct requests that devices confirmed; the last step is what devices hold now. None where it cannot be
    told of one of them, as of a member of a closed loop (`looped`) that nothing else held: what loops wanted
    is not kept. A device whose value is no power of one sign is left out.
    """
    told = [device for device in devices if is_power_of_its_own(device) and _is_told(device)]
    if not told or not starts:
        return [None] * len(starts)
    each = MOMENTS_A_STEP.get(step, MOMENTS_OTHERWISE)
    moments = [begin + step * (2 * part + 1) / (2 * each) for begin in starts for part in range(each)]
    since, until = starts[0], starts[-1] + step
    plans = schedules_by_category(site=site, first=since.date(), last=until.date())
    holds = _holds(site, since=since, until=until)
    totals = [0.0] * len(moments)
    unknown = [False] * len(moments)
    planned: dict[str, list[float | None]] = {}
    for device in told:
        if device.category not in planned:
            planned[device.category] = _planned(plans.get(device.category), moments)
        values = _values(device, planned[device.category], is_looped=device.pk in looped)
        for hold in holds.get(device.device_tag, []):
            first, end = bisect_left(moments, hold.begins), bisect_left(moments, hold.ends)
            values[first:end] = [hold.value] * (end - first)
        for place, value in enumerate(values):
            kw = _kw(device, value)
            if kw is None:
                unknown[place] = True
            else:
                totals[place] += kw
    curve: list[float | None] = []
    for place in range(0, len(moments), each):
        is_known = not any(unknown[place : place + each])
        curve.append(sum(totals[place : place + each]) / each if is_known else None)
    if starts[-1] <= now < until:
        holding = [device_commanded_kw(device) for device in told]
        known = [kw for kw in holding if kw is not None]
        curve[-1] = sum(known) if len(known) == len(holding) else None
    return curve


def _is_told(device: Device) -> bool:
    return _kw(device, device.default_value) is not None


def _kw(device: Device, value: float | None) -> float | None:
    return commanded_kw(
        value_kind=device.device_type.value_kind, value=value, peak_power_kw=device.peak_power_kw
    )


def _planned(days: PlannedDays | None, moments: Sequence[datetime]) -> list[float | None]:
    return [None if days is None else core.value_at(days, moment) for moment in moments]


def _values(device: Device, planned: Sequence[float | None], *, is_looped: bool) -> list[float | None]:
    if is_looped:
        return [None] * len(planned)
    low, high, default = device.min_value, device.max_value, device.default_value
    return [default if value is None else min(max(value, low), high) for value in planned]


def _holds(site: Site, *, since: datetime, until: datetime) -> dict[str, list[_Hold]]:
    """Device tag -> how direct requests held it, in the order in which they were made."""
    begun_after = since - timedelta(seconds=CURTAILMENT_TIME_LIMIT_S[1])
    lines = ControlLog.objects.filter(site=site, created_at__gte=begun_after, created_at__lt=until)
    ended: dict[tuple[UUID, str], datetime] = {}
    for request_id, result, at in lines.filter(watchdog=True, request__isnull=False).values_list(
        "request_id", "result", "created_at"
    ):
        for tag in [*result.get("updated", {}), *result.get("not_updated", {})]:
            if request_id is not None:
                ended[request_id, tag] = at
    # By the lines, which are found by their time; a line stands there once its request is over.
    rows = (
        ControlCommand.objects.filter(
            request__in=lines.filter(watchdog=False).values("request_id"), state=CommandState.DONE
        )
        .order_by("sequence")
        .values_list("request_id", "request__kind", "request__created_at", "result")
    )
    limit_s = float(site.curtailment_time_limit)
    holds: dict[str, list[_Hold]] = {}
    for request_id, kind, at, result in rows[:COMMANDS_MAX]:
        for tag, device in (result or {}).items():
            if device.get("code"):
                continue
            of_device = holds.setdefault(tag, [])
            if of_device and of_device[-1].ends > at:
                former = of_device.pop()
                of_device.append(_Hold(tag, former.value, former.begins, at))
            if kind == Kind.CURTAIL and device.get("value") is not None:
                ends = at + timedelta(seconds=device.get("holds_s") or limit_s)
                ends = min(ends, ended.get((request_id, tag), ends))
                of_device.append(_Hold(tag, float(device["value"]), at, ends))
    return holds
