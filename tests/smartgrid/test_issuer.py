"""The embedded issuer answers as the guide prints it, and its tokens open the API."""

from __future__ import annotations

import base64
import json
import stat
import time
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from django.contrib.auth.hashers import identify_hasher
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import include, path
from django.utils import timezone
from oauth2_provider.models import AccessToken, Application
from pytest_django import Settings

from smartgrid.api.jwks import signing_keys_read, thumbprint
from smartgrid.issuer import ClientSecretHasher, issuer_client_create, issuer_urlpatterns
from smartgrid.issuer_keys import PUBLISHED_BEFORE, issuer_key_create, issuer_key_rotate
from tests.servers import until

ROOT = "root-token-one-0123456789abcdef"
CLIENT_ID = "robot"
CLIENT_SECRET = "a secret of thirty-two characters or more"

pytestmark = pytest.mark.django_db


@pytest.fixture(scope="module")
def first_key(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("key") / "issuer.pem"
    issuer_key_create(file)
    return file.read_bytes()


@pytest.fixture
def key_file(first_key: bytes, tmp_path: Path, settings: Settings) -> Path:
    """The API and an embedded issuer with one client."""
    file = tmp_path / "issuer.pem"
    file.write_bytes(first_key)
    settings.SGM_ISSUER_KEY_FILE = str(file)
    settings.SGM_ISSUER_URL = "https://grid.example/"
    settings.SGM_AUDIENCE = "curtailment-api"
    settings.SGM_ISSUERS = []
    settings.SGM_ROOT_TOKENS = [ROOT]
    urls = ModuleType("urls")
    urls.urlpatterns = [*issuer_urlpatterns(), path("v1/", include("smartgrid.api.urls"))]  # type: ignore[attr-defined]
    settings.ROOT_URLCONF = urls
    issuer_client_create(name="Robot", client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
    return file


def guide_body(**changes: Any) -> dict[str, Any]:
    body = {
        "audience": "curtailment-api",
        "grant_type": "client_credentials",
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
        **changes,
    }
    return {name: value for name, value in body.items() if value is not None}


def post_json(client: Client, body: Any) -> Any:
    return client.post("/oauth/token", json.dumps(body), content_type="application/json")


def post_form(client: Client, body: str, **headers: str) -> Any:
    return client.post(
        "/oauth/token", body, content_type="application/x-www-form-urlencoded", headers=headers
    )


def basic(client_id: str, client_secret: str) -> str:
    return "Basic " + base64.b64encode(f"{client_id}:{client_secret}".encode()).decode()


# --- what the guide promises ----------------------------------------------------------------------------------


def test_the_guides_request_gets_the_guides_answer(client: Client, key_file: Path) -> None:
    response = post_json(client, guide_body())

    assert response.status_code == 200
    assert response["Content-Type"] == "application/json"
    assert response["Cache-Control"] == "no-store"
    body = response.json()
    assert set(body) == {"access_token", "expires_in", "token_type"}
    assert (body["expires_in"], body["token_type"]) == (86400, "Bearer")


def test_issued_token_opens_the_api(client: Client, key_file: Path) -> None:
    token = post_json(client, guide_body()).json()["access_token"]

    response = client.get(
        "/v1/ping", headers={"Authorization": f"Bearer {token}", "X-Management-Token": ROOT}
    )

    assert response.status_code == 200


def test_claims_are_those_of_a_machine_token(client: Client, key_file: Path) -> None:
    before = int(time.time())
    token = post_json(client, guide_body()).json()["access_token"]

    claims = jwt.decode(token, options={"verify_signature": False})
    header = jwt.get_unverified_header(token)
    assert claims.pop("jti")
    issued_at = claims.pop("iat")
    assert before <= issued_at <= time.time()
    assert claims == {
        "iss": "https://grid.example/",
        "sub": "robot@clients",
        "aud": "curtailment-api",
        "exp": issued_at + 86400,
        "azp": "robot",
        "gty": "client-credentials",
    }
    assert header == {"alg": "RS256", "typ": "JWT", "kid": signing_keys_read(key_file)[0].kid}


def test_two_tokens_are_never_the_same(client: Client, key_file: Path) -> None:
    tokens = {post_json(client, guide_body()).json()["access_token"] for _ in range(2)}

    assert len(tokens) == 2


def test_issued_tokens_leave_no_rows(client: Client, key_file: Path) -> None:
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert post_json(client, guide_body()).status_code == 200

    assert AccessToken.objects.count() == 0
    assert [query["sql"].split()[0] for query in queries] == ["SELECT"]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (f"grant_type=client_credentials&client_id={CLIENT_ID}&client_secret={quote(CLIENT_SECRET)}", {}),
        (
            "grant_type=client_credentials&audience=curtailment-api",
            {"Authorization": basic(CLIENT_ID, CLIENT_SECRET)},
        ),
        (
            f"grant_type=client_credentials&client_id={CLIENT_ID}",
            {"Authorization": basic(CLIENT_ID, quote(CLIENT_SECRET))},
        ),
    ],
    ids=["form", "basic", "basic with form encoding"],
)
def test_standard_clients_are_served_too(
    client: Client, key_file: Path, body: str, headers: dict[str, str]
) -> None:
    assert post_form(client, body, **headers).status_code == 200


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "status", "error"),
    [
        ({"client_secret": "wrong"}, 401, "invalid_client"),
        ({"client_secret": ""}, 401, "invalid_client"),
        ({"client_secret": None}, 401, "invalid_client"),
        ({"client_id": "nobody"}, 401, "invalid_client"),
        ({"client_id": None}, 401, "invalid_client"),
        ({"client_id": "nobody", "audience": "another-api"}, 401, "invalid_client"),
        ({"client_id": "nobody", "client": "robot", "user": "root"}, 401, "invalid_client"),
        ({"audience": "another-api"}, 403, "access_denied"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"grant_type": "refresh_token"}, 400, "unsupported_grant_type"),
        ({"grant_type": None}, 400, "invalid_request"),
        ({"scope": "admin"}, 400, "invalid_scope"),
        ({"client_id": ["robot"]}, 400, "invalid_request"),
        ({"client_secret": True}, 400, "invalid_request"),
        ({"client_id": "rob\0ot"}, 400, "invalid_request"),
        ({"client_id": "rob\ud800ot"}, 400, "invalid_request"),
        ({"padding": "x" * 20_000}, 400, "invalid_request"),
    ],
)
def test_refusal_has_the_shape_of_oauth(
    client: Client, key_file: Path, changes: dict[str, Any], status: int, error: str
) -> None:
    response = post_json(client, guide_body(**changes))

    assert (response.status_code, response.json()["error"]) == (status, error)
    assert "access_token" not in response.json()
    assert response.has_header("WWW-Authenticate") == (status == 401)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"grant_type"',
        b"\xff\xfe",
        b"[" * 10_000,
        b'{"grant_type": "client_credentials", "client_id": "robot", "client_id": "other"}',
    ],
)
def test_what_is_not_an_object_of_texts_is_400(client: Client, key_file: Path, body: bytes) -> None:
    response = client.post("/oauth/token", body, content_type="application/json")

    assert (response.status_code, response.json()["error"]) == (400, "invalid_request")


