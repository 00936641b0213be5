"""The queue, and the services behind a publication."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu.simple import SimpleQueue

from smartgrid.celery import app
from tests.control_app.conftest import live_redis, node_ids, sending
from tests.control_app.test_tasks import redis_queue

__all__ = ["live_redis", "node_ids", "redis_queue", "sending"]

Queued = Callable[[], list[tuple[list[Any], dict[str, Any], bool]]]


@pytest.fixture
def queued() -> Iterator[Queued]:
    """Take what was queued since: the arguments of each task, and whether it is to wait before it begins."""
    with (
        app.connection_for_write() as connection,
        contextlib.closing(connection.SimpleQueue("sync")) as queue,
    ):
        queue.clear()
        yield lambda: _drained(queue)
        queue.clear()


def _drained(queue: SimpleQueue) -> list[tuple[list[Any], dict[str, Any], bool]]:
    found = []
    with contextlib.suppress(queue.Empty):
        while True:
            message = queue.get(block=False)
            arguments, keywords, _ = message.payload
            found.append((arguments, keywords, message.headers.get("eta") is not None))
            message.ack()
    return found
