"""What devices do that are no hardware: sun, clouds, wind and load over time, machines that follow limits.

Pure: time comes in as an argument, in seconds of any one clock, and equal arguments give equal plants. A
machine moves only when somebody looks at it, so that a thousand idle ones cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Protocol

from edge.profiles.model import ValueKind

# A simulated day lasts an hour and has no night, so that a limit shows its effect whenever somebody looks.
DAY_S = 3600.0
# Machines that nobody looked at for long are moved in at most this many steps.
MAX_STEPS = 120


class Kind(StrEnum):
    PV = "pv"
    # Several inverters behind one master, which hands a limit on to them.
    LOGGER = "logger"
    BATTERY = "battery"
    WIND = "wind"
    CHARGER = "charger"
    GENSET = "genset"
    HEAT_PUMP = "heat_pump"
    LOAD = "load"
    METER = "meter"


class Takes(StrEnum):
    """What a machine's setpoint means."""

    CAP = "cap"  # percent of nameplate that the power's magnitude stays below
    SIGNED = "signed"  # percent of nameplate that a battery gives; below zero, takes
    MODE = "mode"  # one of a heat pump's modes


# By the kind of a device's value; with any other it is a cap.
TAKES: dict[ValueKind | None, Takes] = {
    ValueKind.SIGNED_SETPOINT_PCT: Takes.SIGNED,
    ValueKind.OPERATING_MODE: Takes.MODE,
}


class HeatPumpMode(IntEnum):
    """The four states of SG Ready."""

    LOCK = 1
    NORMAL = 2
    RECOMMEND = 3
    FORCE = 4


