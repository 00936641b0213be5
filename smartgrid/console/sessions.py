"""How long a login to the console lasts, what else it takes, and what a browser may do with our pages.

Checked at each request below /admin/, the stream of /admin/live in the events' process included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode, urlsplit

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, logout
from django.contrib.auth.signals import user_logged_in
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect

from smartgrid.console.live import PATH as LIVE_PATH
from smartgrid.console.second_factor import confirmed_factor_id

BELOW = "/admin/"
LOGIN = f"{BELOW}login/"
LOGOUT = f"{BELOW}logout/"
SECOND_FACTOR = f"{BELOW}second-factor/"
PROVIDER = f"{BELOW}oidc/"
PROVIDER_BACKEND = "smartgrid.console.oidc.ProviderBackend"

_BEGAN = "sgm_began"
_SEEN = "sgm_seen"
_VERIFIED = "sgm_second_factor"
# A click is noted once in so many seconds: each note is a write to the database.
NOTED_EVERY_S = 60

# Alpine, which Unfold is built on, evaluates the expressions of its attributes; Unfold has its colours in a
# <style>. Nothing else is inline, and nothing comes from elsewhere.
_CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action {forms}"
)
_PERMISSIONS_POLICY = (
    "accelerometer=(), camera=(), display-capture=(), geolocation=(), gyroscope=(), magnetometer=(),"
    " microphone=(), midi=(), payment=(), usb=()"
)


class ConsoleMiddleware:
    """Ends logins that are over, asks for the second factor, and adds the headers of the console's pages."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if not request.path_info.startswith(BELOW):
            return self._get_response(request)
        response = self._answer_instead(request, now=time.time()) or self._get_response(request)
        response.headers.setdefault("Content-Security-Policy", _content_policy())
        response.headers.setdefault("Referrer-Policy", "same-origin")
        response.headers.setdefault("Permissions-Policy", _PERMISSIONS_POLICY)
        return response

    @staticmethod
    def _answer_instead(request: HttpRequest, *, now: float) -> HttpResponse | None:
        """What is said in place of the page; None where the page may be shown."""
        if not request.user.is_authenticated:
            return None
        if _is_over(request, now=now):
            logout(request)
            return _sent_to(request, LOGIN, "Log in again.", status=401)
        _noted_seen(request, now=now)
        if request.path_info.startswith((LOGIN, LOGOUT, SECOND_FACTOR, PROVIDER)):
            return None
        where = second_factor_missing(request)
        return None if where is None else _sent_to(request, where, "Give your second factor.", status=403)


# --- how long -------------------------------------------------------------------------------------------


def _began(sender: Any, request: HttpRequest, user: Any, **_: Any) -> None:  # noqa: ARG001 - Django's signal
    now = time.time()
    request.session[_BEGAN] = request.session[_SEEN] = int(now)
    request.session.pop(_VERIFIED, None)


def sessions_begin() -> None:
    """Let every login note when it was."""
    user_logged_in.connect(_began, dispatch_uid="sgm.console.sessions")


def _is_over(request: HttpRequest, *, now: float) -> bool:
    began, seen = request.session.get(_BEGAN), request.session.get(_SEEN)
    if began is None or seen is None:
        # From before there were ends: it begins now.
        request.session[_BEGAN] = request.session[_SEEN] = int(now)
        return False
    is_old: bool = now - began >= settings.SGM_CONSOLE_SESSION_HOURS * 3600
    return is_old or bool(now - seen >= settings.SGM_CONSOLE_IDLE_MINUTES * 60)


def _is_by_itself(request: HttpRequest) -> bool:
    """Whether a page asks for what is new, and nobody need sit before it."""
    return request.path_info == LIVE_PATH or request.headers.get("X-Requested-With") == "live"


def _noted_seen(request: HttpRequest, *, now: float) -> None:
    if not _is_by_itself(request) and now - request.session[_SEEN] >= NOTED_EVERY_S:
        request.session[_SEEN] = int(now)


# --- the second factor ----------------------------------------------------------------------------------


def is_by_provider(request: HttpRequest) -> bool:
    """Whether this person was let in by the OpenID provider, whose business a second factor then is."""
    return bool(request.session.get(BACKEND_SESSION_KEY) == PROVIDER_BACKEND)


def second_factor_missing(request: HttpRequest) -> str | None:
    """Where to go for it; None where nothing is missing. Asked at each request: a reset counts at once."""
    if settings.SGM_CONSOLE_SECOND_FACTOR == "off" or is_by_provider(request):
        return None
    factor_id = confirmed_factor_id(request.user)
    if factor_id is None:
        return f"{SECOND_FACTOR}set-up/" if settings.SGM_CONSOLE_SECOND_FACTOR == "required" else None
    return None if request.session.get(_VERIFIED) == str(factor_id) else f"{SECOND_FACTOR}verify/"


def second_factor_given(request: HttpRequest) -> None:
    """Remember in the session that its person gave the factor they have now; under a new session key."""
    request.session.cycle_key()
    request.session[_VERIFIED] = str(confirmed_factor_id(request.user))


# --- answers --------------------------------------------------------------------------------------------


def _sent_to(request: HttpRequest, where: str, said: str, *, status: int) -> HttpResponse:
    if _is_by_itself(request):
        return HttpResponse(f"{said}\n", status=status, content_type="text/plain")
    # What was typed into a form is lost; to send it on after the login could do what nobody wants any longer.
    there = request.get_full_path() if request.method in {"GET", "HEAD"} else BELOW
    return HttpResponseRedirect(f"{where}?{urlencode({'next': there})}")


def _content_policy() -> str:
    forms = "'self'"
    # A logout is a form, and may lead on to the provider's own.
    if issuer := (settings.SGM_CONSOLE_OIDC or {}).get("issuer"):
        parts = urlsplit(issuer)
        forms += f" {parts.scheme}://{parts.netloc}"
    return _CONTENT_POLICY.format(forms=forms)
