from __future__ import annotations

from typing import Any

import msgspec
import pytest
from django.core.management import call_command

from devices_app.models import Device, DeviceType, RetiringDevice
from devices_app.retirement import device_abandon
from devices_app.selectors import devices_unfit
from devices_app.services import (
    device_bound_drop,
    device_bound_set,
    device_delete,
    device_move,
    device_type_update,
    device_types_sync,
    device_update,
    device_values_confirm,
    device_values_follow,
)
from edge.profiles.loader import load_all
from edge.runtime.config import plan
from edge.wire.messages import DeviceConfig, NodeConfig, Reported
from sites_app.documents import manifest_for, nodes_due_render
from sites_app.models import Node
from sites_app.services import site_update
from smartgrid.errors import Conflict, Invalid, NotFound
from tests.factories import (
    device_make,
    device_type_make,
    meter_type_make,
    node_make,
    profile_body_make,
    rtu_type_make,
    site_make,
    url_type_make,
)

pytestmark = pytest.mark.django_db


def config_of(node):
    return msgspec.convert(node.documents.get(name="config").body, NodeConfig)


def device_config_of(device):
    entries = config_of(device.node).devices
    return msgspec.convert(next(e for e in entries if e["id"] == str(device.config_id)), DeviceConfig)


def test_device_takes_what_it_does_not_say_from_its_type():
    device_type = device_type_make(
        category="ev_charger", min_value=10, max_value=90, default_value=80, lifetime="singular"
    )
    device = device_make(device_type=device_type)
    assert (device.min_value, device.max_value, device.default_value) == (10, 90, 80)
    assert device.category == "ev_charger"
    assert device_config_of(device).lifetime == "singular"


def test_device_is_of_the_site_of_its_node():
    node = node_make()
    assert device_make(node=node).site_id == node.site_id


def test_second_owner_of_a_limit_register_is_a_conflict():
    node = node_make()
    first = device_make(node=node)
    with pytest.raises(Conflict):
        device_make(node=node, modbus_server_port=first.modbus_server_port)


def test_two_types_which_name_one_register_differently_still_own_it_once():
    node = node_make()
    first = device_make(node=node)
    other = device_type_make(profile="other", profile_body=profile_body_make(name="other", limit="cap"))
    with pytest.raises(Conflict):
        device_make(node=node, device_type=other, modbus_server_port=first.modbus_server_port)


def test_other_unit_behind_the_same_address_is_another_control_point():
    node = node_make()
    first = device_make(node=node)
    assert device_make(node=node, modbus_server_port=first.modbus_server_port, modbus_id=2)


def test_control_point_is_owned_within_its_site_only():
    first = device_make(node=node_make())
    assert device_make(node=node_make(), modbus_server_port=first.modbus_server_port)


def test_measured_device_behind_anothers_control_point_is_no_conflict():
    node = node_make()
    first = device_make(node=node)
    child = device_make(node=node, modbus_server_port=first.modbus_server_port, measured_only=True)
    assert child.control_point is None
    assert device_config_of(child).measured_only


def test_meter_is_only_measured():
    meter = device_make(device_type=meter_type_make())
    assert meter.measured_only
    assert meter.control_point is None


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"default_value": 120}, []),
        ({"max_value": float("inf")}, ["max_value"]),
        ({"default_value": float("nan")}, ["default_value"]),
        ({"modbus_server_host": None}, ["modbus_server_host"]),
        ({"modbus_id": None}, ["modbus_id"]),
        ({"modbus_server_port": 70000}, ["modbus_server_port"]),
        ({"category": "Inverters!"}, ["category"]),
        ({"telemetry_s": 0.1}, ["telemetry_s"]),
    ],
)
def test_invalid_device_is_refused_and_nothing_is_stored(fields, names):
    node = node_make()
    before = manifest_for(node)
    with pytest.raises(Invalid) as refusal:
        device_make(node=node, **fields)
    assert set(names) <= set(refusal.value.errors)
    assert not Device.objects.exists()
    assert manifest_for(node) == before


