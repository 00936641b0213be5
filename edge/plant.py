"""What devices do that are no hardware: sun, clouds, wind and load over time, machines that follow limits.

Pure: time comes in as an argument, in seconds of any one clock, and equal arguments give equal plants. A
machine moves only when somebody looks at it, so that a thousand idle ones cost nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

# A simulated day lasts an hour and has no night, so that a limit shows its effect whenever somebody looks.
DAY_S = 3600.0
# Machines that nobody looked at for long are moved in at most this many steps.
MAX_STEPS = 120


class Kind(StrEnum):
    PV = "pv"
    BATTERY = "battery"
    WIND = "wind"
    CHARGER = "charger"
    METER = "meter"


KIND_BY_CATEGORY = {
    "inverter": Kind.PV,
    "battery": Kind.BATTERY,
    "wind_turbine": Kind.WIND,
    "ev_charger": Kind.CHARGER,
    "meter": Kind.METER,
}


class Weather(Protocol):
    def sun(self, t: float) -> float:
        """Irradiance, 0..1 of what gives nameplate power."""

    def wind_ms(self, t: float) -> float:
        """Wind speed at hub height."""

    def load(self, t: float) -> float:
        """Consumption, 0..1 of the site's peak load."""


@dataclass(frozen=True, slots=True)
class SteadyWeather:
    """Noon that does not end."""

    irradiance: float = 1.0
    wind_speed_ms: float = 13.0
    load_share: float = 0.5

    def sun(self, t: float) -> float:  # noqa: ARG002 - steady
        return self.irradiance

    def wind_ms(self, t: float) -> float:  # noqa: ARG002
        return self.wind_speed_ms

    def load(self, t: float) -> float:  # noqa: ARG002
        return self.load_share


@dataclass(frozen=True, slots=True)
class ChangingWeather:
    """A day with passing clouds, gusts and a working load. `seed` gives each site its own."""

    seed: int = 0

    def sun(self, t: float) -> float:
        # It begins shortly before noon.
        clear = 0.55 + 0.43 * math.cos(2 * math.pi * (t / DAY_S - 0.05))
        cover = _wander(t / 240.0, self.seed)
        # Clouds have edges: most of the time the sky is open, then it closes within seconds.
        cloud = 1 / (1 + math.exp(-12 * (cover - 0.45)))
        return max(0.0, min(1.0, clear * (1 - 0.7 * cloud) + 0.01 * _wander(t / 7.0, self.seed + 1)))

    def wind_ms(self, t: float) -> float:
        return max(
            0.0, 8.5 + 3.0 * _wander(t / 700.0, self.seed + 2) + 1.2 * _wander(t / 25.0, self.seed + 3)
        )

    def load(self, t: float) -> float:
        working = 0.55 + 0.2 * math.sin(2 * math.pi * (t / DAY_S - 0.2))
        machine = 0.15 if _wander(t / 90.0, self.seed + 4) > 0.2 else 0.0  # noqa: PLR2004 - a big consumer starts
        return max(0.05, min(1.0, working + machine + 0.03 * _wander(t / 11.0, self.seed + 5)))


def _wander(x: float, seed: int) -> float:
    """Smooth, repeatable, -1..1 and without a period that anyone would notice."""
    phase = 1.7 * seed
    return (
        math.sin(x + phase) + 0.6 * math.sin(2.3 * x + 2.1 * phase) + 0.4 * math.sin(5.1 * x + 0.7 * phase)
    ) / 2.0


def wind_power_share(speed_ms: float) -> float:
    """Share of rated power of a common turbine: cut-in 3 m/s, rated at 12, cut-out at 25."""
    cut_in, rated, cut_out = 3.0, 12.0, 25.0
    if speed_ms < cut_in or speed_ms >= cut_out:
        return 0.0
    return min(1.0, (speed_ms**3 - cut_in**3) / (rated**3 - cut_in**3))


