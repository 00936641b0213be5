"""Device types, devices, closed loops, what is retiring, telemetry: fields, constraints, facts of a row."""

from __future__ import annotations

import uuid

from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from devices_app.address import PARITIES
from devices_app.choices import (
    CATEGORY_PATTERN,
    BoundOrigin,
    Lifetime,
    LoopMode,
    LoopStand,
    ValueKind,
)
from edge.core.loop.terms import LOOP_RANGES
from edge.profiles.points import Protocol
from sites_app.models import Node, Site

PORTS = (1, 65535)
UNITS = (0, 255)


def _default_within_bounds(*, name: str) -> models.CheckConstraint:
    return models.CheckConstraint(
        condition=Q(min_value__lte=F("default_value")) & Q(default_value__lte=F("max_value")),
        name=name,
        violation_error_message="min_value, default_value and max_value must be in this order.",
    )


def is_modbus(protocol: str) -> bool:
    """Tell whether devices of this protocol have a unit, and a host and port or a serial line."""
    return protocol.startswith("modbus")


class DeviceType(models.Model):
    """What devices of one make have in common; its profile, from `edge.profiles`, travels to the nodes."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    name = models.CharField(max_length=200, unique=True)
    profile = models.CharField(max_length=100)
    category = models.CharField(max_length=64, validators=[RegexValidator(CATEGORY_PATTERN)])
    protocol = models.CharField(max_length=32)
    # Null for what is only read.
    value_kind = models.CharField(max_length=32, choices=ValueKind, null=True, blank=True)
    min_value = models.FloatField(default=0)
    max_value = models.FloatField(default=100)
    default_value = models.FloatField(default=100)
    lifetime = models.CharField(max_length=16, choices=Lifetime, default=Lifetime.CYCLIC)
    verified_on_hardware = models.BooleanField(default=False)
    profile_body = models.JSONField(default=dict, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=~Q(name=""), name="device_type_name_not_empty"),
            models.CheckConstraint(condition=~Q(profile=""), name="device_type_profile_not_empty"),
            models.CheckConstraint(
                condition=Q(category__regex=CATEGORY_PATTERN), name="device_type_category_is_a_topic_level"
            ),
            models.CheckConstraint(
                condition=Q(value_kind__isnull=True) | Q(value_kind__in=ValueKind.values),
                name="device_type_value_kind_known",
            ),
            models.CheckConstraint(
                condition=Q(lifetime__in=Lifetime.values), name="device_type_lifetime_known"
            ),
            _default_within_bounds(name="device_type_default_within_bounds"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def speaks_modbus(self) -> bool:
        return is_modbus(self.protocol)

    @property
    def has_limit(self) -> bool:
        """Tell whether there is a register we may write; meters have none."""
        return bool(self.profile_body.get("limit"))


class Device(models.Model):
    """One piece of hardware behind a node."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    # The node's site, kept here because tags and control points are unique in it. The service keeps them
    # equal.
    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="devices", editable=False)
    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="devices")
    device_type = models.ForeignKey(DeviceType, on_delete=models.PROTECT, related_name="devices")
    device_tag = models.CharField(max_length=64)
    category = models.CharField(max_length=64, validators=[RegexValidator(CATEGORY_PATTERN)])
    min_value = models.FloatField()
    max_value = models.FloatField()
    default_value = models.FloatField()
    peak_power_kw = models.FloatField(null=True, blank=True)
    meta_data = models.JSONField(default=dict, blank=True)
    include_in_curtailment = models.BooleanField(default=True)
    measured_only = models.BooleanField(
        default=False, help_text="Read, never written: meters, and devices behind another's control point."
    )
    modbus_server_host = models.CharField(max_length=253, null=True, blank=True)
    modbus_server_port = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(PORTS[0]), MaxValueValidator(PORTS[1])]
    )
    modbus_id = models.PositiveSmallIntegerField(
        null=True, blank=True, validators=[MinValueValidator(UNITS[0]), MaxValueValidator(UNITS[1])]
    )
    protocol = models.CharField(
        max_length=32,
        null=True,
        blank=True,
        help_text="By which of the type's protocols it is reached. Empty: the type's first.",
    )
    serial_port = models.CharField(
        max_length=100, null=True, blank=True, help_text="Of the node, below /dev; in place of host and port."
    )
    baud_rate = models.PositiveIntegerField(null=True, blank=True, help_text="Empty: the maker's default.")
    parity = models.CharField(
        max_length=8, choices=PARITIES, null=True, blank=True, help_text="Empty: the maker's default."
    )
    stop_bits = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="1 or 2. Empty: the maker's default."
    )
    url = models.CharField(
        max_length=500,
        null=True,
        blank=True,
        help_text="MQTT broker, OPC XML-DA server or HTTP server, without credentials.",
    )
    username = models.CharField(max_length=200, blank=True, default="")
    # As `sites_app.tokens.encrypt` makes it.
    password_encrypted = models.TextField(blank=True, default="", editable=False)
    parameters = models.JSONField(
        default=dict, blank=True, help_text="What the type's profile leaves open to each device."
    )
    lifetime = models.CharField(
        max_length=16, choices=Lifetime, null=True, blank=True, help_text="Empty: as the device type says."
    )
    telemetry_s = models.FloatField(
        default=10,
        help_text="Seconds between two readings sent to central.",
        validators=[MinValueValidator(1)],
    )
    controlled_by = models.ForeignKey(
        "self",
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="controls",
        help_text="The device of the same node that commands this one too: by its own control point, or as a"
        " proxy.",
    )
    ramp_pct_per_min = models.FloatField(
        null=True,
        blank=True,
        help_text="How fast the value may change, % of nameplate a minute. Empty: at once.",
    )
    accept_wear = models.BooleanField(
        default=False,
        help_text="An engineer accepts writes that the register's memory may not be made for.",
    )
    arm_fallback = models.BooleanField(
        default=False,
        help_text="Arm the device's own fallback although it can only release or only stop.",
    )
    default_confirmed = models.BooleanField(
        default=False,
        help_text="An engineer confirms a default other than 0 for a signed setpoint: it flows unasked.",
    )
    # Who it is to its node. Another tag, address, profile, register or node makes it another device there:
    # the node retires the former one under the former id (`RetiringDevice`).
    config_id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    # The limit this device is controlled by, as `devices_app.address` writes it: one owner in a site. Null
    # where nothing is written.
    control_point = models.CharField(max_length=1100, null=True, editable=False)
    # Another node has yet to let go of this control point: until then nobody writes to it here.
    # `retirement` keeps it true.
    waits = models.BooleanField(default=False, editable=False)
    # The last value the edge confirmed, and the sequence number of the command it came with; 0 before any.
    value = models.FloatField(null=True, editable=False)
    value_sequence = models.BigIntegerField(default=0, editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["site", "device_tag"], name="device_tag_unique_per_site"),
            models.UniqueConstraint(fields=["site", "control_point"], name="control_point_has_one_owner"),
            models.CheckConstraint(condition=~Q(device_tag=""), name="device_tag_not_empty"),
            models.CheckConstraint(
                condition=Q(category__regex=CATEGORY_PATTERN), name="device_category_is_a_topic_level"
            ),
            _default_within_bounds(name="device_default_within_bounds"),
            models.CheckConstraint(
                condition=Q(peak_power_kw__isnull=True) | Q(peak_power_kw__gt=0),
                name="device_peak_power_positive",
            ),
            models.CheckConstraint(
                condition=Q(modbus_server_port__isnull=True) | Q(modbus_server_port__range=PORTS),
                name="device_modbus_port_in_range",
            ),
            models.CheckConstraint(
                condition=Q(modbus_id__isnull=True) | Q(modbus_id__range=UNITS),
                name="device_modbus_id_in_range",
            ),
            models.CheckConstraint(
                condition=Q(stop_bits__isnull=True) | Q(stop_bits__in=(1, 2)),
                name="device_stop_bits_one_or_two",
                violation_error_message="stop_bits must be 1 or 2.",
            ),
            models.CheckConstraint(
                condition=Q(lifetime__isnull=True) | Q(lifetime__in=Lifetime.values),
                name="device_lifetime_known",
            ),
            models.CheckConstraint(condition=Q(telemetry_s__gte=1), name="device_telemetry_s_at_least_one"),
            models.CheckConstraint(
                condition=Q(measured_only=False) | Q(control_point__isnull=True),
                name="device_measured_only_owns_no_control_point",
            ),
            # (A proxy's children have control points of their own.)
            models.CheckConstraint(
                condition=Q(controlled_by__isnull=True)
                | Q(measured_only=True)
                | Q(control_point__isnull=False),
                name="device_controlled_by_another_is_measured_or_a_proxys",
            ),
            models.CheckConstraint(
                condition=Q(controlled_by__isnull=True) | ~Q(controlled_by=F("id")),
                name="device_controlled_by_another_than_itself",
                violation_error_message="A device cannot be controlled by itself.",
            ),
            models.CheckConstraint(
                condition=Q(ramp_pct_per_min__isnull=True) | Q(ramp_pct_per_min__gt=0),
                name="device_ramp_positive",
                violation_error_message="ramp_pct_per_min must be above 0.",
            ),
        ]
        indexes = [
            models.Index(fields=["site", "category"], name="device_site_category"),
            # As the API lists them.
            models.Index(fields=["device_tag", "id"], name="device_listed"),
        ]

    def __str__(self) -> str:
        return self.device_tag

    @property
    def is_proxy(self) -> bool:
        """Tell whether it is nothing but the devices it controls; needs `device_type` loaded."""
        return self.device_type.protocol == Protocol.PROXY

    @property
    def effective_lifetime(self) -> str:
        """Its own, else its type's; needs `device_type` loaded."""
        return self.lifetime or self.device_type.lifetime


