"""All pages of the console beyond Django's own, in the order of their modules."""

from __future__ import annotations

from smartgrid.console import control, device, fleet, live, why
from smartgrid.console.pages import Page

PAGES: tuple[Page, ...] = (
    fleet.fleet,
    live.live_relay,
    control.curtail,
    control.release,
    control.request_page,
    control.requests_page,
    device.device_page,
    why.why,
)
