"""Real services for tests, on free ports of the loopback address: Redis, mosquitto, PostgreSQL, HAProxy.

    python -m tests.servers postgres COMMAND ...    runs a command with SGM_TEST_DATABASE_URL set

Each is a context manager and ends the very process it started. What cannot be started says so with what to
install; a missing service is never a skipped test.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import paho.mqtt.client as paho
import psycopg
import redis
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from edge.wire.topics import CENTRAL_RIGHTS
from smartgrid.demo.broker import mosquitto_config, on_path, redis_command, write_passwords
from smartgrid.demo.state import free_port
from smartgrid.mosquitto import tls_config

START_S = 30.0
INSTALL = (
    "`make test` installs what is missing on Debian as root; else: mosquitto redis-server postgresql haproxy"
)


class ServiceMissingError(Exception):
    """A service that the tests need is not installed."""


def until(probe: Callable[[], bool], *, what: str, within_s: float = START_S) -> None:
    """Wait for an answer under a deadline; `TimeoutError` naming what did not come."""
    deadline_s = time.monotonic() + within_s
    while not probe():
        if time.monotonic() >= deadline_s:
            raise TimeoutError(f"{what} within {within_s:.0f} s")
        time.sleep(0.02)


@contextmanager
def _running(
    argv: list[str], *, log: Path, user: str | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, ended with SIGINT and, if need be, SIGKILL."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user,
            env=None if environment is None else dict(environment),
        )
    try:
        yield process
    finally:
        # SIGINT: Redis and mosquitto end as with SIGTERM, PostgreSQL without waiting for its clients.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# --- Redis ----------------------------------------------------------------------------------------------------


@contextmanager
def redis_server() -> Iterator[str]:
    """An empty Redis; its URL."""
    password = secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="sgm-redis-") as name:
        directory, port = Path(name), free_port()
        argv = list(redis_command(directory=directory, port=port, password=password))
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        with (
            _running(argv, log=directory / "log"),
            redis.Redis.from_url(url, socket_connect_timeout=1) as client,
        ):
            until(lambda: _answers(client), what=f"Redis did not answer ({_tail(directory / 'log')})")
            yield url


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


# --- the broker -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where one user comes in at a broker, and with what."""

    host: str
    port: int
    username: str | None = None
    password: str | None = None
    context: ssl.SSLContext | None = None


class Doors:
    """A broker with the product's access list, whichever way users show who they are."""

    def door(self, username: str) -> Door:
        raise NotImplementedError

    def lets_in(self, username: str) -> bool:
        """Tell whether this user can connect now."""
        return lets_in(self.door(username))

    def refuses_publish(self, *, username: str, topic: str, payload: bytes = b"forged") -> bool:
        """Publish as this user and tell whether the broker's acknowledgement says `Not authorized`.

        aiomqtt does not look at the reason code of an acknowledgement, hence a client of our own.
        """
        client, connected, acknowledged = _client(self.door(username))
        try:
            assert _turn_until(client, connected)
            client.publish(topic, payload, qos=1)
            assert _turn_until(client, acknowledged)
            return acknowledged[0].getName() == "Not authorized"
        finally:
            client.disconnect()


def lets_in(door: Door) -> bool:
    """Tell whether somebody gets in by this door now."""
    try:
        client, connected, _ = _client(door)
    except OSError:
        return False
    try:
        return _turn_until(client, connected) and not connected[0].is_failure
    finally:
        client.disconnect()


def _client(door: Door) -> tuple[paho.Client, list[ReasonCode], list[ReasonCode]]:
    """A client on its way in, and where the answers to CONNECT and PUBLISH will stand."""
    connected: list[ReasonCode] = []
    acknowledged: list[ReasonCode] = []
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_connect = lambda _client, _data, _flags, reason, _properties: connected.append(reason)
    client.on_publish = lambda _client, _data, _mid, reason, _properties: acknowledged.append(reason)
    client.username_pw_set(door.username, door.password)
    if door.context is not None:
        client.tls_set_context(door.context)
    client.connect(door.host, door.port)
    return client, connected, acknowledged


