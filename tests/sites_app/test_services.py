from __future__ import annotations

import uuid

import pytest

from devices_app.models import RetiringDevice
from devices_app.retirement import device_abandon, retired_record
from devices_app.services import device_delete
from sites_app.models import Farewell, Node, Site
from sites_app.publishing import farewells_publish, node_messages
from sites_app.selectors import management_token_find, token_value
from sites_app.services import (
    node_create,
    node_delete,
    site_create,
    site_update,
    token_issue,
    token_revoke,
    token_update,
)
from sites_app.syncing import farewells_queue
from sites_app.tokens import TokenUnreadable
from smartgrid.errors import Conflict, Invalid
from tests.factories import device_make, node_make, node_online, report_make, site_make, token_make
from tests.sites_app.test_documents import Retained

pytestmark = pytest.mark.django_db


def test_second_site_with_the_tag_is_a_conflict():
    site_make(site_tag="same")
    with pytest.raises(Conflict) as refusal:
        site_create(site_tag="same", name="Another")
    assert refusal.value.code == "duplicate"


@pytest.mark.parametrize("seconds", [0, -1, 3601, None, 1.5, float("inf"), "often"])
def test_refused_watchdog_limit_keeps_the_previous_one(seconds):
    site = site_make(curtailment_time_limit=75)
    with pytest.raises(Invalid) as refusal:
        site_update(site=site, curtailment_time_limit=seconds)
    assert "curtailment_time_limit" in refusal.value.errors
    assert Site.objects.get(pk=site.pk).curtailment_time_limit == 75


def test_site_has_no_setpoint_throttle_unless_it_is_given_one():
    site = site_make()
    assert site.setpoint_throttle_s is None
    assert site_update(site=site, setpoint_throttle_s=5).setpoint_throttle_s == 5
    assert site_update(site=site, setpoint_throttle_s=None).setpoint_throttle_s is None


@pytest.mark.parametrize("seconds", [0, -1, 3601, 1.5, float("inf"), "often"])
def test_refused_setpoint_throttle_keeps_the_previous_one(seconds):
    site = site_make(setpoint_throttle_s=5)
    with pytest.raises(Invalid) as refusal:
        site_update(site=site, setpoint_throttle_s=seconds)
    assert "setpoint_throttle_s" in refusal.value.errors
    assert Site.objects.get(pk=site.pk).setpoint_throttle_s == 5


def test_time_limit_is_not_lowered_to_the_setpoint_throttle():
    site = site_make(curtailment_time_limit=60, setpoint_throttle_s=30)
    with pytest.raises(Invalid):
        site_update(site=site, curtailment_time_limit=30)
    assert Site.objects.get(pk=site.pk).curtailment_time_limit == 60


def test_site_keeps_its_tenant_for_life():
    site = site_make()
    with pytest.raises(Invalid):
        site_update(site=site, tenant_tag="tenant-456")  # type: ignore[call-arg]


def test_time_zone_must_exist():
    with pytest.raises(Invalid) as refusal:
        site_make(time_zone="Mars/Olympus")
    assert list(refusal.value.errors) == ["time_zone"]


def test_node_takes_the_tenant_of_its_site():
    site = site_make(tenant_tag="tenant-456")
    node = node_create(site=site, name="node-01")
    assert node.topics.base == f"sgm/v1/tenant-456/{node.pk}"


def test_second_node_with_the_name_is_a_conflict_in_the_whole_tenant():
    node_make(name="node-01")
    with pytest.raises(Conflict):
        node_make(name="node-01")


def test_objects_may_be_made_under_a_given_id():
    given = uuid.uuid4()
    assert site_make(id=given).pk == given
    with pytest.raises(Conflict):
        site_make(id=given)


def test_issued_token_is_found_by_its_value_and_told_again():
    token = token_issue(name="New Site Access", sites=[site_make()])
    value = token_value(token)
    assert value.startswith("tok_")
    assert len(value) == len("tok_") + 32
    assert management_token_find(value) == (token.pk, True)


