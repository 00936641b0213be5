"""Idempotency-Key: a request that comes again is carried out once, and answered the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from control_app.models import CommandState, ControlCommand, ControlLog, ControlRequest
from control_app.repeats import KEPT, keys_forget
from control_app.services import command_resolve, requests_settle
from control_app.tasks import logs_retain
from edge.wire.messages import DeviceResult
from sites_app.services import token_update
from tests.at_once import at_once
from tests.factories import client_of, device_make, principal_of_token, story_make, token_make
from tests.fake_node import FakeNode, obey, stay_silent
from tests.servers import Broker

KEY = "0b7c1c1e-retry-1"
CONFIRMED = {"SMA_STP60_01": DeviceResult(value=50, readback=50)}


def curtail(story, *, key: str | None = KEY, by=None, site=None, **body):
    given = {"value": 50, "category": "inverter"} | body
    headers = {} if key is None else {"Idempotency-Key": key}
    path = f"/v1/sites/{(site or story.site_a).pk}/curtail-category"
    return (by or story.holder_a).put(path, given, headers=headers)


def release(story, *, key: str = KEY, **body):
    path = f"/v1/sites/{story.site_a.pk}/release"
    return story.holder_a.post(path, body, headers={"Idempotency-Key": key})


def sent(node: FakeNode) -> int:
    return node.commands.qsize() + node.releases.qsize()


def is_replayed(response) -> bool:
    return bool(response.headers.get("Idempotency-Replayed") == "true")


# --- the same request ---------------------------------------------------------------------------------


def test_same_request_gets_the_same_bytes_and_nothing_is_sent(story, node_a):
    for tag in ("INV_10", "INV_2", "A"):
        device_make(node=story.node_a, device_tag=tag)
    first, again = curtail(story), curtail(story)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert again["Content-Type"] == first["Content-Type"]
    assert (is_replayed(first), is_replayed(again)) == (False, True)
    assert sent(node_a) == 1
    assert ControlRequest.objects.count() == ControlLog.objects.count() == 1


def test_answer_with_a_key_is_that_without_one(story, node_a):
    assert curtail(story).content == curtail(story, key=None).content


def test_same_body_spelt_otherwise_is_the_same_request(story, node_a):
    path = f"/v1/sites/{story.site_a.pk}/curtail-category"
    for text in ('{"value": 50, "category": "inverter"}', '{"category":"inverter","value":50.0}'):
        response = story.holder_a.put(
            path, text, content_type="application/json", headers={"Idempotency-Key": KEY}
        )
        assert response.status_code == 200
    assert sent(node_a) == 1


def test_request_that_failed_gets_the_same_failure(story, node_a):
    assert curtail(story, device_tags=["NO_SUCH"]).json()["status"] == "failed"
    again = curtail(story, device_tags=["NO_SUCH"])
    assert (again.json()["status"], is_replayed(again)) == ("failed", True)


def test_release_is_repeated_like_a_setpoint(story, node_a):
    first, again = release(story), release(story)
    assert again.content == first.content
    assert is_replayed(again)
    assert sent(node_a) == 1


def test_without_a_key_every_request_is_one_of_its_own(story, node_a):
    for _ in range(2):
        assert not is_replayed(curtail(story, key=None))
    assert sent(node_a) == 2


def test_key_costs_one_query_and_its_absence_none(story, node_a):
    client = story.holder_a

    def queries(key: str | None) -> list[str]:
        with CaptureQueriesContext(connection) as caught:
            curtail(story, by=client, key=key)
        return [query["sql"].split()[0] for query in caught.captured_queries]

    assert queries(KEY) == ["SELECT", *queries(None)]


# --- another request ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other", [{"value": 40}, {"reason": "again"}, {"device_tags": ["SMA_STP60_01"]}, {"unit": "percent"}]
)
def test_key_of_another_request_is_refused(story, node_a, other):
    curtail(story)
    response = curtail(story, **other)
    assert (response.status_code, response.json()["code"]) == (409, "idempotency_key_reused")
    assert sent(node_a) == 1


def test_key_of_another_path_is_refused_whatever_stands_there(story, node_a):
    curtail(story)
    assert release(story).json()["code"] == "idempotency_key_reused"
    assert curtail(story, site=story.site_b).json()["code"] == "idempotency_key_reused"


def test_keys_of_other_clients_and_tokens_are_their_own(story, node_a):
    curtail(story)
    others = (client_of(principal_of_token(token_make(story.site_a))), story.root)
    assert [is_replayed(curtail(story, by=other)) for other in others] == [False, False]
    assert sent(node_a) == 3


def test_dry_run_neither_takes_a_key_nor_gives_its_answer(story, node_a, settings):
    settings.SGM_REQUEST_DEADLINE_S = 0.2
    assert curtail(story, dry_run=True).json()["dry_run"] is True
    assert not is_replayed(curtail(story))
    assert curtail(story, dry_run=True).json()["dry_run"] is True
    assert is_replayed(curtail(story))


@pytest.mark.django_db
@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, "kéy", "a\tb", "\x7f"])
def test_key_that_is_none_is_refused_before_anything_is_done(key):
    response = curtail(story_make(), key=key)
    assert (response.status_code, list(response.json()["errors"])) == (400, ["Idempotency-Key"])
    assert not ControlRequest.objects.exists()


def test_key_of_every_allowed_length_and_letter_is_taken(story, node_a):
    for key in ("!", "~" * 255, '"quoted"', "a,b"):
        assert curtail(story, key=key).status_code == 200


def test_site_that_went_out_of_sight_is_not_found_under_its_key_either(story, node_a):
    curtail(story)
    token_update(token=story.token_a, name="Token of A", sites=[story.site_b])
    assert curtail(story).status_code == 404


# --- one that is under way, was not sent, or is unknown -----------------------------------------------------


def test_request_under_way_is_told_with_when_to_ask_again(story, node_a):
    curtail(story)
    ControlRequest.objects.update(
        status=None, result=None, answer="", deadline=timezone.now() + timedelta(seconds=5)
    )
    meanwhile = curtail(story)
    assert (meanwhile.status_code, meanwhile.json()["code"]) == (409, "idempotency_in_progress")
    assert 4 <= int(meanwhile["Retry-After"]) <= 5
    assert sent(node_a) == 1


def test_key_is_free_again_where_certainly_nothing_was_sent(story, node_a, settings):
    settings.SGM_MQTT_PORT = 1
    response = curtail(story)
    assert (response.status_code, response.json()["code"]) == (503, "dispatch_unavailable")
    again = curtail(story)
    assert (again.status_code, is_replayed(again)) == (503, False)
    assert not ControlRequest.objects.exclude(idempotency=None).exists()


def test_key_of_what_was_refused_at_the_door_is_free(story, node_a):
    assert curtail(story, value=101).status_code == 400
    assert curtail(story, category="battery").status_code == 404
    assert curtail(story).status_code == 200


def test_unknown_is_repeated_until_the_truth_is_known_and_then_that(story, node_a, settings):
    settings.SGM_REQUEST_DEADLINE_S = 0.3
    node_a.behaviour = stay_silent
    first, again = curtail(story), curtail(story)
    assert first.json()["result"]["not_updated"] == {"SMA_STP60_01": "unknown: no confirmation within 0.3 s"}
    assert again.content == first.content
    assert command_resolve(command=ControlCommand.objects.get(), devices=CONFIRMED)
    corrected = curtail(story)
    assert corrected.content == (
        b'{"status":"success","result":{"updated":{"SMA_STP60_01":null},"not_updated":{}}}'
    )
    assert is_replayed(corrected)
    assert sent(node_a) == 1


def view_died(story, state: CommandState) -> None:
    """A request with a key whose view did not live to close it."""
    ControlRequest.objects.update(
        status=None, result=None, answer="", deadline=timezone.now() - timedelta(seconds=6)
    )
    ControlCommand.objects.update(state=state, result=None)


def test_request_whose_view_died_is_answered_under_its_key_once_it_is_settled(story, node_a):
    curtail(story)
    view_died(story, CommandState.SENT)
    assert curtail(story).json()["code"] == "idempotency_in_progress"
    assert requests_settle() == 1
    settled = curtail(story)
    assert is_replayed(settled)
    assert settled.json()["result"]["not_updated"]["SMA_STP60_01"].startswith("unknown: ")


def test_key_of_a_request_whose_view_died_before_it_was_sent_is_free_once_it_is_settled(story, node_a):
    curtail(story)
    view_died(story, CommandState.QUEUED)
    assert requests_settle() == 1
    assert not is_replayed(curtail(story))
    assert sent(node_a) == 2


# --- for how long -------------------------------------------------------------------------------------------


def test_key_is_kept_for_a_day_and_then_let_go(story, node_a):
    curtail(story)
    asked = ControlRequest.objects.get().created_at
    assert keys_forget(now=asked + KEPT) == 0
    assert is_replayed(curtail(story))
    assert keys_forget(now=asked + KEPT + timedelta(seconds=1), at_once=1) == 1
    row = ControlRequest.objects.get()
    assert (row.idempotency, row.digest, row.answer) == (None, "", "")
    assert not is_replayed(curtail(story))


def test_beat_lets_go_of_keys(story, node_a):
    curtail(story)
    ControlRequest.objects.update(created_at=timezone.now() - timedelta(hours=25))
    logs_retain()
    assert not ControlRequest.objects.exclude(idempotency=None).exists()


# --- at once --------------------------------------------------------------------------------------------------


@pytest.fixture
def committed(
    transactional_db, node_ids, sending, eager, broker: Broker
) -> Iterator[tuple[object, FakeNode]]:
    story = story_make(node_ids=node_ids)
    with FakeNode.on(broker, story.node_a) as node:
        node.beat()
        yield story, node


@pytest.mark.parametrize("count", [2, 6])
def test_of_many_at_once_exactly_one_is_sent(committed, count):
    if connection.vendor == "sqlite":
        pytest.skip("threads share one connection here: at once is what PostgreSQL is asked")
    story, node = committed
    others = threading.Semaphore(0)

    def wait_for_the_others(node, command):
        for _ in range(count - 1):
            assert others.acquire(timeout=10)
        obey(node, command)

    node.behaviour = wait_for_the_others

    def ask():
        response = curtail(story)
        others.release()
        return response

    responses = at_once(*[ask] * count)
    assert sorted(response.status_code for response in responses) == [200] + [409] * (count - 1)
    assert {response.json()["code"] for response in responses if response.status_code == 409} == {
        "idempotency_in_progress"
    }
    assert sent(node) == 1
    assert ControlRequest.objects.count() == ControlCommand.objects.count() == 1
    assert is_replayed(curtail(story))
