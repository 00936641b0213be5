"""The curve of a site as the browser draws it, and in words for those who do not see it."""

from __future__ import annotations

import zoneinfo
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from control_app.commanded import commanded_curve
from devices_app.curve import PowerCurve, Span, power_curve
from devices_app.loop_view import loops_view
from devices_app.selectors import loops_visible_to, site_devices_visible_to
from sites_app.models import Site
from smartgrid.api.principal import Principal
from smartgrid.templatetags.console import power

DIGITS = 3
_SPANS = {Span.HOUR: "hour", Span.DAY: "day", Span.WEEK: "week"}
_CLOCKS = {Span.HOUR: "%H:%M", Span.DAY: "%H:%M", Span.WEEK: "%a %H:%M"}


class SiteCurve:
    """Measured, commanded and limited power of a site over a span that ends now."""

    def __init__(self, *, principal: Principal, site: Site, span: Span, now: datetime) -> None:
        self._site, self._span, self._now = site, span, now
        self._devices = list(site_devices_visible_to(principal, site.pk).defer("device_type__profile_body"))
        loops = loops_visible_to(principal).filter(site=site, enabled=True)
        self._loops = loops_view(list(loops))

    def body(self) -> dict[str, Any]:
        """Columns of one length, by the beginnings of the steps in seconds since 1970; null is a gap."""
        measured = power_curve(site=self._site, devices=self._devices, span=self._span, now=self._now)
        commanded = commanded_curve(
            site=self._site,
            devices=self._devices,
            looped={member.device_id for view in self._loops for member in view.members},
            starts=measured.starts,
            step=measured.step,
            now=self._now,
        )
        loops = [view.loop for view in self._loops]
        limits = [loop.export_limit_kw for loop in loops if loop.export_limit_kw is not None]
        limit = min(limits) if limits else None
        return {
            "span": self._span.value,
            "zone": self._site.time_zone,
            "step_s": measured.step.total_seconds(),
            "now": self._now.timestamp(),
            "at": [start.timestamp() for start in measured.starts],
            "devices": _rounded(measured.devices),
            "counted": measured.counted,
            "expected": measured.expected,
            "meter": None if measured.meter is None else _rounded(measured.meter),
            "commanded": _rounded(commanded),
            "setpoint": self._setpoint(),
            "limit": limit,
            "summary": self._summary(measured, commanded, limit),
        }

    def _setpoint(self) -> float | None:
        """What the site's only loop holds the connection at now: as its node tells, else as it is set."""
        if len(self._loops) != 1:
            return None
        view = self._loops[0]
        return view.loop.setpoint_kw if view.live is None else view.live.setpoint_kw

    def _summary(self, measured: PowerCurve, commanded: Sequence[float | None], limit: float | None) -> str:
        span = _SPANS[self._span]
        told = [
            self._told("Power of the devices", measured.starts, measured.devices),
            *(
                [self._told("Power at the connection", measured.starts, measured.meter)]
                if measured.meter is not None
                else []
            ),
        ]
        now = commanded[-1] if commanded else None
        told.append("What is commanded now is not known." if now is None else f"Commanded now: {power(now)}.")
        if limit is not None:
            told.append(f"Export limit of the connection: {power(limit)}.")
        return f"The last {span}, in the time of {self._site.time_zone}. " + " ".join(told)

    def _told(self, what: str, starts: Sequence[datetime], values: Sequence[float | None]) -> str:
        known = [(value, start) for start, value in zip(starts, values, strict=True) if value is not None]
        if not known:
            return f"{what}: nothing was measured."
        low, high = min(known), max(known)
        newest, at = known[-1]
        gaps = len(values) - len(known)
        text = (
            f"{what}: {power(newest)} at {self._clock(at)}, lowest {power(low[0])} at {self._clock(low[1])},"
            f" highest {power(high[0])} at {self._clock(high[1])}."
        )
        return f"{text} Nothing was measured in {gaps} of {len(values)} steps." if gaps else text

    def _clock(self, at: datetime) -> str:
        local = at.astimezone(zoneinfo.ZoneInfo(self._site.time_zone))
        return local.strftime(_CLOCKS[self._span])


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(value, DIGITS) for value in values]
