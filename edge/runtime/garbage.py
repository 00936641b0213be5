"""Python's cycle collector, told what it need not look at.

A node of 2,000 devices keeps half a million objects for as long as its configuration holds. Left alone, the
collector walks through them in the middle of a turn, for 50 to 200 ms.
"""

from __future__ import annotations

import gc

# Objects made before the young are looked at; nearly all of a poll's or a command's are gone by themselves.
YOUNG = 20_000
# By then lines are connected and devices have been polled: what is there now stays.
SETTLED_AFTER_TURNS = 20


class Collector:
    """The collector of a process whose long-lived objects change with its configuration, and then only."""

    def __init__(self) -> None:
        gc.set_threshold(YOUNG, 20, 50)
        self._turns_left = SETTLED_AFTER_TURNS

    def loading(self) -> None:
        """A configuration is about to be put into force, which may take a while: look at everything."""
        gc.unfreeze()
        gc.collect()
        self._turns_left = SETTLED_AFTER_TURNS

    def turned(self) -> None:
        """The write cycle has turned. Some turns after the last change, what is there is set aside."""
        if self._turns_left:
            self._turns_left -= 1
            if not self._turns_left:
                # Not collected, which would hold up the turn: a few dead objects wait for the next change.
                gc.freeze()
