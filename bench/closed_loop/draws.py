"""What chance decides of a run: when readings are taken and arrive, what they carry, when controllers act."""

from __future__ import annotations

import random
from dataclasses import dataclass

from bench.closed_loop.plant import STEP_S, step_at
from bench.closed_loop.scenarios import Metering

JITTER = 0.15


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of the meter: taken at a step of the plant, the members' power too, and when it arrives.

    `noise` is what the meter adds, in standard deviations.
    """

    taken: int
    members_taken: int
    arrives_s: float
    noise: float


@dataclass(frozen=True, slots=True)
class Draws:
    """All that chance decides of one run, the same for all controllers."""

    readings: tuple[Reading, ...]
    ticks: tuple[float, ...]


def draw(metering: Metering, *, seed: int, period_s: float, end_s: float) -> Draws:
    """Draw the readings and ticks of a run.

    The readings do not depend on the period, nor the ticks on how readings come.
    """
    return Draws(_readings(metering, seed, end_s), _ticks(seed, period_s, end_s))


def _readings(metering: Metering, seed: int, end_s: float) -> tuple[Reading, ...]:
    latencies = random.Random(f"{seed} latency")
    losses = random.Random(f"{seed} loss")
    noises = random.Random(f"{seed} noise")
    taken_s = random.Random(f"{seed} phase").random()
    before = round(metering.members_before_s / STEP_S)
    readings: list[Reading] = []
    arrives_s = 0.0
    while taken_s < end_s:
        latency_s = latencies.uniform(*metering.latency_s)
        is_lost = losses.random() < metering.loss
        noise = noises.gauss(0.0, 1.0)
        taken = step_at(taken_s)
        has_ended = metering.ends_s is not None and taken * STEP_S >= metering.ends_s
        if not is_lost and not has_ended:
            arrives_s = max(arrives_s, taken * STEP_S + latency_s)
            readings.append(Reading(taken, max(0, taken - before), arrives_s, noise))
        taken_s += 1.0
    return tuple(readings)


def _ticks(seed: int, period_s: float, end_s: float) -> tuple[float, ...]:
    chance = random.Random(f"{seed} ticks {period_s:g}")
    ticks = [chance.uniform(0.0, period_s)]
    while ticks[-1] < end_s:
        ticks.append(ticks[-1] + period_s * chance.uniform(1.0 - JITTER, 1.0 + JITTER))
    return tuple(ticks[:-1])
