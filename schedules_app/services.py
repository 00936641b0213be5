"""What happens to schedules; each change reaches every node of the site as a document of its own.

A change takes the site's row first, as whoever adds a node to it does: of two at once the later sees what the
earlier was about. Then the schedules' rows, then the nodes'.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

import msgspec
import structlog
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from edge.wire.messages import ScheduleBody
from schedules_app import selectors
from schedules_app.models import DOCUMENTS, Schedule, day_of_document
from schedules_app.slots import Member, Slots, quarter_hours, slots_checked
from schedules_app.window import Window, expiry_of, is_over, window_at
from sites_app.alarms import SLOT_NOT_CONFIRMED, AlarmKey, AlarmText, alarms_settle
from sites_app.documents import documents_drop, documents_put, nodes_documents_render, renderer_register
from sites_app.models import Alarm, Node, Site
from smartgrid.errors import Conflict, Invalid, NotFound
from smartgrid.integrity import store

log = structlog.stdlib.get_logger(__name__)

MAX_COPIES = 366
# Up to as many documents are put down one by one, which costs less than to look at all a node has.
FEW = 3


def register() -> None:
    renderer_register(
        prefix=DOCUMENTS, render=_render, expires_at=lambda name: expiry_of(day_of_document(name))
    )


def site_kept_by(site: Site) -> list[str]:
    """What of its schedules keeps a site from being deleted, for people."""
    number = Schedule.objects.filter(site=site).count()
    return [f"{number} schedule{'s' * (number != 1)}"] if number else []


def schedule_create(*, site: Site, category: str, valid_on: date, slots: object) -> Schedule:
    """Plan a day. `Conflict` where site, category and day have a schedule already.

    `Invalid` for a day that is over (UTC), a category of which the site has nothing to control, and slots
    that cannot be used.
    """
    with transaction.atomic():
        now = _site_take(site.pk)
        _refuse_past(valid_on, now=now)
        schedule = Schedule(
            site=site,
            category=category,
            valid_on=valid_on,
            schedule=slots_checked(slots, members=_members(site, category)),
            is_listed=valid_on in window_at(now),
        )
        store(schedule)
        _put_down([schedule])
    log.info("schedule_created", site=site.site_tag, category=category, valid_on=str(valid_on))
    return schedule


def schedule_replace(*, schedule: Schedule, slots: object) -> Schedule:
    """Plan the same day anew, whole; until the nodes have answered nothing is known to be in force.

    Refused like a new one; `NotFound` where it was deleted meanwhile.
    """
    with transaction.atomic():
        now = _site_take(schedule.site_id)
        schedule = _schedule_take(schedule)
        _refuse_past(schedule.valid_on, now=now)
        schedule.schedule = slots_checked(slots, members=_members(schedule.site, schedule.category))
        schedule.is_listed |= schedule.valid_on in window_at(now)
        store(schedule)
        _put_down([schedule])
    log.info("schedule_replaced", schedule=str(schedule.pk))
    return schedule


def schedule_replace_on(*, site: Site, category: str, valid_on: date, slots: object) -> Schedule:
    """Plan this day anew, whole; refused like a new one. `NotFound` where it has no schedule."""
    with transaction.atomic():
        # Whether it ever had one or not: nobody plans a day that is over.
        _refuse_past(valid_on, now=_site_take(site.pk))
        schedule = selectors.schedule_of_day(site=site, category=category, valid_on=valid_on)
        return schedule_replace(schedule=schedule, slots=slots)


def schedule_delete(*, schedule: Schedule) -> None:
    """Take a schedule back: the nodes drop it, and its slots fall to the default.

    `Conflict` for a day that is over: what was planned then, and what the nodes said of it, is a record.
    """
    with transaction.atomic():
        now = _site_take(schedule.site_id)
        schedule = _schedule_take(schedule)
        if is_over(schedule.valid_on, now=now):
            raise Conflict(
                f"{schedule.valid_on} is over (UTC): its schedule is a record.", code="day_is_over"
            )
        _take_away([schedule])
        schedule_id = str(schedule.pk)
        schedule.delete()
    log.info("schedule_deleted", schedule=schedule_id)


def schedule_copy(*, schedule: Schedule, days: Iterable[date], overwrite: bool = False) -> list[Schedule]:
    """Plan other days of the same site and category like this one: all of them, or none.

    The errors name each day that cannot be planned: one that is over, the copied day itself, and one that has
    a schedule unless `overwrite`; `Conflict` where only schedules stand in the way, else `Invalid`.
    """
    with transaction.atomic():
        now = _site_take(schedule.site_id)
        schedule = _schedule_take(schedule)
        wanted = sorted(set(days))
        if not wanted:
            raise Invalid.field("days", "at least one day is expected")
        if len(wanted) > MAX_COPIES:
            raise Invalid.field("days", f"at most {MAX_COPIES} days are planned at once")
        slots = slots_checked(schedule.schedule, members=_members(schedule.site, schedule.category))
        stored = _stored(schedule.site, schedule.category, wanted)
        errors = {str(day): ["This day is over (UTC)."] for day in wanted if is_over(day, now=now)}
        if schedule.valid_on in wanted:
            errors[str(schedule.valid_on)] = ["This is the day that is copied."]
        taken = [] if overwrite else [str(day) for day in wanted if day in stored and str(day) not in errors]
        if errors or taken:
            refusal = Invalid if errors else Conflict
            errors |= {day: ["This day has a schedule already."] for day in taken}
            raise refusal(
                "Nothing was copied: not all days can be planned.", errors=dict(sorted(errors.items()))
            )
        planned = _plan_days(
            site=schedule.site,
            category=schedule.category,
            slots_by_day=dict.fromkeys(wanted, slots),
            stored=stored,
            now=now,
        )
    log.info("schedule_copied", schedule=str(schedule.pk), days=len(planned))
    return planned


def schedule_fill(
    *,
    site: Site,
    category: str,
    start: datetime,
    until: datetime,
    value: float | None,
    time_zone: str = "UTC",
) -> list[Schedule]:
    """Give every quarter hour from `start` to before `until` this value; None: the default. All or nothing.

    `slots.quarter_hours` says which they are. Slots outside the range stay as they are, days that have no
    schedule get one. Returns the days touched, in order; the errors of `Invalid` name those over (UTC).
    """
    with transaction.atomic():
        now = _site_take(site.pk)
        covered = quarter_hours(start=start, until=until, time_zone=time_zone)
        members = _members(site, category)
        _refuse_value(value, members=members)
        if past := [day for day in covered if is_over(day, now=now)]:
            errors = {str(day): ["This day is over (UTC)."] for day in past}
            raise Invalid("Nothing was filled: the range begins in the past.", errors=errors)
        stored = _stored(site, category, list(covered))
        slots_by_day = {}
        for day, keys in covered.items():
            before: Slots = stored[day].schedule if day in stored else {}
            slots_by_day[day] = dict(sorted((before | dict.fromkeys(keys, value)).items()))
        planned = _plan_days(site=site, category=category, slots_by_day=slots_by_day, stored=stored, now=now)
    log.info("schedule_filled", site=site.site_tag, category=category, days=len(planned))
    return planned


# --- the window -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rolled:
    """How many schedules entered the window, and how many left it."""

    entered: int = 0
    left: int = 0


def schedules_roll(*, now: datetime | None = None) -> Rolled:
    """Give the nodes the days that have come into the window, and take away those that have left it.

    Whatever was missed, for days, is made up; run again, or twice at once, it finds nothing to do. Each site
    is a transaction of its own.
    """
    now = timezone.now() if now is None else now
    window = window_at(now)
    due = _due(window)
    entered = left = 0
    for site_id in due.order_by("site_id").values_list("site_id", flat=True).distinct():
        with transaction.atomic():
            _site_take(site_id)
            rows = list(due.filter(site=site_id).select_for_update().order_by("valid_on", "category"))
            entering = [schedule for schedule in rows if not schedule.is_listed]
            leaving = [schedule for schedule in rows if schedule.is_listed]
            words = selectors.last_words(
                [schedule for schedule in leaving if is_over(schedule.valid_on, now=now)]
            )
            for schedule in rows:
                schedule.is_listed = not schedule.is_listed
                schedule.synchronization_result = words.get(schedule.pk)
            Schedule.objects.bulk_update(rows, ["is_listed", "synchronization_result"])
            _take_away(leaving)
            _put_down(entering)
        entered, left = entered + len(entering), left + len(leaving)
    if entered or left:
        log.info("schedules_rolled", entered=entered, left=left)
    return Rolled(entered=entered, left=left)


def _due(window: Window) -> QuerySet[Schedule]:
    inside = Q(valid_on__range=(window.first, window.last))
    outside = Q(valid_on__lt=window.first) | Q(valid_on__gt=window.last)
    return Schedule.objects.filter(Q(inside, is_listed=False) | Q(outside, is_listed=True))


# --- the alarm ---------------------------------------------------------------------------------------------


def slots_watch(*, now: datetime | None = None) -> tuple[int, int]:
    """Raise an alarm for each slot running, or about to begin, that a node has not confirmed; clear the rest.

    How many were raised, and cleared.
    """
    wanted = {}
    for slot in selectors.slots_unconfirmed(now=timezone.now() if now is None else now):
        key = AlarmKey(SLOT_NOT_CONFIRMED, slot.site_id, slot.node_id, subject=slot.category)
        value = "the default" if slot.value is None else f"{slot.value:g}"
        detail = (
            f"{value} for {slot.category} from {slot.begins:%Y-%m-%d %H:%M} UTC is not confirmed:"
            f" {slot.status.value} since {slot.since:%Y-%m-%d %H:%M:%S} UTC"
        )
        if slot.error:
            detail += f", {slot.error}"
        wanted[key] = AlarmText(detail=detail, node_name=slot.node_name)
    among = Alarm.objects.filter(code=SLOT_NOT_CONFIRMED, by_node=False)
    return alarms_settle(among=among, wanted=wanted)


# --- the parts ------------------------------------------------------------------------------------------


def _site_take(site_id: UUID) -> datetime:
    """Let one writer at a time change a site's schedules; the moment from which it decides."""
    if not list(Site.objects.select_for_update(no_key=True).filter(pk=site_id).values_list("pk")):
        raise NotFound("No such site.")
    return timezone.now()


