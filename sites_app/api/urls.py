"""Paths of sites, nodes and management tokens below /v1/."""

from __future__ import annotations

from django.urls import path

from sites_app.api import provisioning, views

urlpatterns = [
    path("auth-tokens", views.TokenListApi.as_view()),
    path("auth-tokens/<uuid:token_id>", views.TokenDetailApi.as_view()),
    path("site-health-report", views.SiteHealthReportApi.as_view()),
    path("sites", views.SiteListApi.as_view()),
    path("sites/bulk", provisioning.SiteBulkApi.as_view()),
    path("sites/<uuid:site_id>", views.SiteDetailApi.as_view()),
    path("sites/<uuid:site_id>/settings", provisioning.SiteSettingsApi.as_view()),
    path("sites/<uuid:site_id>/nodes", views.SiteNodeListApi.as_view()),
    path("nodes", views.NodeListApi.as_view()),
    path("nodes/bulk", provisioning.NodeBulkApi.as_view()),
    path("nodes/<uuid:node_id>/settings", provisioning.NodeSettingsApi.as_view()),
    path("nodes/<uuid:node_id>", views.NodeDetailApi.as_view()),
]
