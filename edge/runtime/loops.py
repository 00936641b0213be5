"""The closed loops of a node: what they see of their meter and members, when they step, and what they say.

A loop never writes. Its output goes into its members' process images, as a wish and as what the connection's
limit leaves; the cycle decides by them and asks the lines (ADR 0033).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

import structlog

from edge.core import closed_loop, identification
from edge.core.arbitration import UNTRUSTED_CLOCK_GRACE_S
from edge.core.closed_loop import (
    Because,
    Dynamics,
    LoopImage,
    LoopOutput,
    LoopSettings,
    LoopState,
    Member,
    MemberImage,
    Sample,
    Stand,
)
from edge.core.commands import Hold
from edge.core.identification import Watched
from edge.core.image import ProcessImage
from edge.core.instant import Instant
from edge.core.quantities import Bound
from edge.core.schedule import slot_end, value_at
from edge.core.watchdog import has_lapsed
from edge.runtime.alarms import Alarms
from edge.runtime.clock import Clock, wall
from edge.runtime.loop_plan import PlannedLoop
from edge.runtime.loop_words import fallback_words, sign_words, words
from edge.runtime.night import POWER
from edge.runtime.store import Learned, Store
from edge.wire.messages import LoopStatus

if TYPE_CHECKING:
    from edge.runtime.cycle import Unit

log = structlog.get_logger()

# Readings of the meter that tell a loop's setpoint and output: what draws its readings draws the loop.
SETPOINT, OUTPUT = "P_Setpoint_kW", "P_Output_kW"
# A loop that asks to be looked at now has just been: it is looked at again this much later at the earliest.
SOONEST_S = 0.002
# A member's power is taken for what it gives now for so long, or for so many times as long as there were
# between its last two readings, and never for longer than the meter's reading would be.
POWER_KEPT_S = 3.0
POWER_KEPT_TIMES = 2.5
# What is learned of a member is logged when a time or rate has changed by this part, or its gain by so much.
NOTABLE_PART, NOTABLE_GAIN = 0.25, 0.03
# A storage whose state of charge is beyond these takes no more, or gives no more; told at most so long ago.
CHARGE, FULL_PCT, EMPTY_PCT, CHARGE_KEPT_S = "SoC_pct", 95.0, 10.0, 900.0
# It stands still where its power, in percent of nominal power, is no more than this: it feeds itself.
STANDSTILL_PCT = 5.0


@dataclass(slots=True)
class Power:
    """The last two readings of one device's power, by when they were taken."""

    at_s: float
    kw: float
    before: tuple[float, float] | None = None

    def hear(self, at_s: float, kw: float) -> None:
        if at_s > self.at_s:
            self.before, self.at_s, self.kw = (self.at_s, self.kw), at_s, kw

    def at(self, moment_s: float, *, kept_s: float) -> float | None:
        """What the device gave at a moment; None where no reading is near enough to tell.

        Between two readings on the line between them; after the last one what that tells, for as long as
        readings usually are apart and at most `kept_s`, which is also the farthest they may be apart.
        """
        if moment_s < self.at_s:
            begin_s, begin_kw = self.before or (math.nan, math.nan)
            if begin_s <= moment_s and self.at_s - begin_s <= kept_s:
                return begin_kw + (moment_s - begin_s) / (self.at_s - begin_s) * (self.kw - begin_kw)
            return self.kw if self.at_s - moment_s <= min(POWER_KEPT_S, kept_s) else None
        usual_s = 0.0 if self.before is None else self.at_s - self.before[0]
        is_kept = moment_s - self.at_s <= min(max(POWER_KEPT_S, POWER_KEPT_TIMES * usual_s), kept_s)
        return self.kw if is_kept else None


