"""Rule 13: what writing costs a register is counted, budgeted and reported, and a release is always left over."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from edge.core.schedule import Schedule
from edge.profiles.model import Profile
from edge.simulators.device import Fault
from edge.wire.messages import Code, Writes
from tests.runtime.plant import Plant, TurnedClock, profile, running_plant

A = "INVERTER_01"
B = "INVERTER_02"
LIMIT = "limit_target"
DAY_S = 86400


def wearing(*, per_day: int = 6, write_class: str = "persistent") -> Profile:
    kind = profile()
    assert kind.limit is not None
    limit = msgspec.structs.replace(kind.limit, write_class=write_class, writes_per_day=per_day)
    # Patient: a write that a busy machine is late to answer would count twice.
    return msgspec.structs.replace(kind, limit=limit, timeout_ms=5000)


def writes(plant: Plant, tag: str = A) -> int:
    return plant.simulated[tag].writes[LIMIT]


async def spend(plant: Plant, *values: float) -> None:
    """Hold these values one after the other."""
    for value in values:
        answer = plant.hold({A: value})[A]
        await plant.run(2, answer.done)
        assert answer.result().ok


async def test_hold_is_refused_where_its_set_and_its_release_are_not_covered(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A, wearing(per_day=6))
        plant.apply()
        await spend(plant, 10, 20, 30, 40, 50)

        refused = plant.command(INVERTER_01=60).refused[A]
        assert refused.reason.startswith("wear: 5 of 6 writes of today are spent")
        assert plant.limit(A) == 50


async def test_release_is_possible_and_written_after_the_last_hold_of_the_day(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A, wearing(per_day=6))
        plant.apply()
        await spend(plant, 10, 20, 30, 40, 50)
        assert plant.command(INVERTER_01=60).refused

        answer = plant.release(A)[A]
        await plant.run(2, answer.done)
        assert (answer.result().ok, plant.limit(A), writes(plant)) == (True, 100, 6)


async def test_lapse_and_schedule_are_written_with_the_budget_spent(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A, wearing(per_day=2))
        plant.apply()
        await spend(plant, 10)
        await plant.run(61, lambda: plant.limit(A) == 100)
        today = plant.clock.now().utc.date()
        plant.cycle.set_schedules({"inverter": Schedule({today: {"10:00": 70.0}})})
        await plant.run(2, lambda: plant.limit(A) == 70)


async def test_renewal_of_the_same_value_is_never_refused_and_never_written(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A, wearing(per_day=2))
        plant.apply()
        await spend(plant, 30)
        for _ in range(20):
            await plant.run(30)
            await spend(plant, 30)
        assert (plant.limit(A), writes(plant)) == (30, 1)


def alarms(plant: Plant) -> list[tuple[str, str, str]]:
    return [(alarm.code, alarm.device, alarm.detail) for alarm in plant.cycle.alarms.standing]


async def test_alarm_stands_from_four_fifths_of_the_budget_until_the_day_ends(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A, wearing(per_day=5))
        plant.apply()
        await spend(plant, 10, 20, 30)
        assert alarms(plant) == []
        await spend(plant, 40)
        assert alarms(plant) == [("wear", A, "4 of 5 writes of today are spent")]

        await plant.run(65, lambda: plant.limit(A) == 100)
        midnight = datetime(2026, 3, 3, tzinfo=UTC) - plant.clock.now().utc
        plant.clock.jump_wall(midnight.total_seconds() - 10)
        await plant.run(5)
        assert alarms(plant)
        await plant.run(10, lambda: not alarms(plant))
        assert plant.cycle.units[A].state.spent_today == 0
        await spend(plant, 10, 20)


async def test_ledger_tells_today_and_ever_and_is_reported_for_registers_that_wear(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A, wearing(per_day=20))
        await plant.add(B)
        plant.apply()
        await spend(plant, 10, 20)
        plant.setpoint(INVERTER_02=30)
        await plant.run(2)
        assert plant.cycle.wear == {A: {LIMIT: Writes(today=2, ever=2)}}

        plant.clock.jump_wall(DAY_S)
        await plant.run(70, lambda: plant.limit(A) == 100)
        assert plant.cycle.wear == {A: {LIMIT: Writes(today=1, ever=3)}}


async def test_ledger_survives_a_restart_and_a_reboot(tmp_path):
    first = clock = TurnedClock()
    async with running_plant(tmp_path, clock=first) as plant:
        await plant.add(A, wearing(per_day=6))
        plant.apply()
        await spend(plant, 10, 20, 30, 40, 50)
        site = plant.outlive()
    for clock in (first, TurnedClock(boot_id="boot-2")):
        async with running_plant(tmp_path, clock=clock, site=site) as plant:
            plant.apply()
            assert plant.cycle.units[A].state.spent_today >= 5
            assert [alarm.code for alarm in plant.cycle.alarms.standing] == ["wear"]
            assert plant.command(INVERTER_01=60).refused[A].code == Code.WEAR
            await plant.run(2)
            site = plant.outlive()
    async with running_plant(tmp_path, clock=clock, site=site) as plant:
        plant.apply()
        assert plant.cycle.wear[A][LIMIT].ever == writes(plant) == 6


async def test_volatile_register_is_counted_across_a_restart_to_the_minute(tmp_path):
    clock = TurnedClock()
    async with running_plant(tmp_path, clock=clock) as plant:
        await plant.add(A)
        plant.apply()
        await spend(plant, 10, 20)
        await plant.run(61)
        site = plant.outlive()
    async with running_plant(tmp_path, clock=clock, site=site) as plant:
        plant.apply()
        assert plant.cycle.units[A].state.ledger.registers[LIMIT].ever >= 2


async def test_day_does_not_begin_twice_when_the_clock_is_set_back(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A, wearing(per_day=6))
        plant.apply()
        plant.clock.jump_wall(DAY_S)
        await spend(plant, 10, 20, 30, 40, 50)
        plant.clock.jump_wall(-DAY_S)
        await plant.run(2)
        plant.clock.jump_wall(DAY_S)
        await plant.run(2)

        assert plant.cycle.units[A].state.spent_today == 5
        assert plant.command(INVERTER_01=60).refused[A].code == Code.WEAR


async def test_clock_that_was_years_ahead_does_not_close_the_budget_for_years(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A, wearing(per_day=6))
        plant.apply()
        plant.clock.jump_wall(3650 * DAY_S)
        await spend(plant, 10, 20, 30, 40, 50)
        plant.clock.jump_wall(-3650 * DAY_S)
        await plant.run(2)
        assert plant.command(INVERTER_01=60).refused[A].code == Code.WEAR

        plant.clock.jump_wall(DAY_S)
        await plant.run(2)
        await spend(plant, 60)


async def test_clock_that_nothing_confirms_begins_no_day(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A, wearing(per_day=6))
        plant.apply()
        await spend(plant, 10, 20, 30, 40, 50)
        plant.clock.untrusted_since_s = plant.clock.boottime_s()
        plant.clock.jump_wall(DAY_S)
        await plant.run(2)
        assert plant.command(INVERTER_01=60).refused[A].code == Code.WEAR

        plant.clock.untrusted_since_s = None
        await plant.run(2)
        await spend(plant, 60)


async def test_device_that_never_confirms_is_written_three_times_and_then_ever_more_rarely(tmp_path):
    async with running_plant(tmp_path) as plant:
        plant.site["curtailment_time_limit_s"] = 3600
        device = await plant.add(A, wearing(per_day=1000))
        plant.apply()
        await plant.run(1)
        await device.set_fault(Fault.IGNORE_WRITES)
        answer = plant.setpoint(INVERTER_01=30, hold_s=3600)[A]
        await plant.run(5, answer.done)
        assert answer.result().code == Code.READBACK_MISMATCH
        assert sent(plant) == 3

        await plant.run(3580)
        assert sent(plant) <= 3 + 9  # 8 s, 16 s, ... to an hour


def sent(plant: Plant) -> int:
    return plant.cycle.units[A].state.ledger.registers[LIMIT].ever


async def test_whoever_asks_again_for_what_is_not_confirmed_costs_no_writes_and_is_answered(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A, wearing(per_day=1000))
        plant.apply()
        await plant.run(1)
        await device.set_fault(Fault.IGNORE_WRITES)
        for _ in range(40):
            answer = plant.hold({A: 30})[A]
            await plant.run(5, answer.done)
            assert answer.result().code == Code.READBACK_MISMATCH
            assert "still trying until" in answer.result().detail
            await plant.run(30)

        assert sent(plant) <= 3 + 8
        await device.set_fault(Fault.NONE)
        plant.release(A)
        await plant.run(2, lambda: plant.limit(A) == 100)


async def test_drift_of_a_register_that_wears_is_mended_while_the_budget_allows(tmp_path):
    async with running_plant(tmp_path) as plant:
        plant.site["curtailment_time_limit_s"] = 3600
        await plant.add(A, wearing(per_day=5))
        plant.apply()
        plant.setpoint(INVERTER_01=30, hold_s=3600)
        await plant.run(1)
        mended = 0
        for _ in range(6):
            plant.set_by_another(A, 77)
            await plant.run(305)
            mended += plant.limit(A) == 30
        assert (mended, writes(plant)) == (3, 4)

        # What is left is kept for the release.
        answer = plant.release(A)[A]
        await plant.run(2, answer.done)
        assert (answer.result().ok, plant.limit(A)) == (True, 100)


async def test_what_a_volatile_register_repeats_every_period_needs_no_budget(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        plant.site["cyclic_write_timeout_s"] = 10
        plant.site["curtailment_time_limit_s"] = 3600
        plant.apply()
        plant.setpoint(INVERTER_01=30, hold_s=3600)
        await plant.run(1001)
        assert 100 <= writes(plant) <= 102
        assert plant.cycle.alarms.standing == ()


# --- rule 21: changes under a hold -------------------------------------------------------------------


async def test_new_bounds_act_at_the_next_cycle_on_a_hold_and_say_where_they_come_from(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        plant.apply()
        await spend(plant, 80)
        plant.raw[A]["bounds"] = [{"origin": "grid operator", "maximum": 50.0}]
        plant.apply()

        assert await plant.run(2, lambda: plant.limit(A) == 50) < 1
        decision = plant.cycle.units[A].decision
        assert decision is not None
        assert (decision.wish, decision.bounded_by) == (80, "grid operator")

        plant.raw[A]["bounds"] = []
        plant.apply()
        assert await plant.run(2, lambda: plant.limit(A) == 80) < 1


async def test_changed_schedule_waits_under_a_hold_and_is_written_at_once_without_one(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        await plant.add(B)
        plant.apply()
        await spend(plant, 30)
        plant.schedules = {"inverter": Schedule({plant.clock.now().utc.date(): {"10:00": 70.0}})}
        plant.apply()
        await plant.run(1, lambda: plant.limit(B) == 70)
        await plant.run(50)
        assert plant.limit(A) == 30
        await plant.run(15, lambda: plant.limit(A) == 70)


async def test_limit_that_is_over_already_ends_a_hold_at_once(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        plant.apply()
        await spend(plant, 30)
        await plant.run(20)
        plant.site["curtailment_time_limit_s"] = 10
        plant.apply()
        assert await plant.run(2, lambda: plant.limit(A) == 100) < 1
        await plant.run(1, lambda: plant.logged("watchdog"))


async def test_configuration_applied_twice_writes_nothing_and_moves_no_end(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        plant.apply()
        await spend(plant, 30)
        ends = plant.cycle.units[A].state.hold
        await plant.run(20)
        for _ in range(3):
            plant.apply()
            await plant.run(1)
        assert (plant.cycle.units[A].state.hold, writes(plant)) == (ends, 1)
