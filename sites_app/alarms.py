"""What somebody should look at: raised, seen again, cleared, and kept as history for a while.

An alarm is a condition, not an event: whoever judges a condition says what holds now, as often as they like,
and one row stays open for as long as it does. All moments are central's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from django.db import IntegrityError, transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from edge.wire.messages import Alarm as NodeAlarm
from sites_app.alarm_routes import deliveries_queue
from sites_app.events import alarms_publish
from sites_app.models import Alarm, AlarmSeverity, AlarmStep, Node, Site
from smartgrid.errors import Conflict

log = structlog.stdlib.get_logger(__name__)

# What central itself notices; a node may use the same words in its reports, and neither clears the other's.
NODE_SILENT = "node_silent"
NODE_OUT_OF_SYNC = "node_out_of_sync"
NODE_DEAF = "node_deaf"
NODE_CERTIFICATE = "node_certificate"
SLOT_NOT_CONFIRMED = "slot_not_confirmed"
DEVICE_SILENT = "device_silent"
COMMAND_UNANSWERED = "command_unanswered"
SETPOINT_NOT_HELD = "setpoint_not_held"

# Every other code is a warning.
SEVERITIES: Mapping[str, AlarmSeverity] = {
    NODE_SILENT: AlarmSeverity.ERROR,
    NODE_DEAF: AlarmSeverity.ERROR,
    SLOT_NOT_CONFIRMED: AlarmSeverity.ERROR,
    DEVICE_SILENT: AlarmSeverity.ERROR,
    COMMAND_UNANSWERED: AlarmSeverity.ERROR,
    SETPOINT_NOT_HELD: AlarmSeverity.ERROR,
    "store_failed": AlarmSeverity.ERROR,
    "limit_not_held": AlarmSeverity.ERROR,
    "not_followed": AlarmSeverity.ERROR,
    # Of a closed loop: it cannot be used, its meter is silent, a member does not do what it is commanded.
    "loop_refused": AlarmSeverity.ERROR,
    "loop_stale": AlarmSeverity.ERROR,
    "meter_sign": AlarmSeverity.ERROR,
    "unresponsive": AlarmSeverity.ERROR,
}

# An alarm that goes on is written down again no more often than this, unless it says something new.
SEEN_AGAIN_AFTER = timedelta(seconds=60)
# As many of one node's own alarms as are kept open: a node that reports more is itself what to look at.
PER_NODE = 200
# As many transitions of one judgement as are logged a line each.
LOGGED_EACH = 20

_CODE_LENGTH = 64
_SUBJECT_LENGTH = 200
_DETAIL_LENGTH = 2000
_BY_LENGTH = 150
_NOTE_LENGTH = 500


@dataclass(frozen=True, slots=True)
class AlarmKey:
    """What makes two alarms the same one; without a node it is the site's. `by_node`: who noticed."""

    code: str
    site_id: UUID
    node_id: UUID | None = None
    subject: str = ""
    by_node: bool = False


@dataclass(frozen=True, slots=True)
class AlarmText:
    """What an alarm says."""

    detail: str
    node_name: str = ""


def alarm_raise(*, code: str, site: Site, node: Node | None = None, subject: str = "", detail: str) -> Alarm:
    """Open this alarm, or see it again: while it is open, a second call updates its detail.

    `subject` tells apart what one node or site can have several of. Safe to be called by two at once, and
    inside a transaction.
    """
    key = AlarmKey(code, site.pk, None if node is None else node.pk, _fit(subject, _SUBJECT_LENGTH))
    text = AlarmText(detail=detail, node_name="" if node is None else node.name)
    now = timezone.now()
    while True:
        # Again where another raised it between the two, and once more where a third has cleared that.
        if not _open(key).update(detail=_fit(detail, _DETAIL_LENGTH), last_seen_at=now):
            try:
                with transaction.atomic():
                    row = _row(key, text, at=now)
                    row.save(force_insert=True)
                    _tell([row], AlarmStep.RAISED)
            except IntegrityError:
                if not _open(key).exists():
                    raise
            else:
                _log_raised([row])
                return row
        row_now = _open(key).first()
        if row_now is not None:
            return row_now


