"""A fleet of simulated devices from a file, on real sockets, until somebody ends it.

python -m edge simulate FLEET.json
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

import msgspec

from edge.plant import KIND_BY_CATEGORY, ChangingWeather, Kind, Site
from edge.profiles.errors import ProfileError
from edge.profiles.loader import load_all, load_bodies
from edge.profiles.model import Profile
from edge.profiles.points import Protocol
from edge.profiles.reading import profile_from_builtins
from edge.simulators.device import Simulated
from edge.simulators.http_json import SimulatedHttp
from edge.simulators.modbus import SimulatedDevice
from edge.simulators.modbus_rtu import SimulatedLine
from edge.simulators.mqtt import SimulatedMqttDevice
from edge.simulators.sunspec import BASES
from edge.simulators.switchboard import Observer, Switchboard
from edge.simulators.xml_da import SimulatedXmlDa
from edge.wire.session import PORTS


class FleetDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One device of a fleet file. Devices of one `site` share weather, load and meter.

    `protocol`: by which it is reached where its profile allows several; empty: the profile's own. `url`: of a
    broker, for devices that are clients of one. `username` and `password`: what it wants to be told, or tells
    the broker. `parameters`: what the profile leaves open; else its defaults and examples. Devices of one
    `line` share a serial line, which is served as RTU over TCP on their common `port`. Ports of 0 are drawn.
    `endurance` and `sunspec_base`: see `SimulatedDevice`.
    """

    tag: str
    profile: str
    nameplate_kw: float
    protocol: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    unit: int = 1
    observe_port: int = 0
    url: str = ""
    username: str = ""
    password: str = ""
    parameters: dict[str, float | str] = {}
    line: str = ""
    behaves_as: Kind | None = None
    site: str = ""
    endurance: int | None = None
    sunspec_base: int = BASES[0]


class Fleet(msgspec.Struct, frozen=True):
    """`control_port`: where its switchboard listens, on loopback only; 0: it has none."""

    devices: list[FleetDevice]
    control_port: int = 0


class FleetError(Exception):
    """A fleet that cannot be simulated; the message names the device."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a device is built with, whatever it speaks."""

    profile: Profile
    kind: Kind
    site: Site
    clock: Callable[[], float]


def _modbus(entry: FleetDevice, setting: Setting) -> Simulated:
    return SimulatedDevice(
        profile=setting.profile,
        unit=entry.unit,
        nameplate_kw=entry.nameplate_kw,
        host=entry.host,
        port=entry.port,
        observe_port=entry.observe_port,
        behaves_as=setting.kind,
        site=setting.site,
        clock=setting.clock,
        on_line=bool(entry.line),
        endurance=entry.endurance,
        sunspec_base=entry.sunspec_base,
    )


def _mqtt(entry: FleetDevice, setting: Setting) -> Simulated:
    if urlsplit(entry.url).scheme not in PORTS:
        raise FleetError(
            f"{entry.tag}: expected the url of its broker, mqtt://HOST[:PORT], not {entry.url!r}"
        )
    return SimulatedMqttDevice(
        profile=setting.profile,
        nameplate_kw=entry.nameplate_kw,
        url=entry.url,
        username=entry.username,
        password=entry.password,
        behaves_as=setting.kind,
        site=setting.site,
        clock=setting.clock,
    )


def _on_the_web(
    kind: type[SimulatedXmlDa | SimulatedHttp], entry: FleetDevice, setting: Setting
) -> Simulated:
    return kind(
        profile=setting.profile,
        nameplate_kw=entry.nameplate_kw,
        host=entry.host,
        port=entry.port,
        username=entry.username,
        password=entry.password,
        behaves_as=setting.kind,
        site=setting.site,
        clock=setting.clock,
    )