def _schedule_take(schedule: Schedule) -> Schedule:
    taken = (
        Schedule.objects.select_for_update(of=("self",)).select_related("site").filter(pk=schedule.pk).first()
    )
    if taken is None:
        raise NotFound("No such schedule.")
    return taken


def _refuse_past(valid_on: date, *, now: datetime) -> None:
    if is_over(valid_on, now=now):
        raise Invalid.field("valid_on", f"{valid_on} is over (UTC)")


def _members(site: Site, category: str) -> list[Member]:
    """Whose ranges count. A typo in the category would have its devices run at the default, silently."""
    members = selectors.members_by_category(site.pk)
    if category not in members:
        known = ", ".join(members) or "none"
        raise Invalid.field(
            "category", f"this site has no device to control of {category!r}; its categories: {known}"
        )
    return members[category]


def _refuse_value(value: object, *, members: Sequence[Member]) -> None:
    try:
        slots_checked({"00:00": value}, members=members)
    except Invalid as error:
        texts = next(iter(error.errors.values()))
        raise Invalid(f"value: {texts[0]}", errors={"value": texts}) from error


def _stored(site: Site, category: str, days: Sequence[date]) -> dict[date, Schedule]:
    rows = Schedule.objects.select_for_update().filter(site=site, category=category, valid_on__in=days)
    return {schedule.valid_on: schedule for schedule in rows.order_by("valid_on")}


