"""From documents to settings: what `desired/config` and the schedules mean for this node's devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, TypeVar

import msgspec

from edge.core.arbitration import DeviceSettings
from edge.core.commands import Lifetime, WriteClass
from edge.core.cyclic import MAX_PERIOD_S, MIN_PERIOD_S, KeepAlive
from edge.core.quantities import Bound
from edge.core.schedule import Schedule
from edge.core.watchdog import MAX_TIME_LIMIT_S, MIN_TIME_LIMIT_S, is_time_limit
from edge.core.wear import PERSISTENT_WRITES_PER_DAY
from edge.drivers.registry import DRIVERS
from edge.drivers.serial_line import SerialSettings
from edge.profiles import address
from edge.profiles.errors import ProfileError
from edge.profiles.model import Limit, Parity, Profile
from edge.profiles.points import Point, Protocol
from edge.profiles.reading import profile_from_builtins
from edge.profiles.summary import fallback_consents
from edge.runtime.documents import CONFIG, SCHEDULES, DocumentRefused
from edge.wire.messages import BoundConfig, DeviceConfig, Document, NodeConfig, ScheduleBody, SiteConfig

T = TypeVar("T")

DEFAULT_TOLERANCE = 0.5
MAX_TAG = 64
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
class InLoop:
    """What a closed loop asks of the polls of a device: how often at least, and beside which meter's."""

    meter: str
    poll_s: float


@dataclass(frozen=True, slots=True)
class Planned:
    """One usable device of the configuration."""

    config: DeviceConfig
    profile: Profile
    settings: DeviceSettings
    endpoint: Endpoint
    site: str
    in_loop: InLoop | None = None

    @property
    def is_proxy(self) -> bool:
        return self.endpoint.protocol is Protocol.PROXY

    @property
    def is_settable(self) -> bool:
        """Tell whether it has a setpoint that anybody may have written."""
        return self.profile.limit is not None and not self.config.measured_only

    @property
    def own_bounds(self) -> tuple[Bound, ...]:
        """The bounds that the configuration gives the device itself."""
        return tuple(_bound(bound) for bound in self.config.bounds)

    @property
    def control_point(self) -> ControlPoint | None:
        """The register this device is controlled by; None where there is none, as a proxy has none."""
        register = _register(self.profile)
        if register is None or self.is_proxy:
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

    `abandoned`: ids of devices that left, and that nobody waits for any longer. `loops` are as they came
    (`edge.runtime.loop_plan` reads them, once it is known which devices there are).
    """

    site: SiteConfig
    devices: dict[str, Planned]
    refused: dict[str, str]
    abandoned: frozenset[str] = frozenset()
    loops: tuple[Mapping[str, Any], ...] = ()


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
    profiles = Profiles(config.profiles)
    for number, raw in enumerate(config.devices):
        name = str(raw.get("tag") or f"device {number}")[:MAX_TAG]
        try:
            planned = planned_device(raw, config.site, profiles)
            if planned.config.tag in devices:
                raise DocumentRefused("a second device has this tag")  # noqa: TRY301
            _check_line(planned, devices)
        except DocumentRefused as error:
            refused[name] = str(error)
        else:
            devices[planned.config.tag] = planned
    devices, unlinked = linked(devices)
    devices, disowned = _owners(devices)
    return Plan(
        site,
        devices,
        refused | unlinked | disowned,
        abandoned=frozenset(config.abandoned),
        loops=config.loops,
    )


def _owners(devices: Mapping[str, Planned]) -> tuple[dict[str, Planned], dict[str, str]]:
    """Let the first device of each control point have it; and why the others cannot be used."""
    owners: dict[ControlPoint, str] = {}
    refused = {}
    for tag, planned in devices.items():
        point = planned.control_point if planned.settings.is_controlled else None
        if point is not None and owners.setdefault(point, tag) != tag:
            refused[tag] = f"its control point is that of {owners[point]}"
    return {tag: planned for tag, planned in devices.items() if tag not in refused}, refused


def linked(devices: Mapping[str, Planned]) -> tuple[dict[str, Planned], dict[str, str]]:
    """Let each child of a proxy take its value from it; and why others cannot be used.

    A child is a device with a setpoint whose owner is a proxy. Behind any other owner, behind a proxy that
    cannot be used, or one that nobody may write, it is not written at all. What was linked before is linked
    anew.
    """
    refused: dict[str, str] = {}
    for tag, planned in devices.items():
        ring = _ring(tag, devices)
        owner = devices.get(planned.config.owned_by or "")
        if ring:
            refused[tag] = f"it is among its own children: {' < '.join(ring)}"
        elif owner is not None and owner.is_proxy and planned.is_settable and owner.is_settable:
            kind, asked = planned.profile.value_kind, owner.profile.value_kind
            assert kind is not None
            assert asked is not None
            if not kind.can_take(asked):
                refused[tag] = f"its {kind.value} cannot follow the {asked.value} of {owner.config.tag}"
    usable = {tag: planned for tag, planned in devices.items() if tag not in refused}
    return {tag: _linked(planned, usable) for tag, planned in usable.items()}, refused


def _ring(tag: str, devices: Mapping[str, Planned]) -> list[str]:
    """The chain of proxies that leads from this device back to itself, or empty."""
    chain = [tag]
    while (owner := devices.get(devices[chain[-1]].config.owned_by or "")) is not None and owner.is_proxy:
        chain.append(owner.config.tag)
        if owner.config.tag == tag:
            return chain
        if owner.config.tag in chain[1:-1]:
            # It leads into a ring that others are in.
            return []
    return []


def _linked(planned: Planned, devices: Mapping[str, Planned]) -> Planned:
    owner, config = devices.get(planned.config.owned_by or ""), planned.config
    excluded = config.excluded or not planned.is_settable
    if owner is None or not owner.is_proxy or excluded or not _is_commanded(owner, devices):
        settings = replace(planned.settings, owned_by=config.owned_by, proxy=None, excluded=excluded)
    else:
        settings = replace(planned.settings, owned_by=None, proxy=owner.config.tag, excluded=False)
    return planned if settings == planned.settings else replace(planned, settings=settings)


def _is_commanded(planned: Planned, devices: Mapping[str, Planned]) -> bool:
    """Tell whether this proxy has a value to pass on, its own or another proxy's."""
    if planned.config.excluded or not planned.is_settable:
        return False
    if planned.config.owned_by is None:
        return True
    owner = devices.get(planned.config.owned_by)
    return owner is not None and owner.is_proxy and _is_commanded(owner, devices)


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
    tag_check(device.tag)
    chosen = (device.protocol, device.serial_port)
    protocol = _expected("protocol", address.protocol_chosen, profile.protocols, *chosen)
    if protocol not in DRIVERS and protocol is not Protocol.PROXY:
        raise DocumentRefused(f"this node's software does not speak {protocol.value}")
    endpoint = _endpoint(device, profile, protocol)
    if not device.min_value <= device.default_value <= device.max_value:
        raise DocumentRefused("expected min_value <= default_value <= max_value")
    limit = profile.limit
    measured_only = device.measured_only or limit is None
    try:
        settings = _settings(device, site, profile, excluded=device.excluded or measured_only)
    except ValueError as error:
        raise DocumentRefused(str(error)) from error
    if protocol is Protocol.PROXY:
        # What it repeats it would only repeat to its children, which have lifetimes of their own.
        settings = replace(settings, lifetime=Lifetime.SINGULAR)
    return Planned(device, profile, settings, endpoint, site.id)


