"""Which blocks of registers to ask for, so that few commands read many points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakValueDictionary

from edge.drivers.points import readback_points
from edge.drivers.sunspec import Models, points_in
from edge.profiles.model import Profile
from edge.profiles.points import Register, Table
from edge.profiles.registers import Decoder, decoder


@dataclass(frozen=True, slots=True)
class Block:
    """One read command, and the points that it brings."""

    table: Table
    address: int
    count: int
    points: tuple[str, ...]


def plan_reads(
    points: Mapping[str, Register], names: Iterable[str], *, max_block: int, max_gap: int
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


class Placed(NamedTuple):
    """A point in a block: where its bytes begin there, and how they become a value."""

    name: str
    offset: int
    decode: Decoder
    scale_point: str | None


class Read(NamedTuple):
    """One read command and the points that its answer holds; `scales` are those that scale others."""

    block: Block
    points: tuple[Placed, ...]
    scales: tuple[Placed, ...]


class Layout:
    """How devices of one profile are read. It knows no device, so that all of them share it.

    `registers` are the points that the devices have: those of the profile, or of a SunSpec one as many as
    `models` have room for, at the addresses where they are there.
    """

    def __init__(self, profile: Profile, models: Models) -> None:
        self.profile = profile
        self.models = models
        self.registers = points_in(profile.registers, models) if profile.sunspec else profile.registers
        self.telemetry = frozenset(profile.telemetry.values())
        self.readback = readback_points(profile.limit)
        self.polled = self.telemetry | self.readback
        # Those that scale another point.
        self.scales = scale_points(profile, profile.points)
        self._plans: dict[frozenset[str], tuple[Read, ...]] = {}

    def plan(self, names: frozenset[str]) -> tuple[Read, ...]:
        """The commands that read these points."""
        plan = self._plans.get(names)
        if plan is None:
            profile = self.profile
            present = names & self.registers.keys()
            blocks = plan_reads(
                self.registers, present, max_block=profile.max_block, max_gap=profile.max_read_gap
            )
            plan = self._plans[names] = tuple(self._read(block) for block in blocks)
        return plan

    def _read(self, block: Block) -> Read:
        placed = tuple(self._placed(name, block) for name in block.points)
        return Read(block, placed, tuple(each for each in placed if each.name in self.scales))

    def _placed(self, name: str, block: Block) -> Placed:
        point = self.registers[name]
        return Placed(name, 2 * (point.address - block.address), decoder(point), point.scale_point)


# By the identity of the profile, which its layout keeps alive; gone with the last driver that uses it.
_layouts: WeakValueDictionary[tuple[int, Models], Layout] = WeakValueDictionary()


def layout_of(profile: Profile, models: Models = ()) -> Layout:
    """The layout of this very profile object for devices with these models, one for all who ask."""
    key = (id(profile), models)
    layout = _layouts.get(key)
    if layout is None:
        layout = _layouts[key] = Layout(profile, models)
    return layout


def scale_points(profile: Profile, names: Iterable[str]) -> set[str]:
    """The points whose value scales one of these."""
    return {scale for name in names if (scale := profile.registers[name].scale_point) is not None}
