"""Modbus TCP: a session per endpoint, a driver per device. The only module that knows pymodbus."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ConnectionException, ModbusException
from pymodbus.pdu import ModbusPDU

from edge.drivers.errors import DeviceRefused, DeviceUnreachable, ReadingInvalid
from edge.drivers.plan import Block, plan_reads
from edge.profiles.model import VALUE, Check, Limit, Point, Profile, Step, Table
from edge.profiles.registers import decode, encode

# pymodbus logs as an error what it raises as well; who catches it here decides what is worth a line.
logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)

# The rated power of device and configuration may differ by rounding, not by a factor ten or a word order.
NAMEPLATE_TOLERANCE = 0.1
# SunSpec scale factors run from -10 to 10 (SunSpec Information Model Specification, `sunssf`).
MAX_EXPONENT = 10

# Modbus Application Protocol V1.1b3, section 7.
EXCEPTIONS = {
    1: "it does not know this function",
    2: "it has no such register",
    3: "it does not accept this value",
    4: "it failed while carrying it out",
    5: "it needs longer and will not say when it is done",
    6: "it is busy",
    8: "its memory has a parity error",
    10: "the gateway has no path to the unit",
    11: "the unit behind the gateway does not answer",
}
FUNCTIONS = {3: "read holding register", 4: "read input register", 6: "write register", 16: "write registers"}


class ModbusSession:
    """One TCP connection to one endpoint, used by one task at a time.

    Each command is one request, never repeated from here. Between the end of a command and the start of the
    next lie at least `min_gap_s`, also over a reconnect. After a timeout or a broken frame the connection is
    closed, so that a late answer is never taken for the next one's. `clock` gives boot-time seconds.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        timeout_s: float,
        min_gap_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.endpoint = f"{host}:{port}"
        self._host = host
        self._port = port
        self._timeout_s = timeout_s
        self._min_gap_s = min_gap_s
        self._clock = clock
        self._sleep = sleep
        self._client: AsyncModbusTcpClient | None = None
        self._busy = False
        self._next_command_at = 0.0
        # Counts connections, so that a driver knows when what it has prepared or cached is gone.
        self.generation = 0

    @property
    def connected(self) -> bool:
        return self._client is not None

    @property
    def next_command_at(self) -> float:
        """Boot-time seconds before which no command may start; 0 where no gap is kept."""
        return self._next_command_at

    async def connect(self) -> None:
        """Connect, dropping a connection that is there; `DeviceUnreachable` says why it cannot."""
        self._drop()
        client = AsyncModbusTcpClient(
            self._host,
            port=self._port,
            timeout=self._timeout_s,
            retries=0,
            reconnect_delay=0,
            trace_connect=lambda connected: None if connected else self._lost(client),
        )
        try:
            # Not client.connect(): it tells only that it failed, and not why.
            async with asyncio.timeout(self._timeout_s):
                transport, _ = await asyncio.get_running_loop().create_connection(
                    lambda: client.ctx, self._host, self._port
                )
        except TimeoutError as error:
            raise DeviceUnreachable(
                f"no connection to {self.endpoint} within {self._timeout_s:g} s"
            ) from error
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise DeviceUnreachable(f"no connection to {self.endpoint}: {reason}") from error
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client = client
        self.generation += 1

    async def aclose(self) -> None:
        self._drop()

    async def read(self, unit: int, table: Table, address: int, count: int) -> list[int]:
        """Read `count` registers with one command."""
        client = await self._ready()
        if table is Table.HOLDING:
            request = client.read_holding_registers(address, count=count, device_id=unit)
        else:
            request = client.read_input_registers(address, count=count, device_id=unit)
        response = await self._answer(request, unit=unit)
        function = 3 if table is Table.HOLDING else 4
        if response.function_code != function or len(response.registers) != count:
            self._refuse(response, function=function, unit=unit, address=address)
        return list(response.registers)

    async def write(self, unit: int, address: int, registers: list[int], *, single: bool) -> None:
        """Write registers with one command: function 6 where `single`, else function 16."""
        client = await self._ready()
        if single:
            request = client.write_register(address, registers[0], device_id=unit)
        else:
            request = client.write_registers(address, registers, device_id=unit)
        response = await self._answer(request, unit=unit)
        function = 6 if single else 16
        if response.function_code != function or response.address != address:
            self._refuse(response, function=function, unit=unit, address=address)

    async def _ready(self) -> AsyncModbusTcpClient:
        if self._min_gap_s:
            # In a loop: a timer may fire a little early, and the device does not forgive that.
            while (wait_s := self._next_command_at - self._clock()) > 0:
                await self._sleep(wait_s)
        if self._client is None:
            raise DeviceUnreachable(f"not connected to {self.endpoint}")
        return self._client

    async def _answer(self, request: Awaitable[ModbusPDU], *, unit: int) -> ModbusPDU:
        self._busy = True
        try:
            return await request
        except ConnectionException as error:
            self._drop()
            raise DeviceUnreachable(
                f"the connection to {self.endpoint} broke: another controller may hold its only session, the"
                " device may have restarted, or it does not speak Modbus"
            ) from error
        except ModbusException as error:
            self._drop()
            raise DeviceUnreachable(
                f"no answer from {self.endpoint} unit {unit} within {self._timeout_s:g} s"
            ) from error
        except BaseException:
            # Cancelled, for one: the answer may still come, and nobody waits for it.
            self._drop()
            raise
        finally:
            self._busy = False
            if self._min_gap_s:
                self._next_command_at = self._clock() + self._min_gap_s

    def _refuse(self, response: ModbusPDU, *, function: int, unit: int, address: int) -> None:
        """Raise what an answer that is not the expected one means."""
        where = f"{self.endpoint} unit {unit}"
        if response.function_code == function | 0x80:
            code = response.exception_code
            reason = EXCEPTIONS.get(code, "for a reason of its own")
            raise DeviceRefused(
                f"{where} refused to {FUNCTIONS[function]} {address}: {reason} (Modbus exception {code})"
            )
        self._drop()
        raise DeviceUnreachable(f"{where} answered {FUNCTIONS[function]} {address} with something else")

    def _lost(self, client: AsyncModbusTcpClient) -> None:
        if client is not self._client:
            return
        self._client = None
        pending = client.ctx.response_future
        if self._busy and not pending.done():
            # pymodbus would let the request run into its timeout.
            pending.set_exception(ConnectionException("closed by the device"))

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


