"""`python -m edge enroll`: a fresh computer becomes a node, with a one-time token.

The key is made here and stays here. Whatever step this process dies at, the same command again goes on: the
key is on disk before anybody is asked, and central repeats its answer for the same token and key.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import ipaddress
import json
import os
import ssl
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from edge.runtime.database import StoreFailed
from edge.runtime.identity import (
    IdentityUnusable,
    credentials_write,
    identity_read,
    identity_write,
    is_enrolled,
    key_kept,
    pending_forget,
    pending_key,
)
from edge.wire import codec
from edge.wire.codec import WireError
from edge.wire.enrolment import (
    AUTHORITY_PATH,
    ENROL_PATH,
    EnrolRequest,
    Issued,
    token_fingerprint,
)
from edge.wire.messages import Message
from edge.wire.session import NO_CHECK_TIME

M = TypeVar("M", bound=Message)

ANSWER_TIMEOUT_S = 10.0
ANSWER_LENGTH_MAX = 64 * 1024
HTTP_OK = 200
EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_USAGE = 1, 75, 2


class CentralUnreachable(Exception):  # noqa: N818 - states the fault
    """Nobody answered, or not as central does: worth another try."""


class CentralRefused(Exception):  # noqa: N818
    """Central answered, and said no; its sentence says what to do."""

    def __init__(self, detail: str, *, code: str) -> None:
        super().__init__(detail)
        self.code = code


class Central:
    """Central's HTTPS address, as a node asks it about its identity. Every call blocks."""

    def __init__(self, url: str, *, authority: str = "", is_dated: Callable[[], bool] = lambda: True) -> None:
        """`authority`: PEM of the one that vouches for the server, empty: those this computer knows.

        `ValueError` for an address that would let others read or change what is said.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"https", "http"} or not parts.hostname:
            raise ValueError(f"{url!r} is not an address of central: expected https://host[:port]")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise ValueError(
                f"{url!r}: without TLS anybody on the way could become this node; expected https://"
            )
        self.url = url.rstrip("/")
        self.authority = authority
        self._parts = parts
        self._is_dated = is_dated

    def ask(self, path: str, message: Message | None, kind: type[M]) -> M:
        """POST a message and read the answer; `CentralRefused`, `CentralUnreachable`."""
        body = b"{}" if message is None else codec.encode(message)
        answer = self._exchange("POST", path, body, self._context())
        try:
            return codec.decode(kind, answer)
        except WireError as error:
            raise CentralUnreachable(f"{self.url} answers, but not as central does: {error}") from error

    def tell(self, path: str, message: Message) -> None:
        """POST a message whose answer says nothing but that it was taken."""
        self._exchange("POST", path, codec.encode(message), self._context())

    def pinned_authority(self, fingerprint: str) -> str:
        """The authority that central names, if it is the one with this fingerprint (SHA-256, hex).

        The connection it comes over is not verified, which is why nothing but public text goes over it.
        """
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        pem = self._exchange("GET", AUTHORITY_PATH, None, context).decode("ascii", "replace")
        try:
            der = ssl.PEM_cert_to_DER_cert(pem)
        except ValueError as error:
            raise CentralUnreachable(f"{self.url}{AUTHORITY_PATH} is no certificate: {error}") from error
        found = hashlib.sha256(der).hexdigest()
        if found != fingerprint:
            raise CentralRefused(
                f"{self.url} names an authority with the fingerprint {found}, the token {fingerprint}."
                " Somebody may be in between: do not enrol over this network.",
                code="wrong_authority",
            )
        return pem

    def _context(self) -> ssl.SSLContext | None:
        if self._parts.scheme == "http":
            return None
        context = ssl.create_default_context(cadata=self.authority or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # As at the broker, and only where the server's authority is one that we were given.
        if self.authority and not self._is_dated():
            context.verify_flags = ssl.VerifyFlags(context.verify_flags | NO_CHECK_TIME)
        return context

    def _exchange(self, method: str, path: str, body: bytes | None, context: ssl.SSLContext | None) -> bytes:
        host, port = str(self._parts.hostname), self._parts.port
        connection = (
            http.client.HTTPConnection(host, port, timeout=ANSWER_TIMEOUT_S)
            if self._parts.scheme == "http"
            else http.client.HTTPSConnection(host, port, timeout=ANSWER_TIMEOUT_S, context=context)
        )
        try:
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            connection.request(method, f"{self._parts.path.rstrip('/')}{path}", body=body, headers=headers)
            response = connection.getresponse()
            answer = response.read(ANSWER_LENGTH_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise CentralUnreachable(f"{self.url} cannot be reached: {error}") from error
        finally:
            connection.close()
        if response.status == HTTP_OK:
            return answer
        detail, code = _refusal(answer)
        if code and 400 <= response.status < 500 and response.status != 429:  # noqa: PLR2004
            raise CentralRefused(detail, code=code)
        raise CentralUnreachable(f"{self.url} answers {response.status}: {detail}")


def _refusal(answer: bytes) -> tuple[str, str]:
    """The sentence and the code of central's one shape of error; the code is empty where it is another's."""
    try:
        content = msgspec.json.decode(answer, type=dict[str, object])
    except msgspec.MsgspecError:
        return "it is not central that answers", ""
    return str(content.get("detail", "")), str(content.get("code", ""))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def enroll(*, url: str, token: str, state: Path, fingerprint: str = "", again: bool = False) -> Issued:
    """Make this computer a node, and write down all that `python -m edge node --state` needs.

    Raises what its parts raise; after any of it the same call goes on where this one ended.
    """
    pinned = fingerprint or token_fingerprint(token)
    if is_enrolled(state) and not again and not pending_key(state, token).exists():
        raise IdentityUnusable(
            f"{state} has an identity already, of the node {identity_read(state).node}; --again replaces it"
        )
    central = Central(url)
    if pinned and central.url.startswith("https"):
        central = Central(url, authority=central.pinned_authority(pinned))
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = key_kept(pending_key(state, token))
    issued = central.ask(ENROL_PATH, EnrolRequest(token=token, csr=key.csr()), Issued)
    # The identity names the certificate's node: it comes last, and the key that repeats it goes after it.
    credentials_write(state, key=key, certificate=issued.certificate)
    identity_write(state, issued=issued, url=central.url, url_authority=central.authority)
    pending_forget(state)
    return issued


def main(argv: Sequence[str]) -> int:
    """`python -m edge enroll URL TOKEN --state DIRECTORY`: become the node that the token was issued for."""
    parser = argparse.ArgumentParser(prog="python -m edge enroll", description=main.__doc__)
    parser.add_argument("url", help="central's address, https://host[:port]")
    parser.add_argument(
        "token", help="as `manage.py node enroll NODE` prints it; - reads it from standard input"
    )
    parser.add_argument("--state", required=True, type=Path, help="the node's state directory")
    parser.add_argument(
        "--ca-fingerprint", default="", help="SHA-256 of the authority of central's certificate (hex)"
    )
    parser.add_argument("--again", action="store_true", help="replace the identity that is there")
    options = parser.parse_args(argv)
    token = sys.stdin.readline().strip() if options.token == "-" else options.token
    # Whatever is made below is for its owner alone.
    os.umask(0o077)
    try:
        issued = enroll(
            url=options.url,
            token=token,
            state=options.state,
            fingerprint=options.ca_fingerprint.replace(":", "").lower(),
            again=options.again,
        )
    except ValueError as error:
        parser.error(str(error))
    except CentralUnreachable as error:
        print(f"{error}. Nothing is lost: run the same command again.", file=sys.stderr)  # noqa: T201
        return EXIT_UNREACHABLE
    except (CentralRefused, IdentityUnusable, StoreFailed, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - said to whoever called us
        return EXIT_REFUSED
    print(  # noqa: T201
        json.dumps({"node": issued.node, "tenant": issued.tenant, "broker": issued.broker})
    )
    return 0
