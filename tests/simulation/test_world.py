"""The simulation itself: equal seeds give equal histories, and its checks can fail."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from edge.drivers.errors import DeviceUnreachable
from tests.simulation.connection import Connection, Meter
from tests.simulation.devices import SimulatedPlant, SimulatedSession, Trouble
from tests.simulation.link import STORM
from tests.simulation.machine import memory
from tests.simulation.world import A_MORNING, World, profile, world as a_world

A, B, C = "INVERTER_01", "INVERTER_02", "INVERTER_03"
METER = "METER_01"
PROJECT = Path(__file__).parents[2]


def a_busy_hour(world: World) -> str:
    """A bit of everything that draws lots; the fingerprint of what came of it."""
    world.add(A, port=1)
    world.add(B, profile(gap_s=0.2), port=2, unit=1)
    world.add(C, profile(gap_s=0.2), port=2, unit=2)
    world.configure()
    world.schedule(A_MORNING.date(), {"10:00": 80.0, "10:15": 40.0, "10:30": None})
    world.start()
    world.run(5.0)
    world.broker.down = world.broker.up = STORM
    for turn in range(20):
        world.setpoint(hold_s=30.0, INVERTER_01=float(turn), INVERTER_02=50.0, INVERTER_03=10.0)
        world.run(40.0)
        if turn % 5 == 0:
            world.device(B).fall_ill(Trouble.SILENT)
        if turn % 5 == 2:
            world.device(B).fall_ill(Trouble.NONE)
            world.restart()
    world.reboot()
    world.run(1800.0)
    return world.digest()


def fingerprint(*, seed: int) -> str:
    with (
        TemporaryDirectory(prefix="simulation-", dir=memory()) as directory,
        a_world(Path(directory), seed=seed) as made,
    ):
        return a_busy_hour(made)


def test_equal_seeds_give_equal_histories_and_others_do_not():
    assert fingerprint(seed=1) == fingerprint(seed=1)
    assert fingerprint(seed=1) != fingerprint(seed=2)


def test_history_does_not_depend_on_the_process_it_is_simulated_in():
    # Sets of texts have another order in each process, unless it is told which.
    code = (
        "from tests.simulation.machine import silence; silence();"
        "from tests.simulation.test_world import fingerprint; print(fingerprint(seed=1))"
    )

    def told(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        argv = [sys.executable, "-c", code]
        return subprocess.run(
            argv, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True, timeout=120
        ).stdout

    assert told("1") == told("2") == f"{fingerprint(seed=1)}\n"


# --- the checks can fail ----------------------------------------------------------------------------


@pytest.fixture
def site(world: World) -> World:
    world.add(A, port=1)
    world.configure()
    world.start()
    world.run(12.0)
    world.check()
    return world


def test_device_that_is_not_where_the_rules_want_it_is_noticed(site):
    site.device(A).limit_in_force = 30.0

    with pytest.raises(AssertionError, match="holds 30, by the rules it is 100"):
        site.check()


def test_hold_that_outlives_its_end_is_noticed(site):
    site.setpoint(hold_s=20.0, INVERTER_01=30.0)
    site.run(5.0)
    site.kill()
    site.run(20.0)
    site.check()  # nobody is there to end it

    site.since_s, site._task = site.now_s - 10.0, site.loop.create_task(asyncio.sleep(1e6))
    with pytest.raises(AssertionError, match="holds 30, by the rules it is 100"):
        site.check()


@pytest.mark.parametrize(
    ("what", "match"),
    [
        (lambda site: site.device(A).on_sent(site.device(A), 55.0, "stranger"), "writes 55 to"),
        (lambda site: site.device(A).on_sent(site.device(A), 101.0, "stranger"), "outside 0 to 100"),
        (lambda site: site.device(A).gap_violations.append(0.1), "gap"),
        (lambda site: site._task.cancel() and site.run(1.0), "ended by itself"),
    ],
    ids=["value nobody asked for", "value out of range", "pause not kept", "process ended"],
)
def test_what_must_not_happen_is_noticed(site, what: Callable[[World], object], match):
    what(site)

    with pytest.raises(AssertionError, match=match):
        site.check()


def test_value_written_under_a_hold_by_a_lower_source_is_noticed(site):
    site.setpoint(hold_s=60.0, INVERTER_01=30.0)
    site.run(5.0)
    site.device(A).on_sent(site.device(A), 100.0, "stranger")

    with pytest.raises(AssertionError, match=r"writes 100 to .* by the rules it is \[30\]"):
        site.check()


def test_excluded_device_that_is_written_is_noticed(site):
    site.raw[A]["excluded"] = True
    site.configure()
    site.run(30.0)
    site.check()

    site.device(A).on_sent(site.device(A), 100.0, "stranger")
    with pytest.raises(AssertionError, match=r"by the rules it is \[None\]"):
        site.check()


def test_device_left_behind_at_a_limit_is_noticed(site):
    site.setpoint(hold_s=60.0, INVERTER_01=30.0)
    site.run(5.0)
    site.broker.cut()
    del site.raw[A]
    site.configure()
    # The node hears nothing of it; the rules do.
    for message in site.broker.retained.values():
        site.hear(message)
    site.run(15.0)

    with pytest.raises(AssertionError, match="was left at 30"):
        site.check()


def test_second_process_on_a_bus_is_noticed_and_a_second_session_is_refused(site):
    stranger = session_of(site.plant, "stranger", site)
    with pytest.raises(DeviceUnreachable, match="has its session already"):
        site.loop.run_until_complete(stranger.connect())

    with pytest.raises(AssertionError, match="stranger came to plant:1 while node-1 was there"):
        site.check()


def session_of(plant: SimulatedPlant, who: str, world: World) -> SimulatedSession:
    return SimulatedSession(
        plant=plant,
        who=who,
        host="plant",
        port=1,
        timeout_s=1.0,
        min_gap_s=0.0,
        clock=world.loop.time,
        sleep=asyncio.sleep,
    )


# --- and those of a closed loop ---------------------------------------------------------------------


@pytest.fixture
def looped(world: World) -> World:
    """180 kW of inverters that may export 54 between them, a load of 10 kW, and a meter that says so."""
    world.connection = Connection(world.loop.time)
    world.add_meter(METER, port=9)
    for port, tag in enumerate((A, B, C), start=1):
        world.add(tag, port=port)
    world.loops = [{"id": "loop-1", "tag": "GRID", "meter": METER, "members": [A, B, C], "time_step_s": 2.0}]
    world.loops[0] |= {"export_limit_kw": 54.0, "fallback_pct": 20.0, "max_rate_pct_per_s": 5.0}
    world.configure()
    world.start()
    world.run(80.0)
    world.check()
    assert world.held_below == world.met == 1
    return world


def unheard(world: World, **changes: float) -> None:
    """Change the loop; the rules hear of it, and the node does not."""
    world.broker.cut()
    world.loops[0] |= changes
    world.configure()
    for message in world.broker.retained.values():
        world.hear(message)


def silent(world: World) -> None:
    meter = world.device(METER)
    assert isinstance(meter, Meter)
    meter.is_broken = True


def test_member_above_its_fallback_while_the_meter_is_silent_is_noticed(looped):
    silent(looped)
    looped.run(70.0)
    looped.check()

    looped.device(A).limit_in_force = 25.0
    with pytest.raises(AssertionError, match="INVERTER_01 holds 25, by the rules it is 20"):
        looped.check()


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (40.0, r"writes 40 .* by the rules it is \[30\]"),  # 54 of 180 kW
        (20.0, r"writes 20 .* by the rules it is \[30\]"),
    ],
)
def test_write_beside_the_static_bound_of_a_held_member_is_noticed(looped, value, match):
    silent(looped)
    looped.run(20.0)
    looped.setpoint(INVERTER_01=80.0)
    looped.run(5.0)
    looped.check()

    looped.device(A).on_sent(looped.device(A), value, "stranger")
    with pytest.raises(AssertionError, match=match):
        looped.check()


def test_guard_that_lets_a_member_exceed_its_share_is_noticed(looped):
    looped.kill()
    looped.guard()
    looped.run(10.0)
    looped.check()

    looped.device(A).on_sent(looped.device(A), 35.0, "stranger")
    with pytest.raises(AssertionError, match=r"writes 35 .* by the rules it is \[20\]"):
        looped.check()


def test_meter_that_is_heard_twice_has_not_brought_its_loop_back(looped):
    silent(looped)
    looped.run(20.0)
    meter = looped.device(METER)
    assert isinstance(meter, Meter)
    meter.is_broken = False
    looped.run(3.9)

    looped.device(A).on_sent(looped.device(A), 35.0, "stranger")
    with pytest.raises(AssertionError, match=r"writes 35 .* by the rules it is \["):
        looped.check()


def test_member_that_rises_faster_than_its_loop_is_noticed(looped):
    looped.device(A).on_sent(looped.device(A), 60.0, "stranger")

    with pytest.raises(AssertionError, match=r"raises .* from 35.\d+ to 60, to 45.\d+ it may"):
        looped.check()


def test_export_above_the_connection_limit_is_noticed(looped):
    unheard(looped, export_limit_kw=36.0)
    looped.run(15.0)
    looped.check()

    looped.run(20.0)
    with pytest.raises(AssertionError, match=r"54\.0 kW are exported, 36 may be"):
        looped.check()


def test_setpoint_that_is_not_met_is_noticed(looped):
    unheard(looped, setpoint_kw=20.0)
    looped.run(90.0)

    with pytest.raises(
        AssertionError, match=r"members give 64\.0 kW, for an export of 20 at a load of 10\.0 it is 30\.0"
    ):
        looped.check()
