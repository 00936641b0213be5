"""Means of quarter hours: of all that is there in the end, whenever it came and whoever died meanwhile."""

from __future__ import annotations

import threading
from datetime import UTC, date, datetime, timedelta

import pytest
from django.db import connection, connections, transaction

from devices_app import telemetry
from devices_app.means import means_make, partitions_keep, quarters_close, telemetry_retain
from devices_app.models import (
    TelemetryClosing,
    TelemetryLate,
    TelemetryMean,
    TelemetryQuarter,
    TelemetryReading,
    TelemetrySeries,
)
from devices_app.partitions import MEANS, READINGS, midnight, partitions, partitions_drop, partitions_make
from devices_app.services import device_delete
from devices_app.telemetry import ReceivedReadings, readings_record
from edge.wire.messages import TelemetryPoint
from tests.factories import device_make, story_make

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("no_redis")]

TAG = "SMA_STP60_01"
NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ON_POSTGRESQL = connection.vendor == "postgresql"


@pytest.fixture(autouse=True)
def process():
    """As a process that has just begun."""
    telemetry._remembered.clear()
    telemetry._days_there.clear()
    telemetry._warned.clear()


@pytest.fixture
def story():
    return story_make()


def at(minutes: float) -> datetime:
    """So many minutes after noon."""
    return NOON + timedelta(minutes=minutes)


def tell(node, *values: tuple[float, float], received: float, tag: str = TAG, **fields) -> None:
    """Readings by minutes after noon, received at that minute."""
    points = [
        TelemetryPoint(
            t=at(minutes).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            key="P_kW",
            value=value,
            unit="kW",
            device=tag,
            **fields,
        )
        for minutes, value in values
    ]
    readings_record([ReceivedReadings(str(node.pk), points, at(received))])


def made() -> dict[float, tuple[float, float, float, int]]:
    """Minutes after noon -> mean, minimum, maximum, count."""
    rows = TelemetryMean.objects.order_by("start").values_list("start", "mean", "minimum", "maximum", "count")
    return {(row[0] - NOON) / timedelta(minutes=1): row[1:] for row in rows}


def pending() -> int:
    return TelemetryQuarter.objects.count() + TelemetryLate.objects.count()


def test_quarter_hour_has_mean_minimum_maximum_and_count(story):
    tell(story.node_a, (0, 10), (5, 40), (14.999, 16), (15, 1000), received=15)
    means_make(now=at(17))
    assert made() == {0: (22, 10, 40, 3)}
    assert pending() == 0


def test_quarter_is_made_only_after_its_grace(story):
    tell(story.node_a, (0, 10), received=0)
    means_make(now=at(16.9))
    assert made() == {}
    means_make(now=at(17))
    assert made() == {0: (10, 10, 10, 1)}


def test_only_good_readings_count(story):
    tell(story.node_a, (0, 10), received=0)
    tell(story.node_a, (1, 500), received=1, q="uncertain")
    tell(story.node_a, (2, 900), received=2, q="bad")
    tell(story.node_a, (16, 500), received=16, q="bad")
    means_make(now=at(40))
    assert made() == {0: (10, 10, 10, 1)}


def test_each_series_has_its_own(story):
    device_make(node=story.node_a, device_tag="OTHER")
    tell(story.node_a, (0, 10), received=0)
    tell(story.node_a, (1, 30), received=1, tag="OTHER")
    means_make(now=at(20))
    found = TelemetryMean.objects.values_list("series__name", "mean")
    assert dict(found) == {TAG: 10, "OTHER": 30}


def test_running_twice_changes_nothing(story):
    tell(story.node_a, (0, 10), (20, 30), received=20)
    means_make(now=at(40))
    before = made()
    assert means_make(now=at(40)) == 0
    assert made() == before == {0: (10, 10, 10, 1), 15: (30, 30, 30, 1)}


def test_readings_that_come_late_make_their_quarters_anew(story):
    tell(story.node_a, (0, 10), received=0)
    means_make(now=at(200))
    tell(story.node_a, (1, 30), (31, 7), received=210)
    assert TelemetryLate.objects.count() == 2
    means_make(now=at(211))
    assert made() == {0: (20, 10, 30, 2), 30: (7, 7, 7, 1)}
    assert pending() == 0


def test_reading_of_an_open_quarter_is_not_late(story):
    means_make(now=at(17))
    tell(story.node_a, (15, 10), (16, 10), received=17)
    assert TelemetryLate.objects.count() == 0


def test_days_of_store_and_forward_fill_their_quarters(story, settings):
    means_make(now=at(0))
    tell(story.node_a, *((-minutes, minutes) for minutes in range(1, 7 * 24 * 60, 15)), received=1)
    means_make(now=at(2))
    assert len(made()) == 7 * 24 * 4
    assert pending() == 0


