"""Modbus RTU: many devices on one serial line, behind a port of this computer or a serial device server.

Frames as in "Modbus over Serial Line" V1.02. Of pymodbus only the checksum is used: its serial client has one
timeout for all requests, takes any answer of the unit for the one that is awaited, and leaves what came late
in the buffer (docs/adr/0013-serial-lines.md).
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import termios
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pymodbus.framer import FramerRTU

from edge.drivers import mbap
from edge.drivers.errors import DeviceRefused, DeviceUnreachable
from edge.drivers.modbus import DISCARD, EXCEPTIONS, FUNCTIONS
from edge.drivers.serial_line import SerialSettings, open_port
from edge.profiles.model import Parity
from edge.profiles.points import Table

EXCEPTION = 0x80
# Unit, function, code, checksum.
EXCEPTION_FRAME = 5
# Unit, function, address, value or count, checksum.
WRITE_ANSWER_FRAME = 8
# Unit, function, number of bytes, checksum; the registers or bits come on top.
READ_ANSWER_OVERHEAD = 5
CHECKSUM = 2
# More than the longest frame (256, V1.02 2.5.1): what is older than that is no part of an answer.
MAX_BUFFER = 512
READ_SIZE = 4096
# The silences before and after a frame, by which a device knows where it ends.
SILENT_CHARACTERS = 7
# What a serial device server takes for the way through the network, on top of its line.
NETWORK_S = 0.1


@dataclass(slots=True)
class _Pending:
    """The request that is under way, and what an answer to it looks like."""

    unit: int
    function: int
    length: int  # of the whole frame, where it is no exception
    # What follows unit and function in every right answer.
    begins: bytes
    answer: asyncio.Future[bytes]
    others: int = 0  # bytes that came and were not the answer

    def find(self, buffer: bytes) -> bytes | None:
        """The answer without its checksum, wherever it stands in what has come; None where it is not there.

        Noise before it, an echo, or another unit's late answer are stepped over.
        """
        for start in range(len(buffer) - EXCEPTION_FRAME + 1):
            if buffer[start] != self.unit:
                continue
            function = buffer[start + 1]
            if function == self.function:
                length = self.length
                if not buffer.startswith(self.begins, start + 2):
                    continue
            elif function == self.function | EXCEPTION:
                length = EXCEPTION_FRAME
            else:
                continue
            frame = buffer[start : start + length]
            if len(frame) == length and checksum(frame[:-CHECKSUM]) == frame[-CHECKSUM:]:
                return frame[:-CHECKSUM]
        return None


def checksum(frame: bytes) -> bytes:
    """CRC-16 as Modbus computes it, in the order of the wire (V1.02, 6.2.2)."""
    return FramerRTU.compute_CRC(frame).to_bytes(CHECKSUM, "big")


class RtuSession(ABC):
    """A line with many units, used by one task at a time; each command is one request, never repeated.

    A unit that does not answer leaves the line as it is: open, and the others' state untouched. Its answer
    may still come, for as long again as it had to answer; until then the unit is not asked anything else, and
    what comes is nobody's. An answer counts only with the right unit, function, length, echo and checksum.

    A command may take the time of its frames on the line and `timeout_s` on top. Between the end of one and
    the start of the next lie `min_gap_s`, at least 3.5 characters. `clock` gives boot-time seconds.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        line: SerialSettings,
        timeout_s: float,
        min_gap_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.endpoint = endpoint
        # Counts openings of the line.
        self.generation = 0
        self._line = line
        self._timeout_s = timeout_s
        self._gap_s = max(min_gap_s, line.silence_s)
        self._clock = clock
        self._sleep = sleep
        self._next_command_at = 0.0
        self._late_until: dict[int, float] = {}
        self._buffer = b""
        self._pending: _Pending | None = None

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Tell whether the line is open, whoever answers on it."""

    @property
    def next_command_at(self) -> float:
        """Boot-time seconds before which no command may start."""
        return self._next_command_at

    @abstractmethod
    async def connect(self) -> None:
        """Open the line, anew where it is open; `DeviceUnreachable` says why it cannot."""

    @abstractmethod
    async def aclose(self) -> None: ...

    @abstractmethod
    def _send(self, frame: bytes) -> None:
        """Forget what came in so far and send; `OSError` where the line is gone."""

    @abstractmethod
    def _drop(self) -> None:
        """Let go of the line at once."""

    async def pause(self, seconds: float) -> None:
        """Let time pass, on the line's clock."""
        await self._sleep(seconds)

    async def read(self, unit: int, table: Table, address: int, count: int) -> list[int]:
        """Read `count` registers, or bits, with one command."""
        size = mbap.size_of(table, count)
        answer = await self._ask(
            struct.pack(">BBHH", unit, mbap.READS[table], address, count),
            answer_length=READ_ANSWER_OVERHEAD + size,
            begins=bytes([size]),
            address=address,
        )
        values = mbap.values_in(answer[2:], table=table, count=count)
        assert values is not None  # of another length it would not be the answer
        return values

    async def write(
        self, unit: int, address: int, registers: list[int], *, single: bool, table: Table = Table.HOLDING
    ) -> None:
        """Write registers, or bits, with one command: function 6 (or 5) where `single`, else 16 (or 15)."""
        pdu = mbap.write_pdu(mbap.write_function(table, single=single), address, registers)
        request = bytes([unit]) + pdu
        # Address, and the value of a single one or the number of several.
        begins = request[2:6]
        await self._ask(request, answer_length=WRITE_ANSWER_FRAME, begins=begins, address=address)

    async def _ask(self, request: bytes, *, answer_length: int, begins: bytes, address: int) -> bytes:
        unit, function = request[0], request[1]
        await self._wait_for_turn(unit)
        if not self.connected:
            raise DeviceUnreachable(f"not connected to {self.endpoint}")
        frame = request + checksum(request)
        self._buffer = b""
        pending = _Pending(unit, function, answer_length, begins, asyncio.get_running_loop().create_future())
        self._pending = pending
        answered = False
        try:
            self._send(frame)
            async with asyncio.timeout(self._time_for(len(frame), answer_length)):
                answer = await pending.answer
            answered = True
        except TimeoutError as error:
            raise DeviceUnreachable(self._silence(pending)) from error
        except OSError as error:
            self._drop()
            raise DeviceUnreachable(f"{self.endpoint} is gone: {error}") from error
        finally:
            self._pending = None
            if pending.answer.done() and not pending.answer.cancelled():
                pending.answer.exception()  # a cancelled command leaves it to nobody else
            now = self._clock()
            self._next_command_at = now + self._gap_s
            if not answered and self.connected:
                # Given up or cancelled: the answer may still come, and nobody waits for it.
                self._late_until[unit] = now + self._time_for(len(frame), answer_length)
        if answer[1] == function | EXCEPTION:
            code = answer[2]
            reason = EXCEPTIONS.get(code, "for a reason of its own")
            raise DeviceRefused(
                f"{self.endpoint} unit {unit} refused to {FUNCTIONS[function]} {address}: {reason}"
                f" (Modbus exception {code})"
            )
        return answer

    async def _wait_for_turn(self, unit: int) -> None:
        # In a loop: a timer may fire a little early, and the line does not forgive that.
        while (wait_s := max(self._next_command_at, self._late_until.get(unit, 0.0)) - self._clock()) > 0:
            await self._sleep(wait_s)
        self._late_until.pop(unit, None)

    def _time_for(self, request_length: int, answer_length: int) -> float:
        """How long a command may take: both frames on the line, and what the device may think."""
        characters = request_length + answer_length + SILENT_CHARACTERS
        return characters * self._line.character_s + self._timeout_s

    def _silence(self, pending: _Pending) -> str:
        text = f"no answer from {self.endpoint} unit {pending.unit} within {self._timeout_s:g} s"
        if pending.others or self._buffer:
            text += (
                f"; {pending.others + len(self._buffer)} bytes came that are not its answer: check baud rate,"
                " parity and that no two units share a number"
            )
        return text

    def _received(self, data: bytes) -> None:
        pending = self._pending
        if pending is None or pending.answer.done():
            return
        self._buffer += data
        if len(self._buffer) > MAX_BUFFER:
            pending.others += len(self._buffer) - MAX_BUFFER
            self._buffer = self._buffer[-MAX_BUFFER:]
        answer = pending.find(self._buffer)
        if answer is not None:
            self._buffer = b""
            pending.answer.set_result(answer)

    def _gone(self, reason: str) -> None:
        """End the request under way: nothing more will come."""
        pending = self._pending
        if pending is not None and not pending.answer.done():
            pending.answer.set_exception(ConnectionError(reason))


