"""`make bench-api`: how long lists and details take with 100,000 devices under 20 concurrent clients.

Each client asks again as soon as it has its answer, so the two cores of the machine are never idle: HAProxy,
web, PostgreSQL, Redis and the clients themselves share them. All is served as in production: processes of one
worker behind the proxy's own file. An empty view of the same framework, served alike behind a proxy of its
own and asked in the same way between every two operations, says what of that is not ours.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import jwt
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bench.record import ROOT, Figure, Run, percentile
from smartgrid.api.jwks import signing_keys_read
from smartgrid.demo.state import free_port
from tests.servers import haproxy, postgres_server, proxy_version, redis_server, until, web_command

CLIENTS = 20
DEVICES = 100_000
# Of each client, so many requests count.
COUNT, WARM_UP = 30, 5
ROUNDS = 2
LIST_P95_MS, DETAIL_P95_MS, STREAM_MB = 50.0, 20.0, 300
DATABASE = {"shared_buffers": "256MB", "max_wal_size": "4GB"}
ISSUER, AUDIENCE, ROOT_TOKEN = (
    "http://issuer.test/",
    "curtailment-api",
    "root-token-of-the-benchmark-0123456789",
)
# Two for each core: while one waits for PostgreSQL another runs.
PROCESSES = 4


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One operation, as a path below /v1."""

    name: str
    path: str
    is_detail: bool = False
    root_only: bool = False


def operations(fleet: dict[str, str]) -> list[Asked]:
    site, node, device = (fleet[name] for name in ("site", "node", "device"))
    return [
        Asked(name="sites", path="sites?limit=100"),
        Asked(name="nodes", path="nodes?limit=100"),
        Asked(name="devices", path="devices?limit=100"),
        Asked(name="schedules", path="schedules?limit=100"),
        Asked(name="schedules_of_day", path=f"schedules/{fleet['day']}?limit=100"),
        Asked(name="logs", path="logs?limit=100"),
        Asked(name="health_report", path="site-health-report?limit=100"),
        Asked(name="device_types", path="device-types?limit=100"),
        Asked(name="auth_tokens", path="auth-tokens?limit=100", root_only=True),
        Asked(name="site_nodes", path=f"sites/{site}/nodes?limit=100"),
        Asked(name="site_devices", path=f"sites/{site}/devices?limit=100"),
        Asked(name="node_devices", path=f"sites/{site}/nodes/{node}/devices?limit=100"),
        Asked(name="site_categories", path=f"sites/{site}/device-categories"),
        Asked(name="site_logs", path=f"sites/{site}/logs?limit=100"),
        Asked(name="site_schedules", path=f"sites/{site}/schedules?limit=100"),
        Asked(name="site", path=f"sites/{site}", is_detail=True),
        Asked(name="node", path=f"nodes/{node}", is_detail=True),
        Asked(name="device", path=f"devices/{device}", is_detail=True),
        Asked(name="auth_token", path=f"auth-tokens/{fleet['token']}", is_detail=True, root_only=True),
    ]


def main() -> None:
    only = set(sys.argv[1:])
    with ExitStack() as stack:
        var = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sgm-bench-")))
        environment = _environment(stack, var)
        print("Making the fleet ...", flush=True)
        fleet = _fleet(environment)
        bearer = _bearer(var / "issuer.pem")
        web = stack.enter_context(_web("smartgrid.wsgi:application", var / "web.log", environment))
        floor = stack.enter_context(_web("bench.noop_web:application", var / "floor.log", environment))
        load = stack.enter_context(_load())
        run = Run(name="api", broker="none", database="PostgreSQL")
        run.notes["fleet"] = (
            "10,000 sites, 12,000 nodes, 100,000 devices, 30,000 schedules, 200,000 log lines"
        )
        run.notes["load"] = (
            f"{CLIENTS} clients without a pause, {ROUNDS} rounds of {CLIENTS * COUNT} requests of each"
            " operation and kind of token; medians of the rounds"
        )
        run.notes["served"] = (
            f"by {PROCESSES} processes of web of one worker each, behind {proxy_version()} with"
            f" deploy/haproxy/haproxy.cfg and SGM_PROXY_READS={os.environ.get('SGM_PROXY_READS', '1')};"
            " the empty view in exactly the same way"
        )
        tokens = {"root": ROOT_TOKEN, "site": fleet["few"]}
        asked = [one for one in operations(fleet) if not only or one.name in only]
        _measure(run, load, asked, tokens, bearer, port=web.port, floor_port=floor.port)
        if not only:
            _stream(run, var, environment, bearer)
        run.print_table()
        if not only:
            run.write()


