"""PUT curtail-category with dry_run: what would be done, as a client sees it; the nodes' words are their wire's."""

from __future__ import annotations

import json
import time

import msgspec
import pytest

from control_app.models import ControlCommand, ControlLog, ControlRequest
from devices_app.models import Device
from edge.wire.messages import Code, CommandAnswer, DevicePreview, Stage
from tests.control_app.conftest import live_forget
from tests.factories import device_make, story_make
from tests.wire.samples import SAMPLES

ANSWER = SAMPLES["answer_preview"]
assert isinstance(ANSWER, CommandAnswer)
assert ANSWER.previews is not None
WOULD: DevicePreview = ANSWER.previews["SMA_STP60_01"]
WORN: DevicePreview = ANSWER.previews["SMA_STP60_02"]


def dry_run(story, *, by=None, site=None, **body):
    given = {"value": 20, "category": "inverter", "dry_run": True} | body
    return (by or story.holder_a).put(f"/v1/sites/{(site or story.site_a).pk}/curtail-category", given)


def says(node, **previews: DevicePreview):
    def answer(command):
        node.answer(command.id, CommandAnswer(id=command.id, stage=Stage.DONE, previews=previews))

    return answer


@pytest.fixture
def node(node_a):
    node_a.on_preview = says(node_a, SMA_STP60_01=WOULD)
    return node_a


# --- the answer -----------------------------------------------------------------------------------


def test_dry_run_is_answered_like_the_request_with_what_would_be_done_beside_it(story, node):
    response = dry_run(story)
    assert response.status_code == 200
    body = json.loads(response.content)
    assert list(body) == ["status", "result", "dry_run", "preview"]
    assert (body["status"], body["dry_run"]) == ("success", True)
    assert body["result"] == {"updated": {"SMA_STP60_01": None}, "not_updated": {}}
    told = body["preview"]["SMA_STP60_01"]
    assert (told["value"], told["target"], told["wish"], told["bounded_by"]) == (70, 30, 20, "grid_operator")
    assert (told["source"], told["through"], told["holds_s"], told["write"]) == (
        "direct",
        None,
        60,
        "changed",
    )
    assert (told["in_force"], told["reachable"], told["code"]) == (100, True, None)
    assert told["reason"] == WOULD.reason
    assert told["wear"] == {
        "write_class": "volatile",
        "wears": False,
        "now": 1,
        "release": 1,
        "today": 12,
        "per_day": None,
    }


def test_node_is_asked_by_a_command_that_is_no_setpoint(story, node):
    dry_run(story, value=12.5)
    command = node.previews.get(timeout=1)
    assert (command.category, command.values, command.hold_s) == ("inverter", {"SMA_STP60_01": 12.5}, 60)
    assert command.epoch == story.node_a.epoch
    assert node.commands.empty()


def test_dry_run_leaves_no_trace(story, node, django_assert_num_queries):
    before = Device.objects.values_list("value", "value_sequence").get(pk=story.device_a.pk)
    with django_assert_num_queries(1):
        assert dry_run(story).status_code == 200
    assert not ControlRequest.objects.exists()
    assert not ControlCommand.objects.exists()
    assert not ControlLog.objects.exists()
    assert Device.objects.values_list("value", "value_sequence").get(pk=story.device_a.pk) == before


def test_device_that_would_be_refused_is_told_in_the_nodes_words_and_previewed_too(story, node):
    device_make(node=story.node_a, device_tag="SMA_STP60_02")
    node.on_preview = says(node, SMA_STP60_01=WOULD, SMA_STP60_02=WORN)
    body = json.loads(dry_run(story).content)
    assert body["status"] == "partial"
    assert body["result"]["not_updated"] == {"SMA_STP60_02": f"wear: {WORN.detail}"}
    worn = body["preview"]["SMA_STP60_02"]
    assert (worn["code"], worn["value"], worn["source"]) == ("wear", None, None)
    assert (worn["wear"]["today"], worn["wear"]["per_day"]) == (19, 20)


