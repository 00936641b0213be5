"""Devices, one view class for each operation."""

from __future__ import annotations

from uuid import UUID

from django.db.models import QuerySet
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from devices_app import selectors
from devices_app.api.filters import DeviceFilter
from devices_app.api.serializers import DeviceDetailOutput, DeviceOutput
from devices_app.models import Device
from sites_app.selectors import node_get, site_get
from smartgrid.api.filters import filtered
from smartgrid.api.pagination import list_response
from smartgrid.api.principal import principal_of


def _listed(request: Request, devices: QuerySet[Device]) -> Response:
    rows = filtered(request=request, rows=devices, by=DeviceFilter)
    return list_response(request=request, rows=rows, serializer=DeviceOutput)


class DeviceListApi(APIView):
    def get(self, request: Request) -> Response:
        return _listed(request, selectors.devices_visible_to(principal_of(request)))


class DeviceDetailApi(APIView):
    def get(self, request: Request, device_id: UUID) -> Response:
        device = selectors.device_get(principal=principal_of(request), device_id=device_id)
        return Response(DeviceDetailOutput(device).data)


class SiteDeviceListApi(APIView):
    def get(self, request: Request, site_id: UUID) -> Response:
        principal = principal_of(request)
        site = site_get(principal=principal, site_id=site_id)
        return _listed(request, selectors.devices_visible_to(principal).filter(site=site))


class NodeDeviceListApi(APIView):
    def get(self, request: Request, site_id: UUID, node_id: UUID) -> Response:
        principal = principal_of(request)
        node = node_get(principal=principal, node_id=node_id, site_id=site_id)
        return _listed(request, selectors.devices_visible_to(principal).filter(node=node))


class DeviceCategoriesApi(APIView):
    def get(self, request: Request, site_id: UUID) -> Response:
        principal = principal_of(request)
        site = site_get(principal=principal, site_id=site_id)
        grouped = selectors.devices_by_category(principal=principal, site_id=site.pk)
        return Response(
            {
                category: [DeviceOutput(device).data for device in devices]
                for category, devices in grouped.items()
            }
        )
