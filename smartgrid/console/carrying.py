"""Seeing control requests to their end while the browser watches (ADR 0035)."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context

import structlog
from django.db import connections

from control_app.services import UnderWay, request_finish
from smartgrid.errors import SgmError

log = structlog.stdlib.get_logger(__name__)

# As many requests are waited for at once in one process. Whoever comes later finds the answers there.
WAITED_FOR_AT_ONCE = 64
_threads = ThreadPoolExecutor(max_workers=WAITED_FOR_AT_ONCE, thread_name_prefix="carrying")
_carried: set[Future[None]] = set()


def carry_on(under_way: UnderWay) -> Future[None]:
    """Wait in a thread for what becomes of a request, writing down each answer as it comes."""
    # The log lines go on to name the web request it came with.
    carried = _threads.submit(copy_context().run, _finish, under_way)
    _carried.add(carried)
    carried.add_done_callback(_carried.discard)
    return carried


def carried_to_the_end(*, within_s: float) -> bool:
    """Wait until nothing is waited for any more in this process; False where that takes longer."""
    return not wait(list(_carried), timeout=within_s).not_done


def _finish(under_way: UnderWay) -> None:
    try:
        request_finish(under_way, shows_progress=True)
    except SgmError as refusal:
        # Its row tells: nothing of it was sent.
        log.info("request_not_carried_out", request=str(under_way.request.pk), why=str(refusal))
    except Exception:  # the top of this thread; `requests_settle` closes the request
        log.exception("request_not_seen_to_its_end", request=str(under_way.request.pk))
    finally:
        connections.close_all()
