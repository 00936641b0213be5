"""Every method of every path below /v1, with every kind of credential, for own and foreign objects.

What is expected stands in `scope_table.py`; a path or method that is not in it fails here.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils import timezone
from pytest_django import Settings

from devices_app.telemetry import ReceivedReadings, readings_record
from edge.wire.messages import TelemetryPoint
from schedules_app.services import schedule_create
from sites_app.models import ManagementToken, Node, Site
from sites_app.selectors import token_value
from sites_app.services import token_revoke
from smartgrid.api.fields import timestamp
from smartgrid.api.views import UnknownPathApi
from tests.api.scope_table import NOBODY, ROOT, ROWS, Ids, Row
from tests.factories import (
    control_log_make,
    device_error_make,
    device_make,
    loop_make,
    meter_make,
    node_make,
    site_make,
    story_make,
    token_make,
)
from tests.smartgrid.token_issuer import AUDIENCE, TokenIssuer

METHODS = ("get", "post", "put", "patch", "delete")
PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")
ROOT_TOKEN = "root-token-of-the-matrix-0123456789"
# One for all requests: making its middleware takes longer than to answer.
CLIENT = Client(raise_request_exception=False)
SHARED = {"device_type_id", "day", "free_day", "category"}


# --- the table and the paths ------------------------------------------------------------------------------------


def operations() -> Iterator[tuple[str, str]]:
    """Method and path of all that is routed below /v1, except for the answer to everything else."""
    for path, view in _routes(get_resolver("smartgrid.api.urls"), ""):
        if view is not UnknownPathApi:
            yield from ((method.upper(), path) for method in METHODS if hasattr(view, method))


def _routes(resolver: URLResolver, before: str) -> Iterator[tuple[str, Any]]:
    for entry in resolver.url_patterns:
        path = before + str(entry.pattern)
        if isinstance(entry, URLPattern):
            yield path, getattr(entry.callback, "view_class", None)
        else:
            yield from _routes(entry, path)


def test_every_operation_has_a_row_and_every_row_an_operation():
    rows = [(row.method, row.path) for row in ROWS]
    assert len(set(rows)) == len(rows)
    found = set(operations())
    assert found - set(rows) == set(), "add their rows to scope_table.py"
    assert set(rows) - found == set(), "these rows are about nothing"


# --- the world --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Two sites with all that belongs to a site, and callers of every kind."""

    own: Ids
    foreign: Ids
    absent: Ids
    bearer: str
    own_token: str
    nothing_token: str
    ended_token: str

    def headers(self, token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.bearer}", "X-Management-Token": token}

    def refused(self) -> dict[str, dict[str, str]]:
        """Headers that open nothing, by what is wrong with them."""
        good = self.headers(self.own_token)
        bearer, token = "Authorization", "X-Management-Token"
        return {
            "no credentials": {},
            "bearer only": {bearer: good[bearer]},
            "management token only": {token: good[token]},
            "root token only": {token: ROOT_TOKEN},
            "bad bearer": good | {bearer: good[bearer][:-5] + "AAAAA"},
            "bad bearer with root": good | {bearer: "Bearer a.b.c", token: ROOT_TOKEN},
            "bad management token": good | {token: "tok_" + "0" * 32},
            "deleted token": good | {token: self.ended_token},
            "bearer as management token": good | {token: self.bearer},
            "credentials swapped": {bearer: f"Bearer {self.own_token}", token: self.bearer},
        }


