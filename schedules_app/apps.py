from django.apps import AppConfig


class SchedulesConfig(AppConfig):
    name = "schedules_app"
    verbose_name = "Schedules"

    def ready(self) -> None:
        from schedules_app.services import register  # noqa: PLC0415 - models are not there before

        register()
