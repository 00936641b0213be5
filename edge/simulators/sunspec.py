"""Where the points of a SunSpec device lie: marker, a chain of models, and an end. No I/O.

Lengths and the places of numbers with another "not implemented" than 0xFFFF are those of the SunSpec
information models 1.5 and of the DER models 7xx.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from edge.profiles.points import Register

MARKER = (0x5375, 0x6E53)
COMMON = 1
END = 0xFFFF
BASES = (40000, 50000, 0)
# What is not implemented: unsigned numbers; signed ones and scale factors; counters and texts.
UNSIGNED, SIGNED, EMPTY = 0xFFFF, 0x8000, 0


@dataclass(frozen=True, slots=True)
class ModelLayout:
    """A model's length without its own two registers; offsets count from its id."""

    length: int
    signed: tuple[int, ...] = ()
    empty: tuple[int, ...] = ()


_INVERTER = ModelLayout(50, (6, *range(13, 16), *range(17, 24), 26, 28, *range(30, 38)), (24, 25))
_METER = ModelLayout(105, (*range(2, 38), 54, 71, 104), (*range(38, 54), *range(55, 71), *range(72, 104)))
_FLOATS, _FLOAT_METER = ModelLayout(60), ModelLayout(124)
MODELS: dict[int, ModelLayout] = {
    COMMON: ModelLayout(66, (), tuple(range(2, 66))),
    **dict.fromkeys((101, 102, 103), _INVERTER),
    **dict.fromkeys((111, 112, 113), _FLOATS),
    120: ModelLayout(26, (4, *range(6, 12), *range(13, 19), 20, 22, 24, 26)),
    121: ModelLayout(30, (4, *range(8, 12), *range(13, 17), *range(22, 32))),
    122: ModelLayout(44, (29, 30, 32, 45), (*range(5, 29), *range(37, 41))),
    123: ModelLayout(24, (10, *range(15, 18), *range(23, 26))),
    124: ModelLayout(24, (12, 13, *range(18, 26))),
    127: ModelLayout(10, (3, 4, *range(8, 11))),
    128: ModelLayout(14, (13, 14)),
    **dict.fromkeys((201, 202, 203, 204), _METER),
    **dict.fromkeys((211, 212, 213, 214), _FLOAT_METER),
    701: ModelLayout(
        153,
        (*range(10, 15), *range(35, 46), *range(64, 69), *range(87, 92), *range(113, 123)),
        tuple(range(123, 155)),
    ),
    702: ModelLayout(50, tuple(range(45, 52))),
    703: ModelLayout(17, (17, 18)),
    704: ModelLayout(65, (28, 29, 42, 43, *range(53, 59))),
    713: ModelLayout(7, (7, 8)),
    802: ModelLayout(62, (44, 47, 49, *range(52, 64))),
}


def chain_of(points: Iterable[Register]) -> tuple[int, ...]:
    """The models of a device that has these points, in the order of their numbers.

    Where a point is in one of several, the device has the last of them: three phases rather than one.
    """
    models = {COMMON}
    for point in points:
        if isinstance(point.model, int):
            models.add(point.model)
        elif point.model is not None and not models.intersection(point.model):
            models.add(point.model[-1])
    return tuple(sorted(models))


def lay_out(
    points: Mapping[str, Register], *, base: int, blank: Sequence[int] = ()
) -> tuple[dict[str, Register], dict[int, int]]:
    """The points at their addresses, and the words of the whole chain from marker to end.

    `blank`: further models of which the device has implemented nothing; makers leave them in for
    compatibility (SMA STP60-SunSpec_Modbus-TI-en-12).
    """
    words = {base + place: word for place, word in enumerate(MARKER)}
    ids: dict[int, int] = {}
    at = base + len(MARKER)
    for model in sorted({*chain_of(points.values()), *blank}):
        layout = MODELS.get(model) or _layout_of_unknown(model, points.values())
        ids[model] = at
        words.update(dict.fromkeys(range(at + 2, at + 2 + layout.length), UNSIGNED))
        words.update(dict.fromkeys((at + offset for offset in layout.signed), SIGNED))
        words.update(dict.fromkeys((at + offset for offset in layout.empty), EMPTY))
        words.update({at: model, at + 1: layout.length})
        at += 2 + layout.length
    words.update({at: END, at + 1: 0})
    placed = {name: _placed(point, ids) for name, point in points.items()}
    return placed, words


def _placed(point: Register, ids: Mapping[int, int]) -> Register:
    models = (point.model,) if isinstance(point.model, int) else point.model or ()
    found = next(model for model in models if model in ids)
    return msgspec.structs.replace(point, address=ids[found] + point.address, model=None)


def _layout_of_unknown(model: int, points: Iterable[Register]) -> ModelLayout:
    ends = (
        point.end
        for point in points
        if model == point.model or (isinstance(point.model, tuple) and model in point.model)
    )
    return ModelLayout(max(ends, default=2) - 2)
