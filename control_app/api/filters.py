"""What the control log can be narrowed by."""

from __future__ import annotations

from smartgrid.api.filters import BooleanFilter, CharFilter, FilterSet


class ControlLogFilter(FilterSet):
    category = CharFilter()
    status = CharFilter()
    watchdog = BooleanFilter()
