"""Paths of devices below /v1/."""

from __future__ import annotations

from django.urls import path

from devices_app.api import loops, provisioning, views

urlpatterns = [
    path("device-types", provisioning.DeviceTypeListApi.as_view()),
    path("device-types/bulk", provisioning.DeviceTypeBulkApi.as_view()),
    path("device-types/<uuid:device_type_id>", provisioning.DeviceTypeDetailApi.as_view()),
    path("devices", views.DeviceListApi.as_view()),
    path("devices/bulk", provisioning.DeviceBulkApi.as_view()),
    path("devices/<uuid:device_id>/settings", provisioning.DeviceSettingsApi.as_view()),
    path("devices/<uuid:device_id>", views.DeviceDetailApi.as_view()),
    path("devices/<uuid:device_id>/telemetry", views.DeviceTelemetryApi.as_view()),
    path("sites/<uuid:site_id>/telemetry", views.SiteTelemetryApi.as_view()),
    path("sites/<uuid:site_id>/devices", views.SiteDeviceListApi.as_view()),
    path("sites/<uuid:site_id>/nodes/<uuid:node_id>/devices", views.NodeDeviceListApi.as_view()),
    path("sites/<uuid:site_id>/loops", loops.SiteLoopListApi.as_view()),
    path("loops/<uuid:loop_id>", loops.LoopDetailApi.as_view()),
    path("sites/<uuid:site_id>/device-categories", views.DeviceCategoriesApi.as_view()),
]
