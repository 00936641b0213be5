"""Public keys of token issuers: read from their JWKS, cached, and served on while an issuer is away."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt import PyJWK
from jwt.exceptions import PyJWTError

log = structlog.stdlib.get_logger(__name__)

Keys = Mapping[str, RSAPublicKey]

# A rotated key is honoured within FRESH_S at the latest, a withdrawn one refused.
FRESH_S = 600.0
# How long the last good keys serve while their issuer does not answer.
KEEP_S = 24 * 3600.0
# Between two fetches, whatever asks for them: strangers' tokens must not become load on the issuer.
COOL_DOWN_S = 30.0
# A file costs nobody else anything: a key rotated in it is known a second later.
FILE_COOL_DOWN_S = 1.0
# With no key at all nobody can be let in, so the next try comes sooner.
COLD_COOL_DOWN_S = 3.0
CONNECT_TIMEOUT_S = 2.0
FETCH_DEADLINE_S = 3.0
SIZE_LIMIT_BYTES = 256 * 1024
KEY_COUNT_LIMIT = 64
KEY_SIZE_MIN_BITS = 2048
_SCHEMES = frozenset({"http", "https"})


class KeysUnavailable(Exception):  # noqa: N818 - states the fault
    """No keys are held for this issuer, and none can be had now."""


class FetchFailed(Exception):  # noqa: N818
    """The issuer's keys could not be read; the text says why and holds no secret."""