def alarm_clear(*, code: str, site: Site, node: Node | None = None, subject: str = "") -> bool:
    """Close this alarm; False where none was open."""
    key = AlarmKey(code, site.pk, None if node is None else node.pk, _fit(subject, _SUBJECT_LENGTH))
    return bool(_clear(list(_open(key)), at=timezone.now()))


def alarms_settle(*, among: QuerySet[Alarm], wanted: Mapping[AlarmKey, AlarmText]) -> tuple[int, int]:
    """Bring the open alarms of a judgement in line with what it found: how many were raised, and cleared.

    `among` are the alarms it has a say about (the open ones of them count): those not wanted are cleared.
    Costs one query where nothing changed, however many nodes are meant.
    """
    now = timezone.now()
    found = {_key_of(alarm): alarm for alarm in among.filter(cleared_at=None)}
    again = [
        alarm
        for key, alarm in found.items()
        if key in wanted
        and (
            alarm.detail != _fit(wanted[key].detail, _DETAIL_LENGTH) or _is_long_ago(alarm.last_seen_at, now)
        )
    ]
    fresh = [_row(key, text, at=now) for key, text in wanted.items() if key not in found]
    gone = [alarm for key, alarm in found.items() if key not in wanted]
    if not (again or fresh or gone):
        return 0, 0
    with transaction.atomic():
        if again:
            for alarm in again:
                alarm.detail = _fit(wanted[_key_of(alarm)].detail, _DETAIL_LENGTH)
                alarm.last_seen_at = now
            Alarm.objects.bulk_update(again, ["detail", "last_seen_at"], batch_size=500)
        # Whoever raised one of these meanwhile was right too.
        Alarm.objects.bulk_create(fresh, ignore_conflicts=True, batch_size=500)
        _tell(_stored(fresh, at=now), AlarmStep.RAISED)
        cleared = _clear(gone, at=now)
    _log_raised(fresh)
    return len(fresh), cleared


def nodes_alarms_mirror(reported: Iterable[tuple[Node, Sequence[NodeAlarm]]]) -> tuple[int, int]:
    """Let the open alarms of these nodes be what each of them reports now: how many were raised, and cleared.

    A node can say no more than `PER_NODE` things at once, and nothing of what central noticed itself.
    """
    wanted: dict[AlarmKey, AlarmText] = {}
    nodes = []
    for node, alarms in reported:
        nodes.append(node.pk)
        if len(alarms) > PER_NODE:
            log.error("node_alarms_too_many", node=node.name, alarms=len(alarms), kept=PER_NODE)
        for alarm in alarms[:PER_NODE]:
            code = _fit(alarm.code, _CODE_LENGTH) or "unnamed"
            key = AlarmKey(code, node.site_id, node.pk, _fit(alarm.device, _SUBJECT_LENGTH), by_node=True)
            wanted[key] = AlarmText(detail=alarm.detail, node_name=node.name)
    if not nodes:
        return 0, 0
    return alarms_settle(among=Alarm.objects.filter(node__in=nodes, by_node=True), wanted=wanted)


def alarm_acknowledge(*, alarm: Alarm, by: str, note: str = "") -> bool:
    """Note that somebody looks after this alarm; False where somebody did already, whose word stays.

    It stays open until its condition is over. `Conflict` where it is over.
    """
    with transaction.atomic():
        taken = Alarm.objects.filter(pk=alarm.pk, acknowledged_at=None, cleared_at=None).update(
            acknowledged_at=timezone.now(),
            acknowledged_by=by[:_BY_LENGTH],
            note=_fit(note.strip(), _NOTE_LENGTH),
        )
        alarm.refresh_from_db()
        if taken:
            _tell([alarm], AlarmStep.ACKNOWLEDGED)
    if taken:
        log.info("alarm_acknowledged", **_words(alarm), by=by)
    elif alarm.acknowledged_at is None:
        raise Conflict(f"{alarm} is over, there is nothing to acknowledge.", code="alarm_is_over")
    return bool(taken)


