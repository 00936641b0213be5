"""The WSGI entry point: API and console."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "smartgrid.settings")

django_application = get_wsgi_application()

from smartgrid.bodies import bodies_bounded  # noqa: E402 - needs Django set up
from smartgrid.checks import refuse_to_serve_unless_sound  # noqa: E402
from smartgrid.garbage import collector_settle  # noqa: E402
from smartgrid.statements import statements_limit  # noqa: E402

application = bodies_bounded(django_application)

statements_limit()
refuse_to_serve_unless_sound()
collector_settle()
