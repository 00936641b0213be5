"""A site's setpoint_throttle_s: how often a device is set, and what it must never hold up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection

from control_app.models import ControlRequest
from control_app.setpoint_throttle import setpoints_throttled
from control_app.targets import Targets, targets_select
from edge.wire.messages import Code, DeviceResult
from sites_app.services import site_update
from smartgrid import live
from smartgrid.errors import Throttled
from tests.control_app.conftest import live_forget
from tests.factories import ROOT, Story, device_make, story_make
from tests.fake_node import FakeNode

TAG = "SMA_STP60_01"


@pytest.fixture
def throttled(story: Story) -> Story:
    """The site of this story sets a device every thirty seconds at most."""
    site_update(site=story.site_a, setpoint_throttle_s=30)
    return story


def curtail(story: Story, value: float, **body: Any) -> Any:
    path = f"/v1/sites/{story.site_a.pk}/curtail-category"
    return story.holder_a.put(path, {"value": value, "category": "inverter", **body})


def release(story: Story) -> Any:
    return story.holder_a.post(f"/v1/sites/{story.site_a.pk}/release", {})


def time_passes(story: Story, seconds: int) -> None:
    """In what Redis keeps of the site's devices, whose clock cannot be turned."""
    for key in live.client().scan_iter(f"sgm:setpoint:{story.site_a.pk}:*"):
        at, rest = str(live.text_read(key)).split(" ", 1)
        live.text_write(key, f"{int(at) - seconds * 1000} {rest}", expires_s=3600)


# --- over the API -----------------------------------------------------------------------------------------------


def test_device_that_was_just_set_is_not_set_again(throttled: Story, node_a: FakeNode) -> None:
    assert curtail(throttled, 50).status_code == 200
    response = curtail(throttled, 60)
    assert response.status_code == 429
    assert response.json()["code"] == "setpoint_throttled"
    assert response.json()["detail"].startswith(f"{TAG}: set less than 30 s ago; again in ")
    assert 29 <= int(response["Retry-After"]) <= 30
    assert ControlRequest.objects.count() == 1
    assert node_a.commands.get(timeout=1).values == {TAG: 50}
    assert node_a.commands.empty()


def test_same_value_again_is_as_often_as_another(throttled: Story, node_a: FakeNode) -> None:
    assert [curtail(throttled, 50).status_code for _ in range(3)] == [200, 429, 429]


def test_after_its_time_a_device_is_set_again(throttled: Story, node_a: FakeNode) -> None:
    assert curtail(throttled, 50).status_code == 200
    time_passes(throttled, 29)
    assert curtail(throttled, 60)["Retry-After"] == "1"
    time_passes(throttled, 1)
    assert curtail(throttled, 60).status_code == 200


def test_lowering_is_never_held_up(throttled: Story, node_a: FakeNode) -> None:
    assert [curtail(throttled, value).status_code for value in (50, 40, 10, 0)] == [200] * 4
    assert curtail(throttled, 1).status_code == 429


def test_release_is_never_held_up_and_the_device_may_be_set_again(throttled: Story, node_a: FakeNode) -> None:
    assert curtail(throttled, 20).status_code == 200
    assert release(throttled).status_code == 200
    # It is back at full power: the same value lowers it now.
    assert curtail(throttled, 20).status_code == 200
    assert curtail(throttled, 20).status_code == 429


def test_devices_that_may_be_set_are_and_the_others_say_why(throttled: Story, node_a: FakeNode) -> None:
    device_make(node=throttled.node_a, device_tag="INV_02")
    assert curtail(throttled, 50, device_tags=[TAG]).status_code == 200
    body = curtail(throttled, 60).json()
    assert body["status"] == "partial"
    assert body["result"]["updated"] == {"INV_02": None}
    assert body["result"]["not_updated"][TAG].startswith("setpoint_throttled: set less than 30 s ago")
    assert [node_a.commands.get(timeout=1).values for _ in range(2)] == [{TAG: 50}, {"INV_02": 60}]


def test_devices_are_set_one_by_one_without_waiting_for_each_other(
    throttled: Story, node_a: FakeNode
) -> None:
    device_make(node=throttled.node_a, device_tag="INV_02")
    answers = [curtail(throttled, 50, device_tags=[tag]).status_code for tag in (TAG, "INV_02")]
    assert answers == [200, 200]


