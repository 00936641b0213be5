"""Rule 20: the place of a device is free once its node has let go of it, or somebody abandons it by name."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from devices_app.models import Device, RetiringDevice
from devices_app.retirement import device_abandon, retired_record
from devices_app.selectors import retiring_kept_by
from devices_app.services import (
    device_bound_set,
    device_delete,
    device_move,
    device_type_update,
    device_update,
)
from edge.wire.messages import AppliedDocument, NodeConfig
from sites_app.documents import manifest_for
from sites_app.models import Node
from sites_app.services import node_update, site_update
from smartgrid.errors import Conflict, Invalid, NotFound
from tests.at_once import at_once
from tests.factories import (
    device_make,
    device_type_make,
    meter_type_make,
    node_make,
    node_online,
    profile_body_make,
    report_make,
    report_record,
    site_make,
)

pytestmark = pytest.mark.django_db

HOST = "192.0.2.7"


@pytest.fixture
def node():
    return node_make(name="node-01")


@pytest.fixture
def device(node):
    return inverter(node)


def inverter(node: Node, *, tag: str = "INV_01", port: int = 502, **fields: Any) -> Device:
    return device_make(
        node=node, device_tag=tag, modbus_server_host=HOST, modbus_server_port=port, modbus_id=1, **fields
    )


def config_of(node: Node) -> NodeConfig:
    return msgspec.convert(node.documents.get(name="config").body, NodeConfig)


def config_version(node: Node) -> int:
    return manifest_for(node).docs["config"].v


def ids_of(node: Node) -> dict[str, str]:
    return {entry["tag"]: entry["id"] for entry in config_of(node).devices}


def heard(node: Node, **fields: Any) -> int:
    """The node's report, taken as the inbox takes it; how many it closed."""
    node_online(node)
    return retired_record(node=Node.objects.get(pk=node.pk), reported=report_make(node, **fields))


def config_at(version: int, *, status: str = "applied") -> dict[str, AppliedDocument]:
    return {"config": AppliedDocument(v=version, status=status)}


# --- a deleted device --------------------------------------------------------------------------------------------------


def test_deleted_device_leaves_the_configuration_at_once_and_its_place_later(node, device):
    config_id = device.config_id
    device_delete(device=device)
    assert ids_of(node) == {}
    left = RetiringDevice.objects.get()
    assert (left.config_id, left.device_tag, left.reason) == (config_id, "INV_01", "deleted")
    assert left.control_point == device.control_point
    assert left.gone_from_version == config_version(node)


def test_tag_and_control_point_stay_taken_while_their_device_retires(node, device):
    device_delete(device=device)
    with pytest.raises(Conflict, match="abandon it by name") as same_tag:
        inverter(node, port=503)
    with pytest.raises(Conflict, match=f"{HOST}:502") as same_point:
        inverter(node_make(site=node.site), tag="INV_02")
    assert same_tag.value.code == same_point.value.code == "retiring"
    assert list(same_tag.value.errors) == ["device_tag"]
    assert list(same_point.value.errors) == ["control_point"]


def test_another_device_cannot_change_to_a_place_that_is_not_free_yet(node, device):
    other = inverter(node, tag="INV_02", port=503)
    device_delete(device=device)
    before = manifest_for(node)
    with pytest.raises(Conflict) as same_point:
        device_update(device=other, modbus_server_port=502)
    with pytest.raises(Conflict) as same_tag:
        device_update(device=other, device_tag="INV_01")
    assert same_point.value.code == same_tag.value.code == "retiring"
    assert manifest_for(node) == before


def test_another_site_may_use_the_tag_and_address_meanwhile(device):
    device_delete(device=device)
    assert inverter(node_make())


def test_place_is_free_once_the_node_runs_without_the_device_and_lists_it_no_longer(node, device):
    device_delete(device=device)
    assert heard(node) == 1
    again = inverter(node)
    assert again.config_id != device.config_id


def test_deleting_twice_is_not_found_the_second_time(device):
    device_delete(device=device)
    with pytest.raises(NotFound):
        device_delete(device=device)
    with pytest.raises(NotFound):
        device_update(device=device, default_value=50)


def test_meter_retires_too_because_its_node_knows_it_by_its_tag(node):
    meter = device_make(node=node, device_type=meter_type_make())
    device_delete(device=meter)
    assert RetiringDevice.objects.get().control_point is None


