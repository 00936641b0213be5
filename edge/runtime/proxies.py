"""Proxies at a node: who is behind which, what their children made of a setpoint, and what they do together.

A proxy has no line. Its children are decided after it, with its decision in their image, and are written on
their own lines as if each were alone; what became of the proxy's setpoint is what became of it there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edge.core import arbitration
from edge.core.arbitration import Decision
from edge.core.image import PassedOn
from edge.core.instant import Instant
from edge.drivers.proxy import Contribution, together
from edge.profiles.points import Share
from edge.runtime.bus import KeepAliveJob, WriteOutcome, next_ticket
from edge.wire.messages import Code, DeviceResult

if TYPE_CHECKING:
    from edge.profiles.model import Profile
    from edge.runtime.cycle import Unit

# A reading older than 15 min is never served as current.
TOO_OLD_S = 900.0


class Line(Protocol):
    """What the cycle asks of the line of a device; see `edge.runtime.bus.Bus`."""

    name: str

    def write(self, tag: str, value: float, *, verify: bool) -> int: ...

    def withdraw(self, tag: str) -> None: ...

    def reserve(self, tag: str, at_boottime_s: float | None) -> None: ...

    def keep_alive(self, tag: str, job: KeepAliveJob) -> None: ...

    def look(self, tag: str) -> None: ...


class ProxyLine:
    """The line of all proxies: what is written to it, the cycle passes on to their children's lines."""

    name = "proxy"

    def write(self, tag: str, value: float, *, verify: bool) -> int:  # noqa: ARG002 - as a bus has it
        return next_ticket()

    def withdraw(self, tag: str) -> None:
        """Its children are withdrawn with it."""

    def reserve(self, tag: str, at_boottime_s: float | None) -> None:
        """Its children's lines are reserved."""

    def keep_alive(self, tag: str, job: KeepAliveJob) -> None:
        """It has no fallback of its own; its children have theirs."""

    def look(self, tag: str) -> None:
        """There is nothing to read."""


@dataclass(frozen=True, slots=True)
class Child:
    """One device behind a proxy, as the configuration has it. `keys` are the readings of its profile."""

    tag: str
    nameplate_kw: float | None
    keys: frozenset[str]


@dataclass(frozen=True, slots=True)
class Family:
    """A proxy's profile, and all that is behind it directly, excluded or not."""

    profile: Profile
    children: tuple[Child, ...]


