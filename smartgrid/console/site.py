"""One site: its curve, its devices with who holds them, its loops, nodes, alarms and last commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from itertools import groupby
from uuid import UUID

import structlog
from django.http import Http404, HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils import timezone

from control_app.models import ControlLog
from control_app.selectors import RunningHold, holds_running, site_control_logs_visible_to
from control_app.sources import Source, device_sources
from devices_app.choices import ValueKind, category_rank
from devices_app.curve import Span
from devices_app.loop_view import LoopView, loops_view
from devices_app.models import Device
from devices_app.powers import PowerReading, device_commanded_kw, powers_read
from devices_app.selectors import loops_visible_to, site_devices_visible_to
from schedules_app.selectors import values_in_force
from sites_app.models import Alarm, Node, Site
from sites_app.presence import NodePresence, central_now, presence_read
from sites_app.selectors import site_get, site_nodes_visible_to, sites_visible_to
from sites_app.standing import SiteStanding, alarms_open_visible_to, sites_standing
from smartgrid.api.principal import Principal
from smartgrid.console.addresses import changelist_address, page_address
from smartgrid.console.curves import SiteCurve
from smartgrid.console.fleet import LOOKS
from smartgrid.console.pages import page, show
from smartgrid.console.people import principal_at
from smartgrid.console.roles import CURTAIL
from smartgrid.errors import NotFound
from smartgrid.live import LiveUnavailable

log = structlog.stdlib.get_logger(__name__)

LINES_SHOWN = 15
ALARMS_SHOWN = 20
# A reading older than this is told with its age.
AGE_TOLD = timedelta(seconds=60)

PARTS = {
    "head": "console/site_head.html",
    "devices": "console/site_devices.html",
    "around": "console/site_around.html",
    "log": "console/site_log.html",
}
SPANS = [(Span.HOUR.value, "Hour"), (Span.DAY.value, "Day"), (Span.WEEK.value, "Week")]
_SOURCE_LOOKS = {
    Source.DIRECT: "warn",
    Source.CLOSED_LOOP: "info",
    Source.SCHEDULE: "info",
    Source.DEFAULT: "good",
}
_STAND_LOOKS = {
    "tracking": "good",
    "limiting": "warn",
    "stale": "bad",
    "fallback": "bad",
    "manual": "warn",
}


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device as it stands. `source` None: central cannot know; `is_written` is false for a meter."""

    device: Device
    address: str
    reading: PowerReading | None
    is_old: bool
    commanded_kw: float | None
    is_written: bool
    source: Source | None
    hold: RunningHold | None

    @property
    def source_look(self) -> str:
        return _SOURCE_LOOKS[self.source] if self.source is not None else ""

    @property
    def is_percent(self) -> bool:
        return self.device.device_type.value_kind != ValueKind.OPERATING_MODE


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node: heard or silent, and whether it hears us; `is_healthy` None where Redis cannot tell."""

    node: Node
    address: str
    is_heard: bool
    is_healthy: bool | None
    last_heard: datetime | None


@dataclass(frozen=True, slots=True)
class LoopRow:
    """A closed loop as its node tells."""

    view: LoopView
    address: str

    @property
    def look(self) -> str:
        return "" if self.view.live is None else _STAND_LOOKS.get(self.view.live.stand, "")


@dataclass(frozen=True, slots=True)
class LogRow:
    """A line of the control log, and how many devices did what it says."""

    line: ControlLog
    updated: int
    others: int

    @property
    def look(self) -> str:
        return {"success": "good", "partial": "warn"}.get(self.line.status, "bad")


class SiteSeen:
    """What one person sees of a site at one moment; each question is asked once, and only when needed."""

    def __init__(self, request: HttpRequest, site: Site) -> None:
        self._request = request
        self._principal: Principal = principal_at(request)
        self.site = site
        self.now: datetime = timezone.now()

    @cached_property
    def standing(self) -> SiteStanding:
        """As on the page of the fleet, but for what Redis knows sooner: that a node fell silent."""
        sites = sites_visible_to(self._principal).filter(pk=self.site.pk)
        recorded = sites_standing(sites).get(self.site.pk, SiteStanding())
        return replace(recorded, silent=sum(not row.is_heard for row in self.node_rows))

    @property
    def look(self) -> str:
        return LOOKS[self.standing.state]

    @cached_property
    def devices(self) -> list[Device]:
        # Of profiles, which are long, nothing is shown.
        rows = site_devices_visible_to(self._principal, self.site.pk).defer("device_type__profile_body")
        return sorted(rows, key=lambda device: (category_rank(device.category), device.device_tag))

    @cached_property
    def nodes(self) -> list[Node]:
        return list(site_nodes_visible_to(self._principal, self.site.pk).defer("last_reported"))

    @cached_property
    def presence(self) -> dict[UUID, NodePresence] | None:
        """What Redis knows of the nodes; None where it does not answer."""
        try:
            return presence_read([node.pk for node in self.nodes])
        except LiveUnavailable as error:
            log.warning("site_presence_unavailable", site=str(self.site.pk), error=error.detail)
            return None

    @cached_property
    def node_rows(self) -> list[NodeRow]:
        now = central_now()
        rows = []
        for node in self.nodes:
            known = None if self.presence is None else self.presence[node.pk]
            rows.append(
                NodeRow(
                    node=node,
                    address=self._change("sites_app", "node", node.pk),
                    is_heard=node.online if known is None else known.is_reachable(now=now),
                    is_healthy=None if known is None else known.is_healthy(now=now),
                    last_heard=None
                    if known is None or not known.hb_at
                    else datetime.fromtimestamp(known.hb_at, tz=self.now.tzinfo),
                )
            )
        return rows

    @cached_property
    def loops(self) -> list[LoopView]:
        loops = loops_visible_to(self._principal).filter(site=self.site)
        return loops_view(list(loops))

    @property
    def loop_rows(self) -> list[LoopRow]:
        return [LoopRow(view, self._change("devices_app", "closedloop", view.loop.pk)) for view in self.loops]

    @cached_property
    def holds(self) -> dict[UUID, RunningHold]:
        found = holds_running(principal=self._principal, now=self.now, site_id=self.site.pk)
        return {hold.device_id: hold for hold in found}

    @cached_property
    def readings(self) -> dict[UUID, PowerReading] | None:
        """The newest powers; None where Redis does not answer."""
        try:
            return powers_read([(self.site.pk, device.pk) for device in self.devices], now=self.now)
        except LiveUnavailable as error:
            log.warning("site_power_unavailable", site=str(self.site.pk), error=error.detail)
            return None

    @cached_property
    def sources(self) -> dict[UUID, Source | None]:
        return device_sources(
            self.devices,
            held=self.holds.keys(),
            loops=self.loops,
            scheduled=values_in_force(site=self.site, at=self.now),
            silent_nodes={row.node.pk for row in self.node_rows if not row.is_heard},
        )

    @cached_property
    def groups(self) -> list[tuple[str, list[DeviceRow]]]:
        """The devices by category, in the order in which people read these."""
        return [
            (category, [self._device_row(device) for device in devices])
            for category, devices in groupby(self.devices, key=lambda device: device.category)
        ]

    def _device_row(self, device: Device) -> DeviceRow:
        reading = (self.readings or {}).get(device.pk)
        return DeviceRow(
            device=device,
            address=page_address("console_device", device.pk)
            or self._change("devices_app", "device", device.pk),
            reading=reading,
            is_old=reading is not None and reading.age(self.now) > AGE_TOLD,
            commanded_kw=device_commanded_kw(device),
            is_written=device.pk in self.sources,
            source=self.sources.get(device.pk),
            hold=self.holds.get(device.pk),
        )

    @cached_property
    def alarms(self) -> Sequence[Alarm]:
        return list(alarms_open_visible_to(self._principal).filter(site=self.site)[:ALARMS_SHOWN])

    @cached_property
    def lines(self) -> list[LogRow]:
        found = site_control_logs_visible_to(self._principal, self.site.pk).select_related("request")
        return [
            LogRow(line, len(line.result.get("updated", {})), len(line.result.get("not_updated", {})))
            for line in found[:LINES_SHOWN]
        ]

    @property
    def lists(self) -> dict[str, str]:
        """Where the whole lists of this site are, for those who may see them."""
        of_site = f"site__id__exact={self.site.pk}"
        return {
            "alarms": changelist_address(self._request, "sites_app.alarm", of_site),
            "log": changelist_address(self._request, "control_app.controllog", of_site),
        }

    @property
    def deeds(self) -> list[tuple[str, str]]:
        """What this person may do here: a word and an address each."""
        if not self._request.user.has_perm(CURTAIL):
            return []
        found = [("Curtail", page_address("console_curtail")), ("Release", page_address("console_release"))]
        return [(word, f"{address}?site={self.site.pk}") for word, address in found if address]

    @property
    def edit(self) -> str:
        return self._change("sites_app", "site", self.site.pk)

    def _change(self, app: str, model: str, key: UUID) -> str:
        if not self._request.user.has_perm(f"{app}.view_{model}"):
            return ""
        return page_address(f"{app}_{model}_change", key)


def _site_or_404(request: HttpRequest, site_id: UUID) -> Site:
    try:
        return site_get(principal=principal_at(request), site_id=site_id)
    except NotFound as error:
        raise Http404(str(error)) from error


@page("site/<uuid:site_id>/", name="console_site", permission="sites_app.view_site")
def site(request: HttpRequest, site_id: UUID) -> HttpResponseBase:
    shown = _site_or_404(request, site_id)
    seen = SiteSeen(request, shown)
    context = {
        "seen": seen,
        "site": shown,
        "now": seen.now,
        "spans": SPANS,
        "here": reverse("admin:console_site", args=[shown.pk]),
    }
    return show(request, "console/site.html", title=shown.name, context=context, parts=PARTS)


@page("site/<uuid:site_id>/curve", name="console_site_curve", permission="sites_app.view_site")
def site_curve(request: HttpRequest, site_id: UUID) -> HttpResponseBase:
    """The curve as JSON: what `console/curve.js` draws."""
    shown = _site_or_404(request, site_id)
    try:
        span = Span(request.GET.get("span", Span.HOUR.value))
    except ValueError:
        words = ", ".join(one.value for one in Span)
        return JsonResponse({"error": f"span must be one of {words}."}, status=400)
    curve = SiteCurve(principal=principal_at(request), site=shown, span=span, now=timezone.now())
    return JsonResponse(curve.body(), headers={"Cache-Control": "no-store"})
