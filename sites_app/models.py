"""Site, Node, its documents and identity, and ManagementToken: fields, constraints, facts of one row."""

from __future__ import annotations

import uuid
import zoneinfo
from functools import cache
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django_otp.models import Device as OtpDevice, ThrottlingMixin

from edge.wire.topics import LEVEL, NodeTopics

# As it must be to stand as one level of an MQTT topic.
TOPIC_LEVEL = rf"\A{LEVEL.pattern}\Z"

CURTAILMENT_TIME_LIMIT_S = (1, 3600)
CYCLIC_WRITE_TIMEOUT_S = (10, 86400)
SETPOINT_THROTTLE_S = (1, 3600)


def default_tenant() -> str:
    return str(settings.SGM_TENANT)


def default_node_configuration() -> dict[str, Any]:
    return {"module": "PolarisInverterCurtailment"}


@cache
def _time_zones() -> frozenset[str]:
    # To look for them reads hundreds of files.
    return frozenset(zoneinfo.available_timezones())


def validate_time_zone(name: str) -> None:
    if name not in _time_zones():
        raise ValidationError(f"{name!r} is not a time zone, e.g. Europe/Amsterdam")


class Site(models.Model):
    """A place with energy assets, behind one or more nodes."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    tenant_tag = models.CharField(
        max_length=64, default=default_tenant, validators=[RegexValidator(TOPIC_LEVEL)]
    )
    site_tag = models.CharField(max_length=64)
    name = models.CharField(max_length=200)
    meta_data = models.JSONField(default=dict, blank=True)
    curtailment_time_limit = models.PositiveIntegerField(
        default=60,
        help_text="Seconds a direct request holds a device unless it is renewed, 1 to 3600.",
        validators=[
            MinValueValidator(CURTAILMENT_TIME_LIMIT_S[0]),
            MaxValueValidator(CURTAILMENT_TIME_LIMIT_S[1]),
        ],
    )
    cyclic_write_timeout = models.PositiveIntegerField(
        default=300,
        help_text="Seconds between two repetitions of a setpoint, 10 to 86400.",
        validators=[
            MinValueValidator(CYCLIC_WRITE_TIMEOUT_S[0]),
            MaxValueValidator(CYCLIC_WRITE_TIMEOUT_S[1]),
        ],
    )
    setpoint_throttle_s = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text="Least seconds between two requests that set one device, 1 to 3600 and less than the "
        "curtailment time limit. Empty: none. What lowers a device passes at once.",
        validators=[MinValueValidator(SETPOINT_THROTTLE_S[0]), MaxValueValidator(SETPOINT_THROTTLE_S[1])],
    )
    time_zone = models.CharField(
        max_length=64,
        default="UTC",
        validators=[validate_time_zone],
        help_text="For display only: schedules are in UTC.",
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["tenant_tag", "site_tag"], name="site_tag_unique_per_tenant"),
            models.CheckConstraint(
                condition=Q(curtailment_time_limit__range=CURTAILMENT_TIME_LIMIT_S),
                name="site_curtailment_time_limit_in_range",
            ),
            models.CheckConstraint(
                condition=Q(cyclic_write_timeout__range=CYCLIC_WRITE_TIMEOUT_S),
                name="site_cyclic_write_timeout_in_range",
            ),
            models.CheckConstraint(
                condition=Q(setpoint_throttle_s__isnull=True)
                | Q(setpoint_throttle_s__range=SETPOINT_THROTTLE_S),
                name="site_setpoint_throttle_in_range",
            ),
            # Else a request that renews a hold would be refused until the hold has lapsed.
            models.CheckConstraint(
                condition=Q(setpoint_throttle_s__isnull=True)
                | Q(setpoint_throttle_s__lt=F("curtailment_time_limit")),
                name="site_setpoint_throttle_below_time_limit",
                violation_error_message="setpoint_throttle_s must be less than curtailment_time_limit.",
            ),
            models.CheckConstraint(
                condition=Q(tenant_tag__regex=TOPIC_LEVEL), name="site_tenant_is_a_topic_level"
            ),
            models.CheckConstraint(condition=~Q(site_tag=""), name="site_tag_not_empty"),
        ]
        # As the API lists them.
        indexes = [models.Index(fields=["site_tag", "id"], name="site_listed")]

    def __str__(self) -> str:
        return self.site_tag


class Node(models.Model):
    """An edge computer of a site. Its presence columns hold transitions; what is newest lives in Redis."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="nodes")
    # Copied from the site when the node is made, and fixed for life: it is part of the node's topics.
    tenant_tag = models.CharField(max_length=64, editable=False)
    name = models.CharField(max_length=64)
    meta_data = models.JSONField(default=dict, blank=True)
    curtail_in_batch = models.BooleanField(
        default=True, help_text="One command for all devices of a request, instead of one for each."
    )
    iothub = models.CharField(max_length=200, blank=True, default="")
    configuration = models.JSONField(default=default_node_configuration, blank=True)

    epoch = models.PositiveIntegerField(default=1, editable=False)
    manifest_version = models.PositiveBigIntegerField(default=0, editable=False)

    online = models.BooleanField(default=False, editable=False)
    session = models.CharField(max_length=64, blank=True, default="", editable=False)
    boot = models.CharField(max_length=64, blank=True, default="", editable=False)
    presence_changed_at = models.DateTimeField(null=True, editable=False)
    last_reported = models.JSONField(null=True, editable=False)
    last_reported_at = models.DateTimeField(null=True, editable=False)
    # What the broker holds of its manifest, as far as this was recorded: (0, 0) where nothing was.
    published_epoch = models.PositiveIntegerField(default=0, editable=False)
    published_version = models.PositiveBigIntegerField(default=0, editable=False)
    published_at = models.DateTimeField(null=True, editable=False)
    # Since when it has not had what it should have; null where its last report said that it had.
    out_of_sync_since = models.DateTimeField(null=True, default=timezone.now, editable=False)
    # Since when its documents may differ from what the apps would render now; null where they do not.
    render_due_since = models.DateTimeField(null=True, editable=False)

    # Which of its reports is the newest, and a digest of what that was judged by (`sites_app.reports`).
    reported_boot = models.CharField(max_length=64, blank=True, default="", editable=False)
    reported_mono_ms = models.BigIntegerField(default=0, editable=False)
    reported_digest = models.CharField(max_length=64, blank=True, default="", editable=False)
    # The highest sequence its devices accepted of a central that was since restored, 0 for none; null until
    # the first report in the present epoch tells.
    foreign_sequence = models.PositiveBigIntegerField(null=True, default=0, editable=False)
    epoch_raised_at = models.DateTimeField(null=True, editable=False)
    # A certificate issued before this moment is renewed by the node as soon as it hears of it.
    renew_certificates_before = models.DateTimeField(null=True, editable=False)

    class Meta:
        permissions = [("enrol_node", "Can enrol nodes and revoke their certificates")]
        constraints = [
            models.UniqueConstraint(fields=["tenant_tag", "name"], name="node_name_unique_per_tenant"),
            models.CheckConstraint(condition=~Q(name=""), name="node_name_not_empty"),
            models.CheckConstraint(
                condition=Q(tenant_tag__regex=TOPIC_LEVEL), name="node_tenant_is_a_topic_level"
            ),
            models.CheckConstraint(condition=Q(epoch__gte=1), name="node_epoch_starts_at_one"),
        ]
        # As the API lists them.
        indexes = [models.Index(fields=["name", "id"], name="node_listed")]

    def __str__(self) -> str:
        return self.name

    @property
    def topics(self) -> NodeTopics:
        """The node's branch of the broker's topics."""
        return NodeTopics(self.tenant_tag, str(self.pk))


