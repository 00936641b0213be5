"""GET explain: why a device is held where it is, as a client sees it; the node's answer is from its wire."""

from __future__ import annotations

import json
import time
import uuid

import msgspec
import pytest

from edge.wire.messages import Code, CommandAnswer, Explanation, Stage
from smartgrid import live
from tests.control_app.conftest import live_forget
from tests.factories import device_make, node_make, story_make
from tests.fake_node import FakeNode
from tests.wire.samples import SAMPLES

ABSENT = uuid.UUID("00000000-0000-4000-8000-000000000000")
ANSWER = SAMPLES["answer_explain"]
assert isinstance(ANSWER, CommandAnswer)
assert ANSWER.explanation is not None
EXPLANATION: Explanation = ANSWER.explanation


def explain(story, *, by=None, device_id=None, **query):
    return (by or story.holder_a).get(f"/v1/devices/{device_id or story.device_a.pk}/explain", query)


def told(node: FakeNode, explanation: Explanation | None = EXPLANATION):
    def answer(command):
        node.answer(command.id, CommandAnswer(id=command.id, stage=Stage.DONE, explanation=explanation))

    return answer


def refused(node: FakeNode, code: Code, detail: str = "why"):
    def answer(command):
        refusal = CommandAnswer(id=command.id, stage=Stage.REFUSED, code=code, detail=detail)
        node.answer(command.id, refusal)

    return answer


@pytest.fixture
def node(node_a: FakeNode) -> FakeNode:
    node_a.on_question = told(node_a)
    return node_a


# --- the answer -----------------------------------------------------------------------------------


def test_nodes_explanation_is_told_in_our_spelling(story, node):
    response = explain(story)
    assert response.status_code == 200
    body = json.loads(response.content)
    assert list(body) == [
        "device_tag",
        "at",
        "reaches_back_to",
        "decision",
        "written",
        "before",
        "after",
        "notes",
    ]
    assert body["device_tag"] == "SMA_STP60_01"
    assert body["at"] == "2026-03-02T10:00:30.000000Z"
    decision = body["decision"]
    assert (decision["value"], decision["wish"], decision["bounded_by"]) == (30, 20, "grid_operator")
    assert (decision["source"], decision["until"]) == ("direct", "2026-03-02T10:01:00.000000Z")
    assert (decision["because"], decision["code"], decision["readback"]) == (None, None, None)
    assert [entry["text"] for entry in body["written"]] == ["30 confirmed, read back 30.1"]
    assert body["after"][0]["code"] == "write_failed"
    assert body["before"] == []


@pytest.mark.parametrize("at", [None, "-10m", "2026-03-02T10:00:30Z", "2026-03-02T11:00:30+01:00"])
def test_question_is_passed_on_as_it_was_asked(story, node, at):
    assert explain(story, **({} if at is None else {"at": at})).status_code == 200
    command = node.questions.get(timeout=1)
    assert (command.device, command.at, command.epoch) == ("SMA_STP60_01", at, story.node_a.epoch)


def test_question_costs_one_query_and_leaves_no_trace(story, node, django_assert_num_queries):
    with django_assert_num_queries(1):
        assert explain(story).status_code == 200
    assert node.commands.empty()


# --- no answer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "told_code"),
    [
        (Code.RANGE, 400, "range"),
        (Code.BUSY, 503, "busy"),
        (Code.UNKNOWN, 503, "no_answer"),
        (Code.OLD_EPOCH, 503, "no_answer"),
    ],
)
def test_refusal_of_the_node_is_told_by_its_code_and_in_its_words(story, node, code, status, told_code):
    node.on_question = refused(node, code, detail="the ring reaches back to yesterday")
    response = explain(story)
    assert (response.status_code, response.json()["code"]) == (status, told_code)
    assert "the ring reaches back to yesterday" in response.json()["detail"]
    assert ("Retry-After" in response) == (status == 503)
    assert list(response.json()["errors"]) == (["at"] if status == 400 else [])


def test_device_that_the_node_does_not_know_is_a_conflict_that_names_no_other(story, node):
    node.on_question = refused(node, Code.UNKNOWN_DEVICE, detail="known are: SECRET_01")
    response = explain(story)
    assert (response.status_code, response.json()["code"]) == (409, "unknown_device")
    assert "SECRET_01" not in response.json()["detail"]