def test_credentials_belong_into_one_place(client: Client, key_file: Path) -> None:
    form = f"grant_type=client_credentials&client_id={CLIENT_ID}&client_secret={quote(CLIENT_SECRET)}"

    in_query = client.post(f"/oauth/token?{form}", form, content_type="application/x-www-form-urlencoded")
    twice = post_form(client, form, Authorization=basic(CLIENT_ID, CLIENT_SECRET))
    repeated = post_form(client, f"{form}&client_id=other")

    assert {answer.json()["error"] for answer in (in_query, twice, repeated)} == {"invalid_request"}


@pytest.mark.parametrize("header", ["Basic", "Basic !!!", "Basic cm9ib3Q=", "Basic /w==", "Bearer x"])
def test_ill_formed_basic_header_is_400(client: Client, key_file: Path, header: str) -> None:
    response = post_form(client, "grant_type=client_credentials", Authorization=header)

    assert (response.status_code, response.json()["error"]) == (400, "invalid_request")


def test_wrong_basic_credentials_are_challenged_in_kind(client: Client, key_file: Path) -> None:
    response = post_form(client, "grant_type=client_credentials", Authorization=basic(CLIENT_ID, "wrong"))

    assert (response.status_code, response.json()["error"]) == (401, "invalid_client")
    assert response["WWW-Authenticate"].startswith("Basic ")


