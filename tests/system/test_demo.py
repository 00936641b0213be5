"""The product's main promise on real processes: one command, one curl, one register, and back by itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymodbus.client import ModbusTcpClient

from edge.profiles.loader import load_all
from smartgrid.demo.fleet import DEVICES, SITE_C
from tests.servers import until

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
# Longer than a device with its maker's pause of a second takes to confirm a request.
TIME_LIMIT_S = 6
# Longer than the demo itself waits, so that its own words say what was missing.
READY_S = 150.0
# After a limit has passed the default is written within this time, plus the device's own pause.
LAPSE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class RunningDemo:
    description: dict[str, Any]
    output: Path

    def device(self, tag: str) -> dict[str, Any]:
        return next(device for device in self.description["devices"] if device["device_tag"] == tag)

    def bearer_headers(self) -> dict[str, str]:
        answer = httpx.post(
            self.description["token_url"],
            json={
                "audience": self.description["audience"],
                "grant_type": "client_credentials",
                "client_id": self.description["client_id"],
                "client_secret": self.description["client_secret"],
            },
        )
        assert answer.status_code == httpx.codes.OK, answer.text
        return {
            "Authorization": f"Bearer {answer.json()['access_token']}",
            "X-Management-Token": self.description["root_token"],
        }

    def api(self) -> httpx.Client:
        return httpx.Client(base_url=self.description["api_url"], headers=self.bearer_headers(), timeout=20)


def start(
    var: Path, *, output: Path, database: Path | None = None, **settings: str
) -> subprocess.Popen[bytes]:
    """Start a demo; `database`: has the tables already, so that it need not make them."""
    if database is not None:
        (var / "database").mkdir(parents=True)
        shutil.copyfile(database, var / "database" / "sgm.sqlite3")
    env = {
        **os.environ,
        "SGM_VAR": str(var),
        "SGM_PORT": "0",
        "SGM_TIME_LIMIT": str(TIME_LIMIT_S),
        **settings,
    }
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "smartgrid.demo"],
            cwd=ROOT,
            env=env,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def until_ready(process: subprocess.Popen[bytes], var: Path, output: Path) -> dict[str, Any]:
    def described() -> bool:
        assert process.poll() is None, output.read_text()
        return (var / "demo.json").exists()

    until(described, what="no demo.json", within_s=READY_S)
    content: dict[str, Any] = json.loads((var / "demo.json").read_text())
    return content


def until_ended(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=30)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def processes_of(var: Path) -> dict[int, str]:
    """Every process whose command line or environment speaks of this demo's directory."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if str(var).encode() in text and state != "Z":
            found[int(entry.name)] = (entry / "cmdline").read_text(errors="replace").replace("\0", " ")
    found.pop(os.getpid(), None)
    return found


def living(pids: set[int]) -> set[int]:
    """Those of these processes that still run."""
    return {pid for pid in pids if _state(pid) not in ("", "Z")}


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path | None) -> Iterator[RunningDemo]:
    directory = tmp_path_factory.mktemp("demo")
    var, output = directory / "var", directory / "output"
    process = start(var, output=output, database=migrated_database)
    try:
        yield RunningDemo(description=until_ready(process, var, output), output=output)
        process.send_signal(signal.SIGTERM)
    finally:
        until_ended(process)


class Register:
    """The register that limits a device, read as any Modbus client would: at the simulator's observe port."""

    def __init__(self, device: dict[str, Any]) -> None:
        profile = load_all()[device["profile"]]
        assert profile.limit is not None
        self._point = profile.registers[profile.limit.register]
        self._unit = device["unit"]
        self._client = ModbusTcpClient(device["host"], port=device["observe_port"])
        assert self._client.connect()

    def value(self) -> float:
        answer = self._client.read_holding_registers(self._point.address, count=1, device_id=self._unit)
        assert not answer.isError(), answer
        return float(answer.registers[0])

    def close(self) -> None:
        self._client.close()


