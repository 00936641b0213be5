"""How loops stand, as heartbeats tell: late, twice, out of order, of strangers, and without Redis."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from control_app.inbox import on_heartbeats
from devices_app.loop_live import (
    CHANGES_KEPT,
    CURRENT_FOR_S,
    PER_NODE,
    LoopLive,
    loops_live_follow,
    loops_live_read,
)
from devices_app.loops import loop_delete
from devices_app.models import ClosedLoop, LoopChange
from edge.wire.messages import Heartbeat, LoopStatus
from sites_app.presence import ReceivedHeartbeat, presence_read
from smartgrid import live
from smartgrid.live import LiveUnavailable
from tests.factories import loop_make

pytestmark = pytest.mark.django_db

NOW = 1_800_000_000.0
SINCE = datetime(2026, 11, 23, 12, 0, 0, 250_000, tzinfo=UTC)


@pytest.fixture(autouse=True)
def redis(live_redis: str) -> None:
    live.client().flushdb()


@pytest.fixture
def loop() -> ClosedLoop:
    return loop_make(loop_tag="POC")


def status(loop: ClosedLoop, stand: str = "tracking", *, after_s: float = 0, **fields: Any) -> LoopStatus:
    since = (SINCE + timedelta(seconds=after_s)).isoformat().replace("+00:00", "Z")
    given: dict[str, Any] = {
        "setpoint_kw": 60.0,
        "measured_kw": 58.5,
        "output_kw": 68.5,
        "load_kw": 10.0,
        "reason": "export 58.5 kW of 60 kW",
        "members": {"PV_01": 57.0},
    }
    return LoopStatus(id=str(loop.pk), tag=loop.loop_tag, stand=stand, since=since, **{**given, **fields})


def beat(
    loop: ClosedLoop, *statuses: LoopStatus, seq: int = 1, session: str = "s1", at: float = NOW
) -> ReceivedHeartbeat:
    said = Heartbeat(
        session=session, seq=seq, mono_ms=0, wall="2026-11-23T12:00:00Z", fresh="token", loops=statuses
    )
    return ReceivedHeartbeat(str(loop.node_id), said, at)


def shown(loop: ClosedLoop, *, now: float = NOW) -> LoopLive | None:
    return loops_live_read([loop], now=now).get(loop.pk)


def stands(loop: ClosedLoop) -> list[str]:
    return list(LoopChange.objects.filter(loop=loop).order_by("id").values_list("stand", flat=True))


def test_heartbeat_tells_how_a_loop_stands(loop):
    on_heartbeats([beat(loop, status(loop))])
    found = shown(loop)
    assert found is not None
    assert (found.stand, found.since, found.at) == ("tracking", SINCE, NOW)
    assert (found.setpoint_kw, found.measured_kw, found.output_kw, found.load_kw) == (60, 58.5, 68.5, 10)
    assert (found.reason, found.members) == ("export 58.5 kW of 60 kW", {"PV_01": 57.0})
    assert stands(loop) == ["tracking"]
    # And the sign of life itself counts as ever.
    assert presence_read([loop.node_id])[loop.node_id].session == "s1"


def test_what_was_told_long_ago_is_not_shown(loop):
    loops_live_follow([beat(loop, status(loop))])
    assert shown(loop, now=NOW + CURRENT_FOR_S) is not None
    assert shown(loop, now=NOW + CURRENT_FOR_S + 0.1) is None
    # A clock that was set back does not make it current either.
    assert shown(loop, now=NOW - CURRENT_FOR_S - 0.1) is None


def test_only_a_change_of_stand_reaches_the_database(loop):
    loops_live_follow([beat(loop, status(loop))])
    with CaptureQueriesContext(connection) as asked:
        assert loops_live_follow([beat(loop, status(loop, measured_kw=59.0), seq=2)]) == 0
    assert len(asked) == 0
    found = shown(loop)
    assert found is not None
    assert found.measured_kw == 59
    assert loops_live_follow([beat(loop, status(loop, "stale", after_s=9), seq=3)]) == 1
    assert stands(loop) == ["tracking", "stale"]


def test_change_costs_as_many_statements_for_many_nodes_as_for_one(loop):
    loops = [loop_make() for _ in range(10)]
    with CaptureQueriesContext(connection) as of_one:
        loops_live_follow([beat(loop, status(loop))])
    with CaptureQueriesContext(connection) as of_many:
        loops_live_follow([beat(one, status(one)) for one in loops])
    assert len(of_many) == len(of_one)
    assert LoopChange.objects.count() == 11


def test_heartbeats_without_loops_ask_nobody(loop, no_redis):
    assert loops_live_follow([beat(loop)]) == 0


def test_heartbeat_that_comes_twice_or_late_changes_nothing(loop):
    first = beat(loop, status(loop), seq=1)
    second = beat(loop, status(loop, "limiting", after_s=5), seq=2)
    loops_live_follow([first, first])
    loops_live_follow([second])
    loops_live_follow([first])
    loops_live_follow([second, first])
    assert stands(loop) == ["tracking", "limiting"]
    found = shown(loop)
    assert found is not None
    assert found.stand == "limiting"


def test_change_that_was_overtaken_is_kept_though_it_is_not_shown(loop):
    loops_live_follow([beat(loop, status(loop, "stale", after_s=5), seq=2)])
    loops_live_follow([beat(loop, status(loop, "tracking"), seq=1)])
    assert set(stands(loop)) == {"stale", "tracking"}
    found = shown(loop)
    assert found is not None
    assert found.stand == "stale"


def test_former_session_is_not_believed(loop):
    loops_live_follow([beat(loop, status(loop), session="s1", seq=900)])
    loops_live_follow([beat(loop, status(loop, "fallback", after_s=60), session="s2", seq=1)])
    loops_live_follow([beat(loop, status(loop), session="s1", seq=901)])
    found = shown(loop)
    assert found is not None
    assert found.stand == "fallback"


def test_redis_that_was_emptied_makes_no_second_change_of_one(loop):
    loops_live_follow([beat(loop, status(loop))])
    live.client().flushdb()
    assert loops_live_follow([beat(loop, status(loop), seq=2)]) == 0
    assert stands(loop) == ["tracking"]


def test_database_that_failed_is_asked_again_at_the_next_heartbeat(loop):
    said = beat(loop, status(loop))

    def refuse(execute, sql, params, many, context):
        raise RuntimeError("the database is away")

    with connection.execute_wrapper(refuse), pytest.raises(RuntimeError):
        loops_live_follow([said])
    assert stands(loop) == []
    assert loops_live_follow([beat(loop, status(loop), seq=2)]) == 1
    assert stands(loop) == ["tracking"]


def test_without_redis_nothing_is_claimed(loop, no_redis):
    with pytest.raises(LiveUnavailable):
        loops_live_read([loop], now=NOW)


def test_loop_of_another_node_is_not_this_nodes_to_tell_of(loop):
    stranger = loop_make(loop_tag="THEIRS")
    loops_live_follow([beat(loop, status(stranger, "fallback"))])
    assert stands(stranger) == []
    assert shown(stranger) is None


def test_loop_that_is_gone_is_passed_over(loop):
    said = beat(loop, status(loop))
    loop_delete(loop=ClosedLoop.objects.get(), by="test")
    assert loops_live_follow([said]) == 0


@pytest.mark.parametrize(
    "odd",
    [
        {"stand": "dancing"},
        {"since": "yesterday"},
        {"id": "poc"},
    ],
)
def test_status_that_cannot_be_is_passed_over_and_costs_its_neighbours_nothing(loop, odd):
    fields = {"id": str(loop.pk), "tag": "POC", "stand": "tracking", "since": "2026-11-23T12:00:00Z"}
    loops_live_follow([beat(loop, LoopStatus(**{**fields, **odd}), status(loop, "limiting"))])
    assert stands(loop) == ["limiting"]


def test_text_that_no_database_takes_is_made_to_fit(loop):
    loops_live_follow([beat(loop, status(loop, reason="\x00" + "r" * 5000, bounded_by="b" * 900))])
    change = LoopChange.objects.get()
    assert change.reason == "r" * 500
    assert len(change.bounded_by) == 200


def test_of_very_many_loops_at_once_some_are_taken(loop, caplog):
    many = [
        LoopStatus(id=str(uuid.uuid4()), tag="X", stand="tracking", since="2026-11-23T12:00:00Z")
        for _ in range(PER_NODE)
    ]
    loops_live_follow([beat(loop, status(loop), *many)])
    assert stands(loop) == ["tracking"]
    assert "node_loops_too_many" in caplog.text


def test_history_keeps_the_newest(loop):
    many = CHANGES_KEPT + 3
    loops_live_follow(
        [beat(loop, status(loop, "stale", after_s=number), seq=number + 1) for number in range(many)]
    )
    kept = LoopChange.objects.filter(loop=loop).order_by("id").values_list("since", flat=True)
    assert len(kept) == CHANGES_KEPT
    assert kept[0] == SINCE + timedelta(seconds=3)


def test_node_that_has_no_loops_any_longer_shows_none_after_a_while(loop):
    loops_live_follow([beat(loop, status(loop))])
    loops_live_follow([beat(loop, seq=2, at=NOW + 5)])
    assert shown(loop, now=NOW + 31) is None