@dataclass(kw_only=True)
class Broker(Doors):
    """A running mosquitto with the product's own access list: `host`, `port`, and a password for anybody.

    Central's users exist from the start; `add_user` lets a node in under its UUID.
    """

    host: str
    port: int
    directory: Path
    process: subprocess.Popen[bytes]
    passwords: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"mqtt://{self.host}:{self.port}"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def add_user(self, username: str) -> str:
        """Let a user in and return the password; one who is in already keeps theirs."""
        if username not in self.passwords:
            self.passwords[username] = secrets.token_hex(8)
            write_passwords(directory=self.directory, passwords=self.passwords)
            self.process.send_signal(signal.SIGHUP)
            until(lambda: self.lets_in(username), what=f"the broker did not let {username} in")
        return self.passwords[username]

    def password_file(self, username: str) -> Path:
        """A file with the user's password, as `python -m edge node` takes it."""
        path = self.directory / f"{username}.password"
        path.write_text(self.add_user(username))
        return path

    def door(self, username: str) -> Door:
        return Door(host=self.host, port=self.port, username=username, password=self.passwords.get(username))

    def refuses_publish(self, *, username: str, topic: str, payload: bytes = b"forged") -> bool:
        self.add_user(username)
        return super().refuses_publish(username=username, topic=topic, payload=payload)


def _turn_until(client: paho.Client, answers: list[ReasonCode]) -> bool:
    """Turn the client's loop until an answer is there; False where the broker hangs up or stays silent."""
    deadline_s = time.monotonic() + 5
    while not answers and time.monotonic() < deadline_s:
        if client.loop(timeout=0.1) != paho.MQTT_ERR_SUCCESS:
            break
    return bool(answers)


@contextmanager
def mosquitto_broker() -> Iterator[Broker]:
    """mosquitto with passwords and the pattern access list of `edge.wire.topics`."""
    program = on_path("mosquitto")
    if program is None:
        raise ServiceMissingError(f"mosquitto is not installed. {INSTALL}")
    with tempfile.TemporaryDirectory(prefix="sgm-mqtt-") as name:
        directory, port = Path(name), free_port()
        passwords = {user: secrets.token_hex(8) for user in CENTRAL_RIGHTS}
        config = mosquitto_config(directory=directory, port=port, passwords=passwords)
        with _running([program, "-c", str(config)], log=directory / "log") as process:
            until(
                lambda: _accepts(port),
                what=f"mosquitto did not answer ({_tail(directory / 'log')})",
            )
            yield Broker(
                host="127.0.0.1", port=port, directory=directory, process=process, passwords=passwords
            )


@dataclass(kw_only=True)
class TlsBroker(Doors):
    """A running mosquitto with mutual TLS as in production, and the authority that stands behind it.

    `directory` is what SGM_CA_DIR is in production; `nodes_url` and `central_url` are its two doors.
    """

    directory: Path
    nodes_port: int
    central_port: int
    data: Path
    process: subprocess.Popen[bytes]

    @property
    def nodes_url(self) -> str:
        return f"mqtts://localhost:{self.nodes_port}"

    @property
    def central_url(self) -> str:
        return f"mqtts://localhost:{self.central_port}"

    @property
    def reload_command(self) -> str:
        """As SGM_BROKER_RELOAD takes it."""
        return f"kill -HUP {self.process.pid}"

    @property
    def log(self) -> str:
        return (self.data / "log").read_text(errors="replace")

    @property
    def broker_authority(self) -> str:
        return (self.directory / "central-ca.pem").read_text()

    def door(self, username: str) -> Door:
        """With a certificate in that name: of central's authority for central's users, else of the nodes'."""
        is_central = username in CENTRAL_RIGHTS
        path = self.directory / f"{username}.pem" if is_central else self.node_certificate(username)
        return self.door_with(path, port=self.central_port if is_central else self.nodes_port)

    def door_with(self, certificate: Path | None, *, port: int | None = None) -> Door:
        """The nodes' door, or another, with this certificate or none."""
        context = ssl.create_default_context(cadata=self.broker_authority)
        if certificate is not None:
            context.load_cert_chain(certificate)
        return Door(host="localhost", port=port or self.nodes_port, context=context)

    def node_certificate(self, username: str) -> Path:
        """A file with key and certificate, as a node of this name has it."""
        from sites_app import authority  # noqa: PLC0415

        path = self.data / f"node-{username}.pem"
        if not path.exists():
            root = authority.root_load(self.directory, authority.NODES)
            pem, _ = authority.brief_identity(root, node=username, now=datetime.now(UTC))
            path.write_text(pem)
        return path


