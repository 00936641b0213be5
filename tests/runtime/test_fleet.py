"""Lines and devices as a configuration wants them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from edge.runtime.fleet import LINE_STEP_S, PHASE_STEP_S, poll_phase_s
from tests.runtime.plant import running_plant


def test_polls_of_many_devices_are_spread_over_their_period():
    phases = Counter(poll_phase_s(f"INVERTER_{number:04}", 1.0) for number in range(1000))

    assert len(phases) == 1.0 / PHASE_STEP_S
    # Even to the eye: 50 each on average, and no moment with twice as many.
    assert max(phases.values()) < 100


@pytest.mark.parametrize("poll_s", [0.1, 0.13, 1.0, 10.0, 900.0])
def test_a_phase_lies_in_the_period(poll_s):
    assert all(0 <= poll_phase_s(f"INVERTER_{number:02}", poll_s) < poll_s for number in range(50))


def test_a_phase_is_the_same_on_every_start():
    # Of the tag alone: what `hash` gives differs from process to process.
    assert poll_phase_s("INVERTER_01", 1.0) == pytest.approx(0.95)
    assert poll_phase_s("INVERTER_02", 1.0) == pytest.approx(0.05)


def test_a_period_shorter_than_the_step_has_one_phase():
    assert {poll_phase_s(f"INVERTER_{number}", PHASE_STEP_S / 10) for number in range(50)} == {0.0}


async def test_new_lines_connect_one_after_the_other(tmp_path: Path):
    async with running_plant(tmp_path) as plant:
        tags = [f"INVERTER_{number:02}" for number in range(5)]
        for tag in tags:
            await plant.add(tag)
        plant.apply()
        seen = []
        for connected in range(1, len(tags) + 1):

            def reached() -> bool:
                return sum(device.commands > 0 for device in plant.simulated.values()) >= connected  # noqa: B023

            seen.append(await plant.run(1.0, reached))

        # A write wanted at the start does not bring them together again.
        assert seen[1:] == pytest.approx([LINE_STEP_S] * 4, abs=1e-4)
