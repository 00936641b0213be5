"""The WSGI entry point: API and console."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "smartgrid.settings")

application = get_wsgi_application()

from smartgrid.checks import refuse_to_serve_unless_sound  # noqa: E402 - needs Django set up
from smartgrid.garbage import collector_settle  # noqa: E402

refuse_to_serve_unless_sound()
collector_settle()
