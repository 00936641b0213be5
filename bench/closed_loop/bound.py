"""The physical bound: nobody who held the limit before the event, and acts at the same ticks, can beat it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.closed_loop.controllers import STALE_S, Task, Truth, View
from bench.closed_loop.plant import Inverter

# Of the plant's own arithmetic, and no more: a state that settles comes close to its end without reaching it.
TOLERANCE_PCT = 0.05
TOLERANCE_KW = 0.01


class Bound:
    """Knows the truth as of the newest reading, and commands 0 until the violation is over.

    `answers`: not at ticks only, but when a reading arrives as well.
    """

    def __init__(self, task: Task, *, answers: bool = False) -> None:
        self._answers = answers
        self._inverters = task.scenario.inverters
        self._has_staleness = task.scenario.fallback_kw is not None
        self.look_at_s = math.inf
        self._is_over = True

    def arrived(self, view: View) -> Sequence[float] | None:
        if self._has_staleness:
            self.look_at_s = view.now_s + STALE_S
        return self.tick(view) if self._answers else None

    def look(self, view: View) -> Sequence[float] | None:  # noqa: ARG002 - the reading is too old, that is all
        self.look_at_s = math.inf
        self._is_over = False
        return [0.0] * len(self._inverters)

    def tick(self, view: View) -> Sequence[float] | None:
        if view.reading is None or (self._has_staleness and view.now_s - view.reading.at_s >= STALE_S):
            return None
        truth = view.reading.truth
        commands = largest_commands(self._inverters, truth.load_kw + view.limit_kw)
        if truth.export_kw > view.limit_kw + TOLERANCE_KW:
            self._is_over = False
        elif not self._is_over:
            # A slow one still above its share would carry the export over the limit again.
            self._is_over = self._has_come_down(truth, commands)
        return commands if self._is_over else [0.0] * len(commands)

    def _has_come_down(self, truth: Truth, commands: Sequence[int]) -> bool:
        return all(
            power <= inverter.given_for(command) + TOLERANCE_PCT
            for inverter, command, power in zip(self._inverters, commands, truth.power, strict=True)
        )


def largest_commands(inverters: Sequence[Inverter], power_kw: float) -> list[int]:
    """The register's commands that give the most without exceeding `power_kw` under full sun.

    The power is spread by nominal power; the last percents go to the largest for which they fit.
    """
    share = 100.0 * power_kw / sum(inverter.nominal_kw for inverter in inverters)
    commands = [math.floor(inverter.command_for(share) + 1e-9) for inverter in inverters]

    def given_kw(index: int, command: int) -> float:
        return inverters[index].given_for(command) * inverters[index].nominal_kw / 100.0

    given = sum(given_kw(index, command) for index, command in enumerate(commands))
    for index in sorted(range(len(commands)), key=lambda index: -inverters[index].nominal_kw):
        more_kw = given_kw(index, commands[index] + 1) - given_kw(index, commands[index])
        if commands[index] < 100 and given + more_kw <= power_kw + 1e-9:
            commands[index] += 1
            given += more_kw
    return commands
