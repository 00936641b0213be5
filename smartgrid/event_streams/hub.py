"""Who listens, to what, and what waits for each: in memory, on one event loop, without I/O or a clock."""

from __future__ import annotations

import asyncio
import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from uuid import UUID

import msgspec

# Where an entry stands in the stream: milliseconds of Redis's clock, and a number within them.
Place = tuple[int, int]
_PLACE = re.compile(r"(\d{1,19})-(\d{1,19})")

# What may wait for one listener: a burst of a whole fleet. Frames are shared by all who are sent them.
FRAMES_MAX = 10_000
BYTES_MAX = 4 * 1024 * 1024
# What it is given at once.
GIVEN_AT_ONCE = 16 * 1024
# To whom nothing was told for so long is told a new place.
PLACE_OLD_MS = 55_000


def place_read(text: str) -> Place | None:
    """The place that an event's id names; None for what is no id."""
    found = _PLACE.fullmatch(text) if text.isascii() else None
    return None if found is None else (int(found[1]), int(found[2]))


def place_text(place: Place) -> str:
    return f"{place[0]}-{place[1]}"


@dataclass(frozen=True, slots=True)
class Notice:
    """One event, as it is sent. `site_id`: empty for a mark, which is nobody's."""

    place: Place
    kind: str
    site_id: str
    frame: bytes


def frame(*, event: str, data: bytes, place: Place | None = None) -> bytes:
    """A message of the stream. `data` is JSON on one line."""
    head = "" if place is None else f"id: {place_text(place)}\n"
    return b"%sevent: %s\ndata: %s\n\n" % (head.encode(), event.encode(), data)


def reset_frame(reason: str) -> bytes:
    return frame(event="reset", data=msgspec.json.encode({"reason": reason}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a listener asked for, and on whose behalf; settled before its stream opens.

    `owner`: by whom streams are counted. `token_id`: None for a root token. `site_id`: the one site it asked
    for. `sites`: those its token opened then; None: all. `expires_at`: seconds of the wall clock.
    """

    owner: str
    token_id: UUID | None
    kinds: frozenset[str]
    site_id: str | None
    sites: frozenset[str] | None
    expires_at: float
    last_event_id: str


class Listener:
    """One open stream. Its buffer is bounded: who does not read is let go, and may resume."""

    def __init__(self, terms: Terms, *, on_slow: Callable[[], None] = lambda: None) -> None:
        self.terms = terms
        self.sites = terms.sites
        # Why it ends; empty while it goes on.
        self.ended = ""
        self.woken = asyncio.Event()
        # The newest place that it needs no notice of, and the newest it was told; None: it has none to resume
        # from.
        self.place: Place = (0, 0)
        self.told: Place | None = None
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._on_slow = on_slow

    def start_at(self, mark: Notice) -> bytes:
        """Let this be its first place to resume from; what tells it so."""
        self.told = mark.place
        return mark.frame

    def may_see(self, kind: str, site_id: str) -> bool:
        return kind in self.terms.kinds and (self.sites is None or site_id in self.sites)

    def offer(self, notice: Notice) -> None:
        """Let it have this event, unless it has it already."""
        if notice.place <= self.place:
            return
        self.place = self.told = notice.place
        self.put(notice.frame)

    def put(self, piece: bytes) -> None:
        if self.ended:
            return
        if len(self._frames) >= FRAMES_MAX or self._bytes + len(piece) > BYTES_MAX:
            self._frames.clear()
            self._bytes = 0
            self.end("too slow")
            self._on_slow()
            return
        self._frames.append(piece)
        self._bytes += len(piece)
        self.woken.set()

    def take(self) -> bytes:
        """What is next to be sent; empty where nothing waits, and then `woken` will be set by what comes."""
        pieces, size = [], 0
        while self._frames and size < GIVEN_AT_ONCE:
            pieces.append(self._frames.popleft())
            size += len(pieces[-1])
        self._bytes -= size
        if not pieces and not self.ended:
            self.woken.clear()
        return b"".join(pieces)

    def end(self, why: str) -> None:
        """Let its stream come to its end once it was sent what waits; the first reason counts."""
        if not self.ended:
            self.ended = why
            self.woken.set()


class Hub:
    """All listeners of this process, by the sites they may see."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._by_site: dict[str, set[Listener]] = defaultdict(set)
        self._of_all: set[Listener] = set()
        self._by_owner: Counter[str] = Counter()
        # The newest entry that was handed out; and that itself where it is a mark.
        self.place: Place = (0, 0)
        self.newest_mark: Notice | None = None
        # Counts how often something was lost for all.
        self.losses = 0

    def __len__(self) -> int:
        return len(self._listeners)

    def __iter__(self) -> Iterator[Listener]:
        return iter(list(self._listeners))

    def count_of(self, owner: str) -> int:
        return self._by_owner[owner]

    def begin(self, place: Place, *, mark: Notice | None) -> None:
        """The stream has come to this place, where this mark is."""
        self.place, self.newest_mark = place, mark

    def join(self, listener: Listener) -> None:
        """From the next event on, hand it out to this listener too."""
        listener.place = max(listener.place, self.place)
        self._listeners.add(listener)
        self._by_owner[listener.terms.owner] += 1
        self._index(listener)

    def leave(self, listener: Listener) -> None:
        if listener not in self._listeners:
            return
        self._listeners.discard(listener)
        self._by_owner[listener.terms.owner] -= 1
        if not self._by_owner[listener.terms.owner]:
            del self._by_owner[listener.terms.owner]
        self._unindex(listener)

    def rescope(self, listener: Listener, sites: frozenset[str]) -> None:
        """Let it see these sites from now on, and no others."""
        if listener in self._listeners and sites != listener.sites:
            self._unindex(listener)
            listener.sites = sites
            self._index(listener)

    def publish(self, notice: Notice) -> None:
        """Hand an event out to all who may see it and asked for its kind."""
        self.place, self.newest_mark = notice.place, None
        for listeners in (self._by_site.get(notice.site_id, ()), self._of_all):
            for listener in listeners:
                if notice.kind in listener.terms.kinds:
                    listener.offer(notice)

    def mark(self, notice: Notice) -> None:
        """Give a new place to those whose own is old, or who have none."""
        self.begin(notice.place, mark=notice)
        for listener in self._listeners:
            if listener.told is None or notice.place[0] - listener.told[0] >= PLACE_OLD_MS:
                listener.offer(notice)

    def lose(self, reason: str, *, place: Place) -> None:
        """Tell all that something is missing, and go on from `place`, wherever that is."""
        self.losses += 1
        self.begin(place, mark=None)
        piece = reset_frame(reason)
        for listener in self._listeners:
            listener.put(piece)
            # Ids may begin anew; and what it was told before is no place to resume from.
            listener.place, listener.told = place, None

    def _index(self, listener: Listener) -> None:
        for listeners in self._places(listener.sites):
            listeners.add(listener)

    def _unindex(self, listener: Listener) -> None:
        for listeners in self._places(listener.sites):
            listeners.discard(listener)
        for site_id in listener.sites or ():
            if not self._by_site[site_id]:
                del self._by_site[site_id]

    def _places(self, sites: Collection[str] | None) -> list[set[Listener]]:
        return [self._of_all] if sites is None else [self._by_site[site_id] for site_id in sites]
