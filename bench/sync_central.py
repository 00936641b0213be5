"""Central as `bench.sync` runs it: each process as the demo starts it, on PostgreSQL, with what it costs."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.record import ROOT
from bench.sync_servers import TENANT, Servers, cpu_s, memory_mb
from smartgrid.demo.services import DemoSettings
from smartgrid.demo.state import demo_secrets, free_port

INBOXES = 2
MEMORY_EVERY_S = 2.0
END_S = 20.0


@dataclass(frozen=True, kw_only=True)
class BenchSettings(DemoSettings):
    """The demo's processes, with the benchmark's own servers."""

    servers: Servers

    @property
    def mqtt_url(self) -> str:
        return f"mqtt://127.0.0.1:{self.servers.mqtt_port}"

    @property
    def redis_url(self) -> str:
        return self.servers.redis_url

    @property
    def database_url(self) -> str:
        return self.servers.database_url

    def central_environment(self) -> dict[str, str]:
        return {**super().central_environment(), "SGM_TENANT": TENANT}


def bench_settings(servers: Servers) -> BenchSettings:
    """Settings for this run; central's passwords are the ones that the broker knows."""
    secrets = demo_secrets(servers.var, node_names=())
    secrets |= {f"mqtt_{user}": password for user, password in servers.passwords.items()}
    return BenchSettings(
        var=servers.var,
        port=free_port(),
        ports={},
        secrets=secrets,
        split_connections=False,
        servers=servers,
    )


@dataclass(kw_only=True)
class Central:
    """Its running processes, and what they took so far."""

    processes: dict[str, subprocess.Popen[bytes]]
    servers: Servers
    # The most that all of them together had at one look, and each of them then.
    peak_mb: float = 0.0
    peak_of_each_mb: dict[str, float] = field(default_factory=dict)
    stop_watching: threading.Event = field(default_factory=threading.Event)

    @property
    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self.processes.items()}

    def check(self) -> None:
        """A process that ended is the end of the measurement."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                log = (self.servers.var / "log" / f"{name}.log").read_text(errors="replace")
                raise SystemExit(f"{name} ended with {process.returncode}: {log[-2000:]}")

    def cpu(self) -> dict[str, float]:
        """The seconds of processor time of every process so far, the servers included."""
        return {name: cpu_s(pid) for name, pid in {**self.pids, **self.servers.pids}.items()}

    def watch_memory(self) -> None:
        while not self.stop_watching.wait(MEMORY_EVERY_S):
            each = {name: memory_mb(pid) for name, pid in self.pids.items()}
            if sum(each.values()) > self.peak_mb:
                self.peak_mb, self.peak_of_each_mb = sum(each.values()), each


@contextmanager
def central(settings: BenchSettings) -> Iterator[Central]:
    """Web, one worker, beat and two inboxes, each a process of its own."""
    specs = [settings.web(), settings.worker(), settings.beat()]
    specs += [replace(settings.inbox(), name=f"inbox-{number}") for number in range(1, INBOXES + 1)]
    logs = settings.var / "log"
    logs.mkdir(exist_ok=True)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for spec in specs:
            with (logs / f"{spec.name}.log").open("wb") as log:
                processes[spec.name] = subprocess.Popen(
                    spec.argv, cwd=ROOT, env=spec.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
        running = Central(processes=processes, servers=settings.servers)
        watch = threading.Thread(target=running.watch_memory, daemon=True)
        watch.start()
        try:
            yield running
        finally:
            running.stop_watching.set()
            watch.join(timeout=END_S)
    finally:
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + END_S
        for process in processes.values():
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def profiled(central: Central, directory: Path | None) -> Iterator[None]:
    """Sample the stacks of central's busy processes with `py-spy`, where it is asked for and on PATH."""
    spy = shutil.which("py-spy")
    if directory is None or spy is None:
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    watching = []
    for name, pid in central.pids.items():
        if name not in {"web", "beat"}:
            argv = [spy, "record", "--pid", str(pid), "--rate", "50", "--format", "raw"]
            # Without halting the process, which would be what is measured then.
            argv += ["--gil", "--nonblocking"]
            argv += ["--output", str(directory / f"{name}.stacks"), "--duration", "600"]
            watching.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    try:
        yield
    finally:
        for process in watching:
            process.send_signal(signal.SIGINT)
        for process in watching:
            process.wait(timeout=END_S)
