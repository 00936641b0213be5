"""A day as its form has it: what was typed, what it was based on, and how it is laid out on the page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any

from django.http import QueryDict

from schedules_app.local_days import Quarter, Values
from schedules_app.window import is_over
from smartgrid.api.fields import number

MINUTES = ("00", "15", "30", "45")
NOT_A_NUMBER = "Not a number. Type a number, or leave it empty for the default."


@dataclass(slots=True)
class Draft:
    """`texts`: what stands in each quarter hour. `errors`: what is wrong with it, by its place.

    `based_on`: what was planned when the editing began. `seen`: what somebody else planned since, once the
    person was told of it.
    """

    texts: list[str]
    based_on: Values
    seen: Values | None = None
    errors: dict[int, str] = field(default_factory=dict)
    values: Values = ()

    @property
    def is_dirty(self) -> bool:
        return self.texts != [text_of(value) for value in self.based_on]


def draft_of(values: Values) -> Draft:
    return Draft(texts=[text_of(value) for value in values], based_on=values, values=values)


def draft_posted(posted: QueryDict, quarters: Sequence[Quarter], stored: Values) -> Draft | None:
    """What a form says; None where it is none of this day, whose length a new time zone may have changed."""
    based_on = _values(posted.get("based_on", ""), len(quarters))
    if based_on is None:
        return None
    texts = [posted.get(f"slot-{place}", text_of(value)).strip()[:40] for place, value in enumerate(stored)]
    draft = Draft(texts=texts, based_on=based_on, seen=_values(posted.get("seen", ""), len(quarters)))
    draft_read(draft)
    return draft


def draft_read(draft: Draft) -> None:
    """Make values of the texts, and errors of those that are none."""
    values: list[float | None] = []
    draft.errors = {}
    for place, text in enumerate(draft.texts):
        try:
            values.append(value_of(text))
        except ValueError:
            values.append(None)
            draft.errors[place] = NOT_A_NUMBER
    draft.values = tuple(values)


def draft_fill(draft: Draft, *, start: str, until: str, value: str) -> str:
    """Put a value into the quarter hours from `start` to before `until`; what is wrong, or nothing."""
    if not (start.isascii() and start.isdigit() and until.isascii() and until.isdigit()):
        return "Choose from when until when to fill."
    first, end = int(start), min(int(until), len(draft.texts))
    if end <= first:
        return "The range ends before it begins: choose a later end."
    try:
        text = text_of(value_of(value))
    except ValueError:
        return NOT_A_NUMBER
    draft.texts[first:end] = [text] * (end - first)
    draft_read(draft)
    return ""


def merged(base: Values, mine: Values, theirs: Values) -> Values:
    """Mine where I changed something, else theirs."""
    return tuple(own if own != was else other for was, own, other in zip(base, mine, theirs, strict=True))


def text_of(value: float | None) -> str:
    return "" if value is None else repr(number(value))


def value_of(text: str) -> float | None:
    """A number with a point or a comma; None for nothing. `ValueError` for anything else."""
    text = text.strip()
    if not text:
        return None
    value = float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
    if not math.isfinite(value):
        raise ValueError
    return number(value)


def as_json(values: Values) -> str:
    return json.dumps(values)


def _values(text: str, expected: int) -> Values | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, list) or len(found) != expected:
        return None
    if not all(one is None or (isinstance(one, int | float) and not isinstance(one, bool)) for one in found):
        return None
    return tuple(found)


# --- how it is laid out -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GridCell:
    """`label` is what the site's clock shows; `is_locked`: its UTC day is over."""

    place: int
    label: str
    begins: datetime
    text: str
    error: str
    is_locked: bool
    is_now: bool


@dataclass(frozen=True, slots=True)
class GridRow:
    """An hour: a cell for each of `MINUTES`, None where the clock shows no such time."""

    hour: str
    offset: str
    cells: tuple[GridCell | None, ...]


def cells_of(draft: Draft, quarters: Sequence[Quarter], *, now: datetime) -> list[GridCell]:
    twice = _faces_twice(quarters)
    return [
        GridCell(
            place=place,
            label=f"{quarter.shown} ({_offset(quarter)})" if quarter.shown in twice else quarter.shown,
            begins=quarter.begins,
            text=draft.texts[place],
            error=draft.errors.get(place, ""),
            is_locked=is_over(quarter.utc_day, now=now),
            is_now=quarter.begins <= now < quarter.ends,
        )
        for place, quarter in enumerate(quarters)
    ]


def rows_of(cells: Sequence[GridCell], quarters: Sequence[Quarter]) -> Iterator[GridRow]:
    twice = _faces_twice(quarters)
    places = range(len(quarters))
    for (hour, _), group in groupby(places, key=lambda at: (quarters[at].hour, quarters[at].offset)):
        found = list(group)
        by_minute: Mapping[str, GridCell] = {quarters[at].minute: cells[at] for at in found}
        first = quarters[found[0]]
        yield GridRow(
            hour=f"{hour}:00",
            offset=_offset(first) if first.shown in twice else "",
            cells=tuple(by_minute.get(minute) for minute in MINUTES),
        )


def _faces_twice(quarters: Sequence[Quarter]) -> set[str]:
    seen: set[str] = set()
    return {q.shown for q in quarters if q.shown in seen or seen.add(q.shown)}  # type: ignore[func-returns-value]


def _offset(quarter: Quarter) -> str:
    minutes = round(quarter.offset.total_seconds() / 60)
    sign = "-" if minutes < 0 else "+"
    return f"UTC{sign}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"


def slots_named(errors: Mapping[str, Any]) -> dict[int, str]:
    """Of a refusal's errors (`slot-12`) those of quarter hours, by their place."""
    return {
        int(name.removeprefix("slot-")): texts[0]
        for name, texts in errors.items()
        if name.startswith("slot-")
    }
