"""Read profiles from YAML; an error names file, key and expectation."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from edge.profiles.errors import ProfileError
from edge.profiles.model import Profile
from edge.profiles.parameters import parameters_named, parameters_needed
from edge.profiles.reading import profile_from_builtins

DATA = Path(__file__).parent / "data"
# The one in C reads all profiles in a tenth of the time, where the package was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_profile(path: Path) -> Profile:
    """Read one profile, its parameters by default or example; `ProfileError` where it is not one."""
    data = load_body(path)
    try:
        profile = profile_judge(data)
    except ProfileError as error:
        raise ProfileError(file=str(path), key=error.key, expectation=error.expectation) from error
    if profile.name != path.stem:
        raise ProfileError(
            file=str(path), key="name", expectation=f"expected {path.stem!r}, as the file is called"
        )
    return profile


def profile_judge(data: dict[str, Any]) -> Profile:
    """A profile that somebody wrote, by all that is asked of one; `ProfileError` where it is not one."""
    profile = profile_from_builtins(data)
    named = parameters_named(data) | parameters_named([one.default for one in profile.parameters.values()])
    unused = sorted(profile.parameters.keys() - named)
    if unused:
        raise ProfileError(key=f"parameters.{unused[0]}", expectation="nothing in the profile names it")
    _check_without_optional_parts(profile, data)
    return profile


def _check_without_optional_parts(profile: Profile, data: dict[str, Any]) -> None:
    if not any(parameter.optional for parameter in profile.parameters.values()):
        return
    try:
        profile_from_builtins(data, parameters_needed(profile.parameters))
    except ProfileError as error:
        raise ProfileError(
            key=error.key, expectation=f"{error.expectation} (of a device that says only what it must)"
        ) from error


def load_body(path: Path) -> dict[str, Any]:
    """What a profile's file says, its parameters still open: what travels to central and to the nodes."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 - a safe one
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProfileError(file=str(path), key="file", expectation=f"cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ProfileError(file=str(path), key="file", expectation="expected a map of keys and values")
    return data


def load_bodies(folder: Path = DATA) -> dict[str, dict[str, Any]]:
    """The bodies of all profiles of a folder, by name; each is one that `load_all` takes.

    Those that come with the program are read once a process; what is returned is the caller's own.
    """
    if folder == DATA:
        bodies: dict[str, dict[str, Any]] = json.loads(_shipped_bodies())
        return bodies
    return _read_bodies(folder)


def load_all(folder: Path = DATA) -> dict[str, Profile]:
    """Every profile of a folder, by name. One file per device type, in a folder per category.

    Those that come with the program are read once a process: to read all takes a fifth of a second.
    """
    return dict(_shipped()) if folder == DATA else _read_all(folder)


@cache
def _shipped() -> dict[str, Profile]:
    return _read_all(DATA)


@cache
def _shipped_bodies() -> str:
    # As text, of which everybody is given what they may change.
    return json.dumps(_read_bodies(DATA))


def _read_bodies(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: load_body(path) for path in sorted(folder.glob("*/*.yaml"))}


def _read_all(folder: Path) -> dict[str, Profile]:
    profiles: dict[str, Profile] = {}
    for path in sorted(folder.glob("*/*.yaml")):
        profile = load_profile(path)
        if profile.category != path.parent.name:
            raise ProfileError(
                file=str(path),
                key="category",
                expectation=f"expected {path.parent.name!r}, as its folder is called",
            )
        if profile.name in profiles:
            raise ProfileError(file=str(path), key="name", expectation=f"{profile.name!r} is there already")
        profiles[profile.name] = profile
    return profiles
