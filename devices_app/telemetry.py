"""Readings on their way in: into the history, once however often they come, and into what is newest."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import msgspec
import structlog
from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.db.backends.signals import connection_created
from django.db.models import Q
from django.dispatch import receiver

from devices_app.models import (
    Device,
    Quality,
    TelemetryClosing,
    TelemetryLate,
    TelemetryReading,
    TelemetrySeries,
)
from devices_app.partitions import READINGS, is_partitioned, partitions_make
from edge.wire.messages import TelemetryPoint
from sites_app.models import Node
from smartgrid import live

log = structlog.stdlib.get_logger(__name__)

# A node's clock may be this far ahead before it is not believed.
AHEAD_AT_MOST = timedelta(minutes=5)
# What is newest about a site is forgotten when nothing came for so long. Readers judge the age themselves.
LATEST_KEPT_S = 3600
QUARTER = timedelta(minutes=15)
# Keys of one device, in whatever unit: beyond that a node makes them up.
SERIES_AT_MOST = 200
# In any unit of ours; the squares of larger ones are more than a database's mean can take.
VALUE_AT_MOST = 1e15
NODES_REMEMBERED = 20_000
WARNINGS_REMEMBERED = 10_000
KEY_LENGTH = 64
UNIT_LENGTH = 16
QUALITIES: dict[str, int] = {quality.label: quality.value for quality in Quality}
# Held shared by whoever inserts, and alone by whoever closes quarters: see `quarters_close`.
CLOSING_LOCK = 0x53474D02

# What was not stored since this process began, by reason.
dropped: Counter[str] = Counter()


@dataclass(frozen=True, slots=True)
class ReceivedReadings:
    """The readings of one message of a node, and when central received it."""

    node_id: str
    points: Sequence[TelemetryPoint]
    received: datetime


# Device tag (empty: the node itself), key and unit: how a node names a series.
Place = tuple[str, str, str]


@dataclass(slots=True)
class _NodeSeries:
    """What the database says of one node, as of one version of what the node should run."""

    node_id: UUID
    name: str
    site_id: UUID
    version: tuple[int, int]
    devices: dict[str, UUID]
    series: dict[Place, int] = field(default_factory=dict)

    def source(self, tag: str) -> UUID | None:
        return self.devices.get(tag) if tag else self.node_id


_remembered: dict[str, _NodeSeries] = {}
_days_there: set[date] = set()
_warned: set[tuple[str, ...]] = set()

_Row = tuple[int, datetime, float, int]


@receiver(connection_created)
def _forget(**_: object) -> None:
    """What was read over a former connection may not be so any more: a backup may have been restored."""
    _remembered.clear()
    _days_there.clear()


def readings_record(received: Sequence[ReceivedReadings]) -> None:
    """Store these readings, each once however often it comes, and keep the newest of each series at hand.

    All or nothing reaches the history: the database's errors are the caller's, who may send the same again.
    What cannot be stored is counted in `dropped` and logged once: readings of unknown nodes and devices, of
    names no profile has, values beyond 1e15, and those older than the history is kept. A reading without a
    time is dated by its receipt. One from more than five minutes ahead has a wrong clock behind it: the
    newest that the node sent at that moment is dated by receipt, the others as far from it as they say.
    Without Redis the history is kept all the same.
    """
    nodes = _nodes_known({item.node_id for item in received})
    _series_find(received, nodes)
    rows: list[_Row] = []
    newest: dict[int, tuple[datetime, TelemetryPoint, _NodeSeries]] = {}
    times = [_times(item) for item in received]
    shifts = _shifts(received, times, nodes)
    for item, measured in zip(received, times, strict=True):
        node = nodes.get(item.node_id)
        if node is None:
            _drop("unknown_node", len(item.points), node=item.node_id)
            continue
        shift = shifts.get((item.node_id, item.received))
        _take(item, times=measured, node=node, shift=shift, rows=rows, newest=newest)
    if rows:
        # In one order in every process, so that no two wait for each other.
        rows.sort()
        _store(rows)
        _latest_write(newest.values())


# --- whose they are ---------------------------------------------------------------------------------------


def _nodes_known(node_ids: Collection[str]) -> dict[str, _NodeSeries]:
    """What is known of these nodes, read anew of those whose configuration has changed.

    A change of devices changes the node's `config`, hence its version; a move changes the site.
    """
    # Within a transaction of the caller's, what is seen may never come to be.
    remembered = {} if connection.in_atomic_block else _remembered
    if len(remembered) > NODES_REMEMBERED:
        remembered.clear()
    known: dict[str, _NodeSeries] = {}
    changed: dict[UUID, _NodeSeries] = {}
    rows = Node.objects.filter(pk__in=node_ids)
    for pk, name, site_id, *versions in rows.values_list(
        "pk", "name", "site_id", "epoch", "manifest_version"
    ):
        version = (versions[0], versions[1])
        node = remembered.get(str(pk))
        if node is None or (node.site_id, node.version) != (site_id, version):
            node = changed[pk] = _NodeSeries(pk, name, site_id, version, {})
        known[str(pk)] = node
    if changed:
        devices = Device.objects.filter(node_id__in=changed).values_list("node_id", "device_tag", "pk")
        for node_id, tag, pk in devices:
            changed[node_id].devices[tag] = pk
        remembered.update({str(pk): node for pk, node in changed.items()})
    return known


def _series_find(received: Sequence[ReceivedReadings], nodes: Mapping[str, _NodeSeries]) -> None:
    """Know the series of every reading that has one; make those that are not there yet."""
    missing: dict[str, set[Place]] = {}
    for item in received:
        node = nodes.get(item.node_id)
        if node is None:
            continue
        for point in item.points:
            place = (point.device, point.key, point.unit)
            if place not in node.series and _is_plausible(point) and node.source(point.device) is not None:
                missing.setdefault(item.node_id, set()).add(place)
    if not missing:
        return
    _series_read([nodes[node_id] for node_id in missing])
    make: list[TelemetrySeries] = []
    for node_id, places in missing.items():
        make += _series_new(nodes[node_id], sorted(places))
    if make:
        # Another process may make the same at the same moment.
        TelemetrySeries.objects.bulk_create(make, ignore_conflicts=True)
        _series_read([nodes[node_id] for node_id in missing])


def _is_plausible(point: TelemetryPoint) -> bool:
    return (
        0 < len(point.key) <= KEY_LENGTH
        and len(point.unit) <= UNIT_LENGTH
        and point.key.isprintable()
        and point.unit.isprintable()
    )


def _series_read(nodes: Collection[_NodeSeries]) -> None:
    of_device = {pk: (node, tag) for node in nodes for tag, pk in node.devices.items()}
    of_node = {node.node_id: node for node in nodes}
    rows = TelemetrySeries.objects.filter(
        Q(device_id__in=of_device) | Q(node_id__in=of_node), site_id__in={node.site_id for node in nodes}
    )
    for pk, site_id, node_id, device_id, key, unit in rows.values_list(
        "pk", "site_id", "node_id", "device_id", "key", "unit"
    ):
        node, tag = of_device[device_id] if device_id in of_device else (of_node[node_id], "")
        if site_id == node.site_id:
            # Ten thousand nodes have the same few keys and units.
            node.series[tag, sys.intern(key), sys.intern(unit)] = pk


def _series_new(node: _NodeSeries, places: Iterable[Place]) -> list[TelemetrySeries]:
    new = []
    counts = Counter(tag for tag, _, _ in node.series)
    for tag, key, unit in places:
        if (tag, key, unit) in node.series:
            continue
        counts[tag] += 1
        if counts[tag] > SERIES_AT_MOST:
            continue
        new.append(
            TelemetrySeries(
                site_id=node.site_id,
                node_id=None if tag else node.node_id,
                device_id=node.devices[tag] if tag else None,
                name=tag or node.name,
                key=key,
                unit=unit,
            )
        )
    return new


# --- what of them, and when -------------------------------------------------------------------------------


def _take(
    item: ReceivedReadings,
    *,
    times: Sequence[datetime],
    node: _NodeSeries,
    shift: timedelta | None,
    rows: list[_Row],
    newest: dict[int, tuple[datetime, TelemetryPoint, _NodeSeries]],
) -> None:
    received = item.received.astimezone(UTC)
    oldest = received - timedelta(days=settings.SGM_TELEMETRY_RETENTION_DAYS)
    for point, measured in zip(item.points, times, strict=True):
        at = measured if shift is None or measured <= received + AHEAD_AT_MOST else measured - shift
        series = node.series.get((point.device, point.key, point.unit))
        if series is None:
            unknown = node.source(point.device) is None
            _drop("unknown_device" if unknown else "no_series", 1, node=node.name, device=point.device)
            continue
        if at < oldest:
            _drop("too_old", 1, node=node.name)
            continue
        if not abs(point.value) <= VALUE_AT_MOST:
            _drop("no_number", 1, node=node.name, device=point.device)
            continue
        # A word that nobody here knows does not make it a good one.
        quality = QUALITIES.get(point.q, Quality.UNCERTAIN)
        rows.append((series, at, point.value, quality))
        if quality == Quality.GOOD:
            # One from a little ahead must not outlive those that are measured after it.
            seen = min(at, received)
            if series not in newest or newest[series][0] < seen:
                newest[series] = (seen, point, node)


def _times(item: ReceivedReadings) -> list[datetime]:
    """When each was measured, as the node says; its receipt where it does not."""
    parsed = [_parsed(point.t) for point in item.points]
    if None in parsed and _is_news("undated", item.node_id):
        log.warning("telemetry_undated", node=item.node_id)
    received = item.received.astimezone(UTC)
    return [at or received for at in parsed]


def _shifts(
    received: Sequence[ReceivedReadings],
    times: Sequence[Sequence[datetime]],
    nodes: Mapping[str, _NodeSeries],
) -> dict[tuple[str, datetime], timedelta]:
    """How far ahead the clock is behind what a node sent at one moment, where that is too far to be so."""
    newest: dict[tuple[str, datetime], datetime] = {}
    for item, measured in zip(received, times, strict=True):
        if measured and item.node_id in nodes:
            moment = (item.node_id, item.received)
            newest[moment] = max(newest.get(moment, measured[0]), *measured)
    shifts = {}
    for moment, at in newest.items():
        node_id, received_at = moment
        if at > received_at + AHEAD_AT_MOST:
            shifts[moment] = at - received_at
            if _is_news("clock_ahead", node_id):
                log.warning("telemetry_dated_by_receipt", node=nodes[node_id].name, newest=at.isoformat())
        elif ("clock_ahead", node_id) in _warned:
            _warned.discard(("clock_ahead", node_id))
            log.info("telemetry_clock_right_again", node=nodes[node_id].name)
    return shifts


def _parsed(text: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
        return at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def _drop(reason: str, count: int, **who: str) -> None:
    dropped[reason] += count
    if count and _is_news(reason, *who.values()):
        log.warning("telemetry_dropped", reason=reason, **who)


def _is_news(*what: str) -> bool:
    if what in _warned:
        return False
    if len(_warned) >= WARNINGS_REMEMBERED:
        _warned.clear()
    _warned.add(what)
    return True


# --- into the database ------------------------------------------------------------------------------------


def _store(rows: Sequence[_Row]) -> None:
    days = {row[1].date() for row in rows}
    if not days <= _days_there:
        _days_make(days)
    try:
        _insert(rows)
    except IntegrityError:
        # A day's partition was dropped since this process saw it, or was never committed.
        _days_make(days)
        _insert(rows)


def _days_make(days: set[date]) -> None:
    partitions_make(READINGS, days=days)
    if not connection.in_atomic_block:
        _days_there.update(days)


def _insert(rows: Sequence[_Row]) -> None:
    """Readings, and the quarters which they come too late for, in one transaction."""
    with transaction.atomic():
        closed_until = _closed_until()
        if is_partitioned():
            _insert_arrays(rows)
        else:
            TelemetryReading.objects.bulk_create(
                [TelemetryReading(series_id=row[0], at=row[1], value=row[2], quality=row[3]) for row in rows],
                ignore_conflicts=True,
            )
        if closed_until is not None:
            late = {(series, quarter_of(at)) for series, at, _, _ in rows if at < closed_until}
            TelemetryLate.objects.bulk_create(
                TelemetryLate(series_id=series, start=start) for series, start in sorted(late)
            )


def _insert_arrays(rows: Sequence[_Row]) -> None:
    """One statement for all, whose text does not grow with them."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO devices_app_telemetryreading (series_id, at, value, quality)"
            " SELECT * FROM unnest(%s::bigint[], %s::timestamptz[], %s::float8[], %s::smallint[])"
            " ON CONFLICT DO NOTHING",
            [list(column) for column in zip(*rows, strict=True)],
        )


