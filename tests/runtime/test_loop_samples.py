"""What a loop is told: the meter's reading with its members' power as of the same moment, and each once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.core.arbitration import DeviceSettings, DeviceState
from edge.core.closed_loop import LoopSettings, Member, Stand
from edge.core.commands import WriteClass
from edge.drivers.base import PollResult
from edge.runtime.alarms import Alarms
from edge.runtime.bus import KeepAliveJob, next_ticket
from edge.runtime.cycle import Cycle, Reading, Unit
from edge.runtime.loop_plan import PlannedLoop
from edge.runtime.loops import Power
from edge.runtime.night import Sleep
from edge.runtime.store import Store
from edge.runtime.telemetry import POINTS_PER_ENTRY, Telemetry
from edge.wire.messages import LoopStatus
from tests.runtime.loop_site import METER, A, B
from tests.runtime.plant import TurnedClock

STALE_AFTER_S = 10.0


# --- the power of one device ----------------------------------------------------------------------


def test_power_between_two_readings_is_on_the_line_between_them():
    power = Power(100.0, 20.0)
    power.hear(102.0, 40.0)
    assert power.at(101.0, kept_s=STALE_AFTER_S) == 30.0
    assert power.at(100.0, kept_s=STALE_AFTER_S) == 20.0


def test_nothing_is_told_of_a_moment_before_both_readings_or_in_an_outage():
    power = Power(100.0, 20.0)
    power.hear(108.0, 40.0)
    assert power.at(99.0, kept_s=STALE_AFTER_S) is None
    power.hear(120.0, 60.0)
    assert power.at(112.0, kept_s=STALE_AFTER_S) is None
    assert power.at(118.0, kept_s=STALE_AFTER_S) == 60.0


def test_power_after_the_last_reading_is_kept_as_long_as_readings_are_apart():
    power = Power(100.0, 20.0)
    assert power.at(103.0, kept_s=STALE_AFTER_S) == 20.0
    assert power.at(103.1, kept_s=STALE_AFTER_S) is None
    power.hear(102.0, 40.0)
    assert power.at(107.0, kept_s=STALE_AFTER_S) == 40.0
    assert power.at(107.1, kept_s=STALE_AFTER_S) is None


def test_power_of_a_slow_line_is_kept_no_longer_than_the_meters_reading():
    power = Power(100.0, 20.0)
    power.hear(108.0, 40.0)
    assert power.at(104.0, kept_s=STALE_AFTER_S) == 30.0
    assert power.at(118.0, kept_s=STALE_AFTER_S) == 40.0
    assert power.at(118.1, kept_s=STALE_AFTER_S) is None


def test_power_before_the_first_reading_is_that_of_the_first_for_a_moment_only():
    power = Power(100.0, 20.0)
    assert power.at(98.0, kept_s=STALE_AFTER_S) == 20.0
    assert power.at(96.0, kept_s=STALE_AFTER_S) is None


def test_same_reading_again_is_no_second_one():
    power = Power(100.0, 20.0)
    power.hear(101.0, 40.0)
    power.hear(101.0, 99.0)
    power.hear(100.5, 99.0)
    assert (power.at_s, power.kw, power.before) == (101.0, 40.0, (100.0, 20.0))


# --- the loop's sample ----------------------------------------------------------------------------


class Line:
    """A line on which nothing is ever confirmed; `writes` is what it was asked for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.writes: list[float] = []

    def write(self, tag: str, value: float, *, verify: bool) -> int:  # noqa: ARG002 - as a bus has it
        self.writes.append(value)
        return next_ticket()

    def withdraw(self, tag: str) -> None:
        pass

    def reserve(self, tag: str, at_boottime_s: float | None) -> None:
        pass

    def keep_alive(self, tag: str, job: KeepAliveJob) -> None:
        pass

    def look(self, tag: str) -> None:
        pass


class Bench:
    """A cycle whose devices tell what the test says, when it says it."""

    def __init__(self, store: Store, **settings: object) -> None:
        self.clock = TurnedClock()
        self.alarms = Alarms(self.clock, lambda: None)
        self.cycle = Cycle(clock=self.clock, store=store, logged=lambda: None, alarms=self.alarms)
        self.lines = {tag: Line(tag) for tag in (A, B, METER)}
        self.configure(**settings)

    def configure(self, **settings: object) -> None:
        answers = bool(settings.pop("answers_readings", True))
        members = tuple(Member(tag, nominal_kw=50.0, answers_readings=answers) for tag in (A, B))
        changed = LoopSettings("GRID", members, **settings)  # type: ignore[arg-type]
        for tag, line in self.lines.items():
            if tag not in self.cycle.units:
                device = DeviceSettings(
                    tag,
                    "inverter",
                    0.0,
                    100.0,
                    100.0,
                    60.0,
                    excluded=tag == METER,
                    write_class=WriteClass.VOLATILE,
                )
                unit = Unit(DeviceState(device), line, can_write=tag != METER, key=tag)
                self.cycle.add(unit, leaving=False)
        loop = PlannedLoop("1", "GRID", METER, changed, setpoint_kw=40.0, devices={A: (A,), B: (B,)})
        self.cycle.loops.configure({"GRID": loop})
        self.cycle.turn()
        for tag in self.lines:
            self.cycle.contact(tag, standing=50.0 if tag != METER else None)

    def told(self, tag: str, kw: float | None, *, ago_s: float | None = None) -> None:
        """A poll of this device: its power, which it said so long before it was asked."""
        said = {} if ago_s is None else {"P_kW": self.clock.boottime_s() - ago_s}
        readback = None if tag == METER else 50.0
        self.cycle.polled(tag, PollResult({"P_kW": kw}, readback, said))

    @property
    def status(self) -> LoopStatus:
        (status,) = self.cycle.loops.statuses()
        return status


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


