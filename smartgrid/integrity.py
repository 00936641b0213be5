"""What the database refuses, told as domain errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.db import IntegrityError, models, transaction

from smartgrid.errors import Conflict, Invalid

_DUPLICATES = frozenset({"unique", "unique_together"})


def check(row: models.Model) -> None:
    """Validate a row whole, and save nothing.

    `Invalid` names the fields which are wrong, `Conflict` says what it duplicates.
    """
    _refuse_rounding(row)
    try:
        row.full_clean(validate_unique=False, validate_constraints=False)
    except ValidationError as error:
        raise invalid_from(error) from error
    try:
        row.validate_unique()
        row.validate_constraints()
    except ValidationError as error:
        raise refusal_from(error, row=row) from error


def store(row: models.Model) -> None:
    """Validate a row whole (`check`) and save it.

    A duplicate which another transaction stored in between is a `Conflict` too.
    """
    check(row)
    with conflicts(_name(row)):
        row.save()


def _refuse_rounding(row: models.Model) -> None:
    """Numbers are stored as given or not at all: Django would make 1 of 1.5 and of True."""
    for field in row._meta.concrete_fields:  # noqa: SLF001 - Django's documented name for it
        value = getattr(row, field.attname)
        if isinstance(field, models.IntegerField) and (
            isinstance(value, bool) or (isinstance(value, float) and not value.is_integer())
        ):
            raise Invalid.field(field.name, "a whole number is expected")
        if isinstance(field, models.FloatField) and (
            isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value))
        ):
            raise Invalid.field(field.name, "a finite number is expected")


def invalid_from(error: ValidationError) -> Invalid:
    errors = {
        "non_field_errors" if field == NON_FIELD_ERRORS else field: texts
        for field, texts in error.message_dict.items()
    }
    field, texts = next(iter(errors.items()))
    return Invalid(f"{field}: {texts[0]}" if field != "non_field_errors" else texts[0], errors=errors)


def refusal_from(error: ValidationError, *, row: models.Model) -> Invalid | Conflict:
    """A broken unique constraint is a conflict with what is stored, any other an invalid row."""
    for found in error.error_dict.values():
        for single in found:
            if single.code in _DUPLICATES:
                return Conflict(
                    f"There is such a {_name(row)} already: {single.messages[0]}", code="duplicate"
                )
    return invalid_from(error)


@contextmanager
def conflicts(what: str) -> Iterator[None]:
    """Turn the database's own refusal into a `Conflict`."""
    try:
        with transaction.atomic():
            yield
    except IntegrityError as error:
        raise Conflict(f"This {what} is in conflict with one that is stored.", code="duplicate") from error


def _name(row: models.Model) -> str:
    return str(row._meta.verbose_name)  # noqa: SLF001 - Django's documented name for it
