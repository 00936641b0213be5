from __future__ import annotations

import json
import uuid
from datetime import UTC, date, datetime, timedelta

import msgspec
import pytest

from edge.wire.messages import AppliedDocument
from schedules_app.models import Schedule
from schedules_app.services import schedule_create
from sites_app.documents import manifest_for
from tests.factories import device_make, device_type_make, report_make, report_record, story_make

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("clock")]

ABSENT = uuid.UUID("00000000-0000-4000-8000-000000000000")
DAY = date(2026, 12, 6)


@pytest.fixture
def story():
    return story_make()


@pytest.fixture
def planned(story):
    """A schedule of site A on 6 December."""
    return schedule_create(site=story.site_a, category="inverter", valid_on=DAY, slots={"09:00": 50})


def post(client, body):
    return client.generic(
        "POST",
        "/v1/schedules",
        body if isinstance(body, str | bytes) else json.dumps(body),
        content_type="application/json",
    )


def put(client, body, *, day="2026-12-06", category="inverter"):
    return client.generic(
        "PUT",
        f"/v1/schedules/{day}/{category}",
        body if isinstance(body, str | bytes) else json.dumps(body),
        content_type="application/json",
    )


def wish(story, **changes):
    """A body which is taken as it is; without the fields that are changed to `...`."""
    body = {
        "site_id": str(story.site_a.pk),
        "category": "inverter",
        "valid_on": "2026-12-06",
        "schedule": {"09:00": 50, "12:00": None},
    } | changes
    return {name: value for name, value in body.items() if value is not ...}


def replacement(story, **changes):
    return wish(story, category=..., valid_on=..., **changes)


# --- creating --------------------------------------------------------------------------------------------


def test_created_schedule_is_answered_with_all_its_fields_and_reaches_the_nodes(story):
    response = post(story.holder_a, wish(story))
    assert response.status_code == 200
    body = json.loads(response.content)
    assert list(body) == ["id", "site_id", "category", "valid_on", "schedule", "synchronization_result"]
    assert body == wish(story) | {"id": str(Schedule.objects.get().pk), "synchronization_result": None}
    assert "schedule/2026-12-06/inverter" in manifest_for(story.node_a).docs
    assert "schedule/2026-12-06/inverter" not in manifest_for(story.node_b).docs


@pytest.mark.parametrize(
    "written", ["50", "50.5", "0", "0.1", "33.333333333333336", "99.99999999999999", "1e1", "5E-7"]
)
def test_numbers_come_back_as_they_were_sent(story, written):
    text = json.dumps(wish(story, schedule={"09:00": "HERE"})).replace('"HERE"', written)
    response = post(story.holder_a, text)
    assert response.status_code == 200
    value = json.loads(response.content)["schedule"]["09:00"]
    assert (value, type(value)) == (json.loads(written), type(json.loads(written)))
    listed = json.loads(story.holder_a.get("/v1/schedules").content)[0]["schedule"]["09:00"]
    assert (listed, type(listed)) == (value, type(value))


def test_empty_schedule_is_one(story):
    assert post(story.holder_a, wish(story, schedule={})).json()["schedule"] == {}


BAD_BODIES: dict[str, list[object]] = {
    "site_id": [None, "", "x", 5, True, [], {}, ...],
    "category": [None, "", 5, True, [], {}, ..., "x" * 65, "inverters", "meter", "a/b", "+", "\x00"],
    "valid_on": [
        *[None, "", 20261206, True, [], {}, ..., "2026-12-06T00:00:00Z", "06-12-2026", "2026-12-6"],
        *["2026-02-29", "2026-13-01", "2026-00-10", "2026-12-32", "0000-01-01", "٢026-12-06", "20261206"],
        *["2026-11-22", "2025-12-06", " 2026-12-06", "2026-12-06\n", "2026-W49-7", "+026-12-06"],
    ],
    "schedule": [
        *[None, [], "", "09:00", 5, True, ..., [["09:00", 50]]],
        *[{"9:00": 50}, {"09:05": 50}, {"24:00": 50}, {"09:00:00": 50}, {"": 50}, {"x" * 10_000: 50}],
        *[{"09:00": "50"}, {"09:00": True}, {"09:00": [50]}, {"09:00": {}}, {"09:00": -0.1}],
        *[{"09:00": 100.1}, {"09:00": 10**300}, {"09:00": -(10**300)}, {"09:00": 1e308}],
        {f"{n:05d}": 50 for n in range(10_000)},
    ],
}


