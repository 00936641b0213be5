"""The landing page: the whole fleet at a glance, the worst first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Generic, TypeVar
from uuid import UUID

import structlog
from django.core.paginator import Page as Leaf, Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone

from control_app.selectors import RunningHold, holds_running
from devices_app.powers import SitePower, controlled_powers, powers_read, powers_sum, site_powers
from devices_app.selectors import devices_visible_to
from schedules_app.selectors import UnconfirmedSlot, slots_unconfirmed
from sites_app.models import Alarm, Node, Site
from sites_app.selectors import nodes_visible_to, sites_visible_to
from sites_app.standing import SiteStanding, SiteState, alarms_open_visible_to, sites_standing
from smartgrid.api.principal import Principal
from smartgrid.console.addresses import changelist_address, page_address
from smartgrid.console.pages import page, show
from smartgrid.console.people import principal_at
from smartgrid.live import LiveUnavailable

log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

SITES_A_PAGE = 200
# As many of each kind of trouble are listed here; their lists have the rest.
SHOWN = 10
# The power of more sites is not summed at each look: the table has that of its page.
SITES_SUMMED = 1000

LOOKS = {
    SiteState.SILENT: "bad",
    SiteState.ERROR: "bad",
    SiteState.WARNING: "warn",
    SiteState.EMPTY: "info",
    SiteState.WELL: "good",
}
PARTS = {
    "overview": "console/fleet_overview.html",
    "attention": "console/fleet_attention.html",
    "sites": "console/fleet_sites.html",
}


@dataclass(frozen=True, slots=True)
class SiteRow:
    """A line of the table of sites."""

    # Two hundred of these are on a page: what a line shows is at hand, and not looked for again.
    tag: str
    name: str
    address: str
    state: str
    look: str
    power: SitePower
    nodes: int
    heard: int
    alarms: int
    next_hold: RunningHold | None
    holds: int


@dataclass(frozen=True, slots=True)
class StateCount:
    """How many sites are in a state."""

    state: SiteState
    count: int
    look: str


@dataclass(frozen=True, slots=True)
class Placed(Generic[T]):
    """Something of a site, and the site's page."""

    it: T
    site: Site
    address: str


