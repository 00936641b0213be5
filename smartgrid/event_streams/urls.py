"""What the events' process serves, to programs and the console; below /v1 all else is as unknown as ever."""

from __future__ import annotations

from django.urls import path, re_path

from smartgrid.api.events import EventsOpenApi
from smartgrid.api.views import UnknownPathApi
from smartgrid.console.live import opening_urlpatterns

urlpatterns = [
    path("v1/events", EventsOpenApi.as_view()),
    *opening_urlpatterns,
    re_path(r"^v1(/.*)?$", UnknownPathApi.as_view()),
]

handler400 = "smartgrid.api.views.bad_request"
handler403 = "smartgrid.api.views.forbidden"
handler404 = "smartgrid.api.views.not_found"
handler500 = "smartgrid.api.views.server_error"
