"""What a node keeps on disk, so that a restart forgets nothing it promised.

SQLite in WAL mode with synchronous=NORMAL: a killed process loses nothing that was committed. A power cut may
lose the last commits, and needs no more: it is a reboot, which drops every hold anyway (ADR 0004). Documents
are files of their own, written temp, fsync, rename.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog

from edge.core.arbitration import Lapse, Retirement
from edge.core.clock import Reference
from edge.core.commands import Hold, Order
from edge.core.identification import Finding
from edge.core.loop.terms import Dynamics
from edge.core.traces import Traces
from edge.core.wear import EMPTY_LEDGER, Ledger
from edge.runtime.database import Database, StoreFailed
from edge.runtime.outbox import SLICE, Outbox
from edge.wire import codec
from edge.wire.codec import WireError
from edge.wire.messages import DeviceConfig, Document, LogEntry, Manifest, Message, SiteConfig, Stream

log = structlog.get_logger()

M = TypeVar("M", bound=Message)

# Before the name of a file that is not whole yet.
UNFINISHED = ".new-"
REMEMBER_COMMANDS = timedelta(hours=24)


class Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """What of a device's state must survive a restart; a hold's end counts on the clock of `boot`."""

    boot: str = ""
    hold: Hold | None = None
    last_order: Order = (0, 0)
    lapse: Lapse | None = None
    asked: Traces = ()
    confirmed: float | None = None
    ledger: Ledger = EMPTY_LEDGER
    retirement: Retirement | None = None


class Leaving(msgspec.Struct, frozen=True):
    """A device that left the configuration: all that is needed to reach it."""

    device: DeviceConfig
    site: SiteConfig
    profile: dict[str, Any]


class Learned(msgspec.Struct, frozen=True):
    """How a device was found to follow its commands, while its nominal power was this."""

    nominal_kw: float
    dynamics: Dynamics
    findings: tuple[Finding, ...] = ()


class KeptClock(msgspec.Struct, frozen=True):
    """What confirmed the clock of this boot."""

    boot: str
    reference: Reference


class Store:
    """One node's state directory. Not for two processes at once: the bus lock decides who may write it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._documents = directory / "documents"
        self._documents.mkdir(exist_ok=True)
        for folder in (directory, self._documents):
            # What a process left that ended while it wrote a file.
            for leftover in folder.glob(f"{UNFINISHED}*"):
                leftover.unlink(missing_ok=True)
        self._db = Database(directory / "node.sqlite3")
        self.outbox = Outbox(self._db)
        self._encode = msgspec.json.Encoder().encode
        self._kept = msgspec.json.Decoder(Kept)
        self._leaving = msgspec.json.Decoder(Leaving)
        self._learned = msgspec.json.Decoder(Learned)
        self._kept_clock = msgspec.json.Decoder(KeptClock)
        self._entry = msgspec.json.Decoder(LogEntry)

    def close(self) -> None:
        self._db.close()

    @property
    def store_id(self) -> str:
        """The name under which central knows the entries that this process writes."""
        return self.outbox.store_id

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing, `StoreFailed` where it is nothing. Within another one it is part of that."""
        return self._db.transaction()

    def if_lost(self, put_back: Callable[[], None]) -> None:
        """Have this called where the present transaction comes to nothing for the disk's sake."""
        self._db.if_lost(put_back)

    @property
    def failure(self) -> str | None:
        """Why the disk takes nothing; None while it does. A promise made meanwhile would not be kept."""
        return self._db.failure

    def try_again(self) -> bool:
        """After a failure: write what waits in memory, if there is room again; whether all is written."""
        if not self._db.try_again():
            return False
        try:
            return not self.outbox.write_waiting()
        except StoreFailed:
            return False

    def _meta(self, key: str) -> str | None:
        rows = self._db.rows("SELECT value FROM meta WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else None

    def _set_meta(self, key: str, value: str) -> str:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
        return value

    # --- devices ------------------------------------------------------------------------------------

    def devices(self) -> dict[str, Kept]:
        found = {}
        for tag, kept in self._db.rows("SELECT tag, kept FROM device"):
            try:
                found[tag] = self._kept.decode(kept)
            except msgspec.DecodeError as error:
                # One row that cannot be read must not keep the node from its other devices.
                log.error("kept state of a device cannot be read", device=tag, error=str(error))  # noqa: TRY400
        return found

    def device(self, tag: str) -> Kept | None:
        """What is kept of one device; None where it is nothing, or cannot be read."""
        for (kept,) in self._db.rows("SELECT kept FROM device WHERE tag = ?", (tag,)):
            try:
                return self._kept.decode(kept)
            except msgspec.DecodeError as error:
                log.error("kept state of a device cannot be read", device=tag, error=str(error))  # noqa: TRY400
        return None

    def keep(self, devices: Iterable[tuple[str, Kept]]) -> None:
        """Keep these; `StoreFailed` where the disk takes nothing."""
        with self.transaction():
            self._db.execute_many(
                "INSERT OR REPLACE INTO device VALUES (?, ?)",
                [(tag, self._encode(kept)) for tag, kept in devices],
            )

    def forget_device(self, tag: str) -> None:
        # Where the disk takes nothing the row stays behind: a device that comes back by this name finds a
        # hold of former times, which has ended or soon will.
        with suppress(StoreFailed):
            self._db.execute("DELETE FROM device WHERE tag = ?", (tag,))

    # --- what was learned ---------------------------------------------------------------------------

    def learned(self) -> dict[str, Learned]:
        """How devices were found to follow; what cannot be read is forgotten, and learned anew."""
        found: dict[str, Learned] = {}
        try:
            rows = self._db.rows("SELECT tag, kept FROM learned")
        except StoreFailed:
            return found
        for tag, kept in rows:
            try:
                found[tag] = self._learned.decode(kept)
            except msgspec.DecodeError as error:
                log.error("what was learned of a device cannot be read", device=tag, error=str(error))  # noqa: TRY400
                self.forget_learned(tag)
        return found

    def keep_learned(self, tag: str, learned: Learned) -> None:
        # Where the disk takes nothing it is learned again after the next start.
        with suppress(StoreFailed):
            self._db.execute("INSERT OR REPLACE INTO learned VALUES (?, ?)", (tag, self._encode(learned)))

    def forget_learned(self, tag: str) -> None:
        with suppress(StoreFailed):
            self._db.execute("DELETE FROM learned WHERE tag = ?", (tag,))

    # --- clock --------------------------------------------------------------------------------------

    def clock(self, *, boot: str) -> Reference | None:
        """What last confirmed the clock since this boot."""
        text = self._meta("clock")
        try:
            kept = None if text is None else self._kept_clock.decode(text)
        except msgspec.DecodeError as error:
            log.error("kept state of the clock cannot be read", error=str(error))  # noqa: TRY400
            return None
        return kept.reference if kept is not None and kept.boot == boot else None

    def keep_clock(self, reference: Reference, *, boot: str) -> None:
        self._set_meta("clock", self._encode(KeptClock(boot, reference)).decode())

    def rename_device(self, key: str, new: str) -> None:
        self._db.execute("UPDATE OR REPLACE device SET tag = ? WHERE tag = ?", (new, key))

    def leaving(self) -> dict[str, Leaving]:
        """Devices that go on by an earlier configuration: they left it, or cannot be used by the new one."""
        found = {}
        for key, leaving in self._db.rows("SELECT key, leaving FROM leaving"):
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
        rows = self._db.rows("SELECT answer FROM command WHERE id = ?", (command_id,))
        return (True, rows[0][0]) if rows else (False, None)

    def remember(
        self, command_id: str, *, at: datetime, answer: bytes, unsettled: LogEntry | None = None
    ) -> None:
        """Remember a command and its answer so far.

        `unsettled`: what is to be logged of it if this process ends before its outcome is known; None: it is
        known now.
        """
        with self.transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO command VALUES (?, ?, ?)", (command_id, at.isoformat(), answer)
            )
            if unsettled is None:
                self._db.execute("DELETE FROM unsettled WHERE id = ?", (command_id,))
            else:
                row = (command_id, self._encode(unsettled))
                self._db.execute("INSERT OR REPLACE INTO unsettled VALUES (?, ?)", row)

    def unsettled(self) -> list[LogEntry]:
        """The commands that a process accepted and ended before it knew what became of them, in order."""
        entries = [self._entry.decode(entry) for (entry,) in self._db.rows("SELECT entry FROM unsettled")]
        return sorted(entries, key=lambda entry: entry.sequence or 0)

    def forget_old_commands(self, now: datetime) -> bool:
        """Forget a slice of the commands older than a day; whether there may be more."""
        horizon = (now - REMEMBER_COMMANDS).isoformat()
        forgotten = self._db.execute(
            "DELETE FROM command WHERE id IN (SELECT id FROM command WHERE at < ? ORDER BY at LIMIT ?)",
            (horizon, SLICE),
        )
        return forgotten == SLICE

    # --- outbox -------------------------------------------------------------------------------------

    def append(self, stream: Stream, entry: LogEntry) -> None:
        """Put an entry at the end of a stream; where the disk does not take it, it waits in memory."""
        self.outbox.append(stream, entry)

    def waiting(self, stream: Stream, *, limit: int, max_bytes: int) -> list[LogEntry]:
        """The oldest entries on disk in order: as many as `limit` and `max_bytes` allow, one of each store in
        any case.
        """
        entries: list[LogEntry] = []
        batch = self.outbox.batch(stream, max_entries=limit, max_bytes=max_bytes)
        while batch is not None:
            entries += [self._entry.decode(entry) for entry in batch.entries]
            limit, max_bytes = limit - len(batch.entries), max_bytes - batch.size
            if limit <= 0 or max_bytes <= 0:
                break
            following = self.outbox.batch(
                stream, max_entries=limit, max_bytes=max_bytes, behind=batch.last_row
            )
            if following is not None and following.store == batch.store:
                # Cut off by the bounds.
                break
            batch = following
        return entries

    # --- documents ----------------------------------------------------------------------------------

    def manifest(self) -> Manifest | None:
        return _read(self.directory / "manifest.json", Manifest)

    def keep_manifest(self, manifest: Manifest) -> None:
        replace_file(self.directory / "manifest.json", msgspec.json.encode(manifest))

    def documents(self) -> dict[str, Document]:
        found = {}
        for path in self._documents.glob("*.json"):
            doc = _read(path, Document)
            if doc is not None:
                found[path.stem.replace("~", "/")] = doc
        return found

    def keep_document(self, name: str, doc: Document) -> None:
        replace_file(self._document_path(name), msgspec.json.encode(doc))

    def drop_document(self, name: str) -> None:
        try:
            self._document_path(name).unlink(missing_ok=True)
        except OSError as error:
            # The manifest does not list it: the next start removes it.
            log.error("document cannot be removed", document=name, error=str(error))  # noqa: TRY400

    def _document_path(self, name: str) -> Path:
        return self._documents / f"{name.replace('/', '~')}.json"


def _read(path: Path, kind: type[M]) -> M | None:
    """What a file says; None where it is not there, or damaged: the broker will bring it again."""
    try:
        return codec.decode(kind, path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, WireError) as error:
        log.error("file cannot be read", path=str(path), error=str(error))  # noqa: TRY400
        return None


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, also across a power cut."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED)
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
