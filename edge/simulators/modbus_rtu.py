"""A serial line with Modbus RTU devices on it: a pseudo-terminal for a port, as slow as the real thing."""

from __future__ import annotations

import asyncio
import os
import pty
import time
import tty
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from pymodbus.exceptions import ModbusException
from pymodbus.framer import FramerRTU
from pymodbus.pdu import DecodePDU, ModbusPDU

from edge.simulators.device import Fault
from edge.simulators.modbus import WRITE_COILS, WRITE_MULTIPLE, SimulatedDevice, spoilt, unit_said

# Start bit, eight data bits, parity, stop bit (Modbus over Serial Line V1.02, 2.5.1).
CHARACTER_BITS = 11
SILENT_CHARACTERS = 3.5
# A driver hands over what it has received in pieces of about this size.
PIECE = 14
# The rest of a frame comes within this time, or it was none.
FRAME_LIMIT_S = 0.5


class SimulatedLine:
    """Devices that share one line, at `path` after `start`, and on a TCP socket at `port` where wanted.

    At `baud_rate` each frame takes the time it takes on a wire, 11 bits a character; None is a wire without
    delay. `turnaround_s` is what every device thinks before it answers. A `port` of 0 is drawn. The record
    tells what a controller did wrong: requests sent into another frame, and requests too soon after one.
    `clock` gives seconds and drives the makers' pauses; the line itself runs in real time.
    """

    def __init__(
        self,
        *,
        baud_rate: int | None = None,
        turnaround_s: float = 0.0,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = ""
        self.host = host
        self.port = port
        self.requests = 0
        self.collisions = 0
        self.silence_violations: list[float] = []
        self.devices: dict[int, SimulatedDevice] = {}
        self._character_s = CHARACTER_BITS / baud_rate if baud_rate else 0.0
        self._turnaround_s = turnaround_s
        self._clock = clock
        self._framer = FramerRTU(DecodePDU(True))  # noqa: FBT003 - the library's own signature
        self._buffer = b""
        self._received_at = 0.0
        # The line is taken until then, on the event loop's clock.
        self._busy_until = 0.0
        self._last_answer_at: dict[int, float] = {}
        self._ends: tuple[int, int] | None = None
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Transport] = set()
        self._timers: set[asyncio.TimerHandle] = set()

    def add(self, device: SimulatedDevice) -> None:
        """Hang a device on the line; it was built with `on_line`."""
        self.devices[device.unit] = device

    async def start(self, *, tcp: bool = False) -> None:
        """Open the line and start its devices; with `tcp`, a serial device server in front of it as well."""
        ours, theirs = pty.openpty()
        # Both ends raw, and ours kept open: the line outlives each controller that opens the port.
        tty.setraw(ours)
        tty.setraw(theirs)
        os.set_blocking(ours, False)
        self._ends = (ours, theirs)
        self.path = os.ttyname(theirs)
        loop = asyncio.get_running_loop()
        loop.add_reader(ours, self._readable)
        if tcp:
            self._server = await loop.create_server(lambda: _Client(self), self.host, self.port)
            self.port = self._server.sockets[0].getsockname()[1]
        for device in self.devices.values():
            device.host, device.port = self.host, self.port
            await device.start()

    async def stop(self) -> None:
        for device in self.devices.values():
            await device.stop()
        for timer in self._timers:
            timer.cancel()
        if self._server is not None:
            self._server.close()
            self._server = None
        for client in list(self._clients):
            client.abort()
        self.unplug()

    def unplug(self) -> None:
        """Pull the converter out of the computer: the port hangs up and is gone."""
        if self._ends is not None:
            asyncio.get_running_loop().remove_reader(self._ends[0])
            for end in self._ends:
                os.close(end)
            self._ends = None

    def put(self, data: bytes) -> None:
        """Bytes from nowhere, as noise or a stray device makes them."""
        if self._ends is not None:
            with suppress(BlockingIOError):
                os.write(self._ends[0], data)
        for client in self._clients:
            client.write(data)

    # --- the line ---

    def client_came(self, client: asyncio.Transport) -> None:
        self._clients.add(client)

    def client_went(self, client: asyncio.Transport) -> None:
        self._clients.discard(client)

    def received(self, data: bytes) -> None:
        """Bytes of a controller."""
        now = asyncio.get_running_loop().time()
        if now - self._received_at > FRAME_LIMIT_S:
            self._buffer = b""
        self._received_at = now
        self._buffer += data
        while (length := _request_length(self._buffer)) <= len(self._buffer):
            frame, self._buffer = self._buffer[:length], self._buffer[length:]
            try:
                _, request = self._framer.handleFrame(frame, 0, 0)
            except ModbusException:
                request = None
            if request is not None:
                self._take(request, length, now)

    def _readable(self) -> None:
        assert self._ends is not None
        with suppress(BlockingIOError):
            self.received(os.read(self._ends[0], 4096))

    def _take(self, request: ModbusPDU, length: int, now: float) -> None:
        """A request of this many bytes begins to come over the line now."""
        self.requests += 1
        if now < self._busy_until:
            self.collisions += 1
        elif self._character_s and now - self._busy_until < SILENT_CHARACTERS * self._character_s:
            self.silence_violations.append(now - self._busy_until)
        ends = now + length * self._character_s
        self._busy_until = max(self._busy_until, ends)
        self._at(ends, lambda: self._answer(request))

    def _answer(self, request: ModbusPDU) -> None:
        device = self.devices.get(request.dev_id)
        if device is None:
            return
        device.commands += 1
        if self._comes_too_early(device) or device.fault is Fault.REFUSE or device.hears_nothing():
            return
        response = device.answer(request, observing=False)
        if device.fault is Fault.DROP:
            # A wire has no connection to end, the server in front of it has.
            for client in list(self._clients):
                client.close()
            return
        response.dev_id = unit_said(device)
        frame = spoilt(device, self._framer.buildFrame(response))
        begins = asyncio.get_running_loop().time() + self._turnaround_s
        begins += SILENT_CHARACTERS * self._character_s
        if device.fault is Fault.DELAY:
            # It does not look whether somebody else has the line by then.
            begins += device.delay_s
        else:
            self._busy_until = max(self._busy_until, begins + len(frame) * self._character_s)
        for start in range(0, len(frame), PIECE):
            piece = frame[start : start + PIECE]
            is_last = start + PIECE >= len(frame)
            self._at(
                begins + (start + len(piece)) * self._character_s,
                partial(self._send, device, piece, is_last=is_last),
            )

    def _comes_too_early(self, device: SimulatedDevice) -> bool:
        last = self._last_answer_at.get(device.unit)
        if last is None or (gap_s := self._clock() - last) * 1000 >= device.profile.min_gap_ms:
            return False
        device.gap_violations.append(gap_s)
        return True

    def _send(self, device: SimulatedDevice, piece: bytes, *, is_last: bool) -> None:
        self.put(piece)
        if is_last:
            self._last_answer_at[device.unit] = self._clock()

    def _at(self, moment: float, action: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        if moment <= loop.time():
            action()
            return

        def fire() -> None:
            self._timers.discard(timer)
            action()

        timer = loop.call_at(moment, fire)
        self._timers.add(timer)


def _request_length(buffer: bytes) -> int:
    """How many bytes the request has that begins here; more than have come while that is open."""
    function = buffer[1] if len(buffer) > 1 else 0
    if function in (WRITE_COILS, WRITE_MULTIPLE):
        return 9 + buffer[6] if len(buffer) > 6 else 9  # noqa: PLR2004 - its place in the frame
    return 8


class _Client(asyncio.Protocol):
    """One connection to the serial device server."""

    def __init__(self, line: SimulatedLine) -> None:
        self._line = line
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._line.client_came(transport)

    def data_received(self, data: bytes) -> None:
        self._line.received(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the reason does not matter
        assert self._transport is not None
        self._line.client_went(self._transport)
