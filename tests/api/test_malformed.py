"""Whatever is sent, no operation answers 500, and what it refuses it refuses in the one shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import transaction

from tests.api.scope_table import ROWS, Ids, Row
from tests.api.test_scope_matrix import CLIENT, PARAMETER, ROOT_TOKEN, World, id_of, world

__all__ = ["world"]

pytestmark = pytest.mark.long

DEEP = "[" * 900 + "]" * 900
# JSON as it is written: some of it no Python value would become.
VALUES = [
    "null",
    "true",
    "0",
    "-1",
    "1.5",
    "1e308",
    "1e400",
    "NaN",
    "9" * 30,
    "9" * 5000,
    '""',
    '" "',
    r'"\u0000"',
    r'"a\u0000b"',
    r'"\ud800"',
    r'"\ud83d\ude00"',
    '"' + "x" * 70_000 + '"',
    '"00000000-0000-0000-0000-000000000000"',
    '"{00000000-0000-4000-8000-000000000000}"',
    '"0000-00-00"',
    '"9999-12-31"',
    "[]",
    "[null]",
    "[[]]",
    '[""]',
    "{}",
    '{"":""}',
    r'{"\u0000": {"a": [1e9, "\u0000"]}}',
    '{"09:00": 1e308}',
    '{"09:00": "\\u0000"}',
    DEEP,
]
# Fields that some have, and some of those for each of them.
MORE = ("id", "device_tags", "meta_data", "unit", "reason", "dry_run", "no_such_field")
FEW = ["null", "true", "9" * 30, r'"a\u0000b"', "[]", "{}", r'{"\u0000": {"a": [1e9, "\u0000"]}}', DEEP]
BODIES = [
    *VALUES,
    "",
    " ",
    "{",
    '{"a": 1, "a": 2}',
    '{"a": 1} x',
    "'a'",
    "\ufeff{}",
    "{" * 100_000,
    DEEP * 5,
]
RAW = [b"\xff\xfe{}", b"\x00", b'{"name": "\xff"}', b'{"name": "\xed\xa0\x80"}']
TEXTS = [
    "%00",
    "a%00b",
    "%ed%a0%80",
    "%ff",
    "x" * 300,
    "%2e%2e",
    "%2F",
    "..",
    "%F0%9F%98%80",
    "'",
    '%22"',
    "2024-02-30",
]
QUERIES = (
    *("limit", "offset", "period", "name", "category", "device_tag", "include_in_curtailment", "watchdog"),
    *("valid_on", "valid_from", "key", "from", "to", "resolution", "at", "types", "format", "site_tag"),
)
ALLOWED = {200, 204, 400, 404, 405, 409, 413, 415}


def trouble_with(row: Row, method: str, where: str, body: bytes, headers: dict[str, str]) -> str:
    """What is wrong with the answer, which is undone; empty where it is one of ours."""
    with transaction.atomic():
        answer = CLIENT.generic(method, where, body, content_type="application/json", headers=headers)
        content = answer.content
        transaction.set_rollback(True)
    sent = f"{method} {where[:120]} {body[:80]!r}"
    if answer.status_code not in ALLOWED | {row.status}:
        return f"{answer.status_code} to {sent}: {content[:200]!r}"
    if answer.status_code >= 400 and set(json.loads(content)) != {"detail", "code", "errors", "request_id"}:
        return f"another shape to {sent}: {content[:200]!r}"
    return ""


def path_of(row: Row, ids: Ids, **changed: str) -> str:
    return "/v1/" + PARAMETER.sub(
        lambda found: changed.get(found[1], getattr(ids, id_of(row, found[1]))), row.path
    )


def bodies_of(row: Row, ids: Ids) -> Iterator[bytes]:
    """Bodies that are none, and this row's own with each of its values by turns replaced."""
    yield from (body.encode() for body in BODIES)
    yield from RAW
    assert row.body is not None
    good: Any = row.body(ids)
    one = good[0] if isinstance(good, list) else good
    keys = [(key, VALUES) for key in one] + [(key, FEW) for key in MORE]
    for key, values in keys:
        for value in values:
            told = json.dumps({name: each for name, each in one.items() if name != key})
            body = f"{told[:-1]}{', ' if len(told) > 2 else ''}{json.dumps(key)}: {value}}}"
            yield (f"[{body}]" if isinstance(good, list) else body).encode()


def found_with(row: Row, world: World) -> list[str]:
    headers = world.headers(ROOT_TOKEN)
    found = []
    if row.body is not None:
        where = path_of(row, world.own)
        found += [trouble_with(row, row.method, where, body, headers) for body in bodies_of(row, world.own)]
    good = json.dumps(row.body(world.own)).encode() if row.body else b""
    for parameter in PARAMETER.findall(row.path):
        for text in TEXTS:
            where = path_of(row, world.own, **{parameter: text})
            found.append(trouble_with(row, row.method, where, good, headers))
    if row.method == "GET":
        for name in [*QUERIES, *row.filters, *row.chooses]:
            for text in ("%00", "a%00b", "%ed%a0%80", "", "-1", "9" * 30, "x" * 300):
                where = f"{path_of(row, world.own)}?{name}={text}"
                found.append(trouble_with(row, row.method, where, b"", headers))
    return [text for text in found if text]


def test_no_input_makes_an_error_of_ours(world, subtests):
    for row in ROWS:
        if not row.needs_redis:
            with subtests.test(row.name):
                assert found_with(row, world) == []


def test_no_input_makes_an_error_of_ours_where_redis_is_asked(live_redis, world, subtests):
    for row in ROWS:
        if row.needs_redis:
            with subtests.test(row.name):
                assert found_with(row, world) == []
