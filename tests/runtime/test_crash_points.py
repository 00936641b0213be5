"""kill -9 at any instant loses nothing that was acknowledged: a process is killed at each of its durable steps.

A child lives a fixed script over the real store, cycle, fleet and documents, on devices whose registers are
memory it shares with its parent, so that they outlive it. It says what it acknowledges, and kills itself at
the n-th step that could reach the disk: a statement of SQLite, a write, rename or removal of a file, a sync.
The parent then looks at what is on disk, and lets another process go on from there.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import signal
import sqlite3
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import msgspec
import pytest
import structlog

from edge.drivers.base import PollResult
from edge.drivers.registry import Constructors, Drivers
from edge.profiles.points import Protocol
from edge.profiles.reading import profile_to_builtins
from edge.runtime.control import Control, Watchers, build_control
from edge.runtime.reasons import Reasons
from edge.runtime.store import Store
from edge.wire import codec
from edge.wire.messages import (
    CommandAnswer,
    Document,
    LogEntry,
    Manifest,
    ManifestEntry,
    ReleaseCommand,
    SetpointCommand,
    Stage,
    Stream,
)
from tests.runtime.plant import SITE, TurnedClock, profile

A, B = "INVERTER_01", "INVERTER_02"
LIMIT = "limit_target"
DEFAULT = 100.0
SCHEDULE = "schedule/2026-03-02/inverter"
# Without --every-crash-point, one of so many.
STRIDE = 8

Said = dict[str, Any]


class Registers:
    """The limits of two devices, and how often each was written, in memory that outlives a process."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 32)
        for unit in (0, 1):
            self.set(unit, DEFAULT, writes=0)

    def get(self, unit: int) -> tuple[float, int]:
        value, writes = struct.unpack_from("dq", self._memory, unit * 16)
        return value, writes

    def set(self, unit: int, value: float, *, writes: int) -> None:
        struct.pack_into("dq", self._memory, unit * 16, value, writes)


@dataclass
class SharedSession:
    """A line that is always there."""

    connected: bool = False
    next_command_at: float = 0.0

    async def connect(self) -> None:
        self.connected = True

    async def aclose(self) -> None:
        self.connected = False


@dataclass
class SharedDevice:
    registers: Registers
    unit: int
    commands_per_write: int = 1
    commands_per_poll: int = 1
    telemetry_units: dict[str, str] = field(default_factory=dict)
    sent: int = 0

    async def identify(self) -> None:
        """Whoever is asked is who is meant."""

    async def poll(self) -> PollResult:
        return PollResult({}, self.registers.get(self.unit)[0])

    async def write(self, value: float) -> None:
        self.registers.set(self.unit, value, writes=self.registers.get(self.unit)[1] + 1)
        self.sent += 1

    async def arm_fallback(self, value: float) -> None:
        """It has none."""

    async def keep_alive(self, value: float) -> None:
        """It has none."""

    def take_writes(self) -> dict[str, int]:
        sent, self.sent = self.sent, 0
        return {LIMIT: sent} if sent else {}

    async def read_setpoint(self) -> float | None:
        return self.registers.get(self.unit)[0]


def drivers_of(registers: Registers) -> Drivers:
    return {
        Protocol.MODBUS_TCP: Constructors(
            session=lambda **_: SharedSession(),
            driver=lambda *, unit, **_: SharedDevice(registers, unit),
        )
    }


# --- what central would have sent -------------------------------------------------------------------


def configuration(*tags: str, version: int) -> Document:
    kind = profile()
    assert kind.limit is not None
    kind = msgspec.structs.replace(
        kind, limit=msgspec.structs.replace(kind.limit, write_class="persistent", writes_per_day=100)
    )
    return codec.document(
        {
            "site": SITE,
            "profiles": {"wearing": profile_to_builtins(kind)},
            "devices": [
                {
                    "id": tag,
                    "tag": tag,
                    "category": "inverter",
                    "profile": "wearing",
                    "host": tag.lower().replace("_", "-"),
                    "port": 502,
                    "unit": (A, B).index(tag),
                    "poll_s": 10.0,
                }
                for tag in tags
            ],
        },
        epoch=1,
        version=version,
    )


def schedule(version: int, value: float | None) -> Document:
    slots = {"10:00": value, "10:15": value}
    body = {"date": "2026-03-02", "category": "inverter", "slots": slots}
    return codec.document(body, epoch=1, version=version)


def manifest(version: int, **docs: Document) -> Manifest:
    listed = {
        name.replace("schedule", SCHEDULE): ManifestEntry(doc.version, doc.sha256)
        for name, doc in docs.items()
    }
    return Manifest(epoch=1, version=version, docs=listed)


