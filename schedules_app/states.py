"""How far a day's plan has come on its way to the nodes, in one word, and what each node says of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from django.db.models import F

from devices_app.choices import category_rank
from devices_app.models import Device
from schedules_app.models import Schedule
from schedules_app.selectors import ANSWERS_WITHIN
from sites_app.models import DocumentStatus, Node, NodeDocument


class Stand(StrEnum):
    """The worst that is to be said of a plan; later members are better news."""

    FAILED = "failed"
    UNCONFIRMED = "unconfirmed"
    STORED = "stored"
    SENT = "sent"
    CONFIRMED = "confirmed"
    NONE = "none"


_RANK = {stand: rank for rank, stand in enumerate(Stand)}


@dataclass(frozen=True, slots=True)
class NodeStand:
    """What a node says of one schedule: `at` when it said so, `error` why not."""

    node_id: UUID
    name: str
    stand: Stand
    at: datetime | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class ScheduleStand:
    stand: Stand
    nodes: tuple[NodeStand, ...] = ()


def worst(stands: Iterable[Stand]) -> Stand:
    """The one to show for several; `none` for none."""
    return min(stands, key=_RANK.__getitem__, default=Stand.NONE)


def schedule_stands(schedules: Sequence[Schedule], *, now: datetime) -> dict[UUID, ScheduleStand]:
    """How far each of these schedules has come, by its id. Two queries, however many they are.

    `stored`: only here yet, since its day is not in the window, its site has no node, or the broker was not
    told. `sent`: nodes have still time to answer. `unconfirmed`: one has not in time. `failed`: one cannot
    use it. Of a day whose documents are gone the nodes' last word counts.
    """
    listed = [schedule for schedule in schedules if schedule.is_listed]
    found: dict[UUID, ScheduleStand] = {
        schedule.pk: _last_word(schedule) for schedule in schedules if not schedule.is_listed
    }
    if not listed:
        return found
    nodes: dict[UUID, list[tuple[UUID, str]]] = defaultdict(list)
    sites = {schedule.site_id for schedule in listed}
    for site_id, node_id, name in (
        Node.objects.filter(site__in=sites).order_by("name", "pk").values_list("site_id", "pk", "name")
    ):
        nodes[site_id].append((node_id, name))
    documents = _documents(listed, now=now)
    for schedule in listed:
        told = tuple(
            documents.get((node_id, schedule.document_name), NodeStand(node_id, name, Stand.STORED))
            for node_id, name in nodes[schedule.site_id]
        )
        stand = worst(node.stand for node in told) if told else Stand.STORED
        found[schedule.pk] = ScheduleStand(stand, told)
    return found


def _documents(schedules: Iterable[Schedule], *, now: datetime) -> Mapping[tuple[UUID, str], NodeStand]:
    """What each node says, by node and name of the document."""
    schedules = list(schedules)
    rows = NodeDocument.objects.filter(
        node__site__in={schedule.site_id for schedule in schedules},
        name__in={schedule.document_name for schedule in schedules},
        dropped=False,
    ).annotate(node_name=F("node__name"), node_epoch=F("node__epoch"))
    found = {}
    for row in rows.values(
        "node_id",
        "node_name",
        "node_epoch",
        "name",
        "version",
        "status",
        "answered_at",
        "error",
        "changed_at",
        "published_epoch",
        "published_version",
    ):
        is_told = (row["published_epoch"], row["published_version"]) == (row["node_epoch"], row["version"])
        waits = now - row["changed_at"] < ANSWERS_WITHIN
        found[row["node_id"], row["name"]] = NodeStand(
            row["node_id"],
            row["node_name"],
            _stand(row["status"], is_told=is_told, waits=waits),
            row["answered_at"],
            row["error"],
        )
    return found


def _stand(status: str, *, is_told: bool, waits: bool) -> Stand:
    match status:
        case DocumentStatus.APPLIED:
            return Stand.CONFIRMED
        case DocumentStatus.FAILED | DocumentStatus.CONFLICT:
            return Stand.FAILED
    if not is_told:
        return Stand.STORED
    return Stand.SENT if waits else Stand.UNCONFIRMED


def _last_word(schedule: Schedule) -> ScheduleStand:
    said = schedule.synchronization_result
    if said is None:
        return ScheduleStand(Stand.STORED)
    # (Nobody waits any longer.)
    return ScheduleStand(_stand(said["status"], is_told=True, waits=False))


def categories_by_site(site_ids: Iterable[UUID]) -> dict[UUID, list[str]]:
    """The categories of which these sites have a device that takes setpoints, in the trade's order."""
    found: dict[UUID, list[str]] = defaultdict(list)
    rows = (
        Device.objects.filter(site__in=list(site_ids), measured_only=False, controlled_by=None)
        .order_by()
        .values_list("site_id", "category")
        .distinct()
    )
    for site_id, category in rows:
        found[site_id].append(category)
    return {site_id: sorted(categories, key=category_rank) for site_id, categories in found.items()}
