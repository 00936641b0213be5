"""From a change to its task: once for a burst, never lost, never for ever."""

from __future__ import annotations

import queue
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
import time_machine
from celery.contrib.testing.worker import start_worker
from django.db import transaction

from edge.wire.codec import decode
from edge.wire.messages import Manifest
from edge.wire.session import Broker as WireBroker, Incoming
from sites_app.documents import manifest_for, node_document_put, nodes_render_later
from sites_app.models import Node, NodeDocument
from sites_app.node_link import BrokerConnection
from sites_app.publishing import nodes_publish, nodes_unpublished
from sites_app.services import node_delete, node_presence_record, site_update
from sites_app.syncing import nodes_sync_begins, sweep
from sites_app.tasks import sync_nodes
from smartgrid import live
from smartgrid.celery import app
from tests.control_app.conftest import dispatcher_end
from tests.factories import node_make, node_online, report_make, report_record, site_make
from tests.servers import until
from tests.sites_app.test_documents import Retained

pytestmark = pytest.mark.django_db(transaction=True)

DAY = "schedule/2026-11-24/inverter"
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def edit(node: Node, value: float = 50) -> None:
    node_document_put(node=node, name=DAY, body={"slots": {"09:00": value}})


def task(*nodes: Node, again: bool = False, waits: bool = False) -> tuple[list[Any], dict[str, Any], bool]:
    return [[str(node.pk) for node in nodes]], {"again": again}, waits


@pytest.fixture
def node(live_redis, queued) -> Node:
    """A node that has, and told, all it should."""
    node = node_make()
    settle(node)
    queued()
    with redis.Redis.from_url(live_redis) as client:
        client.flushall()
    return node


def settle(node: Node, *, at: datetime = NOW) -> None:
    with time_machine.travel(at, tick=False):
        nodes_publish(node_ids=[node.pk], link=Retained())
        report_record(node, at=at)


def test_edit_queues_its_node_and_another_before_that_task_begins_does_not(node, queued):
    edit(node, 1)
    assert queued() == [task(node)]
    edit(node, 2)
    assert queued() == []


def test_edit_after_the_task_began_queues_anew_and_waits_a_moment(node, queued):
    edit(node, 1)
    queued()
    nodes_sync_begins([str(node.pk)])
    edit(node, 2)
    edit(node, 3)
    assert queued() == [task(node, waits=True)]


def test_edits_of_one_transaction_queue_once_and_only_when_it_is_committed(node, queued):
    with transaction.atomic():
        edit(node, 1)
        edit(node, 2)
        assert queued() == []
    assert queued() == [task(node)]


def test_change_of_a_site_queues_its_nodes_together(live_redis, queued):
    site = site_make()
    nodes = sorted((node_make(site=site) for _ in range(3)), key=lambda node: str(node.pk))
    queued()
    live.client().flushall()
    site_update(site=site, curtailment_time_limit=30)
    assert sorted(queued()[0][0][0]) == [str(node.pk) for node in nodes]


def test_edit_is_accepted_though_nobody_can_be_told_and_the_sweep_finds_it(node, queued, settings, caplog):
    away = live.client()
    settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
    live.client.cache_clear()
    edit(node)
    assert "desired_state_not_queued" in caplog.text
    assert queued() == []
    live.client().close()
    live.client.cache_clear()
    settings.SGM_REDIS_URL = away.connection_pool.connection_kwargs and _url(away)
    sweep()
    assert queued() == [task(node)]


def _url(client: redis.Redis) -> str:
    where = client.connection_pool.connection_kwargs
    return f"redis://:{where['password']}@{where['host']}:{where['port']}/{where['db']}"


def test_task_that_was_lost_is_queued_again_by_the_sweep(node, queued):
    edit(node)
    queued()
    # Its flag is still there: it may yet begin.
    sweep()
    assert queued() == []
    live.client().flushall()
    sweep()
    assert queued() == [task(node)]


def test_sweep_finds_nothing_where_all_is_as_it_should_be(node, queued):
    node_online(node)
    assert sweep() == 0
    assert queued() == []


