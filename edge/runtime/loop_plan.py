"""The closed loops of a configuration: which can be used, what their members are, and why others cannot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from edge.core.arbitration import in_bounds
from edge.core.closed_loop import LoopSettings, Member, Mode
from edge.core.commands import WriteClass
from edge.core.loop.bounds import static_bounds
from edge.core.loop.terms import LOOP_RANGES
from edge.core.quantities import Bound
from edge.profiles.model import OwnFallback
from edge.profiles.points import Protocol
from edge.runtime.config import MAX_TAG, Endpoint, InLoop, Planned, tag_check
from edge.runtime.documents import DocumentRefused
from edge.runtime.loop_limits import held_limit, limit_bound, under_limits
from edge.runtime.loop_members import COMMANDED, leaves_of, member_of
from edge.runtime.night import POWER
from edge.wire.messages import LoopConfig

# Rule 13: a register of unknown endurance is written by a loop this often at most.
UNKNOWN_EVERY_S = 60.0
# Of a device with a pause between commands three quarters of the line are kept free of polls.
FREE_OF_POLLS = 4
# A meter that is due less often than so many times within `stale_after_s` would be stale by one lost reading.
READINGS_WITHIN_STALE = 2
# A meter that speaks unasked costs nothing to ask: what it says is answered as soon as this.
HEARD_WITHIN_S = 0.2
WORN_OUT = "it is kept in memory that wears; leave the device out of the loop"


@dataclass(frozen=True, slots=True)
class PlannedLoop:
    """One usable loop of the configuration.

    `devices`: by member, the devices that its setpoint reaches: itself, or those behind a proxy.
    `not_held`: by device, why its own fallback would let go of the connection limit.
    """

    id: str
    tag: str
    meter: str
    settings: LoopSettings
    setpoint_kw: float | None
    devices: Mapping[str, tuple[str, ...]]
    not_held: Mapping[str, str] = field(default_factory=dict)

    def fallback_pct(self, *, is_scheduled: bool) -> float | None:
        """What each member is given while nobody looks at the meter, in percent (rule 16).

        None where it is its schedule's slot, if any member has one now (`is_scheduled`), else its default.
        Without a configured fallback a setpoint in kW is shared by nominal power, as if there was no load: so
        a schedule's percentage is.
        """
        if self.settings.fallback_pct is not None:
            return self.settings.fallback_pct
        if is_scheduled or self.setpoint_kw is None:
            return None
        return min(max(100 * self.setpoint_kw / self.settings.nominal_kw, -100.0), 100.0)

    def static_bound(self, member: str) -> Bound | None:
        """What the connection's limit leaves a member where nobody looks at the meter (rule 16)."""
        bounds = static_bounds(self.settings)
        return self.bound(bounds.lower.get(member, -math.inf), bounds.upper.get(member, math.inf))

    def bound(self, low: float, high: float) -> Bound | None:
        """The connection's limit as a bound, in percent; what is no number is no limit."""
        settings = self.settings
        return limit_bound(low, high, export_kw=settings.export_limit_kw, import_kw=settings.import_limit_kw)

    def share(self, member: str, default: float) -> float | None:
        """What devices of a member under a connection limit take by themselves, in percent (rule 14)."""
        bound = self.static_bound(member)
        if bound is None:
            return None
        fallback_pct = self.fallback_pct(is_scheduled=False)
        wish = default if fallback_pct is None else fallback_pct
        return min(max(wish, bound.minimum), bound.maximum)


@dataclass(frozen=True, slots=True)
class LoopPlan:
    """All loops by tag, why others cannot be used, and the devices as their loops have them.

    Of a loop that cannot be used its connection limit stays, as a bound of its members.
    """

    loops: dict[str, PlannedLoop]
    refused: dict[str, str]
    devices: dict[str, Planned]


