"""What reaches the broker: overtaken, interrupted, twice, and recorded only when it is there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import time_machine
from django.utils import timezone

from sites_app.documents import (
    documents_drop,
    documents_put,
    manifest_for,
    node_document_drop,
    node_document_put,
    node_documents_render,
)
from sites_app.models import Farewell, Node, NodeDocument
from sites_app.node_link import LinkUnavailable
from sites_app.publishing import (
    DesiredMessage,
    farewells_publish,
    nodes_publish,
    nodes_publish_anew,
    nodes_unpublished,
)
from sites_app.reports import ReceivedReport, reports_compare, reports_record
from sites_app.services import node_create, node_delete
from tests.at_once import at_once
from tests.factories import node_make, report_make, report_record, site_make
from tests.sites_app.test_documents import Retained

pytestmark = pytest.mark.django_db

DAY = "schedule/2026-11-24/inverter"
NEXT = "schedule/2026-11-25/inverter"
BODY: dict[str, Any] = {"slots": {"09:00": 50}}
OTHER: dict[str, Any] = {"slots": {"09:00": 60}}


class Dead:
    """A broker that takes `takes` messages and is gone."""

    def __init__(self, retained: Retained, *, takes: int = 0) -> None:
        self.retained, self.takes = retained, takes

    def put_desired(self, messages: Sequence[DesiredMessage]) -> None:
        self.retained.put_desired(messages[: self.takes])
        raise LinkUnavailable("gone")


@pytest.fixture
def node() -> Node:
    """A node with a schedule, all of it published."""
    node = node_make()
    node_document_put(node=node, name=DAY, body=BODY)
    return node


@pytest.fixture
def broker(node: Node) -> Retained:
    retained = Retained()
    publish(node, retained)
    retained.order.clear()
    return retained


def publish(node: Node, link: Any, *, again: bool = False) -> int:
    return nodes_publish(node_ids=[node.pk], link=link, again=again)


def holds_what_the_database_says(broker: Retained, node: Node) -> bool:
    manifest = manifest_for(node)
    listed = {name: broker.document(node, name) for name in manifest.docs}
    return broker.manifest(node) == manifest and all(
        (listed[name].epoch, listed[name].version, listed[name].sha256)
        == (manifest.epoch, entry.v, entry.sha256)
        for name, entry in manifest.docs.items()
    )


def test_all_of_a_new_node_is_published_the_manifest_last(node):
    broker = Retained()
    assert publish(node, broker) == 3
    assert broker.order == ["config", DAY, "manifest"]
    assert holds_what_the_database_says(broker, node)
    assert not nodes_unpublished().exists()


def test_what_the_broker_holds_is_not_published_again(node, broker):
    assert publish(node, broker) == 0
    assert broker.order == []


def test_of_a_change_only_the_changed_document_and_the_manifest_are_published(node, broker):
    node_document_put(node=node, name=DAY, body=OTHER)
    assert set(nodes_unpublished()) == {node}
    publish(node, broker)
    assert broker.order == [DAY, "manifest"]
    assert holds_what_the_database_says(broker, node)


def test_dropped_document_is_taken_away_and_its_row_goes_with_it(node, broker):
    node_document_drop(node=node, name=DAY)
    assert NodeDocument.objects.get(node=node, name=DAY).dropped
    publish(node, broker)
    assert broker.order == [DAY, "manifest"]
    assert broker.messages[node.topics.document(DAY)] == b""
    assert not NodeDocument.objects.filter(node=node, name=DAY).exists()
    assert publish(node, broker) == 0


def test_document_put_down_again_before_the_broker_heard_of_its_end_is_newer_than_before(node, broker):
    before = broker.document(node, DAY).version
    node_document_drop(node=node, name=DAY)
    node_document_put(node=node, name=DAY, body=BODY)
    publish(node, broker)
    assert broker.document(node, DAY).version > before
    assert holds_what_the_database_says(broker, node)


def test_message_of_a_document_goes_when_the_document_may(node):
    now = datetime(2026, 11, 24, tzinfo=UTC)
    node_document_put(node=node, name=NEXT, body=BODY, expires_at=now + timedelta(days=3))
    sent: list[DesiredMessage] = []

    class Listening(Retained):
        def put_desired(self, messages: Sequence[DesiredMessage]) -> None:
            sent.extend(messages)

    with time_machine.travel(now, tick=False):
        publish(node, Listening())
    assert {message.name: message.expiry_s for message in sent} == {
        "config": None,
        DAY: None,
        NEXT: 3 * 24 * 3600,
        "manifest": None,
    }


@pytest.mark.parametrize("takes", [0, 1, 2, 3])
def test_broker_that_went_in_between_gets_it_all_the_next_time(node, takes):
    """So too where the publisher died before it could record what it published."""
    broker = Retained()
    with pytest.raises(LinkUnavailable):
        publish(node, Dead(broker, takes=takes))
    assert node in nodes_unpublished()
    publish(node, broker)
    assert holds_what_the_database_says(broker, node)
    assert not nodes_unpublished().exists()


def test_publisher_overtaken_by_a_change_leaves_it_to_be_published(node, broker):
    node_document_put(node=node, name=DAY, body=OTHER)
    broker.before_manifest = lambda: node_document_put(node=node, name=DAY, body={"slots": {}})
    publish(node, broker)
    assert set(nodes_unpublished()) == {node}
    publish(node, broker)
    assert broker.document(node, DAY).body == {"slots": {}}
    assert holds_what_the_database_says(broker, node)
    assert not nodes_unpublished().exists()


@pytest.mark.parametrize("change", ["put", "drop", "new", "epoch", "drop and put"])
def test_publisher_overtaken_by_another_that_is_done_leaves_the_newest(node, broker, change):
    """The other has recorded the newer one, and this one's older message came to the broker after it."""

    def other() -> None:
        match change:
            case "put":
                node_document_put(node=node, name=DAY, body={"slots": {}})
            case "drop":
                node_document_drop(node=node, name=DAY)
            case "new":
                node_document_put(node=node, name=NEXT, body=BODY)
            case "epoch":
                Node.objects.filter(pk=node.pk).update(epoch=5)
            case _:
                node_document_drop(node=node, name=DAY)
                publish(node, Retained())
                node_document_put(node=node, name=DAY, body={"slots": {}})
        publish(node, broker)
        assert not nodes_unpublished().exists()

    class Slow(Retained):
        """Its messages were read before the other's, and arrive after them."""

        def put_desired(self, messages: Sequence[DesiredMessage]) -> None:
            if self.before_manifest is not None:
                happens, self.before_manifest = self.before_manifest, None
                happens()
            broker.put_desired(messages)

    node_document_put(node=node, name=DAY, body=OTHER)
    slow = Slow()
    slow.before_manifest = other
    publish(node, slow)
    # It says so in the database, where it is found whatever becomes of this publisher.
    assert set(nodes_unpublished()) == {node}
    publish(node, broker)
    assert holds_what_the_database_says(broker, node)
    assert not nodes_unpublished().exists()
    listed = {node.topics.document(name) for name in ("manifest", *manifest_for(node).docs)}
    assert {topic for topic, payload in broker.messages.items() if payload} == listed


