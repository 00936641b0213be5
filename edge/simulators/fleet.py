"""A fleet of simulated devices from a file, on real sockets, until somebody ends it.

python -m edge simulate FLEET.json
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TextIO

import msgspec

from edge.profiles.errors import ProfileError
from edge.profiles.loader import load_all
from edge.simulators.modbus import SimulatedDevice
from edge.simulators.plant import KIND_BY_CATEGORY, ChangingWeather, Kind, Site


class FleetDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One device of a fleet file. Devices of one `site` share weather, load and meter."""

    tag: str
    profile: str
    port: int
    unit: int
    observe_port: int
    nameplate_kw: float
    host: str = "127.0.0.1"
    behaves_as: Kind | None = None
    site: str = ""


class Fleet(msgspec.Struct, frozen=True):
    devices: list[FleetDevice]


class FleetError(Exception):
    """A fleet that cannot be simulated; the message names the device."""


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
    devices = build_fleet(fleet)
    record = writes.open("a", buffering=1, encoding="ascii") if writes is not None else None
    started: list[SimulatedDevice] = []
    try:
        for entry, device in zip(fleet.devices, devices, strict=True):
            if record is not None:
                device.on_write = partial(_record_write, record, entry.tag)
            try:
                await device.start()
            except OSError as error:
                raise FleetError(f"{entry.tag}: {error.strerror or error}") from error
            started.append(device)
        sys.stdout.write(f"ready: {len(started)} simulated devices\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        for device in started:
            await device.stop()
        if record is not None:
            record.close()


def _record_write(record: TextIO, tag: str) -> None:
    record.write(f"{tag} {time.monotonic():.6f}\n")


def read_fleet(path: Path) -> Fleet:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Fleet)
    except (OSError, msgspec.DecodeError) as error:
        raise FleetError(f"{path}: {error}") from error


def build_fleet(fleet: Fleet, *, clock: Callable[[], float] = time.monotonic) -> list[SimulatedDevice]:
    """Build the devices, each at its site. A site's load peaks at half of its producers' nameplate."""
    profiles = load_all()
    sites: dict[str, Site] = {}
    devices: list[SimulatedDevice] = []
    for entry in fleet.devices:
        profile = profiles.get(entry.profile)
        if profile is None:
            raise FleetError(f"{entry.tag}: no profile {entry.profile!r}")
        kind = entry.behaves_as or KIND_BY_CATEGORY.get(profile.category, Kind.PV)
        site = sites.setdefault(
            entry.site, Site(weather=ChangingWeather(seed=len(sites)), started_at=clock())
        )
        if kind in (Kind.PV, Kind.WIND):
            site.peak_load_kw += entry.nameplate_kw / 2
        devices.append(
            SimulatedDevice(
                profile=profile,
                unit=entry.unit,
                nameplate_kw=entry.nameplate_kw,
                host=entry.host,
                port=entry.port,
                observe_port=entry.observe_port,
                behaves_as=kind,
                site=site,
                clock=clock,
            )
        )
    return devices


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
