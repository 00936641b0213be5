"""Requests from their recording to their end, and what becomes of them later."""

from __future__ import annotations

import time
from datetime import timedelta
from functools import partial

import msgspec
import pytest
import redis
from django.db import connection, transaction
from django.utils import timezone

from control_app.dispatch import Note, answers_key
from control_app.models import CommandState, ControlCommand, ControlLog, ControlRequest, Status
from control_app.services import (
    ControlResult,
    _request_close,
    _wait,
    _Waiting,
    category_curtail,
    command_resolve,
    commands_undelivered,
    requests_settle,
)
from devices_app.models import Device
from edge.wire.messages import Code, CommandAnswer, DeviceResult, Stage
from smartgrid import live
from smartgrid.errors import DispatchUnavailable
from tests.at_once import at_once
from tests.control_app.conftest import live_forget
from tests.factories import ROOT, control_command_make, control_request_make, device_make, story_make
from tests.fake_node import FakeNode, stay_silent
from tests.servers import redis_server

CONFIRMED = {"SMA_STP60_01": DeviceResult(value=50, readback=50)}
UNKNOWN = {"updated": {}, "not_updated": {"SMA_STP60_01": "unknown: no confirmation within 8 s"}}


def curtail(story, *, value: float = 50) -> ControlResult:
    return category_curtail(
        principal=ROOT, site_id=story.site_a.pk, category="inverter", value=value, device_tags=None
    )


def closed(story, *, state: CommandState) -> ControlCommand:
    """A command whose request was answered `unknown`."""
    request = control_request_make(site=story.site_a, deadline_in_s=-60, status=Status.FAILED, result=UNKNOWN)
    return control_command_make(story.device_a, request=request, state=state)


def value_of(device: Device) -> tuple[float | None, int | None]:
    return Device.objects.values_list("value", "value_sequence").get(pk=device.pk)


# --- the answer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("updated", "not_updated", "status"),
    [
        ({"A": None}, {}, Status.SUCCESS),
        ({"A": None}, {"B": "range: .."}, Status.PARTIAL),
        ({}, {"B": "range: .."}, Status.FAILED),
        ({}, {}, Status.FAILED),
    ],
)
def test_only_what_was_updated_makes_a_success(updated, not_updated, status):
    assert ControlResult(updated, not_updated).status is status


def test_answered_request_command_and_value_are_on_record(story, node_a):
    assert curtail(story).status is Status.SUCCESS
    request, command = ControlRequest.objects.get(), ControlCommand.objects.get()
    assert request.status == Status.SUCCESS
    assert request.result == {"updated": {"SMA_STP60_01": None}, "not_updated": {}}
    assert request.deadline - request.created_at == timedelta(seconds=8)
    assert command.state == CommandState.DONE
    assert command.result is not None
    assert command.result["SMA_STP60_01"]["readback"] == 50
    assert value_of(story.device_a) == (50, command.sequence)


def test_accepted_but_unconfirmed_says_so(story, node_a, settings):
    settings.SGM_REQUEST_DEADLINE_S = 0.4
    node_a.behaviour = lambda node, command: node.accept(command)
    result = curtail(story)
    expected = "unknown: the node accepted it, the device did not confirm within 0.4 s"
    assert result.not_updated == {"SMA_STP60_01": expected}
    assert ControlCommand.objects.get().state == CommandState.UNKNOWN


def test_what_the_node_refused_at_once_is_known_at_the_deadline(story, node_a, settings):
    settings.SGM_REQUEST_DEADLINE_S = 0.4
    device_make(node=story.node_a, device_tag="INV_02")
    superseded = {"INV_02": DeviceResult(code=Code.SUPERSEDED, detail="a later request was accepted before")}
    node_a.behaviour = lambda node, command: node.accept(command, refused=superseded)
    result = curtail(story)
    assert result.not_updated["INV_02"] == "superseded: a later request was accepted before"
    assert result.not_updated["SMA_STP60_01"].startswith("unknown: ")


def test_no_worker_within_the_deadline_is_not_sent(story, sending, broker, settings):
    settings.SGM_REQUEST_DEADLINE_S = 0.3
    with FakeNode.on(broker, story.node_a) as node:
        node.beat()
        with pytest.raises(DispatchUnavailable, match="no worker took it in time"):
            curtail(story)
        assert node.commands.empty()
    assert ControlCommand.objects.get().state == CommandState.NOT_SENT
    assert ControlRequest.objects.get().status == Status.FAILED
    assert ControlLog.objects.get().result["not_updated"]["SMA_STP60_01"].startswith("not_sent: ")


