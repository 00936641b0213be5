"""Look at a device without writing to it: over the link for central, and on the command line at the site.

    python -m edge probe --profile sungrow_sg110cx 192.168.1.20 --nameplate-kw 110

reads what the profile knows how to read, and says what is as it should be. Exit codes: 0 all is, or is worth
a look only; 1 something is not, and the device would not be controlled; 2 the question is not understood; 69
the device does not answer. While a node controls the device, ask from its page in the console instead: the
node reads over the connection it has, and many devices take only one.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import structlog

from edge.drivers.base import Driver, Session
from edge.drivers.errors import DeviceRefused
from edge.drivers.probe import Ask, PointReader, Probe
from edge.drivers.registry import DRIVERS, Drivers
from edge.profiles.errors import ProfileError
from edge.profiles.loader import load_bodies, load_body, load_profile
from edge.profiles.parameters import ParameterType, parameters_of
from edge.profiles.points import Value
from edge.runtime.clock import Clock, HostClock, wall
from edge.runtime.config import Planned, Profiles, pace_of, planned_device
from edge.runtime.documents import DocumentRefused
from edge.runtime.fleet import Fleet, LineTaken, Reader
from edge.wire.messages import (
    Code,
    CommandAnswer,
    ProbeCommand,
    ProbeLine,
    ProbeReport,
    SiteConfig,
    Stage,
    Verdict,
)

log = structlog.get_logger()

WITHIN_S = 30.0
EXIT_FAILED = 1
EXIT_NO_ANSWER = 69  # EX_UNAVAILABLE

MODBUS_PORT = 502

# Of a device that belongs to no site yet: nothing of it reaches the device.
NO_SITE = SiteConfig(id="", tag="", curtailment_time_limit_s=60, cyclic_write_timeout_s=300)
ONLY_CHILDREN = "a proxy is nothing but the devices behind it: probe those"


# --- a session of its own -------------------------------------------------------------------------


def _opened(planned: Planned, *, clock: Clock, drivers: Drivers) -> tuple[Session, Driver]:
    """A session and a driver for this device alone, not connected yet."""
    constructors = drivers[planned.endpoint.protocol]
    open_session = constructors.session if planned.endpoint.serial is None else constructors.serial_session
    assert open_session is not None
    session = open_session(**pace_of([planned]).arguments, clock=clock.boottime_s, sleep=clock.sleep)
    driver = constructors.driver(
        session=session,
        profile=planned.profile,
        unit=planned.config.unit,
        nameplate_kw=planned.config.nameplate_kw,
    )
    return session, driver


@asynccontextmanager
async def _own_session(planned: Planned, *, clock: Clock, drivers: Drivers) -> AsyncIterator[Ask]:
    """Read over a session of its own, which is connected with the first question and closed at the end."""
    session, driver = _opened(planned, clock=clock, drivers=drivers)

    async def ask(names: frozenset[str]) -> Mapping[str, Value]:
        if not session.connected:
            await session.connect()
        return await _reads(driver).read_points(names)

    try:
        yield ask
    finally:
        await session.aclose()


def _over_line(reader: Reader, planned: Planned, *, clock: Clock) -> Ask:
    """Read over the line that is there, in its own pauses or the profile's where those are longer."""
    missing_s = planned.profile.min_gap_ms / 1000 - reader.bus.gap_s
    driver = _reads(reader.driver)

    async def ask(names: frozenset[str]) -> Mapping[str, Value]:
        if missing_s > 0:
            await clock.sleep(planned.profile.min_gap_ms / 1000)
        return await reader.bus.ask(lambda: driver.read_points(names))

    return ask


def _reads(driver: Driver) -> PointReader:
    if not isinstance(driver, PointReader):
        raise DeviceRefused("the driver of this protocol has no points to read")
    return driver


async def probed(
    planned: Planned, *, clock: Clock, drivers: Drivers = DRIVERS, reader: Reader | None = None
) -> ProbeReport:
    """Probe a device within 30 s, over the line of `reader` or a session of its own. Never writes."""
    begun, at = clock.boottime_s(), wall(clock.now().utc)

    def look(ask: Ask) -> Probe:
        return Probe(
            planned.profile,
            planned.config.nameplate_kw,
            ask=ask,
            clock=clock.boottime_s,
            default_value=planned.config.default_value,
        )

    if reader is not None:
        looked = look(_over_line(reader, planned, clock=clock))
        await _within(looked)
    else:
        async with _own_session(planned, clock=clock, drivers=drivers) as ask:
            looked = look(ask)
            await _within(looked)
    unit = f" unit {planned.config.unit}" if planned.endpoint.has_units else ""
    return looked.report(where=f"{planned.endpoint}{unit}", at=at, took_s=clock.boottime_s() - begun)


