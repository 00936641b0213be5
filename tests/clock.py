"""A clock that only moves when a test says so; and one that does not count what a busy machine takes."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from edge.core.instant import Instant

A_MORNING = datetime(2026, 3, 2, 10, 0, 0, tzinfo=UTC)


SCHEDSTAT = Path("/proc/thread-self/schedstat")


def unstarved_s() -> float:
    """Seconds by the monotonic clock, less those in which this thread could run and had no processor.

    What takes long by it took long by our own doing, however busy the machine is: a call that blocks counts in
    full. By the kernel's count (proc(5), second figure, nanoseconds); where there is none, all seconds count.
    """
    try:
        starved_ns = int(SCHEDSTAT.read_text().split()[1])
    except (OSError, IndexError, ValueError):
        starved_ns = 0
    return time.monotonic() - starved_ns / 1e9


class ManualClock:
    """Both clocks of a node: `now()` tells them, nothing but the test moves them."""

    def __init__(self, *, utc: datetime = A_MORNING, boottime_s: float = 1000.0) -> None:
        self._utc = utc
        self._boottime_s = boottime_s

    def now(self) -> Instant:
        return Instant(self._utc, self._boottime_s)

    def advance(self, seconds: float) -> Instant:
        """Let time pass on both clocks; returns the new moment."""
        if seconds < 0:
            raise ValueError("time does not run backwards; a wall clock may be set back with jump_wall")
        self._utc += timedelta(seconds=seconds)
        self._boottime_s += seconds
        return self.now()

    def jump_wall(self, seconds: float) -> Instant:
        """Correct the wall clock, forwards or back. The boot-time clock does not see it."""
        self._utc += timedelta(seconds=seconds)
        return self.now()

    def reboot(self, *, off_s: float = 30.0) -> Instant:
        """The machine was off for a while: the boot-time clock begins anew."""
        self._utc += timedelta(seconds=off_s)
        self._boottime_s = 1.0
        return self.now()
