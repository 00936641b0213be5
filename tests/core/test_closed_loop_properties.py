"""What holds of a closed loop whatever the world does."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import example, given, settings as looks, strategies as st
from hypothesis.strategies import SearchStrategy

from edge.core.closed_loop import (
    ABSENT,
    Dynamics,
    LoopImage,
    LoopOutput,
    LoopSettings,
    LoopState,
    Member,
    MemberImage,
    Mode,
    Sample,
    Stand,
    begin,
    reconfigure,
    step,
)
from tests.core.loop_plant import Nature, Site
from tests.strategies import any_number

TINY = 1e-6
TAGS = ("a", "b", "c", "d")

dynamics = st.builds(
    Dynamics,
    dead_time_s=st.floats(0, 10),
    lag_s=st.floats(0, 10),
    ramp_pct_per_s=st.floats(0.1, 1000),
    gain=st.floats(0.5, 1.5),
)


def members_of(tags: tuple[str, ...]) -> SearchStrategy[tuple[Member, ...]]:
    return st.tuples(*(member(tag) for tag in tags))


def member(tag: str) -> SearchStrategy[Member]:
    return st.builds(
        Member,
        tag=st.just(tag),
        nominal_kw=st.sampled_from([1.0, 30.0, 60.0, 2500.0]),
        minimum=st.sampled_from([-100.0, 0.0, 20.0]),
        maximum=st.sampled_from([60.0, 100.0]),
        is_storage=st.booleans(),
        answers_readings=st.booleans(),
        dynamics=dynamics,
        resolution_pct=st.sampled_from([0.1, 1.0, 5.0]),
    )


limits = st.none() | st.floats(0, 5000)
configured = st.builds(
    LoopSettings,
    tag=st.just("GRID"),
    members=st.integers(1, 4).flatmap(lambda count: members_of(TAGS[:count])),
    mode=st.sampled_from(Mode),
    feed_forward=st.booleans(),
    kp=st.floats(0, 10),
    ki=st.floats(0, 10),
    kd=st.floats(0, 10),
    max_rate_pct_per_s=st.floats(0.1, 1000),
    deadband_kw=st.floats(0, 20),
    fallback_pct=st.none() | st.floats(-100, 100),
    time_step_s=st.floats(0.2, 60),
    stale_after_s=st.floats(1, 300),
    export_limit_kw=limits,
    import_limit_kw=limits,
    storage_first=st.booleans(),
)


def pictures(numbers: SearchStrategy[float]) -> SearchStrategy[LoopImage]:
    """What a node may show of a world in which numbers are these."""
    return st.builds(
        LoopImage,
        sample=st.none()
        | st.builds(
            Sample,
            at_s=st.floats(0, 400) | numbers,
            export_kw=numbers,
            members_kw=st.dictionaries(st.sampled_from(TAGS), numbers),
        ),
        setpoint_kw=numbers,
        members=st.dictionaries(
            st.sampled_from(TAGS),
            st.builds(
                MemberImage,
                value=st.none() | numbers,
                is_held=st.booleans(),
                is_available=st.booleans(),
                wish=st.none() | numbers,
            ),
        ),
        is_tick=st.booleans(),
    )


SETTINGS = LoopSettings("GRID", (Member("a", 60), Member("b", 60), Member("c", 30)))
READ = LoopImage(Sample(2.0, 40.0), 40.0, {})
anything = pictures(any_number)
plausible = pictures(st.floats(-5000, 5000) | st.integers(-100, 200).map(float))
waits = st.floats(0, 2) | st.floats(0, 40)


def steps(
    settings: LoopSettings, course: list[tuple[float, LoopImage]]
) -> list[tuple[LoopState, LoopOutput]]:
    state, now, taken = begin(settings, now_s=0.0), 0.0, []
    for wait, image in course:
        now += wait
        state, output = step(state, image, now)
        taken.append((state, output))
    return taken


def courses(images: SearchStrategy[LoopImage]) -> SearchStrategy[list[tuple[float, LoopImage]]]:
    return st.lists(st.tuples(waits, images), min_size=1, max_size=15)


@given(configured, courses(anything), st.lists(any_number, max_size=5))
def test_a_step_never_raises_and_asks_for_nothing_a_member_cannot_take(settings, course, clocks):
    taken = steps(settings, course)
    state, image = taken[-1][0], course[-1][1]
    for clock in clocks:
        state, output = step(state, image, clock)
        taken.append((state, output))
    ranges = {one.tag: one for one in settings.members}
    for _, output in taken:
        for asked in (output.values, output.bounds, output.lower_bounds):
            for tag, value in asked.items():
                held = image.members.get(tag)
                assert math.isfinite(value)
                if asked is not output.values or held is None or value != held.value:
                    low, high = ranges[tag].minimum, ranges[tag].maximum
                    outside = max(low - value, value - high, 0.0)
                    # Only where a member was outside of its range already.
                    assert outside == 0.0 or asked is output.values or not output.measured_kw
        assert all(value <= output.bounds.get(tag, math.inf) for tag, value in output.values.items())
        assert math.isfinite(output.trim_kw)
        assert not math.isnan(output.look_at_s)


@given(configured, courses(anything))
def test_equal_arguments_give_equal_answers(settings, course):
    assert repr(steps(settings, course)) == repr(steps(settings, course))


# A sum that, taken apart again, is less than it was.
@example(replace(SETTINGS, stale_after_s=99.50618402277492), [(0.1, READ)], 0.0)
@given(configured, courses(anything), st.floats(0, 1))
def test_a_silent_meter_reaches_the_fallback_by_its_time_whatever_came_before(settings, course, after):
    state, output = steps(settings, course)[-1]
    members = {one.tag: MemberImage(one.maximum) for one in settings.members}
    image = LoopImage(course[-1][1].sample, 0.0, members, is_tick=False)
    late = state.fresh_s + settings.stale_after_s
    assert output.stand is Stand.FALLBACK or output.look_at_s <= late
    _, output = step(state, image, late + after)
    if course[-1][1].sample is None or course[-1][1].sample.at_s == state.heard_s:
        assert output.stand is Stand.FALLBACK
        assert output.measured_kw is None
        if settings.fallback_pct is None:
            assert output.values == {}


@given(configured, courses(plausible), st.lists(configured, max_size=3))
def test_no_hand_over_moves_a_member_faster_than_its_rate(settings, course, others):
    """Start, readings, direct requests and their end, the meter's return, other settings: all in between."""
    settings = replace(settings, export_limit_kw=None, import_limit_kw=None, fallback_pct=None)
    state, now = begin(settings, now_s=0.0), 0.0
    values: dict[str, float] = {one.tag: one.minimum for one in settings.members}
    changes = iter(others)
    for index, (wait, image) in enumerate(course):
        now += wait
        if index % 5 == 4 and (other := next(changes, None)) is not None:
            settings = replace(
                other, members=settings.members, export_limit_kw=None, import_limit_kw=None, fallback_pct=None
            )
            state = reconfigure(state, settings)
        members = {}
        for one in settings.members:
            shown = image.members.get(one.tag, MemberImage())
            if shown.is_held and shown.value is not None:
                values[one.tag] = min(max(shown.value, one.minimum), one.maximum)
            members[one.tag] = replace(shown, value=values[one.tag])
        state, output = step(state, replace(image, members=members), now)
        for one in settings.members:
            if one.tag in output.values:
                most = settings.max_rate_pct_per_s * max(settings.time_step_s, 1.0)
                moved = abs(output.values[one.tag] - values[one.tag])
                assert moved <= max(most, one.resolution_pct) + TINY
                values[one.tag] = output.values[one.tag]


