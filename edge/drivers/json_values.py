"""What devices say in JSON, and what they are told: from bytes off the wire to values, and back.

Whatever arrives, the outcome is a value, "no value" or `ReadingInvalid`: a device that talks nonsense must
not bring down those beside it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from edge.drivers.errors import ReadingInvalid
from edge.profiles import payloads
from edge.profiles.payloads import JsonPoint, Missing
from edge.profiles.points import Value

# No state of a device is longer; what is, costs memory and the time of those beside it.
MAX_PAYLOAD = 64 * 1024
MAX_SHOWN = 200


def parsed(payload: bytes, *, what: str) -> object:
    """The JSON document that these bytes are; else `ReadingInvalid`, which names `what` they are of."""
    if len(payload) > MAX_PAYLOAD:
        raise ReadingInvalid(f"{what}: {len(payload)} bytes, at most {MAX_PAYLOAD} are read")
    try:
        # It takes no NaN and no Infinity, which JSON does not have.
        return msgspec.json.decode(payload)
    except RecursionError as error:
        raise ReadingInvalid(f"{what}: nested too deeply") from error
    except ValueError as error:
        # (`msgspec.DecodeError` and `UnicodeDecodeError` among them.)
        raise ReadingInvalid(f"{what}: not JSON, {error}; it begins {shown_bytes(payload)}") from error


def value_in(point: JsonPoint, document: object, *, what: str) -> Value:
    """A point's value in the document; None where the device has none, or leaves it out.

    `ReadingInvalid` where something stands there that cannot be its value.
    """
    try:
        return payloads.value_of(point, payloads.find(document, point.path))
    except Missing:
        return None
    except ValueError as error:
        place = f" at {point.path}" if point.path else ""
        raise ReadingInvalid(f"{what}: {point.name}{place}: {error}") from error


def value_of_payload(point: JsonPoint, payload: bytes, *, what: str) -> Value:
    """A point's value where no path leads to it: the payload is it, as a text or as JSON."""
    if len(payload) > MAX_PAYLOAD:
        raise ReadingInvalid(f"{what}: {len(payload)} bytes, at most {MAX_PAYLOAD} are read")
    try:
        text = payload.decode().strip()
    except UnicodeDecodeError as error:
        raise ReadingInvalid(f"{what}: not UTF-8, it begins {shown_bytes(payload)}") from error
    if len(text) > 1 and text.startswith('"') and text.endswith('"'):
        return value_in(point, parsed(payload, what=what), what=what)
    if text in ("", "null"):
        return None
    if text in ("true", "false") and not point.is_text and not point.codes:
        return value_in(point, text == "true", what=what)
    return value_in(point, text, what=what)


@dataclass(frozen=True, slots=True)
class Told:
    """What a device is told, and the id by which it answers."""

    id: str
    body: object

    @property
    def payload(self) -> bytes:
        """A text as it is, everything else as JSON."""
        if isinstance(self.body, str):
            return self.body.encode()
        return msgspec.json.encode(self.body)


def _utc_now() -> datetime:
    return datetime.now(UTC)


def told(
    point: JsonPoint,
    template: object,
    value: Value,
    *,
    now: Callable[[], datetime] = _utc_now,
) -> Told:
    """Fill the point's template with a value; `ValueError` where the point cannot say it."""
    identifier = str(uuid.uuid4())
    words = {
        "value": payloads.raw_of(point, value),
        "id": identifier,
        "now": now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "valid_s": None if point.valid_s is None else payloads.whole(point.valid_s),
    }
    return Told(identifier, payloads.filled(template, words))


def shown_bytes(payload: bytes) -> str:
    """The beginning of what arrived, as people can read it."""
    head = payload[:40]
    return repr(head.decode(errors="replace")) + ("..." if len(payload) > len(head) else "")


def shown_text(raw: object) -> str:
    """A device's own words, short enough and printable."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(raw))
    return text[:MAX_SHOWN].strip()