def test_new_epoch_publishes_everything_anew(node, broker):
    Node.objects.filter(pk=node.pk).update(epoch=2)
    assert node in nodes_unpublished()
    publish(node, broker)
    assert sorted(broker.order) == ["config", "manifest", DAY]
    assert holds_what_the_database_says(broker, node)


def test_again_publishes_what_was_not_answered_for_and_the_manifest(node, broker):
    report_record(node)
    node_document_put(node=node, name=NEXT, body=BODY)
    publish(node, broker)
    broker.order.clear()
    publish(node, broker, again=True)
    assert broker.order == [NEXT, "manifest"]


def test_publishing_anew_gives_a_broker_that_lost_everything_all_of_it(node, broker):
    report_record(node)
    broker.messages.clear()
    assert nodes_publish_anew(nodes=[node.pk]) == 1
    publish(node, broker)
    assert holds_what_the_database_says(broker, node)


def test_many_nodes_leave_in_several_batches_and_are_all_recorded():
    nodes = [node_make() for _ in range(3)]
    for day in range(1, 31):
        documents_put(nodes=nodes, name=f"schedule/2026-11-{day:02}/inverter", body=BODY)
    batches: list[int] = []

    class Counting(Retained):
        def put_desired(self, messages: Sequence[DesiredMessage]) -> None:
            batches.append(len(messages))
            super().put_desired(messages)

    broker = Counting()
    assert nodes_publish(node_ids=[node.pk for node in nodes], link=broker) == 3 * 32
    assert sum(batches) == 3 * 32
    assert all(holds_what_the_database_says(broker, node) for node in nodes)
    assert not nodes_unpublished().exists()