# --- the node's word ---------------------------------------------------------------------------------------------------


def still_listed(device: Device, left: RetiringDevice) -> dict[str, Any]:
    return {"retiring": {str(left.config_id): "INV_01: no answer"}}


def older_session(device: Device, left: RetiringDevice) -> dict[str, Any]:
    return {"session": "session-0"}


def older_boot(device: Device, left: RetiringDevice) -> dict[str, Any]:
    return {"boot": "boot-0"}


def older_epoch(device: Device, left: RetiringDevice) -> dict[str, Any]:
    return {"epoch": 0}


def lower_version(device: Device, left: RetiringDevice) -> dict[str, Any]:
    return {"documents": config_at(left.gone_from_version - 1)}


def refused_version(device: Device, left: RetiringDevice) -> dict[str, Any]:
    return {"documents": config_at(left.gone_from_version, status="failed")}


def version_of_another_history(device: Device, left: RetiringDevice) -> dict[str, Any]:
    return {"documents": config_at(left.gone_from_version + 100)}


def no_configuration(device: Device, left: RetiringDevice) -> dict[str, Any]:
    return {"documents": {}}


@pytest.mark.parametrize(
    "said",
    [
        still_listed,
        older_session,
        older_boot,
        older_epoch,
        lower_version,
        refused_version,
        version_of_another_history,
        no_configuration,
    ],
)
def test_report_which_does_not_prove_it_closes_nothing(node, device, said):
    device_delete(device=device)
    left = RetiringDevice.objects.get()
    assert heard(node, **said(device, left)) == 0
    assert RetiringDevice.objects.get() == left
    # The same with nothing wrong about it does.
    assert heard(node) == 1


def test_report_of_another_node_closes_nothing(node, device):
    device_delete(device=device)
    other = node_make(site=node.site)
    for number in range(9):
        device_update(device=inverter(other, tag=f"X{number}", port=600 + number), default_value=50)
    assert heard(other) == 0
    assert RetiringDevice.objects.exists()


def test_report_that_comes_twice_or_late_changes_nothing_more(node, device):
    device_delete(device=device)
    node_online(node)
    late = report_make(node)
    assert heard(node) == 1
    again = inverter(node)
    before = manifest_for(node)
    assert retired_record(node=Node.objects.get(pk=node.pk), reported=late) == 0
    assert manifest_for(node) == before
    assert Device.objects.get() == again


def test_late_report_from_before_a_second_deletion_does_not_close_it(node, device):
    device_delete(device=device)
    node_online(node)
    late = report_make(node)
    heard(node)
    device_delete(device=inverter(node))
    assert retired_record(node=Node.objects.get(pk=node.pk), reported=late) == 0
    assert heard(node) == 1


def test_ids_that_are_none_in_a_report_do_no_harm(node, device):
    device_delete(device=device)
    assert heard(node, retiring={"no id": "poem", "": ""}) == 1


def test_one_of_two_is_closed_while_the_other_is_still_listed(node, device):
    other = inverter(node, tag="INV_02", port=503)
    device_delete(device=device)
    device_delete(device=other)
    assert heard(node, retiring={str(other.config_id): "INV_02: no answer"}) == 1
    assert RetiringDevice.objects.get().device_tag == "INV_02"


def test_report_of_a_node_with_nothing_to_retire_costs_one_query(node, device, django_assert_num_queries):
    node_online(node)
    node.refresh_from_db()
    report = report_make(node)
    with django_assert_num_queries(1):
        retired_record(node=node, reported=report)


def test_what_keeps_it_is_told_in_the_nodes_words(node, device):
    def kept_by() -> str:
        return retiring_kept_by(RetiringDevice.objects.select_related("node").get())

    def said(**fields: Any) -> str:
        report_record(node, report_make(node, **fields))
        return kept_by()

    device_delete(device=device)
    version = config_version(node)
    assert kept_by() == "node-01 has never reported"
    assert f"version {version - 1}" in said(documents=config_at(version - 1))
    failed = {"config": AppliedDocument(v=version, status="failed", error="no room")}
    assert said(documents=failed).endswith("no room")
    assert said(retiring={str(device.config_id): "INV_01: no answer"}) == "INV_01: no answer"
    assert said(devices_refused={"INV_01": "no host"}).endswith("no host")


