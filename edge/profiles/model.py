"""What a profile may say: identity, nameplate, points, scaling, limits, write rules.

A profile is data. It is read from YAML, travels inside `desired/config` as JSON builtins, and is the same
object on both sides. `profile_from_builtins` is the door: what has passed it can be believed. New protocols
add their own kind of point; drivers read only the parts that concern them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from edge.core.commands import WriteClass

T = TypeVar("T")

VALUE = "$value"
FALLBACK = "$fallback"
TIMEOUT = "$timeout"

# A register's address is 16 bit, and so is a Modbus register.
MAX_ADDRESS = 0xFFFF
# The protocol carries at most 125 registers an answer (Modbus Application Protocol V1.1b3, 6.3).
MAX_READ = 125

# The unit a reading has is said by the end of its canonical key.
UNIT_BY_SUFFIX = {
    "_kW": "kW",
    "_kvar": "kvar",
    "_kWh": "kWh",
    "_pct": "%",
    "_degC": "degC",
    "_m/s": "m/s",
    "_Hz": "Hz",
    "_V": "V",
    "_A": "A",
}


class ProfileError(Exception):
    """A profile that cannot be used: which key of it, and what is expected there."""

    def __init__(self, *, key: str, expectation: str, file: str = "") -> None:
        self.file = file
        self.key = key
        self.expectation = expectation
        super().__init__(f"{file + ': ' if file else ''}{key}: {expectation}")


class Protocol(StrEnum):
    MODBUS_TCP = "modbus_tcp"
    # Over a serial port, or as the same frames on a TCP socket to a serial device server.
    MODBUS_RTU = "modbus_rtu"


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


class Table(StrEnum):
    HOLDING = "holding"
    INPUT = "input"


class RegisterType(StrEnum):
    U16 = "u16"
    S16 = "s16"
    U32 = "u32"
    S32 = "s32"
    U64 = "u64"
    F32 = "f32"
    STR = "str"


REGISTERS = {
    RegisterType.U16: 1,
    RegisterType.S16: 1,
    RegisterType.U32: 2,
    RegisterType.S32: 2,
    RegisterType.U64: 4,
    RegisterType.F32: 2,
}


class WordOrder(StrEnum):
    """Order of the registers of one value; the bytes inside a register are always big-endian."""

    HIGH_FIRST = "high_first"
    LOW_FIRST = "low_first"


class Access(StrEnum):
    READ = "read"
    WRITE = "write"
    READ_WRITE = "read_write"


class WriteFunction(StrEnum):
    SINGLE = "single"  # function 6
    MULTIPLE = "multiple"  # function 16


class Confidence(StrEnum):
    """How well a fact is known."""

    VERIFIED = "verified"  # seen in the source named
    VERIFIED_TWICE = "verified_twice"  # two independent sources agree
    DERIVED = "derived"  # by arithmetic from verified facts
    UNVERIFIED = "unverified"  # common knowledge, or one weak source
    DISPUTED = "disputed"  # sources disagree


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Part of a profile."""


class Point(Data, frozen=True, kw_only=True):
    """One value of the device.

    value = sign * raw * scale * 10 ** (value of `scale_point`), in `unit`; `nan` is the raw value that means
    "no value". `address` is what goes on the wire, 0-based; `doc` is the number as the maker prints it.
    `example` is what a device of this type typically holds: a simulated one starts with it.
    """

    name: str
    source: str
    confidence: Confidence
    address: Annotated[int, Meta(ge=0, le=MAX_ADDRESS)]
    type: RegisterType
    doc: str = ""
    table: Table = Table.HOLDING
    length: Annotated[int, Meta(ge=1, le=MAX_READ)] | None = None
    words: WordOrder = WordOrder.HIGH_FIRST
    access: Access = Access.READ
    write_function: WriteFunction | None = None
    scale: float = 1.0
    scale_point: str | None = None
    sign: Literal[1, -1] = 1
    unit: str = ""
    nan: int | None = None
    example: float | str | None = None
    note: str = ""

    @property
    def count(self) -> int:
        """How many registers the value takes."""
        return self.length if self.length is not None else REGISTERS[self.type]

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.count

    @property
    def readable(self) -> bool:
        return self.access is not Access.WRITE

    @property
    def writable(self) -> bool:
        return self.access is not Access.READ

    @property
    def write_single(self) -> bool:
        """Tell whether it is written with function 6; the default for a value of one register."""
        if self.write_function is None:
            return self.count == 1
        return self.write_function is WriteFunction.SINGLE


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
    how many seconds without a sign of life.
    """

    point: str
    value: float | Literal["$value", "$fallback", "$timeout"]
    when: Literal["always", "if_different"] = "always"


class OwnFallback(Data, frozen=True, kw_only=True):
    """The device's own timer: without a sign of life for `timeout_s` it changes its setpoint by itself.

    `takes` tells what it does then: the value it was armed with, or it can only release its limit, or only
    stop. `arm` is written after each first contact; what of it wears is best written `if_different`.
    `keep_alive` is written every third of the timeout, to registers of `keep_alive_class`.
    """

    timeout_s: Annotated[float, Meta(ge=3, le=3600)]
    arm: Annotated[tuple[Step, ...], Meta(min_length=1)]
    keep_alive: Annotated[tuple[Step, ...], Meta(min_length=1)]
    keep_alive_class: WriteClass
    takes: Literal["value", "release", "stop"] = "value"


class Limit(Data, frozen=True, kw_only=True):
    """How the device's setpoint is written, released and read back.

    `register` is the point that names the control point, of which each device has one owner. `once` runs, and
    `requires` is judged, after each connect and before the first write. `release` replaces `set` for the
    profile's `max_value`, where no limit is wanted. While `readback_switch` does not hold, no limit is in
    force, whatever the read-back point shows; `readback_no_limit` is what that point shows when no limit is
    set. A `volatile` limit is forgotten at the device's restart; where that depends on another point,
    `volatile_when` names it. `tolerance` is in the unit of the setpoint. `writes_per_day` is what the maker
    allows its registers; without it a `persistent` one gets 20 (`edge.core.wear`).
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


