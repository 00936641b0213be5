"""The project as Django apps: its start-up checks, and the console."""

from __future__ import annotations

from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig


class SmartgridConfig(AppConfig):
    name = "smartgrid"
    verbose_name = "Smart Grid Manager"

    def ready(self) -> None:
        import smartgrid.checks  # noqa: F401, PLC0415 - registers itself once Django's registry is up


class ConsoleConfig(AdminConfig):
    default_site = "smartgrid.admin.Console"
