"""Statements that Django does not make: many rows, each with values of its own, changed by one of them; and
an update that tells which rows it changed.

Django's `bulk_update` writes a CASE for each row and field, which takes longer to make than to run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

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


# A column, how it is compared, and with what; `in` with a sequence, `is null` with nothing.
Condition = tuple[str, str, Any]
_SIGNS = frozenset({"=", "<", "<=", ">", "in", "is null"})


def rows_change(model: type[models.Model], *, changes: Mapping[str, Any], where: Sequence[Condition]) -> int:
    """Change the rows of which all of this is true; how many there were.

    As Django's own update, at a third of what that takes to make its statement anew each time.
    """
    plan = update_plan(model, changes=changes, where=where, returning=())
    if plan is None:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(plan.statement, update_parameters(plan, changes=changes, where=where))
        return int(cursor.rowcount)


def rows_update_returning(
    model: type[models.Model],
    *,
    changes: Mapping[str, Any],
    where: Sequence[Condition],
    returning: Sequence[str],
) -> list[tuple[Any, ...]]:
    """`rows_change` that tells of each row these columns, in no order.

    UUIDs are told as such; JSON and dates are not among what it tells.
    """
    plan = update_plan(model, changes=changes, where=where, returning=tuple(returning))
    if plan is None:
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            f"{plan.statement} RETURNING {plan.returned}",
            update_parameters(plan, changes=changes, where=where),
        )
        return plan.told(cursor.fetchall())


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """A statement, the columns its parameters are of, what it may tell, and which of that are UUIDs."""

    statement: str
    columns: tuple[models.Field[Any, Any], ...]
    returned: str
    keys: frozenset[int]

    def told(self, rows: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
        """Rows as the database tells them, with UUIDs for what it has as text."""
        if not self.keys or connection.features.has_native_uuid_field:
            return [tuple(row) for row in rows]
        return [
            tuple(
                UUID(value) if at in self.keys and value is not None else value
                for at, value in enumerate(row)
            )
            for row in rows
        ]


def update_plan(
    model: type[models.Model],
    *,
    changes: Mapping[str, Any],
    where: Sequence[Condition],
    returning: tuple[str, ...],
) -> UpdatePlan | None:
    """How such an update is made, remembered by its shape; None where no row can fit."""
    shape = tuple((name, sign, _count(sign, value)) for name, sign, value in where)
    if any(sign == "in" and not count for _, sign, count in shape):
        return None
    return _update_plan(model, tuple(changes), shape, returning, connection.vendor)


def update_parameters(
    plan: UpdatePlan, *, changes: Mapping[str, Any], where: Sequence[Condition]
) -> list[Any]:
    values = list(changes.values())
    for _, sign, value in where:
        if sign != "is null":
            values += value if sign == "in" else [value]
    return [
        column.get_db_prep_save(value, connection) for column, value in zip(plan.columns, values, strict=True)
    ]


def _count(sign: str, value: Any) -> int:
    if sign == "is null":
        return 0
    return len(value) if sign == "in" else 1


@lru_cache(maxsize=256)
def _update_plan(
    model: type[models.Model],
    changes: tuple[str, ...],
    shape: tuple[tuple[str, str, int], ...],
    returning: tuple[str, ...],
    _vendor: str,
) -> UpdatePlan:
    options = model._meta  # noqa: SLF001
    quote = connection.ops.quote_name

    def column(name: str) -> models.Field[Any, Any]:
        found = options.get_field(name)
        assert isinstance(found, models.Field)
        return found.target_field if isinstance(found, models.ForeignKey) else found

    def quoted(name: str) -> str:
        return str(quote(str(options.get_field(name).column)))  # type: ignore[union-attr]

    def test(name: str, sign: str, count: int) -> str:
        assert sign in _SIGNS
        match sign:
            case "is null":
                return f"{quoted(name)} IS NULL"
            case "in":
                return f"{quoted(name)} IN ({', '.join(['%s'] * count)})"
            case _:
                return f"{quoted(name)} {sign} %s"

    statement = (
        f"UPDATE {quote(options.db_table)} SET {', '.join(f'{quoted(name)} = %s' for name in changes)}"  # noqa: S608 - names of our own models
        f" WHERE {' AND '.join(test(*one) for one in shape)}"
    )
    columns = [*map(column, changes), *(column(name) for name, _, count in shape for _ in range(count))]
    keys = frozenset(at for at, name in enumerate(returning) if isinstance(column(name), models.UUIDField))
    return UpdatePlan(statement, tuple(columns), ", ".join(map(quoted, returning)) or "1", keys)


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
