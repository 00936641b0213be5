"""The embedded token issuer: client credentials for those who run no identity provider of their own.

Clients and their hashed secrets are applications of django-oauth-toolkit, and oauthlib judges the grant; of
the toolkit's own views none is mounted. Tokens are signed and forgotten: no row is written for one.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import secrets
import time
import uuid
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus, urlencode

import jwt
import structlog
from django.conf import settings
from django.contrib.auth.hashers import PBKDF2PasswordHasher, check_password, make_password
from django.core.exceptions import ImproperlyConfigured, RequestDataTooBig
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.request import RawPostDataException
from django.urls import URLPattern, path
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST
from oauth2_provider.models import Application
from oauth2_provider.oauth2_validators import OAuth2Validator
from oauth2_provider.settings import oauth2_settings
from oauthlib.common import Request as OAuthRequest
from oauthlib.oauth2 import BackendApplicationServer
from oauthlib.oauth2.rfc6749.errors import CustomOAuth2Error, OAuth2Error

from smartgrid.api.jwks import SigningKey, signing_keys_read
from smartgrid.errors import NotFound
from smartgrid.issuer_keys import PUBLISHED_MAX_AGE_S
from smartgrid.rates import retry_after
from smartgrid.throttles import Bucket, admit

SECRET_LENGTH_MIN = 32
BODY_BYTES_MAX = 16 * 1024
GRANT_TYPE = "client_credentials"
HASHER = "pbkdf2_sha256_client_secret"
_BASIC = "client_secret_basic"
_PARAMETERS = frozenset({"grant_type", "client_id", "client_secret", "audience", "scope"})

log = structlog.stdlib.get_logger(__name__)

# At DEBUG it prints the tokens it issues.
logging.getLogger("oauthlib").setLevel(logging.INFO)


class ClientSecretHasher(PBKDF2PasswordHasher):
    """For secrets which are drawn at random, not chosen by people.

    Stretching protects what can be guessed. 32 random characters cannot, so Django's million rounds would buy
    nothing, and half a second of processor for anybody's POST would be a lever against the control path.
    """

    algorithm = HASHER
    iterations = 20_000


class TokenRequestRefused(Exception):  # noqa: N818 - states the fault
    """A request at the token endpoint which is not one; the text is for the client's developer."""


class ClientValidator(OAuth2Validator):  # type: ignore[misc] # the toolkit has no types
    """The toolkit's judgement of clients, in even time, with one audience, no scopes and no stored tokens."""

    def authenticate_client(self, request: OAuthRequest, *_: Any, **__: Any) -> bool:
        """Tell whether id and secret belong together; an unknown id takes as long as a wrong secret."""
        is_known = bool(self._authenticate_request_body(request))
        if not is_known and request.client is None:
            check_password(request.client_secret or "", _decoy())
        return is_known

    def validate_grant_type(
        self,
        client_id: str,
        grant_type: str,
        client: Application,
        request: OAuthRequest,
        *args: Any,
        **kwargs: Any,
    ) -> bool:
        if request.audience != settings.SGM_AUDIENCE:
            # Here, not earlier: only a client that proved itself learns which audiences there are.
            raise CustomOAuth2Error(
                error="access_denied", description="Service not enabled for this audience.", status_code=403
            )
        return bool(super().validate_grant_type(client_id, grant_type, client, request, *args, **kwargs))

    def get_default_scopes(self, *_: Any, **__: Any) -> list[str]:
        return []

    def validate_scopes(self, _client_id: str, scopes: list[str], *_: Any, **__: Any) -> bool:
        # There are none: what a caller may see hangs on its management token.
        return not scopes

    def save_bearer_token(self, *_: Any, **__: Any) -> None:
        """Keep nothing: the signature is the proof, and a table of tokens only something to steal."""


@lru_cache(maxsize=1)
def _decoy() -> str:
    return make_password(secrets.token_urlsafe(), hasher=HASHER)


# --- keys and clients ---------------------------------------------------------------------------------------


def issuer_client_create(
    *, name: str, client_id: str | None = None, client_secret: str | None = None, by: str = ""
) -> tuple[str, str]:
    """Enter a client and return (client_id, client_secret); the secret is stored hashed and shown only here.

    What is not given is drawn at random. An existing `client_id` gets the given name and secret instead. A
    given secret shorter than 32 characters is refused (ValueError): its hash is not made for words.
    """
    client_id = client_id or secrets.token_urlsafe(24)
    client_secret = client_secret or secrets.token_urlsafe(48)
    if len(client_secret) < SECRET_LENGTH_MIN:
        raise ValueError(f"a client secret needs at least {SECRET_LENGTH_MIN} characters")
    _, is_new = Application.objects.update_or_create(
        client_id=client_id,
        defaults={
            "name": name,
            "client_secret": make_password(client_secret, hasher=HASHER),
            "hash_client_secret": True,
            "client_type": Application.CLIENT_CONFIDENTIAL,
            "authorization_grant_type": Application.GRANT_CLIENT_CREDENTIALS,
        },
    )
    log.info("issuer_client_created" if is_new else "issuer_client_replaced", id=client_id, name=name, by=by)
    return client_id, client_secret


