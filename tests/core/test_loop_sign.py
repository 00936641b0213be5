"""When a loop takes its meter to count the wrong way."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import example, given, settings as looks, strategies as st

from edge.core.closed_loop import LoopSettings, Member, reconfigure
from edge.core.loop import sign as signs
from tests.core.loop_plant import Site

SETTINGS = LoopSettings("GRID", (Member("a", 60), Member("b", 60), Member("c", 30)))
PN = 150.0


@dataclass
class Turned(Site):
    """A site whose meter shows import where there is export, until `right_from_s`."""

    right_from_s: float = float("inf")

    def step(self, *, is_tick: bool = True):
        sample = self.sample
        if sample is not None and sample.at_s < self.right_from_s:
            self.sample = replace(sample, export_kw=-sample.export_kw)
        output = super().step(is_tick=is_tick)
        self.sample = sample
        return output


def told(site: Site) -> bool:
    assert site.output is not None
    return site.output.is_sign_wrong


def clouds(_: str, at: float) -> float:
    """A minute of sun, a minute without."""
    return 20.0 if at % 120 >= 60 else 100.0


def test_a_meter_that_counts_the_wrong_way_is_told_after_a_few_clouds():
    site = Turned(SETTINGS, load=lambda _: 10.0, sun=clouds)
    site.run(until_s=130.0)
    assert not told(site)
    site.run(until_s=450.0)
    assert told(site)


def test_a_meter_that_counts_the_wrong_way_is_told_by_the_commissioners_own_steps():
    site = Turned(SETTINGS, load=lambda _: 10.0)
    for at in range(20, 220, 20):
        site.run(until_s=float(at))
        site.direct = {} if site.direct else {"a": 20.0}
    assert told(site)


def test_a_meter_that_was_turned_round_is_believed_again():
    site = Turned(SETTINGS, load=lambda _: 10.0, sun=clouds, right_from_s=460.0)
    site.run(until_s=450.0)
    assert told(site)
    site.run(until_s=1000.0)
    assert not told(site)


def test_a_meter_that_counts_the_right_way_is_not_told_whatever_clouds_there_are():
    site = Site(SETTINGS, load=lambda _: 10.0, sun=clouds)
    site.run(until_s=600.0)
    assert not told(site)


def test_other_members_are_judged_anew():
    site = Turned(SETTINGS, load=lambda _: 10.0, sun=clouds)
    site.run(until_s=450.0)
    assert reconfigure(site.state, replace(SETTINGS, ki=0.1)).sign == site.state.sign
    fewer = replace(SETTINGS, members=SETTINGS.members[:2])
    assert reconfigure(site.state, fewer).sign is None


def test_a_reading_without_all_members_is_no_experiment():
    class Unread(Turned):
        def step(self, *, is_tick: bool = True):
            if self.sample is not None:
                read = {tag: kw for tag, kw in self.sample.members_kw.items() if tag != "c"}
                self.sample = replace(self.sample, members_kw=read)
            return super().step(is_tick=is_tick)

    site = Unread(SETTINGS, load=lambda _: 10.0, sun=clouds)
    site.run(until_s=450.0)
    assert site.state.sign is None


def shown(*moves: tuple[float, float]) -> signs.Sign:
    """Moves of the members one after the other, and what the meter shows of each, as a part of it."""
    export = production = now = 0.0
    sign = signs.begin(export_kw=export, production_kw=production, now_s=now)
    for moved, answer in moves:
        production, export = production + moved, export + answer * moved
        for _ in range(6):
            now += 1.0
            sign = signs.observe(sign, export_kw=export, production_kw=production, nominal_kw=PN, now_s=now)
    return sign


UP, DOWN = (30.0, -1.0), (-30.0, -1.0)


def test_five_moves_in_turn_convince_and_no_fewer():
    assert shown(UP, DOWN, UP, DOWN, UP).is_wrong
    assert not shown(UP, DOWN, UP, DOWN).is_wrong


def test_moves_one_way_count_once():
    assert shown(UP, UP, UP, UP, UP, UP).against == 1


def test_one_move_that_is_answered_rightly_begins_anew():
    assert shown(UP, DOWN, UP, DOWN, (30.0, 1.0)).against == 0


def test_a_conviction_outlives_two_moves_that_are_answered_rightly():
    convinced = (UP, DOWN, UP, DOWN, UP)
    right = ((-30.0, 1.0), (30.0, 1.0), (-30.0, 1.0))
    assert shown(*convinced, *right[:2]).is_wrong
    assert not shown(*convinced, *right).is_wrong


def test_a_meter_that_something_else_holds_says_nothing():
    assert shown(UP, DOWN, UP, (-30.0, 0.0), (30.0, -0.2)).against == 3


def test_small_moves_and_slow_ones_say_nothing():
    assert shown((10.0, -1.0), (-10.0, -1.0)).against == 0
    sign = signs.begin(export_kw=0.0, production_kw=0.0, now_s=0.0)
    for at in range(60):
        # A sun that rises is no experiment: the load has time for anything.
        sign = signs.observe(
            sign, export_kw=-2.0 * min(at, 50), production_kw=2.0 * min(at, 50), nominal_kw=PN, now_s=at
        )
    assert sign.against == 0


fewer = looks(max_examples=max(looks().max_examples // 4, 5))
spans = st.lists(st.tuples(st.floats(1, 60), st.floats(0, 400)), min_size=2, max_size=10)


@fewer
@example([(20.0, 30.0), (20.0, 70.0)], [(600.0, 100.0)], 1.0)
# Members that can follow half of a load which comes and goes.
@example([(20.0, 0.0), (20.0, 150.0)], [(600.0, 50.0)], 1.0)
@example([(3.0, 0.0), (3.0, 300.0)], [(600.0, 100.0)], 5.0)
@given(
    spans,
    st.lists(st.tuples(st.floats(1, 60), st.floats(0, 100)), min_size=1, max_size=6),
    st.sampled_from([1.0, 5.0]),
)
def test_no_load_and_no_sun_make_a_right_meter_a_wrong_one(loads, suns, period):
    def at_time(course: list[tuple[float, float]], at: float) -> float:
        left = at % sum(seconds for seconds, _ in course)
        for seconds, value in course[:-1]:
            if left < seconds:
                return value
            left -= seconds
        return course[-1][1]

    site = Site(
        replace(SETTINGS, time_step_s=period),
        load=lambda at: at_time(loads, at),
        sun=lambda _, at: at_time(suns, at),
        latency_s=0.4,
    )
    site.run(until_s=400.0)
    assert not told(site)
