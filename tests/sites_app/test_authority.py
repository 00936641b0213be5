"""The authority on disk, and the commands that operators type."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from django.core.management import CommandError, call_command

from sites_app import authority, identity
from smartgrid.errors import Conflict, Invalid
from smartgrid.mosquitto import tls_config
from tests.factories import node_make, site_make
from tests.nodes import Key, certificate_read

NOW = datetime(2026, 11, 23, 10, 53, 7, tzinfo=UTC)
PROJECT = Path(__file__).parents[2]


@pytest.fixture
def directory(tmp_path: Path, settings) -> Path:
    settings.SGM_CA_DIR = str(tmp_path / "ca")
    settings.SGM_NODES_MQTT_URL = "mqtts://broker.example.com:8883"
    settings.SGM_ENROL_URL = "https://central.example.com"
    return tmp_path / "ca"


def make(directory: Path, *, password: str = "") -> None:
    authority.authority_make(
        directory=directory, hosts=["broker.example.com", "10.0.0.5"], now=NOW, password=password
    )


def test_authority_is_made_once(directory):
    make(directory)
    before = (directory / "nodes-ca.key").read_bytes()
    with pytest.raises(Conflict, match="not empty"):
        make(directory)
    assert (directory / "nodes-ca.key").read_bytes() == before


def test_authority_that_could_not_be_finished_leaves_nothing(directory):
    with pytest.raises(Invalid, match="host name"):
        authority.authority_make(directory=directory, hosts=["ü.example.com"], now=NOW)
    assert list(directory.parent.iterdir()) == []


def test_keys_are_for_their_owner_alone(directory):
    make(directory)
    for path in directory.rglob("*"):
        if path.is_file() and "PRIVATE KEY" in path.read_text():
            # The broker reads its own by its group.
            assert path.stat().st_mode & 0o777 == (0o640 if path.parent.name == "broker" else 0o600), path


def test_password_encrypts_the_roots(directory):
    make(directory, password="a password")
    with pytest.raises(TypeError):
        load_pem_private_key((directory / "nodes-ca.key").read_bytes(), None)
    assert authority.root_load(directory, authority.NODES, password="a password")
    for wrong in ("", "another"):
        with pytest.raises(authority.AuthorityUnusable, match="SGM_CA_PASSWORD"):
            authority.root_load(directory, authority.NODES, password=wrong)


def test_broker_is_known_under_all_its_names(directory):
    make(directory)
    assert authority.server_hosts(directory) == ["broker.example.com", "10.0.0.5"]


def test_leaf_never_outlives_its_root(directory):
    make(directory)
    root = authority.root_load(directory, authority.NODES)
    key = Key().private.public_key()
    made = authority.node_issue(
        root, key, node="n", tenant="t", life=timedelta(days=3650), now=NOW + timedelta(days=19 * 365)
    )
    assert made.not_after == root.certificate.not_valid_after_utc


def test_node_certificate_can_certify_nobody_and_be_no_server(directory):
    make(directory)
    root = authority.root_load(directory, authority.NODES)
    key = Key().private.public_key()
    made = certificate_read(
        authority.node_issue(root, key, node="n", tenant="t", life=timedelta(days=1), now=NOW).pem
    )
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usages = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [usage._name for usage in usages] == ["clientAuth"]


def test_list_of_the_revoked_outlives_every_forgetful_operator(directory):
    make(directory)
    root = authority.root_load(directory, authority.NODES)
    crl = x509.load_pem_x509_crl(authority.crl_pem(root, revoked=[("0" * 38 + "2a", NOW)], now=NOW).encode())
    assert crl.next_update_utc == root.certificate.not_valid_after_utc
    assert [entry.serial_number for entry in crl] == [42]
    assert crl.is_signature_valid(root.key.public_key())


def test_configuration_in_the_repository_is_the_one_the_tests_run_on():
    rendered = tls_config(files=Path("/etc/mosquitto/sgm"), data=Path("/var/lib/mosquitto"))
    assert (PROJECT / "deploy" / "mosquitto" / "mosquitto.conf").read_text() == rendered


# --- commands -------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_ca_init_makes_what_broker_and_central_need(directory, capsys):
    call_command("ca", "init", "--host", "broker.example.com", "--broker-files", "/etc/mosquitto/sgm")
    assert sorted(path.name for path in (directory / "broker").iterdir()) == [
        "central-ca.pem",
        "central.acl",
        "mosquitto.conf",
        "nodes-ca.pem",
        "nodes.acl",
        "nodes.crl",
        "server.pem",
    ]
    assert (directory / "broker" / "mosquitto.conf").read_text() == (
        PROJECT / "deploy" / "mosquitto" / "mosquitto.conf"
    ).read_text()
    assert "SGM_BROKER_RELOAD is not set" in capsys.readouterr().out
    with pytest.raises(CommandError, match="made once"):
        call_command("ca", "init", "--host", "broker.example.com")


@pytest.mark.django_db
def test_servers_and_centrals_certificates_are_renewed_under_their_names(directory):
    make(directory)
    before = {name: (directory / name).read_bytes() for name in (authority.SERVER, "central-inbox.pem")}
    call_command("ca", "renew-server")
    call_command("ca", "renew-central", "central-inbox")
    assert authority.server_hosts(directory) == ["broker.example.com", "10.0.0.5"]
    assert all((directory / name).read_bytes() != content for name, content in before.items())


@pytest.mark.django_db
def test_authority_that_leaked_vouches_for_nobody_and_nodes_keep_theirs(directory):
    call_command("ca", "init", "--host", "broker.example.com", "--host", "10.0.0.5")
    issued = {"broker/server.pem", "central-worker.pem", "central-inbox.pem"}
    central = {"central-ca.key", "central-ca.pem", "broker/central-ca.pem", *issued}
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}

    call_command("ca", "replace-central")

    changed = {path for path, content in before.items() if path.read_bytes() != content}
    assert changed == {directory / name for name in central}
    root = authority.root_load(directory, authority.CENTRAL)
    for name in issued:
        certificate_read((directory / name).read_text()).verify_directly_issued_by(root.certificate)
        with pytest.raises(InvalidSignature):
            x509.load_pem_x509_certificate(before[directory / name]).verify_directly_issued_by(
                root.certificate
            )
    assert authority.server_hosts(directory) == ["broker.example.com", "10.0.0.5"]


@pytest.mark.django_db
def test_reload_that_failed_is_not_called_done(directory, settings, capsys):
    settings.SGM_BROKER_RELOAD = "false"
    call_command("ca", "init", "--host", "broker.example.com")
    said = capsys.readouterr().out
    assert "SGM_BROKER_RELOAD failed" in said
    assert "was told" not in said

    settings.SGM_BROKER_RELOAD = "true"
    call_command("ca", "crl")
    assert "The broker was told." in capsys.readouterr().out


@pytest.mark.django_db
def test_renewal_without_the_key_that_was_put_away_says_so(directory):
    make(directory)
    (directory / "central-ca.key").unlink()
    with pytest.raises(CommandError, match="put away"):
        call_command("ca", "renew-server")
    # Nodes go on being enrolled.
    assert identity.enrolment_token_issue(node=node_make(), now=NOW)


@pytest.mark.django_db
def test_enroll_prints_the_token_once_with_the_lines_for_the_site(directory, capsys):
    make(directory)
    call_command("node", "enroll", str(node_make(name="node-01").pk))
    said = capsys.readouterr().out
    assert "python -m edge enroll https://central.example.com enr_" in said
    assert "python -m edge node --state /var/lib/sgm/node-01" in said


@pytest.mark.django_db
def test_token_carries_the_fingerprint_of_a_private_https_authority(directory, settings):
    make(directory)
    settings.SGM_ENROL_CA_FILE = str(directory / "central-ca.pem")
    value = identity.enrolment_token_issue(node=node_make(), now=NOW).value
    assert value.partition(".")[2] == authority.pem_fingerprint((directory / "central-ca.pem").read_text())


@pytest.mark.django_db
def test_node_is_found_by_name_where_one_tenant_has_it(directory):
    make(directory)
    for tenant in ("tenant-a", "tenant-b"):
        node_make(site=site_make(tenant_tag=tenant), name="node-01")
    with pytest.raises(CommandError, match="--tenant"):
        call_command("node", "certificates", "node-01")
    call_command("node", "certificates", "node-01", "--tenant", "tenant-a")
    with pytest.raises(CommandError, match="no node 'node-02'"):
        call_command("node", "certificates", "node-02")


@pytest.mark.django_db
def test_without_an_authority_every_command_says_what_to_do(settings):
    settings.SGM_CA_DIR = ""
    settings.SGM_ENROL_URL, settings.SGM_NODES_MQTT_URL = "https://central.example.com", "mqtts://b:8883"
    node = node_make()
    for command in (("ca", "crl"), ("node", "enroll", str(node.pk)), ("node", "revoke", str(node.pk))):
        with pytest.raises(CommandError, match="SGM_CA_DIR is not set"):
            call_command(*command)
