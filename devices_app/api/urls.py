"""Paths of devices below /v1/."""

from __future__ import annotations

from django.urls import path

from devices_app.api import views

urlpatterns = [
    path("devices", views.DeviceListApi.as_view()),
    path("devices/<uuid:device_id>", views.DeviceDetailApi.as_view()),
    path("sites/<uuid:site_id>/devices", views.SiteDeviceListApi.as_view()),
    path("sites/<uuid:site_id>/nodes/<uuid:node_id>/devices", views.NodeDeviceListApi.as_view()),
    path("sites/<uuid:site_id>/device-categories", views.DeviceCategoriesApi.as_view()),
]
