"""The line to one endpoint: who goes first, what becomes of a write, and what a dead device costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from edge.drivers.base import PollResult
from edge.drivers.errors import DeviceAway, DeviceRefused, DeviceUnreachable, DriverError, ReadingInvalid
from edge.drivers.modbus import ModbusDriver, ModbusSession
from edge.runtime.bus import Bus, WriteOutcome
from edge.simulators.device import Fault
from edge.simulators.modbus import SimulatedDevice
from edge.wire.messages import Code
from tests.runtime.plant import NAMEPLATE_KW, TurnedClock, profile, running_plant

A, B = "INVERTER_01", "INVERTER_02"


@dataclass
class Recorder:
    """A listener that remembers."""

    contacts: list[tuple[str, float | None]] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    outcomes: list[WriteOutcome] = field(default_factory=list)
    polls: list[str] = field(default_factory=list)
    writes: dict[str, int] = field(default_factory=dict)

    def contact(self, tag: str, *, standing: float | None) -> None:
        self.contacts.append((tag, standing))

    def lost(self, tag: str, *, reason: str) -> None:  # noqa: ARG002 - the listener's signature
        self.losses.append(tag)

    def wrote(self, tag: str, outcome: WriteOutcome) -> None:  # noqa: ARG002 - the same
        self.outcomes.append(outcome)

    def polled(self, tag: str, result: PollResult) -> None:  # noqa: ARG002 - the same
        self.polls.append(tag)

    def kept_alive(self, tag: str, value: float, *, failed: str) -> None:  # noqa: ARG002 - the same
        raise AssertionError("no sign of life was asked for")

    def spent(self, tag: str, writes: dict[str, int]) -> None:
        self.writes[tag] = self.writes.get(tag, 0) + sum(writes.values())

    def outcome(self, ticket: int) -> WriteOutcome | None:
        return next((outcome for outcome in self.outcomes if outcome.ticket == ticket), None)


@dataclass
class ScriptedLine:
    """A session whose every command stands in `commands`, and can be held up or made to fail."""

    commands: list[tuple[str, str]] = field(default_factory=list)
    connected: bool = False
    stays_open: bool = False  # as a serial line does over a timeout
    silent: set[str] = field(default_factory=set)  # devices that do not answer
    next_command_at: float = 0.0
    connects: int = 0
    errors: dict[str, DriverError] = field(default_factory=dict)  # by kind of command
    once: dict[str, DriverError] = field(default_factory=dict)
    held: dict[str, asyncio.Event] = field(default_factory=dict)
    takes: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)

    async def connect(self) -> None:
        self.connects += 1
        if "connect" in self.errors:
            raise self.errors["connect"]
        self.connected = True

    async def aclose(self) -> None:
        self.connected = False

    async def command(self, kind: str, tag: str) -> None:
        self.commands.append((kind, tag))
        if kind in self.held:
            await self.held[kind].wait()
        if kind in self.takes:
            await self.takes[kind]()
        error = self.once.pop(kind, None) or self.errors.get(kind)
        if tag in self.silent:
            error = DeviceUnreachable("no answer")
        if error is not None:
            if isinstance(error, DeviceUnreachable):
                self.connected = self.stays_open
            raise error

    def hold(self, kind: str) -> asyncio.Event:
        """Let the next commands of this kind wait for what this returns."""
        self.commands.clear()
        self.held[kind] = asyncio.Event()
        return self.held[kind]


@dataclass
class ScriptedDevice:
    line: ScriptedLine
    tag: str
    value: float | None = 100.0
    takes: bool = True
    is_recognised: bool = True  # by something that is read
    commands_per_write: int = 1
    commands_per_poll: int = 1
    telemetry_units: dict[str, str] = field(default_factory=dict)

    async def identify(self) -> None:
        if self.is_recognised:
            await self.line.command("identify", self.tag)

    async def poll(self) -> PollResult:
        await self.line.command("poll", self.tag)
        return PollResult({}, self.value)

    async def write(self, value: float) -> None:
        await self.line.command("write", self.tag)
        if self.takes:
            self.value = value

    async def arm_fallback(self, value: float) -> None:  # noqa: ARG002 - the driver's signature
        raise AssertionError("this device has no fallback of its own")

    async def keep_alive(self, value: float) -> None:  # noqa: ARG002 - the driver's signature
        raise AssertionError("this device has no fallback of its own")

    def take_writes(self) -> dict[str, int]:
        return {}

    async def read_setpoint(self) -> float | None:
        await self.line.command("read_setpoint", self.tag)
        return self.value


class Bench:
    """One bus on the bench."""

    def __init__(self, stack: AsyncExitStack, *, min_gap_s: float) -> None:
        self.clock = TurnedClock()
        self.heard = Recorder()
        self.bus = Bus(name="line", clock=self.clock, listener=self.heard, min_gap_s=min_gap_s)
        self.line = ScriptedLine()
        self.devices: dict[str, ScriptedDevice] = {}
        self._stack = stack

    def scripted(self, *tags: str, poll_s: float = 1.0) -> None:
        self.bus.attach(self.line)
        for tag in tags:
            self.devices[tag] = ScriptedDevice(self.line, tag)
            self.bus.add(tag, self.devices[tag], poll_s=poll_s, tolerance=0.5, settable=True)
        self._start()

    def measured(self, tag: str) -> None:
        """A device that is only measured, and has nothing to be recognised by."""
        self.bus.attach(self.line)
        self.devices[tag] = ScriptedDevice(self.line, tag, is_recognised=False)
        self.bus.add(tag, self.devices[tag], poll_s=1.0, tolerance=0.5, settable=False)
        self._start()

    async def simulated(self, kind: Any, *, absent_unit: int | None = None) -> SimulatedDevice:
        """A real socket with device A behind it; B, if wanted, is a unit that nobody answers for."""
        device = SimulatedDevice(
            profile=kind, unit=kind.default_unit, nameplate_kw=NAMEPLATE_KW, clock=self.clock.boottime_s
        )
        await device.start()
        self._stack.push_async_callback(device.stop)
        session = ModbusSession(
            host=device.host,
            port=device.port,
            timeout_s=0.1,
            min_gap_s=kind.min_gap_ms / 1000,
            clock=self.clock.boottime_s,
            sleep=self.bus.gap,
        )
        self.bus.attach(session)
        units = {A: kind.default_unit} if absent_unit is None else {B: absent_unit, A: kind.default_unit}
        for tag, unit in units.items():
            driver = ModbusDriver(session=session, profile=kind, unit=unit, nameplate_kw=NAMEPLATE_KW)
            self.bus.add(tag, driver, poll_s=1.0, tolerance=0.5, settable=True)
        self._start()
        return device

    def _start(self) -> None:
        task = self.task = asyncio.create_task(self.bus.run())

        async def end() -> None:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        self._stack.push_async_callback(end)

    async def run(self, seconds: float, until: Any = None) -> float:
        return await self.clock.run(seconds, tasks=1, until=until)

    async def until_busy(self, kind: str, tag: str) -> None:
        async with asyncio.timeout(5):
            while self.line.commands[-1:] != [(kind, tag)]:  # noqa: ASYNC110 - the line has no event for it
                await asyncio.sleep(0)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def bench(stack: AsyncExitStack) -> Bench:
    return Bench(stack, min_gap_s=0.0)


@pytest.fixture
def slow_bench(stack: AsyncExitStack) -> Bench:
    """A line whose device wants a second between commands."""
    return Bench(stack, min_gap_s=1.0)


# --- order ----------------------------------------------------------------------------------------------


async def test_all_writes_come_before_all_readbacks_and_those_before_polls(bench):
    bench.scripted(A, B)
    await bench.run(0.5)
    bench.line.commands.clear()
    bench.clock.advance(0.6)  # polls are due

    bench.bus.write(A, 30, verify=False)
    bench.bus.write(B, 40, verify=False)
    await bench.run(0.1)

    assert bench.line.commands[:4] == [("write", A), ("write", B), ("read_setpoint", A), ("read_setpoint", B)]
    assert bench.line.commands[4][0] == "poll"


async def test_device_is_identified_and_read_before_it_is_written(bench):
    bench.scripted(A)
    bench.bus.write(A, 30, verify=False)
    await bench.run(0.1)

    assert [kind for kind, _ in bench.line.commands[:4]] == [
        "identify",
        "read_setpoint",
        "write",
        "read_setpoint",
    ]
    assert bench.heard.contacts == [(A, 100.0)]


async def test_device_slower_than_its_period_keeps_no_other_from_being_polled(bench):
    bench.scripted(A, B, poll_s=0.1)
    await bench.run(0.05)
    bench.line.takes["poll"] = lambda: bench.clock.sleep(0.3)
    await bench.run(30)

    assert bench.heard.polls.count(A) > 30
    assert abs(bench.heard.polls.count(A) - bench.heard.polls.count(B)) <= 1


async def test_device_that_goes_first_is_polled_before_those_that_wait_longer(bench):
    bench.scripted(A, B)
    bench.bus.pace(B, poll_s=1.0, phase_s=bench.clock.boottime_s(), goes_first=True)
    await bench.run(0.5)
    bench.line.commands.clear()
    await bench.run(3.0)
    assert bench.line.commands == [("poll", B), ("poll", A)] * 3


async def test_device_that_goes_first_and_is_too_slow_leaves_the_others_their_turns(bench):
    bench.scripted(A, B, poll_s=0.1)
    bench.bus.pace(B, poll_s=0.1, phase_s=bench.clock.boottime_s(), goes_first=True)
    await bench.run(0.05)
    bench.line.takes["poll"] = lambda: bench.clock.sleep(0.3)
    await bench.run(30)
    assert abs(bench.heard.polls.count(A) - bench.heard.polls.count(B)) <= 1


async def test_device_polled_at_another_pace_is_not_found_anew(bench):
    bench.scripted(A, poll_s=60.0)
    await bench.run(0.5)
    bench.bus.pace(A, poll_s=2.0, phase_s=bench.clock.boottime_s())
    bench.line.commands.clear()
    await bench.run(10.5)
    assert bench.line.commands == [("poll", A)] * 5
    bench.bus.pace(A, poll_s=5.0, phase_s=bench.clock.boottime_s())
    bench.line.commands.clear()
    await bench.run(10.5)
    assert len(bench.line.commands) == 2 + 1  # the one that was due anyhow


async def test_pause_of_the_line_is_longer_than_any_pace(slow_bench):
    slow_bench.scripted(A)
    slow_bench.bus.pace(A, poll_s=0.5, phase_s=slow_bench.clock.boottime_s())
    await slow_bench.run(10.0)
    slow_bench.line.commands.clear()
    await slow_bench.run(40.0)
    assert len(slow_bench.line.commands) == pytest.approx(10, abs=1)


# --- a write that is replaced, withdrawn or doubted -----------------------------------------------------


async def test_write_that_waits_is_replaced_by_a_newer_one(bench):
    bench.scripted(A)
    await bench.run(0.1)
    first = bench.bus.write(A, 30, verify=False)
    second = bench.bus.write(A, 40, verify=False)
    await bench.run(0.1)

    assert bench.line.commands.count(("write", A)) == 1
    assert bench.heard.outcome(first) is None
    assert bench.heard.outcome(second) == WriteOutcome(second, 40, readback=40)


async def test_write_replaced_while_under_way_is_followed_by_the_newer_one(bench):
    bench.scripted(A)
    await bench.run(0.1)
    held = bench.line.hold("write")
    first = bench.bus.write(A, 30, verify=False)
    await bench.until_busy("write", A)
    second = bench.bus.write(A, 40, verify=False)
    held.set()
    await bench.run(0.1)

    assert bench.devices[A].value == 40
    assert [outcome.ticket for outcome in bench.heard.outcomes] == [second]
    assert bench.heard.outcome(first) is None


async def test_readback_under_way_does_not_judge_a_newer_write(bench):
    bench.scripted(A)
    await bench.run(0.1)
    held = bench.line.hold("read_setpoint")
    bench.bus.write(A, 30, verify=False)
    await bench.until_busy("read_setpoint", A)
    second = bench.bus.write(A, 40, verify=False)
    held.set()
    await bench.run(0.1)

    assert [outcome.ticket for outcome in bench.heard.outcomes] == [second]
    assert bench.devices[A].value == 40


@pytest.mark.parametrize("kind", ["write", "read_setpoint"])
@pytest.mark.parametrize("error", [None, DeviceRefused("no"), ReadingInvalid("nonsense")])
async def test_write_withdrawn_while_under_way_is_not_tried_again(bench, kind, error):
    bench.scripted(A)
    await bench.run(0.1)
    bench.devices[A].takes = False
    held = bench.line.hold(kind)
    bench.bus.write(A, 30, verify=False)
    await bench.until_busy(kind, A)
    bench.bus.withdraw(A)
    if error is not None:
        bench.line.errors[kind] = error
    held.set()
    await bench.run(0.5)
    bench.line.errors.clear()
    await bench.run(30)

    assert bench.line.commands.count(("write", A)) == 1
    assert not bench.heard.outcomes


async def test_verified_write_asks_first_and_writes_only_what_differs(bench):
    bench.scripted(A)
    await bench.run(0.1)

    same = bench.bus.write(A, 100, verify=True)
    await bench.run(0.1)
    assert ("write", A) not in bench.line.commands
    assert bench.heard.outcome(same) == WriteOutcome(same, 100, readback=100)

    bench.devices[A].value = 60.0
    bench.bus.write(A, 100, verify=True)
    await bench.run(0.1)
    assert bench.devices[A].value == 100


async def test_verified_write_that_is_replaced_while_the_device_is_asked_is_not_written(bench):
    bench.scripted(A)
    await bench.run(0.1)
    held = bench.line.hold("read_setpoint")
    bench.bus.write(A, 30, verify=True)
    await bench.until_busy("read_setpoint", A)
    bench.bus.write(A, 40, verify=False)
    held.set()
    await bench.run(0.1)

    assert bench.line.commands.count(("write", A)) == 1
    assert bench.devices[A].value == 40


async def test_polls_keep_their_phase_however_late_one_is(bench):
    bench.scripted(A)
    await bench.run(0.5)
    began = bench.clock.boottime_s() - 0.5
    polled_at: list[float] = []

    async def slow_once() -> None:
        polled_at.append(bench.clock.boottime_s() - began)
        if len(polled_at) == 1:
            await bench.clock.sleep(2.3)

    bench.line.takes["poll"] = slow_once
    await bench.run(5.0)

    # The one that was due meanwhile comes at once, and none is made up for.
    assert polled_at == pytest.approx([1.0, 3.3, 4.0, 5.0], abs=0.001)


@pytest.mark.parametrize("kind", ["identify", "read_setpoint", "write", "poll"])
@pytest.mark.parametrize(
    "error", [DeviceRefused("no"), ReadingInvalid("nonsense"), DeviceUnreachable("gone")]
)
@pytest.mark.parametrize("verify", [False, True])
async def test_no_answer_of_a_device_ends_the_line(bench, kind, error, verify):
    bench.scripted(A)
    await bench.run(0.1)
    bench.line.errors[kind] = error
    bench.bus.write(A, 30, verify=verify)
    await bench.run(12)
    bench.line.errors.clear()

    await bench.run(30, lambda: bench.devices[A].value == 30)


async def test_device_that_is_wrong_for_weeks_does_not_end_the_line(bench):
    bench.scripted(A)
    bench.line.errors["identify"] = DeviceRefused("it is another model")
    await bench.run(0.1)
    bench.bus._members[A].contact_tries = 5000
    bench.bus.write(A, 30, verify=False)
    await bench.run(1)
    write = bench.bus._members[A].write
    assert write is not None
    write.tries = 5000
    await bench.run(700)

    bench.line.errors.clear()
    await bench.run(301, lambda: bench.devices[A].value == 30)


async def test_idle_session_that_died_unnoticed_costs_a_write_no_failure(bench):
    bench.scripted(A)
    await bench.run(0.1)
    bench.line.once["write"] = DeviceUnreachable("the connection broke")
    ticket = bench.bus.write(A, 30, verify=False)
    await bench.run(0.1)

    assert bench.line.connects == 2
    assert bench.heard.outcomes == [WriteOutcome(ticket, 30, readback=30)]
    assert not bench.heard.losses


async def test_write_that_is_replaced_in_the_gap_before_it_never_leaves(slow_bench):
    bench = slow_bench
    bench.scripted(A)
    await bench.run(1.5)
    bench.line.next_command_at = bench.clock.boottime_s() + 1.0
    bench.bus.write(A, 30, verify=False)
    await bench.run(0.9)
    bench.bus.write(A, 40, verify=False)
    await bench.run(0.2)

    assert bench.line.commands.count(("write", A)) == 1
    assert bench.devices[A].value == 40


@pytest.mark.parametrize("kind", ["identify", "write", "read_setpoint", "poll"])
@pytest.mark.parametrize("error", [None, DeviceRefused("no"), DeviceUnreachable("gone")])
async def test_what_was_under_way_for_a_device_is_not_told_of_its_successor(bench, kind, error):
    bench.scripted(A)
    if kind != "identify":
        await bench.run(0.1)
    bench.clock.advance(1.5)
    held = bench.line.hold(kind)
    if kind in ("write", "read_setpoint"):
        bench.bus.write(A, 30, verify=False)
    await bench.until_busy(kind, A)
    told = (len(bench.heard.contacts), list(bench.heard.losses), len(bench.heard.polls))

    bench.bus.add(A, ScriptedDevice(bench.line, A), poll_s=1.0, tolerance=0.5, settable=True)
    bench.line.errors.update({kind: error} if error is not None else {})
    bench.line.held["identify"] = asyncio.Event()  # the successor's own first command waits
    held.set()
    await bench.until_busy("identify", A)

    assert (len(bench.heard.contacts), bench.heard.losses, len(bench.heard.polls)) == told
    assert bench.heard.outcomes == []
    bench.line.held.clear()


async def test_neighbour_that_is_written_all_the_time_starves_nobody(bench):
    bench.scripted(A, B)
    await bench.run(0.1)

    async def takes_a_second() -> None:
        # Whenever the line is free, a newer value for the first device is there.
        bench.bus.write(A, bench.clock.boottime_s() % 50, verify=False)
        await bench.clock.sleep(1.0)

    bench.line.takes["write"] = takes_a_second
    bench.bus.write(A, 30, verify=False)
    bench.bus.write(B, 40, verify=False)

    assert await bench.run(10, lambda: bench.devices[B].value == 40) <= 2


# --- gaps ---------------------------------------------------------------------------------------------------


async def test_profiles_pause_is_kept_over_polls_writes_and_a_new_session(slow_bench):
    bench = slow_bench
    device = await bench.simulated(profile("growatt_max_60ktl"))
    for value in (30, 40, 50):
        bench.bus.write(A, value, verify=False)
        await bench.run(23)
    await device.restart()
    bench.bus.write(A, 60, verify=False)
    await bench.run(30)

    assert device.limit_in_force == 60
    assert device.commands > 20
    assert device.gap_violations == []


async def test_poll_gives_way_to_a_write_between_two_of_its_commands(slow_bench):
    bench = slow_bench
    device = await bench.simulated(profile("growatt_max_60ktl"))
    bench.bus.write(A, 50, verify=False)  # the first write of a session also prepares the device
    await bench.run(60, lambda: bench.heard.polls)
    await bench.run(60, lambda: bench.bus._polling)

    ticket = bench.bus.write(A, 30, verify=False)
    took_s = await bench.run(10, lambda: device.limit_in_force == 30)

    assert took_s <= 1.1
    await bench.run(2, lambda: bench.heard.outcome(ticket))
    assert device.gap_violations == []


async def test_line_is_kept_free_for_a_write_that_is_known_beforehand(slow_bench):
    bench = slow_bench
    device = await bench.simulated(profile("growatt_max_60ktl"))
    bench.bus.write(A, 30, verify=False)
    await bench.run(40)
    for offset in (7.3, 11.9, 16.2, 20.7):
        at = bench.clock.boottime_s() + offset
        bench.bus.reserve(A, at)
        await bench.run(offset)
        value = 40 + offset
        bench.bus.write(A, round(value), verify=False)

        took_s = await bench.run(3, lambda value=value: device.limit_in_force == round(value))
        assert took_s < 0.1

    assert device.gap_violations == []


async def test_reservation_under_a_running_gap_does_not_hold_up_the_event_loop(slow_bench):
    bench = slow_bench
    bench.scripted(A)
    await bench.run(0.1)
    # A poll is due; its gap still runs for half a second, and it would then run into the reservation.
    bench.clock.advance(20)
    bench.line.next_command_at = bench.clock.boottime_s() + 0.5
    bench.bus.reserve(A, bench.clock.boottime_s() + 1.5)
    bench.line.commands.clear()

    await bench.run(1.4)
    assert bench.line.commands == []
    await bench.run(2, lambda: bench.line.commands)


# --- what is gone ---------------------------------------------------------------------------------------


async def test_device_that_returns_is_written_within_one_and_a_half_seconds(bench):
    device = await bench.simulated(profile())
    await bench.run(1)
    await device.set_fault(Fault.REFUSE)
    ticket = bench.bus.write(A, 30, verify=False)
    await bench.run(3, lambda: bench.heard.outcome(ticket))
    outcome = bench.heard.outcome(ticket)
    assert outcome is not None
    assert (outcome.code, outcome.still_trying) == (Code.WRITE_FAILED, True)
    await bench.run(3600)

    await device.set_fault(Fault.NONE)
    assert await bench.run(5, lambda: device.limit_in_force == 30) < 1.5


async def test_endpoint_that_is_gone_is_sought_every_second_for_ten_minutes_then_ever_more_seldom(bench):
    bench.scripted(A)
    bench.line.errors["connect"] = DeviceUnreachable("nobody there")
    await bench.run(600)
    assert 590 <= bench.line.connects <= 610

    before = bench.line.connects
    await bench.run(3600)
    assert 3600 / 300 <= bench.line.connects - before <= 3600 / 300 + 10
    assert bench.heard.losses == [A]

    bench.bus.write(A, 30, verify=False)
    bench.line.errors.clear()
    assert await bench.run(5, lambda: bench.devices[A].value == 30) < 1.5


async def test_device_that_takes_connections_and_never_answers_is_not_asked_every_second_for_ever(bench):
    bench.scripted(A)
    bench.line.errors["identify"] = DeviceUnreachable("no answer")
    await bench.run(601)
    before = len(bench.line.commands)
    await bench.run(3600)

    assert len(bench.line.commands) - before <= 3600 / 300 + 10


async def test_silent_device_does_not_keep_those_on_its_line_from_being_controlled(bench):
    device = await bench.simulated(profile(), absent_unit=9)
    silent = bench.bus.write(B, 20, verify=False)
    await bench.run(2)
    polls = bench.heard.polls.count(A)

    live = bench.bus.write(A, 30, verify=False)
    assert await bench.run(2, lambda: device.limit_in_force == 30) < 1
    await bench.run(10)

    outcome = bench.heard.outcome(live)
    assert outcome is not None
    assert outcome.code is None
    outcome = bench.heard.outcome(silent)
    assert outcome is not None
    assert outcome.code is Code.WRITE_FAILED
    assert bench.heard.losses == [B]
    assert bench.heard.polls.count(A) - polls >= 6


@pytest.mark.parametrize("stays_open", [False, True])
async def test_a_meter_with_nothing_to_be_recognised_by_is_back_once_it_is_read(bench, stays_open):
    bench.line.stays_open = stays_open
    bench.measured(A)
    await bench.run(3)
    bench.line.silent.add(A)
    await bench.run(60)

    assert bench.heard.losses == [A]
    assert len(bench.heard.contacts) == 1

    polls = len(bench.heard.polls)
    bench.line.silent.clear()
    assert await bench.run(5, lambda: len(bench.heard.polls) > polls) < 1.5
    await bench.run(10)
    assert len(bench.heard.polls) - polls >= 10
    assert bench.heard.losses == [A]


async def test_a_meter_with_nothing_to_be_recognised_by_is_asked_ever_more_seldom(bench):
    bench.measured(A)
    await bench.run(3)
    bench.line.silent.add(A)
    await bench.run(700)
    bench.line.commands.clear()
    await bench.run(3600)

    assert len(bench.line.commands) <= 3600 / 300 + 10


async def test_a_meter_that_was_silent_and_then_refuses_is_polled_at_its_own_pace(bench):
    bench.measured(A)
    await bench.run(3)
    bench.line.silent.add(A)
    await bench.run(10)
    bench.line.errors["poll"] = DeviceRefused("no such register")
    bench.line.silent.clear()
    await bench.run(3)
    bench.line.commands.clear()
    await bench.run(20)

    assert 18 <= len(bench.line.commands) <= 22
    bench.line.errors.clear()
    polls = len(bench.heard.polls)
    await bench.run(3)
    assert len(bench.heard.polls) - polls >= 2


async def test_silence_on_a_line_that_stays_open_costs_the_others_nothing_they_had(bench):
    bench.line.stays_open = True
    bench.scripted(A, B)
    await bench.run(0.1)
    bench.line.silent.add(B)
    await bench.run(30)

    assert bench.line.connects == 1
    assert bench.heard.contacts == [(A, 100.0), (B, 100.0)]
    assert bench.heard.losses == [B]

    bench.line.silent.clear()
    await bench.run(3, lambda: len(bench.heard.contacts) == 3)
    assert bench.heard.contacts[2] == (B, 100.0)


async def test_one_unanswered_request_on_a_line_that_stays_open_is_forgiven(bench):
    bench.line.stays_open = True
    bench.scripted(A, B)
    await bench.run(0.1)
    bench.line.once["write"] = DeviceUnreachable("a lost frame")
    ticket = bench.bus.write(B, 30, verify=False)
    await bench.run(1)

    assert bench.heard.losses == []
    assert bench.heard.outcomes == [WriteOutcome(ticket, 30, readback=30)]


async def test_line_on_which_nobody_answers_is_opened_anew(bench):
    bench.line.stays_open = True
    bench.scripted(A, B)
    await bench.run(0.1)
    bench.line.silent |= {A, B}
    await bench.run(10)

    assert bench.line.connects > 3
    bench.line.silent.clear()
    await bench.run(2, lambda: len(bench.heard.contacts) == 4)


async def test_line_that_is_sound_is_not_opened_anew_for_a_device_that_is_away(bench):
    bench.line.stays_open = True
    bench.scripted(A)
    await bench.run(0.1)
    away = DeviceAway("the broker is there, the device is not")
    bench.line.errors = {"poll": away, "identify": away}
    await bench.run(10)

    assert bench.line.connects == 1
    assert bench.heard.losses == [A]
    bench.line.errors.clear()
    assert await bench.run(5, lambda: len(bench.heard.contacts) == 2) < 1.5


@pytest.mark.parametrize("stays_open", [False, True])
async def test_silent_devices_together_take_a_fifth_of_their_line_whoever_commands_them(bench, stays_open):
    bench.line.stays_open = stays_open
    tags = [f"INVERTER_{number:02}" for number in range(1, 11)]
    dead = tags[1:]
    bench.line.silent |= set(dead)
    timeout_s = 0.5

    async def patience() -> None:
        if bench.line.commands[-1][1] in dead:
            await bench.clock.sleep(timeout_s)

    bench.line.takes |= dict.fromkeys(("identify", "write", "poll", "read_setpoint"), patience)
    bench.scripted(*tags)
    await bench.run(20)
    bench.line.commands.clear()
    for number in range(60):
        for tag in dead:
            bench.bus.write(tag, 20 + number % 9, verify=False)
        await bench.run(1)

    tries = [tag for _, tag in bench.line.commands if tag in dead]
    assert 0.15 * 60 <= len(tries) * timeout_s <= 0.2 * 60 + timeout_s
    # Each in its turn.
    assert max(tries.count(tag) for tag in dead) - min(tries.count(tag) for tag in dead) <= 1
    assert bench.heard.polls.count(tags[0]) > 40


async def test_of_the_silent_those_that_are_owed_a_write_come_first_and_the_others_are_found_too(bench):
    bench.line.stays_open = True
    tags = [f"INVERTER_{number:02}" for number in range(1, 7)]
    dead = tags[1:]
    bench.line.silent |= set(dead)

    async def patience() -> None:
        if bench.line.commands[-1][1] in dead:
            await bench.clock.sleep(0.2)

    bench.line.takes["identify"] = patience
    bench.scripted(*tags)
    await bench.run(20)
    bench.line.commands.clear()
    bench.bus.write(dead[0], 30, verify=False)
    await bench.run(60)

    tries = [tag for _, tag in bench.line.commands if tag in dead]
    assert 0.7 < tries.count(dead[0]) / len(tries) < 0.9
    assert all(tries.count(tag) >= 2 for tag in dead)


async def test_silent_device_is_not_tried_into_the_moment_of_a_known_write(bench):
    bench.line.stays_open = True
    bench.scripted(A, B, poll_s=900)

    async def patience() -> None:
        if bench.line.commands[-1][1] == B:
            await bench.clock.sleep(0.5)

    bench.line.takes["identify"] = patience
    bench.line.silent.add(B)
    await bench.run(10)
    for offset in (3.1, 4.7, 6.3, 9.9):
        at = bench.clock.boottime_s() + offset
        bench.bus.reserve(A, at)
        await bench.run(offset)
        bench.bus.write(A, 40 + offset, verify=False)

        took_s = await bench.run(3, lambda offset=offset: bench.devices[A].value == 40 + offset)
        assert took_s < 0.1


async def test_endpoint_that_closes_every_session_is_connected_to_once_a_second(bench):
    bench.scripted(A)

    async def close() -> None:
        bench.line.connected = False

    bench.line.takes["identify"] = close
    await bench.run(30)

    assert bench.line.connects <= 31


async def test_line_that_takes_over_waits_until_the_one_before_has_let_go(bench, stack):
    let_go = asyncio.Event()
    before = asyncio.create_task(let_go.wait())
    bench.bus.follow(before)
    bench.line.hold("identify")
    bench.scripted(A)
    for _ in range(50):
        await asyncio.sleep(0)
    assert bench.line.connects == 0

    let_go.set()
    await bench.until_busy("identify", A)
    bench.line.held["identify"].set()


async def test_line_that_is_closed_closes_its_session(bench, stack):
    bench.scripted(A)
    await bench.run(1)
    await stack.aclose()

    assert not bench.line.connected


async def test_line_taken_down_under_a_command_ends_though_the_library_swallows_it(bench):
    async def swallow() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    bench.scripted(A)
    await bench.run(0.1)
    bench.line.commands.clear()
    bench.line.takes["poll"] = swallow
    bench.clock.advance(2)
    await bench.until_busy("poll", A)

    task = bench.task
    task.cancel()
    await asyncio.wait({task}, timeout=5)

    assert task.cancelled()
    assert not bench.line.connected


async def test_line_that_is_finished_reads_back_what_it_wrote_and_begins_nothing_new(tmp_path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add(A)
        plant.apply()
        await plant.run(5, until=lambda: plant.cycle.units[A].reachable)
        bus = plant.cycle.units[A].bus
        assert isinstance(bus, Bus)
        written = asyncio.Event()

        def finish() -> None:
            bus.finish()
            written.set()

        device.on_write = finish
        confirmed = plant.setpoint(INVERTER_01=30)[A]
        async with asyncio.timeout(5):
            await written.wait()
        await plant.fleet.finish(within_s=5)

        assert confirmed.done()
        assert (await confirmed).readback == 30
        plant.setpoint(INVERTER_01=40)
        assert plant.limit(A) == 30
        async with asyncio.timeout(5):
            while device._sessions:  # noqa: ASYNC110 - closed by the device's own end
                await asyncio.sleep(0)


# --- questions from outside -----------------------------------------------------------------------------


def ask(bench: Bench, count: int = 1) -> list[asyncio.Task[None]]:
    """Somebody who asks for so many things, all at once."""

    async def question() -> None:
        await bench.line.command("question", "X")

    return [asyncio.create_task(bench.bus.ask(question)) for _ in range(count)]


async def test_question_waits_for_writes_and_their_readbacks(bench):
    bench.scripted(A)
    await bench.run(0.1)
    bench.line.commands.clear()
    bench.bus.write(A, 30, verify=False)
    asked = ask(bench)

    await bench.run(0.1)

    assert [kind for kind, _ in bench.line.commands] == ["write", "read_setpoint", "question"]
    assert asked[0].done()


async def test_write_waits_for_one_question_and_no_more(bench):
    bench.scripted(A)
    await bench.run(0.1)
    bench.line.hold("question")
    ask(bench, 3)
    await bench.until_busy("question", "X")

    bench.bus.write(A, 30, verify=False)
    bench.line.held.pop("question").set()
    await bench.run(0.1)

    kinds = [kind for kind, _ in bench.line.commands]
    assert kinds == ["question", "write", "read_setpoint", "question", "question"]


async def test_question_gives_way_to_a_write_in_the_pause_between_two_of_its_commands(slow_bench):
    bench = slow_bench
    device = await bench.simulated(profile("sma_stp60_im20", min_gap_ms=1000))
    await bench.run(20, until=lambda: bench.heard.contacts)
    first = bench.bus.write(A, 50, verify=False)
    await bench.run(20, until=lambda: bench.heard.outcome(first))
    driver, commands = bench.bus.driver(A), device.commands
    asked = asyncio.create_task(bench.bus.ask(lambda: read_twice(driver)))
    await bench.run(5, until=lambda: device.commands > commands)

    ticket = bench.bus.write(A, 30, verify=False)
    took = await bench.run(10, until=lambda: device.limit_in_force == 30)
    await bench.run(20, until=asked.done)

    # The pause of the command that was under way, and nothing on top.
    assert took <= 1.0
    assert bench.heard.outcome(ticket) is not None
    assert asked.result() == "SMA Inverter Manager"
    assert device.gap_violations == []


async def read_twice(driver: Any) -> object:
    await driver.read_points(["own_unit"])
    return (await driver.read_points(["model_name"]))["model_name"]


async def test_questions_and_polls_take_turns(bench):
    bench.scripted(A, poll_s=0.1)
    await bench.run(0.05)
    bench.line.commands.clear()
    bench.line.takes["question"] = lambda: bench.clock.sleep(1.0)
    ask(bench, 5)
    await bench.run(10)

    kinds = [kind for kind, _ in bench.line.commands]
    last = len(kinds) - kinds[::-1].index("question")
    assert kinds.count("question") == 5
    assert kinds[:last].count("poll") >= 4


async def test_question_is_not_put_into_the_moment_of_a_known_write(slow_bench):
    bench = slow_bench
    bench.scripted(A, poll_s=60)
    await bench.run(5)
    bench.line.commands.clear()
    bench.bus.reserve(A, bench.clock.boottime_s() + 0.5)
    asked = ask(bench)
    await bench.run(0.4)
    assert bench.line.commands == []

    await bench.run(2, until=asked[0].done)

    assert asked[0].done()


async def test_question_that_is_refused_is_the_asker_s_alone(bench):
    bench.scripted(A)
    await bench.run(0.1)
    bench.line.errors["question"] = DeviceRefused("no")
    asked = ask(bench)
    await bench.run(0.1)

    with pytest.raises(DeviceRefused):
        asked[0].result()
    assert bench.heard.losses == []


async def test_whatever_goes_wrong_with_a_question_the_line_goes_on(bench):
    bench.scripted(A)
    await bench.run(0.1)

    async def wrong() -> None:
        raise KeyError("a driver's mistake")

    asked = asyncio.create_task(bench.bus.ask(wrong))
    await bench.run(0.1)

    with pytest.raises(KeyError):
        asked.result()
    bench.line.commands.clear()
    await bench.run(2)
    assert ("poll", A) in bench.line.commands


async def test_question_without_an_answer_costs_the_neighbours_no_more_than_a_new_session(bench):
    bench.scripted(A)
    await bench.run(0.1)
    bench.line.silent.add("X")
    asked = ask(bench)
    await bench.run(0.05)

    with pytest.raises(DeviceUnreachable):
        asked[0].result()
    await bench.run(1)
    assert bench.line.connects == 2
    assert bench.heard.losses == []
    assert len(bench.heard.contacts) == 2


async def test_question_over_a_line_that_cannot_be_had_is_answered_so(bench):
    bench.line.errors["connect"] = DeviceUnreachable("nobody listens")
    bench.scripted(A)
    await bench.run(700)
    asked = ask(bench)

    # At once, however rarely the line is tried by now.
    await bench.run(1.1, until=asked[0].done)

    with pytest.raises(DeviceUnreachable, match="nobody listens"):
        asked[0].result()


async def test_question_to_a_line_that_ends_is_not_left_waiting(bench):
    bench.scripted(A)
    await bench.run(0.1)
    bench.line.hold("question")
    asked = ask(bench, 2)
    await bench.until_busy("question", "X")
    bench.task.cancel()

    for each in asked:
        with pytest.raises(DeviceUnreachable):
            await each
    bench.bus.finish()
    with pytest.raises(DeviceUnreachable):
        await ask(bench)[0]


async def test_question_that_nobody_waits_for_any_longer_is_not_put(bench):
    bench.scripted(A)
    await bench.run(0.1)
    bench.line.hold("question")
    asked = ask(bench, 2)
    await bench.until_busy("question", "X")
    asked[1].cancel()
    await asyncio.sleep(0)
    bench.line.held.pop("question").set()
    await bench.run(0.1)

    assert [kind for kind, _ in bench.line.commands] == ["question"]
    assert asked[0].done()
