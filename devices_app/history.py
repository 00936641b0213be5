"""What was measured: readings and means of a device, a node or a site, in bounded answers (ADR 0015)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from uuid import UUID

from django.db.models import Exists, ExpressionWrapper, F, FloatField, Max, Min, OuterRef, Q, QuerySet, Sum
from django.db.models.functions import Cast, TruncDay, TruncHour

from devices_app.models import Device, Quality, TelemetryMean, TelemetryReading, TelemetrySeries
from sites_app.models import Node, Site
from smartgrid.errors import Invalid

# As many points are told in one answer: some 3 MB of JSON.
POINTS_MAX = 20_000


class Resolution(Enum):
    """How much of a history is told."""

    # Every reading that is kept, of whatever quality.
    RAW = "raw"
    # Means of the good readings of each UTC quarter hour that is over; of hours and days, from those.
    QUARTER = "15m"
    HOUR = "1h"
    DAY = "1d"

    @property
    def step(self) -> timedelta:
        """How much time one point tells of; none where it is a moment."""
        return _STEPS[self]

    @property
    def coarser(self) -> list[Resolution]:
        """Those with fewer points, the finest first."""
        order = list(Resolution)
        return order[order.index(self) + 1 :]


_STEPS = {
    Resolution.RAW: timedelta(0),
    Resolution.QUARTER: timedelta(minutes=15),
    Resolution.HOUR: timedelta(hours=1),
    Resolution.DAY: timedelta(days=1),
}
_LATEST = datetime.max.replace(tzinfo=UTC)


class TooManyPoints(Invalid):
    """More was asked for than one answer tells."""

    code = "too_many_points"


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """A reading, or the mean of the `count` readings of the quarter, hour or day that begins at `at`."""

    at: datetime
    value: float
    minimum: float
    maximum: float
    count: int
    quality: str


@dataclass(frozen=True, slots=True)
class Series:
    """What one history is of. `name`: the device's tag or the node's name, if they are of this site now."""

    number: int
    device_id: UUID | None
    node_id: UUID | None
    name: str
    key: str
    unit: str


@dataclass(frozen=True, slots=True)
class History:
    """What one series was, the oldest first."""

    series: Series
    points: list[HistoryPoint]


@dataclass(frozen=True, slots=True)
class Histories:
    """An answer, and the resolution it has."""

    resolution: Resolution
    histories: list[History]


def histories(
    *,
    of: Device | Node | Site,
    keys: Collection[str] | None,
    since: datetime,
    until: datetime,
    resolution: Resolution | None,
    points_max: int = POINTS_MAX,
) -> Histories:
    """What these keys (None: all) were; one history for each series with a point, by name, key and unit.

    Told are the points that begin at or after `since` and before `until`; each is whole, so that what is told
    of two times side by side is what is told of both. What was not measured has no point.

    Of a device: at the site where it is now, so that nobody sees what it did for others. Of a node: its own
    readings there, not its devices'. Of a site: all that was ever measured there, also by devices that are
    gone; what has moved away goes by the name it had.

    `resolution` None: the finest mean that fits. `TooManyPoints` where the answer would have more than
    `points_max`; it names what fits.
    """
    asked = _Asked(since=since, until=until, points_max=points_max, is_by_key=keys is not None)
    found = _series(of, keys)
    if resolution is Resolution.RAW:
        return Histories(resolution, _raw(_told(found), asked))
    first, end = _ceil(since, Resolution.QUARTER.step), _ceil(until, Resolution.DAY.step)
    means = TelemetryMean.objects.filter(series=OuterRef("pk"), start__gte=first, start__lt=end)
    series = _told(found.filter(Exists(means)))
    choice = Resolution.RAW.coarser if resolution is None else [resolution]
    chosen = next((one for one in choice if asked.fits(one, series)), None)
    if chosen is None:
        raise asked.too_many(choice[-1], series)
    return Histories(chosen, _gathered(series, _means(series, chosen, asked)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """The time of a history, and how much of it may be told."""

    since: datetime
    until: datetime
    points_max: int
    is_by_key: bool

    def fits(self, resolution: Resolution, series: Collection[Series]) -> bool:
        """Tell whether as many points as these series can have are not too many."""
        return len(series) * -((self.since - self.until) // resolution.step) <= self.points_max

    def too_many(self, resolution: Resolution, series: Collection[Series]) -> TooManyPoints:
        """That this resolution has more points than may be told, and what to ask for instead."""
        fitting = [one.value for one in resolution.coarser if self.fits(one, series)]
        way_out = f"resolution {fitting[0]} fits" if fitting else "ask for a shorter time"
        if not self.is_by_key and len(series) > 1:
            way_out += ", or name the keys you need"
        why = f"more than {self.points_max:,} points in one answer; {way_out}"
        return TooManyPoints(f"resolution: {why}", errors={"resolution": [why]})


def _series(of: Device | Node | Site, keys: Collection[str] | None) -> QuerySet[TelemetrySeries]:
    match of:
        case Device():
            whose = Q(device=of, site_id=of.site_id)
        case Node():
            whose = Q(node=of, site_id=of.site_id)
        case Site():
            whose = Q(site=of)
    if keys is not None:
        whose &= Q(key__in=set(keys))
    return TelemetrySeries.objects.filter(whose)


def _told(found: QuerySet[TelemetrySeries]) -> list[Series]:
    columns = (
        *("pk", "name", "key", "unit", "site_id"),
        *("device_id", "device__site_id", "device__device_tag", "node_id", "node__site_id", "node__name"),
    )
    series = []
    for row in found.values_list(*columns):
        number, name, key, unit, site_id, device_id, device_site, tag, node_id, node_site, node_name = row
        is_device_here, is_node_here = device_site == site_id, node_site == site_id
        series.append(
            Series(
                number=number,
                device_id=device_id if is_device_here else None,
                node_id=node_id if is_node_here else None,
                name=tag if is_device_here else node_name if is_node_here else name,
                key=key,
                unit=unit,
            )
        )
    return sorted(series, key=lambda row: (row.name, row.key, row.unit, row.number))


def _raw(series: Collection[Series], asked: _Asked) -> list[History]:
    readings = TelemetryReading.objects.filter(
        series__in=[row.number for row in series], at__gte=asked.since, at__lt=asked.until
    ).order_by("at")
    # One more than may be told, which tells whether there are more: to count them all would be to read them.
    rows = list(readings.values_list("series_id", "at", "value", "quality")[: asked.points_max + 1])
    if len(rows) > asked.points_max:
        raise asked.too_many(Resolution.RAW, series)
    names = {quality.value: quality.label for quality in Quality}
    return _gathered(
        series,
        (
            (number, HistoryPoint(at, value, value, value, 1, names[quality]))
            for number, at, value, quality in rows
        ),
    )


_TRUNCATED = {Resolution.HOUR: TruncHour, Resolution.DAY: TruncDay}


def _means(
    series: Collection[Series], resolution: Resolution, asked: _Asked
) -> Iterator[tuple[int, HistoryPoint]]:
    first, end = _ceil(asked.since, resolution.step), _ceil(asked.until, resolution.step)
    means = TelemetryMean.objects.filter(
        series__in=[row.number for row in series], start__gte=first, start__lt=end
    )
    if resolution is Resolution.QUARTER:
        columns = means.order_by("start").values_list(
            "series_id", "start", "mean", "minimum", "maximum", "count"
        )
    else:
        weighted = ExpressionWrapper(F("mean") * F("count"), output_field=FloatField())
        columns = (
            means.annotate(begin=_TRUNCATED[resolution]("start", tzinfo=UTC))
            .values("series_id", "begin")
            .annotate(
                value=Sum(weighted) / Cast(Sum("count"), FloatField()),
                low=Min("minimum"),
                high=Max("maximum"),
                readings=Sum("count"),
            )
            .order_by("begin")
            .values_list("series_id", "begin", "value", "low", "high", "readings")
        )
    good = Quality.GOOD.label
    for number, begin, value, low, high, count in columns:
        yield number, HistoryPoint(begin, value, low, high, count, good)


def _gathered(series: Iterable[Series], points: Iterable[tuple[int, HistoryPoint]]) -> list[History]:
    found = {row.number: History(row, []) for row in series}
    for number, point in points:
        found[number].points.append(point)
    return [history for history in found.values() if history.points]


def _ceil(at: datetime, step: timedelta) -> datetime:
    """The first beginning of a step, of those that fill the days of UTC, at or after this moment."""
    midnight = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    begun = (at - midnight) // step
    floor = midnight + begun * step
    if floor == at:
        return floor
    return floor + step if _LATEST - floor >= step else _LATEST
