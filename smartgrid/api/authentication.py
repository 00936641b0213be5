"""Two credentials on every /v1 path: a bearer token of a trusted issuer, and a management token."""

from __future__ import annotations

import hmac
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from sites_app.selectors import management_token_find
from sites_app.token_use import token_used
from smartgrid.api.jwks import (
    FILE_COOL_DOWN_S,
    KeyCache,
    KeysUnavailable,
    keys_fetch_file,
    keys_fetch_issuer,
    keys_fetch_signing_file,
    keys_fetch_url,
)
from smartgrid.api.principal import ApiClient, Principal
from smartgrid.errors import Unavailable

REALM = "smart-grid-manager"
LEEWAY_S = 60
# As many clients' tokens, some of them renewed just now.
VERIFIED_KEPT = 4096
BEARER_LENGTH_MAX = 8 * 1024
MANAGEMENT_TOKEN_LENGTH_MAX = 256
CLIENT_ID_LENGTH_MAX = 200
# Seconds since the epoch, some thirty thousand years of them.
NUMERIC_DATE_MAX = 10**12

# RFC 9068 names `at+jwt`; most issuers still write `JWT`, or nothing.
_TYPES = frozenset({None, "jwt", "at+jwt", "application/at+jwt"})
# What issuers use: UUIDs, hex, base64 in both alphabets. Nothing that reads as a URL or climbs a path; the id
# is only ever a key of a dict, so this guards the issuer against needless fetches.
_KID = re.compile(r"[A-Za-z0-9_+/=-]{1,128}|[A-Za-z0-9_.=-]{1,128}")
_COMPACT_JWS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_BEARER_ERROR = "sgm.bearer_error"
# In a request's META once it is let in: when its bearer token expires, for what goes on for longer than that.
BEARER_EXPIRES = "sgm.bearer_expires"


class BearerRefused(Exception):  # noqa: N818 - states the fault
    """A bearer token that opens nothing; `code` as the API reports it."""

    def __init__(self, detail: str, *, code: str = "bearer_invalid") -> None:
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True, slots=True)
class TrustedIssuer:
    """Whose tokens are believed, and for which audience."""

    issuer: str
    audience: str
    keys: KeyCache


class BearerAndManagementToken(BaseAuthentication):
    """Both credentials or 401; there is no anonymous caller, so it never returns None.

    The bearer token tells which program calls, the management token which sites it may see. Neither is ever
    logged or repeated in an answer. 503 `issuer_unavailable` where the token's key is not known and its
    issuer cannot be asked.
    """

    def authenticate(self, request: Request) -> tuple[ApiClient, Principal]:
        try:
            claims = bearer_verify(_bearer_of(request), issuers=trusted_issuers())
            client_id = _client_id(claims)
        except BearerRefused as refusal:
            if refusal.code != "bearer_missing":
                request.META[_BEARER_ERROR] = True
            raise AuthenticationFailed(str(refusal), code=refusal.code) from refusal
        except KeysUnavailable as error:
            raise Unavailable(
                "The keys of the token's issuer cannot be fetched.", code="issuer_unavailable"
            ) from error
        request.META[BEARER_EXPIRES] = claims["exp"]
        principal = _principal_of_token(request, client_id=client_id)
        return ApiClient(principal), principal

    def authenticate_header(self, request: Request) -> str:
        # RFC 6750, section 3.1: no error code where no bearer token was sent, or where it was good.
        if request.META.get(_BEARER_ERROR):
            return f'Bearer realm="{REALM}", error="invalid_token"'
        return f'Bearer realm="{REALM}"'


def bearer_verify(token: str, *, issuers: Mapping[str, TrustedIssuer]) -> Mapping[str, Any]:
    """The claims of a token which a trusted issuer signed for us and which is valid now; else BearerRefused.

    RS256 alone (RFC 8725, section 3.1): an algorithm is ours to choose and never the token's. Only the `kid`
    is taken from its header; `jku`, `x5u` and `jwk` in it are ignored.

    That a key made a signature is as true the second time, and is remembered. Whether its issuer still has
    that very key, and the token still time, is looked at each time.
    """
    known = _verified.get(token)
    if known is not None and known.is_good(issuers):
        return known.claims
    claims = _bearer_verify(token, issuers=issuers)
    if len(_verified) >= VERIFIED_KEPT:
        _verified.clear()
    _verified[token] = claims
    return claims.claims


