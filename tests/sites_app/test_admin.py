from __future__ import annotations

import msgspec
import pytest
import time_machine
from django.contrib.auth.models import User
from django.test import Client

from devices_app.models import Device
from edge.wire.messages import Alarm
from schedules_app.models import Schedule
from sites_app.documents import manifest_for, node_document_drop, node_document_put
from sites_app.models import ManagementToken, Node, Site
from sites_app.publishing import nodes_publish, nodes_unpublished
from sites_app.selectors import token_value
from tests.factories import device_type_make, node_make, report_make, report_record, story_make
from tests.sites_app.test_documents import Retained

pytestmark = pytest.mark.django_db


@pytest.fixture
def story():
    return story_make()


@pytest.fixture
def operator():
    client = Client()
    client.force_login(User.objects.create_superuser("operator", "operator@example.com", "x"))
    return client


MODELS = [
    "sites_app/site",
    "sites_app/node",
    "sites_app/nodedocument",
    "sites_app/managementtoken",
    "devices_app/devicetype",
    "devices_app/device",
    "schedules_app/schedule",
]


@pytest.mark.parametrize("model", MODELS)
def test_every_list_opens_and_can_be_searched(operator, story, model):
    assert operator.get(f"/admin/{model}/").status_code == 200
    assert operator.get(f"/admin/{model}/?q=a").status_code == 200


def test_every_object_opens(operator, story):
    for path in (
        f"sites_app/site/{story.site_a.pk}",
        f"sites_app/node/{story.node_a.pk}",
        f"sites_app/nodedocument/{story.node_a.documents.get().pk}",
        f"sites_app/managementtoken/{story.token_a.pk}",
        f"devices_app/device/{story.device_a.pk}",
        f"devices_app/devicetype/{story.device_a.device_type_id}",
    ):
        assert operator.get(f"/admin/{path}/change/").status_code == 200


def test_nobody_enters_the_console_without_a_login():
    assert Client().get("/admin/sites_app/site/").status_code == 302


def site_form(site, **changes):
    return {
        "tenant_tag": site.tenant_tag,
        "site_tag": site.site_tag,
        "name": site.name,
        "curtailment_time_limit": site.curtailment_time_limit,
        "cyclic_write_timeout": site.cyclic_write_timeout,
        "time_zone": site.time_zone,
        "meta_data": "{}",
        **changes,
    }


def test_changed_limit_reaches_the_nodes(operator, story):
    operator.post(
        f"/admin/sites_app/site/{story.site_a.pk}/change/",
        site_form(story.site_a, curtailment_time_limit=120),
    )
    assert Site.objects.get(pk=story.site_a.pk).curtailment_time_limit == 120
    assert story.node_a.documents.get(name="config").body["site"]["curtailment_time_limit_s"] == 120


def test_setpoint_throttle_is_set_and_taken_away_in_the_form(operator, story):
    path = f"/admin/sites_app/site/{story.site_a.pk}/change/"
    operator.post(path, site_form(story.site_a, setpoint_throttle_s=10))
    assert Site.objects.get(pk=story.site_a.pk).setpoint_throttle_s == 10
    operator.post(path, site_form(story.site_a, setpoint_throttle_s=""))
    assert Site.objects.get(pk=story.site_a.pk).setpoint_throttle_s is None


def test_watchdog_of_zero_is_refused_in_the_form(operator, story):
    response = operator.post(
        f"/admin/sites_app/site/{story.site_a.pk}/change/", site_form(story.site_a, curtailment_time_limit=0)
    )
    assert response.status_code == 200
    assert Site.objects.get(pk=story.site_a.pk).curtailment_time_limit == 60


