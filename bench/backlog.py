"""`make bench-backlog`: a week of logs drains while commands go on; beside the same node without a backlog.

One node process, one simulated device on a real socket, mosquitto, and a central that acknowledges each batch
after the time that a commit takes. Commands leave at a steady rate; their answers are timed with and without
the backlog, in turns. The figure that counts is how much longer a live command takes.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench.record import ROOT, Figure, Run, percentile, spread
from edge.profiles.loader import load_all
from edge.profiles.reading import profile_to_builtins
from edge.runtime.clock import wall
from edge.runtime.store import Store
from edge.simulators.modbus import SimulatedDevice
from edge.wire.codec import document
from edge.wire.messages import (
    DeviceResult,
    Heartbeat,
    LogBatch,
    LogEntry,
    Manifest,
    ManifestEntry,
    Presence,
    Stream,
    TelemetryPoint,
)
from edge.wire.topics import NodeTopics
from tests.runtime.central import Central, central_for
from tests.servers import Broker, mosquitto_broker

ENTRIES = 100_000
WINDOW_S = 20.0
EVERY_S = 0.05
COMMIT_S = 0.02
ALLOWED_MS = 50.0
TAG = "INVERTER_01"
SITE = {"id": "s", "tag": "bench", "curtailment_time_limit_s": 60.0, "cyclic_write_timeout_s": 300.0}


def fill(state: Path, device: SimulatedDevice, *, entries: int) -> int:
    """The state directory of a node that was alone for a week; the bytes of its backlog."""
    kind = load_all()["generic_modbus"]
    body: dict[str, Any] = {
        "site": SITE,
        "devices": [
            {
                "id": TAG, "tag": TAG, "category": "inverter", "profile": kind.name, "host": device.host,
                "port": device.port, "unit": 1, "nameplate_kw": 60.0,
            }
        ],
        "profiles": {kind.name: profile_to_builtins(kind)},
    }  # fmt: skip
    store = Store(state)
    doc = document(body, epoch=1, version=1)
    store.keep_manifest(Manifest(epoch=1, version=1, docs={"config": ManifestEntry(v=1, sha256=doc.sha256)}))
    store.keep_document("config", doc)
    begin = datetime.now(UTC) - timedelta(days=7)
    points = tuple(
        TelemetryPoint(t=wall(begin), key=f"P{number}_kW", value=1.5 * number, unit="kW", device=TAG)
        for number in range(10)
    )
    with store.transaction():
        for number in range(entries):
            at = wall(begin + timedelta(seconds=number * 6))
            result = DeviceResult(value=30.0, readback=30.1, holds_s=60.0)
            store.append(
                Stream.CONTROL,
                LogEntry(
                    seq=0, at=at, kind="result", category="inverter", value=30.0, command_id=uuid.uuid4().hex,
                    request_id=str(uuid.uuid4()), sequence=number + 1, devices={TAG: result},
                ),
            )  # fmt: skip
            if number % 10 == 0:
                entry = LogEntry(seq=0, at=at, kind="points", points=points)
                store.append(Stream.TELEMETRY, entry)
    store.close()
    return (state / "node.sqlite3").stat().st_size


@asynccontextmanager
async def running(
    broker: Broker, state: Path, node: str
) -> AsyncIterator[tuple[Central, asyncio.subprocess.Process]]:
    topics = NodeTopics("bench", node)
    password = state / "password"
    password.write_text(broker.passwords.get(node) or broker.add_user(node), encoding="utf-8")
    argv = ["-m", "bench.backlog_node", str(state), broker.url, "bench", node, str(password)]
    async with central_for(broker, topics) as central:
        central.commit_s = COMMIT_S
        process = await asyncio.create_subprocess_exec(
            sys.executable, *argv, cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield central, process
        finally:
            process.kill()
            await process.wait()


async def longest_stall_ms(process: asyncio.subprocess.Process) -> dict[str, float]:
    """The longest the node's event loop was held since the last call, by `clock` and by `cpu`."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\n")
    await process.stdin.drain()
    worst: dict[str, float] = json.loads(await process.stdout.readline())
    return worst


async def commands(central: Central, *, for_s: float) -> list[float]:
    """Send commands at a steady rate; the milliseconds each took to be done."""
    took = []
    ends = time.perf_counter() + for_s
    value = 0
    while time.perf_counter() < ends:
        value = 30 + (value + 1) % 40
        begin = time.perf_counter()
        command = await central.setpoint(INVERTER_01=float(value))
        await central.expect_answer(command, "done")
        took.append((time.perf_counter() - begin) * 1000)
        # What was heard is not looked through again for the next answer.
        central.heard = [*central.all(LogBatch)[-1:], *central.all(Heartbeat)[-1:]]
        await asyncio.sleep(max(0.0, begin + EVERY_S - time.perf_counter()))
    return took


async def measure(run: Run) -> None:
    with mosquitto_broker() as broker, tempfile.TemporaryDirectory(prefix="sgm-backlog-") as name:
        device = SimulatedDevice(profile=load_all()["generic_modbus"], unit=1, nameplate_kw=60.0)
        await device.start()
        took: dict[str, list[float]] = {"without": [], "with": []}
        stalls: dict[str, dict[str, float]] = {}
        for which, entries in (("without", 0), ("with", ENTRIES)):
            state = Path(name) / which
            state.mkdir()
            size = fill(state, device, entries=entries)
            async with running(broker, state, str(uuid.uuid4())) as (central, process):
                # Numbers above those of the backlog.
                central.sequence = ENTRIES + 1
                await central.expect(Presence, lambda presence: presence.online)
                await central.expect(Heartbeat)
                if entries:
                    await central.expect(LogBatch, within_s=20)
                await commands(central, for_s=2.0)
                await longest_stall_ms(process)
                took[which] = await commands(central, for_s=WINDOW_S)
                stalls[which] = await longest_stall_ms(process)
                if entries:
                    drained = max(batch.last for batch in central.all(LogBatch) if batch.stream == "control")
                    run.notes["drained_in_window"] = drained
                    run.notes["backlog_mb"] = round(size / 1e6, 1)
            print(f"{which} a backlog: {spread(took[which])}, longest stall {stalls[which]} ms")
        await device.stop()
    for share, label in ((0.5, "p50"), (0.99, "p99"), (1.0, "max")):
        later = percentile(took["with"], share) - percentile(took["without"], share)
        run.figures[f"command_later_{label}"] = Figure(
            value=round(later, 2),
            unit="ms",
            n=len(took["with"]),
            goal=f"<= {ALLOWED_MS:g}",
            met=later <= ALLOWED_MS,
            floor=round(percentile(took["without"], share), 2),
        )
    for kind in ("clock", "cpu"):
        run.figures[f"longest_stall_{kind}"] = Figure(
            value=stalls["with"][kind],
            unit="ms",
            n=1,
            goal=f"<= {ALLOWED_MS:g}",
            met=stalls["with"][kind] <= ALLOWED_MS,
            floor=stalls["without"][kind],
        )
    run.figures["command_with_backlog_p50"] = Figure(
        value=round(statistics.median(took["with"]), 2), unit="ms", n=len(took["with"])
    )


def main() -> None:
    run = Run(name="backlog", broker="mosquitto", database="sqlite (the node's)")
    asyncio.run(measure(run))
    run.write()
    run.print_table()


if __name__ == "__main__":
    main()
