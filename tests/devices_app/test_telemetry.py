"""Readings of nodes: each in the history once, whoever sends it, however often and however late."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, connections
from django.utils import timezone

from devices_app import telemetry
from devices_app.models import Quality, TelemetryReading, TelemetrySeries
from devices_app.partitions import READINGS, midnight, partitions, partitions_drop
from devices_app.services import device_delete, device_update
from devices_app.telemetry import ReceivedReadings, readings_record
from edge.wire.messages import TelemetryPoint
from smartgrid import live
from tests.factories import device_make, node_make, story_make

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("no_redis")]

TAG = "SMA_STP60_01"


@pytest.fixture(autouse=True)
def process():
    """As a process that has just begun."""
    telemetry.dropped.clear()
    telemetry._warned.clear()
    telemetry._remembered.clear()
    telemetry._days_there.clear()


@pytest.fixture
def story():
    return story_make()


def wall(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def point(value: float = 30.0, *, at: datetime | None = None, **fields) -> TelemetryPoint:
    given = {"t": wall(at or timezone.now()), "key": "P_kW", "unit": "kW", "device": TAG} | fields
    return TelemetryPoint(value=value, **given)


def received(node, *points: TelemetryPoint, at: datetime | None = None) -> ReceivedReadings:
    return ReceivedReadings(str(node.pk), points, at or timezone.now())


def stored() -> list[float]:
    return list(TelemetryReading.objects.order_by("at", "value").values_list("value", flat=True))


def test_reading_is_kept_with_its_device_key_unit_time_and_quality(story):
    at = timezone.now() - timedelta(seconds=3)
    readings_record([received(story.node_a, point(12.5, at=at))])
    reading = TelemetryReading.objects.select_related("series").get()
    assert (reading.value, reading.at, reading.quality) == (12.5, at, Quality.GOOD)
    series = reading.series
    assert (series.device, series.node, series.site) == (story.device_a, None, story.site_a)
    assert (series.name, series.key, series.unit) == (TAG, "P_kW", "kW")


def test_reading_of_the_node_itself_has_a_series_of_the_node(story):
    readings_record([received(story.node_a, point(55, key="T_board_degC", unit="degC", device=""))])
    series = TelemetrySeries.objects.get()
    assert (series.node, series.device, series.name) == (story.node_a, None, "node-01")


def test_reading_that_comes_again_is_stored_once(story):
    once = point()
    readings_record([received(story.node_a, once, once), received(story.node_a, once)])
    readings_record([received(story.node_a, once)])
    assert stored() == [30]


def test_other_unit_is_another_series(story):
    readings_record([received(story.node_a, point(30), point(30_000, unit="W"))])
    assert TelemetrySeries.objects.count() == 2


def test_quality_that_nobody_knows_is_not_good(story):
    now = timezone.now()
    words = ["good", "uncertain", "bad", "splendid"]
    points = [point(number, at=now + timedelta(seconds=number), q=word) for number, word in enumerate(words)]
    readings_record([received(story.node_a, *points)])
    assert list(TelemetryReading.objects.order_by("at").values_list("quality", flat=True)) == [
        Quality.GOOD,
        Quality.UNCERTAIN,
        Quality.BAD,
        Quality.UNCERTAIN,
    ]


def test_what_cannot_be_stored_is_counted_and_holds_nothing_up(story, caplog):
    elsewhere = "00000000-0000-4000-8000-000000000000"
    now = timezone.now()
    for _ in range(2):
        readings_record(
            [
                ReceivedReadings(elsewhere, [point()], now),
                received(
                    story.node_a,
                    point(1, at=now),
                    point(2, device="GENERIC_PV_01"),
                    point(3, key="P\x00"),
                    point(4, key="x" * 65),
                    point(5, at=datetime(1970, 1, 1, tzinfo=UTC)),
                    point(float("inf")),
                ),
            ]
        )
    assert stored() == [1]
    assert telemetry.dropped == {
        "unknown_node": 2,
        "unknown_device": 2,
        "no_series": 4,
        "too_old": 2,
        "no_number": 2,
    }
    told = [record.getMessage() for record in caplog.records if "telemetry_dropped" in record.getMessage()]
    assert len(told) == 5


def test_node_that_makes_up_keys_gets_a_bounded_number_of_series(story, settings):
    for part in range(2):
        points = [point(key=f"K{part}_{number}") for number in range(telemetry.SERIES_AT_MOST)]
        readings_record([received(story.node_a, *points)])
    assert TelemetrySeries.objects.count() == telemetry.SERIES_AT_MOST
    assert telemetry.dropped["no_series"] == telemetry.SERIES_AT_MOST


def test_reading_is_taken_up_to_the_retention_and_not_beyond(story, settings):
    settings.SGM_TELEMETRY_RETENTION_DAYS = 7
    now = timezone.now()
    ages = [timedelta(days=7, seconds=-1), timedelta(days=7, seconds=1)]
    readings_record([received(story.node_a, *(point(age.days, at=now - age) for age in ages), at=now)])
    assert stored() == [6]
    assert telemetry.dropped == {"too_old": 1}


def test_clock_a_little_ahead_is_believed(story):
    now = timezone.now()
    readings_record([received(story.node_a, point(at=now + timedelta(minutes=5)), at=now)])
    assert TelemetryReading.objects.get().at == now + timedelta(minutes=5)


def test_readings_from_the_future_are_dated_by_receipt_and_keep_their_distance(story, caplog):
    now = timezone.now()
    ahead = datetime(2099, 12, 31, 23, 59, 30, tzinfo=UTC)
    points = [
        point(1, at=now - timedelta(hours=1)),
        point(2, at=ahead - timedelta(minutes=1)),
        point(3, at=ahead),
    ]
    readings_record([received(story.node_a, *points, at=now)])
    assert list(TelemetryReading.objects.order_by("at").values_list("value", "at")) == [
        (1, now - timedelta(hours=1)),
        (2, now - timedelta(minutes=1)),
        (3, now),
    ]
    assert sum("telemetry_dated_by_receipt" in record.getMessage() for record in caplog.records) == 1


def test_backlog_of_a_wrong_clock_keeps_its_distances_over_all_its_entries(story):
    now = timezone.now()
    ahead = datetime(2099, 12, 31, 23, 59, 30, tzinfo=UTC)
    entries = [point(number, at=ahead + timedelta(minutes=number)) for number in range(3)]
    readings_record([received(story.node_a, entry, at=now) for entry in entries])
    assert list(TelemetryReading.objects.order_by("at").values_list("value", "at")) == [
        (0, now - timedelta(minutes=2)),
        (1, now - timedelta(minutes=1)),
        (2, now),
    ]


def test_clock_that_is_right_again_is_believed_again_and_said_once(story, caplog):
    now = timezone.now()
    for ahead in (timedelta(days=1), timedelta(), timedelta()):
        readings_record([received(story.node_a, point(at=now + ahead), at=now)])
    told = [record.getMessage() for record in caplog.records if "telemetry_clock" in record.getMessage()]
    assert len(told) == 1
    assert TelemetryReading.objects.get().at == now


def test_reading_without_a_time_is_dated_by_receipt(story):
    now = timezone.now()
    readings_record([received(story.node_a, point(t="yesterday"), at=now)])
    assert TelemetryReading.objects.get().at == now


def test_history_outlives_its_device_and_a_new_one_of_that_tag_begins_its_own(story):
    readings_record([received(story.node_a, point(1))])
    device_delete(device=story.device_a)
    readings_record([received(story.node_a, point(2))])
    assert stored() == [1]
    story.node_a.retiring_devices.all().delete()
    anew = device_make(node=story.node_a, device_tag=TAG)
    readings_record([received(story.node_a, point(3))])
    assert list(TelemetrySeries.objects.order_by("pk").values_list("device", "name")) == [
        (None, TAG),
        (anew.pk, TAG),
    ]


@pytest.mark.django_db(transaction=True)
def test_renamed_device_keeps_its_series_in_a_process_that_knew_it_before(story):
    readings_record([received(story.node_a, point(1))])
    device_update(device=story.device_a, device_tag="INV_RENAMED")
    readings_record([received(story.node_a, point(2, device="INV_RENAMED"), point(3))])
    assert stored() == [1, 2]
    assert TelemetrySeries.objects.count() == 1
    assert telemetry.dropped == {"unknown_device": 1}


@pytest.mark.django_db(transaction=True)
def test_process_believes_a_restored_database_rather_than_what_it_knew(story):
    """The numbers of series are given again: what was known of them must not outlive the connection."""
    readings_record(
        [received(story.node_a, point(1)), received(story.node_b, point(2, device="GENERIC_PV_01"))]
    )
    numbers = {series.device_id: series.pk for series in TelemetrySeries.objects.all()}
    TelemetryReading.objects.all().delete()
    TelemetrySeries.objects.all().delete()
    TelemetrySeries.objects.create(
        id=numbers[story.device_a.pk],
        site=story.site_b,
        device=story.device_b,
        name="GENERIC_PV_01",
        key="P_kW",
        unit="kW",
    )
    connection.close()
    readings_record([received(story.node_a, point(3))])
    assert TelemetryReading.objects.get().series.device == story.device_a


@pytest.mark.django_db(transaction=True)
def test_known_series_cost_no_query_of_their_own(story, django_assert_num_queries):
    readings_record([received(story.node_a, point(1))])
    # nodes; begin, what is closed, insert, commit; on PostgreSQL a lock too
    with django_assert_num_queries(6 if connection.vendor == "postgresql" else 5) as seen:
        readings_record([received(story.node_a, point(2)), received(story.node_a, point(3))])
    assert not any("series" in query["sql"].split(" ON ")[0].split("(")[0] for query in seen.captured_queries)


@pytest.mark.django_db(transaction=True)
def test_two_processes_that_take_the_same_readings_store_each_once(story):
    now = timezone.now()
    points = [
        point(number, at=now - timedelta(seconds=number), key=f"K{number % 7}_kW") for number in range(300)
    ]
    barrier = threading.Barrier(2)

    def take(mine: list[TelemetryPoint]) -> None:
        try:
            barrier.wait(timeout=10)
            for part in range(0, 300, 60):
                readings_record([received(story.node_a, *mine[part : part + 60])])
        finally:
            connections.close_all()

    with ThreadPoolExecutor() as pool:
        list(pool.map(take, (points, points[::-1])))
    assert len(stored()) == 300
    assert TelemetrySeries.objects.count() == 7


def test_history_is_kept_while_redis_is_down(story, no_redis):
    with pytest.raises(live.LiveUnavailable):
        live.ping()
    readings_record([received(story.node_a, point(8))])
    assert stored() == [8]


@pytest.mark.django_db(transaction=True)
def test_batch_the_database_refuses_leaves_nothing_and_can_come_again(story):
    batch = [received(story.node_a, point(1)), received(story.node_b, point(2, device="GENERIC_PV_01"))]
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE devices_app_telemetryclosing RENAME TO elsewhere")
    try:
        with pytest.raises(Exception, match="devices_app_telemetryclosing"):
            readings_record(batch)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE elsewhere RENAME TO devices_app_telemetryclosing")
    assert stored() == []
    readings_record(batch)
    assert stored() == [1, 2]


@pytest.mark.django_db(transaction=True)
def test_partition_that_went_is_made_again_for_a_reading_that_comes_late(story):
    if connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL has partitions")
    now = timezone.now()
    day = (now.astimezone(UTC) - timedelta(days=2)).date()
    readings_record([received(story.node_a, point(1, at=now - timedelta(days=2)))])
    assert day in partitions(READINGS)
    partitions_drop(READINGS, before=midnight(day + timedelta(days=1)))
    assert day not in partitions(READINGS)
    assert stored() == []
    readings_record([received(story.node_a, point(2, at=now - timedelta(days=2)))])
    assert stored() == [2]
    assert day in partitions(READINGS)


def test_node_of_another_site_cannot_write_into_a_series_of_this_one(story):
    node = node_make(site=story.site_b)
    readings_record([received(story.node_a, point(1)), received(node, point(666))])
    assert stored() == [1]
