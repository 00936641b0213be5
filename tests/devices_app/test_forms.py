"""A device's form in the console: what it asks for, and what becomes of what is typed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client

from devices_app.models import Device, DeviceType
from devices_app.services import device_update
from sites_app.models import SiteScope
from sites_app.tokens import decrypt
from tests.factories import (
    device_make,
    device_type_make,
    meter_type_make,
    node_make,
    profile_body_make,
    rtu_type_make,
    story_make,
    url_type_make,
)

pytestmark = pytest.mark.django_db

ADD = "/admin/devices_app/device/add/"
NETWORK = {"modbus_server_host", "modbus_server_port", "modbus_id"}
SERIAL = {"serial_port", "baud_rate", "parity", "stop_bits"}
LOGIN = {"url", "username", "password"}
CONTROL = {"min_value", "max_value", "default_value", "include_in_curtailment", "measured_only", "lifetime"}


@pytest.fixture
def story():
    return story_make()


def page_of(client: Client, path: str) -> str:
    response = client.get(path)
    assert response.status_code == 200
    return response.content.decode()


def asked(page: str) -> set[str]:
    """The names of a page's fields that are to be filled in."""
    return set(re.findall(r'<(?:input|select|textarea)[^>]* name="([a-z_0-9]+)"', page))


def form_for(client: Client, kind: DeviceType, **query: Any) -> str:
    pairs = "".join(f"&{key}={value}" for key, value in query.items())
    return page_of(client, f"{ADD}?device_type={kind.pk}{pairs}")


def typed(kind: DeviceType, node: Any, **fields: Any) -> dict[str, Any]:
    """What somebody types who adds a device of this type."""
    return {
        "device_type": kind.pk,
        "shown_for": kind.pk,
        "node": node.pk,
        "device_tag": "NEW_01",
        "category": kind.category,
        "telemetry_s": 10,
        "meta_data": "{}",
        "min_value": 0,
        "max_value": 100,
        "default_value": 100,
        "include_in_curtailment": "on",
        "bounds-TOTAL_FORMS": 0,
        "bounds-INITIAL_FORMS": 0,
        **fields,
    }


def adjustable_make() -> DeviceType:
    """A type whose devices say where their power is, how their meter is wired, and what they are called."""
    body = profile_body_make(name="adjustable")
    body["points"]["power"] |= {"address": "${address}", "sign": "${wired}", "note": "${nickname}"}
    body["parameters"] = {
        "address": {"title": "Register of the power", "type": "integer", "example": 51, "minimum": 1, "maximum": 65535, "help": "From the project's list."},
        "wired": {"title": "Direction of the meter", "type": "integer", "default": 1, "choices": [1, -1]},
        "nickname": {"title": "Nickname", "default": "nobody"},
    }  # fmt: skip
    return device_type_make(profile="adjustable", profile_body=body)


# --- what is asked for ----------------------------------------------------------------------------


def test_new_device_is_first_asked_for_its_type(admin_client, story):
    page = page_of(admin_client, f"{ADD}?node={story.node_a.pk}")
    # (`s` searches the sidebar.)
    assert asked(page) - {"csrfmiddlewaretoken", "s"} == {"device_type", "node"}
    for kind in DeviceType.objects.all():
        assert f"{kind.category}: {kind.name} (not verified on hardware)" in page


def test_modbus_device_is_asked_for_host_port_and_unit_with_its_profile_s_defaults(admin_client, story):
    body = {**profile_body_make(), "default_port": 1502, "default_unit": 7}
    page = form_for(admin_client, device_type_make(profile_body=body))
    assert asked(page) >= NETWORK | CONTROL
    assert not asked(page) & (SERIAL | LOGIN | {"protocol", "parameters"})
    assert 'value="1502"' in page
    assert "confidence: unverified; not verified on hardware" in page
    assert 'value="7"' in page


def test_device_with_a_choice_of_protocols_is_asked_for_either(admin_client, story):
    page = form_for(admin_client, rtu_type_make(default_baud_rate=19200, default_parity="even"))
    assert asked(page) >= NETWORK | SERIAL | {"protocol"}
    assert "the maker&#x27;s: 19200" in page


def test_device_behind_a_url_is_asked_for_that_and_a_login(admin_client, story):
    page = form_for(admin_client, url_type_make("mqtt"))
    assert asked(page) >= LOGIN
    assert not asked(page) & (NETWORK | SERIAL)


