"""What became of a request, device by device and step by step: only what is known, and when it was known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

import msgspec

from control_app.advice import advice
from control_app.models import CommandState, ControlCommand, ControlRequest
from devices_app.models import Device, Quality, TelemetryReading, TelemetrySeries
from edge.profiles.model import ValueKind
from edge.wire.messages import Code, DeviceResult

# For so long after it was confirmed a device's power is looked at.
FOLLOWED_WITHIN = timedelta(minutes=5)
# Of its nameplate: so near to its value a device's power counts as there.
FOLLOWED_TOLERANCE = 0.05
# Of more devices in one request the power is not looked up: it would be tens of thousands of readings.
FOLLOWED_DEVICES = 200
POWER = "P_kW"


class Stand(StrEnum):
    """How far a step is."""

    DONE = "done"
    FAILED = "failed"
    WAITING = "waiting"
    UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class ChainStep:
    """One step: when it was seen to be done, by central's clock and where known, and what to say of it."""

    stand: Stand
    at: datetime | None = None
    told: str = ""


_UNKNOWN = ChainStep(Stand.UNKNOWN)


@dataclass(frozen=True, slots=True)
class DeviceChain:
    """A command's way to one device. `reason` says why it does not follow, `next` what to do about that."""

    tag: str
    device_id: UUID | None
    node_name: str
    asked: float | None
    outcome: Stand
    reason: str = ""
    steps: list[ChainStep] = field(default_factory=list)

    @property
    def next(self) -> str:
        return advice(self.reason) if self.reason else ""


def request_chains(request: ControlRequest) -> list[DeviceChain]:
    """Each device of a request in the order of tags, also those to which nothing was sent.

    Before the request is closed, only those to which something is sent are known.
    """
    commands = list(request.commands.select_related("node").order_by("sequence"))
    told: Mapping[str, Mapping[str, str]] = request.result or {}
    not_updated = told.get("not_updated", {})
    tags = {tag for command in commands for tag in command.values} | set(not_updated)
    devices = {
        device.device_tag: device
        for device in Device.objects.filter(site_id=request.site_id, device_tag__in=tags).select_related(
            "device_type"
        )
    }
    results = {command.pk: _results(command) for command in commands}
    followed = _followed(commands, results, devices)
    chains = [
        _chain(
            request,
            command,
            tag,
            device=devices.get(tag),
            result=results[command.pk].get(tag),
            why_not=not_updated.get(tag, ""),
            followed=followed.get(tag),
        )
        for command in commands
        for tag in command.values
    ]
    sent = {chain.tag for chain in chains}
    chains += [
        DeviceChain(tag, devices[tag].pk if tag in devices else None, "", None, Stand.FAILED, why)
        for tag, why in not_updated.items()
        if tag not in sent
    ]
    return sorted(chains, key=lambda chain: chain.tag)


def _results(command: ControlCommand) -> dict[str, DeviceResult]:
    return msgspec.convert(command.result or {}, dict[str, DeviceResult])


def _chain(
    request: ControlRequest,
    command: ControlCommand,
    tag: str,
    *,
    device: Device | None,
    result: DeviceResult | None,
    why_not: str,
    followed: ChainStep | None,
) -> DeviceChain:
    is_open = request.status is None
    written, read_back = _at_device(command, result, is_open=is_open)
    if is_open and command.state in {CommandState.QUEUED, CommandState.SENT}:
        outcome = Stand.WAITING
    elif result is not None and result.ok and command.state == CommandState.DONE:
        outcome = Stand.DONE
    elif command.state == CommandState.UNKNOWN:
        outcome = Stand.UNKNOWN
    else:
        outcome = Stand.FAILED
    # Before the request is closed, the answer of the device itself is the only reason there is.
    reason = why_not or (result.reason if result is not None and not result.ok else "")
    return DeviceChain(
        tag=tag,
        device_id=None if device is None else device.pk,
        node_name=command.node.name,
        asked=command.values[tag],
        outcome=outcome,
        reason="" if outcome is Stand.DONE else reason,
        steps=[
            ChainStep(Stand.DONE, request.created_at),
            _sent(command, is_open=is_open),
            _accepted(command, is_open=is_open, why_not=why_not),
            written,
            read_back,
            followed or (ChainStep(Stand.WAITING) if outcome is Stand.WAITING else _UNKNOWN),
        ],
    )


def _sent(command: ControlCommand, *, is_open: bool) -> ChainStep:
    match command.state:
        case CommandState.NOT_SENT:
            return ChainStep(Stand.FAILED, None, "not sent")
        case CommandState.QUEUED:
            return ChainStep(Stand.WAITING) if is_open else _UNKNOWN
        case _:
            return ChainStep(Stand.DONE, command.claimed_at)


