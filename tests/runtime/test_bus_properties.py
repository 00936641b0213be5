"""A line under any order of requests, faults and noise: real drivers, a real session, a turned clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from hypothesis import HealthCheck, example, given, settings, strategies as st

from edge.drivers.base import PollResult
from edge.drivers.modbus import ModbusDriver
from edge.drivers.modbus_rtu import SerialSession
from edge.drivers.serial_line import SerialSettings
from edge.profiles.points import Protocol
from edge.runtime.bus import Bus, WriteOutcome, _Member
from edge.simulators.device import Fault
from edge.simulators.modbus import SimulatedDevice
from edge.simulators.modbus_rtu import SimulatedLine
from tests.runtime.plant import NAMEPLATE_KW, TurnedClock, profile

UNITS = (1, 2, 3)
# What a silent unit costs in real time, all the others answer at once.
PATIENCE_S = 0.03


@dataclass
class Device:
    """What one device is wanted to hold, and what was told of it."""

    wanted: float | None = None
    ticket: int | None = None
    outcomes: list[WriteOutcome] = field(default_factory=list)
    reachable: bool | None = None

    @property
    def is_confirmed(self) -> bool:
        return any(outcome.ticket == self.ticket and outcome.code is None for outcome in self.outcomes)


class World:
    """Three units on a line; every rule that must hold at all times is looked at when it could break."""

    def __init__(self, *, min_gap_ms: int) -> None:
        self.clock = TurnedClock()
        self.kind = profile(protocol=Protocol.MODBUS_RTU, also=(), min_gap_ms=min_gap_ms)
        self.line = SimulatedLine(clock=self.clock.boottime_s)
        self.told: dict[str, Device] = {}
        self.broken: list[str] = []
        gap_s = min_gap_ms / 1000
        self.bus = Bus(name="line", clock=self.clock, listener=self, min_gap_s=gap_s)

    async def start(self, stack: AsyncExitStack) -> None:
        for unit in UNITS:
            device = SimulatedDevice(
                profile=self.kind,
                unit=unit,
                nameplate_kw=NAMEPLATE_KW,
                clock=self.clock.boottime_s,
                on_line=True,
            )
            tag = f"D{unit}"
            self.told[tag] = Device()
            device.on_write = lambda tag=tag, device=device: self._written(tag, device)
            self.line.add(device)
        await self.line.start()
        stack.push_async_callback(self.line.stop)
        self.session = SerialSession(
            line=SerialSettings(self.line.path, 115200),
            timeout_s=PATIENCE_S,
            min_gap_s=self.kind.min_gap_ms / 1000,
            clock=self.clock.boottime_s,
            sleep=self.bus.gap,
        )
        self.bus.attach(self.session)
        for tag in self.told:
            self._add(tag)
        task = asyncio.create_task(self.bus.run())

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        stack.push_async_callback(end)

    def device(self, tag: str) -> SimulatedDevice:
        return self.line.devices[int(tag[1:])]

    def _add(self, tag: str) -> None:
        driver = ModbusDriver(
            session=self.session, profile=self.kind, unit=int(tag[1:]), nameplate_kw=NAMEPLATE_KW
        )
        self.bus.add(tag, driver, poll_s=5.0, tolerance=0.2, settable=True)

    def _written(self, tag: str, device: SimulatedDevice) -> None:
        wanted = self.told[tag].wanted
        if wanted is None or abs(device.limit_in_force - wanted) > 0.2:
            self.broken.append(f"{tag} was written {device.limit_in_force:g}, wanted is {wanted}")

    # --- the listener

    def contact(self, tag: str, *, standing: float | None) -> None:  # noqa: ARG002 - the listener's signature
        self.told[tag].reachable = True

    def lost(self, tag: str, *, reason: str) -> None:
        if self.told[tag].reachable is False:
            self.broken.append(f"{tag} was lost twice: {reason}")
        self.told[tag].reachable = False

    def wrote(self, tag: str, outcome: WriteOutcome) -> None:
        told = self.told[tag]
        if outcome.ticket != told.ticket:
            self.broken.append(f"{tag} heard of ticket {outcome.ticket}, asked for is {told.ticket}")
        if told.is_confirmed:
            self.broken.append(f"{tag} heard again of a write that was confirmed")
        if outcome.code is None and abs(self.device(tag).limit_in_force - outcome.value) > 0.2:
            self.broken.append(f"{tag} was confirmed {outcome.value:g} and holds something else")
        told.outcomes.append(outcome)

    def polled(self, tag: str, result: PollResult) -> None:
        self.told[tag].reachable = True
        if result.readback is not None and abs(result.readback - self.device(tag).limit_in_force) > 0.2:
            self.broken.append(f"{tag} was told to hold {result.readback:g}, another's value")

    def spent(self, tag: str, writes: dict[str, int]) -> None: ...

    def kept_alive(self, tag: str, value: float, *, failed: str) -> None: ...

    # --- what may happen

    def write(self, tag: str, value: float, *, verify: bool) -> None:
        told = self.told[tag]
        told.wanted, told.outcomes = value, []
        told.ticket = self.bus.write(tag, value, verify=verify)

    def withdraw(self, tag: str) -> None:
        self.told[tag].wanted = self.told[tag].ticket = None
        self.bus.withdraw(tag)

    def replace(self, tag: str) -> None:
        """The device is configured anew: another driver takes its place, and it owes nothing."""
        self.told[tag] = Device()
        self._add(tag)

    async def pass_time(self, seconds: float, until: Callable[[], object] | None = None) -> float:
        return await self.clock.run(seconds, tasks=1, until=until)


TAGS = st.sampled_from([f"D{unit}" for unit in UNITS])
VALUES = st.integers(5, 100).map(float)
FAULTS = st.sampled_from([Fault.SILENT, Fault.WRITE_EXCEPTION, Fault.IGNORE_WRITES, Fault.NONE])
STEPS = st.one_of(
    st.tuples(st.just("write"), TAGS, VALUES, st.booleans()),
    st.tuples(st.just("withdraw"), TAGS),
    st.tuples(st.just("replace"), TAGS),
    st.tuples(st.just("reserve"), TAGS, st.sampled_from([None, 0.0, 0.5, 2.0])),
    st.tuples(st.just("fault"), TAGS, FAULTS),
    st.tuples(st.just("restart"), TAGS),
    st.tuples(st.just("noise"), st.binary(min_size=1, max_size=20)),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("pass"), st.sampled_from([0.0, 0.01, 0.3, 1.0, 3.0])),
)


async def live(steps: list[tuple], *, min_gap_ms: int) -> None:  # type: ignore[type-arg]
    async with AsyncExitStack() as stack:
        world = World(min_gap_ms=min_gap_ms)
        await world.start(stack)
        await world.pass_time(0.1)
        for step in steps:
            match step:
                case ("write", tag, value, verify):
                    world.write(tag, value, verify=verify)
                case ("withdraw", tag):
                    world.withdraw(tag)
                case ("replace", tag):
                    world.replace(tag)
                case ("reserve", tag, after):
                    at = None if after is None else world.clock.boottime_s() + after
                    world.bus.reserve(tag, at)
                case ("fault", tag, fault):
                    await world.device(tag).set_fault(fault)
                case ("restart", tag):
                    await world.device(tag).restart()
                case ("noise", data):
                    world.line.put(data)
                case ("reopen",):
                    await world.session.aclose()
                case ("pass", seconds):
                    await world.pass_time(seconds)
            assert world.broken == []
        for tag in world.told:
            await world.device(tag).set_fault(Fault.NONE)
        owed = {tag: told for tag, told in world.told.items() if told.wanted is not None}
        # A refused or mismatched write is tried ever more seldom, up to five minutes.
        await world.pass_time(400, lambda: all(told.is_confirmed for told in owed.values()))
        assert world.broken == []
        for tag in world.told:
            assert world.device(tag).gap_violations == []


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, max_size=14), min_gap_ms=st.sampled_from([0, 0, 1000]))
@example(
    steps=[
        ("fault", "D1", Fault.SILENT),
        ("write", "D1", 30.0, False),
        ("pass", 3.0),
        ("write", "D2", 40.0, False),
    ],
    min_gap_ms=0,
)
def test_every_owed_write_is_confirmed_in_the_end_and_no_other_is_ever_told(steps, min_gap_ms):
    asyncio.run(live(steps, min_gap_ms=min_gap_ms))


@given(
    phase_s=st.floats(0, 900),
    poll_s=st.floats(0.1, 900),
    now=st.floats(1000, 1e7),
    shares=st.booleans(),
)
@example(phase_s=0.95, poll_s=1.0, now=2048.95, shares=False)
def test_line_does_not_spin_on_a_poll_that_is_due_when_it_has_just_been(phase_s, poll_s, now, shares):
    member = _Member("D1", None, poll_s, phase_s, 0.1, settable=True)  # type: ignore[arg-type]
    dues = []
    for _ in range(3):
        member.poll_due = member.next_poll_due(now, shares=shares)
        dues.append(member.poll_due)

    # A poll that is late may be followed by another at once, but not by one more.
    assert dues[1] > now
    assert dues[2] == dues[1] <= now + 2 * poll_s