def issuer_client_rename(*, client_id: str, name: str, by: str) -> None:
    """Give a client another name; its id, its secret and its tokens stay. `NotFound` where it is gone."""
    _client_change(client_id, name=name)
    log.info("issuer_client_renamed", id=client_id, name=name, by=by)


def issuer_client_secret_renew(*, client_id: str, by: str) -> str:
    """Put a new secret in the place of a client's present one, and return it: it is stored hashed.

    Tokens that were fetched with the former one are good until they expire. `NotFound` where the client is
    gone.
    """
    client_secret = secrets.token_urlsafe(48)
    _client_change(
        client_id, client_secret=make_password(client_secret, hasher=HASHER), hash_client_secret=True
    )
    log.info("issuer_client_renewed", id=client_id, by=by)
    return client_secret


def issuer_client_delete(*, client_id: str, by: str) -> None:
    """End a client: it gets no more tokens. Those it has are good until they expire."""
    _, ended = Application.objects.filter(client_id=client_id).delete()
    if not ended:
        raise NotFound("No such client.")
    log.info("issuer_client_deleted", id=client_id, by=by)


def _client_change(client_id: str, **changes: Any) -> None:
    changed = Application.objects.filter(client_id=client_id).update(**changes, updated=timezone.now())
    if not changed:
        raise NotFound("No such client.")


