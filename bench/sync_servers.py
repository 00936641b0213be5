"""What `bench.sync` runs beside central: PostgreSQL as in production, Redis, the broker, and the fleet."""

from __future__ import annotations

import json
import resource
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import redis

from bench.record import ROOT
from edge.wire.topics import CENTRAL_RIGHTS
from smartgrid.demo.broker import mosquitto_config, on_path
from smartgrid.demo.state import free_port
from tests.servers import postgres_server, redis_server, until

TENANT = "bench"
# As durable as in production. With the moments of commits, which tell when a row became visible.
DATABASE = {"track_commit_timestamp": "on", "shared_buffers": "256MB", "max_wal_size": "4GB"}
ANSWER_S = 120.0


@dataclass(frozen=True, kw_only=True)
class NodeIdentity:
    """A node as the broker knows it."""

    id: str
    password: str
    device: str


@dataclass(kw_only=True)
class Servers:
    """Their addresses and, for the accounts, their processes."""

    var: Path
    database_url: str
    redis_url: str
    mqtt_port: int
    passwords: dict[str, str]
    broker: subprocess.Popen[bytes]
    # When the broker took connections again after its last restart.
    broker_back_at: float = 0.0
    pids: dict[str, int] = field(default_factory=dict)

    def restart_broker(self, *, kill: bool) -> None:
        """End the broker and start it again: with SIGKILL it loses what it has not written, else nothing."""
        self.broker.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        self.broker.wait(timeout=60)
        self.broker = _start_broker(self.var / "broker", port=self.mqtt_port)
        self.broker_back_at = time.time()
        self.pids["broker"] = self.broker.pid


@contextmanager
def servers(var: Path, nodes: list[NodeIdentity]) -> Iterator[Servers]:
    """PostgreSQL, Redis and a broker that knows these nodes."""
    with ExitStack() as stack:
        database_url = stack.enter_context(postgres_server(settings=DATABASE))
        redis_url = stack.enter_context(redis_server())
        passwords = {user: secrets.token_hex(24) for user in CENTRAL_RIGHTS}
        port, broker = broker_start(var / "broker", passwords=passwords, nodes=nodes)
        running = Servers(
            var=var,
            database_url=database_url,
            redis_url=redis_url,
            mqtt_port=port,
            passwords=passwords,
            broker=broker,
        )
        running.pids = {
            "postgres": _postgres_pid(database_url),
            "redis": _redis_pid(redis_url),
            "broker": broker.pid,
        }
        try:
            yield running
        finally:
            running.broker.kill()
            running.broker.wait(timeout=20)


def broker_start(
    directory: Path, *, passwords: Mapping[str, str], nodes: list[NodeIdentity]
) -> tuple[int, subprocess.Popen[bytes]]:
    """A broker with the product's own configuration on a port of its own."""
    port = free_port()
    mosquitto_config(
        directory=directory, port=port, passwords={**passwords, **{node.id: node.password for node in nodes}}
    )
    return port, _start_broker(directory, port=port)


def _start_broker(directory: Path, *, port: int) -> subprocess.Popen[bytes]:
    program = on_path("mosquitto")
    if program is None:
        raise SystemExit("mosquitto is not installed")
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen([program, "-c", str(directory / "mosquitto.conf")], stdout=log, stderr=log)
    until(lambda: _accepts(port), what="the broker did not take connections", within_s=60)
    return process


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _postgres_pid(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SHOW data_directory").fetchone()
    assert row is not None
    return int((Path(row[0]) / "postmaster.pid").read_text().split()[0])


def _redis_pid(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


def versions(running: Servers) -> tuple[str, str]:
    """The broker's and the database's names and versions."""
    program = on_path("mosquitto")
    assert program is not None
    said = subprocess.run([program, "-h"], capture_output=True, text=True, check=False).stdout
    with psycopg.connect(running.database_url) as connection:
        row = connection.execute("SHOW server_version").fetchone()
    assert row is not None
    return said.partition("\n")[0].replace("version ", "").strip(), f"PostgreSQL {row[0].split()[0]}"


class FleetProcess:
    """The fleet in a process of its own, asked and answered by lines."""

    def __init__(self, var: Path, *, port: int, nodes: list[NodeIdentity]) -> None:
        plan = {
            "host": "127.0.0.1",
            "port": port,
            "tenant": TENANT,
            "nodes": [(node.id, node.password, node.device) for node in nodes],
        }
        path = var / "fleet.json"
        path.write_text(json.dumps(plan), encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.sync_fleet", str(path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self._answers = selectors.DefaultSelector()
        self._answers.register(self.process.stdout, selectors.EVENT_READ)

    def ask(self, question: str, **details: Any) -> dict[str, Any]:
        """Put a question to the fleet; see `bench.sync_fleet.Fleet.answer`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"ask": question, **details}).encode() + b"\n")
        self.process.stdin.flush()
        if not self._answers.select(ANSWER_S):
            raise TimeoutError(f"the fleet did not answer {question!r} within {ANSWER_S:.0f} s")
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def until_all(self, what: str, *, within_s: float) -> dict[str, Any]:
        """Wait until all nodes are `live`, or `complete`; the state then."""
        state: dict[str, Any] = {}

        def there() -> bool:
            state.update(self.ask("state"))
            return bool(state[what] == state["nodes"])

        until(there, what=f"not all nodes were {what}", within_s=within_s)
        return state

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


@contextmanager
def fleet_process(var: Path, *, port: int, nodes: list[NodeIdentity]) -> Iterator[FleetProcess]:
    fleet = FleetProcess(var, port=port, nodes=nodes)
    try:
        yield fleet
    finally:
        fleet.stop()


def raise_open_files(needed: int) -> None:
    """Let this process and those it starts have as many files as allowed; a broker needs one a node."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < needed:
        raise SystemExit(f"{needed} open files are needed, and {most} are allowed (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def cpu_s(pid: int) -> float:
    """The seconds of processor time of a process and of all below it, ended ones included."""
    tick = 100.0
    total = 0.0
    for each in [pid, *_below(pid)]:
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(value) for value in fields[11:15]) / tick
    return total


def memory_mb(pid: int) -> float:
    """The proportional share of memory of a process and of all below it, in MB (10^6 bytes)."""
    total = 0
    for each in [pid, *_below(pid)]:
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024 / 1e6


def _below(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [each for child in children for each in (int(child), *_below(int(child)))]
