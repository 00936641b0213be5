"""Real inbox processes: sharing the load, dying, standing still, and losing what they depend on."""

from __future__ import annotations

import queue
import re
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import paho.mqtt.client as paho
import pytest
from django.db import connection, connections
from django.utils import timezone
from paho.mqtt.enums import CallbackAPIVersion

from control_app.models import ControlLog, NodeStream
from devices_app.models import TelemetryReading
from edge.wire import codec
from edge.wire.messages import Heartbeat, LogAck, LogBatch, LogEntry, Presence, TelemetryBatch, TelemetryPoint
from edge.wire.topics import NodeTopics
from sites_app.models import Node
from sites_app.presence import central_now, presence_read
from tests.factories import device_make, node_make, site_make
from tests.inboxes import UP, database_url, inbox_environment, inbox_processes
from tests.servers import Broker, mosquitto_broker, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.system]

NODES = 30
ENTRIES = 20
# How long a node of these tests waits for an acknowledgement before it sends again.
AGAIN_S = 1.0


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    with mosquitto_broker() as running:
        yield running


@pytest.fixture
def environment(own_broker: Broker, live_redis: str) -> dict[str, str]:
    return inbox_environment(broker=own_broker, redis_url=live_redis, database_url=database_url())


class Fleet:
    """Nodes that upload a log as real ones do, over one connection which the broker lets write anything."""

    def __init__(self, broker: Broker, nodes: list[Node]) -> None:
        with (broker.directory / "acl").open("a") as acl:
            acl.write("\nuser fleet\ntopic readwrite #\n")
        broker.add_user("fleet")
        self.topics = [node.topics for node in nodes]
        self.early: list[str] = []
        self._acks: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._subscribed = threading.Event()
        self._client = client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.username_pw_set("fleet", broker.passwords["fleet"])
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.on_message = lambda _client, _data, message: self._ack(message)
        client.connect(broker.host, broker.port)
        client.loop_start()
        client.subscribe("sgm/v1/+/+/logack", qos=1)
        assert self._subscribed.wait(5)

    @classmethod
    @contextmanager
    def on(cls, broker: Broker, nodes: list[Node]) -> Iterator[Fleet]:
        fleet = cls(broker, nodes)
        try:
            yield fleet
        finally:
            fleet._client.disconnect()
            fleet._client.loop_stop()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        sent = self._client.publish(topic, payload, qos=qos, retain=retain)
        sent.wait_for_publish(60)
        assert sent.is_published()

    def say(self, topics: NodeTopics, session: str, *, online: bool = True, fresh: str | None = None) -> None:
        presence = Presence(online=online, session=session, boot="b", fresh=fresh)
        self.publish(topics.presence, codec.encode(presence), retain=True)

    def beat(self, topics: NodeTopics, session: str, seq: int, *, fresh: str = "token") -> None:
        beat = Heartbeat(session=session, seq=seq, mono_ms=0, wall="", fresh=fresh)
        self.publish(topics.heartbeat, codec.encode(beat), qos=0)

    def upload(self, *, entries: int, meanwhile: Callable[[int], None], batch: int = 3) -> None:
        """Every node its entries, some at a time; `meanwhile` is told how many batches are acknowledged."""
        sent = {topics.node: 0 for topics in self.topics}
        have = dict.fromkeys(sent, 0)
        logs = {topics.node: [log_entry(seq) for seq in range(1, entries + 1)] for topics in self.topics}
        by_node = {topics.node: topics for topics in self.topics}

        def send(node: str) -> None:
            some = logs[node][have[node] : have[node] + batch]
            sent[node] = some[-1].seq
            self._client.publish(by_node[node].log, codec.encode(log_batch(*some)), qos=1)

        for node in sent:
            send(node)
        acknowledged = 0
        left = set(sent)
        deadline = timezone.now().timestamp() + 60
        while left:
            assert timezone.now().timestamp() < deadline, f"{len(left)} nodes were not acknowledged"
            try:
                node, last = self._acks.get(timeout=AGAIN_S)
            except queue.Empty:
                for node in left:
                    send(node)
                continue
            if node not in left or last < sent[node]:
                continue
            if NodeStream.objects.get(node_id=uuid.UUID(node)).last < last:
                self.early.append(node)
            acknowledged += 1
            have[node] = last
            if last == entries:
                left.discard(node)
            else:
                send(node)
            meanwhile(acknowledged)

    def _ack(self, message: paho.MQTTMessage) -> None:
        self._acks.put((message.topic.split("/")[3], codec.decode(LogAck, bytes(message.payload)).last))


