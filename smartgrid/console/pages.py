"""Pages of the console that are no form and no list: where they are, whose they are, how they stay live."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.views.decorators.http import require_http_methods

View = Callable[..., HttpResponseBase]


@dataclass(frozen=True, slots=True)
class Page:
    """One address below /admin/. `permission`: what its visitor needs; empty: to be let in at all.

    `is_open`: also for those who are on their way in.
    """

    route: str
    name: str
    view: View
    permission: str
    is_open: bool = False

    def url(self, site: admin.AdminSite) -> URLPattern:
        if self.is_open:
            return path(self.route, self.view, name=self.name)
        # Whoever is not logged in is sent to do so, and comes back.
        return path(self.route, site.admin_view(self.view), name=self.name)


def page(
    route: str,
    *,
    name: str,
    permission: str = "",
    methods: tuple[str, ...] = ("GET", "HEAD"),
    is_open: bool = False,
) -> Callable[[View], Page]:
    """Make a view a page: `admin:NAME`. Without `permission` it answers 403, whichever way it is reached."""

    def made(view: View) -> Page:
        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if permission and not request.user.has_perm(permission):
                # Its page says by this name what is missing (`smartgrid.console.trouble`).
                raise PermissionDenied(permission)
            return view(request, *args, **kwargs)

        return Page(route, name, require_http_methods(methods)(guarded), permission, is_open)

    return made


def show(
    request: HttpRequest,
    template: str,
    *,
    title: str,
    context: Mapping[str, Any],
    parts: Mapping[str, str] | None = None,
    status: int = 200,
) -> HttpResponse:
    """This page; or, asked for `?part=NAME`, that part of it alone, which is how a page stays live.

    `parts`: template by name. A page's own template has `{% include %}` of the same ones, each in an element
    with `data-live` (console/live.js). Nothing of a plant stays in a cache.
    """
    part = request.GET.get("part", "")
    if parts and part in parts:
        response = TemplateResponse(request, parts[part], dict(context), status=status)
    else:
        everything = {**admin.site.each_context(request), "title": title, **context}
        response = TemplateResponse(request, template, everything, status=status)
    response["Cache-Control"] = "no-store"
    return response
