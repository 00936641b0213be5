from __future__ import annotations

from datetime import UTC, date, datetime

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from schedules_app.models import Schedule
from schedules_app.services import schedule_create
from sites_app.documents import manifest_for
from sites_app.models import NodeDocument, SiteScope
from tests.factories import story_make

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("clock")]

SCHEDULES = "/admin/schedules_app/schedule/"


@pytest.fixture
def story():
    return story_make()


@pytest.fixture
def operator():
    client = Client()
    client.force_login(User.objects.create_superuser("operator", "operator@example.com", "x"))
    return client


@pytest.fixture
def reader():
    """Somebody who may look at schedules and no more."""
    user = User.objects.create_user("reader", "reader@example.com", "x", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_schedule"))
    SiteScope.objects.create(user=user, all_sites=True)
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def planned(story):
    return schedule_create(
        site=story.site_a, category="inverter", valid_on=date(2026, 12, 6), slots={"09:00": 50}
    )


def days():
    return [str(day) for day in Schedule.objects.order_by("valid_on").values_list("valid_on", flat=True)]


def test_console_refuses_what_the_api_refuses_and_says_why(operator, story):
    form = {"site": story.site_a.pk, "category": "inverter", "valid_on": "2026-12-06"}
    for slots in ('{"09:10": 50}', '{"09:00": 101}', "[]", '"x"'):
        response = operator.post(f"{SCHEDULES}add/", {**form, "schedule": slots}, follow=True)
        assert "schedule" in response.content.decode()
        assert days() == []
    response = operator.post(
        f"{SCHEDULES}add/", {**form, "category": "inverters", "schedule": "{}"}, follow=True
    )
    assert "its categories: inverter" in response.content.decode()
    response = operator.post(
        f"{SCHEDULES}add/", {**form, "valid_on": "2026-11-22", "schedule": "{}"}, follow=True
    )
    assert "is over (UTC)" in response.content.decode()
    assert days() == []


def test_schedule_shows_what_each_node_says_of_it(operator, planned):
    page = f"{SCHEDULES}{planned.pk}/change/"
    assert "not all nodes have answered" in operator.get(page).content.decode()
    NodeDocument.objects.filter(name=planned.document_name).update(
        status="failed", error="it cannot be stored", answered_version=2, answered_at=datetime.now(UTC)
    )
    assert "failed (node-01: failed, it cannot be stored)" in operator.get(page).content.decode()


def test_past_schedule_is_not_deleted_by_the_console_either(operator, planned, clock):
    clock.move_to(datetime(2026, 12, 7, tzinfo=UTC))
    response = operator.post(f"{SCHEDULES}{planned.pk}/delete/", {"post": "yes"}, follow=True)
    assert "its schedule is a record" in response.content.decode()
    assert days() == ["2026-12-06"]


def test_action_leads_one_chosen_schedule_to_the_form(operator, story, planned):
    response = operator.post(SCHEDULES, {"action": "copy_to_days", "_selected_action": [planned.pk]})
    assert response["Location"] == f"{SCHEDULES}{planned.pk}/copy/"
    assert operator.get(response["Location"]).status_code == 200
    other = schedule_create(site=story.site_a, category="inverter", valid_on=date(2026, 12, 7), slots={})
    both = {"action": "copy_to_days", "_selected_action": [planned.pk, other.pk]}
    page = operator.post(SCHEDULES, both, follow=True).content.decode()
    assert "Choose the one schedule" in page


def test_chosen_weekdays_are_planned_like_the_copied_day(operator, story, planned):
    # 6 December is a Sunday; Mondays and Tuesdays of the two weeks after it.
    form = {"first": "2026-12-06", "last": "2026-12-20", "weekdays": ["0", "1"]}
    response = operator.post(f"{SCHEDULES}{planned.pk}/copy/", form, follow=True)
    assert "Planned: 2026-12-07, 2026-12-08, 2026-12-14, 2026-12-15." in response.content.decode()
    assert days() == ["2026-12-06", "2026-12-07", "2026-12-08", "2026-12-14", "2026-12-15"]
    assert "schedule/2026-12-15/inverter" in manifest_for(story.node_a).docs


def test_refused_copy_names_each_day_and_plans_none(operator, story, planned):
    schedule_create(site=story.site_a, category="inverter", valid_on=date(2026, 12, 8), slots={"00:00": 1})
    form = {"first": "2026-12-07", "last": "2026-12-09", "weekdays": list("0123456")}
    page = operator.post(f"{SCHEDULES}{planned.pk}/copy/", form).content.decode()
    assert "2026-12-08: This day has a schedule already." in page
    assert days() == ["2026-12-06", "2026-12-08"]
    operator.post(f"{SCHEDULES}{planned.pk}/copy/", {**form, "overwrite": "on"})
    assert days() == ["2026-12-06", "2026-12-07", "2026-12-08", "2026-12-09"]
    assert Schedule.objects.get(valid_on="2026-12-08").schedule == {"09:00": 50}


@pytest.mark.parametrize("last", ["2026-12-06", "2028-01-01", "x", ""])
def test_copy_to_days_that_make_no_range_is_refused_by_the_form(operator, planned, last):
    form = {"first": "2026-12-07", "last": last, "weekdays": ["0"]}
    page = operator.post(f"{SCHEDULES}{planned.pk}/copy/", form).content.decode()
    assert "errorlist" in page
    assert days() == ["2026-12-06"]


FILL = {
    "category": "inverter",
    "start": "2027-03-28T01:30",
    "until": "2027-03-28T03:30",
    "time_zone": "Europe/Amsterdam",
    "value": "20",
}


def test_range_of_local_time_is_filled(operator, story):
    assert "Fill a range" in operator.get(SCHEDULES).content.decode()
    response = operator.post(f"{SCHEDULES}fill/", {**FILL, "site": story.site_a.pk}, follow=True)
    assert "Planned: 2027-03-28." in response.content.decode()
    stored = Schedule.objects.get().schedule
    assert repr(stored) == "{'00:30': 20, '00:45': 20, '01:00': 20, '01:15': 20}"


def test_range_without_a_value_is_given_back_to_the_default(operator, story):
    operator.post(f"{SCHEDULES}fill/", {**FILL, "site": story.site_a.pk, "value": ""})
    assert set(Schedule.objects.get().schedule.values()) == {None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"start": "2026-11-22T00:00"}, "2026-11-22: This day is over (UTC)."),
        ({"value": "101"}, "Above 100, the most that SMA_STP60_01 takes."),
        ({"value": "nan"}, "Enter a number"),
        ({"category": "inverters"}, "its categories: inverter"),
        ({"time_zone": "Europe/Nowhere"}, "is not a time zone"),
        ({"start": "2027-03-28T01:31"}, "a full quarter hour is expected"),
        ({"start": "2027-03-28T01:30+02:00"}, "No UTC offset is expected"),
        ({"until": "tomorrow"}, "A date and a time are expected"),
        ({"until": "2027-03-28T01:00"}, "the range ends before it begins"),
    ],
)
def test_refused_range_says_why_and_plans_nothing(operator, story, changes, said):
    form = {**FILL, "site": story.site_a.pk, **changes}
    assert said in operator.post(f"{SCHEDULES}fill/", form).content.decode()
    assert days() == []


def test_who_may_only_look_plans_nothing(reader, story, planned):
    assert reader.get(SCHEDULES).status_code == 200
    for page in (f"{SCHEDULES}fill/", f"{SCHEDULES}{planned.pk}/copy/"):
        assert reader.get(page).status_code == 403
        assert reader.post(page, {**FILL, "site": story.site_a.pk}).status_code == 403
    assert days() == ["2026-12-06"]
