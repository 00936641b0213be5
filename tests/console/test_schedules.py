from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import time_machine
from auditlog.models import LogEntry
from django.contrib.auth.models import Group, User
from django.test import Client

from schedules_app.models import Schedule
from schedules_app.services import schedule_create, schedule_fill
from sites_app.models import NodeDocument, Site, SiteScope
from sites_app.services import site_update
from smartgrid.console.roles import Role
from tests.factories import Story, device_make, node_make, site_make, story_make

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("clock")]

NOW = datetime(2026, 11, 23, 10, 2, tzinfo=UTC)
DAY = "2026-12-06"
Logged = Callable[..., Client]


@pytest.fixture
def logged_in() -> Logged:
    """Log somebody in by a role, for these sites; for all where none is given."""

    def made(role: Role, *sites: Site, name: str = "everywhere") -> Client:
        user = User.objects.create_user(name, is_staff=True)
        user.groups.add(Group.objects.get(name=role.value))
        SiteScope.objects.create(user=user, all_sites=not sites).sites.set(sites)
        client = Client()
        client.force_login(user)
        return client

    return made


@pytest.fixture
def clock() -> Iterator[time_machine.Traveller]:
    with time_machine.travel(NOW, tick=False) as coordinates:
        yield coordinates


@pytest.fixture
def story() -> Story:
    return story_make()


@pytest.fixture
def operator(logged_in: Logged, story: Story) -> Client:
    return logged_in(Role.OPERATOR, story.site_a, name="anna")


@pytest.fixture
def viewer(logged_in: Logged, story: Story) -> Client:
    return logged_in(Role.VIEWER, story.site_a, name="vera")


def address(story: Story, day: str = DAY, category: str = "inverter") -> str:
    return f"/admin/site/{story.site_a.pk}/schedules/{category}/{day}/"


def planned(story: Story, slots: dict[str, float | None], day: str = DAY) -> Schedule:
    return schedule_create(
        site=story.site_a, category="inverter", valid_on=date.fromisoformat(day), slots=slots
    )


def amsterdam(story: Story) -> None:
    site_update(site=story.site_a, time_zone="Europe/Amsterdam")


def form_of(page: str, **changes: str) -> dict[str, str]:
    """What a browser would send of this page, with changes."""
    found = dict(re.findall(r'name="(slot-\d+)" value="([^"]*)"', page))
    for name in ("based_on", "seen"):
        hidden = re.search(rf'name="{name}" value="([^"]*)"', page)
        if hidden:
            found[name] = hidden[1].replace("&quot;", '"')
    return {**found, **changes}


def loaded(client: Client, url: str, **changes: str) -> dict[str, str]:
    return form_of(client.get(url).content.decode(), **changes)


def slots(day: str = DAY) -> dict[str, float | None]:
    found: dict[str, float | None] = Schedule.objects.get(valid_on=day).schedule
    return found


# --- the plan of the next days ---------------------------------------------------------------------------


def test_plan_shows_how_far_each_day_has_come(operator: Client, story: Story) -> None:
    later = NOW - timedelta(minutes=1)
    said_by_day: list[dict[str, Any]] = [
        {"status": "applied", "published_version": 1},
        {"status": "failed", "published_version": 1},
        {"published_version": 1, "changed_at": later},
        {"published_version": 1},
        {},
    ]
    for ahead, said in enumerate(said_by_day):
        row = planned(story, {"09:00": 50}, str(NOW.date() + timedelta(days=ahead)))
        documents = NodeDocument.objects.filter(name=row.document_name)
        documents.update(published_epoch=story.node_a.epoch, published_version=0)
        documents.update(**said, version=1)
    page = operator.get("/admin/schedules/").content.decode()
    words = re.findall(r'inverter, (\S+): (\w+)"', page)
    assert words == [
        ("2026-11-23", "confirmed"),
        ("2026-11-24", "failed"),
        ("2026-11-25", "unconfirmed"),
        ("2026-11-26", "sent"),
        ("2026-11-27", "stored"),
        ("2026-11-28", "none"),
        ("2026-11-29", "none"),
    ]


