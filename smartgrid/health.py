"""For a supervisor and a load balancer: does the process live, and can it serve?"""

from __future__ import annotations

import structlog
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_safe

from smartgrid import live

log = structlog.stdlib.get_logger(__name__)


@require_safe
def healthz(_request: HttpRequest) -> HttpResponse:
    return JsonResponse({"status": "ok"})


@require_safe
def readyz(_request: HttpRequest) -> HttpResponse:
    """200 when the database and Redis answer, else 503; the body names each."""
    parts = {"database": _database(), "redis": _redis()}
    ready = all(state == "ok" for state in parts.values())
    return JsonResponse({"status": "ok" if ready else "unavailable", **parts}, status=200 if ready else 503)


def _database() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        log.warning("database_unavailable", error=str(error))
        return "unavailable"
    return "ok"


def _redis() -> str:
    try:
        live.ping()
    except live.LiveUnavailable as error:
        log.warning("redis_unavailable", error=str(error))
        return "unavailable"
    return "ok"