# --- a changed device --------------------------------------------------------------------------------------------------


def another_type() -> Any:
    return device_type_make(profile="other", profile_body=profile_body_make(name="other"))


def register_type() -> Any:
    body = profile_body_make(name="test_inverter")
    body["points"]["limit"]["address"] = 99
    return device_type_make(profile="test_inverter", profile_body=body)


CHANGES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "host": (lambda: {"modbus_server_host": "192.0.2.8"}, "address changed"),
    "port": (lambda: {"modbus_server_port": 503}, "address changed"),
    "unit": (lambda: {"modbus_id": 2}, "address changed"),
    "profile": (lambda: {"device_type": another_type()}, "profile changed"),
    "register": (lambda: {"device_type": register_type()}, "control point changed"),
    "tag": (lambda: {"device_tag": "INV_09"}, "renamed to INV_09"),
    "measured": (lambda: {"measured_only": True}, "only measured from now on"),
}


@pytest.mark.parametrize(("changes", "reason"), CHANGES.values(), ids=CHANGES.keys())
def test_device_that_leaves_its_place_is_another_to_its_node(node, device, changes, reason):
    Device.objects.update(value=30)
    former = device.config_id
    device = device_update(device=device, **changes())
    assert device.config_id != former
    assert list(ids_of(node).values()) == [str(device.config_id)]
    left = RetiringDevice.objects.get()
    assert (left.config_id, left.reason, left.device) == (former, reason, device)
    assert left.gone_from_version == config_version(node)
    assert Device.objects.get().value is None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"default_value": 70},
        {"min_value": 10},
        {"include_in_curtailment": False},
        {"ramp_pct_per_min": 10},
        {"modbus_server_host": " 192.0.2.7 "},
        {"category": "battery"},
    ],
)
def test_device_that_stays_in_its_place_stays_itself(device, changes):
    assert device_update(device=device, **changes).config_id == device.config_id
    assert not RetiringDevice.objects.exists()


def test_excluded_device_keeps_row_id_and_control_point(node, device):
    changed = device_update(device=device, include_in_curtailment=False)
    assert config_of(node).devices[0]["excluded"] is True
    with pytest.raises(Conflict):
        inverter(node_make(site=node.site), tag="INV_02")
    assert changed.control_point == device.control_point


def test_changed_device_is_not_in_its_own_way(node, device):
    device_update(device=device, modbus_server_port=503)
    device_update(device=device, modbus_server_port=502)
    assert RetiringDevice.objects.count() == 2
    assert config_of(node).devices[0]["port"] == 502
    assert "excluded" not in config_of(node).devices[0]
    assert heard(node) == 2


def test_former_address_of_a_changed_device_stays_taken_for_others(node, device):
    device_update(device=device, modbus_server_port=503)
    with pytest.raises(Conflict) as refusal:
        inverter(node, tag="INV_02", port=502)
    assert refusal.value.code == "retiring"
    heard(node)
    assert inverter(node, tag="INV_02", port=502)


def test_what_a_changed_device_left_stays_taken_when_it_is_deleted(node, device):
    device_delete(device=device_update(device=device, modbus_server_port=503))
    for port in (502, 503):
        with pytest.raises(Conflict) as refusal:
            inverter(node, tag="INV_02", port=port)
        assert refusal.value.code == "retiring"


def test_measured_device_that_becomes_controllable_leaves_nothing_behind(node):
    device = inverter(node, measured_only=True)
    assert device_update(device=device, measured_only=False).config_id == device.config_id
    assert not RetiringDevice.objects.exists()


def test_type_whose_limit_moves_to_another_register_retires_its_devices(node, device):
    body = profile_body_make()
    body["points"]["limit"]["address"] = 99
    device_type_update(device_type=device.device_type, profile_body=body)
    left = RetiringDevice.objects.get()
    assert (left.config_id, left.control_point) == (device.config_id, device.control_point)
    assert left.gone_from_version == config_version(node)
    assert ids_of(node) == {"INV_01": str(Device.objects.get().config_id)}


