"""Central's sending side against a fake node: real broker, real Redis, the queue in this thread."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from control_app import dispatch
from control_app.dispatch import dispatcher
from sites_app import node_link as link_module
from sites_app.node_link import node_link
from smartgrid import live
from smartgrid.celery import app
from tests.factories import Story, story_make
from tests.fake_node import FakeNode
from tests.servers import Broker


@pytest.fixture(scope="session")
def node_ids(broker: Broker) -> tuple[uuid.UUID, uuid.UUID]:
    """Two nodes whom the broker knows."""
    ids = uuid.uuid4(), uuid.uuid4()
    for node_id in ids:
        broker.add_user(str(node_id))
    return ids


def live_forget() -> None:
    for cached in (live.client, live._waiting_client):
        if cached.cache_info().currsize:
            cached().close()
        cached.cache_clear()


@pytest.fixture
def live_redis(settings, redis_url: str) -> Iterator[str]:
    """Central's Redis, empty."""
    settings.SGM_REDIS_URL = redis_url
    live_forget()
    yield redis_url
    live_forget()


@pytest.fixture
def sending(settings, broker: Broker, live_redis: str) -> Iterator[None]:
    """A worker's dispatcher with its link."""
    settings.SGM_MQTT_HOST, settings.SGM_MQTT_PORT = broker.host, broker.port
    settings.SGM_MQTT_WORKER_PASSWORD = broker.passwords["central-worker"]
    yield
    dispatcher_end()


def dispatcher_end() -> None:
    if dispatch._dispatcher.cache_info().currsize:
        dispatcher().stop()
    dispatch._dispatcher.cache_clear()
    if link_module._node_link.cache_info().currsize:
        node_link().stop()
    link_module._node_link.cache_clear()


@pytest.fixture
def eager() -> Iterator[None]:
    """Tasks run where they are queued: for all that is not about the queue."""
    app.conf.task_always_eager = True
    app.conf.task_eager_propagates = True
    yield
    app.conf.task_always_eager = False
    app.conf.task_eager_propagates = False


@pytest.fixture
def story(db, node_ids: tuple[uuid.UUID, uuid.UUID]) -> Story:
    return story_make(node_ids=node_ids)


@pytest.fixture
def node_a(story: Story, sending: None, eager: None, broker: Broker) -> Iterator[FakeNode]:
    """The node of site a, connected and just heard of."""
    with FakeNode.on(broker, story.node_a) as node:
        node.beat()
        yield node


@pytest.fixture
def node_b(story: Story, sending: None, eager: None, broker: Broker) -> Iterator[FakeNode]:
    with FakeNode.on(broker, story.node_b) as node:
        node.beat()
        yield node
