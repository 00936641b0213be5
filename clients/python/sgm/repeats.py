"""When a request is sent again: only where that can do no harm, only a few times, never for long.

| what happened                          | SAFE, KEYED | REPLACES  | CREATES   |
| no connection came about               | again       | again     | again     |
| 429, which is before anything is done  | again       | again     | again     |
| 503 that says when to come again       | again       | again     | no        |
| 502, 504; connection lost; no answer   | again       | no        | no        |
| 409 `idempotency_in_progress`          | KEYED: again| -         | -         |

A create is not repeated after 503: where a database went away at the wrong moment it may be there already.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

TRIES = 4
# All waiting together, whatever an answer asks for: nobody stands before a dead terminal for minutes.
WAIT_IN_ALL_S = 30.0
# A control request that arrives late is another request than the one that was meant.
WAIT_IN_ALL_CONTROL_S = 10.0
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 30.0
# A stream that stood once is missed for so long before it is given up.
STREAM_WAIT_IN_ALL_S = 600.0
STREAM_TRIES = 60


class Repeat(Enum):
    SAFE = "it changes nothing"
    KEYED = "its Idempotency-Key makes it one request however often it is sent"
    REPLACES = "it states what should be there"
    CREATES = "each makes another"


@dataclass(slots=True)
class Patience:
    """How long one request may take, with all its repetitions; `told` hears why it waits, and how long."""

    wait_s: float = WAIT_IN_ALL_S
    tries: int = TRIES
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[], float] = random.random
    told: Callable[[str, float], None] = field(default=lambda _why, _s: None)
    _made: int = 0

    def wait(self, why: str, *, retry_after_s: float | None = None) -> bool:
        """Wait before another try; False where the patience is at its end."""
        self._made += 1
        # Jitter: those whom one outage cut off shall not come back in one moment.
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._made - 1)) * (0.5 + self.draw())
        if retry_after_s is not None:
            pause_s = retry_after_s + FIRST_PAUSE_S * self.draw()
        if self._made >= self.tries or pause_s > self.wait_s:
            return False
        self.wait_s -= pause_s
        self.told(why, pause_s)
        self.sleep(pause_s)
        return True
