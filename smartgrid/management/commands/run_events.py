"""`manage.py run_events`: serves `/v1/events`, the streams of those who listen."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from smartgrid.checks import refuse_to_serve_unless_sound
from smartgrid.event_streams.application import EventsApplication
from smartgrid.event_streams.server import serve
from smartgrid.garbage import collector_settle


class Command(BaseCommand):
    help = "Serve /v1/events: what happens to logs, devices and nodes, as server-sent events."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
        parser.add_argument(
            "--port", type=int, default=8001, help="port to listen at, 0 for a free one (8001)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        refuse_to_serve_unless_sound()
        application = EventsApplication()
        collector_settle()
        try:
            serve(host=options["host"], port=options["port"], application=application)
        except OSError as error:
            raise CommandError(f"cannot listen at {options['host']}:{options['port']}: {error}") from error