def side(site: Site, node: Node, device: Any, token: ManagementToken) -> Ids:
    day = timezone.now().date() + timedelta(days=2)
    schedule = schedule_create(site=site, category="inverter", valid_on=day, slots={"10:00": 20})
    device_error_make(device=device)
    now = timezone.now()
    point = TelemetryPoint(
        t=timestamp(now - timedelta(minutes=1)), key="P_kW", value=1.5, device=device.device_tag
    )
    readings_record([ReceivedReadings(str(node.pk), [point], now)])
    loop = loop_make(
        meter=meter_make(node=node),
        members=[device_make(node=node, category="wind_turbine", peak_power_kw=250)],
    )
    log = control_log_make(site=site, result={"updated": {device.device_tag: None}, "not_updated": {}})
    return Ids(
        site_id=str(site.pk),
        site_tag=site.site_tag,
        node_id=str(node.pk),
        node_name=node.name,
        device_id=str(device.pk),
        device_tag=device.device_tag,
        schedule_id=str(schedule.pk),
        token_id=str(token.pk),
        log_id=str(log.pk),
        meter_id=str(meter_make(node=node).pk),
        loop_id=str(loop.pk),
        bare_site_id=str(site_make().pk),
        bare_node_id=str(node_make(site=site).pk),
        device_type_id=str(device.device_type_id),
        day=day.isoformat(),
        free_day=(day + timedelta(days=1)).isoformat(),
    )


def nowhere(like: Ids) -> Ids:
    """Ids of nothing, in the form of these."""
    drawn = {
        item.name: getattr(like, item.name)
        if item.name in SHARED and item.name != "device_type_id"
        else str(uuid.uuid4())
        for item in fields(Ids)
    }
    return Ids(**drawn)


@pytest.fixture
def world(db: None, settings: Settings, tmp_path: Path) -> World:
    # Its tokens alone: its keys are read from a file.
    issuer, keys = TokenIssuer(port=0), tmp_path / "jwks.json"
    keys.write_bytes(issuer.document)
    settings.SGM_ISSUERS = [{"issuer": issuer.name, "audience": AUDIENCE, "jwks_file": str(keys)}]
    settings.SGM_ROOT_TOKENS = [ROOT_TOKEN]
    story = story_make()
    ended = token_make(story.site_a)
    ended_value = token_value(ended)
    token_revoke(token=ended)
    own = side(story.site_a, story.node_a, story.device_a, story.token_a)
    return World(
        own=own,
        foreign=side(story.site_b, story.node_b, story.device_b, story.token_b),
        absent=nowhere(own),
        bearer=issuer.token(),
        own_token=token_value(story.token_a),
        nothing_token=token_value(story.token_nothing),
        ended_token=ended_value,
    )


@dataclass(frozen=True)
class Answer:
    status: int
    text: str

    @property
    def code(self) -> str:
        return str(json.loads(self.text)["code"])

    @property
    def told(self) -> Any:
        """What it says, but for the request's own id."""
        said = json.loads(self.text)
        if isinstance(said, dict):
            said.pop("request_id", None)
        return said


def id_of(row: Row, parameter: str) -> str:
    """The name of the id that a parameter of the path takes."""
    return row.given.get(parameter, parameter)


def scoped(row: Row) -> dict[str, str]:
    """The parameters of the path that name somebody's objects, and the names of their ids."""
    names = {parameter: id_of(row, parameter) for parameter in PARAMETER.findall(row.path)}
    return {parameter: name for parameter, name in names.items() if name not in SHARED}


def ask(
    row: Row, headers: dict[str, str], *, of: Ids, body: Ids | None = None, query: str = "", **changed: str
) -> Answer:
    """Send a row's request about this side's objects, its body about another's where one is given.

    Whatever it does is undone. `changed`: parameters of the path that are not this side's.
    """
    path = PARAMETER.sub(lambda found: changed.get(found[1], getattr(of, id_of(row, found[1]))), row.path)
    content = json.dumps(row.body(body or of)) if row.body else ""
    with transaction.atomic():
        response = CLIENT.generic(
            row.method,
            f"/v1/{path}{query or row.query}",
            content,
            content_type="application/json" if row.body else "application/octet-stream",
            headers=headers,
        )
        transaction.set_rollback(True)
    return Answer(response.status_code, response.content.decode())


def leaked(answer: Answer, ids: Ids) -> list[str]:
    """Which of this side's own ids stand in an answer."""
    return [
        item.name
        for item in fields(Ids)
        if item.name not in SHARED and str(getattr(ids, item.name)) in answer.text
    ]


# --- the matrix -------------------------------------------------------------------------------------------------


