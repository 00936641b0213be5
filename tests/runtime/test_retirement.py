"""Rule 20: whoever leaves a node's control is first taken back to the default, if what it holds is the node's.

A device leaves by being removed, moved or renamed, by another address or profile (it goes on under its id
until nothing is owed to it), or in place, by being excluded or put behind another's control point.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from edge.core.schedule import Schedule
from edge.profiles.model import Profile
from edge.profiles.points import Protocol
from edge.simulators.device import Fault
from edge.simulators.modbus import SimulatedDevice
from edge.simulators.modbus_rtu import SimulatedLine
from edge.wire.messages import Code
from tests.runtime.plant import NAMEPLATE_KW, Plant, TurnedClock, profile, running_plant

A = "INVERTER_01"
B = "INVERTER_02"
LIMIT = "limit_target"


def today(slots: dict[str, float]) -> dict[str, Schedule]:
    return {"inverter": Schedule({datetime(2026, 3, 2, tzinfo=UTC).date(): slots})}


async def held(plant: Plant, tag: str = A, *, value: float = 30, kind: Profile | None = None):
    """A device under control, and held by a request."""
    device = await plant.add(tag, kind)
    plant.apply()
    answer = plant.hold({tag: value})[tag]
    await plant.run(2, answer.done)
    assert answer.result().ok
    return device


def remove(plant: Plant, tag: str = A) -> dict[str, Any]:
    raw = plant.raw.pop(tag)
    plant.apply()
    return raw


async def let_go(plant: Plant, within_s: float = 2) -> float:
    return await plant.run(within_s, lambda: not plant.fleet.retiring)


# --- what it holds when it leaves -------------------------------------------------------------------


async def test_held_device_that_is_removed_goes_back_to_its_default_at_once_and_is_logged_once(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await held(plant)
        remove(plant)
        assert list(plant.fleet.retiring) == [A]

        assert await let_go(plant) < 0.5
        await plant.run(30)

        assert (plant.limit(A), device.writes[LIMIT]) == (100, 2)
        (entry,) = plant.logged("retired")
        assert (entry.value, entry.reason, list(entry.devices)) == (100, "back at its default", [A])
        assert not plant.logged("watchdog")
        assert len(device._sessions) == 0
        assert not plant.store.devices()
        assert not plant.store.leaving()


async def test_held_device_whose_node_moves_to_another_site_goes_back_to_its_default_and_serves_there(
    tmp_path,
):
    async with running_plant(tmp_path) as plant:
        device = await held(plant)
        plant.site = {**plant.site, "id": "site-2"}
        plant.apply()
        await let_go(plant)
        assert (plant.limit(A), device.writes[LIMIT]) == (100, 2)
        assert len(plant.logged("retired")) == 1

        answer = plant.hold({A: 40})[A]
        await plant.run(2, answer.done)
        assert answer.result().ok


async def test_move_to_another_site_is_gone_on_with_after_a_restart(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await held(plant)
        await device.set_fault(Fault.IGNORE_WRITES)
        plant.site = {**plant.site, "id": "site-2"}
        plant.apply()
        await plant.run(3)
        assert list(plant.fleet.retiring) == [A]
        moved, site = plant.site, plant.outlive()
    async with running_plant(tmp_path, site=site) as plant:
        plant.site = moved
        plant.apply()
        assert list(plant.fleet.retiring) == [A]
        await device.set_fault(Fault.NONE)
        await let_go(plant, 30)
        assert plant.limit(A) == 100


async def test_scheduled_device_that_is_removed_goes_back_to_its_default(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.schedules = today({"10:00": 70.0})
        plant.apply()
        await plant.run(2, lambda: plant.limit(A) == 70)
        remove(plant)

        await let_go(plant)
        assert (plant.limit(A), device.writes[LIMIT]) == (100, 2)


async def test_device_at_its_default_is_left_without_a_write(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        await plant.run(5)
        remove(plant)

        await let_go(plant)
        assert device.writes[LIMIT] == 0
        assert plant.logged("retired")[0].reason == "back at its default"


async def test_device_that_was_never_reached_is_forgotten_at_once(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        await device.set_fault(Fault.REFUSE)
        plant.apply()
        plant.setpoint(INVERTER_01=30)
        await plant.run(5)
        remove(plant)

        await plant.run(1.1)
        assert plant.fleet.retiring == {}
        assert not plant.logged("retired")


async def test_value_that_somebody_else_has_set_since_is_left_alone(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await held(plant)
        plant.set_by_another(A, 42)
        remove(plant)

        await let_go(plant)
        await plant.run(30)
        assert (plant.limit(A), device.writes[LIMIT]) == (42, 1)
        (entry,) = plant.logged("retired")
        assert (entry.value, entry.reason) == (42, "holds a value this node did not set")


async def test_whoever_waits_for_a_device_that_leaves_hears_of_it(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        await plant.run(1)
        await device.set_fault(Fault.IGNORE_WRITES)
        answer = plant.setpoint(INVERTER_01=30)[A]
        remove(plant)

        assert answer.result().code == Code.WRITE_FAILED
        assert "configuration changed" in answer.result().detail


async def test_lapse_that_was_owed_when_its_device_left_is_paid_by_its_retirement(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await held(plant)
        await device.set_fault(Fault.REFUSE)
        await plant.run(70)
        (failed,) = plant.logged("watchdog")
        assert failed.devices[A].code == Code.WRITE_FAILED
        remove(plant)
        await plant.run(30)
        assert "out of reach" in plant.fleet.retiring[A]

        await device.set_fault(Fault.NONE)
        assert await let_go(plant, 5) < 1.6
        assert plant.limit(A) == 100
        assert (len(plant.logged("watchdog")), len(plant.logged("retired"))) == (1, 1)


# --- devices that make it hard ----------------------------------------------------------------------


async def test_device_out_of_reach_stays_listed_and_is_written_when_it_is_back(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await held(plant)
        await device.set_fault(Fault.REFUSE)
        remove(plant)
        await plant.run(400)
        assert plant.fleet.retiring == {A: f"{A}: out of reach at 127.0.0.1:{device.port}"}

        await device.set_fault(Fault.NONE)
        assert await let_go(plant, 5) < 1.6
        assert (plant.limit(A), device.writes[LIMIT]) == (100, 2)


async def test_device_that_ignores_the_write_stays_listed_until_it_obeys(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await held(plant)
        await device.set_fault(Fault.IGNORE_WRITES)
        remove(plant)
        await plant.run(20)
        assert plant.fleet.retiring == {A: f"{A}: not back at its default yet"}
        assert not plant.logged("retired")

        await device.set_fault(Fault.NONE)
        await let_go(plant, 60)
        assert plant.limit(A) == 100


async def test_device_whose_value_cannot_be_read_is_written_before_it_is_forgotten(tmp_path):
    blind = profile()
    assert blind.limit is not None
    blind = msgspec.structs.replace(blind, limit=msgspec.structs.replace(blind.limit, readback=None))
    clock = TurnedClock()
    async with running_plant(tmp_path, clock=clock) as plant:
        device = await plant.add(A, blind)
        plant.apply()
        await device.set_fault(Fault.SILENT)
        plant.setpoint(INVERTER_01=30)
        await plant.clock.idle(1)
        await device.set_fault(Fault.NONE)
        await plant.run(5, lambda: plant.limit(A) == 30)
        remove(plant)
        site = plant.outlive()
    async with running_plant(tmp_path, clock=clock, site=site) as plant:
        plant.apply()
        await let_go(plant, 5)
        assert plant.limit(A) == 100


async def test_register_that_wears_is_written_once_for_a_retirement(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await held(plant, kind=wearing())
        remove(plant)
        plant.apply()
        await let_go(plant)
        await plant.run(900)

        assert (plant.limit(A), device.writes[LIMIT]) == (100, 2)


def wearing() -> Profile:
    kind = profile()
    assert kind.limit is not None
    return msgspec.structs.replace(kind, limit=msgspec.structs.replace(kind.limit, write_class="persistent"))


# --- back again, and others in its place ------------------------------------------------------------


async def test_device_brought_back_while_it_leaves_goes_on_without_its_hold(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await held(plant)
        await device.set_fault(Fault.REFUSE)
        raw = remove(plant)
        await plant.run(10)
        plant.raw[A] = raw
        plant.apply()
        assert plant.fleet.retiring == {}
        await device.set_fault(Fault.NONE)

        await plant.run(5, lambda: plant.limit(A) == 100)
        answer = plant.setpoint(INVERTER_01=50)[A]
        await plant.run(2, answer.done)
        assert answer.result().ok
        assert not plant.logged("retired")


async def test_device_removed_twice_is_retired_once(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await held(plant)
        await device.set_fault(Fault.REFUSE)
        raw = remove(plant)
        plant.raw[A] = raw
        plant.apply()
        remove(plant)
        plant.apply()
        assert list(plant.fleet.retiring) == [A]

        await device.set_fault(Fault.NONE)
        await let_go(plant, 5)
        assert (plant.limit(A), len(plant.logged("retired"))) == (100, 1)


async def test_tag_may_be_anothers_at_once(tmp_path):
    async with running_plant(tmp_path) as plant:
        former = await held(plant)
        await former.set_fault(Fault.REFUSE)
        plant.simulated["former"] = plant.simulated.pop(A)
        await plant.add(A, id="another")
        plant.apply()
        answer = plant.setpoint(INVERTER_01=40)[A]
        await plant.run(2, answer.done)
        assert answer.result().ok
        assert plant.fleet.refused == {}
        assert list(plant.fleet.retiring) == [A]

        await former.set_fault(Fault.NONE)
        await let_go(plant, 5)
        assert (plant.limit("former"), plant.limit(A)) == (100, 40)


async def test_device_that_comes_back_to_its_tag_does_not_lose_the_one_that_had_it_meanwhile(tmp_path):
    async with running_plant(tmp_path) as plant:
        first = await held(plant)
        await first.set_fault(Fault.REFUSE)
        raw = plant.raw[A]
        plant.simulated["first"] = plant.simulated.pop(A)
        second = await plant.add(A, id="second")
        plant.apply()
        plant.setpoint(INVERTER_01=40)
        await plant.run(2, lambda: second.limit_in_force == 40)

        plant.raw[A] = raw
        plant.apply()
        assert list(plant.fleet.retiring) == ["second"]
        await first.set_fault(Fault.NONE)
        await plant.run(5, lambda: first.limit_in_force == second.limit_in_force == 100)
        assert plant.fleet.retiring == {}
        assert list(plant.cycle.units) == [A]


async def test_address_changed_there_and_back_leaves_nothing_behind_at_either(tmp_path):
    async with running_plant(tmp_path) as plant:
        here = await held(plant)
        home = plant.raw[A]
        plant.simulated["here"] = plant.simulated.pop(A)
        await here.set_fault(Fault.REFUSE)
        there = await plant.add(A, id=home["id"])
        plant.apply()
        plant.setpoint(INVERTER_01=60)
        await plant.run(2, lambda: there.limit_in_force == 60)

        plant.raw[A] = home
        plant.apply()
        await here.set_fault(Fault.NONE)
        await plant.run(5, lambda: here.limit_in_force == there.limit_in_force == 100)
        answer = plant.setpoint(INVERTER_01=20)[A]
        await plant.run(2, answer.done)
        assert (here.limit_in_force, there.limit_in_force) == (20, 100)
        assert plant.fleet.retiring == {}


async def test_older_request_is_superseded_at_the_former_address_after_the_way_there_and_back(tmp_path):
    async with running_plant(tmp_path) as plant:
        here = await held(plant)
        home = plant.raw[A]
        plant.simulated["here"] = plant.simulated.pop(A)
        await here.set_fault(Fault.REFUSE)
        await plant.add(A, id=home["id"])
        plant.apply()
        plant.setpoint(INVERTER_01=60, sequence=9)

        plant.raw[A] = home
        plant.apply()
        assert plant.command(INVERTER_01=70, sequence=5).refused[A].code == Code.SUPERSEDED


async def test_older_request_is_superseded_at_the_new_address_too(tmp_path):
    async with running_plant(tmp_path) as plant:
        await held(plant)
        home = plant.raw[A]
        plant.simulated["here"] = plant.simulated.pop(A)
        await plant.add(A, id=home["id"])
        plant.apply()
        assert plant.cycle.sequences == {A: 1}

        assert plant.command(INVERTER_01=60, sequence=1).refused[A].code == Code.SUPERSEDED


async def test_another_device_waits_for_a_control_point_and_begins_right_after(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await held(plant)
        await device.set_fault(Fault.REFUSE)
        raw = plant.raw.pop(A)
        plant.raw[B] = raw | {"id": "new", "tag": B}
        plant.simulated[B] = device
        plant.apply()
        reason = f"retiring: {A}, which had its control point, is not yet back at its default"
        assert plant.fleet.refused == {B: reason}
        assert plant.command(INVERTER_02=50).refused[B].reason == reason
        await plant.run(30)

        seen = []
        device.on_write = lambda: seen.append(device.limit_in_force)
        plant.schedules = today({"10:00": 80.0})
        plant.cycle.set_schedules(plant.schedules)
        await device.set_fault(Fault.NONE)
        await plant.run(5, lambda: plant.limit(B) == 80)
        assert seen == [100, 80]
        assert plant.fleet.refused == plant.fleet.retiring == {}
        answer = plant.setpoint(INVERTER_02=50)[B]
        await plant.run(2, answer.done)
        assert answer.result().ok


async def test_another_profile_at_the_same_control_point_waits_for_the_former_one(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await held(plant)
        other = profile("generic_modbus_wind")
        plant.profiles["other"] = other
        plant.raw[A] = plant.raw[A] | {"profile": "other"}
        plant.apply()
        assert A in plant.fleet.refused

        seen = []
        device.on_write = lambda: seen.append(device.limit_in_force)
        await plant.run(3, lambda: not plant.fleet.refused)
        assert seen == [100]
        assert list(plant.cycle.units) == [A]


async def test_what_was_spent_on_a_register_is_its_next_owners_too(tmp_path):
    async with running_plant(tmp_path) as plant:
        await held(plant, kind=wearing())
        plant.raw[B] = plant.raw.pop(A) | {"id": "new", "tag": B}
        plant.apply()
        await plant.run(3, lambda: B in plant.cycle.units)

        assert plant.cycle.units[B].state.spent_today == 2
        await plant.run(1)
        assert plant.store.devices()[B].ledger.registers[LIMIT].ever == 2


async def test_device_that_cannot_be_used_any_more_keeps_its_control_point(tmp_path):
    async with running_plant(tmp_path) as plant:
        await held(plant)
        raw = plant.raw[A]
        plant.raw[A] = raw | {"profile": "nobody_knows_it"}
        plant.raw[B] = raw | {"id": "new", "tag": B}
        plant.apply()
        assert plant.fleet.refused[B].startswith(f"owned_by: {A}, which cannot be used")
        assert "nobody_knows_it" in plant.fleet.refused[A]
        await plant.run(30)
        assert plant.limit(A) == 30

        del plant.raw[A]
        plant.apply()
        await plant.run(3, lambda: not plant.fleet.refused)
        assert plant.limit(A) == 100


# --- in place ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"excluded": True}, {"owned_by": "LOGGER"}, {"measured_only": True}])
async def test_held_device_taken_out_of_control_goes_back_to_its_default_and_is_measured_on(tmp_path, change):
    async with running_plant(tmp_path) as plant:
        device = await held(plant)
        plant.raw[A] |= change
        plant.apply()
        assert await plant.run(2, lambda: plant.limit(A) == 100) < 0.5
        plant.schedules = today({"10:00": 80.0})
        plant.apply()
        await plant.run(400)

        assert (plant.limit(A), device.writes[LIMIT]) == (100, 2)
        assert len(plant.logged("retired")) == 1
        assert plant.cycle.units[A].readings


async def test_device_included_again_while_it_is_retired_in_place_takes_requests_again(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await held(plant)
        await device.set_fault(Fault.REFUSE)
        plant.raw[A]["excluded"] = True
        plant.apply()
        await plant.run(10)
        plant.raw[A]["excluded"] = False
        plant.apply()
        plant.setpoint(INVERTER_01=50)
        await device.set_fault(Fault.NONE)

        await plant.run(5, lambda: plant.limit(A) == 50)
        assert not plant.logged("retired")


async def test_device_included_again_is_read_before_it_is_judged(tmp_path):
    async with running_plant(tmp_path) as plant:
        await held(plant)
        plant.raw[A] |= {"excluded": True, "poll_s": 600.0}
        plant.apply()
        await plant.run(5, lambda: plant.limit(A) == 100)
        await plant.run(10)
        plant.set_by_another(A, 42)
        plant.raw[A]["excluded"] = False
        plant.apply()

        await plant.run(2, lambda: plant.limit(A) == 100)


async def test_control_point_of_a_device_retired_in_place_is_taken_until_it_is_back(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await held(plant)
        await device.set_fault(Fault.REFUSE)
        raw = plant.raw[A]
        plant.raw[A] = raw | {"excluded": True}
        plant.raw[B] = raw | {"id": "new", "tag": B}
        plant.apply()
        assert plant.fleet.refused[B].startswith(f"retiring: {A}")
        await plant.run(10)

        seen = []
        device.on_write = lambda: seen.append(device.limit_in_force)
        await device.set_fault(Fault.NONE)
        await plant.run(5, lambda: not plant.fleet.refused)
        answer = plant.setpoint(INVERTER_02=50)[B]
        await plant.run(2, answer.done)
        assert seen == [100, 50]


# --- restarts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reboot", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
async def test_retirement_goes_on_after_a_restart_and_a_reboot(tmp_path, reboot, in_place):
    clock = TurnedClock()
    async with running_plant(tmp_path, clock=clock) as plant:
        device = await held(plant)
        await device.set_fault(Fault.REFUSE)
        if in_place:
            plant.raw[A]["excluded"] = True
            plant.apply()
        else:
            remove(plant)
        await plant.run(5)
        site = plant.outlive()
    clock = TurnedClock(boot_id="boot-2") if reboot else clock
    async with running_plant(tmp_path, clock=clock, site=site) as plant:
        plant.apply()
        await plant.run(5)
        assert list(plant.fleet.retiring) == ([] if in_place else [A])
        await device.set_fault(Fault.NONE)

        await plant.run(5, lambda: plant.logged("retired"))
        assert (plant.limit(A), device.writes[LIMIT]) == (100, 2)
        assert plant.fleet.retiring == {}
        assert not plant.logged("watchdog")


async def test_device_removed_while_no_process_runs_is_not_forgotten(tmp_path):
    clock = TurnedClock()
    async with running_plant(tmp_path, clock=clock) as plant:
        await held(plant)
        site = plant.outlive()
        raw = plant.raw
    async with running_plant(tmp_path, clock=clock, site=site) as plant:
        # It runs from its disk first, as it was, and hears of the removal when it connects.
        plant.raw = dict(raw)
        plant.apply()
        remove(plant)
        await let_go(plant)
        assert plant.limit(A) == 100


async def test_device_that_leaves_is_known_to_leave_before_anything_else_is_on_disk(tmp_path):
    clock = TurnedClock()
    async with running_plant(tmp_path, clock=clock) as plant:
        await held(plant)
        kept = plant.store.devices()[A]
        remove(plant)
        # Just what the removal itself has written, and no turn of the cycle after it.
        plant.store.keep([(f"leaving:{A}", kept)])
        site = plant.outlive()
    async with running_plant(tmp_path, clock=clock, site=site) as plant:
        plant.apply()
        assert list(plant.fleet.retiring) == [A]
        await let_go(plant)
        assert plant.limit(A) == 100


# --- abandoned --------------------------------------------------------------------------------------


async def test_abandoned_device_out_of_reach_is_forgotten_with_what_it_holds(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await held(plant)
        await device.set_fault(Fault.REFUSE)
        raw = plant.raw.pop(A)
        plant.raw[B] = raw | {"id": "new", "tag": B}
        plant.apply()
        await plant.run(30)
        plant.abandoned = [A]
        plant.apply()
        assert plant.fleet.retiring == plant.fleet.refused == {}
        assert not plant.store.leaving()
        await device.set_fault(Fault.NONE)
        await plant.run(5, lambda: device.limit_in_force == 100)  # the next owner's first write
        assert [entry.value for entry in plant.logged("standing")] == [30]


async def test_device_removed_and_abandoned_at_once_is_forgotten(tmp_path):
    async with running_plant(tmp_path) as plant:
        await held(plant)
        plant.abandoned = [A]
        remove(plant)
        assert plant.fleet.retiring == {}
        assert not plant.store.devices()
        assert not plant.store.leaving()
        await plant.run(5)
        assert plant.limit(A) == 30


async def test_abandoned_id_of_a_device_that_is_configured_changes_nothing(tmp_path):
    async with running_plant(tmp_path) as plant:
        await held(plant)
        plant.abandoned = [A, "nobody"]
        plant.apply()
        await plant.run(5)
        assert plant.limit(A) == 30


# --- others beside it -------------------------------------------------------------------------------


async def test_line_that_loses_a_member_keeps_session_gap_and_waiters_of_the_others(tmp_path):
    kind = profile(protocol=Protocol.MODBUS_RTU, also=(), min_gap_ms=20)
    async with running_plant(tmp_path) as plant:
        line = SimulatedLine(clock=plant.clock.boottime_s)
        tags = [A, B, "INVERTER_03"]
        for unit, tag in enumerate(tags, start=1):
            device = SimulatedDevice(
                profile=msgspec.structs.replace(kind, min_gap_ms=19),  # floating point
                unit=unit,
                nameplate_kw=NAMEPLATE_KW,
                on_line=True,
                clock=plant.clock.boottime_s,
            )
            line.add(device)
            plant.simulated[tag] = device
        await line.start(tcp=True)
        try:
            for unit, tag in enumerate(tags, start=1):
                plant.configure(tag, kind, port=line.port, unit=unit, nameplate_kw=None)
            plant.apply()
            plant.setpoint(INVERTER_01=30, INVERTER_02=40)
            await plant.run(3, lambda: (plant.limit(A), plant.limit(B)) == (30, 40))
            (client,) = line._clients

            answers = plant.setpoint(INVERTER_02=50, INVERTER_03=60)
            remove(plant)
            await plant.run(5, lambda: all(answer.done() for answer in answers.values()))
            await let_go(plant)

            assert [answer.result().reason for answer in answers.values() if not answer.result().ok] == []
            assert [plant.limit(tag) for tag in tags] == [100, 50, 60]
            assert line._clients == {client}
            assert not [gap for device in line.devices.values() for gap in device.gap_violations]
        finally:
            await line.stop()
            plant.simulated.clear()


async def test_whole_fleet_is_replaced_by_another(tmp_path):
    count = 500
    async with running_plant(tmp_path) as plant:
        former = [f"FORMER_{number:03}" for number in range(count)]
        for tag in former:
            await plant.add(tag, profile(timeout_ms=10_000), poll_s=900.0)
        plant.apply()
        plant.hold(dict.fromkeys(former, 30.0))
        await plant.run(5, lambda: all(plant.limit(tag) == 30 for tag in former))

        # The same control points, under other names.
        for tag in former:
            new = tag.replace("FORMER", "NEW")
            plant.raw[new] = plant.raw.pop(tag) | {"id": new, "tag": new}
        plant.apply()
        assert len(plant.fleet.retiring) == len(plant.fleet.refused) == count
        await plant.run(5, lambda: not plant.fleet.retiring)

        assert all(plant.limit(tag) == 100 for tag in former)
        assert len(plant.cycle.units) == len(plant.logged("retired")) == count
        assert plant.fleet.refused == {}
        assert not plant.cycle.leaving
        assert not plant.store.leaving()


async def test_devices_that_a_configuration_takes_away_together_are_forgotten_together(tmp_path):
    async with running_plant(tmp_path) as plant:
        for n in range(300):
            # Nobody is there: what was never written is retired in the very next turn.
            plant.configure(f"INVERTER_{n:03}", profile(), host=f"127.9.{n // 250}.{n % 250 + 1}", port=9)
        plant.apply()
        rebuilt: list[int] = []
        plant.fleet.changed = lambda: rebuilt.append(len(plant.cycle.leaving))
        plant.raw.clear()
        plant.apply()
        assert (plant.cycle.leaving, plant.fleet.retiring) == ({}, {})
        assert rebuilt == [0]
