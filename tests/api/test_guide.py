"""Every request of the API guide, sent as printed and in the order they stand there.

What exists before the first of them is what the guide prints: its sites, nodes, devices, tokens, logs, errors
and readings, under the printed ids. So an answer is compared whole, to the order of its keys.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import time_machine
from django.db.models import Model
from django.test import Client
from django.urls import include, path
from pytest_django import Settings

from devices_app.models import Device, DeviceType
from devices_app.telemetry import ReceivedReadings, readings_record
from edge.wire.messages import TelemetryPoint
from schedules_app.models import Schedule
from schedules_app.services import schedule_create
from sites_app.models import ManagementToken, Node, Site
from sites_app.presence import central_now, pong_note
from sites_app.services import token_issue
from smartgrid.issuer import issuer_client_create, issuer_urlpatterns
from smartgrid.issuer_keys import issuer_key_create
from tests.api.examples import EXAMPLES, TEXT, Example, printed
from tests.factories import (
    control_log_make,
    device_error_make,
    device_make,
    device_type_make,
    node_make,
    site_make,
)
from tests.fake_node import FakeNode
from tests.servers import Broker

SITE = "/v1/sites/01751407-d87b-4d89-b47f-cca4dfb85a92"
ROOT_TOKEN = "root-token-of-the-guide-0123456789"
# The guide's headers and bodies hold placeholders, which their readers replace.
BEARER, ROOT, SITE_TOKEN = (
    "Bearer eyJhbGciOiJSUzI1NiIsInR5cC...",
    "your-root-management-token",
    "your-management-token",
)
CLIENT_ID, CLIENT_SECRET = "your-client-id", "your-client-secret"
# Its path stands for any other.
PLACEHOLDER = "/v1/endpoint"
# These ask Redis or a node.
NEED_SERVICES = {
    "GET /v1/site-health-report",
    f"GET {SITE}",
    f"PUT {SITE}/curtail-category",
}
READINGS_OF = {"P_Actual_kW": "P_kW", "V_Wind_m/s": "V_Wind_m/s"}
# Fields whose values nobody can foretell, and what they look like.
DRAWN = {
    "access_token": re.compile(r"eyJhbGciOiJSUzI1NiIs[\w-]+\.[\w-]+\.[\w-]+"),
    "alembic_version": re.compile(r"[0-9a-f]{12}"),
}
# What a created object gets, by the field it is told in.
GIVEN = {
    "id": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "token": re.compile(r"tok_[0-9a-f]{32}"),
}
COLLECTION = re.compile(r"/v1/(auth-tokens|schedules)\b|/(schedules)\b")


# --- what the guide prints is there -----------------------------------------------------------------------------


def rows_make() -> None:
    """All rows that the guide's answers tell of, but those which its own requests make."""
    for told in printed("GET", "/v1/sites"):
        site = site_make(
            id=uuid.UUID(told["id"]),
            site_tag=told["site_tag"],
            name=told["name"],
            meta_data=told["meta_data"],
            curtailment_time_limit=told["curtailment_time_limit"],
        )
        born(site, told)
    tokens_make()
    for told in printed("GET", "/v1/nodes"):
        node = node_make(
            site=Site.objects.get(pk=told["site_id"]),
            id=uuid.UUID(told["id"]),
            name=told["polaris_node_name"],
            meta_data=told["meta_data"],
            curtail_in_batch=told["curtail_in_batch"],
            iothub=told["iothub"],
        )
        born(node, told)
    detail = printed("GET", "/v1/nodes/14b3c7a0-5e9d-4f21-bd8a-6c1e2d3f4a5b")
    Node.objects.filter(pk=detail["id"]).update(configuration=detail["configuration"])
    for devices in printed("GET", f"{SITE}/device-categories").values():
        for told in devices:
            device_of_guide_make(told)
    for told in printed("GET", f"{SITE}/logs?limit=5"):
        control_log_make(
            id=uuid.UUID(told["id"]),
            site=Site.objects.get(pk=told["site_id"]),
            at=datetime.fromisoformat(told["created_at"]),
            **{key: told[key] for key in ("status", "category", "watchdog", "value", "result")},
        )
    for site_id, errors in printed("GET", "/v1/device-error-logs?period=24").items():
        for tag, told in errors["devices"].items():
            device = Device.objects.get(site=site_id, device_tag=tag)
            for error in told["error_details"]:
                at = datetime.fromisoformat(error["timestamp"])
                device_error_make(device=device, at=at, error=error["error"])
    for told in printed("GET", "/v1/schedules"):
        schedule = schedule_create(
            site=Site.objects.get(pk=told["site_id"]),
            category=told["category"],
            valid_on=date.fromisoformat(told["valid_on"]),
            slots=told["schedule"],
        )
        Schedule.objects.filter(pk=schedule.pk).update(id=told["id"])