class DocumentStatus(models.TextChoices):
    """What is known of a document at its node; ADR 0014."""

    # The node has not answered for this version yet.
    PENDING = "pending"
    APPLIED = "applied"
    # It cannot use it, says why, and goes on with what it had.
    FAILED = "failed"
    # It runs something else under this name than this database knows of: central was restored.
    CONFLICT = "conflict"


class NodeDocument(models.Model):
    """One document of a node; `sites_app.documents` and `sites_app.reports` alone write these."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="documents")
    name = models.CharField(max_length=200)
    version = models.PositiveBigIntegerField()
    sha256 = models.CharField(max_length=64)
    body = models.JSONField()
    changed_at = models.DateTimeField(default=timezone.now)
    # When the broker may forget it; null: never.
    expires_at = models.DateTimeField(null=True)
    # In no manifest any longer. The row stays until the broker was told.
    dropped = models.BooleanField(default=False)
    # What the broker holds of it, as far as this was recorded: (0, 0) where nothing was.
    published_epoch = models.PositiveIntegerField(default=0)
    published_version = models.PositiveBigIntegerField(default=0)
    # The node's last word about it. `answered_version` is 0 where it has said nothing about this content.
    status = models.CharField(max_length=16, choices=DocumentStatus.choices, default=DocumentStatus.PENDING)
    answered_version = models.PositiveBigIntegerField(default=0)
    answered_at = models.DateTimeField(null=True)
    error = models.TextField(blank=True, default="")

    class Meta:
        indexes = [
            # What waits, which is little, and must be found among millions that do not.
            models.Index(
                fields=["node"],
                name="node_document_not_settled",
                condition=~Q(status="applied") | Q(dropped=True),
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["node", "name"], name="node_document_name_unique"),
            models.CheckConstraint(condition=Q(version__gte=1), name="node_document_version_positive"),
            models.CheckConstraint(
                condition=Q(sha256__regex=r"\A[0-9a-f]{64}\Z"), name="node_document_sha256_is_hex"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


class UnsettledDocument(NodeDocument):
    """A document that is not where it should be; `sites_app.selectors.documents_unsettled` finds them."""

    class Meta:
        proxy = True
        verbose_name = "document that is not where it should be"
        verbose_name_plural = "not where it should be"


class Farewell(models.Model):
    """What a deleted node should have had last: kept until the broker holds it."""

    tenant_tag = models.CharField(max_length=64)
    node_id = models.UUIDField()
    created_at = models.DateTimeField(default=timezone.now)
    # Document name -> JSON, the manifest last.
    messages = models.JSONField()

    def __str__(self) -> str:
        return f"farewell of {self.node_id}"


class NodeCertificate(models.Model):
    """A certificate of a node; `sites_app.identity` alone writes these.

    It is good until it lapses, unless it is revoked. A node that is deleted leaves its certificates behind,
    revoked.
    """

    node = models.ForeignKey(Node, on_delete=models.SET_NULL, null=True, related_name="certificates")
    # The CN: the node's id, also after the node is gone.
    common_name = models.UUIDField()
    serial = models.CharField(max_length=40, unique=True)
    fingerprint = models.CharField(max_length=64, unique=True)
    # Of the public key: a key that once was certified is never certified for another.
    key_digest = models.CharField(max_length=64, unique=True)
    pem = models.TextField()
    issued_at = models.DateTimeField()
    not_after = models.DateTimeField()
    # When the node said, signed with its key, that it works with it.
    confirmed_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)
    reason = models.CharField(max_length=200, blank=True, default="")
    # When it was certain that no session opened with it was left at the broker; only asked of revoked ones.
    evicted_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(fingerprint__regex=r"\A[0-9a-f]{64}\Z"), name="certificate_fingerprint_is_hex"
            ),
            models.CheckConstraint(
                condition=Q(serial__regex=r"\A[0-9a-f]{40}\Z"), name="certificate_serial_is_hex"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.common_name} {self.serial[:8]}"

    @property
    def is_revoked(self) -> bool:
        return self.revoked_at is not None or self.node_id is None


class EnrolmentToken(models.Model):
    """Lets one computer become this node, once, while the node is of this site. Found by a keyed digest."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="enrolment_tokens")
    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="+")
    digest = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    issued_by = models.CharField(max_length=150, blank=True, default="")
    used_at = models.DateTimeField(null=True)
    # Another took its place, or its node was revoked.
    voided_at = models.DateTimeField(null=True)
    certificate = models.OneToOneField(
        NodeCertificate, on_delete=models.SET_NULL, null=True, related_name="+"
    )

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(digest__regex=r"\A[0-9a-f]{64}\Z"), name="enrolment_token_digest_is_hex"
            ),
        ]

    def __str__(self) -> str:
        return f"enrolment of {self.node_id}"


