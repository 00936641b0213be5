"""What the demo keeps between two starts: its lock, its secrets, its ports."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smartgrid.demo.options import DemoError

# All that `make demo-reset` removes. By name, because SGM_VAR may be a directory with other things in it.
OWNED = (
    "beat",
    "broker",
    "database",
    "demo.json",
    "devices-broker",
    "fleet.json",
    "issuer.pem",
    "log",
    "nodes",
    "ports.json",
    "redis",
    "secrets.json",
    "seeded.json",
)
# Ports of our own come from below the range from which the kernel takes those of outgoing connections:
# otherwise one could be gone between two starts, or between our look and the service's bind.
FIRST_PORT, LAST_PORT = 20_000, 31_999


@contextmanager
def demo_lock(var: Path) -> Iterator[None]:
    """Hold this directory for one demo; `DemoError` where another has it.

    The kernel drops the lock with its holder, so no stale one needs clearing away.
    """
    var.mkdir(parents=True, exist_ok=True)
    with (var / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise DemoError(
                f"a demo already runs on {var} (process {holder}). End it first, or give this one a directory"
                " and a port of its own: SGM_VAR=/some/directory SGM_PORT=8001 make demo"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def reset(var: Path) -> None:
    """Forget everything, so that the next start is a first start."""
    for name in OWNED:
        path = var / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Write a file, whole or not at all, which only its owner can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of ours, empty where there is none; `DemoError` where it cannot be read."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DemoError(f"{path} cannot be read ({error}). `make demo-reset` begins anew") from error
    if not isinstance(content, dict):
        raise DemoError(f"{path} is not what the demo wrote. `make demo-reset` begins anew")
    return content


def demo_secrets(var: Path, *, node_names: tuple[str, ...]) -> dict[str, str]:
    """The demo's secrets, drawn at random where they do not exist yet."""
    path = var / "secrets.json"
    kept = read_json(path)
    drawn = {
        "secret_key": secrets.token_urlsafe(48),
        "token_hash_key": secrets.token_hex(32),
        # What MultiFernet takes: 32 bytes in URL-safe base 64.
        "token_encryption_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "root_token": f"root_{secrets.token_hex(16)}",
        "client_id": f"demo-{secrets.token_hex(6)}",
        "client_secret": secrets.token_urlsafe(32),
        # As central draws those of its clients.
        "site_token": f"tok_{secrets.token_hex(16)}",
        "admin_password": secrets.token_urlsafe(12),
        "redis_password": secrets.token_hex(24),
        "mqtt_central-worker": secrets.token_hex(24),
        "mqtt_central-inbox": secrets.token_hex(24),
        "mqtt_devices": secrets.token_hex(24),
        **{f"mqtt_{name}": secrets.token_hex(24) for name in node_names},
    }
    merged = {**drawn, **kept}
    if merged != kept:
        write_private(path, json.dumps(merged, indent=2))
    return merged


def demo_ports(var: Path, *, names: tuple[str, ...], taken: frozenset[int] = frozenset()) -> dict[str, int]:
    """A free port for each name: the one of the last start where it is still free, else another.

    None of `taken`, which somebody is about to listen on.
    """
    path = var / "ports.json"
    kept = read_json(path)
    chosen: dict[str, int] = {}
    for name in names:
        port = kept.get(name)
        used = taken | frozenset(chosen.values())
        if not isinstance(port, int) or port in used or not port_is_free(port):
            port = free_port(taken=used | frozenset(kept.values()))
        chosen[name] = port
    if chosen != kept:
        write_private(path, json.dumps(chosen, indent=2))
    return chosen


def free_port(*, taken: frozenset[int] = frozenset()) -> int:
    """A port on the loopback address that nobody listens on and that is none of `taken`."""
    for _ in range(1000):
        port = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT + 1)
        if port not in taken and port_is_free(port):
            return port
    raise DemoError(f"no free port between {FIRST_PORT} and {LAST_PORT}")


def port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do, so that connections of an earlier run which still fade away do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