def plan_loops(
    raw: Iterable[Mapping[str, Any]], devices: Mapping[str, Planned], *, unusable: Mapping[str, str]
) -> LoopPlan:
    """Read the loops of a configuration over its usable devices; each that cannot be used is refused alone.

    `unusable` tells of its other devices why they are not. A loop goes on without a member that is excluded,
    or that cannot be used itself: whatever it gives counts as load. A refused loop's connection limit stays
    with its members, as far as it can be read (`loop_limits`).
    """
    every = list(raw)
    free = {tag: under_limits(planned, ()) for tag, planned in devices.items()}
    loops, refused = _used(every, free, unusable)
    limits = [held_limit(every[number], free) for number in refused]
    bounded = {tag: under_limits(planned, limits) for tag, planned in free.items()}
    if bounded != free:
        # Another loop may have one of these members, and is to know what is left of it. No bound refuses one.
        loops, _ = _used(every, bounded, unusable)
    why: dict[str, str] = {}
    for (number, reason), limit in zip(refused.items(), limits, strict=True):
        name = str(every[number].get("tag") or f"loop {number}")[:MAX_TAG]
        told = [why.get(name, ""), reason, limit.text]
        why[name] = "; ".join(text for text in told if text)
    return LoopPlan(loops, why, _with_loops(bounded, loops))


def _used(
    raw: Iterable[Mapping[str, Any]], devices: Mapping[str, Planned], unusable: Mapping[str, str]
) -> tuple[dict[str, PlannedLoop], dict[int, str]]:
    """The loops that can be used, by tag, and why the others cannot, by their number."""
    loops: dict[str, PlannedLoop] = {}
    refused: dict[int, str] = {}
    for number, each in enumerate(raw):
        try:
            config = _config(each, loops)
            loops[config.tag] = _Builder(config, devices, unusable, loops).build()
        except DocumentRefused as error:
            refused[number] = str(error)
    return loops, refused


def _config(raw: Mapping[str, Any], loops: Mapping[str, PlannedLoop]) -> LoopConfig:
    try:
        config = msgspec.convert(raw, LoopConfig)
    except msgspec.ValidationError as error:
        raise DocumentRefused(str(error)) from error
    tag_check(config.tag)
    if config.tag in loops:
        raise DocumentRefused("a second loop has this tag: give it one of its own")
    if any(config.id == other.id for other in loops.values()):
        raise DocumentRefused(f"a second loop has this id, {config.id[:MAX_TAG]!r}")
    if config.mode not in tuple(Mode):
        raise DocumentRefused(f"mode {config.mode!r}: expected {' or '.join(Mode)}")
    for name, (least, greatest) in LOOP_RANGES.items():
        value = getattr(config, name)
        if value is not None and not least <= value <= greatest:
            raise DocumentRefused(f"{name} {value:g}: expected {least:g} to {greatest:g}")
    if config.stale_after_s <= config.time_step_s:
        raise DocumentRefused(
            f"stale_after_s {config.stale_after_s:g}: expected more than time_step_s, {config.time_step_s:g}"
        )
    return config


