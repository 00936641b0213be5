"""Read, decide, write: the cycle of a node, and what each command and outcome does to it.

Every value that reaches a device is one that `edge.core.decide` returned. Timers only wake the cycle; each
turn re-evaluates every device, so that a lost timer costs a second and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

import msgspec
import structlog

from edge.core import arbitration
from edge.core.arbitration import Decision, DeviceSettings, DeviceState, Retirement
from edge.core.commands import DirectRequest, Hold, Order, Refusal
from edge.core.cyclic import KeepAliveDue
from edge.core.events import FallbackEntered, FallbackReached, LapseCause, Retired, RetiredBecause
from edge.core.image import EMPTY, ProcessImage
from edge.core.instant import Instant
from edge.core.schedule import Schedule, value_at
from edge.drivers.base import PollResult
from edge.runtime import preview as previews
from edge.runtime.alarms import Alarms
from edge.runtime.bus import Bus, KeepAliveJob, WriteOutcome
from edge.runtime.clock import Clock, wall
from edge.runtime.database import StoreFailed
from edge.runtime.loops import Loops
from edge.runtime.night import LONGEST_NIGHT_S, POWER, Sleep
from edge.runtime.obedience import PATIENCE_S, Obedience
from edge.runtime.proxies import Line, Proxies, ProxyLine
from edge.runtime.reasons import Outcome, Reasons
from edge.runtime.store import Kept, Store
from edge.wire.messages import (
    Code,
    DevicePreview,
    DeviceResult,
    LogEntry,
    ReleaseCommand,
    SetpointCommand,
    Stream,
    Writes,
)

log = structlog.get_logger()

PERIOD_S = 1.0
CONTROL_STREAM = Stream.CONTROL
LEDGER_PERIOD_S = 60.0
# A hold counts as lapsed strictly after its end; waking this much later spares a second look.
AFTER_END_S = 0.002


NO_SUCH_DEVICE = DeviceResult(code=Code.UNKNOWN_DEVICE, detail="this node has no such device")
NOT_CONTROLLED = DeviceResult(code=Code.EXCLUDED, detail="the device was taken out of control meanwhile")
RECONFIGURED = DeviceResult(
    code=Code.WRITE_FAILED, detail="the device's configuration changed before it was confirmed"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """One value a device told, at a moment of this node's clocks; None where it has no value to tell."""

    value: float | None
    at: Instant


@dataclass(slots=True)
class _LapseGroup:
    """Holds of one category that ended together and fall back to the same value: one entry in the log."""

    category: str
    value: float
    hold: Hold
    cause: LapseCause
    waiting: set[str]
    results: dict[str, DeviceResult] = field(default_factory=dict)


@dataclass(slots=True)
class Unit:
    """One device under control: its array, its line, and who waits for it.

    `key` is what its line calls it: the tag, or something else for a device that left the configuration and
    whose tag may be another's by now.
    """

    state: DeviceState
    bus: Line
    can_write: bool
    key: str
    image: ProcessImage = EMPTY
    decision: Decision | None = None
    ticket: int | None = None
    ticket_value: float = 0.0
    unsent: int | None = None  # the write that waited at its last contact: it has not left
    ticket_told: WriteOutcome | None = None  # its first failure, which was told; it is still tried
    look_at: float = math.inf  # when its array changes by itself, on the boot-time clock
    failing: Code | None = None  # why its writes are not confirmed, as it was last told
    keep_alive_from: float = 0.0  # no sign of life is asked for before
    waiters: list[tuple[Order, asyncio.Future[DeviceResult]]] = field(default_factory=list)
    lapse_group: _LapseGroup | None = None
    fallback_owed: FallbackEntered | None = None
    kept: Kept = field(default_factory=Kept)
    readings: dict[str, Reading] = field(default_factory=dict)
    reachable: bool | None = None
    lost_at: float = 0.0
    sleep: Sleep | None = None  # of a device that sleeps at night
    obedience: Obedience | None = None  # of a device that does not show its setpoint

    @property
    def settings(self) -> DeviceSettings:
        return self.state.settings

    @property
    def is_asleep(self) -> bool:
        return self.sleep is not None and self.sleep.is_asleep

    @property
    def is_proxy(self) -> bool:
        return isinstance(self.bus, ProxyLine)


@dataclass(slots=True)
class Accepted:
    """A command after arbitration: what was refused at once, and what is under way."""

    refused: dict[str, DeviceResult]
    waiting: dict[str, asyncio.Future[DeviceResult]]
    before: dict[str, DeviceState] = field(default_factory=dict)

    async def results(self) -> dict[str, DeviceResult]:
        """Every device's outcome, each as soon as its first try has ended."""
        return self.refused | {tag: await future for tag, future in self.waiting.items()}


