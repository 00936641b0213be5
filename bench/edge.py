"""`make bench-edge`: one node and up to 2,000 devices on real sockets, beside the floor of the same run.

Node and floor have one core and take turns on it; devices, broker and this program share the other. Every
size is measured floor, node, floor. Whether a poll came in time is judged by the devices, from the moments at
which they were asked.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bench.edge_devices import Devices, Record, running_devices
from bench.record import ROOT, Figure, Run, percentile, spread
from edge.profiles.loader import load_profile
from edge.profiles.reading import profile_to_builtins
from edge.wire import codec
from edge.wire.messages import Heartbeat, SetpointCommand, TelemetryBatch
from edge.wire.topics import NodeTopics
from tests.runtime.central import Central, central_for
from tests.servers import Broker, mosquitto_broker

SIZES = (100, 300, 1000, 2000)
NODE_CPU, DEVICES_CPU = 0, 1
PERIOD_S = 1.0
WINDOW_S = 10.0
FLOOR_WINDOW_S = 5.0
SETTLE_S = 2.0
LATE_S = 0.1
COMMANDS, WARM_UP = 500, 50
# The quarter hour comes this long after the start of the node.
QUARTER_IN_S = {100: 12.0, 2000: 20.0}
QUARTER_S = 900.0
BEFORE_PCT, AFTER_PCT = 70.0, 40.0

PROFILE = load_profile(Path(__file__).parent / "edge_device.yaml")
SITE = {"id": "site-1", "tag": "bench", "curtailment_time_limit_s": 60.0, "cyclic_write_timeout_s": 300.0}
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(kw_only=True)
class Node:
    """A node process that polls its devices."""

    process: subprocess.Popen[bytes]
    central: Central

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_mb(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise SystemExit("the node is gone")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one window of one size showed."""

    cores: float
    rss_mb: float
    polls: int
    late: int
    devices_cores: float

    @property
    def late_pct(self) -> float:
        return 100 * self.late / self.polls


async def main() -> None:
    os.sched_setaffinity(0, {DEVICES_CPU})
    sizes = tuple(int(each) for each in sys.argv[1:]) or SIZES
    run = Run(name="edge", broker="mosquitto", database="SQLite")
    with running_devices(max(sizes), cpu=DEVICES_CPU) as devices, mosquitto_broker() as broker:
        await _one_device(run, broker, devices)
        samples, floors = {}, {}
        for size in sizes:
            floor = [_floor(devices, size)]
            async with running_node(broker, devices, size) as node:
                samples[size] = await _window(node, devices, size)
                if size == 100:
                    await _commands(run, node, broker, devices)
            floor.append(_floor(devices, size))
            if size == 1000:
                _clients(run, floor, _floor(devices, size, client="own"))
            floors[size] = statistics.mean(each["cores"] for each in floor)
            run.notes[f"floor_{size}"] = floor
            _size_figures(run, size, samples[size], floors[size])
        _growth(run, samples, floors)
        for size in QUARTER_IN_S:
            if size in sizes:
                await _quarter_hour(run, broker, devices, size)
    run.print_table()
    if sizes == SIZES:
        run.write()


# --- the node ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def running_node(
    broker: Broker,
    devices: Devices,
    count: int,
    *,
    offset_s: float | None = None,
    schedules: dict[str, dict[str, Any]] | None = None,
) -> AsyncIterator[Node]:
    """A node that has its configuration from the broker and has polled each of its devices twice."""
    node = str(uuid.uuid4())
    topics = NodeTopics("bench", node)
    password = broker.password_file(node)
    with tempfile.TemporaryDirectory(prefix="sgm-bench-") as var:
        async with central_for(broker, topics) as central:
            for name, body in (schedules or {}).items():
                await central.put(name, body, version=1)
            await central.put("config", _configuration(devices.ports[:count]), version=1)
            await central.put_manifest()
            devices.begin()
            where = [f"{var}/state", broker.url, str(password)]
            with _process(node, where, offset_s=offset_s, log=Path(var, "log")) as process:
                async with asyncio.timeout(60):
                    while devices.polled(at_least=2) < count:
                        if process.poll() is not None:
                            raise SystemExit(f"the node of {count} devices ended")
                        await asyncio.sleep(0.1)
                yield Node(process=process, central=central)


