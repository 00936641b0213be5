"""All pages of the console beyond Django's own, in the order of their modules."""

from __future__ import annotations

from smartgrid.console import fleet, live, loops
from smartgrid.console.pages import Page
from smartgrid.console.schedules import days, exchange, grid

PAGES: tuple[Page, ...] = (
    fleet.fleet,
    live.live_relay,
    loops.loop_stand,
    days.schedules,
    grid.schedule,
    grid.schedule_copy,
    exchange.schedule_export,
)
