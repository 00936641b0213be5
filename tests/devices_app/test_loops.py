"""Closed loops: what can be said of them, what reaches the node, and what they need of devices."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from django.db import IntegrityError, transaction

from devices_app.choices import LoopMode, LoopStand
from devices_app.loop_members import POLL_S
from devices_app.loops import (
    LoopOptions,
    loop_create,
    loop_delete,
    loop_draft,
    loop_replace,
    loop_update,
)
from devices_app.models import ClosedLoop, Device, DeviceType, LoopMember
from devices_app.services import (
    device_create,
    device_delete,
    device_move,
    device_type_update,
    device_update,
)
from edge.core.closed_loop import LoopSettings, Member, Mode, Stand
from edge.core.loop.terms import LOOP_RANGES
from edge.runtime import config as node_config
from edge.runtime.loop_plan import LoopPlan, plan_loops
from edge.wire.messages import DeviceConfig, LoopConfig, NodeConfig
from sites_app.documents import nodes_documents_render
from sites_app.models import Node, NodeDocument
from sites_app.services import node_move
from smartgrid.errors import Conflict, Invalid, NotFound
from tests.factories import (
    device_make,
    device_type_make,
    loop_make,
    meter_make,
    meter_type_make,
    node_make,
    profile_body_make,
    proxy_type_make,
    site_make,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def node() -> Node:
    return node_make()


@pytest.fixture
def meter(node: Node) -> Device:
    return meter_make(node=node, device_tag="METER_01")


@pytest.fixture
def pv(meter: Device) -> Device:
    return inverter(meter.node, "PV_01")


@pytest.fixture
def loop(meter: Device, pv: Device) -> ClosedLoop:
    return loop_make(meter=meter, loop_tag="POC", members=[pv], export_limit_kw=40)


def inverter(node: Node, tag: str, **fields: Any) -> Device:
    return device_make(node=node, device_tag=tag, **{"peak_power_kw": 60.0, **fields})


def kind_of(
    *, write_class: str = "volatile", value_kind: str = "active_power_limit_pct", min_gap_ms: int = 0
) -> DeviceType:
    """A type whose register may be written like that."""
    name = f"{write_class}_{value_kind}_{min_gap_ms}"
    body = profile_body_make(name=name)
    body |= {"value_kind": value_kind, "min_gap_ms": min_gap_ms}
    body["limit"]["write_class"] = write_class
    found = DeviceType.objects.filter(profile=name).first()
    return found or device_type_make(profile=name, value_kind=value_kind, profile_body=body)


def counter_type() -> DeviceType:
    """A type that counts energy and tells no power."""
    body = profile_body_make(name="counter", limit=None)
    body["points"]["power"]["unit"] = "kWh"
    body["telemetry"] = {"E_kWh": "power"}
    return device_type_make(profile="counter", category="meter", value_kind=None, profile_body=body)


def configured(node: Node) -> dict[str, LoopConfig]:
    """What the node's configuration says of its loops, by tag."""
    body = msgspec.convert(NodeDocument.objects.get(node=node, name="config").body, NodeConfig)
    return {one["tag"]: msgspec.convert(one, LoopConfig) for one in body.loops}


def version(node: Node) -> int:
    return NodeDocument.objects.get(node=node, name="config").version


def planned(node: Node) -> LoopPlan:
    """What the node makes of the loops that it is configured with."""
    body = NodeDocument.objects.get(node=node, name="config").body
    found = node_config.plan(body)
    return plan_loops(found.loops, found.devices, unusable=found.refused)


def refusal(meter: Device, **fields: Any) -> dict[str, list[str]]:
    """Why such a loop is refused, by field."""
    with pytest.raises(Invalid) as raised:
        loop_make(meter=meter, **fields)
    assert not ClosedLoop.objects.exists()
    return raised.value.errors


# --- what reaches the node --------------------------------------------------------------------------------------


