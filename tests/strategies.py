"""What hypothesis draws from: settings, requests, schedules, images and moments as the world may give them."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from edge.core.arbitration import DeviceSettings, DeviceState, admit, decide, written
from edge.core.commands import DirectRequest, Lifetime, WriteClass
from edge.core.image import Clock, ProcessImage
from edge.core.instant import Instant
from edge.core.quantities import Bound
from edge.core.schedule import Schedule
from edge.core.watchdog import MAX_TIME_LIMIT_S, MIN_TIME_LIMIT_S

# Any number a sensor, a file or a broken sum may come up with.
any_number = st.floats(allow_nan=True, allow_infinity=True)
percents = st.one_of(st.integers(-100, 200).map(float), st.floats(-100, 200))
time_limits = st.floats(MIN_TIME_LIMIT_S, MAX_TIME_LIMIT_S)
boottimes = st.floats(0, 1e8)
utcs = st.one_of(
    st.floats(0, 2 * 86400).map(lambda s: datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=s)),
    st.datetimes(timezones=st.just(UTC)),
    st.just(datetime.max.replace(tzinfo=UTC)),
    st.just(datetime.min.replace(tzinfo=UTC)),
)
instants = st.builds(Instant, utc=utcs, boottime_s=boottimes)
slot_keys = st.integers(0, 95).map(lambda slot: f"{slot // 4:02d}:{slot % 4 * 15:02d}")
bounds = st.builds(
    Bound,
    origin=st.sampled_from(["grid", "owner", "trader"]),
    minimum=st.one_of(st.just(-math.inf), percents),
    maximum=st.one_of(st.just(math.inf), percents),
)
requests = st.builds(
    DirectRequest,
    order=st.tuples(st.integers(0, 3), st.integers(0, 20)),
    request_id=st.sampled_from(["r1", "r2", "r3"]),
    value=st.one_of(percents, any_number),
    hold_s=st.one_of(st.floats(0, 4000), any_number),
)
clocks = st.one_of(st.just(Clock()), st.builds(Clock, untrusted_since_s=st.one_of(boottimes, any_number)))
images = st.builds(
    ProcessImage,
    readback=st.one_of(st.none(), percents, any_number),
    loop_value=st.one_of(st.none(), percents, any_number),
    loop_because=st.sampled_from(["", "loop GRID holds 40 kW of export"]),
    connection_bound=st.one_of(st.none(), bounds),
    clock=clocks,
)


@st.composite
def settings(draw: st.DrawFn, *, controlled: bool | None = None) -> DeviceSettings:
    """Settings of a device; `controlled` forces whether anyone may write to it."""
    minimum, maximum = sorted((draw(percents), draw(percents)))
    if controlled is None:
        controlled = draw(st.booleans())
    behind = draw(st.booleans())
    return DeviceSettings(
        tag="INVERTER_01",
        category="inverter",
        minimum=minimum,
        maximum=maximum,
        default_value=draw(percents),
        time_limit_s=draw(time_limits),
        excluded=not controlled and not behind,
        owned_by="LOGGER_01" if not controlled and behind else None,
        bounds=tuple(draw(st.lists(bounds, max_size=3))),
        lifetime=draw(st.sampled_from(Lifetime)),
        write_class=draw(st.sampled_from(WriteClass)),
        period_s=draw(st.floats(10, 86400)),
        tolerance=draw(st.floats(0, 5)),
        ramp_pct_per_min=draw(st.one_of(st.none(), st.floats(0.1, 6000))),
        writes_per_day=draw(st.one_of(st.none(), st.integers(2, 100))),
        accept_wear=draw(st.booleans()),
        readable=draw(st.booleans()),
    )


@st.composite
def schedules(draw: st.DrawFn, *, around: datetime | None = None) -> Schedule:
    """Up to three days of slots, some of which no decoder would let through."""
    utc = around or draw(utcs)
    days = {}
    for days_later in (-1, 0, 1):
        try:
            day = (utc + timedelta(days=days_later)).date()
        except OverflowError:
            continue
        if draw(st.booleans()):
            days[day] = draw(st.dictionaries(slot_keys, st.one_of(percents, any_number), max_size=96))
    return Schedule(days)


@st.composite
def admitted(
    draw: st.DrawFn, *, device_settings: SearchStrategy[DeviceSettings] | None = None
) -> tuple[DeviceState, Instant]:
    """A state the core itself came to, and a moment after it: requests admitted, decided, written or not."""
    now = draw(instants)
    device = draw(settings() if device_settings is None else device_settings)
    state = DeviceState(device, draw(schedules(around=now.utc)))
    for _ in range(draw(st.integers(0, 3))):
        state, _refusal = admit(state, draw(requests), now)
        state, decision = decide(state, draw(images), now)
        if decision.write is not None and decision.value is not None:
            state = written(state, decision.value, now, confirmed=draw(st.booleans()))
        now = Instant(now.utc, now.boottime_s + draw(st.floats(0, 5000)))
    return state, now
