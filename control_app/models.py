"""Control requests, the commands they become, and the append-only logs."""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models import Q
from django.utils import timezone

from devices_app.models import Device
from sites_app.models import Node, Site


class Status(models.TextChoices):
    SUCCESS = "success"
    PARTIAL = "partial"
    FAILED = "failed"


class Kind(models.TextChoices):
    """What a client asked for: to hold devices at a value, or to end their holds."""

    CURTAIL = "curtail"
    RELEASE = "release"


class Unit(models.TextChoices):
    """What a value is in: the device type's own unit, or kW of all devices together."""

    PERCENT = "percent"
    KW = "kw", "kW"


class ControlRequest(models.Model):
    """What a client asked for. `result` is what it was told, or what was proved later.

    `value` is as it was asked for, in `unit`; a release has none. `category` is empty where a release is not
    narrowed to one. A request with an Idempotency-Key is known again by `idempotency`, made of its client,
    its token and the key; `digest` tells whether it is the same request; `answer` is what is told again, and
    empty while it is under way.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="control_requests")
    kind = models.CharField(max_length=16, choices=Kind, default=Kind.CURTAIL, db_default=Kind.CURTAIL)
    category = models.CharField(max_length=64)
    value = models.FloatField(null=True)
    unit = models.CharField(max_length=16, choices=Unit, default=Unit.PERCENT, db_default=Unit.PERCENT)
    # None: all of the category.
    device_tags = models.JSONField(null=True)
    reason = models.CharField(max_length=500, blank=True, default="")
    client_id = models.CharField(max_length=200)
    token_id = models.UUIDField(null=True)
    deadline = models.DateTimeField()
    # Null while it is under way.
    status = models.CharField(max_length=16, choices=Status, null=True)
    result = models.JSONField(null=True)
    idempotency = models.CharField(max_length=64, null=True)
    digest = models.CharField(max_length=64, blank=True, default="", db_default="")
    answer = models.TextField(blank=True, default="", db_default="")

    class Meta:
        permissions = [("curtail", "Can curtail and release devices")]
        constraints = [
            models.CheckConstraint(
                condition=Q(kind=Kind.CURTAIL, value__isnull=False)
                | Q(kind=Kind.RELEASE, value__isnull=True),
                name="control_request_value_of_kind",
            ),
            models.CheckConstraint(condition=Q(unit__in=Unit.values), name="control_request_unit_known"),
            models.UniqueConstraint(
                fields=["idempotency"],
                condition=Q(idempotency__isnull=False),
                name="control_request_idempotency_unique",
            ),
            models.CheckConstraint(
                condition=Q(status__isnull=True) | Q(status__in=Status.values),
                name="control_request_status_known",
            ),
            models.CheckConstraint(
                condition=Q(status__isnull=True, result__isnull=True)
                | Q(status__isnull=False, result__isnull=False),
                name="control_request_result_with_status",
            ),
        ]
        indexes = [models.Index(fields=["deadline"], condition=Q(status=None), name="control_request_open")]

    def __str__(self) -> str:
        what = self.category or "all devices"
        if self.value is None:
            return f"{what} released"
        return f"{what} at {self.value:g}{' kW' if self.unit == Unit.KW else ''}"


class CommandState(models.TextChoices):
    """Where a command is. `unknown` waits for the node's own word; the last four are final."""

    QUEUED = "queued"
    SENT = "sent"
    UNKNOWN = "unknown"
    DONE = "done"
    REFUSED = "refused"
    NOT_SENT = "not_sent"
    NOT_DELIVERED = "not_delivered"


