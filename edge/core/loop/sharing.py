"""How a loop's output is shared among its members: in equal percent, as far as each one's room allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Sums of floating-point numbers meet their goal as far as this.
TINY_KW = 1e-9
# So near to a register's step is on it.
TINY_STEP = 1e-6


@dataclass(frozen=True, slots=True)
class Room:
    """What one member may be asked for, in kW, and its weight."""

    nominal_kw: float
    low_kw: float
    high_kw: float


def share(total_kw: float, rooms: Sequence[Room]) -> list[float]:
    """Share a power in equal percent of nominal, each within its room; what no room takes stays over.

    Equal percent and not equal parts of the headroom: what a member is asked for then depends on the total
    alone, and comes back to the same when the total does.
    """
    levels = sorted(
        {room.low_kw / room.nominal_kw for room in rooms} | {room.high_kw / room.nominal_kw for room in rooms}
    )
    level, taken = -math.inf, -math.inf
    for above in levels:
        more = sum(_at(room, above) for room in rooms)
        if more >= total_kw:
            if taken > -math.inf:
                level += (total_kw - taken) / (more - taken) * (above - level)
            break
        level, taken = above, more
    else:
        level = math.inf
    return [_at(room, level) for room in rooms]


def _at(room: Room, level: float) -> float:
    return min(max(room.nominal_kw * level, room.low_kw), room.high_kw)


@dataclass(frozen=True, slots=True)
class Grid:
    """The steps a member's register takes, in percent of what it gives at 100, and between which values."""

    step_pct: float
    nominal_kw: float
    minimum: float
    maximum: float

    @property
    def step_kw(self) -> float:
        return self.step_pct * self.nominal_kw / 100

    def down(self, value: float) -> float:
        """The greatest step that is not above the value, within the range."""
        stepped = math.floor(value / self.step_pct + TINY_STEP) * self.step_pct
        return min(max(stepped, self.minimum), self.maximum)

    def up(self, value: float) -> float:
        """The smallest step that is not below the value, within the range."""
        stepped = math.ceil(value / self.step_pct - TINY_STEP) * self.step_pct
        return min(max(stepped, self.minimum), self.maximum)


def round_down(wishes: Sequence[float], grids: Sequence[Grid]) -> list[float]:
    """Put wishes in percent on the registers' steps, their sum as near below the wishes' as those allow.

    Each alone rounded down would give away half a step of each; so those that lost most are given theirs
    back, as long as the sum stays at or below what was wished.
    """
    values = [grid.down(wish) for wish, grid in zip(wishes, grids, strict=True)]
    lost = [wish - value for wish, value in zip(wishes, values, strict=True)]
    left_kw = sum(pct * grid.nominal_kw / 100 for pct, grid in zip(lost, grids, strict=True))
    for index in sorted(range(len(values)), key=lambda i: -lost[i]):
        grid = grids[index]
        raised = values[index] + grid.step_pct
        if grid.step_kw <= left_kw + TINY_KW and raised <= grid.maximum:
            values[index] = raised
            left_kw -= grid.step_kw
    return values