def _signing_keys() -> tuple[SigningKey, ...]:
    """The keys of SGM_ISSUER_KEY_FILE, the first of which signs; ImproperlyConfigured if it holds none."""
    path = Path(settings.SGM_ISSUER_KEY_FILE)
    try:
        status = path.stat()
        # Read again when the file is replaced: rotating a key needs no restart.
        return _signing_keys_of(path, status.st_mtime_ns, status.st_ino)
    except (OSError, ValueError) as error:
        raise ImproperlyConfigured(f"SGM_ISSUER_KEY_FILE: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=2)
def _signing_keys_of(path: Path, *_version: int) -> tuple[SigningKey, ...]:
    return tuple(signing_keys_read(path))


def _access_token_sign(request: OAuthRequest) -> str:
    key = _signing_keys()[0]
    client_id: str = request.client.client_id
    issued_at = int(timezone.now().timestamp())
    claims = {
        "iss": settings.SGM_ISSUER_URL,
        "sub": f"{client_id}@clients",
        "aud": settings.SGM_AUDIENCE,
        "iat": issued_at,
        "exp": issued_at + request.expires_in,
        "jti": uuid.uuid4().hex,
        "azp": client_id,
        "gty": "client-credentials",
    }
    return jwt.encode(claims, key.private, algorithm="RS256", headers={"kid": key.kid})


# --- the endpoints ------------------------------------------------------------------------------------------


@csrf_exempt
@require_POST
def token(request: HttpRequest) -> HttpResponse:
    """`POST /oauth/token`: the guide's JSON body, a form, or either with HTTP Basic."""
    try:
        sent, method = _token_request_read(request)
    except TokenRequestRefused as error:
        return _answer({"error": "invalid_request", "error_description": str(error)}, status=400)
    # oauthlib makes attributes of its request of whatever it is given: only what has a meaning here goes in.
    parameters = {name: value for name, value in sent.items() if name in _PARAMETERS}
    # There is one API to ask for, so who asks for none means that one.
    parameters.setdefault("audience", settings.SGM_AUDIENCE)
    # Before the secret is hashed, which is the dear part of it.
    if (wait_s := _wait_of(parameters.get("client_id", ""))) > 0:
        # RFC 6585, section 4; the code is of RFC 6749's, whose section 5.2 has none for this.
        said = "Too many requests for tokens by this client; a token is good for a day."
        response = _answer({"error": "temporarily_unavailable", "error_description": said}, status=429)
        response["Retry-After"] = retry_after(wait_s)
        return response
    server = BackendApplicationServer(
        ClientValidator(),
        token_generator=_access_token_sign,
        token_expires_in=oauth2_settings.ACCESS_TOKEN_EXPIRE_SECONDS,
    )
    try:
        _, body, status = server.create_token_response(
            request.path, "POST", urlencode(parameters), {"Content-Type": "application/x-www-form-urlencoded"}
        )
    except OAuth2Error as error:
        body, status = error.json, error.status_code
    content: dict[str, Any] = json.loads(body)
    # What the guide prints and no more; there are no scopes to tell of.
    content.pop("scope", None)
    response = _answer(content, status=status)
    if status == 401:  # noqa: PLR2004
        # RFC 6749, section 5.2: in the scheme which the client used.
        response["WWW-Authenticate"] = 'Basic realm="token"' if method == _BASIC else 'Bearer realm="token"'
    return response


def _wait_of(client_id: str) -> float:
    """Seconds until this client may ask for another token, 0 where it may now.

    All clients that are not known are one: else whoever makes up ids would have a bucket for each.
    """
    rate = settings.SGM_THROTTLE_ISSUER
    if rate is None:
        return 0.0
    is_known = Application.objects.filter(client_id=client_id).exists()
    return admit(
        [Bucket(f"issuer:client:{client_id}" if is_known else "issuer:unknown", rate)], now=time.monotonic()
    )


def _answer(content: Mapping[str, Any], *, status: int) -> JsonResponse:
    return JsonResponse(content, status=status, headers={"Cache-Control": "no-store", "Pragma": "no-cache"})


def _token_request_read(request: HttpRequest) -> tuple[dict[str, str], str]:
    """The parameters with the client's credentials among them, and how those came."""
    if request.META.get("QUERY_STRING"):
        # They would stand in the access logs of every proxy on the way.
        raise TokenRequestRefused("Parameters belong in the body.")
    if request.content_type == "application/json":
        parameters = _json_parameters(request)
    elif request.content_type == "application/x-www-form-urlencoded":
        parameters = _form_parameters(request)
    else:
        raise TokenRequestRefused("The body is neither application/json nor a form.")
    basic = _basic_credentials(request)
    if basic is None:
        return parameters, "client_secret_post"
    if "client_secret" in parameters or parameters.get("client_id", basic[0]) != basic[0]:
        raise TokenRequestRefused("Credentials in the header and in the body.")
    return {**parameters, "client_id": basic[0], "client_secret": basic[1]}, _BASIC


def _json_parameters(request: HttpRequest) -> dict[str, str]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise TokenRequestRefused("A parameter stands in the body twice.")
        return found

    try:
        content = json.loads(_body(request), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise TokenRequestRefused("The body is not JSON.") from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise TokenRequestRefused("The body is not an object of texts.")
    _refuse_unstorable(content)
    return content


def _form_parameters(request: HttpRequest) -> dict[str, str]:
    _body(request)
    parameters = {}
    for name, values in request.POST.lists():
        if len(values) != 1:
            raise TokenRequestRefused("A parameter stands in the body twice.")
        parameters[str(name)] = str(values[0])
    _refuse_unstorable(parameters)
    return parameters


def _body(request: HttpRequest) -> bytes:
    try:
        body = request.body
    except (RequestDataTooBig, RawPostDataException, OSError) as error:
        raise TokenRequestRefused("The body cannot be read.") from error
    if len(body) > BODY_BYTES_MAX:
        raise TokenRequestRefused("The body is too large.")
    return body


def _basic_credentials(request: HttpRequest) -> tuple[str, str] | None:
    """Id and secret of HTTP Basic, each form-encoded (RFC 6749, section 2.3.1); None without the header."""
    header = request.META.get("HTTP_AUTHORIZATION", "")
    if not header:
        return None
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        raise TokenRequestRefused("The Authorization header is not HTTP Basic.")
    try:
        client_id, colon, client_secret = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, ValueError) as error:
        raise TokenRequestRefused("The Authorization header is not HTTP Basic.") from error
    if not colon:
        raise TokenRequestRefused("The Authorization header is not HTTP Basic.")
    credentials = {"client_id": unquote_plus(client_id), "client_secret": unquote_plus(client_secret)}
    _refuse_unstorable(credentials)
    return credentials["client_id"], credentials["client_secret"]


def _refuse_unstorable(parameters: Mapping[str, str]) -> None:
    # NUL cannot stand in a database's text, nor a lone surrogate in UTF-8: both would be errors of ours.
    for name, value in parameters.items():
        if "\0" in name + value or not (name + value).isascii():
            raise TokenRequestRefused("Parameters are of printable ASCII.")


@require_GET
def jwks(_: HttpRequest) -> HttpResponse:
    """The public keys, as other services want them; the API itself reads the key file."""
    keys = [key.public_jwk() for key in _signing_keys()]
    return JsonResponse({"keys": keys}, headers={"Cache-Control": f"public, max-age={PUBLISHED_MAX_AGE_S}"})


@require_GET
def metadata(request: HttpRequest) -> HttpResponse:
    """RFC 8414 and OpenID discovery, as far as an issuer of machine tokens has something to say."""
    return JsonResponse(
        {
            "issuer": settings.SGM_ISSUER_URL,
            "token_endpoint": request.build_absolute_uri("/oauth/token"),
            "jwks_uri": request.build_absolute_uri("/.well-known/jwks.json"),
            "grant_types_supported": [GRANT_TYPE],
            "response_types_supported": [],
            "token_endpoint_auth_methods_supported": ["client_secret_post", _BASIC],
            "token_endpoint_auth_signing_alg_values_supported": [],
        },
        headers={"Cache-Control": "public, max-age=300"},
    )


def issuer_urlpatterns() -> list[URLPattern]:
    """The issuer's paths; none where SGM_ISSUER_KEY_FILE is empty, which is how it is switched off."""
    if not settings.SGM_ISSUER_KEY_FILE:
        return []
    return [
        path("oauth/token", token, name="issuer-token"),
        path(".well-known/jwks.json", jwks, name="issuer-jwks"),
        path("oauth/.well-known/jwks.json", jwks),
        path(".well-known/openid-configuration", metadata, name="issuer-metadata"),
        path(".well-known/oauth-authorization-server", metadata),
    ]
