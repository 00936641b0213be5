"""PostgreSQL's connections as the pool has them: how they are looked after, and what they keep prepared."""

from __future__ import annotations

import select
from functools import cached_property
from typing import Any

import psycopg
from psycopg.pq import Format, TransactionStatus

_loader = psycopg.adapters.get_loader(psycopg.adapters.types["timestamptz"].oid, Format.TEXT)
assert _loader is not None
# psycopg's own, written in C where it is installed so.
_TIMESTAMPTZ_LOADER = _loader


class PooledConnection(psycopg.Connection[Any]):
    """A connection that knows without asking the server whether it has been cut.

    psycopg_pool sends an empty statement before it lends a connection: a round trip a request. A server
    that went away, or has anything else to say to a connection that rests, has left something to read there,
    and only then it is asked.
    """

    def execute(self, query: Any, params: Any = None, **options: Any) -> psycopg.Cursor[Any]:
        if query == "" and self._rests():
            return self.cursor()
        return super().execute(query, params, **options)

    @cached_property
    def prepared(self) -> KeptCursor:
        """For statements that come again and again, of which any plan is as good for all values."""
        return KeptCursor(self, prepares=True)

    @cached_property
    def unprepared(self) -> KeptCursor:
        """For those which have to be planned by their values."""
        return KeptCursor(self, prepares=False)

    def _rests(self) -> bool:
        if self.info.transaction_status is not TransactionStatus.IDLE:
            return False
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN | select.POLLPRI | select.POLLRDHUP)
        return not poll.poll(0)


class KeptCursor(psycopg.Cursor[Any]):
    """A cursor that is used again, and whose values are sent beside their statement.

    Where it prepares, a statement is parsed and planned once, and only its values are sent from then on. Of
    those that came least lately the server forgets all but a hundred, and each first costs a round trip more.
    """

    def __init__(self, connection: PooledConnection, *, prepares: bool) -> None:
        super().__init__(connection)
        self._prepares = prepares
        # Django has its own, which is written in Python and takes ten times as long; in a session whose time
        # zone is UTC, as settings have it, both read the same.
        self.adapters.register_loader("timestamptz", _TIMESTAMPTZ_LOADER)

    def execute(self, query: Any, params: Any = None, **options: Any) -> KeptCursor:
        try:
            return self._execute(query, params, **options)
        except (psycopg.errors.FeatureNotSupported, psycopg.errors.InvalidSqlStatementName):
            # "cached plan must not change result type": a migration made a column another; or somebody in
            # between (PgBouncer) has forgotten the statement.
            is_idle = self.connection.info.transaction_status is TransactionStatus.IDLE
            if not self._prepares or not is_idle:
                # It is over for a transaction; psycopg forgets all it has prepared as that is rolled back.
                raise
            # psycopg sees this, and begins anew too.
            self._execute("DEALLOCATE ALL", None, prepare=False)
            return self._execute(query, params, **options)

    def _execute(self, query: Any, params: Any, **options: Any) -> KeptCursor:
        # Not for all of the connection: most of Django's statements have their values in their text, and
        # psycopg would count and keep each.
        self.connection.prepare_threshold = 0 if self._prepares else None
        try:
            return super().execute(query, params, **options)
        finally:
            self.connection.prepare_threshold = None