def test_added_device_and_its_profile_reach_the_nodes_configuration():
    site = site_make(site_tag="a", curtailment_time_limit=60, cyclic_write_timeout=300)
    device = device_make(node=node_make(site=site), peak_power_kw=60, modbus_id=3)
    config = config_of(device.node)
    assert (config.site.tag, config.site.curtailment_time_limit_s) == ("a", 60)
    assert config.profiles == {"test_inverter": device.device_type.profile_body}
    entry = device_config_of(device)
    assert (entry.tag, entry.unit, entry.nameplate_kw) == (device.device_tag, 3, 60)
    assert not entry.excluded


def test_changed_device_reaches_the_nodes_configuration():
    device = device_make()
    before = manifest_for(device.node).version
    device_update(device=device, include_in_curtailment=False, default_value=70)
    entry = device_config_of(device)
    assert entry.excluded
    assert entry.default_value == 70
    assert manifest_for(device.node).version == before + 1


def test_device_moves_by_a_service_of_its_own():
    with pytest.raises(Invalid):
        device_update(device=device_make(), node=node_make())


def test_refused_change_leaves_device_and_configuration_as_they_were():
    device = device_make()
    before = manifest_for(device.node)
    with pytest.raises(Invalid):
        device_update(device=device, min_value=99, max_value=98)
    assert manifest_for(device.node) == before


def test_changed_profile_reaches_nodes_with_devices_of_the_type_only():
    device, other = device_make(), node_make()
    before = manifest_for(other)
    body = {**profile_body_make(), "min_gap_ms": 1000}
    device_type_update(device_type=device.device_type, profile_body=body)
    assert set(Node.objects.filter(render_due_since__isnull=False)) == {device.node}
    assert nodes_due_render(nodes=[device.node_id, other.pk]) == 1
    assert nodes_due_render(nodes=[device.node_id, other.pk]) == 0
    assert config_of(device.node).profiles["test_inverter"]["min_gap_ms"] == 1000
    assert manifest_for(other) == before


def test_confirmed_value_of_an_older_request_does_not_replace_a_newer():
    device = device_make()
    device_values_confirm(node_id=device.node_id, values={device.device_tag: 50}, sequence=7)
    device_values_confirm(node_id=device.node_id, values={device.device_tag: 80}, sequence=6)
    assert Device.objects.get(pk=device.pk).value == 50


def values_reported(device, value, *, sequence):
    tag = device.device_tag
    report = Reported(
        session="s",
        boot="b",
        store="st",
        epoch=1,
        manifest_version=1,
        at="2026-11-23T00:00:00Z",
        clock="trusted",
        sequences={tag: sequence} if sequence else {},
        values={tag: value, "UNKNOWN": 1.0},
    )
    device_values_follow([(device.node_id, report)])
    return Device.objects.get(pk=device.pk).value


def test_value_follows_what_its_node_says_of_schedules_too():
    assert values_reported(device_make(), 60, sequence=0) == 60


def test_report_from_before_the_last_confirmed_command_does_not_replace_its_value():
    device = device_make()
    device_values_confirm(node_id=device.node_id, values={device.device_tag: 50}, sequence=7)
    assert values_reported(device, 80, sequence=6) == 50
    assert values_reported(device, 80, sequence=7) == 80


def test_synchronised_types_come_from_the_profiles_and_a_second_run_changes_nothing(capsys):
    call_command("sync_device_types")
    call_command("sync_device_types")
    total = len(load_all())
    assert f"0 device types created, 0 updated, {total} unchanged" in capsys.readouterr().out
    assert DeviceType.objects.get(profile="janitza_umg604").value_kind is None


def test_synchronisation_keeps_id_and_name_of_a_type_which_is_there():
    device_type = device_type_make(name="SMA at our parks", profile="sma", profile_body={})
    done = device_types_sync({"sma": ("SMA", {"profile_body": profile_body_make(name="sma")})})
    assert done["updated"] == ["SMA at our parks"]
    assert DeviceType.objects.get(pk=device_type.pk).has_limit


