"""Where telemetry lies: PostgreSQL's partitions by UTC day and month; on SQLite whole tables (ADR 0015)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import Enum

import structlog
from django.db import OperationalError, connection, models, transaction

from devices_app.models import TelemetryMean, TelemetryReading

log = structlog.stdlib.get_logger(__name__)

# Dropping a partition locks the table. It waits so long for readers to end, and writers behind it as long.
DROP_WAIT_MS = 2000
# Any number of our own: PostgreSQL's advisory locks are one space for the whole database.
_MAKING = 0x53474D01


class Span(Enum):
    """How much time one partition holds."""

    DAY = "day"
    MONTH = "month"

    def begin(self, day: date) -> date:
        return day if self is Span.DAY else day.replace(day=1)

    def after(self, begin: date) -> date:
        """The beginning of the next one."""
        if self is Span.DAY:
            return begin + timedelta(days=1)
        return (begin + timedelta(days=31)).replace(day=1)


@dataclass(frozen=True, slots=True)
class Partitioned:
    """A table and the column and span by which it is partitioned."""

    model: type[models.Model]
    column: str
    span: Span

    @property
    def table(self) -> str:
        return str(self.model._meta.db_table)  # noqa: SLF001 - Django's documented name for it

    def name(self, begin: date) -> str:
        return f"{self.table}_{begin:%Y%m%d}"


READINGS = Partitioned(model=TelemetryReading, column="at", span=Span.DAY)
MEANS = Partitioned(model=TelemetryMean, column="start", span=Span.MONTH)


def is_partitioned() -> bool:
    return connection.vendor == "postgresql"


def midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def partitions(of: Partitioned) -> list[date]:
    """The beginnings of the partitions that are there, in order; none on SQLite."""
    if not is_partitioned():
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT child.relname FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid"
            " WHERE inhparent = %s::regclass",
            [of.table],
        )
        names = [name for (name,) in cursor.fetchall()]
    return sorted(datetime.strptime(name[-8:], "%Y%m%d").replace(tzinfo=UTC).date() for name in names)


def partitions_make(of: Partitioned, *, days: Collection[date]) -> list[date]:
    """Have a partition for each of these days; the beginnings of those that were made. Safe in two processes.

    Reading and writing go on meanwhile: a table is made beside the others and then attached, which unlike
    making it in its place waits for nobody.
    """
    wanted = sorted({of.span.begin(day) for day in days})
    if not is_partitioned() or not wanted:
        return []
    quote = connection.ops.quote_name
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_MAKING])
        there = set(partitions(of))
        missing = [begin for begin in wanted if begin not in there]
        for begin in missing:
            name, parent = quote(of.name(begin)), quote(of.table)
            cursor.execute(
                f"CREATE TABLE {name}"
                f" (LIKE {parent} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)"
            )
            cursor.execute(
                f"ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES FROM (%s) TO (%s)",
                [midnight(begin), midnight(of.span.after(begin))],
            )
    for begin in missing:
        log.info("partition_made", partition=of.name(begin))
    return missing


def partitions_drop(of: Partitioned, *, before: datetime, wait_ms: int = DROP_WAIT_MS) -> int:
    """Drop the partitions all of whose time is before this; how many.

    A table that others read for longer than `wait_ms` is left for the next run.
    """
    dropped = 0
    for begin in partitions(of):
        if midnight(of.span.after(begin)) > before:
            break
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(f"SET LOCAL lock_timeout = {wait_ms:d}")
                cursor.execute(f"DROP TABLE IF EXISTS {connection.ops.quote_name(of.name(begin))}")
        except OperationalError as error:
            log.warning("partition_busy", partition=of.name(begin), error=str(error))
            break
        log.info("partition_dropped", partition=of.name(begin))
        dropped += 1
    return dropped
