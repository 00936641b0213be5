"""Schedules as files: what is understood, what is refused and where, and that nothing is done by halves."""

from __future__ import annotations

import csv
import html
import io
import json
from datetime import date
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from schedules_app.exchange import CSV_HEADERS, MAX_BYTES, MAX_ROWS, csv_read, json_read
from schedules_app.models import Schedule
from schedules_app.services import schedule_create, schedule_delete
from sites_app.models import NodeDocument
from smartgrid import live
from smartgrid.errors import Invalid
from tests.factories import site_make, story_make

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("clock")]

SCHEDULES = "/admin/schedules_app/schedule/"
CSV, JSON = "0", "1"
SITE = "solarpanel_site_a"


@pytest.fixture
def story():
    return story_make()


@pytest.fixture
def operator(settings, redis_url):
    settings.SGM_REDIS_URL = redis_url
    live.client.cache_clear()
    client = Client()
    client.force_login(User.objects.create_superuser("operator", "operator@example.com", "x"))
    yield client
    live.client().close()
    live.client.cache_clear()


def csv_of(*rows: dict[str, Any], delimiter: str = ",", headers: Any = CSV_HEADERS) -> str:
    out = io.StringIO()
    lines = csv.DictWriter(out, headers, delimiter=delimiter, restval="")
    lines.writeheader()
    lines.writerows(rows)
    return out.getvalue()


def day(valid_on: str = "2026-12-06", *, site_tag: str = SITE, category: str = "inverter", **slots: Any):
    """A row; `s0900=50` is the quarter hour from nine."""
    values = {f"{name[1:3]}:{name[3:]}": value for name, value in slots.items()}
    return {"site_tag": site_tag, "category": category, "valid_on": valid_on, **values}


def upload(client: Client, content: str | bytes, *, file_format: str = CSV):
    data = content if isinstance(content, bytes) else content.encode()
    file = SimpleUploadedFile("plan.csv" if file_format == CSV else "plan.json", data)
    return client.post(f"{SCHEDULES}import/", {"format": file_format, "import_file": file})


def confirm(client: Client, preview: Any):
    return client.post(f"{SCHEDULES}process_import/", preview.context["confirm_form"].initial, follow=True)


def told(preview: Any) -> list[list[str]]:
    return [[row.import_type, *row.diff] for row in preview.context["result"].valid_rows()]


def errors(preview: Any) -> dict[int, dict[str, list[str]]]:
    assert "confirm_form" not in preview.context
    return {row.number: row.error_dict for row in preview.context["result"].invalid_rows}


def stored() -> dict[str, dict[str, Any]]:
    return {str(row.valid_on): row.schedule for row in Schedule.objects.order_by("valid_on")}


# --- reading -------------------------------------------------------------------------------------------------


def test_empty_quarter_hour_is_the_default_and_numbers_stay_as_they_are():
    (row,) = csv_read(csv_of(day(s0900=50, s0915="50.5", s0930="0", s0945="-1e2")))
    assert row["schedule"] == {"09:00": 50, "09:15": 50.5, "09:30": 0, "09:45": -100.0}
    assert [type(value) for value in row["schedule"].values()] == [int, float, int, float]


def test_spreadsheets_semicolons_bom_and_decimal_commas_are_understood():
    text = "\ufeff" + csv_of(day(s0900="50,5", s0915="7"), delimiter=";").replace("00:00", "0:00:00")
    (row,) = csv_read(text)
    assert (row["schedule"], row["errors"]) == ({"09:00": 50.5, "09:15": 7}, {})


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("50,5", "decimal comma"),
        ("1,234", "decimal comma"),
        ("50 %", "Not a number."),
        ("nan", "Not a number."),
        ("inf", "Not a number."),
        ("1_0", "Not a number."),
        ("٥٠", "Not a number."),
        ("true", "Not a number."),
    ],
)
def test_cell_that_is_no_number_is_refused_where_it_stands(cell, why):
    (row,) = csv_read(csv_of(day(s0900=cell)))
    assert list(row["errors"]) == ["schedule.09:00"]
    assert why in row["errors"]["schedule.09:00"][0]


def test_point_beside_decimal_commas_is_refused():
    first, second = csv_read(csv_of(day(s0900="50,5"), day(s0900="1.234"), delimiter=";"))
    assert not first["errors"]
    assert "point" in second["errors"]["schedule.09:00"][0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "site_tag"),
        ("site_tag,category,valid_on\n", "00:00, 00:15, 00:30 and 93 more missing"),
        (csv_of(headers=[*CSV_HEADERS, "24:00"]), "24:00 unknown"),
        (csv_of(headers=[*CSV_HEADERS, "09:00"]), "09:00 there twice"),
        (csv_of(day()) + '"open', "cannot be read as CSV"),
        (csv_of(*[day()] * (MAX_ROWS + 1)), f"At most {MAX_ROWS} rows"),
    ],
    ids=["empty", "columns missing", "unknown column", "column twice", "quote", "too long"],
)
def test_csv_file_that_cannot_be_used_is_refused_whole(text, why):
    with pytest.raises(Invalid, match=why):
        csv_read(text)


