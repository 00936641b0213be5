"""Control and its logs, one view class for each operation."""

from __future__ import annotations

from uuid import UUID

from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from control_app import selectors
from control_app.api.filters import ControlLogFilter
from control_app.api.serializers import ControlLogOutput, CurtailCategoryInput
from control_app.services import category_curtail
from sites_app.selectors import site_get
from smartgrid.api.fields import timestamp
from smartgrid.api.filters import filtered
from smartgrid.api.pagination import list_response, whole_number
from smartgrid.api.principal import principal_of

LOGS_DEFAULT = 100
PERIOD_DEFAULT_H = 24
PERIOD_MAX_H = 720
# One for all requests: validating keeps nothing in it, and making it copies every field.
CURTAIL_CATEGORY = CurtailCategoryInput()


class CurtailCategoryApi(APIView):
    def put(self, request: Request, site_id: UUID) -> Response:
        wanted = CURTAIL_CATEGORY.run_validation(request.data)
        result = category_curtail(
            principal=principal_of(request),
            site_id=site_id,
            category=wanted["category"],
            value=wanted["value"],
            device_tags=wanted.get("device_tags"),
            why=wanted.get("reason", ""),
        )
        return Response({"status": result.status, "result": result.body})


class LogListApi(APIView):
    def get(self, request: Request) -> Response:
        logs = selectors.control_logs_visible_to(principal_of(request))
        return list_response(
            request=request,
            rows=filtered(request=request, rows=logs, by=ControlLogFilter),
            serializer=ControlLogOutput,
            default_limit=LOGS_DEFAULT,
        )


class SiteLogListApi(APIView):
    def get(self, request: Request, site_id: UUID) -> Response:
        principal = principal_of(request)
        site = site_get(principal=principal, site_id=site_id)
        logs = selectors.control_logs_visible_to(principal).filter(site=site)
        return list_response(
            request=request,
            rows=filtered(request=request, rows=logs, by=ControlLogFilter),
            serializer=ControlLogOutput,
            default_limit=LOGS_DEFAULT,
        )


class DeviceErrorLogApi(APIView):
    def get(self, request: Request) -> Response:
        hours = whole_number(request.query_params, "period", minimum=1, maximum=PERIOD_MAX_H)
        since = selectors.hours_before(timezone.now(), PERIOD_DEFAULT_H if hours is None else hours)
        sites = selectors.device_errors_by_site(principal=principal_of(request), since=since)
        for site in sites.values():
            for device in site["devices"].values():
                for detail in device["error_details"]:
                    detail["timestamp"] = timestamp(detail["timestamp"])
        return Response(sites)
