"""The page of a device and why it is held where it is; the node's words are from its wire."""

from __future__ import annotations

import uuid
from datetime import timedelta

import msgspec
import pytest
from django.urls import reverse
from django.utils import timezone

from control_app.models import CommandState, ControlLog, Status
from devices_app.models import Device, TelemetryReading, TelemetrySeries
from devices_app.partitions import READINGS, partitions_make
from edge.wire.messages import Code
from sites_app.models import Node, Site
from tests.control_app.conftest import live_forget
from tests.control_app.test_explain import EXPLANATION, refused, told
from tests.factories import control_command_make, control_log_make, control_request_make, device_error_make

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def no_redis(request, settings):
    """Where a test has no Redis of its own there is none."""
    if "live_redis" not in request.fixturenames:
        settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
        live_forget()
    yield
    live_forget()


def shown(client, device, **query):
    response = client.get(reverse("admin:console_device", args=[device.pk]), query)
    assert response.status_code == 200
    return response.content.decode()


def explained(client, device, **query):
    response = client.get(reverse("admin:console_why", args=[device.pk]), query)
    assert response.status_code == 200
    return response.content.decode()


def held_make(story, *, ago_s: float):
    """Device a, set by a direct request this long ago."""
    request = control_request_make(site=story.site_a)
    command = control_command_make(story.device_a, request=request, state=CommandState.DONE)
    command.result = {"SMA_STP60_01": {"value": 50, "readback": 50, "holds_s": 60}}
    command.accepted_at = command.done_at = timezone.now() - timedelta(seconds=ago_s)
    command.save()
    request.created_at = command.done_at
    request.save()
    Device.objects.filter(pk=story.device_a.pk).update(value=50, value_sequence=command.pk)
    return command


# --- the device -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["console_device", "console_why"])
def test_device_of_others_is_not_there(name, story, viewer_a):
    for key in (story.device_b.pk, uuid.uuid4()):
        assert viewer_a.get(reverse(f"admin:{name}", args=[key])).status_code == 404


def test_device_of_which_nothing_is_known_is_shown_all_the_same(story, viewer_a):
    body = shown(viewer_a, story.device_a)
    for told_text in (
        "none yet",
        "no reading",
        "Redis does not answer",
        "No errors.",
        "It was never probed.",
    ):
        assert told_text in body
    assert "type not verified on hardware" in body
    assert "unverified" in body


def test_only_who_may_control_is_offered_to(story, viewer_a, operator_a):
    address = reverse("admin:console_curtail")
    assert address not in shown(viewer_a, story.device_a)
    assert address in shown(operator_a, story.device_a)


def test_old_reading_is_not_shown_as_the_power_of_now(story, viewer_a):
    series = TelemetrySeries.objects.create(
        site=story.site_a, device=story.device_a, name="x", key="P_kW", unit="kW"
    )
    an_hour_ago = timezone.now() - timedelta(hours=1)
    partitions_make(READINGS, days=[an_hour_ago.date()])
    TelemetryReading.objects.create(series=series, at=an_hour_ago, value=42.5)
    assert "last known 42.5 kW" in shown(viewer_a, story.device_a)
    TelemetryReading.objects.create(series=series, at=timezone.now(), value=12.5)
    body = shown(viewer_a, story.device_a)
    assert "<dd>12.5 kW<small>" in body
    assert "last known" not in body


def test_hold_is_counted_down_until_it_ends(story, viewer_a):
    command = held_make(story, ago_s=10)
    until = command.done_at + timedelta(seconds=60)
    assert f'data-until="{until.timestamp():.0f}"' in shown(viewer_a, story.device_a)


def test_hold_that_has_lapsed_is_none(story, viewer_a):
    held_make(story, ago_s=61)
    assert "data-until" not in shown(viewer_a, story.device_a)


