"""Who is which node: one-time tokens, certificates, their renewal and their end (ADR 0016).

Every rule of a node's identity is here. What the broker must know of it (`revocation`) follows from the rows.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from django.conf import settings
from django.core import signing
from django.db import transaction
from django.db.models import Q, QuerySet

from edge.wire.enrolment import (
    Issued,
    confirmation_statement,
    is_token,
    renewal_statement,
    token_draw,
)
from sites_app import authority, tokens
from sites_app.authority import NODES, Root
from sites_app.documents import node_documents_render
from sites_app.models import EnrolmentToken, Node, NodeCertificate, SpentChallenge
from smartgrid.errors import Conflict, Forbidden, Invalid

log = structlog.stdlib.get_logger(__name__)

TOKEN_LIFE = timedelta(hours=24)
CHALLENGE_LIFE = timedelta(seconds=60)
_SALT = "sites_app.identity.challenge"
SUPERSEDED = "superseded"
_ENDED = Q(revoked_at__isnull=False) | Q(node=None)


class EnrolmentRefused(Forbidden):
    """A token, a signature or a challenge that does not hold; the sentence says what to do."""

    code = "enrolment_refused"


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """What is shown once: the token itself is kept nowhere."""

    value: str
    expires_at: datetime


# --- tokens ---------------------------------------------------------------------------------------------


def enrolment_token_issue(*, node: Node, now: datetime, by: str = "") -> IssuedToken:
    """A token with which one computer can become this node within 24 h, as long as the node is of its site.

    One that was issued before is void. `Conflict` while a revoked certificate of the node may still have a
    session at the broker: the new computer would share the node's name with it.
    """
    value = token_draw(fingerprint=https_fingerprint())
    with transaction.atomic():
        node = Node.objects.select_for_update(no_key=True).select_related("site").get(pk=node.pk)
        if denied().filter(common_name=node.pk).exists():
            raise Conflict(
                f"A revoked certificate of {node.name} may still be in use at the broker. Let the revocation"
                " take effect first: `manage.py node revoke` again says what is missing.",
                code="not_evicted",
            )
        node.enrolment_tokens.filter(used_at=None, voided_at=None).update(voided_at=now)
        token = EnrolmentToken.objects.create(
            node=node,
            site=node.site,
            digest=tokens.digest(value),
            created_at=now,
            expires_at=now + TOKEN_LIFE,
            issued_by=by,
        )
    log.info("enrolment_token_issued", node=node.name, site=node.site.site_tag, by=by)
    return IssuedToken(value, token.expires_at)


def https_authority() -> str:
    """PEM of the private authority of central's HTTPS certificate; empty where it is a public one."""
    path = settings.SGM_ENROL_CA_FILE
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise authority.AuthorityUnusable(f"SGM_ENROL_CA_FILE: {path} cannot be read: {error}") from error


def https_fingerprint() -> str:
    """SHA-256 of that authority's certificate, hex; empty where there is none."""
    pem = https_authority()
    return authority.pem_fingerprint(pem) if pem else ""


# --- enrolment ------------------------------------------------------------------------------------------


def node_enrol(*, token: str, csr: str, now: datetime) -> Issued:
    """Make the holder of this token the node it was issued for, and certify the key that they asked with.

    A token is good for one key: of two computers that come at once one is refused. The same key again, while
    the token would be good, gets the same certificate again, for an answer that was lost on its way.
    """
    key = authority.csr_public_key(csr)
    root = nodes_root()
    digests = tokens.digests(token) if is_token(token) else []
    found = EnrolmentToken.objects.filter(digest__in=digests).first()
    if found is None:
        log.warning("enrolment_refused", why="unknown token")
        raise EnrolmentRefused("This token is not known here. `manage.py node enroll NODE` prints one.")
    with transaction.atomic():
        # Its node first, as everybody who changes a node's identity does.
        node = Node.objects.select_for_update(no_key=True).select_related("site").get(pk=found.node_id)
        # What decides between two at once is this row count, also where nothing was locked.
        taken = EnrolmentToken.objects.filter(
            pk=found.pk, used_at=None, voided_at=None, expires_at__gt=now, site=node.site_id
        ).update(used_at=now)
        if taken:
            certificate = _certify(node=node, key=key, root=root, now=now)
            EnrolmentToken.objects.filter(pk=found.pk).update(certificate=certificate)
        else:
            certificate = _again(EnrolmentToken.objects.get(pk=found.pk), node=node, key=key, now=now)
        # In here: what cannot be answered has not happened, and the token is as good as before.
        answer = issued(certificate)
    log.info("node_enrolled", node=node.name, serial=certificate.serial, again=not taken)
    return answer


