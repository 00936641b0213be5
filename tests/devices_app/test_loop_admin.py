"""Closed loops in the console: the form with the service's refusals, how a loop stands, and the ways to it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client

from devices_app.loop_live import loops_live_follow
from devices_app.models import ClosedLoop, Device
from edge.wire.messages import Heartbeat, LoopStatus
from sites_app.models import SiteScope
from sites_app.presence import ReceivedHeartbeat
from smartgrid import live
from tests.factories import (
    Story,
    device_make,
    loop_make,
    meter_make,
    node_make,
    node_online,
    report_make,
    report_record,
    story_make,
)

pytestmark = pytest.mark.django_db

LIST = "/admin/devices_app/closedloop/"
ADD = f"{LIST}add/"


@pytest.fixture
def story() -> Story:
    return story_make()


@pytest.fixture
def meter(story: Story) -> Device:
    return meter_make(node=story.node_a, device_tag="METER_01")


@pytest.fixture
def loop(story: Story, meter: Device) -> ClosedLoop:
    return loop_make(meter=meter, loop_tag="POC", members=[story.device_a], export_limit_kw=40)


def typed(meter: Device, *members: Device, **fields: Any) -> dict[str, Any]:
    """What somebody types who describes a loop."""
    return {
        "loop_tag": "POC",
        "enabled": "on",
        "meter": meter.pk,
        "member_devices": [device.pk for device in members],
        "category": "",
        "mode": "limit",
        "setpoint_kw": "",
        "export_limit_kw": "",
        "import_limit_kw": "",
        "feed_forward": "on",
        "kp": 0.3,
        "ki": 0.15,
        "kd": 0,
        "max_rate_pct_per_s": 100,
        "deadband_kw": 0,
        "time_step_s": 1,
        "stale_after_s": 10,
        "fallback_pct": "",
        **fields,
    }


def page_of(client: Client, path: str) -> str:
    response = client.get(path)
    assert response.status_code == 200
    return response.content.decode()


def change_path(loop: ClosedLoop) -> str:
    return f"{LIST}{loop.pk}/change/"


def test_new_loop_is_first_asked_for_its_site(admin_client, story):
    page = page_of(admin_client, ADD)
    assert "at which site?" in page
    assert "solarpanel_site_a" in page
    for query in ("?site=nonsense", f"?site={story.node_a.pk}"):
        assert "at which site?" in page_of(admin_client, ADD + query)


def test_form_offers_meters_and_devices_of_the_site_alone(admin_client, story, meter):
    meter_make(node=story.node_b, device_tag="METER_B")
    page = page_of(admin_client, f"{ADD}?site={story.site_a.pk}")
    assert "METER_01 (node-01)" in page
    assert "SMA_STP60_01 (node-01, 60 kW)" in page
    assert "METER_B" not in page
    assert "GENERIC_PV_01" not in page


def test_loop_is_created_changed_and_deleted_under_the_operators_name(admin_client, story, meter, caplog):
    path = f"{ADD}?site={story.site_a.pk}"
    admin_client.post(path, typed(meter, story.device_a, export_limit_kw="40"))
    loop = ClosedLoop.objects.get()
    assert (loop.loop_tag, loop.export_limit_kw, loop.node) == ("POC", 40, story.node_a)
    admin_client.post(change_path(loop), typed(meter, category="inverter", kp="0.5"))
    changed = ClosedLoop.objects.get()
    assert (changed.kp, changed.export_limit_kw, changed.category) == (0.5, None, "inverter")
    assert not changed.named.exists()
    admin_client.post(f"{LIST}{loop.pk}/delete/", {"post": "yes"})
    assert not ClosedLoop.objects.exists()
    told = [record.getMessage() for record in caplog.records if "'loop_" in record.getMessage()]
    assert len(told) == 3
    assert all("'by': 'admin'" in line for line in told)
    assert LogEntry.objects.count() == 3


def test_what_the_service_refuses_stands_at_its_field_and_nothing_is_stored(admin_client, story, meter):
    far = device_make(node=node_make(site=story.site_a), device_tag="FAR", peak_power_kw=10)
    response = admin_client.post(
        f"{ADD}?site={story.site_a.pk}", typed(meter, far, stale_after_s="0.5", kp="-1")
    )
    errors = response.context["adminform"].form.errors
    assert errors.keys() >= {"kp", "stale_after_s"}
    response = admin_client.post(f"{ADD}?site={story.site_a.pk}", typed(meter, far))
    (text,) = response.context["adminform"].form.errors["member_devices"]
    assert text.startswith("FAR is not at node-01")
    assert not ClosedLoop.objects.exists()


def test_loop_that_is_in_anothers_way_is_refused_in_the_form(admin_client, story, meter, loop):
    response = admin_client.post(
        f"{ADD}?site={story.site_a.pk}", typed(meter, story.device_a, loop_tag="OTHER")
    )
    assert response.context["adminform"].form.errors.keys() == {"meter", "member_devices"}
    other = meter_make(node=story.node_a)
    member = device_make(node=story.node_a, peak_power_kw=10)
    response = admin_client.post(f"{ADD}?site={story.site_a.pk}", typed(other, member))
    assert response.context["adminform"].form.errors.keys() == {"loop_tag"}


def test_page_shows_how_the_loop_stands(live_redis, admin_client, loop, story):
    live.client().flushdb()
    device_make(node=story.node_a, device_tag="PV_02", peak_power_kw=10)
    status = LoopStatus(
        id=str(loop.pk),
        tag="POC",
        stand="limiting",
        since="2026-11-23T12:00:00Z",
        setpoint_kw=40.0,
        measured_kw=38.25,
        output_kw=48.25,
        reason="less sun than asked for <&>",
        members={"SMA_STP60_01": 80.5},
    )
    beat = Heartbeat(session="s", seq=1, mono_ms=0, wall="", fresh="", loops=(status,))
    loops_live_follow([ReceivedHeartbeat(str(story.node_a.pk), beat, time.time())])
    page = page_of(admin_client, change_path(loop))
    for shown in ("limiting", "38.25 kW", "40 kW", "80.50 %", "less sun than asked for &lt;&amp;&gt;"):
        assert shown in page
    assert "2026-11-23 12:00:00" in page


def test_page_claims_nothing_where_nothing_was_told(no_redis, admin_client, loop):
    page = page_of(admin_client, change_path(loop))
    assert "told nothing of it in the last 30 s" in page
    assert "nobody can tell now" in page
    assert "not known now" in page


def test_page_says_why_the_node_cannot_use_it_and_who_is_left_out(no_redis, admin_client, story, meter):
    device_make(node=story.node_a, device_tag="PV_UNRATED")
    loop = loop_make(meter=meter, loop_tag="POC", category="inverter")
    node_online(story.node_a)
    report_record(story.node_a, report_make(story.node_a, loops_refused={"POC": "its meter is unknown"}))
    page = page_of(admin_client, change_path(loop))
    assert "cannot use it: its meter is unknown" in page
    assert "PV_UNRATED" in page
    assert "give its peak_power_kw" in page


def test_who_may_only_look_sees_the_loop_and_changes_nothing(no_redis, client, loop, meter, story):
    viewer = User.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_closedloop"))
    SiteScope.objects.create(user=viewer, all_sites=True)
    client.force_login(viewer)
    page = page_of(client, change_path(loop))
    assert "SMA_STP60_01" in page
    assert client.post(change_path(loop), typed(meter, story.device_a, kp="9")).status_code == 403
    assert client.get(f"{ADD}?site={story.site_a.pk}").status_code == 403
    assert ClosedLoop.objects.get().kp == 0.3


def test_site_and_devices_lead_to_their_loops(admin_client, loop, meter, story):
    listed = f"{LIST}?site__id__exact={story.site_a.pk}"
    assert listed in page_of(admin_client, f"/admin/sites_app/site/{story.site_a.pk}/change/")
    assert "POC" in page_of(admin_client, listed)
    for device in (meter, story.device_a):
        assert change_path(loop) in page_of(admin_client, f"/admin/devices_app/device/{device.pk}/change/")
    other = f"/admin/devices_app/device/{story.device_b.pk}/change/"
    assert change_path(loop) not in page_of(admin_client, other)


def test_device_that_a_loop_needs_is_not_deleted_in_the_console(admin_client, loop, story):
    path = f"/admin/devices_app/device/{story.device_a.pk}/delete/"
    assert "POC" in admin_client.post(path, {"post": "yes"}, follow=True).content.decode()
    assert Device.objects.filter(pk=story.device_a.pk).exists()
