"""Rule 17: what a node believes of its clock; and the quarter hours of a year."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import example, given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge.core.arbitration import UNTRUSTED_CLOCK_GRACE_S, decide
from edge.core.clock import (
    CONFIRMED_FOR_S,
    DRIFT,
    HOLDOVER_S,
    MAX_ROUND_TRIP_S,
    PAIR_WITHIN_S,
    STAND_STILL_S,
    STEP_S,
    ClockState,
    Exchange,
    Look,
    Reference,
    Standing,
    Trust,
    exchanged,
    look,
    onwards,
    standing,
    utc_base,
)
from edge.core.commands import Source
from edge.core.image import Clock, ProcessImage
from edge.core.instant import Instant
from edge.core.schedule import Schedule, slot_end, slot_key
from tests.core.devices import device

BOOT = 1_772_445_600.0  # UTC at boot
HOUR, DAY = 3600.0, 86400.0


def seen(boottime_s: float, *, off_s: float = 0.0, kernel_error_s: float | None = None) -> Look:
    """The host's clocks, the wall clock wrong by `off_s`."""
    return Look(BOOT + boottime_s + off_s, boottime_s, kernel_error_s)


def exchange(
    boottime_s: float,
    *,
    up_s: float = 0.02,
    down_s: float = 0.02,
    wrong_s: float = 0.0,
    took_s: float = 0.001,
) -> Exchange:
    """A ping that arrives at this moment; `wrong_s`: how wrong central's own clock is."""
    return Exchange(
        sent_utc_s=BOOT + boottime_s - down_s + wrong_s,
        received_boottime_s=boottime_s,
        answered_boottime_s=boottime_s + took_s,
        heard_utc_s=BOOT + boottime_s + took_s + up_s + wrong_s,
    )


def told(state: ClockState, at: Look) -> Standing:
    return standing(look(state, at), at)


def synchronised(boottime_s: float = 100.0, *, error_s: float = 0.01) -> ClockState:
    return look(ClockState(), seen(boottime_s, kernel_error_s=error_s))


def after_exchanges(*exchanges: Exchange, off_s: float = 0.0, state: ClockState | None = None) -> ClockState:
    """What is known once these have been closed, on a host whose wall clock is wrong by `off_s`."""
    state = state or look(ClockState(), seen(exchanges[0].received_boottime_s, off_s=off_s))
    for each in exchanges:
        state = exchanged(state, each, seen(each.answered_boottime_s, off_s=off_s))
    return state


# --- the kernel ------------------------------------------------------------------------------------


def test_clock_is_unsynced_until_something_confirms_it_and_counts_from_the_first_look():
    state = look(ClockState(), seen(10))
    later = seen(500)
    assert told(state, later) == Standing(Trust.UNSYNCED, None, untrusted_since_s=10)


def test_kernel_that_is_synchronised_is_trusted_with_its_own_error():
    at = seen(100, kernel_error_s=0.25)
    assert told(ClockState(), at) == Standing(Trust.TRUSTED, 0.25)


@pytest.mark.parametrize("error_s", [math.nan, math.inf])
def test_kernel_that_cannot_say_how_wrong_it_is_confirms_nothing(error_s):
    assert told(ClockState(), seen(100, kernel_error_s=error_s)).trust is Trust.UNSYNCED


@pytest.mark.parametrize(
    ("after_s", "trust", "bound_s", "warns"),
    [
        (CONFIRMED_FOR_S, Trust.TRUSTED, 0.055, False),
        (CONFIRMED_FOR_S + 1, Trust.HOLDOVER, 0.05505, False),
        (DAY, Trust.HOLDOVER, 4.33, False),
        (6.9 * DAY, Trust.HOLDOVER, 29.818, False),
        (7 * DAY, Trust.HOLDOVER, 30.25, True),
        (HOLDOVER_S, Trust.HOLDOVER, 129.61, True),
        (HOLDOVER_S + 1, Trust.UNSYNCED, None, False),
    ],
)
def test_holdover_lasts_thirty_days_with_a_bound_that_grows_by_fifty_ppm(after_s, trust, bound_s, warns):
    found = told(synchronised(error_s=0.01), seen(100 + after_s))
    assert (found.trust, found.is_worth_a_warning) == (trust, warns)
    assert found.bound_s == (None if bound_s is None else pytest.approx(bound_s, abs=1e-5))


