"""Closed loops by API: made and changed by root, seen by whoever sees the site, with how they stand."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.test import APIClient

from control_app.inbox import on_heartbeats
from devices_app.models import ClosedLoop, Device
from edge.core.loop.terms import LOOP_RANGES
from edge.wire.messages import Heartbeat, LoopStatus, Presence
from sites_app.models import Node
from sites_app.presence import ReceivedHeartbeat, pong_note, presence_note
from smartgrid import live
from tests.factories import (
    ROOT,
    Story,
    client_of,
    device_make,
    loop_make,
    meter_make,
    node_make,
    node_online,
    report_make,
    report_record,
    site_make,
    story_make,
)

pytestmark = pytest.mark.django_db

ABSENT = "00000000-0000-4000-8000-000000000000"
SINCE = "2026-11-23T12:00:00.250000Z"


@pytest.fixture
def root() -> APIClient:
    return client_of(ROOT)


@pytest.fixture
def story() -> Story:
    return story_make()


@pytest.fixture
def meter(story: Story) -> Device:
    return meter_make(node=story.node_a, device_tag="METER_01")


@pytest.fixture
def loop(story: Story, meter: Device) -> ClosedLoop:
    return loop_make(meter=meter, loop_tag="POC", members=[story.device_a], export_limit_kw=40)


def body_of(meter: Device, *members: Device, **fields: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"loop_tag": "POC", "meter_id": str(meter.pk)}
    if members:
        given["member_ids"] = [str(device.pk) for device in members]
    return given | fields


def tell(loop: ClosedLoop, stand: str = "tracking", *, seq: int = 1, age_s: float = 0, **fields: Any) -> None:
    """Let central have heard from the loop's node how it stands."""
    given: dict[str, Any] = {
        "setpoint_kw": 40.0,
        "measured_kw": 38.25,
        "output_kw": 48.25,
        "load_kw": 10.0,
        "reason": "export 38.25 kW of 40 kW",
        "members": {"SMA_STP60_01": 80.5},
        "since": SINCE,
    }
    status = LoopStatus(id=str(loop.pk), tag=loop.loop_tag, stand=stand, **{**given, **fields})
    beat = Heartbeat(session="session-1", seq=seq, mono_ms=0, wall=SINCE, fresh="f", loops=(status,))
    on_heartbeats([ReceivedHeartbeat(str(loop.node_id), beat, time.time() - age_s)])


# --- made and changed -------------------------------------------------------------------------------------------


def test_created_loop_answers_all_that_can_be_set(root, story, meter):
    answer = root.post(
        f"/v1/sites/{story.site_a.pk}/loops",
        body_of(meter, story.device_a, export_limit_kw=40, kp=0.5, mode="track"),
    )
    assert answer.status_code == 200, answer.json()
    told = answer.json()
    assert (told["loop_tag"], told["meter_id"]) == ("POC", str(meter.pk))
    assert (told["member_ids"], told["category"]) == ([str(story.device_a.pk)], None)
    assert (told["export_limit_kw"], told["import_limit_kw"], told["kp"], told["ki"]) == (40, None, 0.5, 0.15)
    assert told["members"] == [
        {
            "device_id": str(story.device_a.pk),
            "device_tag": "SMA_STP60_01",
            "nominal_kw": 60,
            "value": None,
        }
    ]
    assert (told["nominal_kw"], told["left_out"], told["refused"]) == (60, {}, None)
    assert (told["live"], told["changes"]) == (None, [])
    assert root.get(f"/v1/loops/{told['id']}").json() == told


def test_id_may_be_given_and_one_that_is_taken_is_409(root, story, meter):
    path = f"/v1/sites/{story.site_a.pk}/loops"
    assert root.post(path, body_of(meter, story.device_a, id=ABSENT)).json()["id"] == ABSENT
    other = meter_make(node=story.node_a)
    member = device_make(node=story.node_a, peak_power_kw=10)
    again = root.post(path, body_of(other, member, id=ABSENT, loop_tag="OTHER"))
    assert (again.status_code, again.json()["code"]) == (409, "duplicate")


def test_category_says_whom_it_leaves_out_and_why(root, story, meter):
    device_make(node=story.node_a, device_tag="PV_UNRATED")
    told = root.post(f"/v1/sites/{story.site_a.pk}/loops", body_of(meter, category="inverter")).json()
    assert [member["device_tag"] for member in told["members"]] == ["SMA_STP60_01"]
    assert "peak_power_kw" in told["left_out"]["PV_UNRATED"]


def test_what_was_read_can_be_sent_back(root, loop):
    path = f"/v1/loops/{loop.pk}"
    read = root.get(path).json()
    written = root.put(path, read | {"ki": 0.3})
    assert written.status_code == 200, written.json()
    assert written.json() == read | {"ki": 0.3}
    assert root.patch(path, written.json()).json() == written.json()


