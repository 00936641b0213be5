"""The fleet page shows what is wrong first, of a person's own sites only, whatever is down."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from sites_app.models import Alarm, AlarmSeverity
from smartgrid import live
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
    device_make,
    node_make,
    node_online,
    site_make,
    story_make,
)

__all__ = ["live_redis", "no_redis", "process"]

pytestmark = pytest.mark.django_db

FLEET = "/admin/"


@pytest.fixture
def story() -> Story:
    made = story_make()
    node_online(made.node_a)
    node_online(made.node_b)
    return made


def page(client: Client, query: str = "") -> str:
    response = client.get(f"{FLEET}{query}")
    assert response.status_code == 200
    return response.content.decode()


@pytest.mark.usefixtures("no_redis")
def test_person_sees_the_sites_of_their_scope_and_nothing_of_others(story: Story) -> None:
    commanded(story.device_b)
    alarm_make(site=story.site_b, is_over=False)

    text = page(client_as("Viewer", story.site_a))

    assert story.site_a.site_tag in text
    assert story.site_b.site_tag not in text
    assert story.device_b.device_tag not in text
    assert "No alarm is open." in text


@pytest.mark.usefixtures("no_redis")
def test_whoever_has_no_site_is_told_what_to_do() -> None:
    assert "You see no site. Ask an administrator" in page(client_as("Viewer"))


@pytest.mark.usefixtures("no_redis")
def test_worst_site_stands_first(story: Story) -> None:
    silent = node_make(site=site_make(site_tag="zz_silent")).site
    ill = node_make(site=site_make(site_tag="zy_ill"))
    node_online(ill)
    Alarm.objects.create(code="not_followed", severity=AlarmSeverity.ERROR, site=ill.site)
    alarm_make(site=story.site_b, is_over=False)

    table = page(client_of_all_sites("Viewer"), "?part=sites")

    tags = [silent.site_tag, ill.site.site_tag, story.site_b.site_tag, story.site_a.site_tag]
    places = [table.index(f">{tag}<") for tag in tags]
    assert places == sorted(places)
    for state in ("node silent", "error", "warning", "all well"):
        assert f">{state}<" in table


@pytest.mark.usefixtures("no_redis")
def test_text_narrows_sites_and_all_that_is_told_of_them(story: Story) -> None:
    commanded(story.device_b)

    text = page(client_of_all_sites("Viewer"), "?q=SITE_A")

    assert story.site_a.site_tag in text
    assert story.site_b.site_tag not in text
    assert story.device_b.device_tag not in text


@pytest.mark.usefixtures("no_redis")
def test_text_that_no_site_has_leads_back_to_all_sites(story: Story) -> None:
    assert "Show all sites" in page(client_of_all_sites("Viewer"), "?q=nowhere")


@pytest.mark.usefixtures("no_redis")
def test_text_of_a_filter_is_escaped(story: Story) -> None:
    text = page(client_of_all_sites("Viewer"), "?q=%22%3E%3Cscript%3Ealert(1)")

    assert "<script>alert(1)" not in text


@pytest.mark.usefixtures("live_redis")
def test_power_now_stands_beside_commanded_power(story: Story) -> None:
    now = timezone.now()
    measured(story.device_a, (now, 12.5))
    commanded(story.device_a, value=50)

    table = page(client_as("Viewer", story.site_a), "?part=sites")

    assert "12.5 kW" in table
    # Half of a nameplate of 60 kW.
    assert "30.0 kW" in table


@pytest.mark.usefixtures("live_redis")
def test_power_of_long_ago_is_not_shown_as_power_now(story: Story) -> None:
    measured(story.device_a, (timezone.now() - timedelta(minutes=20), 12.5))

    assert "12.5 kW" not in page(client_as("Viewer", story.site_a))


@pytest.mark.usefixtures("no_redis")
def test_fleet_is_shown_without_redis_and_says_what_is_not_known(story: Story) -> None:
    text = page(client_of_all_sites("Viewer"))

    assert "not known: Redis does not answer" in text
    assert story.site_a.site_tag in text


@pytest.mark.usefixtures("no_redis")
def test_hold_counts_down_by_the_servers_clock(story: Story) -> None:
    command = commanded(story.device_a, holds_s=50)
    ends = (command.request.created_at + timedelta(seconds=50)).timestamp()

    part = page(client_of_all_sites("Viewer"), "?part=attention")

    assert f'data-until="{ends:.0f}"' in part
    assert "data-now=" in part
    assert story.device_a.device_tag in part


@pytest.mark.usefixtures("no_redis")
def test_silent_node_is_named(story: Story) -> None:
    node = node_make(site=story.site_a, name="node-lost")

    part = page(client_of_all_sites("Viewer"), "?part=attention")

    assert node.name in part
    assert "never heard" in part


@pytest.mark.usefixtures("no_redis")
def test_error_stands_before_a_newer_warning(story: Story) -> None:
    Alarm.objects.create(
        code="store_failed",
        severity=AlarmSeverity.ERROR,
        site=story.site_a,
        raised_at=timezone.now() - timedelta(hours=1),
    )
    alarm_make(site=story.site_b, is_over=False)

    part = page(client_of_all_sites("Viewer"), "?part=attention")

    assert part.index("store_failed") < part.index("solarpanel_site_b")


@pytest.mark.usefixtures("no_redis")
def test_part_is_no_whole_page(story: Story) -> None:
    part = page(client_of_all_sites("Viewer"), "?part=overview")

    assert "<html" not in part
    assert "Power now" in part


@pytest.mark.usefixtures("no_redis")
def test_sites_come_two_hundred_a_page() -> None:
    for number in range(201):
        site_make(site_tag=f"park_{number:03}")
    client = client_of_all_sites("Viewer")

    first, second = page(client, "?part=sites"), page(client, "?part=sites&page=2")

    assert first.count('<th scope="row">') == 200
    assert second.count('<th scope="row">') == 1
    assert "Page 1 of 2" in first


@pytest.mark.usefixtures("no_redis")
def test_whoever_is_not_logged_in_is_sent_to_do_so() -> None:
    response = Client().get(FLEET)

    assert response.status_code == 302
    assert reverse("admin:login") in response.headers["Location"]


@pytest.mark.parametrize("sites", [1, 8])
@pytest.mark.usefixtures("live_redis")
def test_fleet_costs_as_many_queries_for_many_sites_as_for_one(sites: int) -> None:
    for _ in range(sites):
        node = node_make()
        node_online(node)
        devices = [device_make(node=node, peak_power_kw=10) for _ in range(2)]
        commanded(*devices)
        node_make(site=node.site)
        alarm_make(site=node.site, is_over=False)
    client = client_of_all_sites("Viewer")
    page(client)

    with CaptureQueriesContext(connection) as queries:
        page(client)

    told = [query["sql"] for query in queries]
    # (Slots are asked for once, and twice in the five minutes before the next one.)
    ours = [sql for sql in told if '"sites_app_nodedocument"' not in sql]
    assert len(ours) == FLEET_QUERIES, "\n".join(ours)
    assert len(told) - len(ours) <= 2


# Session, person, scope, permissions (2); alarms and nodes of sites, sites, devices, holds (4), silent nodes,
# alarms.
FLEET_QUERIES = 15


@pytest.mark.usefixtures("live_redis")
def test_reading_that_cannot_be_read_costs_its_device_alone(story: Story) -> None:
    now = timezone.now()
    measured(story.device_a, (now, 12.5))
    measured(story.device_b, (now, 7.25))
    live.client().hset(f"sgm:site:{story.site_a.pk}:latest", f"{story.device_a.pk}/P_kW", "not a reading")

    table = page(client_of_all_sites("Viewer"), "?part=sites")

    assert "7.2 kW" in table
