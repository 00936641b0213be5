"""`sgm` on the command line: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sgm.cli import main
from sgm.cli.follow import POLL_BESIDE_EVENTS_S
from sgm.plans import HEADERS
from tests.client.conftest import HANG_UP, Asked, Says, Scripted, error
from tests.client.test_client import OTHER, ROOT, SITE, event_of, log_of, site_of, stream

CURTAIL = f"/sites/{SITE}/curtail-category"
DAY = "2999-11-24"


def device_of(tag: str = "SMA_STP60_01", **changes: Any) -> dict[str, Any]:
    return {
        "id": f"id-{tag}",
        "created_at": "2024-08-01T10:52:55.330076Z",
        "device_tag": tag,
        "node_id": "n",
        "device_type_id": "t",
        "max_value": 100,
        "min_value": 0,
        "default_value": 100,
        "value": 80,
        "meta_data": {},
        "include_in_curtailment": True,
        "category": "inverter",
        "peak_power_kw": 60,
    } | changes


def loop_of(**changes: Any) -> dict[str, Any]:
    """A closed loop as its path shows it, but for settings that nobody looks at here."""
    change = {"stand": "tracking", "since": "2026-11-23T09:00:00.000000Z", "reason": "sun is back"}
    return {
        "id": "id-POC",
        "site_id": SITE,
        "loop_tag": "POC",
        "enabled": True,
        "meter_id": "id-METER",
        "category": None,
        "mode": "limit",
        "setpoint_kw": None,
        "export_limit_kw": 40,
        "import_limit_kw": None,
        "nominal_kw": 60,
        "members": [
            {"device_id": "id-PV", "device_tag": "SMA_STP60_01", "nominal_kw": 60, "value": 80.5},
        ],
        "left_out": {"PV_02": "is excluded from curtailment"},
        "refused": None,
        "node": {"id": "n", "polaris_node_name": "node-01", "online": True, "healthy": True},
        "live": {
            "stand": "limiting",
            "since": "2026-11-23T09:01:00.000000Z",
            "setpoint_kw": 40,
            "measured_kw": 38.25,
            "output_kw": 48.25,
            "load_kw": 10,
            "bounded_by": "export_limit",
            "reason": "less sun than asked for",
            "age_s": 2.5,
        },
        "changes": [change],
    } | changes


def answer_of(status: str = "success", **not_updated: str) -> Says:
    updated = {} if status == "failed" else {"SMA_STP60_01": None}
    return Says(body={"status": status, "result": {"updated": updated, "not_updated": not_updated}})


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def environment(server: Scripted, tmp_path: Path) -> dict[str, str]:
    return {
        "SGM_API_URL": f"{server.url}/v1",
        "SGM_CLIENT_ID": "robot",
        "SGM_CLIENT_SECRET": "a secret",
        "SGM_MANAGEMENT_TOKEN": "tok_1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "TZ": "Europe/Amsterdam",
    }


@pytest.fixture
def sgm(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SGM_TOKEN_URL", raising=False)

    def run(*arguments: str) -> Ran:
        code = main(arguments)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture
def site(server: Scripted) -> dict[str, Any]:
    """One site, found by its tag `site_0`."""
    found = site_of(name="Solar Panel Site A")
    server.on_call(
        "GET",
        "/sites",
        lambda asked: Says(body=[found] if asked.query.get("site_tag", ["site_0"]) == ["site_0"] else []),
    )
    server.on("GET", f"/sites/{SITE}", Says(body=found))
    server.on("GET", f"/sites/{SITE}/devices", Says(body=[device_of()]))
    server.on("GET", f"/sites/{SITE}/logs", Says(body=[]))
    server.on("GET", f"/sites/{SITE}/schedules", Says(body=[]))
    server.on("GET", f"/sites/{SITE}/nodes", Says(body=[]))
    return found


# --- how a command ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "code"),
    [
        (error(400, "invalid"), 2),
        (error(401, "management_token_invalid"), 3),
        (error(403, "root_token_required"), 3),
        (error(404, "not_found"), 4),
        (error(409, "conflict"), 1),
        (error(429, "throttled", Retry_After="3600"), 5),
        (error(500, "internal_error"), 5),
        (error(503, "no_answer", Retry_After="3600"), 5),
        (Says(body=b"<html>"), 5),
    ],
)
def test_exit_code_tells_the_kind_of_failure(
    server: Scripted, sgm: Callable[..., Ran], says: Says, code: int
):
    server.on("GET", "/version", says)
    assert sgm("version").code == code


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("sites", "--nonsense"), ("curtail", "a", "b", "c"), ()]
)
def test_misspelt_command_is_usage(sgm: Callable[..., Ran], arguments: tuple[str, ...]):
    ran = sgm(*arguments)
    assert (ran.code, "Usage" in ran.err + ran.out) == (2, True)


def test_error_is_one_line_with_what_to_do_and_the_request_id(server: Scripted, sgm: Callable[..., Ran]):
    server.on("GET", "/version", error(403, "root_token_required", detail="A root token is needed."))
    ran = sgm("version")
    assert ran.out == ""
    assert (
        ran.err
        == "sgm: A root token is needed. Use a profile with a root token: --profile NAME. (request r-1)\n"
    )


def test_error_for_programs_is_json(server: Scripted, sgm: Callable[..., Ran]):
    server.on("GET", "/version", error(404, "not_found"))
    ran = sgm("version", "--json")
    told = json.loads(ran.err)["error"]
    assert (ran.out, told["status"], told["code"], told["request_id"]) == ("", 404, "not_found", "r-1")


def test_unknown_credentials_say_how_to_give_them(sgm: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SGM_MANAGEMENT_TOKEN")
    ran = sgm("sites")
    assert ran.code == 3
    assert "sgm login" in ran.err
    assert "SGM_MANAGEMENT_TOKEN" in ran.err


def test_reader_that_has_seen_enough_is_no_error(
    server: Scripted, environment: dict[str, str], site: dict[str, Any]
):
    server.on("GET", "/sites", Says(body=[site_of(number) for number in range(1, 400)]))
    command = f"{sys.executable} -m sgm sites | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=ROOT / "clients" / "python",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- what is shown ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (("ping",), "/ping", {"ping": "pong!"}),
        (("version",), "/version", {"alembic_version": "ff5ac067b6b2", "git_version": "v1.2.3"}),
        (("nodes",), "/nodes", []),
        (("devices",), "/devices", [device_of()]),
        (("devices", "site_0", "--category", "inverter"), f"/sites/{SITE}/devices", [device_of()]),
        (("logs",), "/logs", [log_of()]),
        (("errors",), "/device-error-logs", {}),
        (("schedule", "list"), "/schedules", []),
        (("schedule", "pull"), "/schedules", []),
        (("tokens", "list"), "/auth-tokens", []),
        (("health",), "/site-health-report", []),
        (("loops", "site_0"), f"/sites/{SITE}/loops", [loop_of()]),
        (("site", "site_0"), f"/sites/{SITE}/devices", [device_of()]),
    ],
)
@pytest.mark.usefixtures("site")
def test_every_list_is_shown_to_people_and_to_programs(
    server: Scripted, sgm: Callable[..., Ran], arguments: tuple[str, ...], path: str, body: Any
):
    server.on("GET", "/site-health-report", Says(body=[]))
    server.on("GET", path, Says(body=body))
    for_people, for_programs = sgm(*arguments), sgm(*arguments, "--json")
    assert (for_people.code, for_programs.code) == (0, 0)
    assert for_people.out + for_people.err
    if path == f"/sites/{SITE}/devices" and arguments[0] == "site":
        assert (for_programs.json["id"], for_programs.json["devices"]) == (SITE, body)
    elif arguments != ("ping",):
        assert for_programs.json == body


def test_unhealthy_node_is_told_by_the_exit_code(server: Scripted, sgm: Callable[..., Ran]):
    node = {"tenant_tag": "t", "site_tag": "s", "node_name": "node-01", "healthy": False}
    server.on("GET", "/site-health-report", Says(body=[node]))
    assert sgm("health").code == 1


def test_name_from_elsewhere_does_not_steer_the_terminal(server: Scripted, sgm: Callable[..., Ran]):
    server.on("GET", "/sites", Says(body=[site_of(name="\x1b]0;owned\x07\x9b31m[red]x\n\u202e")]))
    out = sgm("sites").out
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out)
    assert "[red]x\\n" in out


def test_times_are_local_or_utc_on_demand(server: Scripted, environment: dict[str, str]):
    server.on("GET", "/sites", Says(body=[]))
    server.on("GET", "/logs", Says(body=[log_of()]))

    def shown(*more: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "sgm", "logs", *more],
            cwd=ROOT / "clients" / "python",
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert "2024-08-01 17:22:10" in shown()
    assert "2024-08-01 15:22:10Z" in shown("--utc")


def in_a_terminal(environment: dict[str, str], *arguments: str) -> str:
    """What a command prints where somebody looks at a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sgm", *arguments],
        cwd=ROOT / "clients" / "python",
        env={**os.environ, "TERM": "xterm-256color", **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = bytearray()
    try:
        # The terminal of a process that has ended cannot be read.
        while piece := os.read(ours, 65536):
            said += piece
    except OSError:
        pass
    assert process.wait(timeout=20) in (0, 1)
    os.close(ours)
    return said.decode()


def test_colours_are_for_terminals_that_want_them(server: Scripted, environment: dict[str, str]):
    node = {"tenant_tag": "t", "site_tag": "s", "node_name": "node-01", "healthy": False}
    server.on("GET", "/site-health-report", Says(body=[node]))
    assert "\x1b[31m" in in_a_terminal(environment, "health")
    assert "\x1b[31m" not in in_a_terminal(environment | {"NO_COLOR": "1"}, "health")


# --- control ------------------------------------------------------------------------------------------------


def test_curtailment_tells_until_when_it_holds(
    server: Scripted, sgm: Callable[..., Ran], site: dict[str, Any]
):
    server.on("PUT", CURTAIL, answer_of())
    ran = sgm("curtail", "site_0", "inverter", "50", "--reason", "congestion", "--tag", "SMA_STP60_01")
    assert ran.code == 0
    assert "SMA_STP60_01  done" in ran.out
    assert "sgm release site_0 inverter" in ran.out
    assert server.asked[-1].body == {
        "value": 50.0,
        "category": "inverter",
        "reason": "congestion",
        "device_tags": ["SMA_STP60_01"],
    }


def test_curtailment_in_part_is_not_success(server: Scripted, sgm: Callable[..., Ran], site: dict[str, Any]):
    server.on("PUT", CURTAIL, answer_of("partial", INV_2="node_offline: nobody there"))
    ran = sgm("curtail", "site_0", "inverter", "50")
    assert ran.code == 1
    assert "INV_2  node_offline: nobody there" in ran.out


def test_lost_curtailment_says_that_it_may_have_been_done(
    server: Scripted, sgm: Callable[..., Ran], site: dict[str, Any]
):
    server.on("PUT", CURTAIL, Says(body=HANG_UP))
    ran = sgm("curtail", "site_0", "inverter", "50")
    assert ran.code == 5
    assert "may have been done" in ran.err


def test_negative_value_stands_behind_two_dashes(
    server: Scripted, sgm: Callable[..., Ran], site: dict[str, Any]
):
    server.on("PUT", CURTAIL, answer_of())
    assert sgm("curtail", "--json", "site_0", "battery", "--", "-20").code == 0
    assert server.asked[-1].body["value"] == -20


def test_watch_follows_the_devices_until_the_hold_ends(
    server: Scripted, sgm: Callable[..., Ran], site: dict[str, Any]
):
    ours, lapse = log_of(id="1"), log_of(id="2", watchdog=True, value=100)
    server.on("PUT", CURTAIL, answer_of())
    server.on("GET", f"/sites/{SITE}/logs", Says(body=[ours]), Says(body=[lapse, ours]))
    server.on(
        "GET", f"/sites/{SITE}/devices", Says(body=[device_of(value=50)]), Says(body=[device_of(value=100)])
    )
    ran = sgm("curtail", "site_0", "inverter", "50", "--watch", "--json")
    assert ran.code == 0
    answer, held, lapsed, end = (json.loads(line) for line in ran.out.splitlines())
    assert answer["status"] == "success"
    assert (held["value"], held["ended"]) == (50, None)
    assert (lapsed["value"], lapsed["ended"]) == (100, "lapsed")
    assert end == {"event": "end", "open": []}


def test_watch_looks_when_an_event_tells_it_to(
    server: Scripted, sgm: Callable[..., Ran], site: dict[str, Any]
):
    """A stream that stands lengthens the poll to 10 s; the lapse is shown long before."""
    ours, lapse = log_of(id="1"), log_of(id="2", watchdog=True, value=100)
    lapsed = threading.Event()

    def logged(_: Asked) -> Says:
        return Says(body=[lapse, ours] if lapsed.is_set() else [ours])

    def told(_: Asked) -> Says:
        lapsed.set()
        return stream(event_of("control_log", "1-0", lapse))

    server.on("PUT", CURTAIL, answer_of())
    server.on_call("GET", f"/sites/{SITE}/logs", logged)
    server.on_call("GET", "/events", told)
    began_s = time.monotonic()
    ran = sgm("curtail", "site_0", "inverter", "50", "--watch")
    assert time.monotonic() - began_s < POLL_BESIDE_EVENTS_S
    assert ran.code == 0
    assert "lapsed" in ran.out


def test_release_ends_the_holds_of_a_category(
    server: Scripted, sgm: Callable[..., Ran], site: dict[str, Any]
):
    server.on("POST", f"/sites/{SITE}/release", answer_of())
    assert sgm("release", "site_0", "inverter").code == 0
    assert server.asked[-1].body == {"category": "inverter"}


def test_why_tells_the_node_s_reasons(server: Scripted, sgm: Callable[..., Ran]):
    server.on("GET", "/devices", Says(body=[device_of()]))
    told = {
        "device_tag": "SMA_STP60_01",
        "at": "2026-11-23T10:53:00Z",
        "reaches_back_to": "2026-11-22T10:53:00Z",
        "decision": {
            "at": "2026-11-23T10:52:00Z",
            "kind": "decision",
            "who": "node",
            "text": "50 % by request",
        },
        "notes": ["the clock stepped"],
    }
    server.on("GET", "/devices/id-SMA_STP60_01/explain", Says(body=told))
    ran = sgm("why", "SMA_STP60_01", "--at=-10m")
    assert ran.code == 0
    assert "50 % by request" in ran.out
    assert "the clock stepped" in ran.out
    assert server.asked[-1].query == {"at": ["-10m"]}


def test_events_are_shown_a_line_each(server: Scripted, sgm: Callable[..., Ran]):
    last = error(404, "not_found")
    server.on("GET", "/events", stream("retry: 1\n\n", event_of("node", "1-0", {"online": True})), last)
    ran = sgm("events", "--json", "--type", "node")
    assert json.loads(ran.out) == {"id": "1-0", "type": "node", "data": {"online": True}}
    assert ran.code == 4


# --- closed loops -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("site")
def test_loop_is_told_with_how_it_stands_and_with_whom(server: Scripted, sgm: Callable[..., Ran]):
    server.on("GET", f"/sites/{SITE}/loops", Says(body=[loop_of()]))
    headers, row = (re.split(r"  +", line) for line in sgm("loops", "site_0").out.splitlines())
    assert dict(zip(headers, row, strict=True)) == {
        "LOOP": "POC",
        "STAND": "limiting",
        "SETPOINT": "40 kW",
        "MEASURED": "38.25 kW",
        "EXPORT LIMIT": "40 kW",
        "MEMBERS": "1",
        "NODE": "node-01",
        "ID": "id-POC",
    }
    out = sgm("loop", "show", "site_0", "POC", "--utc").out
    for shown in (
        "POC  limiting  id-POC",
        "export at most 40 kW",
        "measured 38.25 kW, output 48.25 kW, load 10 kW, 2 s ago",
        "less sun than asked for (bounded by export_limit)",
        "80.5 %",
        "left out: is excluded from curtailment",
        "2026-11-23 09:00:00Z  tracking  sun is back",
        "node-01 is healthy",
    ):
        assert shown in out, out


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"live": None}, "not known"),
        ({"enabled": False, "live": None}, "off"),
        ({"refused": "its meter is unknown", "live": None}, "cannot use it: its meter is unknown"),
        (
            {"live": None, "node": {"id": "n", "polaris_node_name": "n-1", "online": False, "healthy": None}},
            "n-1 is not connected",
        ),
        ({"members": [], "left_out": {}, "changes": []}, "export at most the setpoint"),
    ],
)
def test_loop_of_which_nothing_was_told_claims_nothing(
    server: Scripted, sgm: Callable[..., Ran], changes: dict[str, Any], shown: str
):
    server.on("GET", f"/sites/{SITE}/loops", Says(body=[loop_of(**changes)]))
    ran = sgm("loop", "show", "site_0", "id-POC")
    assert (ran.code, shown in ran.out) == (0, True), ran.out
    assert sgm("loops", "site_0").code == 0