def _again(
    token: EnrolmentToken, *, node: Node, key: ec.EllipticCurvePublicKey, now: datetime
) -> NodeCertificate:
    """The certificate that was issued for this token and this very key; else why not."""
    certificate = token.certificate
    if token.voided_at is not None:
        why = "This token is void: a newer one took its place, or its node was revoked."
    elif token.expires_at <= now:
        why = f"This token lapsed at {token.expires_at:%Y-%m-%d %H:%M}Z."
    elif token.used_at is None:
        why = f"This token was issued for another site than {node.name} is of now."
    elif certificate is None or certificate.key_digest != authority.key_digest(key):
        why = f"This token was used at {token.used_at:%Y-%m-%d %H:%M}Z, with another key."
    elif certificate.is_revoked:
        why = "What this token was used for is revoked."
    else:
        return certificate
    log.warning("enrolment_refused", node=node.name, why=why)
    raise EnrolmentRefused(f"{why} `manage.py node enroll {node.name}` prints a new one.")


def _certify(*, node: Node, key: ec.EllipticCurvePublicKey, root: Root, now: datetime) -> NodeCertificate:
    key_digest = authority.key_digest(key)
    if NodeCertificate.objects.filter(key_digest=key_digest).exists():
        raise EnrolmentRefused(
            "This key was certified before. A new identity needs a new key.", code="key_known"
        )
    life = timedelta(days=settings.SGM_NODE_CERTIFICATE_DAYS)
    made = authority.node_issue(root, key, node=str(node.pk), tenant=node.tenant_tag, life=life, now=now)
    return NodeCertificate.objects.create(
        node=node,
        common_name=node.pk,
        serial=made.serial,
        fingerprint=made.fingerprint,
        key_digest=made.key_digest,
        pem=made.pem,
        issued_at=now,
        not_after=made.not_after,
    )


def issued(certificate: NodeCertificate) -> Issued:
    """What a node is told of its identity."""
    if certificate.node is None:
        raise EnrolmentRefused("This node was deleted.")
    directory = ca_directory()
    if not settings.SGM_NODES_MQTT_URL:
        raise authority.AuthorityUnusable("SGM_NODES_MQTT_URL is not set: where do nodes find the broker?")
    return Issued(
        node=str(certificate.common_name),
        tenant=certificate.node.tenant_tag,
        certificate=certificate.pem,
        authority=authority.certificate_pem(authority.root_certificate(directory, NODES)),
        broker=settings.SGM_NODES_MQTT_URL,
        broker_authority=authority.certificate_pem(authority.root_certificate(directory, authority.CENTRAL)),
    )


# --- renewal --------------------------------------------------------------------------------------------


def challenge_make(*, now: datetime) -> str:
    """Something to be signed once within a minute. Nothing is stored of it until it is answered."""
    return signing.dumps([secrets.token_hex(16), now.timestamp()], salt=_SALT)


def certificate_renew(*, challenge: str, fingerprint: str, csr: str, signature: str, now: datetime) -> Issued:
    """A certificate for the node's new key, asked for with the present one.

    The present one stays good until the new one is confirmed, or lapses. Having signed, it is in use: those
    before it end now, as does one that was issued and never taken up. The same new key again gets the same
    certificate again.
    """
    key = authority.csr_public_key(csr)
    root = nodes_root()
    present = _certificate_of(fingerprint)
    statement = renewal_statement(challenge=challenge, fingerprint=fingerprint, csr=csr)
    _check_signature(present, signature=signature, statement=statement)
    _challenge_spend(challenge, now=now)
    with transaction.atomic():
        node = _node_of(present)
        present = _good(present, now=now)
        key_digest = authority.key_digest(key)
        certificate = node.certificates.filter(key_digest=key_digest, revoked_at=None).first()
        if certificate is None or certificate.pk == present.pk:
            certificate = _certify(node=node, key=key, root=root, now=now)
        _confirmed(present, now=now)
        _supersede(node.certificates.exclude(pk__in=(present.pk, certificate.pk)), now=now)
        answer = issued(certificate)
    log.info("certificate_renewed", node=node.name, serial=certificate.serial, before=present.serial)
    return answer


def certificate_confirm(*, challenge: str, fingerprint: str, signature: str, now: datetime) -> None:
    """The node says that it works with this certificate: those issued before it end. Twice is once."""
    present = _certificate_of(fingerprint)
    statement = confirmation_statement(challenge=challenge, fingerprint=fingerprint)
    _check_signature(present, signature=signature, statement=statement)
    _challenge_spend(challenge, now=now)
    with transaction.atomic():
        node = _node_of(present)
        present = _good(present, now=now)
        if _confirmed(present, now=now):
            log.info("certificate_confirmed", node=node.name, serial=present.serial)
        _supersede(node.certificates.filter(pk__lt=present.pk), now=now)


def node_rotate(*, node: Node, now: datetime, by: str = "") -> None:
    """Have the node renew its certificate as soon as it hears of it, also one that is still good for long."""
    with transaction.atomic():
        node = Node.objects.select_for_update(no_key=True).get(pk=node.pk)
        node.renew_certificates_before = now
        node.save(update_fields=["renew_certificates_before"])
        node_documents_render(node=node)
    log.info("certificate_rotation_asked", node=node.name, by=by)


def _certificate_of(fingerprint: str) -> NodeCertificate:
    found = NodeCertificate.objects.filter(fingerprint=fingerprint).first()
    if found is None:
        raise EnrolmentRefused("This certificate was not issued here. The node must be enrolled anew.")
    return found


