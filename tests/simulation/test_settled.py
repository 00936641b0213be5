"""What a process accepted and did not live to see through is settled by the next one."""

from __future__ import annotations

from edge.wire.messages import Code
from tests.simulation.devices import Trouble
from tests.simulation.world import World

A = "INVERTER_01"


def accept_and_die(world: World, *, hold_s: float = 60.0) -> str:
    """A request is on disk when the process ends, and its device has not answered yet."""
    device = world.add(A, port=1)
    world.configure()
    world.start()
    world.run(10)
    device.fall_ill(Trouble.SILENT)
    command = world.setpoint(INVERTER_01=30, hold_s=hold_s)
    world.run(0.2)
    world.kill()
    device.fall_ill(Trouble.NONE)
    return command


def test_command_open_at_a_restart_is_logged_once_and_says_that_its_hold_goes_on(world: World) -> None:
    command = accept_and_die(world)
    assert not world.logged("result")
    world.start()
    world.run(10)

    (entry,) = world.logged("result")
    assert entry.command_id == command
    assert entry.devices[A].code == Code.UNKNOWN
    assert "its hold goes on until" in entry.devices[A].detail
    assert world.limit(A) == 30
    world.restart()
    world.run(10)
    assert len(world.logged("result")) == 1


def test_command_open_at_a_reboot_is_logged_as_holding_nothing(world: World) -> None:
    accept_and_die(world)
    world.reboot()
    world.run(10)

    (entry,) = world.logged("result")
    assert "nothing holds the device any more" in entry.devices[A].detail
