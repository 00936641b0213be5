"""A Redis of the test's own that events are written to, and servers to hear them from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec
import pytest
from asgiref.sync import SyncToAsync
from django.db import connections

from control_app.api.serializers import ControlLogOutput
from control_app.models import ControlLog
from smartgrid import events, live
from smartgrid.api.renderers import json_bytes
from smartgrid.demo.state import free_port
from tests.events.listening import (
    EventsThread,
    Listen,
    central_environment,
    events_thread,
    listeners,
    web_process,
)
from tests.inboxes import database_url
from tests.smartgrid.token_issuer import AUDIENCE, TokenIssuer, token_issuer_running

Told = tuple[str, str, dict[str, Any]]


def as_listed(line: ControlLog) -> dict[str, Any]:
    """A line of the control log as `GET /v1/logs` answers it."""
    return cast("dict[str, Any]", msgspec.json.decode(json_bytes(ControlLogOutput(line).data)))


@pytest.fixture
def stream(settings, redis_url: str) -> Iterator[Callable[[], list[Told]]]:
    """An empty stream that services write to; what it tells: kind, site and body of each entry."""
    settings.SGM_REDIS_URL = redis_url
    settings.SGM_EVENTS_KEPT = 1000
    live.client.cache_clear()

    def told() -> list[Told]:
        assert events.events_flush(within_s=5)
        rows = cast("list[tuple[str, dict[str, str]]]", live.client().xrange(events.STREAM))
        return [
            (fields[events.KIND], fields[events.SITE], msgspec.json.decode(fields[events.BODY]))
            for _, fields in rows
        ]

    yield told
    events.events_flush(within_s=5)
    live.client().close()
    live.client.cache_clear()


@pytest.fixture(scope="module")
def module_issuer() -> Iterator[TokenIssuer]:
    with token_issuer_running() as running:
        yield running


def issuers_of(issuer: TokenIssuer) -> list[dict[str, str]]:
    return [{"issuer": issuer.name, "audience": AUDIENCE, "jwks_url": issuer.url}]


@pytest.fixture
def issuer(settings, module_issuer: TokenIssuer) -> TokenIssuer:
    settings.SGM_ISSUERS = issuers_of(module_issuer)
    return module_issuer


@pytest.fixture
def listen(issuer: TokenIssuer) -> Iterator[Listen]:
    """Opens streams with a management token and a good bearer; see `listening.listeners`."""

    def headers(token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {issuer.token()}", "X-Management-Token": token}

    with listeners(headers) as listen:
        yield listen


@pytest.fixture(scope="module")
def events_port() -> int:
    return free_port()


@pytest.fixture
def served(stream, transactional_db, issuer: TokenIssuer, events_port: int) -> Iterator[EventsThread]:
    """The events' application with short times, on this test's database and stream."""
    with events_thread(port=events_port) as running:
        yield running
    SyncToAsync.single_thread_executor.submit(connections.close_all).result(timeout=10)


@pytest.fixture(scope="module")
def web(
    django_db_setup, tmp_path_factory, redis_server_url: str, module_issuer: TokenIssuer, events_port: int
) -> Iterator[str]:
    """A real web process that passes on what is served at the events' port."""
    env = central_environment(
        redis_url=redis_server_url,
        database_url=database_url(),
        issuers=json.dumps(issuers_of(module_issuer)),
        SGM_EVENTS_URL=f"http://127.0.0.1:{events_port}",
        SGM_EVENTS_RELAYS="8",
    )
    with web_process(env=env, port=free_port(), log=tmp_path_factory.mktemp("web") / "log") as url:
        yield url


@pytest.fixture(params=["direct", "relay"])
def address(request, served: EventsThread) -> str:
    """Where to listen: at the events' process itself, and at web."""
    return served.url if request.param == "direct" else request.getfixturevalue("web")