def test_loop_reaches_its_node_with_all_that_was_said_of_it(meter, pv):
    before = version(meter.node)
    said: LoopOptions = {
        "mode": "track",
        "setpoint_kw": -12.5,
        "feed_forward": False,
        "kp": 0.5,
        "ki": 0.25,
        "kd": 0.1,
        "max_rate_pct_per_s": 20,
        "deadband_kw": 1.5,
        "fallback_pct": 30,
        "time_step_s": 2,
        "stale_after_s": 15,
        "export_limit_kw": 40,
        "import_limit_kw": 80,
        "storage_first": True,
    }
    wanted: dict[str, Any] = {**said, "members": [pv]}
    loop = loop_make(meter=meter, loop_tag="POC", **wanted)
    sent = configured(meter.node)["POC"]
    assert (sent.id, sent.meter, sent.members) == (str(loop.pk), "METER_01", ("PV_01",))
    assert {name: getattr(sent, name) for name in said} == said
    assert version(meter.node) == before + 1


def test_loop_of_which_nothing_is_said_is_the_cores_default(loop, meter):
    sent = configured(meter.node)["POC"]
    core = LoopSettings(tag="POC", members=(Member("PV_01", 60.0),))
    for name in (
        "mode",
        "feed_forward",
        "kp",
        "ki",
        "kd",
        "max_rate_pct_per_s",
        "deadband_kw",
        "fallback_pct",
    ):
        assert getattr(sent, name) == getattr(core, name)
    for name in ("time_step_s", "stale_after_s", "import_limit_kw", "storage_first"):
        assert getattr(sent, name) == getattr(core, name)


def test_words_of_modes_and_stands_are_the_cores():
    assert LoopMode.values == list(Mode)
    assert LoopStand.values == list(Stand)


def test_changed_loop_makes_a_new_version_and_the_same_again_does_not(loop, meter):
    before = version(meter.node)
    loop_update(loop=loop, by="test", kp=0.6)
    assert version(meter.node) == before + 1
    loop_update(loop=loop, by="test", kp=0.6)
    assert version(meter.node) == before + 1


def test_loop_that_is_off_or_deleted_is_not_in_the_configuration(loop, meter):
    loop_update(loop=loop, by="test", enabled=False)
    assert configured(meter.node) == {}
    loop_update(loop=loop, by="test", enabled=True)
    assert list(configured(meter.node)) == ["POC"]
    loop_delete(loop=loop, by="test")
    assert configured(meter.node) == {}
    assert not LoopMember.objects.exists()


def test_category_is_followed_by_devices_that_come_leave_or_cannot(meter, pv):
    loop_make(meter=meter, loop_tag="POC", category="inverter")
    second = inverter(meter.node, "PV_02")
    inverter(meter.node, "PV_UNRATED", peak_power_kw=None)
    inverter(meter.node, "PV_EXCLUDED", include_in_curtailment=False)
    inverter(meter.node, "TURBINE", category="wind_turbine")
    inverter(node_make(site=meter.site), "PV_ELSEWHERE")
    assert configured(meter.node)["POC"].members == ("PV_01", "PV_02")
    device_delete(device=pv)
    device_update(device=second, category="wind_turbine")
    assert configured(meter.node)["POC"].members == ()


def test_loop_that_moves_with_its_meter_leaves_the_former_node(loop, meter):
    elsewhere = node_make(site=meter.site)
    other = meter_make(node=elsewhere, device_tag="METER_02")
    member = inverter(elsewhere, "PV_02")
    loop_update(loop=loop, by="test", meter=other, members=[member])
    assert configured(meter.node) == {}
    assert configured(elsewhere)["POC"].members == ("PV_02",)


def test_renamed_device_is_configured_under_its_new_tag(loop, meter, pv):
    device_update(device=pv, device_tag="PV_NEW")
    device_update(device=meter, device_tag="METER_NEW")
    sent = configured(meter.node)["POC"]
    assert (sent.meter, sent.members) == ("METER_NEW", ("PV_NEW",))


def test_replacing_leaves_nothing_of_what_was_said_before(loop, meter, pv):
    loop_replace(loop=loop, by="test", loop_tag="POC_2", meter=meter, members=[pv], kp=1)
    stored = ClosedLoop.objects.get()
    assert (stored.loop_tag, stored.export_limit_kw, stored.kp, stored.ki) == ("POC_2", None, 1, 0.15)
    assert stored.pk == loop.pk


def test_members_take_the_place_of_a_category_and_a_category_that_of_members(loop, meter, pv):
    loop_update(loop=loop, by="test", category="inverter")
    assert not LoopMember.objects.exists()
    loop_update(loop=loop, by="test", members=[pv])
    assert ClosedLoop.objects.get().category is None
    assert configured(meter.node)["POC"].members == ("PV_01",)


