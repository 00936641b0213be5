"""A shuffled life of a site, many thousand steps long."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.machine import Site

STEPS_A_LIFE = 40


def test_whatever_happens_the_rules_hold_after_every_step(pytestconfig: pytest.Config) -> None:
    """`--simulation-steps` says how many; the same ones every time, so that a failure is never a flake."""
    wanted = pytestconfig.getoption("--simulation-steps")
    begin, lives = Site.steps, 0
    # A life may be shorter than it might be: go on until they add up.
    while (left := wanted - (Site.steps - begin)) > 0:
        lives += 1
        how = settings(
            max_examples=math.ceil(left / STEPS_A_LIFE),
            stateful_step_count=STEPS_A_LIFE,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(seed(lives)(type(f"Life{lives}", (Site,), {})), settings=how)
    taken = Site.steps - begin
    print(f"{taken} steps of a simulated site")  # noqa: T201 - how much was tried
    assert taken >= wanted
