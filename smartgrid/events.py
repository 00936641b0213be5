"""What happens, for those who listen: a Redis stream that services write to behind their commit (ADR 0027).

Nothing of control depends on it. An event may come twice; that some were lost is itself told.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
import structlog
from django.conf import settings
from django.db import transaction

from smartgrid import live

log = structlog.stdlib.get_logger(__name__)

STREAM = "sgm:events"
# Fields of an entry of the stream.
KIND, SITE, BODY = "k", "s", "d"
# Entries that belong to no site: a place to resume from, and the notice that something was not written.
MARK, GAP = "mark", "gap"

# Seconds for which the first of several events waits for the others, so that they share a round trip.
GATHER_S = 0.05
AT_ONCE = 500
# As many wait for Redis; more are dropped.
WAITING_MAX = 10_000
# That some were dropped is tried to be told this often.
TELL_AGAIN_S = 1.0
# At the end of a process what waits gets so long to leave.
FAREWELL_S = 1.0


class Kind(StrEnum):
    """What an event is about; the names by which listeners choose."""

    ALARM = "alarm"
    CONTROL_LOG = "control_log"
    DEVICE = "device"
    LOOP = "loop"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at a site; `body` as listeners get it, of JSON's types and UUIDs, or what makes
    it of things that do not change any more: that is then not the request's to wait for.
    """

    kind: Kind
    site_id: UUID
    body: Mapping[str, Any] | Callable[[], Mapping[str, Any]]


def events_publish(events: Iterable[Event]) -> None:
    """Tell listeners of these, in this order, once the present transaction has committed; else never.

    Costs the caller some microseconds and cannot fail: a thread of this process sends them, and drops them
    while Redis does not answer.
    """
    if settings.SGM_EVENTS_KEPT and (several := list(events)):
        transaction.on_commit(partial(_publisher.put, several), robust=True)


def events_flush(*, within_s: float) -> bool:
    """Wait until all that was committed so far is sent or dropped; False where the time was too short."""
    return _publisher.flush(within_s=within_s)


class Publisher:
    """A bounded queue, and the thread that empties it into the stream. Both begin with the first event."""

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque()
        self._changing = threading.Lock()
        self._filled = threading.Event()
        self._hurry = threading.Event()
        self._empty = threading.Event()
        self._empty.set()
        self._thread: threading.Thread | None = None
        # Dropped since the stream was last told.
        self._lost = 0
        self._is_away = False

    def put(self, events: list[Event]) -> None:
        with self._changing:
            room = WAITING_MAX - len(self._waiting)
            self._waiting.extend(events[:room])
            self._lost += max(0, len(events) - room)
            if self._empty.is_set():
                self._empty.clear()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="events", daemon=True)
                self._thread.start()
        # To wake a thread that is awake would cost as much.
        if not self._filled.is_set():
            self._filled.set()

    def flush(self, *, within_s: float) -> bool:
        self._hurry.set()
        try:
            return self._empty.wait(within_s)
        finally:
            self._hurry.clear()

    def _run(self) -> None:
        while True:
            # That something was lost is told also where nothing more happens.
            if not self._filled.wait(TELL_AGAIN_S if self._lost else None):
                self._send([])
                continue
            self._hurry.wait(GATHER_S)
            self._filled.clear()
            while batch := self._take():
                self._send(batch)

    def _take(self) -> list[Event]:
        with self._changing:
            batch = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
            if not batch:
                self._empty.set()
        return batch

    def _send(self, batch: list[Event]) -> None:
        lost = self._lost
        try:
            entries = [_entry(event) for event in batch]
            if lost:
                # In front of what comes now: whoever reads on has been told.
                entries.insert(0, {KIND: GAP, SITE: "", BODY: msgspec.json.encode({"events": lost})})
            live.stream_append(STREAM, entries, kept=settings.SGM_EVENTS_KEPT)
        except live.LiveUnavailable as error:
            self._drop(batch, error.detail)
        except Exception:  # the top of this thread: an odd event must not silence all that follow
            log.exception("events_refused", events=len(batch))
            self._drop(batch, "")
        else:
            if self._is_away:
                self._is_away = False
                log.warning("events_are_kept_again", dropped=lost)
            with self._changing:
                self._lost -= lost

    def _drop(self, batch: list[Event], why: str) -> None:
        with self._changing:
            self._lost += len(batch)
        if not self._is_away and why:
            self._is_away = True
            log.warning("events_dropped", error=why)


def _entry(event: Event) -> dict[str, str | bytes]:
    body = event.body() if callable(event.body) else event.body
    return {KIND: event.kind.value, SITE: str(event.site_id), BODY: msgspec.json.encode(body)}


_publisher = Publisher()


def _begin_anew() -> None:
    """A child has none of its parent's threads, and what waits is its parent's to send."""
    global _publisher  # noqa: PLW0603 - one a process, by its nature
    _publisher = Publisher()


os.register_at_fork(after_in_child=_begin_anew)
atexit.register(lambda: events_flush(within_s=FAREWELL_S))
