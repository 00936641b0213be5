"""What a closed loop commands a device by: its range, its steps, its nominal power, and whom it reaches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeGuard

from edge.core.arbitration import in_bounds
from edge.core.closed_loop import Member
from edge.core.commands import WriteClass
from edge.profiles.model import ValueKind
from edge.runtime.config import Planned
from edge.runtime.documents import DocumentRefused

# What a loop can command: the active power itself, or its ceiling.
COMMANDED = frozenset({ValueKind.ACTIVE_POWER_LIMIT_PCT, ValueKind.SIGNED_SETPOINT_PCT})
# A member's wish is rounded to steps that its read-back can tell apart, and to none coarser than this.
COARSEST_STEP_PCT = 5.0


def leaves_of(tag: str, devices: Mapping[str, Planned]) -> list[Planned]:
    """The devices that a member's setpoint reaches in the end; `DocumentRefused` where there is none."""
    planned = devices[tag]
    if not planned.is_proxy:
        return [planned]
    leaves = [
        leaf
        for child in devices.values()
        if child.settings.proxy == tag
        for leaf in leaves_of(child.config.tag, devices)
    ]
    if not leaves:
        raise DocumentRefused(f"member {tag}: no device takes its value")
    return leaves


def member_of(planned: Planned, leaves: list[Planned]) -> Member:
    """A device as a loop commands it; `DocumentRefused` or `ValueError` where its power is not known."""
    settings = planned.settings
    return Member(
        tag=planned.config.tag,
        nominal_kw=_nominal_kw(planned, leaves),
        minimum=in_bounds(settings, settings.minimum),
        maximum=in_bounds(settings, settings.maximum),
        is_storage=planned.profile.value_kind is ValueKind.SIGNED_SETPOINT_PCT,
        answers_readings=all(leaf.settings.write_class is WriteClass.VOLATILE for leaf in leaves),
        resolution_pct=min(COARSEST_STEP_PCT, 2 * max(leaf.settings.tolerance for leaf in leaves)),
    )


def _nominal_kw(member: Planned, leaves: Iterable[Planned]) -> float:
    """The nominal power of a member: of a proxy, that of all that its value reaches, or its own."""
    total_kw = 0.0
    for leaf in leaves:
        nominal_kw = leaf.config.nameplate_kw
        if not _is_power(nominal_kw):
            own_kw = member.config.nameplate_kw
            if _is_power(own_kw):
                return own_kw
            raise DocumentRefused(
                f"the nominal power of {leaf.config.tag} is not known: set its nameplate_kw"
            )
        total_kw += nominal_kw
    return total_kw


def _is_power(kw: float | None) -> TypeGuard[float]:
    return kw is not None and 0 < kw < math.inf