def test_node_that_does_not_know_the_question_is_waited_for_until_the_deadline(story, node, settings):
    settings.SGM_REQUEST_DEADLINE_S = 0.3
    node.on_question = lambda _command: None
    began = time.monotonic()
    response = explain(story)
    assert (response.status_code, response.json()["code"]) == (503, "no_answer")
    assert "may be of a version that does not know this question" in response.json()["detail"]
    assert 0.3 <= time.monotonic() - began < 6


def test_node_that_is_not_heard_any_more_is_not_asked(story, node):
    live.client().hset(f"sgm:node:{story.node_a.pk}", "hb_at", str(time.time() - 16))
    response = explain(story)
    assert (response.status_code, response.json()["code"]) == (409, "node_offline")
    assert "last heard 16 s ago" in response.json()["detail"]
    assert node.questions.empty()


def test_without_a_broker_the_question_is_not_asked(story, node, settings):
    settings.SGM_MQTT_PORT = 1
    response = explain(story)
    assert (response.status_code, response.json()["code"]) == (503, "dispatch_unavailable")


@pytest.mark.django_db
def test_without_redis_the_answer_is_503(settings):
    settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
    live_forget()
    response = explain(story_make())
    live_forget()
    assert (response.status_code, response.json()["code"]) == (503, "dispatch_unavailable")


# --- the other side lies --------------------------------------------------------------------------

LIES = [
    None,
    msgspec.structs.replace(EXPLANATION, device="INVERTER_99"),
    msgspec.structs.replace(EXPLANATION, at="yesterday"),
    msgspec.structs.replace(EXPLANATION, reaches_back_to="0001-01-01T00:00:00+14:00"),
    msgspec.structs.replace(
        EXPLANATION, decision=msgspec.structs.replace(EXPLANATION.decision, until="later")
    ),
]


@pytest.mark.parametrize("lie", LIES)
def test_answer_that_is_none_is_no_answer(story, node, lie):
    node.on_question = told(node, lie)
    response = explain(story)
    assert (response.status_code, response.json()["code"]) == (503, "no_answer")


def test_answer_on_another_nodes_branch_is_ignored(story, node, node_b, settings):
    settings.SGM_REQUEST_DEADLINE_S = 0.5

    def let_another_answer(command):
        forged = CommandAnswer(id=command.id, stage=Stage.DONE, explanation=EXPLANATION)
        node_b.answer_of(node, forged)

    node.on_question = let_another_answer
    assert explain(story).json()["code"] == "no_answer"


def test_first_of_two_answers_counts(story, node):
    def twice(command):
        told(node)(command)
        refused(node, Code.BUSY)(command)

    node.on_question = twice
    assert explain(story).status_code == 200


# --- the door -------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize(
    "at", ["", "yesterday", "-10", "10m", "-9999999d", "-999999d", "\x00", "2026-13-01", "1" * 500]
)
def test_time_that_is_none_is_refused_before_anybody_is_asked(at):
    response = explain(story_make(), at=at)
    assert (response.status_code, list(response.json()["errors"])) == (400, ["at"])


@pytest.mark.django_db
def test_device_out_of_sight_is_not_found_in_the_words_of_an_absent_one(client):
    story = story_make()
    hidden, absent = explain(story, device_id=story.device_b.pk), explain(story, device_id=ABSENT)
    assert hidden.status_code == absent.status_code == 404
    assert {**hidden.json(), "request_id": ""} == {**absent.json(), "request_id": ""}
    assert explain(story, by=story.holder_of_nothing).status_code == 404
    assert client.get(f"/v1/devices/{story.device_a.pk}/explain").status_code == 401


@pytest.mark.django_db
def test_device_of_a_node_that_was_never_heard_of_is_offline(live_redis):
    story = story_make()
    device = device_make(node=node_make(site=story.site_a))
    response = explain(story, device_id=device.pk)
    assert (response.status_code, response.json()["code"]) == (409, "node_offline")
    assert "never been heard of" in response.json()["detail"]
