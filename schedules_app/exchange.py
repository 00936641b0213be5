"""Schedules as files: CSV for spreadsheets, JSON for programs, in and out of the console.

A CSV file has a line for each day, with the columns of `CSV_HEADERS` in any order: an empty quarter hour is
the default. A JSON file is a list of the API's objects, which may name their site by tag. Both are UTC. An
upload is shown before it is done, row by row, and then done whole or not at all; every row goes through the
services.

The only module which imports django-import-export and tablib.
"""

from __future__ import annotations

import csv
import io
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

import tablib
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.core.files.uploadedfile import UploadedFile
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from import_export.admin import ExportActionMixin, ImportExportMixin
from import_export.formats.base_formats import Format
from import_export.forms import ExportForm, ImportForm
from import_export.resources import ModelResource
from import_export.results import Result, RowResult
from import_export.tmp_storages import BaseStorage

from edge.core.schedule import SLOT
from schedules_app import services
from schedules_app.models import Schedule
from schedules_app.slots import SLOTS_A_DAY, Slots
from sites_app.models import Site
from smartgrid import live
from smartgrid.admin import sites_seen
from smartgrid.errors import Invalid, SgmError

# A year of one category. All is one transaction, in which SQLite lets nobody else write: some two seconds.
MAX_ROWS = 400
MAX_BYTES = 2 * 1024 * 1024
# How long an upload waits for its confirmation.
UPLOAD_KEPT_S = 1800
# As many changed quarter hours of a row are told one by one.
CHANGES_TOLD = 4

SLOT_HEADERS = tuple(
    f"{minutes // 60:02d}:{minutes % 60:02d}"
    for minutes in range(0, 24 * 60, round(SLOT.total_seconds()) // 60)
)
CSV_HEADERS = ("site_tag", "category", "valid_on", *SLOT_HEADERS)
# What spreadsheets make of 00:00 when they save it.
_TIME = re.compile(r"(\d{1,2}):(\d{2})(?::00)?", re.ASCII)
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_WHOLE = re.compile(r"-?\d{1,15}", re.ASCII)
_DECIMAL = re.compile(r"-?\d{1,15}(\.\d{1,18})?([eE][+-]?\d{1,3})?", re.ASCII)
_COMMA = re.compile(r"-?\d{1,15},\d{1,18}", re.ASCII)
_JSON_FIELDS = frozenset(
    {"id", "site_id", "site_tag", "category", "valid_on", "schedule", "synchronization_result"}
)

# How a file's rows stand in the library's data set; `errors` is what was wrong with a row already when read.
_READ = ("site_id", "site_tag", "category", "valid_on", "schedule", "errors")
_SHOWN = ("site_tag", "category", "valid_on", "what changes")


# --- reading and writing ------------------------------------------------------------------------------------


def csv_read(text: str) -> list[dict[str, Any]]:
    """The rows of a CSV file; `Invalid` where it cannot be read as one.

    Lines divided by semicolons, as spreadsheets write them where the decimal sign is a comma, are understood,
    and with them the comma. In a file divided by commas it is refused: 1,234 has two meanings there.
    """
    text = text.removeprefix("\ufeff")
    first_line = text.partition("\n")[0]
    semicolons = ";" in first_line and "," not in first_line
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=";" if semicolons else ",", strict=True)
    try:
        headers = [_header(name) for name in next(lines, [])]
        _refuse_headers(headers)
        cells = [line for line in lines if any(cell.strip() for cell in line)]
    except csv.Error as error:
        raise Invalid(f"line {lines.line_num} cannot be read as CSV: {error}") from error
    _refuse_length(len(cells))
    commas = semicolons and any(_COMMA.fullmatch(cell.strip()) for line in cells for cell in line)
    return [_csv_row(headers, line, commas=commas) for line in cells]


def _header(name: str) -> str:
    name = name.strip()
    found = _TIME.fullmatch(name)
    return f"{int(found[1]):02d}:{found[2]}" if found else name


