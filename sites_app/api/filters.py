"""What lists of sites and nodes can be narrowed by."""

from __future__ import annotations

from smartgrid.api.filters import CharFilter, FilterSet, UUIDFilter


class SiteFilter(FilterSet):
    site_tag = CharFilter()
    name = CharFilter()


class NodeFilter(FilterSet):
    site_id = UUIDFilter()
    polaris_node_name = CharFilter(field_name="name")


class HealthFilter(FilterSet):
    site_tag = CharFilter(field_name="site__site_tag")
    node_name = CharFilter(field_name="name")


class TokenFilter(FilterSet):
    name = CharFilter()
    site_id = UUIDFilter(field_name="sites")
