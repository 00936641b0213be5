"""What waits on disk for central: numbered entries by stream, in order, until they are acknowledged.

`control` is never dropped. `telemetry` is bounded, and drops its oldest behind one entry that says from when
to when and how many. What the disk does not take waits in memory, in order and bounded too (ADR 0009).

On the wire a batch has the name of a `store` and numbers from 1. Every process writes under a store of its
own: a disk that was put back to an older image holds the numbers that central knows already under the names
of then, and what is written from now on has another name. Neither is lost, nor taken for the other.
"""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass, field

import msgspec

from edge.runtime.database import Database, StoreFailed
from edge.wire.messages import Gap, LogEntry, Stream

# Entries that wait in memory for the disk; beyond them the oldest go.
MEMORY_LIMIT = {Stream.CONTROL: 2000, Stream.TELEMETRY: 100}
# So many rows are deleted or written in one go: more would hold up the event loop.
SLICE = 100
TRIM_SLICE = 10


class _Dated(msgspec.Struct):
    """As much of an entry as tells when it was."""

    at: str
    gap: Gap | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """The oldest entries of a stream, as they lie on the disk: JSON that needs no further encoding.

    They are `first` to `last` of `store`; the row of an entry is its number plus `behind`.
    """

    first: int
    last: int
    entries: list[bytes]
    store: str = ""
    behind: int = 0

    @property
    def last_row(self) -> int:
        return self.behind + self.last

    @property
    def size(self) -> int:
        return sum(map(len, self.entries))


