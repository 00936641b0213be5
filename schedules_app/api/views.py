"""Schedules, one view class for each operation; listing and creating share a path, and so a class."""

from __future__ import annotations

from datetime import date
from uuid import UUID

from django.db.models import QuerySet
from django.http.response import HttpResponseBase
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from schedules_app import selectors, services
from schedules_app.api.filters import ScheduleFilter
from schedules_app.api.serializers import (
    DAY_EXPECTED,
    ScheduleCreateInput,
    ScheduleOutput,
    ScheduleReplaceInput,
    day_of,
)
from schedules_app.models import Schedule
from sites_app.selectors import site_get
from smartgrid.api.filters import filtered
from smartgrid.api.pagination import long_list_response
from smartgrid.api.principal import principal_of
from smartgrid.errors import Invalid


def _listed(request: Request, schedules: QuerySet[Schedule]) -> HttpResponseBase:
    rows = filtered(request=request, rows=schedules, by=ScheduleFilter)
    return long_list_response(request=request, rows=rows, serializer=ScheduleOutput)


def _shown(schedule: Schedule) -> Response:
    return Response(ScheduleOutput([schedule], many=True).data[0])  # type: ignore[arg-type]  # as in pagination


def _day(text: str) -> date:
    try:
        return day_of(text)
    except ValueError as error:
        raise Invalid.field("date", DAY_EXPECTED) from error


class ScheduleListApi(APIView):
    def get(self, request: Request) -> HttpResponseBase:
        return _listed(request, selectors.schedules_visible_to(principal_of(request)))

    def post(self, request: Request) -> Response:
        wanted = ScheduleCreateInput().run_validation(request.data)
        site = site_get(principal=principal_of(request), site_id=wanted["site_id"])
        return _shown(
            services.schedule_create(
                site=site,
                category=wanted["category"],
                valid_on=wanted["valid_on"],
                slots=wanted["schedule"],
            )
        )


class ScheduleReplaceApi(APIView):
    def put(self, request: Request, day: str, category: str) -> Response:
        valid_on = _day(day)
        wanted = ScheduleReplaceInput().run_validation(request.data)
        site = site_get(principal=principal_of(request), site_id=wanted["site_id"])
        schedule = services.schedule_replace_on(
            site=site, category=category, valid_on=valid_on, slots=wanted["schedule"]
        )
        return _shown(schedule)


class ScheduleDeleteApi(APIView):
    def delete(self, request: Request, schedule_id: UUID) -> Response:
        schedule = selectors.schedule_get(principal=principal_of(request), schedule_id=schedule_id)
        services.schedule_delete(schedule=schedule)
        return Response({"status": "success", "message": "Schedule deleted successfully"})


class DayScheduleListApi(APIView):
    def get(self, request: Request, day: str) -> HttpResponseBase:
        valid_on = _day(day)
        schedules = selectors.schedules_visible_to(principal_of(request))
        return _listed(request, schedules.filter(valid_on=valid_on))


class SiteScheduleListApi(APIView):
    def get(self, request: Request, site_id: UUID) -> HttpResponseBase:
        principal = principal_of(request)
        site = site_get(principal=principal, site_id=site_id)
        return _listed(request, selectors.schedules_visible_to(principal).filter(site=site))


class SiteDayScheduleListApi(APIView):
    def get(self, request: Request, site_id: UUID, day: str) -> HttpResponseBase:
        principal = principal_of(request)
        site = site_get(principal=principal, site_id=site_id)
        schedules = selectors.schedules_visible_to(principal)
        return _listed(request, schedules.filter(site=site, valid_on=_day(day)))
