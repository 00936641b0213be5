"""The page of a site: who holds its devices, what was measured there, and what central cannot know."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from devices_app.models import ClosedLoop
from sites_app.models import Site
from tests.console.control_room import (
    client_as,
    client_of_all_sites,
    commanded,
    measured,
    no_redis,
    process,
)
from tests.control_app.conftest import live_redis
from tests.factories import (
    Story,
    alarm_make,
    control_log_make,
    device_make,
    loop_make,
    meter_make,
    node_make,
    node_online,
    story_make,
)

__all__ = ["live_redis", "no_redis", "process"]

pytestmark = pytest.mark.django_db


@pytest.fixture
def story() -> Story:
    made = story_make()
    node_online(made.node_a)
    return made


def page(client: Client, site: Site, query: str = "") -> str:
    response = client.get(f"{reverse('admin:console_site', args=[site.pk])}{query}")
    assert response.status_code == 200
    return response.content.decode()


def curve(client: Client, site: Site, span: str = "hour") -> Any:
    response = client.get(reverse("admin:console_site_curve", args=[site.pk]), {"span": span})
    assert response.status_code == 200
    told: dict[str, Any] = response.json()
    return told


@pytest.mark.parametrize("name", ["console_site", "console_site_curve"])
@pytest.mark.usefixtures("no_redis")
def test_site_out_of_scope_is_not_found(story: Story, name: str) -> None:
    client = client_as("Viewer", story.site_a)

    assert client.get(reverse(f"admin:{name}", args=[story.site_a.pk])).status_code == 200
    assert client.get(reverse(f"admin:{name}", args=[story.site_b.pk])).status_code == 404
    assert client.get(reverse(f"admin:{name}", args=[uuid.uuid4()])).status_code == 404


@pytest.mark.usefixtures("no_redis")
def test_whoever_may_not_view_sites_is_refused(story: Story) -> None:
    client = client_as("Viewer", story.site_a)
    User.objects.get().groups.clear()

    assert client.get(reverse("admin:console_site", args=[story.site_a.pk])).status_code == 403


@pytest.mark.usefixtures("no_redis")
def test_site_is_shown_without_redis_and_says_what_is_not_known(story: Story) -> None:
    text = page(client_of_all_sites("Viewer"), story.site_a)

    assert "Measured powers are not known now" in text
    assert "As last recorded: Redis does not answer" in text
    assert story.device_a.device_tag in text


@pytest.mark.usefixtures("live_redis")
def test_measured_power_stands_with_its_device(story: Story) -> None:
    measured(story.device_a, (timezone.now(), 21.5))

    assert "21.5 kW" in page(client_of_all_sites("Viewer"), story.site_a, "?part=devices")


@pytest.mark.usefixtures("live_redis")
def test_old_reading_is_told_with_its_age(story: Story) -> None:
    measured(story.device_a, (timezone.now() - timedelta(minutes=5), 21.5))

    part = page(client_of_all_sites("Viewer"), story.site_a, "?part=devices")

    assert "5\xa0minutes ago" in part


@pytest.mark.usefixtures("no_redis")
def test_held_device_shows_its_source_and_counts_down(story: Story) -> None:
    command = commanded(story.device_a, holds_s=50)
    ends = (command.request.created_at + timedelta(seconds=50)).timestamp()

    part = page(client_of_all_sites("Viewer"), story.site_a, "?part=devices")

    assert ">direct<" in part
    assert f'data-until="{ends:.0f}"' in part


@pytest.mark.usefixtures("no_redis")
def test_source_behind_a_silent_node_is_not_known(story: Story) -> None:
    story.device_b.value = story.device_b.default_value
    story.device_b.save()

    part = page(client_of_all_sites("Viewer"), story.site_b, "?part=devices")

    assert ">not known<" in part
    assert ">default<" not in part


@pytest.mark.usefixtures("live_redis")
def test_node_that_fell_silent_a_moment_ago_makes_the_site_silent(story: Story) -> None:
    # (The database still has it as online; Redis has heard nothing of it.)
    text = page(client_of_all_sites("Viewer"), story.site_a)

    assert ">node silent<" in text
    assert "not heard lately" in text
    assert ">all well<" not in text


@pytest.mark.usefixtures("no_redis")
def test_curtail_is_offered_to_those_who_may_only_if_there_is_such_a_page(story: Story) -> None:
    head = page(client_of_all_sites("Viewer"), story.site_a, "?part=head")

    assert "Curtail" not in head


@pytest.mark.usefixtures("no_redis")
def test_alarm_and_log_of_the_site_are_shown_and_no_others(story: Story) -> None:
    alarm_make(site=story.site_a, is_over=False)
    control_log_make(site=story.site_a, value=33, reason="too much sun")
    control_log_make(site=story.site_b, value=44, reason="elsewhere")

    text = page(client_of_all_sites("Viewer"), story.site_a)

    assert "<strong>test</strong>" in text
    assert "too much sun" in text
    assert "elsewhere" not in text


@pytest.mark.usefixtures("no_redis")
def test_what_clients_wrote_is_escaped(story: Story) -> None:
    control_log_make(site=story.site_a, reason="<script>alert(1)</script>")

    assert "<script>alert(1)" not in page(client_of_all_sites("Viewer"), story.site_a)


@pytest.mark.usefixtures("no_redis")
def test_loop_of_which_nothing_was_told_is_not_known() -> None:
    loop: ClosedLoop = loop_make()

    part = page(client_of_all_sites("Viewer"), loop.site, "?part=around")

    assert loop.loop_tag in part
    assert "Its node has told nothing lately." in part


@pytest.mark.usefixtures("no_redis")
def test_list_of_sites_leads_to_the_page_of_each(story: Story) -> None:
    text = client_of_all_sites("Viewer").get(reverse("admin:sites_app_site_changelist")).content.decode()

    assert reverse("admin:console_site", args=[story.site_a.pk]) in text


@pytest.mark.parametrize("devices", [1, 12])
@pytest.mark.usefixtures("live_redis")
def test_site_costs_as_many_queries_for_many_devices_as_for_one(devices: int) -> None:
    node = node_make()
    node_online(node)
    commanded(*[device_make(node=node, peak_power_kw=10) for _ in range(devices)])
    client = client_of_all_sites("Viewer")
    page(client, node.site)

    with CaptureQueriesContext(connection) as queries:
        page(client, node.site)

    assert len(queries) == SITE_QUERIES, "\n".join(query["sql"][:150] for query in queries)


# Session, person, permissions (2), scope, site; nodes and alarms, devices, holds (4), nodes, loops, schedules,
# alarms, log.
SITE_QUERIES = 18


# --- the curve -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_redis")
def test_curve_has_a_gap_where_nothing_was_measured(story: Story) -> None:
    now = timezone.now()
    measured(story.device_a, *[(now - timedelta(seconds=s), 10.0) for s in (2400, 2390, 10)])

    told = curve(client_of_all_sites("Viewer"), story.site_a)

    known = [place for place, value in enumerate(told["devices"]) if value is not None]
    assert len(known) < 6
    assert len(told["at"]) == len(told["devices"]) == len(told["commanded"]) == len(told["counted"])
    assert "Nothing was measured in" in told["summary"]


@pytest.mark.usefixtures("no_redis")
def test_curve_of_a_site_with_a_meter_has_the_power_at_its_connection(story: Story) -> None:
    meter = meter_make(node=story.node_a)
    now = timezone.now()
    measured(meter, (now - timedelta(seconds=40), -5.0))
    measured(story.device_a, (now - timedelta(seconds=40), 20.0))

    told = curve(client_of_all_sites("Viewer"), story.site_a)

    assert -5.0 in told["meter"]
    assert 20.0 in told["devices"]
    assert told["expected"] == 1


@pytest.mark.usefixtures("no_redis")
def test_curve_without_devices_says_that_nothing_was_measured(story: Story) -> None:
    empty = node_make().site

    told = curve(client_of_all_sites("Viewer"), empty)

    assert set(told["devices"]) == {None}
    assert "nothing was measured" in told["summary"]


@pytest.mark.parametrize(("span", "step_s"), [("hour", 30), ("day", 900), ("week", 3600)])
@pytest.mark.usefixtures("no_redis")
def test_curve_of_each_span_has_its_step(story: Story, span: str, step_s: float) -> None:
    told = curve(client_of_all_sites("Viewer"), story.site_a, span)

    assert told["step_s"] == step_s
    assert told["zone"] == story.site_a.time_zone


@pytest.mark.usefixtures("no_redis")
def test_unknown_span_is_refused_with_those_there_are(story: Story) -> None:
    response = client_of_all_sites("Viewer").get(
        reverse("admin:console_site_curve", args=[story.site_a.pk]), {"span": "year"}
    )

    assert response.status_code == 400
    assert "hour, day, week" in response.json()["error"]
