"""The plain PID of the guide, for a loop whose feed-forward is off."""

from __future__ import annotations

from dataclasses import dataclass

from edge.core.loop.terms import LoopSettings

# Two readings nearer to each other tell no slope.
LEAST_S = 0.01


@dataclass(frozen=True, slots=True)
class Pid:
    """Where it stands: its integral, the reading it acted on last, at `at_s`, and whose sum its output is."""

    at_s: float
    integral_kw: float
    export_kw: float
    tags: tuple[str, ...]


def take_over(
    settings: LoopSettings,
    *,
    output_kw: float,
    aim_kw: float,
    export_kw: float,
    now_s: float,
    tags: tuple[str, ...],
) -> Pid:
    """Begin without a bump: its output is what these members give already."""
    return Pid(now_s, output_kw - settings.kp * (aim_kw - export_kw), export_kw, tags)


def act(
    pid: Pid,
    settings: LoopSettings,
    *,
    aim_kw: float,
    export_kw: float,
    low_kw: float,
    high_kw: float,
    now_s: float,
) -> tuple[Pid, float]:
    """One step: the output between `low_kw` and `high_kw`, and where it stands then.

    The derivative is of the reading alone, so that a new setpoint does not kick. What the output's ends cut
    off is taken out of the integral, so that nothing is wound up.
    """
    seconds = now_s - pid.at_s
    error = aim_kw - export_kw
    slope = (export_kw - pid.export_kw) / seconds if seconds >= LEAST_S else 0.0
    integral = pid.integral_kw + settings.ki * seconds * error
    wished = settings.kp * error + integral - settings.kd * slope
    output = min(max(wished, low_kw), high_kw)
    return Pid(now_s, integral + output - wished, export_kw, pid.tags), output
