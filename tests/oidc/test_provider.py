"""Tokens of a third-party identity provider open the API, over HTTP and by configuration alone."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from django.test import Client
from pytest_django import Settings

from sites_app.selectors import token_value
from sites_app.services import site_create, token_issue
from smartgrid.api.authentication import BearerRefused, TrustedIssuer, bearer_verify
from smartgrid.api.jwks import (
    COLD_COOL_DOWN_S,
    COOL_DOWN_S,
    FRESH_S,
    KEEP_S,
    KeyCache,
    KeysUnavailable,
    keys_fetch_issuer,
    keys_fetch_url,
    signing_keys_read,
)
from smartgrid.issuer_keys import issuer_key_create
from tests.oidc.provider import ANOTHER, OURS, Provider
from tests.smartgrid.token_issuer import TokenIssuer, signing_key

AUDIENCE = "curtailment-api"
ROOT = "root-token-one-0123456789abcdefghij"
OWN_ISSUER = "https://grid.example/"


@pytest.fixture
def api(provider: Provider, settings: Settings) -> Callable[..., Any]:
    """`api(bearer)` pings; the provider is trusted by its name and audience alone."""
    settings.SGM_ISSUERS = [{"issuer": provider.issuer, "audience": AUDIENCE}]
    settings.SGM_ISSUER_KEY_FILE = ""
    # Keys are held for as long as the settings stay the same: each test begins without any.
    settings.SGM_AUDIENCE = uuid.uuid4().hex
    settings.SGM_ROOT_TOKENS = [ROOT]

    def ping(bearer: str, *, token: str = ROOT) -> Any:
        headers = {"Authorization": f"Bearer {bearer}", "X-Management-Token": token}
        return Client().get("/v1/ping", headers=headers)

    return ping


class Door:
    """What verifies bearer tokens in a process, on a clock of the test's."""

    def __init__(self, provider: Provider) -> None:
        self.now = 1000.0
        self.name = provider.issuer
        self.keys = KeyCache(
            name=provider.issuer,
            fetch=partial(keys_fetch_issuer, provider.issuer),
            clock=lambda: self.now,
        )
        issuer = TrustedIssuer(issuer=provider.issuer, audience=AUDIENCE, keys=self.keys)
        self.issuers = {issuer.issuer: issuer}

    def opens(self, token: str) -> bool:
        try:
            bearer_verify(token, issuers=self.issuers)
        except BearerRefused:
            return False
        return True

    def settle(self) -> None:
        """Wait for a refresh that runs beside."""
        for thread in threading.enumerate():
            if thread.name == f"jwks {self.name}":
                thread.join(10)


@pytest.fixture
def door(provider: Provider) -> Door:
    return Door(provider)


# --- what it issues opens the API -----------------------------------------------------------------------------


@pytest.mark.django_db
def test_its_token_and_a_management_token_open_the_api(provider: Provider, api: Callable[..., Any]) -> None:
    token = token_value(token_issue(name="integrator", sites=[site_create(site_tag="here", name="Here")]))

    assert api(provider.token(), token=token).status_code == 200
    assert api(provider.token(), token="tok_" + "0" * 32).json()["code"] == "management_token_invalid"


def test_its_token_is_a_jwt_access_token_of_the_standard(provider: Provider, door: Door) -> None:
    token = provider.token()

    header = jwt.get_unverified_header(token)
    claims = bearer_verify(token, issuers=door.issuers)
    assert header == {"alg": "RS256", "typ": "at+jwt", "kid": provider.kid}
    assert (claims["client_id"], claims["aud"]) == (provider.client_id, AUDIENCE)


def test_keys_are_also_found_where_their_address_is_given(
    provider: Provider, api: Callable[..., Any], settings: Settings
) -> None:
    settings.SGM_ISSUERS = [
        {"issuer": provider.issuer, "audience": AUDIENCE, "jwks_url": f"{provider.issuer}/jwks"}
    ]

    assert api(provider.token()).status_code == 200


# --- what it issues for others does not -----------------------------------------------------------------------


def test_its_token_for_another_api_is_refused(provider: Provider, api: Callable[..., Any]) -> None:
    assert api(provider.token(resource=OURS)).status_code == 200

    response = api(provider.token(resource=ANOTHER))

    assert (response.status_code, response.json()["code"]) == (401, "bearer_invalid")


def test_its_opaque_token_is_refused(provider: Provider, api: Callable[..., Any]) -> None:
    opaque = provider.token_request(resource=None).json()["access_token"]

    assert "." not in opaque
    assert api(opaque).json()["code"] == "bearer_invalid"


def test_its_token_that_is_bound_to_a_key_is_no_bearer_token(
    provider: Provider, api: Callable[..., Any]
) -> None:
    # RFC 9449: whoever steals such a token lacks the key; taken as a bearer token it would be worth as much as one.
    key = ec.generate_private_key(ec.SECP256R1())
    url = f"{provider.issuer}/token"
    claims = {"jti": uuid.uuid4().hex, "htm": "POST", "htu": url, "iat": int(time.time())}
    public = jwt.get_algorithm_by_name("ES256").to_jwk(key.public_key(), as_dict=True)
    proof = jwt.encode(claims, key, algorithm="ES256", headers={"typ": "dpop+jwt", "jwk": public})

    answer = provider.token_request(headers={"DPoP": proof}).json()

    assert answer["token_type"] == "DPoP"
    assert "jkt" in jwt.decode(answer["access_token"], options={"verify_signature": False})["cnf"]
    assert api(answer["access_token"]).json()["code"] == "bearer_invalid"
    assert api(proof).json()["code"] == "bearer_invalid"


