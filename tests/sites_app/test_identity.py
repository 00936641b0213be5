"""Tokens, certificates, renewal and revocation: the rules, on the database."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from django.db import connections

from edge.wire.enrolment import Issued
from sites_app import authority, identity
from sites_app.identity import EnrolmentRefused
from sites_app.models import EnrolmentToken, Node, NodeCertificate, NodeDocument
from sites_app.services import node_delete
from smartgrid.errors import Conflict, Invalid
from tests.factories import node_make, site_make
from tests.nodes import Key, certificate_read

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 23, 10, 53, 7, 250_000, tzinfo=UTC)
YEAR = timedelta(days=365)


@pytest.fixture(autouse=True)
def ca(tmp_path: Path, settings) -> Path:
    directory = tmp_path / "ca"
    authority.authority_make(directory=directory, hosts=["broker.example.com"], now=NOW)
    settings.SGM_CA_DIR = str(directory)
    settings.SGM_NODES_MQTT_URL = "mqtts://broker.example.com:8883"
    return directory


@pytest.fixture
def node() -> Node:
    return node_make(name="node-01")


def token_for(node: Node, *, now: datetime = NOW) -> str:
    return identity.enrolment_token_issue(node=node, now=now).value


def enrol(node: Node, key: Key, *, now: datetime = NOW) -> Issued:
    return identity.node_enrol(token=token_for(node, now=now), csr=key.csr(), now=now)


def renew(issued: Issued, old: Key, new: Key, *, now: datetime, csr: str | None = None) -> Issued:
    challenge = identity.challenge_make(now=now)
    asked = old.renewal(challenge=challenge, certificate=issued.certificate, csr=csr or new.csr())
    return identity.certificate_renew(**asked, now=now)


def confirm(issued: Issued, key: Key, *, now: datetime) -> None:
    challenge = identity.challenge_make(now=now)
    asked = key.confirmation(challenge=challenge, certificate=issued.certificate)
    identity.certificate_confirm(**asked, now=now)


def row(issued: Issued) -> NodeCertificate:
    return NodeCertificate.objects.get(pem=issued.certificate)


# --- enrolment ------------------------------------------------------------------------------------------


def test_enrolled_node_gets_the_name_that_central_gives_it_not_the_one_it_asks_for(node):
    token = token_for(node)
    issued = identity.node_enrol(token=token, csr=Key().csr(common_name="central-worker"), now=NOW)

    subject = certificate_read(issued.certificate).subject
    assert [name.value for name in subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [str(node.pk)]
    assert [name.value for name in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == [
        "tenant-123"
    ]
    assert (issued.node, issued.tenant) == (str(node.pk), "tenant-123")
    assert issued.broker == "mqtts://broker.example.com:8883"


def test_certificate_is_good_for_a_year_and_begins_a_little_earlier(node, settings):
    made = certificate_read(enrol(node, Key()).certificate)
    assert made.not_valid_after_utc == NOW.replace(microsecond=0) + YEAR
    assert made.not_valid_before_utc == NOW.replace(microsecond=0) - timedelta(minutes=5)

    settings.SGM_NODE_CERTIFICATE_DAYS = 30
    short = certificate_read(enrol(node_make(), Key()).certificate)
    assert short.not_valid_after_utc == NOW.replace(microsecond=0) + timedelta(days=30)


def test_token_itself_is_kept_nowhere(node):
    value = token_for(node)
    stored = EnrolmentToken.objects.values_list("digest", flat=True)
    assert value not in stored
    assert len(stored) == 1


def test_token_is_good_for_one_key(node):
    token = token_for(node)
    identity.node_enrol(token=token, csr=Key().csr(), now=NOW)
    with pytest.raises(EnrolmentRefused, match=r"used at 2026-11-23 10:53Z.*manage.py node enroll node-01"):
        identity.node_enrol(token=token, csr=Key().csr(), now=NOW)
    assert node.certificates.count() == 1


def test_same_key_gets_the_same_answer_again(node):
    # The answer was lost, or the computer died before it had written it down.
    token, key = token_for(node), Key()
    first = identity.node_enrol(token=token, csr=key.csr(), now=NOW)
    again = identity.node_enrol(token=token, csr=key.csr(), now=NOW + timedelta(hours=23))
    assert again == first
    assert node.certificates.count() == 1


@pytest.mark.parametrize(
    ("after", "is_taken"), [(timedelta(hours=24, seconds=-1), True), (timedelta(hours=24), False)]
)
def test_token_lapses_after_24_hours(node, after, is_taken):
    token = token_for(node)
    if is_taken:
        assert identity.node_enrol(token=token, csr=Key().csr(), now=NOW + after)
    else:
        with pytest.raises(EnrolmentRefused, match="lapsed at 2026-11-24 10:53Z"):
            identity.node_enrol(token=token, csr=Key().csr(), now=NOW + after)


def test_answer_is_not_repeated_once_the_token_has_lapsed(node):
    token, key = token_for(node), Key()
    identity.node_enrol(token=token, csr=key.csr(), now=NOW)
    with pytest.raises(EnrolmentRefused, match="lapsed"):
        identity.node_enrol(token=token, csr=key.csr(), now=NOW + timedelta(hours=25))


def test_newer_token_makes_the_older_void(node):
    older = token_for(node)
    newer = token_for(node)
    with pytest.raises(EnrolmentRefused, match="void"):
        identity.node_enrol(token=older, csr=Key().csr(), now=NOW)
    assert identity.node_enrol(token=newer, csr=Key().csr(), now=NOW)


def test_token_is_bound_to_the_site_of_its_node(node):
    token = token_for(node)
    Node.objects.filter(pk=node.pk).update(site=site_make())
    with pytest.raises(EnrolmentRefused, match="another site"):
        identity.node_enrol(token=token, csr=Key().csr(), now=NOW)


@pytest.mark.parametrize("token", ["", "enr_" + "a" * 43, "tok_" + "0" * 32, "enr_\0", "x" * 5000])
def test_unknown_token_is_refused(node, token):
    with pytest.raises(EnrolmentRefused, match="not known"):
        identity.node_enrol(token=token, csr=Key().csr(), now=NOW)


def test_key_of_one_node_is_not_certified_for_another(node):
    key = Key()
    enrol(node, key)
    with pytest.raises(EnrolmentRefused, match="certified before"):
        enrol(node_make(), key)


def test_token_that_failed_for_its_key_can_be_used_with_another(node):
    key, token = Key(), token_for(node)
    enrol(node_make(), key)
    with pytest.raises(EnrolmentRefused, match="certified before"):
        identity.node_enrol(token=token, csr=key.csr(), now=NOW)
    assert identity.node_enrol(token=token, csr=Key().csr(), now=NOW)


def broken_csrs() -> dict[str, str]:
    good, other = Key().csr(), Key().csr()
    weak = Key()
    weak.private = rsa.generate_private_key(65537, 2048)  # type: ignore[assignment]
    curve = Key(ec.generate_private_key(ec.SECP384R1()))
    lines, others = good.splitlines(), other.splitlines()
    return {
        "nothing": "",
        "no PEM": "hello",
        "a certificate": "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n",
        "another's signature": "\n".join([*lines[:-3], *others[-3:]]),
        "RSA": weak.csr(),
        "another curve": curve.csr(),
        "endless": good + "x" * 10_000,
        "not ASCII": good.replace("BEGIN", "BEGİN"),
    }


@pytest.mark.parametrize("what", broken_csrs())
def test_signing_request_that_does_not_hold_is_refused_and_costs_no_token(node, what):
    token = token_for(node)
    with pytest.raises(Invalid, match="csr"):
        identity.node_enrol(token=token, csr=broken_csrs()[what], now=NOW)
    assert identity.node_enrol(token=token, csr=Key().csr(), now=NOW)


@pytest.mark.django_db(transaction=True)
def test_of_two_computers_at_once_one_becomes_the_node(node):
    token, start = token_for(node), threading.Barrier(2)
    outcomes: list[object] = []

    def come() -> None:
        csr = Key().csr()
        start.wait()
        try:
            outcomes.append(identity.node_enrol(token=token, csr=csr, now=NOW))
        except EnrolmentRefused as error:
            outcomes.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=come) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["EnrolmentRefused", "Issued"]
    assert node.certificates.count() == 1


# --- renewal --------------------------------------------------------------------------------------------


def test_old_certificate_stays_good_until_the_new_one_is_confirmed(node):
    old, new = Key(), Key()
    first = enrol(node, old)
    second = renew(first, old, new, now=NOW + YEAR / 2)
    assert row(first).revoked_at is None

    confirm(second, new, now=NOW + YEAR / 2)
    assert (row(first).revoked_at, row(first).reason) == (NOW + YEAR / 2, "superseded")
    assert row(second).confirmed_at == NOW + YEAR / 2
    assert row(second).revoked_at is None


def test_renewal_that_is_asked_again_with_the_same_key_gets_the_same_certificate(node):
    old, new = Key(), Key()
    first = enrol(node, old)
    second = renew(first, old, new, now=NOW)
    assert renew(first, old, new, now=NOW + timedelta(days=1)) == second
    assert node.certificates.count() == 2


def test_renewal_is_refused_without_the_old_key(node):
    old, thief = Key(), Key()
    first = enrol(node, old)
    challenge = identity.challenge_make(now=NOW)
    asked = thief.renewal(challenge=challenge, certificate=first.certificate, csr=thief.csr())
    with pytest.raises(EnrolmentRefused, match="signature"):
        identity.certificate_renew(**asked, now=NOW)


def test_signature_over_one_request_opens_no_other(node):
    old, thief = Key(), Key()
    first = enrol(node, old)
    challenge = identity.challenge_make(now=NOW)
    asked = old.renewal(challenge=challenge, certificate=first.certificate, csr=Key().csr())
    with pytest.raises(EnrolmentRefused, match="signature"):
        identity.certificate_renew(**{**asked, "csr": thief.csr()}, now=NOW)
    # Nor does what was signed to confirm renew anything.
    asked["signature"] = old.confirmation(challenge=challenge, certificate=first.certificate)["signature"]
    with pytest.raises(EnrolmentRefused, match="signature"):
        identity.certificate_renew(**asked, now=NOW)


def test_replayed_renewal_is_refused(node):
    old, new = Key(), Key()
    first = enrol(node, old)
    challenge = identity.challenge_make(now=NOW)
    asked = old.renewal(challenge=challenge, certificate=first.certificate, csr=new.csr())
    identity.certificate_renew(**asked, now=NOW)
    with pytest.raises(EnrolmentRefused, match="answered before"):
        identity.certificate_renew(**asked, now=NOW + timedelta(seconds=1))
    # Where what was spent is forgotten, its age refuses it.
    with pytest.raises(EnrolmentRefused, match="older than a minute"):
        identity.certificate_renew(**asked, now=NOW + timedelta(minutes=5))


@pytest.mark.parametrize("challenge", ["", "x", "eyJh.forged.signature"])
def test_challenge_of_somebody_else_is_refused(node, challenge):
    old = Key()
    first = enrol(node, old)
    asked = old.renewal(challenge=challenge, certificate=first.certificate, csr=Key().csr())
    with pytest.raises(EnrolmentRefused, match="not issued here"):
        identity.certificate_renew(**asked, now=NOW)


def test_lapsed_certificate_renews_nothing(node):
    old = Key()
    first = enrol(node, old)
    with pytest.raises(EnrolmentRefused, match=r"lapsed.*enrolled anew"):
        renew(first, old, Key(), now=NOW + YEAR + timedelta(seconds=1))


def test_superseded_certificate_renews_nothing(node):
    old, new = Key(), Key()
    first = enrol(node, old)
    confirm(renew(first, old, new, now=NOW), new, now=NOW)
    with pytest.raises(EnrolmentRefused, match="revoked"):
        renew(first, old, Key(), now=NOW)


def test_renewal_that_was_never_taken_up_ends_with_the_next(node):
    old, lost, new = Key(), Key(), Key()
    first = enrol(node, old)
    untaken = renew(first, old, lost, now=NOW)
    second = renew(first, old, new, now=NOW)
    assert row(untaken).reason == "superseded"
    assert row(first).revoked_at is None
    assert row(second).revoked_at is None


def test_confirming_twice_is_once(node):
    key = Key()
    issued = enrol(node, key)
    confirm(issued, key, now=NOW)
    confirm(issued, key, now=NOW + timedelta(days=1))
    assert row(issued).confirmed_at == NOW


def test_rotation_reaches_the_node_in_its_configuration(node):
    identity.node_rotate(node=node, now=NOW)
    body = NodeDocument.objects.get(node=node, name="config").body
    assert body["renew_certificates_before"] == "2026-11-23T10:53:07.250000Z"


# --- the end --------------------------------------------------------------------------------------------


def test_revoked_node_can_neither_renew_nor_confirm_nor_enrol_with_its_token(node):
    key, token = Key(), ""
    issued = enrol(node, key)
    token = token_for(node)
    assert identity.node_revoke(node=node, now=NOW, reason="stolen") == 1
    for attempt in (
        lambda: renew(issued, key, Key(), now=NOW),
        lambda: confirm(issued, key, now=NOW),
        lambda: identity.node_enrol(token=token, csr=Key().csr(), now=NOW),
    ):
        with pytest.raises(EnrolmentRefused):
            attempt()
    assert row(issued).reason == "stolen"


def test_revocation_takes_all_that_the_node_could_still_show(node):
    old, new = Key(), Key()
    first = enrol(node, old)
    second = renew(first, old, new, now=NOW)
    assert identity.node_revoke(node=node, now=NOW) == 2
    assert set(identity.revoked(now=NOW)) == {row(first), row(second)}
    assert identity.node_revoke(node=node, now=NOW) == 0


def test_answer_of_an_enrolment_is_not_repeated_after_the_revocation(node):
    token, key = token_for(node), Key()
    identity.node_enrol(token=token, csr=key.csr(), now=NOW)
    identity.node_revoke(node=node, now=NOW)
    with pytest.raises(EnrolmentRefused):
        identity.node_enrol(token=token, csr=key.csr(), now=NOW)


def test_no_token_while_a_session_of_the_revoked_one_may_be_open(node):
    issued = enrol(node, Key())
    identity.node_revoke(node=node, now=NOW)
    with pytest.raises(Conflict, match="may still be in use"):
        token_for(node)

    identity.evicted_record(certificate_ids=[row(issued).pk], now=NOW)
    assert enrol(node, Key())


def test_deleted_node_leaves_its_certificates_revoked(node):
    issued, key = enrol(node, other := Key()), other
    pk = row(issued).pk
    node_delete(node=node)
    assert [found.pk for found in identity.revoked(now=NOW)] == [pk]
    assert [found.pk for found in identity.denied()] == [pk]
    with pytest.raises(EnrolmentRefused, match="deleted"):
        renew(issued, key, Key(), now=NOW)


def test_lapsed_certificate_needs_no_revocation_any_more(node):
    issued = enrol(node, Key())
    identity.node_revoke(node=node, now=NOW)
    assert list(identity.revoked(now=NOW)) == [row(issued)]
    assert not identity.revoked(now=NOW + YEAR + timedelta(seconds=1)).exists()