def test_type_whose_profile_is_gone_stays_and_is_reported():
    device_type_make(name="Old", profile="old")
    assert device_types_sync({})["without_profile"] == ["Old"]
    assert DeviceType.objects.filter(name="Old").exists()


# --- behind another's control point (rule 22) ---------------------------------------------------------------------------


@pytest.fixture
def owner():
    return device_make(device_tag="IM20_01")


def test_device_behind_anothers_control_point_is_measured_only_and_names_its_owner(owner):
    child = device_make(node=owner.node, controlled_by=owner, modbus_server_port=owner.modbus_server_port)
    assert (child.measured_only, child.control_point) == (True, None)
    entry = device_config_of(child)
    assert (entry.owned_by, entry.measured_only) == ("IM20_01", True)
    assert device_config_of(owner).owned_by is None


def test_owner_is_a_controllable_device_of_the_same_node(owner):
    child = device_make(node=owner.node, controlled_by=owner)
    meter = device_make(node=owner.node, device_type=meter_type_make())
    elsewhere = device_make(node=node_make(site=owner.site))
    for wrong in (child, meter, elsewhere):
        with pytest.raises(Invalid) as refusal:
            device_make(node=owner.node, controlled_by=wrong)
        assert list(refusal.value.errors) == ["controlled_by"]
    assert Device.objects.count() == 4


def test_device_controls_itself_without_saying_so_and_no_circle_closes(owner):
    child = device_make(node=owner.node, controlled_by=owner)
    with pytest.raises(Invalid):
        device_update(device=owner, controlled_by=owner)
    with pytest.raises((Invalid, Conflict)):
        device_update(device=owner, controlled_by=child)
    assert Device.objects.get(pk=owner.pk).controlled_by is None


@pytest.mark.parametrize(
    "change",
    [
        lambda owner: device_update(device=owner, measured_only=True),
        lambda owner: device_move(device=owner, node=node_make(site=owner.site)),
        lambda owner: device_delete(device=owner),
    ],
    ids=["measured only", "moved", "deleted"],
)
def test_owner_does_not_leave_those_it_controls(owner, change):
    child = device_make(node=owner.node, device_tag="STP60_02", controlled_by=owner)
    with pytest.raises(Conflict, match="STP60_02"):
        change(owner)
    device_update(device=child, controlled_by=None)
    change(owner)


def test_device_that_comes_under_an_owner_is_retired_from_its_own_control_point(owner):
    child = device_make(node=owner.node)
    device_update(device=child, controlled_by=owner)
    assert RetiringDevice.objects.get().control_point == child.control_point


def test_renamed_owner_is_named_anew(owner):
    child = device_make(node=owner.node, controlled_by=owner)
    device_update(device=owner, device_tag="IM20_09")
    assert device_config_of(child).owned_by == "IM20_09"


# --- bounds, ramp, wear, fallback (rules 13, 14, 15, 21) ----------------------------------------------------------------


def bounds_of(device):
    return {bound.origin: (bound.minimum, bound.maximum) for bound in device_config_of(device).bounds}


def test_bounds_of_each_authority_reach_the_node():
    device = device_make()
    device_bound_set(device=device, origin="owner", by="operator", maximum=90)
    device_bound_set(
        device=device, origin="grid_operator", by="operator", minimum=0, maximum=60, reason="§ 9"
    )
    assert bounds_of(device) == {"owner": (None, 90), "grid_operator": (0, 60)}
    device_bound_set(device=device, origin="grid_operator", by="operator", maximum=30)
    assert bounds_of(device)["grid_operator"] == (None, 30)
    assert device_bound_drop(device=device, origin="owner", by="operator")
    assert not device_bound_drop(device=device, origin="owner", by="operator")
    assert bounds_of(device) == {"grid_operator": (None, 30)}


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"minimum": 60, "maximum": 40},
        {"maximum": float("nan")},
        {"minimum": float("-inf")},
        {"maximum": True},
        {"origin": "nobody", "maximum": 60},
    ],
)
def test_bound_that_is_none_is_refused_and_the_former_kept(limits):
    device = device_make()
    device_bound_set(device=device, origin="owner", by="operator", maximum=90)
    with pytest.raises(Invalid):
        device_bound_set(device=device, by="operator", **({"origin": "owner"} | limits))
    assert bounds_of(device) == {"owner": (None, 90)}


