"""The worker's side: claim, token, resend, and which answers are believed."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.utils import timezone

from control_app.dispatch import (
    Order,
    answers_key,
    dispatcher,
    note_read,
    order_decode,
    order_encode,
)
from control_app.models import CommandState, ControlCommand
from edge.wire.messages import Code, CommandAnswer, DeviceResult, Stage
from smartgrid import live
from tests.factories import control_command_make, control_request_make
from tests.fake_node import WITHIN_S, FakeNode, stay_silent


@pytest.fixture
def sent(story, node_a):
    """A recorded command of the device of site a, and what its view is told."""
    return control_command_make(story.device_a, state=CommandState.QUEUED)


def order_of(command: ControlCommand, *, fresh: str, age_s: float = 0.0) -> Order:
    return Order(
        command_id=str(command.id),
        request_id=str(command.request_id),
        sequence=command.sequence,
        epoch=command.epoch,
        tenant=command.node.tenant_tag,
        node=str(command.node_id),
        category="inverter",
        values=command.values,
        hold_s=60,
        fresh=fresh,
        fresh_at=timezone.now().timestamp() - age_s,
        deadline=command.deadline,
    )


def told(command: ControlCommand, *, within_s: float = WITHIN_S):
    """The next note for the view; None where none comes."""
    text = live.list_wait(answers_key(str(command.request_id)), timeout_s=within_s)
    return None if text is None else note_read(text)


def last_word(command: ControlCommand) -> Stage:
    """What ends the view's waiting."""
    answer: CommandAnswer = told(command).answer
    return answer.stage


def state_of(command: ControlCommand) -> str:
    return ControlCommand.objects.get(pk=command.pk).state


def test_order_survives_the_queue(sent):
    order = order_of(sent, fresh="token")
    assert order_decode(order_encode(order)) == order


def test_claimed_command_is_sent_once_however_often_its_task_runs(sent, node_a):
    order = order_of(sent, fresh=node_a.token())
    dispatcher().dispatch(order)
    dispatcher().dispatch(order)
    assert last_word(sent) is Stage.DONE
    assert state_of(sent) == CommandState.SENT
    assert node_a.commands.get(timeout=1).id == str(sent.id)
    assert node_a.commands.empty()
    assert told(sent, within_s=0.05) is None


def test_task_beyond_the_deadline_sends_nothing(story, node_a):
    request = control_request_make(site=story.site_a, deadline_in_s=-0.01)
    command = control_command_make(story.device_a, request=request, state=CommandState.QUEUED)
    dispatcher().dispatch(order_of(command, fresh=node_a.token()))
    assert state_of(command) == CommandState.QUEUED
    assert node_a.commands.empty()


def test_task_of_a_request_that_gave_up_sends_nothing(sent, node_a):
    ControlCommand.objects.update(state=CommandState.NOT_SENT)
    dispatcher().dispatch(order_of(sent, fresh=node_a.token()))
    assert state_of(sent) == CommandState.NOT_SENT
    assert node_a.commands.empty()


def test_young_token_is_used_as_it_is(sent, node_a):
    token = node_a.token()
    dispatcher().dispatch(order_of(sent, fresh=token, age_s=7))
    assert node_a.commands.get(timeout=WITHIN_S).fresh == token
    assert node_a.pings.empty()


def test_token_older_than_eight_seconds_is_replaced_by_a_ping(sent, node_a):
    token = node_a.token()
    dispatcher().dispatch(order_of(sent, fresh=token, age_s=9))
    command = node_a.commands.get(timeout=WITHIN_S)
    assert node_a.pings.get(timeout=1).epoch == sent.epoch
    assert command.fresh not in {token, ""}
    assert last_word(sent) is Stage.DONE


def test_pong_of_another_node_is_ignored(sent, node_a, node_b, monkeypatch):
    monkeypatch.setattr("control_app.dispatch.PING_TIMEOUT_S", 0.3)
    node_a.answers_pings = False
    token = node_a.token()

    def forge(command):
        node_b.answer_of(node_a, CommandAnswer(id=command.id, stage=Stage.DONE, fresh="forged"))

    node_a.on_ping = forge
    dispatcher().dispatch(order_of(sent, fresh=token, age_s=9))
    assert node_a.commands.get(timeout=WITHIN_S).fresh == token


def test_stale_refusal_is_answered_by_the_same_command_with_the_fresh_token(sent, node_a):
    dispatcher().dispatch(order_of(sent, fresh="from a former session"))
    first, second = (node_a.commands.get(timeout=WITHIN_S) for _ in range(2))
    assert (first.id, first.sequence) == (second.id, second.sequence)
    assert second.fresh != first.fresh
    assert last_word(sent) is Stage.DONE


