from django.apps import AppConfig


class SchedulesConfig(AppConfig):
    name = "schedules_app"
    verbose_name = "Schedules"

    def ready(self) -> None:
        from schedules_app.services import register, site_kept_by  # noqa: PLC0415 - models are not there before
        from sites_app.services import site_keeper_register  # noqa: PLC0415

        register()
        site_keeper_register(name=self.name, kept_by=site_kept_by)
