"""Many rows, each with values of its own, changed by one statement.

Django's `bulk_update` writes a CASE for each row and field, which takes longer to make than to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import connection, models

# SQLite takes 32,766 parameters in a statement.
PARAMETERS = 30_000


def rows_update(model: type[models.Model], *, fields: Sequence[str], rows: Sequence[Sequence[Any]]) -> int:
    """Set `fields` of the rows whose primary key begins each of `rows`; how many there were.

    A JSON field takes its JSON as text. The caller holds locks that let no two of these wait for each other.
    """
    options = model._meta  # noqa: SLF001 - Django's documented name for it
    key = options.pk
    assert key is not None
    columns: list[models.Field[Any, Any]] = [key, *(options.get_field(name) for name in fields)]  # type: ignore[list-item]
    changed = 0
    with connection.cursor() as cursor:
        quote = connection.ops.quote_name
        sets = ", ".join(
            f"{quote(str(column.column))} = {_value(number, column)}"
            for number, column in enumerate(columns[1:], start=2)
        )
        one = f"({', '.join(['%s'] * len(columns))})"
        table = quote(options.db_table)
        at_once = PARAMETERS // len(columns)
        for some in (rows[start : start + at_once] for start in range(0, len(rows), at_once)):
            cursor.execute(
                f"UPDATE {table} SET {sets} FROM (VALUES {', '.join([one] * len(some))}) AS given"  # noqa: S608 - names of our own models
                f" WHERE {table}.{quote(str(key.column))} = {_value(1, key)}",
                [
                    _parameter(column, value)
                    for row in some
                    for column, value in zip(columns, row, strict=True)
                ],
            )
            changed += cursor.rowcount
    return changed


def _value(number: int, column: models.Field[Any, Any]) -> str:
    """The value given for a column: PostgreSQL takes a bare one for text, SQLite needs no types."""
    value = f"given.column{number}"
    if connection.vendor != "postgresql":
        return value
    # Of a key, the type of those who refer to it: its own says how it comes about.
    kind = column.rel_db_type(connection) if column.primary_key else column.db_type(connection)
    return f"CAST({value} AS {kind})"


def _parameter(column: models.Field[Any, Any], value: Any) -> Any:
    if isinstance(column, models.JSONField):
        return value
    return column.get_db_prep_save(value, connection)
