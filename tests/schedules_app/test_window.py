"""Which days the nodes have, and what is kept of those they no longer have."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from django.utils import timezone

from schedules_app.models import Schedule
from schedules_app.selectors import synchronization_results
from schedules_app.services import (
    Rolled,
    schedule_create,
    schedule_delete,
    schedule_replace,
    schedules_roll,
)
from schedules_app.tasks import roll_schedules
from schedules_app.window import expiry_of, window_at
from sites_app.documents import manifest_for
from sites_app.models import NodeDocument
from tests.factories import device_make, node_make, site_make

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("clock")]

TODAY = date(2026, 11, 23)
LAST = date(2026, 12, 28)
MIDNIGHT = datetime(2026, 11, 24, tzinfo=UTC)


@pytest.fixture
def site():
    found = site_make()
    device_make(node=node_make(site=found, name="node-01"))
    return found


def plan(site, day):
    return schedule_create(site=site, category="inverter", valid_on=day, slots={"09:00": 50})


def days_at(node):
    """The days whose schedules this node should have."""
    names = manifest_for(node).docs
    return [name.split("/")[1] for name in names if name.startswith("schedule/")]


def answer(schedule, **said):
    """What the nodes of a site, or the one that is named, have said of a schedule's document."""
    node = said.pop("node", None)
    documents = NodeDocument.objects.filter(node__site=schedule.site, name=schedule.document_name)
    if node is not None:
        documents = documents.filter(node__name=node)
    for document in documents:
        given = {
            "answered_version": document.version,
            "answered_at": timezone.now(),
            "status": "applied",
        } | said
        assert NodeDocument.objects.filter(pk=document.pk).update(**given)


# --- what the nodes have ---------------------------------------------------------------------------------


def test_window_is_today_and_thirty_five_days_more():
    window = window_at(datetime(2026, 11, 23, 10, 2, tzinfo=UTC))
    assert (window.first, window.last) == (TODAY, LAST)
    assert TODAY in window
    assert LAST + timedelta(days=1) not in window


def test_day_that_is_over_stays_for_an_hour():
    assert window_at(MIDNIGHT + timedelta(minutes=59, seconds=59)).first == TODAY
    assert window_at(MIDNIGHT + timedelta(hours=1)).first == TODAY + timedelta(days=1)


def test_broker_may_forget_a_day_two_days_after_its_end():
    assert expiry_of(TODAY) == datetime(2026, 11, 26, tzinfo=UTC)


def test_day_in_the_window_is_put_down_at_once_and_a_later_one_waits(site):
    for day in (TODAY, LAST, LAST + timedelta(days=1), TODAY + timedelta(days=60)):
        plan(site, day)
    assert days_at(site.nodes.get()) == ["2026-11-23", "2026-12-28"]


def test_day_that_waited_is_put_down_when_it_enters_the_window(site, clock):
    plan(site, LAST + timedelta(days=1))
    assert schedules_roll() == Rolled()
    clock.move_to(MIDNIGHT)
    assert schedules_roll() == Rolled(entered=1)
    assert days_at(site.nodes.get()) == ["2026-12-29"]


def test_day_that_is_over_for_an_hour_is_dropped_and_its_schedule_stays(site, clock):
    plan(site, TODAY)
    clock.move_to(MIDNIGHT + timedelta(minutes=59))
    assert schedules_roll() == Rolled()
    assert days_at(site.nodes.get()) == ["2026-11-23"]
    clock.move_to(MIDNIGHT + timedelta(hours=1))
    assert schedules_roll() == Rolled(left=1)
    assert days_at(site.nodes.get()) == []
    assert Schedule.objects.get().valid_on == TODAY


def test_roll_makes_up_for_days_without_one(site, clock):
    for number in range(60):
        plan(site, TODAY + timedelta(days=number))
    clock.move_to(datetime(2026, 12, 3, 12, tzinfo=UTC))
    assert schedules_roll() == Rolled(entered=10, left=10)
    assert days_at(site.nodes.get()) == [str(date(2026, 12, 3) + timedelta(days=n)) for n in range(36)]


def test_roll_run_again_does_nothing(site, clock, django_capture_on_commit_callbacks):
    plan(site, TODAY)
    plan(site, LAST + timedelta(days=1))
    clock.move_to(MIDNIGHT + timedelta(hours=2))
    roll_schedules()
    version = manifest_for(site.nodes.get()).version
    with django_capture_on_commit_callbacks() as callbacks:
        roll_schedules()
    assert callbacks == []
    assert manifest_for(site.nodes.get()).version == version


