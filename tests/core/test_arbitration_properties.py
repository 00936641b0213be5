"""What holds of every decision, whatever the world does."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date, timedelta

from hypothesis import assume, event, example, given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge.core.arbitration import (
    Decision,
    DeviceSettings,
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
from edge.core.commands import BEFORE_ALL, Order, Refusal, Source, WriteClass
from edge.core.cyclic import WriteReason
from edge.core.events import FallbackEntered, FallbackReached
from edge.core.image import EMPTY, Clock, ProcessImage
from edge.core.instant import Instant
from edge.core.quantities import Bound, apply_bounds
from edge.core.schedule import Schedule, slot_key, value_at
from tests import strategies as our
from tests.clock import ManualClock
from tests.core.devices import INVERTER, device, request, slots

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
    for bound in device_settings.bounds:
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
    allowed = apply_bounds(value, state.settings.bounds, device=state.settings.own_range).value
    order = (state.last_order[0] + 1, 0)
    held, refusal = admit(state, replace(request(value), order=order), now)
    if refusal is None:
        _, decision = decide(held, image, now)
        assert (decision.source, decision.value) == (Source.DIRECT, allowed)
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
    if decision.write is not None:
        assert decision.write is WriteReason.FOUND


# --- a device's life ------------------------------------------------------------------------------


class DeviceLife(RuleBasedStateMachine):
    """Requests, slots, settings, restarts, failures and drift in any order, checked after every step.

    Beside the core stands the plainest account of the rules: one request with the moment of its arrival and
    the smallest limit since, one register, and the counts of what was written to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.state = DeviceState(INVERTER)
        self.decision: Decision | None = None
        self.register = 100.0
        self.readable = True
        self.loop: float | None = None
        self.untrusted_since_s: float | None = None
        self.sequence = 0
        self.request: tuple[float, float, float] | None = None  # value, received, limit
        self.owed_fallback = False

    # What the shell does each cycle: read, decide, and write with the given outcome.

    @property
    def image(self) -> ProcessImage:
        return ProcessImage(
            readback=self.register if self.readable else None,
            loop_value=self.loop,
            clock=Clock(self.untrusted_since_s),
        )

    def cycle(self, *, arrives: bool = True, answers: bool = True) -> None:
        now = self.clock.now()
        before = self.state
        self.state, decision = decide(self.state, self.image, now)
        self.decision = decision
        self.check_events(decision)
        if decision.write is None:
            return
        assert decision.value is not None
        self.check_wear(before, decision)
        if arrives:
            self.register = decision.value
        confirmed = arrives and answers
        self.state = written(self.state, decision.value, now, confirmed=confirmed)
        if confirmed:
            self.owed_fallback = False

    def check_events(self, decision: Decision) -> None:
        ended = [each for each in decision.events if isinstance(each, FallbackEntered)]
        if ended:
            assert self.request is not None
            assert self.request_is_over or not self.state.settings.is_controlled
            self.request = None
            self.owed_fallback = self.state.settings.is_controlled
        if any(isinstance(each, FallbackReached) for each in decision.events):
            assert decision.write is None
            assert self.owed_fallback
            self.owed_fallback = False
        if not self.state.settings.is_controlled:
            self.owed_fallback = False

    def check_wear(self, before: DeviceState, decision: Decision) -> None:
        in_force = before.in_force
        if before.settings.write_class is WriteClass.VOLATILE or in_force is None:
            return
        repeats = in_force.confirmed and in_force.value == decision.value
        agrees = not self.readable or abs(self.register - in_force.value) <= before.settings.tolerance
        assert not (repeats and agrees)

    @property
    def request_is_over(self) -> bool:
        assert self.request is not None
        _, received, limit = self.request
        return self.clock.now().boottime_s > received + limit

    def change_settings(self, settings: DeviceSettings) -> None:
        self.state = reconfigure(self.state, settings)
        if self.request is not None:
            value, received, limit = self.request
            self.request = (value, received, min(limit, settings.time_limit_s))

    # What happens.

    @initialize(write_class=st.sampled_from(WriteClass), limit=st.sampled_from([1.0, 60.0, 3600.0]))
    def commission(self, write_class: WriteClass, limit: float) -> None:
        self.state = DeviceState(
            replace(INVERTER, write_class=write_class, time_limit_s=limit, default_value=90.0)
        )

    @rule(
        value=st.sampled_from([-1.0, 0.0, 30.0, 60.0, 90.0, 100.0, 101.0, math.nan]), back=st.integers(-2, 3)
    )
    def ask(self, value: float, back: int) -> None:
        self.sequence += max(back, 0)
        order = (1, self.sequence + min(back, 0))
        hold_s = self.state.settings.time_limit_s
        in_time = order > self.state.last_order
        after, refusal = admit(
            self.state, replace(request(value), order=order, hold_s=hold_s), self.clock.now()
        )
        if not self.state.settings.is_controlled:
            assert refusal is Refusal.EXCLUDED
        elif not in_time:
            assert refusal is Refusal.SUPERSEDED
        elif not 0 <= value <= 100:
            assert refusal is Refusal.RANGE
        else:
            assert refusal is None
            self.request = (value, self.clock.now().boottime_s, hold_s)
            self.owed_fallback = False
        self.state = after

    @precondition(lambda self: self.request is not None and self.state.settings.is_controlled)
    @rule()
    def come_to_the_end_of_the_hold(self) -> None:
        self.cycle()
        if self.request is not None:
            _, received, limit = self.request
            self.clock.advance(max(received + limit - self.clock.now().boottime_s, 0.0))
            self.clock.advance(0.001)
        self.cycle()
        assert self.request is None

    @precondition(lambda self: self.request is not None and self.state.settings.is_controlled)
    @rule()
    def renew(self) -> None:
        assert self.request is not None
        self.sequence += 1
        hold_s = self.state.settings.time_limit_s
        wish = replace(request(self.request[0]), order=(1, self.sequence), hold_s=hold_s)
        self.state, refusal = admit(self.state, wish, self.clock.now())
        assert refusal is None
        self.request = (self.request[0], self.clock.now().boottime_s, hold_s)
        self.owed_fallback = False

    @precondition(lambda self: self.state.settings.is_controlled)
    @rule()
    def let_go(self) -> None:
        self.sequence += 1
        self.state, refusal = release(self.state, (1, self.sequence))
        assert refusal is None
        self.request = None

    @rule(seconds=st.one_of(st.floats(0.001, 30), st.sampled_from([59.999, 60.0, 300.0, 900.0, 3600.0])))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def reach_the_next_slot(self) -> None:
        utc = self.clock.now().utc
        self.clock.advance(900 - (utc.minute % 15 * 60 + utc.second + utc.microsecond / 1e6))

    @rule(hours=st.sampled_from([-24, -1, 1, 24]))
    def correct_the_wall_clock(self, hours: int) -> None:
        self.clock.jump_wall(hours * 3600)

    @rule(trusted=st.booleans())
    def judge_the_clock(self, trusted: bool) -> None:
        if trusted:
            self.untrusted_since_s = None
        elif self.untrusted_since_s is None:
            self.untrusted_since_s = self.clock.now().boottime_s

    @rule(now=st.sampled_from([None, 0.0, 45.0, 100.0, math.nan]), then=st.sampled_from([None, 20.0]))
    def plan(self, now: float | None, then: float | None) -> None:
        utc = self.clock.now().utc
        days: dict[date, dict[str, float]] = {}
        for moment, value in ((utc, now), (utc + timedelta(minutes=15), then)):
            if value is not None:
                days.setdefault(moment.date(), {})[slot_key(moment)] = value
        self.state = replace(self.state, schedule=Schedule(days))

    @rule(output=st.sampled_from([None, None, 50.0, math.nan]))
    def run_the_loop(self, output: float | None) -> None:
        self.loop = output

    @rule(
        limit=st.sampled_from([1.0, 30.0, 3600.0]),
        default=st.sampled_from([0.0, 90.0, 120.0]),
        bound=st.sampled_from([None, -5.0, 40.0]),
        excluded=st.sampled_from([False, False, True]),
    )
    def configure(self, limit: float, default: float, bound: float | None, excluded: bool) -> None:
        bounds = () if bound is None else (Bound("grid", maximum=bound),)
        self.change_settings(
            replace(
                self.state.settings,
                time_limit_s=limit,
                default_value=default,
                bounds=bounds,
                excluded=excluded,
            )
        )

    @rule()
    def restart(self) -> None:
        self.state = resume(self.state, same_boot=True)

    @rule()
    def reboot(self) -> None:
        self.state = resume(self.state, same_boot=False)
        self.clock.reboot()
        if self.request is not None:
            self.owed_fallback = True
        self.request = None
        if self.untrusted_since_s is not None:
            self.untrusted_since_s = 0.0

    @rule(readable=st.booleans())
    def lose_or_find_the_device(self, readable: bool) -> None:
        if readable and not self.readable:
            self.state = contact_renewed(self.state)
        self.readable = readable

    @rule(value=st.sampled_from([0.0, 30.2, 75.0]))
    def somebody_else_writes(self, value: float) -> None:
        self.register = value

    @rule()
    def write_never_arrives(self) -> None:
        self.cycle(arrives=False)

    @rule()
    def write_arrives_but_its_answer_is_lost(self) -> None:
        self.cycle(answers=False)

    @rule(seconds=st.sampled_from([0.0, 1.0, 1.001, 30.0, 61.0]))
    def all_goes_well(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.cycle()
        assert self.decision is not None
        if self.decision.write is not None:
            assert self.register == self.decision.value
        if self.decision.value is not None:
            assert self.state.lapse is None

    # What holds after every step.

    @invariant()
    def decision_is_what_the_rules_say(self) -> None:
        now = self.clock.now()
        device_settings = self.state.settings
        _, decision = decide(self.state, self.image, now)
        if not device_settings.is_controlled:
            assert (decision.value, decision.write) == (None, None)
            return
        assert decision.value is not None
        assert device_settings.minimum <= decision.value <= device_settings.maximum
        wishes: list[tuple[Source, float]] = []
        if self.request is not None and not self.request_is_over:
            wishes.append((Source.DIRECT, self.request[0]))
        if self.loop is not None and math.isfinite(self.loop):
            wishes.append((Source.CLOSED_LOOP, self.loop))
        scheduled = value_at(self.state.schedule, now.utc)
        if scheduled is not None and self.untrusted_since_s is None:
            wishes.append((Source.SCHEDULE, scheduled))
        wishes.append((Source.DEFAULT, device_settings.default_value))
        source, wish = wishes[0]
        if decision.source is Source.SCHEDULE and self.untrusted_since_s is not None:
            # The grace of an untrusted clock: what was in force stays, never longer than this.
            assert source is Source.DEFAULT
            assert now.boottime_s - self.untrusted_since_s <= 900
            assert self.state.resolved is not None
            wish = self.state.resolved[0]
        else:
            assert decision.source is source
        assert decision.wish == wish
        bounds = (device_settings.maximum, *(bound.maximum for bound in device_settings.bounds))
        assert decision.value == max(min(wish, *bounds), device_settings.minimum)

    @invariant()
    def fallback_stays_owed_until_the_device_confirms(self) -> None:
        assert (self.state.lapse is not None) == self.owed_fallback


TestDeviceLife = DeviceLife.TestCase
