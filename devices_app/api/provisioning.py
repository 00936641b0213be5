"""Devices and device types made, changed and deleted by root. The views of the guide's paths build on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.db.models import prefetch_related_objects
from django.http.response import HttpResponseBase
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from devices_app import catalogue, selectors, services
from devices_app.api.filters import DeviceTypeFilter
from devices_app.api.settings import (
    SPELLED,
    DeviceCreateInput,
    DeviceInput,
    DeviceSettingsOutput,
    DeviceTypeCreateInput,
    DeviceTypeDetailOutput,
    DeviceTypeInput,
    DeviceTypeOutput,
)
from devices_app.models import Device
from sites_app.selectors import node_get, nodes_get
from smartgrid.api.inputs import array_of, deleted, many_of, many_shown, one_of, spelled
from smartgrid.api.output import Shown, shown, shown_all
from smartgrid.api.pagination import ShownList
from smartgrid.api.permissions import ROOT, ROOT_TO_CHANGE
from smartgrid.api.principal import Principal, principal_of
from smartgrid.api.schema import DoneOutput, operation

TYPES = "Device types"
TYPES_LISTED = ShownList(
    DeviceTypeOutput, lambda _: selectors.device_types_listed(), by_all=True, filters=DeviceTypeFilter
)


def _told(devices: Sequence[Device]) -> list[Shown]:
    """The settings of these devices; what they left behind is read in one go."""
    prefetch_related_objects(devices, "retiring_devices")
    return shown_all(DeviceSettingsOutput, devices)


def _referred(principal: Principal, fields: dict[str, Any]) -> dict[str, Any]:
    """Fields with what their ids name; absent and hidden look the same."""
    with spelled(SPELLED):
        if "node_id" in fields:
            fields["node"] = node_get(principal=principal, node_id=fields.pop("node_id"))
        if "device_type_id" in fields:
            fields["device_type"] = selectors.device_type_get(device_type_id=fields.pop("device_type_id"))
        if "controlled_by_id" in fields:
            owner = fields.pop("controlled_by_id")
            fields["controlled_by"] = owner and selectors.device_get(principal=principal, device_id=owner)
    return fields


class DeviceCreating(APIView):
    permission_classes = ROOT_TO_CHANGE

    @operation(
        name="device_create",
        summary="Create a device at a node",
        description="What is left out of its bounds and category is its type's. The node takes it with "
        "its next configuration.",
        tag="Devices",
        body=DeviceCreateInput,
        answer=DeviceSettingsOutput,
        errors=(403, 404, 409),
        links={
            "device_settings_get": {"device_id": "$response.body#/id"},
            "device_get": {"device_id": "$response.body#/id"},
            "device_update": {"device_id": "$response.body#/id"},
            "device_replace": {"device_id": "$response.body#/id"},
            "device_delete": {"device_id": "$response.body#/id"},
        },
    )
    def post(self, request: Request) -> Response:
        principal = principal_of(request)
        fields = _referred(principal, one_of(DeviceCreateInput, request.data))
        with spelled(SPELLED):
            device = services.device_create(by=principal.client_id, **fields)
        return Response(_told([device])[0])


class DeviceBulkApi(APIView):
    permission_classes = ROOT

    @operation(
        name="devices_bulk_create",
        summary="Create up to 1,000 devices, all or none",
        description="All or none. What is wrong is told of every element, by its place: "
        "`17.device_tag`; of very many the first hundred. A device may be controlled by "
        "another of the array, by the `id` given there.",
        tag="Devices",
        body=array_of(DeviceCreateInput),
        answer=DeviceSettingsOutput(many=True),
        errors=(403, 404, 409),
    )
    def post(self, request: Request) -> Response:
        principal = principal_of(request)
        items: list[Any] = many_of(DeviceCreateInput, request.data)
        nodes = nodes_get(principal=principal, node_ids=[fields.pop("node_id") for fields in items])
        kinds = selectors.device_types_get(device_type_ids=[fields.pop("device_type_id") for fields in items])
        for fields, node, device_type in zip(items, nodes, kinds, strict=True):
            fields |= {"node": node, "device_type": device_type}
        with spelled(SPELLED):
            devices = services.devices_create(items, by=principal.client_id)
        return Response(_told(devices))


class DeviceSettingsApi(APIView):
    permission_classes = ROOT

    @operation(
        name="device_settings_get",
        summary="Get all that can be set of a device",
        description="What the device's own path shows, and the rest. What was read here can be changed "
        "and sent back whole; a password is never shown, and stays where none is sent.",
        tag="Devices",
        answer=DeviceSettingsOutput,
        errors=(403,),
    )
    def get(self, request: Request, device_id: UUID) -> Response:
        device = selectors.device_get(principal=principal_of(request), device_id=device_id)
        return Response(_told([device])[0])


class DeviceChanging(APIView):
    permission_classes = ROOT_TO_CHANGE

    @operation(
        name="device_replace",
        summary="Set a device whole",
        description="What is left out gets its default; a password stays. With another node, tag, "
        "address, type or register it is another device to its node, which first returns "
        "the former one to its default: `retiring` tells of it until then.",
        tag="Devices",
        body=DeviceInput,
        answer=DeviceSettingsOutput,
        errors=(403, 404, 409),
    )
    def put(self, request: Request, device_id: UUID) -> Response:
        principal = principal_of(request)
        device = selectors.device_get(principal=principal, device_id=device_id)
        fields = _referred(principal, one_of(DeviceInput, request.data, shown=_told([device])[0]))
        with spelled(SPELLED):
            device = services.device_replace(device=device, by=principal.client_id, **fields)
        return Response(_told([device])[0])

    @operation(
        name="device_update",
        summary="Change some settings of a device",
        description="As when it is set whole, but what is left out stays.",
        tag="Devices",
        body=DeviceInput(partial=True),
        answer=DeviceSettingsOutput,
        errors=(403, 404, 409),
    )
    def patch(self, request: Request, device_id: UUID) -> Response:
        principal = principal_of(request)
        device = selectors.device_get(principal=principal, device_id=device_id)
        given = one_of(DeviceInput, request.data, shown=_told([device])[0], some=True)
        fields = _referred(principal, given)
        with spelled(SPELLED):
            device = services.device_update(device=device, by=principal.client_id, **fields)
        return Response(_told([device])[0])

    @operation(
        name="device_delete",
        summary="Delete a device",
        description="Its node returns it to its default and lets go of it; until then its tag and its "
        "control point stay taken (409 `retiring`). The message names the node.",
        tag="Devices",
        answer=DoneOutput,
        errors=(403, 409),
    )
    def delete(self, request: Request, device_id: UUID) -> Response:
        principal = principal_of(request)
        device = selectors.device_get(principal=principal, device_id=device_id)
        kept_by = services.device_delete(device=device, by=principal.client_id)
        return deleted(
            f"{device.device_tag} is deleted. {kept_by.name} has yet to let go of it: until then its tag and"
            " its control point stay taken."
        )


class DeviceTypeListApi(APIView):
    permission_classes = ROOT_TO_CHANGE

    @operation(
        name="device_types_list",
        summary="List all device types",
        description="The types that devices can be of, without their profiles.",
        tag=TYPES,
        answer=DeviceTypeOutput,
        filters=DeviceTypeFilter,
        listed=True,
    )
    def get(self, request: Request) -> HttpResponseBase:
        return TYPES_LISTED(request)

    @operation(
        name="device_type_create",
        summary="Create a device type",
        description="Of a profile that comes with the software (`profile`), or of an own one "
        "(`profile_body`), which is judged by the rules for all profiles.",
        tag=TYPES,
        body=DeviceTypeCreateInput,
        answer=DeviceTypeDetailOutput,
        errors=(403, 409),
        links={
            "device_type_get": {"device_type_id": "$response.body#/id"},
            "device_type_update": {"device_type_id": "$response.body#/id"},
            "device_type_replace": {"device_type_id": "$response.body#/id"},
            "device_type_delete": {"device_type_id": "$response.body#/id"},
        },
    )
    def post(self, request: Request) -> Response:
        fields = one_of(DeviceTypeCreateInput, request.data)
        return Response(shown(DeviceTypeDetailOutput, catalogue.device_type_add(**fields)))


class DeviceTypeBulkApi(APIView):
    permission_classes = ROOT

    @operation(
        name="device_types_bulk_create",
        summary="Create up to 1,000 device types, all or none",
        description="All or none; what is wrong is told of every element, by its place.",
        tag=TYPES,
        body=array_of(DeviceTypeCreateInput),
        answer=DeviceTypeDetailOutput(many=True),
        errors=(403, 409),
    )
    def post(self, request: Request) -> Response:
        items: list[Any] = many_of(DeviceTypeCreateInput, request.data)
        return many_shown(DeviceTypeDetailOutput, catalogue.device_types_add(items))


class DeviceTypeDetailApi(APIView):
    permission_classes = ROOT_TO_CHANGE

    @operation(
        name="device_type_get",
        summary="Get a device type with its profile",
        description="With all the registers and rules of its profile.",
        tag=TYPES,
        answer=DeviceTypeDetailOutput,
    )
    def get(self, request: Request, device_type_id: UUID) -> Response:  # noqa: ARG002 - DRF's signature
        return Response(
            shown(DeviceTypeDetailOutput, selectors.device_type_get(device_type_id=device_type_id))
        )

    @operation(
        name="device_type_replace",
        summary="Set a device type whole",
        description="A lifetime that is left out gets its default; the profile stays unless another "
        "body is given. A profile that comes with the software changes with that alone.",
        tag=TYPES,
        body=DeviceTypeInput,
        answer=DeviceTypeDetailOutput,
        errors=(403, 409),
    )
    def put(self, request: Request, device_type_id: UUID) -> Response:
        device_type = selectors.device_type_get(device_type_id=device_type_id)
        fields = one_of(DeviceTypeInput, request.data, shown=shown(DeviceTypeDetailOutput, device_type))
        changed = catalogue.device_type_replace(device_type=device_type, **fields)
        return Response(shown(DeviceTypeDetailOutput, changed))

    @operation(
        name="device_type_update",
        summary="Change some settings of a device type",
        description="What is left out stays. Nodes with devices of the type get a changed profile soon "
        "after.",
        tag=TYPES,
        body=DeviceTypeInput(partial=True),
        answer=DeviceTypeDetailOutput,
        errors=(403, 409),
    )
    def patch(self, request: Request, device_type_id: UUID) -> Response:
        device_type = selectors.device_type_get(device_type_id=device_type_id)
        told = shown(DeviceTypeDetailOutput, device_type)
        fields = one_of(DeviceTypeInput, request.data, shown=told, some=True)
        changed = catalogue.device_type_change(device_type=device_type, **fields)
        return Response(shown(DeviceTypeDetailOutput, changed))

    @operation(
        name="device_type_delete",
        summary="Delete a device type",
        description="Refused (409 `in_use`, which names them) while devices are of it. The type of a "
        "profile that comes with the software is made anew when that is next started or "
        "upgraded.",
        tag=TYPES,
        answer=DoneOutput,
        errors=(403, 409),
    )
    def delete(self, request: Request, device_type_id: UUID) -> Response:
        device_type = selectors.device_type_get(device_type_id=device_type_id)
        catalogue.device_type_delete(device_type=device_type, by=principal_of(request).client_id)
        return deleted(f"{device_type.name} is deleted.")