def _closed_until() -> datetime | None:
    """Up to when quarters are closed, which stays so until this transaction ends."""
    if is_partitioned():
        # Two statements: the second must see what was committed while the first waited.
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", [CLOSING_LOCK])
    return TelemetryClosing.objects.values_list("until", flat=True).first()


def quarter_of(at: datetime) -> datetime:
    """The beginning of the UTC quarter hour this is in."""
    return at.replace(minute=at.minute - at.minute % 15, second=0, microsecond=0)


# --- what is newest ---------------------------------------------------------------------------------------


class Latest(msgspec.Struct, frozen=True, kw_only=True):
    """The newest good reading of a series: a value in its unit."""

    value: float
    unit: str = ""


STAMP = "%Y-%m-%dT%H:%M:%S.%fZ"


def latest_key(site_id: UUID) -> str:
    """The Redis hash of a site's newest readings: `{device or node id}/{key}` -> when, and `Latest`."""
    return f"sgm:site:{site_id}:latest"


def _latest_write(newest: Iterable[tuple[datetime, TelemetryPoint, _NodeSeries]]) -> None:
    hashes: dict[str, dict[str, tuple[str, str]]] = {}
    for at, point, node in newest:
        name = f"{node.source(point.device)}/{point.key}"
        value = msgspec.json.encode(Latest(value=point.value, unit=point.unit)).decode()
        hashes.setdefault(latest_key(node.site_id), {})[name] = (at.strftime(STAMP), value)
    try:
        live.hashes_newest_write(hashes, expires_s=LATEST_KEPT_S)
    except live.LiveUnavailable as error:
        if _is_news("live"):
            log.warning("latest_readings_not_written", error=error.detail)
        return
    if ("live",) in _warned:
        _warned.discard(("live",))
        log.info("latest_readings_written_again")