def test_what_is_only_measured_is_not_asked_for_bounds_or_default(admin_client, story):
    page = form_for(admin_client, meter_type_make())
    assert not asked(page) & (CONTROL | {"accept_wear", "ramp_pct_per_min", "bounds-TOTAL_FORMS"})
    assert "only measured" in page


def test_each_parameter_is_a_field_of_its_own(admin_client, story):
    page = form_for(admin_client, adjustable_make())
    assert asked(page) >= {"parameter_address", "parameter_wired", "parameter_nickname"}
    assert "Register of the power" in page
    assert "From the project&#x27;s list. 1 to 65535. For example 51." in page
    assert '<option value="-1">-1</option>' in page


def test_every_type_of_this_version_has_a_form(admin_client, story):
    call_command("sync_device_types", verbosity=0)
    for kind in DeviceType.objects.exclude(profile="test_inverter"):
        assert {"device_tag", "node"} <= asked(form_for(admin_client, kind)), kind


def test_only_devices_of_the_node_that_can_control_are_offered(admin_client, story):
    other = device_make(node=story.node_a, device_tag="LOGGER_01")
    device_make(node=story.node_a, device_tag="METER_01", measured_only=True)
    page = page_of(admin_client, f"/admin/devices_app/device/{story.device_a.pk}/change/")
    offered = page.split('name="controlled_by"')[1].split("</select>")[0]
    assert other.device_tag in offered
    for tag in ("METER_01", story.device_a.device_tag, story.device_b.device_tag):
        assert tag not in offered


def test_who_may_only_look_sees_the_device_and_no_password(client, story, django_user_model):
    from django.contrib.auth.models import Permission  # noqa: PLC0415

    device = device_make(
        node=story.node_a, device_type=url_type_make("mqtt"), url="mqtt://broker", password="geheim"
    )
    viewer = django_user_model.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_device"))
    SiteScope.objects.create(user=viewer, all_sites=True)
    client.force_login(viewer)
    page = page_of(client, f"/admin/devices_app/device/{device.pk}/change/")
    assert "mqtt://broker" in page
    assert "password" not in page.split('id="content"')[1]


# --- what becomes of it ---------------------------------------------------------------------------


def test_device_is_stored_with_what_was_typed(admin_client, story):
    kind = adjustable_make()
    response = admin_client.post(
        ADD,
        typed(
            kind, story.node_a, modbus_server_host="10.0.0.7", modbus_server_port=502, modbus_id=3,
            parameter_address="5000", parameter_wired="-1", parameter_nickname="",
        ),
    )  # fmt: skip
    assert response.status_code == 302, response.content.decode()
    device = Device.objects.get(device_tag="NEW_01")
    assert device.parameters == {"address": 5000, "wired": -1}
    assert (device.modbus_server_host, device.modbus_id) == ("10.0.0.7", 3)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("parameter_address", "", "This field is required."),
        ("parameter_address", "70000", "Expected 1 to 65535."),
        ("parameter_address", "1.5", "Expected a whole number."),
        ("parameter_address", "x", "Expected a number."),
        ("parameter_wired", "2", "Expected one of 1, -1."),
        ("modbus_server_host", "two words", "expected a name or an address"),
        ("modbus_server_host", "", "This field is required for a Modbus device."),
        ("default_value", "200", "min_value, default_value and max_value must be in this order."),
    ],
)
def test_what_is_wrong_is_told_at_its_field_and_nothing_typed_is_lost(
    admin_client, story, field, value, told
):
    kind = adjustable_make()
    fields = typed(
        kind, story.node_a, modbus_server_host="10.0.0.7", modbus_server_port=502, modbus_id=3,
        parameter_address="5000", parameter_nickname="Emma",
    )  # fmt: skip
    response = admin_client.post(ADD, fields | {field: value})
    page = response.content.decode()
    assert response.status_code == 200
    assert told in page
    assert "Emma" in page
    assert not Device.objects.filter(device_tag="NEW_01").exists()
    form = response.context["adminform"].form
    assert field in form.errors or field == "default_value"


def test_taken_tag_and_foreign_owner_are_told_in_the_form(admin_client, story):
    kind = story.device_a.device_type
    address = {"modbus_server_host": "10.0.0.7", "modbus_server_port": 502, "modbus_id": 3}
    taken = admin_client.post(ADD, typed(kind, story.node_a, **address, device_tag="SMA_STP60_01"))
    assert "There is such a device already" in taken.content.decode()
    foreign = admin_client.post(ADD, typed(kind, story.node_a, **address, controlled_by=story.device_b.pk))
    assert "controlled_by" in foreign.context["adminform"].form.errors


