"""How a closed loop stands, for the form on which it is changed."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404

from devices_app.loop_view import loops_view
from devices_app.models import ClosedLoop
from sites_app.selectors import of_visible_sites
from smartgrid.console.pages import page, show
from smartgrid.console.people import principal_at


@page("loop/<uuid:loop_id>/stand/", name="console_loop_stand", permission="devices_app.view_closedloop")
def loop_stand(request: HttpRequest, loop_id: UUID) -> HttpResponseBase:
    """The live part of the form; it has no page of its own."""
    rows = of_visible_sites(ClosedLoop.objects.select_related("node", "meter", "site"), principal_at(request))
    (view,) = loops_view([get_object_or_404(rows, pk=loop_id)])
    part = "console/loop_stand.html"
    return show(request, part, title=view.loop.loop_tag, context={"view": view})