BOTH, ONE = configuration(A, B, version=1), configuration(A, version=2)
FIRST, SECOND = schedule(1, None), schedule(2, 80.0)
M1 = manifest(1, config=BOTH, schedule=FIRST)
M2 = manifest(2, config=ONE, schedule=SECOND)
M3 = manifest(3, config=ONE)


# --- one process ------------------------------------------------------------------------------------


@dataclass
class Process:
    """A node without its link."""

    store: Store
    clock: TurnedClock
    control: Control

    async def run(self, seconds: float) -> None:
        await self.clock.run(seconds, tasks=self._tasks)

    async def until(self, claim: Callable[[], object], *, within_s: float = 5.0) -> None:
        await self.clock.run(within_s, tasks=self._tasks, until=claim)

    def _tasks(self) -> int:
        """The cycle and each line."""
        return 1 + len(self.control.fleet._lines)

    async def carry_out(self, command: SetpointCommand | ReleaseCommand, say: Callable[[Said], None]) -> None:
        """Accept a command and answer it, as the link does: first on disk, then said."""
        now = self.clock.now()
        entry = LogEntry(seq=0, at="", kind="result", command_id=command.id, sequence=command.sequence)
        answer = CommandAnswer(id=command.id, stage=Stage.ACCEPTED)
        held: Said = {}
        with self.store.transaction():
            if isinstance(command, SetpointCommand):
                accepted = self.control.cycle.accept_setpoint(command)
                ends = now.boottime_s + command.hold_s
                held = {f"hold {tag}": [command.sequence, ends] for tag in command.values}
            else:
                accepted = self.control.cycle.accept_release(command)
                held = {f"hold {tag}": None for tag in command.devices}
            assert not accepted.refused, accepted.refused
            self.store.remember(command.id, at=now.utc, answer=codec.encode(answer), unsettled=entry)
        say({f"command {command.id}": "accepted"} | held)
        await self.until(lambda: all(future.done() for future in accepted.waiting.values()))
        last = codec.encode(msgspec.structs.replace(answer, stage=Stage.DONE))
        with self.store.transaction():
            self.store.append(Stream.CONTROL, entry)
            self.store.remember(command.id, at=self.clock.now().utc, answer=last)
        say({f"command {command.id}": "done", f"writes {A}": spent(self.store, A)})

    def deliver(self, listed: Manifest, *documents: Document) -> None:
        self.control.desired.take_manifest(listed)
        for doc in documents:
            self.control.desired.take(SCHEDULE if "slots" in doc.body else "config", doc)
        self.control.desired.settle()


class _Over(Exception):  # noqa: N818 - ends the task group, nothing is wrong
    pass


@asynccontextmanager
async def process(directory: Path, registers: Registers, clock: TurnedClock):
    with closing(Store(directory)) as store, closing(Reasons(directory, clock=clock, who="node")) as reasons:
        try:
            async with asyncio.TaskGroup() as tasks:
                control = build_control(
                    clock=clock,
                    store=store,
                    tasks=tasks,
                    watchers=Watchers(),
                    reasons=reasons,
                    drivers=drivers_of(registers),
                )
                control.start()
                yield Process(store, clock, control)
                raise _Over  # noqa: TRY301 - how a task group is told to end
        except* _Over:
            pass


async def script(directory: Path, registers: Registers, say: Callable[[Said], None]) -> None:
    """The life that is cut short everywhere. What is said is acknowledged: it must be there afterwards."""

    def setpoint(number: int, *, hold_s: float, **values: float) -> SetpointCommand:
        return SetpointCommand(
            id=f"c{number}",
            epoch=1,
            sequence=number,
            fresh="",
            request_id=f"r{number}",
            category="inverter",
            values=values,
            hold_s=hold_s,
        )

    def release(number: int, *tags: str) -> ReleaseCommand:
        return ReleaseCommand(
            id=f"c{number}",
            epoch=1,
            sequence=number,
            fresh="",
            request_id=f"r{number}",
            category="inverter",
            devices=tags,
        )

    async with process(directory, registers, TurnedClock()) as node:
        node.deliver(M1, BOTH, FIRST)
        say({"manifest": 1, "document config": 1, f"document {SCHEDULE}": 1})
        await node.run(1)
        await node.carry_out(setpoint(1, hold_s=30, INVERTER_01=30, INVERTER_02=40), say)
        await node.run(5)
        await node.carry_out(setpoint(2, hold_s=10, INVERTER_01=30), say)
        await node.carry_out(release(3, B), say)
        await node.carry_out(setpoint(4, hold_s=50, INVERTER_02=60), say)
        await node.run(11)  # the renewed hold lapses
        say({f"hold {A}": None, "logged watchdog": 1})
        for number in range(3):
            node.store.append(Stream.TELEMETRY, LogEntry(seq=0, at=f"{number}", kind="readings"))
        say({"telemetry": [1, 3]})
        node.store.outbox.acknowledged(Stream.TELEMETRY, last=2)
        say({"telemetry": [3, 3]})
        # B, which is held, is removed.
        node.deliver(M2, ONE, SECOND)
        say({"manifest": 2, "document config": 2, f"document {SCHEDULE}": 2, f"hold {B}": None})
        await node.until(lambda: not node.control.fleet.retiring)
        say({"logged retired": 1})
        node.deliver(M3)
        say({"manifest": 3, f"document {SCHEDULE}": None})
        await node.carry_out(setpoint(5, hold_s=50, INVERTER_01=50), say)


