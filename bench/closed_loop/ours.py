"""The loop of `edge.core`, stepped and obeyed as a node does it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.closed_loop.controllers import STALE_S, Arrived, Task, View
from bench.closed_loop.plant import STEP_S, Inverter
from edge.core import closed_loop as core

# What a member is at where the loop leaves it alone: no schedule, and the default of an inverter.
DEFAULT_PCT = 100.0


class Ours:
    """`begin` and `step` of the core.

    `knows_members`: it is told how each member follows, as after identification; else it starts from the
    cautious values of one that was never seen.
    """

    def __init__(self, task: Task, *, knows_members: bool = False, deadband_kw: float = 0.0) -> None:
        inverters = task.scenario.inverters
        self._tags = tuple(f"inverter-{number:02}" for number in range(1, len(inverters) + 1))
        self._inverters = inverters
        settings = core.LoopSettings(
            tag="loop",
            members=tuple(
                core.Member(
                    tag=tag,
                    nominal_kw=inverter.nominal_kw,
                    dynamics=_dynamics(inverter) if knows_members else core.Dynamics(),
                )
                for tag, inverter in zip(self._tags, inverters, strict=True)
            ),
            deadband_kw=deadband_kw,
            fallback_pct=task.fallback_pct,
            time_step_s=task.period_s,
            stale_after_s=STALE_S,
        )
        self._state = core.begin(settings, now_s=0.0)
        self._sample: core.Sample | None = None
        self.look_at_s = math.inf

    def tick(self, view: View) -> Sequence[float] | None:
        return self._step(view, is_tick=True)

    def look(self, view: View) -> Sequence[float] | None:
        return self._step(view, is_tick=False)

    def arrived(self, view: View) -> Sequence[float] | None:
        assert view.reading is not None
        self._sample = self._as_sample(view.reading)
        return self._step(view, is_tick=False)

    def _as_sample(self, reading: Arrived) -> core.Sample:
        members_kw = dict(zip(self._tags, reading.members_kw, strict=True))
        return core.Sample(at_s=reading.at_s, export_kw=reading.export_kw, members_kw=members_kw)

    def _step(self, view: View, *, is_tick: bool) -> Sequence[float]:
        image = core.LoopImage(
            sample=self._sample,
            setpoint_kw=view.limit_kw,
            members={
                tag: core.MemberImage(value=float(command))
                for tag, command in zip(self._tags, view.commands, strict=True)
            },
            is_tick=is_tick,
        )
        self._state, output = core.step(self._state, image, view.now_s)
        # A time that has come already is looked at a step later, so that time goes on whatever it asks for.
        self.look_at_s = output.look_at_s if output.look_at_s > view.now_s else view.now_s + STEP_S
        return [
            max(
                output.lower_bounds.get(tag, -math.inf),
                min(output.values.get(tag, DEFAULT_PCT), output.bounds.get(tag, math.inf)),
            )
            for tag in self._tags
        ]


def _dynamics(inverter: Inverter) -> core.Dynamics:
    return core.Dynamics(
        dead_time_s=inverter.dead_time_s,
        lag_s=inverter.lag_s,
        ramp_pct_per_s=inverter.ramp_pct_per_s,
        gain=inverter.gain,
    )