class KeyCache:
    """The keys of one issuer by `kid`, for many threads.

    A key that is held is answered at once, always: refreshing runs beside the request. Only a token with an
    unknown `kid` may wait for a fetch, one at a time and not more often than the cool-down; meanwhile other
    unknown ones are simply unknown.
    """

    def __init__(
        self,
        *,
        name: str,
        fetch: Callable[[], Keys],
        cool_down_s: float = COOL_DOWN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._fetch = fetch
        self._cool_down_s = cool_down_s
        self._clock = clock
        self._fetching = threading.Lock()
        # Replaced whole, so that readers need no lock.
        self._held: tuple[Keys, float] | None = None
        self._attempted_at: float | None = None
        self._failing_since: float | None = None

    def key_find(self, kid: str) -> RSAPublicKey | None:
        """The key, or None where the issuer knows no such key; KeysUnavailable where nobody can tell."""
        keys = self._keys()
        if keys is not None and kid in keys:
            if self._is_due():
                self._refresh_beside()
            return keys[kid]
        return self._fetch_and_find(kid, seen=keys)

    def _keys(self) -> Keys | None:
        held = self._held
        if held is None or self._clock() - held[1] > KEEP_S:
            return None
        return held[0]

    def _is_due(self) -> bool:
        held = self._held
        return held is not None and self._clock() - held[1] > FRESH_S and not self._is_cooling_down()

    def _is_cooling_down(self) -> bool:
        if self._attempted_at is None:
            return False
        pause_s = self._cool_down_s
        if self._keys() is None:
            pause_s = min(pause_s, COLD_COOL_DOWN_S)
        return self._clock() - self._attempted_at < pause_s

    def _fetch_and_find(self, kid: str, *, seen: Keys | None) -> RSAPublicKey | None:
        # The first requests after a start wait for the one fetch together. Once there are keys nobody waits
        # for another's fetch: a flood of unknown ids would else occupy every thread of the web server.
        wait_s = FETCH_DEADLINE_S if seen is None else 0
        if self._fetching.acquire(blocking=wait_s > 0, timeout=wait_s or -1):
            try:
                if self._keys() is seen and not self._is_cooling_down():
                    self._refresh()
            finally:
                self._fetching.release()
        keys = self._keys()
        if keys is None:
            raise KeysUnavailable(self._name)
        key = keys.get(kid)
        if key is None and self._failing_since is not None:
            # It may be new since the issuer was last heard: the token is not to blame.
            raise KeysUnavailable(self._name)
        return key

    def _refresh_beside(self) -> None:
        if not self._fetching.acquire(blocking=False):
            return

        def refresh() -> None:
            try:
                self._refresh()
            finally:
                self._fetching.release()

        threading.Thread(target=refresh, name=f"jwks {self._name}", daemon=True).start()

    def _refresh(self) -> None:
        """Fetch once; on failure the last good keys stay. The lock is held by the caller."""
        self._attempted_at = self._clock()
        try:
            keys = self._fetch()
        except FetchFailed as error:
            if self._failing_since is None:
                self._failing_since = self._clock()
                log.warning("issuer_keys_unreachable", issuer=self._name, error=str(error))
            return
        now = self._clock()
        self._held = (keys, now)
        if self._failing_since is not None:
            log.info("issuer_keys_back", issuer=self._name, after_s=round(now - self._failing_since))
            self._failing_since = None


def keys_parse(document: bytes) -> Keys:
    """RSA verification keys of a JWKS document by `kid`; others are passed over, none at all is a failure."""
    try:
        content = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise FetchFailed("not JSON") from error
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise FetchFailed("not a JWKS document")
    keys: dict[str, RSAPublicKey] = {}
    for entry in entries[:KEY_COUNT_LIMIT]:
        if isinstance(entry, dict) and (key := _key_parse(entry)) is not None:
            keys[entry["kid"]] = key
    if not keys:
        raise FetchFailed("holds no RSA key that verifies RS256")
    return keys


def _key_parse(entry: Mapping[str, Any]) -> RSAPublicKey | None:
    is_for_us = (
        isinstance(entry.get("kid"), str)
        and entry.get("kty") == "RSA"
        and entry.get("use", "sig") == "sig"
        and entry.get("alg", "RS256") == "RS256"
    )
    if not is_for_us:
        return None
    try:
        # A document that holds private or damaged keys proves nothing by them.
        key = PyJWK.from_dict(dict(entry), algorithm="RS256").key
    except (PyJWTError, ValueError, TypeError):
        return None
    if not isinstance(key, RSAPublicKey) or key.key_size < KEY_SIZE_MIN_BITS:
        return None
    return key


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    # An answer from elsewhere is not the configured issuer's answer.
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


def keys_fetch_url(url: str) -> Keys:
    """The keys behind an http(s) URL: no redirects, bounded in time and size; FetchFailed if not."""
    return keys_parse(_fetch(url, ends_at=time.monotonic() + FETCH_DEADLINE_S))


def keys_fetch_issuer(issuer: str) -> Keys:
    """The keys of an issuer by what it publishes about itself; FetchFailed if it does not.

    OpenID Connect Discovery 1.0, section 4, else RFC 8414, section 3. The document must name the very issuer
    that was asked (there section 4.3, here 3.3), down to a slash at its end. It is read anew each time, since
    an issuer may move its keys; both fetches share one deadline.
    """
    ends_at = time.monotonic() + FETCH_DEADLINE_S
    failures = []
    for url in _metadata_urls(issuer):
        try:
            document = _fetch(url, ends_at=ends_at)
        except FetchFailed as error:
            failures.append(f"{url}: {error}")
            continue
        return keys_parse(_fetch(jwks_uri(document, issuer=issuer), ends_at=ends_at))
    raise FetchFailed("; ".join(failures))


def _metadata_urls(issuer: str) -> tuple[str, str]:
    base = issuer.removesuffix("/")
    parts = urlsplit(base)
    return (
        f"{base}/.well-known/openid-configuration",
        # RFC 8414 puts the name before the path of the issuer, not behind it.
        f"{parts.scheme}://{parts.netloc}/.well-known/oauth-authorization-server{parts.path}",
    )


def jwks_uri(document: bytes, *, issuer: str) -> str:
    """Where the keys are by the issuer's own word, once that word is found to be this issuer's."""
    try:
        content = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise FetchFailed("what the issuer says of itself is not JSON") from error
    if not isinstance(content, dict):
        raise FetchFailed("what the issuer says of itself is not an object")
    if content.get("issuer") != issuer:
        # Said in full: mostly it is a slash too many or too few.
        said = str(content.get("issuer"))[:200]
        raise FetchFailed(f"the issuer calls itself {said!r}, and not {issuer!r}")
    uri = content.get("jwks_uri")
    scheme = _scheme(uri) if isinstance(uri, str) else ""
    if scheme not in _SCHEMES:
        raise FetchFailed("the issuer names no jwks_uri with http or https")
    if _scheme(issuer) == "https" and scheme != "https":
        raise FetchFailed("the issuer is reached with TLS, and its jwks_uri is without")
    return str(uri)


def _scheme(url: str) -> str:
    try:
        return urlsplit(url).scheme
    except ValueError:
        return ""


def _fetch(url: str, *, ends_at: float) -> bytes:
    """What a GET answers: no redirects, and bounded in size and, by the monotonic clock, in time."""
    if _scheme(url) not in _SCHEMES:
        raise FetchFailed("only http and https")
    document = bytearray()
    try:
        timeout_s = min(CONNECT_TIMEOUT_S, ends_at - time.monotonic())
        if timeout_s <= 0:
            raise FetchFailed(f"not read within {FETCH_DEADLINE_S:.0f} s")
        with _opener.open(url, timeout=timeout_s) as response:
            # The socket's timeout counts from each byte; who trickles is held to the deadline here.
            while chunk := response.read1(16 * 1024):
                document += chunk
                if len(document) > SIZE_LIMIT_BYTES:
                    raise FetchFailed(f"larger than {SIZE_LIMIT_BYTES} bytes")
                if time.monotonic() > ends_at:
                    raise FetchFailed(f"not read within {FETCH_DEADLINE_S:.0f} s")
    except urllib.error.HTTPError as error:
        with error:
            raise FetchFailed(f"answered {error.code}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FetchFailed(f"{type(error).__name__}: {error}") from error
    return bytes(document)


def keys_fetch_file(path: Path) -> Keys:
    """The keys of a JWKS file; FetchFailed if it cannot be read."""
    try:
        return keys_parse(path.read_bytes())
    except OSError as error:
        raise FetchFailed(f"{type(error).__name__}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key of the embedded issuer, and the name its tokens carry."""

    kid: str
    private: RSAPrivateKey

    def public_jwk(self) -> dict[str, str]:
        return {**_public_members(self.private.public_key()), "kid": self.kid, "use": "sig", "alg": "RS256"}


def signing_keys_read(path: Path) -> list[SigningKey]:
    """The RSA keys of a PEM file in order: the first signs, all verify. OSError or ValueError if unusable."""
    return signing_keys_parse(path.read_bytes())


def signing_keys_parse(content: bytes) -> list[SigningKey]:
    """The RSA keys of PEM text in order, whatever stands between them; ValueError if unusable."""
    end = b"-----END PRIVATE KEY-----"
    blocks = [block + end for block in content.split(end)[:-1]]
    keys = [load_pem_private_key(block.strip(), password=None) for block in blocks]
    if not keys:
        raise ValueError("no PKCS #8 private key in PEM form")
    found = []
    for key in keys:
        if not isinstance(key, RSAPrivateKey) or key.key_size < KEY_SIZE_MIN_BITS:
            raise ValueError(f"not an RSA key of at least {KEY_SIZE_MIN_BITS} bits")
        found.append(SigningKey(kid=thumbprint(key.public_key()), private=key))
    return found


def keys_fetch_signing_file(path: Path) -> Keys:
    """What the embedded issuer's tokens verify with, from its own key file: no HTTP to ourselves."""
    try:
        return {key.kid: key.private.public_key() for key in signing_keys_read(path)}
    except (OSError, ValueError) as error:
        raise FetchFailed(f"{type(error).__name__}: {error}") from error


def thumbprint(key: RSAPublicKey) -> str:
    """The JWK thumbprint of RFC 7638: SHA-256 over the required members in lexical order, base64url."""
    members = json.dumps(_public_members(key), sort_keys=True, separators=(",", ":"))
    return _base64url(hashlib.sha256(members.encode()).digest())


def _public_members(key: RSAPublicKey) -> dict[str, str]:
    numbers = key.public_numbers()
    return {"e": _base64url_number(numbers.e), "kty": "RSA", "n": _base64url_number(numbers.n)}


def _base64url_number(number: int) -> str:
    return _base64url(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
