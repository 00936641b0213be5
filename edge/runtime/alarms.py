"""What somebody should look at, for as long as it lasts; central hears of it in each report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from edge.runtime.clock import Clock, wall
from edge.wire.messages import Alarm

log = structlog.get_logger()


@dataclass(slots=True)
class Alarms:
    """The standing alarms of one node. Raising one twice, or clearing one that does not stand, is nothing."""

    clock: Clock
    changed: Callable[[], None]
    _standing: dict[tuple[str, str], Alarm] = field(default_factory=dict)

    @property
    def standing(self) -> tuple[Alarm, ...]:
        return tuple(self._standing[key] for key in sorted(self._standing))

    def set(self, code: str, detail: str, *, device: str = "") -> None:
        """Raise an alarm, or change what a standing one says."""
        before = self._standing.get((device, code))
        if before is not None and before.detail == detail:
            return
        since = before.since if before is not None else wall(self.clock.now().utc)
        self._standing[device, code] = Alarm(code=code, detail=detail, since=since, device=device)
        if before is None:
            log.error("alarm", code=code, device=device, detail=detail)
        self.changed()

    def clear(self, code: str, *, device: str = "") -> None:
        if self._standing.pop((device, code), None) is not None:
            log.info("alarm is over", code=code, device=device)
            self.changed()

    def forget_device(self, device: str) -> None:
        """A device is gone, and so is what stood of it."""
        for key in [key for key in self._standing if key[0] == device]:
            self.clear(key[1], device=device)
