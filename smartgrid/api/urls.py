"""The /v1/ table."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver, include, path, re_path

from smartgrid.api.views import PingApi, UnknownPathApi, VersionApi

urlpatterns: list[URLPattern | URLResolver] = [
    path("ping", PingApi.as_view()),
    path("version", VersionApi.as_view()),
    path("", include("sites_app.api.urls")),
    path("", include("devices_app.api.urls")),
    path("", include("schedules_app.api.urls")),
    path("", include("control_app.api.urls")),
    # Last: everything else.
    re_path(r"^.*$", UnknownPathApi.as_view()),
]