def test_token_value_stands_nowhere_in_the_table_in_the_clear():
    value = "tok_" + "ab" * 16
    token = token_issue(name="Given", sites=[], value=value)
    assert "ab" * 16 not in token.encrypted + token.digest


@pytest.mark.parametrize(
    "value", ["", "tok_", "tok_" + "g" * 32, "tok_" + "A" * 32, " tok_" + "a" * 32, "x" * 9000]
)
def test_what_has_not_a_tokens_form_finds_nothing(value):
    assert management_token_find(value) is None
    with pytest.raises(Invalid):
        token_issue(name="Given", sites=[], value=value)


def test_revoked_token_finds_nothing_from_then_on():
    token = token_make()
    value = token_value(token)
    token_revoke(token=token)
    assert management_token_find(value) is None


def test_changed_token_keeps_its_value_and_opens_its_new_sites_only():
    old, new = site_make(), site_make()
    token = token_make(old)
    value = token_value(token)
    changed = token_update(token=token, name="Updated", sites=[new])
    assert token_value(changed) == value
    assert list(changed.sites.all()) == [new]


def test_token_stays_readable_when_a_new_key_comes_first(settings):
    token = token_make()
    value = token_value(token)
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [
        "q0tVvIsoRIXIhJ5nvSTnVJrX0GJ0XrRkcP1Ku9NyS9M=",
        *settings.SGM_TOKEN_ENCRYPTION_KEYS,
    ]
    assert token_value(token) == value
    settings.SGM_TOKEN_ENCRYPTION_KEYS = settings.SGM_TOKEN_ENCRYPTION_KEYS[:1]
    with pytest.raises(TokenUnreadable):
        token_value(token)


# --- the end of a node (rule 20) ----------------------------------------------------------------------------------------


def test_node_stays_while_it_has_a_device_or_one_that_retires():
    device = device_make(device_tag="INV_01")
    node = device.node
    with pytest.raises(Conflict, match="the device INV_01"):
        node_delete(node=node)
    device_delete(device=device)
    with pytest.raises(Conflict, match="INV_01, still retiring"):
        node_delete(node=node)
    node_online(node)
    retired_record(node=Node.objects.get(pk=node.pk), reported=report_make(node))
    node_delete(node=node)
    assert not Node.objects.filter(pk=node.pk).exists()


def test_node_that_never_comes_back_goes_once_each_of_its_devices_is_abandoned():
    devices = [device_make(node=node) for node in [node_make()] * 2]
    node = devices[0].node
    for device in devices:
        device_delete(device=device)
    first, second = RetiringDevice.objects.all()
    device_abandon(retiring=first, tag=first.device_tag, by="operator", why="burnt down")
    with pytest.raises(Conflict, match=second.device_tag):
        node_delete(node=node)
    device_abandon(retiring=second, tag=second.device_tag, by="operator", why="burnt down")
    node_delete(node=node)
    assert not RetiringDevice.objects.exists()


def test_deleted_node_that_comes_back_finds_whom_it_must_forget(django_capture_on_commit_callbacks):
    device = device_make()
    node = device.node
    device_delete(device=device)
    left = RetiringDevice.objects.get()
    device_abandon(retiring=left, tag=left.device_tag, by="operator", why="burnt down")
    expected, pk, topics = node_messages(node), node.pk, node.topics
    with django_capture_on_commit_callbacks() as callbacks:
        node_delete(node=node)
    # The row is there before anybody is told to look for it: a queue that is down loses nothing.
    assert Farewell.objects.get().node_id == pk
    assert farewells_queue in callbacks
    broker = Retained()
    assert farewells_publish(link=broker) == 1
    assert not Farewell.objects.exists()
    assert broker.order == ["config", "manifest"]
    node.pk = pk
    config = broker.document(node, "config")
    assert config.body["devices"] == []
    assert config.body["abandoned"] == [str(left.config_id)]
    assert broker.messages[topics.document("config")].decode() == expected["config"]
    assert broker.manifest(node).docs["config"].v == config.version
