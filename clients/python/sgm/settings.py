"""Whom to ask and with which credentials: from arguments, environment, profile, or a demo's description.

The first of these that names an API is the place that is asked, and what a lower one says counts no more:
credentials of one place are never sent to another. A single value may still be overridden by a higher one.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sgm.errors import ConfigurationError

AUDIENCE = "curtailment-api"
DEFAULT_PROFILE = "default"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a client needs; `whence` says for people where it comes from."""

    api_url: str
    token_url: str
    client_id: str
    client_secret: str = field(repr=False)
    management_token: str = field(repr=False)
    audience: str = AUDIENCE
    whence: str = "arguments"
    # For a network that nobody else is on: credentials go over http to other hosts than this one.
    allow_http: bool = False

    def __post_init__(self) -> None:
        for name in ("api_url", "token_url"):
            _refuse_address(name, getattr(self, name), allow_http=self.allow_http)
        for secret in (self.client_secret, self.management_token, self.client_id):
            if not (secret.isascii() and secret.isprintable()):
                raise ConfigurationError("A credential holds characters that no credential has.")


# In the environment each is SGM_ and the name in capitals.
_NAMES = tuple(known.name for known in fields(Settings) if known.name not in ("whence", "allow_http"))
_REQUIRED = ("api_url", "client_id", "client_secret", "management_token")


def settings_load(
    *,
    profile: str | None = None,
    demo: Path | None = None,
    environment: Mapping[str, str] | None = None,
    config: Path | None = None,
    given: Mapping[str, str | None] | None = None,
) -> Settings:
    """What to use: `given`, then the demo or profile that is named, the environment, the default profile.

    `ConfigurationError` says what is missing and how to give it.
    """
    known = os.environ if environment is None else environment
    given = given or {}
    if unknown := given.keys() - set(_NAMES):
        raise TypeError(f"no such setting: {', '.join(sorted(unknown))}")
    profile = profile or (known.get("SGM_PROFILE") if demo is None else None)
    file = config or config_file(known)
    sources: list[tuple[str, Mapping[str, str]]] = [("arguments", _present(given))]
    if demo is not None:
        sources.append((str(demo), demo_read(demo)))
    if profile:
        sources.append((f"profile {profile}", profile_read(file, profile)))
    sources.append(("environment", _present({name: known.get(f"SGM_{name.upper()}") for name in _NAMES})))
    if not profile and demo is None and DEFAULT_PROFILE in profiles_read(file):
        sources.append((f"profile {DEFAULT_PROFILE}", profile_read(file, DEFAULT_PROFILE)))
    return _settings_of(sources, allow_http=known.get("SGM_ALLOW_HTTP") in ("1", "true"))


def _settings_of(sources: list[tuple[str, Mapping[str, str]]], *, allow_http: bool) -> Settings:
    values: dict[str, str] = {}
    whence = ""
    for name, source in sources:
        values = {**source, **values}
        if "api_url" in source:
            whence = name
            break
    if missing := [name for name in _REQUIRED if not values.get(name)]:
        named = ", ".join(f"SGM_{name.upper()}" for name in missing)
        raise ConfigurationError(
            f"It is not known {'whom to ask' if 'api_url' in missing else 'with which credentials to ask'}: "
            f"run `sgm login`, or set {named}."
        )
    values["api_url"] = values["api_url"].rstrip("/")
    values.setdefault("token_url", _token_url_of(values["api_url"]))
    values.setdefault("audience", AUDIENCE)
    return Settings(**values, whence=whence, allow_http=allow_http)


def _token_url_of(api_url: str) -> str:
    # Where the embedded issuer answers.
    parts = urlsplit(api_url)
    return f"{parts.scheme}://{parts.netloc}/oauth/token"


def _present(values: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value.strip() for name, value in values.items() if value is not None and value.strip()}


def _refuse_address(name: str, address: str, *, allow_http: bool) -> None:
    try:
        parts = urlsplit(address)
        # (A port that is none is told only when asked for.)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ConfigurationError(f"{name}: {address!r} is not an http or https address.")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK and not allow_http:
        raise ConfigurationError(
            f"{name}: {address} would send credentials unencrypted. Use https, or set SGM_ALLOW_HTTP=1 on a "
            "network that nobody else is on."
        )


# --- a demo's description -----------------------------------------------------------------------------------


def demo_read(path: Path) -> dict[str, str]:
    """What a running demo says of itself, with its root token."""
    try:
        content: Any = json.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}. Is the demo running?") from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not a demo's description: {error}") from error
    names = {name: name for name in _NAMES} | {"management_token": "root_token"}
    try:
        return {name: str(content[key]) for name, key in names.items()}
    except (KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is not a demo's description: {error} is missing.") from error


# --- profiles -----------------------------------------------------------------------------------------------


def config_file(environment: Mapping[str, str]) -> Path:
    base = environment.get("XDG_CONFIG_HOME") or str(
        Path(environment.get("HOME", "~")).expanduser() / ".config"
    )
    return Path(base) / "sgm" / "config.toml"


def profiles_read(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The profiles of the file, empty where there is none; `ConfigurationError` where others may read it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigurationError(
                    f"{path} holds secrets, and others than you may read it: chmod 600 {path}"
                )
            content = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    found = content.get("profiles", {})
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise ConfigurationError(f"{path}: tables [profiles.NAME] are expected.")
    return found


def profile_read(path: Path, name: str) -> dict[str, str]:
    profiles = profiles_read(path)
    if name not in profiles:
        there = ", ".join(sorted(profiles)) or "none"
        raise ConfigurationError(f"There is no profile {name!r} in {path}; there is: {there}.")
    profile = profiles[name]
    if unknown := profile.keys() - set(_NAMES):
        raise ConfigurationError(f"{path}: profile {name}: unknown: {', '.join(sorted(unknown))}")
    if not all(isinstance(value, str) for value in profile.values()):
        raise ConfigurationError(f"{path}: profile {name}: texts are expected.")
    return _present(profile)


def profile_write(path: Path, name: str, settings: Settings) -> None:
    """Keep these settings under this name, in a file that nobody else may read (0600), written whole."""
    profiles = dict(profiles_read(path))
    profiles[name] = {key: getattr(settings, key) for key in _NAMES}
    _profiles_write(path, profiles)


def profile_forget(path: Path, name: str) -> bool:
    """Take a profile out of the file; tell whether it was there."""
    profiles = dict(profiles_read(path))
    if profiles.pop(name, None) is None:
        return False
    _profiles_write(path, profiles)
    return True


def _profiles_write(path: Path, profiles: Mapping[str, Mapping[str, Any]]) -> None:
    lines = ["# Written by `sgm login`. Holds secrets: for nobody else to read."]
    for name, values in sorted(profiles.items()):
        # A JSON text of printable ASCII is a text of TOML as well.
        lines += [
            "",
            f"[profiles.{json.dumps(name)}]",
            *(f"{key} = {json.dumps(v)}" for key, v in values.items()),
        ]
    private_write(path, "\n".join(lines) + "\n")


def private_write(path: Path, text: str) -> None:
    """Replace a file by one that only its owner may read, whole or not at all; OSError as it comes."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600 by its own promise
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def with_token(settings: Settings, management_token: str) -> Settings:
    """The same place with another management token."""
    return replace(settings, management_token=management_token)
