"""All pages of the console beyond Django's own, in the order of their modules."""

from __future__ import annotations

from smartgrid.console import alarms, fleet, live, node
from smartgrid.console.pages import Page

PAGES: tuple[Page, ...] = (
    fleet.fleet,
    live.live_relay,
    alarms.alarms,
    alarms.acknowledge,
    node.node,
    node.enrol,
    node.revoke,
)
