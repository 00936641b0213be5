from django.apps import AppConfig


class DevicesConfig(AppConfig):
    name = "devices_app"
    verbose_name = "Devices"

    def ready(self) -> None:
        from devices_app.config import register  # noqa: PLC0415 - models are not there before

        register()