async def test_members_power_is_taken_at_the_moment_of_the_meters_reading(store):
    bench = Bench(store)
    bench.told(A, 20.0)
    bench.told(B, 10.0)
    bench.clock.advance(2.0)
    bench.told(A, 40.0)
    bench.told(B, 10.0)
    bench.told(METER, 12.0, ago_s=1.0)
    # A gave 30 kW when the meter read 12: so the load was 28 kW.
    assert bench.status.load_kw == pytest.approx(28.0)


async def test_member_that_was_not_read_is_missing_and_taken_at_its_word(store):
    bench = Bench(store)
    bench.told(B, 10.0)
    bench.clock.advance(4.0)
    bench.told(A, 40.0)
    bench.told(METER, 12.0)
    # Nobody knows what B gives now: it holds 50 % of 50 kW.
    assert bench.status.load_kw == pytest.approx(40.0 + 25.0 - 12.0)


async def test_member_that_sleeps_gives_nothing_and_is_not_asked(store):
    bench = Bench(store)
    bench.cycle.units[B].sleep = Sleep(dark_kw=0.5, power_kw=0.1, since_s=bench.clock.boottime_s())
    bench.told(A, 30.0)
    bench.told(METER, 12.0)
    assert bench.status.load_kw == pytest.approx(30.0 + 0.0 - 12.0)
    assert set(bench.status.members) == {A}


async def test_reading_that_is_told_again_is_no_news(store):
    bench = Bench(store, fallback_pct=20.0)
    bench.told(METER, 12.0)
    first = bench.status.measured_kw
    for _ in range(11):
        bench.clock.advance(1.0)
        # What it said at first, asked for again and again.
        bench.told(METER, 99.0, ago_s=bench.clock.boottime_s() - 1000.0)
        bench.cycle.turn()
    assert first == 12.0
    assert bench.status.stand == Stand.FALLBACK


@pytest.mark.parametrize("kw", [None, float("nan"), float("inf")])
async def test_reading_that_is_no_number_is_no_reading(store, kw):
    bench = Bench(store, fallback_pct=20.0)
    bench.told(METER, 12.0)
    for _ in range(11):
        bench.clock.advance(1.0)
        bench.told(METER, kw)
        bench.cycle.turn()
    assert bench.status.stand == Stand.FALLBACK
    assert [alarm.code for alarm in bench.alarms.standing] == ["loop_stale"]


async def test_reading_is_as_old_as_when_it_was_said_however_late_it_is_looked_at(store):
    bench = Bench(store, fallback_pct=20.0)
    bench.told(METER, 12.0)
    bench.clock.advance(8.0)
    # Its line was busy: what it said half a second after the first is all there is.
    bench.told(METER, 14.0, ago_s=7.5)
    assert bench.status.measured_kw == 14.0
    bench.clock.advance(2.4)
    bench.cycle.turn()
    assert bench.status.stand == Stand.STALE
    bench.clock.advance(0.1)
    bench.cycle.turn()
    assert bench.status.stand == Stand.FALLBACK


async def test_reading_that_is_stale_when_it_is_looked_at_counts_for_nothing(store):
    bench = Bench(store, fallback_pct=20.0)
    bench.told(METER, 12.0)
    bench.clock.advance(11.0)
    bench.cycle.turn()
    for _ in range(4):
        bench.clock.advance(1.0)
        bench.told(METER, 40.0, ago_s=STALE_AFTER_S)
        bench.cycle.turn()
    assert bench.status.stand == Stand.FALLBACK
    assert bench.status.measured_kw is None
    for _ in range(3):
        bench.clock.advance(1.0)
        bench.told(METER, 40.0)
    assert bench.status.stand == Stand.TRACKING


async def test_alarm_of_a_silent_meter_says_since_when_and_not_how_old(store):
    bench = Bench(store, fallback_pct=20.0)
    bench.told(METER, 12.0)
    since = f"{bench.clock.now().utc:%Y-%m-%d %H:%M:%S}Z"
    for _ in range(30):
        bench.clock.advance(1.0)
        bench.cycle.turn()
    (alarm,) = bench.alarms.standing
    assert alarm.detail.startswith(f"loop GRID has had no reading of METER_01 since {since}, ")
    assert bench.status.reason == alarm.detail