def moment() -> str:
    return timezone.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def log_entry(seq: int) -> LogEntry:
    return LogEntry(
        seq=seq, at=moment(), kind="watchdog", category="inverter", value=float(seq), reason="lapse"
    )


def log_batch(*entries: LogEntry) -> LogBatch:
    return LogBatch(
        stream="control", store="s", first=entries[0].seq, last=entries[-1].seq, entries=list(entries)
    )


def nodes_make(count: int) -> list[Node]:
    site = site_make()
    return [node_make(site=site) for _ in range(count)]


def every_entry_is_there_once(nodes: list[Node], entries: int) -> bool:
    lines = sorted(ControlLog.objects.values_list("node_id", "value"))
    return lines == sorted((node.pk, float(seq)) for node in nodes for seq in range(1, entries + 1))


# --- two of them ----------------------------------------------------------------------------------------------


def test_two_inboxes_of_which_one_is_killed_take_every_entry_once(own_broker, environment, tmp_path):
    nodes = nodes_make(NODES)
    with (
        Fleet.on(own_broker, nodes) as fleet,
        inbox_processes(2, env=environment, directory=tmp_path) as (first, _second),
    ):
        in_the_middle = NODES * ENTRIES // 3 // 2

        def kill(acknowledged: int) -> None:
            if acknowledged == in_the_middle:
                first.kill()

        fleet.upload(entries=ENTRIES, meanwhile=kill)
        assert every_entry_is_there_once(nodes, ENTRIES)
        assert fleet.early == []


def test_both_inboxes_have_a_share(own_broker, environment, tmp_path):
    nodes = nodes_make(NODES)
    with (
        Fleet.on(own_broker, nodes) as fleet,
        inbox_processes(2, env=environment, directory=tmp_path) as inboxes,
    ):
        for inbox in inboxes:
            # Until then each is sent all.
            inbox.says("retained_messages_read")
        for topics in fleet.topics:
            fleet.say(topics, "s1")
        until(lambda: Node.objects.filter(online=True).count() == NODES, what="not all births were taken")
        # Each logs what it took once that has been committed.
        until(
            lambda: all(inbox.log.count("node_online") > 0 for inbox in inboxes),
            what="one inbox took all births",
        )


def test_without_shared_subscriptions_two_inboxes_double_nothing(own_broker, environment, tmp_path):
    nodes = nodes_make(3)
    env = {**environment, "SGM_MQTT_SHARED_SUBSCRIPTIONS": "0"}
    with Fleet.on(own_broker, nodes) as fleet, inbox_processes(2, env=env, directory=tmp_path):
        fleet.upload(entries=ENTRIES, meanwhile=lambda _count: None)
        assert every_entry_is_there_once(nodes, ENTRIES)


# --- what the broker keeps ------------------------------------------------------------------------------------


def test_inbox_reads_what_the_broker_kept_while_none_was_there(own_broker, environment, tmp_path):
    nodes = nodes_make(2)
    with Fleet.on(own_broker, nodes) as fleet:
        for topics in fleet.topics:
            fleet.say(topics, "s1", fresh="an old token")
        with inbox_processes(1, env=environment, directory=tmp_path):
            until(lambda: Node.objects.filter(online=True).count() == 2, what="births were not read")
        known = presence_read([nodes[0].pk])[nodes[0].pk]
        assert not known.is_reachable(now=central_now())
        assert known.fresh == ""


