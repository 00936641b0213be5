"""What the console's templates say in one way only: moments, powers, percentages, states."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime
from typing import Any

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString

register = template.Library()

DASH = "–"
MEGAWATT_KW = 1000
# Below it a tenth is told.
SMALL_KW = 100


@register.filter
def moment(at: datetime | None, zone: Any = "UTC") -> str | SafeString:
    """A moment in its site's zone, with UTC beside it; `zone`: a site, or the name of a zone."""
    if at is None:
        return DASH
    name = str(getattr(zone, "time_zone", zone) or "UTC")
    local = at.astimezone(zoneinfo.ZoneInfo(name))
    if name == "UTC":
        return format_html('<time datetime="{}">{} UTC</time>', _iso(at), f"{local:%Y-%m-%d %H:%M:%S}")
    utc = at.astimezone(UTC)
    beside = f"{utc:%H:%M:%S}" if utc.date() == local.date() else f"{utc:%Y-%m-%d %H:%M:%S}"
    return format_html(
        '<time datetime="{}">{} <span class="sgm-utc">{} UTC</span></time>',
        _iso(at),
        f"{local:%Y-%m-%d %H:%M:%S}",
        beside,
    )


@register.filter
def power(kw: float | None) -> str:
    """A power with its unit: 12.3 kW, 4.56 MW; a dash where it is not known."""
    if kw is None:
        return DASH
    if abs(kw) >= MEGAWATT_KW:
        return f"{kw / MEGAWATT_KW:.2f} MW"
    return f"{kw:.1f} kW" if abs(kw) < SMALL_KW else f"{kw:.0f} kW"


@register.filter
def percent(value: float | None) -> str:
    """A value in percent as it was said, without zeros at its end."""
    return DASH if value is None else f"{round(float(value), 2):g} %"


@register.filter
def epoch(at: datetime | None) -> str:
    """Seconds since 1970, for `data-until`."""
    return "" if at is None else f"{at.timestamp():.0f}"


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
