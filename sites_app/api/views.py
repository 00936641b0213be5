"""Sites, nodes and management tokens, one view class for each path."""

from __future__ import annotations

from typing import TypeVar
from uuid import UUID

from django.http.response import HttpResponseBase
from django.utils import timezone
from rest_framework import status
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from sites_app import selectors, services
from sites_app.api.filters import HealthFilter, NodeFilter, SiteFilter, TokenFilter
from sites_app.api.provisioning import NodeChanging, NodeCreating, SiteChanging, SiteCreating
from sites_app.api.serializers import (
    MetricOutput,
    NodeDetailOutput,
    NodeHealthOutput,
    NodeOutput,
    SiteDetailOutput,
    SiteOutput,
    TokenInput,
    TokenOutput,
)
from sites_app.models import Site
from smartgrid.api.output import ShownById, shown_all
from smartgrid.api.pagination import ShownList
from smartgrid.api.permissions import IsRoot
from smartgrid.api.principal import principal_of
from smartgrid.api.schema import operation

TOKENS = "Management tokens"
R = TypeVar("R", bound=HttpResponseBase)


SITE = ShownById(SiteOutput, selectors.sites_visible_to, what="site")
NODE = ShownById(NodeDetailOutput, selectors.nodes_visible_to, what="node")
SITES = ShownList(SiteOutput, selectors.sites_visible_to, filters=SiteFilter)
NODES = ShownList(NodeOutput, selectors.nodes_visible_to, filters=NodeFilter)
SITE_NODES = ShownList(
    NodeOutput,
    selectors.site_nodes_visible_to,
    UUID,
    filters=NodeFilter,
    within=selectors.site_visible,
)
HEALTH = ShownList(NodeHealthOutput, selectors.nodes_reported_on, filters=HealthFilter)
TOKEN = ShownById(TokenOutput, selectors.tokens_visible_to, what="token")
TOKEN_LIST = ShownList(TokenOutput, selectors.tokens_visible_to, filters=TokenFilter)


class SiteListApi(SiteCreating):
    @operation(
        name="sites_list",
        summary="List all sites",
        description="The sites that the management token may see, all of them with a root token.",
        tag="Sites",
        answer=SiteOutput,
        filters=SiteFilter,
        listed=True,
    )
    def get(self, request: Request) -> HttpResponseBase:
        return SITES(request)


class SiteDetailApi(SiteChanging):
    @operation(
        name="site_get",
        summary="Get site details",
        description="A site with the latest value of each of its metrics. A value is left out when it is "
        "older than 15 minutes: it would not be what it says.",
        tag="Sites",
        answer=SiteDetailOutput,
    )
    def get(self, request: Request, site_id: UUID) -> Response:
        site = SITE(principal_of(request), site_id)
        metrics = selectors.site_metrics(site_id, now=timezone.now())
        return Response(site | {"metrics": shown_all(MetricOutput, metrics)})


class SiteHealthReportApi(APIView):
    @operation(
        name="site_health_report_list",
        summary="Get the site health report",
        description="All nodes with whether they are healthy: connected, heard from within 15 s, and "
        "answering what they are asked.",
        tag="Health and version",
        answer=NodeHealthOutput,
        filters=HealthFilter,
        listed=True,
    )
    def get(self, request: Request) -> HttpResponseBase:
        return HEALTH(request)


class NodeListApi(NodeCreating):
    @operation(
        name="nodes_list",
        summary="List all nodes",
        description="The edge computers of all sites that the management token may see.",
        tag="Nodes",
        answer=NodeOutput,
        filters=NodeFilter,
        listed=True,
    )
    def get(self, request: Request) -> HttpResponseBase:
        return NODES(request)


class NodeDetailApi(NodeChanging):
    @operation(
        name="node_get",
        summary="Get node details",
        description="A node with its configuration.",
        tag="Nodes",
        answer=NodeDetailOutput,
    )
    def get(self, request: Request, node_id: UUID) -> Response:
        return Response(NODE(principal_of(request), node_id))


class SiteNodeListApi(APIView):
    @operation(
        name="site_nodes_list",
        summary="List nodes for a site",
        description="The edge computers of one site.",
        tag="Nodes",
        answer=NodeOutput,
        filters=NodeFilter,
        listed=True,
    )
    def get(self, request: Request, site_id: UUID) -> HttpResponseBase:
        return SITE_NODES(request, site_id)


def _secret(response: R) -> R:
    """An answer with tokens in it, which no cache on the way may keep."""
    response["Cache-Control"] = "no-store"
    return response


def _told(request: Request, token_id: UUID) -> Response:
    return _secret(Response(TOKEN(principal_of(request), token_id)))


def _wanted(request: Request) -> tuple[str, list[Site]]:
    """The name and the sites a body asks for."""
    wanted = TokenInput().run_validation(request.data)
    sites = selectors.sites_named(principal=principal_of(request), site_ids=wanted["sites"], field="sites")
    return wanted["name"], sites


class TokenListApi(APIView):
    permission_classes = (IsAuthenticated, IsRoot)

    @operation(
        name="auth_tokens_list",
        summary="List all management tokens",
        description="Each with its value, so that whoever lost one can be given it again.",
        tag=TOKENS,
        answer=TokenOutput,
        errors=(403,),
        filters=TokenFilter,
        listed=True,
    )
    def get(self, request: Request) -> HttpResponseBase:
        return _secret(TOKEN_LIST(request))

    @operation(
        name="auth_token_create",
        summary="Create a management token",
        description="It opens the sites it names and nothing else; with none it opens nothing yet.",
        tag=TOKENS,
        body=TokenInput,
        answer=TokenOutput,
        errors=(400, 403, 404, 409),
    )
    def post(self, request: Request) -> Response:
        name, sites = _wanted(request)
        return _told(request, services.token_issue(name=name, sites=sites).pk)


class TokenDetailApi(APIView):
    permission_classes = (IsAuthenticated, IsRoot)

    @operation(
        name="auth_token_get",
        summary="Get a management token",
        description="With its value.",
        tag=TOKENS,
        answer=TokenOutput,
        errors=(403, 404),
    )
    def get(self, request: Request, token_id: UUID) -> Response:
        return _told(request, token_id)

    @operation(
        name="auth_token_replace",
        summary="Update a management token",
        description="Another name and other sites, both whole. Its value stays; what it opens changes "
        "at once.",
        tag=TOKENS,
        body=TokenInput,
        answer=TokenOutput,
        errors=(400, 403, 404, 409),
    )
    def put(self, request: Request, token_id: UUID) -> Response:
        token = selectors.token_get(principal=principal_of(request), token_id=token_id)
        name, sites = _wanted(request)
        return _told(request, services.token_update(token=token, name=name, sites=sites).pk)

    @operation(
        name="auth_token_delete",
        summary="Delete a management token",
        description="From the answer on it opens nothing.",
        tag=TOKENS,
        answer=None,
        status=204,
        errors=(403, 404),
    )
    def delete(self, request: Request, token_id: UUID) -> Response:
        services.token_revoke(token=selectors.token_get(principal=principal_of(request), token_id=token_id))
        return Response(status=status.HTTP_204_NO_CONTENT)
