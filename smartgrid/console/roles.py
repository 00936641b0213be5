"""The four roles of the console, as groups with permissions; views ask for permissions, never for roles."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from django.contrib.auth.models import Group, Permission
from django.db.models.signals import post_migrate

# What views ask for, beside the permissions that Django has for each model.
CURTAIL = "control_app.curtail"
ACKNOWLEDGE = "sites_app.acknowledge_alarm"
ENROL = "sites_app.enrol_node"
REVEAL = "sites_app.reveal_managementtoken"


class Role(StrEnum):
    """Each may do what those before it may; who may do nothing but look is a viewer."""

    VIEWER = "Viewer"
    OPERATOR = "Operator"
    ENGINEER = "Engineer"
    ADMINISTRATOR = "Administrator"


_LOOKED_AT = {
    "sites_app": ("site", "node", "nodedocument", "unsettleddocument", "alarm", "nodecertificate"),
    "devices_app": (
        *("device", "devicetype", "devicebound", "closedloop", "loopchange", "probe", "retiringdevice"),
        "telemetryseries",
    ),
    "schedules_app": ("schedule",),
    "control_app": ("controlrequest", "controlcommand", "controllog", "deviceerrorlog", "nodeevent"),
}
_CHANGED_BY_ENGINEERS = {
    "sites_app": ("site", "node"),
    "devices_app": ("device", "devicetype", "devicebound", "closedloop", "probe", "retiringdevice"),
}
_CHANGED_BY_ADMINISTRATORS = {
    "sites_app": ("managementtoken", "sitescope", "alarmroute", "alarmdelivery"),
    "auth": ("user", "group"),
    "oauth2_provider": ("application",),
    "django_celery_beat": ("periodictask", "intervalschedule", "crontabschedule"),
}


def permissions_of(role: Role) -> frozenset[str]:
    """What this role may, as `app_label.codename`."""
    looked = {f"{app}.view_{model}" for app, models in _LOOKED_AT.items() for model in models}
    if role is Role.VIEWER:
        return frozenset(looked)
    operated = looked | {CURTAIL, ACKNOWLEDGE} | _changes({"schedules_app": ("schedule",)})
    if role is Role.OPERATOR:
        return frozenset(operated)
    engineered = operated | {ENROL} | _changes(_CHANGED_BY_ENGINEERS)
    if role is Role.ENGINEER:
        return frozenset(engineered)
    return frozenset(engineered | {REVEAL, "auditlog.view_logentry"} | _changes(_CHANGED_BY_ADMINISTRATORS))


def _changes(models_by_app: dict[str, tuple[str, ...]]) -> set[str]:
    return {
        f"{app}.{action}_{model}"
        for app, models in models_by_app.items()
        for model in models
        for action in ("view", "add", "change", "delete")
    }


def roles_make(**signal: Any) -> None:
    """Make the groups and give them their permissions; what somebody gave them besides stays."""
    config = signal.get("app_config")
    if config is not None and config.label != "control_app":
        # Of all that is migrated the last but for what holds no permission of a role.
        return
    known = {
        f"{app}.{codename}": key
        for key, app, codename in Permission.objects.values_list("pk", "content_type__app_label", "codename")
    }
    for role in Role:
        group, _ = Group.objects.get_or_create(name=role.value)
        group.permissions.add(*(known[name] for name in permissions_of(role) if name in known))


def roles_follow_migrations() -> None:
    """Let every `migrate` end with the roles in place, whichever app's permissions come last."""
    post_migrate.connect(roles_make, dispatch_uid="sgm.console.roles")