@pytest.mark.usefixtures("site")
def test_loop_that_is_not_there_is_told(server: Scripted, sgm: Callable[..., Ran]):
    server.on("GET", f"/sites/{SITE}/loops", Says(body=[]))
    assert sgm("loop", "show", "site_0", "POC").code == 4
    assert "no closed loop" in sgm("loops", "site_0").err


# --- telemetry ----------------------------------------------------------------------------------------------


def test_telemetry_is_csv_on_demand(server: Scripted, sgm: Callable[..., Ran]):
    server.on("GET", "/devices", Says(body=[device_of()]))
    point = {"timestamp": "2026-11-23T09:00:00.000000Z", "value": 41.5}
    told = {
        "from": "2026-11-23T08:00:00Z",
        "to": "2026-11-23T10:00:00Z",
        "resolution": "raw",
        "series": [{"device_id": "d", "name": "A", "key": "P_kW", "unit": "kW", "points": [point]}],
    }
    server.on("GET", "/devices/id-SMA_STP60_01/telemetry", Says(body=told))
    ran = sgm(
        "telemetry", "SMA_STP60_01", "P_kW", "--csv", "--from=2026-11-23T08:00:00Z", "--resolution", "raw"
    )
    assert ran.out == (
        "timestamp,key,unit,value,minimum,maximum,count\n2026-11-23T09:00:00Z,P_kW,kW,41.5,,,\n"
    )
    assert server.asked[-1].query == {
        "key": ["P_kW"],
        "from": ["2026-11-23T08:00:00Z"],
        "resolution": ["raw"],
    }