def test_ten_thousand_retained_messages_come_through(own_broker, environment, tmp_path):
    """Of strangers but one, so that nothing but their number is put to the test."""
    (node,) = nodes_make(1)
    with Fleet.on(own_broker, [node]) as fleet:
        birth = codec.encode(Presence(online=True, session="s1", boot="b"))
        strangers = [NodeTopics(node.tenant_tag, str(uuid.UUID(int=number))) for number in range(10_000)]
        for topics in strangers:
            fleet._client.publish(topics.presence, birth, qos=0, retain=True)
        fleet.publish(node.topics.presence, birth, retain=True)
        with inbox_processes(1, env=environment, directory=tmp_path) as (inbox,):
            until(lambda: Node.objects.filter(online=True).exists(), what="the birth was not read")
            inbox.says("retained_messages_read")
            (count,) = re.findall(r'"count": (\d+), "event": "retained_messages_read"', inbox.log)
            assert int(count) == 10_001


# --- one that stands still ------------------------------------------------------------------------------------


def test_inbox_that_stood_still_makes_nothing_old_look_fresh(own_broker, environment, tmp_path):
    (node,) = nodes_make(1)
    with (
        Fleet.on(own_broker, [node]) as fleet,
        inbox_processes(1, env={**environment, "SGM_LOG_LEVEL": "INFO"}, directory=tmp_path) as (inbox,),
    ):
        fleet.say(node.topics, "s1", fresh="first")
        until(lambda: presence_read([node.pk])[node.pk].fresh == "first", what="the birth was not taken")
        inbox.signal(signal.SIGSTOP)
        fleet.beat(node.topics, "s1", 1, fresh="old")
        stopped_for(6.0)
        inbox.signal(signal.SIGCONT)
        inbox.says(UP, times=2)
        fleet.beat(node.topics, "s1", 3, fresh="new")
        seen = set()

        def is_new() -> bool:
            seen.add(presence_read([node.pk])[node.pk].fresh)
            return "new" in seen

        until(is_new, what="the inbox did not come back")
        assert seen <= {"first", "new"}


def stopped_for(seconds: float) -> None:
    """Let so much time go by in which nothing happens: another process stands still, and must notice."""
    threading.Event().wait(seconds)


# --- the database away ----------------------------------------------------------------------------------------


@contextmanager
def database_away() -> Iterator[None]:
    """PostgreSQL lets nobody in, and has thrown out who was there."""
    name = connection.settings_dict["NAME"]
    connections.close_all()
    with ExitStack() as stack:
        import psycopg  # noqa: PLC0415 - of this database alone

        url = database_url().rpartition("/")[0] + "/postgres"
        admin = stack.enter_context(psycopg.connect(url, autocommit=True))
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            yield
        finally:
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


def test_inbox_goes_on_by_itself_when_the_database_was_away(own_broker, environment, tmp_path):
    if connection.vendor != "postgresql":
        pytest.skip("SQLite is never away")
    nodes = nodes_make(3)
    with (
        Fleet.on(own_broker, nodes) as fleet,
        inbox_processes(1, env=environment, directory=tmp_path) as (inbox,),
    ):
        fleet.upload(entries=3, meanwhile=lambda _count: None)
        device = device_make(node=nodes[0])
        point = TelemetryPoint(t=moment(), key="P_kW", value=30.0, unit="kW", device=device.device_tag)
        with database_away():
            for topics in fleet.topics:
                fleet.say(topics, "s1")
            fleet.publish(nodes[0].topics.telemetry, codec.encode(TelemetryBatch(points=[point])))
            inbox.says("database_unavailable")
        until(lambda: Node.objects.filter(online=True).count() == 3, what="births were lost")
        until(lambda: TelemetryReading.objects.filter(value=30.0).exists(), what="readings were lost")
        inbox.says("database_is_back")
        assert every_entry_is_there_once(nodes, 3)
