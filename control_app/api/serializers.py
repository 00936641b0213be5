"""Control requests and logs in the API's spelling."""

from __future__ import annotations

import math
from typing import Any

from rest_framework import serializers

from control_app.models import ControlLog
from smartgrid.api.fields import NumberField, StrictCharField, TimestampField

MAX_TAGS = 10_000


class StrictNumberField(serializers.Field[float, Any, Any, Any]):
    """A finite JSON number: no text that looks like one, no bool, no NaN."""

    default_error_messages = {"invalid": "A finite number is expected."}

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, bool) or not isinstance(data, int | float):
            self.fail("invalid")
        try:
            value = float(data)
        except OverflowError:
            self.fail("invalid")
        if not math.isfinite(value):
            self.fail("invalid")
        return value

    def to_representation(self, value: float) -> float:
        return value


class CurtailCategoryInput(serializers.Serializer[Any]):
    value = StrictNumberField()
    # Named beyond the guide; kW would be taken for percent if it were passed over in silence.
    unit = serializers.ChoiceField(choices=["percent"], required=False)
    category = StrictCharField(max_length=64)
    device_tags = serializers.ListField(
        child=StrictCharField(max_length=64), required=False, allow_empty=False, max_length=MAX_TAGS
    )
    reason = StrictCharField(max_length=500, required=False, allow_blank=True)


class ControlLogOutput(serializers.Serializer[ControlLog]):
    id = serializers.UUIDField()
    created_at = TimestampField()
    site_id = serializers.UUIDField()
    status = serializers.CharField()
    category = serializers.CharField()
    watchdog = serializers.BooleanField()
    value = NumberField(allow_null=True)
    result = serializers.JSONField()
