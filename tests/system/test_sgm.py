"""The command line against the running system: what it says of a device is what stands in the register."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sgm import Client, settings_load
from sgm.plans import HEADERS, SLOTS
from tests.servers import until
from tests.system.test_demo import ROOT, TIME_LIMIT_S, Register, RunningDemo, start, until_ended, until_ready

pytestmark = pytest.mark.system

SITE, TAG = "solarpanel_site_b", "GENERIC_PV_01"
HOLD = ("curtail", SITE, "inverter", "50", "--tag", TAG)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path | None) -> Iterator[RunningDemo]:
    directory = tmp_path_factory.mktemp("demo")
    var, output = directory / "var", directory / "output"
    process = start(var, output=output, database=migrated_database, SGM_DEMO_FLEET="guide")
    try:
        yield RunningDemo(description=until_ready(process, var, output), output=output)
        process.send_signal(signal.SIGTERM)
    finally:
        until_ended(process)


class Sgm:
    """`python -m sgm` with a home of its own."""

    def __init__(self, demo: RunningDemo, home: Path) -> None:
        self.description = str(demo.output.parent / "var" / "demo.json")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SGM_")},
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "TZ": "UTC",
        }

    def begin(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        given = () if "SGM_API_URL" in environment else ("--demo", self.description)
        return subprocess.Popen(
            [sys.executable, "-m", "sgm", *arguments, *given],
            cwd=ROOT / "clients" / "python",
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        process = self.begin(*arguments, **environment)
        out, err = process.communicate(timeout=90)
        return process.returncode, out, err

    def done(self, *arguments: str) -> Any:
        """The JSON of a command that succeeds."""
        code, out, err = self.run(*arguments, "--json")
        assert code == 0, out + err
        return json.loads(out)


@pytest.fixture
def sgm(demo: RunningDemo, tmp_path: Path) -> Sgm:
    return Sgm(demo, tmp_path)


class Limit:
    """The share of its power that a device may give, by its register."""

    def __init__(self, device: dict[str, Any]) -> None:
        self._register = Register(device)
        until(lambda: self._register.value() > 0, what="the node has not written the default")
        self._full = self._register.value()

    def share(self) -> float:
        return self._register.value() / self._full

    def close(self) -> None:
        self._register.close()


@pytest.fixture(scope="module")
def limit_of_all(demo: RunningDemo) -> Iterator[Limit]:
    """Before anybody has asked for anything."""
    found = Limit(demo.device(TAG))
    yield found
    found.close()


@pytest.fixture
def limit(limit_of_all: Limit) -> Limit:
    """Of a device that nobody holds any longer."""
    until(lambda: limit_of_all.share() == 1, what="a hold of another test has not ended")
    return limit_of_all


@pytest.fixture
def credentials(demo: RunningDemo) -> dict[str, str]:
    """As an integrator has them in the environment."""
    told = demo.description
    return {
        "SGM_API_URL": told["api_url"],
        "SGM_TOKEN_URL": told["token_url"],
        "SGM_CLIENT_ID": told["client_id"],
        "SGM_CLIENT_SECRET": told["client_secret"],
        "SGM_MANAGEMENT_TOKEN": told["site_token"],
    }


def test_fleet_is_shown_to_people_and_to_programs(sgm: Sgm):
    code, out, _ = sgm.run("sites")
    assert code == 0
    assert "Solar Panel Site A" in out
    assert {site["site_tag"] for site in sgm.done("sites")} == {"solarpanel_site_a", "solarpanel_site_b"}
    assert TAG in {device["device_tag"] for device in sgm.done("devices", SITE)}
    assert all(node["healthy"] for node in sgm.done("health"))


def test_watched_curtailment_shows_value_and_lapse(sgm: Sgm, limit: Limit):
    process = sgm.begin(*HOLD, "--watch", "--json")
    until(lambda: limit.share() == 0.5, what="the register is not at half", within_s=20)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    answer, *changes, end = (json.loads(line) for line in out.splitlines())
    assert answer["result"] == {"updated": {TAG: None}, "not_updated": {}}
    told = [(change["value"], change["ended"]) for change in changes]
    # A value may be seen before the log says why it is so.
    assert [one for one in told if one != (100, None)] == [(50, None), (100, "lapsed")]
    assert end == {"event": "end", "open": []}
    assert limit.share() == 1


def test_interrupted_watch_leaves_the_hold_and_says_so(sgm: Sgm, limit: Limit):
    process = sgm.begin(*HOLD, "--watch")
    assert process.stdout is not None
    assert "success" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"sgm release {SITE} inverter" in out
    assert limit.share() == 0.5


def test_watch_outlives_a_restart_of_the_web_server(demo: RunningDemo, sgm: Sgm, limit: Limit):
    process = sgm.begin(*HOLD, "--watch")
    assert process.stdout is not None
    assert "success" in process.stdout.readline()
    described = json.loads(Path(sgm.description).read_text())
    os.kill(described["processes"]["web"], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert "lapsed" in out
    until(lambda: sgm.run("ping")[0] == 0, what="the web server did not come back")


def test_release_ends_a_hold_before_its_time(sgm: Sgm, limit: Limit):
    assert sgm.done(*HOLD, "--reason", "drill")["status"] == "success"
    held_s = time.monotonic()
    assert sgm.done("release", SITE, "inverter", "--tag", TAG)["status"] == "success"
    assert limit.share() == 1
    assert time.monotonic() - held_s < TIME_LIMIT_S
    assert "by default" in sgm.done("why", TAG)["decision"]["text"]


def test_listener_hears_of_a_hold_across_a_killed_events_process(demo: RunningDemo, sgm: Sgm, limit: Limit):
    with sgm.begin("events", SITE, "--type", "device", "--json") as process:
        try:
            values = _values(process)
            # Whether the stream stood already when this was asked for nobody can tell: hence until it is heard.
            until(
                lambda: sgm.done(*HOLD)["status"] == "success" and 50 in values, what="no event of the hold"
            )
            os.kill(json.loads(Path(sgm.description).read_text())["processes"]["events"], signal.SIGKILL)
            until(lambda: 100 in values, what="no event of the lapse", within_s=60)
        finally:
            process.send_signal(signal.SIGINT)


def _values(process: subprocess.Popen[str]) -> list[float]:
    """What events of the device tell, as they come."""
    found: list[float] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            told = json.loads(line)["data"]
            if told["device_tag"] == TAG:
                found.append(told["value"])

    threading.Thread(target=read, daemon=True).start()
    return found


def test_power_of_several_devices_is_asked_for_in_kw(sgm: Sgm, limit: Limit):
    """50 kW nominal: 20 kW are two fifths of it."""
    answer = sgm.done("curtail", SITE, "inverter", "20", "--unit", "kw", "--tag", TAG)
    assert answer["result"]["updated"] == {TAG: None}
    assert limit.share() == 0.4


def test_dry_run_tells_what_would_be_and_does_nothing(sgm: Sgm, limit: Limit):
    told = sgm.done(*HOLD, "--dry-run")
    assert (told["dry_run"], told["preview"][TAG]["value"]) == (True, 50)
    assert limit.share() == 1
    code, out, _ = sgm.run(*HOLD, "--dry-run")
    assert (code, "Nothing was sent to a device" in out) == (0, True)


def test_pushed_plan_is_held_shown_and_taken_back(sgm: Sgm, limit: Limit, tmp_path: Path):
    today = datetime.now(UTC).date()
    # Whichever quarter hour this is, and tomorrow's first should the day end meanwhile.
    days = [str(today), str(today + timedelta(days=1))]
    file = tmp_path / "plans.csv"
    _write(file, [[SITE, "inverter", day, *["40"] * len(SLOTS)] for day in days])

    code, out, err = sgm.run("schedule", "push", str(file))
    assert code == 0, out + err
    assert "2 of 2 plans are done." in out
    until(lambda: limit.share() == 0.4, what="the slot is not held")

    def is_applied() -> bool:
        result = sgm.done("schedule", "show", SITE, "inverter", days[0])["synchronization_result"]
        return result is not None and result["status"] == "applied"

    until(is_applied, what="the node did not confirm the plan")
    assert sgm.done("schedule", "push", str(file)) == sgm.done("schedule", "push", str(file))
    assert sgm.run("schedule", "pull", SITE)[1].splitlines() == file.read_text().splitlines()
    for day in days:
        sgm.done("schedule", "delete", SITE, "inverter", day)
    until(lambda: limit.share() == 1, what="the default did not return")


def test_plan_with_a_bad_row_changes_nothing(sgm: Sgm, tmp_path: Path):
    today = str(datetime.now(UTC).date())
    file = tmp_path / "plans.csv"
    _write(
        file,
        [
            [SITE, "inverter", today, *["40"] * len(SLOTS)],
            ["nosuch", "inverter", today, *["40"] * len(SLOTS)],
        ],
    )
    code, out, _ = sgm.run("schedule", "push", str(file))
    assert code == 1
    assert "No such site" in out
    assert sgm.done("schedule", "list", SITE) == []


def test_wrong_credentials_say_which(sgm: Sgm, credentials: dict[str, str]):
    assert sgm.run("ping", **credentials)[0] == 0
    code, _, err = sgm.run(
        "ping", **credentials | {"SGM_CLIENT_SECRET": "wrong", "XDG_CACHE_HOME": "/nonexistent"}
    )
    assert (code, "SGM_CLIENT_SECRET" in err) == (3, True)
    code, _, err = sgm.run("ping", **credentials | {"SGM_MANAGEMENT_TOKEN": "tok_" + "0" * 32})
    assert (code, "SGM_MANAGEMENT_TOKEN" in err) == (3, True)


def test_site_token_opens_its_site_and_no_other(sgm: Sgm, credentials: dict[str, str]):
    assert sgm.run("site", "solarpanel_site_a", **credentials)[0] == 0
    assert sgm.run("site", SITE, **credentials)[0] == 4
    code, _, err = sgm.run("tokens", "list", **credentials)
    assert code == 3
    assert "root token" in err
    assert "(request " in err


def test_network_that_is_gone_is_told_as_such(sgm: Sgm, credentials: dict[str, str], unused_tcp_port: int):
    gone = credentials | {"SGM_API_URL": f"http://127.0.0.1:{unused_tcp_port}/v1"}
    code, _, err = sgm.run("curtail", SITE, "inverter", "50", **gone)
    assert code == 5
    assert "Nothing was done" in err


def test_library_tells_what_happens(sgm: Sgm, limit: Limit, tmp_path: Path):
    """A program with the library: a hold, and the log of it."""
    settings = settings_load(demo=Path(sgm.description), environment={})
    with Client(settings, cache=tmp_path) as client:
        site = client.site_find(SITE)
        answer = client.curtail(site.id, category="inverter", value=50, device_tags=[TAG], reason="test")
        assert answer.is_done
        assert client.device_find(TAG).value == 50
        newest = next(line for line in client.logs(site_id=site.id, limit=5) if not line.watchdog)
        assert (newest.value, list(newest.result.updated)) == (50, [TAG])
        assert client.release(site.id, category="inverter", device_tags=[TAG]).is_done
    assert limit.share() == 1


def _write(file: Path, rows: Sequence[Sequence[str]]) -> None:
    file.write_text("\n".join(",".join(row) for row in [HEADERS, *rows]) + "\n")
