"""The ring of reasons: for 24 hours, why each device was held where it was, and what became of it.

A SQLite file of its own, `reasons.sqlite3`, written by one thread. It is a record, not a promise: nothing
waits for it, it survives the process but perhaps not a power cut (synchronous=OFF), and a disk that is full,
slow or damaged costs reasons and nothing else. Without its disk the ring goes on in memory.

Rows are ordered by boot and boot-time clock, which no correction of the wall clock touches. What the wall
clock showed meanwhile is kept beside them, so that a question asked in wall time finds its moment.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import structlog

from edge.core.arbitration import Decision, DeviceSettings, DeviceState
from edge.core.commands import Source
from edge.core.image import Clock as ClockQuality, ProcessImage
from edge.core.instant import Instant
from edge.core.reasons import reason, sentence
from edge.core.schedule import Schedule, slot_end
from edge.runtime.clock import Clock

log = structlog.get_logger()

T = TypeVar("T")

FILE = "reasons.sqlite3"
KEPT_S = 24 * 3600.0
MAX_ROWS = 200_000
# Without a disk: a tenth of the memory a node may use.
MAX_ROWS_IN_MEMORY = 20_000
# Noted and not yet taken by the writer, whose disk may stand still. The oldest go first.
MAX_WAITING = 20_000
# A value that moves while its reason stays (the loop's output, a ramp) is noted this often.
MOVING_EVERY_S = 10.0
# How often a row says that the process lives although nothing changes, and the ring is cut to its length.
SEEN_EVERY_S = 60.0
# The wall clock counts as stepped where it moved this far against the boot-time clock.
CLOCK_STEP_S = 0.5
# Reasons are put into words in slices with a pause between them, so that the thread never keeps the event
# loop waiting for the interpreter for longer than one slice.
SLICE = 20
PAUSE_S = 0.003
# A node that waits for the bus waits for this too.
CLOSE_WITHIN_S = 1.0
# Questions that wait for the thread at once.
MAX_READING = 8

DECISION = "decision"
OUTCOME = "outcome"
GONE = "gone"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS boot (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);
-- Each process that wrote the ring: from when, and until when it was seen alive.
CREATE TABLE IF NOT EXISTS run (
    n INTEGER PRIMARY KEY, who TEXT NOT NULL, boot INTEGER NOT NULL,
    began_s REAL NOT NULL, began_utc REAL NOT NULL, seen_s REAL NOT NULL, seen_utc REAL NOT NULL,
    ended INTEGER NOT NULL DEFAULT 0
);
-- What the wall clock showed: UTC = boot-time + offset_s from this moment on; step_s where it jumped.
CREATE TABLE IF NOT EXISTS clock (
    n INTEGER PRIMARY KEY, boot INTEGER NOT NULL, boottime_s REAL NOT NULL, offset_s REAL NOT NULL,
    step_s REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS reason (
    n INTEGER PRIMARY KEY, tag TEXT NOT NULL, boot INTEGER NOT NULL, boottime_s REAL NOT NULL,
    utc REAL NOT NULL, kind TEXT NOT NULL, who TEXT NOT NULL, value REAL, source TEXT, wish REAL,
    bounded_by TEXT, request_id TEXT, until_utc REAL, write TEXT, because TEXT, sentence TEXT,
    code TEXT, detail TEXT, readback REAL
);
CREATE INDEX IF NOT EXISTS reason_of ON reason (tag, boot, boottime_s);
-- From when on the ring is whole: everything older may have been cut off.
CREATE TABLE IF NOT EXISTS reach (
    one INTEGER PRIMARY KEY CHECK (one = 1), boot INTEGER NOT NULL, boottime_s REAL NOT NULL,
    utc REAL NOT NULL
);
"""

_NAMES = [
    "tag", "boot", "boottime_s", "utc", "kind", "who", "value", "source", "wish", "bounded_by", "request_id",
    "until_utc", "write", "because", "sentence", "code", "detail", "readback",
]  # fmt: skip
_COLUMNS = ", ".join(_NAMES)
_INSERT = f"INSERT INTO reason ({_COLUMNS}) VALUES ({', '.join('?' for _ in _NAMES)})"  # noqa: S608 - our own


class RingBusy(Exception):  # noqa: N818 - states what is the case
    """The ring has no answer now; control is not concerned."""


