"""One database migrated for all processes of a run: each has a copy of its own."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import Any

from django.db import connection

# What Django's own test runner makes databases with is in no stub.
_connection: Any = connection


def migrated_sqlite(shared: Path) -> Path | None:
    """A file with all tables and nothing else, for a process that is to find its database there already.

    None on PostgreSQL. `shared`: as it was given to `database_copied`.
    """
    return shared / "database" if connection.vendor == "sqlite" else None


def database_copied(shared: Path) -> None:
    """Make this process's test database under the name that Django will look for it.

    `shared`: a directory of all processes of this run. The first migrates for the others, who wait for it;
    one that dies over it leaves that to the next.
    """
    name = _connection.creation._get_test_db_name()
    with (shared / "database.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = shared / "database.name"
        if made.exists():
            _copy(made.read_text(), name)
            return
        configured = connection.settings_dict["NAME"]
        connection.creation.create_test_db(verbosity=0, autoclobber=True)
        connection.close()
        if connection.vendor == "postgresql":
            # It copies none that anybody is connected to.
            _connection.close_pool()
        connection.settings_dict["NAME"] = configured
        original = str(shared / "database") if connection.vendor == "sqlite" else f"{name}_original"
        _copy(name, original)
        made.write_text(original)


def _copy(source: str, target: str) -> None:
    """Copy a database that nobody is connected to, over whatever had this name."""
    if connection.vendor == "sqlite":
        shutil.copyfile(source, target)
        return
    with _connection.creation._nodb_cursor() as cursor:
        cursor.execute(f'DROP DATABASE IF EXISTS "{target}"')
        cursor.execute(f'CREATE DATABASE "{target}" TEMPLATE "{source}"')
