"""What opens /v1, and everything that must not."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
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
from smartgrid.api.authentication import BEARER_LENGTH_MAX, BearerAndManagementToken, trusted_issuers
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
    keys_fetch_url,
    keys_parse,
)
from smartgrid.api.permissions import IsRoot
from smartgrid.api.principal import Principal, principal_of
from tests.smartgrid.token_issuer import (
    AUDIENCE,
    TokenIssuer,
    base64url,
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


def test_refused_bearer_is_named_in_the_challenge(client: Client, issuer: TokenIssuer) -> None:
    response = ping(client, bearer=issuer.token(aud="another-api"))

    assert response.status_code == 401
    assert response["WWW-Authenticate"] == 'Bearer realm="smart-grid-manager", error="invalid_token"'


@pytest.mark.parametrize("header", ["Basic cm9ib3Q6c2VjcmV0", "Token abc", "Bearer", "Bearer "])
def test_other_schemes_are_no_bearer_token(client: Client, issuer: TokenIssuer, header: str) -> None:
    response = client.get("/v1/ping", headers={"Authorization": header, "X-Management-Token": ROOT})

    assert response.status_code == 401
    assert response.json()["code"] in {"bearer_missing", "bearer_invalid"}


def test_token_in_the_query_opens_nothing(client: Client, issuer: TokenIssuer) -> None:
    response = client.get("/v1/ping", {"access_token": issuer.token()}, headers={"X-Management-Token": ROOT})

    assert response.json()["code"] == "bearer_missing"


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


# --- bearer tokens: the attacks -------------------------------------------------------------------------------


def unsigned(issuer: TokenIssuer) -> str:
    header = base64url(json.dumps({"typ": "JWT", "alg": "none", "kid": issuer.key.kid}).encode())
    return f"{header}.{base64url(json.dumps(issuer.claims()).encode())}."


def unsigned_with_some_signature(issuer: TokenIssuer) -> str:
    return unsigned(issuer) + "AAAA"


def public_key_as_shared_secret(issuer: TokenIssuer) -> str:
    header = base64url(json.dumps({"typ": "JWT", "alg": "HS256", "kid": issuer.key.kid}).encode())
    signed = f"{header}.{base64url(json.dumps(issuer.claims()).encode())}"
    return f"{signed}.{base64url(hmac.digest(issuer.public_pem(), signed.encode(), hashlib.sha256))}"


def payload_exchanged(issuer: TokenIssuer) -> str:
    header, _, signature = issuer.token().split(".")
    return f"{header}.{base64url(json.dumps(issuer.claims(azp='somebody else')).encode())}.{signature}"


def nested_header(issuer: TokenIssuer) -> str:
    _, payload, signature = issuer.token().split(".")
    return f"{base64url(b'[' * 4000)}.{payload}.{signature}"


def oversized(issuer: TokenIssuer) -> str:
    return issuer.token(padding="x" * BEARER_LENGTH_MAX)


ATTACKS: dict[str, Callable[[TokenIssuer], str]] = {
    "alg none": unsigned,
    "alg none with a signature": unsigned_with_some_signature,
    "HS256 with the public key": public_key_as_shared_secret,
    "PS256 in the header": lambda issuer: issuer.token(headers={"alg": "PS256"}),
    "RS512 in the header": lambda issuer: issuer.token(headers={"alg": "RS512"}),
    "alg as array": lambda issuer: issuer.token(headers={"alg": ["RS256"]}),
    "payload exchanged": payload_exchanged,
    "signed with another key under a known id": lambda issuer: issuer.token(
        key=signing_key("stranger"), headers={"kid": "first"}
    ),
    "own key in the header": lambda issuer: issuer.token(
        key=signing_key("stranger"), headers={"kid": "first", "jwk": signing_key("stranger").public_jwk()}
    ),
    "key URL in the header": lambda issuer: issuer.token(
        key=signing_key("stranger"), headers={"jku": "http://127.0.0.1:1/jwks.json"}
    ),
    "no kid": lambda issuer: issuer.token(headers={"kid": None}),
    "kid as number": lambda issuer: issuer.token(headers={"kid": 1}),
    "kid as array": lambda issuer: issuer.token(headers={"kid": ["first"]}),
    "kid empty": lambda issuer: issuer.token(headers={"kid": ""}),
    "kid climbs a path": lambda issuer: issuer.token(headers={"kid": "../../../../dev/null"}),
    "kid is a URL": lambda issuer: issuer.token(headers={"kid": "http://127.0.0.1:1/key"}),
    "kid holds SQL": lambda issuer: issuer.token(headers={"kid": "x' UNION SELECT 'secret"}),
    "kid is long": lambda issuer: issuer.token(headers={"kid": "k" * 129}),
    "unknown critical extension": lambda issuer: issuer.token(headers={"crit": ["exp"]}),
    "detached payload": lambda issuer: issuer.token(headers={"b64": False, "crit": ["b64"]}),
    "typ of an id token hint": lambda issuer: issuer.token(headers={"typ": "logout+jwt"}),
    "typ as array": lambda issuer: issuer.token(headers={"typ": ["JWT"]}),
    "other issuer": lambda issuer: issuer.token(iss="https://elsewhere.example/"),
    "issuer without its slash": lambda issuer: issuer.token(iss=issuer.name.rstrip("/")),
    "issuer as array": lambda issuer: issuer.token(iss=[issuer.name]),
    "issuer as object": lambda issuer: issuer.token(iss={issuer.name: 1}),
    "no issuer": lambda issuer: issuer.token(iss=None),
    "other audience": lambda issuer: issuer.token(aud="another-api"),
    "no audience": lambda issuer: issuer.token(aud=None),
    "audience as bool": lambda issuer: issuer.token(aud=True),
    "audience as array of numbers": lambda issuer: issuer.token(aud=[1, 2]),
    "audience as empty array": lambda issuer: issuer.token(aud=[]),
    "no expiry": lambda issuer: issuer.token(exp=None),
    "expiry as bool": lambda issuer: issuer.token(exp=True),
    "expiry as text": lambda issuer: issuer.token(exp="99999999999"),
    "expiry as array": lambda issuer: issuer.token(exp=[99999999999]),
    "expiry infinite": lambda issuer: issuer.token(
        raw_claims=json.dumps(issuer.claims()).replace('"exp": ', '"exp": 1e999, "was": ').encode()
    ),
    "expiry not a number": lambda issuer: issuer.token(exp=float("nan")),
    "not yet valid": lambda issuer: issuer.token(nbf=int(time.time()) + 120),
    "start as bool": lambda issuer: issuer.token(nbf=True),
    "issued in the future": lambda issuer: issuer.token(iat=int(time.time()) + 120),
    "issued as array": lambda issuer: issuer.token(iat=[1]),
    "subject as array": lambda issuer: issuer.token(sub=["robot"]),
    "no client": lambda issuer: issuer.token(sub=None, azp=None),
    "claims are an array": lambda issuer: issuer.token(raw_claims=b"[1]"),
    "claims are a text": lambda issuer: issuer.token(raw_claims=b'"iss"'),
    "claims nested deep": lambda issuer: issuer.token(raw_claims=b"[" * 4000),
    "claims not UTF-8": lambda issuer: issuer.token(raw_claims=b"\xff\xfe"),
    "header nested deep": nested_header,
    "oversized": oversized,
    "encrypted": lambda issuer: issuer.token() + ".AAAA.AAAA",
    "two in one header": lambda issuer: f"{issuer.token()}, {issuer.token()}",
    "two joined by a server": lambda issuer: f"{issuer.token()},Bearer {issuer.token()}",
    "not a token": lambda _: "opaque",
    "dots alone": lambda _: "..",
    "null": lambda _: "null",
    "latin letters": lambda issuer: issuer.token() + "\xe9",
}


@pytest.mark.parametrize("build", ATTACKS.values(), ids=ATTACKS.keys())
def test_attack_is_refused(client: Client, issuer: TokenIssuer, build: Callable[[TokenIssuer], str]) -> None:
    assert ping(client, bearer=issuer.token()).status_code == 200

    response = ping(client, bearer=build(issuer))

    assert (response.status_code, response.json()["code"]) == (401, "bearer_invalid")


def test_expired_token_is_told_apart(client: Client, issuer: TokenIssuer) -> None:
    response = ping(client, bearer=issuer.token(exp=int(time.time()) - 61))

    assert (response.status_code, response.json()["code"]) == (401, "bearer_expired")


def test_expired_forgery_learns_nothing_of_expiry(client: Client, issuer: TokenIssuer) -> None:
    forged = issuer.token(key=signing_key("stranger"), headers={"kid": "first"}, exp=1)

    assert ping(client, bearer=forged).json()["code"] == "bearer_invalid"


def test_key_of_one_issuer_signs_nothing_for_another(
    client: Client, issuer: TokenIssuer, settings: Settings
) -> None:
    with token_issuer_running() as other:
        other.key = signing_key("others")
        other.document = jwks_document(other.key)
        settings.SGM_ISSUERS = [
            *settings.SGM_ISSUERS,
            {"issuer": other.name, "audience": AUDIENCE, "jwks_url": other.url},
        ]
        assert ping(client, bearer=other.token()).status_code == 200

        assert ping(client, bearer=other.token(iss=issuer.name)).json()["code"] == "bearer_invalid"


@pytest.mark.parametrize("name", ["Authorization", "X-Management-Token"])
def test_header_sent_twice_is_refused(live_server: Any, issuer: TokenIssuer, name: str) -> None:
    good = {"Authorization": f"Bearer {issuer.token()}", "X-Management-Token": ROOT}
    address = urlsplit(live_server.url)

    def status(*extra: tuple[str, str]) -> int:
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
        try:
            connection.putrequest("GET", "/v1/ping")
            for header, value in (*good.items(), *extra):
                connection.putheader(header, value)
            connection.endheaders()
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    assert status() == 200
    assert status((name, good[name])) == 401


@pytest.mark.django_db
def test_credentials_are_never_repeated(
    client: Client, issuer: TokenIssuer, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    bearer, token = issuer.token(aud="another-api"), "tok_" + "ab" * 16

    answers = [ping(client, bearer=bearer), ping(client, bearer=issuer.token(), token=token)]

    written = "".join((*capfd.readouterr(), caplog.text, *(answer.content.decode() for answer in answers)))
    assert [answer.status_code for answer in answers] == [401, 401]
    assert not any(secret in written for secret in (bearer, bearer.split(".")[2], token))


# --- keys -----------------------------------------------------------------------------------------------------


def test_dead_issuer_does_not_stop_who_was_let_in(client: Client, issuer: TokenIssuer) -> None:
    assert ping(client, bearer=issuer.token()).status_code == 200
    issuer.status = 503

    assert ping(client, bearer=issuer.token()).status_code == 200


def test_issuer_never_reached_is_our_fault_and_not_the_tokens(client: Client, issuer: TokenIssuer) -> None:
    issuer.status = 503

    response = ping(client, bearer=issuer.token())

    assert (response.status_code, response.json()["code"]) == (503, "issuer_unavailable")


def test_flood_of_unknown_keys_costs_the_issuer_nothing(client: Client, issuer: TokenIssuer) -> None:
    assert ping(client, bearer=issuer.token()).status_code == 200

    answers = [ping(client, bearer=issuer.token(headers={"kid": f"unknown-{i}"})) for i in range(40)]

    assert {answer.json()["code"] for answer in answers} == {"bearer_invalid"}
    assert issuer.fetches == 1


def test_untrusted_issuer_is_never_asked(client: Client, issuer: TokenIssuer) -> None:
    with token_issuer_running() as stranger:
        assert ping(client, bearer=stranger.token()).status_code == 401

        assert stranger.fetches == 0


def test_keys_of_a_file_need_no_issuer(
    client: Client, issuer: TokenIssuer, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "jwks.json").write_bytes(issuer.document)
    settings.SGM_ISSUERS = [
        {"issuer": issuer.name, "audience": AUDIENCE, "jwks_file": str(tmp_path / "jwks.json")}
    ]

    assert ping(client, bearer=issuer.token()).status_code == 200
    assert issuer.fetches == 0


@pytest.mark.parametrize(
    "entry",
    [
        "https://issuer.example/",
        {"issuer": "https://issuer.example/", "audience": "a"},
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
        assert not clockwork.has("unknown")

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
    assert time.monotonic() - started < 1


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


def test_two_root_tokens_are_valid_at_once(client: Client, issuer: TokenIssuer) -> None:
    assert ping(client, bearer=issuer.token(), token=ROOT).status_code == 200
    assert ping(client, bearer=issuer.token(), token=OTHER_ROOT).status_code == 200


@pytest.mark.django_db
@pytest.mark.parametrize(
    "token",
    [
        ROOT[:-1],
        ROOT + "x",
        f"{ROOT},{ROOT}",
        f"{ROOT},{OTHER_ROOT}",
        "tok_" + "0" * 32,
        "x" * 300,
        "\xe9",
        "tok_%",
    ],
)
def test_wrong_management_token_is_401(client: Client, issuer: TokenIssuer, token: str) -> None:
    response = ping(client, bearer=issuer.token(), token=token)

    assert (response.status_code, response.json()["code"]) == (401, "management_token_invalid")
    assert response["WWW-Authenticate"].startswith("Bearer ")


@pytest.mark.django_db
def test_empty_root_token_in_the_settings_opens_nothing(
    client: Client, issuer: TokenIssuer, settings: Settings
) -> None:
    settings.SGM_ROOT_TOKENS = [""]

    assert ping(client, bearer=issuer.token(), token="").status_code == 401
    assert ping(client, bearer=issuer.token(), token=ROOT).status_code == 401


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
