"""How a node comes by its identity and renews it: what is said to `/enroll`, over HTTPS and not the broker.

A node makes its key itself and keeps it; central answers its signing request with a certificate whose subject
central decides. A renewal is signed with the key of the certificate that is to be replaced, over a challenge
of central's: no clock but central's is involved.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from edge.wire.messages import Message

# Certificates begin this much before they are issued: the broker's clock may be behind central's.
ISSUED_EARLIER_S = 300
# The secret, and where central's HTTPS certificate is of a private authority its fingerprint.
_TOKEN = re.compile(r"enr_[A-Za-z0-9_-]{43}(?:\.([0-9a-f]{64}))?")

AUTHORITY_PATH = "/enroll/authority"
ENROL_PATH = "/enroll"
CHALLENGE_PATH = "/enroll/challenge"
RENEW_PATH = "/enroll/renew"
CONFIRM_PATH = "/enroll/confirm"


def token_draw(*, fingerprint: str = "") -> str:
    """A one-time token; `fingerprint` (SHA-256, hex) pins the authority of central's HTTPS certificate."""
    secret = f"enr_{secrets.token_urlsafe(32)}"
    return f"{secret}.{fingerprint}" if fingerprint else secret


def is_token(text: str) -> bool:
    return _TOKEN.fullmatch(text) is not None


def token_fingerprint(token: str) -> str:
    """The fingerprint that a token carries, empty where it has none; `ValueError` where it is no token."""
    found = _TOKEN.fullmatch(token)
    if found is None:
        raise ValueError(
            "an enrolment token begins with enr_ and has 47 characters, or 112 with a fingerprint"
        )
    return found.group(1) or ""


class EnrolRequest(Message, frozen=True, kw_only=True):
    """The token, and a signing request (PKCS #10, PEM). The subject of the request does not matter."""

    token: str
    csr: str


class Challenge(Message, frozen=True, kw_only=True):
    """To be signed once, within a minute."""

    challenge: str


class RenewRequest(Message, frozen=True, kw_only=True):
    """A new key for the node whose present certificate has this `fingerprint` (SHA-256 of its DER, hex).

    `signature`: base64 of an ECDSA signature (SHA-256, DER) by the present key over `renewal_statement`.
    """

    challenge: str
    fingerprint: str
    csr: str
    signature: str


class ConfirmRequest(Message, frozen=True, kw_only=True):
    """The node works with this certificate now; signed by its key over `confirmation_statement`."""

    challenge: str
    fingerprint: str
    signature: str


class Issued(Message, frozen=True, kw_only=True):
    """Who the node is from now on, and where its broker is.

    `certificate`, `authority` (which issued it), `broker_authority` (by which it knows the broker) are PEM.
    """

    node: str
    tenant: str
    certificate: str
    authority: str
    broker: str
    broker_authority: str


def renewal_statement(*, challenge: str, fingerprint: str, csr: str) -> bytes:
    """What a renewal signs: purpose, challenge, the present certificate, and the new key."""
    digest = hashlib.sha256(csr.encode()).hexdigest()
    return f"sgm/v1 renew\n{challenge}\n{fingerprint}\n{digest}".encode()


def confirmation_statement(*, challenge: str, fingerprint: str) -> bytes:
    return f"sgm/v1 confirm\n{challenge}\n{fingerprint}".encode()
