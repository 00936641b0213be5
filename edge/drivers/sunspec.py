"""Where a SunSpec device has its registers: the chain of its models, and a profile's points in it.

The map begins with a marker, and then each model says its id and its length; an id of 0xFFFF ends it (SunSpec
Device Information Model Specification, "Modbus map"). Where the models stand differs from device to device
and, with its firmware, from time to time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec

from edge.drivers.errors import DeviceRefused
from edge.profiles.points import MAX_ADDRESS, Register

# Where the marker may stand, in the order in which it is looked for.
BASES = (40000, 50000, 0)
MARKER = [0x5375, 0x6E53]  # "SunS"
# Zero is what some devices have behind their last model in place of it.
ENDS = (0xFFFF, 0)
# Id and length.
HEADER = 2
# A device with more is none: somebody answers with whatever he is asked for.
MAX_MODELS = 100

ReadRegisters = Callable[[int, int], Awaitable[list[int]]]


class Model(NamedTuple):
    """One model of a device: where its id stands, and how many registers follow its length."""

    id: int
    address: int
    length: int


Models = tuple[Model, ...]


async def models_from(base: int, read: ReadRegisters) -> Models | None:
    """Walk the models of the map that begins at this address; None where there is none.

    `read` reads so many holding registers from an address on. What the models hold is not looked at: they may
    be unknown, and all their values "not implemented". A device that refuses to be read behind its last model
    has come to its end.
    """
    try:
        found = await read(base, len(MARKER) + HEADER)
    except DeviceRefused:
        return None
    if found[: len(MARKER)] != MARKER:
        return None
    models: list[Model] = []
    address = base + len(MARKER)
    number, length = found[len(MARKER) :]
    while number not in ENDS and len(models) < MAX_MODELS:
        models.append(Model(number, address, length))
        address += HEADER + length
        if address + HEADER > MAX_ADDRESS + 1:
            break
        try:
            number, length = await read(address, HEADER)
        except DeviceRefused:
            break
    return tuple(models)


def points_in(points: Mapping[str, Register], models: Models) -> dict[str, Register]:
    """The points that a device with these models has, at their addresses.

    Of several models of one id it is the first. What lies behind the end of a model that is shorter than it
    could be is not there.
    """
    by_id: dict[int, Model] = {}
    for model in models:
        by_id.setdefault(model.id, model)
    placed = {}
    for name, point in points.items():
        found = _model_of(point, by_id)
        if found is not None and point.end <= HEADER + found.length:
            placed[name] = msgspec.structs.replace(point, address=found.address + point.address)
    return placed


def wanted(point: Register) -> tuple[int, ...]:
    """The models that a point may be in, best first."""
    if point.model is None:
        return ()
    return point.model if isinstance(point.model, tuple) else (point.model,)


def told(models: Iterable[Model]) -> str:
    """The models of a device as people read them."""
    return ", ".join(str(model.id) for model in models) or "none"


def _model_of(point: Register, by_id: Mapping[int, Model]) -> Model | None:
    return next((by_id[number] for number in wanted(point) if number in by_id), None)
