"""Everything that must not open /v1: one table of forged requests, and what each is answered.

Each row meets the real door twice: a view behind Django's test client, and those that are about the shape of
the request on the wire, a web server process of production over a bare socket.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.test import Client
from pytest_django import Settings

from sites_app.selectors import token_value
from sites_app.services import site_create, token_issue, token_revoke
from smartgrid.api.authentication import BEARER_LENGTH_MAX
from smartgrid.api.jwks import COOL_DOWN_S, KeyCache, keys_fetch_url
from smartgrid.demo.state import free_port
from tests.servers import until
from tests.smartgrid.token_issuer import (
    AUDIENCE,
    TokenIssuer,
    base64url,
    jwks_document,
    signing_key,
    token_issuer_running,
)

ROOT = "root_5d41402abc4b2a76b9719d911017c592"
OTHER_ROOT = "root_7d793037a0760186574b0282f2f435e7"

pytestmark = pytest.mark.django_db


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is attacked: a trusted issuer, a management token in use, and one that was deleted."""

    issuer: TokenIssuer
    site_token: str
    deleted_token: str


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A request as the attacker sends it. None: the header is not sent at all."""

    authorization: str | None
    token: str | None = ROOT
    query: dict[str, str] = field(default_factory=dict)
    body: dict[str, str] | None = None
    extra: dict[str, str] = field(default_factory=dict)


Forge = Callable[[Target], Sent]


# --- how tokens are forged ------------------------------------------------------------------------------------


def hand_made(
    issuer: TokenIssuer, *, sign: Callable[[bytes], bytes] = lambda _: b"", header: Any = None, **changes: Any
) -> str:
    """A token with any header at all, signed as `sign` signs."""
    given = {"typ": "JWT", "alg": "RS256", "kid": issuer.key.kid, **(header or {})}
    signed = (
        f"{base64url(json.dumps(given).encode())}.{base64url(json.dumps(issuer.claims(**changes)).encode())}"
    )
    return f"{signed}.{base64url(sign(signed.encode()))}"


def hmac_with(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda signed: hmac.digest(secret, signed, hashlib.sha256)


def hs256(issuer: TokenIssuer, secret: bytes) -> str:
    """What a verifier takes that lets the token choose the algorithm: the public key is no secret."""
    return hand_made(issuer, sign=hmac_with(secret), header={"alg": "HS256"})


def public_der(issuer: TokenIssuer) -> bytes:
    return issuer.key.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def public_jwk(issuer: TokenIssuer) -> bytes:
    return json.dumps(issuer.key.public_jwk()).encode()


def signed_otherwise(issuer: TokenIssuer, algorithm: str) -> str:
    """Signed with the issuer's own key, by an algorithm that is not agreed upon."""
    return jwt.encode(
        issuer.claims(), issuer.key.private, algorithm=algorithm, headers={"kid": issuer.key.kid}
    )


def signed_es256(issuer: TokenIssuer) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    return jwt.encode(issuer.claims(), key, algorithm="ES256", headers={"kid": issuer.key.kid})


def by_a_stranger(issuer: TokenIssuer, **headers: Any) -> str:
    """Signed by a key of the attacker's, under the issuer's key id."""
    return issuer.token(key=signing_key("stranger"), headers={"kid": issuer.key.kid, **headers})


def by_a_stranger_expired(issuer: TokenIssuer) -> str:
    return issuer.token(key=signing_key("stranger"), headers={"kid": issuer.key.kid}, exp=1)


def hs256_of_nothing(issuer: TokenIssuer, *, kid: str) -> str:
    """What a verifier takes that reads the file a `kid` names: an empty one is a secret that all know."""
    return hand_made(issuer, sign=hmac_with(b""), header={"alg": "HS256", "kid": kid})


def upper_digits(token: str) -> str:
    digits = token.removeprefix("tok_").upper()
    return digits if digits != digits.lower() else "A" * 32


def payload_exchanged(issuer: TokenIssuer) -> str:
    header, _, signature = issuer.token().split(".")
    return f"{header}.{base64url(json.dumps(issuer.claims(azp='somebody else')).encode())}.{signature}"


def header_exchanged(issuer: TokenIssuer) -> str:
    _, payload, signature = issuer.token().split(".")
    header = base64url(json.dumps({"typ": "at+jwt", "alg": "RS256", "kid": issuer.key.kid}).encode())
    return f"{header}.{payload}.{signature}"


def raw_header(issuer: TokenIssuer, header: bytes) -> str:
    _, payload, signature = issuer.token().split(".")
    return f"{base64url(header)}.{payload}.{signature}"