def _accepted(command: ControlCommand, *, is_open: bool, why_not: str) -> ChainStep:
    match command.state:
        case CommandState.NOT_SENT | CommandState.NOT_DELIVERED:
            return ChainStep(Stand.FAILED, None, "the node never had it")
        case CommandState.REFUSED:
            return ChainStep(Stand.FAILED, command.done_at, why_not or "refused")
        case CommandState.DONE:
            return ChainStep(Stand.DONE, command.accepted_at)
        case _ if command.accepted_at is not None:
            return ChainStep(Stand.DONE, command.accepted_at)
        case _:
            return ChainStep(Stand.WAITING) if is_open else _UNKNOWN


def _at_device(
    command: ControlCommand, result: DeviceResult | None, *, is_open: bool
) -> tuple[ChainStep, ChainStep]:
    """Written and read back. A node tells of both at once, so only the time of the latter is known."""
    if command.state == CommandState.DONE and result is not None:
        if result.ok:
            value = "" if result.value is None else f"{result.value:g}"
            if result.readback is None:
                return ChainStep(Stand.DONE, None, value), ChainStep(
                    Stand.UNKNOWN, None, "nothing was read back"
                )
            return ChainStep(Stand.DONE, None, value), ChainStep(
                Stand.DONE, command.done_at, f"{result.readback:g}"
            )
        if result.code == Code.READBACK_MISMATCH:
            return ChainStep(Stand.DONE), ChainStep(Stand.FAILED, command.done_at, result.reason)
        return ChainStep(Stand.FAILED, command.done_at, result.reason), ChainStep(Stand.FAILED)
    if command.state in {CommandState.NOT_SENT, CommandState.NOT_DELIVERED, CommandState.REFUSED}:
        return ChainStep(Stand.FAILED, None, "not written"), ChainStep(Stand.FAILED)
    if is_open:
        return ChainStep(Stand.WAITING), ChainStep(Stand.WAITING)
    return _UNKNOWN, _UNKNOWN


# --- what the power did ---------------------------------------------------------------------------


def _followed(
    commands: Sequence[ControlCommand],
    results: Mapping[int, Mapping[str, DeviceResult]],
    devices: Mapping[str, Device],
) -> dict[str, ChainStep]:
    """By tag: the first good reading of power near the value that a device confirmed at a known time."""
    wanted: dict[UUID, tuple[str, datetime, float, float, bool]] = {}
    for command in commands:
        for tag, result in results[command.pk].items():
            device = devices.get(tag)
            if device is None or command.done_at is None or not result.ok or result.value is None:
                continue
            kind = device.device_type.value_kind
            if kind is None or not ValueKind(kind).is_power or not device.peak_power_kw:
                continue
            nameplate_kw = device.peak_power_kw
            value_kw = nameplate_kw * result.value / 100
            is_limit = ValueKind(kind).is_limit
            wanted[device.pk] = (tag, command.done_at, value_kw, nameplate_kw * FOLLOWED_TOLERANCE, is_limit)
    if not wanted:
        return {}
    if len(wanted) > FOLLOWED_DEVICES:
        many = ChainStep(Stand.UNKNOWN, None, f"not looked up for more than {FOLLOWED_DEVICES} devices")
        return {tag: many for tag, *_ in wanted.values()}
    series = dict(
        TelemetrySeries.objects.filter(device__in=list(wanted), key=POWER).values_list("pk", "device_id")
    )
    since = min(at for _, at, *_ in wanted.values())
    until = max(at for _, at, *_ in wanted.values()) + FOLLOWED_WITHIN
    readings = (
        TelemetryReading.objects.filter(
            series__in=list(series), at__gte=since, at__lte=until, quality=Quality.GOOD
        )
        .order_by("at")
        .values_list("series_id", "at", "value")
    )
    found: dict[str, ChainStep] = {}
    seen: dict[str, float] = {}
    for number, at, power_kw in readings:
        device_id = series[number]
        assert device_id is not None
        tag, done_at, value_kw, tolerance_kw, is_limit = wanted[device_id]
        if tag in found or not done_at <= at <= done_at + FOLLOWED_WITHIN:
            continue
        seen[tag] = power_kw
        off_kw = abs(power_kw) - abs(value_kw) if is_limit else abs(power_kw - value_kw)
        if off_kw <= tolerance_kw:
            found[tag] = ChainStep(Stand.DONE, at, f"{power_kw:.1f} kW")
    for tag, _, value_kw, _, _ in wanted.values():
        if tag not in found and tag in seen:
            text = f"last seen {seen[tag]:.1f} kW, asked for {value_kw:.1f} kW"
            found[tag] = ChainStep(Stand.WAITING, None, text)
    return found