def test_days_are_given_back_when_the_clock_is_set_back(site, clock):
    plan(site, TODAY)
    clock.move_to(MIDNIGHT + timedelta(days=40))
    schedules_roll()
    assert days_at(site.nodes.get()) == []
    clock.move_to(MIDNIGHT - timedelta(hours=12))
    assert schedules_roll() == Rolled(entered=1)
    assert days_at(site.nodes.get()) == ["2026-11-23"]
    assert synchronization_results(Schedule.objects.all()) == {Schedule.objects.get().pk: None}


def test_node_that_is_made_later_has_the_window_and_no_more(site):
    for day in (TODAY, LAST, LAST + timedelta(days=1)):
        plan(site, day)
    assert days_at(node_make(site=site)) == ["2026-11-23", "2026-12-28"]


def test_schedule_beyond_the_window_is_changed_and_deleted_without_a_word_to_the_nodes(site):
    schedule = plan(site, LAST + timedelta(days=1))
    version = manifest_for(site.nodes.get()).version
    schedule_replace(schedule=schedule, slots={"09:00": 60})
    schedule_delete(schedule=schedule)
    assert manifest_for(site.nodes.get()).version == version


def test_roll_with_nothing_to_do_is_one_query_however_many_schedules_there_are(
    site, django_assert_num_queries
):
    rows = (
        Schedule(site=site, category=f"c{number}", valid_on=LAST + timedelta(days=1 + number % 400))
        for number in range(2000)
    )
    Schedule.objects.bulk_create(rows, batch_size=500)
    over = (
        Schedule(site=site, category=f"c{number}", valid_on=TODAY - timedelta(days=1 + number % 400))
        for number in range(2000)
    )
    Schedule.objects.bulk_create(over, batch_size=500)
    with django_assert_num_queries(1):
        assert schedules_roll() == Rolled()


# --- what became of them ---------------------------------------------------------------------------------


def result_of(schedule):
    return synchronization_results([Schedule.objects.get(pk=schedule.pk)])[schedule.pk]


def test_nothing_is_said_until_every_node_has_answered(site):
    node_make(site=site, name="node-02")
    schedule = plan(site, TODAY)
    assert result_of(schedule) is None
    answer(schedule, node="node-01")
    assert result_of(schedule) is None
    answer(schedule, node="node-02")
    documents = {row.node.name: row for row in NodeDocument.objects.filter(name=schedule.document_name)}
    assert result_of(schedule) == {
        "status": "applied",
        "nodes": {
            name: {
                "status": "applied",
                "version": documents[name].version,
                "at": "2026-11-23T10:02:00.000000Z",
            }
            for name in ("node-01", "node-02")
        },
    }


def test_result_is_the_worst_that_any_node_says_with_its_error(site):
    node_make(site=site, name="node-02")
    schedule = plan(site, TODAY)
    answer(schedule)
    answer(schedule, node="node-02", status="conflict")
    assert result_of(schedule)["status"] == "conflict"
    answer(schedule, node="node-01", status="failed", error="schedule: it cannot be stored")
    result = result_of(schedule)
    assert result["status"] == "failed"
    assert result["nodes"]["node-01"]["error"] == "schedule: it cannot be stored"
    assert "error" not in result["nodes"]["node-02"]


def test_answer_to_the_former_content_says_nothing_of_the_new_one(site):
    schedule = plan(site, TODAY)
    answer(schedule)
    assert result_of(schedule)["status"] == "applied"
    schedule_replace(schedule=schedule, slots={"09:00": 60})
    assert result_of(schedule) is None


def test_result_of_a_site_without_nodes_is_null():
    site = site_make()
    node = node_make(site=site)
    device_make(node=node)
    schedule = plan(site, TODAY)
    node.devices.all().delete()
    node.delete()
    assert result_of(schedule) is None


def test_node_that_is_made_later_has_yet_to_answer(site):
    schedule = plan(site, TODAY)
    answer(schedule)
    node_make(site=site, name="node-02")
    assert result_of(schedule) is None


def test_last_word_is_kept_when_the_day_leaves_the_window(site, clock):
    schedule = plan(site, TODAY)
    answer(schedule)
    before = result_of(schedule)
    assert Schedule.objects.get().synchronization_result is None
    clock.move_to(MIDNIGHT + timedelta(hours=1))
    schedules_roll()
    assert result_of(schedule) == before
    assert Schedule.objects.get().synchronization_result == before


def test_last_word_names_the_nodes_that_never_answered(site, clock):
    node_make(site=site, name="node-02")
    schedule = plan(site, TODAY)
    answer(schedule, node="node-01")
    clock.move_to(MIDNIGHT + timedelta(hours=1))
    schedules_roll()
    result = result_of(schedule)
    assert result["status"] == "pending"
    assert {name: said["status"] for name, said in result["nodes"].items()} == {
        "node-01": "applied",
        "node-02": "pending",
    }
    assert result["nodes"]["node-02"]["at"] is None
