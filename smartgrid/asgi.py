"""The ASGI entry point, for listeners which stay connected; `manage.py run_events` serves the same."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "smartgrid.settings")

django.setup()

from smartgrid.checks import refuse_to_serve_unless_sound  # noqa: E402 - needs Django set up
from smartgrid.event_streams.application import EventsApplication  # noqa: E402

application = EventsApplication()

refuse_to_serve_unless_sound()