@contextmanager
def mosquitto_tls_broker() -> Iterator[TlsBroker]:
    """mosquitto as `smartgrid.mosquitto` configures it for production, with an authority of its own."""
    from sites_app import authority  # noqa: PLC0415 - for those who need no broker, nothing of Django

    program = on_path("mosquitto")
    if program is None:
        raise ServiceMissingError(f"mosquitto is not installed. {INSTALL}")
    with tempfile.TemporaryDirectory(prefix="sgm-mqtts-") as name:
        data, directory = Path(name), Path(name) / "ca"
        nodes_port, central_port = free_port(), free_port()
        config = tls_config(
            files=directory / authority.BROKER,
            data=data,
            nodes=("127.0.0.1", nodes_port),
            central=("127.0.0.1", central_port),
        )
        if os.geteuid() == 0:
            # Else it becomes the user `mosquitto`, who can read nothing below a directory of root's.
            config += "user root\n"
        authority.authority_make(
            directory=directory,
            hosts=["localhost", "127.0.0.1"],
            now=datetime.now(UTC),
            broker_files={"mosquitto.conf": config},
        )
        argv = [program, "-c", str(directory / authority.BROKER / "mosquitto.conf")]
        with _running(argv, log=data / "log") as process:
            until(
                lambda: _accepts(nodes_port) and _accepts(central_port),
                what=f"mosquitto did not answer ({_tail(data / 'log')})",
            )
            yield TlsBroker(
                directory=directory,
                nodes_port=nodes_port,
                central_port=central_port,
                data=data,
                process=process,
            )


@dataclass(kw_only=True)
class DeviceBroker:
    """A mosquitto as a site has one for its devices: anybody comes in, or these users with these rights.

    `start` and `stop` may be repeated: it comes back on its port, and has forgotten what it kept. `freeze`
    leaves its connections open and answers nothing.
    """

    directory: Path
    port: int = field(default_factory=free_port)
    host: str = "127.0.0.1"
    users: Mapping[str, str] = field(default_factory=dict)
    rights: tuple[str, ...] = ()
    tls: Path | None = None
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        scheme, host = ("mqtt", self.host) if self.tls is None else ("mqtts", "localhost")
        return f"{scheme}://{host}:{self.port}"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, unless it runs."""
        if self._process is not None:
            return
        program = on_path("mosquitto")
        if program is None:
            raise ServiceMissingError(f"mosquitto is not installed. {INSTALL}")
        lines = [
            f"listener {self.port} {self.host}",
            f"allow_anonymous {'false' if self.users else 'true'}",
            "set_tcp_nodelay true",
            "persistence false",
        ]
        if os.geteuid() == 0:
            lines.append("user root")
        if self.users:
            write_passwords(directory=self.directory, passwords=self.users)
            lines.append(f"password_file {self.directory / 'passwords'}")
        if self.rights:
            (self.directory / "acl").write_text("\n".join(self.rights) + "\n")
            lines.append(f"acl_file {self.directory / 'acl'}")
        if self.tls is not None:
            lines += [f"certfile {self.tls}", f"keyfile {self.tls}"]
        config = self.directory / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        with (self.directory / "log").open("ab") as output:
            self._process = subprocess.Popen(
                [program, "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(lambda: _accepts(self.port), what=f"mosquitto did not answer ({_tail(self.directory / 'log')})")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # A frozen one hears nothing else.
        process.kill()
        process.wait()

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def device_broker(
    *, users: Mapping[str, str] | None = None, rights: tuple[str, ...] = (), tls: Path | None = None
) -> Iterator[DeviceBroker]:
    """A running broker for devices. `rights`: mosquitto's access list; `tls`: key and certificate in a file."""
    with tempfile.TemporaryDirectory(prefix="sgm-devices-") as name:
        broker = DeviceBroker(directory=Path(name), users=users or {}, rights=rights, tls=tls)
        broker.start()
        try:
            yield broker
        finally:
            broker.stop()


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


