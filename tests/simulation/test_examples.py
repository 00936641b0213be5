"""Every counterexample the shuffled life has found, as the story it tells."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.simulation.devices import Trouble
from tests.simulation.link import Weather
from tests.simulation.world import A_MORNING, World, profile

A, B = "INVERTER_01", "INVERTER_02"
TODAY = A_MORNING.date()


def settle(world: World, seconds: float = 12.0) -> None:
    world.run(seconds)
    world.check()


def test_guard_believes_the_clock_that_was_confirmed_while_the_node_was_there(world):
    # It had no link to hear of the time by, and took the defaults at once.
    world.add(A, port=1)
    world.configure()
    world.schedule(TODAY, {"10:00": 80.0})
    world.start()
    settle(world)
    world.kernel_knows_time(vouches=False)
    settle(world)

    world.kill()
    world.guard()
    settle(world)

    assert world.limit(A) == 80


def test_hold_ends_though_its_device_cannot_be_used_as_configured_and_the_process_restarts(world):
    # The disk knew the new configuration alone, by which there was no such device: its limit stayed for ever.
    world.add(A, port=1)
    world.configure()
    world.start()
    settle(world)
    world.setpoint(hold_s=60.0, INVERTER_01=30.0)
    world.run(2.0)

    world.raw[A].update(max_value=50.0, default_value=100.0)  # the default is out of range
    world.configure()
    world.run(2.0)
    world.restart()
    world.run(2.0)
    assert world.limit(A) == 30
    settle(world, 70.0)

    assert world.limit(A) == 100


def test_fallback_owed_at_a_boot_without_the_time_is_the_default(world):
    # It was decided by the schedule as if the clock could be trusted, and that then stayed for 15 minutes.
    world.add(A, port=1)
    world.configure()
    world.schedule(TODAY, {"10:00": 80.0})
    world.start()
    settle(world)
    world.setpoint(hold_s=60.0, INVERTER_01=30.0)
    world.run(2.0)

    world.kernel_knows_time(vouches=False)
    world.reboot()
    settle(world)

    assert world.limit(A) == 100


def test_document_overtaken_by_its_successor_is_forgotten(world):
    # It took the place of the newer one, which the manifest listed a moment later.
    world.add(A, port=1)
    world.configure()
    world.start()
    settle(world)
    for value in (20.0, 40.0, 60.0, 30.0, 70.0):
        world.broker.down = Weather(delay_s=(0.0, 2.0), repeat=0.5)
        world.schedule(TODAY, {"10:00": value})
    settle(world)

    assert world.limit(A) == 70


def test_line_that_is_rebuilt_keeps_the_pause_of_its_predecessor(world):
    # The first command of the new session came within the pause after the last one of the old.
    pausing = profile(gap_s=0.5)
    world.add(A, pausing, port=1, unit=1, poll_s=2.0)
    world.add(B, profile(gap_s=0.2), port=1, unit=2, poll_s=2.0)
    world.configure()
    world.start()
    settle(world)
    for _ in range(5):
        away = world.raw.pop(A)
        world.configure()
        settle(world, 1.3)
        world.raw[A] = away
        world.configure()
        settle(world, 1.7)

    assert [device.gap_violations for device in world.devices.values()] == [[], []]


@pytest.mark.parametrize("trouble", [Trouble.REFUSE, Trouble.SILENT, Trouble.MUTE, Trouble.IGNORE_WRITES])
def test_hold_that_ends_while_its_device_is_in_trouble_is_over_once_it_is_back(world, trouble):
    world.add(A, port=1)
    world.configure()
    world.start()
    settle(world)
    world.setpoint(hold_s=30.0, INVERTER_01=30.0)
    world.run(2.0)
    assert world.limit(A) == 30

    world.device(A).fall_ill(trouble)
    world.run(60.0)
    world.device(A).fall_ill(Trouble.NONE)
    settle(world, 70.0)

    assert world.limit(A) == 100


def test_wall_clock_that_jumps_moves_no_hold_and_no_slot_of_a_confirmed_clock(world):
    world.add(A, port=1)
    world.configure()
    world.schedule(TODAY, {"10:00": 80.0})
    world.start()
    settle(world)
    world.setpoint(hold_s=60.0, INVERTER_01=30.0)
    world.run(1.0)

    world.kernel_knows_time(vouches=False)
    world.set_wall_clock(timedelta(hours=3).total_seconds())
    world.run(50.0)
    assert world.limit(A) == 30
    settle(world, 15.0)
    assert world.limit(A) != 30


def test_node_connects_again_after_each_loss_of_its_link(world):
    # It never did: the loss left its task marked as cancelled, and it took that for a request to stop.
    world.add(A, port=1)
    world.configure()
    world.start()
    settle(world)
    for value in (30.0, 40.0, 50.0):
        world.broker.cut()
        world.run(30.0)
        world.broker.mend()
        settle(world, 20.0)
        world.setpoint(hold_s=10.0, INVERTER_01=value)
        world.run(1.0)

        assert world.limit(A) == value


def test_request_that_a_broker_retained_is_refused_by_whoever_finds_it(world):
    world.add(A, port=1)
    world.configure()
    world.start()
    settle(world)
    world.broker.cut()
    command = world.command({A: 30.0}, hold_s=60.0, retain=True)
    world.broker.mend()
    settle(world, 3.0)

    assert [answer.code for answer in world.central.answers[command]] == ["retained"]
    assert world.limit(A) == 100