def test_all_that_was_missed_is_made_after_a_rest(story):
    """Nothing ran for a day: the next run makes all of it."""
    means_make(now=at(2))
    for hour in range(24):
        tell(story.node_a, (60 * hour + 3, hour), received=60 * hour + 3)
    means_make(now=at(24 * 60 + 2))
    assert [mean for mean, *_ in made().values()] == list(range(24))


def test_run_that_is_killed_between_two_quarters_is_taken_up(story):
    """Closed and noted down, and nothing made: where a run ends that is killed at once."""
    tell(story.node_a, (0, 10), (20, 30), received=20)
    assert quarters_close(now=at(40)) == 2
    assert means_make(now=at(40)) == 2
    assert made() == {0: (10, 10, 10, 1), 15: (30, 30, 30, 1)}


@pytest.mark.django_db(transaction=True)
def test_run_that_fails_half_way_leaves_the_quarter_to_the_next(story):
    tell(story.node_a, (0, 10), received=0)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE devices_app_telemetrymean RENAME TO elsewhere")
    try:
        with pytest.raises(Exception, match="devices_app_telemetrymean"):
            means_make(now=at(20))
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE elsewhere RENAME TO devices_app_telemetrymean")
    assert TelemetryQuarter.objects.count() == 1
    means_make(now=at(20))
    assert made() == {0: (10, 10, 10, 1)}


def test_late_quarters_are_made_in_slices_until_none_is_left(story):
    means_make(now=at(0))
    tell(story.node_a, *((-15 * number - 5, number) for number in range(10)), received=1)
    assert means_make(now=at(2), at_once=3) == 10
    assert len(made()) == 10


def test_clock_that_was_ahead_and_came_back_loses_no_quarter(story):
    tell(story.node_a, (0, 10), received=0)
    means_make(now=at(600))
    tell(story.node_a, (16, 20), received=16)
    means_make(now=at(17))
    tell(story.node_a, (18, 40), received=18)
    means_make(now=at(40))
    assert made() == {0: (10, 10, 10, 1), 15: (30, 20, 40, 2)}


def test_mean_outlives_its_readings(story, settings):
    """Readings of a day that may be gone in part do not make its means anew."""
    settings.SGM_TELEMETRY_RETENTION_DAYS = 2
    tell(story.node_a, (0, 10), received=0)
    means_make(now=at(20))
    tell(story.node_a, (1, 500), received=30)
    means_make(now=at(4 * 24 * 60))
    assert made() == {0: (10, 10, 10, 1)}
    assert pending() == 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(not ON_POSTGRESQL, reason="SQLite lets one transaction write at a time")
def test_reading_whose_transaction_outlasts_the_closing_is_late(story):
    """The closing waits for whoever is inserting; whoever comes after it sees what is closed."""
    tell(story.node_a, (0, 10), received=0)
    inserted, closed = threading.Event(), threading.Event()

    def close() -> None:
        inserted.wait(timeout=10)
        try:
            quarters_close(now=at(20))
            closed.set()
        finally:
            connections.close_all()

    closing = threading.Thread(target=close)
    closing.start()
    with transaction.atomic():
        tell(story.node_a, (1, 30), received=19)
        inserted.set()
        # It cannot get through; there is nothing to wait for but time.
        assert not closed.wait(timeout=0.3)
    closing.join(timeout=10)
    assert closed.is_set()
    means_make(now=at(20))
    assert made() == {0: (20, 10, 30, 2)}