def test_kernel_that_loses_its_source_leaves_the_clock_in_holdover_and_one_that_finds_it_ends_that():
    state = look(synchronised(), seen(100 + 2 * HOUR))
    assert told(state, seen(100 + 2 * HOUR)).trust is Trust.HOLDOVER
    assert told(state, seen(100 + 3 * HOUR, kernel_error_s=0.02)) == Standing(Trust.TRUSTED, 0.02)


# --- steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("off_s", [-HOUR, -5.1, 5.1, HOUR, 20 * 365 * DAY])
def test_step_that_nothing_confirms_leads_to_unsynced(off_s):
    found = told(synchronised(), seen(200, off_s=off_s))
    assert found == Standing(Trust.UNSYNCED, None, untrusted_since_s=200)


@pytest.mark.parametrize("off_s", [-5.0, -1.0, 0.0, 1.0, 4.9])
def test_leap_second_or_a_small_correction_is_no_step(off_s):
    found = told(synchronised(), seen(200, off_s=off_s))
    assert found.trust is Trust.TRUSTED
    assert found.bound_s == pytest.approx(0.01 + 100 * DRIFT + abs(off_s))


def test_small_steps_add_up():
    state = synchronised()
    for number in range(1, 4):
        state = look(state, seen(100 + number, off_s=2.0 * number))
    assert state.untrusted_since_s == 103


def test_step_that_the_kernel_confirms_is_a_correction():
    found = told(synchronised(), seen(200, off_s=HOUR, kernel_error_s=0.02))
    assert found == Standing(Trust.TRUSTED, 0.02)


def test_wall_clock_that_comes_back_is_believed_again():
    state = look(synchronised(), seen(200, off_s=HOUR))
    assert told(state, seen(260)).trust is Trust.TRUSTED


def test_grace_is_not_renewed_by_further_steps():
    state = synchronised()
    for number in range(5):
        state = look(state, seen(200 + number, off_s=HOUR * (number + 1)))
    assert state.untrusted_since_s == 200


def test_utc_goes_on_over_a_step_that_nothing_confirms():
    at = seen(200, off_s=HOUR)
    state = look(synchronised(), at)
    assert utc_base(state, at) == BOOT


def test_step_is_healed_by_two_exchanges_after_it_not_by_one():
    state = after_exchanges(exchange(50), exchange(100))
    state = look(state, seen(110, off_s=HOUR))
    state = exchanged(state, exchange(120), seen(121, off_s=HOUR))
    assert standing(state, seen(121, off_s=HOUR)).trust is Trust.UNSYNCED

    state = exchanged(state, exchange(180), seen(181, off_s=HOUR))

    assert standing(state, seen(181, off_s=HOUR)).trust is Trust.TRUSTED


# --- exchanges -------------------------------------------------------------------------------------


def test_exchange_measures_the_offset_and_the_round_trip():
    one = exchange(100, up_s=0.03, down_s=0.01, took_s=0.5)
    assert one.delay_s == pytest.approx(0.04, abs=1e-6)
    assert one.base_s == pytest.approx(BOOT + 0.01, abs=1e-6)


def test_one_exchange_confirms_nothing_and_two_that_agree_do():
    state = after_exchanges(exchange(100))
    assert standing(state, seen(100)).trust is Trust.UNSYNCED

    state = after_exchanges(exchange(160), state=state)

    found = standing(state, seen(160))
    assert found.trust is Trust.TRUSTED
    assert found.bound_s == pytest.approx(0.03, abs=0.005)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (exchange(100), exchange(160, wrong_s=1)),  # central's clock was stepped
        (exchange(100, wrong_s=-HOUR), exchange(160)),
        (exchange(100), exchange(100 + PAIR_WITHIN_S + 1)),  # too long ago to vouch for this one
        (exchange(100), exchange(160, up_s=MAX_ROUND_TRIP_S)),  # too slow
        (exchange(100, down_s=600), exchange(160, down_s=600)),  # both held up for ten minutes
        (exchange(100), exchange(160, up_s=-0.5)),  # heard before it was answered
        (exchange(100), exchange(160, took_s=-1)),  # answered before it came
        (exchange(100), Exchange(math.nan, 160, 160, math.nan)),
    ],
)
def test_exchanges_that_disagree_or_cannot_be_confirm_nothing(first, second):
    state = after_exchanges(first, second)
    at = seen(max(second.answered_boottime_s, 160.0))
    assert told(state, at).trust is Trust.UNSYNCED


