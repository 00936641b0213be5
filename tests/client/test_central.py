"""The library against central itself: every list and object that it knows is what central sends."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.urls import include, path
from pytest_django import Settings as DjangoSettings

from sgm import Client, Conflict, Forbidden, NotFound, Settings, TokenRefused, Unauthorized
from sites_app.selectors import token_value
from smartgrid.issuer import issuer_client_create, issuer_urlpatterns
from smartgrid.issuer_keys import issuer_key_create
from tests.factories import (
    Story,
    control_log_make,
    device_error_make,
    loop_make,
    meter_make,
    story_make,
)

ROOT = "root-token-one-0123456789abcdef"
SECRET = "a secret of thirty-two characters or more"

pytestmark = [pytest.mark.usefixtures("database_of_threads"), pytest.mark.django_db(transaction=True)]


@pytest.fixture
def story(settings: DjangoSettings, tmp_path: Path) -> Story:
    """Central with its embedded issuer, which knows one client."""
    key = tmp_path / "issuer.pem"
    issuer_key_create(key)
    settings.SGM_ISSUER_KEY_FILE = str(key)
    settings.SGM_ISSUER_URL = "https://grid.example/"
    settings.SGM_AUDIENCE = "curtailment-api"
    settings.SGM_ISSUERS = []
    settings.SGM_ROOT_TOKENS = [ROOT]
    urls = ModuleType("urls")
    urls.urlpatterns = [*issuer_urlpatterns(), path("v1/", include("smartgrid.api.urls"))]  # type: ignore[attr-defined]
    settings.ROOT_URLCONF = urls
    issuer_client_create(name="Robot", client_id="robot", client_secret=SECRET)
    return story_make()


def settings_of(live_server: Any, **changes: str) -> Settings:
    given = {
        "api_url": f"{live_server.url}/v1",
        "token_url": f"{live_server.url}/oauth/token",
        "client_id": "robot",
        "client_secret": SECRET,
        "management_token": ROOT,
    }
    return Settings(**(given | changes))  # type: ignore[arg-type]


@pytest.fixture
def root(live_server: Any, story: Story, tmp_path: Path) -> Iterator[Client]:
    with Client(settings_of(live_server), cache=tmp_path / "cache", page=1) as client:
        yield client


@pytest.fixture
def holder_a(live_server: Any, story: Story, tmp_path: Path) -> Iterator[Client]:
    token = token_value(story.token_a)
    with Client(settings_of(live_server, management_token=token), cache=tmp_path / "cache") as client:
        yield client


def test_root_reads_all_there_is_page_by_page(root: Client, story: Story):
    assert root.ping()
    assert root.version().git_version
    assert {site.id for site in root.sites()} == {str(story.site_a.pk), str(story.site_b.pk)}
    assert {node.polaris_node_name for node in root.nodes()} == {"node-01", "node-02"}
    assert {device.device_tag for device in root.devices()} == {"SMA_STP60_01", "GENERIC_PV_01"}


def test_single_objects_have_what_lists_leave_out(root: Client, story: Story):
    assert root.site(str(story.site_a.pk)).curtailment_time_limit == 60
    assert root.node(str(story.node_a.pk)).configuration is not None
    assert root.device(str(story.device_a.pk)).modbus_server_host == "192.168.1.100"


def test_site_token_reads_its_site_alone(holder_a: Client, story: Story):
    assert [site.id for site in holder_a.sites()] == [str(story.site_a.pk)]
    assert holder_a.site_find("solarpanel_site_a").id == str(story.site_a.pk)
    assert holder_a.device_find("SMA_STP60_01", site_id=str(story.site_a.pk)).id == str(story.device_a.pk)
    assert list(holder_a.device_categories(str(story.site_a.pk))) == ["inverter"]
    with pytest.raises(NotFound):
        holder_a.site_find("solarpanel_site_b")
    with pytest.raises(NotFound):
        holder_a.site(str(story.site_b.pk))
    with pytest.raises(Forbidden):
        list(holder_a.tokens())


def test_logs_and_errors_are_read(root: Client, story: Story):
    control_log_make(site=story.site_a, value=40, watchdog=True)
    device_error_make(device=story.device_a, error="no answer")
    (line,) = root.logs(site_id=str(story.site_a.pk), watchdog=True, category="inverter")
    assert (line.value, line.watchdog, list(line.tags)) == (40, True, ["SMA_STP60_01"])
    assert root.logs(watchdog=False) == []
    (errors,) = root.device_errors(hours=1)
    assert errors.site_id == str(story.site_a.pk)
    assert errors.devices["SMA_STP60_01"].error_details[0].error == "no answer"


def test_telemetry_of_a_device_that_measured_nothing_is_empty(root: Client, story: Story):
    now = datetime.now(UTC)
    found = root.telemetry(
        device_id=str(story.device_a.pk),
        keys=["P_kW"],
        begins=now - timedelta(hours=1),
        ends=now,
        resolution="raw",
    )
    assert (found.resolution, found.series) == ("raw", ())
    assert found.ends - found.begins == timedelta(hours=1)
    assert root.telemetry(site_id=str(story.site_a.pk)).series == ()


def test_closed_loops_are_read(root: Client, story: Story):
    meter = meter_make(node=story.node_a)
    loop_make(meter=meter, loop_tag="OTHER")
    loop = loop_make(
        meter=meter_make(node=story.node_a), loop_tag="POC", members=[story.device_a], export_limit_kw=40
    )
    site = str(story.site_a.pk)
    assert [one.loop_tag for one in root.loops(site)] == ["OTHER", "POC"]
    found = root.loop(str(loop.pk))
    assert (found, found.export_limit_kw, found.live) == (root.loop_find("POC", site_id=site), 40, None)
    assert [(one.device_tag, one.nominal_kw) for one in found.members] == [("SMA_STP60_01", 60)]
    assert found.node.polaris_node_name == "node-01"
    with pytest.raises(NotFound):
        root.loop_find("NONE", site_id=site)


def test_plan_is_made_changed_and_taken_back(root: Client, story: Story):
    site, day = str(story.site_a.pk), datetime.now(UTC).date() + timedelta(days=1)
    made = root.schedule_create(site_id=site, category="inverter", valid_on=day, slots={"09:00": 50})
    with pytest.raises(Conflict):
        root.schedule_create(site_id=site, category="inverter", valid_on=day, slots={"09:00": 50})
    changed = root.schedule_replace(site_id=site, category="inverter", valid_on=day, slots={"09:00": 62.5})
    assert (changed.id, changed.schedule) == (made.id, {"09:00": 62.5})
    assert [one.id for one in root.schedules(site_id=site, category="inverter", valid_on=day)] == [made.id]
    assert list(root.schedules(valid_from=day + timedelta(days=1), valid_until=day + timedelta(days=9))) == []
    root.schedule_delete(made.id)
    assert list(root.schedules()) == []


def test_management_token_is_made_changed_and_deleted(root: Client, story: Story, live_server: Any):
    made = root.token_create(name="Park", sites=[str(story.site_a.pk)])
    with Client(settings_of(live_server, management_token=made.token or ""), keeps_token=False) as client:
        assert [site.id for site in client.sites()] == [str(story.site_a.pk)]
        changed = root.token_update(made.id, name="Park B", sites=[str(story.site_b.pk)])
        assert changed.name == "Park B"
        assert [site.id for site in client.sites()] == [str(story.site_b.pk)]
        root.token_delete(made.id)
        with pytest.raises(Unauthorized):
            client.ping()
    assert made.id not in {token.id for token in root.tokens()}


def test_site_is_provisioned(root: Client, story: Story):
    made = root.provision_sites.create({"site_tag": "new_site", "name": "New"})
    assert root.provision_sites.change(made["id"], curtailment_time_limit=90)["curtailment_time_limit"] == 90
    assert root.provision_sites.settings(made["id"])["name"] == "New"
    several = root.provision_sites.create_many([{"site_tag": f"s_{n}", "name": "S"} for n in range(3)])
    assert len(several) == 3
    root.provision_sites.delete(made["id"])
    with pytest.raises(NotFound):
        root.site(made["id"])


def test_unknown_client_is_refused_by_the_issuer(live_server: Any, story: Story):
    settings = settings_of(live_server, client_secret="x" * 40)
    with Client(settings, keeps_token=False) as client, pytest.raises(TokenRefused):
        client.ping()
