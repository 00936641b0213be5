"""One bus per endpoint: one session, one queue, the profile's minimum gap kept.

All writes come before all read-backs, those before polls. At most one write per device waits: a newer one
takes its place. A write whose moment is known reserves its line: no poll starts whose gap would still run
then. A dead device keeps nobody waiting who is on another endpoint, and costs those on its own at most its
timeout (design, rule 19).
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import structlog

from edge.drivers.base import Driver, PollResult, Session
from edge.drivers.errors import DeviceAway, DeviceRefused, DeviceUnreachable, ReadingInvalid
from edge.runtime.clock import Clock
from edge.wire.messages import Code

log = structlog.get_logger()

T = TypeVar("T")

# Over all lines: an outcome of a line that was taken down is never taken for one of its successor's.
_tickets = itertools.count(1)


def next_ticket() -> int:
    """A number that no other write of this process has."""
    return next(_tickets)


# While a write is owed, or for this long after the loss, a bare connect is tried every second.
RECONNECT_EAGERLY_FOR_S = 600.0
RECONNECT_S = 1.0
RECONNECT_SLOWEST_S = 300.0
# Between a timeout and the next try, a device has this long to close the session that was given up.
RESPITE_S = 0.1
# A write whose read-back differs is tried this often before its caller hears of it.
TRIES = 3
RETRY_S = 1.0
RETRY_SLOWEST_S = 300.0
# A register that wears is not worn out by a device that never confirms.
RETRY_SPARING_S = 3600.0
# Those that do not answer may together take this part of the time of a line that others share with them.
SHARE_OF_SILENT = 0.2
# Of their tries every so manieth is for one that nothing is owed to, or they would never be found again.
UNOWED_TRY = 5
# On a line that stays open, one request in this time may go unanswered before a device counts as lost.
FORGIVEN_EVERY_S = 10.0
# What one poll command may take on a healthy line, on top of the gap, when room is kept for a known write.
POLL_ALLOWANCE_S = 0.1
# A line without a gap keeps as much room as its last polls took, and never more than this.
MAX_ROOM_S = 1.0
# The write comes this much after its moment at most: the cycle has to turn first.
RESERVED_GRACE_S = 0.05


@dataclass(frozen=True, slots=True)
class WriteOutcome:
    """How one write ended. `code` is None where the device confirmed it."""

    ticket: int
    value: float
    code: Code | None = None
    detail: str = ""
    readback: float | None = None
    still_trying: bool = False


class Listener(Protocol):
    """Who hears of a device. Called from the bus's own task; must not block."""

    def contact(self, tag: str, *, standing: float | None) -> None: ...

    def lost(self, tag: str, *, reason: str) -> None: ...

    def wrote(self, tag: str, outcome: WriteOutcome) -> None: ...

    def polled(self, tag: str, result: PollResult) -> None: ...

    def kept_alive(self, tag: str, value: float, *, failed: str) -> None:
        """The device, armed with this value, had its sign of life; or `failed` says why not."""

    def spent(self, tag: str, writes: dict[str, int]) -> None:
        """Write commands left for the device, by register."""


class PollPreempted(Exception):  # noqa: N818 - not an error: the line is wanted for a write
    """A poll gave way in the gap between two of its commands."""


@dataclass(slots=True)
class _Write:
    ticket: int
    value: float
    verify: bool
    tries: int = 0
    not_before: float = 0.0
    told: bool = False
    resent: bool = False
    sent: int = 0
    sent_at: float = 0.0


@dataclass(frozen=True, slots=True)
class KeepAliveJob:
    """A sign of life that is due: arm the device's own fallback with this value first where `arm`."""

    fallback: float
    setpoint: float
    arm: bool


@dataclass(slots=True)
class _Question:
    """Something that somebody outside wants to read over this line, and who waits for it."""

    read: Callable[[], Awaitable[Any]]
    answer: asyncio.Future[Any]