# --- the child --------------------------------------------------------------------------------------


def spent(store: Store, tag: str) -> int:
    kept = store.devices().get(tag)
    counts = {} if kept is None else kept.ledger.registers
    return counts[LIMIT].ever if LIMIT in counts else 0


def live(directory: Path, registers: Registers, pipe: int, *, die_at: int) -> NoReturn:
    """In the child: live, and die at a step. The number of steps so far is on the pipe in any case."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def statement(sql: str) -> None:
        if not sql.lstrip().upper().startswith(("SELECT", "PRAGMA")):
            step()

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.rename", "os.remove", "os.mkdir", "os.truncate"):
            step()
        elif event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            if writes and str(path).startswith(str(directory)):
                step()

    def traced(connect: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
        def call(*arguments: Any, **named: Any) -> sqlite3.Connection:
            connection = connect(*arguments, **named)
            connection.set_trace_callback(statement)
            return connection

        return call

    def synced(fsync: Callable[[int], None]) -> Callable[[int], None]:
        def call(handle: int) -> None:
            step()
            fsync(handle)

        return call

    def say(said: Said) -> None:
        os.write(pipe, (json.dumps(said) + "\n").encode())

    status = 1
    try:
        # Nothing of the product knows that it is watched: all this is the interpreter's.
        sys.addaudithook(audit)
        os.fsync = synced(os.fsync)  # type: ignore[assignment]
        sqlite3.connect = traced(sqlite3.connect)  # type: ignore[assignment]
        asyncio.run(script(directory, registers, say))
        say({"steps": steps})
        status = 0
    except BaseException:  # noqa: BLE001 - the parent sees the status, people the reason
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


@dataclass
class Outcome:
    """What a child said before it ended, and what it left."""

    said: list[Said]
    status: int
    directory: Path
    registers: Registers


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Hundreds of lives would fill the log with what nobody reads."""
    before = structlog.get_config()
    structlog.configure(processors=[_drop])
    yield
    structlog.configure(**before)


def _drop(_logger: object, _method: str, _event: object) -> NoReturn:
    raise structlog.DropEvent


@pytest.fixture
def memory() -> Iterator[Path]:
    """Where files are cheap; a killed process loses no written byte there either."""
    shared = Path("/dev/shm")  # noqa: S108 - not predictable: a directory of its own in it
    with TemporaryDirectory(prefix="crash-", dir=shared if shared.is_dir() else None) as path:
        yield Path(path)


def child(directory: Path, *, die_at: int = 0) -> Outcome:
    registers = Registers()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        live(directory, registers, writing, die_at=die_at)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = [json.loads(line) for line in pipe]
    _, status = os.waitpid(pid, 0)
    return Outcome(said, os.waitstatus_to_exitcode(status), directory, registers)


# --- what must be there -----------------------------------------------------------------------------


