"""A site with its processes: simulated devices on real sockets, and a real node and guard that control them."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edge.core.commands import Hold
from edge.profiles.model import Profile
from edge.profiles.reading import profile_to_builtins
from edge.runtime.clock import HostClock
from edge.runtime.cycle import CONTROL_STREAM
from edge.runtime.signs import BUS_LOCK, Role, Sign, SignedLock
from edge.runtime.store import Kept, Store
from edge.simulators.modbus import SimulatedDevice
from edge.wire.codec import document
from edge.wire.messages import Document, LogEntry, Manifest, ManifestEntry
from tests.runtime.plant import NAMEPLATE_KW, PROFILES, SITE, profile

A, B = "INVERTER_01", "INVERTER_02"
PROJECT = Path(__file__).parents[2]
NO_BROKER = "mqtt://127.0.0.1:1"


@dataclass
class Site:
    """Devices, and the state directory of the node that controls them."""

    devices: dict[str, SimulatedDevice]
    state: Path
    node: str
    kind: Profile
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    # The tag of a proxy over all devices; without it each is controlled by itself.
    proxy: str | None = None
    # Each write that took effect: when, on which device, and what is in force since.
    writes: list[tuple[float, str, float]] = field(default_factory=list)

    @property
    def body(self) -> dict[str, Any]:
        devices: list[dict[str, Any]] = [
            {
                "id": tag,
                "tag": tag,
                "category": "inverter",
                "profile": self.kind.name,
                "host": device.host,
                "port": device.port,
                "unit": 1,
                "nameplate_kw": NAMEPLATE_KW,
                "owned_by": self.proxy,
            }
            for tag, device in self.devices.items()
        ]
        kinds = [self.kind]
        if self.proxy is not None:
            kinds.append(PROFILES["proxy_device"])
            park = {"id": self.proxy, "tag": self.proxy, "category": "park", "profile": "proxy_device"}
            devices.append(park)
        return {
            "site": SITE,
            "devices": devices,
            "profiles": {kind.name: profile_to_builtins(kind) for kind in kinds},
        }

    # --- the disk -----------------------------------------------------------------------------------

    def put_on_disk(self, **schedules: Document) -> None:
        """The configuration, and one day's schedule a category, as an earlier process left them."""
        store = Store(self.state)
        documents = {"config": document(self.body, epoch=1, version=1)}
        documents |= {f"schedule/{doc.body['date']}/{name}": doc for name, doc in schedules.items()}
        listed = {name: ManifestEntry(v=doc.version, sha256=doc.sha256) for name, doc in documents.items()}
        store.keep_manifest(Manifest(epoch=1, version=1, docs=listed))
        for name, doc in documents.items():
            store.keep_document(name, doc)
        store.close()

    def hold(self, value: float, *, for_s: float, tag: str = A, boot: str | None = None) -> float:
        """A direct request as an earlier process left it; the moment of its end."""
        clock = HostClock(trust_host=True)
        now, ends = clock.boottime_s(), time.monotonic() + for_s
        held = Hold(
            order=(1, 7),
            request_id="request-7",
            category="inverter",
            value=value,
            received_boottime_s=now,
            ends_boottime_s=now + for_s,
        )
        store = Store(self.state)
        store.keep([(tag, Kept(boot or clock.boot_id, held, held.order))])
        store.close()
        return ends

    def logged(self, kind: str) -> list[LogEntry]:
        """What waits in the outbox, also while a process writes it."""
        with closing(sqlite3.connect(f"file:{self.state}/node.sqlite3?mode=ro", uri=True)) as db:
            rows = db.execute("SELECT entry FROM outbox WHERE stream = ? ORDER BY seq", (CONTROL_STREAM,))
            entries = [msgspec.json.decode(entry, type=LogEntry) for (entry,) in rows]
        return [entry for entry in entries if entry.kind == kind]

    def lapses(self) -> list[str]:
        """The reasons of the watchdog's entries, in order."""
        return [entry.reason for entry in self.logged("watchdog")]

    def sign(self) -> Sign | None:
        """What the holder of the bus says of itself."""
        lock = SignedLock(self.state / BUS_LOCK, role=Role.NODE, clock=HostClock(trust_host=True))
        try:
            return lock.read()
        finally:
            lock.close()

    def holds(self, process: subprocess.Popen[bytes]) -> bool:
        """Tell whether this process has the bus, and its write cycle turns."""
        sign = self.sign()
        return sign is not None and (sign.pid, sign.phase) == (process.pid, "running")

    # --- processes ----------------------------------------------------------------------------------

    def start(
        self, url: str = NO_BROKER, *, password_file: Path | None = None, env: Mapping[str, str] = {}
    ) -> subprocess.Popen[bytes]:
        argv = ["--node", self.node, "--tenant", "tenant", "--state", str(self.state), "--broker", url]
        if password_file is not None:
            argv += ["--password-file", str(password_file)]
        return self.spawn([sys.executable, "-m", "edge", "node", *argv], env=env)

    def guard(self, *, env: Mapping[str, str] = {}) -> subprocess.Popen[bytes]:
        return self.spawn([sys.executable, "-m", "edge", "guard", "--state", str(self.state)], env=env)

    def spawn(self, argv: list[str], *, env: Mapping[str, str] = {}) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            argv,
            cwd=PROJECT,
            env={**os.environ, "SGM_TRUST_HOST_CLOCK": "1", **env},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.processes.append(process)
        return process

    def note_write(self, tag: str) -> None:
        self.writes.append((time.monotonic(), tag, self.devices[tag].limit_in_force))

    def values(self, tag: str = A) -> list[float]:
        """What was written to a device, in order."""
        return [value for _, written, value in self.writes if written == tag]

    @property
    def sessions_refused(self) -> int:
        return sum(device.sessions_refused for device in self.devices.values())


async def until(condition: Callable[[], object], *, within_s: float = 10.0) -> float:
    """Wait for what another process does, which has no event to wait for; the seconds it took."""
    begin = time.monotonic()
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return time.monotonic() - begin


@asynccontextmanager
async def running_site(
    directory: Path, *, tags: tuple[str, ...] = (A, B), kind: Profile | None = None
) -> AsyncIterator[Site]:
    """Devices on real sockets; all processes that the site started end with the block."""
    kind = kind or profile()
    site = Site({}, directory / "state", str(uuid.uuid4()), kind)
    for tag in tags:
        device = SimulatedDevice(profile=kind, unit=1, nameplate_kw=NAMEPLATE_KW)
        await device.start()
        device.on_write = lambda tag=tag: site.note_write(tag)
        site.devices[tag] = device
    try:
        yield site
    finally:
        for process in site.processes:
            process.kill()
            process.communicate()
        for device in site.devices.values():
            await device.stop()
