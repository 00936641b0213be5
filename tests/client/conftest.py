"""A token issuer and an API that answer as a test tells them, on a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from sgm import Client, Settings
from sgm.repeats import Patience

HANG_UP = object()


@dataclass(frozen=True, kw_only=True)
class Asked:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True, kw_only=True)
class Says:
    """What the server answers; HANG_UP as the body: nothing, and the connection is closed."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Answers = Callable[[Asked], Says]


class Scripted:
    """Answers each path by a list of answers, the last of which is repeated, or by a function."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.asked: list[Asked] = []
        self.tokens_given = 0
        self.token_lives_s = 86400
        self.token_refusal: Says | None = None
        self._answers: dict[tuple[str, str], list[Says] | Answers] = {}
        self._lock = threading.Lock()

    def on(self, method: str, path: str, *says: Says) -> None:
        self._answers[method, path] = list(says)

    def on_call(self, method: str, path: str, answers: Answers) -> None:
        self._answers[method, path] = answers

    def answer(self, asked: Asked) -> Says:
        with self._lock:
            if asked.path == "/oauth/token":
                return self._token()
            self.asked.append(asked)
            answers = self._answers.get((asked.method, asked.path.removeprefix("/v1")))
            if answers is None:
                return error(404, "not_found")
            if callable(answers):
                return answers(asked)
            return answers.pop(0) if len(answers) > 1 else answers[0]

    def _token(self) -> Says:
        self.tokens_given += 1
        if self.token_refusal is not None:
            return self.token_refusal
        content = {
            "access_token": f"token-{self.tokens_given}",
            "expires_in": self.token_lives_s,
            "token_type": "Bearer",
        }
        return Says(body=content)


def error(status: int, code: str, *, detail: str = "No.", **headers: str) -> Says:
    body = {"detail": detail, "code": code, "errors": {}, "request_id": "r-1"}
    return Says(status=status, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


def _handler_of(server: Callable[[], Scripted]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            content = self.rfile.read(length)
            parts = urlsplit(self.path)
            asked = Asked(
                method=self.command,
                path=parts.path,
                query=parse_qs(parts.query),
                headers={name.lower(): value for name, value in self.headers.items()},
                body=json.loads(content) if content else None,
            )
            says = server().answer(asked)
            self.close_connection = True
            if says.body is HANG_UP:
                return
            body = says.body if isinstance(says.body, bytes) else json.dumps(says.body).encode()
            self.send_response(says.status)
            for name, value in says.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _do  # noqa: N815 - the library's names

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@pytest.fixture
def server() -> Iterator[Scripted]:
    made: list[Scripted] = []
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(lambda: made[0]))
    made.append(Scripted(http.server_address[1]))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made[0]
    http.shutdown()
    thread.join()
    http.server_close()


@dataclass
class Waits:
    """A clock that nobody waits for: what was waited, in order."""

    waited_s: list[float] = field(default_factory=list)

    def patience(self) -> Patience:
        return Patience(sleep=self.waited_s.append, draw=lambda: 0.5)


@pytest.fixture
def waits() -> Waits:
    return Waits()


def settings_of(url: str, **changes: Any) -> Settings:
    given: dict[str, Any] = {
        "api_url": f"{url}/v1",
        "token_url": f"{url}/oauth/token",
        "client_id": "robot",
        "client_secret": "a secret",
        "management_token": "tok_1",
    }
    return Settings(**(given | changes))


@pytest.fixture
def client(server: Scripted, waits: Waits, tmp_path: Path) -> Iterator[Client]:
    with Client(settings_of(server.url), cache=tmp_path / "cache", patience=waits.patience) as made:
        yield made
