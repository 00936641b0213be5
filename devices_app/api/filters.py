"""What lists of devices can be narrowed by."""

from __future__ import annotations

from smartgrid.api.filters import BooleanFilter, CharFilter, FilterSet, UUIDFilter


class DeviceTypeFilter(FilterSet):
    name = CharFilter()
    profile = CharFilter()
    category = CharFilter()
    protocol = CharFilter()


class DeviceFilter(FilterSet):
    site_id = UUIDFilter()
    node_id = UUIDFilter()
    device_type_id = UUIDFilter()
    device_tag = CharFilter()
    category = CharFilter()
    include_in_curtailment = BooleanFilter()


class LoopFilter(FilterSet):
    loop_tag = CharFilter()
    node_id = UUIDFilter()
    enabled = BooleanFilter()