class DeviceBound(models.Model):
    """What one authority allows a device, in the unit of its value; null is no limit on that side."""

    id = models.BigAutoField(primary_key=True)
    device = models.ForeignKey(Device, on_delete=models.CASCADE, related_name="bounds")
    origin = models.CharField(max_length=32, choices=BoundOrigin)
    minimum = models.FloatField(null=True, blank=True)
    maximum = models.FloatField(null=True, blank=True)
    reason = models.CharField(max_length=500, blank=True, default="")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["device", "origin"], name="device_bound_one_of_each_origin"),
            models.CheckConstraint(
                condition=Q(origin__in=BoundOrigin.values), name="device_bound_origin_known"
            ),
            models.CheckConstraint(
                condition=Q(minimum__isnull=False) | Q(maximum__isnull=False),
                name="device_bound_limits_something",
                violation_error_message="Give a minimum, a maximum or both.",
            ),
            models.CheckConstraint(
                condition=Q(minimum__isnull=True) | Q(maximum__isnull=True) | Q(minimum__lte=F("maximum")),
                name="device_bound_in_order",
                violation_error_message="minimum must not be above maximum.",
            ),
        ]

    def __str__(self) -> str:
        low = "" if self.minimum is None else f"{self.minimum:g}"
        high = "" if self.maximum is None else f"{self.maximum:g}"
        return f"{self.origin}: {low} to {high}"


