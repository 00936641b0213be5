"""The door: plain data to profiles, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from edge.profiles.check import profile_check
from edge.profiles.errors import ProfileError
from edge.profiles.model import Profile, Step
from edge.profiles.parameters import parameters_bound, parameters_checked, parameters_of
from edge.profiles.points import KINDS, MAX_ADDRESS, Point, Register

T = TypeVar("T")


def profile_to_builtins(profile: Profile) -> dict[str, Any]:
    """As JSON can carry it; `profile_from_builtins` gives the same profile again, parameters and all."""
    return msgspec.to_builtins(profile)  # type: ignore[no-any-return]


def profile_from_builtins(data: Mapping[str, Any], parameters: Mapping[str, object] | None = None) -> Profile:
    """Build a profile and check all it says about itself; `ProfileError` names the key at fault.

    `parameters`: what one device says of itself; without it, each parameter's default, else its example.
    """
    values = parameters_checked(parameters_of(data), parameters)
    data = parameters_bound(data, values)
    raw_points = data.get("points")
    if not isinstance(raw_points, Mapping) or not raw_points:
        raise ProfileError(key="points", expectation="expected a map of at least one point")
    profile = _convert({**data, "points": {}}, Profile, key="")
    kind = KINDS[profile.protocol]
    # One by one, because msgspec does not name the key of a map in its errors.
    points = {str(name): _convert(point, kind, key=f"points.{name}") for name, point in raw_points.items()}
    if profile.address_offset:
        points = {name: _moved(profile, name, point) for name, point in points.items()}
    # What is offset already is not offset again, where this very profile travels on.
    profile = msgspec.structs.replace(profile, points=points, address_offset=0)
    profile = _ordered(profile)
    profile_check(profile)
    return profile


def _ordered(profile: Profile) -> Profile:
    """With what is written together in the order of the wire, whatever order it came in.

    A map of JSON has none: PostgreSQL, for one, keeps keys by their length.
    """
    limit = profile.limit
    if limit is None:
        return profile
    own = limit.fallback
    if own is not None:
        own = msgspec.structs.replace(
            own, arm=_in_order(profile, own.arm), keep_alive=_in_order(profile, own.keep_alive)
        )
    limit = msgspec.structs.replace(
        limit,
        once=_in_order(profile, limit.once),
        set=_in_order(profile, limit.set),
        release=None if limit.release is None else _in_order(profile, limit.release),
        fallback=own,
    )
    return msgspec.structs.replace(profile, limit=limit)


def _in_order(profile: Profile, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    def address(name: str) -> int:
        point = profile.points.get(name)
        return point.address if isinstance(point, Register) else 0

    return tuple(
        msgspec.structs.replace(
            step, together={name: step.together[name] for name in sorted(step.together, key=address)}
        )
        for step in steps
    )


def _moved(profile: Profile, name: str, point: Point) -> Point:
    if not isinstance(point, Register) or profile.sunspec:
        raise ProfileError(
            key="address_offset", expectation="expected of registers with addresses of their own"
        )
    address = point.address + profile.address_offset
    if not 0 <= address <= MAX_ADDRESS:
        raise ProfileError(
            key=f"points.{name}.address",
            expectation=f"expected 0 to {MAX_ADDRESS} with its offset, not {address}",
        )
    return msgspec.structs.replace(point, address=address)


def _convert(data: Any, kind: type[T], *, key: str) -> T:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        # "Expected `int`, got `str` - at `$.limit.set[0]`", or "- at `key` in `$.limit`" of a key itself.
        message, _, place = str(error).partition(" - at `")
        inner = place.rpartition("$")[2].rstrip("`").lstrip(".")
        raise ProfileError(
            key=".".join(part for part in (key, inner) if part) or "profile", expectation=message
        ) from error