def trouble(row: Row, world: World) -> Iterator[str]:
    """All that is not as this row says."""
    own, foreign, absent = world.own, world.foreign, world.absent
    root, holder, nothing = (
        world.headers(token) for token in (ROOT_TOKEN, world.own_token, world.nothing_token)
    )
    parameters = scoped(row)
    names_objects = row.body is not None and row.body(own) != row.body(foreign)

    if row.who is NOBODY:
        if ask(row, {}, of=own).status != row.status:
            yield "is not answered without credentials"
        return
    for what, headers in world.refused().items():
        answers = [ask(row, headers, of=of) for of in (own, foreign, absent)]
        if {answer.status for answer in answers} != {401}:
            yield f"{what}: {[answer.status for answer in answers]} instead of 401"
        elif any(answer.told != answers[0].told for answer in answers):
            yield f"{what}: tells own, foreign and absent objects apart"

    if row.who is ROOT:
        for what, headers in {"site token": holder, "token of nothing": nothing}.items():
            answers = [ask(row, headers, of=of) for of in (own, foreign, absent)]
            if {(answer.status, answer.code) for answer in answers} != {(403, "root_token_required")}:
                yield f"{what}: {[answer.status for answer in answers]} instead of 403"
            elif any(answer.told != answers[0].told for answer in answers):
                yield f"{what}: tells own, foreign and absent objects apart"
    else:
        yield from _site_token_trouble(row, world, holder=holder, nothing=nothing)

    for of, whose in ((own, "one site's"), (foreign, "another's")):
        answer = ask(row, root, of=of)
        if answer.status != row.status:
            yield f"root: {answer.status} for {whose} objects: {answer.text}"
        if missing := [name for name in row.shows if getattr(of, name) not in answer.text]:
            yield f"root: {missing} of {whose} objects not in the answer"
    for parameter, name in parameters.items():
        answer = ask(row, root, of=own, **{parameter: getattr(absent, name)})
        if answer.status != 404:
            yield f"root: {answer.status} for an absent {parameter} instead of 404"
    if "<uuid:device_type_id>" in row.path:
        for what, headers in {"root": root, "site token": holder}.items():
            answer = ask(row, headers, of=own, device_type_id=absent.device_type_id)
            if answer.status != 404 and (what == "root" or row.who is not ROOT):
                yield f"{what}: {answer.status} for an absent type instead of 404"
    if names_objects and (answer := ask(row, root, of=own, body=absent)).status != 404:
        yield f"root: {answer.status} for absent objects in the body instead of 404"


def _site_token_trouble(
    row: Row, world: World, *, holder: dict[str, str], nothing: dict[str, str]
) -> Iterator[str]:
    own, foreign, absent = world.own, world.foreign, world.absent
    parameters = scoped(row)
    names_objects = row.body is not None and row.body(own) != row.body(foreign)
    is_scoped = bool(parameters) or names_objects

    answer = ask(row, holder, of=own)
    if answer.status != row.status:
        yield f"site token: {answer.status} for its own objects: {answer.text}"
    if missing := [name for name in row.shows if getattr(own, name) not in answer.text]:
        yield f"site token: its own {missing} not in the answer"
    if found := leaked(answer, foreign):
        yield f"site token: shown foreign {found}"

    empty = ask(row, nothing, of=own)
    if empty.status != (404 if is_scoped else row.status):
        yield f"token of nothing: {empty.status}"
    if found := leaked(empty, own) + leaked(empty, foreign):
        yield f"token of nothing: shown {found}"

    # Each id that somebody could put another's in, one by one and all together.
    attempts: list[tuple[str, list[Answer]]] = []
    if is_scoped:
        attempts.append(("all", [ask(row, holder, of=of) for of in (foreign, absent)]))
    for parameter, name in parameters.items():
        asked = [ask(row, holder, of=own, **{parameter: getattr(of, name)}) for of in (foreign, absent)]
        attempts.append((f"{parameter} in the path", asked))
    if names_objects:
        attempts.append(("body", [ask(row, holder, of=own, body=of) for of in (foreign, absent)]))
    for parameter, name in row.chooses.items():
        asked = [
            ask(row, holder, of=own, query=f"?{parameter}={getattr(of, name)}") for of in (foreign, absent)
        ]
        attempts.append((f"{parameter} in the query", asked))
        if ask(row, holder, of=own, query=f"?{parameter}={getattr(own, name)}").status != row.status:
            yield f"site token: its own {parameter} in the query is refused"
    for where, answers in attempts:
        if [answer.status for answer in answers] != [404, 404]:
            yield f"site token: {[answer.status for answer in answers]} for foreign and absent ({where})"
        elif answers[0].told != answers[1].told:
            yield f"site token: {answers[0].text} tells foreign from absent {answers[1].text} ({where})"
    for parameter, name in row.filters.items():
        answers = [
            ask(row, holder, of=own, query=f"?{parameter}={getattr(of, name)}") for of in (foreign, absent)
        ]
        if [(answer.status, answer.told) for answer in answers] != [(200, []), (200, [])]:
            yield f"site token: {[answer.text for answer in answers]} for foreign and absent {parameter}"
        if leaked(ask(row, holder, of=own, query=f"?{parameter}={getattr(own, name)}"), own) == []:
            yield f"site token: nothing found by its own {parameter}"