def born(row: Model, told: dict[str, Any]) -> None:
    type(row)._default_manager.filter(pk=row.pk).update(created_at=datetime.fromisoformat(told["created_at"]))


def tokens_make() -> None:
    """Both tokens, and the site that only the second of them names."""
    for told in printed("GET", "/v1/auth-tokens"):
        for site_id in told["sites"]:
            if not Site.objects.filter(pk=site_id).exists():
                site_make(id=uuid.UUID(site_id))
        sites = Site.objects.in_bulk(told["sites"])
        token_issue(
            name=told["name"],
            sites=[sites[uuid.UUID(site_id)] for site_id in told["sites"]],
            value=told["token"],
            token_id=uuid.UUID(told["id"]),
        )


def device_of_guide_make(told: dict[str, Any]) -> None:
    address = {}
    detail = printed("GET", "/v1/devices/a5b6c7d8-e9f0-1a2b-3c4d-5e6f7a8b9c0d")
    if detail["id"] == told["id"]:
        address = {key: value for key, value in detail.items() if key.startswith("modbus_")}
    device = device_make(
        id=uuid.UUID(told["id"]),
        node=Node.objects.get(pk=told["node_id"]),
        device_type=DeviceType.objects.filter(pk=told["device_type_id"]).first()
        or device_type_make(id=uuid.UUID(told["device_type_id"]), category=told["category"]),
        device_tag=told["device_tag"],
        **{
            key: told[key]
            for key in (
                "max_value",
                "min_value",
                "default_value",
                "meta_data",
                "include_in_curtailment",
                "category",
                "peak_power_kw",
            )
        },
        **address,
    )
    # As the node has confirmed it.
    Device.objects.filter(pk=device.pk).update(value=told["value"])
    born(device, told)


def readings_make() -> None:
    """What adds up to the metrics that are printed of the site."""
    device = Device.objects.get(device_tag="SMA_STP60_01")
    points = [
        TelemetryPoint(
            t=metric["timestamp"],
            key=READINGS_OF[metric["key"]],
            value=float(metric["value"]),
            device=device.device_tag,
        )
        for metric in printed("GET", SITE)["metrics"]
    ]
    received = datetime.fromisoformat(points[0].t)
    readings_record([ReceivedReadings(str(device.node_id), points, received)])


