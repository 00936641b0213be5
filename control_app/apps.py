from django.apps import AppConfig


class ControlConfig(AppConfig):
    name = "control_app"
    verbose_name = "Control"