def test_password_is_written_and_never_shown(admin_client, story):
    kind = url_type_make("http")
    admin_client.post(ADD, typed(kind, story.node_a, url="http://meter", username="me", password="geheim"))
    device = Device.objects.get(device_tag="NEW_01")
    path = f"/admin/devices_app/device/{device.pk}/change/"
    assert decrypt(device.password_encrypted) == "geheim"

    page = page_of(admin_client, path)
    assert "geheim" not in page
    assert device.password_encrypted not in page
    assert "Set. Type another one to change it." in page

    admin_client.post(path, typed(kind, story.node_a, url="http://meter2", username="me"))
    device.refresh_from_db()
    assert (device.url, decrypt(device.password_encrypted)) == ("http://meter2", "geheim")
    admin_client.post(path, typed(kind, story.node_a, url="http://meter2", password_clear="on"))
    device.refresh_from_db()
    assert device.password_encrypted == ""
    assert "Not set." in page_of(admin_client, path)


def test_another_type_shows_its_own_fields_before_anything_is_saved(admin_client, story):
    device = story.device_a
    kind = adjustable_make()
    path = f"/admin/devices_app/device/{device.pk}/change/"
    fields = typed(
        kind, story.node_a, device_tag=device.device_tag, shown_for=device.device_type_id,
        modbus_server_host="10.0.0.7", modbus_server_port=502, modbus_id=3,
    )  # fmt: skip

    response = admin_client.post(path, fields)

    page = response.content.decode()
    assert "the fields that the type you have chosen needs" in page
    assert "parameter_address" in asked(page)
    assert f'name="shown_for" value="{kind.pk}"' in page
    device.refresh_from_db()
    assert device.device_type_id != kind.pk

    response = admin_client.post(path, fields | {"shown_for": kind.pk, "parameter_address": "77"})
    device.refresh_from_db()
    assert response.status_code == 302, response.content.decode()
    assert (device.device_type_id, device.parameters) == (kind.pk, {"address": 77})


def test_parameters_of_a_device_stand_in_its_form_and_are_changed_there(admin_client, story):
    kind = adjustable_make()
    device = device_make(node=story.node_a, device_type=kind, parameters={"address": 60, "wired": -1})
    path = f"/admin/devices_app/device/{device.pk}/change/"
    page = page_of(admin_client, path)
    assert 'name="parameter_address" value="60"' in page
    assert '<option value="-1" selected>' in page
    fields = typed(
        kind, story.node_a, device_tag=device.device_tag, modbus_server_host=device.modbus_server_host,
        modbus_server_port=device.modbus_server_port, modbus_id=1, parameter_address="61", parameter_wired="",
    )  # fmt: skip
    assert admin_client.post(path, fields).status_code == 302
    device.refresh_from_db()
    assert device.parameters == {"address": 61}


def test_device_on_a_serial_port_keeps_the_maker_s_settings_unless_told_otherwise(admin_client, story):
    kind = rtu_type_make()
    fields = typed(kind, story.node_a, serial_port="/dev/ttyUSB0", modbus_id=3, parity="even", baud_rate="")
    assert admin_client.post(ADD, fields).status_code == 302
    device = Device.objects.get(device_tag="NEW_01")
    assert (device.serial_port, device.baud_rate, device.parity) == ("/dev/ttyUSB0", None, "even")
    assert device.modbus_server_host is None


def test_what_its_node_says_stands_on_the_device_s_page(admin_client, story):
    path = f"/admin/devices_app/device/{story.device_a.pk}/change/"
    assert "node-01 has never reported" in page_of(admin_client, path)
    story.node_a.last_reported = {"devices_refused": {"SMA_STP60_01": "parameters.address: required"}}
    story.node_a.save(update_fields=["last_reported"])
    assert "cannot be used as it is configured: parameters.address: required" in page_of(admin_client, path)


def test_moved_to_a_node_that_is_gone_is_told_in_the_form(admin_client, story):
    there = node_make(site=story.site_b)
    device = story.device_a
    device_update(device=device, default_value=90)
    fields = typed(
        device.device_type, there, device_tag=device.device_tag, modbus_server_host="10.0.0.7",
        modbus_server_port=502, modbus_id=3,
    )  # fmt: skip
    response = admin_client.post(f"/admin/devices_app/device/{device.pk}/change/", fields)
    assert response.context["adminform"].form.errors["node"]