def test_loop_is_created_changed_and_deleted_under_a_name(meter, pv, caplog):
    loop = loop_create(site=meter.site, loop_tag="POC", meter=meter, members=[pv], by="anna")
    loop_update(loop=loop, by="bert", kp=1)
    loop_delete(loop=loop, by="carl")
    told = [record.getMessage() for record in caplog.records if "loop_" in record.getMessage()]
    assert [name for name in ("anna", "bert", "carl") for line in told if name in line] == [
        "anna",
        "bert",
        "carl",
    ]


# --- what the node makes of it ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"time_step_s": 0.2, "stale_after_s": 1, "kp": 10, "ki": 10, "kd": 60},
        {"time_step_s": 60, "stale_after_s": 300, "max_rate_pct_per_s": 0.1, "deadband_kw": 59.9},
        {"time_step_s": 0.9, "stale_after_s": 1.8, "max_rate_pct_per_s": 1000},
        {"export_limit_kw": 0, "import_limit_kw": 0, "mode": "track", "storage_first": True},
        {"setpoint_kw": -1e6, "fallback_pct": 0, "export_limit_kw": 1e6},
        {"feed_forward": False, "kp": 0, "ki": 0.1},
    ],
    ids=str,
)
def test_node_can_use_whatever_is_accepted_here(meter, pv, fields):
    loop = loop_make(meter=meter, loop_tag="POC", members=[pv], **fields)
    plan = planned(meter.node)
    assert plan.refused == {}
    assert plan.loops["POC"].id == str(loop.pk)
    assert [member.tag for member in plan.loops["POC"].settings.members] == ["PV_01"]
    (poll,) = (one.default for one in msgspec.structs.fields(DeviceConfig) if one.name == "poll_s")
    assert poll == POLL_S


def test_node_can_use_a_category_of_which_some_are_left_out(meter, pv):
    inverter(meter.node, "PV_UNRATED", peak_power_kw=None)
    inverter(meter.node, "PV_WEARS", device_type=kind_of(write_class="persistent"))
    inverter(meter.node, "PV_EXCLUDED", include_in_curtailment=False)
    loop_make(meter=meter, loop_tag="POC", category="inverter")
    plan = planned(meter.node)
    assert (plan.refused, list(plan.loops["POC"].devices)) == ({}, ["PV_01"])


def test_loop_without_a_member_is_refused_by_its_node_with_a_reason(meter, pv):
    loop_make(meter=meter, loop_tag="POC", category="inverter")
    device_delete(device=pv)
    assert "members" in planned(meter.node).refused["POC"]


# --- what is refused ----------------------------------------------------------------------------------------


def test_number_out_of_its_range_is_refused_at_its_field(meter):
    for number in range(6):
        wrong = {
            name: (least - 0.1, most + 1, math.nan, math.inf, True, "1")[number]
            for name, (least, most) in LOOP_RANGES.items()
        }
        assert refusal(meter, **wrong).keys() == LOOP_RANGES.keys()


def test_numbers_at_the_ends_of_their_ranges_are_taken(meter, pv):
    device_update(device=pv, peak_power_kw=2e6)
    for end in (0, 1):
        ends: dict[str, Any] = {name: limits[end] for name, limits in LOOP_RANGES.items()}
        # Each step must be shorter than what makes a reading stale, and the fallback what a member takes.
        loop = loop_make(meter=meter, members=[pv], **ends | {"fallback_pct": 100.0 * end})
        loop_delete(loop=loop, by="test")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"mode": "hold"}, "mode"),
        ({"time_step_s": 10.0, "stale_after_s": 10.0}, "stale_after_s"),
        # One lost reading of a meter that is read each second.
        ({"time_step_s": 1.0, "stale_after_s": 1.9}, "stale_after_s"),
        ({"feed_forward": False, "kp": 0, "ki": 0}, "kp"),
        ({"deadband_kw": 60}, "deadband_kw"),
        ({"fallback_pct": -1}, "fallback_pct"),
        ({"members": []}, "members"),
        ({"category": "battery"}, "category"),
        ({"loop_tag": ""}, "loop_tag"),
    ],
)
def test_loop_that_could_not_do_what_it_says_is_refused(meter, pv, fields, field):
    given = {"members": [pv], **fields}
    if "category" in fields:
        del given["members"]
    if fields.get("loop_tag") == "":
        with pytest.raises(Invalid) as raised:
            loop_create(site=meter.site, meter=meter, by="test", members=[pv], loop_tag="")
        assert set(raised.value.errors) == {"loop_tag"}
    else:
        assert set(refusal(meter, **given)) == {field}