def _node_of(certificate: NodeCertificate) -> Node:
    if certificate.node_id is None:
        raise EnrolmentRefused("The node of this certificate was deleted.")
    node = Node.objects.select_for_update(no_key=True).filter(pk=certificate.node_id).first()
    if node is None:
        raise EnrolmentRefused("The node of this certificate was deleted.")
    return node


def _good(certificate: NodeCertificate, *, now: datetime) -> NodeCertificate:
    """The certificate, read anew under its node's lock, if it may still speak for the node."""
    certificate.refresh_from_db()
    if certificate.is_revoked:
        raise EnrolmentRefused(
            f"This certificate is revoked ({certificate.reason or 'its node was deleted'}). The node must be"
            " enrolled anew."
        )
    if certificate.not_after <= now:
        raise EnrolmentRefused(
            f"This certificate lapsed at {certificate.not_after:%Y-%m-%d %H:%M}Z. The node must be enrolled"
            " anew."
        )
    return certificate


def _check_signature(certificate: NodeCertificate, *, signature: str, statement: bytes) -> None:
    try:
        decoded = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid.field("signature", "not base64") from error
    if not authority.is_signed(certificate=certificate.pem, signature=decoded, statement=statement):
        log.warning("renewal_refused", node=str(certificate.common_name), why="signature")
        raise EnrolmentRefused("The signature is not of the present certificate's key.")


def _challenge_spend(challenge: str, *, now: datetime) -> None:
    """Take a challenge, once and within its minute, by central's clock alone."""
    try:
        _, issued_s = signing.loads(challenge, salt=_SALT)
    except (signing.BadSignature, ValueError, TypeError) as error:
        raise EnrolmentRefused("This challenge was not issued here.", code="challenge_refused") from error
    if not 0 <= now.timestamp() - float(issued_s) <= CHALLENGE_LIFE.total_seconds():
        raise EnrolmentRefused(
            "This challenge is older than a minute: ask for another.", code="challenge_refused"
        )
    # Twice its life: one that is forgotten here is refused by its age.
    SpentChallenge.objects.filter(spent_at__lt=now - 2 * CHALLENGE_LIFE).delete()
    digest = hashlib.sha256(challenge.encode()).hexdigest()
    _, is_new = SpentChallenge.objects.get_or_create(digest=digest, defaults={"spent_at": now})
    if not is_new:
        log.warning("renewal_refused", why="replayed")
        raise EnrolmentRefused(
            "This challenge was answered before: ask for another.", code="challenge_refused"
        )


def _confirmed(certificate: NodeCertificate, *, now: datetime) -> bool:
    """Note that a certificate is in use; tell whether that is news."""
    return bool(NodeCertificate.objects.filter(pk=certificate.pk, confirmed_at=None).update(confirmed_at=now))


def _supersede(certificates: QuerySet[NodeCertificate], *, now: datetime) -> None:
    # No session of theirs is left to be ended: the broker lets one client in under a node's name, and that
    # is the one which has just spoken. Denying the name would hit that one.
    certificates.filter(revoked_at=None).update(revoked_at=now, reason=SUPERSEDED, evicted_at=now)


# --- the end --------------------------------------------------------------------------------------------


def node_revoke(*, node: Node, now: datetime, reason: str = "", by: str = "") -> int:
    """End all certificates and tokens of a node; how many certificates. Twice is once.

    From the commit on nothing is issued or renewed for it. The broker is told by `revocation`.
    """
    with transaction.atomic():
        node = Node.objects.select_for_update(no_key=True).get(pk=node.pk)
        node.enrolment_tokens.filter(voided_at=None).update(voided_at=now)
        ended = node.certificates.filter(revoked_at=None).update(
            revoked_at=now, reason=(reason or "revoked")[:200]
        )
        # A superseded one may be what the session is with that somebody else opened.
        if ended:
            node.certificates.filter(reason=SUPERSEDED).update(evicted_at=None)
    log.warning("node_revoked", node=node.name, certificates=ended, reason=reason, by=by)
    return ended


def revoked(*, now: datetime) -> QuerySet[NodeCertificate]:
    """What the broker must refuse: revoked, and not lapsed by itself yet."""
    return NodeCertificate.objects.filter(_ENDED, not_after__gt=now)


def denied() -> QuerySet[NodeCertificate]:
    """Revoked ones that may have left a session at the broker: it outlives their end and their lapse."""
    return NodeCertificate.objects.filter(_ENDED, evicted_at=None)


def evicted_record(*, certificate_ids: list[int], now: datetime) -> None:
    """It is certain that no session opened with these is left."""
    NodeCertificate.objects.filter(pk__in=certificate_ids, evicted_at=None).update(evicted_at=now)


# --- the authority --------------------------------------------------------------------------------------


def ca_directory() -> Path:
    return Path(settings.SGM_CA_DIR)


def nodes_root() -> Root:
    """The root that vouches for nodes, with its key; `AuthorityUnusable` where this process has none."""
    try:
        return authority.root_load(ca_directory(), NODES, password=settings.SGM_CA_PASSWORD)
    except authority.AuthorityUnusable as error:
        log.error("authority_unusable", error=error.detail)  # noqa: TRY400
        raise