# --- PostgreSQL -----------------------------------------------------------------------------------------------


# What a crash of the machine could cost is nothing to a test.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@contextmanager
def postgres_server(*, settings: Mapping[str, str] = FAST) -> Iterator[str]:
    """A new PostgreSQL cluster with these settings, by default fast rather than safe; an empty database's URL."""
    binaries = _postgres_binaries()
    # It refuses to run as root; Debian's package brings a user of its own.
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="sgm-postgres-") as name:
        directory, port = Path(name), free_port()
        log = directory / "log"
        log.touch()
        if user is not None:
            account = _account(user)
            for path in (directory, log):
                os.chown(path, account.pw_uid, account.pw_gid)
        data = directory / "data"
        done = subprocess.run(
            [
                *(str(binaries / "initdb"), "-D", str(data), "-U", "sgm", "--auth=trust"),
                *("-E", "UTF8", "--locale=C.UTF-8", "--no-sync"),
            ],
            user=user,
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ServiceMissingError(f"initdb failed: {done.stderr.strip()}")
        place = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": str(directory),
        }
        argv = [str(binaries / "postgres"), "-D", str(data)]
        for key, value in {**settings, **place}.items():
            argv += ["-c", f"{key}={value}"]
        server = f"postgresql://sgm@127.0.0.1:{port}"
        with _running(argv, log=log, user=user):
            until(
                lambda: _serves(f"{server}/postgres"),
                what=f"PostgreSQL did not answer ({_tail(log)})",
            )
            with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
                connection.execute("CREATE DATABASE sgm")
            yield f"{server}/sgm"


