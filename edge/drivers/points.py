"""What drivers have in common whose device is a set of points that are read and written one by one.

Which points, in which order and in which unit is the profile's; how a point is read or written is the
protocol's, and all that a driver of one adds (`_read`, `_put`).
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping

from edge.drivers.base import PollResult
from edge.drivers.errors import DeviceRefused, ReadingInvalid
from edge.profiles.model import (
    COUNT,
    FALLBACK,
    TIMEOUT,
    VALUE,
    Check,
    Limit,
    LimitUnit,
    OwnFallback,
    Profile,
    Step,
)
from edge.profiles.points import Value

# The rated power of device and configuration may differ by rounding, not by a factor ten or a word order.
NAMEPLATE_TOLERANCE = 0.1
# How often a step looks whether what it waits for is there.
UNTIL_EVERY_S = 0.5
# Signs of life count up to here, which a register of any kind can hold.
HIGHEST_BEAT = 9999


class PointDriver(ABC):
    """One device, as its profile describes it; see `edge.drivers.base.Driver` for what each method is for."""

    __slots__ = (
        "_beats",
        "_fallback",
        "_nameplate_kw",
        "_needs_preparation",
        "_paused",
        "_prepared",
        "_profile",
        "_reads_together",
        "_sent",
    )

    def __init__(self, *, profile: Profile, nameplate_kw: float | None) -> None:
        self._profile = profile
        self._nameplate_kw = nameplate_kw
        self._reads_together = True
        limit = profile.limit
        self._needs_preparation = limit is not None and bool(limit.once or limit.requires)
        self._prepared = not self._needs_preparation
        self._sent: Counter[str] = Counter()
        # A setpoint that was written as 0, because it was less than the device takes.
        self._paused: float | None = None
        # What the device is to take by itself, as it was armed.
        self._fallback: float | None = None
        # The last number that was given as a sign of life.
        self._beats = 0

    # --- the protocol's part

    @property
    @abstractmethod
    def _where(self) -> str:
        """How people find the device: an address and a unit, a topic, a URL."""

    @abstractmethod
    async def _read(self, names: frozenset[str], *, tolerant: bool = False) -> Mapping[str, Value]:
        """Values by name, perhaps more of them than were asked for. `tolerant`: without those refused."""

    @abstractmethod
    async def _put(self, values: Mapping[str, Value], *, only_if_different: bool) -> None:
        """Write these points with one command; `_count` each before it leaves.

        `only_if_different`: read first, and write nothing where all are so already.
        """

    @property
    @abstractmethod
    def commands_per_poll(self) -> int: ...

    async def _meet(self) -> None:  # noqa: B027 - most protocols have nothing to find out
        """Find out what must be known of a device before it can be asked who it is."""

    async def _pause(self, seconds: float) -> None:
        """Let time pass between two commands."""
        await asyncio.sleep(seconds)

    @abstractmethod
    def _look_for_reconnection(self) -> None:
        """`_forget` where the session is another one than when the device was learned."""

    @abstractmethod
    def _needed(self, steps: Iterable[Step]) -> frozenset[str]:
        """Points that must be read before these steps can be written, and have not been yet."""

    # --- a driver

    @property
    def commands_per_write(self) -> int:
        limit = self._profile.limit
        if limit is None:
            return 0
        return max(commands_of(limit.set), commands_of(limit.release or ()))

    @property
    def telemetry_units(self) -> dict[str, str]:
        return self._profile.telemetry_units

    async def identify(self) -> None:
        """Refuse a device whose identity or rated power (within 10 %) is not what it should be.

        What was learned of it before is forgotten: on a line that stays open, it may have been away.
        """
        self._forget()
        await self._meet()
        identity = self._profile.identity
        names = {check.point for check in identity.checks}
        if identity.nameplate is not None and self._nameplate_kw is not None:
            names.add(identity.nameplate)
        if not names:
            return
        values = await self._read(frozenset(names))
        self._judge(identity.checks, values, action="control")
        if identity.nameplate not in names or self._nameplate_kw is None:
            return
        rated_kw = values[identity.nameplate]
        if not isinstance(rated_kw, float | int):
            raise DeviceRefused(
                f"{self._where} does not say its rated power, {self._nameplate_kw:g} kW expected"
            )
        if abs(rated_kw - self._nameplate_kw) > NAMEPLATE_TOLERANCE * self._nameplate_kw:
            raise DeviceRefused(
                f"{self._where} is rated {rated_kw:g} kW, configured are {self._nameplate_kw:g} kW: check the"
                " device's profile and peak power"
            )

    async def read_points(self, names: Iterable[str]) -> Mapping[str, Value]:
        """Values of these points; those which the device refuses are not among them, unless all are."""
        return await self._read(frozenset(names), tolerant=True)

    async def poll(self) -> PollResult:
        """Read telemetry and setpoint with as few commands as the profile allows.

        A block of telemetry that the device refuses gives None for its keys, unless all are.
        """
        self._look_for_reconnection()
        profile = self._profile
        telemetry, readback = frozenset(profile.telemetry.values()), self._readback_points
        if self._reads_together:
            try:
                values = await self._read(telemetry | readback)
            except DeviceRefused:
                # A model may lack a register between two others, and with them refuses those it has. Apart,
                # until the next connection, none hides another.
                self._reads_together = False
            except ReadingInvalid:
                # A scale factor without a value: what needs no scale is worth reading.
                pass
            else:
                return PollResult(self._readings(values), self._setpoint(values))
        readings: dict[str, float | None] = {}
        if telemetry:
            readings = self._readings(await self._read(telemetry, tolerant=True))
        setpoint = await self.read_setpoint() if profile.controllable else None
        return PollResult(readings, setpoint)

    async def write(self, value: float) -> None:
        """Write the setpoint; the profile's maximum is a release where the profile has one."""
        limit = self._limit
        profile = self._profile
        if not profile.min_value <= value <= profile.max_value:
            raise DeviceRefused(
                f"{value:g} is outside {profile.min_value:g} to {profile.max_value:g} of {profile.title}"
            )
        self._look_for_reconnection()
        if not self._prepared:
            await self._prepare(limit)
        steps = limit.set if limit.release is None or value < profile.max_value else limit.release
        await self._learn(steps)
        # Before it is sent: what comes back may be the answer to it, whatever became of the command.
        self._paused = value if value and self._theirs(value) == 0 else None
        for step in steps:
            await self._step(step, value)

    async def arm_fallback(self, value: float) -> None:
        own = self._own_fallback
        await self._learn(own.arm)
        self._fallback = value
        for step in own.arm:
            await self._step(step, None)

    async def keep_alive(self, value: float) -> None:
        own = self._own_fallback
        self._beats = self._beats % HIGHEST_BEAT + 1
        await self._learn(own.keep_alive)
        for step in own.keep_alive:
            await self._step(step, value)

    def take_writes(self) -> dict[str, int]:
        sent = dict(self._sent)
        self._sent.clear()
        return sent

    async def read_setpoint(self) -> float | None:
        if self._limit.readback is None:
            return None
        return self._setpoint(await self._read(self._readback_points))

    # --- shared with the protocols

    @property
    def _readback_points(self) -> frozenset[str]:
        return readback_points(self._profile.limit)

    @property
    def _limit(self) -> Limit:
        if self._profile.limit is None:
            raise DeviceRefused(f"{self._profile.title} is only measured, it has no setpoint")
        return self._profile.limit

    @property
    def _own_fallback(self) -> OwnFallback:
        own = self._limit.fallback
        if own is None:
            raise DeviceRefused(f"{self._profile.title} has no fallback of its own")
        return own

    def _forget(self) -> None:
        """Begin anew with a device that may be another one, or the same after a restart."""
        self._reads_together = True
        self._prepared = not self._needs_preparation

    def _count(self, names: Iterable[str]) -> None:
        """Count writes before they leave: what was sent may have been carried out, whatever comes back."""
        self._sent.update(tuple(names))

    # --- values

    def _readings(self, values: Mapping[str, Value]) -> dict[str, float | None]:
        readings: dict[str, float | None] = {}
        for key, name in self._profile.telemetry.items():
            value = values.get(name)
            readings[key] = None if isinstance(value, str) else value
        return readings

    def _setpoint(self, values: Mapping[str, Value]) -> float | None:
        """The setpoint in force; None where there is none, or no way to read it."""
        limit = self._profile.limit
        if limit is None or limit.readback is None:
            return None
        if limit.readback_switch is not None and not limit.readback_switch.holds(
            values[limit.readback_switch.point]
        ):
            # Somebody may have switched it off: look again at what the next write needs.
            self._prepared = not self._needs_preparation
            return self._profile.max_value
        value = values[limit.readback]
        if value is None or isinstance(value, str):
            return None
        if value == limit.readback_no_limit:
            return self._profile.max_value
        if value == 0 and self._paused is not None:
            return self._paused
        return self._ours(value)

    def _theirs(self, value: float) -> float:
        """A setpoint of ours in what the device takes."""
        limit = self._limit
        if limit.unit is not LimitUnit.SAME:
            value *= self._full_scale / 100
        return 0.0 if abs(value) < limit.least else value

    def _ours(self, value: float) -> float:
        """What the device says of its setpoint in our unit; more than all is all."""
        if self._limit.unit is LimitUnit.SAME:
            return value
        ours = value / self._full_scale * 100
        # A limit above the nameplate limits nothing.
        return max(self._profile.min_value, min(self._profile.max_value, ours))

    @property
    def _full_scale(self) -> float:
        """100 % in what the device takes."""
        if self._nameplate_kw is None:
            raise DeviceRefused(
                f"{self._where}: its setpoint is in {self._limit.unit.value}, set the device's peak power"
            )
        if self._limit.unit is LimitUnit.KW:
            return self._nameplate_kw
        return self._nameplate_kw * 1000 / (self._limit.volts * self._limit.phases)

    # --- checks and steps

    async def _prepare(self, limit: Limit) -> None:
        """Do what comes before the first write of a connection: requirements and `once`."""
        steps = (*limit.once, *limit.set, *(limit.release or ()))
        names = frozenset(check.point for check in limit.requires) | self._needed(steps)
        if names:
            self._judge(limit.requires, await self._read(names), action="write to")
        for step in limit.once:
            await self._step(step, None)
        self._prepared = True

    async def _learn(self, steps: Iterable[Step]) -> None:
        names = self._needed(steps)
        if names:
            await self._read(names)

    def _judge(self, checks: Iterable[Check], values: Mapping[str, Value], *, action: str) -> None:
        for check in checks:
            found = values[check.point]
            if not check.holds(found):
                hint = f"; {check.hint}" if check.hint else ""
                name = self._profile.points[check.point].name
                raise DeviceRefused(
                    f"will not {action} {self._where}: {name} ({check.point}) reads"
                    f" {shown(found)}, expected {shown(check.equals)}{hint}"
                )

    async def _step(self, step: Step, setpoint: float | None) -> None:
        values = {name: self._value_of(value, setpoint) for name, value in step.writes.items()}
        await self._put(values, only_if_different=step.when == "if_different")
        if step.until is not None:
            await self._wait_until(step.until, within_s=step.within_s)

    async def _wait_until(self, check: Check, *, within_s: float) -> None:
        for _ in range(max(1, math.ceil(within_s / UNTIL_EVERY_S))):
            found = (await self._read(frozenset((check.point,))))[check.point]
            if check.holds(found):
                return
            await self._pause(UNTIL_EVERY_S)
        name = self._profile.points[check.point].name
        raise DeviceRefused(
            f"{self._where}: {name} ({check.point}) reads {shown(found)}, not {shown(check.equals)} within"
            f" {within_s:g} s"
        )

    def _value_of(self, value: float | str, setpoint: float | None) -> Value:
        if value == VALUE:
            return None if setpoint is None else self._theirs(setpoint)
        if value == FALLBACK:
            return None if self._fallback is None else self._theirs(self._fallback)
        if value == TIMEOUT:
            return self._own_fallback.timeout_s
        if value == COUNT:
            return float(self._beats)
        return value


def readback_points(limit: Limit | None) -> frozenset[str]:
    """The points that tell the setpoint in force."""
    if limit is None:
        return frozenset()
    switch = limit.readback_switch
    return frozenset(name for name in (limit.readback, switch.point if switch else None) if name is not None)


def commands_of(steps: Iterable[Step]) -> int:
    """The most commands that these steps take, but for those that wait."""
    return sum(2 if step.when == "if_different" else 1 for step in steps)


def shown(value: float | str | tuple[float | str, ...] | None) -> str:
    """A value as people read it."""
    if value is None:
        return "no value"
    if isinstance(value, tuple):
        return " or ".join(shown(one) for one in value)
    if isinstance(value, str):
        return repr(value)
    return str(int(value)) if value == int(value) else f"{value:g}"
