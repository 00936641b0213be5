"""Why a device is held where it is, down to the default."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, strategies as st

from edge.core.arbitration import DeviceState, Lapse, decide, resume, retire
from edge.core.commands import Source
from edge.core.image import EMPTY, Clock, ProcessImage
from edge.core.quantities import Bound
from edge.core.reasons import HORIZON, next_change, reason, sentence
from edge.core.schedule import NO_SCHEDULE, Schedule, value_at
from tests import strategies as our
from tests.clock import A_MORNING, ManualClock
from tests.core.devices import device, held, settled, slots

SCHEDULE = slots({"10:00": 80.0, "10:15": 80.0, "10:30": 50.0})


def explained(state, now, image=EMPTY):
    state, decision = decide(state, image, now)
    return reason(state, decision, image, now)


def test_reason_names_every_source_from_the_one_in_force_to_the_default():
    now = ManualClock().now()
    state = held(device(schedule=SCHEDULE), 40, now)
    why = explained(state, now, ProcessImage(loop_value=60.0))
    assert [(rung.decision.source, rung.decision.value) for rung in why.rungs] == [
        (Source.DIRECT, 40.0),
        (Source.CLOSED_LOOP, 60.0),
        (Source.SCHEDULE, 80.0),
        (Source.DEFAULT, 100.0),
    ]


def test_sentence_says_who_holds_the_device_until_when_and_who_would_without():
    now = ManualClock().now()
    state = held(device(schedule=SCHEDULE, bounds=(Bound("grid_operator", maximum=70.0),)), 40, now)
    assert sentence(explained(state, now)) == (
        "INVERTER_01 at 40 by direct request req-1-1, until 2026-03-02T10:01:00Z"
        "; under it schedule 80 (bounded to 70 by grid_operator) until 2026-03-02T10:30:00Z"
        "; under it default 100 (bounded to 70 by grid_operator)"
        "; bounds: device 0 to 100, grid_operator -inf to 70"
    )


def test_sentence_says_what_the_loop_says_and_what_the_connection_leaves():
    now = ManualClock().now()
    image = ProcessImage(
        loop_value=54.0,
        loop_because="loop GRID holds 40 kW of export at 90.8 kW of load",
        connection_bound=Bound("connection limit 40 kW", maximum=50.0),
    )
    assert sentence(explained(device(), now, image)) == (
        "INVERTER_01 at 50 by closed_loop (loop GRID holds 40 kW of export at 90.8 kW of load)"
        ", asked for 54, bounded by connection limit 40 kW"
        "; under it default 100 (bounded to 50 by connection limit 40 kW)"
        "; bounds: device 0 to 100, connection limit 40 kW -inf to 50"
    )
    under_a_request = sentence(explained(held(device(), 30, now), now, image))
    assert "at 30 by direct request req-1-1, until" in under_a_request
    assert "; under it closed_loop 54 (bounded to 50 by connection limit 40 kW)" in under_a_request


def test_default_holds_until_a_slot_with_a_value_of_its_own():
    now = ManualClock().now()
    assert sentence(explained(device(schedule=slots({"11:45": 30.0})), now)) == (
        "INVERTER_01 at 100 by default, until 2026-03-02T11:45:00Z; bounds: device 0 to 100"
    )
    assert "until" not in sentence(explained(device(), now))


def test_slot_kept_for_want_of_a_clock_has_the_default_under_it_and_ends_with_the_grace():
    clock = ManualClock()
    state, _ = decide(device(schedule=SCHEDULE), EMPTY, clock.now())
    image = ProcessImage(clock=Clock(untrusted_since_s=clock.now().boottime_s))
    why = explained(state, clock.advance(60), image)
    assert [rung.decision.source for rung in why.rungs] == [Source.SCHEDULE, Source.DEFAULT]
    assert why.in_force.until == A_MORNING + timedelta(minutes=15)
    assert why.rungs[1].until is None


def test_end_of_a_hold_is_the_reason_of_what_follows():
    clock = ManualClock()
    state = held(device(), 40, clock.now())
    assert explained(state, clock.now()).because == ""
    assert explained(state, clock.advance(61)).because == "request req-1-1 has ended: time_limit"


def test_hold_dropped_by_a_reboot_is_the_reason_until_its_fallback_is_confirmed():
    clock = ManualClock()
    state = resume(held(device(), 40, clock.now()), same_boot=False)
    assert isinstance(state.lapse, Lapse)
    assert explained(state, clock.reboot()).because == "request req-1-1 has ended: reboot"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"excluded": True},
            "INVERTER_01 is not controlled: it is excluded from curtailment, or measured only",
        ),
        ({"owned_by": "LOGGER_01"}, "INVERTER_01 is not controlled: LOGGER_01 controls it"),
    ],
)
def test_device_nobody_may_write_says_why(changes, said):
    why = explained(device(schedule=SCHEDULE, **changes), ManualClock().now())
    assert len(why.rungs) == 1
    assert sentence(why) == said


def test_value_on_its_ramp_says_where_it_leads_and_what_is_under_it_by_its_aim():
    clock = ManualClock()
    state, _ = settled(device(ramp_pct_per_min=60.0), clock.now(), ProcessImage(readback=100.0))
    state, _ = settled(held(state, 40, clock.now()), clock.now())
    why = explained(state, clock.advance(10))
    assert sentence(why).startswith(
        "INVERTER_01 at 89 by direct request req-1-1, on its ramp to 40, until 2026-03-02T10:01:00Z"
        "; under it default 100; bounds:"
    )


def test_device_that_leaves_says_what_is_still_owed_to_it_and_what_became_of_it():
    clock = ManualClock()
    state, _ = settled(held(device(), 40, clock.now()), clock.now())
    state = retire(state)
    assert explained(state, clock.now()).because == (
        "the device leaves this node's control, which takes back what it has put there"
    )
    gone = explained(state, clock.now(), ProcessImage(readback=100.0))
    assert gone.because == "the device left this node's control: back at its default"
    assert sentence(gone) == "INVERTER_01 is not controlled: it left this node"


def test_sentence_changes_with_nothing_but_the_reason():
    clock = ManualClock()
    state, first = decide(device(schedule=SCHEDULE), EMPTY, clock.now())
    before = sentence(reason(state, first, EMPTY, clock.now()))
    # Two slots of the same value are one reason; the next begins with another.
    assert sentence(explained(state, clock.advance(1200))) == before
    assert sentence(explained(state, clock.advance(600))) != before


def test_moment_beyond_the_calendar_is_no_moment():
    now = replace(ManualClock().now(), utc=datetime.max.replace(tzinfo=A_MORNING.tzinfo))
    state = held(device(schedule=SCHEDULE), 40, now)
    assert explained(state, now).in_force.until is None


# --- whatever the world does ----------------------------------------------------------------------


@given(at=our.admitted(), image=our.images)
def test_every_decision_has_a_reason_in_words(at, image):
    state, now = at
    state, decision = decide(state, image, now)
    why = reason(state, decision, image, now)
    assert why.in_force.decision == decision or decision.value is None
    assert sentence(why).startswith(f"{state.settings.tag} ")


@given(at=our.admitted(device_settings=our.settings(controlled=True)), image=our.images)
def test_each_source_appears_once_and_in_order_and_the_default_always(at, image):
    sources = [rung.decision.source for rung in explained(at[0], at[1], image).rungs]
    assert sources == sorted(set(sources))
    assert sources[-1] is Source.DEFAULT


@given(of=our.settings(controlled=True), image=our.images, clock_s=st.floats(0, 1e8))
def test_rung_below_a_hold_is_what_a_release_reveals(of, image, clock_s):
    now = ManualClock(boottime_s=clock_s).now()
    state = held(DeviceState(of, SCHEDULE), of.minimum, now)
    state, decision = decide(state, image, now)
    _, revealed = decide(replace(state, hold=None), image, now)
    below = reason(state, decision, image, now).rungs[1].decision
    assert (below.source, below.value) == (revealed.source, revealed.value)


@given(slots_set=st.dictionaries(our.slot_keys, st.sampled_from([20.0, 30.0])), utc=our.utcs)
def test_schedule_keeps_its_value_until_its_next_change_and_not_beyond(slots_set, utc):
    schedule = Schedule({utc.date(): slots_set}) if slots_set else NO_SCHEDULE
    until = next_change(schedule, utc)
    value = value_at(schedule, utc)
    step = timedelta(minutes=1)
    if until is not None:
        assert utc < until <= utc + HORIZON
        assert value_at(schedule, until) != value
    moment = utc
    # (The calendar's last day has no tomorrow.)
    while moment < min(until or datetime.max.replace(tzinfo=utc.tzinfo), _a_day_after(utc)) - step:
        moment += step
        assert value_at(schedule, moment) == value


def _a_day_after(utc: datetime) -> datetime:
    last = datetime.max.replace(tzinfo=utc.tzinfo)
    return utc + timedelta(hours=23, minutes=45) if utc <= last - HORIZON else last
