"""Central behind its proxy: PostgreSQL, Redis, processes of web as their unit starts them, HAProxy, events."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
import psycopg
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from smartgrid.api.jwks import signing_keys_read
from smartgrid.demo.state import free_port
from tests.servers import Proxy, haproxy, postgres_server, redis_server, until, web_command

ROOT = Path(__file__).resolve().parents[2]
ISSUER, AUDIENCE, ROOT_TOKEN = "http://issuer.test/", "curtailment-api", "root-token-for-tests-one-0123456789"
CATEGORY = "inverter"


@dataclass
class WebProcess:
    """One process of web, which may be killed and started again on its port."""

    env: Mapping[str, str]
    log: Path
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                web_command(self.port),
                cwd=ROOT,
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text(errors="replace")[-3000:]
        with suppress(httpx.HTTPError):
            return (
                httpx.get(f"http://127.0.0.1:{self.port}/healthz", timeout=5, trust_env=False).status_code
                == httpx.codes.OK
            )
        return False

    def stop(self) -> None:
        """Let it end in good order; come back at once."""
        assert self._process is not None
        self._process.terminate()

    def until_stopped(self) -> None:
        assert self._process is not None
        self._process.wait(30)

    def kill(self) -> None:
        """SIGKILL, for the server and the worker it serves from."""
        assert self._process is not None
        if self._process.poll() is None:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
            for pid in (self._process.pid, *map(int, children.split())):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait(10)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content)


@dataclass
class Central:
    """What runs, what opens its API, and a site with a node and a device."""

    stack: ExitStack
    directory: Path
    database_url: str
    redis_url: str
    env: dict[str, str]
    credentials: dict[str, str]
    web: list[WebProcess]
    events_port: int
    site_id: str = ""
    node_id: str = ""

    @contextmanager
    def proxy(self, **environment: str) -> Iterator[Proxy]:
        """A proxy in front of them; `environment` as the header of its file has it."""
        ports = [each.port for each in self.web]
        with haproxy(web=ports, events=self.events_port, environment=environment) as running:
            yield running

    def ask(
        self,
        port: int,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        within_s: float = 30,
    ) -> Answer:
        """One request over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=within_s)
        sent = {**self.credentials, **(headers or {})}
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            sent["Content-Type"] = "application/json"
        try:
            connection.request(method, path, body=content, headers=sent)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.headers.items()), answer.read())
        finally:
            connection.close()

    def begin(self, port: int, method: str, path: str, body: Any = None, *, buffer: int = 0) -> socket.socket:
        """A request that is sent and whose answer is not read; `buffer`: bytes that wait for it here."""
        connection = socket.socket()
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", port))
        content = b"" if body is None else json.dumps(body).encode()
        more = () if body is None else ("Content-Type: application/json", f"Content-Length: {len(content)}")
        connection.sendall(self.head(f"{method} {path}", *more) + content)
        return connection

    def head(self, line: str, *more: str) -> bytes:
        """A request up to its body, with both credentials."""
        headers = [f"{name}: {value}" for name, value in self.credentials.items()]
        return "\r\n".join([f"{line} HTTP/1.1", "Host: 127.0.0.1", *headers, *more, "", ""]).encode()

    @contextmanager
    def locked(self, table: str, mode: str = "ACCESS EXCLUSIVE") -> Iterator[psycopg.Connection]:
        """The table locked until the end, or until the connection is rolled back."""
        with psycopg.connect(self.database_url) as connection:
            connection.execute(f"LOCK TABLE {table} IN {mode} MODE")
            yield connection
            connection.rollback()

    def count(self, query: str) -> int:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            row = connection.execute(query).fetchone()
        assert row is not None
        return int(row[0])

    def waiting_for_locks(self) -> int:
        return self.count("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")

    @property
    def curtail(self) -> str:
        return f"/v1/sites/{self.site_id}/curtail-category"


def read_answer(connection: socket.socket) -> Answer:
    """The answer that comes on this connection."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return Answer(answer.status, dict(answer.headers.items()), answer.read())


@contextmanager
def running_central(directory: Path, *, processes: int = 2) -> Iterator[Central]:
    with ExitStack() as stack:
        pem = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        key_file = directory / "issuer.pem"
        key_file.write_bytes(pem)
        database_url = stack.enter_context(postgres_server())
        redis_url = stack.enter_context(redis_server())
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SGM_", "DJANGO_"))}
        env = {
            **kept,
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SETTINGS_MODULE": "smartgrid.settings",
            "SGM_DATABASE_URL": database_url,
            "SGM_REDIS_URL": redis_url,
            "SGM_SECRET_KEY": "only for tests, and long enough to keep Django's checks content 0123456789",
            "SGM_TOKEN_HASH_KEY": "only for tests",
            "SGM_TOKEN_ENCRYPTION_KEYS": Fernet.generate_key().decode(),
            "SGM_ROOT_TOKENS": ROOT_TOKEN,
            "SGM_ISSUER_KEY_FILE": str(key_file),
            "SGM_ISSUER_URL": ISSUER,
            "SGM_AUDIENCE": AUDIENCE,
            "SGM_BEHIND_TLS_PROXY": "1",
            "SGM_REQUEST_DEADLINE_S": "4",
            # Until the test lets go of them.
            "SGM_DATABASE_LOCK_TIMEOUT_S": "0",
            "SGM_DATABASE_STATEMENT_TIMEOUT_S": "0",
        }
        for command in (["migrate", "-v0", "--noinput"], ["sync_device_types", "-v0"]):
            subprocess.run(
                [sys.executable, "manage.py", *command], cwd=ROOT, env=env, check=True, capture_output=True
            )
        key = signing_keys_read(key_file)[0]
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": int(time.time()) + 86400,
            "azp": "test",
            "sub": "test",
        }
        bearer = jwt.encode(claims, key.private, algorithm="RS256", headers={"kid": key.kid})
        central = Central(
            stack=stack,
            directory=directory,
            database_url=database_url,
            redis_url=redis_url,
            env=env,
            credentials={"Authorization": f"Bearer {bearer}", "X-Management-Token": ROOT_TOKEN},
            web=[],
            events_port=free_port(),
        )
        for number in range(1, processes + 1):
            process = WebProcess(env, directory / f"web{number}.log")
            process.start()
            stack.callback(process.kill)
            central.web.append(process)
        for process in central.web:
            until(process.is_up, what="web is not up", within_s=90)
        _seed(central)
        yield central


def _seed(central: Central) -> None:
    """A site with a node and a device, by the API itself."""

    def made(path: str, body: dict[str, Any]) -> str:
        answer = central.ask(central.web[0].port, "POST", path, body)
        assert answer.status == http.client.OK, answer.content
        return str(answer.body["id"])

    types = central.ask(central.web[0].port, "GET", "/v1/device-types").body
    [kind] = [each["id"] for each in types if each["profile"] == "generic_modbus"]
    central.site_id = made("/v1/sites", {"site_tag": "park_1", "name": "Park 1"})
    central.node_id = made("/v1/nodes", {"site_id": central.site_id, "polaris_node_name": "node-1"})
    made(
        "/v1/devices",
        {
            "node_id": central.node_id,
            "device_type_id": kind,
            "device_tag": "PV_1",
            "category": CATEGORY,
            "peak_power_kw": 60,
            "modbus_server_host": "192.0.2.7",
            "modbus_server_port": 502,
            "modbus_id": 1,
        },
    )
