"""What a site does now, from the newest readings of all of its devices."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from devices_app.models import TelemetryReading
from devices_app.telemetry import ReceivedReadings, latest_key, readings_record
from edge.wire.messages import TelemetryPoint
from smartgrid import live
from tests.factories import device_make, meter_type_make, node_make, proxy_type_make, story_make

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("live_redis")]


@pytest.fixture
def story():
    return story_make()


def tell(device, value: float, *, age: timedelta = timedelta(), key: str = "P_kW", **fields) -> datetime:
    """Let the device's node send one reading of this age; when it was measured."""
    now = timezone.now()
    point = TelemetryPoint(
        t=(now - age).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        key=key,
        value=value,
        device=device.device_tag,
        **fields,
    )
    readings_record([ReceivedReadings(str(device.node_id), [point], now)])
    return now - age


def metrics(story) -> dict[str, float]:
    body = story.holder_a.get(f"/v1/sites/{story.site_a.pk}").json()
    return {metric["key"]: metric["value"] for metric in body["metrics"]}


def test_metrics_are_the_guides(story):
    at = tell(story.device_a, 1249.0)
    tell(story.device_a, 3.0022301, key="V_Wind_m/s")
    body = json.loads(story.holder_a.get(f"/v1/sites/{story.site_a.pk}").content)
    assert [(metric["key"], metric["value"]) for metric in body["metrics"]] == [
        ("P_Actual_kW", 1249),
        ("V_Wind_m/s", 3.00223),
    ]
    assert isinstance(body["metrics"][0]["value"], int)
    assert list(body["metrics"][0]) == ["key", "value", "timestamp"]
    assert body["metrics"][0]["timestamp"] == at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def test_power_is_the_sum_over_all_nodes_of_the_site(story):
    other = device_make(node=node_make(site=story.site_a))
    tell(story.device_a, 30)
    tell(other, -12.5)
    tell(story.device_b, 500)
    assert metrics(story) == {"P_Actual_kW": 17.5}


def test_meter_at_the_point_of_connection_has_the_last_word(story):
    meter = device_make(node=node_make(site=story.site_a), device_type=meter_type_make(), measured_only=True)
    tell(story.device_a, 30)
    tell(meter, 22)
    assert metrics(story) == {"P_Actual_kW": 22}


def test_silent_meter_leaves_no_power_rather_than_another_quantity(story):
    meter = device_make(node=story.node_a, device_type=meter_type_make(), measured_only=True)
    tell(story.device_a, 30)
    tell(meter, 22, age=timedelta(minutes=16))
    assert metrics(story) == {}


def test_of_several_meters_those_that_say_so_are_at_the_point_of_connection(story):
    meters = [
        device_make(node=story.node_a, device_type=meter_type_make(), measured_only=True, meta_data=data)
        for data in ({"point_of_connection": True}, {"point_of_connection": True}, {})
    ]
    for value, meter in zip((5, 7, 100), meters, strict=True):
        tell(meter, value)
    tell(story.device_a, 30)
    assert metrics(story) == {"P_Actual_kW": 12}


@pytest.mark.parametrize("marks", [[{"point_of_connection": False}], [{}, {}]])
def test_meters_elsewhere_are_not_the_sites_power(story, marks):
    for data in marks:
        meter = device_make(
            node=story.node_a, device_type=meter_type_make(), measured_only=True, meta_data=data
        )
        tell(meter, 100)
    tell(story.device_a, 30)
    assert metrics(story) == {"P_Actual_kW": 30}


def test_devices_behind_anothers_control_point_are_not_counted_twice(story):
    behind = device_make(node=story.node_a, measured_only=True, controlled_by=story.device_a)
    tell(story.device_a, 30)
    tell(behind, 10)
    assert metrics(story) == {"P_Actual_kW": 30}


def test_power_of_a_proxy_is_that_of_its_children_and_is_counted_once(story):
    park = device_make(node=story.node_a, device_type=proxy_type_make())
    children = [device_make(node=story.node_a, controlled_by=park) for _ in range(2)]
    for child, power in zip(children, (10, 20), strict=True):
        tell(child, power)
    tell(park, 30)
    tell(story.device_a, 5)
    assert metrics(story) == {"P_Actual_kW": 35}


def test_wind_is_the_mean_of_what_the_turbines_say(story):
    for speed in (4, 7):
        tell(device_make(node=story.node_a), speed, key="V_Wind_m/s")
    assert metrics(story) == {"V_Wind_m/s": 5.5}


def test_sum_is_over_what_is_current_and_as_old_as_its_oldest(story):
    first, silent = (device_make(node=story.node_a) for _ in range(2))
    tell(silent, 1000, age=timedelta(minutes=15, seconds=1))
    oldest = tell(first, 10, age=timedelta(minutes=14))
    tell(story.device_a, 30)
    body = story.holder_a.get(f"/v1/sites/{story.site_a.pk}").json()["metrics"]
    assert body == [
        {"key": "P_Actual_kW", "value": 40, "timestamp": oldest.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
    ]


def test_older_reading_never_overwrites_a_newer_one(story):
    tell(story.device_a, 30)
    tell(story.device_a, 7, age=timedelta(minutes=2))
    assert metrics(story) == {"P_Actual_kW": 30}
    assert TelemetryReading.objects.count() == 2


def test_reading_from_a_clock_ahead_does_not_outlive_those_after_it(story):
    tell(story.device_a, 30, age=-timedelta(minutes=4))
    tell(story.device_a, 7)
    assert metrics(story) == {"P_Actual_kW": 7}


def test_reading_that_is_not_good_is_history_and_not_current(story):
    tell(story.device_a, 30, age=timedelta(seconds=5))
    tell(story.device_a, 7, q="bad")
    assert metrics(story) == {"P_Actual_kW": 30}
    assert TelemetryReading.objects.count() == 2


def test_unreadable_reading_hides_itself_and_no_other(story):
    tell(story.device_a, 30)
    live.client().hset(latest_key(story.site_a.pk), f"{story.device_b.pk}/P_kW", "not json")
    live.client().hset(latest_key(story.site_a.pk), "nobody", "2026-11-23T00:00:00.000000Z {}")
    assert metrics(story) == {"P_Actual_kW": 30}


def test_what_is_newest_about_a_site_is_forgotten_in_the_end(story):
    tell(story.device_a, 30)
    assert 0 < live.client().ttl(latest_key(story.site_a.pk)) <= 3600


@pytest.mark.usefixtures("no_redis")
def test_site_is_shown_without_metrics_while_redis_is_down(story):
    assert metrics(story) == {}


def test_metrics_cost_one_query_more(story, django_assert_num_queries):
    for number in range(5):
        tell(device_make(node=story.node_a), number)
    with django_assert_num_queries(2):
        assert metrics(story)