class ClosedLoop(models.Model):
    """How a node holds the power at a meter by the setpoints of its members (design, section 3; ADR 0033).

    Power is in kW, positive towards the grid. Its members are those of `LoopMember`, or whatever of the node
    is of its `category`; who of them can be one is `devices_app.loop_members`' to say.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    # The meter's node and site. The service keeps them equal.
    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="loops", editable=False)
    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="loops", editable=False)
    loop_tag = models.CharField(max_length=64, help_text="Its name; unique at its site.")
    enabled = models.BooleanField(default=True, help_text="Off: its members are where they were without it.")
    meter = models.ForeignKey(
        Device,
        on_delete=models.PROTECT,
        related_name="metered_loops",
        help_text="What measures the power to hold; of the same node as the members, and no member.",
    )
    category = models.CharField(
        max_length=64,
        null=True,
        blank=True,
        validators=[RegexValidator(CATEGORY_PATTERN)],
        help_text="Members are all devices of the node of this category, also those that come later. Empty:"
        " those that are named.",
    )
    members = models.ManyToManyField(Device, through="LoopMember", related_name="+", blank=True)
    mode = models.CharField(
        max_length=16,
        choices=LoopMode,
        default=LoopMode.LIMIT,
        help_text="Whether export must not exceed the setpoint, or is held at it.",
    )
    setpoint_kw = models.FloatField(
        null=True,
        blank=True,
        help_text="kW towards the grid, where no schedule says otherwise. Empty: the members' default.",
    )
    feed_forward = models.BooleanField(
        default=True,
        help_text="Command limit and load, and let the gains trim what is left. Off: a plain PID.",
    )
    kp = models.FloatField(default=0.3, help_text="Proportional gain, without a unit; 0 to 10.")
    ki = models.FloatField(default=0.15, help_text="Integral gain, 1/s; 0 to 10.")
    kd = models.FloatField(default=0.0, help_text="Derivative gain, s; 0 to 60.")
    max_rate_pct_per_s = models.FloatField(
        default=100.0,
        help_text="How fast the output may change, % of the members' nominal power a second; 0.1 to 1000.",
    )
    deadband_kw = models.FloatField(default=0.0, help_text="A deviation below this is none, kW.")
    fallback_pct = models.FloatField(
        null=True,
        blank=True,
        help_text="What each member is given while the meter is silent, % of its nominal power. Empty: its"
        " schedule, else its share of setpoint_kw by nominal power, else its default.",
    )
    time_step_s = models.FloatField(default=1.0, help_text="Seconds between two steps; 0.2 to 60.")
    stale_after_s = models.FloatField(
        default=10.0,
        help_text="A reading older than this many seconds counts no longer; 1 to 300, above time_step_s.",
    )
    export_limit_kw = models.FloatField(
        null=True,
        blank=True,
        help_text="What the connection may give at most, kW; also direct requests obey it. Empty: no limit.",
    )
    import_limit_kw = models.FloatField(
        null=True,
        blank=True,
        help_text="What the connection may take at most, kW, as a positive number. Empty: no limit.",
    )
    storage_first = models.BooleanField(
        default=False, help_text="Batteries take up what may not be exported before sun is curtailed."
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["site", "loop_tag"], name="loop_tag_unique_per_site"),
            # Two loops on one meter would each take the other's members for load.
            models.UniqueConstraint(fields=["meter"], name="loop_meter_has_one_loop"),
            models.UniqueConstraint(fields=["node", "category"], name="loop_category_followed_once_per_node"),
            models.CheckConstraint(condition=~Q(loop_tag=""), name="loop_tag_not_empty"),
            models.CheckConstraint(
                condition=Q(category__isnull=True) | Q(category__regex=CATEGORY_PATTERN),
                name="loop_category_is_a_topic_level",
            ),
            models.CheckConstraint(condition=Q(mode__in=LoopMode.values), name="loop_mode_known"),
            *(
                models.CheckConstraint(
                    condition=Q(**{f"{name}__isnull": True}) | Q(**{f"{name}__range": limits}),
                    name=f"loop_{name}_in_range",
                    violation_error_message=f"{name} must be {limits[0]:g} to {limits[1]:g}.",
                )
                for name, limits in LOOP_RANGES.items()
            ),
            models.CheckConstraint(
                condition=Q(stale_after_s__gt=F("time_step_s")),
                name="loop_stale_after_more_than_a_step",
                violation_error_message="stale_after_s must be above time_step_s.",
            ),
        ]

    def __str__(self) -> str:
        return self.loop_tag


class LoopMember(models.Model):
    """A device that a loop names as its member; of one loop at most."""

    id = models.BigAutoField(primary_key=True)
    loop = models.ForeignKey(ClosedLoop, on_delete=models.CASCADE, related_name="named")
    device = models.OneToOneField(Device, on_delete=models.PROTECT, related_name="named_by_loop")

    def __str__(self) -> str:
        return f"{self.device} of {self.loop}"


class LoopChange(models.Model):
    """A loop came to stand otherwise, as its node told. The newest of each loop are kept."""

    id = models.BigAutoField(primary_key=True)
    loop = models.ForeignKey(ClosedLoop, on_delete=models.CASCADE, related_name="changes")
    # When, by the node's clock; and when central heard of it.
    since = models.DateTimeField()
    received_at = models.DateTimeField(default=timezone.now)
    stand = models.CharField(max_length=16, choices=LoopStand)
    # Why, for people, and whose bound its output met.
    reason = models.CharField(max_length=500, blank=True, default="")
    bounded_by = models.CharField(max_length=200, blank=True, default="")
    setpoint_kw = models.FloatField(null=True)
    measured_kw = models.FloatField(null=True)
    output_kw = models.FloatField(null=True)

    class Meta:
        constraints = [
            # However often, and however late, a node says it.
            models.UniqueConstraint(fields=["loop", "since", "stand"], name="loop_change_once"),
            models.CheckConstraint(condition=Q(stand__in=LoopStand.values), name="loop_change_stand_known"),
        ]
        indexes = [models.Index(fields=["loop", "-id"], name="loop_change_newest")]

    def __str__(self) -> str:
        return f"{self.stand} since {self.since:%Y-%m-%dT%H:%M:%SZ}"


class RetiringDevice(models.Model):
    """What left a node's configuration and may still hold a value of the node's (design, rule 20).

    Its tag and its control point stay taken in the site until the node reports that it has let go, or until
    somebody abandons it by name. Then the row goes; an abandoned one once the node has forgotten it.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="retiring_devices")
    # A node is deleted only when all that is left here is abandoned; `sites_app.services.node_delete`.
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="retiring_devices")
    # The device that went on under another id; null where it was deleted.
    device = models.ForeignKey(
        Device, on_delete=models.SET_NULL, null=True, editable=False, related_name="retiring_devices"
    )
    config_id = models.UUIDField(unique=True)
    device_tag = models.CharField(max_length=64)
    control_point = models.CharField(max_length=1100, null=True, editable=False)
    since = models.DateTimeField(default=timezone.now)
    # The version of the node's `config` from which on it is not in there.
    gone_from_version = models.PositiveBigIntegerField()
    reason = models.CharField(max_length=200)
    abandoned_at = models.DateTimeField(null=True, editable=False)
    abandoned_by = models.CharField(max_length=200, blank=True, default="")
    abandoned_why = models.CharField(max_length=500, blank=True, default="")

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(abandoned_at__isnull=True, abandoned_by="", abandoned_why="")
                | (Q(abandoned_at__isnull=False) & ~Q(abandoned_by="") & ~Q(abandoned_why="")),
                name="retiring_device_abandoned_by_name",
            ),
        ]
        indexes = [
            models.Index(fields=["site", "control_point"], name="retiring_control_point"),
            models.Index(fields=["site", "device_tag"], name="retiring_device_tag"),
        ]

    def __str__(self) -> str:
        return f"{self.device_tag} ({self.reason})"

    @property
    def is_abandoned(self) -> bool:
        return self.abandoned_at is not None


