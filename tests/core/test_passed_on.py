"""What a proxy passes on to its children: their wish, inside their own bounds, and nobody's request."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from edge.core.arbitration import (
    DeviceState,
    Lapse,
    admit,
    bears,
    decide,
    explain,
    reconfigure,
    release,
    spend,
)
from edge.core.commands import Refusal, Source, WriteClass
from edge.core.events import LapseCause
from edge.core.image import EMPTY, PassedOn, ProcessImage
from edge.core.quantities import Bound
from edge.core.reasons import reason, sentence
from tests import strategies as our
from tests.clock import ManualClock
from tests.core.devices import INVERTER, device, held, request, settled, slots

PROXY = "PARK_01"
HELD = PassedOn(value=30.0, target=30.0, source=Source.DIRECT, request_id="req-1-1", until_boottime_s=1060.0)


def child(**changes):
    return device(proxy=PROXY, **changes)


def asked(passed_on=HELD, **changes):
    return ProcessImage(passed_on=replace(passed_on, **changes))


@pytest.fixture
def now():
    return ManualClock().now()


def test_child_takes_the_value_the_source_and_the_end_of_its_proxy(now):
    _, decision = decide(child(), asked(), now)
    assert (decision.value, decision.source, decision.through) == (30.0, Source.DIRECT, PROXY)
    assert (decision.request_id, decision.until_boottime_s) == ("req-1-1", 1060.0)


def test_child_goes_as_far_as_its_own_bounds(now):
    state = child(minimum=40.0, bounds=(Bound("grid_operator", maximum=60.0),))
    assert decide(state, asked(), now)[1].value == 40
    assert decide(state, asked(value=80.0, target=80.0), now)[1].bounded_by == "grid_operator"


def test_child_has_no_slots_of_its_own(now):
    state = child(schedule=slots({"10:00": 70.0}))
    image = replace(asked(), loop_value=50.0)
    assert decide(state, image, now)[1].value == 30
    _, decision = decide(state, ProcessImage(loop_value=50.0), now)
    assert (decision.value, decision.source, decision.through) == (100, Source.DEFAULT, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_child_of_a_proxy_that_asks_for_no_number_goes_to_its_default(now, value):
    assert decide(child(), asked(value=value), now)[1].value == 100
    assert decide(child(), asked(target=value), now)[1].value == 100


def test_child_takes_no_requests_of_its_own(now):
    assert admit(child(), request(50), now)[1] is Refusal.OWNED_BY
    assert release(child(), (1, 1))[1] is Refusal.OWNED_BY


def test_device_that_becomes_a_child_loses_its_hold_and_the_fallback_it_was_owed(now):
    state = held(device(), 40, now)
    assert state.hold is not None
    state = replace(state, lapse=Lapse(state.hold, LapseCause.TIME_LIMIT))
    state = reconfigure(state, child().settings)
    assert (state.hold, state.lapse) == (None, None)
    assert decide(state, asked(), now)[1].value == 30


def test_hold_that_a_child_is_left_with_counts_for_nothing(now):
    state = replace(held(device(), 40, now), settings=child().settings)
    after, decision = decide(state, asked(), now)
    assert (after.hold, decision.value) == (None, 30)


def test_device_that_is_no_child_any_more_goes_to_its_own_schedule(now):
    state, _ = decide(child(schedule=slots({"10:00": 70.0})), asked(), now)
    _, decision = decide(reconfigure(state, INVERTER), asked(), now)
    assert (decision.value, decision.source, decision.through) == (70, Source.SCHEDULE, None)


def test_register_that_wears_takes_none_of_its_proxys_ramp(now):
    image = asked(value=55.0, target=30.0)
    assert decide(child(), image, now)[1].value == 55
    assert decide(child(write_class=WriteClass.PERSISTENT), image, now)[1].value == 30


def test_child_has_a_ramp_of_its_own(now):
    state, _ = settled(child(ramp_pct_per_min=60.0), now, ProcessImage(readback=100.0))
    state, _ = decide(state, asked(), now)
    later = replace(now, boottime_s=now.boottime_s + 10)
    # Its first step leaves at once.
    assert decide(state, asked(), later)[1].value == 89


def test_excluded_child_is_not_written(now):
    assert decide(child(excluded=True), asked(), now)[1].value is None


# --- wear -------------------------------------------------------------------------------------------


def worn(writes: int, **changes) -> DeviceState:
    kept = child(
        write_class=WriteClass.PERSISTENT, writes_per_day=4, budgeted=frozenset({"limit"}), **changes
    )
    return spend(kept, {"limit": writes})


def test_child_bears_a_hold_as_long_as_its_day_covers_set_and_release():
    assert bears(worn(2), 30, held=None)
    assert not bears(worn(3), 30, held=None)


def test_child_bears_a_renewal_whatever_is_spent():
    assert bears(worn(4), 30, held=30)
    assert not bears(worn(4), 40, held=30)


def test_child_bears_what_its_bounds_keep_from_it():
    assert bears(worn(4, maximum=50.0), 80, held=60)


def test_child_that_is_not_written_bears_everything():
    assert bears(worn(4, excluded=True), 30, held=None)


# --- reasons ----------------------------------------------------------------------------------------


def test_reason_of_a_child_names_its_proxy_and_leaves_the_rest_to_that_ones(now):
    state, decision = decide(child(), asked(until_boottime_s=now.boottime_s + 60), now)
    why = reason(state, decision, asked(), now)
    assert len(why.rungs) == 1
    assert sentence(why) == (
        "INVERTER_01 at 30 by direct request req-1-1 through PARK_01, until 2026-03-02T10:01:00Z"
        "; bounds: device 0 to 100"
    )


def test_reason_of_a_child_does_not_take_its_own_schedule_for_its_proxys(now):
    state = child(schedule=slots({"10:00": 30.0, "10:15": 50.0}))
    image = asked(source=Source.SCHEDULE, request_id=None, until_boottime_s=None, until_utc=now.utc)
    state, decision = decide(state, image, now)
    assert reason(state, decision, image, now).in_force.until is None
    assert explain(decision).startswith("INVERTER_01 at 30 by schedule through PARK_01")


def test_reason_of_a_child_nobody_asks_is_its_default(now):
    state, decision = decide(child(), EMPTY, now)
    assert len(reason(state, decision, EMPTY, now).rungs) == 1


# --- properties -------------------------------------------------------------------------------------

passed = st.builds(
    PassedOn,
    value=st.one_of(our.percents, our.any_number),
    target=st.one_of(our.percents, our.any_number),
    source=st.sampled_from(Source),
    until_boottime_s=st.one_of(st.none(), our.boottimes),
)


@given(our.settings(controlled=True), our.schedules(), passed, our.images, our.instants)
def test_child_is_within_its_own_range_and_bounds_whatever_is_passed_on(
    settings, schedule, passed_on, image, now
):
    state = DeviceState(replace(settings, proxy=PROXY), schedule)
    _, decision = decide(state, replace(image, passed_on=passed_on), now)
    assert decision.value is not None
    assert settings.minimum <= decision.value <= settings.maximum
    lowest = min(bound.maximum for bound in (settings.own_range, *settings.bounds))
    assert decision.value <= max(lowest, settings.minimum)


@given(our.admitted(device_settings=our.settings(controlled=True)), passed, our.images)
def test_device_without_a_proxy_is_not_moved_by_what_is_passed_on(admitted, passed_on, image):
    state, now = admitted
    assert decide(state, replace(image, passed_on=passed_on), now) == decide(state, image, now)
