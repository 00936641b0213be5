"""A ping to each reachable node now and then: does it hear us, and what does its clock say?

Each ping closes the exchange of timestamps before it, so that the node can judge its clock (design, rule 17).
All that is known of an exchange lies in Redis; a ping or an answer that is lost costs one measurement.
"""

from __future__ import annotations

import structlog

from control_app.dispatch import Dispatcher
from edge.wire.topics import NodeTopics
from sites_app.models import Node
from sites_app.node_link import LinkUnavailable, SendUnconfirmed
from sites_app.presence import central_now, presence_read

log = structlog.stdlib.get_logger(__name__)


def nodes_ping(dispatcher: Dispatcher) -> int:
    """Ping every node that is reachable; how many were. `LiveUnavailable` where Redis does not answer."""
    nodes = list(Node.objects.only("tenant_tag", "epoch"))
    known = presence_read(node.pk for node in nodes)
    pinged = 0
    for node in nodes:
        presence = known[node.pk]
        if not presence.is_reachable(now=central_now()):
            continue
        topics = NodeTopics(node.tenant_tag, str(node.pk))
        try:
            dispatcher.ping(topics, epoch=node.epoch, closing=presence.closing)
        except LinkUnavailable as error:
            log.warning("nodes_not_pinged", error=error.detail)
            return pinged
        except SendUnconfirmed as error:
            log.warning("ping_unconfirmed", node=topics.node, error=error.detail)
            continue
        pinged += 1
    return pinged