@dataclass(frozen=True, slots=True)
class _Builder:
    """Makes a loop of one configuration, beside those that were made before it."""

    config: LoopConfig
    devices: Mapping[str, Planned]
    unusable: Mapping[str, str]
    loops: Mapping[str, PlannedLoop]

    def build(self) -> PlannedLoop:
        config = self.config
        self._check_meter()
        if not config.members or len(set(config.members)) < len(config.members):
            raise DocumentRefused("members: expected at least one, each named once")
        members, behind, not_held = [], {}, {}
        for tag in config.members:
            if self._is_left_out(tag):
                continue
            leaves = leaves_of(tag, self.devices)
            for leaf in leaves:
                self._check_wear(leaf)
                if (why := self._lets_go(leaf)) is not None:
                    not_held[leaf.config.tag] = why
            members.append(member_of(self.devices[tag], leaves))
            behind[tag] = tuple(leaf.config.tag for leaf in leaves)
        if not members:
            raise DocumentRefused("none of its members can be used, or all are excluded from curtailment")
        self._check_pace([leaf for leaves in behind.values() for leaf in leaves])
        try:
            settings = self._settings(tuple(members))
        except ValueError as error:
            raise DocumentRefused(str(error)) from error
        return PlannedLoop(
            id=config.id,
            tag=config.tag,
            meter=config.meter,
            settings=settings,
            setpoint_kw=config.setpoint_kw,
            devices=behind,
            not_held=not_held,
        )

    def _settings(self, members: tuple[Member, ...]) -> LoopSettings:
        config = self.config
        return LoopSettings(
            tag=config.tag,
            members=members,
            mode=Mode(config.mode),
            feed_forward=config.feed_forward,
            kp=config.kp,
            ki=config.ki,
            kd=config.kd,
            max_rate_pct_per_s=config.max_rate_pct_per_s,
            deadband_kw=config.deadband_kw,
            fallback_pct=config.fallback_pct,
            time_step_s=config.time_step_s,
            stale_after_s=config.stale_after_s,
            export_limit_kw=config.export_limit_kw,
            import_limit_kw=config.import_limit_kw,
            storage_first=config.storage_first,
        )

    # --- the meter

    def _check_meter(self) -> None:
        tag = self.config.meter
        if tag in self.config.members:
            raise DocumentRefused(f"meter {tag} is among the members: name a device that only measures")
        meter = self._device("meter", tag)
        if meter.is_proxy or POWER not in meter.profile.telemetry:
            raise DocumentRefused(
                f"meter {tag} measures no active power ({POWER}): name one that measures it at the connection"
            )
        if not meter.profile.points[meter.profile.telemetry[POWER]].is_dated:
            raise DocumentRefused(
                f"meter {tag} tells its power by a message that its broker may have kept for long (kept):"
                " nobody knows how old it is"
            )
        for other in self.loops.values():
            if other.meter == tag:
                raise DocumentRefused(f"meter {tag} is that of loop {other.tag}: one power, one loop")
        gap_s = meter.profile.min_gap_ms / 1000
        read_every_s = max(min(meter.config.poll_s, self.config.time_step_s), FREE_OF_POLLS * gap_s)
        least_s = READINGS_WITHIN_STALE * read_every_s
        if self.config.stale_after_s < least_s:
            raise DocumentRefused(
                f"stale_after_s {self.config.stale_after_s:g}: expected at least {least_s:g}, since meter"
                f" {tag} is read every {read_every_s:g} s"
            )

    # --- members

    def _device(self, what: str, tag: str) -> Planned:
        planned = self.devices.get(tag)
        if planned is not None:
            return planned
        why = self.unusable.get(tag)
        if why is not None:
            raise DocumentRefused(f"{what} {tag} cannot be used itself: {why}")
        raise DocumentRefused(f"{what} {tag} is not a device of this node: meter and members are on one node")

    def _is_left_out(self, tag: str) -> bool:
        """Tell whether the loop goes on without this member; refuse what can be none."""
        if tag not in self.devices and tag in self.unusable:
            return True
        planned = self._device("member", tag)
        if not planned.is_settable:
            raise DocumentRefused(f"member {tag} has no setpoint: it is measured only")
        if planned.settings.proxy is not None:
            raise DocumentRefused(
                f"member {tag} takes its value from {planned.settings.proxy}: name that one in its place"
            )
        if planned.settings.owned_by is not None:
            raise DocumentRefused(
                f"member {tag} is controlled by {planned.settings.owned_by}: name that one in its place"
            )
        for other in self.loops.values():
            if tag in other.devices:
                raise DocumentRefused(f"member {tag} is one of loop {other.tag} already")
        kind = planned.profile.value_kind
        if kind not in COMMANDED:
            raise DocumentRefused(
                f"member {tag} takes {'nothing' if kind is None else kind.value}: expected"
                f" {' or '.join(sorted(kind.value for kind in COMMANDED))}"
            )
        return planned.settings.excluded

    def _check_wear(self, leaf: Planned) -> None:
        """Rule 13."""
        tag, settings = leaf.config.tag, leaf.settings
        if settings.write_class is WriteClass.PERSISTENT:
            raise DocumentRefused(f"the setpoint of {tag} is persistent: {WORN_OUT}")
        if settings.write_class is WriteClass.UNKNOWN and not settings.accept_wear:
            if self.config.time_step_s >= UNKNOWN_EVERY_S:
                return
            raise DocumentRefused(
                f"nobody knows whether writing the setpoint of {tag} wears it: set time_step_s to"
                f" {UNKNOWN_EVERY_S:g} or accept_wear on the device"
            )

    def _check_pace(self, leaves: Iterable[str]) -> None:
        """Refuse a period in which no line could read the meter and read and write each member once."""
        pauses: dict[Endpoint, list[tuple[str, float]]] = {}
        for tag in (self.config.meter, *leaves):
            planned = self.devices[tag]
            limit = planned.profile.limit
            commands = 1 if tag == self.config.meter or limit is None else 1 + len(limit.set)
            pause_s = commands * planned.profile.min_gap_ms / 1000
            if pause_s:
                pauses.setdefault(planned.endpoint, []).append((tag, pause_s))
        for endpoint, each in pauses.items():
            least_s = math.fsum(pause_s for _, pause_s in each)
            if self.config.time_step_s < least_s:
                tags = ", ".join(tag for tag, _ in each)
                raise DocumentRefused(
                    f"time_step_s {self.config.time_step_s:g}: expected at least {least_s:g}, since the"
                    f" pauses between commands at {endpoint} take as long for {tags}"
                )

    def _lets_go(self, leaf: Planned) -> str | None:
        """Why a device would not hold the connection limit by itself; None where it would, or has no way."""
        own = None if leaf.profile.limit is None else leaf.profile.limit.fallback
        if own is None or (self.config.export_limit_kw is None and self.config.import_limit_kw is None):
            return None
        return _not_held(own, is_armed=leaf.settings.keep_alive is not None)