@pytest.mark.parametrize("field", BAD_BODIES)
def test_field_that_cannot_be_used_is_named(story, field):
    for value in BAD_BODIES[field]:
        response = post(story.holder_a, wish(story, **{field: value}))
        body = response.json()
        assert response.status_code == 400, (value, body)
        assert {name.split(".")[0] for name in body["errors"]} == {field}, value
        assert len(response.content) < 10_000
    assert not Schedule.objects.exists()


BAD_JSON = [
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"5",
    b"true",
    b"{",
    b'{"site_id":',
    b"\xff\xfe",
    b'{"schedule": {"09:00": NaN}}',
    b'{"schedule": {"09:00": Infinity}}',
    b'{"schedule": {"09:00": 1e999}}',
    b'{"schedule": {"09:00": ' + b"9" * 5000 + b"}}",
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
]


def test_body_that_is_no_object_of_the_right_kind_is_refused_by_both_forms(story, planned):
    for response in (form(story.holder_a, body) for body in BAD_JSON for form in (post, put)):
        assert response.status_code == 400, response.content
        assert set(response.json()) == {"detail", "code", "errors", "request_id"}


@pytest.mark.parametrize("extra", ["Schedule", "synchronization_result", "id", "x" * 10_000])
def test_field_nobody_knows_is_refused_rather_than_passed_over(story, planned, extra):
    for response in (
        post(story.holder_a, wish(story, valid_on="2026-12-07", **{extra: None})),
        put(story.holder_a, replacement(story, **{extra: None})),
    ):
        assert response.status_code == 400
        assert list(response.json()["errors"]) == [extra[:64]]


def test_hour_that_stands_there_twice_is_refused(story):
    text = json.dumps(wish(story, schedule={"09:00": 50, "TWICE": 60})).replace("TWICE", "09:00")
    response = post(story.holder_a, text)
    assert response.status_code == 400
    assert "'09:00' twice" in response.json()["detail"]
    assert not Schedule.objects.exists()


def test_every_slot_that_cannot_be_used_is_named_at_once(story):
    response = post(story.holder_a, wish(story, schedule={"09:00": 50, "09:10": 50, "10:00": 101}))
    assert set(response.json()["errors"]) == {"schedule.09:10", "schedule.10:00"}


def test_second_schedule_of_a_day_and_category_is_a_conflict(story, planned):
    response = post(story.holder_a, wish(story))
    assert (response.status_code, response.json()["code"]) == (409, "duplicate")


def test_same_day_can_be_planned_for_another_category_and_another_site(story, planned):
    battery = device_type_make(profile="test_battery", category="battery", value_kind="power_cap_pct")
    device_make(node=story.node_a, device_type=battery)
    assert post(story.holder_a, wish(story, category="battery")).status_code == 200
    assert post(story.holder_b, wish(story, site_id=str(story.site_b.pk))).status_code == 200


def test_day_can_be_planned_as_far_ahead_as_anybody_likes(story):
    assert post(story.holder_a, wish(story, valid_on="9999-12-31")).status_code == 200
    assert post(story.holder_a, wish(story, valid_on="2028-02-29")).status_code == 200


# --- replacing -------------------------------------------------------------------------------------------


