"""Devices with an HTTP interface of their maker's that speaks JSON: a session a server, a driver a device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import quote, urlsplit, urlunsplit

from edge.drivers.errors import DeviceRefused, DriverError, ReadingInvalid
from edge.drivers.json_values import MAX_PAYLOAD, parsed, told, value_in, value_of_payload
from edge.drivers.points import PointDriver
from edge.drivers.web import Answer, WebSession
from edge.profiles import payloads
from edge.profiles.model import Profile, Step
from edge.profiles.points import Resource, Value

USERNAME, PASSWORD = "$username", "$password"
JSON = "application/json"


class HttpSession(WebSession):
    """One server. `url` is what the paths of its devices' points are below."""

    max_answer = MAX_PAYLOAD

    async def ask(
        self, method: str, path: str, *, headers: Mapping[str, str], body: bytes | None = None
    ) -> Answer:
        """One request to a path below the URL. `headers` may say `$username` and `$password`.

        Where they do, they are how the server learns who asks; else it is told as it wants to be.
        """
        known = {name: self._filled(text) for name, text in headers.items() if text}
        return await self.exchange(
            method,
            self._below(path),
            headers=known,
            body=body,
            introduces=not any(USERNAME in text or PASSWORD in text for text in headers.values()),
        )

    def _filled(self, text: str) -> str:
        # One pass: a user name may contain the word for the password.
        parts = text.split(PASSWORD)
        return self.password.join(part.replace(USERNAME, self.username) for part in parts)

    def _below(self, path: str) -> str:
        base, wanted = urlsplit(self.url), urlsplit("/" + path.lstrip("/"))
        query = "&".join(part for part in (base.query, wanted.query) if part)
        return urlunsplit((base.scheme, base.netloc, base.path.rstrip("/") + wanted.path, query, ""))


class HttpDriver(PointDriver):
    """One device behind a server, as its profile describes it. What one path answers is asked for once."""

    __slots__ = ("_generation", "_headers", "_points", "_session")

    def __init__(
        self, *, session: HttpSession, profile: Profile, unit: int, nameplate_kw: float | None
    ) -> None:
        super().__init__(profile=profile, nameplate_kw=nameplate_kw)
        del unit  # a server has none
        self._session = session
        self._points: dict[str, Resource] = {
            name: point for name, point in profile.points.items() if isinstance(point, Resource)
        }
        self._headers = {"Accept": JSON, **profile.headers}
        self._generation = -1

    @property
    def _where(self) -> str:
        return self._session.endpoint

    @property
    def commands_per_poll(self) -> int:
        telemetry = frozenset(self._profile.telemetry.values())
        if self._reads_together:
            return len(self._by_path(telemetry | self._readback_points))
        return len(self._by_path(telemetry)) + len(self._by_path(self._readback_points))

    def _look_for_reconnection(self) -> None:
        if self._generation != self._session.generation:
            self._generation = self._session.generation
            self._forget()

    def _needed(self, steps: Iterable[Step]) -> frozenset[str]:  # noqa: ARG002 - a value is written as it is
        return frozenset()

    def _by_path(self, names: Iterable[str]) -> dict[str, list[str]]:
        paths: dict[str, list[str]] = {}
        for name in sorted(names):
            paths.setdefault(self._points[name].read_path, []).append(name)
        return paths

    async def _read(self, names: frozenset[str], *, tolerant: bool = False) -> dict[str, Value]:
        self._look_for_reconnection()
        values: dict[str, Value] = {}
        failed: DriverError | None = None
        for path, at_path in self._by_path(names).items():
            answer = await self._session.ask("GET", path, headers=self._headers)
            try:
                if not answer.is_success:
                    raise self._session.refusal(answer, what=f"read {path}")
                values |= self._values(path, at_path, answer.body, tolerant=tolerant)
            except (DeviceRefused, ReadingInvalid) as error:
                if not tolerant:
                    raise
                failed = error
        if failed is not None and not values:
            raise failed
        return values

    def _values(self, path: str, names: Iterable[str], body: bytes, *, tolerant: bool) -> dict[str, Value]:
        what = f"{self._where} {path}"
        document: object = None
        if any(self._points[name].path for name in names):
            document = parsed(body, what=what)
        values: dict[str, Value] = {}
        for name in names:
            point = self._points[name]
            try:
                if point.path:
                    values[name] = value_in(point, document, what=what)
                else:
                    values[name] = value_of_payload(point, body, what=what)
            except ReadingInvalid:
                if not tolerant:
                    raise
                values[name] = None
        return values

    async def _put(self, values: Mapping[str, Value], *, only_if_different: bool) -> None:
        if only_if_different:
            found = await self._read(frozenset(values))
            if all(found[name] == value for name, value in values.items()):
                return
        for name, value in values.items():
            await self._put_one(name, value)

    async def _put_one(self, name: str, value: Value) -> None:
        point = self._points[name]
        try:
            message = told(point, point.body, value)
            raw = payloads.raw_of(point, value)
        except ValueError as error:
            raise DeviceRefused(
                f"{value} cannot be written to {point.name} of {self._where}: {error}"
            ) from error
        path = point.write_path
        if "value" in payloads.words_in(path):
            path = str(payloads.filled(path, {"value": quote(str(raw), safe="")}))
        is_json = not isinstance(point.body, str) or not point.body or point.body.lstrip()[:1] in ("{", "[")
        self._count((name,))
        answer = await self._session.ask(
            point.method,
            path,
            headers={"Content-Type": JSON if is_json else "text/plain; charset=utf-8", **self._headers},
            body=message.payload,
        )
        if not answer.is_success:
            raise self._session.refusal(answer, what=f"write {path}")
