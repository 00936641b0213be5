"""The demo's web server against clients that are slow, endless, oversized or speak something else.

Over sockets, since no HTTP client would send this. What each test asserts beside the answer is that others are
served meanwhile.
"""

from __future__ import annotations

import http.client
import os
import re
import secrets
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import jwt
import pytest
from cryptography.fernet import Fernet

from smartgrid.api.jwks import signing_keys_read
from smartgrid.bodies import API_BODIES_AT_ONCE, OTHER_BODIES_AT_ONCE
from smartgrid.demo.services import AUDIENCE, WEB_THREADS, DemoSettings
from smartgrid.demo.state import free_port
from smartgrid.issuer_keys import issuer_key_create
from tests.servers import until

# Seconds that the demo's web gives a head.
HEAD_S = 20
CURTAIL = "/v1/sites/01751407-d87b-4d89-b47f-cca4dfb85a92/curtail-category"


class Names(dict[str, str]):
    """Whatever else is secret in a demo, drawn when it is asked for."""

    def __missing__(self, name: str) -> str:
        return self.setdefault(name, secrets.token_hex(20))


@dataclass(frozen=True)
class Web:
    """A running web server and what opens its API."""

    port: int
    credentials: dict[str, str]

    def connect(self, *, timeout_s: float = 10) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)

    def head(self, line: str, *more: str) -> bytes:
        """A request up to its body, with both credentials."""
        headers = [f"{name}: {value}" for name, value in self.credentials.items()]
        return "\r\n".join([f"{line} HTTP/1.1", "Host: 127.0.0.1", *headers, *more, "", ""]).encode()

    def answer(self, sent: bytes, *, timeout_s: float = 10) -> bytes:
        """What comes back for these bytes, up to the end of the connection or some silence."""
        with self.connect(timeout_s=timeout_s) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(sent)
            return received(connection)

    def ping(self) -> float:
        """Seconds that an honest client waits for its answer."""
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", "/v1/ping", headers=self.credentials)
        assert connection.getresponse().status == 200
        connection.close()
        return time.monotonic() - began


def received(connection: socket.socket) -> bytes:
    """The head of an answer and what came with it; empty where the server hung up without a word."""
    found = b""
    with suppress(ConnectionResetError):
        while b"\r\n\r\n" not in found:
            piece = connection.recv(65536)
            if not piece:
                break
            found += piece
    return found


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """The demo's web process as its supervisor starts it. No Redis, no tables."""
    var: Path = tmp_path_factory.mktemp("web")
    (var / "database").mkdir()
    demo = DemoSettings(
        var=var,
        port=free_port(),
        ports={"mqtt": 1, "redis": 1, "events": 1},
        secrets=Names(token_encryption_key=Fernet.generate_key().decode()),
        split_connections=False,
    )
    issuer_key_create(demo.issuer_key)
    key = signing_keys_read(demo.issuer_key)[0]
    now = int(time.time())
    claims = {"iss": demo.issuer_url, "aud": AUDIENCE, "azp": "test", "iat": now, "exp": now + 3600}
    token = jwt.encode(claims, key.private, algorithm="RS256", headers={"kid": key.kid})
    spec = demo.web()
    with (var / "log").open("wb") as log:
        process = subprocess.Popen(
            spec.argv,
            env={**os.environ, **spec.env},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    served = Web(
        port=demo.port,
        credentials={
            "Authorization": f"Bearer {token}",
            "X-Management-Token": demo.secrets["root_token"],
        },
    )
    try:
        until(lambda: accepts(served), what=f"web did not listen ({var / 'log'})")
        served.ping()
        yield served
    finally:
        process.terminate()
        process.wait(timeout=20)


def accepts(web: Web) -> bool:
    try:
        web.connect(timeout_s=1).close()
    except OSError:
        return False
    return True


# --- bodies -----------------------------------------------------------------------------------------------------


def test_oversized_body_is_refused_before_any_of_it_is_sent(web: Web) -> None:
    head = web.head(f"PUT {CURTAIL}", "Content-Type: application/json", f"Content-Length: {1024 * 1024 + 1}")
    answer = web.answer(head, timeout_s=2)
    assert status(answer) == 413


def test_endless_chunked_body_is_refused_without_being_read(web: Web) -> None:
    head = web.head(f"PUT {CURTAIL}", "Content-Type: application/json", "Transfer-Encoding: chunked")
    with web.connect() as connection:
        connection.sendall(head)
        sent = 0
        with suppress(BrokenPipeError, ConnectionResetError):
            while sent < 64 * 1024 * 1024:
                connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
        assert sent < 64 * 1024 * 1024
    assert status(web.answer(head, timeout_s=2)) == 411


def test_slow_bodies_of_any_number_keep_no_other_waiting(web: Web) -> None:
    """More than there are threads: all that may wait do so, the others are refused, and who has no body is served."""
    head = web.head(f"PUT {CURTAIL}", "Content-Type: application/json", "Content-Length: 100")
    anonymous = (
        b"POST /oauth/token HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    )
    with ExitStack() as stack:
        slow = [stack.enter_context(web.connect()) for _ in range(WEB_THREADS + 50)]
        for number, connection in enumerate(slow):
            connection.sendall(head if number % 2 else anonymous)
        assert web.ping() < 5
        refused = len(slow) - API_BODIES_AT_ONCE - OTHER_BODIES_AT_ONCE
        answered: list[int] = []
        until(lambda: len(take_answers(slow, answered)) >= refused, what="refusals", within_s=20)
        assert len(answered) == refused
        assert set(answered) == {400, 503}
        assert web.ping() < 2
    until(lambda: bodies_are_read(web), what="bodies are read again", within_s=10)


def take_answers(connections: list[socket.socket], answered: list[int]) -> list[int]:
    """Take what has come on these connections, and leave out those that were answered."""
    ready, _, _ = select.select(connections, [], [], 0)
    for connection in ready:
        answered.append(status(received(connection)))
        connections.remove(connection)
    return answered


def bodies_are_read(web: Web) -> bool:
    head = web.head(f"PUT {CURTAIL}", "Content-Type: application/json", "Content-Length: 2")
    return status(web.answer(head + b"{}")) == 400


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        (("Content-Type: text/plain", "Content-Length: 2"), b"{}", 415),
        (("Content-Length: 2",), b"{}", 415),
        (("Content-Type: application/xml", "Content-Length: 4"), b"<a/>", 415),
        (("Content-Type: application/json", "Content-Length: 0"), b"", 400),
        (("Content-Type: application/json",), b"", 400),
        (("Content-Type: application/json; charset=utf-16", "Content-Length: 4"), b"\xff\xfe{}", 400),
        (("Content-Type: application/json", "Content-Length: -1"), b"", 400),
        (("Content-Type: application/json", "Content-Length: 1", "Content-Length: 2"), b"{}", 400),
    ],
)
def test_body_that_is_no_json_is_refused(
    web: Web, headers: tuple[str, ...], body: bytes, expected: int
) -> None:
    assert status(web.answer(web.head(f"PUT {CURTAIL}", *headers) + body)) == expected
    assert web.ping() < 2


