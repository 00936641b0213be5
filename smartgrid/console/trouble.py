"""When a page of the console cannot be shown: what is wrong, and what to do next. /v1 answers in JSON."""

from __future__ import annotations

import re
from typing import Any

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.loader import render_to_string
from django.templatetags.static import static
from django.views import csrf

from smartgrid.api import views as api
from smartgrid.console.roles import Role, permissions_of
from smartgrid.middleware import request_id_of

_NAMED = re.compile(r"[a-z0-9_]+\.[a-z0-9_]+")
_FORM = re.compile(r"(?P<app>.+?)_(?P<model>[a-z0-9]+)_(?P<what>changelist|change|add|delete|history)")
_ACTIONS = {"changelist": "view", "history": "view", "change": "view", "add": "add", "delete": "delete"}
# As many people are named whom one may ask.
ASKED_AT_MOST = 5


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not _is_console(request):
        return api.bad_request(request, exception)
    return _bare(
        request,
        status=400,
        title="This request cannot be read",
        sentences=["Something in the address or the form is malformed. Go back and try again."],
    )


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Say which permission is missing, which roles have it, and who gives roles."""
    if not _is_console(request):
        return api.forbidden(request, exception)
    missing = _missing(request, exception)
    sentences = ["You are logged in, but may not do this."]
    if missing:
        sentences.append(f"What is missing is the permission “{_told(missing)}” ({missing}).")
        roles = [role.value for role in Role if missing in permissions_of(role)]
        if roles:
            sentences.append(f"The role {' or '.join(roles)} has it.")
    people = _administrators()
    whom = f": {', '.join(people)}" if people else ""
    sentences.append(f"If you need it, ask an administrator{whom}. Then log in again.")
    return _framed(request, status=403, title="Not allowed", sentences=sentences)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not _is_console(request):
        return api.not_found(request, exception)
    sentences = [
        "There is no such page, or what it was about is gone, or it belongs to a site that you may not see.",
        "Check the address, or find it from the fleet.",
    ]
    return _framed(request, status=404, title="Not found", sentences=sentences)


def server_error(request: HttpRequest) -> HttpResponse:
    if not _is_console(request):
        return api.server_error(request)
    sentences = [
        "This is our fault, not yours.",
        "It is not certain whether what you just sent was done: look before you send it again.",
        "If it happens again, tell your administrator the number below. It stands in the logs.",
    ]
    return _bare(request, status=500, title="Something went wrong", sentences=sentences)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    if not _is_console(request):
        return csrf.csrf_failure(request, reason)
    sentences = [
        "The form did not come from a page of yours that is still good, so nothing was done.",
        "You may have logged in anew in another tab, or your browser keeps no cookies of this site.",
        "Go back, load the page again, and send the form once more.",
    ]
    return _bare(request, status=403, title="This form is no longer good", sentences=sentences)


def favicon(_request: HttpRequest) -> HttpResponse:
    """Where browsers ask for it unasked."""
    return redirect(static("console/favicon.svg"))


def _is_console(request: HttpRequest) -> bool:
    return request.path == "/admin" or request.path.startswith("/admin/")


# --- what is missing, and who gives it ----------------------------------------------------------------------


def _missing(request: HttpRequest, exception: Exception) -> str:
    """The permission as `app_label.codename`; empty where nobody knows."""
    named = str(exception)
    if _NAMED.fullmatch(named):
        return named
    form = _FORM.fullmatch((request.resolver_match and request.resolver_match.url_name) or "")
    if form is None:
        return ""
    action = "change" if request.method == "POST" and form["what"] == "change" else _ACTIONS[form["what"]]
    return f"{form['app']}.{action}_{form['model']}"


def _told(permission: str) -> str:
    app, codename = permission.split(".")
    found = Permission.objects.filter(content_type__app_label=app, codename=codename).first()
    return codename.replace("_", " ") if found is None else found.name


def _administrators() -> list[str]:
    people = get_user_model().objects.filter(
        Q(is_superuser=True) | Q(groups__name=Role.ADMINISTRATOR.value), is_active=True
    )
    names = people.order_by("username").values_list("username", flat=True).distinct()
    return list(names[:ASKED_AT_MOST])


# --- the pages ----------------------------------------------------------------------------------------------


def _framed(request: HttpRequest, *, status: int, title: str, sentences: list[str]) -> HttpResponse:
    """With the way around beside it, for those who are logged in."""
    user = getattr(request, "user", None)
    if user is None or not (user.is_active and user.is_staff):
        return _bare(request, status=status, title=title, sentences=sentences)
    frame = admin.site.each_context(request)
    return _page(request, "console/error.html", status=status, title=title, sentences=sentences, frame=frame)


def _bare(request: HttpRequest, *, status: int, title: str, sentences: list[str]) -> HttpResponse:
    """Without anything that could fail once more: no person, no database."""
    return _page(request, "console/error_bare.html", status=status, title=title, sentences=sentences)


def _page(
    request: HttpRequest,
    template: str,
    *,
    status: int,
    title: str,
    sentences: list[str],
    frame: dict[str, Any] | None = None,
) -> HttpResponse:
    context = {
        **(frame or {}),
        "title": title,
        "status": status,
        "sentences": sentences,
        "request_id": request_id_of(request),
    }
    text = render_to_string(template, context, request=request if frame is not None else None)
    return HttpResponse(text, status=status, headers={"Cache-Control": "no-store"})
