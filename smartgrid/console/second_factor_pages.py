"""The pages of the second factor: set it up, give it after the password, draw recovery codes anew."""

from __future__ import annotations

from typing import Any

import segno
from django.conf import settings
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme

from smartgrid.console import second_factor as rules
from smartgrid.console.audit import noted
from smartgrid.console.pages import page, show
from smartgrid.console.sessions import is_by_provider, second_factor_given, second_factor_missing
from smartgrid.errors import Conflict, SgmError, Throttled

_BOTH = ("GET", "HEAD", "POST")


@page("second-factor/", name="console_second_factor", methods=_BOTH)
def second_factor(request: HttpRequest) -> HttpResponseBase:
    """How it stands with the visitor's own; on POST take it away, to set up another."""
    if request.method == "POST":
        _only_verified(request)
        if rules.factor_reset(request.user):
            noted(request, "remove second factor", request.user)
            messages.success(request, "Your authenticator and your recovery codes are no longer taken.")
        return HttpResponseRedirect(reverse("admin:console_second_factor_set_up"))
    factor_id = rules.confirmed_factor_id(request.user)
    context = {
        "has_one": factor_id is not None,
        "codes_left": rules.recovery_codes_left(request.user),
        "rule": settings.SGM_CONSOLE_SECOND_FACTOR,
        "is_by_provider": is_by_provider(request),
        "missing": second_factor_missing(request),
    }
    return show(request, "console/second_factor.html", title="Second factor", context=context)


@page("second-factor/set-up/", name="console_second_factor_set_up", methods=_BOTH)
def set_up(request: HttpRequest) -> HttpResponseBase:
    """The key as a picture and as text; on POST its first code, answered by the recovery codes."""
    _only_where_it_is_asked_for(request)
    try:
        factor = rules.factor_draft(request.user)
    except Conflict as refusal:
        messages.error(request, str(refusal))
        return HttpResponseRedirect(reverse("admin:console_second_factor"))
    error = ""
    if request.method == "POST":
        try:
            codes = rules.factor_confirm(request.user, request.POST.get("code", ""), at=timezone.now())
        except SgmError as refusal:
            error = str(refusal)
        else:
            second_factor_given(request)
            noted(request, "set up second factor", request.user)
            return _codes_shown(request, codes)
    context = {
        "picture": _picture(rules.key_uri(factor)),
        "key": rules.key_text(factor),
        "error": error,
        "next": _next(request),
    }
    return _hidden(
        show(request, "console/second_factor_set_up.html", title="Set up your second factor", context=context)
    )


@page("second-factor/verify/", name="console_second_factor_verify", methods=_BOTH)
def verify(request: HttpRequest) -> HttpResponseBase:
    """After the password: a code of the authenticator, or a recovery code."""
    _only_where_it_is_asked_for(request)
    error, status = "", 200
    if request.method == "POST":
        try:
            kind = rules.code_verify(request.user, request.POST.get("code", ""), at=timezone.now())
        except Throttled as refusal:
            error, status = str(refusal), 429
        except SgmError as refusal:
            error = str(refusal)
        else:
            second_factor_given(request)
            noted(request, "give second factor", request.user, kind=kind)
            if kind == "recovery code":
                left = rules.recovery_codes_left(request.user)
                messages.warning(request, f"That recovery code is used up; {left} are left.")
            return HttpResponseRedirect(_next(request))
    context = {"error": error, "next": _next(request)}
    return show(
        request, "console/second_factor_verify.html", title="Second factor", context=context, status=status
    )


@page("second-factor/recovery-codes/", name="console_recovery_codes", methods=("POST",))
def recovery_codes(request: HttpRequest) -> HttpResponseBase:
    """New recovery codes in place of the former ones."""
    _only_verified(request)
    try:
        codes = rules.recovery_codes_renew(request.user)
    except Conflict as refusal:
        messages.error(request, str(refusal))
        return HttpResponseRedirect(reverse("admin:console_second_factor"))
    noted(request, "renew recovery codes", request.user)
    return _codes_shown(request, codes)


def _only_where_it_is_asked_for(request: HttpRequest) -> None:
    if settings.SGM_CONSOLE_SECOND_FACTOR == "off" or is_by_provider(request):
        raise PermissionDenied


def _only_verified(request: HttpRequest) -> None:
    """The middleware lets these pages through before the factor was given."""
    _only_where_it_is_asked_for(request)
    if second_factor_missing(request) is not None:
        raise PermissionDenied


def _codes_shown(request: HttpRequest, codes: list[str]) -> HttpResponse:
    context = {"codes": codes, "next": _next(request)}
    return _hidden(show(request, "console/recovery_codes.html", title="Recovery codes", context=context))


def _hidden(response: HttpResponse) -> HttpResponse:
    response["Pragma"] = "no-cache"
    response["Referrer-Policy"] = "no-referrer"
    return response


def _next(request: HttpRequest) -> str:
    """Where the visitor was going, if that is here."""
    wanted = request.POST.get("next") or request.GET.get("next") or ""
    is_here = wanted.startswith("/admin/") and url_has_allowed_host_and_scheme(wanted, allowed_hosts=None)
    return wanted if is_here else reverse("admin:index")


def _picture(text: str) -> Any:
    """A QR code as the address of a picture that is part of the page: no host ever sees the key."""
    return segno.make(text, error="m").svg_data_uri(scale=5, border=4, dark="#000", light="#fff")
