"""Schedules, one view class for each operation; listing and creating share a path, and so a class."""

from __future__ import annotations

import re
from datetime import date
from uuid import UUID

from django.db.models import QuerySet
from django.http.response import HttpResponseBase
from django.urls.converters import UUIDConverter
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
from sites_app.selectors import site_get, site_visible
from smartgrid.api.output import shown
from smartgrid.api.pagination import ShownList
from smartgrid.api.principal import Principal, principal_of
from smartgrid.api.schema import DAY, UUID_TEXT, DoneOutput, operation
from smartgrid.errors import Invalid, NotFound


def _of_day(principal: Principal, valid_on: date) -> QuerySet[Schedule]:
    return selectors.schedules_visible_to(principal).filter(valid_on=valid_on)


def _of_site_and_day(principal: Principal, site_id: UUID, valid_on: date) -> QuerySet[Schedule]:
    return selectors.site_schedules_visible_to(principal, site_id).filter(valid_on=valid_on)


def _within(principal: Principal, site_id: UUID, *_: date) -> None:
    site_visible(principal, site_id)


ALL = ShownList(ScheduleOutput, selectors.schedules_visible_to, filters=ScheduleFilter)
OF_DAY = ShownList(ScheduleOutput, _of_day, date, filters=ScheduleFilter)
OF_SITE = ShownList(
    ScheduleOutput,
    selectors.site_schedules_visible_to,
    UUID,
    filters=ScheduleFilter,
    within=site_visible,
)
OF_SITE_AND_DAY = ShownList(
    ScheduleOutput, _of_site_and_day, UUID, date, filters=ScheduleFilter, within=_within
)


def _shown(schedule: Schedule) -> Response:
    """A schedule that is at hand, its slots as they were sent."""
    results = selectors.synchronization_results([schedule])
    return Response(shown(ScheduleOutput, schedule) | {"synchronization_result": results[schedule.pk]})


def _day(text: str) -> date:
    try:
        return day_of(text)
    except ValueError as error:
        raise Invalid.field("date", DAY_EXPECTED) from error


def _schedule_id(text: str) -> UUID:
    if not re.fullmatch(UUIDConverter.regex, text):
        raise NotFound("No such schedule.")
    return UUID(text)


class ScheduleListApi(APIView):
    @operation(
        name="schedules_list",
        summary="List all schedules",
        description="The schedules of all sites that the management token may see. All slots are UTC.",
        tag="Schedules",
        answer=ScheduleOutput,
        filters=ScheduleFilter,
        listed=True,
    )
    def get(self, request: Request) -> HttpResponseBase:
        return ALL(request)

    @operation(
        name="schedule_create",
        summary="Create a schedule",
        description="Plan a UTC day for a category of a site. A quarter hour that is missing or null "
        "means the default of each device. Refused for a day that is over, and for values "
        "outside a member's range; 409 where the day is planned already.",
        tag="Schedules",
        answer=ScheduleOutput,
        body=ScheduleCreateInput,
        errors=(404, 409),
        links={"schedule_delete": {"day_or_id": "$response.body#/id"}},
    )
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
    @operation(
        name="schedule_replace",
        summary="Update a schedule",
        description="Plan the same day anew, whole: what is left out has its default again.",
        tag="Schedules",
        answer=ScheduleOutput,
        body=ScheduleReplaceInput,
        errors=(404, 409),
        path={"day": DAY},
    )
    def put(self, request: Request, day: str, category: str) -> Response:
        valid_on = _day(day)
        wanted = ScheduleReplaceInput().run_validation(request.data)
        site = site_get(principal=principal_of(request), site_id=wanted["site_id"])
        schedule = services.schedule_replace_on(
            site=site, category=category, valid_on=valid_on, slots=wanted["schedule"]
        )
        return _shown(schedule)


class SchedulesByDayOrIdApi(APIView):
    """What the guide lists by a day and deletes by an id has one path, and so one answer to `Allow`."""

    @operation(
        name="day_schedules_list",
        summary="Get schedules for a date",
        description="The schedules of one UTC day, of all sites that the management token may see.",
        tag="Schedules",
        answer=ScheduleOutput,
        filters=ScheduleFilter,
        listed=True,
        errors=(400,),
        path={"day_or_id": DAY},
    )
    def get(self, request: Request, day_or_id: str) -> HttpResponseBase:
        return OF_DAY(request, _day(day_or_id))

    @operation(
        name="schedule_delete",
        summary="Delete a schedule",
        description="The nodes drop it, and its quarter hours fall to the defaults. 409 for a day that is "
        "over: it is a record.",
        tag="Schedules",
        answer=DoneOutput,
        errors=(409,),
        path={"day_or_id": UUID_TEXT},
    )
    def delete(self, request: Request, day_or_id: str) -> Response:
        schedule = selectors.schedule_get(
            principal=principal_of(request), schedule_id=_schedule_id(day_or_id)
        )
        services.schedule_delete(schedule=schedule)
        return Response({"status": "success", "message": "Schedule deleted successfully"})


class SiteScheduleListApi(APIView):
    @operation(
        name="site_schedules_list",
        summary="Get schedules for a site",
        description="The schedules of one site.",
        tag="Schedules",
        answer=ScheduleOutput,
        filters=ScheduleFilter,
        listed=True,
    )
    def get(self, request: Request, site_id: UUID) -> HttpResponseBase:
        return OF_SITE(request, site_id)


class SiteDayScheduleListApi(APIView):
    @operation(
        name="site_day_schedules_list",
        summary="Get site schedules for a specific date",
        description="The schedules of one site on one UTC day.",
        tag="Schedules",
        answer=ScheduleOutput,
        filters=ScheduleFilter,
        listed=True,
        errors=(400,),
        path={"day": DAY},
    )
    def get(self, request: Request, site_id: UUID, day: str) -> HttpResponseBase:
        return OF_SITE_AND_DAY(request, site_id, _day(day))
