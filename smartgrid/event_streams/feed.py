"""From Redis to the hub: one reader a process, marks, what was missed, and who may still see what."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import structlog
from django.conf import settings
from django.db import DatabaseError, InterfaceError, close_old_connections

from sites_app.selectors import sites_by_token
from smartgrid.api.fields import timestamp
from smartgrid.event_streams.hub import Hub, Listener, Notice, Place, frame, place_read, place_text
from smartgrid.events import BODY, GAP, KIND, MARK, SITE, STREAM
from smartgrid.live import LiveUnavailable, StreamEntry, StreamReader

log = structlog.stdlib.get_logger(__name__)

_KIND, _SITE, _BODY = KIND.encode(), SITE.encode(), BODY.encode()
# Between two reads listeners are sent what waits for them: few at once let a burst pass through.
READ_AT_ONCE = 200
MISSED_AT_ONCE = 1000
_BEGINNING = "0-0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds. Between two comments to a listener of whom nothing else is heard; for which one read waits;
    until Redis is asked again; between two looks at what tokens open, and for how long the last answer is
    good; between two marks, and at least; between two looks at the clock.
    """

    keep_alive_s: float = 15.0
    read_s: float = 5.0
    retry_s: float = 0.5
    scopes_s: float = 5.0
    scopes_good_for_s: float = 60.0
    marks_s: float = 60.0
    mark_at_most_every_s: float = 5.0
    expiries_s: float = 1.0


