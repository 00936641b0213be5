"""Telemetry through real processes: two inboxes that share it, and processes that are killed half-way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import LiteralString

import paho.mqtt.client as paho
import psycopg
import pytest
from django.db import connection
from django.utils import timezone
from paho.mqtt.enums import CallbackAPIVersion
from psycopg.sql import SQL, Identifier

from devices_app.means import means_make, quarters_close
from devices_app.models import (
    TelemetryLate,
    TelemetryMean,
    TelemetryQuarter,
    TelemetryReading,
    TelemetrySeries,
)
from devices_app.telemetry import ReceivedReadings, quarter_of, readings_record
from edge.wire import codec
from edge.wire.messages import LogBatch, LogEntry, TelemetryBatch, TelemetryPoint
from smartgrid import live
from tests.factories import device_make, node_make, site_make, story_make
from tests.inboxes import ROOT, database_url, inbox_environment, inbox_processes
from tests.servers import Broker, mosquitto_broker, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.system]

ON_POSTGRESQL = connection.vendor == "postgresql"
NODES = 10
MESSAGES = 12


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    with mosquitto_broker() as running:
        yield running


@pytest.fixture
def environment(own_broker: Broker, live_redis: str) -> dict[str, str]:
    return inbox_environment(broker=own_broker, redis_url=live_redis, database_url=database_url())


@contextmanager
def publisher(broker: Broker) -> Iterator[paho.Client]:
    """A connection which the broker lets write anything."""
    with (broker.directory / "acl").open("a") as acl:
        acl.write("\nuser fleet\ntopic readwrite #\n")
    broker.add_user("fleet")
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.username_pw_set("fleet", broker.passwords["fleet"])
    client.connect(broker.host, broker.port)
    client.loop_start()
    try:
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


def reading(at: datetime, value: float, tag: str) -> TelemetryPoint:
    text = at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return TelemetryPoint(t=text, key="P_kW", unit="kW", value=value, device=tag)


def test_two_inboxes_keep_every_reading_once_live_and_forwarded(own_broker, environment, tmp_path):
    """Each reading comes live, and again from the time without a link, as from a node that is not sure."""
    site = site_make()
    nodes = [node_make(site=site) for _ in range(NODES)]
    for node in nodes:
        device_make(node=node, device_tag=f"DEV_{node.name}")
    now = timezone.now()
    with publisher(own_broker) as client, inbox_processes(2, env=environment, directory=tmp_path):
        for number in range(MESSAGES):
            for node in nodes:
                point = reading(now - timedelta(seconds=MESSAGES - number), number, f"DEV_{node.name}")
                live_message = codec.encode(TelemetryBatch(points=[point]))
                entry = LogEntry(seq=number + 1, at=point.t, kind="points", points=(point,))
                batch = LogBatch(
                    stream="telemetry", store="s", first=entry.seq, last=entry.seq, entries=[entry]
                )
                client.publish(node.topics.telemetry, live_message, qos=1)
                client.publish(node.topics.log, codec.encode(batch), qos=1)
        until(
            lambda: TelemetryReading.objects.count() >= NODES * MESSAGES,
            what="not all readings were taken",
            within_s=30,
        )
        until(
            lambda: sorted(newest_values(site)) == [float(MESSAGES - 1)] * NODES,
            what="the newest readings are not those that were measured last",
            within_s=10,
        )
    assert TelemetryReading.objects.count() == NODES * MESSAGES
    assert TelemetrySeries.objects.count() == NODES
    means_make(now=now + timedelta(hours=1))
    assert sum(TelemetryMean.objects.values_list("count", flat=True)) == NODES * MESSAGES


def newest_values(site) -> list[float]:
    found = live.hash_newest_read(f"sgm:site:{site.pk}:latest")
    return [float(text.split('"value":')[1].split(",")[0]) for _, text in found.values()]


# --- killed -------------------------------------------------------------------------------------------------

MEANS = """
import sys; from datetime import datetime
import django; django.setup()
from devices_app.means import means_make
means_make(now=datetime.fromisoformat(sys.argv[1]))
"""
READINGS = """
import sys; from datetime import datetime
import django; django.setup()
from devices_app.telemetry import ReceivedReadings, readings_record
from edge.wire.messages import TelemetryPoint
at, *nodes = sys.argv[1:]
readings_record([
    ReceivedReadings(node, [TelemetryPoint(t=at, key="P_kW", value=9.0, device=tag)], datetime.fromisoformat(at))
    for node, tag in (pair.split("/") for pair in nodes)
])
"""


def kill_while_it_waits_for(table: str, *, program: str, arguments: list[str]) -> None:
    """Kill -9 a process in the middle of its transaction, as it is about to write to this table.

    Returns once PostgreSQL has found it dead.
    """
    name = "to be killed"
    environment = {
        "PATH": "/usr/bin:/bin",
        "PGAPPNAME": name,
        "DJANGO_SETTINGS_MODULE": "smartgrid.settings",
        "SGM_SECRET_KEY": "only for tests",
        "SGM_DATABASE_URL": database_url(),
    }
    with (
        psycopg.connect(database_url(), autocommit=True) as watcher,
        psycopg.connect(database_url()) as holder,
    ):
        holder.execute(SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(Identifier(table)))

        def connections(which: LiteralString) -> int:
            query = SQL("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND ") + SQL(which)
            row = watcher.execute(query, [name]).fetchone()
            assert row is not None
            return int(row[0])

        process = subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=ROOT, env=environment)
        try:
            until(
                lambda: connections("wait_event_type = 'Lock'") > 0,
                what="it never came to the table",
                within_s=30,
            )
        finally:
            process.kill()
            process.wait(10)
        holder.rollback()
        until(lambda: connections("true") == 0, what="PostgreSQL believes that it lives", within_s=30)


def point_of(story, at: datetime, value: float) -> ReceivedReadings:
    return ReceivedReadings(str(story.node_a.pk), [reading(at, value, "SMA_STP60_01")], at)


@pytest.mark.skipif(not ON_POSTGRESQL, reason="SQLite does not show where another process waits")
def test_means_killed_in_the_middle_of_a_quarter_are_made_by_the_next_run(no_redis):
    story = story_make()
    start = quarter_of(datetime.now(UTC)) - timedelta(hours=1)
    over = start + timedelta(minutes=20)
    readings_record([point_of(story, start, 7)])
    quarters_close(now=over)
    kill_while_it_waits_for("devices_app_telemetrymean", program=MEANS, arguments=[over.isoformat()])
    assert list(TelemetryQuarter.objects.values_list("start", flat=True)) == [start]
    assert TelemetryMean.objects.count() == 0
    means_make(now=over)
    assert list(TelemetryMean.objects.values_list("start", "mean", "count")) == [(start, 7, 1)]


@pytest.mark.skipif(not ON_POSTGRESQL, reason="SQLite does not show where another process waits")
def test_late_quarter_is_still_noted_after_a_kill_in_the_middle_of_it(no_redis):
    story = story_make()
    start = quarter_of(datetime.now(UTC)) - timedelta(hours=1)
    over = start + timedelta(minutes=20)
    readings_record([point_of(story, start, 7)])
    means_make(now=over)
    readings_record([point_of(story, start + timedelta(minutes=1), 9)])
    kill_while_it_waits_for("devices_app_telemetrymean", program=MEANS, arguments=[over.isoformat()])
    assert TelemetryLate.objects.count() == 1
    means_make(now=over)
    assert list(TelemetryMean.objects.values_list("start", "mean", "count")) == [(start, 8, 2)]


@pytest.mark.skipif(not ON_POSTGRESQL, reason="SQLite does not show where another process waits")
def test_batch_killed_in_the_middle_leaves_nothing_and_is_whole_when_it_comes_again(no_redis):
    story = story_make()
    at = datetime.now(UTC)
    means_make(now=at + timedelta(hours=1))
    pairs = [f"{story.node_a.pk}/SMA_STP60_01", f"{story.node_b.pk}/GENERIC_PV_01"]
    # The readings are inserted by then, and their late quarters are not.
    kill_while_it_waits_for("devices_app_telemetrylate", program=READINGS, arguments=[at.isoformat(), *pairs])
    assert (TelemetryReading.objects.count(), TelemetryLate.objects.count()) == (0, 0)
    readings_record([point_of(story, at, 9)])
    assert (TelemetryReading.objects.count(), TelemetryLate.objects.count()) == (1, 1)
