"""What a closed loop is configured by, what it sees, and what it tells.

Power is in kW, positive towards the grid: `export_kw` below zero is import. A member's power is positive
where it gives. Values are in percent of a member's nominal power, as its register takes them. Times are
seconds on the boot-time clock. ADR 0033 says where this stands in a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

# A greater power than any plant's: what tells one is broken, not believed. And less than any device has.
ABSURD_KW = 1e9
LEAST_KW = 1e-3
# Numbers beyond these are mistakes of whoever configures, and would make sums that are no numbers.
WIDEST_PCT = 1e4
FINEST_PCT = 1e-3
LONGEST_S = 1e6
# No park gives or takes more.
GREATEST_KW = 1e6
# From and to which a loop's numbers are taken: by the core, by a node, and by central.
LOOP_RANGES: Mapping[str, tuple[float, float]] = {
    "setpoint_kw": (-GREATEST_KW, GREATEST_KW),
    "kp": (0.0, 10.0),
    "ki": (0.0, 10.0),
    "kd": (0.0, 60.0),
    "max_rate_pct_per_s": (0.1, 1000.0),
    "deadband_kw": (0.0, GREATEST_KW),
    "fallback_pct": (-100.0, 100.0),
    "time_step_s": (0.2, 60.0),
    "stale_after_s": (1.0, 300.0),
    "export_limit_kw": (0.0, GREATEST_KW),
    "import_limit_kw": (0.0, GREATEST_KW),
}


class Mode(StrEnum):
    """What a setpoint means: export must not exceed it, or is held at it."""

    LIMIT = "limit"
    TRACK = "track"


class Stand(StrEnum):
    """How a loop stands.

    `tracking`: it calculates, and its setpoint is met or being approached. `limiting`: what it wants is
    beyond what bounds or sun allow, or was within the last minute at this setpoint. `stale`: no fresh
    reading, the last output is held. `fallback`: the reading is older than `stale_after_s`. `manual`: direct
    requests hold all of its members. These three are told at once.
    """

    TRACKING = "tracking"
    LIMITING = "limiting"
    STALE = "stale"
    FALLBACK = "fallback"
    MANUAL = "manual"


class Because(StrEnum):
    """Why a loop asks what it asks.

    `starting`: no reading has come yet, members stay where they are. `setpoint`: it holds its setpoint.
    `export_limit`, `import_limit`: the connection's limit is what it holds. `members_lack`: its members give
    less than they are asked for, as under a cloud. `at_maximum`, `at_minimum`: they are asked for all, or for
    as little as, they can. `rate`: on its way, as fast as `max_rate_pct_per_s` lets it. `held`: direct
    requests hold all members. `meter_late`: the reading is old, not yet stale. `meter_stale`: it is stale.
    `returning`: readings come again, fewer than are asked for. `no_member`: none can be commanded.
    `no_setpoint`: nobody says what to hold.
    """

    STARTING = "starting"
    SETPOINT = "setpoint"
    EXPORT_LIMIT = "export_limit"
    IMPORT_LIMIT = "import_limit"
    MEMBERS_LACK = "members_lack"
    AT_MAXIMUM = "at_maximum"
    AT_MINIMUM = "at_minimum"
    RATE = "rate"
    HELD = "held"
    METER_LATE = "meter_late"
    METER_STALE = "meter_stale"
    RETURNING = "returning"
    NO_MEMBER = "no_member"
    NO_SETPOINT = "no_setpoint"


@dataclass(frozen=True, slots=True)
class Dynamics:
    """How a member follows a command: it waits, then moves at most so fast, with a first-order lag.

    `dead_time_s` and `lag_s` in seconds, `ramp_pct_per_s` in percent of nominal power a second, `gain` what
    it gives for what it was asked for (1 is exact).
    """

    dead_time_s: float = 1.0
    lag_s: float = 1.0
    ramp_pct_per_s: float = 20.0
    gain: float = 1.0

    def __post_init__(self) -> None:
        for name in ("dead_time_s", "lag_s"):
            if not 0 <= getattr(self, name) <= LONGEST_S:
                raise ValueError(f"{name} is no number of seconds from 0 on")
        for name in ("ramp_pct_per_s", "gain"):
            if not FINEST_PCT <= getattr(self, name) <= WIDEST_PCT:
                raise ValueError(f"{name} is not in {FINEST_PCT:g} to {WIDEST_PCT:g}")


@dataclass(frozen=True, slots=True)
class Member:
    """One device that a loop commands.

    `minimum` and `maximum` in percent of `nominal_kw`, of what its register takes and its own bounds allow.
    `is_storage`: it can take power as well as give it. `answers_readings`: its register may be written
    between two ticks. `resolution_pct` is the smallest step its register takes. `dynamics`: what is known of
    how it follows. Numbers nobody could act on are refused with `ValueError`.
    """

    tag: str
    nominal_kw: float
    minimum: float = 0.0
    maximum: float = 100.0
    is_storage: bool = False
    answers_readings: bool = True
    dynamics: Dynamics = Dynamics()
    resolution_pct: float = 1.0

    def __post_init__(self) -> None:
        if not LEAST_KW <= self.nominal_kw < ABSURD_KW:
            raise ValueError(f"{self.tag}: nominal power {self.nominal_kw:g} kW is none")
        if not -WIDEST_PCT <= self.minimum <= self.maximum <= WIDEST_PCT:
            raise ValueError(f"{self.tag}: {self.minimum:g} to {self.maximum:g} % is no range")
        if not FINEST_PCT <= self.resolution_pct <= WIDEST_PCT:
            raise ValueError(f"{self.tag}: a step of {self.resolution_pct:g} % is none")


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What the configuration says of a loop.

    Gains: `kp` without a unit, `ki` in 1/s, `kd` in s. `max_rate_pct_per_s`: how fast its output may change,
    in percent of the nominal power of those that move; so each member, and their sum, keeps to it.
    `deadband_kw`: a deviation below this is none. `fallback_pct`: what each member is given in percent when
    the meter has been silent for `stale_after_s`; None is its plain setpoint. `export_limit_kw` and
    `import_limit_kw` are the connection's, both positive;
    None is no limit. `storage_first`: batteries take up what may not be exported before sun is curtailed.
    Numbers beyond `LOOP_RANGES` are refused with `ValueError`; a step may then promise never to raise.
    """

    tag: str
    members: tuple[Member, ...]
    mode: Mode = Mode.LIMIT
    feed_forward: bool = True
    kp: float = 0.3
    ki: float = 0.15
    kd: float = 0.0
    max_rate_pct_per_s: float = 100.0
    deadband_kw: float = 0.0
    fallback_pct: float | None = None
    time_step_s: float = 1.0
    stale_after_s: float = 10.0
    export_limit_kw: float | None = None
    import_limit_kw: float | None = None
    storage_first: bool = False

    def __post_init__(self) -> None:
        if not self.members or len({member.tag for member in self.members}) < len(self.members):
            raise ValueError(f"{self.tag}: a loop has members, each once")
        for name, (least, greatest) in LOOP_RANGES.items():
            # A setpoint is none of them: it comes with each image.
            value = getattr(self, name, None)
            if value is not None and not least <= value <= greatest:
                raise ValueError(f"{self.tag}: {name} {value:g} is not in {least:g} to {greatest:g}")

    @property
    def nominal_kw(self) -> float:
        """The members' summed nominal power."""
        return sum(member.nominal_kw for member in self.members)