def _refuse_headers(headers: list[str]) -> None:
    missing = [name for name in CSV_HEADERS if name not in headers]
    unknown = [name for name in headers if name not in CSV_HEADERS]
    twice = sorted({name for name in headers if headers.count(name) > 1})
    for what, names in (("missing", missing), ("unknown", unknown), ("there twice", twice)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""  # noqa: PLR2004 - enough to see
            raise Invalid(
                f"The first line does not name the columns: {', '.join(names[:3])[:100]}{more} {what}."
                f" Expected are site_tag, category, valid_on, and {SLOTS_A_DAY} from 00:00 to 23:45."
            )


def _csv_row(headers: list[str], line: list[str], *, commas: bool) -> dict[str, Any]:
    if len(line) != len(headers):
        return _row(errors={"columns": [f"This row has {len(line)} columns instead of {len(headers)}."]})
    cells = {name: cell.strip() for name, cell in zip(headers, line, strict=True)}
    errors: dict[str, list[str]] = {}
    slots: Slots = {}
    for slot in SLOT_HEADERS:
        if cells[slot]:
            try:
                slots[slot] = _number(cells[slot], commas=commas)
            except ValueError as error:
                errors[f"schedule.{slot}"] = [str(error)]
    return _row(
        site_tag=cells["site_tag"],
        category=cells["category"],
        valid_on=cells["valid_on"],
        schedule=slots,
        errors=errors,
    )


def _number(cell: str, *, commas: bool) -> float:
    if _WHOLE.fullmatch(cell):
        return int(cell)
    if commas and _COMMA.fullmatch(cell):
        return float(cell.replace(",", "."))
    if commas and "." in cell:
        raise ValueError("A point, where other values of this file have a decimal comma.")
    if _DECIMAL.fullmatch(cell):
        return float(cell)
    if _COMMA.fullmatch(cell):
        raise ValueError(
            "A decimal comma, in a file divided by commas: write a point, or divide by semicolons."
        )
    raise ValueError("Not a number.")


def json_read(text: str) -> list[dict[str, Any]]:
    """The rows of a JSON file; `Invalid` where it cannot be read as one."""
    try:
        found = json.loads(
            text.removeprefix("\ufeff"), parse_constant=_refuse_constant, object_pairs_hook=_object
        )
    except (ValueError, RecursionError) as error:
        raise Invalid(f"The file cannot be read as JSON: {error}") from error
    if not isinstance(found, list):
        raise Invalid("A list of schedules is expected: [{...}, ...].")
    _refuse_length(len(found))
    return [_json_row(item) for item in found]


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("an object has a field twice")
    return made


def _json_row(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        return _row(errors={"row": ["An object is expected."]})
    errors = {str(name)[:64]: ["No such field."] for name in sorted(item.keys() - _JSON_FIELDS)}
    for name in ("site_id", "site_tag", "category", "valid_on"):
        if not isinstance(item.get(name, ""), str):
            errors[name] = ["A text is expected."]
    if "schedule" not in item:
        errors["schedule"] = ["This field is required."]
    return _row(
        site_id=item.get("site_id", ""),
        site_tag=item.get("site_tag", ""),
        category=item.get("category", ""),
        valid_on=item.get("valid_on", ""),
        schedule=item.get("schedule"),
        errors=errors,
    )


def _row(
    *,
    errors: dict[str, list[str]],
    site_id: str = "",
    site_tag: str = "",
    category: str = "",
    valid_on: str = "",
    schedule: Any = None,
) -> dict[str, Any]:
    values = (site_id, site_tag, category, valid_on, schedule, errors)
    return dict(zip(_READ, values, strict=True))


def _refuse_length(rows: int) -> None:
    if rows > MAX_ROWS:
        raise Invalid(f"At most {MAX_ROWS} rows are taken at once, these are {rows}.")


def csv_write(schedules: list[Schedule]) -> str:
    out = io.StringIO(newline="")
    lines = csv.writer(out)
    lines.writerow(CSV_HEADERS)
    for schedule in schedules:
        values = (schedule.schedule.get(slot) for slot in SLOT_HEADERS)
        cells = ("" if value is None else repr(value) for value in values)
        lines.writerow([schedule.site.site_tag, schedule.category, schedule.valid_on.isoformat(), *cells])
    return out.getvalue()


def json_write(schedules: list[Schedule]) -> str:
    objects = [
        {
            "id": str(schedule.pk),
            "site_id": str(schedule.site_id),
            "site_tag": schedule.site.site_tag,
            "category": schedule.category,
            "valid_on": schedule.valid_on.isoformat(),
            "schedule": schedule.schedule,
        }
        for schedule in schedules
    ]
    return json.dumps(objects, indent=1, ensure_ascii=False)


class _FileFormat(Format):  # type: ignore[misc]
    """A text format of the library's, whose data set is in `_READ` going in and of schedules going out."""

    title = ""
    content_type = ""

    def __init__(self, encoding: str | None = None) -> None:
        self.encoding = encoding

    def read(self, text: str) -> list[dict[str, Any]]:
        raise NotImplementedError

    def write(self, schedules: list[Schedule]) -> str:
        raise NotImplementedError

    def create_dataset(self, in_stream: str) -> tablib.Dataset:
        dataset = tablib.Dataset(headers=list(_READ))
        for row in self.read(in_stream):
            dataset.append([row[name] for name in _READ])
        return dataset

    def export_data(self, dataset: tablib.Dataset, **_: Any) -> str:
        return self.write([row[0] for row in dataset])

    def get_title(self) -> str:
        return self.title

    def get_extension(self) -> str:
        return self.title.lower()

    def get_content_type(self) -> str:
        return self.content_type

    def get_read_mode(self) -> str:
        return "r"

    def is_binary(self) -> bool:
        return False

    def can_import(self) -> bool:
        return True

    def can_export(self) -> bool:
        return True


class CsvFormat(_FileFormat):
    title = "CSV"
    content_type = "text/csv; charset=utf-8"

    def read(self, text: str) -> list[dict[str, Any]]:
        return csv_read(text)

    def write(self, schedules: list[Schedule]) -> str:
        return csv_write(schedules)


class JsonFormat(_FileFormat):
    title = "JSON"
    content_type = "application/json"

    def read(self, text: str) -> list[dict[str, Any]]:
        return json_read(text)

    def write(self, schedules: list[Schedule]) -> str:
        return json_write(schedules)


# --- what a row means ---------------------------------------------------------------------------------------


class ScheduleResource(ModelResource):  # type: ignore[misc]
    """Rows into schedules by the services, and schedules into a data set of themselves."""

    class Meta:
        model = Schedule
        fields = ("site", "category", "valid_on", "schedule")
        import_id_fields = ()
        use_transactions = True
        report_skipped = True

    def __init__(self, *, seen: QuerySet[Site] | None = None, **kwargs: Any) -> None:
        """`seen`: the sites that whoever imports may see; others are as if they were not there."""
        super().__init__(**kwargs)
        self._seen = Site.objects.all() if seen is None else seen

    def before_import(self, dataset: tablib.Dataset, **_: Any) -> None:
        """Find all sites of the file, and take them in one order: two imports never block each other."""
        ids = {found for text in dataset["site_id"] if (found := _uuid(text)) is not None}
        tags = {tag for tag in dataset["site_tag"] if isinstance(tag, str)}
        seen = self._seen.order_by().values("pk")
        sites = Site.objects.filter(Q(pk__in=ids) | Q(site_tag__in=tags), pk__in=seen)
        self._sites = list(sites.select_for_update(no_key=True).order_by("pk"))
        self._rows: dict[tuple[Any, str, date], int] = {}

    def import_row(self, row: Mapping[str, Any], _loader: Any, **kwargs: Any) -> RowResult:
        result = RowResult()
        try:
            self._take(row, result, number=kwargs["row_number"])
        except SgmError as error:
            result.import_type = RowResult.IMPORT_TYPE_INVALID
            result.validation_error = ValidationError(_folded(error.errors) or {"row": [error.detail]})
        return result

    def _take(self, row: Mapping[str, Any], result: RowResult, *, number: int) -> None:
        if row["errors"]:
            raise Invalid("This row cannot be read.", errors=row["errors"])
        site, day = self._site(row), _day(row["valid_on"])
        category, slots = row["category"], row["schedule"]
        first = self._rows.setdefault((site.pk, category, day), number)
        if first != number:
            raise Invalid(f"The same site, category and day as row {first}.")
        before = Schedule.objects.filter(site=site, category=category, valid_on=day).first()
        if before is not None and isinstance(slots, dict) and _set(slots) == _set(before.schedule):
            # Untouched, be the day over: so an export can be imported again whenever it was made.
            result.import_type, stored = RowResult.IMPORT_TYPE_SKIP, before
            changes = "nothing"
        elif before is None:
            stored = services.schedule_create(site=site, category=category, valid_on=day, slots=slots)
            result.import_type = RowResult.IMPORT_TYPE_NEW
            changes = f"new: {len(_set(stored.schedule))} quarter hours"
        else:
            stored = services.schedule_replace(schedule=before, slots=slots)
            result.import_type = RowResult.IMPORT_TYPE_UPDATE
            changes = _changes(before.schedule, stored.schedule)
        result.instance = stored
        result.add_instance_info(stored)
        result.diff = [site.site_tag, category, str(day), changes]

    def _site(self, row: Mapping[str, Any]) -> Site:
        site_id, tag = row["site_id"], row["site_tag"]
        if not site_id and not tag:
            raise Invalid.field("site_tag", "this field is required")
        found = [
            site
            for site in self._sites
            if (not site_id or site.pk == _uuid(site_id)) and (not tag or site.site_tag == tag)
        ]
        if not found:
            raise Invalid.field("site_id" if site_id else "site_tag", "no such site")
        if len(found) > 1:
            raise Invalid.field(
                "site_tag", "several tenants have a site of this tag: use JSON with its site_id"
            )
        return found[0]

    def get_diff_headers(self) -> list[str]:
        return list(_SHOWN)

    def get_user_visible_fields(self) -> list[Any]:
        # The library would list the columns of its own; ours stand in the documentation of the form.
        return []

    def export(self, queryset: QuerySet[Schedule] | None = None, **_: Any) -> tablib.Dataset:
        dataset = tablib.Dataset(headers=["schedule"])
        chosen = Schedule.objects.all() if queryset is None else queryset
        for schedule in chosen.select_related("site").order_by("valid_on", "site__site_tag", "category"):
            dataset.append([schedule])
        return dataset


def _folded(errors: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The same said of many quarter hours, said once: a row that is wrong throughout has 96 of them."""
    subjects: dict[tuple[str, ...], list[str]] = {}
    for subject, texts in errors.items():
        subjects.setdefault(tuple(texts), []).append(subject)
    return {
        who[0] if len(who) == 1 else f"{who[0]} and {len(who) - 1} more": list(texts)
        for texts, who in subjects.items()
    }


def _uuid(text: Any) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except (ValueError, TypeError, AttributeError):
        return None


def _day(text: str) -> date:
    try:
        if _DAY.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise Invalid.field("valid_on", "a day of the calendar is expected, YYYY-MM-DD")


def _set(slots: Mapping[str, Any]) -> dict[str, Any]:
    """The quarter hours that have a value: null is the default, as is one that is not there."""
    return {slot: value for slot, value in slots.items() if value is not None}


def _changes(before: Slots, after: Slots) -> str:
    different = list(_differences(before, after))
    more = f" and {len(different) - CHANGES_TOLD} more" if len(different) > CHANGES_TOLD else ""
    return ", ".join(different[:CHANGES_TOLD]) + more


def _differences(before: Slots, after: Slots) -> Iterator[str]:
    for slot in sorted(before.keys() | after.keys()):
        was, becomes = before.get(slot), after.get(slot)
        if was != becomes:
            yield f"{slot} {_told(was)} -> {_told(becomes)}"


def _told(value: float | None) -> str:
    return "default" if value is None else f"{value:g}"


# --- the console --------------------------------------------------------------------------------------------


class UploadStorage(BaseStorage):  # type: ignore[misc]
    """An upload between its preview and its confirmation: in Redis, where every web process finds it.

    The library's own keeps files in the system's temporary directory, where a forged name reads and deletes
    whatever else lies there.
    """

    def save(self, data: bytes) -> None:
        self.name = uuid.uuid4().hex
        live.text_write(self._key, data.decode("utf-8-sig"), expires_s=UPLOAD_KEPT_S)

    def read(self) -> str:
        text = live.text_read(self._key)
        if text is None:
            raise Invalid("The file is no longer here: upload it again.")
        return text

    def remove(self) -> None:
        live.key_remove(self._key)

    @property
    def _key(self) -> str:
        return f"sgm:upload:{self.name}"


class UploadForm(ImportForm):  # type: ignore[misc]
    def clean_import_file(self) -> UploadedFile[bytes]:
        """Refuse what is too large before it is read, and what is no text."""
        file: UploadedFile[bytes] = self.cleaned_data["import_file"]
        if (file.size or 0) > MAX_BYTES:
            raise ValidationError(f"At most {MAX_BYTES // 1024 // 1024} MiB are taken at once.")
        try:
            file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValidationError(
                f"The file is not in UTF-8 (at byte {error.start}): save it as 'CSV UTF-8'."
            ) from error
        file.seek(0)
        return file


class ScheduleExchangeMixin(ExportActionMixin, ImportExportMixin):  # type: ignore[misc]
    """Import, export and export of a selection, for the admin of schedules."""

    resource_classes = [ScheduleResource]  # noqa: RUF012 - the library's attribute
    formats = [CsvFormat, JsonFormat]  # noqa: RUF012
    import_form_class = UploadForm
    export_form_class = ExportForm
    tmp_storage_class = UploadStorage
    import_template_name = "admin/schedules_app/schedule/import.html"
    change_form_template: Any = None
    show_change_form_export = False

    def has_import_permission(self, request: HttpRequest) -> bool:
        return bool(self.has_add_permission(request) and self.has_change_permission(request))

    def has_export_permission(self, request: HttpRequest) -> bool:
        return bool(self.has_view_permission(request))

    def import_action(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        try:
            response: HttpResponse = super().import_action(request, **kwargs)
        except SgmError as error:
            return self._back(request, error.detail)
        return response

    def process_import(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        try:
            response: HttpResponse = super().process_import(request, **kwargs)
        except SgmError as error:
            return self._back(request, error.detail)
        return response

    def get_import_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return {**super().get_import_context_data(**kwargs), "max_rows": MAX_ROWS}

    def get_import_resource_kwargs(self, request: HttpRequest, **kwargs: Any) -> dict[str, Any]:
        """Of sites that a person does not see a file says nothing: they are no such sites."""
        given = super().get_import_resource_kwargs(request, **kwargs)
        return {**given, "seen": sites_seen(request)}

    def get_import_data_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        """All or nothing, of what was confirmed too: since the preview a row may have become impossible."""
        return {**super().get_import_data_kwargs(**kwargs), "rollback_on_validation_errors": True}

    def process_result(self, result: Result, request: HttpRequest) -> HttpResponse:
        if result.has_errors() or result.has_validation_errors():
            rows = ", ".join(str(row.number) for row in result.invalid_rows[:10])
            return self._back(
                request, f"Nothing was imported: meanwhile rows cannot be taken any longer ({rows})."
            )
        response: HttpResponse = super().process_result(result, request)
        return response

    def add_data_read_fail_error_to_form(self, form: Any, error: Exception) -> None:
        if not isinstance(error, SgmError):
            raise error
        form.add_error("import_file", error.detail)

    def get_valid_export_item_pks(self, request: HttpRequest) -> Any:
        return self.get_queryset(request).values_list("pk", flat=True)

    def _back(self, request: HttpRequest, why: str) -> HttpResponse:
        messages.error(request, why)
        return HttpResponseRedirect(reverse("admin:schedules_app_schedule_import"))