class ProbeState(models.TextChoices):
    """Where a probe is; all but the first two are final."""

    QUEUED = "queued", "waits to be sent"
    SENT = "sent", "under way"
    DONE = "done", "done"
    REFUSED = "refused", "refused by the node"
    NOT_SENT = "not_sent", "not sent"
    NO_ANSWER = "no_answer", "not answered"


PROBE_UNDER_WAY = (ProbeState.QUEUED, ProbeState.SENT)


class Probe(models.Model):
    """One look at a device by its node, which writes nothing: who asked for it, and what was found.

    They are kept, each as it was: what a device said on the day it was commissioned is asked for years later.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="probes")
    # Null where it was not configured yet, or is gone since.
    device = models.ForeignKey(Device, on_delete=models.SET_NULL, null=True, related_name="probes")
    device_tag = models.CharField(max_length=64)
    device_type = models.ForeignKey(DeviceType, on_delete=models.SET_NULL, null=True, related_name="+")
    # As a device of `desired/config`, without its password; null: as the node has it configured.
    candidate = models.JSONField(null=True)
    # The candidate's, as `sites_app.tokens.encrypt` makes it; emptied when the probe is over.
    password_encrypted = models.TextField(blank=True, default="", editable=False)
    asked_at = models.DateTimeField(default=timezone.now)
    asked_by = models.CharField(max_length=200)
    deadline = models.DateTimeField()
    state = models.CharField(max_length=16, choices=ProbeState, default=ProbeState.QUEUED)
    # Why there is no report.
    detail = models.TextField(blank=True, default="")
    # A `ProbeReport` of the wire.
    report = models.JSONField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(state__in=ProbeState.values), name="probe_state_known"),
            models.CheckConstraint(
                condition=Q(state=ProbeState.DONE, report__isnull=False)
                | (~Q(state=ProbeState.DONE) & Q(report__isnull=True)),
                name="probe_report_when_done",
            ),
            # Nodes probe one device at a time.
            models.UniqueConstraint(
                fields=["node"], condition=Q(state__in=PROBE_UNDER_WAY), name="probe_one_at_a_time"
            ),
        ]
        indexes = [models.Index(fields=["device", "-asked_at"], name="probe_newest_of_device")]

    def __str__(self) -> str:
        return f"probe of {self.device_tag} at {self.asked_at:%Y-%m-%d %H:%M}Z"

    @property
    def is_under_way(self) -> bool:
        return self.state in PROBE_UNDER_WAY


class Quality(models.IntegerChoices):
    """How far a reading can be believed; the words are the wire's."""

    GOOD = 0, "good"
    UNCERTAIN = 1, "uncertain"
    BAD = 2, "bad"


