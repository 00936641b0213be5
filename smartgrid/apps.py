"""The project as Django apps: its start-up checks, and the console."""

from __future__ import annotations

from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig
from oauth2_provider.apps import DOTConfig


class SmartgridConfig(AppConfig):
    # Also where `{% load console %}` and the console's templates are.
    name = "smartgrid"
    verbose_name = "Smart Grid Manager"

    def ready(self) -> None:
        # They register themselves once Django's registry is up.
        import smartgrid.checks  # noqa: PLC0415
        import smartgrid.console.audit_admin  # noqa: PLC0415
        import smartgrid.console.people_admin  # noqa: PLC0415
        import smartgrid.issuer_admin  # noqa: F401, PLC0415
        from smartgrid.console.audit import tracking_begin  # noqa: PLC0415
        from smartgrid.console.roles import roles_follow_migrations  # noqa: PLC0415
        from smartgrid.console.sessions import sessions_begin  # noqa: PLC0415

        tracking_begin()
        roles_follow_migrations()
        sessions_begin()


class IssuerConfig(DOTConfig):  # type: ignore[misc] # the toolkit has no types
    """The OAuth toolkit under the name of what it is here."""

    verbose_name = "Embedded token issuer"


class ConsoleConfig(AdminConfig):
    default_site = "smartgrid.admin.Console"