@dataclass(frozen=True, slots=True)
class _Numbering:
    """Rows behind `behind`, up to `until` where another numbering follows, are those of `store`."""

    behind: int
    store: str
    until: int | None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The row up to which central has committed; `is_ahead`: it has more than there ever was on this disk."""

    row: int
    is_ahead: bool


@dataclass(slots=True)
class _Memory:
    """Entries of one stream that the disk has not taken, and what had to go meanwhile."""

    entries: deque[LogEntry] = field(default_factory=deque)
    gap: Gap | None = None

    def __bool__(self) -> bool:
        return bool(self.entries) or self.gap is not None

    def add(self, entry: LogEntry, *, limit: int) -> None:
        self.entries.append(entry)
        while len(self.entries) > limit:
            oldest = self.entries.popleft()
            self.gap = _widened(self.gap, _Dated(oldest.at, oldest.gap))

    def oldest(self, count: int) -> list[LogEntry]:
        head = [] if self.gap is None else [_gap_entry(self.gap)]
        return head + [self.entries[number] for number in range(min(count, len(self.entries)))]

    def written(self, count: int) -> None:
        self.gap = None
        for _ in range(min(count, len(self.entries))):
            self.entries.popleft()


def _widened(gap: Gap | None, dropped: _Dated) -> Gap:
    """The gap with one more entry in it, which may be a gap itself."""
    since, until, count = dropped.at, dropped.at, 1
    if dropped.gap is not None:
        since, until, count = dropped.gap.since, dropped.gap.until, dropped.gap.entries
    if gap is None:
        return Gap(since=since, until=until, entries=count)
    return Gap(since=gap.since, until=until, entries=gap.entries + count)


def _numbered(entry: bytes, number: int) -> bytes:
    """An entry with its number in its store: what was written first of it is the number of its row."""
    return b'{"seq":%d' % number + entry[entry.index(b",") :]


def _gap_entry(gap: Gap) -> LogEntry:
    return LogEntry(seq=0, at=gap.since, kind="gap", gap=gap)


class Outbox:
    """The streams of one node."""

    def __init__(self, db: Database) -> None:
        self._db = db
        # Under this name go the entries that this process writes.
        self.store_id = uuid.uuid4().hex
        self._encode = msgspec.json.Encoder().encode
        self._dated = msgspec.json.Decoder(_Dated)
        self._memory = {stream: _Memory() for stream in Stream}
        # Up to here central has them, although the disk may not have let go of them yet.
        self._acknowledged = dict.fromkeys(Stream, 0)
        # The last gap of each stream that central does not know of yet: its number, and what is missing.
        self._gaps: dict[Stream, tuple[int, Gap]] = {}
        total = "SELECT COALESCE(SUM(LENGTH(entry)), 0) FROM outbox WHERE stream = ?"
        self._bytes = int(db.rows(total, [Stream.TELEMETRY])[0][0])
        for stream in Stream:
            for seq, dated, _ in self._oldest(stream, 1):
                if dated.gap is not None:
                    self._gaps[stream] = (seq, dated.gap)

    # --- in ------------------------------------------------------------------------------------------

    def append(self, stream: Stream, entry: LogEntry) -> None:
        """Put an entry at the end of a stream; within a transaction, as a part of it.

        Where the disk does not take it, it waits in memory for `write_waiting`.
        """
        memory = self._memory[stream]
        limit = MEMORY_LIMIT[stream]
        if memory or self._db.is_failing:
            memory.add(entry, limit=limit)
            return
        try:
            with self._db.transaction():
                self._db.if_lost(lambda: memory.add(entry, limit=limit))
                self._insert(stream, [entry])
        except StoreFailed:
            # It is in memory, or will be at the end of the transaction around this one.
            return

    def _insert(self, stream: Stream, entries: list[LogEntry]) -> None:
        key = f"seq:{stream}"
        found = self._db.rows("SELECT value FROM meta WHERE key = ?", [key])
        seq = int(found[0][0]) if found else 0
        if not self._db.rows(
            "SELECT 1 FROM numbering WHERE stream = ? AND store = ?", (stream, self.store_id)
        ):
            self._number_anew(stream, behind=seq)
        size = 0
        rows = []
        for number, entry in enumerate(entries, start=seq + 1):
            encoded = self._encode(msgspec.structs.replace(entry, seq=number))
            rows.append((stream, number, encoded))
            size += len(encoded)
            if entry.gap is not None:
                self._gaps[stream] = (number, entry.gap)
        # Both or neither: an entry whose number was not kept would take the next one's place, and the node
        # would end over it at every start.
        self._db.execute_many("INSERT INTO outbox VALUES (?, ?, ?)", rows)
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, str(seq + len(rows))))
        if stream is Stream.TELEMETRY:
            self._bytes += size
            self._db.if_lost(lambda: self._shrink(size))

    def _shrink(self, size: int) -> None:
        self._bytes -= size

    def write_waiting(self) -> bool:
        """Write a slice of what waits in memory; whether anything is left. `StoreFailed`: all still waits."""
        for stream, memory in self._memory.items():
            entries = memory.oldest(SLICE)
            if entries:
                with self._db.transaction():
                    self._insert(stream, entries)
                memory.written(SLICE)
        return any(self._memory.values())

    # --- out -----------------------------------------------------------------------------------------

    def batch(self, stream: Stream, *, max_entries: int, max_bytes: int, behind: int = 0) -> Batch | None:
        """The oldest entries of one store, or of those behind a row: as many as the bounds allow, and one in
        any case; None where there are none.
        """
        size = 0

        def fits(row: tuple[int, bytes]) -> bool:
            nonlocal size
            is_first = size == 0
            size += len(row[1])
            return is_first or size <= max_bytes

        rows = self._db.rows_while(
            "SELECT seq, entry FROM outbox WHERE stream = ? AND seq > ? ORDER BY seq LIMIT ?",
            (stream, max(behind, self._acknowledged[stream]), max_entries),
            fits,
        )
        if not rows:
            return None
        numbering = self._numbering(stream, rows[0][0])
        entries = []
        for row, entry in rows:
            if numbering.until is not None and row > numbering.until:
                break
            entries.append(_numbered(entry, row - numbering.behind))
        first = rows[0][0] - numbering.behind
        return Batch(
            first, rows[len(entries) - 1][0] - numbering.behind, entries, numbering.store, numbering.behind
        )

    def _number_anew(self, stream: Stream, *, behind: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO numbering VALUES (?, ?, ?)", (stream, behind, self.store_id))

    def _numbering(self, stream: Stream, row: int) -> _Numbering:
        """How the entry in this row is numbered."""
        before = (
            "SELECT behind, store FROM numbering WHERE stream = ? AND behind < ? ORDER BY behind DESC LIMIT 1"
        )
        found = self._db.rows(before, (stream, row))
        behind, store = found[0] if found else (0, self._first_store())
        after = "SELECT MIN(behind) FROM numbering WHERE stream = ? AND behind >= ?"
        return _Numbering(behind, store, self._db.rows(after, (stream, row))[0][0])

    def _first_store(self) -> str:
        """The name of entries from before numberings were told apart."""
        rows = self._db.rows("SELECT value FROM meta WHERE key = 'store_id'")
        return str(rows[0][0]) if rows else ""

    def find(self, stream: Stream, *, store: str, last: int) -> Acknowledged | None:
        """What an acknowledgement is about; None where this disk knows no such store."""
        found = self._db.rows("SELECT behind FROM numbering WHERE stream = ? AND store = ?", (stream, store))
        if not found and (not store or store != self._first_store()):
            return None
        behind = int(found[0][0]) if found else 0
        until = self._numbering(stream, behind + 1).until
        row = behind + last
        return Acknowledged(row if until is None else min(row, until), until is not None and row > until)

    def begin_anew(self) -> None:
        """Number all that is not acknowledged, and what comes, from 1 under the name of another store.

        Entries of former processes keep their names and numbers. `StoreFailed`: nothing has changed.
        """
        earlier, self.store_id = self.store_id, uuid.uuid4().hex
        try:
            with self._db.transaction():
                for stream in Stream:
                    own = self._db.rows(
                        "SELECT behind FROM numbering WHERE stream = ? AND store = ?", (stream, earlier)
                    )
                    if own:
                        self._number_anew(stream, behind=max(self._acknowledged[stream], int(own[0][0])))
        except StoreFailed:
            self.store_id = earlier
            raise

    def is_empty(self, stream: Stream) -> bool:
        """Whether nothing of this stream lies on the disk."""
        return not self._db.rows(
            "SELECT 1 FROM outbox WHERE stream = ? AND seq > ? LIMIT 1", (stream, self._acknowledged[stream])
        )

    def acknowledged(self, stream: Stream, *, last: int) -> bool:
        """Central has committed everything up to `last`: delete a slice of it; whether some is left.

        It is not offered again, even where the disk does not let go of it (`StoreFailed`).
        """
        self._acknowledged[stream] = max(self._acknowledged[stream], last)
        gap = self._gaps.get(stream)
        if gap is not None and gap[0] <= last:
            del self._gaps[stream]
        rows = self._db.rows(
            "SELECT seq, LENGTH(entry) FROM outbox WHERE stream = ? AND seq <= ? ORDER BY seq LIMIT ?",
            (stream, self._acknowledged[stream], SLICE),
        )
        if rows:
            with self._db.transaction():
                self._db.execute("DELETE FROM outbox WHERE stream = ? AND seq <= ?", (stream, rows[-1][0]))
                # And the numberings of which nothing is left, save the one in use.
                self._db.execute(
                    "DELETE FROM numbering WHERE stream = ?1 AND behind <"
                    " (SELECT MAX(behind) FROM numbering WHERE stream = ?1 AND behind <= ?2)",
                    (stream, rows[-1][0]),
                )
        if stream is Stream.TELEMETRY:
            self._bytes -= sum(size for _, size in rows)
        return len(rows) == SLICE

    # --- bounds --------------------------------------------------------------------------------------

    def trim_telemetry(self, *, max_bytes: int, before: str | None) -> bool:
        """Drop a slice of the oldest telemetry that is too much, or older than `before` (UTC, as the wire
        writes it); whether there may be more to drop.
        """
        rows = self._oldest(Stream.TELEMETRY, TRIM_SLICE)
        size, gap = 0, None
        dropped = 0
        for _, dated, length in rows:
            moment = dated.at if dated.gap is None else dated.gap.until
            if self._bytes - size <= max_bytes and (before is None or moment >= before):
                break
            dropped += 1
            size += length
            gap = _widened(gap, dated)
        if gap is None or (dropped == 1 and rows[0][1].gap is not None):
            # Nothing to drop but what tells of drops.
            return False
        last = rows[dropped - 1][0]
        encoded = self._encode(msgspec.structs.replace(_gap_entry(gap), seq=last))
        with self._db.transaction():
            self._db.execute("DELETE FROM outbox WHERE stream = ? AND seq <= ?", (Stream.TELEMETRY, last))
            self._db.execute("INSERT INTO outbox VALUES (?, ?, ?)", (Stream.TELEMETRY, last, encoded))
        self._bytes += len(encoded) - size
        self._gaps[Stream.TELEMETRY] = (last, gap)
        return dropped == len(rows)

    def _oldest(self, stream: Stream, count: int) -> list[tuple[int, _Dated, int]]:
        rows = self._db.rows(
            "SELECT seq, entry FROM outbox WHERE stream = ? AND seq > ? ORDER BY seq LIMIT ?",
            (stream, self._acknowledged[stream], count),
        )
        return [(seq, self._dated.decode(entry), len(entry)) for seq, entry in rows]

    @property
    def missing(self) -> dict[Stream, Gap]:
        """What had to be dropped of each stream, for as long as central has not been told."""
        told = {stream: gap for stream, (_, gap) in self._gaps.items()}
        return told | {
            stream: memory.gap for stream, memory in self._memory.items() if memory.gap is not None
        }
