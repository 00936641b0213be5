"""What happens to the plant: the scenarios of the design's section 3."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from bench.closed_loop.plant import Inverter

T = TypeVar("T")

EVENT_S = 60.0
INVERTERS = (
    Inverter(nominal_kw=60.0, dead_time_s=0.6, lag_s=0.6, ramp_pct_per_s=20.0),
    Inverter(nominal_kw=60.0, dead_time_s=1.0, lag_s=1.0, ramp_pct_per_s=20.0),
    Inverter(nominal_kw=30.0, dead_time_s=1.6, lag_s=1.5, ramp_pct_per_s=10.0),
)
FULL_SUN = (100.0, 100.0, 100.0)


@dataclass(frozen=True, slots=True)
class Course(Generic[T]):
    """A value that changes in steps: (from when, value), the first from 0 s on."""

    steps: tuple[tuple[float, T], ...]

    def at(self, seconds: float) -> T:
        # Times of the plant are multiples of a step that no float holds exactly.
        return self.steps[bisect_right(self.steps, seconds + 1e-6, key=lambda step: step[0]) - 1][1]


@dataclass(frozen=True, slots=True)
class Metering:
    """How readings come: latencies in seconds, loss as a share, noise in percent of Pn (standard deviation).

    `members_before_s`: how long before the meter the members are read. `ends_s`: none is taken from then on.
    """

    latency_s: tuple[float, float] = (0.2, 0.6)
    loss: float = 0.0
    noise_pct: float = 0.0
    members_before_s: float = 0.0
    ends_s: float | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A plant and what happens to it. `sun` is what each inverter could give, in percent of nominal power.

    `events` are the times from which overshoot and settling are looked at; the first is 60 s.
    """

    name: str
    title: str
    end_s: float
    load_kw: Course[float]
    limit_kw: Course[float]
    sun: Course[tuple[float, ...]]
    events: tuple[float, ...] = (EVENT_S,)
    metering: Metering = Metering()
    inverters: tuple[Inverter, ...] = INVERTERS
    fallback_kw: float | None = None

    @property
    def nominal_kw(self) -> float:
        return sum(inverter.nominal_kw for inverter in self.inverters)

    def sun_kw(self, sun: Sequence[float]) -> float:
        """What all inverters could give under such sun."""
        return sum(
            inverter.nominal_kw * share / 100.0 for inverter, share in zip(self.inverters, sun, strict=True)
        )

    @property
    def changes(self) -> list[float]:
        """When load, limit or sun changes, in order, 0 included."""
        courses = (self.load_kw.steps, self.limit_kw.steps, self.sun.steps)
        return sorted({at for steps in courses for at, _ in steps})


def _all_sun(*steps: tuple[float, float]) -> Course[tuple[float, ...]]:
    return Course(tuple((at, (share,) * len(INVERTERS)) for at, share in steps))


def _steady(value: T) -> Course[T]:
    return Course(((0.0, value),))


def _scenarios() -> dict[str, Scenario]:
    s1 = Scenario(
        name="S1",
        title="setpoint 120 to 60 kW",
        end_s=260.0,
        load_kw=_steady(10.0),
        limit_kw=Course(((0.0, 120.0), (60.0, 60.0))),
        sun=_steady(FULL_SUN),
    )
    s1b = replace(
        s1, name="S1b", title="setpoint 60 to 120 kW", limit_kw=Course(((0.0, 60.0), (60.0, 120.0)))
    )
    s2 = replace(
        s1,
        name="S2",
        title="load 90 to 10 kW, export limit 40 kW",
        load_kw=Course(((0.0, 90.0), (60.0, 10.0))),
        limit_kw=_steady(40.0),
    )
    s3 = replace(
        s1,
        name="S3",
        title="cloud to 20 % for 300 s, limit 60 kW",
        end_s=460.0,
        load_kw=_steady(20.0),
        limit_kw=_steady(60.0),
        sun=_all_sun((0.0, 100.0), (60.0, 20.0), (360.0, 100.0)),
        events=(60.0, 360.0),
    )
    s4 = replace(
        s2,
        name="S4",
        title="S2, and no reading from 59 s on",
        metering=Metering(ends_s=59.0),
        fallback_kw=40.0,
    )
    swings = tuple((20.0 * turn, 70.0 if turn % 2 else 30.0) for turn in range(18))
    s5 = replace(
        s2,
        name="S5",
        title="load 30/70 kW, 20 s each, readings lost, late and noisy",
        end_s=360.0,
        load_kw=Course(swings),
        events=tuple(at for at, _ in swings if at >= EVENT_S),
        metering=Metering(latency_s=(1.3, 1.7), loss=0.1, noise_pct=0.5),
    )
    s6 = replace(
        s2,
        name="S6",
        title="S2 with inverters that give 4 % of Pn too much",
        inverters=tuple(replace(inverter, bias_pct=4.0) for inverter in INVERTERS),
    )
    skewed = Metering(members_before_s=0.5)
    k2 = replace(s2, name="K2", title="S2, members read 0.5 s before the meter", metering=skewed)
    k3 = replace(s3, name="K3", title="S3, members read 0.5 s before the meter", metering=skewed)
    x1 = replace(
        s2,
        name="X1",
        title="first inverter shaded to 20 % for 120 s, limit 40 kW",
        load_kw=_steady(10.0),
        sun=Course(((0.0, FULL_SUN), (60.0, (20.0, 100.0, 100.0)), (180.0, FULL_SUN))),
        events=(60.0, 180.0),
    )
    r1 = replace(
        s3,
        name="R1",
        title="45 % sun for 600 s, limit 60 kW",
        end_s=760.0,
        sun=_all_sun((0.0, 100.0), (60.0, 45.0), (660.0, 100.0)),
        events=(60.0, 660.0),
    )
    return {each.name: each for each in (s1, s1b, s2, s3, s4, s5, s6, k2, k3, x1, r1)}


SCENARIOS = _scenarios()
