"""Devices in the console: bounds, wear, moves, the end of a device, and what is retiring."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.utils import timezone

from devices_app.models import Device, DeviceBound, DeviceType, RetiringDevice, TelemetrySeries
from devices_app.services import device_bound_set, device_delete, device_type_update
from devices_app.telemetry import ReceivedReadings, readings_record
from edge.wire.messages import NodeConfig, TelemetryPoint
from tests.factories import device_error_make, device_make, node_make, story_make

pytestmark = pytest.mark.django_db


@pytest.fixture
def story():
    return story_make()


@pytest.fixture
def left(story):
    device_delete(device=story.device_a)
    return RetiringDevice.objects.get()


def form_of(device: Device, *, bounds: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    stored = DeviceBound.objects.filter(device=device).count()
    form: dict[str, Any] = {
        field: getattr(device, field)
        for field in (
            "device_tag",
            "category",
            "min_value",
            "max_value",
            "default_value",
            "telemetry_s",
            "modbus_server_host",
            "modbus_server_port",
            "modbus_id",
        )
    }
    form |= {
        "node": device.node_id,
        "device_type": device.device_type_id,
        "meta_data": "{}",
        "parameters": "{}",
    }
    form |= {"include_in_curtailment": "on", "bounds-INITIAL_FORMS": stored}
    form["bounds-TOTAL_FORMS"] = len(bounds or [])
    for number, bound in enumerate(bounds or []):
        form |= {f"bounds-{number}-{field}": value for field, value in bound.items()}
        form[f"bounds-{number}-device"] = device.pk
    return form | changes


def change(client: Client, device: Device, **changes: Any) -> Any:
    return client.post(
        f"/admin/devices_app/device/{device.pk}/change/", form_of(device, **changes), follow=True
    )


def config_of(device: Device) -> dict[str, Any]:
    config = msgspec.convert(device.node.documents.get(name="config").body, NodeConfig)
    return next(entry for entry in config.devices if entry["tag"] == device.device_tag)


def of_unknown_endurance(kind: DeviceType) -> None:
    """What is documented as volatile needs nobody's acceptance, and is not asked for it."""
    body = kind.profile_body
    device_type_update(
        device_type=kind, profile_body={**body, "limit": {**body["limit"], "write_class": "unknown"}}
    )


def test_wear_is_accepted_under_the_name_of_the_operator(admin_client, story, caplog):
    of_unknown_endurance(story.device_a.device_type)
    change(admin_client, story.device_a, accept_wear="on")
    assert config_of(story.device_a)["accept_wear"] is True
    line = next(record for record in caplog.records if "device_wear_accepted" in record.getMessage())
    assert "'by': 'admin'" in line.getMessage()
    # And in the console's own history, for good.
    assert LogEntry.objects.get().user.get_username() == "admin"


def test_bounds_are_set_changed_and_dropped_with_their_device(admin_client, story):
    device = story.device_a
    change(
        admin_client,
        device,
        bounds=[
            {"origin": "owner", "maximum": "90"},
            {"origin": "grid_operator", "maximum": "60", "reason": "§ 9"},
        ],
    )
    assert {bound["origin"]: bound["maximum"] for bound in config_of(device)["bounds"]} == {
        "owner": 90,
        "grid_operator": 60,
    }
    owner, operator = (DeviceBound.objects.get(origin=origin) for origin in ("owner", "grid_operator"))
    change(
        admin_client,
        device,
        bounds=[
            {"id": owner.pk, "origin": "trader", "maximum": "80"},
            {"id": operator.pk, "origin": "grid_operator", "maximum": "60", "DELETE": "on"},
        ],
    )
    assert [(bound["origin"], bound["maximum"]) for bound in config_of(device)["bounds"]] == [("trader", 80)]


@pytest.mark.parametrize(
    "bound",
    [{"origin": "owner"}, {"origin": "owner", "minimum": "9", "maximum": "3"}, {"origin": "x", "minimum": 1}],
)
def test_bound_that_is_none_is_refused_in_the_form_with_all_the_rest(admin_client, story, bound):
    change(admin_client, story.device_a, bounds=[bound], default_value=50)
    assert not DeviceBound.objects.exists()
    assert Device.objects.get(pk=story.device_a.pk).default_value == 100


def test_device_is_moved_in_its_form(admin_client, story):
    there = node_make(site=story.site_a)
    change(admin_client, story.device_a, node=there.pk)
    assert Device.objects.get(pk=story.device_a.pk).node == there
    assert RetiringDevice.objects.get().node == story.node_a