def test_all_that_is_wrong_is_told_at_once(meter):
    assert set(refusal(meter, kp=-1, ki=math.nan, time_step_s=0)) == {"kp", "ki", "time_step_s"}


def test_zero_export_is_a_limit(meter, pv):
    loop_make(meter=meter, loop_tag="POC", members=[pv], export_limit_kw=0)
    assert configured(meter.node)["POC"].export_limit_kw == 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda node: inverter(node, "X", measured_only=True), "only measured"),
        (lambda node: inverter(node, "X", include_in_curtailment=False), "include it first"),
        (lambda node: inverter(node, "X", peak_power_kw=None), "peak_power_kw"),
        (lambda node: inverter(node_make(site=node.site), "X"), "one node"),
        (lambda node: inverter(node, "X", device_type=kind_of(write_class="persistent")), "rule 13"),
        (
            lambda node: inverter(node, "X", device_type=kind_of(write_class="persistent"), accept_wear=True),
            "rule 13",
        ),
        (lambda node: inverter(node, "X", device_type=kind_of(write_class="unknown")), "accept_wear"),
        (lambda node: inverter(node, "X", device_type=kind_of(value_kind="power_cap_pct")), "how much power"),
        (lambda node: meter_make(node=node, device_tag="X"), "only measured"),
    ],
)
def test_device_that_no_loop_can_command_is_refused_with_what_to_do(meter, make, says, caplog):
    device = device_of(make, meter.node)
    (text,) = refusal(meter, members=[device])["members"]
    assert text.startswith("X ")
    assert says in text


def device_of(make: Any, node: Node) -> Device:
    """Made as it is; wear is accepted by somebody."""
    try:
        made: Device = make(node)
    except Invalid:
        made = device_create(
            node=node,
            device_type=kind_of(write_class="persistent"),
            device_tag="X",
            by="anna",
            accept_wear=True,
            peak_power_kw=60,
            modbus_server_host="192.0.2.9",
            modbus_server_port=502,
            modbus_id=1,
        )
    return made


def test_register_of_unknown_wear_is_commanded_where_it_is_accepted_or_each_minute_only(meter):
    device = inverter(meter.node, "X", device_type=kind_of(write_class="unknown"))
    loop = loop_make(meter=meter, loop_tag="POC", members=[device], time_step_s=60, stale_after_s=120)
    with pytest.raises(Invalid) as raised:
        loop_update(loop=loop, by="test", time_step_s=59.9)
    assert "members" in raised.value.errors
    device_update(device=device, accept_wear=True, by="anna")
    loop_update(loop=loop, by="test", time_step_s=1)
    # And it is not taken back unseen.
    with pytest.raises(Conflict, match="POC"):
        device_update(device=device, accept_wear=False, by="anna")


def test_meter_cannot_be_a_member(meter):
    (text,) = refusal(meter, members=[meter])["members"]
    assert "is the meter" in text


def test_member_is_named_once(meter, pv):
    assert "twice" in refusal(meter, members=[pv, pv])["members"][0]


def test_meter_must_measure_power(node, pv):
    counter = device_make(node=node, device_type=counter_type(), device_tag="COUNTER")
    assert "P_kW" in refusal(counter, members=[pv])["meter"][0]


def test_meter_whose_maker_wants_pauses_is_not_called_silent_between_two_readings(node, pv):
    body = profile_body_make(name="slow_meter", limit=None) | {"min_gap_ms": 2000}
    kind = device_type_make(profile="slow_meter", category="meter", value_kind=None, profile_body=body)
    slow = device_make(node=node, device_type=kind, device_tag="SLOW")
    (text,) = refusal(slow, members=[pv], time_step_s=5, stale_after_s=15)["stale_after_s"]
    assert text.startswith("16 or more")
    loop_make(meter=slow, members=[pv], time_step_s=5, stale_after_s=16)


