"""Routes of alarms: who is told, made and changed here, and what waits to be told to them (ADR 0036)."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction

from sites_app import tokens
from sites_app.models import (
    Alarm,
    AlarmDelivery,
    AlarmRoute,
    AlarmSeverity,
    AlarmStep,
    RouteKind,
    Site,
)
from smartgrid.errors import Invalid
from smartgrid.integrity import store

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteFields:
    """What a person says of a route; no `sites`: all."""

    name: str
    kind: str
    target: str
    least_severity: str
    sites: Sequence[Site]
    enabled: bool


def alarm_route_create(fields: RouteFields) -> AlarmRoute:
    """A route; of a webhook its secret is drawn, see `alarm_route_secret`."""
    route = AlarmRoute()
    if fields.kind == RouteKind.WEBHOOK:
        route.secret_encrypted = tokens.encrypt(f"whs_{secrets.token_hex(32)}")
    return _store(route, fields)


def alarm_route_update(*, route: AlarmRoute, fields: RouteFields) -> AlarmRoute:
    """Change a route. What was queued for it goes where it leads now. `Invalid`: its kind stays."""
    route = AlarmRoute.objects.get(pk=route.pk)
    if route.kind != fields.kind:
        raise Invalid.field("kind", "the kind of a route stays: add another route, and delete this one")
    return _store(route, fields)


def alarm_route_delete(*, route: AlarmRoute) -> None:
    """Delete a route with what was still to be sent to it."""
    AlarmRoute.objects.filter(pk=route.pk).delete()
    log.info("alarm_route_deleted", route=route.name)


def alarm_route_secret(route: AlarmRoute) -> str:
    """With which the messages to this webhook are signed; empty for e-mail."""
    return tokens.decrypt(route.secret_encrypted) if route.secret_encrypted else ""


def _store(route: AlarmRoute, fields: RouteFields) -> AlarmRoute:
    target_check(fields.kind, fields.target)
    for name in ("name", "kind", "target", "least_severity", "enabled"):
        setattr(route, name, getattr(fields, name))
    with transaction.atomic():
        store(route)
        route.sites.set(fields.sites)
    log.info("alarm_route_stored", route=route.name, kind=route.kind, enabled=route.enabled)
    return route


def target_check(kind: str, target: str) -> None:
    """`Invalid` unless this is where such a route can lead."""
    if kind == RouteKind.EMAIL:
        for address in addresses(target) or [target]:
            try:
                validate_email(address)
            except ValidationError as error:
                raise Invalid.field("target", f"{address!r} is not an e-mail address") from error
        return
    try:
        parts = urlsplit(target)
        is_usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if (
        not is_usable
        or parts.scheme not in {"https", "http"}
        or not target.isascii()
        or not target.isprintable()
    ):
        raise Invalid.field("target", "a webhook has an address such as https://example.com/alarms")
    if parts.username is not None or " " in target:
        raise Invalid.field(
            "target", "an address without a user, password or spaces; messages are signed instead"
        )
    if parts.scheme == "http" and not settings.SGM_ALARM_WEBHOOKS_PRIVATE:
        raise Invalid.field("target", "https:// is needed; http:// only with SGM_ALARM_WEBHOOKS_PRIVATE=1")


def addresses(target: str) -> list[str]:
    """The e-mail addresses of a route."""
    return [part.strip() for part in target.split(",") if part.strip()]


# --- what is to be told ---------------------------------------------------------------------------------


def deliveries_queue(alarms: Sequence[Alarm], step: AlarmStep) -> int:
    """Keep for each route that wants to know of these what is to be told; how many notices.

    In the transaction of the step: what is committed is told, and sending is another process's work.
    """
    routes = list(AlarmRoute.objects.filter(enabled=True).prefetch_related("sites"))
    wanted = [
        AlarmDelivery(alarm=alarm, route=route, what=step)
        for route in routes
        for alarm in _of_interest(route, alarms)
    ]
    AlarmDelivery.objects.bulk_create(wanted, batch_size=500)
    return len(wanted)


def _of_interest(route: AlarmRoute, alarms: Iterable[Alarm]) -> list[Alarm]:
    sites = {site.pk for site in route.sites.all()}
    return [
        alarm
        for alarm in alarms
        if (route.least_severity == AlarmSeverity.WARNING or alarm.severity == AlarmSeverity.ERROR)
        and (not sites or alarm.site_id in sites)
    ]
