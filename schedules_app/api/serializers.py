"""Schedules in the API's spelling; fields and their order are the guide's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from schedules_app.models import Schedule, document_name
from schedules_app.selectors import results_now
from sites_app.models import DocumentStatus
from smartgrid.api.fields import (
    StoredJsonField,
    StrictCharField,
    StrictInput,
    StrictUUIDField,
    TimestampField,
    moment,
)
from smartgrid.api.output import Output, Shown

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


class SlotsField(StoredJsonField):
    """Whatever stands there: which slots can be used is for the service to say."""

    def to_internal_value(self, data: Any) -> Any:
        return data


class ScheduleCreateInput(StrictInput):
    site_id = StrictUUIDField()
    category = StrictCharField(max_length=64)
    valid_on = DayField()
    schedule = SlotsField()


class ScheduleReplaceInput(StrictInput):
    site_id = StrictUUIDField()
    schedule = SlotsField()


class NodeSynchronizationOutput(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=DocumentStatus.choices)
    version = serializers.IntegerField()
    at = TimestampField(allow_null=True)
    error = serializers.CharField(required=False)


class SynchronizationOutput(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=DocumentStatus.choices, help_text="The worst of all nodes.")
    nodes = serializers.DictField(child=NodeSynchronizationOutput(), help_text="By the node's name.")


@extend_schema_field(SynchronizationOutput)
class SynchronizationField(serializers.JSONField):
    """What the nodes say of a schedule, which the list has read for all."""


class ScheduleOutput(Output[Schedule]):
    id = serializers.UUIDField()
    site_id = serializers.UUIDField()
    category = serializers.CharField()
    valid_on = DayField()
    schedule = SlotsField()
    # Of a day that has left the window; of the others the nodes are asked.
    synchronization_result = SynchronizationField(allow_null=True)

    beside = ("is_listed",)

    @classmethod
    def made(cls, values: Sequence[Sequence[Any]]) -> list[Shown]:
        """With what the nodes say of all of them read in one go."""
        schedules = super().made(values)
        listed = [schedule for schedule, row in zip(schedules, values, strict=True) if row[-1]]
        documents = (
            (schedule["site_id"], document_name(schedule["valid_on"], schedule["category"]))
            for schedule in listed
        )
        results = results_now(documents, spelling=moment)
        for schedule, result in zip(listed, results, strict=True):
            schedule["synchronization_result"] = result
        return schedules
