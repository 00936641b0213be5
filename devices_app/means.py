"""Means of quarter hours, made again when readings come late; and what is let go of in the end (ADR 0015)."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, datetime, timedelta

import structlog
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Exists, Min, OuterRef

from devices_app.models import (
    Quality,
    TelemetryClosing,
    TelemetryLate,
    TelemetryMean,
    TelemetryQuarter,
    TelemetryReading,
    TelemetrySeries,
)
from devices_app.partitions import (
    MEANS,
    READINGS,
    Partitioned,
    is_partitioned,
    midnight,
    partitions_drop,
    partitions_make,
)
from devices_app.telemetry import CLOSING_LOCK, QUARTER, quarter_of

log = structlog.stdlib.get_logger(__name__)

# Readings of a quarter come for a while after its end; those that come later still make it anew.
GRACE = timedelta(minutes=2)
# A day is dropped this long after its last reading became too old to be taken, so that nobody who has just
# taken one finds its place gone.
DROP_MARGIN = timedelta(hours=1)
DAYS_AHEAD = 3
LATE_AT_ONCE = 2000
ROWS_AT_ONCE = 5000


def partitions_keep(*, now: datetime) -> None:
    """Have the partitions of today and the days ahead; idempotent."""
    days = [now.date() + timedelta(days=ahead) for ahead in range(DAYS_AHEAD + 1)]
    partitions_make(READINGS, days=days)
    partitions_make(MEANS, days=days)


# --- means ------------------------------------------------------------------------------------------------


def means_make(*, now: datetime, at_once: int = LATE_AT_ONCE) -> int:
    """Make the means of all quarters that are over, and again of those that got readings late; how many.

    Each quarter is one transaction together with the note that it is to be made: killed anywhere, the next
    run takes up what is left. Two runs at once share the work. Late ones go `at_once` to a transaction.
    """
    quarters_close(now=now)
    made = 0
    for start in list(TelemetryQuarter.objects.order_by("start").values_list("start", flat=True)):
        made += _make_whole(start, now=now)
    newest = TelemetryLate.objects.order_by("-pk").values_list("pk", flat=True).first()
    # What comes late meanwhile is for the next run, or a node that sends nothing else would keep this one.
    while newest is not None and (again := _make_late(up_to=newest, now=now, at_once=at_once)):
        made += again
    return made


def quarters_close(*, now: datetime) -> int:
    """Close the quarters that ended some time ago and note them down as to be made; how many.

    Whoever inserts readings holds the lock shared from before it looks at what is closed until its commit.
    So every reading is either there when its quarter is made, or noted as late.
    """
    until = quarter_of(now - GRACE)
    with transaction.atomic():
        if is_partitioned():
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [CLOSING_LOCK])
        since = TelemetryClosing.objects.values_list("until", flat=True).first()
        if since is None:
            oldest = TelemetryReading.objects.aggregate(oldest=Min("at"))["oldest"]
            since = until if oldest is None else min(quarter_of(oldest), until)
        elif since > until:
            # The clock was ahead. What is opened again will be closed again, and made again.
            log.warning("telemetry_quarters_reopened", closed_until=since.isoformat(), now=now.isoformat())
        since = max(since, _gone_before(now))
        count = max(0, (until - since) // QUARTER)
        TelemetryQuarter.objects.bulk_create(
            (TelemetryQuarter(start=since + number * QUARTER) for number in range(count)),
            ignore_conflicts=True,
        )
        TelemetryClosing.objects.update_or_create(id=1, defaults={"until": until})
    return count


def _make_whole(start: datetime, *, now: datetime) -> int:
    partitions_make(MEANS, days=[start.date()])
    with transaction.atomic():
        deleted, _ = TelemetryQuarter.objects.filter(pk=start).delete()
        if not deleted:
            # Another run was faster.
            return 0
        if start >= _gone_before(now):
            _make(start, series=None)
    return 1


def _make_late(*, up_to: int, now: datetime, at_once: int) -> int:
    """Make some of the quarters that got readings late; how many rows of that log are settled."""
    with transaction.atomic():
        rows = list(
            TelemetryLate.objects.select_for_update(skip_locked=True)
            .filter(pk__lte=up_to)
            .order_by("pk")
            .values_list("pk", "start", "series_id")[:at_once]
        )
        series_of: dict[datetime, set[int]] = {}
        for _, start, series in rows:
            # Some of the readings it was made from may be gone by now.
            if start >= _gone_before(now):
                series_of.setdefault(start, set()).add(series)
        # Before they are read anew: a reading that is not seen then has a row of its own here.
        TelemetryLate.objects.filter(pk__in=[pk for pk, _, _ in rows]).delete()
        partitions_make(MEANS, days={start.date() for start in series_of})
        for start in sorted(series_of):
            _make(start, series=series_of[start])
    return len(rows)


def _make(start: datetime, *, series: Collection[int] | None) -> None:
    """Write the means of one quarter, of these series or of all, over what was made of it before."""
    chosen = "" if series is None else f"AND series_id IN ({', '.join(['%s'] * len(series))})"
    begin, end = (connection.ops.adapt_datetimefield_value(at) for at in (start, start + QUARTER))
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO devices_app_telemetrymean (series_id, start, mean, minimum, maximum, count)"  # noqa: S608 - our own text and placeholders
            " SELECT series_id, %s, avg(value), min(value), max(value), count(*)"
            " FROM devices_app_telemetryreading"
            f" WHERE at >= %s AND at < %s AND quality = %s {chosen}"
            # In one order in every process, so that no two wait for each other.
            " GROUP BY series_id ORDER BY series_id"
            " ON CONFLICT (series_id, start) DO UPDATE SET mean = excluded.mean,"
            " minimum = excluded.minimum, maximum = excluded.maximum, count = excluded.count",
            [begin, begin, end, Quality.GOOD.value, *sorted(series or ())],
        )


# --- retention --------------------------------------------------------------------------------------------


def telemetry_retain(*, now: datetime, at_once: int = ROWS_AT_ONCE) -> None:
    """Let go of readings and means past their time, and of series that nothing is left of; idempotent.

    SQLite deletes `at_once` rows to a transaction, so that nobody waits for long behind it.
    """
    _let_go(READINGS, before=_gone_before(now), at_once=at_once)
    means_from = now - timedelta(days=settings.SGM_TELEMETRY_MEANS_RETENTION_DAYS)
    _let_go(MEANS, before=midnight(means_from.date()), at_once=at_once)
    of_this = {"series": OuterRef("pk")}
    # Those of devices and nodes that are there may get readings at any moment.
    gone = TelemetrySeries.objects.filter(device=None, node=None, created_at__lt=means_from)
    gone.filter(
        ~Exists(TelemetryReading.objects.filter(**of_this)), ~Exists(TelemetryMean.objects.filter(**of_this))
    ).delete()


def _gone_before(now: datetime) -> datetime:
    """The midnight before which readings may have been dropped."""
    oldest = now - timedelta(days=settings.SGM_TELEMETRY_RETENTION_DAYS) - DROP_MARGIN
    day: date = oldest.date()
    return midnight(day)


def _let_go(of: Partitioned, *, before: datetime, at_once: int) -> None:
    if is_partitioned():
        partitions_drop(of, before=before)
        return
    rows = of.model._default_manager.filter(**{f"{of.column}__lt": before})  # noqa: SLF001 - Django's documented name for it
    deleted = 0
    while keys := list(rows.values_list("pk", flat=True)[:at_once]):
        deleted += of.model._default_manager.filter(pk__in=keys).delete()[0]  # noqa: SLF001
    if deleted:
        log.info("telemetry_deleted", table=of.table, rows=deleted, before=before.isoformat())
