"""The one place of the edge that asks what time it is."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import math
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from edge.core import clock
from edge.core.clock import ClockState, Exchange, Look, Reference, Standing, Trust
from edge.core.image import TRUSTED, Clock as ClockQuality
from edge.core.instant import Instant

# adjtimex(2) answers TIME_ERROR, and sets this flag, while the clock is not synchronised.
_TIME_ERROR = 5
_STA_UNSYNC = 0x0040
# How often the kernel is asked; a step of the wall clock is seen at once.
LOOK_EVERY_S = 1.0


class Clock(Protocol):
    """What the runtime needs to know of time; tests turn a clock of their own."""

    boot_id: str

    def now(self) -> Instant: ...

    def boottime_s(self) -> float: ...

    def sleep(self, seconds: float) -> Awaitable[None]: ...

    def wait(self, event: asyncio.Event, seconds: float) -> Awaitable[None]:
        """Wait for the event, at most this long."""

    def quality(self) -> ClockQuality: ...


class SteeredClock(Clock, Protocol):
    """A clock that judges itself (edge.core.clock), and takes what central measures."""

    def standing(self) -> Standing: ...

    @property
    def reference(self) -> Reference | None:
        """What last confirmed it."""

    def resume(self, reference: Reference) -> None:
        """Take up what confirmed it in another process of this boot, if that is news."""

    def exchanged(self, exchange: Exchange) -> None:
        """Central closed an exchange of timestamps."""


@dataclass(frozen=True, slots=True)
class Host:
    """The host's clocks in seconds; the kernel's word for the first, None while it vouches for nothing."""

    wall_s: Callable[[], float]
    boottime_s: Callable[[], float]
    kernel_error_s: Callable[[], float | None]


class HostClock:
    """The host's clocks, judged.

    `trust_host`: take the wall clock as synchronised whatever the kernel says (the demo, containers).
    """

    def __init__(self, *, trust_host: bool, host: Host | None = None) -> None:
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        self._trust_host = trust_host
        self._host = host or Host(time.time, _boottime_s, kernel_error_s)
        self._state = ClockState()
        self._utc_s = -math.inf
        self._seen = self._ask()
        self._state = clock.look(self._state, self._seen)

    def boottime_s(self) -> float:
        return self._host.boottime_s()

    def now(self) -> Instant:
        seen = self._look()
        utc_s = seen.wall_s
        if not self._trust_host:
            utc_s = self._utc_s = clock.onwards(
                self._utc_s, clock.utc_base(self._state, seen) + seen.boottime_s
            )
        return Instant(datetime.fromtimestamp(utc_s, UTC), seen.boottime_s)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        # No task for either of the two: a command comes this way.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await event.wait()

    def quality(self) -> ClockQuality:
        if self._trust_host:
            return TRUSTED
        self._look()
        return ClockQuality(untrusted_since_s=self._state.untrusted_since_s)

    # --- judgement ----------------------------------------------------------------------------------

    def standing(self) -> Standing:
        if self._trust_host:
            return Standing(Trust.TRUSTED, 0.0)
        seen = self._look()
        return clock.standing(self._state, seen)

    @property
    def reference(self) -> Reference | None:
        return self._state.reference

    def resume(self, reference: Reference) -> None:
        own = self._state.reference
        if own is None or own.at_boottime_s < reference.at_boottime_s:
            self._state = clock.look(replace(self._state, reference=reference), self._ask())

    def exchanged(self, exchange: Exchange) -> None:
        seen = self._look()
        self._state = clock.exchanged(self._state, exchange, seen)

    def _look(self) -> Look:
        """The clocks now, judged anew once a second and as soon as they differ from the last look."""
        last = self._seen
        seen = Look(self._host.wall_s(), self._host.boottime_s(), last.kernel_error_s)
        is_stepped = abs(seen.base_s - last.base_s) > clock.STEP_S / 2
        if not self._trust_host and (is_stepped or seen.boottime_s - last.boottime_s >= LOOK_EVERY_S):
            seen = self._ask()
            self._state = clock.look(self._state, seen)
        return seen

    def _ask(self) -> Look:
        self._seen = Look(self._host.wall_s(), self._host.boottime_s(), self._host.kernel_error_s())
        return self._seen


def _boottime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Timex(ctypes.Structure):
    """The head of `struct timex` of adjtimex(2), and room for the rest of it."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


_libc = ctypes.CDLL(None, use_errno=True)


def kernel_error_s() -> float | None:
    """How wrong the kernel says its clock may be, in seconds (adjtimex, read-only).

    None while it is not synchronised, or where it cannot be asked.
    """
    timex = _Timex()
    try:
        state = int(_libc.adjtimex(ctypes.byref(timex)))
    except AttributeError:
        return None
    if not 0 <= state < _TIME_ERROR or timex.status & _STA_UNSYNC:
        return None
    return float(timex.maxerror) / 1e6


def trusts_host() -> bool:
    return os.environ.get("SGM_TRUST_HOST_CLOCK", "0") == "1"


def wall(utc: datetime) -> str:
    """A moment as the wire writes it."""
    return utc.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
