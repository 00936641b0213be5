"""Notices of alarms: what is queued goes out here, at least once, and never in a flood (ADR 0036)."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from smtplib import SMTPException

import msgspec
import structlog
from django.conf import settings
from django.core.mail import EmailMessage
from django.db.models import Q

from sites_app.alarm_guide import guide_to
from sites_app.alarm_routes import addresses, alarm_route_secret
from sites_app.models import AlarmDelivery, AlarmRoute, DeliveryState, RouteKind
from sites_app.tokens import TokenUnreadable
from sites_app.webhooks import WebhookFailed, webhook_post
from smartgrid.api.fields import timestamp

log = structlog.stdlib.get_logger(__name__)

MINUTE = timedelta(seconds=60)
# Whoever died with a notice in hand: another takes it up after this.
LEASE = timedelta(seconds=120)
# After the first failure; doubled by each further one.
BACK_OFF, BACK_OFF_MOST = timedelta(seconds=30), timedelta(hours=1)
# About five hours.
ATTEMPTS = 12
# A run that has begun no message for so long leaves the rest to the next.
RUN_S = 10.0
# As many alarms are named by one digest; the rest of them are counted.
NAMED = 200
_AT_ONCE = 1000
_ERROR_LENGTH = 500

_NOT_SENT = "SGM_EMAIL_HOST is not set: there is no mail server"


class _NotSent(Exception):  # noqa: N818 - states the fault
    pass


def deliveries_send(*, now: datetime) -> tuple[int, int]:
    """Send what is due: how many notices were sent, and how many were put off or given up.

    Of more notices than a route may have messages in a minute the rest goes as one digest. The first failure
    of a route leaves its other notices for later.
    """
    begun = time.monotonic()
    sent = failed = 0
    due = AlarmDelivery.objects.filter(_due(now)).values_list("route", flat=True).distinct()
    for route in AlarmRoute.objects.filter(pk__in=due.order_by(), enabled=True).order_by("pk"):
        for batch in _messages(route, now=now):
            if time.monotonic() - begun > RUN_S:
                return sent, failed
            claimed = _claim(batch, now=now)
            if not claimed:
                continue
            error = _send(route, claimed, now=now)
            if error:
                failed += len(claimed)
                _put_off(claimed, error, now=now)
                break
            sent += len(claimed)
    return sent, failed


def _due(now: datetime) -> Q:
    # Put off by an hour at most: what is later than that is of a clock that was set back.
    late = Q(next_attempt_at__gt=now + BACK_OFF_MOST + LEASE)
    return Q(state=DeliveryState.QUEUED) & (Q(next_attempt_at__lte=now) | late)


def _messages(route: AlarmRoute, *, now: datetime) -> list[list[AlarmDelivery]]:
    """What is due of this route, as it is to go out now: a message each, the last one maybe a digest."""
    gone = route.deliveries.filter(sent_at__gt=now - MINUTE, sent_at__lte=now)
    room = settings.SGM_ALARM_MESSAGES_PER_MINUTE - gone.values("message").distinct().count()
    if room <= 0:
        return []
    rows = route.deliveries.filter(_due(now)).select_related("alarm__site").order_by("pk")
    waiting = list(rows[:_AT_ONCE])
    if len(waiting) <= room:
        return [[row] for row in waiting]
    return [*([row] for row in waiting[: room - 1]), waiting[room - 1 :]]


def _claim(batch: Sequence[AlarmDelivery], *, now: datetime) -> list[AlarmDelivery]:
    """Those of these that nobody else has just taken."""
    claimed = []
    for row in batch:
        mine = AlarmDelivery.objects.filter(
            pk=row.pk, state=DeliveryState.QUEUED, next_attempt_at=row.next_attempt_at
        )
        if mine.update(next_attempt_at=now + LEASE):
            claimed.append(row)
    return claimed


def _send(route: AlarmRoute, rows: Sequence[AlarmDelivery], *, now: datetime) -> str:
    """Send one message and keep that; why not, where it was not sent."""
    message = uuid.uuid4()
    try:
        if route.kind == RouteKind.EMAIL:
            _mail(route, rows)
        else:
            body = _body(route, rows, message=message, now=now)
            at = int(now.timestamp())
            webhook_post(route.target, body=body, secret=alarm_route_secret(route), at=at)
    except (_NotSent, WebhookFailed) as error:
        return str(error)
    except TokenUnreadable as error:
        return f"its secret cannot be read: {error}"
    except (SMTPException, OSError, ValueError) as error:
        # Not its words: a server may repeat what it was told.
        return f"the mail server did not take it: {type(error).__name__}"
    AlarmDelivery.objects.filter(pk__in=[row.pk for row in rows]).update(
        state=DeliveryState.SENT, sent_at=now, message=message, last_error="", attempts=rows[0].attempts + 1
    )
    log.info("alarm_notice_sent", route=route.name, notices=len(rows))
    return ""


def _put_off(rows: Sequence[AlarmDelivery], error: str, *, now: datetime) -> None:
    for row in rows:
        row.attempts += 1
        row.last_error = error[:_ERROR_LENGTH]
        row.next_attempt_at = now + min(BACK_OFF_MOST, BACK_OFF * 2 ** (row.attempts - 1))
        if row.attempts >= ATTEMPTS:
            row.state = DeliveryState.FAILED
    AlarmDelivery.objects.bulk_update(
        rows, ["attempts", "last_error", "next_attempt_at", "state"], batch_size=500
    )
    given_up = sum(row.state == DeliveryState.FAILED for row in rows)
    log.warning("alarm_notice_not_sent", route=str(rows[0].route_id), error=error, given_up=given_up)


# --- words ----------------------------------------------------------------------------------------------


def _mail(route: AlarmRoute, rows: Sequence[AlarmDelivery]) -> None:
    if settings.EMAIL_BACKEND == "django.core.mail.backends.smtp.EmailBackend" and not settings.EMAIL_HOST:
        raise _NotSent(_NOT_SENT)
    subject = f"[SGM] {len(rows)} notices of alarms" if len(rows) > 1 else f"[SGM] {_headline(rows[0])}"
    parts = [_paragraph(row) for row in rows[:NAMED]]
    if len(rows) > NAMED:
        parts.append(f"And {len(rows) - NAMED} more.")
    if settings.SGM_CONSOLE_URL:
        parts.append(f"{settings.SGM_CONSOLE_URL.rstrip('/')}/admin/alarms/")
    # No line of what a node wrote may become a header.
    one_line = " ".join(subject.split())[:200]
    EmailMessage(one_line, "\n\n".join(parts) + "\n", to=addresses(route.target)).send()


def _headline(row: AlarmDelivery) -> str:
    alarm = row.alarm
    where = " ".join(filter(None, [alarm.site.site_tag, alarm.node_name, alarm.subject]))
    return f"{row.what.capitalize()}: {guide_to(alarm.code).title}, {where}"


def _paragraph(row: AlarmDelivery) -> str:
    alarm, guide = row.alarm, guide_to(row.alarm.code)
    lines = [_headline(row), f"{alarm.severity}, {alarm.code}, raised {timestamp(alarm.raised_at)}"]
    if alarm.detail:
        lines.append(alarm.detail)
    if alarm.acknowledged_at is not None:
        lines.append(f"Acknowledged by {alarm.acknowledged_by}. {alarm.note}".strip())
    if alarm.cleared_at is None:
        lines.append(f"What to do: {guide.do}")
    return "\n".join(lines)


def _body(route: AlarmRoute, rows: Sequence[AlarmDelivery], *, message: uuid.UUID, now: datetime) -> bytes:
    notices = [
        {
            "what": row.what,
            "id": row.alarm.pk,
            "code": row.alarm.code,
            "title": guide_to(row.alarm.code).title,
            "what_to_do": guide_to(row.alarm.code).do,
            "severity": row.alarm.severity,
            "site_id": row.alarm.site_id,
            "site_tag": row.alarm.site.site_tag,
            "node_id": row.alarm.node_id,
            "polaris_node_name": row.alarm.node_name,
            "subject": row.alarm.subject,
            "detail": row.alarm.detail,
            "raised_at": timestamp(row.alarm.raised_at),
            "acknowledged_by": row.alarm.acknowledged_by,
            "note": row.alarm.note,
            "cleared_at": None if row.alarm.cleared_at is None else timestamp(row.alarm.cleared_at),
        }
        for row in rows[:NAMED]
    ]
    told = {"id": message, "route": route.name, "at": timestamp(now), "notices": notices}
    return msgspec.json.encode({**told, "more": max(0, len(rows) - NAMED)})
