"""What the devices behind a proxy do, taken as one. A proxy has no session and no driver: see ADR 0023."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Contribution:
    """One child's part: its value, None where it has none now, and what it weighs in a mean."""

    value: float | None
    nameplate_kw: float | None


def together(parts: Sequence[Contribution], *, how: str) -> float | None:
    """The `sum`, or the `mean` weighted by nameplate, of all parts; None where any is missing, or all are.

    Where a nameplate is not known, all weigh the same in a mean.
    """
    values = [part.value for part in parts if part.value is not None and math.isfinite(part.value)]
    if not values or len(values) < len(parts):
        return None
    if how == "sum":
        return math.fsum(values)
    weights = [part.nameplate_kw for part in parts if part.nameplate_kw is not None]
    if len(weights) < len(parts) or math.fsum(weights) <= 0:
        weights = [1.0] * len(parts)
    return math.fsum(map(lambda value, weight: value * weight, values, weights)) / math.fsum(weights)
