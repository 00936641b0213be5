"""Modbus TCP devices for the benchmark of the edge: many, fast, and with a record of who asked when.

A bare asyncio protocol on a socket each, in a process of its own. It knows functions 3, 4, 6 and 16 over a
handful of registers and nothing else. Moments are CLOCK_MONOTONIC seconds, the same in every process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import struct
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

REGISTERS = 64
# In the order of edge_device.yaml: 100 %, 48 kW, 12345.6 kWh, 1.2 kvar, 401.3 V, 69.4 A, 50.02 Hz, 41.5 degC.
INITIAL = struct.pack(">HiIhHHHh", 10_000, 48_000, 123_456, 120, 4013, 6940, 5002, 415)
READ_HOLDING, READ_INPUT, WRITE_SINGLE, WRITE_MULTIPLE = 3, 4, 6, 16
LIMIT = 0
_HEAD = struct.Struct(">HHHBBHH")


@dataclass(frozen=True, slots=True)
class Record:
    """Who was asked when since the record was begun, by device number."""

    reads: list[list[float]]
    # (moment, raw value of the limit register) of each write
    writes: list[list[tuple[float, int]]]


class _Recorder:
    def __init__(self, count: int) -> None:
        self.reads = [array("d") for _ in range(count)]
        self.writes: list[list[tuple[float, int]]] = [[] for _ in range(count)]

    def begin(self) -> None:
        for each in self.reads:
            del each[:]
        for writes in self.writes:
            writes.clear()


class _Device(asyncio.Protocol):
    """One connection to one device; the registers are the device's."""

    def __init__(self, number: int, registers: bytearray, recorder: _Recorder) -> None:
        self._number = number
        self._registers = registers
        self._recorder = recorder
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        now = time.monotonic()
        data = self._rest + data if self._rest else data
        while len(data) >= _HEAD.size and len(data) >= (end := 6 + int.from_bytes(data[4:6], "big")):
            self._transport.write(self._answer(data[:end], now))
            data = data[end:]
        self._rest = data

    def _answer(self, frame: bytes, now: float) -> bytes:
        transaction, _, _, unit, function, address, count = _HEAD.unpack_from(frame)
        if function in (READ_HOLDING, READ_INPUT):
            self._recorder.reads[self._number].append(now)
            words = self._registers[2 * address : 2 * (address + count)]
            return struct.pack(">HHHBBB", transaction, 0, 3 + len(words), unit, function, len(words)) + words
        if function == WRITE_SINGLE:
            self._registers[2 * address : 2 * address + 2] = frame[10:12]
        elif function == WRITE_MULTIPLE:
            self._registers[2 * address : 2 * (address + count)] = frame[13:]
        if address == LIMIT:
            self._recorder.writes[self._number].append((now, int.from_bytes(self._registers[:2], "big")))
        return struct.pack(">HHHBBHH", transaction, 0, 6, unit, function, address, count)


class Devices:
    """The devices' process, as the benchmark commands it."""

    def __init__(self, pipe: Connection, ports: list[int]) -> None:
        self._pipe = pipe
        self.ports = ports

    def begin(self) -> None:
        """Forget what was recorded so far."""
        self._ask("begin")

    def record(self) -> Record:
        reads, writes = self._ask("record")
        return Record([list(each) for each in reads], writes)

    def polled(self, *, at_least: int) -> int:
        """How many devices were read this often since the record was begun."""
        return int(self._ask(f"polled {at_least}"))

    def cpu_s(self) -> float:
        """The processor time this process has used: one that is short of it measures itself."""
        return float(self._ask("cpu"))

    def _ask(self, command: str) -> Any:
        self._pipe.send(command)
        return self._pipe.recv()


@contextmanager
def running_devices(count: int, *, cpu: int) -> Iterator[Devices]:
    """Start so many devices on free ports of the loopback address, on one core; end them."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, count, cpu), daemon=True)
    process.start()
    try:
        yield Devices(ours, ours.recv())
    finally:
        process.terminate()
        process.join(timeout=10)


def _serve(pipe: Connection, count: int, cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    asyncio.run(_run(pipe, count))


async def _run(pipe: Connection, count: int) -> None:
    loop = asyncio.get_running_loop()
    recorder = _Recorder(count)
    servers = []
    for number in range(count):
        registers = bytearray(2 * REGISTERS)
        registers[: len(INITIAL)] = INITIAL
        servers.append(await loop.create_server(_factory(number, registers, recorder), "127.0.0.1", 0))
    pipe.send([server.sockets[0].getsockname()[1] for server in servers])
    loop.add_reader(pipe.fileno(), _obey, pipe, recorder)
    await asyncio.Event().wait()


def _factory(number: int, registers: bytearray, recorder: _Recorder) -> Any:
    return lambda: _Device(number, registers, recorder)


def _obey(pipe: Connection, recorder: _Recorder) -> None:
    command, _, argument = pipe.recv().partition(" ")
    match command:
        case "begin":
            recorder.begin()
            pipe.send(None)
        case "record":
            pipe.send((recorder.reads, recorder.writes))
        case "polled":
            pipe.send(sum(len(each) >= int(argument) for each in recorder.reads))
        case "cpu":
            times = os.times()
            pipe.send(times.user + times.system)
