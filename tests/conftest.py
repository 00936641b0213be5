"""Services for whoever asks, and the choice of tests that touch the database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.servers import (
    Broker,
    DeviceBroker,
    TlsBroker,
    device_broker,
    mosquitto_broker,
    mosquitto_tls_broker,
    postgres_server,
    redis_server,
)

DATABASE_FIXTURES = frozenset({"db", "transactional_db", "django_db_reset_sequences", "live_server"})
SERVICE_FIXTURES = frozenset({"redis_server_url", "broker", "tls_broker", "site_broker", "postgres_url"})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--only-database",
        action="store_true",
        help="run only tests which use Django's database (once more, on another database)",
    )
    parser.addoption(
        "--every-crash-point",
        action="store_true",
        help="kill a process at every durable step instead of every eighth (tests/runtime/test_crash_points)",
    )
    parser.addoption(
        "--simulation-steps",
        type=int,
        default=1000,
        help="how many steps the shuffled life of a simulated site takes at least (tests/simulation)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        # Nobody can forget the marker which keeps `make test-quick` free of services.
        if SERVICE_FIXTURES & _fixtures(item):
            item.add_marker("services")
    if config.getoption("--only-database"):
        chosen = [item for item in items if _uses_database(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def _fixtures(item: pytest.Item) -> frozenset[str]:
    return frozenset(getattr(item, "fixturenames", ()))


def _uses_database(item: pytest.Item) -> bool:
    return item.get_closest_marker("django_db") is not None or bool(DATABASE_FIXTURES & _fixtures(item))


@pytest.fixture(scope="session")
def redis_server_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """The URL of a real Redis, empty at the start of each test."""
    with redis.Redis.from_url(redis_server_url) as client:
        client.flushall()
    return redis_server_url


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A real mosquitto with the product's access list; give every test node UUIDs of its own."""
    with mosquitto_broker() as running:
        yield running


@pytest.fixture(scope="module")
def tls_broker() -> Iterator[TlsBroker]:
    """A real mosquitto with mutual TLS, and its authority; give every test node UUIDs of its own.

    One for each module: mosquitto 2.0.11 may crash some time after it ended a session for another (ADR 0016).
    """
    with mosquitto_tls_broker() as running:
        yield running


@pytest.fixture
def site_broker() -> Iterator[DeviceBroker]:
    """A real mosquitto for devices, the test's own: it may be stopped, started and frozen."""
    with device_broker() as running:
        yield running


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of an empty database on a real PostgreSQL."""
    with postgres_server() as url:
        yield url