@pytest.fixture(scope="session")
def issuer_key(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("key") / "issuer.pem"
    issuer_key_create(file)
    return file.read_bytes()


@pytest.fixture
def guide_clock() -> Iterator[time_machine.Traveller]:
    """The guide's day, a moment after the time it prints most."""
    with time_machine.travel("2024-08-01T10:53:00Z", tick=True) as clock:
        yield clock


@pytest.fixture
def guide(db: None, guide_clock: object, issuer_key: bytes, tmp_path: Path, settings: Settings) -> str:
    """The guide's rows, the API and the issuer of its tokens; the secret of the guide's client."""
    file = tmp_path / "issuer.pem"
    file.write_bytes(issuer_key)
    settings.SGM_ISSUER_KEY_FILE = str(file)
    settings.SGM_ISSUER_URL = "https://polarisedge.example/"
    settings.SGM_AUDIENCE = "curtailment-api"
    settings.SGM_ISSUERS = []
    settings.SGM_ROOT_TOKENS = [ROOT_TOKEN]
    urls = ModuleType("urls")
    urls.urlpatterns = [*issuer_urlpatterns(), path("v1/", include("smartgrid.api.urls"))]  # type: ignore[attr-defined]
    settings.ROOT_URLCONF = urls
    rows_make()
    _, secret = issuer_client_create(name="Reader of the guide", client_id=CLIENT_ID)
    return secret


@pytest.fixture(scope="session")
def guide_broker(broker: Broker) -> Broker:
    """A broker that knows the guide's nodes."""
    for node in printed("GET", "/v1/nodes"):
        broker.add_user(node["id"])
    return broker


@pytest.fixture
def plant(guide: str, sending: None, eager: None, guide_broker: Broker) -> Iterator[None]:
    """The guide's healthy node, which obeys and measures; the other has not been heard of."""
    readings_make()
    names = {row["node_name"] for row in printed("GET", "/v1/site-health-report") if row["healthy"]}
    (node,) = Node.objects.filter(name__in=names)
    with FakeNode.on(guide_broker, node) as fake:
        fake.beat()
        pong_note(str(node.pk), "ping", heard=datetime.fromtimestamp(central_now()).astimezone())
        yield


# --- sending and comparing --------------------------------------------------------------------------------------


@dataclass
class Reader:
    """Somebody who tries the guide out, with this management token where it says "your-management-token"."""

    token: str
    secret: str
    bearer: str = ""
    client: Client = field(default_factory=lambda: Client(raise_request_exception=False))
    # Of each collection: what the guide prints of the object it creates, and what was drawn instead.
    learned: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def send(self, example: Example) -> Iterator[str]:
        """Send a request, and tell how its answer differs from what is printed."""
        placeholders = {
            BEARER: f"Bearer {self.bearer}",
            ROOT: ROOT_TOKEN,
            SITE_TOKEN: self.token,
            "application/json": "application/json",
        }
        headers = {name: placeholders[value] for name, value in example.headers.items()}
        kind = headers.pop("Content-Type", "application/octet-stream")
        where, body = example.path, (example.body or "").replace(CLIENT_SECRET, self.secret)
        collection = _collection(where)
        for told, drawn in self.learned.get(collection, ()):
            where = where.replace(told, drawn)
        answer = self.client.generic(example.method, where, body, content_type=kind, headers=headers)
        if example.path == PLACEHOLDER:
            # Both credentials were good: it is only the path that does not exist.
            if (answer.status_code, answer.json()["code"]) != (404, "not_found"):
                yield f"{answer.status_code} {answer.content!r}"
            return
        if answer.status_code != example.status:
            yield f"status {answer.status_code}, printed {example.status}: {answer.content!r}"
            return
        if example.answer is None:
            if answer.content:
                yield f"a body, printed none: {answer.content!r}"
            return
        if answer["Content-Type"] != "application/json":
            yield f"content type {answer['Content-Type']}"
        text = answer.content.decode()
        if example.method == "POST" and collection:
            self._learn(collection, json.loads(text), example.answer)
        for told, drawn in self.learned.get(collection, ()):
            text = text.replace(drawn, told)
        shown = json.loads(text)
        if "access_token" in example.answer:
            self.bearer = shown["access_token"]
        yield from differences(shown, example.answer)

    def _learn(self, collection: str, shown: dict[str, Any], told: dict[str, Any]) -> None:
        for key, form in GIVEN.items():
            if key in told and form.fullmatch(shown.get(key, "")):
                self.learned.setdefault(collection, []).append((told[key], shown[key]))


def _collection(where: str) -> str:
    found = COLLECTION.search(where)
    return (found[1] or found[2]) if found else ""


def differences(shown: Any, told: Any, at: str = "") -> Iterator[str]:
    """How an answer differs from what is printed: keys and their order, types, values.

    A list of objects may hold more than the guide, which prints one for many: what it prints stands there in
    its order, and all have the form of the first.
    """
    if isinstance(told, dict) and isinstance(shown, dict):
        if list(shown) != list(told):
            yield f"{at}: keys {list(shown)}, printed {list(told)}"
            return
        for key, value in told.items():
            if key in DRAWN:
                if not (isinstance(shown[key], str) and DRAWN[key].fullmatch(shown[key])):
                    yield f"{at}.{key}: {shown[key]!r}, printed {value!r}"
            else:
                yield from differences(shown[key], value, f"{at}.{key}")
    elif isinstance(told, list) and isinstance(shown, list) and told and isinstance(told[0], dict):
        rest = iter(_texts(shown))
        if not all(text in rest for text in _texts(told)):
            yield f"{at}: {_texts(shown)} does not hold all of {_texts(told)} in this order"
        for place, row in enumerate(shown):
            if not like(row, told[0]):
                yield f"{at}.{place}: {row} has not the form of {told[0]}"
    # As texts: 100 is not 100.0, and 1 is not true.
    elif json.dumps(shown) != json.dumps(told):
        yield f"{at}: {shown!r}, printed {told!r}"


def _texts(rows: Sequence[Any]) -> list[str]:
    return [json.dumps(row) for row in rows]


def like(shown: Any, told: Any) -> bool:
    """Tell whether two values have the same keys in the same order, and their leaves one form."""
    if isinstance(told, dict):
        return (
            isinstance(shown, dict)
            and (list(shown) == list(told) or not _is_record(told))
            and all(like(shown[key], told[key]) for key in shown if key in told)
        )
    if isinstance(told, list):
        return isinstance(shown, list)
    return _form(shown) == _form(told)


def _is_record(told: dict[str, Any]) -> bool:
    """Keys that are names of fields, not a device's tag or a quarter hour."""
    return all(re.fullmatch(r"[a-z]+(_[a-z]+)*", key) for key in told)


FORMS = {
    "timestamp": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"),
    "day": re.compile(r"\d{4}-\d\d-\d\d"),
    **GIVEN,
}


def _form(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "bool"
        case int() | float():
            return "number"
        case str():
            return next((name for name, form in FORMS.items() if form.fullmatch(value)), "text")
    return type(value).__name__


def replay(reader: Reader, clock: time_machine.Traveller, examples: Sequence[Example], subtests: Any) -> None:
    """Send these in their order; each that is answered otherwise than printed fails by its name."""
    for example in examples:
        if example.path.endswith("/logs"):
            # The guide looks at the log at the end of its day.
            clock.move_to("2024-08-01T15:30:00Z")
        with subtests.test(example.name):
            assert list(reader.send(example)) == []


def reader_of(holder: str, secret: str) -> Reader:
    tokens = printed("GET", "/v1/auth-tokens")
    return Reader(token=ROOT_TOKEN if holder == "root" else tokens[0]["token"], secret=secret)


# --- the claims -------------------------------------------------------------------------------------------------


def test_no_request_of_the_guide_is_left_out():
    assert len(EXAMPLES) == TEXT.count("curl ") == 31
    without_services = [example for example in EXAMPLES if not needs_services(example)]
    assert len(without_services) == 31 - 4


def test_guide_prints_an_answer_to_all_but_the_placeholder():
    assert [example.path for example in EXAMPLES if example.status is None] == [PLACEHOLDER]
    assert [
        (example.method, example.status) for example in EXAMPLES if example.status not in {None, 200}
    ] == [("DELETE", 204)]


def needs_services(example: Example) -> bool:
    return f"{example.method} {example.path}" in NEED_SERVICES


@pytest.mark.parametrize("holder", ["root", "site"])
def test_every_request_that_needs_no_service_is_answered_as_printed(guide, guide_clock, holder, subtests):
    examples = [example for example in EXAMPLES if not needs_services(example)]
    replay(reader_of(holder, guide), guide_clock, examples, subtests)


@pytest.mark.parametrize("holder", ["root", "site"])
def test_every_request_is_answered_as_printed(guide, plant, guide_clock, holder, subtests):
    replay(reader_of(holder, guide), guide_clock, EXAMPLES, subtests)
    # Its own requests have made a token and a schedule, and deleted them again.
    assert [str(row.pk) for row in Schedule.objects.all()] == ["e9f01a2b-3c4d-5e6f-7a8b-9c0d1e2f3a4b"]
    assert ManagementToken.objects.count() == 2


def test_requests_without_a_body_may_carry_the_headers_of_the_guides_set_up(guide, guide_clock, subtests):
    (set_up,) = [example for example in EXAMPLES if example.path == PLACEHOLDER]
    assert set_up.headers["Content-Type"] == "application/json"
    examples = [
        example
        if example.body
        else replace(example, headers=example.headers | {"Content-Type": "application/json"})
        for example in EXAMPLES
        if not needs_services(example)
    ]
    replay(reader_of("site", guide), guide_clock, examples, subtests)


ROW = {"id": "e9f01a2b-3c4d-5e6f-7a8b-9c0d1e2f3a4b", "created_at": "2024-08-01T10:52:55.330076Z", "limit": 60}
TAMPERED = [
    {"id": ROW["id"], "limit": 60, "created_at": ROW["created_at"]},
    {"id": ROW["id"], "created_at": ROW["created_at"]},
    {**ROW, "more": None},
    {**ROW, "limit": 60.0},
    {**ROW, "limit": True},
    {**ROW, "limit": None},
    {**ROW, "created_at": "2024-08-01T10:52:55Z"},
    [ROW],
    None,
]


@pytest.mark.parametrize("shown", TAMPERED, ids=str)
def test_replay_tells_of_any_other_answer(shown):
    assert list(differences(ROW, ROW)) == []
    assert list(differences(shown, ROW))
    assert list(differences([shown], [ROW]))


def test_replay_tells_of_a_list_that_lacks_a_row_turns_it_round_or_adds_one_of_another_form():
    other = {**ROW, "limit": 90}
    assert list(differences([ROW, {**ROW, "limit": 1}, other], [ROW, other])) == []
    assert list(differences([ROW], [ROW, other]))
    assert list(differences([other, ROW], [ROW, other]))
    assert list(differences([ROW, other, {**ROW, "limit": "1"}], [ROW, other]))
    assert list(differences([], [ROW]))
