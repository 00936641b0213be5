"""When a direct request lapses, and what may move its end.

No setting, message or missing network switches this off: the end of a hold is a number in the device's state,
compared at every cycle with the boot-time clock.
"""

from __future__ import annotations

import math
from dataclasses import replace

from edge.core.commands import Hold
from edge.core.instant import Instant

# Bounds of a site's `curtailment_time_limit`, in seconds. Zero or infinite would switch the watchdog off.
MIN_TIME_LIMIT_S = 1.0
MAX_TIME_LIMIT_S = 3600.0


def is_time_limit(seconds: float) -> bool:
    """Tell whether this may be a site's time limit. NaN and infinities may not."""
    return math.isfinite(seconds) and MIN_TIME_LIMIT_S <= seconds <= MAX_TIME_LIMIT_S


def has_lapsed(hold: Hold, *, now: Instant) -> bool:
    """Tell whether a hold has outlived its limit, which counts from its arrival at this node."""
    # `>` rather than `>=`: a client which renews exactly on the limit must not see its device flicker to the
    # default between two renewals.
    return now.boottime_s > hold.ends_boottime_s


def shorten(hold: Hold, *, time_limit_s: float) -> Hold:
    """Apply a changed limit to a running hold, which it may shorten but never lengthen."""
    ends = min(hold.ends_boottime_s, hold.received_boottime_s + time_limit_s)
    return replace(hold, ends_boottime_s=ends)
