"""The measured power of a site over the last hour, day or week, in steps of one length."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from uuid import UUID

from devices_app.choices import METER
from devices_app.history import Histories, History, Resolution, TooManyPoints, histories
from devices_app.metrics import power_sources
from devices_app.models import Device
from devices_app.powers import POWER_KEY, is_power_of_its_own
from sites_app.models import Site

# As many readings are looked through for an hour: 100 devices, one reading each 10 s, and room beside.
READINGS_MAX = 50_000
# A device that reports less often than the steps are long holds its reading for as many of its periods.
HELD_PERIODS = 2.5


class Span(Enum):
    """How far a curve reaches back, and the steps it has."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"

    @property
    def length(self) -> timedelta:
        return {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}[self.value]

    @property
    def step(self) -> timedelta:
        """As fine as readings, or their means, allow."""
        return {"hour": timedelta(seconds=30), "day": timedelta(minutes=15), "week": timedelta(hours=1)}[
            self.value
        ]


@dataclass(frozen=True, slots=True)
class PowerCurve:
    """Powers in kW towards the grid, of steps of `step` that begin at `starts`; None: nothing was measured.

    `devices` is the sum over those controlled devices that were measured in a step, `counted` how many these
    are, of `expected`. `meter` is what the meters at the point of connection measured; None where there are
    none.
    """

    starts: list[datetime]
    step: timedelta
    devices: list[float | None]
    counted: list[int]
    expected: int
    meter: list[float | None] | None


def power_curve(*, site: Site, devices: Sequence[Device], span: Span, now: datetime) -> PowerCurve:
    """What was measured at this site; `devices`: all of its, with their types.

    The steps begin on whole steps of UTC, and the last one holds `now`. Where an hour has more readings than
    are looked through it is told in quarters.
    """
    step = span.step
    found = _found(site, span, now)
    if found.resolution is not Resolution.RAW:
        step = found.resolution.step
    first = _floor(now - span.length, step)
    count = (_floor(now, step) - first) // step + 1
    starts = [first + number * step for number in range(count)]
    own = {device.pk for device in devices if is_power_of_its_own(device)}
    meters = {device.pk for device in power_sources(devices) if device.category == METER}
    periods = {device.pk: device.telemetry_s for device in devices}

    def row(history: History) -> list[float | None]:
        device_id = history.series.device_id
        # (A mean is of its own step alone.)
        is_raw = found.resolution is Resolution.RAW
        held_s = HELD_PERIODS * periods[device_id] if is_raw and device_id is not None else 0.0
        return _steps(history, first=first, step=step, count=count, held_s=held_s)

    of_devices = [row(history) for history in _of(found, own)]
    of_meters = [row(history) for history in _of(found, meters)]
    return PowerCurve(
        starts=starts,
        step=step,
        devices=[_sum(column) for column in zip(*of_devices, strict=True)] if of_devices else [None] * count,
        counted=[sum(value is not None for value in column) for column in zip(*of_devices, strict=True)]
        if of_devices
        else [0] * count,
        expected=len(own),
        meter=([_sum(column) for column in zip(*of_meters, strict=True)] if of_meters else [None] * count)
        if meters
        else None,
    )


def _found(site: Site, span: Span, now: datetime) -> Histories:
    asked = {Span.HOUR: Resolution.RAW, Span.DAY: Resolution.QUARTER, Span.WEEK: Resolution.HOUR}[span]
    since = _floor(now - span.length, span.step)
    try:
        return histories(
            of=site,
            keys=[POWER_KEY],
            since=since,
            until=now,
            resolution=asked,
            points_max=READINGS_MAX,
        )
    except TooManyPoints:
        # Of thousands of devices even the quarters may be too many: then hours fit, or days.
        return histories(of=site, keys=[POWER_KEY], since=since, until=now, resolution=None)


def _of(found: Histories, devices: Collection[UUID]) -> list[History]:
    return [history for history in found.histories if history.series.device_id in devices]


def _steps(
    history: History, *, first: datetime, step: timedelta, count: int, held_s: float
) -> list[float | None]:
    """The mean of the good readings in each step, else the last one before it while that is held."""
    sums, numbers = [0.0] * count, [0] * count
    last: list[tuple[datetime, float] | None] = [None] * count
    for point in history.points:
        place = (point.at - first) // step
        if 0 <= place < count and point.quality == "good":
            sums[place] += point.value * point.count
            numbers[place] += point.count
            last[place] = (point.at, point.value)
    values: list[float | None] = []
    newest: tuple[datetime, float] | None = None
    for place in range(count):
        newest = last[place] or newest
        if numbers[place]:
            values.append(sums[place] / numbers[place])
            continue
        begins = first + place * step
        is_held = newest is not None and (begins - newest[0]).total_seconds() <= held_s
        values.append(newest[1] if newest is not None and is_held else None)
    return values


def _sum(column: Sequence[float | None]) -> float | None:
    known = [value for value in column if value is not None]
    return sum(known) if known else None


def _floor(at: datetime, step: timedelta) -> datetime:
    midnight = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + (at - midnight) // step * step