def test_proxy_is_no_meter(node, pv):
    proxy = device_make(node=node, device_type=proxy_type_make(), device_tag="PARK")
    assert "measures no power" in refusal(proxy, members=[pv])["meter"][0]


def test_meter_whose_word_its_broker_keeps_is_of_unknown_age_and_refused(node, pv):
    body = profile_body_make(name="kept_meter", limit=None) | {"protocol": "mqtt"}
    body["points"] = {
        "power": {
            "name": "power",
            "topic": "power",
            "unit": "kW",
            "kept": True,
            "source": "test",
            "confidence": "unverified",
        }
    }
    kind = device_type_make(
        profile="kept_meter", protocol="mqtt", category="meter", value_kind=None, profile_body=body
    )
    kept = device_make(node=node, device_type=kind, device_tag="KEPT", url="mqtt://broker:1883")
    assert "a message of any age (kept)" in refusal(kept, members=[pv])["meter"][0]


def test_meter_of_another_site_is_refused(meter, pv):
    with pytest.raises(Invalid) as raised:
        loop_create(site=site_make(), loop_tag="POC", meter=meter, members=[pv], by="test")
    assert set(raised.value.errors) == {"meter"}


def test_device_behind_anothers_control_point_is_named_by_that_one(meter):
    owner = inverter(meter.node, "IM_20")
    behind = inverter(meter.node, "PV_BEHIND", controlled_by=owner, device_type=kind_of())
    assert "IM_20" in refusal(meter, members=[behind])["members"][0]


def test_proxy_is_as_good_as_what_is_behind_it(meter):
    proxy = device_make(
        node=meter.node,
        device_type=proxy_type_make(),
        device_tag="PARK",
        peak_power_kw=60,
        modbus_server_host=None,
        modbus_server_port=None,
        modbus_id=None,
    )
    assert "without devices" in refusal(meter, members=[proxy])["members"][0]
    wears = inverter(meter.node, "WEARS", controlled_by=proxy, device_type=kind_of(write_class="persistent"))
    assert "WEARS" in refusal(meter, members=[proxy])["members"][0]
    device_update(device=wears, device_type=kind_of())
    loop_make(meter=meter, members=[proxy])


def test_period_leaves_room_for_the_pauses_that_makers_want(meter):
    kind = kind_of(min_gap_ms=1000)
    bus = {"device_type": kind, "modbus_server_host": "192.0.2.50", "modbus_server_port": 502}
    members = [inverter(meter.node, f"PV_0{unit}", modbus_id=unit, **bus) for unit in (1, 2)]
    (text,) = refusal(meter, members=members, time_step_s=3.9, stale_after_s=20)["time_step_s"]
    assert text.startswith("4 or more")
    assert "192.0.2.50:502" in text
    loop_make(meter=meter, members=members, time_step_s=4, stale_after_s=20)


def test_device_is_a_member_of_one_loop_at_most(loop, node, pv):
    other = meter_make(node=node, device_tag="METER_02")
    with pytest.raises(Conflict, match="POC"):
        loop_make(meter=other, members=[pv])
    with pytest.raises(IntegrityError):
        LoopMember.objects.create(loop=loop, device=pv)


def test_category_has_one_loop_at_a_node_and_its_devices_no_other(meter, node, pv):
    loop_make(meter=meter, loop_tag="POC", category="inverter")
    other = meter_make(node=node, device_tag="METER_02")
    with pytest.raises(Conflict, match="POC"):
        loop_make(meter=other, category="inverter")
    with pytest.raises(Conflict, match="POC"):
        loop_make(meter=other, members=[pv])


def test_category_leaves_out_what_another_loop_names(loop, node):
    inverter(node, "PV_02")
    loop_make(meter=meter_make(node=node, device_tag="METER_02"), loop_tag="REST", category="inverter")
    sent = configured(node)
    assert (sent["POC"].members, sent["REST"].members) == (("PV_01",), ("PV_02",))
    # Also while the other is off.
    loop_update(loop=loop, by="test", enabled=False)
    assert configured(node)["REST"].members == ("PV_02",)


def test_meter_has_one_loop(loop, meter):
    with pytest.raises(Conflict, match="POC"):
        loop_make(meter=meter, members=[inverter(meter.node, "PV_02")])


