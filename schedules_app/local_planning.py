"""Planning a site's local day as a whole, and others like it, by the services of the UTC days it lies in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from django.db import transaction
from django.utils import timezone

from schedules_app import services
from schedules_app.local_days import (
    Quarter,
    Values,
    quarters_of,
    slots_changed,
    stored_days,
    values_in,
)
from schedules_app.models import Schedule
from schedules_app.selectors import members_by_category
from schedules_app.slots import Member, Slots, slots_checked
from schedules_app.window import is_over
from sites_app.models import Site
from smartgrid.errors import Conflict, Invalid, NotFound

CHANGED_MEANWHILE = "changed_meanwhile"


@dataclass(frozen=True, slots=True)
class PlannedDay:
    """A local day as it was and as it is now; `touched`: the schedules that were made or changed for it."""

    day: date
    quarters: tuple[Quarter, ...]
    before: Values
    after: Values
    touched: tuple[Schedule, ...]


def local_day_plan(
    *, site: Site, category: str, day: date, values: Sequence[float | None], based_on: Sequence[float | None]
) -> PlannedDay:
    """Give the quarter hours of a local day these values, if `based_on` is what is planned there by now.

    `Conflict` with the code `changed_meanwhile` where it is not: somebody else has planned since. `Invalid`
    names each quarter hour that cannot be so, by its place in the day (`slot-0`, ...): one whose UTC day is
    over, and a value that a device does not take. What does not differ is left alone.
    """
    with transaction.atomic():
        now = _site_take(site)
        quarters = quarters_of(day, time_zone=site.time_zone)
        stored = stored_days(site=site, category=category, quarters=quarters, lock=True)
        before = values_in(quarters, stored)
        if len(values) != len(quarters) or tuple(based_on) != before:
            raise Conflict("This day was changed while you edited it.", code=CHANGED_MEANWHILE)
        after = tuple(values)
        _refuse(quarters, before, after, members=_members(site, category), now=now)
        touched = _write(site, category, stored, slots_changed(quarters, before, after))
    return PlannedDay(day, quarters, before, after, touched)


def local_day_copy(
    *, site: Site, category: str, day: date, days: Iterable[date], overwrite: bool
) -> list[PlannedDay]:
    """Plan other local days like this one, by what the clock on the wall shows: all of them, or none.

    Of an hour that comes twice each is copied to its like; what this day's clock skips gets the value before
    it. The errors name each day that cannot be planned; `Conflict` where it is only that some are planned
    already, unless `overwrite`.
    """
    wanted = sorted(set(days) - {day})
    if not wanted:
        raise Invalid.field("days", "at least one other day is expected")
    if len(wanted) > services.MAX_COPIES:
        raise Invalid.field("days", f"at most {services.MAX_COPIES} days are planned at once")
    with transaction.atomic():
        now = _site_take(site)
        members = _members(site, category)
        quarters = quarters_of(day, time_zone=site.time_zone)
        source = values_in(quarters, stored_days(site=site, category=category, quarters=quarters))
        errors: dict[str, list[str]] = {}
        taken: dict[str, list[str]] = {}
        planned = []
        for other in wanted:
            theirs = quarters_of(other, time_zone=site.time_zone)
            stored = stored_days(site=site, category=category, quarters=theirs, lock=True)
            before = values_in(theirs, stored)
            after = _like(quarters, source, theirs)
            try:
                _refuse(theirs, before, after, members=members, now=now)
            except Invalid as refusal:
                errors[str(other)] = [refusal.detail]
                continue
            if not overwrite and any(value is not None for value in before) and before != after:
                taken[str(other)] = ["This day is planned already."]
                continue
            touched = _write(site, category, stored, slots_changed(theirs, before, after))
            planned.append(PlannedDay(other, theirs, before, after, touched))
        if errors or taken:
            # (What was written for other days goes with the transaction.)
            refused = Invalid if errors else Conflict
            raise refused("Nothing was copied: not all days can be planned.", errors=errors | taken)
    return planned


def _site_take(site: Site) -> datetime:
    """As the services do it: one writer at a time changes a site's schedules."""
    if not list(Site.objects.select_for_update(no_key=True).filter(pk=site.pk).values_list("pk")):
        raise NotFound("No such site.")
    return timezone.now()


def _members(site: Site, category: str) -> list[Member]:
    members = members_by_category(site.pk).get(category)
    if members is None:
        raise Invalid.field("category", f"this site has no device to control of {category!r}")
    return members


def _refuse(
    quarters: Sequence[Quarter],
    before: Values,
    after: Values,
    *,
    members: Sequence[Member],
    now: datetime,
) -> None:
    errors: dict[str, list[str]] = {}
    for place, (quarter, was, becomes) in enumerate(zip(quarters, before, after, strict=True)):
        if was == becomes:
            continue
        if is_over(quarter.utc_day, now=now):
            errors[f"slot-{place}"] = [f"{quarter.shown}: its UTC day {quarter.utc_day} is over."]
            continue
        try:
            slots_checked({quarter.key: becomes}, members=members)
        except Invalid as refusal:
            why = next(iter(refusal.errors.values()))[0]
            errors[f"slot-{place}"] = [f"{quarter.shown}: {why}"]
    if errors:
        more = f" And {len(errors) - 1} more." if len(errors) > 1 else ""
        raise Invalid(next(iter(errors.values()))[0] + more, errors=errors)


def _write(
    site: Site, category: str, stored: Mapping[date, Schedule], changed: Mapping[date, Slots]
) -> tuple[Schedule, ...]:
    touched = []
    for utc_day, slots in changed.items():
        row = stored.get(utc_day)
        if row is None:
            row = services.schedule_create(site=site, category=category, valid_on=utc_day, slots=slots)
        else:
            whole = dict(sorted((row.schedule | slots).items()))
            row = services.schedule_replace_on(site=site, category=category, valid_on=utc_day, slots=whole)
        touched.append(row)
    return tuple(touched)


def _like(quarters: Sequence[Quarter], values: Values, theirs: Sequence[Quarter]) -> Values:
    """The values of a day, laid on the quarter hours of another by what the clock shows."""
    exact = {(q.shown, q.offset): value for q, value in zip(quarters, values, strict=True)}
    # Of two with the same face the first; only where the day copied has two does `exact` have the other.
    by_face: dict[str, float | None] = {}
    for quarter, value in zip(quarters, values, strict=True):
        by_face.setdefault(quarter.shown, value)
    found: list[float | None] = []
    for quarter in theirs:
        if (quarter.shown, quarter.offset) in exact and _comes_twice(quarters, quarter.shown):
            found.append(exact[quarter.shown, quarter.offset])
        elif quarter.shown in by_face:
            found.append(by_face[quarter.shown])
        else:
            found.append(found[-1] if found else None)
    return tuple(found)


def _comes_twice(quarters: Sequence[Quarter], shown: str) -> bool:
    return sum(quarter.shown == shown for quarter in quarters) > 1
