"""The ledger of writes: nothing is forgotten, and no day begins twice."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from edge.core.wear import EMPTY_LEDGER, Count, Ledger, begin_day, count, merged

TODAY = date(2026, 3, 2)
SPENT = Ledger(TODAY, {"limit": Count(today=7, ever=100), "enable": Count(today=2, ever=3)})


def test_writes_are_counted_by_register_today_and_ever():
    ledger = count(count(SPENT, {"limit": 2, "ramp": 1}), {"limit": 1})
    assert ledger.registers == {"limit": Count(10, 103), "enable": Count(2, 3), "ramp": Count(1, 1)}
    assert ledger.day == TODAY


def test_most_written_register_of_the_budget_counts():
    assert SPENT.today({"limit", "enable"}) == 7
    assert SPENT.today({"enable", "never_written"}) == 2
    assert SPENT.today({"never_written"}) == SPENT.today(()) == 0


@pytest.mark.parametrize("later", [1, 400])
def test_new_day_begins_at_nothing_and_keeps_what_was_ever_written(later):
    ledger = begin_day(SPENT, TODAY + timedelta(days=later))
    assert ledger == Ledger(TODAY + timedelta(days=later), {"limit": Count(0, 100), "enable": Count(0, 3)})


def test_writes_from_before_the_clock_was_trusted_belong_to_no_day():
    assert begin_day(count(EMPTY_LEDGER, {"limit": 4}), TODAY).registers == {"limit": Count(0, 4)}


@pytest.mark.parametrize("earlier", [0, 1])
def test_day_never_begins_twice_though_the_clock_is_set_back(earlier):
    assert begin_day(SPENT, TODAY - timedelta(days=earlier)) is SPENT
    assert begin_day(begin_day(SPENT, TODAY - timedelta(days=earlier)), TODAY) is SPENT


def test_clock_that_was_a_year_ahead_costs_one_budget_and_not_a_year_of_them():
    ledger = begin_day(SPENT, TODAY - timedelta(days=365))
    assert ledger == Ledger(TODAY - timedelta(days=365), SPENT.registers)
    assert begin_day(ledger, TODAY - timedelta(days=364)).today({"limit"}) == 0


@pytest.mark.parametrize(
    ("other_day", "limit"),
    [
        (TODAY, Count(12, 140)),
        (TODAY - timedelta(days=1), Count(7, 140)),
        (TODAY + timedelta(days=1), Count(5, 140)),
        (None, Count(7, 140)),
    ],
)
def test_registers_that_passed_from_one_device_to_another_keep_both_their_writes(other_day, limit):
    other = Ledger(other_day, {"limit": Count(5, 40), "ramp": Count(1, 1)})
    for one, two in ((SPENT, other), (other, SPENT)):
        ledger = merged(one, two)
        assert ledger.day == max(TODAY, other_day or TODAY)
        assert ledger.registers["limit"] == limit
        assert ledger.registers["ramp"].ever == 1
    assert merged(EMPTY_LEDGER, EMPTY_LEDGER) == EMPTY_LEDGER
