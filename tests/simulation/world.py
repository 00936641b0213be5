"""One simulated site: the real node on a virtual clock, with simulated devices, broker and central."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edge.core.commands import WriteClass
from edge.profiles.loader import load_all
from edge.profiles.model import Profile
from edge.profiles.reading import profile_to_builtins
from edge.runtime.clock import Host, HostClock
from edge.runtime.control import Watchers
from edge.runtime.guard import stand_in
from edge.runtime.node import run_node
from edge.runtime.store import Store
from edge.runtime.uploader import Pace
from edge.wire.messages import Command, LogEntry, Stage
from edge.wire.session import Broker, Incoming
from edge.wire.topics import NodeTopics
from tests.simulation.connection import Connection, Inverter, Meter
from tests.simulation.devices import QUICKLY_S, UNREACHABLE, SimulatedDevice, SimulatedPlant, Trouble
from tests.simulation.link import Central, SimulatedBroker
from tests.simulation.loop import VirtualLoop
from tests.simulation.oracle import Leaving, Oracle, Spec

PROFILES = load_all()
TOPICS = NodeTopics("tenant", "11111111-1111-4111-8111-111111111111")
ADDRESS = Broker("broker.invalid", 1883)
A_MORNING = datetime(2026, 3, 2, 10, 0, 0, tzinfo=UTC)
NAMEPLATE_KW = 60.0
LATENCY_S = 0.004
RAMP_PCT_PER_S = 20.0
TOLERANCE = 0.1
# An inverter's way from its command to the power at the connection, and the readings that correct it.
OBEYED_S = 15.0
# What members give and take beside what was reckoned: their registers' steps, and a reading's noise.
HELD_KW = 1.5
# A loop is where it is to be after so long, and as near as this.
MET_S = 40.0
MET_KW = 3.0
# One that lacks sun is left this much above what it gives, in percent, and nobody else has it meanwhile.
LEFT_PCT = 6.0
# A change is carried out within a second; a process that starts reads its devices first.
WITHIN_S = 1.0
START_S = 2.0
A_MOMENT_S = 0.001
# Without the jitter by which thousands of nodes spread their coming back: it is drawn at random.
# A node tries to connect at least every 15 s.
RECONNECTED_S = 16.0
PACE = Pace(jitter_s=0.0)
# Names that are drawn at random: two runs of the same world differ in these alone.
IDENTIFIER = re.compile(rb'"(session|fresh|store|boot)":"[^"]*"')

T = TypeVar("T")
Place = tuple[str, int, int]


class WorldClock(HostClock):
    """The node's own clock, on a host whose clocks are the world's."""

    def __init__(self, world: World) -> None:
        host = Host(
            wall_s=lambda: world.wall().timestamp(),
            boottime_s=lambda: world.loop.time() - world.booted_s,
            kernel_error_s=lambda: 0.001 if world.kernel_vouches else None,
        )
        super().__init__(trust_host=False, host=host)
        self.boot_id = world.boot_id


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the world's diary."""

    at_s: float
    what: str
    detail: str


def profile(
    *, write_class: WriteClass = WriteClass.VOLATILE, gap_s: float = 0.0, writes_per_day: int | None = None
) -> Profile:
    """The smallest profile, with what matters to a simulated device changed."""
    plain = PROFILES["generic_modbus"]
    assert plain.limit is not None
    limit = msgspec.structs.replace(plain.limit, write_class=write_class, writes_per_day=writes_per_day)
    gap_ms = round(gap_s * 1000)
    name = f"simulated_{write_class.value}_{gap_ms}"
    return msgspec.structs.replace(plain, name=name, limit=limit, min_gap_ms=gap_ms)


def meter_profile(**changes: Any) -> Profile:
    """A device that measures its power and takes no setpoint."""
    plain = PROFILES["generic_modbus"]
    points = {"power": plain.points["power"]}
    return msgspec.structs.replace(
        plain, **{"name": "simulated_meter", "category": "meter", "limit": None, "points": points, **changes}
    )


