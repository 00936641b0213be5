"""Filters of lists: django-filter, with its refusals in the API's shape. The only module which imports it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Any, TypeVar

import django_filters  # type: ignore[import-untyped]
from django import forms
from django.db.models import Model, QuerySet
from rest_framework.request import Request

from smartgrid.errors import Invalid

M = TypeVar("M", bound=Model)


class CharFilter(django_filters.CharFilter):  # type: ignore[misc]
    # What a value may be, as the API's description says it. No database can look for NUL.
    described: Mapping[str, Any] = {"type": "string", "minLength": 1, "pattern": "^[^\\u0000]*$"}


class UUIDFilter(django_filters.UUIDFilter):  # type: ignore[misc]
    described: Mapping[str, Any] = {"type": "string", "format": "uuid"}


class BooleanFilter(django_filters.TypedChoiceFilter):  # type: ignore[misc]
    """`true` or `false`, as JSON spells them; django-filter's own takes all else for no choice."""

    described: Mapping[str, Any] = {"type": "boolean"}

    def __init__(self, *args: Any, **options: Any) -> None:
        choices = [("true", "true"), ("false", "false")]
        super().__init__(*args, choices=choices, coerce=lambda text: text == "true", **options)


class DayField(forms.DateField):
    """A day as ISO 8601 writes it; Django's own takes 2026-1-1 too."""

    def to_python(self, value: Any) -> date | None:
        if isinstance(value, str) and value and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value, re.ASCII):
            raise forms.ValidationError(self.error_messages["invalid"], code="invalid")
        return super().to_python(value)


class DayFilter(django_filters.DateFilter):  # type: ignore[misc]
    field_class = DayField
    described: Mapping[str, Any] = {"type": "string", "format": "date", "pattern": r"^\d{4}-\d{2}-\d{2}$"}


class FilterSet(django_filters.FilterSet):  # type: ignore[misc]
    """What a list can be narrowed by; each filter is an optional query parameter."""


def parameters_of(by: type[FilterSet]) -> dict[str, Mapping[str, Any]]:
    """The query parameters of these filters, each with the schema of its values."""
    return {
        name: {**chosen.described, **({"description": chosen.label} if chosen.label else {})}
        for name, chosen in by.base_filters.items()
    }


def filtered(*, request: Request, rows: QuerySet[M], by: type[FilterSet]) -> QuerySet[M]:
    """The rows which the query asks for; `Invalid` names each filter whose value cannot be used.

    A filter with an empty value is refused: the caller's variable was empty, and all there is would be an
    answer to another question. So is one that stands there twice: one of the two would be passed over.
    """
    asked = [name for name in by.base_filters if name in request.query_params]
    if not asked:
        return rows
    for name in asked:
        values = request.query_params.getlist(name)
        if len(values) > 1:
            raise Invalid.field(name, "stands there more than once")
        if values == [""]:
            raise Invalid.field(name, "a value is expected")
    chosen = by(request.query_params, queryset=rows)
    if not chosen.is_valid():
        errors: dict[str, list[str]] = {
            field: [str(text) for text in texts] for field, texts in chosen.errors.items()
        }
        field, texts = next(iter(errors.items()))
        raise Invalid(f"{field}: {texts[0]}", errors=errors)
    queryset: QuerySet[M] = chosen.qs
    return queryset
