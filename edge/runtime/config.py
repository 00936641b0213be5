"""From documents to settings: what `desired/config` and the schedules mean for this node's devices."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec

from edge.core.arbitration import DeviceSettings
from edge.core.commands import Lifetime, WriteClass
from edge.core.cyclic import MAX_PERIOD_S, MIN_PERIOD_S, KeepAlive
from edge.core.quantities import Bound
from edge.core.schedule import Schedule
from edge.core.watchdog import MAX_TIME_LIMIT_S, MIN_TIME_LIMIT_S, is_time_limit
from edge.core.wear import PERSISTENT_WRITES_PER_DAY
from edge.drivers.registry import DRIVERS
from edge.drivers.serial_line import BAUD_RATES, STOP_BITS, SerialSettings
from edge.profiles.errors import ProfileError
from edge.profiles.model import Limit, Parity, Profile
from edge.profiles.points import Point, Protocol
from edge.profiles.reading import profile_from_builtins
from edge.runtime.documents import CONFIG, SCHEDULES, DocumentRefused
from edge.wire.messages import BoundConfig, DeviceConfig, Document, NodeConfig, ScheduleBody, SiteConfig

DEFAULT_TOLERANCE = 0.5
MAX_PORT = 65535
MAX_UNIT = 255
# On a line, 0 is everybody, whom nobody answers for; above 247 is reserved (Modbus over Serial Line, 2.2).
MIN_LINE_UNIT, MAX_LINE_UNIT = 1, 247
URL_SCHEMES = {
    Protocol.MQTT: ("mqtt", "mqtts"),
    Protocol.XML_DA: ("http", "https"),
    Protocol.HTTP: ("http", "https"),
}
DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "http": 80, "https": 443}
MAX_URL = 500
MAX_TAG = 64
MAX_HOST = 253
# What the lines and the store call a device that left begins with this: no other device may be called so.
LEAVING = "leaving:"
# A reading older than 15 min is never served as current.
MIN_POLL_S, MAX_POLL_S = 0.1, 900.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a session leads: a host and a port, a serial line, or a URL and who asks there.

    Devices of equal endpoints share it. A new password is no other endpoint, but a new session. What has no
    hardware of its own (`Protocol.is_inside`) has nothing but a protocol.
    """

    protocol: Protocol
    host: str = ""
    port: int = 0
    serial: SerialSettings | None = None
    url: str = ""
    username: str = ""
    password: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        if self.serial is not None:
            return self.serial.port
        if self.protocol.is_inside:
            return self.protocol.value
        return self.url or f"{self.host}:{self.port}"

    @property
    def is_shared(self) -> bool:
        """Tell whether all who go there must use one session, as many devices take only one."""
        return not self.url and not self.protocol.is_inside

    @property
    def has_units(self) -> bool:
        """Tell whether several devices are there, each under a number of its own."""
        return self.protocol.is_modbus

    @property
    def arguments(self) -> dict[str, Any]:
        """What the session's constructor takes of it."""
        if self.serial is not None:
            return {"line": self.serial}
        if self.protocol.is_inside:
            return {}
        if self.url:
            return {"url": self.url, "username": self.username, "password": self.password}
        return {"host": self.host, "port": self.port}


ControlPoint = tuple[Endpoint, int, str]


@dataclass(frozen=True, slots=True)
class Planned:
    """One usable device of the configuration."""

    config: DeviceConfig
    profile: Profile
    settings: DeviceSettings
    endpoint: Endpoint
    site: str

    @property
    def control_point(self) -> ControlPoint | None:
        """The register this device is controlled by; None where there is none."""
        register = _register(self.profile)
        if register is None:
            return None
        # What has no hardware of its own is nobody else's either.
        key = self.config.tag if self.endpoint.protocol.is_inside else register.key
        return (self.endpoint, self.config.unit, key)

    def is_same_device(self, other: Planned) -> bool:
        """Tell whether both are one device of one site, reached and written in the same way (rule 20)."""
        return (
            self.site == other.site
            and self.endpoint == other.endpoint
            and self.config.unit == other.config.unit
            and self.profile.name == other.profile.name
            and _register(self.profile) == _register(other.profile)
        )


