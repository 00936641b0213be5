"""Signs of life: who holds a lock of the state directory, and when its write cycle last turned.

The holder of a lock writes one line into the lock file itself. A watcher may end a holder whose sign no
longer changes, and nobody else: process ids are used again, so each goes with the moment its process started.
"""

from __future__ import annotations

import fcntl
import os
import signal
import zlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

log = structlog.get_logger()

# The files of a state directory: who may talk to the devices, who asks for it, and that there is one guard.
BUS_LOCK, BUS_WANTED, GUARD_LOCK = "bus.lock", "bus.wanted", "guard.lock"

# A holder whose write cycle has not turned for this long is stalled (design, rule 7).
STALLED_S = 3.0
# The same for one that loads: 2,000 devices or a migration of the store on a small computer.
LOADING_S = 30.0
# A watcher that looks later than this was asleep itself, and gives the holder the whole time once more.
LATE_S = 1.0

# One line of fixed length, so that a shorter one never leaves a rest of the one before.
_LINE = 256
# A read may meet a write half-way; the checksum tells, and the next read is whole.
_READ_TRIES = 3
# /proc/PID/stat after the command's closing parenthesis (proc(5)): state is its first field, starttime is
# field 22 of the line, the 20th of these.
_STATE, _STARTTIME = 0, 19


class Role(StrEnum):
    NODE = "node"
    GUARD = "guard"


class Phase(StrEnum):
    LOADING = "loading"  # from the lock to the first turn, and while a configuration is put into force
    RUNNING = "running"  # the write cycle turns
    WAITING = "waiting"  # for the bus, which another process holds


class Sign(msgspec.Struct, frozen=True, kw_only=True):
    """What the holder of a lock says of itself; `stamp_s` is on the boot-time clock of `boot`."""

    role: Role
    pid: int
    started_ticks: int
    boot: str
    phase: Phase
    stamp_s: float


class Clock(Protocol):
    """The part of the runtime's clock that signs need."""

    boot_id: str

    def boottime_s(self) -> float: ...


def process_started_ticks(pid: int) -> int | None:
    """When this process started, in clock ticks since boot; None where it does not run (any more)."""
    try:
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return None
    # A zombie has given up its locks already.
    return None if fields[_STATE] in ("Z", "X") else int(fields[_STARTTIME])


def is_alive(sign: Sign) -> bool:
    """Tell whether the very process that gave this sign still runs."""
    return process_started_ticks(sign.pid) == sign.started_ticks


def sign_line(sign: Sign) -> bytes:
    """A sign as it stands in the lock file: checksum, JSON, blanks, newline."""
    text = msgspec.json.encode(sign)
    return _line(b"%08x %s" % (zlib.crc32(text), text))


def _line(text: bytes) -> bytes:
    return text.ljust(_LINE - 1) + b"\n"


class LockLost(Exception):  # noqa: N818 - states the fault
    """The lock file was deleted or replaced: whoever comes next would lock another one."""