def test_added_site_node_and_device_are_made_by_their_services(operator, story):
    operator.post("/admin/sites_app/site/add/", site_form(Site(site_tag="new", name="New")))
    site = Site.objects.get(site_tag="new")
    response = operator.post(
        "/admin/sites_app/node/add/",
        {"site": site.pk, "name": "node-09", "meta_data": "{}", "configuration": "{}", "iothub": ""},
    )
    assert response.status_code == 302
    node = Node.objects.get(name="node-09")
    assert node.tenant_tag == site.tenant_tag
    form = {
        "node": node.pk,
        "device_type": device_type_make().pk,
        "device_tag": "NEW_01",
        "category": "inverter",
        "min_value": 0,
        "max_value": 100,
        "default_value": 100,
        "telemetry_s": 10,
        "meta_data": "{}",
        "modbus_server_host": "192.0.2.9",
        "modbus_server_port": 502,
        "modbus_id": 1,
        "include_in_curtailment": "on",
        "bounds-TOTAL_FORMS": 0,
        "bounds-INITIAL_FORMS": 0,
    }
    assert operator.post("/admin/devices_app/device/add/", form).status_code == 302
    device = Device.objects.get(device_tag="NEW_01")
    assert device.site == site
    assert [entry["tag"] for entry in node.documents.get(name="config").body["devices"]] == ["NEW_01"]

    # The refusal of a service is shown, and nothing is stored.
    response = operator.post("/admin/devices_app/device/add/", {**form, "device_tag": "NEW_02"}, follow=True)
    assert "There is such a device already" in response.content.decode()
    assert not Device.objects.filter(device_tag="NEW_02").exists()


def test_token_is_shown_once_to_its_maker_and_never_in_a_list_or_form(operator, story):
    response = operator.post(
        "/admin/sites_app/managementtoken/add/", {"name": "New", "sites": [story.site_a.pk]}, follow=True
    )
    token = ManagementToken.objects.get(name="New")
    value = token_value(token)
    assert value in response.content.decode()
    assert list(token.sites.all()) == [story.site_a]
    for path in ("", f"{token.pk}/change/", f"{token.pk}/history/"):
        page = operator.get(f"/admin/sites_app/managementtoken/{path}").content.decode()
        assert value not in page
        assert token.digest not in page


def test_deleted_token_opens_nothing(operator, story):
    operator.post(f"/admin/sites_app/managementtoken/{story.token_a.pk}/delete/", {"post": "yes"})
    assert not ManagementToken.objects.filter(pk=story.token_a.pk).exists()


@pytest.mark.parametrize("model", ["site", "nodedocument"])
def test_what_holds_up_others_cannot_be_deleted(operator, story, model):
    pk = {"site": story.site_a.pk, "nodedocument": story.node_a.documents.get().pk}[model]
    assert operator.post(f"/admin/sites_app/{model}/{pk}/delete/", {"post": "yes"}).status_code == 403


@time_machine.travel("2026-11-23T10:00:00Z")
def test_schedule_in_the_console_reaches_the_nodes_and_leaves_them(operator, story):
    form = {"site": story.site_a.pk, "category": "inverter", "valid_on": "2026-12-06"}
    operator.post("/admin/schedules_app/schedule/add/", {**form, "schedule": '{"09:00": 50}'})
    assert "schedule/2026-12-06/inverter" in manifest_for(story.node_a).docs
    operator.post(f"/admin/schedules_app/schedule/{Schedule.objects.get().pk}/delete/", {"post": "yes"})
    assert "schedule/2026-12-06/inverter" not in manifest_for(story.node_a).docs


