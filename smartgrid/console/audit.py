"""Who did what at the console, for good: changes of rows by django-auditlog, deeds by `noted`."""

from __future__ import annotations

from typing import Any

from auditlog.models import LogEntry
from auditlog.registry import auditlog
from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import ValidationError
from django.core.validators import validate_ipv46_address
from django.db.models import Model
from django.http import HttpRequest

from smartgrid.middleware import address_of

# What people change. What nodes report, and what is written by the thousand, is in logs of its own. Fields
# that hold a secret are left out; `mask_fields` would show a half of them.
_TRACKED: dict[str, tuple[str, ...]] = {
    "sites_app.Site": (),
    "sites_app.Node": (
        *("last_reported", "last_reported_at", "online", "session", "boot", "presence_changed_at"),
        *("published_at", "manifest_version", "out_of_sync_since"),
    ),
    "sites_app.ManagementToken": ("digest", "encrypted", "last_used_at"),
    "sites_app.SiteScope": (),
    "sites_app.AlarmRoute": ("secret_encrypted",),
    "devices_app.DeviceType": (),
    "devices_app.Device": ("password_encrypted", "value", "value_sequence"),
    "devices_app.DeviceBound": (),
    "devices_app.ClosedLoop": (),
    "schedules_app.Schedule": ("synchronization_result", "is_listed"),
    "oauth2_provider.Application": ("client_secret",),
    "django_celery_beat.PeriodicTask": ("last_run_at", "total_run_count", "date_changed"),
}


def tracking_begin() -> None:
    """Register what is tracked; once, when all apps are ready."""
    for name, left_out in _TRACKED.items():
        model = apps.get_model(name)
        fields = {field.name for field in model._meta.get_fields()}  # noqa: SLF001 - Django's documented name
        m2m = {field.name for field in model._meta.many_to_many}  # noqa: SLF001
        auditlog.register(
            model, exclude_fields=[field for field in left_out if field in fields], m2m_fields=m2m or None
        )
    users = get_user_model()
    auditlog.register(
        users, exclude_fields=["password", "last_login"], m2m_fields={"groups", "user_permissions"}
    )


def noted(request: HttpRequest, deed: str, subject: Model | AnonymousUser, **details: Any) -> None:
    """Keep that this person did this to `subject`: what a changed row alone does not tell.

    `deed`: a word such as `curtail` or `reveal`. `details` are kept as JSON and hold no secret. It is stored
    in the transaction of whoever calls.
    """
    LogEntry.objects.log_create(
        subject,
        force_log=True,
        action=LogEntry.Action.ACCESS,
        changes={},
        actor=request.user if request.user.is_authenticated else None,
        remote_addr=_address_kept(request),
        additional_data={"deed": deed, **details},
    )


def _address_kept(request: HttpRequest) -> str | None:
    """The address as the log can keep it; None for what is none, such as a Unix socket's."""
    address = address_of(request)
    try:
        validate_ipv46_address(address)
    except ValidationError:
        return None
    return address