def test_row_that_is_cut_off_sets_nothing_to_the_default():
    (row,) = csv_read(csv_of(day(s0900=1)).strip().removesuffix(",,"))
    assert "instead of 99" in row["errors"]["columns"][0]


@pytest.mark.parametrize(
    "text",
    ["", "{}", "3", '[{"a": 1, "a": 2}]', "[{", '[{"schedule": {"09:00": NaN}}]', "[" * 100_000],
    ids=range(7),
)
def test_json_file_that_cannot_be_used_is_refused_whole(text):
    with pytest.raises(Invalid):
        json_read(text)


# --- preview and confirmation ---------------------------------------------------------------------------------


def test_preview_tells_what_would_change_and_changes_nothing(operator, story):
    for number in (6, 7):
        slots = {"09:00": 50, "10:00": None}
        schedule_create(site=story.site_a, category="inverter", valid_on=date(2026, 12, number), slots=slots)
    before = stored()
    preview = upload(
        operator,
        csv_of(
            day("2026-12-05", s0900=10), day("2026-12-06", s0900=50), day("2026-12-07", s0900=40, s1100=1)
        ),
    )
    assert told(preview) == [
        ["new", SITE, "inverter", "2026-12-05", "new: 1 quarter hours"],
        ["skip", SITE, "inverter", "2026-12-06", "nothing"],
        ["update", SITE, "inverter", "2026-12-07", "09:00 50 -> 40, 11:00 default -> 1"],
    ]
    assert stored() == before


def test_confirmed_import_reaches_the_nodes_and_leaves_what_is_the_same_alone(operator, story):
    same = schedule_create(
        site=story.site_a, category="inverter", valid_on=date(2026, 12, 6), slots={"09:00": 50}
    )
    version = NodeDocument.objects.get(name=same.document_name).version
    preview = upload(operator, csv_of(day("2026-12-05", s0900=10), day("2026-12-06", s0900=50)))
    done = confirm(operator, preview)
    assert "1 new, 0 updated, 0 deleted and 1 skipped" in done.content.decode()
    assert stored() == {"2026-12-05": {"09:00": 10}, "2026-12-06": {"09:00": 50}}
    assert NodeDocument.objects.filter(name="schedule/2026-12-05/inverter").exists()
    assert NodeDocument.objects.get(name=same.document_name).version == version


def test_import_confirmed_twice_is_done_once(operator, story):
    preview = upload(operator, csv_of(day(s0900=10)))
    confirm(operator, preview)
    again = confirm(operator, preview)
    assert "upload it again" in again.content.decode()
    assert stored() == {"2026-12-06": {"09:00": 10}}


def test_each_wrong_row_is_told_with_its_reasons_and_nothing_can_be_confirmed(operator, story):
    site_make(site_tag="twice", tenant_tag="tenant-1")
    site_make(site_tag="twice", tenant_tag="tenant-2")
    found = errors(
        upload(
            operator,
            csv_of(
                day("2026-12-05", s0900=10),
                day("2026-11-22"),
                day("2026-12-06", s0900=101, s0915="x"),
                day("2026-12-07", s0900=101),
                day(site_tag="nowhere"),
                day("2026-12-08", category="invertor"),
                day("06.12.2026"),
                day("2026-02-30"),
                day("2026-12-05", s0900=20),
                day(site_tag="twice"),
                day(site_tag=""),
            ),
        )
    )
    assert {number: list(reasons) for number, reasons in found.items()} == {
        2: ["valid_on"],
        3: ["schedule.09:15"],
        4: ["schedule.09:00"],
        5: ["site_tag"],
        6: ["category"],
        7: ["valid_on"],
        8: ["valid_on"],
        9: ["row"],
        10: ["site_tag"],
        11: ["site_tag"],
    }
    assert found[9]["row"] == ["The same site, category and day as row 1."]
    assert stored() == {}


def test_page_says_what_is_wrong_in_words_and_the_same_of_many_quarter_hours_once(operator, story):
    throughout: dict[str, Any] = {
        f"s{hour:02d}{minute:02d}": 150 for hour in range(24) for minute in (0, 15, 30, 45)
    }
    preview = upload(operator, csv_of(day(**throughout)))
    ((subject, (text,)),) = errors(preview)[1].items()
    assert subject == "schedule.00:00 and 95 more"
    page = preview.content.decode()
    assert subject in page
    assert text in html.unescape(page)


def test_row_that_became_impossible_since_the_preview_undoes_all(operator, story, clock):
    preview = upload(operator, csv_of(day("2026-11-23", s0900=1), day("2026-12-06", s0900=1)))
    clock.move_to("2026-11-24T00:00:00Z")
    done = confirm(operator, preview)
    assert "Nothing was imported: meanwhile rows cannot be taken any longer (1)." in done.content.decode()
    assert stored() == {}