@contextmanager
def _process(
    node: str, where: list[str], *, offset_s: float | None, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The node's process on its core; what it complained of is shown. `where`: state, broker, password."""
    state, url, password = where
    if offset_s is None:
        argv = [
            *("-m", "edge", "node", "--node", node, "--tenant", "bench", "--state", state),
            *("--broker", url, "--password-file", password),
        ]
    else:
        argv = ["-m", "bench.edge_node", str(offset_s), node, "bench", *where]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *argv],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=output,
            env={**os.environ, "SGM_TRUST_HOST_CLOCK": "1", "SGM_LOG_LEVEL": "error"},
        )
    try:
        os.sched_setaffinity(process.pid, {NODE_CPU})
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        if complaints := log.read_text(encoding="utf-8"):
            print(f"the node said:\n{complaints[:1000]}", file=sys.stderr)


def _configuration(ports: list[int]) -> dict[str, Any]:
    devices = [
        {
            "id": f"device-{number}",
            "tag": _tag(number),
            "category": "inverter",
            "profile": PROFILE.name,
            "host": "127.0.0.1",
            "port": port,
            "unit": 1,
            "nameplate_kw": 60.0,
            "poll_s": PERIOD_S,
        }
        for number, port in enumerate(ports)
    ]
    return {"site": SITE, "devices": devices, "profiles": {PROFILE.name: profile_to_builtins(PROFILE)}}


def _tag(number: int) -> str:
    return f"BENCH_{number:04}"


# --- polling ----------------------------------------------------------------------------------------------


async def _one_device(run: Run, broker: Broker, devices: Devices) -> None:
    async with running_node(broker, devices, 1) as node:
        await node.central.expect(TelemetryBatch)
        rss_mb = node.rss_mb()
    run.figures["rss_1"] = Figure(
        value=round(rss_mb, 1), unit="MB", n=1, goal="<= 60", met=round(rss_mb, 1) <= 60
    )


async def _window(node: Node, devices: Devices, size: int) -> Sample:
    await asyncio.sleep(SETTLE_S)
    node.central.heard[:] = node.central.all(Heartbeat)
    devices.begin()
    cpu_s, devices_cpu_s, began = node.cpu_s(), devices.cpu_s(), time.monotonic()
    await asyncio.sleep(WINDOW_S)
    ended = time.monotonic()
    used_s, devices_used_s = node.cpu_s() - cpu_s, devices.cpu_s() - devices_cpu_s
    reads = devices.record().reads[:size]
    assert node.central.all(TelemetryBatch), "no telemetry came"
    polls, late = 0, 0
    for moments in reads:
        seen, behind = _lateness([each for each in moments if began <= each < ended], began, ended)
        polls, late = polls + seen, late + behind
    return Sample(
        cores=used_s / (ended - began),
        rss_mb=node.rss_mb(),
        polls=polls,
        late=late,
        devices_cores=devices_used_s / (ended - began),
    )


def _lateness(moments: list[float], began: float, ended: float) -> tuple[int, int]:
    """How many polls a device should have seen in the window, and how many came late or not at all.

    Due is what the earliest poll of the window and the period say: a device is polled on a grid of its own.
    """
    if not moments:
        missing = round((ended - began) / PERIOD_S)
        return missing, missing
    turns = [0]
    for before, after in pairwise(moments):
        turns.append(turns[-1] + max(1, round((after - before) / PERIOD_S)))
    offsets = [moment - turn * PERIOD_S for moment, turn in zip(moments, turns, strict=True)]
    late = sum(offset - min(offsets) > LATE_S for offset in offsets)
    at_edges = sum(
        max(0, math.floor((silence - LATE_S) / PERIOD_S))
        for silence in (moments[0] - began, ended - moments[-1])
    )
    missing = turns[-1] + 1 - len(moments) + at_edges
    return turns[-1] + 1 + at_edges, late + missing


