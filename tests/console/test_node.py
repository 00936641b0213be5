"""A node's page, its enrolment, and its end."""

from __future__ import annotations

from datetime import timedelta

import pytest
from auditlog.models import LogEntry
from django.urls import reverse
from django.utils import timezone

from control_app.models import CommandState
from control_app.watching import commands_watch
from sites_app.models import Alarm, NodeCertificate
from sites_app.services import certificates_judge
from smartgrid.console.roles import Role
from tests.console.test_alarms import person
from tests.factories import control_command_make, report_record, story_make

pytestmark = pytest.mark.django_db


@pytest.fixture
def story():
    return story_make()


def certificate_make(node, *, ends_in_days: float):
    now = timezone.now()
    number = NodeCertificate.objects.count()
    return NodeCertificate.objects.create(
        node=node,
        common_name=node.pk,
        serial=f"{number:040x}",
        fingerprint=f"{number:064x}",
        key_digest=f"{number:064x}",
        pem="",
        issued_at=now,
        not_after=now + timedelta(days=ends_in_days),
        confirmed_at=now,
    )


def open_alarms():
    return set(Alarm.objects.filter(cleared_at=None).values_list("code", "subject"))


def test_page_of_a_node_stands_without_redis_and_shows_what_it_reported(story, settings):
    settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
    certificate_make(story.node_a, ends_in_days=30)
    report_record(story.node_a)
    page = person(Role.VIEWER, story.site_a).get(reverse("admin:console_node", args=[story.node_a.pk]))
    text = page.content.decode()
    for word in ("trusted", "config", story.device_a.device_tag, "in use"):
        assert word in text
    assert "Enrol" not in text.split("<main")[-1]


def test_viewer_neither_enrols_nor_revokes(story):
    client = person(Role.VIEWER, story.site_a)
    for name in ("console_node_enrol", "console_node_revoke"):
        assert client.post(reverse(f"admin:{name}", args=[story.node_a.pk])).status_code == 403


def test_enrolment_that_is_not_set_up_says_what_to_set(story):
    client = person(Role.ENGINEER, story.site_a)
    answer = client.post(reverse("admin:console_node_enrol", args=[story.node_a.pk]), follow=True)
    assert "SGM_ENROL_URL and SGM_NODES_MQTT_URL are not set" in answer.content.decode()


def test_revocation_asks_for_the_nodes_name_and_is_noted(story, settings, tmp_path):
    row = certificate_make(story.node_a, ends_in_days=30)
    client = person(Role.ENGINEER, story.site_a)
    url = reverse("admin:console_node_revoke", args=[story.node_a.pk])
    assert client.post(url, {"name": "other", "reason": "stolen"}).status_code == 400
    row.refresh_from_db()
    assert row.revoked_at is None
    assert client.post(url, {"name": story.node_a.name, "reason": "stolen"}).status_code == 302
    row.refresh_from_db()
    assert row.reason == "stolen"
    assert LogEntry.objects.get(additional_data__deed="revoke").additional_data["reason"] == "stolen"


def test_certificate_near_its_end_is_an_alarm_before_the_node_could_say_so(story):
    certificate_make(story.node_a, ends_in_days=30)
    assert certificates_judge(now=timezone.now()) == (0, 0)
    assert certificates_judge(now=timezone.now() + timedelta(days=17)) == (1, 0)
    assert open_alarms() == {("node_certificate", "")}
    certificate_make(story.node_a, ends_in_days=90)
    assert certificates_judge(now=timezone.now() + timedelta(days=17)) == (0, 1)


def test_command_that_nobody_answers_is_an_alarm_once_its_time_is_over(story):
    command = control_command_make(story.device_a)
    tag = story.device_a.device_tag
    assert commands_watch(now=command.deadline) == (0, 0)
    assert commands_watch(now=command.deadline + timedelta(seconds=11)) == (1, 0)
    assert open_alarms() == {("command_unanswered", tag)}
    later = control_command_make(story.device_a, state=CommandState.DONE)
    later.result = {tag: {"value": 50.0}}
    later.save()
    assert commands_watch(now=later.deadline + timedelta(seconds=11)) == (0, 1)


def test_device_that_reads_back_another_value_is_an_alarm_until_it_confirms(story):
    command = control_command_make(story.device_a, state=CommandState.DONE)
    tag = story.device_a.device_tag
    command.result = {tag: {"code": "readback_mismatch", "detail": "wrote 50", "readback": 100.0}}
    command.save()
    commands_watch(now=command.deadline)
    assert open_alarms() == {("setpoint_not_held", tag)}
    story.device_a.value_sequence = command.sequence
    story.device_a.save(update_fields=["value_sequence"])
    commands_watch(now=command.deadline)
    assert open_alarms() == set()
