"""Nodes that fall silent, are heard again, and stay away: what the database and the alarms say of them."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
import time_machine
from django.utils import timezone

from edge.wire.messages import Heartbeat, Presence
from sites_app.models import Alarm, Node
from sites_app.presence import central_now, heartbeat_note, presence_note
from sites_app.services import nodes_alarms_judge, nodes_presence_settle
from smartgrid import live
from tests.factories import node_make, node_online

_numbers = itertools.count(1)

pytestmark = pytest.mark.django_db


@pytest.fixture
def redis_client(settings, redis_url):
    settings.SGM_REDIS_URL = redis_url
    live.client.cache_clear()
    # It has been up for a while.
    live.known_since(at=central_now() - 3600)
    yield live.client()
    live.client().close()
    live.client.cache_clear()


def beat(node: Node, *, session: str = "session-1", ago_s: float = 0) -> None:
    message = Heartbeat(
        session=session, seq=next(_numbers), mono_ms=0, wall="2026-11-23T00:00:00Z", fresh="token"
    )
    heartbeat_note(str(node.pk), message, at=central_now() - ago_s)


def is_online(node: Node) -> bool:
    return Node.objects.get(pk=node.pk).online


@pytest.fixture
def node(redis_client):
    node = node_make()
    node_online(node)
    beat(node)
    return node


def test_node_whose_heartbeats_stop_is_offline_whatever_its_will_says(node):
    assert nodes_presence_settle() == (0, 0)
    with time_machine.travel(timezone.now() + timedelta(seconds=15), tick=False):
        assert nodes_presence_settle() == (1, 0)
        assert not is_online(node)
        assert nodes_presence_settle() == (0, 0)


def test_node_that_is_heard_again_without_a_birth_is_online_again(node):
    Node.objects.update(online=False)
    beat(node, session="session-2")
    assert nodes_presence_settle() == (0, 1)
    row = Node.objects.get(pk=node.pk)
    assert (row.online, row.session) == (True, "session-2")


def test_node_whose_will_has_come_is_not_brought_back_by_its_last_heartbeat(node):
    Node.objects.update(online=False)
    will = Presence(online=False, session="session-1", boot="boot-1")
    presence_note(str(node.pk), will, retained=False, at=central_now())
    assert nodes_presence_settle() == (0, 0)


def test_redis_that_came_back_empty_makes_nobody_offline_for_a_while(node, redis_client):
    redis_client.flushall()
    assert nodes_presence_settle() == (0, 0)
    with time_machine.travel(timezone.now() + timedelta(seconds=16), tick=False):
        assert nodes_presence_settle() == (1, 0)


def test_redis_that_is_away_changes_nothing(node, settings):
    settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
    live.client().close()
    live.client.cache_clear()
    with pytest.raises(live.LiveUnavailable):
        nodes_presence_settle()
    assert is_online(node)


def test_many_nodes_cost_one_query_where_nothing_changed_and_few_where_they_did(
    node, django_assert_num_queries
):
    others = [node_make() for _ in range(5)]
    for other in others:
        node_online(other)
        beat(other, ago_s=20)
    # Read all, look at the silent ones, lock and write them between two savepoints; nobody came back.
    with django_assert_num_queries(6):
        assert nodes_presence_settle() == (5, 0)
    with django_assert_num_queries(1):
        assert nodes_presence_settle() == (0, 0)


# --- alarms ------------------------------------------------------------------------------------------------


def open_codes() -> list[str]:
    return list(Alarm.objects.filter(cleared_at=None).order_by("code").values_list("code", flat=True))


@pytest.mark.parametrize(("age_s", "codes"), [(59, []), (61, ["node_silent"])])
def test_node_that_stays_away_for_more_than_a_minute_raises_an_alarm(age_s, codes):
    node, now = node_make(), timezone.now()
    Node.objects.filter(pk=node.pk).update(online=False, presence_changed_at=now - timedelta(seconds=age_s))
    nodes_alarms_judge(now=now)
    assert open_codes() == codes


def test_alarm_ends_when_the_node_is_back_and_is_one_while_it_lasts():
    node, now = node_make(), timezone.now()
    Node.objects.filter(pk=node.pk).update(online=False, presence_changed_at=now - timedelta(hours=1))
    assert nodes_alarms_judge(now=now) == (1, 0)
    assert nodes_alarms_judge(now=now + timedelta(minutes=5)) == (0, 0)
    node_online(node)
    assert nodes_alarms_judge(now=now) == (0, 1)


def test_node_that_was_never_there_yet_is_no_alarm():
    node_make()
    assert nodes_alarms_judge(now=timezone.now() + timedelta(days=30)) == (0, 0)


@pytest.mark.parametrize(("age_s", "codes"), [(299, []), (301, ["node_out_of_sync"])])
def test_node_that_does_not_get_what_it_should_have_raises_an_alarm(age_s, codes):
    node, now = node_make(), timezone.now()
    node_online(node)
    Node.objects.update(out_of_sync_since=now - timedelta(seconds=age_s))
    nodes_alarms_judge(now=now)
    assert open_codes() == codes
    Node.objects.update(out_of_sync_since=None)
    nodes_alarms_judge(now=now)
    assert open_codes() == []


def test_node_that_is_away_is_silent_and_not_out_of_sync_too():
    node, now = node_make(), timezone.now()
    long_ago = now - timedelta(hours=1)
    Node.objects.filter(pk=node.pk).update(
        online=False, presence_changed_at=long_ago, out_of_sync_since=long_ago
    )
    nodes_alarms_judge(now=now)
    assert open_codes() == ["node_silent"]


def test_clock_set_back_does_not_hide_who_is_away():
    node, now = node_make(), timezone.now()
    Node.objects.filter(pk=node.pk).update(online=False, presence_changed_at=now + timedelta(hours=1))
    nodes_alarms_judge(now=now)
    assert open_codes() == ["node_silent"]


def test_judging_costs_three_queries_however_many_are_away(django_assert_num_queries):
    for _ in range(5):
        node_make()
    now = timezone.now()
    Node.objects.update(online=False, presence_changed_at=now - timedelta(hours=1))
    assert nodes_alarms_judge(now=now) == (5, 0)
    with django_assert_num_queries(3):
        nodes_alarms_judge(now=now)