def test_dead_broker_is_told_without_waiting_for_the_deadline(story, sending, eager, broker, settings):
    with FakeNode.on(broker, story.node_a) as node:
        node.beat()
    settings.SGM_MQTT_PORT = 1
    began = timezone.now()
    with pytest.raises(DispatchUnavailable, match="broker is not connected"):
        curtail(story)
    assert timezone.now() - began < timedelta(seconds=settings.SGM_REQUEST_DEADLINE_S / 2)
    assert ControlCommand.objects.get().state == CommandState.NOT_SENT


def test_redis_that_dies_while_a_view_waits_makes_it_unknown_at_once(story, node_a, settings):
    with redis_server() as url:
        settings.SGM_REDIS_URL = url
        live_forget()
        node_a.beat()

        def shut_redis_down(_node, _command):
            # By a connection of its own: the view gives those that it has up meanwhile.
            with redis.Redis.from_url(url) as own:
                own.shutdown(nosave=True)

        node_a.behaviour = shut_redis_down
        began = timezone.now()
        result = curtail(story)
    live_forget()
    assert timezone.now() - began < timedelta(seconds=settings.SGM_REQUEST_DEADLINE_S / 2)
    assert result.not_updated["SMA_STP60_01"].startswith("unknown: ")
    assert ControlCommand.objects.get().state == CommandState.UNKNOWN


def test_word_after_the_last_word_changes_nothing(story, live_redis):
    request = control_request_make(site=story.site_a)
    first, second = (control_command_make(story.device_a, request=request) for _ in range(2))
    waiting = {str(command.id): _Waiting(command) for command in (first, second)}

    def say(command, **word):
        note = Note(command_id=str(command.id), **word)
        live.list_push(answers_key(str(request.pk)), msgspec.json.encode(note).decode(), expires_s=5)

    def answer(command, stage, devices=None):
        return {"answer": CommandAnswer(id=str(command.id), stage=stage, devices=devices or {})}

    say(first, **answer(first, Stage.DONE, CONFIRMED))
    say(first, **answer(first, Stage.ACCEPTED))
    say(first, not_sent="a second run of the task")
    say(second, **answer(second, Stage.DONE, CONFIRMED))
    _wait(request, waiting, until=time.monotonic() + 5)
    assert [(item.state, item.devices) for item in waiting.values()] == [(CommandState.DONE, CONFIRMED)] * 2


def test_older_request_does_not_take_back_a_newer_value(story, node_a):
    Device.objects.filter(pk=story.device_a.pk).update(value=10, value_sequence=10**9)
    assert curtail(story).status is Status.SUCCESS
    assert value_of(story.device_a) == (10, 10**9)


# --- the view that died -----------------------------------------------------------------------------------------------


def lost_request(story, state: CommandState) -> ControlCommand:
    request = control_request_make(site=story.site_a, deadline_in_s=-6)
    return control_command_make(story.device_a, request=request, state=state)


@pytest.mark.parametrize(
    ("state", "expected", "reason"),
    [
        (CommandState.QUEUED, CommandState.NOT_SENT, "not_sent: no worker took it in time"),
        (CommandState.SENT, CommandState.UNKNOWN, "unknown: no confirmation within 8 s"),
        (CommandState.NOT_SENT, CommandState.NOT_SENT, "not_sent: no worker took it in time"),
    ],
)
def test_request_whose_view_died_is_closed_by_what_its_command_tells(story, state, expected, reason):
    command = lost_request(story, state)
    assert requests_settle() == 1
    assert requests_settle() == 0
    assert ControlCommand.objects.get().state == expected
    request = ControlRequest.objects.get()
    assert (request.status, request.result) == (
        Status.FAILED,
        {"updated": {}, "not_updated": {"SMA_STP60_01": reason}},
    )
    assert ControlLog.objects.get().request_id == command.request_id


def test_request_whose_view_died_after_the_nodes_own_word_is_a_success(story):
    command = lost_request(story, CommandState.SENT)
    assert command_resolve(command=command, devices=CONFIRMED)
    assert ControlRequest.objects.get().status is None
    assert requests_settle() == 1
    assert ControlRequest.objects.get().status == Status.SUCCESS


def test_request_whose_view_may_live_is_left_to_it(story):
    control_command_make(story.device_a, request=control_request_make(site=story.site_a, deadline_in_s=-4))
    assert requests_settle() == 0