@pytest.mark.parametrize(
    ("tag", "site_limit", "pause_s"), [("GENERIC_PV_01", 50, 0.0), ("SMA_STP60_01", 50, 2.0)]
)
def test_request_reaches_the_register_and_lapses_to_the_default(
    demo: RunningDemo, tag: str, site_limit: int, pause_s: float
):
    device = demo.device(tag)
    register = Register(device)
    with demo.api() as api:
        until(lambda: register.value() > 0, what="the node has not written the default")
        full = register.value()
        began_s = time.monotonic()
        answer = api.put(
            f"/sites/{device['site_id']}/curtail-category",
            json={"value": site_limit, "category": device["category"], "device_tags": [tag]},
        )
        assert answer.status_code == httpx.codes.OK, answer.text
        assert answer.json() == {"status": "success", "result": {"updated": {tag: None}, "not_updated": {}}}
        assert register.value() == pytest.approx(full * site_limit / 100)
        accepted_s = time.monotonic()

        within_s = TIME_LIMIT_S + LAPSE_S + pause_s
        until(lambda: register.value() == full, what="the default did not return", within_s=within_s)
        # Not before its time either: the limit counts from a moment between sending and answer.
        assert time.monotonic() - began_s >= TIME_LIMIT_S
        assert time.monotonic() - accepted_s <= within_s

        def lapse_is_logged() -> bool:
            logs = api.get(f"/sites/{device['site_id']}/logs", params={"limit": 50}).json()
            own = [log for log in logs if tag in log["result"]["updated"]]
            return [(log["watchdog"], log["value"]) for log in own[:2]] == [(True, 100), (False, site_limit)]

        until(lapse_is_logged, what="the lapse did not reach /v1/logs", within_s=10)
    register.close()


def test_request_is_foretold_explained_repeated_and_ended_early(demo: RunningDemo):
    """Beyond the guide, against the real node: it does what it said it would, once, and lets go when told to."""
    device = demo.device("GENERIC_PV_01")
    tag, site = device["device_tag"], f"/sites/{device['site_id']}"
    register = Register(device)
    wanted = {"value": 45, "category": device["category"], "device_tags": [tag]}
    with demo.api() as api:
        until(lambda: register.value() > 0, what="the node has not written the default")
        full = register.value()

        foretold = api.put(f"{site}/curtail-category", json={**wanted, "dry_run": True}).json()
        assert foretold["result"] == {"updated": {tag: None}, "not_updated": {}}
        told = foretold["preview"][tag]
        assert (told["value"], told["write"], told["in_force"]) == (45, "changed", 100)
        assert register.value() == full

        key = {"Idempotency-Key": "demo-1"}
        first = api.put(f"{site}/curtail-category", json=wanted, headers=key)
        assert first.json() == {"status": "success", "result": {"updated": {tag: None}, "not_updated": {}}}
        assert register.value() == pytest.approx(full * told["value"] / 100)
        again = api.put(f"{site}/curtail-category", json=wanted, headers=key)
        assert (again.content, again.headers["Idempotency-Replayed"]) == (first.content, "true")

        why = api.get(f"/devices/{device['device_id']}/explain").json()["decision"]
        assert (why["value"], why["source"]) == (45, "direct")
        assert why["text"].startswith(told["reason"].split(" by ")[0])

        released = api.post(f"{site}/release", json={"device_tags": [tag], "reason": "over"})
        assert released.json() == {"status": "success", "result": {"updated": {tag: None}, "not_updated": {}}}
        assert register.value() == full
        newest = api.get(f"{site}/logs", params={"limit": 1}).json()[0]
        assert (newest["value"], newest["watchdog"]) == (None, False)
        shown = api.get(f"/devices/{device['device_id']}").json()
        assert shown["value"] == 100
    register.close()


def test_category_request_at_site_a_answers_as_the_guide_prints_it(demo: RunningDemo):
    site = demo.device("SMA_STP60_01")["site_id"]
    with demo.api() as api:
        answer = api.put(f"/sites/{site}/curtail-category", json={"value": 60, "category": "inverter"})
    assert (answer.status_code, answer.json()) == (
        httpx.codes.OK,
        {"status": "success", "result": {"updated": {"SMA_STP60_01": None}, "not_updated": {}}},
    )