def test_what_changes_by_itself_is_no_obstacle_to_sending_back(live_redis, root, loop):
    tell(loop)
    path = f"/v1/loops/{loop.pk}"
    read = root.get(path).json()
    tell(loop, "limiting", seq=2, measured_kw=41.0, since="2026-11-23T12:01:00Z")
    assert root.put(path, read).status_code == 200


def test_what_nobody_sets_here_is_refused(root, loop, story):
    path = f"/v1/loops/{loop.pk}"
    for change in ({"id": ABSENT}, {"site_id": str(story.site_b.pk)}, {"gain": 1}):
        answer = root.patch(path, change)
        assert (answer.status_code, list(answer.json()["errors"])) == (400, list(change))


def test_put_replaces_whole_and_patch_what_it_names(root, loop, meter, story):
    path = f"/v1/loops/{loop.pk}"
    assert root.patch(path, {"kp": 1}).json()["export_limit_kw"] == 40
    told = root.put(path, body_of(meter, story.device_a)).json()
    assert (told["kp"], told["export_limit_kw"]) == (0.3, None)
    assert root.put(path, {"loop_tag": "POC"}).json()["errors"].keys() == {"meter_id"}


@pytest.mark.parametrize("value", ["1", True, 1e9, -1e9])
def test_number_that_cannot_be_is_refused_by_its_name(root, loop, value):
    answer = root.patch(f"/v1/loops/{loop.pk}", dict.fromkeys(LOOP_RANGES, value))
    assert answer.status_code == 400
    assert answer.json()["errors"].keys() == LOOP_RANGES.keys()


def test_refusals_name_fields_as_the_api_spells_them(root, loop, story, meter):
    elsewhere = device_make(node=node_make(site=story.site_a), peak_power_kw=10, device_tag="FAR")
    answer = root.patch(f"/v1/loops/{loop.pk}", {"member_ids": [str(elsewhere.pk)]}).json()
    assert answer["code"] == "invalid"
    assert "FAR" in answer["errors"]["member_ids"][0]
    assert answer["detail"].startswith("member_ids: FAR")


def test_device_that_is_not_there_or_of_another_site_is_404(root, loop, story, meter):
    path = f"/v1/sites/{story.site_a.pk}/loops"
    foreign = meter_make(node=story.node_b)
    for meter_id in (ABSENT, str(foreign.pk)):
        answer = root.post(path, {"loop_tag": "X", "meter_id": meter_id, "category": "inverter"})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    members = root.patch(f"/v1/loops/{loop.pk}", {"member_ids": [str(story.device_a.pk), ABSENT]})
    assert members.status_code == 404
    assert list(members.json()["errors"]) == ["member_ids.1"]


def test_second_loop_on_what_a_first_has_is_409_and_names_it(root, loop, story, meter):
    answer = root.post(f"/v1/sites/{story.site_a.pk}/loops", body_of(meter, story.device_a, loop_tag="OTHER"))
    assert (answer.status_code, answer.json()["code"]) == (409, "in_use")
    assert answer.json()["errors"].keys() == {"meter_id", "member_ids"}
    assert "POC" in answer.json()["detail"]


def test_device_that_a_loop_needs_is_409_and_names_it(root, loop, story, meter):
    for device in (story.device_a, meter):
        answer = root.delete(f"/v1/devices/{device.pk}")
        assert (answer.status_code, answer.json()["code"]) == (409, "in_use")
        assert "POC" in answer.json()["detail"]
    node = node_make(site=story.site_a)
    moved = root.patch(f"/v1/devices/{meter.pk}", {"node_id": str(node.pk)})
    assert (moved.status_code, moved.json()["code"]) == (409, "in_use")


def test_deleted_loop_is_gone(root, loop):
    path = f"/v1/loops/{loop.pk}"
    answer = root.delete(path)
    assert answer.status_code == 200
    assert "POC is deleted" in answer.json()["message"]
    assert root.get(path).status_code == 404
    assert root.delete(path).status_code == 404


# --- who sees it ------------------------------------------------------------------------------------------------


