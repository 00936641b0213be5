"""Why this value, then? Answers from the ring of reasons, on the command line and over the link.

    python -m edge explain INVERTER_01 --at 2026-11-23T10:53:00Z --state /var/lib/sgm/node

reads the ring of a node whether it runs or not, and takes nothing from it. Exit codes: 0 answered, 2 the
question is not understood, 3 no such device, 4 a time the ring does not reach, 66 no ring to read.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sqlite3
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from edge.core.instant import Instant
from edge.runtime.clock import HostClock, wall
from edge.runtime.reasons import (
    DECISION,
    FILE,
    OUTCOME,
    SEEN_EVERY_S,
    ClockSpan,
    Entry,
    Position,
    Reasons,
    Ring,
    RingBusy,
    Run,
)
from edge.wire.messages import Code, CommandAnswer, ExplainCommand, Explanation, ReasonEntry, Stage
from edge.wire.moments import parse_at

EXIT_UNKNOWN_TAG = 3
EXIT_OUT_OF_REACH = 4
EXIT_NO_RING = 66  # EX_NOINPUT

# An answer is one message, and one screen.
BEFORE, AFTER, WRITTEN, STEPS, TAGS_NAMED = 4, 4, 6, 5, 50
ANSWER_WITHIN_S = 5.0
# Two machines' clocks: a question for "now" must not be one for the future.
AHEAD_S = 5.0


class NoAnswer(Exception):  # noqa: N818 - states what is the case
    """There is no answer to this question; the message says why to people."""


class UnknownTag(NoAnswer):
    """The ring holds nothing of such a device."""


class OutOfReach(NoAnswer):
    """The time asked for is not one that the ring knows of."""


# --- the answer -----------------------------------------------------------------------------------


def explanation(ring: Ring, tag: str, *, at: datetime | None, now: datetime) -> Explanation:
    """Say what was in force for a device at a moment of the wall clock; None: the newest the ring knows.

    `UnknownTag` and `OutOfReach` where there is no answer, `sqlite3.Error` where the ring cannot be read.
    """
    reach, spans, runs = ring.reach(), ring.clock_spans(), ring.runs()
    tags = ring.tags()
    if tag not in tags:
        named = ", ".join(tags[:TAGS_NAMED]) or "none yet"
        more = f" and {len(tags) - TAGS_NAMED} more" if len(tags) > TAGS_NAMED else ""
        raise UnknownTag(f"no device {tag!r} in the ring of reasons; known are: {named}{more}")
    if reach is None or not spans:
        raise OutOfReach("the ring of reasons is empty")
    reaches = f"the ring reaches back to {_short(reach.utc)}"
    notes = []
    if at is None:
        position: Position = (spans[-1].begins[0], math.inf)
    else:
        if (at - now).total_seconds() > AHEAD_S:
            raise OutOfReach(f"{_short(at.timestamp())} is still to come; it is {_short(now.timestamp())}")
        found, note = _position(spans, runs, at.timestamp())
        notes += note
        if found is None or found < reach.position:
            raise OutOfReach(f"{_short(at.timestamp())} is too long ago: {reaches}")
        position = found
    notes += _who_ran(runs, position, now.timestamp())
    decision = ring.decision_at(tag, position)
    if decision is None:
        raise OutOfReach(f"{tag} was not on this node yet at {_short((at or now).timestamp())}; {reaches}")
    following = ring.decision_after(tag, decision)
    end = (position[0], math.inf) if following is None else following.position
    written = ring.outcomes_between(tag, decision.position, end, limit=WRITTEN)
    shown = [decision, *written]
    around = ring.before(tag, decision.position, limit=BEFORE + len(shown))
    before = [entry for entry in around if entry not in shown][-BEFORE:]
    around = ring.after(tag, decision.position, limit=AFTER + len(shown))
    after = [entry for entry in around if entry not in shown][:AFTER]
    if decision.kind == DECISION and decision.value is not None and not written:
        notes.append(_nothing_written(ring.outcome_before(tag, decision.position), decision))
    notes += [_step(span) for span in spans if span.step_s][-STEPS:]
    if ring.in_memory_because:
        notes.append(f"the ring is kept in memory only, since this process began: {ring.in_memory_because}")
    return Explanation(
        device=tag,
        at=wall(at or now),
        reaches_back_to=_wall(reach.utc),
        decision=_told(decision, until=following),
        written=[_told(entry) for entry in written],
        before=[_told(entry) for entry in before],
        after=[_told(entry) for entry in after],
        notes=notes,
    )


def _position(spans: list[ClockSpan], runs: list[Run], utc: float) -> tuple[Position | None, list[str]]:
    """Where in the ring the wall clock showed this moment; None: never before it began. And what to know."""
    ends = [
        *(_end(span, following, runs) for span, following in itertools.pairwise(spans)),
        math.inf,
    ]
    hits: list[Position] = []
    # The stretch that ended last before this moment by its own clock, should none hold it.
    last_end, nearest, jumped = -math.inf, None, False
    for number, (span, end) in enumerate(zip(spans, ends, strict=True)):
        boot, boottime_s = span.begins[0], utc - span.offset_s
        if span.begins[1] <= boottime_s < end:
            hits.append((boot, boottime_s))
        elif last_end < end + span.offset_s <= utc:
            last_end, jumped = end + span.offset_s, spans[number + 1].begins[0] == boot
            nearest = (boot, math.nextafter(end, -math.inf) if jumped else boottime_s)
    if len(hits) > 1:
        return hits[-1], [
            f"the wall clock showed {_short(utc)} {len(hits)} times, since it was set back; this is the last"
        ]
    if hits:
        return hits[0], []
    if jumped:
        return nearest, [
            f"the wall clock never showed {_short(utc)}; this is what held when it jumped over it"
        ]
    return nearest, []


def _end(span: ClockSpan, following: ClockSpan, runs: list[Run]) -> float:
    """Until when a stretch of the wall clock lasted, on the boot-time clock of its boot."""
    boot = span.begins[0]
    if following.begins[0] == boot:
        return following.begins[1]
    return max((run.seen[1] for run in runs if run.seen[0] == boot), default=span.begins[1])


def _who_ran(runs: list[Run], position: Position, now_utc: float) -> list[str]:
    """Say where nobody is known to have controlled the device at that moment."""
    if position[1] == math.inf:
        last = runs[-1] if runs else None
        if last is None or (not last.has_ended and now_utc - last.seen_utc <= SEEN_EVERY_S + AHEAD_S):
            return []
        return [
            f"no process controls this device now: the {last.who} was last seen at {_short(last.seen_utc)}"
        ]
    before = [run for run in runs if run.began <= position]
    if not before or position <= before[-1].seen:
        return []
    last = before[-1]
    following = next((run for run in runs if run.began > position), None)
    still_runs = following is None and not last.has_ended and last.seen[0] == position[0]
    if still_runs and position[1] - last.seen[1] <= SEEN_EVERY_S + AHEAD_S:
        return []
    text = (
        f"nobody may have controlled the device then: the {last.who} was last seen at {_short(last.seen_utc)}"
    )
    if following is not None:
        text += f", a {following.who} began at {_short(following.began_utc)}"
    return [text]


def _nothing_written(last: Entry | None, decision: Entry) -> str:
    text = "nothing was written for this decision"
    if decision.write is None:
        text += ": the device held the value already"
    if last is not None:
        text += f"; before it, at {_short(last.utc)}: {_outcome(last)}"
    return text


def _step(span: ClockSpan) -> str:
    return f"the wall clock was set by {span.step_s:+.1f} s, to {_short(span.begins_utc)}"


# --- in words -------------------------------------------------------------------------------------


def _told(entry: Entry, *, until: Entry | None = None) -> ReasonEntry:
    text = _outcome(entry) if entry.kind == OUTCOME else entry.sentence
    if entry.because:
        text += f"; because {entry.because}"
    if until is not None:
        text += f"; it held until {_short(until.utc)}"
    return ReasonEntry(
        at=_wall(entry.utc),
        kind=entry.kind,
        who=entry.who,
        text=text,
        value=entry.value,
        source=entry.source or "",
        wish=entry.wish,
        bounded_by=entry.bounded_by,
        request_id=entry.request_id,
        until=None if entry.until_utc is None else _wall(entry.until_utc),
        because=entry.because,
        code=entry.code,
        readback=entry.readback,
    )


def _outcome(entry: Entry) -> str:
    # (Confirmed, not written: at first contact a device may be found to hold the value already.)
    if entry.code is not None:
        text = f"{entry.value:g} not confirmed: {entry.code}"
        return f"{text}: {entry.detail}" if entry.detail else text
    return f"{entry.value:g} confirmed" + (
        "" if entry.readback is None else f", read back {entry.readback:g}"
    )


def _wall(utc: float) -> str:
    return wall(datetime.fromtimestamp(utc, UTC))


def _short(utc: float) -> str:
    """To the millisecond, as people read it."""
    return f"{_wall(utc)[:-4]}Z"


# --- over the link --------------------------------------------------------------------------------


async def answer(command: ExplainCommand, reasons: Reasons | None, *, now: Instant) -> CommandAnswer:
    """The answer to `cmd/explain`, whatever happens: nothing of it may end the node."""

    def refused(code: Code, detail: object) -> CommandAnswer:
        return CommandAnswer(id=command.id, stage=Stage.REFUSED, code=code, detail=str(detail))

    if reasons is None:
        return refused(Code.UNKNOWN, "this process keeps no reasons")
    try:
        at = None if command.at is None else parse_at(command.at, now=now.utc)
        found = await reasons.read(
            lambda ring: explanation(ring, command.device, at=at, now=now.utc), within_s=ANSWER_WITHIN_S
        )
    except UnknownTag as error:
        return refused(Code.UNKNOWN_DEVICE, error)
    except (ValueError, OutOfReach) as error:
        return refused(Code.RANGE, error)
    except RingBusy as error:
        return refused(Code.BUSY, error)
    except (OSError, sqlite3.Error, RuntimeError) as error:
        return refused(Code.UNKNOWN, f"the ring of reasons cannot be read: {error}")
    return CommandAnswer(id=command.id, stage=Stage.DONE, explanation=found)


# --- on the command line --------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """`python -m edge explain`: say why a device was held where it was."""
    parser = argparse.ArgumentParser(prog="python -m edge explain", description=main.__doc__)
    parser.add_argument("tag", help="the device's tag")
    parser.add_argument(
        "--at", help="UTC time like 2026-11-23T10:53:00Z, or -10m for ten minutes ago; default: now"
    )
    parser.add_argument(
        "--state", type=Path, default=Path(), help="the node's state directory; default: this one"
    )
    parser.add_argument("--json", action="store_true", help="the answer as JSON")
    options = parser.parse_args(_joined(argv))
    now = HostClock(trust_host=True).now().utc
    try:
        at = None if options.at is None else parse_at(options.at, now=now)
    except ValueError as error:
        parser.error(f"--at {error}")
    path = options.state / FILE
    if not path.is_file():
        missing = "has no ring of reasons yet" if options.state.is_dir() else "is not there"
        return _failed(f"{options.state}: the state directory {missing}; name it with --state", EXIT_NO_RING)
    try:
        ring = Ring.read_only(path)
        try:
            found = explanation(ring, options.tag, at=at, now=now)
        finally:
            ring.close()
    except UnknownTag as error:
        return _failed(error, EXIT_UNKNOWN_TAG)
    except OutOfReach as error:
        return _failed(error, EXIT_OUT_OF_REACH)
    except (OSError, sqlite3.Error) as error:
        return _failed(f"{path} cannot be read: {error}", EXIT_NO_RING)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())  # noqa: T201 - the answer
    else:
        print("\n".join(_lines(found)))  # noqa: T201 - the answer
    return 0


def _joined(argv: Sequence[str]) -> list[str]:
    """`--at -10m` as `--at=-10m`: argparse would take the time for an option."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] == "--at":
            joined[-1] = f"--at={argument}"
        else:
            joined.append(argument)
    return joined


def _failed(why: object, code: int) -> int:
    print(why, file=sys.stderr)  # noqa: T201 - said to whoever asked
    return code


def _lines(found: Explanation) -> list[str]:
    lines = [f"{found.device} at {found.at}", "", *_block([found.decision, *found.written])]
    for title, entries in (("before", found.before), ("after", found.after)):
        if entries:
            lines += ["", f"{title}:", *_block(entries)]
    if found.notes:
        lines += ["", *(f"note: {note}" for note in found.notes)]
    return [*lines, "", f"The ring reaches back to {found.reaches_back_to}."]


def _block(entries: Sequence[ReasonEntry]) -> list[str]:
    return [f"  {entry.at}  {entry.who:5}  {entry.text}" for entry in entries]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
