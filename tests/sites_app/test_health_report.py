"""GET /v1/site-health-report: what the guide prints, of the nodes a token may see."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from edge.wire.messages import Heartbeat, Presence
from sites_app.models import Node
from sites_app.presence import central_now, heartbeat_note, pong_note, presence_note
from smartgrid import live
from tests.factories import node_make, story_make

pytestmark = pytest.mark.django_db

PATH = "/v1/site-health-report"


@pytest.fixture
def story(db, settings, redis_url):
    settings.SGM_REDIS_URL = redis_url
    live.client.cache_clear()
    yield story_make()
    live.client().close()
    live.client.cache_clear()


def heard(node: Node, *, beat_ago_s: float = 0, pong_ago_s: float | None = 0) -> None:
    now = central_now()
    message = Heartbeat(session="session-1", seq=1, mono_ms=0, wall="2026-11-23T00:00:00Z", fresh="token")
    heartbeat_note(str(node.pk), message, at=now - beat_ago_s)
    if pong_ago_s is not None:
        pong_note(str(node.pk), "ping", heard=datetime.fromtimestamp(now - pong_ago_s, UTC))


def health(client) -> dict[str, bool]:
    return {row["node_name"]: row["healthy"] for row in client.get(PATH).json()}


def test_report_is_as_the_guide_prints_it(story):
    heard(story.node_a)
    answer = story.root.get(PATH)
    assert answer.status_code == 200
    assert answer.json() == [
        {
            "tenant_tag": "tenant-123",
            "site_tag": "solarpanel_site_a",
            "node_name": "node-01",
            "healthy": True,
        },
        {
            "tenant_tag": "tenant-123",
            "site_tag": "solarpanel_site_b",
            "node_name": "node-02",
            "healthy": False,
        },
    ]
    assert list(answer.json()[0]) == ["tenant_tag", "site_tag", "node_name", "healthy"]


@pytest.mark.parametrize(
    ("said", "healthy"),
    [
        ({}, True),
        ({"beat_ago_s": 14}, True),
        ({"beat_ago_s": 15}, False),
        ({"pong_ago_s": 119}, True),
        ({"pong_ago_s": 120}, False),
        ({"pong_ago_s": None}, False),
    ],
    ids=str,
)
def test_healthy_is_heard_within_fifteen_seconds_and_hears_us_within_two_minutes(story, said, healthy):
    heard(story.node_a, **said)
    assert health(story.root)["node-01"] is healthy


def test_node_whose_session_has_ended_is_not_healthy(story):
    heard(story.node_a)
    will = Presence(online=False, session="session-1", boot="boot-1")
    presence_note(str(story.node_a.pk), will, retained=False, at=central_now() - 11)
    assert health(story.root)["node-01"] is False


def test_token_sees_the_nodes_of_its_sites_alone(story):
    assert health(story.holder_a) == {"node-01": False}
    assert story.holder_of_nothing.get(PATH).json() == []


def test_report_can_be_had_in_pages_and_for_one_site(story):
    page = story.root.get(PATH, {"limit": 1, "offset": 1})
    assert [row["node_name"] for row in page.json()] == ["node-02"]
    assert page.headers["X-Total-Count"] == "2"
    assert 'rel="prev"' in page.headers["Link"]
    only = story.root.get(PATH, {"site_tag": "solarpanel_site_a"})
    assert [row["node_name"] for row in only.json()] == ["node-01"]


def test_report_costs_one_query_however_many_nodes(story, django_assert_num_queries):
    for _ in range(5):
        node_make(site=story.site_a)
    client = story.root
    with django_assert_num_queries(1):
        assert len(client.get(PATH).json()) == 7


def test_without_redis_nobody_is_called_unwell(story, settings):
    settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
    live.client().close()
    live.client.cache_clear()
    answer = story.root.get(PATH)
    assert (answer.status_code, answer.json()["code"]) == (503, "live_unavailable")
    assert answer.headers["Retry-After"] == "1"
