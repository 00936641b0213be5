"""Rules of control that need the whole cycle to show, and that no other module of these tests is about.

`docs/rules.md` lists the tests of each rule.
"""

from __future__ import annotations

import msgspec

from edge.simulators.device import Fault
from edge.wire.messages import Code
from tests.runtime.plant import profile, running_plant

A = "INVERTER_01"


async def test_ramp_moves_a_device_a_second_at_a_time_and_its_lapse_is_logged_once_it_has_arrived(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A, ramp_pct_per_min=300)
        plant.apply()
        await plant.run(10)
        plant.setpoint(INVERTER_01=80, hold_s=30)
        await plant.run(0.5)
        assert plant.limit(A) == 95
        await plant.run(29.4)
        assert plant.limit(A) == 80

        await plant.run(1.1, lambda: plant.limit(A) > 80)
        await plant.run(1)
        assert plant.limit(A) < 100
        assert not plant.logged("watchdog")
        await plant.run(10)
        assert plant.limit(A) == 100
        (entry,) = plant.logged("watchdog")
        assert (entry.value, entry.devices[A].readback) == (100.0, 100.0)
        assert not plant.logged("device_error")
        assert device.writes["limit_target"] <= 4 + 5


async def test_hold_that_the_days_budget_does_not_cover_is_refused_and_a_running_one_is_renewed(tmp_path):
    limit = profile().limit
    assert limit is not None
    wearing = profile(limit=msgspec.structs.replace(limit, write_class="persistent", writes_per_day=3))
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A, wearing)
        plant.apply()
        for value in (30.0, 40.0):
            waiting = plant.setpoint(INVERTER_01=value)[A]
            await plant.run(1, waiting.done)
            assert waiting.result().ok
        refused = plant.command(INVERTER_01=50).refused[A]
        assert refused.code == Code.WEAR
        assert "kept for releases" in refused.detail

        renewal = plant.setpoint(INVERTER_01=40)[A]
        await plant.run(1, renewal.done)
        assert renewal.result().ok
        await plant.run(61, lambda: plant.limit(A) == 100)
        assert device.writes["limit_target"] == 3


async def test_ramp_of_a_device_out_of_reach_is_told_once_and_not_every_second(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A, ramp_pct_per_min=60.0)
        plant.apply()
        await plant.run(2)
        await device.set_fault(Fault.REFUSE)
        plant.setpoint(INVERTER_01=40)
        await plant.run(30)
        errors = plant.logged("device_error")
        assert 1 <= len(errors) <= 2  # that it is gone, and that a write to it failed