def test_tokens_are_not_for_the_asking_by_get(client: Client, key_file: Path) -> None:
    assert client.get("/oauth/token").status_code == 405


@pytest.mark.parametrize("client_id", [CLIENT_ID, "nobody"])
def test_unknown_client_costs_as_much_as_a_wrong_secret(
    client: Client, key_file: Path, monkeypatch: pytest.MonkeyPatch, client_id: str
) -> None:
    post_json(client, guide_body(client_id="nobody"))  # the decoy is hashed once, at the first use
    hashed = []
    encode = ClientSecretHasher.encode

    def counted(self: ClientSecretHasher, *args: Any, **kwargs: Any) -> str:
        hashed.append(args)
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(ClientSecretHasher, "encode", counted)

    assert post_json(client, guide_body(client_id=client_id, client_secret="wrong")).status_code == 401
    assert len(hashed) == 1


def test_deleted_client_gets_no_more_tokens(client: Client, key_file: Path) -> None:
    Application.objects.get(client_id=CLIENT_ID).delete()

    assert post_json(client, guide_body()).status_code == 401


def test_neither_secret_nor_token_is_logged(
    client: Client, key_file: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")

    token = post_json(client, guide_body()).json()["access_token"]
    post_json(client, guide_body(client_secret="wrong-" + CLIENT_SECRET))

    written = "".join((caplog.text, *capfd.readouterr()))
    assert token not in written
    assert CLIENT_SECRET not in written


# --- clients and keys -----------------------------------------------------------------------------------------


def test_client_is_drawn_at_random_and_its_secret_kept_as_a_hash(client: Client, key_file: Path) -> None:
    client_id, client_secret = issuer_client_create(name="Drawn")

    stored = Application.objects.get(client_id=client_id).client_secret
    assert client_secret not in stored
    assert isinstance(identify_hasher(stored), ClientSecretHasher)
    answer = post_json(client, guide_body(client_id=client_id, client_secret=client_secret))
    assert answer.status_code == 200


def test_saving_a_client_again_keeps_its_secret(client: Client, key_file: Path) -> None:
    application = Application.objects.get(client_id=CLIENT_ID)
    application.name = "Renamed"
    application.save()

    assert post_json(client, guide_body()).status_code == 200


def test_new_secret_replaces_the_old_one(client: Client, key_file: Path) -> None:
    _, renewed = issuer_client_create(name="Robot", client_id=CLIENT_ID)

    assert post_json(client, guide_body(client_secret=renewed)).status_code == 200
    assert post_json(client, guide_body()).status_code == 401


def test_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="32"):
        issuer_client_create(name="Robot", client_id=CLIENT_ID, client_secret="short")


def test_key_is_for_its_owner_alone_and_made_once(tmp_path: Path) -> None:
    file = tmp_path / "issuer.pem"

    issuer_key_create(file)
    first = file.read_bytes()
    issuer_key_create(file)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_bytes() == first
    assert [found.name for found in tmp_path.iterdir()] == ["issuer.pem"]


