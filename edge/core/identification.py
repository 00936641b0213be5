"""How a member follows its commands, found out from what it does in normal operation.

Each larger step of a command that moves a member's power is an experiment, whoever commands it. A model of
the member (a dead time, then a first order whose rate is limited, as `edge.core.loop.following` has it) is
laid through the readings around the step; what fits best is one finding. What is believed is the median of
the last findings, and moves towards it slowly.

Sun disturbs experiments: one after which the member does not give what it was asked for, or through whose
readings no model goes, is thrown away. A member that was held back by its sun before a fall shows by the
fall how it follows all the same, but nothing of its gain.

Power and commands are in percent of the member's nominal power, times in seconds on the boot-time clock, as
of the moment of the reading and of the asking. All is total: what is no number, or comes from the past, is
not heard.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from edge.core.loop.following import approach
from edge.core.loop.terms import WIDEST_PCT, Dynamics

# What a member can be like, at the least and at the most; nobody believes more.
DEAD_TIME_S = (0.1, 20.0)
LAG_S = (0.1, 20.0)
RAMP_PCT_PER_S = (0.5, 200.0)
GAIN = (0.8, 1.2)
# A command that changes by so much at once begins an experiment. (All of these in percent of nominal power.)
STEP_PCT = 15.0
# The gain is told by steps of at least this size.
GAIN_STEP_PCT = 20.0
# A member gives what it is asked for when it is so near; what is farther is its sun, or disobedience.
NEAR_PCT = 8.0
# Before a step and after it, commands have stayed as near together as this, and power as near, noise aside.
STEADY_COMMAND_PCT, STEADY_PCT = 3.0, 1.0
# A member that was held back by its commands has followed them as exactly as this since.
ON_LINE_PCT = 1.0
# The least that readings are noisy.
LEAST_NOISE_PCT = 0.3
# So many times its noise is the whole width of a reading that stands still.
NOISE_WIDTH = 4.0
# The model goes through the readings when it misses them by no more than this, or by this part of the step.
MISS_PCT, MISS_PART = 1.5, 0.06
# For so long power has stood still before a step, and after it, by at least so many readings.
BEFORE_S, AFTER_S, LEAST_READINGS = 6.0, 8.0, 3
# An experiment that takes longer is none.
LONGEST_S = 240.0
# Readings nearer together than this tell nothing more; after a longer silence nobody knows what was in it.
APART_S, SILENT_S = 0.2, 4.0
# What is remembered at the most: readings and commands of one experiment, and findings.
MOST_READINGS, MOST_COMMANDS, MOST_FINDINGS = 160, 64, 9
# So many findings are needed before any is believed, and each moves what is believed by so much at the most.
LEAST_FINDINGS, MOST_CHANGE, MOST_GAIN_CHANGE = 3, 0.2, 0.01
# The widths of the search for the best model, and how often each is tried.
WIDTHS, TRIES = (0.6, 0.3, 0.12, 0.05), 8

# What is believed of a member that was never seen.
CAUTIOUS = Dynamics()

Moment = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one experiment has told; `gain` is None where sun may have had a part in it."""

    dead_time_s: float
    lag_s: float
    ramp_pct_per_s: float
    gain: float | None = None