def test_children_of_a_proxy_are_previewed_and_count_as_nobodys_request(story, node):
    child = msgspec.structs.replace(WOULD, through="SMA_STP60_01")
    node.on_preview = says(node, SMA_STP60_01=WOULD, CHILD_01=child, STRANGER_01=WOULD)
    body = json.loads(dry_run(story).content)
    assert sorted(body["preview"]) == ["CHILD_01", "SMA_STP60_01"]
    assert body["preview"]["CHILD_01"]["through"] == "SMA_STP60_01"
    assert body["result"]["updated"] == {"SMA_STP60_01": None}


def test_two_nodes_are_asked_at_once_and_each_answers_for_its_own(story, node, node_b):
    Device.objects.filter(pk=story.device_b.pk).update(site=story.site_a)
    node_b.on_preview = says(node_b, GENERIC_PV_01=WOULD)
    body = dry_run(story).json()
    assert sorted(body["preview"]) == ["GENERIC_PV_01", "SMA_STP60_01"]


def test_node_that_is_not_curtailed_in_batch_is_asked_once_all_the_same(story, node):
    device_make(node=story.node_a, device_tag="INV_02")
    type(story.node_a).objects.filter(pk=story.node_a.pk).update(curtail_in_batch=False)
    dry_run(story)
    assert sorted(node.previews.get(timeout=1).values) == ["INV_02", "SMA_STP60_01"]
    assert node.previews.empty()


def test_false_is_the_request_itself(story, node_a):
    assert "dry_run" not in dry_run(story, dry_run=False).json()
    assert node_a.commands.get(timeout=1).values == {"SMA_STP60_01": 20}


# --- who does not answer --------------------------------------------------------------------------


def test_node_that_knows_no_dry_run_is_told_by_device(story, node, settings):
    settings.SGM_REQUEST_DEADLINE_S = 0.3
    node.on_preview = lambda _command: None
    began = time.monotonic()
    body = dry_run(story).json()
    assert time.monotonic() - began < 6
    assert (body["status"], body["preview"]) == ("failed", {})
    assert body["result"]["not_updated"] == {
        "SMA_STP60_01": "no_answer: the node gave no answer within 0.3 s; it may be of a version that knows no"
        " dry run"
    }


def test_silent_node_is_offline_while_the_other_answers(story, node, node_b):
    Device.objects.filter(pk=story.device_b.pk).update(site=story.site_a)
    node_b.beat(ago_s=16)
    body = dry_run(story).json()
    assert body["status"] == "partial"
    assert body["result"]["not_updated"]["GENERIC_PV_01"].startswith("node_offline: last heard 16 s ago")


@pytest.mark.parametrize("code", [Code.BUSY, Code.OLD_EPOCH, Code.RETAINED])
def test_refusal_of_the_whole_question_is_every_devices(story, node, code):
    def refuse(command):
        refusal = CommandAnswer(id=command.id, stage=Stage.REFUSED, code=code, detail="why")
        node.answer(command.id, refusal)

    node.on_preview = refuse
    assert dry_run(story).json()["result"]["not_updated"] == {"SMA_STP60_01": f"{code.value}: why"}


def test_device_that_the_node_says_nothing_of_is_not_updated(story, node):
    node.on_preview = says(node)
    told = dry_run(story).json()["result"]["not_updated"]
    assert told == {"SMA_STP60_01": "no_answer: the node says nothing of this device"}


def test_without_a_broker_nobody_was_asked(story, node, settings):
    settings.SGM_MQTT_PORT = 1
    response = dry_run(story)
    assert (response.status_code, response.json()["code"]) == (503, "dispatch_unavailable")


@pytest.mark.django_db
def test_without_redis_the_answer_is_503(settings):
    settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
    live_forget()
    response = dry_run(story_make())
    live_forget()
    assert (response.status_code, response.json()["code"]) == (503, "dispatch_unavailable")


# --- the door -------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("given", ["true", 1, 0, None, [], {}])
def test_dry_run_is_true_or_false_and_nothing_that_looks_like_it(given):
    response = dry_run(story_make(), dry_run=given)
    assert (response.status_code, list(response.json()["errors"])) == (400, ["dry_run"])


@pytest.mark.django_db
def test_what_the_request_is_refused_for_its_dry_run_is_refused_for_too():
    story = story_make()
    assert dry_run(story, value=100.5).status_code == 400
    assert dry_run(story, category="battery").status_code == 404
    assert dry_run(story, site=story.site_b).status_code == 404
