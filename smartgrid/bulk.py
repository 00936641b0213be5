"""Many rows, each with values of its own, changed by one statement.

Django's `bulk_update` writes a CASE for each row and field, which takes longer to make than to run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.db import connection, models

# SQLite takes 32,766 parameters in a statement.
PARAMETERS = 30_000


def rows_update(
    model: type[models.Model],
    *,
    fields: Sequence[str],
    rows: Sequence[Sequence[Any]],
    same: Mapping[str, Any] | None = None,
) -> int:
    """Set `fields` of the rows whose primary key begins each of `rows`; how many there were.

    `same`: fields that get one value in all of them, which costs less than to repeat it. A JSON field takes
    its JSON as text. The caller holds locks that let no two of these wait for each other.
    """
    options = model._meta  # noqa: SLF001 - Django's documented name for it
    key = options.pk
    assert key is not None
    columns: list[models.Field[Any, Any]] = [key, *(options.get_field(name) for name in fields)]  # type: ignore[list-item]
    constants = {options.get_field(name): value for name, value in (same or {}).items()}
    quote = connection.ops.quote_name
    given = _Arrays(columns) if connection.vendor == "postgresql" else _Values(columns)
    sets = [
        f"{quote(str(column.column))} = {given.value(number)}"
        for number, column in enumerate(columns[1:], start=1)
    ]
    sets += [f"{quote(str(column.column))} = %s" for column in constants]  # type: ignore[union-attr]
    ahead = [_prepared(column, value) for column, value in constants.items()]  # type: ignore[arg-type]
    table = quote(options.db_table)
    changed = 0
    at_once = PARAMETERS // len(columns)
    with connection.cursor() as cursor:
        for start in range(0, len(rows), at_once):
            some = [
                [_prepared(column, value) for column, value in zip(columns, row, strict=True)]
                for row in rows[start : start + at_once]
            ]
            source, parameters = given.source(some)
            cursor.execute(
                f"UPDATE {table} SET {', '.join(sets)} FROM {source}"  # noqa: S608 - names of our own models
                f" WHERE {table}.{quote(str(key.column))} = {given.value(0)}",
                [*ahead, *parameters],
            )
            changed += cursor.rowcount
    return changed


class _Values:
    """Rows of parameters, as SQLite takes them: without types."""

    def __init__(self, columns: Sequence[models.Field[Any, Any]]) -> None:
        self._row = f"({', '.join(['%s'] * len(columns))})"

    def value(self, number: int) -> str:
        return f"given.column{number + 1}"

    def source(self, rows: Sequence[Sequence[Any]]) -> tuple[str, list[Any]]:
        values = ", ".join([self._row] * len(rows))
        return f"(VALUES {values}) AS given", [value for row in rows for value in row]


class _Arrays:
    """An array a column, as PostgreSQL takes them: one parameter each, however many rows there are."""

    def __init__(self, columns: Sequence[models.Field[Any, Any]]) -> None:
        # Of a key, the type of those who refer to it: its own says how it comes about.
        kinds = [
            str(column.rel_db_type(connection) if column.primary_key else column.db_type(connection))
            for column in columns
        ]
        self._kinds = kinds
        # An array of JSON would be taken apart as one.
        self._arrays = ", ".join(f"%s::{'text' if kind == 'jsonb' else kind}[]" for kind in kinds)
        self._names = ", ".join(f"column{number}" for number in range(len(kinds)))

    def value(self, number: int) -> str:
        return f"CAST(given.column{number} AS {self._kinds[number]})"

    def source(self, rows: Sequence[Sequence[Any]]) -> tuple[str, list[Any]]:
        columns: Iterable[tuple[Any, ...]] = zip(*rows, strict=True)
        return f"unnest({self._arrays}) AS given({self._names})", [list(column) for column in columns]


def _prepared(column: models.Field[Any, Any], value: Any) -> Any:
    return value if isinstance(column, models.JSONField) else column.get_db_prep_save(value, connection)
