"""What a profile may say: identity, nameplate, points, scaling, limits, write rules.

A profile is data. It is read from YAML, travels inside `desired/config` as JSON builtins, and is the same
object on both sides. `edge.profiles.reading` is the door: what has passed it can be believed. Drivers read
only the parts that concern their protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edge.core.commands import WriteClass
from edge.profiles.parameters import Parameter
from edge.profiles.points import MAX_ADDRESS, MAX_READ, Data, Point, Protocol, Register

VALUE = "$value"
FALLBACK = "$fallback"
TIMEOUT = "$timeout"
COUNT = "$count"

# What devices on a line take to answer, when nothing else is known of them.
LINE_TIMEOUT_MS = 500


class Parity(StrEnum):
    NONE = "none"
    EVEN = "even"
    ODD = "odd"


class ValueKind(StrEnum):
    """What a setpoint of this device means."""

    ACTIVE_POWER_LIMIT_PCT = "active_power_limit_pct"
    POWER_CAP_PCT = "power_cap_pct"  # cap on |P|, both directions
    SIGNED_SETPOINT_PCT = "signed_setpoint_pct"
    CHARGING_POWER_LIMIT_PCT = "charging_power_limit_pct"
    OPERATING_MODE = "operating_mode"

    @property
    def is_limit(self) -> bool:
        """Tell whether it is the most that a device may do, in percent of its nameplate, 100 being all."""
        return self not in (ValueKind.SIGNED_SETPOINT_PCT, ValueKind.OPERATING_MODE)

    @property
    def is_power(self) -> bool:
        """Tell whether it is in percent of nameplate power, so that kW can be made of it."""
        return self is not ValueKind.OPERATING_MODE

    def can_take(self, proxys: ValueKind) -> bool:
        """Tell whether a value of a proxy's kind means the same to its child, which is of this kind."""
        return self is proxys or (self.is_limit and proxys.is_limit)


class LimitUnit(StrEnum):
    """What a device's setpoint is in, on its own side; ours is as the value kind says."""

    SAME = "same"
    KW = "kW"
    AMPERE = "A"


class Check(Data, frozen=True, kw_only=True):
    """A point must hold this value (any of these). `hint` tells a person what to do where it does not."""

    point: str
    equals: float | str | tuple[float | str, ...]
    hint: str = ""

    def holds(self, value: float | str | None) -> bool:
        allowed = self.equals if isinstance(self.equals, tuple) else (self.equals,)
        return value is not None and value in allowed


class Identity(Data, frozen=True, kw_only=True):
    """How a device is recognised before it is controlled. The nameplate point is its rated power in kW."""

    checks: tuple[Check, ...] = ()
    nameplate: str | None = None


class Step(Data, frozen=True, kw_only=True):
    """One write: this value, or `$value`, the setpoint asked for.

    Where a device's own fallback is armed: `$fallback`, what it is to take by itself, and `$timeout`, after
    how many seconds without a sign of life. As a sign of life: `$count`, which is another number each time,
    1 to 9999 and around, for devices that believe only in what changes. `together`: points that are written
    with the same command, each directly behind the one before; for devices that take a block whole or not at
    all. `until`: what must hold after the write, within `within_s`, before the next step; for devices that
    store or commit.
    """

    point: str
    value: float | str
    when: Literal["always", "if_different"] = "always"
    together: dict[str, float | str] = msgspec.field(default_factory=dict)
    until: Check | None = None
    within_s: Annotated[float, Meta(gt=0, le=120)] = 10.0

    @property
    def writes(self) -> dict[str, float | str]:
        """All points it writes, in the order of the wire, and what."""
        return {self.point: self.value, **self.together}


class OwnFallback(Data, frozen=True, kw_only=True):
    """The device's own timer: without a sign of life for `timeout_s` it changes its setpoint by itself.

    `takes` tells what it does then: the value it was armed with, or it can only release its limit, or only
    stop, or whatever its installer has preset, which the point `preset` shows if the device shows it at all.
    `arm` is written after each first contact; what of it wears is best written `if_different`. Without it the
    device is armed for good by its maker or installer, and a setpoint holds only while it is kept alive.
    `keep_alive` is written every third of the timeout, to registers of `keep_alive_class`.
    """

    timeout_s: Annotated[float, Meta(ge=3, le=3600)]
    arm: tuple[Step, ...] = ()
    keep_alive: Annotated[tuple[Step, ...], Meta(min_length=1)]
    keep_alive_class: WriteClass
    takes: Literal["value", "release", "stop", "preset"] = "value"
    preset: str | None = None

    @property
    def always_armed(self) -> bool:
        return not self.arm


