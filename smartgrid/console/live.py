"""What happens, told to an open page of the console: the stream of /v1/events, by session, not token."""

from __future__ import annotations

import time

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import path

from sites_app.selectors import sites_visible_to
from smartgrid.api.events import Opening, events_relay, kinds_asked, site_asked
from smartgrid.api.exceptions import status_of
from smartgrid.console.pages import page
from smartgrid.console.people import principal_at
from smartgrid.errors import SgmError
from smartgrid.event_streams.hub import Terms

# After so long the browser asks anew, and whoever was logged out or lost a site meanwhile is told no more.
ASKED_ANEW_AFTER_S = 60.0
ROUTE = "live"
PATH = f"/admin/{ROUTE}"
_PASSED_ON = ("Cookie", "Last-Event-ID", "Host")


@page(ROUTE, name="console_live")
def live_relay(request: HttpRequest) -> HttpResponseBase:
    """In web: pass the stream on, where no proxy sends its address to the events' process itself."""
    try:
        return events_relay(request, path=PATH, passed_on=_PASSED_ON)
    except SgmError as refusal:
        return _refused(refusal)


def live_open(request: HttpRequest) -> HttpResponseBase:
    """In the events' process: settle the terms of a person's stream."""
    if not (request.user.is_active and request.user.is_staff):
        return HttpResponse("Log in first.\n", status=403, content_type="text/plain")
    principal = principal_at(request)
    try:
        kinds, site_id = kinds_asked(request), site_asked(request, principal)
    except SgmError as refusal:
        return _refused(refusal)
    sites: frozenset[str] | None = None
    if site_id is not None:
        sites = frozenset([str(site_id)])
    elif not principal.is_root:
        sites = frozenset(map(str, sites_visible_to(principal).order_by().values_list("pk", flat=True)))
    return Opening(
        Terms(
            owner=principal.client_id,
            token_id=None,
            kinds=kinds,
            site_id=None if site_id is None else str(site_id),
            sites=sites,
            expires_at=time.time() + ASKED_ANEW_AFTER_S,
            last_event_id=request.headers.get("Last-Event-ID") or request.GET.get("last_event_id", ""),
        )
    )


def _refused(refusal: SgmError) -> HttpResponse:
    return HttpResponse(f"{refusal}\n", status=status_of(refusal), content_type="text/plain")


opening_urlpatterns = [path(PATH.removeprefix("/"), live_open)]