def test_tag_is_unique_at_its_site(loop, node):
    other = meter_make(node=node, device_tag="METER_02")
    with pytest.raises(Conflict, match="already") as raised:
        loop_make(meter=other, loop_tag="POC", members=[inverter(node, "PV_02")])
    assert raised.value.code == "duplicate"
    loop_make(loop_tag="POC")


def test_loop_that_is_gone_cannot_be_changed(loop):
    loop_delete(loop=ClosedLoop.objects.get(), by="test")
    with pytest.raises(NotFound):
        loop_update(loop=loop, by="test", kp=1)
    with pytest.raises(NotFound):
        loop_delete(loop=loop, by="test")


def test_what_a_loop_does_not_have_cannot_be_changed(loop):
    with pytest.raises(Invalid):
        loop_update(loop=loop, by="test", node=None)  # type: ignore[call-arg]


def test_database_refuses(loop):
    wrong: list[dict[str, Any]] = [
        {"loop_tag": ""},
        {"mode": "hold"},
        {"category": "a/b"},
        {"stale_after_s": 1.0},
        *({name: limits[1] + 1} for name, limits in LOOP_RANGES.items()),
        *({name: limits[0] - 1} for name, limits in LOOP_RANGES.items()),
    ]
    for change in wrong:
        with pytest.raises(IntegrityError), transaction.atomic():
            ClosedLoop.objects.filter(pk=loop.pk).update(**change)


def test_draft_is_told_what_a_change_would_be_and_stores_nothing(loop, meter, pv):
    drafted = loop_draft(site=meter.site, loop=loop, loop_tag="POC", meter=meter, members=[pv], kp=2)
    assert (drafted.kp, ClosedLoop.objects.get().kp) == (2, 0.3)
    with pytest.raises(Conflict):
        loop_draft(site=meter.site, loop_tag="ANOTHER", meter=meter, members=[pv])
    assert ClosedLoop.objects.count() == 1


# --- what a loop needs of devices ---------------------------------------------------------------------------


def test_device_that_a_loop_needs_is_neither_deleted_nor_moved(loop, meter, pv):
    elsewhere = node_make(site=meter.site)
    for device in (meter, pv):
        for change in (
            lambda device=device: device_delete(device=device),
            lambda device=device: device_move(device=device, node=elsewhere),
            lambda device=device: device_update(device=device, node=elsewhere),
        ):
            with pytest.raises(Conflict, match="POC") as raised:
                change()
            assert raised.value.code == "in_use"
    loop_delete(loop=loop, by="test")
    device_delete(device=pv)
    device_move(device=meter, node=elsewhere)


def test_node_with_a_loop_stays_at_its_site(loop, node):
    with pytest.raises(Conflict):
        node_move(node=node, site=site_make())


def test_member_stays_what_a_loop_can_command(loop, pv, meter):
    for change in ({"measured_only": True}, {"peak_power_kw": None}, {"device_type": meter_type_make()}):
        with pytest.raises(Conflict, match="POC"):
            device_update(device=pv, **change)
    assert configured(meter.node)["POC"].members == ("PV_01",)


def test_member_is_excluded_for_a_while_without_leaving_its_loop(loop, pv, meter):
    device_update(device=pv, include_in_curtailment=False)
    assert configured(meter.node)["POC"].members == ()
    # The rest of the loop can be changed meanwhile.
    loop_update(loop=loop, by="test", kp=1)
    device_update(device=pv, include_in_curtailment=True)
    assert configured(meter.node)["POC"].members == ("PV_01",)


def test_meter_stays_one_that_tells_power(loop, meter):
    with pytest.raises(Conflict, match="POC"):
        device_update(device=meter, device_type=counter_type())


def test_type_that_turns_out_to_wear_takes_its_devices_out_of_their_loops(meter, node, pv):
    kind = kind_of()
    member = inverter(node, "X", device_type=kind)
    loop_make(meter=meter, loop_tag="POC", members=[member, pv])
    body = kind.profile_body
    device_type_update(
        device_type=kind, profile_body={**body, "limit": {**body["limit"], "write_class": "persistent"}}
    )
    nodes_documents_render(nodes=[node])
    assert configured(node)["POC"].members == ("PV_01",)
