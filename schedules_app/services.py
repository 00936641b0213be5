"""What happens to schedules; each change reaches every node of the site as a document of its own."""

from __future__ import annotations

import math
import re
from datetime import date
from typing import Any

import msgspec
import structlog
from django.db import transaction

from edge.wire.messages import ScheduleBody
from schedules_app.models import Schedule
from sites_app.documents import node_document_drop, node_document_put, renderer_register
from sites_app.models import Node, Site
from smartgrid.errors import Invalid
from smartgrid.integrity import store

log = structlog.stdlib.get_logger(__name__)

# One quarter hour of a UTC day.
SLOT = re.compile(r"([01]\d|2[0-3]):(00|15|30|45)")

Slots = dict[str, float | None]


def register() -> None:
    renderer_register(prefix="schedule/", render=_render)


def schedule_create(*, site: Site, category: str, valid_on: date, slots: Slots) -> Schedule:
    """Plan a day. `Conflict` where site, category and day have a plan already."""
    with transaction.atomic():
        schedule = Schedule(site=site, category=category, valid_on=valid_on, schedule=_checked(slots))
        store(schedule)
        _put_down(schedule)
    log.info("schedule_created", site=site.site_tag, category=category, valid_on=str(valid_on))
    return schedule


def schedule_replace(*, schedule: Schedule, slots: Slots) -> Schedule:
    """Plan the same day anew, whole; until the nodes have answered nothing is known to be in force."""
    with transaction.atomic():
        schedule = Schedule.objects.select_for_update().get(pk=schedule.pk)
        schedule.schedule = _checked(slots)
        schedule.synchronization_result = None
        store(schedule)
        _put_down(schedule)
    log.info("schedule_replaced", schedule=str(schedule.pk))
    return schedule


def schedule_delete(*, schedule: Schedule) -> None:
    """Take a plan back: the nodes drop it, and its slots fall to the default."""
    with transaction.atomic():
        for node in schedule.site.nodes.order_by("pk"):
            node_document_drop(node=node, name=schedule.document_name)
        schedule_id = str(schedule.pk)
        schedule.delete()
    log.info("schedule_deleted", schedule=schedule_id)


def _checked(slots: Slots) -> Slots:
    """The slots as they came; `Invalid` names each which cannot be used."""
    errors: dict[str, list[str]] = {}
    for slot, value in slots.items():
        if not SLOT.fullmatch(slot):
            errors[f"schedule.{slot}"] = ["Not a quarter hour, HH:00, HH:15, HH:30 or HH:45 from 00 to 23."]
        elif value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)
        ):
            errors[f"schedule.{slot}"] = ["Neither a finite number nor null."]
    if errors:
        raise Invalid("The schedule has slots which cannot be used.", errors=errors)
    return slots


def _put_down(schedule: Schedule) -> None:
    for node in schedule.site.nodes.order_by("pk"):
        node_document_put(node=node, name=schedule.document_name, body=_body(schedule))


def _render(node: Node) -> dict[str, dict[str, Any]]:
    schedules = Schedule.objects.filter(site=node.site_id)
    return {schedule.document_name: _body(schedule) for schedule in schedules}


def _body(schedule: Schedule) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(
        ScheduleBody(date=str(schedule.valid_on), category=schedule.category, slots=schedule.schedule)
    )
    return body
