"""The Celery app, and the beat schedule as one readable table."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import setup_logging

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "smartgrid.settings")

app = Celery("smartgrid")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

# name -> task, period in seconds, queue
app.conf.beat_schedule = {}


@setup_logging.connect  # type: ignore[untyped-decorator]
def _keep_our_logging(**_: Any) -> None:
    """Celery would set up its own; with a receiver here it leaves Django's LOGGING alone."""