def test_what_failed_may_be_tried_again_at_once(throttled: Story, node_a: FakeNode) -> None:
    obey = node_a.behaviour
    failed = DeviceResult(code=Code.WRITE_FAILED, detail="no answer")

    def fail(node: FakeNode, command: Any) -> None:
        node.accept(command)
        node.finish(command, devices={TAG: failed})

    node_a.behaviour = fail
    assert curtail(throttled, 50).json()["status"] == "failed"
    node_a.behaviour = obey
    assert curtail(throttled, 50).json()["status"] == "success"


def test_node_that_is_offline_uses_up_nothing(throttled: Story, live_redis: str, eager: None) -> None:
    assert curtail(throttled, 50).json()["result"]["not_updated"][TAG].startswith("node_offline")
    assert list(live.client().scan_iter("sgm:setpoint:*")) == []


def test_site_without_a_throttle_is_set_as_often_as_asked(story: Story, node_a: FakeNode) -> None:
    assert [curtail(story, value).status_code for value in (50, 60, 60)] == [200] * 3
    assert list(live.client().scan_iter("sgm:setpoint:*")) == []


def test_throttle_that_is_taken_away_holds_up_nobody(throttled: Story, node_a: FakeNode) -> None:
    assert curtail(throttled, 50).status_code == 200
    site_update(site=throttled.site_a, setpoint_throttle_s=2)
    assert curtail(throttled, 60)["Retry-After"] == "2"
    site_update(site=throttled.site_a, setpoint_throttle_s=None)
    assert curtail(throttled, 60).status_code == 200


# --- the marks --------------------------------------------------------------------------------------------------


@pytest.fixture
def site_alone(db: None) -> Story:
    story = story_make()
    site_update(site=story.site_a, setpoint_throttle_s=30)
    return story


def targets_of(story: Story, value: float) -> Targets:
    return targets_select(
        principal=ROOT, site_id=story.site_a.pk, category="inverter", device_tags=None, value=value
    )


def is_let_through(targets: Targets, *, mark: str) -> bool:
    try:
        with setpoints_throttled(targets, mark=mark) as confirm:
            confirm(targets.values)
    except Throttled:
        return False
    return True


@pytest.mark.usefixtures("live_redis")
def test_of_many_requests_at_once_one_is_let_through(site_alone: Story) -> None:
    requests = [targets_of(site_alone, 50) for _ in range(40)]
    with ThreadPoolExecutor(8) as pool:
        passed = list(pool.map(lambda n: is_let_through(requests[n], mark=f"request-{n}"), range(40)))
    connection.close()
    assert passed.count(True) == 1


@pytest.mark.usefixtures("live_redis")
def test_request_that_fails_takes_away_only_its_own_mark(site_alone: Story) -> None:
    with setpoints_throttled(targets_of(site_alone, 50), mark="first"):
        assert is_let_through(targets_of(site_alone, 20), mark="second")
    assert not is_let_through(targets_of(site_alone, 20), mark="third")


@pytest.mark.usefixtures("live_redis")
def test_request_that_breaks_off_leaves_no_mark(site_alone: Story) -> None:
    with pytest.raises(ZeroDivisionError), setpoints_throttled(targets_of(site_alone, 50), mark="first"):
        raise ZeroDivisionError
    assert is_let_through(targets_of(site_alone, 50), mark="second")


@pytest.mark.usefixtures("live_redis")
def test_signed_setpoint_nearer_to_zero_is_never_held_up(site_alone: Story) -> None:
    def of(value: float) -> Targets:
        targets = targets_of(site_alone, 0)
        targets.values[TAG] = value
        return targets

    assert is_let_through(of(-80), mark="first")
    assert is_let_through(of(-30), mark="second")
    assert not is_let_through(of(30), mark="third")
    assert is_let_through(of(20), mark="fourth")
    assert not is_let_through(of(-20), mark="fifth")


@pytest.mark.usefixtures("live_redis")
def test_clock_that_was_ahead_holds_up_nobody_for_longer_than_the_throttle(site_alone: Story) -> None:
    assert is_let_through(targets_of(site_alone, 50), mark="first")
    time_passes(site_alone, -86_400)
    with pytest.raises(Throttled) as refusal, setpoints_throttled(targets_of(site_alone, 50), mark="second"):
        pass
    assert refusal.value.retry_after_s <= 30


def test_without_redis_all_are_let_through(site_alone: Story, settings: Any) -> None:
    settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
    live_forget()
    assert all(is_let_through(targets_of(site_alone, 50), mark=str(number)) for number in range(3))
    live_forget()


def test_throttle_is_known_without_another_query(site_alone: Story, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(1):
        targets = targets_of(site_alone, 50)
    (devices,) = targets.by_node.values()
    assert devices[0].throttle_s == 30
