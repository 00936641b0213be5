"""What the events' process serves; below /v1 all else is as unknown as it is to the API."""

from __future__ import annotations

from django.urls import path, re_path

from smartgrid.api.events import EventsOpenApi
from smartgrid.api.views import UnknownPathApi

urlpatterns = [
    path("v1/events", EventsOpenApi.as_view()),
    re_path(r"^v1(/.*)?$", UnknownPathApi.as_view()),
]

handler400 = "smartgrid.api.views.bad_request"
handler403 = "smartgrid.api.views.forbidden"
handler404 = "smartgrid.api.views.not_found"
handler500 = "smartgrid.api.views.server_error"
