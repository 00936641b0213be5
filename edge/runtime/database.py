"""The node's SQLite file: transactions, and one error for a disk that takes nothing.

WAL mode with synchronous=NORMAL (ADR 0004). A disk that is full, read-only or broken does not end the node
(ADR 0009): what was asked raises `StoreFailed`, and the database counts as failing until `try_again` finds
that there is room.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger()

# Room for this much shows that the disk takes more than the overwriting of what is there.
PROBE_BYTES = 64 * 1024

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS device (tag TEXT PRIMARY KEY, kept BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leaving (key TEXT PRIMARY KEY, leaving BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS command (id TEXT PRIMARY KEY, at TEXT NOT NULL, answer BLOB) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS command_at ON command (at);
CREATE TABLE IF NOT EXISTS unsettled (id TEXT PRIMARY KEY, entry BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
    stream TEXT NOT NULL, seq INTEGER NOT NULL, entry BLOB NOT NULL, PRIMARY KEY (stream, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS numbering (
    stream TEXT NOT NULL, behind INTEGER NOT NULL, store TEXT NOT NULL, PRIMARY KEY (stream, behind)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS learned (tag TEXT PRIMARY KEY, kept BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS probe (room BLOB NOT NULL);
"""

Row = tuple[Any, ...]


class StoreFailed(Exception):  # noqa: N818 - states the fault
    """The disk did not take it, or could not be read; nothing of the transaction is kept."""


class Database:
    """One connection, used by one task at a time."""

    def __init__(self, path: Path) -> None:
        """Open the file, making it where it is missing; `StoreFailed` where the disk lets nobody do that."""
        self._depth = 0
        self._broken: str | None = None
        self._if_lost: list[Callable[[], None]] = []
        self.failure: str | None = None
        try:
            self._db = _open(path)
        except sqlite3.OperationalError as error:
            raise StoreFailed(f"{path} cannot be opened: {error}") from error

    def close(self) -> None:
        self._db.close()

    @property
    def is_failing(self) -> bool:
        """A write failed, and none has shown since then that there is room again."""
        return self.failure is not None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; `StoreFailed` where it is nothing. Within another one it is part of that.

        After a failure inside, the whole is lost, whoever caught the error: its end raises it again.
        """
        if self._depth:
            yield
            return
        self._broken, self._if_lost = None, []
        self._depth = 1
        try:
            try:
                # What is to be done at a failure is registered inside, so that comes even where this fails.
                with suppress(StoreFailed):
                    self.execute("BEGIN IMMEDIATE")
                yield
                self.execute("COMMIT")
            finally:
                self._depth = 0
                # SQLite has rolled back by itself after some errors.
                if self._db.in_transaction:
                    with suppress(sqlite3.OperationalError):
                        self._db.rollback()
        except StoreFailed:
            for put_back in self._if_lost:
                put_back()
            raise
        finally:
            self._broken, self._if_lost = None, []

    def if_lost(self, put_back: Callable[[], None]) -> None:
        """Have this called where the present transaction fails for the disk's sake."""
        assert self._depth, "outside of a transaction"
        self._if_lost.append(put_back)

    def execute(self, sql: str, parameters: Iterable[object] = ()) -> int:
        """Run a statement; how many rows it changed."""
        with self._translated():
            return self._db.execute(sql, tuple(parameters)).rowcount

    def execute_many(self, sql: str, rows: Iterable[Row]) -> None:
        with self._translated():
            self._db.executemany(sql, rows)

    def rows(self, sql: str, parameters: Iterable[object] = ()) -> list[Row]:
        with self._translated():
            return self._db.execute(sql, tuple(parameters)).fetchall()

    def rows_while(self, sql: str, parameters: Iterable[object], wanted: Callable[[Row], bool]) -> list[Row]:
        """The first rows for as long as they are wanted; those behind them are not read."""
        taken: list[Row] = []
        with self._translated():
            cursor = self._db.execute(sql, tuple(parameters))
            for row in cursor:
                if not wanted(row):
                    break
                taken.append(row)
            cursor.close()
        return taken

    @contextmanager
    def _translated(self) -> Iterator[None]:
        if self._broken is not None:
            raise StoreFailed(self._broken)
        try:
            yield
        except sqlite3.OperationalError as error:
            if self._depth:
                self._broken = str(error)
            self.fail(str(error))
            raise StoreFailed(str(error)) from error

    def fail(self, reason: str) -> None:
        if self.failure is None:
            log.error("the disk takes nothing; new direct requests are refused", error=reason)
        self.failure = reason

    def try_again(self) -> bool:
        """Tell whether there is room again, by using some."""
        assert not self._depth, "within a transaction"
        try:
            self.execute("INSERT INTO probe VALUES (zeroblob(?))", (PROBE_BYTES,))
            self.execute("DELETE FROM probe")
        except StoreFailed:
            return False
        if self.failure is not None:
            log.warning("the disk takes writes again", was=self.failure)
        self.failure = None
        return True


def _open(path: Path) -> sqlite3.Connection:
    """Open the database. A damaged one is put aside: a node without memory is better than no node."""
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise
        log.error("the store is damaged, begun anew", path=str(path), error=str(error))  # noqa: TRY400
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.replace(path.with_name(path.name + ".damaged"))
    return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA busy_timeout=2000")
        db.executescript(SCHEMA)
    except BaseException:
        db.close()
        raise
    return db
