"""What a command, an outcome, an end and a restart do to the devices of a node."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from edge.core.schedule import Schedule
from edge.drivers.base import PollResult
from edge.simulators.device import Fault
from edge.wire.messages import Code
from tests.runtime.plant import PROFILES, TurnedClock, profile, running_plant

A = "INVERTER_01"
B = "INVERTER_02"
LIMIT = "limit_target"


def today(slots: dict[str, float]) -> dict[str, Schedule]:
    return {"inverter": Schedule({datetime(2026, 3, 2, tzinfo=UTC).date(): slots})}


async def test_request_is_written_read_back_and_answered(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        plant.apply()
        await plant.run(1)

        answer = plant.setpoint(INVERTER_01=30)[A]
        await plant.run(1, answer.done)

        result = answer.result()
        assert (result.ok, result.value, result.readback) == (True, 30.0, 30.0)
        assert plant.limit(A) == 30


async def test_direct_request_outranks_schedule_and_its_lapse_reveals_the_slot_of_that_moment(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.site["curtailment_time_limit_s"] = 1200
        plant.schedules = today({"10:00": 80.0, "10:15": 50.0, "10:30": 50.0})
        plant.apply()
        await plant.run(2, lambda: plant.limit(A) == 80)
        plant.setpoint(INVERTER_01=20, hold_s=1000)
        await plant.run(2, lambda: plant.limit(A) == 20)
        writes = device.writes[LIMIT]

        # The slot 10:15 begins at 900 s, under the hold.
        await plant.run(990)
        assert plant.limit(A) == 20
        assert device.writes[LIMIT] - writes <= 1000 / 300  # the cyclic writer's, of the same value

        await plant.run(11, lambda: plant.limit(A) == 50)
        await plant.run(1, lambda: plant.logged("watchdog"))
        (entry,) = plant.logged("watchdog")
        assert (entry.value, entry.reason, entry.devices[A].readback) == (50.0, "time_limit", 50.0)


async def test_lapse_is_written_within_a_second_of_its_end_and_logged_with_the_value(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        await plant.add(B)
        plant.apply()
        plant.setpoint(INVERTER_01=30, INVERTER_02=40, hold_s=60)
        await plant.run(59.9)
        assert (plant.limit(A), plant.limit(B)) == (30, 40)

        assert await plant.run(1.1, lambda: plant.limit(A) == plant.limit(B) == 100) < 0.2
        await plant.run(1, lambda: plant.logged("watchdog"))
        (entry,) = plant.logged("watchdog")
        assert (entry.value, entry.request_id, entry.category) == (100.0, "request-1", "inverter")
        assert {tag: result.readback for tag, result in entry.devices.items()} == {A: 100.0, B: 100.0}


async def test_limit_counts_per_device_from_the_last_request_naming_it(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        await plant.add(B)
        plant.apply()
        plant.setpoint(INVERTER_01=30, INVERTER_02=30)
        await plant.run(40)

        renewal = plant.setpoint(INVERTER_01=30)[A]
        await plant.run(1, renewal.done)
        assert renewal.result().ok
        await plant.run(39)

        assert (plant.limit(A), plant.limit(B)) == (30, 100)
        await plant.run(22)
        assert plant.limit(A) == 100


async def test_jump_of_the_wall_clock_moves_no_end(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        plant.apply()
        plant.setpoint(INVERTER_01=30)
        await plant.run(30)

        plant.clock.jump_wall(-86400)
        await plant.run(29)
        assert plant.limit(A) == 30
        plant.clock.jump_wall(2 * 86400)
        await plant.run(1.5, lambda: plant.limit(A) == 100)


async def test_jump_of_the_wall_clock_is_followed_by_the_schedule_within_a_second(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        plant.schedules = today({"10:00": 80.0, "14:00": 50.0})
        plant.apply()
        await plant.run(1, lambda: plant.limit(A) == 80)

        plant.clock.jump_wall(4 * 3600)

        await plant.run(1.1, lambda: plant.limit(A) == 50)


async def test_restart_resumes_a_hold_with_the_time_that_is_left(tmp_path):
    clock = TurnedClock()
    async with running_plant(tmp_path, clock=clock) as plant:
        device = await plant.add(A)
        plant.apply()
        plant.setpoint(INVERTER_01=30)
        await plant.run(20)
        raw, profiles = plant.raw, plant.profiles
        plant.simulated.clear()
        writes = device.writes[LIMIT]
    clock.advance(10)
    async with running_plant(tmp_path, clock=clock) as plant:
        plant.simulated[A], plant.raw, plant.profiles = device, raw, profiles
        plant.apply()
        await plant.run(29)
        assert plant.limit(A) == 30
        assert device.writes[LIMIT] == writes  # read, found as it should be, not written
        assert not plant.logged("standing")

        await plant.run(2, lambda: plant.limit(A) == 100)
        await plant.run(1, lambda: plant.logged("watchdog"))
        assert plant.logged("watchdog")[0].reason == "time_limit"


async def test_hold_that_ended_while_the_process_was_down_falls_back_to_the_schedule_and_says_so(tmp_path):
    clock = TurnedClock()
    async with running_plant(tmp_path, clock=clock) as plant:
        device = await plant.add(A)
        plant.apply()
        plant.setpoint(INVERTER_01=30)
        await plant.run(20)
        raw, profiles = plant.raw, plant.profiles
        plant.simulated.clear()
    clock.advance(100)
    async with running_plant(tmp_path, clock=clock) as plant:
        plant.simulated[A], plant.raw, plant.profiles = device, raw, profiles
        plant.schedules = today({"10:00": 70.0})
        plant.apply()
        await plant.run(1, lambda: plant.logged("watchdog"))

        (entry,) = plant.logged("watchdog")
        assert (entry.value, entry.devices[A].readback, plant.limit(A)) == (70.0, 70.0, 70)


async def test_reboot_drops_a_hold_and_logs_it(tmp_path):
    clock = TurnedClock()
    async with running_plant(tmp_path, clock=clock) as plant:
        device = await plant.add(A)
        plant.apply()
        plant.setpoint(INVERTER_01=30)
        await plant.run(5)
        raw, profiles = plant.raw, plant.profiles
        plant.simulated.clear()
    clock = TurnedClock(boot_id="boot-2")
    device.clock = clock.boottime_s
    async with running_plant(tmp_path, clock=clock) as plant:
        plant.simulated[A], plant.raw, plant.profiles = device, raw, profiles
        plant.apply()
        await plant.run(1, lambda: plant.logged("watchdog"))

        (entry,) = plant.logged("watchdog")
        assert (entry.value, entry.reason, plant.limit(A)) == (100.0, "reboot", 100)


async def test_limit_of_somebody_else_is_logged_with_its_value_before_it_is_overwritten(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        device.registers.set(LIMIT, 42)
        device.take_limit()
        plant.apply()
        await plant.run(1, lambda: plant.limit(A) == 100)

        (entry,) = plant.logged("standing")
        assert (entry.value, entry.devices[A].value) == (42.0, 42.0)


async def test_nodes_own_value_found_again_after_a_lost_connection_is_nobody_elses(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        plant.setpoint(INVERTER_01=30)
        await plant.run(2)
        await device.set_fault(Fault.REFUSE)
        answer = plant.setpoint(INVERTER_01=50)[A]
        await plant.run(5, answer.done)
        await device.set_fault(Fault.NONE)

        await plant.run(1.5, lambda: plant.limit(A) == 50)
        assert not plant.logged("standing")


async def test_device_that_holds_the_resolved_value_is_not_written(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        await plant.run(30)

        assert device.writes[LIMIT] == 0


async def test_older_sequence_that_comes_later_is_superseded(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        plant.apply()
        plant.setpoint(INVERTER_01=30, sequence=7)

        late = plant.command(INVERTER_01=60, sequence=6)
        await plant.run(1)

        assert late.refused[A].code == Code.SUPERSEDED
        assert plant.limit(A) == 30


async def test_whoever_waits_is_told_when_a_newer_request_takes_the_device(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        plant.apply()
        await plant.run(1)

        first = plant.setpoint(INVERTER_01=30)[A]
        second = plant.setpoint(INVERTER_01=60)[A]
        await plant.run(1, second.done)

        assert first.result().code == Code.SUPERSEDED
        assert second.result().ok
        assert plant.limit(A) == 60


async def test_range_and_unknown_devices_are_refused_and_hold_up_no_other(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        await plant.add(B)
        plant.apply()

        accepted = plant.command(INVERTER_01=101, INVERTER_02=30, INVERTER_99=30)
        await plant.run(1, accepted.waiting[B].done)

        assert {tag: result.code for tag, result in accepted.refused.items()} == {
            A: Code.RANGE,
            "INVERTER_99": Code.UNKNOWN_DEVICE,
        }
        assert (plant.limit(A), plant.limit(B)) == (100, 30)


async def test_excluded_device_is_never_written(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A, excluded=True)
        device.registers.set(LIMIT, 42)
        device.take_limit()
        plant.schedules = today({"10:00": 80.0})
        plant.apply()

        accepted = plant.command(INVERTER_01=30)
        await plant.run(400)

        assert accepted.refused[A].code == Code.EXCLUDED
        assert device.writes[LIMIT] == 0
        assert plant.limit(A) == 42


async def test_device_excluded_while_it_is_written_is_left_alone_and_its_waiters_hear_of_it(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        await plant.run(1)
        await device.set_fault(Fault.REFUSE)
        held = plant.setpoint(INVERTER_01=30)[A]
        released = plant.release(A)[A]
        plant.raw[A]["excluded"] = True
        plant.apply()
        await device.set_fault(Fault.NONE)
        await plant.run(30)

        assert held.result().code == Code.SUPERSEDED
        assert released.result().code == Code.EXCLUDED
        assert device.writes[LIMIT] == 0


async def test_unreachable_device_answers_what_is_still_tried_and_until_when(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        await plant.run(1)
        await device.set_fault(Fault.REFUSE)

        answer = plant.setpoint(INVERTER_01=30)[A]
        took_s = await plant.run(5, answer.done)

        result = answer.result()
        assert took_s < 2.5
        assert result.code == Code.WRITE_FAILED
        assert result.reason.endswith("; still trying until 10:01:01Z, release to cancel")
        await device.set_fault(Fault.NONE)
        assert await plant.run(5, lambda: plant.limit(A) == 30) < 1.5


async def test_every_request_for_a_value_still_being_tried_is_answered(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        await plant.run(1)
        await device.set_fault(Fault.REFUSE)

        for _ in range(3):
            answer = plant.setpoint(INVERTER_01=30)[A]
            await plant.run(5, answer.done)
            assert answer.result().code == Code.WRITE_FAILED


async def test_release_of_an_unreachable_device_stays_owed_until_it_is_read_back(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        plant.setpoint(INVERTER_01=30)
        await plant.run(2)
        await device.set_fault(Fault.REFUSE)
        answer = plant.release(A)[A]
        await plant.run(5, answer.done)
        assert answer.result().reason.endswith("; still trying")
        await plant.run(120)

        await device.set_fault(Fault.NONE)
        assert await plant.run(5, lambda: plant.limit(A) == 100) < 1.5
        assert not plant.logged("watchdog")  # a release is no lapse


async def test_lapse_of_an_unreachable_device_stays_owed_and_is_logged_when_it_is_confirmed(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        plant.setpoint(INVERTER_01=30)
        await plant.run(50)
        await device.set_fault(Fault.REFUSE)
        await plant.run(100)
        (failed,) = plant.logged("watchdog")
        assert failed.devices[A].code == Code.WRITE_FAILED
        plant.apply()  # a configuration that changes nothing logs nothing again
        await plant.run(1)
        assert len(plant.logged("watchdog")) == 1

        await device.set_fault(Fault.NONE)
        assert await plant.run(5, lambda: plant.limit(A) == 100) < 1.5
        await plant.run(1, lambda: len(plant.logged("watchdog")) == 2)
        assert plant.logged("watchdog")[1].devices[A].ok


async def test_request_that_overtakes_a_fallback_does_not_pass_for_it_in_the_log(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        plant.setpoint(INVERTER_01=30, hold_s=5)
        await plant.run(4)
        await device.set_fault(Fault.IGNORE_WRITES)
        await plant.run(1.5)
        await device.set_fault(Fault.NONE)
        answer = plant.setpoint(INVERTER_01=50)[A]
        await plant.run(1, answer.done)

        (entry,) = plant.logged("watchdog")
        assert (entry.value, entry.devices[A].code) == (100.0, Code.SUPERSEDED)


async def test_hold_that_ends_before_its_device_confirms_it_is_not_reported_as_superseded(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        await plant.run(1)
        await device.set_fault(Fault.IGNORE_WRITES)
        answer = plant.setpoint(INVERTER_01=30, hold_s=0.5)[A]
        await plant.run(1, answer.done)

        assert answer.result().reason.startswith("write_failed: its hold ended")


async def test_device_that_ignores_writes_is_tried_three_times_and_then_said_to_mismatch(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        await plant.run(1)
        await device.set_fault(Fault.IGNORE_WRITES)
        commands = device.commands

        answer = plant.setpoint(INVERTER_01=30)[A]
        assert 1.9 < await plant.run(5, answer.done) < 2.5

        assert answer.result().code == Code.READBACK_MISMATCH
        assert "the device reads 100" in answer.result().detail
        assert device.commands - commands >= 6
        assert plant.logged("device_error")
        await device.set_fault(Fault.NONE)
        await plant.run(30, lambda: plant.limit(A) == 30)


async def test_device_that_refuses_writes_is_answered_at_once_and_tried_on(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        await plant.run(1)
        await device.set_fault(Fault.WRITE_EXCEPTION)

        answer = plant.setpoint(INVERTER_01=30)[A]
        assert await plant.run(5, answer.done) < 0.5

        assert "Modbus exception 4" in answer.result().reason
        await device.set_fault(Fault.NONE)
        await plant.run(30, lambda: plant.limit(A) == 30)


async def test_volatile_register_is_written_again_every_period_and_one_that_wears_is_not(tmp_path):
    limit = PROFILES["generic_modbus"].limit
    assert limit is not None
    wearing = profile(limit=msgspec.structs.replace(limit, write_class="persistent"))
    async with running_plant(tmp_path) as plant:
        volatile = await plant.add(A)
        persistent = await plant.add(B, wearing)
        plant.site["curtailment_time_limit_s"] = 3600
        plant.apply()
        plant.setpoint(INVERTER_01=30, INVERTER_02=30, hold_s=3600)
        await plant.run(1000)
        assert volatile.writes[LIMIT] == 1 + 3
        assert persistent.writes[LIMIT] == 1

        persistent.registers.set(LIMIT, 77)
        persistent.take_limit()
        await plant.run(301, lambda: plant.limit(B) == 30)
        assert persistent.writes[LIMIT] == 2


async def test_new_time_limit_may_shorten_a_running_hold_and_never_lengthens_it(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        await plant.add(B)
        plant.apply()
        plant.setpoint(INVERTER_01=30)
        await plant.run(5)
        plant.site["curtailment_time_limit_s"] = 600
        plant.apply()
        plant.setpoint(INVERTER_02=30, hold_s=600)
        await plant.run(54)
        assert plant.limit(A) == 30
        await plant.run(2)
        assert plant.limit(A) == 100

        plant.site["curtailment_time_limit_s"] = 58
        plant.apply()
        await plant.run(3, lambda: plant.limit(B) == 100)


async def test_changed_default_waits_under_a_hold_and_is_written_at_once_without_one(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        await plant.add(B)
        plant.apply()
        plant.setpoint(INVERTER_01=30)
        await plant.run(1)
        for tag in (A, B):
            plant.raw[tag]["default_value"] = 90.0
        plant.apply()
        await plant.run(1, lambda: plant.limit(B) == 90)
        assert plant.limit(A) == 30

        await plant.run(60, lambda: plant.limit(A) == 90)


async def test_device_that_becomes_unusable_goes_on_as_it_was_before(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        await plant.add(B)
        plant.apply()
        plant.setpoint(INVERTER_01=30, INVERTER_02=30)
        await plant.run(5)

        plant.raw[A]["profile"] = "nobody_knows_it"
        plant.apply()
        assert plant.fleet.plan is not None
        assert "nobody_knows_it" in plant.fleet.plan.refused[A]
        await plant.run(54)
        assert (plant.limit(A), plant.limit(B)) == (30, 30)
        await plant.run(2)
        assert (plant.limit(A), plant.limit(B)) == (100, 100)


async def test_device_that_leaves_answers_its_waiters_and_frees_the_log_of_the_others(tmp_path):
    async with running_plant(tmp_path) as plant:
        gone = await plant.add(A)
        await plant.add(B)
        plant.apply()
        plant.setpoint(INVERTER_01=30, INVERTER_02=30, hold_s=5)
        await plant.run(4)
        await gone.set_fault(Fault.IGNORE_WRITES)
        await plant.run(1.5)
        assert not plant.logged("watchdog")

        del plant.raw[A]
        plant.apply()

        (entry,) = plant.logged("watchdog")
        assert (entry.devices[A].code, entry.devices[B].ok) == (Code.WRITE_FAILED, True)


async def test_device_whose_line_is_built_anew_keeps_its_hold(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        plant.setpoint(INVERTER_01=30)
        await plant.run(5)
        writes = device.writes[LIMIT]

        plant.raw[A]["poll_s"] = 2.0
        plant.apply()
        await plant.run(54)
        assert (plant.limit(A), device.writes[LIMIT]) == (30, writes)
        await plant.run(2, lambda: plant.limit(A) == 100)
        assert len(device._sessions) == 1


async def test_command_costs_a_look_at_the_devices_it_names(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        port = plant.simulated[A].port
        for number in range(30):
            plant.configure(f"OTHER_{number}", profile(), port=port)
        plant.apply()
        await plant.clock.idle(2)
        before = {tag: unit.decision for tag, unit in plant.cycle.units.items()}

        plant.setpoint(INVERTER_01=30)

        decided_anew = [tag for tag, unit in plant.cycle.units.items() if unit.decision is not before[tag]]
        assert decided_anew == [A]


async def test_many_ends_in_a_row_do_not_put_off_the_next_full_turn(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        await plant.add(B)
        plant.apply()
        await plant.run(1)
        for number in range(10):
            plant.setpoint(INVERTER_01=30 + number, hold_s=0.05)
            await plant.run(0.1)
        plant.schedules = today({"14:00": 50.0})
        plant.cycle.set_schedules(plant.schedules)

        plant.clock.jump_wall(4 * 3600)
        await plant.run(1.2, lambda: plant.limit(B) == 50)


async def test_what_a_device_said_by_itself_is_as_old_as_it_is_however_often_it_is_looked_at(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        plant.apply()
        said_s = plant.clock.boottime_s()
        plant.clock.advance(7)
        unit = plant.cycle.units[A]

        for _ in range(2):
            plant.cycle.polled(A, PollResult({"P_kW": 5.0, "E_kWh": 1.0}, 100.0, {"P_kW": said_s}))
            now = plant.clock.now()
            assert unit.readings["P_kW"].at.boottime_s == said_s
            assert unit.readings["P_kW"].at.utc == now.utc - timedelta(seconds=now.boottime_s - said_s)
            assert unit.readings["E_kWh"].at == now
            plant.clock.advance(2)
