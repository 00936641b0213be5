"""Why a device is, or was, held where it is: asked of its node, and told as a ladder a person can read."""

from __future__ import annotations

import re
import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone

from control_app.questions import device_explain
from control_app.selectors import commands_to_device, control_requests_visible_to, logs_of_device
from edge.wire.messages import Explanation, ReasonEntry
from sites_app.models import Site
from smartgrid.api.principal import Principal
from smartgrid.console.device import VIEW_DEVICE, device_or_404
from smartgrid.console.pages import page, show
from smartgrid.console.people import principal_at
from smartgrid.errors import SgmError

LINES_SHOWN = 10
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)")


@page("device/<uuid:device_id>/why/", name="console_why", permission=VIEW_DEVICE)
def why(request: HttpRequest, device_id: UUID) -> HttpResponseBase:
    """`at`: a moment as the API takes it; `when`: one in the site's zone, as a browser's field gives it."""
    principal = principal_at(request)
    device = device_or_404(principal, device_id)
    site, zone = device.site, zoneinfo.ZoneInfo(device.site.time_zone or "UTC")
    refusal, explanation = "", None
    try:
        at = _asked_for(request, zone)
        explanation = device_explain(principal=principal, device_id=device_id, at=at)
    except ValueError as error:
        refusal = f"{error} Choose another moment."
    except SgmError as error:
        refusal = str(error)
    shown = datetime.fromisoformat(explanation.at) if explanation is not None else timezone.now()
    context = {
        "device": device,
        "site": site,
        "refusal": refusal,
        "explanation": explanation,
        "when": request.GET.get("when") or f"{shown.astimezone(zone):%Y-%m-%dT%H:%M:%S}",
        "is_now": not (request.GET.get("when") or request.GET.get("at")),
    }
    if explanation is None:
        context |= {
            "commands": commands_to_device(device, at_most=LINES_SHOWN),
            "lines": logs_of_device(device, at_most=LINES_SHOWN),
        }
    else:
        context |= _ladder(explanation, site, principal)
    title = f"Why is {device.device_tag} where it is?"
    return show(request, "console/why.html", title=title, context=context)


def _asked_for(request: HttpRequest, zone: zoneinfo.ZoneInfo) -> str | None:
    """The moment asked about, as the node takes it; None: now. `ValueError` says what is wrong with it."""
    when = request.GET.get("when", "").strip()
    if not when:
        return request.GET.get("at", "").strip() or None
    try:
        local = datetime.fromisoformat(when)
    except ValueError as error:
        text = "This is no moment."
        raise ValueError(text) from error
    if local.tzinfo is not None:
        return local.astimezone(UTC).isoformat()
    moment = local.replace(tzinfo=zone).astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) != local:
        text = f"This moment does not exist in {zone.key}: clocks were put forward."
        raise ValueError(text)
    return moment.isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the node's reasons, for people: its moment, and its text in parts, in the site's time."""

    at: datetime
    said: ReasonEntry
    parts: list[str]


def _ladder(explanation: Explanation, site: Site, principal: Principal) -> dict[str, object]:
    decision = explanation.decision
    asked = None
    request_id = _key(decision.request_id or "")
    if request_id is not None:
        asked = control_requests_visible_to(principal).filter(pk=request_id, site=site).first()
    return {
        "at": datetime.fromisoformat(explanation.at),
        "reaches_back_to": datetime.fromisoformat(explanation.reaches_back_to),
        "decision": _entry(decision, site),
        "until": None if decision.until is None else datetime.fromisoformat(decision.until),
        "asked": asked,
        "written": [_entry(entry, site) for entry in explanation.written],
        "before": [_entry(entry, site) for entry in explanation.before],
        "after": [_entry(entry, site) for entry in explanation.after],
        "notes": [_in_zone(note, site) for note in explanation.notes],
    }


def _key(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _entry(said: ReasonEntry, site: Site) -> Entry:
    return Entry(
        datetime.fromisoformat(said.at), said, [_in_zone(part, site) for part in said.text.split("; ")]
    )


def _in_zone(text: str, site: Site) -> str:
    """The node's text with its moments in the site's zone, each with its zone's name."""
    zone = zoneinfo.ZoneInfo(site.time_zone or "UTC")
    return _MOMENT.sub(lambda found: _moment_in(found.group(), zone), text)


def _moment_in(text: str, zone: zoneinfo.ZoneInfo) -> str:
    try:
        local = datetime.fromisoformat(text).astimezone(zone)
    except (ValueError, OverflowError):
        return text
    return f"{local:%Y-%m-%d %H:%M:%S %Z}"