class SerialSession(RtuSession):
    """The line at a serial port of this computer."""

    def __init__(
        self,
        *,
        line: SerialSettings,
        timeout_s: float,
        min_gap_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        super().__init__(
            endpoint=line.port,
            line=line,
            timeout_s=timeout_s,
            min_gap_s=min_gap_s,
            clock=clock,
            sleep=sleep,
        )
        self._port: int | None = None

    @property
    def connected(self) -> bool:
        return self._port is not None

    async def connect(self) -> None:
        self._drop()
        self._port = open_port(self._line)
        asyncio.get_running_loop().add_reader(self._port, self._readable)
        self.generation += 1

    async def aclose(self) -> None:
        self._drop()

    def _send(self, frame: bytes) -> None:
        assert self._port is not None
        try:
            termios.tcflush(self._port, termios.TCIFLUSH)
        except termios.error as error:
            raise OSError(*error.args) from error
        # The port's own buffer takes many frames; a part of one on the line would be noise to all.
        if os.write(self._port, frame) != len(frame):
            raise OSError(f"{self.endpoint} does not take data")

    def _readable(self) -> None:
        assert self._port is not None
        try:
            data = os.read(self._port, READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._hung_up(os.strerror(error.errno or 0))
            return
        if data:
            self._received(data)
        else:
            self._hung_up("it was unplugged")

    def _hung_up(self, reason: str) -> None:
        self._drop()
        self._gone(reason)

    def _drop(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            asyncio.get_running_loop().remove_reader(port)
            os.close(port)


class RtuOverTcpSession(RtuSession):
    """A line behind a serial device server that passes bytes on, without the header of Modbus TCP.

    How its line is set is not known here: 9600 baud and 11 bits a character are assumed, so that faster ones
    are waited for a little longer than they need. Between a connection and its first command lie at least
    `connect_delay_s`.
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
        connect_delay_s: float = 0.0,
    ) -> None:
        super().__init__(
            endpoint=f"{host}:{port}",
            line=SerialSettings(port="", parity=Parity.EVEN),
            timeout_s=timeout_s + NETWORK_S,
            min_gap_s=min_gap_s,
            clock=clock,
            sleep=sleep,
        )
        self._host = host
        self._port = port
        self._connect_timeout_s = timeout_s + NETWORK_S
        self._connect_delay_s = connect_delay_s
        self._stream: _Stream | None = None

    @property
    def connected(self) -> bool:
        return self._stream is not None

    async def connect(self) -> None:
        self._drop()
        stream = _Stream(self)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                transport, _ = await asyncio.get_running_loop().create_connection(
                    lambda: stream, self._host, self._port
                )
        except TimeoutError as error:
            raise DeviceUnreachable(
                f"no connection to {self.endpoint} within {self._connect_timeout_s:g} s"
            ) from error
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise DeviceUnreachable(f"no connection to {self.endpoint}: {reason}") from error
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Silence does not end this session, so a pulled cable must: what the server has not taken by then is
        # not delivered when the cable is back, after newer values.
        patience_ms = int(1000 * 2 * self._connect_timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience_ms)
        if stream.transport is None:
            raise DeviceUnreachable(f"{self.endpoint} closed the connection at once")
        self._stream = stream
        self._next_command_at = max(self._next_command_at, self._clock() + self._connect_delay_s)
        self.generation += 1

    async def aclose(self) -> None:
        self._drop()

    def _send(self, frame: bytes) -> None:
        assert self._stream is not None
        assert self._stream.transport is not None
        self._stream.transport.write(frame)

    def received(self, stream: _Stream, data: bytes) -> None:
        if stream is self._stream:
            self._received(data)

    def lost(self, stream: _Stream) -> None:
        if stream is self._stream:
            self._stream = None
            self._gone("the server closed the connection")

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None and stream.transport is not None:
            connection = stream.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, DISCARD)
            stream.transport.abort()


class _Stream(asyncio.Protocol):
    """One connection to a serial device server."""

    def __init__(self, session: RtuOverTcpSession) -> None:
        self._session = session
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._session.received(self, data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the reason does not matter
        self.transport = None
        self._session.lost(self)