# --- the truth that comes late ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state", [CommandState.UNKNOWN, CommandState.NOT_DELIVERED, CommandState.REFUSED, CommandState.NOT_SENT]
)
def test_nodes_own_log_corrects_whatever_was_believed(story, state):
    command = closed(story, state=state)
    assert command_resolve(command=command, devices=CONFIRMED)
    assert ControlCommand.objects.get().state == CommandState.DONE
    request = ControlRequest.objects.get()
    assert (request.status, request.result) == (
        Status.SUCCESS,
        {"updated": {"SMA_STP60_01": None}, "not_updated": {}},
    )
    assert ControlLog.objects.get().status == Status.SUCCESS


def test_truth_is_told_once(story):
    command = closed(story, state=CommandState.UNKNOWN)
    assert command_resolve(command=command, devices=CONFIRMED)
    assert not command_resolve(command=command, devices=CONFIRMED)
    assert not command_resolve(command=command, devices=None)
    assert ControlLog.objects.count() == 1


def test_not_delivered_settles_only_what_is_unknown(story):
    for state in (CommandState.SENT, CommandState.DONE, CommandState.REFUSED, CommandState.NOT_SENT):
        assert not command_resolve(command=closed(story, state=state), devices=None)
    command = closed(story, state=CommandState.UNKNOWN)
    assert command_resolve(command=command, devices=None)
    request = ControlRequest.objects.get(pk=command.request_id)
    expected = {"SMA_STP60_01": "not_delivered: the node never accepted it"}
    assert request.result == {"updated": {}, "not_updated": expected}


def test_correction_leaves_other_devices_as_they_were(story):
    command = closed(story, state=CommandState.UNKNOWN)
    ControlRequest.objects.update(
        status=Status.PARTIAL,
        result={"updated": {"INV_02": None}, "not_updated": UNKNOWN["not_updated"] | {"INV_03": "range: .."}},
    )
    command_resolve(command=command, devices=CONFIRMED)
    assert ControlRequest.objects.get().result == {
        "updated": {"INV_02": None, "SMA_STP60_01": None},
        "not_updated": {"INV_03": "range: .."},
    }


def test_report_proves_only_what_none_of_its_devices_accepted(story):
    device_make(node=story.node_a, device_tag="INV_02")
    command = closed(story, state=CommandState.UNKNOWN)
    ControlCommand.objects.update(values={"SMA_STP60_01": 50, "INV_02": 50})

    def undelivered(before=None, **sequences):
        found = commands_undelivered(node=story.node_a, sequences=sequences, before=before or timezone.now())
        return [other.pk for other in found]

    older, same = command.sequence - 1, command.sequence
    assert undelivered() == [command.pk]
    assert undelivered(SMA_STP60_01=older, INV_02=older) == [command.pk]
    assert undelivered(SMA_STP60_01=older, INV_02=same) == []
    assert undelivered(before=timezone.now() - timedelta(hours=1)) == []


def test_silent_node_is_corrected_when_its_log_arrives(story, node_a, settings):
    settings.SGM_REQUEST_DEADLINE_S = 0.3
    node_a.behaviour = stay_silent
    assert curtail(story).status is Status.FAILED
    assert command_resolve(command=ControlCommand.objects.get(), devices=CONFIRMED)
    newest, first = ControlLog.objects.order_by("-created_at")
    assert (newest.status, first.status) == (Status.SUCCESS, Status.FAILED)


@pytest.mark.django_db(transaction=True)
def test_view_and_inbox_that_learn_the_same_at_once_wait_for_each_other_only_once():
    if connection.vendor == "sqlite":
        pytest.skip("threads share one connection here: at once is what PostgreSQL is asked")
    story = story_make()
    for _ in range(20):
        request = control_request_make(site=story.site_a)
        command = control_command_make(story.device_a, request=request)
        item = _Waiting(command, state=CommandState.DONE, devices=dict(CONFIRMED))

        def resolve(command: ControlCommand = command) -> bool:
            with transaction.atomic():
                return command_resolve(command=command, devices=CONFIRMED)

        closed, resolved = at_once(partial(_request_close, request, {}, [item]), resolve)
        assert closed[0].status is Status.SUCCESS
        assert resolved in (True, False)
        assert ControlRequest.objects.get(pk=request.pk).status == Status.SUCCESS
        assert ControlCommand.objects.get(pk=command.pk).state == CommandState.DONE
        assert ControlLog.objects.filter(request=request).count() == 1
        assert value_of(story.device_a) == (50, command.sequence)