class Cycle:
    """All devices of a node.

    `units` are the devices of the configuration by tag, `leaving` those that left it and are not back at
    their default, by key. `alive` is called once a turn, after every device was evaluated: who watches the
    process judges by it. `written_by` names the process in the reason of watchdog entries where that is not
    the node itself. `waiting` are devices of the configuration that are not under control yet, and what their
    requests are answered; `left` hears of the devices that a turn found retired. `reasons` takes note of
    every decision and outcome. `runs_loops` is false where closed loops have no say: their members take the
    loop's fallback.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        store: Store,
        logged: Callable[[], None],
        alarms: Alarms,
        alive: Callable[[], None] = lambda: None,
        written_by: str = "",
        reasons: Reasons | None = None,
        runs_loops: bool = True,
    ) -> None:
        self.units: dict[str, Unit] = {}
        self.leaving: dict[str, Unit] = {}
        self.waiting: Mapping[str, DeviceResult] = {}
        self.proxies = Proxies(self.units)
        self.loops = Loops(self.units, clock=clock, alarms=alarms, store=store, runs=runs_loops)
        self.left: Callable[[list[Unit]], None] = lambda _: None
        self.alarms = alarms
        self._alive = alive
        self._written_by = written_by
        self._reasons = reasons
        self._clock = clock
        self._store = store
        self._logged = logged
        self._wake = asyncio.Event()
        self._next_look = 0.0
        self._ledgers_due = 0.0
        # Devices that sleep, by what their lines call them.
        self._sleepers: dict[str, Unit] = {}
        self._schedules: dict[str, Schedule] = {}

    # --- the turn -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Turn for the life of the node. An error ends the process: nothing runs without its watchdog."""
        while True:
            self.turn()
            self._keep_ledgers()
            self._alive()
            turn_due = self._clock.boottime_s() + PERIOD_S
            while (now := self._clock.boottime_s()) < turn_due:
                if self._next_look <= now:
                    self.evaluate([unit for unit in self._everyone() if unit.look_at <= now])
                    self._next_look = self._next_moment()
                self._wake.clear()
                await self._clock.wait(self._wake, min(turn_due, self._next_look) - now)

    def turn(self) -> None:
        """Evaluate every device once."""
        self.evaluate(self._everyone())
        self.loops.learn()
        self._next_look = self._next_moment()
        for meter in self.loops.meters:
            if meter in self.units:
                # Also while it is silent: it is then that people look.
                self._note_loop(self.units[meter], self._clock.now())
        self._miss_sleepers()
        for proxy, readings, reachable in self.proxies.sum_up(self._clock.now()):
            proxy.readings = {key: Reading(value, at) for key, (value, at) in readings.items()}
            proxy.reachable = reachable
        if self._reasons is not None:
            self._reasons.turned({self._noted_as(unit) for unit in self._everyone()}, now=self._clock.now())

    def _next_moment(self) -> float:
        """When something is to be looked at before the next turn, on the boot-time clock."""
        return min(self.loops.next_at, min((unit.look_at for unit in self._everyone()), default=math.inf))

    def _everyone(self) -> list[Unit]:
        return [*self.units.values(), *self.leaving.values()]

    def _noted_as(self, unit: Unit) -> str:
        """A device's name in the ring: its tag, but for one that leaves while another has its tag."""
        tag = unit.settings.tag
        return f"{tag} (leaving)" if unit.key in self.leaving and tag in self.units else tag

    def unit(self, key: str) -> Unit | None:
        """A device by what its line calls it, of the configuration or leaving."""
        return self.units.get(key) or self.leaving.get(key)

    def evaluate(self, units: Iterable[Unit]) -> None:
        """Decide for these devices, keep what must be kept, then ask the lines for what is to be written.

        With a proxy go those that take their value from it, and with a member of a closed loop the others
        that the loop asks for something else now.
        """
        now = self._clock.now()
        quality = self._clock.quality()
        if self.loops:
            units = self._with_loops(units, now)
        fallbacks: list[tuple[Unit, FallbackEntered]] = []
        reached: list[tuple[Unit, FallbackReached]] = []
        retired: list[tuple[Unit, Retired]] = []
        decided: list[Unit] = []
        for unit in self.proxies.downwards(units) if self.proxies else units:
            if unit.image.clock is not quality:
                unit.image = replace(unit.image, clock=quality)
            if unit.settings.proxy is not None or unit.image.passed_on is not None:
                passed_on = self.proxies.passed_on(unit)
                if passed_on != unit.image.passed_on:
                    unit.image = replace(unit.image, passed_on=passed_on)
            day = unit.state.ledger.day
            unit.state, unit.decision = arbitration.decide(unit.state, unit.image, now)
            if unit.state.ledger.day != day:
                # A new day: yesterday's alarm is over.
                self._judge_wear(unit)
            decided.append(unit)
            for event in unit.decision.events:
                if isinstance(event, FallbackEntered):
                    fallbacks.append((unit, event))
                elif isinstance(event, FallbackReached):
                    reached.append((unit, event))
                elif isinstance(event, Retired):
                    retired.append((unit, event))
        self._enter_fallbacks(fallbacks)
        # Together: a lapse or a retirement is logged once, wherever this process ends.
        with (
            contextlib.suppress(StoreFailed),
            self._store.transaction() if reached or retired else contextlib.nullcontext(),
        ):
            for unit, event in reached:
                self._lapse_result(unit, DeviceResult(value=event.value, readback=unit.image.readback))
            self._keep(decided)
            for unit, left in retired:
                self._log_retired(unit, left)
        for unit in decided:
            self._ask_line(unit, now)
            unit.look_at = _changes_at(unit.decision, now)
            self._next_look = min(self._next_look, unit.look_at)
        if self._reasons is not None:
            # After the lines were asked: no write waits for its reason to be noted.
            for unit in decided:
                if unit.decision is not None:
                    name = self._noted_as(unit)
                    self._reasons.note(
                        name, unit.state, unit.decision, image=unit.image, quality=quality, now=now
                    )
        if retired:
            self.left([unit for unit, _ in retired])
        self._hear_children(decided)
        self._wake.set()

    def _with_loops(self, units: Iterable[Unit], now: Instant) -> list[Unit]:
        together = {unit.key: unit for unit in units}
        together |= {unit.key: unit for unit in self.loops.look(together.values(), now)}
        self._next_look = min(self._next_look, self.loops.next_at)
        return list(together.values())

    def _ask_line(self, unit: Unit, now: Instant) -> None:
        """Bring the line to what was decided: at most one write waits, always of the resolved value."""
        decision = unit.decision
        if decision is None or decision.value is None or not unit.can_write:
            if unit.ticket is not None:
                unit.ticket = None
                unit.bus.withdraw(unit.key)
            unit.bus.reserve(unit.key, None)
            self._answer_waiters(unit, NOT_CONTROLLED)
            return
        if unit.ticket is not None:
            if unit.ticket_value != decision.value:
                self._submit(unit, decision.value, verify=False)
            elif unit.ticket_told is not None and unit.waiters:
                # A failure is told once a ticket: whoever asks again for a value that is still being tried
                # would never hear of it.
                if unit.settings.wears:
                    # To begin anew would be three more writes, for each who asks.
                    self._answer_waiters(unit, self._result(unit, unit.ticket_told, now))
                else:
                    self._ask_anew(unit, decision.value, verify=False)
        elif decision.write is not None:
            self._submit(unit, decision.value, verify=False)
        elif unit.waiters:
            # The same value again: the hold is renewed, and the device is asked rather than believed.
            self._ask_anew(unit, decision.value, verify=True)
        unit.bus.reserve(unit.key, self._known_write_at(unit, decision, now))
        self._ask_for_sign_of_life(unit, decision, now)

    @staticmethod
    def _ask_for_sign_of_life(unit: Unit, decision: Decision, now: Instant) -> None:
        own, due = unit.settings.keep_alive, decision.keep_alive
        if own is None or due is None or decision.value is None or now.boottime_s < unit.keep_alive_from:
            return
        # Once a period, whatever becomes of it.
        unit.keep_alive_from = now.boottime_s + own.timeout_s / 3
        arm = due is KeepAliveDue.ARM
        unit.bus.keep_alive(unit.key, KeepAliveJob(fallback=own.value, setpoint=decision.value, arm=arm))

    def _ask_anew(self, unit: Unit, value: float, *, verify: bool) -> None:
        """Have the device confirm a value it was asked for before; a proxy, all that are behind it."""
        self._submit(unit, value, verify=verify)
        for child in self.proxies.commanded(unit) if unit.is_proxy else ():
            decision = child.decision
            if decision is None or decision.value is None:
                continue
            if child.ticket is None:
                if decision.write is None:
                    self._ask_anew(child, decision.value, verify=True)
            elif child.ticket_told is not None and not child.settings.wears:
                self._ask_anew(child, decision.value, verify=False)

    def _hear_children(self, units: Iterable[Unit]) -> None:
        """Tell of each proxy, once all behind it have said, what became of what was written to it."""
        if not self.proxies and not any(unit.is_proxy for unit in units):
            return
        for proxy in [*self.proxies.upwards(), *(unit for unit in self.leaving.values() if unit.is_proxy)]:
            outcome = self.proxies.outcome(proxy) if proxy.ticket is not None else None
            if outcome is not None and (outcome.code is None or proxy.ticket_told is None):
                self.wrote(proxy.key, outcome)

    def _submit(self, unit: Unit, value: float, *, verify: bool) -> None:
        unit.ticket_value, unit.ticket_told = value, None
        unit.ticket = unit.bus.write(unit.key, value, verify=verify)
        self.loops.asked(unit.key, value)

    def _known_write_at(self, unit: Unit, decision: Decision, now: Instant) -> float | None:
        """When the array will change by itself to another value, on the boot-time clock."""
        if decision.through is not None:
            proxy = self.units[decision.through]
            return None if proxy.decision is None else self._known_write_at(proxy, proxy.decision, now)
        if decision.until_boottime_s is not None:
            return decision.until_boottime_s
        if decision.until_utc is None:
            return None
        following = value_at(unit.state.schedule, decision.until_utc)
        if (unit.settings.default_value if following is None else following) == decision.wish:
            return None
        return now.boottime_s + (decision.until_utc - now.utc).total_seconds()

    def _keep(self, units: Iterable[Unit]) -> None:
        """Write to disk what a restart must find, where it changed."""
        changed = []
        for unit in units:
            kept = self._kept(unit)
            if kept != unit.kept:
                changed.append((unit, unit.kept, kept))
        if not changed:
            return

        def put_back() -> None:
            for unit, before, _ in changed:
                unit.kept = before

        # Where the disk takes nothing, control goes on (ADR 0009), and each turn tries again.
        with contextlib.suppress(StoreFailed), self._store.transaction():
            self._store.if_lost(put_back)
            for unit, _, kept in changed:
                unit.kept = kept
            self._store.keep([(unit.key, kept) for unit, _, kept in changed])

    def _kept(self, unit: Unit) -> Kept:
        state = unit.state
        return Kept(
            boot=self._clock.boot_id,
            hold=state.hold,
            last_order=state.last_order,
            lapse=state.lapse,
            asked=state.asked,
            confirmed=state.confirmed,
            # What a write to a volatile register cost is not worth a write to our own disk.
            ledger=state.ledger if unit.settings.wears else unit.kept.ledger,
            retirement=state.retirement,
        )

    def _keep_ledgers(self) -> None:
        """Now and then, write to disk the ledgers that are not kept write by write."""
        now = self._clock.boottime_s()
        if now < self._ledgers_due:
            return
        self._ledgers_due = now + LEDGER_PERIOD_S
        changed = [
            (unit, msgspec.structs.replace(unit.kept, ledger=unit.state.ledger))
            for unit in self._everyone()
            if unit.kept.ledger != unit.state.ledger
        ]
        with contextlib.suppress(StoreFailed):
            self._store.keep([(unit.key, kept) for unit, kept in changed])
            for unit, kept in changed:
                unit.kept = kept

    # --- commands -----------------------------------------------------------------------------------

    def accept_setpoint(self, command: SetpointCommand) -> Accepted:
        """Arbitrate a command over its devices. The caller persists its answer in the same transaction."""
        now = self._clock.now()

        def admit(unit: Unit, tag: str) -> DeviceResult | None:
            request = DirectRequest(
                order=(command.epoch, command.sequence),
                request_id=command.request_id,
                value=command.values[tag],
                hold_s=command.hold_s,
            )
            unit.state, refusal = self.admit(unit, request, now)
            return refusal

        return self._accept(command.values, (command.epoch, command.sequence), admit)

    def admit(
        self, unit: Unit, request: DirectRequest, now: Instant
    ) -> tuple[DeviceState, DeviceResult | None]:
        """A device's state once it has taken a request; or as it is, and why it refuses. Changes nothing."""
        state, refusal = arbitration.admit(unit.state, request, now)
        if refusal is not None:
            return unit.state, _refused(refusal, unit)
        if unit.is_proxy and (told := self._why_children_refuse(unit, request.value)) is not None:
            return unit.state, told
        return state, None

    def preview(self, tag: str, value: float, *, order: Order, hold_s: float) -> dict[str, DevicePreview]:
        """What a setpoint would do to a device, and to those behind it, by tag. Changes nothing."""
        now = self._clock.now()
        unit = self.units.get(tag)
        if unit is None:
            told = self.not_here(tag)
            return {tag: DevicePreview(code=told.code, detail=told.detail)}
        request = DirectRequest(order=order, request_id="", value=value, hold_s=hold_s)
        state, refusal = self.admit(unit, request, now)
        if refusal is None and not unit.can_write:
            refusal = NOT_CONTROLLED
        if refusal is not None:
            return {tag: previews.refused(unit, refusal, now)}
        quality = self._clock.quality()
        return previews.preview(unit, state, proxies=self.proxies, now=now, quality=quality)

    def not_here(self, tag: str) -> DeviceResult:
        """What requests for a device are answered that is not under control here."""
        return self.waiting.get(tag, NO_SUCH_DEVICE)

    def accept_release(self, command: ReleaseCommand) -> Accepted:
        order = (command.epoch, command.sequence)

        def release(unit: Unit, _tag: str) -> DeviceResult | None:
            unit.state, refusal = arbitration.release(unit.state, order)
            return None if refusal is None else _refused(refusal, unit)

        return self._accept(command.devices, order, release)

    def take_back(self, accepted: Accepted) -> None:
        """Undo an acceptance that the disk did not take: its devices get back what they held.

        To be called before anything else happens: nothing has been written to a device by then.
        """
        taken = []
        for tag, before in accepted.before.items():
            unit = self.units[tag]
            unit.state = replace(
                unit.state, hold=before.hold, last_order=before.last_order, lapse=before.lapse
            )
            unit.waiters.clear()
            for each in self.proxies.downwards([unit]):
                each.ticket = None
                each.bus.withdraw(each.key)
            taken.append(unit)
        self.evaluate(taken)

    def _why_children_refuse(self, proxy: Unit, value: float) -> DeviceResult | None:
        """Why a proxy cannot be held at this value although it takes requests itself; None where it can."""
        hold = proxy.state.hold
        refusal = self.proxies.refusal(proxy, value, held=None if hold is None else hold.value)
        if refusal is None:
            return None
        child, result = refusal
        if child is None:
            return result
        why = _why_refused(Refusal.WEAR, child)
        return msgspec.structs.replace(result, detail=f"{child.settings.tag}: {why}")

    def _accept(
        self, tags: Iterable[str], order: Order, apply: Callable[[Unit, str], DeviceResult | None]
    ) -> Accepted:
        accepted = Accepted({}, {})
        taken: list[Unit] = []
        for tag in tags:
            unit = self.units.get(tag)
            if unit is None:
                accepted.refused[tag] = self.not_here(tag)
                continue
            before = unit.state
            refusal = apply(unit, tag)
            if refusal is not None:
                accepted.refused[tag] = refusal
                continue
            self._supersede(unit)
            if unit.state.hold is not None:
                self._abandon_fallback(unit)
            future: asyncio.Future[DeviceResult] = asyncio.get_running_loop().create_future()
            unit.waiters.append((order, future))
            accepted.waiting[tag] = future
            accepted.before[tag] = before
            taken.append(unit)
        self.evaluate(taken)
        return accepted

    @staticmethod
    def _supersede(unit: Unit) -> None:
        """Whoever still waits for an older request of this device hears that a newer one took its place."""
        detail = "a newer request came before this one was confirmed"
        Cycle._answer_waiters(unit, DeviceResult(code=Code.SUPERSEDED, detail=detail))

    @staticmethod
    def _answer_waiters(unit: Unit, result: DeviceResult) -> None:
        for _, future in unit.waiters:
            if not future.done():
                future.set_result(result)
        unit.waiters.clear()

    def _abandon_fallback(self, unit: Unit) -> None:
        """A new hold ends whatever fallback was owed: it is logged as never confirmed, not as its value."""
        unit.fallback_owed = None
        if unit.lapse_group is not None:
            detail = "a newer request came before the fallback was confirmed"
            self._lapse_result(unit, DeviceResult(code=Code.SUPERSEDED, detail=detail))

    # --- what the lines tell (bus.Listener) --------------------------------------------------------

    def contact(self, tag: str, *, standing: float | None) -> None:
        """A device was identified and read for the first time on this session."""
        unit = self.unit(tag)
        if unit is None:
            return
        self._is_back(unit)
        unit.state = arbitration.contact_renewed(unit.state)
        unit.unsent, unit.keep_alive_from = unit.ticket, 0.0
        unit.image = replace(unit.image, readback=standing)
        if unit.ticket is not None and standing is not None:
            decision = unit.decision
            if (
                decision is not None
                and decision.value is not None
                and self._agrees(unit, decision.value, standing)
            ):
                # It holds what was about to be written.
                unit.bus.withdraw(unit.key)
                self.wrote(tag, WriteOutcome(unit.ticket, decision.value, readback=standing))
                return
        self._note_standing(unit, standing)
        self.evaluate([unit])

    def spent(self, tag: str, writes: dict[str, int]) -> None:
        unit = self.unit(tag)
        if unit is None:
            return
        unit.state = arbitration.spend(unit.state, writes)
        self._judge_wear(unit)
        self._keep([unit])

    def kept_alive(self, tag: str, value: float, *, failed: str) -> None:
        unit = self.unit(tag)
        if unit is None:
            return
        if failed:
            self.alarms.set("no_own_fallback", f"it cannot be armed: {failed}", device=unit.settings.tag)
            return
        unit.state = arbitration.kept_alive(unit.state, value, self._clock.now())
        self.alarms.clear("no_own_fallback", device=unit.settings.tag)

    def _judge_wear(self, unit: Unit) -> None:
        """Raise, change or end the alarm on the day's budget."""
        settings, state = unit.settings, unit.state
        if state.is_wearing:
            detail = f"{state.spent_today} of {settings.writes_per_day} writes of today are spent"
            self.alarms.set("wear", detail, device=settings.tag)
        else:
            self.alarms.clear("wear", device=settings.tag)

    def _is_back(self, unit: Unit) -> None:
        if unit.reachable is False and not unit.is_asleep:
            away = self._clock.boottime_s() - unit.lost_at
            log.info("device is back", device=unit.settings.tag, away_s=round(away, 1))
        unit.reachable = True

    def _note_standing(self, unit: Unit, standing: float | None) -> None:
        """Rule 18: a limit found in the device that this node did not set is logged with its value."""
        wanted = unit.decision.value if unit.decision is not None else None
        settings = unit.settings
        if (
            standing is None
            or wanted is None
            or unit.key in self.leaving
            or self._agrees(unit, settings.default_value, standing)
        ):
            return
        if unit.state.lapse is not None or self._agrees(unit, wanted, standing):
            return
        if unit.state.is_ours(standing):
            # From before the device was out of reach, or this process was not there.
            return
        log.warning("device holds a limit this node did not set", device=settings.tag, value=standing)
        self._append(
            LogEntry(
                seq=0,
                at=wall(self._clock.now().utc),
                kind="standing",
                category=settings.category,
                value=standing,
                reason="found at first contact, not set by this node",
                devices={settings.tag: DeviceResult(value=standing)},
            )
        )

    def lost(self, tag: str, *, reason: str) -> None:
        unit = self.unit(tag)
        if unit is None:
            return
        if unit.reachable is not False:
            unit.lost_at = self._clock.boottime_s()
            if not self._falls_asleep(unit):
                log.warning("device is out of reach", device=tag, reason=reason)
                self._device_error(unit, reason)
        unit.reachable = False
        unit.image = replace(unit.image, readback=None)

    def _falls_asleep(self, unit: Unit) -> bool:
        """Tell whether a device that gives no answer, or no values, is asleep; that is said once."""
        sleep = unit.sleep
        if sleep is None:
            return False
        if not sleep.is_asleep:
            held = unit.state.in_force
            if not sleep.may_sleep(unit.image.readback, held.value if held is not None else None):
                return False
            sleep.since_s = self._clock.boottime_s()
            self._sleepers[unit.key] = unit
            log.info("device is asleep", device=unit.settings.tag, last_power_kw=sleep.power_kw)
        return True

    def _hear_power(self, unit: Unit, power_kw: float | None) -> None:
        """Take note of the power of a device that sleeps at night."""
        if power_kw is None:
            self._falls_asleep(unit)
        elif unit.sleep is not None:
            since_s = unit.sleep.since_s
            if unit.sleep.heard(power_kw) and since_s is not None:
                self._sleepers.pop(unit.key, None)
                slept_s = round(self._clock.boottime_s() - since_s, 1)
                log.info("device is awake", device=unit.settings.tag, slept_s=slept_s)

    def _miss_sleepers(self) -> None:
        """No night is that long: who still sleeps is out of reach, and somebody should look."""
        now_s = self._clock.boottime_s()
        for key, unit in list(self._sleepers.items()):
            if self.unit(key) is not unit or unit.sleep is None or not unit.sleep.is_asleep:
                del self._sleepers[key]
            elif unit.sleep.is_overdue(now_s):
                del self._sleepers[key]
                unit.sleep.since_s = unit.sleep.power_kw = None
                reason = f"it fell asleep more than {LONGEST_NIGHT_S / 3600:g} h ago and has not woken"
                log.warning("device is out of reach", device=unit.settings.tag, reason=reason)
                self._device_error(unit, reason)

    def wrote(self, tag: str, outcome: WriteOutcome) -> None:
        unit = self.unit(tag)
        if unit is None or outcome.ticket != unit.ticket:
            return
        now = self._clock.now()
        confirmed = outcome.code is None
        if confirmed or unit.state.is_met:
            # (Nothing has left for a device that was never reached.)
            unit.state = arbitration.written(unit.state, outcome.value, now, confirmed=confirmed)
        unit.ticket_told = None if confirmed else outcome
        if confirmed:
            unit.ticket = None
            if outcome.readback is not None:
                unit.image = replace(unit.image, readback=outcome.readback)
        if self._reasons is not None:
            told = Outcome(outcome.value, outcome.code, outcome.detail, outcome.readback)
            self._reasons.wrote(self._noted_as(unit), told, now=now)
        result = self._result(unit, outcome, now)
        if confirmed:
            unit.failing = None
        elif outcome.code is not unit.failing:
            # Once, until it is confirmed: a ramp asks for a new value each second.
            unit.failing = outcome.code
            if unit.is_asleep:
                log.info("write waits for the morning", device=tag, value=outcome.value)
            else:
                log.error("write is not confirmed", device=tag, value=outcome.value, reason=result.reason)
                self._device_error(unit, result.reason)
        self._answer_waiters(unit, result)
        # Together: a lapse is logged once, wherever this process ends.
        with contextlib.suppress(StoreFailed), self._store.transaction():
            if not confirmed or unit.state.lapse is None:
                # (A confirmed step of a ramp is on its way there only.)
                self._lapse_result(unit, result)
            self._keep([unit])
        if unit.state.retirement is Retirement.OWED:
            self.evaluate([unit])
        if not unit.is_proxy:
            self._hear_children([unit])

    def polled(self, tag: str, result: PollResult) -> None:
        unit = self.unit(tag)
        if unit is None:
            return
        self._is_back(unit)
        now = self._clock.now()
        if result.readback != unit.image.readback:
            unit.image = replace(unit.image, readback=result.readback)
        if unit.sleep is not None:
            self._hear_power(unit, result.readings.get(POWER))
        if unit.obedience is not None:
            self._judge_by_power(unit, unit.obedience, result.readings.get(POWER))
        said = _moments(result.said_at_s, now)
        unit.readings = {key: Reading(value, said.get(key, now)) for key, value in result.readings.items()}
        if self.loops.is_concerned(tag):
            changed = self.loops.heard(unit, now)
            self._note_loop(unit, now)
            if changed:
                # What a reading asks for is on its way before the next one is read.
                self.evaluate(changed)

    def _note_loop(self, meter: Unit, now: Instant) -> None:
        """Put what a loop holds and asks for among the readings of its meter."""
        told = {key: Reading(value, now) for key, value in self.loops.readings(meter.key).items()}
        # Another mapping: who is just telling of the readings goes on with those that he has.
        meter.readings = {**meter.readings, **told}

    def _judge_by_power(self, unit: Unit, obedience: Obedience, power_kw: float | None) -> None:
        """Rule 12, where nothing is read back. It is written again in any case: this tells."""
        held, tag = unit.state.in_force, unit.settings.tag
        if held is None or not held.confirmed or power_kw is None:
            return
        if not obedience.heard(power_kw, limit_pct=held.value, now_s=self._clock.boottime_s()):
            return
        if not obedience.is_doubted:
            self.alarms.clear("not_followed", device=tag)
            return
        detail = f"it was set to {held.value:g} % and gives {power_kw:g} kW after {PATIENCE_S:g} s"
        log.error("device does not follow its setpoint", device=tag, value=held.value, power_kw=power_kw)
        self.alarms.set("not_followed", detail, device=tag)
        self._device_error(unit, f"{Code.READBACK_MISMATCH}: {detail}")

    @staticmethod
    def _agrees(unit: Unit, value: float, readback: float) -> bool:
        return abs(value - readback) <= unit.settings.tolerance

    def _result(self, unit: Unit, outcome: WriteOutcome, now: Instant) -> DeviceResult:
        hold = unit.state.hold
        left = None if hold is None else max(0.0, hold.ends_boottime_s - now.boottime_s)
        detail = outcome.detail
        if outcome.still_trying:
            detail += "; still trying"
            if left is not None:
                detail += f" until {now.utc + timedelta(seconds=left):%H:%M:%S}Z, release to cancel"
        return DeviceResult(
            code=outcome.code, detail=detail, value=outcome.value, readback=outcome.readback, holds_s=left
        )

    # --- fallback -----------------------------------------------------------------------------------

    def _enter_fallbacks(self, fallbacks: list[tuple[Unit, FallbackEntered]]) -> None:
        groups: dict[tuple[str, float, LapseCause], _LapseGroup] = {}
        for unit, event in fallbacks:
            if event.cause is LapseCause.EXCLUDED:
                self._answer_waiters(unit, NOT_CONTROLLED)
                continue
            value = unit.decision.target if unit.decision is not None else None
            request_id = event.hold.request_id
            log.warning("direct request has lapsed", device=event.tag, request_id=request_id, fallback=value)
            detail = "its hold ended before the device confirmed it"
            self._answer_waiters(unit, DeviceResult(code=Code.WRITE_FAILED, detail=detail))
            if value is None:
                continue
            group = groups.setdefault(
                (request_id, value, event.cause),
                _LapseGroup(unit.settings.category, value, event.hold, event.cause, waiting=set()),
            )
            group.waiting.add(event.tag)
            unit.lapse_group, unit.fallback_owed = group, event

    def _take_up_lapses(self) -> None:
        """After a restart: fallbacks that were owed when the process ended are owed still, and are logged."""
        now = self._clock.now()
        quality = self._clock.quality()
        owing = [
            unit
            for unit in self.units.values()
            if unit.state.lapse is not None and unit.lapse_group is None and unit.fallback_owed is None
        ]
        events = []
        for unit in owing:
            lapse = unit.state.lapse
            assert lapse is not None
            image = replace(unit.image, clock=quality)
            unit.state, unit.decision = arbitration.decide(unit.state, image, now)
            events.append((unit, FallbackEntered(unit.settings.tag, lapse.hold, lapse.cause)))
        self._enter_fallbacks(events)

    def _lapse_result(self, unit: Unit, result: DeviceResult) -> None:
        """Note what became of a fallback; log it once every device of its group has been tried."""
        tag, group = unit.settings.tag, unit.lapse_group
        if group is not None:
            group.waiting.discard(tag)
            group.results[tag] = result
            unit.lapse_group = None
            if not group.waiting:
                self._log_lapse(group)
        elif unit.fallback_owed is not None and result.ok:
            # It failed before, and is confirmed now.
            event = unit.fallback_owed
            value = result.value if result.value is not None else unit.settings.default_value
            self._log_lapse(
                _LapseGroup(unit.settings.category, value, event.hold, event.cause, set(), {tag: result})
            )
        if result.ok:
            unit.fallback_owed = None

    def _log_lapse(self, group: _LapseGroup) -> None:
        self._append(
            LogEntry(
                seq=0,
                at=wall(self._clock.now().utc),
                kind="watchdog",
                category=group.category,
                value=group.value,
                request_id=group.hold.request_id,
                sequence=group.hold.order[1],
                reason=f"{group.cause.value} by {self._written_by}"
                if self._written_by
                else group.cause.value,
                devices=group.results,
            )
        )

    def _device_error(self, unit: Unit, error: str) -> None:
        self._append(
            LogEntry(
                seq=0,
                at=wall(self._clock.now().utc),
                kind="device_error",
                category=unit.settings.category,
                devices={unit.settings.tag: DeviceResult(code="device_error", detail=error)},
            )
        )

    def _append(self, entry: LogEntry) -> None:
        self._store.append(CONTROL_STREAM, entry)
        self._logged()

    # --- configuration ------------------------------------------------------------------------------

    def reconfigure(self, unit: Unit, settings: DeviceSettings) -> None:
        """Take new settings; a device that leaves control by them is retired in place."""
        was, was_controlled = unit.state.retirement, unit.settings.is_controlled
        if settings.keep_alive != unit.settings.keep_alive:
            # It is armed anew at once, whatever time its last sign of life was for.
            unit.keep_alive_from = 0.0
        if settings.proxy is not None and settings.proxy != unit.settings.proxy:
            detail = f"{settings.proxy} controls this device from now on"
            self._let_go(unit, DeviceResult(code=Code.OWNED_BY, detail=detail))
        unit.state = arbitration.reconfigure(unit.state, settings)
        leaves = unit.state.retirement is Retirement.OWED and was is not Retirement.OWED
        if leaves or (settings.is_controlled and (was is not None or not was_controlled)):
            # What it was last seen to hold may be older than the last write, its own or somebody else's.
            unit.bus.withdraw(unit.key)
            unit.bus.look(unit.key)
            self._read_anew(unit, NOT_CONTROLLED)
        self._judge_wear(unit)
        if settings.no_own_fallback and settings.is_controlled:
            self.alarms.set("no_own_fallback", settings.no_own_fallback, device=settings.tag)
        elif settings.keep_alive is None:
            self.alarms.clear("no_own_fallback", device=settings.tag)
        if unit.obedience is None or not settings.is_controlled:
            self.alarms.clear("not_followed", device=settings.tag)

    def add(self, unit: Unit, *, leaving: bool) -> None:
        """Take a device over; it is evaluated with the next turn."""
        if leaving:
            # Even where it died before this was kept, or before it forgot the device.
            unit.state = arbitration.retire(unit.state)
            self.leaving[unit.key] = unit
            return
        schedule = self._schedules.get(unit.settings.category, Schedule())
        unit.state = replace(unit.state, schedule=schedule)
        self.units[unit.key] = unit

    def moved(self, unit: Unit, bus: Bus) -> None:
        """A device is on another line, or known anew to its own: it is read before it is written."""
        unit.bus, unit.ticket = bus, None
        unit.image = replace(unit.image, readback=None)
        unit.state = arbitration.unknown_again(unit.state)

    def leave(self, tag: str, *, key: str) -> None:
        """A device left the configuration: it goes on under another key until nothing is owed to it."""
        unit = self.units.pop(tag)
        unit.key = key
        self.loops.let_go(unit)
        unit.state = arbitration.retire(unit.state)
        self._read_anew(unit, RECONFIGURED)
        self.leaving[key] = unit

    def come_back(self, unit: Unit) -> None:
        """A device that left is in the configuration again, under its tag.

        Central counts what it accepted by the tag: also what another one accepted under it meanwhile.
        """
        del self.leaving[unit.key]
        unit.key = unit.settings.tag
        since = [other.state.last_order for other in self.leaving.values() if other.settings.tag == unit.key]
        unit.state = replace(unit.state, last_order=max([unit.state.last_order, *since]))
        self.units[unit.key] = unit

    def forget(self, key: str) -> None:
        """Nobody waits for this device any longer."""
        unit = self.units.pop(key, None) or self.leaving.pop(key)
        self._let_go(unit, RECONFIGURED)
        if unit.settings.tag not in self.units:
            self.alarms.forget_device(unit.settings.tag)

    def _read_anew(self, unit: Unit, told: DeviceResult) -> None:
        unit.image = replace(unit.image, readback=None)
        unit.ticket = None
        self._let_go(unit, told)

    def _let_go(self, unit: Unit, told: DeviceResult) -> None:
        """Nobody waits for this device any longer, nor for its fallback."""
        self._answer_waiters(unit, told)
        if unit.lapse_group is not None:
            # The others' fallback is logged without waiting for this one.
            self._lapse_result(unit, told)
        unit.fallback_owed = None

    def _log_retired(self, unit: Unit, event: Retired) -> None:
        log.info("device is retired", device=event.tag, because=event.because.value, value=event.value)
        if event.because is not RetiredBecause.NEVER_WRITTEN:
            self._append(
                LogEntry(
                    seq=0,
                    at=wall(self._clock.now().utc),
                    kind="retired",
                    category=unit.settings.category,
                    value=event.value,
                    reason=event.because.value,
                    devices={event.tag: DeviceResult(value=event.value)},
                )
            )

    def set_schedules(self, schedules: dict[str, Schedule]) -> None:
        """Give every device its category's days; what they change shows at the next evaluation."""
        self._schedules = schedules
        for unit in self.units.values():
            schedule = schedules.get(unit.settings.category, Schedule())
            unit.state = replace(unit.state, schedule=schedule)
        self.loops.step_soon()
        self._take_up_lapses()
        self.turn()

    @property
    def wear(self) -> dict[str, dict[str, Writes]]:
        """How often the registers were written that wear, or may, by tag."""
        return {
            tag: {
                name: Writes(today=count.today, ever=count.ever)
                for name, count in sorted(unit.state.ledger.registers.items())
            }
            for tag, unit in self.units.items()
            if unit.settings.wears and unit.state.ledger.registers
        }

    @property
    def values(self) -> dict[str, float]:
        """What each device holds that has confirmed it, and that nothing else has been asked of since."""
        held = ((tag, unit.state.in_force) for tag, unit in self.units.items() if unit.ticket is None)
        return {tag: held.value for tag, held in held if held is not None and held.confirmed}

    @property
    def sequences(self) -> dict[str, int]:
        """The last accepted sequence of each device."""
        return {tag: unit.state.last_order[1] for tag, unit in self.units.items() if unit.state.last_order[1]}


