"""How members follow is found out from normal operation, and which of them do not follow at all."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings as looks, strategies as st

from edge.core import identification
from edge.core.closed_loop import (
    Because,
    Dynamics,
    LoopImage,
    LoopSettings,
    LoopState,
    Member,
    MemberImage,
    Sample,
    begin,
    reconfigure,
    step,
    unresponsive,
)
from edge.core.identification import Finding, Watched, asked, estimate, learn, observe, remembered
from tests.core.loop_plant import Nature, Site
from tests.strategies import any_number

STEP_S = 0.1


@dataclass
class Inverter:
    """A member of some nature, read once a second with noise, and what is found out about it."""

    nature: Nature
    gain: float = 1.0
    noise_pct: float = 0.0
    seed: int = 0
    every_s: float = 1.0
    sun: Callable[[float], float] = lambda _: 100.0
    command: float = 100.0
    now_s: float = 0.0
    watched: Watched = field(default_factory=Watched)
    experiments: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.goal = self.power = self.given(self.command)
        self.read_due_s = self.chance.random()
        self.under_way: list[tuple[float, float]] = []
        self.watched = asked(self.watched, self.command, at_s=0.0)

    def given(self, command: float) -> float:
        return self.gain * command + self.nature.bias_pct * (command > 0)

    def ask(self, command: float) -> None:
        self.command = command
        self.watched = asked(self.watched, command, at_s=self.now_s)
        self.under_way.append((self.now_s + self.nature.dead_time_s, self.given(command)))

    def run(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            while self.under_way and self.under_way[0][0] <= self.now_s:
                self.goal = self.under_way.pop(0)[1]
            most = self.nature.ramp_pct_per_s * STEP_S
            end = min(self.goal, self.sun(self.now_s))
            change = (end - self.power) * (1 - math.exp(-STEP_S / self.nature.lag_s))
            self.power = min(self.power + min(max(change, -most), most), self.sun(self.now_s))
            self.now_s += STEP_S
            if self.now_s >= self.read_due_s:
                self.read_due_s += self.every_s
                self.read()

    def read(self) -> None:
        power = self.power + self.chance.gauss(0.0, self.noise_pct)
        watched = observe(self.watched, power, at_s=self.now_s)
        self.experiments += watched.experiment is not None
        self.watched = learn(watched)

    def steps(self, count: int, *, rest_s: float = 60.0) -> Dynamics:
        self.run(10.0)
        for _ in range(count):
            values = [value for value in range(10, 101, 5) if abs(value - self.command) >= 30]
            self.ask(float(self.chance.choice(values)))
            self.run(rest_s + self.chance.random())
        return estimate(self.watched)

    def down_and_up(self, count: int) -> Dynamics:
        """Two steps down and one up, so that a member is held back by its command before a fall."""
        self.run(10.0)
        for _ in range(count):
            for value in (65.0, 30.0, 100.0):
                self.ask(value)
                self.run(40.0)
        return estimate(self.watched)


# --- what is found out ------------------------------------------------------------------------------


natures = st.builds(
    Nature,
    dead_time_s=st.floats(1.0, 8.0),
    lag_s=st.floats(1.0, 5.0),
    ramp_pct_per_s=st.floats(4.0, 10.0),
    bias_pct=st.floats(-4.0, 4.0),
)


@given(natures, st.floats(0.0, 0.5), st.integers(0, 10**6))
@looks(max_examples=10)
def test_dead_time_and_time_to_follow_are_found_within_30_percent(nature, noise, seed):
    inverter = Inverter(nature, noise_pct=noise, seed=seed)
    found = inverter.steps(20, rest_s=75.0)
    # Readings are a second apart: less than that is hard to tell where the ramp is slow.
    assert found.dead_time_s == pytest.approx(nature.dead_time_s, rel=0.3, abs=0.75)
    # Lag and ramp can stand for each other; what a step of 40 % takes in all does not depend on which it is.
    taken, truth = (
        one.dead_time_s + one.lag_s + max(40.0 / one.ramp_pct_per_s - one.lag_s, 0.0)
        for one in (found, nature)
    )
    assert taken == pytest.approx(truth, rel=0.3, abs=0.5)


@given(st.floats(2.0, 8.0), st.floats(0.3, 1.0), st.floats(0.0, 0.5), st.integers(0, 10**6))
@looks(max_examples=10)
def test_ramp_that_shows_is_found_within_30_percent(ramp, lag, noise, seed):
    nature = Nature(dead_time_s=1.0, lag_s=lag, ramp_pct_per_s=ramp)
    found = Inverter(nature, noise_pct=noise, seed=seed).steps(20)
    assert found.ramp_pct_per_s == pytest.approx(ramp, rel=0.3)


@given(st.floats(1.5, 8.0), st.floats(0.0, 0.5), st.integers(0, 10**6))
@looks(max_examples=10)
def test_lag_that_shows_is_found_within_30_percent(lag, noise, seed):
    nature = Nature(dead_time_s=1.0, lag_s=lag, ramp_pct_per_s=150.0)
    found = Inverter(nature, noise_pct=noise, seed=seed).steps(20)
    assert found.lag_s == pytest.approx(lag, rel=0.3)


@pytest.mark.parametrize("gain", [0.94, 1.0, 1.05])
@pytest.mark.parametrize("bias", [-3.0, 0.0, 3.0])
def test_gain_is_the_slope_of_power_over_command_whatever_is_added_to_both(gain, bias):
    inverter = Inverter(Nature(bias_pct=bias), gain=gain, noise_pct=0.2)
    assert inverter.down_and_up(12).gain == pytest.approx(gain, abs=0.015)


def test_nothing_is_believed_of_fewer_than_three_experiments_and_then_in_small_steps():
    inverter = Inverter(Nature(dead_time_s=6.0))
    assert inverter.steps(2) == Dynamics()
    assert inverter.experiments == 2
    found = inverter.steps(1)
    assert inverter.experiments == 3
    assert 1.0 < found.dead_time_s <= 1.2 + 1e-9


def test_one_strange_experiment_changes_little():
    inverter = Inverter(Nature(dead_time_s=2.0))
    before = inverter.steps(12)
    inverter.nature = Nature(dead_time_s=12.0)
    assert inverter.steps(1).dead_time_s == pytest.approx(before.dead_time_s, rel=0.05)


def test_member_that_becomes_slower_is_learned_anew():
    inverter = Inverter(Nature(dead_time_s=1.0, ramp_pct_per_s=20.0))
    inverter.steps(10)
    inverter.nature = Nature(dead_time_s=4.0, ramp_pct_per_s=5.0)
    found = inverter.steps(25)
    assert found.dead_time_s == pytest.approx(4.0, rel=0.3)
    assert found.ramp_pct_per_s == pytest.approx(5.0, rel=0.3)


def test_commands_that_follow_each_other_closely_are_one_experiment():
    inverter = Inverter(Nature(dead_time_s=3.0, ramp_pct_per_s=5.0))
    inverter.run(10.0)
    for _ in range(15):
        for value in (70.0, 45.0, 40.0):
            inverter.ask(value)
            inverter.run(1.0)
        inverter.run(50.0)
        inverter.ask(100.0)
        inverter.run(50.0)
    found = estimate(inverter.watched)
    assert inverter.experiments == 30
    assert found.dead_time_s == pytest.approx(3.0, rel=0.3)
    assert found.ramp_pct_per_s == pytest.approx(5.0, rel=0.3)


# --- what is no experiment --------------------------------------------------------------------------


def test_sun_that_holds_a_member_back_before_a_fall_tells_nothing_of_its_gain():
    inverter = Inverter(Nature(), sun=lambda _: 96.0)
    found = inverter.down_and_up(12)
    assert inverter.experiments >= 12
    assert found.gain == pytest.approx(1.0, abs=0.01)


def test_sun_that_falls_between_two_steps_is_not_taken_for_a_gain():
    # While it is asked for 65 %, it comes to give 60 by its sun alone.
    inverter = Inverter(Nature(), sun=lambda at_s: 60.0 if at_s % 120.0 > 30.0 else 100.0)
    assert inverter.down_and_up(12).gain == 1.0


def test_member_whose_sun_is_missing_makes_no_experiment():
    inverter = Inverter(Nature(), sun=lambda _: 15.0)
    inverter.steps(20)
    assert inverter.experiments == 0
    assert estimate(inverter.watched) == Dynamics()


def test_power_through_which_no_model_goes_is_no_finding():
    inverter = Inverter(Nature(), sun=lambda at_s: 100.0 if at_s % 40.0 < 21.0 or at_s % 40.0 > 23.0 else 5.0)
    for _ in range(6):
        inverter.run(20.0 - inverter.now_s % 20.0)
        inverter.ask(100.0 if inverter.command == 60.0 else 60.0)
        inverter.run(20.0)
    assert all(finding.dead_time_s < 5.0 for finding in inverter.watched.findings)


def test_member_that_never_moves_makes_no_experiment_and_is_not_waited_for():
    inverter = Inverter(Nature())
    inverter.run(10.0)
    inverter.watched = asked(inverter.watched, 30.0, at_s=inverter.now_s)
    inverter.run(identification.LONGEST_S + 10.0)
    assert inverter.watched.step is None
    assert inverter.experiments == 0


def test_member_that_is_asked_for_something_else_all_the_time_makes_no_experiment():
    inverter = Inverter(Nature())
    for _ in range(300):
        inverter.ask(30.0 + 50.0 * inverter.chance.random())
        inverter.run(1.0)
    assert inverter.experiments == 0
    assert estimate(inverter.watched) == Dynamics()


def test_step_while_a_member_moves_by_itself_is_no_experiment():
    inverter = Inverter(Nature(), sun=lambda at_s: 50.0 + 40.0 * math.sin(at_s / 3.0))
    inverter.run(20.0)
    inverter.ask(20.0)
    assert inverter.watched.step is None


def test_burst_of_commands_ends_an_experiment():
    inverter = Inverter(Nature())
    inverter.run(10.0)
    for number in range(identification.MOST_COMMANDS + 5):
        inverter.ask(40.0 + number % 2)
    assert inverter.watched.step is not None
    inverter.run(2.0)
    assert inverter.watched.step is None


def test_experiment_from_the_sun_down_is_none_where_the_member_moves_by_a_little_only():
    inverter = Inverter(Nature(), sun=lambda _: 33.0)
    inverter.run(10.0)
    inverter.ask(30.0)
    inverter.run(30.0)
    assert inverter.experiments == 0
    assert inverter.watched.step is None


# --- whatever comes ---------------------------------------------------------------------------------


words = st.one_of(
    st.tuples(st.just(asked), any_number | st.floats(0, 100), any_number | st.floats(0, 1000)),
    st.tuples(st.just(observe), any_number | st.floats(0, 100), any_number | st.floats(0, 1000)),
)


def is_bounded(watched: Watched) -> bool:
    return (
        len(watched.asked) <= identification.MOST_COMMANDS + 1
        and len(watched.read) <= identification.MOST_READINGS
        and len(watched.findings) <= identification.MOST_FINDINGS
    )


def is_believable(dynamics: Dynamics) -> bool:
    return all(
        least <= value <= most
        for value, (least, most) in (
            (dynamics.dead_time_s, identification.DEAD_TIME_S),
            (dynamics.lag_s, identification.LAG_S),
            (dynamics.ramp_pct_per_s, identification.RAMP_PCT_PER_S),
            (dynamics.gain, identification.GAIN),
        )
    )


@given(st.lists(words, max_size=60))
def test_whatever_is_told_nothing_is_raised_and_all_stays_bounded(course):
    watched = Watched()
    for hear, value, at_s in course:
        watched = learn(hear(watched, value, at_s=at_s))
        assert is_bounded(watched)
        assert is_believable(estimate(watched))


@given(
    st.lists(
        st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 120.0), st.floats(0.01, 5.0)), min_size=1, max_size=12
    ),
    st.integers(0, 10**6),
)
@looks(max_examples=30)
def test_whatever_the_commands_and_the_sun_what_is_believed_is_bounded(course, seed):
    chance = random.Random(seed)
    watched, at_s = Watched(), 0.0
    for value, sun, every_s in course:
        watched = asked(watched, value, at_s=at_s)
        for _ in range(200):
            at_s += every_s
            watched = learn(observe(watched, min(value, sun) + chance.gauss(0.0, 0.4), at_s=at_s))
            assert is_bounded(watched)
    assert is_believable(estimate(watched))


def test_same_course_leads_to_the_same_belief():
    def found() -> Watched:
        inverter = Inverter(Nature(dead_time_s=2.5), noise_pct=0.4)
        inverter.steps(8)
        return inverter.watched

    assert found() == found()


def test_reading_of_the_past_or_of_the_same_moment_is_not_heard():
    watched = observe(asked(Watched(), 50.0, at_s=10.0), 50.0, at_s=10.0)
    assert observe(watched, 20.0, at_s=9.0) == watched
    assert observe(watched, 20.0, at_s=10.0) == watched
    assert asked(watched, 20.0, at_s=9.0) == watched
    assert asked(watched, 50.0, at_s=20.0) == watched


POSSIBLE = Finding(2.0, 3.0, 10.0, 1.02)


def test_what_was_kept_is_gone_on_from_with_the_newest_findings():
    dynamics = Dynamics(2.0, 3.0, 10.0, 1.02)
    older = Finding(1.0, 1.0, 20.0)
    watched = remembered(dynamics, [older] * 5 + [POSSIBLE] * identification.MOST_FINDINGS)
    assert watched is not None
    assert estimate(watched) == dynamics
    assert watched.findings == (POSSIBLE,) * identification.MOST_FINDINGS


@pytest.mark.parametrize(
    "changes",
    [
        {"dead_time_s": 1e5},
        {"lag_s": 0.0},
        {"ramp_pct_per_s": 0.1},
        {"ramp_pct_per_s": math.nan},
        {"gain": 2.0},
        {"gain": 0.0},
    ],
)
def test_what_no_member_can_be_like_is_not_gone_on_from(changes):
    assert remembered(Dynamics(), [POSSIBLE, replace(POSSIBLE, **changes)]) is None


# --- given to the loop ------------------------------------------------------------------------------


MEMBERS = (Member("a", 60), Member("b", 60), Member("c", 30))
SETTINGS = LoopSettings("GRID", MEMBERS)


def told(site: Site, dynamics: Dynamics) -> None:
    members = tuple(replace(member, dynamics=dynamics) for member in site.settings.members)
    site.settings = replace(site.settings, members=members)
    site.state = reconfigure(site.state, site.settings)


@given(
    st.floats(*identification.DEAD_TIME_S),
    st.floats(*identification.LAG_S),
    st.floats(*identification.RAMP_PCT_PER_S),
    st.floats(*identification.GAIN),
)
@looks(max_examples=20)
def test_what_is_learned_is_given_to_a_loop_without_a_bump(dead_time, lag, ramp, gain):
    site = Site(SETTINGS)
    site.run(until_s=40.0)
    before = dict(site.values)
    told(site, Dynamics(dead_time, lag, ramp, gain))
    site.step()
    assert site.values == before


def reasons(site: Site, *, until_s: float) -> set[Because]:
    found = set()
    while site.now_s < until_s:
        site.run(until_s=site.now_s + 0.5)
        assert site.output is not None
        found.add(site.output.reason)
    return found


SLOW = Dynamics(dead_time_s=8.0, lag_s=2.0, ramp_pct_per_s=5.0)
SLOW_NATURE = Nature(dead_time_s=8.0, lag_s=2.0, ramp_pct_per_s=5.0)


@pytest.mark.parametrize(("dynamics", "is_taken_for_shaded"), [(Dynamics(), True), (SLOW, False)])
def test_member_known_to_wait_is_not_taken_for_shaded_meanwhile(dynamics, is_taken_for_shaded):
    site = Site(SETTINGS, natures=dict.fromkeys("abc", SLOW_NATURE))
    told(site, dynamics)
    site.run(until_s=40.0)
    site.setpoint_kw = 80.0
    assert (Because.MEMBERS_LACK in reasons(site, until_s=90.0)) is is_taken_for_shaded


@pytest.mark.parametrize(("gain", "is_taken_for_shaded"), [(1.0, True), (0.94, False)])
def test_member_known_to_give_less_than_asked_is_not_taken_for_shaded(gain, is_taken_for_shaded):
    site = Site(SETTINGS, value=80.0, setpoint_kw=85.0, natures=dict.fromkeys("abc", Nature(bias_pct=-4.5)))
    told(site, Dynamics(gain=gain))
    assert (Because.MEMBERS_LACK in reasons(site, until_s=40.0)) is is_taken_for_shaded


@pytest.mark.parametrize("dynamics", [Dynamics(), SLOW])
def test_member_that_gives_too_much_is_lowered_by_and_by_however_slow_it_is_known_to_be(dynamics):
    site = Site(SETTINGS)
    told(site, dynamics)
    site.run(until_s=40.0)
    site.natures = dict.fromkeys("abc", Nature(bias_pct=4.0))
    site.setpoint_kw = 20.0
    site.run(until_s=55.0)
    assert site.output is not None
    assert site.output.trim_kw < -4.0


# --- members that do not follow ---------------------------------------------------------------------


suns = st.lists(st.tuples(st.floats(0, 250), st.floats(0, 100)), max_size=8)


def course_of(steps: list[tuple[float, float]]) -> Callable[[str, float], float]:
    ordered = sorted(steps)

    def sun(_: str, at_s: float) -> float:
        passed = [value for moment, value in ordered if moment <= at_s]
        return passed[-1] if passed else 100.0

    return sun


def ever_unresponsive(site: Site, *, until_s: float) -> set[str]:
    found: set[str] = set()
    while site.now_s < until_s:
        site.run(until_s=site.now_s + 1.0)
        found |= unresponsive(site.state)
    return found


@given(
    suns,
    st.builds(
        Nature,
        dead_time_s=st.floats(0.2, 8.0),
        lag_s=st.floats(0.2, 8.0),
        ramp_pct_per_s=st.floats(0.5, 100.0),
        bias_pct=st.floats(-4.0, 4.0),
    ),
    st.floats(-20.0, 90.0),
    st.floats(-20.0, 90.0),
)
@looks(max_examples=25)
def test_no_sun_and_no_slowness_makes_a_member_unresponsive(steps, nature, first, second):
    site = Site(SETTINGS, sun=course_of(steps), natures=dict.fromkeys(("a", "b", "c"), nature))
    site.load = lambda at_s: first if at_s < 100 else second
    assert ever_unresponsive(site, until_s=250.0) == set()


class Stuck(Site):
    """A site whose member `a` gives what its sun allows, whatever it is asked for."""

    is_stuck = True

    def _move(self) -> None:
        super()._move()
        if self.is_stuck:
            self.powers["a"] = self.sun("a", self.now_s)


@given(st.floats(70.0, 100.0), st.lists(st.floats(20.0, 60.0), min_size=6, max_size=6))
@looks(max_examples=20)
def test_member_stuck_at_full_power_is_always_found(sun, loads):
    site = Stuck(SETTINGS, sun=lambda *_: sun)
    site.load = lambda at_s: loads[int(at_s // 30) % 6]
    assert ever_unresponsive(site, until_s=180.0) == {"a"}


@pytest.mark.parametrize(("too_much", "is_found"), [(4.0, False), (10.0, True), (20.0, True), (30.0, True)])
def test_member_for_which_the_others_make_room_is_told_of_beyond_what_members_are_inexact(too_much, is_found):
    site = Site(SETTINGS, natures={"a": Nature(bias_pct=too_much)})
    assert ever_unresponsive(site, until_s=120.0) == ({"a"} if is_found else set())
    # In either case its trim takes up what it gives too much, and the limit is held.
    assert site.export_kw <= site.setpoint_kw + 1.0
    assert unresponsive(site.state) == ({"a"} if is_found else set())


def test_member_under_passing_clouds_that_does_not_obey_is_found():
    site = Stuck(SETTINGS, sun=lambda tag, at_s: 85.0 + 10.0 * math.sin(at_s / 3.0) if tag == "a" else 100.0)
    assert ever_unresponsive(site, until_s=300.0) == {"a"}


def test_plain_pid_finds_a_stuck_member_too():
    site = Stuck(replace(SETTINGS, feed_forward=False))
    assert ever_unresponsive(site, until_s=120.0) == {"a"}


def test_stuck_member_that_a_direct_request_holds_is_found_too():
    site = Stuck(SETTINGS, direct={"a": 30.0})
    assert ever_unresponsive(site, until_s=120.0) == {"a"}


def test_member_that_follows_again_is_found_to_do_so_at_once():
    site = Stuck(SETTINGS)
    site.run(until_s=120.0)
    assert unresponsive(site.state) == {"a"}
    site.is_stuck = False
    site.run(until_s=130.0)
    assert unresponsive(site.state) == frozenset()


BATTERY = Member("store", 50, minimum=-100, is_storage=True)


def shown(
    power: float, value: float, *, state: LoopState, at_s: float, is_available: bool = True
) -> LoopState:
    picture = LoopImage(
        Sample(at_s, 0.0, {"store": power}),
        0.0,
        {"store": MemberImage(value=value, is_held=True, is_available=is_available)},
    )
    return step(state, picture, at_s)[0]


@pytest.mark.parametrize(("value", "power"), [(-60.0, 0.0), (60.0, 0.0), (0.0, 25.0), (0.0, -25.0)])
def test_storage_that_does_not_move_is_unresponsive_either_way(value, power):
    state = begin(LoopSettings("GRID", (BATTERY,)), now_s=0.0)
    for second in range(1, 60):
        state = shown(power, value, state=state, at_s=float(second))
    assert unresponsive(state) == {"store"}


def test_member_out_of_reach_is_neither_found_unresponsive_nor_cleared_of_it():
    state = begin(LoopSettings("GRID", (BATTERY,)), now_s=0.0)
    for second in range(1, 60):
        state = shown(0.0, 60.0, state=state, at_s=float(second), is_available=False)
    assert unresponsive(state) == frozenset()
    for second in range(60, 120):
        state = shown(0.0, 60.0, state=state, at_s=float(second))
    assert unresponsive(state) == {"store"}
    state = shown(30.0, 60.0, state=state, at_s=121.0, is_available=False)
    assert unresponsive(state) == {"store"}
    assert unresponsive(shown(30.0, 60.0, state=state, at_s=122.0)) == frozenset()
