"""A node's identity on disk: its key, which never leaves, its certificate, and whom it believes.

`identity.json` says who the node is and whom it believes, `identity.pem` holds key and certificate: both are
replaced in one step each, so a process may die between any two.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge.runtime.store import replace_file
from edge.wire.enrolment import ISSUED_EARLIER_S, Issued
from edge.wire.session import Broker, Tls, broker_from_url

IDENTITY, CERTIFICATE = "identity.json", "identity.pem"
# A renewal under way: the new key, before anybody is asked to certify it.
NEXT_KEY, NEXT_CERTIFICATE = "identity.next.key", "identity.next.pem"


class IdentityUnusable(Exception):  # noqa: N818 - states the fault
    """The identity on disk is missing or damaged; says what to do."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who this node is, and whom it believes.

    `url` is where it renews its certificate; `url_authority` the private authority of that server, empty
    where a public one vouches for it. Authorities are PEM.
    """

    node: str
    tenant: str
    broker: str
    broker_authority: str
    url: str
    url_authority: str = ""


@dataclass(frozen=True, slots=True)
class Key:
    """A private key of this node."""

    private: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()

    def csr(self) -> str:
        """A signing request. What stands in it as a name does not matter: central decides that."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
        request = x509.CertificateSigningRequestBuilder().subject_name(name)
        made = request.sign(self.private, hashes.SHA256())
        return made.public_bytes(serialization.Encoding.PEM).decode()

    def sign(self, statement: bytes) -> str:
        return base64.b64encode(self.private.sign(statement, ec.ECDSA(hashes.SHA256()))).decode()

    def is_of(self, certificate: x509.Certificate) -> bool:
        return self.private.public_key() == certificate.public_key()


@dataclass(frozen=True, slots=True)
class Credentials:
    """Key and certificate of this node, as `identity.pem` holds them."""

    key: Key
    certificate: x509.Certificate

    @property
    def fingerprint(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    @property
    def node(self) -> str:
        names = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[0].value) if names else ""

    @property
    def issued_at(self) -> datetime:
        return self.certificate.not_valid_before_utc + timedelta(seconds=ISSUED_EARLIER_S)

    @property
    def not_after(self) -> datetime:
        return self.certificate.not_valid_after_utc


# --- keys -----------------------------------------------------------------------------------------------


def key_kept(path: Path) -> Key:
    """The key in this file; a new one, on disk before it is returned, where there is none."""
    try:
        return _key(path.read_bytes(), path)
    except FileNotFoundError:
        key = Key(ec.generate_private_key(ec.SECP256R1()))
        replace_file(path, key.pem.encode())
        return key


def pending_key(state: Path, token: str) -> Path:
    """Where the key of an enrolment with this token is, so that a repetition asks with the same one."""
    return state / f"enroll-{hashlib.sha256(token.encode()).hexdigest()[:16]}.key"


def _key(pem: bytes, path: Path) -> Key:
    try:
        found = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityUnusable(f"{path} holds no key: {error}; remove it and begin again") from error
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise IdentityUnusable(f"{path} is not a key of an elliptic curve; remove it and begin again")
    return Key(found)


# --- files ----------------------------------------------------------------------------------------------


def is_enrolled(state: Path) -> bool:
    return (state / IDENTITY).exists()


def identity_read(state: Path) -> Identity:
    path = state / IDENTITY
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError as error:
        raise IdentityUnusable(
            f"{path} is not there: `python -m edge enroll` makes it, with a token of `manage.py node enroll`"
        ) from error
    except (OSError, msgspec.MsgspecError) as error:
        raise IdentityUnusable(f"{path} cannot be read: {error}; enrol this node again") from error


def credentials_read(state: Path, *, name: str = CERTIFICATE) -> Credentials:
    path = state / name
    try:
        pem = path.read_bytes()
        certificate = x509.load_pem_x509_certificate(pem)
    except (OSError, ValueError) as error:
        raise IdentityUnusable(f"{path} cannot be read: {error}; enrol this node again") from error
    credentials = Credentials(_key(pem, path), certificate)
    if not credentials.key.is_of(certificate):
        raise IdentityUnusable(f"{path}: key and certificate do not belong together; enrol this node again")
    return credentials


def credentials_write(state: Path, *, key: Key, certificate: str, name: str = CERTIFICATE) -> Credentials:
    """Put key and certificate down in one step; `IdentityUnusable` where they do not belong together."""
    try:
        found = x509.load_pem_x509_certificate(certificate.encode())
    except ValueError as error:
        raise IdentityUnusable(f"central answered with something that is no certificate: {error}") from error
    credentials = Credentials(key, found)
    if not key.is_of(found):
        raise IdentityUnusable("central answered with a certificate for another key than this node's")
    replace_file(state / name, (key.pem + certificate).encode())
    return credentials


def identity_write(state: Path, *, issued: Issued, url: str, url_authority: str) -> Identity:
    identity = Identity(
        node=issued.node,
        tenant=issued.tenant,
        broker=issued.broker,
        broker_authority=issued.broker_authority,
        url=url,
        url_authority=url_authority,
    )
    identity_keep(state, identity)
    return identity


def identity_keep(state: Path, identity: Identity) -> None:
    """Put it down in one step."""
    replace_file(state / IDENTITY, msgspec.json.encode(identity))


def broker_of(
    identity: Identity, state: Path, *, is_dated: Callable[[], bool], name: str = CERTIFICATE
) -> Broker:
    """The broker, as this node comes to it; `IdentityUnusable` where identity and certificate differ."""
    credentials = credentials_read(state, name=name)
    if credentials.node != identity.node:
        raise IdentityUnusable(
            f"{state / name} is of the node {credentials.node}, {state / IDENTITY} of {identity.node}: an"
            " enrolment was broken off. Run the same `python -m edge enroll` again"
        )
    tls = Tls(ca=identity.broker_authority, certificate=state / name, is_dated=is_dated)
    try:
        return broker_from_url(identity.broker, username=None, password=None, tls=tls)
    except ValueError as error:
        raise IdentityUnusable(f"{state / IDENTITY}: {error}; enrol this node again") from error


def broker_followed(identity: Identity, state: Path, *, is_dated: Callable[[], bool]) -> Broker:
    """As `broker_of`, for as long as the node runs: whom it believes is read anew at each connect."""

    def believed() -> str:
        try:
            return identity_read(state).broker_authority
        except IdentityUnusable:
            # A disk that fails costs the node no link.
            return identity.broker_authority

    broker = broker_of(identity, state, is_dated=is_dated)
    tls = Tls(ca=believed, certificate=state / CERTIFICATE, is_dated=is_dated)
    return dataclasses.replace(broker, tls=tls)


def pending_forget(state: Path) -> None:
    """An enrolment is complete: the keys of its attempts are of no use any more."""
    for path in state.glob("enroll-*.key"):
        path.unlink(missing_ok=True)
    for name in (NEXT_KEY, NEXT_CERTIFICATE):
        (state / name).unlink(missing_ok=True)


def move_into_place(state: Path) -> None:
    """Let the renewed certificate be the node's, in one step."""
    os.replace(state / NEXT_CERTIFICATE, state / CERTIFICATE)  # noqa: PTH105 - the atomic step by its plain name
    (state / NEXT_KEY).unlink(missing_ok=True)