def test_json_takes_the_objects_of_the_api_by_id_or_by_tag(operator, story):
    objects = [
        {
            "id": "4d7a9e9e-0000-4000-8000-000000000000",
            "site_id": str(story.site_a.pk),
            "category": "inverter",
            "valid_on": "2026-12-05",
            "schedule": {"09:00": 50, "09:15": None},
            "synchronization_result": None,
        },
        {"site_tag": SITE, "category": "inverter", "valid_on": "2026-12-06", "schedule": {}},
    ]
    confirm(operator, upload(operator, json.dumps(objects), file_format=JSON))
    assert stored() == {"2026-12-05": {"09:00": 50, "09:15": None}, "2026-12-06": {}}


def test_json_object_that_is_none_of_ours_is_told_by_row(operator, story):
    good = {"site_tag": SITE, "category": "inverter", "valid_on": "2026-12-05", "schedule": {}}
    found = errors(
        upload(
            operator,
            json.dumps(
                [
                    good,
                    3,
                    {**good, "slots": {}},
                    {"site_tag": SITE},
                    {**good, "site_tag": 7},
                    {**good, "site_id": str(story.site_b.pk)},
                    {**good, "site_id": "x"},
                    {**good, "valid_on": "2026-12-06", "schedule": []},
                    {**good, "valid_on": "2026-12-07", "schedule": {"09:00": True}},
                ]
            ),
            file_format=JSON,
        )
    )
    assert {number: list(reasons) for number, reasons in found.items()} == {
        2: ["row"],
        3: ["slots"],
        4: ["schedule"],
        5: ["site_tag"],
        6: ["site_id"],
        7: ["site_id"],
        8: ["schedule"],
        9: ["schedule.09:00"],
    }


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (csv_of(day()).encode("utf-16"), "not in UTF-8"),
        (b" " * (MAX_BYTES + 1), "At most 2 MiB"),
        (csv_of().encode(), "No valid data"),
        (b"site_tag\n", "does not name the columns"),
    ],
    ids=["encoding", "size", "no rows", "columns"],
)
def test_file_that_cannot_be_used_is_refused_in_the_form(operator, story, content, why):
    assert why in upload(operator, content).content.decode()


def test_only_who_may_add_and_change_schedules_may_import(operator, story):
    user = User.objects.create_user("reader", "reader@example.com", "x", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_schedule"))
    reader = Client()
    reader.force_login(user)
    assert upload(reader, csv_of(day())).status_code == 403
    assert reader.post(f"{SCHEDULES}process_import/").status_code == 403
    assert reader.get(f"{SCHEDULES}export/").status_code == 200
    page = reader.get(SCHEDULES).content.decode()
    assert (f"{SCHEDULES}export/" in page, f"{SCHEDULES}import/" in page) == (True, False)


def test_import_without_redis_says_so(operator, story, settings):
    settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
    live.client().close()
    live.client.cache_clear()
    page = operator.get(upload(operator, csv_of(day())).url)
    assert "Redis does not answer" in page.content.decode()


# --- export --------------------------------------------------------------------------------------------------


@pytest.fixture
def planned(story):
    slots = {"09:00": 50, "09:15": 12.5, "09:30": None, "23:45": 0}
    return [
        schedule_create(site=site, category="inverter", valid_on=date(2026, 12, number), slots=slots)
        for site in (story.site_a, story.site_b)
        for number in (5, 6)
    ]


def export(client: Client, *, file_format: str, query: str = "", **form: Any) -> str:
    answer = client.post(f"{SCHEDULES}export/{query}", {"format": file_format, **form})
    assert answer.status_code == 200
    return answer.content.decode()


@pytest.mark.parametrize("file_format", [CSV, JSON])
def test_export_that_is_imported_again_changes_nothing(operator, planned, file_format):
    content = export(operator, file_format=file_format)
    before = list(Schedule.objects.order_by("pk").values())
    preview = upload(operator, content, file_format=file_format)
    assert {row[0] for row in told(preview)} == {"skip"}
    confirm(operator, preview)
    assert list(Schedule.objects.order_by("pk").values()) == before


@pytest.mark.parametrize("file_format", [CSV, JSON])
def test_export_brings_back_what_was_deleted(operator, planned, file_format):
    content = export(operator, file_format=file_format)
    for schedule in planned:
        schedule_delete(schedule=schedule)
    confirm(operator, upload(operator, content, file_format=file_format))
    values = {"09:00": 50, "09:15": 12.5, "23:45": 0}
    assert Schedule.objects.count() == 4
    for slots in Schedule.objects.values_list("schedule", flat=True):
        assert {slot: value for slot, value in slots.items() if value is not None} == values


def test_export_keeps_to_the_filter_and_to_the_selection(operator, planned, story):
    filtered = json.loads(export(operator, file_format=JSON, query=f"?site__id__exact={story.site_a.pk}"))
    assert {row["site_tag"] for row in filtered} == {SITE}
    chosen = planned[3]
    asked = operator.post(SCHEDULES, {"action": "export_admin_action", "_selected_action": [chosen.pk]})
    assert asked.status_code == 200
    (row,) = json.loads(export(operator, file_format=JSON, export_items=[str(chosen.pk)]))
    assert row["id"] == str(chosen.pk)