def test_device_of_every_type_obeys_a_request_of_its_category(demo: RunningDemo):
    """One of each at site C, over its own protocol: the answer, and what the simulated device says itself."""
    here = [device for device in demo.description["devices"] if device["site_id"] == SITE_C.id]
    profiles = load_all()
    assert {device["profile"] for device in demo.description["devices"]} == profiles.keys()
    controlled: dict[str, list[str]] = {}
    behind_another = {device.tag for device in DEVICES if device.controlled_by}
    for device in here:
        if profiles[device["profile"]].controllable and device["device_tag"] not in behind_another:
            controlled.setdefault(device["category"], []).append(device["device_tag"])
    simulated = httpx.Client(base_url=demo.description["simulators_url"], timeout=20)
    with demo.api() as api, simulated:
        until(
            lambda: None not in _values(api, controlled).values(),
            what="not all devices hold their default",
            within_s=60,
        )
        for category, tags in controlled.items():
            # What each type of the category allows: an operating mode, a percentage.
            value = 3 if category == "heat_pump" else 60
            answer = api.put(
                f"/sites/{SITE_C.id}/curtail-category",
                json={"value": value, "category": category, "device_tags": tags},
            )
            assert answer.status_code == httpx.codes.OK, answer.text
            result = answer.json()
            assert result == {
                "status": "success",
                "result": {"updated": dict.fromkeys(tags), "not_updated": {}},
            }, category
            for device in here:
                if device["device_tag"] in tags and device["observe_port"] is not None:
                    shown = simulated.get(f"/devices/{device['device_tag']}").json()
                    assert shown["limit_in_force"] == pytest.approx(value, abs=1.0), device["device_tag"]
                    assert shown["gap_violations"] in (None, 0, []), device["device_tag"]


def _values(api: httpx.Client, controlled: dict[str, list[str]]) -> dict[str, float | None]:
    """What central says the devices hold."""
    tags = {tag for tags in controlled.values() for tag in tags}
    listed = api.get("/devices", params={"site_id": SITE_C.id}).json()
    return {device["device_tag"]: device["value"] for device in listed if device["device_tag"] in tags}


def test_schedule_is_confirmed_held_edited_and_taken_back(demo: RunningDemo):
    """The guide's schedule section on real processes: from the API to the register, and back to the default."""
    device = demo.device("GENERIC_PV_01")
    register = Register(device)
    site, category = device["site_id"], device["category"]
    today = datetime.now(UTC).date()
    # Whichever quarter hour this is, and tomorrow's first should the day end meanwhile.
    days = [today, today + timedelta(days=1)]
    every = [f"{hour:02d}:{minute:02d}" for hour in range(24) for minute in (0, 15, 30, 45)]

    with demo.api() as api:
        until(lambda: register.value() > 0, what="the node has not written the default")
        full = register.value()

        def plan(value: float) -> dict[str, Any]:
            return {"site_id": site, "schedule": dict.fromkeys(every, value)}

        def is_applied() -> bool:
            plans = api.get(f"/sites/{site}/schedules/{today}").json()
            result = plans[0]["synchronization_result"]
            return result is not None and result["status"] == "applied"

        for day in days:
            made = api.post("/schedules", json={**plan(40), "category": category, "valid_on": str(day)})
            assert made.status_code == httpx.codes.OK, made.text
            assert made.json()["synchronization_result"] is None
        until(is_applied, what="the node did not confirm the schedule", within_s=15)
        until(lambda: register.value() == pytest.approx(full * 0.4), what="the slot is not held")
        for day in days:
            assert api.put(f"/schedules/{day}/{category}", json=plan(70)).status_code == httpx.codes.OK
        until(is_applied, what="the node did not confirm the edit", within_s=15)
        until(lambda: register.value() == pytest.approx(full * 0.7), what="the edit is not held")

        def shows(value: float) -> bool:
            return bool(api.get(f"/devices/{device['device_id']}").json()["value"] == value)

        until(lambda: shows(70), what="the device's value does not follow its schedule", within_s=25)
        for made in api.get(f"/sites/{site}/schedules").json():
            answer = api.delete(f"/schedules/{made['id']}")
            assert answer.json() == {"status": "success", "message": "Schedule deleted successfully"}
        until(lambda: register.value() == full, what="the default did not return", within_s=15)
    register.close()


