"""Alarms: one open row for as long as a condition holds, then history."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import time_machine
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.utils import timezone

from edge.wire.messages import Alarm as NodeAlarm
from sites_app.alarms import (
    PER_NODE,
    SEEN_AGAIN_AFTER,
    AlarmKey,
    AlarmText,
    alarm_clear,
    alarm_raise,
    alarms_forget,
    alarms_settle,
    nodes_alarms_mirror,
)
from sites_app.models import Alarm, AlarmSeverity
from sites_app.services import node_delete
from tests.factories import node_make, site_make

pytestmark = pytest.mark.django_db


@pytest.fixture
def node():
    return node_make()


def reported(code="clock_unsynced", *, device="", detail="nothing confirms it"):
    return NodeAlarm(code=code, detail=detail, since="2026-11-23T00:00:00Z", device=device)


def open_alarms() -> set[tuple[str, str]]:
    return set(Alarm.objects.filter(cleared_at=None).values_list("code", "subject"))


def test_alarm_raised_again_is_the_same_one_with_its_newest_detail(node):
    first = alarm_raise(code="some_code", site=node.site, node=node, detail="one")
    with time_machine.travel(timezone.now() + timedelta(minutes=3), tick=False):
        again = alarm_raise(code="some_code", site=node.site, node=node, detail="two")
        assert again.last_seen_at == timezone.now()
    assert (again.pk, again.detail, again.raised_at) == (first.pk, "two", first.raised_at)
    assert Alarm.objects.count() == 1


@pytest.mark.parametrize("of_node", [True, False])
def test_alarm_is_one_for_each_subject_and_a_new_one_once_it_was_cleared(node, of_node):
    at = {"site": node.site, "node": node if of_node else None}
    alarm_raise(code="some_code", subject="A", detail="", **at)
    alarm_raise(code="some_code", subject="B", detail="", **at)
    assert alarm_clear(code="some_code", subject="A", **at)
    assert not alarm_clear(code="some_code", subject="A", **at)
    assert open_alarms() == {("some_code", "B")}
    alarm_raise(code="some_code", subject="A", detail="", **at)
    assert Alarm.objects.filter(subject="A").count() == 2


def test_alarm_of_a_site_is_another_than_that_of_its_node(node):
    alarm_raise(code="some_code", site=node.site, detail="")
    alarm_raise(code="some_code", site=node.site, node=node, detail="")
    assert alarm_clear(code="some_code", site=node.site)
    assert Alarm.objects.get(cleared_at=None).node == node


@pytest.mark.django_db(transaction=True)
def test_alarm_raised_by_many_at_once_is_one(node):
    ready = threading.Barrier(4)

    def run() -> None:
        ready.wait()
        alarm_raise(code="some_code", site=node.site, detail="")
        connection.close()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Alarm.objects.count() == 1


def test_node_alarms_follow_what_the_node_reports(node):
    nodes_alarms_mirror([(node, [reported(), reported("wear", device="SMA_01")])])
    assert open_alarms() == {("clock_unsynced", ""), ("wear", "SMA_01")}
    nodes_alarms_mirror([(node, [reported("wear", device="SMA_01")])])
    assert open_alarms() == {("wear", "SMA_01")}
    nodes_alarms_mirror([(node, [])])
    assert open_alarms() == set()
    assert Alarm.objects.count() == 2


def test_report_that_says_nothing_new_writes_nothing(node, django_assert_num_queries):
    nodes_alarms_mirror([(node, [reported()])])
    with django_assert_num_queries(1):
        nodes_alarms_mirror([(node, [reported()])])
    before = Alarm.objects.get().last_seen_at
    with time_machine.travel(before + SEEN_AGAIN_AFTER, tick=False):
        nodes_alarms_mirror([(node, [reported()])])
    assert Alarm.objects.get().last_seen_at == before + SEEN_AGAIN_AFTER


def test_many_nodes_are_judged_in_one_query_when_nothing_changed(django_assert_num_queries):
    reports = [(node_make(), [reported()]) for _ in range(5)]
    nodes_alarms_mirror(reports)
    with django_assert_num_queries(1):
        nodes_alarms_mirror(reports)
    assert Alarm.objects.filter(cleared_at=None).count() == 5


def test_report_of_one_node_says_nothing_about_another(node):
    nodes_alarms_mirror([(node, [reported()])])
    nodes_alarms_mirror([(node_make(), [])])
    assert open_alarms() == {("clock_unsynced", "")}


def test_node_cannot_clear_or_take_over_what_central_noticed(node):
    alarm_raise(code="node_silent", site=node.site, node=node, detail="central's")
    nodes_alarms_mirror([(node, [reported("node_silent", detail="the node's")])])
    nodes_alarms_mirror([(node, [])])
    kept = Alarm.objects.get(cleared_at=None)
    assert (kept.detail, kept.by_node) == ("central's", False)


def test_node_that_floods_its_report_gets_so_many_alarms_and_no_more(node):
    flood = [reported(f"code-{number}\x00" + "x" * 100, device="d" * 300) for number in range(PER_NODE + 50)]
    nodes_alarms_mirror([(node, flood)])
    assert Alarm.objects.count() == PER_NODE
    assert nodes_alarms_mirror([(node, flood)]) == (0, 0)


def test_severity_is_by_code(node):
    alarm_raise(code="node_silent", site=node.site, node=node, detail="")
    alarm_raise(code="unheard_of", site=node.site, node=node, detail="")
    assert dict(Alarm.objects.values_list("code", "severity")) == {
        "node_silent": AlarmSeverity.ERROR,
        "unheard_of": AlarmSeverity.WARNING,
    }


def test_judgement_settles_only_what_it_has_a_say_about():
    site = site_make()
    alarm_raise(code="other", site=site, detail="")
    alarm_raise(code="mine", site=site, subject="gone", detail="")
    wanted = {AlarmKey("mine", site.pk, subject="new"): AlarmText(detail="now")}
    assert alarms_settle(among=Alarm.objects.filter(code="mine"), wanted=wanted) == (1, 1)
    assert open_alarms() == {("other", ""), ("mine", "new")}


def test_history_of_a_deleted_node_stays_under_its_name(node):
    alarm_raise(code="some_code", site=node.site, node=node, detail="")
    name = node.name
    node_delete(node=node)
    alarm = Alarm.objects.get()
    assert (alarm.node, alarm.node_name, alarm.cleared_at is not None) == (None, name, True)


def test_only_what_was_cleared_long_ago_is_forgotten():
    site = site_make()
    for code in ("open", "old", "new"):
        alarm_raise(code=code, site=site, detail="")
    now = timezone.now()
    Alarm.objects.filter(code="old").update(cleared_at=now - timedelta(days=91))
    Alarm.objects.filter(code="new").update(cleared_at=now)
    assert alarms_forget(before=now - timedelta(days=90)) == 1
    assert set(Alarm.objects.values_list("code", flat=True)) == {"open", "new"}


def test_console_lists_open_alarms_first_and_lets_nobody_change_them(node):
    for code in ("cleared_code", "open_code"):
        alarm_raise(code=code, site=node.site, node=node, detail="what to know")
    alarm_raise(code="late_code", site=node.site, detail="")
    alarm_clear(code="late_code", site=node.site)
    alarm_clear(code="cleared_code", site=node.site, node=node)
    operator = Client()
    operator.force_login(User.objects.create_superuser("operator", "operator@example.com", "x"))
    page = operator.get("/admin/sites_app/alarm/")
    assert [row.code for row in page.context["cl"].result_list] == [
        "open_code",
        "cleared_code",
        "late_code",
    ]
    only_open = operator.get("/admin/sites_app/alarm/?state=open")
    assert [row.code for row in only_open.context["cl"].result_list] == ["open_code"]
    row = Alarm.objects.first()
    assert row is not None
    assert operator.get(f"/admin/sites_app/alarm/{row.pk}/change/").status_code == 200
    assert operator.post(f"/admin/sites_app/alarm/{row.pk}/change/").status_code == 403
    assert operator.get("/admin/sites_app/alarm/add/").status_code == 403