def test_plan_is_of_a_persons_sites_and_filtered_by_site(
    operator: Client, logged_in: Logged, story: Story
) -> None:
    assert "solarpanel_site_b" not in operator.get("/admin/schedules/").content.decode()
    everywhere = logged_in(Role.VIEWER)
    page = everywhere.get("/admin/schedules/").content.decode()
    assert "solarpanel_site_a" in page
    assert "solarpanel_site_b" in page
    page = everywhere.get("/admin/schedules/?q=site_b").content.decode()
    assert "solarpanel_site_a" not in page
    assert "No site with a device" in everywhere.get("/admin/schedules/?q=nothing").content.decode()


def test_plan_asks_as_much_for_many_sites_as_for_one(
    logged_in: Logged, story: Story, django_assert_num_queries
) -> None:
    everywhere = logged_in(Role.VIEWER)
    planned(story, {"09:00": 50}, "2026-11-24")
    for _ in range(5):
        site = site_make()
        device_make(node=node_make(site=site))
        schedule_create(site=site, category="inverter", valid_on=date(2026, 11, 24), slots={"09:00": 1})
    everywhere.get("/admin/schedules/?part=plan")
    with django_assert_num_queries(11):
        everywhere.get("/admin/schedules/?part=plan")


def test_pages_of_schedules_need_the_permission_to_see_them(story: Story) -> None:
    client = Client()
    client.force_login(User.objects.create_user("nobody", is_staff=True))
    assert client.get("/admin/schedules/").status_code == 403
    assert client.get(address(story)).status_code == 403


# --- a day -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("day", "length", "said"),
    [
        ("2026-12-06", 96, "quarter hours"),
        ("2027-03-28", 92, "set forward"),
        ("2026-10-25", 100, "set back"),
    ],
)
def test_day_has_the_quarter_hours_that_the_sites_clock_shows(
    operator: Client, story: Story, day: str, length: int, said: str
) -> None:
    amsterdam(story)
    page = operator.get(address(story, day)).content.decode()
    assert len(re.findall(r'name="slot-\d+"', page)) == length
    assert said in page


def test_hour_that_comes_twice_is_told_apart(operator: Client, story: Story) -> None:
    amsterdam(story)
    page = operator.get(address(story, "2026-10-25")).content.decode()
    assert 'aria-label="02:15 (UTC+02:00)"' in page
    assert 'aria-label="02:15 (UTC+01:00)"' in page


def test_local_day_is_stored_in_the_utc_days_it_lies_in(operator: Client, story: Story) -> None:
    amsterdam(story)
    form = loaded(operator, address(story), **{"slot-0": "40", "slot-95": "60,5"})
    response = operator.post(address(story), form)
    assert response.status_code == 302
    assert slots("2026-12-05") == {"23:00": 40}
    assert slots("2026-12-06") == {"22:45": 60.5}
    page = operator.get(address(story)).content.decode()
    assert form_of(page)["slot-0"] == "40"
    assert form_of(page)["slot-95"] == "60.5"


def test_saving_leaves_slots_outside_the_day_as_they_are(operator: Client, story: Story) -> None:
    amsterdam(story)
    planned(story, {"08:00": 10, "23:30": 20})
    operator.post(address(story), loaded(operator, address(story), **{"slot-36": ""}))
    assert slots() == {"08:00": None, "23:30": 20}


def test_value_that_a_device_does_not_take_is_refused_with_the_devices_name(
    operator: Client, story: Story
) -> None:
    response = operator.post(address(story), loaded(operator, address(story), **{"slot-36": "101"}))
    page = response.content.decode()
    assert "09:00: Above 100, the most that SMA_STP60_01 takes." in page
    assert 'value="101"' in page
    assert not Schedule.objects.exists()


@pytest.mark.parametrize("text", ["x", "nan", "1e999", "1.2.3", "<b>"])
def test_what_is_no_number_is_marked_and_kept_to_correct(operator: Client, story: Story, text: str) -> None:
    response = operator.post(address(story), loaded(operator, address(story), **{"slot-1": text}))
    page = response.content.decode()
    assert "correct the marked quarter hours" in page
    assert "<b>" not in page.partition('id="slots"')[2].partition("</table>")[0]
    assert not Schedule.objects.exists()