# --- schedules ----------------------------------------------------------------------------------------------


class Planned:
    """The schedules of a site, as the API keeps them."""

    def __init__(self, server: Scripted) -> None:
        self.days: dict[str, dict[str, Any]] = {}
        self.broken_at: str | None = None
        self._server = server
        server.on_call("GET", f"/sites/{SITE}/schedules", lambda _: Says(body=list(self.days.values())))
        server.on_call("POST", "/schedules", self._create)

    def plan(self, day: str, slots: dict[str, float]) -> dict[str, Any]:
        self.days[day] = {
            "id": f"id-{day}",
            "site_id": SITE,
            "category": "inverter",
            "valid_on": day,
            "schedule": slots,
            "synchronization_result": None,
        }
        self._server.on_call("PUT", f"/schedules/{day}/inverter", self._replace)
        return self.days[day]

    def _create(self, asked: Asked) -> Says:
        if asked.body["valid_on"] == self.broken_at:
            return Says(body=HANG_UP)
        return Says(body=self.plan(asked.body["valid_on"], asked.body["schedule"]))

    def _replace(self, asked: Asked) -> Says:
        return Says(body=self.plan(asked.path.split("/")[3], asked.body["schedule"]))


def changes(server: Scripted) -> list[str]:
    return [asked.method for asked in server.asked if asked.method != "GET"]


