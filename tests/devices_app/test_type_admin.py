"""Device types in the console: what each can do, how well that is known, and nothing to edit of it."""

from __future__ import annotations

import pytest
from django.core.management import call_command
from django.test import Client

from devices_app.models import DeviceType
from edge.profiles.loader import DATA, load_all, load_body
from edge.profiles.summary import confidence_of
from tests.factories import device_type_make, profile_body_make

pytestmark = pytest.mark.django_db

LIST = "/admin/devices_app/devicetype/"


@pytest.fixture
def types() -> None:
    """A few of this version's types; all of them take seconds."""
    for name in ("sma_stp60_im20", "generic_modbus", "janitza_umg604"):
        body = load_body(next(DATA.glob(f"*/{name}.yaml")))
        device_type_make(
            name=body["title"],
            profile=name,
            category=body["category"],
            value_kind=body.get("value_kind"),
            profile_body=body,
        )


def page_of(client: Client, path: str) -> str:
    response = client.get(path)
    assert response.status_code == 200
    return response.content.decode()


def kind_of(profile: str) -> DeviceType:
    return DeviceType.objects.get(profile=profile)


def page_of_type(client: Client, kind: DeviceType) -> str:
    return page_of(client, f"{LIST}{kind.pk}/change/")


def test_list_tells_what_each_type_can_do_and_that_none_was_seen_on_hardware(types, admin_client):
    page = page_of(admin_client, f"{LIST}?q=im20")
    assert "active_power_limit_pct 0 to 100; reads P_kW, E_kWh" in page
    assert "not verified on hardware" in page
    assert kind_of("sma_stp60_im20").name in page
    assert confidence_of(load_all()["sma_stp60_im20"]).value in page


def test_types_are_found_by_confidence_write_class_and_own_fallback(types, admin_client):
    by_confidence = page_of(admin_client, f"{LIST}?confidence=derived")
    assert kind_of("sma_stp60_im20").name in by_confidence
    assert "Janitza" in page_of(admin_client, f"{LIST}?write_class=only measured")
    assert (
        "Janitza" not in page_of(admin_client, f"{LIST}?write_class=unknown").split('id="changelist-form"')[1]
    )
    none = page_of(admin_client, f"{LIST}?own_fallback=none").split('id="changelist-form"')[1]
    assert kind_of("sma_stp60_im20").name in none


def test_page_of_each_type_shows_all_its_points_with_where_they_are_known_from(admin_client):
    call_command("sync_device_types", verbosity=0)
    profiles = load_all()
    kinds = list(DeviceType.objects.all())
    assert len(kinds) == len(profiles)
    for kind in kinds:
        response = admin_client.get(f"{LIST}{kind.pk}/change/")
        shown = response.context["summary"]
        assert sorted(row.point for row in shown.points) == sorted(profiles[kind.profile].points)
        assert all(row.source and row.confidence for row in shown.points)
        assert "Not verified on hardware" in response.content.decode()


def test_page_tells_in_order_what_a_node_does_with_the_device(types, admin_client):
    page = page_of_type(admin_client, kind_of("sma_stp60_im20"))
    assert "SunS [40001] reads 1400204883" in page
    assert "WRtg [40241] is the configured peak power, within 10 %" in page
    assert "write $value to WMaxLimPct [40349]" in page
    assert "in force only while WMaxLim_Ena [40353] reads 1" in page


def test_page_shows_what_each_device_says_for_itself(admin_client):
    body = profile_body_make(name="adjustable")
    body["points"]["power"]["address"] = "${address}"
    body["parameters"] = {
        "address": {"title": "Register <x>", "type": "integer", "example": 51, "minimum": 1}
    }
    page = page_of_type(admin_client, device_type_make(profile="adjustable", profile_body=body))
    assert "Register &lt;x&gt;" in page
    assert "none: required" in page
    assert "holding:51 (for example; each device says address)" in page


def test_facts_of_the_profile_are_not_edited_and_the_name_is(types, admin_client):
    kind = kind_of("generic_modbus")
    page = page_of_type(admin_client, kind)
    for field in ("profile_body", "protocol", "category", "max_value", "profile"):
        assert f'name="{field}"' not in page
    path = f"{LIST}{kind.pk}/change/"
    admin_client.post(path, {"name": "Ours", "lifetime": "singular", "max_value": "5", "category": "load"})
    kind.refresh_from_db()
    assert (kind.name, kind.lifetime, kind.max_value, kind.category) == ("Ours", "singular", 100, "inverter")


def test_type_whose_profile_is_of_no_use_says_so(admin_client):
    kind = device_type_make()
    DeviceType.objects.filter(pk=kind.pk).update(profile_body={"name": "broken"})
    assert "its profile cannot be used" in page_of(admin_client, LIST)
    assert page_of_type(admin_client, kind)


def test_registers_stand_in_the_order_of_their_addresses(types, admin_client):
    page = page_of_type(admin_client, kind_of("sma_stp60_im20"))
    keys = [f"holding:{address}" for address in (40000, 40068, 40199, 40348)]
    assert sorted(keys, key=page.index) == keys
