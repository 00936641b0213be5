"""What holds of every decision, whatever the world does."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import assume, event, example, given, strategies as st

from edge.core.arbitration import (
    admit,
    bounds_of,
    decide,
    explain,
    reconfigure,
    release,
    resume,
    written,
)
from edge.core.commands import BEFORE_ALL, Order, Refusal, Source, WriteClass
from edge.core.cyclic import WriteReason
from edge.core.events import FallbackEntered
from edge.core.image import EMPTY, ProcessImage
from edge.core.instant import Instant
from edge.core.quantities import Bound, apply_bounds
from edge.core.schedule import value_at
from tests import strategies as our
from tests.clock import ManualClock
from tests.core.devices import device, request, slots

controlled = our.settings(controlled=True)


# --- one decision ---------------------------------------------------------------------------------


@given(at=our.admitted(), image=our.images)
def test_decide_answers_whatever_the_world_does(at, image):
    state, now = at
    after, decision = decide(state, image, now)
    assert after.settings == state.settings
    assert explain(decision)


@given(at=our.admitted(device_settings=controlled), image=our.images)
@example(
    at=(device(schedule=slots({"10:00": math.nan})), ManualClock().now()), image=EMPTY
)  # a NaN slot reached the device
@example(
    at=(device(minimum=10.0, bounds=(Bound("grid", maximum=5.0),)), ManualClock().now()), image=EMPTY
)  # 5 was sent to a device that cannot go below 10
def test_decision_is_within_the_devices_range_and_nobodys_maximum_is_exceeded(at, image):
    state, now = at
    _, decision = decide(state, image, now)
    device_settings = state.settings
    assert decision.value is not None
    assert device_settings.minimum <= decision.value <= device_settings.maximum
    for bound in bounds_of(device_settings, image):
        # Only a device that cannot go lower exceeds a maximum.
        assert decision.value <= max(bound.maximum, device_settings.minimum)


@given(at=our.admitted(), image=our.images)
def test_equal_arguments_give_equal_decisions(at, image):
    state, now = at
    again = (replace(state), replace(image), replace(now))
    assert repr(decide(state, image, now)) == repr(decide(*again))


@given(at=our.admitted(), image=our.images)
def test_second_look_at_the_same_world_changes_nothing(at, image):
    state, now = at
    state, first = decide(state, image, now)
    after, second = decide(state, image, now)
    assert after == state
    assert second == replace(first, events=())


@given(at=our.admitted(device_settings=controlled), image=our.images, value=our.percents, loop=our.percents)
def test_lower_source_never_beats_a_higher_one(at, image, value, loop):
    state, now = at
    allowed = apply_bounds(value, bounds_of(state.settings, image), device=state.settings.own_range).value
    order = (state.last_order[0] + 1, 0)
    held, refusal = admit(state, replace(request(value), order=order), now)
    if refusal is None:
        _, decision = decide(held, image, now)
        assert (decision.source, decision.target) == (Source.DIRECT, allowed)
    vacant, _ = release(state, order)
    with_loop = replace(image, loop_value=loop)
    _, decision = decide(vacant, with_loop, now)
    assert (decision.source, decision.wish) == (Source.CLOSED_LOOP, loop)
    _, decision = decide(vacant, ProcessImage(readback=image.readback), now)
    scheduled = value_at(state.schedule, now.utc)
    assert decision.source is (Source.DEFAULT if scheduled is None else Source.SCHEDULE)


@given(
    at=our.admitted(device_settings=controlled),
    share=st.floats(0, 1),
    hold_s=st.floats(0.001, 4000),
    later=st.floats(0, 5000),
    image=our.images,
)
def test_no_hold_outlives_its_limit(at, share, hold_s, later, image):
    state, now = at
    low, high = state.settings.minimum, state.settings.maximum
    wish = replace(
        request(min(low + share * (high - low), high), hold_s=hold_s), order=(state.last_order[0] + 1, 0)
    )
    state, refusal = admit(state, wish, now)
    assert refusal is None
    limit_s = min(hold_s, state.settings.time_limit_s)
    then = Instant(now.utc, now.boottime_s + later)
    state, decision = decide(state, image, then)
    event("lapsed" if state.hold is None else "holds")
    if then.boottime_s > now.boottime_s + limit_s:
        assert state.hold is None
        assert decision.source is not Source.DIRECT
        assert any(isinstance(event, FallbackEntered) for event in decision.events)
    else:
        assert decision.source is Source.DIRECT


@given(at=our.admitted(device_settings=controlled), limits=st.lists(our.time_limits, min_size=1, max_size=4))
def test_new_limit_never_lengthens_a_hold(at, limits):
    state, now = at
    wish = replace(request(state.settings.minimum, hold_s=3600.0), order=(state.last_order[0] + 1, 0))
    state, refusal = admit(state, wish, now)
    assert refusal is None
    for limit in limits:
        before = state.hold
        state = reconfigure(state, replace(state.settings, time_limit_s=limit))
        assert before is not None
        assert state.hold is not None
        assert state.hold.ends_boottime_s <= before.ends_boottime_s
        assert state.hold.ends_boottime_s <= before.received_boottime_s + limit


@given(at=our.admitted(device_settings=controlled), requests=st.lists(our.requests, min_size=2, max_size=6))
def test_order_wins_over_arrival(at, requests):
    state, now = at
    state = replace(state, hold=None, last_order=BEFORE_ALL)
    best: Order | None = None
    for wish in requests:
        state, refusal = admit(state, wish, now)
        if refusal is None:
            assert best is None or wish.order > best
            best = wish.order
        elif refusal is Refusal.SUPERSEDED:
            assert wish.order <= state.last_order
    assert (state.hold.order if state.hold is not None else None) == best


@given(at=our.admitted(), request=our.requests)
def test_refused_request_leaves_the_device_as_it_was(at, request):
    state, now = at
    after, refusal = admit(state, request, now)
    event(str(refusal))
    if refusal is not None:
        assert after == state


@given(at=our.admitted(device_settings=controlled), image=our.images)
def test_release_empties_the_slot_and_older_requests_stay_out(at, image):
    state, now = at
    order = (state.last_order[0], state.last_order[1] + 1)
    state, refusal = release(state, order)
    assert refusal is None
    after, decision = decide(state, image, now)
    assert after.hold is None
    assert decision.source is not Source.DIRECT
    late = replace(request(state.settings.minimum), order=order)
    assert admit(after, late, now)[1] is Refusal.SUPERSEDED


@given(at=our.admitted(device_settings=our.settings(controlled=False)), image=our.images)
def test_device_nobody_may_write_never_gets_a_value_or_a_write(at, image):
    state, now = at
    _, decision = decide(state, image, now)
    assert (decision.value, decision.write) == (None, None)


@given(
    at=our.admitted(device_settings=controlled),
    image=our.images,
    write_class=st.sampled_from([WriteClass.PERSISTENT, WriteClass.UNKNOWN]),
    off=st.floats(-1, 1),
    later=st.floats(0, 1e7),
)
def test_register_that_wears_is_not_written_to_repeat_what_it_holds(at, image, write_class, off, later):
    state, now = at
    state = reconfigure(state, replace(state.settings, write_class=write_class))
    state, decision = decide(state, image, now)
    assert decision.value is not None
    state = written(state, decision.value, now, confirmed=True)
    readback = decision.value + off * state.settings.tolerance
    assume(abs(readback - decision.value) <= state.settings.tolerance)
    then = Instant(now.utc, now.boottime_s + later)
    _, again = decide(state, replace(image, readback=readback), then)
    assert again.write is (None if again.value == decision.value else WriteReason.CHANGED)


@given(at=our.admitted(), image=our.images, same_boot=st.booleans())
def test_restart_knows_nothing_of_the_device_and_all_of_the_orders(at, image, same_boot):
    state, now = at
    after = resume(state, same_boot=same_boot)
    assert (after.in_force, after.last_order) == (None, state.last_order)
    assert after.hold == (state.hold if same_boot else None)
    _, decision = decide(after, image, now)
    # A persistent register that nobody can read keeps what it confirmed.
    kept = state.settings.write_class is WriteClass.PERSISTENT and not state.settings.readable
    assert decision.write in {None, WriteReason.FOUND, WriteReason.CHANGED if kept else None}