@dataclass(slots=True)
class Site:
    """What the devices of one site share: weather, load, and the point of connection."""

    weather: Weather = field(default_factory=SteadyWeather)
    peak_load_kw: float = 0.0
    started_at: float = 0.0
    machines: list[Machine] = field(default_factory=list)

    def load_kw(self, now: float) -> float:
        return self.peak_load_kw * self.weather.load(now - self.started_at)

    def export_kw(self, now: float) -> float:
        """Power at the point of connection, positive towards the grid."""
        for machine in self.machines:
            machine.advance(now)
        return sum(machine.power_kw for machine in self.machines) - self.load_kw(now)


@dataclass(slots=True)
class Machine:
    """One device's physics. `limit_pct` acts on its active power with a first-order lag of `lag_s`.

    Power is positive towards the grid. Energies count what passed since the start.
    """

    kind: Kind
    nameplate_kw: float
    site: Site
    lag_s: float = 0.5
    capacity_kwh: float = 0.0
    limit_pct: float = 100.0
    power_kw: float = 0.0
    exported_kwh: float = 0.0
    imported_kwh: float = 0.0
    charge_pct: float = 60.0
    _at: float | None = None

    def __post_init__(self) -> None:
        self.capacity_kwh = self.capacity_kwh or 2 * self.nameplate_kw
        if self.kind is not Kind.METER:
            self.site.machines.append(self)

    def advance(self, now: float) -> None:
        """Bring the machine to this moment; the first look finds it settled."""
        if self.kind is Kind.METER:
            self._measure(now)
        elif self._at is None:
            self.power_kw = self._wanted_kw(now)
        elif now > self._at:
            steps = max(1, min(MAX_STEPS, math.ceil(now - self._at)))
            dt = (now - self._at) / steps
            for step in range(1, steps + 1):
                self._move(self._at + step * dt, dt)
        self._at = now

    def values(self, now: float) -> dict[str, float]:
        """What there is to measure of it, by canonical key; call after `advance`."""
        t = now - self.site.started_at
        return {
            "P_kW": self.power_kw,
            "E_kWh": self.exported_kwh + self.imported_kwh,
            "E_export_kWh": self.exported_kwh,
            "E_import_kWh": self.imported_kwh,
            "SoC_pct": self.charge_pct,
            "V_Wind_m/s": self.site.weather.wind_ms(t),
        }

    def _move(self, now: float, dt: float) -> None:
        wanted = self._wanted_kw(now)
        self.power_kw += (wanted - self.power_kw) * (1 - math.exp(-dt / self.lag_s))
        self._count(dt)
        if self.kind is Kind.BATTERY:
            moved_pct = 100 * self.power_kw * dt / 3600 / self.capacity_kwh
            self.charge_pct = max(0.0, min(100.0, self.charge_pct - moved_pct))

    def _measure(self, now: float) -> None:
        self.power_kw = self.site.export_kw(now)
        if self._at is not None:
            self._count(now - self._at)

    def _count(self, dt: float) -> None:
        energy_kwh = self.power_kw * dt / 3600
        self.exported_kwh += max(0.0, energy_kwh)
        self.imported_kwh += max(0.0, -energy_kwh)

    def _wanted_kw(self, now: float) -> float:
        """Where the power goes if nothing changes any more: what is there to give, under the limit."""
        t = now - self.site.started_at
        weather = self.site.weather
        cap_kw = self.nameplate_kw * self.limit_pct / 100
        match self.kind:
            case Kind.PV:
                return min(self.nameplate_kw * weather.sun(t), cap_kw)
            case Kind.WIND:
                return min(self.nameplate_kw * wind_power_share(weather.wind_ms(t)), cap_kw)
            case Kind.CHARGER:
                # Cars take less as they fill up.
                return -min(self.nameplate_kw * (0.75 + 0.2 * _wander(t / 300.0, 6)), cap_kw)
            case Kind.BATTERY:
                return self._battery_kw(t, cap_kw)
            case Kind.METER:  # pragma: no cover - measures, wants nothing
                return 0.0

    def _battery_kw(self, t: float, cap_kw: float) -> float:
        # It charges around noon and discharges towards the evening.
        wanted = self.nameplate_kw * 0.8 * math.sin(2 * math.pi * (t / DAY_S + 0.15))
        empty, full = 5.0, 98.0
        if (wanted > 0 and self.charge_pct <= empty) or (wanted < 0 and self.charge_pct >= full):
            return 0.0
        return max(-cap_kw, min(cap_kw, wanted))