def raw_expiry(issuer: TokenIssuer, text: str) -> str:
    """Signed by the issuer, with an `exp` no JSON library would write."""
    claims = json.dumps(issuer.claims(exp="EXPIRY")).replace('"EXPIRY"', text)
    return issuer.token(raw_claims=claims.encode())


def encrypted(issuer: TokenIssuer) -> str:
    """The five parts of a JWE to the issuer's public key (RFC 7516)."""
    header = base64url(json.dumps({"alg": "RSA-OAEP", "enc": "A256GCM", "kid": issuer.key.kid}).encode())
    return ".".join([header, *(base64url(os.urandom(size)) for size in (256, 12, 64, 16))])


def nested(issuer: TokenIssuer) -> str:
    """A token within a token: `cty: JWT` (RFC 7519, section 5.2)."""
    return issuer.token(headers={"cty": "JWT"}, raw_claims=issuer.token().encode())


# --- the table ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    forge: Forge
    code: str
    status: int = 401


def bearer(
    name: str, build: Callable[[TokenIssuer], str], code: str = "bearer_invalid", status: int = 401
) -> Row:
    """A forged bearer token beside a good management token."""
    return Row(
        name=name,
        forge=lambda target: Sent(authorization=f"Bearer {build(target.issuer)}"),
        code=code,
        status=status,
    )


def header(name: str, build: Callable[[TokenIssuer], str], code: str = "bearer_invalid") -> Row:
    """A whole Authorization header."""
    return Row(name=name, forge=lambda target: Sent(authorization=build(target.issuer)), code=code)


def management(
    name: str, build: Callable[[Target], str], code: str = "management_token_invalid", status: int = 401
) -> Row:
    """A forged management token beside a good bearer token."""
    return Row(
        name=name,
        forge=lambda target: Sent(authorization=f"Bearer {target.issuer.token()}", token=build(target)),
        code=code,
        status=status,
    )


def whole(name: str, forge: Forge, code: str) -> Row:
    return Row(name=name, forge=forge, code=code)


NOW = time.time

