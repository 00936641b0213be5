"""The one spelling of an address, for central that takes it from people and the node that connects to it.

Two spellings of one place would let two devices own one control point. `ValueError` says what is expected.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit, urlunsplit

from edge.profiles.points import Protocol

MAX_PORT = 65535
MAX_UNIT = 255
# On a line, 0 is everybody, whom nobody answers for; above 247 is reserved (Modbus over Serial Line, 2.2).
MIN_LINE_UNIT, MAX_LINE_UNIT = 1, 247
MAX_HOST = 253
MAX_URL = 500
URL_SCHEMES = {
    Protocol.MQTT: ("mqtt", "mqtts"),
    Protocol.XML_DA: ("http", "https"),
    Protocol.HTTP: ("http", "https"),
}
DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "http": 80, "https": 443}
BAUD_RATES = (1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200, 230400)
STOP_BITS = (1, 2)


def host_spelled(text: str) -> str:
    """A name or an address, as it is spelled everywhere."""
    host = _host(text)
    if host is None:
        raise ValueError(f"{text[:MAX_HOST]!r}: expected a name or an address")
    return host


def _host(text: str) -> str | None:
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


def protocol_chosen(protocols: Sequence[str], chosen: str, serial_port: str) -> Protocol:
    """By which of its profile's protocols a device is reached; a serial port speaks for itself."""
    if chosen and chosen not in protocols:
        raise ValueError(f"{chosen!r}: expected one of {', '.join(protocols)}")
    if not chosen and serial_port and Protocol.MODBUS_RTU in protocols:
        return Protocol.MODBUS_RTU
    return Protocol(chosen or protocols[0])


def units_of(protocol: Protocol) -> tuple[int, int]:
    """The least and the greatest unit of a Modbus device."""
    return (MIN_LINE_UNIT, MAX_LINE_UNIT) if protocol is Protocol.MODBUS_RTU else (0, MAX_UNIT)


def unit_check(unit: int, protocol: Protocol) -> None:
    lowest, highest = units_of(protocol)
    if not lowest <= unit <= highest:
        raise ValueError(f"{unit}: expected {lowest} to {highest}")


def serial_port_check(path: str) -> None:
    """A node opens it for writing: it must not lead to just any file."""
    if not path.startswith("/dev/") or "\0" in path or ".." in path.split("/"):
        raise ValueError(f"{path!r}: expected a path below /dev")


def baud_rate_check(baud_rate: int) -> None:
    if baud_rate not in BAUD_RATES:
        raise ValueError(f"{baud_rate}: expected one of {', '.join(map(str, BAUD_RATES))}")


def url_spelled(text: str, protocol: Protocol) -> str:
    """A URL of this protocol, without credentials, as it is spelled everywhere."""
    schemes = URL_SCHEMES[protocol]
    wanted = f"expected {' or '.join(f'{scheme}://HOST[:PORT]' for scheme in schemes)}"
    try:
        parts = urlsplit(text)
        host, port = _host(parts.hostname or ""), parts.port
    except ValueError:
        host = port = None
    if host is None or parts.scheme not in schemes or len(text) > MAX_URL or not text.isprintable():
        raise ValueError(f"{text[:MAX_HOST]!r}: {wanted}")
    if parts.username is not None or parts.fragment:
        raise ValueError(f"{wanted}, without user, password or fragment in it")
    if protocol is Protocol.MQTT and (parts.path.strip("/") or parts.query):
        raise ValueError(f"{wanted}, and nothing behind it: topics are the profile's")
    if port == 0:
        raise ValueError(f"{wanted}, a port of 1 to {MAX_PORT}")
    if ":" in host:
        host = f"[{host}]"
    # A port that goes without saying is not said, or a broker would be two endpoints.
    place = host if port in (None, DEFAULT_PORTS[parts.scheme]) else f"{host}:{port}"
    return urlunsplit((parts.scheme, place, parts.path.rstrip("/"), parts.query, ""))
