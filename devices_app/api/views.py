"""Devices, one view class for each operation."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from django.http.response import HttpResponseBase
from django.utils import timezone
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from devices_app import selectors
from devices_app.api.filters import DeviceFilter
from devices_app.api.history import QUERY, HistoryOutput, histories_shown, history_query
from devices_app.api.provisioning import DeviceChanging, DeviceCreating
from devices_app.api.serializers import DeviceDetailOutput, DeviceOutput
from devices_app.choices import category_rank
from devices_app.history import histories
from devices_app.models import Device
from sites_app.models import Site
from sites_app.selectors import node_get, site_get, site_visible
from smartgrid.api.output import Shown, ShownById
from smartgrid.api.pagination import ShownList
from smartgrid.api.principal import principal_of
from smartgrid.api.schema import operation
from smartgrid.kept import KeptForPrincipal

DEVICE = ShownById(DeviceDetailOutput, selectors.devices_visible_to, what="device")
DEVICES = ShownList(DeviceOutput, selectors.devices_visible_to, filters=DeviceFilter)
SITE_DEVICES = ShownList(
    DeviceOutput, selectors.site_devices_visible_to, UUID, filters=DeviceFilter, within=site_visible
)
NODE_DEVICES = ShownList(
    DeviceOutput,
    selectors.node_devices_visible_to,
    UUID,
    UUID,
    filters=DeviceFilter,
    within=lambda principal, site_id, node_id: node_get(
        principal=principal, node_id=node_id, site_id=site_id
    ),
)
OF_SITE = KeptForPrincipal(
    lambda principal, site_id: DeviceOutput.read(selectors.site_devices_visible_to(principal, site_id)), UUID
)


def _by_category(devices: Iterable[Shown]) -> dict[str, list[Shown]]:
    """Devices as they are shown, categories in the order people read them."""
    grouped: dict[str, list[Shown]] = {}
    for device in devices:
        grouped.setdefault(device["category"], []).append(device)
    return {category: grouped[category] for category in sorted(grouped, key=category_rank)}


class DeviceListApi(DeviceCreating):
    @operation(
        name="devices_list",
        summary="List all devices",
        description="The devices of all sites that the management token may see. `value` is the last "
        "control value that its node confirmed; null before the first.",
        tag="Devices",
        answer=DeviceOutput,
        filters=DeviceFilter,
        listed=True,
    )
    def get(self, request: Request) -> HttpResponseBase:
        return DEVICES(request)


class DeviceDetailApi(DeviceChanging):
    @operation(
        name="device_get",
        summary="Get device details",
        description="A device with its address. `modbus_*` stand there only where it has such an address.",
        tag="Devices",
        answer=DeviceDetailOutput,
    )
    def get(self, request: Request, device_id: UUID) -> Response:
        return Response(DEVICE(principal_of(request), device_id))


class SiteDeviceListApi(APIView):
    @operation(
        name="site_devices_list",
        summary="List devices for a site",
        description="The devices of one site.",
        tag="Devices",
        answer=DeviceOutput,
        filters=DeviceFilter,
        listed=True,
    )
    def get(self, request: Request, site_id: UUID) -> HttpResponseBase:
        return SITE_DEVICES(request, site_id)


class NodeDeviceListApi(APIView):
    @operation(
        name="node_devices_list",
        summary="Get devices for a node",
        description="The devices of one node of a site.",
        tag="Devices",
        answer=DeviceOutput,
        filters=DeviceFilter,
        listed=True,
    )
    def get(self, request: Request, site_id: UUID, node_id: UUID) -> HttpResponseBase:
        return NODE_DEVICES(request, site_id, node_id)


class DeviceCategoriesApi(APIView):
    @operation(
        name="device_categories_list",
        summary="Get device categories for a site",
        description="The devices of one site, by category.",
        tag="Devices",
        answer=serializers.DictField(child=DeviceOutput(many=True)),
    )
    def get(self, request: Request, site_id: UUID) -> Response:
        principal = principal_of(request)
        found = OF_SITE.rows(principal, site_id)
        if not found:
            site_visible(principal, site_id)
        return Response(_by_category(DeviceOutput.made(found)))


class DeviceTelemetryApi(APIView):
    @operation(
        name="device_telemetry",
        summary="What was measured of a device, at the site where it is now",
        description="Readings, or means of UTC quarter hours, hours or days, by key; the last 24 hours "
        "unless `from` and `to` say otherwise. At most 20,000 points: more is 400 `too_many_points`.",
        tag="Telemetry",
        query=QUERY,
        answer=HistoryOutput,
        errors=(400, 404),
    )
    def get(self, request: Request, device_id: UUID) -> Response:
        device = selectors.device_get(principal=principal_of(request), device_id=device_id)
        return _history(request, device)


class SiteTelemetryApi(APIView):
    @operation(
        name="site_telemetry",
        summary="What was measured at a site, by devices and nodes, also by those that are gone",
        description="As of one device, for all devices and nodes of a site. What has moved elsewhere "
        "since, or is no more, goes by the name it had, without an id.",
        tag="Telemetry",
        query=QUERY,
        answer=HistoryOutput,
        errors=(400, 404),
    )
    def get(self, request: Request, site_id: UUID) -> Response:
        site = site_get(principal=principal_of(request), site_id=site_id)
        return _history(request, site)


def _history(request: Request, of: Device | Site) -> Response:
    asked = history_query(request.query_params, now=timezone.now())
    found = histories(
        of=of, keys=asked.keys, since=asked.since, until=asked.until, resolution=asked.resolution
    )
    return Response(histories_shown(found, asked=asked))
