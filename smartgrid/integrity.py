"""What the database refuses, told as domain errors."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.db import IntegrityError, models, transaction

from smartgrid.errors import REFUSED_SHOWN, Conflict, Invalid, SgmError

_DUPLICATES = frozenset({"unique", "unique_together"})


def check(row: models.Model) -> None:
    """Validate a row whole, and save nothing.

    `Invalid` names the fields which are wrong, `Conflict` says what it duplicates.
    """
    _fields_check(row)
    try:
        row.validate_unique()
        row.validate_constraints()
    except ValidationError as error:
        raise refusal_from(error, row=row) from error


def store(row: models.Model) -> None:
    """Save a row, or say what is wrong with it as `check` does.

    A duplicate which another transaction stored in between is a `Conflict` too.
    """
    _fields_check(row)
    try:
        # The database keeps the constraints. To ask it beforehand about each of them, as Django would, takes
        # ten times as long as the row; that is done for one which was refused, to say why.
        with conflicts(_name(row)):
            row.save()
    except Conflict as error:
        raise (_refusal(row) or error) from error.__cause__


def rows_store(rows: Sequence[models.Model], *, trusted: Collection[str] = ()) -> dict[int, SgmError]:
    """Validate rows of one model and save them: what each that was refused is refused for, by its place.

    The errors are those of `store`, and of two equal rows the later is the duplicate. Of very many, the first
    hundred. Where any is refused the caller undoes the rest: call it within a transaction. `trusted`: foreign
    keys to rows that the caller has read and holds.

    A few statements, however many rows: each is first looked at by itself, without the database, and which
    rows this refuses of a statement is found by halving it.
    """
    refused: dict[int, SgmError] = {}
    for place, row in enumerate(rows):
        try:
            _fields_check(row, trusted=trusted)
        except Invalid as error:
            refused[place] = error
            if len(refused) >= REFUSED_SHOWN:
                return refused
    _insert(rows, [place for place in range(len(rows)) if place not in refused], refused)
    return dict(sorted(refused.items()))


def _insert(rows: Sequence[models.Model], places: Sequence[int], refused: dict[int, SgmError]) -> None:
    if not places or len(refused) >= REFUSED_SHOWN:
        return
    some = [rows[place] for place in places]
    try:
        with conflicts(_name(some[0])):
            type(some[0])._default_manager.bulk_create(some, batch_size=500)  # noqa: SLF001 - as above
    except Conflict as error:
        if len(places) == 1:
            refused[places[0]] = _refusal(some[0]) or error
            return
        middle = len(places) // 2
        _insert(rows, places[:middle], refused)
        _insert(rows, places[middle:], refused)


def _refusal(row: models.Model) -> SgmError | None:
    """Why a row that the database refused cannot be stored; None where it could be now."""
    try:
        check(row)
    except SgmError as error:
        return error
    return None


def _fields_check(row: models.Model, *, trusted: Collection[str] = ()) -> None:
    """Refuse a row whose fields are wrong, each by itself."""
    _refuse_rounding(row)
    try:
        row.full_clean(exclude=set(trusted), validate_unique=False, validate_constraints=False)
    except ValidationError as error:
        raise invalid_from(error) from error


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
    """A broken unique constraint is a conflict with what is stored, any other an invalid row.

    Of several fields that are unique together, the last is named: the ones before say in what.
    """
    for found in error.error_dict.values():
        for single in found:
            if single.code in _DUPLICATES:
                text = f"There is such a {_name(row)} already: {single.messages[0]}"
                fields = (single.params or {}).get("unique_check") or ()
                return Conflict(text, code="duplicate", errors={name: [text] for name in fields[-1:]})
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