class ModbusDriver:
    """One device behind a session, as its profile describes it."""

    def __init__(
        self, *, session: ModbusSession, profile: Profile, unit: int, nameplate_kw: float | None
    ) -> None:
        self._session = session
        self._profile = profile
        self._points = profile.points
        self._unit = unit
        self._nameplate_kw = nameplate_kw
        self._generation = -1
        self._exponents: dict[str, int] = {}
        self._plans: dict[frozenset[str], list[Block]] = {}
        self._scales = _scale_points(profile, profile.points)
        self._telemetry = frozenset(profile.telemetry.values())
        limit = profile.limit
        self._readback = frozenset(_readback_points(limit)) if limit else frozenset[str]()
        self._needs_preparation = limit is not None and bool(
            limit.once or limit.requires or _scale_points(profile, _written(limit))
        )
        self._prepared = not self._needs_preparation
        self._sent: Counter[str] = Counter()

    @property
    def commands_per_write(self) -> int:
        limit = self._profile.limit
        if limit is None:
            return 0
        return max(_commands(limit.set), _commands(limit.release or ()))

    @property
    def commands_per_poll(self) -> int:
        return len(self._plan(self._telemetry)) + len(self._plan(self._readback))

    @property
    def telemetry_units(self) -> dict[str, str]:
        return self._profile.telemetry_units

    async def identify(self) -> None:
        """Refuse a device whose identity or rated power (within 10 %) is not what it should be."""
        identity = self._profile.identity
        names = {check.point for check in identity.checks}
        if identity.nameplate is not None and self._nameplate_kw is not None:
            names.add(identity.nameplate)
        if not names:
            return
        values = await self._read_points(frozenset(names))
        self._judge(identity.checks, values, action="control")
        if identity.nameplate not in names or self._nameplate_kw is None:
            return
        rated_kw = values[identity.nameplate]
        if not isinstance(rated_kw, float | int):
            raise DeviceRefused(
                f"{self._where} does not say its rated power, {self._nameplate_kw:g} kW expected"
            )
        if abs(rated_kw - self._nameplate_kw) > NAMEPLATE_TOLERANCE * self._nameplate_kw:
            raise DeviceRefused(
                f"{self._where} is rated {rated_kw:g} kW, configured are {self._nameplate_kw:g} kW: check the"
                " device's profile and peak power"
            )

    async def read(self) -> dict[str, float | None]:
        """Read the telemetry. A block that the device refuses gives None for its keys, unless all are."""
        if not self._telemetry:
            return {}
        values = await self._read_points(self._telemetry, tolerant=True)
        readings: dict[str, float | None] = {}
        for key, name in self._profile.telemetry.items():
            value = values.get(name)
            readings[key] = None if isinstance(value, str) else value
        return readings

    async def write(self, value: float) -> None:
        """Write the setpoint; the profile's maximum is a release where the profile has one."""
        limit = self._limit
        profile = self._profile
        if not profile.min_value <= value <= profile.max_value:
            raise DeviceRefused(
                f"{value:g} is outside {profile.min_value:g} to {profile.max_value:g} of {profile.title}"
            )
        if self._needs_preparation and not self._is_prepared():
            await self._prepare(limit)
        steps = limit.set if limit.release is None or value < profile.max_value else limit.release
        for step in steps:
            await self._step(step, value)

    def take_writes(self) -> dict[str, int]:
        sent = dict(self._sent)
        self._sent.clear()
        return sent

    async def read_setpoint(self) -> float | None:
        limit = self._limit
        if limit.readback is None:
            return None
        values = await self._read_points(self._readback)
        if limit.readback_switch is not None and not limit.readback_switch.holds(
            values[limit.readback_switch.point]
        ):
            # Somebody may have switched it off: look again at what the next write needs.
            self._prepared = not self._needs_preparation
            return self._profile.max_value
        value = values[limit.readback]
        if value is None or isinstance(value, str):
            return None
        return self._profile.max_value if value == limit.readback_no_limit else value

    @property
    def _where(self) -> str:
        return f"{self._session.endpoint} unit {self._unit}"

    @property
    def _limit(self) -> Limit:
        if self._profile.limit is None:
            raise DeviceRefused(f"{self._profile.title} is only measured, it has no setpoint")
        return self._profile.limit

    def _is_prepared(self) -> bool:
        self._forget_if_reconnected()
        return self._prepared

    def _forget_if_reconnected(self) -> None:
        # Another connection may lead to another device, or to this one after a restart.
        if self._generation != self._session.generation:
            self._generation = self._session.generation
            self._exponents.clear()
            self._prepared = not self._needs_preparation

    async def _prepare(self, limit: Limit) -> None:
        """Do what comes before the first write of a connection: scale factors, requirements, `once`."""
        required = {check.point for check in limit.requires}
        scales = _scale_points(self._profile, _written(limit))
        if required or not scales <= self._exponents.keys():
            values = await self._read_points(frozenset(required | scales))
            self._judge(limit.requires, values, action="write to")
        for step in limit.once:
            await self._step(step, None)
        self._prepared = True

    def _judge(self, checks: Iterable[Check], values: dict[str, float | str | None], *, action: str) -> None:
        for check in checks:
            found = values[check.point]
            if not check.holds(found):
                hint = f"; {check.hint}" if check.hint else ""
                raise DeviceRefused(
                    f"will not {action} {self._where}: {self._points[check.point].name} ({check.point}) reads"
                    f" {_shown(found)}, expected {_shown(check.equals)}{hint}"
                )

    async def _step(self, step: Step, setpoint: float | None) -> None:
        point = self._points[step.point]
        value = setpoint if step.value == VALUE else step.value
        try:
            registers = encode(point, value, exponent=self._exponent(point))
        except ValueError as error:
            raise DeviceRefused(
                f"{value} cannot be written to {point.name} of {self._where}: {error}"
            ) from error
        if step.when == "if_different":
            current = await self._session.read(self._unit, point.table, point.address, point.count)
            if current == registers:
                return
        # Counted before it leaves: what was sent may have been carried out, whatever comes back.
        self._sent[step.point] += 1
        await self._session.write(self._unit, point.address, registers, single=point.write_single)

    def _exponent(self, point: Point) -> int:
        return self._exponents[point.scale_point] if point.scale_point is not None else 0

    async def _read_points(
        self, names: frozenset[str], *, tolerant: bool = False
    ) -> dict[str, float | str | None]:
        self._forget_if_reconnected()
        raw: dict[str, list[int]] = {}
        refused: DeviceRefused | None = None
        for block in self._plan(names):
            try:
                registers = await self._session.read(self._unit, block.table, block.address, block.count)
            except DeviceRefused as error:
                if not tolerant:
                    raise
                refused = error
                continue
            for name in block.points:
                point = self._points[name]
                start = point.address - block.address
                raw[name] = registers[start : start + point.count]
        if refused is not None and not raw:
            raise refused
        # Scale factors first: the others need them.
        for name in raw.keys() & self._scales:
            try:
                self._learn_exponent(name, raw[name])
            except ReadingInvalid:
                if not tolerant:
                    raise
        return {name: self._decode(name, raw[name]) for name in names if name in raw}

    def _plan(self, names: frozenset[str]) -> list[Block]:
        missing = _scale_points(self._profile, names) - self._exponents.keys()
        wanted = names | missing if missing else names
        plan = self._plans.get(wanted)
        if plan is None:
            plan = self._plans[wanted] = plan_reads(
                self._points, wanted, max_block=self._profile.max_block, max_gap=self._profile.max_read_gap
            )
        return plan

    def _learn_exponent(self, name: str, registers: list[int]) -> None:
        exponent = decode(self._points[name], registers)
        if not isinstance(exponent, float | int) or abs(exponent) > MAX_EXPONENT:
            raise ReadingInvalid(
                f"{self._where}: scale factor {self._points[name].name} reads {_shown(exponent)}, expected"
                f" -{MAX_EXPONENT} to {MAX_EXPONENT}"
            )
        self._exponents[name] = int(exponent)

    def _decode(self, name: str, registers: list[int]) -> float | str | None:
        point = self._points[name]
        if point.scale_point is not None and point.scale_point not in self._exponents:
            # Its block was refused, or it has no value: a number without its scale is none either.
            return None
        return decode(point, registers, exponent=self._exponent(point))


def _written(limit: Limit) -> set[str]:
    return {step.point for step in (*limit.once, *limit.set, *(limit.release or ()))}


def _readback_points(limit: Limit) -> set[str]:
    names = {limit.readback} if limit.readback is not None else set()
    if limit.readback_switch is not None:
        names.add(limit.readback_switch.point)
    return names


def _scale_points(profile: Profile, names: Iterable[str]) -> set[str]:
    return {scale for name in names if (scale := profile.points[name].scale_point) is not None}


def _commands(steps: Iterable[Step]) -> int:
    return sum(2 if step.when == "if_different" else 1 for step in steps)


def _shown(value: float | str | tuple[float | str, ...] | None) -> str:
    if value is None:
        return "no value"
    if isinstance(value, tuple):
        return " or ".join(_shown(one) for one in value)
    if isinstance(value, str):
        return repr(value)
    return str(int(value)) if value == int(value) else f"{value:g}"
