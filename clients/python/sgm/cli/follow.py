"""Looking again when something happened: told by events where there are any, else every two seconds."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress

from sgm.client import Client
from sgm.errors import SgmError

POLL_S = 2.0
# With events nothing should be missed; this is for what is missed all the same.
POLL_BESIDE_EVENTS_S = 10.0


class Wakes:
    """Wakes who waits when something happens at a site, or anywhere.

    An event only says when to look: what is shown is always read from the lists. So nothing is lost where
    events come late, twice or not at all.
    """

    def __init__(self, client: Client, *, types: Sequence[str], site_id: str | None) -> None:
        """The client is the listener's own: its thread ends with the process."""
        self._woken = threading.Event()
        self.is_listening = threading.Event()
        self._client, self._types, self._site_id = client, types, site_id
        threading.Thread(target=self._listen, name="events", daemon=True).start()

    def wait(self, timeout_s: float) -> bool:
        """Wait for something to happen; tell whether it did."""
        is_woken = self._woken.wait(timeout_s)
        self._woken.clear()
        return is_woken

    @property
    def poll_s(self) -> float:
        return POLL_BESIDE_EVENTS_S if self.is_listening.is_set() else POLL_S

    def _listen(self) -> None:
        try:
            # An API without events, or with no place for one more listener, is polled.
            with suppress(SgmError):
                for _ in self._client.events(types=self._types, site_id=self._site_id, opened=self._opened):
                    self._woken.set()
        finally:
            self.is_listening.clear()

    def _opened(self) -> None:
        self.is_listening.set()
        # What happened before the stream stood nobody told.
        self._woken.set()
