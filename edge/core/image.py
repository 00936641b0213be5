"""The process image: what one decision sees of the world."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Whether the wall clock may choose a schedule's slot.

    `untrusted_since_s`: boot-time second since which nothing has confirmed it; None while it is trusted.
    """

    untrusted_since_s: float | None = None


TRUSTED = Clock()


@dataclass(frozen=True, slots=True)
class ProcessImage:
    """This cycle's readings of one device.

    `readback` is the setpoint in force as the device itself tells it, in the device type's unit; None where
    it was not read, is too old, or cannot be read. `loop_value` is the closed loop's output for this device;
    None where no loop owns it or its meter is stale.
    """

    readback: float | None = None
    loop_value: float | None = None
    clock: Clock = TRUSTED


EMPTY = ProcessImage()
