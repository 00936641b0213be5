"""Control and its logs, one view class for each operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.http.response import HttpResponseBase
from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from control_app import selectors
from control_app.api.filters import ControlLogFilter
from control_app.api.serializers import (
    ControlLogOutput,
    ControlOutput,
    CurtailCategoryInput,
    DevicePreviewOutput,
    ExplanationOutput,
    ReleaseInput,
    SiteErrorsOutput,
)
from control_app.models import Unit
from control_app.previews import category_preview
from control_app.questions import LONGEST_AT, device_explain
from control_app.repeats import HEADER, RequestKey, request_key
from control_app.services import ControlResult, category_curtail, devices_release
from sites_app.selectors import site_visible
from smartgrid.api.pagination import ShownList, whole_number
from smartgrid.api.principal import Principal, principal_of
from smartgrid.api.schema import MOMENT, operation
from smartgrid.api.throttling import Lane

LOGS_DEFAULT = 100
PERIOD_DEFAULT_H = 24
PERIOD_MAX_H = 720
# One for all requests: validating keeps nothing in it, and making it copies every field.
CURTAIL_CATEGORY = CurtailCategoryInput()
RELEASE = ReleaseInput()
LOGS = ShownList(
    ControlLogOutput,
    selectors.control_logs_visible_to,
    filters=ControlLogFilter,
    default_limit=LOGS_DEFAULT,
)
SITE_LOGS = ShownList(
    ControlLogOutput,
    selectors.site_control_logs_visible_to,
    UUID,
    filters=ControlLogFilter,
    default_limit=LOGS_DEFAULT,
    within=site_visible,
)


IDEMPOTENCY = {
    HEADER: "The same request under the same key is carried out once; for 24 hours it gets the same answer, "
    "with `Idempotency-Replayed: true`. 1 to 255 visible ASCII characters."
}


def _key(request: Request, body: Mapping[str, Any]) -> RequestKey | None:
    return request_key(
        request.headers.get(HEADER),
        principal=principal_of(request),
        method=str(request.method),
        path=request.path,
        body=body,
    )


def _answer(result: ControlResult) -> Response:
    return Response(
        {"status": result.status, "result": result.body},
        headers={"Idempotency-Replayed": "true"} if result.is_repeated else None,
    )


class CurtailCategoryApi(APIView):
    throttle_lane = Lane.CONTROL

    @operation(
        name="category_curtail",
        summary="Control devices by category",
        description="Ask all devices of a category for a value, or those that `device_tags` names. It is "
        "held for the site's `curtailment_time_limit` after the node received it, and renewed "
        "by asking again; then the schedule holds, else the default. The answer is 200 "
        "whenever the request was processed: `updated` names the devices that confirmed the "
        "value, `not_updated` the others, each with a reason which begins with its code. With `dry_run` "
        "nothing is sent but a question: the nodes say what they would do, and `preview` tells it.",
        tag="Control",
        answer=ControlOutput,
        body=CurtailCategoryInput,
        headers=IDEMPOTENCY,
        errors=(404, 409),
    )
    def put(self, request: Request, site_id: UUID) -> Response:
        wanted = CURTAIL_CATEGORY.run_validation(request.data)
        if wanted.get("dry_run"):
            return self._preview(principal_of(request), site_id, wanted)
        result = category_curtail(
            principal=principal_of(request),
            site_id=site_id,
            category=wanted["category"],
            value=wanted["value"],
            unit=Unit(wanted.get("unit", Unit.PERCENT)),
            device_tags=wanted.get("device_tags"),
            why=wanted.get("reason", ""),
            key=_key(request, wanted),
        )
        return _answer(result)

    @staticmethod
    def _preview(principal: Principal, site_id: UUID, wanted: Mapping[str, Any]) -> Response:
        preview = category_preview(
            principal=principal,
            site_id=site_id,
            category=wanted["category"],
            value=wanted["value"],
            unit=Unit(wanted.get("unit", Unit.PERCENT)),
            device_tags=wanted.get("device_tags"),
        )
        devices = {tag: DevicePreviewOutput(device).data for tag, device in preview.devices.items()}
        result = preview.result
        return Response({"status": result.status, "result": result.body, "dry_run": True, "preview": devices})


class SiteReleaseApi(APIView):
    throttle_lane = Lane.CONTROL

    @operation(
        name="site_release",
        summary="End holds early",
        description="End the direct holds of a site's devices now: of all, of a category, or of those that "
        "`device_tags` names. They go where they would have gone at the end: to the schedule, else "
        "the default. Answered like curtail-category; a device that nothing holds is `updated` too.",
        tag="Control",
        body=ReleaseInput,
        headers=IDEMPOTENCY,
        answer=ControlOutput,
        errors=(404, 409),
    )
    def post(self, request: Request, site_id: UUID) -> Response:
        wanted = RELEASE.run_validation(request.data)
        result = devices_release(
            principal=principal_of(request),
            site_id=site_id,
            category=wanted.get("category"),
            device_tags=wanted.get("device_tags"),
            why=wanted.get("reason", ""),
            key=_key(request, wanted),
        )
        return _answer(result)


class DeviceExplainApi(APIView):
    @operation(
        name="device_explain",
        summary="Say why a device is held where it is",
        description="Asks the device's node, which keeps the reasons of the last day: what was in force at "
        "that moment, which source asked for what, what bounded it, what became of each write. 409 where the "
        "node does not know the device (yet), 503 where it cannot be asked or gives no answer.",
        tag="Control",
        query=[
            OpenApiParameter(
                "at",
                MOMENT | {"maxLength": LONGEST_AT},
                description="A time (RFC 3339), or how long ago: -90s, -10m, -2h. Without it: now.",
            )
        ],
        answer=ExplanationOutput,
        errors=(404, 409),
    )
    def get(self, request: Request, device_id: UUID) -> Response:
        found = device_explain(
            principal=principal_of(request), device_id=device_id, at=request.query_params.get("at")
        )
        return Response(ExplanationOutput(found).data)


class LogListApi(APIView):
    @operation(
        name="logs_list",
        summary="Get logs for all sites",
        description="What was asked of devices and what came of it, newest first; 100 unless `limit` says "
        "otherwise. `watchdog` is true where a hold ended because nobody renewed it.",
        tag="Logs",
        answer=ControlLogOutput,
        filters=ControlLogFilter,
        listed=True,
    )
    def get(self, request: Request) -> HttpResponseBase:
        return LOGS(request)


class SiteLogListApi(APIView):
    @operation(
        name="site_logs_list",
        summary="Get logs for a specific site",
        description="What was asked of the devices of one site and what came of it, newest first; 100 "
        "unless `limit` says otherwise.",
        tag="Logs",
        answer=ControlLogOutput,
        filters=ControlLogFilter,
        listed=True,
    )
    def get(self, request: Request, site_id: UUID) -> HttpResponseBase:
        return SITE_LOGS(request, site_id)


class DeviceErrorLogApi(APIView):
    @operation(
        name="device_error_logs_get",
        summary="Get device error logs",
        description="Errors of devices, by site and device.",
        tag="Logs",
        answer=serializers.DictField(child=SiteErrorsOutput()),
        query=[
            OpenApiParameter(
                "period",
                {"type": "integer", "minimum": 1, "maximum": PERIOD_MAX_H, "default": PERIOD_DEFAULT_H},
                description="Hours, back from now.",
            )
        ],
    )
    def get(self, request: Request) -> Response:
        hours = whole_number(request.query_params, "period", minimum=1, maximum=PERIOD_MAX_H)
        since = selectors.hours_before(timezone.now(), PERIOD_DEFAULT_H if hours is None else hours)
        return Response(selectors.device_errors_by_site(principal=principal_of(request), since=since))