def file_of(path: Path, *rows: tuple[str, str, str, str]) -> str:
    """Rows of site, category, day, and the value at nine."""
    named = [dict(zip(("site_tag", "category", "valid_on", "09:00"), row, strict=True)) for row in rows]
    lines = [",".join(HEADERS), *(",".join(row.get(name, "") for name in HEADERS) for row in named)]
    file = path / "plans.csv"
    file.write_text("\n".join(lines) + "\n")
    return str(file)


@pytest.fixture
def planned(server: Scripted, site: dict[str, Any]) -> Planned:
    return Planned(server)


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (("site_9", "inverter", DAY, "50"), "No such site"),
        (("site_0", "battery", DAY, "50"), "no device of this category"),
        (("site_0", "inverter", "2001-01-01", "50"), "over"),
        (("site_0", "inverter", DAY, "101"), "outside 0..100"),
        (("site_0", "inverter", DAY, "fifty"), "Not a number"),
    ],
)
@pytest.mark.usefixtures("planned")
def test_no_row_is_sent_when_one_cannot_be_taken(
    server: Scripted, sgm: Callable[..., Ran], tmp_path: Path, bad: Any, what: str
):
    ran = sgm("schedule", "push", file_of(tmp_path, ("site_0", "inverter", "2999-11-23", "50"), bad))
    assert ran.code == 1
    assert what in ran.out
    assert changes(server) == []


