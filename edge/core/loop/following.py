"""What a member should give by now, for what it was asked: it waits, then approaches, at most so fast."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge.core.loop.terms import Dynamics

# Commands under way beyond this many are forgotten: nobody writes more often within one dead time.
MOST_UNDER_WAY = 64


@dataclass(frozen=True, slots=True)
class Follower:
    """A member's model in percent: its power at `at_s`, what it goes to, and what is under way to it.

    `aim` took effect last; `under_way` holds (moment it takes effect, value) in the order of time.
    """

    at_s: float
    aim: float
    power: float
    under_way: tuple[tuple[float, float], ...] = ()

    @property
    def last(self) -> float:
        """What it was asked for last."""
        return self.under_way[-1][1] if self.under_way else self.aim


def at_rest(value: float, *, now_s: float) -> Follower:
    return Follower(now_s, value, value)


def command(follower: Follower, value: float, *, dynamics: Dynamics, now_s: float) -> Follower:
    """Send a value on its way, unless it is what is on its way already."""
    if value == follower.last:
        return follower
    under_way = (*follower.under_way, (now_s + dynamics.dead_time_s, value))[-MOST_UNDER_WAY:]
    return Follower(follower.at_s, follower.aim, follower.power, under_way)


def advance(follower: Follower, dynamics: Dynamics, *, to_s: float) -> Follower:
    """Where the member stands at a later moment, if nothing else is asked of it."""
    if to_s <= follower.at_s:
        return follower
    at_s, aim, power = follower.at_s, follower.aim, follower.power
    under_way = follower.under_way
    while under_way and under_way[0][0] <= to_s:
        moment, value = under_way[0]
        under_way = under_way[1:]
        if moment > at_s:
            power = approach(aim, power, dynamics, seconds=moment - at_s)
            at_s = moment
        aim = value
    power = approach(aim, power, dynamics, seconds=to_s - at_s)
    return Follower(to_s, aim, power, under_way)


def approach(aim: float, power: float, dynamics: Dynamics, *, seconds: float) -> float:
    """The power after some seconds under one command: a first order whose rate is limited."""
    lag, ramp = dynamics.lag_s, dynamics.ramp_pct_per_s
    distance = aim - power
    # Farther away than this, it moves as fast as it may.
    bend = ramp * lag
    straight_s = max(abs(distance) - bend, 0.0) / ramp
    if straight_s >= seconds:
        return power + math.copysign(ramp * seconds, distance)
    if lag == 0:
        return aim
    left = min(abs(distance), bend) * math.exp(-(seconds - straight_s) / lag)
    return aim - math.copysign(left, distance)
