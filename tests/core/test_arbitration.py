"""Who holds a device: the rules of the priority array, one claim each."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from edge.core.arbitration import (
    UNTRUSTED_CLOCK_GRACE_S,
    DeviceState,
    Retirement,
    admit,
    contact_renewed,
    decide,
    explain,
    kept_alive,
    reconfigure,
    release,
    resume,
    retire,
    spend,
    unknown_again,
    written,
)
from edge.core.commands import BEFORE_ALL, Lifetime, Refusal, Source, WriteClass
from edge.core.cyclic import KeepAlive, KeepAliveDue, WriteReason
from edge.core.events import (
    FallbackEntered,
    FallbackReached,
    LapseCause,
    Retired,
    RetiredBecause,
    SetpointChanged,
)
from edge.core.image import EMPTY, Clock, ProcessImage
from edge.core.instant import Instant
from edge.core.quantities import Bound
from edge.core.schedule import Schedule
from edge.core.wear import Ledger
from tests.clock import ManualClock
from tests.core.devices import (
    INVERTER,
    device,
    held,
    request,
    settled,
    slot_now_and_next,
    slots,
    value_of,
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


# --- rule 1: the order of the slots ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("wishes", "resolved"),
    [
        ((30.0, 50.0, 70.0), (30.0, Source.DIRECT)),
        ((30.0, None, 70.0), (30.0, Source.DIRECT)),
        ((None, 50.0, 70.0), (50.0, Source.CLOSED_LOOP)),
        ((None, None, 70.0), (70.0, Source.SCHEDULE)),
        ((None, None, None), (100.0, Source.DEFAULT)),
        ((None, math.nan, 70.0), (70.0, Source.SCHEDULE)),
        ((None, math.inf, None), (100.0, Source.DEFAULT)),
    ],
)
def test_highest_slot_with_a_value_holds_the_device(clock, wishes, resolved):
    direct, loop, scheduled = wishes
    state = device(schedule=None if scheduled is None else slots({"10:00": scheduled}))
    if direct is not None:
        state = held(state, direct, clock.now())
    _, decision = decide(state, ProcessImage(loop_value=loop), clock.now())
    assert (decision.value, decision.source) == resolved


def test_request_above_the_schedule_still_outranks_it(clock):
    state = held(device(schedule=slots({"10:00": 20.0})), 90.0, clock.now())
    assert value_of(state, clock.now()) == 90.0


def test_decision_names_the_request_and_when_it_ends(clock):
    state = held(device(), 30.0, clock.now(), sequence=7)
    _, decision = decide(state, EMPTY, clock.now())
    assert decision.request_id == "req-1-7"
    assert state.hold is not None
    assert state.hold.category == "inverter"
    assert decision.until_boottime_s == clock.now().boottime_s + 60
    assert decision.until_utc is None


def test_decision_by_schedule_names_the_end_of_its_slot(clock):
    _, decision = decide(device(schedule=slots({"10:00": 70.0})), EMPTY, clock.now())
    assert decision.until_utc == datetime(2026, 3, 2, 10, 15, tzinfo=UTC)
    assert decision.request_id is None


def test_default_says_when_a_schedule_may_take_over(clock):
    _, decision = decide(device(), EMPTY, clock.now())
    assert decision.until_utc == datetime(2026, 3, 2, 10, 15, tzinfo=UTC)


def test_change_of_source_is_told_once(clock):
    state = held(device(), 30.0, clock.now())
    state, first = decide(state, EMPTY, clock.now())
    _, second = decide(state, EMPTY, clock.now())
    assert first.events == (SetpointChanged("INVERTER_01", 30.0, Source.DIRECT),)
    assert second.events == ()


# --- rule 2: a slot that begins under a request ---------------------------------------------------


def test_slot_beginning_under_a_request_is_revealed_when_the_request_lapses():
    clock = ManualClock(utc=datetime(2026, 3, 2, 10, 14, 30, tzinfo=UTC))
    state = device(schedule=slot_now_and_next(clock.now(), 80.0, 40.0))
    state, _ = settled(held(state, 30.0, clock.now()), clock.now())
    state, under_request = decide(state, EMPTY, clock.advance(45))
    assert (under_request.value, under_request.write) == (30.0, None)
    _, after = decide(state, EMPTY, clock.advance(16))
    assert (after.value, after.source, after.write) == (40.0, Source.SCHEDULE, WriteReason.CHANGED)


# --- rule 3: lapse --------------------------------------------------------------------------------


def test_request_holds_on_its_limit_and_lapses_after_it(clock):
    state = held(device(), 30.0, clock.now())
    assert value_of(state, clock.advance(60)) == 30.0
    assert value_of(state, clock.advance(0.001)) == 100.0


@pytest.mark.parametrize(
    ("image", "schedule", "value", "source"),
    [
        (EMPTY, slots({"10:00": 70.0}), 70.0, Source.SCHEDULE),
        (EMPTY, slots({"10:15": 70.0}), 100.0, Source.DEFAULT),
        (ProcessImage(loop_value=55.0), slots({"10:00": 70.0}), 55.0, Source.CLOSED_LOOP),
    ],
)
def test_lapse_leads_to_loop_then_schedule_then_default(clock, image, schedule, value, source):
    state, _ = settled(held(device(schedule=schedule), 30.0, clock.now()), clock.now())
    _, decision = decide(state, image, clock.advance(61))
    assert (decision.value, decision.source, decision.write) == (value, source, WriteReason.CHANGED)


def test_lapse_is_told_once_with_the_hold_that_ended(clock):
    state, _ = settled(held(device(), 30.0, clock.now()), clock.now())
    hold = state.hold
    assert hold is not None
    state, decision = decide(state, EMPTY, clock.advance(61))
    assert FallbackEntered("INVERTER_01", hold, LapseCause.TIME_LIMIT) in decision.events
    _, again = decide(state, EMPTY, clock.advance(1))
    assert not [event for event in again.events if isinstance(event, FallbackEntered)]


def test_lapse_is_owed_until_the_device_confirms(clock):
    state, _ = settled(held(device(), 30.0, clock.now()), clock.now())
    state, decision = decide(state, EMPTY, clock.advance(61))
    assert decision.value == 100.0
    state = written(state, 100.0, clock.now(), confirmed=False)
    assert state.lapse is not None
    state, decision = decide(state, EMPTY, clock.advance(1))
    assert (decision.value, decision.write) == (100.0, WriteReason.OWED)
    state = written(state, 100.0, clock.now(), confirmed=True)
    assert state.lapse is None


def test_lapse_of_a_request_for_the_default_is_reached_without_a_write(clock):
    state, _ = settled(held(device(), 100.0, clock.now()), clock.now())
    hold = state.hold
    assert hold is not None
    state, decision = decide(state, EMPTY, clock.advance(61))
    assert decision.write is None
    assert state.lapse is None
    assert decision.events[:2] == (
        FallbackEntered("INVERTER_01", hold, LapseCause.TIME_LIMIT),
        SetpointChanged("INVERTER_01", 100.0, Source.DEFAULT),
    )
    assert decision.events[2:] == (FallbackReached("INVERTER_01", hold, LapseCause.TIME_LIMIT, 100.0),)


def test_request_at_the_moment_of_the_lapse_takes_over_without_a_fallback(clock):
    state, _ = settled(held(device(), 30.0, clock.now()), clock.now())
    now = clock.advance(60.5)
    state = held(state, 30.0, now, sequence=2)
    _, decision = decide(state, EMPTY, now)
    assert (decision.value, decision.write, decision.events) == (30.0, None, ())


def test_request_after_a_lapse_ends_the_fallback_still_owed(clock):
    state, _ = settled(held(device(), 30.0, clock.now()), clock.now())
    state, _ = decide(state, EMPTY, clock.advance(61))
    state = written(state, 100.0, clock.now(), confirmed=False)
    state = held(state, 40.0, clock.advance(1), sequence=2)
    assert state.lapse is None
    assert value_of(state, clock.now()) == 40.0


# --- rule 4: renewal, and the clock the limit runs on ---------------------------------------------


def test_same_value_again_renews_the_limit(clock):
    state = held(device(), 30.0, clock.now())
    state = held(state, 30.0, clock.advance(50), sequence=2)
    assert value_of(state, clock.advance(50)) == 30.0
    assert value_of(state, clock.advance(11)) == 100.0


def test_refused_request_does_not_renew(clock):
    state = held(device(), 30.0, clock.now())
    state, refusal = admit(state, request(130.0, sequence=2), clock.advance(50))
    assert refusal is Refusal.RANGE
    assert value_of(state, clock.advance(11)) == 100.0


@pytest.mark.parametrize("correction_s", [-86400.0, -61.0, 61.0, 86400.0])
def test_corrected_wall_clock_moves_no_limit(clock, correction_s):
    state = held(device(), 30.0, clock.now())
    clock.jump_wall(correction_s)
    assert value_of(state, clock.advance(60)) == 30.0
    assert value_of(state, clock.advance(0.001)) == 100.0


def test_request_for_full_power_lapses_like_any_other(clock):
    state = held(device(schedule=slots({"10:00": 50.0})), 100.0, clock.now())
    assert value_of(state, clock.advance(60)) == 100.0
    assert value_of(state, clock.advance(1)) == 50.0


def test_release_goes_to_the_schedule_at_once(clock):
    state, _ = settled(held(device(schedule=slots({"10:00": 70.0})), 30.0, clock.now()), clock.now())
    state, refusal = release(state, (1, 2))
    assert refusal is None
    _, decision = decide(state, EMPTY, clock.advance(1))
    assert (decision.value, decision.write) == (70.0, WriteReason.CHANGED)
    assert not [event for event in decision.events if isinstance(event, FallbackEntered)]


def test_release_of_nothing_is_taken_and_changes_nothing(clock):
    state, refusal = release(device(), (1, 1))
    assert refusal is None
    assert value_of(state, clock.now()) == 100.0


def test_release_leaves_an_owed_fallback_owed(clock):
    state, _ = settled(held(device(), 30.0, clock.now()), clock.now())
    state, _ = decide(state, EMPTY, clock.advance(61))
    state, _ = release(state, (1, 2))
    assert state.lapse is not None


# --- rule 5, 21: the limit itself -----------------------------------------------------------------


@pytest.mark.parametrize("hold_s", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_hold_without_an_end_or_a_length_is_refused(clock, hold_s):
    state, refusal = admit(device(), request(30.0, hold_s=hold_s), clock.now())
    assert refusal is Refusal.RANGE
    assert state.hold is None
    assert state.last_order == BEFORE_ALL


@pytest.mark.parametrize(("hold_s", "lasts_s"), [(10.0, 10.0), (60.0, 60.0), (3600.0, 60.0), (1e300, 60.0)])
def test_smaller_of_the_commands_and_the_sites_limit_counts(clock, hold_s, lasts_s):
    state = held(device(time_limit_s=60.0), 30.0, clock.now(), hold_s=hold_s)
    assert value_of(state, clock.advance(lasts_s)) == 30.0
    assert value_of(state, clock.advance(0.001)) == 100.0


def test_tiny_hold_is_over_at_the_next_cycle(clock):
    state = held(device(), 30.0, clock.now(), hold_s=1e-300)
    assert value_of(state, clock.now()) == 30.0
    assert value_of(state, clock.advance(0.001)) == 100.0


def test_shorter_limit_shortens_a_running_hold(clock):
    state = held(device(time_limit_s=600.0), 30.0, clock.now(), hold_s=600.0)
    state = reconfigure(state, replace(state.settings, time_limit_s=60.0))
    assert value_of(state, clock.advance(60)) == 30.0
    assert value_of(state, clock.advance(1)) == 100.0


def test_longer_limit_does_not_lengthen_a_running_hold(clock):
    state = held(device(time_limit_s=60.0), 30.0, clock.now(), hold_s=600.0)
    state = reconfigure(state, replace(state.settings, time_limit_s=600.0))
    assert value_of(state, clock.advance(61)) == 100.0


def test_limit_raised_again_does_not_give_back_what_a_shorter_one_took(clock):
    state = held(device(time_limit_s=600.0), 30.0, clock.now(), hold_s=600.0)
    for limit in (60.0, 600.0):
        state = reconfigure(state, replace(state.settings, time_limit_s=limit))
    assert value_of(state, clock.advance(61)) == 100.0


def test_limit_shorter_than_what_has_passed_lapses_at_once(clock):
    state = held(device(time_limit_s=600.0), 30.0, clock.now(), hold_s=600.0)
    clock.advance(100)
    state = reconfigure(state, replace(state.settings, time_limit_s=60.0))
    assert value_of(state, clock.now()) == 100.0


def test_changed_default_waits_under_a_hold(clock):
    state, _ = settled(held(device(), 30.0, clock.now()), clock.now())
    state = reconfigure(state, replace(state.settings, default_value=80.0))
    assert value_of(state, clock.advance(1)) == 30.0
    assert value_of(state, clock.advance(60)) == 80.0


def test_changed_default_without_a_hold_is_written_at_once(clock):
    state, _ = settled(device(), clock.now())
    state = reconfigure(state, replace(state.settings, default_value=80.0))
    _, decision = decide(state, EMPTY, clock.advance(1))
    assert (decision.value, decision.source, decision.write) == (80.0, Source.DEFAULT, WriteReason.CHANGED)


def test_new_bounds_act_under_a_hold(clock):
    state, _ = settled(held(device(), 70.0, clock.now()), clock.now())
    state = reconfigure(state, replace(state.settings, bounds=(Bound("grid", maximum=50.0),)))
    _, decision = decide(state, EMPTY, clock.advance(1))
    assert (decision.value, decision.bounded_by, decision.write) == (50.0, "grid", WriteReason.CHANGED)


@pytest.mark.parametrize("limit", [0.0, -1.0, 0.5, 3601.0, math.inf, math.nan])
def test_settings_that_would_switch_the_watchdog_off_are_refused(limit):
    with pytest.raises(ValueError, match="time limit"):
        replace(INVERTER, time_limit_s=limit)


@pytest.mark.parametrize("name", ["minimum", "maximum", "default_value", "period_s", "tolerance"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_settings_with_a_number_that_is_none_are_refused(name, number):
    with pytest.raises(ValueError, match=f"INVERTER_01: {name}"):
        replace(INVERTER, **{name: number})


def test_range_without_a_value_in_it_is_refused():
    with pytest.raises(ValueError, match="above maximum"):
        replace(INVERTER, minimum=60.0, maximum=50.0)


# --- rule 6: restart and reboot -------------------------------------------------------------------


def test_process_restart_resumes_a_hold_with_the_time_that_is_left(clock):
    state, _ = settled(held(device(), 30.0, clock.now()), clock.now())
    state = resume(state, same_boot=True)
    assert value_of(state, clock.advance(59)) == 30.0
    assert value_of(state, clock.advance(2)) == 100.0


def test_hold_that_ended_while_the_process_was_down_lapses_at_the_first_decision(clock):
    state, _ = settled(held(device(), 30.0, clock.now()), clock.now())
    state = resume(state, same_boot=True)
    _, decision = decide(state, ProcessImage(readback=30.0), clock.advance(600))
    assert (decision.value, decision.write) == (100.0, WriteReason.FOUND)
    assert isinstance(decision.events[0], FallbackEntered)


def test_reboot_drops_a_hold_and_owes_its_fallback(clock):
    state, _ = settled(held(device(schedule=slots({"10:00": 70.0})), 30.0, clock.now()), clock.now())
    state = resume(state, same_boot=False)
    assert state.lapse is not None
    assert state.lapse.cause is LapseCause.REBOOT
    _, decision = decide(state, ProcessImage(readback=30.0), clock.reboot())
    assert (decision.value, decision.source, decision.write) == (70.0, Source.SCHEDULE, WriteReason.FOUND)


def test_reboot_into_the_fallback_is_told_without_a_write(clock):
    state, _ = settled(held(device(), 30.0, clock.now()), clock.now())
    state = resume(state, same_boot=False)
    state, decision = decide(state, ProcessImage(readback=100.0), clock.reboot())
    assert decision.write is None
    assert [event.cause for event in decision.events if isinstance(event, FallbackReached)] == [
        LapseCause.REBOOT
    ]
    assert state.lapse is None


def test_reboot_without_a_hold_owes_nothing(clock):
    state, _ = settled(device(), clock.now())
    assert resume(state, same_boot=False).lapse is None


def test_reboot_keeps_a_fallback_that_was_owed_before_it(clock):
    state, _ = settled(held(device(), 30.0, clock.now()), clock.now())
    state, _ = decide(state, EMPTY, clock.advance(61))
    assert resume(state, same_boot=False).lapse == state.lapse


@pytest.mark.parametrize("same_boot", [True, False])
def test_orders_survive_every_restart(clock, same_boot):
    state = resume(held(device(), 30.0, clock.now(), sequence=5), same_boot=same_boot)
    _, refusal = admit(state, request(40.0, sequence=5), clock.now())
    assert refusal is Refusal.SUPERSEDED


@pytest.mark.parametrize("forget", [lambda s: resume(s, same_boot=True), contact_renewed])
def test_device_that_holds_the_resolved_value_is_adopted_unwritten(clock, forget):
    state, _ = settled(held(device(), 30.0, clock.now()), clock.now())
    state, decision = decide(forget(state), ProcessImage(readback=30.2), clock.advance(1))
    assert decision.write is None
    assert state.in_force is not None
    assert (state.in_force.value, state.in_force.confirmed) == (30.0, True)


# --- rule 9: order wins over arrival --------------------------------------------------------------


@pytest.mark.parametrize("late", [(1, 4), (1, 5), (0, 99)])
def test_older_order_is_superseded_whenever_it_arrives(clock, late):
    state = held(device(), 30.0, clock.now(), sequence=5)
    late_request = request(80.0, epoch=late[0], sequence=late[1])
    after, refusal = admit(state, late_request, clock.advance(1))
    assert refusal is Refusal.SUPERSEDED
    assert after == state
    _, refusal = release(state, late)
    assert refusal is Refusal.SUPERSEDED


def test_higher_epoch_wins_over_any_sequence(clock):
    state = held(device(), 30.0, clock.now(), sequence=999)
    state = held(state, 80.0, clock.now(), epoch=2, sequence=1)
    assert value_of(state, clock.now()) == 80.0


def test_release_supersedes_the_requests_before_it(clock):
    state, _ = release(device(), (1, 5))
    _, refusal = admit(state, request(30.0, sequence=4), clock.now())
    assert refusal is Refusal.SUPERSEDED


def test_lapsed_request_is_still_superseded_when_it_comes_again(clock):
    state, _ = settled(held(device(), 30.0, clock.now()), clock.now())
    state, _ = decide(state, EMPTY, clock.advance(61))
    _, refusal = admit(state, request(30.0), clock.now())
    assert refusal is Refusal.SUPERSEDED


# --- rules 10 and 22: devices nobody may write ----------------------------------------------------


@pytest.mark.parametrize(
    ("change", "refusal"),
    [({"excluded": True}, Refusal.EXCLUDED), ({"owned_by": "LOGGER_01"}, Refusal.OWNED_BY)],
)
def test_device_not_controlled_gets_no_value_and_no_hold(clock, change, refusal):
    state = device(schedule=slots({"10:00": 70.0}), **change)
    assert admit(state, request(30.0), clock.now()) == (state, refusal)
    assert release(state, (1, 1)) == (state, refusal)
    _, decision = decide(state, ProcessImage(readback=3.0, loop_value=5.0), clock.now())
    assert (decision.value, decision.source, decision.write) == (None, None, None)
    assert explain(decision) == "INVERTER_01 is not controlled"


@pytest.mark.parametrize("change", [{"excluded": True}, {"owned_by": "LOGGER_01"}])
def test_device_leaving_control_ends_its_hold(clock, change):
    state, _ = settled(held(device(), 30.0, clock.now()), clock.now())
    state = reconfigure(state, replace(state.settings, **change))
    state, decision = decide(state, EMPTY, clock.advance(1))
    assert state.hold is None
    assert state.lapse is None
    assert [event.cause for event in decision.events if isinstance(event, FallbackEntered)] == [
        LapseCause.EXCLUDED
    ]


def test_device_back_under_control_is_judged_by_what_it_holds_now(clock):
    state, _ = settled(device(), clock.now())
    state = reconfigure(state, replace(state.settings, excluded=True))
    state, _ = decide(state, ProcessImage(readback=100.0), clock.advance(1))
    state = reconfigure(state, replace(state.settings, excluded=False))
    _, decision = decide(state, ProcessImage(readback=20.0), clock.advance(1))
    assert (decision.value, decision.write) == (100.0, WriteReason.FOUND)


@pytest.mark.parametrize("change", [{"excluded": True}, {"owned_by": "LOGGER_01"}])
def test_device_never_under_control_is_not_retired_and_owes_nothing(clock, change):
    state = resume(device(**change), same_boot=True)
    after, decision = decide(state, ProcessImage(readback=30.0), clock.now())
    assert (after.retirement, decision.events) == (None, ())
    held_once = held(device(), 30.0, clock.now())
    lapse = resume(held_once, same_boot=False).lapse
    stale = replace(state, hold=held_once.hold, lapse=lapse, resolved=(30.0, Source.DIRECT))
    assert decide(stale, ProcessImage(readback=30.0), clock.now())[0] == after


@pytest.mark.parametrize("change", [{"excluded": True}, {"owned_by": "LOGGER_01"}])
def test_held_device_never_reached_that_left_control_meanwhile_ends_its_hold(clock, change):
    state = held(device(), 30.0, clock.now())
    state = resume(replace(state, settings=replace(state.settings, **change)), same_boot=True)
    state, decision = decide(state, EMPTY, clock.now())
    assert [type(event) for event in decision.events] == [FallbackEntered, Retired]
    assert state.hold is None


@pytest.mark.parametrize("change", [{"excluded": True}, {"owned_by": "LOGGER_01"}])
def test_scheduled_device_that_left_control_while_nobody_was_here_is_retired(clock, change):
    state, _ = settled(device(schedule=slots({"10:00": 30.0})), clock.now())
    assert state.hold is None
    state = resume(replace(state, settings=replace(state.settings, **change)), same_boot=True)
    _, decision = decide(state, ProcessImage(readback=30.0), clock.advance(1))
    assert decision.write is WriteReason.RETIRED


def test_excluded_device_is_not_retired_again_by_another_change_of_its_settings(clock):
    state = reconfigure(device(), replace(INVERTER, excluded=True))
    state, _ = decide(state, EMPTY, clock.now())
    assert state.retirement is Retirement.DONE
    state = reconfigure(state, replace(INVERTER, excluded=True, default_value=80.0))
    assert decide(state, EMPTY, clock.now())[1].events == ()


@pytest.mark.parametrize("change", [{"excluded": True}, {"owned_by": "LOGGER_01"}])
def test_device_that_left_control_while_nobody_was_here_is_retired(clock, change):
    state, _ = settled(held(device(), 30.0, clock.now()), clock.now())
    state = resume(replace(state, settings=replace(state.settings, **change)), same_boot=True)
    _, decision = decide(state, ProcessImage(readback=30.0), clock.advance(1))
    assert (decision.value, decision.write) == (100.0, WriteReason.RETIRED)


# --- rule 20: retirement --------------------------------------------------------------------------


FOUND_30 = ProcessImage(readback=30.0)


def retiring(clock: ManualClock, **changes: Any) -> DeviceState:
    """A device on which 30 was written and confirmed, and which is to be left."""
    state, decision = settled(held(device(**changes), 30.0, clock.now()), clock.now())
    assert decision.value == 30.0
    return retire(state)


def test_retired_device_gets_its_default_once_and_is_left(clock):
    state = retiring(clock)
    hold = state.hold
    assert hold is not None
    state, decision = decide(state, FOUND_30, clock.advance(1))
    assert (decision.value, decision.source, decision.write) == (100.0, Source.DEFAULT, WriteReason.RETIRED)
    assert (decision.target, decision.wish, decision.until_utc) == (100.0, 100.0, None)
    assert decision.events == (FallbackEntered("INVERTER_01", hold, LapseCause.EXCLUDED),)
    assert state.hold is None
    state = written(state, 100.0, clock.now(), confirmed=True)
    state, decision = decide(state, ProcessImage(readback=100.0), clock.advance(1))
    assert (decision.value, decision.write) == (None, None)
    assert decision.events == (Retired("INVERTER_01", RetiredBecause.BACK_AT_DEFAULT, 100.0),)
    assert state.retirement is Retirement.DONE
    _, decision = decide(state, FOUND_30, clock.advance(1))
    assert (decision.value, decision.write, decision.events) == (None, None, ())


def test_default_of_a_retired_device_stays_owed_until_it_is_confirmed(clock):
    state = retiring(clock)
    for _ in range(3):
        state, decision = decide(state, FOUND_30, clock.advance(1))
        assert (decision.value, decision.write) == (100.0, WriteReason.RETIRED)
        state = written(state, 100.0, clock.now(), confirmed=False)
    assert state.retirement is Retirement.OWED


def test_default_of_a_retired_device_is_within_its_bounds(clock):
    state = retiring(clock, bounds=(Bound("grid", maximum=70.0),))
    _, decision = decide(state, FOUND_30, clock.advance(1))
    assert (decision.value, decision.wish) == (70.0, 100.0)


def test_device_out_of_reach_is_read_before_it_is_retired(clock):
    state, decision = decide(retiring(clock), EMPTY, clock.advance(1))
    assert (decision.value, decision.write) == (100.0, None)
    _, decision = decide(state, FOUND_30, clock.advance(1))
    assert decision.write is WriteReason.RETIRED


@pytest.mark.parametrize("found", [20.0, 29.4, 30.6, 99.4])
def test_value_another_has_written_is_left_alone_at_retirement(clock, found):
    state, decision = decide(retiring(clock), ProcessImage(readback=found), clock.advance(1))
    assert (decision.value, decision.write) == (None, None)
    assert decision.events[-1] == Retired("INVERTER_01", RetiredBecause.NOT_OURS, found)
    assert state.retirement is Retirement.DONE


@pytest.mark.parametrize("found", [29.5, 30.0, 30.5])
def test_value_within_the_tolerance_of_ours_is_ours_at_retirement(clock, found):
    _, decision = decide(retiring(clock), ProcessImage(readback=found), clock.advance(1))
    assert decision.write is WriteReason.RETIRED


@pytest.mark.parametrize("found", [99.5, 100.0, 100.5])
def test_device_found_at_its_default_is_retired_unwritten(clock, found):
    _, decision = decide(retiring(clock), ProcessImage(readback=found), clock.advance(1))
    assert decision.write is None
    assert decision.events[-1] == Retired("INVERTER_01", RetiredBecause.BACK_AT_DEFAULT, found)


def test_device_never_written_is_retired_without_a_look(clock):
    state, decision = decide(retire(device()), EMPTY, clock.now())
    assert decision.events == (Retired("INVERTER_01", RetiredBecause.NEVER_WRITTEN, 100.0),)
    assert state.retirement is Retirement.DONE


def test_device_nobody_can_read_is_retired_by_one_confirmed_write(clock):
    state, decision = decide(retiring(clock, readable=False), EMPTY, clock.advance(1))
    assert decision.write is WriteReason.RETIRED
    state = written(state, 100.0, clock.now(), confirmed=True)
    _, decision = decide(state, EMPTY, clock.advance(1))
    assert decision.events == (Retired("INVERTER_01", RetiredBecause.BACK_AT_DEFAULT, 100.0),)


def test_confirmed_default_that_has_changed_since_is_owed_anew(clock):
    state, _ = decide(retiring(clock, readable=False), EMPTY, clock.advance(1))
    state = written(state, 100.0, clock.now(), confirmed=True)
    state = reconfigure(state, replace(state.settings, excluded=True))
    state = reconfigure(state, replace(state.settings, default_value=80.0))
    _, decision = decide(state, EMPTY, clock.advance(1))
    assert (decision.value, decision.write) == (80.0, WriteReason.RETIRED)


def test_write_whose_answer_was_lost_is_not_left_behind_though_another_was_asked_since(clock):
    # 50 was carried out, 70 never arrived.
    state, _ = settled(device(), clock.now())
    for value, sequence in ((50.0, 1), (70.0, 2)):
        state, decision = decide(held(state, value, clock.now(), sequence=sequence), EMPTY, clock.now())
        assert decision.value == value
        state = written(state, value, clock.now(), confirmed=False)
    _, decision = decide(retire(state), ProcessImage(readback=50.0), clock.advance(1))
    assert (decision.value, decision.write) == (100.0, WriteReason.RETIRED)


def test_confirmed_value_ends_the_doubt_about_those_asked_before_it(clock):
    state, _ = settled(device(), clock.now())
    state, _ = decide(held(state, 50.0, clock.now()), EMPTY, clock.now())
    state = written(state, 50.0, clock.now(), confirmed=False)
    state, _ = settled(held(state, 70.0, clock.now(), sequence=2), clock.now())
    _, decision = decide(retire(state), ProcessImage(readback=50.0), clock.advance(1))
    assert isinstance(decision.events[-1], Retired)
    assert decision.events[-1].because is RetiredBecause.NOT_OURS


def test_value_asked_before_the_first_contact_is_not_ours(clock):
    # It stood in the device before anything could be written.
    state, decision = decide(held(device(), 30.0, clock.now()), EMPTY, clock.now())
    assert decision.write is WriteReason.FOUND
    state = written(state, 30.0, clock.now(), confirmed=False)
    state, decision = decide(state, EMPTY, clock.advance(1))
    assert decision.write is WriteReason.OWED
    assert not state.is_ours(30.0)
    _, decision = decide(retire(state), FOUND_30, clock.advance(1))
    assert decision.write is None


@pytest.mark.parametrize("reads", [True, False])
def test_value_asked_after_the_first_contact_may_be_ours_before_it_is_confirmed(clock, reads):
    state = device(readable=reads)
    if reads:
        state = contact_renewed(state)
    state, decision = decide(held(state, 30.0, clock.now()), EMPTY, clock.now())
    assert decision.write is WriteReason.FOUND
    assert state.is_ours(30.0)


def test_default_asked_at_retirement_is_ours_though_never_confirmed(clock):
    state, _ = decide(retiring(clock, excluded=False), FOUND_30, clock.advance(1))
    state = written(state, 100.0, clock.now(), confirmed=False)
    state = replace(state, settings=replace(state.settings, default_value=80.0))
    _, decision = decide(state, ProcessImage(readback=100.0), clock.advance(1))
    assert (decision.value, decision.write) == (80.0, WriteReason.RETIRED)


def test_value_that_was_adopted_is_ours_at_retirement(clock):
    # Found as it should be: whoever wrote it, it stands there by our decision now.
    state, decision = decide(held(device(), 30.0, clock.now()), ProcessImage(readback=30.2), clock.now())
    assert decision.write is None
    _, decision = decide(retire(state), ProcessImage(readback=30.2), clock.advance(1))
    assert decision.write is WriteReason.RETIRED


def test_default_that_could_not_be_asked_yet_is_not_ours(clock):
    state, decision = decide(retiring(clock), EMPTY, clock.advance(1))
    assert decision.write is None
    state = replace(state, settings=replace(state.settings, default_value=80.0))
    _, decision = decide(state, ProcessImage(readback=100.0), clock.advance(1))
    assert isinstance(decision.events[-1], Retired)
    assert decision.events[-1].because is RetiredBecause.NOT_OURS


def test_contact_made_before_a_change_lets_the_change_arrive_though_it_is_not_read_again(clock):
    state, _ = decide(device(), ProcessImage(readback=55.0), clock.now())
    state = written(state, 100.0, clock.now(), confirmed=False)
    state, _ = decide(held(state, 30.0, clock.now()), EMPTY, clock.advance(1))
    assert state.is_ours(30.0)


@pytest.mark.parametrize("forget", [lambda s: resume(s, same_boot=True), unknown_again])
def test_contact_of_former_times_lets_nothing_arrive(clock, forget):
    state, _ = settled(device(), clock.now(), ProcessImage(readback=55.0))
    state, _ = decide(held(forget(state), 30.0, clock.now()), EMPTY, clock.advance(1))
    assert not state.is_ours(30.0)


def test_lapse_that_was_owed_ends_with_the_retirement(clock):
    state, _ = settled(held(device(), 30.0, clock.now()), clock.now())
    state, _ = decide(state, EMPTY, clock.advance(61))
    assert state.lapse is not None
    state, decision = decide(retire(state), FOUND_30, clock.now())
    assert decision.tag == "INVERTER_01"
    assert state.lapse is None


def test_slot_of_before_is_not_kept_under_an_untrusted_clock_by_a_device_that_comes_back(clock):
    state = device(schedule=slots({"10:00": 30.0}))
    state, _ = settled(state, clock.now())
    state, _ = decide(retire(state), FOUND_30, clock.advance(1))
    state = reconfigure(state, state.settings)
    image = ProcessImage(readback=30.0, clock=Clock(untrusted_since_s=clock.now().boottime_s))
    assert value_of(state, clock.advance(1), image) == 100.0


def test_device_that_comes_back_knows_its_schedule_its_orders_and_its_ledger(clock):
    state = spend(retiring(clock, schedule=slots({"10:00": 70.0}), budgeted=frozenset({"l"})), {"l": 3})
    state, _ = decide(state, ProcessImage(readback=100.0), clock.advance(1))
    assert state.retirement is Retirement.DONE
    state = reconfigure(state, state.settings)
    assert admit(state, request(40.0), clock.now())[1] is Refusal.SUPERSEDED
    assert value_of(state, clock.now()) == 70.0
    assert state.spent_today == 3


def test_nobody_holds_or_releases_a_device_that_leaves(clock):
    state = retiring(clock)
    assert admit(state, request(40.0, sequence=2), clock.now()) == (state, Refusal.EXCLUDED)
    assert release(state, (1, 2)) == (state, Refusal.EXCLUDED)


def test_retired_device_gets_nothing_even_where_its_settings_would_have_it_controlled(clock):
    state, _ = decide(retire(device(schedule=slots({"10:00": 40.0}))), EMPTY, clock.now())
    assert state.settings.is_controlled
    _, decision = decide(state, FOUND_30, clock.advance(1))
    assert (decision.value, decision.write) == (None, None)


def test_device_that_comes_back_is_controlled_again_and_read_first(clock):
    state = retiring(clock)
    state, _ = decide(state, FOUND_30, clock.advance(1))
    state = reconfigure(state, state.settings)
    _, decision = decide(state, FOUND_30, clock.advance(1))
    assert (decision.value, decision.source, decision.write) == (100.0, Source.DEFAULT, WriteReason.FOUND)


@pytest.mark.parametrize("same_boot", [True, False])
def test_retirement_survives_every_restart(clock, same_boot):
    state, _ = decide(retiring(clock), FOUND_30, clock.advance(1))
    state = resume(state, same_boot=same_boot)
    _, decision = decide(state, FOUND_30, clock.advance(1))
    assert (decision.value, decision.write) == (100.0, WriteReason.RETIRED)


def test_hold_of_another_boot_never_comes_to_life_again_by_a_device_that_comes_back(clock):
    # The process died between leaving the device and ending its hold; the boot-time clock began anew.
    state = resume(retiring(clock), same_boot=False)
    assert state.hold is None
    state = reconfigure(state, state.settings)
    _, decision = decide(state, FOUND_30, clock.reboot())
    assert decision.source is Source.DEFAULT


# --- rule 11: what failed stays owed --------------------------------------------------------------


def test_failed_write_stays_owed_until_its_hold_ends(clock):
    state = held(device(), 30.0, clock.now())
    for _ in range(3):
        state, decision = decide(state, EMPTY, clock.advance(10))
        assert decision.write is not None
        assert decision.value == 30.0
        state = written(state, 30.0, clock.now(), confirmed=False)
    _, decision = decide(state, EMPTY, clock.advance(31))
    assert (decision.value, decision.write) == (100.0, WriteReason.CHANGED)


def test_release_cancels_a_write_still_owed(clock):
    state = written(held(device(), 30.0, clock.now()), 30.0, clock.now(), confirmed=False)
    state, _ = release(state, (1, 2))
    _, decision = decide(state, EMPTY, clock.advance(1))
    assert (decision.value, decision.write) == (100.0, WriteReason.CHANGED)


# --- admission ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-0.1, 100.1, math.nan, math.inf, -math.inf])
def test_value_outside_the_devices_range_is_refused_never_clamped(clock, value):
    state = held(device(), 30.0, clock.now())
    after, refusal = admit(state, request(value, sequence=2), clock.now())
    assert refusal is Refusal.RANGE
    assert after == state


@pytest.mark.parametrize("value", [0.0, 100.0])
def test_ends_of_the_range_belong_to_it(clock, value):
    assert value_of(held(device(), value, clock.now()), clock.now()) == value


def test_connection_bound_holds_whoever_asks(clock):
    image = ProcessImage(loop_value=90.0, connection_bound=Bound("connection limit", maximum=60.0))
    free = device(schedule=slots({"10:00": 95.0}))
    for state, image_of_it, source in (
        (held(free, 80.0, clock.now()), image, Source.DIRECT),
        (free, image, Source.CLOSED_LOOP),
        (free, replace(image, loop_value=None), Source.SCHEDULE),
        (device(), replace(image, loop_value=None), Source.DEFAULT),
    ):
        _, decision = decide(state, image_of_it, clock.now())
        assert (decision.value, decision.source, decision.bounded_by) == (60.0, source, "connection limit")


def test_connection_bound_moves_under_a_hold_and_never_above_another_authoritys(clock):
    state = held(device(bounds=(Bound("grid", maximum=50.0),)), 80.0, clock.now())
    values = []
    for maximum in (30.0, 45.0, 70.0):
        state, decision = decide(
            state, ProcessImage(connection_bound=Bound("connection limit", maximum=maximum)), clock.now()
        )
        values.append((decision.value, decision.bounded_by))
    assert values == [(30.0, "connection limit"), (45.0, "connection limit"), (50.0, "grid")]


def test_connection_bound_for_import_raises_what_takes_too_much(clock):
    state = held(device(minimum=-100.0, default_value=0.0), -80.0, clock.now())
    image = ProcessImage(connection_bound=Bound("connection limit", minimum=-25.0))
    assert value_of(state, clock.now(), image) == -25.0


def test_connection_bound_is_obeyed_at_once_whatever_the_ramp(clock):
    state = ramped(clock)
    image = ProcessImage(connection_bound=Bound("connection limit", maximum=40.0))
    assert value_of(state, clock.now(), image) == 40.0


def test_bounds_of_others_do_not_refuse_a_request_but_bound_it(clock):
    state = held(device(bounds=(Bound("grid", maximum=50.0),)), 80.0, clock.now())
    _, decision = decide(state, EMPTY, clock.now())
    assert (decision.value, decision.wish, decision.bounded_by) == (50.0, 80.0, "grid")


def test_default_outside_the_range_is_bounded_by_the_device(clock):
    _, decision = decide(device(default_value=120.0), EMPTY, clock.now())
    assert (decision.value, decision.bounded_by) == (100.0, "device")


# --- rule 13: wear --------------------------------------------------------------------------------


def worn(writes: int, **changes: Any) -> DeviceState:
    """A device with a budget of 5 writes a day, some of them spent."""
    changes = {"write_class": WriteClass.PERSISTENT, "writes_per_day": 5, **changes}
    state = device(budgeted=frozenset({"limit"}), **changes)
    state = replace(state, ledger=Ledger(datetime(2026, 3, 2, tzinfo=UTC).date()))
    return spend(state, {"limit": writes, "enable": 99})


@pytest.mark.parametrize(("spent", "refusal"), [(3, None), (4, Refusal.WEAR), (5, Refusal.WEAR)])
def test_hold_is_accepted_only_if_its_set_and_its_release_are_covered(clock, spent, refusal):
    state = worn(spent)
    after, refused = admit(state, request(30.0), clock.now())
    assert refused is refusal
    assert (after == state) is (refusal is not None)


def test_register_without_a_budget_is_only_counted(clock):
    state = worn(10_000, writes_per_day=None)
    assert admit(state, request(30.0), clock.now())[1] is None
    assert state.spent_today == 10_000


@pytest.mark.parametrize("resumed", [False, True])
def test_renewal_of_the_same_value_is_never_refused_for_wear(clock, resumed):
    state = spend(held(worn(3), 30.0, clock.now()), {"limit": 9})
    if resumed:
        # Nothing is resolved yet.
        state = resume(state, same_boot=True)
    assert admit(state, request(30.0, sequence=2), clock.advance(1))[1] is None
    assert admit(state, request(31.0, sequence=2), clock.now())[1] is Refusal.WEAR


def test_request_that_bounds_make_the_same_value_is_a_renewal(clock):
    state = held(worn(3, bounds=(Bound("grid", maximum=50.0),)), 80.0, clock.now())
    state = spend(state, {"limit": 2})
    assert admit(state, request(90.0, sequence=2), clock.now())[1] is None
    assert admit(state, request(40.0, sequence=2), clock.now())[1] is Refusal.WEAR


def test_release_lapse_bound_and_schedule_are_written_whatever_is_spent(clock):
    state = worn(3, schedule=slots({"10:00": 80.0, "10:15": 60.0}))
    state, _ = settled(held(state, 30.0, clock.now()), clock.now())
    state = spend(state, {"limit": 99})
    released, refusal = release(state, (1, 2))
    assert refusal is None
    assert decide(released, EMPTY, clock.now())[1].write is WriteReason.CHANGED
    bounded = reconfigure(state, replace(state.settings, bounds=(Bound("grid", maximum=10.0),)))
    assert decide(bounded, EMPTY, clock.now())[1].write is WriteReason.CHANGED
    state, lapsed = decide(state, EMPTY, clock.advance(61))
    assert (lapsed.value, lapsed.write) == (80.0, WriteReason.CHANGED)
    state = written(state, 80.0, clock.now(), confirmed=True)
    _, slot = decide(state, EMPTY, clock.advance(900))
    assert (slot.value, slot.write) == (60.0, WriteReason.CHANGED)


@pytest.mark.parametrize(("spent", "write"), [(3, WriteReason.DRIFTED), (4, None)])
def test_drift_is_put_right_only_while_a_hold_could_still_be_accepted(clock, spent, write):
    state, _ = settled(worn(spent), clock.now())
    _, decision = decide(state, ProcessImage(readback=60.0), clock.advance(400))
    assert decision.write is write


@pytest.mark.parametrize(("spent", "alarming"), [(3, False), (4, True), (5, True)])
def test_four_fifths_of_the_budget_are_worth_an_alarm(spent, alarming):
    assert worn(spent).is_wearing is alarming
    assert not worn(spent, writes_per_day=None).is_wearing


def test_new_day_gives_a_new_budget_and_forgets_no_write(clock):
    state, _ = decide(worn(5), EMPTY, clock.now())
    state, _ = decide(state, EMPTY, clock.jump_wall(86400))
    assert state.spent_today == 0
    assert state.ledger.registers["limit"].ever == 5


def test_clock_nobody_trusts_begins_no_day(clock):
    state, _ = decide(worn(5), EMPTY, clock.now())
    image = ProcessImage(clock=Clock(untrusted_since_s=clock.now().boottime_s))
    state, _ = decide(state, image, clock.jump_wall(86400))
    assert state.spent_today == 5


def test_budget_that_carries_no_request_is_refused():
    with pytest.raises(ValueError, match="1 writes a day carries no request"):
        replace(INVERTER, writes_per_day=1)
    assert replace(INVERTER, writes_per_day=2).writes_per_day == 2


@pytest.mark.parametrize("readback", [None, 30.0])
def test_persistent_register_nobody_can_read_is_not_written_again_by_a_restart(clock, readback):
    state = device(write_class=WriteClass.PERSISTENT, readable=False)
    state, _ = settled(held(state, 30.0, clock.now()), clock.now())
    for again in (resume(state, same_boot=True), contact_renewed(state)):
        kept, decision = decide(again, EMPTY, clock.advance(1))
        assert (decision.value, decision.write) == (30.0, None)
        assert kept.in_force is not None
        assert kept.in_force.confirmed
    _, decision = decide(resume(state, same_boot=True), EMPTY, clock.advance(60))
    assert (decision.value, decision.write) == (100.0, WriteReason.CHANGED)


@pytest.mark.parametrize(
    "changes", [{"write_class": WriteClass.UNKNOWN}, {"write_class": WriteClass.VOLATILE}, {"readable": True}]
)
def test_any_other_register_is_written_after_a_restart_that_could_not_read_it(clock, changes):
    state = device(**{"write_class": WriteClass.PERSISTENT, "readable": False, **changes})
    state, _ = settled(held(state, 30.0, clock.now()), clock.now())
    _, decision = decide(resume(state, same_boot=True), EMPTY, clock.advance(1))
    assert decision.write is WriteReason.FOUND


def test_unconfirmed_write_to_a_register_nobody_can_read_is_made_again_after_a_restart(clock):
    state = device(write_class=WriteClass.PERSISTENT, readable=False)
    state, _ = settled(held(state, 30.0, clock.now()), clock.now())
    state, _ = decide(held(state, 40.0, clock.now(), sequence=2), EMPTY, clock.now())
    state, _ = release(state, (1, 3))
    state = held(state, 30.0, clock.now(), sequence=4)
    _, decision = decide(resume(state, same_boot=True), EMPTY, clock.advance(1))
    assert decision.write is WriteReason.FOUND


@pytest.mark.parametrize(
    ("changes", "write"),
    [
        ({}, WriteReason.REPEATED),
        ({"lifetime": Lifetime.SINGULAR}, None),
        ({"write_class": WriteClass.PERSISTENT}, None),
        ({"write_class": WriteClass.UNKNOWN}, None),
        ({"write_class": WriteClass.UNKNOWN, "accept_wear": True}, None),
        ({"period_s": 400.0}, None),
    ],
)
def test_resolved_value_is_repeated_every_period_where_it_wears_nothing(clock, changes, write):
    state, _ = settled(device(**changes), clock.now())
    _, decision = decide(state, ProcessImage(readback=100.0), clock.advance(300))
    assert (decision.value, decision.write) == (100.0, write)


# --- rule 14: the device's own fallback -----------------------------------------------------------


FALLBACK = KeepAlive(100.0, timeout_s=60.0)


def test_own_fallback_is_armed_after_the_first_contact_and_kept_from_acting(clock):
    state = device(keep_alive=FALLBACK, lifetime=Lifetime.SINGULAR)
    state, decision = decide(state, EMPTY, clock.now())
    assert decision.keep_alive is None
    state, decision = decide(state, ProcessImage(readback=100.0), clock.now())
    assert decision.keep_alive is KeepAliveDue.ARM
    state = kept_alive(state, 100.0, clock.now())
    state, decision = decide(state, EMPTY, clock.advance(19.9))
    assert decision.keep_alive is None
    # Whatever the lifetime of its values, and without a write of them.
    state, decision = decide(state, EMPTY, clock.advance(0.1))
    assert (decision.keep_alive, decision.write) == (KeepAliveDue.REFRESH, None)


@pytest.mark.parametrize("forget", [lambda s: resume(s, same_boot=True), contact_renewed])
def test_own_fallback_is_armed_anew_where_the_device_may_have_restarted(clock, forget):
    state, _ = decide(device(keep_alive=FALLBACK), ProcessImage(readback=100.0), clock.now())
    state = forget(kept_alive(state, 100.0, clock.now()))
    _, decision = decide(state, ProcessImage(readback=100.0), clock.advance(1))
    assert decision.keep_alive is KeepAliveDue.ARM


def test_sign_of_life_that_was_under_way_when_the_fallback_was_given_up_arms_nothing(clock):
    state, _ = decide(device(), ProcessImage(readback=100.0), clock.now())
    state = kept_alive(state, 100.0, clock.now())
    state, decision = decide(state, EMPTY, clock.advance(1))
    assert decision.keep_alive is None
    # Wanted again, it is armed from the beginning.
    state = replace(state, settings=replace(state.settings, keep_alive=FALLBACK))
    _, decision = decide(state, EMPTY, clock.advance(1))
    assert decision.keep_alive is KeepAliveDue.ARM


@pytest.mark.parametrize("change", [{"excluded": True}, {"owned_by": "LOGGER_01"}])
def test_device_nobody_may_write_is_not_kept_alive(clock, change):
    state = device(keep_alive=FALLBACK, **change)
    _, decision = decide(state, ProcessImage(readback=100.0), clock.now())
    assert decision.keep_alive is None


# --- rule 15: ramps -------------------------------------------------------------------------------


def ramped(clock: ManualClock, **changes: Any) -> DeviceState:
    """A device at 100 that may move 1 % of nameplate a second."""
    state, decision = settled(device(**{"ramp_pct_per_min": 60.0, **changes}), clock.now())
    assert decision.value == 100.0
    return state


def walk(state: DeviceState, clock: ManualClock, *, seconds: int) -> tuple[DeviceState, list[float | None]]:
    values = []
    for _ in range(seconds):
        state, decision = settled(state, clock.advance(1))
        values.append(decision.value)
    return state, values


def test_first_step_of_a_ramp_leaves_at_once_and_the_others_follow(clock):
    state = held(ramped(clock), 96.5, clock.advance(30))
    state, decision = settled(state, clock.now())
    assert (decision.value, decision.target, decision.write) == (99.0, 96.5, WriteReason.CHANGED)
    assert explain(decision) == "INVERTER_01 at 99 by direct request req-1-1, on its ramp to 96.5"
    _, values = walk(state, clock, seconds=4)
    assert values == [98.0, 97.0, 96.5, 96.5]


@pytest.mark.parametrize("source", ["direct", "loop", "schedule", "default"])
def test_ramp_shapes_every_source(clock, source):
    state, image = ramped(clock), EMPTY
    clock.advance(30)
    match source:
        case "direct":
            state = held(state, 30.0, clock.now())
        case "loop":
            image = ProcessImage(loop_value=30.0)
        case "schedule":
            state = replace(state, schedule=slots({"10:00": 30.0}))
        case "default":
            state = reconfigure(state, replace(state.settings, default_value=30.0))
    assert value_of(state, clock.now(), image) == 99.0


def test_bound_is_obeyed_at_once_and_the_ramp_goes_on_from_it(clock):
    state = reconfigure(ramped(clock), replace(ramped(clock).settings, bounds=(Bound("grid", maximum=40.0),)))
    state, decision = settled(held(state, 30.0, clock.advance(30)), clock.now())
    assert (decision.value, decision.target) == (40.0, 30.0)
    _, values = walk(state, clock, seconds=2)
    assert values == [39.0, 38.0]


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"write_class": WriteClass.PERSISTENT}, 30.0),
        ({"write_class": WriteClass.PERSISTENT, "accept_wear": True}, 30.0),
        ({"write_class": WriteClass.UNKNOWN}, 30.0),
        ({"write_class": WriteClass.UNKNOWN, "accept_wear": True}, 99.0),
        ({"write_class": WriteClass.VOLATILE}, 99.0),
        ({"ramp_pct_per_min": None}, 30.0),
    ],
)
def test_register_that_wears_takes_no_ramp(clock, changes, value):
    state = held(ramped(clock, **changes), 30.0, clock.advance(30))
    assert value_of(state, clock.now()) == value


def test_ramp_starts_from_what_the_device_is_found_to_hold(clock):
    state = device(ramp_pct_per_min=60.0, default_value=30.0)
    assert value_of(state, clock.now(), ProcessImage(readback=50.0)) == 49.0
    state = contact_renewed(settled(state, clock.now(), ProcessImage(readback=50.0))[0])
    assert value_of(state, clock.now(), ProcessImage(readback=80.0)) == 79.0


def test_without_a_value_to_start_from_there_is_no_ramp(clock):
    assert value_of(device(ramp_pct_per_min=60.0, default_value=30.0), clock.now()) == 30.0


def test_fallback_is_owed_until_its_ramp_has_arrived(clock):
    state, _ = settled(held(ramped(clock), 97.5, clock.now()), clock.now())
    state, values = walk(state, clock, seconds=60)
    assert values[-1] == 97.5
    state, _ = walk(state, clock, seconds=2)
    assert state.lapse is not None
    state, values = walk(state, clock, seconds=1)
    assert values == [100.0]
    assert state.lapse is None


def test_step_made_by_a_bound_is_paid_for_like_any_other(clock):
    state = reconfigure(ramped(clock), replace(ramped(clock).settings, bounds=(Bound("grid", maximum=40.0),)))
    state, _ = settled(held(state, 30.0, clock.advance(30)), clock.now())
    assert value_of(state, clock.now()) == 40.0


def test_slow_ramps_are_ramps():
    assert device(ramp_pct_per_min=0.6).settings.ramp_per_s == 0.01


@pytest.mark.parametrize("ramp", [0.0, -1.0, math.nan, math.inf])
def test_ramp_that_would_never_arrive_is_refused(ramp):
    with pytest.raises(ValueError, match="is not above 0"):
        replace(INVERTER, ramp_pct_per_min=ramp)


# --- rule 17: a clock nobody trusts ---------------------------------------------------------------


def untrusted(since_s: float) -> ProcessImage:
    return ProcessImage(readback=70.0, clock=Clock(untrusted_since_s=since_s))


def scheduled_device(clock: ManualClock) -> DeviceState:
    state, decision = settled(device(schedule=slots({"10:00": 70.0, "10:15": 40.0})), clock.now())
    assert decision.value == 70.0
    return state


def test_untrusted_clock_keeps_the_value_in_force_for_its_grace_then_takes_the_default(clock):
    state = scheduled_device(clock)
    since = clock.now().boottime_s
    state, kept = decide(state, untrusted(since), clock.advance(UNTRUSTED_CLOCK_GRACE_S))
    assert (kept.value, kept.source) == (70.0, Source.SCHEDULE)
    assert kept.until_boottime_s == since + UNTRUSTED_CLOCK_GRACE_S
    state, after = decide(state, untrusted(since), clock.advance(1))
    assert (after.value, after.source) == (100.0, Source.DEFAULT)
    assert value_of(state, clock.advance(1), untrusted(since)) == 100.0


def test_schedule_takes_over_again_when_the_clock_is_trusted(clock):
    state = scheduled_device(clock)
    since = clock.now().boottime_s
    state, _ = decide(state, untrusted(since), clock.advance(960))
    assert value_of(state, clock.advance(1)) == 40.0


def test_clock_untrusted_since_boot_goes_to_the_default(clock):
    state = device(schedule=slots({"10:00": 70.0}))
    _, decision = decide(state, untrusted(0.0), clock.now())
    assert (decision.value, decision.source) == (100.0, Source.DEFAULT)


@pytest.mark.parametrize("same_boot", [True, False])
def test_no_value_from_before_a_restart_is_kept_under_an_untrusted_clock(clock, same_boot):
    state = resume(scheduled_device(clock), same_boot=same_boot)
    assert value_of(state, clock.now(), untrusted(clock.now().boottime_s)) == 100.0


def test_request_lapsing_under_an_untrusted_clock_goes_to_the_default(clock):
    state, _ = settled(held(scheduled_device(clock), 30.0, clock.now()), clock.now())
    since = clock.now().boottime_s
    assert value_of(state, clock.advance(60), untrusted(since)) == 30.0
    assert value_of(state, clock.advance(1), untrusted(since)) == 100.0


def test_loop_does_not_need_the_wall_clock(clock):
    image = ProcessImage(loop_value=55.0, clock=Clock(untrusted_since_s=0.0))
    assert value_of(device(), clock.now(), image) == 55.0


@pytest.mark.parametrize("since", [math.nan, math.inf, -math.inf])
def test_grace_without_an_end_is_no_grace(clock, since):
    state = scheduled_device(clock)
    assert value_of(state, clock.advance(1), untrusted(since)) == 100.0


# --- missing and broken values --------------------------------------------------------------------


@pytest.mark.parametrize("readback", [math.nan, math.inf, -math.inf])
def test_reading_that_is_no_number_is_no_reading(clock, readback):
    # NaN would compare as if it agreed with every value.
    state = device()
    image = ProcessImage(readback=readback)
    assert decide(state, image, clock.now()) == decide(state, EMPTY, clock.now())
    assert decide(state, image, clock.now())[1].write is WriteReason.FOUND


@pytest.mark.parametrize("slot", [math.nan, math.inf, -math.inf])
def test_slot_that_is_no_number_means_the_default(clock, slot):
    _, decision = decide(device(schedule=slots({"10:00": slot})), EMPTY, clock.now())
    assert (decision.value, decision.source) == (100.0, Source.DEFAULT)


@pytest.mark.parametrize("utc", [datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)])
def test_ends_of_the_calendar_are_days_like_any_other(utc):
    state = replace(device(), schedule=Schedule({utc.date(): {"23:45": 70.0, "00:00": 70.0}}))
    assert value_of(state, Instant(utc, 1000.0)) == 70.0


# --- the reason -----------------------------------------------------------------------------------


def test_reason_names_who_asked_and_what_bounded_it(clock):
    state = held(device(bounds=(Bound("grid", maximum=50.0),)), 80.0, clock.now(), sequence=7)
    _, decision = decide(state, EMPTY, clock.now())
    assert explain(decision) == ("INVERTER_01 at 50 by direct request req-1-7, asked for 80, bounded by grid")


def test_reason_of_a_schedule_names_the_end_of_its_slot(clock):
    _, decision = decide(device(schedule=slots({"10:00": 70.0})), EMPTY, clock.now())
    assert explain(decision) == "INVERTER_01 at 70 by schedule, until 2026-03-02T10:15:00Z"
