"""Which blocks of registers to ask for, so that few commands read many points."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edge.profiles.model import Point, Table


@dataclass(frozen=True, slots=True)
class Block:
    """One read command, and the points that it brings."""

    table: Table
    address: int
    count: int
    points: tuple[str, ...]


def plan_reads(
    points: dict[str, Point], names: Iterable[str], *, max_block: int, max_gap: int
) -> list[Block]:
    """Group points into blocks of at most `max_block` registers that skip at most `max_gap` unasked ones."""
    blocks: list[Block] = []
    for name in sorted(set(names), key=lambda name: (points[name].table, points[name].address)):
        point = points[name]
        last = blocks[-1] if blocks else None
        if (
            last is not None
            and last.table is point.table
            and point.address - (last.address + last.count) <= max_gap
            and max(point.end, last.address + last.count) - last.address <= max_block
        ):
            count = max(point.end, last.address + last.count) - last.address
            blocks[-1] = Block(last.table, last.address, count, (*last.points, name))
        else:
            blocks.append(Block(point.table, point.address, point.count, (name,)))
    return blocks
