"""Closed loops in a node: what they see, when they step, what they leave to others, and what they say."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
import structlog

from edge.core.closed_loop import Stand
from edge.core.commands import WriteClass
from edge.profiles.model import VALUE, OwnFallback, Profile, Step
from tests.runtime.loop_site import METER, A, B, C, LoopSite, loop_site
from tests.simulation.machine import memory, silence
from tests.simulation.world import PROFILES, Trouble, profile

LIMIT_KW = 40.0
NOMINAL_KW = 150.0


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = structlog.get_config()
    silence()
    yield
    structlog.configure(**before)


@pytest.fixture
def site() -> Iterator[LoopSite]:
    """150 kW of inverters in full sun behind a meter, a load of 10 kW; nothing runs yet."""
    with TemporaryDirectory(prefix="loops-", dir=memory()) as name, loop_site(Path(name)) as made:
        yield made


def start(site: LoopSite, **settings: object) -> None:
    """Start the node on a site with this loop, and let it settle."""
    site.loop(**settings)
    site.world.configure()
    site.world.start()
    site.world.run(15.0)


def released_by_itself() -> Profile:
    """A device that lets go of its limit when nobody gives it a sign of life, as its installer has set it."""
    plain = profile()
    assert plain.limit is not None
    sign = Step(point="limit_target", value=VALUE)
    own = OwnFallback(
        timeout_s=3600.0, keep_alive=(sign,), keep_alive_class=WriteClass.VOLATILE, takes="release"
    )
    limit = msgspec.structs.replace(plain.limit, fallback=own)
    return msgspec.structs.replace(plain, name="released", limit=limit)


# --- it holds the connection's power --------------------------------------------------------------


def test_loop_holds_its_setpoint_at_the_meter_and_says_so(site):
    start(site, setpoint_kw=LIMIT_KW)
    assert site.export_kw == pytest.approx(LIMIT_KW, abs=2.0)
    assert site.status.stand == Stand.TRACKING
    assert site.status.setpoint_kw == LIMIT_KW
    assert site.status.measured_kw == pytest.approx(LIMIT_KW, abs=2.0)
    assert site.status.load_kw == pytest.approx(10.0, abs=2.0)
    assert site.status.reason.startswith("loop GRID holds 40 kW of export at ")


def test_fall_of_load_is_answered_when_its_reading_arrives_and_not_at_the_next_tick(site):
    site.load_kw = 90.0
    start(site, setpoint_kw=LIMIT_KW, time_step_s=20.0, stale_after_s=60.0)
    site.world.run(20.0)
    site.load_kw, begin = 10.0, site.world.now_s
    site.world.run(2.0)
    first = min(
        write.at_s for device in site.inverters.values() for write in device.writes if write.at_s > begin
    )
    assert first - begin < 1.1
    assert site.export_kw <= LIMIT_KW + 2.0


def test_setpoint_of_the_schedule_is_percent_of_the_members_nominal_power(site):
    world = site.world
    world.schedule(world.utc().date(), {"10:00": 30.0, "10:15": 10.0})
    start(site, setpoint_kw=100.0, mode="track", time_step_s=5.0)
    assert site.status.setpoint_kw == pytest.approx(0.3 * NOMINAL_KW)
    assert site.export_kw == pytest.approx(45.0, abs=2.0)
    world.run_to(world.utc().replace(minute=15, second=1))
    world.run(5.0)
    assert site.status.setpoint_kw == pytest.approx(0.1 * NOMINAL_KW)
    world.run_to(world.utc().replace(minute=30, second=1))
    world.run(5.0)
    assert site.status.setpoint_kw == 100.0


def test_changed_schedule_is_in_force_at_once_whatever_the_period(site):
    world = site.world
    world.schedule(world.utc().date(), {"10:00": 30.0})
    start(site, mode="track", time_step_s=50.0, stale_after_s=120.0)
    world.run(60.0)
    world.schedule(world.utc().date(), {"10:00": 60.0})
    world.run(2.0)
    assert site.status.setpoint_kw == pytest.approx(0.6 * NOMINAL_KW)
    assert site.limits()[A] > 55.0


def test_changed_default_is_the_setpoint_at_once_where_nobody_says_another(site):
    start(site, mode="track", time_step_s=50.0, stale_after_s=120.0)
    site.world.run(60.0)
    for tag in (A, B, C):
        site.world.raw[tag]["default_value"] = 40.0
    site.world.configure()
    site.world.run(6.0)
    assert site.status.setpoint_kw == pytest.approx(0.4 * NOMINAL_KW)


def test_setpoint_is_the_members_default_where_nobody_says_another(site):
    start(site, mode="track")
    assert site.status.setpoint_kw == NOMINAL_KW
    assert site.limits() == {A: 100.0, B: 100.0, C: 100.0}


def test_schedule_by_a_clock_that_nobody_confirms_ends_after_a_quarter_of_an_hour(site):
    world = site.world
    world.schedule(world.utc().date(), dict.fromkeys(["10:00", "10:15", "10:30"], 30.0))
    start(site, setpoint_kw=100.0, mode="track")
    world.kernel_knows_time(vouches=False)
    world.set_wall_clock(3600.0)
    world.run(895.0)
    assert site.status.setpoint_kw == pytest.approx(45.0)
    world.run(10.0)
    assert site.status.setpoint_kw == 100.0


# --- rule 1: who holds what -----------------------------------------------------------------------


def test_direct_request_outranks_the_loop_which_goes_on_with_the_others(site):
    start(site, setpoint_kw=LIMIT_KW, mode="track")
    site.world.setpoint(INVERTER_01=0.0)
    site.world.run(6.0)
    assert site.limits()[A] == 0.0
    assert site.export_kw == pytest.approx(LIMIT_KW, abs=2.0)
    assert site.status.stand == Stand.TRACKING
    assert A not in site.status.members


def test_other_value_for_a_member_that_is_held_is_answered_at_once_whatever_the_period(site):
    site.load_kw = 20.0
    start(site, export_limit_kw=LIMIT_KW, time_step_s=50.0, stale_after_s=120.0)
    site.world.setpoint(INVERTER_01=20.0)
    site.world.run(60.0)
    assert site.limits()[A] == 20.0
    assert site.limits()[B] > 40.0
    site.world.setpoint(INVERTER_01=100.0)
    site.world.run(3.0)
    # All that the limit leaves is for whom somebody asked for it.
    assert site.limits()[A] == pytest.approx(100.0, abs=1.0)
    assert site.export_kw <= LIMIT_KW + 0.5


def test_requests_to_all_members_leave_the_loop_nothing_to_do(site):
    start(site, setpoint_kw=LIMIT_KW)
    site.world.setpoint(INVERTER_01=50.0, INVERTER_02=50.0, INVERTER_03=50.0)
    site.world.run(3.0)
    assert site.limits() == {A: 50.0, B: 50.0, C: 50.0}
    assert site.status.stand == Stand.MANUAL
    assert site.status.reason == "loop GRID waits: direct requests hold all of its members"


def test_lapse_goes_back_to_the_loop_without_a_bump_and_is_logged_with_its_value(site):
    start(site, setpoint_kw=LIMIT_KW, mode="track", max_rate_pct_per_s=2.0)
    site.world.run(30.0)
    site.world.setpoint(INVERTER_01=0.0, INVERTER_02=0.0, INVERTER_03=0.0, hold_s=30.0)
    site.world.run(20.0)
    begin = site.world.now_s
    site.world.run(20.0)
    (entry,) = site.world.logged("watchdog")
    assert 0.0 <= entry.value <= 4.0  # where the loop takes over, not its schedule nor its default
    assert set(entry.devices) == {A, B, C}
    for tag in (A, B, C):
        values = [0.0, *site.writes(tag, since_s=begin)]
        assert all(after - before <= 4.0 + 1e-6 for before, after in itertools.pairwise(values))
    assert 0.0 < site.limits()[A] < 40.0


def test_release_goes_back_to_the_loop_at_once(site):
    start(site, setpoint_kw=LIMIT_KW, mode="track", time_step_s=20.0, stale_after_s=60.0)
    site.world.run(20.0)
    site.world.setpoint(INVERTER_01=0.0, INVERTER_02=0.0, INVERTER_03=0.0)
    site.world.run(3.0)
    site.world.release(A, B, C)
    site.world.run(2.0)
    assert min(site.limits().values()) > 0.0


# --- rule 16: a meter that is silent --------------------------------------------------------------


def test_silent_meter_leads_to_the_fallback_after_ten_seconds_and_to_a_static_bound(site):
    site.load_kw = 60.0
    start(site, export_limit_kw=LIMIT_KW, fallback_pct=60.0, time_step_s=5.0)
    site.world.run(10.0)
    held = site.limits()
    assert min(held.values()) > 60.0
    site.meter.is_broken = True
    heard_s = site.meter.told_s
    site.world.run(8.9)
    assert site.limits() == held
    site.world.run(2.0)
    # 40 of 150 kW are 26.7 %, and the registers take steps of 0.2 %.
    assert set(site.limits().values()) == {26.6}
    stale = [
        write.at_s for device in site.inverters.values() for write in device.writes if write.value == 26.6
    ]
    # Not at the next tick of five seconds.
    assert max(stale) - heard_s == pytest.approx(10.0, abs=0.05)
    site.world.run(6.0)
    assert site.status.stand == Stand.FALLBACK
    assert site.status.measured_kw is None
    (alarm,) = site.alarms("loop_stale")
    assert alarm.device == METER
    assert "has had no reading of METER_01" in alarm.detail


def test_static_bound_holds_under_direct_requests_schedule_and_default(site):
    site.load_kw = 60.0
    world = site.world
    world.schedule(world.utc().date(), {"10:00": 80.0})
    start(site, export_limit_kw=LIMIT_KW)
    site.meter.is_broken = True
    world.run(10.0)
    world.setpoint(INVERTER_01=70.0)
    world.run(5.0)
    assert site.limits() == {A: 26.6, B: 26.6, C: 26.6}


def test_silent_meter_of_a_mere_setpoint_leads_to_the_members_shares_of_it(site):
    site.load_kw = 60.0
    start(site, setpoint_kw=LIMIT_KW)
    assert min(site.limits().values()) > 60.0
    site.world.setpoint(INVERTER_01=90.0, hold_s=30.0)
    site.meter.is_broken = True
    site.world.run(13.0)
    # Nobody knows the load: with none at all, 40 of 150 kW are what may be given.
    assert site.limits() == {A: 90.0, B: 26.6, C: 26.6}
    site.world.run(26.0)
    assert site.limits()[A] == 26.6
    site.world.check()
    assert site.status.output_kw == pytest.approx(LIMIT_KW, abs=0.5)
    (alarm,) = site.alarms("loop_stale")
    assert alarm.detail.endswith("Z, each member is given its share of the setpoint, 26.7 %")
    assert site.status.reason == alarm.detail


def test_silent_meter_leaves_members_to_their_schedule_where_one_says_what_is_held(site):
    world = site.world
    world.schedule(world.utc().date(), {"10:00": 50.0})
    start(site, setpoint_kw=LIMIT_KW)
    site.meter.is_broken = True
    world.run(13.0)
    assert set(site.limits().values()) == {50.0}
    (alarm,) = site.alarms("loop_stale")
    assert alarm.detail.endswith("Z, its members go by their schedules")
    world.run_to(world.utc().replace(minute=15, second=2))
    world.run(2.0)
    # A slot that nobody has filled: the loop's own setpoint is what holds.
    assert set(site.limits().values()) == {26.6}
    world.run(10.0)
    world.check()
    (alarm,) = site.alarms("loop_stale")
    assert alarm.detail.endswith("Z, each member is given its share of the setpoint, 26.7 %")


def test_silent_meter_of_a_loop_that_nobody_gave_a_setpoint_leads_to_the_defaults(site):
    start(site, mode="track")
    site.meter.is_broken = True
    site.world.run(13.0)
    assert set(site.limits().values()) == {100.0}
    (alarm,) = site.alarms("loop_stale")
    assert alarm.detail.endswith("Z, its members go to their defaults")


def test_loop_is_back_after_three_fresh_readings_and_its_alarm_is_over(site):
    start(site, setpoint_kw=LIMIT_KW, fallback_pct=10.0)
    site.meter.is_broken = True
    site.world.run(15.0)
    assert set(site.limits().values()) == {10.0}
    site.meter.is_broken = False
    site.world.run(1.8)
    assert set(site.limits().values()) == {10.0}
    site.world.run(12.0)
    assert site.export_kw == pytest.approx(LIMIT_KW, abs=2.0)
    assert site.status.stand == Stand.TRACKING
    assert not site.alarms("loop_stale")


def test_meter_out_of_reach_is_as_good_as_silent(site):
    start(site, setpoint_kw=LIMIT_KW, fallback_pct=10.0)
    site.meter.fall_ill(Trouble.SILENT)
    site.world.run(13.0)
    assert set(site.limits().values()) == {10.0}


def test_meter_that_says_the_same_all_the_time_moves_nothing_further_than_the_members_range(site):
    start(site, setpoint_kw=LIMIT_KW)
    site.meter.says = 200.0
    site.world.run(60.0)
    assert set(site.limits().values()) == {0.0}
    site.meter.says = -1e30
    site.world.run(30.0)
    # Nobody believes that, and so nobody has read anything.
    assert site.status.stand == Stand.FALLBACK


# --- the connection limit -------------------------------------------------------------------------


def test_connection_limit_bounds_a_direct_request_at_the_present_load(site):
    site.load_kw = 20.0
    start(site, export_limit_kw=LIMIT_KW)
    site.world.setpoint(INVERTER_01=100.0, INVERTER_02=100.0, INVERTER_03=100.0)
    site.world.run(5.0)
    assert site.export_kw == pytest.approx(LIMIT_KW, abs=1.0)
    assert site.export_kw <= LIMIT_KW
    site.load_kw = 60.0
    site.world.run(6.0)
    assert site.export_kw == pytest.approx(LIMIT_KW, abs=1.0)
    (answers,) = site.world.central.answers.values()
    assert all(result.ok for result in answers[-1].devices.values())


# --- rules 7 and 14: nobody is there --------------------------------------------------------------


def test_guard_takes_the_fallback_and_the_static_bound_without_the_loop(site):
    site.load_kw = 60.0
    start(site, export_limit_kw=LIMIT_KW, fallback_pct=20.0)
    site.world.kill()
    site.world.guard()
    site.world.run(5.0)
    assert set(site.limits().values()) == {20.0}
    site.world.yield_to_node()
    site.world.run(15.0)
    assert site.export_kw == pytest.approx(LIMIT_KW, abs=2.0)


def test_guard_without_a_fallback_gives_members_their_shares_of_the_setpoint(site):
    site.load_kw = 60.0
    world = site.world
    start(site, setpoint_kw=LIMIT_KW)
    world.kill()
    world.guard()
    world.run(5.0)
    # (As the registers round 26.67.)
    assert site.limits() == pytest.approx(dict.fromkeys((A, B, C), 26.67), abs=0.2)


def test_guard_without_a_fallback_bounds_schedule_and_holds(site):
    site.load_kw = 60.0
    world = site.world
    world.schedule(world.utc().date(), {"10:00": 10.0})
    start(site, export_limit_kw=LIMIT_KW)
    world.setpoint(INVERTER_01=90.0)
    world.run(2.0)
    world.kill()
    world.guard()
    world.run(5.0)
    assert site.limits() == {A: 26.6, B: 10.0, C: 10.0}


def test_restarted_node_goes_on_from_what_members_hold(site):
    site.load_kw = 60.0
    start(site, export_limit_kw=LIMIT_KW)
    before, begin = site.limits(), site.world.now_s
    site.world.restart()
    site.world.run(10.0)
    for tag, value in before.items():
        assert all(abs(written - value) <= 2.0 for written in site.writes(tag, since_s=begin))


# --- configuration under way ----------------------------------------------------------------------


def test_members_of_a_loop_that_is_taken_away_go_to_what_holds_without_it(site):
    world = site.world
    world.schedule(world.utc().date(), {"10:00": 70.0})
    start(site, setpoint_kw=LIMIT_KW, export_limit_kw=LIMIT_KW)
    world.loops.clear()
    world.configure()
    world.run(3.0)
    assert set(site.limits().values()) == {70.0}
    site.world.run(6.0)
    assert site.beats[-1][1].loops == ()
    world.check()


def test_changed_setpoint_is_in_force_at_once_whatever_the_period(site):
    start(site, setpoint_kw=LIMIT_KW, time_step_s=50.0, stale_after_s=60.0, mode="track")
    site.world.run(60.0)
    site.world.loops[0]["setpoint_kw"] = 10.0
    site.world.configure()
    site.world.run(2.0)
    assert site.export_kw == pytest.approx(10.0, abs=3.0)


def test_loop_that_cannot_be_used_is_refused_alone_and_told(site):
    start(site, meter="METER_07")
    assert set(site.limits().values()) == {100.0}
    assert site.reports[-1].loops_refused == {
        "GRID": "meter METER_07 is not a device of this node: meter and members are on one node"
    }
    assert site.reports[-1].devices_refused == {}


def test_limit_of_a_loop_that_cannot_be_used_any_more_holds_without_it(site):
    """The meter is deleted at central: nobody measures any longer what the contract is about."""
    site.load_kw = 60.0
    world = site.world
    start(site, setpoint_kw=LIMIT_KW, export_limit_kw=LIMIT_KW)
    assert min(site.limits().values()) > 60.0
    meter = world.raw.pop(METER)
    world.configure()
    world.run(3.0)
    assert site.limits() == {A: 26.6, B: 26.6, C: 26.6}
    world.setpoint(INVERTER_01=90.0)
    world.run(15.0)
    assert site.limits()[A] == 26.6
    world.check()
    (alarm,) = site.alarms("loop_refused")
    assert alarm.detail == (
        f"loop GRID: meter {METER} is not a device of this node: meter and members are on one node; its"
        f" connection limit of 40 kW of export bounds {A}, {B}, {C} meanwhile by nominal power"
    )
    world.release(A)
    world.raw[METER] = meter
    world.configure()
    world.run(20.0)
    assert site.export_kw == pytest.approx(LIMIT_KW, abs=2.0)
    assert not site.alarms("loop_refused")


def test_guard_and_a_restarted_node_hold_the_limit_of_a_loop_that_cannot_be_used(site):
    site.load_kw = 60.0
    start(site, export_limit_kw=LIMIT_KW, meter="METER_07")
    assert site.limits() == {A: 26.6, B: 26.6, C: 26.6}
    site.world.setpoint(INVERTER_01=90.0)
    site.world.run(2.0)
    site.world.kill()
    site.world.guard()
    site.world.run(5.0)
    assert site.limits() == {A: 26.6, B: 26.6, C: 26.6}
    site.world.yield_to_node()
    site.world.run(10.0)
    assert site.limits() == {A: 26.6, B: 26.6, C: 26.6}


# --- what the node says ---------------------------------------------------------------------------


def test_change_of_stand_is_told_at_once_and_no_two_heartbeats_come_within_a_second(site):
    start(site, setpoint_kw=LIMIT_KW)
    site.world.run(1.7)
    site.world.setpoint(INVERTER_01=50.0, INVERTER_02=50.0, INVERTER_03=50.0)
    asked = site.world.now_s
    site.world.run(1.2)
    at_s, beat = site.beats[-1]
    assert at_s - asked <= 1.1
    assert beat.loops[0].stand == Stand.MANUAL
    for _ in range(4):
        site.world.release(A, B, C)
        site.world.run(0.3)
        site.world.setpoint(INVERTER_01=50.0, INVERTER_02=50.0, INVERTER_03=50.0)
        site.world.run(0.3)
    sent = [beat.mono_ms for _, beat in site.beats]
    assert min(after - before for before, after in itertools.pairwise(sent)) >= 1000


def test_setpoint_and_output_are_readings_of_the_meter_at_its_interval(site):
    start(site, setpoint_kw=LIMIT_KW)
    site.points.clear()
    site.world.run(60.0)
    told = [point for _, point in site.points if point.device == METER]
    setpoints = [point for point in told if point.key == "P_Setpoint_kW"]
    assert [point.value for point in setpoints] == [LIMIT_KW] * len(setpoints)
    assert 5 <= len(setpoints) <= 7
    outputs = [point.value for point in told if point.key == "P_Output_kW"]
    assert outputs == pytest.approx([50.0] * len(setpoints), abs=2.0)
    assert {point.unit for point in told} == {"kW"}


def test_meter_and_members_are_polled_each_period_whatever_their_own(site):
    for raw in site.world.raw.values():
        raw["poll_s"] = 10.0
    start(site, setpoint_kw=LIMIT_KW)
    before = {tag: device.commands for tag, device in site.inverters.items()}, site.meter.commands
    site.world.run(20.0)
    assert site.meter.commands - before[1] == pytest.approx(20, abs=2)
    for tag, device in site.inverters.items():
        assert device.commands - before[0][tag] >= 18


def test_explanation_names_the_loop_and_the_connection_limit(site):
    site.load_kw = 20.0
    start(site, export_limit_kw=LIMIT_KW)
    answer = site.ask("explain", A)
    assert answer.explanation is not None
    text = answer.explanation.decision.text
    assert " by closed_loop (loop GRID holds the connection limit of 40 kW of export at " in text
    assert "connection limit 40 kW of export -inf to " in text


def test_preview_says_what_the_connection_limit_would_leave_of_a_request(site):
    site.load_kw = 20.0
    start(site, export_limit_kw=LIMIT_KW)
    answer = site.ask("preview", A, value=100.0)
    assert answer.previews is not None
    told = answer.previews[A]
    assert told.bounded_by == "connection limit 40 kW of export"
    assert told.value is not None
    assert told.value < 60.0
    assert "under it closed_loop" in told.reason


def test_meter_that_counts_the_wrong_way_is_an_alarm_until_it_is_turned(site):
    start(site, setpoint_kw=LIMIT_KW)
    site.meter.tell_power = lambda: -site.export_kw

    def clouds(count: int) -> None:
        for number in range(count):
            for inverter in site.inverters.values():
                inverter.sun = 1.0 if number % 2 else 0.2
            site.world.run(15.0)

    clouds(8)
    (alarm,) = site.alarms("meter_sign")
    assert alarm.device == METER
    assert "it counts the wrong way" in alarm.detail
    site.meter.tell_power = lambda: site.export_kw
    clouds(8)
    assert not site.alarms("meter_sign")


def test_own_fallback_that_lets_go_of_the_limit_is_an_alarm_as_long_as_there_is_one(site):
    site.add("INVERTER_04", kw=50.0, port=4, kind=released_by_itself())
    start(site, export_limit_kw=LIMIT_KW)
    (alarm,) = site.alarms("limit_not_held")
    assert alarm.device == "INVERTER_04"
    assert alarm.detail == "limit not held if the node dies: the device can only release it by itself"
    del site.world.loops[0]["export_limit_kw"]
    site.world.configure()
    site.world.run(15.0)
    assert not site.alarms("limit_not_held")


def test_proxy_is_held_as_one_member_by_what_its_children_give_together(site):
    world = site.world
    world.profiles["proxy_device"] = PROFILES["proxy_device"]
    world.raw["PARK_01"] = {
        "id": "PARK_01",
        "tag": "PARK_01",
        "category": "inverter",
        "profile": "proxy_device",
    }
    world.raw["PARK_01"] |= {"host": "", "port": 0, "unit": 0}
    for tag in (A, B):
        world.raw[tag] |= {"owned_by": "PARK_01"}
    start(site, members=["PARK_01", C], setpoint_kw=LIMIT_KW)
    assert site.export_kw == pytest.approx(LIMIT_KW, abs=2.0)
    assert set(site.status.members) == {"PARK_01", C}
    assert site.limits()[A] == site.limits()[B] == pytest.approx(site.status.members["PARK_01"])


def test_member_out_of_reach_counts_as_load_and_is_taken_up_again_without_a_bump(site):
    start(site, setpoint_kw=LIMIT_KW, mode="track")
    held = site.limits()[A]
    site.inverters[A].fall_ill(Trouble.SILENT)
    site.world.run(30.0)
    assert site.export_kw == pytest.approx(LIMIT_KW, abs=2.0)
    begin = site.world.now_s
    site.inverters[A].fall_ill(Trouble.NONE)
    site.world.run(20.0)
    assert site.export_kw == pytest.approx(LIMIT_KW, abs=2.0)
    assert all(abs(value - held) < 25.0 for value in site.writes(A, since_s=begin))


def test_whatever_happens_to_a_looped_site_the_rules_hold(site):
    start(site, setpoint_kw=LIMIT_KW, export_limit_kw=LIMIT_KW, fallback_pct=20.0)
    for step in (
        lambda: site.world.setpoint(INVERTER_01=80.0),
        site.world.restart,
        lambda: site.inverters[B].fall_ill(Trouble.MUTE),
        lambda: site.world.release(A),
        lambda: site.inverters[B].fall_ill(Trouble.NONE),
        lambda: site.world.suspend(30.0),
        site.world.reboot,
        lambda: site.world.set_wall_clock(-3600.0),
    ):
        step()
        site.world.run(12.0)
        site.world.check()
    site.world.run(20.0)
    assert site.export_kw <= LIMIT_KW + 0.5
