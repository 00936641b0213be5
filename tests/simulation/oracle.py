"""What every device is to be held at, said a second time: written from section 2 of the design.

It sees what the node sees, the moment the node sees it: messages as they are taken from the session, starts
and ends of processes, steps of the clock. It knows nothing of how the node is built, and is as plain as it
can be: no turns, no timers, no queue. `allowed` tells which values a write may carry that is sent now.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from edge.wire import codec
from edge.wire.messages import (
    CommandAnswer,
    Document,
    Heartbeat,
    Manifest,
    Presence,
    ReleaseCommand,
    SetpointCommand,
)
from edge.wire.session import Incoming
from edge.wire.topics import NodeTopics

# Of each name, so many documents wait for their manifest.
WAITING_EACH = 3
FRESH_S = 15.0
GRACE_S = 900.0
# A hold lapses strictly after its end, and the node looks a few milliseconds later.
LAG_S = 0.01
# Nobody tells a node that its wall clock was set: it sees so at its next turn.
TURN_S = 1.05
WITHIN_S = 1.0
# A reading of the meter that comes so near to the moment at which the last one grows stale may be in time or late.
NEARLY_S = 0.05
# Readings that bring a closed loop back (rule 16).
FRESH_TO_RETURN = 3
GREATEST_KW = 1e8
# A simulated register's.
STEP_PCT = 0.2
EPSILON = 1e-6
# A wall clock that is further from where it was confirmed has been stepped (rule 17).
STEP_S = 5.0

Order = tuple[int, int]
Place = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Span:
    """What a device may be held at: from `least` to `most`; one value where both are the same."""

    least: float
    most: float

    @property
    def is_one(self) -> bool:
        return self.least == self.most

    def has(self, value: float, *, tolerance: float = EPSILON) -> bool:
        return self.least - tolerance <= value <= self.most + tolerance

    def __str__(self) -> str:
        return f"{self.most:g}" if self.is_one else f"{self.least:g} to {self.most:g}"


@dataclass(frozen=True, slots=True)
class Spec:
    """A device as the applied configuration has it."""

    tag: str
    category: str
    place: Place
    minimum: float
    maximum: float
    default: float
    excluded: bool
    bounds: tuple[tuple[float, float], ...]
    time_limit_s: float
    nominal_kw: float


@dataclass(frozen=True, slots=True)
class LoopSpec:
    """A closed loop as the applied configuration has it, over the members that it can command."""

    key: tuple[str, str, str]
    meter: Place
    members: tuple[str, ...]
    nominal_kw: float
    setpoint_kw: float | None
    export_limit_kw: float | None
    fallback_pct: float | None
    time_step_s: float
    stale_after_s: float
    rate_pct_per_s: float

    @property
    def static_pct(self) -> float:
        """What a connection limit leaves each member where nobody looks at the meter (rule 16)."""
        return math.inf if self.export_limit_kw is None else 100 * self.export_limit_kw / self.nominal_kw

    @property
    def setpoint_pct(self) -> float | None:
        """What a setpoint is for each member where nobody looks at the meter, and nothing else was said."""
        if self.setpoint_kw is None:
            return None
        return min(max(100 * self.setpoint_kw / self.nominal_kw, -100.0), 100.0)

    @property
    def rise_s(self) -> float:
        """How long a member takes to its fallback from below: upwards it moves as a loop moves it."""
        return 2 * self.time_step_s + 100 / self.rate_pct_per_s


@dataclass(slots=True)
class Loop:
    """A closed loop as it runs: the readings of its meter that reached it.

    `fallen_s`: since when it has fallen back though there are readings again, fewer than it waits for.
    `doubtful`: so many readings more until it is certain that it has not fallen back.
    """

    spec: LoopSpec
    heard_s: float
    readings: int = 0
    fallen_s: float | None = None
    doubtful: int = 0

    def fell_back_s(self, at_s: float) -> float | None:
        """When it fell back to where it is at this moment; None while it runs."""
        stale_s = self.heard_s + self.spec.stale_after_s
        if self.fallen_s is not None:
            return self.fallen_s
        return stale_s if at_s >= stale_s else None

    def take(self, at_s: float) -> bool:
        """Take a reading; tell whether it changes how the loop stands."""
        before = (self.fell_back_s(at_s), self.doubtful, self.readings)
        late_s = at_s - self.heard_s - self.spec.stale_after_s
        if self.fallen_s is None and abs(late_s) < NEARLY_S:
            self.doubtful = FRESH_TO_RETURN
        elif late_s >= 0:
            self.fallen_s, self.doubtful, self.readings = self.fell_back_s(at_s), 0, 0
        self.heard_s = at_s
        self.readings = min(self.readings + 1, FRESH_TO_RETURN)
        self.doubtful = max(self.doubtful - 1, 0)
        if self.readings == FRESH_TO_RETURN:
            self.fallen_s = None
        return before != (self.fell_back_s(at_s), self.doubtful, self.readings)


@dataclass(frozen=True, slots=True)
class Held:
    value: float
    received_s: float
    ends_s: float
    request: str


@dataclass(slots=True)
class Leaving:
    """A control point that this node is to leave at its default (rule 20), for whichever tag it had."""

    tag: str
    since_s: float
    before: Span | None
    defaults: set[float]
    is_done: bool = False


@dataclass(slots=True)
class Oracle:
    """The rules, and what they need to remember. Times are the world's seconds."""

    topics: NodeTopics
    now: Callable[[], float]
    utc: Callable[[float], datetime]
    specs: dict[str, Spec] = field(default_factory=dict)
    holds: dict[str, Held] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    days: dict[str, dict[date, dict[str, float | None]]] = field(default_factory=dict)
    manifest: Manifest | None = None
    applied: dict[str, Document] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    # What each command is to be answered with: its own refusal, or what is refused of it by device.
    verdicts: dict[str, list[str | dict[str, str]]] = field(default_factory=dict)
    leaving: dict[Place, Leaving] = field(default_factory=dict)
    # Whether a device that comes back remembers its requests depends on how far its retirement had come.
    _unsure: dict[str, Order] = field(default_factory=dict)
    _unsure_until_s: dict[str, float] = field(default_factory=dict)
    _left_orders: dict[str, Order] = field(default_factory=dict)
    _waiting: dict[str, list[Document]] = field(default_factory=dict)
    _issued: dict[str, float] = field(default_factory=dict)
    shift_s: float = 0.0
    _confirmed_shift_s: float | None = 0.0
    _untrusted_since_s: float | None = None
    _frozen: dict[str, float] = field(default_factory=dict)
    _displaced: dict[str, list[tuple[float, Span | None]]] = field(default_factory=dict)
    _changed_s: dict[str, float] = field(default_factory=dict)
    # The closed loop of this node; no loop runs where the guard stands in.
    loop: Loop | None = None
    is_guarded: bool = False
    # What the limits of loops that are refused leave each device, in percent.
    held_pct: dict[str, float] = field(default_factory=dict)
    # When something came that is no mere reading.
    stirred_s: float = 0.0

    # --- the rules ----------------------------------------------------------------------------------

    def resolved(self, tag: str, at_s: float | None = None) -> Span | None:
        """What this device may be held at by the rules; None: nobody may write it."""
        at_s = self.now() if at_s is None else at_s
        spec = self.specs.get(tag)
        if spec is None or spec.excluded:
            return None
        if self.loop is not None and tag in self.loop.spec.members:
            return self._looped(spec, self.loop, at_s)
        return _one(_within(self._wish(spec, at_s), spec, self.held_pct.get(tag, math.inf)))

    def _looped(self, spec: Spec, loop: Loop, at_s: float) -> Span:
        """Of a loop's member (rules 1, 7, 16): what the loop finds out at its meter is the loop's to know."""
        held, limit_pct = self._held(spec.tag, at_s), loop.spec.static_pct
        fallen_s = -math.inf if self.is_guarded else loop.fell_back_s(at_s)
        if fallen_s is None or (loop.doubtful and not self.is_guarded):
            if held is None:
                return Span(spec.minimum, _within(spec.maximum, spec))
            most = _within(held.value, spec)
            return _one(most) if math.isinf(limit_pct) else Span(spec.minimum, most)
        if held is not None:
            return _one(_within(held.value, spec, limit_pct))
        fallback_pct = self._fallback_pct(loop, at_s)
        if loop.spec.fallback_pct is None and self._untrusted_since_s is not None:
            # What was in force when the clock was lost may have been the loop's, or its setpoint's slot.
            return Span(spec.minimum, _within(spec.maximum, spec, limit_pct))
        if fallback_pct is None:
            return _one(_within(self._wish(spec, at_s), spec, limit_pct))
        most = _within(fallback_pct, spec, limit_pct)
        if not self.is_guarded and at_s < self._rises_until_s(spec.tag, loop, at_s):
            return Span(spec.minimum, most)
        if loop.spec.fallback_pct is None and most == fallback_pct:
            # A share of a setpoint need not lie on a register's steps.
            return Span(max(spec.minimum, most - STEP_PCT), most)
        return _one(most)

    def _rises_until_s(self, tag: str, loop: Loop, at_s: float) -> float:
        moments = [loop.fell_back_s(at_s) or 0.0, self._changed_s.get(tag, 0.0)]
        if loop.spec.fallback_pct is None:
            moments.append(at_s - self._into_slot_s(at_s))
        held = self.holds.get(tag)
        if held is not None and held.ends_s <= at_s:
            moments.append(held.ends_s)
        return max(moments) + loop.spec.rise_s

    def _fallback_pct(self, loop: Loop, at_s: float) -> float | None:
        """What members get while the meter is silent; None where it is their schedule or default."""
        if loop.spec.fallback_pct is not None:
            return loop.spec.fallback_pct
        slots = [self._slot(self.specs[tag], at_s) for tag in loop.spec.members if tag in self.specs]
        return loop.spec.setpoint_pct if all(slot is None for slot in slots) else None

    def _held(self, tag: str, at_s: float) -> Held | None:
        held = self.holds.get(tag)
        return held if held is not None and at_s <= held.ends_s else None

    def source(self, tag: str, at_s: float | None = None) -> str:
        spec = self.specs[tag]
        at_s = self.now() if at_s is None else at_s
        if self._held(tag, at_s) is not None:
            return "direct"
        loop = self.loop
        if loop is not None and tag in loop.spec.members:
            has_fallen = self.is_guarded or loop.fell_back_s(at_s) is not None
            if not has_fallen or self._fallback_pct(loop, at_s) is not None:
                return "closed_loop"
        if self._untrusted_since_s is None and self._slot(spec, at_s) is not None:
            return "schedule"
        return "default"

    def _wish(self, spec: Spec, at_s: float) -> float:
        held = self._held(spec.tag, at_s)
        if held is not None:
            return held.value
        if self._untrusted_since_s is not None:
            if at_s <= self._untrusted_since_s + GRACE_S and spec.tag in self._frozen:
                return self._frozen[spec.tag]
            return spec.default
        slot = self._slot(spec, at_s)
        return spec.default if slot is None else slot

    def _slot(self, spec: Spec, at_s: float) -> float | None:
        utc = self.utc(at_s)
        day = self.days.get(spec.category, {}).get(utc.date(), {})
        return day.get(f"{utc.hour:02d}:{utc.minute // 15 * 15:02d}")

    def allowed(self, tag: str, *, lag_s: float = 0.0) -> set[Span | None]:
        """What a write of this device may carry now; None among it: it may not be written.

        `lag_s`: how long before its arrival a write may have been decided.
        """
        now = self.now()
        lag_s += LAG_S
        values = {self.resolved(tag, now), self.resolved(tag, now - lag_s)}
        values |= {value for until_s, value in self._displaced.get(tag, ()) if now <= until_s + lag_s}
        return values

    def unchanged_for_s(self, tag: str) -> float:
        """Seconds since what this device is to be held at last became something else."""
        now = self.now()
        moments = [self._changed_s.get(tag, now)]
        held = self.holds.get(tag)
        if held is not None:
            moments.append(held.ends_s)
        if self.loop is not None and tag in self.loop.spec.members and not self.is_guarded:
            moments.append(self.loop.fell_back_s(now) or 0.0)
            moments.append(self._rises_until_s(tag, self.loop, now))
        changed = max(moment for moment in moments if moment <= now)
        if self._untrusted_since_s is not None:
            return now - max(changed, min(now, self._untrusted_since_s + GRACE_S))
        return min(now - changed, self._into_slot_s(now))

    def is_sure(self, tag: str) -> bool:
        """Whether the rules alone tell what this device may be held at."""
        return self.now() > self._unsure_until_s.get(tag, 0.0)

    def quiet_for_s(self) -> float:
        """Seconds since anything came to the node but readings, ended, or began by itself."""
        now = self.now()
        moments = [
            self.stirred_s,
            *(held.ends_s for held in self.holds.values()),
            *self._unsure_until_s.values(),
        ]
        if self._untrusted_since_s is not None:
            moments.append(min(now, self._untrusted_since_s + GRACE_S))
        return min(now - max(moment for moment in moments if moment <= now), self._into_slot_s(now))

    def _into_slot_s(self, at_s: float) -> float:
        utc = self.utc(at_s)
        return timedelta(
            minutes=utc.minute % 15, seconds=utc.second, microseconds=utc.microsecond
        ).total_seconds()

    def is_loop_running(self) -> bool:
        """Whether a loop certainly has had enough readings to go by, and the last one is not too old."""
        loop, now = self.loop, self.now()
        return (
            loop is not None
            and not self.is_guarded
            and loop.readings > 0
            and not loop.doubtful
            and loop.fell_back_s(now) is None
        )

    def most_from(self, tag: str, value: float, *, is_alone: bool) -> float:
        """The most that may be written now where this value stands, by what a loop does not do.

        Before its first reading nobody goes beyond where he is, unless a silent meter would allow it. And what
        a loop wishes for rises by its rate, whoever commanded before; that shows in the writes of a device that
        is alone on its line, where each leaves before the next wish.
        """
        loop, now = self.loop, self.now()
        if loop is None or self.is_guarded or tag not in loop.spec.members:
            return math.inf
        if loop.readings == 0 and loop.fell_back_s(now) is None:
            return math.inf if math.isinf(loop.spec.static_pct) else max(value, loop.spec.static_pct)
        if not is_alone or now - self.stirred_s < TURN_S:
            return math.inf
        if self.source(tag, now) != "closed_loop" or self.source(tag, now - LAG_S) != "closed_loop":
            return math.inf
        return value + loop.spec.rate_pct_per_s * max(loop.spec.time_step_s, 1.0)

    def range_of(self, spec: Spec) -> tuple[float, float]:
        """Between what a loop may move a member: a connection's limit comes before whoever asks for more."""
        limited = self.loop is not None and self.loop.spec.export_limit_kw is not None
        least = spec.minimum if limited else _within(spec.minimum, spec)
        return least, _within(spec.maximum, spec)

    def aim_kw(self) -> float:
        """The export that the loop is to hold: the schedule's, else its own, else its members' default."""
        assert self.loop is not None
        now, spec = self.now(), self.loop.spec
        members = [self.specs[tag] for tag in spec.members]
        slots = [None if self._untrusted_since_s is not None else self._slot(one, now) for one in members]
        if spec.setpoint_kw is not None and all(slot is None for slot in slots):
            aim = spec.setpoint_kw
        else:
            aim = sum(
                one.nominal_kw / 100 * (one.default if slot is None else slot)
                for one, slot in zip(members, slots, strict=True)
            )
        return aim if spec.export_limit_kw is None else min(aim, spec.export_limit_kw)

    def allowed_at(self, place: Place, *, lag_s: float = 0.0) -> set[Span | None] | None:
        """What a write to this control point may carry now; None where nobody can tell."""
        allowed: set[Span | None] = set()
        for tag, spec in self.specs.items():
            if spec.place == place:
                if not self.is_sure(tag):
                    return None
                allowed |= self.allowed(tag, lag_s=lag_s)
        leaving = self.leaving.get(place)
        if leaving is not None and not leaving.is_done:
            allowed |= {_one(default) for default in leaving.defaults}
            if self.now() <= leaving.since_s + lag_s + LAG_S:
                allowed.add(leaving.before)
        return allowed

    def _notice(self, before: dict[str, Span | None], *, valid_s: float = 0.0) -> None:
        """Something happened: what was right until now may still be on its way for so long."""
        now = self.now()
        for tag in before.keys() | self.specs.keys():
            was, is_now = before.get(tag), self.resolved(tag)
            older = [entry for entry in self._displaced.get(tag, ()) if entry[0] > now - 5]
            if was != is_now or tag not in before or tag not in self.specs:
                self._changed_s[tag] = now + valid_s
                if tag in before:
                    older.append((now + valid_s, was))
            self._displaced[tag] = older

    def _all(self) -> dict[str, Span | None]:
        now = self.now()
        for tag, held in self.holds.items():
            # What has lapsed just now, and may be forgotten by what comes.
            if held.ends_s < now < held.ends_s + 5 and tag in self.specs:
                self._displaced.setdefault(tag, []).append((held.ends_s, self.resolved(tag, held.ends_s)))
                self._changed_s[tag] = max(held.ends_s, self._changed_s.get(tag, 0.0))
        return {tag: self.resolved(tag) for tag in self.specs}

    # --- processes and clocks -----------------------------------------------------------------------

    def process_began(self, *, is_guard: bool) -> None:
        """A node begins its loops without any reading; a guard has none."""
        before = self._all()
        self.is_guarded = is_guard
        if self.loop is not None:
            self.loop = Loop(self.loop.spec, self.now())
        self._notice(before)
        self.stirred_s = self.now()

    def measured(self, place: Place, kw: float) -> None:
        """The node has a reading of the power that this device measures."""
        loop, now = self.loop, self.now()
        if loop is None or self.is_guarded or place != loop.spec.meter or not abs(kw) < GREATEST_KW:
            return
        before = self._all() if loop.readings < FRESH_TO_RETURN or loop.fell_back_s(now) is not None else {}
        if loop.take(now):
            self._notice(before or self._all())
            self.stirred_s = now

    def process_ended(self) -> None:
        """What a process had in memory is gone: tokens, documents that waited for their manifest."""
        before = self._all()
        self._issued.clear()
        self._waiting.clear()
        self._frozen.clear()
        self._notice(before)

    def machine_rebooted(self, *, wall_shift_s: float, vouched: bool) -> None:
        """Nothing is confirmed since a boot before anybody confirms it."""
        before = self._all()
        self.holds.clear()
        self._confirmed_shift_s = self._untrusted_since_s = None
        self._notice(before)
        self.clocks_are(wall_shift_s=wall_shift_s, vouched=vouched)
        self._frozen.clear()

    def clocks_are(self, *, wall_shift_s: float, vouched: bool) -> None:
        """The wall clock is so far off now, and the kernel vouches for it or does not.

        What was confirmed once since boot is believed for thirty days, unless the clock is stepped.
        """
        before = self._all()
        sources = {tag: self.source(tag) for tag in before if before[tag] is not None}
        if vouched:
            self._confirmed_shift_s = wall_shift_s
        confirmed = self._confirmed_shift_s
        if confirmed is not None and abs(wall_shift_s - confirmed) <= STEP_S:
            self.shift_s, self._untrusted_since_s = wall_shift_s, None
            self._frozen.clear()
        else:
            self.shift_s = wall_shift_s if confirmed is None else confirmed
            if self._untrusted_since_s is None:
                scheduled = {tag for tag, source in sources.items() if source == "schedule"}
                self._frozen = {tag: span.most for tag, span in before.items() if span and tag in scheduled}
                self._untrusted_since_s = self.now()
        self.stirred_s = self.now()
        self._notice(before, valid_s=TURN_S)

    # --- messages -----------------------------------------------------------------------------------

    def sent(self, topic: str, payload: bytes) -> None:
        """The node gives out tokens."""
        leaf = self.topics.leaf(topic) or ""
        token: str | None = None
        if leaf == "hb":
            token = codec.decode(Heartbeat, payload).fresh
        elif leaf == "presence":
            token = codec.decode(Presence, payload).fresh
        elif leaf.startswith("rsp/"):
            token = codec.decode(CommandAnswer, payload).fresh
        if token is not None:
            # The same token again, in an answer that is repeated, becomes no younger.
            self._issued.setdefault(token, self.now())

    def read(self, message: Incoming) -> None:
        """The node takes this message from its session."""
        leaf = self.topics.leaf(message.topic) or ""
        before = self._all()
        self.stirred_s = self.now()
        if leaf in ("cmd/setpoint", "cmd/release"):
            self._command(message)
        elif leaf == "desired/manifest":
            self._take_manifest(codec.decode(Manifest, message.payload))
        elif leaf.startswith("desired/") and message.payload:
            self._take_document(leaf.removeprefix("desired/"), codec.decode(Document, message.payload))
        self._notice(before)

    def _command(self, message: Incoming) -> None:
        command = codec.decode_command(message.payload)
        assert isinstance(command, SetpointCommand | ReleaseCommand)
        verdicts = self.verdicts.setdefault(command.id, [])
        if message.retain:
            verdicts.append("retained")
        elif command.epoch < (self.manifest.epoch if self.manifest is not None else 0):
            verdicts.append("old_epoch")
        elif command.id in self.answered:
            pass
        elif self.now() - self._issued.get(command.fresh, -1e12) >= FRESH_S:
            verdicts.append("stale")
        else:
            self.answered.add(command.id)
            verdicts.extend(self._arbitrate(command))

    def _arbitrate(self, command: SetpointCommand | ReleaseCommand) -> list[dict[str, str]]:
        """Take the command; the answers it may get: what is refused of it, by device."""
        now, order = self.now(), (command.epoch, command.sequence)
        values = dict(command.values) if isinstance(command, SetpointCommand) else {}
        refused: dict[str, str] = {}
        unsure: set[str] = set()
        for tag in values or command.devices:  # type: ignore[union-attr]
            spec = self.specs.get(tag)
            if spec is None:
                refused[tag] = "unknown_device"
            elif spec.excluded:
                refused[tag] = "excluded"
            elif order <= self.orders.get(tag, (0, 0)):
                refused[tag] = "superseded"
            elif order <= self._unsure.get(tag, (0, 0)):
                hold_s = command.hold_s if isinstance(command, SetpointCommand) else spec.time_limit_s
                until_s = now + min(hold_s, spec.time_limit_s) + WITHIN_S
                self._unsure_until_s[tag] = max(until_s, self._unsure_until_s.get(tag, 0.0))
                unsure.add(tag)
            elif isinstance(command, ReleaseCommand):
                self.orders[tag] = order
                held = self.holds.pop(tag, None)
                if held is not None and now <= held.ends_s:
                    self._frozen.pop(tag, None)
            elif not spec.minimum <= values[tag] <= spec.maximum:
                refused[tag] = "range"
            else:
                self.orders[tag] = order
                ends_s = now + min(command.hold_s, spec.time_limit_s)
                self.holds[tag] = Held(values[tag], now, ends_s, command.request_id)
                self._frozen.pop(tag, None)
                self._unsure_until_s.pop(tag, None)
        # Who is unsure may have been refused, and for either reason.
        answers = [refused]
        for tag in unsure:
            answers += [{**answer, tag: code} for answer in answers for code in ("superseded", "range")]
        return answers

    # --- desired state ------------------------------------------------------------------------------

    def _take_manifest(self, manifest: Manifest) -> None:
        if self.manifest is not None and (manifest.epoch, manifest.version) < (
            self.manifest.epoch,
            self.manifest.version,
        ):
            return
        self.manifest = manifest
        for name in [name for name in self.applied if name not in manifest.docs and name != "config"]:
            del self.applied[name]
        waiting, self._waiting = self._waiting, {}
        for name, documents in waiting.items():
            for doc in documents:
                self._consider(name, doc)
        self._schedules()

    def _take_document(self, name: str, doc: Document) -> None:
        self._consider(name, doc)
        self._schedules()

    def _consider(self, name: str, doc: Document) -> None:
        """What the manifest lists is applied; of what is newer than the manifest, the newest wait."""
        listed = self.manifest.docs.get(name) if self.manifest is not None else None
        if listed is None or (listed.v, listed.sha256) != (doc.version, doc.sha256):
            manifest = (0, 0) if self.manifest is None else (self.manifest.epoch, self.manifest.version)
            if (doc.epoch, doc.version) > manifest:
                others = [each for each in self._waiting.get(name, []) if each.version != doc.version]
                newest = sorted([*others, doc], key=lambda each: (each.epoch, each.version))
                self._waiting[name] = newest[-WAITING_EACH:]
            return
        current = self.applied.get(name)
        if current is not None and current.sha256 == doc.sha256:
            return
        if name == "config" and not self._configure(doc.body):
            return
        self.applied[name] = doc

    def _schedules(self) -> None:
        self.days = {}
        for name, doc in self.applied.items():
            if name.startswith("schedule/"):
                day = date.fromisoformat(doc.body["date"])
                self.days.setdefault(doc.body["category"], {})[day] = doc.body["slots"]

    def _configure(self, body: dict[str, Any]) -> bool:
        site = body["site"]
        limit_s = float(site["curtailment_time_limit_s"])
        if not 1 <= limit_s <= 3600:
            return False
        specs: dict[str, Spec] = {}
        for raw in body["devices"]:
            spec = _spec(raw, limit_s)
            if spec.minimum <= spec.default <= spec.maximum:
                specs[spec.tag] = spec
            elif spec.tag in self.specs:
                # It cannot be used as it is configured now: it goes on as it was.
                specs[spec.tag] = self.specs[spec.tag]
        for tag, old in self.specs.items():
            self._part(old, specs.get(tag))
        for tag, new in specs.items():
            if tag not in self.specs:
                self._join(new)
        self.specs = specs
        self._take_loops(body.get("loops", ()), {raw["tag"] for raw in body["devices"]})
        for tag, held in list(self.holds.items()):
            changed = specs[tag]
            if not changed.excluded:
                ends_s = min(held.ends_s, held.received_s + changed.time_limit_s)
                self.holds[tag] = Held(held.value, held.received_s, ends_s, held.request)
        return True

    def _take_loops(self, loops: Iterable[dict[str, Any]], tags: set[str]) -> None:
        """One that is there already goes on with the readings it had, and from where it stands."""
        wanted = [(raw, self._loop_spec(raw, tags)) for raw in loops]
        self.held_pct = {tag: pct for raw, spec in wanted if spec is None for tag, pct in self._left_of(raw)}
        found = [spec for _, spec in wanted if spec is not None]
        if not found:
            self.loop = None
            return
        (spec,) = found
        now, loop = self.now(), self.loop
        for tag in spec.members:
            # What the clock's loss had left in force is no longer: the loop has taken over.
            self._frozen.pop(tag, None)
        if loop is None or loop.spec.key != spec.key:
            self.loop = Loop(spec, now)
            return
        if loop.fallen_s is None and (fallen_s := loop.fell_back_s(now)) is not None:
            loop.fallen_s, loop.readings, loop.doubtful = fallen_s, 0, 0
        loop.spec = spec

    def _left_of(self, raw: dict[str, Any]) -> Iterable[tuple[str, float]]:
        """What the connection limit of a loop that is refused leaves those of its members who are here."""
        specs = [self.specs[tag] for tag in raw["members"] if tag in self.specs]
        here = [spec for spec in specs if not spec.excluded]
        if raw.get("export_limit_kw") is not None:
            pct = 100 * raw["export_limit_kw"] / sum(spec.nominal_kw for spec in here) if here else 0.0
            yield from ((spec.tag, pct) for spec in here)

    def _loop_spec(self, raw: dict[str, Any], tags: set[str]) -> LoopSpec | None:
        """A loop that can be used; None for one that is refused."""
        meter, members = self.specs.get(raw["meter"]), raw["members"]
        specs = [self.specs[tag] for tag in members if tag in self.specs and not self.specs[tag].excluded]
        time_step_s, stale_after_s = raw.get("time_step_s", 1.0), raw.get("stale_after_s", 10.0)
        if meter is None or not specs or set(members) - tags or stale_after_s <= time_step_s:
            return None
        return LoopSpec(
            key=(raw["tag"], raw["id"], raw["meter"]),
            meter=meter.place,
            members=tuple(spec.tag for spec in specs),
            nominal_kw=sum(spec.nominal_kw for spec in specs),
            setpoint_kw=raw.get("setpoint_kw"),
            export_limit_kw=raw.get("export_limit_kw"),
            fallback_pct=raw.get("fallback_pct"),
            time_step_s=time_step_s,
            stale_after_s=stale_after_s,
            rate_pct_per_s=raw.get("max_rate_pct_per_s", 100.0),
        )

    def _part(self, old: Spec, new: Spec | None) -> None:
        """Rule 20: who leaves, moves or becomes excluded is brought back to the default first."""
        before = self.resolved(old.tag)
        if new is not None and new.place == old.place:
            leaving = self.leaving.get(new.place)
            if not new.excluded:
                self.leaving.pop(new.place, None)
            elif not old.excluded:
                self.leaving[new.place] = Leaving(new.tag, self.now(), before, {_within(new.default, new)})
                self._forget_requests(old.tag)
            elif leaving is not None and not leaving.is_done:
                leaving.defaults.add(_within(new.default, new))
            return
        if not old.excluded:
            self.leaving[old.place] = Leaving(old.tag, self.now(), before, {_within(old.default, old)})
        self._forget_requests(old.tag)
        if new is not None:
            # What it accepted is counted by its tag, wherever that leads; a device that was not gone yet goes
            # on with what it had accepted itself.
            if new.place in self.leaving and old.tag in self.orders:
                self._unsure[old.tag] = self.orders.pop(old.tag)
            self._join(new)
            return
        order = max(self.orders.pop(old.tag, (0, 0)), self._unsure.pop(old.tag, (0, 0)))
        self._left_orders[old.tag] = order

    def _join(self, new: Spec) -> None:
        """It comes, or comes back: then it goes on from where its retirement stands."""
        self._changed_s[new.tag] = self.now()
        leaving = self.leaving.get(new.place)
        if leaving is not None:
            if new.excluded:
                leaving.defaults.add(_within(new.default, new))
            else:
                del self.leaving[new.place]
        left = self._left_orders.pop(new.tag, None)
        if left is not None:
            self._unsure[new.tag] = left

    def _forget_requests(self, tag: str) -> None:
        self.holds.pop(tag, None)
        self._frozen.pop(tag, None)