class Limit(Data, frozen=True, kw_only=True):
    """How the device's setpoint is written, released and read back.

    `register` is the point that names the control point, of which each device has one owner. `once` runs, and
    `requires` is judged, after each connect and before the first write. `release` replaces `set` for the
    profile's `max_value`, where no limit is wanted. While `readback_switch` does not hold, no limit is in
    force, whatever the read-back point shows; `readback_no_limit` is what that point shows when no limit is
    set. A `volatile` limit is forgotten at the device's restart; where that depends on another point,
    `volatile_when` names it. `tolerance` is in the unit of the setpoint. `writes_per_day` is what the maker
    allows its registers; without it a `persistent` one gets 20 (`edge.core.wear`).

    `unit`: what the device takes in place of a percentage. In `kW` it is one of the nameplate's power; in `A`
    one of the current per phase that gives it at `volts` to neutral over `phases` phases. `least`: the
    smallest that the device takes besides 0, in that unit; what is less is written as 0, and a read-back of 0
    confirms it (IEC 61851: a charger has no current between 0 and 6 A).
    """

    register: str
    set: Annotated[tuple[Step, ...], Meta(min_length=1)]
    write_class: WriteClass
    tolerance: Annotated[float, Meta(gt=0)]
    once: tuple[Step, ...] = ()
    requires: tuple[Check, ...] = ()
    release: Annotated[tuple[Step, ...], Meta(min_length=1)] | None = None
    readback: str | None = None
    readback_switch: Check | None = None
    readback_no_limit: float | None = None
    volatile_when: Check | None = None
    writes_per_day: Annotated[int, Meta(ge=2)] | None = None
    fallback: OwnFallback | None = None
    unit: LimitUnit = LimitUnit.SAME
    volts: Annotated[float, Meta(gt=0)] = 230.0
    phases: Literal[1, 2, 3] = 3
    least: Annotated[float, Meta(ge=0)] = 0.0


class Availability(Data, frozen=True, kw_only=True):
    """Where an MQTT device, or its last will, says whether it is there.

    `path` finds the word in JSON; without one the payload is it. Other words than these two say nothing.
    """

    topic: Annotated[str, Meta(min_length=1, max_length=1000)]
    path: str = ""
    online: str = "online"
    offline: str = "offline"


class Profile(Data, frozen=True, kw_only=True):
    """One device type. Bounds and default are in the unit of `value_kind`; no `limit`: only read.

    `timeout_ms` is how long the device may think before it answers; on a serial line the time of the frames
    themselves comes on top. `line_timeout_ms` is how long it may think there, where the profile's own
    protocol is another; None: as long, but half a second at most, because a silent device keeps its line
    waiting. The serial defaults are the maker's, and a device may be set otherwise. `also`: other protocols
    that the same points are reached by. `sunspec`: the points' addresses are found by a walk over the
    device's models. `address_offset` is added to every address, for devices whose makers and users count
    differently; a parameter where they disagree. `connect_delay_ms`: the pause between connecting and the
    first command. `stale_after_s`: how old the newest message of a device that speaks unasked may be.
    `headers` go with each HTTP request; `$username` and `$password` in them are the device's.
    `subscribe`: an XML-DA server collects what changes, and is asked for that in place of everything.
    `sleeps_at_night`: no answer, or no values, without power before it, is no fault. `parameters` are what
    each device of the type says for itself (`edge.profiles.parameters`).
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9_]{1,64}$")]
    title: str
    maker: str
    model: str
    category: Annotated[str, Meta(pattern=r"^[a-z0-9_]{1,32}$")]
    protocol: Protocol
    verified_on_hardware: bool
    source: str
    points: Mapping[str, Point]
    also: tuple[Protocol, ...] = ()
    parameters: dict[str, Parameter] = msgspec.field(default_factory=dict)
    sunspec: bool = False
    address_offset: Annotated[int, Meta(ge=-MAX_ADDRESS, le=MAX_ADDRESS)] = 0
    connect_delay_ms: Annotated[int, Meta(ge=0, le=60_000)] = 0
    stale_after_s: Annotated[float, Meta(gt=0, le=900)] = 30.0
    availability: Availability | None = None
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    subscribe: bool = False
    sleeps_at_night: bool = False
    min_gap_ms: Annotated[int, Meta(ge=0, le=60_000)] = 0
    max_sessions: Annotated[int, Meta(ge=1)] | None = None
    timeout_ms: Annotated[int, Meta(ge=50, le=30_000)] = 1000
    line_timeout_ms: Annotated[int, Meta(ge=50, le=30_000)] | None = None
    max_block: Annotated[int, Meta(ge=1, le=MAX_READ)] = MAX_READ
    max_read_gap: Annotated[int, Meta(ge=0, le=MAX_READ)] = 0
    default_port: Annotated[int, Meta(ge=1, le=65535)] = 502
    default_url: str = ""
    default_unit: Annotated[int, Meta(ge=0, le=255)] = 1
    default_baud_rate: Annotated[int, Meta(ge=1200, le=230_400)] = 9600
    default_parity: Parity = Parity.NONE
    default_stop_bits: Literal[1, 2] = 1
    value_kind: ValueKind | None = None
    min_value: float = 0.0
    max_value: float = 100.0
    default_value: float = 100.0
    identity: Identity = Identity()
    limit: Limit | None = None
    telemetry: dict[str, str] = msgspec.field(default_factory=dict)
    notes: str = ""

    @property
    def controllable(self) -> bool:
        return self.limit is not None

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """All that it can be reached by, its own first."""
        return (self.protocol, *self.also)

    def timeout_s(self, protocol: Protocol) -> float:
        """How long a device that is reached by this protocol may think before it answers."""
        if protocol is Protocol.MODBUS_RTU and self.protocol is not Protocol.MODBUS_RTU:
            own_ms = min(self.timeout_ms, LINE_TIMEOUT_MS)
            return (own_ms if self.line_timeout_ms is None else self.line_timeout_ms) / 1000
        return self.timeout_ms / 1000

    @property
    def registers(self) -> Mapping[str, Register]:
        """Its points, of a Modbus profile."""
        return self.points  # type: ignore[return-value]

    @property
    def telemetry_units(self) -> dict[str, str]:
        return {key: self.points[point].unit for key, point in self.telemetry.items()}