def _measure(
    run: Run,
    load: subprocess.Popen[str],
    asked: list[Asked],
    tokens: dict[str, str],
    bearer: str,
    *,
    port: int,
    floor_port: int,
) -> None:
    took: dict[str, list[dict[str, float]]] = {}
    floor: list[dict[str, float]] = []
    noop = _request("/v1/ping", {})
    for number in range(ROUNDS):
        print(f"Round {number + 1} of {ROUNDS} ...", flush=True)
        for one in asked:
            floor.append(_ask(load, [noop], port=floor_port))
            for kind, token in tokens.items():
                if one.root_only and kind != "root":
                    continue
                headers = {"Authorization": f"Bearer {bearer}", "X-Management-Token": token}
                said = _ask(load, [_request(f"/v1/{one.path}", headers)], port=port)
                took.setdefault(f"{one.name}_{kind}", []).append(said)
    base = {key: statistics.median(each[key] for each in floor) for key in ("p50", "p95", "per_s")}
    n = CLIENTS * COUNT * ROUNDS
    for key, unit in (("p50", "ms"), ("p95", "ms"), ("per_s", "/s")):
        run.figures[f"empty_view_{key}"] = Figure(value=round(base[key], 2), unit=unit, n=len(floor))
    for one in asked:
        for kind in tokens:
            rounds = took.get(f"{one.name}_{kind}")
            if rounds is None:
                continue
            p95 = statistics.median(each["p95"] for each in rounds)
            goal = DETAIL_P95_MS if one.is_detail else LIST_P95_MS
            what = "detail" if one.is_detail else "list"
            name = f"{what}_{one.name}_{kind}"
            run.figures[f"{name}_p95"] = Figure(
                value=round(p95, 2), unit="ms", n=n, goal=f"< {goal:g}", met=p95 < goal
            )
            run.figures[f"{name}_p95_ratio"] = Figure(
                value=round(p95 / base["p95"], 2), unit="x empty", n=n, floor=round(base["p95"], 2)
            )
            run.notes.setdefault("spread", {})[name] = {
                key: round(statistics.median(each[key] for each in rounds), 1)
                for key in ("p50", "p99", "per_s")
            }


def _ask(load: subprocess.Popen[str], requests: list[str], *, port: int) -> dict[str, float]:
    job = {"port": port, "clients": CLIENTS, "count": COUNT, "warm_up": WARM_UP, "requests": requests}
    assert load.stdin is not None
    assert load.stdout is not None
    load.stdin.write(json.dumps(job) + "\n")
    load.stdin.flush()
    said = json.loads(load.stdout.readline())
    assert set(said["statuses"]) == {"200"}, (requests, said["statuses"])
    return {
        "p50": statistics.median(said["took_ms"]),
        "p95": percentile(said["took_ms"], 0.95),
        "p99": percentile(said["took_ms"], 0.99),
        "per_s": said["per_s"],
    }


def _request(path: str, headers: dict[str, str]) -> str:
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""])


