"""The closed vocabularies of devices; the database holds to them too."""

from __future__ import annotations

from django.db import models


class Lifetime(models.TextChoices):
    """How often the edge writes a setpoint; never how long the setpoint is owed."""

    SINGULAR = "singular", "once"
    CYCLIC = "cyclic", "repeated"


class ValueKind(models.TextChoices):
    """What a device's `value` means."""

    ACTIVE_POWER_LIMIT = "active_power_limit_pct", "active power limit, % of nameplate"
    POWER_CAP = "power_cap_pct", "power cap in both directions, % of nameplate"
    SIGNED_SETPOINT = "signed_setpoint_pct", "signed setpoint, % of nameplate"
    CHARGING_POWER_LIMIT = "charging_power_limit_pct", "charging power limit, % of nameplate"
    OPERATING_MODE = "operating_mode", "operating mode"


class BoundOrigin(models.TextChoices):
    """Who may limit a device; bounds intersect, so nobody raises what another has lowered."""

    GRID_OPERATOR = "grid_operator", "grid operator"
    OWNER = "owner", "owner"
    TRADER = "trader", "trader"
    INSTALLER = "installer", "installer"


class LoopMode(models.TextChoices):
    """What a closed loop's setpoint means; the words are the core's."""

    LIMIT = "limit", "limit: export must not exceed it"
    TRACK = "track", "track: the meter is held at it"


class LoopStand(models.TextChoices):
    """How a closed loop stands; the words are the core's (`edge.core.closed_loop.Stand`)."""

    TRACKING = "tracking", "tracking: the setpoint is met or being approached"
    LIMITING = "limiting", "limiting: what it wants is beyond bounds or sun"
    STALE = "stale", "stale: no fresh reading, the last output is held"
    FALLBACK = "fallback", "fallback: the meter is silent"
    MANUAL = "manual", "manual: direct requests hold all members"


METER = "meter"
# The order in which people read them; categories outside this list follow in alphabetical order.
CATEGORY_ORDER = (
    "inverter",
    "battery",
    "wind_turbine",
    "ev_charger",
    "generator",
    "heat_pump",
    "load",
    "logger",
    METER,
)
# A category is one level of an MQTT topic, in lower case.
CATEGORY_PATTERN = r"\A[a-z0-9][a-z0-9_-]{0,63}\Z"


def category_rank(category: str) -> tuple[int, str]:
    """Sort key of a category."""
    known = category in CATEGORY_ORDER
    return (CATEGORY_ORDER.index(category) if known else len(CATEGORY_ORDER), category)