def test_node_that_does_not_say_it_has_what_was_published_is_told_again_now_and_then(node, queued):
    node_online(node)
    edit(node)
    queued()
    with time_machine.travel(NOW, tick=False) as clock:
        Node.objects.filter(pk=node.pk).update(out_of_sync_since=NOW)
        nodes_publish(node_ids=[node.pk], link=Retained())
        for seconds, expected in ((9, []), (20, []), (31, [task(node, again=True)])):
            live.client().flushall()
            clock.move_to(NOW + timedelta(seconds=seconds))
            sweep()
            assert queued() == expected
        broker = Retained()
        nodes_publish(node_ids=[node.pk], link=broker, again=True)
        assert broker.order == [DAY, "manifest"]
        live.client().flushall()
        clock.move_to(NOW + timedelta(seconds=50))
        sweep()
        assert queued() == []
        clock.move_to(NOW + timedelta(seconds=62))
        sweep()
        assert queued() == [task(node, again=True)]


def test_node_that_is_offline_is_not_told_again(node, queued):
    node_online(node)
    node_presence_record(node_id=node.pk, online=False, session="session-1", boot="boot-1")
    early = report_make(node, manifest_version=0, documents={})
    report_record(node, early, at=NOW + timedelta(seconds=1))
    with time_machine.travel(NOW + timedelta(hours=1), tick=False):
        assert sweep() == 0


def test_node_restored_from_an_old_image_is_told_what_it_lacks(node, queued):
    node_online(node)
    edit(node)
    settle(node)
    early = report_make(node, boot="boot-2", manifest_version=0, documents={})
    report_record(node, early, at=NOW + timedelta(hours=1))
    queued()
    live.client().flushall()
    with time_machine.travel(NOW + timedelta(hours=1, seconds=11), tick=False):
        sweep()
    assert queued() == [task(node, again=True)]
    broker = Retained()
    nodes_publish(node_ids=[node.pk], link=broker, again=True)
    assert broker.order == ["config", DAY, "manifest"]


def test_failed_document_is_not_published_again(node, queued):
    node_online(node)
    edit(node)
    queued()
    live.client().flushall()
    nodes_publish(node_ids=[node.pk], link=Retained())
    said = report_make(node)
    failed = {name: replace_status(document) for name, document in said.documents.items()}
    report_record(node, report_make(node, documents=failed), at=NOW)
    with time_machine.travel(NOW + timedelta(hours=1), tick=False):
        assert sweep() == 0


def replace_status(document: Any) -> Any:
    return type(document)(v=document.v, status="failed", error="no room", digest=document.digest)


def test_rendering_that_was_put_off_happens_before_the_node_is_published(node, queued, sending, broker):
    broker.add_user(str(node.pk))
    NodeDocument.objects.filter(node=node, name="config").update(sha256="0" * 64)
    nodes_render_later(nodes=[node.pk])
    assert queued() == [task(node)]
    assert node not in nodes_unpublished()
    # Lost: the database knows of it.
    live.client().flushall()
    sweep()
    assert queued() == [task(node)]
    sync_nodes([str(node.pk)])
    assert Node.objects.get(pk=node.pk).render_due_since is None
    assert NodeDocument.objects.get(node=node, name="config").sha256 != "0" * 64
    assert not nodes_unpublished().exists()


def test_farewell_that_nobody_was_told_of_is_found_by_the_sweep(node, queued):
    node_delete(node=node)
    assert queued() == [([], {}, False)]
    sweep()
    assert queued() == [([], {}, False)]


# --- with a real worker -------------------------------------------------------------------------------------------


@pytest.fixture
def manifests(broker, node, sending):
    """The manifests that the node hears."""
    heard: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
    name = str(node.pk)
    connection = BrokerConnection(
        WireBroker(broker.host, broker.port, name, broker.add_user(name)),
        identifier=name,
        subscriptions=(node.topics.document("manifest"),),
        on_message=heard.put,
    )
    connection.start()
    assert connection.wait_connected(5)
    yield heard
    connection.stop()


def test_burst_of_a_hundred_edits_is_published_a_few_times_and_ends_with_the_last(
    node, manifests, redis_queue
):
    """At most one publication in half a second, besides the first."""
    with start_worker(app, pool="threads", concurrency=2, queues=["sync"], perform_ping_check=False):
        began = datetime.now(UTC)
        for value in range(100):
            edit(node, value)
        took_s = (datetime.now(UTC) - began).total_seconds()
        until(lambda: node not in nodes_unpublished(), what="it was not published")
        dispatcher_end()
    heard = []
    while not manifests.empty():
        heard.append(decode(Manifest, manifests.get().payload))
    assert heard[-1] == manifest_for(node)
    assert len(heard) <= 2 + took_s / 0.5
    assert len({manifest.version for manifest in heard}) == len(heard)