# --- what the cycle notes -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one write of a device ended; `code` is None where the device confirmed it."""

    value: float
    code: str | None = None
    detail: str = ""
    readback: float | None = None


@dataclass(frozen=True, slots=True)
class _Decided:
    """All it takes to put a decision into words later: frozen, so that later is as good as now."""

    at: Instant
    tag: str
    state: DeviceState
    decision: Decision
    image: ProcessImage
    quality: ClockQuality


@dataclass(frozen=True, slots=True)
class _Wrote:
    at: Instant
    tag: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class _Left:
    at: Instant
    tag: str


_Noted = _Decided | _Wrote | _Left


@dataclass(slots=True)
class _Last:
    """What was noted of a device before, as far as it takes to see that nothing changed."""

    decision: Decision
    settings: DeviceSettings
    schedule: Schedule
    slot: datetime
    at_s: float
    outcome: tuple[float, str | None] | None = None
    outcome_at_s: float = 0.0
    moving: _Wrote | None = None  # an outcome that was passed over, in case no other follows


class Reasons:
    """Takes notes in the event loop, hands them to the thread that owns the ring once a second.

    `who` is the process that decides: `node` or `guard`. The ring is opened with the first hand-over, so
    that a process which still waits for the bus lock leaves it alone.
    """

    def __init__(self, directory: Path, *, clock: Clock, who: str) -> None:
        self._last: dict[str, _Last] = {}
        self._noted: deque[_Noted] = deque(maxlen=MAX_WAITING)
        self._restated: dict[str, _Decided] = {}
        self._is_failing = False
        self._reading = 0
        self._now = clock.now()
        self._slot = slot_end(self._now.utc)
        self._writer = _Writer(directory / FILE, boot_id=clock.boot_id, who=who, began=self._now)
        self._clock = clock

    def note(
        self,
        tag: str,
        state: DeviceState,
        decision: Decision,
        *,
        image: ProcessImage,
        quality: ClockQuality,
        now: Instant,
    ) -> None:
        """A device was decided upon. Costs a comparison where the reason is the one noted before."""
        if now is not self._now:
            self._now, self._slot = now, slot_end(now.utc)
        last = self._last.get(tag)
        if last is None:
            self._last[tag] = _Last(decision, state.settings, state.schedule, self._slot, now.boottime_s)
            self._noted.append(_Decided(now, tag, state, decision, image, quality))
            return
        if last.moving is not None and now.boottime_s - last.outcome_at_s >= MOVING_EVERY_S:
            self._note_outcome(last, last.moving)
        if _same(last.decision, decision):
            # (Identity: comparing 35 days of slots for every device would cost more than all the rest.)
            if (
                last.schedule is state.schedule
                and last.settings is state.settings
                and last.slot == self._slot
            ):
                return
            # The same decision for what may be another reason further down; the writer finds out.
            self._restated[tag] = _Decided(now, tag, state, decision, image, quality)
        else:
            if not _moves(last.decision, decision):
                # Its confirmation is worth a row of its own, also where the value is the one before.
                if last.moving is not None:
                    self._note_outcome(last, last.moving)
                last.outcome = None
            elif now.boottime_s - last.at_s < MOVING_EVERY_S:
                return
            self._noted.append(_Decided(now, tag, state, decision, image, quality))
            last.at_s = now.boottime_s
        last.decision, last.settings, last.schedule = decision, state.settings, state.schedule
        last.slot = self._slot

    def wrote(self, tag: str, outcome: Outcome, *, now: Instant) -> None:
        """A write ended. The same end of the same value again is not noted."""
        last = self._last.get(tag)
        wrote = _Wrote(now, tag, outcome)
        if last is None:
            self._noted.append(wrote)
            return
        if (outcome.value, outcome.code) == last.outcome:
            last.moving = None
            return
        confirmed = outcome.code is None and last.outcome is not None and last.outcome[1] is None
        if (
            confirmed
            and now.boottime_s - last.outcome_at_s < MOVING_EVERY_S
            and _is_on_the_move(last.decision)
        ):
            last.moving = wrote
            return
        self._note_outcome(last, wrote)

    def _note_outcome(self, last: _Last, wrote: _Wrote) -> None:
        last.moving = None
        last.outcome = (wrote.outcome.value, wrote.outcome.code)
        last.outcome_at_s = wrote.at.boottime_s
        self._noted.append(wrote)

    def turned(self, tags: Collection[str], *, now: Instant) -> None:
        """The cycle has turned over these devices: hand over what was noted since."""
        for tag in self._last.keys() - tags:
            del self._last[tag]
            self._noted.append(_Left(now, tag))
        if self._writer.has_forgotten:
            self._writer.has_forgotten = False
            self._last.clear()
        if not self._writer.is_behind:
            self._tell_failure(self._writer.failure)
            self._hand_over(now)
        elif len(self._noted) == MAX_WAITING:
            self._tell_failure(TimeoutError("the disk keeps the writer waiting"))

    def _tell_failure(self, error: BaseException | None) -> None:
        """Log once that reasons are lost, and once that they are kept again."""
        if error is not None and not self._is_failing:
            log.error("reasons are lost", error=repr(error))
        elif error is None and self._is_failing:
            log.info("reasons are kept again")
        self._is_failing = error is not None

    def _hand_over(self, now: Instant) -> None:
        noted: list[_Noted] = [*self._noted, *self._restated.values()]
        self._noted.clear()
        self._restated.clear()
        self._writer.take(noted, now=now)

    async def read(self, job: Callable[[Ring], T], *, within_s: float) -> T:
        """Let the ring's own thread answer, after all that was noted until now.

        `RingBusy` where it does not come to that in time, `sqlite3.Error` where the ring cannot be read.
        """
        if self._reading >= MAX_READING:
            raise RingBusy("too many questions are waiting for the ring of reasons")
        self._reading += 1
        try:
            self._hand_over(self._clock.now())
            async with asyncio.timeout(within_s):
                return await asyncio.wrap_future(self._writer.ask(job))
        except TimeoutError as error:
            raise RingBusy(f"the ring of reasons did not answer within {within_s:g} s") from error
        finally:
            self._reading -= 1

    def close(self) -> None:
        """Write what was noted and end the thread; a disk that stands still is not waited for."""
        if self._noted or self._restated:
            self._hand_over(self._clock.now())
        self._writer.close(self._clock.now())


