"""What a principal may see of sites and nodes; `sites_visible_to` is the one door to all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.db.models import Q, QuerySet

from sites_app import tokens
from sites_app.models import DocumentStatus, ManagementToken, Node, Site, UnsettledDocument
from sites_app.presence import central_now, presence_read
from sites_app.publishing import documents_unpublished, nodes_unpublished
from smartgrid.api.principal import Principal
from smartgrid.errors import NotFound

# A reading older than this is not served as current.
CURRENT_FOR = timedelta(minutes=15)


def sites_visible_to(principal: Principal) -> QuerySet[Site]:
    """The sites this principal may see: all for root, else those its token names.

    Every query about anything of a site starts from here.
    """
    sites = Site.objects.order_by("site_tag", "pk")
    if principal.is_root:
        return sites
    if principal.token_id is None:
        return sites.none()
    return sites.filter(management_tokens=principal.token_id)


def site_get(*, principal: Principal, site_id: UUID) -> Site:
    """One visible site, else `NotFound`: hidden and absent look the same."""
    site = sites_visible_to(principal).filter(pk=site_id).first()
    if site is None:
        raise NotFound("No such site.")
    return site


def nodes_visible_to(principal: Principal) -> QuerySet[Node]:
    nodes = Node.objects.order_by("name", "pk")
    return nodes if principal.is_root else nodes.filter(site__in=sites_visible_to(principal).order_by())


def node_get(*, principal: Principal, node_id: UUID, site_id: UUID | None = None) -> Node:
    """One visible node, of this site where one is given, else `NotFound`."""
    nodes = nodes_visible_to(principal).filter(pk=node_id)
    node = (nodes if site_id is None else nodes.filter(site_id=site_id)).first()
    if node is None:
        raise NotFound("No such node.")
    return node


def management_token_find(value: str) -> ManagementToken | None:
    """The token with this value, found by its keyed digest; None for anything else."""
    if not tokens.is_well_formed(value):
        return None
    return ManagementToken.objects.filter(digest=tokens.digest(value)).first()


def token_value(token: ManagementToken) -> str:
    """What its holder sends; `TokenUnreadable` where its key is gone."""
    return tokens.decrypt(token.encrypted)


def documents_unsettled() -> QuerySet[UnsettledDocument]:
    """The documents that are not where they should be: not applied, or not known to be at the broker.

    Found by a partial index and by the few nodes that are not published whole, not among all documents.
    """
    documents = UnsettledDocument.objects.order_by()
    not_applied = documents.filter(~Q(status=DocumentStatus.APPLIED) | Q(dropped=True))
    unpublished = documents.filter(documents_unpublished(), node__in=nodes_unpublished())
    return documents.filter(pk__in=not_applied.values("pk").union(unpublished.values("pk")))


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """Whether a node is healthy: present in its current session, just heard, and hearing us."""

    tenant_tag: str
    site_tag: str
    node_name: str
    healthy: bool


def nodes_health(nodes: Sequence[Node]) -> list[NodeHealth]:
    """Each of these, whose sites are loaded, as it is now; `LiveUnavailable` where Redis does not answer.

    Without Redis nothing is known, and all nodes called unwell would send somebody to look at the wrong end.
    """
    presence = presence_read(node.pk for node in nodes)
    now = central_now()
    return [
        NodeHealth(
            tenant_tag=node.tenant_tag,
            site_tag=node.site.site_tag,
            node_name=node.name,
            healthy=presence[node.pk].is_healthy(now=now),
        )
        for node in nodes
    ]


@dataclass(frozen=True, slots=True)
class Metric:
    """The latest value of one key of a site."""

    key: str
    value: float
    at: datetime


# What the readings of a site amount to now; who keeps the readings says it.
MetricSource = Callable[[Site, datetime], list[Metric]]
_metric_sources: dict[str, MetricSource] = {}


def metric_source_register(*, name: str, source: MetricSource) -> None:
    """Make `source` say metrics of a site at a moment: only what is current then (`CURRENT_FOR`)."""
    _metric_sources[name] = source


def site_metrics(site: Site, *, now: datetime) -> list[Metric]:
    """The site's readings which are still current, by key; none where nobody can tell them now."""
    metrics = [metric for source in _metric_sources.values() for metric in source(site, now)]
    return sorted(metrics, key=lambda metric: metric.key)
