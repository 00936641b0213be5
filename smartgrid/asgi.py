"""The ASGI entry point, for listeners which stay connected."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "smartgrid.settings")

application = get_asgi_application()

from smartgrid.checks import refuse_to_serve_unless_sound  # noqa: E402 - needs Django set up

refuse_to_serve_unless_sound()
