from django.apps import AppConfig


class ControlConfig(AppConfig):
    name = "control_app"
    verbose_name = "Control"

    def ready(self) -> None:
        from control_app.probes import probe_queue  # noqa: PLC0415
        from control_app.selectors import highest_sequence, site_kept_by  # noqa: PLC0415 - models are not there before
        from devices_app.probes import probe_sender_register  # noqa: PLC0415
        from sites_app.reports import highest_sequence_register  # noqa: PLC0415
        from sites_app.services import site_keeper_register  # noqa: PLC0415

        highest_sequence_register(highest_sequence)
        probe_sender_register(probe_queue)
        site_keeper_register(name=self.name, kept_by=site_kept_by)
