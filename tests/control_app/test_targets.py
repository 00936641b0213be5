from __future__ import annotations

import pytest

from control_app.targets import Targets, targets_select
from sites_app.models import Node
from smartgrid.errors import Invalid, NotFound
from tests.factories import ROOT, device_make, meter_type_make, node_make, principal_of_token, story_make

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
