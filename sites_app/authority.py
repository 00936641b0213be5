"""The private authority on disk: two roots, what they issue, and the list of what is revoked.

`central` vouches for the broker and for central's own processes, `nodes` for nodes and nothing else: the key
that must lie on a server, because nodes enrol and renew by themselves, makes nobody central (ADR 0016).
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge.wire.enrolment import ISSUED_EARLIER_S
from edge.wire.topics import CENTRAL_RIGHTS, central_acl_lines, node_acl_lines
from smartgrid import mosquitto
from smartgrid.errors import Conflict, Invalid, Unavailable

ROOT_LIFE = timedelta(days=20 * 365)
SERVICE_LIFE = timedelta(days=2 * 365)
CSR_LENGTH_MAX = 8192
CENTRAL, NODES = "central", "nodes"
# Central's processes at the broker.
SERVICES = ("central-worker", "central-inbox")
# All that the broker reads lies in one place below the authority's directory.
BROKER = "broker"
# Key and certificate in one file, as everywhere here: both are replaced in one step.
SERVER = f"{BROKER}/{mosquitto.SERVER}"


class AuthorityUnusable(Unavailable):
    """The authority's directory or one of its keys cannot be used; says which and what to do."""

    code = "authority_unusable"


@dataclass(frozen=True, slots=True)
class Root:
    """One root: its certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return certificate_pem(self.certificate)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is to be known of an issued certificate. `fingerprint`: SHA-256 of its DER, hex."""

    pem: str
    serial: str
    fingerprint: str
    key_digest: str
    not_before: datetime
    not_after: datetime


# --- the directory --------------------------------------------------------------------------------------


def authority_make(
    *,
    directory: Path,
    hosts: Sequence[str],
    now: datetime,
    password: str = "",
    broker_files: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Make both roots, the broker's certificate for these hosts and those of central's processes.

    `broker_files`: what else is to lie where the broker's files are, name -> content.

    All of it appears in one step or not at all. `Conflict` where there is something already: a new root would
    disown every node. With a password the keys of the roots are encrypted.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise Conflict(f"{directory} is not empty: an authority is made once.", code="authority_exists")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        try:
            # The broker's user passes through here to what is its own, and can list and read nothing else.
            unfinished.chmod(0o711)
            (unfinished / BROKER).mkdir(mode=0o750)
            nodes = _root_write(unfinished, NODES, password=password, now=now)
            for name, content in broker_files.items():
                write(unfinished / BROKER / name, content, mode=0o640)
            _central_write(unfinished, hosts=hosts, password=password, now=now)
            broker_files_write(directory=unfinished, nodes=nodes, revoked={}, denied=(), now=now)
            os.rename(unfinished, directory)  # noqa: PTH104 - the atomic step deserves its plain name
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    except OSError as error:
        raise AuthorityUnusable(f"{directory} cannot be written: {error}") from error


def central_replace(*, directory: Path, now: datetime, password: str = "") -> None:
    """Another root for the broker and central's processes, and all it vouches for, in the old one's place.

    Repeat it where it was broken off: it begins anew. Nodes and what vouches for them are left alone.
    """
    root_certificate(directory, CENTRAL)
    try:
        _central_write(directory, hosts=server_hosts(directory), password=password, now=now)
    except OSError as error:
        raise AuthorityUnusable(f"{directory} cannot be written: {error}") from error


def _central_write(directory: Path, *, hosts: Sequence[str], password: str, now: datetime) -> None:
    root = _root_write(directory, CENTRAL, password=password, now=now)
    server_issue(directory=directory, root=root, hosts=hosts, now=now)
    for user in SERVICES:
        service_issue(directory=directory, root=root, user=user, now=now)


def _root_write(directory: Path, name: str, *, password: str, now: datetime) -> Root:
    root = _root_make(f"Smart Grid Manager {name}", now)
    write(directory / f"{name}-ca.key", _key_pem(root.key, password), mode=0o600)
    write(directory / f"{name}-ca.pem", root.pem, mode=0o644)
    write(directory / BROKER / f"{name}-ca.pem", root.pem, mode=0o640)
    return root


def root_load(directory: Path, name: str, *, password: str = "") -> Root:
    """One root with its key; `AuthorityUnusable` says what is missing."""
    if directory == Path():
        raise AuthorityUnusable(
            "SGM_CA_DIR is not set: where is the authority? `manage.py ca init` makes one."
        )
    path = directory / f"{name}-ca.key"
    try:
        found = serialization.load_pem_private_key(path.read_bytes(), password.encode() or None)
    except FileNotFoundError as error:
        raise AuthorityUnusable(
            f"{path} is not there. `manage.py ca init` makes an authority; a key that was put away is needed"
            " for this."
        ) from error
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        hint = (
            "SGM_CA_PASSWORD is set and the key is not encrypted" if password else "is SGM_CA_PASSWORD set?"
        )
        raise AuthorityUnusable(f"{path} cannot be read: {error} ({hint})") from error
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise AuthorityUnusable(f"{path} is not a key of an elliptic curve.")
    return Root(root_certificate(directory, name), found)


def root_certificate(directory: Path, name: str) -> x509.Certificate:
    path = directory / f"{name}-ca.pem"
    if directory == Path():
        raise AuthorityUnusable(
            "SGM_CA_DIR is not set: where is the authority? `manage.py ca init` makes one."
        )
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise AuthorityUnusable(f"{path} cannot be read: {error}") from error


def broker_files_write(
    *,
    directory: Path,
    nodes: Root,
    revoked: Mapping[str, datetime],
    denied: Iterable[str],
    now: datetime,
) -> None:
    """Write what the broker must know: serials it refuses, with when they ended, and nodes that may nothing.

    A file that says so already stays as it is.
    """
    broker = directory / BROKER
    crl = broker / mosquitto.CRL
    if crl_serials(crl) != frozenset(revoked):
        write(crl, crl_pem(nodes, revoked=revoked.items(), now=now), mode=0o640)
    for name, lines in (
        (mosquitto.NODES_ACL, node_acl_lines(denied=denied)),
        (mosquitto.CENTRAL_ACL, central_acl_lines(CENTRAL_RIGHTS)),
    ):
        write(broker / name, "\n".join(lines) + "\n", mode=0o640)


def write(path: Path, content: str, *, mode: int) -> bool:
    """Write a file whole or not at all; False where it says so already."""
    try:
        if path.read_text(encoding="utf-8") == content:
            return False
    except FileNotFoundError:
        pass
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".unfinished-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            # Before the content: a key is never readable to others, not even for a moment.
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)  # noqa: PTH104 - as above
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return True