def test_one_odd_exchange_between_good_ones_does_no_harm():
    state = after_exchanges(exchange(0), exchange(60), exchange(120, wrong_s=HOUR))
    assert standing(state, seen(120)).trust is Trust.TRUSTED
    assert utc_base(state, seen(120)) == BOOT
    state = after_exchanges(exchange(180), exchange(240), state=state)
    assert state.reference is not None
    assert state.reference.at_boottime_s == exchange(240).answered_boottime_s


def test_wall_clock_that_exchanges_find_wrong_by_more_than_five_seconds_is_put_right():
    state = after_exchanges(exchange(100), exchange(160), off_s=-HOUR)
    at = seen(160, off_s=-HOUR)
    assert utc_base(state, at) == pytest.approx(BOOT, abs=0.03)
    found = standing(state, at)
    assert found.trust is Trust.TRUSTED
    assert found.bound_s == pytest.approx(0.03, abs=0.005)


def test_smaller_offset_stays_and_the_bound_says_so():
    state = after_exchanges(exchange(100), exchange(160), off_s=4)
    at = seen(160, off_s=4)
    assert utc_base(state, at) == BOOT + 4
    assert standing(state, at).bound_s == pytest.approx(4.03, abs=0.01)


def test_kernel_wins_over_exchanges():
    state = after_exchanges(exchange(100, wrong_s=HOUR), exchange(160, wrong_s=HOUR))
    at = seen(200, kernel_error_s=0.02)
    state = look(state, at)
    for moment in (220, 280):
        state = exchanged(state, exchange(moment, wrong_s=HOUR), seen(moment, kernel_error_s=0.02))
    assert utc_base(state, seen(300)) == BOOT
    assert standing(state, seen(280)).bound_s == pytest.approx(0.02, abs=1e-6)


def test_corrected_clock_is_known_again_after_a_restart_and_a_step_meanwhile_is_seen():
    reference = after_exchanges(exchange(100), exchange(160), off_s=-HOUR).reference
    resumed = ClockState(reference=reference)
    assert told(resumed, seen(300, off_s=-HOUR)).trust is Trust.TRUSTED
    assert told(resumed, seen(300, off_s=HOUR)).trust is Trust.UNSYNCED


paths = st.floats(0, 5)


@given(up_s=paths, down_s=paths, took_s=st.floats(0, 30))
@example(up_s=0.0, down_s=MAX_ROUND_TRIP_S, took_s=0.0)
def test_exchange_is_refused_or_right_within_its_error_however_slow_one_way_was(up_s, down_s, took_s):
    one = exchange(1000, up_s=up_s, down_s=down_s, took_s=took_s)
    assert one.is_usable == (up_s + down_s <= MAX_ROUND_TRIP_S) or math.isclose(
        up_s + down_s, MAX_ROUND_TRIP_S, abs_tol=1e-5
    )
    if one.is_usable:
        assert abs(one.base_s - BOOT) <= one.error_s