def test_same_bound_again_publishes_nothing():
    device = device_make()
    device_bound_set(device=device, origin="owner", by="operator", maximum=90)
    before = manifest_for(device.node)
    device_bound_set(device=device, origin="owner", by="operator", maximum=90)
    assert manifest_for(device.node) == before


def test_bound_of_a_deleted_device_is_not_found():
    device = device_make()
    device_delete(device=device)
    with pytest.raises(NotFound):
        device_bound_set(device=device, origin="owner", by="operator", maximum=90)


def test_ramp_and_own_fallback_reach_the_node():
    device = device_make(ramp_pct_per_min=10, arm_fallback=True)
    entry = device_config_of(device)
    assert (entry.ramp_pct_per_min, entry.arm_fallback) == (10, True)
    device_update(device=device, ramp_pct_per_min=None)
    assert device_config_of(device).ramp_pct_per_min is None


@pytest.mark.parametrize("ramp", [0, -1, float("inf"), float("nan")])
def test_ramp_which_would_never_arrive_is_refused(ramp):
    with pytest.raises(Invalid):
        device_make(ramp_pct_per_min=ramp)


def test_accepted_wear_is_recorded_under_a_name(caplog):
    device = device_make()
    with pytest.raises(Invalid) as refusal:
        device_update(device=device, accept_wear=True)
    assert list(refusal.value.errors) == ["accept_wear"]
    assert not device_config_of(device).accept_wear
    device_update(device=device, accept_wear=True, by="an engineer")
    assert device_config_of(device).accept_wear
    assert "device_wear_accepted" in caplog.text
    assert "an engineer" in caplog.text
    # What stays as it is needs nobody's name.
    device_update(device=device, accept_wear=True, default_value=90)
    with pytest.raises(Invalid):
        device_make(accept_wear=True)


def test_signed_setpoint_has_the_default_zero_unless_an_engineer_confirms_another():
    node = node_make()
    signed = device_type_make(
        profile="signed",
        category="battery",
        value_kind="signed_setpoint_pct",
        min_value=-100,
        default_value=0,
    )
    device = device_make(node=node, device_type=signed)
    with pytest.raises(Invalid) as refusal:
        device_update(device=device, default_value=20)
    assert list(refusal.value.errors) == ["default_value"]
    assert device_config_of(device).default_value == 0
    device_update(device=device, default_value=20, default_confirmed=True)
    assert device_config_of(device).default_value == 20


def test_changed_limit_default_and_bounds_reach_the_node_by_desired_state():
    device = device_make()
    site_update(site=device.site, curtailment_time_limit=30)
    device_update(device=device, default_value=80, max_value=90)
    assert config_of(device.node).site.curtailment_time_limit_s == 30
    entry = device_config_of(device)
    assert (entry.default_value, entry.max_value) == (80, 90)


def test_node_can_use_what_is_rendered_here():
    call_command("sync_device_types", verbosity=0)
    sma = DeviceType.objects.get(profile="sma_stp60_im20")
    owner = device_make(device_type=sma, device_tag="IM20_01", peak_power_kw=60, ramp_pct_per_min=10)
    device_make(node=owner.node, device_type=sma, device_tag="STP60_02", controlled_by=owner)
    device_bound_set(device=owner, origin="grid_operator", by="operator", maximum=60)
    gone = device_make(node=owner.node, device_type=sma)
    device_delete(device=gone)
    left = RetiringDevice.objects.get()
    device_abandon(retiring=left, tag=gone.device_tag, by="operator", why="burnt down")
    planned = plan(owner.node.documents.get(name="config").body)
    assert planned.refused == {}
    assert planned.devices["IM20_01"].config == device_config_of(owner)
    assert planned.devices["IM20_01"].settings.is_controlled
    assert not planned.devices["STP60_02"].settings.is_controlled
    assert str(left.config_id) in planned.abandoned


