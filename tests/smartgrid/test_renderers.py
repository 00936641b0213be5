"""What is rendered is what Python's own JSON says, however it comes about."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest

from smartgrid.api.fields import moment, timestamp
from smartgrid.api.renderers import json_bytes, json_stored, json_value

KEY = UUID("01751407-d87b-4d89-b47f-cca4dfb85a92")
MOMENTS = [
    datetime(2024, 8, 1, 10, 52, 55, 330076, tzinfo=UTC),
    datetime(2024, 8, 1, 10, 52, 55, 10, tzinfo=UTC),
    datetime(2024, 8, 1, 10, 52, 55, tzinfo=UTC),
    datetime(2024, 8, 1, 0, 30, 0, 1, tzinfo=timezone(timedelta(hours=2))),
    datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
]


@pytest.mark.parametrize("at", MOMENTS)
def test_moment_is_rendered_as_its_timestamp(at):
    assert json_bytes([moment(at)]) == json_bytes([timestamp(at)])


@pytest.mark.parametrize("at", MOMENTS)
def test_half_a_character_changes_nothing_of_what_stands_beside_it(at):
    shown = {"id": KEY, "at": moment(at), "slots": json_stored('{"a":1}'), "text": "half \ud83d"}
    assert json.loads(json_bytes(shown)) == {
        "id": str(KEY),
        "at": timestamp(at),
        "slots": {"a": 1},
        "text": "half \ud83d",
    }


@pytest.mark.parametrize(
    "text",
    [
        '{"b": [1, 1.0, -0.0, 60.10, 1e5, null, true], "a": {"a": "ü\\u00fc\\n"}}',
        '"half \\ud83d"',
        "123456789012345678901234567890",
        "1e400",
        "-1e400",
        "0.1000000000000000055511151231257827",
        '{"a": 1, "a": 2}',
    ],
)
def test_json_of_a_column_is_read_as_python_reads_it(text):
    assert repr(json_value(text)) == repr(json.loads(text))