def test_replacing_answers_the_same_schedule_with_the_new_slots_whole(story, planned):
    response = put(story.holder_a, replacement(story, schedule={"12:00": 80}))
    assert response.status_code == 200
    assert json.loads(response.content) == wish(story, schedule={"12:00": 80}) | {
        "id": str(planned.pk),
        "synchronization_result": None,
    }


def test_day_without_a_schedule_cannot_be_replaced(story, planned):
    assert put(story.holder_a, replacement(story), day="2026-12-07").status_code == 404
    assert put(story.holder_a, replacement(story), category="battery").status_code == 404
    assert put(story.holder_b, replacement(story, site_id=str(story.site_b.pk))).status_code == 404
    assert Schedule.objects.count() == 1


@pytest.mark.parametrize("day", ["2026-02-30", "2026-2-3", "tomorrow", "20261206", "2026-12-06T00:00:00Z"])
def test_impossible_day_in_a_path_is_a_bad_request(story, day):
    responses = [
        put(story.holder_a, replacement(story), day=day),
        story.holder_a.get(f"/v1/schedules/{day}"),
        story.holder_a.get(f"/v1/sites/{story.site_a.pk}/schedules/{day}"),
    ]
    assert [response.status_code for response in responses] == [400, 400, 400]
    assert list(responses[0].json()["errors"]) == ["date"]


def test_replacement_names_its_site(story, planned):
    response = put(story.holder_a, replacement(story, site_id=...))
    assert response.status_code == 400
    assert list(response.json()["errors"]) == ["site_id"]


def test_past_day_is_refused_by_creating_and_replacing_and_its_deletion_is_a_conflict(story, clock):
    over = schedule_create(
        site=story.site_a, category="inverter", valid_on=date(2026, 11, 23), slots={"09:00": 50}
    )
    clock.move_to(datetime(2026, 11, 24, 0, 0, tzinfo=UTC))
    assert post(story.holder_a, wish(story, valid_on="2026-11-23")).status_code == 400
    assert put(story.holder_a, replacement(story), day="2026-11-23").status_code == 400
    assert put(story.holder_a, replacement(story), day="2026-11-22").status_code == 400
    response = story.holder_a.delete(f"/v1/schedules/{over.pk}")
    assert (response.status_code, response.json()["code"]) == (409, "day_is_over")
    assert [row["valid_on"] for row in story.holder_a.get("/v1/schedules/2026-11-23").json()] == [
        "2026-11-23"
    ]


# --- deleting --------------------------------------------------------------------------------------------


def test_deleted_schedule_is_gone_here_and_at_the_nodes(story, planned):
    response = story.holder_a.delete(f"/v1/schedules/{planned.pk}")
    assert response.status_code == 200
    assert response.json() == {"status": "success", "message": "Schedule deleted successfully"}
    assert story.holder_a.delete(f"/v1/schedules/{planned.pk}").status_code == 404
    assert "schedule/2026-12-06/inverter" not in manifest_for(story.node_a).docs


# --- what the nodes say ----------------------------------------------------------------------------------


def test_result_follows_what_the_nodes_report(story, planned, clock):
    def result():
        return json.loads(story.holder_a.get("/v1/schedules/2026-12-06").content)[0]["synchronization_result"]

    assert result() is None
    former = report_make(story.node_a, mono_ms=1000)
    report_record(story.node_a, former)
    version = manifest_for(story.node_a).docs["schedule/2026-12-06/inverter"].v
    assert result() == {
        "status": "applied",
        "nodes": {"node-01": {"status": "applied", "version": version, "at": "2026-11-23T10:02:00.000000Z"}},
    }
    assert put(story.holder_a, replacement(story)).json()["synchronization_result"] is None
    clock.shift(5)
    # A report of the former content, sent before the node had the new one, claims nothing for it.
    report_record(story.node_a, msgspec.structs.replace(former, mono_ms=2000))
    assert result() is None
    now = report_make(story.node_a, mono_ms=3000)
    refused = AppliedDocument(v=version + 1, status="failed", error="it cannot be stored")
    documents = now.documents | {"schedule/2026-12-06/inverter": refused}
    report_record(story.node_a, msgspec.structs.replace(now, documents=documents))
    assert result() == {
        "status": "failed",
        "nodes": {
            "node-01": {
                "status": "failed",
                "version": version + 1,
                "at": "2026-11-23T10:02:05.000000Z",
                "error": "it cannot be stored",
            }
        },
    }


