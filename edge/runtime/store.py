"""What a node keeps on disk, so that a restart forgets nothing it promised.

SQLite in WAL mode with synchronous=NORMAL: a killed process loses nothing that was committed. A power cut may
lose the last commits, and needs no more: it is a reboot, which drops every hold anyway (ADR 0004). Documents
are files of their own, written temp, fsync, rename.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog

from edge.core.arbitration import Lapse, Retirement
from edge.core.commands import Hold, Order
from edge.core.wear import EMPTY_LEDGER, Ledger
from edge.wire import codec
from edge.wire.codec import WireError
from edge.wire.messages import DeviceConfig, Document, LogEntry, Manifest, Message, SiteConfig

log = structlog.get_logger()

M = TypeVar("M", bound=Message)

REMEMBER_COMMANDS = timedelta(hours=24)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS device (tag TEXT PRIMARY KEY, kept BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leaving (key TEXT PRIMARY KEY, leaving BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS command (id TEXT PRIMARY KEY, at TEXT NOT NULL, answer BLOB) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS command_at ON command (at);
CREATE TABLE IF NOT EXISTS outbox (
    stream TEXT NOT NULL, seq INTEGER NOT NULL, entry BLOB NOT NULL, PRIMARY KEY (stream, seq)
) WITHOUT ROWID;
"""


class Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """What of a device's state must survive a restart; a hold's end counts on the clock of `boot`."""

    boot: str = ""
    hold: Hold | None = None
    last_order: Order = (0, 0)
    lapse: Lapse | None = None
    asked: float | None = None
    confirmed: float | None = None
    ledger: Ledger = EMPTY_LEDGER
    retirement: Retirement | None = None


class Leaving(msgspec.Struct, frozen=True):
    """A device that left the configuration: all that is needed to reach it."""

    device: DeviceConfig
    site: SiteConfig
    profile: dict[str, Any]


class Store:
    """One node's state directory. Not for two processes at once: the bus lock decides who may write it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._documents = directory / "documents"
        self._documents.mkdir(exist_ok=True)
        self._db = _open(directory / "node.sqlite3")
        self.store_id = self._meta("store_id") or self._set_meta("store_id", uuid.uuid4().hex)
        self._encode = msgspec.json.Encoder().encode
        self._kept = msgspec.json.Decoder(Kept)
        self._leaving = msgspec.json.Decoder(Leaving)
        self._entry = msgspec.json.Decoder(LogEntry)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Within another one it is part of that."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _meta(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def _set_meta(self, key: str, value: str) -> str:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
        return value

    # --- devices ------------------------------------------------------------------------------------

    def devices(self) -> dict[str, Kept]:
        found = {}
        for tag, kept in self._db.execute("SELECT tag, kept FROM device"):
            try:
                found[tag] = self._kept.decode(kept)
            except msgspec.DecodeError as error:
                # One row that cannot be read must not keep the node from its other devices.
                log.error("kept state of a device cannot be read", device=tag, error=str(error))  # noqa: TRY400
        return found

    def keep(self, devices: Iterable[tuple[str, Kept]]) -> None:
        with self.transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO device VALUES (?, ?)",
                [(tag, self._encode(kept)) for tag, kept in devices],
            )

    def forget_device(self, tag: str) -> None:
        self._db.execute("DELETE FROM device WHERE tag = ?", (tag,))

    def rename_device(self, key: str, new: str) -> None:
        self._db.execute("UPDATE OR REPLACE device SET tag = ? WHERE tag = ?", (new, key))

    def leaving(self) -> dict[str, Leaving]:
        """Devices that left the configuration and still hold something of ours."""
        found = {}
        for key, leaving in self._db.execute("SELECT key, leaving FROM leaving"):
            try:
                found[key] = self._leaving.decode(leaving)
            except msgspec.DecodeError as error:
                log.error("a leaving device cannot be read", device=key, error=str(error))  # noqa: TRY400
        return found

    def keep_leaving(self, key: str, leaving: Leaving) -> None:
        self._db.execute("INSERT OR REPLACE INTO leaving VALUES (?, ?)", (key, self._encode(leaving)))

    def forget_leaving(self, key: str) -> None:
        self._db.execute("DELETE FROM leaving WHERE key = ?", (key,))

    # --- commands -----------------------------------------------------------------------------------

    def answer_to(self, command_id: str) -> tuple[bool, bytes | None]:
        """Whether this command is known, and its answer so far."""
        row = self._db.execute("SELECT answer FROM command WHERE id = ?", (command_id,)).fetchone()
        return (False, None) if row is None else (True, row[0])

    def remember(self, command_id: str, *, at: datetime, answer: bytes) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO command VALUES (?, ?, ?)", (command_id, at.isoformat(), answer)
        )

    def forget_old_commands(self, now: datetime) -> None:
        self._db.execute("DELETE FROM command WHERE at < ?", ((now - REMEMBER_COMMANDS).isoformat(),))

    # --- outbox -------------------------------------------------------------------------------------

    def append(self, stream: str, entry: LogEntry) -> int:
        """Put an entry at the end of a stream, numbered without gaps; its number."""
        key = f"seq:{stream}"
        # Both or neither: an entry whose number was not kept would take the next one's place, and the node
        # would end over it at every start.
        with self.transaction():
            seq = int(self._meta(key) or 0) + 1
            entry = msgspec.structs.replace(entry, seq=seq)
            self._db.execute("INSERT INTO outbox VALUES (?, ?, ?)", (stream, seq, self._encode(entry)))
            self._set_meta(key, str(seq))
        return seq

    def waiting(self, stream: str, *, limit: int, max_bytes: int) -> list[LogEntry]:
        """The oldest entries in order: as many as `limit` and `max_bytes` allow, and one in any case."""
        rows = self._db.execute(
            "SELECT entry FROM outbox WHERE stream = ? ORDER BY seq LIMIT ?", (stream, limit)
        )
        entries: list[LogEntry] = []
        size = 0
        for (entry,) in rows:
            size += len(entry)
            if entries and size > max_bytes:
                break
            entries.append(self._entry.decode(entry))
        return entries

    def acknowledged(self, stream: str, *, last: int) -> None:
        """Central has committed everything up to `last`."""
        self._db.execute("DELETE FROM outbox WHERE stream = ? AND seq <= ?", (stream, last))

    # --- documents ----------------------------------------------------------------------------------

    def manifest(self) -> Manifest | None:
        return _read(self.directory / "manifest.json", Manifest)

    def keep_manifest(self, manifest: Manifest) -> None:
        _replace(self.directory / "manifest.json", msgspec.json.encode(manifest))

    def documents(self) -> dict[str, Document]:
        found = {}
        for path in self._documents.glob("*.json"):
            doc = _read(path, Document)
            if doc is not None:
                found[path.stem.replace("~", "/")] = doc
        return found

    def keep_document(self, name: str, doc: Document) -> None:
        _replace(self._document_path(name), msgspec.json.encode(doc))

    def drop_document(self, name: str) -> None:
        self._document_path(name).unlink(missing_ok=True)

    def _document_path(self, name: str) -> Path:
        return self._documents / f"{name.replace('/', '~')}.json"


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
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


def _read(path: Path, kind: type[M]) -> M | None:
    """What a file says; None where it is not there, or damaged: the broker will bring it again."""
    try:
        return codec.decode(kind, path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, WireError) as error:
        log.error("file cannot be read", path=str(path), error=str(error))  # noqa: TRY400
        return None


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, also across a power cut."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)  # noqa: PTH104 - the atomic step deserves its plain name
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
