"""Paths of schedules below /v1/."""

from __future__ import annotations

from django.urls import path

from schedules_app.api import views

urlpatterns = [
    path("schedules", views.ScheduleListApi.as_view()),
    path("schedules/<str:day_or_id>", views.SchedulesByDayOrIdApi.as_view()),
    path("schedules/<str:day>/<str:category>", views.ScheduleReplaceApi.as_view()),
    path("sites/<uuid:site_id>/schedules", views.SiteScheduleListApi.as_view()),
    path("sites/<uuid:site_id>/schedules/<str:day>", views.SiteDayScheduleListApi.as_view()),
]
