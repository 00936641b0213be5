"""Pings on a round: who gets one, what it closes, and whose answer counts."""

from __future__ import annotations

from datetime import datetime

from control_app.dispatch import dispatcher
from control_app.inbox import on_presences
from control_app.pings import nodes_ping
from edge.wire.messages import CommandAnswer, Presence, Stage
from sites_app.models import Node
from sites_app.presence import (
    NodePresence,
    ReceivedPresence,
    central_now,
    pong_note,
    presence_read,
)
from tests.fake_node import WITHIN_S, FakeNode
from tests.servers import until


def known(node: FakeNode, story) -> NodePresence:
    pk = story.node_a.pk if node.topics.node == str(story.node_a.pk) else story.node_b.pk
    return presence_read([pk])[pk]


def await_pong(node: FakeNode, story, ping_id: str) -> None:
    until(
        lambda: known(node, story).ping == ping_id, what=f"no pong to {ping_id} was noted", within_s=WITHIN_S
    )


def test_each_ping_closes_the_exchange_before_it(story, node_a):
    assert nodes_ping(dispatcher()) == 1
    first = node_a.pings.get(timeout=WITHIN_S)
    await_pong(node_a, story, first.id)

    nodes_ping(dispatcher())

    second = node_a.pings.get(timeout=WITHIN_S)
    assert first.closing is None
    assert second.closing is not None
    assert second.closing.id == first.id
    sent, heard, next_sent = map(
        datetime.fromisoformat, (first.sent_wall, second.closing.heard_wall, second.sent_wall)
    )
    assert sent <= heard <= next_sent


def test_answered_ping_makes_a_node_healthy(story, node_a):
    assert not known(node_a, story).is_healthy(now=central_now())
    nodes_ping(dispatcher())
    await_pong(node_a, story, node_a.pings.get(timeout=WITHIN_S).id)
    assert known(node_a, story).is_healthy(now=central_now())


def test_node_that_comes_is_pinged_before_the_next_round_and_once(
    story, node_a, django_capture_on_commit_callbacks
):
    birth = Presence(online=True, session="another", boot="boot-1", fresh=node_a.token())
    for _ in range(2):
        with django_capture_on_commit_callbacks(execute=True):
            on_presences(
                [ReceivedPresence(node_a.topics.node, birth, retained=False, at=central_now())],
            )
    await_pong(node_a, story, node_a.pings.get(timeout=WITHIN_S).id)
    assert known(node_a, story).is_healthy(now=central_now())
    assert node_a.pings.empty()


def test_node_whose_birth_the_broker_had_kept_is_pinged_once_it_is_heard(
    story, node_a, django_capture_on_commit_callbacks
):
    """Here the wait is over at once: the node is heard already, as it is a heartbeat later."""
    birth = Presence(online=True, session=node_a.session, boot="boot-1")
    Node.objects.filter(pk=story.node_a.pk).update(online=False)
    with django_capture_on_commit_callbacks(execute=True):
        on_presences([ReceivedPresence(node_a.topics.node, birth, retained=True, at=central_now())])
    await_pong(node_a, story, node_a.pings.get(timeout=WITHIN_S).id)


def test_node_that_is_not_reachable_is_not_pinged(story, node_a):
    node_a.beat(ago_s=16)
    assert nodes_ping(dispatcher()) == 0
    assert node_a.pings.empty()


def test_lost_answer_leaves_the_former_exchange_to_be_closed_again(story, node_a):
    pong_note(node_a.topics.node, "former", heard=datetime.fromisoformat("2026-03-02T10:00:00+00:00"))
    node_a.answers_pings = False
    for _ in range(2):
        nodes_ping(dispatcher())
        closing = node_a.pings.get(timeout=WITHIN_S).closing
        assert closing is not None
        assert closing.id == "former"


def test_answer_of_another_node_and_a_second_answer_count_for_nothing(story, node_a, node_b):
    node_a.answers_pings = False

    def forge(ping):
        node_b.answer_of(node_a, CommandAnswer(id=ping.id, stage=Stage.DONE, fresh="forged"))

    node_a.on_ping = forge
    nodes_ping(dispatcher())
    ping = node_a.pings.get(timeout=WITHIN_S)
    node_a.answer(ping.id, CommandAnswer(id=ping.id, stage=Stage.DONE))
    await_pong(node_a, story, ping.id)
    assert known(node_b, story).ping != ping.id
    heard = known(node_a, story).pong_wall

    node_a.answer(ping.id, CommandAnswer(id=ping.id, stage=Stage.DONE))
    node_a.answers_pings = True
    nodes_ping(dispatcher())
    # Answers of one node come in order: once the new one is noted, the second of the old has been seen.
    following = node_a.pings.get(timeout=WITHIN_S)
    assert following.closing is not None
    assert following.closing.heard_wall == heard
