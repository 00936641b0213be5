"""The landing page: the whole fleet at a glance."""

from __future__ import annotations

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from smartgrid.console.pages import page, show


@page("", name="index")
def fleet(request: HttpRequest) -> HttpResponseBase:
    return show(request, "console/fleet.html", title="Fleet", context={}, parts={})
