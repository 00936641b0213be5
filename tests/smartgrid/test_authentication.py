"""What opens /v1, and the keys it is opened with; what must not open it stands in test_attacks."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from pytest_django import DjangoAssertNumQueries, Settings
from rest_framework.exceptions import NotAuthenticated, PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory
from rest_framework.views import APIView

from sites_app.selectors import token_value
from sites_app.services import site_create, token_issue, token_revoke
from smartgrid.api.authentication import (
    LEEWAY_S,
    BearerAndManagementToken,
    BearerRefused,
    TrustedIssuer,
    bearer_verify,
    trusted_issuers,
)
from smartgrid.api.jwks import (
    COLD_COOL_DOWN_S,
    COOL_DOWN_S,
    FRESH_S,
    KEEP_S,
    SIZE_LIMIT_BYTES,
    FetchFailed,
    KeyCache,
    Keys,
    KeysUnavailable,
    jwks_uri,
    keys_fetch_issuer,
    keys_fetch_url,
    keys_parse,
)
from smartgrid.api.permissions import IsRoot
from smartgrid.api.principal import Principal, principal_of
from tests.smartgrid.token_issuer import (
    ABSENT,
    AUDIENCE,
    TokenIssuer,
    jwks_document,
    signing_key,
    token_issuer_running,
)

ROOT = "root-token-one-0123456789abcdef"
OTHER_ROOT = "root-token-two-0123456789abcdef"


@pytest.fixture
def issuer(settings: Settings) -> Iterator[TokenIssuer]:
    with token_issuer_running() as running:
        settings.SGM_ISSUERS = [{"issuer": running.name, "audience": AUDIENCE, "jwks_url": running.url}]
        settings.SGM_ROOT_TOKENS = [ROOT, OTHER_ROOT]
        yield running


def ping(client: Client, *, bearer: str | None, token: str | None = ROOT) -> Any:
    headers = {}
    if bearer is not None:
        headers["Authorization"] = f"Bearer {bearer}"
    if token is not None:
        headers["X-Management-Token"] = token
    return client.get("/v1/ping", headers=headers)


def principal_behind(bearer: str, token: str) -> Principal:
    request = APIRequestFactory().get(
        "/v1/ping", HTTP_AUTHORIZATION=f"Bearer {bearer}", HTTP_X_MANAGEMENT_TOKEN=token
    )
    return principal_of(Request(request, authenticators=[BearerAndManagementToken()]))


# --- both credentials -----------------------------------------------------------------------------------------


def test_both_credentials_open_the_api(client: Client, issuer: TokenIssuer) -> None:
    assert ping(client, bearer=issuer.token()).status_code == 200


@pytest.mark.parametrize(
    ("has_bearer", "token", "code"),
    [
        (False, ROOT, "bearer_missing"),
        (False, None, "bearer_missing"),
        (True, None, "management_token_missing"),
        (True, "", "management_token_missing"),
        (True, "   ", "management_token_missing"),
    ],
)
def test_either_missing_is_401_and_says_which(
    client: Client, issuer: TokenIssuer, has_bearer: bool, token: str | None, code: str
) -> None:
    response = ping(client, bearer=issuer.token() if has_bearer else None, token=token)

    assert response.status_code == 401
    assert response.json()["code"] == code
    assert response["WWW-Authenticate"] == 'Bearer realm="smart-grid-manager"'


def test_scheme_is_read_in_any_case(client: Client, issuer: TokenIssuer) -> None:
    headers = {"Authorization": f"bearer {issuer.token()}", "X-Management-Token": ROOT}

    assert client.get("/v1/ping", headers=headers).status_code == 200


# --- bearer tokens: what a good one may look like -------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda issuer: issuer.token(headers={"typ": None}), id="no typ"),
        pytest.param(lambda issuer: issuer.token(headers={"typ": "at+jwt"}), id="typ of RFC 9068"),
        pytest.param(lambda issuer: issuer.token(headers={"typ": "jwt"}), id="typ in lower case"),
        pytest.param(lambda issuer: issuer.token(aud=["other", AUDIENCE]), id="one of several audiences"),
        pytest.param(lambda issuer: issuer.token(exp=int(time.time()) - 30), id="expired within the leeway"),
        pytest.param(lambda issuer: issuer.token(nbf=int(time.time()) + 30), id="early within the leeway"),
        pytest.param(lambda issuer: issuer.token(exp=time.time() + 90.5), id="fractions of a second"),
        pytest.param(lambda issuer: issuer.token(iat=None), id="no iat"),
    ],
)
def test_good_tokens_of_other_issuers_styles_are_taken(
    client: Client, issuer: TokenIssuer, build: Callable[[TokenIssuer], str]
) -> None:
    assert ping(client, bearer=build(issuer)).status_code == 200


@pytest.mark.parametrize(
    ("claims", "client_id"),
    [
        ({"azp": "robot"}, "robot"),
        ({"azp": None, "client_id": "by-rfc-9068"}, "by-rfc-9068"),
        ({"azp": None, "appid": "by-entra"}, "by-entra"),
        ({"azp": None}, "robot@clients"),
        ({"azp": ["robot"]}, "robot@clients"),
        ({"azp": "with\nline"}, "robot@clients"),
    ],
)
def test_client_is_named_by_its_issuer(issuer: TokenIssuer, claims: dict[str, Any], client_id: str) -> None:
    principal = principal_behind(issuer.token(**claims), ROOT)

    assert principal == Principal(client_id=client_id, token_id=None, is_root=True)


# --- keys -----------------------------------------------------------------------------------------------------


def test_dead_issuer_does_not_stop_who_was_let_in(client: Client, issuer: TokenIssuer) -> None:
    assert ping(client, bearer=issuer.token()).status_code == 200
    issuer.status = 503

    assert ping(client, bearer=issuer.token()).status_code == 200


def test_issuer_never_reached_is_our_fault_and_not_the_tokens(client: Client, issuer: TokenIssuer) -> None:
    issuer.status = 503

    response = ping(client, bearer=issuer.token())

    assert (response.status_code, response.json()["code"]) == (503, "issuer_unavailable")


def test_keys_of_a_file_need_no_issuer(
    client: Client, issuer: TokenIssuer, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "jwks.json").write_bytes(issuer.document)
    settings.SGM_ISSUERS = [
        {"issuer": issuer.name, "audience": AUDIENCE, "jwks_file": str(tmp_path / "jwks.json")}
    ]

    assert ping(client, bearer=issuer.token()).status_code == 200
    assert issuer.fetches == 0


def test_token_that_was_taken_before_is_refused_once_it_has_expired(
    client: Client, issuer: TokenIssuer
) -> None:
    bearer = issuer.token()
    assert ping(client, bearer=bearer).status_code == 200
    with time_machine.travel(time.time() + 3600 + LEEWAY_S + 1):
        response = ping(client, bearer=bearer)
    assert (response.status_code, response.json()["code"]) == (401, "bearer_expired")


# --- where the keys are, by the issuer's own word -------------------------------------------------------------

OPENID = "/.well-known/openid-configuration"
RFC_8414 = "/.well-known/oauth-authorization-server"


def metadata(issuer: TokenIssuer, /, **changes: Any) -> bytes:
    content = {
        "issuer": issuer.name,
        "jwks_uri": issuer.url,
        "token_endpoint": "http://127.0.0.1:1/",
        **changes,
    }
    return json.dumps({name: value for name, value in content.items() if value is not None}).encode()


def test_issuer_and_audience_are_enough(client: Client, issuer: TokenIssuer, settings: Settings) -> None:
    issuer.others[OPENID] = metadata(issuer)
    settings.SGM_ISSUERS = [{"issuer": issuer.name, "audience": AUDIENCE}]

    assert ping(client, bearer=issuer.token()).status_code == 200
    assert issuer.asked == [OPENID, "/jwks.json"]


def test_oauth_issuer_without_openid_is_asked_as_rfc_8414_has_it(issuer: TokenIssuer) -> None:
    name = f"{issuer.name}realms/plant"
    issuer.others = {
        f"/realms/plant{OPENID}": ABSENT,
        f"{RFC_8414}/realms/plant": metadata(issuer, issuer=name),
    }

    assert set(keys_fetch_issuer(name)) == {"first"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"issuer": "http://127.0.0.1/"}, "calls itself"),
        ({"issuer": None}, "calls itself"),
        ({"issuer": ["http://127.0.0.1/"]}, "calls itself"),
        ({"jwks_uri": None}, "names no jwks_uri"),
        ({"jwks_uri": "file:///etc/passwd"}, "names no jwks_uri"),
        ({"jwks_uri": "http://[/"}, "names no jwks_uri"),
        ({"jwks_uri": {"url": "http://127.0.0.1/"}}, "names no jwks_uri"),
        ({"jwks_uri": "http://127.0.0.1:1/jwks.json"}, "URLError"),
    ],
)
def test_issuer_that_does_not_vouch_for_its_keys_has_none(
    issuer: TokenIssuer, changes: dict[str, Any], reason: str
) -> None:
    issuer.others[OPENID] = metadata(issuer, **changes)

    with pytest.raises(FetchFailed, match=reason):
        keys_fetch_issuer(issuer.name)


def test_issuers_name_is_compared_down_to_its_slash(issuer: TokenIssuer) -> None:
    issuer.others[OPENID] = metadata(issuer)

    assert set(keys_fetch_issuer(issuer.name)) == {"first"}
    with pytest.raises(FetchFailed, match="calls itself"):
        keys_fetch_issuer(issuer.name.removesuffix("/"))


@pytest.mark.parametrize(
    "document", [b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b" " * (SIZE_LIMIT_BYTES + 1)]
)
def test_what_an_issuer_says_of_itself_may_be_anything(issuer: TokenIssuer, document: bytes) -> None:
    issuer.others = {OPENID: document, RFC_8414: document}

    with pytest.raises(FetchFailed):
        keys_fetch_issuer(issuer.name)


def test_keys_without_tls_are_not_taken_from_an_issuer_with_it(issuer: TokenIssuer) -> None:
    secure = "https://issuer.example/"

    with pytest.raises(FetchFailed, match="TLS"):
        jwks_uri(metadata(issuer, issuer=secure), issuer=secure)
    assert jwks_uri(metadata(issuer, issuer=secure, jwks_uri=secure), issuer=secure) == secure


def test_moved_keys_are_found_at_the_next_refresh(issuer: TokenIssuer) -> None:
    issuer.others[OPENID] = metadata(issuer)
    assert set(keys_fetch_issuer(issuer.name)) == {"first"}

    issuer.others["/elsewhere"] = jwks_document(signing_key("moved"))
    issuer.others[OPENID] = metadata(issuer, jwks_uri=f"{issuer.name}elsewhere")

    assert set(keys_fetch_issuer(issuer.name)) == {"moved"}


def test_redirected_discovery_is_not_followed(issuer: TokenIssuer) -> None:
    issuer.status = 302

    with pytest.raises(FetchFailed, match="302"):
        keys_fetch_issuer(issuer.name)
    assert issuer.asked == [OPENID, RFC_8414]


@pytest.mark.parametrize(
    "entry",
    [
        "https://issuer.example/",
        {"issuer": "issuer.example", "audience": "a"},
        {"issuer": "https://", "audience": "a"},
        {"issuer": "https://[issuer/", "audience": "a"},
        {"issuer": "ftp://issuer.example/", "audience": "a"},
        {"issuer": "https://issuer.example/", "audience": "a", "jwks_url": "file:///etc/passwd"},
        {"issuer": "https://issuer.example/", "audience": "a", "jwks_url": "https://x/", "jwks_file": "/y"},
        {"issuer": "https://issuer.example/", "audience": "", "jwks_url": "https://x/"},
        {"issuer": "https://issuer.example/", "audience": ["a"], "jwks_url": "https://x/"},
        {"issuer": "https://issuer.example/", "audience": "a", "jwks_uri": "https://x/"},
    ],
)
def test_issuer_ill_described_is_refused_by_name(settings: Settings, entry: object) -> None:
    settings.SGM_ISSUERS = [entry]

    with pytest.raises(ImproperlyConfigured, match="SGM_ISSUERS"):
        trusted_issuers()


class Clockwork:
    """A cache of keys on a clock of the test's, over a source which the test switches off and on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.fetches = 0
        self.is_dead = False
        self.kids = ["first"]
        self.cache = KeyCache(name="issuer", fetch=self.fetch, clock=lambda: self.now)

    def fetch(self) -> Keys:
        self.fetches += 1
        if self.is_dead:
            raise FetchFailed("dead")
        return {kid: signing_key("first").private.public_key() for kid in self.kids}

    def has(self, kid: str) -> bool:
        found = self.cache.key_find(kid) is not None
        for thread in threading.enumerate():
            if thread.name == "jwks issuer":
                thread.join(5)
        return found


