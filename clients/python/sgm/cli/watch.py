"""What becomes of the holds of a control request, told from devices and logs as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sgm.models import ControlLog, Device

# After its limit a hold's end is confirmed by read-back and travels through node, broker and database.
GRACE_S = 20.0


@dataclass(slots=True)
class Held:
    """One device under our hold; `ended` says how that ended, and is empty while it lasts.

    `held_at` is the value at the first look: what the request came to for this device.
    """

    tag: str
    value: float | None = None
    held_at: float | None = None
    ended: str = ""

    def told(self, *, left_s: float) -> str:
        """How it stands, for people. A value that moves is a ramp, or a fallback whose log is under way."""
        state = "held" if self.value == self.held_at else "moving"
        return self.ended or f"{state}, {left_s:.0f} s left"


@dataclass(slots=True)
class Watch:
    """The devices of one request. Times are seconds since the answer to it came.

    A node counts from when it received the request, so each hold ends a little before `limit_s`.
    """

    tags: Sequence[str]
    category: str
    value: float
    limit_s: float
    held: dict[str, Held] = field(init=False)
    _seen: set[str] | None = None

    def __post_init__(self) -> None:
        self.held = {tag: Held(tag) for tag in self.tags}

    def take_devices(self, devices: Iterable[Device]) -> list[Held]:
        """What the devices hold now; those of ours that hold another value than when last looked at."""
        changed = []
        for device in devices:
            held = self.held.get(device.device_tag)
            if held is not None and held.value != device.value:
                held.held_at = device.value if held.value is None else held.held_at
                held.value = device.value
                changed.append(held)
        return changed

    def take_logs(self, newest_first: Sequence[ControlLog]) -> list[Held]:
        """Those whose hold has ended by what the log says."""
        if self._seen is None:
            # Of what is there at the first look only that counts which stands above our own line.
            own = next((n for n, line in enumerate(newest_first) if self._is_ours(line)), 0)
            self._seen = {line.id for line in newest_first[own:]}
        ended = []
        for line in reversed(newest_first):
            if line.id in self._seen:
                continue
            self._seen.add(line.id)
            for tag in line.result.updated:
                held = self.held.get(tag)
                if held is not None and not held.ended:
                    held.ended = _how(line)
                    ended.append(held)
        return ended

    def is_over(self, *, after_s: float) -> bool:
        return all(held.ended for held in self.held.values()) or after_s > self.limit_s + GRACE_S

    @property
    def open(self) -> list[Held]:
        return [held for held in self.held.values() if not held.ended]

    def left_s(self, *, after_s: float) -> float:
        return max(0.0, self.limit_s - after_s)

    def _is_ours(self, line: ControlLog) -> bool:
        return (
            not line.watchdog
            and line.category == self.category
            and line.value == self.value
            and set(self.tags) <= line.tags
        )


def _how(line: ControlLog) -> str:
    if line.watchdog:
        return "lapsed"
    return "released" if line.value is None else "taken over by another request"
