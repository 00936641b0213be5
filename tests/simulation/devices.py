"""Simulated devices without sockets: a truth in memory, and a session and a driver of our own protocol to it.

They keep the contract of the real drivers (tests/drivers/test_driver_contract.py), and can do what a device on
a socket cannot be told to do at an exact instant: lie, forget, lose an answer, take a write whose sender is
dead already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Generic, Protocol as Shape, TypeVar

from edge.core.commands import WriteClass
from edge.drivers.base import PollResult
from edge.drivers.errors import DeviceRefused, DeviceUnreachable
from edge.drivers.registry import Constructors, Drivers
from edge.profiles.model import Check, Profile
from edge.profiles.points import Protocol

T = TypeVar("T")
_Told = tuple["SimulatedDevice", dict[str, float | str | None], float, float | None]

EPSILON_S = 1e-6
NAMEPLATE_TOLERANCE = 0.1


class Trouble(StrEnum):
    """What is wrong with a device. The words are those of `edge.simulators.device.Fault`, and more."""

    NONE = "none"
    REFUSE = "refuse"  # nobody listens
    SILENT = "silent"  # takes connections and commands, answers nothing, does nothing
    MUTE = "mute"  # does what it is told, but its answers are lost
    WRITE_EXCEPTION = "write_exception"  # answers every write with no
    IGNORE_WRITES = "ignore_writes"  # says yes and does nothing
    LIE = "lie"  # does it, and reads back something else
    DELAY = "delay"  # answers late, but in time


# A device that was away is right again this long after it came back: it is looked for every second, or found
# gone by the next poll (rule 19). After a long absence, or when it was there and did not obey, it is tried at
# growing distances of up to five minutes.
QUICKLY_S = 8.0
SLOWLY_S = 310.0
LONG_S = 590.0

# What a device with this trouble is: out of reach, or there but not to be believed.
UNREACHABLE = frozenset({Trouble.REFUSE, Trouble.SILENT, Trouble.MUTE})
DISHONEST = frozenset({Trouble.WRITE_EXCEPTION, Trouble.IGNORE_WRITES, Trouble.LIE})


@dataclass(frozen=True, slots=True)
class Written:
    """One write as the device saw it. `sent_s`: when its sender let go of it; `found`: what stood there."""

    at_s: float
    sent_s: float
    value: float
    who: str
    found: float
    taken: bool


@dataclass(slots=True)
class _Shown:
    """What the points of a device show that are neither its setpoint nor its power."""

    values: dict[str, float | str | None]
    absent: set[str] = field(default_factory=set)

    def set(self, point: str, value: float | str | None) -> None:
        self.values[point] = value

    def remove(self, point: str) -> None:
        self.absent.add(point)


@dataclass(slots=True)
class Machine:
    """What stands behind the device; power positive towards the grid."""

    power_kw: float


class SimulatedDevice:
    """One device: the value in force, its own bounds, its memory, and what is wrong with it.

    `minimum` and `maximum` are what it takes; a write beyond is refused. A `volatile` one forgets at its
    restart and takes up `start_value`. `resolution`: to how much it rounds what it is told; 0 for not at all.
    Times are seconds of `clock`, the world's.
    """

    def __init__(
        self,
        *,
        profile: Profile,
        unit: int,
        nameplate_kw: float,
        clock: Callable[[], float],
        minimum: float | None = None,
        maximum: float | None = None,
        volatile: bool = True,
        start_value: float = 100.0,
        resolution: float = 0.0,
        latency_s: float = 0.0,
    ) -> None:
        self.profile = profile
        self.unit = unit
        self.nameplate_kw = nameplate_kw
        self.clock = clock
        self.minimum = profile.min_value if minimum is None else minimum
        self.maximum = profile.max_value if maximum is None else maximum
        self.volatile = volatile
        self.start_value = start_value
        self.resolution = resolution
        self.latency_s = latency_s
        self.limit_in_force = start_value
        self.machine = Machine(nameplate_kw)
        self.trouble = Trouble.NONE
        # When it was last in trouble, and how long a controller may take from then on to have it right again.
        self.troubled_until_s = clock()
        self.patience_s = QUICKLY_S
        self.was_set_by_hand = False
        self.holds_ours = False  # a value that a controller has put there
        self.lied_until_s = -1e12
        self._ill_since_s = clock()
        self.commands = 0
        self.writes: list[Written] = []
        self.gap_violations: list[float] = []
        self.shown: dict[str, float | str | None] = {
            name: 1.0 if point.example is None else point.example for name, point in profile.points.items()
        }
        for check in profile.identity.checks:
            self.shown[check.point] = check.equals[0] if isinstance(check.equals, tuple) else check.equals
        if profile.identity.nameplate is not None:
            self.shown[profile.identity.nameplate] = nameplate_kw
        self.registers = _Shown(self.shown)
        self.port: Port | None = None
        # Called with each write as it leaves its sender: whether it is right is a question of that moment.
        self.on_sent: Callable[[SimulatedDevice, float, str], None] = lambda _device, _value, _who: None
        # Called with the power that a controller has just learned of.
        self.on_measured: Callable[[SimulatedDevice, float], None] = lambda _device, _kw: None
        self._last_command_s = -1e12

    @property
    def host(self) -> str:
        assert self.port is not None
        return self.port.host

    def get(self, name: str) -> float | str | None:
        return self.shown[name]

    def put(self, name: str, value: float | str | None) -> None:
        if value is None and name == self.profile.telemetry.get("P_kW"):
            raise ValueError("its power always has a value")
        self.shown[name] = value

    # --- what happens to it -------------------------------------------------------------------------

    async def set_fault(self, fault: StrEnum) -> None:
        """As the simulators on sockets have it."""
        self.fall_ill(Trouble(fault.value))

    def fall_ill(self, trouble: Trouble) -> None:
        """From now on this is wrong with it; `Trouble.NONE` heals."""
        if self.trouble is Trouble.NONE:
            self._ill_since_s = self.clock()
        else:
            long = self.clock() - self._ill_since_s > LONG_S
            self._wants_care(SLOWLY_S if long or self.trouble in DISHONEST else QUICKLY_S)
            if self.trouble in DISHONEST:
                self.lied_until_s = self.clock()
        self.trouble = trouble
        if trouble is Trouble.REFUSE and self.port is not None:
            self.port.drop_all("reset by the device")

    def _wants_care(self, patience_s: float) -> None:
        now = self.clock()
        # What was not over yet may take as long as it may have taken anyhow.
        left_s = self.troubled_until_s + self.patience_s - now
        self.troubled_until_s = now
        self.patience_s = max(patience_s, left_s)
        if self.port is not None:
            self.port.healed_s = now

    @property
    def wears(self) -> bool:
        limit = self.profile.limit
        return limit is not None and limit.write_class is not WriteClass.VOLATILE

    @property
    def is_believed(self) -> bool:
        """Whether a controller knows what it holds: nobody else touched it, and it does not lie."""
        if self.trouble in DISHONEST or self.was_set_by_hand:
            return False
        # Who was lied to tries again at growing distances, and believes what was read last until then.
        return self.clock() - self.lied_until_s > SLOWLY_S

    @property
    def is_well(self) -> bool:
        """Whether a controller must have it right by now: there, honest, and for long enough."""
        if self.trouble in UNREACHABLE or self.trouble in DISHONEST or self.was_set_by_hand:
            return False
        return self.clock() - self.troubled_until_s >= self.patience_s

    def restart(self) -> None:
        """Off and on again: its connections are gone, and what it does not keep as well."""
        if self.volatile:
            self.limit_in_force = self.start_value
            self.holds_ours = False
        self._wants_care(QUICKLY_S)
        if self.port is not None:
            self.port.drop_all("the device restarts")

    def turn_knob(self, value: float) -> None:
        """Somebody sets it by hand."""
        self.limit_in_force = value
        self.was_set_by_hand, self.holds_ours = True, False

    # --- commands, at the moment they arrive --------------------------------------------------------

    def begin(self) -> None:
        """Note a command, and whether it keeps the pause the maker asks for, whoever sent the one before."""
        self.commands += 1
        early = self._last_command_s + self.profile.min_gap_ms / 1000 - self.clock()
        if early > EPSILON_S:
            self.gap_violations.append(early)
        self._last_command_s = self.clock()

    def end(self) -> None:
        """Its answer is there: from here on the pause counts."""
        self._last_command_s = self.clock()

    def take(self, value: float, *, who: str, sent_s: float) -> None:
        """Carry out a write, or raise `DeviceRefused`."""
        refused = self.trouble is Trouble.WRITE_EXCEPTION or not self.minimum <= value <= self.maximum
        taken = not refused and self.trouble is not Trouble.IGNORE_WRITES
        self.writes.append(Written(self.clock(), sent_s, value, who, self.limit_in_force, taken))
        if refused:
            raise DeviceRefused(
                f"unit {self.unit} refused to write register 0: no {value:g} (Modbus exception 4)"
            )
        if taken:
            self.was_set_by_hand, self.holds_ours = False, True
            self.limit_in_force = (
                round(value / self.resolution) * self.resolution if self.resolution else value
            )

    def tell_setpoint(self) -> float:
        if self.trouble is Trouble.LIE:
            return self.limit_in_force + 7.0 if self.limit_in_force < 50 else self.limit_in_force - 7.0
        return self.limit_in_force

    def tell(self, names: Iterable[str]) -> dict[str, float | str | None]:
        absent = self.registers.absent
        return {name: self.shown.get(name) for name in names if name not in absent}

    def tell_power(self) -> float:
        return self.machine.power_kw


class Port:
    """Where devices are reached: one address, the units behind it, and whoever is connected.

    As most devices it takes one session at a time. Two processes at once are what rule 7 forbids: that is
    not refused alone, but kept in `intrusions`.
    """

    def __init__(self, *, host: str, port: int, max_sessions: int = 1) -> None:
        self.host = host
        self.port = port
        self.max_sessions = max_sessions
        self.units: dict[int, SimulatedDevice] = {}
        self.sessions: list[SimulatedSession] = []
        self.intrusions: list[str] = []
        self.healed_s = -1e12  # when one of its units was last healed, or restarted

    def add(self, device: SimulatedDevice) -> SimulatedDevice:
        self.units[device.unit] = device
        device.port = self
        return device

    @property
    def listens(self) -> bool:
        return any(device.trouble is not Trouble.REFUSE for device in self.units.values())

    def open(self, session: SimulatedSession) -> None:
        where = f"{self.host}:{self.port}"
        if not self.listens:
            raise DeviceUnreachable(f"no connection to {where}: refused")
        strangers = {other.who for other in self.sessions} - {session.who}
        if strangers:
            self.intrusions.append(f"{session.who} came to {where} while {', '.join(strangers)} was there")
        if len(self.sessions) >= self.max_sessions:
            raise DeviceUnreachable(f"no connection to {where}: it has its session already")
        self.sessions.append(session)

    def drop_all(self, reason: str) -> None:
        for session in list(self.sessions):
            session.drop(reason)


class SimulatedSession:
    """`edge.drivers.base.Session` to a port of a plant."""

    def __init__(
        self,
        *,
        plant: SimulatedPlant,
        who: str,
        host: str,
        port: int,
        timeout_s: float,
        min_gap_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.who = who
        self._plant = plant
        self._host = host
        self._port = port
        self._timeout_s = timeout_s
        self._min_gap_s = min_gap_s
        self._clock = clock
        self._sleep = sleep
        self._open: Port | None = None
        self._next_command_at = 0.0
        self._answer: asyncio.Future[object] | None = None

    @property
    def endpoint(self) -> str:
        return f"{self._host}:{self._port}"

    @property
    def connected(self) -> bool:
        return self._open is not None

    @property
    def next_command_at(self) -> float:
        return self._next_command_at

    async def connect(self) -> None:
        await self.aclose()
        await self._pause(self._plant.connect_s)
        port = self._plant.ports.get((self._host, self._port))
        if port is None or self.who in self._plant.dead:
            raise DeviceUnreachable(f"no connection to {self.endpoint}: nobody is there")
        port.open(self)
        self._open = port

    async def aclose(self) -> None:
        self.drop("closed")

    def drop(self, reason: str) -> None:
        """The connection is gone; who waits for an answer hears it."""
        if self._open is not None:
            self._open.sessions.remove(self)
            self._open = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(DeviceUnreachable(f"connection to {self.endpoint} is gone: {reason}"))

    async def exchange(
        self,
        unit: int,
        act: Callable[[SimulatedDevice, float], T],
        *,
        sending: Callable[[SimulatedDevice], None] = lambda _device: None,
    ) -> T:
        """One command: `act` on the device, given when it was sent; its answer, or a driver error."""
        if self._open is None:
            raise DeviceUnreachable(f"not connected to {self.endpoint}")
        while (wait := self._next_command_at - self._clock()) > EPSILON_S:
            await self._sleep(wait)
        if self._open is None:
            raise DeviceUnreachable(f"not connected to {self.endpoint}")
        device = self._open.units.get(unit)
        if device is None:
            raise DeviceRefused(f"{self.endpoint} has no unit {unit}")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._answer = answer  # type: ignore[assignment]
        sent_s = device.clock()
        sending(device)
        latency_s = device.latency_s * (20 if device.trouble is Trouble.DELAY else 1)

        def arrive() -> None:
            # What is on the wire arrives, whether its sender still lives or not.
            if device.trouble in (Trouble.SILENT, Trouble.REFUSE):
                return
            device.begin()
            try:
                settle = partial(answer.set_result, act(device, sent_s))
            except DeviceRefused as error:
                settle = partial(answer.set_exception, error)
            if device.trouble is not Trouble.MUTE:
                loop.call_later(latency_s / 2, give, settle)

        def give(settle: Callable[[], None]) -> None:
            if not answer.done():
                device.end()
                settle()

        loop.call_later(latency_s / 2, arrive)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answer
        except TimeoutError as error:
            await self.aclose()
            raise DeviceUnreachable(
                f"no answer from {self.endpoint} unit {unit} within {self._timeout_s:g} s"
            ) from error
        finally:
            self._answer = None
            answer.cancel()
            if self._min_gap_s:
                self._next_command_at = self._clock() + self._min_gap_s

    @staticmethod
    async def _pause(seconds: float) -> None:
        if seconds > 0:
            await asyncio.sleep(seconds)


class SimulatedDriver:
    """`edge.drivers.base.Driver` of one simulated device."""

    def __init__(
        self, *, session: SimulatedSession, profile: Profile, unit: int, nameplate_kw: float | None
    ) -> None:
        self._session = session
        self._profile = profile
        self._unit = unit
        self._nameplate_kw = nameplate_kw
        self._sent: dict[str, int] = {}

    @property
    def commands_per_write(self) -> int:
        return 1 if self._profile.controllable else 0

    @property
    def commands_per_poll(self) -> int:
        return 1

    @property
    def telemetry_units(self) -> dict[str, str]:
        return self._profile.telemetry_units

    async def identify(self) -> None:
        identity = self._profile.identity
        names = {check.point for check in identity.checks}
        if identity.nameplate is not None:
            names.add(identity.nameplate)
        if not names:
            return
        shown = await self._session.exchange(self._unit, lambda device, _: device.tell(names))
        for check in identity.checks:
            self._judge(check, shown.get(check.point))
        if identity.nameplate is None or self._nameplate_kw is None:
            return
        rated = shown.get(identity.nameplate)
        if not isinstance(rated, float | int):
            raise DeviceRefused(f"{self._where} does not say its rated power")
        if abs(rated - self._nameplate_kw) > NAMEPLATE_TOLERANCE * self._nameplate_kw:
            raise DeviceRefused(
                f"{self._where} is rated {rated:g} kW, configured are {self._nameplate_kw:g} kW"
            )

    def _judge(self, check: Check, found: float | str | None) -> None:
        if not check.holds(found):
            raise DeviceRefused(f"{self._where}: {check.point} reads {found}, expected {check.equals}")

    async def poll(self) -> PollResult:
        names = set(self._profile.telemetry.values())
        limit = self._profile.limit
        settable = limit is not None and limit.readback is not None

        def look(device: SimulatedDevice, _sent_s: float) -> _Told:
            readback = device.tell_setpoint() if settable else None
            return device, device.tell(names), device.tell_power(), readback

        device, shown, power_kw, readback = await self._session.exchange(self._unit, look)
        device.on_measured(device, power_kw)
        readings: dict[str, float | None] = {}
        for key, name in self._profile.telemetry.items():
            value = power_kw if key == "P_kW" and name in shown else shown.get(name)
            readings[key] = None if isinstance(value, str) else value
        return PollResult(readings, readback)

    async def write(self, value: float) -> None:
        profile = self._profile
        if profile.limit is None:
            raise DeviceRefused(f"{profile.title} is only measured, it has no setpoint")
        if not profile.min_value <= value <= profile.max_value:
            raise DeviceRefused(
                f"{value:g} is outside {profile.min_value:g} to {profile.max_value:g} of {profile.title}"
            )
        who, register = self._session.who, profile.limit.register

        def sending(device: SimulatedDevice) -> None:
            self._sent[register] = self._sent.get(register, 0) + 1
            device.on_sent(device, value, who)

        await self._session.exchange(
            self._unit, lambda device, sent_s: device.take(value, who=who, sent_s=sent_s), sending=sending
        )

    async def arm_fallback(self, value: float) -> None:
        raise DeviceRefused(f"{self._profile.title} has no fallback of its own, nor takes {value:g} for it")

    async def keep_alive(self, value: float) -> None:
        raise DeviceRefused(f"{self._profile.title} has no fallback of its own, nor takes {value:g} for it")

    def take_writes(self) -> dict[str, int]:
        sent = dict(self._sent)
        self._sent.clear()
        return sent

    async def read_setpoint(self) -> float | None:
        if self._profile.limit is None:
            raise DeviceRefused(f"{self._profile.title} is only measured, it has no setpoint")
        if self._profile.limit.readback is None:
            return None
        return await self._session.exchange(self._unit, lambda device, _: device.tell_setpoint())

    @property
    def _where(self) -> str:
        return f"{self._session.endpoint} unit {self._unit}"


@dataclass
class SimulatedPlant:
    """All ports, and the drivers by which a process reaches them under its own name."""

    ports: dict[tuple[str, int], Port] = field(default_factory=dict)
    connect_s: float = 0.0
    dead: set[str] = field(default_factory=set)

    def open_port(self, *, host: str, port: int) -> Port:
        return self.ports.setdefault((host, port), Port(host=host, port=port))

    def drivers(self, who: str) -> Drivers:
        """The drivers' table of the process of this name."""

        def session(
            *,
            host: str,
            port: int,
            timeout_s: float,
            min_gap_s: float,
            clock: Callable[[], float],
            sleep: Callable[[float], Awaitable[None]],
            connect_delay_s: float,
        ) -> SimulatedSession:
            assert connect_delay_s == 0, "no device of these sites asks for one"
            return SimulatedSession(
                plant=self,
                who=who,
                host=host,
                port=port,
                timeout_s=timeout_s,
                min_gap_s=min_gap_s,
                clock=clock,
                sleep=sleep,
            )

        return {Protocol.MODBUS_TCP: Constructors(session=session, driver=SimulatedDriver)}

    def bury(self, who: str) -> None:
        """The process is dead: the kernel has closed its connections, and it sends nothing any more."""
        self.dead.add(who)
        for port in self.ports.values():
            for session in list(port.sessions):
                if session.who == who:
                    session.drop("its process is dead")


class BenchClock(Shape):
    """Time that driver and device share; a driver that waits moves it."""

    def __call__(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


C = TypeVar("C", bound=BenchClock)


@dataclass
class SimulatedBench(Generic[C]):
    """One simulated device, with a session and a driver to it."""

    clock: C
    device: SimulatedDevice
    session: SimulatedSession
    driver: SimulatedDriver


def bench_for(profile: Profile, *, clock: C, timeout_s: float, nameplate_kw: float) -> SimulatedBench[C]:
    """Put a device of this profile on the bench; its session is not connected yet."""
    plant = SimulatedPlant()
    port = plant.open_port(host="127.0.0.1", port=profile.default_port)
    device = port.add(
        SimulatedDevice(profile=profile, unit=profile.default_unit, nameplate_kw=nameplate_kw, clock=clock)
    )
    session = SimulatedSession(
        plant=plant,
        who="bench",
        host=port.host,
        port=port.port,
        timeout_s=timeout_s,
        min_gap_s=profile.min_gap_ms / 1000,
        clock=clock,
        sleep=clock.sleep,
    )
    driver = SimulatedDriver(session=session, profile=profile, unit=device.unit, nameplate_kw=nameplate_kw)
    return SimulatedBench(clock, device, session, driver)
