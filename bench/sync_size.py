"""One fleet of one size through all phases of `bench.sync`; what it saw goes to a file as JSON.

python -m bench.sync_size NODES RESULT_JSON [--profile DIRECTORY]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import secrets
import shutil
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import django
import psycopg
import redis

from bench import sync_floor
from bench.sync_central import Central, bench_settings, central, profiled
from bench.sync_servers import (
    FleetProcess,
    NodeIdentity,
    Servers,
    cpu_s,
    fleet_process,
    raise_open_files,
    servers,
    versions,
)
from tests.servers import until

if TYPE_CHECKING:
    from bench.sync_database import Place

CHANGES = 120
SETTLE_S = 12.0
LOOK_AGAIN_S = 0.02
# More than any goal: what takes longer is a failure, not a figure.
SYNC_WITHIN_S = 200.0
CHANGE_WITHIN_S = 30.0
HEARTBEATS_SAMPLED = 40


@dataclass(kw_only=True)
class Seen:
    """What one size showed; times in seconds."""

    nodes: int
    broker: str = ""
    database: str = ""
    # What kept it from coming to its end.
    failed: str = ""
    documents: int = 0
    floor: dict[str, float] = field(default_factory=dict)
    # Of the first synchronisation: until all nodes had all, until the database said so, and on the way
    # (seconds, nodes that have all, documents that the database calls applied).
    sync_nodes_s: float = 0.0
    sync_s: float = 0.0
    progress: list[tuple[float, int, int]] = field(default_factory=list)
    # Of each single change: until the node had it, and until the database said so.
    change_node_s: list[float] = field(default_factory=list)
    change_s: list[float] = field(default_factory=list)
    telemetry_lag_s: list[float] = field(default_factory=list)
    telemetry_sent: int = 0
    telemetry_stored: int = 0
    heartbeat_lag_s: list[float] = field(default_factory=list)
    # By way of the broker's end: until all nodes were connected, and until all was known to be consistent.
    restart: dict[str, dict[str, float]] = field(default_factory=dict)
    memory_mb: float = 0.0
    memory_of_each_mb: dict[str, float] = field(default_factory=dict)
    # Phase -> process -> seconds of processor time; `duration` among them is the phase's own length.
    cpu_s: dict[str, dict[str, float]] = field(default_factory=dict)
    fleet: dict[str, Any] = field(default_factory=dict)


class Measurement:
    """All processes are there, and the fleet is connected."""

    def __init__(
        self,
        *,
        seen: Seen,
        running: Servers,
        central: Central,
        fleet: FleetProcess,
        places: Sequence[Place],
        first: date,
    ) -> None:
        self.seen = seen
        self.running = running
        self.central = central
        self.fleet = fleet
        self.places = places
        self.first = first
        self.database = psycopg.connect(running.database_url, autocommit=True)

    def one(self, query: str, *parameters: Any) -> Any:
        """The first column of the first row."""
        row = self.database.execute(query, parameters).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Account for the processor time of this phase."""
        say(f"{self.seen.nodes}: {name}")
        before, began = self._cpu(), time.monotonic()
        yield
        self.central.check()
        after = self._cpu()
        took = {}
        for process, total in after.items():
            # A broker that was started again begins anew.
            earlier = before.get(process, 0.0)
            took[process] = round(total - (earlier if earlier <= total else 0.0), 2)
        self.seen.cpu_s[name] = {"duration": round(time.monotonic() - began, 2), **took}

    def _cpu(self) -> dict[str, float]:
        return {**self.central.cpu(), "fleet": cpu_s(self.fleet.process.pid)}

    # --- the phases ---------------------------------------------------------------------------------

    def all_online(self) -> None:
        """Until central has heard the birth of every node, and its first report."""
        heard = "SELECT count(*) FROM sites_app_node WHERE online AND last_reported->>'session' = session"
        until(
            lambda: self.one(heard) == self.seen.nodes,
            what="central did not hear of every node",
            within_s=60,
        )

    def first_synchronisation(self) -> None:
        from django.db import transaction  # noqa: PLC0415 - Django is set up by now

        from bench.sync_database import documents_create, tables_analyze  # noqa: PLC0415

        with ExitStack() as stack:
            with transaction.atomic():
                documents_create(self.places, first=self.first)
                tables_analyze()
                stack.enter_context(self.phase("first synchronisation"))
                began = time.time()
            self._until_all_applied(began)
        state = self.fleet.ask("state")
        self.seen.sync_nodes_s = round(state["last_complete_at"] - began, 3)

    def _until_all_applied(self, began: float) -> None:
        waiting = "SELECT count(*) FROM sites_app_nodedocument WHERE status <> 'applied' OR dropped"
        some = "SELECT EXISTS(SELECT 1 FROM sites_app_nodedocument WHERE status <> 'applied')"
        next_look = 0.0
        while self.one(some):
            now = time.time() - began
            if now >= next_look:
                # Counting is not free, and is not what is measured.
                next_look = now + max(0.5, now / 20)
                state = self.fleet.ask("state")
                applied = self.seen.documents - self.one(waiting)
                self.seen.progress.append((round(now, 2), state["complete"], applied))
                self.central.check()
            if now > SYNC_WITHIN_S:
                raise TimeoutError(f"not all documents were applied within {SYNC_WITHIN_S:.0f} s")
            time.sleep(LOOK_AGAIN_S)
        self.seen.sync_s = round(time.time() - began, 3)
        self.seen.progress.append((self.seen.sync_s, self.seen.nodes, self.seen.documents))

    def changes(self) -> None:
        """One schedule after the other is replaced, each of another site, while the rest is quiet."""
        from bench.sync_database import CATEGORIES, DAYS, slots_draw  # noqa: PLC0415
        from schedules_app.models import Schedule  # noqa: PLC0415
        from schedules_app.services import schedule_replace  # noqa: PLC0415
        from sites_app.documents import document_states  # noqa: PLC0415
        from sites_app.models import DocumentStatus  # noqa: PLC0415

        draw = random.Random(7)
        for place in draw.sample(list(self.places), min(CHANGES, len(self.places))):
            schedule = Schedule.objects.filter(site=place.site_id).order_by("valid_on", "category")[
                draw.randrange(DAYS * len(CATEGORIES))
            ]
            schedule_replace(schedule=schedule, slots=slots_draw(draw))
            began = time.time()
            name = schedule.document_name

            def is_applied(site: uuid.UUID = place.site_id, name: str = name) -> bool:
                (state,) = document_states([(site, name)])[0].values()
                return bool(state.status == DocumentStatus.APPLIED)

            until(is_applied, what=f"a changed {name} was not applied", within_s=CHANGE_WITHIN_S)
            self.seen.change_s.append(round(time.time() - began, 4))
            applied = self.fleet.ask("applied", node=str(place.node_id), name=name)
            self.seen.change_node_s.append(round(applied["at"] - began, 4))

    def readings(self, *, sent: int, since: datetime, until_: datetime) -> None:
        """What became of the telemetry of a time: every reading is there, and when it was to be seen."""
        from devices_app.models import TelemetryReading  # noqa: PLC0415

        readings = TelemetryReading.objects.filter(at__range=(since, until_))
        self.seen.telemetry_sent = sent
        until(
            lambda: readings.count() >= sent,
            what="the telemetry that was sent was not stored",
            within_s=20,
        )
        self.seen.telemetry_stored = readings.count()
        rows = self.database.execute(
            "SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin) - at))"
            " FROM devices_app_telemetryreading WHERE at BETWEEN %s AND %s GROUP BY at",
            (since, until_),
        )
        self.seen.telemetry_lag_s = [round(float(lag), 4) for (lag,) in rows]

    def broker_restarted(self, *, kill: bool) -> None:
        """Until all nodes are connected, and are known to be consistent by reports of their new sessions."""
        began = time.time()
        self.running.restart_broker(kill=kill)
        state = self.fleet.until_all("live", within_s=SYNC_WITHIN_S)
        connected_s = state["last_live_at"] - began
        sessions = self.fleet.ask("sessions")
        until(lambda: self._consistent(sessions), what="not all was consistent again", within_s=SYNC_WITHIN_S)
        self.seen.restart["killed" if kill else "restarted"] = {
            "broker_back_s": round(self.running.broker_back_at - began, 3),
            "connected_s": round(connected_s, 3),
            "consistent_s": round(time.time() - began, 3),
        }

    def _consistent(self, sessions: dict[str, str]) -> bool:
        """Tell whether the database knows, of every node's present session, that it runs what it should."""
        done = self.one(
            "SELECT count(*) FROM sites_app_node WHERE online AND out_of_sync_since IS NULL"
            " AND last_reported->>'session' = session"
        )
        if done < self.seen.nodes or self.one(
            "SELECT EXISTS(SELECT 1 FROM sites_app_nodedocument WHERE status <> 'applied' OR dropped)"
        ):
            time.sleep(0.1)
            return False
        rows = self.database.execute("SELECT id::text, session FROM sites_app_node").fetchall()
        return dict(rows) == sessions


