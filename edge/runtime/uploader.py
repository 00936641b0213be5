"""How a stream of the outbox gets to central: after live data, at a bounded pace, in order, batch by batch.

What central acknowledged is deleted, exactly that, and nothing before. Without an acknowledgement the same
entries go out again, ever more slowly.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Protocol, cast

import structlog

from edge.runtime.clock import Clock
from edge.runtime.database import StoreFailed
from edge.runtime.outbox import Batch, Outbox
from edge.wire import codec
from edge.wire.messages import LogBatch, LogEntry, Stream

log = structlog.get_logger()

# How long to leave a disk alone that could not be read.
AFTER_STORE_FAILED_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast entries leave; the rates are of all streams together.

    A batch is small, so that a live answer behind it on a slow line waits for milliseconds. `gather_s`: live
    data goes first, and what belongs together goes together. `jitter_s`: thousands of nodes come back
    together; a backlog found at the start of a session waits for a random part of this.
    """

    entries_per_s: float = 500.0
    bytes_per_s: float = 256 * 1024
    burst_s: float = 1.0
    batch_entries: int = 50
    batch_bytes: int = 16 * 1024
    gather_s: float = 0.4
    jitter_s: float = 3.0
    ack_wait_s: float = 10.0
    slowest_control_s: float = 60.0
    slowest_telemetry_s: float = 300.0


PACE = Pace()


class Publisher(Protocol):
    """As much of a session as an upload needs."""

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish at QoS 1; `LinkDown` where the session is gone."""


class Throttle:
    """A token bucket for entries and bytes: `burst_s` worth of both may leave at once."""

    def __init__(self, pace: Pace, clock: Clock) -> None:
        self._pace = pace
        self._clock = clock
        self._paid_until = 0.0

    def take(self, batch: Batch) -> float:
        """Pay for a batch; the seconds to wait before it may leave."""
        pace = self._pace
        now = self._clock.boottime_s()
        cost_s = max(len(batch.entries) / pace.entries_per_s, batch.size / pace.bytes_per_s)
        self._paid_until = max(self._paid_until, now - pace.burst_s) + cost_s
        return max(0.0, self._paid_until - now)


class Uploader:
    """One stream of a node, over all its sessions."""

    def __init__(
        self,
        stream: Stream,
        *,
        outbox: Outbox,
        topic: str,
        clock: Clock,
        pace: Pace,
        throttle: Throttle,
        before: Uploader | None = None,
    ) -> None:
        """`before`: the stream that goes first; while it has entries, nothing of this one leaves."""
        self._stream = stream
        self._outbox = outbox
        self._topic = topic
        self._clock = clock
        self._pace = pace
        self._throttle = throttle
        self._before = before
        is_control = stream is Stream.CONTROL
        self._slowest_s = pace.slowest_control_s if is_control else pace.slowest_telemetry_s
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._acknowledged = asyncio.Event()
        # All rows of the outbox, whatever store their numbers on the wire are of.
        self._awaited = 0
        self._sent_last = 0
        self._acknowledged_last = 0
        self._told_old = False
        self._began_anew = False

    def appended(self) -> None:
        """The stream has a new entry."""
        self._idle.clear()
        self._wanted.set()

    async def idle(self) -> None:
        """Wait until nothing of this stream is left to send."""
        await self._idle.wait()

    async def run(self, session: Publisher) -> None:
        """Drain the stream for as long as the session lasts; `LinkDown` ends it."""
        self._wanted.clear()
        if not self._outbox_is_empty():
            self._idle.clear()
            # Cut short by a fresh entry, which does not wait for the sake of a backlog.
            await self._clock.wait(self._wanted, random.uniform(0.0, self._pace.jitter_s))
            self._wanted.set()
        else:
            self._idle.set()
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._clock.sleep(self._pace.gather_s)
            await self._drain(session)

    def _outbox_is_empty(self) -> bool:
        try:
            return self._outbox.is_empty(self._stream)
        except StoreFailed:
            return False

    async def _drain(self, session: Publisher) -> None:
        wait_s = self._pace.ack_wait_s
        while True:
            if self._before is not None:
                await self._before.idle()
            try:
                batch = self._outbox.batch(
                    self._stream, max_entries=self._pace.batch_entries, max_bytes=self._pace.batch_bytes
                )
            except StoreFailed as error:
                log.warning("outbox cannot be read", stream=self._stream.value, error=str(error))
                await self._clock.sleep(AFTER_STORE_FAILED_S)
                continue
            if batch is None:
                if not self._wanted.is_set():
                    self._idle.set()
                return
            if await self._send(session, batch, wait_s=wait_s):
                wait_s = self._pace.ack_wait_s
                continue
            # Central is down, or does not take this stream.
            wait_s = min(wait_s * 2, self._slowest_s)

    async def _send(self, session: Publisher, batch: Batch, *, wait_s: float) -> bool:
        """Send a batch and wait for its acknowledgement; whether it came."""
        await self._clock.sleep(self._throttle.take(batch))
        self._acknowledged.clear()
        self._awaited = batch.last_row
        self._sent_last = max(self._sent_last, batch.last_row)
        await session.publish(self._topic, _encoded(batch, self._stream))
        # (The event may be set by time as well.)
        await self._clock.wait(self._acknowledged, wait_s)
        return self._acknowledged_last >= batch.last_row

    def acknowledge(self, store: str, last: int) -> None:
        """Central has committed everything of this store up to `last`."""
        try:
            found = self._outbox.find(self._stream, store=store, last=last)
            if found is None:
                return
            if found.is_ahead and not self._told_old:
                log.error(
                    "this disk is older than what central has of it", stream=self._stream.value, last=last
                )
                self._told_old = True
            if found.row > self._sent_last and store == self._outbox.store_id:
                # This machine was put back while it ran: under these numbers central has what it sent in
                # another life. What was not acknowledged in this one goes again under another name, and
                # central knows by its content what it has of that (ADR 0017).
                log.error("central has what was not sent", stream=self._stream.value, last=last)
                self._outbox.begin_anew()
                if not self._began_anew:
                    # At once; but not again and again, where it is central that is wrong.
                    self._began_anew = True
                    self._acknowledged.set()
                return
            # What was never sent cannot have been committed, whatever a restored central thinks.
            last = min(found.row, self._sent_last)
            while self._outbox.acknowledged(self._stream, last=last):
                # A slice at a time; one batch in flight is at most one slice.
                continue
        except StoreFailed as error:
            log.warning("outbox keeps what is acknowledged", stream=self._stream.value, error=str(error))
        self._acknowledged_last = max(self._acknowledged_last, last)
        if last >= self._awaited:
            self._acknowledged.set()


def _encoded(batch: Batch, stream: Stream) -> bytes:
    # Each entry is JSON already: they are joined, for decoding and encoding again would hold up the loop.
    entries = cast("list[LogEntry]", [codec.raw(entry) for entry in batch.entries])
    return codec.encode(
        LogBatch(stream=stream.value, store=batch.store, first=batch.first, last=batch.last, entries=entries)
    )