# Protocol -> what builds a device that speaks it. One that speaks RTU hangs on a line.
BUILDERS: dict[Protocol, Callable[[FleetDevice, Setting], Simulated]] = {
    Protocol.MODBUS_TCP: _modbus,
    Protocol.MODBUS_RTU: _modbus,
    Protocol.MQTT: _mqtt,
    Protocol.XML_DA: partial(_on_the_web, SimulatedXmlDa),
    Protocol.HTTP: partial(_on_the_web, SimulatedHttp),
}


class SimulatedFleet:
    """Devices by tag, the lines they hang on, what shows them and what breaks them."""

    def __init__(self, *, control_port: int | None = None) -> None:
        self.devices: dict[str, Simulated] = {}
        self.lines: dict[str, SimulatedLine] = {}
        self.observers: dict[str, Observer] = {}
        self.switchboard = Switchboard(self.devices, port=control_port) if control_port is not None else None

    async def start(self) -> None:
        """Start all; `FleetError` names the one that cannot listen, and what has started still runs."""
        on_lines = {id(device) for line in self.lines.values() for device in line.devices.values()}
        parts: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            *((name, partial(line.start, tcp=True)) for name, line in self.lines.items()),
            *((tag, one.start) for tag, one in self.devices.items() if id(one) not in on_lines),
            *((f"observer of {tag}", observer.start) for tag, observer in self.observers.items()),
        ]
        if self.switchboard is not None:
            parts.append(("switchboard", self.switchboard.start))
        for name, start in parts:
            try:
                await start()
            except OSError as error:
                raise FleetError(f"{name}: {error.strerror or error}") from error

    async def stop(self) -> None:
        """Stop all, what has not started as well."""
        if self.switchboard is not None:
            await self.switchboard.stop()
        for observer in self.observers.values():
            await observer.stop()
        for device in self.devices.values():
            await device.stop()
        for line in self.lines.values():
            await line.stop()


async def run_fleet(path: Path, *, writes: Path | None = None) -> None:
    """Simulate all devices of a fleet file until SIGTERM or SIGINT; one line says when they are ready.

    `writes`: append a line `TAG SECONDS` to this file at each write that took effect, on the host's monotonic
    clock, so that a benchmark can tell when a command reached its register.
    """
    fleet = read_fleet(path)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    simulated = build_fleet(fleet)
    record = writes.open("a", buffering=1, encoding="ascii") if writes is not None else None
    try:
        if record is not None:
            for tag, device in simulated.devices.items():
                device.on_write = partial(_record_write, record, tag)
        await simulated.start()
        sys.stdout.write(f"ready: {len(simulated.devices)} simulated devices\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await simulated.stop()
        if record is not None:
            record.close()


def _record_write(record: TextIO, tag: str) -> None:
    record.write(f"{tag} {time.monotonic():.6f}\n")


def read_fleet(path: Path) -> Fleet:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Fleet)
    except (OSError, msgspec.DecodeError) as error:
        raise FleetError(f"{path}: {error}") from error


def build_fleet(fleet: Fleet, *, clock: Callable[[], float] = time.monotonic) -> SimulatedFleet:
    """Build the devices, each at its site. A site's load peaks at half of its producers' nameplate.

    `FleetError` names the device that cannot be.
    """
    profiles = _Profiles()
    sites: dict[str, Site] = {}
    simulated = SimulatedFleet(control_port=fleet.control_port or None)
    for entry in fleet.devices:
        if entry.tag in simulated.devices:
            raise FleetError(f"{entry.tag}: there are two of this tag")
        profile = profiles.of(entry)
        kind = entry.behaves_as or KIND_BY_CATEGORY.get(profile.category, Kind.PV)
        site = sites.setdefault(
            entry.site, Site(weather=ChangingWeather(seed=len(sites)), started_at=clock())
        )
        if kind in (Kind.PV, Kind.WIND):
            site.peak_load_kw += entry.nameplate_kw / 2
        builder = BUILDERS.get(profile.protocol)
        if builder is None:
            raise FleetError(f"{entry.tag}: nothing simulates {profile.protocol.value}")
        device = builder(entry, Setting(profile=profile, kind=kind, site=site, clock=clock))
        simulated.devices[entry.tag] = device
        if profile.protocol is Protocol.MODBUS_RTU:
            assert isinstance(device, SimulatedDevice)
            _hang(simulated, entry, device, clock=clock)
        if not device.shows_itself:
            simulated.observers[entry.tag] = Observer(
                device, tag=entry.tag, host=entry.host, port=entry.observe_port
            )
    return simulated