@given(st.data())
def test_honest_exchanges_always_agree_while_time_is_smeared_over_a_leap_second(data):
    """A second spread over a day is 11.6 ppm, well below what two crystals may differ by."""
    moments = sorted(data.draw(st.lists(st.floats(0, DAY), min_size=2, max_size=6, unique=True)))
    state = look(ClockState(), seen(0))
    agreed = 0
    for moment in moments:
        one = exchange(moment, up_s=data.draw(st.floats(0, 1)), down_s=data.draw(st.floats(0, 1)),
                       wrong_s=moment / DAY)  # fmt: skip
        before = state.candidate
        state = exchanged(state, one, seen(one.answered_boottime_s))
        if before is not None and moment - before.received_boottime_s <= PAIR_WITHIN_S:
            agreed += 1
            assert standing(state, seen(one.answered_boottime_s)).trust is Trust.TRUSTED
    assert (state.reference is not None) == bool(agreed)


class History(RuleBasedStateMachine):
    """Any history of confirmations, steps, restarts and lies of a slow path; central's clock is right."""

    @initialize(drift=st.floats(-DRIFT, DRIFT), off_s=st.sampled_from([0.0, 3.0, -8.0, HOUR, -10 * DAY]))
    def boot(self, drift: float, off_s: float) -> None:
        self.drift = drift  # of the boot-time clock, against UTC
        self.boottime_s = 10.0
        self.off_s = off_s
        self.kernel_error_s: float | None = None
        self.state = look(ClockState(), self.seen)
        self.told = onwards(-math.inf, self.utc_s)

    @property
    def true_base_s(self) -> float:
        return BOOT + self.drift * self.boottime_s

    @property
    def seen(self) -> Look:
        # The wall clock runs with the boot-time clock; only steps move it against that.
        return Look(BOOT + self.off_s + self.boottime_s, self.boottime_s, self.kernel_error_s)

    @property
    def utc_s(self) -> float:
        return utc_base(self.state, self.seen) + self.boottime_s

    @rule(seconds=st.sampled_from([0.0, 1.0, 60.0, 900.0, HOUR, DAY, 10 * DAY]))
    def time_passes(self, seconds: float) -> None:
        self.boottime_s += seconds
        if self.kernel_error_s is not None:
            # The kernel steers the clock while it is synchronised.
            self.off_s = self.true_base_s - BOOT
        self.state = look(self.state, self.seen)

    @rule(seconds=st.sampled_from([-DAY, -6.0, -2.0, 2.0, 6.0, HOUR]))
    def wall_is_stepped(self, seconds: float) -> None:
        self.off_s += seconds
        self.kernel_error_s = None
        self.state = look(self.state, self.seen)

    @rule(error_s=st.floats(0.001, 5))
    def kernel_is_synchronised(self, error_s: float) -> None:
        self.off_s = self.true_base_s - BOOT
        self.kernel_error_s = error_s
        self.state = look(self.state, self.seen)

    @rule()
    def kernel_loses_its_source(self) -> None:
        self.kernel_error_s = None
        self.state = look(self.state, self.seen)

    @rule(up_s=st.floats(0, 3), down_s=st.floats(0, 3))
    def exchange_with_central(self, up_s: float, down_s: float) -> None:
        at = self.boottime_s
        one = Exchange(self.true_base_s + at - down_s, at, at + 0.001, self.true_base_s + at + 0.001 + up_s)
        self.state = exchanged(self.state, one, self.seen)

    @rule()
    def process_restarts(self) -> None:
        self.state = look(ClockState(reference=self.state.reference), self.seen)

    @invariant()
    def what_is_trusted_is_right_within_its_bound(self) -> None:
        found = standing(self.state, self.seen)
        if found.bound_s is not None:
            wrong_s = abs(utc_base(self.state, self.seen) - self.true_base_s)
            assert wrong_s <= found.bound_s + 1e-3

    @invariant()
    def whoever_is_unsynced_knows_since_when(self) -> None:
        found = standing(self.state, self.seen)
        assert (found.trust is Trust.UNSYNCED) == (found.untrusted_since_s is not None)
        if found.untrusted_since_s is not None:
            assert found.untrusted_since_s <= self.boottime_s

    @invariant()
    def looking_again_changes_nothing(self) -> None:
        again = look(self.state, self.seen)
        assert standing(again, self.seen) == standing(self.state, self.seen)


TestHistory = History.TestCase


# --- what it means for a device ----------------------------------------------------------------------


