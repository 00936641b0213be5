"""A probe from the console to the node and back: real broker, real Redis, a fake node."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import kombu.pools
import pytest
import time_machine
from django.contrib.auth.models import Permission
from django.test import Client
from django.utils import timezone

from control_app.tasks import settle_requests
from devices_app.models import Device, Probe, ProbeState
from devices_app.probes import ANSWER_WITHIN_S, answers_key, probe_ask, probe_settle
from devices_app.services import device_draft
from edge.wire.messages import (
    Code,
    CommandAnswer,
    DeviceConfig,
    ProbeCommand,
    ProbeLine,
    ProbeReport,
    Stage,
    Verdict,
)
from sites_app.models import SiteScope
from smartgrid import live
from smartgrid.celery import app
from smartgrid.errors import Conflict
from tests.factories import device_make, url_type_make
from tests.fake_node import WITHIN_S, FakeNode
from tests.servers import until

REPORT = ProbeReport(
    profile="test_inverter",
    title="Test inverter",
    where="192.168.1.100:502 unit 1",
    at="2026-03-02T10:00:30Z",
    took_s=0.2,
    verdict=Verdict.FAILED,
    lines=[
        ProbeLine(
            part="rated power", verdict=Verdict.FAILED, point="rating", name="<WRtg>", doc="40241", value=600.0,
            unit="kW", expected="60 kW", detail="factor 10?",
        )
    ],
)  # fmt: skip
CHANGE = "/admin/devices_app/device/{}/change/"


def done(command: ProbeCommand) -> CommandAnswer:
    return CommandAnswer(id=command.id, stage=Stage.DONE, probe=REPORT)


def answers(node: FakeNode, *, stale: int = 0) -> None:
    """Let a node answer probes; so many of them first with `stale`."""
    left = [stale]

    def answer(command: ProbeCommand) -> None:
        if left[0]:
            left[0] -= 1
            node.answer(
                command.id,
                CommandAnswer(
                    id=command.id, stage=Stage.REFUSED, code=Code.STALE, detail="old", fresh=node.token()
                ),
            )
            return
        node.answer(command.id, CommandAnswer(id=command.id, stage=Stage.ACCEPTED))
        node.answer(command.id, done(command))

    node.on_probe = answer


def settled(probe: Probe) -> Probe:
    until(
        lambda: not probe_settle(probe_id=probe.pk).is_under_way,
        what="the probe did not end",
        within_s=WITHIN_S,
    )
    return Probe.objects.get(pk=probe.pk)


@pytest.fixture
def asking(django_capture_on_commit_callbacks: Any) -> Any:
    """Ask for a probe, and have it sent once that is committed."""

    def ask(**what: Any) -> Probe:
        with django_capture_on_commit_callbacks(execute=True):
            return probe_ask(by="operator", **what)

    return ask


def test_node_is_asked_for_its_device_and_what_it_found_is_kept_with_who_asked(story, node_a, asking):
    answers(node_a)

    probe = settled(asking(device=story.device_a))

    command = node_a.probes.get(timeout=WITHIN_S)
    assert (command.device, command.candidate) == (str(story.device_a.config_id), None)
    assert probe.state == ProbeState.DONE
    assert (probe.asked_by, probe.device) == ("operator", story.device_a)
    assert probe.report is not None
    assert probe.report["lines"][0]["detail"] == "factor 10?"


def test_candidate_travels_with_its_profile_and_its_password_is_kept_nowhere(story, node_a, asking):
    answers(node_a)
    kind = url_type_make("mqtt")
    draft = device_draft(
        node=story.node_a, device_type=kind, device_tag="NEW_01", url="mqtt://broker", password="geheim"
    )

    probe = asking(draft=draft)

    assert "geheim" not in str(Probe.objects.values().get(pk=probe.pk))
    probe = settled(probe)
    command = node_a.probes.get(timeout=WITHIN_S)
    assert command.candidate is not None
    candidate = DeviceConfig(**command.candidate)
    assert (candidate.url, candidate.password, command.device) == ("mqtt://broker", "geheim", "")
    assert command.profile == kind.profile_body
    assert probe.password_encrypted == ""
    assert not Device.objects.filter(device_tag="NEW_01").exists()


def test_token_that_died_on_the_way_is_answered_by_a_new_one_once(story, node_a, asking):
    answers(node_a, stale=1)
    assert settled(asking(device=story.device_a)).state == ProbeState.DONE
    answers(node_a, stale=2)
    probe = settled(asking(device=story.device_a))
    assert (probe.state, probe.detail) == (ProbeState.REFUSED, "stale: old")


def test_old_token_is_refreshed_by_a_ping_first(story, node_a, asking):
    node_a.beat(ago_s=10)
    answers(node_a)
    settled(asking(device=story.device_a))
    assert node_a.pings.get(timeout=WITHIN_S)


def test_node_probes_one_device_at_a_time(story, node_a, node_b, asking):
    probe = asking(device=story.device_a)
    with pytest.raises(Conflict, match="node-01 is probing SMA_STP60_01, for operator"):
        asking(device=story.device_a)
    asking(device=story.device_b)
    node_a.answer(
        node_a.probes.get(timeout=WITHIN_S).id,
        CommandAnswer(id=str(probe.pk), stage=Stage.REFUSED, code=Code.UNKNOWN_DEVICE),
    )
    assert settled(probe).state == ProbeState.REFUSED
    asking(device=story.device_a)


def test_node_that_is_not_online_is_not_asked_and_the_probe_says_why(story, node_a, asking):
    node_a.beat(ago_s=20)
    probe = settled(asking(device=story.device_a))
    assert probe.state == ProbeState.NOT_SENT
    assert probe.detail.startswith("node-01 is not online: last heard 20 s ago")
    assert node_a.probes.empty()


def test_node_that_does_not_answer_ends_the_probe_also_when_nobody_looks(story, node_a, asking):
    probe = asking(device=story.device_a)
    with time_machine.travel(timezone.now() + timedelta(seconds=ANSWER_WITHIN_S + 1), tick=True):
        settle_requests()
        probe.refresh_from_db()
        assert probe.state == ProbeState.NO_ANSWER
        assert "did not answer within 45 s" in probe.detail
        # And holds up no other.
        node_a.beat()
        asking(device=story.device_a)


def test_answer_is_kept_also_when_nobody_looks(story, node_a, asking):
    answers(node_a)
    probe = asking(device=story.device_a)
    until(lambda: len(live.list_read(answers_key(probe.pk))) == 2, what="no answer came", within_s=WITHIN_S)
    settle_requests()
    probe.refresh_from_db()
    assert probe.state == ProbeState.DONE


def test_answer_of_another_node_counts_for_nothing(story, node_a, node_b, asking):
    node_a.on_probe = lambda command: node_b.answer_of(node_a, done(command))
    probe = asking(device=story.device_a)
    node_a.probes.get(timeout=WITHIN_S)
    node_a.on_probe = lambda _command: None
    node_a.answer(
        str(probe.pk), CommandAnswer(id=str(probe.pk), stage=Stage.REFUSED, code=Code.BUSY, detail="really")
    )
    assert settled(probe).detail == "busy: really"


def test_probe_that_is_sent_twice_is_published_once(story, node_a, asking):
    from control_app.tasks import send_probe  # noqa: PLC0415

    answers(node_a)
    probe = asking(device=story.device_a)
    send_probe(str(probe.pk))
    settled(probe)
    node_a.probes.get(timeout=WITHIN_S)
    assert node_a.probes.empty()


def test_probe_that_cannot_be_queued_says_so(story, sending, settings, asking):
    settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
    broker_url, app.conf.broker_url = app.conf.broker_url, "redis://127.0.0.1:1/0"
    app.amqp._producer_pool = app._pool = None
    kombu.pools.reset()
    try:
        probe = asking(device=story.device_a)
    finally:
        app.conf.broker_url = broker_url
        app.amqp._producer_pool = app._pool = None
        kombu.pools.reset()
    probe.refresh_from_db()
    assert (probe.state, probe.detail) == (ProbeState.NOT_SENT, "the queue does not answer: look after Redis")


# --- in the console -------------------------------------------------------------------------------


def form_of(device: Device, **changes: Any) -> dict[str, Any]:
    names = (
        "device_tag", "category", "min_value", "max_value", "default_value", "telemetry_s", "peak_power_kw",
        "modbus_server_host", "modbus_server_port", "modbus_id",
    )  # fmt: skip
    form = {name: getattr(device, name) for name in names}
    return {
        **form,
        "node": device.node_id,
        "device_type": device.device_type_id,
        "shown_for": device.device_type_id,
        "meta_data": "{}",
        "include_in_curtailment": "on",
        "bounds-TOTAL_FORMS": 0,
        "bounds-INITIAL_FORMS": 0,
        "_probe": "Probe from its node",
        **changes,
    }


@pytest.fixture
def console(admin_client: Client, django_capture_on_commit_callbacks: Any) -> Any:
    def post(path: str, form: dict[str, Any]) -> Any:
        with django_capture_on_commit_callbacks(execute=True):
            return admin_client.post(path, form, follow=True)

    return post


def test_button_asks_the_node_and_shows_progress_and_then_the_table(story, node_a, console, admin_client):
    response = console(CHANGE.format(story.device_a.pk), form_of(story.device_a))

    page = response.content.decode()
    assert 'http-equiv="refresh"' in page
    assert "The node is asked" in page
    command = node_a.probes.get(timeout=WITHIN_S)
    assert command.device == str(story.device_a.config_id)
    node_a.answer(command.id, done(command))
    probe = settled(Probe.objects.get())

    path = f"/admin/devices_app/probe/{probe.pk}/change/"
    page = admin_client.get(path).content.decode()
    assert 'http-equiv="refresh"' not in page
    for told in ("failed", "&lt;WRtg&gt;", "40241", "600.0 kW", "60 kW", "factor 10?", "Asked by admin"):
        assert told in page
    assert "failed, " in admin_client.get(CHANGE.format(story.device_a.pk)).content.decode()
    assert "SMA_STP60_01" in admin_client.get("/admin/devices_app/probe/").content.decode()


def test_form_that_has_changed_is_probed_as_it_is_and_not_saved(story, node_a, console):
    console(CHANGE.format(story.device_a.pk), form_of(story.device_a, modbus_id=7, default_value=50))
    command = node_a.probes.get(timeout=WITHIN_S)
    assert command.candidate is not None
    assert command.candidate["unit"] == 7
    story.device_a.refresh_from_db()
    assert (story.device_a.modbus_id, story.device_a.default_value) == (1, 100)


def test_new_device_is_probed_before_it_is_saved(story, node_a, console):
    form = form_of(story.device_a, device_tag="NEW_01", modbus_server_host="10.0.0.9")
    console("/admin/devices_app/device/add/", form)
    command = node_a.probes.get(timeout=WITHIN_S)
    assert command.candidate is not None
    assert (command.candidate["tag"], command.candidate["host"]) == ("NEW_01", "10.0.0.9")
    assert not Device.objects.filter(device_tag="NEW_01").exists()
    assert Probe.objects.get().device is None


def test_form_that_has_to_be_corrected_first_is_shown_with_its_errors(story, node_a, console):
    response = console(
        CHANGE.format(story.device_a.pk), form_of(story.device_a, modbus_server_host="two words")
    )
    assert "expected a name or an address" in response.content.decode()
    assert not Probe.objects.exists()


def test_second_probe_is_refused_with_a_sentence(story, node_a, console):
    device_make(node=story.node_a, device_tag="INV_02")
    console(CHANGE.format(story.device_a.pk), form_of(story.device_a))
    page = console(CHANGE.format(story.device_a.pk), form_of(story.device_a)).content.decode()
    assert "It probes one at a time" in page
    assert Probe.objects.count() == 1


def test_failure_is_told_with_what_to_do(story, console, admin_client, sending, eager):
    console(CHANGE.format(story.device_a.pk), form_of(story.device_a))
    page = admin_client.get(f"/admin/devices_app/probe/{Probe.objects.get().pk}/change/").content.decode()
    assert "the node has never been heard of" in page
    assert "What is known of node-01" in page


def test_who_may_only_look_asks_for_no_probe_and_sees_what_others_found(story, client, django_user_model):
    viewer = django_user_model.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_device"))
    SiteScope.objects.create(user=viewer, all_sites=True)
    client.force_login(viewer)
    path = CHANGE.format(story.device_a.pk)
    assert client.post(path, form_of(story.device_a)).status_code == 403
    assert "Probe from its node" not in client.get(path).content.decode()
    now = timezone.now()
    probe = Probe.objects.create(
        node=story.node_a, device=story.device_a, device_tag="SMA_STP60_01", asked_by="operator",
        deadline=now, state=ProbeState.REFUSED, detail="unusable: no",
    )  # fmt: skip
    page = client.get(f"/admin/devices_app/probe/{probe.pk}/change/")
    assert (page.status_code, "unusable: no" in page.content.decode()) == (200, True)
    client.logout()
    assert client.get(f"/admin/devices_app/probe/{probe.pk}/change/").status_code == 302


def test_probe_is_not_asked_for_without_the_form_s_token(story, client, django_user_model):
    client = Client(enforce_csrf_checks=True)
    client.force_login(django_user_model.objects.create_superuser("root"))
    assert client.post(CHANGE.format(story.device_a.pk), form_of(story.device_a)).status_code == 403
    assert not Probe.objects.exists()