@dataclass(frozen=True, slots=True)
class Experiment:
    """A step of a command that is over: the power before and after, and all that was asked and read since.

    `asked` and `read` are (seconds since the step, percent) in the order of time. `gain` is what the step
    alone tells of it.
    """

    before: float
    after: float
    noise: float
    asked: tuple[Moment, ...]
    read: tuple[Moment, ...]
    gain: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a command that is being watched: when it began, and what was asked and given before."""

    at_s: float
    value: float
    power: float
    noise: float


@dataclass(frozen=True, slots=True)
class Watched:
    """What is known of one member.

    `dynamics` is what is believed, `findings` the newest last. `asked` and `read` are (moment, percent) as
    far back as they are needed. `experiment` waits to be evaluated. `held` is where the member was last held
    back by its command for sure: (command, power).
    """

    dynamics: Dynamics = CAUTIOUS
    findings: tuple[Finding, ...] = ()
    asked: tuple[Moment, ...] = ()
    read: tuple[Moment, ...] = ()
    step: Step | None = None
    experiment: Experiment | None = None
    held: Moment | None = None


def asked(watched: Watched, value: float, *, at_s: float) -> Watched:
    """Take note that a member is asked for a value, by whomever; the same value again is no news."""
    if not _is_number(value, at_s) or (watched.asked and at_s < watched.asked[-1][0]):
        return watched
    before = watched.asked[-1][1] if watched.asked else None
    if before == value:
        return watched
    step = watched.step
    if step is None and before is not None and abs(value - before) >= STEP_PCT:
        step = _begun(watched, before, at_s)
    since_s = at_s - BEFORE_S if step is None else step.at_s
    return replace(watched, step=step, asked=(*_since(watched.asked, since_s), (at_s, value)))


def observe(watched: Watched, power: float, *, at_s: float) -> Watched:
    """Take note of what a member gives."""
    if not _is_number(power, at_s) or (watched.read and at_s < watched.read[-1][0] + APART_S):
        return watched
    step = watched.step
    if step is None:
        return replace(watched, read=(*_since(watched.read, at_s - BEFORE_S), (at_s, power)))
    is_silent = at_s - watched.read[-1][0] > SILENT_S
    watched = replace(watched, read=_thinned((*watched.read, (at_s, power))))
    if is_silent or at_s - step.at_s > LONGEST_S or len(watched.asked) > MOST_COMMANDS:
        return _without_step(watched)
    if not _is_over(watched, step, at_s):
        return watched
    return _ended(watched, step)


def learn(watched: Watched) -> Watched:
    """Evaluate the experiment that waits, if one does. This is what takes time: some milliseconds."""
    experiment = watched.experiment
    if experiment is None:
        return watched
    watched = replace(watched, experiment=None)
    finding = _finding(experiment, watched.dynamics)
    if finding is None:
        return watched
    findings = (*watched.findings, finding)[-MOST_FINDINGS:]
    return replace(watched, findings=findings, dynamics=_moved(watched.dynamics, findings))


def remembered(dynamics: Dynamics, findings: Sequence[Finding]) -> Watched | None:
    """What was known of a member, as somebody has kept it; None where no member can be like that."""
    kept = tuple(findings)[-MOST_FINDINGS:]
    known = [Finding(dynamics.dead_time_s, dynamics.lag_s, dynamics.ramp_pct_per_s, dynamics.gain), *kept]
    if all(_is_possible(one) for one in known):
        return Watched(dynamics, kept)
    return None


def _is_possible(finding: Finding) -> bool:
    gain = 1.0 if finding.gain is None else finding.gain
    parts = (finding.dead_time_s, finding.lag_s, finding.ramp_pct_per_s, gain)
    ranges = (DEAD_TIME_S, LAG_S, RAMP_PCT_PER_S, GAIN)
    return all(least <= part <= most for part, (least, most) in zip(parts, ranges, strict=True))


def estimate(watched: Watched) -> Dynamics:
    """How the member follows its commands, as far as that is known."""
    return watched.dynamics


# --- experiments -------------------------------------------------------------------------------------------


def _is_number(value: float, at_s: float) -> bool:
    return abs(value) <= WIDEST_PCT and math.isfinite(at_s)


def _since(moments: tuple[Moment, ...], since_s: float) -> tuple[Moment, ...]:
    """Those since a moment, and the last one before it: that was in force then."""
    first = len(moments)
    while first > 0 and moments[first - 1][0] >= since_s:
        first -= 1
    return moments[max(first - 1, 0, len(moments) - MOST_COMMANDS) :]


def _thinned(read: tuple[Moment, ...]) -> tuple[Moment, ...]:
    return read if len(read) <= MOST_READINGS else (*read[:-1:2], read[-1])


def _spread(moments: Sequence[Moment]) -> float:
    values = [value for _, value in moments]
    return max(values) - min(values)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _median(values: Sequence[float]) -> float:
    # The module `statistics` draws at random.
    ordered = sorted(values)
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[-middle - 1]) / 2


def _begun(watched: Watched, value: float, at_s: float) -> Step | None:
    """The step, if the member stood still before it under one command."""
    read = [moment for moment in watched.read if at_s - BEFORE_S <= moment[0] <= at_s]
    if len(read) < LEAST_READINGS or _spread(_since(watched.asked, at_s - BEFORE_S)) > STEADY_COMMAND_PCT:
        return None
    power = _mean([each for _, each in read])
    noise = max(math.sqrt(_mean([(each - power) ** 2 for _, each in read])), LEAST_NOISE_PCT)
    if _spread(read) > NOISE_WIDTH * STEADY_PCT:
        return None
    return Step(at_s, value, power, noise)


def _without_step(watched: Watched) -> Watched:
    """Nothing can be told of this one; the next one may."""
    return replace(watched, step=None, asked=watched.asked[-1:], read=watched.read[-1:])


def _is_over(watched: Watched, step: Step, at_s: float) -> bool:
    """Tell whether the member has moved, and has stood still since under one command."""
    if watched.read[0][0] > at_s - AFTER_S or at_s - step.at_s < AFTER_S:
        return False
    last = [moment for moment in watched.read if moment[0] >= at_s - AFTER_S]
    value = watched.asked[-1][1]
    if len(last) < LEAST_READINGS or _spread(_since(watched.asked, at_s - AFTER_S)) > STEADY_COMMAND_PCT:
        return False
    has_moved = abs(last[-1][1] - step.power) >= abs(value - step.power) / 2
    return has_moved and _spread(last) <= STEADY_PCT + NOISE_WIDTH * step.noise


def _ended(watched: Watched, step: Step) -> Watched:
    value = watched.asked[-1][1]
    end_s = watched.read[-1][0]
    after = _mean([power for at_s, power in watched.read if at_s >= end_s - AFTER_S])
    is_fall = after < step.power
    # A member that is held back by its sun does not rise to its command.
    is_near = abs(after - value) <= NEAR_PCT and (is_fall or abs(step.power - step.value) <= NEAR_PCT)
    if not is_near or abs(after - step.power) < STEP_PCT / 2:
        return replace(_without_step(watched), held=None)
    experiment = Experiment(
        before=step.power,
        after=after,
        noise=step.noise,
        asked=tuple((max(at_s - step.at_s, 0.0), each) for at_s, each in watched.asked if at_s >= step.at_s),
        read=tuple((at_s - step.at_s, power) for at_s, power in watched.read if at_s >= step.at_s),
        gain=_gain(watched.held, step, value=value, after=after),
    )
    held = (value, after) if is_fall else None
    return replace(_without_step(watched), experiment=experiment, held=held)


def _gain(held: Moment | None, step: Step, *, value: float, after: float) -> float | None:
    """The gain, from a fall that began where the member was held back by its command alone.

    Of two such powers the difference: so a member that gives some percent too much at any command has a
    gain of 1, and the rest is its trim.
    """
    if held is None or value > step.value - GAIN_STEP_PCT:
        return None
    if abs(step.power - held[1] - (step.value - held[0])) > ON_LINE_PCT:
        # Its sun may have come short meanwhile.
        return None
    gain = (after - step.power) / (value - step.value)
    return gain if GAIN[0] <= gain <= GAIN[1] else None


# --- the model that fits best ------------------------------------------------------------------------------


def _finding(experiment: Experiment, believed: Dynamics) -> Finding | None:
    """The model that goes best through an experiment; None where none does."""
    best = _guess(experiment)
    least = _cost(experiment, best, believed)
    for width in WIDTHS:
        for _ in range(TRIES):
            cost, model = min(
                ((_cost(experiment, each, believed), each) for each in _around(best, width)),
                key=lambda found: found[0],
            )
            if cost >= least:
                break
            least, best = cost, model
    distance = abs(experiment.after - experiment.before)
    allowed = max(MISS_PCT, NOISE_WIDTH / 2 * experiment.noise, MISS_PART * distance)
    if math.sqrt(_missed(experiment, best) / len(experiment.read)) > allowed:
        return None
    return replace(best, gain=experiment.gain)


def _guess(experiment: Experiment) -> Finding:
    """A model to begin with: what the readings show at first sight."""
    up = experiment.after > experiment.before
    distance = abs(experiment.after - experiment.before)
    ways = [
        (at_s, (power - experiment.before) if up else (experiment.before - power))
        for at_s, power in experiment.read
    ]
    begun_s = next((at_s for at_s, way in ways if way > 0.1 * distance), DEAD_TIME_S[1])
    done_s = next((at_s for at_s, way in ways if way > 0.63 * distance), begun_s)
    slopes = [(way - before) / (at_s - earlier_s) for (earlier_s, before), (at_s, way) in pairwise(ways)]
    ramp = _within(1.2 * max(slopes, default=0.0), RAMP_PCT_PER_S)
    return Finding(
        dead_time_s=_within(begun_s - 0.1 * distance / ramp, DEAD_TIME_S),
        lag_s=_within((done_s - begun_s) / 2, LAG_S),
        ramp_pct_per_s=ramp,
    )


def _around(model: Finding, width: float) -> Iterator[Finding]:
    for factor in (1 + width, 1 / (1 + width)):
        dead_time_s = _within(model.dead_time_s * factor, DEAD_TIME_S)
        lag_s = _within(model.lag_s * factor, LAG_S)
        ramp = _within(model.ramp_pct_per_s * factor, RAMP_PCT_PER_S)
        yield replace(model, dead_time_s=dead_time_s)
        yield replace(model, lag_s=lag_s)
        yield replace(model, ramp_pct_per_s=ramp)
        # Any two of them can stand for each other to some degree.
        yield replace(model, dead_time_s=dead_time_s, lag_s=_within(model.lag_s / factor, LAG_S))
        yield replace(model, lag_s=lag_s, ramp_pct_per_s=ramp)
        yield replace(model, dead_time_s=dead_time_s, ramp_pct_per_s=ramp)


def _cost(experiment: Experiment, model: Finding, believed: Dynamics) -> float:
    """How badly a model fits. What an experiment does not show stays as it is believed."""
    strange = sum(
        math.log(now / _within(before, within)) ** 2
        for now, before, within in (
            (model.dead_time_s, believed.dead_time_s, DEAD_TIME_S),
            (model.lag_s, believed.lag_s, LAG_S),
            (model.ramp_pct_per_s, believed.ramp_pct_per_s, RAMP_PCT_PER_S),
        )
    )
    return _missed(experiment, model) / experiment.noise**2 + strange


def _missed(experiment: Experiment, model: Finding) -> float:
    """The sum of squares of what the model misses the readings by."""
    dynamics = Dynamics(model.dead_time_s, model.lag_s, model.ramp_pct_per_s)
    shift = experiment.after - experiment.asked[-1][1]
    power = aim = experiment.before
    is_fall = experiment.after < experiment.before
    goals = [
        (at_s + model.dead_time_s, min(value + shift, experiment.before) if is_fall else value + shift)
        for at_s, value in experiment.asked
    ]
    moment, missed, following = 0.0, 0.0, 0
    for at_s, read in experiment.read:
        while following < len(goals) and goals[following][0] <= at_s:
            effect_s, goal = goals[following]
            power = approach(aim, power, dynamics, seconds=effect_s - moment)
            moment, aim, following = effect_s, goal, following + 1
        power = approach(aim, power, dynamics, seconds=at_s - moment)
        moment = at_s
        missed += (power - read) ** 2
    return missed


def _within(value: float, within: tuple[float, float]) -> float:
    return min(max(value, within[0]), within[1])


# --- what is believed --------------------------------------------------------------------------------------


def _moved(believed: Dynamics, findings: Sequence[Finding]) -> Dynamics:
    """Towards the median of the findings, by so much at the most."""
    gains = [finding.gain for finding in findings if finding.gain is not None]
    gain = believed.gain
    if len(gains) >= LEAST_FINDINGS:
        change = _within(_median(gains) - gain, (-MOST_GAIN_CHANGE, MOST_GAIN_CHANGE))
        gain = _within(gain + change, GAIN)
    if len(findings) < LEAST_FINDINGS:
        return believed
    return Dynamics(
        dead_time_s=_nearer(believed.dead_time_s, [finding.dead_time_s for finding in findings], DEAD_TIME_S),
        lag_s=_nearer(believed.lag_s, [finding.lag_s for finding in findings], LAG_S),
        ramp_pct_per_s=_nearer(
            believed.ramp_pct_per_s, [finding.ramp_pct_per_s for finding in findings], RAMP_PCT_PER_S
        ),
        gain=gain,
    )


def _nearer(believed: float, found: Sequence[float], within: tuple[float, float]) -> float:
    before = _within(believed, within)
    return _within(_median(found), (before / (1 + MOST_CHANGE), before * (1 + MOST_CHANGE)))