def _not_held(own: OwnFallback, *, is_armed: bool) -> str | None:
    match own.takes:
        case "release":
            return "limit not held if the node dies: the device can only release it by itself"
        case "preset":
            return "limit not held if the node dies: the device takes what its installer has preset"
        case "stop" if not is_armed:
            return "limit not held if the node dies: the device can only stop by itself, arm_fallback is off"
        case _:
            return None


def _with_loops(devices: Mapping[str, Planned], loops: Mapping[str, PlannedLoop]) -> dict[str, Planned]:
    """The devices with what their loops ask of polls and of the fallbacks of their own (rule 14)."""
    asked = dict(_asked(devices, loops))
    under = {
        leaf: (loop, tag) for loop in loops.values() for tag in loop.devices for leaf in loop.devices[tag]
    }
    found = {}
    for tag, planned in devices.items():
        own = planned.settings.keep_alive
        settings = planned.settings
        if own is not None:
            value = planned.config.default_value
            if planned.settings.bounds != planned.own_bounds:
                value = in_bounds(settings, value)
            if tag in under:
                loop, member = under[tag]
                share = loop.share(member, value)
                value = value if share is None else in_bounds(settings, share)
            settings = replace(settings, keep_alive=replace(own, value=value))
        found[tag] = replace(planned, settings=settings, in_loop=asked.get(tag))
    return found


def _asked(devices: Mapping[str, Planned], loops: Mapping[str, PlannedLoop]) -> Iterator[tuple[str, InLoop]]:
    for loop in loops.values():
        for tag in (loop.meter, *(leaf for leaves in loop.devices.values() for leaf in leaves)):
            poll_s = min(devices[tag].config.poll_s, loop.settings.time_step_s)
            if tag == loop.meter and devices[tag].endpoint.protocol is Protocol.MQTT:
                poll_s = min(poll_s, HEARD_WITHIN_S)
            yield tag, InLoop(loop.meter, poll_s)