def test_range_is_filled_without_javascript_and_saved_by_the_next_step(
    operator: Client, story: Story
) -> None:
    form = loaded(operator, address(story))
    fill = {"do": "fill", "fill_from": "4", "fill_until": "8", "fill_value": "30"}
    page = operator.post(address(story), {**form, **fill}).content.decode()
    assert "not saved yet" in page
    assert not Schedule.objects.exists()
    operator.post(address(story), form_of(page, do="save"))
    assert slots() == {"01:00": 30, "01:15": 30, "01:30": 30, "01:45": 30}
    page = operator.post(address(story), {**form, **fill, "fill_until": "2"}).content.decode()
    assert "ends before it begins" in page


def test_day_that_is_over_is_read_only(operator: Client, story: Story) -> None:
    page = operator.get(address(story, "2026-11-22")).content.decode()
    assert "is a record" in page
    assert 'id="save"' not in page
    form = form_of(page, **{"slot-0": "10"})
    page = operator.post(address(story, "2026-11-22"), form).content.decode()
    assert "its UTC day 2026-11-22 is over" in page
    assert not Schedule.objects.exists()


def test_quarter_hour_now_is_marked(operator: Client, story: Story) -> None:
    page = operator.get(address(story, "2026-11-23")).content.decode()
    assert re.findall(r'aria-label="([^"]*)" aria-current="time"', page) == ["10:00, now"]


def test_viewer_sees_a_day_and_changes_nothing(viewer: Client, story: Story) -> None:
    planned(story, {"09:00": 50})
    page = viewer.get(address(story)).content.decode()
    assert form_of(page)["slot-36"] == "50"
    assert 'id="save"' not in page
    assert viewer.post(address(story), form_of(page, **{"slot-0": "1"})).status_code == 403
    assert viewer.post(f"{address(story)}copy/", {}).status_code == 403
    assert slots() == {"09:00": 50}


@pytest.mark.parametrize("day", ["2026-02-30", "20261206", "1026-01-01", "9999-12-31", "x"])
def test_what_is_no_day_is_not_found(operator: Client, story: Story, day: str) -> None:
    assert operator.get(address(story, day)).status_code == 404


def test_other_peoples_sites_and_unknown_categories_are_not_found(operator: Client, story: Story) -> None:
    assert operator.get(address(story, category="windmill")).status_code == 404
    theirs = address(story).replace(str(story.site_a.pk), str(story.site_b.pk))
    assert operator.get(theirs).status_code == 404
    assert operator.post(theirs, {}).status_code == 404
    assert operator.get(f"{theirs}export.csv").status_code == 404


def test_state_at_each_node_is_a_part_of_its_own(operator: Client, story: Story) -> None:
    row = planned(story, {"09:00": 50})
    NodeDocument.objects.filter(name=row.document_name).update(
        status="failed", error="<it cannot be stored>", answered_version=1, answered_at=NOW
    )
    part = operator.get(f"{address(story)}?part=nodes").content.decode()
    assert "<html" not in part
    assert "node-01" in part
    assert "&lt;it cannot be stored&gt;" in part


# --- two people at once ----------------------------------------------------------------------------------


@pytest.fixture
def two_at_once(operator: Client, logged_in: Logged, story: Story) -> tuple[Client, dict[str, str]]:
    """Ben saves 09:00 and 10:00 while Anna has the day before her; what Anna then sends."""
    planned(story, {"08:00": 10})
    form = loaded(operator, address(story), **{"slot-36": "50", "slot-44": "70"})
    ben = logged_in(Role.OPERATOR, story.site_a, name="ben")
    ben.post(address(story), loaded(ben, address(story), **{"slot-36": "20", "slot-40": "30"}))
    assert slots() == {"08:00": 10, "09:00": 20, "10:00": 30}
    return operator, form


def test_second_editor_is_told_who_was_first_and_what_differs(
    two_at_once: tuple[Client, dict[str, str]], story: Story
) -> None:
    anna, form = two_at_once
    response = anna.post(address(story), form)
    assert response.status_code == 409
    page = re.sub(r"\s+", " ", response.content.decode())
    assert "ben changed it at" in page
    assert "<td>09:00</td><td>09:15</td><td>by default</td><td>20</td><td>50</td>" in page
    assert slots() == {"08:00": 10, "09:00": 20, "10:00": 30}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("merge", {"08:00": 10, "09:00": 50, "10:00": 30, "11:00": 70}),
        ("mine", {"08:00": 10, "09:00": 50, "10:00": None, "11:00": 70}),
    ],
)
def test_second_editor_chooses_what_holds(
    two_at_once: tuple[Client, dict[str, str]], story: Story, choice: str, expected: dict[str, float]
) -> None:
    anna, form = two_at_once
    page = anna.post(address(story), form).content.decode()
    assert anna.post(address(story), form_of(page, do=choice)).status_code == 302
    assert slots() == expected