def _stream(run: Run, var: Path, environment: dict[str, str], bearer: str) -> None:
    """All devices at once, from a server of its own whose highest memory is then its alone."""
    with _web("smartgrid.wsgi:application", var / "stream.log", environment, processes=1) as web:
        connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=120)
        began = time.monotonic()
        headers = {"Authorization": f"Bearer {bearer}", "X-Management-Token": ROOT_TOKEN}
        connection.request("GET", "/v1/devices", headers=headers)
        answer = connection.getresponse()
        first = time.monotonic() - began
        rows = json.loads(answer.read())
        took = time.monotonic() - began
        assert len(rows) == DEVICES, len(rows)
        peak = web.peak_mb()
    run.figures["all_devices_peak_memory"] = Figure(
        value=round(peak), unit="MB", n=1, goal=f"<= {STREAM_MB}", met=peak <= STREAM_MB
    )
    run.figures["all_devices_first_byte"] = Figure(value=round(first, 2), unit="s", n=1)
    run.figures["all_devices_last_byte"] = Figure(value=round(took, 2), unit="s", n=1)


# --- what runs ----------------------------------------------------------------------------------------------


def _environment(stack: ExitStack, var: Path) -> dict[str, str]:
    pem = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (var / "issuer.pem").write_bytes(pem)
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "smartgrid.settings",
        "SGM_DATABASE_URL": stack.enter_context(postgres_server(settings=DATABASE)),
        "SGM_REDIS_URL": stack.enter_context(redis_server()),
        "SGM_SECRET_KEY": "only for this benchmark, and long enough to keep checks content 0123456789",
        "SGM_TOKEN_HASH_KEY": "only for this benchmark",
        "SGM_TOKEN_ENCRYPTION_KEYS": Fernet.generate_key().decode(),
        "SGM_ROOT_TOKENS": ROOT_TOKEN,
        "SGM_ISSUER_KEY_FILE": str(var / "issuer.pem"),
        "SGM_ISSUER_URL": ISSUER,
        "SGM_AUDIENCE": AUDIENCE,
        "SGM_LOG_LEVEL": "ERROR",
        # Counted as in production, and never too many.
        "SGM_THROTTLE_CLIENT": "10000000/min",
        "SGM_THROTTLE_TOKEN": "10000000/min",
    }


def _fleet(environment: dict[str, str]) -> dict[str, str]:
    """Made in a process of its own, whose Django is the product's."""
    done = subprocess.run(
        [sys.executable, "-c", "import django; django.setup(); from bench.api_fleet import main; main()"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    fleet: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return fleet


def _bearer(key_file: Path) -> str:
    key = signing_keys_read(key_file)[0]
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 86400, "azp": "bench", "sub": "bench"}
    return jwt.encode(claims, key.private, algorithm="RS256", headers={"kid": key.kid})


@dataclass(frozen=True, kw_only=True)
class Web:
    """The proxy's port, and the processes of web behind it."""

    port: int
    pids: list[int]

    def peak_mb(self) -> float:
        """The most memory that web's processes ever had resident, added up."""
        kb = 0
        for pid in self.pids:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
            kb += sum(_peak_kb(each) for each in (pid, *map(int, children)))
        return kb / 1024


def _peak_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


@contextmanager
def _web(
    application: str, log: Path, environment: dict[str, str], *, processes: int = PROCESSES
) -> Iterator[Web]:
    """Processes as their unit starts them, behind a proxy of their own."""
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        ports = [free_port() for _ in range(processes)]
        started = []
        for port in ports:
            process = subprocess.Popen(
                web_command(port, application=application),
                cwd=ROOT,
                stdout=output,
                stderr=output,
                env=environment,
            )
            stack.callback(process.wait, timeout=20)
            stack.callback(process.terminate)
            started.append(process.pid)
        for port in ports:
            until(lambda port=port: _answers(port), what=f"{application} did not answer")  # type: ignore[misc]
        # Where somebody wants to know what another number would do.
        told = {name: os.environ[name] for name in ("SGM_PROXY_READS",) if name in os.environ}
        proxy = stack.enter_context(haproxy(web=ports, environment=told))
        yield Web(port=proxy.port, pids=started)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        connection.getresponse().read()
    except OSError:
        return False
    finally:
        connection.close()
    return True


@contextmanager
def _load() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.api_load"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
