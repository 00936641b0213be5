"""An operator at the console: Debian's Chromium before a whole running demo.

What is looked for has a role and a label, as a person or a screen reader finds it. No page may ask a foreign host
for anything, nor log an error. Pictures are kept in `var/browser/`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

from smartgrid.console.roles import Role
from tests.npm import NodeMissingError, modules_of, node_and_npm
from tests.system.test_demo import RunningDemo, start, until_ended, until_ready

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "var" / "browser"
SHOWN_IN_README = ROOT / "docs" / "screenshots"
PASSWORD = "right horse, right battery"
# What a page may be slow to show on a machine that also runs sixty devices.
WITHIN_MS = 20_000
LOOKS = {
    "wide-light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "wide-dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "tablet-light": {"viewport": {"width": 768, "height": 1024}, "color_scheme": "light"},
    "tablet-dark": {"viewport": {"width": 768, "height": 1024}, "color_scheme": "dark"},
}
# Serious or worse, by the rules of WCAG 2.2 AA.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "look" in metafunc.fixturenames:
        looks = list(LOOKS) if metafunc.config.getoption("--every-look") else ["wide-light"]
        metafunc.parametrize("look", looks, scope="session")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path | None) -> Iterator[RunningDemo]:
    directory = tmp_path_factory.mktemp("console")
    var, output = directory / "var", directory / "output"
    process = start(
        var,
        output=output,
        database=migrated_database,
        SGM_TIME_LIMIT="60",
        SGM_CONSOLE_SECOND_FACTOR="off",
    )
    try:
        yield RunningDemo(description=until_ready(process, var, output), output=output)
        process.send_signal(signal.SIGTERM)
    finally:
        until_ended(process)


@pytest.fixture(scope="session")
def address(demo: RunningDemo) -> str:
    """Where the console is, without what follows /admin/."""
    split = urlsplit(demo.description["admin_url"])
    return f"{split.scheme}://{split.netloc}"


@pytest.fixture(scope="package")
def chromium(demo: RunningDemo) -> Iterator[Browser]:
    """Runs as long as this folder's tests: Playwright keeps a loop running, beside which others' cannot.

    Database and demo are there before it, for Django too refuses to be asked beside a loop.
    """
    program = shutil.which("chromium")
    assert program, "Chromium is not installed: `apt-get install chromium`, or `make services` as root"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            # Nothing but this machine can be found, so that whoever tries is noticed.
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe() -> str:
    try:
        _, npm = node_and_npm()
        return (modules_of(Path(__file__).parent, npm) / "axe-core" / "axe.min.js").read_text()
    except NodeMissingError as error:
        pytest.skip(f"ACCESSIBILITY IS NOT JUDGED: {error}")


@dataclass
class Desk:
    """A browser window of one person, and what it did that it should not."""

    address: str
    page: Page
    look: str
    axe: Callable[[], str]
    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, path: str) -> Page:
        self.page.goto(f"{self.address}{path}")
        return self.page

    def log_in(self, name: str, password: str = PASSWORD) -> Page:
        page = self.open("/admin/")
        page.get_by_label("Username").fill(name)
        page.get_by_label("Password").first.fill(password)
        page.get_by_role("button", name=re.compile("log in", re.IGNORECASE)).click()
        page.wait_for_url(re.compile(r"/admin/(?!login)"))
        return page

    def picture(self, name: str) -> None:
        """Keep what is to be seen now."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}-{self.look}.png")

    def findings(self) -> list[str]:
        """What axe-core finds serious or critical on this page."""
        self.page.evaluate(self.axe())
        found: dict[str, Any] = self.page.evaluate(
            "rules => axe.run({runOnly: {type: 'tag', values: rules}})", RULES
        )
        return [
            f"{one['id']}: {node['target']} {node.get('failureSummary', '')}"
            for one in found["violations"]
            if one["impact"] in {"serious", "critical"}
            for node in one["nodes"]
        ]


@pytest.fixture
def desk(
    request: pytest.FixtureRequest, chromium: Browser, address: str, look: str
) -> Iterator[Callable[[], Desk]]:
    """Opens windows, each with cookies of its own; fails for foreign requests and for errors in the page."""
    opened: list[tuple[BrowserContext, Desk]] = []

    def window() -> Desk:
        options: dict[str, Any] = LOOKS[look]
        context = chromium.new_context(timezone_id="Europe/Amsterdam", locale="en-GB", **options)
        context.set_default_timeout(WITHIN_MS)
        page = context.new_page()
        at = Desk(address, page, look, lambda: str(request.getfixturevalue("axe")))

        def asked(asked: Request) -> None:
            split = urlsplit(asked.url)
            if split.scheme not in {"data", "blob"} and f"{split.scheme}://{split.netloc}" != address:
                at.foreign.append(asked.url)

        context.on("request", asked)
        page.on("pageerror", lambda error: at.errors.append(str(error)))
        opened.append((context, at))
        return at

    yield window
    for context, at in opened:
        context.close()
        assert at.foreign == []
        assert at.errors == []


MAKE_PEOPLE = """
import json, sys
from django.contrib.auth.models import Group, User
from sites_app.models import Site, SiteScope
for name, role, sites in json.loads(sys.argv[1]):
    user = User.objects.create_user(name, password=sys.argv[2], is_staff=True)
    user.groups.add(Group.objects.get(name=role))
    scope = SiteScope.objects.create(user=user, all_sites=not sites)
    scope.sites.set(Site.objects.filter(site_tag__in=sites))
"""


@pytest.fixture(scope="session")
def people(demo: RunningDemo) -> dict[str, str]:
    """Somebody of each role who sees all sites, and an operator of the first alone: what -> user name."""
    rows: list[tuple[str, str, list[str]]] = [(role.value.lower(), role.value, []) for role in Role]
    rows.append(("local operator", Role.OPERATOR.value, ["solarpanel_site_a"]))
    run = f"import sys; sys.argv = ['', {json.dumps(json.dumps(rows))}, {PASSWORD!r}]\n{MAKE_PEOPLE}"
    subprocess.run(
        [sys.executable, "manage.py", "shell", "--no-imports", "-c", run],
        cwd=ROOT,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "smartgrid.settings",
            "SGM_SECRET_KEY": "x",
            "SGM_DATABASE_URL": demo.description["database_url"],
        },
        check=True,
        capture_output=True,
        timeout=60,
    )
    return {name: name for name, _, _ in rows}


@pytest.fixture
def at_desk(desk: Callable[[], Desk], people: dict[str, str]) -> Callable[[str], Desk]:
    """The window of somebody who is logged in: `viewer`, `operator`, `engineer`, `administrator`, ..."""

    def seated(who: str) -> Desk:
        at = desk()
        at.log_in(people[who])
        return at

    return seated
