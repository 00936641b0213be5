"""Alarms in the console: what is seen, acknowledged, described and told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from auditlog.models import LogEntry
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse

from sites_app.alarm_guide import ALARM_GUIDE
from sites_app.alarms import alarm_acknowledge, alarm_clear, alarm_raise
from sites_app.models import Alarm, SiteScope
from smartgrid.console.roles import Role, roles_make
from smartgrid.errors import Conflict
from tests.factories import Story, story_make

pytestmark = pytest.mark.django_db
ROOT = Path(__file__).parents[2]


@pytest.fixture
def story() -> Story:
    return story_make()


def person(role: Role, *sites, name="ann") -> Client:
    roles_make()
    user = User.objects.create_user(name, is_staff=True)
    user.groups.add(Group.objects.get(name=role.value))
    SiteScope.objects.create(user=user).sites.set(sites)
    client = Client()
    client.force_login(user)
    return client


def raised(story: Story, code="node_silent", **fields) -> Alarm:
    given = {"site": story.site_a, "node": story.node_a, "detail": "since noon", **fields}
    return alarm_raise(code=code, **given)


def test_every_code_that_the_tree_raises_is_in_the_guide():
    codes = set()
    for path in (ROOT / "edge/runtime").glob("*.py"):
        codes |= set(re.findall(r"alarms\.set\(\s*\"([a-z_]+)\"", path.read_text()))
        if found := re.search(r"^ALARM = \"([a-z_]+)\"", path.read_text(), re.MULTILINE):
            codes.add(found[1])
    text = (ROOT / "sites_app/alarms.py").read_text()
    codes |= set(re.findall(r"^[A-Z_]+ = \"([a-z_]+)\"$", text, re.MULTILINE))
    codes |= set(re.findall(r"^    \"([a-z_]+)\": AlarmSeverity", text, re.MULTILINE))
    assert len(codes) > 18
    assert codes - set(ALARM_GUIDE) == set()
    assert all(guide.title and guide.means and guide.do for guide in ALARM_GUIDE.values())


def test_first_to_acknowledge_stays_and_the_alarm_stays_open(story):
    alarm = raised(story)
    assert alarm_acknowledge(alarm=alarm, by="ann", note="on my way")
    assert not alarm_acknowledge(alarm=alarm, by="bob", note="me too")
    alarm.refresh_from_db()
    assert (alarm.acknowledged_by, alarm.note, alarm.cleared_at) == ("ann", "on my way", None)


def test_alarm_that_is_over_is_not_acknowledged(story):
    alarm = raised(story)
    assert alarm_clear(code=alarm.code, site=story.site_a, node=story.node_a)
    with pytest.raises(Conflict):
        alarm_acknowledge(alarm=alarm, by="ann")


def test_errors_that_nobody_looks_after_stand_on_top(story):
    raised(story, "wear")
    looked_after = raised(story)
    alarm_acknowledge(alarm=looked_after, by="bob")
    raised(story, "store_failed")
    client = person(Role.VIEWER, story.site_a)
    lines = client.get(reverse("admin:console_alarms")).context["lines"]
    assert [line.alarm.code for line in lines] == ["store_failed", "wear", "node_silent"]
    assert [line.state for line in lines] == ["raised", "raised", "acknowledged"]


def test_operator_acknowledges_several_with_a_note_and_it_is_noted(story):
    alarms = [raised(story), raised(story, "wear")]
    client = person(Role.OPERATOR, story.site_a)
    url = reverse("admin:console_alarms_acknowledge")
    answer = client.post(
        url, {"alarm": [alarm.pk for alarm in alarms], "note": "crew is called"}, follow=True
    )
    assert "Acknowledged: 2 alarms." in answer.content.decode()
    assert set(Alarm.objects.values_list("acknowledged_by", "note")) == {("ann", "crew is called")}
    deeds = LogEntry.objects.filter(additional_data__deed="acknowledge")
    assert deeds.count() == 2


def test_viewer_may_not_acknowledge(story):
    alarm = raised(story)
    client = person(Role.VIEWER, story.site_a)
    assert client.post(reverse("admin:console_alarms_acknowledge"), {"alarm": alarm.pk}).status_code == 403
    assert "Acknowledge chosen" not in client.get(reverse("admin:console_alarms")).content.decode()


def test_foreign_alarm_is_neither_listed_nor_acknowledged(story):
    foreign = raised(story, site=story.site_b, node=story.node_b, detail="foreign words")
    client = person(Role.OPERATOR, story.site_a)
    for query in ("", "?state=all", f"?site={story.site_b.pk}", "?part=list"):
        page = client.get(reverse("admin:console_alarms") + query).content.decode()
        assert "foreign words" not in page
        assert story.site_b.name not in page
    url = reverse("admin:console_alarms_acknowledge")
    assert client.post(url, {"alarm": foreign.pk}).status_code == 404
    foreign.refresh_from_db()
    assert foreign.acknowledged_at is None


def test_what_a_node_wrote_is_escaped(story):
    raised(story, detail="<script>alert(1)</script>")
    page = person(Role.VIEWER, story.site_a).get(reverse("admin:console_alarms")).content.decode()
    assert "<script>alert(1)" not in page


@pytest.mark.parametrize("count", [1, 20])
def test_list_costs_as_many_queries_for_many_alarms(story, count, django_assert_max_num_queries):
    for number in range(count):
        raised(story, subject=f"DEV_{number}")
    client = person(Role.OPERATOR, story.site_a)
    with django_assert_max_num_queries(7):
        assert client.get(reverse("admin:console_alarms") + "?part=list").status_code == 200
