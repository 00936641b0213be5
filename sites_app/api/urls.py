"""Paths of sites and nodes below /v1/."""

from __future__ import annotations

from django.urls import path

from sites_app.api import views

urlpatterns = [
    path("site-health-report", views.SiteHealthReportApi.as_view()),
    path("sites", views.SiteListApi.as_view()),
    path("sites/<uuid:site_id>", views.SiteDetailApi.as_view()),
    path("sites/<uuid:site_id>/nodes", views.SiteNodeListApi.as_view()),
    path("nodes", views.NodeListApi.as_view()),
    path("nodes/<uuid:node_id>", views.NodeDetailApi.as_view()),
]
