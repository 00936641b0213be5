"""A Modbus device of another make than our driver and our simulators, with registers that a test lays by hand.

The server is pyModbusTCP's, and the words in it are packed here, from the makers' figures: what a profile says
wrongly, and driver and simulator believe alike, is found out.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from pyModbusTCP.constants import EXP_DATA_ADDRESS, EXP_GATEWAY_TARGET_DEVICE_FAILED_TO_RESPOND, EXP_NONE
from pyModbusTCP.server import DataHandler, ModbusServer

from tests.servers import until

SINGLE, MULTIPLE = 6, 16
Words = list[int]


class Write(NamedTuple):
    """One write command as it came in."""

    unit: int
    function: int
    address: int
    words: Words


class Line:
    """A listening server, on which one counterpart at a time can be put; stopping one costs half a second."""

    def __init__(self, server: Any) -> None:
        self._server = server
        # The library tells its port in no other way.
        listener: socket.socket = server._service.socket
        self.port: int = listener.getsockname()[1]

    def put(self, counterpart: Counterpart) -> None:
        self._server.data_hdl = counterpart


@contextmanager
def listening() -> Iterator[Line]:
    server = ModbusServer(host="127.0.0.1", port=0, no_block=True)
    server.start()
    try:
        until(lambda: bool(server.is_run), what="the counterparts' server runs")
        yield Line(server)
    finally:
        server.stop()


class Counterpart(DataHandler):  # type: ignore[misc]  # the library has no types
    """One unit with holding and input registers. What was not laid does not exist; `writes` is the record.

    `write_only` cannot be read. All other holding registers can be written, because a record of wrong writes
    says more than a refusal.
    """

    def __init__(self, *, unit: int) -> None:
        super().__init__()
        self.unit = unit
        self.holding: dict[int, int] = {}
        self.input: dict[int, int] = {}
        self.write_only: set[int] = set()
        self.writes: list[Write] = []

    def lay(self, address: int, words: Words, *, table: dict[int, int] | None = None) -> None:
        """Put words into the holding registers, or into this table."""
        (self.holding if table is None else table).update(enumerate(words, start=address))

    def taken(self) -> list[Write]:
        """The writes since the last call."""
        writes, self.writes = self.writes, []
        return writes

    # --- pyModbusTCP's DataHandler

    def read_h_regs(self, address: int, count: int, srv_info: Any) -> DataHandler.Return:
        if self.write_only.intersection(range(address, address + count)):
            return DataHandler.Return(EXP_DATA_ADDRESS)
        return self._read(self.holding, address, count, srv_info)

    def read_i_regs(self, address: int, count: int, srv_info: Any) -> DataHandler.Return:
        return self._read(self.input, address, count, srv_info)

    def write_h_regs(self, address: int, words_l: Words, srv_info: Any) -> DataHandler.Return:
        frame = srv_info.recv_frame
        self.writes.append(Write(frame.mbap.unit_id, frame.pdu.func_code, address, list(words_l)))
        if frame.mbap.unit_id != self.unit:
            return DataHandler.Return(EXP_GATEWAY_TARGET_DEVICE_FAILED_TO_RESPOND)
        if not self.holding.keys() >= set(range(address, address + len(words_l))):
            return DataHandler.Return(EXP_DATA_ADDRESS)
        self.lay(address, words_l)
        return DataHandler.Return(EXP_NONE)

    def _read(self, table: Mapping[int, int], address: int, count: int, srv_info: Any) -> DataHandler.Return:
        if srv_info.recv_frame.mbap.unit_id != self.unit:
            return DataHandler.Return(EXP_GATEWAY_TARGET_DEVICE_FAILED_TO_RESPOND)
        try:
            return DataHandler.Return(EXP_NONE, data=[table[one] for one in range(address, address + count)])
        except KeyError:
            return DataHandler.Return(EXP_DATA_ADDRESS)


# --- words, as makers print them


def high_first(code: str, value: float) -> Words:
    """A number in the format of `struct`, high word first."""
    raw = struct.pack(f">{code}", value)
    return list(struct.unpack(f">{len(raw) // 2}H", raw))


def low_first(code: str, value: float) -> Words:
    """A number in the format of `struct`, low word first; the bytes in a word stay as they are."""
    return high_first(code, value)[::-1]


def text(value: str, registers: int) -> Words:
    """Two characters a register, filled up with zeros."""
    return list(struct.unpack(f">{registers}H", value.encode("ascii").ljust(2 * registers, b"\0")))