def test_farewell_waits_in_the_database_until_the_broker_has_it():
    node = node_make()
    pk, topics = node.pk, node.topics
    version = manifest_for(node).version
    node_delete(node=node)
    broker = Retained()
    with pytest.raises(LinkUnavailable):
        farewells_publish(link=Dead(broker))
    assert Farewell.objects.get().node_id == pk
    assert farewells_publish(link=broker) == 1
    assert farewells_publish(link=broker) == 0
    assert topics.document("config") in broker.messages
    assert version == 1


def test_farewell_does_not_take_from_a_node_made_again_under_the_same_id():
    node = node_make()
    pk, site = node.pk, node.site
    node_delete(node=node)
    again = node_create(site=site, id=pk, name="back again")
    broker = Retained()
    publish(again, broker)
    before = dict(broker.messages)
    farewells_publish(link=broker)
    assert broker.messages == before
    assert not Farewell.objects.exists()


def test_same_document_for_all_nodes_of_a_site_takes_few_queries(django_assert_max_num_queries):
    site = site_make()
    nodes = [node_make(site=site) for _ in range(20)]
    with django_assert_max_num_queries(8):
        assert documents_put(nodes=nodes, name=DAY, body=BODY) == 20
    with django_assert_max_num_queries(8):
        assert documents_put(nodes=nodes, name=DAY, body=OTHER) == 20
    with django_assert_max_num_queries(4):
        assert documents_put(nodes=nodes, name=DAY, body=OTHER) == 0
    versions = NodeDocument.objects.filter(name=DAY).values_list("version", "node__manifest_version")
    assert all(version == newest for version, newest in versions)


def test_rendering_one_name_space_leaves_the_others_alone(node):
    """What nobody renders any longer goes only when its own name space is asked for."""
    node_documents_render(node=node, only=["config"])
    assert DAY in manifest_for(node).docs
    node_documents_render(node=node)
    assert DAY not in manifest_for(node).docs


@pytest.mark.django_db(transaction=True)
def test_edits_publications_and_reports_at_once_wait_for_each_other_and_end_in_agreement():
    nodes = [node_make() for _ in range(6)]
    broker = Retained()
    for value in range(5):
        results = at_once(
            partial(documents_put, nodes=nodes, name=DAY, body={"slots": {"09:00": value}}),
            partial(documents_put, nodes=reversed(nodes), name=NEXT, body={"slots": {"09:00": value}}),
            partial(documents_drop, nodes=nodes[:3], names=[NEXT]),
            partial(nodes_publish, node_ids=[node.pk for node in nodes], link=broker),
            partial(nodes_publish, node_ids=[node.pk for node in reversed(nodes)], link=broker),
            partial(reports_record, [received(node) for node in reversed(nodes)]),
            partial(reports_compare),
            partial(nodes_publish_anew, nodes=[node.pk for node in nodes[3:]]),
        )
        assert [result for result in results if isinstance(result, Exception)] == []
    while nodes_unpublished().exists():
        nodes_publish(node_ids=[node.pk for node in nodes], link=broker)
    assert all(holds_what_the_database_says(broker, node) for node in nodes)
    for node in nodes:
        report_record(node)
    assert set(NodeDocument.objects.values_list("status", flat=True)) == {"applied"}
    assert set(NodeDocument.objects.values_list("dropped", flat=True)) == {False}


def received(node: Node) -> ReceivedReport:
    return ReceivedReport(str(node.pk), report_make(node), timezone.now(), retained=False)