def test_device_made_by_api_is_controlled_changed_and_let_go_of(demo: RunningDemo):
    """From the API to the node and back: it takes the device, obeys its new bounds, and frees its place."""
    beside = demo.device("SMA_STP60_01")
    with demo.api() as api:
        (kind,) = api.get("/device-types", params={"profile": "demo_inverter"}).json()
        wanted = {
            "node_id": beside["node_id"],
            "device_type_id": kind["id"],
            "device_tag": "MADE_BY_API_01",
            # Of a category of its own: requests of other tests are about the others.
            "category": "made_by_api",
            "peak_power_kw": 10,
        }
        made = api.post("/devices/bulk", json=[wanted])
        assert made.status_code == httpx.codes.OK, made.text
        path = f"/devices/{made.json()[0]['id']}"

        def request(value: float) -> dict[str, Any]:
            answer = api.put(
                f"/sites/{beside['site_id']}/curtail-category",
                json={"value": value, "category": "made_by_api"},
            )
            assert answer.status_code == httpx.codes.OK, answer.text
            result: dict[str, Any] = answer.json()["result"]
            return result

        def is_taken() -> bool:
            return bool(request(70)["updated"] == {"MADE_BY_API_01": None})

        until(is_taken, what="the node did not take the device", within_s=20)
        assert api.get(path).json()["value"] == 70
        changed = api.patch(path, json={"max_value": 60, "default_value": 60})
        assert changed.status_code == httpx.codes.OK, changed.text

        def is_at_its_new_default() -> bool:
            return bool(api.get(path).json()["value"] == 60)

        until(is_at_its_new_default, what="the node did not take the new default", within_s=40)
        answer = api.delete(path).json()
        assert "has yet to let go" in answer["message"]

        def is_free() -> bool:
            again = api.post("/devices", json=wanted)
            assert again.status_code in (httpx.codes.OK, httpx.codes.CONFLICT), again.text
            return again.status_code == httpx.codes.OK

        until(is_free, what="the node did not let go of the deleted device", within_s=30)
        (again,) = api.get("/devices", params={"category": "made_by_api"}).json()
        assert api.delete(f"/devices/{again['id']}").status_code == httpx.codes.OK


def test_nodes_of_a_demo_that_is_ready_are_healthy(demo: RunningDemo):
    with demo.api() as api:
        report = api.get("/site-health-report").json()
    names = {node.removeprefix("edge:") for node in demo.description["processes"] if node.startswith("edge:")}
    assert {row["node_name"] for row in report} == names
    assert all(row["healthy"] for row in report)


def test_site_shows_what_its_meter_measures(demo: RunningDemo):
    site = demo.device("METER_SITE_A")["site_id"]
    with demo.api() as api:

        def is_measured() -> bool:
            keys = {metric["key"] for metric in api.get(f"/sites/{site}").json()["metrics"]}
            return {"P_Actual_kW", "V_Wind_m/s"} <= keys

        until(is_measured, what="no readings of the site", within_s=40)


