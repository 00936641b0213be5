"""A day of a category of a site by the quarter hour: to look at, to edit, and to copy."""

from __future__ import annotations

import zoneinfo
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

from auditlog.models import LogEntry
from django.contrib import messages
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils import timezone

from schedules_app.local_days import (
    ChangedRange,
    Quarter,
    Values,
    local_today,
    quarters_of,
    ranges_changed,
    stored_days,
    values_in,
)
from schedules_app.local_planning import CHANGED_MEANWHILE, PlannedDay, local_day_copy, local_day_plan
from schedules_app.models import Schedule
from schedules_app.selectors import members_by_category
from schedules_app.slots import Member
from schedules_app.states import schedule_stands
from sites_app.models import Site
from sites_app.selectors import site_get
from smartgrid.console.audit import noted
from smartgrid.console.pages import page, show
from smartgrid.console.people import principal_at
from smartgrid.console.schedules.drafts import (
    MINUTES,
    Draft,
    as_json,
    cells_of,
    draft_fill,
    draft_of,
    draft_posted,
    merged,
    rows_of,
    slots_named,
    text_of,
)
from smartgrid.console.schedules.forms import LocalCopyForm
from smartgrid.console.schedules.words import COLOURS, MEANINGS, ranges_told, value_told
from smartgrid.errors import Conflict, NotFound, SgmError

ROUTE = "site/<uuid:site_id>/schedules/<str:category>/<str:day>/"
VIEW = "schedules_app.view_schedule"
CHANGES = ("schedules_app.add_schedule", "schedules_app.change_schedule")
# Schedules of other centuries are a slip of the hand.
YEARS = range(2000, 2101)


@dataclass(frozen=True, slots=True)
class DayPage:
    """What a page is about: a local day of what a site has, and what is planned in it."""

    site: Site
    category: str
    day: date
    members: tuple[Member, ...]
    quarters: tuple[Quarter, ...]
    stored: dict[date, Schedule]

    @property
    def values(self) -> Values:
        return values_in(self.quarters, self.stored)

    @property
    def address(self) -> str:
        return reverse("admin:console_schedule", args=[self.site.pk, self.category, str(self.day)])


@page(ROUTE, name="console_schedule", permission=VIEW, methods=("GET", "HEAD", "POST"))
def schedule(request: HttpRequest, site_id: UUID, category: str, day: str) -> HttpResponseBase:
    at = day_at(request, site_id, category, day)
    if request.method != "POST":
        return _drawn(request, at, draft_of(at.values))
    if not may_change(request):
        raise PermissionDenied(CHANGES[1])
    draft = draft_posted(request.POST, at.quarters, at.values)
    if draft is None:
        messages.error(request, "This form no longer fits the day. Here it is anew: make your changes again.")
        return HttpResponseRedirect(at.address)
    if request.POST.get("do") == "fill":
        wrong = draft_fill(
            draft,
            start=request.POST.get("fill_from", ""),
            until=request.POST.get("fill_until", ""),
            value=request.POST.get("fill_value", ""),
        )
        return _drawn(request, at, draft, wrong=wrong, note="" if wrong else "Filled, but not saved yet.")
    return _save(request, at, draft)


@page(f"{ROUTE}copy/", name="console_schedule_copy", permission=CHANGES[1], methods=("POST",))
def schedule_copy(request: HttpRequest, site_id: UUID, category: str, day: str) -> HttpResponseBase:
    at = day_at(request, site_id, category, day)
    if not may_change(request):
        raise PermissionDenied(CHANGES[1])
    form = LocalCopyForm(request.POST)
    if not form.is_valid():
        return _drawn(request, at, draft_of(at.values), copy_form=form)
    try:
        with transaction.atomic():
            planned = local_day_copy(
                site=at.site,
                category=at.category,
                day=at.day,
                days=form.days(but=at.day),
                overwrite=form.cleaned_data["overwrite"],
            )
            for one in planned:
                _note(request, at, one, copied_from=str(at.day))
    except SgmError as refusal:
        return _drawn(request, at, draft_of(at.values), copy_form=form, copy_refused=refusal)
    days = ", ".join(str(one.day) for one in planned)
    messages.success(request, f"Copied to {days}.")
    return HttpResponseRedirect(at.address)


def day_at(request: HttpRequest, site_id: UUID, category: str, day: str) -> DayPage:
    """What the address names, or 404."""
    try:
        found = date.fromisoformat(day)
        site = site_get(principal=principal_at(request), site_id=site_id)
    except (ValueError, NotFound) as error:
        raise Http404("No such day, or no such site.") from error
    if found.year not in YEARS or day != str(found):
        raise Http404("No such day.")
    members = members_by_category(site.pk).get(category)
    quarters = quarters_of(found, time_zone=site.time_zone)
    stored = stored_days(site=site, category=category, quarters=quarters)
    if members is None and not stored:
        raise Http404("This site has nothing of that category to plan for.")
    return DayPage(site, category, found, tuple(members or ()), quarters, stored)


def may_change(request: HttpRequest) -> bool:
    # Which of the two it takes depends on what is stored under the day.
    return request.user.has_perms(CHANGES)


# --- saving -------------------------------------------------------------------------------------------------