def test_push_creates_replaces_and_leaves_alone(
    server: Scripted, sgm: Callable[..., Ran], planned: Planned, tmp_path: Path
):
    planned.plan("2999-11-23", {"09:00": 50})
    planned.plan("2999-11-24", {"09:00": 50})
    rows = [("site_0", "inverter", f"2999-11-{day}", "60" if day == 24 else "50") for day in (23, 24, 25)]
    ran = sgm("schedule", "push", file_of(tmp_path, *rows))
    assert ran.code == 0
    assert "09:00 50 -> 60" in ran.out
    assert changes(server) == ["PUT", "POST"]
    assert sgm("schedule", "push", file_of(tmp_path, *rows)).out.endswith("All of it is there already.\n")
    assert changes(server) == ["PUT", "POST"]


def test_past_day_that_is_there_as_the_file_has_it_is_left_alone(
    server: Scripted, sgm: Callable[..., Ran], planned: Planned, tmp_path: Path
):
    planned.plan("2001-01-01", {"09:00": 50})
    assert sgm("schedule", "push", file_of(tmp_path, ("site_0", "inverter", "2001-01-01", "50"))).code == 0


def test_push_that_broke_off_is_run_again_for_the_rest(
    server: Scripted, sgm: Callable[..., Ran], planned: Planned, tmp_path: Path
):
    file = file_of(tmp_path, *(("site_0", "inverter", f"2999-11-{day}", "50") for day in (23, 24, 25)))
    planned.broken_at = "2999-11-24"
    ran = sgm("schedule", "push", file, "--json")
    assert ran.code == 5
    assert [row["became"] for row in ran.json["rows"]] == ["done", "failed", None]
    planned.broken_at = None
    ran = sgm("schedule", "push", file, "--json")
    assert (ran.code, ran.json["done"]) == (0, 2)
    assert changes(server) == ["POST"] * 4