def test_type_whose_limit_moves_to_a_register_that_another_node_still_holds_waits_for_it(node, device):
    there = node_make(site=node.site)
    other = register_type()
    inverter(there, tag="INV_02", device_type=other)
    device_delete(device=device)
    device_type_update(device_type=other, profile_body=profile_body_make())
    assert config_of(there).devices[0]["excluded"] is True
    heard(node)
    assert "excluded" not in config_of(there).devices[0]


def test_type_that_changes_otherwise_retires_nothing(device):
    device_type_update(device_type=device.device_type, profile_body={**profile_body_make(), "min_gap_ms": 9})
    assert not RetiringDevice.objects.exists()


def test_node_that_cannot_use_the_new_configuration_still_controls_the_former_place(node, device):
    device_update(device=device, modbus_server_port=503)
    assert heard(node, devices_refused={"INV_01": "host 'x': expected a name or an address"}) == 0
    assert heard(node) == 1


# --- a moved device ----------------------------------------------------------------------------------------------------


def test_moved_device_is_left_alone_by_its_new_node_until_the_former_let_go(node, device):
    there = node_make(site=node.site, name="node-02")
    moved = device_move(device=device, node=there)
    assert ids_of(node) == {}
    assert ids_of(there) == {"INV_01": str(moved.config_id)}
    assert config_of(there).devices[0]["excluded"] is True
    assert RetiringDevice.objects.get().reason == "moved to node-02"
    assert heard(there) == 0
    assert heard(node) == 1
    assert "excluded" not in config_of(there).devices[0]


def test_abandoned_control_point_is_written_by_the_new_node(node, device):
    there = node_make(site=node.site)
    device_move(device=device, node=there)
    device_abandon(retiring=RetiringDevice.objects.get(), tag="INV_01", by="operator", why="node is scrap")
    assert "excluded" not in config_of(there).devices[0]


def test_device_that_moves_there_and_back_waits_for_nobody_but_its_node(node, device):
    there = node_make(site=node.site)
    device_move(device=device_move(device=device, node=there), node=node)
    assert config_of(node).devices[0]["excluded"] is True
    heard(there)
    assert "excluded" not in config_of(node).devices[0]


def test_device_does_not_leave_its_site(device):
    with pytest.raises(Invalid) as refusal:
        device_move(device=device, node=node_make())
    assert list(refusal.value.errors) == ["node"]


# --- abandoned by name -------------------------------------------------------------------------------------------------


@pytest.fixture
def left(device):
    device_delete(device=device)
    return RetiringDevice.objects.get()


def test_abandoned_device_frees_its_place_and_is_named_to_its_node_until_that_forgot_it(node, left, caplog):
    device_abandon(retiring=left, tag="INV_01", by="operator", why="burnt down")
    assert config_of(node).abandoned == (str(left.config_id),)
    assert "burnt down" in caplog.text
    inverter(node)
    assert heard(node, retiring={str(left.config_id): "INV_01: no answer"}) == 0
    assert config_of(node).abandoned
    assert heard(node) == 1
    assert config_of(node).abandoned == ()


@pytest.mark.parametrize(
    "said",
    [
        {"tag": "INV_02"},
        {"tag": "inv_01"},
        {"tag": ""},
        {"by": " "},
        {"why": ""},
    ],
)
def test_device_is_abandoned_by_name_only(node, left, said):
    given = {"tag": "INV_01", "by": "operator", "why": "burnt down"} | said
    with pytest.raises(Invalid):
        device_abandon(retiring=left, **given)
    assert config_of(node).abandoned == ()
    assert not RetiringDevice.objects.get().is_abandoned


def test_first_who_abandons_is_the_one_on_record(left):
    device_abandon(retiring=left, tag="INV_01", by="first", why="burnt down")
    with pytest.raises(Conflict, match="by first"):
        device_abandon(retiring=left, tag="INV_01", by="second", why="stolen")
    assert RetiringDevice.objects.get().abandoned_by == "first"


def test_device_that_retired_meanwhile_cannot_be_abandoned(node, left):
    heard(node)
    with pytest.raises(NotFound):
        device_abandon(retiring=left, tag="INV_01", by="operator", why="burnt down")


# --- at once -----------------------------------------------------------------------------------------------------------


def conflicts(results: list[Any]) -> list[str]:
    return [result.code for result in results if isinstance(result, Conflict)]


