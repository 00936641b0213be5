"""What can be set of devices and device types, in the API's spelling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from django.core.validators import RegexValidator
from rest_framework import serializers

from devices_app.address import PARITIES
from devices_app.api.serializers import DeviceOutput
from devices_app.choices import CATEGORY_PATTERN, Lifetime, ValueKind
from devices_app.models import PORTS, UNITS, Device, DeviceType, RetiringDevice
from edge.profiles.address import BAUD_RATES, MAX_HOST, MAX_URL, STOP_BITS
from edge.profiles.points import Protocol
from smartgrid.api.fields import (
    NumberField,
    ObjectField,
    StrictCharField,
    StrictNumberField,
    StrictUUIDField,
    TimestampField,
)
from smartgrid.api.inputs import (
    JsonObjectField,
    ProvisioningInput,
    StrictBooleanField,
    StrictChoiceField,
    StrictIntegerField,
    TagField,
)
from smartgrid.api.output import Output

# Ours -> the API's.
SPELLED = {"node": "node_id", "device_type": "device_type_id", "controlled_by": "controlled_by_id"}
PROTOCOLS = [protocol.value for protocol in Protocol]
PROFILE_BYTES_MAX = 128 * 1024


class RetiringListOutput(serializers.ListSerializer[Any]):
    """What is still waited for; what somebody abandoned keeps nothing taken."""

    def to_representation(self, data: Any) -> list[Any]:
        return super().to_representation([row for row in data.all() if not row.is_abandoned])


class RetiringOutput(serializers.Serializer[RetiringDevice]):
    """Where a device was before, at a node that has yet to let go of it."""

    node_id = serializers.UUIDField()
    device_tag = serializers.CharField()
    reason = serializers.CharField()
    since = TimestampField()

    class Meta:
        list_serializer_class = RetiringListOutput


class IsSetField(serializers.BooleanField):
    """Whether there is something, where what it is must not be shown."""

    def to_representation(self, value: Any) -> bool:
        return bool(value)


class DeviceSettingsOutput(Output[Device]):
    """What the guide prints of a device, and the rest that is to be known of it.

    Null is what its type or the protocol has no use for, or where the type's or the maker's default holds.
    `retiring`: what it was before and is not let go of yet; `waits`: till then it is not written to.
    """

    id = serializers.UUIDField()
    created_at = TimestampField()
    device_tag = serializers.CharField()
    node_id = serializers.UUIDField()
    device_type_id = serializers.UUIDField()
    max_value = NumberField()
    min_value = NumberField()
    default_value = NumberField()
    value = NumberField(allow_null=True)
    meta_data = ObjectField()
    include_in_curtailment = serializers.BooleanField()
    category = serializers.CharField()
    peak_power_kw = NumberField(allow_null=True)
    modbus_server_host = serializers.CharField(allow_null=True)
    modbus_server_port = serializers.IntegerField(allow_null=True)
    modbus_id = serializers.IntegerField(allow_null=True)
    protocol = serializers.ChoiceField(PROTOCOLS, allow_null=True)
    serial_port = serializers.CharField(allow_null=True)
    baud_rate = serializers.IntegerField(allow_null=True)
    parity = serializers.ChoiceField(PARITIES, allow_null=True)
    stop_bits = serializers.IntegerField(allow_null=True)
    url = serializers.CharField(allow_null=True)
    username = serializers.CharField()
    password_set = IsSetField(source="password_encrypted")
    parameters = ObjectField()
    lifetime = serializers.ChoiceField(Lifetime.choices, allow_null=True)
    telemetry_s = NumberField()
    controlled_by_id = serializers.UUIDField(allow_null=True)
    measured_only = serializers.BooleanField()
    ramp_pct_per_min = NumberField(allow_null=True)
    accept_wear = serializers.BooleanField()
    arm_fallback = serializers.BooleanField()
    default_confirmed = serializers.BooleanField()
    waits = serializers.BooleanField()
    retiring = RetiringOutput(many=True, source="retiring_devices")


assert list(DeviceOutput().fields) == list(DeviceSettingsOutput().fields)[: len(DeviceOutput().fields)]


class DeviceInput(ProvisioningInput):
    shown_only: ClassVar[Sequence[str]] = ("id", "created_at", "value", "password_set", "waits", "retiring")

    node_id = StrictUUIDField()
    device_type_id = StrictUUIDField()
    device_tag = TagField(max_length=64)
    category = StrictCharField(
        max_length=64,
        required=False,
        validators=[RegexValidator(CATEGORY_PATTERN)],
        help_text="Left out: the type's.",
    )
    min_value = StrictNumberField(required=False, help_text="Left out: the type's.")
    max_value = StrictNumberField(required=False, help_text="Left out: the type's.")
    default_value = StrictNumberField(required=False, help_text="Left out: the type's.")
    default_confirmed = StrictBooleanField(
        required=False, help_text="An engineer confirms a default other than 0 for a signed setpoint."
    )
    peak_power_kw = StrictNumberField(above=0, required=False, allow_null=True)
    meta_data = JsonObjectField(required=False)
    include_in_curtailment = StrictBooleanField(required=False)
    measured_only = StrictBooleanField(required=False, help_text="Read, never written.")
    modbus_server_host = StrictCharField(max_length=MAX_HOST, required=False, allow_null=True)
    modbus_server_port = StrictIntegerField(
        min_value=PORTS[0], max_value=PORTS[1], required=False, allow_null=True
    )
    modbus_id = StrictIntegerField(min_value=UNITS[0], max_value=UNITS[1], required=False, allow_null=True)
    protocol = StrictChoiceField(
        PROTOCOLS,
        required=False,
        allow_null=True,
        help_text="By which of the type's protocols it is reached. Null: the type's first.",
    )
    serial_port = StrictCharField(
        max_length=100,
        required=False,
        allow_null=True,
        help_text="Of the node, below /dev; in place of host and port.",
    )
    baud_rate = StrictIntegerField(
        min_value=BAUD_RATES[0],
        max_value=BAUD_RATES[-1],
        required=False,
        allow_null=True,
        help_text="Null: the maker's default.",
    )
    parity = StrictChoiceField(
        PARITIES, required=False, allow_null=True, help_text="Null: the maker's default."
    )
    stop_bits = StrictIntegerField(
        min_value=STOP_BITS[0],
        max_value=STOP_BITS[-1],
        required=False,
        allow_null=True,
        help_text="Null: the maker's default.",
    )
    url = StrictCharField(
        max_length=MAX_URL,
        required=False,
        allow_null=True,
        help_text="MQTT broker, OPC XML-DA server or HTTP server, without credentials.",
    )
    username = StrictCharField(max_length=200, required=False, allow_blank=True)
    password = StrictCharField(
        max_length=500,
        required=False,
        allow_blank=True,
        help_text="Never shown. Left out: as it is; empty: none.",
    )
    parameters = JsonObjectField(
        required=False, help_text="What the type's profile leaves open to each device."
    )
    lifetime = StrictChoiceField(
        Lifetime.choices, required=False, allow_null=True, help_text="Null: the type's."
    )
    telemetry_s = StrictNumberField(
        min_value=1, required=False, help_text="Seconds between two readings sent to central."
    )
    controlled_by_id = StrictUUIDField(
        required=False,
        allow_null=True,
        help_text="The device of the same node that commands this one too: by its own control point, or as a"
        " proxy. In an array it may be another of its devices, by the id that is given there.",
    )
    ramp_pct_per_min = StrictNumberField(
        above=0,
        required=False,
        allow_null=True,
        help_text="How fast the value may change, % of nameplate a minute. Null: at once.",
    )
    accept_wear = StrictBooleanField(
        required=False,
        help_text="An engineer accepts writes that the register's memory may not be made for.",
    )
    arm_fallback = StrictBooleanField(
        required=False,
        help_text="Arm the device's own fallback although it can only release or only stop.",
    )


class DeviceCreateInput(DeviceInput):
    shown_only: ClassVar[Sequence[str]] = ()

    id = StrictUUIDField(required=False)


class DeviceTypeOutput(Output[DeviceType]):
    id = serializers.UUIDField()
    created_at = TimestampField()
    name = serializers.CharField()
    profile = serializers.CharField()
    category = serializers.CharField()
    protocol = serializers.CharField()
    value_kind = serializers.ChoiceField(ValueKind.choices, allow_null=True)
    min_value = NumberField()
    max_value = NumberField()
    default_value = NumberField()
    lifetime = serializers.ChoiceField(Lifetime.choices)
    verified_on_hardware = serializers.BooleanField()


class DeviceTypeDetailOutput(DeviceTypeOutput):
    """With its profile, all the registers and rules of it."""

    profile_body = ObjectField()


class DeviceTypeInput(ProvisioningInput):
    shown_only: ClassVar[Sequence[str]] = (
        "id",
        "created_at",
        "profile",
        "category",
        "protocol",
        "value_kind",
        "min_value",
        "max_value",
        "default_value",
        "verified_on_hardware",
    )

    name = TagField(max_length=200)
    lifetime = StrictChoiceField(Lifetime.choices, required=False)
    profile_body = JsonObjectField(
        max_bytes=PROFILE_BYTES_MAX,
        required=False,
        help_text="An own profile, whose name begins with own_; docs/add-a-device.md says what stands in it.",
    )


class DeviceTypeCreateInput(DeviceTypeInput):
    shown_only: ClassVar[Sequence[str]] = ()

    id = StrictUUIDField(required=False)
    profile = StrictCharField(
        max_length=100, required=False, help_text="One that comes with the software, in place of an own one."
    )
