"""What each process of the demo is: its command, its environment, when it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from smartgrid.demo.fleet import SITES, TENANT, DemoSite
from smartgrid.demo.options import ROOT
from smartgrid.demo.supervisor import ProcessSpec

# A stage is stopped after all higher ones: a node that loses its broker first would only fill its log.
SERVICES, APPLICATION = 0, 1

AUDIENCE = "curtailment-api"
ADMIN_USERNAME = "admin"
# A request waits for its device up to 8 s in a thread of its own; 200 of them may do so at once.
WEB_THREADS = 200


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """All that differs from one demo to the next: where it lives, its ports, its secrets."""

    var: Path
    port: int
    ports: Mapping[str, int]
    secrets: Mapping[str, str]
    split_connections: bool

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def events_url(self) -> str:
        """Of the process that serves events; empty where central runs without one."""
        port = self.ports.get("events")
        return "" if port is None else f"http://127.0.0.1:{port}"

    @property
    def issuer_url(self) -> str:
        return f"{self.base_url}/"

    @property
    def issuer_key(self) -> Path:
        return self.var / "issuer.pem"

    @property
    def mqtt_url(self) -> str:
        return f"mqtt://127.0.0.1:{self.ports['mqtt']}"

    @property
    def redis_url(self) -> str:
        return f"redis://:{self.secrets['redis_password']}@127.0.0.1:{self.ports['redis']}/0"

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.var}/database/sgm.sqlite3"

    def mqtt_passwords(self) -> dict[str, str]:
        """The broker's users: central's two, and each node under its UUID."""
        return {
            "central-worker": self.secrets["mqtt_central-worker"],
            "central-inbox": self.secrets["mqtt_central-inbox"],
            **{site.node_id: self.secrets[f"mqtt_{site.node_name}"] for site in SITES},
        }

    def central_environment(self) -> dict[str, str]:
        return {
            **process_environment(),
            "DJANGO_SETTINGS_MODULE": "smartgrid.settings",
            "SGM_SECRET_KEY": self.secrets["secret_key"],
            "SGM_ALLOWED_HOSTS": "127.0.0.1,localhost",
            "SGM_DATABASE_URL": self.database_url,
            "SGM_REDIS_URL": self.redis_url,
            "SGM_MQTT_URL": self.mqtt_url,
            "SGM_MQTT_WORKER_USERNAME": "central-worker",
            "SGM_MQTT_WORKER_PASSWORD": self.secrets["mqtt_central-worker"],
            "SGM_MQTT_INBOX_USERNAME": "central-inbox",
            "SGM_MQTT_INBOX_PASSWORD": self.secrets["mqtt_central-inbox"],
            "SGM_MQTT_SPLIT_CONNECTIONS": "1" if self.split_connections else "0",
            # The broker that needs connections of their own is the one not to be trusted with these.
            "SGM_MQTT_SHARED_SUBSCRIPTIONS": "0" if self.split_connections else "1",
            # No proxy stands in front of the demo: web passes the streams on.
            "SGM_EVENTS_URL": self.events_url,
            "SGM_TENANT": TENANT,
            "SGM_ROOT_TOKENS": self.secrets["root_token"],
            "SGM_TOKEN_HASH_KEY": self.secrets["token_hash_key"],
            "SGM_TOKEN_ENCRYPTION_KEYS": self.secrets["token_encryption_key"],
            "SGM_ISSUER_KEY_FILE": str(self.issuer_key),
            "SGM_ISSUER_URL": self.issuer_url,
            "SGM_AUDIENCE": AUDIENCE,
            "SGM_GIT_VERSION": git_version(),
            # So that programs which load it measure the system and not its throttles.
            "SGM_THROTTLE_CLIENT": "120000/min",
            "SGM_THROTTLE_TOKEN": "120000/min",
            "SGM_THROTTLE_ISSUER": "12000/min",
            # Who tries it out has no authenticator at hand; its printout says so.
            "SGM_CONSOLE_SECOND_FACTOR": "off",
        }

    # --- the processes --------------------------------------------------------------------------------------

    def web(self) -> ProcessSpec:
        argv = (
            *program("granian"),
            *("--interface", "wsgi", "--host", "127.0.0.1", "--port", str(self.port)),
            # With its choice of protocols left open, it would wait for ever for a connection's first byte.
            *("--http", "1"),
            # A request's head has to be there within these milliseconds, and the next one of a connection
            # that is kept open; heads are of 64 KiB at most.
            *("--http1-header-read-timeout", "20000", "--http1-buffer-size", "65536"),
            *("--workers", "1", "--blocking-threads", str(WEB_THREADS)),
            # This many *connections* are served at once, idle ones among them: with no more than there are
            # threads, some clients that keep theirs open would shut out all others.
            *("--backlog", "1024", "--backpressure", "1024"),
            # An open connection does not hold up the end of the server for longer.
            *("--workers-kill-timeout", "3"),
            "smartgrid.wsgi:application",
        )
        # Granian serves from a child of its own, which only its own orderly end takes along.
        return self._central("web", argv, death_signal=signal.SIGTERM)

    def events(self) -> ProcessSpec:
        """Holds the streams of those who listen to /v1/events."""
        return self._central(
            "events",
            (sys.executable, "manage.py", "run_events", "--port", str(self.ports["events"])),
        )

    def worker(self) -> ProcessSpec:
        return self._central(
            "worker",
            (
                *program("celery"),
                *("-A", "smartgrid", "worker", "-P", "threads", "-c", "16", "-Q", "control,sync"),
                *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            ),
        )

    def beat(self) -> ProcessSpec:
        return self._central("beat", (*program("celery"), "-A", "smartgrid", "beat"))

    def inbox(self) -> ProcessSpec:
        return self._central("inbox", (sys.executable, "manage.py", "run_inbox"))

    def seeding(self, *, time_limit_s: int, fleet: str) -> ProcessSpec:
        """Not a process that stays: the database's tables, the fleet, the issuer's client, the tokens."""
        spec = self._central("seed", (sys.executable, "-m", "smartgrid.demo.seed"))
        env = {
            **spec.env,
            "SGM_VAR": str(self.var),
            "SGM_TIME_LIMIT": str(time_limit_s),
            "SGM_DEMO_FLEET": fleet,
            "SGM_DEMO_CLIENT_ID": self.secrets["client_id"],
            "SGM_DEMO_CLIENT_SECRET": self.secrets["client_secret"],
            "SGM_DEMO_SITE_TOKEN": self.secrets["site_token"],
            "SGM_DEMO_ADMIN_PASSWORD": self.secrets["admin_password"],
            "SGM_DEMO_DEVICES_PASSWORD": self.secrets["mqtt_devices"],
        }
        return ProcessSpec(name=spec.name, argv=spec.argv, env=env, stage=APPLICATION)

    def simulators(self, *, record_writes: str = "") -> ProcessSpec:
        argv = [sys.executable, "-m", "edge", "simulate", str(self.var / "fleet.json")]
        if record_writes:
            argv += ["--record-writes", record_writes]
        return ProcessSpec(
            name="simulators",
            argv=tuple(argv),
            env=process_environment(),
            stage=SERVICES,
        )

    def password_file(self, site: DemoSite) -> Path:
        return self.var / "nodes" / f"{site.node_name}.password"

    def node_state(self, site: DemoSite) -> Path:
        state = self.var / "nodes" / site.node_name
        state.mkdir(parents=True, exist_ok=True)
        return state

    def edge_node(self, site: DemoSite) -> ProcessSpec:
        state = self.node_state(site)
        argv = [
            *(sys.executable, "-m", "edge", "node", "--node", site.node_id, "--tenant", TENANT),
            *("--state", str(state), "--broker", self.mqtt_url, "--username", site.node_id),
            *("--password-file", str(self.password_file(site))),
        ]
        if self.split_connections:
            argv.append("--split-connections")
        return ProcessSpec(
            name=f"edge:{site.node_name}",
            argv=tuple(argv),
            env=edge_environment(),
            stage=APPLICATION,
        )

    def edge_guard(self, site: DemoSite) -> ProcessSpec:
        """The process that takes the node's place while it cannot work; it needs no broker and no central."""
        argv = [sys.executable, "-m", "edge", "guard", "--node", site.node_id]
        return ProcessSpec(
            name=f"guard:{site.node_name}",
            argv=(*argv, "--state", str(self.node_state(site))),
            env=edge_environment(),
            stage=APPLICATION,
        )

    def _central(
        self, name: str, argv: tuple[str, ...], *, death_signal: signal.Signals = signal.SIGKILL
    ) -> ProcessSpec:
        return ProcessSpec(
            name=name,
            argv=argv,
            env=self.central_environment(),
            stage=APPLICATION,
            death_signal=death_signal,
        )


def process_environment() -> dict[str, str]:
    """The environment that every process starts from: the caller's, without what belongs to central alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SGM_")}
    if "SGM_LOG_LEVEL" in os.environ:
        kept["SGM_LOG_LEVEL"] = os.environ["SGM_LOG_LEVEL"]
    return {**kept, "PYTHONUNBUFFERED": "1"}


def edge_environment() -> dict[str, str]:
    """What runs at a site starts from this; a demo's machine need not be synchronised."""
    return {**process_environment(), "SGM_TRUST_HOST_CLOCK": "1"}


def git_version() -> str:
    """What `git describe` says of this working tree, `unknown` outside one."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--tags"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said.stdout.strip() or "unknown"


def program(name: str) -> tuple[str, str]:
    """A command-line program installed beside this Python, whatever PATH says."""
    return (sys.executable, str(Path(sys.executable).with_name(name)))