class Profile(Data, frozen=True, kw_only=True):
    """One device type. Bounds and default are in the unit of `value_kind`; no `limit`: only read.

    `timeout_ms` is how long the device may think before it answers; on a serial line the time of the frames
    themselves comes on top. The serial defaults are the maker's, and a device may be set otherwise.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9_]{1,64}$")]
    title: str
    maker: str
    model: str
    category: Annotated[str, Meta(pattern=r"^[a-z0-9_]{1,32}$")]
    protocol: Protocol
    verified_on_hardware: bool
    source: str
    points: dict[str, Point]
    min_gap_ms: Annotated[int, Meta(ge=0, le=60_000)] = 0
    max_sessions: Annotated[int, Meta(ge=1)] | None = None
    timeout_ms: Annotated[int, Meta(ge=50, le=30_000)] = 1000
    max_block: Annotated[int, Meta(ge=1, le=MAX_READ)] = MAX_READ
    max_read_gap: Annotated[int, Meta(ge=0, le=MAX_READ)] = 0
    default_port: Annotated[int, Meta(ge=1, le=65535)] = 502
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
    telemetry: dict[str, str] = {}
    notes: str = ""

    @property
    def controllable(self) -> bool:
        return self.limit is not None

    @property
    def telemetry_units(self) -> dict[str, str]:
        return {key: self.points[point].unit for key, point in self.telemetry.items()}


def profile_to_builtins(profile: Profile) -> dict[str, Any]:
    """As JSON can carry it; `profile_from_builtins` gives the same profile again."""
    return msgspec.to_builtins(profile)  # type: ignore[no-any-return]


def profile_from_builtins(data: Mapping[str, Any]) -> Profile:
    """Build a profile and check all it says about itself; `ProfileError` names the key at fault."""
    raw_points = data.get("points")
    if not isinstance(raw_points, Mapping) or not raw_points:
        raise ProfileError(key="points", expectation="expected a map of at least one point")
    # One by one, because msgspec does not name the key of a map in its errors.
    points = {str(name): _convert(point, Point, key=f"points.{name}") for name, point in raw_points.items()}
    profile = _convert({**data, "points": {}}, Profile, key="")
    profile = msgspec.structs.replace(profile, points=points)
    _check(profile)
    return profile


def _convert(data: Any, kind: type[T], *, key: str) -> T:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        # "Expected `int`, got `str` - at `$.limit.set[0]`", or "- at `key` in `$.limit`" of a key itself.
        message, _, place = str(error).partition(" - at `")
        inner = place.rpartition("$")[2].rstrip("`").lstrip(".")
        raise ProfileError(
            key=".".join(part for part in (key, inner) if part) or "profile", expectation=message
        ) from error


def _check(profile: Profile) -> None:
    for name, point in profile.points.items():
        _check_point(profile, name, point)
    _check_identity(profile)
    if profile.limit is not None:
        _check_limit(profile, profile.limit)
    for key, name in profile.telemetry.items():
        _check_telemetry(profile, key, name)


def _check_point(profile: Profile, name: str, point: Point) -> None:
    key = f"points.{name}"
    if (point.type is RegisterType.STR) != (point.length is not None):
        raise ProfileError(key=f"{key}.length", expectation="expected for type str, and only there")
    if point.end > MAX_ADDRESS + 1:
        raise ProfileError(
            key=f"{key}.address",
            expectation=f"its {point.count} registers reach beyond address {MAX_ADDRESS}",
        )
    if point.table is Table.INPUT and point.writable:
        raise ProfileError(key=f"{key}.access", expectation="input registers can only be read")
    if point.write_function is not None and not point.writable:
        raise ProfileError(key=f"{key}.write_function", expectation="the point is not writable")
    if point.write_function is WriteFunction.SINGLE and point.count > 1:
        raise ProfileError(
            key=f"{key}.write_function",
            expectation=f"'single' writes one register, the value has {point.count}",
        )
    if point.scale <= 0:
        raise ProfileError(key=f"{key}.scale", expectation="expected a number above 0; signs go into `sign`")
    if point.scale_point is not None:
        factor = _point(profile, point.scale_point, key=f"{key}.scale_point", readable=True)
        if factor.type is not RegisterType.S16 or factor.scale_point is not None:
            raise ProfileError(
                key=f"{key}.scale_point", expectation="expected a point of type s16, itself unscaled"
            )
    if point.type is RegisterType.STR and (point.scale_point or point.scale != 1 or point.nan is not None):
        raise ProfileError(key=key, expectation="a text has no scale and no nan")


def _point(profile: Profile, name: str, *, key: str, readable: bool = False, writable: bool = False) -> Point:
    point = profile.points.get(name)
    if point is None:
        raise ProfileError(key=key, expectation=f"expected the name of a point, there is no {name!r}")
    if readable and not point.readable:
        raise ProfileError(key=key, expectation=f"{name!r} is write-only, expected a point that can be read")
    if writable and not point.writable:
        raise ProfileError(
            key=key, expectation=f"{name!r} is read-only, expected a point that can be written"
        )
    return point


def _number(profile: Profile, name: str, *, key: str) -> Point:
    point = _point(profile, name, key=key, readable=True)
    if point.type is RegisterType.STR:
        raise ProfileError(key=key, expectation=f"{name!r} is a text, expected a number")
    return point


def _check_identity(profile: Profile) -> None:
    for index, check in enumerate(profile.identity.checks):
        _point(profile, check.point, key=f"identity.checks[{index}].point", readable=True)
    if profile.identity.nameplate is not None:
        point = _number(profile, profile.identity.nameplate, key="identity.nameplate")
        if point.unit not in ("kW", "kVA"):
            raise ProfileError(
                key="identity.nameplate", expectation=f"expected a point in kW or kVA, not {point.unit!r}"
            )


def _check_limit(profile: Profile, limit: Limit) -> None:
    if profile.value_kind is None:
        raise ProfileError(key="value_kind", expectation="expected, because the profile has a limit")
    if not profile.min_value < profile.max_value:
        raise ProfileError(
            key="max_value", expectation=f"expected more than min_value, {profile.min_value:g}"
        )
    if not profile.min_value <= profile.default_value <= profile.max_value:
        raise ProfileError(
            key="default_value", expectation=f"expected {profile.min_value:g} to {profile.max_value:g}"
        )
    _point(profile, limit.register, key="limit.register", writable=True)
    own = limit.fallback
    if own is not None and own.takes == "value" and not any(step.value == FALLBACK for step in own.arm):
        raise ProfileError(key="limit.fallback.arm", expectation=f"expected a step that writes {FALLBACK}")
    for part, steps in (
        ("once", limit.once),
        ("set", limit.set),
        ("release", limit.release or ()),
        ("fallback.arm", own.arm if own is not None else ()),
        ("fallback.keep_alive", own.keep_alive if own is not None else ()),
    ):
        for index, step in enumerate(steps):
            key = f"limit.{part}[{index}]"
            _point(
                profile,
                step.point,
                key=f"{key}.point",
                writable=True,
                readable=step.when == "if_different",
            )
            if part in ("once", "fallback.arm") and step.value == VALUE:
                raise ProfileError(key=f"{key}.value", expectation=f"no setpoint is known yet, not {VALUE}")
            if not part.startswith("fallback") and step.value in (FALLBACK, TIMEOUT):
                raise ProfileError(key=f"{key}.value", expectation=f"{step.value} belongs to limit.fallback")
    if not any(step.value == VALUE for step in limit.set):
        raise ProfileError(key="limit.set", expectation=f"expected a step that writes {VALUE}")
    for index, check in enumerate(limit.requires):
        _point(profile, check.point, key=f"limit.requires[{index}].point", readable=True)
    if limit.volatile_when is not None:
        _point(profile, limit.volatile_when.point, key="limit.volatile_when.point", readable=True)
    if limit.readback is not None:
        _number(profile, limit.readback, key="limit.readback")
    if limit.readback_switch is not None:
        if limit.readback is None:
            raise ProfileError(
                key="limit.readback", expectation="expected, because there is a readback_switch"
            )
        _number(profile, limit.readback_switch.point, key="limit.readback_switch.point")


def _check_telemetry(profile: Profile, key: str, name: str) -> None:
    point = _number(profile, name, key=f"telemetry.{key}")
    expected = next((unit for suffix, unit in UNIT_BY_SUFFIX.items() if key.endswith(suffix)), None)
    if expected is None:
        raise ProfileError(
            key=f"telemetry.{key}", expectation=f"expected a key that ends in {', '.join(UNIT_BY_SUFFIX)}"
        )
    if point.unit != expected:
        raise ProfileError(
            key=f"telemetry.{key}",
            expectation=f"expected a point in {expected}, {name!r} is in {point.unit!r}",
        )
