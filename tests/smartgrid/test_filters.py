"""Filters of lists refuse what they would otherwise pass over."""

from __future__ import annotations

import pytest

from tests.factories import story_make

pytestmark = pytest.mark.django_db


@pytest.fixture
def story():
    return story_make()


@pytest.mark.parametrize(
    "query",
    [
        "category=",
        "site_id=",
        "include_in_curtailment=",
        "include_in_curtailment=null",
        "include_in_curtailment=True",
        "include_in_curtailment=1",
        "category=inverter&category=battery",
        "category=%00",
        "site_id=7",
    ],
)
def test_filter_that_chooses_nothing_is_refused_by_name(story, query):
    answer = story.root.get(f"/v1/devices?{query}")
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == [query.partition("=")[0]]


@pytest.mark.parametrize(("query", "count"), [("true", 2), ("false", 0)])
def test_boolean_filter_knows_both_words(story, query, count):
    assert len(story.root.get(f"/v1/devices?include_in_curtailment={query}").json()) == count


@pytest.mark.parametrize("query", ["", "valid_on=2026-1-1", "valid_on=", "valid_until=2026-02-30"])
def test_day_filter_takes_days_of_the_calendar_alone(story, query):
    answer = story.root.get(f"/v1/schedules?{query}")
    assert answer.status_code == (400 if query else 200)