def test_hold_that_the_node_ended_is_none(story, viewer_a):
    request = held_make(story, ago_s=10).request
    ControlLog.objects.create(
        site=story.site_a,
        request=request,
        status=Status.SUCCESS,
        category="inverter",
        watchdog=True,
        result={"updated": {"SMA_STP60_01": None}, "not_updated": {}},
    )
    assert "data-until" not in shown(viewer_a, story.device_a)


def test_same_errors_are_one_line_with_their_number(story, viewer_a):
    for _ in range(3):
        device_error_make(device=story.device_a, error="no answer from unit 1")
    body = shown(viewer_a, story.device_a)
    assert body.count("no answer from unit 1") == 1
    assert '<td class="sgm-number">3</td>' in body


def test_wear_is_what_the_node_reported(story, viewer_a):
    Node.objects.filter(pk=story.node_a.pk).update(
        last_reported={"wear": {"SMA_STP60_01": {"limit": {"today": 7, "ever": 812}}}}
    )
    body = shown(viewer_a, story.device_a)
    assert ">7<" in body
    assert ">812<" in body


def test_device_page_costs_as_many_queries_however_much_happened(story, viewer_a, django_assert_num_queries):
    held_make(story, ago_s=10)
    shown(viewer_a, story.device_a)
    for _ in range(2):
        with django_assert_num_queries(16):
            shown(viewer_a, story.device_a, part="live")
        for _ in range(5):
            device_error_make(device=story.device_a)
            control_log_make(site=story.site_a)


# --- why ------------------------------------------------------------------------------------------


def test_reasons_are_a_ladder_with_times_of_the_site(story, viewer_a, node_a):
    Site.objects.filter(pk=story.site_a.pk).update(time_zone="Europe/Amsterdam")
    node_a.on_question = told(node_a)
    body = explained(viewer_a, story.device_a)
    for step in ("Who asked", "What won", "What bounded it", "What was written and read back"):
        assert step in body
    assert "grid_operator: 30 instead of 20" in body
    assert "30 confirmed, read back 30.1" in body
    assert "under it schedule 70 until 2026-03-02 11:15:00 CET" in body


def test_moment_is_asked_for_in_the_zone_of_the_site(story, viewer_a, node_a):
    Site.objects.filter(pk=story.site_a.pk).update(time_zone="Europe/Amsterdam")
    node_a.on_question = told(node_a)
    explained(viewer_a, story.device_a, when="2026-03-02T11:00:30")
    assert node_a.questions.get(timeout=1).at == "2026-03-02T10:00:30Z"


@pytest.mark.parametrize(
    ("when", "why_not"),
    [("yesterday", "This is no moment."), ("2026-03-29T02:30", "This moment does not exist")],
)
def test_moment_that_is_none_is_refused_with_what_to_do(story, viewer_a, when, why_not):
    Site.objects.filter(pk=story.site_a.pk).update(time_zone="Europe/Amsterdam")
    body = explained(viewer_a, story.device_a, when=when)
    assert why_not in body
    assert "Choose another moment." in body


def test_silent_node_leaves_what_central_knows(story, viewer_a, live_redis):
    held_make(story, ago_s=10)
    control_log_make(site=story.site_a, reason="the grid operator called")
    body = explained(viewer_a, story.device_a)
    assert "The node is not online" in body
    assert "inverter at 50" in body
    assert "the grid operator called" in body


def test_refusal_of_the_node_is_shown_in_its_words(story, viewer_a, node_a):
    node_a.on_question = refused(node_a, Code.RANGE, detail="the ring reaches back to yesterday")
    assert "the ring reaches back to yesterday" in explained(viewer_a, story.device_a)


def test_words_of_a_node_are_shown_as_text(story, viewer_a, node_a):
    decision = msgspec.structs.replace(EXPLANATION.decision, text="<script>alert(1)</script>")
    node_a.on_question = told(node_a, msgspec.structs.replace(EXPLANATION, decision=decision))
    assert "<script>alert(1)" not in explained(viewer_a, story.device_a)
