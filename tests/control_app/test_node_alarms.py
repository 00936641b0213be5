"""What a node reports to be wrong is an alarm here for as long as it reports it."""

from __future__ import annotations

import pytest
from django.utils import timezone

from control_app import inbox
from edge.wire.messages import Alarm as NodeAlarm
from sites_app.models import Alarm
from sites_app.reports import ReceivedReport
from tests.factories import node_online, report_make, story_make

pytestmark = pytest.mark.django_db


@pytest.fixture
def story(live_redis):
    return story_make()


def test_alarms_of_a_report_are_raised_and_end_with_the_report_that_has_them_no_longer(story):
    node_online(story.node_a)
    wear = NodeAlarm(code="wear", detail="80 % spent", since="2026-11-23T00:00:00Z", device="SMA_STP60_01")
    for mono_ms, alarms in ((1000, (wear,)), (2000, (wear,)), (3000, ())):
        report = report_make(story.node_a, mono_ms=mono_ms, alarms=alarms)
        inbox.on_reports(
            [ReceivedReport(str(story.node_a.pk), report, received=timezone.now(), retained=False)]
        )
        found = Alarm.objects.get()
        assert (found.code, found.subject, found.node, found.by_node) == (
            "wear",
            "SMA_STP60_01",
            story.node_a,
            True,
        )
        assert (found.cleared_at is None) is bool(alarms)