def on_disk(directory: Path) -> Said:
    """What the store holds, in the words of what was said."""
    with closing(Store(directory)) as store:
        found: Said = {}
        listed = store.manifest()
        found["manifest"] = None if listed is None else listed.version
        documents = store.documents()
        assert all(codec.is_intact(doc) for doc in documents.values())
        for name in ("config", SCHEDULE):
            found[f"document {name}"] = documents[name].version if name in documents else None
        devices = store.devices()
        leaves = store.leaving()
        assert leaves.keys() <= devices.keys(), "a device that leaves has lost what is known of it"
        for tag in (A, B):
            hold = devices[tag].hold if tag in devices else None
            found[f"hold {tag}"] = None if hold is None else [hold.order[1], hold.ends_boottime_s]
        found[f"writes {A}"] = spent(store, A)
        for number in range(1, 6):
            known, answer = store.answer_to(f"c{number}")
            stage = None if answer is None else codec.decode(CommandAnswer, answer).stage.value
            found[f"command c{number}"] = stage if known else None
        unsettled = {entry.command_id for entry in store.unsettled()}
        accepted = {f"c{number}" for number in range(1, 6) if found[f"command c{number}"] == "accepted"}
        assert unsettled == accepted
        for stream in Stream:
            entries = store.waiting(stream, limit=1000, max_bytes=10**6)
            numbers = [entry.seq for entry in entries]
            assert numbers == list(range(numbers[0], numbers[-1] + 1)) if numbers else True
            if stream is Stream.CONTROL:
                for kind in ("watchdog", "retired"):
                    found[f"logged {kind}"] = sum(entry.kind == kind for entry in entries) or None
                answered = [entry.command_id for entry in entries if entry.kind == "result"]
                done = [f"c{number}" for number in range(1, 6) if found[f"command c{number}"] == "done"]
                assert answered == done
            else:
                found["telemetry"] = [numbers[0], numbers[-1]] if numbers else None
        assert not list(directory.rglob(".new-*"))
        return found


def judge(outcome: Outcome, whole: list[Said]) -> None:
    """All that was said is there, and beyond it at most what would have been said next."""
    said = outcome.said
    assert said == whole[: len(said)], "the script is not the same every time"
    acknowledged: Said = {}
    for each in said:
        acknowledged |= each
    following = acknowledged | whole[len(said)]
    found = on_disk(outcome.directory)
    for name, value in found.items():
        if name == f"writes {A}":
            # What left may be counted before anybody says so; one that leaves just then may not be.
            counted = outcome.registers.get(0)[1]
            assert max(acknowledged.get(name, 0), counted - 1) <= value <= counted
        elif name == "telemetry" and value is not None:
            low, high = acknowledged.get(name, [1, 0]), following.get(name, [1, 0])
            assert low[0] <= value[0] <= high[0]
            assert low[1] <= value[1] <= high[1]
        else:
            assert value in (acknowledged.get(name), following.get(name)), name


async def take_over(outcome: Outcome) -> None:
    """Another process goes on from there: it keeps what is promised, and leaves nothing behind."""
    clock = TurnedClock()
    with closing(Store(outcome.directory)) as store:
        holds = {tag: kept.hold for tag, kept in store.devices().items() if kept.hold is not None}
    was_written = outcome.registers.get((A, B).index(B))[1] > 0
    clock.advance(17)  # as late as the script goes on before its last commands
    async with process(outcome.directory, outcome.registers, clock) as node:
        await node.run(2)
        cycle = node.control.cycle
        for tag, unit in cycle.units.items():
            hold = holds.get(tag)
            if hold is not None and hold.ends_boottime_s > clock.boottime_s():
                assert unit.state.hold == hold
                assert outcome.registers.get((A, B).index(tag))[0] == hold.value
        # What the broker retains comes again.
        node.deliver(M3, ONE)
        await node.run(70)
        assert list(cycle.units) == [A]
        assert not cycle.leaving
        assert not node.store.leaving()
        assert [outcome.registers.get(unit)[0] for unit in (0, 1)] == [DEFAULT, DEFAULT]
        logged = node.store.waiting(Stream.CONTROL, limit=1000, max_bytes=10**6)
        if was_written:
            assert sum(entry.kind == "retired" for entry in logged) == 1


def test_nothing_acknowledged_is_lost_wherever_the_process_is_killed(memory, pytestconfig):
    """Every point with `--every-crash-point` (`make test-all`), else every eighth: `STRIDE`."""
    whole = child(memory / "whole")
    assert whole.status == 0
    *said, last = whole.said
    steps = last["steps"]
    assert steps > 150, "the hooks do not see the steps"
    every = pytestconfig.getoption("--every-crash-point")
    points = range(1, steps + 1) if every else range(1, steps + 1, STRIDE)
    print(f"killed at {len(points)} of {steps} steps")  # noqa: T201 - said aloud: a part is not the whole
    for number in points:
        outcome = child(memory / f"{number:04}", die_at=number)
        if outcome.status == 0:
            # The ring of reasons takes a step more or less from one life to the next.
            assert number > 0.9 * steps
            break
        assert outcome.status == -signal.SIGKILL, number
        try:
            judge(outcome, [*said, {}])
            asyncio.run(take_over(outcome))
        except BaseException as error:
            error.add_note(f"killed at step {number}, after {outcome.said[-1:]}")
            raise
