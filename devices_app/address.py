"""Where a device is reached, as its profile's protocol has it: what it needs, and who else is there.

Host, port and unit; a serial port of the node and a unit; a URL; or nothing, for what lives in the node.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from edge.profiles import address
from edge.profiles.errors import ProfileError
from edge.profiles.model import Parity, Profile
from edge.profiles.parameters import Parameter, parameters_of
from edge.profiles.points import Protocol
from edge.profiles.reading import profile_from_builtins
from smartgrid.errors import Invalid

if TYPE_CHECKING:
    from devices_app.models import Device, DeviceType

NETWORK = ("modbus_server_host", "modbus_server_port")
SERIAL = ("serial_port", "baud_rate", "parity", "stop_bits")
BY_URL = ("url", "username", "password_encrypted")
# All fields of an address: those that a protocol has no use for are emptied.
FIELDS = (*NETWORK, "modbus_id", *SERIAL, *BY_URL)
PARITIES = [(parity.value, parity.value) for parity in Parity]


def device_profile(device: Device) -> Profile | None:
    """The profile with the device's own parameters in it; None for a type without a body.

    `Invalid` names the parameter that is missing or wrong. Needs `device_type` loaded.
    """
    body = device.device_type.profile_body
    if not body:
        return None
    try:
        return _profile(msgspec.json.encode(body), msgspec.json.encode(device.parameters, order="sorted"))
    except ProfileError as error:
        raise Invalid.field(
            "parameters", f"{error.key.removeprefix('parameters.')}: {error.expectation}"
        ) from error


def type_profile(kind: DeviceType) -> Profile | None:
    """A type's profile, its parameters by default or example; None without a body, or with one of no use."""
    if not kind.profile_body:
        return None
    try:
        return _profile(msgspec.json.encode(kind.profile_body), None)
    except ProfileError:
        return None


def type_parameters(kind: DeviceType) -> dict[str, Parameter]:
    """What a type's profile leaves open to each device: what has to be said first, then by name.

    (The order of its file is lost: PostgreSQL keeps the keys of JSON in one of its own.)
    """
    try:
        found = parameters_of(kind.profile_body)
    except ProfileError:
        return {}
    return dict(sorted(found.items(), key=lambda item: (not item[1].required, item[0])))


@lru_cache(maxsize=256)
def _profile(body: bytes, parameters: bytes | None) -> Profile:
    given = None if parameters is None else msgspec.json.decode(parameters)
    return profile_from_builtins(msgspec.json.decode(body), given)


def device_protocol(device: Device) -> Protocol | None:
    """By which of its profile's protocols the device is reached; None for one that we do not know."""
    kind = device.device_type
    protocols = [kind.protocol, *kind.profile_body.get("also", [])]
    try:
        return address.protocol_chosen(protocols, device.protocol or "", device.serial_port or "")
    except ValueError:
        return None


def address_check(device: Device) -> None:
    """Refuse an address that is not whole, in the terms of its protocol; empty what belongs to others'.

    What is there gets the one spelling by which its node knows it (`edge.profiles.address`).
    """
    kind = device.device_type
    allowed = [kind.protocol, *kind.profile_body.get("also", [])]
    if device.protocol and device.protocol not in allowed:
        raise Invalid.field("protocol", f"expected one of {', '.join(allowed)}")
    protocol = device_protocol(device)
    if protocol is None:
        return
    device.modbus_server_host = (device.modbus_server_host or "").strip() or None
    device.serial_port = (device.serial_port or "").strip() or None
    device.url = (device.url or "").strip() or None
    needed = _needed(device, protocol)
    # What a type of another protocol left behind.
    for field in FIELDS:
        if field not in (*needed, *_optional(device, protocol)):
            setattr(device, field, "" if field in ("username", "password_encrypted") else None)
    missing = [field for field in needed if getattr(device, field) in (None, "")]
    if missing:
        what = "Modbus" if protocol.is_modbus else protocol.value
        raise Invalid(
            f"A {what} device needs {_listed(needed)}.",
            errors={field: [f"This field is required for a {what} device."] for field in missing},
        )
    if "modbus_server_host" in needed:
        device.modbus_server_host = _checked(
            "modbus_server_host", address.host_spelled, device.modbus_server_host
        )
    if "modbus_id" in needed:
        _checked("modbus_id", address.unit_check, device.modbus_id, protocol)
    if "serial_port" in needed:
        _checked("serial_port", address.serial_port_check, device.serial_port)
        if device.baud_rate is not None:
            _checked("baud_rate", address.baud_rate_check, device.baud_rate)
    if "url" in needed:
        device.url = _checked("url", address.url_spelled, device.url, protocol)


def _checked(field: str, check: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return check(*arguments)
    except ValueError as error:
        raise Invalid.field(field, str(error)) from error


def _needed(device: Device, protocol: Protocol) -> tuple[str, ...]:
    if protocol.has_url:
        return ("url",)
    if protocol.is_inside:
        return ()
    if protocol is Protocol.MODBUS_RTU and device.serial_port:
        return ("serial_port", "modbus_id")
    return (*NETWORK, "modbus_id")


def _optional(device: Device, protocol: Protocol) -> tuple[str, ...]:
    if protocol.has_url:
        return BY_URL
    if protocol is Protocol.MODBUS_RTU and device.serial_port:
        return SERIAL
    return ()


def address_of(device: Device) -> tuple[Any, ...]:
    """What makes it another device to its node when it changes (rule 20); a password does not."""
    protocol = device_protocol(device)
    return (protocol, *(getattr(device, field) for field in FIELDS if field != "password_encrypted"))


def place_of(device: Device) -> str:
    """Where it is reached, for people, and as the first part of its control point."""
    if device.url:
        return device.url
    if device.serial_port:
        return device.serial_port
    if device.modbus_server_host:
        return f"{device.modbus_server_host}:{device.modbus_server_port}"
    return ""


def control_point_of(device: Device) -> str | None:
    """The point it is controlled by, which has one owner in a site (rule 22); None where there is none."""
    protocol = device_protocol(device)
    profile = device_profile(device)
    if profile is None or profile.limit is None or protocol is None:
        return None
    if protocol.is_inside:
        return f"{protocol.value}/{device.device_tag}"
    point = profile.points[profile.limit.register].key
    if protocol.is_modbus:
        place = place_of(device)
        if device.serial_port:
            # Each node has serial ports of its own.
            place = f"{device.node_id}:{place}"
        return f"{place}/{device.modbus_id}/{point}"
    return f"{place_of(device)}/{point}"


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
