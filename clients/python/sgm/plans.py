"""Schedules as CSV, in the form of the console's export, and what a file of them would change.

A line for each site, category and day: `site_tag`, `category`, `valid_on`, then 96 quarter hours of UTC from
`00:00` to `23:45`; an empty one is the default. Columns may stand in any order.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum

from sgm.errors import SgmError
from sgm.models import Schedule

SLOTS = tuple(f"{hour:02d}:{minute:02d}" for hour in range(24) for minute in (0, 15, 30, 45))
HEADERS = ("site_tag", "category", "valid_on", *SLOTS)
# As many changed quarter hours of a row are told one by one.
CHANGES_TOLD = 4

# What spreadsheets make of 00:00 when they save it.
_TIME = re.compile(r"(\d{1,2}):(\d{2})(?::00)?", re.ASCII)
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,18})?([eE][+-]?\d{1,3})?", re.ASCII)
_WHOLE = re.compile(r"-?\d{1,15}", re.ASCII)
_COMMA = re.compile(r"-?\d{1,15},\d{1,18}", re.ASCII)


class PlanUnreadable(SgmError):  # noqa: N818 - states the fault
    """A file that cannot be read as one of schedules."""


class Action(StrEnum):
    CREATE = "create"
    REPLACE = "replace"
    NOTHING = "nothing"


@dataclass(slots=True)
class PlanRow:
    """One line of a file; `number` counts lines of data from 1, as the console does.

    `errors` are what is wrong with it, by column.
    """

    number: int
    site_tag: str
    category: str
    valid_on: date | None
    slots: dict[str, float]
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, date | None]:
        return self.site_tag, self.category, self.valid_on


def plans_read(text: str) -> list[PlanRow]:
    """The rows of a CSV file; `PlanUnreadable` where it cannot be read as one.

    Lines divided by semicolons, as spreadsheets write them where the decimal sign is a comma, are understood,
    and with them the comma.
    """
    text = text.removeprefix("\ufeff")
    first_line = text.partition("\n")[0]
    semicolons = ";" in first_line and "," not in first_line
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=";" if semicolons else ",", strict=True)
    try:
        headers = [_header(name) for name in next(lines, [])]
        _refuse_headers(headers)
        cells = [line for line in lines if any(cell.strip() for cell in line)]
    except csv.Error as error:
        raise PlanUnreadable(f"line {lines.line_num} cannot be read as CSV: {error}") from error
    commas = semicolons and any(_COMMA.fullmatch(cell.strip()) for line in cells for cell in line)
    rows = [_row(number, headers, line, commas=commas) for number, line in enumerate(cells, 1)]
    _mark_repeated(rows)
    return rows


def _header(name: str) -> str:
    name = name.strip()
    found = _TIME.fullmatch(name)
    return f"{int(found[1]):02d}:{found[2]}" if found else name


def _refuse_headers(headers: Sequence[str]) -> None:
    missing = [name for name in HEADERS if name not in headers]
    unknown = [name for name in headers if name not in HEADERS]
    twice = sorted({name for name in headers if headers.count(name) > 1})
    for what, names in (("missing", missing), ("unknown", unknown), ("there twice", twice)):
        if names:
            more = " and others" if len(names) > 4 else ""  # noqa: PLR2004 - enough to see
            raise PlanUnreadable(
                f"The first line does not name the columns: {', '.join(names[:4])[:100]}{more} {what}."
                f" Expected are site_tag, category, valid_on, and {len(SLOTS)} from 00:00 to 23:45."
            )


def _row(number: int, headers: Sequence[str], line: Sequence[str], *, commas: bool) -> PlanRow:
    if len(line) != len(headers):
        wrong = {"columns": f"This row has {len(line)} columns instead of {len(headers)}."}
        return PlanRow(number, "", "", None, {}, wrong)
    cells = {name: cell.strip() for name, cell in zip(headers, line, strict=True)}
    row = PlanRow(number, cells["site_tag"], cells["category"], _day(cells["valid_on"]), {})
    for name in ("site_tag", "category"):
        if not cells[name]:
            row.errors[name] = "This field is required."
    if row.valid_on is None:
        row.errors["valid_on"] = "A day of the calendar is expected, YYYY-MM-DD."
    for slot in SLOTS:
        if cells[slot]:
            try:
                row.slots[slot] = _number(cells[slot], commas=commas)
            except ValueError as error:
                row.errors[slot] = str(error)
    return row


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if _DAY.fullmatch(text) else None
    except ValueError:
        return None


def _number(cell: str, *, commas: bool) -> float:
    if _WHOLE.fullmatch(cell):
        return int(cell)
    if commas and _COMMA.fullmatch(cell):
        return float(cell.replace(",", "."))
    if commas and "." in cell:
        raise ValueError("A point, where other values of this file have a decimal comma.")
    if _NUMBER.fullmatch(cell):
        value = float(cell)
        if value not in (float("inf"), float("-inf")):
            return value
    if _COMMA.fullmatch(cell):
        raise ValueError("A decimal comma, in a file divided by commas: 1,234 has two meanings there.")
    raise ValueError("Not a number.")


def _mark_repeated(rows: Iterable[PlanRow]) -> None:
    first: dict[tuple[str, str, date | None], int] = {}
    for row in rows:
        if row.valid_on is not None and (before := first.setdefault(row.key, row.number)) != row.number:
            row.errors["row"] = f"The same site, category and day as row {before}."


def plans_write(schedules: Iterable[Schedule], *, site_tags: Mapping[str, str]) -> str:
    """Schedules as a file; `site_tags` by site id. Which stands in order of day, site and category."""
    out = io.StringIO(newline="")
    lines = csv.writer(out)
    lines.writerow(HEADERS)
    named = [(one.valid_on, site_tags.get(one.site_id, one.site_id), one.category, one) for one in schedules]
    for day, tag, category, one in sorted(named, key=lambda row: row[:3]):
        values = (one.schedule.get(slot) for slot in SLOTS)
        cells = ("" if value is None else repr(value) for value in values)
        lines.writerow([tag, category, day.isoformat(), *cells])
    return out.getvalue()


def slots_set(slots: Mapping[str, float | None]) -> dict[str, float]:
    """The quarter hours that have a value: null is the default, as is one that is not there."""
    return {slot: value for slot, value in slots.items() if value is not None}


def action_of(row: PlanRow, before: Schedule | None) -> Action:
    if before is None:
        return Action.CREATE
    return Action.NOTHING if row.slots == slots_set(before.schedule) else Action.REPLACE


def changes_of(row: PlanRow, before: Schedule | None) -> str:
    """What a row changes, for people: `09:00 default -> 50, ...`."""
    if before is None:
        return f"{len(row.slots)} quarter hours"
    different = list(_differences(slots_set(before.schedule), row.slots))
    more = f" and {len(different) - CHANGES_TOLD} more" if len(different) > CHANGES_TOLD else ""
    return ", ".join(different[:CHANGES_TOLD]) + more


def _differences(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[str]:
    for slot in sorted(before.keys() | after.keys()):
        was, becomes = before.get(slot), after.get(slot)
        if was != becomes:
            yield f"{slot} {_told(was)} -> {_told(becomes)}"


def _told(value: float | None) -> str:
    return "default" if value is None else f"{value:g}"