@pytest.mark.django_db(transaction=True)
def test_readings_and_runs_at_once_lose_no_reading(story):
    """Two inboxes insert, two workers make means, over quarters that close meanwhile."""
    device_make(node=story.node_a, device_tag="OTHER")
    started = threading.Barrier(4)
    failed: list[Exception] = []

    def insert(tag: str) -> None:
        for minute in range(60):
            tell(story.node_a, (minute, minute), (minute + 0.5, minute), received=minute + 1, tag=tag)

    def make(_: str) -> None:
        for minute in range(0, 60, 5):
            means_make(now=at(minute + 3))

    def run(work, tag: str) -> None:
        try:
            started.wait(timeout=10)
            work(tag)
        except Exception as error:  # noqa: BLE001 - told to the test below
            failed.append(error)
        finally:
            connections.close_all()

    works = [(insert, TAG), (insert, "OTHER"), (make, ""), (make, "")]
    threads = [threading.Thread(target=run, args=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=100)
    assert failed == []
    means_make(now=at(80))
    assert TelemetryReading.objects.count() == 2 * 120
    assert sorted(TelemetryMean.objects.values_list("mean", "count")) == [
        (mean, 30) for mean in (7, 7, 22, 22, 37, 37, 52, 52)
    ]
    assert pending() == 0


# --- partitions and retention -----------------------------------------------------------------------------


def test_old_readings_go_by_whole_days_and_means_stay(story, settings):
    settings.SGM_TELEMETRY_RETENTION_DAYS = 2
    day = 24 * 60
    for minute in (0, day, 2 * day, 3 * day):
        tell(story.node_a, (minute, minute / day), received=minute)
        means_make(now=at(minute + 20))
    # Two days and an hour before half past noon is in the second day, which stays whole.
    telemetry_retain(now=at(3 * day + 30))
    assert list(TelemetryReading.objects.order_by("at").values_list("value", flat=True)) == [1, 2, 3]
    assert len(made()) == 4


def test_day_is_dropped_no_earlier_than_its_last_reading_can_no_longer_come(story, settings):
    settings.SGM_TELEMETRY_RETENTION_DAYS = 1
    midnight_in = 12 * 60
    tell(story.node_a, (midnight_in - 1, 5), received=midnight_in)
    telemetry_retain(now=at(midnight_in + 24 * 60 + 59))
    assert TelemetryReading.objects.count() == 1
    telemetry_retain(now=at(midnight_in + 24 * 60 + 60))
    assert TelemetryReading.objects.count() == 0


def test_means_and_series_of_what_is_gone_go_after_their_time(story, settings):
    settings.SGM_TELEMETRY_MEANS_RETENTION_DAYS = 400
    tell(story.node_a, (0, 10), received=0)
    tell(story.node_b, (0, 10), received=0, tag="GENERIC_PV_01")
    TelemetrySeries.objects.update(created_at=NOON)
    means_make(now=at(20))
    device_delete(device=story.device_a)
    telemetry_retain(now=NOON + timedelta(days=399))
    assert TelemetrySeries.objects.count() == 2
    assert len(TelemetryMean.objects.all()) == 2
    telemetry_retain(now=NOON + timedelta(days=440))
    assert TelemetryMean.objects.count() == 0
    assert list(TelemetrySeries.objects.values_list("device", flat=True)) == [story.device_b.pk]


def test_deleting_in_slices_deletes_all(story, settings):
    settings.SGM_TELEMETRY_RETENTION_DAYS = 1
    tell(story.node_a, *((minute, minute) for minute in range(10)), received=10)
    telemetry_retain(now=NOON + timedelta(days=4), at_once=3)
    assert TelemetryReading.objects.count() == 0


@pytest.mark.skipif(not ON_POSTGRESQL, reason="only PostgreSQL has partitions")
def test_partitions_are_there_ahead_and_stay_as_they_are():
    partitions_keep(now=datetime(2026, 12, 29, 12, tzinfo=UTC))
    partitions_keep(now=datetime(2026, 12, 30, 12, tzinfo=UTC))
    days = {
        date(2026, 12, 29),
        date(2026, 12, 30),
        date(2026, 12, 31),
        *(date(2027, 1, day) for day in (1, 2)),
    }
    assert days <= set(partitions(READINGS))
    assert {date(2026, 12, 1), date(2027, 1, 1)} <= set(partitions(MEANS))


@pytest.mark.skipif(not ON_POSTGRESQL, reason="only PostgreSQL has partitions")
def test_reading_lies_in_the_partition_of_its_utc_day(story):
    tell(story.node_a, (0, 10), (12 * 60 - 0.001, 20), (12 * 60, 30), received=12 * 60)
    with connection.cursor() as cursor:
        cursor.execute("SELECT tableoid::regclass::text, value FROM devices_app_telemetryreading ORDER BY at")
        found = cursor.fetchall()
    assert found == [
        ("devices_app_telemetryreading_20261123", 10),
        ("devices_app_telemetryreading_20261123", 20),
        ("devices_app_telemetryreading_20261124", 30),
    ]


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(not ON_POSTGRESQL, reason="only PostgreSQL has partitions")
def test_two_processes_make_a_partition_once():
    days = [date(2031, 5, 1), date(2031, 5, 2)]
    started = threading.Barrier(2)
    made_by: list[list[date]] = []

    def make() -> None:
        try:
            started.wait(timeout=10)
            made_by.append(partitions_make(READINGS, days=days))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(made_by) == [[], days]


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(not ON_POSTGRESQL, reason="only PostgreSQL has partitions")
def test_partition_that_is_read_is_dropped_by_a_later_run():
    day = date(2020, 2, 29)
    partitions_make(READINGS, days=[day])
    reading, done = threading.Event(), threading.Event()

    def read() -> None:
        try:
            with transaction.atomic():
                TelemetryReading.objects.count()
                reading.set()
                done.wait(timeout=10)
        finally:
            connections.close_all()

    reader = threading.Thread(target=read)
    reader.start()
    reading.wait(timeout=10)
    assert partitions_drop(READINGS, before=midnight(date(2020, 3, 1)), wait_ms=100) == 0
    assert day in partitions(READINGS)
    done.set()
    reader.join(timeout=10)
    assert partitions_drop(READINGS, before=midnight(date(2020, 3, 1))) == 1
    assert day not in partitions(READINGS)


def test_closing_is_one_row(story):
    means_make(now=at(20))
    means_make(now=at(40))
    assert TelemetryClosing.objects.get().until == at(30)
