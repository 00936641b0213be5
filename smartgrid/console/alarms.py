"""Alarms: what somebody should look at, first what nobody does yet; and to say that one looks after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import messages
from django.core.paginator import Paginator
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils import timezone

from sites_app.alarm_guide import Guide, guide_to
from sites_app.alarms import alarm_acknowledge
from sites_app.models import Alarm, AlarmSeverity
from sites_app.selectors import alarms_visible_to, sites_visible_to
from smartgrid.console.audit import noted
from smartgrid.console.pages import page, show
from smartgrid.console.people import principal_at
from smartgrid.console.roles import ACKNOWLEDGE
from smartgrid.errors import Conflict

PAGE = 50
# As many at once are acknowledged by one form: as many as a page shows.
AT_ONCE = PAGE
_FILTERS = ("state", "severity", "site", "code", "page")
STATES: Mapping[str, dict[str, Any]] = {
    "open": {"cleared_at": None},
    "raised": {"cleared_at": None, "acknowledged_at": None},
    "acknowledged": {"cleared_at": None, "acknowledged_at__isnull": False},
    "cleared": {"cleared_at__isnull": False},
    "all": {},
}


@dataclass(frozen=True, slots=True)
class Line:
    """One alarm as it is shown."""

    alarm: Alarm
    guide: Guide

    @property
    def state(self) -> str:
        if self.alarm.cleared_at is not None:
            return "cleared"
        return "raised" if self.alarm.acknowledged_at is None else "acknowledged"

    @property
    def can_be_acknowledged(self) -> bool:
        return self.state == "raised"


@page("alarms/", name="console_alarms", permission="sites_app.view_alarm")
def alarms(request: HttpRequest) -> HttpResponseBase:
    principal = principal_at(request)
    visible = alarms_visible_to(principal)
    asked = {name: request.GET.get(name, "") for name in _FILTERS}
    state = asked["state"] if asked["state"] in STATES else "open"
    rows = visible.filter(**STATES[state])
    if asked["severity"] in AlarmSeverity.values:
        rows = rows.filter(severity=asked["severity"])
    if asked["code"]:
        rows = rows.filter(code=asked["code"])
    if (site_id := _key(asked["site"])) is not None:
        rows = rows.filter(site=site_id)
    shown = Paginator(rows, PAGE).get_page(asked["page"])
    query = urlencode({name: value for name, value in asked.items() if value})
    context: dict[str, Any] = {
        "lines": [Line(alarm, guide_to(alarm.code)) for alarm in shown],
        "shown": shown,
        "state": state,
        "states": list(STATES),
        "severities": AlarmSeverity.values,
        "asked": asked,
        "query": query,
        "unpaged": urlencode({name: value for name, value in asked.items() if value and name != "page"}),
        "may_acknowledge": request.user.has_perm(ACKNOWLEDGE),
        "now": timezone.now(),
    }
    if "part" not in request.GET:
        context["sites"] = list(sites_visible_to(principal).only("site_tag", "name"))
        codes = sorted(set(visible.order_by().values_list("code", flat=True).distinct()))
        context["codes"] = [(code, guide_to(code).title) for code in codes]
    return show(
        request,
        "console/alarms.html",
        title="Alarms",
        context=context,
        parts={"list": "console/parts/alarms.html"},
    )


@page("alarms/acknowledge", name="console_alarms_acknowledge", permission=ACKNOWLEDGE, methods=("POST",))
def acknowledge(request: HttpRequest) -> HttpResponseBase:
    """Those chosen, all of which this person must see, else none."""
    asked = request.POST.getlist("alarm")
    try:
        keys = {int(key) for key in asked}
    except ValueError as error:
        raise Http404 from error
    query = request.POST.get("query", "")
    back = HttpResponseRedirect(reverse("admin:console_alarms") + (f"?{query}" if query else ""))
    if not keys:
        messages.error(request, "Choose the alarms that you look after.")
        return back
    found = list(alarms_visible_to(principal_at(request)).filter(pk__in=keys)[: AT_ONCE + 1])
    if len(found) != len(keys) or len(found) > AT_ONCE:
        raise Http404
    note = request.POST.get("note", "")
    taken, passed = 0, []
    for alarm in found:
        try:
            with transaction.atomic():
                if alarm_acknowledge(alarm=alarm, by=request.user.get_username(), note=note):
                    noted(request, "acknowledge", alarm, note=alarm.note, site=str(alarm.site_id))
                    taken += 1
                else:
                    passed.append(
                        f"{guide_to(alarm.code).title}: {alarm.acknowledged_by} looks after it already."
                    )
        except Conflict as refusal:
            passed.append(str(refusal))
    if taken:
        messages.success(request, f"Acknowledged: {taken} alarm{'' if taken == 1 else 's'}.")
    for sentence in passed:
        messages.warning(request, sentence)
    return back


def _key(text: str) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError:
        return None