TABLE = [
    # --- the algorithm is ours to choose ---
    bearer("alg none", lambda i: hand_made(i, header={"alg": "none"})),
    bearer("alg None", lambda i: hand_made(i, header={"alg": "None"})),
    bearer("alg nOnE", lambda i: hand_made(i, header={"alg": "nOnE"})),
    bearer(
        "alg none with a signature", lambda i: hand_made(i, header={"alg": "none"}, sign=lambda _: b"sig")
    ),
    bearer("alg empty", lambda i: hand_made(i, header={"alg": ""})),
    bearer("alg absent", lambda i: hand_made(i, header={"alg": None})),
    bearer("alg as array", lambda i: i.token(headers={"alg": ["RS256"]})),
    bearer("alg in lower case", lambda i: i.token(headers={"alg": "rs256"})),
    bearer("HS256 with the public key as PEM", lambda i: hs256(i, i.public_pem())),
    bearer("HS256 with the public key as PEM, stripped", lambda i: hs256(i, i.public_pem().strip())),
    bearer("HS256 with the public key as DER", lambda i: hs256(i, public_der(i))),
    bearer("HS256 with the public key as JWK", lambda i: hs256(i, public_jwk(i))),
    bearer("HS256 with the key document", lambda i: hs256(i, i.document)),
    bearer("HS256 with an empty secret", lambda i: hs256(i, b"")),
    bearer("HMAC under the name RS256", lambda i: hand_made(i, sign=hmac_with(i.public_pem()))),
    bearer("RS512 by the issuer's own key", lambda i: signed_otherwise(i, "RS512")),
    bearer("PS256 by the issuer's own key", lambda i: signed_otherwise(i, "PS256")),
    bearer("ES256 by a stranger", signed_es256),
    # --- the signature ---
    bearer("no signature", lambda i: i.token().rsplit(".", 1)[0] + "."),
    bearer("signature of zeros", lambda i: hand_made(i, sign=lambda _: bytes(256))),
    bearer("payload exchanged", payload_exchanged),
    bearer("header exchanged", header_exchanged),
    bearer("a stranger's key under a known id", by_a_stranger),
    bearer("expiry of a forgery tells nothing", by_a_stranger_expired),
    # --- keys that the token brings along ---
    bearer("own key in the header", lambda i: by_a_stranger(i, jwk=signing_key("stranger").public_jwk())),
    bearer("jku", lambda i: by_a_stranger(i, jku=i.url)),
    bearer("x5u", lambda i: by_a_stranger(i, x5u=i.url)),
    bearer("x5c", lambda i: by_a_stranger(i, x5c=[base64url(public_der(i))])),
    # --- kid ---
    bearer("no kid", lambda i: i.token(headers={"kid": None})),
    bearer("kid as number", lambda i: i.token(headers={"kid": 1})),
    bearer("kid as array", lambda i: i.token(headers={"kid": ["first"]})),
    bearer("kid empty", lambda i: i.token(headers={"kid": ""})),
    bearer("kid unknown", lambda i: i.token(headers={"kid": "unknown"})),
    bearer("kid in another case", lambda i: i.token(headers={"kid": "FIRST"})),
    bearer("kid climbs a path", lambda i: hs256_of_nothing(i, kid="../../../../dev/null")),
    bearer("kid is a path", lambda i: hs256_of_nothing(i, kid="/dev/null")),
    bearer("kid is a URL", lambda i: i.token(headers={"kid": f"{i.url}?key"})),
    bearer("kid holds SQL", lambda i: i.token(headers={"kid": "x' UNION SELECT 'secret"})),
    bearer("kid holds a command", lambda i: i.token(headers={"kid": "first|id"})),
    bearer("kid holds a line end", lambda i: i.token(headers={"kid": "first\nfirst"})),
    bearer("kid holds NUL", lambda i: i.token(headers={"kid": "first\0"})),
    bearer("kid is long", lambda i: i.token(headers={"kid": "k" * 129})),
    bearer("kid is very long", lambda i: i.token(headers={"kid": "k" * 4000})),
    # --- extensions and kinds of token ---
    bearer("unknown critical extension", lambda i: i.token(headers={"crit": ["exp"]})),
    bearer("detached payload", lambda i: i.token(headers={"b64": False, "crit": ["b64"]})),
    bearer("unencoded payload without crit", lambda i: i.token(headers={"b64": False})),
    bearer("typ of a logout token", lambda i: i.token(headers={"typ": "logout+jwt"})),
    bearer("typ of a proof of possession", lambda i: i.token(headers={"typ": "dpop+jwt"})),
    bearer("typ of a security event", lambda i: i.token(headers={"typ": "secevent+jwt"})),
    bearer("typ of an authorization request", lambda i: i.token(headers={"typ": "oauth-authz-req+jwt"})),
    bearer("typ as array", lambda i: i.token(headers={"typ": ["JWT"]})),
    bearer(
        "bound to a key (DPoP)", lambda i: i.token(cnf={"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"})
    ),
    bearer(
        "bound to a certificate",
        lambda i: i.token(cnf={"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"}),
    ),
    # --- iss ---
    bearer("other issuer", lambda i: i.token(iss="https://elsewhere.example/")),
    bearer("issuer without its slash", lambda i: i.token(iss=i.name.removesuffix("/"))),
    bearer("issuer with something behind it", lambda i: i.token(iss=f"{i.name}.evil.example/")),
    bearer("issuer as a user of somebody's", lambda i: i.token(iss=i.name.replace("http://", "http://x@"))),
    bearer("issuer in other letters", lambda i: i.token(iss=i.name.replace("http", "HTTP"))),
    bearer("issuer with a blank", lambda i: i.token(iss=f" {i.name}")),
    bearer("issuer as array", lambda i: i.token(iss=[i.name])),
    bearer("issuer as object", lambda i: i.token(iss={i.name: 1})),
    bearer("no issuer", lambda i: i.token(iss=None)),
    # --- aud ---
    bearer("other audience", lambda i: i.token(aud="another-api")),
    bearer("audience that begins like ours", lambda i: i.token(aud=f"{AUDIENCE}-2")),
    bearer("audience that is a part of ours", lambda i: i.token(aud=AUDIENCE[:-1])),
    bearer("audiences of others", lambda i: i.token(aud=["another-api", "third-api"])),
    bearer("audience as bool", lambda i: i.token(aud=True)),
    bearer("audience as object", lambda i: i.token(aud={AUDIENCE: 1})),
    bearer("audience as array of numbers", lambda i: i.token(aud=[1, 2])),
    bearer("audience as array in an array", lambda i: i.token(aud=[[AUDIENCE]])),
    bearer("audience as empty array", lambda i: i.token(aud=[])),
    bearer("no audience", lambda i: i.token(aud=None)),
    # --- times ---
    bearer("expired", lambda i: i.token(exp=int(NOW()) - 61), "bearer_expired"),
    bearer("expired before the epoch", lambda i: i.token(exp=-1), "bearer_expired"),
    bearer("no expiry", lambda i: i.token(exp=None)),
    bearer("expiry as bool", lambda i: i.token(exp=True)),
    bearer("expiry as text", lambda i: i.token(exp="99999999999")),
    bearer("expiry as array", lambda i: i.token(exp=[99999999999])),
    bearer("expiry null", lambda i: raw_expiry(i, "null")),
    bearer("expiry infinite", lambda i: raw_expiry(i, "1e999")),
    bearer("expiry beyond any float", lambda i: raw_expiry(i, "9" * 400)),
    bearer("expiry beyond any number", lambda i: raw_expiry(i, "9" * 5000)),
    bearer("expiry not a number", lambda i: i.token(exp=math.nan)),
    bearer("not yet valid", lambda i: i.token(nbf=int(NOW()) + 120)),
    bearer("valid in a thousand years", lambda i: i.token(nbf=int(NOW()) + 31_557_600_000)),
    bearer("start as bool", lambda i: i.token(nbf=True)),
    bearer("start beyond any float", lambda i: i.token(nbf=10**400)),
    bearer("issued in the future", lambda i: i.token(iat=int(NOW()) + 120)),
    bearer("issued as array", lambda i: i.token(iat=[1])),
    # --- who it is ---
    bearer("subject as array", lambda i: i.token(sub=["robot"])),
    bearer("no client", lambda i: i.token(sub=None, azp=None)),
    bearer("client of a thousand letters", lambda i: i.token(sub="c" * 1000, azp="c" * 1000)),
    bearer("id of the token as number", lambda i: i.token(jti=1)),
    # --- shapes ---
    bearer("claims are an array", lambda i: i.token(raw_claims=b"[1]")),
    bearer("claims are a text", lambda i: i.token(raw_claims=b'"iss"')),
    bearer("claims are nothing", lambda i: i.token(raw_claims=b"")),
    bearer("claims nested deep", lambda i: i.token(raw_claims=b"[" * 4000)),
    bearer("claims not UTF-8", lambda i: i.token(raw_claims=b"\xff\xfe")),
    bearer("header nested deep", lambda i: raw_header(i, b"[" * 4000)),
    bearer("header is an array", lambda i: raw_header(i, b"[]")),
    bearer(
        "header says alg twice", lambda i: raw_header(i, b'{"kid": "first", "alg": "RS256", "alg": "none"}')
    ),
    bearer("oversized", lambda i: i.token(padding="x" * BEARER_LENGTH_MAX)),
    bearer("oversized payload of a forgery", lambda i: hand_made(i, padding="x" * 1_000_000)),
    bearer("encrypted", encrypted),
    bearer("nested", nested),
    bearer("four parts", lambda i: i.token() + ".AAAA"),
    bearer("five parts", lambda i: i.token() + ".AAAA.AAAA"),
    bearer("two parts", lambda i: i.token().rsplit(".", 1)[0]),
    bearer("padded", lambda i: i.token() + "=="),
    bearer("other alphabet of base64", lambda i: i.token() + "+/"),
    bearer("blank within", lambda i: i.token().replace(".", ". ", 1)),
    bearer("NUL within", lambda i: i.token().replace(".", ".\0", 1)),
    bearer("line end within", lambda i: i.token().replace(".", ".\n", 1)),
    bearer("tab within", lambda i: i.token().replace(".", ".\t", 1)),
    bearer("latin letters", lambda i: i.token() + "\xe9"),
    bearer("opaque", lambda _: "opaque"),
    bearer("dots alone", lambda _: ".."),
    bearer("null", lambda _: "null"),
    # --- the header around it ---
    header("two in one header", lambda i: f"Bearer {i.token()}, {i.token()}"),
    header("two joined by a server", lambda i: f"Bearer {i.token()},Bearer {i.token()}"),
    header("the scheme twice", lambda i: f"Bearer Bearer {i.token()}"),
    header("quoted", lambda i: f'Bearer "{i.token()}"'),
    header("as a parameter", lambda i: f"Bearer token={i.token()}"),
    header("scheme without token", lambda _: "Bearer", "bearer_invalid"),
    header("no scheme", lambda i: i.token(), "bearer_missing"),
    header("tab behind the scheme", lambda i: f"Bearer\t{i.token()}", "bearer_missing"),
    header("another scheme", lambda i: f"Token {i.token()}", "bearer_missing"),
    header("DPoP as scheme", lambda i: f"DPoP {i.token()}", "bearer_missing"),
    header("HTTP Basic", lambda _: "Basic cm9ib3Q6c2VjcmV0", "bearer_missing"),
    # --- where no credentials belong ---
    whole("no credentials", lambda _: Sent(authorization=None, token=None), "bearer_missing"),
    whole("no bearer token", lambda _: Sent(authorization=None), "bearer_missing"),
    whole(
        "bearer token in the query",
        lambda t: Sent(
            authorization=None, query={"access_token": t.issuer.token(), "token": t.issuer.token()}
        ),
        "bearer_missing",
    ),
    whole(
        "bearer token in the body",
        lambda t: Sent(authorization=None, body={"access_token": t.issuer.token()}),
        "bearer_missing",
    ),
    whole(
        "bearer token in a cookie",
        lambda t: Sent(authorization=None, extra={"Cookie": f"access_token={t.issuer.token()}"}),
        "bearer_missing",
    ),
    whole(
        "bearer token in a header of a proxy",
        lambda t: Sent(
            authorization=None,
            extra={
                "Proxy-Authorization": f"Bearer {t.issuer.token()}",
                "X-Forwarded-Authorization": f"Bearer {t.issuer.token()}",
            },
        ),
        "bearer_missing",
    ),
    whole(
        "user of a proxy",
        lambda _: Sent(authorization=None, extra={"Remote-User": "root", "X-Forwarded-User": "root"}),
        "bearer_missing",
    ),
    whole(
        "management token in the query",
        lambda t: Sent(
            authorization=f"Bearer {t.issuer.token()}",
            token=None,
            query={"X-Management-Token": ROOT, "management_token": t.site_token},
        ),
        "management_token_missing",
    ),
    whole(
        "management token in the body",
        lambda t: Sent(
            authorization=f"Bearer {t.issuer.token()}", token=None, body={"management_token": ROOT}
        ),
        "management_token_missing",
    ),
    whole(
        "management token in a cookie",
        lambda t: Sent(
            authorization=f"Bearer {t.issuer.token()}",
            token=None,
            extra={"Cookie": f"X-Management-Token={ROOT}"},
        ),
        "management_token_missing",
    ),
    # --- management tokens ---
    management("management token absent", lambda _: "", "management_token_missing"),
    management("management token of blanks", lambda _: "   ", "management_token_missing"),
    management("site token in upper case", lambda t: t.site_token.upper()),
    management("site token with its digits in upper case", lambda t: "tok_" + upper_digits(t.site_token)),
    management("site token without its prefix", lambda t: t.site_token.removeprefix("tok_")),
    management("site token with a blank within", lambda t: f"{t.site_token[:10]} {t.site_token[10:]}"),
    management("site token with a digit more", lambda t: t.site_token + "0"),
    management("site token with a digit less", lambda t: t.site_token[:-1]),
    management("site token with a pattern", lambda _: "tok_" + "_" * 32),
    management("site token with NUL", lambda t: t.site_token + "\0"),
    management("site token with digits of another script", lambda t: t.site_token[:-1] + "\u0661"),
    management("site token twice", lambda t: f"{t.site_token},{t.site_token}"),
    management("site token and root token", lambda t: f"{t.site_token},{ROOT}"),
    management("site token behind a scheme", lambda t: f"Bearer {t.site_token}"),
    management("site token that nobody has", lambda _: "tok_" + "0" * 32),
    management("site token that was deleted", lambda t: t.deleted_token),
    management("root token with a letter less", lambda _: ROOT[:-1]),
    management("root token with a letter more", lambda _: ROOT + "x"),
    management("root token in upper case", lambda _: ROOT.upper()),
    management("root token twice", lambda _: f"{ROOT},{ROOT}"),
    management("both root tokens", lambda _: f"{ROOT},{OTHER_ROOT}"),
    management("root token that has gone", lambda _: "root_0cc175b9c0f1b6a831c399e269772661"),
    management("bearer token as management token", lambda t: t.issuer.token()[:250]),
    management("whole bearer token as management token", lambda t: t.issuer.token()),
    management("management token of many letters", lambda _: "x" * 100_000),
    management("management token in latin letters", lambda _: "\xe9" * 20),
    management("management token with a wildcard", lambda _: "tok_%"),
    header("site token as bearer token", lambda _: "Bearer tok_" + "0" * 32),
    header("root token as bearer token", lambda _: f"Bearer {ROOT}"),
]