class TelemetrySeries(models.Model):
    """What one key of one device, or of a node itself, was measured to be at one site, in one unit.

    It outlives its device and its node, and stays with the site it was measured at: what moves begins
    another there. `devices_app.telemetry` alone makes these (ADR 0015).
    """

    id = models.BigAutoField(primary_key=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="series")
    # Of its own readings; null for those of a device.
    node = models.ForeignKey(Node, on_delete=models.SET_NULL, null=True, related_name="series")
    device = models.ForeignKey(Device, on_delete=models.SET_NULL, null=True, related_name="series")
    # The device's tag, or the node's name, when this began: what is left of them once they are gone.
    name = models.CharField(max_length=64)
    key = models.CharField(max_length=64)
    unit = models.CharField(max_length=16, blank=True, default="")

    class Meta:
        verbose_name_plural = "telemetry series"
        constraints = [
            models.UniqueConstraint(
                fields=["device", "site", "key", "unit"], name="telemetry_series_of_device_unique"
            ),
            models.UniqueConstraint(
                fields=["node", "site", "key", "unit"], name="telemetry_series_of_node_unique"
            ),
            models.CheckConstraint(
                condition=Q(node__isnull=True) | Q(device__isnull=True),
                name="telemetry_series_of_node_or_device",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} {self.key}"

    @property
    def source_name(self) -> str:
        """Its device's tag or its node's name, else what is left of them; needs both loaded."""
        if self.device is not None:
            return self.device.device_tag
        return self.name if self.node is None else self.node.name


def _series_of_rows() -> models.ForeignKey[TelemetrySeries]:
    # Without a constraint in the database, which would look the series up for each of thousands of rows a
    # second. A series goes only after all of its rows (`devices_app.means.telemetry_retain`).
    return models.ForeignKey(
        TelemetrySeries,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        related_name="+",
    )


class TelemetryReading(models.Model):
    """One reading. It is stored once, however often it comes. Partitioned by UTC day on PostgreSQL."""

    pk = models.CompositePrimaryKey("series", "at")
    series = _series_of_rows()
    at = models.DateTimeField()
    value = models.FloatField()
    quality = models.PositiveSmallIntegerField(choices=Quality, default=Quality.GOOD)

    def __str__(self) -> str:
        return f"{self.value:g} at {self.at:%Y-%m-%dT%H:%M:%SZ}"


class TelemetryMean(models.Model):
    """The good readings of a UTC quarter hour from `start` on. Partitioned by month on PostgreSQL."""

    pk = models.CompositePrimaryKey("series", "start")
    series = _series_of_rows()
    start = models.DateTimeField()
    mean = models.FloatField()
    minimum = models.FloatField()
    maximum = models.FloatField()
    count = models.PositiveIntegerField()

    def __str__(self) -> str:
        return f"{self.mean:g} from {self.start:%Y-%m-%dT%H:%MZ}"


class TelemetryClosing(models.Model):
    """The one row that says up to when quarters are closed: a reading from before that comes late."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    until = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(id=1), name="telemetry_closing_is_one_row"),
        ]

    def __str__(self) -> str:
        return f"closed until {self.until:%Y-%m-%dT%H:%MZ}"


class TelemetryQuarter(models.Model):
    """A closed quarter whose means have yet to be made, of every series."""

    start = models.DateTimeField(primary_key=True)

    def __str__(self) -> str:
        return f"{self.start:%Y-%m-%dT%H:%MZ}"


class TelemetryLate(models.Model):
    """A quarter of one series to make again: readings came after it was closed.

    A log that is only added to: who inserts waits for nobody, and the same quarter may stand here twice.
    """

    id = models.BigAutoField(primary_key=True)
    series = _series_of_rows()
    start = models.DateTimeField()

    def __str__(self) -> str:
        return f"series {self.series_id} from {self.start:%Y-%m-%dT%H:%MZ}"
