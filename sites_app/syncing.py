"""Which nodes want their desired state published, and how that is queued: once for many changes.

Two flags a node in Redis. `queued` is there from the moment a task is queued until that begins, so that a
burst of changes queues one. `rested` is there for a moment after a task ran: the next one waits for as long.
Both may be lost: what is not published is found in the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

import structlog
from django.db.models import Q, QuerySet
from django.utils import timezone

from sites_app.models import Farewell, Node
from sites_app.publishing import nodes_unpublished
from smartgrid import live
from smartgrid.live import LiveUnavailable

log = structlog.stdlib.get_logger(__name__)

# A task that did not begin within this is taken for lost.
QUEUED_S = 20
# Of a burst of changes to a node, one publication in this time.
REST_MS = 500
NODES_PER_TASK = 50
# A node that is online has this long to tell that it has what was published.
ANSWER_WITHIN = timedelta(seconds=10)
# One that does not is told again, this often at most.
TELL_AGAIN_AFTER = timedelta(seconds=30)
CLOCK_SLACK = timedelta(seconds=5)


def nodes_sync_queue(node_ids: Sequence[str], *, again: bool = False) -> int:
    """Queue the publication of what the broker lacks of these nodes; how many were not queued already.

    `again`: also what their last report lacks, although it was published.
    """
    from kombu.exceptions import OperationalError  # noqa: PLC0415 - web processes load it with their first task

    from sites_app.tasks import sync_nodes  # noqa: PLC0415 - tasks import this module

    queued = 0
    try:
        fresh = live.flags_set([_queued(node_id) for node_id in node_ids], expires_s=QUEUED_S)
        waiting = [node_id for node_id, is_new in zip(node_ids, fresh, strict=True) if is_new]
        rested = live.flags_read([_rested(node_id) for node_id in waiting]) if waiting else []
        for is_rested in (False, True):
            some = [node_id for node_id, rests in zip(waiting, rested, strict=True) if rests == is_rested]
            for start in range(0, len(some), NODES_PER_TASK):
                sync_nodes.apply_async(
                    (some[start : start + NODES_PER_TASK],),
                    {"again": again},
                    countdown=REST_MS / 1000 if is_rested else None,
                )
            queued += len(some)
    except (LiveUnavailable, OperationalError) as error:
        log.warning("desired_state_not_queued", nodes=len(node_ids), queued=queued, error=str(error))
    return queued


def nodes_sync_begins(node_ids: Iterable[str]) -> None:
    """Take note that these are about to be read and published: a later change queues anew."""
    ids = list(node_ids)
    try:
        live.flags_clear(
            [_queued(node_id) for node_id in ids], mark={_rested(node_id): REST_MS for node_id in ids}
        )
    except LiveUnavailable as error:
        # The flags go by themselves.
        log.warning("sync_flags_not_cleared", nodes=len(ids), error=error.detail)


def _queued(node_id: str) -> str:
    return f"sgm:sync:queued:{node_id}"


def _rested(node_id: str) -> str:
    return f"sgm:sync:rested:{node_id}"


def farewells_queue() -> None:
    """Queue the publication of what deleted nodes should have had last; the sweep does the same."""
    from kombu.exceptions import OperationalError  # noqa: PLC0415

    from sites_app.tasks import sync_farewells  # noqa: PLC0415

    try:
        sync_farewells.delay()
    except OperationalError as error:
        log.warning("farewells_not_queued", error=str(error))


def sweep() -> int:
    """Find in the database what the broker or a node was not told, whatever was lost, and queue it; how many.

    That is: what is not recorded as published, renderings that wait, and the nodes that are online and do not
    say that they have what was published. A node that is offline finds it at the broker when it returns.
    """
    now = timezone.now()
    untold = nodes_unpublished() | Node.objects.filter(render_due_since__isnull=False)
    queued = _queue(untold, again=False)
    lacking = Node.objects.filter(
        # What lies ahead is from before central's clock was set back.
        Q(published_at__isnull=True)
        | Q(published_at__lt=now - TELL_AGAIN_AFTER)
        | Q(published_at__gt=now + CLOCK_SLACK),
        Q(out_of_sync_since__lt=now - ANSWER_WITHIN) | Q(out_of_sync_since__gt=now + CLOCK_SLACK),
        online=True,
    )
    queued += _queue(lacking, again=True)
    if Farewell.objects.exists():
        farewells_queue()
    if queued:
        log.info("desired_state_swept", nodes=queued)
    return queued


def _queue(nodes: QuerySet[Node], *, again: bool) -> int:
    keys = [str(pk) for pk in nodes.order_by("pk").values_list("pk", flat=True)]
    return nodes_sync_queue(keys, again=again) if keys else 0
