"""How often something may happen: rates as operators write them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_PERIODS_S = {"s": 1, "sec": 1, "min": 60, "h": 3600, "hour": 3600}
_RATE = re.compile(r"([0-9]{1,9})/(s|sec|min|h|hour)")
BURST_MIN = 10


@dataclass(frozen=True, slots=True)
class Rate:
    """So many times in so many seconds, evenly; `burst` of them may come at once.

    In no time of `period_s` are there more than `count + burst`.
    """

    count: int
    period_s: int

    @property
    def burst(self) -> int:
        """A tenth of what the period allows, at least ten: a whole period's would let double through."""
        return min(self.count, max(BURST_MIN, self.count // 10))

    @property
    def interval_us(self) -> float:
        """Microseconds between two, where they come evenly."""
        return self.period_s * 1_000_000 / self.count

    def __str__(self) -> str:
        return f"{self.count} in {self.period_s} s"


def rate_parse(text: str) -> Rate | None:
    """`600/min`, also per `s` or `h`; None for `0`, which sets no limit. `ValueError` for anything else."""
    if text == "0":
        return None
    found = _RATE.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise ValueError(f"{text!r} is not a rate, e.g. 600/min, or 0 for none")
    return Rate(count=int(found[1]), period_s=_PERIODS_S[found[2]])


def retry_after(seconds: float) -> str:
    """As the header `Retry-After` has it: whole seconds, never fewer than are left, never none."""
    return str(max(1, math.ceil(seconds)))
