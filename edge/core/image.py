"""The process image: what one decision sees of the world."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from edge.core.commands import Source
from edge.core.quantities import Bound


@dataclass(frozen=True, slots=True)
class Clock:
    """Whether the wall clock may choose a schedule's slot.

    `untrusted_since_s`: boot-time second since which nothing has confirmed it; None while it is trusted.
    """

    untrusted_since_s: float | None = None


TRUSTED = Clock()


@dataclass(frozen=True, slots=True)
class PassedOn:
    """What a proxy was decided to be held at, which is what its children are asked for.

    `target` is where the proxy's ramp leads, without one the value. The rest is as in the proxy's decision.
    """

    value: float
    target: float
    source: Source
    request_id: str | None = None
    until_boottime_s: float | None = None
    until_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class ProcessImage:
    """This cycle's readings of one device.

    `readback` is the setpoint in force as the device itself tells it, in the device type's unit; None where
    it was not read, is too old, or cannot be read. `loop_value` is the closed loop's output for this device;
    None where no loop owns it or has anything to say of it; `loop_because` says why, for people.
    `connection_bound` is what the connection's limit leaves for this device, whoever asks; None where it has
    none. `passed_on` is what the proxy of a child asks of it; None where there is none to ask.
    """

    readback: float | None = None
    loop_value: float | None = None
    loop_because: str = ""
    connection_bound: Bound | None = None
    clock: Clock = TRUSTED
    passed_on: PassedOn | None = None


EMPTY = ProcessImage()
