"""Settings from the environment: typed, and a bad value names its variable."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

from smartgrid.rates import Rate, rate_parse

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def env_str(name: str, *, default: str = "") -> str:
    return os.environ.get(name, "").strip() or default


def env_bool(name: str, *, default: bool) -> bool:
    value = env_str(name).lower()
    if not value:
        return default
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise ImproperlyConfigured(f"{name} is {value!r}; expected 1 or 0, true or false, yes or no, on or off")


def env_int(name: str, *, default: int, minimum: int | None = None, maximum: int | None = None) -> int:
    text = env_str(name)
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        raise ImproperlyConfigured(f"{name} is {text!r}; expected a whole number") from None
    if minimum is not None and value < minimum:
        raise ImproperlyConfigured(f"{name} is {value}; expected {minimum} or more")
    if maximum is not None and value > maximum:
        raise ImproperlyConfigured(f"{name} is {value}; expected {maximum} or less")
    return value


def env_choice(name: str, *, default: str, choices: tuple[str, ...]) -> str:
    value = env_str(name, default=default).lower()
    if value not in choices:
        raise ImproperlyConfigured(
            f"{name} is {value!r}; expected {', '.join(choices[:-1])} or {choices[-1]}"
        )
    return value


def env_rate(name: str, *, default: str) -> Rate | None:
    """A rate such as `600/min`; None for `0`, which sets no limit."""
    try:
        return rate_parse(env_str(name, default=default))
    except ValueError as error:
        raise ImproperlyConfigured(f"{name}: {error}") from None


def env_list(name: str, *, default: tuple[str, ...] = ()) -> list[str]:
    """Items between commas, without the blanks around them; empty items are dropped."""
    items = [item.strip() for item in env_str(name).split(",")]
    return [item for item in items if item] or list(default)


def env_json(name: str, *, default: Any) -> Any:
    text = env_str(name)
    try:
        return json.loads(text) if text else default
    except ValueError as error:
        raise ImproperlyConfigured(f"{name} is not JSON: {error}") from error


def env_secret(name: str, *, default: str = "") -> str:
    """A secret from NAME, or from the file which NAME_FILE names; both at once is a mistake."""
    value, path = env_str(name), env_str(f"{name}_FILE")
    if value and path:
        raise ImproperlyConfigured(f"{name} and {name}_FILE are both set; keep one of them")
    if not path:
        return value or default
    try:
        content = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ImproperlyConfigured(f"{name}_FILE: cannot read {path}: {error}") from error
    if not content:
        raise ImproperlyConfigured(f"{name}_FILE: {path} is empty")
    return content


def env_json_secret(name: str, *, default: Any) -> Any:
    """JSON that holds a secret: from NAME, or from the file which NAME_FILE names; it is not repeated."""
    text = env_secret(name)
    try:
        return json.loads(text) if text else default
    except ValueError:
        raise ImproperlyConfigured(f"{name} is not JSON") from None


def env_secrets(name: str) -> list[str]:
    """Secrets between commas or line ends, from NAME or from the file which NAME_FILE names."""
    items = [item.strip() for item in env_secret(name).replace("\n", ",").split(",")]
    return [item for item in items if item]


def env_url(name: str, *, default: str, schemes: tuple[str, ...], default_port: int) -> tuple[str, str, int]:
    """An address of a service: the URL itself, its host and its port."""
    url = env_str(name, default=default)
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise ImproperlyConfigured(f"{name}: {error}") from error
    if parts.scheme not in schemes or not parts.hostname:
        expected = " or ".join(f"{scheme}://host:port" for scheme in schemes)
        # The URL itself may carry a password and is not repeated.
        raise ImproperlyConfigured(f"{name} is not of the form {expected}")
    return url, parts.hostname, port or default_port


def env_database(name: str, *, default: str) -> dict[str, Any]:
    """One entry of Django's DATABASES from `sqlite:///abs/path` or `postgresql://user:password@host:port/name`."""
    url = env_str(name, default=default)
    parts = urlsplit(url)
    if parts.scheme == "sqlite" and parts.path.startswith("/"):
        return _sqlite(path=unquote(parts.path).removeprefix("/:memory:") or ":memory:")
    if parts.scheme in {"postgresql", "postgres"} and parts.path.strip("/"):
        try:
            port = parts.port
        except ValueError as error:
            raise ImproperlyConfigured(f"{name}: {error}") from error
        return _postgresql(
            host=unquote(parts.hostname or ""),
            port=port,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            database=unquote(parts.path.strip("/")),
            options=dict(parse_qsl(parts.query)),
        )
    raise ImproperlyConfigured(
        f"{name} is neither sqlite:///absolute/path nor postgresql://user:password@host:port/name"
    )


def _sqlite(*, path: str) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": path,
        # Threads keep their connection for good: opening one costs more than any query of ours.
        "CONN_MAX_AGE": None,
        "OPTIONS": {
            # Readers never wait for the writer; a writer takes the lock when its transaction begins, so that
            # it waits for its turn instead of failing half-way with "database is locked".
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
        },
    }


def _pooled_connection() -> type[Any]:
    # The driver need not be there where the database is SQLite.
    from smartgrid.database import PooledConnection  # noqa: PLC0415

    return PooledConnection


def _postgresql(
    *, host: str, port: int | None, user: str, password: str, database: str, options: dict[str, str]
) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": database,
        "USER": user,
        "PASSWORD": password,
        "HOST": host,
        "PORT": str(port or ""),
        # With a pool `connection.close()` gives the connection back, so a view which waits holds none; and a
        # connection which died with the server's restart is noticed before it is used.
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {
            **options,
            "pool": {
                "min_size": 2,
                "max_size": env_int("SGM_DATABASE_POOL_SIZE", default=20, minimum=2, maximum=500),
                "timeout": 5,
                "connection_class": _pooled_connection(),
            },
        },
    }
