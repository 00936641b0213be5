"""The floor's queue part: an empty task over Redis, with the worker options of the product."""

from __future__ import annotations

import os

from celery import Celery

app = Celery("floor", broker=os.environ["FLOOR_REDIS"], backend=os.environ["FLOOR_REDIS"])
app.conf.task_default_queue = "floor"
app.conf.worker_prefetch_multiplier = 1
app.conf.worker_hijack_root_logger = False


@app.task(name="floor.noop")  # type: ignore[untyped-decorator]
def noop() -> None:
    """Nothing."""
