"""What of the readings goes to central, and when.

While there is a link: the last value of each interval of a device (`telemetry_s`). Without one: the last
value of each minute, kept in the outbox. A reading goes once; one older than 15 minutes, one of a device that
is lost, and one that is no number are not told at all. What a closed loop has to say goes with its meter's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice

from edge.core.instant import Instant
from edge.profiles.check import UNIT_BY_SUFFIX
from edge.runtime.clock import wall
from edge.runtime.config import Plan
from edge.runtime.cycle import Reading, Unit
from edge.runtime.loops import OUTPUT, SETPOINT
from edge.wire.messages import LogEntry, TelemetryPoint

FASTEST_S = 1.0
KEEP_EVERY_S = 60.0
TOO_OLD_S = 900.0
# Points in one entry of the outbox: some 20 kB.
POINTS_PER_ENTRY = 200
# Readings of a meter that it does not tell itself: there is news of them while it is lost, too.
TOLD_BY_LOOPS = frozenset({SETPOINT, OUTPUT})


class Telemetry:
    """Remembers what central was told of each device, or has waiting for it on disk."""

    def __init__(self) -> None:
        self._looked_at: dict[str, float] = {}
        self._told: dict[tuple[str, str], float] = {}

    def due(self, units: Mapping[str, Unit], plan: Plan | None, now: Instant) -> Iterator[TelemetryPoint]:
        """The readings of those devices whose interval has passed; `units` may change while this runs."""
        devices = {} if plan is None else plan.devices
        intervals = {tag: devices[tag].config.telemetry_s for tag in units if tag in devices}
        return self._take(units, intervals, plan, now)

    def kept(self, units: Mapping[str, Unit], plan: Plan | None, now: Instant) -> Iterator[LogEntry]:
        """Every device's readings of this minute, as entries of the telemetry stream."""
        points = self._take(units, dict.fromkeys(units, KEEP_EVERY_S), plan, now)
        while part := tuple(islice(points, POINTS_PER_ENTRY)):
            yield LogEntry(seq=0, at=wall(now.utc), kind="points", points=part)

    def forget(self, units: Mapping[str, Unit]) -> None:
        """Let go of what is remembered of devices that are no longer there."""
        self._looked_at = {tag: at for tag, at in self._looked_at.items() if tag in units}
        self._told = {place: at for place, at in self._told.items() if place[0] in units}

    def _take(
        self, units: Mapping[str, Unit], intervals: Mapping[str, float], plan: Plan | None, now: Instant
    ) -> Iterator[TelemetryPoint]:
        for tag, interval_s in intervals.items():
            unit = units.get(tag)
            looked_at = self._looked_at.get(tag, -math.inf)
            # A tick late by a hair must not cost a whole tick.
            if unit is None or now.boottime_s - looked_at < max(FASTEST_S, interval_s) - FASTEST_S / 2:
                continue
            if not unit.readings:
                continue
            self._looked_at[tag] = now.boottime_s
            planned = None if plan is None else plan.devices.get(tag)
            units_of = {} if planned is None else planned.profile.telemetry_units
            moment: Instant | None = None
            for key, reading in unit.readings.items():
                if not self._is_news(tag, key, reading, now):
                    continue
                if unit.reachable is False and key not in TOLD_BY_LOOPS:
                    continue
                assert reading.value is not None
                self._told[tag, key] = reading.at.boottime_s
                if reading.at is not moment:
                    # Nearly always one moment for all of a poll.
                    moment, text = reading.at, wall(reading.at.utc)
                unit_name = units_of.get(key) or unit_by_suffix(key)
                yield TelemetryPoint(t=text, key=key, value=reading.value, unit=unit_name, device=tag)

    def _is_news(self, tag: str, key: str, reading: Reading, now: Instant) -> bool:
        if reading.value is None or not math.isfinite(reading.value):
            return False
        at = reading.at.boottime_s
        return now.boottime_s - at <= TOO_OLD_S and at > self._told.get((tag, key), -math.inf)


def unit_by_suffix(key: str) -> str:
    """The unit that a canonical key says by its end; empty where it says none."""
    return next((unit for suffix, unit in UNIT_BY_SUFFIX.items() if key.endswith(suffix)), "")
