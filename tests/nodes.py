"""A node's side of its identity, for tests: keys, signing requests and signatures."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge.wire.enrolment import confirmation_statement, renewal_statement


def key_make() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass
class Key:
    """A key of a node's own, and what it asks for and signs with it."""

    private: ec.EllipticCurvePrivateKey = field(default_factory=key_make)

    @property
    def pem(self) -> str:
        return self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()

    def csr(self, *, common_name: str = "whatever") -> str:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(name)
        signed = request.sign(self.private, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM).decode()

    def sign(self, statement: bytes) -> str:
        return base64.b64encode(self.private.sign(statement, ec.ECDSA(hashes.SHA256()))).decode()

    def renewal(self, *, challenge: str, certificate: str, csr: str) -> dict[str, str]:
        """What `certificate_renew` and `/enroll/renew` take, signed with this key."""
        fingerprint = fingerprint_of(certificate)
        statement = renewal_statement(challenge=challenge, fingerprint=fingerprint, csr=csr)
        return {
            "challenge": challenge,
            "fingerprint": fingerprint,
            "csr": csr,
            "signature": self.sign(statement),
        }

    def confirmation(self, *, challenge: str, certificate: str) -> dict[str, str]:
        fingerprint = fingerprint_of(certificate)
        statement = confirmation_statement(challenge=challenge, fingerprint=fingerprint)
        return {"challenge": challenge, "fingerprint": fingerprint, "signature": self.sign(statement)}

    def with_certificate(self, path: Path, certificate: str) -> Path:
        """A file with both, as a TLS client reads it."""
        path.write_text(self.pem + certificate)
        return path


def certificate_read(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def fingerprint_of(pem: str) -> str:
    return certificate_read(pem).fingerprint(hashes.SHA256()).hex()
