"""What the API sends becomes objects; what it does not send becomes an error with a name."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from sgm import Ambiguous, AnswerInvalid, Client, NotFound, Unreachable
from sgm.models import ControlLog, DeviceChange
from tests.client.conftest import HANG_UP, Asked, Says, Scripted, Waits, error

SITE = "01751407-d87b-4d89-b47f-cca4dfb85a92"
OTHER = "85a2dfb4-cca4-47fb-89bd-87b4d7014751"
ROOT = Path(__file__).resolve().parents[2]


def site_of(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "id": SITE if number == 0 else f"00000000-0000-4000-8000-{number:012d}",
        "created_at": "2024-08-01T10:52:55.330076Z",
        "site_tag": f"site_{number}",
        "name": f"Site {number}",
        "meta_data": {},
        "curtailment_time_limit": 60,
    } | changes


def log_of(**changes: Any) -> dict[str, Any]:
    return {
        "id": "c7d8e9f0-1a2b-3c4d-5e6f-7a8b9c0d1e2f",
        "created_at": "2024-08-01T15:22:10.330076Z",
        "site_id": SITE,
        "status": "success",
        "category": "inverter",
        "watchdog": False,
        "value": 50,
        "result": {"updated": {"SMA_STP60_01": None}, "not_updated": {}},
    } | changes


def paged(server: Scripted, total: int) -> None:
    def answer(asked: Asked) -> Says:
        limit, offset = int(asked.query["limit"][0]), int(asked.query.get("offset", ["0"])[0])
        rows = [site_of(number) for number in range(1, total + 1)][offset : offset + limit]
        # As behind a proxy: the host is one that only central knows.
        link = f'<http://central.internal/v1/sites?limit={limit}&offset={offset + limit}>; rel="next"'
        return Says(body=rows, headers={"Link": link} if offset + limit < total else {})

    server.on_call("GET", "/sites", answer)


def test_list_is_read_page_by_page(server: Scripted, client: Client):
    paged(server, 1100)
    assert len(list(client.sites())) == 1100
    assert [asked.query.get("offset") for asked in server.asked] == [None, ["500"], ["1000"]]


def test_list_asks_only_for_what_is_looked_at(server: Scripted, client: Client):
    paged(server, 1100)
    next(client.sites())
    assert len(server.asked) == 1


def test_object_that_slips_to_the_next_page_is_given_once(server: Scripted, client: Client):
    link = '</v1/sites?limit=2&offset=2>; rel="next"'
    first = Says(body=[site_of(1), site_of(2)], headers={"Link": link})
    server.on("GET", "/sites", first, Says(body=[site_of(2), site_of(3)]))
    assert [site.site_tag for site in client.sites()] == ["site_1", "site_2", "site_3"]


def test_field_that_is_not_known_yet_is_kept_aside(server: Scripted, client: Client):
    server.on("GET", f"/sites/{SITE}", Says(body=site_of(colour="green")))
    site = client.site(SITE)
    assert site.created_at == datetime(2024, 8, 1, 10, 52, 55, 330076, tzinfo=UTC)
    assert site.raw["colour"] == "green"


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"<html>", "JSON"),
        ([], "object"),
        (site_of(curtailment_time_limit="60"), "curtailment_time_limit"),
        (site_of(curtailment_time_limit=True), "curtailment_time_limit"),
        (site_of(created_at="yesterday"), "created_at"),
        ({"id": SITE}, "missing"),
        (site_of(metrics=[{"key": "P"}]), "metrics.0.value"),
    ],
)
def test_answer_of_another_shape_names_the_place(server: Scripted, client: Client, body: Any, place: str):
    server.on("GET", f"/sites/{SITE}", Says(body=body))
    with pytest.raises(AnswerInvalid, match=place):
        client.site(SITE)


def test_site_is_found_by_id_tag_or_name(server: Scripted, client: Client):
    def answer(asked: Asked) -> Says:
        by_tag, by_name = asked.query.get("site_tag"), asked.query.get("name")
        is_there = by_tag == ["site_0"] or by_name == ["Site 0"]
        return Says(body=[site_of()] if is_there else [])

    server.on_call("GET", "/sites", answer)
    server.on("GET", f"/sites/{SITE}", Says(body=site_of()))
    assert {client.site_find(text).id for text in (SITE, "site_0", "Site 0")} == {SITE}
    with pytest.raises(NotFound):
        client.site_find("site_9")


def test_name_of_two_sites_is_ambiguous(server: Scripted, client: Client):
    server.on("GET", "/sites", Says(body=[site_of(1), site_of(2, name="Site 1")]))
    with pytest.raises(Ambiguous, match="000000000002"):
        client.site_find("Site 1")


@pytest.mark.parametrize("text", ["../auth-tokens", ".", "..", "a/b", "a?b#c", "\udcff"])
def test_id_leads_to_no_other_path(server: Scripted, client: Client, text: str):
    with pytest.raises(NotFound):
        client.device(text)
    assert server.asked[0].path.startswith("/v1/devices/")
    assert server.asked[0].path.count("/") == 3


def test_control_request_is_sent_as_the_api_takes_it(server: Scripted, client: Client):
    done = {"status": "partial", "result": {"updated": {"A": None}, "not_updated": {"B": "range: no"}}}
    server.on("PUT", f"/sites/{SITE}/curtail-category", Says(body=done, headers={"X-Request-ID": "r-7"}))
    answer = client.curtail(
        SITE, category="inverter", value=300, unit="kw", device_tags=["A", "B"], reason="congestion"
    )
    assert server.asked[0].body == {
        "value": 300,
        "category": "inverter",
        "unit": "kw",
        "device_tags": ["A", "B"],
        "reason": "congestion",
    }
    assert (answer.is_done, answer.result.not_updated, answer.request_id) == (
        False,
        {"B": "range: no"},
        "r-7",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_value_that_is_no_number_is_not_sent(server: Scripted, client: Client, value: float):
    with pytest.raises(ValueError, match="finite"):
        client.curtail(SITE, category="inverter", value=value)
    assert server.asked == []


def test_dry_run_that_was_taken_for_a_request_is_told(server: Scripted, client: Client):
    done = {"status": "success", "result": {"updated": {"A": None}, "not_updated": {}}}
    server.on("PUT", f"/sites/{SITE}/curtail-category", Says(body=done))
    with pytest.raises(AnswerInvalid, match="it was done"):
        client.curtail(SITE, category="inverter", value=50, dry_run=True)


def test_schedule_is_planned_and_deleted(server: Scripted, client: Client):
    day = date(2026, 11, 24)
    planned = {
        "id": "s-1",
        "site_id": SITE,
        "category": "inverter",
        "valid_on": "2026-11-24",
        "schedule": {"09:00": 50, "09:15": None},
        "synchronization_result": None,
    }
    server.on("POST", "/schedules", Says(body=planned))
    server.on("PUT", "/schedules/2026-11-24/inverter", Says(body=planned))
    server.on("DELETE", "/schedules/s-1", Says(body={"status": "success", "message": "Deleted."}))
    made = client.schedule_create(site_id=SITE, category="inverter", valid_on=day, slots={"09:00": 50})
    client.schedule_replace(site_id=SITE, category="inverter", valid_on=day, slots={"09:00": 50})
    client.schedule_delete(made.id)
    assert made.valid_on == day
    assert server.asked[0].body["valid_on"] == "2026-11-24"
    assert server.asked[1].body == {"site_id": SITE, "schedule": {"09:00": 50}}


def test_fleet_is_provisioned(server: Scripted, client: Client):
    server.on("POST", "/sites", Says(body={"id": SITE, "site_tag": "new"}))
    server.on("POST", "/devices/bulk", Says(body=[{"id": "1"}, {"id": "2"}]))
    server.on("GET", "/nodes/1/settings", Says(body={"id": "1"}))
    server.on("PATCH", "/nodes/1", Says(body={"id": "1"}))
    server.on("DELETE", "/device-types/1", Says(body={"status": "success", "message": "Gone."}))
    assert client.provision_sites.create({"site_tag": "new"})["id"] == SITE
    assert len(client.provision_devices.create_many([{"device_tag": "A"}, {"device_tag": "B"}])) == 2
    assert client.provision_nodes.settings("1") == {"id": "1"}
    client.provision_nodes.change("1", polaris_node_name="node-09")
    assert client.provision_device_types.delete("1") == "Gone."
    assert server.asked[3].body == {"polaris_node_name": "node-09"}


# --- events -------------------------------------------------------------------------------------------------


def stream(*events: str) -> Says:
    return Says(body="".join(events).encode(), headers={"Content-Type": "text/event-stream"})


def event_of(kind: str, event_id: str, data: Any) -> str:
    return f"event: {kind}\nid: {event_id}\ndata: {json.dumps(data)}\n\n"


def test_events_are_told_as_what_they_are_about(server: Scripted, client: Client):
    changed = {"id": "d", "device_tag": "A", "site_id": SITE, "value": 40, "at": "2026-11-23T09:00:00Z"}
    server.on(
        "GET",
        "/events",
        stream(": hello\n\n", event_of("control_log", "1-0", log_of()), event_of("device", "2-0", changed)),
    )
    logged, device = client.events(reconnects=False, types=("control_log", "device"), site_id=SITE)
    assert isinstance(logged.subject, ControlLog)
    assert isinstance(device.subject, DeviceChange)
    assert (logged.id, device.subject.value) == ("1-0", 40)
    assert server.asked[0].query == {"types": ["control_log,device"], "site_id": [SITE]}


def test_lost_stream_is_resumed_after_the_last_event(server: Scripted, client: Client, waits: Waits):
    server.on(
        "GET",
        "/events",
        stream("retry: 2000\n\n", event_of("device", "1-0", {}), "event: device\nid: 2-0\nda"),
        Says(body=HANG_UP),
        stream("event: mark\nid: 3-0\ndata: {}\n\n"),
        stream(event_of("device", "4-0", {})),
    )
    found = client.events()
    assert [next(found).id, next(found).id] == ["1-0", "4-0"]
    assert [asked.headers.get("last-event-id") for asked in server.asked] == [None, "1-0", "1-0", "3-0"]
    assert waits.waited_s[0] == 1.5


def test_refused_stream_is_an_error(server: Scripted, client: Client):
    server.on("GET", "/events", error(404, "not_found"))
    with pytest.raises(NotFound):
        next(client.events())


def test_expired_bearer_token_is_renewed_for_a_stream(server: Scripted, client: Client):
    server.on("GET", "/events", error(401, "bearer_expired"), stream(event_of("node", "1-0", {})))
    assert next(client.events()).type == "node"
    assert server.tokens_given == 2


def test_listener_outlives_a_restart_of_the_events_process(server: Scripted, client: Client, waits: Waits):
    away = error(503, "events_unavailable", Retry_After="5")
    server.on(
        "GET",
        "/events",
        stream(event_of("node", "1-0", {})),
        *[away] * 10,
        stream(event_of("node", "2-0", {})),
    )
    found = client.events()
    assert [next(found).id, next(found).id] == ["1-0", "2-0"]
    assert sum(waits.waited_s) > 50


def test_stream_that_nobody_serves_any_more_is_given_up(server: Scripted, client: Client):
    server.on("GET", "/events", Says(body=HANG_UP))
    with pytest.raises(Unreachable):
        next(client.events(reconnects=False))


# --- what it costs ------------------------------------------------------------------------------------------


def test_library_loads_neither_the_command_line_nor_anything_of_central():
    code = "import sgm, sys; print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "clients" / "python",
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(said.stdout.split())
    # (httpx brings rich along where it finds it.)
    assert not loaded & {"typer", "django", "smartgrid", "edge", "sites_app", "celery"}
