"""All of the product over mutual TLS, as processes and by the commands of an operator: from `ca init` to a node that
works, is revoked, and comes back.

    python -m tests.system.test_whole_over_tls        the hands, see `tests.system.fleet`
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from edge.runtime.identity import CERTIFICATE, IDENTITY, identity_read
from sites_app.authority import authority_make
from smartgrid.demo.broker import on_path
from smartgrid.demo.services import DemoSettings, edge_environment
from smartgrid.demo.state import free_port, write_private
from tests.servers import TlsBroker, lets_in, postgres_server, redis_server, until
from tests.system.fleet import CATEGORY, FUNCTIONS, PROFILE, EdgeNode, Hands, main

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
A, B = "node-01", "node-02"
SITES = {A: "site_a", B: "site_b"}
# Of a direct request: longer than it takes to confirm one.
TIME_LIMIT_S = 4
END_S = 30.0
# A node looks every half minute whether it knows the broker, and its link tries every quarter.
FOLLOWS_WITHIN_S = 100.0
CLIENT_ID = "whole"

# Runs `python -m edge` and kills it, as by -9, just before it does something to a file of this name.
KILLED_AT = """
import fnmatch, os, signal, sys
from edge.__main__ import main
event, pattern, *argv = sys.argv[1:]
def look(name, args):
    if name == event and any(fnmatch.fnmatch(os.path.basename(str(arg)), pattern) for arg in args):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(look)
