"""Modbus TCP devices on real sockets, built from their profiles. The only simulator that knows pymodbus.

Of pymodbus it takes frames and messages. The sessions are our own, because real devices judge each
controller's session by itself: they leave a command unanswered that comes too early, and close a session too
many.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

from pymodbus.exceptions import ModbusException
from pymodbus.framer import FramerSocket
from pymodbus.pdu import DecodePDU, ExceptionResponse, ModbusPDU
from pymodbus.pdu.register_message import (
    ReadHoldingRegistersResponse,
    ReadInputRegistersResponse,
    WriteMultipleRegistersResponse,
    WriteSingleRegisterResponse,
)

from edge.plant import Kind, Site
from edge.profiles.model import Profile
from edge.profiles.points import MAX_READ, Register, RegisterType, Table, Value
from edge.profiles.registers import decode, encode
from edge.simulators.device import Fault, Simulated

READ_HOLDING, READ_INPUT, WRITE_SINGLE, WRITE_MULTIPLE = 3, 4, 6, 16
ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE, DEVICE_FAILURE, NO_SUCH_UNIT = 1, 2, 3, 4, 11
# A SunSpec device fills what it has not implemented with this.
NOT_IMPLEMENTED = 0xFFFF
MBAP_HEADER = 6
LONGEST_FRAME = 260


class SimulatedRegisters:
    """The registers of one device, by point name or as words. Between close points lie readable fillers."""

    def __init__(self, profile: Profile) -> None:
        self._points = profile.registers
        self.words: dict[Table, dict[int, int]] = {table: {} for table in Table}
        self._writable: dict[int, str] = {}
        self._write_only: set[int] = set()
        self._absent: set[str] = set()
        for table in Table:
            points = sorted(
                (point for point in profile.registers.values() if point.table is table),
                key=lambda point: point.address,
            )
            for before, after in pairwise(points):
                if after.address - before.end <= profile.max_read_gap:
                    fillers = range(before.end, after.address)
                    self.words[table].update(dict.fromkeys(fillers, NOT_IMPLEMENTED))
        for name, point in profile.registers.items():
            addresses = range(point.address, point.end)
            self.words[point.table].update(dict.fromkeys(addresses, 0))
            if point.writable:
                self._writable.update(dict.fromkeys(addresses, name))
            if not point.readable:
                self._write_only.update(addresses)
        # Scale factors first: the others are written with them.
        for name in sorted(profile.points, key=lambda name: profile.registers[name].scale_point is not None):
            self.reset(name)

    def reset(self, name: str) -> None:
        """Put a point to its example, else to "no value" where it can say so, else to nothing."""
        point = self._points[name]
        if point.example is not None:
            self.set(name, point.example)
        elif point.nan is not None or point.type is RegisterType.STR:
            self.set(name, None)
        else:
            self.set(name, 0.0)

    def get(self, name: str) -> float | str | None:
        point = self._points[name]
        words = self.words[point.table]
        registers = [words[address] for address in range(point.address, point.end)]
        return decode(point, registers, exponent=self._exponent(point))

    def remove(self, name: str) -> None:
        """Be a model that lacks this point."""
        point = self._points[name]
        self._absent.add(name)
        for address in range(point.address, point.end):
            self.words[point.table].pop(address, None)
            self._writable.pop(address, None)

    def set(self, name: str, value: float | str | None) -> None:
        if name in self._absent:
            return
        point = self._points[name]
        registers = encode(point, value, exponent=self._exponent(point))
        self.words[point.table].update(zip(range(point.address, point.end), registers, strict=True))

    def read(self, table: Table, address: int, count: int) -> list[int] | None:
        """Read words; None where one of them cannot be read."""
        words = self.words[table]
        addresses = range(address, address + count)
        if not all(one in words for one in addresses):
            return None
        if table is Table.HOLDING and not self._write_only.isdisjoint(addresses):
            return None
        return [words[one] for one in addresses]

    def write(self, address: int, registers: Sequence[int]) -> list[str] | None:
        """Write words and name the points they belong to; None where one of them cannot be written."""
        addresses = range(address, address + len(registers))
        if not all(one in self._writable for one in addresses):
            return None
        self.words[Table.HOLDING].update(zip(addresses, registers, strict=True))
        return list(dict.fromkeys(self._writable[one] for one in addresses))

    def _exponent(self, point: Register) -> int:
        if point.scale_point is None:
            return 0
        exponent = self.get(point.scale_point)
        return int(exponent) if isinstance(exponent, float | int) else 0


class SimulatedDevice(Simulated):
    """A Modbus device of this profile on a socket of its own, and a second one to look at it.

    `port` keeps the maker's rules: the pause between commands and the number of sessions. `observe_port`
    shows the same registers without them and refuses writes. Both may be 0 until `start`, which draws free
    ones. A device `on_line` has no port of its own: it hangs on a `SimulatedLine`, which hands it requests.
    The device answers only its own unit. `clock` is in seconds and drives the physics and the pauses.
    """

    def __init__(
        self,
        *,
        profile: Profile,
        unit: int,
        nameplate_kw: float,
        host: str = "127.0.0.1",
        port: int = 0,
        observe_port: int = 0,
        behaves_as: Kind | None = None,
        site: Site | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_line: bool = False,
    ) -> None:
        super().__init__(
            profile=profile, nameplate_kw=nameplate_kw, behaves_as=behaves_as, site=site, clock=clock
        )
        self._on_line = on_line
        self.unit = unit
        self.host = host
        self.port = port
        self.observe_port = observe_port
        self.registers = SimulatedRegisters(profile)
        self._sessions: set[_ModbusConnection] = set()
        self._observers: set[_ModbusConnection] = set()
        self._server: asyncio.Server | None = None
        self._observe_server: asyncio.Server | None = None
        self.set_up()

    # --- for tests and the fleet ---

    shows_itself = True

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port} unit {self.unit}"

    async def start(self) -> None:
        """Listen on both ports; `OSError` where one is taken."""
        await self._listen()
        self._observe_server = await asyncio.get_running_loop().create_server(
            lambda: _ModbusConnection(self, observing=True), self.host, self.observe_port
        )
        self.observe_port = self._observe_server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._stop_listening()
        if self._observe_server is not None:
            self._observe_server.close()
            self._observe_server = None
        for observer in list(self._observers):
            observer.close()

    async def set_fault(self, fault: Fault, *, delay_s: float = 0.0) -> None:
        """Break the device in this way, or with `Fault.NONE` mend it. `delay_s` belongs to `Fault.DELAY`."""
        self.fault = fault
        self.delay_s = delay_s
        if fault is Fault.REFUSE:
            self._stop_listening()
        elif self._server is None:
            await self._listen()

    async def restart(self) -> None:
        """Lose power and come back: sessions end, and a limit that is not stored is forgotten."""
        for session in list(self._sessions):
            session.close()
        await super().restart()

    def get(self, name: str) -> Value:
        return self.registers.get(name)

    def put(self, name: str, value: Value) -> None:
        self.registers.set(name, value)

    def reset(self, name: str) -> None:
        self.registers.reset(name)

    # --- the device ---

    def answer(self, request: ModbusPDU, *, observing: bool) -> ModbusPDU:
        """Carry out one request."""
        function = request.function_code
        if function in (READ_HOLDING, READ_INPUT):
            return self._read(request)
        if function in (WRITE_SINGLE, WRITE_MULTIPLE) and not observing:
            return self._write(request)
        return ExceptionResponse(function, ILLEGAL_FUNCTION)

    def opened(self, connection: _ModbusConnection, *, observing: bool) -> bool:
        """Take a new connection, or say that it is one too many."""
        if observing:
            self._observers.add(connection)
            return True
        if self.profile.max_sessions is not None and len(self._sessions) >= self.profile.max_sessions:
            self.sessions_refused += 1
            return False
        self._sessions.add(connection)
        return True

    def closed(self, connection: _ModbusConnection) -> None:
        self._sessions.discard(connection)
        self._observers.discard(connection)

    def set_up(self) -> None:
        if self.profile.identity.nameplate is not None:
            self._make_room(self.profile.identity.nameplate)
        for key, name in self.profile.telemetry.items():
            if key == "P_kW":
                self._make_room(name)
        super().set_up()

    def _make_room(self, name: str) -> None:
        """Raise a point's scale factor until it can say the nameplate, as a bigger device would."""
        point = self.profile.registers[name]
        highest_kw = 1.2 * self.machine.nameplate_kw
        while point.scale_point is not None:
            try:
                self.registers.set(name, highest_kw)
            except ValueError:
                exponent = self.registers.get(point.scale_point)
                self.registers.set(point.scale_point, float(exponent or 0) + 1)
            else:
                return

    def _read(self, request: ModbusPDU) -> ModbusPDU:
        function = request.function_code
        if not 1 <= request.count <= MAX_READ:
            return ExceptionResponse(function, ILLEGAL_VALUE)
        self.let_own_fallback_act()
        self.measure()
        table = Table.HOLDING if function == READ_HOLDING else Table.INPUT
        registers = self.registers.read(table, request.address, request.count)
        if registers is None:
            return ExceptionResponse(function, ILLEGAL_ADDRESS)
        if function == READ_HOLDING:
            return ReadHoldingRegistersResponse(registers=registers)
        return ReadInputRegistersResponse(registers=registers)

    def _write(self, request: ModbusPDU) -> ModbusPDU:
        function = request.function_code
        registers = list(request.registers)
        if self.fault is Fault.WRITE_EXCEPTION:
            return ExceptionResponse(function, DEVICE_FAILURE)
        if not registers or (function == WRITE_MULTIPLE and len(registers) != request.count):
            return ExceptionResponse(function, ILLEGAL_VALUE)
        if self.fault is not Fault.IGNORE_WRITES:
            self.let_own_fallback_act()
            names = self.registers.write(request.address, registers)
            if names is None:
                return ExceptionResponse(function, ILLEGAL_ADDRESS)
            self.wrote(names)
        if function == WRITE_SINGLE:
            return WriteSingleRegisterResponse(address=request.address, registers=registers)
        return WriteMultipleRegistersResponse(address=request.address, count=len(registers))

    async def _listen(self) -> None:
        if self._on_line:
            return
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _ModbusConnection(self, observing=False), self.host, self.port
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for session in list(self._sessions):
            session.close()


