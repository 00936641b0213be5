"""Sites and nodes, one view class for each operation."""

from __future__ import annotations

from uuid import UUID

from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from sites_app import selectors
from sites_app.api.filters import HealthFilter, NodeFilter, SiteFilter
from sites_app.api.serializers import MetricOutput, NodeDetailOutput, NodeHealthOutput, NodeOutput, SiteOutput
from smartgrid.api.filters import filtered
from smartgrid.api.pagination import list_response
from smartgrid.api.principal import principal_of


class SiteListApi(APIView):
    def get(self, request: Request) -> Response:
        sites = selectors.sites_visible_to(principal_of(request))
        return list_response(
            request=request, rows=filtered(request=request, rows=sites, by=SiteFilter), serializer=SiteOutput
        )


class SiteDetailApi(APIView):
    def get(self, request: Request, site_id: UUID) -> Response:
        site = selectors.site_get(principal=principal_of(request), site_id=site_id)
        metrics = selectors.site_metrics(site, now=timezone.now())
        return Response(
            {**SiteOutput(site).data, "metrics": [MetricOutput(metric).data for metric in metrics]}
        )


class SiteHealthReportApi(APIView):
    def get(self, request: Request) -> Response:
        nodes = selectors.nodes_visible_to(principal_of(request)).select_related("site")
        return list_response(
            request=request,
            rows=filtered(request=request, rows=nodes, by=HealthFilter).order_by(
                "site__site_tag", "name", "pk"
            ),
            serializer=NodeHealthOutput,
            shown_as=selectors.nodes_health,
        )


class NodeListApi(APIView):
    def get(self, request: Request) -> Response:
        nodes = selectors.nodes_visible_to(principal_of(request))
        return list_response(
            request=request, rows=filtered(request=request, rows=nodes, by=NodeFilter), serializer=NodeOutput
        )


class NodeDetailApi(APIView):
    def get(self, request: Request, node_id: UUID) -> Response:
        node = selectors.node_get(principal=principal_of(request), node_id=node_id)
        return Response(NodeDetailOutput(node).data)


class SiteNodeListApi(APIView):
    def get(self, request: Request, site_id: UUID) -> Response:
        principal = principal_of(request)
        site = selectors.site_get(principal=principal, site_id=site_id)
        nodes = selectors.nodes_visible_to(principal).filter(site=site)
        return list_response(
            request=request, rows=filtered(request=request, rows=nodes, by=NodeFilter), serializer=NodeOutput
        )