@dataclass(frozen=True, slots=True)
class _Verified:
    """A token that held, and all that could make it hold no longer."""

    claims: Mapping[str, Any]
    issuer: TrustedIssuer
    kid: str
    key: RSAPublicKey

    def is_good(self, issuers: Mapping[str, TrustedIssuer]) -> bool:
        return (
            time.time() < self.claims["exp"] + LEEWAY_S
            and issuers.get(self.issuer.issuer) is self.issuer
            and self.issuer.keys.key_find(self.kid) is self.key
        )


_verified: dict[str, _Verified] = {}


def _bearer_verify(token: str, *, issuers: Mapping[str, TrustedIssuer]) -> _Verified:
    if len(token) > BEARER_LENGTH_MAX or not _COMPACT_JWS.fullmatch(token):
        raise BearerRefused("The bearer token is malformed.")
    try:
        # Nothing in here is believed yet: it only selects the issuer and the key to check it with.
        unverified = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise BearerRefused("The bearer token is malformed.") from error
    kid = _kid_of(unverified["header"])
    issuer = issuers.get(_issuer_of(unverified["payload"]))
    if issuer is None:
        raise BearerRefused("The bearer token's issuer is not trusted here.")
    if "cnf" in unverified["payload"]:
        # RFC 8705, section 3, and RFC 9449, section 7.1: good only with a proof that its holder has a key.
        # Taken without, a stolen one would be as good as any.
        raise BearerRefused("The bearer token is bound to a key and is no bearer token.")
    key = issuer.keys.key_find(kid)
    if key is None:
        raise BearerRefused("The bearer token's issuer has no such key.")
    try:
        claims: Mapping[str, Any] = jwt.decode(
            token,
            key,
            algorithms=["RS256"],
            audience=issuer.audience,
            issuer=issuer.issuer,
            leeway=LEEWAY_S,
            options={"require": ["iss", "aud", "exp"]},
        )
    except jwt.ExpiredSignatureError as error:
        raise BearerRefused("The bearer token has expired.", code="bearer_expired") from error
    except jwt.ImmatureSignatureError as error:
        raise BearerRefused("The bearer token is not valid yet.") from error
    except jwt.InvalidAudienceError as error:
        raise BearerRefused("The bearer token is for another audience.") from error
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
        raise BearerRefused("The bearer token does not verify.") from error
    return _Verified(claims, issuer, kid, key)


def _kid_of(header: Mapping[str, Any]) -> str:
    kid = header.get("kid")
    kind = header.get("typ")
    is_ours = (
        header.get("alg") == "RS256"
        # Extensions which must be understood: none is.
        and "crit" not in header
        and "b64" not in header
        and (kind is None or isinstance(kind, str))
        and (kind.lower() if kind else kind) in _TYPES
        and isinstance(kid, str)
        and _KID.fullmatch(kid) is not None
        and ".." not in kid
    )
    if not is_ours:
        raise BearerRefused("The bearer token is not an RS256 token with a key id.")
    return str(kid)


def _issuer_of(payload: Mapping[str, Any]) -> str:
    """The issuer a token names, once its times have the types the standard gives them.

    RFC 7519, section 2, NumericDate: PyJWT would take `true` for one second past the epoch, and a text for
    its number.
    """
    for claim in ("exp", "nbf", "iat"):
        value = payload.get(claim)
        if claim in payload and not _is_time(value):
            raise BearerRefused(f"The bearer token's {claim} is not a time.")
    issuer = payload.get("iss")
    if not isinstance(issuer, str):
        raise BearerRefused("The bearer token names no issuer.")
    return issuer


def _is_time(value: object) -> bool:
    # Compared, not converted: a whole number may be larger than any float.
    return not isinstance(value, bool) and isinstance(value, int | float) and abs(value) < NUMERIC_DATE_MAX


def _client_id(claims: Mapping[str, Any]) -> str:
    # `azp` at Auth0 and Keycloak, `client_id` by RFC 9068, `appid` at Entra (v1), else the subject.
    for claim in ("azp", "client_id", "appid", "sub"):
        value = claims.get(claim)
        if isinstance(value, str) and 0 < len(value) <= CLIENT_ID_LENGTH_MAX and value.isprintable():
            return value
    raise BearerRefused("The bearer token names no client.")


