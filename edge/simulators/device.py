"""What every simulated device has, whatever it speaks: a machine, a limit that acts on it, faults, a record.

Its values are those of the points of its profile, so that driver and simulator share the profile's facts and
nothing else. How a value is asked for and told is the protocol's part.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Set as AbstractSet
from enum import StrEnum
from functools import cached_property
from typing import Any, ClassVar

from edge.plant import KIND_BY_CATEGORY, QUANTITIES, TAKES, Kind, Machine, Quantity, Site, Takes
from edge.profiles.model import FALLBACK, TIMEOUT, VALUE, LimitUnit, OwnFallback, Profile, Step
from edge.profiles.points import Value

# Readings that only rise, and are known at night.
COUNTERS = ("_kWh", "_h")


class Fault(StrEnum):
    """What is wrong with a device. Who observes it is not affected."""

    NONE = "none"
    REFUSE = "refuse"  # nobody listens
    SILENT = "silent"  # takes connections and commands, answers nothing
    WRITE_EXCEPTION = "write_exception"  # refuses every write
    IGNORE_WRITES = "ignore_writes"  # acknowledges writes and does nothing
    DELAY = "delay"  # answers late
    DROP = "drop"  # ends the connection in place of an answer
    GARBAGE = "garbage"  # answers with bytes that mean nothing
    WRONG_UNIT = "wrong_unit"  # answers in another's name
    HALF_FRAME = "half_frame"  # answers with the beginning of an answer
    STALE_READBACK = "stale_readback"  # obeys, and shows the setpoint from before


class Simulated(ABC):
    """A device of this profile. `clock` is in seconds and drives the physics and the pauses.

    `endurance`: how many writes a register stands that is stored at each; then it keeps what it has, and goes
    on acknowledging. None: for ever.
    """

    def __init__(
        self,
        *,
        profile: Profile,
        nameplate_kw: float,
        behaves_as: Kind | None = None,
        site: Site | None = None,
        clock: Callable[[], float] = time.monotonic,
        endurance: int | None = None,
    ) -> None:
        self.profile = profile
        self.endurance = endurance
        self.clock = clock
        self.machine = Machine(
            kind=behaves_as or KIND_BY_CATEGORY.get(profile.category, Kind.PV),
            nameplate_kw=nameplate_kw,
            site=site or Site(started_at=clock()),
            takes=TAKES.get(profile.value_kind, Takes.CAP),
            phases=profile.limit.phases if profile.limit is not None else 3,
        )
        # Called after each write that took effect, for those who time it.
        self.on_write: Callable[[], None] | None = None
        # The record: what controllers did to it. `writes` counts by point, as a worn register does.
        self.commands = 0
        self.writes: Counter[str] = Counter()
        # Writes that wear, by point: those which the device stores.
        self.wear: Counter[str] = Counter()
        # How much too early each command came that did, and how many sessions there were too many.
        self.gap_violations: list[float] = []
        self.sessions_refused = 0
        # What a point shows whatever the machine does; None is the device's "no value".
        self.shown: dict[str, float | None] = {}
        # The device's own timer: when it had its last sign of life, None while it is not armed.
        self.alive_at: float | None = None
        self.fault = Fault.NONE
        self.delay_s = 0.0
        # What the points of the read-back are told as, under `Fault.STALE_READBACK`.
        self.stale: dict[str, Value] = {}
        self._stored = _stored_points(profile)
        self._slept = False
        # What there is to measure, point by point: counters begin with what the point's example has counted.
        # A controller's own word stays as it was said.
        self._measured: list[tuple[str, Quantity, float, bool]] = []
        readback = profile.limit.readback if profile.limit is not None else None
        for key, name in profile.telemetry.items():
            quantity, point = QUANTITIES.get(key), profile.points[name]
            if quantity is not None and not point.writable and name != readback:
                is_counter = key.endswith(COUNTERS)
                base = float(point.example) if is_counter and isinstance(point.example, float | int) else 0.0
                self._measured.append((name, quantity, base, is_counter))

    # --- the protocol's part

    # Whether it can be looked at by its own protocol; the fleet gives those that cannot an `Observer`.
    shows_itself: ClassVar[bool] = False

    @property
    def address(self) -> str:
        """Where it is reached, for people."""
        return ""

    @abstractmethod
    async def start(self) -> None:
        """Be there; `OSError` where a port is taken."""

    @abstractmethod
    async def stop(self) -> None: ...

    @abstractmethod
    async def set_fault(self, fault: Fault, *, delay_s: float = 0.0) -> None:
        """Break the device in this way, or with `Fault.NONE` mend it. `delay_s` belongs to `Fault.DELAY`."""

    @abstractmethod
    def get(self, name: str) -> Value:
        """The value of a point, as a driver would read it."""

    @abstractmethod
    def put(self, name: str, value: Value) -> None:
        """Let a point have this value; what the device lacks is left out."""

    @abstractmethod
    def reset(self, name: str) -> None:
        """Put a point to its example, else to "no value" where it can say so, else to nothing."""

    # --- what a device does by itself

    def break_down(self, fault: Fault, *, delay_s: float) -> None:
        """Note what is wrong from now on; for `set_fault` of each protocol."""
        self.fault = fault
        self.delay_s = delay_s
        limit = self.profile.limit
        self.stale = {}
        if fault is Fault.STALE_READBACK and limit is not None and limit.readback is not None:
            names = [limit.readback]
            if limit.readback_switch is not None:
                names.append(limit.readback_switch.point)
            self.stale = {name: self.get(name) for name in names}

    def told(self, name: str) -> Value:
        """The value of a point as a controller is told it; observers get it by `get`."""
        return self.stale[name] if name in self.stale else self.get(name)

    def hears_nothing(self) -> bool:
        """Tell whether commands are in vain: a device may be silent by fault, or asleep for want of sun."""
        if self.fault is Fault.SILENT:
            return True
        if not self.profile.sleeps_at_night:
            return False
        self.machine.advance(self.clock())
        if self.machine.is_dark:
            self._slept = True
        elif self._slept:
            # It has no power but the sun's: morning is a restart.
            self._slept = False
            self.lose_power()
        return self._slept

    async def restart(self) -> None:
        """Lose power and come back: a limit that is not stored is forgotten."""
        self.lose_power()

    def lose_power(self) -> None:
        """Forget what is not stored."""
        self.alive_at = None
        limit = self.profile.limit
        if limit is None:
            return
        check = limit.volatile_when
        if limit.write_class == "volatile" and (check is None or check.holds(self.get(check.point))):
            own = limit.fallback
            for step in (*limit.set, *(own.arm if own is not None else ())):
                for name in step.writes:
                    self.reset(name)
        self.take_limit()

    @property
    def limit_in_force(self) -> float:
        """The setpoint that acts on this device now, in the unit of its profile."""
        self.let_own_fallback_act()
        limit, highest = self.profile.limit, self.profile.max_value
        if limit is None:
            return highest
        switch = limit.readback_switch
        if switch is not None and not switch.holds(self.get(switch.point)):
            return highest
        value = self.get(self.target)
        if not isinstance(value, float | int) or value == limit.readback_no_limit:
            return highest
        return max(self.profile.min_value, min(highest, self.limit_in_percent(value)))

    @cached_property
    def target(self) -> str:
        """The point that the setpoint is written to."""
        assert self.profile.limit is not None
        return next(
            name for step in self.profile.limit.set for name, value in step.writes.items() if value == VALUE
        )

    def wrote(self, names: Iterable[str]) -> None:
        """A controller has written these points, and they have their new values: let them act."""
        names = set(names)
        self.writes.update(names)
        self._hear_sign_of_life(names)
        self.take_limit()
        if self.on_write is not None:
            self.on_write()

    def wear_out(self, names: Iterable[str]) -> AbstractSet[str]:
        """Count a write to these points where it wears, and name those that do not take it any more."""
        if self._stored.isdisjoint(names) or self._stores_nothing():
            return frozenset()
        worn = self._stored.intersection(names)
        self.wear.update(worn)
        if self.endurance is None:
            return frozenset()
        return {name for name in worn if self.wear[name] > self.endurance}

    def _stores_nothing(self) -> bool:
        """Tell whether it has been told to forget its limit, and so keeps it where nothing wears."""
        check = self.profile.limit.volatile_when if self.profile.limit is not None else None
        return check is not None and check.holds(self.get(check.point))

    def take_limit(self) -> None:
        """Let the limit act, and show what is in force where the device has a point of its own for that."""
        # The machine first moves under the old limit up to now.
        self.machine.advance(self.clock())
        in_force = self.machine.limit_pct = self.limit_in_force
        limit = self.profile.limit
        if limit is None or limit.readback is None or self.profile.points[limit.readback].writable:
            return
        self.put(limit.readback, self._in_theirs(in_force))

    def let_own_fallback_act(self) -> None:
        """Take what the device was armed with, once its own time has passed without a sign of life."""
        limit = self.profile.limit
        own = limit.fallback if limit is not None else None
        if limit is None or own is None or self.alive_at is None:
            return
        timeout_s: Value = own.timeout_s
        takes = self.profile.max_value if own.takes == "release" else self.profile.min_value
        value: Value = self._in_theirs(takes)
        if own.preset is not None:
            value = self.get(own.preset)
        for step in own.arm:
            for name, armed in step.writes.items():
                if armed == TIMEOUT:
                    timeout_s = self.get(name)
                elif armed == FALLBACK:
                    value = self.get(name)
        if not isinstance(timeout_s, float | int) or self.clock() - self.alive_at <= timeout_s:
            return
        lapsed_at, self.alive_at = self.alive_at + timeout_s, None
        # It acted then, whenever somebody comes to look.
        self.machine.advance(lapsed_at)
        self._put_all(limit.set, value)
        self.machine.limit_pct = self.limit_in_force
        self.take_limit()

    def set_by_hand(self, setpoint: float) -> None:
        """Have this setpoint, in the unit of its profile, as if somebody else had set it on the spot."""
        limit = self.profile.limit
        assert limit is not None
        self._put_all((*limit.once, *limit.set), self._in_theirs(setpoint))
        self.take_limit()

    def _put_all(self, steps: Iterable[Step], value: Value) -> None:
        for step in steps:
            for name, written in step.writes.items():
                self.put(name, value if written == VALUE else written)

    def state(self) -> dict[str, Any]:
        """All there is to see of it, as JSON can carry it; `alive_s` since a controller's sign of life.

        `limit_in_force` is in the unit of its profile's setpoint. `writes` counts by point.
        """
        now = self.clock()
        limit_in_force = self.limit_in_force
        self.machine.advance(now)
        return {
            "profile": self.profile.name,
            "protocol": self.profile.protocol.value,
            "address": self.address,
            "fault": self.fault.value,
            "delay_s": self.delay_s,
            "limit_in_force": limit_in_force if self.profile.controllable else None,
            "power_kw": round(self.machine.power_kw, 4),
            "night": self.machine.site.night,
            "shown": dict(self.shown),
            "commands": self.commands,
            "writes": dict(self.writes),
            "wear": dict(self.wear),
            "gap_violations": len(self.gap_violations),
            "sessions_refused": self.sessions_refused,
            "alive_s": None if self.alive_at is None else round(now - self.alive_at, 3),
        }

    def measure(self) -> None:
        """Put the machine's present values into the points of telemetry."""
        machine = self.machine
        self.let_own_fallback_act()
        now = self.clock()
        machine.advance(now)
        dark = machine.is_dark
        shown = self.shown
        for name, quantity, base, is_counter in self._measured:
            if name not in shown and (not dark or is_counter or not self._say_nothing(name)):
                self._show(name, quantity(machine, now) + base)
        for name, value in shown.items():
            self.put(name, value)

    def _show(self, name: str, value: float) -> None:
        """Let a point of telemetry have this value; what does not fit into it, it does not say."""
        try:
            self.put(name, value)
        except ValueError:
            self._say_nothing(name)

    def _say_nothing(self, name: str) -> bool:
        """Let a point have no value; False where it cannot say so."""
        try:
            self.put(name, None)
        except ValueError:
            return False
        return True

    def set_up(self) -> None:
        """Be the device that the profile describes; once points can be put."""
        identity = self.profile.identity
        for check in identity.checks:
            if self.profile.points[check.point].example is None:
                value = check.equals[0] if isinstance(check.equals, tuple) else check.equals
                self.put(check.point, value)
        if identity.nameplate is not None:
            self.put(identity.nameplate, self.machine.nameplate_kw)
        limit = self.profile.limit
        if limit is not None and limit.fallback is not None:
            # Whoever looks at the machine by another way, its site's meter say, finds it as it is.
            self.machine.governor = self.let_own_fallback_act
        # It was so before anybody looked: a battery that is told to stand still does not begin at full power.
        self.machine.limit_pct = self.limit_in_force
        self.take_limit()

    def _hear_sign_of_life(self, names: set[str]) -> None:
        own = self.profile.limit.fallback if self.profile.limit is not None else None
        if own is None:
            return
        armed = {name for step in own.arm for name in step.writes}
        kept = {name for step in own.keep_alive for name in step.writes}
        if names & armed or (names & kept and self._is_armed(own)):
            self.alive_at = self.clock()
        elif own.always_armed and self.alive_at is None and self.target in names:
            # A setpoint of which nobody ever says that it is still wanted lapses, too.
            self.alive_at = self.clock()

    def _is_armed(self, own: OwnFallback) -> bool:
        """Tell whether it watches for signs of life, whoever has set it up to do so."""
        return self.alive_at is not None or all(
            bool(self.get(name)) if value == TIMEOUT else value == FALLBACK or self.get(name) == value
            for step in own.arm
            for name, value in step.writes.items()
        )

    # --- units

    def limit_in_percent(self, value: float) -> float:
        """What is written to the device, in the unit of its value kind."""
        limit = self.profile.limit
        assert limit is not None
        return value if limit.unit is LimitUnit.SAME else 100 * value / self._full_scale

    def _in_theirs(self, value: float) -> float:
        limit = self.profile.limit
        assert limit is not None
        return value if limit.unit is LimitUnit.SAME else value * self._full_scale / 100

    @property
    def _full_scale(self) -> float:
        limit = self.profile.limit
        assert limit is not None
        if limit.unit is LimitUnit.KW:
            return self.machine.nameplate_kw
        return 1000 * self.machine.nameplate_kw / (limit.volts * limit.phases)


def _stored_points(profile: Profile) -> frozenset[str]:
    """The points whose every write the device stores, where it wears."""
    limit = profile.limit
    if limit is None:
        return frozenset()
    steps = list(limit.once) if limit.write_class == "persistent" else []
    if limit.write_class == "persistent" or limit.volatile_when is not None:
        steps += [*limit.set, *(limit.release or ())]
    own = limit.fallback
    if own is not None and own.keep_alive_class == "persistent":
        steps += own.keep_alive
    return frozenset(name for step in steps for name in step.writes)
