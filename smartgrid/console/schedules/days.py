"""The plan: sites and categories by the next seven days, each with how far it has come to the nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.core.paginator import Paginator
from django.db.models import Q
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone

from schedules_app.local_days import local_today, quarters_of, values_in
from schedules_app.models import Schedule
from schedules_app.selectors import schedules_visible_to
from schedules_app.states import ScheduleStand, Stand, categories_by_site, schedule_stands, worst
from sites_app.models import Site
from sites_app.selectors import sites_visible_to
from smartgrid.console.pages import page, show
from smartgrid.console.people import principal_at
from smartgrid.console.schedules.words import COLOURS, MEANINGS

DAYS_SHOWN = 7
SITES_A_PAGE = 25
PERMISSION = "schedules_app.view_schedule"


@dataclass(frozen=True, slots=True)
class PlanCell:
    """A day of a category of a site; `planned`: how many of its quarter hours have a value."""

    day: date
    stand: Stand
    planned: int
    is_today: bool

    @property
    def colour(self) -> str:
        return COLOURS[self.stand]


@dataclass(frozen=True, slots=True)
class PlanRow:
    site: Site
    category: str
    cells: tuple[PlanCell, ...]


@page("schedules/", name="console_schedules", permission=PERMISSION)
def schedules(request: HttpRequest) -> HttpResponseBase:
    now = timezone.now()
    wanted = request.GET.get("q", "").strip()[:64].replace("\x00", "")
    sites = sites_visible_to(principal_at(request)).order_by("site_tag", "pk")
    if wanted:
        sites = sites.filter(Q(site_tag__icontains=wanted) | Q(name__icontains=wanted))
    shown = Paginator(sites, SITES_A_PAGE).get_page(request.GET.get("page"))
    days = [now.astimezone(UTC).date() + timedelta(days=ahead) for ahead in range(DAYS_SHOWN)]
    query = {"q": wanted} if wanted else {}
    context: dict[str, Any] = {
        "rows": _rows(request, list(shown), days, now=now),
        "days": days,
        "sites": shown,
        "wanted": wanted,
        "query": urlencode(query),
        "part_query": urlencode({"part": "plan", "page": shown.number, **query}),
        "meanings": [(stand.value, COLOURS[stand], text) for stand, text in MEANINGS.items()],
        "now": now,
    }
    return show(
        request,
        "console/schedules/plan.html",
        title="Schedules",
        context=context,
        parts={"plan": "console/schedules/plan_table.html"},
    )


def _rows(
    request: HttpRequest, sites: Sequence[Site], days: Sequence[date], *, now: datetime
) -> list[PlanRow]:
    # A local day lies in the UTC days around it.
    around = (days[0] - timedelta(days=1), days[-1] + timedelta(days=1))
    stored: dict[tuple[UUID, str], dict[date, Schedule]] = {}
    everything = list(
        schedules_visible_to(principal_at(request)).filter(
            site__in=[site.pk for site in sites], valid_on__range=around
        )
    )
    for schedule in everything:
        stored.setdefault((schedule.site_id, schedule.category), {})[schedule.valid_on] = schedule
    stands = schedule_stands(everything, now=now)
    categories = categories_by_site(site.pk for site in sites)
    return [
        PlanRow(
            site,
            category,
            tuple(_cell(site, day, stored.get((site.pk, category), {}), stands, now=now) for day in days),
        )
        for site in sites
        for category in _with_planned(categories.get(site.pk, []), stored, site.pk)
    ]


def _with_planned(known: Sequence[str], stored: Mapping[tuple[UUID, str], Any], site_id: UUID) -> list[str]:
    """What can be planned, and after it what was, though there is no such device any longer."""
    left = sorted(category for at, category in stored if at == site_id and category not in known)
    return [*known, *left]


def _cell(
    site: Site,
    day: date,
    stored: Mapping[date, Schedule],
    stands: Mapping[UUID, ScheduleStand],
    *,
    now: datetime,
) -> PlanCell:
    is_today = day == local_today(site, now=now)
    near = [stored[utc] for utc in (day + timedelta(days=by) for by in (-1, 0, 1)) if utc in stored]
    if not near:
        return PlanCell(day, Stand.NONE, 0, is_today)
    quarters = quarters_of(day, time_zone=site.time_zone)
    values = values_in(quarters, stored)
    holding = {quarter.utc_day for quarter, value in zip(quarters, values, strict=True) if value is not None}
    stand = worst(stands[stored[utc].pk].stand for utc in holding)
    return PlanCell(day, stand, sum(value is not None for value in values), is_today)