def _hang(
    simulated: SimulatedFleet, entry: FleetDevice, device: SimulatedDevice, *, clock: Callable[[], float]
) -> None:
    line = simulated.lines.get(entry.line)
    if line is None:
        line = simulated.lines[entry.line] = SimulatedLine(host=entry.host, port=entry.port, clock=clock)
    elif (line.host, line.port) != (entry.host, entry.port):
        raise FleetError(f"{entry.tag}: line {entry.line!r} is at {line.host}:{line.port}")
    if entry.unit in line.devices:
        raise FleetError(f"{entry.tag}: unit {entry.unit} of line {entry.line!r} is taken")
    line.add(device)


class _Profiles:
    """Profiles with each device's own parameters; those of equal ones are one object, which costs less."""

    def __init__(self) -> None:
        self._all = load_all()
        # As they are in their files, their parameters open; read once somebody gives some.
        self._bodies: dict[str, dict[str, Any]] | None = None
        self._bound: dict[tuple[str, str, bytes], Profile] = {}

    def of(self, entry: FleetDevice) -> Profile:
        profile = self._all.get(entry.profile)
        if profile is None:
            raise FleetError(f"{entry.tag}: no profile {entry.profile!r}")
        protocol = _protocol(entry, profile)
        key = (entry.profile, protocol.value, msgspec.json.encode(entry.parameters, order="sorted"))
        bound = self._bound.get(key)
        if bound is None:
            bound = self._with_parameters(entry) if entry.parameters else profile
            self._bound[key] = bound = msgspec.structs.replace(bound, protocol=protocol)
        return bound

    def _with_parameters(self, entry: FleetDevice) -> Profile:
        if self._bodies is None:
            self._bodies = load_bodies()
        examples = {
            name: one.example
            for name, one in self._all[entry.profile].parameters.items()
            if one.default is None and one.example is not None
        }
        try:
            return profile_from_builtins(self._bodies[entry.profile], {**examples, **entry.parameters})
        except ProfileError as error:
            raise FleetError(f"{entry.tag}: {error}") from error


def _protocol(entry: FleetDevice, profile: Profile) -> Protocol:
    """How this device is reached: RTU on a line, else as it says, else as its profile says."""
    wanted = entry.protocol or (Protocol.MODBUS_RTU.value if entry.line else profile.protocol.value)
    known = {protocol.value: protocol for protocol in profile.protocols}
    if wanted not in known:
        raise FleetError(f"{entry.tag}: {entry.profile} is reached by {', '.join(known)}, not by {wanted!r}")
    if (wanted == Protocol.MODBUS_RTU.value) != bool(entry.line):
        raise FleetError(f"{entry.tag}: a line and {Protocol.MODBUS_RTU.value} go together")
    return known[wanted]


def main(argv: Sequence[str]) -> int:
    """`python -m edge simulate FLEET.json`."""
    parser = argparse.ArgumentParser(prog="edge simulate", description="Simulate devices on real sockets.")
    parser.add_argument("fleet", type=Path, metavar="FLEET.json")
    parser.add_argument(
        "--record-writes", type=Path, metavar="FILE", help="append `TAG SECONDS` at each write"
    )
    arguments = parser.parse_args(argv)
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(run_fleet(arguments.fleet, writes=arguments.record_writes))
    except (FleetError, ProfileError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