def _same(before: Decision, after: Decision) -> bool:
    return (
        before.value == after.value
        and before.target == after.target
        and before.source is after.source
        and before.wish == after.wish
        and before.bounded_by == after.bounded_by
        and before.request_id == after.request_id
        and before.until_boottime_s == after.until_boottime_s
    )


def _moves(before: Decision, after: Decision) -> bool:
    """Tell whether only the value moves, for the reason it had before, and is still on its way."""
    return (
        before.source is after.source
        and before.bounded_by == after.bounded_by
        and before.request_id == after.request_id
        and before.until_boottime_s == after.until_boottime_s
        and (after.source is Source.CLOSED_LOOP or (before.target == after.target and _is_on_the_move(after)))
    )


def _is_on_the_move(decision: Decision) -> bool:
    return decision.source is Source.CLOSED_LOOP or decision.value != decision.target


# --- the thread that owns the ring ----------------------------------------------------------------


class _Writer:
    """One thread with the ring; jobs are done in the order in which they came."""

    def __init__(self, path: Path, *, boot_id: str, who: str, began: Instant) -> None:
        self._path = path
        self._boot_id = boot_id
        self._who = who
        self._moment = began
        self._was_damaged = False
        self._ring: Ring | None = None
        self._said: dict[str, str] = {}
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._taken: Future[None] | None = None
        self.has_forgotten = False  # set by the thread, taken back by whoever says everything anew
        self._closing = threading.Event()
        # A daemon: a disk that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="reasons", daemon=True)

    @property
    def is_behind(self) -> bool:
        """Tell whether the last hand-over is still being written: the next one waits for its turn."""
        return self._taken is not None and not self._taken.done()

    @property
    def failure(self) -> BaseException | None:
        """Why the last hand-over was not written; None where it was, or still is being written."""
        return self._taken.exception() if self._taken is not None and self._taken.done() else None

    def take(self, noted: list[_Noted], *, now: Instant) -> None:
        self._taken = self._put(lambda: self._take(noted, now))

    def ask(self, job: Callable[[Ring], T]) -> Future[T]:
        return self._put(lambda: self._ask(job))

    def close(self, now: Instant) -> None:
        self._closing.set()
        if self._thread.ident is None:
            return
        self._put(lambda: self._end(now))
        self._jobs.put(None)
        self._thread.join(CLOSE_WITHIN_S)

    def _put(self, job: Callable[[], T]) -> Future[T]:
        done: Future[T] = Future()
        if self._thread.ident is None:
            try:
                self._thread.start()
            except RuntimeError as error:
                # The machine has no thread to give. Control goes on without its reasons.
                done.set_exception(error)
                return done

        def run() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever asked
                done.set_exception(error)
            else:
                done.set_result(result)

        self._jobs.put(run)
        return done

    # --- in the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                job()
        finally:
            if self._ring is not None:
                self._ring.close()

    def _opened(self) -> Ring:
        if self._ring is None:
            try:
                self._begin(Ring.open(self._path))
            except (OSError, sqlite3.Error) as error:
                self._begin_anew(error)
        assert self._ring is not None
        return self._ring

    def _begin(self, ring: Ring) -> None:
        self._ring = ring
        self._said = ring.begin(boot_id=self._boot_id, who=self._who, now=self._moment)

    def _begin_anew(self, error: Exception) -> None:
        """Put a damaged file aside and begin another; else, or where that does not help, go on in memory.

        What is in force is to be said there too.
        """
        self.has_forgotten = True
        if self._ring is not None:
            self._ring.close()
        if _is_damage(error) and not self._was_damaged:
            self._was_damaged = True
            log.error("the ring of reasons is damaged, begun anew", path=str(self._path), error=str(error))
            try:
                _put_aside(self._path)
                self._begin(Ring.open(self._path))
            except (OSError, sqlite3.Error) as another:
                error = another
            else:
                return
        log.error("reasons are kept in memory only", path=str(self._path), error=str(error))
        self._begin(Ring.in_memory(why=str(error)))

    def _take(self, noted: list[_Noted], now: Instant) -> None:
        self._moment = now
        # (In this order: opening tells what was said before.)
        ring = self._opened()
        entries = self._in_words(noted)
        try:
            ring.write(entries, now=now)
        except (OSError, sqlite3.Error) as error:
            if ring.in_memory_because:
                raise
            self._begin_anew(error)
            self._opened().write(entries, now=now)

    def _ask(self, job: Callable[[Ring], T]) -> T:
        ring = self._opened()
        try:
            return job(ring)
        except sqlite3.Error as error:
            if _is_damage(error) and not ring.in_memory_because:
                self._begin_anew(error)
            raise

    def _end(self, now: Instant) -> None:
        with suppress(OSError, sqlite3.Error):
            if self._ring is not None:
                self._ring.end(now=now)

    def _in_words(self, noted: list[_Noted]) -> list[Entry]:
        # (Stable: what was noted of one moment keeps its order.)
        noted.sort(key=lambda one: one.at.boottime_s)
        entries = []
        for number, one in enumerate(noted, start=1):
            entry = self._entry(one)
            if entry is not None:
                entries.append(entry)
            if number % SLICE == 0:
                self._closing.wait(PAUSE_S)
        return entries

    def _entry(self, noted: _Noted) -> Entry | None:
        match noted:
            case _Wrote(at, tag, outcome):
                return Entry(
                    tag=tag, boottime_s=at.boottime_s, utc=at.utc.timestamp(), kind=OUTCOME, who=self._who,
                    value=outcome.value, code=outcome.code, detail=outcome.detail, readback=outcome.readback,
                )  # fmt: skip
            case _Left(at, tag):
                self._said.pop(tag, None)
                return Entry(
                    tag=tag, boottime_s=at.boottime_s, utc=at.utc.timestamp(), kind=GONE, who=self._who,
                    sentence=f"{tag} left this node",
                )  # fmt: skip
            case _Decided(at, tag, state, decision, image, quality):
                why = reason(state, decision, replace(image, clock=quality), at)
                words = sentence(why)
                if self._said.get(tag) == words:
                    return None
                self._said[tag] = words
                until = why.in_force.until
                return Entry(
                    tag=tag,
                    boottime_s=at.boottime_s,
                    utc=at.utc.timestamp(),
                    kind=DECISION,
                    who=self._who,
                    value=decision.value,
                    source=None if decision.source is None else decision.source.label,
                    wish=decision.wish,
                    bounded_by=decision.bounded_by,
                    request_id=decision.request_id,
                    until_utc=None if until is None else until.timestamp(),
                    write=None if decision.write is None else decision.write.value,
                    because=why.because,
                    sentence=words,
                )