sys.exit(main(argv))
"""
# The steps of an enrolment that outlive the process, in their order.
STEPS = [
    ("os.rename", "enroll-*.key"),  # the key is made and not yet kept
    ("socket.connect", "*"),  # nobody was asked
    ("os.rename", CERTIFICATE),  # central has certified the key; the answer is lost
    ("os.rename", IDENTITY),  # a certificate, and nobody whom it is of
    ("os.remove", "enroll-*.key"),  # all is there
]


# --- the system -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TlsSettings(DemoSettings):
    """The processes of the demo, with HTTPS, and with certificates at the broker."""

    directory: Path
    postgres: str

    @property
    def base_url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def authority(self) -> Path:
        return self.directory / "authority"

    @property
    def https_authority(self) -> Path:
        return self.directory / "https" / "central-ca.pem"

    @property
    def broker_pid(self) -> Path:
        return self.directory / "mosquitto.pid"

    def central_environment(self) -> dict[str, str]:
        return {
            **super().central_environment(),
            "SGM_DATABASE_URL": self.postgres,
            "SGM_CA_DIR": str(self.authority),
            "SGM_CA_PASSWORD": self.secrets["ca_password"],
            "SGM_MQTT_URL": f"mqtts://localhost:{self.ports['mqtt']}",
            "SGM_NODES_MQTT_URL": f"mqtts://localhost:{self.ports['mqtt_nodes']}",
            "SGM_ENROL_URL": self.base_url,
            "SGM_ENROL_CA_FILE": str(self.https_authority),
            "SGM_BROKER_RELOAD": f"sh -c 'kill -HUP $(cat {self.broker_pid})'",
        }

    def web_argv(self) -> list[str]:
        *argv, application = self.web().argv
        server = str(self.directory / "https" / "broker" / "server.pem")
        return [*argv, "--ssl-certificate", server, "--ssl-keyfile", server, application]


@dataclass
class Whole:
    """What runs."""

    settings: TlsSettings
    stack: ExitStack
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    nodes: dict[str, EdgeNode] = field(default_factory=dict)

    @cached_property
    def hands(self) -> Hands:
        argv = [sys.executable, "-m", "tests.system.test_whole_over_tls"]
        return Hands(self.start("hands", argv, piped=True))

    # --- processes ------------------------------------------------------------------------------------------

    def start(
        self, name: str, argv: list[str] | tuple[str, ...], *, at_site: bool = False, piped: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start a process under this name, with central's environment or a site's."""
        with self.log(name).open("ab") as output:
            process = subprocess.Popen(
                argv,
                cwd=ROOT,
                env=edge_environment() if at_site else self.settings.central_environment(),
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else output,
                stderr=output,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def log(self, name: str) -> Path:
        return self.settings.directory / f"{name}.log"

    def end(self, name: str, how: signal.Signals = signal.SIGTERM) -> int:
        """End this process and see that nothing of it is left; how it ended."""
        process = self.processes.pop(name)
        if process.stdin is None:
            process.send_signal(how)
        else:
            process.stdin.close()
        try:
            ended = process.wait(timeout=END_S)
            until(lambda: not is_alive(process.pid), what=f"{name} has left processes behind")
        finally:
            if is_alive(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        return ended

    def end_all(self) -> None:
        for name in list(self.processes):
            self.end(name)

    def manage(self, *argv: str) -> str:
        """What a command of central's says; it succeeds."""
        return self._run([sys.executable, "manage.py", *argv], env=self.settings.central_environment())

    def _run(self, argv: list[str], *, env: dict[str, str]) -> str:
        done = subprocess.run(
            argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=END_S
        )
        assert done.returncode == 0, f"{argv[-3:]}: {done.stdout}{done.stderr}"
        return done.stdout

    # --- broker and central -----------------------------------------------------------------------------

    def start_broker(self) -> None:
        """With the configuration that `ca init` wrote, but for ports and places of this test."""
        program = on_path("mosquitto")
        assert program is not None, "mosquitto is not installed"
        text = (self.settings.authority / "broker" / "mosquitto.conf").read_text()
        for line, instead in {
            "listener 8883 0.0.0.0": f"listener {self.settings.ports['mqtt_nodes']} 127.0.0.1",
            "listener 8884 127.0.0.1": f"listener {self.settings.ports['mqtt']} 127.0.0.1",
            "persistence_location /var/lib/mosquitto/": f"persistence_location {self.settings.directory}/",
        }.items():
            assert text.count(f"{line}\n") == 1, line
            text = text.replace(line, instead)
        # Else it becomes the user `mosquitto`, who can read nothing below a directory of root's.
        text += "user root\n" if os.geteuid() == 0 else ""
        file = self.settings.directory / "mosquitto.conf"
        file.write_text(text)
        process = self.start("mosquitto", [program, "-c", str(file)], at_site=True)
        self.settings.broker_pid.write_text(str(process.pid))
        until(
            lambda: lets_in(self.broker.door("central-inbox")),
            what="the broker does not let central in",
        )

    @cached_property
    def broker(self) -> TlsBroker:
        """Its doors, for somebody who looks in."""
        return TlsBroker(
            directory=self.settings.authority,
            nodes_port=self.settings.ports["mqtt_nodes"],
            central_port=self.settings.ports["mqtt"],
            data=self.settings.directory,
            process=self.processes["mosquitto"],
        )

    def start_central(self) -> None:
        self.start("web", self.settings.web_argv())
        self.start("worker", self.settings.worker().argv)
        self.start("beat", self.settings.beat().argv)
        self.start("inbox", self.settings.inbox().argv)

    # --- nodes ------------------------------------------------------------------------------------------

    def enrolment(self, node: EdgeNode, *more: str) -> list[str]:
        """What `manage.py node enroll` tells to call at the site, with this node's directory."""
        said = self.manage("node", "enroll", node.name)
        found = re.search(r"python -m edge (enroll \S+ \S+) --state", said)
        assert found is not None, said
        return [*found[1].split(), "--state", str(node.state), *more]

    def enroll(self, argv: list[str]) -> None:
        self._run([sys.executable, "-m", "edge", *argv], env=edge_environment())

    def start_node(self, node: EdgeNode) -> None:
        argv = [sys.executable, "-m", "edge", "node", "--state", str(node.state)]
        self.start(node.name, argv, at_site=True)

    # --- what central says --------------------------------------------------------------------------------

    @cached_property
    def api(self) -> httpx.Client:
        """A client of the API, with the root token."""
        url, known = self.settings.base_url, self.settings.secrets
        context = ssl.create_default_context(cafile=str(self.settings.https_authority))
        client = httpx.Client(base_url=url, verify=context, timeout=20)
        self.stack.callback(client.close)
        until(lambda: _answers(client, "/readyz"), what="web is not ready")
        answer = client.post(
            "/oauth/token",
            json={
                "audience": self.settings.central_environment()["SGM_AUDIENCE"],
                "grant_type": "client_credentials",
                "client_id": CLIENT_ID,
                "client_secret": known["client_secret"],
            },
        )
        assert answer.status_code == httpx.codes.OK, answer.text
        client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        client.headers["X-Management-Token"] = known["root_token"]
        return client

    def get(self, path: str) -> Any:
        answer = self.api.get(f"/v1{path}")
        assert answer.status_code == httpx.codes.OK, answer.text
        return answer.json()

    def state(self, node: EdgeNode) -> dict[str, Any]:
        """What the database says of a node."""
        state: dict[str, Any] = self.hands.call("state")["nodes"][node.name]
        return state


def is_alive(group: int) -> bool:
    """Whether anything of this group of processes is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _settings(directory: Path, *, postgres: str, redis: str) -> TlsSettings:
    return TlsSettings(
        var=directory,
        directory=directory,
        postgres=postgres,
        port=free_port(),
        ports={"mqtt": free_port(), "mqtt_nodes": free_port(), "redis": urlsplit(redis).port or 0},
        secrets={
            "secret_key": secrets.token_hex(32),
            "root_token": secrets.token_hex(16),
            "client_secret": secrets.token_urlsafe(48),
            "token_hash_key": secrets.token_hex(16),
            "token_encryption_key": "c2l4dGVlbiBieXRlcyB0d2ljZSBvdmVyIGZvciBpdCE=",
            "redis_password": urlsplit(redis).password or "",
            "ca_password": secrets.token_hex(16),
            # Nobody has a password at this broker.
            "mqtt_central-worker": "",
            "mqtt_central-inbox": "",
        },
        split_connections=False,
    )


@contextmanager
def running_whole(directory: Path) -> Iterator[Whole]:
    """All of central, and two sites with a device and a computer that is no node yet."""
    with ExitStack() as stack:
        settings = _settings(
            directory,
            postgres=stack.enter_context(postgres_server()),
            redis=stack.enter_context(redis_server()),
        )
        whole = Whole(settings, stack)
        stack.callback(whole.end_all)
        ports = {name: free_port() for name in SITES}
        made = whole.hands.call("seed", sites=SITES, ports=ports)
        whole.hands.call("access", client_secret=settings.secrets["client_secret"])
        for name, site in SITES.items():
            whole.nodes[name] = EdgeNode(made[name], name, site, directory / name, ports[name], free_port())
        write_private(
            directory / "fleet.json",
            json.dumps({"devices": [_device(node) for node in whole.nodes.values()]}),
        )
        whole.start("simulators", settings.simulators().argv, at_site=True)
        # As an operator has it for web: a certificate of another authority than the broker's.
        authority_make(directory=directory / "https", hosts=["localhost"], now=datetime.now(UTC))
        whole.manage("ca", "init", "--host", "localhost")
        whole.start_broker()
        whole.start_central()
        yield whole
        ended_before = [name for name, process in whole.processes.items() if process.poll() is not None]
        assert not ended_before, f"ended by themselves: {ended_before}"
        # The broker last, so that each can say goodbye.
        names = sorted(whole.processes, key=("mosquitto", "hands").__contains__)
        ended = {name: whole.end(name) for name in names}
        # mosquitto 2.0.11 may crash as it ends, after an eviction: what it holds is on its disk by then.
        broker = ended.pop("mosquitto")
        assert broker in (0, -signal.SIGSEGV), f"the broker ended with {broker}"
        assert (directory / "mosquitto.db").exists()
        assert not any(ended.values()), f"not ended in order: {ended}"


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


# --- what the hands can do besides ----------------------------------------------------------------------


def _access(*, client_secret: str) -> None:
    """A client of the API, and a time limit that a test can wait for."""
    from django.conf import settings  # noqa: PLC0415 - the tests' own process has no Django

    from sites_app.models import Site  # noqa: PLC0415
    from sites_app.services import site_update  # noqa: PLC0415
    from smartgrid.issuer import issuer_client_create  # noqa: PLC0415
    from smartgrid.issuer_keys import issuer_key_create  # noqa: PLC0415

    issuer_key_create(Path(settings.SGM_ISSUER_KEY_FILE))
    issuer_client_create(name=CLIENT_ID, client_id=CLIENT_ID, client_secret=client_secret)
    for site in Site.objects.all():
        site_update(site=site, curtailment_time_limit=TIME_LIMIT_S)


# --- the tests ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def central(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    with running_whole(tmp_path_factory.mktemp("whole")) as whole:
        assert whole.api
        yield whole


@pytest.fixture(scope="module")
def whole(central: Whole) -> Whole:
    """With a node that was enrolled and runs."""
    node = central.nodes[A]
    central.enroll(central.enrolment(node))
    central.start_node(node)
    until_planned(central, node, 50.0)
    return central


def until_planned(whole: Whole, node: EdgeNode, value: float, *, within_s: float = END_S) -> None:
    """Plan this value, and wait until the node confirms it, and its device obeys it."""
    whole.hands.call("edit", value=value, plan={node.site: 2}, unplan={})

    def is_applied() -> bool:
        state = whole.hands.call("state")
        documents = state["nodes"][node.name]["documents"].values()
        results = [result for name, result in state["results"].items() if name.startswith(node.site)]
        told = [result is not None and result["status"] == "applied" for result in results]
        return bool(told) and all(told) and all(status == "applied" for _, _, status in documents)

    until(is_applied, what="the node has not confirmed its schedule", within_s=within_s)
    until(lambda: node.in_force() == value, what=f"the device does not obey {value}")


def is_healthy(whole: Whole, node: EdgeNode) -> bool:
    rows = whole.get("/site-health-report")
    return bool(next(row["healthy"] for row in rows if row["node_name"] == node.name))


def site_path(whole: Whole, node: EdgeNode) -> str:
    site = next(site for site in whole.get("/sites") if site["site_tag"] == node.site)
    return f"/sites/{site['id']}"


def curtail(whole: Whole, node: EdgeNode, value: float) -> Any:
    path = f"/v1{site_path(whole, node)}/curtail-category"
    answer = whole.api.put(path, json={"category": CATEGORY, "value": value})
    assert answer.status_code == httpx.codes.OK, answer.text
    return answer.json()


def test_enrolment_killed_at_each_of_its_steps_ends_in_one_identity(central):
    node = central.nodes[B]
    argv = central.enrolment(node)
    for event, pattern in STEPS:
        killed = subprocess.run(
            [sys.executable, "-c", KILLED_AT, event, pattern, *argv],
            cwd=ROOT,
            env=edge_environment(),
            capture_output=True,
            check=False,
            timeout=END_S,
        )
        assert killed.returncode == -signal.SIGKILL, (event, pattern, killed)
    central.enroll(argv)

    assert identity_read(node.state).node == node.id
    assert len(central.manage("node", "certificates", node.name).splitlines()) == 1
    central.start_node(node)
    until_planned(central, node, 60.0)
    assert central.end(node.name) == 0


def test_request_log_and_health_go_both_ways_over_mutual_tls(whole):
    node = whole.nodes[A]
    until_planned(whole, node, 40.0)
    until(lambda: is_healthy(whole, node), what="the node is not healthy")

    asked = curtail(whole, node, 70.0)
    assert (asked["status"], asked["result"]["not_updated"]) == ("success", {})
    assert node.in_force() == 70.0
    # Only the node knows when it fell back; it says so in its log.
    lapses = site_path(whole, node) + "/logs"
    until(lambda: any(row["watchdog"] for row in whole.get(lapses)), what="no log of the node's")
    assert node.in_force() == 40.0


def test_revoked_node_is_shut_out_and_its_device_goes_on_by_schedule(whole):
    node = whole.nodes[A]
    until_planned(whole, node, 30.0)
    until(lambda: is_healthy(whole, node), what="the node is not healthy")
    before = node.on_disk()

    assert "shut out" in whole.manage("node", "revoke", node.name, "--reason", "stolen")
    until(lambda: links_lost(whole, node) > 0, what="the node still has its session")
    assert not lets_in(whole.broker.door_with(node.state / CERTIFICATE))

    # It does not hear: what was published since is at the broker, and not at the node.
    whole.hands.call("edit", value=80.0, plan={node.site: 2}, unplan={})
    until(lambda: not whole.state(node)["unpublished"], what="the edit is not published")
    whole.end(node.name, signal.SIGKILL)
    lost = links_lost(whole, node)
    whole.start_node(node)
    until(lambda: links_lost(whole, node) > lost, what="the node has not tried to connect")
    assert node.on_disk() == before
    assert node.in_force() == 30.0
    # It does not speak.
    until(lambda: not is_healthy(whole, node), what="the node still counts as healthy")
    asked = curtail(whole, node, 70.0)
    assert (asked["status"], asked["result"]["updated"]) == ("failed", {})
    assert whole.hands.call("state")["nodes"][node.name]["value"] == 80.0
    assert node.in_force() == 30.0

    # The computer that takes its place has what central says.
    whole.end(node.name)
    whole.enroll(whole.enrolment(node, "--again"))
    whole.start_node(node)
    until_planned(whole, node, 90.0)


@pytest.mark.long
def test_nodes_follow_to_another_authority_of_centrals(whole):
    node = whole.nodes[A]
    until_planned(whole, node, 20.0)
    leaked = whole.settings.directory / "leaked.pem"
    shutil.copy(whole.settings.authority / "central-worker.pem", leaked)

    # As docs/operations.md has it.
    whole.manage("ca", "replace-central")
    whole.end("mosquitto")
    whole.start_broker()
    for name in ("worker", "inbox"):
        whole.end(name)
        whole.start(name, getattr(whole.settings, name)().argv)

    until_planned(whole, node, 10.0, within_s=FOLLOWS_WITHIN_S)
    assert identity_read(node.state).broker_authority == whole.broker.broker_authority
    assert not lets_in(whole.broker.door_with(leaked, port=whole.broker.central_port))


def links_lost(whole: Whole, node: EdgeNode) -> int:
    """How often the node lost the broker, or did not come in."""
    return whole.log(node.name).read_text().count("link is down")


if __name__ == "__main__":
    FUNCTIONS["access"] = _access
    main()