class Proxies:
    """The families of the configuration, over the units of the cycle."""

    def __init__(self, units: Mapping[str, Unit]) -> None:
        self._units = units
        self._waiting: Mapping[str, DeviceResult] = {}
        self._families: Mapping[str, Family] = {}
        # The proxies nearest to the devices first, so that each finds its children's part done.
        self._upwards: list[str] = []
        self._depth: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._families)

    def set(self, families: Mapping[str, Family], *, waiting: Mapping[str, DeviceResult]) -> None:
        """Take these families, and what keeps devices from being under control yet."""
        self._families, self._waiting = families, waiting
        parents = {child.tag: tag for tag, family in families.items() for child in family.children}
        self._depth = {}
        for tag in (*families, *parents):
            depth, above = 0, tag
            while above in parents:
                depth, above = depth + 1, parents[above]
            self._depth[tag] = depth
        self._upwards = sorted(families, key=lambda tag: -self._depth[tag])

    # --- who is behind whom

    def commanded(self, proxy: Unit) -> Iterator[Unit]:
        """Those of a proxy's children which its value is passed on to."""
        return (unit for unit in self._children(proxy) if _follows(unit, proxy))

    def _children(self, proxy: Unit) -> Iterator[Unit]:
        family = self._families.get(proxy.key)
        for child in family.children if family is not None else ():
            unit = self._units.get(child.tag)
            if unit is not None:
                yield unit

    def devices(self, proxy: Unit) -> Iterator[Unit]:
        """All that its value reaches in the end, through whatever proxies."""
        for child in self.commanded(proxy):
            if child.is_proxy:
                yield from self.devices(child)
            else:
                yield child

    def downwards(self, units: Iterable[Unit]) -> list[Unit]:
        """These, and all that take their value from any of them, each after its proxy."""
        found: dict[str, Unit] = {}
        for unit in units:
            self._add(unit, found)
        return sorted(found.values(), key=lambda unit: self._depth.get(unit.key, 0))

    def _add(self, unit: Unit, found: dict[str, Unit]) -> None:
        if unit.key not in found:
            found[unit.key] = unit
            if unit.is_proxy:
                for child in self.commanded(unit):
                    self._add(child, found)

    def upwards(self) -> Iterator[Unit]:
        """All proxies, each after those behind it."""
        for tag in self._upwards:
            unit = self._units.get(tag)
            if unit is not None:
                yield unit

    # --- its setpoint

    def passed_on(self, child: Unit) -> PassedOn | None:
        """What a device is asked for by its proxy; None for one that has none, or whose has no value."""
        proxy = self._units.get(child.settings.proxy or "")
        return passed_on_by(None if proxy is None else proxy.decision)

    def refusal(
        self, proxy: Unit, value: float, *, held: float | None
    ) -> tuple[Unit | None, DeviceResult] | None:
        """Why this proxy cannot be held at `value`: nobody takes it, or a child's budget does not cover it.

        `held` is what it is held at now. The child is named where it is one's fault.
        """
        if not any(True for _ in self.devices(proxy)):
            detail = f"no device takes its value{self.passed_over(proxy)}"
            return None, DeviceResult(code=Code.EXCLUDED, detail=detail)
        return self._cannot_bear(proxy, value, held=held)

    def _cannot_bear(
        self, proxy: Unit, value: float, *, held: float | None
    ) -> tuple[Unit | None, DeviceResult] | None:
        value = arbitration.in_bounds(proxy.settings, value)
        held = None if held is None else arbitration.in_bounds(proxy.settings, held)
        for child in self.commanded(proxy):
            if child.is_proxy:
                refusal = self._cannot_bear(child, value, held=held)
                if refusal is not None:
                    return refusal
            elif not arbitration.bears(child.state, value, held=held):
                return child, DeviceResult(code=Code.WEAR)
        return None

    def passed_over(self, proxy: Unit) -> str:
        """Those behind a proxy that its value is not passed on to, for people; empty where there are none."""
        texts = list(self._passed_over(proxy))
        return f"; without {', '.join(texts)}" if texts else ""

    def _passed_over(self, proxy: Unit) -> Iterator[str]:
        family = self._families.get(proxy.key)
        for child in family.children if family is not None else ():
            unit = self._units.get(child.tag)
            if unit is None or child.tag in self._waiting:
                waits = self._waiting.get(child.tag)
                yield f"{child.tag} ({Code.UNKNOWN_DEVICE if waits is None else waits.code})"
            elif not _follows(unit, proxy):
                yield f"{child.tag} ({Code.EXCLUDED})"
            elif unit.is_proxy:
                yield from self._passed_over(unit)

    def outcome(self, proxy: Unit) -> WriteOutcome | None:
        """What became of what was last written to a proxy; None while a child has yet to say."""
        assert proxy.ticket is not None
        failed: list[tuple[str, WriteOutcome]] = []
        for child in self.commanded(proxy):
            if child.ticket is not None:
                if child.ticket_told is None:
                    return None
                failed.append((child.settings.tag, child.ticket_told))
            elif not _stands(child) or (proxy.state.lapse is not None and not _has_arrived(child)):
                # (It has yet to be asked; or has taken a step of its own ramp, and what it falls back to is
                # still ahead.)
                return None
        readback = self._readback(proxy)
        skipped = self.passed_over(proxy)
        if not failed:
            detail = skipped.removeprefix("; ")
            return WriteOutcome(proxy.ticket, proxy.ticket_value, detail=detail, readback=readback)
        return WriteOutcome(
            proxy.ticket,
            proxy.ticket_value,
            code=failed[0][1].code,
            detail="; ".join(f"{tag}: {told.detail}" for tag, told in failed) + skipped,
            readback=readback,
            still_trying=any(told.still_trying for _, told in failed),
        )

    def _readback(self, proxy: Unit) -> float | None:
        """What its children hold, each weighing as much as its nameplate; None where one does not tell."""
        family = self._families.get(proxy.key)
        if family is None:
            return None
        nameplates = {child.tag: child.nameplate_kw for child in family.children}
        held = [
            Contribution(child.image.readback, nameplates.get(child.settings.tag))
            for child in self.commanded(proxy)
        ]
        return together(held, how="mean")

    # --- its readings

    def sum_up(
        self, now: Instant
    ) -> Iterator[tuple[Unit, dict[str, tuple[float | None, Instant]], bool | None]]:
        """Of each proxy its readings, each as old as the oldest in it, and whether anybody behind it is here.

        To be consumed one by one: a proxy of proxies takes what was set before.
        """
        for proxy in self.upwards():
            family = self._families[proxy.key]
            units = list(self._children(proxy))
            seen = [unit.reachable for unit in units]
            reachable = True if True in seen else (False if False in seen else None)
            readings = {}
            for key, point in family.profile.telemetry.items():
                share = family.profile.points[point]
                assert isinstance(share, Share)
                readings[key] = self._share(family, share, now)
            yield proxy, readings, reachable

    def _share(self, family: Family, share: Share, now: Instant) -> tuple[float | None, Instant]:
        found, at = [], now
        for child in family.children:
            if share.reading not in child.keys:
                continue
            unit = self._units.get(child.tag)
            told = unit.readings.get(share.reading) if unit is not None and unit.reachable else None
            if told is not None and now.boottime_s - told.at.boottime_s > TOO_OLD_S:
                told = None
            found.append(Contribution(None if told is None else told.value, child.nameplate_kw))
            if told is not None and told.at.boottime_s < at.boottime_s:
                at = told.at
        return together(found, how=share.how), at


def passed_on_by(decision: Decision | None) -> PassedOn | None:
    """What the children of a proxy with this decision are asked for; None where it has no value."""
    if decision is None or decision.value is None or decision.source is None:
        return None
    return PassedOn(
        value=decision.value,
        target=decision.value if decision.target is None else decision.target,
        source=decision.source,
        request_id=decision.request_id,
        until_boottime_s=decision.until_boottime_s,
        until_utc=decision.until_utc,
    )


def _follows(unit: Unit, proxy: Unit) -> bool:
    """Tell whether this device takes its value from this proxy now."""
    return unit.settings.proxy == proxy.key and unit.settings.is_controlled and unit.state.retirement is None


def _stands(child: Unit) -> bool:
    """Tell whether a device has confirmed what it was decided to be held at."""
    decision, in_force = child.decision, child.state.in_force
    if decision is None or in_force is None:
        return False
    return in_force.confirmed and in_force.value == decision.value


def _has_arrived(child: Unit) -> bool:
    decision = child.decision
    return decision is None or decision.value == decision.target
