"""Django's database where threads other than the test's use it: a live server's, and those of async tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from asgiref.sync import SyncToAsync
from django.db import connections


@pytest.fixture(scope="session")
def database_of_threads(django_db_setup: None) -> Iterator[None]:
    """Ready before a live server asks what the database is, and left by all when it is torn down.

    The threads of a SQLite in memory share a connection. PostgreSQL drops no database that somebody is
    connected to, and the thread in which async tests touch it keeps its connection.
    """
    yield
    SyncToAsync.single_thread_executor.submit(connections.close_all).result(timeout=10)
