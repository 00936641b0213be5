"""A ping to each reachable node now and then: does it hear us, and what does its clock say?

Each ping closes the exchange of timestamps before it, so that the node can judge its clock (design, rule 17).
All that is known of an exchange lies in Redis; a ping or an answer that is lost costs one measurement.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import UUID

import structlog
from django.db import transaction

from edge.wire.topics import NodeTopics
from sites_app.models import Node
from sites_app.node_link import LinkUnavailable, SendUnconfirmed
from sites_app.presence import central_now, presence_read

if TYPE_CHECKING:
    from control_app.dispatch import Dispatcher

log = structlog.stdlib.get_logger(__name__)


def nodes_greet(node_ids: Iterable[UUID], *, after_s: float = 0.0) -> None:
    """Have these nodes, which have just come, pinged once this is committed, and `after_s` seconds later.

    Until a node has answered one it does not count as healthy, and the next round may be half a minute away.
    A greeting that is lost costs that half minute.
    """
    keys = [str(node_id) for node_id in node_ids]
    if keys:
        transaction.on_commit(lambda: _queue(keys, after_s=after_s))


def _queue(keys: list[str], *, after_s: float) -> None:
    from kombu.exceptions import OperationalError  # noqa: PLC0415

    from control_app.tasks import ping_nodes  # noqa: PLC0415 - tasks import this module

    try:
        ping_nodes.apply_async((keys,), countdown=after_s or None)
    except OperationalError as error:
        log.warning("nodes_not_greeted", count=len(keys), error=str(error))


def nodes_ping(dispatcher: Dispatcher, *, node_ids: Iterable[str] | None = None) -> int:
    """Ping every node that is reachable (of these, where some are named), in one go; how many were.

    `LiveUnavailable` where Redis does not answer.
    """
    from control_app.dispatch import Ping  # noqa: PLC0415 - it loads the broker's client

    rows = Node.objects.only("tenant_tag", "epoch")
    nodes = list(rows if node_ids is None else rows.filter(pk__in=list(node_ids)))
    known = presence_read(node.pk for node in nodes)
    now = central_now()
    pings = [
        Ping(NodeTopics(node.tenant_tag, str(node.pk)), node.epoch, known[node.pk].closing)
        for node in nodes
        if known[node.pk].is_reachable(now=now)
    ]
    try:
        dispatcher.ping_all(pings)
    except LinkUnavailable as error:
        log.warning("nodes_not_pinged", error=error.detail)
        return 0
    except SendUnconfirmed as error:
        log.warning("pings_unconfirmed", nodes=len(pings), error=error.detail)
    return len(pings)
