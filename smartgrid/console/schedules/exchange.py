"""A day as a file: the schedules in which it lies, as the import takes them."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.http import content_disposition_header

from schedules_app.exchange import csv_write
from smartgrid.console.pages import page
from smartgrid.console.schedules.grid import ROUTE, VIEW, day_at


@page(f"{ROUTE}export.csv", name="console_schedule_export", permission=VIEW)
def schedule_export(request: HttpRequest, site_id: UUID, category: str, day: str) -> HttpResponseBase:
    at = day_at(request, site_id, category, day)
    text = csv_write(list(at.stored.values()))
    name = f"{at.site.site_tag}-{at.category}-{at.day}.csv"
    return HttpResponse(
        text,
        content_type="text/csv; charset=utf-8",
        headers={
            "Content-Disposition": content_disposition_header(as_attachment=True, filename=name)
            or "attachment",
            "Cache-Control": "no-store",
        },
    )
