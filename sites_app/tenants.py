"""Whether a topic names the tenant of its node: the one thing the broker's access list leaves open.

A node may write below `sgm/v1/{any tenant}/{itself}/` (`edge.wire.topics.acl_lines`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import structlog

from edge.wire.topics import NodeTopics
from sites_app.models import Node

log = structlog.stdlib.get_logger(__name__)

# A node that is not known may be made at any time.
UNKNOWN_FOR_S = 5.0
# More ids than that nobody's fleet has: somebody makes them up, on a broker that does not isolate nodes.
UNKNOWN_MOST = 50_000
COMPLAIN_EVERY_S = 60.0


class KnownTenants:
    """The tenants of nodes, which are fixed for life, so that each need be looked up once in a process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tenants: dict[str, str] = {}
        self._unknown: dict[str, float] = {}
        self._complaints = {
            "message_of_unknown_node": _Complaint("message_of_unknown_node"),
            "message_under_wrong_tenant": _Complaint("message_under_wrong_tenant"),
        }

    def load(self, node_ids: Iterable[str]) -> None:
        """Look up those that are not known, in one query."""
        now = self._clock()
        wanted = {
            node_id
            for node_id in node_ids
            if node_id not in self._tenants
            and now - self._unknown.get(node_id, -UNKNOWN_FOR_S) >= UNKNOWN_FOR_S
        }
        if not wanted:
            return
        found = Node.objects.filter(pk__in=wanted).values_list("pk", "tenant_tag")
        tenants = {str(pk): tenant for pk, tenant in found}
        if len(self._unknown) > UNKNOWN_MOST:
            self._unknown.clear()
        self._tenants |= tenants
        self._unknown |= dict.fromkeys(wanted - tenants.keys(), now)

    def is_right(self, topics: NodeTopics) -> bool:
        """Tell whether this branch is its node's own; complain of those that are not once a minute."""
        tenant = self._tenants.get(topics.node)
        if tenant == topics.tenant:
            return True
        event = "message_of_unknown_node" if tenant is None else "message_under_wrong_tenant"
        self._complaints[event].note(topics, now=self._clock())
        return False


class _Complaint:
    """Something that whoever causes it may cause any number of times: told at once, and then now and then."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._told_at = -COMPLAIN_EVERY_S
        self._untold = 0

    def note(self, topics: NodeTopics, *, now: float) -> None:
        self._untold += 1
        if now - self._told_at >= COMPLAIN_EVERY_S:
            log.warning(self._event, node=topics.node, tenant=topics.tenant, messages=self._untold)
            self._told_at, self._untold = now, 0