@dataclass(slots=True)
class _Member:
    """One device of the endpoint."""

    tag: str
    driver: Driver
    poll_s: float
    phase_s: float
    tolerance: float
    settable: bool
    sparing: bool = False  # each write wears its register
    goes_first: bool = False  # of those that are due to be polled
    known: bool = False  # identified and read since the session came up
    refused: str = ""
    reachable: bool | None = None
    write: _Write | None = None
    written: _Write | None = None  # on the device, to be read back
    keep_alive: KeepAliveJob | None = None
    poll_due: float = 0.0
    contact_due: float = 0.0
    contact_tries: int = 0
    tried_at: float = 0.0  # its last write or contact
    looked_at: float = 0.0  # its last poll or contact
    quiet_until: float = 0.0  # it did not answer, and is left alone until then
    quiet_s: float = RECONNECT_S
    silent_since: float | None = None  # it gives no answer at all
    silence_cost_s: float = 0.0  # what its last silence took of the line
    missed_at: float = -math.inf
    reserved_at: float | None = None

    def look_due(self) -> float:
        """When it is to be polled, or to be contacted first."""
        return self.poll_due if self.known else self.contact_due

    def write_is_due(self, now: float) -> bool:
        return self.write is not None and self.write.not_before <= now

    def next_poll_due(self, now: float, *, shares: bool) -> float:
        """The moment of this device's own grid that follows the poll that starts now.

        A line that cannot carry all its polls is late with each. On a line that it `shares`, the moment that
        has passed meanwhile is therefore the next one: all of them have their turn, the line is never idle,
        and none is left out for being late.
        """
        turn = math.floor((now - self.phase_s) / self.poll_s) + 1
        if self.phase_s + turn * self.poll_s <= now:
            # Rounding names the moment that has just come.
            turn += 1
        begun = self.phase_s + (turn - 1) * self.poll_s
        return begun if shares and 0 < self.poll_due < begun else self.phase_s + turn * self.poll_s


def _tried_at(member: _Member) -> float:
    return member.tried_at


def _write_turn(member: _Member) -> tuple[bool, float]:
    """Those who answered last go first, then those who waited longest."""
    return member.reachable is False, member.tried_at


def _backed_off(tries: int, *, slowest_s: float = RETRY_SLOWEST_S) -> float:
    """Seconds to wait after so many tries. Doubling has an end: a float overflows within days of trying."""
    return min(RETRY_S * 2.0 ** min(tries, 30), slowest_s)