@dataclass(frozen=True, slots=True)
class Sample:
    """The meter's reading and its members' power as of one moment, which is not known, told at `at_s`.

    A member whose power was not read is missing in `members_kw`.
    """

    at_s: float
    export_kw: float
    members_kw: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MemberImage:
    """How a member stands at this moment.

    `value` is what it was last asked for in percent, by whomever; None where nobody knows. `is_held`: a
    direct request holds it, and `wish` is what that asks for before any connection limit, None where it is
    the value. `is_available`: it can be commanded: reachable, not excluded, not asleep.
    """

    value: float | None = None
    is_held: bool = False
    is_available: bool = True
    wish: float | None = None


# How a member stands of which the image says nothing.
ABSENT = MemberImage(is_available=False)


@dataclass(frozen=True, slots=True)
class LoopImage:
    """What one step of a loop sees of the world.

    `sample` is the newest that arrived, None where there is none. `setpoint_kw` the plain setpoint. `is_tick`
    tells a step of its period from one because a sample arrived or a time came.
    """

    sample: Sample | None
    setpoint_kw: float
    members: Mapping[str, MemberImage]
    is_tick: bool = True


@dataclass(frozen=True, slots=True)
class LoopOutput:
    """What a loop asks of its members, and why.

    `values`: the wish for each member in percent, on its register's steps; a member the loop leaves alone is
    missing (held, not available, or all of them where the fallback is their plain setpoint). `bounds` and
    `lower_bounds`: what the connection limit leaves each member at most and at least, held ones included;
    empty without one. `setpoint_kw` is None where it
    is no number. `output_kw` is what the loop asks of its members together, None where it asks nothing;
    `measured_kw` the newest reading, None where none is fresh; `load_kw` what the site takes by it; `trim_kw`
    what the loop adds because members give other than asked. `reason` is of this moment; `bounded_by` names
    what keeps it from its setpoint, or did last while it stands `limiting`, empty where nothing does.
    `look_at_s`: when it must be stepped again though nothing happened. `is_sign_wrong`: the meter has shown
    the opposite of what members did, again and again; the loop goes by it all the same.
    """

    values: Mapping[str, float]
    bounds: Mapping[str, float]
    lower_bounds: Mapping[str, float]
    stand: Stand
    reason: Because
    setpoint_kw: float | None
    measured_kw: float | None
    output_kw: float | None
    load_kw: float | None
    trim_kw: float
    bounded_by: str
    look_at_s: float
    is_sign_wrong: bool
