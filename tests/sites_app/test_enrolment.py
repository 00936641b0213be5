"""`/enroll` as a client sees it: no credentials of the API, one shape of error, and what pins the server."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from django.core.cache import cache
from django.core.wsgi import get_wsgi_application
from rest_framework.test import APIClient

from edge.runtime.enroll import Central, CentralRefused, CentralUnreachable
from edge.wire.enrolment import CHALLENGE_PATH, Challenge
from sites_app import authority, identity
from tests.factories import node_make
from tests.nodes import Key

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, settings) -> Iterator[Path]:
    directory = tmp_path / "ca"
    authority.authority_make(directory=directory, hosts=["localhost"], now=datetime.now(UTC))
    settings.SGM_CA_DIR = str(directory)
    settings.SGM_NODES_MQTT_URL = "mqtts://broker.example.com:8883"
    cache.clear()
    yield directory
    cache.clear()


@pytest.fixture
def client() -> APIClient:
    return APIClient()


def token_for(node) -> str:
    return identity.enrolment_token_issue(node=node, now=datetime.now(UTC)).value


def test_token_is_all_that_it_takes(client):
    node = node_make()
    answer = client.post("/enroll", {"v": 1, "token": token_for(node), "csr": Key().csr()})
    assert answer.status_code == 200
    assert answer.json()["node"] == str(node.pk)
    assert answer.headers["Cache-Control"] == "no-store"


def test_refusal_has_the_shape_of_every_error(client):
    answer = client.post("/enroll", {"v": 1, "token": "enr_" + "a" * 43, "csr": Key().csr()})
    assert answer.status_code == 403
    assert set(answer.json()) == {"detail", "code", "errors", "request_id"}
    assert answer.json()["code"] == "enrolment_refused"


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"v": 1},
        {"v": 1, "token": 5, "csr": ""},
        {"v": 2, "token": "", "csr": ""},
        {"v": 1, "token": None},
    ],
)
@pytest.mark.parametrize("path", ["/enroll", "/enroll/renew", "/enroll/confirm"])
def test_what_is_no_request_is_a_400(client, path, body):
    assert client.post(path, body).status_code == 400


@pytest.mark.parametrize("path", ["/enroll", "/enroll/challenge", "/enroll/renew", "/enroll/confirm"])
def test_only_post_is_answered(client, path):
    assert client.get(path).status_code == 405


def test_renewal_and_confirmation_over_the_wire(client):
    old, new, node = Key(), Key(), node_make()
    first = client.post("/enroll", {"v": 1, "token": token_for(node), "csr": old.csr()}).json()

    def challenge() -> str:
        return str(client.post("/enroll/challenge").json()["challenge"])

    asked = old.renewal(challenge=challenge(), certificate=first["certificate"], csr=new.csr())
    second = client.post("/enroll/renew", {"v": 1, **asked})
    assert second.status_code == 200
    assert client.post("/enroll/renew", {"v": 1, **asked}).json()["code"] == "challenge_refused"
    told = new.confirmation(challenge=challenge(), certificate=second.json()["certificate"])
    assert client.post("/enroll/confirm", {"v": 1, **told}).status_code == 200
    assert node.certificates.filter(revoked_at=None).count() == 1


def test_who_tries_too_often_waits(client):
    answers = [client.post("/enroll/challenge").status_code for _ in range(121)]
    assert answers == [200] * 120 + [429]
    refused = client.post("/enroll/challenge")
    assert int(refused.headers["Retry-After"]) >= 1
    # Somebody else does not; and a header that anybody can write makes nobody somebody else.
    assert client.post("/enroll/challenge", REMOTE_ADDR="192.0.2.9").status_code == 200
    assert client.post("/enroll/challenge", HTTP_X_FORWARDED_FOR="192.0.2.10").status_code == 429


def test_behind_our_proxy_it_is_the_proxys_word_that_counts(client, settings):
    settings.SGM_BEHIND_TLS_PROXY = True
    for _ in range(120):
        client.post("/enroll/challenge", HTTP_X_FORWARDED_FOR="1.2.3.4, 192.0.2.11")
    assert client.post("/enroll/challenge", HTTP_X_FORWARDED_FOR="5.6.7.8, 192.0.2.11").status_code == 429
    assert client.post("/enroll/challenge", HTTP_X_FORWARDED_FOR="1.2.3.4, 192.0.2.12").status_code == 200


def test_without_an_authority_it_is_unavailable_and_the_token_is_not_spent(client, settings, directory):
    node = node_make()
    token = token_for(node)
    settings.SGM_CA_DIR = ""
    assert client.post("/enroll", {"v": 1, "token": token, "csr": Key().csr()}).status_code == 503
    settings.SGM_CA_DIR = str(directory)
    assert client.post("/enroll", {"v": 1, "token": token, "csr": Key().csr()}).status_code == 200


def test_missing_broker_address_spends_no_token(client, settings):
    token = token_for(node_make())
    url, settings.SGM_NODES_MQTT_URL = settings.SGM_NODES_MQTT_URL, ""
    assert client.post("/enroll", {"v": 1, "token": token, "csr": Key().csr()}).status_code == 503
    settings.SGM_NODES_MQTT_URL = url
    assert client.post("/enroll", {"v": 1, "token": token, "csr": Key().csr()}).status_code == 200


# --- what pins the server -------------------------------------------------------------------------------


class QuietHandler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None: ...


@contextmanager
def https(certificate: Path) -> Iterator[str]:
    """Central behind a certificate of this file; what is asked of it here touches no database."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = make_server("localhost", 0, get_wsgi_application(), handler_class=QuietHandler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"https://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def private_https(directory, settings) -> Iterator[str]:
    settings.SGM_ENROL_CA_FILE = str(directory / "central-ca.pem")
    with https(directory / authority.SERVER) as url:
        yield url


def test_fingerprint_of_the_token_pins_a_private_authority(private_https):
    pinned = Central(private_https).pinned_authority(identity.https_fingerprint())
    known = Central(private_https, authority=pinned)
    assert known.ask(CHALLENGE_PATH, None, Challenge).challenge


def test_server_of_another_authority_is_told_nothing(private_https):
    with pytest.raises(CentralRefused, match="Somebody may be in between"):
        Central(private_https).pinned_authority("0" * 64)


def test_server_that_names_the_right_authority_and_is_of_another_is_told_nothing(
    tmp_path, directory, settings
):
    # Anybody can repeat what is public: it is the second connection that proves who is there.
    settings.SGM_ENROL_CA_FILE = str(directory / "central-ca.pem")
    other = tmp_path / "other"
    authority.authority_make(directory=other, hosts=["localhost"], now=datetime.now(UTC))
    with https(other / authority.SERVER) as url:
        pinned = Central(url).pinned_authority(identity.https_fingerprint())
        with pytest.raises(CentralUnreachable, match="certificate verify failed"):
            Central(url, authority=pinned).ask(CHALLENGE_PATH, None, Challenge)


def test_private_server_is_not_believed_without_a_fingerprint(private_https):
    with pytest.raises(CentralUnreachable, match="certificate verify failed"):
        Central(private_https).ask(CHALLENGE_PATH, None, Challenge)
