"""The way in by an OpenID provider: code flow with PKCE, state and nonce; roles and sites from its claims.

SGM_CONSOLE_OIDC, a JSON object: `issuer`, `client_id`, `client_secret`; `groups_claim` (default `groups`)
and `roles`, group -> role; `sites_claim`, where the provider says which sites somebody may see; `name` on the
button; `scopes` (default `openid email profile`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlencode

import jwt
import requests
import structlog
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured, SuspiciousOperation
from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.urls import reverse
from mozilla_django_oidc.auth import OIDCAuthenticationBackend
from mozilla_django_oidc.views import OIDCAuthenticationCallbackView, OIDCAuthenticationRequestView

from smartgrid.console.audit import noted
from smartgrid.console.pages import page, show
from smartgrid.console.people import ProviderClaims, person_by_provider
from smartgrid.console.roles import Role
from smartgrid.console.sessions import is_by_provider
from smartgrid.errors import Forbidden

log = structlog.stdlib.get_logger(__name__)

# Seconds a provider has for each answer, and after which what it says of itself is asked anew.
ANSWER_S = 5
FRESH_S = 3600
LEEWAY_S = 60
ALGORITHM = "RS256"
_ID_TOKEN = "oidc_id_token"
_KNOWN = frozenset(
    {"issuer", "client_id", "client_secret", "groups_claim", "roles", "sites_claim", "name", "scopes"}
)
# What `requests`, PyJWT and mozilla-django-oidc raise where a provider is away or says what cannot be.
_TROUBLES = (requests.RequestException, jwt.PyJWTError, SuspiciousOperation, ValueError, KeyError, TypeError)


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """SGM_CONSOLE_OIDC, looked at."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    groups_claim: str
    roles: Mapping[str, Role]
    sites_claim: str
    scopes: str


class ProviderUnavailableError(Exception):
    """The provider does not say where its end points are."""


def provider_settings() -> ProviderSettings | None:
    """None where there is no provider; `ImproperlyConfigured` says what is wrong with one."""
    given = settings.SGM_CONSOLE_OIDC
    if not given:
        return None
    if not isinstance(given, dict) or not given.keys() <= _KNOWN:
        raise ImproperlyConfigured(
            f"SGM_CONSOLE_OIDC: expected an object with some of {', '.join(sorted(_KNOWN))}"
        )
    for name in ("issuer", "client_id", "client_secret"):
        if not isinstance(given.get(name), str) or not given[name]:
            raise ImproperlyConfigured(f"SGM_CONSOLE_OIDC: {name} is missing")
    roles = given.get("roles", {})
    names = [role.value for role in Role]
    if not isinstance(roles, dict) or not roles or not all(role in names for role in roles.values()):
        raise ImproperlyConfigured(
            f"SGM_CONSOLE_OIDC: roles has to name a role ({', '.join(names)}) for each group"
        )
    return ProviderSettings(
        issuer=given["issuer"],
        client_id=given["client_id"],
        client_secret=given["client_secret"],
        groups_claim=str(given.get("groups_claim", "groups")),
        roles={group: Role(role) for group, role in roles.items()},
        sites_claim=str(given.get("sites_claim", "")),
        scopes=str(given.get("scopes", "openid email profile")),
    )


# --- what the provider says of itself -------------------------------------------------------------------


