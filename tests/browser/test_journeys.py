"""What an operator comes to the console for, from the login to the register of the device."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import SHOWN_IN_README, Desk
from tests.servers import until
from tests.system.test_demo import Register, RunningDemo

pytestmark = pytest.mark.system

SITE_A = "01751407-d87b-4d89-b47f-cca4dfb85a92"
INVERTER = "SMA_STP60_01"
AtDesk = Callable[[str], Desk]


@pytest.fixture
def register(demo: RunningDemo) -> Iterator[Register]:
    """The register that limits the inverter of site a."""
    found = Register(demo.device(INVERTER))
    yield found
    found.close()


def shown_in_readme(request: pytest.FixtureRequest, desk: Desk, name: str) -> None:
    desk.picture(name)
    if request.config.getoption("--write-screenshots"):
        SHOWN_IN_README.mkdir(parents=True, exist_ok=True)
        desk.page.screenshot(path=SHOWN_IN_README / f"{name}.png")


def curtail(page: Page, value: str, *, reason: str = "") -> None:
    """From a site's page to the page of the request, as an operator clicks."""
    page.get_by_role("link", name="Curtail", exact=True).click()
    page.get_by_role("combobox", name="Category").select_option("inverter")
    page.get_by_role("spinbutton", name="Value").fill(value)
    page.get_by_role("textbox", name="Reason").fill(reason)
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_text("would follow")).to_be_visible()
    page.get_by_role("button", name=re.compile("^Curtail 1 device")).click()
    page.wait_for_url(re.compile("/admin/request/"))


def release(page: Page) -> None:
    page.get_by_role("link", name="Release", exact=True).click()
    page.get_by_role("combobox", name="Category").select_option("inverter")
    page.get_by_role("button", name="Preview").click()
    page.get_by_role("button", name=re.compile("^Release 1 device")).click()
    page.wait_for_url(re.compile("/admin/request/"))
    expect(page.get_by_text("all follow")).to_be_visible()


def test_person_logs_in_sees_the_fleet_and_finds_a_site(request, at_desk: AtDesk):
    at = at_desk("viewer")
    page = at.page
    expect(page.get_by_role("heading", name="Holds running out")).to_be_visible()
    expect(page.get_by_role("heading", name="Nodes silent")).to_be_visible()
    shown_in_readme(request, at, "fleet")
    page.get_by_role("link", name=re.compile("solarpanel_site_a")).first.click()
    page.wait_for_url(re.compile(f"/admin/site/{SITE_A}/"))
    expect(page.get_by_role("heading", name=re.compile("Power, kW"))).to_be_visible()
    expect(page.get_by_role("row", name=re.compile(INVERTER))).to_contain_text("default")


def test_operator_curtails_sees_it_come_down_and_why_and_releases(
    request, at_desk: AtDesk, register: Register, demo: RunningDemo
):
    until(lambda: register.value() > 0, what="the node has not written the default", within_s=30)
    full = register.value()
    at = at_desk("operator")
    page = at.open(f"/admin/site/{SITE_A}/")
    curtail(page, "40", reason="called by the grid operator")
    expect(page.get_by_text("all follow")).to_be_visible()
    assert register.value() == pytest.approx(full * 0.4)
    # The way of the command, step by step.
    way = page.get_by_role("row", name=re.compile(INVERTER))
    expect(way).to_contain_text("follows")
    at.picture("request")
    page.get_by_role("link", name=INVERTER).click()
    page.wait_for_url(re.compile("/admin/device/"))
    expect(page.get_by_text("direct").first).to_be_visible()
    page.get_by_role("link", name=re.compile("Why")).first.click()
    expect(page.get_by_role("heading", name="1. Who asked")).to_be_visible()
    expect(page.get_by_text("called by the grid operator")).to_be_visible()
    shown_in_readme(request, at, "why")
    page = at.open(f"/admin/site/{SITE_A}/")
    expect(page.get_by_role("row", name=re.compile(INVERTER)).locator("[data-until]")).to_have_text(
        re.compile(r"\d+ s|\d+ min")
    )
    shown_in_readme(request, at, "site")
    release(page)
    until(lambda: register.value() == full, what="the release did not reach the register", within_s=20)


def test_open_page_of_a_site_hears_of_a_hold_that_a_program_asks_for(at_desk: AtDesk, demo: RunningDemo):
    page = at_desk("viewer").open(f"/admin/site/{SITE_A}/")
    row = page.get_by_role("row", name=re.compile(INVERTER))
    expect(row).to_contain_text("default")
    with demo.api() as api:
        asked = {"value": 60, "category": "inverter"}
        assert api.put(f"/sites/{SITE_A}/curtail-category", json=asked).json()["status"] == "success"
        expect(row).to_contain_text("60")
        expect(row).to_contain_text("direct")
        api.post(f"/sites/{SITE_A}/release", json={"category": "inverter"})
    expect(row).to_contain_text("default")


