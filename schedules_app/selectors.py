"""What a principal may see of schedules, what became of them at the nodes, and the value in force."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from django.db.models import QuerySet

from devices_app.choices import category_rank
from devices_app.models import Device
from edge.core import schedule as core
from schedules_app.models import Schedule
from schedules_app.slots import Member
from sites_app.models import DocumentStatus, Node, NodeDocument, Site
from sites_app.selectors import sites_visible_to
from smartgrid.api.fields import timestamp
from smartgrid.api.principal import Principal
from smartgrid.errors import NotFound

# The result of a schedule is the worst that any node says.
WORST_FIRST = (
    DocumentStatus.FAILED,
    DocumentStatus.CONFLICT,
    DocumentStatus.PENDING,
    DocumentStatus.APPLIED,
)

# As the API tells it: {"status", "nodes": {name: {"status", "version", "at", "error"}}}.
Result = dict[str, Any]


def schedules_visible_to(principal: Principal) -> QuerySet[Schedule]:
    """The schedules of the sites this principal may see, in the order of their days."""
    schedules = Schedule.objects.order_by("valid_on", "site_id", "category")
    return (
        schedules if principal.is_root else schedules.filter(site__in=sites_visible_to(principal).order_by())
    )


def schedule_get(*, principal: Principal, schedule_id: UUID) -> Schedule:
    """One visible schedule, else `NotFound`: hidden and absent look the same."""
    schedule = schedules_visible_to(principal).filter(pk=schedule_id).first()
    if schedule is None:
        raise NotFound("No such schedule.")
    return schedule


def schedule_of_day(*, site: Site, category: str, valid_on: date) -> Schedule:
    """The schedule of this day, else `NotFound`."""
    schedule = Schedule.objects.filter(site=site, category=category, valid_on=valid_on).first()
    if schedule is None:
        raise NotFound("No such schedule.")
    return schedule


def members_by_category(site_id: UUID) -> dict[str, list[Member]]:
    """The devices whose ranges a schedule must keep to, for each category of a site that can have one.

    These are the devices included in curtailment; where none of a category is, all that could be. What is
    only measured takes no setpoint, and a category of nothing else takes no schedule.
    """
    included: dict[str, list[Member]] = {}
    excluded: dict[str, list[Member]] = {}
    devices = Device.objects.filter(site=site_id, measured_only=False).order_by("device_tag")
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
    Of a day that is over, the last word: what had not been answered by then stays `pending`.
    """
    schedules = list(schedules)
    listed = [schedule for schedule in schedules if schedule.is_listed]
    results: dict[UUID, Result | None] = {
        schedule.pk: schedule.synchronization_result for schedule in schedules if not schedule.is_listed
    }
    for schedule, nodes in _answers(listed):
        is_answered = bool(nodes) and all(answer["version"] for answer in nodes.values())
        results[schedule.pk] = _result(nodes) if is_answered else None
    return results


def last_words(schedules: Iterable[Schedule]) -> dict[UUID, Result | None]:
    """What is left to say of schedules whose day is over: nobody waits for an answer any longer."""
    return {schedule.pk: _result(nodes) if nodes else None for schedule, nodes in _answers(schedules)}


def _result(nodes: Mapping[str, dict[str, Any]]) -> Result:
    said = {answer["status"] for answer in nodes.values()}
    return {"status": next(status.value for status in WORST_FIRST if status in said), "nodes": dict(nodes)}


def _answers(schedules: Iterable[Schedule]) -> Iterable[tuple[Schedule, dict[str, dict[str, Any]]]]:
    schedules = list(schedules)
    if not schedules:
        return
    sites = {schedule.site_id for schedule in schedules}
    nodes: dict[UUID, list[str]] = {}
    for site_id, name in Node.objects.filter(site__in=sites).order_by("name").values_list("site_id", "name"):
        nodes.setdefault(site_id, []).append(name)
    states: dict[tuple[UUID, str, str], dict[str, Any]] = {}
    documents = NodeDocument.objects.filter(
        node__site__in=sites, name__in={schedule.document_name for schedule in schedules}, dropped=False
    )
    for site_id, node, name, status, version, at, error in documents.values_list(
        "node__site_id", "node__name", "name", "status", "answered_version", "answered_at", "error"
    ):
        states[site_id, node, name] = _answer(status, version, at, error)
    for schedule in schedules:
        yield (
            schedule,
            {
                name: states.get(
                    (schedule.site_id, name, schedule.document_name), _answer("pending", 0, None, "")
                )
                for name in nodes.get(schedule.site_id, [])
            },
        )


def _answer(status: str, version: int, at: datetime | None, error: str) -> dict[str, Any]:
    answer = {"status": status, "version": version, "at": None if at is None else timestamp(at)}
    return answer | {"error": error} if error else answer


# --- the value in force ---------------------------------------------------------------------------------


def plan_of(*, site: Site, category: str, first: date, last: date) -> core.Schedule:
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
    return core.value_at(plan_of(site=site, category=category, first=utc.date(), last=utc.date()), utc)