def _bearer_of(request: Request) -> str:
    header = str(request.META.get("HTTP_AUTHORIZATION", "")).strip()
    if not header:
        raise BearerRefused("The Authorization header is missing.", code="bearer_missing")
    scheme, _, token = header.partition(" ")
    # Servers join a repeated header with a comma, which no token holds: two are refused, not chosen from.
    if scheme.lower() != "bearer":
        raise BearerRefused("The Authorization header holds no bearer token.", code="bearer_missing")
    return token.strip(" ")


def _principal_of_token(request: Request, *, client_id: str) -> Principal:
    value = request.META.get("HTTP_X_MANAGEMENT_TOKEN", "").strip()
    if not value:
        raise AuthenticationFailed(
            "The X-Management-Token header is missing.", code="management_token_missing"
        )
    if len(value) <= MANAGEMENT_TOKEN_LENGTH_MAX:
        if _is_root_token(value):
            return Principal(client_id=client_id, token_id=None, is_root=True)
        if (token := management_token_find(value)) is not None:
            token_used(token.pk, at=time.time())
            return Principal(client_id=client_id, token_id=token.pk, is_root=False, opens_few=token.opens_few)
    raise AuthenticationFailed("The management token is not valid.", code="management_token_invalid")


def _is_root_token(value: str) -> bool:
    # All are compared, and by all their bytes: the time taken tells neither which matched nor how much of it.
    matches = [
        hmac.compare_digest(value.encode(), root.encode()) for root in settings.SGM_ROOT_TOKENS if root
    ]
    return any(matches)


def trusted_issuers() -> Mapping[str, TrustedIssuer]:
    """The issuers of the settings, each with its keys; ImproperlyConfigured names what is wrong with them."""
    return _issuers_built(
        json.dumps(settings.SGM_ISSUERS, default=str),
        str(settings.SGM_ISSUER_KEY_FILE or ""),
        settings.SGM_ISSUER_URL,
        settings.SGM_AUDIENCE,
    )


# Built anew only when a test changes the settings: the caches of keys live as long as the process.
@lru_cache(maxsize=8)
def _issuers_built(
    configured: str, key_file: str, own_url: str, own_audience: str
) -> Mapping[str, TrustedIssuer]:
    found: dict[str, TrustedIssuer] = {}
    entries = json.loads(configured)
    if not isinstance(entries, list):
        raise ImproperlyConfigured("SGM_ISSUERS: expected a list of issuers")
    for entry in entries:
        issuer = _issuer_build(entry)
        if issuer.issuer in found:
            raise ImproperlyConfigured(f"SGM_ISSUERS: {issuer.issuer} stands there twice")
        found[issuer.issuer] = issuer
    if key_file:
        if own_url in found:
            raise ImproperlyConfigured(
                f"SGM_ISSUERS: {own_url} is the embedded issuer's (SGM_ISSUER_KEY_FILE)"
            )
        keys = KeyCache(
            name=own_url,
            fetch=partial(keys_fetch_signing_file, Path(key_file)),
            cool_down_s=FILE_COOL_DOWN_S,
        )
        found[own_url] = TrustedIssuer(issuer=own_url, audience=own_audience, keys=keys)
    return found


def _issuer_build(entry: object) -> TrustedIssuer:
    expected = (
        'SGM_ISSUERS: expected {"issuer": .., "audience": .., and, unless the issuer can be asked, one of '
        f'"jwks_url" (http or https) or "jwks_file"}}, found {entry!r}'
    )
    if not isinstance(entry, dict) or not entry.keys() <= {"issuer", "audience", "jwks_url", "jwks_file"}:
        raise ImproperlyConfigured(expected)
    if not all(isinstance(value, str) for value in entry.values() if value is not None):
        raise ImproperlyConfigured(expected)
    issuer, audience, url, file = (
        entry.get(name) or "" for name in ("issuer", "audience", "jwks_url", "jwks_file")
    )
    if not issuer or not audience or (url and file):
        raise ImproperlyConfigured(expected)
    if file:
        keys = KeyCache(name=issuer, fetch=partial(keys_fetch_file, Path(file)), cool_down_s=FILE_COOL_DOWN_S)
        return TrustedIssuer(issuer=issuer, audience=audience, keys=keys)
    if not _is_reachable(url or issuer):
        raise ImproperlyConfigured(expected)
    fetch = partial(keys_fetch_url, url) if url else partial(keys_fetch_issuer, issuer)
    return TrustedIssuer(issuer=issuer, audience=audience, keys=KeyCache(name=issuer, fetch=fetch))


def _is_reachable(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    # RFC 8414, section 2: an issuer's own address has neither query nor fragment; keys may be behind a query.
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and not parts.fragment