def test_choice_is_asked_for_again_if_a_third_change_came_between(
    two_at_once: tuple[Client, dict[str, str]], story: Story
) -> None:
    anna, form = two_at_once
    page = anna.post(address(story), form).content.decode()
    start = datetime(2026, 12, 6, 12, tzinfo=UTC)
    schedule_fill(
        site=story.site_a, category="inverter", start=start, until=start + timedelta(hours=1), value=5
    )
    assert anna.post(address(story), form_of(page, do="mine")).status_code == 409
    assert slots()["12:00"] == 5


@pytest.mark.parametrize("based_on", ["", "x", "[]", "{}", json.dumps(["x"] * 96)])
def test_form_without_what_it_was_based_on_saves_nothing(
    operator: Client, story: Story, based_on: str
) -> None:
    form = loaded(operator, address(story), **{"slot-0": "1", "based_on": based_on})
    page = operator.post(address(story), form, follow=True).content.decode()
    assert "no longer fits" in page
    assert not Schedule.objects.exists()


# --- copying, files, the audit ---------------------------------------------------------------------------


def test_day_is_copied_by_what_the_clock_shows(operator: Client, story: Story) -> None:
    amsterdam(story)
    # 02:00 and 09:00 in Amsterdam; on 28 March no clock there shows 02:00.
    planned(story, {"01:00": 15, "08:00": 40})
    form = {"first": "2027-03-28", "last": "2027-03-29", "weekdays": list("0123456")}
    response = operator.post(f"{address(story)}copy/", form, follow=True)
    assert "Copied to 2027-03-28, 2027-03-29." in response.content.decode()
    assert slots("2027-03-28") == {"07:00": 40}
    assert slots("2027-03-29") == {"00:00": 15, "07:00": 40}


def test_copy_overwrites_a_planned_day_only_if_told_to(operator: Client, story: Story) -> None:
    planned(story, {"09:00": 50})
    planned(story, {"10:00": 10}, "2026-12-07")
    form = {"first": "2026-12-07", "last": "2026-12-08", "weekdays": list("0123456")}
    page = operator.post(f"{address(story)}copy/", form).content.decode()
    assert "2026-12-07: This day is planned already." in page
    assert Schedule.objects.count() == 2
    operator.post(f"{address(story)}copy/", {**form, "overwrite": "on"})
    assert slots("2026-12-07") == {"09:00": 50, "10:00": None}
    assert slots("2026-12-08") == {"09:00": 50}


def test_day_is_exported_as_the_import_takes_it(operator: Client, story: Story) -> None:
    planned(story, {"09:00": 50})
    response = operator.get(f"{address(story)}export.csv")
    lines = response.content.decode().splitlines()
    assert lines[0].startswith("site_tag,category,valid_on,00:00")
    assert lines[1].startswith("solarpanel_site_a,inverter,2026-12-06,")
    assert "attachment" in response["Content-Disposition"]


def test_audit_tells_what_changed_as_ranges(operator: Client, story: Story) -> None:
    changes = {f"slot-{place}": "40" for place in range(24, 36)}
    operator.post(address(story), loaded(operator, address(story), **changes))
    entry = LogEntry.objects.get(additional_data__deed="plan")
    assert entry.actor is not None
    assert entry.actor.get_username() == "anna"
    assert entry.additional_data == {
        "deed": "plan",
        "day": DAY,
        "changes": ["06:00-09:00: by default -> 40"],
    }


def test_saving_nothing_new_leaves_no_trace(operator: Client, story: Story) -> None:
    planned(story, {"09:00": 50})
    before = LogEntry.objects.count()
    operator.post(address(story), loaded(operator, address(story)))
    assert LogEntry.objects.count() == before
