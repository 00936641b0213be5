"""Sites and nodes made, changed and deleted by root. The views of the guide's paths build on these."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from sites_app import selectors, services
from sites_app.api.settings import (
    SPELLED,
    NodeCreateInput,
    NodeInput,
    NodeSettingsOutput,
    SiteCreateInput,
    SiteInput,
    SiteSettingsOutput,
)
from smartgrid.api.inputs import array_of, deleted, many_of, many_shown, one_of, spelled
from smartgrid.api.permissions import ROOT, ROOT_TO_CHANGE
from smartgrid.api.principal import principal_of
from smartgrid.api.schema import DoneOutput, operation


class SiteCreating(APIView):
    permission_classes = ROOT_TO_CHANGE

    @operation(
        name="site_create",
        summary="Create a site",
        description="What is left out gets its default. An `id` may be given, so that a fleet can be "
        "described before it exists.",
        tag="Sites",
        body=SiteCreateInput,
        answer=SiteSettingsOutput,
        errors=(403, 409),
        links={
            "site_settings_get": {"site_id": "$response.body#/id"},
            "site_get": {"site_id": "$response.body#/id"},
            "site_update": {"site_id": "$response.body#/id"},
            "site_replace": {"site_id": "$response.body#/id"},
            "site_delete": {"site_id": "$response.body#/id"},
        },
    )
    def post(self, request: Request) -> Response:
        fields = one_of(SiteCreateInput, request.data)
        return Response(SiteSettingsOutput(services.site_create(**fields)).data)


class SiteBulkApi(APIView):
    permission_classes = ROOT

    @operation(
        name="sites_bulk_create",
        summary="Create up to 1,000 sites, all or none",
        description="All or none. What is wrong is told of every element, by its place: `17.site_tag`; "
        "of very many the first hundred. Sent twice with ids, the second is 409.",
        tag="Sites",
        body=array_of(SiteCreateInput),
        answer=SiteSettingsOutput(many=True),
        errors=(403, 409),
    )
    def post(self, request: Request) -> Response:
        items: list[Any] = many_of(SiteCreateInput, request.data)
        return many_shown(SiteSettingsOutput, services.sites_create(items))


class SiteSettingsApi(APIView):
    permission_classes = ROOT

    @operation(
        name="site_settings_get",
        summary="Get all that can be set of a site",
        description="What the site's own path shows, and the rest. What was read here can be changed "
        "and sent back whole.",
        tag="Sites",
        answer=SiteSettingsOutput,
        errors=(403,),
    )
    def get(self, request: Request, site_id: UUID) -> Response:
        site = selectors.site_get(principal=principal_of(request), site_id=site_id)
        return Response(SiteSettingsOutput(site).data)


class SiteChanging(APIView):
    permission_classes = ROOT_TO_CHANGE

    @operation(
        name="site_replace",
        summary="Set a site whole",
        description="What is left out gets its default. The nodes of the site get new limits with their "
        "next configuration; a new time limit never lengthens a hold that runs.",
        tag="Sites",
        body=SiteInput,
        answer=SiteSettingsOutput,
        errors=(403, 409),
    )
    def put(self, request: Request, site_id: UUID) -> Response:
        site = selectors.site_get(principal=principal_of(request), site_id=site_id)
        fields = one_of(SiteInput, request.data, shown=SiteSettingsOutput(site).data)
        return Response(SiteSettingsOutput(services.site_replace(site=site, **fields)).data)

    @operation(
        name="site_update",
        summary="Change some settings of a site",
        description="What is left out stays.",
        tag="Sites",
        body=SiteInput(partial=True),
        answer=SiteSettingsOutput,
        errors=(403, 409),
    )
    def patch(self, request: Request, site_id: UUID) -> Response:
        site = selectors.site_get(principal=principal_of(request), site_id=site_id)
        fields = one_of(SiteInput, request.data, shown=SiteSettingsOutput(site).data, some=True)
        return Response(SiteSettingsOutput(services.site_update(site=site, **fields)).data)

    @operation(
        name="site_delete",
        summary="Delete a site",
        description="Refused (409 `in_use`, which names them) while it has nodes, tokens that open it, "
        "schedules, or history: what was done and measured at a site is a record, and goes "
        "when its time is over.",
        tag="Sites",
        answer=DoneOutput,
        errors=(403, 409),
    )
    def delete(self, request: Request, site_id: UUID) -> Response:
        principal = principal_of(request)
        site = selectors.site_get(principal=principal, site_id=site_id)
        services.site_delete(site=site, by=principal.client_id)
        return deleted(f"{site.site_tag} is deleted.")


class NodeCreating(APIView):
    permission_classes = ROOT_TO_CHANGE

    @operation(
        name="node_create",
        summary="Create a node of a site",
        description="It has its configuration and the schedules of its site from the start, and gets "
        "them once it has enrolled.",
        tag="Nodes",
        body=NodeCreateInput,
        answer=NodeSettingsOutput,
        errors=(403, 404, 409),
        links={
            "node_settings_get": {"node_id": "$response.body#/id"},
            "node_get": {"node_id": "$response.body#/id"},
            "node_update": {"node_id": "$response.body#/id"},
            "node_replace": {"node_id": "$response.body#/id"},
            "node_delete": {"node_id": "$response.body#/id"},
        },
    )
    def post(self, request: Request) -> Response:
        fields = one_of(NodeCreateInput, request.data)
        site = selectors.site_get(principal=principal_of(request), site_id=fields.pop("site_id"))
        with spelled(SPELLED):
            node = services.node_create(site=site, **fields)
        return Response(NodeSettingsOutput(node).data)


class NodeBulkApi(APIView):
    permission_classes = ROOT

    @operation(
        name="nodes_bulk_create",
        summary="Create up to 1,000 nodes, all or none",
        description="All or none. What is wrong is told of every element, by its place: `17.site_id`; "
        "of very many the first hundred.",
        tag="Nodes",
        body=array_of(NodeCreateInput),
        answer=NodeSettingsOutput(many=True),
        errors=(403, 404, 409),
    )
    def post(self, request: Request) -> Response:
        items: list[Any] = many_of(NodeCreateInput, request.data)
        sites = selectors.sites_get(
            principal=principal_of(request), site_ids=[fields.pop("site_id") for fields in items]
        )
        with spelled(SPELLED):
            for fields, site in zip(items, sites, strict=True):
                fields["site"] = site
            nodes = services.nodes_create(items)
        return many_shown(NodeSettingsOutput, nodes)


class NodeSettingsApi(APIView):
    permission_classes = ROOT

    @operation(
        name="node_settings_get",
        summary="Get all that can be set of a node",
        description="All that can be set of a node is among what its own path shows.",
        tag="Nodes",
        answer=NodeSettingsOutput,
        errors=(403,),
    )
    def get(self, request: Request, node_id: UUID) -> Response:
        node = selectors.node_get(principal=principal_of(request), node_id=node_id)
        return Response(NodeSettingsOutput(node).data)


class NodeChanging(APIView):
    permission_classes = ROOT_TO_CHANGE

    @operation(
        name="node_replace",
        summary="Set a node whole",
        description="What is left out gets its default. With another `site_id` it moves there, and gets "
        "that site's configuration and schedules; refused (409 `in_use`) while it has "
        "devices.",
        tag="Nodes",
        body=NodeInput,
        answer=NodeSettingsOutput,
        errors=(403, 404, 409),
    )
    def put(self, request: Request, node_id: UUID) -> Response:
        principal = principal_of(request)
        node = selectors.node_get(principal=principal, node_id=node_id)
        fields = one_of(NodeInput, request.data, shown=NodeSettingsOutput(node).data)
        site = selectors.site_get(principal=principal, site_id=fields.pop("site_id"))
        with spelled(SPELLED):
            node = services.node_replace(node=node, site=site, by=principal.client_id, **fields)
        return Response(NodeSettingsOutput(node).data)

    @operation(
        name="node_update",
        summary="Change some settings of a node",
        description="What is left out stays. With another `site_id` it moves, as when it is set whole.",
        tag="Nodes",
        body=NodeInput(partial=True),
        answer=NodeSettingsOutput,
        errors=(403, 404, 409),
    )
    def patch(self, request: Request, node_id: UUID) -> Response:
        principal = principal_of(request)
        node = selectors.node_get(principal=principal, node_id=node_id)
        fields = one_of(NodeInput, request.data, shown=NodeSettingsOutput(node).data, some=True)
        site_id = fields.pop("site_id", None)
        site = None if site_id is None else selectors.site_get(principal=principal, site_id=site_id)
        with spelled(SPELLED):
            node = services.node_update(node=node, site=site, by=principal.client_id, **fields)
        return Response(NodeSettingsOutput(node).data)

    @operation(
        name="node_delete",
        summary="Delete a node",
        description="Refused (409 `in_use`, which names them) while it has devices, or has yet to let "
        "go of one.",
        tag="Nodes",
        answer=DoneOutput,
        errors=(403, 409),
    )
    def delete(self, request: Request, node_id: UUID) -> Response:
        principal = principal_of(request)
        node = selectors.node_get(principal=principal, node_id=node_id)
        services.node_delete(node=node, by=principal.client_id)
        return deleted(f"{node.name} is deleted.")
