"""Services for whoever asks, and the choice of tests that touch the database."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from asgiref.sync import SyncToAsync
from django.db import connections
from pytest_django import DjangoDbBlocker

from tests.databases import database_copied, migrated_sqlite
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
SERVICE_FIXTURES = frozenset(
    {
        "redis_server_url",
        "broker",
        "tls_broker",
        "site_broker",
        "postgres_url",
        "running_provider",
        "people_provider",
    }
)
# The only folders below this one whose tests may use Django's database: those run on PostgreSQL too.
DATABASE_FOLDERS = frozenset(
    {
        "api",
        "client",
        "console",
        "control_app",
        "demo",
        "devices_app",
        "events",
        "oidc",
        "schedules_app",
        "sites_app",
        "smartgrid",
        "system",
    }
)
# The folders below this one whose tests claim nothing of the machine's pace: they hold however little of a processor
# they get, and run in the time that the others leave. A file with processes, or with bounds of its own, is no such.
PATIENT_FOLDERS = frozenset(
    {
        "api",
        "architecture",
        "console",
        "control_app",
        "core",
        "devices_app",
        "profiles",
        "schedules_app",
        "simulation",
        "sites_app",
        "wire",
    }
)
# The only ones with tests of the whole system: to look at all the others takes a run of nothing else twenty seconds.
SYSTEM_FOLDERS = frozenset({"browser", "control_app", "devices_app", "system"})
# What takes longest comes first, since whoever takes it last lets the others wait; in seconds on two cores.
# A file that is missing here, or has become shorter, costs some of that time and nothing else.
LONGEST_S = {
    "system/test_description.py": 300,
    "system/test_demo.py": 150,
    "system/test_link_faults.py": 100,
    "system/test_whole_over_tls.py": 90,
    "runtime/test_guard.py": 90,
    "system/test_sgm.py": 80,
    "drivers/test_driver_contract.py": 75,
    "system/test_identity.py": 55,
    "runtime/test_every_profile.py": 50,
    "events/test_streams.py": 45,
    "runtime/test_link.py": 36,
    "runtime/test_lines.py": 35,
    "simulation/test_day.py": 34,
    "events/test_faults.py": 31,
    "smartgrid/test_beat.py": 30,
    "smartgrid/test_statements.py": 30,
    "devices_app/test_provisioning_api.py": 30,
    "sites_app/test_provisioning_api.py": 30,
    "drivers/test_mqtt.py": 22,
    "system/test_hostile_clients.py": 21,
    "runtime/test_web_lines.py": 21,
    "runtime/test_explain.py": 18,
    "runtime/test_probe.py": 17,
    "client/test_commands.py": 17,
    "api/test_malformed.py": 17,
    "simulation/test_machine.py": 16,
    "control_app/test_repeats.py": 15,
    "runtime/test_node.py": 14,
}
HERE = Path(__file__).parent


def pytest_configure() -> None:
    # A shell starts what it leaves in the background with SIGINT ignored, and every process that a test then
    # starts would not hear its Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--only-database",
        action="store_true",
        help="run only tests which use Django's database (once more, on another database)",
    )
    parser.addoption(
        "--patient",
        choices=["only", "not"],
        help="run only tests that hold however slow the machine is, or only the others (PATIENT_FOLDERS)",
    )
    parser.addoption(
        "--every-crash-point",
        action="store_true",
        help="kill a process at every durable step instead of every eighth (tests/runtime/test_crash_points)",
    )
    parser.addoption(
        "--every-seed",
        action="store_true",
        help="meet the closed loop's scenarios over sockets with all seeds and periods of the benchmark"
        " instead of one (tests/runtime/test_loop_sockets)",
    )
    parser.addoption(
        "--every-look",
        action="store_true",
        help="look at the console at two widths and in both themes instead of one (tests/browser)",
    )
    parser.addoption(
        "--write-screenshots",
        action="store_true",
        help="write the pictures that the README shows (tests/browser)",
    )
    parser.addoption(
        "--simulation-steps",
        type=int,
        default=1000,
        help="how many steps the shuffled life of a simulated site takes at least (tests/simulation)",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Not even look at folders where a run has nothing; `_folders_check` sees to it that it has not."""
    if collection_path.parent != HERE or not collection_path.is_dir():
        return None
    folder, patient = collection_path.name, config.getoption("--patient")
    is_left_out = (
        (config.getoption("--only-database") and folder not in DATABASE_FOLDERS)
        or (config.getoption("-m") == "system" and folder not in SYSTEM_FOLDERS)
        or (patient == "only" and folder not in PATIENT_FOLDERS)
        or (patient == "not" and folder in PATIENT_FOLDERS)
    )
    return is_left_out or None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        # Nobody can forget the marker which keeps `make test-quick` free of services.
        if SERVICE_FIXTURES & _fixtures(item):
            item.add_marker("services")
    if config.getoption("--only-database"):
        config.hook.pytest_deselected(items=[item for item in items if not _uses_database(item)])
        items[:] = [item for item in items if _uses_database(item)]
    else:
        _folders_check(items)
    items.sort(key=lambda item: -LONGEST_S.get(_below(item).as_posix(), 0))


def _folders_check(items: list[pytest.Item]) -> None:
    """Nobody can forget to have a test run on PostgreSQL, or with those of the whole system."""
    for item in items:
        folder = _below(item).parts[0]
        if folder not in SYSTEM_FOLDERS and item.get_closest_marker("system") is not None:
            raise pytest.UsageError(
                f"{item.nodeid} is of the whole system: add {folder!r} to SYSTEM_FOLDERS in {__file__}"
            )
        if folder not in DATABASE_FOLDERS and _uses_database(item):
            raise pytest.UsageError(
                f"{item.nodeid} uses the database: add {folder!r} to DATABASE_FOLDERS in {__file__}"
            )


def _below(item: pytest.Item) -> Path:
    """The file of a test, seen from here."""
    return item.path.relative_to(HERE)


def _fixtures(item: pytest.Item) -> frozenset[str]:
    return frozenset(getattr(item, "fixturenames", ()))


def _uses_database(item: pytest.Item) -> bool:
    return item.get_closest_marker("django_db") is not None or bool(DATABASE_FIXTURES & _fixtures(item))


@pytest.fixture(scope="session")
def django_db_keepdb(  # noqa: PLR0917 - pytest passes by name
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    django_db_modify_db_settings: None,
    django_test_environment: None,
    django_db_blocker: DjangoDbBlocker,
    django_db_keepdb: bool,
) -> bool:
    """Whether this process's database is there already: where there are several, the first migrates for all."""
    if django_db_keepdb:
        return True
    with django_db_blocker.unblock():
        database_copied(_shared(request, tmp_path_factory))
    return True


def _shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that all processes of this run have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if hasattr(request.config, "workerinput") else own


@pytest.fixture(scope="session")
def migrated_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, django_db_setup: None
) -> Path | None:
    """A SQLite file with all tables, for copies: to migrate one takes six seconds of a core. None on PostgreSQL."""
    made = migrated_sqlite(_shared(request, tmp_path_factory))
    return made if made is not None and made.exists() else None


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


@pytest.fixture(scope="session")
def database_of_threads(django_db_setup: None) -> Iterator[None]:
    """For tests with threads that use Django's database: a live server's, and those of async tests.

    Ready before a live server asks what the database is, and left by all when it is torn down. The threads of
    a SQLite in memory share a connection. PostgreSQL drops no database that somebody is connected to, and the
    thread in which async tests touch it keeps its connection.
    """
    yield
    SyncToAsync.single_thread_executor.submit(connections.close_all).result(timeout=10)