def _postgres_binaries() -> Path:
    versions = sorted(
        (path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")),
        key=lambda path: int(path.parent.name),
    )
    if versions:
        return versions[-1]
    initdb = shutil.which("initdb")
    if initdb is not None:
        return Path(initdb).parent
    raise ServiceMissingError(f"PostgreSQL is not installed. {INSTALL}")


def _account(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise ServiceMissingError(
            f"PostgreSQL does not run as root, and there is no user {user!r} to run it as. {INSTALL}"
        ) from None


def _serves(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=1).close()
    except psycopg.OperationalError:
        return False
    return True


def _tail(log: Path) -> str:
    with suppress(OSError):
        return log.read_text(errors="replace")[-500:].strip()
    return ""


# --- the proxy ------------------------------------------------------------------------------------------------

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
PROXY_CONFIG = DEPLOY / "haproxy" / "haproxy.cfg"
WEB_UNIT = DEPLOY / "systemd" / "sgm-web@.service"
INSTALLED = "/opt/sgm/.venv/bin/"
# As many of web's processes as the file has without being told of more.
PROXY_PLACES = 4


def web_command(port: int, *, application: str = "smartgrid.wsgi:application") -> list[str]:
    """A process of web as its unit starts it, with the programs of this Python."""
    [line] = [line for line in WEB_UNIT.read_text().splitlines() if line.startswith("ExecStart=")]
    program, *options, served = line.removeprefix("ExecStart=").replace("%i", str(port)).split()
    assert program.startswith(INSTALLED)
    assert served == "smartgrid.wsgi:application"
    beside = Path(sys.executable).with_name(program.removeprefix(INSTALLED))
    return [sys.executable, str(beside), *options, application]


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A running HAProxy with the product's own file."""

    port: int
    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def told(self, command: str) -> str:
        """What it answers to a command at its own socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.directory / "socket"))
            connection.sendall(f"{command}\n".encode())
            said = b""
            while piece := connection.recv(65536):
                said += piece
        return said.decode()

    def figures(self, lane: str, name: str) -> dict[str, str]:
        """What it counts of a lane (`BACKEND`) or of one process of it, by HAProxy's names: `status`, `scur`, ..."""
        lines = self.told("show stat").splitlines()
        names = lines[0].removeprefix("# ").split(",")
        rows = (dict(zip(names, line.split(","), strict=False)) for line in lines[1:])
        return next(row for row in rows if (row.get("pxname"), row.get("svname")) == (lane, name))


def proxy_command(program: str) -> list[str]:
    """HAProxy in the foreground with the product's file, as its unit starts it."""
    return [program, "-W", "-f", str(PROXY_CONFIG)]


def proxy_program() -> str:
    program = on_path("haproxy")
    if program is None:
        raise ServiceMissingError(f"haproxy is not installed. {INSTALL}")
    return program


def proxy_version() -> str:
    """Its name and version, as it says them."""
    said = subprocess.run([proxy_program(), "-v"], capture_output=True, text=True, check=True, timeout=10)
    return " ".join(said.stdout.split()[:3]).replace(" version", "")


@contextmanager
def haproxy(
    *, web: Sequence[int], events: int = 1, environment: Mapping[str, str] | None = None
) -> Iterator[Proxy]:
    """HAProxy in front of web's processes on these ports; `environment`: as the file's header has it.

    Ready once it has found out which of them answer, and that one does.
    """
    with tempfile.TemporaryDirectory(prefix="sgm-haproxy-") as name:
        directory, port = Path(name), free_port()
        # Where fewer run than the file has, the others are found not to.
        ports = [*web, *([1] * (PROXY_PLACES - len(web)))]
        told = {
            "PATH": os.environ.get("PATH", os.defpath),
            "SGM_PROXY_BIND": f"127.0.0.1:{port}",
            "SGM_PROXY_SOCKET": str(directory / "socket"),
            "SGM_PROXY_MAXCONN": "500",
            "SGM_EVENTS_1": f"127.0.0.1:{events}",
            **{f"SGM_WEB_{number}": f"127.0.0.1:{each}" for number, each in enumerate(ports, start=1)},
            **(environment or {}),
        }
        log = directory / "log"
        with _running(proxy_command(proxy_program()), log=log, environment=told) as process:
            proxy = Proxy(port=port, directory=directory, process=process)
            until(lambda: _accepts(port), what=f"HAProxy did not answer ({_tail(log)})")
            until(lambda: _is_judged(proxy, len(ports)), what="HAProxy has not looked at web")
            yield proxy


def _is_judged(proxy: Proxy, count: int) -> bool:
    """Whether it has looked at each process, and knows of one that answers."""
    rows = [proxy.figures("reads", f"web{number}") for number in range(1, count + 1)]
    # `UP 1/3` is on its way down, `no check` or an empty result is not looked at yet.
    is_known = all(row["status"] in {"UP", "DOWN"} and row["check_status"] for row in rows)
    return is_known and any(row["status"] == "UP" and row["check_status"] == "L7OK" for row in rows)


# --- for the Makefile -----------------------------------------------------------------------------------------


def main() -> int:
    match sys.argv[1:]:
        case ["postgres", *command] if command:
            with postgres_server() as url:
                # Importing the project names its own settings, and that name would win over the one of the tests.
                env = {
                    **os.environ,
                    "SGM_TEST_DATABASE_URL": url,
                    "DJANGO_SETTINGS_MODULE": "tests.settings",
                }
                return subprocess.run(command, env=env, check=False).returncode
        case _:
            sys.stderr.write("usage: python -m tests.servers postgres COMMAND ...\n")
            return 2


if __name__ == "__main__":
    sys.exit(main())
