"""Filters of lists: django-filter, with its refusals in the API's shape. The only module which imports it."""

from __future__ import annotations

from typing import Any, TypeVar

import django_filters  # type: ignore[import-untyped]
from django.db.models import Model, QuerySet
from django_filters.rest_framework import BooleanFilter as _BooleanFilter  # type: ignore[import-untyped]
from rest_framework.request import Request

from smartgrid.errors import Invalid

M = TypeVar("M", bound=Model)

CharFilter = django_filters.CharFilter
UUIDFilter = django_filters.UUIDFilter
BooleanFilter = _BooleanFilter


class DayFilter(django_filters.DateFilter):  # type: ignore[misc]
    """A day as ISO 8601 writes it, and no other way."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, input_formats=["%Y-%m-%d"], **options)


class FilterSet(django_filters.FilterSet):  # type: ignore[misc]
    """What a list can be narrowed by; each filter is an optional query parameter."""


def filtered(*, request: Request, rows: QuerySet[M], by: type[FilterSet]) -> QuerySet[M]:
    """The rows which the query asks for; `Invalid` names each filter whose value cannot be used."""
    chosen = by(request.query_params, queryset=rows)
    if not chosen.is_valid():
        errors: dict[str, list[str]] = {
            field: [str(text) for text in texts] for field, texts in chosen.errors.items()
        }
        field, texts = next(iter(errors.items()))
        raise Invalid(f"{field}: {texts[0]}", errors=errors)
    queryset: QuerySet[M] = chosen.qs
    return queryset
