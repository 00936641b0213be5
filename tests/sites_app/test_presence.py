"""What makes a node reachable, on central's clock alone."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest

from edge.wire.messages import Heartbeat, Presence
from sites_app.presence import (
    NodePresence,
    ReceivedHeartbeat,
    ReceivedPresence,
    heartbeat_note,
    heartbeats_note,
    pong_note,
    presence_note,
    presence_read,
    presences_note,
)
from smartgrid import live

NOW = 1_800_000_000.0


@pytest.fixture
def node_id(settings, redis_url):
    settings.SGM_REDIS_URL = redis_url
    live.client.cache_clear()
    yield uuid.uuid4()
    live.client().close()
    live.client.cache_clear()


def beat(node_id, *, session="s1", fresh="token", at=NOW, seq=1) -> None:
    message = Heartbeat(session=session, seq=seq, mono_ms=0, wall="1970-01-01T00:00:00Z", fresh=fresh)
    heartbeat_note(str(node_id), message, at=at)


def say(node_id, *, online, session="s1", fresh=None, retained=False, at=NOW) -> None:
    message = Presence(online=online, session=session, boot="b", fresh=fresh)
    presence_note(str(node_id), message, retained=retained, at=at)


def known(node_id) -> NodePresence:
    return presence_read([node_id])[node_id]


def test_node_never_heard_of_is_not_reachable_and_says_so(node_id):
    assert not known(node_id).is_reachable(now=NOW)
    assert known(node_id).why_not(now=NOW) == "the node has never been heard of"


@pytest.mark.parametrize(("age_s", "reachable"), [(0, True), (14.9, True), (15, False), (3600, False)])
def test_heartbeat_counts_for_fifteen_seconds(node_id, age_s, reachable):
    beat(node_id)
    assert known(node_id).is_reachable(now=NOW + age_s) is reachable


@pytest.mark.parametrize(("age_s", "healthy"), [(0, True), (119.9, True), (120, False)])
def test_healthy_node_has_answered_a_ping_of_the_last_two_minutes(node_id, age_s, healthy):
    beat(node_id)
    assert not known(node_id).is_healthy(now=NOW)
    pong_note(str(node_id), "ping-1", heard=datetime.fromtimestamp(NOW - age_s, UTC))
    assert known(node_id).is_healthy(now=NOW) is healthy


def test_answered_ping_is_what_the_next_one_closes(node_id):
    assert known(node_id).closing is None
    pong_note(str(node_id), "ping-1", heard=datetime.fromtimestamp(NOW, UTC))
    closing = known(node_id).closing
    assert closing is not None
    assert (closing.id, datetime.fromisoformat(closing.heard_wall).timestamp()) == ("ping-1", NOW)


def test_birth_makes_a_node_reachable_with_its_token(node_id):
    say(node_id, online=True, fresh="first")
    assert known(node_id).is_reachable(now=NOW)
    assert (known(node_id).fresh, known(node_id).fresh_at) == ("first", NOW)


def test_retained_birth_tells_nothing_about_now(node_id):
    say(node_id, online=True, fresh="old", retained=True)
    assert known(node_id) == NodePresence()


def test_newest_token_replaces_the_one_before(node_id):
    beat(node_id, fresh="first")
    beat(node_id, fresh="second", at=NOW + 5, seq=2)
    assert (known(node_id).fresh, known(node_id).fresh_at) == ("second", NOW + 5)


def test_will_counts_after_ten_seconds(node_id):
    beat(node_id)
    say(node_id, online=False)
    assert known(node_id).is_reachable(now=NOW + 9.9)
    assert not known(node_id).is_reachable(now=NOW + 10)


def test_will_of_a_former_session_says_nothing_about_the_present_one(node_id):
    beat(node_id, session="s1")
    say(node_id, online=True, session="s2", fresh="new")
    say(node_id, online=False, session="s1", at=NOW + 1)
    beat(node_id, session="s2", at=NOW + 10)
    assert known(node_id).is_reachable(now=NOW + 12)


def test_older_heartbeat_that_comes_late_changes_nothing(node_id):
    beat(node_id, fresh="second", seq=2)
    beat(node_id, fresh="first", seq=1, at=NOW + 3)
    assert (known(node_id).fresh, known(node_id).hb_at) == ("second", NOW)


def test_heartbeat_of_a_former_session_changes_nothing(node_id):
    beat(node_id, session="s1", seq=7)
    beat(node_id, session="s2", fresh="new", seq=8)
    beat(node_id, session="s1", fresh="old", seq=9, at=NOW + 3)
    assert (known(node_id).session, known(node_id).fresh) == ("s2", "new")


def test_birth_of_a_former_session_changes_nothing(node_id):
    beat(node_id, session="s1")
    beat(node_id, session="s2", fresh="new")
    say(node_id, online=True, session="s1", fresh="old")
    assert (known(node_id).session, known(node_id).fresh) == ("s2", "new")


def test_birth_behind_its_own_heartbeat_does_not_bring_its_older_token_back(node_id):
    beat(node_id, session="s1", fresh="newer")
    say(node_id, online=True, session="s1", fresh="older", at=NOW + 1)
    assert known(node_id).fresh == "newer"


def test_birth_behind_its_own_end_does_not_bring_a_session_back(node_id):
    say(node_id, online=False, session="s1")
    assert presences_note([received(node_id, session="s1")]) == []
    assert known(node_id).session == ""


def test_first_heartbeat_of_a_session_is_told_to_be_a_birth(node_id):
    def note(session: str, seq: int) -> list[ReceivedHeartbeat]:
        message = Heartbeat(session=session, seq=seq, mono_ms=0, wall="", fresh="token")
        return heartbeats_note([ReceivedHeartbeat(str(node_id), message, NOW)])

    assert len(note("s1", 1)) == 1
    assert note("s1", 2) == []
    assert len(note("s2", 3)) == 1
    assert note("s1", 4) == []


def received(node_id, *, session: str) -> ReceivedPresence:
    presence = Presence(online=True, session=session, boot="b", fresh="token")
    return ReceivedPresence(str(node_id), presence, retained=False, at=NOW)


def test_many_nodes_come_in_one_round_trip_in_the_order_asked_for(node_id):
    other = uuid.uuid4()
    beat(other, session="other")
    found = presence_read([node_id, other])
    assert [presence.session for presence in found.values()] == ["", "other"]


def test_without_redis_nothing_is_guessed(settings):
    settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
    live.client.cache_clear()
    with pytest.raises(live.LiveUnavailable):
        presence_read([uuid.uuid4()])
    live.client.cache_clear()
