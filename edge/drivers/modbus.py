"""Modbus TCP: a session per endpoint, a driver per device."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from edge.drivers import mbap
from edge.drivers.base import Session
from edge.drivers.errors import DeviceAway, DeviceRefused, DeviceUnreachable, ReadingInvalid
from edge.drivers.mbap import (
    READ_COILS,
    READ_DISCRETE,
    READ_HOLDING,
    READ_INPUT,
    READS,
    WRITE_COIL,
    WRITE_COILS,
    WRITE_MULTIPLE,
    WRITE_SINGLE,
    Frame,
    NotModbus,
)
from edge.drivers.plan import Layout, Placed, Read, layout_of, scale_points
from edge.drivers.points import PointDriver, shown
from edge.drivers.sunspec import BASES, models_from, told, wanted
from edge.profiles.model import Profile, Step
from edge.profiles.points import Register, Table, Value
from edge.profiles.registers import encode

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
# A gateway's words for a unit that is not there.
UNIT_UNREACHABLE = (10, 11)
FUNCTIONS = {
    READ_COILS: "read coil",
    READ_DISCRETE: "read discrete input",
    READ_HOLDING: "read holding register",
    READ_INPUT: "read input register",
    WRITE_COIL: "write coil",
    WRITE_SINGLE: "write register",
    WRITE_COILS: "write coils",
    WRITE_MULTIPLE: "write registers",
}
# So many connections in a row that ended with their first answer, and the next ones are for one command each.
ENDED_EARLY = 2
# `struct linger`: on, and no time for it.
DISCARD = struct.pack("ii", 1, 0)
# More than a frame: what is left of one goes aside, so that all connections of the loop share this.
_RECEIVED = bytearray(1024)


class _Connection(asyncio.BufferedProtocol):
    """One TCP connection with at most one request under way. Answers to anything else are not heard."""

    __slots__ = ("_answer", "_given_up", "_lost", "_rest", "_transaction", "_transport", "answers")

    def __init__(self, lost: Callable[[_Connection], None]) -> None:
        self._lost = lost
        # So many requests it has carried.
        self.answers = 0
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._transaction = -1
        self._answer: asyncio.Future[Frame | OSError] | None = None
        self._given_up = False

    async def ask(self, request: bytes, *, transaction: int, timeout_s: float) -> Frame:
        """Send a request and wait for the answer of this transaction.

        `TimeoutError`, or `ConnectionError` where the connection ended meanwhile. After anything but an
        answer the caller closes the connection.
        """
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        # An error comes as a result: of an exception that meets a cancellation, asyncio would complain.
        waiter: asyncio.Future[Frame | OSError] = loop.create_future()
        self._transaction, self._answer = transaction, waiter
        self._given_up = True
        self._transport.write(request)
        timer = loop.call_later(timeout_s, _give_up, waiter)
        try:
            answer = await waiter
        finally:
            timer.cancel()
            self._answer = None
        if isinstance(answer, OSError):
            raise answer
        self._given_up = False
        self.answers += 1
        return answer

    def close(self) -> None:
        """End the connection; a command that was given up is not delivered any more."""
        if self._transport is None:
            return
        if self._given_up:
            # The system would deliver it once a pulled cable is back: an old value after a newer one.
            connection = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, DISCARD)
        # Not close(): that waits for what the device does not take.
        self._transport.abort()

    # --- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - asyncio's signature
        # It is emptied before the loop reads from the next socket.
        return _RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        try:
            frames, self._rest = mbap.cut(self._rest + _RECEIVED[:nbytes])
        except NotModbus as error:
            self._end(ConnectionError(str(error)))
            self.close()
            return
        waiter = self._answer
        for frame in frames:
            if frame.transaction == self._transaction and waiter is not None and not waiter.done():
                waiter.set_result(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionError(str(exc or "closed by the device")))

    def _end(self, reason: ConnectionError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(reason)
        self._lost(self)


def _give_up(waiter: asyncio.Future[Frame | OSError]) -> None:
    if not waiter.done():
        waiter.set_result(TimeoutError())


class RegisterSession(Session, Protocol):
    """What the driver needs of a session, over whatever kind of line."""

    # Counts connections, so that a driver knows when what it has prepared or cached is gone.
    generation: int

    @property
    def endpoint(self) -> str: ...

    async def pause(self, seconds: float) -> None:
        """Let time pass, on the line's clock."""

    async def read(self, unit: int, table: Table, address: int, count: int) -> list[int]:
        """Read `count` registers with one command; of a table of bits, as many bits, each 0 or 1."""

    async def write(
        self, unit: int, address: int, registers: list[int], *, single: bool, table: Table = Table.HOLDING
    ) -> None:
        """Write registers, or bits, with one command: function 6 (or 5) where `single`, else 16 (or 15)."""


