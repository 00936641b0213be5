"""PUT curtail-category in kW: one power for all devices together, as a site limit is given in the trade."""

from __future__ import annotations

import json

import pytest

from control_app.events import control_log_body
from control_app.models import ControlLog, ControlRequest, Unit
from control_app.targets import targets_select
from devices_app.models import Device
from tests.factories import ROOT, device_make, device_type_make, node_make, profile_body_make, story_make


def curtail(story, *, value: float, **body):
    given = {"value": value, "unit": "kw", "category": "inverter"} | body
    return story.holder_a.put(f"/v1/sites/{story.site_a.pk}/curtail-category", given)


def mode_type_make():
    return device_type_make(
        profile="test_modes",
        value_kind="operating_mode",
        profile_body=profile_body_make(name="test_modes") | {"value_kind": "operating_mode"},
    )


@pytest.fixture
def park(story, node_a):
    """60 kW, 30 kW and 10 kW on one node."""
    device_make(node=story.node_a, device_tag="INV_02", peak_power_kw=30)
    device_make(node=story.node_a, device_tag="INV_03", peak_power_kw=10)
    return node_a


def asked(node) -> dict[str, float]:
    values: dict[str, float] = node.commands.get(timeout=1).values
    return values


# --- each one's share -----------------------------------------------------------------------------


def test_power_is_shared_in_proportion_to_the_nameplates(story, park):
    assert curtail(story, value=50).json()["status"] == "success"
    assert asked(park) == {"SMA_STP60_01": 50, "INV_02": 50, "INV_03": 50}
    assert curtail(story, value=30, device_tags=["INV_02", "INV_03"]).json()["status"] == "success"
    assert asked(park) == {"INV_02": 75, "INV_03": 75}


def test_shares_add_up_to_what_was_asked(story, park):
    curtail(story, value=33.3)
    nameplates = {"SMA_STP60_01": 60, "INV_02": 30, "INV_03": 10}
    power = sum(value / 100 * nameplates[tag] for tag, value in asked(park).items())
    assert power == pytest.approx(33.3, abs=1e-5)


def test_all_they_can_do_is_in_range_whatever_its_rounding(story, park):
    Device.objects.filter(device_tag="INV_02").update(peak_power_kw=70.3)
    Device.objects.filter(device_tag="INV_03").update(peak_power_kw=0.1)
    response = curtail(story, value=60 + 70.3 + 0.1)
    assert response.json()["status"] == "success"
    assert set(asked(park).values()) == {100}


def test_device_that_cannot_be_reached_keeps_its_share(story, park):
    device_make(node=node_make(site=story.site_a), device_tag="AWAY_01", peak_power_kw=100)
    body = curtail(story, value=100).json()
    assert body["result"]["not_updated"]["AWAY_01"].startswith("node_offline: ")
    assert set(asked(park).values()) == {50}


def test_excluded_device_has_no_share(story, park):
    Device.objects.filter(device_tag="INV_02").update(include_in_curtailment=False)
    curtail(story, value=35)
    assert asked(park) == {"SMA_STP60_01": 50, "INV_03": 50}


def test_device_without_a_nameplate_is_told_so_and_the_others_share(story, park):
    Device.objects.filter(device_tag="INV_02").update(peak_power_kw=None)
    body = curtail(story, value=35).json()
    assert body["result"]["not_updated"] == {
        "INV_02": "no_nameplate: peak_power_kw is not set, so its share of kW is unknown"
    }
    assert asked(park) == {"SMA_STP60_01": 50, "INV_03": 50}


def test_where_no_device_has_a_nameplate_none_is_updated(story, node_a):
    Device.objects.update(peak_power_kw=None)
    response = curtail(story, value=35)
    assert (response.status_code, response.json()["status"]) == (200, "failed")
    assert node_a.commands.empty()


def test_device_out_of_its_range_is_told_so_and_nobody_takes_its_part(story, park):
    Device.objects.filter(device_tag="INV_02").update(min_value=60)
    body = curtail(story, value=50).json()
    assert body["result"]["not_updated"] == {"INV_02": "range: its share is 50, allowed is 60 to 100"}
    assert asked(park) == {"SMA_STP60_01": 50, "INV_03": 50}


def test_percent_is_as_it_was(story, park):
    curtail(story, value=50, unit="percent")
    assert set(asked(park).values()) == {50}


# --- what is kept ---------------------------------------------------------------------------------


def test_request_and_log_keep_what_was_asked_for(story, park):
    curtail(story, value=50)
    request = ControlRequest.objects.get()
    assert (request.value, request.unit, str(request)) == (50, "kw", "inverter at 50 kW")
    line = ControlLog.objects.get()
    assert (line.value, line.unit) == (50, "kw")


def test_log_says_of_kw_that_it_is_none_of_the_guides_percent(story, park):
    curtail(story, value=50)
    curtail(story, value=40, unit="percent")
    percent, kw = json.loads(story.holder_a.get("/v1/logs").content)
    assert "unit" not in percent
    assert (percent["value"], kw["value"], kw["unit"]) == (40, 50, "kw")
    listened = {line.value: control_log_body(line) for line in ControlLog.objects.all()}
    assert "unit" not in listened[40]
    assert listened[50]["unit"] == "kw"


def test_devices_value_is_in_its_own_unit(story, node_a):
    curtail(story, value=30)
    assert Device.objects.get(pk=story.device_a.pk).value == 50


def test_dry_run_asks_for_the_shares(story, park, settings):
    settings.SGM_REQUEST_DEADLINE_S = 0.2
    curtail(story, value=50, dry_run=True)
    assert park.previews.get(timeout=1).values == {"SMA_STP60_01": 50, "INV_02": 50, "INV_03": 50}


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("value", [60.1, -1, 1e300])
def test_power_outside_of_every_range_is_refused_in_kw_and_percent(value):
    response = curtail(story_make(), value=value)
    assert (response.status_code, list(response.json()["errors"])) == (400, ["value"])
    assert "kW" in response.json()["detail"]
    assert "0 to 100" in response.json()["detail"]
    assert not ControlRequest.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("unit", ["kW", "KW", "w", "%", "", None, 5, ["kw"], {}])
def test_unit_that_is_none_is_refused(unit):
    response = curtail(story_make(), value=5, unit=unit)
    assert (response.status_code, list(response.json()["errors"])) == (400, ["unit"])


@pytest.mark.django_db
def test_operating_mode_takes_no_kw():
    story = story_make()
    device_make(node=story.node_a, device_type=mode_type_make(), category="heat_pump", peak_power_kw=10)
    response = curtail(story, value=1, category="heat_pump")
    assert (response.status_code, list(response.json()["errors"])) == (400, ["unit"])


def test_device_with_a_mode_among_others_is_told_so(story, node_a):
    device_make(
        node=story.node_a,
        device_type=mode_type_make(),
        device_tag="MODE_01",
        category="inverter",
        peak_power_kw=10,
    )
    body = curtail(story, value=30).json()
    assert body["result"]["not_updated"] == {"MODE_01": "unit: its value is an operating mode, and no power"}
    assert asked(node_a) == {"SMA_STP60_01": 50}


@pytest.mark.django_db
def test_kw_takes_no_query_more(django_assert_num_queries):
    story = story_make()
    with django_assert_num_queries(1):
        targets_select(
            principal=ROOT,
            site_id=story.site_a.pk,
            category="inverter",
            device_tags=None,
            value=5,
            unit=Unit.KW,
        )
