"""What can be set of sites and nodes, in the API's spelling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from django.core.validators import RegexValidator
from rest_framework import serializers

from sites_app.api.serializers import NodeDetailOutput, SiteOutput
from sites_app.models import (
    CURTAILMENT_TIME_LIMIT_S,
    CYCLIC_WRITE_TIMEOUT_S,
    SETPOINT_THROTTLE_S,
    TOPIC_LEVEL,
)
from smartgrid.api.fields import StrictCharField, StrictUUIDField
from smartgrid.api.inputs import (
    JsonObjectField,
    ProvisioningInput,
    StrictBooleanField,
    StrictIntegerField,
    TagField,
)

# Ours -> the API's.
SPELLED = {"name": "polaris_node_name", "site": "site_id"}


class SiteSettingsOutput(SiteOutput):
    """What the guide prints of a site, and the rest that is to be known of it."""

    cyclic_write_timeout = serializers.IntegerField()
    setpoint_throttle_s = serializers.IntegerField(allow_null=True)
    time_zone = serializers.CharField()
    tenant_tag = serializers.CharField()


class SiteInput(ProvisioningInput):
    shown_only: ClassVar[Sequence[str]] = ("id", "created_at", "tenant_tag")

    site_tag = TagField(max_length=64)
    name = StrictCharField(max_length=200)
    meta_data = JsonObjectField(required=False)
    curtailment_time_limit = StrictIntegerField(
        min_value=CURTAILMENT_TIME_LIMIT_S[0],
        max_value=CURTAILMENT_TIME_LIMIT_S[1],
        required=False,
        help_text="Seconds a direct request holds a device unless it is renewed.",
    )
    cyclic_write_timeout = StrictIntegerField(
        min_value=CYCLIC_WRITE_TIMEOUT_S[0],
        max_value=CYCLIC_WRITE_TIMEOUT_S[1],
        required=False,
        help_text="Seconds between two repetitions of a setpoint.",
    )
    setpoint_throttle_s = StrictIntegerField(
        min_value=SETPOINT_THROTTLE_S[0],
        max_value=SETPOINT_THROTTLE_S[1],
        required=False,
        allow_null=True,
        help_text="Least seconds between two requests that set one device, less than the curtailment time"
        " limit. Null: none.",
    )
    time_zone = StrictCharField(
        max_length=64, required=False, help_text="For display only: schedules are in UTC."
    )


class SiteCreateInput(SiteInput):
    shown_only: ClassVar[Sequence[str]] = ()

    id = StrictUUIDField(required=False)
    tenant_tag = StrictCharField(max_length=64, required=False, validators=[RegexValidator(TOPIC_LEVEL)])


class NodeSettingsOutput(NodeDetailOutput):
    """What the guide prints of a node: all that can be set of it is among that."""


class NodeInput(ProvisioningInput):
    shown_only: ClassVar[Sequence[str]] = ("id", "created_at")

    site_id = StrictUUIDField()
    polaris_node_name = TagField(max_length=64, source="name")
    meta_data = JsonObjectField(required=False)
    curtail_in_batch = StrictBooleanField(
        required=False, help_text="One command for all devices of a request, instead of one for each."
    )
    iothub = StrictCharField(max_length=200, required=False, allow_blank=True)
    configuration = JsonObjectField(required=False)


class NodeCreateInput(NodeInput):
    shown_only: ClassVar[Sequence[str]] = ()

    id = StrictUUIDField(required=False)
