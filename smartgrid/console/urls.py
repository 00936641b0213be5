"""All pages of the console beyond Django's own, in the order of their modules."""

from __future__ import annotations

from smartgrid.console import fleet, live, oidc, second_factor_pages
from smartgrid.console.pages import Page

PAGES: tuple[Page, ...] = (
    fleet.fleet,
    live.live_relay,
    second_factor_pages.second_factor,
    second_factor_pages.set_up,
    second_factor_pages.verify,
    second_factor_pages.recovery_codes,
    oidc.begin,
    oidc.callback,
)
