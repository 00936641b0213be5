"""Queries that are built once and asked again and again with other values.

Django builds a query and its statement anew each time, which for a row by its key takes longer than to run
it. A kept query is built by the same selectors as any other, once, with values that stand for those to come;
its statement is remembered.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.db.models import QuerySet

from smartgrid.api.principal import Principal
from smartgrid.expressions import Value, prepared


class KeptQuery:
    """The rows of `build(*values)`, which ends in `values_list`, for any values of these kinds.

    What `build` makes may depend on its values only by having them in its conditions. Many values at once
    are of the kind `list`, and compared by `among`. `is_alike`: for all values there are about as many rows,
    so that PostgreSQL may plan it once; else it looks at the values each time, which takes longer than many
    a query.
    """

    def __init__(self, build: Callable[..., QuerySet[Any, Any]], *kinds: type, is_alike: bool = True) -> None:
        self._build = build
        self._kinds = kinds
        self._is_alike = is_alike
        # By database: the statements of a test's PostgreSQL are not those of its SQLite.
        self._plans: dict[str, _Plan] = {}

    def rows(self, *values: Value) -> list[tuple[Any, ...]]:
        plan = self._kept()
        return plan.rows(plan.statement, plan.parameters_for(values), is_alike=self._is_alike)

    def page(self, *values: Value, limit: int | None, offset: int) -> list[tuple[Any, ...]]:
        """So many of the rows after the first `offset`; with no limit all of them."""
        plan = self._kept()
        parameters = plan.parameters_for(values)
        statement = plan.statement
        if limit is None and offset and connection.vendor == "sqlite":
            # Which knows no OFFSET without a LIMIT.
            limit = -1
        if limit is not None:
            # In the text, unlike the values: PostgreSQL plans a hundred rows otherwise than any number.
            statement += f" LIMIT {int(limit)}"
        if offset:
            statement += " OFFSET %s"
            parameters.append(offset)
        return plan.rows(statement, parameters, is_alike=self._is_alike)

    def count(self, *values: Value) -> int:
        """How many rows there are; for a query without an order."""
        plan = self._kept()
        statement = f"SELECT COUNT(*) FROM ({plan.statement}) AS counted"  # noqa: S608 - Django's own inside
        # All there are have to be looked at, in whatever order.
        counted = plan.asked(statement, plan.parameters_for(values), is_alike=True)
        return int(counted[0][0]) if counted else 0

    def _kept(self) -> _Plan:
        plan = self._plans.get(connection.vendor)
        if plan is None:
            plan = self._plans[connection.vendor] = self._plan()
        return plan

    def _plan(self) -> _Plan:
        standing = [_standing(kind, place) for place, kind in enumerate(self._kinds)]
        query = self._build(*standing).query
        compiler = query.get_compiler(connection=connection)
        try:
            statement, parameters = compiler.as_sql()
        except EmptyResultSet:
            return _FINDS_NOTHING
        places = tuple(
            tuple(at for at, parameter in enumerate(parameters) if parameter == prepared(value))
            for value in standing
        )
        assert all(places), "a value is in no condition"
        assert compiler.select is not None
        shown = [column[0] for column in compiler.select[: compiler.col_count]]
        return _Plan(statement, tuple(parameters), places, compiler.get_converters(shown))


class KeptForPrincipal:
    """Rows that a principal may see, for any principal and values of these kinds, by a query that is kept.

    `build(principal, *values)` starts from the selectors that know what a principal may see; root's query,
    that of a token of few sites, that of any other and that of a person are four. `by_all`: all see the same,
    root's.
    """

    def __init__(self, build: Callable[..., QuerySet[Any, Any]], *kinds: type, by_all: bool = False) -> None:
        self._by_all = by_all
        self._of_root = KeptQuery(lambda *values: build(_ANY_ROOT, *values), *kinds)
        # Of one thing there are about as many rows for every token, and its site's are soon looked up.
        is_of_one = uuid.UUID in kinds
        self._of_token = KeptQuery(_of_token(build, opens_few=False), uuid.UUID, *kinds, is_alike=is_of_one)
        self._of_few = (
            self._of_token if is_of_one else KeptQuery(_of_token(build, opens_few=True), uuid.UUID, *kinds)
        )

        self._of_scope = KeptQuery(_of_scope(build), uuid.UUID, *kinds)

    def rows(self, principal: Principal, *values: Value) -> list[tuple[Any, ...]]:
        query, own = self._for(principal)
        return query.rows(*own, *values)

    def page(
        self, principal: Principal, *values: Value, limit: int | None, offset: int
    ) -> list[tuple[Any, ...]]:
        """As of a `KeptQuery`."""
        query, own = self._for(principal)
        return query.page(*own, *values, limit=limit, offset=offset)

    def count(self, principal: Principal, *values: Value) -> int:
        """As of a `KeptQuery`."""
        query, own = self._for(principal)
        return query.count(*own, *values)

    def _for(self, principal: Principal) -> tuple[KeptQuery, tuple[uuid.UUID, ...]]:
        if principal.is_root or self._by_all:
            return self._of_root, ()
        if principal.scope_id is not None:
            return self._of_scope, (principal.scope_id,)
        query = self._of_few if principal.opens_few else self._of_token
        # Whoever has neither sees nothing, and no token has a new id.
        return query, (principal.token_id or uuid.uuid4(),)


def _of_token(
    build: Callable[..., QuerySet[Any, Any]], *, opens_few: bool
) -> Callable[..., QuerySet[Any, Any]]:
    """`build` for the token that comes before its values."""

    def of_token(token: uuid.UUID, *values: Value) -> QuerySet[Any, Any]:
        principal = Principal(client_id="", token_id=token, is_root=False, opens_few=opens_few)
        return build(principal, *values)

    return of_token


def _of_scope(build: Callable[..., QuerySet[Any, Any]]) -> Callable[..., QuerySet[Any, Any]]:
    """`build` for the scope that comes before its values."""

    def of_scope(scope: uuid.UUID, *values: Value) -> QuerySet[Any, Any]:
        return build(Principal(client_id="", token_id=None, is_root=False, scope_id=scope), *values)

    return of_scope


_ANY_ROOT = Principal(client_id="", token_id=None, is_root=True)


@contextmanager
def _cursor(*, is_alike: bool) -> Iterator[CursorWrapper]:
    """Of PostgreSQL a cursor that is kept too (`smartgrid.database`), of SQLite a new one."""
    connection.ensure_connection()
    pooled: Any = connection.connection
    if connection.vendor != "postgresql":
        with connection.cursor() as cursor:
            yield cursor
    else:
        # As Django wraps its own; but the next statement is run with it too.
        wrapped = connection.make_debug_cursor if connection.queries_logged else connection.make_cursor
        yield wrapped(pooled.prepared if is_alike else pooled.unprepared)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A statement, its parameters, where among them each value stands, and how columns are converted."""

    statement: str
    parameters: tuple[Any, ...]
    places: tuple[tuple[int, ...], ...]
    converters: Mapping[int, tuple[list[Callable[..., Any]], Any]]

    def parameters_for(self, values: Sequence[Value]) -> list[Any]:
        if self is _FINDS_NOTHING:
            return []
        parameters = list(self.parameters)
        for value, places in zip(values, self.places, strict=True):
            one = prepared(value)
            for place in places:
                parameters[place] = one
        return parameters

    def rows(self, statement: str, parameters: Sequence[Any], *, is_alike: bool) -> list[tuple[Any, ...]]:
        found = self.asked(statement, parameters, is_alike=is_alike)
        return [self._converted(row) for row in found] if self.converters else found

    def asked(self, statement: str, parameters: Sequence[Any], *, is_alike: bool) -> list[tuple[Any, ...]]:
        """What the database says, as it comes."""
        if self is _FINDS_NOTHING:
            return []
        with _cursor(is_alike=is_alike) as cursor:
            cursor.execute(statement, parameters)
            found: list[tuple[Any, ...]] = cursor.fetchall()
        return found

    def _converted(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        values = list(row)
        for at, (converters, expression) in self.converters.items():
            value = values[at]
            for converter in converters:
                value = converter(value, expression, connection)
            values[at] = value
        return tuple(values)


# Of what Django knows without asking that there is none of.
_FINDS_NOTHING = _Plan("", (), (), {})


def _standing(kind: type, place: int) -> Value:
    """What stands for a value of this kind while a query is built, and is in no other condition of it."""
    if kind is uuid.UUID:
        return uuid.uuid4()
    if kind is datetime:
        return datetime(1000, 1, 1, tzinfo=UTC) + timedelta(days=place)
    if kind is date:
        return date(1000, 1, 1) + timedelta(days=place)
    text = f"stands for another {uuid.uuid4()}"
    return [text] if kind is list else text