def _changes_at(decision: Decision | None, now: Instant) -> float:
    """When a device is to be evaluated anew without being told to, on the boot-time clock."""
    if decision is None:
        return math.inf
    if decision.until_boottime_s is not None:
        # Never in the past: what is due is evaluated by the next turn, not by spinning.
        return max(decision.until_boottime_s, now.boottime_s) + AFTER_END_S
    if decision.until_utc is not None:
        return now.boottime_s + max((decision.until_utc - now.utc).total_seconds(), AFTER_END_S)
    return math.inf


def _refused(refusal: Refusal, unit: Unit) -> DeviceResult:
    return DeviceResult(code=refusal.value, detail=_why_refused(refusal, unit))


def _why_refused(refusal: Refusal, unit: Unit) -> str:
    settings = unit.settings
    match refusal:
        case Refusal.RANGE:
            return f"allowed is {settings.minimum:g} to {settings.maximum:g}, for more than 0 s"
        case Refusal.EXCLUDED:
            return "include_in_curtailment is off for this device"
        case Refusal.OWNED_BY:
            return f"{settings.proxy or settings.owned_by} controls this device"
        case Refusal.WEAR:
            return (
                f"{unit.state.spent_today} of {settings.writes_per_day} writes of today are spent, the rest"
                " is kept for releases; the count begins anew at 00:00Z"
            )
        case Refusal.SUPERSEDED:
            return "a later request for this device was accepted before"


def _moments(said_at_s: Mapping[str, float], now: Instant) -> dict[str, Instant]:
    """When a device said by itself what it said: polled twice it is as old as it is, and no news."""
    return {
        key: Instant(now.utc - timedelta(seconds=max(0.0, now.boottime_s - at_s)), min(at_s, now.boottime_s))
        for key, at_s in said_at_s.items()
    }