class ControlCommand(models.Model):
    """One command to one node. Its number is the sequence that orders all of central's commands."""

    sequence = models.BigAutoField(primary_key=True)
    id = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    request = models.ForeignKey(ControlRequest, on_delete=models.CASCADE, related_name="commands")
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="commands")
    epoch = models.PositiveIntegerField()
    # device tag -> value in the unit of its type; null where it is released
    values = models.JSONField()
    deadline = models.DateTimeField()
    state = models.CharField(max_length=16, choices=CommandState, default=CommandState.QUEUED)
    # device tag -> {code, detail, value, readback}
    result = models.JSONField(null=True)
    # By central's clock: a worker took it to send it; the node's word came that it is arbitrated, and that
    # all of it is over. Null where it did not come to that, or nobody heard of it in time.
    claimed_at = models.DateTimeField(null=True, editable=False)
    accepted_at = models.DateTimeField(null=True, editable=False)
    done_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(state__in=CommandState.values), name="control_command_state_known"
            ),
        ]
        indexes = [
            models.Index(
                fields=["node", "sequence"],
                condition=Q(state__in=["queued", "sent", "unknown"]),
                name="control_command_open",
            ),
        ]

    def __str__(self) -> str:
        return f"command {self.sequence}"


class ControlLog(models.Model):
    """One line of the control log, append-only: what was asked for or what the watchdog did."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="control_logs")
    node = models.ForeignKey(Node, on_delete=models.SET_NULL, null=True, related_name="control_logs")
    request = models.ForeignKey(ControlRequest, on_delete=models.SET_NULL, null=True, related_name="logs")
    status = models.CharField(max_length=16, choices=Status)
    category = models.CharField(max_length=64)
    watchdog = models.BooleanField(default=False)
    value = models.FloatField(null=True)
    unit = models.CharField(max_length=16, choices=Unit, default=Unit.PERCENT, db_default=Unit.PERCENT)
    result = models.JSONField()
    reason = models.CharField(max_length=500, blank=True, default="")

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(status__in=Status.values), name="control_log_status_known"),
        ]
        indexes = [
            models.Index(fields=["-created_at"], name="control_log_newest"),
            models.Index(fields=["site", "-created_at"], name="control_log_site_newest"),
        ]

    def __str__(self) -> str:
        return f"{self.category}: {self.status}"


class DeviceErrorLog(models.Model):
    """Something about a device that a person should look at. Append-only: it outlives its device."""

    id = models.BigAutoField(primary_key=True)
    timestamp = models.DateTimeField(default=timezone.now, editable=False)
    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="device_error_logs")
    device_tag = models.CharField(max_length=64)
    device = models.ForeignKey(Device, on_delete=models.SET_NULL, null=True, related_name="error_logs")
    error = models.TextField()

    class Meta:
        indexes = [
            models.Index(fields=["device", "timestamp"], name="device_error_log_device_time"),
            # The API shows some hours of all sites, of a log that is kept for a year.
            models.Index(fields=["timestamp"], name="device_error_log_time"),
        ]

    def __str__(self) -> str:
        return self.error


class NodeEvent(models.Model):
    """What a node logged that has no table of its own here, as it came; so are kinds nobody here knows."""

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField(default=timezone.now, editable=False)
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="events")
    kind = models.CharField(max_length=32)
    reason = models.CharField(max_length=500, blank=True, default="")
    # The entry as JSON text, which unlike a JSON column may hold an escaped NUL on every database.
    entry = models.TextField()

    class Meta:
        indexes = [models.Index(fields=["node", "-at"], name="node_event_newest")]

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


class NodeStream(models.Model):
    """How far a node's log stream is in the database, so that a batch that comes twice is taken once.

    `store` is the node's own database: a replaced one begins its numbers anew. `digest` knows the entry at
    `last` again, empty where nothing is to be known. `forked`: the node said something else under a number
    that was taken, or may have: its machine was put back to an earlier state (ADR 0017).
    """

    id = models.BigAutoField(primary_key=True)
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="streams")
    stream = models.CharField(max_length=32)
    store = models.CharField(max_length=64)
    last = models.PositiveBigIntegerField(default=0)
    digest = models.CharField(max_length=16, blank=True, default="")
    since = models.DateTimeField(default=timezone.now, editable=False)
    forked = models.BooleanField(default=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["node", "stream", "store"], name="node_stream_unique"),
        ]

    def __str__(self) -> str:
        return f"{self.stream} up to {self.last}"
