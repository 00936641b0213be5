"""What every device is to be held at, said a second time: written from section 2 of the design.

It sees what the node sees, the moment the node sees it: messages as they are taken from the session, starts
and ends of processes, steps of the clock. It knows nothing of how the node is built, and is as plain as it
can be: no turns, no timers, no queue. `allowed` tells which values a write may carry that is sent now.
"""

from __future__ import annotations

from collections.abc import Callable
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
# A wall clock that is further from where it was confirmed has been stepped (rule 17).
STEP_S = 5.0

Order = tuple[int, int]
Place = tuple[str, int, int]


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
    before: float | None
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
    _displaced: dict[str, list[tuple[float, float | None]]] = field(default_factory=dict)
    _changed_s: dict[str, float] = field(default_factory=dict)

    # --- the rules ----------------------------------------------------------------------------------

    def resolved(self, tag: str, at_s: float | None = None) -> float | None:
        """The value of this device by the rules; None: nobody may write it."""
        at_s = self.now() if at_s is None else at_s
        spec = self.specs.get(tag)
        if spec is None or spec.excluded:
            return None
        return _within(self._wish(spec, at_s), spec)

    def source(self, tag: str, at_s: float | None = None) -> str:
        spec = self.specs[tag]
        at_s = self.now() if at_s is None else at_s
        held = self.holds.get(tag)
        if held is not None and at_s <= held.ends_s:
            return "direct"
        if self._untrusted_since_s is None and self._slot(spec, at_s) is not None:
            return "schedule"
        return "default"

    def _wish(self, spec: Spec, at_s: float) -> float:
        held = self.holds.get(spec.tag)
        if held is not None and at_s <= held.ends_s:
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

    def allowed(self, tag: str, *, lag_s: float = 0.0) -> set[float | None]:
        """The values a write of this device may carry now; None among them: it may not be written.

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
        changed = self._changed_s.get(tag, now)
        held = self.holds.get(tag)
        if held is not None and held.ends_s <= now:
            changed = max(changed, held.ends_s)
        if self._untrusted_since_s is not None:
            return now - max(changed, min(now, self._untrusted_since_s + GRACE_S))
        utc = self.utc(now)
        into_slot = timedelta(minutes=utc.minute % 15, seconds=utc.second, microseconds=utc.microsecond)
        return min(now - changed, into_slot.total_seconds())

    def is_sure(self, tag: str) -> bool:
        """Whether the rules alone tell what this device is held at."""
        return self.now() > self._unsure_until_s.get(tag, 0.0)

    def allowed_at(self, place: Place, *, lag_s: float = 0.0) -> set[float | None] | None:
        """The values a write to this control point may carry now; None where nobody can tell."""
        allowed: set[float | None] = set()
        for tag, spec in self.specs.items():
            if spec.place == place:
                if not self.is_sure(tag):
                    return None
                allowed |= self.allowed(tag, lag_s=lag_s)
        leaving = self.leaving.get(place)
        if leaving is not None and not leaving.is_done:
            allowed |= leaving.defaults
            if self.now() <= leaving.since_s + lag_s + LAG_S:
                allowed.add(leaving.before)
        return allowed

    def _notice(self, before: dict[str, float | None], *, valid_s: float = 0.0) -> None:
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

    def _all(self) -> dict[str, float | None]:
        now = self.now()
        for tag, held in self.holds.items():
            # What has lapsed just now, and may be forgotten by what comes.
            if held.ends_s < now < held.ends_s + 5 and tag in self.specs:
                self._displaced.setdefault(tag, []).append((held.ends_s, self.resolved(tag, held.ends_s)))
                self._changed_s[tag] = max(held.ends_s, self._changed_s.get(tag, 0.0))
        return {tag: self.resolved(tag) for tag in self.specs}

    # --- processes and clocks -----------------------------------------------------------------------

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
                self._frozen = {tag: value for tag, value in before.items() if value and tag in scheduled}
                self._frozen |= {tag: 0.0 for tag in scheduled if before[tag] == 0}
                self._untrusted_since_s = self.now()
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
        for tag, held in list(self.holds.items()):
            changed = specs[tag]
            if not changed.excluded:
                ends_s = min(held.ends_s, held.received_s + changed.time_limit_s)
                self.holds[tag] = Held(held.value, held.received_s, ends_s, held.request)
        return True

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
        excluded=raw.get("excluded", False),
        bounds=bounds,
        time_limit_s=limit_s,
    )


def _within(wish: float, spec: Spec) -> float:
    """Slot 0: nobody raises what another has lowered, and the device does what it can."""
    lowest_maximum = min([spec.maximum, *(maximum for _, maximum in spec.bounds)])
    highest_minimum = max([spec.minimum, *(minimum for minimum, _ in spec.bounds)])
    return max(min(max(wish, highest_minimum), lowest_maximum), spec.minimum)
