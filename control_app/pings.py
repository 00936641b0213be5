"""A ping to each reachable node now and then: does it hear us, and what does its clock say?

Each ping closes the exchange of timestamps before it, so that the node can judge its clock (design, rule 17).
All that is known of an exchange lies in Redis; a ping or an answer that is lost costs one measurement.
"""

from __future__ import annotations

import structlog

from control_app.dispatch import Dispatcher, Ping
from edge.wire.topics import NodeTopics
from sites_app.models import Node
from sites_app.node_link import LinkUnavailable, SendUnconfirmed
from sites_app.presence import central_now, presence_read

log = structlog.stdlib.get_logger(__name__)


def nodes_ping(dispatcher: Dispatcher) -> int:
    """Ping every node that is reachable, in one go; how many were.

    `LiveUnavailable` where Redis does not answer.
    """
    nodes = list(Node.objects.only("tenant_tag", "epoch"))
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