def test_last_good_keys_serve_a_day_and_no_longer() -> None:
    clockwork = Clockwork()
    assert clockwork.has("first")
    clockwork.is_dead = True

    clockwork.now += KEEP_S
    assert clockwork.has("first")
    clockwork.now += 1
    with pytest.raises(KeysUnavailable):
        clockwork.has("first")


def test_keys_are_refreshed_and_a_withdrawn_one_goes() -> None:
    clockwork = Clockwork()
    assert clockwork.has("first")
    clockwork.kids = ["second"]

    clockwork.now += FRESH_S + 1

    assert clockwork.has("first")  # answered from the cache, while the refresh ran beside it
    assert not clockwork.has("first")
    assert clockwork.has("second")
    assert clockwork.fetches == 2


def test_token_that_was_taken_before_is_refused_once_its_key_is_withdrawn(issuer: TokenIssuer) -> None:
    clockwork = Clockwork()
    issuers = {
        issuer.name: TrustedIssuer(issuer=issuer.name, audience=AUDIENCE, keys=clockwork.cache),
    }
    bearer = issuer.token()
    assert bearer_verify(bearer, issuers=issuers) == bearer_verify(bearer, issuers=issuers)
    clockwork.kids = ["second"]
    clockwork.now += FRESH_S + 1
    assert clockwork.has("first")  # the refresh ran beside it
    with pytest.raises(BearerRefused, match="no such key"):
        bearer_verify(bearer, issuers=issuers)


