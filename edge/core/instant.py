"""Two clocks in one value: schedules use the first, every timeout the second."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment as a node knows it.

    `utc` may jump when the wall clock is corrected. `boottime_s` (CLOCK_BOOTTIME, seconds since boot) never
    does, and counts through suspend; it means nothing on another boot.
    """

    utc: datetime
    boottime_s: float