def test_printed_lines_work_when_pasted_into_a_shell(demo: RunningDemo):
    lines = demo.output.read_text().split("\nTOKEN=$(", 1)[1]
    pasted = "TOKEN=$(" + lines.split("\n\n", 1)[0]
    said = subprocess.run(["sh", "-c", pasted], capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(said.stdout)["result"] == {"updated": {"SMA_STP60_01": None}, "not_updated": {}}


def test_killed_process_is_named_and_started_again(demo: RunningDemo):
    var = demo.output.parent / "var"
    victim = demo.description["processes"]["beat"]
    os.kill(victim, signal.SIGKILL)

    def replaced() -> bool:
        pid = json.loads((var / "demo.json").read_text())["processes"].get("beat")
        return pid is not None and pid != victim

    until(replaced, what="beat did not come back", within_s=10)
    assert f"beat (process {victim}) was ended by SIGKILL" in demo.output.read_text()


def test_guard_stands_in_for_a_killed_node_until_it_is_back(demo: RunningDemo):
    """The node dies with a hold; the register goes back in time, and /v1/logs tells who wrote it."""
    var = demo.output.parent / "var"
    device = demo.device("GENERIC_PV_01")
    node = next(name for name in demo.description["processes"] if name.startswith("edge:"))
    assert node.replace("edge", "guard") in demo.description["processes"]
    register = Register(device)
    until(lambda: register.value() > 0, what="the node has not written the default")
    full = register.value()
    with demo.api() as api:
        answer = api.put(
            f"/sites/{device['site_id']}/curtail-category",
            json={"value": 40, "category": device["category"], "device_tags": ["GENERIC_PV_01"]},
        )
        assert answer.json()["status"] == "success"
        accepted_s = time.monotonic()
        processes = json.loads((var / "demo.json").read_text())["processes"]
        victims = [pid for name, pid in processes.items() if name.startswith("edge:")]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)

        assert register.value() == pytest.approx(full * 0.4)
        until(lambda: register.value() == full, what="the default did not return", within_s=TIME_LIMIT_S + 3)
        assert time.monotonic() - accepted_s >= TIME_LIMIT_S - 1

        def lapse_is_logged() -> bool:
            logs = api.get(f"/sites/{device['site_id']}/logs", params={"limit": 50}).json()
            own = [log for log in logs if "GENERIC_PV_01" in log["result"]["updated"]]
            return [(log["watchdog"], log["value"]) for log in own[:2]] == [(True, 100), (False, 40)]

        until(lapse_is_logged, what="the lapse did not reach /v1/logs", within_s=20)
    register.close()
    for log in (var / "log").glob("guard-*.log"):
        assert "guard takes over" in log.read_text()
        until(partial(_says, log, "guard yields"), what="the guard did not yield", within_s=20)


def _says(log: Path, words: str) -> bool:
    return words in log.read_text()


def test_second_demo_on_the_same_directory_is_refused(demo: RunningDemo, tmp_path: Path):
    second = start(demo.output.parent / "var", output=tmp_path / "output")
    assert second.wait(timeout=20) == 2
    assert "a demo already runs" in (tmp_path / "output").read_text()
    assert (demo.output.parent / "var" / "demo.json").exists()


def test_taken_port_is_refused_with_what_to_do(demo: RunningDemo, tmp_path: Path):
    port = demo.description["api_url"].split(":")[2].split("/")[0]
    second = start(tmp_path / "var", output=tmp_path / "output", SGM_PORT=port)
    assert second.wait(timeout=20) == 2
    assert f"SGM_PORT={int(port) + 1} make demo" in (tmp_path / "output").read_text()


def test_nothing_outlives_the_demo_and_it_starts_again(tmp_path: Path):
    """However it was ended; the second and the third time with the data of the first."""
    var, secrets = tmp_path / "var", set()
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        secrets.add(lives_until(number, var=var, output=tmp_path / f"output-{number}"))
    assert len(secrets) == 1


def lives_until(number: signal.Signals, *, var: Path, output: Path) -> str:
    """Start a demo here and end it so: nothing of it is left but its data. Its root token."""
    (var / "demo.json").unlink(missing_ok=True)
    process = start(var, output=output, SGM_DEMO_BROKER="iotcore", SGM_DEMO_REDIS="bundled")
    try:
        description = until_ready(process, var, output)
        assert description["mqtt_isolation"] is False
        assert "no isolation between nodes" in output.read_text()
        # Some write a title over their command line and environment: those are known by their numbers.
        named = set(description["processes"].values())
        assert living(named) == named
    finally:
        process.send_signal(number)
        until_ended(process)
    until(lambda: not processes_of(var), what=f"left behind: {processes_of(var)}", within_s=10)
    until(lambda: not living(named), what=f"left behind: {living(named)}", within_s=10)
    if number != signal.SIGKILL:
        assert process.returncode == 0
        assert not (var / "demo.json").exists()
    return str(description["root_token"])


def test_signal_during_start_ends_everything_too(tmp_path: Path):
    var, output = tmp_path / "var", tmp_path / "output"
    process = start(var, output=output)
    until((var / "log" / "seed.log").exists, what="seeding did not begin", within_s=30)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    until_ended(process)
    assert not processes_of(var)
