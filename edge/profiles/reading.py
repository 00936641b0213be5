"""The door: plain data to profiles, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from edge.profiles.check import profile_check
from edge.profiles.errors import ProfileError
from edge.profiles.model import Profile
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
    profile_check(profile)
    return profile


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
