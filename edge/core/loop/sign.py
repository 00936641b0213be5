"""Whether the meter of a loop counts the wrong way: judged by what it shows when the members' power moves."""

from __future__ import annotations

from dataclasses import dataclass, replace

# Members are still while their power together stays so near to where it was, in parts of nominal power, for
# so long: longer than they are read beside the meter, and than meters average.
STILL, STILL_S = 0.01, 3.0
# A move of so much of nominal power, from still to still within so many seconds, is an experiment.
NOTABLE, WITHIN_S = 0.1, 30.0
# The meter has answered with the opposite sign if what it shows is the move turned round, as far as this.
# The load alone would have to change by twice the move, at the same time.
NEAR = 1 / 3
# So many moves in turn up and down, all answered with the opposite sign, convince.
CONVINCED = 5
# Each move that is answered rightly takes back so much of a conviction.
TAKEN_BACK = 2


@dataclass(frozen=True, slots=True)
class Sign:
    """What is known of the meter's sign.

    The members gave `production_kw` and the meter showed `export_kw` at `at_s`, when they last were still;
    they have been about `still_kw` since `still_since_s`. `against` counts the moves that were answered with
    the opposite sign, in turn up and down; `was_up` is the way of the last one. `is_wrong`: it is taken to
    count the wrong way.
    """

    at_s: float
    production_kw: float
    export_kw: float
    still_kw: float
    still_since_s: float
    against: int = 0
    was_up: bool | None = None
    is_wrong: bool = False


def begin(*, export_kw: float, production_kw: float, now_s: float) -> Sign:
    return Sign(now_s, production_kw, export_kw, production_kw, now_s)


def observe(sign: Sign, *, export_kw: float, production_kw: float, nominal_kw: float, now_s: float) -> Sign:
    """Take a reading in, of the meter and of all members.

    A loop answers a load after it has changed: between the last reading before its members move and the one
    after they have, the load is what it was, or another by chance.
    """
    if abs(production_kw - sign.still_kw) > STILL * nominal_kw:
        return replace(sign, still_kw=production_kw, still_since_s=now_s)
    if now_s - sign.still_since_s < STILL_S:
        return sign
    moved_kw = production_kw - sign.production_kw
    if abs(moved_kw) >= NOTABLE * nominal_kw and now_s - sign.at_s <= WITHIN_S:
        sign = _judged(sign, (export_kw - sign.export_kw) / moved_kw, is_up=moved_kw > 0)
    return replace(sign, at_s=now_s, production_kw=production_kw, export_kw=export_kw)


def _judged(sign: Sign, answer: float, *, is_up: bool) -> Sign:
    """`answer` is what the meter showed for a move, in parts of it: 1 where its sign is right."""
    if abs(answer + 1) <= NEAR:
        # A load that only ever grows, or falls, may look like it: one way counts once.
        against = sign.against if sign.was_up is is_up else min(sign.against + 1, CONVINCED)
        return replace(sign, against=against, was_up=is_up, is_wrong=sign.is_wrong or against == CONVINCED)
    if answer <= 0:
        # It says nothing: the load has changed, or something else holds the meter.
        return sign
    against = max(sign.against - TAKEN_BACK, 0) if sign.is_wrong else 0
    return replace(sign, against=against, was_up=None, is_wrong=sign.is_wrong and against > 0)
