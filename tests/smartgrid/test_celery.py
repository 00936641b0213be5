"""What a web process notices of a Redis which does not take its task."""

from __future__ import annotations

import socket
import time

import pytest
from kombu.connection import Connection
from kombu.exceptions import OperationalError

import smartgrid.settings
from smartgrid.celery import app


@pytest.fixture(params=["refuses", "stays silent"])
def redis_which(request):
    """The address of something which is no Redis: a closed port, or one which accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if request.param == "refuses":
            server.close()
        yield f"redis://127.0.0.1:{port}/0"


def test_task_which_cannot_be_queued_fails_before_its_request_ends(redis_which):
    options = smartgrid.settings.CELERY_BROKER_TRANSPORT_OPTIONS
    began = time.monotonic()
    with (
        Connection(redis_which, transport_options=options) as connection,
        pytest.raises(OperationalError),
    ):
        app.send_task("any", connection=connection, queue="control")
    assert time.monotonic() - began < smartgrid.settings.SGM_REQUEST_DEADLINE_S / 2
