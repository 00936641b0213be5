"""Curtail and release at the console, and the page of a request: forms as a browser without JavaScript sends them."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta
from typing import Any

import pytest
from auditlog.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from control_app.models import CommandState, ControlCommand, ControlRequest, Kind, Status
from devices_app.models import Device, TelemetryReading, TelemetrySeries
from devices_app.partitions import READINGS, partitions_make
from smartgrid.console.carrying import carried_to_the_end
from smartgrid.console.roles import Role
from tests.console.conftest import person_make
from tests.control_app.conftest import live_forget
from tests.control_app.test_previews import WORN, WOULD, says
from tests.factories import control_command_make, control_request_make, device_make
from tests.fake_node import stay_silent

# Whoever waits for the answers is a thread, with a connection of its own.
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("database_of_threads")]

CURTAIL = "admin:console_curtail"
RELEASE = "admin:console_release"


def asked(story, **changes: Any) -> dict[str, Any]:
    given = {
        "site": [str(story.site_a.pk)],
        "category": "inverter",
        "value": "20",
        "unit": "percent",
        "scope": "all",
        "reason": "the grid operator called",
    }
    return given | changes


def preview(client: Client, story, *, page: str = CURTAIL, **changes: Any):
    return client.post(reverse(page), asked(story, step="preview", **changes))


def key_of(response) -> str:
    found = re.search(r'name="key" value="([0-9a-f]{32})"', response.content.decode())
    assert found is not None
    return found[1]


def confirm(client: Client, story, *, page: str = CURTAIL, key: str | None = None, **changes: Any):
    response = client.post(
        reverse(page), asked(story, step="confirm", key=key or uuid.uuid4().hex, **changes)
    )
    assert carried_to_the_end(within_s=15)
    return response


def text_of(response: Any) -> str:
    return str(response.content.decode())


@pytest.fixture
def node(node_a):
    node_a.on_preview = says(node_a, SMA_STP60_01=WOULD)
    return node_a


# --- who may ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [CURTAIL, RELEASE])
def test_viewer_may_not_control(page, story, viewer_a):
    assert viewer_a.get(reverse(page), {"site": str(story.site_a.pk)}).status_code == 403
    assert confirm(viewer_a, story, page=page).status_code == 403
    assert not ControlRequest.objects.exists()


def test_site_of_others_looks_as_if_it_were_not_there(story, operator_a):
    for site in (str(story.site_b.pk), str(uuid.uuid4()), "no-uuid"):
        assert operator_a.get(reverse(CURTAIL), {"site": site}).status_code == 404
        assert confirm(operator_a, story, site=[site]).status_code == 404
    assert not ControlRequest.objects.exists()


def test_device_of_others_brings_nobody_to_their_site(story, operator_a):
    body = text_of(operator_a.get(reverse(CURTAIL), {"device": str(story.device_b.pk)}))
    assert "GENERIC_PV_01" not in body
    assert "Choose first" in body


def test_form_from_elsewhere_is_refused(story):
    person_make(Role.OPERATOR, story.site_a, name="otto")
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.get(username="otto"))
    assert client.post(reverse(CURTAIL), asked(story, step="confirm", key="0" * 32)).status_code == 403


# --- choose and preview -------------------------------------------------------------------------------


def test_devices_that_were_pointed_at_are_marked(story, operator_a):
    body = text_of(operator_a.get(reverse(CURTAIL), {"device": str(story.device_a.pk)}))
    assert f'value="{story.device_a.pk}" checked' in body
    assert 'value="some" checked' in body


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"category": ""}, "Choose what kind of devices to curtail."),
        ({"category": "battery"}, "No device of category battery can be set here."),
        ({"value": ""}, "Enter the value to hold the devices at."),
        ({"scope": "some"}, "Mark at least one device of the category"),
    ],
)
def test_incomplete_form_says_what_to_enter(story, operator_a, changes, told):
    response = preview(operator_a, story, **changes)
    assert told in text_of(response)
    assert 'value="preview"' in text_of(response)


def test_preview_shows_what_the_node_would_do_and_sends_nothing(story, operator_a, node):
    device_make(node=story.node_a, device_tag="SMA_STP60_02", peak_power_kw=60)
    node.on_preview = says(node, SMA_STP60_01=WOULD, SMA_STP60_02=WORN)
    body = text_of(preview(operator_a, story))
    assert "grid_operator" in body
    assert "would follow" in body
    assert "wear: 19 of 20 writes" in body
    assert "No writes are left today" in body
    assert "120 kW" in body
    assert not ControlRequest.objects.exists()
    assert node.commands.empty()


def test_refusal_of_a_preview_is_a_sentence_on_the_page(story, operator_a, node):
    body = text_of(preview(operator_a, story, value="150"))
    assert "outside the range of every device" in body


def test_request_under_way_is_told_before_another_is_confirmed(story, operator_a, node):
    control_request_make(site=story.site_a)
    assert "test-client is asking for" in text_of(preview(operator_a, story))


# --- confirm ------------------------------------------------------------------------------------------


def test_confirmed_request_is_carried_out_and_leads_to_its_page(story, operator_a, node):
    response = confirm(operator_a, story, key=key_of(preview(operator_a, story)))
    row = ControlRequest.objects.get()
    assert (response.status_code, response["Location"]) == (
        302,
        reverse("admin:console_request", args=[row.pk]),
    )
    assert (row.status, row.value, row.client_id, row.reason) == (
        Status.SUCCESS,
        20,
        "user:olga",
        "the grid operator called",
    )
    body = text_of(operator_a.get(response["Location"]))
    assert "all follow" in body
    assert "1 of 1" in body


def test_deed_is_kept_with_who_did_it(story, operator_a, node):
    confirm(operator_a, story)
    entry = LogEntry.objects.get(additional_data__deed="curtail")
    assert (entry.actor.get_username(), entry.object_pk) == ("olga", str(story.site_a.pk))
    assert entry.additional_data["request_id"] == str(ControlRequest.objects.get().pk)
    assert entry.additional_data["value"] == 20


def test_form_that_comes_twice_is_carried_out_once(story, operator_a, node):
    key = uuid.uuid4().hex
    first, second = (confirm(operator_a, story, key=key) for _ in range(2))
    assert first["Location"] == second["Location"]
    assert ControlRequest.objects.count() == 1
    assert node.commands.qsize() == 1
    assert LogEntry.objects.filter(additional_data__deed="curtail").count() == 1


def test_same_key_with_another_value_shows_the_first_result(story, operator_a, node):
    key = uuid.uuid4().hex
    first = confirm(operator_a, story, key=key)
    assert confirm(operator_a, story, key=key, value="30")["Location"] == first["Location"]
    assert ControlRequest.objects.get().value == 20


def test_key_of_one_person_is_not_anothers(story, operator_a, node):
    key = uuid.uuid4().hex
    confirm(operator_a, story, key=key)
    confirm(person_make(Role.OPERATOR, story.site_a), story, key=key)
    assert ControlRequest.objects.count() == 2


def test_large_request_is_typed_first(story, operator_a, node, settings):
    settings.SGM_CONSOLE_TYPED_CONFIRMATION_KW = 59
    refused = confirm(operator_a, story, typed="solarpanel_site_b")
    assert "Type solarpanel_site_a to confirm." in text_of(refused)
    assert not ControlRequest.objects.exists()
    assert confirm(operator_a, story, typed=" solarpanel_site_a ").status_code == 302


def test_request_of_unknown_power_is_typed_first(story, operator_a, node):
    Device.objects.filter(pk=story.device_a.pk).update(peak_power_kw=None)
    assert "Type solarpanel_site_a to confirm." in text_of(confirm(operator_a, story))
    assert confirm(operator_a, story, typed="solarpanel_site_a").status_code == 302


def test_request_to_several_sites_is_one_a_site_and_typed_by_their_number(story, node, node_b, settings):
    settings.SGM_CONSOLE_TYPED_CONFIRMATION_KW = 100
    both = person_make(Role.OPERATOR, story.site_a, story.site_b)
    sites = [str(story.site_a.pk), str(story.site_b.pk)]
    node_b.on_preview = says(node_b, GENERIC_PV_01=WOULD)
    assert text_of(preview(both, story, site=sites)).count("would follow") == 2
    assert "Type 2 to confirm." in text_of(confirm(both, story, site=sites, typed=""))
    response = confirm(both, story, site=sites, typed="2")
    assert ControlRequest.objects.filter(status=Status.SUCCESS).count() == 2
    body = text_of(both.get(response["Location"]))
    assert "Solar Panel Site A" in body
    assert body.count("all follow") == 2


def test_person_sees_of_such_requests_only_those_to_own_sites(story, operator_a):
    rows = [control_request_make(site=story.site_a), control_request_make(site=story.site_b)]
    query = {"request": [str(row.pk) for row in rows]}
    body = text_of(operator_a.get(reverse("admin:console_requests"), query))
    assert "Solar Panel Site A" in body
    assert "Solar Panel Site B" not in body


def test_node_that_is_silent_is_told_with_what_to_do(story, operator_a, live_redis):
    response = confirm(operator_a, story)
    body = text_of(operator_a.get(response["Location"]))
    assert "none follows" in body
    assert "node_offline" in body
    assert "Send the request again once it is online." in body


def test_nothing_is_recorded_while_redis_is_away(story, operator_a, settings):
    settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
    live_forget()
    body = text_of(confirm(operator_a, story))
    live_forget()
    assert "Redis does not answer" in body
    assert not ControlRequest.objects.exists()


def test_release_ends_holds_and_is_a_deed(story, operator_a, node):
    assert "its default 100" in text_of(preview(operator_a, story, page=RELEASE, category=""))
    response = confirm(operator_a, story, page=RELEASE, category="", value="")
    assert response.status_code == 302
    assert ControlRequest.objects.get().kind == Kind.RELEASE
    assert node.releases.get(timeout=1).devices == ("SMA_STP60_01",)
    assert LogEntry.objects.filter(additional_data__deed="release").exists()


def test_only_marked_devices_are_set(story, operator_a, node):
    device_make(node=story.node_a, device_tag="INV_02", peak_power_kw=60)
    confirm(operator_a, story, scope="some", device=[str(story.device_a.pk)])
    assert node.commands.get(timeout=1).values == {"SMA_STP60_01": 20}


def test_answers_are_written_down_as_they_come(story, operator_a, node, settings):
    settings.SGM_REQUEST_DEADLINE_S = 1
    device_make(node=story.node_a, device_tag="INV_02", peak_power_kw=60)
    type(story.node_a).objects.filter(pk=story.node_a.pk).update(curtail_in_batch=False)

    def answer_one(fake, command):
        if "INV_02" in command.values:
            fake.finish(command)

    node.behaviour = answer_one
    confirm(operator_a, story)
    states = {tuple(row.values): row.state for row in ControlCommand.objects.all()}
    assert states == {("INV_02",): CommandState.DONE, ("SMA_STP60_01",): CommandState.UNKNOWN}
    assert ControlRequest.objects.get().status == Status.PARTIAL


# --- lists --------------------------------------------------------------------------------------------


def test_marked_rows_lead_to_the_form(story, operator_a):
    for name, row, parameter in (
        ("sites_app_site", story.site_a, "site"),
        ("devices_app_device", story.device_a, "device"),
    ):
        response = operator_a.post(
            reverse(f"admin:{name}_changelist"),
            {"action": "curtail_marked", "_selected_action": [str(row.pk)]},
        )
        assert response["Location"] == f"{reverse(CURTAIL)}?{parameter}={row.pk}"


def test_viewer_is_not_offered_the_actions(story, viewer_a):
    assert "curtail_marked" not in text_of(viewer_a.get(reverse("admin:devices_app_device_changelist")))


# --- the page of a request ----------------------------------------------------------------------------


def test_request_of_others_is_not_there(story, operator_a):
    row = control_request_make(site=story.site_b)
    assert operator_a.get(reverse("admin:console_request", args=[row.pk])).status_code == 404


def test_steps_have_the_times_that_were_heard(story, operator_a, node):
    confirm(operator_a, story)
    command = ControlCommand.objects.get()
    steps = [command.request.created_at, command.claimed_at, command.accepted_at, command.done_at]
    known = [at for at in steps if at is not None]
    assert len(known) == len(steps)
    assert known == sorted(known)


def test_step_that_nobody_heard_of_is_not_known(story, operator_a, node, settings):
    settings.SGM_REQUEST_DEADLINE_S = 1
    node.behaviour = stay_silent
    response = confirm(operator_a, story)
    command = ControlCommand.objects.get()
    assert (command.state, command.accepted_at, command.done_at) == (CommandState.UNKNOWN, None, None)
    body = text_of(operator_a.get(response["Location"]))
    assert body.count("not known</span>") >= 4
    assert "It may have been written." in body


def test_power_that_follows_is_told_with_its_reading(story, operator_a):
    now = timezone.now()
    request = control_request_make(
        site=story.site_a,
        status=Status.SUCCESS,
        result={"updated": {"SMA_STP60_01": None}, "not_updated": {}},
    )
    command = control_command_make(story.device_a, request=request, state=CommandState.DONE)
    command.result = {"SMA_STP60_01": {"value": 50, "readback": 50.1}}
    command.done_at = now - timedelta(minutes=1)
    command.save()
    series = TelemetrySeries.objects.create(
        site=story.site_a, device=story.device_a, name="x", key="P_kW", unit="kW"
    )
    partitions_make(READINGS, days=[command.done_at.date()])
    for after_s, kw in ((5, 55.0), (15, 31.4), (25, 30.0)):
        TelemetryReading.objects.create(
            series=series, at=command.done_at + timedelta(seconds=after_s), value=kw
        )
    body = text_of(operator_a.get(reverse("admin:console_request", args=[request.pk])))
    assert "31.4 kW" in body
    assert "55.0 kW" not in body


def test_page_of_a_request_costs_as_many_queries_for_many_devices(
    story, operator_a, django_assert_num_queries
):
    devices = [device_make(node=story.node_a, peak_power_kw=60) for _ in range(10)]
    few = control_request_make(site=story.site_a)
    control_command_make(devices[0], request=few)
    many = control_request_make(site=story.site_a)
    control_command_make(*devices, request=many)
    address = reverse("admin:console_request", args=[few.pk])
    operator_a.get(address)
    for row in (few, many):
        with django_assert_num_queries(8):
            operator_a.get(f"{reverse('admin:console_request', args=[row.pk])}?part=chain")


def test_part_of_the_page_is_fetched_alone(story, operator_a):
    row = control_request_make(site=story.site_a)
    body = text_of(operator_a.get(reverse("admin:console_request", args=[row.pk]), {"part": "chain"}))
    assert "<html" not in body
    assert "under way" in body


def test_names_from_the_plant_are_shown_as_text(story, operator_a):
    row = control_request_make(
        site=story.site_a,
        status=Status.FAILED,
        result={"updated": {}, "not_updated": {"<script>X": "range: <b>"}},
    )
    body = text_of(operator_a.get(reverse("admin:console_request", args=[row.pk])))
    assert "<script>X" not in body
    assert "&lt;script&gt;X" in body
