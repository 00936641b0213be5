"""The /v1/ table."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver, include, path, re_path

from smartgrid.api.docs import DescriptionApi, DocsApi
from smartgrid.api.events import EventsApi
from smartgrid.api.views import PingApi, UnknownPathApi, VersionApi

urlpatterns: list[URLPattern | URLResolver] = [
    path("openapi.json", DescriptionApi.as_view(), name="api-description"),
    path("docs", DocsApi.as_view(), name="api-docs"),
    path("ping", PingApi.as_view()),
    path("version", VersionApi.as_view()),
    path("events", EventsApi.as_view()),
    path("", include("sites_app.api.urls")),
    path("", include("devices_app.api.urls")),
    path("", include("schedules_app.api.urls")),
    path("", include("control_app.api.urls")),
    # Last: everything else.
    re_path(r"^.*$", UnknownPathApi.as_view()),
]
