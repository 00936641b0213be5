"""Connections that a pool lends, against a real PostgreSQL."""

from __future__ import annotations

import select
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from smartgrid.database import PooledConnection
from tests.servers import until


@pytest.fixture
def pool(postgres_url: str) -> Iterator[ConnectionPool[PooledConnection]]:
    with ConnectionPool(
        postgres_url,
        connection_class=PooledConnection,
        kwargs={"autocommit": True},
        min_size=1,
        max_size=1,
        check=ConnectionPool.check_connection,
        open=True,
    ) as made:
        yield made


def _number(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def test_connection_that_rests_is_lent_again_without_asking_the_server(pool, postgres_url: str) -> None:
    with pool.connection() as connection:
        first = _number(connection)
    with pool.connection() as connection, psycopg.connect(postgres_url) as other:
        # Its last statement is ours, not the empty one of a check.
        said = other.execute("SELECT query FROM pg_stat_activity WHERE pid = %s", (first,)).fetchone()
        assert said == ("SELECT pg_backend_pid()",)
        assert _number(connection) == first


def test_connection_that_the_server_has_cut_is_replaced_before_it_is_lent(pool, postgres_url: str) -> None:
    with pool.connection() as connection:
        first, file = _number(connection), connection.fileno()
        poll = select.poll()
        poll.register(file, select.POLLIN)
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (first,))
    until(lambda: bool(poll.poll(0)), what="the server did not cut the connection")
    with pool.connection() as connection:
        assert _number(connection) != first


def test_empty_statement_within_a_transaction_is_the_servers_to_judge(pool) -> None:
    with pool.connection() as connection, connection.transaction():
        with pytest.raises(psycopg.errors.DivisionByZero), connection.transaction():
            connection.execute("SELECT 1/0")
        assert connection.execute("").statusmessage is None
        assert _number(connection)


@pytest.fixture
def table(postgres_url: str) -> Iterator[str]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE thing (name varchar(10))")
        connection.execute("INSERT INTO thing VALUES ('one'), ('other')")
        yield "SELECT name FROM thing WHERE name = %s"
        connection.execute("DROP TABLE thing")


def _widen(postgres_url: str) -> None:
    """As a migration does: the column tells another type from now on."""
    with psycopg.connect(postgres_url, autocommit=True) as other:
        row = other.execute(
            "SELECT atttypmod - 4 FROM pg_attribute WHERE attrelid = 'thing'::regclass AND attname = 'name'"
        ).fetchone()
        assert row is not None
        other.execute(f"ALTER TABLE thing ALTER name TYPE varchar({row[0] + 10})")


def test_statement_is_prepared_once_whatever_its_values(pool, table: str) -> None:
    with pool.connection() as connection:
        for name in ("one", "other", "one"):
            assert connection.prepared.execute(table, [name]).fetchall() == [(name,)]
            # What is no such statement is not prepared, however often it comes.
            assert connection.unprepared.execute("SELECT %s", [name]).fetchall() == [(name,)]
            assert connection.execute("SELECT 1").fetchall() == [(1,)]
    with pool.connection() as connection:
        assert connection.prepared.execute(table, ["none"]).fetchall() == []
        (prepared,) = connection.execute("SELECT statement FROM pg_prepared_statements").fetchall()
    assert prepared == (table.replace("%s", "$1"),)


def test_prepared_statement_outlives_a_change_of_its_table(pool, table: str, postgres_url: str) -> None:
    with pool.connection() as connection:
        for _ in range(3):
            assert connection.prepared.execute(table, ["one"]).fetchall() == [("one",)]
            _widen(postgres_url)


def test_statement_that_was_outdated_within_a_transaction_is_prepared_anew_after_it(
    pool, table: str, postgres_url: str
) -> None:
    with pool.connection() as connection:
        connection.prepared.execute(table, ["one"])
        _widen(postgres_url)
        with pytest.raises(psycopg.errors.FeatureNotSupported), connection.transaction():
            connection.prepared.execute(table, ["one"])
        assert connection.prepared.execute(table, ["one"]).fetchall() == [("one",)]
        with connection.transaction():
            assert connection.prepared.execute(table, ["one"]).fetchall() == [("one",)]


def test_statement_that_somebody_else_forgot_is_prepared_anew(pool, table: str) -> None:
    with pool.connection() as connection:
        for _ in range(2):
            assert connection.prepared.execute(table, ["one"]).fetchall() == [("one",)]
            connection.execute("DEALLOCATE ALL")


def test_error_of_a_prepared_statement_is_its_own(pool) -> None:
    with pool.connection() as connection:
        for _ in range(2):
            with pytest.raises(psycopg.errors.DivisionByZero):
                connection.prepared.execute("SELECT 1 / %s::int", [0])
        assert connection.prepared.execute("SELECT 1 / %s::int", [1]).fetchall() == [(1,)]


def test_moments_are_read_as_django_reads_them(pool) -> None:
    moments = [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1890, 5, 4, 3, 2, 1, 100000, tzinfo=UTC),
        datetime(2024, 8, 1, 10, 52, 55, 330076, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ]
    with pool.connection() as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        for at in moments:
            ((found,),) = connection.prepared.execute("SELECT %s::timestamptz", [at]).fetchall()
            # Django promises the very UTC, which is compared by.
            assert found == at
            assert found.tzinfo is UTC
