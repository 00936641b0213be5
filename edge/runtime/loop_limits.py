"""What a closed loop that cannot be used leaves behind: its connection limit, held without a measurement.

A contract with the grid does not end because somebody has mistyped a gain or deleted the meter. What can be
read of such a loop bounds its members by the share that holds whatever the load is: limit / nominal power.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edge.core.closed_loop import LoopSettings, Member
from edge.core.loop.bounds import Bounds, static_bounds
from edge.core.loop.terms import ABSURD_KW
from edge.core.quantities import Bound
from edge.runtime.config import MAX_TAG, Planned
from edge.runtime.documents import DocumentRefused
from edge.runtime.loop_members import COMMANDED, leaves_of, member_of

# A connection limit's bound, as decisions name it.
CONNECTION_LIMIT = "connection limit"
# The fields of a loop's configuration that are limits of its connection, and which way power flows then.
LIMITS = {"export_limit_kw": "export", "import_limit_kw": "import"}
# As many devices are named in a text.
NAMED = 10


def limit_bound(low: float, high: float, *, export_kw: float | None, import_kw: float | None) -> Bound | None:
    """The connection's limits as a bound, in percent; what is no number is no limit."""
    low = low if math.isfinite(low) else -math.inf
    high = high if math.isfinite(high) else math.inf
    if math.isinf(low) and math.isinf(high):
        return None
    return Bound(f"{CONNECTION_LIMIT} {_limits_text(export_kw, import_kw)}", minimum=low, maximum=high)


@dataclass(frozen=True, slots=True)
class HeldLimit:
    """The limit of a loop that cannot be used: the bound of each device under it, and all of it in words."""

    bounds: Mapping[str, Bound] = field(default_factory=dict)
    text: str = ""


def held_limit(raw: Mapping[str, Any], devices: Mapping[str, Planned]) -> HeldLimit:
    """What bounds the members of a loop that cannot be used, as far as that can be read of it.

    A member that is excluded, that is not here or whose nominal power nobody knows cannot be bounded: it is
    named, and what it gives is left out of account, as in a loop that runs.
    """
    export_kw, import_kw = (_power(raw.get(name)) for name in LIMITS)
    unreadable = [
        f"its {way} limit {str(raw[name])[:MAX_TAG]!r} is no power and bounds nobody"
        for name, way in LIMITS.items()
        if raw.get(name) is not None and _power(raw[name]) is None
    ]
    if export_kw is None and import_kw is None:
        return HeldLimit(text="; ".join(unreadable))
    members: dict[str, Member] = {}
    reached: dict[str, list[str]] = {}
    beyond: list[str] = []
    for tag in _names(raw.get("members")):
        try:
            leaves = _bounded_leaves(tag, devices)
            members[tag] = member_of(devices[tag], leaves)
            reached[tag] = [leaf.config.tag for leaf in leaves]
        except (DocumentRefused, ValueError):
            beyond.append(tag)
    bounds: dict[str, Bound] = {}
    if members:
        try:
            settings = LoopSettings(
                "loop", tuple(members.values()), export_limit_kw=export_kw, import_limit_kw=import_kw
            )
        except ValueError as error:
            return HeldLimit(text=f"its {CONNECTION_LIMIT} bounds nobody: {error}")
        bounds = dict(_bounds(static_bounds(settings), reached, export_kw=export_kw, import_kw=import_kw))
    held = f"its {CONNECTION_LIMIT} of {_limits_text(export_kw, import_kw)}"
    said = [f"{held} bounds {_named(members)} meanwhile by nominal power" if members else ""]
    said += [f"{held} cannot bound {_named(beyond)}" if beyond or not members else "", *unreadable]
    return HeldLimit(bounds, "; ".join(text for text in said if text))


def under_limits(planned: Planned, limits: Iterable[HeldLimit]) -> Planned:
    """A device of the configuration under these limits alone, whatever it was under before."""
    tag = planned.config.tag
    bounds = (*planned.own_bounds, *(limit.bounds[tag] for limit in limits if tag in limit.bounds))
    if bounds == planned.settings.bounds:
        return planned
    return replace(planned, settings=replace(planned.settings, bounds=bounds))


def _bounds(
    static: Bounds,
    reached: Mapping[str, Iterable[str]],
    *,
    export_kw: float | None,
    import_kw: float | None,
) -> Iterable[tuple[str, Bound]]:
    for tag, leaves in reached.items():
        low, high = static.lower.get(tag, -math.inf), static.upper.get(tag, math.inf)
        bound = limit_bound(low, high, export_kw=export_kw, import_kw=import_kw)
        if bound is not None:
            yield from dict.fromkeys((tag, *leaves), bound).items()


def _bounded_leaves(tag: str, devices: Mapping[str, Planned]) -> list[Planned]:
    """The devices that a member's setpoint reaches; `DocumentRefused` where nothing may be written to it."""
    planned = devices.get(tag)
    if planned is None or not planned.is_settable or not planned.settings.is_controlled:
        raise DocumentRefused(f"{tag} cannot be set here")
    if planned.profile.value_kind not in COMMANDED:
        raise DocumentRefused(f"nobody knows what power towards the grid a value of {tag} is")
    return leaves_of(tag, devices)


def _power(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < ABSURD_KW else None


def _names(value: object) -> Iterable[str]:
    """Each name once, of what may be no list of names."""
    return (
        dict.fromkeys(tag for tag in value if isinstance(tag, str)) if isinstance(value, list | tuple) else ()
    )


def _named(tags: Iterable[str]) -> str:
    shown = [tag[:MAX_TAG] for tag in tags]
    more = [f"{len(shown) - NAMED} more"] if len(shown) > NAMED else []
    return ", ".join([*shown[:NAMED], *more]) or "anybody"


def _limits_text(export_kw: float | None, import_kw: float | None) -> str:
    limits = ((export_kw, "export"), (import_kw, "import"))
    return " and ".join(f"{kw:g} kW of {way}" for kw, way in limits if kw is not None)