def test_each_credential_opens_its_own_objects_and_no_others(world, subtests):
    for row in ROWS:
        if not row.needs_redis:
            with subtests.test(row.name):
                assert list(trouble(row, world)) == []


def test_each_credential_opens_its_own_objects_and_no_others_where_redis_is_asked(
    live_redis, world, subtests
):
    for row in ROWS:
        if row.needs_redis:
            with subtests.test(row.name):
                assert list(trouble(row, world)) == []


def test_foreign_device_tag_is_as_unknown_as_an_absent_one(live_redis, world):
    answers = []
    for ids in (world.foreign, world.absent):
        row = Row(
            "PUT",
            "sites/<uuid:site_id>/curtail-category",
            body=lambda of: {"value": 50, "category": "inverter", "device_tags": [of.device_tag]},
        )
        answer = ask(row, world.headers(world.own_token), of=world.own, body=ids)
        assert answer.status == 200
        answers.append(answer.text.replace(ids.device_tag, "TAG"))
    assert answers[0] == answers[1]
    assert "unknown_device" in answers[0]


# --- what no row is about ---------------------------------------------------------------------------------------

STRAYS = ["", "sites/", "sites/not-a-uuid", "no/such/path", "auth-tokens/", "../admin/", "sites/%00"]


def test_path_that_is_none_is_401_without_credentials_and_404_with_them(world):
    for method in (*METHODS, "options"):
        for path in STRAYS:
            row = Row(method.upper(), path)
            for what, headers in world.refused().items():
                assert ask(row, headers, of=world.own).status == 401, (row.name, what)
            for token in (ROOT_TOKEN, world.own_token, world.nothing_token):
                answer = ask(row, world.headers(token), of=world.own)
                assert (answer.status, answer.code) == (404, "not_found"), row.name


def paths_with_credentials() -> Iterator[tuple[str, Row]]:
    """Each path that wants them, with a row of it."""
    rows = {row.path: row for row in ROWS if row.who is not NOBODY}
    yield from sorted(rows.items())


def test_method_that_is_none_is_told_to_nobody_without_credentials(world):
    routed = set(operations())
    for path, known in paths_with_credentials():
        for method in METHODS:
            if (method.upper(), path) in routed:
                continue
            row = replace(known, method=method.upper(), body=None)
            assert ask(row, {}, of=world.own).status == 401, row.name
            answer = ask(row, world.headers(ROOT_TOKEN), of=world.own)
            assert (answer.status, answer.code) == (405, "method_not_allowed"), row.name


def test_options_say_nothing_of_objects(world):
    for path, known in paths_with_credentials():
        row = replace(known, method="OPTIONS", body=None)
        assert ask(row, {}, of=world.own).status == 401, path
        answers = [ask(row, world.headers(world.own_token), of=of) for of in (world.own, world.foreign)]
        assert answers[0].status in {200, 403, 405}, path
        assert answers[0].told == answers[1].told, path