def endpoints(issuer: str) -> Mapping[str, Any]:
    """OpenID Connect Discovery; remembered for an hour. `ProviderUnavailableError` where there is none."""
    return _endpoints(issuer, int(time.time() // FRESH_S))


@lru_cache(maxsize=4)
def _endpoints(issuer: str, _hour: int) -> Mapping[str, Any]:
    try:
        answer = requests.get(f"{issuer.rstrip('/')}/.well-known/openid-configuration", timeout=ANSWER_S)
        answer.raise_for_status()
        found = answer.json()
        # Section 4.3: another's document would send people elsewhere.
        if found["issuer"] != issuer:
            raise ValueError(f"it calls itself {found['issuer']!r}")  # noqa: TRY301 - told as all others
        found["authorization_endpoint"], found["token_endpoint"], found["jwks_uri"]
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        raise ProviderUnavailableError(f"{issuer} does not say where its end points are: {error}") from error
    return dict(found)


def _setting(name: str, *default: Any) -> Any:
    """What mozilla-django-oidc asks its settings for, out of ours and the provider's own words."""
    ours = provider_settings()
    assert ours is not None
    match name:
        case "OIDC_RP_CLIENT_ID":
            return ours.client_id
        case "OIDC_RP_CLIENT_SECRET":
            return ours.client_secret
        case "OIDC_RP_SCOPES":
            return ours.scopes
        case "OIDC_RP_SIGN_ALGO":
            return ALGORITHM
        case "OIDC_OP_AUTHORIZATION_ENDPOINT":
            return endpoints(ours.issuer)["authorization_endpoint"]
        case "OIDC_OP_TOKEN_ENDPOINT":
            return endpoints(ours.issuer)["token_endpoint"]
        case "OIDC_OP_JWKS_ENDPOINT":
            return endpoints(ours.issuer)["jwks_uri"]
        case "OIDC_OP_USER_ENDPOINT":
            return endpoints(ours.issuer).get("userinfo_endpoint", "")
        case "OIDC_AUTHENTICATION_CALLBACK_URL":
            return "admin:console_oidc_callback"
        case "OIDC_USE_PKCE" | "OIDC_USE_NONCE" | "OIDC_STORE_ID_TOKEN":
            return True
        case "OIDC_TOKEN_USE_BASIC_AUTH":
            methods = endpoints(ours.issuer).get("token_endpoint_auth_methods_supported")
            # Discovery, section 3: what is said to hold where nothing is said.
            return "client_secret_basic" in (methods or ["client_secret_basic"])
        case "OIDC_TIMEOUT":
            return ANSWER_S
        case "LOGIN_REDIRECT_URL":
            return reverse("admin:index")
        case "LOGIN_REDIRECT_URL_FAILURE":
            return reverse("admin:console_oidc_callback")
        case _ if default:
            return default[0]
        case _:
            raise ImproperlyConfigured(f"{name} is asked for and not known")


# --- who comes ------------------------------------------------------------------------------------------


class ProviderBackend(OIDCAuthenticationBackend):  # type: ignore[misc] # it has no types
    """Lets in whom the provider vouches for, by issuer and subject; never by an e-mail address."""

    get_settings = staticmethod(_setting)

    def __init__(self) -> None:
        # Django makes one for each look at a session, when nobody is logging in: nothing is asked yet.
        self.UserModel = get_user_model()

    def authenticate(self, request: HttpRequest | None, *, nonce: str, code_verifier: str) -> Any:
        # Both are asked for by name, so that no form of name and password comes here.
        if request is None or provider_settings() is None or not nonce or not code_verifier:
            return None
        super().__init__()
        return super().authenticate(request, nonce=nonce, code_verifier=code_verifier)

    def get_payload_data(self, token: str, key: Any) -> dict[str, Any]:
        """The claims of an id token (Core, 3.1.3.7); the library leaves issuer and audience out."""
        ours = provider_settings()
        assert ours is not None
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[ALGORITHM],
            audience=ours.client_id,
            issuer=ours.issuer,
            leeway=LEEWAY_S,
            options={"require": ["iss", "sub", "aud", "exp", "iat"]},
        )
        if claims.get("azp", ours.client_id) != ours.client_id:
            raise SuspiciousOperation("The id token is for another client.")
        return claims

    def get_or_create_user(self, access_token: str, id_token: str, payload: dict[str, Any]) -> Any:
        ours = provider_settings()
        assert ours is not None
        said: dict[str, Any] = {}
        if self.OIDC_OP_USER_ENDPOINT:
            said = dict(self.get_userinfo(access_token, id_token, payload))
            # Core, section 5.3.2: of anybody else it is not to be used.
            if said.get("sub") != payload["sub"]:
                raise SuspiciousOperation("The provider told of somebody else.")
        said.update(payload)
        return person_by_provider(claims_read(said, ours))


def claims_read(said: Mapping[str, Any], ours: ProviderSettings) -> ProviderClaims:
    """What counts of all that a provider says of somebody."""
    groups = _texts(_found(said, ours.groups_claim))
    return ProviderClaims(
        issuer=ours.issuer,
        subject=str(said["sub"]),
        name=str(said.get("preferred_username") or said.get("email") or said["sub"]),
        email=str(said.get("email") or ""),
        groups=groups,
        roles=frozenset(ours.roles[group] for group in groups if group in ours.roles),
        sites=_texts(_found(said, ours.sites_claim)) if ours.sites_claim else None,
    )


def _found(said: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, which may hold dots (a URL at Auth0), or by a path (`realm_access.roles`)."""
    if name in said:
        return said[name]
    found: Any = said
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(value.replace(",", " ").split())
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


# --- its pages ------------------------------------------------------------------------------------------


class _Begin(OIDCAuthenticationRequestView):  # type: ignore[misc]
    get_settings = staticmethod(_setting)


class _Callback(OIDCAuthenticationCallbackView):  # type: ignore[misc]
    get_settings = staticmethod(_setting)


@page("oidc/", name="console_oidc", is_open=True)
def begin(request: HttpRequest) -> HttpResponseBase:
    """Send somebody to the provider."""
    _only_with_provider()
    try:
        response: HttpResponseBase = _Begin.as_view()(request)
    except ProviderUnavailableError as error:
        log.warning("provider_unavailable", error=str(error))
        return _refused(
            request, "The provider cannot be reached. Try again later, or log in by password.", 503
        )
    return response


@page("oidc/callback/", name="console_oidc_callback", is_open=True)
def callback(request: HttpRequest) -> HttpResponseBase:
    """Where the provider sends somebody back to."""
    _only_with_provider()
    if "error" in request.GET or not ("code" in request.GET and "state" in request.GET):
        log.warning("provider_login_refused", error=request.GET.get("error", "")[:200])
        return _refused(request, "You were not logged in. Begin again.", 403)
    try:
        response: HttpResponseBase = _Callback.as_view()(request)
    except Forbidden as refusal:
        return _refused(request, str(refusal), 403)
    except (ProviderUnavailableError, *_TROUBLES) as error:
        log.warning("provider_login_failed", error=f"{type(error).__name__}: {error}"[:500])
        return _refused(request, "The login by the provider failed. Begin again.", 403)
    if not (request.user.is_authenticated and is_by_provider(request)):
        return _refused(request, "The login by the provider failed. Begin again.", 403)
    noted(request, "log in", request.user, by="provider")
    return response


def logout_address(request: HttpRequest) -> str | None:
    """Where the provider logs out whom it let in (RP-Initiated Logout 1.0); None where it does not say."""
    ours = provider_settings()
    if ours is None or not request.user.is_authenticated or not is_by_provider(request):
        return None
    try:
        address = endpoints(ours.issuer).get("end_session_endpoint")
    except ProviderUnavailableError:
        return None
    if not address:
        return None
    back = request.build_absolute_uri(reverse("admin:login"))
    query = {"client_id": ours.client_id, "post_logout_redirect_uri": back}
    if token := request.session.get(_ID_TOKEN):
        query["id_token_hint"] = token
    return f"{address}{'&' if '?' in address else '?'}{urlencode(query)}"


def _only_with_provider() -> None:
    if provider_settings() is None:
        raise Http404


def _refused(request: HttpRequest, why: str, status: int) -> HttpResponseBase:
    return show(request, "console/no_access.html", title="No access", context={"why": why}, status=status)
