"""Rows as the API shows them: declared as serializers, read and made column by column.

To ask for the columns that are shown, and to put them under their names, costs a fraction of making objects
of the rows and fields for each. What is shown is still declared once, as a serializer, and that is what the
API's description tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar
from uuid import UUID

from django.db.models import Expression, QuerySet
from rest_framework import serializers

from smartgrid.api.fields import NumberField, StoredJsonField, TimestampField, moment, number, timestamp
from smartgrid.api.principal import Principal
from smartgrid.api.renderers import json_stored, json_value
from smartgrid.errors import NotFound
from smartgrid.expressions import AsStored
from smartgrid.kept import KeptForPrincipal

M = TypeVar("M")

Shown = dict[str, Any]
# How a value is shown; None is shown as null whatever its field.
Spelling = Callable[[Any], Any]
_AS_IT_IS = (
    serializers.CharField,
    serializers.IntegerField,
    serializers.BooleanField,
    serializers.JSONField,
    serializers.DictField,
)


class Output(serializers.Serializer[M]):
    """What is shown of a row: fields of DRF, each of one column or attribute (`source`, which may span)."""

    # Columns that are not shown, and that `finish` needs: of a row, or of what its relations lead to.
    beside: Sequence[str] = ()

    @classmethod
    def finish(cls, shown: Shown, beside: Sequence[Any]) -> Shown:  # noqa: ARG003 - for those that need it
        """Change what is shown by the values of `beside`."""
        return shown

    def to_representation(self, instance: M) -> Shown:
        return shown(type(self), instance)

    @classmethod
    def read(cls, rows: QuerySet[Any]) -> QuerySet[Any, tuple[Any, ...]]:
        """These rows, by no more than the columns for what is shown."""
        return rows.values_list(*_plan(cls).columns)

    @classmethod
    def made(cls, values: Sequence[Sequence[Any]]) -> list[Shown]:
        """What is shown of rows, of which `read` read these values."""
        plan = _plan(cls)
        return plan.show(values, plan.spellings_of_columns)

    @classmethod
    def rows(cls, rows: QuerySet[Any]) -> list[Shown]:
        """What is shown of these rows."""
        return cls.made(list(cls.read(rows)))


class ShownById:
    """What is shown of one thing by its id, to those who may see it.

    `visible_to`: the selector which all queries of such things start from.
    """

    def __init__(
        self, output: type[Output[Any]], visible_to: Callable[[Principal], QuerySet[Any]], *, what: str
    ) -> None:
        self._output = output
        self._what = what
        self._kept = KeptForPrincipal(
            lambda principal, key: output.read(visible_to(principal).filter(pk=key).order_by()), UUID
        )

    def __call__(self, principal: Principal, key: UUID) -> Shown:
        """`NotFound` where there is none that this principal may see."""
        found = self._output.made(self._kept.rows(principal, key))
        if not found:
            raise NotFound(f"No such {self._what}.")
        return found[0]


# Without a method in between, which a list of thousands of values feels.
SPELLINGS: dict[type[serializers.Field[Any, Any, Any, Any]], Spelling] = {
    TimestampField: timestamp,
    NumberField: number,
}


@dataclass(frozen=True, slots=True)
class _Plan:
    """How an output is made: its names, where their values come from, and how each of those is spelt."""

    names: tuple[str, ...]
    columns: tuple[str | Expression, ...]
    spellings_of_columns: tuple[Spelling | None, ...]
    attributes: tuple[Callable[[Any], Any], ...]
    spellings_of_attributes: tuple[Spelling | None, ...]
    finish: Callable[[Shown, Sequence[Any]], Shown] | None

    def show(self, rows: Sequence[Sequence[Any]], spellings: Sequence[Spelling | None]) -> list[Shown]:
        """What is shown of rows of values: of those of its names, then of those beside.

        Column by column: what is the same for all rows is then done once, and not for each of them.
        """
        columns = [
            values if spelling is None else [None if value is None else spelling(value) for value in values]
            for values, spelling in zip(zip(*rows, strict=True), spellings, strict=False)
        ]
        shown = [dict(zip(self.names, row, strict=True)) for row in zip(*columns, strict=True)]
        if self.finish is not None:
            at = len(self.names)
            shown = [self.finish(one, row[at:]) for one, row in zip(shown, rows, strict=True)]
        return shown


@cache
def _plan(output: type[Output[Any]]) -> _Plan:
    fields = output().fields
    sources = [*(str(field.source).replace(".", "__") for field in fields.values()), *output.beside]
    columns: list[str | Expression] = list(sources)
    spellings = [_spelling(field) for field in fields.values()]
    of_columns = list(spellings)
    for place, field in enumerate(fields.values()):
        if isinstance(field, serializers.JSONField):
            columns[place], of_columns[place] = AsStored(sources[place]), json_value
        elif isinstance(field, StoredJsonField):
            columns[place], of_columns[place] = AsStored(sources[place]), json_stored
        elif isinstance(field, TimestampField):
            of_columns[place] = moment
        elif isinstance(field, serializers.ChoiceField):
            # A column has the choice's own text already.
            of_columns[place] = None
    return _Plan(
        names=tuple(fields),
        columns=tuple(columns),
        spellings_of_columns=tuple(of_columns),
        attributes=tuple(attrgetter(source.replace("__", ".")) for source in sources),
        spellings_of_attributes=tuple(spellings),
        finish=output.finish if output.beside else None,
    )


def _spelling(field: serializers.Field[Any, Any, Any, Any]) -> Spelling | None:
    if type(field).to_representation in {kind.to_representation for kind in _AS_IT_IS}:
        return None
    if isinstance(field, serializers.UUIDField) or (
        isinstance(field, serializers.ListField) and isinstance(field.child, serializers.UUIDField)
    ):
        # The renderer spells them as everybody does.
        return None
    spelt: Spelling = SPELLINGS.get(type(field), field.to_representation)
    return spelt


def shown(output: type[Output[M]], thing: M) -> Shown:
    """What is shown of one thing that is at hand."""
    return shown_all(output, [thing])[0]


def shown_all(output: type[Output[M]], things: Iterable[M]) -> list[Shown]:
    """What is shown of things that are at hand, whether rows or not."""
    plan = _plan(output)
    rows = [[attribute(thing) for attribute in plan.attributes] for thing in things]
    return plan.show(rows, plan.spellings_of_attributes)
