"""Every request has an id, and those of the API take no part in what is the console's."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from functools import lru_cache

import structlog
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import ResolverMatch, resolve

_SANE = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class RequestIdMiddleware:
    """A request's id is the caller's where it is sane, else one of ours; it is echoed and logged."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        offered = request.META.get("HTTP_X_REQUEST_ID", "")
        request_id = offered if _SANE.fullmatch(offered) else uuid.uuid4().hex
        request.META["sgm.request_id"] = request_id
        # Threads are used again: begin clean, whatever the last request left.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        response = self._get_response(request)
        response["X-Request-ID"] = request_id
        return response


class ApiMiddleware:
    """Answers what is asked of /v1; whatever stands below it in the list is the console's alone.

    No view of the API knows sessions, forms or messages (its credentials are headers, which no other site's
    page can make a browser send), and to pass by all that costs a request more than its permissions.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if not request.path_info.startswith("/v1/"):
            return self._get_response(request)
        # (The events' process has paths of its own.)
        urlconf = getattr(request, "urlconf", None) or settings.ROOT_URLCONF
        match = request.resolver_match = _resolved(request.path_info, urlconf)
        response: HttpResponse = match.func(request, *match.args, **match.kwargs)
        # What a view leaves to be drawn at the end, as Django does it.
        render = getattr(response, "render", None)
        return response if render is None else render()


@lru_cache(maxsize=4096)
def _resolved(path: str, urlconf: str) -> ResolverMatch:
    """The view of a path below /v1. Callers come again for the same, and to try all patterns costs them more
    than their permissions.
    """
    return resolve(path, urlconf)


def request_id_of(request: HttpRequest) -> str:
    """The id of this request; also of DRF's request around it."""
    return str(request.META.get("sgm.request_id", ""))


def address_of(request: HttpRequest) -> str:
    """Whose request this is; empty where it is not known.

    Behind a proxy of ours the last address it added: what stands before that is the caller's own word.
    """
    if settings.SGM_BEHIND_TLS_PROXY and (passed_on := request.META.get("HTTP_X_FORWARDED_FOR")):
        return str(passed_on).rpartition(",")[2].strip()
    return str(request.META.get("REMOTE_ADDR") or "")
