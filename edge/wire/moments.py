"""Moments as people and programs give them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_at(text: str, *, now: datetime) -> datetime:
    """A time as people give it: RFC 3339 (UTC without an offset), or how long ago: `-90s`, `-10m`, `-2h`.

    `ValueError` where it is neither.
    """
    ago = re.fullmatch(r"-(\d{1,6}(?:\.\d{1,3})?)([smhd])", text)
    try:
        if ago is not None:
            # (More than 2,000 years ago is no time, as far as datetime goes.)
            return now - timedelta(seconds=float(ago[1]) * _UNITS_S[ago[2]])
        at = datetime.fromisoformat(text)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{text!r}: expected a time like 2026-11-23T10:53:00Z, or -10m for ten minutes ago"
        ) from error
