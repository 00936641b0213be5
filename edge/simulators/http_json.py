"""Devices with an HTTP interface that answers in JSON, on real sockets, built from their profiles."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec

from edge.profiles import payloads
from edge.profiles.model import VALUE
from edge.profiles.points import Point, Resource, Value
from edge.profiles.values import from_device, to_device
from edge.simulators.device import Fault
from edge.simulators.templates import words_of
from edge.simulators.web import Asked, Said, SimulatedServer

JSON = "application/json"


class SimulatedHttp(SimulatedServer):
    """A device with an HTTP interface: one JSON document for each path that its profile reads.

    Where its profile's headers say `$password`, it wants those headers; else basic authentication where it
    has a user name.
    """

    path = ""

    def __init__(self, **setting: Any) -> None:
        # What was asked, for who wants to look at it.
        self.requests: list[Asked] = []
        super().__init__(**setting)
        self._resources: dict[str, Resource] = {
            name: point for name, point in self.profile.points.items() if isinstance(point, Resource)
        }

    def quantised(self, point: Point, raw: float | str) -> float | str:
        del point
        # Devices round to so many digits.
        return raw if isinstance(raw, str) else round(float(raw), 6)

    def lack(self, name: str) -> None:
        """Be a device that says nothing of this point."""
        del self._resources[name]

    def answer(self, asked: Asked) -> Said:
        self.requests.append(asked)
        del self.requests[:-50]
        self.let_own_fallback_act()
        if asked.method == "GET":
            return self._get(asked.target)
        return self._write(asked)

    def lets_in(self, headers: Mapping[str, str]) -> bool:
        wanted = {
            name: text.replace("$username", self.username).replace("$password", self.password)
            for name, text in self.profile.headers.items()
            if "$password" in text
        }
        if not wanted:
            return super().lets_in(headers)
        return all(
            hmac.compare_digest(headers.get(name, "").encode(), text.encode())
            for name, text in wanted.items()
        )

    def _get(self, path: str) -> Said:
        self.measure()
        names = [
            name
            for name, point in self._resources.items()
            if point.readable and _path_of(point.read_path) == path
        ]
        if not names:
            return Said(404, JSON, b'{"error": "not found"}')
        document: object = {}
        for name in names:
            document = payloads.put(document, self._resources[name].path, self._said(name))
        return Said(200, JSON, msgspec.json.encode(document))

    def _said(self, name: str) -> object:
        """A point as it stands in an answer."""
        if name not in self.stale:
            raw: object = self._raw[name]
        else:
            before = self.stale[name]
            raw = None if before is None else to_device(self.profile.points[name], before)
        return payloads.whole(raw) if isinstance(raw, float) else raw

    def _write(self, asked: Asked) -> Said:
        found = self._told(asked)
        if found is None:
            return Said(404, JSON, b'{"error": "not found"}')
        name, value = found
        if self.fault is Fault.WRITE_EXCEPTION:
            return Said(409, "text/plain", b"not while under local control")
        if value is None or not self._takes(name, value):
            return Said(422, "text/plain", b"value out of range")
        if self.fault is not Fault.IGNORE_WRITES:
            try:
                self.put(name, value)
            except ValueError as error:
                return Said(422, "text/plain", str(error).encode())
            self.wrote([name])
        return Said(200, JSON, b'{"accepted": true}')

    def _told(self, asked: Asked) -> tuple[str, Value] | None:
        """The point that this request is for, and what it is to be; None where it is for none."""
        for name, point in self._resources.items():
            if not point.writable or point.method != asked.method:
                continue
            in_path = words_of(_path_of(point.write_path), asked.target.encode())
            in_body = words_of(point.body, asked.body)
            if in_path is None or in_body is None:
                continue
            words = in_body | {word: unquote(text) for word, text in in_path.items()}
            try:
                raw = payloads.number_of(words["value"]) if not point.is_text else words["value"]
            except (KeyError, ValueError):
                return name, None
            return name, from_device(point, raw)
        return None

    def _takes(self, name: str, value: Value) -> bool:
        limit = self.profile.limit
        if limit is None or VALUE not in [step.writes.get(name) for step in limit.set]:
            return True
        low, high = self._in_theirs(self.profile.min_value), self._in_theirs(self.profile.max_value)
        slack = (high - low) / 1000
        return isinstance(value, float | int) and low - slack <= value <= high + slack


def _path_of(path: str) -> str:
    return "/" + path.lstrip("/")
