"""What a node learns of its loops' members, keeps over a restart, and says of those that do not follow."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs

from edge.core.closed_loop import Dynamics
from edge.core.identification import Finding
from edge.runtime.database import Database
from edge.runtime.store import Learned, Store
from tests.runtime.loop_site import A, B, C, LoopSite, loop_site
from tests.simulation.world import PROFILES

LIMIT_KW = 40.0
KNOWN = Learned(60.0, Dynamics(2.0, 3.0, 10.0, 1.02), (Finding(2.0, 3.0, 10.0),))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(processors=[], logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.configure(**before)


@pytest.fixture
def site(tmp_path) -> Iterator[LoopSite]:
    with loop_site(tmp_path) as made:
        made.loop(setpoint_kw=LIMIT_KW)
        yield made


def start(site: LoopSite) -> None:
    site.world.configure()
    site.world.start()
    site.world.run(30.0)


@contextmanager
def disk(site: LoopSite) -> Iterator[Database]:
    """What the node has kept, read beside it."""
    database = Database(next(site.world.directory.rglob("node.sqlite3")))
    yield database
    database.close()


def kept(site: LoopSite) -> dict[str, Learned]:
    with disk(site) as database:
        rows = database.rows("SELECT tag, kept FROM learned")
    return {tag: msgspec.json.decode(entry, type=Learned) for tag, entry in rows}


def loads(site: LoopSite, *, count: int) -> None:
    for number in range(count):
        site.load_kw = 90.0 if number % 2 == 0 else 10.0
        site.world.run(40.0)


def test_node_learns_how_members_follow_and_keeps_it_over_a_restart(site):
    start(site)
    loads(site, count=12)
    learned = kept(site)
    assert set(learned) == {A, B, C}
    for known in learned.values():
        assert len(known.findings) >= 3
        # They wait 0.4 s and then are there: towards that it goes from what a node begins with.
        assert known.dynamics.dead_time_s < 1.0
        assert known.dynamics.lag_s < 1.0
    site.world.restart()
    site.world.run(30.0)
    assert kept(site) == learned


def test_what_is_learned_is_logged_when_it_has_changed_by_a_quarter_and_not_each_time(site):
    start(site)
    with capture_logs() as logged:
        loads(site, count=16)
    told = [line for line in logged if line["event"] == "device follows otherwise than was known"]
    assert {line["device"] for line in told} == {A, B, C}
    for tag, known in kept(site).items():
        mine = [line for line in told if line["device"] == tag]
        assert len(mine) < len(known.findings) - 2
        assert mine[-1]["dead_time_s"] == pytest.approx(known.dynamics.dead_time_s, rel=0.3)
        assert {"lag_s", "ramp_pct_per_s", "gain"} <= mine[-1].keys()


def test_export_stays_where_it_is_while_the_node_learns(site):
    start(site)
    loads(site, count=10)
    site.load_kw = 30.0
    site.world.run(30.0)
    assert site.export_kw == pytest.approx(LIMIT_KW, abs=2.0)


def test_member_that_does_not_follow_is_an_alarm_until_it_does_and_each_is_logged_once(site):
    start(site)
    inverter = site.inverters[A]
    plain = inverter.tell_power
    with capture_logs() as logged:
        inverter.tell_power = lambda: inverter.nameplate_kw
        site.world.run(60.0)
        (alarm,) = site.alarms("unresponsive")
        assert alarm.device == A
        assert "no sun explains that" in alarm.detail
        site.world.run(60.0)
        assert site.alarms("unresponsive") == [alarm]
        inverter.tell_power = plain
        site.world.run(60.0)
        assert site.alarms("unresponsive") == []
    told = [line["event"] for line in logged if line.get("code") == "unresponsive"]
    assert told == ["alarm", "alarm is over"]


def test_member_whose_sun_is_missing_is_no_alarm(site):
    start(site)
    for inverter in site.inverters.values():
        inverter.sun = 0.1
    site.world.run(120.0)
    assert site.alarms("unresponsive") == []


def test_loop_that_ends_takes_its_members_alarms_with_it(site):
    start(site)
    site.inverters[A].tell_power = lambda: 60.0
    site.world.run(60.0)
    assert site.alarms("unresponsive")
    site.world.loops = []
    site.world.configure()
    site.world.run(30.0)
    assert site.alarms("unresponsive") == []


# --- storages that are full or empty ---------------------------------------------------------------

STORE = "BATTERY_01"
SETPOINT_BATTERY = PROFILES["generic_modbus_battery_setpoint"]
SIGNED = {"category": "battery", "min_value": -100.0, "max_value": 100.0, "default_value": 0.0}


@pytest.mark.parametrize(
    ("asked", "power_kw", "charge", "is_unresponsive"),
    [
        (-60.0, 0.0, 97.0, False),
        (-60.0, 0.0, 50.0, True),
        (-60.0, 0.0, 5.0, True),
        (-60.0, 0.0, None, True),
        (60.0, 0.0, 7.0, False),
        (60.0, 0.0, 50.0, True),
        (60.0, 0.0, 97.0, True),
        # It does move, and not as it is told: what it has in store is no excuse.
        (-60.0, 25.0, 97.0, True),
        (60.0, -25.0, 7.0, True),
        (0.0, 25.0, 97.0, True),
    ],
)
def test_storage_that_stands_still_is_excused_when_it_is_full_or_empty(
    tmp_path, asked, power_kw, charge, is_unresponsive
):
    with loop_site(tmp_path) as site:
        battery = site.add(STORE, kw=50.0, port=4, kind=SETPOINT_BATTERY, **SIGNED)
        battery.tell_power = lambda: power_kw  # type: ignore[method-assign]
        battery.registers.set("state_of_charge", charge)
        site.loop(setpoint_kw=LIMIT_KW)
        start(site)
        site.world.setpoint(hold_s=600.0, BATTERY_01=asked)
        site.world.run(60.0)
        assert [alarm.device for alarm in site.alarms("unresponsive")] == [STORE] * is_unresponsive


# --- what is kept ---------------------------------------------------------------------------------


def test_what_was_learned_is_found_again(tmp_path):
    store = Store(tmp_path)
    store.keep_learned(A, KNOWN)
    store.keep_learned(B, KNOWN)
    store.forget_learned(B)
    store.close()
    store = Store(tmp_path)
    assert store.learned() == {A: KNOWN}
    store.close()


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"\xff", b'{"nominal_kw": 60, "dynamics": {"dead_time_s": -1}}']
)
def test_damaged_entry_is_dropped_alone(tmp_path, damage):
    store = Store(tmp_path)
    store.keep_learned(A, KNOWN)
    store.close()
    with sqlite3.connect(tmp_path / "node.sqlite3") as db:
        db.execute("INSERT INTO learned VALUES (?, ?)", (B, damage))
    db.close()
    store = Store(tmp_path)
    assert store.learned() == {A: KNOWN}
    store.close()
    with sqlite3.connect(tmp_path / "node.sqlite3") as db:
        assert db.execute("SELECT tag FROM learned").fetchall() == [(A,)]
    db.close()


@pytest.mark.parametrize(
    ("tag", "entry"),
    [
        (A, Learned(60.0, Dynamics(dead_time_s=1e5))),
        (A, Learned(55.0, Dynamics(5.0, 5.0, 10.0))),
        ("GONE", KNOWN),
    ],
)
def test_entry_of_what_cannot_be_of_another_machine_or_of_one_that_is_gone_is_not_used(site, tag, entry):
    start(site)
    with disk(site) as database:
        database.execute("INSERT INTO learned VALUES (?, ?)", (tag, msgspec.json.encode(entry)))
    site.world.restart()
    site.world.run(30.0)
    loads(site, count=6)
    learned = kept(site)
    assert learned[A].nominal_kw == 60.0
    assert learned[A].dynamics.dead_time_s < 1.2
    assert "GONE" not in learned