def _register(profile: Profile) -> Point | None:
    return None if profile.limit is None else profile.points[profile.limit.register]


@dataclass(frozen=True, slots=True)
class Pace:
    """The pauses and the patience of a line, and who asks there; a line with others is another line.

    Devices that share a line share the strictest of each. `endpoint` is that of one of them: it has the
    password as it is now, by which endpoints do not differ.
    """

    endpoint: Endpoint
    gap_s: float
    timeout_s: float
    connect_delay_s: float
    password: str = field(repr=False)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the session's constructor takes, but for clock and sleep."""
        timing = {"timeout_s": self.timeout_s, "min_gap_s": self.gap_s}
        if self.endpoint.protocol.is_modbus and self.endpoint.serial is None:
            timing["connect_delay_s"] = self.connect_delay_s
        return self.endpoint.arguments | timing


def pace_of(devices: Iterable[Planned]) -> Pace:
    """The pace of a line with these devices on it."""
    planned = list(devices)
    endpoint = planned[0].endpoint
    profiles = [one.profile for one in planned]
    return Pace(
        endpoint=endpoint,
        gap_s=max(profile.min_gap_ms for profile in profiles) / 1000,
        timeout_s=max(profile.timeout_s(endpoint.protocol) for profile in profiles),
        connect_delay_s=max(profile.connect_delay_ms for profile in profiles) / 1000,
        password=endpoint.password,
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole configuration: usable devices by tag, and why the others are not.

    `abandoned`: ids of devices that left, and that nobody waits for any longer.
    """

    site: SiteConfig
    devices: dict[str, Planned]
    refused: dict[str, str]
    abandoned: frozenset[str] = frozenset()


def plan(body: Mapping[str, object]) -> Plan:
    """Read a configuration; one bad device is refused alone, `DocumentRefused` where nothing can be used."""
    try:
        config = msgspec.convert(body, NodeConfig)
    except msgspec.ValidationError as error:
        raise DocumentRefused(f"config: {error}") from error
    site = config.site
    if not is_time_limit(site.curtailment_time_limit_s):
        raise DocumentRefused(
            f"curtailment_time_limit {site.curtailment_time_limit_s:g} s: expected"
            f" {MIN_TIME_LIMIT_S:g} to {MAX_TIME_LIMIT_S:g}; the previous one stays"
        )
    if not MIN_PERIOD_S <= site.cyclic_write_timeout_s <= MAX_PERIOD_S:
        raise DocumentRefused(
            f"cyclic_write_timeout {site.cyclic_write_timeout_s:g} s: expected {MIN_PERIOD_S:g} to"
            f" {MAX_PERIOD_S:g}"
        )
    devices: dict[str, Planned] = {}
    refused: dict[str, str] = {}
    owners: dict[ControlPoint, str] = {}
    profiles = Profiles(config.profiles)
    for number, raw in enumerate(config.devices):
        name = str(raw.get("tag") or f"device {number}")[:MAX_TAG]
        try:
            planned = planned_device(raw, config.site, profiles)
            if planned.config.tag in devices:
                raise DocumentRefused("a second device has this tag")  # noqa: TRY301
            _check_line(planned, devices)
            point = planned.control_point if planned.settings.is_controlled else None
            if point is not None and owners.setdefault(point, planned.config.tag) != planned.config.tag:
                raise DocumentRefused(f"its control point is that of {owners[point]}")  # noqa: TRY301
        except DocumentRefused as error:
            refused[name] = str(error)
        else:
            devices[planned.config.tag] = planned
    return Plan(site, devices, refused, frozenset(config.abandoned))


class Profiles:
    """The profiles of one configuration, each read once: a thousand devices of one type share it."""

    def __init__(self, raw: Mapping[str, Mapping[str, object]]) -> None:
        self._raw = raw
        self._read: dict[tuple[str, frozenset[tuple[str, float | str]]], Profile] = {}

    def get(self, name: str, parameters: Mapping[str, float | str]) -> Profile:
        """`KeyError` where there is none, `ProfileError` where it cannot be used."""
        key = (name, frozenset(parameters.items()))
        if key not in self._read:
            self._read[key] = profile_from_builtins(self._raw[name], parameters)
        return self._read[key]


def planned_device(raw: Mapping[str, object], site: SiteConfig, profiles: Profiles) -> Planned:
    """Read one device of a configuration; `DocumentRefused` says why it cannot be used."""
    try:
        device = msgspec.convert(raw, DeviceConfig)
        profile = profiles.get(device.profile, device.parameters)
    except KeyError as error:
        raise DocumentRefused(f"profile {error} is not in the configuration") from error
    except (msgspec.ValidationError, ProfileError) as error:
        raise DocumentRefused(str(error)) from error
    _check_tag(device.tag)
    protocol = _protocol(device, profile)
    if protocol not in DRIVERS:
        raise DocumentRefused(f"this node's software does not speak {protocol.value}")
    endpoint = _endpoint(device, profile, protocol)
    if not device.min_value <= device.default_value <= device.max_value:
        raise DocumentRefused("expected min_value <= default_value <= max_value")
    limit = profile.limit
    measured_only = device.measured_only or limit is None
    try:
        settings = _settings(device, site, limit, excluded=device.excluded or measured_only)
    except ValueError as error:
        raise DocumentRefused(str(error)) from error
    return Planned(device, profile, settings, endpoint, site.id)


def _check_tag(tag: str) -> None:
    """Refuse a name that nobody could type or read, or that is not one device's alone."""
    if not tag.strip() or len(tag) > MAX_TAG or not tag.isprintable():
        raise DocumentRefused(
            f"tag {tag[:MAX_TAG]!r}: expected 1 to {MAX_TAG} characters that can be printed"
        )
    if tag.startswith(LEAVING):
        raise DocumentRefused(
            f"tag {tag!r}: a name that begins with {LEAVING!r} is kept for devices that left"
        )


def _protocol(device: DeviceConfig, profile: Profile) -> Protocol:
    """By which of its profile's protocols a device is reached; a serial port speaks for itself."""
    if device.protocol:
        if device.protocol not in profile.protocols:
            known = ", ".join(protocol.value for protocol in profile.protocols)
            raise DocumentRefused(f"protocol {device.protocol!r}: expected one of {known}")
        return Protocol(device.protocol)
    if device.serial_port and Protocol.MODBUS_RTU in profile.also:
        return Protocol.MODBUS_RTU
    return profile.protocol


def _endpoint(device: DeviceConfig, profile: Profile, protocol: Protocol) -> Endpoint:
    """Refuse what no connection could be made of; the line would end over it, and the node with it."""
    if not MIN_POLL_S <= device.poll_s <= MAX_POLL_S:
        raise DocumentRefused(f"poll_s {device.poll_s:g}: expected {MIN_POLL_S:g} to {MAX_POLL_S:g}")
    if protocol.is_inside:
        return Endpoint(protocol)
    if protocol.has_url:
        return Endpoint(
            protocol, url=_url(device.url, protocol), username=device.username, password=device.password
        )
    on_a_line = protocol is Protocol.MODBUS_RTU
    lowest, highest = (MIN_LINE_UNIT, MAX_LINE_UNIT) if on_a_line else (0, MAX_UNIT)
    if not lowest <= device.unit <= highest:
        raise DocumentRefused(f"unit {device.unit}: expected {lowest} to {highest}")
    if device.serial_port:
        return Endpoint(protocol, serial=_serial(device, profile, protocol))
    host = _host(device.host)
    if host is None:
        raise DocumentRefused(f"host {device.host[:MAX_HOST]!r}: expected a name or an address")
    if not 1 <= device.port <= MAX_PORT:
        raise DocumentRefused(f"port {device.port}: expected 1 to {MAX_PORT}")
    return Endpoint(protocol, host, device.port)


def _url(text: str, protocol: Protocol) -> str:
    """The one spelling of a URL, without credentials."""
    schemes = URL_SCHEMES[protocol]
    wanted = f"expected {' or '.join(f'{scheme}://HOST[:PORT]' for scheme in schemes)}"
    try:
        parts = urlsplit(text)
        host, port = _host(parts.hostname or ""), parts.port
    except ValueError:
        host = port = None
    if host is None or parts.scheme not in schemes or len(text) > MAX_URL or not text.isprintable():
        raise DocumentRefused(f"url {text[:MAX_HOST]!r}: {wanted}")
    if parts.username is not None or parts.fragment:
        raise DocumentRefused(f"url: {wanted}, without user, password or fragment in it")
    if protocol is Protocol.MQTT and (parts.path.strip("/") or parts.query):
        raise DocumentRefused(f"url: {wanted}, and nothing behind it: topics are the profile's")
    if port == 0:
        raise DocumentRefused(f"url: {wanted}, a port of 1 to {MAX_PORT}")
    if ":" in host:
        host = f"[{host}]"
    # A port that goes without saying is not said, or a broker would be two endpoints.
    place = host if port in (None, DEFAULT_PORTS[parts.scheme]) else f"{host}:{port}"
    return urlunsplit((parts.scheme, place, parts.path.rstrip("/"), parts.query, ""))


def _host(text: str) -> str | None:
    """The one spelling of a name or an address, or two devices could own one control point; None: neither."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    if not text.isprintable() or any(letter.isspace() or letter in "/\\@:" for letter in text):
        return None
    try:
        name = text.encode("idna").decode("ascii")
    except UnicodeError:
        return None
    return name.lower().removesuffix(".") or None if len(name) <= MAX_HOST else None


def _serial(device: DeviceConfig, profile: Profile, protocol: Protocol) -> SerialSettings:
    path = device.serial_port
    if DRIVERS[protocol].serial_session is None:
        raise DocumentRefused(f"serial_port {path!r}: {protocol.value} has no serial lines")
    if device.host:
        raise DocumentRefused(f"serial_port {path!r}: expected no host beside it")
    # The node opens it for writing: it must not lead to just any file.
    if not path.startswith("/dev/") or "\0" in path or ".." in path.split("/"):
        raise DocumentRefused(f"serial_port {path!r}: expected a path below /dev")
    baud_rate = profile.default_baud_rate if device.baud_rate is None else device.baud_rate
    if baud_rate not in BAUD_RATES:
        rates = ", ".join(map(str, BAUD_RATES))
        raise DocumentRefused(f"baud_rate {baud_rate}: expected one of {rates}")
    stop_bits = profile.default_stop_bits if device.stop_bits is None else device.stop_bits
    if stop_bits not in STOP_BITS:
        raise DocumentRefused(f"stop_bits {stop_bits}: expected 1 or 2")
    try:
        parity = profile.default_parity if device.parity is None else Parity(device.parity)
    except ValueError:
        raise DocumentRefused(f"parity {device.parity!r}: expected none, even or odd") from None
    return SerialSettings(path, baud_rate, parity, stop_bits)


def _check_line(planned: Planned, others: Mapping[str, Planned]) -> None:
    """Refuse a device that wants a serial line otherwise than those before it: a port has one setting."""
    line = planned.endpoint.serial
    if line is None:
        return
    for tag, other in others.items():
        theirs = other.endpoint.serial
        if theirs is not None and theirs.port == line.port and theirs != line:
            raise DocumentRefused(f"{line} on {line.port}: expected {theirs}, as {tag} has it")


def _settings(
    device: DeviceConfig, site: SiteConfig, limit: Limit | None, *, excluded: bool
) -> DeviceSettings:
    keep_alive, missing = _own_fallback(device, limit)
    return DeviceSettings(
        tag=device.tag,
        category=device.category,
        minimum=device.min_value,
        maximum=device.max_value,
        default_value=device.default_value,
        time_limit_s=site.curtailment_time_limit_s,
        excluded=excluded,
        lifetime=Lifetime(device.lifetime),
        write_class=limit.write_class if limit is not None else WriteClass.UNKNOWN,
        period_s=site.cyclic_write_timeout_s,
        tolerance=limit.tolerance if limit is not None else DEFAULT_TOLERANCE,
        owned_by=device.owned_by,
        bounds=tuple(_bound(bound) for bound in device.bounds),
        ramp_pct_per_min=device.ramp_pct_per_min,
        writes_per_day=_budget(limit),
        accept_wear=device.accept_wear,
        readable=limit is not None and limit.readback is not None,
        keep_alive=keep_alive,
        no_own_fallback=missing,
        budgeted=_written(limit),
    )


def _own_fallback(device: DeviceConfig, limit: Limit | None) -> tuple[KeepAlive | None, str]:
    """How the device's own fallback is to be armed, and why it is not (rule 14).

    One that needs no arming acts in any case, as its maker or its installer chose: it has its sign of life,
    or each setpoint would end with it.
    """
    own = limit.fallback if limit is not None else None
    if own is None:
        return None, ""
    if own.keep_alive_class is not WriteClass.VOLATILE and not device.accept_wear:
        return None, "no own fallback: keeping it from acting would wear its register, accept_wear is off"
    # What is armed anyway is not made safer by leaving it unanswered: the setpoint would only not hold.
    if own.takes != "value" and not own.always_armed and not device.arm_fallback:
        return None, f"no own fallback: the device can only {own.takes} by itself, arm_fallback is off"
    return KeepAlive(device.default_value, own.timeout_s), ""


def _written(limit: Limit | None) -> frozenset[str]:
    """The registers a setpoint or its release goes to."""
    if limit is None:
        return frozenset()
    return frozenset(name for step in (*limit.set, *(limit.release or ())) for name in step.writes)


def _bound(bound: BoundConfig) -> Bound:
    low = -math.inf if bound.minimum is None else bound.minimum
    high = math.inf if bound.maximum is None else bound.maximum
    return Bound(bound.origin, low, high)


def _budget(limit: Limit | None) -> int | None:
    if limit is None or limit.writes_per_day is not None:
        return None if limit is None else limit.writes_per_day
    return PERSISTENT_WRITES_PER_DAY if limit.write_class is WriteClass.PERSISTENT else None


def schedules(documents: Mapping[str, Document]) -> dict[str, Schedule]:
    """All applied schedules by category."""
    days: dict[str, dict[date, dict[str, float]]] = {}
    for name, doc in documents.items():
        if name.startswith(SCHEDULES):
            body = schedule_body(doc)
            slots = {key: value for key, value in body.slots.items() if value is not None}
            days.setdefault(body.category, {})[date.fromisoformat(body.date)] = slots
    return {category: Schedule(by_date) for category, by_date in days.items()}


def schedule_body(doc: Document) -> ScheduleBody:
    """Read a schedule document; `DocumentRefused` where it is none."""
    try:
        body = msgspec.convert(doc.body, ScheduleBody)
        date.fromisoformat(body.date)
    except (msgspec.ValidationError, ValueError) as error:
        raise DocumentRefused(f"schedule: {error}") from error
    if not all(value is None or math.isfinite(value) for value in body.slots.values()):
        raise DocumentRefused("schedule: expected finite values or null")
    return body


__all__ = ["CONFIG", "Endpoint", "Plan", "Planned", "plan", "schedule_body", "schedules"]