def test_refused_row_does_not_hold_up_the_others(
    server: Scripted, sgm: Callable[..., Ran], planned: Planned, tmp_path: Path
):
    server.on(
        "POST",
        "/schedules",
        error(409, "conflict", detail="It is planned."),
        Says(body=planned.plan(DAY, {})),
    )
    planned.days.clear()
    ran = sgm(
        "schedule",
        "push",
        file_of(tmp_path, *(("site_0", "inverter", f"2999-12-0{day}", "50") for day in (1, 2))),
    )
    assert ran.code == 1
    assert "It is planned." in ran.out
    assert "1 of 2 plans are done. Refused: row 1." in ran.out


def test_dry_run_of_a_push_sends_nothing(
    server: Scripted, sgm: Callable[..., Ran], planned: Planned, tmp_path: Path
):
    ran = sgm("schedule", "push", file_of(tmp_path, ("site_0", "inverter", DAY, "50")), "--dry-run")
    assert (ran.code, "create" in ran.out, changes(server)) == (0, True, [])


def test_pulled_file_is_pushed_without_a_change(
    server: Scripted, sgm: Callable[..., Ran], planned: Planned, tmp_path: Path
):
    planned.plan(DAY, {"09:00": 50, "09:15": 62.5})
    file = tmp_path / "pulled.csv"
    assert sgm("schedule", "pull", "site_0", "--output", str(file)).code == 0
    assert "already" in sgm("schedule", "push", str(file)).out