def test_schedule_runs_on_in_holdover_and_ends_a_quarter_of_an_hour_after_a_step():
    start = datetime.fromtimestamp(BOOT, UTC)
    days = {
        (start + timedelta(days=day)).date(): {f"{n // 4:02d}:{n % 4 * 15:02d}": 40.0 for n in range(96)}
        for day in range(36)
    }
    unit = device(schedule=Schedule(days))
    state = synchronised()

    def source(at: Look) -> Source | None:
        nonlocal state, unit
        state = look(state, at)
        image = ProcessImage(clock=Clock(state.untrusted_since_s))
        utc = datetime.fromtimestamp(utc_base(state, at) + at.boottime_s, UTC)
        unit, decision = decide(unit, image, Instant(utc, at.boottime_s))
        return decision.source

    assert source(seen(29 * DAY)) is Source.SCHEDULE
    stepped = 29 * DAY + 60
    assert source(seen(stepped, off_s=HOUR)) is Source.SCHEDULE
    assert source(seen(stepped + UNTRUSTED_CLOCK_GRACE_S, off_s=HOUR)) is Source.SCHEDULE
    assert source(seen(stepped + UNTRUSTED_CLOCK_GRACE_S + 1, off_s=HOUR)) is Source.DEFAULT


@given(st.lists(st.floats(-4, 4), max_size=30))
def test_utc_never_goes_back_by_a_little(changes):
    utc_s, wall_s = BOOT, BOOT
    for change in changes:
        wall_s += max(change, utc_s - STAND_STILL_S - wall_s)
        before, utc_s = utc_s, onwards(utc_s, wall_s)
        assert utc_s >= before


def test_utc_goes_back_where_it_was_far_ahead():
    assert onwards(BOOT + HOUR, BOOT) == BOOT
    assert onwards(BOOT, BOOT + HOUR) == BOOT + HOUR
    assert onwards(BOOT + STEP_S, BOOT) == BOOT + STEP_S


def test_reference_is_no_less_certain_before_it_was_made():
    reference = Reference(BOOT, 0.5, BOOT, 100.0, "exchange")
    assert reference.error_at(90.0) == 0.5


# --- the quarter hours of a year ---------------------------------------------------------------------


def quarter(epoch_s: int) -> tuple[str, datetime]:
    """Another definition of slots, by the seconds since 1970: its key and its end."""
    number = epoch_s // 900
    minutes = number % 96 * 15
    return f"{minutes // 60:02d}:{minutes % 60:02d}", datetime.fromtimestamp((number + 1) * 900, UTC)


@pytest.mark.parametrize("year", [2026, 2028])
def test_every_quarter_hour_of_a_year_has_its_key_and_its_end(year):
    """Days of 23 and 25 hours, the leap day and the year's end are days of 96 slots like any other."""
    first = int(datetime(year, 1, 1, tzinfo=UTC).timestamp())
    last = int(datetime(year + 1, 1, 1, tzinfo=UTC).timestamp())
    by_day: dict[date, list[str]] = {}
    for start in range(first, last, 900):
        moment = datetime.fromtimestamp(start, UTC)
        by_day.setdefault(moment.date(), []).append(slot_key(moment))
        for inside in (start, start + 899):
            at = datetime.fromtimestamp(inside, UTC)
            assert (slot_key(at), slot_end(at)) == quarter(start)
    assert len(by_day) == (366 if year % 4 == 0 else 365)
    assert all(len(set(keys)) == len(keys) == 96 for keys in by_day.values())


@given(st.integers(0, 4_102_444_800), st.integers(0, 999_999))
@example(int(datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp()), 0)
@example(int(datetime(2026, 10, 25, 1, tzinfo=UTC).timestamp()) - 1, 999_999)
@example(int(datetime(2028, 2, 29, tzinfo=UTC).timestamp()), 0)
@example(int(datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()), 999_999)
def test_any_moment_lies_in_the_slot_that_counting_quarters_gives(epoch_s, microsecond):
    at = datetime.fromtimestamp(epoch_s, UTC).replace(microsecond=microsecond)
    assert (slot_key(at), slot_end(at)) == quarter(epoch_s)
