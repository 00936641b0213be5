"""Paths of schedules below /v1/."""

from __future__ import annotations

from django.urls import path

from schedules_app.api import views

urlpatterns = [
    path("schedules", views.ScheduleListApi.as_view()),
    # Before the days: no day looks like an id.
    path("schedules/<uuid:schedule_id>", views.ScheduleDeleteApi.as_view()),
    path("schedules/<str:day>", views.DayScheduleListApi.as_view()),
    path("schedules/<str:day>/<str:category>", views.ScheduleReplaceApi.as_view()),
    path("sites/<uuid:site_id>/schedules", views.SiteScheduleListApi.as_view()),
    path("sites/<uuid:site_id>/schedules/<str:day>", views.SiteDayScheduleListApi.as_view()),
]