async def test_setpoint_and_output_are_told_while_the_meter_is_silent(store):
    bench = Bench(store, fallback_pct=20.0)
    bench.told(METER, 12.0)
    bench.cycle.lost(METER, reason="no answer")
    for _ in range(20):
        bench.clock.advance(1.0)
        bench.cycle.turn()
    meter = bench.cycle.units[METER]
    (entry,) = Telemetry().kept({METER: meter}, None, bench.clock.now())
    told = {point.key: point.value for point in entry.points}
    # What both together are asked for is the fallback's; what the meter said last is nobody's news.
    assert told == {"P_Setpoint_kW": 40.0, "P_Output_kW": 20.0}


async def test_what_a_loop_tells_may_come_while_its_meters_readings_are_being_told(store):
    bench = Bench(store)
    bench.told(METER, 12.0)
    meter, now = bench.cycle.units[METER], bench.clock.now()
    meter.readings = {f"value_{number}": Reading(1.0, now) for number in range(POINTS_PER_ENTRY + 50)}
    entries = Telemetry().kept({METER: meter}, None, now)
    first = next(entries)
    bench.clock.advance(1.0)
    bench.cycle.turn()
    assert [len(entry.points) for entry in (first, *entries)] == [POINTS_PER_ENTRY, 50]


async def test_write_is_asked_for_in_the_turn_of_the_reading(store):
    bench = Bench(store, time_step_s=5.0)
    bench.told(A, 25.0)
    bench.told(B, 25.0)
    bench.lines[A].writes.clear()
    bench.told(METER, 50.0)
    assert bench.lines[A].writes
    assert bench.lines[A].writes[-1] < 50.0


async def test_member_whose_register_may_wear_is_written_once_a_period(store):
    bench = Bench(store, time_step_s=5.0, answers_readings=False)
    bench.told(A, 25.0)
    bench.told(B, 25.0)
    bench.told(METER, 40.0)
    bench.clock.advance(5.0)
    bench.cycle.turn()
    for line in bench.lines.values():
        line.writes.clear()
    for _ in range(4):
        bench.clock.advance(1.0)
        bench.told(A, 25.0)
        bench.told(B, 25.0)
        bench.told(METER, 60.0)
        bench.cycle.turn()
    assert bench.lines[A].writes == []
    bench.clock.advance(1.0)
    bench.cycle.turn()
    assert len(bench.lines[A].writes) == 1


async def test_falling_connection_limit_is_obeyed_at_once_by_a_register_that_may_wear_and_a_rising_one_waits(
    store,
):
    bench = Bench(store, time_step_s=5.0, answers_readings=False, export_limit_kw=40.0)

    def load_is(load_kw: float, *, members_kw: float) -> None:
        bench.clock.advance(1.0)
        bench.told(A, members_kw)
        bench.told(B, members_kw)
        bench.told(METER, 2 * members_kw - load_kw)
        bench.cycle.turn()

    for _ in range(6):
        load_is(30.0, members_kw=35.0)
    assert bench.lines[A].writes[-1] == 70.0
    for line in bench.lines.values():
        line.writes.clear()
    load_is(10.0, members_kw=35.0)
    # 40 kW and a load of 10 leave 50 for both.
    assert (bench.lines[A].writes, bench.lines[B].writes) == ([50.0], [50.0])
    for _ in range(2):
        load_is(30.0, members_kw=25.0)
    assert bench.lines[A].writes == [50.0]
    for _ in range(5):
        load_is(30.0, members_kw=25.0)
    assert bench.lines[A].writes[-1] > 60.0


async def test_other_meter_makes_another_loop_that_waits_for_its_first_reading(store):
    bench = Bench(store)
    bench.told(METER, 12.0)
    before = bench.status
    loop = PlannedLoop(
        "1", "GRID", B, LoopSettings("GRID", (Member(A, 50.0),)), setpoint_kw=40.0, devices={A: (A,)}
    )
    bench.cycle.loops.configure({"GRID": loop})
    bench.cycle.turn()
    after = bench.status
    assert (before.measured_kw, after.measured_kw) == (12.0, None)
    assert after.reason == f"loop GRID waits for the first reading of {B}, its members stay where they are"
    assert bench.cycle.units[B].image.loop_value is None
    assert bench.cycle.units[A].image.loop_value is not None


async def test_loop_begins_from_what_its_members_are_found_to_hold(store):
    bench = Bench(store)
    # Nobody knew before the contact, and the default was about to be written.
    for tag in (A, B):
        assert bench.lines[tag].writes[-1] == 50.0
        decision = bench.cycle.units[tag].decision
        assert decision is not None
        assert decision.value == 50.0