def test_power_above_the_limit_takes_the_sites_tag(at_desk: AtDesk, demo: RunningDemo):
    site = demo.device("SOLAREDGE_01")["site_id"]
    page = at_desk("operator").open(f"/admin/curtail/?site={site}")
    page.get_by_role("combobox", name="Category").select_option("inverter")
    page.get_by_role("spinbutton", name="Value").fill("100")
    page.get_by_role("button", name="Preview").click()
    page.get_by_role("button", name=re.compile("^Curtail")).click()
    typed = page.get_by_role("textbox", name=re.compile("^Type"))
    expect(typed).to_be_visible()
    expect(typed).to_have_attribute("aria-invalid", "true")


def test_viewer_is_offered_no_deed_and_is_refused_it(at_desk: AtDesk):
    page = at_desk("viewer").open(f"/admin/site/{SITE_A}/")
    expect(page.get_by_role("heading", name=re.compile("Power, kW"))).to_be_visible()
    expect(page.get_by_role("link", name="Curtail", exact=True)).to_have_count(0)
    answer = page.goto(f"{page.url.split('/admin/')[0]}/admin/curtail/?site={SITE_A}")
    assert answer is not None
    assert answer.status == 403


def test_operator_of_one_site_finds_no_other(at_desk: AtDesk, demo: RunningDemo):
    at = at_desk("local operator")
    expect(at.page.get_by_role("link", name=re.compile("solarpanel_site_a")).first).to_be_visible()
    expect(at.page.get_by_text("solarpanel_site_b")).to_have_count(0)
    other = next(device["site_id"] for device in demo.description["devices"] if device["site_id"] != SITE_A)
    answer = at.page.goto(f"{at.address}/admin/site/{other}/")
    assert answer is not None
    assert answer.status == 404


def test_alarm_is_acknowledged_with_a_note_for_the_next_shift(at_desk: AtDesk):
    at = at_desk("operator")
    page = at.open("/admin/alarms/")
    page.get_by_role("checkbox").first.check()
    page.get_by_label("Note").fill("fallback is armed on Thursday")
    page.get_by_role("button", name="Acknowledge chosen").click()
    expect(page.get_by_text("fallback is armed on Thursday")).to_be_visible()
    expect(page.get_by_text("acknowledged", exact=True).first).to_be_visible()
    at.picture("alarms")


def test_day_is_planned_and_its_node_confirms_it(at_desk: AtDesk):
    at = at_desk("operator")
    day = (datetime.now(UTC) + timedelta(days=2)).date()
    page = at.open(f"/admin/site/{SITE_A}/schedules/inverter/{day}/")
    page.get_by_role("textbox", name=re.compile("12:00")).first.fill("55")
    page.get_by_role("textbox", name=re.compile("12:15")).first.fill("45")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("textbox", name=re.compile("12:00")).first).to_have_value("55")
    expect(page.get_by_text("confirmed").first).to_be_visible(timeout=40_000)
    at.picture("schedule")


def test_engineer_enrols_a_node_by_a_command_that_is_shown_once(at_desk: AtDesk, demo: RunningDemo):
    at = at_desk("engineer")
    page = at.open(f"/admin/node/{demo.device(INVERTER)['node_id']}/")
    expect(page.get_by_text("healthy").first).to_be_visible()
    page.get_by_role("button", name="Enrol").click()
    expect(page.get_by_text(re.compile("edge enrol|edge.*enrol|enrol")).first).to_be_visible()
    at.picture("enrol")


def test_administrator_makes_a_token_and_the_log_knows_who_revealed_it(at_desk: AtDesk):
    at = at_desk("administrator")
    page = at.open("/admin/sites_app/managementtoken/add/")
    name = f"Billing {at.look}"
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text(re.compile(r"tok_[0-9a-f]{32}"))).to_be_visible()
    page = at.open("/admin/sites_app/managementtoken/")
    page.get_by_role("link", name=name).first.click()
    page.goto(page.url.replace("/change/", "/reveal/"))
    page.get_by_role("button", name=re.compile("show|reveal|value", re.IGNORECASE)).first.click()
    expect(page.get_by_text(re.compile(r"tok_[0-9a-f]{32}"))).to_be_visible()
    page = at.open("/admin/auditlog/logentry/")
    expect(page.get_by_text("reveal").first).to_be_visible()
    expect(page.get_by_text(re.compile(r"tok_[0-9a-f]{32}"))).to_have_count(0)


PAGES = {
    "fleet": "/admin/",
    "site": f"/admin/site/{SITE_A}/",
    "curtail": f"/admin/curtail/?site={SITE_A}",
    "alarms": "/admin/alarms/",
    "schedules": "/admin/schedules/",
    "sites": "/admin/sites_app/site/",
    "tokens": "/admin/sites_app/managementtoken/",
    "audit": "/admin/auditlog/logentry/",
}


def test_pages_can_be_used_by_everybody(at_desk: AtDesk, demo: RunningDemo):
    at = at_desk("administrator")
    device = demo.device(INVERTER)
    pages = {
        **PAGES,
        "device": f"/admin/device/{device['device_id']}/",
        "why": f"/admin/device/{device['device_id']}/why/",
        "node": f"/admin/node/{device['node_id']}/",
    }
    found = {}
    for name, path in pages.items():
        at.open(path)
        at.picture(f"page-{name}")
        if findings := at.findings():
            found[name] = findings
    assert found == {}