def node_alarms_end(*, node: Node) -> int:
    """Close all alarms of a node that is about to be deleted; how many. Their history stays."""
    return _clear(list(Alarm.objects.filter(node=node, cleared_at=None)), at=timezone.now())


def alarms_forget(*, before: datetime) -> int:
    """Delete what was cleared before this moment; how many."""
    deleted, _ = Alarm.objects.filter(cleared_at__lt=before).delete()
    return deleted


def alarms_open_first(alarms: QuerySet[Alarm]) -> QuerySet[Alarm]:
    """What is open, the newest first, and then what was cleared last."""
    return alarms.order_by(F("cleared_at").desc(nulls_first=True), F("raised_at").desc(), "-pk")


def _open(key: AlarmKey) -> QuerySet[Alarm]:
    return Alarm.objects.filter(
        code=key.code,
        site=key.site_id,
        node=key.node_id,
        subject=key.subject,
        by_node=key.by_node,
        cleared_at=None,
    )


def _row(key: AlarmKey, text: AlarmText, *, at: datetime) -> Alarm:
    return Alarm(
        code=key.code,
        severity=SEVERITIES.get(key.code, AlarmSeverity.WARNING),
        site_id=key.site_id,
        node_id=key.node_id,
        node_name=text.node_name,
        subject=key.subject,
        by_node=key.by_node,
        detail=_fit(text.detail, _DETAIL_LENGTH),
        raised_at=at,
        last_seen_at=at,
    )


def _key_of(alarm: Alarm) -> AlarmKey:
    return AlarmKey(alarm.code, alarm.site_id, alarm.node_id, alarm.subject, alarm.by_node)


def _is_long_ago(seen: datetime, now: datetime) -> bool:
    # Either way: a clock that was set back must not keep it from being seen again.
    return abs(now - seen) >= SEEN_AGAIN_AFTER


def _clear(alarms: Sequence[Alarm], *, at: datetime) -> int:
    if not alarms:
        return 0
    with transaction.atomic():
        # Locked, so that of two who clear an alarm one tells of it.
        rows = Alarm.objects.select_for_update().filter(
            pk__in=[alarm.pk for alarm in alarms], cleared_at=None
        )
        open_now = list(rows.order_by("pk"))
        cleared = Alarm.objects.filter(pk__in=[row.pk for row in open_now]).update(cleared_at=at)
        _tell(open_now, AlarmStep.CLEARED)
    if cleared:
        for alarm in alarms[:LOGGED_EACH]:
            log.info("alarm_cleared", **_words(alarm), lasted_s=round((at - alarm.raised_at).total_seconds()))
        if len(alarms) > LOGGED_EACH:
            log.info("alarms_cleared", alarms=cleared)
    return cleared


def _stored(fresh: Sequence[Alarm], *, at: datetime) -> list[Alarm]:
    """Those of these rows that were stored by who calls, with their keys, which `bulk_create` leaves out."""
    if not fresh:
        return []
    keys = {_key_of(alarm) for alarm in fresh}
    rows = Alarm.objects.filter(code__in={key.code for key in keys}, raised_at=at, cleared_at=None).order_by(
        "pk"
    )
    return [row for row in rows if _key_of(row) in keys]


def _tell(alarms: Sequence[Alarm], step: AlarmStep) -> None:
    """Let listeners hear of it, and queue the notices, in the transaction of the step itself."""
    if alarms:
        deliveries_queue(alarms, step)
        alarms_publish(alarms, step)


def _log_raised(alarms: Sequence[Alarm]) -> None:
    for alarm in alarms[:LOGGED_EACH]:
        log.warning("alarm_raised", **_words(alarm), detail=alarm.detail)
    if len(alarms) > LOGGED_EACH:
        log.warning("alarms_raised", code=alarms[0].code, alarms=len(alarms))


def _words(alarm: Alarm) -> dict[str, str]:
    return {
        "code": alarm.code,
        "site": str(alarm.site_id),
        "node": alarm.node_name,
        "subject": alarm.subject,
    }


def _fit(text: str, length: int) -> str:
    """As the database can keep it: PostgreSQL takes no NUL."""
    return text.replace("\x00", "")[:length]
