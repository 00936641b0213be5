from __future__ import annotations

import pytest

from control_app.targets import Targets, targets_select
from devices_app.models import Device, RetiringDevice
from devices_app.retirement import device_abandon, retired_record
from devices_app.services import device_delete, device_move, device_update
from sites_app.models import Node
from sites_app.services import site_update
from smartgrid.errors import Invalid, NotFound
from tests.factories import (
    ROOT,
    device_make,
    meter_type_make,
    node_make,
    node_online,
    principal_of_token,
    proxy_type_make,
    report_make,
    story_make,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def story():
    return story_make()


def select(story, *, principal=ROOT, category="inverter", tags=None, value=50.0) -> Targets:
    return targets_select(
        principal=principal, site_id=story.site_a.pk, category=category, device_tags=tags, value=value
    )


def commanded(targets: Targets) -> dict[str, list[str]]:
    return {
        Node.objects.get(pk=node_id).name: [device.tag for device in devices]
        for node_id, devices in targets.by_node.items()
    }


def test_category_reaches_all_its_devices_by_node(story):
    device_make(node=story.node_a, device_tag="INV_02")
    device_make(node=node_make(site=story.site_a, name="node-03"), device_tag="INV_03")
    targets = select(story)
    assert commanded(targets) == {"node-01": ["INV_02", "SMA_STP60_01"], "node-03": ["INV_03"]}
    assert targets.refused == {}


def test_everything_about_a_request_is_found_in_one_query(story, django_assert_num_queries):
    device_make(node=story.node_a)
    with django_assert_num_queries(1):
        targets = select(story, principal=principal_of_token(story.token_a))
        assert targets.site_id == story.site_a.pk
        found = [device for devices in targets.by_node.values() for device in devices]
        assert {(device.tenant, device.time_limit_s) for device in found} == {("tenant-123", 60)}


def test_hidden_site_and_absent_category_are_not_found(story):
    with pytest.raises(NotFound, match="No such site"):
        select(story, principal=principal_of_token(story.token_b))
    with pytest.raises(NotFound, match="no device of category 'battery'"):
        select(story, category="battery")


def test_unknown_tags_are_named_and_known_ones_chosen_once(story):
    targets = select(story, tags=["SMA_STP60_01", "NO_SUCH", "SMA_STP60_01", "NO_SUCH", "GENERIC_PV_01"])
    assert commanded(targets) == {"node-01": ["SMA_STP60_01"]}
    assert sorted(targets.refused) == ["GENERIC_PV_01", "NO_SUCH"]
    assert all(why.startswith("unknown_device: ") for why in targets.refused.values())


def test_tag_of_another_category_is_unknown(story):
    device_make(node=story.node_a, device_tag="BAT_01", category="battery")
    assert select(story, tags=["BAT_01"]).refused["BAT_01"].startswith("unknown_device: ")


def test_excluded_device_is_named_and_not_commanded(story):
    device_make(node=story.node_a, device_tag="INV_02", include_in_curtailment=False)
    targets = select(story)
    assert commanded(targets) == {"node-01": ["SMA_STP60_01"]}
    assert targets.refused["INV_02"].startswith("excluded: ")


def test_category_passes_over_what_is_only_measured_and_a_tag_is_told(story):
    device_make(node=story.node_a, device_tag="INV_02", measured_only=True)
    assert select(story).refused == {}
    assert select(story, tags=["INV_02"]).refused["INV_02"].startswith("excluded: ")


def test_device_behind_anothers_control_point_is_told_who_controls_it(story):
    device_make(
        node=story.node_a,
        device_tag="INV_02",
        controlled_by=story.device_a,
        include_in_curtailment=False,
    )
    targets = select(story, tags=["INV_02", "SMA_STP60_01"])
    assert targets.refused == {"INV_02": "owned_by: SMA_STP60_01 controls this device"}
    assert commanded(targets) == {"node-01": ["SMA_STP60_01"]}


def test_category_counts_an_owner_once_and_passes_over_those_it_controls(story):
    for tag in ("INV_02", "INV_03"):
        device_make(node=story.node_a, device_tag=tag, controlled_by=story.device_a)
    targets = select(story)
    assert commanded(targets) == {"node-01": ["SMA_STP60_01"]}
    assert targets.refused == {}


@pytest.fixture
def park(story):
    """A proxy over the site's inverter and another one."""
    park = device_make(
        node=story.node_a, device_type=proxy_type_make(), device_tag="PARK_01", category="inverter"
    )
    device_update(device=story.device_a, controlled_by=park)
    device_make(node=story.node_a, device_tag="INV_02", controlled_by=park)
    return park


def test_category_counts_a_proxy_once(story, park):
    targets = select(story)
    assert commanded(targets) == {"node-01": ["PARK_01"]}
    assert targets.refused == {}


def test_child_of_a_proxy_is_told_whose_it_is(story, park):
    targets = select(story, tags=["INV_02", "PARK_01"])
    assert targets.refused == {"INV_02": "owned_by: PARK_01 controls this device"}
    assert commanded(targets) == {"node-01": ["PARK_01"]}


@pytest.mark.parametrize("tags", [None, ["PARK_01"]])
def test_child_that_a_proxy_passes_over_is_named(story, park, tags):
    roof = device_make(
        node=story.node_a, device_type=proxy_type_make(), device_tag="ROOF_01", controlled_by=park
    )
    device_make(node=story.node_a, device_tag="ROOF_INV", controlled_by=roof, include_in_curtailment=False)
    device_update(device=Device.objects.get(device_tag="INV_02"), include_in_curtailment=False)
    targets = select(story, tags=tags)
    assert commanded(targets) == {"node-01": ["PARK_01"]}
    assert targets.refused == dict.fromkeys(
        ("INV_02", "ROOF_INV"), "excluded: include_in_curtailment is off for this device"
    )


def test_child_that_waits_for_another_node_is_named(story, park):
    Device.objects.filter(device_tag="INV_02").update(waits=True)
    assert select(story).refused["INV_02"].startswith("retiring: ")


def test_child_of_another_sites_proxy_is_not_named(story, park):
    elsewhere = device_make(
        node=story.node_b, device_type=proxy_type_make(), device_tag="PARK_01", category="inverter"
    )
    device_make(node=story.node_b, device_tag="OTHERS", controlled_by=elsewhere, include_in_curtailment=False)
    assert select(story).refused == {}


def test_category_with_nothing_but_controlled_devices_names_their_owner(story):
    device_make(node=story.node_a, device_tag="PACK_01", category="battery", controlled_by=story.device_a)
    targets = select(story, category="battery")
    assert targets.refused == {"PACK_01": "owned_by: SMA_STP60_01 controls this device"}


def test_deleted_device_is_retiring_until_its_node_let_go_of_it_and_unknown_then(story):
    device_make(node=story.node_a, device_tag="INV_02")
    device_delete(device=story.device_a)
    assert select(story, tags=["SMA_STP60_01"]).refused == {
        "SMA_STP60_01": "retiring: node-01 has yet to return it to its default and forget it"
    }
    assert commanded(select(story)) == {"node-01": ["INV_02"]}
    node_online(story.node_a)
    retired_record(node=Node.objects.get(pk=story.node_a.pk), reported=report_make(story.node_a))
    assert select(story, tags=["SMA_STP60_01"]).refused["SMA_STP60_01"].startswith("unknown_device: ")


def test_last_device_of_a_category_is_named_while_it_retires(story):
    device_delete(device=story.device_a)
    assert list(select(story, tags=["SMA_STP60_01"]).refused) == ["SMA_STP60_01"]
    with pytest.raises(NotFound):
        select(story)


def test_what_retires_at_a_hidden_site_is_not_told(story):
    device_delete(device=story.device_a)
    with pytest.raises(NotFound, match="No such site"):
        select(story, principal=principal_of_token(story.token_b), tags=["SMA_STP60_01"])


def test_abandoned_device_is_unknown_at_once(story):
    device_make(node=story.node_a, device_tag="INV_02")
    device_delete(device=story.device_a)
    device_abandon(retiring=RetiringDevice.objects.get(), tag="SMA_STP60_01", by="operator", why="stolen")
    assert select(story, tags=["SMA_STP60_01"]).refused["SMA_STP60_01"].startswith("unknown_device: ")


def test_moved_device_is_not_commanded_before_its_former_node_let_go_of_its_control_point(story):
    device_move(device=story.device_a, node=node_make(site=story.site_a, name="node-03"))
    targets = select(story)
    assert targets.by_node == {}
    assert targets.refused["SMA_STP60_01"].startswith("retiring: ")
    node_online(story.node_a)
    retired_record(node=Node.objects.get(pk=story.node_a.pk), reported=report_make(story.node_a))
    assert commanded(select(story)) == {"node-03": ["SMA_STP60_01"]}


def test_hold_is_the_limit_of_the_site_at_that_moment(story):
    site_update(site=story.site_a, curtailment_time_limit=17)
    assert [device.time_limit_s for device in select(story).by_node[story.node_a.pk]] == [17]


def test_category_with_nothing_but_measured_devices_names_them(story):
    device_make(node=story.node_a, device_tag="METER_01", device_type=meter_type_make())
    targets = select(story, category="meter")
    assert targets.by_node == {}
    assert targets.refused["METER_01"].startswith("excluded: ")


@pytest.mark.parametrize("value", [-0.01, 100.01, 1e300])
def test_value_outside_every_range_is_invalid(story, value):
    with pytest.raises(Invalid, match="outside the range of every device, 0 to 100"):
        select(story, value=value)


@pytest.mark.parametrize("value", [0, 100])
def test_bounds_belong_to_the_range(story, value):
    assert commanded(select(story, value=value)) == {"node-01": ["SMA_STP60_01"]}


def test_value_outside_some_ranges_is_refused_for_those(story):
    device_make(node=story.node_a, device_tag="INV_02", min_value=20)
    targets = select(story, value=10)
    assert commanded(targets) == {"node-01": ["SMA_STP60_01"]}
    assert targets.refused == {"INV_02": "range: allowed is 20 to 100"}


def test_excluded_device_does_not_make_a_value_acceptable(story):
    device_make(
        node=story.node_a,
        device_tag="INV_02",
        min_value=-100,
        default_value=0,
        include_in_curtailment=False,
    )
    with pytest.raises(Invalid):
        select(story, value=-50)
