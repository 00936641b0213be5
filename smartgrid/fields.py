"""Columns that Django has not got."""

from __future__ import annotations

from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Field, JSONField, Transform
from django.db.models.sql.compiler import SQLCompiler


class JsonTextField(JSONField):
    """JSON that is read whole, and kept as its text; nothing in it can be asked for.

    PostgreSQL spells jsonb anew whenever it is read, which for the slots of a hundred days took six times as
    long as finding them. The text is the one it spells, made when it is written: the same bytes.
    """

    def get_internal_type(self) -> str:
        # What its column is.
        return "TextField"

    def get_placeholder(self, _value: Any, _compiler: SQLCompiler, connection: BaseDatabaseWrapper) -> str:
        return "%s::jsonb::text" if connection.vendor == "postgresql" else "%s"

    def get_transform(  # type: ignore[override]  # which always finds one, by key
        self, lookup_name: str
    ) -> type[Transform] | None:
        # Not by key, which PostgreSQL's text does not know.
        return Field.get_transform(self, lookup_name)
