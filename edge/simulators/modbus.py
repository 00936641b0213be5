"""Modbus TCP devices on real sockets, built from their profiles. The only simulator that knows pymodbus.

Of pymodbus it takes frames and messages. The sessions are our own, because real devices judge each
controller's session by itself: they leave a command unanswered that comes too early, and close a session too
many.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Iterable, Sequence, Set as AbstractSet
from itertools import pairwise
from typing import NamedTuple

from pymodbus.exceptions import ModbusException
from pymodbus.framer import FramerSocket
from pymodbus.pdu import DecodePDU, ExceptionResponse, ModbusPDU
from pymodbus.pdu.bit_message import (
    ReadCoilsResponse,
    ReadDiscreteInputsResponse,
    WriteMultipleCoilsResponse,
    WriteSingleCoilResponse,
)
from pymodbus.pdu.register_message import (
    ReadHoldingRegistersResponse,
    ReadInputRegistersResponse,
    WriteMultipleRegistersResponse,
    WriteSingleRegisterResponse,
)

from edge.plant import Kind, Site
from edge.profiles.model import Profile
from edge.profiles.points import MAX_READ, Register, RegisterType, Table, Value, WriteFunction
from edge.profiles.registers import Decoder, decoder, encode
from edge.simulators.device import Fault, Simulated
from edge.simulators.sunspec import BASES, lay_out

READ_COILS, READ_DISCRETE, READ_HOLDING, READ_INPUT = 1, 2, 3, 4
WRITE_COIL, WRITE_SINGLE, WRITE_COILS, WRITE_MULTIPLE = 5, 6, 15, 16
ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE, DEVICE_FAILURE, NO_SUCH_UNIT = 1, 2, 3, 4, 11
# A SunSpec device fills what it has not implemented with this.
NOT_IMPLEMENTED = 0xFFFF
MBAP_HEADER = 6
LONGEST_FRAME = 260
# Turns an answer into bytes which mean nothing in either framing.
NOISE = 0xA5
# The most bits in one answer (Modbus Application Protocol V1.1b3, 6.1).
MAX_BITS = 2000

READS = {
    READ_COILS: (Table.COIL, ReadCoilsResponse),
    READ_DISCRETE: (Table.DISCRETE, ReadDiscreteInputsResponse),
    READ_HOLDING: (Table.HOLDING, ReadHoldingRegistersResponse),
    READ_INPUT: (Table.INPUT, ReadInputRegistersResponse),
}
# Functions whose values are bits; asked of numbers, because this is on the path of every command.
OF_BITS = frozenset((READ_COILS, READ_DISCRETE, WRITE_COIL, WRITE_COILS))
SINGLE_WRITES = (WRITE_COIL, WRITE_SINGLE)
WRITES = {
    WRITE_COIL: Table.COIL,
    WRITE_COILS: Table.COIL,
    WRITE_SINGLE: Table.HOLDING,
    WRITE_MULTIPLE: Table.HOLDING,
}


class Touched(NamedTuple):
    """The points that one write changes, the functions they ask for, and how many words they have."""

    names: tuple[str, ...]
    functions: frozenset[WriteFunction | None]
    words: int


class SimulatedRegisters:
    """The registers of one device, by point name or as words. Between close points lie readable fillers.

    A SunSpec device has the whole chain of its models instead, from `sunspec_base` on.
    """

    def __init__(
        self, profile: Profile, *, sunspec_base: int = BASES[0], blank_models: Sequence[int] = ()
    ) -> None:
        self._points = profile.registers
        self.words: dict[Table, dict[int, int]] = {table: {} for table in Table}
        self._writable: dict[Table, dict[int, str]] = {Table.HOLDING: {}, Table.COIL: {}}
        self._write_only: dict[Table, set[int]] = {table: set() for table in Table}
        self._absent: set[str] = set()
        self._decoders: dict[str, Decoder] = {}
        # What has been asked for before; there are as many as ways to write the points.
        self._touched: dict[tuple[Table, int, int], Touched] = {}
        if profile.sunspec:
            self._points, chain = lay_out(profile.registers, base=sunspec_base, blank=blank_models)
            self.words[Table.HOLDING].update(chain)
        else:
            self._fill_gaps(profile.max_read_gap)
        for name, point in self._points.items():
            addresses = range(point.address, point.end)
            self.words[point.table].update(dict.fromkeys(addresses, 0))
            if point.writable:
                self._writable[point.table].update(dict.fromkeys(addresses, name))
            if not point.readable:
                self._write_only[point.table].update(addresses)
        # Scale factors first: the others are written with them.
        for name in sorted(self._points, key=lambda name: self._points[name].scale_point is not None):
            self.reset(name)

    def _fill_gaps(self, max_gap: int) -> None:
        for table in (Table.HOLDING, Table.INPUT):
            points = sorted(
                (point for point in self._points.values() if point.table is table),
                key=lambda point: point.address,
            )
            for before, after in pairwise(points):
                if after.address - before.end <= max_gap:
                    fillers = range(before.end, after.address)
                    self.words[table].update(dict.fromkeys(fillers, NOT_IMPLEMENTED))

    def reset(self, name: str) -> None:
        """Put a point to its example, else to "no value" where it can say so, else to nothing."""
        point = self._points[name]
        if point.example is not None:
            self.set(name, point.example)
        elif point.nan is not None or (point.type is RegisterType.STR and not point.codes):
            self.set(name, None)
        elif point.codes:
            self.set(name, float(next(iter(point.codes))))
        else:
            self.set(name, 0.0)

    def get(self, name: str) -> float | str | None:
        point = self._points[name]
        words = self.words[point.table]
        registers = [words[address] for address in range(point.address, point.end)]
        decode = self._decoders.get(name)
        if decode is None:
            decode = self._decoders[name] = decoder(point)
        return decode(struct.pack(f">{len(registers)}H", *registers), 0, self._exponent(point))

    def remove(self, name: str) -> None:
        """Be a model that lacks this point."""
        point = self._points[name]
        self._absent.add(name)
        self._touched.clear()
        for address in range(point.address, point.end):
            self.words[point.table].pop(address, None)
            if point.writable:
                self._writable[point.table].pop(address, None)

    def set(self, name: str, value: float | str | None) -> None:
        if name in self._absent:
            return
        point = self._points[name]
        registers = encode(point, value, exponent=self._exponent(point))
        self.words[point.table].update(zip(range(point.address, point.end), registers, strict=True))

    def words_of(self, names: Iterable[str]) -> dict[tuple[Table, int], int]:
        """What these points hold now, word by word."""
        return {
            (point.table, address): self.words[point.table][address]
            for name in names
            if name not in self._absent
            for point in (self._points[name],)
            for address in range(point.address, point.end)
        }

    def read(self, table: Table, address: int, count: int) -> list[int] | None:
        """Read words; None where one of them cannot be read."""
        words = self.words[table]
        addresses = range(address, address + count)
        hidden = self._write_only[table]
        if hidden and not hidden.isdisjoint(addresses):
            return None
        try:
            return [words[one] for one in addresses]
        except KeyError:
            return None

    def touched(self, table: Table, address: int, count: int) -> Touched | None:
        """The points which a write to these addresses changes; None where one cannot be written."""
        place = (table, address, count)
        touched = self._touched.get(place)
        if touched is None:
            writable = self._writable[table]
            addresses = range(address, address + count)
            if not all(one in writable for one in addresses):
                return None
            names = tuple(dict.fromkeys(writable[one] for one in addresses))
            points = [self._points[name] for name in names]
            touched = self._touched[place] = Touched(
                names=names,
                functions=frozenset(point.write_function for point in points),
                words=sum(point.count for point in points),
            )
        return touched

    def write(
        self, table: Table, address: int, words: Sequence[int], *, worn: AbstractSet[str] = frozenset()
    ) -> None:
        """Write words to points which can be written, but for those `worn` out: they keep what they have."""
        new = dict(zip(range(address, address + len(words)), words, strict=True))
        if worn:
            writable = self._writable[table]
            new = {one: word for one, word in new.items() if writable[one] not in worn}
        self.words[table].update(new)

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
    `sunspec_base` and `blank_models` are where a SunSpec device begins and what it has not implemented.
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
        endurance: int | None = None,
        sunspec_base: int = BASES[0],
        blank_models: Sequence[int] = (),
    ) -> None:
        super().__init__(
            profile=profile,
            nameplate_kw=nameplate_kw,
            behaves_as=behaves_as,
            site=site,
            clock=clock,
            endurance=endurance,
        )
        self._on_line = on_line
        self.unit = unit
        self.host = host
        self.port = port
        self.observe_port = observe_port
        self.registers = SimulatedRegisters(profile, sunspec_base=sunspec_base, blank_models=blank_models)
        # What controllers are shown in place of what is there.
        self._stale_words: dict[tuple[Table, int], int] = {}
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
        self.break_down(fault, delay_s=delay_s)
        self._stale_words = self.registers.words_of(self.stale)
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
        if function in READS:
            return self._read(request, observing=observing)
        if function in WRITES and not observing:
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

    def _read(self, request: ModbusPDU, *, observing: bool) -> ModbusPDU:
        function = request.function_code
        table, response = READS[function]
        address, count = request.address, request.count
        if not 1 <= count <= (MAX_BITS if function in OF_BITS else MAX_READ):
            return ExceptionResponse(function, ILLEGAL_VALUE)
        if function in OF_BITS and not self.registers.words[table]:
            return ExceptionResponse(function, ILLEGAL_FUNCTION)
        self.measure()
        words = self.registers.read(table, address, count)
        if words is None:
            return ExceptionResponse(function, ILLEGAL_ADDRESS)
        if self._stale_words and not observing:
            stale = self._stale_words
            words = [stale.get((table, address + place), word) for place, word in enumerate(words)]
        if function in OF_BITS:
            return response(bits=[bool(word) for word in words])
        return response(registers=words)

    def _write(self, request: ModbusPDU) -> ModbusPDU:
        function = request.function_code
        table = WRITES[function]
        words = [int(bit) for bit in request.bits] if function in OF_BITS else list(request.registers)
        if self.fault is Fault.WRITE_EXCEPTION:
            return ExceptionResponse(function, DEVICE_FAILURE)
        if not words or (function not in SINGLE_WRITES and len(words) != request.count):
            return ExceptionResponse(function, ILLEGAL_VALUE)
        if self.fault is not Fault.IGNORE_WRITES:
            if function in OF_BITS and not self.registers.words[table]:
                return ExceptionResponse(function, ILLEGAL_FUNCTION)
            touched = self.registers.touched(table, request.address, len(words))
            if touched is None:
                return ExceptionResponse(function, ILLEGAL_ADDRESS)
            wanted = WriteFunction.MULTIPLE if function in SINGLE_WRITES else WriteFunction.SINGLE
            if wanted in touched.functions:
                return ExceptionResponse(function, ILLEGAL_FUNCTION)
            if touched.words != len(words) and function not in OF_BITS:
                # Half a number is no number.
                return ExceptionResponse(function, ILLEGAL_VALUE)
            self.let_own_fallback_act()
            self.registers.write(table, request.address, words, worn=self.wear_out(touched.names))
            self.wrote(touched.names)
        return self._acknowledged(request, words)

    @staticmethod
    def _acknowledged(request: ModbusPDU, words: Sequence[int]) -> ModbusPDU:
        address = request.address
        match request.function_code:
            case 5:
                return WriteSingleCoilResponse(address=address, bits=[bool(words[0])])
            case 6:
                return WriteSingleRegisterResponse(address=address, registers=words)
            case 15:
                return WriteMultipleCoilsResponse(address=address, count=len(words))
            case _:
                return WriteMultipleRegistersResponse(address=address, count=len(words))

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
        self._opened_at = device.clock()

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
        """Answer a function nobody knows, or an impossible count; return the length of the frame."""
        frame = self._buffer
        function = frame[MBAP_HEADER + 1]
        known = function in READS or function in WRITES
        response = ExceptionResponse(function, ILLEGAL_VALUE if known else ILLEGAL_FUNCTION)
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
        if self._comes_too_early() or unit != device.unit or device.hears_nothing():
            return
        response = device.answer(request, observing=False)
        if device.fault is Fault.NONE:
            self._send(response, transaction_id=transaction_id, unit=unit)
            return
        if device.fault is Fault.DROP:
            self.close()
            return
        response.dev_id = unit_said(device)
        response.transaction_id = transaction_id
        frame = spoilt(device, self._framer.buildFrame(response))
        if device.fault is Fault.DELAY:
            asyncio.get_running_loop().call_later(device.delay_s, lambda: self._put(frame))
        else:
            self._put(frame)

    def _comes_too_early(self) -> bool:
        profile = self._device.profile
        if self._last_answer_at is None:
            least_ms, since = profile.connect_delay_ms, self._opened_at
        else:
            least_ms, since = profile.min_gap_ms, self._last_answer_at
        if not least_ms or (gap_s := self._device.clock() - since) * 1000 >= least_ms:
            return False
        self._device.gap_violations.append(gap_s)
        return True

    def _send(self, response: ModbusPDU, *, transaction_id: int, unit: int) -> None:
        response.transaction_id = transaction_id
        response.dev_id = unit
        self._put(self._framer.buildFrame(response))

    def _put(self, frame: bytes) -> None:
        if self._transport is None:
            return
        # Before it leaves: the controller counts its pause from when it hears this, and on another core that
        # may be before this process comes to look at its clock.
        self._last_answer_at = self._device.clock()
        self._transport.write(frame)


def unit_said(device: SimulatedDevice) -> int:
    """The unit in whose name a device answers."""
    return device.unit % 247 + 1 if device.fault is Fault.WRONG_UNIT else device.unit


def spoilt(device: SimulatedDevice, frame: bytes) -> bytes:
    """An answer as this device's fault lets it out."""
    if device.fault is Fault.GARBAGE:
        return bytes(byte ^ NOISE for byte in frame)
    if device.fault is Fault.HALF_FRAME:
        return frame[: len(frame) // 2]
    return frame