class _ModbusConnection(asyncio.Protocol):
    """One controller's session, or one observer's."""

    def __init__(self, device: SimulatedDevice, *, observing: bool) -> None:
        self._device = device
        self._observing = observing
        self._framer = FramerSocket(DecodePDU(True))  # noqa: FBT003 - the library's own signature
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._last_answer_at: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._device.opened(self, observing=self._observing):
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the reason does not matter
        self._transport = None
        self._device.closed(self)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        self._device.closed(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._buffer:
            try:
                used, request = self._framer.handleFrame(self._buffer, 0, 0)
            except ModbusException:
                used, request = self._refuse_frame(), None
            if not used:
                if len(self._buffer) > LONGEST_FRAME or self._buffer[2:4].strip(b"\0"):
                    # Not Modbus: no more of it will ever make a frame.
                    self.close()
                return
            self._buffer = self._buffer[used:]
            if request is not None:
                self._handle(request)

    def _refuse_frame(self) -> int:
        """Answer a function nobody knows; return the length of its frame."""
        frame = self._buffer
        response = ExceptionResponse(frame[MBAP_HEADER + 1], ILLEGAL_FUNCTION)
        self._send(response, transaction_id=int.from_bytes(frame[:2], "big"), unit=frame[MBAP_HEADER])
        return MBAP_HEADER + int.from_bytes(frame[4:6], "big")

    def _handle(self, request: ModbusPDU) -> None:
        device = self._device
        transaction_id, unit = request.transaction_id, request.dev_id
        if self._observing:
            if unit == device.unit:
                response = device.answer(request, observing=True)
            else:
                response = ExceptionResponse(request.function_code, NO_SUCH_UNIT)
            self._send(response, transaction_id=transaction_id, unit=unit)
            return
        device.commands += 1
        if self._comes_too_early() or unit != device.unit or device.fault is Fault.SILENT:
            return
        response = device.answer(request, observing=False)
        if device.fault is Fault.DELAY:
            asyncio.get_running_loop().call_later(
                device.delay_s, lambda: self._send(response, transaction_id=transaction_id, unit=unit)
            )
        else:
            self._send(response, transaction_id=transaction_id, unit=unit)

    def _comes_too_early(self) -> bool:
        if self._last_answer_at is None:
            return False
        gap_s = self._device.clock() - self._last_answer_at
        if gap_s * 1000 >= self._device.profile.min_gap_ms:
            return False
        self._device.gap_violations.append(gap_s)
        return True

    def _send(self, response: ModbusPDU, *, transaction_id: int, unit: int) -> None:
        if self._transport is None:
            return
        response.transaction_id = transaction_id
        response.dev_id = unit
        # Before it leaves: the controller counts its pause from when it hears this, and on another core that
        # may be before this process comes to look at its clock.
        self._last_answer_at = self._device.clock()
        self._transport.write(self._framer.buildFrame(response))
