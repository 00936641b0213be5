"""What Django's queries do not say by themselves, for both databases; and values as their parameters.

To import this is to have the lookup `among`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

from django.db import connection as _connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import ExpressionWrapper, F, Field, Lookup, Subquery, TextField, UUIDField
from django.db.models.sql import Query
from django.db.models.sql.compiler import SQLCompiler

Value = uuid.UUID | str | date | datetime | Sequence[uuid.UUID] | Sequence[str]
_UUIDS: UUIDField[Any, Any] = UUIDField()


def prepared(value: Value) -> Any:
    """As the database takes it for a parameter; many values are one, which `among` compares with."""
    if isinstance(value, str):
        return value
    if isinstance(value, uuid.UUID):
        return _UUIDS.get_db_prep_value(value, _connection)
    if isinstance(value, datetime):
        return _connection.ops.adapt_datetimefield_value(value)
    if isinstance(value, date):
        return _connection.ops.adapt_datefield_value(value)
    if _connection.vendor == "postgresql":
        return f"{{{','.join(map(_element, value))}}}"
    return json.dumps([prepared(each) for each in value])


def _element(value: uuid.UUID | str) -> str:
    """As it stands in an array of PostgreSQL."""
    if isinstance(value, uuid.UUID):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@Field.register_lookup
class Among(Lookup):
    """`among=values`: as `in`, with one parameter however many values there are, which a kept query needs.

    `among=query`, of one column: as `in` for the few values that it finds. PostgreSQL looks for these first,
    and then for the rows of each; it takes them for ten, whatever they depend on, so that any plan is as good
    for all values of the query's own.
    """

    lookup_name = "among"
    prepare_rhs = False

    def as_postgresql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper) -> tuple[str, list[Any]]:
        column, parameters = self.process_lhs(compiler, connection)
        if self._is_query():
            found, own = self.process_rhs(compiler, connection)
            return f"{column} = ANY(ARRAY{found})", [*parameters, *own]
        # Without a length: a cast to varchar(9) cuts off in silence what is longer.
        kind = str(self.lhs.output_field.db_type(connection)).partition("(")[0]
        return f"{column} = ANY(%s::{kind}[])", [*parameters, prepared(self.rhs)]

    def as_sqlite(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper) -> tuple[str, list[Any]]:
        column, parameters = self.process_lhs(compiler, connection)
        if self._is_query():
            found, own = self.process_rhs(compiler, connection)
            return f"{column} IN {found}", [*parameters, *own]
        given = "(SELECT value FROM json_each(%s))"
        return f"{column} IN {given}", [*parameters, prepared(self.rhs)]

    def _is_query(self) -> bool:
        return isinstance(self.rhs, Query)


class AsStored(ExpressionWrapper):  # type: ignore[type-arg]  # generic in the stubs alone
    """The text of a JSON column, as the database keeps it, without a reading of Django's."""

    def __init__(self, column: str) -> None:
        super().__init__(F(column), output_field=TextField())


class KeysFound(Subquery):
    """The keys that a query finds, in its order, as a list of texts. They are UUIDs, called `key` there."""

    output_field = TextField()

    def as_postgresql(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any
    ) -> tuple[str, Any]:
        # One text: an array would be taken apart in Python, key by key.
        template = "(SELECT string_agg(found.key::text, ',') FROM (%(subquery)s) AS found)"
        return self.as_sql(compiler, connection, template=template, **context)

    def as_sqlite(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any
    ) -> tuple[str, Any]:
        template = "(SELECT group_concat(found.key) FROM (%(subquery)s) AS found)"
        return self.as_sql(compiler, connection, template=template, **context)

    def get_db_converters(self, connection: BaseDatabaseWrapper) -> list[Any]:
        return [_keys_told if connection.features.has_native_uuid_field else _keys_stored]


def _keys_told(value: str | None, *_: Any) -> list[str]:
    return value.split(",") if value else []


def _keys_stored(value: str | None, *_: Any) -> list[str]:
    return [str(uuid.UUID(key)) for key in _keys_told(value)]