# --- who sees what ---------------------------------------------------------------------------------------


def test_hidden_schedule_and_site_look_like_absent_ones(story, planned):
    hidden_site, absent_site = str(story.site_a.pk), str(ABSENT)
    pairs = [
        (post(story.holder_b, wish(story, site_id=site)) for site in (hidden_site, absent_site)),
        (put(story.holder_b, replacement(story, site_id=site)) for site in (hidden_site, absent_site)),
        (story.holder_b.get(f"/v1/sites/{site}/schedules") for site in (hidden_site, absent_site)),
        (story.holder_b.get(f"/v1/sites/{site}/schedules/2026-12-06") for site in (hidden_site, absent_site)),
        (story.holder_b.delete(f"/v1/schedules/{row}") for row in (planned.pk, ABSENT)),
    ]
    for hidden, absent in pairs:
        assert hidden.status_code == absent.status_code == 404
        assert {**hidden.json(), "request_id": ""} == {**absent.json(), "request_id": ""}
    assert Schedule.objects.get().schedule == {"09:00": 50}


def test_root_sees_all_schedules_a_token_its_own_and_another_none(story, planned):
    other = schedule_create(site=story.site_b, category="inverter", valid_on=DAY, slots={})
    for path in ("/v1/schedules", "/v1/schedules/2026-12-06"):
        assert {row["id"] for row in story.root.get(path).json()} == {str(planned.pk), str(other.pk)}
        assert [row["id"] for row in story.holder_a.get(path).json()] == [str(planned.pk)]
        assert [row["id"] for row in story.holder_b.get(path).json()] == [str(other.pk)]
        assert story.holder_of_nothing.get(path).json() == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/v1/schedules"),
        ("GET", "/v1/schedules/2026-12-06/inverter"),
        ("POST", "/v1/sites/{site}/schedules"),
    ],
)
def test_form_the_guide_does_not_have_is_no_method(story, planned, method, path):
    address = path.format(id=planned.pk, site=story.site_a.pk)
    assert story.holder_a.generic(method, address).status_code == 405


def test_list_by_id_says_that_a_day_is_expected(story, planned):
    answer = story.holder_a.get(f"/v1/schedules/{planned.pk}")
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == ["date"]


def test_deletion_by_day_finds_no_schedule(story, planned):
    assert story.holder_a.delete("/v1/schedules/2026-12-06").status_code == 404
    assert Schedule.objects.count() == 1


# --- lists -----------------------------------------------------------------------------------------------


@pytest.fixture
def many(story):
    """Ten days of site A and three of site B, put down in no order."""
    for number in (3, 1, 2, 9, 8, 7, 6, 5, 4, 10):
        day = date(2026, 11, 30) + timedelta(days=number)
        schedule_create(site=story.site_a, category="inverter", valid_on=day, slots={"09:00": number})
    for number in (1, 2, 3):
        day = date(2026, 11, 30) + timedelta(days=number)
        schedule_create(site=story.site_b, category="inverter", valid_on=day, slots={})
    return story


def days_of(response):
    return [row["valid_on"] for row in response.json()]


def test_lists_are_in_the_order_of_the_days(many):
    assert days_of(many.holder_a.get("/v1/schedules")) == [f"2026-12-{n:02d}" for n in range(1, 11)]
    assert days_of(many.root.get("/v1/schedules"))[:4] == ["2026-12-01"] * 2 + ["2026-12-02"] * 2
    assert len(days_of(many.root.get(f"/v1/sites/{many.site_a.pk}/schedules"))) == 10
    assert days_of(many.root.get(f"/v1/sites/{many.site_b.pk}/schedules/2026-12-03")) == ["2026-12-03"]
    assert days_of(many.root.get("/v1/schedules/2027-01-01")) == []