async def _within(looked: Probe) -> None:
    try:
        async with asyncio.timeout(WITHIN_S):
            await looked.run()
    except TimeoutError:
        looked.break_off(f"not done within {WITHIN_S:g} s")


# --- over the link --------------------------------------------------------------------------------


class Unusable(Exception):  # noqa: N818 - states what is the case
    """What a probe asks for cannot be probed: the code for programs, the message for people."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Prober:
    """Answers `cmd/probe`, one at a time."""

    def __init__(self, *, fleet: Fleet, clock: Clock) -> None:
        self._fleet = fleet
        self._clock = clock
        # The newest one, and its answer once it has one: the broker may deliver a command twice.
        self._newest = ""
        self._answer: CommandAnswer | None = None
        self._under_way = False

    def repeats(self, command: ProbeCommand) -> tuple[bool, CommandAnswer | None]:
        """Tell whether this is the newest command again, and its answer where there is one by now."""
        return command.id == self._newest, self._answer if command.id == self._newest else None

    def begin(self, command: ProbeCommand) -> Callable[[], Awaitable[CommandAnswer]]:
        """Take up a probe; what is returned carries it out. `Unusable` where it cannot be done."""
        if self._under_way:
            raise Unusable(Code.BUSY, "this node is probing another device; ask again when it is done")
        planned = self._planned(command)
        try:
            reader = self._fleet.reader(planned)
        except LineTaken as error:
            raise Unusable(Code.UNUSABLE, str(error)) from error
        self._under_way, self._newest, self._answer = True, command.id, None
        return lambda: self._carry_out(command, planned, reader)

    def _planned(self, command: ProbeCommand) -> Planned:
        plan = self._fleet.plan
        if plan is None:
            raise Unusable(Code.UNUSABLE, "this node has no configuration yet")
        if command.device:
            planned = self._fleet.device(command.device)
            if planned is None:
                raise Unusable(
                    Code.UNKNOWN_DEVICE,
                    "it is not in the configuration that this node runs, or cannot be used as it is there",
                )
            return _with_hardware(planned)
        if command.candidate is None or command.profile is None:
            raise Unusable(Code.UNUSABLE, "neither a device nor a candidate with its profile")
        name = str(command.candidate.get("profile"))
        try:
            return _with_hardware(
                planned_device(command.candidate, plan.site, Profiles({name: command.profile}))
            )
        except DocumentRefused as error:
            raise Unusable(Code.UNUSABLE, str(error)) from error

    async def _carry_out(
        self, command: ProbeCommand, planned: Planned, reader: Reader | None
    ) -> CommandAnswer:
        try:
            report = await probed(planned, clock=self._clock, drivers=self._fleet.drivers, reader=reader)
            answer = CommandAnswer(id=command.id, stage=Stage.DONE, probe=report)
        except Exception as error:  # whatever a profile brings to light: nothing of it may end the node
            log.exception("probe failed", device=planned.config.tag)
            detail = f"the probe itself failed: {error}"
            answer = CommandAnswer(id=command.id, stage=Stage.REFUSED, code=Code.UNUSABLE, detail=detail)
        finally:
            self._under_way = False
        self._answer = answer
        return answer


def _with_hardware(planned: Planned) -> Planned:
    """`Unusable` for a proxy: there is nothing to look at."""
    if planned.is_proxy:
        raise Unusable(Code.UNUSABLE, ONLY_CHILDREN)
    return planned


# --- on the command line --------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """`python -m edge probe`: look at a device without writing to it."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        body = _body(options.profile)
        device = _device(options, body)
        planned = _with_hardware(planned_device(device, NO_SITE, Profiles({device["profile"]: body})))
    except (ProfileError, DocumentRefused, Unusable, OSError, ValueError) as error:
        parser.error(str(error))
    report = asyncio.run(probed(planned, clock=HostClock(trust_host=True)))
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(report)).decode())  # noqa: T201 - the answer
    else:
        print("\n".join(report_lines(report)))  # noqa: T201 - the answer
    answered = any(line.part != "answers" and line.value is not None for line in report.lines)
    if report.verdict is not Verdict.FAILED:
        return 0
    return EXIT_FAILED if answered else EXIT_NO_ANSWER


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m edge probe", description=main.__doc__)
    parser.add_argument("--profile", required=True, help="a profile's name, or a file")
    parser.add_argument("host", nargs="?", default="", metavar="HOST", help="name or address of the device")
    parser.add_argument("--port", type=int, help="default: the profile's")
    parser.add_argument("--unit", type=int, help="default: the profile's")
    parser.add_argument("--nameplate-kw", type=float, help="its rated power, as it would be configured")
    parser.add_argument("--protocol", default="", help="where the profile knows several; default: its first")
    parser.add_argument("--serial-port", default="", help="in place of a host: a path below /dev")
    parser.add_argument("--baud-rate", type=int, help="default: the profile's")
    parser.add_argument("--parity", choices=("none", "even", "odd"), help="default: the profile's")
    parser.add_argument("--stop-bits", type=int, choices=(1, 2), help="default: the profile's")
    parser.add_argument("--url", default="", help="of an MQTT broker, XML-DA or HTTP server")
    parser.add_argument("--username", default="")
    parser.add_argument("--password-file", type=Path, help="file with the password")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the profile"
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    return parser