@dataclass(slots=True)
class _Loop:
    """One loop as it runs.

    `looked` is how its members stood at its last step, `setpoint_kw` what it was to hold then. `read_at` is
    when the meter's newest reading was taken, None before the first.
    """

    planned: PlannedLoop
    state: LoopState
    tick_due_s: float
    look_at_s: float
    output: LoopOutput | None = None
    sample: Sample | None = None
    read_at: Instant | None = None
    setpoint_kw: float | None = None
    looked: Mapping[str, MemberImage] = field(default_factory=dict)
    slot_ends_s: float = math.inf
    slot_ends: datetime | None = None
    stood_since: str = ""
    silent_since_s: float | None = None
    because: str = ""
    unresponsive: frozenset[str] = frozenset()

    @property
    def due_s(self) -> float:
        return min(self.period_ends_s, self.look_at_s)

    @property
    def period_ends_s(self) -> float:
        """When all members may be asked for something else, also those whose registers may wear."""
        return min(self.tick_due_s, self.slot_ends_s)


class Loops:
    """All loops of a configuration, over the units of the cycle.

    `runs` is false in the guard: there is no loop then, and members take its fallback (rule 7). `stood` hears
    that a loop stands otherwise.
    """

    def __init__(
        self,
        units: Mapping[str, Unit],
        *,
        clock: Clock,
        alarms: Alarms,
        store: Store,
        runs: bool = True,
    ) -> None:
        self._units = units
        self._clock = clock
        self._alarms = alarms
        self._store = store
        self._runs = runs
        self._loops: dict[str, _Loop] = {}
        self._planned: Mapping[str, PlannedLoop] = {}
        self._by_member: dict[str, PlannedLoop] = {}
        self._by_meter: dict[str, PlannedLoop] = {}
        # Members and those behind them.
        self._by_device: dict[str, str] = {}
        self._powers: dict[str, Power] = {}
        self._measured: frozenset[str] = frozenset()
        # What schedules ask of a loop's members together, while a clock says which slot it is.
        self._slots: dict[str, float] = {}
        # What is known of members, what of that was last logged, and whose power a reading is part of.
        self._watched: dict[str, Watched] = {}
        self._told: dict[str, Dynamics] = {}
        self._watched_by: dict[str, tuple[PlannedLoop, Member]] = {}
        self.stood: Callable[[], None] = lambda: None

    def __bool__(self) -> bool:
        return bool(self._planned)

    def is_concerned(self, tag: str) -> bool:
        """Tell whether a reading of this device is one that a loop takes note of."""
        return tag in self._measured

    @property
    def next_at(self) -> float:
        """When a loop is to be looked at though nothing happens, on the boot-time clock."""
        return min((loop.due_s for loop in self._loops.values()), default=math.inf)

    # --- configuration ------------------------------------------------------------------------------

    def configure(self, planned: Mapping[str, PlannedLoop]) -> None:
        """Go over to these loops. One that is there already goes on without a step from where it stands.

        What a device has left of a loop it is no longer in is taken back; the caller turns the cycle.
        """
        before, self._planned = self._planned, planned
        self._by_member = {tag: loop for loop in planned.values() for tag in loop.devices}
        self._by_meter = {loop.meter: loop for loop in planned.values()}
        leaves = [leaf for loop in planned.values() for tags in loop.devices.values() for leaf in tags]
        self._by_device = {tag: loop.tag for tag, loop in self._by_member.items()}
        for loop in planned.values():
            for tags in loop.devices.values():
                self._by_device |= dict.fromkeys(tags, loop.tag)
        self._measured = frozenset([*leaves, *self._by_meter])
        self._powers = {tag: power for tag, power in self._powers.items() if tag in self._measured}
        self._slots = {tag: kw for tag, kw in self._slots.items() if tag in planned}
        self._tell_own_fallbacks(before)
        for loop in before.values():
            for tag in loop.devices.keys() - self._by_member.keys():
                unit = self._units.get(tag)
                if unit is not None:
                    self.let_go(unit)
        if self._runs:
            self._recall()
            self._run(before)

    @staticmethod
    def let_go(unit: Unit) -> None:
        """No loop has any say in what this device is asked for."""
        unit.image = _image(unit.image, value=None, because="", bound=None)

    def step_soon(self) -> None:
        """What loops go by has changed: all of them step at the next look."""
        for loop in self._loops.values():
            loop.tick_due_s = min(loop.tick_due_s, self._clock.boottime_s())

    def _run(self, before: Mapping[str, PlannedLoop]) -> None:
        now_s = self._clock.boottime_s()
        running: dict[str, _Loop] = {}
        for tag, new in self._planned.items():
            loop = self._loops.pop(tag, None)
            old = before.get(tag)
            if loop is None or old is None or (old.id, old.meter) != (new.id, new.meter):
                if loop is not None:
                    self._ends(loop)
                log.info("closed loop begins", loop=tag, meter=new.meter, members=sorted(new.devices))
                state = closed_loop.begin(self._settings(new), now_s=now_s)
                running[tag] = _Loop(new, state, tick_due_s=now_s, look_at_s=now_s)
                continue
            if new != old:
                loop.planned = new
                loop.state = closed_loop.reconfigure(loop.state, self._settings(new))
            # Also what is no part of a loop may be its setpoint: the default of its members.
            loop.tick_due_s = now_s
            running[tag] = loop
        for loop in self._loops.values():
            log.info("closed loop ends", loop=loop.planned.tag)
            self._ends(loop)
        self._loops = running

    def _ends(self, loop: _Loop) -> None:
        self._alarms.clear("loop_stale", device=loop.planned.meter)
        for tag in loop.unresponsive:
            self._alarms.clear("unresponsive", device=tag)
        self._alarms.clear("meter_sign", device=loop.planned.meter)
        self.stood()

    def _tell_own_fallbacks(self, before: Mapping[str, PlannedLoop]) -> None:
        """Rule 14: warn where a device's own fallback would let go of the connection limit."""
        now = {tag: why for loop in self._planned.values() for tag, why in loop.not_held.items()}
        for tag in {tag for loop in before.values() for tag in loop.not_held} - now.keys():
            self._alarms.clear("limit_not_held", device=tag)
        for tag, why in now.items():
            self._alarms.set("limit_not_held", why, device=tag)

    # --- what happens -------------------------------------------------------------------------------

    def look(self, units: Iterable[Unit], now: Instant) -> list[Unit]:
        """Step the loops that are due, and those whose members among `units` stand otherwise than before.

        To be called before these units are decided for: a hold that has just ended is the loop's again, and
        what it wants of the device is to be what the device falls back to. Returns the units whose process
        images are others now.
        """
        if not self._runs:
            return self._stand_in(units, now)
        touched = {self._by_device[unit.key] for unit in units if unit.key in self._by_device}
        changed: list[Unit] = []
        slot_ends = slot_end(now.utc) if touched else None
        for tag, loop in self._loops.items():
            # A member that comes under the loop again, or leaves it, does not wait for the next period. And
            # none is decided for in a slot that the loop has not seen begin: its fallback may be another.
            is_otherwise = tag in touched and (
                loop.slot_ends != slot_ends or self._stands_otherwise(loop, now)
            )
            if is_otherwise or loop.due_s <= now.boottime_s:
                changed += self._step(loop, now, is_otherwise=is_otherwise)
        return changed

    def heard(self, unit: Unit, now: Instant) -> list[Unit]:
        """Take a device's readings; the meter's make its loop step. Returns the units as `look` does."""
        reading = unit.readings.get(POWER)
        if not self._runs or reading is None or reading.value is None or not math.isfinite(reading.value):
            return []
        at_s = reading.at.boottime_s
        power = self._powers.get(unit.key)
        if power is None:
            self._powers[unit.key] = Power(at_s, reading.value)
        else:
            power.hear(at_s, reading.value)
        self._watch(unit.key, at_s)
        planned = self._by_meter.get(unit.key)
        if planned is None:
            return []
        loop = self._loops[planned.tag]
        if loop.read_at is not None and at_s <= loop.read_at.boottime_s:
            # A device that speaks unasked was asked again before it spoke again: no news.
            return []
        loop.read_at = reading.at
        # As old as it is: what waited on its line, or was said unasked, is not fresh by being looked at.
        loop.sample = Sample(at_s, reading.value, dict(self._members_kw(planned, at_s)))
        return self._step(loop, now)

    @property
    def meters(self) -> Iterable[str]:
        """The meters of the loops that run."""
        return self._by_meter if self._runs else ()

    def readings(self, meter: str) -> dict[str, float | None]:
        """What a loop has to tell among the readings of its meter, whether that says anything or not."""
        planned = self._by_meter.get(meter)
        output = self._loops[planned.tag].output if planned is not None and self._runs else None
        return {} if output is None else {SETPOINT: output.setpoint_kw, OUTPUT: output.output_kw}

    # --- what a loop sees ---------------------------------------------------------------------------

    def _members_kw(self, planned: PlannedLoop, at_s: float) -> Iterator[tuple[str, float]]:
        """The members' power at the moment of the meter's reading; one that was not read then is missing."""
        kept_s = planned.settings.stale_after_s
        for tag, leaves in planned.devices.items():
            found = [self._power_kw(leaf, at_s, kept_s) for leaf in leaves]
            told = [kw for kw in found if kw is not None]
            if told:
                # Of a proxy, those behind it that do not answer give what nobody knows: it counts as load.
                yield tag, math.fsum(told)

    def _power_kw(self, tag: str, at_s: float, kept_s: float) -> float | None:
        unit, power = self._units.get(tag), self._powers.get(tag)
        if unit is not None and unit.is_asleep:
            return 0.0
        return None if power is None else power.at(at_s, kept_s=kept_s)

    def _stands_otherwise(self, loop: _Loop, now: Instant) -> bool:
        """Tell whether a member came into reach or out of it, or is asked otherwise by a request, since."""
        return any(
            (before.is_held, before.wish, before.is_available)
            != (*_held(self._hold(tag, now)), self._is_available(loop.planned, tag))
            for tag, before in loop.looked.items()
        )

    def _member(self, loop: _Loop, tag: str, now: Instant) -> MemberImage:
        is_held, wish = _held(self._hold(tag, now))
        is_available = self._is_available(loop.planned, tag)
        return MemberImage(self._asked(tag), is_held=is_held, is_available=is_available, wish=wish)

    def _asked(self, tag: str) -> float | None:
        """What a device was last asked for; before that, what it was found to hold or last confirmed."""
        unit = self._units.get(tag)
        if unit is None:
            return None
        if unit.ticket is not None and unit.ticket != unit.unsent and unit.state.is_met:
            return unit.ticket_value
        if unit.state.in_force is not None:
            return unit.state.in_force.value
        return unit.image.readback if unit.image.readback is not None else unit.state.confirmed

    def _hold(self, tag: str, now: Instant) -> Hold | None:
        """The direct request that holds a member; its value is what was asked for before any bound."""
        unit = self._units.get(tag)
        hold = None if unit is None else unit.state.hold
        return None if hold is None or has_lapsed(hold, now=now) else hold

    def _is_available(self, planned: PlannedLoop, tag: str) -> bool:
        unit = self._units.get(tag)
        if unit is None or not unit.settings.is_controlled or unit.state.retirement is not None:
            return False
        return any(self._is_reached(leaf) for leaf in planned.devices[tag])

    def _is_reached(self, tag: str) -> bool:
        unit = self._units.get(tag)
        return unit is not None and unit.reachable is True and not unit.is_asleep

    def _setpoint_kw(self, planned: PlannedLoop, now: Instant) -> float:
        """The plain setpoint: the schedule's, else the loop's, else the members' default (rule 8)."""
        scheduled_kw = self._scheduled_kw(planned, now)
        if scheduled_kw is not None:
            return scheduled_kw
        if planned.setpoint_kw is not None:
            return planned.setpoint_kw
        return math.fsum(
            member.nominal_kw * unit.settings.default_value / 100 for member, unit in self._units_of(planned)
        )

    def _scheduled_kw(self, planned: PlannedLoop, now: Instant) -> float | None:
        """What schedules ask of the members together; None where none does, or nobody knows the time (17)."""
        since_s = self._clock.quality().untrusted_since_s
        if since_s is not None:
            if not now.boottime_s <= since_s + UNTRUSTED_CLOCK_GRACE_S:
                # Nobody knows which slot it is; what was in force stayed for a while.
                self._slots.pop(planned.tag, None)
            return self._slots.get(planned.tag)
        slot_kw = self._slot_kw(planned, now)
        if slot_kw is None:
            self._slots.pop(planned.tag, None)
        else:
            self._slots[planned.tag] = slot_kw
        return slot_kw

    def _slot_kw(self, planned: PlannedLoop, now: Instant) -> float | None:
        """What this quarter hour's slots of the members' categories ask of them; None where there is none.

        Where members are of several categories, those without a slot count with their defaults.
        """
        slots = [
            (member, unit, value_at(unit.state.schedule, now.utc)) for member, unit in self._units_of(planned)
        ]
        if all(value is None for _, _, value in slots):
            return None
        return math.fsum(
            member.nominal_kw * (unit.settings.default_value if value is None else value) / 100
            for member, unit, value in slots
        )

    def _units_of(self, planned: PlannedLoop) -> Iterator[tuple[Member, Unit]]:
        for member in planned.settings.members:
            unit = self._units.get(member.tag)
            if unit is not None:
                yield member, unit

    # --- a step -------------------------------------------------------------------------------------

    def _step(self, loop: _Loop, now: Instant, *, is_otherwise: bool = False) -> list[Unit]:
        """Step a loop and put what came of it into its members' process images.

        `is_otherwise`: not all that it goes by is as it was at its last step, and that waits for no period.
        """
        planned, looked, setpoint_kw = loop.planned, loop.looked, loop.setpoint_kw
        loop.looked = {tag: self._member(loop, tag, now) for tag in planned.devices}
        loop.setpoint_kw = self._setpoint_kw(planned, now)
        # A register that may wear is written once a period, and for what its own device or all are asked.
        is_period = loop.period_ends_s <= now.boottime_s or loop.setpoint_kw != setpoint_kw
        is_tick = is_period or is_otherwise
        image = LoopImage(
            sample=loop.sample, setpoint_kw=loop.setpoint_kw, members=loop.looked, is_tick=is_tick
        )
        before = loop.output
        is_scheduled = planned.tag in self._slots
        settings = replace(loop.state.settings, fallback_pct=planned.fallback_pct(is_scheduled=is_scheduled))
        if settings != loop.state.settings:
            loop.state = replace(loop.state, settings=settings)
        loop.state, output = closed_loop.step(loop.state, image, now.boottime_s)
        loop.output = output
        if is_tick:
            loop.tick_due_s = _following(loop.tick_due_s, planned.settings.time_step_s, now.boottime_s)
        loop.slot_ends = slot_end(now.utc)
        loop.slot_ends_s = now.boottime_s + (loop.slot_ends - now.utc).total_seconds() + SOONEST_S
        loop.look_at_s = max(output.look_at_s, now.boottime_s + SOONEST_S)
        read_at = None if loop.read_at is None else loop.read_at.utc
        loop.because = words(planned, output, read_at=read_at, is_scheduled=is_scheduled)
        if before is None or before.stand is not output.stand:
            self._stands(loop, now)
        elif loop.silent_since_s is not None and output.reason is not Because.RETURNING:
            # What holds meanwhile may be another: a slot of the schedule has ended, say.
            self._alarms.set("loop_stale", loop.because, device=planned.meter)
        self._judge(loop, now)
        if output.is_sign_wrong:
            self._alarms.set("meter_sign", sign_words(planned), device=planned.meter)
        else:
            self._alarms.clear("meter_sign", device=planned.meter)
        is_other = before is None or (before.stand, before.reason) != (output.stand, output.reason)
        return [
            unit
            for member, unit in self._units_of(planned)
            if self._put(
                loop,
                member,
                unit,
                may_write=is_period
                or member.answers_readings
                or output.stand is Stand.FALLBACK
                or _is_other(looked.get(member.tag), loop.looked[member.tag]),
                is_other=is_other,
            )
        ]

    def _put(self, loop: _Loop, member: Member, unit: Unit, *, may_write: bool, is_other: bool) -> bool:
        """Put wish and bound into a member's image; tell whether they are others now.

        Unless it `may_write`, the member's register is spared: only what a connection limit takes is taken.
        """
        output = loop.output
        assert output is not None
        value = output.values.get(member.tag)
        if value is None:
            if output.stand is Stand.FALLBACK:
                value = loop.state.settings.fallback_pct
            else:
                # The loop leaves it alone, and takes it over from where it is.
                value = loop.looked[member.tag].value
        low, high = output.lower_bounds.get(member.tag, -math.inf), output.bounds.get(member.tag, math.inf)
        image = unit.image
        if not may_write:
            # It falls at once, for safety, and rises with the wish.
            value, before = image.loop_value, image.connection_bound
            if before is not None:
                low, high = max(low, before.minimum), min(high, before.maximum)
        bound = loop.planned.bound(low, high)
        if not is_other and (image.loop_value, image.connection_bound) == (value, bound):
            return False
        unit.image = _image(image, value=value, because=loop.because, bound=bound)
        return unit.image is not image

    def _stands(self, loop: _Loop, now: Instant) -> None:
        """A loop stands otherwise: say so once."""
        output, planned = loop.output, loop.planned
        assert output is not None
        loop.stood_since = wall(now.utc)
        # A loop that has just begun waits for its first reading: nothing is wrong yet.
        if output.stand is Stand.FALLBACK or (output.stand is Stand.STALE and loop.sample is not None):
            if loop.silent_since_s is None:
                loop.silent_since_s = now.boottime_s
            self._alarms.set("loop_stale", loop.because, device=planned.meter)
        elif output.stand is not Stand.STALE:
            self._alarms.clear("loop_stale", device=planned.meter)
            if loop.silent_since_s is not None:
                away_s = round(now.boottime_s - loop.silent_since_s, 1)
                log.info("closed loop is back", loop=planned.tag, meter=planned.meter, away_s=away_s)
            loop.silent_since_s = None
        self.stood()

    # --- how members follow -------------------------------------------------------------------------

    def _recall(self) -> None:
        """Go on from what is known of the members; what is known of devices that are gone is forgotten."""
        members = {
            member.tag: (planned, member)
            for planned in self._planned.values()
            for member in planned.settings.members
        }
        # Of several devices behind a proxy all are looked at whenever the first of them is read.
        self._watched_by = {
            planned.devices[tag][0]: (planned, member) for tag, (planned, member) in members.items()
        }
        learned = self._store.learned()
        for tag in learned.keys() - self._units.keys():
            self._store.forget_learned(tag)
        watched: dict[str, Watched] = {}
        for tag, (_, member) in members.items():
            kept = learned.get(tag)
            if kept is None or kept.nominal_kw != member.nominal_kw:
                # Another machine may follow otherwise.
                watched[tag] = self._watched.get(tag, Watched()) if kept is None else Watched()
                continue
            known = self._watched.get(tag) or identification.remembered(kept.dynamics, kept.findings)
            if known is None:
                log.error("what was learned of a device cannot be, and is forgotten", device=tag)
                self._store.forget_learned(tag)
            watched[tag] = known or Watched()
        self._watched = watched
        self._told = {tag: self._told.get(tag, known.dynamics) for tag, known in watched.items()}

    def _settings(self, planned: PlannedLoop) -> LoopSettings:
        """The loop's settings with what is known of how its members follow."""
        return replace(
            planned.settings,
            members=tuple(
                replace(member, dynamics=identification.estimate(self._watched[member.tag]))
                for member in planned.settings.members
            ),
        )

    def asked(self, tag: str, value: float) -> None:
        """A device is asked for a value, by whatever source."""
        watched = self._watched.get(tag)
        if watched is not None:
            self._watched[tag] = identification.asked(watched, value, at_s=self._clock.boottime_s())

    def _watch(self, leaf: str, at_s: float) -> None:
        """Take note of what a member gave at a moment; one of whose power a part is missing gives no hint."""
        if leaf not in self._watched_by:
            return
        planned, member = self._watched_by[leaf]
        kept_s = planned.settings.stale_after_s
        found = [self._power_kw(each, at_s, kept_s) for each in planned.devices[member.tag]]
        told = [kw for kw in found if kw is not None]
        watched = self._watched[member.tag]
        if not watched.asked and (value := self._asked(member.tag)) is not None:
            watched = identification.asked(watched, value, at_s=at_s)
        if len(told) == len(found):
            watched = identification.observe(watched, 100 * math.fsum(told) / member.nominal_kw, at_s=at_s)
        self._watched[member.tag] = watched

    def learn(self) -> None:
        """Evaluate one experiment, if any is over: to be called when nothing waits, for it takes a moment."""
        tag = next((tag for tag, watched in self._watched.items() if watched.experiment is not None), None)
        if tag is None:
            return
        before = self._watched[tag]
        watched = self._watched[tag] = identification.learn(before)
        if watched.findings == before.findings:
            return
        loop = self._loops[self._by_member[tag].tag]
        member = next(member for member in loop.planned.settings.members if member.tag == tag)
        self._store.keep_learned(tag, Learned(member.nominal_kw, watched.dynamics, watched.findings))
        if watched.dynamics == before.dynamics:
            return
        loop.state = closed_loop.reconfigure(loop.state, self._settings(loop.planned))
        if _is_notable(self._told[tag], watched.dynamics):
            self._told[tag] = known = watched.dynamics
            log.info(
                "device follows otherwise than was known",
                device=tag,
                dead_time_s=round(known.dead_time_s, 2),
                lag_s=round(known.lag_s, 2),
                ramp_pct_per_s=round(known.ramp_pct_per_s, 1),
                gain=round(known.gain, 3),
            )

    def _judge(self, loop: _Loop, now: Instant) -> None:
        """Say of members that they do not follow, once each, and once that they do again."""
        found = closed_loop.unresponsive(loop.state)
        if not found and not loop.unresponsive:
            return
        found = frozenset(tag for tag in found if not self._is_used_up(loop, tag, now))
        for tag in loop.unresponsive - found:
            self._alarms.clear("unresponsive", device=tag)
        for tag in found - loop.unresponsive:
            self._alarms.set("unresponsive", self._disobedience(loop, tag), device=tag)
        loop.unresponsive = found

    def _disobedience(self, loop: _Loop, tag: str) -> str:
        value = loop.looked[tag].value
        power = None if loop.sample is None else loop.sample.members_kw.get(tag)
        asked = "its value" if value is None else f"{value:g} %"
        gives = "it does not come there" if power is None else f"it gives {power:.1f} kW"
        return f"asked for {asked}, {gives}, and no sun explains that"

    def _is_used_up(self, loop: _Loop, tag: str, now: Instant) -> bool:
        """Tell whether a storage cannot follow because it is full, or empty: then it stands still."""
        unit, asked = self._units.get(tag), loop.looked[tag].value
        charge = None if unit is None else unit.readings.get(CHARGE)
        power = None if loop.sample is None else loop.sample.members_kw.get(tag)
        if charge is None or charge.value is None or asked is None or power is None:
            return False
        if now.boottime_s - charge.at.boottime_s > CHARGE_KEPT_S:
            return False
        nominal_kw = next(each.nominal_kw for each in loop.planned.settings.members if each.tag == tag)
        if abs(power) > STANDSTILL_PCT / 100 * nominal_kw:
            return False
        return (asked < 0 and charge.value >= FULL_PCT) or (asked > 0 and charge.value <= EMPTY_PCT)

    # --- the guard ----------------------------------------------------------------------------------

    def _stand_in(self, units: Iterable[Unit], now: Instant) -> list[Unit]:
        """Where no loop runs: give members the fallback and the limit's static bound (rules 7, 16)."""
        changed = []
        fallbacks: dict[str, tuple[float | None, str]] = {}
        for unit in units:
            planned = self._by_member.get(unit.key)
            if planned is None:
                continue
            if planned.tag not in fallbacks:
                is_scheduled = self._scheduled_kw(planned, now) is not None
                because = (
                    f"loop {planned.tag} does not run, {fallback_words(planned, is_scheduled=is_scheduled)}"
                )
                fallbacks[planned.tag] = planned.fallback_pct(is_scheduled=is_scheduled), because
            value, because = fallbacks[planned.tag]
            image = unit.image
            bound = planned.static_bound(unit.key)
            unit.image = _image(image, value=value, because=because, bound=bound)
            if unit.image is not image:
                changed.append(unit)
        return changed

    # --- what a loop says ---------------------------------------------------------------------------

    def statuses(self) -> tuple[LoopStatus, ...]:
        """How each loop stands, as heartbeats tell it."""
        return tuple(_status(loop, loop.output) for loop in self._loops.values() if loop.output is not None)


