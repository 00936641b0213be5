"""How sites stand at a glance: what the worst of each is, and the alarms that are open."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from django.db.models import Count, Q, QuerySet

from sites_app.models import Alarm, AlarmSeverity, Node, Site
from sites_app.selectors import of_visible_sites
from smartgrid.api.principal import Principal


class SiteState(StrEnum):
    """The worst of a site, the worst first."""

    # A node of it was not heard lately: what is there is not known.
    SILENT = "node silent"
    ERROR = "error"
    WARNING = "warning"
    # Nothing was set up there yet: neither well nor ill.
    EMPTY = "no node"
    WELL = "all well"

    @property
    def rank(self) -> int:
        """Sort key: the worst has the lowest."""
        return list(SiteState).index(self)


@dataclass(frozen=True, slots=True)
class SiteStanding:
    """A site's nodes, those of them that are silent, and its open alarms by severity."""

    nodes: int = 0
    silent: int = 0
    errors: int = 0
    warnings: int = 0

    @property
    def state(self) -> SiteState:
        """The worst of what it counts."""
        if self.silent:
            return SiteState.SILENT
        if self.errors:
            return SiteState.ERROR
        if self.warnings:
            return SiteState.WARNING
        return SiteState.WELL if self.nodes else SiteState.EMPTY

    @property
    def alarms(self) -> int:
        return self.errors + self.warnings


def sites_standing(sites: QuerySet[Site]) -> dict[UUID, SiteStanding]:
    """How these sites stand, by their ids; in two queries, whatever their number.

    Silent is a node that the database has as offline: it needs no Redis, and is some seconds behind it.
    """
    keys = sites.order_by().values("pk")
    nodes = (
        Node.objects.filter(site__in=keys)
        .order_by()
        .values_list("site_id")
        .annotate(all=Count("pk"), silent=Count("pk", filter=Q(online=False)))
    )
    is_error = Q(severity=AlarmSeverity.ERROR)
    alarms = (
        Alarm.objects.filter(cleared_at=None, site__in=keys)
        .order_by()
        .values_list("site_id")
        .annotate(errors=Count("pk", filter=is_error), others=Count("pk", filter=~is_error))
    )
    counted: dict[UUID, tuple[int, int]] = {site_id: (errors, others) for site_id, errors, others in alarms}
    standing: dict[UUID, SiteStanding] = {}
    for site_id, count, silent in nodes:
        errors, others = counted.pop(site_id, (0, 0))
        standing[site_id] = SiteStanding(count, silent, errors, others)
    for site_id, (errors, others) in counted.items():
        standing[site_id] = SiteStanding(errors=errors, warnings=others)
    return standing


def alarms_open_visible_to(principal: Principal) -> QuerySet[Alarm]:
    """What somebody should look at in the visible sites: the worst first, and of these the newest."""
    rows = Alarm.objects.filter(cleared_at=None).select_related("site")
    # (The words of the severities are in their order.)
    return of_visible_sites(rows, principal).order_by("severity", "-raised_at", "-pk")
