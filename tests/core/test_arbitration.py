"""Who holds a device: the rules of the priority array, one claim each."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from edge.core.arbitration import (
    UNTRUSTED_CLOCK_GRACE_S,
    DeviceState,
    admit,
    contact_renewed,
    decide,
    explain,
    reconfigure,
    release,
    resume,
    written,
)
from edge.core.commands import BEFORE_ALL, Refusal, Source
from edge.core.cyclic import WriteReason
from edge.core.events import FallbackEntered, FallbackReached, LapseCause, SetpointChanged
from edge.core.image import EMPTY, Clock, ProcessImage
from edge.core.instant import Instant
from edge.core.quantities import Bound
from edge.core.schedule import Schedule
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


@pytest.mark.parametrize("unknown_again", [lambda s: resume(s, same_boot=True), contact_renewed])
def test_device_that_holds_the_resolved_value_is_adopted_unwritten(clock, unknown_again):
    state, _ = settled(held(device(), 30.0, clock.now()), clock.now())
    state, decision = decide(unknown_again(state), ProcessImage(readback=30.2), clock.advance(1))
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


def test_bounds_of_others_do_not_refuse_a_request_but_bound_it(clock):
    state = held(device(bounds=(Bound("grid", maximum=50.0),)), 80.0, clock.now())
    _, decision = decide(state, EMPTY, clock.now())
    assert (decision.value, decision.wish, decision.bounded_by) == (50.0, 80.0, "grid")


def test_default_outside_the_range_is_bounded_by_the_device(clock):
    _, decision = decide(device(default_value=120.0), EMPTY, clock.now())
    assert (decision.value, decision.bounded_by) == (100.0, "device")


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
