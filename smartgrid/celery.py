"""The Celery app, and the beat schedule as one readable table."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import celeryd_init, setup_logging, worker_ready

from smartgrid.garbage import collector_settle

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "smartgrid.settings")

app = Celery("smartgrid")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

# name -> task, period in seconds. A run that is late is worth nothing: the next one does the same.
# These are defaults: beat works from the database's copy, where operators change the periods
# (`sites_app.periodic`). A name that is changed here is another task there. Descriptions are the tasks' own.
app.conf.beat_schedule = {
    "mark silent nodes": {
        "task": "sites_app.tasks.mark_silent_nodes",
        "schedule": 5.0,
        "options": {"queue": "sync", "expires": 5},
    },
    "raise and clear alarms": {
        "task": "sites_app.tasks.judge_alarms",
        "schedule": 10.0,
        "options": {"queue": "sync", "expires": 10},
    },
    "find nodes that do not hear": {
        "task": "sites_app.tasks.judge_downlinks",
        "schedule": 30.0,
        "options": {"queue": "sync", "expires": 30},
    },
    "watch certificates": {
        "task": "sites_app.tasks.judge_certificates",
        "schedule": 3600.0,
        "options": {"queue": "sync", "expires": 3600},
    },
    "watch devices": {
        "task": "devices_app.tasks.watch_devices",
        "schedule": 60.0,
        "options": {"queue": "sync", "expires": 60},
    },
    "watch commands": {
        "task": "control_app.tasks.watch_commands",
        "schedule": 30.0,
        "options": {"queue": "sync", "expires": 30},
    },
    # By itself: a mail server that is slow must not keep an alarm from being raised.
    "send notices of alarms": {
        "task": "sites_app.tasks.send_notices",
        "schedule": 10.0,
        "options": {"queue": "sync", "expires": 10},
    },
    # Whatever of desired state was lost on its way is found in the database.
    "sync sweep": {
        "task": "sites_app.tasks.sync_sweep",
        "schedule": 10.0,
        "options": {"expires": 10},
    },
    # Anti-entropy: all that nodes last reported against all that they should run.
    "compare reports": {
        "task": "sites_app.tasks.compare_reports",
        "schedule": 900.0,
        "options": {"expires": 900},
    },
    # Two that agree let a node trust its clock; after two minutes without an answer it counts as unwell.
    "ping nodes": {
        "task": "control_app.tasks.ping_nodes",
        "schedule": 30.0,
        "options": {"queue": "sync", "expires": 15},
    },
    "settle requests": {
        "task": "control_app.tasks.settle_requests",
        "schedule": 10.0,
        "options": {"queue": "sync", "expires": 10},
    },
    # What a renewal superseded, and what a revocation could not bring to the broker at once.
    "enforce revocations": {
        "task": "sites_app.tasks.enforce_revocations",
        "schedule": 60.0,
        "options": {"queue": "sync", "expires": 60},
    },
    "keep token uses": {
        "task": "sites_app.tasks.keep_token_uses",
        "schedule": 60.0,
        "options": {"queue": "sync", "expires": 60},
    },
    "forget old alarms": {
        "task": "sites_app.tasks.forget_alarms",
        "schedule": 86400.0,
        "options": {"queue": "sync", "expires": 3600},
    },
    # Days enter and leave the window at midnight; the rest of the day this finds nothing.
    "roll schedules": {
        "task": "schedules_app.tasks.roll_schedules",
        "schedule": 300.0,
        "options": {"expires": 300},
    },
    # An alarm for what begins within five minutes on a node that has not confirmed it.
    "watch slots": {
        "task": "schedules_app.tasks.watch_slots",
        "schedule": 30.0,
        "options": {"expires": 30},
    },
    # Quarter hours that are over, and those that got readings late.
    "make telemetry means": {
        "task": "devices_app.tasks.telemetry_means_make",
        "schedule": 60.0,
        "options": {"expires": 60},
    },
    "keep telemetry partitions": {
        "task": "devices_app.tasks.telemetry_partitions_keep",
        "schedule": 3600.0,
        "options": {"expires": 3600},
    },
    "let go of old telemetry": {
        "task": "devices_app.tasks.telemetry_retain",
        "schedule": 3600.0,
        "options": {"expires": 3600},
    },
    "let go of old logs": {
        "task": "control_app.tasks.logs_retain",
        "schedule": 3600.0,
        "options": {"expires": 3600},
    },
}


@setup_logging.connect  # type: ignore[untyped-decorator]
def _keep_our_logging(**_: Any) -> None:
    """Celery would set up its own; with a receiver here it leaves Django's LOGGING alone."""


@celeryd_init.connect  # type: ignore[untyped-decorator]
def _let_workers_wait(conf: Any = None, **_: Any) -> None:
    """A worker waits for its next task by a blocking command, which that timeout would break off."""
    options = {key: value for key, value in conf.broker_transport_options.items() if key != "socket_timeout"}
    conf.broker_transport_options = options


@worker_ready.connect  # type: ignore[untyped-decorator]
def _settle(**_: Any) -> None:
    collector_settle()
