"""How long log lines are kept: as long as the settings say, and no control log goes unless asked to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from control_app.models import ControlLog, DeviceErrorLog, NodeStream
from control_app.retention import logs_retain
from tests.factories import control_log_make, device_error_make, story_make

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
YEARS = timedelta(days=3650)


@pytest.fixture
def story():
    return story_make()


def test_device_errors_go_after_their_days_and_not_before(story, settings):
    settings.SGM_DEVICE_ERROR_LOG_RETENTION_DAYS = 400
    edge = timedelta(days=400)
    for error, age in (("older", edge + timedelta(seconds=1)), ("younger", edge - timedelta(seconds=1))):
        device_error_make(device=story.device_a, at=NOW - age, error=error)
    logs_retain(now=NOW)
    assert list(DeviceErrorLog.objects.values_list("error", flat=True)) == ["younger"]


def test_device_errors_are_kept_for_400_days_and_control_logs_for_ever_unless_asked_otherwise(story):
    device_error_make(device=story.device_a, at=NOW - timedelta(days=399))
    device_error_make(device=story.device_a, at=NOW - timedelta(days=401))
    control_log_make(site=story.site_a, at=NOW - YEARS)
    logs_retain(now=NOW)
    assert (DeviceErrorLog.objects.count(), ControlLog.objects.count()) == (1, 1)


def test_control_logs_go_where_that_is_set(story, settings):
    settings.SGM_CONTROL_LOG_RETENTION_DAYS = 30
    for value, days in ((1, 31), (2, 29)):
        control_log_make(site=story.site_a, at=NOW - timedelta(days=days), value=value)
    logs_retain(now=NOW)
    assert list(ControlLog.objects.values_list("value", flat=True)) == [2]


def test_nought_keeps_for_ever(story, settings):
    settings.SGM_DEVICE_ERROR_LOG_RETENTION_DAYS = 0
    device_error_make(device=story.device_a, at=NOW - YEARS)
    logs_retain(now=NOW)
    assert DeviceErrorLog.objects.count() == 1


def test_position_of_a_stream_goes_a_month_after_the_node_began_another(story):
    ages = {"first": 60, "second": 31, "third": 29, "fourth": 1}
    for store, days in ages.items():
        since = NOW - timedelta(days=days)
        NodeStream.objects.create(node=story.node_a, stream="control", store=store, since=since)
    # The only one of its kind, however old, is the one in use.
    NodeStream.objects.create(node=story.node_a, stream="telemetry", store="first", since=NOW - YEARS)
    logs_retain(now=NOW)
    left = NodeStream.objects.order_by("since").values_list("stream", "store")
    assert list(left) == [
        ("telemetry", "first"),
        ("control", "second"),
        ("control", "third"),
        ("control", "fourth"),
    ]


def test_more_lines_than_one_slice_go_in_one_run(story):
    for number in range(7):
        device_error_make(device=story.device_a, at=NOW - YEARS, error=str(number))
    logs_retain(now=NOW, at_once=3)
    assert DeviceErrorLog.objects.count() == 0