def test_desired_state_can_be_published_again(operator, story, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks() as callbacks:
        operator.post(
            "/admin/sites_app/node/",
            {"action": "publish_again", "_selected_action": [story.node_a.pk, story.node_b.pk]},
        )
    assert len(callbacks) == 1
    assert set(nodes_unpublished()) == {story.node_a, story.node_b}


def test_node_with_devices_is_not_deleted_and_the_console_says_why(operator, story):
    path = f"/admin/sites_app/node/{story.node_a.pk}/delete/"
    page = operator.post(path, {"post": "yes"}, follow=True).content.decode()
    assert "still has the device SMA_STP60_01" in page
    chosen = {"action": "delete_selected", "_selected_action": [story.node_a.pk], "post": "yes"}
    page = operator.post("/admin/sites_app/node/", chosen, follow=True).content.decode()
    assert "still has the device SMA_STP60_01" in page
    assert Node.objects.filter(pk=story.node_a.pk).exists()


def test_node_without_devices_is_deleted(operator, story):
    node = node_make(site=story.site_a)
    assert operator.get(f"/admin/sites_app/node/{node.pk}/delete/").status_code == 200
    operator.post(f"/admin/sites_app/node/{node.pk}/delete/", {"post": "yes"})
    assert not Node.objects.filter(pk=node.pk).exists()


def test_alarms_of_a_node_are_seen_in_the_list(operator, story):
    alarms = (
        Alarm(code="clock_unsynced", detail="never since boot", since="2026-11-23T00:00:00Z"),
        Alarm(code="wear", detail="81 %", since="2026-11-23T00:00:00Z", device="SMA_STP60_01"),
    )
    report_record(story.node_a, report_make(story.node_a, alarms=alarms))
    page = operator.get("/admin/sites_app/node/").content.decode()
    assert "clock_unsynced, wear SMA_STP60_01" in page


# --- what is not where it should be -----------------------------------------------------------------------


UNSETTLED = "/admin/sites_app/unsettleddocument/"


@pytest.fixture
def settled(story):
    """Everything of both sites is published and applied, but for one schedule of site a."""
    for node in (story.node_a, story.node_b):
        nodes_publish(node_ids=[node.pk], link=Retained())
        report_record(node)
    node_document_put(node=story.node_a, name="schedule/2026-12-06/inverter", body={"slots": {}})
    return story


def rows(page: str) -> int:
    """How many rows a list of the console has."""
    return page.count('<tr class="data-row ')


def test_only_what_is_not_where_it_should_be_is_listed_with_node_site_and_since_when(operator, settled):
    page = operator.get(UNSETTLED).content.decode()
    assert rows(page) == 1
    for text in ("schedule/2026-12-06/inverter", "node-01", "solarpanel_site_a", "Pending", "version 3"):
        assert text in page
    report_record(settled.node_a)
    # Applied, and yet the broker does not hold it for the next start of the node.
    assert rows(operator.get(UNSETTLED).content.decode()) == 1
    nodes_publish(node_ids=[settled.node_a.pk], link=Retained())
    assert rows(operator.get(UNSETTLED).content.decode()) == 0


def test_what_a_node_cannot_use_is_listed_with_its_error(operator, settled):
    nodes_publish(node_ids=[settled.node_a.pk], link=Retained())
    report = report_make(settled.node_a)
    failed = {
        name: msgspec.structs.replace(document, status="failed", error="no such slot")
        for name, document in report.documents.items()
        if name != "config"
    }
    report_record(settled.node_a, report_make(settled.node_a, documents={**report.documents, **failed}))
    page = operator.get(UNSETTLED, {"status__exact": "failed"}).content.decode()
    assert rows(page) == 1
    assert "no such slot" in page
    assert rows(operator.get(UNSETTLED, {"status__exact": "pending"}).content.decode()) == 0


def test_what_is_not_where_it_should_be_can_be_chosen_by_site_and_from_its_node(operator, settled):
    site = {"node__site__id__exact": str(settled.site_b.pk)}
    assert rows(operator.get(UNSETTLED, site).content.decode()) == 0
    link = f"{UNSETTLED}?node__id__exact={settled.node_a.pk}"
    form = operator.get(f"/admin/sites_app/node/{settled.node_a.pk}/change/").content.decode()
    assert f'<a href="{link}">1 documents</a>' in form
    assert rows(operator.get(link).content.decode()) == 1


def test_dropped_document_is_listed_until_the_broker_was_told(operator, settled):
    nodes_publish(node_ids=[settled.node_a.pk], link=Retained())
    node_document_drop(node=settled.node_a, name="schedule/2026-12-06/inverter")
    assert "taken away" in operator.get(UNSETTLED).content.decode()
    nodes_publish(node_ids=[settled.node_a.pk], link=Retained())
    assert rows(operator.get(UNSETTLED).content.decode()) == 0


def test_list_of_what_is_not_where_it_should_be_takes_the_same_queries_however_long(
    operator, settled, django_assert_num_queries
):
    with django_assert_num_queries(7):
        operator.get(UNSETTLED)
    for day in range(7, 20):
        node_document_put(node=settled.node_b, name=f"schedule/2026-12-{day:02}/inverter", body={})
    with django_assert_num_queries(7):
        assert rows(operator.get(UNSETTLED).content.decode()) == 14


def test_node_is_moved_in_the_console_once_nothing_keeps_it(operator, story):
    node = node_make(site=story.site_a, name="node-03")
    form = {
        "name": "node-03",
        "site": story.site_b.pk,
        "meta_data": "{}",
        "configuration": "{}",
        "curtail_in_batch": "on",
    }
    operator.post(f"/admin/sites_app/node/{node.pk}/change/", form)
    assert Node.objects.get(pk=node.pk).site_id == story.site_b.pk
    path = f"/admin/sites_app/node/{story.node_a.pk}/change/"
    page = operator.post(path, {**form, "name": "node-01"}, follow=True).content.decode()
    assert "cannot be moved: it still has the device SMA_STP60_01" in page
    assert Node.objects.get(pk=story.node_a.pk).site_id == story.site_a.pk
