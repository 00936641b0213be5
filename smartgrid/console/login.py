"""The way in by name and password: how often it may be tried, and what is kept of it."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

import structlog
from django.conf import settings
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from unfold.forms import AuthenticationForm

from smartgrid.console.audit import noted
from smartgrid.middleware import address_of
from smartgrid.rates import Rate
from smartgrid.throttles import Bucket, admit

if TYPE_CHECKING:
    from django.contrib.admin.forms import AdminAuthenticationForm as _AuthenticationForm
else:
    _AuthenticationForm = AuthenticationForm

log = structlog.stdlib.get_logger(__name__)

# Many people may sit behind one address, and a stranger must not keep somebody out by trying their name:
# the narrow rate is that of a name from an address; each by itself has so many times as much.
WIDER = 10


class LoginForm(_AuthenticationForm):
    def clean(self) -> dict[str, Any]:
        name = str(self.cleaned_data.get("username", ""))
        assert self.request is not None
        wait_s = login_wait(self.request, name)
        if wait_s > 0:
            raise ValidationError(f"Too many tries. Try again in {wait_s:.0f} s.", code="throttled")
        try:
            return super().clean()
        except ValidationError:
            log.warning("login_refused", user=name[:150], address=address_of(self.request))
            raise


def login_wait(request: HttpRequest, name: str) -> float:
    """Count one try; the seconds to wait where it is one too many, 0 where it is not or Redis is away."""
    rate = settings.SGM_THROTTLE_LOGIN
    if rate is None:
        return 0.0
    wide = Rate(count=rate.count * WIDER, period_s=rate.period_s)
    # What somebody typed may be a password; the names of buckets are no secret.
    who = hashlib.sha256(f"{settings.SECRET_KEY} {name.casefold()}".encode()).hexdigest()[:32]
    address = address_of(request) or "unknown"
    buckets = [
        Bucket(f"login:{who}:{address}", rate),
        Bucket(f"login-name:{who}", wide),
        Bucket(f"login-address:{address}", wide),
    ]
    wait_s = admit(buckets, now=time.monotonic())
    return max(1.0, wait_s) if wait_s > 0 else 0.0


def login_context(request: HttpRequest) -> dict[str, Any]:
    """What the login page shows besides the form."""
    return {
        "provider_name": (settings.SGM_CONSOLE_OIDC or {}).get("name", "single sign-on")
        if settings.SGM_CONSOLE_OIDC
        else "",
        "next": request.GET.get("next", ""),
    }


def login_noted(request: HttpRequest) -> None:
    """Keep a login in the audit log, once the form was sent and let somebody in."""
    if request.method == "POST" and request.user.is_authenticated:
        noted(request, "log in", request.user, by="password")