def test_command_is_sent_again_only_once(sent, node_a):
    def always_stale(node: FakeNode, command):
        node.refuse(command, Code.STALE, detail="again", fresh=node.token())

    node_a.behaviour = always_stale
    dispatcher().dispatch(order_of(sent, fresh=node_a.token()))
    note = told(sent)
    assert (note.answer.stage, note.answer.code) == (Stage.REFUSED, Code.STALE)
    assert [node_a.commands.get(timeout=1).id for _ in range(2)] == [str(sent.id)] * 2
    assert node_a.commands.empty()


def test_refusal_delivered_twice_does_not_end_what_was_sent_again(sent, node_a):
    fresh = node_a.token()
    seen = []

    def twice_then_obey(node: FakeNode, command):
        seen.append(command)
        if len(seen) == 1:
            node.refuse(command, Code.STALE, fresh=fresh)
            node.refuse(command, Code.STALE, fresh=fresh)
        else:
            node.accept(command)
            node.finish(command)

    node_a.behaviour = twice_then_obey
    dispatcher().dispatch(order_of(sent, fresh=node_a.token()))
    assert last_word(sent) is Stage.DONE


def test_stale_refusal_long_after_the_claim_stands(sent, node_a, monkeypatch):
    monkeypatch.setattr("control_app.dispatch.RESEND_WITHIN_S", 0.0)
    dispatcher().dispatch(order_of(sent, fresh="from a former session"))
    assert told(sent).answer.code == Code.STALE
    assert node_a.commands.get(timeout=1)
    assert node_a.commands.empty()


def test_command_is_not_sent_again_beyond_its_deadline(story, node_a):
    request = control_request_make(site=story.site_a, deadline_in_s=0.5)
    command = control_command_make(story.device_a, request=request, state=CommandState.QUEUED)

    def late(node: FakeNode, order):
        while timezone.now() <= request.deadline:
            pass
        node.refuse(order, Code.STALE, fresh=node.token())

    node_a.behaviour = late
    dispatcher().dispatch(order_of(command, fresh=node_a.token()))
    assert told(command).answer.code == Code.STALE
    assert node_a.commands.get(timeout=1)
    assert node_a.commands.empty()


def test_answer_on_another_nodes_branch_is_ignored(sent, node_a, node_b):
    def let_another_answer(node: FakeNode, command):
        done = DeviceResult(value=50, readback=50)
        forged = CommandAnswer(id=command.id, stage=Stage.DONE, devices={"SMA_STP60_01": done})
        node_b.answer_of(node, forged)
        node.refuse(command, Code.BUSY)

    node_a.behaviour = let_another_answer
    dispatcher().dispatch(order_of(sent, fresh=node_a.token()))
    assert told(sent).answer.code == Code.BUSY


def test_what_is_no_answer_does_not_stop_those_behind_it(sent, node_a):
    def garbage_first(node: FakeNode, command):
        for odd in (b"", b"{", b'{"v": 99}', b"[" * 5000, b'{"v": 1, "id": 5, "stage": "done"}'):
            node.publish(node._response_topics[command.id], odd)
        node.accept(command)
        node.finish(command)

    node_a.behaviour = garbage_first
    dispatcher().dispatch(order_of(sent, fresh=node_a.token()))
    assert last_word(sent) is Stage.DONE


def test_answer_that_comes_again_after_done_is_passed_over(sent, node_a):
    def stutter(node: FakeNode, command):
        for _ in range(2):
            node.accept(command)
        for _ in range(2):
            node.finish(command)

    node_a.behaviour = stutter
    dispatcher().dispatch(order_of(sent, fresh=node_a.token()))
    assert last_word(sent) is Stage.DONE
    assert told(sent, within_s=0.1) is None


def test_answer_to_nobody_is_passed_over(sent, node_a):
    node_a.behaviour = stay_silent
    dispatcher().dispatch(order_of(sent, fresh=node_a.token()))
    command = node_a.commands.get(timeout=WITHIN_S)
    node_a.answer(command.id, CommandAnswer(id=uuid.uuid4().hex, stage=Stage.DONE))
    node_a.finish(command)
    assert told(sent).answer.id == str(sent.id)


def test_without_a_broker_the_command_is_not_sent_and_the_view_hears_it(story, sending, settings):
    settings.SGM_MQTT_PORT = 1
    command = control_command_make(story.device_a, state=CommandState.QUEUED)
    began = timezone.now()
    dispatcher().dispatch(order_of(command, fresh="token"))
    assert timezone.now() - began < timedelta(seconds=settings.SGM_REQUEST_DEADLINE_S / 2)
    assert state_of(command) == CommandState.NOT_SENT
    assert "broker" in told(command).not_sent


def test_second_run_without_a_broker_does_not_take_back_what_was_sent(story, sending, settings):
    settings.SGM_MQTT_PORT = 1
    command = control_command_make(story.device_a, state=CommandState.SENT)
    dispatcher().dispatch(order_of(command, fresh="token"))
    assert state_of(command) == CommandState.SENT
    assert told(command, within_s=0.05) is None