def _spec(raw: dict[str, Any], limit_s: float) -> Spec:
    bounds = tuple(
        (
            -1e12 if bound.get("minimum") is None else bound["minimum"],
            1e12 if bound.get("maximum") is None else bound["maximum"],
        )
        for bound in raw.get("bounds", ())
    )
    return Spec(
        tag=raw["tag"],
        category=raw["category"],
        place=(raw["host"], raw["port"], raw["unit"]),
        minimum=raw.get("min_value", 0.0),
        maximum=raw.get("max_value", 100.0),
        default=raw.get("default_value", 100.0),
        excluded=raw.get("excluded", False) or raw.get("measured_only", False),
        bounds=bounds,
        time_limit_s=limit_s,
        nominal_kw=raw.get("nameplate_kw") or 0.0,
    )


def _one(value: float) -> Span:
    return Span(value, value)


def _within(wish: float, spec: Spec, limit_pct: float = math.inf) -> float:
    """Slot 0: nobody raises what another has lowered, and the device does what it can.

    `limit_pct`: what a connection's limit leaves of it.
    """
    lowest_maximum = min([spec.maximum, limit_pct, *(maximum for _, maximum in spec.bounds)])
    highest_minimum = max([spec.minimum, *(minimum for minimum, _ in spec.bounds)])
    return max(min(max(wish, highest_minimum), lowest_maximum), spec.minimum)
