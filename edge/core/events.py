"""What a decision did, for those who log and answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edge.core.commands import Hold, Source


class LapseCause(StrEnum):
    TIME_LIMIT = "time_limit"
    REBOOT = "reboot"
    EXCLUDED = "excluded"


@dataclass(frozen=True, slots=True)
class FallbackEntered:
    """A direct hold ended without a release; the device goes to what the array now resolves to."""

    tag: str
    hold: Hold
    cause: LapseCause


@dataclass(frozen=True, slots=True)
class FallbackReached:
    """A fallback that needs no write: the device already holds `value`, confirmed.

    Where one is needed, the confirmed write tells instead (`arbitration.written`).
    """

    tag: str
    hold: Hold
    cause: LapseCause
    value: float


@dataclass(frozen=True, slots=True)
class SetpointChanged:
    """The array resolves to another value, or to the same one for another reason."""

    tag: str
    value: float
    source: Source


class RetiredBecause(StrEnum):
    BACK_AT_DEFAULT = "back at its default"
    NOT_OURS = "holds a value this node did not set"
    NEVER_WRITTEN = "never written by this node"


@dataclass(frozen=True, slots=True)
class Retired:
    """This node has left the device, which holds `value`."""

    tag: str
    because: RetiredBecause
    value: float


Event = FallbackEntered | FallbackReached | Retired | SetpointChanged
