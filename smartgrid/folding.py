"""Several writes in one round trip.

Each statement of a transaction costs a round trip to PostgreSQL, and so do its begin and its end: for short
writes that is most of what they take. Here PostgreSQL makes them as one statement, which is a transaction of
its own; SQLite, which has no round trips, makes them one after another in a transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import connection, models, transaction

from smartgrid.bulk import Condition, update_parameters, update_plan


@dataclass(frozen=True, slots=True)
class Update:
    """`rows_change`, or with `returning` `rows_update_returning`."""

    model: type[models.Model]
    where: Sequence[Condition]
    changes: Mapping[str, Any]
    returning: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Insert:
    """One new row, whose key is known."""

    row: models.Model


Write = Update | Insert


def writes_in_turn(*writes: Write) -> tuple[list[int], list[tuple[Any, ...]]]:
    """Make these writes, each only where the one before it wrote something.

    How many rows each wrote, and what the last one tells of them; the others tell nothing. Committed
    together, and rows are locked in this order: no part of the statement begins before the one that it asks
    about has written its first row. Database errors are those of the single writes.
    """
    plans = [_planned(write) for write in writes]
    if connection.vendor != "postgresql":
        return _one_by_one(plans)
    parts: list[str] = []
    parameters: list[Any] = []
    for number, plan in enumerate(plans):
        condition = f"EXISTS (SELECT 1 FROM write_{number - 1})" if number else ""  # noqa: S608 - our own
        parts.append(f"write_{number} AS ({plan.under(condition)} RETURNING {plan.returned})")
        parameters += plan.parameters
    last = len(plans) - 1
    counts = ", ".join(f"(SELECT count(*) FROM write_{number})" for number in range(len(plans)))  # noqa: S608 - our own
    made = f"WITH {', '.join(parts)} SELECT {counts}, write_{last}.*"
    with _whole(), connection.cursor() as cursor:
        cursor.execute(f"{made} FROM (SELECT 1) AS one LEFT JOIN write_{last} ON true", parameters)
        found = cursor.fetchall()
    count_of = list(found[0][: len(plans)])
    return count_of, [row[len(plans) :] for row in found] if count_of[-1] else []


@dataclass(frozen=True, slots=True)
class _Planned:
    """A write as a statement without RETURNING; `told` makes of the rows it returned what is told of them."""

    statement: str
    parameters: list[Any]
    returned: str = "1"
    told: Callable[[Sequence[Sequence[Any]]], list[tuple[Any, ...]]] | None = None
    is_insert: bool = False

    def under(self, condition: str) -> str:
        """The statement where it is to write only if this is true."""
        if not condition:
            return self.statement
        if not self.is_insert:
            return f"{self.statement} AND {condition}"
        # VALUES of one row, as a query that may find nothing.
        head, values = self.statement.split(" VALUES ", 1)
        return f"{head} SELECT {values[1:-1]} WHERE {condition}"


def _planned(write: Write) -> _Planned:
    match write:
        case Update(model, where, changes, returning):
            plan = update_plan(model, changes=changes, where=where, returning=returning)
            assert plan is not None
            parameters = update_parameters(plan, changes=changes, where=where)
            return _Planned(plan.statement, parameters, plan.returned, plan.told if returning else None)
        case Insert(row):
            return _Planned(*_insert([row]), is_insert=True)


def _one_by_one(plans: Sequence[_Planned]) -> tuple[list[int], list[tuple[Any, ...]]]:
    counts = [0] * len(plans)
    told: list[tuple[Any, ...]] = []
    with transaction.atomic(), connection.cursor() as cursor:
        for number, plan in enumerate(plans):
            if plan.told is None:
                cursor.execute(plan.statement, plan.parameters)
                counts[number] = cursor.rowcount
            else:
                cursor.execute(f"{plan.statement} RETURNING {plan.returned}", plan.parameters)
                told = plan.told(cursor.fetchall())
                counts[number] = len(told)
            if not counts[number]:
                break
    return counts, told


def rows_create(first: models.Model, others: Sequence[models.Model]) -> None:
    """Insert a row and others of one table, which may refer to it and whose keys the database draws.

    Committed together. Database errors are those of the single inserts.
    """
    statement, parameters = _insert([first])
    following, given = _insert(others) if others else ("", [])
    key = _quoted(others[0]._meta.pk) if others else ""  # noqa: SLF001 - Django's documented name for it
    if connection.vendor == "postgresql" and others:
        with _whole(), connection.cursor() as cursor:
            cursor.execute(f"WITH first AS ({statement}) {following} RETURNING {key}", [*parameters, *given])
            keys = cursor.fetchall()
    else:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            if others:
                cursor.execute(f"{following} RETURNING {key}", given)
            keys = cursor.fetchall() if others else []
    for row, (drawn,) in zip(others, keys, strict=True):
        row.pk = drawn
    for row in (first, *others):
        row._state.adding, row._state.db = False, connection.alias  # noqa: SLF001 - as Django's own


@contextmanager
def _whole() -> Iterator[None]:
    """Where a transaction is open already, a failure here ends this part of it alone."""
    if not connection.in_atomic_block:
        yield
        return
    with transaction.atomic():
        yield


def _insert(rows: Sequence[models.Model]) -> tuple[str, list[Any]]:
    options = rows[0]._meta  # noqa: SLF001 - Django's documented name for it
    fields = [field for field in options.concrete_fields if not isinstance(field, models.AutoField)]
    names = ", ".join(_quoted(field) for field in fields)
    places = f"({', '.join(['%s'] * len(fields))})"
    parameters = [
        field.get_db_prep_save(field.pre_save(row, add=True), connection) for row in rows for field in fields
    ]
    table = connection.ops.quote_name(options.db_table)
    return f"INSERT INTO {table} ({names}) VALUES {', '.join([places] * len(rows))}", parameters  # noqa: S608


def _quoted(field: Any) -> str:
    return str(connection.ops.quote_name(field.column))
