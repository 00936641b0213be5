"""The project: wiring, and what every app shares."""

from smartgrid.celery import app as celery_app

__all__ = ["celery_app"]