class ModbusSession:
    """One TCP connection to one endpoint, used by one task at a time.

    Each command is one request, never repeated from here. Between the end of a command and the start of the
    next lie at least `min_gap_s`, also over a reconnect; between a connection and its first command at least
    `connect_delay_s`. After a timeout or a broken frame the connection is closed, so that a late answer is
    never taken for the next one's. `clock` gives boot-time seconds.

    Some devices close each connection with their first answer. For those, once it is noticed, each command
    has a connection of its own, and the session counts as connected until one fails.

    The client is our own rather than pymodbus': see docs/adr/0007-modbus-client.md.
    """

    __slots__ = (
        "_clock",
        "_connect_delay_s",
        "_connection",
        "_ended_early",
        "_host",
        "_min_gap_s",
        "_next_command_at",
        "_one_each",
        "_port",
        "_sleep",
        "_timeout_s",
        "_transaction",
        "generation",
    )

    def __init__(
        self,
        *,
        host: str,
        port: int,
        timeout_s: float,
        min_gap_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        connect_delay_s: float = 0.0,
    ) -> None:
        self._host = host
        self._port = port
        self._timeout_s = timeout_s
        self._min_gap_s = min_gap_s
        self._connect_delay_s = connect_delay_s
        self._clock = clock
        self._sleep = sleep
        self._connection: _Connection | None = None
        # Counts on over reconnects, and around.
        self._transaction = 0
        self._next_command_at = 0.0
        # Connections in a row that ended with their first answer, and whether each command has its own.
        self._ended_early = 0
        self._one_each = False
        self.generation = 0

    @property
    def endpoint(self) -> str:
        return f"{self._host}:{self._port}"

    @property
    def connected(self) -> bool:
        return self._connection is not None or self._one_each

    @property
    def next_command_at(self) -> float:
        """Boot-time seconds before which no command may start; 0 where no pause is kept."""
        return self._next_command_at

    async def connect(self) -> None:
        """Connect, dropping a connection that is there; `DeviceUnreachable` says why it cannot."""
        self._drop()
        self._connection = await self._open()
        self._one_each = self._ended_early >= ENDED_EARLY
        self.generation += 1

    async def _open(self) -> _Connection:
        # asyncio closes a socket in its next turn. Until then a device with one session would see two.
        await asyncio.sleep(0)
        connection = _Connection(self._lost)
        try:
            async with asyncio.timeout(self._timeout_s):
                # asyncio sets TCP_NODELAY itself.
                await asyncio.get_running_loop().create_connection(lambda: connection, self._host, self._port)
        except TimeoutError as error:
            raise DeviceUnreachable(
                f"no connection to {self.endpoint} within {self._timeout_s:g} s"
            ) from error
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise DeviceUnreachable(f"no connection to {self.endpoint}: {reason}") from error
        if self._connect_delay_s:
            self._next_command_at = max(self._next_command_at, self._clock() + self._connect_delay_s)
        return connection

    async def aclose(self) -> None:
        self._drop()

    async def pause(self, seconds: float) -> None:
        await self._sleep(seconds)

    async def read(self, unit: int, table: Table, address: int, count: int) -> list[int]:
        function = READS[table]
        connection = await self._ready()
        request = mbap.read_request(
            self._transaction, unit=unit, function=function, address=address, count=count
        )
        data = await self._ask(connection, request, unit=unit, function=function, address=address)
        registers = mbap.values_in(data, table=table, count=count)
        if registers is None:
            raise self._something_else(unit, function, address)
        return registers

    async def write(
        self, unit: int, address: int, registers: list[int], *, single: bool, table: Table = Table.HOLDING
    ) -> None:
        function = mbap.write_function(table, single=single)
        connection = await self._ready()
        request = mbap.write_request(
            self._transaction, unit=unit, function=function, address=address, registers=registers
        )
        data = await self._ask(connection, request, unit=unit, function=function, address=address)
        if int.from_bytes(data[:2], "big") != address:
            raise self._something_else(unit, function, address)

    async def _ready(self) -> _Connection:
        if self._next_command_at:
            await self._wait_for_turn()
        if self._connection is None and self._one_each:
            try:
                self._connection = await self._open()
            except DeviceUnreachable:
                self._drop()
                raise
            await self._wait_for_turn()
        if self._connection is None:
            raise DeviceUnreachable(f"not connected to {self.endpoint}")
        self._transaction = (self._transaction + 1) & 0xFFFF
        return self._connection

    async def _wait_for_turn(self) -> None:
        # In a loop: a timer may fire a little early, and the device does not forgive that.
        while (wait_s := self._next_command_at - self._clock()) > 0:
            await self._sleep(wait_s)

    async def _ask(
        self, connection: _Connection, request: bytes, *, unit: int, function: int, address: int
    ) -> bytes:
        """Carry out one request; the data of its answer."""
        try:
            answer = await connection.ask(request, transaction=self._transaction, timeout_s=self._timeout_s)
        except ConnectionError as error:
            self._drop()
            raise DeviceUnreachable(
                f"the connection to {self.endpoint} broke: another controller may hold its only session, the"
                " device may have restarted, or it does not speak Modbus"
            ) from error
        except TimeoutError as error:
            self._drop()
            raise DeviceUnreachable(
                f"no answer from {self.endpoint} unit {unit} within {self._timeout_s:g} s"
            ) from error
        except BaseException:
            # Cancelled, for one: the answer may still come, and nobody waits for it.
            self._drop()
            raise
        finally:
            if self._min_gap_s:
                self._next_command_at = self._clock() + self._min_gap_s
        if self._one_each:
            # Before it does: a command that meets its end is a command that may have been carried out.
            self._connection = None
            connection.close()
        if answer.unit == unit and answer.function == function | mbap.REFUSED:
            code = answer.data[0]
            reason = EXCEPTIONS.get(code, "for a reason of its own")
            if code in UNIT_UNREACHABLE:
                # The gateway answers, and the units beside this one may as well: the connection stays.
                raise DeviceAway(f"no answer from {self.endpoint} unit {unit}: {reason}")
            raise DeviceRefused(
                f"{self.endpoint} unit {unit} refused to {FUNCTIONS[function]} {address}: {reason}"
                f" (Modbus exception {code})"
            )
        if answer.unit != unit or answer.function != function:
            raise self._something_else(unit, function, address)
        return answer.data

    def _something_else(self, unit: int, function: int, address: int) -> DeviceUnreachable:
        self._drop()
        return DeviceUnreachable(
            f"{self.endpoint} unit {unit} answered {FUNCTIONS[function]} {address} with something else"
        )

    def _lost(self, connection: _Connection) -> None:
        if connection is self._connection:
            self._connection = None
            self._note_end(connection)

    def _note_end(self, connection: _Connection) -> None:
        """The device ended this connection: see whether that is its way."""
        self._ended_early = self._ended_early + 1 if connection.answers == 1 else 0

    def _drop(self) -> None:
        self._one_each = False
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class ModbusDriver(PointDriver):
    """One device behind a session, as its profile describes it.

    Where a SunSpec one has its registers is found out at each first contact: a restart or new firmware may
    have moved them. A point of a model that it has not is a value it has not, unless it could not be
    recognised or controlled without.
    """

    __slots__ = ("_base", "_exponents", "_generation", "_is_found", "_layout", "_session", "_unit")

    def __init__(
        self, *, session: RegisterSession, profile: Profile, unit: int, nameplate_kw: float | None
    ) -> None:
        super().__init__(profile=profile, nameplate_kw=nameplate_kw)
        self._session = session
        # Shared by all devices of the profile that have the same models.
        self._layout: Layout = layout_of(profile)
        self._is_found = not profile.sunspec
        # Which of the places where a SunSpec map may begin is tried first.
        self._base = 0
        self._unit = unit
        self._generation = -1
        self._exponents: dict[str, int] = {}

    @property
    def commands_per_poll(self) -> int:
        layout = self._layout
        if not self._is_found:
            return len({wanted(self._profile.registers[name]) for name in layout.polled})
        if self._reads_together:
            return len(self._plan(layout.polled))
        return len(self._plan(layout.telemetry)) + len(self._plan(layout.readback))

    @property
    def _where(self) -> str:
        return f"{self._session.endpoint} unit {self._unit}"

    @property
    def _readback_points(self) -> frozenset[str]:
        return self._layout.readback

    def _look_for_reconnection(self) -> None:
        # Another connection may lead to another device, or to this one after a restart.
        if self._generation != self._session.generation:
            self._generation = self._session.generation
            self._forget()

    def _forget(self) -> None:
        super()._forget()
        self._exponents.clear()
        self._is_found = not self._profile.sunspec

    async def _meet(self) -> None:
        if not self._profile.sunspec:
            return
        self._look_for_reconnection()
        if not self._is_found:
            await self._find()
        self._require(self._needed_always())

    async def _find(self) -> None:
        """Find where the points of a SunSpec device are."""

        async def read(address: int, count: int) -> list[int]:
            return await self._session.read(self._unit, Table.HOLDING, address, count)

        for _ in BASES:
            base = BASES[self._base]
            # Before it is asked: what does not answer at all there is next time asked elsewhere first.
            self._base = (self._base + 1) % len(BASES)
            models = await models_from(base, read)
            if models is not None:
                self._base = BASES.index(base)
                self._layout = layout_of(self._profile, models)
                self._is_found = True
                return
        places = ", ".join(map(str, BASES))
        raise DeviceRefused(f"{self._where} is no SunSpec device: there is no map at {places}")

    def _require(self, names: Iterable[str]) -> None:
        """Refuse a device that has not all of these points."""
        for name in names:
            if name not in self._layout.registers:
                point = self._profile.registers[name]
                models = " or ".join(map(str, wanted(point)))
                raise DeviceRefused(
                    f"{self._where} has no {point.name} ({name}) in a model {models}; its models are"
                    f" {told(self._layout.models)}"
                )

    def _needed_always(self) -> Iterable[str]:
        """What a device must have to be recognised and controlled."""
        identity, limit = self._profile.identity, self._profile.limit
        yield from (check.point for check in identity.checks)
        if identity.nameplate is not None and self._nameplate_kw is not None:
            yield identity.nameplate
        if limit is not None:
            yield from self._layout.readback
            yield from (check.point for check in limit.requires)
            for step in (*limit.once, *limit.set, *(limit.release or ())):
                yield from step.writes

    async def _pause(self, seconds: float) -> None:
        await self._session.pause(seconds)

    def _needed(self, steps: Iterable[Step]) -> frozenset[str]:
        """The scale factors that the steps' values are written with."""
        if not self._layout.scales:
            return frozenset()
        written = (name for step in steps for name in step.writes)
        return frozenset(scale_points(self._profile, written) - self._exponents.keys())

    async def _put(self, values: Mapping[str, Value], *, only_if_different: bool) -> None:
        if not self._is_found:
            await self._find()
        self._require(values)
        points = self._layout.registers
        registers: list[int] = []
        for name, value in values.items():
            point = points[name]
            try:
                registers += encode(point, value, exponent=self._exponent(point))
            except ValueError as error:
                raise DeviceRefused(
                    f"{value} cannot be written to {point.name} of {self._where}: {error}"
                ) from error
        first = points[next(iter(values))]
        if only_if_different:
            current = await self._session.read(self._unit, first.table, first.address, len(registers))
            if current == registers:
                return
        self._count(values)
        await self._session.write(
            self._unit,
            first.address,
            registers,
            single=first.write_single and len(values) == 1,
            table=first.table,
        )

    def _exponent(self, point: Register) -> int:
        if point.scale_point is None:
            return 0
        self._require((point.scale_point,))
        return self._exponents[point.scale_point]

    async def _read(self, names: frozenset[str], *, tolerant: bool = False) -> dict[str, Value]:
        self._look_for_reconnection()
        if not self._is_found:
            await self._find()
        answered: list[tuple[Read, bytes]] = []
        refused: DeviceRefused | None = None
        for read in self._plan(names):
            block = read.block
            try:
                registers = await self._session.read(self._unit, block.table, block.address, block.count)
            except DeviceRefused as error:
                if not tolerant:
                    raise
                refused = error
            else:
                answered.append((read, struct.pack(f">{block.count}H", *registers)))
        if refused is not None and not answered:
            raise refused
        # Scale factors first: the others need them.
        for read, raw in answered:
            for placed in read.scales:
                try:
                    self._learn_exponent(placed.name, placed.decode(raw, placed.offset, 0))
                except ReadingInvalid:
                    if not tolerant:
                        raise
        values: dict[str, Value] = {
            placed.name: self._value(placed, raw) for read, raw in answered for placed in read.points
        }
        if self._profile.sunspec:
            # What the device has not, has no value.
            values = dict.fromkeys(names - self._layout.registers.keys()) | values
        return values

    def _plan(self, names: frozenset[str]) -> tuple[Read, ...]:
        layout = self._layout
        if layout.scales:
            names = names | (scale_points(self._profile, names) - self._exponents.keys())
        return layout.plan(names)

    def _value(self, placed: Placed, raw: bytes) -> Value:
        if placed.scale_point is None:
            return placed.decode(raw, placed.offset, 0)
        exponent = self._exponents.get(placed.scale_point)
        # Its scale factor was refused, or has no value: a number without its scale is none either.
        return None if exponent is None else placed.decode(raw, placed.offset, exponent)

    def _learn_exponent(self, name: str, exponent: Value) -> None:
        if not isinstance(exponent, float | int) or abs(exponent) > MAX_EXPONENT:
            raise ReadingInvalid(
                f"{self._where}: scale factor {self._profile.points[name].name} reads {shown(exponent)},"
                f" expected -{MAX_EXPONENT} to {MAX_EXPONENT}"
            )
        self._exponents[name] = int(exponent)
