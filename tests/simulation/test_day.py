"""A day in seconds, and a month from the disk."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from edge.core.commands import WriteClass
from tests.simulation.devices import SimulatedDevice, Written
from tests.simulation.world import World, profile

MIDNIGHT = datetime(2026, 3, 2, tzinfo=UTC)
SLOT = timedelta(minutes=15)
SLOTS = 96
CYCLIC, SINGULAR, PERSISTENT = "INVERTER_01", "INVERTER_02", "INVERTER_03"
# From the quarter hour to the write on a device that asks for no pause.
PROMPTLY_S = 0.25
CYCLE_S = 300.0


def value_of(slot: int) -> float:
    """Another value for each quarter hour, none of them the default, and each next to a different one."""
    return float(slot * 37 % 97)


def slots_of_a_day() -> dict[str, float | None]:
    return {f"{slot // 4:02d}:{slot % 4 * 15:02d}": value_of(slot) for slot in range(SLOTS)}


@pytest.fixture
def world(world: World) -> World:
    """Three devices without a pause, just before midnight, with a schedule for the day that comes."""
    world.begin_at(MIDNIGHT - timedelta(seconds=30))
    world.add(CYCLIC, port=1, poll_s=30.0)
    world.add(SINGULAR, port=2, poll_s=30.0, lifetime="singular")
    kind = profile(write_class=WriteClass.PERSISTENT, writes_per_day=200)
    world.add(PERSISTENT, kind, port=3, poll_s=30.0)
    world.configure()
    return world


def at_begin_of(slot: int, world: World) -> float:
    """When a slot of the day begins, in the world's seconds."""
    return world.moment(MIDNIGHT + slot * SLOT)


def writes_in(slot: int, device: SimulatedDevice, world: World) -> list[Written]:
    begin, end = at_begin_of(slot, world), at_begin_of(slot + 1, world)
    return [write for write in device.writes if begin <= write.sent_s < end]


@pytest.mark.long
def test_each_slot_of_a_day_is_written_once_at_its_quarter_hour_though_the_link_is_lost_for_hours(world):
    world.schedule(MIDNIGHT.date(), slots_of_a_day())
    world.start()
    world.run_to(MIDNIGHT + timedelta(hours=5))
    world.broker.cut()
    world.run_to(MIDNIGHT + timedelta(hours=17))
    world.broker.mend()
    world.run_to(MIDNIGHT + timedelta(hours=24))
    world.check()

    for tag in (CYCLIC, SINGULAR, PERSISTENT):
        device = world.device(tag)
        for slot in range(SLOTS):
            writes = writes_in(slot, device, world)
            assert {write.value for write in writes} == {value_of(slot)}
            assert writes[0].sent_s - at_begin_of(slot, world) <= PROMPTLY_S
            if tag != CYCLIC:
                assert len(writes) == 1, f"{tag} repeats the value of slot {slot}"
            else:
                # Repeated each 300 s within the slot, and only then.
                apart = [late.sent_s - early.sent_s for early, late in pairwise(writes)]
                assert len(writes) == 3
                assert apart == pytest.approx([CYCLE_S] * 2, abs=1.1)


@pytest.mark.long
def test_persistent_register_is_never_written_to_repeat_a_value(world):
    half = dict.fromkeys(slots_of_a_day(), 40.0)
    world.schedule(MIDNIGHT.date(), half)
    world.start()
    world.run_to(MIDNIGHT + timedelta(hours=6))
    for _ in range(3):
        world.restart()
        world.run(60.0)
    world.reboot()
    world.run(3600.0)
    world.check()

    device = world.device(PERSISTENT)
    assert [write.value for write in device.writes] == [40.0]


@pytest.mark.long
def test_schedules_run_from_the_disk_without_central_for_thirty_days(world):
    # What it takes up is all it ever hears: a node with no link, and a kernel with no source of time.
    for day in range(31):
        world.schedule((MIDNIGHT + timedelta(days=day)).date(), slots_of_a_day())
    world.start()
    world.run(10.0)
    world.kernel_knows_time(vouches=False)
    world.run(2.0)
    world.broker.cut()
    world.restart()
    world.run(10.0)

    # Whole days at this pace would be a minute of computing for nothing: between the hours that are looked at
    # the machine sleeps, and both its clocks go on.
    for day in (0, 1, 7, 15, 22, 29):
        morning = MIDNIGHT + timedelta(days=day, hours=3)
        world.suspend((morning - world.utc()).total_seconds() - 60.0)
        world.run_to(morning + timedelta(minutes=31))
        world.check()
        for slot in range(12, 14):
            begin = world.moment(MIDNIGHT + timedelta(days=day) + slot * SLOT)
            for tag in (CYCLIC, SINGULAR, PERSISTENT):
                promptly = [
                    write for write in world.device(tag).writes if 0 <= write.sent_s - begin <= PROMPTLY_S
                ]
                assert [write.value for write in promptly] == [value_of(slot)]


def test_default_is_taken_when_the_schedule_ends_on_the_disk(world):
    world.schedule(MIDNIGHT.date(), slots_of_a_day())
    world.start()
    world.run(5.0)
    world.broker.cut()
    world.suspend(timedelta(hours=23, minutes=50).total_seconds())
    world.run_to(MIDNIGHT + timedelta(hours=24, seconds=1))

    assert [world.limit(tag) for tag in (CYCLIC, SINGULAR, PERSISTENT)] == [100.0] * 3
    world.check()