# --- the ring -------------------------------------------------------------------------------------


# A moment as the ring orders it: the number of the boot, and the boot-time clock. Later is greater.
Position = tuple[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the ring. `utc` and `until_utc` are seconds since 1970, as the wall clock showed them."""

    tag: str
    boottime_s: float
    utc: float
    kind: str
    who: str
    value: float | None = None
    source: str | None = None
    wish: float | None = None
    bounded_by: str | None = None
    request_id: str | None = None
    until_utc: float | None = None
    write: str | None = None
    because: str = ""
    sentence: str = ""
    code: str | None = None
    detail: str = ""
    readback: float | None = None
    boot: int = 0

    @property
    def position(self) -> Position:
        return (self.boot, self.boottime_s)


@dataclass(frozen=True, slots=True)
class ClockSpan:
    """A stretch in which the wall clock ran evenly: it showed boot-time + `offset_s`, from `begins` on.

    `step_s` is how far it jumped where the stretch begins; 0.0 where it did not.
    """

    begins: Position
    offset_s: float
    step_s: float

    @property
    def begins_utc(self) -> float:
        return self.begins[1] + self.offset_s


@dataclass(frozen=True, slots=True)
class Run:
    """One process that wrote the ring, and until when it is known to have lived."""

    who: str
    began: Position
    began_utc: float
    seen: Position
    seen_utc: float
    has_ended: bool


@dataclass(frozen=True, slots=True)
class Reach:
    """From when on the ring is whole."""

    position: Position
    utc: float


class Ring:
    """The file, or its stand-in in memory. For one thread; others may read the file beside it.

    Methods raise `sqlite3.Error` where the database cannot do what is asked.
    """

    def __init__(self, db: sqlite3.Connection, *, max_rows: int, in_memory_because: str = "") -> None:
        self.db = db
        self.in_memory_because = in_memory_because
        self._max_rows = max_rows
        self._boot = 0
        self._run = 0
        self._offset_s = 0.0
        self._offset_before_s = 0.0
        self._trimmed_s = 0.0

    @classmethod
    def open(cls, path: Path, *, max_rows: int = MAX_ROWS) -> Ring:
        """Open the file for writing, or begin one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(_connect(path), max_rows=max_rows)

    @classmethod
    def in_memory(cls, *, why: str) -> Ring:
        return cls(_connect(":memory:"), max_rows=MAX_ROWS_IN_MEMORY, in_memory_because=why)

    @classmethod
    def read_only(cls, path: Path) -> Ring:
        """Open the file of a node that may be running, and cannot be disturbed by this."""
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=2.0
        )
        try:
            db.execute("SELECT count(*) FROM run").fetchone()
        except BaseException:
            db.close()
            raise
        return cls(db, max_rows=0)

    def close(self) -> None:
        self.db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            # (A full disk may have ended it already.)
            with suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    # --- writing ------------------------------------------------------------------------------------

    def begin(self, *, boot_id: str, who: str, now: Instant) -> dict[str, str]:
        """A process begins to write; returns what it said last of each device, if that was on this boot."""
        utc = now.utc.timestamp()
        with self._transaction():
            self.db.execute("INSERT OR IGNORE INTO boot (id) VALUES (?)", (boot_id,))
            (self._boot,) = self.db.execute("SELECT n FROM boot WHERE id = ?", (boot_id,)).fetchone()
            before = self.db.execute(
                "SELECT offset_s FROM clock WHERE boot = ? ORDER BY n DESC LIMIT 1", (self._boot,)
            ).fetchone()
            if before is None:
                self._offset_s = self._offset_before_s = utc - now.boottime_s
                self._tell_clock(now.boottime_s, step_s=0.0)
            else:
                self._offset_s = self._offset_before_s = before[0]
                self._watch_clock(now.boottime_s, utc)
            cursor = self.db.execute(
                "INSERT INTO run (who, boot, began_s, began_utc, seen_s, seen_utc) VALUES (?, ?, ?, ?, ?, ?)",
                (who, self._boot, now.boottime_s, utc, now.boottime_s, utc),
            )
            self._run = cursor.lastrowid or 0
            self.db.execute(
                "INSERT OR IGNORE INTO reach VALUES (1, ?, ?, ?)", (self._boot, now.boottime_s, utc)
            )
        self._trimmed_s = now.boottime_s
        last = self.db.execute(
            "SELECT tag, sentence FROM reason WHERE who = ? AND kind = ? AND n IN"
            " (SELECT max(n) FROM reason WHERE kind IN (?, ?) AND boot = ? GROUP BY tag)",
            (who, DECISION, DECISION, GONE, self._boot),
        )
        return dict(last.fetchall())

    def write(self, entries: Sequence[Entry], *, now: Instant) -> None:
        """Put entries of this boot at the end; now and then note that the process lives, and cut the ring."""
        utc = now.utc.timestamp()
        is_minute = now.boottime_s - self._trimmed_s >= SEEN_EVERY_S
        if not entries and not is_minute and abs(utc - now.boottime_s - self._offset_s) <= CLOCK_STEP_S:
            self._offset_before_s = utc - now.boottime_s
            return
        with self._transaction():
            for entry in entries:
                self._watch_clock(entry.boottime_s, entry.utc)
            self._watch_clock(now.boottime_s, utc)
            self.db.executemany(_INSERT, [_values(entry, self._boot) for entry in entries])
            self._see(now, ended=False)
            if is_minute:
                self._trim(now)
                self._trimmed_s = now.boottime_s

    def end(self, *, now: Instant) -> None:
        """The process ends in an orderly way."""
        with self._transaction():
            self._see(now, ended=True)

    def _see(self, now: Instant, *, ended: bool) -> None:
        self.db.execute(
            "UPDATE run SET seen_s = ?, seen_utc = ?, ended = ? WHERE n = ?",
            (now.boottime_s, now.utc.timestamp(), ended, self._run),
        )

    def _watch_clock(self, boottime_s: float, utc: float) -> None:
        offset_s = utc - boottime_s
        step_s = offset_s - self._offset_before_s
        self._offset_before_s = offset_s
        # Against what was told last, so that a slow correction adds up to a row too, but is no step.
        if abs(offset_s - self._offset_s) > CLOCK_STEP_S:
            self._offset_s = offset_s
            self._tell_clock(boottime_s, step_s=step_s if abs(step_s) > CLOCK_STEP_S else 0.0)

    def _tell_clock(self, boottime_s: float, *, step_s: float) -> None:
        self.db.execute(
            "INSERT INTO clock (boot, boottime_s, offset_s, step_s) VALUES (?, ?, ?, ?)",
            (self._boot, boottime_s, self._offset_s, step_s),
        )

    def _trim(self, now: Instant) -> None:
        """Cut off what is too old or too much, but for what was still in force at the cut."""
        (by_age,) = self.db.execute(
            "SELECT max(n) FROM reason WHERE (boot = ? AND boottime_s < ?)"
            # Of earlier boots only the wall clock tells the age, until this one is that old itself.
            " OR (boot < ? AND (utc < ? OR ?))",
            (
                self._boot,
                now.boottime_s - KEPT_S,
                self._boot,
                now.utc.timestamp() - KEPT_S,
                now.boottime_s > KEPT_S,
            ),
        ).fetchone()
        by_number = self.db.execute(
            "SELECT n FROM reason ORDER BY n DESC LIMIT 1 OFFSET ?", (self._max_rows,)
        ).fetchone()
        cut = max(by_age or 0, 0 if by_number is None else by_number[0])
        edge = self.db.execute("SELECT boot, boottime_s, utc FROM reason WHERE n = ?", (cut,)).fetchone()
        if edge is None:
            return
        self.db.execute("UPDATE reach SET boot = ?, boottime_s = ?, utc = ?", edge)
        self.db.execute(
            "DELETE FROM reason WHERE n <= ? AND (kind = ? OR EXISTS ("
            " SELECT 1 FROM reason later WHERE later.tag = reason.tag AND later.n > reason.n AND later.n <= ?"
            " AND (later.kind = reason.kind OR later.kind = ?)))",
            (cut, GONE, cut, GONE),
        )
        for table, begins in (("clock", "boottime_s"), ("run", "seen_s")):
            # The stretch that holds the edge stays.
            first = f"SELECT max(n) FROM {table} WHERE (boot, {begins}) <= (?, ?)"  # noqa: S608 - our own words
            self.db.execute(f"DELETE FROM {table} WHERE n < ({first})", edge[:2])  # noqa: S608

    # --- reading ------------------------------------------------------------------------------------

    def tags(self) -> list[str]:
        return [tag for (tag,) in self.db.execute("SELECT DISTINCT tag FROM reason ORDER BY tag")]

    def reach(self) -> Reach | None:
        row = self.db.execute("SELECT boot, boottime_s, utc FROM reach").fetchone()
        return None if row is None else Reach((row[0], row[1]), row[2])

    def clock_spans(self) -> list[ClockSpan]:
        rows = self.db.execute("SELECT boot, boottime_s, offset_s, step_s FROM clock ORDER BY n")
        return [ClockSpan((boot, at), offset, step) for boot, at, offset, step in rows]

    def runs(self) -> list[Run]:
        rows = self.db.execute(
            "SELECT who, boot, began_s, began_utc, seen_s, seen_utc, ended FROM run ORDER BY n"
        )
        return [
            Run(who, (boot, began), began_utc, (boot, seen), seen_utc, bool(ended))
            for who, boot, began, began_utc, seen, seen_utc, ended in rows
        ]

    def decision_at(self, tag: str, position: Position) -> Entry | None:
        """What was decided last of a device up to this moment; a `GONE` where it had left."""
        return self._one("kind <> ? AND (boot, boottime_s) <= (?, ?)", tag, OUTCOME, *position, newest=True)

    def decision_after(self, tag: str, entry: Entry) -> Entry | None:
        return self._one(
            "kind <> ? AND (boot, boottime_s) > (?, ?)", tag, OUTCOME, *entry.position, newest=False
        )

    def outcome_before(self, tag: str, position: Position) -> Entry | None:
        return self._one("kind = ? AND (boot, boottime_s) <= (?, ?)", tag, OUTCOME, *position, newest=True)

    def outcomes_between(self, tag: str, first: Position, end: Position, *, limit: int) -> list[Entry]:
        """The outcomes from one moment until before another, the oldest first."""
        return self._entries(
            "kind = ? AND (boot, boottime_s) >= (?, ?) AND (boot, boottime_s) < (?, ?)",
            (tag, OUTCOME, *first, *end),
            order="ASC",
            limit=limit,
        )

    def before(self, tag: str, position: Position, *, limit: int) -> list[Entry]:
        """The last entries up to a moment, the oldest first."""
        found = self._entries("(boot, boottime_s) <= (?, ?)", (tag, *position), order="DESC", limit=limit)
        return found[::-1]

    def after(self, tag: str, position: Position, *, limit: int) -> list[Entry]:
        """The first entries after a moment, the oldest first."""
        return self._entries("(boot, boottime_s) > (?, ?)", (tag, *position), order="ASC", limit=limit)

    def _one(self, where: str, *values: object, newest: bool) -> Entry | None:
        found = self._entries(where, values, order="DESC" if newest else "ASC", limit=1)
        return found[0] if found else None

    def _entries(self, where: str, values: Sequence[object], *, order: str, limit: int) -> list[Entry]:
        rows = self.db.execute(
            f"SELECT {_COLUMNS} FROM reason WHERE tag = ? AND {where}"  # noqa: S608 - our own words
            f" ORDER BY boot {order}, boottime_s {order}, n {order} LIMIT ?",
            (*values, limit),
        )
        return [Entry(**dict(zip(_NAMES, row, strict=True))) for row in rows]


def _values(entry: Entry, boot: int) -> tuple[object, ...]:
    return (
        entry.tag, boot, entry.boottime_s, entry.utc, entry.kind, entry.who, entry.value, entry.source,
        entry.wish, entry.bounded_by, entry.request_id, entry.until_utc, entry.write, entry.because,
        entry.sentence, entry.code, entry.detail, entry.readback,
    )  # fmt: skip


def _is_damage(error: Exception) -> bool:
    """Tell whether the file itself is what is wrong. (The low byte is the code without its detail.)"""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def _put_aside(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.replace(path.with_name(path.name + ".damaged"))


def _connect(path: Path | str) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=2.0)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=OFF")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db
