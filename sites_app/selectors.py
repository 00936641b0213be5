"""What a principal may see of sites and nodes; the first two functions are the one door to all of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import structlog
from django.db.models import Case, Exists, F, IntegerField, Model, OuterRef, Q, QuerySet, Value, When

from sites_app import tokens
from sites_app.models import (
    Alarm,
    AlarmSeverity,
    DocumentStatus,
    ManagementToken,
    Node,
    Site,
    UnsettledDocument,
)
from sites_app.presence import central_now, presence_read
from sites_app.publishing import documents_unpublished, nodes_unpublished
from smartgrid.api.principal import Principal
from smartgrid.errors import REFUSED_SHOWN, Invalid, NotFound, SgmError, refusal_of_many
from smartgrid.expressions import KeysFound
from smartgrid.kept import KeptForPrincipal, KeptQuery

log = structlog.stdlib.get_logger(__name__)

M = TypeVar("M", bound=Model)

# A reading older than this is not served as current.
CURRENT_FOR = timedelta(minutes=15)
# Of so many sites, rows are found sooner by looking at each site than in the order they are shown in.
FEW_SITES = 100


def sites_visible_to(principal: Principal) -> QuerySet[Site]:
    """The sites this principal may see: all for root, else those its token, or its scope, names.

    Every query about a site starts from here, and about anything of one from `of_visible_sites`.
    """
    sites = Site.objects.order_by("site_tag", "pk")
    if principal.is_root:
        return sites
    if principal.scope_id is not None:
        return sites.filter(scopes=principal.scope_id)
    if principal.token_id is None:
        return sites.none()
    if principal.opens_few:
        return sites.filter(pk__among=_opened_by(principal.token_id))
    return sites.filter(management_tokens=principal.token_id)


def of_visible_sites(rows: QuerySet[M], principal: Principal) -> QuerySet[M]:
    """Those of these rows, each of one `site`, whose site is among `sites_visible_to` this principal.

    The sites themselves are left out of the query, which halves the time to plan it.
    """
    if principal.is_root:
        return rows
    if principal.scope_id is not None:
        return rows.filter(site__scopes=principal.scope_id)
    if principal.token_id is None:
        return rows.none()
    opened = _opened_by(principal.token_id)
    return rows.filter(site__pk__among=opened) if principal.opens_few else rows.filter(site__in=opened)


def _opened_by(token_id: UUID) -> QuerySet[Any, Any]:
    """The ids of the sites that this token opens."""
    return ManagementToken.sites.through.objects.filter(managementtoken=token_id).values("site_id")


def site_get(*, principal: Principal, site_id: UUID) -> Site:
    """One visible site, else `NotFound`: hidden and absent look the same."""
    site = sites_visible_to(principal).filter(pk=site_id).first()
    if site is None:
        raise NotFound("No such site.")
    return site


def site_visible(principal: Principal, site_id: UUID) -> None:
    """`NotFound` where this principal may see no such site."""
    if not _SITE_VISIBLE.rows(principal, site_id):
        raise NotFound("No such site.")


_SITE_VISIBLE = KeptForPrincipal(
    lambda principal, site_id: sites_visible_to(principal).filter(pk=site_id).order_by().values_list("pk"),
    UUID,
)


def sites_named(*, principal: Principal, site_ids: Sequence[UUID], field: str) -> list[Site]:
    """These visible sites in this order. `NotFound` names the places in `field` where no such site stands,
    hidden and absent alike; `Invalid` those where one stands again.
    """
    sites = sites_visible_to(principal).filter(pk__in=site_ids).in_bulk()
    if absent := [place for place, site_id in enumerate(site_ids) if site_id not in sites]:
        shown = absent[:REFUSED_SHOWN]
        raise NotFound("No such site.", errors={f"{field}.{place}": ["No such site."] for place in shown})
    if len(sites) < len(site_ids):
        first: dict[UUID, int] = {}
        for place, site_id in enumerate(site_ids):
            if first.setdefault(site_id, place) != place:
                raise Invalid.field(f"{field}.{place}", "this site stands there twice")
    return [sites[site_id] for site_id in site_ids]


def sites_get(*, principal: Principal, site_ids: Sequence[UUID]) -> list[Site]:
    """Visible sites in this order, by two statements at most; else `NotFound` names the place of each."""
    found = sites_visible_to(principal).in_bulk(set(site_ids))
    all_there(site_ids, found, field="site_id", what="site")
    return [found[site_id] for site_id in site_ids]


def nodes_get(*, principal: Principal, node_ids: Sequence[UUID]) -> list[Node]:
    """As `sites_get`."""
    found = nodes_visible_to(principal).in_bulk(set(node_ids))
    all_there(node_ids, found, field="node_id", what="node")
    return [found[node_id] for node_id in node_ids]


def all_there(keys: Sequence[UUID | None], found: Collection[UUID], *, field: str, what: str) -> None:
    """Refuse an array of which some keys, where one is given, are not found: `NotFound`, by their places."""
    text = f"No such {what}."
    absent: dict[int, SgmError] = {
        place: NotFound(text, errors={field: [text]})
        for place, key in enumerate(keys)
        if key is not None and key not in found
    }
    if absent:
        raise refusal_of_many(absent)


def nodes_visible_to(principal: Principal) -> QuerySet[Node]:
    return of_visible_sites(Node.objects.order_by("name", "pk"), principal)


def site_nodes_visible_to(principal: Principal, site_id: UUID) -> QuerySet[Node]:
    """Those of one site."""
    return nodes_visible_to(principal).filter(site_id=site_id)


def node_get(*, principal: Principal, node_id: UUID, site_id: UUID | None = None) -> Node:
    """One visible node, of this site where one is given, else `NotFound`."""
    nodes = nodes_visible_to(principal).filter(pk=node_id)
    node = (nodes if site_id is None else nodes.filter(site_id=site_id)).first()
    if node is None:
        raise NotFound("No such node.")
    return node


def alarms_visible_to(principal: Principal) -> QuerySet[Alarm]:
    """The alarms of visible sites, as somebody has to look at them.

    First what is open: errors that nobody looks after, warnings that nobody does, what somebody does. Then
    history, what was cleared last first.
    """
    urgency = Case(
        When(cleared_at__isnull=False, then=Value(3)),
        When(acknowledged_at__isnull=False, then=Value(2)),
        When(severity=AlarmSeverity.ERROR, then=Value(0)),
        default=Value(1),
        output_field=IntegerField(),
    )
    rows = of_visible_sites(Alarm.objects.all(), principal).select_related("site")
    return rows.order_by(urgency, F("cleared_at").desc(nulls_last=True), F("raised_at").desc(), "-pk")


class FoundToken(NamedTuple):
    """A management token that there is, and whether it opens no more than `FEW_SITES` now."""

    pk: UUID
    opens_few: bool


def management_token_find(value: str) -> FoundToken | None:
    """The token with this value, found by its keyed digest; None for anything else."""
    if not tokens.is_well_formed(value):
        return None
    digests = tokens.digests(value)
    found = _TOKEN_BY_DIGEST.rows(digests[0], digests[-1])
    if not found:
        return None
    token_id, opens_many = found[0]
    return FoundToken(token_id, not opens_many)


def _by_digest(one: str, other: str) -> QuerySet[ManagementToken, tuple[Any, ...]]:
    # Under either key at once: while keys are exchanged a row is never between two looks.
    found = ManagementToken.objects.filter(digest__in=[one, other])
    opened = ManagementToken.sites.through.objects.filter(managementtoken=OuterRef("pk"))
    # As far as it takes to know, and not all of them.
    return found.values_list("pk", Exists(opened[FEW_SITES : FEW_SITES + 1]))


_TOKEN_BY_DIGEST = KeptQuery(_by_digest, str, str)


def sites_by_token(token_ids: Iterable[UUID]) -> dict[UUID, frozenset[UUID]]:
    """The sites that each of these tokens opens now, in one query; a token that is gone is left out.

    The same as `sites_visible_to` for each, for those who serve many at once.
    """
    opened: dict[UUID, set[UUID]] = {}
    rows = ManagementToken.objects.filter(pk__in=list(token_ids)).order_by().values_list("pk", "sites")
    for token_id, site_id in rows:
        opened.setdefault(token_id, set()).update([] if site_id is None else [site_id])
    return {token_id: frozenset(sites) for token_id, sites in opened.items()}


def token_value(token: ManagementToken) -> str:
    """What its holder sends; `TokenUnreadable` where its key is gone."""
    return tokens.decrypt(token.encrypted)


def tokens_visible_to(principal: Principal) -> QuerySet[ManagementToken]:
    """All management tokens for root, none for anybody else."""
    rows = ManagementToken.objects.order_by("name", "pk")
    return rows if principal.is_root else rows.none()


def token_get(*, principal: Principal, token_id: UUID) -> ManagementToken:
    token = tokens_visible_to(principal).filter(pk=token_id).first()
    if token is None:
        raise NotFound("No such token.")
    return token


def tokens_with_sites(rows: QuerySet[ManagementToken]) -> QuerySet[ManagementToken]:
    """These, each with `opens`: the ids of its sites as texts, in the order they were given."""
    through = ManagementToken.sites.through.objects.filter(managementtoken_id=OuterRef("pk")).order_by("pk")
    return rows.annotate(opens=KeysFound(through.values(key=F("site_id"))))


def token_values(encrypted: Mapping[UUID, str]) -> dict[UUID, str | None]:
    """What the holders of these tokens send; None where no present key decrypts it: such a token opens its
    sites all the same, since it is found by its digest.
    """
    values = {token_id: _value_if_readable(text) for token_id, text in encrypted.items()}
    if unreadable := [str(token_id) for token_id, value in values.items() if value is None]:
        # Nobody's service stops for it, but a holder who lost the value cannot be told it again.
        log.warning("management_access_unreadable", count=len(unreadable), first=unreadable[0])
    return values


def _value_if_readable(encrypted: str) -> str | None:
    try:
        return tokens.decrypt_often(encrypted)
    except tokens.TokenUnreadable:
        return None


def documents_unsettled() -> QuerySet[UnsettledDocument]:
    """The documents that are not where they should be: not applied, or not known to be at the broker.

    Found by a partial index and by the few nodes that are not published whole, not among all documents.
    """
    documents = UnsettledDocument.objects.order_by()
    not_applied = documents.filter(~Q(status=DocumentStatus.APPLIED) | Q(dropped=True))
    unpublished = documents.filter(documents_unpublished(), node__in=nodes_unpublished())
    return documents.filter(pk__in=not_applied.values("pk").union(unpublished.values("pk")))


def nodes_reported_on(principal: Principal) -> QuerySet[Node]:
    """The visible nodes in the order of the health report: by their sites."""
    return nodes_visible_to(principal).order_by("site__site_tag", "name", "pk")


def nodes_health(node_ids: Sequence[UUID]) -> list[bool]:
    """Whether each of these nodes is healthy now; `LiveUnavailable` where Redis does not answer.

    Healthy: present in its current session, just heard, and hearing us. Without Redis nothing is known, and
    all nodes called unwell would send somebody to look at the wrong end.
    """
    presence = presence_read(node_ids)
    now = central_now()
    return [presence[node_id].is_healthy(now=now) for node_id in node_ids]


@dataclass(frozen=True, slots=True)
class Metric:
    """The latest value of one key of a site."""

    key: str
    value: float
    at: datetime


# What the readings of a site amount to now; who keeps the readings says it.
MetricSource = Callable[[UUID, datetime], list[Metric]]
_metric_sources: dict[str, MetricSource] = {}


def metric_source_register(*, name: str, source: MetricSource) -> None:
    """Make `source` say metrics of a site at a moment: only what is current then (`CURRENT_FOR`)."""
    _metric_sources[name] = source


def site_metrics(site_id: UUID, *, now: datetime) -> list[Metric]:
    """The site's readings which are still current, by key; none where nobody can tell them now."""
    metrics = [metric for source in _metric_sources.values() for metric in source(site_id, now)]
    return sorted(metrics, key=lambda metric: metric.key)
