"""Why a closed loop asks what it asks, in words for an engineer."""

from __future__ import annotations

from datetime import datetime

from edge.core.closed_loop import Because, LoopOutput, Mode, Stand
from edge.runtime.loop_plan import PlannedLoop


def words(planned: PlannedLoop, output: LoopOutput, *, read_at: datetime | None, is_scheduled: bool) -> str:
    """One sentence on how a loop stands.

    `read_at`: when the meter was last read (UTC), None if never; `is_scheduled`: a slot says what is held.
    """
    loop, meter, settings = f"loop {planned.tag}", planned.meter, planned.settings
    match output.reason:
        case Because.STARTING:
            return f"{loop} waits for the first reading of {meter}, its members stay where they are"
        case Because.SETPOINT:
            verb = "tracks" if settings.mode is Mode.TRACK else "holds"
            return f"{loop} {verb} {_flow(output.setpoint_kw)}{_load(output)}"
        case Because.EXPORT_LIMIT if settings.export_limit_kw is not None:
            return f"{loop} holds the connection limit of {_flow(settings.export_limit_kw)}{_load(output)}"
        case Because.IMPORT_LIMIT if settings.import_limit_kw is not None:
            return f"{loop} holds the connection limit of {_flow(-settings.import_limit_kw)}{_load(output)}"
        case Because.MEMBERS_LACK:
            return f"{loop} asks for {_flow(output.setpoint_kw)}{_load(output)}, its members give less"
        case Because.AT_MAXIMUM:
            return f"{loop} asks all that its members have for {_flow(output.setpoint_kw)}{_load(output)}"
        case Because.AT_MINIMUM:
            return f"{loop} cannot go lower than its members' minimum for {_flow(output.setpoint_kw)}" + (
                _load(output)
            )
        case Because.RATE:
            return (
                f"{loop} is on its way to {_flow(output.setpoint_kw)}{_load(output)}, at"
                f" {settings.max_rate_pct_per_s:g} %/s"
            )
        case Because.HELD:
            return f"{loop} waits: direct requests hold all of its members"
        case Because.METER_LATE | Because.METER_STALE | Because.RETURNING:
            silent = _silent(loop, meter, output, read_at)
            if output.stand is Stand.FALLBACK:
                return f"{silent}, {fallback_words(planned, is_scheduled=is_scheduled)}"
            return f"{silent}, it goes by the last one"
        case Because.NO_MEMBER:
            return f"{loop} has no member in reach"
        case _:
            return f"{loop} has no setpoint to hold"


def sign_words(planned: PlannedLoop) -> str:
    """What is wrong with a meter that shows the opposite of what the members do."""
    return (
        f"{planned.meter} falls when the members of loop {planned.tag} give more, and rises when they give"
        " less: it counts the wrong way, and the loop holds nothing until it is turned"
    )


def _silent(loop: str, meter: str, output: LoopOutput, read_at: datetime | None) -> str:
    if output.reason is Because.RETURNING:
        text = f"{loop} is coming back: {meter} has told its power again"
    elif read_at is None:
        text = f"{loop} has never had a reading of {meter}"
    else:
        # Since when, and not how long: what is said once, as an alarm is, stays true.
        text = f"{loop} has had no reading of {meter} since {read_at:%Y-%m-%d %H:%M:%S}Z"
    return text


def fallback_words(planned: PlannedLoop, *, is_scheduled: bool) -> str:
    """What holds while nobody looks at the meter."""
    share_pct = planned.fallback_pct(is_scheduled=is_scheduled)
    if planned.settings.fallback_pct is not None:
        return f"its fallback of {share_pct:g} % holds"
    if share_pct is not None:
        return f"each member is given its share of the setpoint, {share_pct:.1f} %"
    return f"its members go {'by their schedules' if is_scheduled else 'to their defaults'}"


def _flow(kw: float | None) -> str:
    if kw is None:
        return "its setpoint"
    return f"{-kw:g} kW of import" if kw < 0 else f"{kw:g} kW of export"


def _load(output: LoopOutput) -> str:
    return "" if output.load_kw is None else f" at {output.load_kw:.1f} kW of load"
