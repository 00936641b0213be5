"""What was measured is told whole, in order and in bounds, to those whose site it was measured at."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urlencode

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from devices_app import telemetry
from devices_app.history import Histories, Resolution, TooManyPoints, histories
from devices_app.means import means_make
from devices_app.models import Device, TelemetryMean, TelemetryReading, TelemetrySeries
from devices_app.partitions import MEANS, READINGS, partitions_make
from devices_app.services import device_delete, device_update
from devices_app.telemetry import ReceivedReadings, readings_record
from edge.wire.messages import TelemetryPoint
from sites_app.models import Node
from tests.factories import Story, device_make, node_make, story_make

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("no_redis")]

TAG = "SMA_STP60_01"
# Minutes after noon -> mean, minimum, maximum, count.
Means = Mapping[float, tuple[float, float, float, int]]
NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
RAW = Resolution.RAW
ON_POSTGRESQL = connection.vendor == "postgresql"


@pytest.fixture(autouse=True)
def process() -> None:
    """As a process that has just begun."""
    telemetry._remembered.clear()
    telemetry._days_there.clear()
    telemetry._warned.clear()


@pytest.fixture
def story() -> Story:
    return story_make()


@pytest.fixture(autouse=True)
def one_in_the_afternoon(time_machine: Any) -> None:
    time_machine.move_to(at(60), tick=False)


def at(minutes: float) -> datetime:
    """So many minutes after noon."""
    return NOON + timedelta(minutes=minutes)


def tell(
    node: Node,
    *values: tuple[float, float],
    received: float,
    tag: str = TAG,
    key: str = "P_kW",
    q: str = "good",
) -> None:
    """Readings by minutes after noon, received at that minute."""
    points = [
        TelemetryPoint(
            t=at(minutes).strftime("%Y-%m-%dT%H:%M:%S.%fZ"), key=key, value=value, unit="kW", device=tag, q=q
        )
        for minutes, value in values
    ]
    readings_record([ReceivedReadings(str(node.pk), points, at(received))])


def values(found: Histories) -> dict[str, list[float]]:
    return {row.series.name: [point.value for point in row.points] for row in found.histories}


def means(found: Histories) -> Means:
    """Of the only series: minutes after noon -> mean, minimum, maximum, count."""
    (row,) = found.histories
    return {
        (point.at - NOON) / timedelta(minutes=1): (point.value, point.minimum, point.maximum, point.count)
        for point in row.points
    }


def means_put(series: TelemetrySeries, rows: Means) -> None:
    """Means as they stand in the database, by minutes after noon."""
    partitions_make(MEANS, days={at(minutes).date() for minutes in rows})
    TelemetryMean.objects.bulk_create(
        TelemetryMean(series=series, start=at(minutes), mean=mean, minimum=low, maximum=high, count=count)
        for minutes, (mean, low, high, count) in rows.items()
    )


def series_make(device: Device, *, key: str = "P_kW") -> TelemetrySeries:
    return TelemetrySeries.objects.create(
        site_id=device.site_id, device=device, name=device.device_tag, key=key, unit="kW"
    )


# --- what is told -----------------------------------------------------------------------------------------------


def test_history_of_a_device_is_its_readings_in_order_within_the_bounds(
    story: Story, django_assert_num_queries: Any
) -> None:
    tell(story.node_a, (3, 30), (1, 10), (2, 20), (0, 0), received=3)
    with django_assert_num_queries(2):
        found = histories(of=story.device_a, keys=["P_kW"], since=at(1), until=at(3), resolution=RAW)
    (history,) = found.histories
    assert (history.series.name, history.series.unit) == (TAG, "kW")
    assert history.series.device_id == story.device_a.pk
    assert [(point.at, point.value, point.quality) for point in history.points] == [
        (at(1), 10, "good"),
        (at(2), 20, "good"),
    ]


def test_reading_that_is_not_good_is_told_as_such(story: Story) -> None:
    tell(story.node_a, (0, 10), received=0, q="bad")
    (history,) = histories(of=story.device_a, keys=None, since=at(0), until=at(1), resolution=RAW).histories
    assert [point.quality for point in history.points] == ["bad"]


def test_quarters_are_the_means(story: Story, django_assert_num_queries: Any) -> None:
    tell(story.node_a, (0, 10), (5, 30), (20, 5), received=20)
    means_make(now=at(40))
    quarters = partial(histories, of=story.device_a, keys=["P_kW"], resolution=Resolution.QUARTER)
    with django_assert_num_queries(2):
        found = quarters(since=at(0), until=at(15))
    assert means(found) == {0: (20, 10, 30, 2)}


def test_reading_that_comes_late_is_in_the_history_and_in_its_mean(story: Story) -> None:
    tell(story.node_a, (0, 10), received=0)
    means_make(now=at(40))
    tell(story.node_a, (5, 30), received=41)
    means_make(now=at(42))
    told = partial(histories, of=story.device_a, keys=None, since=at(0), until=at(60))
    assert values(told(resolution=RAW)) == {TAG: [10, 30]}
    assert means(told(resolution=Resolution.QUARTER)) == {0: (20, 10, 30, 2)}


def test_hours_and_days_weigh_quarters_by_their_readings(story: Story) -> None:
    rows: Means = {0: (10.0, 5.0, 15.0, 90), 45: (20.0, 12.0, 99.0, 10), 60: (7.0, 7.0, 7.0, 1)}
    means_put(series_make(story.device_a), rows)
    told = partial(histories, of=story.device_a, keys=None, since=at(-720), until=at(720))
    hours = means(told(resolution=Resolution.HOUR))
    assert hours == {0: (11.0, 5.0, 99.0, 100), 60: (7.0, 7.0, 7.0, 1)}
    days = means(told(resolution=Resolution.DAY))
    assert days == {-720: ((100 * 11.0 + 7) / 101, 5.0, 99.0, 101)}


@pytest.mark.parametrize("resolution", [Resolution.QUARTER, Resolution.HOUR, Resolution.DAY])
def test_times_side_by_side_tell_each_point_once_and_whole(story: Story, resolution: Resolution) -> None:
    rows = {float(15 * number): (float(number), 0.0, 1.0, 1) for number in range(-200, 200)}
    means_put(series_make(story.device_a), rows)
    told = partial(histories, of=story.device_a, keys=None, resolution=resolution)
    whole = means(told(since=at(-1500), until=at(1500)))
    parts = [means(told(since=at(-1500), until=at(7))), means(told(since=at(7), until=at(1500)))]
    assert {minute: point for part in parts for minute, point in part.items()} == whole
    assert sum(len(part) for part in parts) == len(whole) > 0


def test_what_was_not_measured_has_no_point(story: Story) -> None:
    means_put(series_make(story.device_a), {0: (1.0, 1.0, 1.0, 1), 180: (4.0, 4.0, 4.0, 1)})
    told = partial(histories, of=story.device_a, keys=None, since=at(0), until=at(360))
    assert list(means(told(resolution=Resolution.QUARTER))) == [0, 180]
    assert list(means(told(resolution=Resolution.HOUR))) == [0, 180]


def test_series_without_a_point_in_that_time_is_not_told(story: Story) -> None:
    tell(story.node_a, (0, 10), received=0)
    means_make(now=at(40))
    for resolution in Resolution:
        found = histories(of=story.device_a, keys=None, since=at(45), until=at(60), resolution=resolution)
        assert found.histories == []


# --- whose it is ------------------------------------------------------------------------------------------------


def test_history_of_a_site_names_all_that_was_measured_there(
    story: Story, django_assert_num_queries: Any
) -> None:
    other = device_make(node=node_make(site=story.site_a), device_tag="OTHER")
    tell(story.node_a, (0, 10), received=0)
    tell(other.node, (0, 20), received=0, tag="OTHER")
    tell(story.node_b, (0, 30), received=0, tag="GENERIC_PV_01")
    device_delete(device=story.device_a)
    with django_assert_num_queries(2):
        found = histories(of=story.site_a, keys=["P_kW"], since=at(0), until=at(1), resolution=RAW)
    assert values(found) == {"OTHER": [20], TAG: [10]}
    assert [row.series.device_id for row in found.histories] == [other.pk, None]


def test_history_goes_by_the_name_a_device_has_now(story: Story) -> None:
    tell(story.node_a, (0, 10), received=0)
    device_update(device=story.device_a, device_tag="INV_RENAMED")
    found = histories(of=story.site_a, keys=None, since=at(0), until=at(1), resolution=RAW)
    assert values(found) == {"INV_RENAMED": [10]}


@pytest.mark.django_db(transaction=True)
def test_node_that_moved_to_another_site_leaves_its_history_behind(story: Story) -> None:
    """In a process that knew it before: with its devices, as one row each, whatever service moves them."""
    tell(story.node_a, (0, 10), received=0)
    tell(story.node_a, (0, 55), received=0, tag="")
    Node.objects.filter(pk=story.node_a.pk).update(site=story.site_b, name="node-77")
    story.node_a.devices.update(site=story.site_b, device_tag="NAMED_ELSEWHERE")
    tell(story.node_a, (1, 20), received=1, tag="NAMED_ELSEWHERE")
    tell(story.node_a, (1, 60), received=1, tag="")
    raw = partial(histories, keys=["P_kW"], since=at(0), until=at(5), resolution=RAW)
    assert values(raw(of=Device.objects.get(pk=story.device_a.pk))) == {"NAMED_ELSEWHERE": [20]}
    assert values(raw(of=Node.objects.get(pk=story.node_a.pk))) == {"node-77": [60]}
    left = raw(of=story.site_a)
    assert values(left) == {TAG: [10], "node-01": [55]}
    # Where they went, and what they are called there, is not for those of the site they left.
    assert all(row.series.device_id is None and row.series.node_id is None for row in left.histories)


# --- no more than can be told -----------------------------------------------------------------------------------


def test_without_a_resolution_it_is_the_finest_mean_that_fits(story: Story) -> None:
    means_put(series_make(story.device_a), {0: (1.0, 1.0, 1.0, 1)})
    told = partial(histories, of=story.device_a, keys=None, since=at(0), resolution=None, points_max=10)
    assert told(until=at(150)).resolution is Resolution.QUARTER
    assert told(until=at(151)).resolution is Resolution.HOUR
    assert told(until=at(601)).resolution is Resolution.DAY
    with pytest.raises(TooManyPoints, match="ask for a shorter time"):
        told(until=at(60 * 24 * 10 + 1))


def test_too_many_readings_are_refused_with_what_fits(story: Story) -> None:
    tell(story.node_a, *((second / 60, 1.0) for second in range(6)), received=1)
    told = partial(histories, of=story.device_a, keys=None, since=at(0), until=at(15), resolution=RAW)
    assert len(told(points_max=6).histories[0].points) == 6
    with pytest.raises(
        TooManyPoints, match="more than 5 points in one answer; resolution 15m fits"
    ) as refusal:
        told(points_max=5)
    assert (refusal.value.code, list(refusal.value.errors)) == ("too_many_points", ["resolution"])


def test_series_that_tell_nothing_take_no_room(story: Story) -> None:
    means_put(series_make(story.device_a), {0: (1.0, 1.0, 1.0, 1)})
    for number in range(20):
        series_make(story.device_a, key=f"gone_{number}")
    found = histories(of=story.device_a, keys=None, since=at(0), until=at(60), resolution=None, points_max=4)
    assert found.resolution is Resolution.QUARTER


@pytest.mark.skipif(not ON_POSTGRESQL, reason="partitions are PostgreSQL's")
@pytest.mark.parametrize("resolution", list(Resolution))
def test_history_of_one_series_reads_no_other_among_a_hundred_times_as_many(
    story: Story, resolution: Resolution
) -> None:
    days = {(NOON - timedelta(days=ago)).date() for ago in range(3)}
    partitions_make(READINGS, days=days)
    partitions_make(MEANS, days=days)
    series = [series_make(story.device_a, key=f"key_{number}") for number in range(100)]
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO devices_app_telemetryreading (series_id, at, value, quality)"
            " SELECT s, t, 1, 0 FROM unnest(%s::bigint[]) s,"
            " generate_series(%s::timestamptz, %s::timestamptz, '30 s') t",
            [[row.pk for row in series], at(-720), at(0)],
        )
        cursor.execute(
            "INSERT INTO devices_app_telemetrymean (series_id, start, mean, minimum, maximum, count)"
            " SELECT s, t, 1, 1, 1, 30 FROM unnest(%s::bigint[]) s,"
            " generate_series(%s::timestamptz, %s::timestamptz, '15 min') t",
            [[row.pk for row in series], at(-2880), at(0)],
        )
        cursor.execute("ANALYZE")
    with CaptureQueriesContext(
        connection,
    ) as queries:
        found = histories(
            of=story.device_a, keys=["key_7"], since=at(-800), until=at(60), resolution=resolution
        )
    assert sum(len(row.points) for row in found.histories) > 0
    assert len(queries) == 2
    for query in queries.captured_queries:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS) {query['sql']}")
            plan = "\n".join(line for (line,) in cursor.fetchall())
        assert sum(int(number) for number in re.findall(r"Rows Removed by \D*(\d+)", plan)) < 1000, plan


# --- over the API -----------------------------------------------------------------------------------------------


def path_of(thing: Any, **query: Any) -> str:
    kind = "devices" if isinstance(thing, Device) else "sites"
    return f"/v1/{kind}/{thing.pk}/telemetry?{urlencode(query, doseq=True)}"


def test_readings_as_the_api_tells_them(story: Story) -> None:
    tell(story.node_a, (0, 10.5), received=0)
    body = story.holder_a.get(path_of(story.device_a, resolution="raw")).json()
    assert body == {
        "from": "2026-11-22T13:00:00.000000Z",
        "to": "2026-11-23T13:00:00.000000Z",
        "resolution": "raw",
        "series": [
            {
                "device_id": str(story.device_a.pk),
                "node_id": None,
                "name": TAG,
                "key": "P_kW",
                "unit": "kW",
                "points": [{"timestamp": "2026-11-23T12:00:00.000000Z", "value": 10.5, "quality": "good"}],
            }
        ],
    }


def test_means_as_the_api_tells_them(story: Story) -> None:
    tell(story.node_a, (0, 10), (5, 30), received=5)
    means_make(now=at(40))
    body = story.holder_a.get(path_of(story.site_a)).json()
    assert body["resolution"] == "15m"
    assert body["series"][0]["points"] == [
        {
            "timestamp": "2026-11-23T12:00:00.000000Z",
            "value": 20,
            "minimum": 10,
            "maximum": 30,
            "count": 2,
            "quality": "good",
        }
    ]


def test_keys_are_chosen_by_name_slashes_and_all(story: Story) -> None:
    for key in ("P_kW", "V_Wind_m/s", "T_C"):
        tell(story.node_a, (0, 10), received=0, key=key)
    body = story.holder_a.get(path_of(story.device_a, resolution="raw", key=["V_Wind_m/s", "T_C"])).json()
    assert [series["key"] for series in body["series"]] == ["T_C", "V_Wind_m/s"]
    none = story.holder_a.get(path_of(story.device_a, resolution="raw", key="Q_kvar")).json()
    assert none["series"] == []


def test_times_may_have_any_offset(story: Story) -> None:
    tell(story.node_a, (0, 10), (30, 20), received=30)
    asked = {"from": "2026-11-23T13:00:00+01:00", "to": "2026-11-23t12:30:00z", "resolution": "raw"}
    body = story.holder_a.get(path_of(story.device_a, **asked)).json()
    assert (body["from"], body["to"]) == ("2026-11-23T12:00:00.000000Z", "2026-11-23T12:30:00.000000Z")
    assert [point["value"] for point in body["series"][0]["points"]] == [10]


def test_foreign_and_absent_look_the_same(story: Story) -> None:
    for of, absent in ((story.device_b, "No such device."), (story.site_b, "No such site.")):
        foreign = story.holder_a.get(path_of(of))
        assert foreign.status_code == 404
        assert foreign.json()["detail"] == absent
        assert story.holder_of_nothing.get(path_of(of)).status_code == 404
        assert story.holder_b.get(path_of(of)).status_code == 200
    assert story.root.get(f"/v1/devices/{uuid.uuid4()}/telemetry").status_code == 404


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"from": "yesterday"}, "from"),
        ({"from": "2026-11-23"}, "from"),
        ({"from": "2026-11-23T00:00:00"}, "from"),
        ({"from": "2026-11-23T00:00:00 01:00"}, "from"),
        ({"from": "2026-02-30T00:00:00Z"}, "from"),
        ({"from": "0001-01-01T00:00:00+14:00"}, "from"),
        ({"from": "2026-11-23T14:00:00Z"}, "from"),
        ({"to": "9999-12-31T23:59:59-14:00"}, "to"),
        ({"to": "٢٠٢٦-11-23T00:00:00Z"}, "to"),
        ({"to": ""}, "to"),
        ({"to": ["2026-11-23T00:00:00Z"] * 2}, "to"),
        ({"resolution": "5m"}, "resolution"),
        ({"resolution": ["raw", "1d"]}, "resolution"),
        ({"key": ""}, "key"),
        ({"key": "x" * 65}, "key"),
        ({"key": "P\0kW"}, "key"),
        ({"key": ["P_kW"] * 101}, "key"),
        ({"reslution": "raw"}, "reslution"),
    ],
)
def test_parameter_that_cannot_be_used_is_named(story: Story, query: dict[str, Any], field: str) -> None:
    for thing in (story.device_a, story.site_a):
        response = story.holder_a.get(path_of(thing, **query))
        assert response.status_code == 400
        assert list(response.json()["errors"]) == [field]


@pytest.mark.parametrize("resolution", [resolution.value for resolution in Resolution])
@pytest.mark.parametrize(
    ("since", "until"),
    [
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000001Z"),
        ("0001-01-01T00:00:00Z", "0001-01-03T00:00:00Z"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_ends_of_time_are_times_like_any_other(story: Story, since: str, until: str, resolution: str) -> None:
    tell(story.node_a, (0, 10), received=0)
    asked = {"from": since, "to": until, "resolution": resolution}
    response = story.holder_a.get(path_of(story.device_a, **asked))
    assert response.status_code == 200
    assert response.json()["series"] == []


def test_too_many_points_are_a_400_that_tells_the_way_out(story: Story) -> None:
    tell(story.node_a, (0, 10), received=0)
    tell(story.node_a, (0, 10), received=0, key="T_C")
    means_make(now=at(40))
    asked = {"from": "2025-11-23T00:00:00Z", "to": "2026-11-24T00:00:00Z", "resolution": "15m"}
    response = story.holder_a.get(path_of(story.device_a, **asked))
    assert response.status_code == 400
    assert response.json()["code"] == "too_many_points"
    assert response.json()["detail"] == (
        "resolution: more than 20,000 points in one answer; resolution 1h fits, or name the keys you need"
    )
    assert TelemetryReading.objects.count() == 2