KIND_BY_CATEGORY = {
    "inverter": Kind.PV,
    "logger": Kind.LOGGER,
    "plant_controller": Kind.LOGGER,
    "battery": Kind.BATTERY,
    "wind_turbine": Kind.WIND,
    "ev_charger": Kind.CHARGER,
    "generator": Kind.GENSET,
    "genset": Kind.GENSET,
    "heat_pump": Kind.HEAT_PUMP,
    "load": Kind.LOAD,
    "industrial_load": Kind.LOAD,
    "meter": Kind.METER,
    # It measures the same weather, and gives nothing.
    "sensor": Kind.METER,
}
SUNNY = (Kind.PV, Kind.LOGGER)
LAG_S = {Kind.LOGGER: 2.0, Kind.HEAT_PUMP: 5.0}
USUAL_LAG_S = 0.5
VOLTS = 230.0
# A charger has no current between 0 and this (IEC 61851-1).
LEAST_CHARGING_A = 6.0
# A diesel does not run long below this share, takes this long to start, and no more than this a second.
LEAST_GENSET_SHARE, GENSET_START_S, GENSET_RAMP_PER_S = 0.3, 10.0, 0.1
# What a diesel burns: something for turning, and more for what it gives.
IDLE_L_PER_KWH, FUEL_L_PER_KWH = 0.04, 0.23
# The common rule of SG Ready: a state is kept for at least ten minutes.
KEEPS_MODE_S = 600.0
# The part of a load that can be put off.
CONTROLLABLE_SHARE = 0.6
# A heat pump's tank: what it is kept between in each mode, and how fast it warms and cools.
TANK_DEGC = {
    HeatPumpMode.LOCK: (0.0, 0.0),
    HeatPumpMode.NORMAL: (46.0, 50.0),
    HeatPumpMode.RECOMMEND: (50.0, 54.0),
    HeatPumpMode.FORCE: (60.0, 60.0),
}
WARMS_K_PER_S, COOLS_K_PER_S = 0.012, 0.004


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
class DaysAndNights(SteadyWeather):
    """The sun rises at 0 and sets half a day later, without a cloud."""

    day_s: float = DAY_S

    def sun(self, t: float) -> float:
        return max(0.0, self.irradiance * math.sin(2 * math.pi * t / self.day_s))


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
    """What the devices of one site share: weather, load, and the point of connection.

    `night` switches the sun off, whatever the weather.
    """

    weather: Weather = field(default_factory=SteadyWeather)
    peak_load_kw: float = 0.0
    started_at: float = 0.0
    machines: list[Machine] = field(default_factory=list)
    night: bool = False

    def sun(self, now: float) -> float:
        return 0.0 if self.night else self.weather.sun(now - self.started_at)

    def wind_ms(self, now: float) -> float:
        return self.weather.wind_ms(now - self.started_at)

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

    Power is positive towards the grid. Energies count what passed since the start. `takes` says what
    `limit_pct` is where it is no cap. `governor` is called before the machine moves, for a device whose limit
    changes by itself. `phases` are those of a charger.
    """

    kind: Kind
    nameplate_kw: float
    site: Site
    lag_s: float = 0.0
    capacity_kwh: float = 0.0
    limit_pct: float = 100.0
    power_kw: float = 0.0
    exported_kwh: float = 0.0
    imported_kwh: float = 0.0
    charge_pct: float = 60.0
    takes: Takes = Takes.CAP
    phases: int = 3
    governor: Callable[[], None] | None = None
    mode: HeatPumpMode = HeatPumpMode.NORMAL
    tank_degc: float = 48.0
    fuel_l: float = 0.0
    running_h: float = 0.0
    _at: float | None = None
    _mode_since: float = -math.inf
    _heating: bool = False
    _starts_at: float | None = None
    _sun: float = 1.0

    def __post_init__(self) -> None:
        self.capacity_kwh = self.capacity_kwh or 2 * self.nameplate_kw
        self.lag_s = self.lag_s or LAG_S.get(self.kind, USUAL_LAG_S)
        if self.kind is not Kind.METER:
            self.site.machines.append(self)

    def advance(self, now: float) -> None:
        """Bring the machine to this moment; the first look finds it settled, and the past stays as it was."""
        if self.governor is not None:
            self.governor()
        if self._at is not None and now < self._at:
            return
        if self.kind is Kind.METER:
            self._measure(now)
        elif self._at is None:
            self._settle(now)
        elif now > self._at:
            steps = max(1, min(MAX_STEPS, math.ceil(now - self._at)))
            began, dt = self._at, (now - self._at) / steps
            for step in range(1, steps + 1):
                self._move(began + step * dt, dt)
        self._at = now

    def value(self, key: str, now: float) -> float | None:
        """One of `QUANTITIES`; None where there is no such. Call after `advance`."""
        quantity = QUANTITIES.get(key)
        return quantity(self, now) if quantity is not None else None

    def values(self, now: float) -> dict[str, float]:
        """What there is to measure of it, by canonical key; call after `advance`."""
        return {key: quantity(self, now) for key, quantity in QUANTITIES.items()}

    @property
    def is_dark(self) -> bool:
        """Tell whether it lives by the sun, and there is none. Call after `advance`."""
        return self.kind in SUNNY and (self.site.night or self._sun <= 0)

    def _settle(self, now: float) -> None:
        if self.kind is Kind.GENSET:
            self._starts_at = -math.inf if self.limit_pct > 0 else None
        elif self.kind is Kind.HEAT_PUMP:
            self._run_heat_pump(now, 0.0)
        self.power_kw = self._wanted_kw(now)

    def _move(self, now: float, dt: float) -> None:
        if self.kind is Kind.GENSET:
            self._run_genset(now, dt)
            self._count(dt)
            return
        if self.kind is Kind.HEAT_PUMP:
            self._run_heat_pump(now, dt)
        wanted = self._wanted_kw(now)
        self.power_kw += (wanted - self.power_kw) * (1 - math.exp(-dt / self.lag_s))
        if self.kind is Kind.BATTERY:
            self._charge(dt)
        self._count(dt)

    def _charge(self, dt: float) -> None:
        """Take the energy out of the battery, or into it; what does not go stops the power."""
        before = self.charge_pct
        wanted_pct = before - 100 * self.power_kw * dt / 3600 / self.capacity_kwh
        self.charge_pct = max(0.0, min(100.0, wanted_pct))
        if self.charge_pct != wanted_pct:
            self.power_kw = (before - self.charge_pct) / 100 * self.capacity_kwh * 3600 / dt

    def _measure(self, now: float) -> None:
        self.power_kw = self.site.export_kw(now)
        if self._at is not None:
            self._count(now - self._at)

    def _count(self, dt: float) -> None:
        energy_kwh = self.power_kw * dt / 3600
        self.exported_kwh += max(0.0, energy_kwh)
        self.imported_kwh += max(0.0, -energy_kwh)
        if self.power_kw:
            self.running_h += dt / 3600

    def _wanted_kw(self, now: float) -> float:
        """Where the power goes if nothing changes any more: what is there to give, under the limit."""
        t = now - self.site.started_at
        weather = self.site.weather
        cap_kw = self.nameplate_kw * self.limit_pct / 100
        match self.kind:
            case Kind.PV | Kind.LOGGER:
                self._sun = self.site.sun(now)
                return min(self.nameplate_kw * self._sun, cap_kw)
            case Kind.WIND:
                return min(self.nameplate_kw * wind_power_share(weather.wind_ms(t)), cap_kw)
            case Kind.CHARGER:
                return -self._charging_kw(t, cap_kw)
            case Kind.BATTERY:
                return self._battery_kw(t, cap_kw)
            case Kind.GENSET:
                least_kw = LEAST_GENSET_SHARE * self.nameplate_kw
                return min(self.nameplate_kw, max(least_kw, cap_kw)) if cap_kw > 0 else 0.0
            case Kind.LOAD:
                demand_kw = self.nameplate_kw * weather.load(t)
                return -min(demand_kw, max(cap_kw, (1 - CONTROLLABLE_SHARE) * demand_kw))
            case Kind.HEAT_PUMP:
                cap_kw = self.nameplate_kw if self.takes is Takes.MODE else cap_kw
                return -min(self.nameplate_kw * 0.9, cap_kw) if self._heating else 0.0
            case Kind.METER:  # pragma: no cover - measures, wants nothing
                return 0.0

    def _charging_kw(self, t: float, cap_kw: float) -> float:
        # Cars take less as they fill up.
        wanted_kw = min(self.nameplate_kw * (0.75 + 0.2 * _wander(t / 300.0, 6)), cap_kw)
        return wanted_kw if wanted_kw * 1000 >= LEAST_CHARGING_A * VOLTS * self.phases else 0.0

    def _battery_kw(self, t: float, cap_kw: float) -> float:
        if self.takes is Takes.SIGNED:
            wanted = cap_kw
        else:
            # It charges around noon and discharges towards the evening.
            wanted = self.nameplate_kw * 0.8 * math.sin(2 * math.pi * (t / DAY_S + 0.15))
        empty, full = 5.0, 98.0
        if (wanted > 0 and self.charge_pct <= empty) or (wanted < 0 and self.charge_pct >= full):
            return 0.0
        most_kw = self.nameplate_kw if self.takes is Takes.SIGNED else cap_kw
        return max(-most_kw, min(most_kw, wanted))

    def _run_genset(self, now: float, dt: float) -> None:
        wanted_kw = self._wanted_kw(now)
        if wanted_kw <= 0:
            self._starts_at = None
        elif self._starts_at is None:
            self._starts_at = now + GENSET_START_S
        if wanted_kw > 0 and self._starts_at is not None and now < self._starts_at:
            wanted_kw = 0.0
        most_kw = GENSET_RAMP_PER_S * self.nameplate_kw * dt
        self.power_kw += max(-most_kw, min(most_kw, wanted_kw - self.power_kw))
        if self.power_kw > 0:
            litres_per_h = IDLE_L_PER_KWH * self.nameplate_kw + FUEL_L_PER_KWH * self.power_kw
            self.fuel_l += litres_per_h * dt / 3600

    def _run_heat_pump(self, now: float, dt: float) -> None:
        if self.takes is Takes.MODE:
            asked = HeatPumpMode(max(1, min(4, round(self.limit_pct))))
            if asked is not self.mode and now - self._mode_since >= KEEPS_MODE_S:
                self.mode, self._mode_since = asked, now
        self.tank_degc += ((WARMS_K_PER_S if self._heating else 0.0) - COOLS_K_PER_S) * dt
        cold, warm = TANK_DEGC[self.mode]
        if self.tank_degc >= warm:
            self._heating = False
        elif self.tank_degc < cold:
            self._heating = True

    # --- what there is to measure

    def reactive_kvar(self) -> float:
        """Motors and chargers need some, inverters give hardly any."""
        return (0.03 if self.power_kw > 0 else 0.2) * self.power_kw

    def phase_kw(self, phase: int) -> float:
        return self.power_kw / self.phases if phase <= self.phases else 0.0

    def volts(self, now: float, phase: int = 0) -> float:
        """To neutral: it rises with what is fed in, and no two phases are the same."""
        rise = 4.0 * self.power_kw / self.nameplate_kw if self.nameplate_kw else 0.0
        return VOLTS + rise + 0.8 * _wander((now - self.site.started_at) / 40.0, phase)

    def amperes(self, now: float, phase: int = 1) -> float:
        """Of one phase, without a sign."""
        if phase > self.phases:
            return 0.0
        return 1000 * math.hypot(self.power_kw, self.reactive_kvar()) / self.phases / self.volts(now)


# One thing there is to measure of a machine at a moment.
Quantity = Callable[[Machine, float], float]


def wind_turbine_rpm(speed_ms: float) -> float:
    """A big rotor turns at a speed that follows the wind up to its rated one."""
    return 0.0 if wind_power_share(speed_ms) == 0 else min(16.0, 1.4 * speed_ms)


def _rpm(machine: Machine, now: float) -> float:
    match machine.kind:
        case Kind.WIND:
            return wind_turbine_rpm(machine.site.wind_ms(now))
        case Kind.GENSET:
            return 1500.0 if machine.power_kw > 0 else 0.0
        case _:
            return 0.0


def _temperature(machine: Machine, now: float) -> float:
    if machine.kind is Kind.HEAT_PUMP:
        return machine.tank_degc
    share = abs(machine.power_kw) / machine.nameplate_kw if machine.nameplate_kw else 0.0
    return 18.0 + 8.0 * machine.site.sun(now) + 22.0 * share


def _dc_volts(machine: Machine) -> float:
    """Of a battery of 16 cells, or of strings of modules."""
    return 48.0 + 0.06 * machine.charge_pct if machine.kind is Kind.BATTERY else 650.0


def _available_kw(machine: Machine, now: float) -> float:
    """What it could give without a limit."""
    match machine.kind:
        case Kind.PV | Kind.LOGGER:
            return machine.nameplate_kw * machine.site.sun(now)
        case Kind.WIND:
            return machine.nameplate_kw * wind_power_share(machine.site.wind_ms(now))
        case Kind.METER:
            return machine.power_kw
        case _:
            return machine.nameplate_kw


# What there is to measure of a machine, by canonical key.
QUANTITIES: dict[str, Quantity] = {
    "P_kW": lambda machine, _: machine.power_kw,
    "P_available_kW": _available_kw,
    "P_setpoint_kW": lambda machine, _: machine.nameplate_kw * machine.limit_pct / 100,
    "P_import_kW": lambda machine, _: max(0.0, -machine.power_kw),
    "P_export_kW": lambda machine, _: max(0.0, machine.power_kw),
    "P_L1_kW": lambda machine, _: machine.phase_kw(1),
    "P_L2_kW": lambda machine, _: machine.phase_kw(2),
    "P_L3_kW": lambda machine, _: machine.phase_kw(3),
    "P_battery_kW": lambda machine, _: machine.power_kw,
    "P_grid_kW": lambda machine, now: machine.site.export_kw(now),
    "P_grid_L1_kW": lambda machine, now: machine.site.export_kw(now) / 3,
    "P_grid_L2_kW": lambda machine, now: machine.site.export_kw(now) / 3,
    "P_grid_L3_kW": lambda machine, now: machine.site.export_kw(now) / 3,
    # Behind an inverter's losses.
    "P_DC_kW": lambda machine, _: (
        machine.power_kw / 0.97 if machine.power_kw > 0 else machine.power_kw * 0.97
    ),
    "Q_kvar": lambda machine, _: machine.reactive_kvar(),
    "E_kWh": lambda machine, _: machine.exported_kwh + machine.imported_kwh,
    "E_day_kWh": lambda machine, _: machine.exported_kwh,
    "E_export_kWh": lambda machine, _: machine.exported_kwh,
    "E_import_kWh": lambda machine, _: machine.imported_kwh,
    "SoC_pct": lambda machine, _: machine.charge_pct,
    "SoH_pct": lambda *_: 97.0,
    "V_Wind_m/s": lambda machine, now: machine.site.wind_ms(now),
    "G_W/m2": lambda machine, now: 1000 * machine.site.sun(now),
    "T_degC": _temperature,
    "T_inside_degC": lambda machine, now: _temperature(machine, now) + 4,
    "T_sink_degC": lambda machine, now: _temperature(machine, now) + 9,
    "U_DC_V": lambda machine, _: _dc_volts(machine),
    "I_DC_A": lambda machine, _: 1000 * machine.power_kw / _dc_volts(machine),
    "U_V": lambda machine, now: machine.volts(now),
    "U_L1_V": lambda machine, now: machine.volts(now, 1),
    "U_L2_V": lambda machine, now: machine.volts(now, 2),
    "U_L3_V": lambda machine, now: machine.volts(now, 3),
    "I_A": lambda machine, now: machine.amperes(now),
    "I_L1_A": lambda machine, now: machine.amperes(now, 1),
    "I_L2_A": lambda machine, now: machine.amperes(now, 2),
    "I_L3_A": lambda machine, now: machine.amperes(now, 3),
    "f_Hz": lambda machine, now: 50 + 0.02 * _wander((now - machine.site.started_at) / 30.0, 9),
    "N_rpm": _rpm,
    "running_h": lambda machine, _: machine.running_h,
    "SG_mode": lambda machine, _: float(machine.mode),
}
