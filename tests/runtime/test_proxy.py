"""Proxies: a setpoint that goes out to the devices behind it, and what they do as one."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from edge.core.schedule import Schedule
from edge.profiles.model import Profile
from edge.runtime import config
from edge.runtime.bus import RECONNECT_S
from edge.simulators.device import Fault
from edge.wire.messages import Code
from tests.runtime.plant import NAMEPLATE_KW, PROFILES, Plant, TurnedClock, profile, running_plant
from tests.runtime.test_keep_alive import failsafe

A, B, C = "INVERTER_01", "INVERTER_02", "INVERTER_03"
PARK, ROOF = "PARK_01", "ROOF_01"
LIMIT = "limit_target"


def proxy(plant: Plant, tag: str = PARK, **changes: Any) -> None:
    plant.configure(tag, PROFILES["proxy_device"], **{"category": "park", "nameplate_kw": None, **changes})


async def park(plant: Plant, *tags: str, kind: Profile | None = None, **changes: Any) -> None:
    """A proxy over devices, under control."""
    proxy(plant, **changes)
    for tag in tags or (A, B):
        await plant.add(tag, kind, owned_by=PARK)
    plant.apply()
    await plant.run(3)


async def held(plant: Plant, value: float, *, tag: str = PARK, hold_s: float = 60.0) -> Any:
    answer = plant.setpoint(hold_s=hold_s, sequence=None, **{tag: value})[tag]
    await plant.run(8, answer.done)
    return answer.result()


def limits(plant: Plant, *tags: str) -> list[float]:
    return [plant.limit(tag) for tag in tags or (A, B)]


def wearing(writes_per_day: int) -> Profile:
    limit = profile().limit
    assert limit is not None
    return profile(
        limit=msgspec.structs.replace(limit, write_class="persistent", writes_per_day=writes_per_day)
    )


# --- a request --------------------------------------------------------------------------------------


async def test_setpoint_of_a_proxy_goes_to_all_its_children_and_is_confirmed_once_they_are(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        result = await held(plant, 40)
        assert limits(plant) == [40, 40]
        assert (result.ok, result.value, result.readback) == (True, 40, 40)
        assert plant.cycle.values == {PARK: 40, A: 40, B: 40}


async def test_request_that_names_a_child_is_told_whose_it_is(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        refused = plant.command(INVERTER_01=30.0).refused[A]
        assert refused.reason == f"owned_by: {PARK} controls this device"
        assert limits(plant) == [100, 100]


async def test_child_takes_what_its_own_bounds_let_it(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        plant.raw[A]["min_value"] = 60.0
        plant.raw[B]["bounds"] = [{"origin": "grid_operator", "maximum": 30.0}]
        plant.apply()
        result = await held(plant, 40)
        assert limits(plant) == [60, 30]
        assert (result.ok, result.readback) == (True, 45)


async def test_proxys_own_bounds_hold_for_its_children(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant, bounds=[{"origin": "grid_operator", "maximum": 70.0}])
        assert limits(plant) == [70, 70]
        assert plant.command(PARK_01=30.0, hold_s=60).waiting
        await plant.run(1)
        assert limits(plant) == [30, 30]


async def test_same_value_again_renews_the_hold_and_asks_the_children_rather_than_believing(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40)
        plant.set_by_another(A, 90)
        await plant.run(20)
        result = await held(plant, 40)
        assert result.ok
        assert limits(plant) == [40, 40]
        assert plant.simulated[B].writes[LIMIT] == 1
        await plant.run(50)
        assert limits(plant) == [40, 40]


async def test_older_request_for_a_proxy_is_superseded(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        plant.setpoint(sequence=9, PARK_01=40.0)
        assert plant.command(sequence=8, PARK_01=20.0).refused[PARK].code == Code.SUPERSEDED
        await plant.run(1)
        assert limits(plant) == [40, 40]


async def test_release_of_a_proxy_releases_its_children(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40)
        released = plant.release(PARK)[PARK]
        await plant.run(2, released.done)
        assert released.result().ok
        assert limits(plant) == [100, 100]


async def test_lapse_of_a_proxys_hold_takes_its_children_back_within_a_second_and_is_logged_once(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40, hold_s=30)
        until_lapse = await plant.run(40, lambda: limits(plant) == [100, 100])
        assert 29 < until_lapse < 31
        await plant.run(5)
        (entry,) = plant.logged("watchdog")
        assert (entry.value, list(entry.devices), entry.devices[PARK].ok) == (100, [PARK], True)


async def test_schedule_and_default_of_a_child_are_its_proxys(tmp_path):
    async with running_plant(tmp_path) as plant:
        day = datetime(2026, 3, 2, tzinfo=UTC).date()
        plant.schedules = {
            "park": Schedule({day: {"10:00": 70.0, "10:15": 50.0}}),
            "inverter": Schedule({day: {"10:00": 20.0}}),
        }
        await park(plant)
        assert limits(plant) == [70, 70]
        await plant.run(900)
        assert limits(plant) == [50, 50]
        await plant.run(901)
        assert limits(plant) == [100, 100]


async def test_moment_of_a_proxys_lapse_is_reserved_on_its_childrens_lines(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40)
        hold = plant.cycle.units[PARK].state.hold
        assert hold is not None
        member = plant.cycle.units[A].bus._members[A]  # type: ignore[attr-defined]
        assert member.reserved_at == hold.ends_boottime_s


# --- what goes wrong --------------------------------------------------------------------------------


async def test_child_out_of_reach_is_named_and_follows_once_it_is_back(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await plant.simulated[B].set_fault(Fault.REFUSE)
        result = await held(plant, 40)
        assert result.code == Code.WRITE_FAILED
        assert result.detail.startswith(f"{B}: no connection to 127.0.0.1")
        assert result.detail.endswith("Z, release to cancel")
        assert plant.limit(A) == 40
        assert PARK not in plant.cycle.values
        await plant.simulated[B].set_fault(Fault.NONE)
        await plant.run(RECONNECT_S + 1, lambda: PARK in plant.cycle.values)
        assert limits(plant) == [40, 40]


async def test_lapse_is_owed_to_a_child_out_of_reach_until_it_is_back_there(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40, hold_s=10)
        await plant.simulated[B].set_fault(Fault.REFUSE)
        await plant.run(30)
        assert plant.limit(A) == 100
        (failed,) = plant.logged("watchdog")
        assert failed.devices[PARK].detail.startswith(B)
        await plant.simulated[B].set_fault(Fault.NONE)
        await plant.run(5)
        assert limits(plant) == [100, 100]
        assert [entry.devices[PARK].ok for entry in plant.logged("watchdog")] == [False, True]


async def test_child_that_does_as_it_likes_is_told_as_the_proxys_mismatch_after_three_tries(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await plant.simulated[B].set_fault(Fault.IGNORE_WRITES)
        result = await held(plant, 40)
        assert result.code == Code.READBACK_MISMATCH
        assert f"{B}: wrote 40, the device reads 100" in result.detail
        assert plant.limit(A) == 40


async def test_who_asks_again_for_what_a_child_still_refuses_is_told_again(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await plant.simulated[B].set_fault(Fault.WRITE_EXCEPTION)
        assert (await held(plant, 40)).code == Code.WRITE_FAILED
        again = await held(plant, 40)
        assert again.code == Code.WRITE_FAILED
        assert again.detail.startswith(B)


async def test_newer_request_takes_the_place_of_one_a_child_has_not_confirmed(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await plant.simulated[B].set_fault(Fault.SILENT)
        first = plant.setpoint(PARK_01=40.0)[PARK]
        second = plant.setpoint(PARK_01=60.0)[PARK]
        await plant.run(5, second.done)
        assert first.result().code == Code.SUPERSEDED
        await plant.simulated[B].set_fault(Fault.NONE)
        await plant.run(5)
        assert limits(plant) == [60, 60]
        assert not [write for write in plant.logged("device_error") if PARK in write.devices][1:]


async def test_child_is_read_before_it_is_written_and_what_stands_there_is_logged_once(tmp_path):
    async with running_plant(tmp_path) as plant:
        proxy(plant)
        await plant.add(A, owned_by=PARK)
        await plant.add(B, owned_by=PARK)
        plant.set_by_another(A, 70)
        plant.apply()
        await plant.run(3)
        (entry,) = plant.logged("standing")
        assert (entry.value, list(entry.devices)) == (70, [A])
        assert limits(plant) == [100, 100]
        assert plant.simulated[B].writes[LIMIT] == 0


# --- wear and the children's own means ---------------------------------------------------------------


async def test_hold_is_refused_where_one_childs_budget_does_not_cover_it_and_names_that_child(tmp_path):
    async with running_plant(tmp_path) as plant:
        proxy(plant)
        await plant.add(A, owned_by=PARK)
        device = await plant.add(B, wearing(3), owned_by=PARK)
        plant.apply()
        await plant.run(3)
        for value in (30.0, 40.0):
            assert (await held(plant, value)).ok
        refused = plant.command(PARK_01=50.0).refused[PARK]
        assert refused.code == Code.WEAR
        assert refused.detail.startswith(f"{B}: 2 of 3 writes of today are spent")
        assert plant.cycle.units[PARK].state.hold is not None
        assert (await held(plant, 40)).ok
        await plant.run(61, lambda: limits(plant) == [100, 100])
        assert device.writes[LIMIT] == 3


async def test_ramp_of_a_proxy_costs_a_register_that_wears_one_write(tmp_path):
    async with running_plant(tmp_path) as plant:
        proxy(plant, ramp_pct_per_min=600.0)
        await plant.add(A, owned_by=PARK)
        device = await plant.add(B, wearing(20), owned_by=PARK)
        plant.apply()
        await plant.run(3)
        plant.setpoint(PARK_01=40.0)
        await plant.run(0.5)
        assert limits(plant) == [90, 40]
        await plant.run(8)
        assert limits(plant) == [40, 40]
        assert device.writes[LIMIT] == 1


async def test_childs_own_fallback_takes_its_own_default_when_nobody_is_there_any_more(tmp_path):
    async with running_plant(tmp_path) as plant:
        proxy(plant, default_value=50.0)
        await plant.add(A, failsafe(), owned_by=PARK, default_value=70.0)
        plant.apply()
        await held(plant, 30, hold_s=3600)
        await plant.run(50)
        assert plant.limit(A) == 30
        clock, site = plant.clock, plant.outlive()
    clock.advance(31)
    assert site.simulated[A].limit_in_force == 70
    await site.simulated[A].stop()


async def test_child_that_drifts_is_written_again_by_its_own_cyclic_writer(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40, hold_s=3600)
        plant.site = {**plant.site, "curtailment_time_limit_s": 3600.0, "cyclic_write_timeout_s": 10.0}
        plant.apply()
        await held(plant, 40, hold_s=3600)
        plant.set_by_another(A, 90)
        await plant.run(12)
        assert limits(plant) == [40, 40]


async def test_new_limit_and_new_bounds_act_on_a_proxys_running_hold(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40)
        plant.raw[A]["bounds"] = [{"origin": "grid_operator", "maximum": 20.0}]
        plant.site = {**plant.site, "curtailment_time_limit_s": 20.0}
        plant.apply()
        await plant.run(1)
        assert limits(plant) == [20, 40]
        assert 17 < await plant.run(21, lambda: plant.limit(B) == 100) < 20
        assert limits(plant) == [20, 100]


# --- excluded, joining, leaving ---------------------------------------------------------------------


async def test_excluded_child_is_passed_over_and_named(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        plant.raw[B]["excluded"] = True
        plant.apply()
        await plant.run(3)
        result = await held(plant, 40)
        assert limits(plant) == [40, 100]
        assert (result.ok, result.detail) == (True, f"without {B} (excluded)")


async def test_child_that_is_excluded_under_a_hold_goes_back_to_its_default_and_is_left_alone(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40)
        plant.raw[B]["excluded"] = True
        plant.apply()
        await plant.run(3)
        assert limits(plant) == [40, 100]
        (entry,) = plant.logged("retired")
        assert list(entry.devices) == [B]
        plant.raw[B]["excluded"] = False
        plant.apply()
        await plant.run(3)
        assert limits(plant) == [40, 40]


async def test_proxy_whose_children_are_all_excluded_takes_no_hold_but_is_released(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40)
        plant.raw[A]["excluded"] = plant.raw[B]["excluded"] = True
        plant.apply()
        await plant.run(3)
        refused = plant.command(PARK_01=30.0).refused[PARK]
        assert refused.code == Code.EXCLUDED
        assert refused.detail == f"no device takes its value; without {A} (excluded), {B} (excluded)"
        released = plant.release(PARK)[PARK]
        await plant.run(1, released.done)
        assert released.result().ok
        await plant.run(70)
        assert plant.cycle.units[PARK].state.lapse is None


async def test_excluded_proxy_lets_go_of_its_children(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40)
        plant.raw[PARK]["excluded"] = True
        plant.apply()
        await plant.run(3)
        assert limits(plant) == [100, 100]
        assert plant.command(PARK_01=30.0).refused[PARK].code == Code.EXCLUDED
        assert plant.command(INVERTER_01=30.0).refused[A].code == Code.OWNED_BY
        plant.raw[PARK]["excluded"] = False
        plant.apply()
        assert (await held(plant, 50)).ok
        assert limits(plant) == [50, 50]


async def test_device_that_joins_a_held_proxy_loses_its_own_hold_and_follows(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await plant.add(C)
        plant.apply()
        await held(plant, 40)
        assert (await held(plant, 80, tag=C)).ok
        writes = plant.simulated[C].writes[LIMIT]
        plant.raw[C]["owned_by"] = PARK
        plant.apply()
        await plant.run(1)
        assert limits(plant, A, B, C) == [40, 40, 40]
        assert plant.simulated[C].writes[LIMIT] == writes + 1
        await plant.run(60)
        assert limits(plant, A, B, C) == [100, 100, 100]
        (entry,) = plant.logged("watchdog")
        assert list(entry.devices) == [PARK]


async def test_waiting_request_of_a_device_that_joins_a_proxy_is_told_so(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        device = await plant.add(C)
        plant.apply()
        await plant.run(3)
        await device.set_fault(Fault.SILENT)
        answer = plant.setpoint(INVERTER_03=30.0)[C]
        plant.raw[C]["owned_by"] = PARK
        plant.apply()
        assert answer.result().reason == f"owned_by: {PARK} controls this device from now on"


async def test_device_that_leaves_its_proxy_goes_to_its_own_default_and_takes_requests(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40)
        plant.raw[B]["owned_by"] = None
        plant.apply()
        await plant.run(1)
        assert limits(plant) == [40, 100]
        assert (await held(plant, 70, tag=B)).ok
        assert limits(plant) == [40, 70]


async def test_child_that_is_removed_is_taken_back_to_its_default_and_its_proxy_goes_on(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40)
        plant.raw.pop(B)
        plant.apply()
        await plant.run(2, lambda: not plant.fleet.retiring)
        assert limits(plant) == [40, 100]
        assert (await held(plant, 30)).ok


async def test_proxy_that_is_removed_with_its_children_leaves_nothing_behind(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40)
        plant.raw.clear()
        plant.apply()
        await plant.run(2, lambda: not plant.fleet.retiring)
        assert limits(plant) == [100, 100]
        assert not plant.store.devices()
        assert not plant.store.leaving()


async def test_children_of_a_proxy_that_is_removed_are_not_written_any_more(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40)
        plant.raw.pop(PARK)
        plant.apply()
        await plant.run(3)
        assert limits(plant) == [100, 100]
        assert not plant.fleet.retiring
        plant.set_by_another(A, 70)
        await plant.run(400)
        assert limits(plant) == [70, 100]
        assert plant.command(INVERTER_01=30.0).refused[A].code == Code.OWNED_BY


async def test_new_proxy_of_the_same_tag_takes_over_and_counts_on(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        plant.setpoint(sequence=7, PARK_01=40.0)
        await plant.run(2)
        plant.raw[PARK]["id"] = "another"
        plant.apply()
        await plant.run(2)
        assert limits(plant) == [100, 100]
        assert plant.command(sequence=7, PARK_01=20.0).refused[PARK].code == Code.SUPERSEDED
        assert (await held(plant, 30)).ok


async def test_proxy_that_cannot_be_used_as_it_is_now_goes_on_over_its_children(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40)
        plant.raw[PARK]["min_value"] = 200.0
        plant.apply()
        assert list(plant.fleet.refused) == [PARK]
        await plant.run(3)
        assert limits(plant) == [40, 40]
        await plant.run(60)
        assert limits(plant) == [100, 100]


async def test_device_behind_a_logger_that_is_no_proxy_is_never_written(tmp_path):
    async with running_plant(tmp_path) as plant:
        await plant.add(A)
        await plant.add(B, owned_by=A)
        plant.apply()
        await held(plant, 40, tag=A)
        assert limits(plant) == [40, 100]
        assert plant.simulated[B].writes[LIMIT] == 0


# --- chains -----------------------------------------------------------------------------------------


async def chain(plant: Plant, *, poll_s: float = 1.0) -> None:
    """PARK over A and ROOF, ROOF over B and C."""
    proxy(plant)
    proxy(plant, ROOF, owned_by=PARK, max_value=80.0, default_value=80.0)
    await plant.add(A, owned_by=PARK, poll_s=poll_s)
    await plant.add(B, owned_by=ROOF, poll_s=poll_s)
    await plant.add(C, owned_by=ROOF, poll_s=poll_s)
    plant.apply()
    await plant.run(3)


async def test_proxies_chain_and_each_keeps_its_bounds(tmp_path):
    async with running_plant(tmp_path) as plant:
        await chain(plant)
        assert limits(plant, A, B, C) == [100, 80, 80]
        result = await held(plant, 40)
        assert result.ok
        assert limits(plant, A, B, C) == [40, 40, 40]
        assert plant.command(ROOF_01=30.0).refused[ROOF].reason == f"owned_by: {PARK} controls this device"
        await plant.run(62)
        assert limits(plant, A, B, C) == [100, 80, 80]


async def test_what_fails_at_the_end_of_a_chain_is_named_by_its_whole_way(tmp_path):
    async with running_plant(tmp_path) as plant:
        await chain(plant)
        await plant.simulated[C].set_fault(Fault.REFUSE)
        result = await held(plant, 40)
        assert result.detail.startswith(f"{ROOF}: {C}: no connection")
        again = await held(plant, 40)
        assert again.detail.startswith(f"{ROOF}: {C}: no connection")
        await plant.simulated[C].set_fault(Fault.NONE)
        await plant.run(5, lambda: plant.cycle.values.get(PARK) == 40)
        assert limits(plant, A, B, C) == [40, 40, 40]


async def test_budget_at_the_end_of_a_chain_refuses_the_hold(tmp_path):
    async with running_plant(tmp_path) as plant:
        proxy(plant)
        proxy(plant, ROOF, owned_by=PARK)
        await plant.add(A, wearing(3), owned_by=ROOF)
        plant.apply()
        await plant.run(3)
        assert (await held(plant, 30)).ok
        assert (await held(plant, 40)).ok
        assert plant.command(PARK_01=50.0).refused[PARK].detail.startswith(f"{A}: 2 of 3")


async def test_proxies_that_are_among_their_own_children_are_refused_alone(tmp_path):
    async with running_plant(tmp_path) as plant:
        proxy(plant, owned_by=ROOF)
        proxy(plant, ROOF, owned_by=PARK)
        await plant.add(A, owned_by=ROOF)
        await plant.add(B)
        plant.apply()
        assert plant.fleet.refused == {
            PARK: f"it is among its own children: {PARK} < {ROOF} < {PARK}",
            ROOF: f"it is among its own children: {ROOF} < {PARK} < {ROOF}",
        }
        assert (await held(plant, 40, tag=B)).ok
        assert plant.command(INVERTER_01=30.0).refused[A].code == Code.OWNED_BY
        assert limits(plant) == [100, 40]


async def test_proxies_that_close_a_ring_under_a_hold_go_on_as_they_were(tmp_path):
    async with running_plant(tmp_path) as plant:
        await chain(plant)
        await held(plant, 40)
        plant.raw[PARK]["owned_by"] = ROOF
        plant.apply()
        assert sorted(plant.fleet.refused) == [PARK, ROOF]
        await plant.run(3)
        assert limits(plant, A, B, C) == [40, 40, 40]
        await plant.run(60)
        assert limits(plant, A, B, C) == [100, 80, 80]


async def test_child_whose_value_means_something_else_is_refused_alone(tmp_path):
    async with running_plant(tmp_path) as plant:
        proxy(plant)
        plant.configure(A, profile(value_kind="operating_mode"), port=502, owned_by=PARK)
        plant.configure(B, profile(value_kind="power_cap_pct"), port=503, owned_by=PARK)
        plan = config.plan(plant.body)
    assert plan.refused == {A: f"its operating_mode cannot follow the active_power_limit_pct of {PARK}"}
    assert plan.devices[B].settings.proxy == PARK


async def test_register_of_a_proxys_child_has_no_second_owner(tmp_path):
    async with running_plant(tmp_path) as plant:
        proxy(plant)
        plant.configure(A, profile(), port=502, owned_by=PARK)
        plant.configure(B, profile(), port=502)
        plan = config.plan(plant.body)
    assert plan.refused == {B: f"its control point is that of {A}"}


# --- what they do as one ----------------------------------------------------------------------------


async def test_readings_of_a_proxy_are_its_childrens_together(tmp_path):
    async with running_plant(tmp_path) as plant:
        proxy(plant)
        battery = msgspec.structs.replace(PROFILES["generic_modbus_battery"], timeout_ms=100)
        await plant.add(A, owned_by=PARK)
        first = await plant.add(B, battery, owned_by=PARK)
        second = await plant.add(C, battery, owned_by=PARK, nameplate_kw=NAMEPLATE_KW / 3)
        first.machine.charge_pct, second.machine.charge_pct = 80.0, 40.0
        plant.apply()
        await plant.run(5)
        units = plant.cycle.units
        told = {key: reading.value for key, reading in units[PARK].readings.items()}
        powers = [units[tag].readings["P_kW"].value or 0.0 for tag in (A, B, C)]
        assert told["P_kW"] == pytest.approx(sum(powers))
        assert told["SoC_pct"] == pytest.approx((80 * 3 + 40) / 4, abs=0.1)
        assert told["Q_kvar"] is None
        oldest = min(units[tag].readings["P_kW"].at.boottime_s for tag in (A, B, C))
        assert units[PARK].readings["P_kW"].at.boottime_s == oldest


async def test_sum_with_a_child_missing_is_no_sum(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        assert plant.cycle.units[PARK].readings["P_kW"].value == pytest.approx(2 * NAMEPLATE_KW)
        await plant.simulated[B].set_fault(Fault.REFUSE)
        await plant.run(5)
        assert plant.cycle.units[PARK].readings["P_kW"].value is None
        assert plant.cycle.units[PARK].reachable
        await plant.simulated[A].set_fault(Fault.REFUSE)
        await plant.run(5)
        assert plant.cycle.units[PARK].reachable is False


async def test_excluded_child_still_counts_in_the_sum(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        plant.raw[B]["excluded"] = True
        plant.apply()
        await plant.run(3)
        assert plant.cycle.units[PARK].readings["P_kW"].value == pytest.approx(2 * NAMEPLATE_KW)


# --- the process ends -------------------------------------------------------------------------------


async def test_hold_of_a_proxy_goes_on_after_a_restart_without_a_write(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40)
        site = plant.outlive()
    async with running_plant(tmp_path, site=site) as plant:
        plant.apply()
        await plant.run(20)
        assert limits(plant) == [40, 40]
        assert plant.simulated[A].writes[LIMIT] == 1
        await plant.run(45, lambda: limits(plant) == [100, 100])
        await plant.run(2)
        (entry,) = plant.logged("watchdog")
        assert list(entry.devices) == [PARK]


async def test_process_that_ends_amid_the_fan_out_finishes_it_when_it_is_back(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await plant.simulated[B].set_fault(Fault.SILENT)
        plant.setpoint(PARK_01=40.0)
        await plant.run(1, lambda: plant.limit(A) == 40)
        assert plant.limit(B) == 100
        site = plant.outlive()
    await site.simulated[B].set_fault(Fault.NONE)
    async with running_plant(tmp_path, site=site) as plant:
        plant.apply()
        await plant.run(3, lambda: limits(plant) == [40, 40])
        assert plant.simulated[A].writes[LIMIT] == 1
        await plant.run(66)
        assert limits(plant) == [100, 100]


async def test_reboot_drops_the_hold_of_a_proxy_and_logs_it(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40)
        site = plant.outlive()
    async with running_plant(tmp_path, site=site, clock=TurnedClock(boot_id="boot-2")) as plant:
        plant.apply()
        await plant.run(3)
        assert limits(plant) == [100, 100]
        (entry,) = plant.logged("watchdog")
        assert (entry.reason, list(entry.devices)) == ("reboot", [PARK])


async def test_device_that_joins_while_nobody_runs_leaves_its_hold_behind(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant, A)
        await plant.add(C)
        plant.apply()
        assert (await held(plant, 80, tag=C)).ok
        site = plant.outlive()
    site.raw[C]["owned_by"] = PARK
    async with running_plant(tmp_path, site=site) as plant:
        plant.apply()
        await plant.run(3)
        assert limits(plant, A, C) == [100, 100]
        assert not plant.logged("watchdog")


async def test_child_that_is_excluded_while_nobody_runs_is_taken_back(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40)
        site = plant.outlive()
    site.raw[B]["excluded"] = True
    async with running_plant(tmp_path, site=site) as plant:
        plant.apply()
        await plant.run(3)
        assert limits(plant) == [40, 100]


async def test_reason_of_a_child_leads_to_its_proxy(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        await held(plant, 40)
        decision = plant.cycle.units[A].decision
        assert decision is not None
        assert (decision.through, decision.request_id) == (PARK, "request-1")


async def test_acceptance_that_the_disk_did_not_take_writes_nothing_to_any_child(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant)
        accepted = plant.command(PARK_01=40.0)
        plant.cycle.take_back(accepted)
        await plant.run(5)
        assert limits(plant) == [100, 100]
        assert not any(device.writes for device in plant.simulated.values())


async def test_device_that_waits_for_its_control_point_is_named_and_follows_once_it_has_it(tmp_path):
    async with running_plant(tmp_path) as plant:
        await park(plant, A)
        await plant.add(B)
        plant.apply()
        await held(plant, 30, tag=B)
        await plant.simulated[B].set_fault(Fault.IGNORE_WRITES)
        successor = plant.raw.pop(B)
        plant.raw[C] = {**successor, "id": C, "tag": C, "owned_by": PARK}
        plant.apply()
        await plant.run(2)
        result = await held(plant, 40)
        assert (result.ok, result.detail) == (True, f"without {C} (retiring)")
        await plant.simulated[B].set_fault(Fault.NONE)
        await plant.run(320, lambda: not plant.fleet.waiting)
        assert (await held(plant, 50)).ok
        assert limits(plant) == [50, 50]


# --- whatever happens -------------------------------------------------------------------------------


class Life:
    """Operators, devices and processes that do as they like with a chain of proxies."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    async def happens(self, plant: Plant) -> None:
        chosen = self.random.choice(
            (
                self.asks,
                self.asks,
                self.asks,
                self.releases,
                self.breaks,
                self.mends,
                self.excludes,
                self.moves,
            )
        )
        await chosen(plant)
        await plant.run(self.random.choice((0.0, 0.05, 1.0, 20.0, 70.0)))

    async def asks(self, plant: Plant) -> None:
        plant.setpoint(PARK_01=float(self.random.randrange(0, 101, 10)))

    async def releases(self, plant: Plant) -> None:
        plant.release(PARK)

    async def breaks(self, plant: Plant) -> None:
        faults = (Fault.REFUSE, Fault.WRITE_EXCEPTION, Fault.IGNORE_WRITES)
        await plant.simulated[self.random.choice((A, B, C))].set_fault(self.random.choice(faults))

    async def mends(self, plant: Plant) -> None:
        for device in plant.simulated.values():
            await device.set_fault(Fault.NONE)

    async def excludes(self, plant: Plant) -> None:
        raw = plant.raw[self.random.choice((A, B, C, ROOF))]
        raw["excluded"] = not raw.get("excluded", False)
        plant.apply()

    async def moves(self, plant: Plant) -> None:
        plant.raw[self.random.choice((A, B, C))]["owned_by"] = self.random.choice((PARK, ROOF))
        plant.apply()


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_happens_children_end_where_their_proxy_stands_and_then_at_its_default(tmp_path, seed):
    life, clock = Life(seed), TurnedClock()
    async with running_plant(tmp_path, clock=clock) as plant:
        await chain(plant, poll_s=20.0)
        for _ in range(12):
            await life.happens(plant)
        site = plant.outlive()
    # The process ends in the middle of it, and another one goes on.
    async with running_plant(tmp_path, site=site, clock=clock) as plant:
        plant.apply()
        for _ in range(8):
            await life.happens(plant)
        await life.mends(plant)
        for raw in plant.raw.values():
            raw["excluded"] = False
        plant.apply()
        answer = plant.setpoint(PARK_01=40.0)[PARK]
        # A device that did not obey is tried again at growing distances of up to five minutes.
        await plant.run(5)
        for _ in range(8):
            plant.setpoint(PARK_01=40.0)
            await plant.run(50)
        assert answer.done()
        assert limits(plant, A, B, C) == [40, 40, 40]
        assert plant.cycle.values == dict.fromkeys((PARK, ROOF, A, B, C), 40)
        await plant.run(65)
        free = [80 if plant.raw[tag]["owned_by"] == ROOF else 100 for tag in (A, B, C)]
        assert limits(plant, A, B, C) == free