class SpentChallenge(models.Model):
    """A challenge that was answered: it is not taken a second time. Kept for as long as it would be good."""

    digest = models.CharField(max_length=64, primary_key=True)
    spent_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.digest


class ManagementToken(models.Model):
    """Opens some sites. Found by a keyed digest; kept encrypted because root may see it again."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    name = models.CharField(max_length=200)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    encrypted = models.TextField(editable=False)
    sites = models.ManyToManyField(Site, related_name="management_tokens", blank=True)
    # To the minute or two; what was used while Redis was away is not known (`sites_app.token_use`).
    last_used_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        permissions = [("reveal_managementtoken", "Can see a site management token's value")]
        constraints = [
            models.CheckConstraint(condition=~Q(name=""), name="management_token_name_not_empty"),
            models.CheckConstraint(
                condition=Q(digest__regex=r"\A[0-9a-f]{64}\Z"), name="management_token_digest_is_hex"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class SiteScope(models.Model):
    """The sites that a person at the console may see; whoever has none, and is no superuser, sees no site."""

    # As wide as a token's, so that rows are looked for in the same way.
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="site_scope")
    all_sites = models.BooleanField(default=False, help_text="Also those that are made later.")
    sites = models.ManyToManyField(Site, related_name="scopes", blank=True)

    class Meta:
        verbose_name = "sites of a person"
        verbose_name_plural = "sites of people"

    def __str__(self) -> str:
        return f"sites of {self.user}"


class SecondFactor(ThrottlingMixin, OtpDevice):  # type: ignore[misc] # django-otp has no types
    """A person's authenticator (TOTP, RFC 6238): six digits that change every 30 s.

    Wrong codes make the next one wait, twice as long each time; that is kept here, and holds without Redis.
    """

    # A person has one, and it needs no name.
    name = None
    confirmed = None
    # Drawn anew with each set-up: sessions that were verified by another one are not by this.
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="second_factor"
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    # None until its first code was right: until then it is asked of nobody.
    confirmed_at = models.DateTimeField(null=True, editable=False)
    key_encrypted = models.TextField(editable=False)
    # The step of the newest code that was taken: neither it nor an older one is taken again.
    last_step = models.BigIntegerField(default=-1, editable=False)

    def __str__(self) -> str:
        return f"second factor of {self.user}"

    def get_throttle_factor(self) -> float:
        """Seconds to wait after the first wrong code."""
        return 1


class RecoveryCode(models.Model):
    """A code for whoever has lost the authenticator; good once, and kept as a keyed digest."""

    id = models.BigAutoField(primary_key=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="recovery_codes"
    )
    digest = models.CharField(max_length=64, editable=False)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user", "digest"], name="recovery_code_once")]

    def __str__(self) -> str:
        return f"recovery code of {self.user}"


class ProviderIdentity(models.Model):
    """Who a person is at an OpenID provider. E-mail addresses change hands; issuer and subject do not."""

    id = models.BigAutoField(primary_key=True)
    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="provider_identity"
    )
    issuer = models.CharField(max_length=500, editable=False)
    subject = models.CharField(max_length=255, editable=False)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["issuer", "subject"], name="provider_identity_once")]

    def __str__(self) -> str:
        return f"{self.subject} at {self.issuer}"


class AlarmSeverity(models.TextChoices):
    """How soon somebody should look."""

    # Something does not do what was asked of it: look now.
    ERROR = "error"
    # It is handled, and may not stay so.
    WARNING = "warning"


class Alarm(models.Model):
    """Something somebody should look at, from when it was noticed until it was over; `sites_app.alarms`.

    One is open for each code, site, node, subject and side that noticed. Those cleared are history, kept for
    a while.
    """

    id = models.BigAutoField(primary_key=True)
    code = models.CharField(max_length=64)
    severity = models.CharField(max_length=16, choices=AlarmSeverity.choices)
    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="alarms")
    # Null where the whole site is meant, or, of a cleared one, where its node is gone.
    node = models.ForeignKey(Node, on_delete=models.SET_NULL, null=True, related_name="alarms")
    node_name = models.CharField(max_length=64, blank=True, default="")
    # What of the node or the site: a device's tag, a day's schedule; empty where it is the node itself.
    subject = models.CharField(max_length=200, blank=True, default="")
    detail = models.TextField(blank=True, default="")
    # Whether the node says so in its reports; else it is central that noticed.
    by_node = models.BooleanField(default=False)
    # All by central's clock.
    raised_at = models.DateTimeField(default=timezone.now)
    last_seen_at = models.DateTimeField(default=timezone.now)
    cleared_at = models.DateTimeField(null=True)
    # By whom somebody looks after it; it stays open until the condition is over.
    acknowledged_at = models.DateTimeField(null=True)
    acknowledged_by = models.CharField(max_length=150, blank=True, default="", db_default="")
    note = models.CharField(max_length=500, blank=True, default="", db_default="")

    class Meta:
        permissions = [("acknowledge_alarm", "Can acknowledge alarms")]
        constraints = [
            # Two, because a null equals no other: PostgreSQL before 15 and SQLite know no other way.
            models.UniqueConstraint(
                fields=["code", "site", "node", "subject", "by_node"],
                condition=Q(cleared_at=None, node__isnull=False),
                name="alarm_open_once_per_node",
            ),
            models.UniqueConstraint(
                fields=["code", "site", "subject"],
                condition=Q(cleared_at=None, node__isnull=True),
                name="alarm_open_once_per_site",
            ),
            models.CheckConstraint(condition=~Q(code=""), name="alarm_code_not_empty"),
        ]
        indexes = [
            # The console's order (in PostgreSQL's descending index nulls come first), and what can go.
            models.Index(fields=["-cleared_at", "-raised_at"], name="alarm_open_first"),
        ]

    def __str__(self) -> str:
        return f"{self.code} {self.node_name} {self.subject}".strip()


class RouteKind(models.TextChoices):
    """How a person or a system hears of alarms."""

    EMAIL = "email", "e-mail"
    WEBHOOK = "webhook", "webhook"


class AlarmRoute(models.Model):
    """Who is told of which alarms, and how; `sites_app.alarm_routes` alone writes these (ADR 0036)."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    name = models.CharField(max_length=200, unique=True)
    kind = models.CharField(max_length=16, choices=RouteKind.choices)
    target = models.CharField(
        max_length=500,
        help_text="An e-mail address, several between commas, or the https:// address of a webhook.",
    )
    # As `tokens.encrypt` makes it; empty for e-mail.
    secret_encrypted = models.TextField(blank=True, default="", editable=False)
    least_severity = models.CharField(
        max_length=16,
        choices=AlarmSeverity.choices,
        default=AlarmSeverity.ERROR,
        help_text="Warning: of warnings and errors. Error: of errors only.",
    )
    sites = models.ManyToManyField(
        Site, related_name="alarm_routes", blank=True, help_text="Empty: all sites, also those made later."
    )
    enabled = models.BooleanField(default=True, help_text="Off: nothing is sent, nor kept to be sent later.")

    class Meta:
        constraints = [
            models.CheckConstraint(condition=~Q(name=""), name="alarm_route_name_not_empty"),
            models.CheckConstraint(condition=Q(kind__in=RouteKind.values), name="alarm_route_kind_known"),
        ]

    def __str__(self) -> str:
        return self.name


