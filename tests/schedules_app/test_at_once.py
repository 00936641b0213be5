"""Several changes of one site's schedules at the same moment: none is lost, and the nodes have what is stored."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import partial

import pytest

from schedules_app.models import Schedule
from schedules_app.services import (
    schedule_copy,
    schedule_create,
    schedule_delete,
    schedule_fill,
    schedule_replace,
    schedules_roll,
)
from sites_app.documents import manifest_for
from sites_app.models import Node
from smartgrid.errors import Conflict, NotFound
from tests.at_once import at_once
from tests.factories import device_make, node_make, site_make

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("clock")]

TODAY = date(2026, 11, 23)


@pytest.fixture
def site():
    found = site_make()
    device_make(node=node_make(site=found))
    return found


def create(site, day, slots=None):
    return partial(
        schedule_create, site=site, category="inverter", valid_on=day, slots=slots or {"09:00": 50}
    )


def assert_nodes_have_what_is_stored(site):
    wanted = {row.document_name: row.schedule for row in Schedule.objects.filter(site=site, is_listed=True)}
    for node in Node.objects.filter(site=site):
        assert {name for name in manifest_for(node).docs if name != "config"} == set(wanted)
        for row in node.documents.filter(name__in=wanted):
            assert row.body["slots"] == wanted[row.name]


def test_of_two_schedules_for_one_day_at_once_one_is_a_conflict(site):
    results = at_once(create(site, TODAY), create(site, TODAY, {"10:00": 60}))
    assert [type(result) for result in results if isinstance(result, Exception)] == [Conflict]
    assert_nodes_have_what_is_stored(site)


def test_node_made_while_days_are_planned_has_all_of_them(site):
    for number in range(5):
        day = TODAY + timedelta(days=2 * number)
        results = at_once(
            create(site, day),
            partial(node_make, site=site, name=f"new-{number}"),
            create(site, day + timedelta(days=1)),
        )
        assert not [result for result in results if isinstance(result, Exception)]
        assert_nodes_have_what_is_stored(site)


def test_changes_of_every_kind_at_once_leave_the_nodes_with_what_is_stored(site):
    for number in range(3):
        day = TODAY + timedelta(days=number)
        schedule = create(site, day)()
        results = at_once(
            partial(schedule_replace, schedule=schedule, slots={"09:00": 60}),
            partial(schedule_delete, schedule=schedule),
            partial(schedule_copy, schedule=schedule, days=[day + timedelta(days=10)], overwrite=True),
            partial(
                schedule_fill,
                site=site,
                category="inverter",
                start=datetime(2026, 12, 1, 22, tzinfo=UTC),
                until=datetime(2026, 12, 3, 2, tzinfo=UTC),
                value=number,
            ),
            schedules_roll,
        )
        # Whoever comes after the deletion finds nothing; nobody waits for anybody for ever.
        assert {type(result) for result in results if isinstance(result, Exception)} <= {NotFound}
        assert results[1] is None
        assert_nodes_have_what_is_stored(site)


def test_two_rolls_at_once_do_the_work_of_one(site, clock):
    create(site, TODAY)()
    create(site, TODAY + timedelta(days=36))()
    clock.move_to(datetime(2026, 11, 24, 2, tzinfo=UTC))
    results = at_once(schedules_roll, schedules_roll)
    assert sum(result.entered for result in results) == 1
    assert sum(result.left for result in results) == 1
    assert_nodes_have_what_is_stored(site)
    assert Schedule.objects.get(valid_on=TODAY).synchronization_result is not None
