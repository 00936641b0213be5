"""How fast a setpoint may move.

A token bucket: a device may move for as many seconds as have passed, and one in advance, so that the first
step of a change leaves at once. What stands still saves nothing up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# How far the first step of a change is ahead of the ramp, in seconds.
ADVANCE_S = 1.0


@dataclass(frozen=True, slots=True)
class Ramp:
    """Where a ramp stands, where it goes, and the boot-time second up to which its movement is paid for."""

    value: float
    target: float
    paid_until_s: float


def move(target: float, *, ramp: Ramp, rate_per_s: float, now_boottime_s: float) -> Ramp:
    """Go towards the target as far as the rate (unit of the value a second) allows."""
    # It stood still, or does so now: its target came to where it is.
    rests = ramp.value in (ramp.target, target)
    paid_until_s = max(ramp.paid_until_s, now_boottime_s) if rests else ramp.paid_until_s
    distance = target - ramp.value
    seconds = now_boottime_s + ADVANCE_S - paid_until_s
    if distance == 0 or seconds <= 0:
        return Ramp(ramp.value, target, paid_until_s)
    if abs(distance) <= rate_per_s * seconds:
        # From here on it stands still: what it did not use of the time before is lost.
        return Ramp(target, target, max(paid_until_s + abs(distance) / rate_per_s, now_boottime_s))
    value = ramp.value + math.copysign(rate_per_s * seconds, distance)
    # Not the sum of what was paid: its rounding would leave a moment unpaid, and a second look would move.
    return Ramp(value, target, now_boottime_s + ADVANCE_S)
