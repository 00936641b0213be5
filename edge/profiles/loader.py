"""Read profiles from YAML; an error names file, key and expectation."""

from __future__ import annotations

from pathlib import Path

import yaml

from edge.profiles.model import Profile, ProfileError, profile_from_builtins

DATA = Path(__file__).parent / "data"


def load_profile(path: Path) -> Profile:
    """Read one profile; `ProfileError` where it is not one."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProfileError(file=str(path), key="file", expectation=f"cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ProfileError(file=str(path), key="file", expectation="expected a map of keys and values")
    try:
        profile = profile_from_builtins(data)
    except ProfileError as error:
        raise ProfileError(file=str(path), key=error.key, expectation=error.expectation) from error
    if profile.name != path.stem:
        raise ProfileError(
            file=str(path), key="name", expectation=f"expected {path.stem!r}, as the file is called"
        )
    return profile


def load_all(folder: Path = DATA) -> dict[str, Profile]:
    """Read every profile of a folder, by name. One file per device type, in a folder per category."""
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
