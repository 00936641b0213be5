from django.apps import AppConfig


class DevicesConfig(AppConfig):
    name = "devices_app"
    verbose_name = "Devices"

    def ready(self) -> None:
        from devices_app.config import register  # noqa: PLC0415 - models are not there before
        from devices_app.metrics import site_metrics_read  # noqa: PLC0415
        from devices_app.retirement import node_kept_by, site_kept_by  # noqa: PLC0415
        from sites_app.selectors import metric_source_register  # noqa: PLC0415
        from sites_app.services import node_keeper_register, site_keeper_register  # noqa: PLC0415

        register()
        node_keeper_register(name=self.name, kept_by=node_kept_by)
        site_keeper_register(name=self.name, kept_by=site_kept_by)
        metric_source_register(name=self.name, source=site_metrics_read)
