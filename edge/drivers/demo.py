"""Demo devices: no hardware and no socket, but a plant that lives in the node's own process.

All demo devices of a node are one site: they share its sun, wind and load, and a meter among them sees the
sum. Their limits act with a lag, and are forgotten with the process.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping

from edge.drivers.errors import DeviceRefused, DeviceUnreachable
from edge.drivers.points import PointDriver
from edge.plant import KIND_BY_CATEGORY, TAKES, ChangingWeather, Kind, Machine, Site, Takes
from edge.profiles.model import Profile, Step
from edge.profiles.points import Quantity, Value

# The quantity that is a machine's setpoint; every other one is of `edge.plant.QUANTITIES`.
LIMIT = "limit"
USUAL_NAMEPLATE_KW = 50.0
# What the site takes in at most: half of what its producers may give, and no less than this.
LEAST_LOAD_KW = 20.0


class DemoSession:
    """The plant of a node. It is always there; who has not connected is refused, as anywhere else."""

    def __init__(
        self,
        *,
        timeout_s: float,  # noqa: ARG002 - as every session has it; nobody waits here
        min_gap_s: float,  # noqa: ARG002
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],  # noqa: ARG002
    ) -> None:
        self.clock = clock
        self.site = Site(weather=ChangingWeather(), peak_load_kw=LEAST_LOAD_KW, started_at=clock())
        self.commands = 0
        self._connected = False

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def next_command_at(self) -> float:
        return 0.0

    async def connect(self) -> None:
        self._connected = True

    async def aclose(self) -> None:
        self._connected = False

    def machine(self, profile: Profile, nameplate_kw: float) -> Machine:
        """Set up a machine of this profile's category; `take_down` when nobody drives it any more."""
        machine = Machine(
            kind=KIND_BY_CATEGORY.get(profile.category, Kind.PV),
            nameplate_kw=nameplate_kw,
            site=self.site,
            takes=TAKES.get(profile.value_kind, Takes.CAP),
            limit_pct=profile.default_value,
        )
        _load_anew(self.site)
        return machine


def take_down(machine: Machine) -> None:
    """Take a machine from its site."""
    site = machine.site
    site.machines[:] = [other for other in site.machines if other is not machine]
    _load_anew(site)


def _load_anew(site: Site) -> None:
    producers_kw = math.fsum(
        machine.nameplate_kw for machine in site.machines if machine.kind in (Kind.PV, Kind.WIND)
    )
    site.peak_load_kw = max(LEAST_LOAD_KW, producers_kw / 2)


class DemoDriver(PointDriver):
    """One machine of the plant, which is there as long as its driver is."""

    __slots__ = ("__weakref__", "_session", "machine")

    def __init__(
        self,
        *,
        session: DemoSession,
        profile: Profile,
        unit: int,  # noqa: ARG002 - as every driver has it; there is one machine a driver
        nameplate_kw: float | None,
    ) -> None:
        super().__init__(profile=profile, nameplate_kw=nameplate_kw)
        self._session = session
        self.machine = session.machine(profile, nameplate_kw or USUAL_NAMEPLATE_KW)
        # A device that leaves its line is told nothing; its driver is simply let go.
        weakref.finalize(self, take_down, self.machine).atexit = False

    @property
    def _where(self) -> str:
        return "the demo plant"

    @property
    def commands_per_poll(self) -> int:
        return 1

    def _look_for_reconnection(self) -> None:
        """What a connection could have changed, nothing here forgets."""

    def _needed(self, steps: Iterable[Step]) -> frozenset[str]:  # noqa: ARG002 - the protocol's signature
        return frozenset()

    async def _read(self, names: frozenset[str], *, tolerant: bool = False) -> Mapping[str, Value]:
        self._begin()
        values: dict[str, Value] = {}
        for name in names:
            value = self._value(name)
            if value is not None:
                values[name] = value
            elif not tolerant:
                raise DeviceRefused(f"{self._where} has no {self._point(name).quantity!r} ({name})")
        return values

    async def _put(self, values: Mapping[str, Value], *, only_if_different: bool) -> None:
        for name in values:
            if self._point(name).quantity != LIMIT:
                raise DeviceRefused(f"{self._where} takes a {LIMIT!r} only, not {name}")
        if only_if_different and all(self._value(name) == value for name, value in values.items()):
            return
        self._begin()
        self._count(values)
        for name, value in values.items():
            if isinstance(value, float | int):
                point = self._point(name)
                self.machine.limit_pct = point.sign * value / point.scale

    def _begin(self) -> None:
        """Start a command: the machine first moves, under its old limit, up to now."""
        if not self._session.connected:
            raise DeviceUnreachable(f"not connected to {self._where}")
        self._session.commands += 1
        self.machine.advance(self._session.clock())

    def _point(self, name: str) -> Quantity:
        point = self._profile.points[name]
        assert isinstance(point, Quantity)
        return point

    def _value(self, name: str) -> float | None:
        point = self._point(name)
        if point.quantity == LIMIT:
            raw: float | None = self.machine.limit_pct
        else:
            raw = self.machine.value(point.quantity, self._session.clock())
        return None if raw is None else point.sign * raw * point.scale
