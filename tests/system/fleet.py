"""A fleet on real processes, and the faults it must survive: everything of the product runs as in production.

PostgreSQL, Redis and mosquitto, a Celery worker with beat, two inboxes, and nodes with simulated devices. What
the tests change and look at in the database goes through a process of its own (`Hands`), which calls services
and selectors as a web process would. `Fleet.until_consistent` is what every test ends with.

    python -m tests.system.fleet        the hands: one JSON object a line in, one out
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import paho.mqtt.client as paho
import psycopg
from paho.mqtt.enums import CallbackAPIVersion
from pymodbus.client import ModbusTcpClient

from edge.profiles.loader import load_all
from edge.runtime.clock import wall
from edge.runtime.store import Store
from edge.wire import codec
from edge.wire.messages import DIGEST_LENGTH, DeviceResult, LogEntry, Reported, Stream
from edge.wire.topics import ALL_REPORTED, owner
from smartgrid.demo.services import DemoSettings, edge_environment
from smartgrid.demo.state import free_port
from tests.servers import Broker, mosquitto_broker, postgres_server, redis_server, until

ROOT = Path(__file__).resolve().parents[2]
TENANT = "tenant-123"
CATEGORY = "inverter"
PROFILE, DEFAULT = "generic_modbus", 100.0
# Before the reasons of log entries that the tests wrote.
MARK = "fault test "
WITHIN_S = 60.0


# --- the gate between the worker and the broker -------------------------------------------------------------


class Gate:
    """Stands between a client and the broker, and holds what the client sends after so many bytes.

    What it let through before is with the broker. A broker that is gone ends the client's connection too.
    """

    def __init__(self, port: int) -> None:
        self._broker_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._left: int | None = None
        self._lock = threading.Lock()
        self._open = threading.Event()
        self._open.set()
        self.is_holding = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def hold_after(self, size: int) -> None:
        """Let so many more bytes through."""
        with self._lock:
            self._left = size
            self._open.clear()
            self.is_holding.clear()

    def release(self) -> None:
        with self._lock:
            self._left = None
            self._open.set()

    def close(self) -> None:
        self.release()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    broker = socket.create_connection(("127.0.0.1", self._broker_port), timeout=5)
                except OSError:
                    client.close()
                    continue
                broker.settimeout(None)
                for end in (client, broker):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for source, sink, held in ((client, broker, True), (broker, client, False)):
                    threading.Thread(target=self._pump, args=(source, sink, held), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, held: bool) -> None:
        with source:
            with suppress(OSError):
                while data := source.recv(4096):
                    sink.sendall(self._pass(data, sink) if held else data)
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _pass(self, data: bytes, sink: socket.socket) -> bytes:
        """Send what may pass, wait, and return the rest."""
        with self._lock:
            allowed = len(data) if self._left is None else min(self._left, len(data))
            if self._left is not None:
                self._left -= allowed
        if allowed < len(data):
            sink.sendall(data[:allowed])
            self.is_holding.set()
            self._open.wait()
        return data[allowed:] if allowed < len(data) else data


# --- the hands in the database ------------------------------------------------------------------------------


class Hands:
    """A process of central's own, to which the tests say what to call."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def call(self, name: str, /, **arguments: Any) -> Any:
        """The result of one of the functions below; `RuntimeError` with what it raised."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"call": name, "with": arguments}).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process in the database has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]


# --- the fleet ----------------------------------------------------------------------------------------------


@dataclass
class EdgeNode:
    """One site computer: its process, and its disk."""

    id: str
    name: str
    site: str
    state: Path
    port: int
    # Where anybody may look at its device.
    observe_port: int

    def in_force(self) -> float:
        """The limit that its device obeys, in percent."""
        limit = load_all()[PROFILE].registers["limit_in_force"]
        client = ModbusTcpClient("127.0.0.1", port=self.observe_port)
        try:
            assert client.connect()
            answer = client.read_holding_registers(limit.address, count=1, device_id=1)
            assert not answer.isError(), answer
            return float(answer.registers[0]) * limit.scale
        finally:
            client.close()

    def on_disk(self) -> dict[str, Any]:
        """What the node would run from after a restart: manifest and documents whose hashes hold."""
        manifest = json.loads((self.state / "manifest.json").read_bytes())
        documents = {}
        for path in (self.state / "documents").glob("*.json"):
            doc = json.loads(path.read_bytes())
            if codec.body_digest(doc["body"]) == doc["sha256"]:
                documents[path.stem.replace("~", "/")] = (doc["version"], doc["sha256"])
        return {
            "manifest": (manifest["epoch"], manifest["version"]),
            "listed": {name: (entry["v"], entry["sha256"]) for name, entry in manifest["docs"].items()},
            "documents": documents,
        }


@dataclass
class Fleet:
    """What runs, and what it should have told central."""

    directory: Path
    postgres: str
    broker: Broker
    gate: Gate
    settings: DemoSettings
    nodes: list[EdgeNode]
    stack: ExitStack
    expected_logs: set[str] = field(default_factory=set)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _reports: dict[str, Reported] = field(default_factory=dict)
    _entries: int = 0
    _hands: Hands | None = None

    # --- processes ------------------------------------------------------------------------------------------

    def start(self, name: str, argv: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start a process under this name; it ends with the fleet. What it says goes to a file."""
        with (self.directory / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                argv,
                cwd=ROOT,
                # By this name PostgreSQL knows it.
                env={**env, "PGAPPNAME": name},
                stdin=subprocess.PIPE if name == "hands" else subprocess.DEVNULL,
                stdout=subprocess.PIPE if name == "hands" else output,
                stderr=output,
                start_new_session=True,
            )
        self._processes[name] = process
        return process

    def kill(self, *names: str) -> None:
        """kill -9, and see that they are gone."""
        for name in names:
            process = self._processes.pop(name)
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def end(self) -> None:
        self.kill(*self._processes)

    @property
    def central_env(self) -> dict[str, str]:
        return {**self.settings.central_environment(), "SGM_DATABASE_URL": self.postgres}

    def start_hands(self) -> None:
        process = self.start("hands", [sys.executable, "-m", "tests.system.fleet"], self.central_env)
        self._hands = Hands(process)

    def start_worker(self) -> None:
        env = {**self.central_env, "SGM_MQTT_URL": f"mqtt://127.0.0.1:{self.gate.port}"}
        self.start("worker", self.settings.worker().argv, env)

    def start_beat(self) -> None:
        self.start("beat", self.settings.beat().argv, self.central_env)

    def start_inbox(self, number: int) -> None:
        self.start(f"inbox-{number}", self.settings.inbox().argv, self.central_env)

    def start_central(self) -> None:
        self.start_worker()
        self.start_beat()
        for number in (1, 2):
            self.start_inbox(number)

    def kill_central(self) -> None:
        self.kill("hands", "worker", "beat", "inbox-1", "inbox-2")

    def start_node(self, node: EdgeNode) -> None:
        argv = [sys.executable, "-m", "edge", "node", "--node", node.id, "--tenant", TENANT]
        argv += ["--state", str(node.state), "--broker", self.broker.url]
        argv += ["--password-file", str(self.broker.password_file(node.id))]
        self.start(node.name, argv, edge_environment())

    def restart_broker(self, *, forget: bool) -> None:
        """kill -9, and start on the same port; `forget`: without what it had written to its disk."""
        old = self.broker.process
        argv = cast("list[str]", old.args)
        old.kill()
        old.wait()
        if forget:
            (self.broker.directory / "mosquitto.db").unlink(missing_ok=True)
        with (self.broker.directory / "log").open("ab") as output:
            new = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self.broker.process = new
        self.stack.callback(new.wait)
        self.stack.callback(new.kill)

    def persist_broker(self) -> None:
        """Have the broker write down what it holds now."""
        file = self.broker.directory / "mosquitto.db"
        before = file.stat().st_mtime_ns if file.exists() else 0
        self.broker.process.send_signal(signal.SIGUSR1)
        until(
            lambda: file.exists() and file.stat().st_mtime_ns > before,
            what="the broker did not write its persistence file",
        )

    def restart_postgres(self) -> None:
        """An immediate shutdown, as by a power cut, and a start that has to recover."""
        with self.database() as connection:
            found = connection.execute("SHOW data_directory").fetchone()
        assert found is not None
        pid = int((Path(found[0]) / "postmaster.pid").read_text().split()[0])
        argv = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
        uid = Path(f"/proc/{pid}").stat().st_uid
        os.kill(pid, signal.SIGQUIT)
        until(lambda: _is_over(pid), what="PostgreSQL did not end")
        with (self.directory / "postgres.log").open("ab") as output:
            new = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                user=uid if uid != os.geteuid() else None,
            )
        self.stack.callback(new.wait)
        self.stack.callback(new.send_signal, signal.SIGINT)
        until(self._database_serves, what="PostgreSQL did not come back")

    def _database_serves(self) -> bool:
        try:
            psycopg.connect(self.postgres, connect_timeout=1).close()
        except psycopg.OperationalError:
            return False
        return True

    # --- the database ---------------------------------------------------------------------------------------

    def edit(self, value: float, *, plan: Mapping[str, int] = {}, unplan: Mapping[str, int] = {}) -> None:
        """Change the plans of the sites: so many days from today, and so many last days away."""
        self.call("edit", value=value, plan=dict(plan), unplan=dict(unplan))

    def call(self, name: str, /, **arguments: Any) -> Any:
        assert self._hands is not None
        return self._hands.call(name, **arguments)

    @contextmanager
    def database(self) -> Iterator[psycopg.Connection[Any]]:
        with closing(psycopg.connect(self.postgres, autocommit=True)) as connection:
            yield connection

    @contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """Nobody writes this table; reading goes on."""
        with closing(psycopg.connect(self.postgres)) as connection:
            connection.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
            yield
            connection.rollback()

    def waits_for_lock(self, table: str) -> set[str]:
        """The processes of which a statement waits until this table is free."""
        with self.database() as connection:
            rows = connection.execute(
                "SELECT DISTINCT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)"
                " WHERE NOT granted AND relation = %s::regclass",
                (table,),
            ).fetchall()
        return {row[0] for row in rows}

    def dump(self, path: Path) -> None:
        subprocess.run(["pg_dump", "-d", self.postgres, "-Fc", "-f", str(path)], check=True)

    def restore(self, path: Path) -> None:
        """Put the database back to what it was; nobody may use it meanwhile."""
        parts = urlsplit(self.postgres)
        name = parts.path.strip("/")
        with closing(
            psycopg.connect(parts._replace(path="/postgres").geturl(), autocommit=True)
        ) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {name}")
        subprocess.run(["pg_restore", "-d", self.postgres, str(path)], check=True)

    # --- what nodes have to tell ----------------------------------------------------------------------------

    def log(self, node: EdgeNode, count: int, *, is_lost: bool = False) -> None:
        """Leave entries in the outbox of a node that does not run, as its last process would have.

        `is_lost`: something that is about to happen takes them away again.
        """
        assert node.name not in self._processes
        with closing(Store(node.state)) as store, store.transaction():
            for _ in range(count):
                self._entries += 1
                reason = f"{MARK}{self._entries}"
                entry = LogEntry(
                    seq=0,
                    at=wall(datetime.now(UTC)),
                    kind="watchdog",
                    category=CATEGORY,
                    value=100.0,
                    reason=reason,
                    devices={"nobody": DeviceResult(value=100.0)},
                )
                store.append(Stream.CONTROL, entry)
                if not is_lost:
                    self.expected_logs.add(reason)

    # --- are they where they should be? ---------------------------------------------------------------------

    def hear(self) -> None:
        """Keep the newest report of each node, as any inbox hears it."""
        user = "central-inbox"
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.username_pw_set(user, self.broker.passwords[user])
        client.on_connect = _subscribe
        client.on_message = self._heard
        client.reconnect_delay_set(1, 1)
        client.connect(self.broker.host, self.broker.port)
        client.loop_start()
        self.stack.callback(client.loop_stop)
        self.stack.callback(client.disconnect)

    def _heard(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        found = owner(message.topic)
        if found is not None and message.payload:
            self._reports[found[0].node] = codec.decode(Reported, bytes(message.payload))

    def until_consistent(self, *, within_s: float = WITHIN_S) -> float:
        """Wait until every node runs exactly what the database says, and all agree on it; the seconds it took.

        Four sources are compared: what selectors say of the database, what each node reports, what lies on
        its disk, and what its device obeys. And each log entry is in the database, once.
        """
        begun, wrong = time.monotonic(), ["not looked at"]

        def is_consistent() -> bool:
            wrong[:] = self.differences()
            return not wrong

        try:
            until(is_consistent, what="not consistent", within_s=within_s)
        except TimeoutError:
            raise AssertionError("\n".join(wrong[:20])) from None
        return time.monotonic() - begun

    def until_taken(self) -> None:
        """Wait until nodes run, and central has, what each should: without the node's word for it, which may
        take ten seconds.
        """
        aside = ("reported", "in the database", "out_of_sync", "synchronization_result")

        def is_taken() -> bool:
            return all(any(word in text for word in aside) for text in self.differences())

        until(is_taken, what="not taken")

    def differences(self) -> list[str]:
        """What is not as it should be. A process that ended by itself is nothing to wait for."""
        ended = [name for name, process in self._processes.items() if process.poll() is not None]
        assert not ended, f"ended by themselves: {ended}"
        try:
            state = self.call("state")
        except RuntimeError as error:
            return [f"database: {error}"]
        wrong = []
        for node in self.nodes:
            central = state["nodes"][node.name]
            wanted = {name: (v, sha256) for name, (v, sha256, _) in central["documents"].items()}
            manifest = tuple(central["manifest"])
            try:
                disk = node.on_disk()
            except (OSError, ValueError) as error:
                wrong.append(f"{node.name}: disk: {error}")
                continue
            for what, has, should in (
                ("manifest on disk", disk["manifest"], manifest),
                ("listed on disk", disk["listed"], wanted),
                ("documents on disk", disk["documents"], wanted),
            ):
                if has != should:
                    wrong.append(f"{node.name}: {what}: {_difference(has, should)}")
            wrong += [f"{node.name}: {text}" for text in self._report_differs(node, manifest, wanted)]
            for name, (_, _, status) in central["documents"].items():
                if status != "applied":
                    wrong.append(f"{node.name}: {name} is {status} in the database")
            if (value := node.in_force()) != central["value"]:
                wrong.append(f"{node.name}: its device is at {value}, planned is {central['value']}")
            for key in ("unpublished", "tombstones", "out_of_sync_since"):
                if central[key]:
                    wrong.append(f"{node.name}: {key}: {central[key]}")
        for name, result in state["results"].items():
            if result is None or result["status"] != "applied":
                wrong.append(f"synchronization_result of {name}: {result}")
        return wrong + self._logs_differ(state["logs"])

    def _report_differs(
        self, node: EdgeNode, manifest: tuple[int, ...], wanted: dict[str, tuple[int, str]]
    ) -> list[str]:
        report = self._reports.get(node.id)
        if report is None:
            return ["no report"]
        told = {name: (each.v, each.digest, each.status) for name, each in report.documents.items()}
        should = {name: (v, sha256[:DIGEST_LENGTH], "applied") for name, (v, sha256) in wanted.items()}
        texts = [] if told == should else [f"reported: {_difference(told, should)}"]
        if (report.epoch, report.manifest_version) != manifest:
            texts.append(f"reported manifest {(report.epoch, report.manifest_version)}, should be {manifest}")
        return texts

    def _logs_differ(self, found: list[str]) -> list[str]:
        counts = Counter(found)
        texts = []
        if doubled := [reason for reason, count in counts.items() if count > 1]:
            texts.append(f"doubled in the log: {sorted(doubled)[:5]}")
        if lost := self.expected_logs - counts.keys():
            texts.append(f"not in the log: {sorted(lost)[:5]} of {len(lost)}")
        if odd := counts.keys() - self.expected_logs:
            texts.append(f"nobody's in the log: {sorted(odd)[:5]}")
        return texts


def _subscribe(client: paho.Client, *_: object) -> None:
    client.subscribe(ALL_REPORTED, qos=1)


def _difference(has: Any, should: Any) -> str:
    if isinstance(has, dict) and isinstance(should, dict):
        keys = sorted(key for key in has.keys() | should.keys() if has.get(key) != should.get(key))
        first = [f"{key}: has {has.get(key)}, should have {should.get(key)}" for key in keys[:2]]
        return f"{len(keys)} differ, {'; '.join(first)}"
    return f"has {has}, should have {should}"


def _is_over(pid: int) -> bool:
    """Whether this process has ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@contextmanager
def running_fleet(directory: Path) -> Iterator[Fleet]:
    """Two sites with three nodes, each with a device, and all of central."""
    with ExitStack() as stack:
        postgres = stack.enter_context(postgres_server())
        # What is acknowledged must have been committed: an immediate restart loses nothing of that.
        with closing(psycopg.connect(postgres, autocommit=True)) as connection:
            connection.execute("ALTER ROLE sgm SET synchronous_commit = on")
        redis = stack.enter_context(redis_server())
        broker = stack.enter_context(mosquitto_broker())
        gate = Gate(broker.port)
        stack.callback(gate.close)
        secrets = {
            "secret_key": "only for tests, and long enough to keep Django's checks content 0123456789",
            "root_token": "root-token-for-tests-one-0123456789",
            "token_hash_key": "hash key for tests",
            "token_encryption_key": "c2l4dGVlbiBieXRlcyB0d2ljZSBvdmVyIGZvciBpdCE=",
            "redis_password": urlsplit(redis).password or "",
            "mqtt_central-worker": broker.passwords["central-worker"],
            "mqtt_central-inbox": broker.passwords["central-inbox"],
        }
        settings = DemoSettings(
            var=directory,
            port=0,
            ports={"mqtt": broker.port, "redis": urlsplit(redis).port or 0},
            secrets=secrets,
            split_connections=False,
        )
        fleet = Fleet(directory, postgres, broker, gate, settings, [], stack)
        stack.callback(fleet.end)
        fleet.start_hands()
        names = {"node-01": "site_a", "node-02": "site_a", "node-03": "site_b"}
        ports = {name: free_port() for name in names}
        made = fleet.call("seed", sites=names, ports=ports)
        for name, site in names.items():
            node = EdgeNode(made[name], name, site, directory / name, ports[name], free_port())
            fleet.nodes.append(node)
            broker.add_user(node.id)
        (directory / "fleet.json").write_text(
            json.dumps({"devices": [_device(node) for node in fleet.nodes]})
        )
        simulate = [sys.executable, "-m", "edge", "simulate", str(directory / "fleet.json")]
        fleet.start("simulators", simulate, edge_environment())
        fleet.hear()
        fleet.start_central()
        for node in fleet.nodes:
            fleet.start_node(node)
        yield fleet


def _device(node: EdgeNode) -> dict[str, Any]:
    return {
        "tag": f"INVERTER_{node.name}",
        "profile": PROFILE,
        "host": "127.0.0.1",
        "port": node.port,
        "observe_port": node.observe_port,
        "unit": 1,
        "nameplate_kw": 60.0,
        "site": node.site,
    }


# --- what the hands can do ----------------------------------------------------------------------------------


def _seed(*, sites: dict[str, str], ports: dict[str, int]) -> dict[str, str]:
    """Tables, sites, and nodes with a device each; the nodes' ids by name."""
    from django.core.management import call_command  # noqa: PLC0415 - the tests' own process has no Django

    from devices_app.models import DeviceType  # noqa: PLC0415
    from devices_app.services import device_create  # noqa: PLC0415
    from sites_app.services import node_create, site_create  # noqa: PLC0415

    call_command("migrate", verbosity=0, interactive=False)
    call_command("sync_device_types", verbosity=0, stdout=sys.stderr)
    rows = {
        tag: site_create(tenant_tag=TENANT, site_tag=tag, name=tag) for tag in sorted(set(sites.values()))
    }
    made = {}
    for name, tag in sites.items():
        node = node_create(site=rows[tag], name=name)
        device_create(
            node=node,
            device_type=DeviceType.objects.get(profile=PROFILE),
            device_tag=f"INVERTER_{name}",
            category=CATEGORY,
            peak_power_kw=60,
            modbus_server_host="127.0.0.1",
            modbus_server_port=ports[name],
            modbus_id=1,
        )
        made[name] = str(node.pk)
    return made


def _edit(*, value: float, plan: dict[str, int], unplan: dict[str, int]) -> None:
    """Give every quarter hour of so many days from today this value, and take back so many last days.

    By site, and in one transaction: nodes report every ten seconds at most, so that two changes would be a
    test that mostly waits.
    """
    from django.db import transaction  # noqa: PLC0415

    from schedules_app.models import Schedule  # noqa: PLC0415
    from schedules_app.services import schedule_delete, schedule_fill  # noqa: PLC0415
    from sites_app.models import Site  # noqa: PLC0415

    start = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with transaction.atomic():
        for tag, days in plan.items():
            schedule_fill(
                site=Site.objects.get(site_tag=tag),
                category=CATEGORY,
                start=start,
                until=start + timedelta(days=days),
                value=value,
            )
        for tag, count in unplan.items():
            for schedule in Schedule.objects.filter(site__site_tag=tag).order_by("-valid_on")[:count]:
                schedule_delete(schedule=schedule)


def _state() -> dict[str, Any]:
    """What the database says every node should run, and what it knows of it."""
    from control_app.models import ControlLog  # noqa: PLC0415
    from schedules_app.models import Schedule  # noqa: PLC0415
    from schedules_app.selectors import synchronization_results, value_in_force  # noqa: PLC0415
    from sites_app.models import Node, NodeDocument  # noqa: PLC0415
    from sites_app.publishing import documents_unpublished  # noqa: PLC0415

    nodes = {}
    now = datetime.now(UTC)
    for node in Node.objects.select_related("site"):
        value = value_in_force(site=node.site, category=CATEGORY, at=now)
        documents = NodeDocument.objects.filter(node=node)
        nodes[node.name] = {
            "manifest": (node.epoch, node.manifest_version),
            "documents": {
                name: (version, sha256, status)
                for name, version, sha256, status in documents.filter(dropped=False).values_list(
                    "name", "version", "sha256", "status"
                )
            },
            "tombstones": documents.filter(dropped=True).count(),
            "unpublished": documents.filter(documents_unpublished()).count()
            + ((node.published_epoch, node.published_version) != (node.epoch, node.manifest_version)),
            "value": DEFAULT if value is None else value,
            "out_of_sync_since": node.out_of_sync_since and str(node.out_of_sync_since),
        }
    schedules = list(Schedule.objects.select_related("site"))
    results = synchronization_results(schedules)
    logs = ControlLog.objects.filter(reason__startswith=MARK).values_list("reason", flat=True)
    return {
        "nodes": nodes,
        "results": {f"{row.site.site_tag} {row.valid_on}": results[row.pk] for row in schedules},
        "logs": list(logs),
    }


def _command(*, name: str, arguments: list[str]) -> None:
    from django.core.management import call_command  # noqa: PLC0415

    call_command(name, *arguments, stdout=sys.stderr)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "seed": _seed,
    "edit": _edit,
    "state": _state,
    "command": _command,
}


def main() -> None:
    """Call what is asked for until nobody asks any more."""
    import django  # noqa: PLC0415
    from django.db import close_old_connections, connection  # noqa: PLC0415

    django.setup()
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any]
        close_old_connections()
        try:
            answer = {"result": FUNCTIONS[asked["call"]](**asked["with"])}
        except Exception as error:  # noqa: BLE001 - the test is told, and judges it
            answer = {"error": f"{type(error).__name__}: {error}"}
            connection.close()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
