"""What every driver and every session can do, whatever the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PollResult:
    """What a poll read.

    `readings` by canonical key, power positive towards the grid, None where the device has no value;
    `readback` is the setpoint in force as the device tells it, None where it does not. `said_at_s`: boot-time
    seconds of those readings which the device said by itself, before it was asked; all others are of now.
    """

    readings: dict[str, float | None]
    readback: float | None
    said_at_s: Mapping[str, float] = field(default_factory=dict)


class Session(Protocol):
    """One connection to one endpoint, shared by the devices behind it and used by one task at a time."""

    @property
    def connected(self) -> bool: ...

    @property
    def next_command_at(self) -> float:
        """Boot-time seconds before which no command may start."""

    async def connect(self) -> None:
        """Connect anew; `DeviceUnreachable` where that is not possible."""

    async def aclose(self) -> None: ...


class Driver(Protocol):
    """One device. Every method may raise `DeviceUnreachable`, `DeviceRefused` or `ReadingInvalid`."""

    @property
    def commands_per_write(self) -> int:
        """The most commands a write takes once the device is prepared; each costs the profile's gap."""

    @property
    def commands_per_poll(self) -> int:
        """The commands that reading telemetry and setpoint together takes; each costs the profile's gap."""

    @property
    def telemetry_units(self) -> dict[str, str]: ...

    async def identify(self) -> None:
        """Refuse a device that is not of this profile, or not of this rated power."""

    async def poll(self) -> PollResult:
        """Read telemetry and setpoint, in one batch where the device allows it."""

    async def write(self, value: float) -> None:
        """Set the setpoint, in the unit of the profile's value kind."""

    async def arm_fallback(self, value: float) -> None:
        """Have the device take this value by itself after the profile's timeout without a sign of life."""

    async def keep_alive(self, value: float) -> None:
        """Give the device its sign of life; `value` is the setpoint in force, which some take for one."""

    def take_writes(self) -> dict[str, int]:
        """Write commands sent since this was asked last, by register, answered or not."""

    async def read_setpoint(self) -> float | None:
        """Read the setpoint in force; None where the profile knows no way to read it."""