def test_loop_is_seen_by_whoever_sees_its_site_and_changed_by_root_alone(loop, story):
    path, listed = f"/v1/loops/{loop.pk}", f"/v1/sites/{story.site_a.pk}/loops"
    assert story.holder_a.get(path).json()["loop_tag"] == "POC"
    assert [one["loop_tag"] for one in story.holder_a.get(listed).json()] == ["POC"]
    for stranger in (story.holder_b, story.holder_of_nothing):
        assert stranger.get(path).status_code == 404
        assert stranger.get(listed).status_code == 404
    for answer in (
        story.holder_a.patch(path, {"kp": 1}),
        story.holder_a.put(path, {}),
        story.holder_a.delete(path),
        story.holder_a.post(listed, {}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "root_token_required")


def test_list_is_of_one_site_can_be_narrowed_and_paged(root, loop, story):
    second = loop_make(meter=meter_make(node=story.node_a), loop_tag="SECOND", enabled=False)
    loop_make(loop_tag="ELSEWHERE")
    path = f"/v1/sites/{story.site_a.pk}/loops"
    answer = root.get(path)
    assert [one["loop_tag"] for one in answer.json()] == ["POC", "SECOND"]
    assert answer["X-Total-Count"] == "2"
    assert [one["id"] for one in root.get(f"{path}?enabled=false").json()] == [str(second.pk)]
    assert [one["loop_tag"] for one in root.get(f"{path}?limit=1&offset=1").json()] == ["SECOND"]
    assert root.get(f"{path}?node_id={story.node_b.pk}").json() == []


def test_list_asks_the_database_as_often_for_many_as_for_one(live_redis, root, loop, story):
    path = f"/v1/sites/{story.site_a.pk}/loops"
    tell(loop)
    with CaptureQueriesContext(connection) as of_one:
        root.get(path)
    for _ in range(4):
        tell(loop_make(meter=meter_make(node=node_make(site=story.site_a))))
    with CaptureQueriesContext(connection) as of_many:
        assert len(root.get(path).json()) == 5
    assert len(of_many) == len(of_one) == 6


# --- how it stands ----------------------------------------------------------------------------------------------


def healthy(node: Node) -> None:
    """Let this node be there and well."""
    node_online(node)
    birth = Presence(online=True, session="session-1", boot="boot-1", fresh="f")
    presence_note(str(node.pk), birth, retained=False, at=time.time())
    pong_note(str(node.pk), "ping", heard=timezone.now())


def test_loop_shows_how_it_stands_with_the_age_of_that(live_redis, root, loop, story):
    healthy(story.node_a)
    tell(loop, "limiting", age_s=7, bounded_by="export_limit")
    told = root.get(f"/v1/loops/{loop.pk}").json()
    shown = told["live"]
    assert 7 <= shown.pop("age_s") < 20
    assert shown == {
        "stand": "limiting",
        "since": SINCE,
        "setpoint_kw": 40,
        "measured_kw": 38.25,
        "output_kw": 48.25,
        "load_kw": 10,
        "bounded_by": "export_limit",
        "reason": "export 38.25 kW of 40 kW",
    }
    assert told["members"][0]["value"] == 80.5
    assert told["node"] == {
        "id": str(story.node_a.pk),
        "polaris_node_name": "node-01",
        "online": True,
        "healthy": True,
    }


def test_what_is_older_than_thirty_seconds_is_not_shown_and_the_node_is(live_redis, root, loop, story):
    tell(loop, age_s=31)
    told = root.get(f"/v1/loops/{loop.pk}").json()
    assert told["live"] is None
    assert told["members"][0]["value"] is None
    assert told["node"]["healthy"] is False
    # What it was is still known.
    assert [change["stand"] for change in told["changes"]] == ["tracking"]


def test_without_redis_a_loop_is_shown_without_what_is_live(no_redis, root, loop):
    told = root.get(f"/v1/loops/{loop.pk}").json()
    assert (told["loop_tag"], told["live"], told["node"]["healthy"]) == ("POC", None, None)


def test_last_twenty_changes_are_shown_with_their_reasons_the_newest_first(live_redis, root, loop):
    for number in range(25):
        stand = "stale" if number % 2 else "tracking"
        since = f"2026-11-23T12:00:{number:02}.000000Z"
        tell(loop, stand, seq=number + 1, since=since, reason=f"number {number}")
    changes = root.get(f"/v1/loops/{loop.pk}").json()["changes"]
    assert [change["reason"] for change in changes] == [f"number {n}" for n in range(24, 4, -1)]
    assert changes[0] | {"received_at": None} == {
        "stand": "tracking",
        "since": "2026-11-23T12:00:24.000000Z",
        "received_at": None,
        "reason": "number 24",
        "bounded_by": "",
        "setpoint_kw": 40,
        "measured_kw": 38.25,
        "output_kw": 48.25,
    }


def test_loop_that_its_node_cannot_use_says_why(root, loop, story):
    node_online(story.node_a)
    report_record(story.node_a, report_make(story.node_a, loops_refused={"POC": "its meter is unknown"}))
    assert root.get(f"/v1/loops/{loop.pk}").json()["refused"] == "its meter is unknown"
    report_record(story.node_a, report_make(story.node_a, at="2026-11-23T00:00:30Z"))
    assert root.get(f"/v1/loops/{loop.pk}").json()["refused"] is None


def test_site_with_a_loop_says_what_keeps_it(root, loop, story):
    answer = root.delete(f"/v1/sites/{story.site_a.pk}")
    assert (answer.status_code, answer.json()["code"]) == (409, "in_use")
    assert root.delete(f"/v1/sites/{site_make().pk}").status_code == 200


@pytest.fixture(autouse=True)
def empty_redis(request: pytest.FixtureRequest) -> None:
    if "live_redis" in request.fixturenames:
        request.getfixturevalue("live_redis")
        live.client().flushdb()