def _clients(run: Run, pymodbus: list[dict[str, float]], own: dict[str, float]) -> None:
    """What the node's Modbus client takes in the same bare loop, per poll (ADR 0007)."""
    polls = 1000 / PERIOD_S
    for name, cores in (
        ("pymodbus", statistics.mean(each["cores"] for each in pymodbus)),
        ("own", own["cores"]),
    ):
        figure = Figure(value=round(cores / polls * 1e6, 1), unit="us", n=round(polls * FLOOR_WINDOW_S))
        run.figures[f"client_{name}_poll"] = figure


def _floor(devices: Devices, size: int, *, client: str = "pymodbus") -> dict[str, float]:
    """The bare polling loop, on the node's core."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.edge_floor", client, str(FLOOR_WINDOW_S)],
        cwd=ROOT,
        input="\n".join(map(str, devices.ports[:size])),
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {NODE_CPU}),
    )
    result: dict[str, float] = json.loads(done.stdout)
    return {name: round(value, 3) for name, value in result.items()}


def _size_figures(run: Run, size: int, sample: Sample, floor: float) -> None:
    goals = {
        "late": {1000: 1.0}.get(size),
        "cpu": {1000: 0.5, 2000: 1.0}.get(size),
        "cpu_ratio": {1000: 3.0}.get(size),
        "rss": {1000: 150.0}.get(size),
    }

    def figure(name: str, value: float, unit: str, *, floor: float | None = None) -> None:
        goal = goals[name]
        # The share of late cycles is to be below its goal, not at it.
        met = None if goal is None else (value < goal if name == "late" else value <= goal)
        sign = "<" if name == "late" else "<="
        run.figures[f"{name}_{size}"] = Figure(
            value=value,
            unit=unit,
            n=sample.polls,
            goal=None if goal is None else f"{sign} {goal:g}",
            met=met,
            floor=floor,
        )

    figure("late", round(sample.late_pct, 3), "%")
    figure("cpu", round(sample.cores, 3), "cores", floor=round(floor, 3))
    figure("cpu_ratio", round(sample.cores / floor, 2), "x floor", floor=round(floor, 3))
    figure("rss", round(sample.rss_mb, 1), "MB")
    run.notes[f"devices_cores_{size}"] = round(sample.devices_cores, 3)


def _growth(run: Run, samples: dict[int, Sample], floors: dict[int, float]) -> None:
    """How cost grows with the number of devices: the slope in a double logarithmic plot."""
    if len(samples) < 2:
        return
    figures = {
        "cpu_growth_exponent": {size: sample.cores for size, sample in samples.items()},
        "cpu_growth_exponent_floor": floors,
        "rss_growth_exponent": {size: sample.rss_mb for size, sample in samples.items()},
    }
    for name, values in figures.items():
        slope = statistics.linear_regression(
            [math.log(size) for size in values], [math.log(value) for value in values.values()]
        ).slope
        run.figures[name] = Figure(value=round(slope, 2), unit="", n=len(values))


# --- commands ---------------------------------------------------------------------------------------------


async def _commands(run: Run, node: Node, broker: Broker, devices: Devices) -> None:
    """From the publication of a command to the register, one command at a time, beside the polls."""
    devices.begin()
    central = node.central
    publisher = _Publisher(broker, central.topics)
    draw = random.Random(1)
    sent: list[tuple[int, float, float]] = []
    answered_ms: list[float] = []
    for number in range(COMMANDS + WARM_UP):
        await asyncio.sleep(draw.uniform(0.002, 0.012))
        # A value the device does not have yet, so that each command is a write.
        device, value = number % 100, 10.0 + number // 100 * 10 + number % 7
        command = SetpointCommand(
            id=uuid.uuid4().hex,
            epoch=1,
            sequence=number + 1,
            fresh=await central.token(),
            request_id=f"request-{number}",
            category="inverter",
            values={_tag(device): value},
            hold_s=60.0,
        )
        began = publisher.publish(command)
        answer = await central.expect_answer(command.id, "done")
        assert answer.devices[_tag(device)].ok, answer
        central.heard[:] = central.all(Heartbeat)[-1:]
        if number >= WARM_UP:
            sent.append((device, value, began))
            answered_ms.append((time.monotonic() - began) * 1e3)
    to_register = _register_ms(devices.record(), sent)
    for name, values in (("command_to_register", to_register), ("command_to_answer", answered_ms)):
        for share, label, limit in ((0.5, "p50", 1.5), (0.99, "p99", 5.0)):
            value = round(percentile(values, share), 2)
            goal = limit if name == "command_to_register" else None
            run.figures[f"{name}_{label}"] = Figure(
                value=value,
                unit="ms",
                n=len(values),
                goal=None if goal is None else f"<= {goal:g}",
                met=None if goal is None else value <= goal,
            )
        run.notes[name] = spread(values)


class _Publisher:
    """Sends commands on a connection of its own: no event loop between the moment taken and the socket."""

    def __init__(self, broker: Broker, topics: NodeTopics) -> None:
        user = "central-worker"
        self._topics = topics
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.username_pw_set(user, broker.passwords[user])
        self._client.connect(broker.host, broker.port)
        while not self._client.is_connected():
            self._client.loop(timeout=0.1)
        sock = self._client.socket()
        assert isinstance(sock, socket.socket)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def publish(self, command: SetpointCommand) -> float:
        """Publish at QoS 1; the moment at which that began."""
        # What the broker acknowledged meanwhile.
        self._client.loop(timeout=0)
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = self._topics.response("worker-1")
        payload = codec.encode(command)
        began = time.monotonic()
        self._client.publish(self._topics.command("setpoint"), payload, qos=1, properties=properties)
        return began


def _register_ms(record: Record, sent: list[tuple[int, float, float]]) -> list[float]:
    found = []
    for device, value, began in sent:
        moments = [at for at, raw in record.writes[device] if at >= began and raw == round(value * 100)]
        found.append((moments[0] - began) * 1e3)
    return found


# --- the quarter hour -------------------------------------------------------------------------------------


async def _quarter_hour(run: Run, broker: Broker, devices: Devices, size: int) -> None:
    """All devices change slots at once: how long after the quarter hour the registers have the new value."""
    now = time.time()
    offset_s = QUARTER_S - QUARTER_IN_S[size] - now % QUARTER_S
    quarter_at = time.monotonic() + QUARTER_IN_S[size]
    quarter = datetime.fromtimestamp(now + offset_s + QUARTER_IN_S[size], UTC)
    days = {(quarter + timedelta(days=days)).strftime("%Y-%m-%d") for days in (-1, 0, 1)}
    slots = {f"{hour:02}:{minute:02}": BEFORE_PCT for hour in range(24) for minute in (0, 15, 30, 45)}
    changed = {**slots, quarter.strftime("%H:%M"): AFTER_PCT}
    schedules = {
        f"schedule/{day}/inverter": {
            "date": day,
            "category": "inverter",
            "slots": changed if day == quarter.strftime("%Y-%m-%d") else slots,
        }
        for day in days
    }
    async with running_node(broker, devices, size, offset_s=offset_s, schedules=schedules):
        left_s = quarter_at - time.monotonic()
        assert left_s > SETTLE_S, f"{size} devices took too long to start"
        await asyncio.sleep(left_s + 3.0)
        record = devices.record()
    late_ms = []
    for writes in record.writes[:size]:
        moments = [at for at, raw in writes if raw == round(AFTER_PCT * 100)]
        assert moments, "a device was not written"
        assert moments[0] >= quarter_at - 0.01, "a device was written before its time"
        late_ms.append((moments[0] - quarter_at) * 1e3)
    goal_ms = 250.0 if size == 100 else 2000.0
    worst = round(max(late_ms), 1)
    run.figures[f"slot_change_{size}"] = Figure(
        value=worst, unit="ms", n=size, goal=f"<= {goal_ms:g}", met=worst <= goal_ms
    )
    run.notes[f"slot_change_{size}"] = spread(late_ms)


if __name__ == "__main__":
    asyncio.run(main())
