"""How much one inbox process takes in: `python -m bench.inbox [postgres|sqlite]`.

A real `manage.py run_inbox` on a real broker, Redis and database; the load comes from this process.
Heartbeats are sent at a rate, and what they cost is told; all else is sent as fast as it is taken.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import django
import paho.mqtt.client as paho
from django.core.management import call_command
from paho.mqtt.enums import CallbackAPIVersion

from edge.wire import codec
from edge.wire.messages import (
    Heartbeat,
    LogAck,
    LogBatch,
    LogEntry,
    Presence,
    Reported,
    TelemetryBatch,
    TelemetryPoint,
)
from edge.wire.topics import NodeTopics
from tests.inboxes import InboxProcess, inbox_environment, inbox_processes
from tests.servers import Broker, mosquitto_broker, postgres_server, redis_server, until

NODES = 1000
HEARTBEATS_PER_S = 2000
HEARTBEATS_S = 5.0
LOGS_S = 5.0
POINTS = 10
TENANT = "tenant-123"


class Load:
    """All nodes in one client, which the broker lets write anything."""

    def __init__(self, broker: Broker, topics: list[NodeTopics]) -> None:
        with (broker.directory / "acl").open("a") as acl:
            acl.write("\nuser load\ntopic readwrite #\n")
        broker.add_user("load")
        self.topics = topics
        self.acknowledged = 0
        self._running = False
        self._subscribed = threading.Event()
        self._seq = dict.fromkeys((one.node for one in topics), 0)
        self._of = {one.node: one for one in topics}
        self._client = client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.max_inflight_messages_set(65_000)
        client.username_pw_set("load", broker.passwords["load"])
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.on_message = lambda _client, _data, message: self._ack(message)
        client.connect(broker.host, broker.port)
        client.loop_start()
        client.subscribe("sgm/v1/+/+/logack", qos=1)
        assert self._subscribed.wait(5)

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: bytes, *, qos: int = 0) -> None:
        self._client.publish(topic, payload, qos=qos)

    def births(self) -> None:
        for topics in self.topics:
            birth = Presence(online=True, session=f"s-{topics.node}", boot="b", fresh="birth")
            self.publish(topics.presence, codec.encode(birth), qos=1)

    def heartbeats(self) -> int:
        """At the rate, for the time; how many."""
        began, count = time.monotonic(), int(HEARTBEATS_PER_S * HEARTBEATS_S)
        for number in range(count):
            topics = self.topics[number % len(self.topics)]
            beat = Heartbeat(
                session=f"s-{topics.node}",
                seq=1 + number // len(self.topics),
                mono_ms=number,
                wall="2026-01-01T00:00:00Z",
                fresh="sixteen letters.",
            )
            self.publish(topics.heartbeat, codec.encode(beat))
            ahead_s = number / HEARTBEATS_PER_S - (time.monotonic() - began)
            if ahead_s > 0:
                time.sleep(ahead_s)
        return count

    def logs(self) -> float:
        """Batches of one entry, each node's next when its last is acknowledged; how many a second."""
        self._running, began, before = True, time.monotonic(), self.acknowledged
        for topics in self.topics:
            self._log(topics)
        time.sleep(LOGS_S)
        rate = (self.acknowledged - before) / (time.monotonic() - began)
        self._running = False
        return rate

    def _log(self, topics: NodeTopics) -> None:
        seq = self._seq[topics.node] = self._seq[topics.node] + 1
        entry = LogEntry(seq=seq, at=now(), kind="watchdog", category="inverter", value=100.0, reason="lapse")
        batch = LogBatch(stream="control", store="store", first=seq, last=seq, entries=[entry])
        self.publish(topics.log, codec.encode(batch), qos=1)

    def _ack(self, message: paho.MQTTMessage) -> None:
        node = message.topic.split("/")[3]
        if codec.decode(LogAck, bytes(message.payload)).last == self._seq[node]:
            self.acknowledged += 1
            if self._running:
                self._log(self._of[node])

    def telemetry(self, rounds: int) -> int:
        """One batch a node and round; how many points."""
        for _ in range(rounds):
            for topics in self.topics:
                at = now()
                points = [
                    TelemetryPoint(t=at, key=key, value=1.5, unit="kW", device=f"INV_{device}")
                    for device in range(POINTS // 2)
                    for key in ("P_kW", "Q_kvar")
                ]
                self.publish(topics.telemetry, codec.encode(TelemetryBatch(points=points)))
        return rounds * len(self.topics) * POINTS

    def reports(self, *, mono_ms: int) -> int:
        for topics in self.topics:
            report = Reported(
                session=f"s-{topics.node}",
                boot="b",
                store="store",
                mono_ms=mono_ms,
                epoch=1,
                manifest_version=0,
                at=now(),
                clock="trusted",
            )
            self.publish(topics.reported, codec.encode(report), qos=1)
        return len(self.topics)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@contextmanager
def database(kind: str, directory: Path) -> Iterator[str]:
    if kind == "postgres":
        with postgres_server() as url:
            yield url
    else:
        yield f"sqlite:///{directory}/sgm.sqlite3"


def fleet_make() -> list[NodeTopics]:
    """Nodes with devices, put straight into the tables: how they are made is not measured here."""
    from devices_app.models import Device, DeviceType  # noqa: PLC0415 - after the settings
    from sites_app.models import Node, Site  # noqa: PLC0415

    sites = Site.objects.bulk_create(
        [Site(site_tag=f"site-{number}", name="Site", tenant_tag=TENANT) for number in range(NODES)]
    )
    kind = DeviceType.objects.create(name="type", profile="test", category="inverter", protocol="modbus_tcp")
    nodes = Node.objects.bulk_create(
        [Node(site=site, tenant_tag=TENANT, name=f"node-{number}") for number, site in enumerate(sites)]
    )
    Device.objects.bulk_create(
        [
            Device(
                site_id=node.site_id,
                node=node,
                device_type=kind,
                device_tag=f"INV_{number}",
                category="inverter",
                min_value=0,
                max_value=100,
                default_value=100,
            )
            for node in nodes
            for number in range(POINTS // 2)
        ]
    )
    return [node.topics for node in nodes]


def measure(name: str, inbox: InboxProcess, send: Callable[[], int], done: Callable[[int], bool]) -> None:
    cpu, began = inbox.cpu_s(), time.monotonic()
    count = send()
    sent_s = time.monotonic() - began
    until(lambda: done(count), what=f"{name} not taken", within_s=120)
    took_s = time.monotonic() - began
    cores = (inbox.cpu_s() - cpu) / took_s
    print(f"{name:12} {count / took_s:8.0f}/s  {cores:5.2f} cores  (sent in {sent_s:.1f} s)", flush=True)


def main() -> None:
    kind = sys.argv[1] if len(sys.argv) > 1 else "postgres"
    with (
        tempfile.TemporaryDirectory(prefix="sgm-bench-inbox-") as name,
        redis_server() as redis_url,
        mosquitto_broker() as broker,
        database(kind, Path(name)) as database_url,
    ):
        env = inbox_environment(broker=broker, redis_url=redis_url, database_url=database_url)
        os.environ.update(env)
        django.setup()
        call_command("migrate", verbosity=0)
        run(Load(broker, fleet_make()), env=env, directory=Path(name))


def run(load: Load, *, env: dict[str, str], directory: Path) -> None:
    from devices_app.models import TelemetryReading  # noqa: PLC0415 - after the settings
    from sites_app.models import Node  # noqa: PLC0415
    from sites_app.presence import presence_read  # noqa: PLC0415

    last = uuid.UUID(load.topics[-1].node)

    def online(count: int) -> bool:
        return Node.objects.filter(online=True).count() == count

    def births() -> int:
        load.births()
        return NODES

    def beaten(_count: int) -> bool:
        return presence_read([last])[last].fresh == "sixteen letters."

    with inbox_processes(1, env=env, directory=directory) as (inbox,):
        measure("births", inbox, births, online)
        measure("heartbeats", inbox, load.heartbeats, beaten)
        cpu = inbox.cpu_s()
        rate = load.logs()
        print(f"{'log batches':12} {rate:8.0f}/s  {(inbox.cpu_s() - cpu) / LOGS_S:5.2f} cores", flush=True)
        stored = TelemetryReading.objects.count
        measure("first points", inbox, lambda: load.telemetry(1), lambda count: stored() >= count)
        before = stored()
        measure("points", inbox, lambda: load.telemetry(3), lambda count: stored() >= before + count)
        began = datetime.now(UTC)

        def reported(count: int) -> bool:
            return Node.objects.filter(last_reported_at__gte=began).count() == count

        measure("reports", inbox, lambda: load.reports(mono_ms=1), reported)
        began = datetime.now(UTC)
        measure("the same", inbox, lambda: load.reports(mono_ms=2), reported)
    load.stop()


if __name__ == "__main__":
    main()