def tag_check(tag: str) -> None:
    """Refuse a name that nobody could type or read, or that is not one device's alone."""
    if not tag.strip() or len(tag) > MAX_TAG or not tag.isprintable():
        raise DocumentRefused(
            f"tag {tag[:MAX_TAG]!r}: expected 1 to {MAX_TAG} characters that can be printed"
        )
    if tag.startswith(LEAVING):
        raise DocumentRefused(
            f"tag {tag!r}: a name that begins with {LEAVING!r} is kept for devices that left"
        )


def _endpoint(device: DeviceConfig, profile: Profile, protocol: Protocol) -> Endpoint:
    """Refuse what no connection could be made of; the line would end over it, and the node with it."""
    if not MIN_POLL_S <= device.poll_s <= MAX_POLL_S:
        raise DocumentRefused(f"poll_s {device.poll_s:g}: expected {MIN_POLL_S:g} to {MAX_POLL_S:g}")
    if protocol.is_inside:
        return Endpoint(protocol)
    if protocol.has_url:
        url = _expected("url", address.url_spelled, device.url, protocol)
        return Endpoint(protocol, url=url, username=device.username, password=device.password)
    _expected("unit", address.unit_check, device.unit, protocol)
    if device.serial_port:
        return Endpoint(protocol, serial=_serial(device, profile, protocol))
    host = _expected("host", address.host_spelled, device.host)
    if not 1 <= device.port <= address.MAX_PORT:
        raise DocumentRefused(f"port {device.port}: expected 1 to {address.MAX_PORT}")
    return Endpoint(protocol, host, device.port)


def _expected(field: str, check: Callable[..., T], *arguments: Any) -> T:
    """What a check of an address gives; `DocumentRefused` names the field."""
    try:
        return check(*arguments)
    except ValueError as error:
        raise DocumentRefused(f"{field} {error}") from error


def _serial(device: DeviceConfig, profile: Profile, protocol: Protocol) -> SerialSettings:
    path = device.serial_port
    if DRIVERS[protocol].serial_session is None:
        raise DocumentRefused(f"serial_port {path!r}: {protocol.value} has no serial lines")
    if device.host:
        raise DocumentRefused(f"serial_port {path!r}: expected no host beside it")
    _expected("serial_port", address.serial_port_check, path)
    baud_rate = profile.default_baud_rate if device.baud_rate is None else device.baud_rate
    _expected("baud_rate", address.baud_rate_check, baud_rate)
    stop_bits = profile.default_stop_bits if device.stop_bits is None else device.stop_bits
    if stop_bits not in address.STOP_BITS:
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


def _settings(device: DeviceConfig, site: SiteConfig, profile: Profile, *, excluded: bool) -> DeviceSettings:
    limit = profile.limit
    keep_alive, missing = _own_fallback(device, profile)
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


def _own_fallback(device: DeviceConfig, profile: Profile) -> tuple[KeepAlive | None, str]:
    """How the device's own fallback is to be armed, and why it is not (rule 14)."""
    own = profile.limit.fallback if profile.limit is not None else None
    if own is None:
        return None, ""
    given = {"accept_wear": device.accept_wear, "arm_fallback": device.arm_fallback}
    for consent, why in fallback_consents(profile).items():
        if not given[consent]:
            return None, f"no own fallback: {why}, {consent} is off"
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