def _plan_days(
    *,
    site: Site,
    category: str,
    slots_by_day: Mapping[date, Slots],
    stored: Mapping[date, Schedule],
    now: datetime,
) -> list[Schedule]:
    """Store whole days, those that are there and those that are not, and put them down."""
    window = window_at(now)
    planned = []
    for day, slots in slots_by_day.items():
        schedule = stored.get(day) or Schedule(site=site, category=category, valid_on=day)
        schedule.schedule = slots
        schedule.is_listed |= day in window
        store(schedule)
        planned.append(schedule)
    _put_down(planned)
    return planned


def _put_down(schedules: Sequence[Schedule]) -> None:
    """Let the nodes of a site have those of these stored schedules, all its own, that are in the window."""
    listed = [schedule for schedule in schedules if schedule.is_listed]
    if not listed:
        return
    nodes = Node.objects.filter(site=listed[0].site_id)
    if len(listed) > FEW:
        # All at once: one version of the manifest, and as many statements for a month as for a week.
        nodes_documents_render(nodes=nodes, only=[DOCUMENTS])
        return
    for schedule in listed:
        documents_put(
            nodes=nodes.values_list("pk", flat=True),
            name=schedule.document_name,
            body=_body(schedule),
            expires_at=expiry_of(schedule.valid_on),
        )


def _take_away(schedules: Sequence[Schedule]) -> None:
    """Take from the nodes of a site what they have of these schedules, all its own."""
    if not schedules:
        return
    nodes = Node.objects.filter(site=schedules[0].site_id).values_list("pk", flat=True)
    documents_drop(nodes=nodes, names=[schedule.document_name for schedule in schedules])


def _render(node: Node) -> dict[str, dict[str, Any]]:
    schedules = Schedule.objects.filter(site=node.site_id, is_listed=True)
    return {schedule.document_name: _body(schedule) for schedule in schedules}


def _body(schedule: Schedule) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(
        ScheduleBody(date=str(schedule.valid_on), category=schedule.category, slots=schedule.schedule)
    )
    return body
