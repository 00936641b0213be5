"""/admin/ and /v1/, the two health pages, the enrolment of nodes, an icon, and nothing else."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from sites_app.enrolment import enrolment_urlpatterns
from smartgrid.console.trouble import favicon
from smartgrid.health import healthz, readyz
from smartgrid.issuer import issuer_urlpatterns

urlpatterns = [
    path("healthz", healthz),
    path("readyz", readyz),
    path("favicon.ico", favicon),
    path("admin", RedirectView.as_view(url="/admin/")),
    path("admin/", admin.site.urls),
    path("v1/", include("smartgrid.api.urls")),
    *issuer_urlpatterns(),
    *enrolment_urlpatterns(),
]

handler400 = "smartgrid.console.trouble.bad_request"
handler403 = "smartgrid.console.trouble.forbidden"
handler404 = "smartgrid.console.trouble.not_found"
handler500 = "smartgrid.console.trouble.server_error"
