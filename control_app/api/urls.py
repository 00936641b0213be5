"""Paths of control and logs below /v1/."""

from __future__ import annotations

from django.urls import path

from control_app.api import views

urlpatterns = [
    path("sites/<uuid:site_id>/curtail-category", views.CurtailCategoryApi.as_view()),
    path("sites/<uuid:site_id>/release", views.SiteReleaseApi.as_view()),
    path("sites/<uuid:site_id>/logs", views.SiteLogListApi.as_view()),
    path("devices/<uuid:device_id>/explain", views.DeviceExplainApi.as_view()),
    path("logs", views.LogListApi.as_view()),
    path("device-error-logs", views.DeviceErrorLogApi.as_view()),
]
