"""The one place of the edge that asks what time it is."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from edge.core.image import TRUSTED, Clock as ClockQuality
from edge.core.instant import Instant

# `struct timex` of adjtimex(2) is smaller than this on every Linux; we only need its first field to be zero.
_TIMEX_SIZE = 512
_TIME_ERROR = 5  # adjtimex's answer while the clock is not synchronised


class Clock(Protocol):
    """What the runtime needs to know of time; tests turn a clock of their own."""

    boot_id: str

    def now(self) -> Instant: ...

    def boottime_s(self) -> float: ...

    def sleep(self, seconds: float) -> Awaitable[None]: ...

    def wait(self, event: asyncio.Event, seconds: float) -> Awaitable[None]:
        """Wait for the event, at most this long; it may be set afterwards either way."""

    def quality(self) -> ClockQuality: ...


class HostClock:
    """The host's clocks.

    `trust_host`: take the wall clock as synchronised whatever the kernel says (the demo, containers).
    """

    def __init__(self, *, trust_host: bool) -> None:
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        self._trust_host = trust_host
        self._untrusted_since: float | None = None
        self._synchronised_once = False

    def boottime_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def now(self) -> Instant:
        return Instant(datetime.now(UTC), time.clock_gettime(time.CLOCK_BOOTTIME))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        # The timer sets the event itself: a command comes this way, and every poll of every device. A task or
        # a cancellation would cost more than all the rest of it.
        timer = asyncio.get_running_loop().call_later(max(0.0, seconds), event.set)
        try:
            await event.wait()
        finally:
            timer.cancel()

    def quality(self) -> ClockQuality:
        """Trusted once the kernel was synchronised since boot; its drift after that is small (holdover)."""
        if self._trust_host or self._synchronised_once:
            return TRUSTED
        if kernel_is_synchronised():
            self._synchronised_once = True
            self._untrusted_since = None
            return TRUSTED
        if self._untrusted_since is None:
            self._untrusted_since = self.boottime_s()
        return ClockQuality(untrusted_since_s=self._untrusted_since)


def kernel_is_synchronised() -> bool:
    """Ask the kernel's NTP state (adjtimex, read-only); False where it cannot be asked."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        state = int(libc.adjtimex(ctypes.create_string_buffer(_TIMEX_SIZE)))
    except (OSError, AttributeError):
        return False
    return 0 <= state < _TIME_ERROR


def trusts_host() -> bool:
    return os.environ.get("SGM_TRUST_HOST_CLOCK", "0") == "1"


def wall(utc: datetime) -> str:
    """A moment as the wire writes it."""
    return utc.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
