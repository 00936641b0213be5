"""How long a statement of web may take: a list that does not end must not hold a thread and a connection."""

from __future__ import annotations

from django.conf import settings
from django.db import connection, connections


def statements_limit() -> None:
    """Let PostgreSQL give up this process's statements and waits for locks after the settings' seconds.

    To be called before the first query; only by what serves clients: migrations and periodic work may take
    long. A statement that is given up is an OperationalError, and answered 503.
    """
    if connection.vendor != "postgresql":
        return
    limits = {
        "statement_timeout": settings.SGM_DATABASE_STATEMENT_TIMEOUT_S,
        "lock_timeout": settings.SGM_DATABASE_LOCK_TIMEOUT_S,
    }
    asked = " ".join(f"-c {name}={seconds}s" for name, seconds in limits.items() if seconds)
    if asked:
        options = connections.settings["default"]["OPTIONS"]
        options["options"] = f"{options.get('options', '')} {asked}".strip()