@pytest.mark.django_db(transaction=True)
def test_two_creations_of_one_control_point_at_once_while_it_retires_and_after():
    node = node_make()
    device_type = device_type_make()
    device_delete(device=inverter(node, device_type=device_type))

    def create(tag: str) -> Callable[[], Any]:
        return lambda: inverter(node, tag=tag, device_type=device_type)

    assert conflicts(at_once(create("A"), create("B"))) == ["retiring", "retiring"]
    heard(node)
    assert conflicts(at_once(create("A"), create("B"))) == ["duplicate"]
    assert list(ids_of(node)) == [Device.objects.get().device_tag]


@pytest.mark.django_db(transaction=True)
def test_creation_and_deletion_at_once_never_share_a_place():
    node, device_type = node_make(), device_type_make()
    for _ in range(5):
        device = inverter(node, device_type=device_type)
        results = at_once(
            partial(device_delete, device=device), partial(inverter, node, device_type=device_type)
        )
        # Either it was still there, or it was already retiring.
        assert conflicts(results) in (["duplicate"], ["retiring"])
        assert ids_of(node) == {}
        assert heard(node) == 1


@pytest.mark.django_db(transaction=True)
def test_report_that_arrives_while_the_device_is_created_anew_leaves_a_configuration_that_fits():
    node, device_type = node_make(), device_type_make()
    for _ in range(5):
        device_delete(device=inverter(node, device_type=device_type))
        node_online(node)
        close = partial(retired_record, node=Node.objects.get(pk=node.pk), reported=report_make(node))
        results = at_once(close, close, partial(inverter, node, device_type=device_type))
        assert sorted(results[:2]) == [0, 1]
        assert conflicts(results) in ([], ["retiring"])
        assert not RetiringDevice.objects.exists()
        assert ids_of(node) == {device.device_tag: str(device.config_id) for device in Device.objects.all()}
        for device in Device.objects.all():
            device_delete(device=device)
            heard(node)


@pytest.mark.django_db(transaction=True)
def test_devices_added_to_a_node_at_once_are_all_in_its_configuration():
    node, device_type = node_make(), device_type_make()
    at_once(
        *(
            partial(inverter, node, tag=f"INV_{number}", port=number, device_type=device_type)
            for number in range(1, 5)
        ),
        partial(site_update, site=node.site, curtailment_time_limit=77),
    )
    assert len(ids_of(node)) == 4
    assert config_of(node).site.curtailment_time_limit_s == 77


@pytest.mark.django_db(transaction=True)
def test_changes_of_every_kind_at_once_wait_for_each_other_and_none_is_lost():
    node, device_type = node_make(), device_type_make()
    there = node_make(site=node.site)
    first, second, third = (
        inverter(node, tag=f"INV_{port}", port=port, device_type=device_type) for port in (1, 2, 3)
    )
    for round_ in range(3):
        body = profile_body_make()
        body["points"]["limit"]["address"] = 40 + round_
        node_online(node)
        results = at_once(
            partial(device_update, device=first, default_value=50 + round_),
            partial(device_update, device=second, modbus_server_port=100 + round_),
            partial(device_move, device=third, node=there if round_ % 2 == 0 else node),
            partial(device_bound_set, device=first, origin="owner", by="operator", maximum=60 + round_),
            partial(device_type_update, device_type=device_type, profile_body=body),
            partial(site_update, site=node.site, curtailment_time_limit=10 + round_),
            partial(node_update, node=node, iothub=f"hub-{round_}"),
            partial(retired_record, node=Node.objects.get(pk=node.pk), reported=report_make(node)),
        )
        assert conflicts(results) == []
        config = config_of(node)
        assert config.site.curtailment_time_limit_s == 10 + round_
        assert config.profiles["test_inverter"] == body
        entries = {entry["tag"]: entry for entry in config.devices + config_of(there).devices}
        assert entries["INV_1"]["default_value"] == 50 + round_
        assert entries["INV_1"]["bounds"][0]["maximum"] == 60 + round_
        assert entries["INV_2"]["port"] == 100 + round_
        stored = {device.device_tag: str(device.config_id) for device in Device.objects.all()}
        assert {tag: entry["id"] for tag, entry in entries.items()} == stored


def test_two_devices_are_never_known_by_one_id():
    first, second = inverter(node_make(site=site_make())), inverter(node_make())
    assert isinstance(first.config_id, uuid.UUID)
    assert first.config_id != second.config_id