def with_parameters(**parameters: Any) -> dict[str, Any]:
    """A profile that leaves the register of its limit to each device."""
    body = profile_body_make()
    body["points"]["limit"]["address"] = "${address}"
    return {
        **body,
        "parameters": {"address": {"title": "Register", "type": "integer", "example": 32, **parameters}},
    }


def test_device_that_no_longer_fits_its_type_is_reported_and_stays_as_it_is(caplog):
    kind = device_type_make(profile_body=with_parameters())
    fits = device_make(device_type=kind, parameters={"address": 40})
    device = device_make(device_type=kind, parameters={"address": 5000}, node=fits.node)
    before = (device.config_id, device.control_point)

    device_type_update(device_type=kind, profile_body=with_parameters(minimum=1, maximum=1000))

    device.refresh_from_db()
    assert (device.config_id, device.control_point) == before
    assert "device_does_not_fit_its_type" in caplog.text
    [(unfit, why)] = devices_unfit(kind)
    assert (unfit, why) == (device, "parameters: address: expected 1 to 1000")
    assert not RetiringDevice.objects.exists()
    # Its node refuses it alone, and says so.
    nodes_due_render(nodes=[device.node_id])
    planned = plan(device.node.documents.get(name="config").body)
    assert list(planned.refused) == [device.device_tag]
    assert list(planned.devices) == [fits.device_tag]
    with pytest.raises(Invalid):
        device_update(device=device, default_value=50)
    device_update(device=device, parameters={"address": 50})
    assert devices_unfit(kind) == []


def test_synchronisation_names_the_devices_that_do_not_fit_and_goes_on(capsys):
    call_command("sync_device_types", verbosity=0)
    kind = DeviceType.objects.get(profile="generic_modbus")
    device = device_make(device_type=kind)
    Device.objects.filter(pk=device.pk).update(parameters={"gone": 1})
    call_command("sync_device_types")
    said = capsys.readouterr()
    assert "unchanged" in said.out
    assert f"{device.device_tag} of {device.node.name}: parameters: gone: no such parameter" in said.err


def test_parameters_of_a_device_that_is_only_measured_are_judged_too():
    with pytest.raises(Invalid):
        device_make(device_type=device_type_make(profile_body=with_parameters()), measured_only=True)


def test_address_is_kept_in_the_spelling_of_its_node():
    device = device_make(modbus_server_host="Inverter-7.Example.")
    assert device.modbus_server_host == "inverter-7.example"
    mqtt = device_make(device_type=url_type_make("mqtt"), url="MQTT://Broker:1883/")
    assert mqtt.url == "mqtt://broker"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"modbus_server_host": "two words"}, "modbus_server_host"),
        ({"serial_port": "/etc/passwd"}, "serial_port"),
        ({"serial_port": "/dev/ttyUSB0", "baud_rate": 9601}, "baud_rate"),
        ({"serial_port": "/dev/ttyUSB0", "modbus_id": 248}, "modbus_id"),
    ],
)
def test_modbus_address_that_no_node_could_use_is_refused_at_its_field(fields, field):
    with pytest.raises(Invalid) as refusal:
        device_make(device_type=rtu_type_make(), **fields)
    assert list(refusal.value.errors) == [field]


@pytest.mark.parametrize("url", ["http://broker", "mqtt://me:secret@broker", "broker"])
def test_url_that_no_node_could_use_is_refused_at_its_field(url):
    with pytest.raises(Invalid) as refusal:
        device_make(device_type=url_type_make("mqtt"), url=url)
    assert list(refusal.value.errors) == ["url"]
