"""Bounds and what happens to a wish between them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bound:
    """One authority's limits on a device's value, in the device type's unit (normally percent).

    An infinite limit is none. A limit that is not a number would be none too, in silence: it is refused
    with `ValueError`.
    """

    origin: str
    minimum: float = -math.inf
    maximum: float = math.inf

    def __post_init__(self) -> None:
        if math.isnan(self.minimum) or math.isnan(self.maximum):
            raise ValueError(f"a bound of {self.origin} is not a number")


@dataclass(frozen=True, slots=True)
class Bounded:
    """A wish after the bounds: the value allowed, and whose bound moved it (None where none did)."""

    value: float
    bounded_by: str | None


def apply_bounds(wish: float, bounds: Iterable[Bound], *, device: Bound) -> Bounded:
    """Choose the allowed value nearest to the wish, within what the device itself can do.

    Bounds intersect. Where they leave nothing, the lowest maximum wins: nobody raises what another authority
    has just lowered. `device` is the range of the device and has the last word: a value outside of it cannot
    be carried out, and would be refused, or wrap round in the register, where the end of the range obeys as
    far as it goes.
    """
    lowest_maximum, highest_minimum = math.inf, -math.inf
    maximum_origin = minimum_origin = ""
    for bound in (device, *bounds):
        if bound.maximum < lowest_maximum:
            lowest_maximum, maximum_origin = bound.maximum, bound.origin
        if bound.minimum > highest_minimum:
            highest_minimum, minimum_origin = bound.minimum, bound.origin
    value, bounded_by = wish, None
    if value < highest_minimum:
        value, bounded_by = highest_minimum, minimum_origin
    if value > lowest_maximum:
        value, bounded_by = lowest_maximum, maximum_origin
    if value < device.minimum:
        value, bounded_by = device.minimum, device.origin
    return Bounded(value, bounded_by)