def test_plan_is_shown_and_deleted(server: Scripted, sgm: Callable[..., Ran], planned: Planned):
    planned.plan(DAY, {"09:00": 50})
    server.on("DELETE", f"/schedules/id-{DAY}", Says(body={"status": "success", "message": ""}))
    assert "50" in sgm("schedule", "show", "site_0", "inverter", DAY).out
    assert sgm("schedule", "delete", "site_0", "inverter", DAY).code == 0
    planned.days.clear()
    assert sgm("schedule", "show", "site_0", "inverter", DAY).code == 4


# --- management tokens --------------------------------------------------------------------------------------


def test_token_is_shown_only_on_demand(server: Scripted, sgm: Callable[..., Ran], site: dict[str, Any]):
    token = {"id": "t-1", "name": "Park", "token": "tok_1a2b3c4d5e6f7a8b", "sites": [SITE]}
    server.on("GET", "/auth-tokens", Says(body=[token]))
    assert "tok_1a2b3c4d5e6f7a8b" not in sgm("tokens", "list").out
    assert "tok_1a2b3c4d5e6f7a8b" in sgm("tokens", "list", "--show").out


def test_token_is_created_updated_and_deleted_by_name(
    server: Scripted, sgm: Callable[..., Ran], site: dict[str, Any]
):
    token = {"id": "t-1", "name": "Park", "token": "tok_1a2b3c4d5e6f7a8b", "sites": [SITE, OTHER]}
    server.on("GET", "/auth-tokens", Says(body=[token]))
    server.on("POST", "/auth-tokens", Says(body=token))
    server.on("PUT", "/auth-tokens/t-1", Says(body=token))
    server.on("DELETE", "/auth-tokens/t-1", Says(status=204, body=b""))
    assert sgm("tokens", "create", "Park", "--site", "site_0").code == 0
    assert server.asked[-1].body == {"name": "Park", "sites": [SITE]}
    assert sgm("tokens", "update", "Park", "--name", "Park B").code == 0
    assert server.asked[-1].body == {"name": "Park B", "sites": [SITE, OTHER]}
    assert sgm("tokens", "delete", "Park").code == 0
    assert sgm("tokens", "delete", "Nobody").code == 4


# --- profiles -----------------------------------------------------------------------------------------------


