"""A site with a closed loop, on a virtual clock: inverters with sun, a load, and the meter that sees both.

The node is the real one, with its link and its store; devices, broker and central are those of
`tests.simulation`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.profiles.model import Profile
from edge.wire import codec
from edge.wire.messages import (
    Alarm,
    CommandAnswer,
    ExplainCommand,
    Heartbeat,
    LoopStatus,
    PreviewCommand,
    Reported,
    TelemetryBatch,
    TelemetryPoint,
)
from tests.simulation.connection import Connection, Inverter, Meter
from tests.simulation.world import TOPICS, World, profile, world

A, B, C = "INVERTER_01", "INVERTER_02", "INVERTER_03"
METER = "METER_01"
LOOP = "GRID"


@dataclass
class LoopSite:
    """The site; `load_kw` is what it takes, and `beats` and `points` what the node has told central."""

    world: World
    connection: Connection = field(init=False)
    inverters: dict[str, Inverter] = field(default_factory=dict)
    beats: list[tuple[float, Heartbeat]] = field(default_factory=list)
    reports: list[Reported] = field(default_factory=list)
    points: list[tuple[float, TelemetryPoint]] = field(default_factory=list)
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self.connection = self.world.connection = Connection(self.world.loop.time)

    def add(self, tag: str, *, kw: float, port: int, kind: Profile | None = None, **changes: Any) -> Inverter:
        kind = kind or profile()
        device = Inverter(profile=kind, unit=1, nameplate_kw=kw, clock=self.world.loop.time, latency_s=0.004)
        self.world.install(device, port=port)
        self.world.put_in_configuration(
            tag, kind, port=port, **{"nameplate_kw": kw, "poll_s": 1.0, "telemetry_s": 10.0, **changes}
        )
        self.inverters[tag] = device
        self.connection.inverters.append(device)
        return device

    def add_meter(self, *, port: int = 9, **changes: Any) -> Meter:
        self.meter = self.world.add_meter(METER, port=port, poll_s=1.0, **changes)
        return self.meter

    def loop(self, **settings: Any) -> None:
        """The loop as the configuration is to have it; `configure` of the world tells the node."""
        plain = {"id": "loop-1", "tag": LOOP, "meter": METER, "members": list(self.inverters)}
        self.world.loops = [{**plain, **settings}]

    # --- what there is

    @property
    def load_kw(self) -> float:
        return self.connection.load_kw

    @load_kw.setter
    def load_kw(self, kw: float) -> None:
        self.connection.set_load(kw)

    @property
    def export_kw(self) -> float:
        return self.connection.export_kw

    def limits(self) -> dict[str, float]:
        return {tag: device.limit_in_force for tag, device in self.inverters.items()}

    def writes(self, tag: str, *, since_s: float = 0.0) -> list[float]:
        return [write.value for write in self.inverters[tag].writes if write.at_s >= since_s]

    def ask(self, op: str, device: str, *, value: float = 0.0) -> CommandAnswer:
        """The node's answer to a question of central's: `explain` or `preview`."""
        central = self.world.central
        command: ExplainCommand | PreviewCommand
        if op == "explain":
            command = ExplainCommand(id=f"{op}-{len(self.beats)}", epoch=central.epoch, device=device)
        else:
            command = PreviewCommand(
                id=f"{op}-{len(self.beats)}",
                epoch=central.epoch,
                category="inverter",
                values={device: value},
                hold_s=60.0,
            )
        self.world.ask(op, command)
        # The ring of reasons answers from a thread, whose time is the machine's: the world's goes no faster.
        while command.id not in central.answers:
            self.world.run(0.001)
            time.sleep(0.001)
        return central.answers[command.id][-1]

    # --- what the node has said

    def hear(self, topic: str, payload: bytes) -> None:
        leaf = TOPICS.leaf(topic)
        if leaf == "hb":
            self.beats.append((self.world.now_s, codec.decode(Heartbeat, payload)))
        elif leaf == "reported":
            self.reports.append(codec.decode(Reported, payload))
        elif leaf == "tele":
            batch = codec.decode(TelemetryBatch, payload)
            self.points += [(self.world.now_s, point) for point in batch.points]

    @property
    def status(self) -> LoopStatus:
        """How the loop stood by the last heartbeat."""
        (status,) = self.beats[-1][1].loops
        return status

    def alarms(self, code: str) -> list[Alarm]:
        return [alarm for alarm in self.reports[-1].alarms if alarm.code == code]


@contextmanager
def loop_site(directory: Path) -> Iterator[LoopSite]:
    """Three inverters of 60, 60 and 30 kW behind a meter; the loop is the test's."""
    with world(directory) as made:
        site = LoopSite(made)
        made.ears.append(site.hear)
        for number, (tag, kw) in enumerate({A: 60.0, B: 60.0, C: 30.0}.items(), start=1):
            site.add(tag, kw=kw, port=number)
        site.add_meter()
        yield site