def _status(loop: _Loop, output: LoopOutput) -> LoopStatus:
    return LoopStatus(
        id=loop.planned.id,
        tag=loop.planned.tag,
        stand=output.stand.value,
        since=loop.stood_since,
        setpoint_kw=_rounded(output.setpoint_kw),
        measured_kw=_rounded(output.measured_kw),
        output_kw=_rounded(output.output_kw),
        load_kw=_rounded(output.load_kw),
        bounded_by=output.bounded_by,
        reason=loop.because,
        members={tag: round(value, 3) for tag, value in output.values.items()},
    )


def _held(hold: Hold | None) -> tuple[bool, float | None]:
    """Whether a direct request holds a device, and the value it asks for."""
    return (False, None) if hold is None else (True, hold.value)


def _is_other(before: MemberImage | None, now: MemberImage) -> bool:
    """Tell whether a member came under a request, out of one or under another, into reach or out of it."""
    return before is None or (before.is_held, before.is_available, before.wish) != (
        now.is_held,
        now.is_available,
        now.wish,
    )


def _rounded(kw: float | None) -> float | None:
    return None if kw is None else round(kw, 3)


def _is_notable(before: Dynamics, now: Dynamics) -> bool:
    return abs(now.gain - before.gain) >= NOTABLE_GAIN or any(
        abs(math.log(getattr(now, name) / max(getattr(before, name), 1e-3))) >= NOTABLE_PART
        for name in ("dead_time_s", "lag_s", "ramp_pct_per_s")
    )


def _following(due_s: float, step_s: float, now_s: float) -> float:
    """The next moment of a loop's own grid; those that were missed are not made up for."""
    if due_s > now_s:
        # It stepped ahead of its time, for somebody else's sake.
        return due_s
    steps = math.floor((now_s - due_s) / step_s) + 1
    following = due_s + steps * step_s
    # Rounding names the moment that has just come.
    return following if following > now_s else following + step_s


def _image(image: ProcessImage, *, value: float | None, because: str, bound: Bound | None) -> ProcessImage:
    """The image with these; the same one where it has them already."""
    if (image.loop_value, image.loop_because, image.connection_bound) == (value, because, bound):
        return image
    return replace(image, loop_value=value, loop_because=because, connection_bound=bound)