@pytest.fixture(scope="module")
def issuer() -> Iterator[TokenIssuer]:
    with token_issuer_running() as running:
        yield running


@pytest.fixture
def target(issuer: TokenIssuer, settings: Settings) -> Target:
    settings.SGM_ISSUERS = [{"issuer": issuer.name, "audience": AUDIENCE, "jwks_url": issuer.url}]
    settings.SGM_ROOT_TOKENS = [ROOT, OTHER_ROOT]
    site = site_create(site_tag="here", name="Here")
    kept, deleted = (token_issue(name=name, sites=[site]) for name in ("kept", "deleted"))
    found = Target(issuer=issuer, site_token=token_value(kept), deleted_token=token_value(deleted))
    token_revoke(token=deleted)
    return found


def send(sent: Sent) -> Any:
    headers = {**sent.extra}
    if sent.authorization is not None:
        headers["Authorization"] = sent.authorization
    if sent.token is not None:
        headers["X-Management-Token"] = sent.token
    if sent.body is None:
        return Client().get("/v1/ping", sent.query, headers=headers)
    return Client().generic(
        "GET", "/v1/ping", json.dumps(sent.body), content_type="application/json", headers=headers
    )


def is_let_in(target: Target, *, token: str) -> bool:
    good = Sent(authorization=f"Bearer {target.issuer.token()}", token=token)
    return bool(send(good).status_code == 200)


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_forged_request_is_refused(
    target: Target,
    row: Row,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert is_let_in(target, token=target.site_token)
    fetches = target.issuer.fetches
    caplog.set_level("DEBUG")
    capfd.readouterr()
    sent = row.forge(target)

    answer = send(sent)

    assert (answer.status_code, answer.json()["code"]) == (row.status, row.code)
    assert set(answer.json()) == {"detail", "code", "errors", "request_id"}
    # RFC 6750, section 3.1: an error is named where a bearer token was sent and was bad.
    is_about_bearer = row.code in {"bearer_invalid", "bearer_expired"}
    suffix = ', error="invalid_token"' if is_about_bearer else ""
    assert answer["WWW-Authenticate"] == f'Bearer realm="smart-grid-manager"{suffix}'
    told = answer.content.decode() + repr(dict(answer.headers))
    written = "".join((*capfd.readouterr(), caplog.text))
    for part in parts(sent):
        assert part not in told
        assert part not in written
    assert target.issuer.fetches == fetches


def parts(sent: Sent) -> set[str]:
    """Whatever of the credentials is long enough to be of use to somebody."""
    texts = [
        sent.authorization or "",
        sent.token or "",
        *sent.query.values(),
        *(sent.body or {}).values(),
        *sent.extra.values(),
    ]
    words = {word for text in texts for word in re.split(r"[\s.,=\"]+", text)}
    # Names of headers are no secrets, and short words such as `opaque` are ours as well.
    return {word for word in words if len(word) >= 16 and not word.endswith("Token")}


def test_names_of_the_table_are_told_apart() -> None:
    names = [row.name for row in TABLE]

    assert len(set(names)) == len(names)


# --- what no single request shows -----------------------------------------------------------------------------


def test_root_token_is_exchanged_without_a_gap(target: Target, settings: Settings) -> None:
    good = f"Bearer {target.issuer.token()}"

    def opens(token: str) -> bool:
        return bool(send(Sent(authorization=good, token=token)).status_code == 200)

    settings.SGM_ROOT_TOKENS = [ROOT]
    assert (opens(ROOT), opens(OTHER_ROOT)) == (True, False)
    settings.SGM_ROOT_TOKENS = [ROOT, OTHER_ROOT]
    assert (opens(ROOT), opens(OTHER_ROOT)) == (True, True)
    settings.SGM_ROOT_TOKENS = [OTHER_ROOT]
    assert (opens(ROOT), opens(OTHER_ROOT)) == (False, True)


def test_empty_root_token_in_the_settings_opens_nothing(target: Target, settings: Settings) -> None:
    settings.SGM_ROOT_TOKENS = [""]
    good = f"Bearer {target.issuer.token()}"

    assert send(Sent(authorization=good, token="")).json()["code"] == "management_token_missing"
    assert send(Sent(authorization=good, token=ROOT)).json()["code"] == "management_token_invalid"


def test_blanks_around_a_header_are_no_part_of_it(target: Target) -> None:
    # RFC 9110, section 5.5: servers take them away, and some do not.
    sent = Sent(authorization=f"  bearer   {target.issuer.token()} ", token=f" {target.site_token}  ")

    assert send(sent).status_code == 200


def test_key_of_one_issuer_signs_nothing_for_another(target: Target, settings: Settings) -> None:
    with token_issuer_running() as other:
        other.key = signing_key("others")
        other.document = jwks_document(other.key)
        settings.SGM_ISSUERS = [
            *settings.SGM_ISSUERS,
            {"issuer": other.name, "audience": AUDIENCE, "jwks_url": other.url},
        ]
        forged = [
            other.token(iss=target.issuer.name),
            other.token(iss=target.issuer.name, headers={"kid": target.issuer.key.kid}),
        ]

        assert send(Sent(authorization=f"Bearer {other.token()}")).status_code == 200
        for token in forged:
            assert send(Sent(authorization=f"Bearer {token}")).json()["code"] == "bearer_invalid"


def test_untrusted_issuer_is_never_asked(target: Target) -> None:
    with token_issuer_running() as stranger:
        tokens = [
            stranger.token(),
            by_a_stranger(target.issuer, jku=stranger.url, x5u=stranger.url, kid="unknown"),
        ]
        for token in tokens:
            assert send(Sent(authorization=f"Bearer {token}")).status_code == 401

        assert stranger.fetches == 0


def test_flood_of_unknown_keys_asks_the_issuer_once_a_cool_down(target: Target) -> None:
    now = 1000.0
    cache = KeyCache(name="flooded", fetch=lambda: keys_fetch_url(target.issuer.url), clock=lambda: now)
    cool_downs, fetches = 5, target.issuer.fetches

    for number in range(int(COOL_DOWN_S) * cool_downs):
        assert cache.key_find(f"unknown-{number}") is None
        assert cache.key_find("first") is not None
        now += 1

    assert target.issuer.fetches == fetches + cool_downs


def test_weak_key_of_an_issuer_verifies_nothing(target: Target, settings: Settings) -> None:
    weak = signing_key("weak", bits=1024)
    with token_issuer_running() as careless:
        careless.document = jwks_document(weak, signing_key("first"))
        settings.SGM_ISSUERS = [{"issuer": careless.name, "audience": AUDIENCE, "jwks_url": careless.url}]

        assert send(Sent(authorization=f"Bearer {careless.token()}")).status_code == 200
        assert send(Sent(authorization=f"Bearer {careless.token(key=weak)}")).status_code == 401


# --- the same door as a process, over a bare socket -----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Wire:
    """A web server of production, and the issuer that it trusts."""

    port: int
    issuer: TokenIssuer

    def status(self, *lines: bytes, path: bytes = b"/v1/ping") -> int:
        """The status that a request with these header lines gets, byte for byte; 0: hung up on."""
        request = b"GET " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        request += b"".join(line + b"\r\n" for line in lines) + b"\r\n"
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            try:
                connection.sendall(request)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            except (BrokenPipeError, ConnectionResetError):
                return 0
        return int(answer.split(b" ", 2)[1]) if answer else 0


@pytest.fixture(scope="module")
def wire(issuer: TokenIssuer) -> Iterator[Wire]:
    with web_server_running(issuer) as port:
        yield Wire(port=port, issuer=issuer)


@contextmanager
def web_server_running(issuer: TokenIssuer) -> Iterator[int]:
    """granian as the demo and the units start it. Pings as root touch no database, so it has none."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="sgm-web-") as directory:
        env = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "smartgrid.settings",
            "SGM_SECRET_KEY": "only for tests, and long enough to keep Django's checks content 0123456789",
            "SGM_DATABASE_URL": f"sqlite:///{directory}/none.sqlite3",
            "SGM_ROOT_TOKENS": f"{ROOT},{OTHER_ROOT}",
            "SGM_TOKEN_HASH_KEY": "hash key for tests",
            "SGM_TOKEN_ENCRYPTION_KEYS": base64url(os.urandom(32)) + "=",
            "SGM_ISSUERS": json.dumps(
                [{"issuer": issuer.name, "audience": AUDIENCE, "jwks_url": issuer.url}]
            ),
        }
        with Path(directory, "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(str(Path(sys.executable).with_name("granian")), "--interface", "wsgi"),
                    *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
                    *("--blocking-threads", "8", "--workers-kill-timeout", "3"),
                    "smartgrid.wsgi:application",
                ],
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            probe = Wire(port=port, issuer=issuer)
            until(lambda: answers(probe), what="the web server did not answer")
            yield port
        finally:
            process.terminate()
            process.wait(timeout=20)


def answers(probe: Wire) -> bool:
    try:
        return probe.status(path=b"/healthz") == 200
    except OSError:
        return False


GOOD_TOKEN = b"X-Management-Token: " + ROOT.encode()

WIRE_TABLE: dict[str, tuple[Callable[[bytes], list[bytes]], frozenset[int]]] = {
    # How the header lines are made of a good bearer token; the statuses, one of which answers.
    "two Authorization headers": (
        lambda good: [b"Authorization: Bearer " + good, b"Authorization: Bearer " + good, GOOD_TOKEN],
        frozenset({401}),
    ),
    "a good Authorization header behind a bad one": (
        lambda good: [b"Authorization: Bearer x", b"Authorization: Bearer " + good, GOOD_TOKEN],
        frozenset({401}),
    ),
    "a good Authorization header before a bad one": (
        lambda good: [b"Authorization: Bearer " + good, b"Authorization: Basic eDp5", GOOD_TOKEN],
        frozenset({401}),
    ),
    "an Authorization header in other letters beside it": (
        lambda good: [b"AUTHORIZATION: Bearer " + good, b"authorization: Bearer x", GOOD_TOKEN],
        frozenset({401}),
    ),
    "two management tokens": (
        lambda good: [b"Authorization: Bearer " + good, GOOD_TOKEN, GOOD_TOKEN],
        frozenset({401}),
    ),
    "two management tokens, both good": (
        lambda good: [
            b"Authorization: Bearer " + good,
            GOOD_TOKEN,
            b"x-management-token: " + OTHER_ROOT.encode(),
        ],
        frozenset({401}),
    ),
    "an empty management token before a good one": (
        lambda good: [b"Authorization: Bearer " + good, b"X-Management-Token:", GOOD_TOKEN],
        frozenset({401}),
    ),
    "a folded header": (
        lambda good: [b"Authorization: Bearer", b" " + good, GOOD_TOKEN],
        frozenset({400, 401}),
    ),
    "a blank before the colon": (
        lambda good: [b"Authorization : Bearer " + good, GOOD_TOKEN],
        frozenset({400, 401}),
    ),
    "NUL in the token": (
        lambda good: [b"Authorization: Bearer " + good + b"\0", GOOD_TOKEN],
        frozenset({400, 401}),
    ),
    "a control character in the token": (
        lambda good: [b"Authorization: Bearer " + good + b"\x01", GOOD_TOKEN],
        frozenset({400, 401}),
    ),
    "a bare line feed in the header": (
        lambda good: [b"Authorization: Bearer x\nAuthorization: Bearer " + good, GOOD_TOKEN],
        frozenset({400, 401}),
    ),
    "bytes that are no text": (
        lambda good: [b"Authorization: Bearer " + good + b"\xff\xfe", GOOD_TOKEN],
        frozenset({400, 401}),
    ),
    "a bearer token of 100 kB": (
        lambda good: [b"Authorization: Bearer " + good + b"A" * 100_000, GOOD_TOKEN],
        frozenset({401, 431}),
    ),
    "a bearer token of 4 MB": (
        lambda good: [b"Authorization: Bearer " + good + b"A" * 4_000_000, GOOD_TOKEN],
        frozenset({0, 400, 401, 431}),
    ),
    "ten thousand headers": (
        lambda good: (
            [b"X-%d: x" % number for number in range(10_000)] + [b"Authorization: Bearer " + good, GOOD_TOKEN]
        ),
        frozenset({0, 400, 401, 431}),
    ),
}


@pytest.mark.parametrize("name", WIRE_TABLE)
def test_forged_request_is_refused_on_the_wire(wire: Wire, name: str) -> None:
    build, statuses = WIRE_TABLE[name]
    good = wire.issuer.token().encode()
    assert wire.status(b"Authorization: Bearer " + good, GOOD_TOKEN) == 200

    assert wire.status(*build(good)) in statuses

    assert wire.status(b"Authorization: Bearer " + good, GOOD_TOKEN) == 200


def test_flood_of_unknown_keys_from_many_sides_costs_the_issuer_nothing(wire: Wire) -> None:
    good = wire.issuer.token().encode()
    assert wire.status(b"Authorization: Bearer " + good, GOOD_TOKEN) == 200
    before = wire.issuer.fetches
    flood = [wire.issuer.token(headers={"kid": f"unknown-{number}"}).encode() for number in range(80)]
    statuses: list[int] = []

    def attack(part: list[bytes]) -> None:
        statuses.extend(wire.status(b"Authorization: Bearer " + token, GOOD_TOKEN) for token in part)

    threads = [threading.Thread(target=attack, args=(flood[start::8],)) for start in range(8)]
    for thread in threads:
        thread.start()
    assert wire.status(b"Authorization: Bearer " + good, GOOD_TOKEN) == 200
    for thread in threads:
        thread.join(30)

    assert statuses == [401] * len(flood)
    assert wire.issuer.fetches <= before + 1
