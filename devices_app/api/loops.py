"""Closed loops: made, changed and deleted by root, and seen by whoever sees their site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from uuid import UUID

from django.core.validators import RegexValidator
from django.http.response import HttpResponseBase
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from devices_app import loops, selectors
from devices_app.api.filters import LoopFilter
from devices_app.choices import CATEGORY_PATTERN, LoopMode, LoopStand
from devices_app.loop_view import LiveView, LoopView, MemberView, NodeView, loops_view
from devices_app.loops import MEMBERS_MAX
from devices_app.models import ClosedLoop, LoopChange
from edge.core.loop.terms import LOOP_RANGES
from sites_app.models import Site
from sites_app.selectors import site_get
from smartgrid.api.fields import (
    DistinctListField,
    NumberField,
    StrictCharField,
    StrictNumberField,
    StrictUUIDField,
    TimestampField,
)
from smartgrid.api.filters import filtered
from smartgrid.api.inputs import (
    ProvisioningInput,
    StrictBooleanField,
    StrictChoiceField,
    TagField,
    deleted,
    one_of,
    spelled,
)
from smartgrid.api.output import Output, Shown, shown, shown_all
from smartgrid.api.pagination import short_list
from smartgrid.api.permissions import ROOT_TO_CHANGE
from smartgrid.api.principal import Principal, principal_of
from smartgrid.api.schema import DoneOutput, operation
from smartgrid.errors import NotFound

TAG = "Closed loops"
# Ours -> the API's.
SPELLED = {"meter": "meter_id", "members": "member_ids"}


# --- what is shown ------------------------------------------------------------------------------------------


class LoopMemberOutput(Output[MemberView]):
    device_id = serializers.UUIDField()
    device_tag = serializers.CharField()
    nominal_kw = NumberField()
    value = NumberField(allow_null=True, help_text="What the loop wants of it now, in percent.")


class LoopNodeOutput(Output[NodeView]):
    id = serializers.UUIDField()
    polaris_node_name = serializers.CharField(source="name")
    online = serializers.BooleanField()
    healthy = serializers.BooleanField(allow_null=True, help_text="Null where nobody can tell now.")


class LoopLiveOutput(Output[LiveView]):
    stand = serializers.ChoiceField(LoopStand.values)
    since = TimestampField()
    setpoint_kw = NumberField(allow_null=True)
    measured_kw = NumberField(allow_null=True)
    output_kw = NumberField(allow_null=True)
    load_kw = NumberField(allow_null=True)
    bounded_by = serializers.CharField(help_text="Whose bound the output met; empty where none.")
    reason = serializers.CharField()
    age_s = NumberField(help_text="Seconds since the node told this.")


class LoopChangeOutput(Output[LoopChange]):
    stand = serializers.ChoiceField(LoopStand.values)
    since = TimestampField(help_text="By the node's clock.")
    received_at = TimestampField(help_text="When it was heard of here.")
    reason = serializers.CharField()
    bounded_by = serializers.CharField()
    setpoint_kw = NumberField(allow_null=True)
    measured_kw = NumberField(allow_null=True)
    output_kw = NumberField(allow_null=True)


class LoopOutput(Output[LoopView]):
    """All that can be set of a loop, who its members are, and how it stands.

    Power in kW, positive towards the grid. `live` is what its node told last, null where that is older than
    30 s; `changes` are the newest 20 changes of stand; `left_out` says why devices are no members.
    """

    id = serializers.UUIDField(source="loop.pk")
    created_at = TimestampField(source="loop.created_at")
    site_id = serializers.UUIDField(source="loop.site_id")
    loop_tag = serializers.CharField(source="loop.loop_tag")
    enabled = serializers.BooleanField(source="loop.enabled")
    meter_id = serializers.UUIDField(source="loop.meter_id")
    category = serializers.CharField(source="loop.category", allow_null=True)
    member_ids = serializers.ListField(child=serializers.UUIDField())
    mode = serializers.ChoiceField(LoopMode.values, source="loop.mode")
    setpoint_kw = NumberField(source="loop.setpoint_kw", allow_null=True)
    feed_forward = serializers.BooleanField(source="loop.feed_forward")
    kp = NumberField(source="loop.kp")
    ki = NumberField(source="loop.ki")
    kd = NumberField(source="loop.kd")
    max_rate_pct_per_s = NumberField(source="loop.max_rate_pct_per_s")
    deadband_kw = NumberField(source="loop.deadband_kw")
    fallback_pct = NumberField(source="loop.fallback_pct", allow_null=True)
    time_step_s = NumberField(source="loop.time_step_s")
    stale_after_s = NumberField(source="loop.stale_after_s")
    export_limit_kw = NumberField(source="loop.export_limit_kw", allow_null=True)
    import_limit_kw = NumberField(source="loop.import_limit_kw", allow_null=True)
    storage_first = serializers.BooleanField(source="loop.storage_first")
    nominal_kw = NumberField()
    members = LoopMemberOutput(many=True)
    left_out = serializers.DictField(child=serializers.CharField())
    refused = serializers.CharField(allow_null=True)
    node = LoopNodeOutput()
    live = LoopLiveOutput(allow_null=True)
    changes = LoopChangeOutput(many=True)


# --- what is taken ------------------------------------------------------------------------------------------


def _number(name: str, help_text: str, *, allow_null: bool = False) -> StrictNumberField:
    least, most = LOOP_RANGES[name]
    return StrictNumberField(
        min_value=least, max_value=most, required=False, allow_null=allow_null, help_text=help_text
    )


class LoopInput(ProvisioningInput):
    shown_only: ClassVar[Sequence[str]] = ("id", "created_at", "site_id")
    # Who read them a moment ago and sends them back means nothing by it: they change by themselves.
    passing: ClassVar[Sequence[str]] = (
        "nominal_kw",
        "members",
        "left_out",
        "refused",
        "node",
        "live",
        "changes",
    )

    loop_tag = TagField(max_length=64, help_text="Its name; unique at its site.")
    enabled = StrictBooleanField(required=False, help_text="Off: its members are where they were without it.")
    meter_id = StrictUUIDField(
        help_text="The device that measures the power to hold, of the same node as the members."
    )
    member_ids = DistinctListField(
        child=StrictUUIDField(),
        max_length=MEMBERS_MAX,
        required=False,
        help_text="The devices it commands. Either these or a category is expected.",
    )
    category = StrictCharField(
        max_length=64,
        required=False,
        allow_null=True,
        validators=[RegexValidator(CATEGORY_PATTERN)],
        help_text="Instead of members: all of the node's devices of this category, also later ones.",
    )
    mode = StrictChoiceField(
        LoopMode.values,
        required=False,
        help_text="`limit`: export must not exceed the setpoint. `track`: it is held at it.",
    )
    setpoint_kw = _number(
        "setpoint_kw",
        "kW towards the grid, where no schedule says otherwise. Null: the members' default.",
        allow_null=True,
    )
    feed_forward = StrictBooleanField(
        required=False,
        help_text="Command limit and load, and let the gains trim what is left. False: a plain PID.",
    )
    kp = _number("kp", "Proportional gain, without a unit.")
    ki = _number("ki", "Integral gain, 1/s.")
    kd = _number("kd", "Derivative gain, s.")
    max_rate_pct_per_s = _number(
        "max_rate_pct_per_s", "How fast the output may change, % of the members' nominal power a second."
    )
    deadband_kw = _number("deadband_kw", "A deviation below this is none.")
    fallback_pct = _number(
        "fallback_pct",
        "What each member is given while the meter is silent, % of its nominal power. Null: its schedule,"
        " else its share of `setpoint_kw` by nominal power, else its default.",
        allow_null=True,
    )
    time_step_s = _number("time_step_s", "Seconds between two steps.")
    stale_after_s = _number("stale_after_s", "A reading older than this counts no longer; above time_step_s.")
    export_limit_kw = _number(
        "export_limit_kw",
        "What the connection may give at most; direct requests obey it too. Null: no limit.",
        allow_null=True,
    )
    import_limit_kw = _number(
        "import_limit_kw",
        "What the connection may take at most, as a positive number. Null: no limit.",
        allow_null=True,
    )
    storage_first = StrictBooleanField(
        required=False, help_text="Batteries take up what may not be exported before sun is curtailed."
    )

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping) and self.context.get("shown") is not None:
            data = {name: value for name, value in data.items() if name not in self.passing}
        return super().to_internal_value(data)


class LoopCreateInput(LoopInput):
    shown_only: ClassVar[Sequence[str]] = ()

    id = StrictUUIDField(required=False)


def _told(loop: ClosedLoop) -> Shown:
    return shown(LoopOutput, loops_view([loop])[0])


def _referred(principal: Principal, site: Site, fields: dict[str, Any]) -> dict[str, Any]:
    """Fields with what their ids name; absent, hidden and of another site look the same."""
    if "meter_id" in fields:
        meter = selectors.device_get(principal=principal, device_id=fields.pop("meter_id"))
        if meter.site_id != site.pk:
            raise NotFound("No such device.")
        fields["meter"] = meter
    if "member_ids" in fields:
        fields["members"] = selectors.devices_named(
            principal=principal, device_ids=fields.pop("member_ids"), field="member_ids"
        )
    return fields


class SiteLoopListApi(APIView):
    permission_classes = ROOT_TO_CHANGE

    @operation(
        name="site_loops_list",
        summary="List the closed loops of a site",
        description="Each as its own path shows it.",
        tag=TAG,
        answer=LoopOutput,
        filters=LoopFilter,
        listed=True,
    )
    def get(self, request: Request, site_id: UUID) -> HttpResponseBase:
        principal = principal_of(request)
        site = site_get(principal=principal, site_id=site_id)
        rows = selectors.loops_visible_to(principal).filter(site=site)
        return short_list(
            request=request,
            rows=filtered(request=request, rows=rows, by=LoopFilter),
            shown=lambda loops: shown_all(LoopOutput, loops_view(loops)),
        )

    @operation(
        name="loop_create",
        summary="Create a closed loop at a site",
        description="Its meter's node takes it with its next configuration. Meter and members are on one "
        "node, and a device is a member of one loop at most. What is wrong is told of every field at once.",
        tag=TAG,
        body=LoopCreateInput,
        answer=LoopOutput,
        errors=(403, 404, 409),
        links={
            "loop_get": {"loop_id": "$response.body#/id"},
            "loop_update": {"loop_id": "$response.body#/id"},
            "loop_replace": {"loop_id": "$response.body#/id"},
            "loop_delete": {"loop_id": "$response.body#/id"},
        },
    )
    def post(self, request: Request, site_id: UUID) -> Response:
        principal = principal_of(request)
        site = site_get(principal=principal, site_id=site_id)
        fields = _referred(principal, site, one_of(LoopCreateInput, request.data))
        with spelled(SPELLED):
            loop = loops.loop_create(site=site, by=principal.client_id, **fields)
        return Response(_told(loop))


class LoopDetailApi(APIView):
    permission_classes = ROOT_TO_CHANGE

    @operation(
        name="loop_get",
        summary="Get a closed loop, and how it stands",
        description="All that can be set, the members with the values that the loop wants of them, and how "
        "it stands: `live` is what its node told last, with its age, and null where that is older than 30 s; "
        "`node` then says whether the node is there. `changes` are the newest 20 changes of stand, each with "
        "its reason. What was read here can be changed and sent back whole.",
        tag=TAG,
        answer=LoopOutput,
    )
    def get(self, request: Request, loop_id: UUID) -> Response:
        return Response(_told(selectors.loop_get(principal=principal_of(request), loop_id=loop_id)))

    @operation(
        name="loop_replace",
        summary="Set a closed loop whole",
        description="What is left out gets its default. The node goes on with it without a bump; with a "
        "meter of another node the loop moves there.",
        tag=TAG,
        body=LoopInput,
        answer=LoopOutput,
        errors=(403, 404, 409),
    )
    def put(self, request: Request, loop_id: UUID) -> Response:
        principal = principal_of(request)
        loop = selectors.loop_get(principal=principal, loop_id=loop_id)
        given = one_of(LoopInput, request.data, shown=_told(loop))
        fields = _referred(principal, loop.site, given)
        with spelled(SPELLED):
            loop = loops.loop_replace(loop=loop, by=principal.client_id, **fields)
        return Response(_told(loop))

    @operation(
        name="loop_update",
        summary="Change some settings of a closed loop",
        description="What is left out stays. Members take the place of a category, and a category that of "
        "members.",
        tag=TAG,
        body=LoopInput(partial=True),
        answer=LoopOutput,
        errors=(403, 404, 409),
    )
    def patch(self, request: Request, loop_id: UUID) -> Response:
        principal = principal_of(request)
        loop = selectors.loop_get(principal=principal, loop_id=loop_id)
        given = one_of(LoopInput, request.data, shown=_told(loop), some=True)
        fields = _referred(principal, loop.site, given)
        with spelled(SPELLED):
            loop = loops.loop_update(loop=loop, by=principal.client_id, **fields)
        return Response(_told(loop))

    @operation(
        name="loop_delete",
        summary="Delete a closed loop",
        description="Its members go to their schedules or defaults, and its connection limit binds nobody "
        "any longer.",
        tag=TAG,
        answer=DoneOutput,
        errors=(403,),
    )
    def delete(self, request: Request, loop_id: UUID) -> Response:
        principal = principal_of(request)
        loop = selectors.loop_get(principal=principal, loop_id=loop_id)
        node = loops.loop_delete(loop=loop, by=principal.client_id)
        return deleted(
            f"{loop.loop_tag} is deleted. Its members go to their schedules or defaults once {node.name} has"
            " its next configuration."
        )
