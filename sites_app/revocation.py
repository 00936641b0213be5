"""What the broker must know of identities, and the proof that it does: its files, its reload, evictions.

A revoked node is denied everything at the broker's next reload and can open no session any more. One that is
open would get its rights back with the next enrolment of the node, so it is ended: under a node's name the
broker lets one client in, and whoever comes last takes the place. Central comes, with a certificate of five
minutes, once the broker has shown, by refusing another that was made to be refused, that it knows the list.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import shlex
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog
from django.conf import settings

from edge.wire.session import Broker, LinkDown, Tls, broker_from_url, open_session
from sites_app import authority, identity
from sites_app.authority import BROKER, Root

log = structlog.stdlib.get_logger(__name__)

RELOAD_TIMEOUT_S = 30.0
# The broker reads its files between two turns of its loop.
IN_FORCE_WITHIN_S = 10.0
LOOK_S = 0.2
# What the broker was last made to read, by its digest.
TOLD = "told"


@dataclass(frozen=True, slots=True)
class Enforced:
    """What came of it. `waiting`: nodes whose revocation is not certain to have taken effect, and why not.

    `told`: nothing has changed that the broker was not made to read.
    """

    changed: bool
    told: bool = True
    evicted: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    why: str = ""


def revocations_enforce(*, now: datetime) -> Enforced:
    """Bring the broker's files in line with the database, have it read them, and end what must end.

    May be called at any time, by several at once and again after any failure. Where nothing changed since the
    broker was last told, it does nothing.
    """
    directory = identity.ca_directory()
    root = identity.nodes_root()
    with _alone(directory):
        denied = {(row.pk, str(row.common_name)) for row in identity.denied()}
        names = sorted({name for _, name in denied})
        if not denied:
            told = _tell(directory, root, now=now, names=names)
            return Enforced(changed=told is not None, told=told is not False)
        # Shown to the broker to see whether it refuses it; in the list and nowhere else.
        canary, canary_serial = authority.brief_identity(root, node=str(uuid.uuid4()), now=now)
        told = _tell(directory, root, now=now, names=names, also=canary_serial)
        evicted, why = _evict(root, canary=canary, names=names, now=now)
        certificates = [pk for pk, name in denied if name in evicted]
        identity.evicted_record(certificate_ids=certificates, now=now)
        for name in evicted:
            log.info("node_evicted", node=name)
        waiting = tuple(name for name in names if name not in evicted)
        if waiting:
            log.error("revocation_not_in_force", nodes=waiting, why=why)
        else:
            # Without the denials: the same nodes may be enrolled anew.
            _tell(directory, root, now=now, names=[])
        return Enforced(
            changed=told is not None,
            told=told is not False,
            evicted=tuple(evicted),
            waiting=waiting,
            why=why,
        )


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One writer of the broker's files at a time on this machine; the lock goes with its holder."""
    with (directory / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tell(directory: Path, root: Root, *, now: datetime, names: list[str], also: str = "") -> bool | None:
    """Write what changed and have the broker read it; None: it knew all; False: it could not be told.

    What it was told is noted last: a reload that failed, or was not lived to see, comes again.
    """
    revoked = {row.serial: row.revoked_at or now for row in identity.revoked(now=now)}
    if also:
        revoked[also] = now
    authority.broker_files_write(directory=directory, nodes=root, revoked=revoked, denied=names, now=now)
    files = sorted(path for path in (directory / BROKER).iterdir() if not path.name.startswith("."))
    digest = hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()
    told = directory / TOLD
    if told.exists() and told.read_text(encoding="ascii") == digest:
        return None
    if not _reload():
        return False
    authority.write(told, digest, mode=0o600)
    return True


def _reload() -> bool:
    """Have the broker read its files again; False where this machine has no means to."""
    if not settings.SGM_BROKER_RELOAD:
        return False
    try:
        done = subprocess.run(
            shlex.split(settings.SGM_BROKER_RELOAD),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RELOAD_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        log.error("broker_not_reloaded", error=str(error))  # noqa: TRY400
        return False
    if done.returncode != 0:
        log.error("broker_not_reloaded", exit_code=done.returncode, error=done.stderr.strip()[-500:])
        return False
    return True


def _evict(root: Root, *, canary: str, names: list[str], now: datetime) -> tuple[list[str], str]:
    """Take the place of each of these at the broker once it refuses the canary; whose, and why no others."""
    certificates = {name: authority.brief_identity(root, node=name, now=now)[0] for name in names}
    with tempfile.TemporaryDirectory(prefix="sgm-evict-") as directory:
        return asyncio.run(_evict_all(Path(directory), canary=canary, certificates=certificates))


async def _evict_all(directory: Path, *, canary: str, certificates: dict[str, str]) -> tuple[list[str], str]:
    evicted: list[str] = []
    try:
        async with asyncio.timeout(IN_FORCE_WITHIN_S):
            refused = _identity_broker(directory / "canary.pem", canary)
            while await _is_let_in(refused):  # noqa: ASYNC110 - the broker has no event for it
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        return evicted, "the broker does not have the present list: reload it, then repeat this"
    except (LinkDown, ValueError, OSError) as error:
        return evicted, str(error)
    for name, certificate in certificates.items():
        try:
            async with open_session(
                _identity_broker(directory / f"{name}.pem", certificate), identifier=name
            ):
                evicted.append(name)
        except (LinkDown, ValueError, OSError) as error:
            # Refused for another reason than the list, or not reached at all: nothing is proved.
            return evicted, f"{error} (SGM_NODES_MQTT_URL must be reached from here)"
    return evicted, ""


def _identity_broker(path: Path, pem: str) -> Broker:
    authority.write(path, pem, mode=0o600)
    ca = authority.certificate_pem(authority.root_certificate(identity.ca_directory(), authority.CENTRAL))
    return broker_from_url(
        settings.SGM_NODES_MQTT_URL, username=None, password=None, tls=Tls(ca=ca, certificate=path)
    )


async def _is_let_in(broker: Broker) -> bool:
    try:
        async with open_session(broker, identifier=uuid.uuid4().hex):
            return True
    except LinkDown:
        return False
