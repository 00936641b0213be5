"""Keeps a node's judgement of its clock: on disk, in the control log, and before central's eyes.

The judgement itself is `edge.core.clock`. A ping of central's is one half of an exchange of timestamps; a
later one closes it with the time at which the answer arrived there.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from edge.core.clock import WARN_ABOVE_S, Exchange, Reference, Standing, Trust
from edge.runtime.alarms import Alarms
from edge.runtime.clock import SteeredClock, wall
from edge.runtime.database import StoreFailed
from edge.runtime.store import Store
from edge.wire.messages import LogEntry, PingClosing, PingCommand, Stream

log = structlog.get_logger()

# Pings whose answer's arrival is still to be told.
OPEN_PINGS = 8
# A confirmation kept on disk is renewed this often: until then it is only less certain by 45 ms.
KEEP_EVERY_S = 900.0
KEEP_BEYOND_S = 1.0
UNSYNCED = "nothing confirms this node's clock; after 15 min schedules give way to defaults"
HOLDOVER = f"nothing has confirmed this node's clock for days; it may be more than {WARN_ABOVE_S:g} s wrong"


class Timekeeper:
    """One node's clock, as central and the next process hear of it."""

    def __init__(
        self, *, clock: SteeredClock, store: Store, alarms: Alarms, logged: Callable[[], None]
    ) -> None:
        """`logged`: the control stream has a new entry."""
        self._clock = clock
        self._store = store
        self._alarms = alarms
        self._logged = logged
        # id -> when it was sent, received and answered; None where it came twice, and measures nothing.
        self._open: dict[str, tuple[float, float, float] | None] = {}
        self._kept = store.clock(boot=clock.boot_id)
        self._told = Trust.TRUSTED

    @property
    def standing(self) -> Standing:
        return self._clock.standing()

    def tick(self) -> None:
        """Tell a change of standing, and keep what confirmed the clock. To be called every second or so."""
        found = self.standing
        if found.trust is not self._told:
            self._tell(found)
        if found.trust is Trust.UNSYNCED:
            self._alarms.set("clock_unsynced", UNSYNCED)
        else:
            self._alarms.clear("clock_unsynced")
        if found.is_worth_a_warning:
            self._alarms.set("clock_holdover", HOLDOVER)
        else:
            self._alarms.clear("clock_holdover")
        self._keep(self._clock.reference)

    def _tell(self, found: Standing) -> None:
        say = log.warning if found.trust is Trust.UNSYNCED else log.info
        say(
            "standing of the clock changed",
            clock=found.trust.value,
            was=self._told.value,
            bound_s=found.bound_s,
        )
        self._told = found.trust
        reason = found.trust.value
        if found.bound_s is not None:
            reason += f", within {found.bound_s:.3g} s"
        now = wall(self._clock.now().utc)
        self._store.append(Stream.CONTROL, LogEntry(seq=0, at=now, kind="clock", reason=reason))
        self._logged()

    def _keep(self, reference: Reference | None) -> None:
        kept = self._kept
        if reference is None or reference == kept:
            return
        if (
            kept is not None
            and abs(reference.base_s - kept.base_s) < KEEP_BEYOND_S
            and abs(reference.wall_base_s - kept.wall_base_s) < KEEP_BEYOND_S
            and reference.at_boottime_s - kept.at_boottime_s < KEEP_EVERY_S
        ):
            return
        try:
            self._store.keep_clock(reference, boot=self._clock.boot_id)
        except StoreFailed:
            # The next tick tries again.
            return
        self._kept = reference

    # --- exchanges ----------------------------------------------------------------------------------

    def pinged(self, ping: PingCommand, *, received_s: float, answered_s: float) -> None:
        """A ping came and was answered, at these moments of the boot-time clock."""
        sent_s = _seconds(ping.sent_wall)
        if ping.id in self._open:
            # Delivered twice: nobody knows which of its answers central heard first.
            self._open[ping.id] = None
        elif sent_s is not None:
            self._open[ping.id] = (sent_s, received_s, answered_s)
        while len(self._open) > OPEN_PINGS:
            del self._open[next(iter(self._open))]
        if ping.closing is not None:
            self._close(ping.closing)

    def _close(self, closing: PingClosing) -> None:
        times = self._open.get(closing.id)
        heard_s = _seconds(closing.heard_wall)
        if times is None or heard_s is None:
            return
        # Once: a closing that comes again must not agree with itself.
        self._open[closing.id] = None
        sent_s, received_s, answered_s = times
        self._clock.exchanged(Exchange(sent_s, received_s, answered_s, heard_s))
        self.tick()


def _seconds(text: str) -> float | None:
    """A moment of the wire in seconds; None where it is none."""
    try:
        moment = datetime.fromisoformat(text)
        return None if moment.tzinfo is None else moment.astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        return None