@given(configured, courses(plausible))
def test_over_any_time_neither_a_member_nor_the_loop_moves_faster_than_the_rate(settings, course):
    """What was not moved before may be made up for, a period's worth or one step of the register at most."""
    settings = replace(settings, export_limit_kw=None, import_limit_kw=None, fallback_pct=None)
    state, now = begin(settings, now_s=0.0), 0.0
    values = {one.tag: one.minimum for one in settings.members}
    moves: list[tuple[float, dict[str, float]]] = []
    for wait, image in course:
        now += wait
        members = {
            one.tag: replace(image.members.get(one.tag, MemberImage()), value=values[one.tag])
            for one in settings.members
        }
        state, output = step(state, replace(image, members=members), now)
        moves.append((now, {tag: value - values[tag] for tag, value in output.values.items()}))
        values |= output.values
    for first in range(len(moves)):
        moved = dict.fromkeys(values, 0.0)
        for at_s, each in moves[first:]:
            seconds = at_s - moves[first][0]
            sum_kw = most_kw = 0.0
            for one in settings.members:
                moved[one.tag] += each.get(one.tag, 0.0)
                saved = max(settings.max_rate_pct_per_s * max(settings.time_step_s, 1.0), one.resolution_pct)
                most = settings.max_rate_pct_per_s * seconds + saved
                assert abs(moved[one.tag]) <= most + TINY
                sum_kw += moved[one.tag] * one.nominal_kw / 100
                most_kw += most * one.nominal_kw / 100
            assert abs(sum_kw) <= most_kw + TINY