@dataclass
class World:
    """Everything there is. Nothing happens but in `run`."""

    directory: Path
    seed: int = 0
    begin: datetime = A_MORNING
    loop: VirtualLoop = field(init=False)
    rng: random.Random = field(init=False)
    plant: SimulatedPlant = field(init=False)
    broker: SimulatedBroker = field(init=False)
    central: Central = field(init=False)
    oracle: Oracle = field(init=False)
    site: dict[str, Any] = field(init=False)
    raw: dict[str, dict[str, Any]] = field(default_factory=dict)
    loops: list[dict[str, Any]] = field(default_factory=list)
    profiles: dict[str, Profile] = field(default_factory=dict)
    devices: dict[Place, SimulatedDevice] = field(default_factory=dict)
    # Where there is a closed loop: what its meter sees.
    connection: Connection | None = None
    # How often the power there was found to be as the loop is to have it: held below a limit, and met.
    held_below: int = 0
    met: int = 0
    diary: list[Event] = field(default_factory=list)
    # Who else hears what the node says.
    ears: list[Callable[[str, bytes], None]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    booted_s: float = 0.0
    boot_id: str = "boot-1"
    kernel_vouches: bool = True
    wall_shift_s: float = 0.0
    who: str | None = None
    since_s: float = 0.0
    _task: asyncio.Task[None] | None = None
    _yield: asyncio.Event = field(init=False)
    _started: int = 0
    _disks: int = 0
    _disk: Path = field(init=False)

    def __post_init__(self) -> None:
        # The machine has been up for a while.
        self.loop = VirtualLoop(start_s=1000.0)
        self.booted_s = 0.0
        self._epoch = self.begin - timedelta(seconds=1000.0)
        self.rng = random.Random(self.seed)
        self.site = {
            "id": "site-1",
            "tag": "site_a",
            "curtailment_time_limit_s": 60.0,
            "cyclic_write_timeout_s": 300.0,
        }
        self.plant = SimulatedPlant(connect_s=0.002)
        self.oracle = Oracle(topics=TOPICS, now=self.loop.time, utc=self.utc)
        self.broker = SimulatedBroker(
            topics=TOPICS,
            rng=self.rng,
            now=self.loop.time,
            heard=self._heard,
            sent=self._node_sent,
            read=self._node_read,
        )
        self.central = Central(topics=TOPICS, broker=self.broker, now=self.loop.time)
        self._yield = asyncio.Event()
        self._disk = self.directory / "disk-0"

    # --- time ---------------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        return self.loop.time()

    def utc(self, at_s: float | None = None) -> datetime:
        """The node's idea of UTC by the rules, which may be wrong."""
        at_s = self.loop.time() if at_s is None else at_s
        return self._epoch + timedelta(seconds=at_s + self.oracle.shift_s)

    def begin_at(self, utc: datetime) -> None:
        """Set the true time, before anybody looks at a clock."""
        assert self._task is None
        self._epoch = utc - timedelta(seconds=self.loop.time())

    def moment(self, utc: datetime) -> float:
        """When it is, was or will be this time by the node's clock, in the world's seconds."""
        return (utc - self._epoch).total_seconds() - self.oracle.shift_s

    def wall(self) -> datetime:
        """What the wall clock of the machine shows."""
        return self._epoch + timedelta(seconds=self.loop.time() + self.wall_shift_s)

    def run(self, seconds: float) -> None:
        """Let time pass, for everybody."""
        self.loop.elapse(seconds)
        self._look_after_process()

    def run_to(self, utc: datetime) -> None:
        """Let time pass until the node's wall clock shows this."""
        self.run(max(0.0, (utc - self.utc()).total_seconds()))

    def suspend(self, seconds: float) -> None:
        """The machine sleeps: both its clocks go on, and nothing runs."""
        self.loop.skip(seconds)

    def set_wall_clock(self, by_s: float) -> None:
        """Somebody corrects the wall clock, or spoils it."""
        self.note("wall clock set", f"{by_s:+g}")
        self.wall_shift_s += by_s
        self.oracle.clocks_are(wall_shift_s=self.wall_shift_s, vouched=self.kernel_vouches)

    def kernel_knows_time(self, *, vouches: bool) -> None:
        """The kernel finds a source of time, or loses it."""
        self.note("kernel vouches", str(vouches))
        self.kernel_vouches = vouches
        self.oracle.clocks_are(wall_shift_s=self.wall_shift_s, vouched=vouches)

    # --- the diary ----------------------------------------------------------------------------------

    def note(self, what: str, detail: str) -> None:
        self.diary.append(Event(round(self.loop.time(), 6), what, detail))

    def digest(self) -> str:
        """A fingerprint of all that happened."""
        lines = "\n".join(f"{event.at_s:.6f} {event.what} {event.detail}" for event in self.diary)
        return hashlib.sha256(lines.encode()).hexdigest()

    def hear(self, message: Incoming) -> None:
        """Let the rules know a message that the node does not get."""
        self.oracle.read(message)

    def _heard(self, topic: str, payload: bytes) -> None:
        for hear in (self.central.hear, *self.ears):
            hear(topic, payload)

    def _node_sent(self, who: str, topic: str, payload: bytes) -> None:
        shown = IDENTIFIER.sub(rb'"\1":"*"', payload).decode()
        self.note("up", f"{who} {TOPICS.leaf(topic)} {shown}")
        self.oracle.sent(topic, payload)

    def _node_read(self, who: str, message: Incoming) -> None:
        shown = IDENTIFIER.sub(rb'"\1":"*"', message.payload).decode()
        self.note("down", f"{who} {TOPICS.leaf(message.topic)} {message.retain} {shown}")
        self.oracle.read(message)

    def _write_sent(self, device: SimulatedDevice, value: float, who: str) -> None:
        """A write leaves the node now: judge it by the rules as they are now."""
        assert device.port is not None
        place = (device.port.host, device.port.port, device.unit)
        self.note("write", f"{who} {place[0]}:{place[1]}/{place[2]} {value:g}")
        # Where a pause is kept, a write was decided before the pause.
        lag_s = 2 * device.profile.min_gap_ms / 1000
        allowed = self.oracle.allowed_at(place, lag_s=lag_s)
        if allowed is not None and not any(span is not None and span.has(value) for span in allowed):
            rules = ", ".join(sorted(map(str, allowed)))
            self.fault(f"{who} writes {value:g} to {place}, by the rules it is [{rules}]")
        if device.limit_in_force == value and device.is_believed:
            if device.wears:
                self.fault(f"{who} writes {value:g} to {place}, whose register wears and holds it already")
            elif place in self.oracle.leaving:
                self.fault(f"{who} writes {value:g} to {place}, which is left and holds it already")
        for spec in self.oracle.specs.values():
            if spec.place != place:
                continue
            if not spec.minimum <= value <= spec.maximum:
                self.fault(f"{who} writes {value:g} to {place}, outside {spec.minimum:g} to {spec.maximum:g}")
            # Where a line is shared a write may wait for others, and the next one takes its place.
            is_alone = len(device.port.units) == 1
            most = self.oracle.most_from(spec.tag, device.limit_in_force, is_alone=is_alone)
            if device.is_well and value > most + TOLERANCE:
                self.fault(
                    f"{who} raises {place} from {device.limit_in_force:g} to {value:g}, to {most:g} it may"
                )

    def _measured(self, device: SimulatedDevice, kw: float) -> None:
        assert device.port is not None
        self.oracle.measured((device.port.host, device.port.port, device.unit), kw)

    def fault(self, what: str) -> None:
        """Something that must never happen has happened."""
        self.note("FAULT", what)
        self.faults.append(f"at {self.now_s:.3f} s: {what}")

    # --- devices and desired state ------------------------------------------------------------------

    def add(
        self, tag: str, kind: Profile | None = None, *, port: int, unit: int = 1, **changes: Any
    ) -> SimulatedDevice:
        """Set up a device and put it into the configuration; `configure` tells the node."""
        kind = kind or profile()
        device = self.build(kind, port=port, unit=unit)
        self.put_in_configuration(tag, kind, port=port, unit=unit, **changes)
        return device

    def build(self, kind: Profile, *, port: int, unit: int = 1, host: str = "plant") -> SimulatedDevice:
        assert kind.limit is not None
        how: dict[str, Any] = {
            "profile": kind,
            "unit": unit,
            "nameplate_kw": NAMEPLATE_KW,
            "clock": self.loop.time,
            "volatile": kind.limit.write_class is WriteClass.VOLATILE,
            "latency_s": LATENCY_S,
        }
        if self.connection is None:
            device = SimulatedDevice(**how)
        else:
            device = Inverter(ramp_pct_per_s=RAMP_PCT_PER_S, **how)
            self.connection.inverters.append(device)
        self.install(device, port=port, host=host)
        return device

    def add_meter(self, tag: str, *, port: int, **changes: Any) -> Meter:
        """Set up the meter of the connection, and put it into the configuration."""
        assert self.connection is not None
        kind = meter_profile()
        meter = Meter(profile=kind, unit=1, nameplate_kw=1.0, clock=self.loop.time, latency_s=LATENCY_S)
        meter.connection = self.connection
        self.install(meter, port=port)
        plain = {"category": "meter", "nameplate_kw": None, "measured_only": True}
        self.put_in_configuration(tag, kind, port=port, **{**plain, **changes})
        return meter

    def install(self, device: SimulatedDevice, *, port: int, host: str = "plant") -> None:
        """Connect a device to its port: whatever is written to it is judged by the rules."""
        device.on_sent = self._write_sent
        device.on_measured = self._measured
        self.plant.open_port(host=host, port=port).add(device)
        self.devices[host, port, device.unit] = device

    def put_in_configuration(
        self, tag: str, kind: Profile, *, port: int, unit: int = 1, host: str = "plant", **changes: Any
    ) -> None:
        self.profiles[kind.name] = kind
        self.raw[tag] = {
            "id": tag,
            "tag": tag,
            "category": "inverter",
            "profile": kind.name,
            "host": host,
            "port": port,
            "unit": unit,
            "nameplate_kw": NAMEPLATE_KW,
            "poll_s": 5.0,
            **changes,
        }

    @property
    def body(self) -> dict[str, Any]:
        profiles = {name: profile_to_builtins(kind) for name, kind in sorted(self.profiles.items())}
        return {
            "site": dict(self.site),
            "devices": [dict(raw) for raw in self.raw.values()],
            "profiles": profiles,
            # Central knows which devices there are.
            "loops": [
                {**loop, "members": [tag for tag in loop["members"] if tag in self.raw]}
                for loop in self.loops
            ],
        }

    def configure(self) -> None:
        self._in_loop(lambda: self.central.put("config", self.body))

    def schedule(self, day: date, slots: Mapping[str, float | None], *, category: str = "inverter") -> None:
        body = {"date": day.isoformat(), "category": category, "slots": dict(slots)}
        self._in_loop(lambda: self.central.put(f"schedule/{day.isoformat()}/{category}", body))

    def unschedule(self, day: date, *, category: str = "inverter") -> None:
        self._in_loop(lambda: self.central.drop(f"schedule/{day.isoformat()}/{category}"))

    def device(self, tag: str) -> SimulatedDevice:
        """The device at the control point that the latest configuration gives this tag."""
        raw = self.raw[tag]
        return self.devices[raw["host"], raw["port"], raw["unit"]]

    def device_of(self, tag: str) -> SimulatedDevice | None:
        """The device at the control point that the node knows under this tag."""
        spec = self.oracle.specs.get(tag)
        return None if spec is None else self.devices.get(spec.place)

    def limit(self, tag: str) -> float:
        return self.device(tag).limit_in_force

    def logged(self, kind: str) -> list[LogEntry]:
        return self.central.logged(kind)

    # --- commands -----------------------------------------------------------------------------------

    def setpoint(self, *, hold_s: float = 60.0, **values: float) -> str:
        return self._in_loop(lambda: self.central.setpoint(values, hold_s=hold_s))

    def release(self, *tags: str) -> str:
        return self._in_loop(lambda: self.central.release(tags))

    def command(self, values: Mapping[str, float], **how: Any) -> str:
        """Send a command that no correct central sends: `how` is as `Central.setpoint` has it."""
        return self._in_loop(lambda: self.central.setpoint(values, **how))

    def ask(self, op: str, command: Command) -> None:
        self._in_loop(lambda: self.central.ask(op, command))

    def send_again(self, number: int) -> str:
        return self._in_loop(lambda: self.central.send_again(number))

    def publish_anew(self) -> None:
        self._in_loop(self.central.publish_anew)

    def restore_central(self) -> None:
        self._in_loop(self.central.restored)

    def _in_loop(self, act: Callable[[], T]) -> T:
        """Do it as a callback of the loop, so that what it sends can be timed."""

        async def do() -> T:
            return act()

        return self.loop.run_until_complete(do())

    # --- processes ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the node's program on what is on its disk."""
        assert self._task is None
        self._started += 1
        self.who, self.since_s = f"node-{self._started}", self.now_s
        self.note("start", self.who)
        self.oracle.process_began(is_guard=False)
        self._task = self.loop.create_task(
            run_node(
                broker=ADDRESS,
                topics=TOPICS,
                state=self._disk,
                clock=WorldClock(self),
                stop=asyncio.Event(),
                drivers=self.plant.drivers(self.who),
                open_session=self.broker.opener(self.who),
                pace=PACE,
            ),
            name=self.who,
        )

    def guard(self) -> None:
        """The guard takes over what is on the disk: the same control, without a link."""
        assert self._task is None
        self._started += 1
        self.who, self.since_s = f"guard-{self._started}", self.now_s
        self.note("start", self.who)
        self.oracle.process_began(is_guard=True)
        self._yield = asyncio.Event()
        self._task = self.loop.create_task(self._stand_in(self.who, self._yield), name=self.who)

    async def _stand_in(self, who: str, wanted: asyncio.Event) -> None:
        clock = WorldClock(self)
        store = Store(self._disk)

        async def until_wanted() -> None:
            await wanted.wait()

        try:
            await stand_in(
                store=store,
                clock=clock,
                drivers=self.plant.drivers(who),
                watchers=Watchers(),
                wanted=until_wanted,
            )
        finally:
            store.close()

    def yield_to_node(self) -> None:
        """The guard lets go between two writes, and the node starts."""
        assert self._task is not None
        assert self.who is not None
        self.note("yields", self.who)
        self._yield.set()
        self.loop.run_until_complete(asyncio.wait([self._task]))
        self._look_after_process()
        self.plant.bury(self.who)
        self._task = self.who = None
        self.oracle.process_ended()
        self.start()

    @property
    def is_guarded(self) -> bool:
        return self._task is not None and self.who is not None and self.who.startswith("guard")

    @property
    def is_up(self) -> bool:
        return self._task is not None

    def kill(self) -> None:
        """SIGKILL: what is on the disk at this instant is all that is left, and nothing is said."""
        if self._task is None or self.who is None:
            return
        self.note("kill", self.who)
        self._disks += 1
        after = self.directory / f"disk-{self._disks}"
        # The files as they are, the database's log among them; its shared memory dies with the process. The
        # ring of reasons is no promise, and a thread of its own may just be writing it.
        shutil.copytree(self._disk, after, ignore=shutil.ignore_patterns("*-shm", ".new-*", "reasons.*"))
        self.plant.bury(self.who)
        self.broker.bury(self.who)
        moment = self.now_s
        self.loop.finish([self._task])
        assert self.now_s - moment < A_MOMENT_S, "a dead process does nothing any more"
        self._task = self.who = None
        shutil.rmtree(self._disk)
        self._disk = after
        self.oracle.process_ended()

    def restart(self) -> None:
        self.kill()
        self.start()

    def reboot(self, *, off_s: float = 20.0) -> None:
        """The machine loses its power and comes back; its boot-time clock begins anew."""
        self.kill()
        self.note("power off", "")
        self.loop.elapse(off_s)
        self.booted_s = self.now_s - 1.0
        self.boot_id = f"boot-{self._started + 1}"
        self.oracle.machine_rebooted(wall_shift_s=self.wall_shift_s, vouched=self.kernel_vouches)
        self.start()

    def _look_after_process(self) -> None:
        if self._task is not None and self._task.done():
            error = "cancelled" if self._task.cancelled() else self._task.exception()
            if error is None and self._yield.is_set():
                return
            self.fault(f"{self.who} has ended by itself: {error!r}")
            self._task = None

    def close(self) -> None:
        self.kill()
        rest = asyncio.all_tasks(self.loop)
        self.loop.finish(rest)
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        shutil.rmtree(self._disk, ignore_errors=True)

    # --- what must hold, at any moment ----------------------------------------------------------------

    def check(self) -> None:
        """Raise where something is not as the rules have it."""
        intrusions = [intrusion for port in self.plant.ports.values() for intrusion in port.intrusions]
        assert intrusions == [], intrusions
        assert self.faults == [], self.faults
        for device in self.devices.values():
            assert device.gap_violations == [], "a command came within the pause after the last: a gap"
        for tag in self.oracle.specs:
            self._check_device(tag)
        for place, leaving in self.oracle.leaving.items():
            self._check_left(place, leaving)
        self._check_answers()
        self._check_link()
        if self.connection is not None:
            self._check_connection(self.connection)

    def _check_link(self) -> None:
        """A node that has a line to the broker is there: it tries again at least every quarter of a minute."""
        may_be_there_s = max(self.broker.mended_s, self.since_s)
        if self.is_up and not self.is_guarded and not self.broker.is_cut:
            is_late = self.now_s - may_be_there_s > RECONNECTED_S
            assert self.broker.sessions or not is_late, f"{self.who} has no link, and could have one"

    def _check_device(self, tag: str) -> None:
        """A device that is there and honest holds what the rules say, a second after they began to say so.

        That no direct request outlives its end by more than a second is part of it.
        """
        spec = self.oracle.specs[tag]
        device = self.devices.get(spec.place)
        resolved = self.oracle.resolved(tag)
        if device is None or resolved is None or not self.is_settled(tag) or not self.oracle.is_sure(tag):
            return
        assert device.port is not None
        if not resolved.has(device.limit_in_force, tolerance=TOLERANCE):
            raise AssertionError(
                f"at {self.now_s:.3f} s {tag} holds {device.limit_in_force:g}, by the rules it is {resolved}"
                f" ({self.oracle.source(tag)}) for {self.oracle.unchanged_for_s(tag):.3f} s"
            )

    def _check_connection(self, connection: Connection) -> None:
        """The power at the connection is what the loop is for, whoever commands its members."""
        loop = self.oracle.loop
        if loop is None or not self.is_up or self.is_guarded or not self.oracle.is_loop_running():
            return
        specs = [self.oracle.specs[tag] for tag in loop.spec.members]
        members = [self.devices[spec.place] for spec in specs]
        if not all(device.is_well for device in [*members, self.devices[loop.spec.meter]]):
            return
        quiet_for_s = min(self.oracle.quiet_for_s(), self.now_s - self._disturbed_s(connection, members))
        quiet_for_s -= 2 * loop.spec.time_step_s
        export_kw, stray_kw = connection.export_kw, 2 * connection.wander_kw
        limit_kw = loop.spec.export_limit_kw
        if limit_kw is not None and quiet_for_s >= OBEYED_S:
            has_more = any(
                device.limit_in_force > spec.minimum + MET_KW
                for spec, device in zip(specs, members, strict=True)
            )
            assert not has_more or export_kw <= limit_kw + HELD_KW + stray_kw, (
                f"at {self.now_s:.3f} s {export_kw:.1f} kW are exported, {limit_kw:g} may be,"
                f" and nothing has changed for {quiet_for_s:.1f} s"
            )
            self.held_below += 1
        if any(self.oracle.source(tag) == "direct" for tag in loop.spec.members):
            return
        if quiet_for_s >= MET_S + 100 / loop.spec.rate_pct_per_s:
            self._check_met(connection, specs, members, stray_kw)

    def _disturbed_s(self, connection: Connection, members: list[SimulatedDevice]) -> float:
        """When the load, the sun or a device last did something that nobody had asked it for."""
        moments = [connection.changed_s, self.since_s]
        for inverter in connection.inverters:
            moments += [inverter.disturbed_s, inverter.troubled_until_s + inverter.patience_s]
            if inverter not in members:
                moments.append(inverter.told_s)
        return max(moment for moment in moments if moment <= self.now_s)

    def _check_met(
        self, connection: Connection, specs: list[Spec], members: list[SimulatedDevice], stray_kw: float
    ) -> None:
        """All that the sun and its members' bounds allow of its setpoint is there, and no more."""
        least_kw = most_kw = given_kw = left_kw = 0.0
        for spec, device in zip(specs, members, strict=True):
            assert isinstance(device, Inverter)
            least, most = self.oracle.range_of(spec)
            least_kw += device.nameplate_kw * min(device.sun, least / 100)
            most_kw += device.nameplate_kw * min(device.sun, most / 100)
            given_kw += device.tell_power()
            if device.sun < 1:
                left_kw += device.nameplate_kw * LEFT_PCT / 100
        load_kw = given_kw - connection.export_kw
        aim_kw = self.oracle.aim_kw()
        right_kw = min(max(aim_kw + load_kw, least_kw), most_kw)
        assert -MET_KW - left_kw - stray_kw <= given_kw - right_kw <= MET_KW + stray_kw, (
            f"at {self.now_s:.3f} s members give {given_kw:.1f} kW, for an export of {aim_kw:g} at a load of"
            f" {load_kw:.1f} it is {right_kw:.1f}"
        )
        self.met += 1

    def _check_left(self, place: Place, leaving: Leaving) -> None:
        """Rule 20: nothing of ours is left behind."""
        if leaving.is_done or not self._is_settled(place, self.now_s - leaving.since_s - QUICKLY_S):
            return
        device = self.devices[place]
        held = device.limit_in_force
        if device.holds_ours and all(abs(held - default) > TOLERANCE for default in leaving.defaults):
            raise AssertionError(
                f"at {self.now_s:.3f} s {leaving.tag} at {place} was left at {held:g},"
                f" its default is {leaving.defaults}"
            )
        leaving.is_done = True

    def is_settled(self, tag: str) -> bool:
        """Whether this device must be right by now."""
        return self._is_settled(self.oracle.specs[tag].place, self.oracle.unchanged_for_s(tag))

    def _is_settled(self, place: Place, unchanged_for_s: float) -> bool:
        device = self.devices[place]
        assert device.port is not None
        # A line is shared: each of its devices may cost the others a pause, and a silent one its timeout.
        neighbours = [other for other in device.port.units.values() if other is not device]
        slack_s = 4 * len(device.port.units) * device.profile.min_gap_ms / 1000
        slack_s += 2.0 * sum(other.trouble in UNREACHABLE for other in neighbours)
        if neighbours and device.port.healed_s > self.now_s - QUICKLY_S:
            return False
        return (
            self.is_up
            and self.now_s - self.since_s >= START_S + slack_s
            and device.is_well
            and unchanged_for_s >= WITHIN_S + slack_s
        )

    def _check_answers(self) -> None:
        """What was answered is what the rules say of each command."""
        for command_id, answers in self.central.answers.items():
            verdicts = self.oracle.verdicts.get(command_id)
            if verdicts is None:
                continue  # a ping
            for answer in answers:
                if answer.stage is Stage.REFUSED:
                    assert answer.code in verdicts, (answer, verdicts)
                elif answer.stage is Stage.ACCEPTED:
                    refused = {tag: str(result.code) for tag, result in answer.devices.items()}
                    assert refused in verdicts, (answer, verdicts)


@contextmanager
def world(directory: Path, *, seed: int = 0, begin: datetime = A_MORNING) -> Iterator[World]:
    """A world until the block ends."""
    made = World(directory, seed=seed, begin=begin)
    try:
        yield made
    finally:
        made.close()


__all__ = ["A_MORNING", "Trouble", "World", "profile", "world"]
