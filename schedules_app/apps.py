from django.apps import AppConfig


class SchedulesConfig(AppConfig):
    name = "schedules_app"
    verbose_name = "Schedules"