class SignedLock:
    """A lock file (flock) in which its holder gives signs of life. A process's death frees its locks."""

    def __init__(self, path: Path, *, role: Role, clock: Clock) -> None:
        """Open the file, made with its directory where it is missing; `OSError` where it can be neither.

        Where it cannot be written it can still be locked, without a sign: a disk may have become read-only.
        """
        self.path = path
        self._clock = clock
        self._role = role
        self._handle, self.writable = _open(path)
        self._is_holder = False
        started = process_started_ticks(os.getpid())
        if started is None:
            raise OSError("/proc does not show this process")
        self._started_ticks = started

    def take(self, phase: Phase) -> bool:
        """Lock it if it is free, and sign it; False where somebody else holds it."""
        if not self._is_in_place():
            self._reopen()
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._is_holder = True
        self.stamp(phase)
        return True

    def stamp(self, phase: Phase) -> None:
        """Give a sign of life; only for its holder, who hears here that the file was deleted (`LockLost`)."""
        if not self._is_in_place():
            raise LockLost(f"{self.path} was deleted or replaced; another process may take the bus")
        self._write(
            sign_line(
                Sign(
                    role=self._role,
                    pid=os.getpid(),
                    started_ticks=self._started_ticks,
                    boot=self._clock.boot_id,
                    phase=phase,
                    stamp_s=self._clock.boottime_s(),
                )
            )
        )

    def read(self) -> Sign | None:
        """The sign of whoever holds it; None where there is none that can be read."""
        if not self._is_holder and not self._is_in_place():
            # A holder signs the file that is there now; the deleted one shows its last sign for ever.
            try:
                self._reopen()
            except OSError:
                return None
        for _ in range(_READ_TRIES):
            checksum, _, text = os.pread(self._handle, _LINE, 0).strip(b" \n").partition(b" ")
            if checksum == b"%08x" % zlib.crc32(text):
                try:
                    return msgspec.json.decode(text, type=Sign)
                except msgspec.DecodeError:
                    return None
        return None

    def release(self) -> None:
        """Give it up, sign first: from then on nobody takes this process for its holder."""
        self._write(_line(b"free"))
        self._is_holder = False
        fcntl.flock(self._handle, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file, which frees the lock where it is held."""
        os.close(self._handle)

    def _is_in_place(self) -> bool:
        """Tell whether the open file is still the one that others will open."""
        try:
            there, here = self.path.stat(), os.fstat(self._handle)
        except FileNotFoundError:
            return False
        except OSError:
            # A disk that has died deletes nothing.
            return True
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def _reopen(self) -> None:
        before = self._handle
        self._handle, self.writable = _open(self.path)
        self._is_holder = False
        os.close(before)

    def _write(self, line: bytes) -> None:
        if not self.writable:
            return
        try:
            os.pwrite(self._handle, line, 0)
        except OSError as error:
            # The disk has died. Whoever watches will take this process for stalled, and is right to: it
            # cannot keep what it promises either. Without a watcher it goes on.
            self.writable = False
            log.error("no sign of life can be written", path=str(self.path), error=str(error))  # noqa: TRY400


def _open(path: Path) -> tuple[int, bool]:
    """Open for writing, else for reading alone; and which of the two it was."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), True
    except OSError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False


@dataclass(slots=True)
class Patience:
    """How long a watcher has seen the same sign, on its own clock and by its own attention.

    Nothing is compared with the holder's stamps: a watcher that was late itself (suspend, a stop, starvation)
    begins to count anew, once for each sign.
    """

    _sign: Sign | None = None
    _since_s: float = 0.0
    _looked_s: float = 0.0
    _was_extended: bool = False

    def silent_s(self, sign: Sign | None, *, now_s: float) -> float:
        """Look at the sign now; for how long it has not changed."""
        late = not 0 <= now_s - self._looked_s <= LATE_S
        if sign != self._sign:
            self._sign, self._since_s, self._was_extended = sign, now_s, False
        elif late and not self._was_extended:
            self._since_s, self._was_extended = now_s, True
        self._looked_s = now_s
        return now_s - self._since_s

    def has_ended(self, sign: Sign, *, now_s: float) -> bool:
        """Look at the sign now; whether its holder has been silent for too long."""
        limit_s = LOADING_S if sign.phase is Phase.LOADING else STALLED_S
        return self.silent_s(sign, now_s=now_s) > limit_s


class Holder:
    """The process behind a sign, held by its pidfd: whatever its id is used for later, this is the one."""

    def __init__(self, sign: Sign, pidfd: int) -> None:
        self.sign = sign
        self.pidfd = pidfd

    @classmethod
    def of(cls, sign: Sign) -> Holder | None:
        """The process that gave this sign; None where it is not there any more."""
        try:
            pidfd = os.pidfd_open(sign.pid)
        except OSError:
            return None
        # In this order: a process that took over the id after the descriptor was opened started later, and
        # shows another start.
        if not is_alive(sign):
            os.close(pidfd)
            return None
        return cls(sign, pidfd)

    def kill(self) -> None:
        """End it at once; `PermissionError` where it belongs to another user."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            log.info("the stalled process is gone already", pid=self.sign.pid)

    def close(self) -> None:
        os.close(self.pidfd)
