"""JSON that is kept as text says what jsonb would, letter by letter, on either database."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest
from django.core.exceptions import FieldError
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from schedules_app.models import Schedule
from smartgrid.expressions import AsStored
from tests.factories import site_make

DAY = date(2026, 12, 1)
BEFORE_TEXT = [("schedules_app", "0003_as_the_api_lists_them")]
SLOTS: list[dict[str, Any]] = [
    {},
    {"13:45": 0, "00:00": 60.0, "09:15": None},
    {"00:00": 1e-07, "00:15": 1e15, "00:30": -0.5, "00:45": 100},
]


def spelt(slots: dict[str, Any]) -> str:
    """As the column told it when PostgreSQL kept it as jsonb."""
    if connection.vendor != "postgresql":
        return json.dumps(slots)
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::jsonb::text", [json.dumps(slots)])
        text: str = cursor.fetchone()[0]
    return text


def stored() -> tuple[str, Any]:
    """The only row's text, and what Django makes of it."""
    text, slots = Schedule.objects.values_list(AsStored("schedule"), "schedule").get()
    return text, slots


@pytest.mark.django_db
@pytest.mark.parametrize("slots", SLOTS)
def test_text_is_that_of_jsonb_however_it_is_written(slots):
    schedule = Schedule.objects.create(site=site_make(), category="inverter", valid_on=DAY, schedule=slots)
    assert stored() == (spelt(slots), slots)
    Schedule.objects.update(schedule={"23:45": 1})
    assert stored() == (spelt({"23:45": 1}), {"23:45": 1})
    schedule.save()
    assert stored() == (spelt(slots), slots)
    Schedule.objects.bulk_update([schedule], ["schedule"])
    assert stored() == (spelt(slots), slots)
    schedule.delete()
    Schedule.objects.bulk_create([schedule])
    assert stored() == (spelt(slots), slots)


@pytest.mark.django_db
def test_nothing_in_it_can_be_asked_for():
    with pytest.raises(FieldError, match="JsonTextField"):
        Schedule.objects.filter(**{"schedule__00:00": 1}).exists()


def test_slots_that_are_there_stay_as_they_are(transactional_db):
    leaves = MigrationExecutor(connection).loader.graph.leaf_nodes()
    Schedule.objects.create(site=site_make(), category="inverter", valid_on=DAY, schedule=SLOTS[2])
    before = stored()
    try:
        MigrationExecutor(connection).migrate(BEFORE_TEXT)
    finally:
        MigrationExecutor(connection).migrate(leaves)
    assert stored() == before == (spelt(SLOTS[2]), SLOTS[2])