def test_slash_too_many_in_the_configuration_trusts_nobody(
    provider: Provider, api: Callable[..., Any], settings: Settings
) -> None:
    settings.SGM_ISSUERS = [{"issuer": f"{provider.issuer}/", "audience": AUDIENCE}]

    assert api(provider.token()).json()["code"] == "bearer_invalid"


# --- its keys change, and it goes away ------------------------------------------------------------------------


def test_new_key_is_followed_after_the_cool_down(provider: Provider, door: Door) -> None:
    before = provider.token()
    assert door.opens(before)
    assert provider.rotate() != jwt.get_unverified_header(before)["kid"]
    after = provider.token()

    assert not door.opens(after)
    door.now += COOL_DOWN_S
    assert door.opens(after)
    assert door.opens(before)


def test_key_that_was_withdrawn_ends_with_the_next_refresh(provider: Provider, door: Door) -> None:
    before = provider.token()
    assert door.opens(before)
    provider.stop()
    provider.start()  # with keys of its own, and none of the former ones

    door.now += FRESH_S + 1

    assert door.opens(before)  # this request has the refresh begin, and does not wait for it
    door.settle()
    assert not door.opens(before)
    assert door.opens(provider.token())


def test_provider_that_is_away_shuts_out_nobody_it_had_let_in(provider: Provider, door: Door) -> None:
    token = provider.token()
    assert door.opens(token)
    unknown = provider.rotate() and provider.token()
    provider.stop()

    for waited_s in (COOL_DOWN_S, FRESH_S + 1, KEEP_S - FRESH_S - COOL_DOWN_S - 2):
        door.now += waited_s
        assert door.opens(token)
        door.settle()
    with pytest.raises(KeysUnavailable):
        door.opens(unknown)
    door.now += 2
    with pytest.raises(KeysUnavailable):
        door.opens(token)


def test_provider_that_was_never_reached_is_503_until_it_is_there(
    provider: Provider, api: Callable[..., Any], door: Door
) -> None:
    early = provider.token()
    provider.stop()

    response = api(early)
    with pytest.raises(KeysUnavailable):
        door.opens(early)

    assert (response.status_code, response.json()["code"]) == (503, "issuer_unavailable")
    assert int(response["Retry-After"]) >= 1
    provider.start()
    door.now += COLD_COOL_DOWN_S
    assert door.opens(provider.token())


# --- several issuers at once ----------------------------------------------------------------------------------


@pytest.fixture
def own_issuer(settings: Settings, tmp_path: Path) -> TokenIssuer:
    """The embedded issuer is on; what this makes is signed with its key."""
    file = tmp_path / "issuer.pem"
    issuer_key_create(file)
    settings.SGM_ISSUER_KEY_FILE = str(file)
    settings.SGM_ISSUER_URL = OWN_ISSUER
    settings.SGM_AUDIENCE = AUDIENCE
    forger = TokenIssuer(port=1)
    forger.name, forger.key = OWN_ISSUER, signing_keys_read(file)[0]
    return forger


def test_provider_and_embedded_issuer_are_trusted_side_by_side(
    provider: Provider, api: Callable[..., Any], own_issuer: TokenIssuer
) -> None:
    assert api(provider.token()).status_code == 200
    assert api(own_issuer.token()).status_code == 200


def test_no_issuer_signs_for_the_other(
    provider: Provider, api: Callable[..., Any], own_issuer: TokenIssuer
) -> None:
    for_the_provider = own_issuer.token(iss=provider.issuer)
    under_its_key_id = own_issuer.token(iss=provider.issuer, headers={"kid": provider.kid})
    # And the other way round: a provider's token that names the embedded issuer can only be made by hand.
    stranger = own_issuer.token(key=signing_key("stranger"), headers={"kid": own_issuer.key.kid})

    codes = [api(token).json()["code"] for token in (for_the_provider, under_its_key_id, stranger)]

    assert codes == ["bearer_invalid"] * 3


def test_each_issuer_has_an_audience_of_its_own(
    provider: Provider, api: Callable[..., Any], own_issuer: TokenIssuer, settings: Settings
) -> None:
    settings.SGM_ISSUERS = [{"issuer": provider.issuer, "audience": "billing-api"}]

    assert api(provider.token(resource=ANOTHER)).status_code == 200
    assert api(provider.token(resource=OURS)).status_code == 401
    assert api(own_issuer.token()).status_code == 200
    assert api(own_issuer.token(aud="billing-api")).status_code == 401


def test_what_it_publishes_is_what_is_read(provider: Provider) -> None:
    published = httpx.get(f"{provider.issuer}/.well-known/openid-configuration").json()

    assert set(keys_fetch_issuer(provider.issuer)) == set(keys_fetch_url(published["jwks_uri"]))
    assert provider.kid in keys_fetch_issuer(provider.issuer)
