"""Lines of the control log as listeners hear of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from control_app.models import ControlLog, Unit
from smartgrid.api.fields import number, timestamp
from smartgrid.events import Event, Kind, events_publish


def control_logs_publish(lines: Iterable[ControlLog]) -> None:
    """Tell of these lines once they are committed."""
    events_publish(Event(Kind.CONTROL_LOG, line.site_id, partial(control_log_body, line)) for line in lines)


def control_log_body(line: ControlLog) -> dict[str, Any]:
    """The line as `GET /v1/logs` shows it."""
    # By hand: made of a row as it was just written, and without loading the API into inboxes and workers.
    body = {
        "id": line.pk,
        "created_at": timestamp(line.created_at),
        "site_id": line.site_id,
        "status": str(line.status),
        "category": line.category,
        "watchdog": line.watchdog,
        "value": None if line.value is None else number(line.value),
        "result": line.result,
    }
    return body if line.unit == Unit.PERCENT else body | {"unit": str(line.unit)}
