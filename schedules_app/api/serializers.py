"""Schedules in the API's spelling; fields and their order are the guide's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from rest_framework import serializers

from schedules_app.models import Schedule
from schedules_app.selectors import synchronization_results
from smartgrid.api.fields import StrictCharField, StrictUUIDField

DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
DAY_EXPECTED = "A day of the calendar is expected, YYYY-MM-DD."


def day_of(text: str) -> date:
    """The day this text names; ValueError where it is no day of the calendar."""
    if not DAY.fullmatch(text):
        raise ValueError(DAY_EXPECTED)
    return date.fromisoformat(text)


class DayField(serializers.Field[date, Any, Any, Any]):
    default_error_messages = {"invalid": DAY_EXPECTED}

    def to_internal_value(self, data: Any) -> date:
        try:
            return day_of(data)
        except (ValueError, TypeError):
            self.fail("invalid")

    def to_representation(self, value: date) -> str:
        return value.isoformat()


class SlotsField(serializers.Field[Any, Any, Any, Any]):
    """Whatever stands there: which slots can be used is for the service to say."""

    def to_internal_value(self, data: Any) -> Any:
        return data

    def to_representation(self, value: Any) -> Any:
        return value


class StrictInput(serializers.Serializer[Any]):
    """An object of these fields and no others: one that is passed over in silence may be a misspelt wish."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping) and (unknown := sorted(data.keys() - self.fields.keys())):
            raise serializers.ValidationError({str(name)[:64]: ["No such field."] for name in unknown})
        return super().to_internal_value(data)


class ScheduleCreateInput(StrictInput):
    site_id = StrictUUIDField()
    category = StrictCharField(max_length=64)
    valid_on = DayField()
    schedule = SlotsField()


class ScheduleReplaceInput(StrictInput):
    site_id = StrictUUIDField()
    schedule = SlotsField()


class ScheduleListOutput(serializers.ListSerializer[Any]):
    """Many at once, with what the nodes say of all of them read in one go."""

    def to_representation(self, data: Any) -> list[Any]:
        schedules: list[Schedule] = list(data)
        results = synchronization_results(schedules)
        shown = super().to_representation(schedules)
        return [
            fields | {"synchronization_result": results[schedule.pk]}
            for fields, schedule in zip(shown, schedules, strict=True)
        ]


class ScheduleOutput(serializers.Serializer[Schedule]):
    id = serializers.UUIDField()
    site_id = serializers.UUIDField()
    category = serializers.CharField()
    valid_on = DayField()
    schedule = SlotsField()
    synchronization_result = serializers.JSONField(allow_null=True)

    class Meta:
        list_serializer_class = ScheduleListOutput