class Bus:
    """The line to one endpoint and the devices on it."""

    def __init__(self, *, name: str, clock: Clock, listener: Listener, min_gap_s: float) -> None:
        self.name = name
        self._clock = clock
        self._listener = listener
        self._min_gap_s = min_gap_s
        self._endpoint: Session | None = None
        self._members: dict[str, _Member] = {}
        self._wake = asyncio.Event()
        self._lost_at: float | None = None
        self._connect_due = 0.0
        self._tried = False  # to connect, for the first time
        self._connect_wait = RECONNECT_S
        self._polling = False
        self._poll_took_s = 0.0
        self._questions: deque[_Question] = deque()
        # Questions and looks take turns: neither keeps the other waiting for long.
        self._asked_last = False
        self._looked: _Member | None = None
        # Those that do not answer are not tried before; only where others share the line.
        self._silent_due = 0.0
        self._silent_tries = 0
        self._finishing = False
        self._before: list[asyncio.Task[None]] = []

    def attach(self, endpoint: Session, *, connect_in_s: float = 0.0) -> None:
        """Give the line its session, and when to connect it first."""
        self._endpoint = endpoint
        self._connect_due = self._clock.boottime_s() + connect_in_s

    def add(
        self,
        tag: str,
        driver: Driver,
        *,
        poll_s: float,
        tolerance: float,
        settable: bool,
        phase_s: float | None = None,
        sparing: bool = False,
    ) -> None:
        """Put a device on this line, or another driver in its place.

        It is polled at boot-time seconds `phase_s` + n * `poll_s`; the phase is now where none is given.
        `tolerance`: how far a read-back may be from the value written. `settable`: it has a setpoint at all;
        a meter has none. `sparing`: a write wears its register, and is tried again ever more seldom.
        """
        poll_s = self._allowed(poll_s, driver)
        if phase_s is None:
            phase_s = self._clock.boottime_s()
        if tag in self._members:
            self.remove(tag)
        self._members[tag] = _Member(tag, driver, poll_s, phase_s, tolerance, settable, sparing)
        self._wake.set()

    def _allowed(self, poll_s: float, driver: Driver) -> float:
        # A line with a gap is kept three quarters free, so that a write seldom waits for a poll's gap.
        return max(poll_s, 4 * self._min_gap_s * driver.commands_per_poll)

    def pace(self, tag: str, *, poll_s: float, phase_s: float, goes_first: bool = False) -> None:
        """Poll a device at this pace from now on, at boot-time seconds `phase_s` + n * `poll_s`.

        `goes_first`: before all others that are due, but not twice in a row before them.
        """
        member = self._members[tag]
        member.goes_first = goes_first
        poll_s = self._allowed(poll_s, member.driver)
        if (member.poll_s, member.phase_s) == (poll_s, phase_s):
            return
        member.poll_s, member.phase_s = poll_s, phase_s
        due = member.next_poll_due(self._clock.boottime_s(), shares=False)
        member.poll_due = min(member.poll_due, due)
        self._wake.set()

    def remove(self, tag: str) -> None:
        """Take a device off this line. What is under way for it ends, and nobody hears of it."""
        member = self._members.pop(tag)
        member.write = member.written = None
        self._wake.set()

    def look(self, tag: str) -> None:
        """Read anew what stands in this device, as if it had just been connected."""
        member = self._members[tag]
        member.known, member.contact_due = False, 0.0
        self._wake.set()

    # --- what the cycle asks for ----------------------------------------------------------------------

    def write(self, tag: str, value: float, *, verify: bool) -> int:
        """Ask for a value to be written; returns the ticket under which its outcome is told.

        A waiting write of the device is replaced. `verify`: the device should hold the value already; read it
        first, and write only if it does not.
        """
        member = self._members[tag]
        write = member.write = _Write(next_ticket(), value, verify)
        member.written = None
        now = self._clock.boottime_s()
        member.contact_due = 0.0
        member.quiet_until = min(member.quiet_until, now + RECONNECT_S)
        if self._endpoint is not None and not self._endpoint.connected and self._tried:
            self._connect_due = min(self._connect_due, now + RECONNECT_S)
        self._wake.set()
        return write.ticket

    def withdraw(self, tag: str) -> None:
        """Nothing is owed to this device any more, neither a write nor its confirmation."""
        member = self._members[tag]
        member.write = member.written = None

    def keep_alive(self, tag: str, job: KeepAliveJob) -> None:
        """Give the device a sign of life, after all writes and before all polls."""
        self._members[tag].keep_alive = job
        self._wake.set()

    @property
    def gap_s(self) -> float:
        """The pause that this line keeps between two commands."""
        return self._min_gap_s

    def driver(self, tag: str) -> Driver:
        """The driver of a device on this line. Only within `ask` may it be used."""
        return self._members[tag].driver

    async def ask(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read something over this line, its session connected: after all writes and their read-backs.

        `read` gives way to them between two commands, and is then begun anew. Raises what it raises, and
        `DeviceUnreachable` where there is no session to be had, or the line ends.
        """
        if self._finishing:
            raise DeviceUnreachable(f"{self.name}: the node is letting go of this line")
        question = _Question(read, asyncio.get_running_loop().create_future())
        self._questions.append(question)
        if self._endpoint is not None and not self._endpoint.connected and self._tried:
            self._connect_due = min(self._connect_due, self._clock.boottime_s() + RECONNECT_S)
        self._wake.set()
        try:
            return await question.answer  # type: ignore[no-any-return]
        finally:
            if question in self._questions:
                self._questions.remove(question)

    def finish(self) -> None:
        """Begin nothing new: end the job under way, read back what is written, then let go of the line."""
        self._finishing = True
        self._wake.set()

    def reserve(self, tag: str, at_boottime_s: float | None) -> None:
        """A write will be wanted at this moment: keep the line free for it."""
        member = self._members[tag]
        if member.reserved_at != at_boottime_s:
            member.reserved_at = at_boottime_s
            # A poll may have been held back for the moment before.
            self._wake.set()

    # --- the line ---------------------------------------------------------------------------------

    async def gap(self, seconds: float) -> None:
        """Wait for the profile's minimum gap. A poll gives way here as soon as a write wants the line."""
        if not self._polling:
            await self._clock.sleep(seconds)
            return
        ends = self._clock.boottime_s() + seconds
        while (left := ends - self._clock.boottime_s()) > 0:
            if self._line_is_wanted(ends):
                raise PollPreempted
            await self._pause(left)
        if self._line_is_wanted(ends):
            raise PollPreempted

    def _line_is_wanted(self, poll_starts: float) -> bool:
        if self._finishing:
            return True
        now = self._clock.boottime_s()
        if self._is_reserved(poll_starts, lasts_s=self._poll_room_s(), now=now):
            return True
        return any(
            member.written is not None or member.write_is_due(now)
            for member in self._members.values()
            if self._may_be_asked(member, now)
        )

    def _poll_room_s(self) -> float:
        return POLL_ALLOWANCE_S if self._min_gap_s > 0 else self._poll_took_s

    def _is_reserved(self, starts: float, *, lasts_s: float, now: float) -> bool:
        """Tell whether a job that starts then, or its gap, would run into the moment of a known write."""
        ends = starts + lasts_s + self._min_gap_s
        return any(
            member.reserved_at is not None
            and now < member.reserved_at + RESERVED_GRACE_S
            and member.reserved_at < ends
            for member in self._members.values()
        )

    def _may_be_asked(self, member: _Member, now: float) -> bool:
        return member.quiet_until <= now and (member.silent_since is None or self._silent_due <= now)

    async def _pause(self, seconds: float) -> None:
        """Sleep, or until somebody wants something."""
        self._wake.clear()
        await self._clock.wait(self._wake, seconds)

    def follow(self, task: asyncio.Task[None]) -> None:
        """Begin only once the line's former task has let go of it."""
        self._before.append(task)

    async def _wait_for_line(self) -> None:
        if self._before:
            await asyncio.wait(self._before)
            self._before.clear()
        # Whoever used this line before, a plan, a process or the guard, may have sent its last command just
        # now: its pause still runs.
        await self._clock.sleep(self._min_gap_s)

    async def run(self) -> None:
        """Serve the line for the life of the node."""
        assert self._endpoint is not None
        task = asyncio.current_task()
        assert task is not None
        await self._wait_for_line()
        try:
            # Libraries that wait with asyncio.wait_for swallow, on Python 3.11, a cancellation that meets an
            # answer: a line taken down would go on beside its successor.
            while not task.cancelling():
                if self._finishing and not self._reads_back(self._endpoint):
                    return
                await self._turn(self._endpoint)
            raise asyncio.CancelledError
        finally:
            self._leave_unanswered(f"{self.name}: the node has let go of this line")
            await self._endpoint.aclose()

    async def _turn(self, endpoint: Session) -> None:
        now = self._clock.boottime_s()
        if not endpoint.connected:
            if now < self._connect_due:
                await self._pause(min(self._connect_due - now, 60.0))
            else:
                await self._connect(endpoint)
            return
        if now < endpoint.next_command_at:
            # Nobody is chosen before the line is free: what is written then is what is wanted then.
            await self._pause(endpoint.next_command_at - now)
            return
        member, job = self._next(now)
        if member is None and job is not None:
            await job
            return
        if member is None or job is None:
            await self._pause(max(0.0, min(self._next_due(now) - now, 60.0)))
            return
        try:
            await job
        except DeviceUnreachable as error:
            took_s = self._clock.boottime_s() - now
            is_sound = isinstance(error, DeviceAway)
            await self._unanswered(endpoint, member, str(error), took_s=took_s, line_is_sound=is_sound)

    def _reads_back(self, endpoint: Session) -> bool:
        """Tell whether something was written and not read back, on a session that is still there."""
        return endpoint.connected and any(member.written is not None for member in self._members.values())

    def _next(self, now: float) -> tuple[_Member | None, Awaitable[object] | None]:
        """The next job of the line, if there is one now; a question is no member's.

        Writes, then read-backs, then keep-alives. Then those that did not answer last time, as far as their
        share of the line goes: each costs its whole timeout. Then whoever is due to be looked at, in turn
        with questions. Of several, the one whose turn is the longest ago: nobody is starved by a neighbour
        that is written all the time.
        """
        to_write: _Member | None = None
        to_read_back: _Member | None = None
        to_keep: _Member | None = None
        look: _Member | None = None
        silent: list[_Member] = []
        for member in self._members.values():
            if not self._may_be_asked(member, now):
                continue
            if member.silent_since is not None:
                silent.append(member)
            elif member.write_is_due(now):
                if to_write is None or _write_turn(member) < _write_turn(to_write):
                    to_write = member
            elif member.written is not None:
                to_read_back = to_read_back or member
            elif member.keep_alive is not None and member.known:
                to_keep = to_keep or member
            elif member.look_due() <= now and (
                look is None or self._look_turn(member) < self._look_turn(look)
            ):
                look = member
        if to_write is not None and to_write.write is not None and not self._finishing:
            return to_write, self._write(to_write, to_write.write)
        if to_read_back is not None and to_read_back.written is not None:
            return to_read_back, self._read_back(to_read_back, to_read_back.written)
        if self._finishing:
            return None, None
        if to_keep is not None and to_keep.keep_alive is not None:
            if self._is_reserved(now, lasts_s=self._poll_room_s(), now=now):
                return None, None
            return to_keep, self._keep_alive(to_keep, to_keep.keep_alive)
        lost = self._next_silent(silent, now)
        if lost is not None:
            self._silent_tries += 1
            if lost.write is not None and lost.write_is_due(now):
                return lost, self._write(lost, lost.write)
            return lost, self._poll(lost) if lost.known else self._contact(lost)
        if self._line_is_wanted(now):
            return None, None
        if self._questions and (look is None or not self._asked_last):
            self._asked_last = True
            return None, self._put(self._questions[0])
        if look is None:
            return None, None
        self._asked_last, self._looked = False, look
        return look, self._poll(look) if look.known else self._contact(look)

    def _look_turn(self, member: _Member) -> tuple[bool, float]:
        return not member.goes_first or member is self._looked, member.looked_at

    def _next_silent(self, silent: list[_Member], now: float) -> _Member | None:
        """Whom to try of those that do not answer: mostly one that a write is owed to."""
        owed = [member for member in silent if member.write_is_due(now)]
        others = [member for member in silent if not member.write_is_due(now) and member.contact_due <= now]
        if others and (not owed or self._silent_tries % UNOWED_TRY == 0):
            owed = others
        member = min(owed, key=_tried_at, default=None)
        if member is None or self._is_reserved(now, lasts_s=member.silence_cost_s, now=now):
            return None
        return member

    def _next_due(self, now: float) -> float:
        """When there may be a job, while there is none now."""
        # What is due and has no turn is held back by a reserved line.
        held_until = min(
            (
                member.reserved_at + RESERVED_GRACE_S
                for member in self._members.values()
                if member.reserved_at is not None and member.reserved_at + RESERVED_GRACE_S > now
            ),
            default=now + RECONNECT_S,
        )
        due = held_until if self._questions else math.inf
        for member in self._members.values():
            moment = member.look_due()
            if member.keep_alive is not None and member.known:
                moment = now
            if member.write is not None:
                moment = min(moment, member.write.not_before)
            moment = max(moment, member.quiet_until)
            if member.silent_since is not None:
                moment = max(moment, self._silent_due)
            due = min(due, moment if moment > now else held_until)
        return due

    async def _put(self, question: _Question) -> None:
        """Put a question to whoever it is for. What it finds changes nothing that the line knows."""
        self._polling = True
        try:
            answer = await question.read()
        except PollPreempted:
            # It stays in its place.
            return
        except (DeviceUnreachable, DeviceRefused, ReadingInvalid) as error:
            self._settle(question, error=error)
            if isinstance(error, DeviceUnreachable):
                # A device needs its time to close the session that was given up.
                self._connect_due = max(self._connect_due, self._clock.boottime_s() + RESPITE_S)
        except Exception as error:  # noqa: BLE001 - for the one who asked, and no reason to end the line
            self._settle(question, error=error)
        else:
            self._settle(question, answer=answer)
        finally:
            self._polling = False

    def _settle(self, question: _Question, *, answer: object = None, error: Exception | None = None) -> None:
        if question in self._questions:
            self._questions.remove(question)
        if question.answer.done():
            return
        if error is not None:
            question.answer.set_exception(error)
        else:
            question.answer.set_result(answer)

    def _leave_unanswered(self, reason: str) -> None:
        """Nobody will answer those who wait, or not soon."""
        for question in list(self._questions):
            self._settle(question, error=DeviceUnreachable(reason))

    async def _connect(self, endpoint: Session) -> None:
        started = self._clock.boottime_s()
        self._tried = True
        try:
            await endpoint.connect()
        except DeviceUnreachable as error:
            self._endpoint_lost(str(error), tried_at=started)
            return
        self._lost_at = None
        self._connect_wait = RECONNECT_S
        # Somebody who takes connections only to close them is not asked for the next one at once.
        self._connect_due = started + RECONNECT_S
        for member in self._members.values():
            # Another session may lead to a device that has restarted meanwhile.
            member.known, member.contact_due = False, 0.0

    def _endpoint_lost(self, reason: str, *, tried_at: float) -> None:
        """Nobody takes connections there: every device behind it is out of reach."""
        now = self._clock.boottime_s()
        if self._lost_at is None:
            self._lost_at = now
        owed = any(
            member.write is not None or member.written is not None for member in self._members.values()
        )
        if owed or now - self._lost_at < RECONNECT_EAGERLY_FOR_S:
            self._connect_wait = RECONNECT_S
        else:
            self._connect_wait = min(self._connect_wait * 2, RECONNECT_SLOWEST_S)
        self._connect_due = max(now, tried_at + self._connect_wait)
        self._leave_unanswered(reason)
        for member in list(self._members.values()):
            self._member_lost(member, reason)

    async def _unanswered(
        self, endpoint: Session, member: _Member, reason: str, *, took_s: float, line_is_sound: bool
    ) -> None:
        """One device did not answer. Those who share the line go on at once."""
        now = self._clock.boottime_s()
        if endpoint.connected and member.known and now - member.missed_at > FORGIVEN_EVERY_S:
            # Wires lose a frame now and then. It is asked once more when its answer can no longer come, and
            # only then does anybody hear of it.
            member.missed_at = now
            member.quiet_until = now + took_s
            member.poll_due = min(member.poll_due, now)
            return
        if member.silent_since is None:
            member.silent_since, member.quiet_s = now, RECONNECT_S
        member.silence_cost_s = took_s
        self._member_lost(member, reason)
        if member.write is None and now - member.silent_since >= RECONNECT_EAGERLY_FOR_S:
            member.quiet_s = min(member.quiet_s * 2, RECONNECT_SLOWEST_S)
        else:
            member.quiet_s = RECONNECT_S
        # Counted from the try's begin, or its timeout would come on top.
        member.quiet_until = max(now + RESPITE_S, now - took_s + member.quiet_s)
        others = [other for other in self._members.values() if other is not member]
        shared = any(other.silent_since is None for other in others)
        self._silent_due = now + took_s * (1 / SHARE_OF_SILENT - 1) if shared else 0.0
        if endpoint.connected:
            if shared or line_is_sound:
                return
            # Nobody answers on this line: it may be what is broken.
            await endpoint.aclose()
        for other in others:
            # The device they share may have restarted.
            other.known, other.contact_due = False, 0.0
        self._connect_due = min((each.quiet_until for each in self._members.values()), default=now)

    def _member_lost(self, member: _Member, reason: str) -> None:
        member.known = False
        if member.written is not None:
            # Written but not confirmed: owed again, unless a newer write has taken its place.
            member.write = member.write or member.written
            member.written = None
        if member.write is not None:
            write = member.write
            write.not_before = 0.0
            if member.sparing and write.sent >= TRIES:
                # It answers when asked and not when written: each of these may have been carried out.
                write.not_before = write.sent_at + self._pause_after(member, write.sent)
        # First: what it means that a write has failed depends on why the device is not there.
        self._tell_lost(member, reason)
        if member.write is not None:
            self._failed(member, member.write, Code.WRITE_FAILED, reason)

    def _answered(self, member: _Member) -> None:
        member.reachable = True
        member.silent_since = None

    def _is_here(self, member: _Member) -> bool:
        """Tell whether the device is on this line still; another one may have its tag by now."""
        return self._members.get(member.tag) is member

    def _tell_lost(self, member: _Member, reason: str) -> None:
        if member.reachable is not False:
            member.reachable = False
            if self._is_here(member):
                self._listener.lost(member.tag, reason=reason)

    def _tell(self, member: _Member, outcome: WriteOutcome) -> None:
        if self._is_here(member):
            self._listener.wrote(member.tag, outcome)

    # --- jobs -----------------------------------------------------------------------------------

    async def _contact(self, member: _Member) -> bool:
        """Identify the device and read what stands in it. Nothing is written before that succeeds."""
        member.tried_at = member.looked_at = self._clock.boottime_s()
        try:
            await member.driver.identify()
            standing = await member.driver.read_setpoint() if member.settable else None
        except (DeviceRefused, ReadingInvalid) as error:
            member.refused = str(error)
            member.silent_since = None
            member.contact_tries += 1
            member.contact_due = self._clock.boottime_s() + _backed_off(member.contact_tries)
            self._tell_lost(member, str(error))
            return False
        member.known, member.refused, member.contact_tries = True, "", 0
        member.poll_due = 0.0
        if member.reachable is False and not member.settable:
            # Perhaps it was asked nothing: one that is only measured may have nothing to be recognised by.
            # Its first poll tells whether it is back.
            return True
        self._answered(member)
        if self._is_here(member):
            self._listener.contact(member.tag, standing=standing)
        return True

    async def _write(self, member: _Member, write: _Write) -> None:
        assert self._endpoint is not None
        member.tried_at = self._clock.boottime_s()
        if not member.known:
            if not await self._contact(member) and member.write is write:
                self._retry(member, write, Code.WRITE_FAILED, member.refused)
            # It is written in a turn of its own: what the device was found to hold may have changed what is
            # wanted, and so may the time that this has taken.
            return
        try:
            if write.verify:
                # What it does not hold is written in the next turn, unless it was replaced or withdrawn.
                write.verify = await self._holds(member, write)
                return
            write.sent, write.sent_at = write.sent + 1, self._clock.boottime_s()
            try:
                await member.driver.write(write.value)
            finally:
                self._count_writes(member)
        except (DeviceRefused, ReadingInvalid) as error:
            if member.write is write:
                self._retry(member, write, Code.WRITE_FAILED, str(error))
            return
        except DeviceUnreachable:
            if not write.resent and member.write is write and not self._endpoint.connected:
                # The session may have been dead before we used it (a device closes idle ones without a word):
                # one immediate try on a new one before anybody hears of it.
                write.resent = True
                await self._reopen()
                return
            raise
        self._answered(member)
        if member.write is write:
            member.write = None
            member.written = write

    async def _reopen(self) -> None:
        assert self._endpoint is not None
        await self._endpoint.aclose()
        await self._connect(self._endpoint)

    async def _holds(self, member: _Member, write: _Write) -> bool:
        """Confirm a value the device should hold already; False where it does not."""
        readback = await member.driver.read_setpoint()
        if readback is None or abs(readback - write.value) > member.tolerance:
            return False
        if member.write is write:
            member.write = None
            self._tell(member, WriteOutcome(write.ticket, write.value, readback=readback))
        return True

    async def _read_back(self, member: _Member, write: _Write) -> None:
        try:
            readback = await member.driver.read_setpoint()
        except (DeviceRefused, ReadingInvalid) as error:
            if member.written is write:
                member.written = None
                detail = f"the value cannot be read back: {error}"
                self._retry(member, write, Code.READBACK_MISMATCH, detail)
            return
        if member.written is not write:
            # A newer write took its place, or nothing is owed any more.
            return
        member.written = None
        if readback is not None and abs(readback - write.value) > member.tolerance:
            detail = f"wrote {write.value:g}, the device reads {readback:g}"
            self._retry(member, write, Code.READBACK_MISMATCH, detail)
            return
        self._tell(member, WriteOutcome(write.ticket, write.value, readback=readback))

    def _retry(self, member: _Member, write: _Write, code: Code, detail: str) -> None:
        """The device answered, and not as wanted: try again, ever more slowly."""
        write.tries += 1
        write.verify = False
        wait = RETRY_S if write.tries < TRIES else self._pause_after(member, write.tries)
        write.not_before = self._clock.boottime_s() + wait
        member.write = write
        if code is Code.WRITE_FAILED or write.tries >= TRIES:
            self._failed(member, write, code, detail)

    @staticmethod
    def _pause_after(member: _Member, tries: int) -> float:
        return _backed_off(tries, slowest_s=RETRY_SPARING_S if member.sparing else RETRY_SLOWEST_S)

    def _failed(self, member: _Member, write: _Write, code: Code, detail: str) -> None:
        """Tell the first failure of a write; the tries after it are told when one succeeds."""
        if write.told:
            return
        write.told = True
        outcome = WriteOutcome(write.ticket, write.value, code=code, detail=detail, still_trying=True)
        self._tell(member, outcome)

    async def _keep_alive(self, member: _Member, job: KeepAliveJob) -> None:
        member.keep_alive = None
        failed = ""
        try:
            if job.arm:
                await member.driver.arm_fallback(job.fallback)
            await member.driver.keep_alive(job.setpoint)
        except (DeviceRefused, ReadingInvalid) as error:
            failed = str(error)
        finally:
            self._count_writes(member)
        self._answered(member)
        if self._is_here(member):
            self._listener.kept_alive(member.tag, job.fallback, failed=failed)

    def _count_writes(self, member: _Member) -> None:
        writes = member.driver.take_writes()
        if writes and self._is_here(member):
            self._listener.spent(member.tag, writes)

    async def _poll(self, member: _Member) -> None:
        now = self._clock.boottime_s()
        member.poll_due = member.next_poll_due(now, shares=len(self._members) > 1)
        looked_at, member.looked_at = member.looked_at, now
        self._polling = True
        try:
            result = await member.driver.poll()
        except PollPreempted:
            member.poll_due, member.looked_at = now, looked_at
            return
        except (DeviceRefused, ReadingInvalid) as error:
            member.silent_since = None
            self._tell_lost(member, str(error))
            return
        finally:
            self._polling = False
        self._poll_took_s = min(self._clock.boottime_s() - now, MAX_ROOM_S)
        self._answered(member)
        if self._is_here(member):
            self._listener.polled(member.tag, result)
