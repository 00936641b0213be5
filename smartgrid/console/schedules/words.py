"""How the pages of schedules say a state, a value and a range of time."""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterable

from schedules_app.local_days import ChangedRange
from schedules_app.states import Stand
from smartgrid.api.fields import number

# The colour beside the word (`sgm-state-...`); none is a state without one.
COLOURS = {
    Stand.FAILED: "bad",
    Stand.UNCONFIRMED: "warn",
    Stand.STORED: "info",
    Stand.SENT: "info",
    Stand.CONFIRMED: "good",
    Stand.NONE: "",
}
MEANINGS = {
    Stand.NONE: "Nothing is planned: the devices run at their default.",
    Stand.STORED: "Planned, but the nodes are not told yet.",
    Stand.SENT: "The nodes are told, and have still time to answer.",
    Stand.CONFIRMED: "All nodes of the site have it.",
    Stand.UNCONFIRMED: "A node has not answered in time.",
    Stand.FAILED: "A node cannot use it.",
}
BY_DEFAULT = "by default"


def value_told(value: float | None) -> str:
    return BY_DEFAULT if value is None else f"{number(value):g}"


def ranges_told(ranges: Iterable[ChangedRange], *, time_zone: str) -> list[str]:
    """What changed, for the audit: `06:00-09:00: by default -> 40`, by the site's clock."""
    zone = zoneinfo.ZoneInfo(time_zone)
    return [
        f"{one.start.astimezone(zone):%H:%M}-{one.until.astimezone(zone):%H:%M}:"
        f" {value_told(one.was)} -> {value_told(one.becomes)}"
        for one in ranges
    ]