gains = st.builds(
    LoopSettings,
    tag=st.just("GRID"),
    members=members_of(TAGS),
    feed_forward=st.just(value=False),
    kp=st.floats(0, 2),
    ki=st.floats(0, 2),
    kd=st.floats(0, 2),
    max_rate_pct_per_s=st.floats(1, 1000),
    time_step_s=st.floats(0.2, 5),
)
groups = st.sets(st.sampled_from(TAGS), min_size=1)


@given(gains, st.lists(st.tuples(st.floats(0.1, 5), st.floats(-500, 500), groups), min_size=2, max_size=12))
def test_whoever_comes_or_goes_the_gains_move_the_sum_as_far_as_their_deviation_explains(settings, course):
    """Each tick shows another export, and other members that the loop may command.

    The sum that is asked for is told by the integral. What comes of it may be less for a while: those that go
    up wait for those that come down.
    """
    members = tuple(replace(one, is_storage=False, dynamics=Dynamics()) for one in settings.members)
    settings = replace(settings, members=members)
    values = dict.fromkeys(TAGS, 50.0)
    state, now, error, before = begin(settings, now_s=0.0), 0.0, 0.0, set(TAGS)
    for wait, export, free in course:
        now += wait
        images = {tag: MemberImage(value, is_held=tag not in free) for tag, value in values.items()}
        state, output = step(state, LoopImage(Sample(now, export), 0.0, images), now)
        moved = [
            (output.values[one.tag] - values[one.tag]) * one.nominal_kw / 100
            for one in members
            if one.tag in free
        ]
        change = -export - error
        explained = settings.kp * change - settings.ki * wait * export + settings.kd / wait * change
        if free != before and state.pid is not None and now > wait:
            have = sum(values[one.tag] * one.nominal_kw / 100 for one in members if one.tag in free)
            total = state.pid.integral_kw - settings.kp * export + settings.kd / wait * change
            assert min(explained, 0.0) - TINY <= total - have <= max(explained, 0.0) + TINY
            assert sum(moved) <= max(explained, 0.0) + TINY
        values |= output.values
        error, before = -export, free


@given(configured, courses(plausible), st.floats(0, 5000))
def test_bounds_leave_no_more_than_the_limit_allows_at_the_load_that_was_seen(settings, course, limit):
    """Whatever members hold, those that can be commanded and those that cannot.

    Physics allows no more: members cannot be lowered below their minimum, and what cannot be commanded gives
    what it gives. Members are counted by what they are commanded and trimmed to, as if they had sun: a gain that
    was learned changes nothing of it.
    """
    settings = replace(settings, export_limit_kw=limit)
    for (state, output), (_, image) in zip(steps(settings, course), course, strict=True):
        if output.load_kw is None or output.stand is Stand.FALLBACK or output.reason == "starting":
            continue
        given = least = 0.0
        for one, known in zip(settings.members, state.members, strict=True):
            per_pct = one.nominal_kw / 100
            if image.members.get(one.tag, ABSENT).is_available:
                given += output.bounds[one.tag] * per_pct - known.trim_kw
                least += one.minimum * per_pct - known.trim_kw
                continue
            assert known.value is not None
            power = known.value * per_pct - known.trim_kw if known.power_kw is None else known.power_kw
            given += power
            least += power
        assert given <= max(limit + output.load_kw, least) + 1e-3


# Twelve minutes of a site take some hundred times as long as a step.
fewer = looks(max_examples=max(looks().max_examples // 4, 5))
suns: SearchStrategy[list[tuple[float, float]]] = st.lists(
    st.tuples(st.floats(5, 120), st.floats(0, 45)), min_size=1, max_size=6
)


@fewer
@given(suns, st.floats(-2, 4), st.sampled_from([1.0, 5.0]), st.floats(0.1, 2.5), st.integers(0, 2))
def test_after_ten_minutes_of_too_little_sun_its_return_overshoots_by_no_more_than_one_percent(
    clouds: list[tuple[float, float]], bias: float, period: float, latency: float, speed: int
):
    settings = replace(SETTINGS, time_step_s=period)
    nature = [Nature(0.6, 0.6, 20), Nature(1.0, 1.0, 20), Nature(4.0, 2.0, 10)][speed]

    def sun(_: str, at: float) -> float:
        """First full, then clouds one after the other and again, then full."""
        if not 60 <= at < 660:
            return 100.0
        left = math.fmod(at - 60, sum(seconds for seconds, _ in clouds))
        for seconds, share in clouds[:-1]:
            if left < seconds:
                return share
            left -= seconds
        return clouds[-1][1]

    natures = {tag: replace(nature, bias_pct=bias) for tag in "abc"}
    # 80 kW are allowed, 53 %.
    site = Site(settings, 53.0, 60.0, lambda _: 20.0, sun, natures=natures, latency_s=latency)
    site.run(until_s=660.0)
    assert max(site.run(until_s=720.0)) <= 60.0 + 0.01 * 150
