"""When a setpoint is due to be written, again or for the first time.

The cyclic writer only repeats what the array resolves to. How often depends on what a write costs: a volatile
register is written again every period; one that wears, or may, only when its read-back differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edge.core.commands import Lifetime, WriteClass

# Bounds of a site's `cyclic_write_timeout`, in seconds.
MIN_PERIOD_S = 10.0
MAX_PERIOD_S = 86400.0


class WriteReason(StrEnum):
    CHANGED = "changed"  # the array resolves to another value
    OWED = "owed"  # the last write of this value is not confirmed
    FOUND = "found"  # first contact: the device holds something else
    REPEATED = "repeated"  # the cyclic writer's turn
    DRIFTED = "drifted"  # the cyclic writer's turn, and the read-back differs
    RETIRED = "retired"  # this node leaves the device, which goes back to its default


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """A device's own fallback as it is to be armed: `value` after `timeout_s` without a sign of life."""

    value: float
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Armed:
    """What a device's own fallback was armed with, and when it had its last sign of life."""

    keep_alive: KeepAlive
    at_boottime_s: float


class KeepAliveDue(StrEnum):
    ARM = "arm"
    REFRESH = "refresh"


def keep_alive_due(
    keep_alive: KeepAlive | None, *, armed: Armed | None, now_boottime_s: float
) -> KeepAliveDue | None:
    """Tell whether a device's own fallback is to be armed, or to be kept from acting: at a third of its time.

    One that was armed with another value or another time is armed anew. Apart from the cyclic writer and from
    the lifetime of values (rule 14).
    """
    if keep_alive is None:
        return None
    if armed is None or armed.keep_alive != keep_alive:
        return KeepAliveDue.ARM
    if now_boottime_s - armed.at_boottime_s >= keep_alive.timeout_s / 3:
        return KeepAliveDue.REFRESH
    return None


@dataclass(frozen=True, slots=True)
class InForce:
    """What this node last wrote to a device, and whether the device confirmed it."""

    value: float
    at_boottime_s: float
    confirmed: bool


def write_due(
    value: float,
    *,
    in_force: InForce | None,
    readback: float | None,
    tolerance: float,
    lifetime: Lifetime,
    write_class: WriteClass,
    may_repeat: bool,
    period_s: float,
    now_boottime_s: float,
) -> WriteReason | None:
    """Tell why this value is to be written now; None where it is not.

    `readback` is a finite number or None. `may_repeat`: the day's budget of a register that wears has more
    left than is kept for a release.
    """
    differs = readback is None or abs(readback - value) > tolerance
    if in_force is None:
        return WriteReason.FOUND if differs else None
    if in_force.value != value:
        return WriteReason.CHANGED
    if not in_force.confirmed:
        return WriteReason.OWED
    if lifetime is Lifetime.SINGULAR or now_boottime_s - in_force.at_boottime_s < period_s:
        return None
    if write_class is WriteClass.VOLATILE:
        return WriteReason.REPEATED
    # A register that wears is not written to repeat a value, nor because nobody could read it.
    return WriteReason.DRIFTED if readback is not None and differs and may_repeat else None
