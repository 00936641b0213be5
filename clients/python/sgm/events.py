"""Server-sent events: bytes in, events out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sgm.decoding import decode
from sgm.errors import AnswerInvalid
from sgm.models import ControlLog, DeviceChange, LoopChange, NodeChange

Subject = ControlLog | DeviceChange | LoopChange | NodeChange
# An event is one object of the API; what never ends is none.
EVENT_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened. `id` is what a listener resumes after.

    `type` is `alarm` (read `data`), `control_log`, `device`, `loop`, `node`, `reset` (something was missed:
    read the lists again), or one that this version does not know.
    """

    type: str
    id: str
    data: Any = None

    @property
    def subject(self) -> Subject | None:
        """The object that this is about; None for a type without one."""
        match self.type:
            case "control_log":
                return decode(ControlLog, self.data)
            case "device":
                return decode(DeviceChange, self.data)
            case "loop":
                return decode(LoopChange, self.data)
            case "node":
                return decode(NodeChange, self.data)
        return None


@dataclass(slots=True)
class EventReader:
    """Reads a stream as the HTML standard, section 9.2.6, says; what it knows outlives a connection."""

    last_id: str = ""
    retry_s: float = 3.0
    _buffer: bytearray = field(default_factory=bytearray)
    _type: str = ""
    _data: list[str] = field(default_factory=list)
    _id: str = ""
    _after_cr: bool = False

    def begin(self) -> None:
        """Another connection: what was half read is not continued."""
        self._buffer.clear()
        self._after_cr = False
        self._clear()

    def read(self, pieces: Iterable[bytes]) -> Iterator[Event]:
        for piece in pieces:
            for line in self._lines(piece):
                if (event := self._take(line)) is not None:
                    yield event

    def _lines(self, piece: bytes) -> Iterator[str]:
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        self._after_cr = piece.endswith(b"\r") if piece else self._after_cr
        self._buffer += piece
        *lines, rest = self._buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if len(rest) > EVENT_BYTES_MAX:
            raise AnswerInvalid("The stream of events does not end its lines.")
        self._buffer = bytearray(rest)
        for line in lines:
            yield line.decode("utf-8", errors="replace")

    def _take(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._type = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_s = int(value) / 1000
        return None

    def _dispatch(self) -> Event | None:
        kind, data, event_id = self._type, "\n".join(self._data), self._id
        self._clear()
        if event_id:
            self.last_id = event_id
        # A mark is a place to resume from, and nothing that happened.
        if kind == "mark" or (not data and kind != "reset"):
            return None
        try:
            content = json.loads(data) if data else None
        except ValueError:
            # A later version may send text.
            content = data
        return Event(type=kind or "message", id=self.last_id, data=content)

    def _clear(self) -> None:
        self._type, self._id = "", ""
        self._data.clear()
