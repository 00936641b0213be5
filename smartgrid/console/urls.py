"""All pages of the console beyond Django's own, in the order of their modules."""

from __future__ import annotations

from smartgrid.console import (
    alarms,
    control,
    device,
    fleet,
    live,
    loops,
    node,
    oidc,
    second_factor_pages,
    site,
    why,
)
from smartgrid.console.pages import Page
from smartgrid.console.schedules import days, exchange, grid

PAGES: tuple[Page, ...] = (
    fleet.fleet,
    site.site,
    site.site_curve,
    live.live_relay,
    loops.loop_stand,
    days.schedules,
    grid.schedule,
    grid.schedule_copy,
    exchange.schedule_export,
    control.curtail,
    control.release,
    control.request_page,
    control.requests_page,
    device.device_page,
    why.why,
    alarms.alarms,
    alarms.acknowledge,
    node.node,
    node.enrol,
    node.revoke,
    second_factor_pages.second_factor,
    second_factor_pages.set_up,
    second_factor_pages.verify,
    second_factor_pages.recovery_codes,
    oidc.begin,
    oidc.callback,
)