def _save(request: HttpRequest, at: DayPage, draft: Draft) -> HttpResponse:
    if draft.errors:
        return _drawn(request, at, draft, wrong="Nothing is saved yet: correct the marked quarter hours.")
    seen = draft.seen
    if seen is not None and request.POST.get("do") in {"mine", "merge"}:
        if request.POST["do"] == "merge":
            values = merged(draft.based_on, draft.values, seen)
            draft = replace(draft, values=values, texts=[text_of(value) for value in values])
        # The choice is about what was shown. Should that have changed too, it is to be made anew.
        draft = replace(draft, based_on=seen, seen=None)
    try:
        with transaction.atomic():
            planned = local_day_plan(
                site=at.site, category=at.category, day=at.day, values=draft.values, based_on=draft.based_on
            )
            _note(request, at, planned)
    except Conflict as refusal:
        if refusal.code != CHANGED_MEANWHILE:
            return _drawn(request, at, draft, wrong=refusal.detail)
        # Read anew: what was read before is what it was meanwhile changed from.
        now_stored = stored_days(site=at.site, category=at.category, quarters=at.quarters)
        at = replace(at, stored=now_stored)
        return _drawn(request, at, replace(draft, seen=at.values), is_conflict=True, status=409)
    except SgmError as refusal:
        draft.errors = slots_named(refusal.errors)
        return _drawn(request, at, draft, wrong=f"Nothing is saved yet. {refusal.detail}")
    if planned.touched:
        messages.success(request, f"{at.category} on {at.day} is saved. The nodes are told.")
    else:
        messages.info(request, "Nothing was changed.")
    return HttpResponseRedirect(at.address)


def _note(request: HttpRequest, at: DayPage, planned: PlannedDay, **details: Any) -> None:
    """Keep what changed as ranges by the site's clock: 96 slots before and after tell nobody."""
    for touched in planned.touched:
        of_it = [place for place, one in enumerate(planned.quarters) if one.utc_day == touched.valid_on]
        ranges = ranges_changed(
            [planned.quarters[place] for place in of_it],
            tuple(planned.before[place] for place in of_it),
            tuple(planned.after[place] for place in of_it),
        )
        changes = ranges_told(ranges, time_zone=at.site.time_zone)
        noted(request, "plan", touched, day=str(planned.day), changes=changes, **details)


# --- drawing ------------------------------------------------------------------------------------------------


def _drawn(
    request: HttpRequest,
    at: DayPage,
    draft: Draft,
    *,
    wrong: str = "",
    note: str = "",
    is_conflict: bool = False,
    copy_form: LocalCopyForm | None = None,
    copy_refused: SgmError | None = None,
    status: int = 200,
) -> HttpResponse:
    now = timezone.now()
    cells = cells_of(draft, at.quarters, now=now)
    is_past = all(cell.is_locked for cell in cells)
    editable = may_change(request) and not is_past and bool(at.members)
    lowest = max(at.members, key=lambda member: member.minimum, default=None)
    highest = min(at.members, key=lambda member: member.maximum, default=None)
    stands = schedule_stands(list(at.stored.values()), now=now)
    context = {
        "at": at,
        "site": at.site,
        "draft": draft,
        "cells": cells,
        "rows": list(rows_of(cells, at.quarters)),
        "minutes": MINUTES,
        "based_on": as_json(draft.based_on),
        "seen": "" if draft.seen is None else as_json(draft.seen),
        "editable": editable,
        "is_past": is_past,
        "has_locked": any(cell.is_locked for cell in cells),
        "is_today": at.day == local_today(at.site, now=now),
        "lowest": lowest,
        "highest": highest,
        "wrong": wrong,
        "note": note,
        "conflict": _conflict(at, draft) if is_conflict else None,
        "copy_form": (copy_form or LocalCopyForm(initial=_next_week(at.day))) if editable else None,
        "copy_refused": copy_refused,
        "yesterday": at.day - timedelta(days=1),
        "tomorrow": at.day + timedelta(days=1),
        "stands": [
            (row, stands[row.pk], COLOURS[stands[row.pk].stand], MEANINGS[stands[row.pk].stand])
            for row in at.stored.values()
        ],
        "colours": COLOURS,
        "changed": _last_change(at),
        "length": len(cells),
        "now": now,
        "crumbs": [("Schedules", reverse("admin:console_schedules"))],
    }
    return show(
        request,
        "console/schedules/day.html",
        title=f"{at.site.site_tag}, {at.category}, {at.day:%a} {at.day}",
        context=context,
        parts={"nodes": "console/schedules/nodes.html"},
        status=status,
    )


def _next_week(day: date) -> dict[str, date]:
    return {"first": day + timedelta(days=1), "last": day + timedelta(days=7)}


@dataclass(frozen=True, slots=True)
class Difference:
    """A range in which somebody else's plan and mine differ; `began`: what was there when I began."""

    start: str
    until: str
    began: str
    theirs: str
    mine: str


def _conflict(at: DayPage, draft: Draft) -> list[Difference]:
    zone = zoneinfo.ZoneInfo(at.site.time_zone)
    began = dict(zip((quarter.begins for quarter in at.quarters), draft.based_on, strict=True))

    def told(one: ChangedRange) -> Difference:
        return Difference(
            start=f"{one.start.astimezone(zone):%H:%M}",
            until=f"{one.until.astimezone(zone):%H:%M}",
            began=value_told(began[one.start]),
            theirs=value_told(one.was),
            mine=value_told(one.becomes),
        )

    return [told(one) for one in ranges_changed(at.quarters, at.values, draft.values)]


def _last_change(at: DayPage) -> tuple[str, datetime] | None:
    """Who changed what is stored last, and when; None where nothing is, or nobody knows."""
    entry = (
        LogEntry.objects.filter(
            content_type=ContentType.objects.get_for_model(Schedule),
            object_pk__in=[str(row.pk) for row in at.stored.values()],
            action__in=[LogEntry.Action.CREATE, LogEntry.Action.UPDATE],
        )
        .select_related("actor")
        .order_by("-timestamp", "-pk")
        .first()
    )
    if entry is None:
        return None
    return entry.actor.get_username() if entry.actor else "somebody over the API", entry.timestamp