class Feed:
    """What keeps the hub supplied. `is_fed`: whether Redis answers, without which no stream is opened."""

    def __init__(self, hub: Hub, *, timing: Timing, now: Callable[[], float] = time.time) -> None:
        self._hub = hub
        self._timing = timing
        self._now = now
        self._reader = StreamReader(STREAM)
        self._mark_wanted = asyncio.Event()
        self._scopes_known_at = time.monotonic()
        self._replays = asyncio.Semaphore(8)
        self._read_up_to: str | None = None
        self._must_check = False
        self._checked_at = 0.0
        self._is_stopping = False
        self.is_fed = False

    def stop(self) -> None:
        """Let `run` come to its end; to be cancelled then, for it may be waiting.

        A library that is cancelled while it cleans up may report its own error instead, and go on.
        """
        self._is_stopping = True

    async def run(self) -> None:
        """Goes on until it is stopped; whatever goes wrong is logged and tried again."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._again_and_again(self._read, every_s=0), name="read")
                tasks.create_task(self._again_and_again(self._mark, every_s=0), name="mark")
                tasks.create_task(
                    self._again_and_again(self._look_at_scopes, every_s=self._timing.scopes_s), name="scopes"
                )
                tasks.create_task(
                    self._again_and_again(self._look_at_clock, every_s=self._timing.expiries_s), name="clock"
                )
        finally:
            await self._reader.aclose()

    async def _again_and_again(self, turn: Callable[[], Awaitable[None]], *, every_s: float) -> None:
        while not self._is_stopping:
            await asyncio.sleep(every_s)
            try:
                await turn()
            except Exception:  # the top of this process: what is odd once must not silence it
                log.exception("events_turn_failed")
                await asyncio.sleep(self._timing.retry_s)

    # --- the stream -----------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            if self._read_up_to is None:
                await self._begin()
            elif not await self._is_whole():
                await self._begin(lost="events were lost")
            assert self._read_up_to is not None
            if not self.is_fed:
                # It has just answered: on a quiet night nobody need wait for the next event to be let in.
                log.info("events_read", place=self._read_up_to)
                self.is_fed = True
            entries = await self._reader.after(
                self._read_up_to, count=READ_AT_ONCE, wait_s=self._timing.read_s
            )
        except LiveUnavailable as error:
            if self.is_fed:
                log.warning("events_not_read", error=error.detail)
            self.is_fed = False
            self._must_check = True
            await asyncio.sleep(self._timing.retry_s)
            return
        for entry in entries:
            self._hand_out(entry)
            self._read_up_to = entry.id
        # What is read slower than it is trimmed is noticed by asking for what was read last.
        self._must_check = len(entries) == READ_AT_ONCE

    async def _begin(self, *, lost: str = "") -> None:
        newest = await self._reader.newest()
        self._read_up_to = newest.id if newest is not None else _BEGINNING
        place = place_read(self._read_up_to) or (0, 0)
        if lost:
            log.warning("events_lost", place=self._read_up_to)
            self._hub.lose(lost, place=place)
            self._mark_wanted.set()
        self._hub.begin(place, mark=None if newest is None else _mark_of(newest))
        self._must_check = False

    async def _is_whole(self) -> bool:
        """Tell whether nothing can be missing behind what was read last: it is still there.

        Asked after an interruption, and now and then: Redis may be emptied under a living connection.
        """
        assert self._read_up_to is not None
        now = time.monotonic()
        if not self._must_check and now - self._checked_at < self._timing.read_s:
            return True
        if self._read_up_to == _BEGINNING:
            # Of an empty stream nothing could have been read; while we were away it may have been filled.
            return not self._must_check
        self._checked_at = now
        return await self._reader.entry(self._read_up_to) is not None

    def _hand_out(self, entry: StreamEntry) -> None:
        kind = entry.fields.get(_KIND, b"").decode(errors="replace")
        place = place_read(entry.id)
        assert place is not None
        if kind == GAP:
            self._hub.lose("events were lost", place=place)
            self._mark_wanted.set()
            return
        notice = _notice(entry, kind, place)
        if notice is None:
            log.error("event_not_understood", place=entry.id)
        elif kind == MARK:
            self._hub.mark(notice)
        else:
            self._hub.publish(notice)

    # --- places to resume from ------------------------------------------------------------------------------

    def mark_soon(self) -> None:
        """Somebody has no place to resume from: let there be one within some seconds."""
        self._mark_wanted.set()

    async def _mark(self) -> None:
        """Write a mark once a minute, and when one is wanted; none where the newest entry is one."""
        try:
            async with asyncio.timeout(self._timing.marks_s):
                await self._mark_wanted.wait()
        except TimeoutError:
            pass
        if not self.is_fed:
            await asyncio.sleep(self._timing.retry_s)
            return
        self._mark_wanted.clear()
        if self._hub.newest_mark is not None:
            return
        at = timestamp(datetime.fromtimestamp(self._now(), UTC))
        try:
            await self._reader.append(
                {KIND: MARK, SITE: "", BODY: msgspec.json.encode({"at": at})}, kept=settings.SGM_EVENTS_KEPT
            )
        except LiveUnavailable:
            # The reader says so.
            self._mark_wanted.set()
        await asyncio.sleep(self._timing.mark_at_most_every_s)

    async def place_of(self, listener: Listener) -> Place | None:
        """Where this listener may go on: its last event, if that is still there and one it may see.

        `LiveUnavailable` where that cannot be told.
        """
        place = place_read(listener.terms.last_event_id)
        if place is None or max(place) >= 2**63:
            return None
        entry = await self._reader.entry(place_text(place))
        if entry is None:
            return None
        kind = entry.fields.get(_KIND, b"").decode(errors="replace")
        site_id = entry.fields.get(_SITE, b"").decode(errors="replace")
        is_its = kind == MARK or listener.sites is None or site_id in listener.sites
        return place if is_its and kind != GAP else None

    async def missed(self, listener: Listener, *, after: Place, until: Place) -> AsyncIterator[bytes]:
        """What happened between two places, as far as this listener may see it now, piece by piece.

        `LiveUnavailable` where Redis goes away meanwhile.
        """
        at = place_text(after)
        while True:
            async with self._replays:
                entries = await self._reader.between(at, place_text(until), count=MISSED_AT_ONCE)
            yield b"".join(self._frames(entries, listener))
            if len(entries) < MISSED_AT_ONCE:
                return
            at = entries[-1].id

    def _frames(self, entries: Iterable[StreamEntry], listener: Listener) -> list[bytes]:
        frames = []
        for entry in entries:
            kind = entry.fields.get(_KIND, b"").decode(errors="replace")
            site_id = entry.fields.get(_SITE, b"").decode(errors="replace")
            place = place_read(entry.id)
            assert place is not None
            if kind == GAP:
                frames.append(frame(event="reset", data=b'{"reason":"events were lost"}'))
                listener.told = None
            elif listener.may_see(kind, site_id) and (notice := _notice(entry, kind, place)) is not None:
                frames.append(notice.frame)
                listener.told = place
        return frames

    # --- who may still listen -------------------------------------------------------------------------------

    async def _look_at_scopes(self) -> None:
        """Bring all listeners up to what their tokens open now: one query, however many they are."""
        tokens = {listener.terms.token_id for listener in self._hub} - {None}
        wanted = {token_id for token_id in tokens if token_id is not None}
        now = time.monotonic()
        if not wanted:
            self._scopes_known_at = now
            return
        try:
            opened = await asyncio.to_thread(_sites_by_token, wanted)
        except (DatabaseError, InterfaceError) as error:
            log.warning("scopes_not_known", error=str(error))
            if now - self._scopes_known_at >= self._timing.scopes_good_for_s:
                self._end_tokens(wanted, "what the token opens is not known")
            return
        self._scopes_known_at = now
        for listener in self._hub:
            token_id = listener.terms.token_id
            if token_id is None or token_id not in wanted:
                continue
            sites = opened.get(token_id)
            if sites is None:
                listener.end("the management token is gone")
            elif listener.terms.site_id is None:
                self._hub.rescope(listener, sites)
            elif listener.terms.site_id not in sites:
                listener.end("the management token opens the site no longer")

    def _end_tokens(self, tokens: set[UUID], why: str) -> None:
        for listener in self._hub:
            if listener.terms.token_id in tokens:
                listener.end(why)

    async def _look_at_clock(self) -> None:
        now = self._now()
        for listener in self._hub:
            if now >= listener.terms.expires_at:
                listener.end("the bearer token has expired")


def _notice(entry: StreamEntry, kind: str, place: Place) -> Notice | None:
    """What to send of an entry; None for one that cannot be sent as it is."""
    body = entry.fields.get(_BODY, b"")
    if not body or not kind.isidentifier() or b"\n" in body or b"\r" in body:
        return None
    site_id = entry.fields.get(_SITE, b"").decode(errors="replace")
    return Notice(place, kind, site_id, frame(event=kind, data=body, place=place))


def _mark_of(entry: StreamEntry) -> Notice | None:
    """The notice of an entry that is a mark, else None."""
    place = place_read(entry.id)
    assert place is not None
    return _notice(entry, MARK, place) if entry.fields.get(_KIND) == MARK.encode() else None


def _sites_by_token(tokens: set[UUID]) -> dict[UUID, frozenset[str]]:
    """In a thread, whose connection may have died meanwhile."""
    close_old_connections()
    try:
        opened = sites_by_token(tokens)
    finally:
        close_old_connections()
    return {token_id: frozenset(map(str, sites)) for token_id, sites in opened.items()}
