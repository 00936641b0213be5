"""How long logs are kept."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db.models import Exists, OuterRef, QuerySet

from control_app.models import ControlLog, DeviceErrorLog, NodeStream

log = structlog.stdlib.get_logger(__name__)

ROWS_AT_ONCE = 5000
# A node that began another store this long ago has sent all it had in the one before: its oldest goes first.
STREAM_LEFT_FOR = timedelta(days=30)


def logs_retain(*, now: datetime, at_once: int = ROWS_AT_ONCE) -> None:
    """Delete log lines that are older than their setting says, which may be never.

    `at_once` to a transaction, so that nobody waits for long behind it; the next run resumes.
    """
    days = settings.SGM_CONTROL_LOG_RETENTION_DAYS
    if days:
        _delete(ControlLog.objects.filter(created_at__lt=now - timedelta(days=days)), at_once=at_once)
    days = settings.SGM_DEVICE_ERROR_LOG_RETENTION_DAYS
    if days:
        _delete(DeviceErrorLog.objects.filter(timestamp__lt=now - timedelta(days=days)), at_once=at_once)
    _delete(_streams_left(now=now), at_once=at_once)


def _streams_left(*, now: datetime) -> QuerySet[NodeStream]:
    """The positions of streams that ended: each start of a node's process begins new ones."""
    later = NodeStream.objects.filter(
        node=OuterRef("node"),
        stream=OuterRef("stream"),
        since__gt=OuterRef("since"),
        since__lt=now - STREAM_LEFT_FOR,
    )
    return NodeStream.objects.filter(Exists(later))


def _delete(rows: QuerySet[Any], *, at_once: int) -> None:
    table = rows.model._meta.db_table  # noqa: SLF001 - Django's documented name for it
    deleted = 0
    while keys := list(rows.order_by().values_list("pk", flat=True)[:at_once]):
        deleted += rows.model._default_manager.filter(pk__in=keys).delete()[0]  # noqa: SLF001
    if deleted:
        log.info("log_lines_deleted", table=table, rows=deleted)
