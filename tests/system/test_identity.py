"""From a token to the end of a node: real enrolment, a real broker with certificates, as in production."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import aiomqtt
import pytest
from asgiref.sync import sync_to_async
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID
from django.core.management import CommandError, call_command

from edge.runtime.enroll import EXIT_REFUSED
from edge.runtime.identity import credentials_read, identity_read
from edge.wire.session import (
    CONNECT_TIMEOUT_S,
    LinkDown,
    Tls,
    broker_from_url,
    open_session,
    try_certificate,
)
from edge.wire.topics import NodeTopics
from sites_app import authority, identity
from sites_app.models import Node
from sites_app.node_link import broker_for
from sites_app.revocation import revocations_enforce
from tests.factories import node_make
from tests.nodes import Key
from tests.servers import TlsBroker, lets_in

pytestmark = [pytest.mark.services, pytest.mark.django_db(transaction=True)]


@pytest.fixture(scope="session", autouse=True)
def _database_first(database_of_threads: None) -> None:
    """Before the live server."""


WITHIN_S = 10.0
PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def central(tls_broker: TlsBroker, settings) -> None:
    """Central's settings as an operator of this broker has them."""
    settings.SGM_CA_DIR = str(tls_broker.directory)
    settings.SGM_NODES_MQTT_URL = tls_broker.nodes_url
    settings.SGM_BROKER_RELOAD = tls_broker.reload_command
    settings.SGM_ENROL_URL = "https://central.example.com"
    settings.SGM_MQTT_TLS = True
    settings.SGM_MQTT_HOST, settings.SGM_MQTT_PORT = "localhost", tls_broker.central_port
    settings.SGM_MQTT_TLS_CA = str(tls_broker.directory / "central-ca.pem")
    settings.SGM_MQTT_TLS_CERTIFICATES = {
        user: str(tls_broker.directory / f"{user}.pem") for user in ("central-worker", "central-inbox")
    }


def now() -> datetime:
    return datetime.now(UTC)


def token_for(node: Node) -> str:
    return identity.enrolment_token_issue(node=node, now=now()).value


def certificate_for(node: Node, path: Path) -> Path:
    """Enrol this node with a key of its own; a file with key and certificate."""
    key = Key()
    issued = identity.node_enrol(token=token_for(node), csr=key.csr(), now=now())
    return key.with_certificate(path, issued.certificate)


def enroll(url: str, token: str, state: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge", "enroll", url, token, "--state", str(state), *more],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def client(tls_broker: TlsBroker, certificate: Path, **options) -> aiomqtt.Client:
    door = tls_broker.door_with(certificate)
    return aiomqtt.Client(
        door.host,
        door.port,
        tls_context=door.context,
        protocol=aiomqtt.ProtocolVersion.V5,
        timeout=5,
        **options,
    )


# --- who gets in ----------------------------------------------------------------------------------------


def test_enrolled_node_gets_in_and_nobody_without_a_certificate_does(tls_broker, tmp_path):
    node = node_make()
    assert lets_in(tls_broker.door_with(certificate_for(node, tmp_path / "node.pem")))
    assert not lets_in(tls_broker.door_with(None))
    assert not lets_in(tls_broker.door_with(None, port=tls_broker.central_port))


def strangers(directory: Path, into: Path) -> dict[str, Path]:
    """Certificates in a node's name that nobody should take: key and certificate of each."""
    name, key = str(uuid.uuid4()), Key()
    root = authority.root_load(directory, authority.NODES)
    other = into / "other"
    authority.authority_make(directory=other, hosts=["localhost"], now=now())

    def issue(root: authority.Root, *, at: datetime, life: timedelta = timedelta(days=1)) -> str:
        public = key.private.public_key()
        return authority.node_issue(root, public, node=name, tenant="t", life=life, now=at).pem

    own_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    self_signed = (
        x509.CertificateBuilder()
        .subject_name(own_name)
        .issuer_name(own_name)
        .public_key(key.private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - timedelta(days=1))
        .not_valid_after(now() + timedelta(days=1))
        .sign(key.private, hashes.SHA256())
    )
    pems = {
        "expired": issue(root, at=now() - timedelta(days=2)),
        "not yet valid": issue(root, at=now() + timedelta(days=1)),
        "of another authority": issue(authority.root_load(other, authority.NODES), at=now()),
        "of central's authority": issue(authority.root_load(directory, authority.CENTRAL), at=now()),
        "signed by itself": authority.certificate_pem(self_signed),
    }
    return {
        what: key.with_certificate(into / f"{number}.pem", pem)
        for number, (what, pem) in enumerate(pems.items())
    }


@pytest.mark.parametrize(
    "what", ["expired", "not yet valid", "of another authority", "of central's authority", "signed by itself"]
)
def test_certificate_that_does_not_hold_stays_outside(tls_broker, tmp_path, what):
    assert not lets_in(tls_broker.door_with(strangers(tls_broker.directory, tmp_path)[what]))


@pytest.mark.parametrize("user", ["central-worker", "central-inbox"])
def test_name_of_central_under_the_nodes_authority_is_nobody(tls_broker, user):
    # Whoever had the key that web needs to enrol nodes could write any name into a certificate.
    forged = tls_broker.node_certificate(user)
    assert not lets_in(tls_broker.door_with(forged, port=tls_broker.central_port))
    victim = NodeTopics("tenant-123", str(uuid.uuid4()))
    context = ssl.create_default_context(cadata=tls_broker.broker_authority)
    context.load_cert_chain(forged)
    tls_broker_as = type("As", (type(tls_broker),), {"door": lambda self, _: self.door_with(forged)})
    impostor = tls_broker_as(**vars(tls_broker))
    for topic in (victim.command("setpoint"), victim.document("config"), victim.log_ack):
        assert impostor.refuses_publish(username=user, topic=topic)


def test_there_is_no_door_without_tls(tls_broker):
    for port in (tls_broker.nodes_port, tls_broker.central_port):
        plain = type(tls_broker.door_with(None))(host="localhost", port=port, username="central-worker")
        assert not lets_in(plain)


def test_broker_offers_nothing_older_than_tls_1_2(tls_broker):
    context = ssl.create_default_context(cadata=tls_broker.broker_authority)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("localhost", tls_broker.nodes_port), timeout=5) as plain,
        pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"),
    ):
        context.wrap_socket(plain, server_hostname="localhost")