class Fleet:
    """What one person sees of the fleet at one moment; each question is asked once, and only when needed."""

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self._principal: Principal = principal_at(request)
        self.now: datetime = timezone.now()
        self.text: str = request.GET.get("q", "").strip()[:200]
        # Asked for by one part, told by another: whether Redis has answered.
        self._measured: bool | None = None

    @cached_property
    def sites(self) -> dict[UUID, Site]:
        """All visible sites, narrowed by the text, in the order of their tags."""
        return {site.pk: site for site in self._narrowed()}

    def _narrowed(self) -> QuerySet[Site]:
        sites = sites_visible_to(self._principal)
        if self.text:
            sites = sites.filter(Q(site_tag__icontains=self.text) | Q(name__icontains=self.text))
        return sites

    @cached_property
    def standing(self) -> dict[UUID, SiteStanding]:
        found = sites_standing(self._narrowed())
        return {site_id: found.get(site_id, SiteStanding()) for site_id in self.sites}

    @cached_property
    def states(self) -> list[StateCount]:
        counts = Counter(standing.state for standing in self.standing.values())
        return [StateCount(state, counts[state], LOOKS[state]) for state in SiteState]

    @cached_property
    def leaf(self) -> Leaf[UUID]:
        """The page of the table that is asked for: sites, the worst first."""
        ordered = sorted(self.sites, key=lambda site_id: self.standing[site_id].state.rank)
        return Paginator(ordered, SITES_A_PAGE).get_page(self._request.GET.get("page"))

    @cached_property
    def is_summed(self) -> bool:
        return len(self.sites) <= SITES_SUMMED

    @cached_property
    def powers(self) -> dict[UUID, SitePower]:
        """The power of each site; where there are too many, of those on this page alone."""
        devices = devices_visible_to(self._principal)
        if self.text or not self.is_summed:
            devices = devices.filter(site__in=list(self.sites) if self.is_summed else list(self.leaf))
        controlled = controlled_powers(devices)
        try:
            measured = powers_read(
                [(device.site_id, device.device_id) for device in controlled], now=self.now
            )
        except LiveUnavailable as error:
            log.warning("fleet_power_unavailable", error=error.detail)
            self._measured = False
            return site_powers(controlled, {})
        self._measured = True
        return site_powers(controlled, measured)

    @property
    def can_measure(self) -> bool:
        """Whether Redis, which has the newest readings, answered."""
        _ = self.powers
        return self._measured is True

    @cached_property
    def power(self) -> SitePower:
        return powers_sum(self.powers.values())

    @cached_property
    def holds(self) -> list[RunningHold]:
        found = holds_running(principal=self._principal, now=self.now)
        return [hold for hold in found if hold.site_id in self.sites]

    @property
    def holds_first(self) -> list[Placed[RunningHold]]:
        return self._placed_all([(hold, hold.site_id) for hold in self.holds[:SHOWN]])

    @cached_property
    def silent(self) -> list[Node]:
        nodes = nodes_visible_to(self._principal).filter(online=False)
        return [
            node
            for node in nodes.order_by("-presence_changed_at", "name").defer("last_reported")
            if node.site_id in self.sites
        ]

    @property
    def silent_first(self) -> list[Placed[Node]]:
        return self._placed_all([(node, node.site_id) for node in self.silent[:SHOWN]])

    @cached_property
    def unconfirmed(self) -> list[UnconfirmedSlot]:
        return [slot for slot in slots_unconfirmed(now=self.now) if slot.site_id in self.sites]

    @property
    def unconfirmed_first(self) -> list[Placed[UnconfirmedSlot]]:
        return self._placed_all([(slot, slot.site_id) for slot in self.unconfirmed[:SHOWN]])

    @cached_property
    def alarm_count(self) -> int:
        return sum(standing.alarms for standing in self.standing.values())

    @cached_property
    def alarms_first(self) -> list[Placed[Alarm]]:
        alarms = alarms_open_visible_to(self._principal)
        if self.text:
            alarms = alarms.filter(site__in=list(self.sites))
        return self._placed_all([(alarm, alarm.site_id) for alarm in alarms[:SHOWN]])

    @cached_property
    def rows(self) -> list[SiteRow]:
        by_site: dict[UUID, list[RunningHold]] = {}
        for hold in self.holds:
            by_site.setdefault(hold.site_id, []).append(hold)
        rows = []
        for site_id in self.leaf:
            held = by_site.get(site_id, [])
            shown, standing = self.sites[site_id], self.standing[site_id]
            rows.append(
                SiteRow(
                    tag=shown.site_tag,
                    name=shown.name,
                    address=page_address("console_site", site_id),
                    state=standing.state.value,
                    look=LOOKS[standing.state],
                    nodes=standing.nodes,
                    heard=standing.nodes - standing.silent,
                    alarms=standing.alarms,
                    power=self.powers.get(site_id, SitePower()),
                    next_hold=held[0] if held else None,
                    holds=len(held),
                )
            )
        return rows

    @property
    def lists(self) -> dict[str, str]:
        """Where the whole lists are, for those who may see them."""
        return {
            "alarms": changelist_address(self._request, "sites_app.alarm"),
            "nodes": changelist_address(self._request, "sites_app.node", "online__exact=0"),
            "documents": changelist_address(self._request, "sites_app.unsettleddocument"),
        }

    def _placed_all(self, several: Sequence[tuple[T, UUID]]) -> list[Placed[T]]:
        return [
            Placed(it, self.sites[site_id], page_address("console_site", site_id))
            for it, site_id in several
            if site_id in self.sites
        ]


@page("", name="index")
def fleet(request: HttpRequest) -> HttpResponseBase:
    seen = Fleet(request)
    query = request.GET.copy()
    query.pop("part", None)
    others = query.copy()
    others.pop("page", None)
    context = {
        "fleet": seen,
        "now": seen.now,
        "query": query.urlencode(),
        "others": others.urlencode(),
        "q": seen.text,
    }
    return show(request, "console/fleet.html", title="Fleet", context=context, parts=PARTS)