def _body(profile: str) -> dict[str, Any]:
    path = Path(profile)
    if path.suffix in (".yaml", ".yml"):
        load_profile(path)
        return load_body(path)
    bodies = load_bodies()
    if profile not in bodies:
        known = ", ".join(sorted(bodies))
        raise ValueError(f"--profile {profile}: there is none of this name; there are: {known}")
    return bodies[profile]


def _device(options: argparse.Namespace, body: Mapping[str, Any]) -> dict[str, Any]:
    """The device of the command line as a configuration would have it; defaults are the profile's."""
    device: dict[str, Any] = {
        "id": "probe",
        "tag": "PROBE",
        "category": str(body.get("category")),
        "profile": str(body.get("name")),
        "protocol": options.protocol,
        "host": options.host,
        "port": options.port or body.get("default_port", MODBUS_PORT),
        "unit": body.get("default_unit", 1) if options.unit is None else options.unit,
        "serial_port": options.serial_port,
        "baud_rate": options.baud_rate,
        "parity": options.parity,
        "stop_bits": options.stop_bits,
        "url": options.url or (options.host if "://" in options.host else "") or body.get("default_url", ""),
        "username": options.username,
        "parameters": _parameters(options.set, body),
        "nameplate_kw": options.nameplate_kw,
        "poll_s": 1.0,
    }
    for key in ("min_value", "max_value", "default_value"):
        if key in body:
            device[key] = float(body[key])
    if options.password_file is not None:
        device["password"] = options.password_file.read_text(encoding="utf-8").strip()
    return device


def _parameters(given: Sequence[str], body: Mapping[str, Any]) -> dict[str, float | str]:
    known = parameters_of(body)
    values: dict[str, float | str] = {}
    for text in given:
        name, is_one, value = text.partition("=")
        if not is_one:
            raise ValueError(f"--set {text}: expected NAME=VALUE")
        kind = known[name].type if name in known else ParameterType.TEXT
        try:
            values[name] = value if kind is ParameterType.TEXT else float(value)
        except ValueError:
            raise ValueError(f"--set {text}: expected a number") from None
    return values


def report_lines(report: ProbeReport) -> list[str]:
    """The report as people read it: a table, the worst of it in the last line."""
    rows = [_row(line) for line in report.lines]
    head = ("", "name", "maker's", "value", "expected", "")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(5)]
    lines = [f"{report.title} at {report.where}", ""]
    for row in (head, *rows):
        cells = [row[column].ljust(widths[column]) for column in range(5)]
        lines.append("  ".join((*cells, row[5])).rstrip())
    worst = {
        Verdict.OK: "ok: all is as the profile expects",
        Verdict.WARNING: "warning: worth a look before the device is controlled",
        Verdict.FAILED: "FAILED: the device would not be controlled as it is",
    }[report.verdict]
    return [*lines, "", f"{worst} ({report.took_s:.1f} s, nothing was written)"]


def _row(line: ProbeLine) -> tuple[str, ...]:
    verdict = "FAILED" if line.verdict is Verdict.FAILED else line.verdict.value
    value = ""
    if line.value is not None:
        # A code or a marker whole, however many digits it has.
        shown = line.value if isinstance(line.value, str) else f"{line.value:.10g}"
        value = f"{shown} {line.unit}".strip()
    name = " ".join(filter(None, (line.key, line.name)))
    return verdict, f"{line.part}: {name}" if name else line.part, line.doc, value, line.expected, line.detail


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