def test_login_keeps_a_profile_that_the_next_command_uses(
    server: Scripted,
    sgm: Callable[..., Ran],
    site: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    server.on("GET", "/ping", Says(body={"ping": "pong!"}))
    assert sgm("login").code == 0
    file = tmp_path / "config" / "sgm" / "config.toml"
    assert file.stat().st_mode & 0o777 == 0o600
    for name in ("SGM_API_URL", "SGM_CLIENT_ID", "SGM_CLIENT_SECRET", "SGM_MANAGEMENT_TOKEN"):
        monkeypatch.delenv(name)
    assert sgm("ping").code == 0
    file.chmod(0o644)
    ran = sgm("ping")
    assert ran.code == 3
    assert "chmod 600" in ran.err
    file.chmod(0o600)
    assert sgm("logout").code == 0
    assert sgm("ping").code == 3
    assert not list((tmp_path / "cache" / "sgm" / "tokens").glob("*.json"))


def test_login_with_bad_credentials_keeps_nothing(server: Scripted, sgm: Callable[..., Ran], tmp_path: Path):
    server.token_refusal = Says(status=401, body={"error": "invalid_client"})
    assert sgm("login").code == 3
    assert not (tmp_path / "config").exists()


# --- whatever is typed --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("curtail", "site_0", "inverter", "nan"), 2),
        (("curtail", "site_0", "inverter", "50", "--idempotency-key", "with\nline"), 2),
        (("curtail", "site_0", "inverter", "50", "--idempotency-key", "k" * 256), 2),
        (("events", "--after", "\udcff"), 2),
        (("site", "\udcff"), 4),
        (("site", "../auth-tokens"), 4),
        (("telemetry", "SMA_STP60_01", "--from", "yesterday"), 2),
        (("schedule", "show", "site_0", "inverter", "tomorrow"), 2),
        (("schedule", "push", "/nonexistent"), 2),
        (("schedule", "list", "--from", "2026-02-30"), 2),
        (("sites", "--demo", "/nonexistent"), 3),
        (("logs", "--limit", "0"), 2),
    ],
)
@pytest.mark.usefixtures("site")
def test_what_cannot_be_meant_is_refused_without_being_sent(
    server: Scripted, sgm: Callable[..., Ran], arguments: tuple[str, ...], code: int
):
    server.on("PUT", CURTAIL, answer_of())
    ran = sgm(*arguments)
    assert (ran.code, "Traceback" in ran.err) == (code, False)
    assert ran.err
    assert [asked.method for asked in server.asked if asked.method != "GET"] == []


@pytest.mark.parametrize(
    "address", ["ftp://x/v1", "x", "http://", "http://127.0.0.1:99999/v1", "http://grid.example/v1"]
)
def test_address_that_is_none_or_unencrypted_is_refused(
    sgm: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, address: str
):
    monkeypatch.setenv("SGM_API_URL", address)
    ran = sgm("ping")
    assert (ran.code, "api_url" in ran.err) == (3, True)


def test_followed_log_goes_on_when_nobody_answers_for_a_while(
    server: Scripted, environment: dict[str, str], site: dict[str, Any]
):
    first, second = log_of(id="1"), log_of(id="2", value=100, watchdog=True)
    server.on(
        "GET",
        f"/sites/{SITE}/logs",
        Says(body=[first]),
        error(503, "database_unavailable", Retry_After="3600"),
        Says(body=[second, first]),
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "sgm", "logs", "site_0", "--follow"],
        cwd=ROOT / "clients" / "python",
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert "request" in process.stdout.readline()
    assert "watchdog" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.stdout.close()
    assert process.wait(timeout=20) == 130


def test_events_are_told_to_people_as_what_they_are_about(server: Scripted, sgm: Callable[..., Ran]):
    changed = {"id": "d", "device_tag": "INV_1", "site_id": SITE, "category": "inverter", "value": 40}
    loop = {"id": "l", "loop_tag": "POC", "site_id": SITE, "stand": "stale", "reason": "no reading"}
    node = {"id": "n", "polaris_node_name": "node-01", "site_id": SITE, "online": False}
    server.on(
        "GET",
        "/events",
        stream(
            "retry: 1\n\n",
            event_of("control_log", "1-0", log_of()),
            event_of("device", "2-0", changed),
            event_of("loop", "3-0", loop),
            event_of("node", "3-1", node),
            "event: reset\nid: 4-0\ndata: {}\n\n",
        ),
        error(404, "not_found"),
    )
    shown = [line.split("  ", 1)[1] for line in sgm("events").out.splitlines()]
    assert shown == [
        "control_log  request  inverter  50  success  SMA_STP60_01",
        "device  INV_1  inverter  40",
        "loop  POC  stale  no reading",
        "node  node-01  offline",
        "reset  something was missed: read the lists again",
    ]