# --- heads ------------------------------------------------------------------------------------------------------


def test_request_line_that_does_not_end_is_cut_off(web: Web) -> None:
    answer = web.answer(b"GET /v1/ping?" + b"a" * 1024 * 1024)
    assert status(answer) in {414, 431}
    assert web.ping() < 2


@pytest.mark.parametrize(
    "headers", [[f"X-{number}: a" for number in range(1000)], ["X: " + "a" * 1024 * 1024]]
)
def test_too_many_or_too_long_headers_are_refused(web: Web, headers: list[str]) -> None:
    assert status(web.answer(web.head("GET /v1/ping", *headers))) == 431
    assert web.ping() < 2


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"\0" * 4096 + b"\r\n\r\n", b"HELO\r\n\r\n"],
)
def test_what_is_no_http_is_cut_off(web: Web, garbage: bytes) -> None:
    answer = web.answer(garbage)
    assert answer == b"" or status(answer) == 400
    assert web.ping() < 2


def test_garbage_behind_a_request_does_not_spoil_its_answer(web: Web) -> None:
    answer = web.answer(web.head("GET /v1/ping") + b"\xff\xfe garbage\r\n\r\n" * 100)
    assert status(answer) == 200
    assert web.ping() < 2


def test_pipelined_requests_are_answered_in_their_order(web: Web) -> None:
    with web.connect() as connection:
        connection.sendall(web.head("GET /v1/ping") + web.head("GET /v1/no-such-path", "Connection: close"))
        found = b""
        while piece := connection.recv(65536):
            found += piece
    assert re.findall(rb"HTTP/1\.1 (\d+) ", found) == [b"200", b"404"]


def test_connections_that_say_nothing_or_too_little_are_closed(web: Web) -> None:
    """All at once, since each takes as long as a head may take."""
    with ExitStack() as stack:
        beginnings = [b"", b"GET /v1/ping HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ", web.head("GET /v1/ping")]
        connections = [stack.enter_context(web.connect(timeout_s=HEAD_S + 10)) for _ in beginnings]
        for connection, beginning in zip(connections, beginnings, strict=True):
            connection.sendall(beginning)
        assert web.ping() < 2
        idle, slow, kept = connections
        assert status(received(kept)) == 200
        kept.settimeout(HEAD_S + 10)
        while piece := kept.recv(65536):
            assert b"HTTP/1.1" not in piece
        assert received(slow) == b""
        assert received(idle) == b""
