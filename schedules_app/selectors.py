"""What a principal may see of schedules, what became of them at the nodes, and the value in force."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import QuerySet

from devices_app.choices import CATEGORY_PATTERN, category_rank
from devices_app.models import Device
from edge.core import schedule as core
from schedules_app.models import Schedule, day_prefix
from schedules_app.slots import Member
from sites_app.documents import DocumentState, document_states
from sites_app.models import DocumentStatus, Node, NodeDocument, Site
from sites_app.selectors import of_visible_sites
from smartgrid.api.fields import timestamp
from smartgrid.api.principal import Principal
from smartgrid.errors import NotFound

# A slot that begins this soon on a node which has not confirmed it is worth an alarm.
ALERT_AHEAD = timedelta(minutes=5)
# As long as a node may take to confirm a document before anybody worries.
ANSWERS_WITHIN = timedelta(seconds=10)

# The result of a schedule is the worst that any node says.
WORST_FIRST = (
    DocumentStatus.FAILED.value,
    DocumentStatus.CONFLICT.value,
    DocumentStatus.PENDING.value,
    DocumentStatus.APPLIED.value,
)

# As the API tells it: {"status", "nodes": {name: {"status", "version", "at", "error"}}}.
Result = dict[str, Any]
# How moments are told in it: as the API spells them, or in a way that its renderer does.
Spelling = Callable[[datetime], datetime | str]
# A site and the name of a schedule's document there.
Document = tuple[UUID, str]


def schedules_visible_to(principal: Principal) -> QuerySet[Schedule]:
    """The schedules of the sites this principal may see, in the order of their days."""
    return of_visible_sites(Schedule.objects.order_by("valid_on", "site_id", "category"), principal)


def site_schedules_visible_to(principal: Principal, site_id: UUID) -> QuerySet[Schedule]:
    """Those of one site."""
    return schedules_visible_to(principal).filter(site_id=site_id)


def schedule_get(*, principal: Principal, schedule_id: UUID) -> Schedule:
    """One visible schedule, else `NotFound`: hidden and absent look the same."""
    schedule = schedules_visible_to(principal).filter(pk=schedule_id).first()
    if schedule is None:
        raise NotFound("No such schedule.")
    return schedule


def schedule_of_day(*, site: Site, category: str, valid_on: date) -> Schedule:
    """The schedule of this day, else `NotFound`."""
    # Of what cannot be a category there is none; PostgreSQL will not even be asked about a NUL.
    schedule = (
        Schedule.objects.filter(site=site, category=category, valid_on=valid_on).first()
        if re.fullmatch(CATEGORY_PATTERN, category)
        else None
    )
    if schedule is None:
        raise NotFound("No such schedule.")
    return schedule


def members_by_category(site_id: UUID) -> dict[str, list[Member]]:
    """The devices whose ranges a schedule must keep to, for each category of a site that can have one.

    These are the devices included in curtailment; where none of a category is, all that could be. What is
    only measured takes no setpoint, what is behind another takes that one's, and a category of nothing else
    takes no schedule.
    """
    included: dict[str, list[Member]] = {}
    excluded: dict[str, list[Member]] = {}
    devices = Device.objects.filter(site=site_id, measured_only=False, controlled_by=None).order_by(
        "device_tag"
    )
    for category, is_included, tag, minimum, maximum in devices.values_list(
        "category", "include_in_curtailment", "device_tag", "min_value", "max_value"
    ):
        member = Member(tag, minimum, maximum)
        (included if is_included else excluded).setdefault(category, []).append(member)
    found = excluded | included
    return {category: found[category] for category in sorted(found, key=category_rank)}


# --- what became of it at the nodes ---------------------------------------------------------------------


def synchronization_results(schedules: Iterable[Schedule]) -> dict[UUID, Result | None]:
    """What the nodes say of each of these schedules, by its id.

    None until every node of the site has answered for this content, and for a day no node has been given yet.
    Of a day that has left the window, the last word: what had not been answered by then stays `pending`.
    """
    schedules = list(schedules)
    listed = [schedule for schedule in schedules if schedule.is_listed]
    now = dict(zip(listed, results_now(_documents(listed)), strict=True))
    return {schedule.pk: now.get(schedule, schedule.synchronization_result) for schedule in schedules}


def results_now(documents: Iterable[Document], *, spelling: Spelling = timestamp) -> list[Result | None]:
    """As `synchronization_results`, of the documents of schedules in the window, in this order."""
    return [
        _result(nodes, spelling) if nodes and None not in [state.at for state in nodes.values()] else None
        for nodes in _states(documents)
    ]


def last_words(schedules: Sequence[Schedule]) -> dict[UUID, Result | None]:
    """What is left to say of schedules whose day is over: nobody waits for an answer any longer."""
    found = zip(schedules, _states(_documents(schedules)), strict=True)
    return {schedule.pk: _result(nodes, timestamp) if nodes else None for schedule, nodes in found}


def _documents(schedules: Iterable[Schedule]) -> list[Document]:
    return [(schedule.site_id, schedule.document_name) for schedule in schedules]


def _states(documents: Iterable[Document]) -> list[dict[str, DocumentState]]:
    documents = list(documents)
    return document_states(documents) if documents else []


def _result(nodes: Mapping[str, DocumentState], spelling: Spelling) -> Result:
    said = {state.status for state in nodes.values()}
    return {
        # Nearly always they agree.
        "status": said.pop() if len(said) == 1 else next(worst for worst in WORST_FIRST if worst in said),
        "nodes": {name: _told(state, spelling) for name, state in nodes.items()},
    }


def _told(state: DocumentState, spelling: Spelling) -> dict[str, Any]:
    status, version, at, error = state
    told = {"status": status, "version": version, "at": None if at is None else spelling(at)}
    return told | {"error": error} if error else told


# --- slots that may not run --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UnconfirmedSlot:
    """A quarter hour that a node is not known to run as it is planned.

    `value` None: the default. `status` and `error` are the node's last word about the day's document, `since`
    when its content was put down.
    """

    site_id: UUID
    node_id: UUID
    node_name: str
    category: str
    begins: datetime
    value: float | None
    status: DocumentStatus
    error: str
    since: datetime


def slots_unconfirmed(*, now: datetime) -> list[UnconfirmedSlot]:
    """The slots running, or beginning within `ALERT_AHEAD`, whose document a node has not confirmed.

    One for each node and category, the earlier of two. Left out is what cannot differ from what runs: nodes
    that control no device of the category, and a slot without a value where the node has, by its last report,
    no document of that day, since it runs the default as it is. What an earlier document said is not kept, so
    a slot counts though that may have said the same. A document put down less than `ANSWERS_WITHIN` ago is on
    its way.
    """
    found: dict[tuple[UUID, str], UnconfirmedSlot] = {}
    utc = now.astimezone(UTC)
    for begins in sorted({core.slot_start(utc), core.slot_start(utc + ALERT_AHEAD)}):
        for slot in _unconfirmed(begins, changed_before=now - ANSWERS_WITHIN):
            found.setdefault((slot.node_id, slot.category), slot)
    controlled = set(
        Device.objects.filter(
            node__in={node_id for node_id, _ in found},
            measured_only=False,
            controlled_by=None,
            include_in_curtailment=True,
        )
        .values_list("node_id", "category")
        .distinct()
    )
    return [slot for key, slot in sorted(found.items()) if key in controlled]


def _unconfirmed(begins: datetime, *, changed_before: datetime) -> list[UnconfirmedSlot]:
    prefix = day_prefix(begins.date())
    rows = (
        NodeDocument.objects.exclude(status=DocumentStatus.APPLIED)
        .filter(dropped=False, name__startswith=prefix, changed_at__lte=changed_before)
        .values_list(
            "node__site_id",
            "node_id",
            "node__name",
            "name",
            f"body__slots__{core.slot_key(begins)}",
            "status",
            "error",
            "changed_at",
        )
    )
    slots = [
        UnconfirmedSlot(
            site_id,
            node_id,
            node,
            name.removeprefix(prefix),
            begins,
            value,
            DocumentStatus(status),
            error,
            since,
        )
        for site_id, node_id, node, name, value, status, error, since in rows
    ]
    running: set[tuple[UUID, str]] = set()
    for category in {slot.category for slot in slots if slot.value is None}:
        nodes = Node.objects.filter(
            pk__in={slot.node_id for slot in slots if slot.value is None and slot.category == category},
            last_reported__documents__has_key=f"{prefix}{category}",
        )
        running |= {(node_id, category) for node_id in nodes.values_list("pk", flat=True)}
    return [slot for slot in slots if slot.value is not None or (slot.node_id, slot.category) in running]


# --- the value in force ---------------------------------------------------------------------------------


def schedule_between(*, site: Site, category: str, first: date, last: date) -> core.Schedule:
    """The days of a category from `first` to `last`, as the core reads them."""
    rows = Schedule.objects.filter(site=site, category=category, valid_on__range=(first, last))
    return core.Schedule(
        {
            day: {slot: value for slot, value in slots.items() if value is not None}
            for day, slots in rows.values_list("valid_on", "schedule")
        }
    )


def value_in_force(*, site: Site, category: str, at: datetime) -> float | None:
    """What a category is scheduled for at this moment; None: each device's default."""
    utc = at.astimezone(UTC)
    return core.value_at(
        schedule_between(site=site, category=category, first=utc.date(), last=utc.date()), utc
    )


def values_in_force(*, site: Site, at: datetime) -> dict[str, float | None]:
    """`value_in_force` of every category that has a schedule this day, by one query."""
    utc = at.astimezone(UTC)
    return {
        category: core.value_at(days, utc)
        for category, days in schedules_by_category(site=site, first=utc.date(), last=utc.date()).items()
    }


def schedules_by_category(*, site: Site, first: date, last: date) -> dict[str, core.Schedule]:
    """The days of each category from `first` to `last`, as the core reads them."""
    days: dict[str, dict[date, dict[str, float]]] = {}
    rows = Schedule.objects.filter(site=site, valid_on__range=(first, last))
    for category, day, slots in rows.values_list("category", "valid_on", "schedule"):
        days.setdefault(category, {})[day] = {
            slot: value for slot, value in slots.items() if value is not None
        }
    return {category: core.Schedule(found) for category, found in days.items()}