async def test_client_id_of_another_takes_nothing_over(tls_broker, tmp_path):
    a, b = await sync_to_async(node_make)(), await sync_to_async(node_make)()
    of_a = await sync_to_async(certificate_for)(a, tmp_path / "a.pem")
    of_b = await sync_to_async(certificate_for)(b, tmp_path / "b.pem")
    async with client(tls_broker, of_b, identifier=str(b.pk)) as victim:
        for identifier in (str(b.pk), f"{b.pk}-session", "", "central-worker"):
            async with client(tls_broker, of_a, identifier=identifier) as intruder:
                await intruder.publish(a.topics.presence, b"own", qos=1)
        # Still there, and still itself.
        await victim.subscribe(b.topics.commands, qos=1)
        async with client_of_central(tls_broker) as central:
            await central.publish(b.topics.command("ping"), b"for b", qos=1)
        async with asyncio.timeout(WITHIN_S):
            assert (await anext(aiter(victim.messages))).payload == b"for b"


def client_of_central(tls_broker: TlsBroker) -> aiomqtt.Client:
    door = tls_broker.door("central-worker")
    return aiomqtt.Client(
        door.host, door.port, tls_context=door.context, protocol=aiomqtt.ProtocolVersion.V5, timeout=5
    )


async def is_ended(session: aiomqtt.Client) -> bool:
    """Wait for the broker to end a session."""
    try:
        async with asyncio.timeout(WITHIN_S):
            async for _ in session.messages:
                pass
    except aiomqtt.MqttError:
        return True
    except TimeoutError:
        return False
    return True


@asynccontextmanager
async def doomed(session: aiomqtt.Client) -> AsyncIterator[aiomqtt.Client]:
    """A session that somebody else ends, so that its own good-bye may fail."""
    await session.__aenter__()
    try:
        yield session
    finally:
        with suppress(aiomqtt.MqttError):
            await session.__aexit__(None, None, None)


async def test_node_has_one_session_and_the_newest_wins(tls_broker, tmp_path):
    node = await sync_to_async(node_make)()
    certificate = await sync_to_async(certificate_for)(node, tmp_path / "node.pem")
    async with (
        doomed(client(tls_broker, certificate, identifier="first")) as older,
        client(tls_broker, certificate, identifier="second") as newer,
    ):
        assert await is_ended(older)
        await newer.publish(node.topics.presence, b"own", qos=1)


async def test_refused_certificate_is_noticed_at_once(tls_broker, tmp_path):
    bad = (await sync_to_async(strangers)(tls_broker.directory, tmp_path))["of another authority"]
    tls = Tls(ca=tls_broker.broker_authority, certificate=bad)
    broker = broker_from_url(tls_broker.nodes_url, username=None, password=None, tls=tls)
    begun_s = asyncio.get_running_loop().time()
    with pytest.raises(LinkDown, match="no session"):
        async with open_session(broker, identifier=uuid.uuid4().hex):
            pass
    assert asyncio.get_running_loop().time() - begun_s < CONNECT_TIMEOUT_S / 2