def test_rotated_key_is_found_once_the_cool_down_is_over() -> None:
    clockwork = Clockwork()
    assert clockwork.has("first")
    clockwork.kids = ["first", "second"]

    assert not clockwork.has("second")
    clockwork.now += COOL_DOWN_S
    assert clockwork.has("second")


def test_dead_issuer_is_asked_no_oftener_than_the_cool_down() -> None:
    clockwork = Clockwork()
    assert clockwork.has("first")
    clockwork.is_dead = True
    clockwork.now += FRESH_S + 1

    for _ in range(20):
        assert clockwork.has("first")
        with pytest.raises(KeysUnavailable):
            clockwork.has("unknown")

    assert clockwork.fetches == 2


def test_cold_start_tries_again_soon() -> None:
    clockwork = Clockwork()
    clockwork.is_dead = True
    for _ in range(5):
        with pytest.raises(KeysUnavailable):
            clockwork.has("first")
    assert clockwork.fetches == 1
    clockwork.is_dead = False

    clockwork.now += COLD_COOL_DOWN_S

    assert clockwork.has("first")


def test_hanging_issuer_holds_up_nobody_with_a_known_key(issuer: TokenIssuer) -> None:
    now = 1000.0
    cache = KeyCache(name="hanging", fetch=lambda: keys_fetch_url(issuer.url), clock=lambda: now)
    assert cache.key_find("first") is not None
    issuer.gate = threading.Event()
    issuer.reached.clear()
    now += FRESH_S + 1

    started = time.monotonic()
    assert cache.key_find("first") is not None
    assert issuer.reached.wait(5)  # the refresh is under way, and hangs
    assert cache.key_find("first") is not None
    assert cache.key_find("unknown") is None
    assert time.monotonic() - started < 4


