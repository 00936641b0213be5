"""Control requests and logs in the API's spelling."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from control_app.models import ControlLog, Status, Unit
from edge.wire.messages import DevicePreview, Explanation, PreviewWear, ReasonEntry
from smartgrid.api.fields import (
    NullField,
    NumberField,
    StrictCharField,
    StrictInput,
    StrictNumberField,
    TimestampField,
)
from smartgrid.api.inputs import StrictBooleanField, StrictChoiceField
from smartgrid.api.output import Output, Shown

MAX_TAGS = 10_000


class CurtailCategoryInput(StrictInput):
    value = StrictNumberField()
    unit = StrictChoiceField(
        choices=Unit.choices,
        required=False,
        help_text="percent (of each device's nameplate power, unless its type says otherwise), or kw: the "
        "power of all the devices together, of which each has its share by `peak_power_kw`.",
    )
    category = StrictCharField(max_length=64)
    device_tags = serializers.ListField(
        child=StrictCharField(max_length=64), required=False, allow_empty=False, max_length=MAX_TAGS
    )
    reason = StrictCharField(max_length=500, required=False, allow_blank=True)
    dry_run = StrictBooleanField(required=False, help_text="true: say what would be done, and do nothing.")


class ReleaseInput(StrictInput):
    category = StrictCharField(max_length=64, required=False)
    device_tags = serializers.ListField(
        child=StrictCharField(max_length=64), required=False, allow_empty=False, max_length=MAX_TAGS
    )
    reason = StrictCharField(max_length=500, required=False, allow_blank=True)


class ControlResultOutput(serializers.Serializer[Any]):
    """Device tags that follow, and of the others why not, as `code: what a person can act on`."""

    updated = serializers.DictField(child=NullField(), help_text="Devices that confirmed the value, by tag.")
    not_updated = serializers.DictField(
        child=serializers.CharField(),
        help_text="The others by tag, each with a reason that begins with its code.",
    )


class OrNullField(serializers.CharField):
    """A text of the wire, where none is empty."""

    def to_representation(self, value: Any) -> Any:
        return value or None


class WearOutput(serializers.Serializer[PreviewWear]):
    """What the value would cost the register it goes to, in writes."""

    write_class = serializers.CharField(help_text="volatile, persistent or unknown.")
    wears = serializers.BooleanField(help_text="A write costs the register something.")
    now = serializers.IntegerField()
    release = serializers.IntegerField(help_text="Once the hold has ended, as things are now.")
    today = serializers.IntegerField(help_text="Writes since 00:00Z.")
    per_day = serializers.IntegerField(allow_null=True, help_text="The day's budget; null is none.")


class DevicePreviewOutput(serializers.Serializer[DevicePreview]):
    """What a request would do to one device, as its node says."""

    code = serializers.CharField(allow_null=True, help_text="Why it would be refused; null: it would not.")
    detail = serializers.CharField()
    value = NumberField(allow_null=True, help_text="What would be asked of the device first.")
    target = NumberField(allow_null=True, help_text="Where its ramp leads; without one the value.")
    wish = NumberField(allow_null=True, help_text="What is asked for, before all bounds.")
    bounded_by = serializers.CharField(allow_null=True)
    source = OrNullField(allow_null=True)  # type: ignore[assignment]  # the API's word, and DRF's attribute
    through = OrNullField(allow_null=True, help_text="The proxy that passes the value on.")
    reason = serializers.CharField(help_text="All of it in one sentence.")
    holds_s = NumberField(allow_null=True)
    write = OrNullField(allow_null=True, help_text="Why it would be written; null: it would not.")
    in_force = NumberField(allow_null=True, help_text="What it was last written.")
    in_force_reason = serializers.CharField()
    reachable = serializers.BooleanField(allow_null=True)
    wear = WearOutput(allow_null=True)


class ControlOutput(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=Status.choices)
    result = ControlResultOutput()
    dry_run = serializers.BooleanField(required=False, help_text="true, where nothing was done.")
    preview = serializers.DictField(
        child=DevicePreviewOutput(),
        required=False,
        help_text="Of a dry run: what would be done, by tag, to devices behind proxies too.",
    )


@extend_schema_field(ControlResultOutput)
class ControlResultField(serializers.JSONField):
    """What was told then, as it stands in the log."""


class ErrorDetailOutput(serializers.Serializer[Any]):
    timestamp = TimestampField()
    error = serializers.CharField()


class DeviceErrorsOutput(serializers.Serializer[Any]):
    total_errors = serializers.IntegerField()
    error_details = ErrorDetailOutput(many=True)


class SiteErrorsOutput(serializers.Serializer[Any]):
    site_name = serializers.CharField()
    devices = serializers.DictField(child=DeviceErrorsOutput())


class WireTimestampField(TimestampField):
    """A moment as a node wrote it, in our spelling."""

    def to_representation(self, value: Any) -> Any:
        return super().to_representation(datetime.fromisoformat(value))


class ReasonOutput(serializers.Serializer[ReasonEntry]):
    """One entry of a node's ring of reasons; `text` says all of it, for people.

    `kind` is `decision`, `outcome` (of a write; `code` is null where the device confirmed it) or `gone`.
    """

    at = WireTimestampField()
    kind = serializers.CharField()
    who = serializers.CharField()
    text = serializers.CharField()
    value = NumberField(allow_null=True)
    source = OrNullField(allow_null=True)  # type: ignore[assignment]
    wish = NumberField(allow_null=True)
    bounded_by = serializers.CharField(allow_null=True)
    request_id = serializers.CharField(allow_null=True)
    until = WireTimestampField(allow_null=True)
    because = OrNullField(allow_null=True)
    code = serializers.CharField(allow_null=True)
    readback = NumberField(allow_null=True)


class ExplanationOutput(serializers.Serializer[Explanation]):
    """Why a device was held where it was: the decision in force then, its writes, and what was around it."""

    device_tag = serializers.CharField(source="device")
    at = WireTimestampField()
    reaches_back_to = WireTimestampField()
    decision = ReasonOutput()
    written = ReasonOutput(many=True)
    before = ReasonOutput(many=True)
    after = ReasonOutput(many=True)
    notes = serializers.ListField(child=serializers.CharField())


class ControlLogOutput(Output[ControlLog]):
    id = serializers.UUIDField()
    created_at = TimestampField()
    site_id = serializers.UUIDField()
    status = serializers.CharField()
    category = serializers.CharField()
    watchdog = serializers.BooleanField()
    value = NumberField(allow_null=True, help_text="null: holds were ended early.")
    result = ControlResultField()
    unit = serializers.CharField(required=False, help_text="kw, where the value was asked for in kW.")

    beside = ("unit",)

    @classmethod
    def finish(cls, shown: Shown, beside: Sequence[Any]) -> Shown:
        """The guide's keys and no others, unless a value could be taken for percent that is none."""
        if beside[0] == Unit.PERCENT:
            del shown["unit"]
        return shown
