"""A device's life: requests, slots, settings, failures, restarts and retirements in any order."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date, timedelta

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge.core.arbitration import (
    HOLD_WRITES,
    Decision,
    DeviceSettings,
    DeviceState,
    Retirement,
    admit,
    contact_renewed,
    decide,
    reconfigure,
    release,
    resume,
    retire,
    spend,
    written,
)
from edge.core.commands import Refusal, Source, WriteClass
from edge.core.cyclic import WriteReason
from edge.core.events import FallbackEntered, FallbackReached, LapseCause, Retired, RetiredBecause
from edge.core.image import Clock, ProcessImage
from edge.core.instant import Instant
from edge.core.quantities import Bound, apply_bounds
from edge.core.schedule import Schedule, slot_key, value_at
from tests.clock import ManualClock
from tests.core.devices import INVERTER, request

LIMIT = "limit register"
# What floats lose over a day of steps.
ROUNDING = 1e-6


class DeviceLife(RuleBasedStateMachine):
    """One device and the plainest account of the rules beside it, compared after every step.

    The account knows one request with the moment of its arrival and the smallest limit since, one register
    and who wrote it last, what was written and never confirmed, the writes of the day, and where the ramp was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.state = DeviceState(INVERTER)
        self.decision: Decision | None = None
        self.register = 100.0
        self.in_reach = True
        self.loop: float | None = None
        self.untrusted_since_s: float | None = None
        self.sequence = 0
        self.request: tuple[float, float, float] | None = None  # value, received, limit
        self.owed_fallback = False
        self.has_left = False
        # The device has been read since this process, its session or its configuration began.
        self.is_met = False
        # What we may have left in the register: the last confirmed value and those written since.
        self.ours: set[float] = set()
        self.is_ours = False
        self.day: date | None = None
        self.written_today = 0
        self.written_ever = 0
        self.track: list[tuple[float, float]] = []

    # What the shell does each cycle: read, decide, and write with the given outcome.

    @property
    def settings(self) -> DeviceSettings:
        return self.state.settings

    @property
    def in_control(self) -> bool:
        return self.settings.is_controlled and not self.has_left

    def image(self, *, read: bool = True) -> ProcessImage:
        readable = read and self.in_reach and self.settings.readable
        return ProcessImage(
            readback=self.register if readable else None,
            loop_value=self.loop,
            clock=Clock(self.untrusted_since_s),
        )

    def bounded(self, wish: float) -> float:
        """The nearest allowed value, without a look at how the core finds it."""
        maxima = (self.settings.maximum, *(bound.maximum for bound in self.settings.bounds))
        return max(min(wish, *maxima), self.settings.minimum)

    def agrees(self, value: float) -> bool:
        return abs(self.register - value) <= self.settings.tolerance

    def cycle(self, *, read: bool = True, arrives: bool = True, answers: bool = True) -> None:
        """One turn. A write the device takes but never answers is one that `arrives` and not `answers`."""
        now, before, image = self.clock.now(), self.state, self.image(read=read)
        self.count_day(now)
        if image.readback is not None or (self.in_reach and not self.settings.readable):
            self.is_met = True
        self.state, decision = decide(self.state, image, now)
        self.decision = decision
        self.check_events(before, decision, image)
        self.check_ramp(before, decision, image, now)
        if before.in_force is None and decision.write is None and decision.value is not None and read:
            self.adopt(decision)
        if decision.write is None:
            return
        assert decision.value is not None
        self.check_write(before, decision, image)
        # The bus reads a device before it writes it.
        leaves = self.in_reach and self.is_met
        arrives = arrives and leaves
        if leaves:
            self.written_today += 1
            self.written_ever += 1
            self.state = spend(self.state, {LIMIT: 1, "enable": 3})
            self.ours.add(decision.value)
        if arrives:
            self.register = decision.value
            self.is_ours = True
        confirmed = arrives and answers
        self.state = written(self.state, decision.value, now, confirmed=confirmed)
        if confirmed:
            self.ours = {decision.value}
            if decision.value == decision.target:
                self.owed_fallback = False

    def adopt(self, decision: Decision) -> None:
        """The device was found to hold what it should: confirmed without a write."""
        if self.state.retirement is None and self.in_reach and self.settings.readable:
            assert decision.value is not None
            assert self.agrees(decision.value)
            self.ours = {decision.value}
            # Whoever wrote it: it stands there by our decision now.
            self.is_ours = True

    def count_day(self, now: Instant) -> None:
        today = now.utc.date()
        if self.untrusted_since_s is None:
            if self.day is None or today > self.day:
                self.written_today = 0
            if self.day is None or not timedelta(0) < self.day - today <= timedelta(days=1):
                self.day = today

    # What every decision is held against.

    def check_events(self, before: DeviceState, decision: Decision, image: ProcessImage) -> None:
        for each in decision.events:
            match each:
                case FallbackEntered():
                    assert self.request is not None
                    assert self.request_is_over if self.in_control else each.cause is LapseCause.EXCLUDED
                    self.request = None
                    self.owed_fallback = self.in_control
                case FallbackReached():
                    assert decision.write is None
                    assert decision.value == decision.target
                    assert self.owed_fallback
                    self.owed_fallback = False
                case Retired():
                    self.check_retired(before, each, image)
        if not self.in_control:
            self.owed_fallback = False

    def check_retired(self, before: DeviceState, event: Retired, image: ProcessImage) -> None:
        assert before.retirement is Retirement.OWED
        assert self.state.retirement is Retirement.DONE
        default = self.bounded(self.settings.default_value)
        is_back = self.agrees(default)
        match event.because:
            case RetiredBecause.BACK_AT_DEFAULT:
                # (A device nobody can read is believed when it says so.)
                assert is_back or not (self.is_ours and image.readback is not None)
            case RetiredBecause.NOT_OURS:
                assert image.readback is not None
                assert not self.is_ours
            case RetiredBecause.NEVER_WRITTEN:
                assert not self.ours
                assert not self.is_ours
        self.ours = set()
        self.is_ours = False

    def check_write(self, before: DeviceState, decision: Decision, image: ProcessImage) -> None:
        settings, in_force = before.settings, before.in_force
        assert decision.value is not None
        if decision.write is WriteReason.RETIRED:
            assert not self.in_control
            if image.readback is not None:
                assert not self.agrees(decision.value)
                # Never over what somebody else has put there, unless it cannot be told from ours.
                reach = settings.tolerance + ROUNDING
                assert self.is_ours or any(abs(self.register - value) <= reach for value in self.ours)
            return
        assert self.in_control
        if in_force is None or not in_force.confirmed or in_force.value != decision.value:
            # A change, a first contact, or something owed: nothing may withhold it.
            return
        assert settings.write_class is WriteClass.VOLATILE or (
            decision.write is WriteReason.DRIFTED
            and image.readback is not None
            and not self.agrees(in_force.value)
            and self.is_covered(HOLD_WRITES)
        )

    def is_covered(self, writes: int) -> bool:
        per_day = self.settings.writes_per_day
        return per_day is None or self.written_today + writes <= per_day

    def check_ramp(self, before: DeviceState, decision: Decision, image: ProcessImage, now: Instant) -> None:
        """Between any two decisions lies no more than the rate allows in that time and one second."""
        settings = self.settings
        if decision.value is None or not self.in_control:
            self.track = []
            return
        assert decision.target is not None
        wears = settings.write_class is WriteClass.PERSISTENT or (
            settings.write_class is WriteClass.UNKNOWN and not settings.accept_wear
        )
        if settings.ramp_pct_per_min is None or wears:
            assert decision.value == decision.target
            self.track = []
            return
        rate = settings.ramp_pct_per_min / 60
        if before.in_force is None and before.ramp is None:
            self.track = [] if image.readback is None else [(now.boottime_s, image.readback)]
        last = self.track[-1] if self.track else None
        if last is not None and self.bounded(last[1]) != last[1]:
            # A bound is obeyed at once, whatever the ramp; from there on it runs again.
            assert self.bounded(decision.value) == decision.value
            self.track = []
        for at_s, value in self.track:
            assert abs(decision.value - value) <= rate * (now.boottime_s - at_s + 1) + ROUNDING
        if last is not None and self.track and now.boottime_s - last[0] >= 1:
            # And it does move, the first step of a change included.
            least = min(rate, abs(decision.target - last[1]))
            assert abs(decision.value - last[1]) >= least - ROUNDING or decision.value == decision.target
        self.track = [*self.track[-20:], (now.boottime_s, decision.value)]

    @property
    def request_is_over(self) -> bool:
        assert self.request is not None
        _, received, limit = self.request
        return self.clock.now().boottime_s > received + limit

    def change_settings(self, settings: DeviceSettings) -> None:
        was_in_control = self.in_control
        self.state = reconfigure(self.state, settings)
        self.has_left = False
        if self.in_control and not was_in_control:
            self.is_met = False
        if was_in_control and not self.in_control:
            self.is_met = False
        if self.request is not None:
            value, received, limit = self.request
            self.request = (value, received, min(limit, settings.time_limit_s))

    # What happens.

    @initialize(
        write_class=st.sampled_from(WriteClass),
        accept_wear=st.booleans(),
        readable=st.sampled_from([True, True, False]),
        limit=st.sampled_from([1.0, 60.0, 3600.0]),
        ramp=st.sampled_from([None, 60.0, 600.0]),
        per_day=st.sampled_from([None, 2, 5]),
    )
    def commission(
        self,
        *,
        write_class: WriteClass,
        accept_wear: bool,
        readable: bool,
        limit: float,
        ramp: float | None,
        per_day: int | None,
    ) -> None:
        self.state = DeviceState(
            replace(
                INVERTER,
                write_class=write_class,
                accept_wear=accept_wear,
                readable=readable,
                time_limit_s=limit,
                default_value=90.0,
                ramp_pct_per_min=ramp,
                writes_per_day=per_day,
                budgeted=frozenset({LIMIT}),
            )
        )

    @rule(
        value=st.sampled_from([-1.0, 0.0, 30.0, 60.0, 90.0, 100.0, 101.0, math.nan]), back=st.integers(-2, 3)
    )
    def ask(self, value: float, back: int) -> None:
        self.sequence += max(back, 0)
        order = (1, self.sequence + min(back, 0))
        hold_s = self.settings.time_limit_s
        in_time = order > self.state.last_order
        renews = self.request is not None and self.bounded(self.request[0]) == self.bounded(value)
        after, refusal = admit(
            self.state, replace(request(value), order=order, hold_s=hold_s), self.clock.now()
        )
        if not self.in_control:
            assert refusal is Refusal.EXCLUDED
        elif not in_time:
            assert refusal is Refusal.SUPERSEDED
        elif not 0 <= value <= 100:
            assert refusal is Refusal.RANGE
        elif not renews and not self.is_covered(HOLD_WRITES):
            assert refusal is Refusal.WEAR
        else:
            assert refusal is None
            self.request = (value, self.clock.now().boottime_s, hold_s)
            self.owed_fallback = False
        self.state = after

    @precondition(lambda self: self.request is not None and self.in_control)
    @rule()
    def come_to_the_end_of_the_hold(self) -> None:
        self.cycle()
        if self.request is not None:
            _, received, limit = self.request
            self.clock.advance(max(received + limit - self.clock.now().boottime_s, 0.0))
            self.clock.advance(0.001)
        self.cycle()
        assert self.request is None

    @precondition(lambda self: self.request is not None and self.in_control)
    @rule()
    def renew(self) -> None:
        assert self.request is not None
        self.sequence += 1
        hold_s = self.settings.time_limit_s
        wish = replace(request(self.request[0]), order=(1, self.sequence), hold_s=hold_s)
        self.state, refusal = admit(self.state, wish, self.clock.now())
        # Whatever is left of the day.
        assert refusal is None
        self.request = (self.request[0], self.clock.now().boottime_s, hold_s)
        self.owed_fallback = False

    @precondition(lambda self: self.in_control)
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

    @rule(hours=st.sampled_from([-72, -24, -1, 1, 24, 72]))
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
                self.settings,
                time_limit_s=limit,
                default_value=default,
                bounds=bounds,
                excluded=excluded,
            )
        )

    @precondition(lambda self: self.in_control)
    @rule()
    def leave_the_configuration(self) -> None:
        self.state = retire(self.state)
        self.has_left = True
        self.is_met = False

    @precondition(lambda self: self.has_left)
    @rule()
    def come_back(self) -> None:
        self.change_settings(self.settings)

    @rule()
    def restart(self) -> None:
        self.state = resume(self.state, same_boot=True)
        self.is_met = False

    @rule()
    def reboot(self) -> None:
        self.state = resume(self.state, same_boot=False)
        self.clock.reboot()
        self.is_met = False
        self.track = []
        if self.request is not None:
            self.owed_fallback = True
        self.request = None
        if self.untrusted_since_s is not None:
            self.untrusted_since_s = 0.0

    @rule()
    def lose_the_device(self) -> None:
        self.in_reach = False

    @precondition(lambda self: not self.in_reach)
    @rule(restarted_at=st.sampled_from([None, 100.0]))
    def find_the_device_again(self, restarted_at: float | None) -> None:
        self.in_reach = self.is_met = True
        if restarted_at is not None:
            # It forgot what it was told.
            self.register, self.is_ours = restarted_at, False
        self.state = contact_renewed(self.state)

    @rule(value=st.sampled_from([0.0, 30.2, 75.0]))
    def somebody_else_writes(self, value: float) -> None:
        self.register, self.is_ours = value, False

    @rule()
    def reading_fails(self) -> None:
        self.cycle(read=False)

    @rule()
    def write_never_arrives(self) -> None:
        self.cycle(arrives=False)

    @rule(read=st.booleans())
    def write_arrives_but_its_answer_is_lost(self, read: bool) -> None:
        self.cycle(read=read, answers=False)

    @rule(seconds=st.sampled_from([0.0, 1.0, 1.001, 30.0, 61.0]))
    def all_goes_well(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.cycle()
        assert self.decision is not None
        value, write = self.decision.value, self.decision.write
        if not self.in_reach or value is None:
            return
        if write is not None or self.is_ours:
            # No budget, class or lifetime keeps the device from what is resolved.
            assert self.agrees(value) or not self.settings.readable
        if self.in_control and value == self.decision.target:
            assert self.state.lapse is None

    # What holds after every step.

    @invariant()
    def decision_is_what_the_rules_say(self) -> None:
        now = self.clock.now()
        after, decision = decide(self.state, self.image(), now)
        settings = self.settings
        if not self.in_control:
            if after.retirement is Retirement.OWED:
                expected = (self.bounded(settings.default_value), Source.DEFAULT)
                assert (decision.value, decision.source) == expected
                assert decision.write in (None, WriteReason.RETIRED)
            else:
                assert after.retirement is Retirement.DONE
                assert (decision.value, decision.write) == (None, None)
            return
        assert decision.value is not None
        assert settings.minimum <= decision.value <= settings.maximum
        assert self.bounded(decision.value) == decision.value
        wishes: list[tuple[Source, float]] = []
        if self.request is not None and not self.request_is_over:
            wishes.append((Source.DIRECT, self.request[0]))
        if self.loop is not None and math.isfinite(self.loop):
            wishes.append((Source.CLOSED_LOOP, self.loop))
        scheduled = value_at(self.state.schedule, now.utc)
        if scheduled is not None and self.untrusted_since_s is None:
            wishes.append((Source.SCHEDULE, scheduled))
        wishes.append((Source.DEFAULT, settings.default_value))
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
        assert decision.target == self.bounded(wish)
        assert decision.target == apply_bounds(wish, settings.bounds, device=settings.own_range).value

    @invariant()
    def fallback_stays_owed_until_the_device_confirms(self) -> None:
        assert (self.state.lapse is not None) == self.owed_fallback

    @invariant()
    def every_write_is_in_the_ledger(self) -> None:
        counted = self.state.ledger.registers.get(LIMIT)
        assert (counted.ever if counted is not None else 0) == self.written_ever
        assert self.state.spent_today == self.written_today


TestDeviceLife = DeviceLife.TestCase