def test_refused_move_is_told_and_changes_nothing(admin_client, story):
    page = change(admin_client, story.device_a, node=story.node_b.pk, default_value=50).content.decode()
    assert "a device stays at its site" in page
    device = Device.objects.get(pk=story.device_a.pk)
    assert (device.node, device.default_value) == (story.node_a, 100)


def test_device_is_deleted_with_its_bounds_and_not_with_its_errors(admin_client, story):
    device_error_make(device=story.device_a)
    device_bound_set(device=story.device_a, origin="owner", by="operator", maximum=50)
    path = f"/admin/devices_app/device/{story.device_a.pk}/delete/"
    assert admin_client.get(path).status_code == 200
    admin_client.post(path, {"post": "yes"})
    assert not Device.objects.filter(pk=story.device_a.pk).exists()
    assert RetiringDevice.objects.get().reason == "deleted"
    assert admin_client.get("/admin/control_app/deviceerrorlog/").content.decode().count("no answer") == 1


def test_device_that_controls_others_is_not_deleted_and_the_console_says_why(admin_client, story):
    device_make(node=story.node_a, device_tag="INV_02", controlled_by=story.device_a)
    path = f"/admin/devices_app/device/{story.device_a.pk}/delete/"
    page = admin_client.post(path, {"post": "yes"}, follow=True).content.decode()
    assert "it controls INV_02" in page
    assert Device.objects.filter(pk=story.device_a.pk).exists()


def path_of(left: RetiringDevice) -> str:
    return f"/admin/devices_app/retiringdevice/{left.pk}/change/"


def test_what_is_retiring_is_listed_with_what_keeps_it(admin_client, left):
    page = admin_client.get("/admin/devices_app/retiringdevice/?q=SMA").content.decode()
    assert "SMA_STP60_01" in page
    assert "node-01 has never reported" in page
    assert admin_client.get(path_of(left)).status_code == 200


def test_list_of_what_is_retiring_takes_as_many_queries_however_long(
    admin_client, story, django_assert_max_num_queries
):
    for _ in range(4):
        device_delete(device=device_make(node=story.node_a))
    with django_assert_max_num_queries(10):
        admin_client.get("/admin/devices_app/retiringdevice/")


def test_device_is_abandoned_by_typing_its_tag(admin_client, story, left):
    page = admin_client.post(path_of(left), {"tag": "SMA_STP60", "why": "burnt down"}, follow=True)
    assert "repeat the tag, SMA_STP60_01" in page.content.decode()
    assert not RetiringDevice.objects.get().is_abandoned
    admin_client.post(path_of(left), {"tag": "SMA_STP60_01", "why": "burnt down"})
    row = RetiringDevice.objects.get()
    assert (row.abandoned_by, row.abandoned_why) == ("admin", "burnt down")
    assert story.node_a.documents.get(name="config").body["abandoned"] == [str(left.config_id)]
    # Done, and only to be read from then on.
    assert admin_client.get(path_of(left)).status_code == 200
    assert admin_client.post(path_of(left), {"tag": "SMA_STP60_01", "why": "stolen"}).status_code == 403


def test_what_is_retiring_is_neither_added_nor_deleted_by_hand(admin_client, left):
    assert admin_client.post("/admin/devices_app/retiringdevice/add/", {}).status_code == 403
    delete = path_of(left).replace("change", "delete")
    assert admin_client.post(delete, {"post": "yes"}).status_code == 403


def test_console_lists_what_is_measured_with_its_newest_value_and_changes_nothing(
    story, admin_client, no_redis, django_assert_max_num_queries
):
    now = timezone.now()
    for age, value in ((5, 111.5), (1, 222.5), (3, 333.5)):
        text = (now - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        for node, device in ((story.node_a, story.device_a), (story.node_b, story.device_b)):
            point = TelemetryPoint(t=text, key="P_kW", unit="kW", value=value, device=device.device_tag)
            readings_record([ReceivedReadings(str(node.pk), [point], now)])
    with django_assert_max_num_queries(7):
        page = admin_client.get("/admin/devices_app/telemetryseries/").content.decode()
    assert page.count("222.5") == 2
    assert "SMA_STP60_01" in page
    assert "111.5" not in page
    series = TelemetrySeries.objects.first()
    assert series is not None
    assert admin_client.get("/admin/devices_app/telemetryseries/add/").status_code == 403
    for action in ("delete", "change"):
        response = admin_client.post(
            f"/admin/devices_app/telemetryseries/{series.pk}/{action}/", {"post": "yes"}
        )
        assert response.status_code == 403