def test_list_comes_in_pages_that_are_asked_for(many):
    response = many.holder_a.get("/v1/schedules?limit=4&offset=4")
    assert days_of(response) == [f"2026-12-{n:02d}" for n in range(5, 9)]
    assert response["X-Total-Count"] == "10"
    assert 'offset=8>; rel="next"' in response["Link"].replace("&limit=4", "").replace("limit=4&", "")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("valid_on=2026-12-02", 2),
        ("valid_from=2026-12-03", 9),
        ("valid_until=2026-12-02", 4),
        ("valid_from=2026-12-02&valid_until=2026-12-03", 4),
        ("category=battery", 0),
        ("category=inverter", 13),
    ],
)
def test_list_is_narrowed_by_its_filters(many, query, expected):
    assert len(days_of(many.root.get(f"/v1/schedules?{query}"))) == expected
    by_site = many.root.get(f"/v1/schedules?{query}&site_id={many.site_b.pk}")
    assert {row["site_id"] for row in by_site.json()} <= {str(many.site_b.pk)}


@pytest.mark.parametrize(
    "query", ["valid_on=12/06/2026", "valid_from=x", "site_id=1", "limit=0", "offset=-1"]
)
def test_filter_that_cannot_be_used_is_named(many, query):
    response = many.root.get(f"/v1/schedules?{query}")
    assert response.status_code == 400
    assert list(response.json()["errors"]) == [query.split("=")[0]]


def test_long_list_comes_whole_and_piece_by_piece(story, django_assert_max_num_queries):
    first = date(2027, 1, 1)
    rows = [
        Schedule(
            site=story.site_a,
            category="inverter",
            valid_on=first + timedelta(days=number),
            schedule={"09:00": number},
        )
        for number in range(2500)
    ]
    Schedule.objects.bulk_create(rows)
    # The first piece, which turns out to be too short; the keys, and of each of three pieces its rows.
    with django_assert_max_num_queries(5):
        response = story.holder_a.get("/v1/schedules")
        pieces = list(response.streaming_content)
    assert response["X-Total-Count"] == "2500"
    assert response["Content-Type"] == "application/json"
    assert len(pieces) == 4
    listed = json.loads(b"".join(pieces))
    assert [row["valid_on"] for row in listed] == [str(row.valid_on) for row in rows]
    assert list(listed[0]) == list(story.holder_a.get("/v1/schedules?limit=1").json()[0])


def test_long_list_leaves_out_what_goes_while_it_is_sent(story):
    first = date(2027, 1, 1)
    Schedule.objects.bulk_create(
        Schedule(site=story.site_a, category="inverter", valid_on=first + timedelta(days=number))
        for number in range(1001)
    )
    response = story.holder_a.get("/v1/schedules")
    Schedule.objects.filter(valid_on__gt=first).delete()
    assert [row["valid_on"] for row in json.loads(b"".join(response.streaming_content))] == [str(first)]
    response = story.holder_a.get("/v1/schedules")
    assert len(response.json()) == 1


# The schedules, the nodes with their documents; and how many there are, where a page is full.
@pytest.mark.parametrize(
    ("path", "queries"),
    [
        ("/v1/schedules", 2),
        ("/v1/schedules/2026-12-02", 2),
        ("/v1/sites/{site}/schedules", 2),
        ("/v1/sites/{site}/schedules/2026-12-02", 2),
        ("/v1/schedules?limit=4", 3),
    ],
)
def test_list_costs_the_same_queries_however_long_it_is(many, path, queries, django_assert_num_queries):
    with django_assert_num_queries(queries):
        assert many.root.get(path.format(site=many.site_a.pk)).status_code == 200
