"""The whole way through the queue: a real worker takes tasks from a real Redis in threads of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import kombu.pools
import pytest
from celery.contrib.testing.worker import start_worker
from django.db import connections
from django.utils import timezone

from control_app.models import CommandState, ControlCommand, ControlRequest, Status
from control_app.services import category_curtail
from control_app.tasks import settle_requests
from smartgrid import settings as production
from smartgrid.celery import app
from smartgrid.errors import DispatchUnavailable
from tests.control_app.conftest import dispatcher_end
from tests.factories import ROOT, control_command_make, control_request_make, story_make
from tests.fake_node import FakeNode, obey, stay_silent

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def redis_queue(redis_url: str) -> Iterator[None]:
    """Celery's queue on the real Redis."""
    before = app.conf.broker_url, app.conf.broker_transport_options
    app.conf.broker_transport_options = production.CELERY_BROKER_TRANSPORT_OPTIONS
    queue_point(redis_url)
    yield
    queue_point(before[0])
    app.conf.broker_transport_options = before[1]


def queue_point(url: str) -> None:
    app.conf.broker_url = url
    # Connections to the former one.
    app.amqp._producer_pool = app._pool = None
    kombu.pools.reset()


@pytest.fixture
def story(transactional_db, node_ids):
    return story_make(node_ids=node_ids)


@pytest.fixture
def worker(redis_queue, sending, story) -> Iterator[None]:
    with start_worker(
        app, pool="threads", concurrency=4, queues=["control", "sync"], perform_ping_check=False
    ):
        yield
        dispatcher_end()


def curtail(story, *, value: float = 50):
    try:
        return category_curtail(
            principal=ROOT, site_id=story.site_a.pk, category="inverter", value=value, device_tags=None
        )
    finally:
        connections.close_all()


def test_request_goes_through_queue_worker_and_broker_to_the_node_and_back(story, worker, broker):
    with FakeNode.on(broker, story.node_a) as node:
        node.beat()
        assert curtail(story).status is Status.SUCCESS
        assert node.commands.get(timeout=1).values == {"SMA_STP60_01": 50}


def test_silent_node_does_not_delay_another(story, worker, broker, settings):
    settings.SGM_REQUEST_DEADLINE_S = 60
    with (
        FakeNode.on(broker, story.node_a, behaviour=stay_silent) as silent,
        FakeNode.on(broker, story.node_b) as live,
    ):
        silent.beat()
        live.beat()
        waiting = [threading.Thread(target=curtail, args=(story,)) for _ in range(8)]
        for thread in waiting:
            thread.start()
        unanswered = [silent.commands.get(timeout=30) for _ in waiting]
        result = category_curtail(
            principal=ROOT, site_id=story.site_b.pk, category="inverter", value=50, device_tags=None
        )
        still_waiting = sum(thread.is_alive() for thread in waiting)
        for command in unanswered:
            obey(silent, command)
        for thread in waiting:
            thread.join(30)
    assert result.status is Status.SUCCESS
    assert still_waiting == 8


def test_task_that_waited_in_redis_beyond_its_deadline_writes_nothing(
    story, redis_queue, sending, broker, settings
):
    settings.SGM_REQUEST_DEADLINE_S = 0.5
    with FakeNode.on(broker, story.node_a) as node:
        node.beat()
        with pytest.raises(DispatchUnavailable):
            curtail(story)
        # The worker was away and comes back: what it finds is too old. The second request is alive.
        with start_worker(app, pool="threads", concurrency=2, queues=["control"], perform_ping_check=False):
            settings.SGM_REQUEST_DEADLINE_S = 8
            node.beat()
            assert curtail(story, value=20).status is Status.SUCCESS
            dispatcher_end()
        assert node.commands.get(timeout=1).values == {"SMA_STP60_01": 20}
        assert node.commands.empty()
    assert list(ControlCommand.objects.order_by("sequence").values_list("state", flat=True)) == [
        CommandState.NOT_SENT,
        CommandState.DONE,
    ]


def test_queue_that_does_not_answer_is_503_and_nothing_was_sent(
    story, redis_queue, sending, broker, settings
):
    queue_point("redis://127.0.0.1:1/0")
    began = timezone.now()
    with FakeNode.on(broker, story.node_a) as node:
        node.beat()
        with pytest.raises(DispatchUnavailable, match="task queue does not answer"):
            curtail(story)
        assert node.commands.empty()
    assert (timezone.now() - began).total_seconds() < settings.SGM_REQUEST_DEADLINE_S / 2
    assert ControlCommand.objects.get().state == CommandState.NOT_SENT


def test_settling_twice_closes_a_lost_request_once(story):
    request = control_request_make(site=story.site_a, deadline_in_s=-60)
    control_command_make(story.device_a, request=request)
    settle_requests()
    settle_requests()
    assert ControlRequest.objects.get().status == Status.FAILED
    assert request.logs.count() == 1