class HeartbeatWatch:
    """Looks at some nodes' newest token in Redis: a token of the fleet says when it left its node."""

    def __init__(self, url: str, node_ids: Sequence[uuid.UUID]) -> None:
        from sites_app.presence import node_key  # noqa: PLC0415

        self._redis = redis.Redis.from_url(url, decode_responses=True)
        self._keys = [node_key(node_id) for node_id in node_ids]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.lags_s: list[float] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._redis.close()

    def _watch(self) -> None:
        known: dict[str, str] = {}
        while not self._stop.wait(LOOK_AGAIN_S):
            pipe = self._redis.pipeline(transaction=False)
            for key in self._keys:
                pipe.hget(key, "fresh")
            now_ns = time.time_ns()
            for key, token in zip(self._keys, pipe.execute(), strict=True):
                if token and known.get(key) != token:
                    # The first sight tells nothing: it may have lain there for seconds.
                    if key in known:
                        self.lags_s.append((now_ns - int(token, 16)) / 1e9)
                    known[key] = token


def say(text: str) -> None:
    sys.stderr.write(f"{datetime.now():%H:%M:%S} {text}\n")  # noqa: DTZ005 - for who watches
    sys.stderr.flush()


def measure(seen: Seen, var: Path, profile: Path | None) -> None:
    count = seen.nodes
    nodes = [
        NodeIdentity(id=str(uuid.uuid4()), password=secrets.token_hex(8), device=f"inverter_{number:05d}")
        for number in range(count)
    ]
    with ExitStack() as stack:
        say(f"{count}: servers")
        running = stack.enter_context(servers(var, nodes))
        seen.broker, seen.database = versions(running)
        settings = bench_settings(running)
        os.environ.update(settings.central_environment())
        django.setup()
        # Of this process; central's own write theirs to files.
        logging.disable(logging.INFO)
        from bench.sync_database import bodies, first_day, fleet_create, messages  # noqa: PLC0415

        say(f"{count}: sites, nodes, devices")
        places, first = fleet_create(nodes), first_day()
        seen.documents = count * sum(1 for _ in bodies(places[0], first=first))
        say(f"{count}: floor")
        published = [message for place in places for message in messages(place, first=first)]
        floor = sync_floor.measure(var / "floor", nodes=nodes, messages=published)
        seen.floor = asdict(floor)
        del published

        say(f"{count}: central")
        at_work = stack.enter_context(central(settings))
        stack.callback(_note_memory, seen, at_work)
        until(lambda: _inboxes_listen(running), what="the inboxes did not connect", within_s=60)
        fleet = stack.enter_context(fleet_process(var, port=running.mqtt_port, nodes=nodes))
        measurement = Measurement(
            seen=seen, running=running, central=at_work, fleet=fleet, places=places, first=first
        )
        say(f"{count}: nodes connect")
        fleet.ask("connect")
        measurement.all_online()
        with profiled(at_work, profile and profile / f"{count}-sync"):
            measurement.first_synchronisation()
        say(f"{count}: all documents applied after {seen.sync_s} s")
        time.sleep(SETTLE_S)

        began = fleet.ask("state")
        watched = [place.node_id for place in places[:: max(1, count // HEARTBEATS_SAMPLED)]]
        with (
            measurement.phase("changes"),
            profiled(at_work, profile and profile / f"{count}-changes"),
            HeartbeatWatch(running.redis_url, watched) as heartbeats,
        ):
            measurement.changes()
        ended = fleet.ask("state")
        seen.heartbeat_lag_s = [round(lag, 4) for lag in heartbeats.lags_s]
        measurement.readings(
            sent=ended["counts"]["points"] - began["counts"]["points"],
            since=_moment(began["now"]),
            until_=_moment(ended["now"]),
        )
        for kill in (True, False):
            with (
                measurement.phase("broker killed" if kill else "broker restarted"),
                profiled(at_work, profile and profile / f"{count}-{'killed' if kill else 'restarted'}"),
            ):
                measurement.broker_restarted(kill=kill)
            say(f"{count}: {seen.restart}")
            time.sleep(SETTLE_S)
        seen.fleet = fleet.ask("state")


def _note_memory(seen: Seen, at_work: Central) -> None:
    seen.memory_mb = round(at_work.peak_mb, 1)
    seen.memory_of_each_mb = {name: round(mb, 1) for name, mb in at_work.peak_of_each_mb.items()}


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _inboxes_listen(running: Servers) -> bool:
    """Tell whether every inbox has said that it reached the broker."""
    logs = [path.read_text(errors="replace") for path in (running.var / "log").glob("inbox-*.log")]
    return bool(logs) and all("broker_connection_up" in log for log in logs)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("nodes", type=int)
    parser.add_argument("result", type=Path)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--keep-logs", type=Path, help="a directory for what central's processes logged")
    options = parser.parse_args()
    # A connection of each node at the broker, and at the fleet; besides, what everything has open.
    raise_open_files(options.nodes + 500)
    seen = Seen(nodes=options.nodes)
    with tempfile.TemporaryDirectory(prefix="sgm-sync-") as name:
        try:
            measure(seen, Path(name), options.profile)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it was
            # What was seen until then is worth keeping, and the failure is a result too.
            seen.failed = str(error) or type(error).__name__
            say(f"{seen.nodes}: failed: {traceback.format_exc()}")
        finally:
            if options.keep_logs is not None:
                shutil.copytree(Path(name) / "log", options.keep_logs, dirs_exist_ok=True)
    options.result.write_text(json.dumps(asdict(seen)), encoding="utf-8")


if __name__ == "__main__":
    main()
