"""The contract of the fake node: what central relies on in a real one."""

from __future__ import annotations

import queue
import uuid

import pytest

from edge.wire import codec
from edge.wire.messages import Code, CommandAnswer, PingCommand, ReleaseCommand, SetpointCommand, Stage
from edge.wire.topics import NodeTopics
from sites_app.node_link import node_link
from tests.fake_node import WITHIN_S


@pytest.fixture
def ask(node_a):
    """Send a command and hear the answers, as a worker does."""
    heard: queue.SimpleQueue[tuple[NodeTopics, CommandAnswer]] = queue.SimpleQueue()
    link = node_link()
    link.results(lambda topics, payload: heard.put((topics, codec.decode(CommandAnswer, payload))))
    assert link.is_up

    def send(command):
        link.send(node_a.topics, "x", codec.encode(command), command_id=command.id, ttl_s=5)
        return lambda: heard.get(timeout=WITHIN_S)

    return send


def setpoint(*, fresh: str) -> SetpointCommand:
    return SetpointCommand(
        id=uuid.uuid4().hex,
        epoch=1,
        sequence=1,
        fresh=fresh,
        request_id=uuid.uuid4().hex,
        category="inverter",
        values={"SMA_STP60_01": 50},
        hold_s=60,
    )


def test_command_is_answered_accepted_then_done_with_its_id_on_its_nodes_branch(node_a, ask):
    command = setpoint(fresh=node_a.token())
    answer = ask(command)
    (topics, first), (_, last) = answer(), answer()
    assert topics == node_a.topics
    assert [(heard.id, heard.stage) for heard in (first, last)] == [
        (command.id, Stage.ACCEPTED),
        (command.id, Stage.DONE),
    ]
    assert last.devices["SMA_STP60_01"].value == 50


def test_release_is_answered_with_what_each_device_went_to(node_a, ask):
    command = ReleaseCommand(
        id=uuid.uuid4().hex,
        epoch=1,
        sequence=1,
        fresh=node_a.token(),
        request_id=uuid.uuid4().hex,
        category="inverter",
        devices=("SMA_STP60_01",),
    )
    answer = ask(command)
    (_, first), (_, last) = answer(), answer()
    assert [heard.stage for heard in (first, last)] == [Stage.ACCEPTED, Stage.DONE]
    assert last.devices["SMA_STP60_01"].value == 100


def test_unknown_token_is_refused_as_stale_with_one_that_is_good(node_a, ask):
    _, refusal = ask(setpoint(fresh="unknown"))()
    assert (refusal.stage, refusal.code) == (Stage.REFUSED, Code.STALE)
    _, accepted = ask(setpoint(fresh=refusal.fresh))()
    assert accepted.stage is Stage.ACCEPTED


def test_ping_needs_no_token_and_brings_one(node_a, ask):
    _, pong = ask(PingCommand(id=uuid.uuid4().hex, epoch=1, sent_wall="2026-01-01T00:00:00Z"))()
    assert pong.stage is Stage.DONE
    _, accepted = ask(setpoint(fresh=pong.fresh))()
    assert accepted.stage is Stage.ACCEPTED