@pytest.mark.parametrize("where", ["/.well-known/jwks.json", "/oauth/.well-known/jwks.json"])
def test_published_key_verifies_what_is_issued_and_holds_nothing_private(
    client: Client, key_file: Path, where: str
) -> None:
    token = post_json(client, guide_body()).json()["access_token"]

    (published,) = client.get(where).json()["keys"]

    assert set(published) == {"kty", "n", "e", "kid", "use", "alg"}
    key = jwt.PyJWK.from_dict(published)
    assert jwt.decode(token, key, algorithms=["RS256"], audience="curtailment-api")["azp"] == CLIENT_ID


def test_metadata_leads_to_the_endpoints(client: Client, key_file: Path) -> None:
    found = client.get("/.well-known/openid-configuration").json()

    assert found["issuer"] == "https://grid.example/"
    assert found["token_endpoint"] == "http://testserver/oauth/token"
    assert found["jwks_uri"] == "http://testserver/.well-known/jwks.json"


def test_key_put_in_front_signs_and_the_old_one_still_verifies(
    client: Client, key_file: Path, tmp_path: Path
) -> None:
    old = post_json(client, guide_body()).json()["access_token"]
    issuer_key_create(tmp_path / "new.pem")
    key_file.write_bytes((tmp_path / "new.pem").read_bytes() + key_file.read_bytes())

    new = post_json(client, guide_body()).json()["access_token"]

    published = {key["kid"]: key for key in client.get("/.well-known/jwks.json").json()["keys"]}
    assert jwt.get_unverified_header(old)["kid"] != jwt.get_unverified_header(new)["kid"]
    for token in (old, new):
        key = jwt.PyJWK.from_dict(published[jwt.get_unverified_header(token)["kid"]])
        jwt.decode(token, key, algorithms=["RS256"], audience="curtailment-api")


def test_rotation_shuts_nobody_out_and_needs_no_restart(client: Client, key_file: Path) -> None:
    def token() -> str:
        return str(post_json(client, guide_body()).json()["access_token"])

    def opens(bearer: str) -> bool:
        headers = {"Authorization": f"Bearer {bearer}", "X-Management-Token": ROOT}
        return bool(client.get("/v1/ping", headers=headers).status_code == 200)

    now = timezone.now()
    old = token()
    assert opens(old)

    issuer_key_rotate(key_file, now=now)
    assert jwt.get_unverified_header(token())["kid"] == jwt.get_unverified_header(old)["kid"]
    assert len(client.get("/.well-known/jwks.json").json()["keys"]) == 2
    issuer_key_rotate(key_file, now=now + PUBLISHED_BEFORE)
    new = token()

    assert jwt.get_unverified_header(new)["kid"] != jwt.get_unverified_header(old)["kid"]
    # The API reads its file again at most once a second.
    until(lambda: opens(new), what="the new key was not known", within_s=10)
    assert opens(old)


def test_thumbprint_is_that_of_the_standards_example(tmp_path: Path) -> None:
    # RFC 7638, section 3.1.
    modulus = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZ"
        "CiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJ"
        "ZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xB"
        "niIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    key = jwt.PyJWK.from_dict({"kty": "RSA", "n": modulus, "e": "AQAB"}, algorithm="RS256").key

    assert thumbprint(key) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


@pytest.mark.parametrize(
    "content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", None]
)
def test_unusable_key_file_is_named(client: Client, key_file: Path, content: bytes | None) -> None:
    if content is None:
        key = ec.generate_private_key(ec.SECP256R1())
        content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key_file.write_bytes(content)

    with pytest.raises(ImproperlyConfigured, match="SGM_ISSUER_KEY_FILE"):
        client.get("/.well-known/jwks.json")


def test_without_a_key_file_there_is_no_issuer(settings: Settings) -> None:
    settings.SGM_ISSUER_KEY_FILE = ""

    assert issuer_urlpatterns() == []
