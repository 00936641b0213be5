"""Who may ask a device for what, and how a direct request is admitted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Source(IntEnum):
    """The slots of the priority array, the lowest number first. Slot 0 is safety: bounds, not a wish."""

    DIRECT = 1
    CLOSED_LOOP = 2
    SCHEDULE = 3
    DEFAULT = 4

    @property
    def label(self) -> str:
        return self.name.lower()


class Lifetime(StrEnum):
    """How often a value is written; never how long it is owed."""

    SINGULAR = "singular"
    CYCLIC = "cyclic"


class WriteClass(StrEnum):
    """What a write costs the register: `persistent` and `unknown` ones wear."""

    VOLATILE = "volatile"
    PERSISTENT = "persistent"
    UNKNOWN = "unknown"


class Refusal(StrEnum):
    """Why a direct request was not admitted. The words are those of the wire."""

    SUPERSEDED = "superseded"
    RANGE = "range"
    EXCLUDED = "excluded"
    OWNED_BY = "owned_by"
    WEAR = "wear"


# All of central's requests in order: a restored central raises the epoch and may start its sequence anew.
Order = tuple[int, int]
BEFORE_ALL: Order = (0, 0)


@dataclass(frozen=True, slots=True)
class DirectRequest:
    """One device's share of a command: hold `value` for `hold_s` from arrival."""

    order: Order
    request_id: str
    value: float
    hold_s: float


@dataclass(frozen=True, slots=True)
class Hold:
    """A direct request in force, until `ends_boottime_s` on this boot's clock."""

    order: Order
    request_id: str
    category: str
    value: float
    received_boottime_s: float
    ends_boottime_s: float