class AlarmStep(models.TextChoices):
    """What became of an alarm."""

    RAISED = "raised"
    ACKNOWLEDGED = "acknowledged"
    CLEARED = "cleared"


class DeliveryState(models.TextChoices):
    """Where a notice is. `failed` is final: it was tried as often as it is."""

    QUEUED = "queued"
    SENT = "sent"
    FAILED = "failed"


class AlarmDelivery(models.Model):
    """One notice of one step of an alarm to one route; `sites_app.alarm_notices` sends it, at least once."""

    id = models.BigAutoField(primary_key=True)
    alarm = models.ForeignKey(Alarm, on_delete=models.CASCADE, related_name="deliveries")
    route = models.ForeignKey(AlarmRoute, on_delete=models.CASCADE, related_name="deliveries")
    what = models.CharField(max_length=16, choices=AlarmStep.choices)
    created_at = models.DateTimeField(default=timezone.now)
    state = models.CharField(max_length=16, choices=DeliveryState.choices, default=DeliveryState.QUEUED)
    attempts = models.PositiveIntegerField(default=0)
    # Not tried before this moment. Whoever tries it puts it off first, which is the guard against two.
    next_attempt_at = models.DateTimeField(default=timezone.now)
    last_error = models.CharField(max_length=500, blank=True, default="")
    sent_at = models.DateTimeField(null=True)
    # The message it went out with: those of a digest share one.
    message = models.UUIDField(null=True)

    class Meta:
        verbose_name_plural = "alarm deliveries"
        indexes = [
            models.Index(
                fields=["route", "next_attempt_at"], name="alarm_delivery_due", condition=Q(state="queued")
            ),
            models.Index(fields=["route", "sent_at"], name="alarm_delivery_sent"),
        ]

    def __str__(self) -> str:
        return f"{self.what} to {self.route_id}"


class PeriodicRun(models.Model):
    """One kind of periodic work: when a beat last started it, and what our table said; `sites_app.periodic`.

    The row is the guard against two beats: who moves `ran_at` starts the work.
    """

    id = models.BigAutoField(primary_key=True)
    # As of the periodic task in the console.
    name = models.CharField(max_length=200, unique=True)
    # By the database's clock, which all beats share. Null: never yet.
    ran_at = models.DateTimeField(null=True)
    # The period our table had when it was last written to the console; empty for a task of an operator's own.
    default = models.CharField(max_length=200, blank=True, default="")

    def __str__(self) -> str:
        return self.name