def test_requests_of_a_cold_start_share_one_fetch(issuer: TokenIssuer) -> None:
    cache = KeyCache(name="cold", fetch=lambda: keys_fetch_url(issuer.url))
    issuer.gate = threading.Event()
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(cache.key_find("first") is not None)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    assert issuer.reached.wait(5)
    issuer.gate.set()
    for thread in threads:
        thread.join(10)

    assert found == [True] * 8
    assert issuer.fetches == 1


def test_redirected_keys_are_not_followed(issuer: TokenIssuer) -> None:
    issuer.status = 302

    with pytest.raises(FetchFailed, match="302"):
        keys_fetch_url(issuer.url)
    assert issuer.fetches == 1


def test_oversized_key_document_is_refused(issuer: TokenIssuer) -> None:
    issuer.document = b" " * SIZE_LIMIT_BYTES + issuer.document

    with pytest.raises(FetchFailed, match="larger"):
        keys_fetch_url(issuer.url)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "http://127.0.0.1:1/"])
def test_unreachable_or_foreign_urls_are_failures(url: str) -> None:
    with pytest.raises(FetchFailed):
        keys_fetch_url(url)


def _entry(**changes: Any) -> dict[str, Any]:
    entry = {**signing_key("first").public_jwk(), **changes}
    return {name: value for name, value in entry.items() if value is not None}


