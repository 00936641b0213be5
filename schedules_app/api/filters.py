"""What lists of schedules can be narrowed by."""

from __future__ import annotations

from smartgrid.api.filters import CharFilter, DayFilter, FilterSet, UUIDFilter


class ScheduleFilter(FilterSet):
    site_id = UUIDFilter()
    category = CharFilter()
    valid_on = DayFilter()
    valid_from = DayFilter(field_name="valid_on", lookup_expr="gte")
    valid_until = DayFilter(field_name="valid_on", lookup_expr="lte")
