"""The API's spelling of values, as the guide prints them, and what is taken for one in a request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from rest_framework import serializers

TIMESTAMP = "%Y-%m-%dT%H:%M:%S.%fZ"


def timestamp(at: datetime) -> str:
    """`2024-08-01T10:52:55.330076Z`: always UTC, always with microseconds."""
    if at.tzinfo is not UTC:
        at = at.astimezone(UTC)
    # As `TIMESTAMP` has it; strftime takes five times as long, and lists are full of these.
    return f"{at.isoformat(timespec='microseconds')[:26]}Z"


def moment(at: datetime) -> datetime | str:
    """`timestamp`, or the moment itself where the renderer makes the same of it, at a tenth of the cost."""
    # It leaves out microseconds where there are none.
    return at if at.microsecond and at.tzinfo is UTC else timestamp(at)


def number(value: float) -> int | float:
    """100 rather than 100.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class TimestampField(serializers.DateTimeField):
    def to_representation(self, value: Any) -> Any:
        return timestamp(value)


class NumberField(serializers.FloatField):
    def to_representation(self, value: Any) -> Any:
        return number(value)


class ObjectField(serializers.JSONField):
    """A JSON object, in which stands what its owner wants."""

    default_error_messages: ClassVar[dict[str, Any]] = {"not_an_object": "An object is expected."}

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, dict):
            self.fail("not_an_object")
        return super().to_internal_value(data)


class StoredJsonField(serializers.Field[Any, Any, Any, Any]):
    """JSON that goes from its column into the answer as it is stored, blanks and all.

    To take a hundred long values apart only to put them together again costs more than all the rest.
    """

    def to_representation(self, value: Any) -> Any:
        return value


class NullField(serializers.Field[None, Any, None, Any]):
    """null, where only the name says something."""

    def to_representation(self, value: None) -> None:
        return value


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


class DistinctListField(serializers.ListField):
    """A list in which nothing may stand twice; what stands there twice is for the service to say."""


class StrictNumberField(serializers.Field[float, Any, Any, Any]):
    """A finite JSON number: no text that looks like one, no bool, no NaN.

    `min_value` is the least it may be, `above` what it must be more than, `max_value` the most.
    """

    default_error_messages: ClassVar[dict[str, Any]] = {
        "invalid": "A finite number is expected.",
        "min_value": "{limit:g} or more is expected.",
        "above": "More than {limit:g} is expected.",
        "max_value": "{limit:g} or less is expected.",
    }

    def __init__(
        self,
        *,
        min_value: float | None = None,
        above: float | None = None,
        max_value: float | None = None,
        **options: Any,
    ) -> None:
        self.min_value, self.above, self.max_value = min_value, above, max_value
        super().__init__(**options)

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, bool) or not isinstance(data, int | float):
            self.fail("invalid")
        try:
            value = float(data)
        except OverflowError:
            self.fail("invalid")
        if not math.isfinite(value):
            self.fail("invalid")
        if self.min_value is not None and value < self.min_value:
            self.fail("min_value", limit=self.min_value)
        if self.above is not None and value <= self.above:
            self.fail("above", limit=self.above)
        if self.max_value is not None and value > self.max_value:
            self.fail("max_value", limit=self.max_value)
        return value

    def to_representation(self, value: float) -> float:
        return value


class StrictInput(serializers.Serializer[Any]):
    """An object of these fields and no others: one that is passed over in silence may be a misspelt wish."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping) and (unknown := sorted(data.keys() - self.fields.keys())):
            raise serializers.ValidationError({str(name)[:64]: ["No such field."] for name in unknown})
        return super().to_internal_value(data)