@pytest.mark.parametrize(
    "entry",
    [
        {"kty": "oct", "kid": "first", "k": "c2VjcmV0"},
        _entry(use="enc"),
        _entry(alg="RS512"),
        _entry(kid=None),
        _entry(kid=["first"]),
        _entry(n="AQAB"),
        _entry(n=None),
        _entry(n=5),
        _entry(e="not base64!"),
        signing_key("short", bits=1024).public_jwk(),
        "text",
        None,
    ],
)
def test_unfit_keys_are_passed_over(entry: object) -> None:
    document = json.dumps({"keys": [entry, _entry(kid="good")]}).encode()

    assert set(keys_parse(document)) == {"good"}


def test_key_without_use_and_algorithm_is_taken() -> None:
    assert set(keys_parse(json.dumps({"keys": [_entry(use=None, alg=None)]}).encode())) == {"first"}


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b"\xff", b"[" * 100_000]
)
def test_document_without_keys_is_a_failure_and_not_an_empty_set(document: bytes) -> None:
    with pytest.raises(FetchFailed):
        keys_parse(document)


# --- management tokens ----------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_site_token_lets_in_as_itself_until_it_is_deleted(client: Client, issuer: TokenIssuer) -> None:
    site = site_create(site_tag="here", name="Here")
    token = token_issue(name="integrator", sites=[site])
    value = token_value(token)
    assert principal_behind(issuer.token(), value) == Principal(
        client_id="robot", token_id=token.pk, is_root=False
    )
    assert ping(client, bearer=issuer.token(), token=value).status_code == 200

    token_revoke(token=token)

    assert ping(client, bearer=issuer.token(), token=value).json()["code"] == "management_token_invalid"


@pytest.mark.django_db
def test_bad_bearer_never_reaches_the_table_of_tokens(
    client: Client, issuer: TokenIssuer, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_num_queries(0):
        ping(client, bearer=issuer.token(aud="another-api"), token="tok_" + "0" * 32)


# --- permissions ----------------------------------------------------------------------------------------------


class RootOnly(APIView):
    permission_classes = (IsRoot,)

    def get(self, _request: Request) -> Response:
        return Response({})


@pytest.mark.django_db
def test_root_function_is_403_for_a_site_token(issuer: TokenIssuer) -> None:
    value = token_value(token_issue(name="integrator", sites=[site_create(site_tag="here", name="Here")]))

    def answer(token: str) -> Response:
        request = APIRequestFactory().get(
            "/", HTTP_AUTHORIZATION=f"Bearer {issuer.token()}", HTTP_X_MANAGEMENT_TOKEN=token
        )
        response = RootOnly.as_view()(request)
        assert isinstance(response, Response)
        return response

    assert answer(ROOT).status_code == 200
    refusal = answer(value)
    assert refusal.status_code == PermissionDenied.status_code == 403
    assert refusal.data["code"] == "root_token_required"


def test_nobody_let_in_has_no_principal() -> None:
    with pytest.raises(NotAuthenticated):
        principal_of(Request(APIRequestFactory().get("/"), authenticators=[]))
