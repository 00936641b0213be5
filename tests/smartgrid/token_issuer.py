"""A token issuer with a real JWKS endpoint, whose tokens can be made as good or as bad as a test wants."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from smartgrid.api.jwks import SigningKey

AUDIENCE = "curtailment-api"
# A path that has this as its document is answered 404.
ABSENT = b""


@cache
def signing_key(kid: str, *, bits: int = 2048) -> SigningKey:
    return SigningKey(kid=kid, private=rsa.generate_private_key(public_exponent=65537, key_size=bits))


def jwks_document(*keys: SigningKey) -> bytes:
    return json.dumps({"keys": [key.public_jwk() for key in keys]}).encode()


def base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


class TokenIssuer:
    """Serves `document` with `status` at `url`, `others` at their paths, and counts who asks."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/jwks.json"
        self.name = f"http://127.0.0.1:{port}/"
        self.key = signing_key("first")
        self.document = jwks_document(self.key)
        self.others: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.status = 200
        self.fetches = 0
        self.gate: threading.Event | None = None
        self.reached = threading.Event()

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Good claims with some changed; a change to None takes the claim away."""
        now = int(time.time())
        claims = {
            "iss": self.name,
            "aud": AUDIENCE,
            "sub": "robot@clients",
            "azp": "robot",
            "iat": now,
            "exp": now + 3600,
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self,
        *,
        key: SigningKey | None = None,
        headers: Mapping[str, Any] | None = None,
        raw_claims: bytes | None = None,
        **changes: Any,
    ) -> str:
        """An RS256 token; signed over `raw_claims` byte for byte where those are given."""
        key = key or self.key
        header = {"typ": "JWT", "alg": "RS256", "kid": key.kid, **(headers or {})}
        header = {name: value for name, value in header.items() if value is not None}
        payload = raw_claims if raw_claims is not None else json.dumps(self.claims(**changes)).encode()
        signed = f"{base64url(json.dumps(header).encode())}.{base64url(payload)}"
        algorithm = jwt.get_algorithm_by_name("RS256")
        return f"{signed}.{base64url(algorithm.sign(signed.encode(), key.private))}"

    def public_pem(self) -> bytes:
        return self.key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@contextmanager
def token_issuer_running() -> Iterator[TokenIssuer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.fetches += 1
            issuer.asked.append(self.path)
            issuer.reached.set()
            if issuer.gate is not None:
                issuer.gate.wait(10)
            document = issuer.others.get(self.path, issuer.document)
            self.send_response(404 if document == ABSENT else issuer.status)
            if issuer.status in {301, 302}:
                self.send_header("Location", issuer.url + "?again")
            self.send_header("Content-Length", str(len(document)))
            self.end_headers()
            self.wfile.write(document)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer = TokenIssuer(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield issuer
    finally:
        if issuer.gate is not None:
            issuer.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()
