"""Schedules as files: what the console writes is read, and what is written the console reads."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest

from schedules_app import exchange
from sgm.models import Schedule
from sgm.plans import HEADERS, SLOTS, Action, PlanUnreadable, action_of, changes_of, plans_read, plans_write

SITE = "01751407-d87b-4d89-b47f-cca4dfb85a92"


def csv_of(*rows: dict[str, str], delimiter: str = ",") -> str:
    lines = [HEADERS, *([row.get(name, "") for name in HEADERS] for row in rows)]
    return "\r\n".join(delimiter.join(line) for line in lines) + "\r\n"


def row_of(**cells: str) -> dict[str, str]:
    return {"site_tag": "site_a", "category": "inverter", "valid_on": "2026-11-24"} | cells


def schedule_of(**slots: float | None) -> Schedule:
    return Schedule(
        id="1",
        site_id=SITE,
        category="inverter",
        valid_on=date(2026, 11, 24),
        schedule={f"{name[1:3]}:{name[3:]}": value for name, value in slots.items()},
        synchronization_result=None,
    )


def test_columns_are_the_console_s():
    assert HEADERS == exchange.CSV_HEADERS


@pytest.mark.parametrize(
    "cells",
    [
        {"09:00": "50", "09:15": "62.5", "23:45": "-1e2"},
        {"09:00": "1,5"},
        {"09:00": "a"},
        {"09:00": "1e999"},
        {"valid_on": "2026-02-30"},
        {},
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_row_is_read_as_the_console_reads_it(cells: dict[str, str], delimiter: str):
    if "," in "".join(cells.values()) and delimiter == ",":
        cells = {name: f'"{cell}"' for name, cell in cells.items()}
    text = csv_of(row_of(**cells), delimiter=delimiter)
    (ours,) = plans_read(text)
    (theirs,) = exchange.csv_read(text)
    if ours.errors.keys() - {"valid_on"} or "1e999" in cells.values():
        assert {name.removeprefix("schedule.") for name in theirs["errors"]} <= ours.errors.keys()
    else:
        assert ours.slots == theirs["schedule"]
    assert (ours.site_tag, ours.category) == (theirs["site_tag"], theirs["category"])


def test_what_is_written_is_read_again():
    planned = schedule_of(s0900=50, s0915=62.5, s1200=None)
    (row,) = plans_read(plans_write([planned], site_tags={SITE: "site_a"}))
    assert row.errors == {}
    assert row.key == ("site_a", "inverter", date(2026, 11, 24))
    assert action_of(row, planned) is Action.NOTHING


@pytest.mark.parametrize(
    ("cells", "column"),
    [
        ({"site_tag": ""}, "site_tag"),
        ({"category": ""}, "category"),
        ({"valid_on": "24.11.2026"}, "valid_on"),
        ({"00:00": "nan"}, "00:00"),
        ({"00:00": "inf"}, "00:00"),
        ({"00:00": "1e999"}, "00:00"),
    ],
)
def test_cell_that_cannot_be_used_is_named(cells: dict[str, str], column: str):
    (row,) = plans_read(csv_of(row_of(**cells)))
    assert list(row.errors) == [column]


def test_same_day_twice_is_an_error_of_the_later_row():
    first, second = plans_read(csv_of(row_of(), row_of()))
    assert first.errors == {}
    assert "row 1" in second.errors["row"]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\0", csv_of().replace("00:00", "00:01"), '"'])
def test_file_without_the_columns_is_refused_whole(text: str):
    with pytest.raises(PlanUnreadable):
        plans_read(text)


def test_row_with_too_few_columns_is_an_error_of_that_row():
    rows = plans_read(csv_of(row_of()) + "site_a,inverter\r\n")
    assert [list(row.errors) for row in rows] == [[], ["columns"]]


def test_changes_are_told_by_quarter_hour():
    (row,) = plans_read(csv_of(row_of(**{"09:00": "60", "12:00": "80"})))
    before = schedule_of(s0900=50, s1500=70)
    assert action_of(row, before) is Action.REPLACE
    assert changes_of(row, before) == "09:00 50 -> 60, 12:00 default -> 80, 15:00 70 -> default"


def test_many_changes_are_counted():
    (row,) = plans_read(csv_of(row_of(**dict.fromkeys(SLOTS, "1"))))
    assert changes_of(row, schedule_of()).endswith("and 92 more")


def test_moment_is_a_time_or_how_long_ago():
    from sgm.cli.fleet import moment  # noqa: PLC0415

    now = datetime(2026, 11, 23, 12, tzinfo=UTC)
    assert moment("-90m", now=now) == datetime(2026, 11, 23, 10, 30, tzinfo=UTC)
    assert moment("2026-11-23T10:53:00Z", now=now) == datetime(2026, 11, 23, 10, 53, tzinfo=UTC)
    bad: Any
    for bad in ("", "-", "-m", "yesterday", "-1e999d", "-infm", "-nanh"):
        with pytest.raises(ValueError, match="expected"):
            moment(bad, now=now)