# The library leaves the socket of a handshake that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_central_connects_with_its_certificate_and_knows_the_broker_by_its_own(
    tls_broker, settings, tmp_path
):
    for user in ("central-worker", "central-inbox"):
        async with open_session(broker_for(user, ""), identifier=uuid.uuid4().hex) as session:
            await session.subscribe("sgm/v1/+/+/presence")
    other = tmp_path / "other"
    authority.authority_make(directory=other, hosts=["localhost"], now=now())
    settings.SGM_MQTT_TLS_CA = str(other / "central-ca.pem")
    with pytest.raises(LinkDown, match="certificate verify failed"):
        async with open_session(broker_for("central-worker", ""), identifier="x"):
            pass


@asynccontextmanager
async def silent_server(certificate: Path) -> AsyncIterator[str]:
    """Somebody who says to be the broker, and who would take anybody; its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "localhost", 0, ssl=context)
    async with server:
        yield f"mqtts://localhost:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(("host", "is_believed"), [("localhost", True), ("broker.example.com", False)])
async def test_broker_is_believed_under_its_own_name_only(tmp_path, host, is_believed):
    directory = tmp_path / "ca"
    authority.authority_make(directory=directory, hosts=[host], now=now())
    tls = Tls(ca=(directory / "central-ca.pem").read_text(), certificate=directory / "central-worker.pem")
    async with silent_server(directory / "broker" / "server.pem") as url:
        broker = broker_from_url(url, username=None, password=None, tls=tls)
        if is_believed:
            await try_certificate(broker, silent_s=0.2)
        else:
            with pytest.raises(LinkDown, match=r"(?i)hostname mismatch"):
                await try_certificate(broker, silent_s=0.2)


# --- the end --------------------------------------------------------------------------------------------


async def test_revoked_node_is_out_within_seconds_and_its_open_session_with_it(tls_broker, tmp_path):
    node = await sync_to_async(node_make)()
    stolen = await sync_to_async(certificate_for)(node, tmp_path / "stolen.pem")
    other = await sync_to_async(node_make)()
    bystander = await sync_to_async(certificate_for)(other, tmp_path / "bystander.pem")
    async with (
        client(tls_broker, bystander) as innocent,
        doomed(client(tls_broker, stolen)) as thief,
    ):
        begun = asyncio.get_running_loop().time()
        await sync_to_async(call_command)("node", "revoke", str(node.pk), "--reason", "stolen")
        assert asyncio.get_running_loop().time() - begun < WITHIN_S
        # Its session was ended, not only made powerless.
        assert await is_ended(thief)
        assert not lets_in(tls_broker.door_with(stolen))
        await innocent.publish(other.topics.presence, b"still here", qos=1)
    assert lets_in(tls_broker.door_with(bystander))
    assert not await identity.denied().aexists()


def test_each_of_several_revocations_takes_effect(tls_broker, tmp_path):
    # The broker reads its list anew each time: an older one must not win.
    certificates = []
    for number in range(3):
        node = node_make()
        certificates.append(certificate_for(node, tmp_path / f"{number}.pem"))
        assert lets_in(tls_broker.door_with(certificates[-1]))
        call_command("node", "revoke", str(node.pk))
        assert [lets_in(tls_broker.door_with(path)) for path in certificates] == [False] * (number + 1)


def test_revocation_that_did_not_reach_the_broker_says_so_and_can_be_repeated(tls_broker, settings, tmp_path):
    node = node_make()
    stolen = certificate_for(node, tmp_path / "stolen.pem")
    settings.SGM_BROKER_RELOAD = "false"
    with pytest.raises(CommandError, match=r"NOT certain.*does not have the present list"):
        call_command("node", "revoke", str(node.pk))
    assert lets_in(tls_broker.door_with(stolen))
    with pytest.raises(CommandError, match="may still be in use"):
        call_command("node", "enroll", str(node.pk))

    settings.SGM_BROKER_RELOAD = tls_broker.reload_command
    call_command("node", "revoke", str(node.pk))
    assert not lets_in(tls_broker.door_with(stolen))
    call_command("node", "enroll", str(node.pk))


def test_revocation_is_not_taken_for_done_while_the_broker_is_away(tls_broker, settings, tmp_path):
    node = node_make()
    certificate_for(node, tmp_path / "node.pem")
    identity.node_revoke(node=node, now=now())
    settings.SGM_NODES_MQTT_URL = "mqtts://localhost:1"
    assert revocations_enforce(now=now()).waiting == (str(node.pk),)

    settings.SGM_NODES_MQTT_URL = tls_broker.nodes_url
    assert revocations_enforce(now=now()).evicted == (str(node.pk),)
    assert not revocations_enforce(now=now()).changed


def test_node_that_was_revoked_comes_back_by_a_new_enrolment(tls_broker, tmp_path):
    node = node_make()
    old = certificate_for(node, tmp_path / "old.pem")
    call_command("node", "revoke", str(node.pk))
    new = certificate_for(node, tmp_path / "new.pem")
    assert lets_in(tls_broker.door_with(new))
    assert not lets_in(tls_broker.door_with(old))


def test_deleted_node_is_shut_out_by_the_next_round(tls_broker, tmp_path):
    node = node_make()
    left = certificate_for(node, tmp_path / "node.pem")
    node.delete()
    revocations_enforce(now=now())
    assert not lets_in(tls_broker.door_with(left))


# --- a fresh computer -----------------------------------------------------------------------------------


def test_fresh_computer_becomes_a_node(tls_broker, live_server, tmp_path):
    node, state = node_make(), tmp_path / "state"
    done = enroll(live_server.url, token_for(node), state)
    assert done.returncode == 0, done.stderr

    assert identity_read(state).node == str(node.pk)
    assert sorted(path.name for path in state.iterdir()) == ["identity.json", "identity.pem"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (state, *state.iterdir()))
    assert lets_in(tls_broker.door_with(state / "identity.pem"))
    # The key was made here: central has the certificate and nothing else.
    assert credentials_read(state).key.pem not in "".join(node.certificates.values_list("pem", flat=True))


def test_second_computer_with_the_same_token_is_told_what_to_do(live_server, tmp_path):
    node = node_make(name="node-77")
    token = token_for(node)
    assert enroll(live_server.url, token, tmp_path / "first").returncode == 0
    second = enroll(live_server.url, token, tmp_path / "second")
    assert second.returncode == EXIT_REFUSED
    assert "manage.py node enroll node-77" in second.stderr
    assert "Traceback" not in second.stderr
    assert not (tmp_path / "second" / "identity.json").exists()


def test_enrolment_does_not_replace_an_identity_unless_told(live_server, tmp_path):
    state = tmp_path / "state"
    assert enroll(live_server.url, token_for(node_make()), state).returncode == 0
    before = (state / "identity.pem").read_bytes()
    other = node_make()
    token = token_for(other)
    refused = enroll(live_server.url, token, state)
    assert refused.returncode == EXIT_REFUSED
    assert "--again" in refused.stderr
    assert (state / "identity.pem").read_bytes() == before
    assert enroll(live_server.url, token, state, "--again").returncode == 0
    assert identity_read(state).node == str(other.pk) == credentials_read(state).node


def test_token_is_never_sent_over_a_network_in_the_clear(tmp_path):
    done = enroll("http://central.example.com", "enr_" + "a" * 43, tmp_path / "state")
    assert done.returncode == 2
    assert "without TLS" in done.stderr
    assert not (tmp_path / "state").exists()


# --- renewal --------------------------------------------------------------------------------------------


async def test_try_of_a_certificate_tells_a_good_one_from_a_revoked_one_and_ends_no_session(
    tls_broker, tmp_path
):
    node = await sync_to_async(node_make)()
    good = await sync_to_async(certificate_for)(node, tmp_path / "good.pem")
    bad = (await sync_to_async(strangers)(tls_broker.directory, tmp_path))["of another authority"]

    def broker(certificate: Path):
        tls = Tls(ca=tls_broker.broker_authority, certificate=certificate)
        return broker_from_url(tls_broker.nodes_url, username=None, password=None, tls=tls)

    async with client(tls_broker, good) as session:
        await try_certificate(broker(good), silent_s=0.3)
        with pytest.raises(LinkDown, match="does not take the certificate"):
            await try_certificate(broker(bad))
        await session.publish(node.topics.presence, b"still here", qos=1)


async def test_node_whose_clock_is_wrong_still_comes_to_the_broker(tls_broker, tmp_path):
    # Certificates of long ago stand for a clock that runs ahead of them: the check is the same.
    node = await sync_to_async(node_make)()
    own = await sync_to_async(certificate_for)(node, tmp_path / "node.pem")
    old = tmp_path / "old"
    authority.authority_make(directory=old, hosts=["localhost"], now=now() - timedelta(days=3 * 365))
    ca = (old / "central-ca.pem").read_text()
    async with silent_server(old / "broker" / "server.pem") as url:
        for is_dated in (True, False):
            tls = Tls(ca=ca, certificate=own, is_dated=partial(bool, is_dated))
            broker = broker_from_url(url, username=None, password=None, tls=tls)
            if is_dated:
                with pytest.raises(LinkDown, match="expired"):
                    await try_certificate(broker, silent_s=0.2)
            else:
                await try_certificate(broker, silent_s=0.2)
