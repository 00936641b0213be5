"""The API's spelling of values, as the guide prints them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rest_framework import serializers

TIMESTAMP = "%Y-%m-%dT%H:%M:%S.%fZ"


def timestamp(at: datetime) -> str:
    """`2024-08-01T10:52:55.330076Z`: always UTC, always with microseconds."""
    return at.astimezone(UTC).strftime(TIMESTAMP)


def number(value: float) -> int | float:
    """100 rather than 100.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class TimestampField(serializers.DateTimeField):
    def to_representation(self, value: Any) -> Any:
        return timestamp(value)


class NumberField(serializers.FloatField):
    def to_representation(self, value: Any) -> Any:
        return number(value)


class StrictCharField(serializers.CharField):
    """A JSON string as it was sent; DRF's own takes numbers for one, and cuts blanks off."""

    def __init__(self, **options: Any) -> None:
        super().__init__(trim_whitespace=False, **options)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class StrictUUIDField(serializers.UUIDField):
    """A UUID as text; DRF's own takes numbers too."""

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, str):
            self.fail("invalid", value=data)
        return super().to_internal_value(data)