# --- what is issued -------------------------------------------------------------------------------------


def server_issue(*, directory: Path, root: Root, hosts: Sequence[str], now: datetime) -> Certificate:
    """A new key and certificate for the broker, under each of these names and addresses."""
    if not hosts:
        raise Invalid("The broker needs a host name that nodes reach it by.")
    key = ec.generate_private_key(ec.SECP256R1())
    issued = _issue(
        root, key.public_key(), common_name=hosts[0], organization="", life=SERVICE_LIFE, now=now,
        usage=ExtendedKeyUsageOID.SERVER_AUTH, hosts=hosts,
    )  # fmt: skip
    write(directory / SERVER, _key_pem(key) + issued.pem, mode=0o640)
    return issued


def server_hosts(directory: Path) -> list[str]:
    """The names and addresses of the broker's present certificate."""
    try:
        found = x509.load_pem_x509_certificate((directory / SERVER).read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise AuthorityUnusable(f"{directory / SERVER} cannot be read: {error}") from error
    return [str(name.value) for name in names]


def service_issue(*, directory: Path, root: Root, user: str, now: datetime) -> Certificate:
    """A new key and certificate, in one file, for a process of central's."""
    key = ec.generate_private_key(ec.SECP256R1())
    issued = _issue(
        root, key.public_key(), common_name=user, organization="", life=SERVICE_LIFE, now=now,
        usage=ExtendedKeyUsageOID.CLIENT_AUTH,
    )  # fmt: skip
    write(directory / f"{user}.pem", _key_pem(key) + issued.pem, mode=0o600)
    return issued


def node_issue(
    root: Root,
    public_key: ec.EllipticCurvePublicKey,
    *,
    node: str,
    tenant: str,
    life: timedelta,
    now: datetime,
) -> Certificate:
    """A certificate for a node's key: CN is the node's UUID, O its tenant."""
    return _issue(
        root, public_key, common_name=node, organization=tenant, life=life, now=now,
        usage=ExtendedKeyUsageOID.CLIENT_AUTH,
    )  # fmt: skip


def brief_identity(root: Root, *, node: str, now: datetime) -> tuple[str, str]:
    """Key and certificate (one PEM) that are this node's for five minutes, and the serial."""
    key = ec.generate_private_key(ec.SECP256R1())
    issued = node_issue(root, key.public_key(), node=node, tenant="", life=timedelta(minutes=5), now=now)
    return _key_pem(key) + issued.pem, issued.serial


def crl_pem(root: Root, *, revoked: Iterable[tuple[str, datetime]], now: datetime) -> str:
    """The list of revoked serials. It lapses with the root.

    The broker reads it from its own disk, so its age proves nothing; one that lapsed because nobody renewed
    it would lock out every node.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(root.certificate.subject)
        .last_update(now - timedelta(seconds=ISSUED_EARLIER_S))
        .next_update(root.certificate.not_valid_after_utc)
        .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key()), critical=False
        )
    )
    for serial, at in sorted(revoked):
        entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(at)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(root.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def crl_serials(path: Path) -> frozenset[str] | None:
    """The serials that a list on disk names; None where there is none that can be read."""
    try:
        found = x509.load_pem_x509_crl(path.read_bytes())
    except (OSError, ValueError):
        return None
    return frozenset(serial_text(entry.serial_number) for entry in found)


# --- what nodes send ------------------------------------------------------------------------------------


def csr_public_key(pem: str) -> ec.EllipticCurvePublicKey:
    """The key that a signing request asks for, proved by its own signature; `Invalid` says what is wrong."""
    if len(pem) > CSR_LENGTH_MAX:
        raise Invalid.field("csr", f"longer than {CSR_LENGTH_MAX} characters")
    try:
        request = x509.load_pem_x509_csr(pem.encode("ascii"))
        key = request.public_key()
        is_proved = request.is_signature_valid
    except (ValueError, UnicodeEncodeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise Invalid.field("csr", "not a signing request in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Invalid.field("csr", "expected a key of the curve P-256")
    if not is_proved:
        raise Invalid.field("csr", "it is not signed by its own key")
    return key


def is_signed(*, certificate: str, signature: bytes, statement: bytes) -> bool:
    """Tell whether the key of this certificate (PEM) signed this statement."""
    key = x509.load_pem_x509_certificate(certificate.encode()).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        key.verify(signature, statement, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def key_digest(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the public key, hex: the same key under whatever certificate."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def certificate_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


def pem_fingerprint(pem: str) -> str:
    """Of the first certificate in a PEM; `Invalid` where there is none."""
    try:
        return fingerprint(x509.load_pem_x509_certificate(pem.encode()))
    except ValueError as error:
        raise Invalid("not a certificate in PEM") from error


def serial_text(serial: int) -> str:
    return f"{serial:040x}"


# --- certificates ---------------------------------------------------------------------------------------


def _root_make(common_name: str, now: datetime) -> Root:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = now.astimezone(UTC).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(seconds=ISSUED_EARLIER_S))
        .not_valid_after(now + ROOT_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Root(builder.sign(key, hashes.SHA256()), key)


def _issue(
    root: Root,
    public_key: ec.EllipticCurvePublicKey,
    *,
    common_name: str,
    organization: str,
    life: timedelta,
    now: datetime,
    usage: x509.ObjectIdentifier,
    hosts: Sequence[str] = (),
) -> Certificate:
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization:
        subject.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    # The encoding of a certificate knows whole seconds.
    now = now.astimezone(UTC).replace(microsecond=0)
    not_after = min(now + life, root.certificate.not_valid_after_utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(root.certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(seconds=ISSUED_EARLIER_S))
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key()), critical=False
        )
    )
    if hosts:
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    made = builder.sign(root.key, hashes.SHA256())
    return Certificate(
        pem=certificate_pem(made),
        serial=serial_text(made.serial_number),
        fingerprint=fingerprint(made),
        key_digest=key_digest(public_key),
        not_before=made.not_valid_before_utc,
        not_after=made.not_valid_after_utc,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise Invalid(f"{host!r} is neither a host name in ASCII nor an address.") from error


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey, password: str = "") -> str:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password.encode())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    ).decode()
